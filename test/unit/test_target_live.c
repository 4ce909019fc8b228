/*
 * test_target_live.c - the sink on real servers: MILVUS_STANDBY=host:port (common.ttMsgEnabled false) and
 * MILVUS_PLAIN=host:port, which the suite's runner starts.  MILVUS_PLAIN_TOKEN=user:password, when the plain one has
 * authorization on, adds the login tests.  Without servers nothing runs; MILVUS_CDC_REQUIRE_LIVE=1 makes that a failure.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/buffer.h>
#include <event2/util.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "milvus/catalog_priv.h"
#include "milvus/target_priv.h"
#include "repl/msg.h"

#include "meta.pb-c.h"
#include "wal.pb-c.h"

#define LIMIT_MS 60000
#define WAIT_FOR(cond)                                                                            \
    do {                                                                                          \
        uint64_t end_ = clock_mono_ms() + LIMIT_MS;                                               \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > end_)                                                           \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            loop_once(loop, false);                                                               \
            usleep(500);                                                                          \
        }                                                                                         \
    } while (0)

static struct loop *loop;
static struct sink *sink;        /* of the standby */
static struct grpc_client *hand; /* looks at the standby past the sink */
static char standby[100], plain[100], run[16];
static const char *plain_token;

/* ---- completions ---- */

struct outcome {
    bool done, failed, doubt;
    struct err err;
    char pos[100];
    /* a copy of the described collection */
    int64_t id;
    size_t n_shards, n_partitions;
    struct sink_shard shards[8];
    struct sink_partition partitions[80];
    enum target_mode mode;
    char version[100];
};

static void take_err(struct outcome *o, const struct err *err)
{
    assert_false(o->done);
    o->done = true;
    o->failed = err != NULL;
    if (err)
        o->err = *err;
}

static void on_done(void *arg, const struct err *err)
{
    take_err(arg, err);
}

static void outcome_clear(struct outcome *o)
{
    for (size_t i = 0; i < o->n_shards; i++) {
        free(o->shards[i].vchannel);
        free(o->shards[i].pchannel);
    }
    for (size_t i = 0; i < o->n_partitions; i++)
        free(o->partitions[i].name);
    memset(o, 0, sizeof(*o));
}

static void on_collection(void *arg, const struct err *err, const struct sink_collection *c)
{
    struct outcome *o = arg;

    take_err(o, err);
    if (err)
        return;
    o->id = c->id;
    for (size_t i = 0; i < c->n_shards; i++)
        o->shards[o->n_shards++] =
            (struct sink_shard){xstrdup(c->shards[i].vchannel), xstrdup(c->shards[i].pchannel)};
    for (size_t i = 0; i < c->n_partitions; i++)
        o->partitions[o->n_partitions++] =
            (struct sink_partition){c->partitions[i].id, xstrdup(c->partitions[i].name)};
}

static void on_batch(void *arg, const struct err *err, bool doubt, const char *target_pos)
{
    struct outcome *o = arg;

    take_err(o, err);
    o->doubt = doubt;
    snprintf(o->pos, sizeof(o->pos), "%s", target_pos);
}

static void on_probe(void *arg, const struct err *err, enum target_mode mode, const char *version)
{
    struct outcome *o = arg;

    take_err(o, err);
    o->mode = mode;
    snprintf(o->version, sizeof(o->version), "%s", version);
}

static void assert_ok(const struct outcome *o)
{
    if (o->failed)
        fail_msg("%s", o->err.text);
}

static void assert_err(const struct outcome *o, enum err_code code, enum err_class cls, const char *text)
{
    assert_true(o->failed);
    if (o->err.code != code || o->err.cls != cls || !strstr(o->err.text, text))
        fail_msg("not %s/%s with \"%s\" but %s/%s: %s", err_code_name(code), err_class_name(cls), text,
                 err_code_name(o->err.code), err_class_name(o->err.cls), o->err.text);
}

static uint64_t now_tt(void)
{
    return tt_from_ms(clock_wall_ms());
}

/* ---- a collection of the source, as the catalog gives it ---- */

struct field {
    const char *name;
    int type;
    bool pk, auto_id, partition_key;
    const char *param, *value;
};

struct source {
    struct cat_collection cat; /* pub first in use */
    struct src_partition partitions[20];
    char *name;
};

static const struct field basic[] = {{.name = "id", .type = 5, .pk = true},
                                     {.name = "vec", .type = 101, .param = "dim", .value = "4"},
                                     {.name = "txt", .type = 21, .param = "max_length", .value = "64"}};
enum { N_BASIC = 3, SOURCE_ID = 9000 };

static size_t pack_schema(uint8_t *buf, const char *name, const struct field *f, size_t n, bool dynamic)
{
    Pb__CollectionSchema m = PB__COLLECTION_SCHEMA__INIT;
    Pb__FieldSchema fields[10], *list[10];
    Pb__KeyValuePair params[10], *param_list[10];

    for (size_t i = 0; i < n; i++) {
        pb__field_schema__init(&fields[i]);
        pb__key_value_pair__init(&params[i]);
        list[i] = &fields[i];
        fields[i].field_id = 100 + (int64_t)i;
        fields[i].name = pb_str(f[i].name);
        fields[i].data_type = f[i].type;
        fields[i].is_primary_key = f[i].pk;
        fields[i].auto_id = f[i].auto_id;
        fields[i].is_partition_key = f[i].partition_key;
        param_list[i] = &params[i];
        if (f[i].param) {
            params[i].key = pb_str(f[i].param);
            params[i].value = pb_str(f[i].value);
            fields[i].n_type_params = 1;
            fields[i].type_params = &param_list[i];
        }
    }
    m.name = pb_str(name);
    m.n_fields = n;
    m.fields = list;
    m.enable_dynamic_field = dynamic;
    return pb__collection_schema__pack(&m, buf);
}

static void source_partition(struct source *s, const char *name, enum src_state state)
{
    struct src_collection *c = &s->cat.pub;

    s->partitions[c->n_partitions] = (struct src_partition){.id = 500 + (int64_t)c->n_partitions,
                                                            .name = pb_str(name),
                                                            .state = state,
                                                            .create_tt = c->create_tt};
    c->partitions = s->partitions;
    c->n_partitions++;
}

/* Through the value of the etcd key, so that what ensure_collection gets is the catalog's own. */
static void source_init(struct source *s, const char *name, const struct field *f, size_t n, bool dynamic)
{
    static char *vchannels[] = {(char *)"src-dml_0_9000v0", (char *)"src-dml_1_9000v1"};
    static char *pchannels[] = {(char *)"src-dml_0", (char *)"src-dml_1"};
    static const struct src_pair property = {(char *)"collection.ttl.seconds", (char *)"86400"};
    Pb__CollectionInfo m = PB__COLLECTION_INFO__INIT;
    uint8_t schema[2000], value[4000];
    const char *why = "";
    struct cat_info *info;

    memset(s, 0, sizeof(*s));
    m.id = SOURCE_ID;
    m.schema.data = schema;
    m.schema.len = pack_schema(schema, name, f, n, dynamic);
    m.create_time = now_tt();
    m.n_virtual_channel_names = m.n_physical_channel_names = 2;
    m.virtual_channel_names = vchannels;
    m.physical_channel_names = pchannels;
    m.shards_num = 2;
    m.db_id = 1;
    info = cat_info_parse(value, pb__collection_info__pack(&m, value), SOURCE_ID, &why);
    if (!info)
        fail_msg("%s", why);
    s->cat.info = info;
    s->cat.props = (struct catalog_props){.consistency_level = 2};
    s->cat.pub = (struct src_collection){.id = SOURCE_ID,
                                         .db_id = 1,
                                         .db_name = pb_str("default"),
                                         .name = info->name,
                                         .state = SRC_ALIVE,
                                         .create_tt = info->create_tt,
                                         .shards = info->shards,
                                         .n_shards = info->n_shards,
                                         .properties = &property,
                                         .n_properties = 1,
                                         .impl = &s->cat};
    for (size_t i = 0; i < n; i++)
        s->cat.props.has_partition_key |= f[i].partition_key;
    if (!s->cat.props.has_partition_key)
        source_partition(s, "_default", SRC_ALIVE);
}

static void source_release(struct source *s)
{
    cat_info_free(s->cat.info);
}

/* Unique per run: "<base>_<run>". */
static const char *unique(const char *base)
{
    static char buf[4][64];
    static unsigned turn;
    char *b = buf[turn++ % 4];

    snprintf(b, sizeof(buf[0]), "%s_%s", base, run);
    return b;
}

/* ---- the sink's operations, waited for ---- */

static void ensure_on(struct sink *on, struct outcome *o, const struct source *s, const char *db, const char *name,
                      bool create)
{
    outcome_clear(o);
    on->ops->ensure_collection(on, &s->cat.pub, db, name, create, on_collection, o);
    assert_false(o->done);
    WAIT_FOR(o->done);
}

static void ensure(struct outcome *o, const struct source *s, const char *db, const char *name, bool create)
{
    ensure_on(sink, o, s, db, name, create);
}

static void ensure_db(struct outcome *o, const char *db)
{
    outcome_clear(o);
    sink->ops->ensure_database(sink, db, now_tt(), on_done, o);
    assert_false(o->done);
    WAIT_FOR(o->done);
}

static void drop(struct outcome *o, const char *db, const char *name)
{
    outcome_clear(o);
    sink->ops->drop_collection(sink, db, name, now_tt(), on_done, o);
    WAIT_FOR(o->done);
}

static void drop_part(struct sink *on, struct outcome *o, const char *db, const char *name, const char *partition)
{
    outcome_clear(o);
    on->ops->drop_partition(on, db, name, partition, now_tt(), on_done, o);
    assert_false(o->done);
    WAIT_FOR(o->done);
}

/* A user's request of the source's database "srcdb" and collection "srccoll". */
static void request_begin(struct pb_out *out, int type, const char *db, const char *collection)
{
    struct pb_out base = {0};

    pb_out_u64(&base, 1, (uint64_t)type);
    pb_out_u64(&base, 2, 77);
    pb_out_u64(&base, 3, now_tt());
    pb_out_bytes(out, 1, base.data, base.len);
    pb_out_release(&base);
    pb_out_str(out, 2, db);
    if (collection)
        pb_out_str(out, 3, collection);
}

static void apply_on(struct sink *on, struct outcome *o, int type, struct pb_out *req, const char *db,
                     const char *collection)
{
    outcome_clear(o);
    on->ops->apply_operation(on, type, req->data, req->len, db, collection, on_done, o);
    assert_false(o->done);
    pb_out_release(req); /* the sink has its own copy */
    WAIT_FOR(o->done);
}

static void apply(struct outcome *o, int type, struct pb_out *req, const char *db, const char *collection)
{
    apply_on(sink, o, type, req, db, collection);
}

static void apply_simple(struct outcome *o, int type, const char *db, const char *collection)
{
    struct pb_out req = {0};

    request_begin(&req, type, "srcdb", "srccoll");
    apply(o, type, &req, db, collection);
}

static void add_param(struct pb_out *req, uint32_t num, const char *key, const char *value)
{
    struct pb_out kv = {0};

    pb_out_str(&kv, 1, key);
    pb_out_str(&kv, 2, value);
    pb_out_bytes(req, num, kv.data, kv.len);
    pb_out_release(&kv);
}

static void create_index(struct outcome *o, const char *db, const char *collection, const char *index_type)
{
    struct pb_out req = {0};

    request_begin(&req, OP_CREATE_INDEX, "srcdb", "srccoll");
    pb_out_str(&req, 4, "vec");
    add_param(&req, 5, "index_type", index_type);
    add_param(&req, 5, "metric_type", "L2");
    if (strcmp(index_type, "IVF_FLAT") == 0)
        add_param(&req, 5, "params", "{\"nlist\": 16}");
    pb_out_str(&req, 6, "vec_idx");
    apply(o, OP_CREATE_INDEX, &req, db, collection);
}

static void load_partition(struct sink *on, struct outcome *o, int type, const char *collection, const char *a,
                           const char *b)
{
    struct pb_out req = {0};

    request_begin(&req, type, "srcdb", "srccoll");
    pb_out_str(&req, 4, a);
    if (b)
        pb_out_str(&req, 4, b);
    if (type == OP_LOAD_PARTITIONS)
        pb_out_u64(&req, 5, 1);
    apply_on(on, o, type, &req, "default", collection);
}

/* ---- looking at the standby ---- */

struct look {
    bool done;
    int status;
    uint8_t *data;
    size_t len;
};

static void on_look(void *arg, const struct grpc_result *r)
{
    struct look *l = arg;

    l->done = true;
    l->status = r->status;
    l->len = r->body_len;
    l->data = xmalloc(r->body_len + 1);
    if (r->body_len)
        memcpy(l->data, r->body, r->body_len);
}

static struct look look(const char *path, struct pb_out *req)
{
    struct evbuffer *body = evbuffer_new();
    struct look l = {0};

    evbuffer_add(body, req->data, req->len);
    pb_out_release(req);
    grpc_unary(hand, path, NULL, body, 20000, on_look, &l);
    evbuffer_free(body);
    WAIT_FOR(l.done);
    return l;
}

/* Field num of a message; the last one wins. */
static bool find(const uint8_t *data, size_t len, uint32_t num, struct pb_field *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    bool found = false;

    while (pb_scan_next(&s, &f) > 0)
        if (f.num == num) {
            *ret = f;
            found = true;
        }
    return found;
}

#define SERVICE "/milvus.proto.milvus.MilvusService/"

static size_t n_indexes(const char *db, const char *collection)
{
    struct pb_out req = {0};
    struct look l;
    struct pb_scan s;
    struct pb_field f;
    size_t n = 0;

    pb_out_str(&req, 2, db);
    pb_out_str(&req, 3, collection);
    l = look(SERVICE "DescribeIndex", &req);
    assert_int_equal(l.status, 0);
    s = pb_scan_init(l.data, l.len);
    while (pb_scan_next(&s, &f) > 0)
        n += f.num == 2;
    free(l.data);
    return n;
}

/* 0 not there, 1 not loaded, 2 loading, 3 loaded */
static uint64_t load_state(const char *db, const char *collection, const char *partition)
{
    struct pb_out req = {0};
    struct look l;
    struct pb_field f = {0};

    pb_out_str(&req, 2, collection);
    if (partition)
        pb_out_str(&req, 3, partition);
    pb_out_str(&req, 4, db);
    l = look(SERVICE "GetLoadState", &req);
    assert_int_equal(l.status, 0);
    if (!find(l.data, l.len, 2, &f))
        f.varint = 0;
    free(l.data);
    return f.varint;
}

/* A varint field of DescribeCollection's answer. */
static uint64_t described(const char *db, const char *collection, uint32_t num)
{
    struct pb_out req = {0};
    struct look l;
    struct pb_field f = {0};

    pb_out_str(&req, 2, db);
    pb_out_str(&req, 3, collection);
    l = look(SERVICE "DescribeCollection", &req);
    assert_int_equal(l.status, 0);
    if (!find(l.data, l.len, num, &f))
        f.varint = 0;
    free(l.data);
    return f.varint;
}

static bool has_property(const char *db, const char *collection, const char *key, const char *value)
{
    struct pb_out req = {0}, want = {0};
    struct look l;
    bool found;

    pb_out_str(&req, 2, db);
    pb_out_str(&req, 3, collection);
    l = look(SERVICE "DescribeCollection", &req);
    pb_out_str(&want, 1, key);
    pb_out_str(&want, 2, value);
    found = memmem(l.data, l.len, want.data, want.len) != NULL;
    pb_out_release(&want);
    free(l.data);
    return found;
}

/* count(*), or -1 while the server cannot say. */
static int64_t count_rows(const char *collection)
{
    struct pb_out req = {0};
    struct look l;
    struct pb_field f, g = {0};
    int64_t n = -1;

    pb_out_str(&req, 2, "default");
    pb_out_str(&req, 3, collection);
    pb_out_str(&req, 5, "count(*)");
    pb_out_u64(&req, 11, 3); /* eventually: what the ticks sent let it see */
    l = look(SERVICE "Query", &req);
    /* fields_data 2 {scalars 3 {long_data 3 {data 1, packed}}} */
    if (l.status == 0 && find(l.data, l.len, 2, &f) && find(f.data, f.len, 3, &g) && find(g.data, g.len, 3, &f)) {
        n = 0;
        if (find(f.data, f.len, 1, &g) && g.len > 0)
            n = g.data[0];
    }
    free(l.data);
    return n;
}

/* ---- data ---- */

static void add_msg(struct evbuffer *out, const ProtobufCMessage *m)
{
    size_t len = protobuf_c_message_get_packed_size(m);
    uint8_t *data = xmalloc(len);
    struct pb_out head = {0};

    protobuf_c_message_pack(m, data);
    pb_out_bytes(&head, 5, data, len);
    evbuffer_add(out, head.data, head.len);
    pb_out_release(&head);
    free(data);
}

/* Two rows. */
static void add_insert(struct evbuffer *out, int64_t collection_id, int64_t partition_id, const char *vchannel,
                       uint64_t tt)
{
    Wal__InsertRequest m = WAL__INSERT_REQUEST__INIT;
    Pb__MsgBase base = PB__MSG_BASE__INIT;
    Wal__FieldData f[3], *list[3];
    Wal__ScalarField ids = WAL__SCALAR_FIELD__INIT, texts = WAL__SCALAR_FIELD__INIT;
    Wal__LongArray longs = WAL__LONG_ARRAY__INIT;
    Wal__StringArray strings = WAL__STRING_ARRAY__INIT;
    int64_t keys[] = {1, 2}, row_ids[] = {11, 12};
    uint64_t times[] = {tt, tt};
    char *values[] = {pb_str("a"), pb_str("b")};
    float numbers[8] = {0.5f, 1, 2, 3, 4, 5, 6, 7};
    struct pb_out floats = {0}, vectors = {0};

    for (size_t i = 0; i < 3; i++) {
        wal__field_data__init(&f[i]);
        list[i] = &f[i];
        f[i].field_id = 100 + (int64_t)i;
        f[i].field_name = pb_str(basic[i].name);
        f[i].type = basic[i].type;
    }
    longs.n_data = 2;
    longs.data = keys;
    ids.data_case = WAL__SCALAR_FIELD__DATA_LONG_DATA;
    ids.long_data = &longs;
    f[0].scalars = &ids;
    pb_out_bytes(&floats, 1, numbers, sizeof(numbers));
    pb_out_u64(&vectors, 1, 4);
    pb_out_bytes(&vectors, 2, floats.data, floats.len);
    f[1].vectors = (ProtobufCBinaryData){vectors.len, vectors.data};
    strings.n_data = 2;
    strings.data = values;
    texts.data_case = WAL__SCALAR_FIELD__DATA_STRING_DATA;
    texts.string_data = &strings;
    f[2].scalars = &texts;
    base.msg_type = MSG_INSERT;
    base.msg_id = (int64_t)tt;
    base.timestamp = tt;
    m.msg_base = &base;
    m.shard_name = pb_str(vchannel);
    m.collection_id = collection_id;
    m.partition_id = partition_id;
    m.n_timestamps = m.n_row_ids = 2;
    m.timestamps = times;
    m.row_ids = row_ids;
    m.n_fields_data = 3;
    m.fields_data = list;
    m.num_rows = 2;
    m.version = 1;
    add_msg(out, &m.base);
    pb_out_release(&floats);
    pb_out_release(&vectors);
}

static void replicate_on(struct sink *on, struct outcome *o, const char *pchannel, uint64_t tt, struct evbuffer *msgs)
{
    outcome_clear(o);
    on->ops->replicate(on, pchannel, tt, tt, msgs, on_batch, o);
    assert_false(o->done);
    assert_int_equal(evbuffer_get_length(msgs), 0); /* moved */
    WAIT_FOR(o->done);
}

/* A tick on each physical channel of the collection. */
static void tick(const struct outcome *coll, uint64_t tt)
{
    struct evbuffer *msgs = evbuffer_new();
    struct outcome o = {0};

    for (size_t i = 0; i < coll->n_shards; i++) {
        msg_append_tick(tt, msgs);
        replicate_on(sink, &o, coll->shards[i].pchannel, tt, msgs);
        assert_ok(&o);
    }
    evbuffer_free(msgs);
}

static int64_t partition_id(const struct outcome *o, const char *name)
{
    for (size_t i = 0; i < o->n_partitions; i++)
        if (strcmp(o->partitions[i].name, name) == 0)
            return o->partitions[i].id;
    return 0;
}

/* ---- tests: probe ---- */

static void probe(struct outcome *o, const char *uri, const char *token, unsigned timeout_ms)
{
    struct target_options opt = {.uri = uri, .token = token, .connect_timeout_ms = timeout_ms};

    outcome_clear(o);
    assert_non_null(target_probe_start(loop, &opt, on_probe, o));
    assert_false(o->done);
    WAIT_FOR(o->done);
}

static void test_probe_tells_the_mode(void **state)
{
    struct outcome o = {0};

    (void)state;
    probe(&o, standby, NULL, 10000);
    assert_ok(&o);
    assert_int_equal(o.mode, TARGET_STANDBY);
    assert_string_not_equal(o.version, "");
    probe(&o, plain, plain_token, 10000);
    assert_ok(&o);
    assert_int_equal(o.mode, TARGET_PLAIN);
}

static void test_probe_names_the_address_that_does_not_answer(void **state)
{
    struct outcome o = {0};

    (void)state;
    probe(&o, "http://127.0.0.1:1", NULL, 300);
    assert_true(o.failed);
    assert_int_equal(o.err.cls, ERRC_RETRY);
    assert_non_null(strstr(o.err.text, "127.0.0.1:1"));
    assert_non_null(strstr(o.err.text, "refused"));
    probe(&o, "http://", NULL, 300);
    assert_err(&o, ERR_INVALID, ERRC_USER, "uri");
}

static void test_probe_cancelled_says_nothing(void **state)
{
    struct target_options opt = {.uri = standby};
    struct outcome o = {0}, other = {0};

    (void)state;
    target_probe_cancel(target_probe_start(loop, &opt, on_probe, &o));
    opt.uri = "ftp://x";
    target_probe_cancel(target_probe_start(loop, &opt, on_probe, &o));
    target_probe_cancel(NULL);
    probe(&other, standby, NULL, 10000); /* the cancelled one would have been first */
    assert_false(o.done);
}

static void test_wrong_password_is_for_a_human(void **state)
{
    struct outcome o = {0};
    struct target_options opt = {.uri = plain, .token = "root:wrong"};
    struct evbuffer *msgs = evbuffer_new();
    struct sink *s;

    (void)state;
    probe(&o, plain, "root:wrong", 10000);
    assert_err(&o, ERR_AUTH, ERRC_USER, "check the token");
    assert_null(strstr(o.err.text, "root:wrong"));
    s = target_open(loop, &opt, NULL);
    msg_append_tick(now_tt(), msgs);
    replicate_on(s, &o, "x-dml_0", now_tt(), msgs);
    assert_err(&o, ERR_AUTH, ERRC_USER, "check the token");
    assert_false(o.doubt);
    target_close(s);
    evbuffer_free(msgs);
}

/* ---- tests: collections ---- */

static void test_collection_is_made_once(void **state)
{
    struct outcome a = {0}, b = {0};
    struct source s;
    const char *name = unique("made");
    uint64_t gen;

    (void)state;
    source_init(&s, "other_name_on_the_source", basic, N_BASIC, true);
    source_partition(&s, "p1", SRC_ALIVE);
    source_partition(&s, "p2", SRC_DROPPING);
    ensure(&a, &s, "default", name, false);
    assert_err(&a, ERR_NOT_FOUND, ERRC_USER, name);
    ensure(&a, &s, "default", name, true);
    assert_ok(&a);
    gen = sink->ops->generation(sink);
    assert_true(gen > 0);
    assert_int_equal(a.n_shards, 2);
    for (size_t i = 0; i < 2; i++) {
        char tail[60];
        size_t len = strlen(a.shards[i].vchannel);
        snprintf(tail, sizeof(tail), "_%lldv%zu", (long long)a.id, i);
        assert_string_equal(a.shards[i].vchannel + len - strlen(tail), tail);
        assert_memory_equal(a.shards[i].vchannel, a.shards[i].pchannel, strlen(a.shards[i].pchannel));
    }
    assert_int_equal(a.n_partitions, 2);
    assert_true(partition_id(&a, "_default") != 0 && partition_id(&a, "p1") != 0);
    assert_true(has_property("default", name, "collection.ttl.seconds", "86400"));
    assert_int_equal(described("default", name, 6), s.cat.pub.create_tt); /* created_timestamp */
    assert_int_equal(described("default", name, 11), 2);                  /* consistency_level */

    ensure(&b, &s, "default", name, true);
    assert_ok(&b);
    assert_int_equal(b.id, a.id);
    source_partition(&s, "p3", SRC_ALIVE);
    ensure(&b, &s, "default", name, false);
    assert_ok(&b);
    assert_int_equal(b.n_partitions, 2); /* only looked */
    ensure(&b, &s, "default", name, true);
    assert_ok(&b);
    assert_int_equal(b.n_partitions, 3);
    assert_int_equal(partition_id(&a, "p1"), partition_id(&b, "p1"));
    assert_int_equal(sink->ops->generation(sink), gen);

    drop_part(sink, &b, "default", name, "p3");
    assert_ok(&b);
    drop_part(sink, &b, "default", name, "p3");
    assert_ok(&b);
    s.cat.pub.impl = NULL; /* the source forgot it: still found, to be dropped */
    ensure(&b, &s, "default", name, true);
    assert_ok(&b);
    assert_int_equal(b.n_partitions, 2);
    drop(&b, "default", name);
    assert_ok(&b);
    drop(&b, "default", name);
    assert_ok(&b);
    drop_part(sink, &b, "default", name, "p1");
    assert_ok(&b);
    ensure(&b, &s, "default", name, true);
    assert_err(&b, ERR_NOT_FOUND, ERRC_USER, name);
    outcome_clear(&a);
    outcome_clear(&b);
    source_release(&s);
}

/*
 * The target looks a collection up at its own time when it makes a partition: "collection not found" until its clock
 * has passed the source's create time.  Clocks of two clusters differ, and a TSO lags some ms.
 */
static void test_a_source_whose_clock_is_ahead(void **state)
{
    struct outcome o = {0};
    struct source s;
    const char *name = unique("ahead");

    (void)state;
    source_init(&s, name, basic, N_BASIC, false);
    s.cat.pub.create_tt = now_tt() + tt_from_ms(1000);
    source_partition(&s, "p1", SRC_ALIVE);
    ensure(&o, &s, "default", name, true);
    assert_ok(&o);
    assert_true(partition_id(&o, "p1") != 0);
    drop(&o, "default", name);
    assert_ok(&o);
    /* a drop needs no such wait */
    s.cat.pub.create_tt = now_tt() + tt_from_ms(60000);
    s.cat.pub.n_partitions = 1;
    ensure(&o, &s, "default", name, true);
    assert_ok(&o);
    drop(&o, "default", name);
    assert_ok(&o);
    ensure(&o, &s, "default", name, false);
    assert_err(&o, ERR_NOT_FOUND, ERRC_USER, name);
    outcome_clear(&o);
    source_release(&s);
}

static void test_database_is_made_where_missing(void **state)
{
    struct outcome o = {0};
    struct source s;
    const char *db = unique("db"), *db2 = unique("db2");
    struct pb_out req = {0};

    (void)state;
    ensure_db(&o, "default");
    assert_ok(&o);
    ensure_db(&o, db2);
    assert_ok(&o);
    ensure_db(&o, db2);
    assert_ok(&o);
    source_init(&s, "coll", basic, N_BASIC, false);
    drop(&o, db, "coll"); /* not even the database */
    assert_ok(&o);
    ensure(&o, &s, db, "coll", true);
    assert_ok(&o);
    ensure(&o, &s, "default", "coll_of_another_db", false);
    assert_true(o.failed);
    drop(&o, db, "coll");
    assert_ok(&o);
    request_begin(&req, OP_DROP_DATABASE, "srcdb", NULL);
    apply(&o, OP_DROP_DATABASE, &req, db, "");
    assert_ok(&o);
    request_begin(&req, OP_DROP_DATABASE, "srcdb", NULL);
    apply(&o, OP_DROP_DATABASE, &req, db, "");
    assert_ok(&o);
    for (int i = 0; i < 2; i++) {
        request_begin(&req, OP_CREATE_DATABASE, "srcdb", NULL);
        apply(&o, OP_CREATE_DATABASE, &req, db, "");
        assert_ok(&o);
    }
    request_begin(&req, OP_DROP_DATABASE, "srcdb", NULL);
    apply(&o, OP_DROP_DATABASE, &req, db, "");
    assert_ok(&o);
    request_begin(&req, OP_DROP_DATABASE, "srcdb", NULL);
    apply(&o, OP_DROP_DATABASE, &req, db2, "");
    assert_ok(&o);
    source_release(&s);
    outcome_clear(&o);
}

static void test_partition_key_keeps_its_partitions(void **state)
{
    static const struct field keyed[] = {{.name = "id", .type = 5, .pk = true},
                                         {.name = "tenant", .type = 5, .partition_key = true},
                                         {.name = "vec", .type = 101, .param = "dim", .value = "4"}};
    struct outcome o = {0};
    struct source s;
    const char *name = unique("keyed");

    (void)state;
    source_init(&s, name, keyed, 3, false);
    source_partition(&s, "_default_0", SRC_ALIVE);
    source_partition(&s, "_default_1", SRC_ALIVE);
    source_partition(&s, "_default_2", SRC_ALIVE);
    ensure(&o, &s, "default", name, true);
    assert_ok(&o);
    assert_int_equal(o.n_partitions, 3);
    assert_true(partition_id(&o, "_default_2") != 0);
    source_partition(&s, "_default_3", SRC_ALIVE);
    ensure(&o, &s, "default", name, true);
    assert_err(&o, ERR_STATE, ERRC_USER, "is 4 on the source and 3 on the target");
    assert_non_null(strstr(o.err.text, name));
    drop(&o, "default", name);
    assert_ok(&o);
    source_release(&s);
    outcome_clear(&o);
}

static void test_another_schema_is_refused(void **state)
{
    struct field changed[N_BASIC];
    struct outcome o = {0};
    struct source s;
    const char *name = unique("schema");

    (void)state;
    source_init(&s, name, basic, N_BASIC, false);
    ensure(&o, &s, "default", name, true);
    assert_ok(&o);
    source_release(&s);
    memcpy(changed, basic, sizeof(basic));
    changed[1].value = "8";
    source_init(&s, name, changed, N_BASIC, false);
    ensure(&o, &s, "default", name, true);
    assert_err(&o, ERR_STATE, ERRC_USER, "field `vec`: dim is 8 on the source and 4 on the target");
    assert_non_null(strstr(o.err.text, name));
    source_release(&s);
    source_init(&s, name, basic, N_BASIC, true);
    ensure(&o, &s, "default", name, true);
    assert_err(&o, ERR_STATE, ERRC_USER, "dynamic field is true on the source and false on the target");
    source_release(&s);
    source_init(&s, name, basic, N_BASIC, false);
    s.cat.pub.n_shards = 1;
    ensure(&o, &s, "default", name, true);
    assert_err(&o, ERR_STATE, ERRC_USER, "shards is 1 on the source and 2 on the target");
    s.cat.pub.n_shards = 2;
    drop(&o, "default", name);
    assert_ok(&o);
    source_release(&s);
    outcome_clear(&o);
}

static void test_partitions_can_be_left_alone(void **state)
{
    struct target_options opt = {.uri = standby, .ignore_partition = true};
    struct sink *s = target_open(loop, &opt, NULL);
    struct outcome o = {0};
    struct source src;
    const char *name = unique("noparts");

    (void)state;
    source_init(&src, name, basic, N_BASIC, false);
    source_partition(&src, "p1", SRC_ALIVE);
    ensure_on(s, &o, &src, "default", name, true);
    assert_ok(&o);
    assert_int_equal(o.n_partitions, 1);
    drop_part(s, &o, "default", name, "_default"); /* would be refused */
    assert_ok(&o);
    create_index(&o, "default", name, "FLAT");
    assert_ok(&o);
    load_partition(s, &o, OP_LOAD_PARTITIONS, name, "p1", NULL); /* not there: left out */
    assert_ok(&o);
    assert_int_equal(load_state("default", name, NULL), 1);
    target_close(s);
    drop(&o, "default", name);
    assert_ok(&o);
    source_release(&src);
    outcome_clear(&o);
}

/* ---- tests: operations ---- */

static void test_operations_can_be_repeated(void **state)
{
    struct outcome o = {0};
    struct source s;
    const char *name = unique("ops");
    struct pb_out req = {0};

    (void)state;
    source_init(&s, "srccoll", basic, N_BASIC, false);
    source_partition(&s, "p1", SRC_ALIVE);
    ensure(&o, &s, "default", name, true);
    assert_ok(&o);
    for (int i = 0; i < 2; i++) {
        create_index(&o, "default", name, "FLAT");
        assert_ok(&o);
    }
    assert_int_equal(n_indexes("default", name), 1);
    create_index(&o, "default", name, "IVF_FLAT");
    assert_err(&o, ERR_EXISTS, ERRC_USER, "index");
    assert_non_null(strstr(o.err.text, name));

    for (int i = 0; i < 2; i++) {
        apply_simple(&o, OP_LOAD_COLLECTION, "default", name);
        assert_ok(&o);
    }
    assert_true(load_state("default", name, NULL) >= 2);
    request_begin(&req, OP_DROP_INDEX, "srcdb", "srccoll");
    pb_out_str(&req, 4, "vec");
    pb_out_str(&req, 5, "vec_idx");
    apply(&o, OP_DROP_INDEX, &req, "default", name);
    assert_true(o.failed); /* loaded */
    assert_int_equal(o.err.cls, ERRC_RETRY);
    for (int i = 0; i < 2; i++) {
        apply_simple(&o, OP_RELEASE_COLLECTION, "default", name);
        assert_ok(&o);
    }
    WAIT_FOR(load_state("default", name, NULL) == 1);
    for (int i = 0; i < 2; i++) {
        load_partition(sink, &o, OP_LOAD_PARTITIONS, name, "p1", NULL);
        assert_ok(&o);
    }
    assert_true(load_state("default", name, "p1") >= 2);
    assert_int_equal(load_state("default", name, "_default"), 1);
    for (int i = 0; i < 2; i++) {
        load_partition(sink, &o, OP_RELEASE_PARTITIONS, name, "p1", NULL);
        assert_ok(&o);
    }
    WAIT_FOR(load_state("default", name, "p1") == 1);
    /* dropped on the source since: the rest is loaded all the same */
    load_partition(sink, &o, OP_LOAD_PARTITIONS, name, "gone", "p1");
    assert_ok(&o);
    assert_true(load_state("default", name, "p1") >= 2);
    load_partition(sink, &o, OP_RELEASE_PARTITIONS, name, "gone", "p1");
    assert_ok(&o);
    WAIT_FOR(load_state("default", name, "p1") == 1);
    load_partition(sink, &o, OP_RELEASE_PARTITIONS, name, "gone", NULL);
    assert_ok(&o);
    for (int i = 0; i < 2; i++) {
        request_begin(&req, OP_DROP_INDEX, "srcdb", "srccoll");
        pb_out_str(&req, 4, "vec");
        pb_out_str(&req, 5, "vec_idx");
        apply(&o, OP_DROP_INDEX, &req, "default", name);
        assert_ok(&o);
    }
    assert_int_equal(n_indexes("default", name), 0);
    drop(&o, "default", name);
    assert_ok(&o);
    apply_simple(&o, OP_RELEASE_COLLECTION, "default", name);
    assert_ok(&o);
    create_index(&o, "default", name, "FLAT");
    assert_err(&o, ERR_NOT_FOUND, ERRC_USER, name);
    source_release(&s);
    outcome_clear(&o);
}

static void test_operations_go_to_the_mapped_database(void **state)
{
    struct outcome o = {0};
    struct source s;
    const char *db = unique("opdb"), *name = "same";
    struct pb_out req = {0};

    (void)state;
    source_init(&s, "srccoll", basic, N_BASIC, false);
    ensure(&o, &s, db, name, true);
    assert_ok(&o);
    create_index(&o, db, name, "FLAT");
    assert_ok(&o);
    assert_int_equal(n_indexes(db, name), 1);
    drop(&o, db, name);
    assert_ok(&o);
    request_begin(&req, OP_DROP_DATABASE, "srcdb", NULL);
    apply(&o, OP_DROP_DATABASE, &req, db, "");
    assert_ok(&o);
    source_release(&s);
    outcome_clear(&o);
}

static void test_unknown_operations_are_named(void **state)
{
    struct outcome o = {0};
    struct pb_out req = {0};

    (void)state;
    apply_simple(&o, 1500, "default", "x");
    assert_err(&o, ERR_UNSUPPORTED, ERRC_USER, "1500");
    pb_out_raw(&req, "\x0a\x7f", 2);
    apply(&o, OP_CREATE_INDEX, &req, "default", "x");
    assert_err(&o, ERR_PROTO, ERRC_DATA, "CreateIndex");
}

/* A flush of a collection with nothing in it hung for minutes: target.md 3.4. */
static void test_flush_never_blocks(void **state)
{
    struct outcome o = {0};
    struct source s;
    const char *name = unique("flush");
    uint64_t begin;

    (void)state;
    source_init(&s, name, basic, N_BASIC, false);
    ensure(&o, &s, "default", name, true);
    assert_ok(&o);
    begin = clock_mono_ms();
    apply_simple(&o, OP_FLUSH, "default", name);
    assert_ok(&o);
    assert_true(clock_mono_ms() - begin < 15000);
    drop(&o, "default", name);
    assert_ok(&o);
    source_release(&s);
    outcome_clear(&o);
}

/* ---- tests: data ---- */

static void test_rows_arrive(void **state)
{
    struct outcome coll = {0}, o = {0};
    struct evbuffer *msgs = evbuffer_new();
    struct source s;
    const char *name = unique("rows");
    uint64_t tt;

    (void)state;
    source_init(&s, name, basic, N_BASIC, false);
    ensure(&coll, &s, "default", name, true);
    assert_ok(&coll);
    create_index(&o, "default", name, "FLAT");
    assert_ok(&o);
    tt = now_tt();
    add_insert(msgs, coll.id, partition_id(&coll, "_default"), coll.shards[1].vchannel, tt);
    msg_append_tick(tt + 1, msgs);
    replicate_on(sink, &o, coll.shards[1].pchannel, tt, msgs);
    assert_ok(&o);
    assert_string_not_equal(o.pos, "");
    tick(&coll, tt + 2);
    apply_simple(&o, OP_LOAD_COLLECTION, "default", name);
    assert_ok(&o);
    WAIT_FOR(load_state("default", name, NULL) == 3);
    tt += tt_from_ms(1);
    WAIT_FOR((tick(&coll, ++tt), count_rows(name)) == 2);
    apply_simple(&o, OP_RELEASE_COLLECTION, "default", name);
    assert_ok(&o);
    drop(&o, "default", name);
    assert_ok(&o);
    evbuffer_free(msgs);
    source_release(&s);
    outcome_clear(&coll);
    outcome_clear(&o);
}

static void test_unknown_collection_is_in_doubt(void **state)
{
    struct outcome o = {0};
    struct evbuffer *msgs = evbuffer_new();
    uint64_t tt = now_tt();

    (void)state;
    add_insert(msgs, 4711, 4712, "tgt-dml_0_4711v0", tt);
    replicate_on(sink, &o, "tgt-dml_0", tt, msgs);
    assert_true(o.failed);
    assert_int_equal(o.err.cls, ERRC_RETRY);
    assert_true(o.doubt); /* code 65535 proves nothing */
    print_message("unknown collection id: %s\n", o.err.text);
    evbuffer_free(msgs);
}

static void test_plain_server_refuses_data_without_doubt(void **state)
{
    struct target_options opt = {.uri = plain, .token = plain_token};
    struct sink *s = target_open(loop, &opt, NULL);
    struct evbuffer *msgs = evbuffer_new();
    struct outcome o = {0};

    (void)state;
    msg_append_tick(now_tt(), msgs);
    replicate_on(s, &o, "x-dml_0", now_tt(), msgs);
    assert_err(&o, ERR_STATE, ERRC_USER, "common.ttMsgEnabled: false");
    assert_false(o.doubt);
    target_close(s);
    evbuffer_free(msgs);
}

/* Larger than the server takes: refused before it looks at it. */
static void test_too_large_a_request_is_no_doubt(void **state)
{
    struct outcome o = {0};
    struct evbuffer *msgs = evbuffer_new();
    struct pb_out junk = {0};
    char *zeros = xcalloc(1, 68 << 20);

    (void)state;
    pb_out_bytes(&junk, 5, zeros, 68 << 20);
    evbuffer_add(msgs, junk.data, junk.len);
    pb_out_release(&junk);
    free(zeros);
    replicate_on(sink, &o, "tgt-dml_0", now_tt(), msgs);
    assert_err(&o, ERR_TOO_LARGE, ERRC_USER, "larger than max");
    assert_false(o.doubt);
    evbuffer_free(msgs);
}

static void test_cancel_and_close_end_calls_silently(void **state)
{
    struct target_options opt = {.uri = standby};
    struct sink *s = target_open(loop, &opt, NULL);
    struct evbuffer *msgs = evbuffer_new();
    struct outcome o[6] = {0}, last = {0};
    struct source src;
    struct sink_call *call;

    (void)state;
    source_init(&src, unique("cancel"), basic, N_BASIC, false);
    call = s->ops->ensure_collection(s, &src.cat.pub, "default", src.cat.pub.name, false, on_collection, &o[0]);
    s->ops->cancel(call);
    s->ops->cancel(NULL);
    s->ops->ensure_collection(s, &src.cat.pub, "default", src.cat.pub.name, false, on_collection, &o[1]);
    s->ops->ensure_database(s, "default", 1, on_done, &o[2]);
    s->ops->drop_collection(s, "default", "nosuch", 1, on_done, &o[3]);
    s->ops->apply_operation(s, 1500, NULL, 0, "default", "x", on_done, &o[4]);
    msg_append_tick(now_tt(), msgs);
    s->ops->replicate(s, "tgt-dml_0", 1, 1, msgs, on_batch, &o[5]);
    target_close(s);
    drop(&last, "default", "nosuch");
    assert_ok(&last);
    for (size_t i = 0; i < 6; i++)
        assert_false(o[i].done);
    evbuffer_free(msgs);
    source_release(&src);
}

/* ---- */

static int setup(void **state)
{
    struct target_options opt = {.uri = standby};
    struct grpc_options g = {.host = "127.0.0.1", .log_name = "hand"};
    uint16_t port;
    char *host;
    bool tls;

    (void)state;
    loop = loop_new();
    sink = target_open(loop, &opt, NULL);
    if (!sink || target_parse_uri(standby, &host, &port, &tls, NULL))
        return -1;
    g.host = host;
    g.port = port;
    hand = grpc_client_new(loop, &g, NULL);
    free(host);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    target_close(sink);
    grpc_client_close(hand);
    loop_free(loop);
    return 0;
}

static bool environment(void)
{
    const char *a = getenv("MILVUS_STANDBY"), *b = getenv("MILVUS_PLAIN");

    if (!a || !b)
        return false;
    snprintf(standby, sizeof(standby), "http://%s", a);
    snprintf(plain, sizeof(plain), "http://%s", b);
    snprintf(run, sizeof(run), "%llx", (unsigned long long)clock_wall_ms());
    plain_token = getenv("MILVUS_PLAIN_TOKEN");
    return true;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probe_tells_the_mode),
        cmocka_unit_test(test_probe_names_the_address_that_does_not_answer),
        cmocka_unit_test(test_probe_cancelled_says_nothing),
        cmocka_unit_test(test_collection_is_made_once),
        cmocka_unit_test(test_a_source_whose_clock_is_ahead),
        cmocka_unit_test(test_database_is_made_where_missing),
        cmocka_unit_test(test_partition_key_keeps_its_partitions),
        cmocka_unit_test(test_another_schema_is_refused),
        cmocka_unit_test(test_partitions_can_be_left_alone),
        cmocka_unit_test(test_operations_can_be_repeated),
        cmocka_unit_test(test_operations_go_to_the_mapped_database),
        cmocka_unit_test(test_unknown_operations_are_named),
        cmocka_unit_test(test_flush_never_blocks),
        cmocka_unit_test(test_rows_arrive),
        cmocka_unit_test(test_unknown_collection_is_in_doubt),
        cmocka_unit_test(test_plain_server_refuses_data_without_doubt),
        cmocka_unit_test(test_too_large_a_request_is_no_doubt),
        cmocka_unit_test(test_cancel_and_close_end_calls_silently),
    };
    const struct CMUnitTest login[] = {cmocka_unit_test(test_wrong_password_is_for_a_human)};
    const char *required = getenv("MILVUS_CDC_REQUIRE_LIVE");
    int failed;

    if (!environment()) {
        fprintf(stderr, "test_target_live: not run: set MILVUS_STANDBY and MILVUS_PLAIN to host:port\n");
        return required && strcmp(required, "1") == 0;
    }
    failed = cmocka_run_group_tests_name("target_live", tests, setup, teardown);
    if (plain_token)
        failed += cmocka_run_group_tests_name("target_live_login", login, setup, teardown);
    return failed;
}
