/*
 * msg_nulls.c - columns without the placeholders of null rows (source.md 5.1, target.md 6.2).
 *
 * The only columns whose values are looked at: where each begins and ends, no more.
 */
#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "repl/msg.h"
#include "repl/msg_priv.h"

#include <stdlib.h>

/* schema.proto ScalarField: how the values of an array are encoded */
enum { SCALAR_F_FLOAT = 4, SCALAR_F_DOUBLE = 5 };

struct nulls {
    const uint8_t *valid; /* a byte per row */
    size_t n_rows;
    size_t at;            /* rows seen */
    struct pb_out kept;
};

static bool keeps(struct nulls *n)
{
    return n->at < n->n_rows && n->valid[n->at] != 0;
}

/* A run of numbers: size bytes each, or varints (0). False: malformed. */
static bool keep_packed(struct nulls *n, const struct pb_field *f, size_t size)
{
    const uint8_t *p = f->data, *end = p + f->len;

    for (; p < end; n->at++) {
        const uint8_t *start = p;
        uint64_t v;

        if (size && (size_t)(end - p) < size)
            return false;
        if (size)
            p += size;
        else if (!pb_varint(&p, end, &v))
            return false;
        if (keeps(n))
            pb_out_raw(&n->kept, start, (size_t)(p - start));
    }
    return true;
}

/* Texts, JSON, arrays: a field per row. */
static bool keep_fields(struct nulls *n, const struct msg_column *c)
{
    struct pb_scan s = pb_scan_init(c->data, c->len);
    struct pb_field f;
    int rc;

    while ((rc = pb_scan_next(&s, &f)) > 0) {
        if (f.num != ARRAY_F_DATA || keeps(n))
            pb_out_raw(&n->kept, f.start, f.total);
        n->at += f.num == ARRAY_F_DATA;
    }
    return rc == 0;
}

static bool keep_numbers(struct nulls *n, const struct msg_column *c)
{
    size_t size = c->array == SCALAR_F_FLOAT ? 4 : c->array == SCALAR_F_DOUBLE ? 8 : 0;
    struct pb_out packed;
    struct pb_scan s = pb_scan_init(c->data, c->len);
    struct pb_field f;
    int rc;

    while ((rc = pb_scan_next(&s, &f)) > 0)
        if (f.num != ARRAY_F_DATA || f.wire != PB_LEN || !keep_packed(n, &f, size))
            return false;
    packed = n->kept;
    n->kept = (struct pb_out){0};
    pb_out_bytes(&n->kept, ARRAY_F_DATA, packed.data, packed.len);
    pb_out_release(&packed);
    return rc == 0;
}

static size_t count_valid(const struct msg_column *c)
{
    size_t n = 0;

    for (size_t i = 0; i < c->valid_len; i++)
        n += c->valid[i] != 0;
    return n;
}

int msg_column_remove_nulls(struct msg_column *c, const struct msg_head *head, struct err *err)
{
    struct nulls n = {.valid = c->valid, .n_rows = c->valid_len};
    size_t n_valid = count_valid(c);
    bool ok;

    if (!c->valid || n_valid == c->valid_len)
        return 0;
    if (c->kind != FIELD_F_SCALARS)
        return msg_column_err(head, c, "has vectors and null rows, which is not known here", err);
    ok = c->array < SCALAR_F_STRING ? keep_numbers(&n, c) : keep_fields(&n, c);
    if (!ok || c->valid_len != head->num_rows || (n.at != n.n_rows && n.at != n_valid)) {
        pb_out_release(&n.kept);
        return msg_column_err(head, c, "has another number of rows than the message", err);
    }
    if (n.at == n_valid) { /* there are no placeholders */
        pb_out_release(&n.kept);
        return 0;
    }
    c->data = n.kept.data;
    c->len = n.kept.len;
    c->own = buf_wrap(n.kept.data, n.kept.len, free, n.kept.data);
    return 0;
}
