/*
 * catalog_meta.c - what users set up beside the rows: indexes, what is loaded, aliases.
 *
 * Indexes: field-index/<collection>/<index>, of the data coordinator; a dropped one is marked and removed later. Load
 * states: querycoord-collection-loadinfo/<collection> and -partition-loadinfo/<collection>/<partition> exist while
 * something is loaded or being loaded. Both are deleted for real, without a tombstone. (Seen on 2.3.5.)
 */
#include "catalog_priv.h"

#include "base/mem.h"

#include "meta.pb-c.h"

#include <stdlib.h>
#include <string.h>

static Pb__FieldIndex *index_unpack(const uint8_t *data, size_t len)
{
    Pb__FieldIndex *m = pb__field_index__unpack(NULL, len, data);

    if (m && m->index_info)
        return m;
    if (m)
        pb__field_index__free_unpacked(m, NULL);
    return NULL;
}

bool cat_index_valid(const uint8_t *data, size_t len, int64_t collection, int64_t id)
{
    Pb__FieldIndex *m = index_unpack(data, len);
    bool ok = m && m->index_info->collection_id == collection && m->index_info->index_id == id;

    if (m)
        pb__field_index__free_unpacked(m, NULL);
    return ok;
}

bool cat_load_valid(const uint8_t *data, size_t len, int64_t collection)
{
    Pb__PartitionLoadInfo *m = pb__partition_load_info__unpack(NULL, len, data); /* begins as a collection's */
    bool ok = m && m->collection_id == collection;

    if (m)
        pb__partition_load_info__free_unpacked(m, NULL);
    return ok;
}

int64_t cat_alias_parse(const uint8_t *data, size_t len)
{
    Pb__AliasInfo *m = pb__alias_info__unpack(NULL, len, data);
    int64_t collection = m ? m->collection_id : 0;

    if (m)
        pb__alias_info__free_unpacked(m, NULL);
    return collection;
}

static const char *field_name(const struct cat_collection *c, int64_t id, size_t *ret_len)
{
    struct cat_field f;
    const uint8_t *data;
    size_t i = 0, len;

    while (cat_user_field(c, &i, &data, &len, &f))
        if (f.id == id) {
            *ret_len = f.name_len;
            return (const char *)f.name;
        }
    return NULL;
}

static bool is_vector(const Pb__IndexInfo *m)
{
    for (size_t i = 0; i < m->n_index_params; i++)
        if (strcmp(m->index_params[i]->key, "metric_type") == 0)
            return true;
    for (size_t i = 0; i < m->n_type_params; i++)
        if (strcmp(m->type_params[i]->key, "dim") == 0)
            return true;
    return false;
}

static void publish_index(struct cat_collection *c, const Pb__IndexInfo *m)
{
    struct src_collection *pub = &c->pub;
    struct src_index *ix;
    size_t len;
    const char *field = field_name(c, m->field_id, &len);

    if (!field)
        return;
    pub->indexes = xrealloc(pub->indexes, (pub->n_indexes + 1) * sizeof(*pub->indexes));
    ix = &pub->indexes[pub->n_indexes++];
    *ix = (struct src_index){.id = m->index_id,
                             .field = xstrndup(field, len),
                             .name = xstrdup(m->index_name),
                             .vector = is_vector(m),
                             .params = xcalloc(m->n_user_index_params + 1, sizeof(*ix->params)),
                             .n_params = m->n_user_index_params};
    for (size_t i = 0; i < m->n_user_index_params; i++)
        ix->params[i] = (struct src_pair){xstrdup(m->user_index_params[i]->key),
                                          xstrdup(m->user_index_params[i]->value)};
}

static void publish_indexes(struct cat_collection *c)
{
    for (size_t i = 0; i < c->indexes.n; i++) {
        const struct cat_item *it = &c->indexes.v[i];
        Pb__FieldIndex *m = it->data ? index_unpack(it->data, it->len) : NULL;

        if (m && !m->deleted)
            publish_index(c, m->index_info);
        if (m)
            pb__field_index__free_unpacked(m, NULL);
    }
}

static void publish_load(struct cat_collection *c, const struct cat_item *it)
{
    enum { LOAD_PARTITIONS = 1 };
    Pb__CollectionLoadInfo *m = pb__collection_load_info__unpack(NULL, it->len, it->data);

    if (!m)
        return;
    c->pub.load = m->load_type == LOAD_PARTITIONS ? SRC_LOADED_PARTITIONS : SRC_LOADED;
    c->pub.replicas = m->replica_number > 0 ? (unsigned)m->replica_number : 1;
    pb__collection_load_info__free_unpacked(m, NULL);
}

static void publish_loads(struct cat_collection *c)
{
    for (size_t i = 0; i < c->loads.n; i++) {
        const struct cat_item *it = &c->loads.v[i];

        if (it->data && it->id == CAT_LOAD_COLLECTION)
            publish_load(c, it);
        for (size_t k = 0; it->data && k < c->pub.n_partitions; k++)
            if (c->pub.partitions[k].id == it->id)
                c->pub.partitions[k].loaded = true;
    }
}

void cat_meta_release(struct src_collection *pub)
{
    for (size_t i = 0; i < pub->n_indexes; i++) {
        struct src_index *ix = &pub->indexes[i];

        for (size_t k = 0; k < ix->n_params; k++) {
            free(ix->params[k].key);
            free(ix->params[k].value);
        }
        free(ix->params);
        free(ix->field);
        free(ix->name);
    }
    for (size_t i = 0; i < pub->n_aliases; i++)
        free(pub->aliases[i]);
    xfree(&pub->indexes);
    xfree(&pub->aliases);
    pub->n_indexes = pub->n_aliases = 0;
}

void cat_meta_publish(struct cat_collection *c, const struct cat_alias *aliases, size_t n_aliases)
{
    struct src_collection *pub = &c->pub;

    cat_meta_release(pub);
    pub->load = SRC_RELEASED;
    publish_indexes(c);
    publish_loads(c);
    for (size_t i = 0; i < n_aliases; i++) {
        if (aliases[i].collection != pub->id)
            continue;
        pub->aliases = xrealloc(pub->aliases, (pub->n_aliases + 1) * sizeof(*pub->aliases));
        pub->aliases[pub->n_aliases++] = xstrdup(aliases[i].name);
    }
}
