/*
 * h2peer.h - an HTTP/2 server in the test's own loop whose misbehaviour is scripted by the path.
 *
 *   /p/Echo   answers with the request's message     /p/Bidi   echoes each message at once
 *   /p/Size   answers with size (8) and crc (4)      /p/Hang   never answers
 *   other paths    peer_on_request() in the test decides, at HEADERS and again at END_STREAM
 *
 * Included by one test file only.
 */
#ifndef TEST_H2PEER_H
#define TEST_H2PEER_H
#include "base/mem.h"
#include "loop/loop.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

struct peer_conn;
struct ssl_ctx_st; /* OpenSSL's own names, whose headers clash with base/err.h */
struct ssl_st;

struct peer_stream {
    LIST_ENTRY(peer_stream) next;
    struct peer_conn *conn;
    int32_t id;
    char path[128], timeout[32], content_type[64], te[32], agent[64], auth[64], extra[64];
    size_t in_bytes; /* DATA bytes */
    uint32_t crc;    /* of the message, without its prefix */
    struct evbuffer *in, *out;
    bool ended, out_end, trailers;
    char status[16], message[128];
};

struct peer_conn {
    LIST_ENTRY(peer_conn) next;
    struct peer *peer;
    struct bufferevent *bev;
    nghttp2_session *session;
    LIST_HEAD(, peer_stream) streams;
    struct evbuffer *drip; /* bytes that still wait to be sent one by one */
    struct timer kick;
    size_t fed, sent;
    bool dead;
};

struct peer {
    struct loop *loop;
    struct evconnlistener *listener;
    uint16_t port;
    struct ssl_ctx_st *tls;
    LIST_HEAD(, peer_conn) conns;
    uint32_t max_streams, window; /* SETTINGS; 0: default */
    bool drip_all;                /* one byte per loop turn */
    bool mute;                    /* accepts, says nothing */
    const char *raw;              /* said instead of HTTP/2 */
    ssize_t cut_in, cut_out; /* the first connection is cut after so many bytes; -1: never */
    unsigned accepted, requests, complete, pings, resets, open, most_open;
    size_t last_sent, last_fed; /* of the last closed connection */
};

static void peer_on_request(struct peer_stream *s, bool ended);

static uint32_t crc_add(uint32_t crc, const uint8_t *p, size_t n)
{
    static uint32_t table[256];

    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t r = i;

            for (int k = 0; k < 8; k++)
                r = r & 1 ? 0xEDB88320u ^ (r >> 1) : r >> 1;
            table[i] = r;
        }
    for (; n; n--)
        crc = table[(crc ^ *p++) & 0xFF] ^ (crc >> 8);
    return crc;
}

static void peer_conn_free(void *arg)
{
    struct peer_conn *c = arg;
    struct peer_stream *s;

    nghttp2_session_del(c->session);
    while ((s = LIST_FIRST(&c->streams))) {
        LIST_REMOVE(s, next);
        evbuffer_free(s->in);
        evbuffer_free(s->out);
        free(s);
    }
    evbuffer_free(c->drip);
    free(c);
}

static void peer_cut(struct peer_conn *c)
{
    if (c->dead)
        return;
    c->dead = true;
    c->peer->last_sent = c->sent;
    c->peer->last_fed = c->fed;
    LIST_REMOVE(c, next);
    bufferevent_free(c->bev);
    timer_release(&c->kick);
    loop_defer(c->peer->loop, peer_conn_free, c);
}

static ssize_t peer_send(nghttp2_session *session, const uint8_t *data, size_t len, int flags,
                         void *arg)
{
    struct peer_conn *c = arg;

    (void)session;
    (void)flags;
    evbuffer_add(c->drip, data, len);
    return (ssize_t)len;
}

/* Moves what may go out now; a cut connection first gets the bytes before the cut. */
static void peer_flush(struct peer_conn *c)
{
    struct peer *p = c->peer;
    struct evbuffer *out = bufferevent_get_output(c->bev);
    size_t n = evbuffer_get_length(c->drip);

    if (p->drip_all && n > 1)
        n = 1;
    if (p->cut_out >= 0 && p->accepted == 1 && c->sent + n > (size_t)p->cut_out)
        n = (size_t)p->cut_out - c->sent;
    evbuffer_remove_buffer(c->drip, out, n);
    c->sent += n;
    if (evbuffer_get_length(c->drip) && evbuffer_get_length(out) == 0 && n == 0)
        peer_cut(c); /* the cut, after the bytes before it left */
    else if (evbuffer_get_length(c->drip))
        timer_set(&c->kick, 0);
}

static void peer_kick(void *arg)
{
    struct peer_conn *c = arg;

    nghttp2_session_send(c->session);
    peer_flush(c);
}

static ssize_t peer_read_body(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length,
                              uint32_t *flags, nghttp2_data_source *source, void *arg)
{
    struct peer_stream *s = source->ptr;
    int n = evbuffer_remove(s->out, buf, length);

    (void)arg;
    if (n <= 0 && !s->out_end)
        return NGHTTP2_ERR_DEFERRED;
    if (s->out_end && evbuffer_get_length(s->out) == 0) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (s->trailers) {
            nghttp2_nv nv[2] = {
                {(uint8_t *)"grpc-status", (uint8_t *)s->status, 11, strlen(s->status), 0},
                {(uint8_t *)"grpc-message", (uint8_t *)s->message, 12, strlen(s->message), 0}};

            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            nghttp2_submit_trailer(session, id, nv, s->message[0] ? 2 : 1);
        }
    }
    return n > 0 ? n : 0;
}

/* Headers that end the stream, or not. status NULL: no grpc-status. */
static void peer_headers(struct peer_stream *s, const char *http, const char *type,
                         const char *status, const char *message, bool end)
{
    nghttp2_nv nv[4] = {{(uint8_t *)":status", (uint8_t *)http, 7, strlen(http), 0},
                        {(uint8_t *)"content-type", (uint8_t *)type, 12, strlen(type), 0}};
    size_t n = 2;
    nghttp2_data_provider body = {.source.ptr = s, .read_callback = peer_read_body};

    if (status)
        nv[n++] = (nghttp2_nv){(uint8_t *)"grpc-status", (uint8_t *)status, 11, strlen(status), 0};
    if (message)
        nv[n++] =
            (nghttp2_nv){(uint8_t *)"grpc-message", (uint8_t *)message, 12, strlen(message), 0};
    nghttp2_submit_response(s->conn->session, s->id, nv, n, end ? NULL : &body);
    timer_set(&s->conn->kick, 0);
}

static void peer_body(struct peer_stream *s, const void *data, size_t len)
{
    evbuffer_add(s->out, data, len);
    nghttp2_session_resume_data(s->conn->session, s->id);
    timer_set(&s->conn->kick, 0);
}

static void peer_message(struct peer_stream *s, const void *data, size_t len)
{
    uint8_t head[5] = {0, (uint8_t)(len >> 24), (uint8_t)(len >> 16), (uint8_t)(len >> 8),
                       (uint8_t)len};

    peer_body(s, head, sizeof(head));
    peer_body(s, data, len);
}

static void peer_end(struct peer_stream *s, const char *status, const char *message)
{
    s->out_end = true;
    s->trailers = status != NULL;
    snprintf(s->status, sizeof(s->status), "%s", status ? status : "");
    snprintf(s->message, sizeof(s->message), "%s", message ? message : "");
    peer_body(s, "", 0);
}

static bool peer_is(const struct peer_stream *s, const char *path)
{
    return strcmp(s->path, path) == 0;
}

static void peer_default(struct peer_stream *s, bool ended)
{
    if (!ended && peer_is(s, "/p/Bidi"))
        peer_headers(s, "200", "application/grpc", NULL, NULL, false);
    if (!ended)
        return;
    if (peer_is(s, "/p/Echo")) {
        peer_headers(s, "200", "application/grpc", NULL, NULL, false);
        evbuffer_add_buffer(s->out, s->in);
        peer_end(s, "0", NULL);
    } else if (peer_is(s, "/p/Size")) {
        uint64_t size = s->in_bytes - 5;
        uint8_t answer[12];

        memcpy(answer, &size, 8);
        memcpy(answer + 8, &s->crc, 4);
        peer_headers(s, "200", "application/grpc", NULL, NULL, false);
        peer_message(s, answer, sizeof(answer));
        peer_end(s, "0", NULL);
    } else if (peer_is(s, "/p/Bidi")) {
        peer_end(s, "0", NULL);
    }
}

static int peer_begin(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
    struct peer_conn *c = arg;
    struct peer_stream *s;

    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    s = xcalloc(1, sizeof(*s));
    s->conn = c;
    s->id = frame->hd.stream_id;
    s->in = evbuffer_new();
    s->out = evbuffer_new();
    LIST_INSERT_HEAD(&c->streams, s, next);
    nghttp2_session_set_stream_user_data(session, s->id, s);
    return 0;
}

static int peer_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                       size_t nl, const uint8_t *value, size_t vl, uint8_t flags, void *arg)
{
    struct peer_stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    const struct {
        const char *name;
        char *to;
        size_t size;
    } keep[] = {{":path", s->path, sizeof(s->path)},
                {"grpc-timeout", s->timeout, sizeof(s->timeout)},
                {"content-type", s->content_type, sizeof(s->content_type)},
                {"te", s->te, sizeof(s->te)},
                {"user-agent", s->agent, sizeof(s->agent)},
                {"authorization", s->auth, sizeof(s->auth)},
                {"dbname", s->extra, sizeof(s->extra)}};

    (void)nl;
    (void)vl;
    (void)flags;
    (void)arg;
    for (size_t i = 0; i < sizeof(keep) / sizeof(*keep); i++)
        if (strcmp((const char *)name, keep[i].name) == 0)
            snprintf(keep[i].to, keep[i].size, "%s", (const char *)value);
    return 0;
}

static int peer_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                     size_t len, void *arg)
{
    struct peer_conn *c = arg;
    struct peer_stream *s = nghttp2_session_get_stream_user_data(session, id);
    size_t skip = s->in_bytes < 5 ? 5 - s->in_bytes : 0;

    (void)flags;
    (void)c;
    if (skip > len)
        skip = len;
    s->crc = crc_add(s->crc, data + skip, len - skip);
    s->in_bytes += len;
    if (peer_is(s, "/p/Echo"))
        evbuffer_add(s->in, data, len);
    if (peer_is(s, "/p/Bidi"))
        peer_body(s, data, len);
    return 0;
}

static int peer_frame(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
    struct peer_conn *c = arg;
    struct peer_stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

    if (frame->hd.type == NGHTTP2_PING)
        c->peer->pings++;
    if (frame->hd.type == NGHTTP2_RST_STREAM)
        c->peer->resets++;
    if (!s)
        return 0;
    if (frame->hd.type == NGHTTP2_HEADERS) {
        c->peer->requests++;
        if (++c->peer->open > c->peer->most_open)
            c->peer->most_open = c->peer->open;
        peer_default(s, false);
        peer_on_request(s, false);
    }
    if (!c->dead && frame->hd.flags & NGHTTP2_FLAG_END_STREAM &&
        (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA)) {
        s->ended = true;
        c->peer->complete++;
        peer_default(s, true);
        peer_on_request(s, true);
    }
    return c->dead ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int peer_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *arg)
{
    struct peer_conn *c = arg;
    struct peer_stream *s = nghttp2_session_get_stream_user_data(session, id);

    (void)code;
    if (!s)
        return 0;
    c->peer->open--;
    LIST_REMOVE(s, next);
    evbuffer_free(s->in);
    evbuffer_free(s->out);
    free(s);
    return 0;
}

static void peer_readable(struct bufferevent *bev, void *arg)
{
    struct peer_conn *c = arg;
    struct peer *p = c->peer;
    struct evbuffer *in = bufferevent_get_input(bev);

    if (p->mute || p->raw)
        return;
    while (evbuffer_get_length(in) > 0) {
        struct evbuffer_iovec v;
        size_t n;

        evbuffer_peek(in, -1, NULL, &v, 1);
        n = v.iov_len;
        if (p->cut_in >= 0 && p->accepted == 1 && c->fed + n > (size_t)p->cut_in)
            n = (size_t)p->cut_in - c->fed;
        if (n == 0 || nghttp2_session_mem_recv(c->session, v.iov_base, n) < 0) {
            if (!c->dead)
                peer_cut(c);
            return;
        }
        if (c->dead)
            return;
        c->fed += n;
        evbuffer_drain(in, n);
    }
    peer_kick(c);
}

static void peer_event(struct bufferevent *bev, short what, void *arg)
{
    (void)bev;
    if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR))
        peer_cut(arg);
}

static void peer_session(struct peer_conn *c)
{
    nghttp2_session_callbacks *cbs;
    nghttp2_settings_entry set[2];
    size_t n = 0;

    nghttp2_session_callbacks_new(&cbs);
    nghttp2_session_callbacks_set_send_callback(cbs, peer_send);
    nghttp2_session_callbacks_set_on_begin_headers_callback(cbs, peer_begin);
    nghttp2_session_callbacks_set_on_header_callback(cbs, peer_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cbs, peer_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cbs, peer_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cbs, peer_stream_close);
    nghttp2_session_server_new(&c->session, cbs, c);
    nghttp2_session_callbacks_del(cbs);
    if (c->peer->max_streams)
        set[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
                                            c->peer->max_streams};
    if (c->peer->window)
        set[n++] =
            (nghttp2_settings_entry){NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, c->peer->window};
    nghttp2_submit_settings(c->session, 0, set, n);
    if (c->peer->window > 65535)
        nghttp2_session_set_local_window_size(c->session, 0, 0, (int32_t)c->peer->window);
}

struct ssl_st *peer_tls_accept(struct ssl_ctx_st *ctx); /* in the test */

static void peer_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *sa,
                        int len, void *arg)
{
    struct peer *p = arg;
    struct peer_conn *c = xcalloc(1, sizeof(*c));
    struct event_base *base = loop_base(p->loop);
    int one = 1;

    (void)listener;
    (void)sa;
    (void)len;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    p->accepted++;
    c->peer = p;
    c->drip = evbuffer_new();
    timer_init(&c->kick, p->loop, LOOP_PRIO_NORMAL, peer_kick, c);
    c->bev = p->tls ? bufferevent_openssl_socket_new(base, fd, peer_tls_accept(p->tls),
                                                     BUFFEREVENT_SSL_ACCEPTING,
                                                     BEV_OPT_CLOSE_ON_FREE)
                    : bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    LIST_INSERT_HEAD(&p->conns, c, next);
    bufferevent_setcb(c->bev, peer_readable, NULL, peer_event, c);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
    peer_session(c);
    if (p->raw)
        bufferevent_write(c->bev, p->raw, strlen(p->raw));
    else if (!p->mute)
        timer_set(&c->kick, 0);
}

static void peer_listen(struct peer *p)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons(p->port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);

    p->listener = evconnlistener_new_bind(loop_base(p->loop), peer_accept, p,
                                          LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, 16,
                                          (struct sockaddr *)&a, sizeof(a));
    if (!p->listener)
        abort();
    getsockname(evconnlistener_get_fd(p->listener), (struct sockaddr *)&a, &len);
    p->port = ntohs(a.sin_port);
}

static void peer_init(struct peer *p, struct loop *l)
{
    memset(p, 0, sizeof(*p));
    p->loop = l;
    p->cut_in = p->cut_out = -1;
    LIST_INIT(&p->conns);
    peer_listen(p);
}

static void peer_deafen(struct peer *p)
{
    if (p->listener)
        evconnlistener_free(p->listener);
    p->listener = NULL;
}

static void peer_cut_all(struct peer *p)
{
    while (!LIST_EMPTY(&p->conns))
        peer_cut(LIST_FIRST(&p->conns));
}

static void peer_release(struct peer *p)
{
    peer_deafen(p);
    peer_cut_all(p);
}
#endif
