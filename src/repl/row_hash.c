/*
 * row_hash.c - keys and hashes of the rows of a Query's answer.
 *
 * A row's hash is the sum of the hashes of its columns, each of name and value. The values of a column are walked one
 * after the other; where some rows are null, they are counted first, to know whether there are placeholders.
 */
#include "repl/row_hash_parts_priv.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "repl/msg_priv.h"

/* schema.proto ScalarField, VectorField */
enum { SCALAR_F_BOOL = 1, SCALAR_F_INT = 2, SCALAR_F_FLOAT = 4, SCALAR_F_DOUBLE = 5, SCALAR_F_ARRAY = 8, SCALAR_F_JSON = 9 };
enum { VECTOR_F_FLOAT = 2, VECTOR_F_BINARY = 3, VECTOR_F_FLOAT16 = 4, VECTOR_F_BFLOAT16 = 5, VECTOR_F_INT8 = 7 };

struct row_hash row_hash_bytes(const void *data, size_t len)
{
    /* against accidents, not attacks: a fixed key makes results comparable */
    static const uint8_t key[crypto_shorthash_siphashx24_KEYBYTES] = "milvus-cdc rows";
    static const uint8_t none;
    uint8_t out[crypto_shorthash_siphashx24_BYTES];
    struct row_hash h;

    crypto_shorthash_siphashx24(out, len ? data : &none, len, key);
    memcpy(&h.a, out, 8);
    memcpy(&h.b, out + 8, 8);
    return h;
}

/* ---- keys ------------------------------------------------------------------------------------------ */

int row_key_cmp(const struct row_key *a, const struct row_key *b)
{
    size_t least = a->len < b->len ? a->len : b->len;
    int c;

    if (!a->text || !b->text)
        return a->number < b->number ? -1 : a->number > b->number;
    c = memcmp(a->text, b->text, least); /* byte by byte, as Milvus does */
    return c ? c : a->len < b->len ? -1 : a->len > b->len;
}

struct row_key row_key_dup(const struct row_key *k)
{
    struct row_key d = *k;

    if (k->text) {
        uint8_t *copy = xmalloc(k->len + 1);
        memcpy(copy, k->text, k->len);
        d.text = copy;
    }
    return d;
}

void row_key_release(struct row_key *k)
{
    free((void *)(uintptr_t)k->text);
    *k = (struct row_key){0};
}

char *row_key_text(const struct row_key *k)
{
    struct pb_out o = {0};
    char *text;

    if (k->text)
        msg_out_quoted(&o, k->text, k->len);
    else
        msg_out_number(&o, k->number);
    text = xstrndup((const char *)o.data, o.len);
    pb_out_release(&o);
    return text;
}

/* ---- the values of a column -------------------------------------------------------------------------- */

/* Called for each value; data is what its bytes mean, in one form. */
typedef void (*value_fn)(void *arg, const uint8_t *data, size_t len);

static void give_number(value_fn fn, void *arg, int64_t v)
{
    fn(arg, (const uint8_t *)&v, sizeof(v));
}

/* All that are no number are one. */
static void give_real(value_fn fn, void *arg, const uint8_t *p, size_t size)
{
    static const uint8_t nan[] = "NaN";
    float f;
    double d;

    memcpy(&f, p, sizeof(f));
    if (size == sizeof(d))
        memcpy(&d, p, sizeof(d));
    if (size == sizeof(d) ? d != d : f != f)
        fn(arg, nan, 3);
    else
        fn(arg, p, size);
}

static bool packed_values(uint32_t array, const struct pb_field *f, value_fn fn, void *arg)
{
    const uint8_t *p = f->data, *end = p + f->len;
    size_t size = array == SCALAR_F_FLOAT ? 4 : array == SCALAR_F_DOUBLE ? 8 : 0;
    uint64_t v;

    if (size && f->len % size)
        return false;
    while (p < end) {
        if (size) {
            give_real(fn, arg, p, size);
            p += size;
            continue;
        }
        if (!pb_varint(&p, end, &v))
            return false;
        give_number(fn, arg, array == SCALAR_F_INT ? (int32_t)v : (int64_t)v);
    }
    return true;
}

/* One number that is not packed. */
static bool bare_value(uint32_t array, const struct pb_field *f, value_fn fn, void *arg)
{
    if (f->wire == PB_VARINT)
        give_number(fn, arg, array == SCALAR_F_INT ? (int32_t)f->varint : (int64_t)f->varint);
    else
        give_real(fn, arg, (const uint8_t *)&f->varint, f->wire == PB_I32 ? 4 : 8);
    return true;
}

static bool is_number(uint32_t array)
{
    return array < SCALAR_F_STRING;
}

static bool scalar_values(uint32_t array, const uint8_t *data, size_t len, value_fn fn, void *arg);

static void add_element(void *arg, const uint8_t *data, size_t len)
{
    pb_out_bytes(arg, 1, data, len);
    if (len == 0)
        pb_out_tag(arg, 2, PB_LEN); /* an empty text is an element too */
}

/* A row of an array column: a ScalarField; without any list it is empty. */
static bool array_value(const struct pb_field *f, value_fn fn, void *arg)
{
    struct pb_scan s = pb_scan_init(f->data, f->len);
    struct pb_out o = {0};
    struct pb_field list;
    bool ok = true;
    int n = 0;

    while (ok && (n = pb_scan_next(&s, &list)) > 0)
        ok = list.wire == PB_LEN && list.num < SCALAR_F_ARRAY &&
             scalar_values(list.num, list.data, list.len, add_element, &o);
    if (ok && n == 0)
        fn(arg, o.data, o.len);
    pb_out_release(&o);
    return ok && n == 0;
}

static bool scalar_values(uint32_t array, const uint8_t *data, size_t len, value_fn fn, void *arg)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    bool ok = true;
    int n = 0;

    while (ok && (n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != ARRAY_F_DATA)
            continue; /* the type of elements */
        if (is_number(array))
            ok = f.wire == PB_LEN ? packed_values(array, &f, fn, arg) : bare_value(array, &f, fn, arg);
        else if ((ok = f.wire == PB_LEN) && array == SCALAR_F_ARRAY)
            ok = array_value(&f, fn, arg);
        else if (ok)
            fn(arg, f.data, f.len);
    }
    return ok && n == 0;
}

/* Bytes of one vector; 0: not of one length, or not known. */
static size_t vector_size(const struct msg_column *c)
{
    switch (c->array) {
    case VECTOR_F_FLOAT:
        return c->dim * 4;
    case VECTOR_F_BINARY:
        return c->dim / 8;
    case VECTOR_F_FLOAT16:
    case VECTOR_F_BFLOAT16:
        return c->dim * 2;
    case VECTOR_F_INT8:
        return c->dim;
    }
    return 0;
}

static bool dense_values(const struct msg_column *c, const uint8_t *data, size_t len, value_fn fn, void *arg)
{
    size_t size = vector_size(c);

    if (size == 0 || len % size)
        return false;
    for (size_t at = 0; at < len; at += size)
        fn(arg, data + at, size);
    return true;
}

static bool vector_values(const struct msg_column *c, value_fn fn, void *arg)
{
    struct pb_scan s = pb_scan_init(c->data, c->len);
    struct pb_field f;
    bool ok = true;
    int n = 0;

    if (c->array != VECTOR_F_FLOAT && !msg_column_is_sparse(c))
        return dense_values(c, c->data, c->len, fn, arg);
    while (ok && (n = pb_scan_next(&s, &f)) > 0) {
        ok = f.wire == PB_LEN;
        if (ok && f.num == ARRAY_F_DATA && c->array == VECTOR_F_FLOAT)
            ok = dense_values(c, f.data, f.len, fn, arg);
        else if (ok && f.num == ARRAY_F_DATA)
            fn(arg, f.data, f.len);
    }
    return ok && n == 0;
}

static bool column_values(const struct msg_column *c, value_fn fn, void *arg)
{
    return c->kind == FIELD_F_VECTORS ? vector_values(c, fn, arg) : scalar_values(c->array, c->data, c->len, fn, arg);
}

/* ---- a column's part of the hashes --------------------------------------------------------------------- */

struct column_hash {
    const struct msg_column *c;
    struct row_page *page;
    size_t at;      /* the row of the next value */
    bool has_nulls; /* null rows have no values: they are passed over */
    struct pb_out text; /* name, then value */
    size_t name_len;
};

static bool row_is_null(const struct msg_column *c, size_t row)
{
    return row < c->valid_len && !c->valid[row];
}

static void pass_nulls(struct column_hash *h)
{
    while (h->has_nulls && row_is_null(h->c, h->at))
        h->at++;
}

static void hash_value(void *arg, const uint8_t *data, size_t len)
{
    struct column_hash *h = arg;
    struct row_hash json;
    bool said = true;
    size_t row;

    pass_nulls(h);
    row = h->at++;
    if (row >= h->page->n || row_is_null(h->c, row))
        return;
    if (h->c->array == SCALAR_F_JSON && h->c->kind == FIELD_F_SCALARS) {
        said = row_hash_json(data, len, &json) || !h->c->dynamic;
        data = (const uint8_t *)&json;
        len = sizeof(json);
    }
    h->text.len = h->name_len;
    pb_out_raw(&h->text, data, len);
    if (said)
        row_hash_add(&h->page->rows[row].hash, row_hash_bytes(h->text.data, h->text.len));
}

static void count_value(void *arg, const uint8_t *data, size_t len)
{
    (void)data;
    (void)len;
    ++*(size_t *)arg;
}

static size_t count_nulls(const struct msg_column *c)
{
    size_t n = 0;

    for (size_t i = 0; i < c->valid_len; i++)
        n += c->valid[i] == 0;
    return n;
}

static bool add_column(struct row_page *page, const struct msg_column *c)
{
    struct column_hash h = {.c = c, .page = page};
    size_t values = 0, nulls = count_nulls(c);

    if (!column_values(c, count_value, &values) || (values != page->n && values + nulls != page->n))
        return false;
    h.has_nulls = values != page->n;
    if (c->dynamic)
        pb_out_raw(&h.text, "$meta", 6);
    else
        pb_out_raw(&h.text, c->name, c->name_len);
    pb_out_raw(&h.text, "\0", 1);
    h.name_len = h.text.len;
    (void)column_values(c, hash_value, &h);
    pb_out_release(&h.text);
    return true;
}

/* ---- a page ------------------------------------------------------------------------------------------- */

static void take_number(void *arg, int64_t v)
{
    struct row_page *p = arg;

    if ((p->n & (p->n - 1)) == 0)
        p->rows = xrealloc(p->rows, (p->n ? 2 * p->n : 1) * sizeof(*p->rows));
    p->rows[p->n++] = (struct row){.key.number = v};
}

static void take_text(void *arg, const uint8_t *s, size_t len)
{
    static const uint8_t none;
    struct row_page *p = arg;

    take_number(p, 0);
    p->rows[p->n - 1].key = (struct row_key){.text = len ? s : &none, .len = len};
}

static int cmp_rows(const void *a, const void *b)
{
    return row_key_cmp(&((const struct row *)a)->key, &((const struct row *)b)->key);
}

static void sort_rows(struct row_page *p)
{
    size_t kept = 0;

    if (p->n)
        qsort(p->rows, p->n, sizeof(*p->rows), cmp_rows);
    for (size_t i = 0; i < p->n; i++)
        if (i == 0 || cmp_rows(&p->rows[i], &p->rows[kept - 1]) != 0)
            p->rows[kept++] = p->rows[i];
    p->n = kept;
}

static int column_err(const struct msg_column *c, const char *why, struct err *err)
{
    return err_set(err, ERR_INVALID, ERRC_DATA, "column `%.*s` %s", (int)(c->name_len < 64 ? c->name_len : 64),
                   c->name ? (const char *)c->name : "", why);
}

static int hash_columns(struct row_page *p, const uint8_t *data, size_t len, const char *pk_name, struct err *err)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct msg_column c;
    struct pb_field f;
    const char *why;

    while (pb_scan_next(&s, &f) > 0) {
        if (f.num != PAGE_F_FIELDS_DATA || f.wire != PB_LEN)
            continue;
        why = msg_column_scan(&c, f.data, f.len);
        if (why && c.valid && count_nulls(&c) == p->n)
            continue; /* nothing but nulls */
        if (!why && c.name_len == strlen(pk_name) && memcmp(c.name, pk_name, c.name_len) == 0)
            continue;
        if (!why && !add_column(p, &c))
            why = "has another number of values than there are rows";
        if (why)
            return column_err(&c, why, err);
    }
    return 0;
}

int row_page_read(struct row_page *ret, struct buf *buf, const uint8_t *data, size_t len, const char *pk_name,
                  struct err *err)
{
    *ret = (struct row_page){.buf = buf_ref(buf)};
    if (!msg_page_each_key(data, len, pk_name, take_number, take_text, ret)) {
        row_page_release(ret);
        return err_set(err, ERR_PROTO, ERRC_DATA, "an answer to a query (%zu bytes) has no keys `%s`", len, pk_name);
    }
    if (ret->n && hash_columns(ret, data, len, pk_name, err)) {
        row_page_release(ret);
        return err->code;
    }
    sort_rows(ret);
    return 0;
}

void row_page_release(struct row_page *p)
{
    free(p->rows);
    buf_unref(p->buf);
    *p = (struct row_page){0};
}

const struct row *row_page_find(const struct row_page *p, const struct row_key *key)
{
    size_t lo = 0, hi = p->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = row_key_cmp(&p->rows[mid].key, key);

        if (c == 0)
            return &p->rows[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}
