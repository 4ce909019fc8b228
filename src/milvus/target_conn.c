/* target_conn.c - address, login and calls. */
#include "milvus/target_priv.h"

#include "base/base64.h"
#include "base/clock.h"
#include "base/mem.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_PORT = 19530, DEFAULT_CONNECT_MS = 5000, LITE_QUIET_MS = 1500 };

/* ---- address ---------------------------------------------------------------------------------- */

static bool parse_port(const char *text, uint16_t *ret)
{
    size_t len = strlen(text);
    unsigned long port;

    if (len == 0 || len > 5 || strspn(text, "0123456789") != len)
        return false;
    port = strtoul(text, NULL, 10);
    *ret = (uint16_t)port;
    return port > 0 && port < 65536;
}

/* "host", "host:port", "[::1]:port"; a trailing slash is allowed. */
static bool parse_authority(const char *text, char **ret_host, uint16_t *ret_port)
{
    size_t len = strcspn(text, "/");
    char *host, *end;
    bool ok = text[len] == '\0' || text[len + 1] == '\0';

    host = xstrndup(text, len);
    *ret_port = DEFAULT_PORT;
    if (host[0] == '[') {
        end = strchr(host, ']');
        ok = ok && end && end > host + 1 && (end[1] == '\0' || (end[1] == ':' && parse_port(end + 2, ret_port)));
        if (ok) {
            *end = '\0';
            memmove(host, host + 1, (size_t)(end - host));
        }
    } else {
        end = strchr(host, ':');
        ok = ok && (!end || parse_port(end + 1, ret_port));
        if (end)
            *end = '\0';
        ok = ok && *host;
    }
    ok = ok && strcspn(host, "@?# \t\r\n[]") == strlen(host);
    if (ok)
        *ret_host = host;
    else
        free(host);
    return ok;
}

int target_parse_uri(const char *uri, char **ret_host, uint16_t *ret_port, bool *ret_tls, struct err *err)
{
    const char *rest = uri;
    uint16_t port;
    bool tls = false;
    char *host;

    if (strncasecmp(uri, "http://", 7) == 0) {
        rest = uri + 7;
    } else if (strncasecmp(uri, "https://", 8) == 0) {
        rest = uri + 8;
        tls = true;
    } else {
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "the milvus uri must be http://host:port or https://host:port");
    }
    if (!parse_authority(rest, &host, &port)) /* not shown: it may hold a password */
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "the milvus uri must be http://host:port or https://host:port, with nothing else in it");
    *ret_host = host;
    *ret_port = port;
    *ret_tls = tls;
    return 0;
}

static void set_login(struct grpc_client *g, const char *token)
{
    char *text;

    if (!token || !*token)
        return;
    text = base64_encode(token, strlen(token));
    grpc_client_set_header(g, "authorization", text);
    explicit_bzero(text, strlen(text));
    free(text);
}

struct grpc_client *target_connect(struct loop *l, const struct target_options *o, char **ret_address, struct err *err)
{
    struct grpc_options g = {.tls_server_name = o->tls_server_name,
                             .ca_path = o->ca_path,
                             .cert_path = o->cert_path,
                             .key_path = o->key_path,
                             .connect_timeout_ms =
                                 o->connect_timeout_ms ? o->connect_timeout_ms : DEFAULT_CONNECT_MS,
                             .fail_fast = true, /* whoever asks tries again, and tells why */
                             .fence = o->fence,
                             .log_name = "target"};
    struct grpc_client *client;
    char *host;

    if (target_parse_uri(o->uri, &host, &g.port, &g.tls, err))
        return NULL;
    g.host = host;
    g.tls = g.tls || o->ca_path || o->cert_path; /* dial_config asks for TLS whatever the scheme */
    client = grpc_client_new(l, &g, err);
    if (client) {
        set_login(client, o->token);
        if (o->agent)
            grpc_client_set_header(client, "user-agent", o->agent);
        *ret_address = xasprintf(strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, (unsigned)g.port);
    }
    free(host);
    return client;
}

/* Milvus Lite goes on with a call whose caller has gone. */
static void be_quiet(struct target *t)
{
    if (t->lite)
        t->quiet_ms = clock_mono_ms() + LITE_QUIET_MS;
}

bool target_version_known(const struct target *t)
{
    return t->version_gen && t->version_gen == grpc_client_generation(t->grpc);
}

void target_set_version(struct target *t, const char *version)
{
    bool news = !target_version_known(t);

    free(t->version);
    t->version = xstrdup(version);
    t->version_gen = grpc_client_generation(t->grpc);
    t->lite = target_version_is_lite(version);
    if (news)
        be_quiet(t); /* what a daemon before us, or we on the last connection, did not wait for */
}

/* ---- answers ---------------------------------------------------------------------------------- */

static void answer_connection_err(struct answer *a, const char *context)
{
    grpc_result_err(a->raw, context, &a->err);
    if (a->raw->status == 16) {
        struct err cause = a->err;

        err_set(&a->err, ERR_AUTH, ERRC_USER, "%s: check the token (user:password or API key) of the target",
                cause.text);
    } else if (a->raw->status == 8 && strstr(a->raw->message, "larger than max")) {
        a->err.cls = ERRC_USER; /* always again: proxy.grpc.serverMaxRecvSize */
        a->err.code = ERR_TOO_LARGE;
    }
}

static void answer_broken(struct answer *a, const char *context)
{
    a->ok = false;
    err_set(&a->err, ERR_PROTO, ERRC_RETRY, "%s: the answer (%zu bytes) cannot be parsed", context, a->raw->body_len);
}

static void answer_status(struct answer *a, const Pb__Status *s, const char *context)
{
    a->milvus_code = target_status_code(s->code, s->error_code, s->reason);
    a->ok = target_status_err(s->code, s->error_code, s->reason, context, &a->err) == 0;
}

/* The Status in an answer's field 1, still encoded; len 0: none, which is success. False: not protobuf. The rest may be
 * megabytes of rows, and is not looked into. */
static bool find_status(const struct grpc_result *r, struct pb_field *ret)
{
    struct pb_scan s = pb_scan_init(r->body, r->body_len);
    struct pb_field f;
    int n;

    *ret = (struct pb_field){0};
    while ((n = pb_scan_next(&s, &f)) > 0)
        if (f.num == 1 && f.wire == PB_LEN)
            *ret = f;
    return n == 0;
}

void answer_init(struct answer *ret, const struct grpc_result *r, enum answer_kind kind, const char *context)
{
    struct pb_field f = {.data = r->body, .len = r->body_len};
    Pb__Status *status = NULL;

    *ret = (struct answer){.raw = r};
    if (r->status != 0) {
        answer_connection_err(ret, context);
        return;
    }
    if (kind == ANSWER_STATUS || find_status(r, &f))
        status = pb__status__unpack(NULL, f.len, f.data);
    if (!status) {
        answer_broken(ret, context);
        return;
    }
    answer_status(ret, status, context);
    pb__status__free_unpacked(status, NULL);
}

void *answer_unpack(struct answer *a, const ProtobufCMessageDescriptor *d, const char *context)
{
    void *m = protobuf_c_message_unpack(d, NULL, a->raw->body_len, a->raw->body);

    if (!m)
        answer_broken(a, context);
    return m;
}

/* ---- calls ------------------------------------------------------------------------------------ */

static void on_timer(void *arg)
{
    struct sink_call *c = arg;

    c->on_timer(c);
}

void call_init(struct sink_call *c, struct target *t, char *object, void (*release)(struct sink_call *),
               void (*fail)(struct sink_call *, const struct err *))
{
    c->target = t;
    c->object = object;
    c->method = "";
    c->release = release;
    c->fail = fail;
    timer_init(&c->timer, t->loop, LOOP_PRIO_NORMAL, on_timer, c);
    LIST_INSERT_HEAD(&t->calls, c, next);
}

static void call_free(void *arg)
{
    struct sink_call *c = arg;

    free(c->object);
    c->release(c);
}

static void on_result(void *arg, const struct grpc_result *r);

static void rpc_start(struct sink_call *c, struct evbuffer *body, const char *db)
{
    const struct grpc_header headers[] = {{"dbname", db}, {NULL, NULL}};
    char path[100];

    snprintf(path, sizeof(path), "/milvus.proto.milvus.MilvusService/%s", c->method);
    c->target->under_way++;
    c->rpc = grpc_unary(c->target->grpc, path, db ? headers : NULL, body, c->deadline_ms, on_result, c);
}

static void leave_turns(struct sink_call *c)
{
    TAILQ_REMOVE(&c->target->turns, c, turn);
    evbuffer_free(c->body);
    free(c->body_db);
    c->body = NULL;
    c->body_db = NULL;
}

/*
 * Milvus Lite does not lock what its calls change: two at a time destroy the log of a collection, and what was confirmed
 * is gone when the process ends (seen with 3.2.2: 800 of 64,000 rows were left after eight writers and a kill). A collection
 * that one call is dropping is still there for another, which then writes into nothing.
 */
static void next_turn(struct target *t)
{
    struct sink_call *c = TAILQ_FIRST(&t->turns);
    uint64_t now;

    if (!c || t->under_way > 0 || t->closing)
        return;
    now = clock_mono_ms();
    if (now < t->quiet_ms) {
        timer_set(&t->turn_timer, t->quiet_ms - now);
        return;
    }
    rpc_start(c, c->body, c->body_db);
    leave_turns(c);
}

static void on_turn_timer(void *arg)
{
    next_turn(arg);
}

void target_turns_init(struct target *t)
{
    TAILQ_INIT(&t->turns);
    timer_init(&t->turn_timer, t->loop, LOOP_PRIO_NORMAL, on_turn_timer, t);
}

static void rpc_over(struct sink_call *c, bool answered)
{
    c->rpc = NULL;
    c->target->under_way--;
    if (!answered)
        be_quiet(c->target);
    next_turn(c->target);
}

void call_end(struct sink_call *c)
{
    if (c->gone)
        return;
    c->gone = true;
    LIST_REMOVE(c, next);
    if (c->body)
        leave_turns(c);
    if (c->rpc) {
        grpc_call_cancel(c->rpc);
        rpc_over(c, false);
    }
    timer_release(&c->timer);
    loop_defer(c->target->loop, call_free, c);
}

const char *call_context(const struct sink_call *c, char *buf, size_t size)
{
    const struct target *t = c->target;

    snprintf(buf, size, "%s %s: %s %s", t->is_source ? "source" : "target", t->address, c->method, c->object);
    return buf;
}

/* Else the peer may still be at it. */
static bool is_answer(const struct grpc_result *r)
{
    enum { CANCELLED = 1, DEADLINE = 4, UNAVAILABLE = 14 };

    return !r->maybe_sent || (r->status != CANCELLED && r->status != DEADLINE && r->status != UNAVAILABLE);
}

static void on_result(void *arg, const struct grpc_result *r)
{
    struct sink_call *c = arg;
    char context[CONTEXT_MAX];
    struct answer a;

    rpc_over(c, is_answer(r));
    answer_init(&a, r, c->kind, call_context(c, context, sizeof(context)));
    c->on_answer(c, &a);
}

void call_rpc(struct sink_call *c, const char *method, enum answer_kind kind, const char *db,
              struct evbuffer *body, unsigned deadline_ms, answer_fn fn)
{
    struct target *t = c->target;

    c->method = method;
    c->kind = kind;
    c->on_answer = fn;
    c->deadline_ms = deadline_ms;
    if (!t->lite) {
        rpc_start(c, body, db);
        return;
    }
    c->body = evbuffer_new();
    c->body_db = xstrdup(db);
    if (!c->body || evbuffer_add_buffer(c->body, body))
        abort(); /* only a frozen buffer is refused, and ours is not */
    TAILQ_INSERT_TAIL(&t->turns, c, turn);
    next_turn(t);
}

void call_send(struct sink_call *c, const char *method, enum answer_kind kind, const char *db,
               const ProtobufCMessage *req, answer_fn fn)
{
    struct evbuffer *body = evbuffer_new();
    size_t len = protobuf_c_message_get_packed_size(req);
    uint8_t *data = xmalloc(len + 1);

    protobuf_c_message_pack(req, data);
    if (!body || evbuffer_add(body, data, len))
        abort(); /* a small control message */
    free(data);
    call_rpc(c, method, kind, db, body, DDL_DEADLINE_MS, fn);
    evbuffer_free(body);
}

void call_after(struct sink_call *c, unsigned ms, void (*fn)(struct sink_call *))
{
    c->on_timer = fn;
    timer_set(&c->timer, ms);
}

static void on_late(struct sink_call *c)
{
    c->fail(c, &c->late);
}

void call_fail_later(struct sink_call *c)
{
    call_after(c, 0, on_late);
}

Pb__MsgBase *replicate_base_init(struct replicate_base *b, const struct target *t, uint64_t tt)
{
    if (t->mode == TARGET_PLAIN)
        return NULL;
    pb__replicate_info__init(&b->info);
    pb__msg_base__init(&b->base);
    b->info.is_replicate = true;
    b->info.msg_timestamp = tt;
    b->base.replicate_info = &b->info;
    return &b->base;
}

/* ---- operations without a result --------------------------------------------------------------- */

static void plain_call_release(struct sink_call *c)
{
    free(container_of(c, struct plain_call, call));
}

struct plain_call *plain_call_new(struct target *t, char *object, sink_done_fn done, void *arg)
{
    struct plain_call *p = xcalloc(1, sizeof(*p));

    call_init(&p->call, t, object, plain_call_release, plain_call_done);
    p->done = done;
    p->arg = arg;
    return p;
}

void plain_call_done(struct sink_call *c, const struct err *err)
{
    struct plain_call *p = container_of(c, struct plain_call, call);

    call_end(c);
    p->done(p->arg, err);
}
