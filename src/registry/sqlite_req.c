/* What each request does to the database. Runs in the helper thread. */
#include "registry/sqlite_priv.h"

#include "base/clock.h"
#include "base/mem.h"
#include "registry/seal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- statements: 0 or an SQLite code */

/* Nothing is copied: the texts outlive the statement's run, so a bind cannot fail. */
static void bind_text(sqlite3_stmt *s, int i, const char *text)
{
    (void)sqlite3_bind_text(s, i, text, -1, SQLITE_STATIC);
}

static void bind_u64(sqlite3_stmt *s, int i, uint64_t v)
{
    (void)sqlite3_bind_int64(s, i, (sqlite3_int64)v);
}

static void bind_i64(sqlite3_stmt *s, int i, int64_t v)
{
    (void)sqlite3_bind_int64(s, i, v);
}

static uint64_t column_u64(sqlite3_stmt *s, int i)
{
    return (uint64_t)sqlite3_column_int64(s, i);
}

static char *column_dup(sqlite3_stmt *s, int i)
{
    return xstrdup((const char *)sqlite3_column_text(s, i));
}

static int finish(sqlite3_stmt *s, int rc)
{
    sqlite3_reset(s); /* tells the step's error again */
    sqlite3_clear_bindings(s);
    return rc == SQLITE_DONE || rc == SQLITE_ROW ? 0 : rc;
}

static int run(struct regdb *db, enum regdb_stmt id)
{
    return finish(db->stmts[id], sqlite3_step(db->stmts[id]));
}

static int no_task(struct req *q)
{
    err_set(&q->err, ERR_NOT_FOUND, ERRC_USER, "task %s is not in the registry", q->task.id);
    return 0;
}

/* The lease of a target: *ret_owner (caller frees) and *ret_epoch, NULL and 0 when never held. */
static int get_lease(struct regdb *db, const char *target_key, char **ret_owner, uint64_t *ret_epoch)
{
    sqlite3_stmt *s = db->stmts[STMT_LEASE_GET];
    int rc;

    *ret_owner = NULL;
    *ret_epoch = 0;
    bind_text(s, 1, target_key);
    rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        *ret_owner = column_dup(s, 0);
        *ret_epoch = column_u64(s, 1);
    }
    return finish(s, rc);
}

static int put_lease(struct regdb *db, const char *target_key, const char *owner, uint64_t epoch,
                     int64_t since_ms)
{
    sqlite3_stmt *s = db->stmts[STMT_LEASE_PUT];

    bind_text(s, 1, target_key);
    bind_text(s, 2, owner);
    bind_u64(s, 3, epoch);
    bind_i64(s, 4, since_ms);
    return run(db, STMT_LEASE_PUT);
}

/* Is the caller still the one that may write for this target? Sets q->err when not. */
static int guard(struct regdb *db, struct req *q, const char *target_key)
{
    uint64_t epoch;
    char *owner;
    int rc = get_lease(db, target_key, &owner, &epoch);

    if (rc == 0 && (!owner || epoch != q->task.epoch || strcmp(owner, q->task.owner) != 0))
        err_set(&q->err, ERR_STALE, ERRC_USER,
                "target %s belongs to \"%s\" epoch %" PRIu64 " and not to \"%s\" epoch %" PRIu64
                ": nothing was stored",
                target_key, owner ? owner : "", epoch, q->task.owner, q->task.epoch);
    free(owner);
    return rc;
}

/* As guard, for the target of q's task. absent() says what it means that there is none. */
static int guard_task(struct regdb *db, struct req *q, int (*absent)(struct req *q))
{
    sqlite3_stmt *s = db->stmts[STMT_TASK_KEY];
    char *key = NULL;
    int rc;

    bind_text(s, 1, q->task.id);
    rc = sqlite3_step(s);
    if (rc == SQLITE_ROW)
        key = column_dup(s, 0);
    rc = finish(s, rc);
    if (rc == 0)
        rc = key ? guard(db, q, key) : absent(q);
    free(key);
    return rc;
}

/* ---- tasks */

/* Without the key, the request fails. */
static void add_task(struct regdb *db, struct req *q, sqlite3_stmt *s)
{
    char *spec = seal_get(db->seal, (const char *)sqlite3_column_text(s, 1), &q->err);

    q->tasks = xrealloc(q->tasks, (q->n_tasks + 1) * sizeof(*q->tasks));
    q->tasks[q->n_tasks++] = (struct reg_task){
        .id = column_dup(s, 0),
        .spec_json = spec,
        .target_key = column_dup(s, 2),
        .state = (enum task_state)sqlite3_column_int(s, 3),
        .reason = column_dup(s, 4),
        .created_ms = sqlite3_column_int64(s, 5),
        .updated_ms = sqlite3_column_int64(s, 6),
        .keep = sqlite3_column_int(s, 7) != 0,
        .owner = column_dup(s, 8),
        .epoch = column_u64(s, 9),
        .since_ms = sqlite3_column_int64(s, 10),
        .verify = column_dup(s, 11),
    };
}

static int do_list(struct regdb *db, struct req *q)
{
    sqlite3_stmt *s = db->stmts[STMT_TASK_LIST];
    int rc;

    bind_text(s, 1, q->task.id); /* NULL binds as NULL: all */
    while ((rc = sqlite3_step(s)) == SQLITE_ROW)
        add_task(db, q, s);
    return finish(s, rc);
}

static int do_create(struct regdb *db, struct req *q)
{
    sqlite3_stmt *s = db->stmts[STMT_TASK_INSERT];
    const struct reg_task *t = &q->task;
    int64_t now = (int64_t)clock_wall_ms();
    char *spec;
    int rc = guard(db, q, t->target_key);

    if (rc || q->err.code)
        return rc;
    spec = seal_put(db->seal, t->spec_json);
    bind_text(s, 1, t->id);
    bind_text(s, 2, spec);
    bind_text(s, 3, t->target_key);
    bind_i64(s, 4, t->state);
    bind_text(s, 5, t->reason);
    bind_i64(s, 6, t->created_ms ? t->created_ms : now);
    bind_i64(s, 7, t->updated_ms ? t->updated_ms : now);
    bind_i64(s, 8, t->keep);
    rc = run(db, STMT_TASK_INSERT);
    free(spec);
    if (rc == 0 && sqlite3_changes(db->h) == 0)
        err_set(&q->err, ERR_EXISTS, ERRC_USER, "task %s exists already", t->id);
    return rc;
}

static int do_set_state(struct regdb *db, struct req *q)
{
    sqlite3_stmt *s = db->stmts[STMT_TASK_STATE];
    int rc = guard_task(db, q, no_task);

    if (rc || q->err.code)
        return rc;
    bind_text(s, 1, q->task.id);
    bind_i64(s, 2, q->task.state);
    bind_text(s, 3, q->task.reason);
    bind_i64(s, 4, (int64_t)clock_wall_ms());
    return run(db, STMT_TASK_STATE);
}

static int do_remove(struct regdb *db, struct req *q)
{
    int rc = guard_task(db, q, no_task);

    if (rc || q->err.code)
        return rc;
    bind_text(db->stmts[STMT_TASK_DELETE], 1, q->task.id);
    return run(db, STMT_TASK_DELETE);
}

/* ---- leases */

static int do_claim(struct regdb *db, struct req *q)
{
    char *owner;
    int rc = get_lease(db, q->task.target_key, &owner, &q->number);

    free(owner);
    q->number++;
    q->since_ms = (int64_t)clock_wall_ms();
    return rc ? rc : put_lease(db, q->task.target_key, q->task.owner, q->number, q->since_ms);
}

static int do_release(struct regdb *db, struct req *q)
{
    int rc = guard(db, q, q->task.target_key);

    return rc || q->err.code ? rc : put_lease(db, q->task.target_key, "", q->task.epoch, 0);
}

/* ---- the store of a task */

static int put_ckpt(struct regdb *db, const struct req *q, const struct repl_ckpt *c)
{
    sqlite3_stmt *s = db->stmts[STMT_CKPT_PUT];
    const uint64_t numbers[] = {
        c->start.major, c->start.minor, c->start_tt,   c->done.major, c->done.minor,
        c->done_tt,     c->sent.major,  c->sent.minor, c->sent_tt,    c->retimed_tt,
        c->op.major,    c->op.minor,    c->op_tt,
    };

    bind_text(s, 1, c->src_channel);
    bind_text(s, 2, c->dst_channel);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        bind_u64(s, (int)i + 3, numbers[i]);
    bind_text(s, 16, c->target_pos); /* NULL binds as NULL */
    bind_text(s, 17, q->task.id);
    bind_u64(s, 18, c->span_tt);
    return run(db, STMT_CKPT_PUT);
}

static int del_ckpt(struct regdb *db, const struct req *q, const struct repl_ckpt *c)
{
    sqlite3_stmt *s = db->stmts[STMT_CKPT_DELETE];

    bind_text(s, 1, q->task.id);
    bind_text(s, 2, c->src_channel);
    bind_text(s, 3, c->dst_channel);
    return run(db, STMT_CKPT_DELETE);
}

static int put_coll(struct regdb *db, const struct req *q, const struct repl_collection_rec *c)
{
    sqlite3_stmt *s = db->stmts[STMT_COLL_PUT];

    bind_text(s, 1, q->task.id);
    bind_i64(s, 2, c->id);
    bind_text(s, 3, c->json);
    return run(db, STMT_COLL_PUT);
}

static int del_coll(struct regdb *db, const struct req *q, int64_t id)
{
    sqlite3_stmt *s = db->stmts[STMT_COLL_DELETE];

    bind_text(s, 1, q->task.id);
    bind_i64(s, 2, id);
    return run(db, STMT_COLL_DELETE);
}

static int put_tick(struct regdb *db, const struct change *c)
{
    enum regdb_stmt id = c->kind == CHANGE_SET_TICK ? STMT_TICK_SET : STMT_TICK_RAISE;
    sqlite3_stmt *s = db->stmts[id];

    bind_text(s, 1, c->target);
    bind_text(s, 2, c->ckpt.dst_channel);
    bind_u64(s, 3, c->tt);
    return run(db, id);
}

static int put_verify(struct regdb *db, const struct req *q, const char *json)
{
    sqlite3_stmt *s = db->stmts[STMT_VERIFY_PUT];

    bind_text(s, 1, q->task.id);
    bind_text(s, 2, json);
    return run(db, STMT_VERIFY_PUT);
}

static int apply(struct regdb *db, const struct req *q, const struct change *c)
{
    switch (c->kind) {
    case CHANGE_PUT_CKPT:
        return put_ckpt(db, q, &c->ckpt);
    case CHANGE_DEL_CKPT:
        return del_ckpt(db, q, &c->ckpt);
    case CHANGE_PUT_COLL:
        return put_coll(db, q, &c->coll);
    case CHANGE_DEL_COLL:
        return del_coll(db, q, c->coll.id);
    case CHANGE_TICK:
    case CHANGE_SET_TICK:
        return put_tick(db, c);
    case CHANGE_VERIFY:
        return put_verify(db, q, c->target);
    }
    abort();
}

static int removed(struct req *q)
{
    err_set(&q->err, ERR_STALE, ERRC_USER, "task %s was removed from the registry", q->task.id);
    return 0;
}

static int do_commit(struct regdb *db, struct req *q)
{
    const struct change *c;
    int rc = guard_task(db, q, removed);

    if (rc || q->err.code)
        return rc;
    STAILQ_FOREACH (c, &q->changes, next) {
        if ((rc = apply(db, q, c)))
            return rc;
    }
    return 0;
}

static void add_ckpt(struct req *q, sqlite3_stmt *s)
{
    q->ckpts = xrealloc(q->ckpts, (q->n_ckpts + 1) * sizeof(*q->ckpts));
    q->ckpts[q->n_ckpts++] = (struct repl_ckpt){
        .src_channel = column_dup(s, 0),
        .dst_channel = column_dup(s, 1),
        .start = {column_u64(s, 2), column_u64(s, 3)},
        .start_tt = column_u64(s, 4),
        .done = {column_u64(s, 5), column_u64(s, 6)},
        .done_tt = column_u64(s, 7),
        .sent = {column_u64(s, 8), column_u64(s, 9)},
        .sent_tt = column_u64(s, 10),
        .retimed_tt = column_u64(s, 11),
        .op = {column_u64(s, 12), column_u64(s, 13)},
        .op_tt = column_u64(s, 14),
        .target_pos = column_dup(s, 15),
        .span_tt = column_u64(s, 16),
    };
}

static void add_coll(struct req *q, sqlite3_stmt *s)
{
    q->colls = xrealloc(q->colls, (q->n_colls + 1) * sizeof(*q->colls));
    q->colls[q->n_colls++] =
        (struct repl_collection_rec){.id = sqlite3_column_int64(s, 0), .json = column_dup(s, 1)};
}

static int read_rows(struct regdb *db, struct req *q, enum regdb_stmt id,
                     void (*add)(struct req *, sqlite3_stmt *))
{
    sqlite3_stmt *s = db->stmts[id];
    int rc;

    bind_text(s, 1, q->task.id);
    while ((rc = sqlite3_step(s)) == SQLITE_ROW)
        add(q, s);
    return finish(s, rc);
}

static int do_load(struct regdb *db, struct req *q)
{
    int rc = read_rows(db, q, STMT_CKPT_LIST, add_ckpt);

    return rc ? rc : read_rows(db, q, STMT_COLL_LIST, add_coll);
}

static int do_load_tick(struct regdb *db, struct req *q)
{
    sqlite3_stmt *s = db->stmts[STMT_TICK_GET];
    int rc;

    bind_text(s, 1, q->target);
    bind_text(s, 2, q->channel);
    rc = sqlite3_step(s);
    if (rc == SQLITE_ROW)
        q->number = column_u64(s, 0);
    return finish(s, rc);
}

/* ---- administration */

static int do_put_spec(struct regdb *db, const struct req *q)
{
    sqlite3_stmt *s = db->stmts[STMT_SPEC_PUT];
    char *spec = seal_put(db->seal, q->task.spec_json);
    int rc;

    bind_text(s, 1, q->task.id);
    bind_text(s, 2, q->task.spec_json);
    bind_text(s, 3, spec);
    rc = run(db, STMT_SPEC_PUT);
    free(spec);
    return rc;
}

static int do_facts(struct regdb *db, struct req *q)
{
    sqlite3_stmt *s = db->stmts[STMT_TICK_LIST];
    int rc;

    while ((rc = sqlite3_step(s)) == SQLITE_ROW)
        req_add_fact(q, (const char *)sqlite3_column_text(s, 0), (const char *)sqlite3_column_text(s, 1),
                     column_u64(s, 2));
    if ((rc = finish(s, rc)))
        return rc;
    s = db->stmts[STMT_LEASE_LIST];
    while ((rc = sqlite3_step(s)) == SQLITE_ROW)
        req_add_fact(q, (const char *)sqlite3_column_text(s, 0), NULL, column_u64(s, 1));
    return finish(s, rc);
}

static int do_put_facts(struct regdb *db, const struct req *q)
{
    sqlite3_stmt *s = db->stmts[STMT_LEASE_RAISE];
    const struct change *c;

    STAILQ_FOREACH (c, &q->changes, next) {
        int rc;

        if (c->ckpt.dst_channel) {
            rc = put_tick(db, c);
        } else {
            bind_text(s, 1, c->target);
            bind_u64(s, 2, c->tt);
            rc = run(db, STMT_LEASE_RAISE);
        }
        if (rc)
            return rc;
    }
    return 0;
}

static int run_one(struct regdb *db, struct req *q)
{
    switch (q->kind) {
    case REQ_LIST:
        return do_list(db, q);
    case REQ_CREATE:
        return do_create(db, q);
    case REQ_SET_STATE:
        return do_set_state(db, q);
    case REQ_REMOVE:
        return do_remove(db, q);
    case REQ_CLAIM:
        return do_claim(db, q);
    case REQ_RELEASE:
        return do_release(db, q);
    case REQ_COMMIT:
        return do_commit(db, q);
    case REQ_LOAD:
        return do_load(db, q);
    case REQ_LOAD_TICK:
        return do_load_tick(db, q);
    case REQ_PUT_SPEC:
        return do_put_spec(db, q);
    case REQ_FACTS:
        return do_facts(db, q);
    case REQ_PUT_FACTS:
        return do_put_facts(db, q);
    case REQ_LEAVE:
    case REQ_UNDO_CREATE:
        break; /* of a shared registry only */
    }
    abort();
}

/* ---- groups */

static bool damaged(int rc)
{
    return (rc & 0xff) == SQLITE_CORRUPT || (rc & 0xff) == SQLITE_NOTADB;
}

/* One request inside its savepoint. Not 0: the whole transaction is over, *ret_sick is filled. */
static int run_isolated(struct regdb *db, struct req *q, struct err *ret_sick)
{
    int rc = run(db, STMT_SAVEPOINT);

    if (rc == 0) {
        rc = run_one(db, q);
        if (rc && !regdb_transient(rc)) {
            regdb_error(db, rc, &q->err);
            if (damaged(rc))
                err_copy(ret_sick, &q->err);
            rc = 0;
        }
    }
    /* An SQLite that rolled back everything by itself has no savepoint any more: this fails then.
     */
    if (rc == 0 && q->err.code)
        rc = run(db, STMT_ROLLBACK_TO);
    if (rc == 0)
        rc = run(db, STMT_RELEASE);
    if (rc && !ret_sick->code)
        regdb_error(db, rc, ret_sick);
    return rc;
}

static int run_transaction(struct regdb *db, struct req_list *reqs, struct err *ret_sick)
{
    enum regdb_stmt begin = STMT_BEGIN_READ;
    struct req *q;
    int rc;

    TAILQ_FOREACH (q, reqs, next) {
        if (req_writes(q))
            begin = STMT_BEGIN_WRITE;
    }
    rc = run(db, begin);
    if (rc)
        return regdb_error(db, rc, ret_sick), rc;
    TAILQ_FOREACH (q, reqs, next) {
        rc = run_isolated(db, q, ret_sick);
        if (rc)
            return rc;
    }
    rc = run(db, STMT_COMMIT);
    if (rc)
        regdb_error(db, rc, ret_sick);
    return rc;
}

bool regdb_run(struct regdb *db, struct req_list *reqs, struct err *ret_sick)
{
    struct req *q;
    int rc;

    *ret_sick = (struct err){0};
    TAILQ_FOREACH (q, reqs, next)
        req_drop_result(q);
    rc = run_transaction(db, reqs, ret_sick);
    if (rc && !sqlite3_get_autocommit(db->h))
        (void)run(db, STMT_ROLLBACK); /* fails only when SQLite did it before */
    if (rc == 0 || regdb_transient(rc))
        return rc == 0;
    TAILQ_FOREACH (q, reqs, next) { /* final: waiting does not help, everybody is told */
        req_drop_result(q);
        err_copy(&q->err, ret_sick);
    }
    return true;
}
