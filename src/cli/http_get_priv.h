/*
 * http_get_priv.h - one GET (or POST) over TCP or TLS, bounded in time and size, for the sub-commands.
 *
 * HTTP/1.0, so the answer comes in one piece and ends with the connection (RFC 9112 6.3).
 */
#ifndef CLI_HTTP_GET_PRIV_H
#define CLI_HTTP_GET_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

struct url {
    bool tls;
    char host[256]; /* without brackets */
    uint16_t port;
};

/* "http://host:port" or "https://...", with or without a slash at the end. ERR_INVALID. */
int url_parse(const char *text, struct url *ret, struct err *err);

struct http_get {
    struct url url;
    const char *target;  /* "/path?query" */
    const char *body;    /* JSON, to be POSTed; NULL: GET */
    const char *token;   /* NULL: none */
    const char *ca, *cert, *key;
    bool insecure;       /* any certificate will do */
    unsigned timeout_ms; /* of all together, look-up included */
};

/* Runs a loop of its own. 0 with the HTTP status and the body (ended by a NUL; caller frees); or ERR_INVALID (a file
 * cannot be used), ERR_UNAVAILABLE (no connection, or it broke), ERR_TIMEOUT, ERR_PROTO (not an HTTP answer, or larger
 * than 16 MiB). */
int http_get(const struct http_get *g, int *ret_status, char **ret_body, struct err *err);

/* The parts of a whole answer. -1: not one. */
int http_answer_split(const char *data, size_t len, int *ret_status, const char **ret_body, size_t *ret_len);
#endif
