#include "loop/xthread.h"

#include "base/log.h"
#include "base/mem.h"
#include "loop/loop.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <unistd.h>

enum { MAX_DONE = 64 }; /* calls in one turn of the loop */

struct job {
    STAILQ_ENTRY(job) next;
    xthread_fn run, done;
    void *arg;
};

STAILQ_HEAD(job_list, job);

struct xthread {
    struct loop *loop;
    struct event *ev;
    int fd; /* readable: finished is not empty */
    pthread_t thread;
    bool freed; /* loop thread only; the memory goes with a deferred call */

    pthread_mutex_t lock; /* for all below */
    pthread_cond_t work;  /* queued or stop changed */
    pthread_cond_t idle;  /* nothing queued or running */
    struct job_list queued, finished;
    bool running, stop;
};

static _Noreturn void die(const char *what, int err)
{
    log_error("xthread", "helper thread failed", KS("what", what), KS("err", strerror(err)));
    abort();
}

/* Waits for work.  NULL: stop. */
static struct job *next_job(struct xthread *x)
{
    struct job *j;

    pthread_mutex_lock(&x->lock);
    while (STAILQ_EMPTY(&x->queued) && !x->stop)
        pthread_cond_wait(&x->work, &x->lock);
    j = STAILQ_FIRST(&x->queued);
    if (j) {
        STAILQ_REMOVE_HEAD(&x->queued, next);
        x->running = true;
    }
    pthread_mutex_unlock(&x->lock);
    return j;
}

/* EAGAIN: the counter is full, so the loop wakes anyway. */
static void wake_loop(struct xthread *x)
{
    static const uint64_t one = 1;

    while (write(x->fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

static void finish_job(struct xthread *x, struct job *j)
{
    pthread_mutex_lock(&x->lock);
    x->running = false;
    STAILQ_INSERT_TAIL(&x->finished, j, next);
    if (STAILQ_EMPTY(&x->queued))
        pthread_cond_signal(&x->idle);
    pthread_mutex_unlock(&x->lock);
    wake_loop(x);
}

static void *thread_main(void *arg)
{
    struct xthread *x = arg;
    struct job *j;

    while ((j = next_job(x))) {
        j->run(j->arg);
        finish_job(x, j);
    }
    return NULL;
}

static struct job *pop_finished(struct xthread *x)
{
    struct job *j;

    pthread_mutex_lock(&x->lock);
    j = STAILQ_FIRST(&x->finished);
    if (j)
        STAILQ_REMOVE_HEAD(&x->finished, next);
    pthread_mutex_unlock(&x->lock);
    return j;
}

static void wake_if_left(struct xthread *x)
{
    pthread_mutex_lock(&x->lock);
    if (!STAILQ_EMPTY(&x->finished))
        wake_loop(x);
    pthread_mutex_unlock(&x->lock);
}

/* Taken one by one: a done() that frees x finds the rest still in its list. */
static void call_done(struct xthread *x)
{
    struct job *j;

    for (int i = 0; i < MAX_DONE && !x->freed && (j = pop_finished(x)); i++) {
        xthread_fn done = j->done;
        void *arg = j->arg;

        free(j);
        if (done)
            done(arg);
    }
    if (!x->freed)
        wake_if_left(x);
}

static void on_finished(evutil_socket_t fd, short what, void *arg)
{
    uint64_t count;

    (void)what;
    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
    call_done(arg);
}

/* Signals belong to the loop thread. */
static void start_thread(struct xthread *x, const char *name)
{
    char short_name[16];
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&x->thread, NULL, thread_main, x);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0)
        die("pthread_create", rc);
    strncpy(short_name, name, sizeof(short_name) - 1);
    short_name[sizeof(short_name) - 1] = '\0';
    pthread_setname_np(x->thread, short_name);
}

struct xthread *xthread_new(struct loop *l, const char *name)
{
    struct xthread *x = xcalloc(1, sizeof(*x));

    x->loop = l;
    STAILQ_INIT(&x->queued);
    STAILQ_INIT(&x->finished);
    pthread_mutex_init(&x->lock, NULL);
    pthread_cond_init(&x->work, NULL);
    pthread_cond_init(&x->idle, NULL);
    x->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (x->fd < 0)
        die("eventfd", errno);
    x->ev = event_new(loop_base(l), x->fd, EV_READ | EV_PERSIST, on_finished, x);
    if (!x->ev || event_priority_set(x->ev, LOOP_PRIO_NORMAL) < 0 || event_add(x->ev, NULL) < 0)
        die("event", ENOMEM);
    start_thread(x, name);
    return x;
}

void xthread_submit(struct xthread *x, xthread_fn run, xthread_fn done, void *job)
{
    struct job *j = xmalloc(sizeof(*j));

    *j = (struct job){.run = run, .done = done, .arg = job};
    pthread_mutex_lock(&x->lock);
    STAILQ_INSERT_TAIL(&x->queued, j, next);
    pthread_cond_signal(&x->work);
    pthread_mutex_unlock(&x->lock);
}

/* True: jobs have finished and their done() is still to be called. */
static bool wait_idle(struct xthread *x)
{
    bool some;

    pthread_mutex_lock(&x->lock);
    while (x->running || !STAILQ_EMPTY(&x->queued))
        pthread_cond_wait(&x->idle, &x->lock);
    some = !STAILQ_EMPTY(&x->finished);
    pthread_mutex_unlock(&x->lock);
    return some;
}

static void stop_thread(struct xthread *x)
{
    pthread_mutex_lock(&x->lock);
    x->stop = true;
    pthread_cond_signal(&x->work);
    pthread_mutex_unlock(&x->lock);
    pthread_join(x->thread, NULL);
}

void xthread_free(struct xthread *x)
{
    if (!x)
        return;
    while (wait_idle(x)) /* a done() may submit the next job */
        call_done(x);
    stop_thread(x);
    x->freed = true;
    event_free(x->ev);
    close(x->fd);
    pthread_cond_destroy(&x->idle);
    pthread_cond_destroy(&x->work);
    pthread_mutex_destroy(&x->lock);
    loop_defer(x->loop, free, x); /* call_done() may be on the stack */
}
