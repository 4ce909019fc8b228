/*
 * catalog_priv.h - what the catalog knows, without I/O: keys and values in, collections out.
 *
 * Values are applied one by one and become visible all together with model_publish(), so that a
 * reader never sees a collection whose partitions or fields are still to come.
 *
 * Ownership  the catalog owns the model, the model all collections.  A collection's record stays
 * until model_release(), also after its drop, since its names are needed then.
 */
#ifndef MILVUS_CATALOG_PRIV_H
#define MILVUS_CATALOG_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "milvus/catalog.h"
#include "repl/port.h"

struct err;

enum { FIRST_USER_FIELD = 100 }; /* below are RowID 0 and Timestamp 1 */

/* A field or function: the encoded value of its key. */
struct cat_item {
    int64_t id, mod_revision;
    unsigned epoch;
    uint8_t *data; /* NULL: removed, or never readable (bad) */
    size_t len;
    bool bad;
};

struct cat_items {
    struct cat_item *v; /* by id */
    size_t n;
};

struct cat_partition {
    int64_t id, mod_revision;
    unsigned epoch;
    char *name; /* NULL: never readable */
    enum src_state state;
    uint64_t create_tt;
};

/* What one value of a collection's key says. */
struct cat_info {
    int64_t db_id;
    char *name;
    enum src_state state;
    uint64_t create_tt;
    struct src_shard *shards;
    size_t n_shards;
    uint8_t *schema; /* encoded CollectionSchema, in the new layout without fields */
    size_t schema_len;
    int consistency_level;
    struct src_pair *props;
    size_t n_props;
};

enum { CAT_OLD_LAYOUT = -1, CAT_LOAD_COLLECTION = 0 };

struct cat_alias {
    int64_t db;
    char *name;
    int64_t collection; /* 0: dropped */
    int64_t mod_revision;
    unsigned epoch;
};

struct cat_collection {
    struct src_collection pub; /* as published; points into info */
    struct catalog_props props;
    struct cat_info *info; /* published; NULL: not yet */
    struct cat_info *next; /* newer, not yet published */
    int64_t mod_revision;
    int64_t key_db;        /* the key the value came from: .../<key_db>/<id> or CAT_OLD_LAYOUT */
    unsigned epoch;
    enum src_state state;  /* newest */
    bool unreadable;       /* the only value seen could not be parsed */
    bool gone;             /* tombstone or removed key */
    bool visible;
    bool dirty;            /* is in model.dirty */
    struct cat_partition *parts; /* by id */
    size_t n_parts;
    struct cat_items fields, functions, indexes;
    struct cat_items loads; /* by partition id; CAT_LOAD_COLLECTION: of the collection */
};

struct cat_db {
    int64_t id, mod_revision;
    unsigned epoch;
    char *name;  /* NULL: never readable or still being created */
    bool gone;
    bool dirty;
};

struct cat_model {
    char *prefix;      /* of every key: "<root>/<meta>/" */
    char *first, *end; /* the range of the keys that are looked at, in order: what lies between is little */
    struct cat_alias *aliases;
    size_t n_aliases;
    struct cat_collection **colls; /* by id */
    size_t n_colls, cap_colls;
    struct cat_db *dbs;
    size_t n_dbs;
    struct cat_collection **dirty;
    size_t n_dirty, cap_dirty;
    unsigned epoch; /* of the last snapshot: what it did not mention is gone */
};

void model_init(struct cat_model *m, const char *root_path, const char *meta_subpath);
void model_release(struct cat_model *m);

/* One key's value; value NULL: deleted.  Older than what is known is ignored, unless snapshot. */
void model_apply(struct cat_model *m, bool snapshot, const char *key, const uint8_t *value,
                 size_t len, int64_t mod_revision);
/* Brackets a snapshot: what is known and not applied in between is gone. */
void model_snapshot_begin(struct cat_model *m);
void model_snapshot_end(struct cat_model *m);

/* Makes everything applied visible.  Moves the changed collections that can be seen to *ret_changed
 * (caller frees the array, not what it points to) and returns their number. */
size_t model_publish(struct cat_model *m, struct cat_collection ***ret_changed);

/* NULL: not known or not visible. */
struct cat_collection *model_get(const struct cat_model *m, int64_t id);
struct cat_collection *model_next(const struct cat_model *m, int64_t after_id);

/* An error (DATA) that names a key when something exists that cannot be shown: then nobody may
 * conclude that what is not found does not exist. */
int model_complete(const struct cat_model *m, struct err *err);

/* ---- catalog_schema.c: encoded values ---- */

/* Parses a collection's value; NULL and a reason when it is not one of that id. */
struct cat_info *cat_info_parse(const uint8_t *value, size_t len, int64_t id, const char **ret_why);
void cat_info_free(struct cat_info *info); /* NULL is allowed */

struct cat_field {
    int64_t id;
    int32_t data_type;
    bool primary_key, partition_key, dynamic, named, has_default;
    const uint8_t *name; /* borrows from the value */
    size_t name_len;
    uint64_t dim, max_length; /* type parameters; 0: none */
};
/* Reads what is needed of an encoded FieldSchema.  False: not protobuf. */
bool cat_field_parse(const uint8_t *data, size_t len, struct cat_field *ret);

/* Bytes of one value in an answer, about. */
size_t cat_field_bytes(const struct cat_field *f);

/* A mark of a replica, for one cluster only. */
bool cat_replicate_property(const char *key, size_t len);

/* ---- catalog_meta.c: what users set up beside the rows ---- */

/* Can the value of such a key be read, and does it belong to the ids in the key? */
bool cat_index_valid(const uint8_t *data, size_t len, int64_t collection, int64_t id);
bool cat_load_valid(const uint8_t *data, size_t len, int64_t collection);
/* The collection that an alias stands for; 0: none, or not to be read. */
int64_t cat_alias_parse(const uint8_t *data, size_t len);
/* From c's items into c->pub, after its partitions. */
void cat_meta_publish(struct cat_collection *c, const struct cat_alias *aliases, size_t n_aliases);
void cat_meta_release(struct src_collection *pub);

/* The next user field of a collection: from its own keys, or from within the schema (very old
 * values).  *i begins at 0.  False: the end. */
bool cat_user_field(const struct cat_collection *c, size_t *i, const uint8_t **ret_data,
                    size_t *ret_len, struct cat_field *ret);
#endif
