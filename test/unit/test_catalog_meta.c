/* The catalog's model: indexes, load states, aliases, properties, names. Keys and values as 2.3.5 writes them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../src/milvus/catalog_priv.h"
#include "meta.pb-c.h"

enum { BOOKS = 50, SHELVES = 60 };

static struct cat_model model;
static int64_t revision;
static bool snapshot;

static char *lit(const char *s)
{
    return (char *)(uintptr_t)s;
}

static void put_raw(const char *k, const void *value, size_t len)
{
    char full[200];

    snprintf(full, sizeof(full), "by-dev/meta/%s", k);
    model_apply(&model, snapshot, full, value, len, ++revision);
}

static void put(const char *k, const ProtobufCMessage *m)
{
    uint8_t buf[1000];

    put_raw(k, buf, protobuf_c_message_pack(m, buf));
}

static const char *key(const char *fmt, ...)
{
    static char buf[4][100];
    static unsigned turn;
    char *b = buf[turn++ % 4];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(b, 100, fmt, ap);
    va_end(ap);
    return b;
}

static void put_coll(int id, const char *name, const char *ttl)
{
    Pb__CollectionInfo m = PB__COLLECTION_INFO__INIT;
    Pb__CollectionSchema s = PB__COLLECTION_SCHEMA__INIT;
    Pb__KeyValuePair p = PB__KEY_VALUE_PAIR__INIT, *props[] = {&p};
    char *names[] = {lit("dml_0_50v0")}, *channels[] = {lit("dml_0")};
    uint8_t schema[100];

    s.name = lit(name);
    p.key = lit("collection.ttl.seconds");
    p.value = lit(ttl);
    m.id = id;
    m.schema = (ProtobufCBinaryData){pb__collection_schema__pack(&s, schema), schema};
    m.n_virtual_channel_names = m.n_physical_channel_names = 1;
    m.virtual_channel_names = names;
    m.physical_channel_names = channels;
    m.n_properties = 1;
    m.properties = props;
    put(key("root-coord/database/collection-info/1/%d", id), &m.base);
}

static void put_part(int coll, int id, const char *name)
{
    Pb__PartitionInfo m = PB__PARTITION_INFO__INIT;

    m.partition_id = id;
    m.collection_id = coll;
    m.partition_name = lit(name);
    put(key("root-coord/partitions/%d/%d", coll, id), &m.base);
}

static void put_field(int coll, int id, const char *name)
{
    Pb__FieldSchema m = PB__FIELD_SCHEMA__INIT;

    m.field_id = id;
    m.name = lit(name);
    m.data_type = 101;
    put(key("root-coord/fields/%d/%d", coll, id), &m.base);
}

static void create(int id, const char *name)
{
    put_part(id, id * 10, "_default");
    put_field(id, 100, "key");
    put_field(id, 101, "vec");
    put_coll(id, name, "60");
}

static void put_index(int coll, int id, int field, const char *name, bool deleted)
{
    Pb__FieldIndex m = PB__FIELD_INDEX__INIT;
    Pb__IndexInfo info = PB__INDEX_INFO__INIT;
    Pb__KeyValuePair type = PB__KEY_VALUE_PAIR__INIT, metric = PB__KEY_VALUE_PAIR__INIT;
    Pb__KeyValuePair *user[] = {&type, &metric}, *stored[] = {&metric};

    type.key = lit("index_type");
    type.value = lit("HNSW");
    metric.key = lit("metric_type");
    metric.value = lit("L2");
    info.collection_id = coll;
    info.index_id = id;
    info.field_id = field;
    info.index_name = lit(name);
    info.n_user_index_params = field == 101 ? 2 : 0;
    info.user_index_params = user;
    info.n_index_params = field == 101 ? 1 : 0;
    info.index_params = stored;
    m.index_info = &info;
    m.deleted = deleted;
    put(key("field-index/%d/%d", coll, id), &m.base);
}

static void put_load(int coll, int type)
{
    Pb__CollectionLoadInfo m = PB__COLLECTION_LOAD_INFO__INIT;

    m.collection_id = coll;
    m.replica_number = 2;
    m.load_type = type;
    put(key("querycoord-collection-loadinfo/%d", coll), &m.base);
}

static void put_part_load(int coll, int part)
{
    Pb__PartitionLoadInfo m = PB__PARTITION_LOAD_INFO__INIT;

    m.collection_id = coll;
    m.partition_id = part;
    put(key("querycoord-partition-loadinfo/%d/%d", coll, part), &m.base);
}

static void put_alias(const char *alias, int coll)
{
    Pb__AliasInfo m = PB__ALIAS_INFO__INIT;

    m.alias_name = lit(alias);
    m.collection_id = coll;
    m.db_id = 1;
    put(key("root-coord/database/aliases/1/%s", alias), &m.base);
}

/* How many collections have news. */
static size_t news(void)
{
    struct cat_collection **changed;
    size_t n = model_publish(&model, &changed);

    free(changed);
    return n;
}

static const struct src_collection *get(int id)
{
    struct cat_collection *c = model_get(&model, id);

    assert_non_null(c);
    return &c->pub;
}

static int setup(void **state)
{
    (void)state;
    model_init(&model, "by-dev", "meta");
    revision = 0;
    snapshot = false;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    model_release(&model);
    return 0;
}

static void the_range_holds_all_keys(void **state)
{
    (void)state;
    assert_string_equal(model.first, "by-dev/meta/field-index/");
    assert_string_equal(model.end, "by-dev/meta/root-coord0");
}

static void indexes_come_and_go(void **state)
{
    (void)state;
    put_index(BOOKS, 7, 101, "vi", false); /* keys of indexes come before those of collections */
    create(BOOKS, "books");
    put_index(BOOKS, 8, 100, "ki", false);
    assert_int_equal(news(), 1);
    assert_int_equal(get(BOOKS)->n_indexes, 2);
    assert_string_equal(get(BOOKS)->indexes[0].field, "vec");
    assert_string_equal(get(BOOKS)->indexes[0].name, "vi");
    assert_true(get(BOOKS)->indexes[0].vector);
    assert_int_equal(get(BOOKS)->indexes[0].n_params, 2);
    assert_string_equal(get(BOOKS)->indexes[0].params[1].value, "L2");
    assert_false(get(BOOKS)->indexes[1].vector);
    put_index(BOOKS, 7, 101, "vi", true);
    assert_int_equal(news(), 1);
    assert_int_equal(get(BOOKS)->n_indexes, 1);
    put_raw("field-index/50/8", NULL, 0);
    assert_int_equal(news(), 1);
    assert_int_equal(get(BOOKS)->n_indexes, 0);
    put_raw("field-index/50/9", "\xff", 1); /* said in the log, no more */
    (void)news();
    assert_int_equal(get(BOOKS)->n_indexes, 0);
}

static void load_states_follow(void **state)
{
    (void)state;
    create(BOOKS, "books");
    put_part(BOOKS, 501, "a");
    (void)news();
    assert_int_equal(get(BOOKS)->load, SRC_RELEASED);
    put_part_load(BOOKS, 501);
    put_load(BOOKS, 1);
    assert_int_equal(news(), 1);
    assert_int_equal(get(BOOKS)->load, SRC_LOADED_PARTITIONS);
    assert_int_equal(get(BOOKS)->replicas, 2);
    assert_false(get(BOOKS)->partitions[0].loaded);
    assert_true(get(BOOKS)->partitions[1].loaded);
    put_part_load(BOOKS, 500);
    put_load(BOOKS, 2);
    (void)news();
    assert_int_equal(get(BOOKS)->load, SRC_LOADED);
    assert_true(get(BOOKS)->partitions[0].loaded);
    put_raw("querycoord-partition-loadinfo/50/501", NULL, 0);
    assert_int_equal(news(), 1);
    assert_false(get(BOOKS)->partitions[1].loaded);
    put_raw("querycoord-collection-loadinfo/50", NULL, 0);
    assert_int_equal(news(), 1);
    assert_int_equal(get(BOOKS)->load, SRC_RELEASED);
}

static void an_alias_moves(void **state)
{
    (void)state;
    create(BOOKS, "books");
    create(SHELVES, "shelves");
    put_alias("all", BOOKS);
    assert_int_equal(news(), 2);
    assert_int_equal(get(BOOKS)->n_aliases, 1);
    assert_string_equal(get(BOOKS)->aliases[0], "all");
    put_alias("all", SHELVES);
    assert_int_equal(news(), 2);
    assert_int_equal(get(BOOKS)->n_aliases, 0);
    assert_int_equal(get(SHELVES)->n_aliases, 1);
    put_raw("root-coord/database/aliases/1/all", "\xe2\x9b\xbc", 3);
    assert_int_equal(news(), 1);
    assert_int_equal(get(SHELVES)->n_aliases, 0);
    put_raw("root-coord/database/aliases/x/all", "", 0); /* no number: said in the log */
    assert_int_equal(news(), 0);
}

static void properties_and_names_change(void **state)
{
    (void)state;
    create(BOOKS, "books");
    (void)news();
    put_coll(BOOKS, "library", "90");
    assert_int_equal(news(), 1);
    assert_string_equal(get(BOOKS)->name, "library");
    assert_int_equal(get(BOOKS)->n_properties, 1);
    assert_string_equal(get(BOOKS)->properties[0].value, "90");
}

/* What a new snapshot does not mention is gone, though nobody saw it go. */
static void a_snapshot_forgets(void **state)
{
    (void)state;
    create(BOOKS, "books");
    put_index(BOOKS, 7, 101, "vi", false);
    put_part_load(BOOKS, 500);
    put_load(BOOKS, 2);
    put_alias("all", BOOKS);
    (void)news();
    snapshot = true;
    model_snapshot_begin(&model);
    create(BOOKS, "books");
    model_snapshot_end(&model);
    assert_int_equal(news(), 1);
    assert_int_equal(get(BOOKS)->n_indexes, 0);
    assert_int_equal(get(BOOKS)->load, SRC_RELEASED);
    assert_false(get(BOOKS)->partitions[0].loaded);
    assert_int_equal(get(BOOKS)->n_aliases, 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_range_holds_all_keys),
        TEST(indexes_come_and_go),
        TEST(load_states_follow),
        TEST(an_alias_moves),
        TEST(properties_and_names_change),
        TEST(a_snapshot_forgets),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
