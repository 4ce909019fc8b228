/*
 * test_target_plain_live.c - the sink of a plain target on a real server, MILVUS_PLAIN=host:port: collections of every
 * type, rows that come as a source's messages, and what is there afterwards. Without a server nothing runs;
 * MILVUS_CDC_REQUIRE_LIVE=1 makes that a failure.
 *
 * What a version may lack (later kinds of vectors, null rows) must be refused with the field's name, or work.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/buffer.h>
#include <stdio.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "column_rows.h"
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
#define SERVICE "/milvus.proto.milvus.MilvusService/"

enum { COLLECTION_ID = 9000, FIELDS_MAX = 20 };

static struct loop *loop;
static struct sink *sink;
static struct grpc_client *hand; /* looks at the server past the sink */
static char plain[100], run[20];

/* ---- completions ------------------------------------------------------------------------------ */

struct outcome {
    bool done, failed, doubt;
    struct err err;
    int64_t id;
    size_t n_shards, n_partitions;
    char vchannel[64];
    int64_t partition_id; /* of the last one */
};

static void on_done(void *arg, const struct err *err)
{
    struct outcome *o = arg;

    assert_false(o->done);
    o->done = true;
    o->failed = err != NULL;
    if (err)
        o->err = *err;
}

static void on_collection(void *arg, const struct err *err, const struct sink_collection *c)
{
    struct outcome *o = arg;

    on_done(arg, err);
    if (err)
        return;
    o->id = c->id;
    o->n_shards = c->n_shards;
    o->n_partitions = c->n_partitions;
    snprintf(o->vchannel, sizeof(o->vchannel), "%s", c->shards[c->n_shards - 1].vchannel);
    o->partition_id = c->partitions[c->n_partitions - 1].id;
}

static void on_batch(void *arg, const struct err *err, bool doubt, const char *target_pos)
{
    on_done(arg, err);
    ((struct outcome *)arg)->doubt = doubt;
    assert_string_equal(target_pos, "");
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

/* Unique per run: "<base>_<run>". */
static const char *unique(const char *base)
{
    static char buf[4][64];
    static unsigned turn;
    char *b = buf[turn++ % 4];

    snprintf(b, sizeof(buf[0]), "%s_%s", base, run);
    return b;
}

/* ---- a collection of the source, as the catalog gives it --------------------------------------- */

struct source {
    struct cat_collection cat;
    struct src_partition partitions[8];
    const struct def *defs; /* the first one is the key */
    size_t n;
    const char *db, *name; /* on the target */
};

struct fields {
    Pb__FieldSchema f[FIELDS_MAX], *list[FIELDS_MAX];
    Pb__KeyValuePair params[FIELDS_MAX][2], *param_list[FIELDS_MAX][2];
    uint8_t yes, default_value[3];
    ProtobufCMessageUnknownField unknown;
};

static void add_param(struct fields *s, size_t i, const char *key, const char *value)
{
    Pb__KeyValuePair *p = &s->params[i][s->f[i].n_type_params];

    pb__key_value_pair__init(p);
    p->key = pb_str(key);
    p->value = pb_str(value);
    s->param_list[i][s->f[i].n_type_params++] = p;
    s->f[i].type_params = s->param_list[i];
}

static void fill_field(struct fields *s, size_t i, const struct def *d)
{
    Pb__FieldSchema *f = &s->f[i];

    pb__field_schema__init(f);
    s->list[i] = f;
    f->field_id = 100 + (int64_t)i;
    f->name = pb_str(d->name);
    f->data_type = d->type;
    f->element_type = d->type != ARRAY ? 0 : d->texts ? VARCHAR : INT64;
    if (d->type >= BINARY_VECTOR && d->type != SPARSE_VECTOR)
        add_param(s, i, "dim", "64");
    if (d->type == VARCHAR || (d->type == ARRAY && d->texts))
        add_param(s, i, "max_length", "2000");
    if (d->type == ARRAY)
        add_param(s, i, "max_capacity", "10");
    if (!d->nullable && !d->with_default)
        return;
    f->base.n_unknown_fields = 1;
    f->base.unknown_fields = &s->unknown;
    s->yes = 1;
    memcpy(s->default_value, "\x02\x18\x07", 3); /* {long_data 7} */
    s->unknown = d->nullable ? (ProtobufCMessageUnknownField){.tag = 15, .len = 1, .data = &s->yes}
                             : (ProtobufCMessageUnknownField){.tag = 11, .wire_type = 2, .len = 3,
                                                              .data = s->default_value};
}

/* With a `$meta` among the columns: a dynamic field. */
static size_t pack_schema(uint8_t *buf, const struct def *defs, size_t n, bool auto_id, const char *partition_key)
{
    Pb__CollectionSchema m = PB__COLLECTION_SCHEMA__INIT;
    struct fields s;

    memset(&s, 0, sizeof(s));
    m.fields = s.list;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(defs[i].name, "$meta") == 0) {
            m.enable_dynamic_field = true;
            continue;
        }
        fill_field(&s, m.n_fields, &defs[i]);
        s.f[m.n_fields].is_partition_key = partition_key && strcmp(partition_key, defs[i].name) == 0;
        m.n_fields++;
    }
    s.f[0].is_primary_key = true;
    s.f[0].auto_id = m.auto_id = auto_id;
    m.name = pb_str("name_on_the_source");
    return pb__collection_schema__pack(&m, buf);
}

static void source_partition(struct source *s, const char *name)
{
    struct src_collection *c = &s->cat.pub;

    s->partitions[c->n_partitions] = (struct src_partition){
        .id = 500 + (int64_t)c->n_partitions, .name = pb_str(name), .state = SRC_ALIVE, .create_tt = c->create_tt};
    c->partitions = s->partitions;
    c->n_partitions++;
}

/* Through the value of the etcd key, so that what ensure_collection gets is the catalog's own. */
static void source_init(struct source *s, const char *base, const struct def *defs, size_t n, bool auto_id,
                        const char *partition_key)
{
    static char *vchannels[] = {(char *)"src-dml_0_9000v0", (char *)"src-dml_1_9000v1"};
    static char *pchannels[] = {(char *)"src-dml_0", (char *)"src-dml_1"};
    static const struct src_pair property = {(char *)"collection.ttl.seconds", (char *)"86400"};
    Pb__CollectionInfo m = PB__COLLECTION_INFO__INIT;
    uint8_t schema[4000], value[8000];
    const char *why = "";

    *s = (struct source){.defs = defs, .n = n, .db = "default", .name = unique(base)};
    m.id = COLLECTION_ID;
    m.schema.data = schema;
    m.schema.len = pack_schema(schema, defs, n, auto_id, partition_key);
    m.create_time = tt_from_ms(clock_wall_ms());
    m.n_virtual_channel_names = m.n_physical_channel_names = 2;
    m.virtual_channel_names = vchannels;
    m.physical_channel_names = pchannels;
    s->cat.info = cat_info_parse(value, pb__collection_info__pack(&m, value), COLLECTION_ID, &why);
    if (!s->cat.info)
        fail_msg("%s", why);
    s->cat.props = (struct catalog_props){.has_partition_key = partition_key != NULL};
    s->cat.pub = (struct src_collection){.id = COLLECTION_ID, .db_id = 1, .db_name = pb_str("default"),
                                         .name = s->cat.info->name, .state = SRC_ALIVE,
                                         .create_tt = s->cat.info->create_tt, .shards = s->cat.info->shards,
                                         .n_shards = s->cat.info->n_shards, .pk_name = pb_str(defs[0].name),
                                         .has_partition_key = partition_key != NULL, .properties = &property,
                                         .n_properties = 1, .impl = &s->cat};
    if (!partition_key)
        source_partition(s, "_default");
}

static void source_release(struct source *s)
{
    cat_info_free(s->cat.info);
}

/* ---- the sink's operations, waited for --------------------------------------------------------- */

static struct outcome ensure(const struct source *s, bool create)
{
    struct outcome o = {0};

    sink->ops->ensure_collection(sink, &s->cat.pub, s->db, s->name, create, on_collection, &o);
    assert_false(o.done);
    WAIT_FOR(o.done);
    return o;
}

static void drop(const struct source *s)
{
    struct outcome o = {0};

    sink->ops->drop_collection(sink, s->db, s->name, 1, on_done, &o);
    WAIT_FOR(o.done);
    assert_ok(&o);
}

static void out_param(struct pb_out *req, uint32_t num, const char *key, const char *value)
{
    struct pb_out kv = {0};

    pb_out_str(&kv, 1, key);
    pb_out_str(&kv, 2, value);
    pb_out_bytes(req, num, kv.data, kv.len);
    pb_out_release(&kv);
}

static struct outcome apply(int type, struct pb_out *take_req, const char *db, const char *name)
{
    struct outcome o = {0};

    sink->ops->apply_operation(sink, type, take_req->data, take_req->len, db, name, on_done, &o);
    pb_out_release(take_req);
    WAIT_FOR(o.done);
    return o;
}

static struct outcome create_index(const struct source *s, const char *field, const char *type, const char *metric)
{
    struct pb_out req = {0};

    pb_out_bytes(&req, 1, "\x08\xac\x02\x18\x05", 5); /* base{msg_type 300, timestamp 5} */
    pb_out_str(&req, 2, "db_on_the_source");
    pb_out_str(&req, 3, "name_on_the_source");
    pb_out_str(&req, 4, field);
    out_param(&req, 5, "index_type", type);
    out_param(&req, 5, "metric_type", metric);
    pb_out_str(&req, 6, "the_index");
    return apply(OP_CREATE_INDEX, &req, s->db, s->name);
}

static void load(const struct source *s, const char *field, const char *type, const char *metric)
{
    struct pb_out req = {0};
    struct outcome o;

    for (int i = 0; i < 2; i++) { /* as after a crash */
        o = create_index(s, field, type, metric);
        assert_ok(&o);
    }
    pb_out_u64(&req, 4, 1);
    o = apply(OP_LOAD_COLLECTION, &req, s->db, s->name);
    assert_ok(&o);
}

static void make_loaded(const struct source *s, const char *field, const char *type, const char *metric)
{
    struct outcome o = ensure(s, true);

    assert_ok(&o);
    load(s, field, type, metric);
}

static struct outcome write_body(const struct source *s, enum sink_write_kind kind, const char *partition,
                                 uint64_t rows, struct evbuffer *take_body)
{
    struct sink_write w = {.kind = kind, .db = s->db, .collection = s->name, .partition = partition, .rows = rows,
                           .body = take_body};
    struct outcome o = {0};

    sink->ops->write(sink, &w, on_batch, &o);
    assert_false(o.done);
    evbuffer_free(take_body);
    WAIT_FOR(o.done);
    return o;
}

/* ---- rows, as the source's WAL has them --------------------------------------------------------- */

static struct buf *insert_message(const struct source *s, size_t from, size_t to)
{
    struct pb_out o = {0};
    struct buf *b;

    out_insert(&o, to - from);
    for (size_t i = s->n; i-- > 0;) { /* not the schema's order */
        Col__FieldData *m = make_column(&s->defs[i], 100 + (int64_t)i, from, to, true);
        out_message(&o, 13, &m->base);
        protobuf_c_message_free_unpacked(&m->base, NULL);
    }
    b = buf_new(o.len);
    memcpy(b->data, o.data, o.len);
    pb_out_release(&o);
    return b;
}

static void add_message(struct msg_columns *c, struct buf *take_b)
{
    struct msg_head h;
    struct err err;

    if (msg_scan(take_b->data, take_b->size, &h, &err) ||
        msg_columns_add(c, &h, take_b, take_b->data, take_b->size, &err))
        fail_msg("%s", err.text);
    buf_unref(take_b);
}

/* Rows from .. to - 1, in three messages when there are so many. */
static struct outcome write_rows(const struct source *s, enum sink_write_kind kind, const char *partition, size_t from,
                                 size_t to)
{
    struct msg_columns *c = msg_columns_new();
    struct evbuffer *body = evbuffer_new();
    uint64_t rows = to - from;

    for (size_t i = 0; i < s->n; i++)
        if (s->defs[i].with_default)
            msg_columns_defaults(c, &(const int64_t){100 + (int64_t)i}, 1);
    for (size_t step; from < to; from += step) {
        step = (to - from + 2) / 3;
        add_message(c, insert_message(s, from, from + step));
    }
    assert_int_equal(msg_columns_rows(c), rows);
    assert_true(msg_columns_write(c, body));
    msg_columns_free(c);
    return write_body(s, kind, partition, rows, body);
}

/* A Delete of the source with the keys of the rows. */
static struct outcome delete_rows(const struct source *s, const char *partition, size_t from, size_t to)
{
    Col__FieldData *m = make_column(&s->defs[0], 100, from, to, true);
    struct msg_keys *k = msg_keys_new(s->cat.pub.pk_name);
    struct evbuffer *body = evbuffer_new();
    struct pb_out o = {0}, ids = {0};
    struct msg_head h;
    struct err err;

    pb_out_bytes(&o, 1, "\x08\x91\x03", 3); /* base{msg_type 401} */
    if (m->scalars->data_case == COL__SCALAR_FIELD__DATA_STRING_DATA)
        out_message(&ids, 2, &m->scalars->string_data->base);
    else
        out_message(&ids, 1, &m->scalars->long_data->base);
    pb_out_bytes(&o, 12, ids.data, ids.len);
    pb_out_tag(&o, 10, PB_LEN);
    pb_out_varint(&o, to - from);
    for (size_t i = from; i < to; i++)
        pb_out_varint(&o, 5);
    pb_out_u64(&o, 11, to - from);
    if (msg_scan(o.data, o.len, &h, &err) || msg_keys_add(k, &h, o.data, o.len, &err))
        fail_msg("%s", err.text);
    assert_true(msg_keys_write(k, body));
    msg_keys_free(k);
    pb_out_release(&o);
    pb_out_release(&ids);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    return write_body(s, SINK_DELETE, partition, to - from, body);
}

/* ---- looking at the server ---------------------------------------------------------------------- */

struct look {
    bool done;
    int status;
    char message[200];
    uint8_t *data;
    size_t len;
};

static void on_look(void *arg, const struct grpc_result *r)
{
    struct look *l = arg;

    l->done = true;
    l->status = r->status;
    snprintf(l->message, sizeof(l->message), "%s", r->message);
    l->len = r->body_len;
    l->data = xmalloc(r->body_len + 1);
    if (r->body_len)
        memcpy(l->data, r->body, r->body_len);
}

/* Caller frees data. */
static struct look look(const char *path, struct pb_out *take_req)
{
    struct evbuffer *body = evbuffer_new();
    struct look l = {0};

    evbuffer_add(body, take_req->data, take_req->len);
    pb_out_release(take_req);
    grpc_unary(hand, path, NULL, body, 20000, on_look, &l);
    evbuffer_free(body);
    WAIT_FOR(l.done);
    if (l.status != 0)
        fail_msg("%s: status %d %s", path, l.status, l.message);
    return l;
}

/* Fields of the rows that expr selects; caller frees. A strong look waits until all that was written can be seen. */
static Col__QueryResults *query(const struct source *s, const char *expr, const char *partition,
                                const char *const *fields, size_t n, bool strong)
{
    enum { EVENTUALLY = 3 };
    struct pb_out req = {0};
    Col__QueryResults *m;
    Pb__StatusResponse *st;
    struct look l;

    pb_out_str(&req, 2, s->db);
    pb_out_str(&req, 3, s->name);
    pb_out_str(&req, 4, expr);
    for (size_t i = 0; i < n; i++)
        pb_out_str(&req, 5, fields[i]);
    pb_out_str(&req, 6, partition);
    pb_out_u64(&req, 11, strong ? 0 : EVENTUALLY);
    l = look(SERVICE "Query", &req);
    st = pb__status_response__unpack(NULL, l.len, l.data);
    if (st && st->status && (st->status->code || st->status->error_code))
        fail_msg("query %s: %s", expr, st->status->reason);
    m = col__query_results__unpack(NULL, l.len, l.data);
    assert_non_null(m);
    pb__status_response__free_unpacked(st, NULL);
    free(l.data);
    return m;
}

static int64_t count_rows(const struct source *s, const char *partition)
{
    static const char *const fields[] = {"count(*)"};
    /* Milvus Lite counts all partitions when there is no condition */
    Col__QueryResults *m = query(s, partition ? "id >= 0" : "", partition, fields, 1, true);
    int64_t n;

    assert_int_equal(m->n_fields_data, 1);
    assert_int_equal(m->fields_data[0]->scalars->data_case, COL__SCALAR_FIELD__DATA_LONG_DATA);
    n = m->fields_data[0]->scalars->long_data->n_data ? m->fields_data[0]->scalars->long_data->data[0] : 0;
    col__query_results__free_unpacked(m, NULL);
    return n;
}

static const Col__FieldData *field_of(const Col__QueryResults *m, const char *name)
{
    for (size_t i = 0; i < m->n_fields_data; i++)
        if (strcmp(m->fields_data[i]->field_name, name) == 0)
            return m->fields_data[i];
    fail_msg("no field %s in the answer", name);
    return NULL;
}

static void assert_same_values(const char *name, const ProtobufCMessage *a, const ProtobufCMessage *b)
{
    size_t len = protobuf_c_message_get_packed_size(a);
    uint8_t *x = xmalloc(len + 1), *y = xmalloc(len + 1);

    if (protobuf_c_message_get_packed_size(b) != len)
        fail_msg("field %s: %zu bytes, not %zu", name, len, protobuf_c_message_get_packed_size(b));
    protobuf_c_message_pack(a, x);
    protobuf_c_message_pack(b, y);
    if (memcmp(x, y, len) != 0)
        fail_msg("field %s: other values", name);
    free(x);
    free(y);
}

/* The server tells the type of the elements, but not of an empty array which of its arrays it is. */
static void normalize_array(const Col__FieldData *got, const Col__FieldData *want)
{
    Col__ArrayArray *g = got->scalars->array_data, *w = want->scalars->array_data;

    assert_non_null(g);
    assert_int_equal(g->n_data, 1);
    g->element_type = 0;
    if (g->data[0]->data_case != COL__SCALAR_FIELD__DATA__NOT_SET)
        return;
    assert_int_equal(protobuf_c_message_get_packed_size(&w->data[0]->base), 2); /* tag, length 0 */
    if (w->data[0]->data_case == COL__SCALAR_FIELD__DATA_STRING_DATA)
        col__string_array__free_unpacked(w->data[0]->string_data, NULL);
    else
        col__long_array__free_unpacked(w->data[0]->long_data, NULL);
    w->data[0]->data_case = COL__SCALAR_FIELD__DATA__NOT_SET;
}

/* Each column of one row. */
static void assert_row(const struct source *s, const char *const *names, size_t row)
{
    char expr[60];
    Col__QueryResults *m;

    snprintf(expr, sizeof(expr), "%s == %zu", s->defs[0].name, row);
    m = query(s, expr, NULL, names, s->n, false);
    for (size_t i = 0; i < s->n; i++) {
        Col__FieldData *want = make_column(&s->defs[i], 0, row, row + 1, false);
        const Col__FieldData *got = field_of(m, s->defs[i].name);

        if (is_null(&s->defs[i], row)) { /* with a placeholder or without */
            assert_int_equal(got->n_valid_data, 1);
            assert_false(got->valid_data[0]);
            protobuf_c_message_free_unpacked(&want->base, NULL);
            continue;
        }
        assert_int_equal(got->field_case, want->field_case);
        if (want->field_case == COL__FIELD_DATA__FIELD_VECTORS) {
            assert_same_values(want->field_name, &got->vectors->base, &want->vectors->base);
        } else {
            if (s->defs[i].type == ARRAY)
                normalize_array(got, want);
            assert_same_values(want->field_name, &got->scalars->base, &want->scalars->base);
        }
        protobuf_c_message_free_unpacked(&want->base, NULL);
    }
    col__query_results__free_unpacked(m, NULL);
}

/* After a count, which waits until they can be seen. */
static void assert_rows(const struct source *s, size_t from, size_t to)
{
    const char *names[FIELDS_MAX];

    for (size_t i = 0; i < s->n; i++)
        names[i] = s->defs[i].name;
    for (size_t r = from; r < to; r++)
        assert_row(s, names, r);
}

/* ---- tests --------------------------------------------------------------------------------------- */

static const struct def all[] = {
    {.name = "id", .type = INT64, .keys = true},
    {.name = "flag", .type = BOOL},
    {.name = "small", .type = INT8},
    {.name = "num", .type = INT32},
    {.name = "real", .type = FLOAT},
    {.name = "big_real", .type = DOUBLE},
    {.name = "txt", .type = VARCHAR},
    {.name = "longs", .type = ARRAY},
    {.name = "tags", .type = ARRAY, .texts = true},
    {.name = "js", .type = JSON},
    {.name = "vec", .type = FLOAT_VECTOR},
    {.name = "$meta", .type = JSON},
};
enum { N_ALL = sizeof(all) / sizeof(*all) };

static const struct def few[] = {
    {.name = "id", .type = INT64, .keys = true},
    {.name = "txt", .type = VARCHAR},
    {.name = "vec", .type = FLOAT_VECTOR},
};
enum { N_FEW = sizeof(few) / sizeof(*few) };

static void test_rows_of_every_type(void **state)
{
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "all", all, N_ALL, true, NULL);
    make_loaded(&s, "vec", "FLAT", "L2");
    o = write_rows(&s, SINK_INSERT, "_default", 0, 30);
    assert_ok(&o);
    assert_false(o.doubt);
    o = write_rows(&s, SINK_INSERT, NULL, 30, 31);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, NULL), 31);
    assert_rows(&s, 0, 31);
    row_salt = 1000;
    o = write_rows(&s, SINK_UPSERT, "_default", 10, 20);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, NULL), 31);
    assert_rows(&s, 10, 20);
    row_salt = 0;
    assert_rows(&s, 8, 10);
    assert_rows(&s, 20, 22);
    o = delete_rows(&s, "_default", 0, 12);
    assert_ok(&o);
    o = delete_rows(&s, NULL, 29, 60); /* some are not there */
    assert_ok(&o);
    assert_int_equal(count_rows(&s, NULL), 17);
    assert_rows(&s, 20, 29);
    drop(&s);
    source_release(&s);
}

/* Sent twice: an Upsert is the same once more. */
static void test_upserts_can_be_repeated_in_their_partition(void **state)
{
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "parts", few, N_FEW, false, NULL);
    source_partition(&s, "p1");
    make_loaded(&s, "vec", "FLAT", "L2");
    for (int i = 0; i < 3; i++) {
        o = write_rows(&s, i ? SINK_UPSERT : SINK_INSERT, "p1", 0, 9);
        assert_ok(&o);
    }
    o = write_rows(&s, SINK_INSERT, "_default", 3, 5);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, "p1"), 9);
    assert_int_equal(count_rows(&s, "_default"), 2);
    o = delete_rows(&s, "p1", 0, 4);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, "p1"), 5);
    assert_int_equal(count_rows(&s, "_default"), 2);
    o = delete_rows(&s, NULL, 0, 5);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, NULL), 4);
    o = write_rows(&s, SINK_INSERT, "nosuch", 0, 3);
    assert_true(o.failed && !o.doubt);
    assert_int_equal(o.err.code, ERR_NOT_FOUND);
    assert_int_equal(o.err.cls, ERRC_RETRY);
    drop(&s);
    source_release(&s);
}

static void test_a_collection_is_made_once(void **state)
{
    struct source s;
    struct outcome a, b;

    (void)state;
    source_init(&s, "once", few, N_FEW, true, NULL);
    source_partition(&s, "p1");
    a = ensure(&s, false);
    assert_err(&a, ERR_NOT_FOUND, ERRC_USER, s.name);
    a = ensure(&s, true);
    assert_ok(&a);
    assert_true(a.id > 0);
    assert_int_equal(a.n_shards, 2);
    assert_string_equal(a.vchannel, "src-dml_1_9000v1");
    assert_int_equal(a.n_partitions, 2);
    source_partition(&s, "p2");
    b = ensure(&s, true);
    assert_ok(&b);
    assert_int_equal(a.id, b.id);
    assert_int_equal(b.n_partitions, 3);
    drop(&s);
    drop(&s); /* absent is done */
    source_release(&s);
}

static void test_a_partition_key_needs_no_partitions(void **state)
{
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "pkey", few, N_FEW, false, "txt");
    source_partition(&s, "_default_0");
    source_partition(&s, "_default_1");
    source_partition(&s, "_default_2");
    make_loaded(&s, "vec", "FLAT", "L2");
    o = ensure(&s, false);
    assert_ok(&o);
    assert_int_equal(o.n_partitions, 3);
    assert_true(o.partition_id != 0); /* made up */
    for (int i = 0; i < 2; i++) {
        o = write_rows(&s, SINK_UPSERT, NULL, 0, 9);
        assert_ok(&o);
    }
    assert_int_equal(count_rows(&s, NULL), 9);
    o = delete_rows(&s, NULL, 2, 5);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, NULL), 6);
    drop(&s);
    source_release(&s);
}

static void test_a_database_of_its_own(void **state)
{
    const char *db = unique("db");
    struct pb_out req = {0};
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "in_db", few, N_FEW, false, NULL);
    s.db = db;
    o = ensure(&s, false);
    assert_err(&o, ERR_NOT_FOUND, ERRC_USER, s.name);
    make_loaded(&s, "vec", "FLAT", "L2"); /* with the database */
    for (int i = 0; i < 2; i++) {
        o = (struct outcome){0};
        sink->ops->ensure_database(sink, db, 1, on_done, &o);
        WAIT_FOR(o.done);
        assert_ok(&o);
    }
    o = write_rows(&s, SINK_INSERT, NULL, 0, 9);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, NULL), 9);
    drop(&s);
    for (int i = 0; i < 2; i++) { /* absent is done */
        pb_out_bytes(&req, 1, "\x08\x8a\x0e\x18\x05", 5);
        o = apply(OP_DROP_DATABASE, &req, db, "");
        assert_ok(&o);
    }
    source_release(&s);
}

/* As at the source: released, dropped, loaded again; the load may come first here. */
static void test_a_loaded_partition_is_dropped(void **state)
{
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "loaded", few, N_FEW, false, NULL);
    source_partition(&s, "p1");
    make_loaded(&s, "vec", "FLAT", "L2");
    o = write_rows(&s, SINK_INSERT, "p1", 0, 9);
    assert_ok(&o);
    o = write_rows(&s, SINK_INSERT, "_default", 10, 12);
    assert_ok(&o);
    for (int i = 0; i < 2; i++) {
        o = (struct outcome){0};
        sink->ops->drop_partition(sink, s.db, s.name, "p1", 1, on_done, &o);
        WAIT_FOR(o.done);
        assert_ok(&o);
    }
    assert_int_equal(count_rows(&s, NULL), 2);
    drop(&s);
    source_release(&s);
}

/* Whatever the bytes of a key: it is deleted, and no other one. */
static void test_any_text_can_be_a_key(void **state)
{
    static const struct def defs[] = {{.name = "name", .type = VARCHAR, .keys = true},
                                      {.name = "vec", .type = FLOAT_VECTOR}};
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "texts", defs, 2, false, NULL);
    make_loaded(&s, "vec", "FLAT", "L2");
    o = write_rows(&s, SINK_INSERT, NULL, 0, N_ODD_TEXTS);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, NULL), N_ODD_TEXTS);
    for (size_t i = 0; i < N_ODD_TEXTS; i++) {
        o = delete_rows(&s, NULL, i, i + 1);
        if (o.failed)
            fail_msg("text %zu (%s): %s", i, odd_texts[i], o.err.text);
        if (i % 5 == 4 || i == N_ODD_TEXTS - 1)
            assert_int_equal(count_rows(&s, NULL), N_ODD_TEXTS - i - 1);
    }
    drop(&s);
    source_release(&s);
}

/* A body with one column of keys and one of vectors. */
static struct evbuffer *number_rows(const int64_t *keys, size_t n)
{
    Col__FieldData *id = make_column(&few[0], 100, 0, n, true), *vec = make_column(&few[2], 102, 0, n, true);
    struct evbuffer *body = evbuffer_new();
    struct pb_out o = {0};

    memcpy(id->scalars->long_data->data, keys, n * sizeof(*keys));
    out_message(&o, 5, &id->base);
    out_message(&o, 5, &vec->base);
    evbuffer_add(body, o.data, o.len);
    pb_out_release(&o);
    protobuf_c_message_free_unpacked(&id->base, NULL);
    protobuf_c_message_free_unpacked(&vec->base, NULL);
    return body;
}

static void test_any_number_can_be_a_key(void **state)
{
    static const int64_t keys[] = {INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX};
    static const struct def defs[] = {{.name = "id", .type = INT64, .keys = true},
                                      {.name = "vec", .type = FLOAT_VECTOR}};
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "numbers", defs, 2, false, NULL);
    make_loaded(&s, "vec", "FLAT", "L2");
    o = write_body(&s, SINK_INSERT, NULL, 6, number_rows(keys, 6));
    assert_ok(&o);
    for (size_t i = 0; i < 6; i++) {
        struct evbuffer *body = evbuffer_new();
        struct msg_keys *k = msg_keys_new("id");
        struct pb_out msg = {0}, ids = {0};
        struct msg_head h;

        pb_out_bytes(&msg, 1, "\x08\x91\x03", 3);
        pb_out_tag(&ids, 1, PB_VARINT);
        pb_out_varint(&ids, (uint64_t)keys[i]);
        pb_out_tag(&msg, 12, PB_LEN); /* primary_keys{int_id{data}} */
        pb_out_varint(&msg, ids.len + 2);
        pb_out_bytes(&msg, 1, ids.data, ids.len);
        pb_out_u64(&msg, 10, 5);
        pb_out_u64(&msg, 11, 1);
        assert_int_equal(msg_scan(msg.data, msg.len, &h, NULL), 0);
        assert_int_equal(msg_keys_add(k, &h, msg.data, msg.len, NULL), 0);
        msg_keys_write(k, body);
        msg_keys_free(k);
        pb_out_release(&msg);
        pb_out_release(&ids);
        o = write_body(&s, SINK_DELETE, NULL, 1, body);
        if (o.failed)
            fail_msg("key %lld: %s", (long long)keys[i], o.err.text);
        if (i % 3 == 0) /* the least one alone */
            assert_int_equal(count_rows(&s, NULL), 5 - i);
    }
    drop(&s);
    source_release(&s);
}

/* Kinds that came later than 2.3: refused with the field's name, or they work. */
static void try_type(const struct def *d)
{
    const struct def defs[] = {few[0], *d, few[2]};
    bool vector = d->type >= BINARY_VECTOR;
    struct source s;
    struct outcome o;

    source_init(&s, d->name, defs, vector ? 2 : 3, false, NULL);
    o = ensure(&s, true);
    if (o.failed) {
        print_message("%s: %s\n", d->name, o.err.text);
        assert_int_equal(o.err.cls, ERRC_USER);
        assert_non_null(strstr(o.err.text, d->name));
        drop(&s);
        source_release(&s);
        return;
    }
    o = write_rows(&s, SINK_INSERT, NULL, 0, 20);
    assert_ok(&o);
    o = write_rows(&s, SINK_UPSERT, NULL, 5, 25);
    assert_ok(&o);
    o = delete_rows(&s, NULL, 0, 3);
    assert_ok(&o);
    if (!vector) {
        load(&s, "vec", "FLAT", "L2");
        assert_int_equal(count_rows(&s, NULL), 22);
        assert_rows(&s, 3, 25);
    }
    print_message("%s: written\n", d->name);
    drop(&s);
    source_release(&s);
}

static void test_other_types(void **state)
{
    static const struct def defs[] = {{.name = "half", .type = FLOAT16_VECTOR},
                                      {.name = "brain", .type = BFLOAT16_VECTOR},
                                      {.name = "sparse", .type = SPARSE_VECTOR},
                                      {.name = "bytes", .type = INT8_VECTOR},
                                      {.name = "nullable_text", .type = VARCHAR, .nullable = true},
                                      {.name = "nullable_number", .type = INT64, .nullable = true},
                                      {.name = "number_with_default", .type = INT64, .with_default = true}};

    (void)state;
    for (size_t i = 0; i < sizeof(defs) / sizeof(*defs); i++)
        try_type(&defs[i]);
}

static void test_binary_vectors(void **state)
{
    static const struct def defs[] = {{.name = "id", .type = INT64, .keys = true},
                                      {.name = "bin", .type = BINARY_VECTOR}};
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "binary", defs, 2, false, NULL);
    o = ensure(&s, true);
    if (o.failed) { /* Milvus Lite */
        assert_int_equal(o.err.cls, ERRC_USER);
        assert_non_null(strstr(o.err.text, "'bin'"));
        print_message("%s\n", o.err.text);
        source_release(&s);
        return;
    }
    load(&s, "bin", "BIN_FLAT", "HAMMING");
    o = write_rows(&s, SINK_INSERT, NULL, 0, 20);
    assert_ok(&o);
    assert_int_equal(count_rows(&s, NULL), 20);
    assert_rows(&s, 0, 20);
    drop(&s);
    source_release(&s);
}

/* Made by a user, with keys of its own. */
static void test_auto_ids_of_the_target_are_refused(void **state)
{
    struct source s;
    struct outcome o;
    struct pb_out req = {0};
    uint8_t schema[1000];
    size_t len = pack_schema(schema, few, N_FEW, true, NULL);
    Pb__CollectionSchema *m = pb__collection_schema__unpack(NULL, len, schema);
    struct look l;

    (void)state;
    source_init(&s, "auto_id", few, N_FEW, true, NULL);
    free(m->name);
    m->name = xstrdup(s.name);
    for (size_t i = 0; i < m->n_fields; i++)
        m->fields[i]->field_id = 0;
    len = pb__collection_schema__pack(m, schema);
    pb__collection_schema__free_unpacked(m, NULL);
    pb_out_str(&req, 3, s.name);
    pb_out_bytes(&req, 4, schema, len);
    l = look(SERVICE "CreateCollection", &req);
    free(l.data);
    o = ensure(&s, true);
    assert_err(&o, ERR_STATE, ERRC_USER, "field `id`: autoID is on at the target");
    drop(&s);
    source_release(&s);
}

/* Certainly nothing was written: a message too many, columns that are missing. */
static void test_refused_rows_are_no_doubt(void **state)
{
    struct evbuffer *body = evbuffer_new();
    char *zeros = xcalloc(1, 68 << 20);
    struct source s;
    struct outcome o;

    (void)state;
    source_init(&s, "refused", few, N_FEW, false, NULL);
    o = ensure(&s, true);
    assert_ok(&o);
    o = write_body(&s, SINK_INSERT, NULL, 3, number_rows((const int64_t[]){1, 2, 3}, 3)); /* no txt */
    assert_true(o.failed && !o.doubt);
    assert_int_equal(o.err.cls, ERRC_USER);
    print_message("%s\n", o.err.text);
    evbuffer_add(body, zeros, 68 << 20);
    free(zeros);
    o = write_body(&s, SINK_DELETE, NULL, 3, body);
    assert_err(&o, ERR_TOO_LARGE, ERRC_USER, "larger than max");
    assert_false(o.doubt);
    drop(&s);
    o = write_rows(&s, SINK_INSERT, NULL, 0, 3);
    assert_err(&o, ERR_NOT_FOUND, ERRC_RETRY, s.name);
    assert_false(o.doubt);
    source_release(&s);
}

/* ---- */

static int setup(void **state)
{
    struct target_options opt = {.mode = TARGET_PLAIN, .uri = plain};
    struct grpc_options g = {.host = "127.0.0.1", .log_name = "hand"};
    char *host;
    bool tls;

    (void)state;
    loop = loop_new();
    sink = target_open(loop, &opt, NULL);
    if (!sink || target_parse_uri(plain, &host, &g.port, &tls, NULL))
        return -1;
    g.host = host;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_collection_is_made_once),
        cmocka_unit_test(test_rows_of_every_type),
        cmocka_unit_test(test_upserts_can_be_repeated_in_their_partition),
        cmocka_unit_test(test_a_partition_key_needs_no_partitions),
        cmocka_unit_test(test_a_database_of_its_own),
        cmocka_unit_test(test_a_loaded_partition_is_dropped),
        cmocka_unit_test(test_any_text_can_be_a_key),
        cmocka_unit_test(test_any_number_can_be_a_key),
        cmocka_unit_test(test_binary_vectors),
        cmocka_unit_test(test_other_types),
        cmocka_unit_test(test_auto_ids_of_the_target_are_refused),
        cmocka_unit_test(test_refused_rows_are_no_doubt),
    };
    const char *required = getenv("MILVUS_CDC_REQUIRE_LIVE"), *address = getenv("MILVUS_PLAIN");

    if (!address) {
        fprintf(stderr, "test_target_plain_live: not run: set MILVUS_PLAIN to host:port\n");
        return required && strcmp(required, "1") == 0;
    }
    snprintf(plain, sizeof(plain), "http://%s", address);
    snprintf(run, sizeof(run), "%llx", (unsigned long long)clock_wall_ms());
    return cmocka_run_group_tests_name("target_plain_live", tests, setup, teardown);
}
