/*
 * http_priv.h - a small HTTP/1.1 server on bufferevents, plain or with TLS, for the control API.
 *
 * Not evhttp: 2.1 drops the answer to a client that closed its sending side, has no deadline for a
 * whole request and answers too large bodies and unknown methods with pages of its own.
 *
 * One request of a connection at a time; the next one is read when the answer was sent (so a client
 * that pipelines without reading costs nothing).  Facts: RFC 9110, RFC 9112.
 *
 * Lifetime  a request lives until http_reply() or http_drop(), also when its client goes away: the
 * handler answers exactly once, whenever it likes.   Thread  loop thread only.
 */
#ifndef API_HTTP_PRIV_H
#define API_HTTP_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct evbuffer;
struct http_request;
struct http_server;
struct loop;
struct ssl_ctx_st;

/* ---- http_parse.c: bytes to a request, no I/O */

enum { HTTP_MAX_HEAD = 16384, HTTP_MAX_METHOD = 32, HTTP_MAX_PATH = 1024, HTTP_MAX_AUTHORIZATION = 256 };

enum http_step { HTTP_MORE, HTTP_DONE, HTTP_BAD };

struct http_parser {
    int state; /* private */
    char method[HTTP_MAX_METHOD], path[HTTP_MAX_PATH]; /* path: without query */
    char query[HTTP_MAX_PATH];                         /* what follows "?", not decoded */
    char authorization[HTTP_MAX_AUTHORIZATION];        /* secret; "": none */
    bool http11, keep_alive;
    bool begun;           /* a byte of the request has come */
    bool wants_continue;  /* the client waits for "100 Continue" before it sends the body */
    bool too_large;       /* the body has more than max_body bytes and was not read */
    struct evbuffer *body;
    size_t max_body;
    /* HTTP_BAD */
    int status;
    const char *why;
    /* private */
    bool has_host, has_length, chunked;
    uint64_t left;
    size_t head_bytes;
};

void http_parser_init(struct http_parser *p, size_t max_body);
void http_parser_release(struct http_parser *p);
/* Takes from in what belongs to this request. HTTP_BAD is final: answer p->status and close. */
enum http_step http_parse(struct http_parser *p, struct evbuffer *in);

/* ---- http_tls.c: the server's side of TLS between two buffers, no I/O of its own */

struct http_tls;

struct http_tls *http_tls_new(struct ssl_ctx_st *ctx);
void http_tls_free(struct http_tls *t); /* NULL is allowed */
/* Takes all of raw, appends what it says to plain, and what the peer must get (handshake, alerts) to raw_out. Sets *eof
 * when the peer will say nothing more. 0, or -1 with *ret_why: not TLS, or refused; close when raw_out was sent. */
int http_tls_read(struct http_tls *t, struct evbuffer *raw, struct evbuffer *plain, struct evbuffer *raw_out, bool *eof,
                  const char **ret_why);
/* Moves all of plain, sealed, to raw_out; last: with the end of the connection. -1: there is no connection. */
int http_tls_write(struct http_tls *t, struct evbuffer *plain, struct evbuffer *raw_out, bool last);

/*
 * A server's set-up: TLS 1.2 and later, no resumption (each connection is checked by the files of now).
 * client_ca NULL: no client certificates, else they are required. NULL: ERR_INVALID, class USER, names the file.
 */
struct ssl_ctx_st *http_tls_ctx(const char *cert, const char *key, const char *client_ca, struct err *err);
void http_tls_ctx_free(struct ssl_ctx_st *ctx); /* counted: connections keep theirs. NULL is allowed */

/* ---- http.c: connections */

typedef void (*http_handler_fn)(void *arg, struct http_request *r);

struct http_options {
    struct loop *loop;
    const char *address; /* "host:port", numeric host, "localhost", or empty for every interface */
    http_handler_fn handler;
    void *arg;
    size_t max_body;
    unsigned max_connections;
    unsigned request_ms; /* from a request's first byte (or the connection's start) to its last */
    unsigned idle_ms;    /* between two requests */
    unsigned write_ms;   /* for the client to take an answer */
    unsigned linger_ms;  /* for the client to close after we did */
    struct ssl_ctx_st *tls; /* NULL: plain HTTP; taken, also on failure */
};

/* NULL: ERR_INVALID (not an address) or ERR_IO (cannot listen). */
struct http_server *http_listen(const struct http_options *o, struct err *err);
/* Closes everything; open requests stay valid for http_drop() and http_reply(). NULL is allowed. */
void http_close(struct http_server *s);
uint16_t http_port(const struct http_server *s);
/* For new connections; taken. NULL: plain HTTP. */
void http_set_tls(struct http_server *s, struct ssl_ctx_st *take);
void http_set_request_limit(struct http_server *s, unsigned ms);
unsigned http_connections(const struct http_server *s);

const char *http_method(const struct http_request *r);
const char *http_path(const struct http_request *r);
const char *http_query(const struct http_request *r);
const char *http_authorization(const struct http_request *r);
/* Address and port of the client, for logs. */
const char *http_peer(const struct http_request *r);
/* NULL: larger than max_body. Not terminated. Borrowed. */
const char *http_body(const struct http_request *r, size_t *ret_len);

struct http_answer {
    int status;
    const char *content_type;
    const char *allow; /* NULL: no Allow header */
    const char *authenticate; /* NULL: no WWW-Authenticate header */
    const void *body;
    size_t len;
};
/* Ends the request, also when nobody is there any more to read it. */
void http_reply(struct http_request *r, const struct http_answer *a);
/* Ends it without an answer; its connection is closed. */
void http_drop(struct http_request *r);
#endif
