/*
 * runtime.c - what a running task needs: lease, store, the shared target, the replication itself.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "daemon/config.h"
#include "task/priv.h"

/* Rows may be sent until the lease has run out; those that come then lie a little ahead of the tick that was read last. */
#define SPAN_MORE_MS 500

#define FAR_MS 5 /* a target whose answers take so long gets several requests at a time */

/* ---- the user's selection, as repl/ asks for it ---------------------------------------------------- */

static bool sel_match(void *ctx, const char *db, const char *name, struct repl_match *ret)
{
    const struct task_spec *s = ctx;
    const struct spec_collection *sc = NULL;

    if (!spec_matches(ctx, db, name, &sc, &ret->target_db, &ret->target_name))
        return false;
    ret->use_start_position = (sc && sc->use_start_position) || s->start == SPEC_EARLIEST || s->start == SPEC_BACKUP;
    ret->snapshot = s->start == SPEC_SNAPSHOT && !ret->use_start_position && sc && !sc->n_positions;
    return true;
}

static bool sel_match_db(void *ctx, const char *db, const char **ret_target_db)
{
    return spec_matches_db(ctx, db, ret_target_db);
}

static bool sel_position(void *ctx, const char *vchannel, const uint8_t **ret_id, size_t *ret_len, uint64_t *ret_tt)
{
    const struct spec_position *p = spec_find_position(ctx, vchannel);

    if (!p)
        return false;
    *ret_id = p->id;
    *ret_len = p->id_len;
    *ret_tt = p->tt;
    return true;
}

/* ---- target ------------------------------------------------------------------------------------------ */

char *runtime_key_of(const char *uri)
{
    char *host, *key;
    uint16_t port;
    bool tls;

    if (target_parse_uri(uri, &host, &port, &tls, NULL))
        return NULL;
    key = xasprintf("%s:%u", host, port);
    free(host);
    return key;
}

char *runtime_key(const struct task_spec *s)
{
    return runtime_key_of(s->uri);
}

static bool runtime_portable(const struct task_spec *s)
{
    return s->mode == SPEC_PORTABLE;
}

/* A target that became a standby, or ceased to be one, may have tasks of both kinds. Caller frees. */
static char *endpoint_key(const struct mtask *t)
{
    return xasprintf("%s %s", t->key, runtime_portable(t->spec) ? "portable" : "standby");
}

void runtime_target_options(const struct task_spec *s, struct target_options *ret)
{
    *ret = (struct target_options){.uri = s->uri,
                                   .token = s->token,
                                   .connect_timeout_ms = s->connect_timeout_s * 1000,
                                   .tls_server_name = s->server_name,
                                   .ca_path = s->ca_path,
                                   .cert_path = s->cert_path,
                                   .key_path = s->key_path,
                                   .mode = runtime_portable(s) ? TARGET_PLAIN : TARGET_STANDBY,
                                   .ignore_partition = s->ignore_partition,
                                   .leave_out = s->leave_out_unknown};
}

/* Who sends, and until when he may. */
static void set_holder(struct target_options *o, const struct manager *m, struct holding *h)
{
    if (!h->agent)
        h->agent = xasprintf("milvus-cdc/" MILVUS_CDC_VERSION " (%s; epoch %" PRIu64 ")", m->d.daemon_id, h->epoch);
    o->agent = h->agent;
    o->fence = &h->fence;
}

static char *login_text(const struct task_spec *s)
{
    const char *const parts[] = {s->token, s->server_name, s->ca_path, s->cert_path, s->key_path};
    char *text = xasprintf("%s %d %d", s->uri, s->ignore_partition, s->leave_out_unknown);

    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        char *more = xasprintf("%s\n%s", text, parts[i] ? parts[i] : "");
        explicit_bzero(text, strlen(text));
        free(text);
        text = more;
    }
    return text;
}

static void login_free(char *text)
{
    explicit_bzero(text, strlen(text));
    free(text);
}

static struct endpoint *endpoint_get(struct mtask *t, struct err *err)
{
    struct manager *m = t->m;
    const struct config *cfg = m->d.config;
    struct target_options o;
    char *key = endpoint_key(t);
    struct endpoint *e;
    struct sink *sink;

    HASH_FIND_STR(m->endpoints, key, e);
    if (e) {
        free(key);
        e->refs++;
        return e;
    }
    runtime_target_options(t->spec, &o);
    set_holder(&o, m, holding_find(m, t->key));
    sink = target_open(m->d.loop, &o, err);
    if (!sink) {
        free(key);
        return NULL;
    }
    e = xcalloc(1, sizeof(*e));
    e->key = key;
    e->target_key = xstrdup(t->key);
    e->refs = 1;
    e->sink = sink;
    e->login = login_text(t->spec);
    e->hub = repl_hub_new(&(struct repl_hub_options){.loop = m->d.loop,
                                                     .sink = sink,
                                                     .key = t->key,
                                                     .portable = runtime_portable(t->spec),
                                                     .tick_interval_ms = (unsigned)cfg->time_tick_interval_ms,
                                                     .retry_min_ms = (unsigned)cfg->retry_initial_ms,
                                                     .retry_max_ms = (unsigned)cfg->retry_max_ms,
                                                     .batch_bytes = cfg->batch_bytes,
                                                     .channel_bytes = cfg->channel_bytes,
                                                     .flight_bytes = cfg->flight_bytes,
                                                     .far_ms = FAR_MS,
                                                     .budget = &m->budget});
    HASH_ADD_KEYPTR(hh, m->endpoints, e->key, strlen(e->key), e);
    return e;
}

static void endpoint_put(struct manager *m, struct endpoint *e)
{
    if (!e || --e->refs > 0)
        return;
    HASH_DEL(m->endpoints, e);
    repl_hub_unref(e->hub);
    target_close(e->sink);
    login_free(e->login);
    free(e->key);
    free(e->target_key);
    free(e);
}

/* ---- life ---------------------------------------------------------------------------------------------- */

void runtime_open(struct mtask *t)
{
    struct manager *m = t->m;

    t->store = m->d.registry->ops->store_open(m->d.registry, t->id, m->d.daemon_id, holding_epoch(m, t->key));
}

static int open_sink(struct mtask *t, struct err *err)
{
    struct target_options o;
    char *login;

    t->endpoint = endpoint_get(t, err);
    if (!t->endpoint)
        return err->code;
    login = login_text(t->spec);
    runtime_target_options(t->spec, &o);
    set_holder(&o, t->m, holding_find(t->m, t->key));
    if (strcmp(login, t->endpoint->login) != 0 && !(t->own_sink = target_open(t->m->d.loop, &o, err))) {
        login_free(login);
        return err->code;
    }
    login_free(login);
    return 0;
}

int runtime_start(struct mtask *t, store_done_fn started, struct err *err)
{
    struct manager *m = t->m;
    const struct config *cfg = m->d.config;

    if (open_sink(t, err))
        return err->code;
    t->run = repl_task_new(&(struct repl_task_options){
        .loop = m->d.loop,
        .id = t->id,
        .hub = t->endpoint->hub,
        .sink = t->own_sink ? t->own_sink : t->endpoint->sink,
        .catalog = m->d.catalog,
        .wal = m->d.wal,
        .store = t->store,
        .selection = {.ctx = t->spec, .match = sel_match, .match_db = sel_match_db, .position = sel_position,
                      .check = start_check},
        .budget = &m->budget,
        .task_bytes = cfg->task_bytes,
        .replicate_chan = cfg->replicate_chan,
        .ignore_partition = t->spec->ignore_partition,
        .target_version = runtime_portable(t->spec) ? t->target_version : NULL,
        .rows = m->d.rows,
        .copy_room = &m->copy_room,
        .load_for_snapshot = t->spec->load_for_snapshot,
        .rpc_id = t->spec->rpc_id_len ? t->spec->rpc_id : NULL,
        .rpc_id_len = t->spec->rpc_id_len,
        .rpc_tt = t->spec->rpc_tt,
        .start_tt = t->spec->start_tt,
        .strict_start = !t->accept_gap && (t->spec->start == SPEC_TIME || spec_has_positions(t->spec)),
        .span_ms = m->d.registry->shared ? (unsigned)m->d.lease_ms + SPAN_MORE_MS : 0,
        .accept_gap = t->accept_gap,
        .on_fatal = manager_on_fatal,
        .arg = t,
    });
    t->accept_gap = false;
    verify_settle(t);
    repl_task_start(t->run, started, t);
    return 0;
}

/* ---- keep_queryable ------------------------------------------------------------------------------------- */

static void on_keep_loaded(void *arg, const struct err *err, const struct repl_ckpt *ckpts, size_t n_ckpts,
                           const struct repl_collection_rec *colls, size_t n_colls)
{
    struct mtask *t = arg;

    (void)colls;
    (void)n_colls;
    if (err) {
        log_warn("task", "the target's time cannot be kept moving", KS("task", t->id), KS("error", err->text));
        return;
    }
    for (size_t i = 0; i < n_ckpts; i++)
        if (*ckpts[i].dst_channel)
            repl_hub_keep(t->endpoint->hub, t->store, t->id, ckpts[i].dst_channel);
}

void runtime_keep(struct mtask *t)
{
    struct err err;

    t->endpoint = endpoint_get(t, &err);
    if (!t->endpoint) {
        log_warn("task", "the target's time cannot be kept moving", KS("task", t->id), KS("error", err.text));
        return;
    }
    t->keeping = true;
    t->store->ops->load(t->store, t->id, on_keep_loaded, t);
}

void runtime_cut(struct manager *m, const char *target_key)
{
    for (struct endpoint *e = m->endpoints; e; e = e->hh.next)
        if (strcmp(e->target_key, target_key) == 0)
            target_cut(e->sink);
    for (struct mtask *t = m->tasks; t; t = t->hh.next)
        if (t->own_sink && strcmp(t->key, target_key) == 0)
            target_cut(t->own_sink);
}

void runtime_release(struct mtask *t)
{
    verify_keep(t);
    repl_task_free(t->run);
    t->run = NULL;
    if (t->own_sink)
        target_close(t->own_sink);
    t->own_sink = NULL;
    if (t->keeping) {
        t->store->ops->cancel(t->store, t);
        repl_hub_keep_stop(t->endpoint->hub, t->id);
        t->keeping = false;
    }
    endpoint_put(t->m, t->endpoint);
    t->endpoint = NULL;
    if (t->store)
        t->m->d.registry->ops->store_free(t->store);
    t->store = NULL;
}
