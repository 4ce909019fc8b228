/*
 * The PostgreSQL registry: groups of requests on a connection of their own.
 *
 * A group is one statement for its writes and one for each of its reads. What a caller was told is as durable as the
 * server's synchronous_commit makes it. A group without an answer is simply repeated: what it does can be done twice,
 * and its number keeps a late first try from undoing a later group (see the table fence).
 */
#include "registry/postgresql_priv.h"

#include "base/clock.h"
#include "base/err.h"
#include "registry/postgresql.h"
#include "registry/seal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pgreg *of_queue(struct regq *q)
{
    return container_of(q, struct pgreg, q);
}

/* ---- groups */

static void end_group(struct pgreg *r)
{
    struct group *g = r->q.group;

    g->ok = !r->group_failed;
    if (r->group_failed) {
        struct req *q;

        TAILQ_FOREACH (q, &g->reqs, next)
            req_drop_result(q);
    }
    regq_group_done(g);
}

/* One answer of the group has come. err: its statement failed; only is the request that alone is to blame, or NULL. */
static void one_done(struct pgreg *r, const struct err *err, struct req *only)
{
    struct group *g = r->q.group;

    if (err && err->cls != ERRC_RETRY && only) {
        err_copy(&only->err, err);
    } else if (err) {
        r->group_failed = true;
        if (err->cls == ERRC_RETRY)
            err_copy(&g->sick, err);
        else
            r->q.alone = r->n_writes; /* one of them is to blame: each is tried alone */
    }
    if (--r->pending == 0)
        end_group(r);
}

static struct req *first_write(const struct group *g)
{
    struct req *q = TAILQ_FIRST(&g->reqs);

    while (q && !req_writes(q))
        q = TAILQ_NEXT(q, next);
    return q;
}

static void on_applied(void *arg, const struct err *err, const struct pg_result *res)
{
    struct pgreg *r = arg;
    struct err e;

    if (!err && pgreg_decode(r, &r->q.group->reqs, pg_value(res, 0, 0), &e))
        err = &e;
    one_done(r, err, r->n_writes == 1 ? first_write(r->q.group) : NULL);
}

/* A read's own: it carries the registry. */
struct read {
    struct pgreg *r;
    struct req *q;
};

static void on_read(void *arg, const struct err *err, const struct pg_result *res)
{
    struct read *rd = arg;
    struct pgreg *r = rd->r;
    struct req *q = rd->q;
    const char *v;

    if (!err) {
        switch (q->kind) {
        case REQ_LIST:
            (void)pgreg_take_tasks(r, q, res); /* fills the request's error */
            break;
        case REQ_LOAD:
            (void)pgreg_take_records(q, res);
            break;
        case REQ_FACTS:
            pgreg_take_facts(q, res);
            break;
        default:
            v = pg_rows(res) ? pg_value(res, 0, 0) : NULL;
            q->number = v ? (uint64_t)strtoll(v, NULL, 10) : 0;
        }
    }
    one_done(r, err, q);
}

static void send_read(struct pgreg *r, struct req *q)
{
    const char *params[2] = {q->kind == REQ_LOAD_TICK ? q->target : q->task.id, q->channel};
    struct read *rd = q->impl ? q->impl : xmalloc(sizeof(*rd));
    const char *sql = q->kind == REQ_LIST    ? pgreg_list_sql
                      : q->kind == REQ_LOAD  ? pgreg_load_sql
                      : q->kind == REQ_FACTS ? pgreg_facts_sql
                                             : pgreg_tick_sql;
    size_t n = q->kind == REQ_LOAD_TICK ? 2 : q->kind != REQ_FACTS;

    q->impl = rd; /* goes with the request */
    *rd = (struct read){r, q};
    pg_send(r->work, PGREG_STMT_MS, sql, n, params, on_read, rd);
}

static void send_writes(struct pgreg *r, struct group *g)
{
    char *ops = pgreg_encode(r, &g->reqs, &r->n_writes);
    char seq[24];
    const char *params[3] = {r->session, seq, ops};

    snprintf(seq, sizeof(seq), "%" PRIu64, ++r->seq);
    if (r->n_writes) {
        r->pending++;
        pg_send(r->work, PGREG_STMT_MS, "SELECT apply($1, $2, $3::jsonb)", 3, params, on_applied, r);
    }
    explicit_bzero(ops, strlen(ops));
    free(ops);
}

static void start(struct regq *queue, struct group *g)
{
    struct pgreg *r = of_queue(queue);
    struct req *q;

    r->group_failed = false;
    r->pending = 0;
    r->n_writes = 0;
    if (!r->ready) {
        if (!r->q.closed)
            timer_set(&r->defer, 0);
        return;
    }
    TAILQ_FOREACH (q, &g->reqs, next) {
        q->tries++;
        r->pending += !req_writes(q);
    }
    send_writes(r, g);
    TAILQ_FOREACH (q, &g->reqs, next)
        if (!req_writes(q))
            send_read(r, q);
}

/* A group that came while there is no connection. */
static void on_defer(void *arg)
{
    struct pgreg *r = arg;
    struct group *g = r->q.group;
    struct req *q;

    if (!g)
        return;
    g->ok = r->fatal.code != ERR_OK;
    g->sick = r->fatal.code ? r->fatal : r->q.sick;
    if (g->ok)
        TAILQ_FOREACH (q, &g->reqs, next)
            err_copy(&q->err, &r->fatal);
    regq_group_done(g);
}

/* ---- preparing a connection */

static void set_fatal(struct pgreg *r, const struct err *err)
{
    r->fatal = *err;
    r->fatal.cls = ERRC_USER;
    regq_set_sick(&r->q, &r->fatal);
    regq_wake(&r->q);
}

static void now_ready(struct pgreg *r)
{
    struct err e;

    r->ready = true;
    regq_set_sick(&r->q, &(struct err){0});
    regq_wake(&r->q);
    if (!r->watch && pgreg_watch_open(r, &e))
        set_fatal(r, &e);
}

static void prepare_failed(struct pgreg *r, const struct err *err)
{
    struct err e;

    if (strcmp(pg_sqlstate(r->work), PGREG_NEWER) == 0) {
        err_set(&e, ERR_INVALID, ERRC_USER,
                "%s: a newer milvus-cdc uses this registry: install that version, or set another registry.schema",
                err->text);
        set_fatal(r, &e);
    } else {
        pg_drop(r->work, err); /* tried again: rights may be given, space be freed */
    }
}

static void on_proof_stored(void *arg, const struct err *err, const struct pg_result *res)
{
    (void)res;
    if (err)
        prepare_failed(arg, err);
    else
        now_ready(arg);
}

static void on_proof(void *arg, const struct err *err, const struct pg_result *res)
{
    struct pgreg *r = arg;
    const char *param[1];
    char *new;
    struct err e;

    if (err) {
        prepare_failed(r, err);
        return;
    }
    if (seal_check(r->seal, pg_rows(res) ? pg_value(res, 0, 0) : NULL, &new, &e)) {
        set_fatal(r, &e);
        return;
    }
    if (!new) {
        now_ready(r);
        return;
    }
    param[0] = new;
    pg_send(r->work, PGREG_STMT_MS, "INSERT INTO seal VALUES (true, $1) ON CONFLICT (one) DO NOTHING", 1, param,
            on_proof_stored, r);
    free(new);
}

static void on_migrated(void *arg, const struct err *err, const struct pg_result *res)
{
    struct pgreg *r = arg;

    (void)res;
    if (err)
        prepare_failed(r, err);
    else
        pg_send(r->work, PGREG_STMT_MS, "SELECT proof FROM seal", 0, NULL, on_proof, r);
}

void pgreg_set_path(struct pgreg *r, struct pg *p)
{
    const char *param[1] = {r->schema};

    pg_send(p, PGREG_STMT_MS, "SELECT set_config('search_path', $1, false)", 1, param, NULL, NULL);
}

static void on_up(void *arg)
{
    struct pgreg *r = arg;
    char *sql = pgreg_migrate_sql();

    pgreg_set_path(r, r->work);
    pg_send(r->work, PGREG_MIGRATE_MS, sql, 0, NULL, on_migrated, r);
    free(sql);
}

static void on_down(void *arg, const struct err *err)
{
    struct pgreg *r = arg;

    r->ready = false;
    if (!r->fatal.code)
        regq_set_sick(&r->q, err);
}

/* ---- operations that SQLite has not */

static void pgreg_leave(struct registry *base, const char *owner, reg_done_fn done, void *arg)
{
    struct req *q = regq_guarded(REQ_LEAVE, owner, 0);

    q->cb.done = done;
    regq_enqueue_api(&pgreg_of(base)->q, q, arg);
}

static void pgreg_cancel(struct registry *base, void *arg)
{
    regq_cancel(base, arg);
    pgreg_watch_cancel(pgreg_of(base), arg);
}

static const char *pgreg_trouble(struct registry *base)
{
    struct pgreg *r = pgreg_of(base);

    if (r->fatal.code)
        return r->fatal.text;
    if (r->q.sick.code)
        return r->q.sick.text;
    return r->watch_trouble.code ? r->watch_trouble.text : NULL;
}

/* ---- life */

static void finish(struct regq *queue)
{
    struct pgreg *r = of_queue(queue);
    uint64_t now;

    pgreg_watch_close(r);
    while ((r->q.group || !TAILQ_EMPTY(&r->q.waiting)) && r->ready && pg_up(r->work) &&
           (now = clock_mono_ms()) < r->q.close_deadline_ms)
        pg_pump(r->work, (unsigned)(r->q.close_deadline_ms - now));
    regq_give_up(&r->q);
    pg_close(r->work);
    timer_release(&r->defer);
}

static void pgreg_free(void *arg)
{
    struct pgreg *r = of_queue(arg);

    free(r->where);
    free(r->schema);
    free(r->owner);
    free(r->seen);
    free(r);
}

static const struct regq_backend backend = {.start = start, .finish = finish, .free = pgreg_free};

static const struct registry_ops pgreg_ops = {
    .list = regq_list,
    .create = regq_create,
    .set_state = regq_set_state,
    .remove = regq_remove,
    .claim = regq_claim,
    .release = regq_release,
    .store_open = regq_store_open,
    .store_free = regq_store_free,
    .trouble = pgreg_trouble,
    .cancel = pgreg_cancel,
    .close = regq_close,
    .beat = pgreg_beat,
    .leave = pgreg_leave,
    .ask = pgreg_ask,
    .answer = pgreg_answer,
    .watch = pgreg_watch,
};

/* As an SQL identifier. */
static char *quoted(const char *name)
{
    char *out = xmalloc(2 * strlen(name) + 3), *p = out;

    *p++ = '"';
    for (; *name; name++) {
        if (*name == '"')
            *p++ = '"';
        *p++ = *name;
    }
    *p++ = '"';
    *p = '\0';
    return out;
}

struct registry *registry_postgresql_open(struct loop *l, const struct registry_postgresql_options *o, struct err *err)
{
    static const struct pg_cbs cbs = {.on_up = on_up, .on_down = on_down};
    struct pgreg *r = xcalloc(1, sizeof(*r));

    r->pg_options = *o->pg;
    r->work = pg_open(l, &r->pg_options, &cbs, r, err);
    if (!r->work) {
        free(r);
        return NULL;
    }
    r->seal = o->seal;
    r->where = xstrdup(pg_where(r->work));
    r->schema = quoted(o->schema && *o->schema ? o->schema : "milvus_cdc");
    regq_nonce(r->session);
    regq_init(&r->q, l, &pgreg_ops, &backend, r->where);
    r->q.base.shared = true;
    err_set(&r->q.sick, ERR_UNAVAILABLE, ERRC_RETRY, "PostgreSQL at %s (registry): not connected yet", r->where);
    r->q.pace_ms = PGREG_PACE_MS;
    r->q.max_writes = PGREG_GROUP_MAX;
    pgreg_watch_init(r);
    timer_init(&r->defer, l, LOOP_PRIO_HIGH, on_defer, r);
    return &r->q.base;
}
