/* msg_rewrite.c - messages on their way to the target: rewritten, or made here. */
#include "base/buf.h"
#include "base/err.h"
#include "base/pbwire.h"
#include "repl/msg.h"
#include "repl/msg_priv.h"

#include <assert.h>
#include <event2/buffer.h>

/* ---- fields that are written anew ---------------------------------------------------------- */

/* The message's own MsgBase, other fields (properties, replicateInfo, unknown ones) as they are. */
static void out_base(struct pb_out *o, const struct pb_field *base, const struct msg_rewrite *rw)
{
    struct pb_scan s = pb_scan_init(base->data, base->len);
    struct pb_out b = {0};
    struct pb_field f;

    while (pb_scan_next(&s, &f) > 0) {
        bool replaced = (f.num == BASE_F_MSG_ID && rw->new_msg_id) ||
                        (f.num == BASE_F_TIMESTAMP && rw->new_tt);
        if (!replaced)
            pb_out_raw(&b, f.start, f.total);
    }
    pb_out_u64(&b, BASE_F_MSG_ID, (uint64_t)rw->new_msg_id);
    pb_out_u64(&b, BASE_F_TIMESTAMP, rw->new_tt);
    pb_out_bytes(o, MSG_F_BASE, b.data, b.len);
    pb_out_release(&b);
}

/* A MsgBase of ours. source_id: the node that wrote it; -1 for none, as replicators do. */
static void out_new_base(struct pb_out *o, enum msg_type type, int64_t msg_id, uint64_t tt,
                         int64_t source_id)
{
    struct pb_out b = {0};

    pb_out_u64(&b, BASE_F_TYPE, type);
    pb_out_u64(&b, BASE_F_MSG_ID, (uint64_t)msg_id);
    pb_out_u64(&b, BASE_F_TIMESTAMP, tt);
    pb_out_u64(&b, BASE_F_SOURCE_ID, (uint64_t)source_id);
    pb_out_bytes(o, MSG_F_BASE, b.data, b.len);
    pb_out_release(&b);
}

/* What names the target's objects. */
static void out_target(struct pb_out *o, const struct msg_layout *l, const struct msg_rewrite *rw,
                       int64_t partition_id)
{
    if (l->shard_name) {
        assert(rw->shard_name && *rw->shard_name); /* a wrong one takes the target down */
        pb_out_str(o, l->shard_name, rw->shard_name);
    }
    pb_out_str(o, l->db_name, rw->db_name);
    pb_out_str(o, l->collection_name, rw->collection_name);
    pb_out_u64(o, l->collection_id, (uint64_t)rw->collection_id);
    if (l->partition_id)
        pb_out_u64(o, l->partition_id, (uint64_t)partition_id);
}

/* ---- fields that stay ---------------------------------------------------------------------- */

/* The runs of neighbouring fields that stay. */
struct runs {
    struct pb_scan scan;
    uint32_t replaced; /* bit per field number */
};

static struct runs runs_init(const uint8_t *data, size_t len, const struct msg_layout *l,
                             const struct msg_rewrite *rw)
{
    uint32_t m = 1u << MSG_F_BASE | 1u << l->shard_name | 1u << l->db_name |
                 1u << l->collection_name | 1u << l->collection_id | 1u << l->partition_id;

    if (rw->new_tt)
        m |= 1u << l->timestamps;
    return (struct runs){pb_scan_init(data, len), m}; /* bit 0: fields that the type lacks */
}

static bool runs_next(struct runs *r, const uint8_t **ret_data, size_t *ret_len)
{
    struct pb_field f;
    const uint8_t *start = NULL;
    size_t len = 0;

    while (pb_scan_next(&r->scan, &f) > 0) {
        if (f.num >= 32 || !(r->replaced >> f.num & 1)) {
            if (!start)
                start = f.start;
            len += f.total;
        } else if (start) {
            break;
        }
    }
    *ret_data = start;
    *ret_len = len;
    return start != NULL;
}

/* front, then what stays of the message. */
static size_t append_runs(const struct pb_out *front, struct runs runs, struct buf *src,
                          struct evbuffer *out)
{
    struct runs again = runs;
    struct evbuffer *e;
    const uint8_t *data;
    size_t len, rest = 0;
    bool ok = true;

    while (runs_next(&runs, &data, &len))
        rest += len;
    e = msg_element_open(front, rest);
    if (!e)
        return 0;
    while (ok && runs_next(&again, &data, &len))
        ok = buf_add_to_evbuffer(src, data, len, e) == 0;
    return msg_element_close(e, ok, out);
}

/* ---- elements ------------------------------------------------------------------------------ */

size_t msg_append(const struct msg_head *head, struct buf *src, const uint8_t *data, size_t len,
                  const struct msg_rewrite *rw, struct evbuffer *out)
{
    const struct msg_layout *l = msg_layout_of(head->type);
    struct pb_out front = {0};
    struct pb_field base;
    size_t n;

    assert(head->type == MSG_INSERT || head->type == MSG_DELETE ||
           head->type == MSG_DROP_COLLECTION || head->type == MSG_DROP_PARTITION);
    if (msg_find_base(data, len, &base, NULL))
        assert(!"head is not of this message");
    out_base(&front, &base, rw);
    out_target(&front, l, rw, head->partition_id == -1 ? -1 : rw->partition_id);
    if (l->timestamps && rw->new_tt)
        msg_out_times(&front, l->timestamps, rw->new_tt, head->num_rows);
    n = append_runs(&front, runs_init(data, len, l, rw), src, out);
    pb_out_release(&front);
    return n;
}

/* An element without anything by reference. Frees front. */
static size_t append_front(struct pb_out *front, struct evbuffer *out)
{
    struct evbuffer *e = msg_element_open(front, 0);

    pb_out_release(front);
    return e ? msg_element_close(e, true, out) : 0;
}

size_t msg_append_tick(uint64_t tt, struct evbuffer *out)
{
    struct pb_out front = {0};

    out_new_base(&front, MSG_TIME_TICK, 0, tt, -1);
    return append_front(&front, out);
}

size_t msg_append_drop_collection(const struct msg_rewrite *rw, uint64_t tt, struct evbuffer *out)
{
    struct pb_out front = {0};

    out_new_base(&front, MSG_DROP_COLLECTION, rw->new_msg_id, tt, -1);
    out_target(&front, msg_layout_of(MSG_DROP_COLLECTION), rw, 0);
    return append_front(&front, out);
}

size_t msg_append_drop_partition(const struct msg_rewrite *rw, const char *partition_name,
                                 uint64_t tt, struct evbuffer *out)
{
    const struct msg_layout *l = msg_layout_of(MSG_DROP_PARTITION);
    struct pb_out front = {0};

    out_new_base(&front, MSG_DROP_PARTITION, rw->new_msg_id, tt, -1);
    out_target(&front, l, rw, rw->partition_id);
    pb_out_str(&front, l->partition_name, partition_name);
    return append_front(&front, out);
}

/* ---- the delete half of a repair ----------------------------------------------------------- */

/* The FieldData of a column. */
static int find_column(const uint8_t *data, size_t len, int64_t field_id, struct pb_field *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f, id;
    int found = 0;

    while (pb_scan_next(&s, &f) > 0) {
        if (f.num != INSERT_F_FIELDS_DATA)
            continue;
        id.varint = 0;
        if (f.wire != PB_LEN || msg_find_only(f.data, f.len, FIELD_F_ID, PB_VARINT, &id) < 0)
            return -1;
        if ((int64_t)id.varint != field_id)
            continue;
        if (found)
            return -1;
        *ret = f;
        found = 1;
    }
    return found;
}

/* Elements of a LongArray or StringArray; UINT64_MAX: malformed. */
static uint64_t count_elements(const struct pb_field *array, bool is_string)
{
    struct pb_scan s = pb_scan_init(array->data, array->len);
    struct pb_field f;
    uint64_t n = 0, v;
    int rc;

    while ((rc = pb_scan_next(&s, &f)) > 0) {
        if (f.num != ARRAY_F_DATA || f.wire != (is_string ? PB_LEN : f.wire))
            return UINT64_MAX;
        if (is_string || f.wire == PB_VARINT) {
            n++;
            continue;
        }
        if (f.wire != PB_LEN)
            return UINT64_MAX;
        for (const uint8_t *p = f.data, *end = p + f.len; p < end; n++)
            if (!pb_varint(&p, end, &v))
                return UINT64_MAX;
    }
    return rc < 0 ? UINT64_MAX : n;
}

/* The array of the primary keys, one per row. */
static int find_keys(const struct msg_head *head, const uint8_t *data, size_t len, int64_t field_id,
                     bool is_string, struct pb_field *ret_array, struct err *err)
{
    struct pb_field column, scalars, array;

    if (find_column(data, len, field_id, &column) <= 0 ||
        msg_find_only(column.data, column.len, FIELD_F_SCALARS, PB_LEN, &scalars) <= 0 ||
        msg_find_only(scalars.data, scalars.len, is_string ? SCALAR_F_STRING : SCALAR_F_LONG, PB_LEN,
                  &array) <= 0)
        return err_set(err, ERR_PROTO, ERRC_DATA,
                       "Insert message %lld of collection %lld: no column of %s for the primary key"
                       " (field id %lld)",
                       (long long)head->msg_id, (long long)head->collection_id,
                       is_string ? "texts" : "integers", (long long)field_id);
    if (count_elements(&array, is_string) != head->num_rows)
        return err_set(err, ERR_PROTO, ERRC_DATA,
                       "Insert message %lld of collection %lld: %llu rows, but another number of"
                       " primary keys",
                       (long long)head->msg_id, (long long)head->collection_id,
                       (unsigned long long)head->num_rows);
    *ret_array = array;
    return 0;
}

/* base.sourceID of a scanned message. */
static int64_t source_id_of(const uint8_t *data, size_t len)
{
    struct pb_field base, f;
    struct pb_scan s;
    int64_t id = 0;

    if (msg_find_base(data, len, &base, NULL))
        assert(!"head is not of this message");
    s = pb_scan_init(base.data, base.len);
    while (pb_scan_next(&s, &f) > 0)
        if (f.num == BASE_F_SOURCE_ID)
            id = (int64_t)f.varint;
    return id;
}

/* All of the Delete but the keys themselves. */
static void out_delete(struct pb_out *o, const struct msg_head *head, int64_t source_id,
                       const struct msg_rewrite *rw, size_t keys_len, uint32_t keys_num)
{
    const struct msg_layout *l = msg_layout_of(MSG_DELETE);

    out_new_base(o, MSG_DELETE, rw->new_msg_id, rw->new_tt, source_id);
    out_target(o, l, rw, rw->partition_id);
    pb_out_bytes(o, l->partition_name, head->partition_name, head->partition_name_len);
    msg_out_times(o, l->timestamps, rw->new_tt, head->num_rows);
    pb_out_u64(o, l->num_rows, head->num_rows);
    /* IDs{int_id | str_id}: its inner tag takes one byte */
    pb_out_tag(o, DELETE_F_PRIMARY_KEYS, PB_LEN);
    pb_out_varint(o, 1 + pb_varint_len(keys_len) + keys_len);
    pb_out_tag(o, keys_num, PB_LEN);
    pb_out_varint(o, keys_len);
}

int msg_append_delete_of_insert(const struct msg_head *head, struct buf *src, const uint8_t *data,
                                size_t len, int64_t pk_field_id, bool pk_is_string,
                                const struct msg_rewrite *rw, struct evbuffer *out,
                                size_t *ret_bytes, struct err *err)
{
    struct pb_out front = {0};
    struct pb_field keys = {0};
    struct evbuffer *e;
    size_t n = 0;
    int rc;

    assert(head->type == MSG_INSERT && rw->new_tt);
    rc = find_keys(head, data, len, pk_field_id, pk_is_string, &keys, err);
    if (rc)
        return rc;
    out_delete(&front, head, source_id_of(data, len), rw, keys.len,
               pk_is_string ? IDS_F_STR : IDS_F_INT);
    e = msg_element_open(&front, keys.len);
    if (e)
        n = msg_element_close(e, buf_add_to_evbuffer(src, keys.data, keys.len, e) == 0, out);
    pb_out_release(&front);
    if (n == 0)
        return err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for a Delete of %zu bytes", keys.len);
    *ret_bytes = n;
    return 0;
}
