/*
 * The SQLite registry, loop side.
 *
 * Requests wait in a queue while one group is in the helper; the next group takes all of them and
 * is one transaction.  So the price of an fsync is shared, order is that of the calls, and there is
 * nothing to lock. A group that failed as a whole comes back to the head of the queue and is tried
 * again with a back-off.
 */
#include "registry/sqlite_priv.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/xthread.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RETRY_MIN_MS = 50, RETRY_MAX_MS = 1000, CLOSE_RETRY_MS = 50 };

static void submit(struct sqlreg *r, unsigned delay_ms);

static struct sqlreg *sqlreg_of(struct registry *base)
{
    return container_of(base, struct sqlreg, base);
}

static struct sqlreg_store *store_of(struct store *base)
{
    return container_of(base, struct sqlreg_store, base);
}

static char *dup_or_empty(const char *s)
{
    return xstrdup(s ? s : "");
}

/* ---- callbacks */

static void answer(const struct req *q)
{
    const struct err *err = q->err.code ? &q->err : NULL;

    switch (q->kind) {
    case REQ_LIST:
        q->cb.tasks(q->arg, err, q->tasks, q->n_tasks);
        break;
    case REQ_CREATE:
    case REQ_SET_STATE:
    case REQ_REMOVE:
    case REQ_RELEASE:
    case REQ_COMMIT:
        if (q->cb.done)
            q->cb.done(q->arg, err);
        break;
    case REQ_CLAIM:
        q->cb.lease(q->arg, err, &(struct reg_lease){q->task.target_key, q->number, q->since_ms});
        break;
    case REQ_LOAD:
        q->cb.load(q->arg, err, q->ckpts, q->n_ckpts, q->colls, q->n_colls);
        break;
    case REQ_LOAD_TICK:
        q->cb.tick(q->arg, err, err ? 0 : q->number);
        break;
    }
}

/* A callback may do anything, close the registry too: then the list is empty and r waits in the
 * graveyard. */
static void deliver(struct sqlreg *r)
{
    struct req *q;

    while ((q = TAILQ_FIRST(&r->finished))) {
        TAILQ_REMOVE(&r->finished, q, next);
        if (!q->muted)
            answer(q);
        req_free(q);
    }
}

static void mute_list(struct req_list *list, const void *via, const void *arg, bool any_arg)
{
    struct req *q;

    TAILQ_FOREACH (q, list, next) {
        if ((!via || q->via == via) && (any_arg || q->arg == arg))
            q->muted = true;
    }
}

/* via NULL: of everybody. */
static void mute(struct sqlreg *r, const void *via, const void *arg, bool any_arg)
{
    mute_list(&r->waiting, via, arg, any_arg);
    mute_list(&r->finished, via, arg, any_arg);
    if (r->group)
        mute_list(&r->group->reqs, via, arg, any_arg);
}

static size_t free_list(struct req_list *list)
{
    size_t writes = 0;
    struct req *q;

    while ((q = TAILQ_FIRST(list))) {
        TAILQ_REMOVE(list, q, next);
        writes += req_writes(q);
        req_free(q);
    }
    return writes;
}

/* ---- groups */

static void run_group(void *arg)
{
    struct group *g = arg;

    if (g->delay_ms) {
        struct timespec ts = {.tv_nsec = (long)g->delay_ms * 1000000};

        nanosleep(&ts, NULL);
    }
    g->ok = regdb_run(g->db, &g->reqs, &g->sick);
}

/* Told once per trouble. */
static void set_sick(struct sqlreg *r, const struct err *err)
{
    if (err->code && strcmp(err->text, r->sick.text) != 0)
        log_warn("registry", "database does not work", KS("err", err->text));
    else if (!err->code && r->sick.code)
        log_info("registry", "database works again", KS("path", r->db->path));
    r->sick = *err;
}

/* Ends the API operations whose time is over; returns the ms until the next one's is, at most
 * limit_ms. */
static uint64_t expire(struct sqlreg *r, uint64_t limit_ms)
{
    uint64_t now = clock_mono_ms();
    struct req *q, *next;

    for (q = TAILQ_FIRST(&r->waiting); q; q = next) {
        next = TAILQ_NEXT(q, next);
        if (q->deadline_ms && q->deadline_ms <= now) {
            TAILQ_REMOVE(&r->waiting, q, next);
            err_copy(&q->err, &r->sick);
            TAILQ_INSERT_TAIL(&r->finished, q, next);
        } else if (q->deadline_ms && q->deadline_ms - now < limit_ms) {
            limit_ms = q->deadline_ms - now;
        }
    }
    return limit_ms;
}

static void on_retry(void *arg)
{
    submit(arg, 0);
}

static void on_kick(void *arg)
{
    struct sqlreg *r = arg;

    r->kicked = false;
    if (!r->closed)
        submit(r, 0);
}

/* Not at once: calls of one turn of the loop make one group. */
static void kick(struct sqlreg *r)
{
    if (r->kicked || r->group || TAILQ_EMPTY(&r->waiting) || timer_armed(&r->retry))
        return;
    r->kicked = true;
    loop_defer(r->loop, on_kick, r);
}

static void on_closing_group_done(struct sqlreg *r, bool ok)
{
    free_list(&r->finished);
    if (!ok && clock_mono_ms() >= r->close_deadline_ms) {
        size_t writes = free_list(&r->waiting);

        log_error("registry", "closed without its last writes", KS("err", r->sick.text),
                  KU("writes", writes));
    }
    submit(r, ok ? 0 : CLOSE_RETRY_MS);
}

static void on_group_done(void *arg)
{
    struct group *g = arg;
    struct sqlreg *r = g->reg;
    bool ok = g->ok;

    r->group = NULL;
    set_sick(r, &g->sick);
    if (ok) {
        r->n_groups++;
        TAILQ_CONCAT(&r->finished, &g->reqs, next);
        backoff_reset(&r->backoff);
    } else { /* back to the head of the queue */
        TAILQ_CONCAT(&g->reqs, &r->waiting, next);
        TAILQ_CONCAT(&r->waiting, &g->reqs, next);
    }
    free(g);
    if (r->closed) {
        on_closing_group_done(r, ok);
        return;
    }
    if (!ok)
        timer_set(&r->retry, expire(r, backoff_next_ms(&r->backoff)));
    deliver(r);
    if (!r->closed)
        kick(r);
}

static void submit(struct sqlreg *r, unsigned delay_ms)
{
    struct group *g;

    if (r->group || TAILQ_EMPTY(&r->waiting))
        return;
    g = xcalloc(1, sizeof(*g));
    *g = (struct group){.reg = r, .db = r->db, .delay_ms = delay_ms};
    TAILQ_INIT(&g->reqs);
    TAILQ_CONCAT(&g->reqs, &r->waiting, next);
    r->group = g;
    xthread_submit(r->x, run_group, on_group_done, g);
}

static void enqueue(struct sqlreg *r, struct req *q, const void *via, void *arg)
{
    assert(!r->closed);
    q->via = via;
    q->arg = arg;
    TAILQ_INSERT_TAIL(&r->waiting, q, next);
    kick(r);
}

/* Somebody waits in front of a terminal. */
static void enqueue_api(struct sqlreg *r, struct req *q, void *arg)
{
    q->deadline_ms = clock_mono_ms() + SQLREG_API_MS;
    enqueue(r, q, r, arg);
}

/* ---- registry operations */

static void sqlreg_list(struct registry *base, const char *task_id, reg_tasks_fn done, void *arg)
{
    struct req *q = req_new(REQ_LIST);

    q->task.id = xstrdup(task_id);
    q->cb.tasks = done;
    enqueue_api(sqlreg_of(base), q, arg);
}

/* A request that the lease of owner and epoch guards. */
static struct req *guarded(enum req_kind kind, const char *owner, uint64_t epoch)
{
    struct req *q = req_new(kind);

    q->task.owner = dup_or_empty(owner);
    q->task.epoch = epoch;
    return q;
}

static void sqlreg_create(struct registry *base, const struct reg_task *t, const char *owner,
                          uint64_t epoch, reg_done_fn done, void *arg)
{
    struct req *q = req_new(REQ_CREATE);

    q->task = *t;
    q->task.id = xstrdup(t->id);
    q->task.spec_json = dup_or_empty(t->spec_json);
    q->task.target_key = dup_or_empty(t->target_key);
    q->task.reason = dup_or_empty(t->reason);
    q->task.owner = dup_or_empty(owner);
    q->task.epoch = epoch;
    q->cb.done = done;
    enqueue_api(sqlreg_of(base), q, arg);
}

static void sqlreg_set_state(struct registry *base, const char *id, enum task_state state,
                             const char *reason, const char *owner, uint64_t epoch,
                             reg_done_fn done, void *arg)
{
    struct req *q = guarded(REQ_SET_STATE, owner, epoch);

    q->task.id = xstrdup(id);
    q->task.state = state;
    q->task.reason = dup_or_empty(reason);
    q->cb.done = done;
    enqueue_api(sqlreg_of(base), q, arg);
}

static void sqlreg_remove(struct registry *base, const char *id, const char *owner, uint64_t epoch,
                          reg_done_fn done, void *arg)
{
    struct req *q = guarded(REQ_REMOVE, owner, epoch);

    q->task.id = xstrdup(id);
    q->cb.done = done;
    enqueue_api(sqlreg_of(base), q, arg);
}

static void sqlreg_claim(struct registry *base, const char *target_key, const char *owner,
                         uint64_t lease_ms, reg_lease_fn done, void *arg)
{
    struct req *q = guarded(REQ_CLAIM, owner, 0);

    (void)lease_ms; /* it does not run out */
    q->task.target_key = xstrdup(target_key);
    q->cb.lease = done;
    enqueue_api(sqlreg_of(base), q, arg);
}

static void sqlreg_release(struct registry *base, const char *target_key, const char *owner,
                           uint64_t epoch, reg_done_fn done, void *arg)
{
    struct req *q = guarded(REQ_RELEASE, owner, epoch);

    q->task.target_key = xstrdup(target_key);
    q->cb.done = done;
    enqueue_api(sqlreg_of(base), q, arg);
}

static const char *sqlreg_trouble(struct registry *base)
{
    struct sqlreg *r = sqlreg_of(base);

    return r->sick.code ? r->sick.text : NULL;
}

static void sqlreg_cancel(struct registry *base, void *arg)
{
    struct sqlreg *r = sqlreg_of(base);

    mute(r, r, arg, false);
}

static void sqlreg_close(struct registry *base)
{
    struct sqlreg *r = sqlreg_of(base);
    struct sqlreg_store *s;

    if (r->closed)
        return;
    r->closed = true;
    r->close_deadline_ms = clock_mono_ms() + SQLREG_CLOSE_MS;
    mute(r, NULL, NULL, true);
    LIST_FOREACH (s, &r->stores, link)
        s->reg = NULL;
    timer_release(&r->retry);
    submit(r, 0);
    xthread_free(r->x); /* runs group after group until nothing waits */
    free_list(&r->finished);
    regdb_close(r->db);
    loop_defer(r->loop, free, r);
}

/* ---- the store of one task */

static void store_load(struct store *base, const char *task_id, store_load_fn done, void *arg)
{
    struct sqlreg_store *s = store_of(base);
    struct req *q = req_new(REQ_LOAD);

    q->task.id = xstrdup(task_id);
    q->cb.load = done;
    enqueue(s->reg, q, s, arg);
}

static struct store_batch *store_begin(struct store *base, const char *task_id)
{
    struct sqlreg_store *s = store_of(base);
    struct store_batch *b = xcalloc(1, sizeof(*b));

    assert(strcmp(task_id, s->task_id) == 0); /* the guard would look at another task */
    b->store = s;
    b->req = guarded(REQ_COMMIT, s->owner, s->epoch);
    b->req->task.id = xstrdup(s->task_id);
    return b;
}

static struct change *add_change(struct store_batch *b, enum change_kind kind)
{
    struct change *c = xcalloc(1, sizeof(*c));

    c->kind = kind;
    STAILQ_INSERT_TAIL(&b->req->changes, c, next);
    return c;
}

static void store_put_ckpt(struct store_batch *b, const struct repl_ckpt *ckpt)
{
    struct change *c = add_change(b, CHANGE_PUT_CKPT);

    c->ckpt = *ckpt;
    c->ckpt.src_channel = xstrdup(ckpt->src_channel);
    c->ckpt.dst_channel = xstrdup(ckpt->dst_channel);
    c->ckpt.target_pos = xstrdup(ckpt->target_pos);
}

static void store_del_ckpt(struct store_batch *b, const char *src_channel, const char *dst_channel)
{
    struct change *c = add_change(b, CHANGE_DEL_CKPT);

    c->ckpt.src_channel = xstrdup(src_channel);
    c->ckpt.dst_channel = xstrdup(dst_channel);
}

static void store_put_collection(struct store_batch *b, int64_t id, const char *json)
{
    struct change *c = add_change(b, CHANGE_PUT_COLL);

    c->coll.id = id;
    c->coll.json = dup_or_empty(json);
}

static void store_del_collection(struct store_batch *b, int64_t id)
{
    add_change(b, CHANGE_DEL_COLL)->coll.id = id;
}

static void store_put_tick(struct store_batch *b, const char *target, const char *dst_channel,
                           uint64_t tt)
{
    struct change *c = add_change(b, CHANGE_TICK);

    c->target = xstrdup(target);
    c->ckpt.dst_channel = xstrdup(dst_channel);
    c->tt = tt;
}

static void store_commit(struct store_batch *b, store_done_fn done, void *arg)
{
    b->req->cb.done = done;
    enqueue(b->store->reg, b->req, b->store, arg);
    free(b);
}

static void store_load_tick(struct store *base, const char *target, const char *dst_channel,
                            store_tick_fn done, void *arg)
{
    struct sqlreg_store *s = store_of(base);
    struct req *q = req_new(REQ_LOAD_TICK);

    q->target = xstrdup(target);
    q->channel = xstrdup(dst_channel);
    q->cb.tick = done;
    enqueue(s->reg, q, s, arg);
}

static void store_cancel(struct store *base, void *arg)
{
    struct sqlreg_store *s = store_of(base);

    if (s->reg)
        mute(s->reg, s, arg, false);
}

static const struct store_ops sqlreg_store_ops = {
    .load = store_load,
    .begin = store_begin,
    .put_ckpt = store_put_ckpt,
    .del_ckpt = store_del_ckpt,
    .put_collection = store_put_collection,
    .del_collection = store_del_collection,
    .put_tick = store_put_tick,
    .commit = store_commit,
    .load_tick = store_load_tick,
    .cancel = store_cancel,
};

static struct store *sqlreg_store_open(struct registry *base, const char *task_id,
                                       const char *owner, uint64_t epoch)
{
    struct sqlreg *r = sqlreg_of(base);
    struct sqlreg_store *s = xcalloc(1, sizeof(*s));

    s->base.ops = &sqlreg_store_ops;
    s->reg = r;
    s->task_id = xstrdup(task_id);
    s->owner = dup_or_empty(owner);
    s->epoch = epoch;
    LIST_INSERT_HEAD(&r->stores, s, link);
    return &s->base;
}

static void sqlreg_store_free(struct store *base)
{
    struct sqlreg_store *s;

    if (!base)
        return;
    s = store_of(base);
    if (s->reg) {
        mute(s->reg, s, NULL, true);
        LIST_REMOVE(s, link);
    }
    free(s->task_id);
    free(s->owner);
    free(s);
}

/* ---- opening */

static const struct registry_ops sqlreg_ops = {
    .list = sqlreg_list,
    .create = sqlreg_create,
    .set_state = sqlreg_set_state,
    .remove = sqlreg_remove,
    .claim = sqlreg_claim,
    .release = sqlreg_release,
    .store_open = sqlreg_store_open,
    .store_free = sqlreg_store_free,
    .trouble = sqlreg_trouble,
    .cancel = sqlreg_cancel,
    .close = sqlreg_close,
};

struct registry *registry_sqlite_open(struct loop *l, const char *path, struct err *err)
{
    struct regdb *db = regdb_open(path, err);
    struct sqlreg *r;

    if (!db)
        return NULL;
    r = xcalloc(1, sizeof(*r));
    r->base.ops = &sqlreg_ops;
    r->loop = l;
    r->db = db;
    r->backoff = (struct backoff)BACKOFF_INIT(RETRY_MIN_MS, RETRY_MAX_MS);
    LIST_INIT(&r->stores);
    TAILQ_INIT(&r->waiting);
    TAILQ_INIT(&r->finished);
    timer_init(&r->retry, l, LOOP_PRIO_NORMAL, on_retry, r);
    r->x = xthread_new(l, "registry");
    return &r->base;
}
