#include "base/metric.h"

#include "base/mem.h"

#include <event2/buffer.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

enum { TYPE_HISTOGRAM = METRIC_GAUGE + 1 };

static const unsigned bounds_ms[] = {1, 2, 4, 8, 16, 32, 64, 128};
enum { N_BOUNDS = sizeof(bounds_ms) / sizeof(bounds_ms[0]) };

struct histogram {
    uint64_t count;
    uint64_t buckets[N_BOUNDS]; /* each observation in one only; summed up when rendered */
};

struct series {
    struct metric m;     /* of a histogram: the sum */
    struct histogram *h; /* NULL: a counter or gauge, of which there are many */
    char *text;          /* a="x",b="y", escaped; the key */
    UT_hash_handle hh;
};

struct family {
    char *name, *help;
    int type;
    struct series *series;
    UT_hash_handle hh;
};

static struct family *families;

static void put_escaped(struct evbuffer *out, const char *s, bool quotes)
{
    for (; *s; s++) {
        if (*s == '\n')
            evbuffer_add(out, "\\n", 2);
        else if (*s == '\\' || (quotes && *s == '"'))
            evbuffer_add_printf(out, "\\%c", *s);
        else
            evbuffer_add(out, s, 1);
    }
}

static char *labels_text(const struct metric_label *labels)
{
    struct evbuffer *out = evbuffer_new();
    size_t len;
    char *text;

    if (!out)
        abort();
    for (const struct metric_label *l = labels; l && l->name; l++) {
        evbuffer_add_printf(out, "%s%s=\"", l == labels ? "" : ",", l->name);
        put_escaped(out, l->value ? l->value : "", true);
        evbuffer_add(out, "\"", 1);
    }
    len = evbuffer_get_length(out);
    text = xmalloc(len + 1);
    evbuffer_remove(out, text, len);
    text[len] = '\0';
    evbuffer_free(out);
    return text;
}

static struct family *family_get(int type, const char *name, const char *help)
{
    struct family *f;

    HASH_FIND_STR(families, name, f);
    if (f)
        return f;
    f = xcalloc(1, sizeof(*f));
    f->name = xstrdup(name);
    f->help = xstrdup(help ? help : "");
    f->type = type;
    HASH_ADD_KEYPTR(hh, families, f->name, strlen(f->name), f);
    return f;
}

static struct series *series_get(int type, const char *name, const char *help,
                                 const struct metric_label *labels)
{
    struct family *f = family_get(type, name, help);
    char *text = labels_text(labels);
    struct series *s;

    HASH_FIND_STR(f->series, text, s);
    if (s) {
        free(text);
        return s;
    }
    s = xcalloc(1, sizeof(*s));
    s->text = text;
    if (type == TYPE_HISTOGRAM)
        s->h = xcalloc(1, sizeof(*s->h));
    HASH_ADD_KEYPTR(hh, f->series, s->text, strlen(s->text), s);
    return s;
}

struct metric *metric_get(enum metric_type type, const char *name, const char *help,
                          const struct metric_label *labels)
{
    return &series_get((int)type, name, help, labels)->m;
}

void metric_observe_ms(const char *name, const char *help, const struct metric_label *labels,
                       double ms)
{
    struct series *s = series_get(TYPE_HISTOGRAM, name, help, labels);

    s->h->count++;
    s->m.value += ms;
    for (size_t i = 0; i < N_BOUNDS; i++) {
        if (ms <= bounds_ms[i]) {
            s->h->buckets[i]++;
            return;
        }
    }
}

static void series_free(struct family *f, struct series *s)
{
    HASH_DEL(f->series, s);
    free(s->h);
    free(s->text);
    free(s);
}

/* label: name="value". A quote inside a value is escaped, so what is found begins where a label does. */
static bool has_label(const struct series *s, const char *label)
{
    size_t len = strlen(label);
    const char *p = s->text;

    while ((p = strstr(p, label))) {
        if ((p == s->text || p[-1] == ',') && (p[len] == ',' || p[len] == '\0'))
            return true;
        p++;
    }
    return false;
}

void metric_remove_matching(const char *name, const char *value)
{
    struct family *f, *next_f;
    struct series *s, *next_s;
    char *label = labels_text(METRIC_LABELS({name, value}));

    HASH_ITER(hh, families, f, next_f)
    {
        HASH_ITER(hh, f->series, s, next_s)
        {
            if (has_label(s, label))
                series_free(f, s);
        }
    }
    free(label);
}

static void put_number(struct evbuffer *out, double v)
{
    if (isnan(v))
        evbuffer_add_printf(out, "NaN\n");
    else if (isinf(v))
        evbuffer_add_printf(out, v > 0 ? "+Inf\n" : "-Inf\n");
    else if (v == floor(v) && fabs(v) < 1e18)
        evbuffer_add_printf(out, "%.0f\n", v);
    else
        evbuffer_add_printf(out, "%.17g\n", v);
}

/* name{labels,le="..."}, without what is empty. */
static void put_name(struct evbuffer *out, const struct family *f, const char *suffix,
                     const struct series *s, const char *le)
{
    evbuffer_add_printf(out, "%s%s", f->name, suffix);
    if (*s->text || le) {
        evbuffer_add_printf(out, "{%s", s->text);
        if (le)
            evbuffer_add_printf(out, "%sle=\"%s\"", *s->text ? "," : "", le);
        evbuffer_add(out, "}", 1);
    }
    evbuffer_add(out, " ", 1);
}

static void render_histogram(struct evbuffer *out, const struct family *f, const struct series *s)
{
    uint64_t below = 0;
    char le[16];

    for (size_t i = 0; i < N_BOUNDS; i++) {
        below += s->h->buckets[i];
        snprintf(le, sizeof(le), "%u", bounds_ms[i]);
        put_name(out, f, "_bucket", s, le);
        put_number(out, (double)below);
    }
    put_name(out, f, "_bucket", s, "+Inf");
    put_number(out, (double)s->h->count);
    put_name(out, f, "_sum", s, NULL);
    put_number(out, s->m.value);
    put_name(out, f, "_count", s, NULL);
    put_number(out, (double)s->h->count);
}

static void render_family(struct evbuffer *out, const struct family *f)
{
    static const char *const types[] = {
        [METRIC_COUNTER] = "counter", [METRIC_GAUGE] = "gauge", [TYPE_HISTOGRAM] = "histogram"};

    evbuffer_add_printf(out, "# HELP %s ", f->name);
    put_escaped(out, f->help, false);
    evbuffer_add_printf(out, "\n# TYPE %s %s\n", f->name, types[f->type]);
    for (const struct series *s = f->series; s; s = s->hh.next) {
        if (f->type == TYPE_HISTOGRAM) {
            render_histogram(out, f, s);
            continue;
        }
        put_name(out, f, "", s, NULL);
        put_number(out, s->m.value);
    }
}

static int by_name(const struct family *a, const struct family *b)
{
    return strcmp(a->name, b->name);
}

void metric_render(struct evbuffer *out)
{
    HASH_SORT(families, by_name);
    for (const struct family *f = families; f; f = f->hh.next)
        if (f->series)
            render_family(out, f);
}

void metric_clear(void)
{
    struct family *f, *next_f;
    struct series *s, *next_s;

    HASH_ITER(hh, families, f, next_f)
    {
        HASH_ITER(hh, f->series, s, next_s)
            series_free(f, s);
        HASH_DEL(families, f);
        free(f->name);
        free(f->help);
        free(f);
    }
}
