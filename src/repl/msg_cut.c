/*
 * msg_cut.c - some rows of columns, for a target that does not take them all in one request.
 *
 * How long a row is follows from the kind of its column: a fixed number of bytes (numbers, vectors), a varint, or one
 * element of its own (texts, JSON, arrays, sparse vectors).
 */
#include "base/buf.h"
#include "base/mem.h"
#include "repl/msg.h"
#include "repl/msg_columns_priv.h"

#include <stdlib.h>

/* schema.proto ScalarField */
enum { SCALAR_F_BOOL = 1, SCALAR_F_INT = 2, SCALAR_F_FLOAT = 4, SCALAR_F_DOUBLE = 5 };

/* The values from .. to, counted over all parts. */
struct cut {
    uint64_t from, to, at;
    uint64_t sparse_dim; /* of the rows taken */
    struct pb_out out;
};

/* 0: a row has no fixed number of bytes. */
static uint64_t row_bytes(const struct column *c)
{
    if (c->like.kind == FIELD_F_SCALARS)
        return c->like.array == SCALAR_F_FLOAT ? 4 : c->like.array == SCALAR_F_DOUBLE ? 8 : 0;
    switch (c->like.array) {
    case VECTOR_F_FLOAT:
        return 4 * c->dim;
    case VECTOR_F_BINARY:
        return c->dim / 8;
    case VECTOR_F_FLOAT16:
    case VECTOR_F_BFLOAT16:
        return 2 * c->dim;
    case VECTOR_F_INT8:
        return c->dim;
    }
    return 0;
}

/* Not in an array message: the bytes of one row behind those of the other. */
static bool is_bare(const struct column *c)
{
    return c->like.kind == FIELD_F_VECTORS && c->like.array != VECTOR_F_FLOAT && c->like.array != VECTOR_F_SPARSE;
}

static bool is_varint(const struct column *c)
{
    return c->like.kind == FIELD_F_SCALARS && c->like.array >= SCALAR_F_BOOL && c->like.array <= SCALAR_F_LONG;
}

static bool wanted(const struct cut *k)
{
    return k->at >= k->from && k->at < k->to;
}

/* False: not whole rows. */
static bool cut_fixed(struct cut *k, const uint8_t *data, size_t len, uint64_t width, struct pb_out *out)
{
    if (width == 0 || len % width)
        return false;
    for (; len > 0; data += width, len -= width, k->at++)
        if (wanted(k))
            pb_out_raw(out, data, width);
    return true;
}

static bool cut_varints(struct cut *k, const uint8_t *data, size_t len, struct pb_out *out)
{
    const uint8_t *p = data, *end = data + len, *from;
    uint64_t v;

    for (from = p; p < end; from = p, k->at++) {
        if (!pb_varint(&p, end, &v))
            return false;
        if (wanted(k))
            pb_out_raw(out, from, (size_t)(p - from));
    }
    return true;
}

/* A list of numbers: packed, as everybody writes it. */
static bool cut_packed(struct cut *k, const struct column *c, const struct pb_field *f)
{
    struct pb_out out = {0};
    bool ok = is_varint(c) ? cut_varints(k, f->data, f->len, &out) : cut_fixed(k, f->data, f->len, row_bytes(c), &out);

    pb_out_bytes(&k->out, ARRAY_F_DATA, out.data, out.len);
    pb_out_release(&out);
    return ok;
}

/* A row is (uint32 index, float32 value) by rising index, little-endian; dim is one more than the greatest. */
static void note_sparse(struct cut *k, const struct pb_field *row)
{
    const uint8_t *last = row->len >= 8 ? row->data + row->len - 8 : NULL;
    uint64_t dim = last ? 1 + (last[0] | (uint64_t)last[1] << 8 | (uint64_t)last[2] << 16 | (uint64_t)last[3] << 24) : 0;

    if (dim > k->sparse_dim)
        k->sparse_dim = dim;
}

static void cut_element(struct cut *k, const struct column *c, const struct pb_field *f)
{
    if (wanted(k)) {
        pb_out_raw(&k->out, f->start, f->total);
        if (msg_column_is_sparse(&c->like))
            note_sparse(k, f);
    }
    k->at++;
}

static bool cut_part(struct cut *k, const struct column *c, const struct part *part)
{
    struct pb_scan s = pb_scan_init(part->data, part->len);
    struct pb_field f;
    bool ok = true;
    int n = 0;

    if (is_bare(c))
        return cut_fixed(k, part->data, part->len, row_bytes(c), &k->out);
    while (ok && (n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != ARRAY_F_DATA) {
            pb_out_raw(&k->out, f.start, f.total); /* the type of an array's elements */
        } else if (f.wire != PB_LEN) {
            ok = false;
        } else if (is_varint(c) || row_bytes(c)) {
            ok = cut_packed(k, c, &f);
        } else {
            cut_element(k, c, &f);
        }
    }
    return ok && n == 0;
}

static void take(struct msg_columns *to, struct parts *parts, struct pb_out *out)
{
    struct buf *b;

    if (out->len == 0) {
        pb_out_release(out);
        return;
    }
    b = buf_wrap(out->data, out->len, free, out->data);
    msg_columns_keep(to, b);
    msg_parts_add(parts, b, b->data, b->size);
}

/* A byte per row says which of them have a value: those before `row`. */
static uint64_t values_before(const struct column *c, uint64_t row)
{
    uint64_t at = 0, n = 0;

    if (!c->valid.bytes)
        return row;
    for (size_t i = 0; i < c->valid.n; i++)
        for (size_t k = 0; k < c->valid.v[i].len && at < row; k++, at++)
            n += c->valid.v[i].data[k] != 0;
    return n;
}

static bool cut_column(struct msg_columns *to, struct column *col, const struct column *c, uint64_t rows, uint64_t from,
                       uint64_t end)
{
    struct cut values = {.from = values_before(c, from), .to = values_before(c, end)};
    struct cut valid = {.from = from, .to = end};
    bool ok = c->valid.bytes == 0 || c->valid.bytes == rows;

    *col = (struct column){.like = c->like, .defaults = c->defaults, .dim = c->dim};
    pb_out_raw(&col->what, c->what.data, c->what.len);
    for (size_t i = 0; i < c->values.n && ok; i++)
        ok = cut_part(&values, c, &c->values.v[i]);
    for (size_t i = 0; i < c->valid.n; i++)
        (void)cut_fixed(&valid, c->valid.v[i].data, c->valid.v[i].len, 1, &valid.out); /* width 1 always fits */
    if (msg_column_is_sparse(&c->like))
        col->dim = col->sparse_dim = values.sparse_dim;
    take(to, &col->values, &values.out);
    take(to, &col->valid, &valid.out);
    return ok && values.at == values_before(c, rows);
}

struct msg_columns *msg_columns_cut(const struct msg_columns *c, uint64_t from, uint64_t to)
{
    struct msg_columns *cut = msg_columns_new();
    bool ok = from < to && to <= c->rows;

    cut->v = xcalloc(c->n + 1, sizeof(*cut->v));
    cut->cap = c->n;
    cut->rows = to - from;
    for (size_t i = 0; i < c->n_srcs; i++)
        msg_columns_keep(cut, buf_ref(c->srcs[i])); /* the names lie there */
    for (; cut->n < c->n && ok; cut->n++)
        ok = cut_column(cut, &cut->v[cut->n], &c->v[cut->n], c->rows, from, to);
    if (ok)
        return cut;
    msg_columns_free(cut);
    return NULL;
}
