/* meta_plan.c - what a collection of the target lacks, or has too much of. */
#include "meta_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* ---- states ------------------------------------------------------------------------------------- */

static json_t *index_json(const struct src_index *ix)
{
    json_t *params = json_array();

    for (size_t i = 0; i < ix->n_params; i++)
        json_array_append_new(params, json_pack("[s,s]", ix->params[i].key, ix->params[i].value));
    return json_pack("{s:s, s:s, s:b, s:o}", "field", ix->field, "name", ix->name, "vector", ix->vector, "params", params);
}

/* The partitions of a partition key are not loaded one by one, nor are they the same ones on an ordinary target. */
static json_t *partitions_json(const struct src_collection *sc)
{
    json_t *o = json_object();

    for (size_t i = 0; i < sc->n_partitions && !sc->has_partition_key; i++)
        if (sc->partitions[i].loaded && sc->partitions[i].state == SRC_ALIVE)
            json_object_set_new(o, sc->partitions[i].name, json_true());
    return o;
}

/* Is there a living partition that is not loaded? */
static bool in_part(const struct src_collection *sc)
{
    for (size_t i = 0; i < sc->n_partitions; i++)
        if (!sc->partitions[i].loaded && sc->partitions[i].state == SRC_ALIVE)
            return true;
    return false;
}

static int load_of(const struct src_collection *sc)
{
    if (sc->load == SRC_RELEASED || sc->has_partition_key)
        return sc->load == SRC_RELEASED ? SRC_RELEASED : SRC_LOADED;
    return in_part(sc) ? SRC_LOADED_PARTITIONS : (int)sc->load;
}

json_t *meta_properties(const struct src_pair *pairs, size_t n)
{
    json_t *o = json_object();

    for (size_t i = 0; i < n; i++)
        json_object_set_new(o, pairs[i].key, json_string(pairs[i].value));
    return o;
}

json_t *meta_wanted(const struct src_collection *sc)
{
    json_t *indexes = json_object(), *aliases = json_object();
    json_t *properties = meta_properties(sc->properties, sc->n_properties);
    char id[24];

    for (size_t i = 0; i < sc->n_indexes; i++) {
        snprintf(id, sizeof(id), "%" PRId64, sc->indexes[i].id);
        json_object_set_new(indexes, id, index_json(&sc->indexes[i]));
    }
    for (size_t i = 0; i < sc->n_aliases; i++)
        json_object_set_new(aliases, sc->aliases[i], json_true());
    return json_pack("{s:o, s:i, s:i, s:o, s:o, s:o}", "indexes", indexes, "load", load_of(sc), "replicas",
                     (int)sc->replicas, "partitions", partitions_json(sc), "aliases", aliases, "properties", properties);
}

static const char *const tables[] = {"indexes", "partitions", "aliases", "properties"};
enum { N_TABLES = sizeof(tables) / sizeof(*tables) };

static int load_in(const json_t *state)
{
    return (int)json_integer_value(json_object_get(state, "load"));
}

bool meta_is_plain(const json_t *state)
{
    for (int i = 0; i < N_TABLES; i++)
        if (json_object_size(json_object_get(state, tables[i])) > 0)
            return false;
    return load_in(state) == SRC_RELEASED;
}

json_t *meta_union(const json_t *seen, const json_t *wanted)
{
    json_t *u = json_deep_copy(wanted);

    for (int i = 0; i < N_TABLES && seen; i++)
        json_object_update_missing(json_object_get(u, tables[i]), json_object_get(seen, tables[i]));
    if (seen && load_in(seen) > load_in(wanted))
        json_object_set_new(u, "load", json_integer(load_in(seen)));
    return u;
}

char *meta_text(const json_t *state)
{
    return json_dumps(state, JSON_COMPACT | JSON_SORT_KEYS);
}

/* ---- steps ---------------------------------------------------------------------------------------- */

static struct meta_step *add(struct meta_plan *p, enum sink_change_kind kind)
{
    p->steps = xrealloc(p->steps, (p->n + 1) * sizeof(*p->steps));
    p->steps[p->n] = (struct meta_step){.kind = kind, .field = xstrdup(""), .name = xstrdup("")};
    return &p->steps[p->n++];
}

static void set_name(char **to, const char *name)
{
    free(*to);
    *to = xstrdup(name);
}

static void add_pair(struct meta_step *s, const char *key, const char *value)
{
    s->pairs = xrealloc(s->pairs, (s->n_pairs + 1) * sizeof(*s->pairs));
    s->pairs[s->n_pairs++] = (struct src_pair){xstrdup(key), xstrdup(value)};
}

static void add_name(struct meta_step *s, const char *name)
{
    s->names = xrealloc(s->names, (s->n_names + 1) * sizeof(*s->names));
    s->names[s->n_names++] = xstrdup(name);
}

void meta_plan_release(struct meta_plan *p)
{
    for (size_t i = 0; i < p->n; i++) {
        struct meta_step *s = &p->steps[i];

        for (size_t k = 0; k < s->n_pairs; k++) {
            free(s->pairs[k].key);
            free(s->pairs[k].value);
        }
        for (size_t k = 0; k < s->n_names; k++)
            free(s->names[k]);
        free(s->pairs);
        free(s->names);
        free(s->field);
        free(s->name);
    }
    free(p->steps);
    *p = (struct meta_plan){0};
}

/* ---- indexes ---------------------------------------------------------------------------------------- */

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

/* Milvus Lite calls each index as its field. */
static const struct sink_index *find_index(const struct sink_meta *has, const json_t *ix)
{
    for (size_t i = 0; i < has->n_indexes; i++) {
        const struct sink_index *h = &has->indexes[i];

        if (strcmp(h->field, text(ix, "field")) == 0 &&
            (strcmp(h->name, text(ix, "name")) == 0 || strcmp(h->name, h->field) == 0))
            return h;
    }
    return NULL;
}

/* The params of an index are an object in a text, which Milvus Lite writes anew. */
static bool same_value(const char *a, const char *b)
{
    json_t *x, *y;
    bool same = strcmp(a, b) == 0;

    if (same || *a != '{' || *b != '{')
        return same;
    x = json_loads(a, 0, NULL);
    y = json_loads(b, 0, NULL);
    same = x && y && json_equal(x, y);
    json_decref(x);
    json_decref(y);
    return same;
}

static bool has_pair(const struct src_pair *pairs, size_t n, const char *key, const char *value)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(pairs[i].key, key) == 0 && same_value(pairs[i].value, value))
            return true;
    return false;
}

static bool same_params(const struct sink_index *h, const json_t *ix)
{
    const json_t *params = json_object_get(ix, "params");

    for (size_t i = 0; i < json_array_size(params); i++) {
        const json_t *p = json_array_get(params, i);

        if (!has_pair(h->params, h->n_params, json_string_value(json_array_get(p, 0)),
                      json_string_value(json_array_get(p, 1))))
            return false;
    }
    return true;
}

/* Is the target's index one that is wanted, though another one of that name was seen? */
static bool is_wanted(const json_t *wanted, const struct sink_meta *has, const struct sink_index *h)
{
    const char *id;
    json_t *ix;

    json_object_foreach(json_object_get(wanted, "indexes"), id, ix)
        if (find_index(has, ix) == h && same_params(h, ix))
            return true;
    return false;
}

/* Those that the source had and has no more. They are marked in dropped, by their place. */
static void drop_indexes(const json_t *wanted, const json_t *seen, const struct sink_meta *has, bool *dropped,
                         struct meta_plan *p)
{
    json_t *now = json_object_get(wanted, "indexes"), *ix;
    const char *id;

    json_object_foreach(json_object_get(seen, "indexes"), id, ix) {
        const struct sink_index *h = find_index(has, ix);
        struct meta_step *s;

        if (!h || json_object_get(now, id) || dropped[h - has->indexes] || is_wanted(wanted, has, h))
            continue;
        dropped[h - has->indexes] = true;
        s = add(p, SINK_DROP_INDEX);
        set_name(&s->field, h->field);
        set_name(&s->name, h->name);
    }
}

/* One that is there with other params is asked for all the same: whether that matters, the target knows. */
static void create_indexes(const json_t *wanted, const struct sink_meta *has, const bool *dropped, struct meta_plan *p)
{
    const char *id;
    json_t *ix;

    json_object_foreach(json_object_get(wanted, "indexes"), id, ix) {
        const struct sink_index *h = find_index(has, ix);
        const json_t *params = json_object_get(ix, "params");
        struct meta_step *s;

        if (h && !dropped[h - has->indexes] && same_params(h, ix))
            continue;
        s = add(p, SINK_CREATE_INDEX);
        s->minor = !json_is_true(json_object_get(ix, "vector"));
        set_name(&s->field, text(ix, "field"));
        set_name(&s->name, text(ix, "name"));
        for (size_t i = 0; i < json_array_size(params); i++)
            add_pair(s, json_string_value(json_array_get(json_array_get(params, i), 0)),
                     json_string_value(json_array_get(json_array_get(params, i), 1)));
    }
}

/* ---- properties, aliases ------------------------------------------------------------------------------ */

static void plan_properties(const json_t *wanted, const json_t *seen, const struct sink_meta *has, struct meta_plan *p)
{
    json_t *now = json_object_get(wanted, "properties"), *v;
    struct meta_step *set = NULL, *drop = NULL;
    const char *key;

    json_object_foreach(now, key, v) {
        if (has_pair(has->properties, has->n_properties, key, json_string_value(v)))
            continue;
        if (!set)
            set = add(p, SINK_SET_PROPERTIES);
        add_pair(set, key, json_string_value(v));
    }
    json_object_foreach(json_object_get(seen, "properties"), key, v) {
        if (json_object_get(now, key))
            continue;
        if (!drop)
            drop = add(p, SINK_DROP_PROPERTIES);
        add_name(drop, key);
    }
}

static void plan_aliases(const json_t *wanted, const json_t *seen, const struct sink_meta *has, struct meta_plan *p)
{
    json_t *now = json_object_get(wanted, "aliases"), *v;
    const char *name;

    json_object_foreach(now, name, v) {
        bool there = false;

        for (size_t i = 0; i < has->n_aliases && !there; i++)
            there = strcmp(has->aliases[i], name) == 0;
        if (!there)
            set_name(&add(p, SINK_ALIAS)->name, name);
    }
    json_object_foreach(json_object_get(seen, "aliases"), name, v)
        if (!json_object_get(now, name))
            set_name(&add(p, SINK_DROP_ALIAS)->name, name);
}

/* ---- load states ---------------------------------------------------------------------------------------- */

static void plan_load(const json_t *wanted, const json_t *seen, const struct sink_meta *has, bool released,
                      struct meta_plan *p)
{
    json_t *now = json_object_get(wanted, "partitions"), *v;
    bool loaded = has->loaded && !released, complete = loaded && has->partitions_loaded;
    int load = load_in(wanted);
    struct meta_step *s = NULL;
    const char *name;

    if (load == SRC_RELEASED)
        return;
    if (load == SRC_LOADED_PARTITIONS && json_object_size(now) == 0)
        return; /* seen between two writes of a load, or of a release: more news comes */
    if (!complete) {
        s = add(p, load == SRC_LOADED ? SINK_LOAD : SINK_LOAD_PARTITIONS);
        s->replicas = (unsigned)json_integer_value(json_object_get(wanted, "replicas"));
        if (load == SRC_LOADED_PARTITIONS)
            json_object_foreach(now, name, v)
                add_name(s, name);
        s = NULL;
    }
    json_object_foreach(json_object_get(seen, "partitions"), name, v) {
        if (!loaded || load == SRC_LOADED || json_object_get(now, name))
            continue;
        if (!s)
            s = add(p, SINK_RELEASE_PARTITIONS);
        add_name(s, name);
    }
}

/* Neither an index goes nor do mmap settings change while it is loaded. */
static bool must_release(const struct meta_plan *p)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct meta_step *s = &p->steps[i];

        if (s->kind == SINK_DROP_INDEX)
            return true;
        for (size_t k = 0; k < s->n_pairs && s->kind == SINK_SET_PROPERTIES; k++)
            if (strstr(s->pairs[k].key, "mmap"))
                return true;
    }
    return false;
}

static void put_first(struct meta_plan *p, enum sink_change_kind kind)
{
    struct meta_step first = *add(p, kind);

    memmove(p->steps + 1, p->steps, (p->n - 1) * sizeof(*p->steps));
    p->steps[0] = first;
}

void meta_plan_make(const json_t *wanted, const json_t *seen, const struct sink_meta *has, bool set_up,
                    struct meta_plan *ret)
{
    bool *dropped = xcalloc(has->n_indexes + 1, sizeof(*dropped)), release = false;

    *ret = (struct meta_plan){0};
    if (set_up)
        drop_indexes(wanted, seen, has, dropped, ret);
    plan_properties(wanted, seen, has, ret);
    if (set_up && has->loaded)
        release = must_release(ret) || (load_in(wanted) == SRC_RELEASED && load_in(seen) != SRC_RELEASED);
    if (release)
        put_first(ret, SINK_RELEASE);
    if (set_up) {
        create_indexes(wanted, has, dropped, ret);
        plan_load(wanted, seen, has, release, ret);
    }
    plan_aliases(wanted, seen, has, ret);
    free(dropped);
}
