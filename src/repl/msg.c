#include "repl/msg.h"

#include "base/err.h"
#include "base/pbwire.h"
#include "repl/msg_priv.h"

#include <event2/buffer.h>
#include <string.h>

/* ---- types --------------------------------------------------------------------------------- */

/* milvus.proto.msg, see shared/reference/source.md 5 */
const struct msg_layout *msg_layout_of(int type)
{
    static const struct msg_layout none;
    static const struct msg_layout insert = {2, 3, 4, 5, 7, 8, 10, 14};
    static const struct msg_layout delete = {2, 3, 4, 5, 7, 8, 10, 11};
    static const struct msg_layout create_collection = {0, 2, 3, 4, 6, 7, 0, 0};
    static const struct msg_layout drop_collection = {0, 2, 3, 0, 5, 0, 0, 0};
    static const struct msg_layout partition = {0, 2, 3, 4, 6, 7, 0, 0};
    static const struct msg_layout import = {0, 2, 3, 0, 4, 0, 0, 0};
    static const struct msg_layout replicate = {0, 4, 5, 0, 0, 0, 0, 0};

    switch (type) {
    case MSG_INSERT:
        return &insert;
    case MSG_DELETE:
        return &delete;
    case MSG_CREATE_COLLECTION:
        return &create_collection;
    case MSG_DROP_COLLECTION:
        return &drop_collection;
    case MSG_CREATE_PARTITION:
    case MSG_DROP_PARTITION:
        return &partition;
    case MSG_IMPORT:
        return &import;
    case MSG_REPLICATE:
        return &replicate;
    }
    return &none;
}

const char *msg_type_name(int type)
{
    static const struct {
        int type;
        const char *name;
    } names[] = {
        {MSG_CREATE_COLLECTION, "CreateCollection"},
        {MSG_DROP_COLLECTION, "DropCollection"},
        {MSG_LOAD_COLLECTION, "LoadCollection"},
        {MSG_RELEASE_COLLECTION, "ReleaseCollection"},
        {108, "CreateAlias"},
        {109, "DropAlias"},
        {110, "AlterAlias"},
        {MSG_CREATE_PARTITION, "CreatePartition"},
        {MSG_DROP_PARTITION, "DropPartition"},
        {MSG_LOAD_PARTITIONS, "LoadPartitions"},
        {MSG_RELEASE_PARTITIONS, "ReleasePartitions"},
        {MSG_CREATE_INDEX, "CreateIndex"},
        {MSG_DROP_INDEX, "DropIndex"},
        {MSG_ALTER_INDEX, "AlterIndex"},
        {MSG_INSERT, "Insert"},
        {MSG_DELETE, "Delete"},
        {MSG_FLUSH, "Flush"},
        {MSG_IMPORT, "Import"},
        {MSG_TIME_TICK, "TimeTick"},
        {MSG_REPLICATE, "Replicate"},
        {1500, "CreateCredential"},
        {1502, "DeleteCredential"},
        {1503, "UpdateCredential"},
        {1600, "CreateRole"},
        {1601, "DropRole"},
        {1602, "OperateUserRole"},
        {1606, "OperatePrivilege"},
        {1610, "CreatePrivilegeGroup"},
        {1611, "DropPrivilegeGroup"},
        {1613, "OperatePrivilegeGroup"},
        {1614, "OperatePrivilegeV2"},
        {MSG_CREATE_DATABASE, "CreateDatabase"},
        {MSG_DROP_DATABASE, "DropDatabase"},
        {MSG_ALTER_DATABASE, "AlterDatabase"},
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (names[i].type == type)
            return names[i].name;
    return "Unknown";
}

/* ---- scanning ------------------------------------------------------------------------------ */

/* One scan under way. */
struct scan {
    struct msg_head head;
    uint64_t n_times;
};

static int bad_field(const struct msg_head *h, uint32_t num, struct err *err)
{
    return err_set(err, ERR_PROTO, ERRC_DATA,
                   "%s message (type %d): field %u is malformed or of a wrong wire type",
                   msg_type_name(h->type), h->type, (unsigned)num);
}

static int bad_bytes(const uint8_t *data, size_t len, const uint8_t *at, struct err *err)
{
    return err_set(err, ERR_PROTO, ERRC_DATA,
                   "not a Milvus message: no protobuf at byte %zu of %zu (cut off or foreign data)",
                   (size_t)(at - data), len);
}

int msg_find_base(const uint8_t *data, size_t len, struct pb_field *ret_base, struct err *err)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f, base = {0};
    int n;

    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != MSG_F_BASE)
            continue;
        if (f.wire != PB_LEN)
            return err_set(err, ERR_PROTO, ERRC_DATA,
                           "not a Milvus message: field 1 is not a MsgBase");
        /* protobuf would merge two; no writer makes them, and a rewrite would have to merge too */
        if (base.start)
            return err_set(err, ERR_PROTO, ERRC_DATA, "not a Milvus message: two MsgBase");
        base = f;
    }
    if (n < 0)
        return bad_bytes(data, len, s.p, err);
    if (!base.start)
        return err_set(err, ERR_PROTO, ERRC_DATA, "not a Milvus message: %zu bytes, no MsgBase",
                       len);
    *ret_base = base;
    return 0;
}

int msg_find_only(const uint8_t *data, size_t len, uint32_t num, enum pb_wire wire, struct pb_field *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    int n, found = 0;

    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != num)
            continue;
        if (found || f.wire != wire)
            return -1;
        *ret = f;
        found = 1;
    }
    return n < 0 ? -1 : found;
}

static int scan_base(const struct pb_field *base, struct msg_head *h, struct err *err)
{
    struct pb_scan s = pb_scan_init(base->data, base->len);
    struct pb_field f;
    uint64_t type = 0;
    int n;

    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num > BASE_F_SOURCE_ID)
            continue;
        if (f.wire != PB_VARINT)
            return err_set(err, ERR_PROTO, ERRC_DATA, "MsgBase: field %u has a wrong wire type",
                           (unsigned)f.num);
        if (f.num == BASE_F_TYPE)
            type = f.varint;
        else if (f.num == BASE_F_MSG_ID)
            h->msg_id = (int64_t)f.varint;
        else if (f.num == BASE_F_TIMESTAMP)
            h->base_tt = f.varint;
    }
    if (n < 0)
        return bad_bytes(base->data, base->len, s.p, err);
    if (type == 0 || type > INT32_MAX)
        return err_set(err, ERR_PROTO, ERRC_DATA, "MsgBase: message type %llu",
                       (unsigned long long)type);
    h->type = (int)type;
    return 0;
}

static void add_time(struct scan *sc, uint64_t tt)
{
    if (tt < sc->head.min_tt)
        sc->head.min_tt = tt;
    if (tt > sc->head.max_tt)
        sc->head.max_tt = tt;
    sc->n_times++;
}

/* Rows of one Insert mostly have one time: then its encoding is there again and again. */
static bool scan_packed_times(struct scan *sc, const uint8_t *p, const uint8_t *end)
{
    const uint8_t *first = p;
    size_t each = 0, rest;
    uint64_t tt;

    while (p < end) {
        if (!pb_varint(&p, end, &tt))
            return false;
        add_time(sc, tt);
        rest = (size_t)(end - p);
        if (each == 0) {
            each = (size_t)(p - first);
            if (rest % each == 0 && memcmp(first, p, rest) == 0) {
                sc->n_times += rest / each;
                return true;
            }
        }
    }
    return true;
}

/* Row timestamps: packed, in several chunks, or one by one. */
static bool scan_times(struct scan *sc, const struct pb_field *f)
{
    if (f->wire == PB_VARINT) {
        add_time(sc, f->varint);
        return true;
    }
    return f->wire == PB_LEN && scan_packed_times(sc, f->data, f->data + f->len);
}

static bool take_text(const struct pb_field *f, const uint8_t **ret, size_t *ret_len)
{
    if (f->wire != PB_LEN)
        return false;
    *ret = f->len ? f->data : NULL;
    *ret_len = f->len;
    return true;
}

static bool take_id(const struct pb_field *f, int64_t *ret)
{
    *ret = (int64_t)f->varint;
    return f->wire == PB_VARINT;
}

/* False: a wrong wire type. */
static bool scan_field(struct scan *sc, const struct msg_layout *l, const struct pb_field *f)
{
    struct msg_head *h = &sc->head;

    if (f->num == l->timestamps)
        return scan_times(sc, f);
    if (f->num == l->shard_name)
        return take_text(f, &h->shard_name, &h->shard_name_len);
    if (f->num == l->db_name)
        return take_text(f, &h->db_name, &h->db_name_len);
    if (f->num == l->collection_name)
        return take_text(f, &h->collection_name, &h->collection_name_len);
    if (f->num == l->partition_name)
        return take_text(f, &h->partition_name, &h->partition_name_len);
    if (f->num == l->collection_id)
        return take_id(f, &h->collection_id);
    if (f->num == l->partition_id)
        return take_id(f, &h->partition_id);
    if (f->num == l->num_rows) {
        h->num_rows = f->varint;
        return f->wire == PB_VARINT;
    }
    return true;
}

/* A row of time 0 would look older than any position and be skipped in silence. */
static int check_rows(const struct scan *sc, struct err *err)
{
    const struct msg_head *h = &sc->head;

    if (sc->n_times > 0 && sc->n_times == h->num_rows && h->min_tt > 0)
        return 0;
    return err_set(err, ERR_PROTO, ERRC_DATA,
                   "%s message %lld of collection %lld: %llu rows, %llu row timestamps%s",
                   msg_type_name(h->type), (long long)h->msg_id, (long long)h->collection_id,
                   (unsigned long long)h->num_rows, (unsigned long long)sc->n_times,
                   sc->n_times > 0 && h->min_tt == 0 ? ", one of them 0" : "");
}

int msg_scan(const uint8_t *data, size_t len, struct msg_head *ret, struct err *err)
{
    struct scan sc = {0};
    struct pb_scan s = pb_scan_init(data, len);
    const struct msg_layout *l;
    struct pb_field f;
    int rc;

    if ((rc = msg_find_base(data, len, &f, err)) || (rc = scan_base(&f, &sc.head, err)))
        return rc;
    l = msg_layout_of(sc.head.type);
    sc.head.min_tt = l->timestamps ? UINT64_MAX : sc.head.base_tt;
    sc.head.max_tt = l->timestamps ? 0 : sc.head.base_tt;
    while (pb_scan_next(&s, &f) > 0) /* all of it was read once by msg_find_base */
        if (!scan_field(&sc, l, &f))
            return bad_field(&sc.head, f.num, err);
    if (l->timestamps && (rc = check_rows(&sc, err)))
        return rc;
    /* proto3 leaves 0 out, and no partition has id 0 */
    if (sc.head.type == MSG_DELETE && sc.head.partition_id == 0 && !sc.head.partition_name)
        sc.head.partition_id = -1;
    *ret = sc.head;
    return 0;
}

/* ---- output -------------------------------------------------------------------------------- */

enum { REQUEST_F_MSGS = 5 }; /* ReplicateMessageRequest.Msgs */

void msg_out_times(struct pb_out *o, uint32_t num, uint64_t tt, uint64_t n)
{
    pb_out_tag(o, num, PB_LEN);
    pb_out_varint(o, n * pb_varint_len(tt));
    for (uint64_t i = 0; i < n; i++)
        pb_out_varint(o, tt);
}

struct evbuffer *msg_element_open(const struct pb_out *front, size_t rest_len)
{
    struct evbuffer *e = evbuffer_new();
    struct pb_out intro = {0};
    int rc;

    if (!e)
        return NULL;
    pb_out_tag(&intro, REQUEST_F_MSGS, PB_LEN);
    pb_out_varint(&intro, front->len + rest_len);
    rc = evbuffer_add(e, intro.data, intro.len);
    if (rc == 0)
        rc = evbuffer_add(e, front->data, front->len);
    pb_out_release(&intro);
    if (rc == 0)
        return e;
    evbuffer_free(e);
    return NULL;
}

size_t msg_element_close(struct evbuffer *e, bool ok, struct evbuffer *out)
{
    size_t n = ok ? evbuffer_get_length(e) : 0;

    if (ok && evbuffer_add_buffer(out, e) < 0)
        n = 0;
    evbuffer_free(e);
    return n;
}
