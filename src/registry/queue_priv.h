/*
 * queue_priv.h - what both registries share: requests, their queue, the stores of tasks.
 *
 * Requests wait in a queue while one group is with the database; the next group takes those that came meanwhile and is
 * one transaction. So the price of a durable write is shared, order is that of the calls, and there is nothing to lock.
 * A group that failed as a whole comes back to the head of the queue and is tried again with a back-off.
 *
 * Thread  a request's input and result belong to the backend while its group is there; via, cb, arg and deadline_ms are
 * the loop's at all times.
 */
#ifndef REGISTRY_QUEUE_PRIV_H
#define REGISTRY_QUEUE_PRIV_H
#include <sys/queue.h>

#include "base/backoff.h"
#include "loop/loop.h"
#include "registry/admin.h"
#include "registry/registry.h"

enum {
    REGQ_API_MS = 2000,  /* an API operation fails when it could not be carried out for so long */
    REGQ_CLOSE_MS = 1500 /* so long close() tries to write what was accepted */
};

/* ---- requests */

enum req_kind {
    REQ_LIST,
    REQ_CREATE,
    REQ_SET_STATE,
    REQ_REMOVE,
    REQ_CLAIM,
    REQ_RELEASE,
    REQ_LEAVE,       /* of a shared registry only, as the next */
    REQ_UNDO_CREATE, /* of this nonce, when it was carried out after all */
    REQ_PUT_SPEC, /* admin.h, as the next two */
    REQ_FACTS,
    REQ_PUT_FACTS,
    REQ_COMMIT,
    REQ_LOAD,
    REQ_LOAD_TICK
};

enum change_kind {
    CHANGE_PUT_CKPT,
    CHANGE_DEL_CKPT,
    CHANGE_PUT_COLL,
    CHANGE_DEL_COLL,
    CHANGE_TICK,
    CHANGE_SET_TICK,
    CHANGE_VERIFY
};

struct change {
    STAILQ_ENTRY(change) next;
    enum change_kind kind;
    struct repl_ckpt ckpt; /* PUT_CKPT; the channels also of DEL_CKPT, the target one of the TICKs */
    struct repl_collection_rec coll;
    char *target; /* of the TICKs; VERIFY: the text */
    uint64_t tt;
};

struct req {
    TAILQ_ENTRY(req) next;
    enum req_kind kind;

    /* loop only */
    const void *via; /* the registry or the store it was called on */
    bool muted;      /* cancelled: no callback */
    union {
        reg_done_fn done; /* create, set_state, remove, release, commit */
        reg_tasks_fn tasks;
        reg_lease_fn lease;
        store_load_fn load;
        store_tick_fn tick;
        reg_facts_fn facts;
    } cb;
    void *arg;
    uint64_t deadline_ms; /* clock_mono_ms(); 0: is tried for ever */

    /* input */
    struct reg_task task; /* CREATE; of the others what applies. owner and epoch: the caller's */
    char *target, *channel;
    uint64_t lease_ms;
    char nonce[33];  /* CREATE: tells a repeated one from another's */
    unsigned tries;  /* how often it was sent to a server: it may have been carried out before */
    void *impl;      /* the backend's, freed with the request */
    STAILQ_HEAD(, change) changes;

    /* result; code ERR_OK: success */
    struct err err;
    uint64_t number;     /* epoch or tt */
    int64_t since_ms;
    struct reg_task *tasks;
    struct repl_ckpt *ckpts;
    struct repl_collection_rec *colls;
    struct reg_fact *facts;
    size_t n_tasks, n_ckpts, n_colls, n_facts;
};
TAILQ_HEAD(req_list, req);

struct req *req_new(enum req_kind kind);
void req_free(struct req *q);
void change_free(struct change *c);
bool req_writes(const struct req *q);

void req_add_fact(struct req *q, const char *target, const char *channel, uint64_t number);
void req_drop_result(struct req *q); /* before another try */

/* ---- the queue */

struct regq_store {
    struct store base;
    LIST_ENTRY(regq_store) link;
    struct regq *reg; /* NULL: the registry was closed */
    char *task_id, *owner;
    uint64_t epoch;
};

struct store_batch {
    struct regq_store *store;
    struct req *req;
};

/* One transaction on its way. */
struct group {
    struct regq *q;
    struct req_list reqs;
    unsigned delay_ms; /* to wait before; only while closing */
    bool ok;           /* each request has its result, which is durable; false: try again */
    struct err sick;   /* why the database does not work, also when ok */
};

struct regq_backend {
    /* Carries the requests out in order; regq_group_done() once it is over, from the loop (or from finish). */
    void (*start)(struct regq *q, struct group *g);
    /* While closing: blocks until nothing is under way and nothing waits, or the time is over. */
    void (*finish)(struct regq *q);
    loop_fn free; /* the memory of the whole */
};

struct regq {
    struct registry base;
    const struct regq_backend *backend;
    struct loop *loop;
    const char *name; /* of the database, for logs */
    unsigned pace_ms; /* from group to group on the average, when all in it are commits */
    size_t max_writes; /* of a group, which then has its reads behind its writes; 0: no limit, any order */
    size_t alone;     /* so many writes go one by one, to find the one that the database refuses */

    LIST_HEAD(, regq_store) stores;
    struct req_list waiting;  /* not yet in a group */
    struct group *group;      /* with the backend, or NULL */
    struct req_list finished; /* callbacks due */
    bool kicked;              /* a deferred kick is due */
    bool urgent;              /* somebody waits: no pace */
    uint64_t due_ms;          /* when the next group may begin by the pace */
    struct timer retry;       /* armed while the database does not work */
    struct timer pace;
    struct backoff backoff;
    struct err sick; /* code ERR_OK: works */
    bool closed;
    uint64_t close_deadline_ms;
    uint64_t n_groups; /* completed ones; for tests */
};

/* q is zeroed; name is borrowed. */
void regq_init(struct regq *q, struct loop *l, const struct registry_ops *ops, const struct regq_backend *backend,
               const char *name);
void regq_group_done(struct group *g);
/* The database works again: no more waiting. */
void regq_wake(struct regq *q);
/* Told once per trouble. */
void regq_set_sick(struct regq *q, const struct err *err);
/* While closing: drops what could not be written, with a line in the log. */
void regq_give_up(struct regq *q);
void regq_enqueue(struct regq *q, struct req *r, const void *via, void *arg);
/* Somebody waits in front of a terminal. */
void regq_enqueue_api(struct regq *q, struct req *r, void *arg);
/* A request that the lease of owner and epoch guards. */
struct req *regq_guarded(enum req_kind kind, const char *owner, uint64_t epoch);

/* 128 random bits as text. */
void regq_nonce(char ret[33]);

/* For the tables of operations. */
void regq_list(struct registry *base, const char *task_id, reg_tasks_fn done, void *arg);
void regq_create(struct registry *base, const struct reg_task *t, const char *owner, uint64_t epoch, reg_done_fn done,
                 void *arg);
void regq_set_state(struct registry *base, const char *id, enum task_state state, const char *reason, const char *owner,
                    uint64_t epoch, reg_done_fn done, void *arg);
void regq_remove(struct registry *base, const char *id, const char *owner, uint64_t epoch, reg_done_fn done, void *arg);
void regq_claim(struct registry *base, const char *target_key, const char *owner, uint64_t lease_ms, reg_lease_fn done,
                void *arg);
void regq_release(struct registry *base, const char *target_key, const char *owner, uint64_t epoch, reg_done_fn done,
                  void *arg);
struct store *regq_store_open(struct registry *base, const char *task_id, const char *owner, uint64_t epoch);
void regq_store_free(struct store *s);
const char *regq_trouble(struct registry *base);
void regq_cancel(struct registry *base, void *arg);
void regq_close(struct registry *base);
#endif
