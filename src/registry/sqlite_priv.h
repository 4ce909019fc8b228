/*
 * sqlite_priv.h - shared by the parts of the SQLite registry.
 *
 *   sqlite.c      loop side: groups of requests on their way through the helper (queue.c has the rest)
 *   sqlite_db.c   the file: lock, schema, statements, error texts
 *   sqlite_req.c  what a request does to the database
 *
 * Thread  struct regdb belongs to the helper thread from the end of the open until the helper has
 * ended.
 */
#ifndef REGISTRY_SQLITE_PRIV_H
#define REGISTRY_SQLITE_PRIV_H
#include <sqlite3.h>

#include "registry/queue_priv.h"

struct seal;
struct xthread;

enum {
    REGDB_SCHEMA = 4,      /* PRAGMA user_version that this build writes */
    REGDB_BUSY_MS = 500    /* wait for another program's lock inside one try */
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
    STMT_TICK_SET,
    STMT_TICK_LIST,
    STMT_LEASE_LIST,
    STMT_LEASE_RAISE,
    STMT_SPEC_PUT,
    STMT_VERIFY_PUT,
    STMT_SEAL_GET,
    STMT_SEAL_PUT,
    N_STMTS
};

struct regdb {
    sqlite3 *h;
    char *path;
    int lock_fd;
    const struct seal *seal; /* borrowed, or NULL */
    sqlite3_stmt *stmts[N_STMTS];
};

/* Takes the lock, makes or checks the file. NULL with a text that names the path and what to
 * change. */
struct regdb *regdb_open(const char *path, const struct seal *seal, struct err *err);
/* Checkpoints the WAL, closes, drops the lock. NULL is allowed. */
void regdb_close(struct regdb *db);
/* Does it pass by itself (space, locks, a disk that comes back)? */
bool regdb_transient(int rc);
/* Says what rc means for a person; call it before the next statement. Returns err->code. */
int regdb_error(struct regdb *db, int rc, struct err *err);

/*
 * Carries out all requests in one transaction, in order.  Returns true when each has its result,
 * which is then durable; *ret_sick tells when a result is due to a damaged file.  False: nothing
 * was done, try again; *ret_sick says why.
 */
bool regdb_run(struct regdb *db, struct req_list *reqs, struct err *ret_sick);

/* ---- the registry */

struct sqlreg {
    struct regq q;
    struct xthread *x;
    struct regdb *db;
};
#endif
