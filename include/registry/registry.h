/*
 * registry.h - the task registry: tasks with their state and reason, who runs them, and the
 * checkpoints (struct store of repl/port.h).
 *
 * Implementations: registry/sqlite (embedded, one daemon), registry/postgresql (shared by several
 * daemons).  Everything is asynchronous.  Contract of callbacks as in repl/port.h.
 *
 * Leases. All tasks of one target share its channels, and the ticks on a channel must come from one
 * sender. So the unit that a daemon holds is a target key with all its tasks: a lease has an owner,
 * an epoch that rises with each change of owner, and an end on the registry's clock. A change of
 * task progress carries owner and epoch, and is refused (ERR_STALE) when they are not the lease's.
 * Whether a lease has run out on the owner's side is the owner's duty: it counts from before it
 * asked, on its own clock (CLOCK_BOOTTIME), and sends nothing more after that.
 */
#ifndef REGISTRY_REGISTRY_H
#define REGISTRY_REGISTRY_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "repl/port.h"

struct loop;
struct registry;

/* Values as in the metric milvus_cdc_task_state. */
enum task_state { TASK_INITIAL = 0 /* being made or deleted */, TASK_RUNNING = 1, TASK_PAUSED = 2 };

struct reg_task {
    char *id;
    char *spec_json;  /* the validated create request, secrets included (sealed at rest if there is a key) */
    char *target_key; /* tasks with an equal key write to the same target, and have the same owner */
    enum task_state state;
    bool keep; /* wants an owner although paused (keep_queryable) */
    char *reason;          /* "" when there is none; of a running task: what keeps it from moving just now */
    int64_t created_ms, updated_ms;
    char *verify;          /* the result of its last comparison with the target, JSON; "" when there is none. Changed by
                              store_ops.put_verify() only */
    /* Its target's lease, not part of create: */
    char *owner;           /* daemon id, "" when free or run out */
    uint64_t epoch;        /* 0: never held */
    int64_t since_ms;      /* wall time since when the owner has it */
};

/* A lease of the caller. */
struct reg_lease {
    char *target_key;
    uint64_t epoch;
    int64_t since_ms;
};

/* The state of the group, as the caller's beat found it. */
struct reg_beat {
    const struct reg_lease *leases; /* all that the caller holds now, renewed or taken by this beat */
    size_t n_leases;
    unsigned daemons;       /* living ones, the caller included */
    size_t wanting;         /* tasks of all targets that want an owner: running, kept queryable, being made or deleted */
    int64_t next_expiry_ms; /* ms until the first foreign lease or daemon runs out if it is not renewed; -1: none */
};

/* A call from another daemon for a task whose lease the receiver holds. Borrowed for the callback. */
struct reg_request {
    int64_t id;
    const char *target_key;
    const char *body; /* JSON, the manager's own; may hold secrets (sealed at rest) */
};

typedef void (*reg_done_fn)(void *arg, const struct err *err);
/* Tasks are borrowed for the callback, ordered by id. */
typedef void (*reg_tasks_fn)(void *arg, const struct err *err, const struct reg_task *tasks,
                             size_t n);
typedef void (*reg_lease_fn)(void *arg, const struct err *err, const struct reg_lease *lease);
typedef void (*reg_beat_fn)(void *arg, const struct err *err, const struct reg_beat *beat);
typedef void (*reg_answer_fn)(void *arg, const struct err *err, const char *answer /* JSON, borrowed */);

/* What others did. All on the loop; spurious calls are allowed, missed ones are made good by polling. */
struct reg_watch {
    /* A task changed, came or went; task_id NULL: any of them may have (a reconnect, the poll). */
    void (*on_task)(void *arg, const char *task_id);
    /* Leases or daemons changed: a beat is worth while. */
    void (*on_lease)(void *arg);
    /* Once for each request; to be answered with answer(). */
    void (*on_request)(void *arg, const struct reg_request *q);
    void *arg;
};

struct registry_ops {
    /* All tasks, or the one of this id (none: n is 0). */
    void (*list)(struct registry *r, const char *task_id, reg_tasks_fn done, void *arg);
    /* Adds a task, durable when done. owner must hold the lease of t->target_key with epoch, else
     * ERR_STALE. ERR_EXISTS: the id is taken. */
    void (*create)(struct registry *r, const struct reg_task *t, const char *owner, uint64_t epoch,
                   reg_done_fn done, void *arg);
    /* State and reason, durable when done; guarded as create. ERR_NOT_FOUND, ERR_STALE. */
    void (*set_state)(struct registry *r, const char *id, enum task_state state, const char *reason,
                      const char *owner, uint64_t epoch, reg_done_fn done, void *arg);
    /* Removes the task with its checkpoints and collection records; guarded as create. */
    void (*remove)(struct registry *r, const char *id, const char *owner, uint64_t epoch,
                   reg_done_fn done, void *arg);
    /* Takes the lease of a target, also of one without tasks, when it is free, has run out, or is the
     * owner's already (epoch + 1 in each case). ERR_STATE, class RETRY: another daemon holds it. An
     * embedded registry always grants. lease_ms: ignored by it. */
    void (*claim)(struct registry *r, const char *target_key, const char *owner, uint64_t lease_ms,
                  reg_lease_fn done, void *arg);
    /* Gives a lease back, so that another daemon takes it at once. ERR_STALE: was not held. */
    void (*release)(struct registry *r, const char *target_key, const char *owner, uint64_t epoch,
                    reg_done_fn done, void *arg);
    /* The store for one task, guarded by owner and epoch (epoch 0: for load only). Freed by the
     * caller with store_free. */
    struct store *(*store_open)(struct registry *r, const char *task_id, const char *owner,
                                uint64_t epoch);
    void (*store_free)(struct store *s);
    /* NULL when reachable, else why not. Borrowed. */
    const char *(*trouble)(struct registry *r);
    /* Drops the callbacks of all calls made with arg. */
    void (*cancel)(struct registry *r, void *arg);
    /* Finishes the writes that were accepted (for at most 2 s), then frees. */
    void (*close)(struct registry *r);

    /* ---- of a shared registry only, else NULL */

    /*
     * The sign of life of a daemon, one statement: says that owner lives for lease_ms more; renews
     * its leases (also one that ran out, if nobody took it: same epoch); takes free targets that have
     * tasks which want an owner, as long as the owner's number of such tasks stays within its share
     * (wanting / daemons, rounded up; a whole target at a time, so the last one may go over it).
     * want false: renews only (a daemon that is stopping, or cannot work).
     */
    void (*beat)(struct registry *r, const char *owner, uint64_t lease_ms, bool want, reg_beat_fn done,
                 void *arg);
    /* Gives all leases back and forgets the daemon; what was accepted before is written before. */
    void (*leave)(struct registry *r, const char *owner, reg_done_fn done, void *arg);
    /* Sends a request to whoever holds the target's lease, now or when somebody takes it. ERR_TIMEOUT
     * after limit_ms; the request is withdrawn then. */
    void (*ask)(struct registry *r, const char *target_key, const char *body, uint64_t limit_ms,
                reg_answer_fn done, void *arg);
    void (*answer)(struct registry *r, int64_t request_id, const char *answer);
    /* One watcher; owner: whose requests. w is copied; NULL ends it. */
    void (*watch)(struct registry *r, const char *owner, const struct reg_watch *w);
};
struct registry {
    const struct registry_ops *ops;
    bool shared; /* other daemons use it too: leases run out */
};

/*
 * Opens or makes the SQLite file at path (its directory must exist), mode 0600. WAL mode,
 * synchronous=FULL, one helper thread; what is asked for in one turn of the loop is one
 * transaction. Reads see every write that was asked for before them.
 *
 * While the file cannot be written (no space, a lock of another program) trouble() says why, calls
 * of a store wait, and calls of the registry fail with ERR_IO (RETRY) after 2 seconds; those are
 * the only answers out of order. ERR_STALE is of class USER. close() blocks, and gives up writes
 * that did not succeed within 2 seconds.
 *
 * Errors of the open, class USER, with a text that names the path and what to change:
 *   ERR_IO       no directory, no permission, the file is damaged
 *   ERR_STATE    another daemon uses it (flock on <path>.lock)
 *   ERR_INVALID  of another program, of a newer version, not a regular file
 */
struct registry *registry_sqlite_open(struct loop *l, const char *path, struct err *err);
/* The same with secrets sealed (registry/seal.h); seal is borrowed, NULL: none. ERR_AUTH: key missing or wrong. */
struct seal;
struct registry *registry_sqlite_open_sealed(struct loop *l, const char *path, const struct seal *seal, struct err *err);
#endif
