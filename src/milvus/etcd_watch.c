/* etcd_watch.c - a watch: opened again from the last revision seen whenever its stream ends. */
#include <assert.h>
#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "milvus/etcd_priv.h"

enum {
    BACKOFF_MIN_MS = 100,
    BACKOFF_MAX_MS = 5000,
    SLOW_RETRY_MS = 15000, /* a human has to act first */
    FRAGMENTS_MAX_BYTES = 256 << 20,
};

static const char PATH_WATCH[] = "/etcdserverpb.Watch/Watch";

static void watch_open(struct etcd_watch *w);

static void drop_parts(struct etcd_watch *w)
{
    for (size_t i = 0; i < w->n_parts; i++)
        etcdpb__watch_response__free_unpacked(w->parts[i], NULL);
    xfree(&w->parts);
    w->n_parts = 0;
    w->parts_bytes = 0;
}

static void free_watch(void *arg)
{
    struct etcd_watch *w = arg;

    drop_parts(w);
    timer_release(&w->timer);
    free(w->key);
    free(w->end);
    free(w);
}

/* Ends the stream and what was collected from it. */
static void watch_hang_up(struct etcd_watch *w)
{
    grpc_call_cancel(w->stream);
    w->stream = NULL;
    timer_cancel(&w->timer);
    drop_parts(w);
}

void etcd_watch_retire(struct etcd_watch *w)
{
    w->state = WATCH_OVER;
    watch_hang_up(w);
    TAILQ_REMOVE(&w->e->watches, w, next);
    loop_defer(w->e->loop, free_watch, w);
}

/* The caller must not touch w afterwards, unless it looks at its state first. */
static void watch_tell_trouble(struct etcd_watch *w, const struct err *err)
{
    struct err copy = *err;

    if (w->troubled && w->told_code == copy.code)
        return;
    w->troubled = true;
    w->told_code = copy.code;
    w->cbs->on_trouble(w->arg, &copy);
}

/* The stream is lost or never came: the next endpoint, or a wait when all were tried. */
static void watch_fail(struct etcd_watch *w, const struct err *err)
{
    struct err copy = *err;

    watch_hang_up(w);
    if (w->e->n_endpoints > 1)
        err_wrap(&copy, "%s", etcd_rot_endpoint(w->e, &w->rot)->name);
    w->state = WATCH_BACKOFF;
    if (copy.cls != ERRC_RETRY) {
        timer_set(&w->timer, SLOW_RETRY_MS);
        etcd_rot_start(w->e, &w->rot);
        watch_tell_trouble(w, &copy);
    } else if (etcd_rot_next(w->e, &w->rot)) {
        timer_set(&w->timer, 0);
    } else {
        timer_set(&w->timer, backoff_next_ms(&w->backoff));
        etcd_rot_start(w->e, &w->rot);
        watch_tell_trouble(w, &copy);
    }
}

/* A refused token is renewed; etcd 3.4 says "permission denied" of an expired one, too. */
static void watch_refused(struct etcd_watch *w, int status, const char *message)
{
    struct err err;

    if (!etcd_token_refused(status, message) && !etcd_text_has(message, "permission denied")) {
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "etcd: the watch was canceled: %s", message);
        watch_fail(w, &err);
    } else if (etcd_login_renew(w->e, w->token_gen, &w->logins)) {
        watch_hang_up(w);
        watch_open(w);
    } else {
        w->logins = 0;
        etcd_credentials_err(w->e, message, &err);
        watch_fail(w, &err);
    }
}

static void watch_compacted(struct etcd_watch *w, int64_t compact_revision)
{
    etcd_watch_retire(w);
    w->cbs->on_compacted(w->arg, compact_revision);
}

static void watch_live(struct etcd_watch *w)
{
    bool troubled = w->troubled;

    if (w->state != WATCH_OPENING)
        return;
    timer_cancel(&w->timer);
    w->state = WATCH_LIVE;
    w->logins = 0;
    backoff_reset(&w->backoff);
    etcd_rot_start(w->e, &w->rot);
    w->troubled = false;
    if (troubled)
        w->cbs->on_trouble(w->arg, NULL);
}

static size_t events_room(const struct etcd_watch *w, size_t *ret_key_bytes)
{
    size_t n = 0, bytes = 0;

    for (size_t i = 0; i < w->n_parts; i++) {
        const Etcdpb__WatchResponse *m = w->parts[i];

        n += m->n_events;
        for (size_t j = 0; j < m->n_events; j++)
            bytes += m->events[j]->kv ? m->events[j]->kv->key.len + 1 : 0;
    }
    *ret_key_bytes = bytes;
    return n;
}

/* Flattens the parts.  Some servers (etcd before 3.4.25) repeat events: leave those out. */
static size_t collect_events(const struct etcd_watch *w, struct etcd_event *events, char *keys)
{
    size_t n = 0;

    for (size_t i = 0; i < w->n_parts; i++) {
        const Etcdpb__WatchResponse *m = w->parts[i];

        for (size_t j = 0; j < m->n_events; j++) {
            const Etcdpb__Event *ev = m->events[j];

            if (!ev->kv || ev->kv->mod_revision < w->next_revision)
                continue;
            events[n].type = ev->type == 1 ? ETCD_DELETE : ETCD_PUT;
            events[n++].kv = etcd_kv_from(ev->kv, &keys);
        }
    }
    return n;
}

/* All parts of an answer are here. */
static void watch_tell_events(struct etcd_watch *w)
{
    size_t key_bytes, n = events_room(w, &key_bytes);
    struct etcd_event *events = xcalloc(n + 1, sizeof(*events));
    char *keys = xmalloc(key_bytes + 1);
    Etcdpb__WatchResponse **parts = w->parts;
    size_t n_parts = w->n_parts;

    n = collect_events(w, events, keys);
    w->parts = NULL; /* the callback may stop the watch: keep them here meanwhile */
    w->n_parts = 0;
    w->parts_bytes = 0;
    if (n > 0) {
        /* Not the header's revision: while a watch catches up, that is ahead of the events. */
        int64_t revision = events[n - 1].kv.mod_revision;

        w->next_revision = revision + 1;
        w->cbs->on_events(w->arg, events, n, revision);
    }
    for (size_t i = 0; i < n_parts; i++)
        etcdpb__watch_response__free_unpacked(parts[i], NULL);
    free(parts);
    free(events);
    free(keys);
}

static void watch_progress(struct etcd_watch *w, int64_t revision)
{
    if (revision < w->next_revision)
        return; /* a member that is behind the one from before */
    w->next_revision = revision + 1;
    w->cbs->on_events(w->arg, NULL, 0, revision);
}

/* Takes over m. */
static void watch_events(struct etcd_watch *w, Etcdpb__WatchResponse *m, size_t size)
{
    bool more = m->fragment;
    struct err err;

    w->parts = xrealloc(w->parts, (w->n_parts + 1) * sizeof(*w->parts));
    w->parts[w->n_parts++] = m;
    w->parts_bytes += size;
    if (!more) {
        watch_tell_events(w);
    } else if (w->parts_bytes > FRAGMENTS_MAX_BYTES) {
        err_set(&err, ERR_LIMIT, ERRC_RETRY, "etcd: a watch answer has more than %d bytes",
                FRAGMENTS_MAX_BYTES);
        watch_fail(w, &err);
    }
}

/* Another id means a cluster that was restored from a backup: its revisions are not ours. */
static bool watch_same_cluster(struct etcd_watch *w, const Etcdpb__ResponseHeader *h)
{
    if (w->cluster_id == 0)
        w->cluster_id = h->cluster_id;
    return w->cluster_id == h->cluster_id;
}

/* True: m was kept. */
static bool watch_message(struct etcd_watch *w, Etcdpb__WatchResponse *m, size_t size)
{
    if (!watch_same_cluster(w, m->header)) {
        watch_compacted(w, 0);
    } else if (m->canceled && m->compact_revision != 0) {
        watch_compacted(w, m->compact_revision);
    } else if (m->canceled) {
        watch_refused(w, 0, m->cancel_reason[0] ? m->cancel_reason : "no reason given");
    } else if (m->created) {
        watch_live(w);
    } else if (m->n_events > 0 || w->n_parts > 0) {
        watch_events(w, m, size);
        return true;
    } else {
        watch_progress(w, m->header->revision);
    }
    return false;
}

static void on_watch_message(void *arg, const uint8_t *data, size_t len)
{
    struct etcd_watch *w = arg;
    Etcdpb__WatchResponse *m = etcdpb__watch_response__unpack(NULL, len, data);
    struct err err;

    if (!m || !m->header) {
        err_set(&err, ERR_PROTO, ERRC_RETRY, "etcd: a watch answer cannot be parsed");
        watch_fail(w, &err);
    } else if (watch_message(w, m, len)) {
        return;
    }
    if (m)
        etcdpb__watch_response__free_unpacked(m, NULL);
}

static void on_watch_done(void *arg, const struct grpc_result *r)
{
    struct etcd_watch *w = arg;
    struct err err;

    w->stream = NULL;
    if (etcd_token_refused(r->status, r->message) || r->status == GRPC_PERMISSION_DENIED) {
        watch_refused(w, r->status, r->message);
    } else if (r->status == 0) {
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "etcd: the server ended the watch");
        watch_fail(w, &err);
    } else {
        grpc_result_err(r, "etcd watch", &err);
        watch_fail(w, &err);
    }
}

static void watch_send_create(struct etcd_watch *w)
{
    Etcdpb__WatchCreateRequest create = ETCDPB__WATCH_CREATE_REQUEST__INIT;
    Etcdpb__WatchRequest m = ETCDPB__WATCH_REQUEST__INIT;
    struct evbuffer *body = evbuffer_new();
    size_t len;
    uint8_t *data;

    create.key = etcd_text_bytes(w->key);
    create.range_end = etcd_text_bytes(w->end);
    create.start_revision = w->next_revision;
    create.progress_notify = true;
    create.fragment = true;
    m.request_case = ETCDPB__WATCH_REQUEST__REQUEST_CREATE;
    m.create = &create;
    len = etcdpb__watch_request__get_packed_size(&m);
    data = xmalloc(len + 1);
    etcdpb__watch_request__pack(&m, data);
    if (!body || evbuffer_add(body, data, len) < 0)
        abort();
    grpc_stream_send(w->stream, body);
    evbuffer_free(body);
    free(data);
}

static void watch_open(struct etcd_watch *w)
{
    /* Without this a member cut off from the others keeps the stream open and silent. */
    static const struct grpc_header headers[] = {{"hasleader", "true"}, {NULL, NULL}};
    struct etcd_client *e = w->e;

    if (etcd_login_wait(e)) {
        w->state = WATCH_LOGIN;
        return;
    }
    w->state = WATCH_OPENING;
    w->token_gen = e->token_gen;
    w->rot.since_ms = clock_mono_ms();
    w->stream = grpc_stream(etcd_rot_endpoint(e, &w->rot)->grpc, PATH_WATCH, headers, on_watch_message,
                            on_watch_done, w);
    watch_send_create(w);
    timer_set(&w->timer, ETCD_POLL_MS);
}

static void watch_poll(struct etcd_watch *w)
{
    const char *why;
    struct err err;

    if (etcd_rot_give_up(w->e, &w->rot, &why)) {
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "etcd: %s", why);
        watch_fail(w, &err);
    } else if (clock_mono_ms() - w->rot.since_ms >= w->e->try_ms) {
        err_set(&err, ERR_TIMEOUT, ERRC_RETRY, "etcd: no answer to a watch in %u ms",
                w->e->try_ms);
        watch_fail(w, &err);
    } else {
        timer_set(&w->timer, ETCD_POLL_MS);
    }
}

static void on_watch_timer(void *arg)
{
    struct etcd_watch *w = arg;

    switch (w->state) {
    case WATCH_LOGIN:
    case WATCH_BACKOFF:
        watch_open(w);
        break;
    case WATCH_OPENING:
        watch_poll(w);
        break;
    case WATCH_FAILING:
        watch_fail(w, &w->err);
        break;
    case WATCH_LIVE:
    case WATCH_OVER:
        break;
    }
}

struct etcd_watch *etcd_watch_start(struct etcd_client *e, const char *key, const char *end,
                                    int64_t start_revision, const struct etcd_watch_cbs *cbs,
                                    void *arg)
{
    struct etcd_watch *w = xcalloc(1, sizeof(*w));

    assert(start_revision > 0);
    w->e = e;
    w->key = xstrdup(key);
    w->end = xstrdup(end);
    w->next_revision = start_revision;
    w->cluster_id = e->cluster_id;
    w->cbs = cbs;
    w->arg = arg;
    w->backoff = (struct backoff)BACKOFF_INIT(BACKOFF_MIN_MS, BACKOFF_MAX_MS);
    timer_init(&w->timer, e->loop, LOOP_PRIO_NORMAL, on_watch_timer, w);
    etcd_rot_start(e, &w->rot);
    TAILQ_INSERT_TAIL(&e->watches, w, next);
    watch_open(w);
    return w;
}

void etcd_watch_stop(struct etcd_watch *w)
{
    if (w && w->state != WATCH_OVER)
        etcd_watch_retire(w);
}
