#include "catalog_priv.h"

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "milvus/etcd.h"

#include "meta.pb-c.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_DB = 1 };

enum key_kind {
    KEY_OTHER,
    KEY_DB,
    KEY_COLL,
    KEY_COLL_OLD,
    KEY_PART,
    KEY_FIELD,
    KEY_FUNCTION,
    KEY_ALIAS,
    KEY_INDEX,
    KEY_LOAD,
    KEY_PART_LOAD,
};

/* A key, and what came with it. */
struct change {
    enum key_kind kind;
    int64_t a, b; /* the ids in the key: see key_table */
    const char *name; /* of an alias */
    const char *key;
    const uint8_t *value;
    size_t len;
    bool gone; /* deleted, or a tombstone */
    bool snapshot;
    int64_t revision;
};

#define FIRST_KEYS "field-index/"
#define LAST_KEYS "root-coord/"

/* milvus internal/metastore/kv/rootcoord/rootcoord_constant.go, .../querycoord/kv_catalog.go, internal/util/constant.go */
static const struct {
    const char *prefix;
    enum key_kind kind;
    unsigned n_ids;
} key_table[] = {
    {FIRST_KEYS, KEY_INDEX, 2},                           /* a = collection, b = index */
    {"querycoord-collection-loadinfo/", KEY_LOAD, 1},     /* a = collection */
    {"querycoord-partition-loadinfo/", KEY_PART_LOAD, 2}, /* a = collection, b = partition */
    {LAST_KEYS "database/db-info/", KEY_DB, 1},           /* a = database */
    {LAST_KEYS "database/collection-info/", KEY_COLL, 2}, /* a = database, b = collection */
    {LAST_KEYS "database/aliases/", KEY_ALIAS, 1},        /* a = database; name */
    {LAST_KEYS "collection/", KEY_COLL_OLD, 1},           /* a = collection */
    {LAST_KEYS "partitions/", KEY_PART, 2},               /* a = collection, b = partition */
    {LAST_KEYS "fields/", KEY_FIELD, 2},                  /* a = collection, b = field */
    {LAST_KEYS "functions/", KEY_FUNCTION, 2},            /* a = collection, b = function */
};

/* ---- keys ----------------------------------------------------------------------------------- */

static bool parse_id(const char **p, char end, int64_t *ret)
{
    uint64_t v = 0;
    const char *q = *p;

    if (*q < '0' || *q > '9')
        return false;
    for (; *q >= '0' && *q <= '9'; q++) {
        if (v > (uint64_t)INT64_MAX / 10)
            return false;
        v = v * 10 + (uint64_t)(*q - '0');
    }
    if (*q != end || v > INT64_MAX)
        return false;
    *p = q + (end != '\0');
    *ret = (int64_t)v;
    return true;
}

static bool parse_key(const struct cat_model *m, struct change *ch)
{
    const char *rest = ch->key + strlen(m->prefix);

    if (strncmp(ch->key, m->prefix, strlen(m->prefix)) != 0)
        return false;
    for (size_t i = 0; i < sizeof(key_table) / sizeof(key_table[0]); i++) {
        const char *p = rest + strlen(key_table[i].prefix);

        if (strncmp(rest, key_table[i].prefix, strlen(key_table[i].prefix)) != 0)
            continue;
        ch->kind = key_table[i].kind;
        if (ch->kind == KEY_ALIAS)
            return parse_id(&p, '/', &ch->a) && *(ch->name = p);
        if (key_table[i].n_ids == 1)
            return parse_id(&p, '\0', &ch->a);
        return parse_id(&p, '/', &ch->a) && parse_id(&p, '\0', &ch->b);
    }
    return false;
}

static bool is_tombstone(const uint8_t *value, size_t len)
{
    static const uint8_t tombstone[] = {0xe2, 0x9b, 0xbc}; /* milvus suffix_snapshot.go */

    return len == sizeof(tombstone) && memcmp(value, tombstone, len) == 0;
}

static void log_bad(const struct change *ch, const char *why)
{
    log_error("catalog", "a value in etcd cannot be read, the former one stays",
              KS("key", ch->key), KS("why", why), KI("revision", ch->revision));
}

/*
 * Whether what is known (at revision known, of snapshot epoch seen) makes the change old news.  A
 * snapshot is the truth even if its revisions are lower: the cluster may come from a backup.
 */
static bool is_stale(const struct cat_model *m, const struct change *ch, int64_t known,
                     unsigned seen)
{
    if (ch->snapshot && seen != m->epoch)
        return ch->revision == known;
    return ch->revision <= known;
}

/* ---- tables --------------------------------------------------------------------------------- */

/* The place of id in an array of structs that begin with an int64_t id, sorted by it. */
static size_t lower_bound(const void *v, size_t n, size_t size, int64_t id)
{
    size_t lo = 0;

    while (n > 0) {
        size_t half = n / 2;
        int64_t at;

        memcpy(&at, (const char *)v + (lo + half) * size, sizeof(at));
        if (at < id) {
            lo += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return lo;
}

/* The element with that id, made (zeroed) when missing and add is set; else NULL. */
static void *find_in(void *array_ptr, size_t *n, size_t size, int64_t id, bool add)
{
    char *v;
    size_t at;
    int64_t there;

    memcpy(&v, array_ptr, sizeof(v));
    at = lower_bound(v, *n, size, id);
    if (at < *n) {
        memcpy(&there, v + at * size, sizeof(there));
        if (there == id)
            return v + at * size;
    }
    if (!add)
        return NULL;
    v = xrealloc(v, (*n + 1) * size);
    memmove(v + (at + 1) * size, v + at * size, (*n - at) * size);
    memset(v + at * size, 0, size);
    memcpy(v + at * size, &id, sizeof(id));
    memcpy(array_ptr, &v, sizeof(v));
    ++*n;
    return v + at * size;
}

static size_t coll_bound(const struct cat_model *m, int64_t id)
{
    size_t lo = 0, n = m->n_colls;

    while (n > 0) {
        size_t half = n / 2;

        if (m->colls[lo + half]->pub.id < id) {
            lo += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return lo;
}

static struct cat_collection *coll_find(const struct cat_model *m, int64_t id)
{
    size_t at = coll_bound(m, id);

    return at < m->n_colls && m->colls[at]->pub.id == id ? m->colls[at] : NULL;
}

/* A record may begin with a partition or field: what it belongs to can still be to come. */
static struct cat_collection *coll_need(struct cat_model *m, int64_t id)
{
    struct cat_collection *c = coll_find(m, id);
    size_t at = coll_bound(m, id);

    if (c)
        return c;
    if (m->n_colls == m->cap_colls) {
        m->cap_colls = m->cap_colls ? m->cap_colls * 2 : 64;
        m->colls = xrealloc(m->colls, m->cap_colls * sizeof(*m->colls));
    }
    c = xcalloc(1, sizeof(*c));
    c->pub.id = id;
    c->pub.impl = c;
    c->state = SRC_CREATING;
    memmove(m->colls + at + 1, m->colls + at, (m->n_colls - at) * sizeof(*m->colls));
    m->colls[at] = c;
    m->n_colls++;
    return c;
}

static void mark_dirty(struct cat_model *m, struct cat_collection *c)
{
    if (c->dirty)
        return;
    if (m->n_dirty == m->cap_dirty) {
        m->cap_dirty = m->cap_dirty ? m->cap_dirty * 2 : 64;
        m->dirty = xrealloc(m->dirty, m->cap_dirty * sizeof(*m->dirty));
    }
    c->dirty = true;
    m->dirty[m->n_dirty++] = c;
}

/* Parts of a collection that is being created are no news: all come with its Created. */
static void mark_part_dirty(struct cat_model *m, struct cat_collection *c)
{
    if (c->state != SRC_CREATING)
        mark_dirty(m, c);
}

static void items_release(struct cat_items *items)
{
    for (size_t i = 0; i < items->n; i++)
        free(items->v[i].data);
    xfree(&items->v);
    items->n = 0;
}

/* ---- databases ------------------------------------------------------------------------------ */

static struct cat_db *db_find(const struct cat_model *m, int64_t id)
{
    size_t at = lower_bound(m->dbs, m->n_dbs, sizeof(*m->dbs), id);

    return at < m->n_dbs && m->dbs[at].id == id ? &m->dbs[at] : NULL;
}

/* The names of its collections may have become known. */
static void db_changed(struct cat_model *m, struct cat_db *db, bool renamed)
{
    db->dirty = true;
    if (!renamed)
        return;
    for (size_t i = 0; i < m->n_colls; i++) {
        const struct cat_info *info = m->colls[i]->next ? m->colls[i]->next : m->colls[i]->info;

        if (info && info->db_id == db->id)
            mark_dirty(m, m->colls[i]);
    }
}

/* 0 unknown (old values) and 1 created: there; 2 creating: not yet; 3 dropping, 4 dropped: gone. */
static void db_set(struct cat_model *m, struct cat_db *db, const Pb__DatabaseInfo *info)
{
    bool there = info->state <= 1, gone = info->state >= 3;
    bool renamed = !db->name || strcmp(db->name, info->name) != 0;

    if (!there && !gone)
        return;
    if (renamed) {
        free(db->name);
        db->name = xstrdup(info->name);
    }
    if (renamed || gone != db->gone) {
        db->gone = gone;
        db_changed(m, db, renamed);
    }
}

static void db_gone(struct cat_model *m, struct cat_db *db)
{
    if (db->gone || db->id == DEFAULT_DB)
        return;
    db->gone = true;
    db_changed(m, db, false);
}

static void apply_db(struct cat_model *m, const struct change *ch)
{
    struct cat_db *db = find_in(&m->dbs, &m->n_dbs, sizeof(*m->dbs), ch->a, !ch->gone);
    Pb__DatabaseInfo *info;

    if (!db)
        return;
    if (is_stale(m, ch, db->mod_revision, db->epoch)) {
        db->epoch = m->epoch;
        return;
    }
    db->epoch = m->epoch;
    db->mod_revision = ch->revision;
    if (ch->gone) {
        db_gone(m, db);
        return;
    }
    info = pb__database_info__unpack(NULL, ch->len, ch->value);
    if (!info || info->id != ch->a || !info->name[0] || info->state < 0)
        log_bad(ch, "no DatabaseInfo of that id");
    else
        db_set(m, db, info);
    if (info)
        pb__database_info__free_unpacked(info, NULL);
}

/* ---- collections ---------------------------------------------------------------------------- */

static void coll_gone(struct cat_model *m, struct cat_collection *c)
{
    if (c->gone)
        return;
    c->gone = true;
    c->state = SRC_DROPPING;
    c->unreadable = false;
    mark_dirty(m, c);
}

/* Keys of old databases carry the id in the path only. */
static int64_t effective_db(const struct change *ch, const struct cat_info *info)
{
    int64_t id = ch->kind == KEY_COLL ? ch->a : info->db_id;

    return id > 0 ? id : DEFAULT_DB;
}

static void coll_put(struct cat_model *m, struct cat_collection *c, const struct change *ch)
{
    const char *why = NULL;
    struct cat_info *info = cat_info_parse(ch->value, ch->len, c->pub.id, &why);

    c->gone = false;
    if (!info) {
        log_bad(ch, why);
        c->unreadable = !c->next && !c->info;
        return;
    }
    info->db_id = effective_db(ch, info);
    cat_info_free(c->next);
    c->next = info;
    c->state = info->state;
    c->unreadable = false;
    mark_dirty(m, c);
}

/*
 * A collection may move: its key is put under another database and the old one gets a tombstone, in
 * one transaction.  So a tombstone counts only at the key that the value came from.
 */
static void apply_coll(struct cat_model *m, const struct change *ch)
{
    int64_t id = ch->kind == KEY_COLL ? ch->b : ch->a;
    int64_t key_db = ch->kind == KEY_COLL ? ch->a : CAT_OLD_LAYOUT;
    struct cat_collection *c = ch->gone ? coll_find(m, id) : coll_need(m, id);
    bool same_key, stale;

    if (!c)
        return;
    same_key = c->mod_revision != 0 && c->key_db == key_db;
    if (ch->gone && !same_key)
        return;
    stale = is_stale(m, ch, c->mod_revision, c->epoch);
    if (stale && !same_key && ch->revision == c->mod_revision)
        stale = false; /* the put of a move */
    if (same_key || !stale)
        c->epoch = m->epoch;
    if (stale)
        return;
    c->mod_revision = ch->revision;
    c->key_db = key_db;
    if (ch->gone)
        coll_gone(m, c);
    else
        coll_put(m, c, ch);
}

/* ---- partitions ----------------------------------------------------------------------------- */

static struct cat_partition *part_find(struct cat_collection *c, int64_t id, bool add)
{
    return find_in(&c->parts, &c->n_parts, sizeof(*c->parts), id, add);
}

static void part_gone(struct cat_model *m, struct cat_collection *c, struct cat_partition *p)
{
    if (p->state == SRC_DROPPING)
        return;
    p->state = SRC_DROPPING;
    mark_part_dirty(m, c);
}

static void part_put(struct cat_model *m, struct cat_collection *c, struct cat_partition *p,
                     const struct change *ch)
{
    static const enum src_state states[] = {SRC_ALIVE, SRC_CREATING, SRC_DROPPING, SRC_DROPPING};
    Pb__PartitionInfo *info = pb__partition_info__unpack(NULL, ch->len, ch->value);

    if (!info || info->partition_id != ch->b || info->collection_id != ch->a ||
        !info->partition_name[0] || info->state < 0 || info->state > 3) {
        log_bad(ch, "no PartitionInfo of that collection and id");
    } else {
        free(p->name);
        p->name = xstrdup(info->partition_name);
        p->state = states[info->state];
        p->create_tt = info->partition_created_timestamp;
        mark_part_dirty(m, c);
    }
    if (info)
        pb__partition_info__free_unpacked(info, NULL);
}

static void apply_part(struct cat_model *m, const struct change *ch)
{
    struct cat_collection *c = ch->gone ? coll_find(m, ch->a) : coll_need(m, ch->a);
    struct cat_partition *p = c ? part_find(c, ch->b, !ch->gone) : NULL;
    bool stale;

    if (!p)
        return;
    stale = is_stale(m, ch, p->mod_revision, p->epoch);
    p->epoch = m->epoch;
    if (stale)
        return;
    p->mod_revision = ch->revision;
    if (ch->gone)
        part_gone(m, c, p);
    else
        part_put(m, c, p, ch);
}

/* ---- items: fields, functions, indexes, load states ------------------------------------------ */

static void item_clear(struct cat_item *it)
{
    xfree(&it->data);
    it->len = 0;
    it->bad = false;
}

static bool item_valid(const struct change *ch)
{
    struct cat_field f; /* a function is only checked to be protobuf */

    if (ch->kind == KEY_INDEX)
        return cat_index_valid(ch->value, ch->len, ch->a, ch->b);
    if (ch->kind == KEY_LOAD || ch->kind == KEY_PART_LOAD)
        return cat_load_valid(ch->value, ch->len, ch->a);
    if (ch->len == 0 || !cat_field_parse(ch->value, ch->len, &f))
        return false;
    return ch->kind == KEY_FUNCTION || (f.id == ch->b && f.named);
}

static void item_put(struct cat_item *it, const struct change *ch)
{
    if (!item_valid(ch)) {
        log_bad(ch, "it is not what its key says");
        it->bad = !it->data;
        return;
    }
    item_clear(it);
    it->data = xmalloc(ch->len + 1);
    memcpy(it->data, ch->value, ch->len);
    it->len = ch->len;
}

static struct cat_items *items_of(struct cat_collection *c, enum key_kind kind)
{
    switch (kind) {
    case KEY_FIELD:
        return &c->fields;
    case KEY_FUNCTION:
        return &c->functions;
    case KEY_INDEX:
        return &c->indexes;
    default:
        return &c->loads;
    }
}

static void apply_item(struct cat_model *m, const struct change *ch)
{
    struct cat_collection *c;
    struct cat_items *items;
    struct cat_item *it;
    bool stale;

    if (ch->kind == KEY_FIELD && ch->b < FIRST_USER_FIELD)
        return; /* RowID, Timestamp: every collection has them */
    c = ch->gone ? coll_find(m, ch->a) : coll_need(m, ch->a);
    if (!c)
        return;
    items = items_of(c, ch->kind);
    it = find_in(&items->v, &items->n, sizeof(*items->v), ch->b, !ch->gone);
    if (!it)
        return;
    stale = is_stale(m, ch, it->mod_revision, it->epoch);
    it->epoch = m->epoch;
    if (stale)
        return;
    it->mod_revision = ch->revision;
    if (ch->gone)
        item_clear(it);
    else
        item_put(it, ch);
    mark_part_dirty(m, c);
}

/* ---- aliases -------------------------------------------------------------------------------- */

static struct cat_alias *alias_find(struct cat_model *m, int64_t db, const char *name)
{
    for (size_t i = 0; i < m->n_aliases; i++)
        if (m->aliases[i].db == db && strcmp(m->aliases[i].name, name) == 0)
            return &m->aliases[i];
    return NULL;
}

static struct cat_alias *alias_need(struct cat_model *m, int64_t db, const char *name)
{
    struct cat_alias *a = alias_find(m, db, name);

    if (a)
        return a;
    m->aliases = xrealloc(m->aliases, (m->n_aliases + 1) * sizeof(*m->aliases));
    a = &m->aliases[m->n_aliases++];
    *a = (struct cat_alias){.db = db, .name = xstrdup(name)};
    return a;
}

/* Both its former collection and the one that it stands for now have news. */
static void alias_set(struct cat_model *m, struct cat_alias *a, int64_t collection)
{
    int64_t ids[] = {a->collection, collection};

    if (a->collection == collection)
        return;
    a->collection = collection;
    for (int i = 0; i < 2; i++)
        if (ids[i])
            mark_part_dirty(m, coll_need(m, ids[i]));
}

static void apply_alias(struct cat_model *m, const struct change *ch)
{
    struct cat_alias *a = ch->gone ? alias_find(m, ch->a, ch->name) : alias_need(m, ch->a, ch->name);
    int64_t collection;
    bool stale;

    if (!a)
        return;
    stale = is_stale(m, ch, a->mod_revision, a->epoch);
    a->epoch = m->epoch;
    if (stale)
        return;
    a->mod_revision = ch->revision;
    collection = ch->gone ? 0 : cat_alias_parse(ch->value, ch->len);
    if (!ch->gone && !collection)
        log_bad(ch, "no AliasInfo");
    else
        alias_set(m, a, collection);
}

/* ---- apply ---------------------------------------------------------------------------------- */

void model_apply(struct cat_model *m, bool snapshot, const char *key, const uint8_t *value,
                 size_t len, int64_t mod_revision)
{
    struct change ch = {.key = key,
                        .value = value,
                        .len = len,
                        .gone = !value || is_tombstone(value, len),
                        .snapshot = snapshot,
                        .revision = mod_revision};

    if (!parse_key(m, &ch)) {
        if (ch.kind != KEY_OTHER)
            log_bad(&ch, "the ids in the key are no numbers");
        return;
    }
    switch (ch.kind) {
    case KEY_DB:
        apply_db(m, &ch);
        break;
    case KEY_COLL:
    case KEY_COLL_OLD:
        apply_coll(m, &ch);
        break;
    case KEY_PART:
        apply_part(m, &ch);
        break;
    case KEY_FIELD:
    case KEY_FUNCTION:
    case KEY_INDEX:
    case KEY_LOAD:
    case KEY_PART_LOAD:
        apply_item(m, &ch);
        break;
    case KEY_ALIAS:
        apply_alias(m, &ch);
        break;
    case KEY_OTHER:
        break;
    }
}

void model_snapshot_begin(struct cat_model *m)
{
    m->epoch++;
}

static void sweep_items(struct cat_model *m, struct cat_collection *c, struct cat_items *items)
{
    for (size_t i = 0; i < items->n; i++) {
        struct cat_item *it = &items->v[i];

        if (it->epoch == m->epoch || (!it->data && !it->bad))
            continue;
        item_clear(it);
        mark_part_dirty(m, c);
    }
}

static void sweep_coll(struct cat_model *m, struct cat_collection *c)
{
    if (c->mod_revision != 0 && c->epoch != m->epoch)
        coll_gone(m, c);
    for (size_t i = 0; i < c->n_parts; i++)
        if (c->parts[i].epoch != m->epoch)
            part_gone(m, c, &c->parts[i]);
    sweep_items(m, c, &c->fields);
    sweep_items(m, c, &c->functions);
    sweep_items(m, c, &c->indexes);
    sweep_items(m, c, &c->loads);
}

void model_snapshot_end(struct cat_model *m)
{
    for (size_t i = 0; i < m->n_colls; i++)
        sweep_coll(m, m->colls[i]);
    for (size_t i = 0; i < m->n_dbs; i++)
        if (m->dbs[i].epoch != m->epoch)
            db_gone(m, &m->dbs[i]);
    for (size_t i = 0; i < m->n_aliases; i++)
        if (m->aliases[i].epoch != m->epoch)
            alias_set(m, &m->aliases[i], 0);
}

/* ---- publish -------------------------------------------------------------------------------- */

static void free_partitions(struct src_collection *pub)
{
    for (size_t i = 0; i < pub->n_partitions; i++)
        free(pub->partitions[i].name);
    xfree(&pub->partitions);
    pub->n_partitions = 0;
}

static void publish_partitions(struct cat_collection *c)
{
    struct src_collection *pub = &c->pub;

    free_partitions(pub);
    pub->partitions = c->n_parts ? xcalloc(c->n_parts, sizeof(*pub->partitions)) : NULL;
    for (size_t i = 0; i < c->n_parts; i++) {
        const struct cat_partition *p = &c->parts[i];

        if (p->name)
            pub->partitions[pub->n_partitions++] = (struct src_partition){
                .id = p->id, .name = xstrdup(p->name), .state = p->state, .create_tt = p->create_tt};
    }
}

static void add_default(struct src_collection *pub, int64_t id)
{
    pub->default_ids = xrealloc(pub->default_ids, (pub->n_default_ids + 1) * sizeof(*pub->default_ids));
    pub->default_ids[pub->n_default_ids++] = id;
}

static void publish_fields(struct cat_collection *c)
{
    enum { STRING = 20, VARCHAR = 21 }; /* milvus schema.proto DataType */
    struct cat_field f;
    const uint8_t *data;
    size_t i = 0, len;

    c->props.has_partition_key = false;
    xfree(&c->pub.pk_name);
    c->pub.n_default_ids = 0;
    c->pub.row_bytes = 0;
    while (cat_user_field(c, &i, &data, &len, &f)) {
        c->pub.row_bytes += cat_field_bytes(&f);
        if (f.partition_key)
            c->props.has_partition_key = true;
        if (f.has_default)
            add_default(&c->pub, f.id);
        if (!f.primary_key)
            continue;
        c->pub.pk_field_id = f.id;
        c->pub.pk_is_string = f.data_type == STRING || f.data_type == VARCHAR;
        free(c->pub.pk_name);
        c->pub.pk_name = xstrndup((const char *)f.name, f.name_len);
    }
    c->pub.has_partition_key = c->props.has_partition_key;
}

static void publish_info(struct cat_collection *c)
{
    struct cat_info *info = c->next;

    cat_info_free(c->info);
    c->info = info;
    c->next = NULL;
    c->pub.name = info->name;
    c->pub.db_id = info->db_id;
    c->pub.create_tt = info->create_tt;
    c->pub.shards = info->shards;
    c->pub.n_shards = info->n_shards;
    c->props.consistency_level = info->consistency_level;
    c->pub.properties = info->props;
    c->pub.n_properties = info->n_props;
}

static bool has_bad(const struct cat_items *items)
{
    for (size_t i = 0; i < items->n; i++)
        if (items->v[i].bad)
            return true;
    return false;
}

static const char *db_name(const struct cat_model *m, int64_t id)
{
    const struct cat_db *db = db_find(m, id);

    return db ? db->name : NULL;
}

static void publish_coll(struct cat_model *m, struct cat_collection *c)
{
    const char *db;

    if (c->next)
        publish_info(c);
    if (!c->info)
        return;
    db = db_name(m, c->info->db_id);
    if (!db && c->state == SRC_DROPPING)
        db = ""; /* dropped with its database, whose key goes first: nobody needs the name */
    free(c->pub.db_name);
    c->pub.db_name = xstrdup(db);
    c->pub.state = c->state;
    c->pub.revision = c->mod_revision;
    publish_partitions(c);
    publish_fields(c);
    cat_meta_publish(c, m->aliases, m->n_aliases);
    c->visible = db && (c->state == SRC_DROPPING ||
                        (!has_bad(&c->fields) && !has_bad(&c->functions)));
    if (!db)
        log_warn("catalog", "a collection waits for its database to appear",
                 KI("collection", c->pub.id), KI("database", c->info->db_id));
}

size_t model_publish(struct cat_model *m, struct cat_collection ***ret_changed)
{
    size_t n = 0;

    for (size_t i = 0; i < m->n_dirty; i++) {
        struct cat_collection *c = m->dirty[i];

        c->dirty = false;
        publish_coll(m, c);
        if (c->visible)
            m->dirty[n++] = c;
    }
    *ret_changed = m->dirty;
    m->dirty = NULL;
    m->n_dirty = 0;
    m->cap_dirty = 0;
    return n;
}

struct cat_collection *model_get(const struct cat_model *m, int64_t id)
{
    struct cat_collection *c = coll_find(m, id);

    return c && c->visible ? c : NULL;
}

struct cat_collection *model_next(const struct cat_model *m, int64_t after_id)
{
    if (after_id == INT64_MAX)
        return NULL;
    for (size_t i = coll_bound(m, after_id + 1); i < m->n_colls; i++)
        if (m->colls[i]->visible)
            return m->colls[i];
    return NULL;
}

/* ---- completeness --------------------------------------------------------------------------- */

static int hidden_err(const struct cat_model *m, const char *dir, int64_t a, int64_t b,
                      const char *why, struct err *err)
{
    return err_set(err, ERR_PROTO, ERRC_DATA, "etcd key %s" LAST_KEYS "%s%" PRId64 "/%" PRId64 ": %s", m->prefix,
                   dir, a, b, why);
}

static int items_complete(const struct cat_model *m, const struct cat_collection *c,
                          const struct cat_items *items, const char *dir, struct err *err)
{
    for (size_t i = 0; i < items->n; i++)
        if (items->v[i].bad)
            return hidden_err(m, dir, c->pub.id, items->v[i].id, "cannot be read", err);
    return 0;
}

static int coll_complete(const struct cat_model *m, const struct cat_collection *c, struct err *err)
{
    int rc;

    if (c->mod_revision == 0 || c->gone)
        return 0; /* no key of its own, or one that says nothing */
    if (c->unreadable && c->key_db == CAT_OLD_LAYOUT)
        return err_set(err, ERR_PROTO, ERRC_DATA,
                       "etcd key %s" LAST_KEYS "collection/%" PRId64 ": cannot be read", m->prefix, c->pub.id);
    if (c->unreadable)
        return hidden_err(m, "database/collection-info/", c->key_db, c->pub.id, "cannot be read",
                          err);
    if (c->state == SRC_DROPPING)
        return 0;
    if (!db_name(m, c->info->db_id))
        return hidden_err(m, "database/collection-info/", c->key_db, c->pub.id,
                          "its database has no name in etcd", err);
    for (size_t i = 0; i < c->n_parts; i++)
        if (!c->parts[i].name && c->parts[i].state != SRC_DROPPING)
            return hidden_err(m, "partitions/", c->pub.id, c->parts[i].id, "cannot be read", err);
    rc = items_complete(m, c, &c->fields, "fields/", err);
    return rc ? rc : items_complete(m, c, &c->functions, "functions/", err);
}

int model_complete(const struct cat_model *m, struct err *err)
{
    int rc = 0;

    for (size_t i = 0; i < m->n_colls && rc == 0; i++)
        rc = coll_complete(m, m->colls[i], err);
    return rc;
}

/* ---- life ----------------------------------------------------------------------------------- */

/* As Go's path.Join in Milvus: empty parts and slashes at the end do not count. */
static char *join_prefix(const char *root, const char *meta)
{
    size_t n_root = root ? strlen(root) : 0, n_meta;

    while (meta && *meta == '/')
        meta++;
    n_meta = meta ? strlen(meta) : 0;
    while (n_root > 0 && root[n_root - 1] == '/')
        n_root--;
    while (n_meta > 0 && meta[n_meta - 1] == '/')
        n_meta--;
    return xasprintf("%.*s%s%.*s%s", (int)n_root, n_root ? root : "", n_root ? "/" : "",
                     (int)n_meta, n_meta ? meta : "", n_meta ? "/" : "");
}

void model_init(struct cat_model *m, const char *root_path, const char *meta_subpath)
{
    struct cat_db *db;
    char *last;

    *m = (struct cat_model){.prefix = join_prefix(root_path, meta_subpath), .epoch = 1};
    last = xasprintf("%s" LAST_KEYS, m->prefix);
    m->first = xasprintf("%s" FIRST_KEYS, m->prefix);
    m->end = etcd_prefix_end(last);
    free(last);
    db = find_in(&m->dbs, &m->n_dbs, sizeof(*m->dbs), DEFAULT_DB, true);
    db->name = xstrdup("default");
}

static void free_coll(struct cat_collection *c)
{
    free_partitions(&c->pub);
    for (size_t i = 0; i < c->n_parts; i++)
        free(c->parts[i].name);
    free(c->parts);
    items_release(&c->fields);
    items_release(&c->functions);
    items_release(&c->indexes);
    items_release(&c->loads);
    cat_meta_release(&c->pub);
    free(c->pub.db_name);
    free(c->pub.pk_name);
    free(c->pub.default_ids);
    cat_info_free(c->info);
    cat_info_free(c->next);
    free(c);
}

void model_release(struct cat_model *m)
{
    for (size_t i = 0; i < m->n_colls; i++)
        free_coll(m->colls[i]);
    for (size_t i = 0; i < m->n_dbs; i++)
        free(m->dbs[i].name);
    for (size_t i = 0; i < m->n_aliases; i++)
        free(m->aliases[i].name);
    free(m->aliases);
    free(m->first);
    free(m->end);
    free(m->colls);
    free(m->dbs);
    free(m->dirty);
    free(m->prefix);
}
