/*
 * catalog.h - the source's metadata, kept up to date from its etcd: snapshot, then watch from its revision.
 *
 * Implements struct catalog of repl/port.h.  Keys and rules: shared/reference/source.md section 3.  Besides the root
 * coordinator's, it looks at the keys of indexes (field-index/) and of what is loaded (querycoord-*-loadinfo/).
 *
 * A collection is shown when its value can be read and its database has a name; what changed together (one etcd
 * answer, a snapshot, a sync) is shown together.  A value that cannot be read is logged and the former one stays.
 * Each subscriber is told the existing databases (but "default") right before its first on_ready.
 *
 * sync() completes with RETRY when etcd does not answer, and with DATA, naming the key, while something exists that
 * cannot be shown: what is not found is then no proof.  Several calls of one turn share one read.
 */
#ifndef MILVUS_CATALOG_H
#define MILVUS_CATALOG_H
#include <stdbool.h>

#include "repl/port.h"

struct err;
struct loop;
struct etcd_client;

/* root_path and meta_subpath as in the source's milvus.yaml ("by-dev", "meta"). The etcd client is borrowed
 * and must outlive the catalog. Never NULL. */
struct catalog *catalog_open(struct loop *l, struct etcd_client *etcd, const char *root_path, const char *meta_subpath);
/* Also from its own callbacks. Subscriptions and syncs end without completion. NULL is allowed. */
void catalog_close(struct catalog *c);

/*
 * The schema as the public API wants it in CreateCollection: an encoded schema.CollectionSchema with the user fields
 * in order of field id, without ids, states, RowID, Timestamp and $meta; newer versions' unknown fields kept.  Without
 * schema properties replicate.* and without the database's name.  Caller frees *ret_data.
 */
void catalog_user_schema(const struct src_collection *c, uint8_t **ret_data, size_t *ret_len);
/* The other things a create needs. */
struct catalog_props {
    int consistency_level;
    bool has_partition_key;
};
const struct catalog_props *catalog_properties(const struct src_collection *c);
#endif
