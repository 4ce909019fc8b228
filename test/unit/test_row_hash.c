/* test_row_hash.c - rows of a Query's answer as keys and hashes (repl/row_hash_priv.h), with columns of every kind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "column_kinds.h"
#include "repl/row_hash_priv.h"

#include <float.h>
#include <math.h>

enum { ROWS = 20 };

static int read_pb(struct pb_out *o, struct row_page *ret, struct err *err)
{
    struct buf *b = buf_new(o->len ? o->len : 1);
    int rc;

    if (o->len)
        memcpy(b->data, o->data, o->len);
    rc = row_page_read(ret, b, b->data, o->len, "id", err);
    buf_unref(b);
    pb_out_release(o);
    return rc;
}

static void put_column(struct pb_out *o, const struct def *d, int64_t field_id, size_t n, bool placeholders)
{
    Col__FieldData *m = make_column(d, field_id, 0, n, placeholders);

    out_message(o, 2, &m->base);
    protobuf_c_message_free_unpacked(&m->base, NULL);
}

/* Columns from first on, around; only those where skip is not; null rows with or without a placeholder. */
static struct row_page page_of(size_t first, const char *skip, bool placeholders)
{
    struct pb_out o = {0};
    struct row_page p;
    struct err err;

    for (size_t i = 0; i < N_DEFS; i++) {
        const struct def *d = &defs[(first + i) % N_DEFS];

        if (!skip || strcmp(d->name, skip) != 0)
            put_column(&o, d, 100 + (int64_t)(first + i), ROWS, placeholders);
    }
    if (read_pb(&o, &p, &err))
        fail_msg("%s", err.text);
    assert_int_equal(p.n, ROWS);
    return p;
}

static size_t equal_rows(const struct row_page *a, const struct row_page *b)
{
    size_t n = 0;

    for (size_t i = 0; i < a->n; i++)
        n += row_key_cmp(&a->rows[i].key, &b->rows[i].key) == 0 && row_hash_equal(a->rows[i].hash, b->rows[i].hash);
    return n;
}

/* Order of columns, their ids, placeholders. */
static void test_what_does_not_matter(void **state)
{
    struct row_page a = page_of(0, NULL, true), b = page_of(7, NULL, false);

    (void)state;
    assert_int_equal(equal_rows(&a, &b), ROWS);
    for (size_t i = 1; i < ROWS; i++)
        assert_false(row_hash_equal(a.rows[i].hash, a.rows[0].hash));
    row_page_release(&a);
    row_page_release(&b);
}

/* One column has other values, or is not there: no row is the same, but those where it is null. */
static void test_each_column_matters(void **state)
{
    struct row_page all = page_of(0, NULL, true), other, p;

    (void)state;
    row_salt = 1;
    other = page_of(0, NULL, true);
    row_salt = 0;
    assert_int_equal(equal_rows(&all, &other), 0);
    for (size_t i = 1; i < N_DEFS; i++) {
        size_t nulls = 0;

        for (size_t r = 0; r < ROWS; r++)
            nulls += is_null(&defs[i], r);
        p = page_of(0, defs[i].name, true);
        if (equal_rows(&all, &p) != nulls)
            fail_msg("%s: %zu rows are equal, not %zu", defs[i].name, equal_rows(&all, &p), nulls);
        row_page_release(&p);
    }
    row_page_release(&all);
    row_page_release(&other);
}

/* ---- single values ----------------------------------------------------------------------------------- */

/* A row with key 1 and a column `v`, whose ScalarField has content in its field number. */
static struct row_hash scalar_row(uint32_t field, const void *content, size_t len, const char *name)
{
    struct pb_out o = {0}, key = {0}, v = {0}, scalars = {0};
    struct row_page p;
    struct row_hash h;
    struct err err;

    pb_out_bytes(&scalars, 3, "\x0a\x01\x01", 3);
    pb_out_str(&key, 2, "id");
    pb_out_bytes(&key, 3, scalars.data, scalars.len);
    pb_out_bytes(&o, 2, key.data, key.len);
    scalars.len = 0;
    pb_out_bytes(&scalars, field, content, len);
    pb_out_str(&v, 2, name);
    pb_out_bytes(&v, 3, scalars.data, scalars.len);
    pb_out_bytes(&o, 2, v.data, v.len);
    if (read_pb(&o, &p, &err))
        fail_msg("%s", err.text);
    assert_int_equal(p.n, 1);
    h = p.rows[0].hash;
    row_page_release(&p);
    pb_out_release(&key);
    pb_out_release(&v);
    pb_out_release(&scalars);
    return h;
}

static struct row_hash text_row(uint32_t field, const char *text, const char *name)
{
    struct pb_out o = {0};
    struct row_hash h;

    pb_out_tag(&o, 1, PB_LEN);
    pb_out_varint(&o, strlen(text));
    pb_out_raw(&o, text, strlen(text));
    h = scalar_row(field, o.data, o.len, name);
    pb_out_release(&o);
    return h;
}

static bool same_json(const char *a, const char *b, const char *name)
{
    return row_hash_equal(text_row(9, a, name), text_row(9, b, name));
}

static void test_json_by_its_meaning(void **state)
{
    static const char *const same[][2] = {
        {"{\"a\":1,\"b\":[1,2.5,null]}", "{ \"b\" : [1, 2.50, null], \"a\" : 1.0 }"},
        {"\"\\u00e4\"", "\"\xc3\xa4\""},
        {"1e3", "1000"},
        {"123456789012345678901234567890", "123456789012345678901234567890"},
        {"{}", "{ }"},
    };
    static const char *const other[][2] = {
        {"{\"a\":1}", "{\"a\":2}"}, {"{\"a\":1}", "{\"b\":1}"}, {"[1,2]", "[2,1]"}, {"{\"a\":\"1\"}", "{\"a\":1}"},
        {"null", "0"}, {"true", "1"}, {"{}", "[]"}, {"[[1],2]", "[1,[2]]"}, {"{\"a\":{\"b\":1}}", "{\"b\":{\"a\":1}}"},
        {"0.1", "0.2"}, {"\"\"", "null"}, {"123456789012345678901234567890", "123456789012345678901234567891"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(same) / sizeof(*same); i++)
        if (!same_json(same[i][0], same[i][1], "v"))
            fail_msg("%s and %s are the same", same[i][0], same[i][1]);
    for (size_t i = 0; i < sizeof(other) / sizeof(*other); i++)
        if (same_json(other[i][0], other[i][1], "v"))
            fail_msg("%s and %s are not the same", other[i][0], other[i][1]);
    /* an empty dynamic field is as none; an empty object of a user's own field is a value */
    assert_true(row_hash_equal(text_row(9, "{}", "$meta"), (struct row_hash){0}));
    assert_false(row_hash_equal(text_row(9, "{}", "v"), (struct row_hash){0}));
}

static void test_numbers(void **state)
{
    float nan_a = NAN, nan_b = -NAN, one = 1;
    uint8_t packed_a[6] = {0x0a, 4}, packed_b[6] = {0x0a, 4};

    (void)state;
    memcpy(packed_a + 2, &nan_a, 4);
    memcpy(packed_b + 2, &nan_b, 4);
    assert_true(row_hash_equal(scalar_row(4, packed_a, 6, "v"), scalar_row(4, packed_b, 6, "v")));
    memcpy(packed_b + 2, &one, 4);
    assert_false(row_hash_equal(scalar_row(4, packed_a, 6, "v"), scalar_row(4, packed_b, 6, "v")));
    /* packed or not; minus one in 5 or 10 bytes */
    assert_true(row_hash_equal(scalar_row(2, "\x0a\x01\x07", 3, "v"), scalar_row(2, "\x08\x07", 2, "v")));
    assert_true(row_hash_equal(scalar_row(2, "\x0a\x05\xff\xff\xff\xff\x0f", 7, "v"),
                               scalar_row(2, "\x0a\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12, "v")));
    /* the same bytes under another name */
    assert_false(row_hash_equal(scalar_row(2, "\x0a\x01\x07", 3, "v"), scalar_row(2, "\x0a\x01\x07", 3, "w")));
}

/* An empty array has no list, or an empty one; [""] is not empty, and ["ab"] not ["a","b"]. */
static void test_arrays(void **state)
{
    struct row_hash none = scalar_row(8, "\x0a\x00", 2, "v"), list = scalar_row(8, "\x0a\x02\x32\x00", 4, "v");
    struct row_hash empty_text = scalar_row(8, "\x0a\x04\x32\x02\x0a\x00", 6, "v");
    struct row_hash ab = scalar_row(8, "\x0a\x06\x32\x04\x0a\x02" "ab", 8, "v");
    struct row_hash a_b = scalar_row(8, "\x0a\x08\x32\x06\x0a\x01" "a\x0a\x01" "b", 10, "v");

    (void)state;
    assert_true(row_hash_equal(none, list));
    assert_false(row_hash_equal(none, empty_text));
    assert_false(row_hash_equal(ab, a_b));
}

/* ---- keys ---------------------------------------------------------------------------------------------- */

static void test_keys_are_sorted_and_quoted(void **state)
{
    static const uint8_t column[] = "\x12\x02id\x1a\x11\x32\x0f\x0a\x03k\"b\x0a\x01k\x0a\x00\x0a\x03k\"b";
    static const uint8_t numbers[] = "\x12\x02id\x1a\x0f\x1a\x0d\x0a\x0b\x05\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01";
    struct pb_out o = {0};
    struct row_page p;
    struct row_key copy;
    struct err err;
    char *text;

    (void)state;
    pb_out_bytes(&o, 2, column, sizeof(column) - 1);
    assert_int_equal(read_pb(&o, &p, &err), 0);
    assert_int_equal(p.n, 3); /* each once */
    copy = row_key_dup(&p.rows[2].key);
    text = row_key_text(&copy);
    assert_string_equal(text, "\"k\\\"b\"");
    free(text);
    text = row_key_text(&p.rows[0].key);
    assert_string_equal(text, "\"\"");
    free(text);
    assert_ptr_equal(row_page_find(&p, &copy), &p.rows[2]);
    row_key_release(&copy);
    row_page_release(&p);
    pb_out_bytes(&o, 2, numbers, sizeof(numbers) - 1);
    assert_int_equal(read_pb(&o, &p, &err), 0);
    assert_int_equal(p.n, 2);
    assert_true(p.rows[0].key.number == INT64_MIN && p.rows[1].key.number == 5);
    text = row_key_text(&p.rows[0].key);
    assert_string_equal(text, "-9223372036854775807-1");
    free(text);
    assert_null(row_page_find(&p, &(struct row_key){.number = 4}));
    row_page_release(&p);
}

static void test_what_cannot_be_read_is_named(void **state)
{
    struct pb_out o = {0};
    struct row_page p;
    struct err err;

    (void)state;
    assert_int_equal(read_pb(&o, &p, &err), 0); /* no columns, no rows */
    assert_int_equal(p.n, 0);
    row_page_release(&p);
    put_column(&o, &defs[1], 101, 3, false);
    assert_int_equal(read_pb(&o, &p, &err), ERR_PROTO);
    assert_non_null(strstr(err.text, "has no keys `id`"));
    put_column(&o, &defs[0], 100, 3, false);
    put_column(&o, &defs[7], 101, 2, false);
    assert_int_equal(read_pb(&o, &p, &err), ERR_INVALID);
    assert_non_null(strstr(err.text, "column `txt` has another number of values"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_does_not_matter),       cmocka_unit_test(test_each_column_matters),
        cmocka_unit_test(test_json_by_its_meaning),        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_arrays),                     cmocka_unit_test(test_keys_are_sorted_and_quoted),
        cmocka_unit_test(test_what_cannot_be_read_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
