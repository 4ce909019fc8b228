#include "api/http_priv.h"

#include "base/mem.h"

#include <event2/buffer.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum state { START, HEADERS, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, END };

enum { MAX_CHUNK_LINE = 256 };

void http_parser_init(struct http_parser *p, size_t max_body)
{
    *p = (struct http_parser){.state = START, .max_body = max_body, .body = evbuffer_new()};
    if (!p->body)
        abort();
}

void http_parser_release(struct http_parser *p)
{
    if (p->body)
        evbuffer_free(p->body);
    p->body = NULL;
    explicit_bzero(p->authorization, sizeof(p->authorization));
}

static enum http_step bad(struct http_parser *p, int status, const char *why)
{
    p->status = status;
    p->why = why;
    return HTTP_BAD;
}

/* A line without its end (caller frees), or NULL: p->status is set when there will be none. */
static char *take_line(struct http_parser *p, struct evbuffer *in, size_t limit)
{
    size_t len;
    char *line = evbuffer_readln(in, &len, EVBUFFER_EOL_CRLF);

    if (!line) {
        if (evbuffer_get_length(in) + p->head_bytes > limit)
            (void)bad(p, 431, "the header is too large");
        return NULL;
    }
    p->head_bytes += len + 2;
    if (p->head_bytes > limit)
        (void)bad(p, 431, "the header is too large");
    else if (strlen(line) != len)
        (void)bad(p, 400, "a NUL byte in the header");
    if (p->status) {
        free(line);
        return NULL;
    }
    return line;
}

static bool is_token(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] <= ' ' || (unsigned char)s[i] >= 0x7f ||
            strchr("\"(),/:;<=>?@[\\]{}", s[i]))
            return false;
    return len > 0;
}

/* "http://host/path?query" and "/path?query" to "/path" (RFC 9112 3.2). */
static bool take_path(struct http_parser *p, const char *target)
{
    size_t len;

    if (strncasecmp(target, "http://", 7) == 0) {
        target += 7;
        target += strcspn(target, "/?#");
        if (*target != '/')
            target = "/";
    }
    len = strcspn(target, "?#");
    if (len >= sizeof(p->path) || len == 0)
        return false;
    memcpy(p->path, target, len);
    p->path[len] = '\0';
    if (target[len] != '?')
        return true;
    target += len + 1;
    len = strcspn(target, "#");
    if (len >= sizeof(p->query))
        return false;
    memcpy(p->query, target, len);
    p->query[len] = '\0';
    return true;
}

static enum http_step parse_start(struct http_parser *p, char *line)
{
    char *target = strchr(line, ' ');
    char *version = target ? strchr(target + 1, ' ') : NULL;

    if (!*line)
        return HTTP_MORE; /* empty lines before a request, RFC 9112 2.2 */
    if (!version || strchr(version + 1, ' '))
        return bad(p, 400, "not an HTTP request line");
    *target++ = '\0';
    *version++ = '\0';
    if (!is_token(line, strlen(line)) || strlen(line) >= sizeof(p->method))
        return bad(p, 400, "not an HTTP method");
    if (strncmp(version, "HTTP/", 5) != 0)
        return bad(p, 400, "not an HTTP request line");
    if (strcmp(version, "HTTP/1.1") != 0 && strcmp(version, "HTTP/1.0") != 0)
        return bad(p, 505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    if (!take_path(p, target))
        return bad(p, 414, "the request target is empty or too long");
    p->http11 = version[7] == '1';
    p->keep_alive = p->http11;
    snprintf(p->method, sizeof(p->method), "%s", line);
    p->state = HEADERS;
    return HTTP_MORE;
}

/* The digits of a decimal number, nothing else. */
static bool parse_length(const char *s, uint64_t *ret)
{
    uint64_t n = 0;

    if (!*s)
        return false;
    for (; *s; s++) {
        if (*s < '0' || *s > '9' || n > (UINT64_MAX - 9) / 10)
            return false;
        n = n * 10 + (uint64_t)(*s - '0');
    }
    *ret = n;
    return true;
}

/* Is word in a comma-separated list? */
static bool list_has(const char *list, const char *word)
{
    size_t want = strlen(word);

    while (*list) {
        size_t len;

        list += strspn(list, ", \t");
        len = strcspn(list, ", \t");
        if (len == want && strncasecmp(list, word, len) == 0)
            return true;
        list += len;
    }
    return false;
}

static enum http_step take_length(struct http_parser *p, const char *value)
{
    uint64_t n;

    if (!parse_length(value, &n))
        return bad(p, 400, "Content-Length is not a number");
    if (p->has_length && n != p->left)
        return bad(p, 400, "two Content-Length headers that differ");
    p->has_length = true;
    p->left = n;
    return HTTP_MORE;
}

static enum http_step take_header(struct http_parser *p, const char *name, const char *value)
{
    if (strcasecmp(name, "Content-Length") == 0)
        return take_length(p, value);
    if (strcasecmp(name, "Transfer-Encoding") == 0) {
        if (strcasecmp(value, "chunked") != 0 || p->chunked)
            return bad(p, 501, "the only transfer encoding known here is chunked");
        p->chunked = true;
    } else if (strcasecmp(name, "Connection") == 0) {
        if (list_has(value, "close"))
            p->keep_alive = false;
        else if (list_has(value, "keep-alive"))
            p->keep_alive = true;
    } else if (strcasecmp(name, "Expect") == 0) {
        if (strcasecmp(value, "100-continue") != 0)
            return bad(p, 417, "the only expectation known here is 100-continue");
        p->wants_continue = p->http11;
    } else if (strcasecmp(name, "Authorization") == 0) {
        if (*p->authorization || strlen(value) >= sizeof(p->authorization))
            return bad(p, 400, "two Authorization headers, or a too long one");
        snprintf(p->authorization, sizeof(p->authorization), "%s", value);
    } else if (strcasecmp(name, "Host") == 0) {
        if (p->has_host)
            return bad(p, 400, "two Host headers");
        p->has_host = true;
    }
    return HTTP_MORE;
}

static enum http_step end_of_headers(struct http_parser *p)
{
    if (p->http11 && !p->has_host)
        return bad(p, 400, "no Host header");
    if (p->chunked && p->has_length) /* RFC 9112 6.1: two readers may see two requests */
        return bad(p, 400, "Content-Length together with Transfer-Encoding");
    if (p->has_length && p->left > p->max_body) {
        p->too_large = true;
        p->state = END;
    } else if (p->chunked) {
        p->state = CHUNK_SIZE;
    } else {
        p->state = p->left ? BODY : END;
    }
    if (p->state == END)
        p->wants_continue = false;
    return HTTP_MORE;
}

static enum http_step parse_header(struct http_parser *p, char *line)
{
    char *colon = strchr(line, ':');
    size_t len;

    if (!*line)
        return end_of_headers(p);
    if (!colon || !is_token(line, (size_t)(colon - line))) /* also refuses folded lines */
        return bad(p, 400, "not an HTTP header line");
    *colon++ = '\0';
    colon += strspn(colon, " \t");
    for (len = strlen(colon); len > 0 && strchr(" \t", colon[len - 1]); len--)
        colon[len - 1] = '\0';
    return take_header(p, line, colon);
}

static enum http_step parse_chunk_size(struct http_parser *p, const char *line)
{
    size_t digits = strspn(line, "0123456789abcdefABCDEF");
    const char *rest = line + digits + strspn(line + digits, " \t");

    if (digits == 0 || digits > 15 || (*rest && *rest != ';'))
        return bad(p, 400, "not a chunk size");
    p->left = strtoull(line, NULL, 16);
    if (p->left > p->max_body - evbuffer_get_length(p->body)) {
        p->too_large = true;
        p->state = END;
    } else {
        p->state = p->left ? CHUNK_DATA : TRAILERS;
    }
    return HTTP_MORE;
}

/* Trailers are of no use here. */
static enum http_step parse_trailer(struct http_parser *p, const char *line)
{
    if (!*line)
        p->state = END;
    return HTTP_MORE;
}

static enum http_step parse_line(struct http_parser *p, char *line)
{
    switch (p->state) {
    case START:
        return parse_start(p, line);
    case HEADERS:
        return parse_header(p, line);
    case CHUNK_SIZE:
        return parse_chunk_size(p, line);
    case CHUNK_END:
        p->state = CHUNK_SIZE;
        p->head_bytes = 0;
        return *line ? bad(p, 400, "a chunk is longer than its size") : HTTP_MORE;
    default:
        return parse_trailer(p, line);
    }
}

/* False: more bytes are needed. Copied, not moved: with a body sent byte by byte each byte would
 * keep a whole block. */
static bool take_body(struct http_parser *p, struct evbuffer *in)
{
    char piece[4096];

    while (p->left > 0) {
        size_t want = p->left < sizeof(piece) ? (size_t)p->left : sizeof(piece);
        int n = evbuffer_remove(in, piece, want);

        if (n <= 0)
            return false;
        if (evbuffer_add(p->body, piece, (size_t)n) != 0)
            abort(); /* only without memory */
        p->left -= (uint64_t)n;
    }
    p->state = p->state == CHUNK_DATA ? CHUNK_END : END;
    p->head_bytes = 0;
    return true;
}

static size_t line_limit(const struct http_parser *p)
{
    return p->state == CHUNK_SIZE || p->state == CHUNK_END ? MAX_CHUNK_LINE : HTTP_MAX_HEAD;
}

enum http_step http_parse(struct http_parser *p, struct evbuffer *in)
{
    if (evbuffer_get_length(in) > 0)
        p->begun = true;
    while (p->state != END) {
        enum http_step step;
        char *line;

        if (p->state == BODY || p->state == CHUNK_DATA) {
            if (!take_body(p, in))
                return HTTP_MORE;
            continue;
        }
        if (p->state == CHUNK_SIZE)
            p->head_bytes = 0;
        line = take_line(p, in, line_limit(p));
        if (!line)
            return p->status ? HTTP_BAD : HTTP_MORE;
        step = parse_line(p, line);
        free(line);
        if (step == HTTP_BAD)
            return step;
    }
    return HTTP_DONE;
}
