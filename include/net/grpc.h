/*
 * grpc.h - gRPC client calls over one HTTP/2 connection that heals itself (nghttp2 on bufferevents).
 *
 * A client is one authority (host:port).  It connects when the first call is made, keeps the
 * connection alive with pings, reconnects with back-off and jitter.  Calls made while it is not
 * connected wait for the connection until their deadline.
 *
 * Contract of every call: exactly one completion, never from inside the starting function; none after
 * grpc_call_cancel() returned.  grpc_client_close() cancels what is open without completions.
 *
 * Content-type is exactly "application/grpc" (milvus 2.3 port multiplexer).  RFC 9113, gRPC PROTOCOL-HTTP2.md.
 * Thread  loop thread only.
 */
#ifndef NET_GRPC_H
#define NET_GRPC_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;
struct evbuffer;
struct loop;
struct fence;
struct grpc_client;
struct grpc_call;

struct grpc_options {
    const char *host;
    uint16_t port;
    bool tls;                    /* ALPN h2, peer verified against ca_path or the system's store */
    const char *tls_server_name; /* NULL: host */
    const char *ca_path, *cert_path, *key_path; /* PEM files, NULL: none */
    int tls_min_version;         /* 0: 1.2; else 10, 11, 12, 13 */
    unsigned connect_timeout_ms; /* 0: 5000; TCP and TLS and SETTINGS together */
    unsigned keepalive_ms;       /* 0: 10000; a ping after this silence while calls are open */
    unsigned keepalive_timeout_ms; /* 0: 10000; no answer: the connection is dead */
    bool fail_fast;              /* calls that wait for a connection end with UNAVAILABLE when an attempt to
                                    connect fails; else they wait until their deadline */
    const struct fence *fence;   /* borrowed, outlives the client. While it is closed no call is started (they
                                    end with UNAVAILABLE, not sent); NULL: none */
    size_t max_recv_bytes;       /* 0: 64 MiB; a larger answer ends the call with ERR_LIMIT */
    const char *log_name;        /* for log lines: "target", "etcd" */
};

/* All strings are copied. Fails (ERR_INVALID) on unreadable PEM files or an empty host; NULL then. */
struct grpc_client *grpc_client_new(struct loop *l, const struct grpc_options *o, struct err *err);
/* Loses the connection at once, together with what the kernel has not sent yet: calls in progress end with
 * UNAVAILABLE. Connects again when there are calls. For a fence that has closed. */
void grpc_client_cut(struct grpc_client *c, const char *reason);
/* May be called from any callback, twice no. NULL is allowed. Memory goes when the loop turn ends. */
void grpc_client_close(struct grpc_client *c);

/* A header sent with every call (lower-case key; value NULL removes it); e.g. "authorization". Never logged. */
void grpc_client_set_header(struct grpc_client *c, const char *key, const char *value);

/* Why the client is not connected now, or NULL when it is (or idle and never failed). Borrowed text. */
const char *grpc_client_trouble(const struct grpc_client *c);
/* Rises with each new connection: who caches what a server said compares it. 0: never connected. */
uint64_t grpc_client_generation(const struct grpc_client *c);

struct grpc_header {
    const char *key, *value;
};

/* What became of a call. */
struct grpc_result {
    int status;          /* gRPC status, 0 OK; own failures use the fitting number: 14 unavailable, 4 deadline */
    const char *message; /* never NULL; percent-decoded */
    const uint8_t *body; /* the one message of a unary answer (status 0), else NULL; borrowed */
    size_t body_len;
    bool maybe_sent;     /* false: certainly no byte of the request was processed by the peer
                            (never written, or REFUSED_STREAM / above GOAWAY's last stream) */
    struct grpc_call *call; /* for grpc_result_take() */
};

/* Inside done(): the body as counted bytes, which outlive it, without a copy. Once, and only when there is a body. Never
 * NULL. */
struct buf *grpc_result_take(const struct grpc_result *r);

/* Fills err from a result with status != 0: UNAVAILABLE 14, DEADLINE 4, RESOURCE_EXHAUSTED 8, ABORTED 10,
 * INTERNAL 13, UNKNOWN 2, CANCELLED 1 are RETRY; UNAUTHENTICATED 16, PERMISSION 7, UNIMPLEMENTED 12 and others USER.
 * The text has context, status name and message.  Returns the code. */
int grpc_result_err(const struct grpc_result *r, const char *context, struct err *err);

typedef void (*grpc_done_fn)(void *arg, const struct grpc_result *r);

/* Unary call. path is "/package.Service/Method"; headers (may be NULL) end with a NULL key.
 * body: the encoded message without the gRPC prefix; its content is moved out of the caller's evbuffer
 * (references stay references: bytes go to the socket without copying). Any size.
 * deadline_ms > 0, from now; sent as grpc-timeout too. Never NULL. */
struct grpc_call *grpc_unary(struct grpc_client *c, const char *path, const struct grpc_header *headers,
                             struct evbuffer *body, unsigned deadline_ms, grpc_done_fn done, void *arg);

/* A larger answer than that ends the call as max_recv_bytes does, before its bytes are read. Right after grpc_unary(). */
void grpc_call_limit(struct grpc_call *call, size_t max_recv_bytes);

/* One message of a streaming answer; data is borrowed for the callback. */
typedef void (*grpc_message_fn)(void *arg, const uint8_t *data, size_t len);

/* Bidirectional stream without a deadline. done comes when the stream ends, for whatever reason. */
struct grpc_call *grpc_stream(struct grpc_client *c, const char *path, const struct grpc_header *headers,
                              grpc_message_fn on_message, grpc_done_fn done, void *arg);
/* Sends one message (content moved). Queued until the stream is open. */
void grpc_stream_send(struct grpc_call *call, struct evbuffer *body);

/* No completion after this. The call's memory is gone. NULL is allowed. A call that completed is gone
 * by itself when done() returns: its owner forgets the pointer inside done(). */
void grpc_call_cancel(struct grpc_call *call);
#endif
