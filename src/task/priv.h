/*
 * priv.h - the objects behind manager.h.
 */
#ifndef TASK_PRIV_H
#define TASK_PRIV_H
#include <sys/queue.h>
#include <uthash.h>

#include "base/fence.h"
#include "loop/loop.h"
#include "milvus/target.h"
#include "repl/hub.h"
#include "repl/task.h"
#include "task/manager.h"
#include "task/spec.h"

/* One target address in one mode, shared by the tasks that write to it. Data goes with the login and options of the first. */
struct endpoint {
    UT_hash_handle hh;
    char *key;        /* with the mode */
    char *target_key; /* "host:port" */
    unsigned refs;
    struct sink *sink;
    char *login; /* and the other options of sink, in one text; secret */
    struct repl_hub *hub;
};

/* Begins the reason of a task that runs and confirms nothing, in its record too. */
#define REASON_STALLED "stalled at "
/* Reasons of a pause that a person wanted. */
#define REASON_MANUAL "manually pause through http interface"
#define REASON_NO_AUTO_START "the task is disabled auto start"

enum op_kind {
    OP_CREATE,
    OP_PAUSE,
    OP_RESUME,
    OP_VERIFY,
    OP_DELETE, /* the last one of those that users ask for */
    OP_FAIL,   /* paused by an error */
    OP_LOAD,
    OP_LEAVE,  /* the target is handed over */
};

/* What a request says besides the task. */
struct op_options {
    bool accept_gap;    /* OP_RESUME */
    const char *verify; /* OP_VERIFY: its request_data, JSON; else NULL */
};


/* A request for one task; those of one task run one after another. */
struct op {
    STAILQ_ENTRY(op) entry;
    enum op_kind kind;
    manager_fn fn; /* NULL: nobody waits for the answer */
    void *arg;
    struct err err;  /* OP_FAIL: why */
    bool accept_gap; /* OP_RESUME */
    char *verify;    /* OP_VERIFY */
    bool changed;    /* OP_LOAD: the record does not have our state yet */
};

enum hold_state { HOLD_CLAIMING, HOLD_LOADING, HOLD_HELD, HOLD_LEAVING };

/* A target whose lease this daemon holds or asks for. */
struct holding {
    UT_hash_handle hh;
    struct manager *m;
    char *key;
    enum hold_state state;
    uint64_t epoch; /* 0: asked for just now */
    int64_t since_ms;
    char *agent;          /* how it calls itself to the target, with the epoch; NULL: not opened yet */
    struct fence fence;   /* of everything that sends to the target */
    uint64_t asked_ms;    /* clock_boot_ms() before the call that took it: what was asked earlier says nothing of it */
    uint64_t beat_number; /* of the last beat that found it */
    bool lapsed;          /* the fence has closed, and that was told */
    bool stale;           /* the registry refused a write: somebody else has it */
    bool releasing;
    size_t wanting, busy; /* tasks, counted by manager_count_targets() */
};

/* group.c: this daemon among those that share the registry. m NULL: the registry is not shared. */
struct group {
    struct manager *m;
    struct timer beat_timer, load_timer, lapse_timer, tell_timer, refresh_timer;
    bool beating, again, left, silent;
    uint64_t asked_ms, number; /* of the beat under way, the last one */
    bool loading, load_again;
    uint64_t load_asked_ms;
    void (*left_done)(struct manager *m);
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
    bool holding;           /* its op waits for the lease */
    bool forwarding;        /* its op is with the owner, or was */
    bool admitted;          /* a create that may conflict with others: it came first */
    char *owner;            /* of a task that is not ours, as the record says; NULL: not known */
    uint64_t epoch;
    int64_t since_ms;
    uint64_t free_since_ms; /* clock_mono_ms() when the record was first seen without an owner; 0: has one */
    uint64_t seen;          /* the last list that had it */
    char *told;             /* the reason in its record; NULL: not known */
    char *verify;           /* the result of its last comparison, of the record or of a run that is over; NULL: none */
    struct rows_port *verify_rows; /* the target's, while it is compared */
    manager_fn verify_fn;   /* waits until its beginning is stored; NULL: nobody */
    void *verify_arg;
    STAILQ_HEAD(, op) ops;  /* the first one is under way */
    struct target_probe *probe;
    char *target_version;   /* a create: what its probe was told */
    struct store *store;
    struct endpoint *endpoint;
    struct sink *own_sink;  /* for all but data, when login or options are not the endpoint's */
    struct repl_task *run;
    bool keeping;           /* keep_queryable: ticks go on while paused */
    struct timer timer;     /* limit of a start */
    struct timer next;      /* the op at the head begins from the loop */
    struct err failure;     /* of the op under way */
    bool stop_begun;
    bool accept_gap;        /* of the create or resume under way */
    bool storing_run;       /* state Running is being stored: what fails now is handled after that */
};

struct manager {
    struct manager_deps d;
    struct mtask *tasks;
    struct endpoint *endpoints;
    struct holding *holdings;
    struct group group;
    uint64_t list_number;
    bool leaving;
    struct repl_budget budget;
    struct repl_copy_room copy_room;
    const char **ids;
    bool loaded;
    reg_done_fn ready;
    void *ready_arg;
    void (*stopped)(void *arg);
    void *stopped_arg;
    bool stop;
    struct timer end_timer; /* limit of the whole stop */
    struct timer load_timer;
    LIST_HEAD(, late_answer) late;
    LIST_HEAD(, pending) pendings;
    LIST_HEAD(, refresh) refreshes;
    LIST_HEAD(, remote_call) remote_calls;
    LIST_HEAD(, position_req) position_reqs;
    LIST_HEAD(, get_req) get_reqs;
    LIST_HEAD(, cleanup) cleanups;
};

/* task/runtime.c: a task's store, endpoint and repl_task. */

/* Opens the task's store; its target's lease is held. */
void runtime_open(struct mtask *t);
/* Makes and starts the runtime over the open store. started: it is safe to answer the user. */
int runtime_start(struct mtask *t, store_done_fn started, struct err *err);
/* Begins to keep the target's time moving (keep_queryable) for a paused task whose store is open. */
void runtime_keep(struct mtask *t);
/* Frees runtime, keeping, store, endpoint. Any state. */
void runtime_release(struct mtask *t);
/* "host:port" of a target. Caller frees. NULL: not a uri. */
char *runtime_key(const struct task_spec *s);
char *runtime_key_of(const char *uri);
void runtime_target_options(const struct task_spec *s, struct target_options *ret);
/* Loses the connections to a target whose fence has closed. */
void runtime_cut(struct manager *m, const char *target_key);
/* start_check.c: do the positions that the user gave fit to what the source has? A repl_selection.check over a task_spec. */
int start_check(void *spec, struct catalog *c, struct err *err);
/* holding.c */
struct holding *holding_find(const struct manager *m, const char *target_key);
/* The epoch of the target's lease; 0: not held. */
uint64_t holding_epoch(const struct manager *m, const char *target_key);
/* Held, its tasks are known, and it is not being handed over. */
bool holding_ready(const struct manager *m, const char *target_key);
struct holding *holding_new(struct manager *m, const char *target_key, enum hold_state state);
void holding_extend(struct holding *h, uint64_t asked_ms);
void holding_free(struct holding *h);
/* Asks for the lease; manager_on_held() tells. Nothing when there is one, in whatever state. */
void holding_claim(struct manager *m, const char *target_key);
void holdings_free(struct manager *m);
/* group.c */
void group_start(struct manager *m);
/* Gives all leases back, then done. */
void group_leave(struct manager *m, void (*done)(struct manager *m));
void group_on_claimed(struct manager *m);
void group_leave_step(struct manager *m, const char *target_key);
void group_beat_soon(struct manager *m);
void group_free(struct manager *m);
/* mirror.c: reads the record of a task (NULL: all), then done. */
void mirror_refresh(struct manager *m, const char *task_id, manager_fn done, void *arg);
/* The same; tasks of targets that were claimed before it, or of an embedded registry all, go on here. */
void mirror_load(struct manager *m, manager_fn done, void *arg);
void mirror_cancel(struct manager *m, void *arg);
void mirror_free(struct manager *m);
/* remote.c: sends the request at the head to the owner; manager_on_forwarded() gets the answer. */
void remote_forward(struct mtask *t);
void remote_execute(struct manager *m, const struct reg_request *q);
void remotes_free(struct manager *m);
enum { TROUBLE_CHARS = 1300 };
/* health.c: what keeps a task that runs here from moving, "" when nothing does. */
void health_trouble(const struct mtask *t, char ret[TROUBLE_CHARS]);
/* get.c */
void get_cancel(struct manager *m, void *arg);
void gets_free(struct manager *m);
/* Adds what is left to copy; nothing when there is none. */
void snapshot_json(json_t *task, const struct repl_copying *c);
/* What is not the same on an ordinary target, by collection; nothing when there is nothing. */
void notes_json(json_t *task, const struct repl_task *run);
/* position.c */
void position_cancel(struct manager *m, void *arg);
void positions_free(struct manager *m);
/* cleanup.c: removes what the source's queue keeps for a deleted task, then its record. */
void cleanup_start(struct manager *m, const char *task_id, const char *target_key);
bool cleanup_has(const struct manager *m, const char *task_id);
/* Adds them to the wanting of their holdings. */
void cleanups_count(struct manager *m);
/* The target is somebody else's now: he goes on. */
void cleanups_drop(struct manager *m, const char *target_key);
void cleanups_free(struct manager *m);
/* manager.c: the runtime stopped by itself; an answer about a target's lease (err NULL: held). */
void manager_on_fatal(void *arg, const struct err *err);
void manager_on_held(struct manager *m, const char *target_key, const struct err *err);
/* The lease is gone, given back or lost: what waited for it goes on by asking for it again. */
void manager_on_released(struct manager *m, const char *target_key);
/* Ends all that is done for tasks of the target here, at once. */
void manager_drop_target(struct manager *m, const char *target_key);
/* Stops its tasks in order; each end calls group_leave_step(). */
void manager_leave_target(struct manager *m, const char *target_key);
bool manager_target_busy(const struct manager *m, const char *target_key);
/* Fills wanting and busy of all holdings. */
void manager_count_targets(struct manager *m);
void manager_on_forwarded(struct mtask *t, const struct err *err);
/* As manager_create() and the others, for a request that came from another daemon. */
void manager_create_here(struct manager *m, struct task_spec *spec, manager_fn done, void *arg);
void manager_request_here(struct manager *m, const char *task_id, enum op_kind kind, const struct op_options *o,
                          manager_fn done, void *arg);
/* verify.c: carries out the request at the head, which ends at once. */
void verify_request(struct mtask *t);
/* The run is about to be freed: keeps its result. */
void verify_keep(struct mtask *t);
/* The run has begun: a comparison of the run before is over, and its record says so. */
void verify_settle(struct mtask *t);
/* Adds the result to the task's object. */
void verify_show(json_t *o, const struct mtask *t);
/* "Initial", "Running", "Paused". */
const char *manager_state_name(enum task_state s);
struct mtask *manager_find(struct manager *m, const char *id);
/* False: a record of a task that is being made, or that the user has deleted. */
bool manager_task_shown(const struct mtask *t);
struct mtask *manager_add_task(struct manager *m, const char *id);
void manager_remove_task(struct mtask *t);
void manager_sort_tasks(struct manager *m);
/* Requests of one task are carried out one after another; fn NULL: nobody waits. */
struct op *manager_op_add(struct mtask *t, enum op_kind kind, manager_fn fn, void *arg);
void manager_op_free(struct op *o);
/* Ends the one at the head; gone: the task is removed. err NULL: success. */
void manager_op_finish(struct mtask *t, const struct err *err, bool gone);
/* The same for a create, and undoes what it has stored. */
void manager_create_fail(struct mtask *t, const struct err *err);
/* requests.c: answers from the loop; frees what was asked. */
void manager_answer(struct manager *m, manager_fn fn, void *arg, const struct err *err);
void requests_free(struct manager *m);
#endif
