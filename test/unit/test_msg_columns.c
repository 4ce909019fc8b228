/*
 * test_msg_columns.c - columns and keys for the public API (repl/msg.h).
 *
 * protobuf-c (proto/columns.proto) is the witness: rows 0..n cut into messages and joined must decode to what the same
 * generator makes of all rows at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../fuzz/fuzz_columns.c"
#include "repl/msg_columns_priv.h"
#include "base/mem.h"
#include "column_kinds.h"
#include "mutate.h"
#include "wal.pb-c.h"

#include <dirent.h>

#define CORPUS "test/fuzz/corpus/msg"

static Col__FieldData *column(const struct def *d, size_t from, size_t to, bool wal)
{
    return make_column(d, 100 + (d - defs), from, to, wal);
}

/* ---- messages --------------------------------------------------------------------------------- */

static struct buf *take(struct pb_out *o)
{
    struct buf *b = fuzz_exact_buf(o->data, o->len);

    pb_out_release(o);
    return b;
}

/* Columns first .. first + n (around) of all; the WAL's order is not the schema's. */
static struct buf *make_insert(size_t from, size_t to, size_t first, size_t n)
{
    struct pb_out o = {0};

    out_insert(&o, to - from);
    for (size_t i = 0; i < n; i++) {
        Col__FieldData *m = column(&defs[(first + i) % N_DEFS], from, to, true);
        out_message(&o, 13, &m->base);
        protobuf_c_message_free_unpacked(&m->base, NULL);
    }
    return take(&o);
}

static struct msg_head head_of(const struct buf *b)
{
    struct msg_head h;
    struct err err;

    if (msg_scan(b->data, b->size, &h, &err))
        fail_msg("%s", err.text);
    return h;
}

static int add(struct msg_columns *c, struct buf *b, struct err *err)
{
    struct msg_head h = head_of(b);

    return msg_columns_add(c, &h, b, b->data, b->size, err);
}

static void add_ok(struct msg_columns *c, struct buf *take_b)
{
    struct err err;

    if (add(c, take_b, &err))
        fail_msg("%s", err.text);
    buf_unref(take_b); /* c holds what it needs */
}

/* What was written, decoded and packed again, against the same rows made at once. */
static void assert_rows(const struct msg_columns *c, size_t from, size_t to, size_t first)
{
    size_t len;
    uint8_t *text = fuzz_columns_text(c, &len), *again;
    Col__InsertRequest *m = col__insert_request__unpack(NULL, len, text);
    struct pb_out want = {0};

    assert_non_null(m);
    assert_int_equal(m->n_fields_data, N_DEFS);
    for (size_t i = 0; i < N_DEFS; i++) {
        Col__FieldData *d = column(&defs[(first + i) % N_DEFS], from, to, false);
        out_message(&want, 5, &d->base);
        protobuf_c_message_free_unpacked(&d->base, NULL);
    }
    assert_int_equal(col__insert_request__get_packed_size(m), want.len);
    again = xmalloc(want.len);
    col__insert_request__pack(m, again);
    assert_memory_equal(again, want.data, want.len);
    col__insert_request__free_unpacked(m, NULL);
    pb_out_release(&want);
    free(again);
    free(text);
}

static struct buf *one_column(Col__FieldData *m, size_t rows)
{
    struct pb_out o = {0};

    out_insert(&o, rows);
    out_message(&o, 13, &m->base);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    return take(&o);
}

static const struct def *def_of(const char *name)
{
    for (size_t i = 0; i < N_DEFS; i++)
        if (strcmp(defs[i].name, name) == 0)
            return &defs[i];
    abort();
}

/* ---- joining ---------------------------------------------------------------------------------- */

static void joined_columns_are_all_rows(void **state)
{
    static const struct {
        size_t cuts[4], first[3]; /* rows; the column that comes first */
    } table[] = {{{0, 60, 0, 0}, {0, 0, 0}},  {{0, 20, 60, 0}, {0, 0, 0}}, {{0, 20, 21, 60}, {0, 0, 0}},
                 {{0, 1, 2, 3}, {0, 0, 0}},   {{5, 6, 0, 0}, {3, 0, 0}},   {{7, 40, 41, 59}, {3, 5, 23}}};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct msg_columns *c = msg_columns_new();
        size_t end = table[i].cuts[0];

        for (size_t k = 0; k < 3 && table[i].cuts[k + 1]; k++) {
            end = table[i].cuts[k + 1];
            add_ok(c, make_insert(table[i].cuts[k], end, table[i].first[k], N_DEFS));
        }
        assert_int_equal(msg_columns_rows(c), end - table[i].cuts[0]);
        assert_rows(c, table[i].cuts[0], end, table[i].first[0]);
        assert_rows(c, table[i].cuts[0], end, table[i].first[0]); /* writing takes nothing away */
        msg_columns_free(c);
    }
}

/* Also of kinds that nobody here knows. */
static void columns_can_be_left_out(void **state)
{
    struct msg_columns *c = msg_columns_new();
    Col__FieldData *m = column(&defs[0], 0, 5, true);
    struct pb_out o = {0};
    size_t len, len2;
    uint8_t *text, *want;

    (void)state;
    msg_columns_without(c, (char *[]){(char *)"place", (char *)"vec"}, 2);
    out_insert(&o, 5);
    pb_out_bytes(&o, 13, "\x12\x05place\x1a\x03\x62\x01x", 12); /* ScalarField 12 */
    out_message(&o, 13, &m->base);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    m = column(def_of("vec"), 0, 5, true);
    out_message(&o, 13, &m->base);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    add_ok(c, take(&o));
    text = fuzz_columns_text(c, &len);
    msg_columns_free(c);
    c = msg_columns_new();
    add_ok(c, one_column(column(&defs[0], 0, 5, true), 5));
    want = fuzz_columns_text(c, &len2);
    assert_int_equal(len, len2);
    assert_memory_equal(text, want, len);
    msg_columns_free(c);
    free(text);
    free(want);
}

/* Rows of several messages, and rows of these again. */
static void rows_can_be_cut_out(void **state)
{
    struct msg_columns *c = msg_columns_new();

    (void)state;
    add_ok(c, make_insert(0, 20, 3, N_DEFS));
    add_ok(c, make_insert(20, 21, 0, N_DEFS));
    add_ok(c, make_insert(21, 60, 5, N_DEFS));
    for (size_t from = 0; from < 60; from++)
        for (size_t to = from + 1; to <= 60; to += 1 + to % 7) {
            struct msg_columns *cut = msg_columns_cut(c, from, to), *again;

            assert_non_null(cut);
            assert_int_equal(msg_columns_rows(cut), to - from);
            assert_rows(cut, from, to, 3);
            again = msg_columns_cut(cut, (to - from) / 2, to - from);
            msg_columns_free(cut);
            assert_rows(again, from + (to - from) / 2, to, 3);
            msg_columns_free(again);
        }
    assert_null(msg_columns_cut(c, 5, 5));
    assert_null(msg_columns_cut(c, 5, 61));
    msg_columns_free(c);
}

/* Not as many values as rows: nobody can tell which belong together. */
static void rows_that_do_not_count_are_not_cut(void **state)
{
    static const char *const names[] = {"id", "flag", "real", "txt", "bin", "vec", "half", "sparse", "n_txt", "n_real"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        struct msg_columns *c = msg_columns_new();

        add_ok(c, one_column(column(def_of(names[i]), 0, 6, true), 6));
        add_ok(c, one_column(column(def_of(names[i]), 6, 10, true), 4));
        c->rows++;
        assert_null(msg_columns_cut(c, 0, 5));
        c->rows--;
        c->v[0].values.v[1].len--;
        assert_null(msg_columns_cut(c, 0, 5));
        c->v[0].values.v[1].len++;
        msg_columns_free(c);
    }
}

/* A column whose rows of one message are all null has no values there. */
static void rows_may_all_be_null(void **state)
{
    struct msg_columns *c = msg_columns_new();

    (void)state;
    add_ok(c, make_insert(0, 1, 0, N_DEFS));
    add_ok(c, make_insert(1, 2, 0, N_DEFS)); /* is_null() */
    assert_rows(c, 0, 2, 0);
    msg_columns_free(c);
    c = msg_columns_new();
    add_ok(c, make_insert(1, 2, 0, N_DEFS));
    assert_rows(c, 1, 2, 0);
    msg_columns_free(c);
}

static void columns_go_by_reference(void **state)
{
    struct buf *a = make_insert(0, 20, 0, N_DEFS), *b = make_insert(20, 60, 0, N_DEFS);
    struct msg_columns *c = msg_columns_new();
    struct evbuffer *out = evbuffer_new();
    size_t referenced = 0;
    struct evbuffer_iovec v[1000];
    int n;

    (void)state;
    assert_int_equal(add(c, a, NULL), 0);
    assert_int_equal(add(c, b, NULL), 0);
    assert_int_equal(a->refs, 2);
    assert_true(msg_columns_write(c, out));
    msg_columns_free(c); /* out has references of its own */
    n = evbuffer_peek(out, -1, NULL, v, 1000);
    for (int i = 0; i < n; i++) {
        const uint8_t *p = v[i].iov_base;
        if ((p >= a->data && p < a->data + a->size) || (p >= b->data && p < b->data + b->size))
            referenced += v[i].iov_len;
    }
    assert_true(referenced > evbuffer_get_length(out) / 2); /* not those with nulls */
    evbuffer_free(out);
    assert_int_equal(a->refs, 1);
    buf_unref(a);
    buf_unref(b);
}

/* ---- what does not fit ------------------------------------------------------------------------ */

static void assert_does_not_fit(struct msg_columns *c, struct buf *b, const char *text)
{
    size_t bytes = msg_columns_bytes(c), len, len2;
    uint64_t rows = msg_columns_rows(c);
    uint8_t *before = fuzz_columns_text(c, &len), *after;
    struct err err;

    assert_int_equal(add(c, b, &err), ERR_INVALID);
    assert_int_equal(err.cls, ERRC_DATA);
    assert_non_null(strstr(err.text, text));
    assert_int_equal(msg_columns_bytes(c), bytes);
    assert_int_equal(msg_columns_rows(c), rows);
    after = fuzz_columns_text(c, &len2);
    assert_int_equal(len, len2);
    assert_memory_equal(before, after, len);
    assert_int_equal(b->refs, 1);
    buf_unref(b);
    free(before);
    free(after);
}

static void other_columns_do_not_fit(void **state)
{
    struct msg_columns *c = msg_columns_new();
    Col__FieldData *m;
    static const char text[] = "message 77 of collection 9000: its columns are not those of the messages before it";

    (void)state;
    add_ok(c, make_insert(0, 5, 0, N_DEFS));
    assert_does_not_fit(c, make_insert(5, 6, 0, N_DEFS - 1), text);
    assert_does_not_fit(c, make_insert(5, 6, 1, N_DEFS - 1), text);
    msg_columns_free(c);

    c = msg_columns_new();
    add_ok(c, one_column(column(def_of("vec"), 0, 5, true), 5));
    assert_does_not_fit(c, make_insert(5, 6, 0, N_DEFS), text);
    m = column(def_of("vec"), 0, 5, true);
    m->vectors->dim = 32;
    assert_does_not_fit(c, one_column(m, 5), text);
    m = column(def_of("half"), 0, 5, true);
    strcpy(m->field_name, "vec");
    assert_does_not_fit(c, one_column(m, 5), text);
    m = column(def_of("vec"), 0, 5, true);
    m->field_id++;
    assert_does_not_fit(c, one_column(m, 5), text);
    add_ok(c, one_column(column(def_of("vec"), 5, 6, true), 1));
    assert_int_equal(msg_columns_rows(c), 6);
    msg_columns_free(c);

    /* it became nullable */
    c = msg_columns_new();
    m = column(def_of("n_txt"), 0, 1, true);
    m->n_valid_data = 0;
    add_ok(c, one_column(m, 1));
    assert_does_not_fit(c, one_column(column(def_of("n_txt"), 0, 5, true), 5), text);
    msg_columns_free(c);
}

/* ---- what is refused -------------------------------------------------------------------------- */

static void assert_refused(struct pb_out *o, const char *text)
{
    struct msg_columns *c = msg_columns_new();
    struct buf *b = take(o);
    struct err err;

    for (int i = 0; i < 2; i++) {
        assert_int_equal(add(c, b, &err), ERR_PROTO);
        assert_int_equal(err.cls, ERRC_DATA);
        if (!strstr(err.text, text))
            fail_msg("\"%s\" does not say \"%s\"", err.text, text);
        assert_int_equal(b->refs, 1);
        assert_int_equal(msg_columns_bytes(c), 0);
    }
    add_ok(c, make_insert(0, 5, 0, N_DEFS)); /* as if nothing had been */
    assert_rows(c, 0, 5, 0);
    assert_int_not_equal(add(c, b, &err), 0);
    assert_rows(c, 0, 5, 0);
    buf_unref(b);
    msg_columns_free(c);
}

/* An Insert of two rows with this FieldData. */
#define REFUSED(bytes, text)                                                                                           \
    do {                                                                                                               \
        struct pb_out o_ = {0};                                                                                        \
        out_insert(&o_, 2);                                                                                            \
        pb_out_bytes(&o_, 13, bytes, sizeof(bytes) - 1);                                                               \
        assert_refused(&o_, text);                                                                                     \
    } while (0)

static void broken_columns_are_refused(void **state)
{
    struct pb_out o = {0};

    (void)state;
    out_insert(&o, 2);
    pb_out_str(&o, 12, "a row");
    assert_refused(&o, "message 77 of collection 9000 has no columns");
    out_insert(&o, 2);
    pb_out_u64(&o, 13, 5);
    assert_refused(&o, "malformed columns");
    out_insert(&o, 2);
    for (int i = 0; i < 1025; i++)
        pb_out_bytes(&o, 13, "\x12\x01x\x1a\x02\x1a\x00", 7);
    assert_refused(&o, "too many columns");
    out_insert(&o, 2);
    pb_out_bytes(&o, 13, "\x12\x01x\x1a\x02\x1a\x00", 7);
    pb_out_bytes(&o, 13, "\x12\x01x\x1a\x02\x1a\x00", 7);
    assert_refused(&o, "column `x` comes twice");

    REFUSED("\x12\x01x", "`x` has no values");
    REFUSED("\x12\x01x\x1a\x00", "`x` has no values");
    REFUSED("\x12\x01x\x22\x02\x08\x04", "`x` has no values");
    REFUSED("\x1a\x02\x1a\x00", "`` has no name");
    REFUSED("\x12\x01x\x1a\x02\x1a\x00\x1a\x02\x1a\x00", "`x` is malformed");     /* scalars twice */
    REFUSED("\x12\x01x\x1a\x04\x1a\x00\x22\x00", "`x` is malformed");             /* two arrays */
    REFUSED("\x12\x01x\x1a\x02\x18\x00", "`x` is malformed");                     /* not an array */
    REFUSED("\x12\x01x\x1a\x02\x1a\x05", "`x` is malformed");                     /* cut */
    REFUSED("\x12\x01x\x1a\x02\x1a\x00\x3a", "`x` is malformed");                 /* cut */
    REFUSED("\x12\x01x\x18\x05", "`x` is malformed");                             /* scalars is a number */
    REFUSED("\x12\x01x\x0a\x00", "`x` is malformed");                             /* type is a text */
    REFUSED("\x12\x01x\x3a\x01\x01\x3a\x01\x01", "`x` is malformed");             /* valid_data twice */
    REFUSED("\x12\x01x\x22\x02\x42\x00", "`x` has values of a kind that is not known here"); /* vector_array */
    REFUSED("\x12\x01x\x1a\x02\x52\x00", "`x` has values of a kind that is not known here"); /* geometry_data */
    REFUSED("\x12\x01x\x42\x00", "`x` has a kind of values that is not known here");
    REFUSED("\x12\x01x\x22\x06\x32\x04\x10\x05\x0a\x00", "`x` is malformed");     /* sparse: a row behind the dim */
    REFUSED("\x12\x01x\x22\x04\x32\x02\x12\x00", "`x` is malformed");             /* its dim is a text */
}

static void nulls_need_a_flag_for_each_row(void **state)
{
    (void)state;
    /* two rows; long_data with three values, one flag too many, a cut value */
    REFUSED("\x12\x01x\x1a\x07\x1a\x05\x0a\x03\x01\x02\x03\x3a\x02\x01\x00", "`x` has another number of rows");
    REFUSED("\x12\x01x\x1a\x07\x1a\x05\x0a\x03\x01\x02\x03\x3a\x03\x01\x00\x01", "`x` has another number of rows");
    REFUSED("\x12\x01x\x1a\x06\x1a\x04\x0a\x02\x01\x80\x3a\x02\x01\x00", "`x` has another number of rows");
    /* float_data of 4 and a half bytes; string_data cut */
    REFUSED("\x12\x01x\x1a\x09\x22\x07\x0a\x05" "abcde" "\x3a\x02\x01\x00", "`x` has another number of rows");
    REFUSED("\x12\x01x\x1a\x04\x32\x02\x0a\x05\x3a\x02\x01\x00", "`x` has another number of rows");
    REFUSED("\x12\x01x\x22\x04\x1a\x02" "ab" "\x3a\x02\x01\x00", "`x` has vectors and null rows");
}

/* Should a WAL come without placeholders, it is right as it is. */
static void nulls_without_placeholders_stay(void **state)
{
    struct msg_columns *c = msg_columns_new();
    Col__FieldData *m = column(def_of("n_big"), 0, 5, false);
    struct pb_out want = {0};
    uint8_t *text;
    size_t len;

    (void)state;
    out_message(&want, 5, &m->base);
    add_ok(c, one_column(m, 5));
    text = fuzz_columns_text(c, &len);
    /* the same fields; protobuf-c writes valid_data last */
    assert_int_equal(len, want.len);
    free(text);
    pb_out_release(&want);
    msg_columns_free(c);
}

/* The API wants valid_data for a column with a default; the WAL has it only where the column is nullable besides. */
static void defaults_are_said_to_be_there(void **state)
{
    const int64_t ids[] = {100 + (def_of("num") - defs), 100 + (def_of("n_big") - defs), 4711};
    struct msg_columns *c = msg_columns_new(), *plain = msg_columns_new();
    Col__InsertRequest *m;
    uint8_t *text;
    size_t len;

    (void)state;
    msg_columns_defaults(c, ids, 3);
    add_ok(c, make_insert(0, 20, 0, N_DEFS));
    add_ok(c, make_insert(20, 60, 0, N_DEFS));
    add_ok(plain, make_insert(0, 20, 0, N_DEFS));
    add_ok(plain, make_insert(20, 60, 0, N_DEFS));
    text = fuzz_columns_text(c, &len);
    assert_int_equal(len, msg_columns_bytes(plain) + 62); /* tag, length, 60 */
    m = col__insert_request__unpack(NULL, len, text);
    assert_non_null(m);
    for (size_t i = 0; i < N_DEFS; i++) {
        assert_int_equal(m->fields_data[i]->n_valid_data, i == 3 || defs[i].nullable ? 60 : 0);
        for (size_t r = 0; r < m->fields_data[i]->n_valid_data; r++)
            assert_int_equal(m->fields_data[i]->valid_data[r], !is_null(&defs[i], r));
    }
    col__insert_request__free_unpacked(m, NULL);
    free(text);
    msg_columns_free(c);
    msg_columns_free(plain);
}

static void system_columns_are_left_out(void **state)
{
    struct pb_out o = {0};
    struct msg_columns *c = msg_columns_new();
    uint8_t *text;
    size_t len;

    (void)state;
    out_insert(&o, 1);
    pb_out_bytes(&o, 13, "\x12\x05RowID\x1a\x05\x1a\x03\x0a\x01\x05", 14);
    pb_out_bytes(&o, 13, "\x12\x09Timestamp\x1a\x05\x1a\x03\x0a\x01\x05\x28\x01", 20);
    pb_out_bytes(&o, 13, "\x12\x09Timestamp\x1a\x05\x1a\x03\x0a\x01\x05\x28\x66", 20); /* a user's: id 102 */
    add_ok(c, take(&o));
    text = fuzz_columns_text(c, &len);
    assert_int_equal(len, 2 + 20);
    assert_memory_equal(text + 2, "\x12\x09Timestamp\x28\x66\x1a\x05\x1a\x03\x0a\x01\x05", 20);
    free(text);
    msg_columns_free(c);
}

/* ---- keys ------------------------------------------------------------------------------------- */

static char *keys_text(const struct msg_keys *k)
{
    struct evbuffer *ev = evbuffer_new();
    size_t n;
    char *text;

    assert_true(msg_keys_write(k, ev));
    n = evbuffer_get_length(ev);
    assert_int_equal(n, msg_keys_bytes(k));
    text = xcalloc(1, n + 1);
    assert_int_equal(evbuffer_remove(ev, text, n), n);
    evbuffer_free(ev);
    return text;
}

/* A Delete; NULL: without that field. rows 0: as many as keys were given. */
static struct buf *make_delete(Wal__IDs *ids, const int64_t *old, size_t n_old, size_t rows)
{
    Wal__DeleteRequest m = WAL__DELETE_REQUEST__INIT;
    Pb__MsgBase base = PB__MSG_BASE__INIT;
    uint64_t times[8] = {5, 5, 5, 5, 5, 5, 5, 5};
    struct buf *b;
    uint8_t data[2000];

    base.msg_type = MSG_DELETE;
    m.msg_base = &base;
    m.collection_id = 9000;
    m.primary_keys = ids;
    m.n_int64_primary_keys = n_old;
    m.int64_primary_keys = (int64_t *)(uintptr_t)old;
    m.num_rows = (int64_t)rows;
    m.n_timestamps = rows;
    m.timestamps = times;
    b = fuzz_exact_buf(data, wal__delete_request__pack(&m, data));
    return b;
}

static struct buf *delete_numbers(const int64_t *v, size_t n, size_t rows)
{
    Wal__LongArray a = WAL__LONG_ARRAY__INIT;
    Wal__IDs ids = WAL__IDS__INIT;

    a.n_data = n;
    a.data = (int64_t *)(uintptr_t)v;
    ids.id_field_case = WAL__IDS__ID_FIELD_INT_ID;
    ids.int_id = &a;
    return make_delete(&ids, NULL, 0, rows);
}

static struct buf *delete_texts(const char *const *v, size_t n, size_t rows)
{
    Wal__StringArray a = WAL__STRING_ARRAY__INIT;
    Wal__IDs ids = WAL__IDS__INIT;

    a.n_data = n;
    a.data = (char **)(uintptr_t)v;
    ids.id_field_case = WAL__IDS__ID_FIELD_STR_ID;
    ids.str_id = &a;
    return make_delete(&ids, NULL, 0, rows);
}

static int add_keys_of(struct msg_keys *k, struct buf *take_b, struct err *err)
{
    struct msg_head h = head_of(take_b);
    int rc = msg_keys_add(k, &h, take_b->data, take_b->size, err);

    buf_unref(take_b);
    return rc;
}

static void assert_keys(struct msg_keys *take_k, uint64_t n, const char *want)
{
    char *text = keys_text(take_k);

    assert_string_equal(text, want);
    assert_int_equal(msg_keys_count(take_k), n);
    free(text);
    msg_keys_free(take_k);
}

static void keys_become_an_expression(void **state)
{
    static const int64_t v[] = {1, -2, 0, INT64_MAX, INT64_MIN};
    static const char *const t[] = {"a", "say \"hi\"", "back\\slash", "line\nfeed\ttab\x01\x7f", "",
                                    "\xc3\xa4\xe6\xbc\xa2"};
    struct msg_keys *k = msg_keys_new("id");

    (void)state;
    assert_int_equal(add_keys_of(k, delete_numbers(v, 1, 1), NULL), 0);
    assert_int_equal(add_keys_of(k, delete_numbers(v + 1, 4, 4), NULL), 0);
    assert_int_equal(add_keys_of(k, make_delete(NULL, v, 2, 2), NULL), 0); /* an old server */
    assert_keys(k, 7, "id in [1,-2,0,9223372036854775807,-9223372036854775807-1,1,-2]");
    k = msg_keys_new("name");
    assert_int_equal(add_keys_of(k, delete_texts(t, 2, 2), NULL), 0);
    assert_int_equal(add_keys_of(k, delete_texts(t + 2, 4, 4), NULL), 0);
    assert_keys(k, 6,
                "name in [\"a\",\"say \\\"hi\\\"\",\"back\\\\slash\",\"line\\nfeed\\ttab\x01\x7f\",\"\","
                "\"\xc3\xa4\xe6\xbc\xa2\"]");
}

static void assert_keys_refused(struct msg_keys *k, struct buf *b)
{
    struct err err;

    assert_int_equal(add_keys_of(k, b, &err), ERR_PROTO);
    assert_int_equal(err.cls, ERRC_DATA);
    assert_non_null(strstr(err.text, "of collection 9000: no primary key for each of"));
}

static void keys_can_be_cut_out(void **state)
{
    static const int64_t v[] = {1, -2, INT64_MIN, 4};
    static const char *const t[] = {"a", "say \"hi, you\"", "back\\,", ",", "", "\""};
    struct msg_keys *k = msg_keys_new("id"), *cut;

    (void)state;
    assert_int_equal(add_keys_of(k, delete_numbers(v, 4, 4), NULL), 0);
    assert_keys(msg_keys_cut(k, 0, 2), 2, "id in [1,-2]");
    cut = msg_keys_cut(k, 1, 4);
    assert_keys(msg_keys_cut(cut, 1, 3), 2, "id in [-9223372036854775807-1,4]");
    msg_keys_free(cut);
    msg_keys_free(k);
    k = msg_keys_new("id");
    assert_int_equal(add_keys_of(k, delete_texts(t, 6, 6), NULL), 0);
    assert_keys(msg_keys_cut(k, 0, 2), 2, "id in [\"a\",\"say \\\"hi, you\\\"\"]");
    assert_keys(msg_keys_cut(k, 2, 4), 2, "id in [\"back\\\\,\",\",\"]");
    assert_keys(msg_keys_cut(k, 4, 6), 2, "id in [\"\",\"\\\"\"]");
    msg_keys_free(k);
}

static void other_numbers_of_keys_are_refused(void **state)
{
    static const int64_t v[] = {1, 2, 3};
    static const char *const t[] = {"a", "b"};
    struct msg_keys *k = msg_keys_new("id");
    Wal__IDs none = WAL__IDS__INIT;

    (void)state;
    assert_int_equal(add_keys_of(k, delete_numbers(v, 1, 1), NULL), 0);
    assert_keys_refused(k, delete_numbers(v, 3, 2));
    assert_keys_refused(k, delete_numbers(v, 2, 3));
    assert_keys_refused(k, delete_texts(t, 1, 2));
    assert_keys_refused(k, make_delete(NULL, NULL, 0, 1));
    assert_keys_refused(k, make_delete(NULL, v, 3, 2));
    assert_keys_refused(k, make_delete(&none, NULL, 0, 1));
    assert_keys_refused(k, make_insert(0, 1, 0, N_DEFS));
    assert_keys(k, 1, "id in [1]");
}

/* ---- real messages ---------------------------------------------------------------------------- */

static struct buf *read_message(const char *name)
{
    char path[512];
    uint8_t data[8192];
    size_t n;
    FILE *f;

    snprintf(path, sizeof(path), CORPUS "/%s", name);
    f = fopen(path, "rb");
    if (!f)
        fail_msg("%s: missing (run from the top folder)", path);
    n = fread(data, 1, sizeof(data), f);
    assert_true(n > 0 && n < sizeof(data));
    fclose(f);
    return fuzz_exact_buf(data, n);
}

/* Each column of a real Insert as it was, in its order. */
static void columns_are_as_decoded(struct buf *b)
{
    struct msg_columns *c = msg_columns_new();
    Wal__InsertRequest *m = wal__insert_request__unpack(NULL, b->size, b->data);
    struct pb_out want = {0};
    size_t len, want_len;
    uint8_t *text, *packed;
    Col__InsertRequest *got, *in;

    for (size_t i = 0; i < m->n_fields_data; i++)
        out_message(&want, 5, &m->fields_data[i]->base);
    in = col__insert_request__unpack(NULL, want.len, want.data);
    assert_int_equal(add(c, b, NULL), 0);
    text = fuzz_columns_text(c, &len);
    got = col__insert_request__unpack(NULL, len, text);
    assert_non_null(in);
    assert_non_null(got);
    want_len = col__insert_request__get_packed_size(in);
    assert_int_equal(col__insert_request__get_packed_size(got), want_len);
    packed = xmalloc(2 * want_len);
    col__insert_request__pack(in, packed);
    col__insert_request__pack(got, packed + want_len);
    assert_memory_equal(packed, packed + want_len, want_len);
    col__insert_request__free_unpacked(in, NULL);
    col__insert_request__free_unpacked(got, NULL);
    wal__insert_request__free_unpacked(m, NULL);
    msg_columns_free(c);
    pb_out_release(&want);
    free(packed);
    free(text);
}

enum { MUTATIONS_EACH = 600, CHANGES_MAX = 4 };
static size_t n_inserts, n_deletes, n_mutants, n_taken;

static void run_mutants(const struct buf *b)
{
    uint8_t data[8192 + CHANGES_MAX];

    assert_int_equal(fuzz_columns_one(b->data, b->size), 0);
    for (int i = 0; i < MUTATIONS_EACH; i++) {
        size_t len = b->size, changes = 1 + random_below(CHANGES_MAX);

        memcpy(data, b->data, len);
        while (changes-- > 0 && len > 0)
            mutate(data, &len);
        n_mutants++;
        n_taken += fuzz_columns_one(data, len) == 0;
    }
}

static void try_message(const char *name)
{
    struct buf *b = read_message(name);
    struct msg_head h = head_of(b);

    if (h.type == MSG_INSERT) {
        n_inserts++;
        columns_are_as_decoded(b);
    }
    n_deletes += h.type == MSG_DELETE;
    if (h.type == MSG_INSERT || h.type == MSG_DELETE)
        run_mutants(b);
    else
        assert_int_equal(fuzz_columns_one(b->data, b->size), ERR_PROTO);
    buf_unref(b);
}

static void corpus_and_mutations(void **state)
{
    struct dirent **list;
    int n = scandir(CORPUS, &list, NULL, alphasort);
    struct buf *made = make_insert(0, 3, 0, N_DEFS);

    (void)state;
    for (int i = 0; i < n; i++) {
        if (strstr(list[i]->d_name, ".bin"))
            try_message(list[i]->d_name);
        free(list[i]);
    }
    free(list);
    assert_true(n_inserts >= 10 && n_deletes >= 5);
    assert_true(made->size < 8192);
    run_mutants(made); /* what a 2.3.5 does not write: nulls, later kinds of vectors */
    buf_unref(made);
    assert_true(n_taken > n_mutants / 10 && n_taken < n_mutants * 9 / 10);
}

/* ---- the answer of a Query ---------------------------------------------------------------------- */

/* FieldData of one array of ScalarField. */
static void page_column(struct pb_out *o, const char *name, uint64_t type, uint32_t list, struct pb_out *take_array)
{
    struct pb_out scalars = {0}, column = {0};

    pb_out_tag(&scalars, list, PB_LEN);
    pb_out_varint(&scalars, take_array->len);
    pb_out_raw(&scalars, take_array->data, take_array->len);
    pb_out_u64(&column, 1, type);
    pb_out_str(&column, 2, name);
    pb_out_bytes(&column, 3, scalars.data, scalars.len);
    pb_out_bytes(o, 2, column.data, column.len);
    pb_out_release(take_array);
    pb_out_release(&scalars);
    pb_out_release(&column);
}

/* Rows 7, -2, 9; of their arrays of texts the first and the last are empty, as a Query tells it. */
static struct buf *make_page(void)
{
    static const uint8_t keys[] = {7, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 9};
    static const uint8_t arrays[] = {0x0a, 0, 0x0a, 5, 0x32, 3, 0x0a, 1, 'x', 0x0a, 0, 0x10, VARCHAR};
    struct pb_out o = {0}, longs = {0}, rows = {0};

    pb_out_bytes(&longs, 1, keys, sizeof(keys));
    page_column(&o, "id", INT64, 3, &longs);
    pb_out_raw(&rows, arrays, sizeof(arrays));
    page_column(&o, "tags", ARRAY, 8, &rows);
    return take(&o);
}

/* An Upsert of an array of texts without a list takes Milvus 2.3.5 down. */
static void a_page_has_its_greatest_key_and_no_bare_arrays(void **state)
{
    struct msg_columns *c = msg_columns_new();
    struct buf *b = make_page();
    Col__InsertRequest *m;
    uint8_t *text;
    char *last;
    size_t len;
    struct err err;

    (void)state;
    if (msg_columns_add_page(c, b, b->data, b->size, "id", &last, &err))
        fail_msg("%s", err.text);
    assert_int_equal(msg_columns_rows(c), 3);
    assert_string_equal(last, "9");
    text = fuzz_columns_text(c, &len);
    m = col__insert_request__unpack(NULL, len, text);
    assert_int_equal(m->n_fields_data, 2);
    assert_int_equal(m->fields_data[1]->scalars->array_data->n_data, 3);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(m->fields_data[1]->scalars->array_data->data[i]->data_case, COL__SCALAR_FIELD__DATA_STRING_DATA);
    col__insert_request__free_unpacked(m, NULL);
    free(text);
    free(last);
    msg_columns_free(c);
    buf_unref(b);
}

static void other_pages(void **state)
{
    static const uint8_t texts[] = {0x0a, 1, 'a', 0x0a, 3, 'b', '"', 'c', 0x0a, 1, 'b'};
    struct msg_columns *c = msg_columns_new();
    struct pb_out o = {0}, list = {0}, count = {0};
    struct buf *b = make_page();
    char *last;
    struct err err;

    (void)state;
    assert_int_equal(msg_columns_add_page(c, b, b->data, b->size, "key", &last, &err), ERR_PROTO); /* no such column */
    assert_null(last);
    assert_int_equal(msg_columns_add_page(c, b, b->data, 0, "id", &last, &err), 0); /* no rows */
    assert_null(last);
    assert_int_equal(msg_columns_rows(c), 0);
    for (size_t cut = 1; cut < b->size; cut++) { /* whatever it is, it is read within its bounds */
        struct buf *part = fuzz_exact_buf(b->data, cut);
        if (msg_columns_add_page(c, part, part->data, part->size, "id", &last, &err) == 0)
            free(last);
        buf_unref(part);
    }
    msg_columns_free(c);
    buf_unref(b);
    c = msg_columns_new();
    pb_out_raw(&list, texts, sizeof(texts));
    page_column(&o, "id", VARCHAR, 6, &list);
    b = take(&o);
    assert_int_equal(msg_columns_add_page(c, b, b->data, b->size, "id", &last, &err), 0);
    assert_string_equal(last, "\"b\\\"c\"");
    free(last);
    msg_columns_free(c);
    buf_unref(b);
    c = msg_columns_new();
    pb_out_bytes(&count, 1, (const uint8_t[]){0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1}, 10);
    page_column(&o, "id", INT64, 3, &count);
    b = take(&o);
    assert_int_equal(msg_columns_add_page(c, b, b->data, b->size, "id", &last, &err), 0);
    assert_string_equal(last, "-9223372036854775807-1"); /* the least number does not parse as it is */
    free(last);
    msg_columns_free(c);
    buf_unref(b);
    pb_out_bytes(&count, 1, (const uint8_t[]){0xac, 2}, 2);
    page_column(&o, "count(*)", INT64, 3, &count);
    b = take(&o);
    assert_int_equal(msg_page_count(b->data, b->size), 300);
    buf_unref(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(joined_columns_are_all_rows),
        cmocka_unit_test(columns_can_be_left_out),
        cmocka_unit_test(rows_can_be_cut_out),
        cmocka_unit_test(rows_that_do_not_count_are_not_cut),
        cmocka_unit_test(rows_may_all_be_null),
        cmocka_unit_test(columns_go_by_reference),
        cmocka_unit_test(other_columns_do_not_fit),
        cmocka_unit_test(broken_columns_are_refused),
        cmocka_unit_test(nulls_need_a_flag_for_each_row),
        cmocka_unit_test(nulls_without_placeholders_stay),
        cmocka_unit_test(defaults_are_said_to_be_there),
        cmocka_unit_test(system_columns_are_left_out),
        cmocka_unit_test(keys_become_an_expression),
        cmocka_unit_test(keys_can_be_cut_out),
        cmocka_unit_test(other_numbers_of_keys_are_refused),
        cmocka_unit_test(a_page_has_its_greatest_key_and_no_bare_arrays),
        cmocka_unit_test(other_pages),
        cmocka_unit_test(corpus_and_mutations),
    };

    return cmocka_run_group_tests_name("msg_columns", tests, NULL, NULL);
}
