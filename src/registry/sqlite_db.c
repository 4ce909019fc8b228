/* The registry's file: lock, schema, statements, and what its errors mean for a person. */
#include "registry/sqlite_priv.h"

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "registry/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { APPLICATION_ID = 0x4d434443 }; /* "MCDC", sqlite.org/fileformat2.html 1.3.17 */

/*
 * Positions, times and epochs are unsigned 64 bit numbers kept as the bit pattern of a signed one.
 * migrations[i] leads from version i to i + 1.  What was released is never changed, only added to.
 */
static const char *const migrations[REGDB_SCHEMA] = {
    "CREATE TABLE task ("
    " id TEXT NOT NULL PRIMARY KEY,"
    " spec_json TEXT NOT NULL,"
    " target_key TEXT NOT NULL,"
    " state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 2),"
    " reason TEXT NOT NULL,"
    " owner TEXT NOT NULL,"
    " epoch INTEGER NOT NULL,"
    " lease_until_ms INTEGER NOT NULL,"
    " created_ms INTEGER NOT NULL,"
    " updated_ms INTEGER NOT NULL"
    ") WITHOUT ROWID;"
    "CREATE TABLE checkpoint ("
    " task_id TEXT NOT NULL REFERENCES task (id) ON DELETE CASCADE,"
    " src_channel TEXT NOT NULL,"
    " dst_channel TEXT NOT NULL,"
    " start_major INTEGER NOT NULL, start_minor INTEGER NOT NULL, start_tt INTEGER NOT NULL,"
    " done_major INTEGER NOT NULL, done_minor INTEGER NOT NULL, done_tt INTEGER NOT NULL,"
    " sent_major INTEGER NOT NULL, sent_minor INTEGER NOT NULL, sent_tt INTEGER NOT NULL,"
    " retimed_tt INTEGER NOT NULL,"
    " op_major INTEGER NOT NULL, op_minor INTEGER NOT NULL, op_tt INTEGER NOT NULL,"
    " target_pos TEXT,"
    " PRIMARY KEY (task_id, src_channel, dst_channel)"
    ") WITHOUT ROWID;"
    "CREATE TABLE collection ("
    " task_id TEXT NOT NULL REFERENCES task (id) ON DELETE CASCADE,"
    " collection_id INTEGER NOT NULL,"
    " json TEXT NOT NULL,"
    " PRIMARY KEY (task_id, collection_id)"
    ") WITHOUT ROWID;"
    /* Outlives tasks: what a target's channel has seen is not undone by a delete. */
    "CREATE TABLE target_tick ("
    " target TEXT NOT NULL,"
    " dst_channel TEXT NOT NULL,"
    " tt INTEGER NOT NULL,"
    " PRIMARY KEY (target, dst_channel)"
    ") WITHOUT ROWID;",
    /* Tasks of one target have one owner. Epochs go on from the greatest of a target's tasks. */
    "CREATE TABLE lease ("
    " target_key TEXT NOT NULL PRIMARY KEY,"
    " owner TEXT NOT NULL,"
    " epoch INTEGER NOT NULL,"
    " since_ms INTEGER NOT NULL"
    ") WITHOUT ROWID;"
    "INSERT INTO lease SELECT target_key, '', max(epoch), 0 FROM task GROUP BY target_key;"
    "ALTER TABLE task DROP COLUMN owner;"
    "ALTER TABLE task DROP COLUMN epoch;"
    "ALTER TABLE task DROP COLUMN lease_until_ms;"
    "ALTER TABLE task ADD COLUMN keep INTEGER NOT NULL DEFAULT 0;"
    "CREATE TABLE seal (proof TEXT NOT NULL);"
    "UPDATE task SET keep = 1 WHERE json_valid(spec_json)"
    " AND json_extract(spec_json, '$.request.keep_queryable');",
    "ALTER TABLE checkpoint ADD COLUMN span_tt INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE task ADD COLUMN verify TEXT NOT NULL DEFAULT '';",
};

static const char *const stmt_sql[N_STMTS] = {
    [STMT_BEGIN_READ] = "BEGIN",
    [STMT_BEGIN_WRITE] = "BEGIN IMMEDIATE",
    [STMT_COMMIT] = "COMMIT",
    [STMT_ROLLBACK] = "ROLLBACK",
    [STMT_SAVEPOINT] = "SAVEPOINT one",
    [STMT_ROLLBACK_TO] = "ROLLBACK TO one",
    [STMT_RELEASE] = "RELEASE one",
    [STMT_TASK_LIST] =
        "SELECT id, spec_json, target_key, state, reason, created_ms, updated_ms, keep,"
        " coalesce(owner, ''), coalesce(epoch, 0), coalesce(since_ms, 0), verify"
        " FROM task LEFT JOIN lease USING (target_key) WHERE ?1 IS NULL OR id = ?1 ORDER BY id",
    [STMT_TASK_INSERT] = "INSERT INTO task (id, spec_json, target_key, state, reason, created_ms,"
                         " updated_ms, keep) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
                         " ON CONFLICT (id) DO NOTHING",
    [STMT_TASK_KEY] = "SELECT target_key FROM task WHERE id = ?1",
    [STMT_TASK_STATE] = "UPDATE task SET state = ?2, reason = ?3, updated_ms = ?4 WHERE id = ?1",
    [STMT_TASK_DELETE] = "DELETE FROM task WHERE id = ?1",
    [STMT_LEASE_GET] = "SELECT owner, epoch FROM lease WHERE target_key = ?1",
    [STMT_LEASE_PUT] = "INSERT OR REPLACE INTO lease (target_key, owner, epoch, since_ms)"
                       " VALUES (?1, ?2, ?3, ?4)",
    [STMT_CKPT_LIST] =
        "SELECT src_channel, dst_channel, start_major, start_minor, start_tt,"
        " done_major, done_minor, done_tt, sent_major, sent_minor, sent_tt, retimed_tt,"
        " op_major, op_minor, op_tt, target_pos, span_tt"
        " FROM checkpoint WHERE task_id = ?1 ORDER BY src_channel, dst_channel",
    [STMT_CKPT_PUT] =
        "INSERT OR REPLACE INTO checkpoint (src_channel, dst_channel, start_major,"
        " start_minor, start_tt, done_major, done_minor, done_tt, sent_major, sent_minor,"
        " sent_tt, retimed_tt, op_major, op_minor, op_tt, target_pos, task_id, span_tt)"
        " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,"
        " ?17, ?18)",
    [STMT_CKPT_DELETE] = "DELETE FROM checkpoint WHERE task_id = ?1 AND src_channel = ?2"
                         " AND dst_channel = ?3",
    [STMT_COLL_LIST] = "SELECT collection_id, json FROM collection WHERE task_id = ?1"
                       " ORDER BY collection_id",
    [STMT_COLL_PUT] = "INSERT OR REPLACE INTO collection (task_id, collection_id, json)"
                      " VALUES (?1, ?2, ?3)",
    [STMT_COLL_DELETE] = "DELETE FROM collection WHERE task_id = ?1 AND collection_id = ?2",
    [STMT_TICK_GET] = "SELECT tt FROM target_tick WHERE target = ?1 AND dst_channel = ?2",
    /* Only upwards, compared as unsigned numbers: a negative pattern is the greater one. */
    [STMT_TICK_RAISE] = "INSERT INTO target_tick (target, dst_channel, tt) VALUES (?1, ?2, ?3)"
                        " ON CONFLICT (target, dst_channel) DO UPDATE SET tt = excluded.tt"
                        " WHERE CASE WHEN (tt < 0) = (excluded.tt < 0) THEN excluded.tt > tt"
                        " ELSE excluded.tt < 0 END",
    [STMT_TICK_SET] = "INSERT OR REPLACE INTO target_tick (target, dst_channel, tt) VALUES (?1, ?2, ?3)",
    [STMT_TICK_LIST] = "SELECT target, dst_channel, tt FROM target_tick ORDER BY target, dst_channel",
    [STMT_LEASE_LIST] = "SELECT target_key, epoch FROM lease ORDER BY target_key",
    [STMT_LEASE_RAISE] = "INSERT INTO lease (target_key, owner, epoch, since_ms) VALUES (?1, '', ?2, 0)"
                         " ON CONFLICT (target_key) DO UPDATE SET epoch = max(epoch, excluded.epoch)",
    /* Only what is not sealed yet is equal to its text. */
    [STMT_SPEC_PUT] = "UPDATE task SET spec_json = ?3 WHERE id = ?1 AND spec_json = ?2",
    [STMT_VERIFY_PUT] = "UPDATE task SET verify = ?2 WHERE id = ?1",
    [STMT_SEAL_GET] = "SELECT proof FROM seal",
    [STMT_SEAL_PUT] = "INSERT INTO seal VALUES (?1)",
};

/* ---- errors */

bool regdb_transient(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_READONLY: /* a file system that the kernel remounted */
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_NOMEM:
    case SQLITE_PROTOCOL:
        return true;
    default:
        return false;
    }
}

static const char *advice(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
        return "another program (sqlite3 shell, backup) holds a lock on the file: end it";
    case SQLITE_FULL:
        return "free space on its file system";
    case SQLITE_IOERR:
        return "check its disk, free space and limits on file sizes";
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
        return "make the file and its directory writable for the user of this daemon";
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return "the file is damaged or is not a registry: stop the daemon, then restore a copy of "
               "it or set"
               " another registry.path";
    default:
        return "see sqlite.org/rescode.html";
    }
}

int regdb_error(struct regdb *db, int rc, struct err *err)
{
    const char *text = db->h ? sqlite3_errmsg(db->h) : sqlite3_errstr(rc);

    return err_set(err, ERR_IO, regdb_transient(rc) ? ERRC_RETRY : ERRC_USER,
                   "registry %s: %s (SQLite code %d): %s", db->path, text, rc, advice(rc));
}

/* ---- opening */

static int sys_error(const struct regdb *db, const char *what, const char *file, struct err *err)
{
    int e = errno;
    const char *hint = "";

    if (e == EACCES || e == EPERM || e == EROFS)
        hint = ": the directory and the file must be writable for the user of this daemon";
    else if (e == ENOENT || e == ENOTDIR)
        hint = ": make the directory first, or set another registry.path";
    return err_set(err, ERR_IO, ERRC_USER, "registry %s: cannot %s %s: %s%s", db->path, what, file,
                   strerror(e), hint);
}

/* An flock goes with its process, however that ends, and unlike SQLite's own locks it is held all
 * the time. */
static int take_lock(struct regdb *db, struct err *err)
{
    char *real = realpath(db->path, NULL); /* the same file by another name */
    char *name = xasprintf("%s.lock", real ? real : db->path);
    int rc = 0;

    free(real);
    db->lock_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (db->lock_fd < 0)
        rc = sys_error(db, "open", name, err);
    else if (flock(db->lock_fd, LOCK_EX | LOCK_NB) == 0)
        rc = 0;
    else if (errno == EWOULDBLOCK)
        rc = err_set(
            err, ERR_STATE, ERRC_USER,
            "registry %s: another milvus-cdc daemon uses this file (it holds %s): stop it, or "
            "set another registry.path",
            db->path, name);
    else
        rc = sys_error(db, "lock", name, err);
    free(name);
    return rc;
}

/* Task specs have tokens in them. SQLite gives its side files the mode of the main one. */
static int make_private(struct regdb *db, struct err *err)
{
    int fd = open(db->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
    struct stat st;
    int rc = 0;

    if (fd < 0)
        return sys_error(db, "open", db->path, err);
    if (fstat(fd, &st) < 0)
        rc = sys_error(db, "look at", db->path, err);
    else if (!S_ISREG(st.st_mode))
        rc = err_set(err, ERR_INVALID, ERRC_USER, "registry %s: is not a regular file", db->path);
    else if ((st.st_mode & 0777) != 0600 && fchmod(fd, 0600) < 0)
        rc = sys_error(db, "change the mode of", db->path, err);
    close(fd);
    return rc;
}

static int exec(struct regdb *db, const char *sql, struct err *err)
{
    int rc = sqlite3_exec(db->h, sql, NULL, NULL, NULL);

    return rc == SQLITE_OK ? 0 : regdb_error(db, rc, err);
}

/* The first column of the first row, as text and as number. */
static int query(struct regdb *db, const char *sql, char *ret_text, size_t size,
                 int64_t *ret_number, struct err *err)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db->h, sql, -1, &stmt, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW) {
        const unsigned char *text = sqlite3_column_text(stmt, 0);

        snprintf(ret_text, size, "%s", text ? (const char *)text : "");
        *ret_number = sqlite3_column_int64(stmt, 0);
        rc = SQLITE_OK;
    }
    if (rc != SQLITE_OK)
        regdb_error(db, rc, err);
    sqlite3_finalize(stmt);
    return rc == SQLITE_OK ? 0 : ERR_IO;
}

static int query_int(struct regdb *db, const char *sql, int64_t *ret, struct err *err)
{
    char text[32];

    return query(db, sql, text, sizeof(text), ret, err);
}

static int check_integrity(struct regdb *db, struct err *err)
{
    char text[200];
    int64_t n;

    if (query(db, "PRAGMA quick_check(1)", text, sizeof(text), &n, err))
        return ERR_IO;
    if (strcmp(text, "ok") == 0)
        return 0;
    return err_set(err, ERR_IO, ERRC_USER, "registry %s: %s: %s", db->path, text,
                   advice(SQLITE_CORRUPT));
}

static int set_wal(struct regdb *db, struct err *err)
{
    char mode[32];
    int64_t n;

    if (query(db, "PRAGMA journal_mode = WAL", mode, sizeof(mode), &n, err))
        return ERR_IO;
    if (strcmp(mode, "wal") != 0)
        return err_set(
            err, ERR_IO, ERRC_USER,
            "registry %s: its file system does not allow SQLite's WAL mode (shared memory): "
            "set registry.path to a local disk",
            db->path);
    return exec(db, "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -512", err);
}

static int not_ours(struct regdb *db, struct err *err)
{
    return err_set(err, ERR_INVALID, ERRC_USER,
                   "registry %s: is a database of another program: set another registry.path",
                   db->path);
}

/* Before anything is written. *ret_version 0: an empty file. */
static int check_version(struct regdb *db, int64_t *ret_version, struct err *err)
{
    int64_t version, app, objects;

    if (query_int(db, "PRAGMA user_version", &version, err) ||
        query_int(db, "PRAGMA application_id", &app, err) ||
        query_int(db, "SELECT count(*) FROM sqlite_master", &objects, err))
        return ERR_IO;
    if (app != APPLICATION_ID && (app != 0 || version != 0 || objects != 0))
        return not_ours(db, err);
    if (version < 0 || version > REGDB_SCHEMA)
        return err_set(
            err, ERR_INVALID, ERRC_USER,
            "registry %s: was written by a newer milvus-cdc (schema version %lld, this one knows "
            "up to %d): run that version, or set another registry.path",
            db->path, (long long)version, REGDB_SCHEMA);
    *ret_version = version;
    return 0;
}

static int migrate(struct regdb *db, int64_t version, struct err *err)
{
    for (; version < REGDB_SCHEMA; version++) {
        char *sql = xasprintf("BEGIN IMMEDIATE; %s PRAGMA application_id = %d;"
                              " PRAGMA user_version = %d; COMMIT",
                              migrations[version], APPLICATION_ID, (int)version + 1);
        int rc = exec(db, sql, err);

        free(sql);
        if (rc)
            return rc;
        log_info("registry", "schema made", KS("path", db->path), KI("version", version + 1));
    }
    return 0;
}

static int prepare_all(struct regdb *db, struct err *err)
{
    for (int i = 0; i < N_STMTS; i++) {
        int rc = sqlite3_prepare_v3(db->h, stmt_sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                                    &db->stmts[i], NULL);

        if (rc != SQLITE_OK)
            return regdb_error(db, rc, err);
    }
    return 0;
}

static int check_seal(struct regdb *db, struct err *err)
{
    sqlite3_stmt *get = db->stmts[STMT_SEAL_GET], *put = db->stmts[STMT_SEAL_PUT];
    const char *proof = sqlite3_step(get) == SQLITE_ROW ? (const char *)sqlite3_column_text(get, 0) : NULL;
    char *new;
    int rc = seal_check(db->seal, proof, &new, err);

    sqlite3_reset(get);
    if (rc)
        return err_wrap(err, "registry %s", db->path);
    if (!new)
        return 0;
    sqlite3_bind_text(put, 1, new, -1, SQLITE_STATIC);
    rc = sqlite3_step(put);
    if (rc != SQLITE_DONE)
        regdb_error(db, rc, err);
    sqlite3_reset(put);
    sqlite3_clear_bindings(put);
    free(new);
    return rc == SQLITE_DONE ? 0 : ERR_IO;
}

static int open_handle(struct regdb *db, struct err *err)
{
    int rc = sqlite3_open_v2(db->path, &db->h, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);

    if (rc != SQLITE_OK)
        return regdb_error(db, rc, err);
    sqlite3_extended_result_codes(db->h, 1);
    sqlite3_busy_timeout(db->h, REGDB_BUSY_MS);
    return 0;
}

struct regdb *regdb_open(const char *path, const struct seal *seal, struct err *err)
{
    struct regdb *db = xcalloc(1, sizeof(*db));
    int64_t version = 0;

    db->path = xstrdup(path);
    db->lock_fd = -1;
    db->seal = seal;
    if (take_lock(db, err) || make_private(db, err) || open_handle(db, err) ||
        check_version(db, &version, err) || check_integrity(db, err) || set_wal(db, err) ||
        migrate(db, version, err) || prepare_all(db, err) || check_seal(db, err)) {
        if (err)
            err->cls = ERRC_USER; /* nobody tries again by himself */
        regdb_close(db);
        return NULL;
    }
    return db;
}

void regdb_close(struct regdb *db)
{
    bool opened;

    if (!db)
        return;
    opened = db->stmts[N_STMTS - 1] != NULL;
    for (int i = 0; i < N_STMTS; i++)
        sqlite3_finalize(db->stmts[i]);
    if (opened) /* fails on a sick disk: the next open recovers from the WAL */
        (void)sqlite3_wal_checkpoint_v2(db->h, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    sqlite3_close(db->h);
    if (db->lock_fd >= 0)
        close(db->lock_fd);
    free(db->path);
    free(db);
}
