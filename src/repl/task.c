/*
 * task.c - the life of one replication task: load, join (join.c), run, stop.
 */
#include "repl/task.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "repl/priv.h"

#define CKPT_MS 1000
#define STOP_STORE_MS 1000 /* so long the last checkpoints may take */

static void on_start_timer(void *arg);

void ckpt_release(struct repl_ckpt *c)
{
    free(c->src_channel);
    free(c->dst_channel);
    free(c->target_pos);
}

static void ckpt_dup(struct repl_ckpt *dst, const struct repl_ckpt *src)
{
    *dst = *src;
    dst->src_channel = xstrdup(src->src_channel);
    dst->dst_channel = xstrdup(src->dst_channel);
    dst->target_pos = xstrdup(src->target_pos);
}

bool task_take_ckpt(struct repl_task *t, const char *src, const char *dst, struct repl_ckpt *ret)
{
    for (size_t i = 0; i < t->n_loaded; i++) {
        if (strcmp(t->loaded[i].src_channel, src) != 0 || strcmp(t->loaded[i].dst_channel, dst) != 0)
            continue;
        *ret = t->loaded[i];
        t->loaded[i] = t->loaded[--t->n_loaded];
        return true;
    }
    return false;
}

void task_count_call(struct repl_task *t, const char *api_type)
{
    metric_get(METRIC_COUNTER, "milvus_cdc_api_execute_total", "calls to the target that succeeded",
               METRIC_LABELS({"task_id", t->o.id}, {"api_type", api_type}))
        ->value++;
}

void task_count_request(struct repl_task *t, uint64_t number, const struct request *r)
{
    static const char *const calls[] = {[SINK_INSERT] = "Insert", [SINK_UPSERT] = "Upsert", [SINK_DELETE] = "Delete"};

    if (t->counted == number)
        return;
    t->counted = number;
    if (t->o.hub->portable) {
        if (r->coll)
            task_count_call(t, calls[r->kind]);
        return;
    }
    if (!t->m_requests)
        t->m_requests = metric_get(METRIC_COUNTER, "milvus_cdc_api_execute_total", "calls to the target that succeeded",
                                   METRIC_LABELS({"task_id", t->o.id}, {"api_type", "ReplicateMessage"}));
    t->m_requests->value++;
}

/* ---- memory --------------------------------------------------------------------------------------- */

void task_hold(struct repl_task *t, size_t bytes)
{
    t->held += bytes;
}

void task_release(struct repl_task *t, size_t bytes)
{
    t->held -= bytes;
}

bool task_over_budget(const struct repl_task *t)
{
    return t->held >= t->o.task_bytes || t->o.budget->used >= t->o.budget->limit;
}

/* ---- collections ------------------------------------------------------------------------------------ */

/* Where id is or belongs. New collections have greater ids, so mostly that is the end. */
static size_t ignored_place(const struct repl_task *t, int64_t id)
{
    size_t lo = 0, hi = t->n_ignored;

    if (hi > 0 && t->ignored[hi - 1] < id)
        return hi;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (t->ignored[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

bool task_ignores(const struct repl_task *t, int64_t id)
{
    size_t at = ignored_place(t, id);

    return at < t->n_ignored && t->ignored[at] == id;
}

void task_ignore(struct repl_task *t, int64_t id)
{
    size_t at = ignored_place(t, id);

    if (at < t->n_ignored && t->ignored[at] == id)
        return;
    if (t->n_ignored == t->cap_ignored) {
        t->cap_ignored += 32 + t->cap_ignored / 8; /* little to spare: there is one for each task */
        t->ignored = xrealloc(t->ignored, t->cap_ignored * sizeof(*t->ignored));
    }
    memmove(t->ignored + at + 1, t->ignored + at, (t->n_ignored - at) * sizeof(*t->ignored));
    t->ignored[at] = id;
    t->n_ignored++;
}

static bool same_target(const struct coll *a, const struct coll *b)
{
    return strcmp(a->dst_name, b->dst_name) == 0 && strcmp(a->dst_db, b->dst_db) == 0;
}

struct coll *task_name_taken(struct repl_task *t, const struct coll *c)
{
    struct coll *o;

    for (o = t->colls; o; o = o->hh.next)
        if (o->id < c->id && same_target(o, c))
            return o;
    return NULL;
}

struct coll *hub_name_taken(const struct repl_hub *h, const struct coll *c)
{
    struct repl_task *t;
    struct coll *o;

    LIST_FOREACH(t, &h->tasks, of_hub)
        for (o = t == c->task ? NULL : t->colls; o; o = o->hh.next)
            if (o->dst_id && same_target(o, c))
                return o;
    return NULL;
}

/* A kick may remove collections, its own and others: go by ids. */
static void kick_colls(struct repl_task *t, bool (*which)(const struct coll *c))
{
    size_t n = 0, cap = HASH_COUNT(t->colls);
    int64_t *ids = xcalloc(cap ? cap : 1, sizeof(*ids));
    struct coll *c;

    for (c = t->colls; c; c = c->hh.next)
        if (which(c))
            ids[n++] = c->id;
    for (size_t i = 0; i < n; i++) {
        HASH_FIND(hh, t->colls, &ids[i], sizeof(ids[i]), c);
        if (c)
            coll_kick(c);
    }
    free(ids);
}

static bool is_mapping(const struct coll *c)
{
    return c->state == COLL_MAPPING || c->state == COLL_COPYING || c->rename_name;
}

static bool has_drop(const struct coll *c)
{
    const struct part *p;

    if (c->state == COLL_DROPPING || c->forced || c->rename_name)
        return true;
    COLL_EACH_PART(c, k, p)
        if (p->dropping)
            return true;
    return false;
}

static void on_kick_timer(void *arg)
{
    struct repl_task *t = arg;

    kick_colls(t, is_mapping);
    if (t->drops_open)
        kick_colls(t, has_drop);
    for (struct stream *s = t->streams; s; s = s->hh.next)
        stream_kick(s);
}

void task_kick_waiting(struct repl_task *t)
{
    timer_set(&t->kick_timer, 0);
}

static void on_new_stored(void *arg, const struct err *err)
{
    struct coll *c = arg;

    c->storing = false;
    if (c->state == COLL_NEW && err)
        task_fatal(c->task, err);
    else if (c->state == COLL_NEW)
        coll_stored(c);
    coll_unref(c);
}

static void coll_store_new(struct coll *c)
{
    struct store *s = c->task->o.store;
    struct store_batch *b = s->ops->begin(s, c->task->o.id);

    coll_put(c, b);
    coll_ref(c);
    c->storing = true;
    s->ops->commit(b, on_new_stored, c);
}

/* New since the task began: from its first row. */
static void join_new(struct repl_task *t, const struct src_collection *sc, const struct repl_match *m)
{
    struct coll_join *joins = xcalloc(sc->n_shards ? sc->n_shards : 1, sizeof(*joins));
    bool ok = true;

    for (size_t i = 0; i < sc->n_shards && ok; i++)
        ok = join_at_start(t, sc, i, &joins[i]) == 0;
    if (ok) {
        log_info("repl", "a new collection joins the task", KS("task", t->o.id), KS("db", sc->db_name),
                 KS("collection", sc->name), KI("id", sc->id));
        coll_store_new(coll_new(t, sc, m, joins));
    }
    free(joins);
}

void task_consider(struct repl_task *t, const struct src_collection *sc)
{
    struct coll *c;
    struct repl_match m;

    HASH_FIND(hh, t->colls, &sc->id, sizeof(sc->id), c);
    if (c) {
        coll_update(c, sc);
        return;
    }
    if (t->state != RUN_RUNNING || t->fatal || sc->state == SRC_CREATING || task_ignores(t, sc->id))
        return;
    if (sc->state == SRC_DROPPING || !t->o.selection.match(t->o.selection.ctx, sc->db_name, sc->name, &m))
        task_ignore(t, sc->id);
    else
        join_new(t, sc, &m);
}

static void on_synced(void *arg, const struct err *err)
{
    struct repl_task *t = arg;

    t->syncing = false;
    if (err) {
        set_text(&t->catalog_trouble, err->text);
        timer_set(&t->start_timer, backoff_next_ms(&t->start_backoff));
        return;
    }
    t->sync_round++;
    t->start_backoff.cur_ms = 0;
    set_text(&t->catalog_trouble, NULL);
    if (t->state == RUN_JOINING) {
        task_start_step(t);
        return;
    }
    on_kick_timer(t);
    ops_kick(t->ops);
}

void task_sync(struct repl_task *t)
{
    if (t->syncing || timer_armed(&t->start_timer))
        return;
    t->syncing = true;
    t->o.catalog->ops->sync(t->o.catalog, on_synced, t);
}

/* ---- catalog events --------------------------------------------------------------------------------- */

static void on_catalog_ready(void *arg)
{
    struct repl_task *t = arg;
    const struct src_collection *sc;
    int64_t id = INT64_MIN;

    t->catalog_ready = true;
    if (t->state != RUN_RUNNING) {
        task_start_step(t);
        return;
    }
    while ((sc = t->o.catalog->ops->next(t->o.catalog, id))) {
        id = sc->id;
        task_consider(t, sc);
    }
}

static void on_catalog_collection(void *arg, const struct src_collection *sc)
{
    task_consider(arg, sc);
}

static void on_catalog_database(void *arg, int64_t db_id, const char *name, bool dropped)
{
    (void)db_id;
    dbs_on_database(arg, name, dropped);
}

static void on_catalog_trouble(void *arg, const struct err *err)
{
    struct repl_task *t = arg;

    set_text(&t->catalog_trouble, err ? err->text : NULL);
}

/* ---- first start ---------------------------------------------------------------------------------------- */

/* A short span has to be renewed more often. */
static uint64_t ckpt_ms(const struct repl_task *t)
{
    uint64_t ms = t->o.span_ms / 6;

    return ms > 0 && ms < CKPT_MS ? ms : CKPT_MS;
}

static void run(struct repl_task *t)
{
    struct coll *c;

    t->state = RUN_RUNNING;
    timer_set(&t->ckpt_timer, ckpt_ms(t));
    for (c = t->colls; c; c = c->hh.next)
        if (c->state == COLL_NEW)
            c->state = COLL_MAPPING;
    ops_open(t->ops);
    dbs_kick(t);
    on_catalog_ready(t); /* what appeared meanwhile */
    task_kick_waiting(t);
    verify_started(t);
}

static void on_joined(void *arg, const struct err *err)
{
    struct repl_task *t = arg;

    if (err) {
        task_fatal(t, err);
        return;
    }
    join_free(t);
    kept_free(t);
    if (t->started)
        t->started(t->started_arg, NULL);
    run(t);
}

/* Everything that the first start decided, in one commit. */
static void store_join(struct repl_task *t)
{
    struct store *s = t->o.store;
    struct store_batch *b;
    struct repl_ckpt ck;
    struct coll *c;

    join_all(t);
    if (t->fatal)
        return;
    b = s->ops->begin(s, t->o.id);
    for (c = t->colls; c; c = c->hh.next)
        coll_put(c, b);
    ops_fill_ckpt(t->ops, &ck);
    s->ops->put_ckpt(b, &ck);
    log_info("repl", "task joins", KS("task", t->o.id), KU("collections", HASH_COUNT(t->colls)));
    t->joined = true;
    s->ops->commit(b, on_joined, t);
}

/* ---- start -------------------------------------------------------------------------------------------- */

static void take_records(struct repl_task *t, const struct repl_ckpt *ckpts, size_t n_ckpts,
                         const struct repl_collection_rec *colls, size_t n_colls)
{
    struct err err;
    struct repl_ckpt ops_ck;

    t->loaded = xcalloc(n_ckpts ? n_ckpts : 1, sizeof(*t->loaded));
    for (size_t i = 0; i < n_ckpts; i++)
        ckpt_dup(&t->loaded[t->n_loaded++], &ckpts[i]);
    t->first_start = !task_take_ckpt(t, t->o.replicate_chan, "", &ops_ck);
    if (!t->first_start) {
        ops_set_start(t->ops, &ops_ck);
        ckpt_release(&ops_ck);
    }
    for (size_t i = 0; i < n_colls; i++)
        if (!coll_from_record(t, &colls[i], &err)) {
            task_fatal(t, &err);
            return;
        }
}

static void on_loaded(void *arg, const struct err *err, const struct repl_ckpt *ckpts, size_t n_ckpts,
                      const struct repl_collection_rec *colls, size_t n_colls)
{
    struct repl_task *t = arg;

    if (t->state != RUN_LOADING)
        return; /* stopped meanwhile */
    if (err) {
        set_text(&t->start_trouble, err->text);
        timer_set(&t->start_timer, backoff_next_ms(&t->start_backoff));
        return;
    }
    take_records(t, ckpts, n_ckpts, colls, n_colls);
    t->loaded_ok = true;
    t->state = RUN_JOINING;
    task_start_step(t);
}

void task_start_step(struct repl_task *t)
{
    if (t->fatal || !t->loaded_ok || !t->catalog_ready || t->state != RUN_JOINING || t->joined)
        return;
    if (!t->first_start) {
        if (t->started)
            t->started(t->started_arg, NULL);
        run(t);
        return;
    }
    if (!t->sync_round) {
        task_sync(t); /* the catalog must hold what existed when the user asked */
        return;
    }
    if (!join_ready(t))
        return;
    set_text(&t->start_trouble, NULL);
    store_join(t);
}

static void on_start_timer(void *arg)
{
    struct repl_task *t = arg;

    if (t->state == RUN_LOADING)
        t->o.store->ops->load(t->o.store, t->o.id, on_loaded, t);
    else if (t->state == RUN_JOINING)
        task_start_step(t);
    else
        on_kick_timer(t); /* a stalled stream asks again */
}

void repl_task_start(struct repl_task *t, store_done_fn started, void *arg)
{
    t->started = started;
    t->started_arg = arg;
    t->state = RUN_LOADING;
    t->catalog_sub = t->o.catalog->ops->subscribe(t->o.catalog,
                                                  &(struct catalog_cbs){.on_ready = on_catalog_ready,
                                                                        .on_collection = on_catalog_collection,
                                                                        .on_database = on_catalog_database,
                                                                        .on_trouble = on_catalog_trouble},
                                                  t);
    t->o.store->ops->load(t->o.store, t->o.id, on_loaded, t);
}

/* ---- checkpoints --------------------------------------------------------------------------------------- */

/* Puts every link whose progress is not stored yet into one commit. False: nothing to store. */
static bool store_dirty(struct repl_task *t, store_done_fn done)
{
    struct store *s = t->o.store;
    struct store_batch *b = NULL;
    struct repl_ckpt ck;
    struct link *l;

    for (struct stream *st = t->streams; st; st = st->hh.next)
        LIST_FOREACH(l, &st->links, of_stream) {
            if (!l->dirty && !l->ticked)
                continue;
            if (!b)
                b = s->ops->begin(s, t->o.id);
            span_store(l, b);
            link_fill_ckpt(l, &ck);
            s->ops->put_ckpt(b, &ck);
            l->dirty = l->ticked = false;
        }
    if (ops_dirty(t->ops)) {
        if (!b)
            b = s->ops->begin(s, t->o.id);
        ops_fill_ckpt(t->ops, &ck);
        s->ops->put_ckpt(b, &ck);
        ops_clear_dirty(t->ops);
    }
    if (b)
        s->ops->commit(b, done, t);
    return b != NULL;
}

/* Where the queue's retention follows us (Pulsar): only what is durable here may go there. */
static void on_stored(void *arg, const struct err *err)
{
    struct repl_task *t = arg;

    t->ckpt_storing = false;
    if (err) {
        task_fatal(t, err);
        return;
    }
    span_durable(t);
    if (!t->o.wal->ops->retain || t->state != RUN_RUNNING)
        return;
    for (struct stream *s = t->streams; s; s = s->hh.next)
        stream_retain(s);
    ops_retain(t->ops);
}

static void store_checkpoint(struct repl_task *t)
{
    if (t->ckpt_storing)
        return;
    for (struct stream *s = t->streams; s && t->o.wal->ops->retain; s = s->hh.next)
        stream_note_keep(s); /* all that is known is stored now */
    t->ckpt_storing = store_dirty(t, on_stored);
}

static void on_ckpt_timer(void *arg)
{
    struct repl_task *t = arg;

    store_checkpoint(t);
    if (t->drops_open)
        kick_colls(t, has_drop);
    timer_set(&t->ckpt_timer, ckpt_ms(t) - clock_mono_ms() % ckpt_ms(t)); /* all tasks together: one commit */
}

/* ---- stop ------------------------------------------------------------------------------------------------ */

static void stop_reading(struct repl_task *t)
{
    struct link *l;

    for (struct stream *s = t->streams; s; s = s->hh.next) {
        s->state = STREAM_CLOSED;
        stream_close_reader(s);
        timer_cancel(&s->reset_timer);
        LIST_FOREACH(l, &s->links, of_stream) {
            link_reset(l);
            tchan_discard_next_with(l->tchan, l);
            tchan_drop_waiting(l->tchan, l);
        }
    }
    ops_close_reader(t->ops);
}

static bool in_flight(const struct repl_task *t)
{
    const struct link *l;

    for (const struct stream *s = t->streams; s; s = s->hh.next)
        LIST_FOREACH(l, &s->links, of_stream)
            if (tchan_flying_with(l->tchan, l))
                return true;
    return ops_busy(t->ops);
}

static void stop_finished(struct repl_task *t)
{
    void (*stopped)(void *) = t->stopped;

    t->state = RUN_STOPPED;
    timer_cancel(&t->stop_timer);
    t->stopped = NULL;
    if (stopped)
        stopped(t->stopped_arg);
}

static void on_stop_stored(void *arg, const struct err *err)
{
    struct repl_task *t = arg;

    if (err)
        log_error("repl", "the last checkpoints were not stored", KS("task", t->o.id), KS("error", err->text));
    if (t->state == RUN_STOPPING)
        stop_finished(t);
}

static void stop_store(struct repl_task *t)
{
    struct link *l;

    t->stop_stored = true;
    for (struct stream *s = t->streams; s; s = s->hh.next)
        LIST_FOREACH(l, &s->links, of_stream)
            link_restart(l);
    timer_set(&t->stop_timer, store_dirty(t, on_stop_stored) ? STOP_STORE_MS : 0);
}

static void on_stop_timer(void *arg)
{
    struct repl_task *t = arg;

    if (t->state != RUN_STOPPING)
        return;
    if (!t->stop_stored) {
        log_warn("repl", "requests did not end in time; they are in doubt", KS("task", t->o.id));
        stop_store(t);
    } else {
        stop_finished(t); /* a registry that is locked or full: what is not stored is repeated with care */
    }
}

void task_on_progress(struct repl_task *t)
{
    if (t->state == RUN_STOPPING) {
        if (!t->stop_stored && !in_flight(t))
            stop_store(t);
        return;
    }
    ops_kick(t->ops);
    if (t->drops_open)
        kick_colls(t, has_drop);
}

void repl_task_stop(struct repl_task *t, unsigned limit_ms, void (*done)(void *arg), void *arg)
{
    bool ran = t->state == RUN_RUNNING;

    verify_interrupt(t);
    t->stopped = done;
    t->stopped_arg = arg;
    t->state = RUN_STOPPING;
    timer_cancel(&t->ckpt_timer);
    timer_cancel(&t->start_timer);
    timer_cancel(&t->kick_timer);
    stop_reading(t);
    if (!ran) {
        t->stop_stored = true;
        timer_set(&t->stop_timer, 0);
    } else if (in_flight(t)) {
        timer_set(&t->stop_timer, limit_ms);
    } else {
        stop_store(t);
    }
}

static void on_fatal_timer(void *arg)
{
    struct repl_task *t = arg;

    t->o.on_fatal(t->o.arg, &t->fatal_err);
}

void task_fatal(struct repl_task *t, const struct err *err)
{
    if (t->fatal || t->state == RUN_STOPPING || t->state == RUN_STOPPED)
        return;
    t->fatal = true;
    t->fatal_err = *err;
    log_error("repl", "task stops", KS("task", t->o.id), KS("class", err_class_name(err->cls)), KS("error", err->text));
    timer_set(&t->fatal_timer, 0);
}

/* ---- life ------------------------------------------------------------------------------------------------- */

struct repl_task *repl_task_new(const struct repl_task_options *o)
{
    struct repl_task *t = xcalloc(1, sizeof(*t));

    t->o = *o;
    t->o.id = xstrdup(o->id);
    t->o.replicate_chan = xstrdup(o->replicate_chan);
    t->o.target_version = xstrdup(o->target_version);
    t->o.hub = repl_hub_ref(o->hub);
    t->loop = o->loop;
    t->made_ms = clock_mono_ms();
    t->start_backoff = (struct backoff)BACKOFF_INIT(100, 5000);
    timer_init(&t->ckpt_timer, t->loop, LOOP_PRIO_NORMAL, on_ckpt_timer, t);
    timer_init(&t->start_timer, t->loop, LOOP_PRIO_NORMAL, on_start_timer, t);
    timer_init(&t->stop_timer, t->loop, LOOP_PRIO_NORMAL, on_stop_timer, t);
    timer_init(&t->kick_timer, t->loop, LOOP_PRIO_NORMAL, on_kick_timer, t);
    timer_init(&t->fatal_timer, t->loop, LOOP_PRIO_NORMAL, on_fatal_timer, t);
    t->ops = ops_new(t);
    LIST_INSERT_HEAD(&t->o.hub->tasks, t, of_hub);
    return t;
}

static void free_timers(struct repl_task *t)
{
    timer_release(&t->ckpt_timer);
    timer_release(&t->start_timer);
    timer_release(&t->stop_timer);
    timer_release(&t->kick_timer);
    timer_release(&t->fatal_timer);
}

void repl_task_free(struct repl_task *t)
{
    if (!t)
        return;
    t->state = RUN_STOPPED;
    verify_free(t->verify);
    t->verify = NULL;
    if (t->catalog_sub)
        t->o.catalog->ops->unsubscribe(t->o.catalog, t->catalog_sub);
    t->o.catalog->ops->sync_cancel(t->o.catalog, t);
    join_free(t);
    kept_free(t);
    for (struct stream *s = t->streams; s; s = s->hh.next) {
        s->state = STREAM_CLOSED;
        stream_close_reader(s);
    }
    while (t->colls)
        coll_detach(t->colls);
    while (t->streams)
        stream_free(t->streams);
    ops_free(t->ops);
    dbs_free(t);
    t->o.store->ops->cancel(t->o.store, t);
    free_timers(t);
    free(t->ignored);
    while (t->n_loaded)
        ckpt_release(&t->loaded[--t->n_loaded]);
    free(t->loaded);
    free(t->catalog_trouble);
    free(t->start_trouble);
    LIST_REMOVE(t, of_hub);
    repl_hub_unref(t->o.hub);
    free((char *)t->o.id);
    free((char *)t->o.replicate_chan);
    free((char *)t->o.target_version);
    free(t);
}
