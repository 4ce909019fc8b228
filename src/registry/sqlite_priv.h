/*
 * sqlite_priv.h - shared by the parts of the SQLite registry.
 *
 *   sqlite.c      loop side: the queue of requests, groups, retries, callbacks
 *   sqlite_db.c   the file: lock, schema, statements, error texts
 *   sqlite_req.c  what a request does to the database
 *
 * Thread  struct regdb belongs to the helper thread from the end of the open until the helper has
 * ended. A request's input and result belong to the helper while its group is there; via, cb, arg
 * and deadline_ms are the loop's at all times.
 */
#ifndef REGISTRY_SQLITE_PRIV_H
#define REGISTRY_SQLITE_PRIV_H
#include <sqlite3.h>
#include <sys/queue.h>

#include "base/backoff.h"
#include "loop/loop.h"
#include "registry/registry.h"

struct xthread;

enum {
    REGDB_SCHEMA = 2,      /* PRAGMA user_version that this build writes */
    REGDB_BUSY_MS = 500,   /* wait for another program's lock inside one try */
    SQLREG_API_MS = 2000,  /* an API operation fails when it could not be written for so long */
    SQLREG_CLOSE_MS = 1500 /* so long close() tries to write what was accepted */
};

/* ---- the database file */

enum regdb_stmt {
    STMT_BEGIN_READ,
    STMT_BEGIN_WRITE,
    STMT_COMMIT,
    STMT_ROLLBACK,
    STMT_SAVEPOINT,
    STMT_ROLLBACK_TO,
    STMT_RELEASE,
    STMT_TASK_LIST,
    STMT_TASK_INSERT,
    STMT_TASK_KEY,
    STMT_TASK_STATE,
    STMT_TASK_DELETE,
    STMT_LEASE_GET,
    STMT_LEASE_PUT,
    STMT_CKPT_LIST,
    STMT_CKPT_PUT,
    STMT_CKPT_DELETE,
    STMT_COLL_LIST,
    STMT_COLL_PUT,
    STMT_COLL_DELETE,
    STMT_TICK_GET,
    STMT_TICK_RAISE,
    N_STMTS
};

struct regdb {
    sqlite3 *h;
    char *path;
    int lock_fd;
    sqlite3_stmt *stmts[N_STMTS];
};

/* Takes the lock, makes or checks the file. NULL with a text that names the path and what to
 * change. */
struct regdb *regdb_open(const char *path, struct err *err);
/* Checkpoints the WAL, closes, drops the lock. NULL is allowed. */
void regdb_close(struct regdb *db);
/* Does it pass by itself (space, locks, a disk that comes back)? */
bool regdb_transient(int rc);
/* Says what rc means for a person; call it before the next statement. Returns err->code. */
int regdb_error(struct regdb *db, int rc, struct err *err);

/* ---- requests */

enum req_kind {
    REQ_LIST,
    REQ_CREATE,
    REQ_SET_STATE,
    REQ_REMOVE,
    REQ_CLAIM,
    REQ_RELEASE,
    REQ_COMMIT,
    REQ_LOAD,
    REQ_LOAD_TICK
};

enum change_kind {
    CHANGE_PUT_CKPT,
    CHANGE_DEL_CKPT,
    CHANGE_PUT_COLL,
    CHANGE_DEL_COLL,
    CHANGE_TICK
};

struct change {
    STAILQ_ENTRY(change) next;
    enum change_kind kind;
    struct repl_ckpt ckpt; /* PUT_CKPT; the channels also of DEL_CKPT, the target one of TICK */
    struct repl_collection_rec coll;
    char *target;
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
    } cb;
    void *arg;
    uint64_t deadline_ms; /* clock_mono_ms(); 0: is tried for ever */

    /* input */
    struct reg_task task; /* CREATE; of the others what applies. owner and epoch: the caller's */
    char *target, *channel;
    STAILQ_HEAD(, change) changes;

    /* result; code ERR_OK: success */
    struct err err;
    uint64_t number;     /* epoch or tt */
    int64_t since_ms;
    struct reg_task *tasks;
    struct repl_ckpt *ckpts;
    struct repl_collection_rec *colls;
    size_t n_tasks, n_ckpts, n_colls;
};
TAILQ_HEAD(req_list, req);

struct req *req_new(enum req_kind kind);
void req_free(struct req *q);
void change_free(struct change *c);
bool req_writes(const struct req *q);

/*
 * Carries out all requests in one transaction, in order.  Returns true when each has its result,
 * which is then durable; *ret_sick tells when a result is due to a damaged file.  False: nothing
 * was done, try again; *ret_sick says why.
 */
bool regdb_run(struct regdb *db, struct req_list *reqs, struct err *ret_sick);

/* ---- the registry */

struct sqlreg_store {
    struct store base;
    LIST_ENTRY(sqlreg_store) link;
    struct sqlreg *reg; /* NULL: the registry was closed */
    char *task_id, *owner;
    uint64_t epoch;
};

struct store_batch {
    struct sqlreg_store *store;
    struct req *req;
};

/* One transaction on its way through the helper. */
struct group {
    struct sqlreg *reg;
    struct regdb *db;
    struct req_list reqs;
    unsigned delay_ms; /* waited in the helper first; only while closing */
    bool ok;
    struct err sick;
};

struct sqlreg {
    struct registry base;
    struct loop *loop;
    struct xthread *x;
    struct regdb *db;
    LIST_HEAD(, sqlreg_store) stores;
    struct req_list waiting;  /* not yet given to the helper */
    struct group *group;      /* in the helper, or NULL */
    struct req_list finished; /* callbacks due */
    bool kicked;              /* a deferred kick is due */
    struct timer retry;       /* armed while the database does not work */
    struct backoff backoff;
    struct err sick; /* code ERR_OK: works */
    bool closed;
    uint64_t close_deadline_ms;
    uint64_t n_groups; /* transactions completed; for tests */
};
#endif
