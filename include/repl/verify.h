/*
 * verify.h - compares what the source and the target of a running task have, row by row, while both are written; on request
 * it mends what differs.
 *
 * Neither side can be read at a time of the past. So the time tick of a comparison is the source's, up to which the
 * target had all when it began, and a difference counts only when it persists: the same in looks between which the task has
 * confirmed everything that the source had written before.
 *
 * One collection, one page of rows, one query at a time. One result for each task: that of the verification under way, or of
 * the last one. It is stored in the task's record (store_ops.put_verify).
 */
#ifndef REPL_VERIFY_H
#define REPL_VERIFY_H
#include <stdbool.h>
#include <stddef.h>
#include <jansson.h>

#include "repl/task.h"

struct err;
struct rows_port;

enum verify_level {
    VERIFY_COUNTS, /* numbers of rows */
    VERIFY_KEYS,   /* which keys there are */
    VERIFY_ROWS,   /* their values too */
};

struct repl_verify_options {
    enum verify_level level;
    bool repair;             /* writes what differs: portable tasks only */
    bool load;               /* a collection that is not loaded is, for the time of its comparison */
    const json_t *names;     /* array of "name" or "db.name" of the source; NULL: all. Borrowed */
    struct rows_port *rows;  /* of the target; borrowed until done */
    /* It is stored that it runs, and all daemons tell so; or, with err, it ended before. NULL: nobody asks. */
    store_done_fn begun;
    /* Over, whatever came of it, also by the end of the task: the target's port is not used any more. */
    void (*done)(void *arg);
    void *arg;
};

/* Begins; of a task that is still starting, when it runs. ERR_STATE: the task stops, or one is under way; ERR_NOT_FOUND: a
 * name is not the task's (of a task that is starting: "failed", later); ERR_UNSUPPORTED: no repair of a standby. */
int repl_task_verify(struct repl_task *t, const struct repl_verify_options *o, struct err *err);
bool repl_task_verifying(const struct repl_task *t);
/* Ends the one under way, if there is one, as soon as nothing that it writes is on its way. */
void repl_task_verify_cancel(struct repl_task *t);
/* The result as it is shown and stored; NULL: none in this run of the task. New reference. */
json_t *repl_task_verify_json(const struct repl_task *t);
/* A stored result whose verification nobody goes on with: "running" becomes "failed". False: it was over. */
bool repl_verify_interrupted(json_t *result);
/* "counts", "keys", "rows". False: none of them. */
bool repl_verify_level(const char *name, enum verify_level *ret);
#endif
