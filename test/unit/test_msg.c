/*
 * test_msg.c - what repl/msg.h promises, on messages of a real Milvus 2.3.5 (test/fuzz/corpus/msg).
 *
 * Decoding by protobuf-c (proto/wal.proto) is the independent witness: the original with the
 * changes applied and packed must equal the output unpacked and packed, unknown fields included.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../fuzz/fuzz_msg.c"
#include "base/mem.h"
#include "mutate.h"
#include "wal.pb-c.h"

#include <dirent.h>
#include <event2/event.h>

#define CORPUS "test/fuzz/corpus/msg"

enum { ROWS_TT = 1000 };

/* ---- messages ------------------------------------------------------------------------------ */

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

/* fn for each message of the corpus; returns their number. */
static size_t for_each_message(void (*fn)(const char *name, struct buf *msg))
{
    struct dirent **list;
    int n = scandir(CORPUS, &list, NULL, alphasort);
    size_t done = 0;

    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        if (strstr(list[i]->d_name, ".bin")) {
            struct buf *m = read_message(list[i]->d_name);
            fn(list[i]->d_name, m);
            buf_unref(m);
            done++;
        }
        free(list[i]);
    }
    free(list);
    return done;
}

static struct buf *take(struct pb_out *o)
{
    struct buf *b = fuzz_exact_buf(o->data, o->len);

    pb_out_release(o);
    return b;
}

static void out_base_of(struct pb_out *o, int type, uint64_t tt)
{
    struct pb_out b = {0};

    pb_out_u64(&b, 1, (uint64_t)type);
    pb_out_u64(&b, 3, tt);
    pb_out_bytes(o, 1, b.data, b.len);
    pb_out_release(&b);
}

static void out_packed(struct pb_out *o, uint32_t num, const uint64_t *v, size_t n)
{
    struct pb_out b = {0};

    for (size_t i = 0; i < n; i++)
        pb_out_varint(&b, v[i]);
    pb_out_bytes(o, num, b.data, b.len);
    pb_out_release(&b);
}

/* A small Insert of n rows without columns. */
static struct pb_out small_insert(const uint64_t *times, size_t n, uint64_t num_rows)
{
    struct pb_out o = {0};

    out_base_of(&o, MSG_INSERT, ROWS_TT);
    pb_out_str(&o, 2, "dml_0_7v0");
    pb_out_u64(&o, 7, 7);
    pb_out_u64(&o, 8, 8);
    out_packed(&o, 10, times, n);
    pb_out_u64(&o, 14, num_rows);
    return o;
}

/* The message with unknown fields in it and in its base, and a replicateInfo with one. */
static struct buf *with_unknown_fields(const struct buf *msg)
{
    static const uint8_t info[] = {0x08, 1, 0x10, 5, 0xa2, 0x06, 2, 'h', 'i'};
    struct pb_scan s = pb_scan_init(msg->data, msg->size);
    struct pb_out o = {0}, base = {0};
    struct pb_field f;

    pb_out_str(&o, 60, "in front");
    while (pb_scan_next(&s, &f) == 1) {
        if (f.num != 1) {
            pb_out_raw(&o, f.start, f.total);
            pb_out_u64(&o, 40 + f.num, 7);
            continue;
        }
        pb_out_str(&base, 31, "first");
        pb_out_raw(&base, f.data, f.len);
        pb_out_bytes(&base, 7, info, sizeof(info));
        pb_out_u64(&base, 2000, 12345);
        pb_out_bytes(&o, 1, base.data, base.len);
    }
    pb_out_tag(&o, 100000, PB_I32);
    pb_out_raw(&o, "abcd", 4);
    pb_out_tag(&o, 32, PB_I64);
    pb_out_raw(&o, "abcdefgh", 8);
    pb_out_release(&base);
    return take(&o);
}

static struct msg_head scan_ok(const struct buf *m)
{
    struct msg_head h;
    struct err err;

    if (msg_scan(m->data, m->size, &h, &err))
        fail_msg("%s", err.text);
    return h;
}

/* Scanning fails with DATA, says text, and *ret stays untouched. */
static void assert_bad(struct buf *m, const char *text)
{
    struct msg_head h, before;
    struct err err = {0};

    memset(&h, 0x5a, sizeof(h));
    before = h;
    assert_int_equal(msg_scan(m->data, m->size, &h, &err), ERR_PROTO);
    assert_int_equal(err.cls, ERRC_DATA);
    if (!strstr(err.text, text))
        fail_msg("\"%s\" does not say \"%s\"", err.text, text);
    assert_memory_equal(&h, &before, sizeof(h));
    assert_int_equal(msg_scan(m->data, m->size, &h, NULL), ERR_PROTO);
    buf_unref(m);
}

/* ---- scanning: real messages --------------------------------------------------------------- */

static void assert_text(const uint8_t *text, size_t len, const char *want)
{
    assert_int_equal(len, strlen(want));
    if (len)
        assert_memory_equal(text, want, len);
    else
        assert_null(text);
}

static void assert_times(const struct msg_head *h, const uint64_t *t, size_t n)
{
    uint64_t min = UINT64_MAX, max = 0;

    for (size_t i = 0; i < n; i++) {
        min = t[i] < min ? t[i] : min;
        max = t[i] > max ? t[i] : max;
    }
    assert_true(n > 0 && h->min_tt == min && h->max_tt == max && h->num_rows == n);
}

static void assert_base(const struct msg_head *h, const Pb__MsgBase *b)
{
    assert_int_equal(h->type, b->msg_type);
    assert_int_equal(h->msg_id, b->msg_id);
    assert_int_equal(h->base_tt, b->timestamp);
}

/* DropPartition has no shard; h then has none either. */
#define ASSERT_NAMES(h, m)                                                                         \
    do {                                                                                           \
        assert_text((h)->db_name, (h)->db_name_len, (m)->db_name);                                 \
        assert_text((h)->collection_name, (h)->collection_name_len, (m)->collection_name);         \
        assert_int_equal((h)->collection_id, (m)->collection_id);                                  \
    } while (0)
#define ASSERT_PARTITION(h, m)                                                                     \
    do {                                                                                           \
        assert_text((h)->partition_name, (h)->partition_name_len, (m)->partition_name);            \
        assert_int_equal((h)->partition_id, (m)->partition_id);                                    \
    } while (0)
#define ASSERT_ROWS(h, m)                                                                          \
    do {                                                                                           \
        assert_text((h)->shard_name, (h)->shard_name_len, (m)->shard_name);                        \
        assert_times((h), (m)->timestamps, (m)->n_timestamps);                                     \
    } while (0)

static void head_is_as_decoded(const char *name, struct buf *b)
{
    struct msg_head h = scan_ok(b);
    void *m = NULL;

    (void)name;
    if (h.type == MSG_INSERT) {
        Wal__InsertRequest *i = m = wal__insert_request__unpack(NULL, b->size, b->data);
        ASSERT_ROWS(&h, i);
        ASSERT_NAMES(&h, i);
        ASSERT_PARTITION(&h, i);
    } else if (h.type == MSG_DELETE) {
        Wal__DeleteRequest *d = m = wal__delete_request__unpack(NULL, b->size, b->data);
        ASSERT_ROWS(&h, d);
        ASSERT_NAMES(&h, d);
        ASSERT_PARTITION(&h, d);
    } else if (h.type == MSG_DROP_COLLECTION) {
        Wal__DropCollectionRequest *d = m =
            wal__drop_collection_request__unpack(NULL, b->size, b->data);
        ASSERT_NAMES(&h, d);
    } else if (h.type == MSG_DROP_PARTITION) {
        Wal__DropPartitionRequest *d = m =
            wal__drop_partition_request__unpack(NULL, b->size, b->data);
        ASSERT_NAMES(&h, d);
        ASSERT_PARTITION(&h, d);
    } else {
        m = wal__time_tick_msg__unpack(NULL, b->size, b->data); /* the rest is unknown to it */
    }
    assert_non_null(m);
    assert_base(&h, ((Wal__TimeTickMsg *)m)->msg_base); /* the first field of all */
    if (h.type != MSG_INSERT && h.type != MSG_DELETE)
        assert_true(h.min_tt == h.base_tt && h.max_tt == h.base_tt && h.min_tt > 0);
    protobuf_c_message_free_unpacked(m, NULL);
}

static void scan_agrees_with_protobuf(void **state)
{
    (void)state;
    assert_true(for_each_message(head_is_as_decoded) >= 36);
}

/* Values as Milvus 2.3.5 wrote them, so that scan and proto cannot err together. */
static void scan_known_messages(void **state)
{
    struct buf *b = read_message("insert_all_types.bin");
    struct msg_head h = scan_ok(b);

    (void)state;
    assert_int_equal(h.type, MSG_INSERT);
    assert_int_equal(h.msg_id, 470676192974602588);
    assert_int_equal(h.base_tt, 470676210588057602);
    assert_int_equal(h.collection_id, 470676192974602581);
    assert_int_equal(h.partition_id, 470676192974602582);
    assert_int_equal(h.num_rows, 3);
    assert_text(h.shard_name, h.shard_name_len, "by-dev-rootcoord-dml_0_470676192974602581v0");
    assert_text(h.collection_name, h.collection_name_len, "all_types");
    assert_text(h.partition_name, h.partition_name_len, "_default");
    assert_null(h.db_name);
    assert_int_equal(h.min_tt, h.max_tt);
    buf_unref(b);

    /* the Insert of an Upsert: time only in the rows */
    b = read_message("insert_all_types_upsert.bin");
    h = scan_ok(b);
    assert_int_equal(h.base_tt, 0);
    assert_int_equal(h.min_tt >> 18, 470676214729932802 >> 18);
    buf_unref(b);

    b = read_message("delete_all_types.bin");
    h = scan_ok(b);
    assert_int_equal(h.type, MSG_DELETE);
    assert_int_equal(h.partition_id, -1);
    assert_null(h.partition_name);
    buf_unref(b);

    b = read_message("tick.bin");
    h = scan_ok(b);
    assert_int_equal(h.type, MSG_TIME_TICK);
    buf_unref(b);
}

static void cut_message(const char *name, struct buf *b)
{
    struct pb_scan s = pb_scan_init(b->data, b->size);
    struct pb_field f;
    size_t boundary = 0;

    (void)name;
    for (size_t n = 0; n < b->size; n++) {
        int rc = fuzz_msg_one(b->data, n);

        if (n > boundary) {
            assert_int_equal(pb_scan_next(&s, &f), 1);
            boundary += f.total;
        }
        if (n < boundary) /* inside a field; at a boundary the rest may be a message */
            assert_int_equal(rc, ERR_PROTO);
    }
    assert_int_equal(fuzz_msg_one(b->data, b->size), 0);
}

static void scan_cut_at_every_byte(void **state)
{
    (void)state;
    for_each_message(cut_message);
}

/* ---- scanning: made messages --------------------------------------------------------------- */

static void scan_bad_base(void **state)
{
    static const uint8_t groups[] = {0x0a, 2, 8, 1, 0x13, 0x14};
    static const uint8_t foreign[] = {0xff, 0xfe, 0xfd, 0xfc, 'S', 'T', 'R', 'E', 'A', 'M'};
    struct pb_out o = {0};

    (void)state;
    assert_bad(fuzz_exact_buf(NULL, 0), "no MsgBase");
    assert_bad(fuzz_exact_buf(foreign, sizeof(foreign)), "no protobuf");
    assert_bad(fuzz_exact_buf(groups, sizeof(groups)), "no protobuf at byte");
    pb_out_u64(&o, 1, 5);
    assert_bad(take(&o), "not a MsgBase");
    pb_out_str(&o, 2, "x");
    assert_bad(take(&o), "no MsgBase");
    out_base_of(&o, MSG_TIME_TICK, 5);
    out_base_of(&o, MSG_TIME_TICK, 5);
    assert_bad(take(&o), "two MsgBase");
    out_base_of(&o, 0, 5);
    assert_bad(take(&o), "message type 0");
    pb_out_bytes(&o, 1, "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11);
    assert_bad(take(&o), "message type");
    pb_out_bytes(&o, 1, "\x08\xb0\x09\x1a\x01z", 6);
    assert_bad(take(&o), "field 3");
    pb_out_bytes(&o, 1, "\x08\xb0\x09\x18", 4);
    assert_bad(take(&o), "no protobuf");
}

static void scan_wrong_wire_types(void **state)
{
    static const uint32_t texts[] = {2, 3, 4, 5}, numbers[] = {7, 8, 14};
    const uint64_t t[] = {5, 6};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct pb_out o = small_insert(t, 2, 2);
        pb_out_u64(&o, texts[i], 9);
        assert_bad(take(&o), "wrong wire type");
    }
    for (size_t i = 0; i < 3; i++) {
        struct pb_out o = small_insert(t, 2, 2);
        pb_out_str(&o, numbers[i], "nine");
        assert_bad(take(&o), "wrong wire type");
    }
    struct pb_out o = small_insert(t, 2, 2);
    pb_out_tag(&o, 10, PB_I64);
    pb_out_raw(&o, "12345678", 8);
    assert_bad(take(&o), "field 10");
    o = small_insert(t, 2, 3);
    pb_out_bytes(&o, 10, "\x80", 1); /* a timestamp cut off inside of the packed field */
    assert_bad(take(&o), "field 10");
}

static void scan_row_times(void **state)
{
    const uint64_t t[] = {30, UINT64_MAX, 10, 20}, zero[] = {3, 0};
    const uint64_t same[] = {1u << 30, 1u << 30, 1u << 30, 1u << 30, (1u << 30) - 1};
    struct pb_out o = small_insert(t, 4, 6);
    struct msg_head h;
    struct buf *b;

    (void)state;
    /* more of them: in a second chunk and unpacked */
    out_packed(&o, 10, (const uint64_t[]){9}, 1);
    pb_out_tag(&o, 10, PB_VARINT);
    pb_out_varint(&o, 40);
    b = take(&o);
    h = scan_ok(b);
    assert_int_equal(h.min_tt, 9);
    assert_true(h.max_tt == UINT64_MAX);
    assert_int_equal(h.num_rows, 6);
    assert_int_equal(h.base_tt, ROWS_TT);
    assert_int_equal(fuzz_msg_one(b->data, b->size), 0); /* a rewrite of times leaves one chunk */
    buf_unref(b);

    for (size_t n = 1; n <= 5; n++) { /* all equal, or but for the last one */
        o = small_insert(same, n, n);
        b = take(&o);
        h = scan_ok(b);
        assert_true(h.min_tt == (n < 5 ? same[0] : same[0] - 1) && h.max_tt == same[0] && h.num_rows == n);
        buf_unref(b);
    }
    o = small_insert(same, 4, 3);
    assert_bad(take(&o), "3 rows, 4 row timestamps");

    o = small_insert(t, 0, 0);
    assert_bad(take(&o), "0 rows, 0 row timestamps");
    o = small_insert(t, 0, 2);
    assert_bad(take(&o), "2 rows, 0 row timestamps");
    o = small_insert(t, 3, 2);
    assert_bad(take(&o), "collection 7: 2 rows, 3 row timestamps");
    o = small_insert(t, 3, 4);
    assert_bad(take(&o), "4 rows, 3 row timestamps");
    o = small_insert(zero, 2, 2);
    assert_bad(take(&o), "one of them 0");
}

static void scan_base_behind_fields(void **state)
{
    struct pb_out o = {0};
    struct msg_head h;
    struct buf *b;

    (void)state;
    pb_out_u64(&o, 5, 77); /* DropCollection: the id; its meaning is known only with the type */
    pb_out_str(&o, 3, "early");
    pb_out_str(&o, 3, "c");
    out_base_of(&o, MSG_DROP_COLLECTION, 12);
    b = take(&o);
    h = scan_ok(b);
    assert_int_equal(h.collection_id, 77);
    assert_text(h.collection_name, h.collection_name_len, "c"); /* the last one counts */
    assert_int_equal(h.min_tt, 12);
    assert_int_equal(fuzz_msg_one(b->data, b->size), 0);
    buf_unref(b);
}

static void scan_unknown_type(void **state)
{
    struct pb_out o = {0};
    struct msg_head h;
    struct buf *b;

    (void)state;
    out_base_of(&o, 4711, 12);
    pb_out_u64(&o, 2, 5); /* would be a text elsewhere */
    b = take(&o);
    h = scan_ok(b);
    assert_int_equal(h.type, 4711);
    assert_true(h.base_tt == 12 && h.min_tt == 12 && h.max_tt == 12);
    buf_unref(b);
}

/* proto3 leaves 0 out: a Delete that says nothing of a partition is one over all. */
static void scan_delete_without_partition(void **state)
{
    struct msg_rewrite rw = {.collection_id = 1, .partition_id = 2, .shard_name = "v"};
    struct evbuffer *ev = evbuffer_new();
    struct pb_out o = {0};
    Wal__DeleteRequest *d;
    struct msg_head h;
    struct buf *b;
    uint8_t *out;
    size_t n;

    (void)state;
    out_base_of(&o, MSG_DELETE, 12);
    out_packed(&o, 10, (const uint64_t[]){12}, 1);
    pb_out_u64(&o, 11, 1);
    b = take(&o);
    h = scan_ok(b);
    assert_int_equal(h.partition_id, -1);
    out = fuzz_take_element(ev, msg_append(&h, b, b->data, b->size, &rw, ev), &n);
    d = wal__delete_request__unpack(NULL, n, out);
    assert_int_equal(d->partition_id, -1);
    wal__delete_request__free_unpacked(d, NULL);
    free(out);
    buf_unref(b);
    evbuffer_free(ev);
}

/* ---- rewriting ----------------------------------------------------------------------------- */

static void model_text(char **p, const char *v)
{
    if (*p != protobuf_c_empty_string)
        free(*p);
    *p = v ? strdup(v) : (char *)(uintptr_t)protobuf_c_empty_string;
}

static struct buf *pack(const void *m)
{
    struct buf *b = buf_new(protobuf_c_message_get_packed_size(m));

    protobuf_c_message_pack(m, b->data);
    return b;
}

static void model_base(Pb__MsgBase *b, const struct msg_rewrite *rw)
{
    if (rw->new_tt)
        b->timestamp = rw->new_tt;
    if (rw->new_msg_id)
        b->msg_id = rw->new_msg_id;
}

#define MODEL_NAMES(m, rw)                                                                         \
    do {                                                                                           \
        model_base((m)->msg_base, (rw));                                                           \
        model_text(&(m)->db_name, (rw)->db_name);                                                  \
        model_text(&(m)->collection_name, (rw)->collection_name);                                  \
        (m)->collection_id = (rw)->collection_id;                                                  \
    } while (0)
#define MODEL_PARTITION(m, rw) (m)->partition_id = (m)->partition_id == -1 ? -1 : (rw)->partition_id
#define MODEL_ROWS(m, rw)                                                                          \
    do {                                                                                           \
        model_text(&(m)->shard_name, (rw)->shard_name);                                            \
        for (size_t i_ = 0; (rw)->new_tt && i_ < (m)->n_timestamps; i_++)                          \
            (m)->timestamps[i_] = (rw)->new_tt;                                                    \
    } while (0)

static const ProtobufCMessageDescriptor *descriptor_of(int type)
{
    switch (type) {
    case MSG_INSERT:
        return &wal__insert_request__descriptor;
    case MSG_DELETE:
        return &wal__delete_request__descriptor;
    case MSG_DROP_COLLECTION:
        return &wal__drop_collection_request__descriptor;
    case MSG_DROP_PARTITION:
        return &wal__drop_partition_request__descriptor;
    }
    return NULL;
}

/* Unpacks, changes as rw says (NULL: not at all), packs: what the rewrite must mean. */
static struct buf *model(int type, const uint8_t *data, size_t len, const struct msg_rewrite *rw)
{
    ProtobufCMessage *m = protobuf_c_message_unpack(descriptor_of(type), NULL, len, data);
    struct buf *b;

    assert_non_null(m);
    if (rw && type == MSG_INSERT) {
        MODEL_NAMES((Wal__InsertRequest *)m, rw);
        MODEL_PARTITION((Wal__InsertRequest *)m, rw);
        MODEL_ROWS((Wal__InsertRequest *)m, rw);
    } else if (rw && type == MSG_DELETE) {
        MODEL_NAMES((Wal__DeleteRequest *)m, rw);
        MODEL_PARTITION((Wal__DeleteRequest *)m, rw);
        MODEL_ROWS((Wal__DeleteRequest *)m, rw);
    } else if (rw && type == MSG_DROP_COLLECTION) {
        MODEL_NAMES((Wal__DropCollectionRequest *)m, rw);
    } else if (rw) {
        MODEL_NAMES((Wal__DropPartitionRequest *)m, rw);
        MODEL_PARTITION((Wal__DropPartitionRequest *)m, rw);
    }
    b = pack(m);
    protobuf_c_message_free_unpacked(m, NULL);
    return b;
}

static void assert_rewrite(struct buf *src, const struct msg_rewrite *rw)
{
    struct evbuffer *ev = evbuffer_new();
    struct msg_head h = scan_ok(src);
    struct buf *want = model(h.type, src->data, src->size, rw), *got;
    uint8_t *out;
    size_t n;

    out = fuzz_take_element(ev, msg_append(&h, src, src->data, src->size, rw, ev), &n);
    got = model(h.type, out, n, NULL);
    assert_int_equal(got->size, want->size);
    assert_memory_equal(got->data, want->data, want->size);
    buf_unref(got);
    buf_unref(want);
    free(out);
    evbuffer_free(ev);
}

static size_t n_rewritten;

static void rewrite_message(const char *name, struct buf *b)
{
    struct msg_rewrite rw = {.collection_id = 1234567, .partition_id = 7654321,
                             .shard_name = "tgt-rootcoord-dml_3_1234567v0",
                             .db_name = "mapped", .collection_name = "c\xc3\xb6ll"};
    struct buf *unknown;

    (void)name;
    if (!descriptor_of(scan_ok(b).type))
        return;
    unknown = with_unknown_fields(b);
    for (int i = 0; i < 4; i++) {
        rw.new_tt = i & 1 ? UINT64_MAX - 5 : 0;
        rw.new_msg_id = i & 2 ? 99 : 0;
        assert_rewrite(b, &rw);
        assert_rewrite(unknown, &rw);
    }
    rw.db_name = NULL;
    assert_rewrite(unknown, &rw);
    buf_unref(unknown);
    n_rewritten++;
}

static void rewrite_agrees_with_protobuf(void **state)
{
    (void)state;
    n_rewritten = 0;
    for_each_message(rewrite_message);
    assert_true(n_rewritten >= 20);
}

/* Columns are not copied: they lie in the source's bytes and hold it. */
static void rewrite_passes_columns_by_reference(void **state)
{
    const uint64_t t[] = {5, 6};
    struct msg_rewrite rw = {.collection_id = 1, .partition_id = 2, .shard_name = "v", .new_tt = 9};
    struct pb_out o = small_insert(t, 2, 2);
    struct evbuffer *ev = evbuffer_new();
    uint8_t *column = calloc(1, 100000);
    struct evbuffer_iovec vec[16];
    struct msg_head h;
    struct buf *b;
    int n, inside = 0;

    (void)state;
    for (int i = 0; i < 3; i++)
        pb_out_bytes(&o, 13, column, 100000);
    b = take(&o);
    h = scan_ok(b);
    evbuffer_add_printf(ev, "before");
    assert_true(msg_append(&h, b, b->data, b->size, &rw, ev) > 300000);
    assert_int_equal(b->refs, 2); /* three neighbouring fields, one reference */
    n = evbuffer_peek(ev, -1, NULL, vec, 16);
    for (int i = 0; i < n; i++) {
        const uint8_t *p = vec[i].iov_base;
        if (p >= b->data && p < b->data + b->size && vec[i].iov_len >= 300000)
            inside++;
    }
    assert_int_equal(inside, 1);
    evbuffer_free(ev);
    assert_int_equal(b->refs, 1);
    buf_unref(b);
    free(column);
}

/* ---- messages of ours ---------------------------------------------------------------------- */

static void made_tick(void **state)
{
    static const uint8_t want[] = {0x2a, 19, 0x0a, 17, 0x08, 0xb0, 0x09, 0x18, 0x96, 0x01, 0x20,
                                   0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01};
    struct evbuffer *ev = evbuffer_new();

    (void)state;
    assert_int_equal(msg_append_tick(150, ev), sizeof(want));
    assert_int_equal(evbuffer_get_length(ev), sizeof(want));
    assert_memory_equal(evbuffer_pullup(ev, -1), want, sizeof(want));
    evbuffer_free(ev);
}

static void assert_made_base(const Pb__MsgBase *b, int type, uint64_t tt)
{
    assert_int_equal(b->msg_type, type);
    assert_int_equal(b->timestamp, tt);
    assert_int_equal(b->msg_id, 13);
    assert_int_equal(b->base.n_unknown_fields + b->n_properties, 0);
}

static void made_drops(void **state)
{
    struct msg_rewrite rw = {.collection_id = 11, .partition_id = 12, .shard_name = "unused",
                             .db_name = "d", .collection_name = "c", .new_msg_id = 13};
    struct evbuffer *ev = evbuffer_new();
    Wal__DropCollectionRequest *c;
    Wal__DropPartitionRequest *p;
    uint8_t *out;
    size_t n;

    (void)state;
    out = fuzz_take_element(ev, msg_append_drop_collection(&rw, 99, ev), &n);
    c = wal__drop_collection_request__unpack(NULL, n, out);
    assert_made_base(c->msg_base, MSG_DROP_COLLECTION, 99);
    assert_true(c->collection_id == 11 && c->db_id == 0);
    assert_string_equal(c->db_name, "d");
    assert_string_equal(c->collection_name, "c");
    assert_int_equal(c->base.n_unknown_fields, 0);
    wal__drop_collection_request__free_unpacked(c, NULL);
    free(out);

    out = fuzz_take_element(ev, msg_append_drop_partition(&rw, "p", 99, ev), &n);
    p = wal__drop_partition_request__unpack(NULL, n, out);
    assert_made_base(p->msg_base, MSG_DROP_PARTITION, 99);
    assert_true(p->collection_id == 11 && p->partition_id == 12);
    assert_string_equal(p->partition_name, "p");
    assert_string_equal(p->db_name, "d");
    assert_string_equal(p->collection_name, "c");
    wal__drop_partition_request__free_unpacked(p, NULL);
    free(out);
    evbuffer_free(ev);
}

static const Wal__ScalarField *column_of(const Wal__InsertRequest *i, int64_t field_id)
{
    for (size_t k = 0; k < i->n_fields_data; k++)
        if (i->fields_data[k]->field_id == field_id)
            return i->fields_data[k]->scalars;
    return NULL;
}

static void assert_same_keys(const Wal__ScalarField *column, const Wal__IDs *ids, bool is_string)
{
    if (is_string) {
        assert_int_equal(ids->id_field_case, WAL__IDS__ID_FIELD_STR_ID);
        assert_int_equal(ids->str_id->n_data, column->string_data->n_data);
        for (size_t k = 0; k < ids->str_id->n_data; k++)
            assert_string_equal(ids->str_id->data[k], column->string_data->data[k]);
    } else {
        assert_int_equal(ids->id_field_case, WAL__IDS__ID_FIELD_INT_ID);
        assert_int_equal(ids->int_id->n_data, column->long_data->n_data);
        assert_memory_equal(ids->int_id->data, column->long_data->data,
                            column->long_data->n_data * sizeof(int64_t));
    }
}

static void assert_delete_of(const char *name, bool is_string)
{
    struct msg_rewrite rw = {.collection_id = 11, .partition_id = 12, .shard_name = "v",
                             .db_name = "d", .collection_name = "c", .new_msg_id = 13,
                             .new_tt = 14};
    struct buf *b = read_message(name);
    struct msg_head h = scan_ok(b);
    struct evbuffer *ev = evbuffer_new();
    Wal__InsertRequest *i = wal__insert_request__unpack(NULL, b->size, b->data);
    Wal__DeleteRequest *d;
    struct err err;
    uint8_t *out;
    size_t n;

    if (msg_append_delete_of_insert(&h, b, b->data, b->size, 100, is_string, &rw, ev, &n, &err))
        fail_msg("%s: %s", name, err.text);
    out = fuzz_take_element(ev, n, &n);
    d = wal__delete_request__unpack(NULL, n, out);
    assert_made_base(d->msg_base, MSG_DELETE, 14);
    assert_int_equal(d->msg_base->source_id, i->msg_base->source_id);
    assert_true(d->collection_id == 11 && d->partition_id == 12);
    assert_string_equal(d->shard_name, "v");
    assert_string_equal(d->db_name, "d");
    assert_string_equal(d->collection_name, "c");
    assert_string_equal(d->partition_name, i->partition_name);
    assert_int_equal(d->num_rows, i->num_rows);
    assert_int_equal(d->n_timestamps, i->num_rows);
    for (size_t k = 0; k < d->n_timestamps; k++)
        assert_int_equal(d->timestamps[k], 14);
    assert_same_keys(column_of(i, 100), d->primary_keys, is_string);
    wal__delete_request__free_unpacked(d, NULL);
    wal__insert_request__free_unpacked(i, NULL);
    free(out);

    /* the other kind, or no such column */
    n = 77;
    assert_int_equal(msg_append_delete_of_insert(&h, b, b->data, b->size, 100, !is_string, &rw, ev,
                                                 &n, &err),
                     ERR_PROTO);
    assert_int_equal(err.cls, ERRC_DATA);
    assert_int_equal(msg_append_delete_of_insert(&h, b, b->data, b->size, 555, is_string, &rw, ev,
                                                 &n, &err),
                     ERR_PROTO);
    assert_non_null(strstr(err.text, "field id 555"));
    assert_true(n == 77 && evbuffer_get_length(ev) == 0 && b->refs == 1);
    buf_unref(b);
    evbuffer_free(ev);
}

static void delete_of_insert(void **state)
{
    (void)state;
    assert_delete_of("insert_all_types.bin", false);
    assert_delete_of("insert_all_types_p1_upsert.bin", false);
    assert_delete_of("insert_str_dyn.bin", true);
    assert_delete_of("insert_two_parts_p1.bin", true); /* keys beyond ASCII */
    assert_delete_of("insert_auto_bin.bin", false);    /* keys made by the source */
    assert_delete_of("insert_auto_str.bin", true);
    assert_delete_of("insert_pkey.bin", false);
}

/* A column with that LongArray, as field id 0 (absent). */
static void out_column(struct pb_out *o, const void *array, size_t len)
{
    struct pb_out scalars = {0}, column = {0};

    pb_out_bytes(&scalars, 3, array, len);
    pb_out_bytes(&column, 3, scalars.data, scalars.len);
    pb_out_bytes(o, 13, column.data, column.len);
    pb_out_release(&scalars);
    pb_out_release(&column);
}

static int try_delete(struct pb_out *o, struct err *err)
{
    struct msg_rewrite rw = {.shard_name = "v", .new_tt = 14};
    struct buf *b = take(o);
    struct msg_head h = scan_ok(b);
    struct evbuffer *ev = evbuffer_new();
    size_t n;
    int rc = msg_append_delete_of_insert(&h, b, b->data, b->size, 0, false, &rw, ev, &n, err);

    assert_int_equal(rc == 0, evbuffer_get_length(ev) > 0);
    evbuffer_free(ev);
    buf_unref(b);
    return rc;
}

static void delete_of_insert_counts_keys(void **state)
{
    static const struct {
        const char *array;
        size_t len;
        bool good;
    } cases[] = {
        {"\x0a\x03\x01\xff\x01", 5, true},          /* packed: 1, 255 */
        {"\x08\x01\x08\x02", 4, true},              /* unpacked */
        {"\x08\x01\x0a\x01\x02", 5, true},          /* both */
        {"\x0a\x01\x01", 3, false},                 /* one key for two rows */
        {"\x0a\x03\x01\x02\x03", 5, false},         /* three */
        {"\x0a\x02\x01\xff", 4, false},             /* cut off */
        {"\x08\x01\x08\x02\x10\x01", 6, false},     /* a field that LongArray does not have */
        {"\x0a\x02\x01\x02\x0a", 5, false},         /* no protobuf at its end */
        {"\x0d" "abcd" "\x0d" "abcd", 10, false},   /* wrong wire type */
    };
    const uint64_t t[] = {5, 6};
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct pb_out o = small_insert(t, 2, 2);
        out_column(&o, cases[i].array, cases[i].len);
        assert_int_equal(try_delete(&o, &err), cases[i].good ? 0 : ERR_PROTO);
    }
    struct pb_out twice = small_insert(t, 2, 2);
    out_column(&twice, "\x08\x01\x08\x02", 4);
    out_column(&twice, "\x08\x03\x08\x04", 4);
    assert_int_equal(try_delete(&twice, &err), ERR_PROTO); /* which one? */
}

/* Keys of several KB: by reference, and lengths of more than one byte. */
static void delete_of_large_insert(void **state)
{
    enum { N = 1000 };
    struct msg_rewrite rw = {.shard_name = "v", .new_tt = UINT64_MAX};
    struct evbuffer *ev = evbuffer_new();
    struct pb_out o, array = {0};
    Wal__DeleteRequest *d;
    uint64_t keys[N], times[N];
    struct msg_head h;
    struct buf *b;
    uint8_t *out;
    size_t n;

    (void)state;
    for (size_t i = 0; i < N; i++) {
        keys[i] = UINT64_MAX - i; /* -1, -2, ... */
        times[i] = 5 + i;
    }
    o = small_insert(times, N, N);
    out_packed(&array, 1, keys, N);
    out_column(&o, array.data, array.len);
    pb_out_release(&array);
    b = take(&o);
    h = scan_ok(b);
    assert_int_equal(
        msg_append_delete_of_insert(&h, b, b->data, b->size, 0, false, &rw, ev, &n, NULL), 0);
    assert_int_equal(b->refs, 2);
    out = fuzz_take_element(ev, n, &n);
    assert_int_equal(b->refs, 1);
    d = wal__delete_request__unpack(NULL, n, out);
    assert_true(d && d->n_timestamps == N && d->primary_keys->int_id->n_data == N);
    for (size_t i = 0; i < N; i++)
        assert_true(d->primary_keys->int_id->data[i] == -1 - (int64_t)i &&
                    d->timestamps[i] == UINT64_MAX);
    wal__delete_request__free_unpacked(d, NULL);
    free(out);
    buf_unref(b);
    evbuffer_free(ev);
}

/* ---- operations ---------------------------------------------------------------------------- */

static void assert_target(const char *file, int type, size_t index, const char *db,
                          const char *coll)
{
    struct buf *b = read_message(file);
    char *got_db, *got_coll;

    assert_int_equal(scan_ok(b).type, type);
    assert_true(msg_operation_known(type));
    assert_int_equal(
        msg_operation_target(type, b->data, b->size, index, &got_db, &got_coll, NULL), 0);
    assert_string_equal(got_db, db);
    assert_string_equal(got_coll, coll);
    free(got_db);
    free(got_coll);
    buf_unref(b);
}

static void operation_targets_of_real_requests(void **state)
{
    (void)state;
    assert_target("create_index.bin", MSG_CREATE_INDEX, 0, "default", "all_types");
    assert_target("create_index_other_db.bin", MSG_CREATE_INDEX, 0, "other", "in_other");
    assert_target("drop_index.bin", MSG_DROP_INDEX, 0, "default", "str_dyn");
    assert_target("load_collection.bin", MSG_LOAD_COLLECTION, 0, "default", "all_types");
    assert_target("release_collection_other_db.bin", MSG_RELEASE_COLLECTION, 0, "other",
                  "in_other");
    assert_target("flush.bin", MSG_FLUSH, 0, "default", "all_types");
    assert_target("flush_two.bin", MSG_FLUSH, 0, "default", "all_types");
    assert_target("flush_two.bin", MSG_FLUSH, 1, "default", "str_dyn");
    assert_target("create_database.bin", MSG_CREATE_DATABASE, 0, "other", "");
    assert_target("drop_database.bin", MSG_DROP_DATABASE, 0, "other", "");
}

static void assert_no_target(int type, struct pb_out *o, size_t index, int code, int cls)
{
    struct buf *b = take(o);
    char *db = (char *)1, *coll = (char *)1;
    struct err err;

    assert_int_equal(msg_operation_target(type, b->data, b->size, index, &db, &coll, &err), code);
    assert_int_equal(err.cls, cls);
    assert_true(db == (char *)1 && coll == (char *)1);
    buf_unref(b);
}

static void operation_targets_made(void **state)
{
    static const int with_collection[] = {MSG_ALTER_INDEX, MSG_LOAD_PARTITIONS,
                                          MSG_RELEASE_PARTITIONS, MSG_FLUSH};
    struct pb_out o = {0};
    char *db, *coll;

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        out_base_of(&o, with_collection[i], 5);
        pb_out_str(&o, 3, "c");
        assert_int_equal(
            msg_operation_target(with_collection[i], o.data, o.len, 0, &db, &coll, NULL), 0);
        assert_string_equal(db, "default");
        assert_string_equal(coll, "c");
        free(db);
        free(coll);
        assert_no_target(with_collection[i], &o, 1, ERR_NOT_FOUND, ERRC_DATA);
    }
    /* AlterDatabase: field 3 is db_id */
    pb_out_str(&o, 2, "d");
    pb_out_str(&o, 3, "17");
    assert_int_equal(
        msg_operation_target(MSG_ALTER_DATABASE, o.data, o.len, 0, &db, &coll, NULL), 0);
    assert_string_equal(db, "d");
    assert_string_equal(coll, "");
    free(db);
    free(coll);
    assert_no_target(MSG_ALTER_DATABASE, &o, 1, ERR_NOT_FOUND, ERRC_DATA);
}

static void operation_target_errors(void **state)
{
    struct pb_out o = {0};

    (void)state;
    assert_no_target(108, &o, 0, ERR_UNSUPPORTED, ERRC_USER);
    assert_no_target(MSG_INSERT, &o, 0, ERR_UNSUPPORTED, ERRC_USER);
    assert_no_target(MSG_FLUSH, &o, 0, ERR_NOT_FOUND, ERRC_DATA);
    assert_no_target(MSG_CREATE_INDEX, &o, 0, ERR_PROTO, ERRC_DATA); /* no collection */
    pb_out_u64(&o, 2, 5);
    assert_no_target(MSG_DROP_DATABASE, &o, 0, ERR_PROTO, ERRC_DATA);
    pb_out_u64(&o, 3, 5);
    assert_no_target(MSG_CREATE_INDEX, &o, 0, ERR_PROTO, ERRC_DATA);
    pb_out_bytes(&o, 3, "a\0b", 3); /* as a C string it would name another collection */
    assert_no_target(MSG_CREATE_INDEX, &o, 0, ERR_PROTO, ERRC_DATA);
    pb_out_raw(&o, "\x1a\x05x", 3);
    assert_no_target(MSG_LOAD_COLLECTION, &o, 0, ERR_PROTO, ERRC_DATA);
}

static void type_names(void **state)
{
    (void)state;
    assert_string_equal(msg_type_name(MSG_INSERT), "Insert");
    assert_string_equal(msg_type_name(MSG_CREATE_INDEX), "CreateIndex");
    assert_string_equal(msg_type_name(1602), "OperateUserRole");
    assert_string_equal(msg_type_name(1234), "Unknown");
    assert_true(msg_operation_known(MSG_FLUSH));
    assert_false(msg_operation_known(MSG_INSERT));
    assert_false(msg_operation_known(MSG_TIME_TICK));
    assert_false(msg_operation_known(1602));
    assert_false(msg_operation_known(-1));
}

/* ---- memory out ---------------------------------------------------------------------------- */

static int allocations_left = -1; /* -1: no limit */

static void *limited_malloc(size_t n)
{
    if (allocations_left == 0)
        return NULL;
    if (allocations_left > 0)
        allocations_left--;
    return malloc(n);
}

static void *limited_realloc(void *p, size_t n)
{
    if (allocations_left == 0)
        return NULL;
    return realloc(p, n);
}

/* The n-th allocation of libevent fails, for each n: nothing is appended, nothing is held. */
static void append_without_memory(void **state)
{
    const uint64_t t[] = {5, 6};
    struct msg_rewrite rw = {.shard_name = "v", .new_tt = 14};
    struct pb_out o = small_insert(t, 2, 2);
    struct evbuffer *ev = evbuffer_new();
    const char column[2000] = {1};
    struct msg_head h;
    struct buf *b;
    size_t n = 0, failed = 0;

    (void)state;
    out_column(&o, "\x0a\x02\x01\x02", 4);
    pb_out_bytes(&o, 12, column, sizeof(column)); /* long enough to go by reference */
    b = take(&o);
    h = scan_ok(b);
    for (int limit = 0; n == 0; limit++) {
        allocations_left = limit;
        n = msg_append(&h, b, b->data, b->size, &rw, ev);
        allocations_left = -1;
        assert_int_equal(evbuffer_get_length(ev), n);
        assert_int_equal(b->refs, n ? 2 : 1);
        failed += n == 0;
    }
    assert_true(failed >= 3);
    evbuffer_drain(ev, n);
    failed = 0;
    for (int limit = 0, rc = 1; rc; limit++) {
        struct err err;
        allocations_left = limit;
        rc = msg_append_delete_of_insert(&h, b, b->data, b->size, 0, false, &rw, ev, &n, &err);
        allocations_left = -1;
        assert_int_equal(rc == 0, evbuffer_get_length(ev) > 0);
        if (rc) {
            assert_int_equal(rc, ERR_LIMIT);
            assert_int_equal(err.cls, ERRC_RETRY);
            failed++;
        }
    }
    assert_true(failed >= 2);
    evbuffer_drain(ev, n);
    allocations_left = 0;
    n = msg_append_tick(5, ev);
    allocations_left = -1;
    assert_true(n == 0 && evbuffer_get_length(ev) == 0);
    evbuffer_free(ev);
    buf_unref(b);
}

/* ---- any bytes ----------------------------------------------------------------------------- */

enum { MUTATIONS_EACH = 600, CHANGES_MAX = 4 };
static size_t n_mutants, n_taken;

static void run_mutants(const char *name, struct buf *b)
{
    uint8_t data[8192 + CHANGES_MAX];

    (void)name;
    assert_int_equal(fuzz_msg_one(b->data, b->size), 0);
    for (int i = 0; i < MUTATIONS_EACH; i++) {
        size_t len = b->size, changes = 1 + random_below(CHANGES_MAX);

        memcpy(data, b->data, len);
        while (changes-- > 0 && len > 0)
            mutate(data, &len);
        n_mutants++;
        n_taken += fuzz_msg_one(data, len) == 0;
    }
}

static void corpus_and_mutations(void **state)
{
    (void)state;
    n_mutants = n_taken = 0;
    for_each_message(run_mutants);
    assert_true(n_mutants >= 20000);
    /* both ways are exercised */
    assert_true(n_taken > n_mutants / 10 && n_taken < n_mutants * 9 / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scan_agrees_with_protobuf),
        cmocka_unit_test(scan_known_messages),
        cmocka_unit_test(scan_cut_at_every_byte),
        cmocka_unit_test(scan_bad_base),
        cmocka_unit_test(scan_wrong_wire_types),
        cmocka_unit_test(scan_row_times),
        cmocka_unit_test(scan_base_behind_fields),
        cmocka_unit_test(scan_unknown_type),
        cmocka_unit_test(scan_delete_without_partition),
        cmocka_unit_test(rewrite_agrees_with_protobuf),
        cmocka_unit_test(rewrite_passes_columns_by_reference),
        cmocka_unit_test(made_tick),
        cmocka_unit_test(made_drops),
        cmocka_unit_test(delete_of_insert),
        cmocka_unit_test(delete_of_insert_counts_keys),
        cmocka_unit_test(delete_of_large_insert),
        cmocka_unit_test(operation_targets_of_real_requests),
        cmocka_unit_test(operation_targets_made),
        cmocka_unit_test(operation_target_errors),
        cmocka_unit_test(type_names),
        cmocka_unit_test(append_without_memory),
        cmocka_unit_test(corpus_and_mutations),
    };

    event_set_mem_functions(limited_malloc, limited_realloc, free);
    return cmocka_run_group_tests_name("msg", tests, NULL, NULL);
}
