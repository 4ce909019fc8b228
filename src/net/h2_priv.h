/*
 * h2_priv.h - one HTTP/2 client connection: dial, TLS, an nghttp2 session on a bufferevent.
 *
 * It does not reconnect: when it is lost, on_down comes and the owner closes it.
 *
 * nghttp2 is never fed or drained from inside its callbacks: whatever an owner does there is
 * submitted and sent by a zero timer.  Thread  loop thread only.
 */
#ifndef NET_H2_PRIV_H
#define NET_H2_PRIV_H
#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fence;
struct h2_conn;
struct h2_stream;
struct loop;
struct outq;
struct ssl_ctx_st;

/* on_close's code for streams of a lost connection; outside of the codes of RFC 9113. */
#define H2_CONN_LOST UINT32_MAX

#define FENCE_CLOSED "this daemon's lease on the target has run out: nothing more is sent"

struct h2_options { /* strings are borrowed until h2_close() */
    const char *host;
    uint16_t port;
    struct ssl_ctx_st *tls; /* NULL: plain */
    const char *tls_name;
    unsigned connect_timeout_ms; /* until the peer's SETTINGS */
    unsigned keepalive_ms, keepalive_timeout_ms;
    const struct fence *fence; /* closed: what waits is not sent, the connection fails */
};

struct h2_events {
    void (*on_up)(void *arg);   /* the peer's SETTINGS are here */
    void (*on_room)(void *arg); /* h2_can_start() may have changed */
    void (*on_goaway)(void *arg, const char *text); /* no new streams; the open ones go on */
    void (*on_down)(void *arg, const char *reason); /* last event; after on_close of all streams */
};

struct h2_stream_events {
    void (*on_header)(void *arg, const char *name, const char *value); /* trailers too */
    void (*on_data)(void *arg, const uint8_t *data, size_t len);
    void (*on_end)(void *arg); /* END_STREAM from the peer; on_close follows */
    /* Last event. sent: a byte of the request's HEADERS went out. */
    void (*on_close)(void *arg, uint32_t code, bool sent);
};

/* No event comes from inside. Never NULL. */
struct h2_conn *h2_open(struct loop *l, const struct h2_options *o, const struct h2_events *ev,
                        void *arg);
/* Fails at once; what the kernel has not sent yet is thrown away. */
void h2_cut(struct h2_conn *c, const char *reason);
/* Why it was lost, or "". */
const char *h2_reason(const struct h2_conn *c);
/* No events after this, from streams neither. From any callback. NULL is allowed. */
void h2_close(struct h2_conn *c);

/* Up, not going away, and the peer's limit of concurrent streams is not reached. */
bool h2_can_start(const struct h2_conn *c);
/* Not yet closed ones, those just reset included. */
size_t h2_stream_count(const struct h2_conn *c);

/*
 * Opens a stream; the body comes from q, which stays the caller's and must live until on_close or
 * h2_stream_reset().  NULL: this connection takes no more streams (treat it as going away).
 */
struct h2_stream *h2_start(struct h2_conn *c, const nghttp2_nv *nva, size_t n_nva, struct outq *q,
                           const struct h2_stream_events *ev, void *arg);
/* q has more, or its end was set. */
void h2_stream_resume(struct h2_stream *s);
/* RST_STREAM. No events after this; s is gone for the caller. */
void h2_stream_reset(struct h2_stream *s, uint32_t code);
/* True once a byte of the stream's HEADERS went out, or will in spite of a reset. */
bool h2_stream_sent(const struct h2_stream *s);
#endif
