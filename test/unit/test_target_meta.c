/*
 * test_target_meta.c - indexes, load states, aliases, properties and names on the target, against a peer that answers as
 * scripted: the words are those of 2.3.5 and of Milvus Lite 3.2.2.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "target_peer.h"

static void unimplemented(const char *method)
{
    script_raw(method, "12", "MilvusLite does not support it");
}

static void script_load(int state)
{
    Pb__GetLoadStateResponse m = PB__GET_LOAD_STATE_RESPONSE__INIT;

    m.state = state;
    script("GetLoadState", &m.base);
}

static void script_indexes(void)
{
    Pb__DescribeIndexResponse m = PB__DESCRIBE_INDEX_RESPONSE__INIT;
    Pb__IndexDescription ix = PB__INDEX_DESCRIPTION__INIT, *list[] = {&ix};
    Pb__KeyValuePair kv = PB__KEY_VALUE_PAIR__INIT, *params[] = {&kv};

    kv.key = pb_str("index_type");
    kv.value = pb_str("HNSW");
    ix.field_name = pb_str("vec");
    ix.index_name = pb_str("vi");
    ix.params = params;
    ix.n_params = 1;
    m.index_descriptions = list;
    m.n_index_descriptions = 1;
    script("DescribeIndex", &m.base);
}

static void script_described(int64_t id)
{
    Pb__DescribeCollectionResponse m = PB__DESCRIBE_COLLECTION_RESPONSE__INIT;
    Pb__KeyValuePair kv = PB__KEY_VALUE_PAIR__INIT, *props[] = {&kv};
    char *aliases[] = {pb_str("all")};

    kv.key = pb_str("ttl");
    kv.value = pb_str("60");
    m.collection_id = id;
    m.aliases = aliases;
    m.n_aliases = 1;
    m.properties = props;
    m.n_properties = 1;
    script("DescribeCollection", &m.base);
}

struct described {
    struct outcome o;
    size_t n_indexes, n_aliases, n_properties;
    bool loaded, partitions_loaded;
    char text[100];
};

static void on_meta(void *arg, const struct err *err, const struct sink_meta *m)
{
    struct described *d = arg;

    on_done(&d->o, err);
    if (!m)
        return;
    d->n_indexes = m->n_indexes;
    d->n_aliases = m->n_aliases;
    d->n_properties = m->n_properties;
    d->loaded = m->loaded;
    d->partitions_loaded = m->partitions_loaded;
    if (m->n_indexes && m->n_aliases && m->n_properties)
        snprintf(d->text, sizeof(d->text), "%s %s %s %s %s", m->indexes[0].field, m->indexes[0].name,
                 m->indexes[0].params[0].value, m->aliases[0], m->properties[0].value);
}

static struct described describe(size_t n_partitions)
{
    static const char *const partitions[] = {"p1", "p2"};
    struct described d = {0};

    fx.sink->ops->describe_meta(fx.sink, "tdb", "c1", partitions, n_partitions, on_meta, &d);
    wait_for(&d.o);
    assert_string_equal(fx.last_db, "tdb");
    return d;
}

static void what_a_collection_has(void **state)
{
    struct described d;

    (void)state;
    script_indexes();
    script_load(3);
    script_load(2); /* of the partitions */
    script_described(7);
    d = describe(2);
    assert_false(d.o.failed);
    assert_true(d.loaded && d.partitions_loaded);
    assert_string_equal(d.text, "vec vi HNSW all 60");
    script_status("DescribeIndex", false, 700, "index not found");
    script_load(3);
    script_status("GetLoadState", false, 200, "partition not found");
    script_described(7);
    d = describe(2);
    assert_true(!d.o.failed && d.n_indexes == 0 && d.loaded && !d.partitions_loaded);
    script_indexes();
    script_load(1);
    script_described(7);
    d = describe(2);
    assert_true(!d.o.failed && !d.loaded && !d.partitions_loaded);
}

static void what_a_smaller_target_does_not_tell(void **state)
{
    struct described d;

    (void)state;
    unimplemented("DescribeIndex");
    unimplemented("GetLoadState");
    unimplemented("DescribeCollection");
    d = describe(0);
    assert_true(!d.o.failed && d.n_indexes == 0 && !d.loaded && d.n_aliases == 0);
    script_status("DescribeIndex", false, 100, "can't find collection");
    d = describe(0);
    assert_true(d.o.failed && d.o.err.code == ERR_NOT_FOUND);
}

static struct outcome change_to(const struct sink_change *ch)
{
    struct outcome o = {0};

    fx.sink->ops->change_meta(fx.sink, ch, on_done, &o);
    wait_for(&o);
    return o;
}

static struct outcome simply(enum sink_change_kind kind)
{
    static const char *const names[] = {"p1"};
    static const struct src_pair pair = {(char *)"k", (char *)"v"};
    bool partitions = kind == SINK_LOAD_PARTITIONS || kind == SINK_RELEASE_PARTITIONS || kind == SINK_DROP_PROPERTIES;

    return change_to(&(struct sink_change){.kind = kind, .db = "tdb", .collection = "c1", .field = "vec", .name = "vi",
                                           .pairs = &pair, .n_pairs = kind == SINK_CREATE_INDEX ||
                                           kind == SINK_SET_PROPERTIES, .names = names, .n_names = partitions,
                                           .replicas = 2});
}

static void each_change_is_one_call(void **state)
{
    static const struct {
        enum sink_change_kind kind;
        const char *method;
    } calls[] = {{SINK_CREATE_INDEX, "CreateIndex"},   {SINK_DROP_INDEX, "DropIndex"},
                 {SINK_LOAD, "LoadCollection"},        {SINK_LOAD_PARTITIONS, "LoadPartitions"},
                 {SINK_RELEASE, "ReleaseCollection"},  {SINK_RELEASE_PARTITIONS, "ReleasePartitions"},
                 {SINK_ALIAS, "AlterAlias"},           {SINK_DROP_ALIAS, "DropAlias"},
                 {SINK_SET_PROPERTIES, "AlterCollection"}, {SINK_DROP_PROPERTIES, "AlterCollection"}};

    (void)state;
    for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
        script_status(calls[i].method, true, 0, "");
        assert_false(simply(calls[i].kind).failed);
        assert_string_equal(fx.last_db, "tdb");
    }
}

static void what_is_so_already_is_done(void **state)
{
    (void)state;
    script_status("CreateIndex", true, 35, "index already exists for field 'vec'; call drop_index first");
    assert_false(simply(SINK_CREATE_INDEX).failed);
    script_status("DropIndex", true, 700, "no index to drop");
    assert_false(simply(SINK_DROP_INDEX).failed);
    script_status("DropAlias", true, 1600, "alias not found");
    assert_false(simply(SINK_DROP_ALIAS).failed);
}

static void an_alias_is_made_or_moved(void **state)
{
    (void)state;
    script_status("AlterAlias", true, 1600, "alias not found[database=default][alias=vi]");
    script_status("CreateAlias", true, 0, "");
    assert_false(simply(SINK_ALIAS).failed);
    script_status("AlterAlias", true, 100, "alias 'vi' does not exist"); /* Lite */
    script_status("CreateAlias", true, 65535, "it is the name of a collection");
    assert_true(simply(SINK_ALIAS).failed);
}

static void a_smaller_target_gets_what_it_can(void **state)
{
    (void)state;
    unimplemented("LoadPartitions");
    script_status("LoadCollection", true, 0, "");
    assert_false(simply(SINK_LOAD_PARTITIONS).failed);
    unimplemented("ReleasePartitions");
    assert_false(simply(SINK_RELEASE_PARTITIONS).failed);
    unimplemented("AlterCollection");
    assert_false(simply(SINK_SET_PROPERTIES).failed);
    script_status("LoadCollection", true, 12, "not enough nodes");
    script_status("LoadCollection", true, 0, ""); /* one replica */
    assert_false(simply(SINK_LOAD).failed);
    script_status("LoadCollection", true, 1100, "can't change the replica number for loaded collection");
    assert_false(simply(SINK_LOAD).failed);
}

static void what_is_refused(void **state)
{
    struct outcome o;

    (void)state;
    script_status("CreateIndex", true, 65535, "CreateIndex failed: at most one distinct index is allowed per field");
    o = simply(SINK_CREATE_INDEX);
    assert_true(o.failed && o.err.cls == ERRC_USER);
    assert_non_null(strstr(o.err.text, "Drop the target's index"));
    script_status("CreateIndex", true, 1100, "index type not match");
    o = simply(SINK_CREATE_INDEX);
    assert_true(o.failed && o.err.cls == ERRC_USER);
    for (int i = 0; i < 2; i++) /* with two replicas, then one */
        script_status("LoadPartitions", true, 200, "partition not found");
    o = simply(SINK_LOAD_PARTITIONS);
    assert_true(o.failed && o.err.cls == ERRC_RETRY); /* it is being made */
}

static struct outcome rename_to(int64_t id)
{
    struct outcome o = {0};

    fx.sink->ops->rename(fx.sink, "tdb", "c1", "tdb", "c2", id, on_done, &o);
    wait_for(&o);
    return o;
}

static void a_rename_can_be_repeated(void **state)
{
    struct outcome o;

    (void)state;
    script_status("DescribeCollection", false, 100, "collection not found");
    script_status("RenameCollection", true, 0, "");
    assert_false(rename_to(7).failed);
    script_described(7); /* done before */
    assert_false(rename_to(7).failed);
    script_described(8);
    script_status("RenameCollection", true, 65535, "duplicated new collection name default:c2");
    o = rename_to(7);
    assert_true(o.failed && o.err.code == ERR_EXISTS && o.err.cls == ERRC_USER);
    script_described(0); /* Lite tells no ids */
    script_status("RenameCollection", true, 100, "collection 'c1' does not exist");
    o = rename_to(1);
    assert_true(o.failed && o.err.code == ERR_NOT_FOUND);
}

static int setup_plain(void **state)
{
    (void)state;
    return open_sink(TARGET_PLAIN);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup_plain, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_a_collection_has),
        TEST(what_a_smaller_target_does_not_tell),
        TEST(each_change_is_one_call),
        TEST(what_is_so_already_is_done),
        TEST(an_alias_is_made_or_moved),
        TEST(a_smaller_target_gets_what_it_can),
        TEST(what_is_refused),
        TEST(a_rename_can_be_repeated),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
