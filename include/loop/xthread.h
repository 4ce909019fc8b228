/*
 * xthread.h - one helper thread that runs jobs in order, for libraries that block (RocksDB, SQLite).
 *
 * A job's run() executes in the helper and may touch only what the job owns (and what belongs to the
 * thread, such as the database handle); done() is called on the loop afterwards, through an eventfd.
 * So each object has one user at a time and needs no lock.
 */
#ifndef LOOP_XTHREAD_H
#define LOOP_XTHREAD_H

struct loop;
struct xthread;

typedef void (*xthread_fn)(void *job);

/* Starts the thread. name is at most 15 characters (shown by top -H). Aborts if there is no thread. */
struct xthread *xthread_new(struct loop *l, const char *name);

/* Queues a job.  done may be NULL. Exactly one done() per submit, in order, never from inside submit. */
void xthread_submit(struct xthread *x, xthread_fn run, xthread_fn done, void *job);

/* Waits for the queued jobs, calls their done(), ends the thread. For shutdown, where waiting is right.
 * NULL is allowed. */
void xthread_free(struct xthread *x);
#endif
