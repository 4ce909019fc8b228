/*
 * target_peer.h - for tests of the target's sink: schemas, and a peer that answers as scripted.
 *
 * Included by one test program each; not every one uses all of it.
 */
#ifndef TEST_TARGET_PEER_H
#define TEST_TARGET_PEER_H
#include "base/clock.h"
#include "base/mem.h"
#include "milvus/catalog_priv.h"
#include "milvus/target_priv.h"

#include "meta.pb-c.h"

#include "h2peer.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- schema ----------------------------------------------------------------------------------- */

struct schema {
    Pb__CollectionSchema m;
    Pb__FieldSchema fields[8], *list[8];
    Pb__KeyValuePair params[8], *param_list[8];
    uint8_t flag; /* of a field that our FieldSchema does not know */
    ProtobufCMessageUnknownField unknown;
};

static Pb__FieldSchema *add_field(struct schema *s, const char *name, int type, const char *param, const char *value)
{
    size_t i = s->m.n_fields++;
    Pb__FieldSchema *f = &s->fields[i];

    pb__field_schema__init(f);
    pb__key_value_pair__init(&s->params[i]);
    s->list[i] = f;
    s->param_list[i] = &s->params[i];
    f->name = pb_str(name);
    f->data_type = type;
    if (param) {
        s->params[i].key = pb_str(param);
        s->params[i].value = pb_str(value);
        f->n_type_params = 1;
        f->type_params = &s->param_list[i];
    }
    return f;
}

static inline void schema_init(struct schema *s)
{
    memset(s, 0, sizeof(*s));
    pb__collection_schema__init(&s->m);
    s->m.fields = s->list;
    s->m.name = pb_str("c1");
    add_field(s, "id", 5, NULL, NULL)->is_primary_key = true;
    add_field(s, "txt", 21, "max_length", "64");
    add_field(s, "arr", 22, "max_capacity", "10")->element_type = 5;
    add_field(s, "vec", 101, "dim", "8");
}

enum change {
    SAME, SERVER_FIELDS, NAME, ORDER, TYPE, PK, AUTO_ID, PARTITION_KEY, DYNAMIC, ELEMENT, DIM, MAX_LENGTH, CAPACITY,
    NO_PARAM, MORE, FEWER, NULLABLE, N_CHANGES
};

/* What the server adds on its own to a description. */
static void add_server_fields(struct schema *s)
{
    add_field(s, "RowID", 5, NULL, NULL)->field_id = 0;
    add_field(s, "Timestamp", 5, NULL, NULL)->field_id = 1;
    add_field(s, "$meta", 23, NULL, NULL)->is_dynamic = true;
}

static inline void change(struct schema *s, enum change what)
{
    switch (what) {
    case SERVER_FIELDS:
        add_server_fields(s);
        break;
    case NAME:
        s->fields[1].name = pb_str("text");
        break;
    case ORDER:
        s->list[1] = &s->fields[2];
        s->list[2] = &s->fields[1];
        break;
    case TYPE:
        s->fields[0].data_type = 21;
        break;
    case PK:
        s->fields[0].is_primary_key = false;
        break;
    case AUTO_ID:
        s->fields[0].auto_id = true;
        break;
    case PARTITION_KEY:
        s->fields[1].is_partition_key = true;
        break;
    case DYNAMIC:
        s->m.enable_dynamic_field = true;
        break;
    case ELEMENT:
        s->fields[2].element_type = 77;
        break;
    case DIM:
        s->params[3].value = pb_str("16");
        break;
    case MAX_LENGTH:
        s->params[1].value = pb_str("65");
        break;
    case CAPACITY:
        s->params[2].value = pb_str("11");
        break;
    case NO_PARAM:
        s->fields[3].n_type_params = 0;
        break;
    case MORE:
        add_field(s, "extra", 5, NULL, NULL);
        break;
    case FEWER:
        s->m.n_fields--;
        break;
    case NULLABLE:
        s->flag = 1;
        s->unknown = (ProtobufCMessageUnknownField){.tag = 15, .len = 1, .data = &s->flag};
        s->fields[1].base.n_unknown_fields = 1;
        s->fields[1].base.unknown_fields = &s->unknown;
        break;
    default:
        break;
    }
}

static inline void request(struct pb_out *req)
{
    pb_out_bytes(req, 1, "\x18\x05", 2); /* base{timestamp 5} */
    pb_out_str(req, 2, "sdb");
    pb_out_str(req, 3, "three");
    pb_out_str(req, 4, "four");
    pb_out_str(req, 4, "vier");
    pb_out_u64(req, 5, 3);
    pb_out_str(req, 99, "of a newer version");
}

/* ---- a scripted server ------------------------------------------------------------------------ */

struct step {
    const char *method;
    const char *status; /* gRPC; NULL: never answers */
    const char *message;
    uint8_t *body; /* freed */
    size_t len;
};

static struct {
    struct loop *loop;
    struct peer peer;
    struct sink *sink;
    struct step steps[40];
    size_t n_steps, at;
    uint32_t last_crc;
    size_t last_bytes;
    char last_auth[64], last_db[64];
} fx;

struct ssl_st *peer_tls_accept(struct ssl_ctx_st *ctx)
{
    (void)ctx;
    abort(); /* the peer here has no TLS */
}

static bool expected(const struct peer_stream *s)
{
    const char *method = strrchr(s->path, '/') + 1;

    return fx.at < fx.n_steps && strcmp(fx.steps[fx.at].method, method) == 0;
}

static void peer_on_request(struct peer_stream *s, bool ended)
{
    struct step *st = &fx.steps[fx.at];

    if (!ended)
        return;
    if (!expected(s)) {
        fprintf(stderr, "step %zu: unexpected %s\n", fx.at, s->path);
        abort();
    }
    fx.at++;
    fx.last_crc = s->crc;
    fx.last_bytes = s->in_bytes - 5;
    snprintf(fx.last_auth, sizeof(fx.last_auth), "%s", s->auth);
    snprintf(fx.last_db, sizeof(fx.last_db), "%s", s->extra);
    if (!st->status)
        return;
    if (strcmp(st->status, "0") != 0) {
        peer_headers(s, "200", "application/grpc", st->status, st->message, true);
        return;
    }
    peer_headers(s, "200", "application/grpc", NULL, NULL, false);
    peer_message(s, st->body, st->len);
    peer_end(s, "0", NULL);
}

static inline void script_raw(const char *method, const char *status, const char *message)
{
    fx.steps[fx.n_steps++] = (struct step){.method = method, .status = status, .message = message};
}

static inline void script(const char *method, const ProtobufCMessage *m)
{
    struct step *st = &fx.steps[fx.n_steps++];

    *st = (struct step){.method = method, .status = "0"};
    st->len = protobuf_c_message_get_packed_size(m);
    st->body = xmalloc(st->len + 1);
    protobuf_c_message_pack(m, st->body);
}

/* An answer that only has a Status, bare or as field 1. */
static void script_status(const char *method, bool bare, int32_t code, const char *reason)
{
    Pb__StatusResponse outer = PB__STATUS_RESPONSE__INIT;
    Pb__Status st = PB__STATUS__INIT;

    st.code = code;
    st.error_code = code == 1 ? 56 : code ? 1 : 0;
    st.reason = pb_str(reason);
    outer.status = &st;
    script(method, bare ? &st.base : &outer.base);
}

static inline void script_partition_list(char **names, size_t n_names, int64_t *ids, size_t n_ids)
{
    Pb__ShowPartitionsResponse m = PB__SHOW_PARTITIONS_RESPONSE__INIT;

    m.n_partition_names = n_names;
    m.partition_names = names;
    m.n_partition_ids = n_ids;
    m.partition_ids = ids;
    script("ShowPartitions", &m.base);
}

static inline void script_partitions(const char *more, size_t n_ids)
{
    script_partition_list((char *[]){pb_str("_default"), pb_str(more)}, more ? 2 : 1, (int64_t[]){70, 71, 72}, n_ids);
}

static int open_sink(enum target_mode mode)
{
    struct target_options o = {.mode = mode, .token = "root:Milvus"};
    char uri[60];

    memset(&fx, 0, sizeof(fx));
    fx.loop = loop_new();
    peer_init(&fx.peer, fx.loop);
    snprintf(uri, sizeof(uri), "http://127.0.0.1:%u", (unsigned)fx.peer.port);
    o.uri = uri;
    fx.sink = target_open(fx.loop, &o, NULL);
    return fx.sink ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    target_close(fx.sink);
    peer_release(&fx.peer);
    loop_free(fx.loop);
    for (size_t i = 0; i < fx.n_steps; i++)
        free(fx.steps[i].body);
    return fx.at == fx.n_steps ? 0 : -1; /* every step was taken */
}

struct outcome {
    bool done, failed, doubt;
    struct err err;
    size_t n_partitions, n_shards;
    char pos[64];
    char vchannel[64], partition[64]; /* the last ones */
    char left_out[64];                /* with commas */
    bool plain_keys;
    int64_t id, partition_id;
};

static void wait_for(const struct outcome *o)
{
    uint64_t end = clock_mono_ms() + 20000;

    assert_false(o->done);
    while (!o->done) {
        if (clock_mono_ms() > end)
            fail_msg("no completion");
        loop_once(fx.loop, false);
        usleep(200);
    }
}

static void on_done(void *arg, const struct err *err)
{
    struct outcome *o = arg;

    assert_false(o->done);
    o->done = true;
    o->failed = err != NULL;
    if (err)
        o->err = *err;
}

static inline void on_collection(void *arg, const struct err *err, const struct sink_collection *c)
{
    struct outcome *o = arg;

    on_done(arg, err);
    if (!c)
        return;
    o->id = c->id;
    o->n_shards = c->n_shards;
    o->n_partitions = c->n_partitions;
    o->plain_keys = c->plain_keys;
    for (size_t i = 0; i < c->n_left_out; i++)
        snprintf(o->left_out + strlen(o->left_out), sizeof(o->left_out) - strlen(o->left_out), "%s,", c->left_out[i]);
    snprintf(o->vchannel, sizeof(o->vchannel), "%s", c->shards[c->n_shards - 1].vchannel);
    if (c->n_partitions == 0)
        return;
    snprintf(o->partition, sizeof(o->partition), "%s", c->partitions[c->n_partitions - 1].name);
    o->partition_id = c->partitions[c->n_partitions - 1].id;
}

static inline void on_batch(void *arg, const struct err *err, bool doubt, const char *target_pos)
{
    struct outcome *o = arg;

    on_done(arg, err);
    o->doubt = doubt;
    snprintf(o->pos, sizeof(o->pos), "%s", target_pos);
}

static inline void script_databases(void)
{
    Pb__ListDatabasesResponse m = PB__LIST_DATABASES_RESPONSE__INIT;
    char *names[] = {pb_str("default"), pb_str("tdb")};

    m.n_db_names = 2;
    m.db_names = names;
    script("ListDatabases", &m.base);
}

static inline struct outcome apply(int type)
{
    struct outcome o = {0};
    struct pb_out req = {0};

    request(&req);
    fx.sink->ops->apply_operation(fx.sink, type, req.data, req.len, "tdb", "c1", on_done, &o);
    pb_out_release(&req);
    wait_for(&o);
    return o;
}
#endif
