/*
 * msg_arrays.c - empty arrays in a column of arrays.
 *
 * A Query answers an empty array as a ScalarField without data; an Upsert of such a row of texts takes Milvus 2.3.5 down (its
 * proxy reads through a nil pointer, seen). An empty list of the column's own kind means the same and is safe.
 */
#include "base/buf.h"
#include "base/mem.h"
#include "repl/msg.h"
#include "repl/msg_priv.h"

#include <stdlib.h>

enum { SCALAR_F_ARRAY = 8, ARRAYS_F_ELEMENT_TYPE = 2 };

/* DataType (schema.proto) to the number of its list in ScalarField; 0: not an element of arrays. */
static uint32_t list_of(uint64_t data_type)
{
    static const uint8_t lists[] = {
        [1] = 1, [2] = 2, [3] = 2, [4] = 2, [5] = 3, [10] = 4, [11] = 5, [20] = 6, [21] = 6};

    return data_type < sizeof(lists) ? lists[data_type] : 0;
}

/* Is there an empty row? *ret_list: which list the elements have, as their type or another row tells; 0: not known. */
static bool has_empty(const struct msg_column *c, uint32_t *ret_list)
{
    struct pb_scan s = pb_scan_init(c->data, c->len), row;
    struct pb_field f, list;
    bool empty = false;

    *ret_list = 0;
    while (pb_scan_next(&s, &f) > 0) {
        if (f.num == ARRAYS_F_ELEMENT_TYPE && f.wire == PB_VARINT && list_of(f.varint))
            *ret_list = list_of(f.varint);
        if (f.num != ARRAY_F_DATA || f.wire != PB_LEN)
            continue;
        empty |= f.len == 0;
        row = pb_scan_init(f.data, f.len);
        if (!*ret_list && pb_scan_next(&row, &list) > 0)
            *ret_list = list.num;
    }
    return empty;
}

void msg_column_fill_arrays(struct msg_column *c)
{
    struct pb_scan s = pb_scan_init(c->data, c->len);
    struct pb_out row = {0}, out = {0};
    struct pb_field f;
    uint32_t list;

    if (c->kind != FIELD_F_SCALARS || c->array != SCALAR_F_ARRAY || !has_empty(c, &list) || !list)
        return;
    pb_out_tag(&row, list, PB_LEN);
    pb_out_varint(&row, 0);
    while (pb_scan_next(&s, &f) > 0) {
        if (f.num == ARRAY_F_DATA && f.wire == PB_LEN && f.len == 0)
            pb_out_bytes(&out, ARRAY_F_DATA, row.data, row.len);
        else
            pb_out_raw(&out, f.start, f.total);
    }
    pb_out_release(&row);
    buf_unref(c->own);
    c->data = out.data;
    c->len = out.len;
    c->own = buf_wrap(out.data, out.len, free, out.data);
}
