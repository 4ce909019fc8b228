#include "net/grpc.h"

#include "base/backoff.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/fence.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "net/grpc_priv.h"
#include "net/h2_priv.h"
#include "net/outq_priv.h"
#include "net/tls_priv.h"

#include <assert.h>
#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>

enum {
    PREFIX = 5, /* compressed flag, length (big endian) */
    BODY_FIRST = 16 << 10, /* bytes; grows with what arrives, not with a peer's promise */
    BODY_MAP = 1 << 20, /* bytes; a larger unary answer is mapped: the heap would keep holes of that size */
    BODY_KEEP = 1 << 20, /* bytes a stream keeps for its next message */
    MAX_NV = 64,
    DEFAULT_CONNECT_MS = 5000,
    DEFAULT_KEEPALIVE_MS = 10000,
    DEFAULT_RECV_MAX = 64 << 20,
    BACKOFF_MIN_MS = 100,
    BACKOFF_MAX_MS = 5000,
};

/* A call is on the client's list of its state. */
enum call_state {
    CALL_WAITING,  /* for a connection or a free stream; deadline armed */
    CALL_ACTIVE,   /* stream and link are set; deadline armed */
    CALL_FINISHED, /* the result is known; the client's kick will deliver it */
    CALL_GONE,     /* done() is running or was, or cancelled; memory goes soon */
};

struct link;

struct header {
    LIST_ENTRY(header) next;
    char *key, *value;
};
LIST_HEAD(header_list, header);

struct grpc_call {
    TAILQ_ENTRY(grpc_call) next;
    struct grpc_client *client;
    enum call_state state;
    bool unary;
    char *path;
    struct header_list headers;
    struct outq out;
    struct h2_stream *stream;
    struct link *link;
    unsigned deadline_ms; /* 0: none */
    uint64_t deadline_at_ms;
    struct timer deadline;
    grpc_message_fn on_message;
    grpc_done_fn done;
    void *arg;
    /* the answer */
    int http_status;  /* 0: no answer yet */
    int grpc_status;  /* -1: not yet */
    bool not_grpc;    /* content-type */
    char *message;    /* NULL: none */
    uint8_t prefix[PREFIX];
    size_t prefix_len;
    uint8_t *body;
    size_t body_len, body_got, body_room, max_recv;
    bool body_mapped;
    bool has_body; /* one whole message is in body (unary) */
    bool maybe_sent;
};

TAILQ_HEAD(call_list, grpc_call);

/* One connection; only the current one gets new calls. */
struct link {
    LIST_ENTRY(link) next; /* among those that drain */
    struct grpc_client *client;
    struct h2_conn *h2;
    bool proven; /* a call was answered: a loss is not the server's habit */
};

struct grpc_client {
    struct loop *loop;
    bool closed;
    char *host, *tls_name, *authority, *log_name;
    struct h2_options o;
    size_t max_recv;
    struct header_list headers;
    struct call_list waiting, active, finished;
    struct link *link; /* current, or NULL */
    bool up;           /* link may be used */
    bool fail_fast;
    const struct fence *fence;
    LIST_HEAD(, link) draining;
    struct timer kick;  /* zero: deliver, start calls, connect */
    struct timer retry; /* armed: no connecting before */
    struct backoff backoff;
    unsigned failures; /* since the last connection */
    uint64_t generation;
    char *trouble;
};

/* ---- headers */

static void headers_set(struct header_list *list, const char *key, const char *value)
{
    struct header *h;

    LIST_FOREACH (h, list, next)
        if (strcmp(h->key, key) == 0)
            break;
    if (h) {
        LIST_REMOVE(h, next);
        free(h->key);
        free(h->value);
        free(h);
    }
    if (!value)
        return;
    h = xcalloc(1, sizeof(*h));
    h->key = xstrdup(key);
    h->value = xstrdup(value);
    LIST_INSERT_HEAD(list, h, next);
}

static void headers_clear(struct header_list *list)
{
    while (!LIST_EMPTY(list))
        headers_set(list, LIST_FIRST(list)->key, NULL);
}

static bool headers_have(const struct header_list *list, const char *key)
{
    const struct header *h;

    LIST_FOREACH (h, list, next)
        if (strcmp(h->key, key) == 0)
            return true;
    return false;
}

struct nv_list {
    nghttp2_nv nv[MAX_NV];
    size_t n;
};

static void nv_add(struct nv_list *l, const char *key, const char *value)
{
    assert(l->n < MAX_NV);
    l->nv[l->n++] = (nghttp2_nv){
        .name = (uint8_t *)(uintptr_t)key, /* nghttp2 copies; its struct lacks the const */
        .value = (uint8_t *)(uintptr_t)value,
        .namelen = strlen(key),
        .valuelen = strlen(value),
        /* A secret must not stay in compression tables. */
        .flags = strcmp(key, "authorization") == 0 ? NGHTTP2_NV_FLAG_NO_INDEX
                                                   : NGHTTP2_NV_FLAG_NONE,
    };
}

static void nv_fill(struct nv_list *l, const struct grpc_call *call, char *timeout, size_t size)
{
    const struct grpc_client *c = call->client;
    const struct header *h;
    uint64_t now = clock_mono_ms();

    l->n = 0;
    nv_add(l, ":method", "POST");
    nv_add(l, ":scheme", c->o.tls ? "https" : "http");
    nv_add(l, ":path", call->path);
    nv_add(l, ":authority", c->authority);
    nv_add(l, "te", "trailers");
    if (call->deadline_ms) {
        grpc_timeout_format(call->deadline_at_ms > now ? call->deadline_at_ms - now : 1, timeout,
                            size);
        nv_add(l, "grpc-timeout", timeout);
    }
    nv_add(l, "content-type", "application/grpc"); /* exactly: milvus 2.3 port multiplexer */
    if (!headers_have(&c->headers, "user-agent"))
        nv_add(l, "user-agent", "milvus-cdc/" MILVUS_CDC_VERSION);
    LIST_FOREACH (h, &c->headers, next)
        if (!headers_have(&call->headers, h->key))
            nv_add(l, h->key, h->value);
    LIST_FOREACH (h, &call->headers, next)
        nv_add(l, h->key, h->value);
}

/* ---- life of a call */

static struct call_list *list_of(struct grpc_call *call)
{
    switch (call->state) {
    case CALL_WAITING:
        return &call->client->waiting;
    case CALL_ACTIVE:
        return &call->client->active;
    case CALL_FINISHED:
        return &call->client->finished;
    case CALL_GONE:
        break;
    }
    return NULL;
}

static void set_state(struct grpc_call *call, enum call_state to)
{
    /* Bit n: a move to state n is legal. */
    static const unsigned legal[] = {
        [CALL_WAITING] = 1 << CALL_ACTIVE | 1 << CALL_FINISHED | 1 << CALL_GONE,
        [CALL_ACTIVE] = 1 << CALL_WAITING | 1 << CALL_FINISHED | 1 << CALL_GONE,
        [CALL_FINISHED] = 1 << CALL_GONE,
        [CALL_GONE] = 0,
    };

    assert(legal[call->state] & 1u << to);
    TAILQ_REMOVE(list_of(call), call, next);
    call->state = to;
    if (to == CALL_WAITING) /* back from a connection: it is older than those that wait */
        TAILQ_INSERT_HEAD(list_of(call), call, next);
    else if (to != CALL_GONE)
        TAILQ_INSERT_TAIL(list_of(call), call, next);
}

static void kick(struct grpc_client *c)
{
    timer_set(&c->kick, 0);
}

/* From here on the connection knows nothing of the call. */
static void drop_stream(struct grpc_call *call)
{
    if (call->stream) {
        call->maybe_sent |= h2_stream_sent(call->stream);
        h2_stream_reset(call->stream, NGHTTP2_CANCEL);
    }
    call->stream = NULL;
    call->link = NULL;
    outq_release(&call->out);
}

/* Takes message. */
static void finish(struct grpc_call *call, int status, char *message)
{
    if (call->state == CALL_FINISHED || call->state == CALL_GONE) {
        free(message);
        return;
    }
    drop_stream(call);
    timer_cancel(&call->deadline);
    free(call->message);
    call->message = message;
    call->grpc_status = status;
    set_state(call, CALL_FINISHED);
    kick(call->client);
}

static void call_free(void *arg)
{
    struct grpc_call *call = arg;

    headers_clear(&call->headers);
    outq_release(&call->out);
    free(call->path);
    free(call->message);
    if (call->body_mapped)
        munmap(call->body, call->body_room);
    else
        free(call->body);
    free(call);
}

static void deliver(struct grpc_call *call)
{
    struct grpc_result r = {
        .status = call->grpc_status,
        .message = call->message ? call->message : "",
        .maybe_sent = call->maybe_sent,
        .call = call,
    };

    if (call->grpc_status == GRPC_OK && call->has_body) {
        static const uint8_t empty[1];

        r.body = call->body ? call->body : empty;
        r.body_len = call->body_len;
    }
    set_state(call, CALL_GONE);
    timer_release(&call->deadline);
    call->done(call->arg, &r);
    call_free(call);
}

struct mapping {
    void *data;
    size_t len;
};

static void unmap(void *arg)
{
    struct mapping *m = arg;

    munmap(m->data, m->len);
    free(m);
}

struct buf *grpc_result_take(const struct grpc_result *r)
{
    struct grpc_call *call = r->call;
    uint8_t *body = call->body;
    struct mapping *m;

    assert(r->body && (body || r->body_len == 0));
    call->body = NULL;
    if (!call->body_mapped)
        return buf_wrap(body, r->body_len, free, body);
    call->body_mapped = false;
    m = xmalloc(sizeof(*m));
    *m = (struct mapping){body, call->body_room};
    return buf_wrap(body, r->body_len, unmap, m);
}

void grpc_call_limit(struct grpc_call *call, size_t max_recv_bytes)
{
    call->max_recv = max_recv_bytes;
}

void grpc_call_cancel(struct grpc_call *call)
{
    if (!call || call->state == CALL_GONE)
        return;
    drop_stream(call);
    set_state(call, CALL_GONE);
    timer_release(&call->deadline);
    kick(call->client); /* a stream may be free */
    loop_defer(call->client->loop, call_free, call); /* its on_message() may be running */
}

static void on_deadline(void *arg)
{
    struct grpc_call *call = arg;
    struct grpc_client *c = call->client;
    char *text;

    if (call->state == CALL_ACTIVE)
        text = xasprintf("no complete answer from %s within %u ms", c->authority,
                         call->deadline_ms);
    else if (c->up)
        text = xasprintf("%s had no free stream within %u ms", c->authority, call->deadline_ms);
    else
        text = xasprintf("not connected to %s within %u ms: %s", c->authority, call->deadline_ms,
                         c->trouble ? c->trouble : "still connecting");
    finish(call, GRPC_DEADLINE_EXCEEDED, text);
}

/* ---- the answer */

static void on_header(void *arg, const char *name, const char *value)
{
    struct grpc_call *call = arg;

    if (strcmp(name, ":status") == 0) {
        call->http_status = atoi(value); /* nghttp2 let only three digits through */
    } else if (strcmp(name, "grpc-status") == 0) {
        call->grpc_status = grpc_status_parse(value);
    } else if (strcmp(name, "grpc-message") == 0) {
        free(call->message);
        call->message = xstrdup(value);
        grpc_percent_decode(call->message);
    } else if (strcmp(name, "content-type") == 0) {
        call->not_grpc = strncmp(value, "application/grpc", 16) != 0;
    }
}

/* All of it at once: what does not arrive is not touched. */
static bool body_map(struct grpc_call *call)
{
    void *p = mmap(NULL, call->body_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return false;
    call->body = p;
    call->body_room = call->body_len;
    call->body_mapped = true;
    return true;
}

/* Room for what has arrived and n bytes more. */
static bool body_reserve(struct grpc_call *call, size_t n)
{
    size_t need = call->body_got + n, room = call->body_room ? call->body_room : BODY_FIRST;
    uint8_t *p;

    if (need <= call->body_room)
        return true;
    if (call->unary && call->body_len >= BODY_MAP)
        return body_map(call);
    while (room < need)
        room *= 2;
    if (room > call->body_len)
        room = call->body_len;
    p = realloc(call->body, room);
    if (!p)
        return false;
    call->body = p;
    call->body_room = room;
    return true;
}

static void got_prefix(struct grpc_call *call)
{
    const uint8_t *p = call->prefix;
    size_t len = (size_t)p[1] << 24 | (size_t)p[2] << 16 | (size_t)p[3] << 8 | p[4];

    if (p[0] != 0)
        finish(call, GRPC_INTERNAL, xasprintf("compressed answer (flag %u), not asked for", p[0]));
    else if (call->has_body)
        finish(call, GRPC_INTERNAL, xstrdup("more than one message in a unary answer"));
    else if (len > call->max_recv)
        finish(call, GRPC_RESOURCE_EXHAUSTED,
               xasprintf("answer of %zu bytes is above the limit of %zu", len, call->max_recv));
    call->body_len = len;
    call->body_got = 0;
}

/* A whole message is there. User code may run: the call may be gone afterwards, its memory not. */
static void got_message(struct grpc_call *call)
{
    static const uint8_t empty[1];

    call->prefix_len = 0;
    if (call->unary) {
        call->has_body = true;
        return;
    }
    call->on_message(call->arg, call->body ? call->body : empty, call->body_len);
    if (call->body_room > BODY_KEEP) {
        xfree(&call->body);
        call->body_room = 0;
    }
}

/* Takes a part of what is there and says how much. */
static size_t take(struct grpc_call *call, const uint8_t *data, size_t len)
{
    size_t n;

    if (call->prefix_len < PREFIX) {
        call->prefix[call->prefix_len++] = *data;
        if (call->prefix_len == PREFIX)
            got_prefix(call);
        n = 1;
    } else {
        n = call->body_len - call->body_got < len ? call->body_len - call->body_got : len;
        if (!body_reserve(call, n)) {
            finish(call, GRPC_RESOURCE_EXHAUSTED,
                   xasprintf("no memory for an answer of %zu bytes", call->body_len));
            return n;
        }
        memcpy(call->body + call->body_got, data, n);
        call->body_got += n;
    }
    if (call->state == CALL_ACTIVE && call->prefix_len == PREFIX &&
        call->body_got == call->body_len)
        got_message(call);
    return n;
}

static void on_data(void *arg, const uint8_t *data, size_t len)
{
    struct grpc_call *call = arg;

    if (call->http_status != 200 || call->not_grpc)
        return; /* a proxy's page; the end says it */
    while (len > 0 && call->state == CALL_ACTIVE) {
        size_t n = take(call, data, len);

        data += n;
        len -= n;
    }
}

static void on_end(void *arg)
{
    struct grpc_call *call = arg;
    char *message = NULL;
    int status = call->grpc_status;

    call->link->proven = true;
    if (status > 0) {
        message = call->message;
        call->message = NULL;
    } else if (call->http_status != 200) {
        status = grpc_status_of_http(call->http_status);
        message = xasprintf("HTTP status %d", call->http_status);
    } else if (call->not_grpc) {
        status = GRPC_UNKNOWN;
        message = xstrdup("the answer is not gRPC (content-type)");
    } else if (status < 0) {
        status = GRPC_INTERNAL;
        message = xstrdup("the answer ended without grpc-status");
    } else if (call->prefix_len > 0) {
        status = GRPC_INTERNAL;
        message = xstrdup("the answer ended inside a message");
    } else if (call->unary && !call->has_body) {
        status = GRPC_INTERNAL;
        message = xstrdup("the answer has no message");
    }
    finish(call, status, message);
}

static void on_stream_close(void *arg, uint32_t code, bool sent)
{
    struct grpc_call *call = arg;
    struct link *link = call->link;

    call->stream = NULL;
    call->link = NULL;
    call->maybe_sent = sent;
    if (!sent && (code == H2_CONN_LOST || link != call->client->link)) {
        set_state(call, CALL_WAITING); /* nothing left: the next connection takes it */
        kick(call->client);
    } else if (call->grpc_status > 0) { /* the peer's own words, although the end is missing */
        char *message = call->message;

        call->message = NULL;
        finish(call, call->grpc_status, message);
    } else if (code == H2_CONN_LOST) {
        finish(call, GRPC_UNAVAILABLE, xasprintf("connection to %s lost: %s",
                                                 call->client->authority, h2_reason(link->h2)));
    } else {
        /* Refused, or above GOAWAY's last stream: the peer did nothing (RFC 9113 8.7). */
        if (code == NGHTTP2_REFUSED_STREAM && call->http_status == 0)
            call->maybe_sent = false;
        finish(call, grpc_status_of_reset(code),
               xasprintf("stream reset: %s", nghttp2_http2_strerror(code)));
    }
}

static const struct h2_stream_events stream_events = {
    .on_header = on_header,
    .on_data = on_data,
    .on_end = on_end,
    .on_close = on_stream_close,
};

/* ---- connections */

static void set_trouble(struct grpc_client *c, const char *text)
{
    char *copy = xstrdup(text);

    free(c->trouble);
    c->trouble = copy;
}

static void link_close(struct link *link)
{
    h2_close(link->h2);
    free(link);
}

/* The next connecting waits, unless this connection had worked. */
static void back_off(struct grpc_client *c, bool proven)
{
    if (proven)
        backoff_reset(&c->backoff);
    timer_set(&c->retry, backoff_next_ms(&c->backoff));
}

static void on_up(void *arg)
{
    struct link *link = arg;
    struct grpc_client *c = link->client;

    c->up = true;
    c->generation++;
    xfree(&c->trouble);
    log_info("grpc", "connected", KS("client", c->log_name), KS("peer", c->authority),
             KU("generation", c->generation), KU("failures", c->failures));
    c->failures = 0;
    kick(c);
}

static void on_room(void *arg)
{
    struct link *link = arg;

    kick(link->client);
}

/* New calls need another connection; the open ones end on this one. */
static void retire(struct link *link, const char *why)
{
    struct grpc_client *c = link->client;

    if (c->link != link)
        return;
    log_info("grpc", "connection drains", KS("client", c->log_name), KS("peer", c->authority),
             KS("reason", why), KU("streams", h2_stream_count(link->h2)));
    c->link = NULL;
    c->up = false;
    LIST_INSERT_HEAD(&c->draining, link, next);
    if (!link->proven) { /* a server that always says so must not be called in a tight loop */
        set_trouble(c, why);
        back_off(c, false);
    }
    kick(c);
}

static void on_goaway(void *arg, const char *text)
{
    retire(arg, text);
}

/* Repeated failures are counted, not logged: the connection that works again tells their number. */
static void note_down(struct grpc_client *c, const char *reason)
{
    bool news = c->up || !c->trouble || strcmp(c->trouble, reason) != 0;

    if (news)
        log_warn("grpc", c->up ? "connection lost" : "cannot connect", KS("client", c->log_name),
                 KS("peer", c->authority), KS("reason", reason), KU("failures", c->failures));
    c->failures++;
    set_trouble(c, reason);
}

static void refuse_all(struct grpc_client *c, const char *reason)
{
    struct grpc_call *call;

    while ((call = TAILQ_FIRST(&c->waiting)))
        finish(call, GRPC_UNAVAILABLE, xasprintf("%s: %s", c->authority, reason));
}

static void on_down(void *arg, const char *reason)
{
    struct link *link = arg;
    struct grpc_client *c = link->client;

    if (c->link == link) {
        if (c->fail_fast && !c->up)
            refuse_all(c, reason);
        note_down(c, reason);
        c->link = NULL;
        c->up = false;
        back_off(c, link->proven);
    } else {
        LIST_REMOVE(link, next);
    }
    link_close(link);
    kick(c);
}

static const struct h2_events conn_events = {
    .on_up = on_up,
    .on_room = on_room,
    .on_goaway = on_goaway,
    .on_down = on_down,
};

static void connect_now(struct grpc_client *c)
{
    struct link *link = xcalloc(1, sizeof(*link));

    link->client = c;
    c->link = link;
    link->h2 = h2_open(c->loop, &c->o, &conn_events, link);
}

static void start_call(struct grpc_call *call)
{
    struct link *link = call->client->link;
    struct nv_list nvs;
    char timeout[24];

    nv_fill(&nvs, call, timeout, sizeof(timeout));
    call->stream = h2_start(link->h2, nvs.nv, nvs.n, &call->out, &stream_events, call);
    if (!call->stream) {
        retire(link, "no stream number is left");
        return;
    }
    call->link = link;
    set_state(call, CALL_ACTIVE);
}

void grpc_client_cut(struct grpc_client *c, const char *reason)
{
    struct link *link;

    refuse_all(c, reason);
    LIST_FOREACH (link, &c->draining, next)
        h2_cut(link->h2, reason);
    if (c->link)
        h2_cut(c->link->h2, reason);
}

static void start_calls(struct grpc_client *c)
{
    if (!fence_open(c->fence))
        refuse_all(c, FENCE_CLOSED);
    while (!TAILQ_EMPTY(&c->waiting) && c->up && h2_can_start(c->link->h2))
        start_call(TAILQ_FIRST(&c->waiting));
    if (!TAILQ_EMPTY(&c->waiting) && !c->link && !timer_armed(&c->retry))
        connect_now(c);
}

static void close_drained(struct grpc_client *c)
{
    struct link *link = LIST_FIRST(&c->draining);

    while (link) {
        struct link *next = LIST_NEXT(link, next);

        if (h2_stream_count(link->h2) == 0) {
            LIST_REMOVE(link, next);
            link_close(link);
        }
        link = next;
    }
}

static void on_kick(void *arg)
{
    struct grpc_client *c = arg;

    /* User code may cancel others or close the client, but finish none. */
    while (!c->closed && !TAILQ_EMPTY(&c->finished))
        deliver(TAILQ_FIRST(&c->finished));
    if (c->closed)
        return;
    close_drained(c);
    start_calls(c);
}

static void on_retry(void *arg)
{
    start_calls(arg);
}

/* ---- the client */

static void set_names(struct grpc_client *c, const struct grpc_options *o)
{
    const char *name = o->tls && o->tls_server_name ? o->tls_server_name : o->host;

    c->host = xstrdup(o->host);
    c->tls_name = xstrdup(name);
    c->authority = xasprintf(strchr(name, ':') ? "[%s]:%u" : "%s:%u", name, o->port);
    c->log_name = xstrdup(o->log_name ? o->log_name : "");
}

static unsigned or_default(unsigned value, unsigned fallback)
{
    return value ? value : fallback;
}

static int make_tls(const struct grpc_options *o, struct ssl_ctx_st **ret_ctx, struct err *err)
{
    struct tls_options t = {.ca_path = o->ca_path,
                            .cert_path = o->cert_path,
                            .key_path = o->key_path,
                            .min_version = o->tls_min_version};

    if (!o->tls)
        return 0;
    *ret_ctx = tls_client_ctx(&t, err);
    return *ret_ctx ? 0 : ERR_INVALID;
}

struct grpc_client *grpc_client_new(struct loop *l, const struct grpc_options *o, struct err *err)
{
    struct grpc_client *c;
    struct ssl_ctx_st *tls = NULL;

    if (!o->host || !*o->host || !o->port) {
        err_set(err, ERR_INVALID, ERRC_USER, "%s: host or port is empty",
                o->log_name ? o->log_name : "grpc");
        return NULL;
    }
    if (make_tls(o, &tls, err))
        return NULL;
    c = xcalloc(1, sizeof(*c));
    c->loop = l;
    set_names(c, o);
    c->fail_fast = o->fail_fast;
    c->fence = o->fence;
    c->max_recv = o->max_recv_bytes ? o->max_recv_bytes : DEFAULT_RECV_MAX;
    c->o = (struct h2_options){
        .host = c->host,
        .port = o->port,
        .tls = tls,
        .tls_name = c->tls_name,
        .connect_timeout_ms = or_default(o->connect_timeout_ms, DEFAULT_CONNECT_MS),
        .keepalive_ms = or_default(o->keepalive_ms, DEFAULT_KEEPALIVE_MS),
        .keepalive_timeout_ms = or_default(o->keepalive_timeout_ms, DEFAULT_KEEPALIVE_MS),
        .fence = o->fence,
    };
    c->backoff = (struct backoff)BACKOFF_INIT(BACKOFF_MIN_MS, BACKOFF_MAX_MS);
    TAILQ_INIT(&c->waiting);
    TAILQ_INIT(&c->active);
    TAILQ_INIT(&c->finished);
    timer_init(&c->kick, l, LOOP_PRIO_NORMAL, on_kick, c);
    timer_init(&c->retry, l, LOOP_PRIO_NORMAL, on_retry, c);
    return c;
}

static void client_free(void *arg)
{
    struct grpc_client *c = arg;

    headers_clear(&c->headers);
    tls_client_ctx_free(c->o.tls);
    free(c->host);
    free(c->tls_name);
    free(c->authority);
    free(c->log_name);
    free(c->trouble);
    free(c);
}

static void cancel_all(struct call_list *list)
{
    while (!TAILQ_EMPTY(list))
        grpc_call_cancel(TAILQ_FIRST(list));
}

void grpc_client_close(struct grpc_client *c)
{
    struct link *link;

    if (!c || c->closed)
        return;
    c->closed = true;
    cancel_all(&c->waiting);
    cancel_all(&c->active);
    cancel_all(&c->finished);
    if (c->link)
        link_close(c->link);
    c->link = NULL;
    while ((link = LIST_FIRST(&c->draining))) {
        LIST_REMOVE(link, next);
        link_close(link);
    }
    timer_release(&c->kick);
    timer_release(&c->retry);
    loop_defer(c->loop, client_free, c);
}

void grpc_client_set_header(struct grpc_client *c, const char *key, const char *value)
{
    headers_set(&c->headers, key, value);
}

const char *grpc_client_trouble(const struct grpc_client *c)
{
    return c->trouble;
}

uint64_t grpc_client_generation(const struct grpc_client *c)
{
    return c->generation;
}

/* ---- starting calls */

static struct grpc_call *call_new(struct grpc_client *c, const char *path,
                                  const struct grpc_header *headers, grpc_done_fn done, void *arg)
{
    struct grpc_call *call = xcalloc(1, sizeof(*call));

    assert(!c->closed);
    call->client = c;
    call->max_recv = c->max_recv;
    call->path = xstrdup(path);
    for (; headers && headers->key; headers++)
        headers_set(&call->headers, headers->key, headers->value);
    outq_init(&call->out);
    call->grpc_status = -1;
    call->done = done;
    call->arg = arg;
    timer_init(&call->deadline, c->loop, LOOP_PRIO_NORMAL, on_deadline, call);
    call->state = CALL_WAITING;
    TAILQ_INSERT_TAIL(&c->waiting, call, next);
    kick(c);
    return call;
}

static void add_message(struct grpc_call *call, struct evbuffer *body)
{
    size_t len = evbuffer_get_length(body);
    const uint8_t head[PREFIX] = {0, (uint8_t)(len >> 24), (uint8_t)(len >> 16),
                                  (uint8_t)(len >> 8), (uint8_t)len};

    assert(len <= UINT32_MAX);
    outq_add(&call->out, head, sizeof(head), body);
}

struct grpc_call *grpc_unary(struct grpc_client *c, const char *path,
                             const struct grpc_header *headers, struct evbuffer *body,
                             unsigned deadline_ms, grpc_done_fn done, void *arg)
{
    struct grpc_call *call = call_new(c, path, headers, done, arg);

    assert(deadline_ms > 0);
    call->unary = true;
    add_message(call, body);
    call->out.end = true;
    call->deadline_ms = deadline_ms;
    call->deadline_at_ms = clock_mono_ms() + deadline_ms;
    timer_set(&call->deadline, deadline_ms);
    return call;
}

struct grpc_call *grpc_stream(struct grpc_client *c, const char *path,
                              const struct grpc_header *headers, grpc_message_fn on_message,
                              grpc_done_fn done, void *arg)
{
    struct grpc_call *call = call_new(c, path, headers, done, arg);

    call->on_message = on_message;
    return call;
}

void grpc_stream_send(struct grpc_call *call, struct evbuffer *body)
{
    if (call->state != CALL_WAITING && call->state != CALL_ACTIVE) {
        evbuffer_drain(body, evbuffer_get_length(body)); /* its end is on the way to the owner */
        return;
    }
    add_message(call, body);
    if (call->stream)
        h2_stream_resume(call->stream);
}
