/*
 * test_target.c - the target's pure parts, and the sink against a peer that answers as scripted: what real servers do
 * only rarely.  test_target_live.c has the real ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <unistd.h>

#include "target_peer.h"

#define CORPUS "test/fuzz/corpus/msg/"

/* ---- uri -------------------------------------------------------------------------------------- */

static void test_uri(void **state)
{
    static const struct {
        const char *uri, *host; /* host NULL: refused */
        uint16_t port;
        bool tls;
    } table[] = {{"http://127.0.0.1:19530", "127.0.0.1", 19530, false},
                 {"https://milvus.example:443", "milvus.example", 443, true},
                 {"HTTP://h:1/", "h", 1, false},
                 {"http://h", "h", 19530, false},
                 {"https://h/", "h", 19530, true},
                 {"http://[::1]:77", "::1", 77, false},
                 {"http://[fe80::1]", "fe80::1", 19530, false},
                 {"http://h:65535", "h", 65535, false},
                 {"", NULL, 0, false},
                 {"h:19530", NULL, 0, false},
                 {"tcp://h:19530", NULL, 0, false},
                 {"http://", NULL, 0, false},
                 {"http:///", NULL, 0, false},
                 {"http://:19530", NULL, 0, false},
                 {"http://h:", NULL, 0, false},
                 {"http://h:0", NULL, 0, false},
                 {"http://h:65536", NULL, 0, false},
                 {"http://h:99999999999", NULL, 0, false},
                 {"http://h:19530x", NULL, 0, false},
                 {"http://h:19530/path", NULL, 0, false},
                 {"http://h//", NULL, 0, false},
                 {"http://user:secret@h:1", NULL, 0, false},
                 {"http://user@h:1", NULL, 0, false},
                 {"http://h?x", NULL, 0, false},
                 {"http://a b:1", NULL, 0, false},
                 {"http://[]:1", NULL, 0, false},
                 {"http://[::1:1", NULL, 0, false},
                 {"http://[::1]x", NULL, 0, false},
                 {"http://::1", NULL, 0, false}};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        char *host = NULL;
        uint16_t port = 0;
        bool tls = false;
        struct err err = {0};
        int rc = target_parse_uri(table[i].uri, &host, &port, &tls, &err);

        if (table[i].host) {
            assert_int_equal(rc, 0);
            assert_string_equal(host, table[i].host);
            assert_int_equal(port, table[i].port);
            assert_int_equal(tls, table[i].tls);
        } else {
            if (rc != ERR_INVALID)
                fail_msg("taken: %s", table[i].uri);
            assert_int_equal(err.cls, ERRC_USER);
            assert_null(strstr(err.text, "secret"));
            assert_null(host);
        }
        free(host);
    }
}

/* ---- status ----------------------------------------------------------------------------------- */

static void test_status(void **state)
{
    static const struct {
        int32_t code, old;
        const char *reason;
        enum err_code err;
        enum err_class cls;
        const char *text;
    } table[] = {{0, 0, "", ERR_OK, 0, ""},
                 {1, 56, "x", ERR_UNAVAILABLE, ERRC_RETRY, "x"},
                 /* Milvus Lite */
                 {1, 1, "x", ERR_INTERNAL, ERRC_RETRY, "x"},
                 {1, 0, "x", ERR_INTERNAL, ERRC_RETRY, "x"},
                 {6, 6, "no such type", ERR_INVALID, ERRC_USER, "no such type"},
                 {6, 6, "database 'x' does not exist", ERR_NOT_FOUND, ERRC_USER, ""},
                 {6, 1, "x", ERR_INTERNAL, ERRC_RETRY, ""},
                 {3, 53, "deny to write", ERR_LIMIT, ERRC_RETRY, "memory"},
                 {7, 54, "deny to write", ERR_LIMIT, ERRC_RETRY, "disk"},
                 {9, 48, "deny to write", ERR_LIMIT, ERRC_RETRY, "quota"},
                 {12, 1, "no", ERR_LIMIT, ERRC_RETRY, "resources"},
                 {8, 49, "rate", ERR_LIMIT, ERRC_RETRY, "rate"},
                 {10, 1, "", ERR_UNSUPPORTED, ERRC_USER, "version"},
                 {100, 1, "absent", ERR_NOT_FOUND, ERRC_USER, "absent"},
                 {100, 4, "absent", ERR_NOT_FOUND, ERRC_USER, "absent"},
                 {200, 1, "", ERR_NOT_FOUND, ERRC_USER, "no reason given"},
                 {500, 1, "", ERR_UNAVAILABLE, ERRC_RETRY, ""},
                 {700, 25, "", ERR_NOT_FOUND, ERRC_USER, ""},
                 {800, 1, "", ERR_NOT_FOUND, ERRC_USER, ""},
                 {801, 1, "", ERR_LIMIT, ERRC_USER, "databases"},
                 {1100, 5, "", ERR_INVALID, ERRC_USER, ""},
                 {1303, 1, "", ERR_STATE, ERRC_USER, "ttMsgEnabled"},
                 {1400, 1, "", ERR_AUTH, ERRC_USER, "token"},
                 {1401, 1, "", ERR_AUTH, ERRC_USER, "privilege"},
                 {1900, 1, "", ERR_STATE, ERRC_USER, "not a standby: set common.ttMsgEnabled: false"},
                 {1901, 1, "", ERR_PROTO, ERRC_DATA, ""},
                 {1902, 1, "", ERR_LIMIT, ERRC_RETRY, ""},
                 {10001, 1, "", ERR_TIMEOUT, ERRC_RETRY, ""},
                 {65535, 1, "anything", ERR_INTERNAL, ERRC_RETRY, "anything"},
                 {4242, 1, "new", ERR_INTERNAL, ERRC_RETRY, "4242"},
                 /* before 2.3 */
                 {0, 4, "gone", ERR_NOT_FOUND, ERRC_USER, "gone"},
                 {0, 56, "", ERR_UNAVAILABLE, ERRC_RETRY, ""},
                 {0, 53, "", ERR_LIMIT, ERRC_RETRY, "memory"},
                 {0, 25, "", ERR_NOT_FOUND, ERRC_USER, ""},
                 {0, 1, "DescribeCollection failed: can't find collection: x", ERR_NOT_FOUND, ERRC_USER, "x"},
                 {0, 15, "meta", ERR_INTERNAL, ERRC_RETRY, "meta"}};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct err err = {0};
        int rc = target_status_err(table[i].code, table[i].old, table[i].reason, "ctx", &err);

        assert_int_equal(rc, table[i].err);
        if (!rc)
            continue;
        assert_int_equal(err.code, table[i].err);
        assert_int_equal(err.cls, table[i].cls);
        assert_memory_equal(err.text, "ctx: ", 5);
        if (!strstr(err.text, table[i].text))
            fail_msg("no \"%s\" in: %s", table[i].text, err.text);
    }
}

/* ---- schema ----------------------------------------------------------------------------------- */

static const char *const texts[] = {
    [NAME] = "field number 2 is `txt` on the source and `text` on the target",
    [ORDER] = "field number 2 is `txt` on the source and `arr` on the target",
    [TYPE] = "field `id`: the data type is Int64 on the source and VarChar on the target",
    [PK] = "field `id`: primary key is true on the source and false on the target",
    [AUTO_ID] = "field `id`: autoID is false on the source and true on the target",
    [PARTITION_KEY] = "field `txt`: partition key is false on the source and true on the target",
    [DYNAMIC] = "field `$meta`: the dynamic field is false on the source and true on the target",
    [ELEMENT] = "field `arr`: the element type is Int64 on the source and type 77 on the target",
    [DIM] = "field `vec`: dim is 8 on the source and 16 on the target",
    [MAX_LENGTH] = "field `txt`: max_length is 64 on the source and 65 on the target",
    [CAPACITY] = "field `arr`: max_capacity is 10 on the source and 11 on the target",
    [NO_PARAM] = "field `vec`: dim is 8 on the source and absent on the target",
    [MORE] = "field number 5 is absent on the source and `extra` on the target",
    [FEWER] = "field number 4 is `vec` on the source and absent on the target",
    [NULLABLE] = "field `txt`: nullable is false on the source and true on the target",
};

static void test_schema_differences_are_named(void **state)
{
    (void)state;
    for (enum change c = SAME; c < N_CHANGES; c++) {
        struct schema source, target;
        struct err err = {0};
        int rc;

        schema_init(&source);
        schema_init(&target);
        change(&target, c);
        rc = target_schema_compare(&source.m, &target.m, &err);
        if (!texts[c]) {
            assert_int_equal(rc, 0);
            continue;
        }
        assert_int_equal(rc, ERR_STATE);
        assert_int_equal(err.cls, ERRC_USER);
        if (strncmp(err.text, texts[c], strlen(texts[c])) != 0)
            fail_msg("not \"%s\" but: %s", texts[c], err.text);
    }
}

/* Fields of users may have the names that the server uses itself: their ids tell. */
static void test_a_user_may_call_a_field_timestamp(void **state)
{
    struct schema source, target;

    (void)state;
    schema_init(&source);
    schema_init(&target);
    add_field(&target, "Timestamp", 5, NULL, NULL)->field_id = 104;
    assert_int_equal(target_schema_compare(&source.m, &target.m, NULL), ERR_STATE);
}

/* ---- shards ----------------------------------------------------------------------------------- */

static void test_vchannel_names(void **state)
{
    static const struct {
        const char *name;
        size_t pchannel_len; /* 0: refused */
        int64_t id;
        size_t number;
    } table[] = {{"by-dev-rootcoord-dml_4_446085283431948311v0", 22, 446085283431948311, 0},
                 {"a_1v12", 1, 1, 12},
                 {"persistent://t/n/x-dml_10_9223372036854775807v3", 25, INT64_MAX, 3},
                 {"v_v_1_2v3", 5, 2, 3},
                 {"", 0, 0, 0},
                 {"by-dev-rootcoord-dml_4", 0, 0, 0},
                 {"dml_4_1v", 0, 0, 0},
                 {"dml_4_v0", 0, 0, 0},
                 {"dml_4_1v0 ", 0, 0, 0},
                 {"dml_4_1v-1", 0, 0, 0},
                 {"dml_4_xv1", 0, 0, 0},
                 {"_1v0", 0, 0, 0},
                 {"1v0", 0, 0, 0},
                 {"dml_4-1v0", 0, 0, 0},
                 {"dml_4_9223372036854775808v0", 0, 0, 0},
                 {"dml_4_1v99999999999999999999", 0, 0, 0}};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct vchannel v;
        bool ok = target_vchannel_parse(table[i].name, &v);

        if (ok != (table[i].pchannel_len > 0))
            fail_msg("%s: %s", table[i].name, ok ? "taken" : "refused");
        if (!ok)
            continue;
        assert_int_equal(v.pchannel_len, table[i].pchannel_len);
        assert_int_equal(v.collection_id, table[i].id);
        assert_int_equal(v.number, table[i].number);
    }
}

struct description {
    Pb__DescribeCollectionResponse m;
    char *v[4], *p[4];
};

static void description_init(struct description *d, const char *const *v, const char *const *p, size_t n)
{
    pb__describe_collection_response__init(&d->m);
    for (size_t i = 0; i < n; i++) {
        d->v[i] = pb_str(v[i]);
        d->p[i] = pb_str(p[i]);
    }
    d->m.collection_id = 7;
    d->m.n_virtual_channel_names = d->m.n_physical_channel_names = n;
    d->m.virtual_channel_names = d->v;
    d->m.physical_channel_names = d->p;
}

static void test_shards_are_paired_by_number(void **state)
{
    static const char *const v[] = {"d_10_7v2", "d_9_7v0", "d_1_7v1"}, *const p[] = {"d_10", "d_9", "d_1"};
    struct description d;
    struct sink_shard *shards;

    (void)state;
    description_init(&d, v, p, 3);
    assert_int_equal(target_shards(&d.m, 3, &shards, NULL), 0);
    assert_string_equal(shards[0].vchannel, "d_9_7v0");
    assert_string_equal(shards[0].pchannel, "d_9");
    assert_string_equal(shards[1].pchannel, "d_1");
    assert_string_equal(shards[2].vchannel, "d_10_7v2");
    target_shards_free(shards, 3);
}

/* A wrong shard name kills the target for good (target.md 3.1): nothing doubtful is taken. */
static void test_doubtful_shards_are_refused(void **state)
{
    static const struct {
        const char *v[2], *p[2];
        size_t n, n_source;
        const char *text;
    } table[] = {
        {{"d_1_7v0", "d_2_7v1"}, {"d_1", "d_2"}, 2, 1, "shards is 1 on the source and 2 on the target"},
        {{"d_1_7v0", NULL}, {"d_1", NULL}, 1, 2, "shards is 2 on the source and 1 on the target"},
        {{"d_1_8v0", NULL}, {"d_1", NULL}, 1, 1, "belongs to another collection"},
        {{"d_1_7v0", NULL}, {"d_2", NULL}, 1, 1, "not on the physical channel"},
        {{"d_1_7v0", NULL}, {"d_", NULL}, 1, 1, "not on the physical channel"},
        {{"d_1_7v1", NULL}, {"d_1", NULL}, 1, 1, "number out of the row"},
        {{"d_1_7v0", "d_2_7v0"}, {"d_1", "d_2"}, 2, 2, "number out of the row"},
        {{"odd", NULL}, {"odd", NULL}, 1, 1, "unknown form"},
        {{NULL, NULL}, {NULL, NULL}, 0, 0, "names 0 virtual"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct description d;
        struct sink_shard *shards = NULL;
        struct err err = {0};

        description_init(&d, table[i].v, table[i].p, table[i].n);
        assert_int_not_equal(target_shards(&d.m, table[i].n_source, &shards, &err), 0);
        assert_int_equal(err.cls, ERRC_USER);
        assert_null(shards);
        if (!strstr(err.text, table[i].text))
            fail_msg("no \"%s\" in: %s", table[i].text, err.text);
    }
}

static void test_shards_need_as_many_physical_channels(void **state)
{
    static const char *const v[] = {"d_1_7v0", "d_2_7v1"}, *const p[] = {"d_1", "d_2"};
    struct description d;
    struct sink_shard *shards;

    (void)state;
    description_init(&d, v, p, 2);
    d.m.n_physical_channel_names = 1;
    assert_int_equal(target_shards(&d.m, 2, &shards, NULL), ERR_PROTO);
}

/* ---- rewriting -------------------------------------------------------------------------------- */

static size_t read_corpus(const char *name, uint8_t *buf, size_t size)
{
    char path[200];
    size_t n;
    FILE *f;

    snprintf(path, sizeof(path), "%s%s", CORPUS, name);
    f = fopen(path, "rb");
    if (!f)
        fail_msg("no %s (run from the repository's root)", path);
    n = fread(buf, 1, size, f);
    fclose(f);
    return n;
}

/* All fields of that number, joined by commas; "-" for none. */
static const char *fields(const struct pb_out *out, uint32_t num)
{
    static char buf[4][300];
    static unsigned turn;
    char *b = buf[turn++ % 4];
    struct pb_scan s = pb_scan_init(out->data, out->len);
    struct pb_field f;
    size_t n = 0;

    strcpy(b, "-");
    while (pb_scan_next(&s, &f) > 0)
        if (f.num == num && f.wire == PB_LEN)
            n += (size_t)snprintf(b + n, 300 - n, "%s%.*s", n ? "," : "", (int)f.len, (const char *)f.data);
    return b;
}

static uint64_t base_time(const uint8_t *data, size_t len)
{
    Pb__CollectionRequest *m = pb__collection_request__unpack(NULL, len, data);
    uint64_t tt;

    assert_non_null(m);
    tt = m->msg_base->timestamp;
    pb__collection_request__free_unpacked(m, NULL);
    assert_true(tt > 0);
    return tt;
}

static void assert_base(const struct pb_out *out, uint64_t tt)
{
    Pb__CollectionRequest *m = pb__collection_request__unpack(NULL, out->len, out->data);

    assert_non_null(m);
    assert_true(m->msg_base->replicate_info->is_replicate);
    assert_int_equal(m->msg_base->replicate_info->msg_timestamp, tt);
    assert_int_equal(m->msg_base->timestamp, 0);
    pb__collection_request__free_unpacked(m, NULL);
}

static int standby_op(int type, const uint8_t *data, size_t len, const char *db, const char *collection,
                      char *const *partitions, size_t n_partitions, struct pb_out *out, struct err *err)
{
    return target_op_rewrite(TARGET_STANDBY, type, data, len, db, collection, partitions, n_partitions, out, err);
}

static void rewrite(const char *corpus, int type, struct pb_out *out)
{
    uint8_t data[4000];
    size_t len = read_corpus(corpus, data, sizeof(data));

    assert_int_equal(standby_op(type, data, len, "tdb", "tcoll", NULL, 0, out, NULL), 0);
    assert_base(out, base_time(data, len));
    assert_string_equal(fields(out, 2), "tdb");
}

static void test_real_requests_get_the_targets_names(void **state)
{
    struct pb_out out = {0};

    (void)state;
    rewrite("create_index_other_db.bin", OP_CREATE_INDEX, &out);
    assert_string_equal(fields(&out, 3), "tcoll");
    assert_string_not_equal(fields(&out, 4), "-"); /* field_name */
    assert_non_null(strstr(fields(&out, 5), "index_type"));
    pb_out_release(&out);
    rewrite("drop_index.bin", OP_DROP_INDEX, &out);
    assert_string_equal(fields(&out, 3), "tcoll");
    assert_string_not_equal(fields(&out, 5), "-"); /* index_name */
    pb_out_release(&out);
    rewrite("flush_two.bin", OP_FLUSH, &out);
    assert_string_equal(fields(&out, 3), "tcoll"); /* only the one of the call */
    pb_out_release(&out);
    rewrite("load_collection_other_db.bin", OP_LOAD_COLLECTION, &out);
    assert_string_equal(fields(&out, 3), "tcoll");
    pb_out_release(&out);
    rewrite("create_database.bin", OP_CREATE_DATABASE, &out);
    assert_string_equal(fields(&out, 3), "-");
    pb_out_release(&out);
}

static void test_other_fields_stay(void **state)
{
    char *kept[] = {pb_str("vier")};
    struct pb_out req = {0}, out = {0};

    (void)state;
    request(&req);
    assert_int_equal(standby_op(OP_LOAD_PARTITIONS, req.data, req.len, "d", "c", NULL, 0, &out, NULL), 0);
    assert_base(&out, 5);
    assert_string_equal(fields(&out, 3), "c");
    assert_string_equal(fields(&out, 4), "four,vier");
    assert_string_equal(fields(&out, 99), "of a newer version");
    pb_out_release(&out);
    assert_int_equal(standby_op(OP_RELEASE_PARTITIONS, req.data, req.len, "d", "c", kept, 1, &out, NULL), 0);
    assert_string_equal(fields(&out, 4), "vier");
    pb_out_release(&out);
    /* db_id (3) is the source's; properties (4) go */
    assert_int_equal(standby_op(OP_ALTER_DATABASE, req.data, req.len, "d", "", NULL, 0, &out, NULL), 0);
    assert_string_equal(fields(&out, 3), "-");
    assert_string_equal(fields(&out, 4), "four,vier");
    pb_out_release(&out);
    /* properties (3) */
    assert_int_equal(standby_op(OP_CREATE_DATABASE, req.data, req.len, "d", "", NULL, 0, &out, NULL), 0);
    assert_string_equal(fields(&out, 3), "three");
    pb_out_release(&out);
    pb_out_release(&req);
}

static void test_cut_requests_are_refused(void **state)
{
    struct pb_out req = {0}, out = {0};
    size_t good = 0;

    (void)state;
    request(&req);
    for (size_t len = 0; len <= req.len; len++) {
        uint8_t *copy = xmalloc(len + 1); /* of exact size for ASan */
        struct err err = {0};

        copy = xrealloc(copy, len ? len : 1);
        memcpy(copy, req.data, len);
        if (standby_op(OP_LOAD_PARTITIONS, copy, len, "d", "c", NULL, 0, &out, &err)) {
            assert_int_equal(err.code, ERR_PROTO);
            assert_int_equal(err.cls, ERRC_DATA);
            assert_null(out.data);
        } else {
            good++;
        }
        pb_out_release(&out);
        free(copy);
    }
    assert_int_equal(good, 8); /* between fields: 7 of them */
    pb_out_release(&req);
    assert_int_equal(standby_op(OP_FLUSH, (const uint8_t *)"\x0a\x02\x18", 3, "d", "c", NULL, 0, &out, NULL),
                     ERR_PROTO);
    assert_int_equal(standby_op(OP_FLUSH, (const uint8_t *)"\x0a\x01\x18", 3, "d", "c", NULL, 0, &out, NULL),
                     ERR_PROTO);
    assert_int_equal(standby_op(OP_FLUSH, (const uint8_t *)"\x08\x01", 2, "d", "c", NULL, 0, &out, NULL),
                     ERR_PROTO);
}

/* ---- the sink against a scripted server ------------------------------------------------------- */

static int setup(void **state)
{
    (void)state;
    return open_sink(TARGET_STANDBY);
}

static void script_description(const char *name, const char *vchannel)
{
    Pb__DescribeCollectionResponse m = PB__DESCRIBE_COLLECTION_RESPONSE__INIT;
    struct schema s;
    char *v[] = {pb_str(vchannel)}, *p[] = {pb_str("d_1")};

    schema_init(&s);
    s.m.name = pb_str(name);
    m.schema = &s.m;
    m.collection_id = 7;
    m.n_virtual_channel_names = m.n_physical_channel_names = 1;
    m.virtual_channel_names = v;
    m.physical_channel_names = p;
    script("DescribeCollection", &m.base);
}

/* The source's collection is only known by its record: schema is not compared. */
static struct outcome find_collection(void)
{
    struct src_shard shards[] = {{.vchannel = pb_str("s_1_5v0"), .pchannel = pb_str("s_1")}};
    struct src_collection c = {.id = 5, .db_name = pb_str("default"), .name = pb_str("c1"), .shards = shards,
                               .n_shards = 1};
    struct outcome o = {0};

    fx.sink->ops->ensure_collection(fx.sink, &c, "tdb", "c1", false, on_collection, &o);
    wait_for(&o);
    return o;
}

/* A collection of the source with partition p1, made where it is missing. */
static struct outcome make_collection(void)
{
    static char *v[] = {(char *)"s_1_5v0"}, *p[] = {(char *)"s_1"};
    Pb__CollectionInfo m = PB__COLLECTION_INFO__INIT;
    struct src_partition parts[] = {{.name = pb_str("_default"), .state = SRC_ALIVE},
                                    {.name = pb_str("p1"), .state = SRC_ALIVE},
                                    {.name = pb_str("p2"), .state = SRC_DROPPING}};
    struct cat_collection cat = {0};
    struct outcome o = {0};
    struct schema s;
    uint8_t schema[1000], value[2000];
    const char *why;

    schema_init(&s);
    for (size_t i = 0; i < s.m.n_fields; i++)
        s.fields[i].field_id = 100 + (int64_t)i;
    m.schema.data = schema;
    m.schema.len = pb__collection_schema__pack(&s.m, schema);
    m.id = 5;
    m.create_time = 1000;
    m.n_virtual_channel_names = m.n_physical_channel_names = 1;
    m.virtual_channel_names = v;
    m.physical_channel_names = p;
    cat.info = cat_info_parse(value, pb__collection_info__pack(&m, value), 5, &why);
    assert_non_null(cat.info);
    cat.pub = (struct src_collection){.id = 5, .db_name = pb_str("default"), .name = cat.info->name, .create_tt = 1000,
                                      .shards = cat.info->shards, .n_shards = 1, .partitions = parts,
                                      .n_partitions = 3, .impl = &cat};
    fx.sink->ops->ensure_collection(fx.sink, &cat.pub, "tdb", "c1", true, on_collection, &o);
    cat_info_free(cat.info); /* the sink keeps what it needs */
    memset(&cat, 0xee, sizeof(cat));
    wait_for(&o);
    return o;
}

static struct outcome replicate(void)
{
    struct evbuffer *msgs = evbuffer_new();
    struct outcome o = {0};

    evbuffer_add(msgs, "\x2a\x03xyz", 5);
    fx.sink->ops->replicate(fx.sink, "ch", 3, 300, msgs, on_batch, &o);
    evbuffer_free(msgs);
    wait_for(&o);
    return o;
}

static void test_a_collection_is_described(void **state)
{
    struct outcome o;

    (void)state;
    script_description("c1", "d_1_7v0");
    script_partitions("p1", 2);
    o = find_collection();
    assert_false(o.failed);
    assert_int_equal(o.n_partitions, 2);
    assert_string_equal(fx.last_auth, "cm9vdDpNaWx2dXM="); /* target.md 1 */
    assert_string_equal(fx.last_db, "tdb");
}

static void test_doubtful_descriptions_are_not_used(void **state)
{
    struct outcome o;

    (void)state;
    script_description("c1", "d_1_8v0");
    o = find_collection();
    assert_true(o.failed && o.err.cls == ERRC_USER);
    assert_non_null(strstr(o.err.text, "tdb.c1"));
    assert_non_null(strstr(o.err.text, "d_1_8v0"));
    script_description("the_real_one", "d_1_7v0");
    o = find_collection();
    assert_true(o.failed && o.err.cls == ERRC_USER);
    assert_non_null(strstr(o.err.text, "alias of the_real_one"));
    script_description("c1", "d_1_7v0");
    script_partitions("p1", 3);
    o = find_collection();
    assert_true(o.failed && o.err.code == ERR_PROTO);
    script_status("DescribeCollection", false, 0, ""); /* success without content */
    o = find_collection();
    assert_true(o.failed && o.err.code == ERR_PROTO && o.err.cls == ERRC_RETRY);
}

static void test_what_was_just_made_may_not_be_seen_at_once(void **state)
{
    struct outcome o;

    (void)state;
    script_status("DescribeCollection", false, 100, "collection not found");
    script_databases();
    script_status("CreateCollection", true, 0, "");
    script_status("DescribeCollection", false, 100, "collection not found");
    script_status("DescribeCollection", false, 100, "collection not found");
    script_description("c1", "d_1_7v0");
    script_partitions(NULL, 1);
    script_status("CreatePartition", true, 0, "");
    script_partitions(NULL, 1);
    script_partitions("p1", 2);
    o = make_collection();
    if (o.failed)
        fail_msg("%s", o.err.text);
    assert_int_equal(o.n_partitions, 2);
}

static void test_a_partition_that_stays_unseen_is_an_error(void **state)
{
    struct outcome o;

    (void)state;
    script_description("c1", "d_1_7v0");
    script_partitions(NULL, 1);
    script_status("CreatePartition", true, 0, "");
    for (int i = 0; i < 11; i++)
        script_partitions(NULL, 1);
    o = make_collection();
    assert_true(o.failed && o.err.cls == ERRC_RETRY);
    assert_non_null(strstr(o.err.text, "p1"));
}

static void test_a_clock_far_behind_is_an_error_of_its_own(void **state)
{
    struct outcome o;

    (void)state;
    script_description("c1", "d_1_7v0");
    script_partitions(NULL, 1);
    for (int i = 0; i < 11; i++)
        script_status("CreatePartition", true, 65535, "key not found[key=x]: collection not found[collection=7]");
    o = make_collection();
    assert_true(o.failed && o.err.cls == ERRC_RETRY);
    assert_non_null(strstr(o.err.text, "clock"));
}

/* Somebody else made it between our question and our request: compared like any other. */
static void test_made_by_somebody_else_is_compared(void **state)
{
    struct outcome o;

    (void)state;
    script_status("DescribeCollection", false, 800, "database not found");
    script_databases();
    script_status("CreateCollection", true, 65535, "create duplicate collection with different parameters, collection: c1");
    script_description("c1", "d_1_7v0");
    script_partitions("p1", 2);
    o = make_collection();
    assert_false(o.failed);
}

static void test_replicate_sends_the_request_as_it_is(void **state)
{
    static const char body[] = "\x0a\x04\x3a\x02\x08\x01\x12\x02" "ch\x18\x03\x20\xac\x02\x2a\x03xyz";
    Pb__ReplicateMessageResponse m = PB__REPLICATE_MESSAGE_RESPONSE__INIT;
    struct outcome o;

    (void)state;
    m.position = pb_str("QUJD");
    script("ReplicateMessage", &m.base);
    o = replicate();
    assert_false(o.failed);
    assert_string_equal(o.pos, "QUJD");
    assert_int_equal(fx.last_bytes, sizeof(body) - 1);
    assert_int_equal(fx.last_crc, crc_add(0, (const uint8_t *)body, sizeof(body) - 1));
    assert_string_equal(fx.last_db, "");
}

static void test_doubt_unless_certainly_refused(void **state)
{
    static const struct {
        const char *grpc, *message;
        int32_t code;
        bool doubt;
        enum err_class cls;
    } table[] = {
        {NULL, NULL, 1, false, ERRC_RETRY},       {NULL, NULL, 1100, false, ERRC_USER},
        {NULL, NULL, 1400, false, ERRC_USER},     {NULL, NULL, 1401, false, ERRC_USER},
        {NULL, NULL, 1900, false, ERRC_USER},     {NULL, NULL, 10, false, ERRC_USER},
        {NULL, NULL, 65535, true, ERRC_RETRY},    {NULL, NULL, 1302, true, ERRC_RETRY},
        {NULL, NULL, 1902, true, ERRC_RETRY},     {NULL, NULL, 10001, true, ERRC_RETRY},
        {NULL, NULL, 100, true, ERRC_RETRY},      {NULL, NULL, 3, true, ERRC_RETRY},
        {"16", "auth", 0, false, ERRC_USER},      {"12", "unknown method", 0, false, ERRC_USER},
        {"8", "grpc: received message larger than max (1 vs. 0)", 0, false, ERRC_USER},
        {"8", "rate", 0, true, ERRC_RETRY},       {"14", "x", 0, true, ERRC_RETRY},
        {"4", "deadline", 0, true, ERRC_RETRY},   {"2", "panic", 0, true, ERRC_RETRY},
        {"13", "internal", 0, true, ERRC_RETRY},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct outcome o;

        if (table[i].grpc)
            script_raw("ReplicateMessage", table[i].grpc, table[i].message);
        else
            script_status("ReplicateMessage", false, table[i].code, "why");
        o = replicate();
        assert_true(o.failed);
        if (o.doubt != table[i].doubt || o.err.cls != table[i].cls)
            fail_msg("row %zu: doubt %d, class %s: %s", i, o.doubt, err_class_name(o.err.cls), o.err.text);
    }
}

static void test_garbage_for_an_answer_is_doubt(void **state)
{
    Pb__StatusResponse m = PB__STATUS_RESPONSE__INIT;
    struct outcome o;

    (void)state;
    script("ReplicateMessage", &m.base);
    fx.steps[0].len = 1; /* a cut tag */
    fx.steps[0].body[0] = 0x80;
    o = replicate();
    assert_true(o.failed && o.doubt);
    assert_int_equal(o.err.code, ERR_PROTO);
}

static void test_a_lost_connection_is_doubt(void **state)
{
    struct evbuffer *msgs = evbuffer_new();
    struct outcome o = {0};
    uint64_t end = clock_mono_ms() + 20000;

    (void)state;
    script_raw("ReplicateMessage", NULL, NULL);
    evbuffer_add(msgs, "\x2a\x03xyz", 5);
    fx.sink->ops->replicate(fx.sink, "ch", 3, 300, msgs, on_batch, &o);
    while (fx.at == 0 && clock_mono_ms() < end)
        loop_once(fx.loop, false);
    peer_cut_all(&fx.peer);
    wait_for(&o);
    assert_true(o.failed && o.doubt);
    assert_int_equal(o.err.cls, ERRC_RETRY);
    evbuffer_free(msgs);
}

static void test_flush_that_hangs_is_over_in_time(void **state)
{
    struct outcome o;

    (void)state;
    target_flush_deadline_ms = 300;
    script_raw("Flush", NULL, NULL);
    o = apply(OP_FLUSH);
    assert_false(o.failed);
    script_status("Flush", false, 500, "channel not found");
    assert_false(apply(OP_FLUSH).failed);
    script_raw("Flush", "16", "auth");
    o = apply(OP_FLUSH);
    assert_true(o.failed && o.err.code == ERR_AUTH);
    target_flush_deadline_ms = 10000;
}

static void test_done_already_is_success(void **state)
{
    static const struct {
        int type;
        const char *method;
        int32_t code;
        const char *reason;
        bool ok;
    } table[] = {{OP_CREATE_DATABASE, "CreateDatabase", 65535, "database already exist: x", true},
                 {OP_CREATE_DATABASE, "CreateDatabase", 65535, "other", false},
                 {OP_DROP_DATABASE, "DropDatabase", 800, "database not found", true},
                 {OP_DROP_DATABASE, "DropDatabase", 65535, "database:x not empty", false},
                 {OP_ALTER_DATABASE, "AlterDatabase", 800, "database not found", true},
                 {OP_DROP_INDEX, "DropIndex", 700, "index not found", true},
                 {OP_DROP_INDEX, "DropIndex", 100, "collection not found", true},
                 {OP_CREATE_INDEX, "CreateIndex", 100, "collection not found", false},
                 {OP_ALTER_INDEX, "AlterIndex", 700, "index not found", false},
                 {OP_LOAD_COLLECTION, "LoadCollection", 700, "index not found", false},
                 {OP_RELEASE_COLLECTION, "ReleaseCollection", 100, "collection not found", true}};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct outcome o;

        script_status(table[i].method, true, table[i].code, table[i].reason);
        o = apply(table[i].type);
        if (o.failed == table[i].ok)
            fail_msg("row %zu: %s", i, o.failed ? o.err.text : "succeeded");
    }
}

static void test_release_leaves_out_what_is_gone(void **state)
{
    struct outcome o;

    (void)state;
    script_status("ReleasePartitions", true, 200, "partition not found[partition=four]");
    script_partitions("vier", 2);
    script_status("ReleasePartitions", true, 0, "");
    assert_false(apply(OP_RELEASE_PARTITIONS).failed);
    script_status("ReleasePartitions", true, 200, "partition not found[partition=four]");
    script_partitions(NULL, 1);
    assert_false(apply(OP_RELEASE_PARTITIONS).failed);
    /* and one more goes in between */
    script_status("ReleasePartitions", true, 200, "partition not found[partition=four]");
    script_partitions("vier", 2);
    script_status("ReleasePartitions", true, 200, "partition not found[partition=vier]");
    o = apply(OP_RELEASE_PARTITIONS);
    assert_true(o.failed && o.err.cls == ERRC_RETRY);
}

static void test_load_waits_for_a_partition_that_comes(void **state)
{
    (void)state;
    script_status("LoadPartitions", true, 200, "partition not found[partition=four]");
    script_status("LoadPartitions", true, 200, "partition not found[partition=four]");
    script_status("LoadPartitions", true, 0, "");
    assert_false(apply(OP_LOAD_PARTITIONS).failed);
}

static void test_bad_pem_files_are_told_at_once(void **state)
{
    struct target_options o = {.uri = "https://127.0.0.1:1", .ca_path = "/nonexistent.pem"};
    struct err err = {0};

    (void)state;
    assert_null(target_open(fx.loop, &o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.text, "/nonexistent.pem"));
}

#define on_peer(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uri),
        cmocka_unit_test(test_status),
        cmocka_unit_test(test_schema_differences_are_named),
        cmocka_unit_test(test_a_user_may_call_a_field_timestamp),
        cmocka_unit_test(test_vchannel_names),
        cmocka_unit_test(test_shards_are_paired_by_number),
        cmocka_unit_test(test_doubtful_shards_are_refused),
        cmocka_unit_test(test_shards_need_as_many_physical_channels),
        cmocka_unit_test(test_real_requests_get_the_targets_names),
        cmocka_unit_test(test_other_fields_stay),
        cmocka_unit_test(test_cut_requests_are_refused),
        on_peer(test_a_collection_is_described),
        on_peer(test_doubtful_descriptions_are_not_used),
        on_peer(test_what_was_just_made_may_not_be_seen_at_once),
        on_peer(test_a_partition_that_stays_unseen_is_an_error),
        on_peer(test_a_clock_far_behind_is_an_error_of_its_own),
        on_peer(test_made_by_somebody_else_is_compared),
        on_peer(test_replicate_sends_the_request_as_it_is),
        on_peer(test_doubt_unless_certainly_refused),
        on_peer(test_garbage_for_an_answer_is_doubt),
        on_peer(test_a_lost_connection_is_doubt),
        on_peer(test_flush_that_hangs_is_over_in_time),
        on_peer(test_done_already_is_success),
        on_peer(test_release_leaves_out_what_is_gone),
        on_peer(test_load_waits_for_a_partition_that_comes),
        on_peer(test_bad_pem_files_are_told_at_once),
    };

    return cmocka_run_group_tests_name("target", tests, NULL, NULL);
}
