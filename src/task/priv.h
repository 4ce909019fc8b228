/*
 * priv.h - the objects behind manager.h.
 */
#ifndef TASK_PRIV_H
#define TASK_PRIV_H
#include <sys/queue.h>
#include <uthash.h>

#include "loop/loop.h"
#include "milvus/target.h"
#include "repl/hub.h"
#include "repl/task.h"
#include "task/manager.h"
#include "task/spec.h"

/* One target address, shared by the tasks that write to it. Data goes with the login and options of the first one. */
struct endpoint {
    UT_hash_handle hh;
    char *key;
    unsigned refs;
    struct sink *sink;
    char *login; /* and the other options of sink, in one text; secret */
    struct repl_hub *hub;
};

/* Reasons of a pause that a person wanted. */
#define REASON_MANUAL "manually pause through http interface"
#define REASON_NO_AUTO_START "the task is disabled auto start"

enum op_kind { OP_CREATE, OP_PAUSE, OP_RESUME, OP_DELETE, OP_FAIL /* paused by an error */, OP_LOAD };

/* A request for one task; those of one task run one after another. */
struct op {
    STAILQ_ENTRY(op) entry;
    enum op_kind kind;
    manager_fn fn; /* NULL: nobody waits for the answer */
    void *arg;
    struct err err;  /* OP_FAIL: why */
    bool accept_gap; /* OP_RESUME */
};

/* A task as this daemon knows it. */
struct mtask {
    UT_hash_handle hh;
    struct manager *m;
    char *id, *key;
    struct task_spec *spec; /* NULL: the record cannot be read */
    enum task_state state;
    char *reason;
    bool stored;            /* the registry has it */
    STAILQ_HEAD(, op) ops;  /* the first one is under way */
    struct target_probe *probe;
    uint64_t epoch;
    void (*claim_done)(struct mtask *t, const struct err *err);
    struct store *store;
    struct endpoint *endpoint;
    struct sink *own_sink;  /* for all but data, when login or options are not the endpoint's */
    struct repl_task *run;
    bool keeping;           /* keep_queryable: ticks go on while paused */
    struct timer timer;     /* limit of a start */
    struct timer next;      /* the op at the head begins from the loop */
    struct err failure;     /* of the op under way */
    bool stop_begun;
    bool accept_gap;        /* of the resume under way */
    bool storing_run;       /* state Running is being stored: what fails now is handled after that */
};

struct manager {
    struct manager_deps d;
    struct mtask *tasks;
    struct endpoint *endpoints;
    struct repl_budget budget;
    const char **ids;
    bool loaded;
    reg_done_fn ready;
    void *ready_arg;
    void (*stopped)(void *arg);
    void *stopped_arg;
    bool stop;
    struct timer end_timer; /* limit of the whole stop */
    LIST_HEAD(, late_answer) late;
    LIST_HEAD(, position_req) position_reqs;
    LIST_HEAD(, cleanup) cleanups;
};

/* task/runtime.c: a task's store, endpoint and repl_task. */

/* Claims the task and opens its store; then done. */
void runtime_claim(struct mtask *t, void (*done)(struct mtask *t, const struct err *err));
/* Makes and starts the runtime over the open store. started: it is safe to answer the user. */
int runtime_start(struct mtask *t, store_done_fn started, struct err *err);
/* Begins to keep the target's time moving (keep_queryable) for a paused task whose store is open. */
void runtime_keep(struct mtask *t);
/* Frees runtime, keeping, store, endpoint. Any state. */
void runtime_release(struct mtask *t);
/* "host:port" of a target. Caller frees. NULL: not a uri. */
char *runtime_key(const struct task_spec *s);
void runtime_target_options(const struct task_spec *s, struct target_options *ret);
/* position.c */
void position_cancel(struct manager *m, void *arg);
void positions_free(struct manager *m);
/* cleanup.c: removes what the source's queue keeps for a deleted task, then its record. */
void cleanup_start(struct manager *m, const char *task_id);
bool cleanup_has(const struct manager *m, const char *task_id);
void cleanups_free(struct manager *m);
/* manager.c: the runtime stopped by itself. */
void manager_on_fatal(void *arg, const struct err *err);
#endif
