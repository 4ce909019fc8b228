/*
 * target_describe.c - what users set up beside the rows of a collection of the target.
 *
 *   DescribeIndex --> GetLoadState --> [GetLoadState of partitions] --> DescribeCollection
 */
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <stdlib.h>
#include <string.h>

char **target_names_dup(const char *const *names, size_t n)
{
    char **copy = xcalloc(n + 1, sizeof(*copy));

    for (size_t i = 0; i < n; i++)
        copy[i] = xstrdup(names[i]);
    return copy;
}

void target_names_free(char **names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

static struct src_pair *dup_pairs(Pb__KeyValuePair *const *pairs, size_t n)
{
    struct src_pair *copy = xcalloc(n + 1, sizeof(*copy));

    for (size_t i = 0; i < n; i++)
        copy[i] = (struct src_pair){xstrdup(pairs[i]->key), xstrdup(pairs[i]->value)};
    return copy;
}

static void free_pairs(struct src_pair *pairs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(pairs[i].key);
        free(pairs[i].value);
    }
    free(pairs);
}

struct describe {
    struct sink_call call;
    sink_meta_fn done;
    void *arg;
    char *db, *collection;
    char **partitions;
    size_t n_partitions;
    struct sink_meta meta;
};

static struct describe *describe_of(struct sink_call *c)
{
    return container_of(c, struct describe, call);
}

static void describe_release(struct sink_call *c)
{
    struct describe *d = describe_of(c);
    struct sink_meta *m = &d->meta;

    for (size_t i = 0; i < m->n_indexes; i++) {
        free(m->indexes[i].field);
        free(m->indexes[i].name);
        free_pairs(m->indexes[i].params, m->indexes[i].n_params);
    }
    free(m->indexes);
    target_names_free(m->aliases, m->n_aliases);
    free_pairs(m->properties, m->n_properties);
    target_names_free(d->partitions, d->n_partitions);
    free(d->db);
    free(d->collection);
    free(d);
}

static void describe_fail(struct sink_call *c, const struct err *err)
{
    struct describe *d = describe_of(c);

    call_end(c);
    d->done(d->arg, err, NULL);
}

/* NULL: of no use, the call has failed, unless the target just does not offer the question (then *ret_skip). */
static void *describe_unpack(struct sink_call *c, const struct answer *a, const ProtobufCMessageDescriptor *desc,
                             bool *ret_skip)
{
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    void *m = NULL;

    *ret_skip = !ans.ok && ans.err.code == ERR_UNSUPPORTED;
    if (ans.ok)
        m = answer_unpack(&ans, desc, call_context(c, context, sizeof(context)));
    if (!m && !*ret_skip)
        describe_fail(c, &ans.err);
    return m;
}

static void on_collection(struct sink_call *c, const struct answer *a)
{
    struct describe *d = describe_of(c);
    bool skip;
    Pb__DescribeCollectionResponse *m =
        describe_unpack(c, a, &pb__describe_collection_response__descriptor, &skip);

    if (!m && !skip)
        return;
    if (m) {
        d->meta.aliases = target_names_dup((const char *const *)m->aliases, m->n_aliases);
        d->meta.n_aliases = m->n_aliases;
        d->meta.properties = dup_pairs(m->properties, m->n_properties);
        d->meta.n_properties = m->n_properties;
        pb__describe_collection_response__free_unpacked(m, NULL);
    }
    call_end(c);
    d->done(d->arg, NULL, &d->meta);
}

static void ask_collection(struct describe *d)
{
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;

    req.db_name = d->db;
    req.collection_name = d->collection;
    call_send(&d->call, "DescribeCollection", ANSWER_FIELD_1, d->db, &req.base, on_collection);
}

static void ask_load(struct describe *d, char **partitions, size_t n, answer_fn fn)
{
    Pb__GetLoadStateRequest req = PB__GET_LOAD_STATE_REQUEST__INIT;

    req.db_name = d->db;
    req.collection_name = d->collection;
    req.partition_names = partitions;
    req.n_partition_names = n;
    call_send(&d->call, "GetLoadState", ANSWER_FIELD_1, d->db, &req.base, fn);
}

static bool is_loaded(const Pb__GetLoadStateResponse *m)
{
    enum { LOADING = 2, LOADED = 3 };

    return m && (m->state == LOADING || m->state == LOADED);
}

static void on_partitions_load(struct sink_call *c, const struct answer *a)
{
    struct describe *d = describe_of(c);
    Pb__GetLoadStateResponse *m = NULL;
    bool skip = a->milvus_code != 0; /* one of them is not there, or not yet */

    if (!skip)
        m = describe_unpack(c, a, &pb__get_load_state_response__descriptor, &skip);
    if (!m && !skip)
        return;
    d->meta.partitions_loaded = is_loaded(m);
    if (m)
        pb__get_load_state_response__free_unpacked(m, NULL);
    ask_collection(d);
}

static void on_load(struct sink_call *c, const struct answer *a)
{
    struct describe *d = describe_of(c);
    bool skip;
    Pb__GetLoadStateResponse *m = describe_unpack(c, a, &pb__get_load_state_response__descriptor, &skip);

    if (!m && !skip)
        return;
    d->meta.loaded = d->meta.partitions_loaded = is_loaded(m);
    if (m)
        pb__get_load_state_response__free_unpacked(m, NULL);
    if (d->meta.loaded && d->n_partitions)
        ask_load(d, d->partitions, d->n_partitions, on_partitions_load);
    else
        ask_collection(d);
}

static void take_indexes(struct sink_meta *meta, const Pb__DescribeIndexResponse *m)
{
    meta->indexes = xcalloc(m->n_index_descriptions + 1, sizeof(*meta->indexes));
    for (; meta->n_indexes < m->n_index_descriptions; meta->n_indexes++) {
        const Pb__IndexDescription *ix = m->index_descriptions[meta->n_indexes];

        meta->indexes[meta->n_indexes] = (struct sink_index){.field = xstrdup(ix->field_name),
                                                             .name = xstrdup(ix->index_name),
                                                             .params = dup_pairs(ix->params, ix->n_params),
                                                             .n_params = ix->n_params};
    }
}

static void on_indexes(struct sink_call *c, const struct answer *a)
{
    struct describe *d = describe_of(c);
    Pb__DescribeIndexResponse *m = NULL;
    bool skip = a->milvus_code == MERR_INDEX_NOT_FOUND;

    if (!skip)
        m = describe_unpack(c, a, &pb__describe_index_response__descriptor, &skip);
    if (!m && !skip)
        return;
    if (m) {
        take_indexes(&d->meta, m);
        pb__describe_index_response__free_unpacked(m, NULL);
    }
    ask_load(d, NULL, 0, on_load);
}

struct sink_call *target_describe_meta(struct sink *s, const char *db, const char *collection,
                                       const char *const *partitions, size_t n_partitions, sink_meta_fn done,
                                       void *arg)
{
    struct describe *d = xcalloc(1, sizeof(*d));
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT; /* DescribeIndexRequest begins so */

    call_init(&d->call, container_of(s, struct target, sink), xasprintf("%s.%s", db, collection), describe_release,
              describe_fail);
    d->done = done;
    d->arg = arg;
    d->db = xstrdup(db);
    d->collection = xstrdup(collection);
    d->partitions = target_names_dup(partitions, n_partitions);
    d->n_partitions = n_partitions;
    req.db_name = d->db;
    req.collection_name = d->collection;
    call_send(&d->call, "DescribeIndex", ANSWER_FIELD_1, d->db, &req.base, on_indexes);
    return &d->call;
}
