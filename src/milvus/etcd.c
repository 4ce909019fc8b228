#include "milvus/etcd.h"

#include "base/backoff.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "net/grpc.h"

#include "etcd.pb-c.h"

#include <assert.h>
#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

enum {
    DEFAULT_DIAL_MS = 5000,
    ANSWER_MS = 10000,  /* one try of a unary call, on top of the time to connect */
    POLL_MS = 250,      /* how soon a refused connection makes us try another endpoint ... */
    LAST_MS = 1000,     /* ... and how soon the last one of a round: the first may be back */
    LOGINS_MAX = 2,     /* fresh tokens that one call may ask for */
    BACKOFF_MIN_MS = 100,
    BACKOFF_MAX_MS = 5000,
    SLOW_RETRY_MS = 15000, /* a human has to act first */
    FRAGMENTS_MAX_BYTES = 256 << 20,
};

/* gRPC status numbers (google.rpc.Code). */
enum {
    GRPC_INVALID_ARGUMENT = 3,
    GRPC_PERMISSION_DENIED = 7,
    GRPC_FAILED_PRECONDITION = 9,
    GRPC_OUT_OF_RANGE = 11,
    GRPC_UNAUTHENTICATED = 16,
};

static const char PATH_RANGE[] = "/etcdserverpb.KV/Range";
static const char PATH_LOGIN[] = "/etcdserverpb.Auth/Authenticate";
static const char PATH_WATCH[] = "/etcdserverpb.Watch/Watch";

struct endpoint {
    char *name; /* "host:port" */
    struct grpc_client *grpc;
};

enum login_state {
    LOGIN_NONE,   /* no credentials, or the server has authentication off: no token needed */
    LOGIN_NEEDED, /* no token, or a refused one */
    LOGIN_RUNNING,
    LOGIN_DONE,
};

struct etcd_client {
    struct loop *loop;
    struct endpoint *endpoints;
    unsigned n_endpoints;
    unsigned current; /* where the next call begins */
    unsigned dial_ms, try_ms;
    char *username, *password;
    enum login_state login;
    unsigned token_gen; /* rises with each token */
    uint64_t cluster_id; /* of the last range, 0: none yet */
    TAILQ_HEAD(, etcd_call) calls;
    TAILQ_HEAD(, etcd_watch) watches;
};

/* A walk over the endpoints for one request: each is tried once a round. */
struct rotation {
    unsigned at, tried;
    uint64_t since_ms; /* when the present one was asked */
};

enum call_state {
    CALL_LOGIN,   /* waits for a token */
    CALL_SENT,    /* timer: looks for a refused connection */
    CALL_FAILING, /* err is to be told from the loop; timer armed */
    CALL_OVER,
};

struct etcd_call {
    TAILQ_ENTRY(etcd_call) next;
    struct etcd_client *e;
    enum call_state state;
    bool is_login;
    uint8_t *body;
    size_t body_len;
    struct rotation rot;
    unsigned logins;    /* that this call has asked for */
    unsigned token_gen; /* of the token sent */
    struct grpc_call *grpc;
    struct timer timer;
    struct err err;
    etcd_range_fn done;
    void *arg;
};

enum watch_state {
    WATCH_LOGIN,   /* waits for a token */
    WATCH_OPENING, /* sent; timer: looks for refused connections, and the deadline */
    WATCH_LIVE,    /* the server has confirmed it; no timer, the connection has its own pings */
    WATCH_FAILING, /* err is to be handled from the loop; timer armed */
    WATCH_BACKOFF, /* timer armed */
    WATCH_OVER,
};

struct etcd_watch {
    TAILQ_ENTRY(etcd_watch) next;
    struct etcd_client *e;
    enum watch_state state;
    char *key, *end;
    int64_t next_revision;
    uint64_t cluster_id;
    struct rotation rot;
    unsigned logins, token_gen;
    struct grpc_call *stream;
    struct timer timer;
    struct backoff backoff;
    struct err err;
    bool troubled; /* the owner was told of told_code */
    enum err_code told_code;
    /* Fragments of an answer that is not complete yet. */
    Etcdpb__WatchResponse **parts;
    size_t n_parts, parts_bytes;
    const struct etcd_watch_cbs *cbs;
    void *arg;
};

static void call_try(struct etcd_call *c);
static void watch_open(struct etcd_watch *w);
static void login_start(struct etcd_client *e);

/* ---- endpoints ------------------------------------------------------------------------------ */

static int bad_endpoint(const char *text, const char *why, struct err *err)
{
    return err_set(err, ERR_INVALID, ERRC_USER,
                   "etcd endpoint \"%s\": %s; expected host:port, http://host:port or "
                   "https://host:port",
                   text, why);
}

/* Splits "host:port" and "[v6]:port"; the rest of the text must be empty. */
static int parse_host_port(const char *text, const char *p, char **ret_host, uint16_t *ret_port,
                           struct err *err)
{
    const char *colon = strrchr(p, ':'), *end = colon;
    char *rest;
    unsigned long port;

    if (!colon || colon == p)
        return bad_endpoint(text, "host or port is missing", err);
    if (colon[1] < '0' || colon[1] > '9')
        return bad_endpoint(text, "the port is not a number", err);
    port = strtoul(colon + 1, &rest, 10);
    if (rest[0] == '/' && rest[1] == '\0')
        rest++;
    if (*rest || port == 0 || port > UINT16_MAX)
        return bad_endpoint(text, "the port is not a number from 1 to 65535", err);
    if (*p == '[' && end[-1] == ']' && end - p > 2) {
        p++;
        end--;
    } else if (memchr(p, ':', (size_t)(colon - p)) || memchr(p, '/', (size_t)(colon - p))) {
        return bad_endpoint(text, "the host name is not valid", err);
    }
    *ret_host = xstrndup(p, (size_t)(end - p));
    *ret_port = (uint16_t)port;
    return 0;
}

static int parse_endpoint(const char *text, bool *tls, char **ret_host, uint16_t *ret_port,
                          struct err *err)
{
    const char *p = text;

    if (strncmp(p, "https://", 8) == 0) {
        *tls = true;
        p += 8;
    } else if (strncmp(p, "http://", 7) == 0) {
        /* Silently sending a password in the clear would be worse than refusing to start. */
        if (*tls)
            return bad_endpoint(text, "http:// contradicts the setting that TLS is on", err);
        p += 7;
    } else if (strstr(p, "://")) {
        return bad_endpoint(text, "unknown scheme", err);
    }
    return parse_host_port(text, p, ret_host, ret_port, err);
}

static int endpoint_init(struct etcd_client *e, const struct etcd_options *o, const char *text,
                         struct err *err)
{
    struct grpc_options g = {.tls = o->tls,
                             .ca_path = o->ca_path,
                             .cert_path = o->cert_path,
                             .key_path = o->key_path,
                             .tls_min_version = o->tls_min_version,
                             .connect_timeout_ms = o->dial_timeout_ms,
                             .log_name = "etcd"};
    struct endpoint *ep = &e->endpoints[e->n_endpoints];
    char *host = NULL;
    int rc = parse_endpoint(text, &g.tls, &host, &g.port, err);

    if (rc)
        return rc;
    g.host = host;
    ep->grpc = grpc_client_new(e->loop, &g, err);
    if (!ep->grpc) {
        err_wrap(err, "etcd endpoint \"%s\"", text);
        free(host);
        return ERR_INVALID;
    }
    ep->name = xasprintf(strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, (unsigned)g.port);
    e->n_endpoints++;
    free(host);
    return 0;
}

static int endpoints_init(struct etcd_client *e, const struct etcd_options *o, struct err *err)
{
    unsigned n = 0;
    int rc = 0;

    while (o->endpoints && o->endpoints[n])
        n++;
    if (n == 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "no etcd endpoint is given");
    e->endpoints = xcalloc(n, sizeof(*e->endpoints));
    for (unsigned i = 0; i < n && rc == 0; i++)
        rc = endpoint_init(e, o, o->endpoints[i], err);
    return rc;
}

static struct endpoint *rot_endpoint(const struct etcd_client *e, const struct rotation *r)
{
    return &e->endpoints[r->at];
}

static void rot_start(const struct etcd_client *e, struct rotation *r)
{
    r->at = e->current;
    r->tried = 0;
}

/* True: the endpoint cannot be reached, and it is better not to wait for it any longer. */
static bool rot_give_up(const struct etcd_client *e, const struct rotation *r,
                        const char **ret_why)
{
    uint64_t patience_ms = e->n_endpoints == 1 ? e->dial_ms : LAST_MS;

    *ret_why = grpc_client_trouble(rot_endpoint(e, r)->grpc);
    return *ret_why &&
           (r->tried + 1 < e->n_endpoints || clock_mono_ms() - r->since_ms >= patience_ms);
}

static bool rot_has_more(const struct etcd_client *e, const struct rotation *r)
{
    return r->tried + 1 < e->n_endpoints;
}

/* The endpoint failed.  True: another one is to be tried in this round. */
static bool rot_next(struct etcd_client *e, struct rotation *r)
{
    bool more = rot_has_more(e, r);

    if (e->current == r->at)
        e->current = (e->current + 1) % e->n_endpoints;
    /* The last of a round gets more time to connect than the others: let that be another one then. */
    if (!more && e->n_endpoints > 1)
        e->current = (e->current + 1) % e->n_endpoints;
    if (more) {
        r->at = (r->at + 1) % e->n_endpoints;
        r->tried++;
    }
    return more;
}

/* ---- the token ------------------------------------------------------------------------------ */

static bool text_is(const char *message, const char *part)
{
    return message && strstr(message, part) != NULL;
}

/* The texts are those of etcd's api/v3rpc/rpctypes/error.go; some come with InvalidArgument. */
static bool token_refused(int status, const char *message)
{
    return status == GRPC_UNAUTHENTICATED || text_is(message, "invalid auth token") ||
           text_is(message, "user name is empty") ||
           text_is(message, "revision of auth store is old");
}

static int credentials_err(const struct etcd_client *e, const char *message, struct err *err)
{
    if (!e->username)
        return err_set(err, ERR_AUTH, ERRC_USER,
                       "etcd demands authentication (%s): set its user name and password", message);
    return err_set(err, ERR_AUTH, ERRC_USER,
                   "etcd refuses user \"%s\" (%s): check the user name, password and permissions",
                   e->username, message);
}

/* Asks for a new token, unless somebody got one since that of gen.  False: there is no point. */
static bool login_renew(struct etcd_client *e, unsigned gen, unsigned *logins)
{
    if (!e->username || *logins >= LOGINS_MAX)
        return false;
    ++*logins;
    if (gen == e->token_gen && (e->login == LOGIN_DONE || e->login == LOGIN_NONE))
        e->login = LOGIN_NEEDED;
    return true;
}

/* True: a token is on its way and whoever waits for it is told by login_finish(). */
static bool login_wait(struct etcd_client *e)
{
    if (e->login == LOGIN_NEEDED)
        login_start(e);
    return e->login == LOGIN_RUNNING;
}

static void set_token(struct etcd_client *e, const char *token)
{
    for (unsigned i = 0; i < e->n_endpoints; i++)
        grpc_client_set_header(e->endpoints[i].grpc, "token", token);
    e->token_gen++;
}

/* Lets all who wait go on, or fail with err; from the loop, since owners may do anything then. */
static void login_finish(struct etcd_client *e, const struct err *err)
{
    struct etcd_call *c;
    struct etcd_watch *w;

    TAILQ_FOREACH (c, &e->calls, next) {
        if (c->state != CALL_LOGIN)
            continue;
        if (err) {
            c->state = CALL_FAILING;
            c->err = *err;
        }
        timer_set(&c->timer, 0);
    }
    TAILQ_FOREACH (w, &e->watches, next) {
        if (w->state != WATCH_LOGIN)
            continue;
        if (err) {
            w->state = WATCH_FAILING;
            w->err = *err;
        }
        timer_set(&w->timer, 0);
    }
}

static void login_ok(struct etcd_client *e, const struct grpc_result *r)
{
    Etcdpb__AuthenticateResponse *m =
        etcdpb__authenticate_response__unpack(NULL, r->body_len, r->body);
    struct err err;

    if (!m || !m->token[0]) {
        e->login = LOGIN_NEEDED;
        err_set(&err, ERR_PROTO, ERRC_RETRY, "etcd: the answer to Authenticate has no token");
        login_finish(e, &err);
    } else {
        e->login = LOGIN_DONE;
        set_token(e, m->token);
        login_finish(e, NULL);
    }
    if (m) {
        explicit_bzero(m->token, strlen(m->token));
        etcdpb__authenticate_response__free_unpacked(m, NULL);
    }
}

/* etcd's own client goes on without a token when the server has authentication off. */
static bool login_not_enabled(struct etcd_client *e, const struct grpc_result *r)
{
    if (r->status != GRPC_FAILED_PRECONDITION ||
        !text_is(r->message, "authentication is not enabled"))
        return false;
    e->login = LOGIN_NONE;
    set_token(e, NULL);
    login_finish(e, NULL);
    return true;
}

/* ---- unary calls ---------------------------------------------------------------------------- */

static void free_call(void *arg)
{
    struct etcd_call *c = arg;

    if (c->is_login)
        explicit_bzero(c->body, c->body_len);
    free(c->body);
    timer_release(&c->timer);
    free(c);
}

/* Takes the call out of the world; nothing of it fires any more. */
static void call_retire(struct etcd_call *c)
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

    call_retire(c);
    if (c->is_login) {
        c->e->login = LOGIN_NEEDED;
        login_finish(c->e, &copy);
    } else {
        c->done(c->arg, &copy, NULL, 0, false, 0);
    }
}

/* What the server says about this request, as opposed to being unable to answer now. */
static bool call_refused(const struct etcd_call *c, const struct grpc_result *r, struct err *err)
{
    if (token_refused(r->status, r->message) || r->status == GRPC_PERMISSION_DENIED ||
        (c->is_login && r->status == GRPC_INVALID_ARGUMENT)) {
        credentials_err(c->e, r->message, err);
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
        err_wrap(&copy, "%s", rot_endpoint(c->e, &c->rot)->name);
    if (rot_next(c->e, &c->rot)) {
        log_debug("etcd", "trying the next endpoint", KS("err", copy.text));
        call_try(c);
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

/* The value stays where it lies in src; the key is copied to *keys, since it needs an end. */
static struct etcd_kv kv_from(const Etcdpb__KeyValue *src, char **keys)
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
            kvs[i] = kv_from(m->kvs[i], &p);
        call_retire(c);
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
        call_retire(c);
        login_ok(c->e, r);
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
    if (c->is_login && login_not_enabled(e, r)) {
        call_retire(c);
        return;
    }
    if (!c->is_login && token_refused(r->status, r->message) &&
        login_renew(e, c->token_gen, &c->logins)) {
        call_try(c);
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
    c->grpc = grpc_unary(rot_endpoint(e, &c->rot)->grpc, c->is_login ? PATH_LOGIN : PATH_RANGE,
                         NULL, body, e->try_ms, on_call_done, c);
    evbuffer_free(body);
    c->rot.since_ms = clock_mono_ms();
    timer_set(&c->timer, POLL_MS);
}

static void call_try(struct etcd_call *c)
{
    if (!c->is_login && login_wait(c->e)) {
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

    if (!rot_give_up(c->e, &c->rot, &why)) {
        timer_set(&c->timer, POLL_MS);
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
        call_try(c);
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

static struct etcd_call *call_new(struct etcd_client *e)
{
    struct etcd_call *c = xcalloc(1, sizeof(*c));

    c->e = e;
    timer_init(&c->timer, e->loop, LOOP_PRIO_NORMAL, on_call_timer, c);
    rot_start(e, &c->rot);
    TAILQ_INSERT_TAIL(&e->calls, c, next);
    return c;
}

static void login_start(struct etcd_client *e)
{
    Etcdpb__AuthenticateRequest m = ETCDPB__AUTHENTICATE_REQUEST__INIT;
    struct etcd_call *c = call_new(e);

    m.name = e->username;
    m.password = e->password;
    c->is_login = true;
    c->body_len = etcdpb__authenticate_request__get_packed_size(&m);
    c->body = xmalloc(c->body_len + 1);
    etcdpb__authenticate_request__pack(&m, c->body);
    e->login = LOGIN_RUNNING;
    call_try(c);
}

static ProtobufCBinaryData text_bytes(const char *text)
{
    return (ProtobufCBinaryData){text ? strlen(text) : 0, (uint8_t *)(uintptr_t)text};
}

struct etcd_call *etcd_range_since(struct etcd_client *e, const char *key, const char *end,
                                   int64_t limit, int64_t revision, int64_t min_mod_revision,
                                   etcd_range_fn done, void *arg)
{
    Etcdpb__RangeRequest m = ETCDPB__RANGE_REQUEST__INIT;
    struct etcd_call *c = call_new(e);

    m.key = text_bytes(key);
    m.range_end = text_bytes(end);
    m.limit = limit;
    m.revision = revision;
    m.min_mod_revision = min_mod_revision;
    c->body_len = etcdpb__range_request__get_packed_size(&m);
    c->body = xmalloc(c->body_len + 1);
    etcdpb__range_request__pack(&m, c->body);
    c->done = done;
    c->arg = arg;
    call_try(c);
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
        call_retire(c);
}

/* ---- watch ---------------------------------------------------------------------------------- */

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

static void watch_retire(struct etcd_watch *w)
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
        err_wrap(&copy, "%s", rot_endpoint(w->e, &w->rot)->name);
    w->state = WATCH_BACKOFF;
    if (copy.cls != ERRC_RETRY) {
        timer_set(&w->timer, SLOW_RETRY_MS);
        rot_start(w->e, &w->rot);
        watch_tell_trouble(w, &copy);
    } else if (rot_next(w->e, &w->rot)) {
        timer_set(&w->timer, 0);
    } else {
        timer_set(&w->timer, backoff_next_ms(&w->backoff));
        rot_start(w->e, &w->rot);
        watch_tell_trouble(w, &copy);
    }
}

/* A refused token is renewed; etcd 3.4 says "permission denied" of an expired one, too. */
static void watch_refused(struct etcd_watch *w, int status, const char *message)
{
    struct err err;

    if (!token_refused(status, message) && !text_is(message, "permission denied")) {
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "etcd: the watch was canceled: %s", message);
        watch_fail(w, &err);
    } else if (login_renew(w->e, w->token_gen, &w->logins)) {
        watch_hang_up(w);
        watch_open(w);
    } else {
        w->logins = 0;
        credentials_err(w->e, message, &err);
        watch_fail(w, &err);
    }
}

static void watch_compacted(struct etcd_watch *w, int64_t compact_revision)
{
    watch_retire(w);
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
    rot_start(w->e, &w->rot);
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
            events[n++].kv = kv_from(ev->kv, &keys);
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
    if (token_refused(r->status, r->message) || r->status == GRPC_PERMISSION_DENIED) {
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

    create.key = text_bytes(w->key);
    create.range_end = text_bytes(w->end);
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

    if (login_wait(e)) {
        w->state = WATCH_LOGIN;
        return;
    }
    w->state = WATCH_OPENING;
    w->token_gen = e->token_gen;
    w->rot.since_ms = clock_mono_ms();
    w->stream = grpc_stream(rot_endpoint(e, &w->rot)->grpc, PATH_WATCH, headers, on_watch_message,
                            on_watch_done, w);
    watch_send_create(w);
    timer_set(&w->timer, POLL_MS);
}

static void watch_poll(struct etcd_watch *w)
{
    const char *why;
    struct err err;

    if (rot_give_up(w->e, &w->rot, &why)) {
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "etcd: %s", why);
        watch_fail(w, &err);
    } else if (clock_mono_ms() - w->rot.since_ms >= w->e->try_ms) {
        err_set(&err, ERR_TIMEOUT, ERRC_RETRY, "etcd: no answer to a watch in %u ms",
                w->e->try_ms);
        watch_fail(w, &err);
    } else {
        timer_set(&w->timer, POLL_MS);
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
    rot_start(e, &w->rot);
    TAILQ_INSERT_TAIL(&e->watches, w, next);
    watch_open(w);
    return w;
}

void etcd_watch_stop(struct etcd_watch *w)
{
    if (w && w->state != WATCH_OVER)
        watch_retire(w);
}

/* ---- the client ----------------------------------------------------------------------------- */

static void wipe_free(char *secret)
{
    if (secret)
        explicit_bzero(secret, strlen(secret));
    free(secret);
}

static void free_client(void *arg)
{
    struct etcd_client *e = arg;

    for (unsigned i = 0; i < e->n_endpoints; i++)
        free(e->endpoints[i].name);
    free(e->endpoints);
    free(e->username);
    wipe_free(e->password);
    free(e);
}

struct etcd_client *etcd_open(struct loop *l, const struct etcd_options *o, struct err *err)
{
    struct etcd_client *e = xcalloc(1, sizeof(*e));

    e->loop = l;
    TAILQ_INIT(&e->calls);
    TAILQ_INIT(&e->watches);
    e->dial_ms = o->dial_timeout_ms ? o->dial_timeout_ms : DEFAULT_DIAL_MS;
    e->try_ms = e->dial_ms + ANSWER_MS;
    if (endpoints_init(e, o, err)) {
        etcd_close(e);
        return NULL;
    }
    if (o->username && o->username[0]) {
        e->username = xstrdup(o->username);
        e->password = xstrdup(o->password ? o->password : "");
        e->login = LOGIN_NEEDED;
    }
    return e;
}

void etcd_close(struct etcd_client *e)
{
    if (!e)
        return;
    while (!TAILQ_EMPTY(&e->watches))
        watch_retire(TAILQ_FIRST(&e->watches));
    while (!TAILQ_EMPTY(&e->calls))
        call_retire(TAILQ_FIRST(&e->calls));
    for (unsigned i = 0; i < e->n_endpoints; i++)
        grpc_client_close(e->endpoints[i].grpc);
    loop_defer(e->loop, free_client, e);
}

char *etcd_prefix_end(const char *prefix)
{
    char *end = xstrdup(prefix);
    size_t len = strlen(end);

    while (len > 0 && (unsigned char)end[len - 1] == 0xff)
        len--;
    if (len == 0) { /* no such end: "\0" would mean all keys, which a C string cannot say */
        free(end);
        return xstrdup("\xff\xff\xff\xff");
    }
    end[len - 1]++;
    end[len] = '\0';
    return end;
}
