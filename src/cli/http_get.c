#include "cli/http_get_priv.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "net/conn.h"

enum { MAX_ANSWER = 16 << 20, PIECE = 65536 };

struct get {
    const struct http_get *g;
    struct loop *loop;
    struct conn *conn;
    struct timer limit;
    char *data;
    size_t len;
    bool opened;
    int rc;
    struct err *err;
};

int url_parse(const char *text, struct url *ret, struct err *err)
{
    const char *p = text, *end, *colon;
    char *rest;
    unsigned long port;

    ret->tls = strncasecmp(p, "https://", 8) == 0;
    if (!ret->tls && strncasecmp(p, "http://", 7) != 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "the URL must be http://host:port or https://host:port");
    p += ret->tls ? 8 : 7;
    end = *p == '[' ? strchr(p, ']') : p + strcspn(p, ":/");
    colon = end && *end == ']' ? end + 1 : end;
    p += *p == '[';
    if (!end || end == p || (size_t)(end - p) >= sizeof(ret->host) || memchr(p, '@', (size_t)(end - p)))
        return err_set(err, ERR_INVALID, ERRC_USER, "the URL has no valid host");
    memcpy(ret->host, p, (size_t)(end - p));
    ret->host[end - p] = '\0';
    port = ret->tls ? 443 : 80;
    rest = (char *)(uintptr_t)colon;
    if (*colon == ':')
        port = isdigit((unsigned char)colon[1]) ? strtoul(colon + 1, &rest, 10) : 0;
    if (port == 0 || port > 65535 || rest == colon + 1 || (strcmp(rest, "") != 0 && strcmp(rest, "/") != 0))
        return err_set(err, ERR_INVALID, ERRC_USER, "the URL must end after host:port");
    ret->port = (uint16_t)port;
    return 0;
}

/* "HTTP/1.0 200"; -1: something else. */
static int status_of(const char *line, size_t len)
{
    int status = 0;

    if (len < 12 || strncmp(line, "HTTP/1.", 7) != 0 || line[8] != ' ')
        return -1;
    for (int i = 9; i < 12; i++) {
        if (line[i] < '0' || line[i] > '9')
            return -1;
        status = status * 10 + (line[i] - '0');
    }
    return status >= 100 ? status : -1;
}

int http_answer_split(const char *data, size_t len, int *ret_status, const char **ret_body, size_t *ret_len)
{
    const char *end = memmem(data, len, "\r\n\r\n", 4), *line; /* no NUL behind data */

    if (!end || status_of(data, (size_t)(end - data)) < 0)
        return -1;
    *ret_status = status_of(data, len);
    *ret_body = end + 4;
    *ret_len = len - (size_t)(*ret_body - data);
    for (line = data; line && line < end; line = memmem(line, (size_t)(end - line), "\r\n", 2)) {
        line += *line == '\r' ? 2 : 0;
        if (strncasecmp(line, "Content-Length:", 15) == 0 && strtoull(line + 15, NULL, 10) != *ret_len)
            return -1;
    }
    return 0;
}

static void finish(struct get *s, int rc)
{
    s->rc = rc;
    loop_stop(s->loop);
}

static void on_limit(void *arg)
{
    struct get *s = arg;

    finish(s, err_set(s->err, ERR_TIMEOUT, ERRC_RETRY, s->opened ? "no answer within %u ms" : "no connection within %u ms",
                      s->g->timeout_ms));
}

static void on_open(void *arg)
{
    struct get *s = arg;
    const struct http_get *g = s->g;
    bool v6 = strchr(g->url.host, ':') != NULL;
    char *more = g->body ? xasprintf("Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(g->body),
                                     g->body)
                         : xstrdup("\r\n");
    char *text = xasprintf("%s %s HTTP/1.0\r\nHost: %s%s%s:%u\r\n%s%s%sUser-Agent: milvus-cdc\r\n%s",
                           g->body ? "POST" : "GET", g->target, v6 ? "[" : "", g->url.host, v6 ? "]" : "", g->url.port,
                           g->token ? "Authorization: Bearer " : "", g->token ? g->token : "", g->token ? "\r\n" : "", more);

    s->opened = true;
    conn_write(s->conn, text, strlen(text));
    explicit_bzero(text, strlen(text));
    free(text);
    free(more);
}

static void on_readable(void *arg)
{
    struct get *s = arg;
    size_t n;

    do {
        s->data = xrealloc(s->data, s->len + PIECE + 1);
        n = conn_read(s->conn, s->data + s->len, PIECE);
        s->len += n;
    } while (n > 0 && s->len <= MAX_ANSWER);
    if (s->len > MAX_ANSWER)
        finish(s, err_set(s->err, ERR_PROTO, ERRC_DATA, "the answer is larger than %d MiB", MAX_ANSWER >> 20));
}

/* The end of the connection is the end of the answer, if there was one. */
static void on_down(void *arg, const char *why)
{
    struct get *s = arg;

    if (s->len > 0)
        finish(s, 0);
    else
        finish(s, err_set(s->err, ERR_UNAVAILABLE, ERRC_RETRY, "%s", why));
}

static int take(struct get *s, int *ret_status, char **ret_body)
{
    const char *body;
    size_t len;

    if (http_answer_split(s->data, s->len, ret_status, &body, &len) < 0)
        return err_set(s->err, ERR_PROTO, ERRC_DATA, "what answers is no HTTP server, or its answer was cut off");
    *ret_body = xstrndup(body, len);
    return 0;
}

int http_get(const struct http_get *g, int *ret_status, char **ret_body, struct err *err)
{
    static const struct conn_events events = {on_open, on_readable, on_down};
    struct conn_tls_options o = {.ca_path = g->ca, .cert_path = g->cert, .key_path = g->key, .insecure = g->insecure};
    struct conn_tls *tls = g->url.tls ? conn_tls_new(&o, err) : NULL;
    struct get s = {.g = g, .err = err};

    if (g->url.tls && !tls)
        return err->code;
    s.loop = loop_new();
    timer_init(&s.limit, s.loop, LOOP_PRIO_HIGH, on_limit, &s);
    timer_set(&s.limit, g->timeout_ms);
    s.conn = conn_open(s.loop, g->url.host, g->url.port, tls, g->timeout_ms, &events, &s);
    loop_run(s.loop);
    if (s.rc == 0)
        s.rc = take(&s, ret_status, ret_body);
    conn_close(s.conn);
    timer_release(&s.limit);
    loop_free(s.loop);
    conn_tls_free(tls);
    free(s.data);
    return s.rc;
}
