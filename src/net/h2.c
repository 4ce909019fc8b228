#include "net/h2_priv.h"

#include "base/clock.h"
#include "base/fence.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "net/dial_priv.h"
#include "net/outq_priv.h"
#include "net/tls_priv.h"

#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    STREAM_WINDOW = 4 << 20,
    CONN_WINDOW = 8 << 20,
    HEADER_LIST_MAX = 64 << 10,
    OUTPUT_HIGH = 1 << 20,  /* no more frames are made above */
    OUTPUT_LOW = 256 << 10, /* made again below */
    READ_HIGH = 256 << 10,
    WRITE_ONCE = 256 << 10, /* bytes per system call: fairness among connections */
    LARGE_BODY = 64 << 10,
};

enum h2_state {
    H2_DIAL,     /* dial is set; limit armed */
    H2_TLS,      /* bev is set, handshake; limit armed */
    H2_SETTINGS, /* session is set, waits for the peer's SETTINGS; limit armed */
    H2_UP,       /* keepalive armed while there are streams */
    H2_DRAINING, /* GOAWAY was received, or no stream id is left; as UP, but no new streams */
    H2_FAILED,   /* kick armed: it reports */
    H2_CLOSED,   /* memory waits for the end of the loop turn */
};

struct h2_stream {
    LIST_ENTRY(h2_stream) next;
    struct h2_conn *conn;
    int32_t id;
    bool sent;  /* a byte of HEADERS went into the bufferevent */
    bool ended; /* END_STREAM came from the peer */
    struct outq *q;                    /* NULL after a reset */
    const struct h2_stream_events *ev; /* likewise */
    void *arg;
};

struct h2_conn {
    struct loop *loop;
    struct h2_options o;
    const struct h2_events *ev;
    void *arg;
    enum h2_state state;
    struct dial *dial;
    struct bufferevent *bev;
    nghttp2_session *session;
    LIST_HEAD(, h2_stream) streams;
    size_t n_streams;
    int32_t last_large; /* the newest stream with a large body, which may be gone; 0: none */
    struct h2_stream *sending_headers; /* the frame that nghttp2 hands out now is its HEADERS */
    struct timer limit, kick, keepalive;
    uint64_t last_recv_ms;
    uint64_t out_total; /* bytes put into the bufferevent */
    bool pinged;        /* and nothing was received since */
    uint64_t ping_mark; /* out_total behind the ping */
    uint64_t ping_left; /* bytes that had left the bufferevent at the last look */
    char goaway[200];   /* text of the peer's GOAWAY, or "" */
    char proto[200];    /* what nghttp2 found wrong with the peer, or "" */
    char reason[512];
};

static void set_state(struct h2_conn *c, enum h2_state to)
{
    /* Bit n: a move to state n is legal. */
    static const unsigned legal[] = {
        [H2_DIAL] = 1 << H2_TLS | 1 << H2_SETTINGS | 1 << H2_FAILED | 1 << H2_CLOSED,
        [H2_TLS] = 1 << H2_SETTINGS | 1 << H2_FAILED | 1 << H2_CLOSED,
        [H2_SETTINGS] = 1 << H2_UP | 1 << H2_DRAINING | 1 << H2_FAILED | 1 << H2_CLOSED,
        [H2_UP] = 1 << H2_DRAINING | 1 << H2_FAILED | 1 << H2_CLOSED,
        [H2_DRAINING] = 1 << H2_FAILED | 1 << H2_CLOSED,
        [H2_FAILED] = 1 << H2_CLOSED,
        [H2_CLOSED] = 0,
    };

    assert(legal[c->state] & 1u << to);
    c->state = to;
}

static bool is_live(const struct h2_conn *c)
{
    return c->state < H2_FAILED;
}

__attribute__((format(printf, 2, 3))) static void fail(struct h2_conn *c, const char *fmt, ...)
{
    va_list ap;

    if (!is_live(c))
        return;
    va_start(ap, fmt);
    vsnprintf(c->reason, sizeof(c->reason), fmt, ap);
    va_end(ap);
    set_state(c, H2_FAILED);
    timer_cancel(&c->limit);
    timer_cancel(&c->keepalive);
    if (c->bev)
        bufferevent_disable(c->bev, EV_READ | EV_WRITE);
    timer_set(&c->kick, 0);
}

/* ---- streams */

static void stream_unlink(struct h2_stream *s)
{
    struct h2_conn *c = s->conn;

    LIST_REMOVE(s, next);
    if (--c->n_streams == 0)
        timer_cancel(&c->keepalive);
    if (c->sending_headers == s)
        c->sending_headers = NULL;
}

/* The nghttp2 stream is gone or will not be looked at again. */
static void stream_close(struct h2_stream *s, uint32_t code)
{
    const struct h2_stream_events *ev = s->ev;

    stream_unlink(s);
    if (ev)
        ev->on_close(s->arg, code, s->sent);
    free(s);
}

static void report_down(struct h2_conn *c)
{
    while (!LIST_EMPTY(&c->streams) && c->state == H2_FAILED)
        stream_close(LIST_FIRST(&c->streams), H2_CONN_LOST);
    if (c->state == H2_FAILED)
        c->ev->on_down(c->arg, c->reason);
}

bool h2_can_start(const struct h2_conn *c)
{
    uint32_t max;

    if (c->state != H2_UP)
        return false;
    max = nghttp2_session_get_remote_settings(c->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
    return c->n_streams < max && nghttp2_session_check_request_allowed(c->session);
}

size_t h2_stream_count(const struct h2_conn *c)
{
    return c->n_streams;
}

static ssize_t on_read(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length,
                       uint32_t *flags, nghttp2_data_source *source, void *arg)
{
    struct h2_stream *s = source->ptr;
    size_t n;

    (void)session;
    (void)id;
    (void)buf;
    (void)arg;
    if (!s->q)
        return NGHTTP2_ERR_DEFERRED; /* its RST_STREAM is queued */
    if (s->q->bytes == 0 && !s->q->end)
        return NGHTTP2_ERR_DEFERRED;
    n = s->q->bytes < length ? s->q->bytes : length;
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (n == s->q->bytes && s->q->end)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

/*
 * Large bodies go one after the other: side by side, each would be complete, and answered, only with the last one. A
 * stream that waits for its window lets the next one pass. Small ones share with the large one of the moment.
 */
static int32_t submit(struct h2_conn *c, const nghttp2_nv *nva, size_t n_nva, struct h2_stream *s)
{
    nghttp2_data_provider body = {.source.ptr = s, .read_callback = on_read};
    nghttp2_priority_spec behind;
    bool large = s->q->bytes >= LARGE_BODY;
    int32_t id;

    nghttp2_priority_spec_init(&behind, c->last_large, NGHTTP2_DEFAULT_WEIGHT, 0);
    id = nghttp2_submit_request(c->session, large && c->last_large ? &behind : NULL, nva, n_nva, &body, s);
    if (id > 0 && large)
        c->last_large = id;
    return id;
}

struct h2_stream *h2_start(struct h2_conn *c, const nghttp2_nv *nva, size_t n_nva, struct outq *q,
                           const struct h2_stream_events *ev, void *arg)
{
    struct h2_stream *s = xcalloc(1, sizeof(*s));

    assert(c->state == H2_UP);
    s->conn = c;
    s->q = q;
    s->ev = ev;
    s->arg = arg;
    s->id = submit(c, nva, n_nva, s);
    if (s->id < 0) { /* no stream id left, or no memory */
        free(s);
        set_state(c, H2_DRAINING);
        return NULL;
    }
    LIST_INSERT_HEAD(&c->streams, s, next);
    if (c->n_streams++ == 0) {
        c->pinged = false;
        timer_set(&c->keepalive, c->o.keepalive_ms);
    }
    timer_set(&c->kick, 0);
    return s;
}

void h2_stream_resume(struct h2_stream *s)
{
    if (!is_live(s->conn))
        return;
    (void)nghttp2_session_resume_data(s->conn->session, s->id); /* fails when not deferred: fine */
    timer_set(&s->conn->kick, 0);
}

void h2_stream_reset(struct h2_stream *s, uint32_t code)
{
    s->ev = NULL;
    s->q = NULL;
    if (!is_live(s->conn))
        return;
    if (s->ended && nghttp2_session_get_stream_local_close(s->conn->session, s->id) == 1)
        return; /* over on both sides: nghttp2 is about to close it */
    if (nghttp2_submit_rst_stream(s->conn->session, NGHTTP2_FLAG_NONE, s->id, code) != 0)
        fail(s->conn, "HTTP/2: no memory");
    else
        timer_set(&s->conn->kick, 0);
}

bool h2_stream_sent(const struct h2_stream *s)
{
    /* nghttp2 may hold the finished frame until there is room: a reset does not take that back. */
    return s->sent || s->conn->sending_headers == s;
}

const char *h2_reason(const struct h2_conn *c)
{
    return c->reason;
}

/* ---- nghttp2 callbacks, sending */

static bool output_full(struct h2_conn *c)
{
    return evbuffer_get_length(bufferevent_get_output(c->bev)) >= OUTPUT_HIGH;
}

static ssize_t on_send(nghttp2_session *session, const uint8_t *data, size_t len, int flags,
                       void *arg)
{
    struct h2_conn *c = arg;

    (void)session;
    (void)flags;
    if (!is_live(c))
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (output_full(c))
        return NGHTTP2_ERR_WOULDBLOCK;
    if (evbuffer_add(bufferevent_get_output(c->bev), data, len) < 0)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    c->out_total += len;
    if (c->sending_headers)
        c->sending_headers->sent = true;
    c->sending_headers = NULL;
    return (ssize_t)len;
}

static int on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head,
                        size_t len, nghttp2_data_source *source, void *arg)
{
    enum { FRAME_HEAD = 9 };
    struct h2_conn *c = arg;
    struct h2_stream *s = source->ptr;
    struct evbuffer *out;

    (void)session;
    assert(frame->data.padlen == 0); /* no padding callback is set */
    if (!is_live(c))
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (!s->q) /* reset while this frame waited for room */
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    if (output_full(c))
        return NGHTTP2_ERR_WOULDBLOCK;
    out = bufferevent_get_output(c->bev);
    if (evbuffer_add(out, head, FRAME_HEAD) < 0 || outq_move(s->q, out, len) < 0)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    c->out_total += FRAME_HEAD + len;
    return 0;
}

static int on_before_send(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
    struct h2_conn *c = arg;

    c->sending_headers = NULL;
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST)
        c->sending_headers = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    return 0;
}

/* ---- nghttp2 callbacks, receiving; they end the feeding once user code closed the connection */

static int go_on(const struct h2_conn *c)
{
    return is_live(c) ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                     void *arg)
{
    struct h2_stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

    (void)flags;
    (void)name_len; /* nghttp2 ends both with NUL */
    (void)value_len;
    if (s && s->ev)
        s->ev->on_header(s->arg, (const char *)name, (const char *)value);
    return go_on(arg);
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t len, void *arg)
{
    struct h2_conn *c = arg;
    struct h2_stream *s = nghttp2_session_get_stream_user_data(session, id);

    (void)flags;
    if (s && s->ev)
        s->ev->on_data(s->arg, data, len);
    if (!is_live(c))
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    /* The windows open only now: what was handed on is handled. */
    return nghttp2_session_consume(session, id, len) ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static void got_settings(struct h2_conn *c)
{
    if (c->state != H2_SETTINGS) {
        c->ev->on_room(c->arg);
        return;
    }
    timer_cancel(&c->limit);
    set_state(c, H2_UP);
    c->ev->on_up(c->arg);
}

static void got_goaway(struct h2_conn *c, const nghttp2_goaway *g)
{
    int debug = g->opaque_data_len < 100 ? (int)g->opaque_data_len : 100;

    snprintf(c->goaway, sizeof(c->goaway), "GOAWAY from the peer: %s%s%.*s",
             nghttp2_http2_strerror(g->error_code), debug ? " " : "", debug,
             debug ? (const char *)g->opaque_data : "");
    timer_cancel(&c->limit);
    if (c->state == H2_UP || c->state == H2_SETTINGS)
        set_state(c, H2_DRAINING);
    c->ev->on_goaway(c->arg, c->goaway);
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
    struct h2_conn *c = arg;
    struct h2_stream *s;

    switch (frame->hd.type) {
    case NGHTTP2_SETTINGS:
        if (!(frame->hd.flags & NGHTTP2_FLAG_ACK))
            got_settings(c);
        break;
    case NGHTTP2_GOAWAY:
        got_goaway(c, &frame->goaway);
        break;
    case NGHTTP2_HEADERS:
    case NGHTTP2_DATA:
        s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
        if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM && s && s->ev) {
            s->ended = true;
            s->ev->on_end(s->arg);
        }
        break;
    }
    return go_on(c);
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *arg)
{
    struct h2_conn *c = arg;
    struct h2_stream *s = nghttp2_session_get_stream_user_data(session, id);

    if (s) {
        stream_close(s, code);
        if (is_live(c))
            c->ev->on_room(c->arg);
    }
    return 0;
}

static int on_proto_error(nghttp2_session *session, int code, const char *msg, size_t len,
                          void *arg)
{
    struct h2_conn *c = arg;

    (void)session;
    snprintf(c->proto, sizeof(c->proto), "HTTP/2: %s: %.*s", nghttp2_strerror(code), (int)len, msg);
    return 0;
}

/* ---- moving bytes */

static void ended(struct h2_conn *c, const char *fallback)
{
    const char *why = c->proto[0] ? c->proto : c->goaway[0] ? c->goaway : fallback;

    fail(c, "%s", why);
}

/* Closing sends a reset then, and the kernel forgets its send queue. */
static void forget_unsent(struct h2_conn *c)
{
    static const struct linger now = {.l_onoff = 1, .l_linger = 0};
    int fd = c->bev ? bufferevent_getfd(c->bev) : -1;

    if (fd >= 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)); /* fails on a socket that is dead anyway */
}

void h2_cut(struct h2_conn *c, const char *reason)
{
    if (!is_live(c))
        return;
    forget_unsent(c);
    fail(c, "%s", reason);
}

static void pump(struct h2_conn *c)
{
    int rv;

    if (!is_live(c) || !c->session)
        return;
    if (!fence_open(c->o.fence) && c->n_streams) {
        h2_cut(c, FENCE_CLOSED);
        return;
    }
    rv = nghttp2_session_send(c->session);
    if (!is_live(c))
        return;
    if (rv)
        fail(c, "HTTP/2: %s", nghttp2_strerror(rv));
    else if (!nghttp2_session_want_read(c->session) && !nghttp2_session_want_write(c->session))
        ended(c, "HTTP/2: session ended");
}

static void on_kick(void *arg)
{
    struct h2_conn *c = arg;

    if (c->state == H2_FAILED)
        report_down(c);
    else
        pump(c);
}

static void note_life(struct h2_conn *c)
{
    c->last_recv_ms = clock_mono_ms();
    if (c->pinged) {
        c->pinged = false;
        timer_set(&c->keepalive, c->o.keepalive_ms);
    }
}

static void on_readable(struct bufferevent *bev, void *arg)
{
    struct h2_conn *c = arg;
    struct evbuffer *in = bufferevent_get_input(bev);
    struct evbuffer_iovec piece;

    if (c->state == H2_TLS || !c->session) /* nothing may come before the handshake ended */
        return;
    note_life(c);
    while (is_live(c) && evbuffer_peek(in, -1, NULL, &piece, 1) > 0 && piece.iov_len > 0) {
        ssize_t n = nghttp2_session_mem_recv(c->session, piece.iov_base, piece.iov_len);

        if (!is_live(c))
            return;
        if (n < 0) {
            fail(c, "HTTP/2: %s", n == NGHTTP2_ERR_BAD_CLIENT_MAGIC ? "bad preface"
                                  : c->proto[0]                     ? c->proto
                                                                    : nghttp2_strerror((int)n));
            return;
        }
        evbuffer_drain(in, (size_t)n);
    }
    pump(c);
}

static void on_drained(struct bufferevent *bev, void *arg)
{
    (void)bev;
    pump(arg);
}

static void start_session(struct h2_conn *c);

static void on_event(struct bufferevent *bev, short what, void *arg)
{
    struct h2_conn *c = arg;
    int e = errno;
    char text[200];

    if (what & BEV_EVENT_CONNECTED && c->state == H2_TLS) {
        if (tls_chose_h2(bufferevent_openssl_get_ssl(bev)))
            start_session(c);
        else
            fail(c, "TLS: the server does not speak HTTP/2 (no ALPN h2)");
        return;
    }
    if (c->o.tls && what & BEV_EVENT_ERROR) {
        tls_failure(bufferevent_openssl_get_ssl(bev), bufferevent_get_openssl_error(bev), text,
                    sizeof(text));
        ended(c, text);
    } else if (what & BEV_EVENT_EOF) {
        ended(c, c->state == H2_TLS ? "TLS: connection closed in the handshake"
                                    : "connection closed by the peer");
    } else if (what & BEV_EVENT_ERROR) {
        ended(c, strerror(e));
    }
}

/* ---- keep-alive: pings only while there are streams */

/* The ping still sits behind data, and that moves: the peer lives. */
static bool ping_under_way(struct h2_conn *c)
{
    uint64_t left = c->out_total - evbuffer_get_length(bufferevent_get_output(c->bev));
    bool moves = c->ping_left < c->ping_mark && left > c->ping_left;

    c->ping_left = left;
    return moves;
}

static void send_ping(struct h2_conn *c)
{
    if (nghttp2_submit_ping(c->session, NGHTTP2_FLAG_NONE, NULL) != 0) {
        fail(c, "HTTP/2: no memory");
        return;
    }
    c->pinged = true;
    pump(c);
    if (!is_live(c))
        return;
    c->ping_mark = c->out_total;
    c->ping_left = c->out_total - evbuffer_get_length(bufferevent_get_output(c->bev));
    timer_set(&c->keepalive, c->o.keepalive_timeout_ms);
}

static void on_keepalive(void *arg)
{
    struct h2_conn *c = arg;
    uint64_t silent = clock_mono_ms() - c->last_recv_ms;

    if (c->n_streams == 0)
        return;
    if (c->pinged && !ping_under_way(c))
        fail(c, "no answer to a ping within %u ms", c->o.keepalive_timeout_ms);
    else if (c->pinged)
        timer_set(&c->keepalive, c->o.keepalive_timeout_ms);
    else if (silent < c->o.keepalive_ms)
        timer_set(&c->keepalive, c->o.keepalive_ms - silent);
    else
        send_ping(c);
}

/* ---- opening and closing */

static nghttp2_session *new_session(struct h2_conn *c)
{
    nghttp2_session_callbacks *cbs;
    nghttp2_option *opt;
    nghttp2_session *session = NULL;

    if (nghttp2_session_callbacks_new(&cbs) != 0 || nghttp2_option_new(&opt) != 0)
        abort();
    nghttp2_session_callbacks_set_send_callback(cbs, on_send);
    nghttp2_session_callbacks_set_send_data_callback(cbs, on_send_data);
    nghttp2_session_callbacks_set_before_frame_send_callback(cbs, on_before_send);
    nghttp2_session_callbacks_set_on_header_callback(cbs, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cbs, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cbs, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cbs, on_stream_close);
    nghttp2_session_callbacks_set_error_callback2(cbs, on_proto_error);
    nghttp2_option_set_no_auto_window_update(opt, 1);
    if (nghttp2_session_client_new2(&session, cbs, c, opt) != 0)
        abort();
    nghttp2_option_del(opt);
    nghttp2_session_callbacks_del(cbs);
    return session;
}

static void start_session(struct h2_conn *c)
{
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, HEADER_LIST_MAX},
    };

    c->session = new_session(c);
    set_state(c, H2_SETTINGS);
    c->last_recv_ms = clock_mono_ms();
    if (nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings,
                                sizeof(settings) / sizeof(*settings)) != 0 ||
        nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, CONN_WINDOW) != 0)
        abort();
    pump(c);
}

/* NULL: no memory; fd stays open then. */
static struct bufferevent *new_bev(struct h2_conn *c, int fd)
{
    struct bufferevent *bev;
    SSL *ssl;

    if (!c->o.tls)
        return bufferevent_socket_new(loop_base(c->loop), fd, BEV_OPT_CLOSE_ON_FREE);
    ssl = tls_client_session(c->o.tls, c->o.tls_name);
    if (!ssl)
        return NULL;
    bev = bufferevent_openssl_socket_new(loop_base(c->loop), fd, ssl, BUFFEREVENT_SSL_CONNECTING,
                                         BEV_OPT_CLOSE_ON_FREE);
    if (!bev)
        SSL_free(ssl);
    return bev;
}

static void on_dialed(void *arg, int fd, const char *trouble)
{
    struct h2_conn *c = arg;

    c->dial = NULL;
    if (fd < 0) {
        fail(c, "%s", trouble);
        return;
    }
    c->bev = new_bev(c, fd);
    if (!c->bev) {
        close(fd);
        fail(c, "no memory for a connection");
        return;
    }
    bufferevent_setcb(c->bev, on_readable, on_drained, on_event, c);
    bufferevent_setwatermark(c->bev, EV_READ, 0, READ_HIGH);
    bufferevent_setwatermark(c->bev, EV_WRITE, OUTPUT_LOW, 0);
    bufferevent_set_max_single_read(c->bev, READ_HIGH);
    bufferevent_set_max_single_write(c->bev, WRITE_ONCE);
    if (c->o.tls)
        set_state(c, H2_TLS);
    else
        start_session(c);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
}

static void on_limit(void *arg)
{
    struct h2_conn *c = arg;
    const char *what = c->state == H2_DIAL  ? "look-up and TCP connect"
                       : c->state == H2_TLS ? "TLS handshake"
                                            : "HTTP/2 SETTINGS";

    fail(c, "%s not finished %u ms after the start of connecting", what, c->o.connect_timeout_ms);
}

struct h2_conn *h2_open(struct loop *l, const struct h2_options *o, const struct h2_events *ev,
                        void *arg)
{
    struct h2_conn *c = xcalloc(1, sizeof(*c));

    c->loop = l;
    c->o = *o;
    c->ev = ev;
    c->arg = arg;
    c->state = H2_DIAL;
    LIST_INIT(&c->streams);
    timer_init(&c->limit, l, LOOP_PRIO_NORMAL, on_limit, c);
    timer_init(&c->kick, l, LOOP_PRIO_NORMAL, on_kick, c);
    timer_init(&c->keepalive, l, LOOP_PRIO_NORMAL, on_keepalive, c);
    timer_set(&c->limit, o->connect_timeout_ms);
    c->dial = dial_start(l, o->host, o->port, o->connect_timeout_ms, on_dialed, c);
    return c;
}

static void conn_free(void *arg)
{
    struct h2_conn *c = arg;
    struct h2_stream *s;

    nghttp2_session_del(c->session);
    while ((s = LIST_FIRST(&c->streams))) {
        LIST_REMOVE(s, next);
        free(s);
    }
    free(c);
}

void h2_close(struct h2_conn *c)
{
    struct h2_stream *s;

    if (!c || c->state == H2_CLOSED)
        return;
    set_state(c, H2_CLOSED);
    LIST_FOREACH (s, &c->streams, next) {
        s->ev = NULL;
        s->q = NULL;
    }
    dial_cancel(c->dial);
    timer_release(&c->limit);
    timer_release(&c->kick);
    timer_release(&c->keepalive);
    if (c->bev)
        bufferevent_free(c->bev);
    c->bev = NULL;
    loop_defer(c->loop, conn_free, c); /* nghttp2 or report_down() may be below us */
}
