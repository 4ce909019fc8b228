/* msg_page.c - the answer of a Query (QueryResults of milvus.proto): how many rows, and the greatest key. */
#include "base/err.h"
#include "base/mem.h"
#include "repl/msg.h"
#include "repl/msg_priv.h"

#include <inttypes.h>
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

static void take_number(struct keys *k, int64_t v)
{
    if (k->n++ == 0 || v > k->number)
        k->number = v;
}

/* Texts compare byte by byte, as they do in Milvus. */
static void take_text(struct keys *k, const uint8_t *s, size_t len)
{
    size_t least = len < k->len ? len : k->len;
    int cmp = k->n ? memcmp(s, k->data, least) : 1;

    k->text = true;
    if (k->n++ == 0 || cmp > 0 || (cmp == 0 && len > k->len)) {
        k->data = s;
        k->len = len;
    }
}

/* LongArray: packed, or one by one. */
static bool take_numbers(struct keys *k, const struct pb_field *array)
{
    struct pb_scan s = pb_scan_init(array->data, array->len);
    struct pb_field f;
    uint64_t v;
    int n;

    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != ARRAY_F_DATA)
            continue;
        if (f.wire == PB_VARINT)
            take_number(k, (int64_t)f.varint);
        else if (f.wire != PB_LEN)
            return false;
        for (const uint8_t *p = f.data; f.wire == PB_LEN && p < f.data + f.len;) {
            if (!pb_varint(&p, f.data + f.len, &v))
                return false;
            take_number(k, (int64_t)v);
        }
    }
    return n == 0;
}

static bool take_texts(struct keys *k, const struct pb_field *array)
{
    struct pb_scan s = pb_scan_init(array->data, array->len);
    struct pb_field f;
    int n;

    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != ARRAY_F_DATA || f.wire != PB_LEN)
            return false;
        take_text(k, f.data, f.len);
    }
    return n == 0;
}

static bool take_column(struct keys *k, const struct pb_field *column)
{
    struct pb_field scalars, array;
    int n = msg_find_only(column->data, column->len, FIELD_F_SCALARS, PB_LEN, &scalars);

    if (n <= 0)
        return n == 0; /* no rows */
    if ((n = msg_find_only(scalars.data, scalars.len, SCALAR_F_LONG, PB_LEN, &array)) != 0)
        return n > 0 && take_numbers(k, &array);
    n = msg_find_only(scalars.data, scalars.len, SCALAR_F_STRING, PB_LEN, &array);
    return n == 0 || (n > 0 && take_texts(k, &array));
}

static bool is_named(const struct pb_field *column, const char *name)
{
    struct pb_field f;

    return msg_find_only(column->data, column->len, FIELD_F_NAME, PB_LEN, &f) > 0 && f.len == strlen(name) &&
           memcmp(f.data, name, f.len) == 0;
}

/* The column of that name; an answer without any column has no rows. */
static bool scan_keys(const uint8_t *data, size_t len, const char *name, struct keys *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    bool any = false, found = false;
    int n;

    *ret = (struct keys){0};
    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != PAGE_F_FIELDS_DATA || f.wire != PB_LEN)
            continue;
        any = true;
        if (!found && is_named(&f, name)) {
            found = true;
            if (!take_column(ret, &f))
                return false;
        }
    }
    return n == 0 && (found || !any);
}

static char *last_text(const struct keys *k)
{
    struct pb_out o = {0};
    char *text;

    if (!k->text)
        return xasprintf("%" PRId64, k->number);
    msg_out_quoted(&o, k->data, k->len);
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
