/*
 * test_target_plain.c - the sink of a target that is no standby, against a peer that answers as scripted.
 * test_target_plain_live.c has a real one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "target_peer.h"

/* ---- collections ------------------------------------------------------------------------------ */

/* What the source has: autoID on, as in schema_init(); with a partition key (txt) when asked. */
static void source_schema(struct schema *s, bool partition_key)
{
    schema_init(s);
    s->m.auto_id = s->fields[0].auto_id = true;
    s->fields[1].is_partition_key = partition_key;
}

/* A collection of the source with two shards and partitions _default, p1 and one that is being dropped. */
static void begin_plain(const struct schema *s, struct outcome *ret)
{
    static char *v[] = {(char *)"s_1_5v0", (char *)"s_2_5v1"}, *p[] = {(char *)"s_1", (char *)"s_2"};
    static const struct src_pair property = {(char *)"mmap.enabled", (char *)"true"};
    Pb__CollectionInfo m = PB__COLLECTION_INFO__INIT;
    struct src_partition parts[] = {{.name = pb_str("_default"), .state = SRC_ALIVE},
                                    {.name = pb_str("p1"), .state = SRC_ALIVE},
                                    {.name = pb_str("p2"), .state = SRC_DROPPING}};
    struct cat_collection cat = {0};
    uint8_t schema[1000], value[2000];
    struct schema copy = *s;
    const char *why;

    for (size_t i = 0; i < s->m.n_fields; i++) {
        copy.fields[i].field_id = 100 + (int64_t)i;
        copy.list[i] = &copy.fields[i];
    }
    copy.m.fields = copy.list;
    m.schema.data = schema;
    m.schema.len = pb__collection_schema__pack(&copy.m, schema);
    m.id = 5;
    m.create_time = 1000;
    m.n_virtual_channel_names = m.n_physical_channel_names = 2;
    m.virtual_channel_names = v;
    m.physical_channel_names = p;
    cat.info = cat_info_parse(value, pb__collection_info__pack(&m, value), 5, &why);
    assert_non_null(cat.info);
    cat.props = (struct catalog_props){.consistency_level = 1};
    cat.pub = (struct src_collection){.id = 5, .db_name = pb_str("default"), .name = cat.info->name, .create_tt = 1000,
                                      .shards = cat.info->shards, .n_shards = 2, .partitions = parts,
                                      .n_partitions = 3, .properties = &property, .n_properties = 1, .impl = &cat};
    *ret = (struct outcome){0};
    fx.sink->ops->ensure_collection(fx.sink, &cat.pub, "tdb", "c1", true, on_collection, ret);
    cat_info_free(cat.info);
    memset(&cat, 0xee, sizeof(cat));
}

static struct outcome make_plain(const struct schema *s)
{
    struct outcome o;

    begin_plain(s, &o);
    wait_for(&o);
    return o;
}

/* What is asked first on a connection. */
static void script_version(const char *version)
{
    Pb__GetVersionResponse m = PB__GET_VERSION_RESPONSE__INIT;

    m.version = pb_str(version);
    script("GetVersion", &m.base);
}

static void assert_request(const uint8_t *data, size_t len)
{
    assert_int_equal(fx.last_bytes, len);
    assert_int_equal(fx.last_crc, crc_add(0, data, len));
}

static void assert_sent(const ProtobufCMessage *m)
{
    uint8_t data[2000];

    assert_request(data, protobuf_c_message_pack(m, data));
}

static void script_schema(const Pb__CollectionSchema *s, int64_t id)
{
    Pb__DescribeCollectionResponse m = PB__DESCRIBE_COLLECTION_RESPONSE__INIT;

    m.schema = (Pb__CollectionSchema *)(uintptr_t)s;
    m.collection_id = id; /* no channels: a hosted target need not tell */
    script("DescribeCollection", &m.base);
}

/* The create request when it is the last that was sent: the answer of CreateCollection is an error. */
static void assert_create_request(bool partition_key)
{
    Pb__CreateCollectionRequest req = PB__CREATE_COLLECTION_REQUEST__INIT;
    Pb__KeyValuePair kv = PB__KEY_VALUE_PAIR__INIT, *list[] = {&kv};
    struct schema want;
    uint8_t schema[1000];

    source_schema(&want, partition_key);
    want.m.auto_id = want.fields[0].auto_id = false;
    req.db_name = pb_str("tdb");
    req.collection_name = pb_str("c1");
    req.schema.data = schema;
    req.schema.len = pb__collection_schema__pack(&want.m, schema);
    req.shards_num = 2;
    req.consistency_level = 1;
    kv.key = pb_str("mmap.enabled");
    kv.value = pb_str("true");
    req.n_properties = 1;
    req.properties = list;
    req.num_partitions = partition_key ? 2 : 0;
    assert_sent(&req.base);
}

static void test_plain_create_request(void **state)
{
    (void)state;
    for (int key = 0; key < 2; key++) {
        struct schema s;
        struct outcome o;

        source_schema(&s, key);
        if (key == 0)
            script_version("v2.3.5");
        script_status("DescribeCollection", false, 100, "collection not found");
        script_databases();
        script_status("CreateCollection", true, 1100, "no such type");
        o = make_plain(&s);
        assert_true(o.failed && o.err.cls == ERRC_USER);
        assert_non_null(strstr(o.err.text, "no such type"));
        assert_create_request(key);
    }
}

static void test_plain_collection_is_described(void **state)
{
    struct schema s, t;
    struct outcome o;

    (void)state;
    source_schema(&s, false);
    schema_init(&t);
    t.list[0] = &t.fields[3]; /* order does not count: rows carry names */
    t.list[3] = &t.fields[0];
    add_server_fields(&t);
    script_version("v2.3.5");
    script_schema(&t.m, 7);
    script_partitions(NULL, 1);
    script_status("CreatePartition", true, 0, "");
    script_partitions("p1", 2);
    o = make_plain(&s);
    if (o.failed)
        fail_msg("%s", o.err.text);
    assert_int_equal(o.id, 7);
    assert_int_equal(o.n_shards, 2);
    assert_string_equal(o.vchannel, "s_2_5v1"); /* the source's own */
    assert_int_equal(o.n_partitions, 2);
    assert_string_equal(o.partition, "p1");
    assert_int_equal(o.partition_id, 71);
}

/* The same id: it is the same server. */
static void test_plain_target_must_not_be_the_source(void **state)
{
    struct schema s, t;
    struct outcome o;

    (void)state;
    source_schema(&s, false);
    schema_init(&t);
    script_version("v2.3.5");
    script_schema(&t.m, 5);
    o = make_plain(&s);
    assert_true(o.failed && o.err.cls == ERRC_USER);
    assert_non_null(strstr(o.err.text, "the target is the source itself"));
}

static void test_plain_partition_key_has_the_sources_partitions(void **state)
{
    struct schema s, t;
    struct outcome o;

    (void)state;
    source_schema(&s, true);
    schema_init(&t);
    t.fields[1].is_partition_key = true;
    script_version("v2.3.5");
    script_schema(&t.m, 7);
    o = make_plain(&s);
    if (o.failed)
        fail_msg("%s", o.err.text);
    assert_int_equal(o.n_partitions, 2);
    assert_string_equal(o.partition, "p1");
    assert_true(o.partition_id != 0);
}

static void test_plain_differences_are_named(void **state)
{
    static const char *const want[N_CHANGES] = {
        [NAME] = "field `txt`: the field is there on the source and absent on the target",
        [TYPE] = "field `id`: the data type is Int64 on the source and VarChar on the target",
        [PK] = "field `id`: primary key is true on the source and false on the target",
        [AUTO_ID] = "field `id`: autoID is on at the target",
        [PARTITION_KEY] = "field `txt`: partition key",
        [DYNAMIC] = "field `$meta`: the dynamic field",
        [ELEMENT] = "field `arr`: the element type",
        [DIM] = "field `vec`: dim is 8 on the source and 16 on the target",
        [MAX_LENGTH] = "field `txt`: max_length",
        [CAPACITY] = "field `arr`: max_capacity",
        [NO_PARAM] = "field `vec`: dim is 8 on the source and absent on the target",
        [MORE] = "field `extra`: the field is absent on the source and there on the target",
        [FEWER] = "field `vec`: the field is there on the source and absent on the target",
        [NULLABLE] = "field `txt`: nullable is false on the source and true on the target",
    };

    (void)state;
    for (enum change c = SAME; c < N_CHANGES; c++) {
        struct schema source, target;
        struct err err = {0};
        int rc;

        schema_init(&source);
        schema_init(&target);
        change(&target, c);
        rc = target_schema_compare_plain(&source.m, &target.m, NULL, &err);
        assert_int_equal(rc, want[c] ? ERR_STATE : 0);
        if (want[c] && (err.cls != ERRC_USER || strncmp(err.text, want[c], strlen(want[c])) != 0))
            fail_msg("not \"%s\" but: %s", want[c], err.text);
    }
}

/* An older target drops in silence what it does not know: seen only in its own description. */
static void test_plain_what_the_target_does_not_know_is_named(void **state)
{
    struct schema s, t;
    struct outcome o;

    (void)state;
    source_schema(&s, false);
    change(&s, NULLABLE);
    schema_init(&t);
    script_version("a branch");
    script_status("DescribeCollection", false, 100, "collection not found");
    script_databases();
    script_status("CreateCollection", true, 0, "");
    script_schema(&t.m, 7);
    o = make_plain(&s);
    assert_true(o.failed && o.err.cls == ERRC_USER && o.err.code == ERR_UNSUPPORTED);
    assert_non_null(strstr(o.err.text, "tdb.c1: field `txt`: nullable is true on the source and false on the target"));
    assert_non_null(strstr(o.err.text, "upgrade the target"));
}

/* A schema that a call may take fields out of. */
static Pb__CollectionSchema *own_schema(const struct schema *s)
{
    uint8_t data[2000];

    return pb__collection_schema__unpack(NULL, pb__collection_schema__pack(&s->m, data), data);
}

static int fit(const struct schema *s, const char *version, struct left_out *out, struct err *err)
{
    Pb__CollectionSchema *m = own_schema(s);
    int rc = target_features_fit(m, version, out, err);

    pb__collection_schema__free_unpacked(m, NULL);
    return rc;
}

static void test_plain_later_types_need_a_later_version(void **state)
{
    static const struct {
        int type;
        const char *version, *text; /* NULL: taken */
    } table[] = {{104, "v2.3.5-lite", "field `more`: SparseFloatVector needs Milvus 2.4, and the target is v2.3.5-lite"},
                 {103, "2.3.9", "BFloat16Vector needs Milvus 2.4"},
                 {104, "v2.4.0", NULL},
                 {104, "3.0", NULL},
                 {105, "v2.5.12", "Int8Vector needs Milvus 2.6"},
                 {105, "v2.6.0-rc1", NULL},
                 {105, "", NULL},
                 {105, "a branch", NULL},
                 {102, "v2.3.5", NULL},
                 {22, "v2.2.16", "Array needs Milvus 2.3"},
                 {100, "milvus_lite-3.2.2", "Milvus Lite has no BinaryVector"},
                 {103, "milvus_lite", "Milvus Lite has no BFloat16Vector"},
                 {104, "milvus_lite-3.2.2", NULL}};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct schema s;
        struct err err = {0};

        schema_init(&s);
        add_field(&s, "more", table[i].type, "dim", "8");
        if (table[i].type == 22)
            s.list[2] = s.list[4], s.m.n_fields--; /* the only array */
        assert_int_equal(fit(&s, table[i].version, NULL, &err), table[i].text ? ERR_UNSUPPORTED : 0);
        if (table[i].text && (err.cls != ERRC_USER || !strstr(err.text, table[i].text)))
            fail_msg("row %zu: %s", i, err.text);
    }
}

static void test_plain_nullable_needs_a_later_version(void **state)
{
    struct err err = {0};
    struct schema s;

    (void)state;
    schema_init(&s);
    change(&s, NULLABLE);
    assert_int_equal(fit(&s, "v2.3.5", NULL, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "field `txt`: nullable needs Milvus 2.5, and the target is v2.3.5"));
    assert_int_equal(fit(&s, "v2.5.0", NULL, &err), 0);
    assert_int_equal(fit(&s, "milvus_lite-3.2.2", NULL, &err), 0);
}

/* Keys and the only vector are needed, whatever the user allows. */
static void test_plain_what_can_be_left_out(void **state)
{
    struct left_out out = {0};
    struct err err = {0};
    struct schema s;
    Pb__CollectionSchema *m;

    (void)state;
    schema_init(&s);
    add_field(&s, "sparse", 104, NULL, NULL);
    add_field(&s, "place", 24, NULL, NULL);
    m = own_schema(&s);
    assert_int_equal(target_features_fit(m, "v2.3.5", &out, &err), 0);
    assert_int_equal(out.n, 2);
    assert_true(left_out_has(&out, "sparse") && left_out_has(&out, "place"));
    assert_int_equal(m->n_fields, 4);
    assert_string_equal(m->fields[3]->name, "vec");
    pb__collection_schema__free_unpacked(m, NULL);
    left_out_release(&out);
    s.fields[3].data_type = 105; /* vec */
    assert_int_equal(fit(&s, "v2.3.5", &out, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "Milvus 2."));
    left_out_release(&out);
    schema_init(&s);
    s.fields[0].data_type = 24;
    assert_int_equal(fit(&s, "v2.3.5", &out, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "field `id`: Geometry"));
    assert_int_equal(out.n, 0);
}

static void test_plain_types_that_cannot_be_written(void **state)
{
    static const struct {
        int type;
        const char *name; /* NULL: can */
    } table[] = {{24, "Geometry"}, {26, "Timestamptz"}, {106, "ArrayOfVector"}, {0, "none"},
                 {28, "type 28"},  {25, NULL},          {20, NULL},             {105, NULL}};
    struct outcome o;
    struct schema s;

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct err err = {0};

        schema_init(&s);
        add_field(&s, "more", table[i].type, NULL, NULL);
        assert_int_equal(fit(&s, "v3.0", NULL, &err), table[i].name ? ERR_UNSUPPORTED : 0);
        if (!table[i].name)
            continue;
        assert_int_equal(err.cls, ERRC_USER);
        if (!strstr(err.text, "field `more`: ") || !strstr(err.text, table[i].name))
            fail_msg("row %zu: %s", i, err.text);
    }
    schema_init(&s);
    /* struct_array_fields */
    s.unknown = (ProtobufCMessageUnknownField){.tag = 9, .wire_type = 2, .len = 1, .data = &s.flag};
    s.m.base.n_unknown_fields = 1;
    s.m.base.unknown_fields = &s.unknown;
    assert_int_equal(fit(&s, "v3.0", NULL, NULL), ERR_UNSUPPORTED);
    source_schema(&s, false);
    add_field(&s, "place", 24, NULL, NULL);
    script_version("v2.6.0");
    o = make_plain(&s); /* nothing else is asked */
    assert_true(o.failed && o.err.cls == ERRC_USER);
    assert_non_null(strstr(o.err.text, "collection tdb.c1: field `place`: Geometry"));
}

/* Once on each connection; a server that does not tell is taken as it is. */
static void test_plain_version_is_asked_for(void **state)
{
    struct schema s;
    struct outcome o;

    (void)state;
    source_schema(&s, false);
    add_field(&s, "sparse", 104, NULL, NULL);
    script_raw("GetVersion", "14", "gone");
    o = make_plain(&s);
    assert_true(o.failed && o.err.cls == ERRC_RETRY);
    script_version("v2.3.5");
    for (int i = 0; i < 2; i++) {
        o = make_plain(&s);
        assert_true(o.failed && o.err.cls == ERRC_USER);
        assert_non_null(strstr(o.err.text, "tdb.c1: field `sparse`"));
    }
}

/* At the create by the version; later by what the target's collection has, so that an upgrade changes nothing. */
static void test_plain_fields_are_left_out(void **state)
{
    struct schema s, t;
    struct outcome o;

    (void)state;
    container_of(fx.sink, struct target, sink)->leave_out = true;
    source_schema(&s, false);
    add_field(&s, "sparse", 104, NULL, NULL);
    schema_init(&t);
    script_version("v2.3.5");
    script_status("DescribeCollection", false, 100, "collection not found");
    script_databases();
    script_status("CreateCollection", true, 1100, "why not");
    o = make_plain(&s);
    assert_true(o.failed);
    assert_create_request(false); /* without it */
    for (int i = 0; i < 2; i++) {
        if (i == 1)
            t.m.n_fields--; /* vec too */
        script_schema(&t.m, 7);
        script_partitions("p1", 2);
        o = make_plain(&s);
        if (o.failed)
            fail_msg("%s", o.err.text);
        assert_string_equal(o.left_out, i == 0 ? "sparse," : "sparse,vec,");
        assert_true(o.plain_keys);
    }
    t.list[0] = &t.fields[1]; /* the key */
    script_schema(&t.m, 7);
    o = make_plain(&s);
    assert_true(o.failed);
    assert_non_null(strstr(o.err.text, "field `id`: the field is there on the source and absent on the target"));
}

static void test_plain_version_may_be_missing(void **state)
{
    struct schema s;
    struct outcome o;

    (void)state;
    source_schema(&s, false);
    add_field(&s, "sparse", 104, NULL, NULL);
    script_raw("GetVersion", "12", "unknown method");
    for (int i = 0; i < 2; i++) {
        script_status("DescribeCollection", false, 1401, "no");
        o = make_plain(&s);
        assert_true(o.failed && o.err.code == ERR_AUTH);
    }
}

/* A function `name` that makes the field "vec" of schema_init(). */
static void set_function(struct schema *s, const char *name, unsigned type, struct pb_out *keep)
{
    struct pb_out f = {0};

    pb_out_str(&f, 1, name);
    pb_out_u64(&f, 4, type);
    pb_out_str(&f, 7, "vec");
    pb_out_varint(keep, f.len);
    pb_out_raw(keep, f.data, f.len);
    pb_out_release(&f);
    s->unknown = (ProtobufCMessageUnknownField){.tag = 7, .wire_type = 2, .len = keep->len, .data = keep->data};
    s->m.base.n_unknown_fields = 1;
    s->m.base.unknown_fields = &s->unknown;
}

static void test_plain_functions(void **state)
{
    struct pb_out words = {0}, embed = {0};
    struct left_out out = {0};
    struct err err = {0};
    struct schema s;
    Pb__CollectionSchema *m;

    (void)state;
    schema_init(&s);
    set_function(&s, "words", 1, &words);
    assert_int_equal(fit(&s, "v2.5.4", NULL, &err), 0);
    assert_int_equal(fit(&s, "v2.4.4", NULL, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "function `words`: BM25 needs Milvus 2.5"));
    set_function(&s, "embed", 2, &embed);
    assert_int_equal(fit(&s, "v2.6.1", NULL, &err), ERR_UNSUPPORTED);
    assert_int_equal(err.cls, ERRC_USER);
    assert_non_null(strstr(err.text, "`embed`"));
    add_field(&s, "second", 101, "dim", "8");
    m = own_schema(&s);
    assert_int_equal(target_features_fit(m, "v2.6.1", &out, &err), 0); /* with what it makes */
    assert_int_equal(out.n, 2);
    assert_true(left_out_has(&out, "embed") && left_out_has(&out, "vec"));
    assert_int_equal(m->base.n_unknown_fields, 0);
    assert_int_equal(m->n_fields, 4);
    pb__collection_schema__free_unpacked(m, NULL);
    left_out_release(&out);
    pb_out_release(&words);
    pb_out_release(&embed);
}

static void test_plain_operations_have_no_base(void **state)
{
    Pb__CollectionRequest coll = PB__COLLECTION_REQUEST__INIT;
    Pb__PartitionRequest part = PB__PARTITION_REQUEST__INIT;
    static const char op[] = "\x12\x03tdb\x1a\x02" "c1\x22\x04" "four\x22\x04vier\x28\x03\x9a\x06\x12of a newer version";
    struct outcome o = {0};

    (void)state;
    coll.db_name = part.db_name = pb_str("tdb");
    coll.collection_name = part.collection_name = pb_str("c1");
    part.partition_name = pb_str("p1");
    script_status("DropCollection", true, 100, "collection not found");
    fx.sink->ops->drop_collection(fx.sink, "tdb", "c1", 5, on_done, &o);
    wait_for(&o);
    assert_false(o.failed);
    assert_sent(&coll.base);
    script_status("DropPartition", true, 0, "");
    o = (struct outcome){0};
    fx.sink->ops->drop_partition(fx.sink, "tdb", "c1", "p1", 5, on_done, &o);
    wait_for(&o);
    assert_false(o.failed);
    assert_sent(&part.base);
    script_status("LoadPartitions", true, 0, "");
    assert_false(apply(OP_LOAD_PARTITIONS).failed);
    assert_request((const uint8_t *)op, sizeof(op) - 1);
}

/* Milvus Lite has no numbers for its objects, and says in its own way that somebody else was faster. */
static void test_plain_ids_may_be_missing(void **state)
{
    struct schema s, t;
    struct outcome o;
    int64_t id;

    (void)state;
    source_schema(&s, false);
    schema_init(&t);
    script_version("milvus_lite-3.2.2");
    script_status("DescribeCollection", false, 100, "collection not found");
    script_databases();
    script_status("CreateCollection", true, 1, "collection 'c1' already exists");
    script_schema(&t.m, 0);
    script_partitions("p1", 0);
    o = make_plain(&s);
    if (o.failed)
        fail_msg("%s", o.err.text);
    assert_true(o.id != 0);
    assert_int_equal(o.n_partitions, 2);
    assert_true(o.partition_id != 0);
    id = o.partition_id; /* stays when another one comes or goes, whatever its place in the list */
    script_schema(&t.m, 0);
    script_partition_list((char *[]){pb_str("p1"), pb_str("_default"), pb_str("a"), pb_str("b")}, 4, NULL, 0);
    o = make_plain(&s);
    assert_string_equal(o.partition, "p1");
    assert_int_equal(o.partition_id, id);
    script_schema(&t.m, 7);
    script_partitions("p1", 1);
    o = make_plain(&s);
    assert_true(o.failed && o.err.code == ERR_PROTO);
}

/* Milvus Lite releases only whole collections. */
static void test_plain_drops_a_loaded_partition(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct outcome o = {0};

        script_status("DropPartition", true, 6, "partition cannot be dropped while the collection is loaded");
        script_raw("ReleasePartitions", "12", "not here");
        script_status("ReleaseCollection", true, 0, "");
        script_status("DropPartition", true, 0, "");
        if (i == 0)
            script_status("LoadCollection", true, 0, "");
        else
            script_raw("LoadCollection", "12", "not here");
        fx.sink->ops->drop_partition(fx.sink, "tdb", "c1", "p1", 5, on_done, &o);
        wait_for(&o);
        assert_false(o.failed);
    }
}

static void test_plain_operations_may_be_missing(void **state)
{
    static const struct {
        int type;
        const char *method;
        bool needed;
    } table[] = {{OP_LOAD_PARTITIONS, "LoadPartitions", false}, {OP_RELEASE_PARTITIONS, "ReleasePartitions", false},
                 {OP_ALTER_INDEX, "AlterIndex", false},         {OP_ALTER_DATABASE, "AlterDatabase", false},
                 {OP_FLUSH, "Flush", false},                    {OP_CREATE_INDEX, "CreateIndex", true},
                 {OP_LOAD_COLLECTION, "LoadCollection", true},  {OP_DROP_DATABASE, "DropDatabase", true}};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct outcome o;

        script_raw(table[i].method, "12", "not here");
        o = apply(table[i].type);
        assert_int_equal(o.failed, table[i].needed);
        if (o.failed)
            assert_true(o.err.code == ERR_UNSUPPORTED && o.err.cls == ERRC_USER);
    }
    script_status("CreateIndex", true, 35, "index already exists for field 'vec'; call drop_index first"); /* Lite */
    assert_false(apply(OP_CREATE_INDEX).failed);
}

/* ---- rows ------------------------------------------------------------------------------------- */

static struct outcome write_rows(enum sink_write_kind kind, const char *partition, const char *body)
{
    struct sink_write w = {.kind = kind, .db = "tdb", .collection = "c1", .partition = partition, .rows = 3};
    struct outcome o = {0};

    w.body = evbuffer_new();
    evbuffer_add(w.body, body, strlen(body));
    fx.sink->ops->write(fx.sink, &w, on_batch, &o);
    assert_int_equal(evbuffer_get_length(w.body), 0);
    evbuffer_free(w.body);
    wait_for(&o);
    assert_string_equal(o.pos, "");
    return o;
}

static void script_result(const char *method, uint64_t inserted, uint64_t upserted, bool row_errors)
{
    struct step *st = &fx.steps[fx.n_steps++];
    struct pb_out out = {0};

    *st = (struct step){.method = method, .status = "0"};
    pb_out_bytes(&out, 2, "ids", 3);
    pb_out_bytes(&out, 3, "\x00\x01\x02", 3);
    if (row_errors)
        pb_out_bytes(&out, 4, "\x01", 1);
    pb_out_u64(&out, 6, inserted);
    pb_out_u64(&out, 8, upserted);
    st->body = out.data;
    st->len = out.len;
}

static void assert_written(struct outcome o)
{
    if (o.failed)
        fail_msg("%s", o.err.text);
    assert_false(o.doubt);
    assert_string_equal(fx.last_db, "tdb");
}

static void test_plain_write_requests(void **state)
{
    static const char insert[] = "\x12\x03tdb\x1a\x02" "c1\x22\x02p1\x38\x03\x2a\x03xyz";
    static const char upsert[] = "\x12\x03tdb\x1a\x02" "c1\x38\x03\x2a\x03xyz";
    static const char expr[] = "\x12\x03tdb\x1a\x02" "c1\x22\x02p1\x2a\x08id in []";

    (void)state;
    script_result("Insert", 3, 0, false);
    assert_written(write_rows(SINK_INSERT, "p1", "\x2a\x03xyz"));
    assert_request((const uint8_t *)insert, sizeof(insert) - 1);
    script_result("Upsert", 3, 3, false);
    assert_written(write_rows(SINK_UPSERT, "", "\x2a\x03xyz"));
    assert_request((const uint8_t *)upsert, sizeof(upsert) - 1);
    script_result("Upsert", 0, 3, false);
    assert_written(write_rows(SINK_UPSERT, NULL, "\x2a\x03xyz"));
    script_result("Delete", 0, 0, false);
    assert_written(write_rows(SINK_DELETE, "p1", "id in []"));
    assert_request((const uint8_t *)expr, sizeof(expr) - 1);
}

static struct sink_call *begin_write(enum sink_write_kind kind, struct outcome *ret)
{
    struct sink_write w = {.kind = kind, .db = "tdb", .collection = "c1", .partition = "p1", .rows = 3};
    struct sink_call *call;

    *ret = (struct outcome){0};
    w.body = evbuffer_new();
    evbuffer_add(w.body, "\x2a\x03xyz", 5);
    call = fx.sink->ops->write(fx.sink, &w, on_batch, ret);
    evbuffer_free(w.body);
    return call;
}

static void become_lite(void)
{
    struct schema s;

    source_schema(&s, false);
    script_version("milvus_lite-3.2.2");
    script_status("DescribeCollection", false, 1401, "no");
    assert_true(make_plain(&s).failed);
}

/* Its Upsert would keep what the former row had. */
static void test_lite_upsert_is_an_insert(void **state)
{
    (void)state;
    become_lite();
    script_result("Insert", 3, 0, false);
    assert_written(write_rows(SINK_UPSERT, "p1", "\x2a\x03xyz"));
    script_result("Insert", 0, 3, false);
    assert_true(write_rows(SINK_UPSERT, "p1", "\x2a\x03xyz").doubt);
}

static void turn_for_a_while(void)
{
    for (int i = 0; i < 500; i++) {
        loop_once(fx.loop, false);
        usleep(100);
    }
}

/* It may still be at what a daemon that was killed, or we before a timeout, had asked for. Whatever comes before its step
 * stands in the script ends the test. */
static void test_lite_may_be_busy_with_former_calls(void **state)
{
    struct sink_call *call;
    struct outcome o;
    struct schema s;

    (void)state;
    source_schema(&s, false);
    script_version("milvus_lite-3.2.2");
    begin_plain(&s, &o);
    turn_for_a_while();
    script_status("DescribeCollection", false, 1401, "no");
    wait_for(&o);
    assert_true(o.failed);

    script_raw("Insert", NULL, NULL); /* no answer */
    call = begin_write(SINK_INSERT, &o);
    turn_for_a_while();
    fx.sink->ops->cancel(call);
    begin_write(SINK_DELETE, &o);
    turn_for_a_while();
    script_result("Delete", 0, 0, false);
    wait_for(&o);
    assert_written(o);
}

/* Whatever comes before its step stands in the script ends the test. */
static void test_lite_does_one_thing_at_a_time(void **state)
{
    struct sink_call *calls[4];
    struct outcome o[4];

    (void)state;
    become_lite();
    script_raw("Insert", NULL, NULL); /* no answer */
    for (int i = 0; i < 4; i++)
        calls[i] = begin_write(i == 3 ? SINK_DELETE : SINK_INSERT, &o[i]);
    turn_for_a_while();
    script_result("Insert", 3, 0, false);
    script_result("Delete", 0, 0, false);
    fx.sink->ops->cancel(calls[2]);
    fx.sink->ops->cancel(calls[0]);
    wait_for(&o[1]);
    assert_written(o[1]);
    wait_for(&o[3]);
    assert_written(o[3]);
    assert_false(o[0].done || o[2].done);
}

static void test_plain_all_rows_must_be_taken(void **state)
{
    static const struct {
        enum sink_write_kind kind;
        const char *method;
        uint64_t inserted, upserted;
        bool row_errors;
    } table[] = {{SINK_INSERT, "Insert", 2, 0, false}, {SINK_INSERT, "Insert", 0, 3, false},
                 {SINK_INSERT, "Insert", 3, 0, true},  {SINK_UPSERT, "Upsert", 3, 0, false},
                 {SINK_UPSERT, "Upsert", 3, 4, false}, {SINK_DELETE, "Delete", 0, 0, true}};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct outcome o;

        script_result(table[i].method, table[i].inserted, table[i].upserted, table[i].row_errors);
        o = write_rows(table[i].kind, "p1", "\x2a\x03xyz");
        assert_true(o.failed && o.doubt);
        assert_int_equal(o.err.cls, ERRC_DATA);
        assert_non_null(strstr(o.err.text, "tdb.c1 partition p1: of 3 rows the target took"));
    }
    fx.steps[fx.n_steps++] = (struct step){.method = "Insert", .status = "0", .body = (uint8_t *)xstrdup("\x30"), .len = 1};
    assert_true(write_rows(SINK_INSERT, NULL, "x").doubt);
}

static void test_plain_doubt_unless_certainly_refused(void **state)
{
    static const struct {
        const char *grpc, *message;
        int32_t code;
        bool doubt;
        enum err_class cls;
        const char *text;
    } table[] = {
        {NULL, NULL, 1, false, ERRC_RETRY, ""},
        {NULL, NULL, 3, false, ERRC_RETRY, "memory limit of the target"},
        {NULL, NULL, 7, false, ERRC_RETRY, "disk quota of the target"},
        {NULL, NULL, 8, false, ERRC_RETRY, "a rate limit of the target"},
        {NULL, NULL, 9, false, ERRC_RETRY, "a quota of the target denies writes"},
        {NULL, NULL, 100, false, ERRC_RETRY, ""},
        {NULL, NULL, 200, false, ERRC_RETRY, ""},
        {NULL, NULL, 800, false, ERRC_RETRY, ""},
        {NULL, NULL, 1100, false, ERRC_USER, ""},
        {NULL, NULL, 1102, false, ERRC_USER, ""},
        {NULL, NULL, 1303, true, ERRC_USER, "standby"},
        {NULL, NULL, 1302, true, ERRC_RETRY, ""},
        {NULL, NULL, 10001, true, ERRC_RETRY, ""},
        {NULL, NULL, 65535, true, ERRC_RETRY, ""},
        {"16", "auth", 0, false, ERRC_USER, "token"},
        {"12", "unknown method", 0, false, ERRC_USER, ""},
        {"8", "grpc: received message larger than max (1 vs. 0)", 0, false, ERRC_USER, ""},
        {"8", "rate", 0, true, ERRC_RETRY, ""},
        {"14", "x", 0, true, ERRC_RETRY, ""},
        {"4", "deadline", 0, true, ERRC_RETRY, ""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        struct outcome o;

        if (table[i].grpc)
            script_raw("Insert", table[i].grpc, table[i].message);
        else
            script_status("Insert", false, table[i].code, "why");
        o = write_rows(SINK_INSERT, "p1", "\x2a\x03xyz");
        assert_true(o.failed);
        if (o.doubt != table[i].doubt || o.err.cls != table[i].cls || !strstr(o.err.text, table[i].text))
            fail_msg("row %zu: doubt %d, class %s: %s", i, o.doubt, err_class_name(o.err.cls), o.err.text);
        assert_int_equal(o.err.code == ERR_TOO_LARGE,
                         table[i].code == 1102 || (table[i].grpc && strstr(table[i].message, "larger than max")));
    }
}

/* Servers before 2.3 fill only error_code. */
static void test_plain_limits_of_old_servers(void **state)
{
    static const int32_t old[] = {49, 53, 54};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        Pb__StatusResponse m = PB__STATUS_RESPONSE__INIT;
        Pb__Status st = PB__STATUS__INIT;
        struct outcome o;

        st.error_code = old[i];
        m.status = &st;
        script("Insert", &m.base);
        o = write_rows(SINK_INSERT, NULL, "\x2a\x03xyz");
        assert_true(o.failed && !o.doubt);
        assert_int_equal(o.err.cls, ERRC_RETRY);
        assert_int_equal(o.err.code, ERR_LIMIT);
    }
}

static void test_each_mode_has_its_own_way_to_write(void **state)
{
    struct target_options o = {.uri = "http://127.0.0.1:1", .mode = TARGET_STANDBY};
    struct sink *standby = target_open(fx.loop, &o, NULL);

    (void)state;
    assert_non_null(standby->ops->replicate);
    assert_null(standby->ops->write);
    assert_null(fx.sink->ops->replicate);
    assert_non_null(fx.sink->ops->write);
    target_close(standby);
}

static int setup_plain(void **state)
{
    (void)state;
    return open_sink(TARGET_PLAIN);
}

#define on_plain(fn) cmocka_unit_test_setup_teardown(fn, setup_plain, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_differences_are_named),
        cmocka_unit_test(test_plain_functions),
        cmocka_unit_test(test_plain_later_types_need_a_later_version),
        cmocka_unit_test(test_plain_nullable_needs_a_later_version),
        cmocka_unit_test(test_plain_what_can_be_left_out),
        on_plain(test_plain_types_that_cannot_be_written),
        on_plain(test_plain_version_is_asked_for),
        on_plain(test_plain_version_may_be_missing),
        on_plain(test_plain_fields_are_left_out),
        on_plain(test_plain_create_request),
        on_plain(test_plain_target_must_not_be_the_source),
        on_plain(test_plain_collection_is_described),
        on_plain(test_plain_partition_key_has_the_sources_partitions),
        on_plain(test_plain_what_the_target_does_not_know_is_named),
        on_plain(test_plain_ids_may_be_missing),
        on_plain(test_plain_operations_have_no_base),
        on_plain(test_plain_drops_a_loaded_partition),
        on_plain(test_plain_operations_may_be_missing),
        on_plain(test_plain_write_requests),
        on_plain(test_lite_upsert_is_an_insert),
        on_plain(test_lite_does_one_thing_at_a_time),
        on_plain(test_lite_may_be_busy_with_former_calls),
        on_plain(test_plain_all_rows_must_be_taken),
        on_plain(test_plain_doubt_unless_certainly_refused),
        on_plain(test_plain_limits_of_old_servers),
        on_plain(test_each_mode_has_its_own_way_to_write),
    };

    return cmocka_run_group_tests_name("target_plain", tests, NULL, NULL);
}
