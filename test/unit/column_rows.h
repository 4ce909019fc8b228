/*
 * column_rows.h - rows of any type that a function of their number makes, as columns of the WAL or of the public API
 * (proto/columns.proto), and the Insert around them.
 */
#ifndef TEST_COLUMN_ROWS_H
#define TEST_COLUMN_ROWS_H
#include "base/mem.h"
#include "base/pbwire.h"
#include "columns.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* milvus schema.proto DataType */
enum {
    BOOL = 1, INT8 = 2, INT32 = 4, INT64 = 5, FLOAT = 10, DOUBLE = 11, VARCHAR = 21, ARRAY = 22, JSON = 23,
    BINARY_VECTOR = 100, FLOAT_VECTOR = 101, FLOAT16_VECTOR = 102, BFLOAT16_VECTOR = 103, SPARSE_VECTOR = 104,
    INT8_VECTOR = 105,
};
enum { DIM = 64, ROWS_MAX = 60 };

/* One column. */
struct def {
    const char *name;
    int type;
    bool nullable;
    bool texts; /* an array of them */
    bool keys;  /* row numbers, or odd_texts */
    bool with_default; /* for schemas */
};

/* Other values for the same keys. */
static size_t row_salt;

static bool is_null(const struct def *d, size_t row)
{
    return d->nullable && row % 3 == 1;
}

/* The rows that have a value: in the WAL all of them. */
static size_t pick_rows(const struct def *d, size_t from, size_t to, bool wal, size_t *ret)
{
    size_t n = 0;

    for (size_t r = from; r < to; r++)
        if (wal || !is_null(d, r))
            ret[n++] = d->keys ? r : r + row_salt;
    return n;
}

/* Some are long enough to go by reference. */
static char *text_of(size_t row)
{
    return xasprintf("row %zu%*s", row, (int)(row % 7 * 150), "");
}

#define NEW(type, init)                                                                                                \
    type *m = xcalloc(1, sizeof(*m));                                                                                  \
    init(m)
#define FILL(value)                                                                                                    \
    m->n_data = n;                                                                                                     \
    m->data = xcalloc(n + 1, sizeof(*m->data));                                                                        \
    for (size_t i = 0; i < n; i++)                                                                                     \
        m->data[i] = (value);                                                                                          \
    return m

static Col__BoolArray *bools(const size_t *r, size_t n)
{
    NEW(Col__BoolArray, col__bool_array__init);
    FILL(r[i] % 2);
}
static Col__IntArray *ints(const size_t *r, size_t n, int type)
{
    NEW(Col__IntArray, col__int_array__init);
    FILL(type == INT8 ? (int32_t)(r[i] % 256) - 128 : (int32_t)(r[i] * 70000000));
}
static Col__LongArray *longs(const size_t *r, size_t n)
{
    NEW(Col__LongArray, col__long_array__init);
    FILL((int64_t)(r[i] * 0x9e3779b97f4a7c15u));
}
static Col__LongArray *row_numbers(const size_t *r, size_t n)
{
    NEW(Col__LongArray, col__long_array__init);
    FILL((int64_t)r[i]);
}
static Col__FloatArray *floats(const size_t *r, size_t n)
{
    NEW(Col__FloatArray, col__float_array__init);
    FILL((float)r[i] / 3);
}
static Col__DoubleArray *doubles(const size_t *r, size_t n)
{
    NEW(Col__DoubleArray, col__double_array__init);
    FILL((double)r[i] / 7);
}
/* Keys that an expression must quote. */
static const char *const odd_texts[] __attribute__((unused)) = {
    "a", "say \"hi\"", "it's", "back\\slash", "ends with \\", "line\nfeed", "return\r", "tab\t", "bell\a\x01\x1f\x7f",
    "", " ", "\\n", "\\u0041", "%s {x} [y] $z", "\xc3\xa4\xe6\xbc\xa2\xf0\x9f\x98\x80", "\"", "\\\"", "?", "\xe2\x80\xa8",
};
enum { N_ODD_TEXTS = sizeof(odd_texts) / sizeof(*odd_texts) };

static Col__StringArray *keys_of_text(const size_t *r, size_t n)
{
    NEW(Col__StringArray, col__string_array__init);
    FILL(xstrdup(odd_texts[r[i] % N_ODD_TEXTS]));
}
static Col__StringArray *strings(const size_t *r, size_t n)
{
    NEW(Col__StringArray, col__string_array__init);
    FILL(text_of(r[i]));
}
static ProtobufCBinaryData json_of(size_t row)
{
    char *text = xasprintf("{\"row\": %zu}", row);

    return (ProtobufCBinaryData){strlen(text), (uint8_t *)text};
}
static Col__BytesArray *jsons(const size_t *r, size_t n)
{
    NEW(Col__BytesArray, col__bytes_array__init);
    FILL(json_of(r[i]));
}

static Col__ScalarField *array_of_row(size_t row, bool texts)
{
    const size_t r[] = {row, row + 1, row + 2};

    NEW(Col__ScalarField, col__scalar_field__init);
    m->data_case = texts ? COL__SCALAR_FIELD__DATA_STRING_DATA : COL__SCALAR_FIELD__DATA_LONG_DATA;
    if (texts)
        m->string_data = strings(r, row % 4);
    else
        m->long_data = longs(r, row % 4);
    return m;
}
static Col__ArrayArray *arrays(const size_t *r, size_t n, bool texts)
{
    NEW(Col__ArrayArray, col__array_array__init);
    FILL(array_of_row(r[i], texts));
}

static Col__ScalarField *make_scalars(const struct def *d, const size_t *r, size_t n)
{
    NEW(Col__ScalarField, col__scalar_field__init);
#define CASE(type, name, NAME, make)                                                                                   \
    case type:                                                                                                         \
        m->data_case = COL__SCALAR_FIELD__DATA_##NAME;                                                                 \
        m->name = make;                                                                                                \
        break
    switch (d->type) {
        CASE(BOOL, bool_data, BOOL_DATA, bools(r, n));
        CASE(INT8, int_data, INT_DATA, ints(r, n, INT8));
        CASE(INT32, int_data, INT_DATA, ints(r, n, INT32));
        CASE(INT64, long_data, LONG_DATA, d->keys ? row_numbers(r, n) : longs(r, n));
        CASE(FLOAT, float_data, FLOAT_DATA, floats(r, n));
        CASE(DOUBLE, double_data, DOUBLE_DATA, doubles(r, n));
        CASE(VARCHAR, string_data, STRING_DATA, d->keys ? keys_of_text(r, n) : strings(r, n));
        CASE(ARRAY, array_data, ARRAY_DATA, arrays(r, n, d->texts));
        CASE(JSON, json_data, JSON_DATA, jsons(r, n));
    default:
        abort();
    }
#undef CASE
    return m;
}

/* ---- vectors ---------------------------------------------------------------------------------- */

static ProtobufCBinaryData vector_bytes(const size_t *r, size_t n, size_t per_row)
{
    ProtobufCBinaryData b = {n * per_row, xmalloc(n * per_row + 1)};

    for (size_t i = 0; i < b.len; i++)
        b.data[i] = (uint8_t)(r[i / per_row] * 31 + i % per_row);
    return b;
}

static Col__FloatArray *vector_floats(const size_t *r, size_t n)
{
    NEW(Col__FloatArray, col__float_array__init);
    m->n_data = n * DIM;
    m->data = xcalloc(n * DIM + 1, sizeof(*m->data));
    for (size_t i = 0; i < m->n_data; i++)
        m->data[i] = (float)r[i / DIM] + (float)(i % DIM) / DIM;
    return m;
}

/* (uint32 index, float32 value) twice, of an x86. */
static ProtobufCBinaryData sparse_row(size_t row)
{
    struct {
        uint32_t index;
        float value;
    } pairs[2] = {{(uint32_t)row, 0.5f}, {(uint32_t)row + 3, (float)row + 1}};
    ProtobufCBinaryData b = {sizeof(pairs), xmalloc(sizeof(pairs))};

    memcpy(b.data, pairs, sizeof(pairs));
    return b;
}

/* The dim grows with the rows. */
static Col__SparseFloatArray *vector_sparse(const size_t *r, size_t n)
{
    NEW(Col__SparseFloatArray, col__sparse_float_array__init);
    m->n_contents = n;
    m->contents = xcalloc(n + 1, sizeof(*m->contents));
    for (size_t i = 0; i < n; i++)
        m->contents[i] = sparse_row(r[i]);
    m->dim = (int64_t)r[n - 1] + 4;
    return m;
}

static Col__VectorField *make_vectors(const struct def *d, const size_t *r, size_t n)
{
    NEW(Col__VectorField, col__vector_field__init);
    m->dim = DIM;
#define CASE(type, name, NAME, make)                                                                                   \
    case type:                                                                                                         \
        m->data_case = COL__VECTOR_FIELD__DATA_##NAME;                                                                 \
        m->name = make;                                                                                                \
        break
    switch (d->type) {
        CASE(BINARY_VECTOR, binary_vector, BINARY_VECTOR, vector_bytes(r, n, DIM / 8));
        CASE(FLOAT_VECTOR, float_vector, FLOAT_VECTOR, vector_floats(r, n));
        CASE(FLOAT16_VECTOR, float16_vector, FLOAT16_VECTOR, vector_bytes(r, n, DIM * 2));
        CASE(BFLOAT16_VECTOR, bfloat16_vector, BFLOAT16_VECTOR, vector_bytes(r, n, DIM * 2));
        CASE(SPARSE_VECTOR, sparse_float_vector, SPARSE_FLOAT_VECTOR, vector_sparse(r, n));
        CASE(INT8_VECTOR, int8_vector, INT8_VECTOR, vector_bytes(r, n, DIM));
    default:
        abort();
    }
#undef CASE
    if (d->type == SPARSE_VECTOR)
        m->dim = (int64_t)r[n - 1] + 4;
    return m;
}

/* Rows from .. to - 1; wal: as a source writes them, with a placeholder where a row is null. */
static Col__FieldData *make_column(const struct def *d, int64_t id, size_t from, size_t to, bool wal)
{
    size_t rows[ROWS_MAX], n = pick_rows(d, from, to, wal, rows);

    NEW(Col__FieldData, col__field_data__init);
    m->type = d->type;
    m->field_name = xstrdup(d->name);
    m->field_id = id;
    m->is_dynamic = strcmp(d->name, "$meta") == 0;
    m->field_case = d->type < BINARY_VECTOR ? COL__FIELD_DATA__FIELD_SCALARS : COL__FIELD_DATA__FIELD_VECTORS;
    if (d->type < BINARY_VECTOR)
        m->scalars = make_scalars(d, rows, n);
    else
        m->vectors = make_vectors(d, rows, n);
    if (d->nullable) {
        m->n_valid_data = to - from;
        m->valid_data = xcalloc(to - from, sizeof(*m->valid_data));
        for (size_t r = from; r < to; r++)
            m->valid_data[r - from] = !is_null(d, r);
    }
    return m;
}

/* ---- messages --------------------------------------------------------------------------------- */

static void out_message(struct pb_out *o, uint32_t num, const ProtobufCMessage *m)
{
    size_t len = protobuf_c_message_get_packed_size(m);
    uint8_t *data = xmalloc(len + 1);

    protobuf_c_message_pack(m, data);
    pb_out_tag(o, num, PB_LEN);
    pb_out_varint(o, len);
    pb_out_raw(o, data, len);
    free(data);
}

/* An Insert of collection 9000 without columns. */
static void __attribute__((unused)) out_insert(struct pb_out *o, size_t rows)
{
    pb_out_bytes(o, 1, "\x08\x90\x03\x10\x4d", 5); /* base{msg_type 400, msgID 77} */
    pb_out_u64(o, 7, 9000);
    pb_out_tag(o, 10, PB_LEN);
    pb_out_varint(o, rows);
    for (size_t i = 0; i < rows; i++)
        pb_out_varint(o, 5);
    pb_out_u64(o, 14, rows);
    pb_out_u64(o, 15, 1);
}
#endif
