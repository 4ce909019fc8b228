#include "wal/nats_priv.h"

#include "base/buf.h"
#include "base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

void nats_parser_init(struct nats_parser *p)
{
    memset(p, 0, offsetof(struct nats_parser, line));
    p->op = (struct nats_op){0};
    p->chunk = xmalloc(NATS_CHUNK);
}

static void drop_op(struct nats_parser *p)
{
    buf_unref(p->op.buf);
    p->op = (struct nats_op){0};
}

void nats_parser_release(struct nats_parser *p)
{
    drop_op(p);
    free(p->chunk);
    p->chunk = NULL;
}

bool nats_parser_empty(const struct nats_parser *p)
{
    return p->begin == p->end && !p->in_payload;
}

static size_t missing(const struct nats_parser *p)
{
    return p->op.len + 2 - p->got;
}

void nats_parser_space(struct nats_parser *p, uint8_t **ret, size_t *ret_len)
{
    p->direct = p->in_payload && missing(p) > NATS_DIRECT_MIN;
    if (p->direct) {
        assert(p->begin == p->end);
        *ret = p->op.buf->data + p->got;
        *ret_len = missing(p);
        return;
    }
    memmove(p->chunk, p->chunk + p->begin, p->end - p->begin); /* less than a line */
    p->end -= p->begin;
    p->begin = 0;
    assert(p->end < NATS_CHUNK);
    *ret = p->chunk + p->end;
    *ret_len = NATS_CHUNK - p->end;
}

void nats_parser_filled(struct nats_parser *p, size_t n)
{
    if (p->direct)
        p->got += n;
    else
        p->end += n;
}

/* ---- lines ---------------------------------------------------------------------------------- */

static int bad(struct err *err, const char *what)
{
    err_set(err, ERR_PROTO, ERRC_RETRY, "the server sent %s", what);
    return -1;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static struct nats_text trim(struct nats_text t)
{
    while (t.len && is_blank(*t.s)) {
        t.s++;
        t.len--;
    }
    while (t.len && is_blank(t.s[t.len - 1]))
        t.len--;
    return t;
}

bool nats_number(struct nats_text t, uint64_t *ret)
{
    uint64_t v = 0;

    if (t.len == 0 || t.len > 20)
        return false;
    for (size_t i = 0; i < t.len; i++) {
        unsigned d = (unsigned char)t.s[i] - '0';

        if (d > 9 || v > (UINT64_MAX - d) / 10)
            return false;
        v = v * 10 + d;
    }
    *ret = v;
    return true;
}

/* The words of a line; more than max of them: max + 1. */
static size_t split(struct nats_text line, struct nats_text *words, size_t max)
{
    size_t n = 0;

    for (line = trim(line); line.len; line = trim(line)) {
        size_t len = 0;

        while (len < line.len && !is_blank(line.s[len]))
            len++;
        if (n == max)
            return max + 1;
        words[n++] = (struct nats_text){line.s, len};
        line.s += len;
        line.len -= len;
    }
    return n;
}

/* "<subject> <sid> [reply] <size>", with headers "<subject> <sid> [reply] <header size> <size>". */
static int begin_msg(struct nats_parser *p, struct nats_text args, bool headers, struct err *err)
{
    struct nats_op *op = &p->op;
    struct nats_text w[5];
    size_t sizes = headers ? 2 : 1, n;
    uint64_t hdr = 0, len;

    memcpy(p->line, args.s, args.len); /* the caller checked the length */
    args.s = p->line;
    n = split(args, w, 5);
    if (n != 2 + sizes && n != 3 + sizes)
        return bad(err, "a message line with a wrong number of words");
    if (!nats_number(w[1], &op->sid) || !nats_number(w[n - 1], &len) || (headers && !nats_number(w[n - 2], &hdr)) ||
        hdr > len)
        return bad(err, "a message line with a wrong number");
    if (len > NATS_PAYLOAD_MAX) {
        err_set(err, ERR_LIMIT, ERRC_RETRY, "a message of %llu bytes, more than %d", (unsigned long long)len,
                NATS_PAYLOAD_MAX);
        return -1;
    }
    op->kind = NATS_MSG;
    op->subject = w[0];
    op->reply = n == 3 + sizes ? w[2] : (struct nats_text){"", 0};
    op->hdr_len = (size_t)hdr;
    op->len = (size_t)len;
    op->buf = buf_new(op->len + 2);
    if (!op->buf) {
        err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for a message of %zu bytes", op->len);
        return -1;
    }
    p->in_payload = true;
    p->got = 0;
    return 0;
}

static bool verb_is(struct nats_text verb, const char *name)
{
    return verb.len == strlen(name) && strncasecmp(verb.s, name, verb.len) == 0;
}

static struct nats_text unquote(struct nats_text t)
{
    if (t.len >= 2 && t.s[0] == '\'' && t.s[t.len - 1] == '\'')
        return (struct nats_text){t.s + 1, t.len - 2};
    return t;
}

/* 1: an operation without payload. 0: a payload follows. */
static int on_line(struct nats_parser *p, struct nats_text line, struct err *err)
{
    struct nats_text verb = {line.s, 0};

    while (verb.len < line.len && !is_blank(line.s[verb.len]))
        verb.len++;
    line = trim((struct nats_text){line.s + verb.len, line.len - verb.len});
    if (line.len >= NATS_LINE_MAX && !verb_is(verb, "INFO"))
        return bad(err, "a line that is too long");
    if (verb_is(verb, "MSG") || verb_is(verb, "HMSG"))
        return begin_msg(p, line, verb.len == 4, err);
    p->op.text = line;
    if (verb_is(verb, "PING")) {
        p->op.kind = NATS_PING;
    } else if (verb_is(verb, "PONG")) {
        p->op.kind = NATS_PONG;
    } else if (verb_is(verb, "+OK")) {
        p->op.kind = NATS_OK;
    } else if (verb_is(verb, "INFO")) {
        p->op.kind = NATS_INFO;
    } else if (verb_is(verb, "-ERR")) {
        p->op.kind = NATS_ERR;
        p->op.text = unquote(line);
    } else {
        return bad(err, "what is not the NATS protocol");
    }
    return 1;
}

static int next_line(struct nats_parser *p, struct err *err)
{
    const char *s = (const char *)p->chunk + p->begin;
    size_t have = p->end - p->begin;
    const char *nl = memchr(s, '\n', have);
    struct nats_text line;

    if (!nl)
        return have < NATS_CHUNK ? 2 : bad(err, "a line that is too long");
    line = (struct nats_text){s, (size_t)(nl - s)};
    p->begin += line.len + 1;
    if (line.len && s[line.len - 1] == '\r')
        line.len--;
    return on_line(p, line, err);
}

/* 1: complete. */
static int take_payload(struct nats_parser *p, struct err *err)
{
    size_t n = p->end - p->begin, want = missing(p);

    if (n > want)
        n = want;
    memcpy(p->op.buf->data + p->got, p->chunk + p->begin, n);
    p->begin += n;
    p->got += n;
    if (n < want)
        return 0;
    p->in_payload = false;
    if (memcmp(p->op.buf->data + p->op.len, "\r\n", 2) != 0)
        return bad(err, "a message that does not end where it should");
    return 1;
}

int nats_parser_next(struct nats_parser *p, struct nats_op *ret, struct err *err)
{
    int rv = 0;

    if (!p->in_payload) {
        drop_op(p);
        rv = next_line(p, err);
        if (rv == 2)
            return 0;
    }
    if (rv == 0)
        rv = take_payload(p, err);
    if (rv == 1)
        *ret = p->op;
    return rv;
}

/* ---- what JetStream puts into subjects and headers ------------------------------------------- */

static bool take_line(struct nats_text *rest, struct nats_text *ret)
{
    const char *nl = rest->len ? memchr(rest->s, '\n', rest->len) : NULL;

    if (!nl)
        return false;
    *ret = (struct nats_text){rest->s, (size_t)(nl - rest->s)};
    rest->s += ret->len + 1;
    rest->len -= ret->len + 1;
    if (ret->len && ret->s[ret->len - 1] == '\r')
        ret->len--;
    return true;
}

static void copy_text(char *dst, size_t size, struct nats_text t)
{
    size_t n = t.len < size - 1 ? t.len : size - 1;

    for (size_t i = 0; i < n; i++)
        dst[i] = (unsigned char)t.s[i] < ' ' || t.s[i] == 127 ? '?' : t.s[i];
    dst[n] = 0;
}

static void take_field(struct nats_text line, struct nats_status *ret)
{
    const struct {
        const char *name;
        uint64_t *value;
    } fields[] = {
        {"Nats-Pending-Bytes", &ret->pending_bytes},
        {"Nats-Last-Consumer", &ret->last_consumer},
        {"Nats-Last-Stream", &ret->last_stream},
    };
    const char *colon = line.len ? memchr(line.s, ':', line.len) : NULL;
    size_t name_len;
    uint64_t v;

    if (!colon)
        return;
    name_len = (size_t)(colon - line.s);
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
        struct nats_text value = trim((struct nats_text){colon + 1, line.len - name_len - 1});

        if (verb_is((struct nats_text){line.s, name_len}, fields[i].name) && nats_number(value, &v))
            *fields[i].value = v;
    }
}

int nats_status_parse(const uint8_t *hdr, size_t len, struct nats_status *ret)
{
    static const char version[] = "NATS/1.0";
    enum { VERSION_LEN = sizeof(version) - 1 };
    struct nats_text rest = {(const char *)hdr, len}, line;
    uint64_t code = 0;

    memset(ret, 0, sizeof(*ret));
    if (!take_line(&rest, &line) || line.len < VERSION_LEN || memcmp(line.s, version, VERSION_LEN) != 0)
        return ERR_PROTO;
    line = trim((struct nats_text){line.s + VERSION_LEN, line.len - VERSION_LEN});
    if (line.len) {
        if (line.len < 3 || !nats_number((struct nats_text){line.s, 3}, &code) ||
            (line.len > 3 && !is_blank(line.s[3])))
            return ERR_PROTO;
        copy_text(ret->text, sizeof(ret->text), trim((struct nats_text){line.s + 3, line.len - 3}));
    }
    ret->code = (unsigned)code;
    while (take_line(&rest, &line))
        take_field(line, ret);
    return 0;
}

int nats_ack_parse(struct nats_text reply, struct nats_ack *ret)
{
    enum { TOKENS_MAX = 13, SHORT = 9, LONG = 11 }; /* LONG: domain and account before the stream */
    struct nats_text t[TOKENS_MAX];
    size_t n = 0, first, begin = 0;

    for (size_t i = 0; i <= reply.len; i++) {
        if (i < reply.len && reply.s[i] != '.')
            continue;
        if (n == TOKENS_MAX)
            return ERR_PROTO;
        t[n++] = (struct nats_text){reply.s + begin, i - begin};
        begin = i + 1;
    }
    if (n != SHORT && n < LONG)
        return ERR_PROTO;
    first = n == SHORT ? 2 : 4;
    if (!verb_is(t[0], "$JS") || !verb_is(t[1], "ACK") || t[first].len == 0 || t[first + 1].len == 0)
        return ERR_PROTO;
    if (!nats_number(t[first + 3], &ret->stream_seq) || !nats_number(t[first + 4], &ret->consumer_seq) ||
        !nats_number(t[first + 6], &ret->pending) || ret->stream_seq == 0 || ret->consumer_seq == 0)
        return ERR_PROTO;
    ret->key = (struct nats_text){t[first].s, t[first].len + 1 + t[first + 1].len};
    return 0;
}

bool nats_name_ok(const char *name)
{
    size_t len = strlen(name);

    if (len == 0 || len > 255)
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)name[i];

        if (c <= ' ' || c == 127 || strchr(".*>/\\\"", c))
            return false;
    }
    return true;
}
