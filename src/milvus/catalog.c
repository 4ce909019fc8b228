#include "milvus/catalog.h"

#include "catalog_priv.h"

#include "base/backoff.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "milvus/etcd.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/queue.h>

enum {
    PAGE_KEYS = 1000,
    BACKOFF_MIN_MS = 200,
    BACKOFF_MAX_MS = 10000,
    DEFAULT_DB_ID = 1,
};

struct sub {
    TAILQ_ENTRY(sub) next;
    struct catalog_impl *c;
    struct catalog_cbs cbs;
    void *arg;
    bool begun;  /* gets trouble */
    bool ready;  /* was told of readiness: gets changes */
    bool closed; /* gets nothing, freed at the end of the turn */
};

enum sync_state {
    SYNC_WAITING, /* for a scan to begin */
    SYNC_RUNNING, /* served by the scan under way */
    SYNC_FINISHED, /* to be told */
};

struct sync {
    TAILQ_ENTRY(sync) next;
    enum sync_state state;
    catalog_sync_fn done;
    void *arg;
};

/* A range over all keys at one revision, in pages. */
enum scan_kind {
    SCAN_NONE,
    SCAN_SNAPSHOT, /* everything; the watch starts behind it */
    SCAN_SYNC,     /* only what is newer than known; the watch is running */
};

struct scan {
    enum scan_kind kind;
    struct etcd_call *call; /* NULL while kind is not NONE: waits for the retry timer */
    int64_t revision;       /* of the first page, 0 before */
    int64_t since;
    bool applied; /* pages are in the model: nothing may be published before the last one */
};

enum trouble_source { TROUBLE_SCAN = 1, TROUBLE_WATCH = 2 };

struct catalog_impl {
    struct catalog base;
    struct loop *loop;
    struct etcd_client *etcd;
    struct cat_model model;
    bool ready, closed;
    int64_t revision; /* everything up to here is applied */
    struct etcd_watch *watch;
    struct scan scan;
    struct timer retry;     /* repeats a failed scan */
    struct timer sync_kick; /* begins a scan for those who wait: one for all of a turn */
    struct backoff backoff;
    unsigned trouble_from; /* bits of enum trouble_source */
    struct err trouble;
    TAILQ_HEAD(sub_list, sub) subs;
    TAILQ_HEAD(, sync) syncs;
};

static void scan_start(struct catalog_impl *c, enum scan_kind kind);
static void scan_page(struct catalog_impl *c, const char *after);
static void watch_start(struct catalog_impl *c);

static struct catalog_impl *impl(const struct catalog *c)
{
    return (struct catalog_impl *)(uintptr_t)c;
}

/* ---- telling -------------------------------------------------------------------------------- */

/* The next subscriber that may be called after s (NULL: the first).  Any callback may have closed
 * subscribers or the catalog; their memory stays until the turn ends. */
static struct sub *next_sub(struct catalog_impl *c, struct sub *s)
{
    if (c->closed)
        return NULL;
    s = s ? TAILQ_NEXT(s, next) : TAILQ_FIRST(&c->subs);
    while (s && (s->closed || !s->begun))
        s = TAILQ_NEXT(s, next);
    return s;
}

static void tell_trouble(struct catalog_impl *c, const struct err *err)
{
    struct err copy;

    if (err)
        err_copy(&copy, err);
    for (struct sub *s = NULL; (s = next_sub(c, s));)
        if (s->cbs.on_trouble)
            s->cbs.on_trouble(s->arg, err ? &copy : NULL);
}

static void set_trouble(struct catalog_impl *c, enum trouble_source from, const struct err *err)
{
    bool same = c->trouble_from && c->trouble.code == err->code;

    c->trouble_from |= from;
    c->trouble = *err;
    if (!same)
        tell_trouble(c, err);
}

static void clear_trouble(struct catalog_impl *c, enum trouble_source from)
{
    bool was = c->trouble_from != 0;

    c->trouble_from &= ~(unsigned)from;
    if (was && c->trouble_from == 0)
        tell_trouble(c, NULL);
}

static void tell_database(struct catalog_impl *c, const struct cat_db *db)
{
    int64_t id = db->id;
    bool gone = db->gone;
    char *name = xstrdup(db->name);

    for (struct sub *s = NULL; (s = next_sub(c, s));)
        if (s->ready && s->cbs.on_database)
            s->cbs.on_database(s->arg, id, name, gone);
    free(name);
}

static void tell_databases(struct catalog_impl *c, bool gone)
{
    for (size_t i = 0; i < c->model.n_dbs && !c->closed; i++) {
        struct cat_db *db = &c->model.dbs[i];

        if (!db->dirty || db->gone != gone)
            continue;
        db->dirty = false;
        if (db->name)
            tell_database(c, db);
    }
}

static void tell_collection(struct catalog_impl *c, const struct cat_collection *coll)
{
    for (struct sub *s = NULL; (s = next_sub(c, s));)
        if (s->ready && s->cbs.on_collection)
            s->cbs.on_collection(s->arg, &coll->pub);
}

/* Shows and tells what was applied, unless the rest of it is still to be read. */
static void flush(struct catalog_impl *c)
{
    struct cat_collection **changed;
    size_t n;

    if (c->scan.applied)
        return;
    n = model_publish(&c->model, &changed);
    tell_databases(c, false);
    for (size_t i = 0; i < n && !c->closed; i++)
        tell_collection(c, changed[i]);
    tell_databases(c, true);
    free(changed);
}

/* Databases cannot be asked for, so a new subscriber is told those that exist. */
static void tell_ready(struct catalog_impl *c, struct sub *s)
{
    bool first = !s->ready;

    s->ready = true;
    for (size_t i = 0; i < c->model.n_dbs && first && s->cbs.on_database; i++) {
        const struct cat_db *db = &c->model.dbs[i];

        if (!db->name || db->gone || db->id == DEFAULT_DB_ID)
            continue;
        s->cbs.on_database(s->arg, db->id, db->name, false);
        if (s->closed || c->closed)
            return;
    }
    if (s->cbs.on_ready)
        s->cbs.on_ready(s->arg);
}

/* ---- sync ----------------------------------------------------------------------------------- */

static void syncs_move(struct catalog_impl *c, enum sync_state from, enum sync_state to)
{
    struct sync *s;

    TAILQ_FOREACH (s, &c->syncs, next)
        if (s->state == from)
            s->state = to;
}

static struct sync *sync_find(struct catalog_impl *c, enum sync_state state)
{
    struct sync *s;

    TAILQ_FOREACH (s, &c->syncs, next)
        if (s->state == state)
            return s;
    return NULL;
}

/* Each callback may add, cancel or close: look again every time. */
static void syncs_tell(struct catalog_impl *c, const struct err *err)
{
    struct sync *s;

    while (!c->closed && (s = sync_find(c, SYNC_FINISHED))) {
        TAILQ_REMOVE(&c->syncs, s, next);
        s->done(s->arg, err);
        free(s);
    }
}

static void syncs_finish(struct catalog_impl *c)
{
    struct err err;

    if (model_complete(&c->model, &err) == 0)
        syncs_tell(c, NULL);
    else
        syncs_tell(c, &err);
}

static void kick_sync(struct catalog_impl *c)
{
    if (c->scan.kind == SCAN_NONE && sync_find(c, SYNC_WAITING))
        timer_set(&c->sync_kick, 0);
}

static void on_sync_kick(void *arg)
{
    struct catalog_impl *c = arg;

    if (c->scan.kind == SCAN_NONE && sync_find(c, SYNC_WAITING))
        scan_start(c, SCAN_SYNC);
}

/* ---- scan ----------------------------------------------------------------------------------- */

/* The end of every scan is the same for who waits; only a snapshot changes the watch. */
static void scan_done(struct catalog_impl *c)
{
    bool snapshot = c->scan.kind == SCAN_SNAPSHOT;

    if (snapshot)
        model_snapshot_end(&c->model);
    if (snapshot || c->scan.revision > c->revision)
        c->revision = c->scan.revision;
    c->scan = (struct scan){.kind = SCAN_NONE};
    c->ready = true;
    backoff_reset(&c->backoff);
    syncs_move(c, SYNC_RUNNING, SYNC_FINISHED);
    if (snapshot)
        watch_start(c);
    clear_trouble(c, TROUBLE_SCAN);
    if (!c->closed)
        flush(c);
    for (struct sub *s = NULL; snapshot && (s = next_sub(c, s));)
        tell_ready(c, s);
    if (!c->closed)
        syncs_finish(c);
    if (!c->closed)
        kick_sync(c);
}

/*
 * A snapshot is repeated until it succeeds.  So is a sync of which pages were applied: without the
 * rest a collection could be shown in part.  The syncs that wait for it hear of the failure.
 */
static void scan_failed(struct catalog_impl *c, const struct err *err)
{
    bool repeat = c->scan.kind == SCAN_SNAPSHOT || c->scan.applied;
    struct err copy = *err;

    if (copy.code != ERR_GONE) /* compacted between two pages: just start again */
        syncs_move(c, SYNC_RUNNING, SYNC_FINISHED);
    else
        repeat = true;
    if (repeat)
        timer_set(&c->retry,
                  copy.cls == ERRC_RETRY ? backoff_next_ms(&c->backoff) : BACKOFF_MAX_MS);
    else
        c->scan.kind = SCAN_NONE;
    if (repeat && copy.code != ERR_GONE)
        set_trouble(c, TROUBLE_SCAN, &copy);
    syncs_tell(c, &copy);
    if (!c->closed)
        kick_sync(c);
}

static void on_page(void *arg, const struct err *err, const struct etcd_kv *kvs, size_t n,
                    bool more, int64_t revision)
{
    struct catalog_impl *c = arg;

    c->scan.call = NULL;
    if (err) {
        scan_failed(c, err);
        return;
    }
    /* Later pages are read at this revision, but their headers tell the newest. */
    if (c->scan.revision == 0)
        c->scan.revision = revision;
    for (size_t i = 0; i < n; i++)
        model_apply(&c->model, c->scan.kind == SCAN_SNAPSHOT, kvs[i].key,
                    kvs[i].value_len ? kvs[i].value : (const uint8_t *)"", kvs[i].value_len,
                    kvs[i].mod_revision);
    c->scan.applied = c->scan.applied || n > 0;
    if (more && n > 0)
        scan_page(c, kvs[n - 1].key);
    else
        scan_done(c);
}

static void scan_page(struct catalog_impl *c, const char *after)
{
    /* The smallest text behind after. */
    char *start = after ? xasprintf("%s\x01", after) : xstrdup(c->model.first);

    c->scan.call = etcd_range_since(c->etcd, start, c->model.end, PAGE_KEYS, c->scan.revision,
                                    c->scan.since, on_page, c);
    free(start);
}

static void scan_start(struct catalog_impl *c, enum scan_kind kind)
{
    bool applied = c->scan.applied; /* by one that failed: still to be completed */

    etcd_cancel(c->scan.call);
    timer_cancel(&c->retry);
    timer_cancel(&c->sync_kick);
    c->scan = (struct scan){.kind = kind, .applied = applied};
    if (kind == SCAN_SNAPSHOT)
        model_snapshot_begin(&c->model);
    else
        c->scan.since = c->revision + 1;
    syncs_move(c, SYNC_WAITING, SYNC_RUNNING);
    scan_page(c, NULL);
}

static void on_retry(void *arg)
{
    struct catalog_impl *c = arg;

    scan_start(c, c->scan.kind);
}

/* ---- watch ---------------------------------------------------------------------------------- */

static void on_events(void *arg, const struct etcd_event *events, size_t n, int64_t revision)
{
    struct catalog_impl *c = arg;

    for (size_t i = 0; i < n; i++) {
        const struct etcd_kv *kv = &events[i].kv;
        const uint8_t *value = kv->value_len ? kv->value : (const uint8_t *)"";

        model_apply(&c->model, false, kv->key, events[i].type == ETCD_DELETE ? NULL : value,
                    kv->value_len, kv->mod_revision);
    }
    if (revision > c->revision)
        c->revision = revision;
    if (n > 0)
        flush(c);
}

static void on_compacted(void *arg, int64_t compact_revision)
{
    struct catalog_impl *c = arg;

    log_warn("catalog", "etcd has no history from the last revision on, reading all again",
             KI("revision", c->revision), KI("compacted", compact_revision));
    c->watch = NULL;
    scan_start(c, SCAN_SNAPSHOT);
    clear_trouble(c, TROUBLE_WATCH);
}

static void on_watch_trouble(void *arg, const struct err *err)
{
    struct catalog_impl *c = arg;

    if (err)
        set_trouble(c, TROUBLE_WATCH, err);
    else
        clear_trouble(c, TROUBLE_WATCH);
}

static void watch_start(struct catalog_impl *c)
{
    static const struct etcd_watch_cbs cbs = {
        .on_events = on_events, .on_compacted = on_compacted, .on_trouble = on_watch_trouble};

    c->watch = etcd_watch_start(c->etcd, c->model.first, c->model.end, c->revision + 1, &cbs, c);
}

/* ---- operations ----------------------------------------------------------------------------- */

static void on_sub_begin(void *arg)
{
    struct sub *s = arg;
    struct catalog_impl *c = s->c;
    struct err err;

    if (s->closed || c->closed)
        return;
    s->begun = true;
    if (c->trouble_from && s->cbs.on_trouble) {
        err_copy(&err, &c->trouble);
        s->cbs.on_trouble(s->arg, &err);
    }
    if (c->ready && !s->closed && !c->closed)
        tell_ready(c, s);
}

static void *op_subscribe(struct catalog *base, const struct catalog_cbs *cbs, void *arg)
{
    struct catalog_impl *c = impl(base);
    struct sub *s = xcalloc(1, sizeof(*s));

    s->c = c;
    s->cbs = *cbs;
    s->arg = arg;
    TAILQ_INSERT_TAIL(&c->subs, s, next);
    loop_defer(c->loop, on_sub_begin, s);
    return s;
}

static void free_sub(void *arg)
{
    struct sub *s = arg;

    TAILQ_REMOVE(&s->c->subs, s, next);
    free(s);
}

static void op_unsubscribe(struct catalog *base, void *handle)
{
    struct sub *s = handle;

    if (!s || s->closed)
        return;
    s->closed = true;
    loop_defer(impl(base)->loop, free_sub, s);
}

static const struct src_collection *op_get(struct catalog *base, int64_t id)
{
    struct cat_collection *c = model_get(&impl(base)->model, id);

    return c ? &c->pub : NULL;
}

static const struct src_collection *op_next(struct catalog *base, int64_t after_id)
{
    struct cat_collection *c = model_next(&impl(base)->model, after_id);

    return c ? &c->pub : NULL;
}

static void op_sync(struct catalog *base, catalog_sync_fn done, void *arg)
{
    struct catalog_impl *c = impl(base);
    struct sync *s = xcalloc(1, sizeof(*s));

    s->state = SYNC_WAITING;
    s->done = done;
    s->arg = arg;
    TAILQ_INSERT_TAIL(&c->syncs, s, next);
    kick_sync(c);
}

static void op_sync_cancel(struct catalog *base, void *arg)
{
    struct catalog_impl *c = impl(base);
    struct sync *s = TAILQ_FIRST(&c->syncs);

    while (s) {
        struct sync *next = TAILQ_NEXT(s, next);

        if (s->arg == arg) {
            TAILQ_REMOVE(&c->syncs, s, next);
            free(s);
        }
        s = next;
    }
}

static bool op_ready(const struct catalog *c)
{
    return impl(c)->ready;
}

static const struct catalog_ops ops = {
    .subscribe = op_subscribe,
    .unsubscribe = op_unsubscribe,
    .get = op_get,
    .next = op_next,
    .sync = op_sync,
    .sync_cancel = op_sync_cancel,
    .ready = op_ready,
};

struct catalog *catalog_open(struct loop *l, struct etcd_client *etcd, const char *root_path,
                             const char *meta_subpath)
{
    struct catalog_impl *c = xcalloc(1, sizeof(*c));

    c->base.ops = &ops;
    c->loop = l;
    c->etcd = etcd;
    model_init(&c->model, root_path, meta_subpath);
    c->backoff = (struct backoff)BACKOFF_INIT(BACKOFF_MIN_MS, BACKOFF_MAX_MS);
    TAILQ_INIT(&c->subs);
    TAILQ_INIT(&c->syncs);
    timer_init(&c->retry, l, LOOP_PRIO_NORMAL, on_retry, c);
    timer_init(&c->sync_kick, l, LOOP_PRIO_NORMAL, on_sync_kick, c);
    scan_start(c, SCAN_SNAPSHOT);
    return &c->base;
}

static void free_catalog(void *arg)
{
    struct catalog_impl *c = arg;
    struct sub *s;

    while ((s = TAILQ_FIRST(&c->subs))) {
        TAILQ_REMOVE(&c->subs, s, next);
        free(s);
    }
    timer_release(&c->retry);
    timer_release(&c->sync_kick);
    model_release(&c->model);
    free(c);
}

void catalog_close(struct catalog *base)
{
    struct catalog_impl *c = impl(base);
    struct sync *s;

    if (!base || c->closed)
        return;
    c->closed = true;
    etcd_cancel(c->scan.call);
    etcd_watch_stop(c->watch);
    timer_cancel(&c->retry);
    timer_cancel(&c->sync_kick);
    while ((s = TAILQ_FIRST(&c->syncs))) {
        TAILQ_REMOVE(&c->syncs, s, next);
        free(s);
    }
    loop_defer(c->loop, free_catalog, c);
}
