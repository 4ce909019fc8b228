/*
 * http_priv.h - a small HTTP/1.1 server on bufferevents, for the control API.
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

/* ---- http_parse.c: bytes to a request, no I/O */

enum { HTTP_MAX_HEAD = 16384, HTTP_MAX_METHOD = 32, HTTP_MAX_PATH = 1024 };

enum http_step { HTTP_MORE, HTTP_DONE, HTTP_BAD };

struct http_parser {
    int state; /* private */
    char method[HTTP_MAX_METHOD], path[HTTP_MAX_PATH]; /* path: without query */
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
};

/* NULL: ERR_INVALID (not an address) or ERR_IO (cannot listen). */
struct http_server *http_listen(const struct http_options *o, struct err *err);
/* Closes everything; open requests stay valid for http_drop() and http_reply(). NULL is allowed. */
void http_close(struct http_server *s);
uint16_t http_port(const struct http_server *s);
void http_set_request_limit(struct http_server *s, unsigned ms);
unsigned http_connections(const struct http_server *s);

const char *http_method(const struct http_request *r);
const char *http_path(const struct http_request *r);
/* NULL: larger than max_body. Not terminated. Borrowed. */
const char *http_body(const struct http_request *r, size_t *ret_len);

struct http_answer {
    int status;
    const char *content_type;
    const char *allow; /* NULL: no Allow header */
    const void *body;
    size_t len;
};
/* Ends the request, also when nobody is there any more to read it. */
void http_reply(struct http_request *r, const struct http_answer *a);
/* Ends it without an answer; its connection is closed. */
void http_drop(struct http_request *r);
#endif
