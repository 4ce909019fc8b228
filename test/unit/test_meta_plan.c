/* meta_plan.c: which calls make a collection of the target as the source's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../src/repl/meta_plan.h"

static struct src_pair params[] = {{(char *)"index_type", (char *)"HNSW"}, {(char *)"params", (char *)"{\"M\":8,\"e\":64}"}};
static struct src_pair ttl[] = {{(char *)"ttl", (char *)"60"}}, mmap_on[] = {{(char *)"mmap.enabled", (char *)"true"}};
static struct src_partition parts[3];
static struct src_index indexes[2];
static char *aliases[] = {(char *)"all"};

/* A source's collection with everything. */
static struct src_collection source(void)
{
    static const char *const names[] = {"_default", "p1", "p2"};

    for (int i = 0; i < 3; i++)
        parts[i] = (struct src_partition){.id = i, .name = (char *)(uintptr_t)names[i], .state = SRC_ALIVE, .loaded = true};
    indexes[0] = (struct src_index){.id = 7, .field = (char *)"vec", .name = (char *)"vi", .vector = true, .params = params,
                                    .n_params = 2};
    indexes[1] = (struct src_index){.id = 8, .field = (char *)"n", .name = (char *)"ni"};
    return (struct src_collection){.partitions = parts, .n_partitions = 3, .indexes = indexes, .n_indexes = 2,
                                   .load = SRC_LOADED, .replicas = 1, .aliases = aliases, .n_aliases = 1,
                                   .properties = ttl, .n_properties = 1};
}

/* The calls, as "kind:name,partitions;" each. */
static const char *plan(const struct src_collection *now, const struct src_collection *before, const struct sink_meta *has,
                        bool set_up)
{
    static const char *const kinds[] = {"create", "drop", "load", "load_parts", "release", "release_parts", "alias",
                                        "drop_alias", "set", "unset"};
    static char out[500];
    json_t *wanted = meta_wanted(now), *old = before ? meta_wanted(before) : NULL, *seen = meta_union(old, wanted);
    struct meta_plan p;
    size_t at = 0;

    meta_plan_make(wanted, seen, has, set_up, &p);
    out[0] = 0;
    for (size_t i = 0; i < p.n; i++) {
        const struct meta_step *s = &p.steps[i];
        at += (size_t)snprintf(out + at, sizeof(out) - at, "%s:%s", kinds[s->kind], s->name);
        for (size_t k = 0; k < s->n_names; k++)
            at += (size_t)snprintf(out + at, sizeof(out) - at, ",%s", s->names[k]);
        at += (size_t)snprintf(out + at, sizeof(out) - at, ";");
    }
    meta_plan_release(&p);
    json_decref(wanted);
    json_decref(seen);
    json_decref(old);
    return out;
}

/* The target as it is when all was done. */
static struct sink_meta target(void)
{
    static struct sink_index ix[2];

    ix[0] = (struct sink_index){(char *)"vec", (char *)"vi", params, 2};
    ix[1] = (struct sink_index){(char *)"n", (char *)"ni", NULL, 0};
    return (struct sink_meta){.indexes = ix, .n_indexes = 2, .loaded = true, .partitions_loaded = true, .aliases = aliases,
                              .n_aliases = 1, .properties = ttl, .n_properties = 1};
}

static void from_nothing(void **state)
{
    struct src_collection s = source();
    struct sink_meta none = {0};

    (void)state;
    assert_string_equal(plan(&s, NULL, &none, true), "set:;create:vi;create:ni;load:;alias:all;");
    assert_string_equal(plan(&s, NULL, &none, false), "set:;alias:all;");
    parts[0].loaded = false;
    assert_string_equal(plan(&s, NULL, &none, true), "set:;create:vi;create:ni;load_parts:,p1,p2;alias:all;");
    s.has_partition_key = true;
    assert_string_equal(plan(&s, NULL, &none, true), "set:;create:vi;create:ni;load:;alias:all;");
}

static void nothing_to_do(void **state)
{
    struct src_collection s = source(), bare = {0};
    struct sink_meta has = target();

    (void)state;
    assert_string_equal(plan(&s, &s, &has, true), "");
    assert_string_equal(plan(&bare, NULL, &has, true), ""); /* what users of the target made */
}

static void what_went_on_the_source_goes(void **state)
{
    struct src_collection s = source(), bare = {.partitions = parts, .n_partitions = 3};
    struct sink_meta has = target();

    (void)state;
    assert_string_equal(plan(&bare, &s, &has, true), "release:;drop:vi;drop:ni;unset:,ttl;drop_alias:all;");
    bare = s;
    bare.n_indexes = 1;
    assert_string_equal(plan(&bare, &s, &has, true), "release:;drop:ni;load:;");
    bare.load = SRC_RELEASED;
    assert_string_equal(plan(&bare, &s, &has, true), "release:;drop:ni;");
}

static void an_index_made_anew(void **state)
{
    struct src_collection s = source();
    struct sink_meta has = target();
    struct src_pair flat[] = {{(char *)"index_type", (char *)"FLAT"}};
    struct src_index other = {.id = 70, .field = (char *)"vec", .name = (char *)"vi", .vector = true, .params = flat,
                              .n_params = 1};
    struct src_collection now = s;

    (void)state;
    now.indexes = &other;
    now.n_indexes = 1;
    s.n_indexes = 1;
    assert_string_equal(plan(&now, &s, &has, true), "release:;drop:vi;create:vi;load:;");
    has.indexes[0].params = flat; /* a crash behind the call: it is the new one */
    has.indexes[0].n_params = 1;
    assert_string_equal(plan(&now, &s, &has, true), "");
}

static void params_are_compared_as_json(void **state)
{
    struct src_collection s = source();
    struct sink_meta has = target();
    struct src_pair spaced[] = {{(char *)"index_type", (char *)"HNSW"}, {(char *)"params", (char *)"{\"e\": 64, \"M\": 8}"}};

    (void)state;
    has.indexes[0].params = spaced;
    assert_string_equal(plan(&s, &s, &has, true), "");
    spaced[1].value = (char *)"{\"e\": 64, \"M\": 9}";
    assert_string_equal(plan(&s, &s, &has, true), "create:vi;"); /* the target tells whether that matters */
}

static void partitions_one_by_one(void **state)
{
    struct src_collection before = source(), now;
    struct sink_meta has = target();
    struct src_partition later[3];

    (void)state;
    memcpy(later, parts, sizeof(later));
    later[1].loaded = false;
    now = before;
    now.partitions = later;
    assert_string_equal(plan(&now, &before, &has, true), "release_parts:,p1;");
    has.partitions_loaded = false;
    assert_string_equal(plan(&before, &now, &has, true), "load:;");
    for (int i = 0; i < 3; i++)
        later[i].loaded = false;
    assert_string_equal(plan(&now, &now, &has, true), ""); /* etcd has a part of a load */
    later[0].loaded = later[2].loaded = true;
    later[2].state = SRC_DROPPING; /* nobody asks for it */
    assert_string_equal(plan(&now, &now, &has, true), "load_parts:,_default;");
}

static void mmap_changes_only_when_released(void **state)
{
    struct src_collection s = source();
    struct sink_meta has = target();

    (void)state;
    s.properties = mmap_on;
    assert_string_equal(plan(&s, &s, &has, true), "release:;set:;load:;");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(from_nothing),
        cmocka_unit_test(nothing_to_do),
        cmocka_unit_test(what_went_on_the_source_goes),
        cmocka_unit_test(an_index_made_anew),
        cmocka_unit_test(params_are_compared_as_json),
        cmocka_unit_test(partitions_one_by_one),
        cmocka_unit_test(mmap_changes_only_when_released),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
