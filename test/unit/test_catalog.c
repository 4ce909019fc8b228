/* test_catalog.c - the catalog on a real etcd, which the test fills as a root coordinator does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "milvus/catalog.h"
#include "milvus/etcd.h"

#include "meta.pb-c.h"

#include "etcd_server.h"

static struct loop *loop;
static struct etcd_server server;
static struct etcd_hand hand;
static struct etcd_client *etcd;
static char root[32]; /* of the present test: they share one server */

/* ---- values as Milvus writes them ---- */

struct coll {
    int64_t id, db;
    const char *name;
    int state; /* 0 created, 1 creating, 2 dropping, 3 dropped */
};

/* protobuf-c's fields are not const, though packing does not write. */
static char *lit(const char *s)
{
    return (char *)(uintptr_t)s;
}

static const char *key(const char *fmt, ...)
{
    static char buf[8][200];
    static unsigned turn;
    char *b = buf[turn++ % 8];
    int n = snprintf(b, 200, "%s/meta/root-coord/", root);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(b + n, 200 - (size_t)n, fmt, ap);
    va_end(ap);
    return b;
}

static const char *coll_key(const struct coll *c)
{
    return key("database/collection-info/%lld/%lld", (long long)c->db, (long long)c->id);
}

static size_t pack_schema(uint8_t *buf, const char *name)
{
    Pb__CollectionSchema m = PB__COLLECTION_SCHEMA__INIT;
    size_t n;

    m.name = lit(name);
    m.description = lit("about");
    m.enable_dynamic_field = true;
    n = pb__collection_schema__pack(&m, buf);
    /* properties (6) of newer versions: replicate.id, and "a"; dbName (8); version (10) unknown */
    memcpy(buf + n, "\x32\x12\x0a\x0creplicate.id\x12\x02me\x32\x06\x0a\x01" "a\x12\x01" "b", 28);
    n += 28;
    memcpy(buf + n, "\x42\x03old\x50\x07", 7);
    return n + 7;
}

static size_t pack_coll(uint8_t *buf, const struct coll *c)
{
    Pb__CollectionInfo m = PB__COLLECTION_INFO__INIT;
    Pb__KeyDataPair p0 = PB__KEY_DATA_PAIR__INIT, p1 = PB__KEY_DATA_PAIR__INIT;
    Pb__KeyDataPair *starts[] = {&p1, &p0};
    Pb__KeyValuePair ttl = PB__KEY_VALUE_PAIR__INIT, rep = PB__KEY_VALUE_PAIR__INIT;
    Pb__KeyValuePair *props[] = {&rep, &ttl};
    char v0[60], v1[60];
    char *vnames[] = {v1, v0}, *pnames[] = {lit("dml_4"), lit("dml_3")};
    uint8_t schema[300];

    snprintf(v0, sizeof(v0), "dml_3_%lldv0", (long long)c->id);
    snprintf(v1, sizeof(v1), "dml_4_%lldv1", (long long)c->id);
    p0.key = lit("dml_3");
    p0.data = (ProtobufCBinaryData){8, (uint8_t *)(uintptr_t) "\x11\0\0\0\0\0\0\0"};
    p1.key = lit("dml_4");
    p1.data = (ProtobufCBinaryData){8, (uint8_t *)(uintptr_t) "\x12\0\0\0\0\0\0\0"};
    ttl.key = lit("collection.ttl.seconds");
    ttl.value = lit("60");
    rep.key = lit("replicate.id");
    rep.value = lit("x");
    m.id = c->id;
    m.schema = (ProtobufCBinaryData){pack_schema(schema, c->name), schema};
    m.create_time = 777;
    m.n_virtual_channel_names = m.n_physical_channel_names = 2;
    m.virtual_channel_names = vnames;
    m.physical_channel_names = pnames;
    m.shards_num = 2;
    m.n_start_positions = 2;
    m.start_positions = starts;
    m.consistency_level = 2;
    m.state = c->state;
    m.n_properties = 2;
    m.properties = props;
    m.db_id = c->db;
    return pb__collection_info__pack(&m, buf);
}

static int64_t put_coll(const struct coll *c)
{
    uint8_t buf[2000];

    return hand_put(&hand, coll_key(c), buf, pack_coll(buf, c));
}

static int64_t put_part(int64_t coll, int64_t id, const char *name, int state)
{
    Pb__PartitionInfo m = PB__PARTITION_INFO__INIT;
    uint8_t buf[500];

    m.partition_id = id;
    m.collection_id = coll;
    m.partition_name = lit(name);
    m.partition_created_timestamp = 5;
    m.state = state;
    return hand_put(&hand, key("partitions/%lld/%lld", (long long)coll, (long long)id), buf,
                    pb__partition_info__pack(&m, buf));
}

static int64_t put_field(int64_t coll, int64_t id, const char *name, int type, bool pk)
{
    Pb__KeyValuePair kv = PB__KEY_VALUE_PAIR__INIT, *params[] = {&kv};
    Pb__FieldSchema m = PB__FIELD_SCHEMA__INIT;
    uint8_t buf[500];
    size_t n;

    if (type == 21 || type == 101) { /* VarChar, FloatVector */
        kv.key = lit(type == 21 ? "max_length" : "dim");
        kv.value = lit(type == 21 ? "32" : "16");
        m.n_type_params = 1;
        m.type_params = params;
    }
    m.field_id = id;
    m.name = lit(name);
    m.data_type = type;
    m.is_primary_key = pk;
    m.is_dynamic = strcmp(name, "$meta") == 0;
    m.is_partition_key = strcmp(name, "tenant") == 0;
    m.state = 1;
    n = pb__field_schema__pack(&m, buf);
    memcpy(buf + n, "\x78\x01", 2); /* nullable (15), a field this program does not know */
    n += 2;
    if (strcmp(name, "tenant") == 0) { /* default_value (11) {long_data 7} */
        memcpy(buf + n, "\x5a\x02\x18\x07", 4);
        n += 4;
    }
    return hand_put(&hand, key("fields/%lld/%lld", (long long)coll, (long long)id), buf, n);
}

static int64_t put_db(int64_t id, const char *name, int state)
{
    Pb__DatabaseInfo m = PB__DATABASE_INFO__INIT;
    uint8_t buf[200];

    m.id = id;
    m.name = lit(name);
    m.state = state;
    return hand_put(&hand, key("database/db-info/%lld", (long long)id), buf,
                    pb__database_info__pack(&m, buf));
}

static int64_t tombstone(const char *k)
{
    return hand_put(&hand, k, "\xe2\x9b\xbc", 3);
}

static void put_fields(int64_t coll)
{
    put_field(coll, 0, "RowID", 5, false);
    put_field(coll, 1, "Timestamp", 5, false);
    put_field(coll, 102, "$meta", 23, false);
    put_field(coll, 101, "vec", 101, false);
    put_field(coll, 100, "key", 21, true);
}

/* The order of source.md 3.3. */
static int64_t create(const struct coll *c)
{
    struct coll creating = *c;

    creating.state = 1;
    put_coll(&creating);
    put_part(c->id, c->id * 10, "_default", 0);
    put_fields(c->id);
    return put_coll(c);
}

/* ---- a subscriber ---- */

struct log {
    struct catalog *c;
    void *sub;
    unsigned ready, collections, databases, troubles, over;
    char text[4000]; /* "id:state:name;" of each on_collection */
    char dbs[400];   /* "+name;" "-name;" */
    bool incomplete; /* something alive came without its parts */
    bool unsubscribe_in_callback, close_in_callback;
    struct err err;
};

static void on_ready(void *arg)
{
    struct log *log = arg;

    log->ready++;
    log->incomplete = log->incomplete || !log->c->ops->ready(log->c);
}

static void on_collection(void *arg, const struct src_collection *c)
{
    struct log *log = arg;
    size_t at = strlen(log->text);

    log->collections++;
    snprintf(log->text + at, sizeof(log->text) - at, "%lld:%c:%s.%s;", (long long)c->id,
             "CAD"[c->state], c->db_name, c->name);
    if (c->state == SRC_ALIVE && (c->n_partitions == 0 || c->pk_field_id != 100))
        log->incomplete = true;
    if (log->unsubscribe_in_callback) {
        log->c->ops->unsubscribe(log->c, log->sub);
        log->sub = NULL;
    }
    if (log->close_in_callback) {
        catalog_close(log->c);
        log->c = NULL;
    }
}

static void on_database(void *arg, int64_t id, const char *name, bool dropped)
{
    struct log *log = arg;
    size_t at = strlen(log->dbs);

    (void)id;
    log->databases++;
    snprintf(log->dbs + at, sizeof(log->dbs) - at, "%c%s;", dropped ? '-' : '+', name);
}

static void on_trouble(void *arg, const struct err *err)
{
    struct log *log = arg;

    if (err) {
        log->troubles++;
        log->err = *err;
    } else {
        log->over++;
    }
}

static const struct catalog_cbs cbs = {on_ready, on_collection, on_database, on_trouble};

static void subscribe(struct log *log, struct catalog *c)
{
    memset(log, 0, sizeof(*log));
    log->c = c;
    log->sub = c->ops->subscribe(c, &cbs, log);
    assert_int_equal(log->ready, 0);
}

static struct catalog *open_ready(struct log *log)
{
    struct catalog *c = catalog_open(loop, etcd, root, "meta");

    subscribe(log, c);
    WAIT_FOR(loop, log->ready == 1);
    return c;
}

struct sync_log {
    unsigned done;
    int code;
    enum err_class cls;
    char text[1000];
};

static void on_sync(void *arg, const struct err *err)
{
    struct sync_log *s = arg;

    s->done++;
    s->code = err ? (int)err->code : 0;
    s->cls = err ? err->cls : 0;
    snprintf(s->text, sizeof(s->text), "%s", err ? err->text : "");
}

static struct sync_log sync_now(struct catalog *c)
{
    struct sync_log s = {0};

    c->ops->sync(c, on_sync, &s);
    assert_int_equal(s.done, 0);
    WAIT_FOR(loop, s.done == 1);
    return s;
}

static const struct src_collection *get(struct catalog *c, int64_t id)
{
    return c->ops->get(c, id);
}

/* ---- tests ---- */

static void an_empty_source_is_ready(void **state)
{
    struct log log;
    struct catalog *c = open_ready(&log);

    (void)state;
    assert_null(c->ops->next(c, INT64_MIN));
    assert_null(get(c, 1));
    assert_int_equal(sync_now(c).code, 0);
    assert_int_equal(log.databases, 0);
    catalog_close(c);
}

static void a_snapshot_has_every_part_of_a_collection(void **state)
{
    struct coll a = {.id = 445566778899, .db = 1, .name = "books"};
    const struct src_collection *s;
    const struct catalog_props *props;
    struct log log;
    struct catalog *c;

    (void)state;
    put_db(1, "default", 1);
    put_db(7, "shop", 1);
    create(&a);
    put_part(a.id, 3, "p", 2);
    c = open_ready(&log);
    assert_int_equal(log.collections, 0); /* iterate then */
    assert_string_equal(log.dbs, "+shop;");
    s = c->ops->next(c, INT64_MIN);
    assert_ptr_equal(s, get(c, a.id));
    assert_null(c->ops->next(c, a.id));
    assert_string_equal(s->name, "books");
    assert_string_equal(s->db_name, "default");
    assert_int_equal(s->db_id, 1);
    assert_int_equal(s->state, SRC_ALIVE);
    assert_int_equal(s->create_tt, 777);
    assert_int_equal(s->n_shards, 2); /* by shard number, although stored the other way round */
    assert_string_equal(s->shards[0].vchannel, "dml_3_445566778899v0");
    assert_string_equal(s->shards[0].pchannel, "dml_3");
    assert_string_equal(s->shards[1].pchannel, "dml_4");
    assert_int_equal(s->shards[0].start_id_len, 8);
    assert_int_equal(s->shards[0].start_id[0], 0x11);
    assert_int_equal(s->shards[1].start_id[0], 0x12);
    assert_int_equal(s->n_partitions, 2); /* by id */
    assert_string_equal(s->partitions[0].name, "p");
    assert_int_equal(s->partitions[0].state, SRC_DROPPING);
    assert_string_equal(s->partitions[1].name, "_default");
    assert_int_equal(s->partitions[1].state, SRC_ALIVE);
    assert_int_equal(s->pk_field_id, 100);
    assert_true(s->pk_is_string);
    assert_string_equal(s->pk_name, "key");
    assert_false(s->has_partition_key);
    assert_int_equal(s->n_default_ids, 0);
    props = catalog_properties(s);
    assert_int_equal(props->consistency_level, 2);
    assert_false(props->has_partition_key);
    assert_int_equal(s->n_properties, 1);
    assert_string_equal(s->properties[0].key, "collection.ttl.seconds");
    assert_string_equal(s->properties[0].value, "60");
    catalog_close(c);
}

/* A field of an encoded message: its number of occurrences, the last one in *ret. */
static unsigned find_field(const uint8_t *data, size_t len, uint32_t num, struct pb_field *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    unsigned n = 0;
    int rc;

    while ((rc = pb_scan_next(&s, &f)) > 0)
        if (f.num == num) {
            *ret = f;
            n++;
        }
    assert_int_equal(rc, 0);
    return n;
}

static void the_schema_for_a_create_has_user_fields_only(void **state)
{
    struct coll a = {.id = 5, .db = 1, .name = "books"};
    Pb__CollectionSchema *m;
    struct pb_field f, g;
    struct log log;
    struct catalog *c;
    uint8_t *data;
    size_t len;

    (void)state;
    create(&a);
    put_field(a.id, 103, "tenant", 5, false);
    /* FunctionSchema: name "bm", id 9, input names "key", input ids, output ids */
    hand_put(&hand, key("functions/5/9"), "\x0a\x02" "bm\x10\x09\x2a\x03key\x32\x01\x64\x42\x01\x65", 17);
    c = open_ready(&log);
    assert_true(catalog_properties(get(c, 5))->has_partition_key && get(c, 5)->has_partition_key);
    assert_int_equal(get(c, 5)->n_default_ids, 1);
    assert_int_equal(get(c, 5)->default_ids[0], 103);
    assert_int_equal(get(c, 5)->row_bytes, 32 + 16 * 4 + 8);
    catalog_user_schema(get(c, 5), &data, &len);
    m = pb__collection_schema__unpack(NULL, len, data);
    assert_non_null(m);
    assert_string_equal(m->name, "books");
    assert_string_equal(m->description, "about");
    assert_true(m->enable_dynamic_field);
    assert_int_equal(m->n_fields, 3);
    assert_string_equal(m->fields[0]->name, "key");
    assert_string_equal(m->fields[1]->name, "vec");
    assert_string_equal(m->fields[2]->name, "tenant");
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(m->fields[i]->field_id, 0);
        assert_int_equal(m->fields[i]->state, 0);
    }
    assert_true(m->fields[0]->is_primary_key);
    assert_int_equal(find_field(data, len, 4, &f), 3);
    assert_int_equal(find_field(f.data, f.len, 15, &g), 1); /* unknown here, kept */
    assert_int_equal(find_field(data, len, 6, &f), 1);      /* without replicate.id */
    assert_memory_equal(f.data, "\x0a\x01" "a\x12\x01" "b", 6);
    assert_int_equal(find_field(data, len, 7, &f), 1);
    assert_int_equal(f.len, 9); /* name and input names */
    assert_int_equal(find_field(data, len, 8, &f), 0);
    assert_int_equal(find_field(data, len, 10, &f), 1);
    pb__collection_schema__free_unpacked(m, NULL);
    free(data);
    catalog_close(c);
}

static void a_create_is_told_once_complete(void **state)
{
    struct coll a = {.id = 20, .db = 1, .name = "a"};
    struct log log;
    struct catalog *c = open_ready(&log);
    unsigned told;

    (void)state;
    create(&a);
    WAIT_FOR(loop, strstr(log.text, ":A:"));
    if (strncmp(log.text, "20:C:default.a;", 15) == 0) /* else etcd told both at once */
        memmove(log.text, log.text + 15, strlen(log.text + 15) + 1);
    assert_string_equal(log.text, "20:A:default.a;");
    assert_false(log.incomplete);
    assert_int_equal(get(c, 20)->n_partitions, 1);
    told = log.collections;
    put_part(20, 201, "more", 1);
    put_part(20, 201, "more", 0);
    WAIT_FOR(loop, get(c, 20)->n_partitions == 2 &&
                       get(c, 20)->partitions[1].state == SRC_ALIVE);
    assert_in_range(log.collections, told + 1, told + 2);
    assert_int_equal(get(c, 20)->partitions[1].create_tt, 5);
    catalog_close(c);
}

static void a_drop_keeps_names_and_shards(void **state)
{
    struct coll a = {.id = 30, .db = 1, .name = "a"};
    struct log log;
    struct catalog *c;

    (void)state;
    create(&a);
    put_part(30, 31, "p", 0);
    c = open_ready(&log);
    put_part(30, 31, "p", 2);
    WAIT_FOR(loop, get(c, 30)->partitions[0].state == SRC_DROPPING);
    assert_string_equal(get(c, 30)->partitions[0].name, "p");
    tombstone(key("partitions/30/31"));
    a.state = 2;
    put_coll(&a);
    WAIT_FOR(loop, get(c, 30)->state == SRC_DROPPING);
    tombstone(key("partitions/30/300"));
    for (int i = 0; i < 3; i++)
        tombstone(key("fields/30/%d", 100 + i));
    tombstone(coll_key(&a));
    create(&(struct coll){.id = 39, .db = 1, .name = "later"});
    WAIT_FOR(loop, get(c, 39) && get(c, 39)->state == SRC_ALIVE);
    assert_string_equal(get(c, 30)->name, "a");
    assert_string_equal(get(c, 30)->shards[1].pchannel, "dml_4");
    assert_string_equal(get(c, 30)->partitions[0].name, "p");
    assert_int_equal(get(c, 30)->partitions[1].state, SRC_DROPPING);
    assert_int_equal(get(c, 30)->state, SRC_DROPPING);
    catalog_close(c);
    /* Who starts now knows nothing of it: a tombstone has no name. */
    c = open_ready(&log);
    assert_null(get(c, 30));
    assert_non_null(get(c, 39));
    assert_int_equal(sync_now(c).code, 0);
    catalog_close(c);
}

static void a_removed_key_is_a_drop(void **state)
{
    struct coll a = {.id = 40, .db = 1, .name = "a"};
    struct log log;
    struct catalog *c;

    (void)state;
    create(&a);
    put_part(40, 41, "p", 0);
    c = open_ready(&log);
    hand_delete(&hand, key("partitions/40/41"));
    WAIT_FOR(loop, get(c, 40)->partitions[0].state == SRC_DROPPING);
    hand_delete(&hand, coll_key(&a));
    WAIT_FOR(loop, get(c, 40)->state == SRC_DROPPING);
    assert_string_equal(get(c, 40)->name, "a");
    catalog_close(c);
}

static void names_are_no_identity(void **state)
{
    struct coll a = {.id = 50, .db = 1, .name = "same"}, b = {.id = 51, .db = 1, .name = "same"};
    struct log log;
    struct catalog *c;

    (void)state;
    create(&a);
    c = open_ready(&log);
    a.state = 2;
    put_coll(&a);
    create(&b);
    WAIT_FOR(loop, get(c, 51) && get(c, 51)->state == SRC_ALIVE);
    assert_int_equal(get(c, 50)->state, SRC_DROPPING);
    /* what etcd answered together is shown together: perhaps without 51:C */
    assert_ptr_equal(strstr(log.text, "50:D:default.same;51:"), log.text);
    assert_non_null(strstr(log.text, "51:A:default.same;"));
    b.name = "renamed";
    put_coll(&b);
    WAIT_FOR(loop, strcmp(get(c, 51)->name, "renamed") == 0);
    assert_int_equal(get(c, 51)->state, SRC_ALIVE);
    assert_int_equal(get(c, 51)->n_partitions, 1);
    assert_int_equal(c->ops->next(c, 50)->id, 51);
    catalog_close(c);
}

/* A rename into another database is a put and a tombstone in one transaction, in any order. */
static void a_move_between_databases_is_no_drop(void **state)
{
    struct coll a = {.id = 60, .db = 1, .name = "a"}, b = {.id = 60, .db = 9, .name = "a2"};
    uint8_t va[2000], vb[2000];
    size_t na = pack_coll(va, &a), nb = pack_coll(vb, &b);
    struct hand_kv there[2], back[2];
    struct log log;
    struct catalog *c;

    (void)state;
    put_db(9, "nine", 1);
    create(&a);
    there[0] = back[0] = (struct hand_kv){coll_key(&a), "\xe2\x9b\xbc", 3};
    there[1] = back[1] = (struct hand_kv){coll_key(&b), "\xe2\x9b\xbc", 3};
    there[1].value = vb;
    there[1].len = nb;
    back[0].value = va;
    back[0].len = na;
    c = open_ready(&log);
    hand_txn(&hand, there, 2);
    WAIT_FOR(loop, log.collections == 1);
    hand_txn(&hand, back, 2);
    WAIT_FOR(loop, log.collections == 2);
    assert_string_equal(log.text, "60:A:nine.a2;60:A:default.a;");
    assert_false(log.incomplete);
    catalog_close(c);
}

static void the_old_layout_is_the_default_database(void **state)
{
    struct coll a = {.id = 70, .db = 0, .name = "old"}, b = {.id = 70, .db = 1, .name = "old"};
    uint8_t buf[2000];
    size_t n = pack_coll(buf, &a);
    struct log log;
    struct catalog *c;

    (void)state;
    hand_put(&hand, key("collection/70"), buf, n);
    hand_put(&hand, key("collection-alias/nonsense"), buf, n);
    put_fields(70);
    put_part(70, 700, "_default", 0);
    c = open_ready(&log);
    assert_string_equal(get(c, 70)->db_name, "default");
    assert_int_equal(get(c, 70)->db_id, 1);
    put_coll(&b); /* moved to the new layout */
    tombstone(key("collection/70"));
    put_part(70, 701, "p", 0);
    WAIT_FOR(loop, get(c, 70)->n_partitions == 2);
    assert_int_equal(get(c, 70)->state, SRC_ALIVE);
    tombstone(coll_key(&b));
    WAIT_FOR(loop, get(c, 70)->state == SRC_DROPPING);
    catalog_close(c);
}

static void databases_come_and_go(void **state)
{
    struct log log;
    struct catalog *c = open_ready(&log);

    (void)state;
    put_db(80, "creating", 2);
    put_db(80, "d", 1);
    put_db(80, "d", 1); /* altered: no news */
    put_db(81, "e", 1);
    tombstone(key("database/db-info/80"));
    hand_delete(&hand, key("database/db-info/81"));
    WAIT_FOR(loop, log.databases >= 4);
    assert_string_equal(log.dbs, "+d;+e;-d;-e;");
    catalog_close(c);
}

static void a_collection_waits_for_the_name_of_its_database(void **state)
{
    struct coll a = {.id = 90, .db = 91, .name = "a"};
    struct sync_log s;
    struct log log;
    struct catalog *c = open_ready(&log);

    (void)state;
    create(&a);
    s = sync_now(c);
    assert_int_equal(s.cls, ERRC_DATA); /* "not there" would be wrong */
    assert_non_null(strstr(s.text, "database/collection-info/91/90"));
    assert_null(get(c, 90));
    assert_int_equal(log.collections, 0);
    put_db(91, "ninety", 1);
    WAIT_FOR(loop, log.collections == 1);
    assert_string_equal(log.text, "90:A:ninety.a;");
    assert_false(log.incomplete);
    assert_int_equal(sync_now(c).code, 0);
    catalog_close(c);
}

/* DropDatabase removes its key at once; the collections in it stay "dropping" until the data is collected. */
static void a_dropped_collection_needs_no_database(void **state)
{
    struct coll a = {.id = 95, .db = 96, .name = "a", .state = 2};
    struct log log;
    struct catalog *c;

    (void)state;
    put_coll(&a);
    c = open_ready(&log);
    assert_int_equal(sync_now(c).code, 0);
    assert_non_null(get(c, 95));
    assert_int_equal(get(c, 95)->state, SRC_DROPPING);
    catalog_close(c);
}

static void an_unreadable_value_is_never_taken_for_absence(void **state)
{
    struct coll a = {.id = 100, .db = 1, .name = "a"}, b = {.id = 101, .db = 1, .name = "b"},
                wrong = {.id = 999, .db = 1, .name = "b"};
    uint8_t buf[2000];
    size_t n = pack_coll(buf, &wrong);
    struct sync_log s;
    struct log log;
    struct catalog *c;

    (void)state;
    create(&a);
    hand_put(&hand, coll_key(&b), buf, n); /* another id than the key's */
    hand_put(&hand, key("database/collection-info/1/x"), buf, n);
    hand_put(&hand, key("database/collection-info/1/99999999999999999999"), buf, n);
    c = open_ready(&log);
    assert_null(get(c, 101));
    s = sync_now(c);
    assert_int_equal(s.cls, ERRC_DATA);
    assert_non_null(strstr(s.text, "database/collection-info/1/101"));
    create(&b);
    WAIT_FOR(loop, get(c, 101) && get(c, 101)->state == SRC_ALIVE);
    assert_int_equal(sync_now(c).code, 0);
    /* Cut at every place: the former value stays. */
    n = pack_coll(buf, &b);
    for (size_t i = 0; i < n; i += 7)
        hand_put(&hand, coll_key(&b), buf, i);
    put_part(101, 5, "marker", 0);
    WAIT_FOR(loop, get(c, 101)->n_partitions == 2);
    assert_string_equal(get(c, 101)->name, "b");
    assert_int_equal(get(c, 101)->n_shards, 2);
    assert_int_equal(get(c, 101)->state, SRC_ALIVE);
    assert_int_equal(sync_now(c).code, 0);
    hand_put(&hand, key("partitions/100/6"), "\xff\xff", 2);
    s = sync_now(c);
    assert_int_equal(s.cls, ERRC_DATA);
    assert_non_null(strstr(s.text, "partitions/100/6"));
    hand_delete(&hand, key("partitions/100/6"));
    hand_put(&hand, key("fields/100/104"), "\xff\xff", 2);
    put_part(100, 7, "marker", 0);
    s = sync_now(c);
    assert_non_null(strstr(s.text, "fields/100/104"));
    assert_null(get(c, 100)); /* its schema is not known */
    put_field(100, 104, "new", 5, false);
    WAIT_FOR(loop, get(c, 100));
    assert_int_equal(get(c, 100)->n_partitions, 2 + 0);
    catalog_close(c);
}

static void a_sync_sees_what_was_written_before(void **state)
{
    struct log log;
    struct catalog *c = open_ready(&log);

    (void)state;
    for (int64_t i = 0; i < 30; i++) {
        struct coll a = {.id = 2000 + i, .db = 1, .name = "a"};
        struct sync_log s[3] = {0};

        create(&a);
        for (size_t j = 0; j < 3; j++)
            c->ops->sync(c, on_sync, &s[j]);
        c->ops->sync_cancel(c, &s[1]);
        WAIT_FOR(loop, s[0].done && s[2].done);
        assert_int_equal(s[0].code, 0);
        assert_int_equal(s[1].done, 0);
        assert_non_null(get(c, a.id));
        assert_int_equal(get(c, a.id)->state, SRC_ALIVE);
        assert_int_equal(get(c, a.id)->n_partitions, 1);
    }
    /* The watch brings the same events once more or earlier: nobody hears of them twice. */
    put_db(5, "marker", 1);
    WAIT_FOR(loop, log.databases == 1);
    assert_false(log.incomplete);
    for (int64_t i = 0; i < 30; i++) {
        char text[40];
        const char *at;

        snprintf(text, sizeof(text), "%lld:A:", 2000ll + i);
        at = strstr(log.text, text);
        assert_non_null(at);
        assert_null(strstr(at + 1, text));
    }
    catalog_close(c);
}

/* More keys than a page has, and changes while the pages are read. */
static void many_collections_come_in_pages(void **state)
{
    struct log log;
    struct catalog *c;
    int64_t n = 0;
    uint8_t buf[64][2000];
    char keys[64][200];
    struct hand_kv kvs[64];

    (void)state;
    for (int64_t i = 0; i < 1200; i += 60) {
        for (int64_t j = 0; j < 60; j++) {
            struct coll a = {.id = 10000 + i + j, .db = 1, .name = "many"};

            snprintf(keys[j], sizeof(keys[j]), "%s", coll_key(&a));
            kvs[j] = (struct hand_kv){keys[j], buf[j], pack_coll(buf[j], &a)};
        }
        hand_txn(&hand, kvs, 60);
    }
    c = catalog_open(loop, etcd, root, "meta");
    subscribe(&log, c);
    put_part(10000, 1, "during", 0);
    WAIT_FOR(loop, log.ready == 1);
    for (const struct src_collection *s = NULL;
         (s = c->ops->next(c, s ? s->id : INT64_MIN)); n++)
        assert_int_equal(s->id, 10000 + n);
    assert_int_equal(n, 1200);
    WAIT_FOR(loop, get(c, 10000)->n_partitions == 1);
    catalog_close(c);
}

static void a_second_subscriber_joins_and_one_leaves_inside_a_callback(void **state)
{
    struct coll a = {.id = 110, .db = 1, .name = "a"};
    struct log first, second;
    struct catalog *c;

    (void)state;
    put_db(3, "three", 1);
    create(&a);
    c = open_ready(&first);
    subscribe(&second, c);
    WAIT_FOR(loop, second.ready == 1);
    assert_string_equal(second.dbs, "+three;");
    assert_int_equal(first.ready, 1);
    first.unsubscribe_in_callback = true;
    a.name = "b";
    put_coll(&a);
    WAIT_FOR(loop, second.collections == 1);
    a.name = "c";
    put_coll(&a);
    WAIT_FOR(loop, second.collections == 2);
    assert_int_equal(first.collections, 1);
    c->ops->unsubscribe(c, second.sub);
    subscribe(&first, c); /* and one that leaves before it is told anything */
    c->ops->unsubscribe(c, first.sub);
    subscribe(&second, c);
    WAIT_FOR(loop, second.ready == 1);
    assert_int_equal(first.ready, 0);
    second.close_in_callback = true;
    put_coll(&a);
    WAIT_FOR(loop, second.collections == 1);
    assert_null(second.c);
}

static void open_and_close_at_once(void **state)
{
    struct catalog *c = catalog_open(loop, etcd, root, "meta");
    struct sync_log s = {0};
    struct log log;

    (void)state;
    subscribe(&log, c);
    c->ops->sync(c, on_sync, &s);
    catalog_close(c);
    for (int i = 0; i < 50; i++) {
        loop_once(loop, false);
        usleep(500);
    }
    assert_int_equal(log.ready + s.done, 0);
    catalog_close(NULL);
}

/* Changes and a compaction while the catalog cannot listen: read again, and only the difference told. */
static void a_compaction_is_followed_by_a_new_snapshot(void **state)
{
    struct coll kept = {.id = 120, .db = 1, .name = "kept"},
                dropped = {.id = 121, .db = 1, .name = "dropped"},
                removed = {.id = 122, .db = 1, .name = "removed"},
                added = {.id = 123, .db = 1, .name = "added"};
    struct log log;
    struct catalog *c;

    (void)state;
    put_db(4, "four", 1);
    create(&kept);
    create(&dropped);
    create(&removed);
    put_part(120, 1, "p", 0);
    c = open_ready(&log);
    etcd_server_kill(&server);
    WAIT_FOR(loop, log.troubles > 0);
    assert_int_equal(log.err.cls, ERRC_RETRY);
    etcd_server_run(&server);
    {
        /* The catalog's loop stands still meanwhile. */
        struct etcd_hand saved = hand;
        struct loop *l = loop_new();

        hand_open(&hand, l, &server);
        tombstone(coll_key(&dropped));
        hand_delete(&hand, coll_key(&removed));
        hand_delete(&hand, key("partitions/120/1"));
        hand_delete(&hand, key("database/db-info/4"));
        put_db(5, "five", 1);
        hand_compact(&hand, create(&added));
        hand_close(&hand);
        loop_free(l);
        hand = saved;
    }
    log.text[0] = '\0';
    log.dbs[0] = '\0';
    WAIT_FOR(loop, log.ready == 2 && log.over > 0);
    assert_int_equal(log.collections, 4);
    assert_non_null(strstr(log.text, "120:A:default.kept;"));
    assert_non_null(strstr(log.text, "121:D:default.dropped;"));
    assert_non_null(strstr(log.text, "122:D:default.removed;"));
    assert_non_null(strstr(log.text, "123:A:default.added;"));
    assert_string_equal(log.dbs, "+five;-four;");
    assert_false(log.incomplete);
    assert_int_equal(get(c, 120)->partitions[0].state, SRC_DROPPING);
    kept.name = "still watched";
    put_coll(&kept);
    WAIT_FOR(loop, strcmp(get(c, 120)->name, "still watched") == 0);
    catalog_close(c);
}

static void a_sync_fails_while_etcd_is_away(void **state)
{
    struct coll a = {.id = 130, .db = 1, .name = "a"};
    struct sync_log s;
    struct log log, late;
    struct catalog *c = open_ready(&log);

    (void)state;
    etcd_server_kill(&server);
    s = sync_now(c);
    assert_int_equal(s.cls, ERRC_RETRY);
    assert_int_not_equal(s.code, 0);
    assert_int_equal(log.troubles, 1);
    subscribe(&late, c);
    WAIT_FOR(loop, late.troubles == 1 && late.ready == 1);
    etcd_server_run(&server);
    create(&a);
    WAIT_FOR(loop, get(c, 130) && get(c, 130)->state == SRC_ALIVE);
    assert_int_equal(log.over, 1);
    assert_int_equal(late.over, 1);
    assert_int_equal(sync_now(c).code, 0);
    catalog_close(c);
}

/* etcd is not there when the catalog opens. */
static void a_snapshot_waits_for_etcd(void **state)
{
    struct catalog *c;
    struct log log;

    (void)state;
    etcd_server_kill(&server);
    c = catalog_open(loop, etcd, root, "meta");
    subscribe(&log, c);
    WAIT_FOR(loop, log.troubles == 1);
    assert_false(c->ops->ready(c));
    etcd_server_run(&server);
    WAIT_FOR(loop, log.ready == 1);
    assert_int_equal(log.over, 1);
    catalog_close(c);
}

/* ---- main ---- */

static int setup(void **state)
{
    static unsigned n;
    struct etcd_options o = {.endpoints = (const char *const[]){server.endpoint, NULL},
                             .dial_timeout_ms = 1000};

    (void)state;
    snprintf(root, sizeof(root), "t%u", n++);
    etcd = etcd_open(loop, &o, NULL);
    return etcd ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    etcd_close(etcd);
    return 0;
}

static int group_setup(void **state)
{
    (void)state;
    loop = loop_new();
    etcd_server_start(&server);
    hand_open(&hand, loop, &server);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    hand_close(&hand);
    etcd_server_remove(&server);
    loop_free(loop);
    return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_empty_source_is_ready),
        TEST(a_snapshot_has_every_part_of_a_collection),
        TEST(the_schema_for_a_create_has_user_fields_only),
        TEST(a_create_is_told_once_complete),
        TEST(a_drop_keeps_names_and_shards),
        TEST(a_removed_key_is_a_drop),
        TEST(names_are_no_identity),
        TEST(a_move_between_databases_is_no_drop),
        TEST(the_old_layout_is_the_default_database),
        TEST(databases_come_and_go),
        TEST(a_collection_waits_for_the_name_of_its_database),
        TEST(a_dropped_collection_needs_no_database),
        TEST(an_unreadable_value_is_never_taken_for_absence),
        TEST(a_sync_sees_what_was_written_before),
        TEST(many_collections_come_in_pages),
        TEST(a_second_subscriber_joins_and_one_leaves_inside_a_callback),
        TEST(open_and_close_at_once),
        TEST(a_compaction_is_followed_by_a_new_snapshot),
        TEST(a_sync_fails_while_etcd_is_away),
        TEST(a_snapshot_waits_for_etcd),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
