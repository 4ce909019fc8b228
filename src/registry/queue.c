/* The queue of requests of both registries: groups, retries, callbacks. */
#include "registry/queue_priv.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { RETRY_MIN_MS = 50, RETRY_MAX_MS = 1000, CLOSE_RETRY_MS = 50, BURST_MS = 500 };

static struct regq *regq_of(struct registry *base)
{
    return container_of(base, struct regq, base);
}

static struct regq_store *store_of(struct store *base)
{
    return container_of(base, struct regq_store, base);
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
    case REQ_LEAVE:
    case REQ_UNDO_CREATE:
    case REQ_PUT_SPEC:
    case REQ_PUT_FACTS:
    case REQ_COMMIT:
        if (q->cb.done)
            q->cb.done(q->arg, err);
        break;
    case REQ_CLAIM:
        q->cb.lease(q->arg, err, &(struct reg_lease){q->task.target_key, q->number, q->since_ms});
        break;
    case REQ_FACTS:
        q->cb.facts(q->arg, err, q->facts, q->n_facts);
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
static void deliver(struct regq *r)
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
static void mute(struct regq *r, const void *via, const void *arg, bool any_arg)
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

void regq_set_sick(struct regq *r, const struct err *err)
{
    if (err->code && strcmp(err->text, r->sick.text) != 0)
        log_warn("registry", "database does not work", KS("err", err->text));
    else if (!err->code && r->sick.code)
        log_info("registry", "database works", KS("database", r->name));
    r->sick = *err;
}

/* A create whose outcome nobody knows is told as a failure: then it must not come to life later. */
static void undo(struct regq *r, const struct req *q)
{
    struct req *u;

    if (q->kind != REQ_CREATE || !q->tries)
        return;
    u = req_new(REQ_UNDO_CREATE);
    u->task.id = xstrdup(q->task.id);
    memcpy(u->nonce, q->nonce, sizeof(u->nonce));
    TAILQ_INSERT_TAIL(&r->waiting, u, next);
}

/* Ends the API operations whose time is over; returns the ms until the next one's is, at most
 * limit_ms. */
static uint64_t expire(struct regq *r, uint64_t limit_ms)
{
    uint64_t now = clock_mono_ms();
    struct req *q, *next;

    for (q = TAILQ_FIRST(&r->waiting); q; q = next) {
        next = TAILQ_NEXT(q, next);
        if (q->deadline_ms && q->deadline_ms <= now) {
            TAILQ_REMOVE(&r->waiting, q, next);
            if (!err_copy(&q->err, &r->sick))
                err_set(&q->err, ERR_TIMEOUT, ERRC_RETRY, "the registry did not answer in time");
            undo(r, q);
            TAILQ_INSERT_TAIL(&r->finished, q, next);
        } else if (q->deadline_ms && q->deadline_ms - now < limit_ms) {
            limit_ms = q->deadline_ms - now;
        }
    }
    return limit_ms;
}

/* The next group: what waits, as far as the database takes it at once. */
static void take(struct regq *r, struct group *g)
{
    size_t writes = 0, max = r->alone ? 1 : r->max_writes;
    bool reads = false;
    struct req *q;

    while ((q = TAILQ_FIRST(&r->waiting))) {
        bool write = req_writes(q);

        if (max && write && (reads || writes == max))
            break;
        TAILQ_REMOVE(&r->waiting, q, next);
        TAILQ_INSERT_TAIL(&g->reqs, q, next);
        reads |= !write;
        writes += write;
    }
    if (r->alone)
        r->alone -= writes;
    r->urgent = !TAILQ_EMPTY(&r->waiting);
}

/* What was not used in the last while may be used at once: only who commits all the time is slowed down. */
static void keep_pace(struct regq *r)
{
    uint64_t now = clock_mono_ms();

    if (r->due_ms + BURST_MS < now)
        r->due_ms = now - BURST_MS;
    else if (r->due_ms > now) /* somebody waited for an answer */
        r->due_ms = now;
    r->due_ms += r->pace_ms;
}

static void submit(struct regq *r, unsigned delay_ms)
{
    struct group *g;

    if (r->group || TAILQ_EMPTY(&r->waiting))
        return;
    g = xcalloc(1, sizeof(*g));
    g->q = r;
    g->delay_ms = delay_ms;
    TAILQ_INIT(&g->reqs);
    take(r, g);
    r->group = g;
    keep_pace(r);
    timer_cancel(&r->pace);
    r->backend->start(r, g);
}

static void on_retry(void *arg)
{
    submit(arg, 0);
}

static void on_kick(void *arg)
{
    struct regq *r = arg;

    r->kicked = false;
    if (!r->closed)
        submit(r, 0);
}

/* Not at once: calls of one turn of the loop make one group; and those of some ms, when there are very many. */
static void kick(struct regq *r)
{
    uint64_t now = clock_mono_ms();

    if (r->kicked || r->group || TAILQ_EMPTY(&r->waiting) || timer_armed(&r->retry))
        return;
    if (!r->urgent && now < r->due_ms) {
        if (!timer_armed(&r->pace))
            timer_set(&r->pace, r->due_ms - now);
        return;
    }
    r->kicked = true;
    loop_defer(r->loop, on_kick, r);
}

void regq_wake(struct regq *r)
{
    if (!r->closed && timer_armed(&r->retry))
        timer_set(&r->retry, 0);
}

static void on_closing_group_done(struct regq *r, bool ok)
{
    free_list(&r->finished);
    if (!ok && clock_mono_ms() >= r->close_deadline_ms)
        regq_give_up(r);
    submit(r, ok ? 0 : CLOSE_RETRY_MS);
}

void regq_give_up(struct regq *r)
{
    size_t writes = free_list(&r->waiting);

    if (r->group)
        writes += free_list(&r->group->reqs);
    xfree(&r->group);
    if (writes)
        log_error("registry", "closed without its last writes", KS("err", r->sick.text), KU("writes", writes));
}

/* Back to the head of the queue. */
static void put_back(struct regq *r, struct group *g)
{
    TAILQ_CONCAT(&g->reqs, &r->waiting, next);
    TAILQ_CONCAT(&r->waiting, &g->reqs, next);
    r->urgent = true;
}

void regq_group_done(struct group *g)
{
    struct regq *r = g->q;
    bool ok = g->ok;

    r->group = NULL;
    regq_set_sick(r, &g->sick);
    if (ok) {
        r->n_groups++;
        TAILQ_CONCAT(&r->finished, &g->reqs, next);
        backoff_reset(&r->backoff);
    } else {
        put_back(r, g);
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

void regq_enqueue(struct regq *r, struct req *q, const void *via, void *arg)
{
    assert(!r->closed);
    q->via = via;
    q->arg = arg;
    r->urgent |= q->kind != REQ_COMMIT;
    TAILQ_INSERT_TAIL(&r->waiting, q, next);
    kick(r);
}

void regq_enqueue_api(struct regq *r, struct req *q, void *arg)
{
    q->deadline_ms = clock_mono_ms() + REGQ_API_MS;
    regq_enqueue(r, q, r, arg);
}

/* ---- registry operations */

void regq_list(struct registry *base, const char *task_id, reg_tasks_fn done, void *arg)
{
    struct req *q = req_new(REQ_LIST);

    q->task.id = xstrdup(task_id);
    q->cb.tasks = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

struct req *regq_guarded(enum req_kind kind, const char *owner, uint64_t epoch)
{
    struct req *q = req_new(kind);

    q->task.owner = dup_or_empty(owner);
    q->task.epoch = epoch;
    return q;
}

void regq_nonce(char ret[33])
{
    uint8_t raw[16];

    if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
        abort();
    hex_encode(raw, sizeof(raw), ret);
}

void regq_create(struct registry *base, const struct reg_task *t, const char *owner,
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
    regq_nonce(q->nonce);
    q->cb.done = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

void regq_set_state(struct registry *base, const char *id, enum task_state state,
                             const char *reason, const char *owner, uint64_t epoch,
                             reg_done_fn done, void *arg)
{
    struct req *q = regq_guarded(REQ_SET_STATE, owner, epoch);

    q->task.id = xstrdup(id);
    q->task.state = state;
    q->task.reason = dup_or_empty(reason);
    q->cb.done = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

void regq_remove(struct registry *base, const char *id, const char *owner, uint64_t epoch,
                          reg_done_fn done, void *arg)
{
    struct req *q = regq_guarded(REQ_REMOVE, owner, epoch);

    q->task.id = xstrdup(id);
    q->cb.done = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

void regq_claim(struct registry *base, const char *target_key, const char *owner,
                         uint64_t lease_ms, reg_lease_fn done, void *arg)
{
    struct req *q = regq_guarded(REQ_CLAIM, owner, 0);

    q->lease_ms = lease_ms;
    q->task.target_key = xstrdup(target_key);
    q->cb.lease = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

void regq_release(struct registry *base, const char *target_key, const char *owner,
                           uint64_t epoch, reg_done_fn done, void *arg)
{
    struct req *q = regq_guarded(REQ_RELEASE, owner, epoch);

    q->task.target_key = xstrdup(target_key);
    q->cb.done = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

const char *regq_trouble(struct registry *base)
{
    struct regq *r = regq_of(base);

    return r->sick.code ? r->sick.text : NULL;
}

void regq_cancel(struct registry *base, void *arg)
{
    struct regq *r = regq_of(base);

    mute(r, r, arg, false);
}

void regq_close(struct registry *base)
{
    struct regq *r = regq_of(base);
    struct regq_store *s;

    if (r->closed)
        return;
    r->closed = true;
    r->close_deadline_ms = clock_mono_ms() + REGQ_CLOSE_MS;
    mute(r, NULL, NULL, true);
    LIST_FOREACH (s, &r->stores, link)
        s->reg = NULL;
    timer_release(&r->retry);
    timer_release(&r->pace);
    submit(r, 0);
    r->backend->finish(r);
    free_list(&r->finished);
    loop_defer(r->loop, r->backend->free, r);
}

/* ---- administration */

void registry_facts(struct registry *base, reg_facts_fn done, void *arg)
{
    struct req *q = req_new(REQ_FACTS);

    q->cb.facts = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

void registry_put_facts(struct registry *base, const struct reg_fact *facts, size_t n, reg_done_fn done, void *arg)
{
    struct req *q = req_new(REQ_PUT_FACTS);

    for (size_t i = 0; i < n; i++) {
        struct change *c = xcalloc(1, sizeof(*c));

        c->kind = CHANGE_TICK;
        c->target = xstrdup(facts[i].target);
        c->ckpt.dst_channel = xstrdup(facts[i].channel);
        c->tt = facts[i].number;
        STAILQ_INSERT_TAIL(&q->changes, c, next);
    }
    q->cb.done = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

void registry_seal_spec(struct registry *base, const char *task_id, const char *spec_json, reg_done_fn done, void *arg)
{
    struct req *q = req_new(REQ_PUT_SPEC);

    q->task.id = xstrdup(task_id);
    q->task.spec_json = xstrdup(spec_json);
    q->cb.done = done;
    regq_enqueue_api(regq_of(base), q, arg);
}

/* ---- the store of one task */

static void store_load(struct store *base, const char *task_id, store_load_fn done, void *arg)
{
    struct regq_store *s = store_of(base);
    struct req *q = req_new(REQ_LOAD);

    q->task.id = xstrdup(task_id);
    q->cb.load = done;
    regq_enqueue(s->reg, q, s, arg);
}

static struct store_batch *store_begin(struct store *base, const char *task_id)
{
    struct regq_store *s = store_of(base);
    struct store_batch *b = xcalloc(1, sizeof(*b));

    assert(strcmp(task_id, s->task_id) == 0); /* the guard would look at another task */
    b->store = s;
    b->req = regq_guarded(REQ_COMMIT, s->owner, s->epoch);
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

static void add_tick(struct store_batch *b, enum change_kind kind, const char *target, const char *dst_channel,
                     uint64_t tt)
{
    struct change *c = add_change(b, kind);

    c->target = xstrdup(target);
    c->ckpt.dst_channel = xstrdup(dst_channel);
    c->tt = tt;
}

static void store_put_tick(struct store_batch *b, const char *target, const char *dst_channel, uint64_t tt)
{
    add_tick(b, CHANGE_TICK, target, dst_channel, tt);
}

static void store_set_tick(struct store_batch *b, const char *target, const char *dst_channel, uint64_t tt)
{
    add_tick(b, CHANGE_SET_TICK, target, dst_channel, tt);
}

static void store_put_verify(struct store_batch *b, const char *json)
{
    add_change(b, CHANGE_VERIFY)->target = dup_or_empty(json);
}

static void store_commit(struct store_batch *b, store_done_fn done, void *arg)
{
    b->req->cb.done = done;
    regq_enqueue(b->store->reg, b->req, b->store, arg);
    free(b);
}

static void store_load_tick(struct store *base, const char *target, const char *dst_channel,
                            store_tick_fn done, void *arg)
{
    struct regq_store *s = store_of(base);
    struct req *q = req_new(REQ_LOAD_TICK);

    q->target = xstrdup(target);
    q->channel = xstrdup(dst_channel);
    q->cb.tick = done;
    regq_enqueue(s->reg, q, s, arg);
}

static void store_cancel(struct store *base, void *arg)
{
    struct regq_store *s = store_of(base);

    if (s->reg)
        mute(s->reg, s, arg, false);
}

static const struct store_ops regq_store_ops = {
    .load = store_load,
    .begin = store_begin,
    .put_ckpt = store_put_ckpt,
    .del_ckpt = store_del_ckpt,
    .put_collection = store_put_collection,
    .del_collection = store_del_collection,
    .put_tick = store_put_tick,
    .set_tick = store_set_tick,
    .put_verify = store_put_verify,
    .commit = store_commit,
    .load_tick = store_load_tick,
    .cancel = store_cancel,
};

struct store *regq_store_open(struct registry *base, const char *task_id,
                                       const char *owner, uint64_t epoch)
{
    struct regq *r = regq_of(base);
    struct regq_store *s = xcalloc(1, sizeof(*s));

    s->base.ops = &regq_store_ops;
    s->reg = r;
    s->task_id = xstrdup(task_id);
    s->owner = dup_or_empty(owner);
    s->epoch = epoch;
    LIST_INSERT_HEAD(&r->stores, s, link);
    return &s->base;
}

void regq_store_free(struct store *base)
{
    struct regq_store *s;

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

void regq_init(struct regq *r, struct loop *l, const struct registry_ops *ops, const struct regq_backend *backend,
               const char *name)
{
    r->base.ops = ops;
    r->backend = backend;
    r->loop = l;
    r->name = name;
    r->backoff = (struct backoff)BACKOFF_INIT(RETRY_MIN_MS, RETRY_MAX_MS);
    LIST_INIT(&r->stores);
    TAILQ_INIT(&r->waiting);
    TAILQ_INIT(&r->finished);
    timer_init(&r->retry, l, LOOP_PRIO_NORMAL, on_retry, r);
    timer_init(&r->pace, l, LOOP_PRIO_NORMAL, on_retry, r);
}
