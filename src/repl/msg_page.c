/* msg_page.c - the answer of a Query (QueryResults of milvus.proto): how many rows, and the greatest key. */
#include "base/err.h"
#include "base/mem.h"
#include "repl/msg.h"
#include "repl/msg_priv.h"

#include <stdlib.h>
#include <string.h>

/* What is known of the keys of a page. */
struct keys {
    uint64_t n;
    bool text;
    int64_t number;
    const uint8_t *data;
    size_t len;
};

static void take_number(void *arg, int64_t v)
{
    struct keys *k = arg;

    if (k->n++ == 0 || v > k->number)
        k->number = v;
}

/* Texts compare byte by byte, as they do in Milvus. */
static void take_text(void *arg, const uint8_t *s, size_t len)
{
    struct keys *k = arg;
    size_t least = len < k->len ? len : k->len;
    int cmp = k->n ? memcmp(s, k->data, least) : 1;

    k->text = true;
    if (k->n++ == 0 || cmp > 0 || (cmp == 0 && len > k->len)) {
        k->data = s;
        k->len = len;
    }
}

/* Where keys go. */
struct takers {
    void (*number)(void *arg, int64_t v);
    void (*text)(void *arg, const uint8_t *s, size_t len);
    void *arg;
};

static bool take_column(const struct takers *t, const struct pb_field *column)
{
    struct pb_field scalars, array;
    int n = msg_find_only(column->data, column->len, FIELD_F_SCALARS, PB_LEN, &scalars);

    if (n <= 0)
        return n == 0; /* no rows */
    if ((n = msg_find_only(scalars.data, scalars.len, SCALAR_F_LONG, PB_LEN, &array)) != 0)
        return n > 0 && msg_each_number(array.data, array.len, ARRAY_F_DATA, t->number, t->arg);
    n = msg_find_only(scalars.data, scalars.len, SCALAR_F_STRING, PB_LEN, &array);
    return n == 0 || (n > 0 && msg_each_text(array.data, array.len, t->text, t->arg));
}

static bool is_named(const struct pb_field *column, const char *name)
{
    struct pb_field f;

    return msg_find_only(column->data, column->len, FIELD_F_NAME, PB_LEN, &f) > 0 && f.len == strlen(name) &&
           memcmp(f.data, name, f.len) == 0;
}

/* The column of that name; an answer without any column has no rows. */
bool msg_page_each_key(const uint8_t *data, size_t len, const char *name, void (*number)(void *arg, int64_t v),
                       void (*text)(void *arg, const uint8_t *s, size_t len), void *arg)
{
    const struct takers t = {number, text, arg};
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    bool any = false, found = false;
    int n;

    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != PAGE_F_FIELDS_DATA || f.wire != PB_LEN)
            continue;
        any = true;
        if (!found && is_named(&f, name)) {
            found = true;
            if (!take_column(&t, &f))
                return false;
        }
    }
    return n == 0 && (found || !any);
}

static bool scan_keys(const uint8_t *data, size_t len, const char *name, struct keys *ret)
{
    *ret = (struct keys){0};
    return msg_page_each_key(data, len, name, take_number, take_text, ret);
}

static char *last_text(const struct keys *k)
{
    struct pb_out o = {0};
    char *text;

    if (k->text)
        msg_out_quoted(&o, k->data, k->len);
    else
        msg_out_number(&o, k->number);
    text = xstrndup((const char *)o.data, o.len);
    pb_out_release(&o);
    return text;
}

int msg_page_keys(const uint8_t *data, size_t len, const char *pk_name, uint64_t *ret_rows, char **ret_last,
                  struct err *err)
{
    struct keys k;

    *ret_last = NULL;
    if (!scan_keys(data, len, pk_name, &k))
        return err_set(err, ERR_PROTO, ERRC_DATA, "the source's answer to a query (%zu bytes) has no keys `%s`", len,
                       pk_name);
    *ret_rows = k.n;
    if (k.n)
        *ret_last = last_text(&k);
    return 0;
}

uint64_t msg_page_count(const uint8_t *data, size_t len)
{
    struct keys k;

    return scan_keys(data, len, "count(*)", &k) && k.n == 1 && !k.text && k.number > 0 ? (uint64_t)k.number : 0;
}
