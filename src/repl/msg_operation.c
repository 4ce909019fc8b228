/* msg_operation.c - operations of the replicate channel: what they are about. */
#include "base/err.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "repl/msg.h"

#include <string.h>

/* milvus.proto: the same numbers in all requests that are known here */
enum { REQUEST_F_DB_NAME = 2, REQUEST_F_COLLECTION = 3 };

/* How many collections does a request name? */
enum target_kind { TARGET_UNKNOWN, TARGET_DATABASE, TARGET_COLLECTION, TARGET_COLLECTIONS };

static enum target_kind target_kind(int type)
{
    switch (type) {
    case MSG_CREATE_DATABASE:
    case MSG_DROP_DATABASE:
    case MSG_ALTER_DATABASE:
        return TARGET_DATABASE;
    case MSG_CREATE_INDEX:
    case MSG_DROP_INDEX:
    case MSG_ALTER_INDEX:
    case MSG_LOAD_COLLECTION:
    case MSG_RELEASE_COLLECTION:
    case MSG_LOAD_PARTITIONS:
    case MSG_RELEASE_PARTITIONS:
        return TARGET_COLLECTION;
    case MSG_FLUSH:
        return TARGET_COLLECTIONS;
    }
    return TARGET_UNKNOWN;
}

bool msg_operation_known(int msg_type)
{
    return target_kind(msg_type) != TARGET_UNKNOWN;
}

/* A name as a C string can hold it. */
static bool is_name(const struct pb_field *f)
{
    return f->wire == PB_LEN && (f->len == 0 || !memchr(f->data, 0, f->len));
}

/* Names as they lie in the request; start NULL: absent. */
struct names {
    struct pb_field db, collection;
    size_t n_collections;
};

/* Picks the collection of that index; a field that is there once takes its last occurrence. */
static int find_names(const uint8_t *data, size_t len, enum target_kind kind, size_t index,
                      struct names *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    int n;

    *ret = (struct names){0};
    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num == REQUEST_F_DB_NAME) {
            if (!is_name(&f))
                return -1;
            ret->db = f;
        } else if (f.num == REQUEST_F_COLLECTION && kind != TARGET_DATABASE) {
            if (!is_name(&f))
                return -1;
            if (kind == TARGET_COLLECTION || ret->n_collections++ == index)
                ret->collection = f;
        }
    }
    return n;
}

static char *dup_name(const struct pb_field *f, const char *if_empty)
{
    return f->len ? xstrndup((const char *)f->data, f->len) : xstrdup(if_empty);
}

int msg_operation_target(int msg_type, const uint8_t *data, size_t len, size_t index, char **ret_db,
                         char **ret_collection, struct err *err)
{
    enum target_kind kind = target_kind(msg_type);
    struct names names;

    if (kind == TARGET_UNKNOWN)
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER, "operation %s (type %d) is not replicated",
                       msg_type_name(msg_type), msg_type);
    if (find_names(data, len, kind, index, &names) < 0)
        return err_set(err, ERR_PROTO, ERRC_DATA, "%s: not a request (%zu bytes)",
                       msg_type_name(msg_type), len);
    if (kind == TARGET_COLLECTIONS ? !names.collection.start : index > 0)
        return err_set(err, ERR_NOT_FOUND, ERRC_DATA, "%s: no collection of index %zu",
                       msg_type_name(msg_type), index);
    if (kind != TARGET_DATABASE && names.collection.len == 0)
        return err_set(err, ERR_PROTO, ERRC_DATA, "%s: without a collection name",
                       msg_type_name(msg_type));
    *ret_db = dup_name(&names.db, "default");
    *ret_collection = dup_name(&names.collection, "");
    return 0;
}
