/* etcd_call.c - unary calls, Range and Authenticate: one endpoint after the other, until one answers. */
#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "milvus/etcd_priv.h"

static const char PATH_RANGE[] = "/etcdserverpb.KV/Range";
static const char PATH_LOGIN[] = "/etcdserverpb.Auth/Authenticate";

static void free_call(void *arg)
{
    struct etcd_call *c = arg;

    if (c->is_login)
        explicit_bzero(c->body, c->body_len);
    free(c->body);
    timer_release(&c->timer);
    free(c);
}

void etcd_call_retire(struct etcd_call *c)
{
    c->state = CALL_OVER;
    grpc_call_cancel(c->grpc);
    c->grpc = NULL;
    timer_cancel(&c->timer);
    TAILQ_REMOVE(&c->e->calls, c, next);
    loop_defer(c->e->loop, free_call, c);
}

static void call_fail(struct etcd_call *c, const struct err *err)
{
    struct err copy = *err;

    etcd_call_retire(c);
    if (c->is_login) {
        c->e->login = LOGIN_NEEDED;
        etcd_login_finish(c->e, &copy);
    } else {
        c->done(c->arg, &copy, NULL, 0, false, 0);
    }
}

/* What the server says about this request, as opposed to being unable to answer now. */
static bool call_refused(const struct etcd_call *c, const struct grpc_result *r, struct err *err)
{
    if (etcd_token_refused(r->status, r->message) || r->status == GRPC_PERMISSION_DENIED ||
        (c->is_login && r->status == GRPC_INVALID_ARGUMENT)) {
        etcd_credentials_err(c->e, r->message, err);
        return true;
    }
    if (r->status == GRPC_OUT_OF_RANGE) { /* compacted, or a future revision */
        err_set(err, ERR_GONE, ERRC_RETRY, "etcd: %s", r->message);
        return true;
    }
    grpc_result_err(r, "etcd", err);
    return err->cls != ERRC_RETRY;
}

static void call_next_endpoint(struct etcd_call *c, const struct err *err)
{
    struct err copy = *err;

    if (c->e->n_endpoints > 1)
        err_wrap(&copy, "%s", etcd_rot_endpoint(c->e, &c->rot)->name);
    if (etcd_rot_next(c->e, &c->rot)) {
        log_debug("etcd", "trying the next endpoint", KS("err", copy.text));
        etcd_call_try(c);
    } else {
        call_fail(c, &copy);
    }
}

/* Answers carry the cluster's id: a watch compares it, to notice one restored from a backup. */
static bool header_ok(struct etcd_client *e, const Etcdpb__ResponseHeader *h)
{
    if (!h || h->revision <= 0)
        return false;
    e->cluster_id = h->cluster_id;
    return true;
}

static size_t keys_size(const Etcdpb__RangeResponse *m)
{
    size_t size = 0;

    for (size_t i = 0; i < m->n_kvs; i++)
        size += m->kvs[i]->key.len + 1;
    return size;
}

struct etcd_kv etcd_kv_from(const Etcdpb__KeyValue *src, char **keys)
{
    struct etcd_kv kv = {.key = *keys,
                         .key_len = src->key.len,
                         .value = src->value.data,
                         .value_len = src->value.len,
                         .mod_revision = src->mod_revision};

    if (src->key.len)
        memcpy(*keys, src->key.data, src->key.len);
    (*keys)[src->key.len] = '\0';
    *keys += src->key.len + 1;
    return kv;
}

static void range_tell(struct etcd_call *c, const Etcdpb__RangeResponse *m)
{
    /* The peer chose the size: no abort when it is too large. */
    struct etcd_kv *kvs = calloc(m->n_kvs + 1, sizeof(*kvs));
    char *keys = malloc(keys_size(m) + 1), *p = keys;
    struct err err;

    if (!kvs || !keys) {
        err_set(&err, ERR_LIMIT, ERRC_RETRY, "etcd: no memory for a range of %zu keys", m->n_kvs);
        call_fail(c, &err);
    } else {
        for (size_t i = 0; i < m->n_kvs; i++)
            kvs[i] = etcd_kv_from(m->kvs[i], &p);
        etcd_call_retire(c);
        c->done(c->arg, NULL, kvs, m->n_kvs, m->more, m->header->revision);
    }
    free(kvs);
    free(keys);
}

static void range_ok(struct etcd_call *c, const struct grpc_result *r)
{
    Etcdpb__RangeResponse *m = etcdpb__range_response__unpack(NULL, r->body_len, r->body);
    struct err err;

    if (!m || !header_ok(c->e, m->header)) {
        err_set(&err, ERR_PROTO, ERRC_RETRY, "etcd: the answer to Range cannot be parsed");
        call_next_endpoint(c, &err);
    } else {
        range_tell(c, m);
    }
    if (m)
        etcdpb__range_response__free_unpacked(m, NULL);
}

static void call_ok(struct etcd_call *c, const struct grpc_result *r)
{
    if (c->is_login) {
        etcd_call_retire(c);
        etcd_login_ok(c->e, r);
    } else {
        range_ok(c, r);
    }
}

static void on_call_done(void *arg, const struct grpc_result *r)
{
    struct etcd_call *c = arg;
    struct etcd_client *e = c->e;
    struct err err;

    c->grpc = NULL;
    timer_cancel(&c->timer);
    if (r->status == 0) {
        call_ok(c, r);
        return;
    }
    if (c->is_login && etcd_login_not_enabled(e, r)) {
        etcd_call_retire(c);
        return;
    }
    if (!c->is_login && etcd_token_refused(r->status, r->message) &&
        etcd_login_renew(e, c->token_gen, &c->logins)) {
        etcd_call_try(c);
        return;
    }
    if (call_refused(c, r, &err))
        call_fail(c, &err);
    else
        call_next_endpoint(c, &err);
}

static void call_send(struct etcd_call *c)
{
    struct etcd_client *e = c->e;
    struct evbuffer *body = evbuffer_new();

    if (!body || evbuffer_add(body, c->body, c->body_len) < 0)
        abort();
    c->state = CALL_SENT;
    c->token_gen = e->token_gen;
    c->grpc = grpc_unary(etcd_rot_endpoint(e, &c->rot)->grpc, c->is_login ? PATH_LOGIN : PATH_RANGE,
                         NULL, body, e->try_ms, on_call_done, c);
    evbuffer_free(body);
    c->rot.since_ms = clock_mono_ms();
    timer_set(&c->timer, ETCD_POLL_MS);
}

void etcd_call_try(struct etcd_call *c)
{
    if (!c->is_login && etcd_login_wait(c->e)) {
        c->state = CALL_LOGIN;
        return;
    }
    call_send(c);
}

/* A call waits for its connection until its deadline; that can be too long. */
static void call_poll(struct etcd_call *c)
{
    const char *why;
    struct err err;

    if (!etcd_rot_give_up(c->e, &c->rot, &why)) {
        timer_set(&c->timer, ETCD_POLL_MS);
        return;
    }
    err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "etcd: %s", why);
    grpc_call_cancel(c->grpc);
    c->grpc = NULL;
    call_next_endpoint(c, &err);
}

static void on_call_timer(void *arg)
{
    struct etcd_call *c = arg;

    switch (c->state) {
    case CALL_LOGIN: /* the token has come */
        etcd_call_try(c);
        break;
    case CALL_SENT:
        call_poll(c);
        break;
    case CALL_FAILING:
        call_fail(c, &c->err);
        break;
    case CALL_OVER:
        break;
    }
}

struct etcd_call *etcd_call_new(struct etcd_client *e)
{
    struct etcd_call *c = xcalloc(1, sizeof(*c));

    c->e = e;
    timer_init(&c->timer, e->loop, LOOP_PRIO_NORMAL, on_call_timer, c);
    etcd_rot_start(e, &c->rot);
    TAILQ_INSERT_TAIL(&e->calls, c, next);
    return c;
}

struct etcd_call *etcd_range_since(struct etcd_client *e, const char *key, const char *end,
                                   int64_t limit, int64_t revision, int64_t min_mod_revision,
                                   etcd_range_fn done, void *arg)
{
    Etcdpb__RangeRequest m = ETCDPB__RANGE_REQUEST__INIT;
    struct etcd_call *c = etcd_call_new(e);

    m.key = etcd_text_bytes(key);
    m.range_end = etcd_text_bytes(end);
    m.limit = limit;
    m.revision = revision;
    m.min_mod_revision = min_mod_revision;
    c->body_len = etcdpb__range_request__get_packed_size(&m);
    c->body = xmalloc(c->body_len + 1);
    etcdpb__range_request__pack(&m, c->body);
    c->done = done;
    c->arg = arg;
    etcd_call_try(c);
    return c;
}

struct etcd_call *etcd_range(struct etcd_client *e, const char *key, const char *end, int64_t limit,
                             int64_t revision, etcd_range_fn done, void *arg)
{
    return etcd_range_since(e, key, end, limit, revision, 0, done, arg);
}

void etcd_cancel(struct etcd_call *c)
{
    if (c && c->state != CALL_OVER)
        etcd_call_retire(c);
}
