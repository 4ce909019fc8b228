/*
 * registry.h - the task registry: tasks with their state and reason, who owns them, and the
 * checkpoints (struct store of repl/port.h).
 *
 * Implementations: registry/sqlite (embedded); PostgreSQL later, shared by several daemons. So
 * every task carries a lease owner and an epoch from the start, every write of task progress is
 * guarded by both, and everything is asynchronous.  Contract of callbacks as in repl/port.h.
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
enum task_state { TASK_INITIAL = 0, TASK_RUNNING = 1, TASK_PAUSED = 2 };

struct reg_task {
    char *id;
    char *spec_json;  /* the validated create request, secrets included */
    char *target_key; /* tasks with an equal key write to the same target */
    enum task_state state;
    char *reason;           /* "" when there is none */
    char *owner;            /* daemon that holds the lease, "" when free */
    uint64_t epoch;         /* rises with each change of owner */
    int64_t lease_until_ms; /* wall time; 0: no expiry (embedded registry) */
    int64_t created_ms, updated_ms;
};

typedef void (*reg_done_fn)(void *arg, const struct err *err);
/* Tasks are borrowed for the callback, ordered by id. */
typedef void (*reg_tasks_fn)(void *arg, const struct err *err, const struct reg_task *tasks,
                             size_t n);

struct registry_ops {
    /* All tasks. */
    void (*list)(struct registry *r, reg_tasks_fn done, void *arg);
    /* Adds a task, durable when done. ERR_EXISTS: the id is taken. */
    void (*create)(struct registry *r, const struct reg_task *t, reg_done_fn done, void *arg);
    /* State and reason, durable when done. expect_epoch 0: any. ERR_NOT_FOUND, ERR_STALE. */
    void (*set_state)(struct registry *r, const char *id, enum task_state state, const char *reason,
                      uint64_t expect_epoch, reg_done_fn done, void *arg);
    /* Removes the task with its checkpoints and collection records. ERR_NOT_FOUND. */
    void (*remove)(struct registry *r, const char *id, reg_done_fn done, void *arg);
    /* Takes the lease of a task for owner: epoch + 1.  The embedded registry always grants. */
    void (*claim)(struct registry *r, const char *id, const char *owner,
                  void (*done)(void *arg, const struct err *err, uint64_t epoch), void *arg);
    /* The store for one task, guarded by owner and epoch. Freed by the caller with store_free. */
    struct store *(*store_open)(struct registry *r, const char *task_id, const char *owner,
                                uint64_t epoch);
    void (*store_free)(struct store *s);
    /* NULL when reachable, else why not. Borrowed. */
    const char *(*trouble)(struct registry *r);
    /* Drops the callbacks of all calls made with arg. */
    void (*cancel)(struct registry *r, void *arg);
    /* Finishes the writes that were accepted, then frees. */
    void (*close)(struct registry *r);
};
struct registry {
    const struct registry_ops *ops;
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
#endif
