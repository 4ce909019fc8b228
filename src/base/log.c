#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    LINE_MAX_BYTES = 8192,
    LINE_TAIL = 8, /* kept free for the mark of a cut line and the newline */
};

struct line {
    size_t len;
    bool cut;
    char text[LINE_MAX_BYTES];
};

static atomic_int min_level = LOG_INFO;

static const char *const level_names[] = {"debug", "info", "warn", "error"};

/* All or nothing, so that an escape sequence is never cut in two. */
static void put(struct line *l, const char *s, size_t n)
{
    if (l->cut || n > LINE_MAX_BYTES - LINE_TAIL - l->len) {
        l->cut = true;
        return;
    }
    memcpy(l->text + l->len, s, n);
    l->len += n;
}

static void put_str(struct line *l, const char *s)
{
    put(l, s, strlen(s));
}

static bool is_control(unsigned char c)
{
    return c < 0x20 || c == 0x7f;
}

static bool needs_quotes(const char *s)
{
    if (!*s)
        return true;
    for (; *s; s++)
        if (is_control((unsigned char)*s) || strchr(" =\"", *s))
            return true;
    return false;
}

static void put_escaped(struct line *l, char c)
{
    char hex[8];

    switch (c) {
    case '\n':
        put(l, "\\n", 2);
        return;
    case '\r':
        put(l, "\\r", 2);
        return;
    case '\t':
        put(l, "\\t", 2);
        return;
    case '"':
        put(l, "\\\"", 2);
        return;
    case '\\':
        put(l, "\\\\", 2);
        return;
    default:
        break;
    }
    if (!is_control((unsigned char)c)) {
        put(l, &c, 1);
        return;
    }
    snprintf(hex, sizeof(hex), "\\x%02x", (unsigned)(unsigned char)c);
    put_str(l, hex);
}

static void put_value(struct line *l, const char *s)
{
    if (!s)
        return;
    if (!needs_quotes(s)) {
        put_str(l, s);
        return;
    }
    put(l, "\"", 1);
    for (; *s; s++)
        put_escaped(l, *s);
    put(l, "\"", 1);
}

static void put_time(struct line *l)
{
    char text[CLOCK_CHARS];

    clock_format(clock_wall_ms(), text);
    put(l, "ts=", 3);
    put_str(l, text);
}

static void put_kv(struct line *l, const struct log_kv *kv)
{
    char num[32];

    put(l, " ", 1);
    put_str(l, kv->key);
    put(l, "=", 1);
    switch (kv->kind) {
    case LOG_KV_STR:
        put_value(l, kv->str);
        return;
    case LOG_KV_INT:
        snprintf(num, sizeof(num), "%" PRId64, kv->i);
        break;
    case LOG_KV_UINT:
        snprintf(num, sizeof(num), "%" PRIu64, kv->u);
        break;
    }
    put_str(l, num);
}

/* Errors are dropped: there is nowhere to report them. */
static void write_all(const char *p, size_t n)
{
    while (n > 0) {
        ssize_t done = write(STDERR_FILENO, p, n);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return;
        p += done;
        n -= (size_t)done;
    }
}

void log_write(enum log_level level, const char *mod, const char *msg, const struct log_kv *kv)
{
    struct line l;
    int saved = errno;

    if (!log_enabled(level))
        return;
    l.len = 0;
    l.cut = false;
    put_time(&l);
    put_str(&l, " level=");
    put_str(&l, level_names[level]);
    put_str(&l, " mod=");
    put_value(&l, mod);
    put_str(&l, " msg=");
    put_value(&l, msg);
    for (; kv && kv->key; kv++)
        put_kv(&l, kv);
    if (l.cut) {
        memcpy(l.text + l.len, "...", 3);
        l.len += 3;
    }
    l.text[l.len++] = '\n';
    write_all(l.text, l.len);
    errno = saved;
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&min_level, (int)level, memory_order_relaxed);
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&min_level, memory_order_relaxed);
}

bool log_level_parse(const char *text, enum log_level *ret_level)
{
    static const struct {
        const char *name;
        enum log_level level;
    } names[] = {
        {"debug", LOG_DEBUG}, {"info", LOG_INFO},    {"warn", LOG_WARN},   {"warning", LOG_WARN},
        {"error", LOG_ERROR}, {"dpanic", LOG_ERROR}, {"panic", LOG_ERROR}, {"fatal", LOG_ERROR},
    };

    if (!text)
        return false;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcasecmp(text, names[i].name) == 0) {
            *ret_level = names[i].level;
            return true;
        }
    }
    return false;
}
