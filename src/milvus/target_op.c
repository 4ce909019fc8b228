/*
 * target_op.c - operations of the replicate channel, done again on the target.
 *
 * A request is not unpacked: the names and base are written anew, every other field is copied, so that what newer
 * versions add gets through.
 */
#include "base/log.h"
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <assert.h>
#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

enum { LOAD_TRIES = 10, LOAD_RETRY_MS = 300 };

unsigned target_flush_deadline_ms = 10000;

/* milvus.proto: the same numbers in all requests that are known here. */
enum {
    REQ_BASE = 1,
    REQ_DB_NAME = 2,
    REQ_COLLECTION = 3, /* collection_names of Flush; db_id of AlterDatabase, properties of CreateDatabase */
    REQ_PARTITIONS = 4, /* of Load/ReleasePartitions */
    BASE_TIMESTAMP = 3,
    BASE_REPLICATE_INFO = 7,
    INFO_IS_REPLICATE = 1,
    INFO_MSG_TIMESTAMP = 2,
};

enum about { ABOUT_DATABASE, ABOUT_COLLECTION };

/* absent_is_done: the object need not exist for the operation's purpose to be reached. */
static const struct rule {
    int type;
    const char *method;
    enum about about;
    bool absent_is_done;
} rules[] = {
    {OP_CREATE_INDEX, "CreateIndex", ABOUT_COLLECTION, false},
    {OP_DROP_INDEX, "DropIndex", ABOUT_COLLECTION, true},
    {OP_ALTER_INDEX, "AlterIndex", ABOUT_COLLECTION, false},
    {OP_LOAD_COLLECTION, "LoadCollection", ABOUT_COLLECTION, false},
    {OP_RELEASE_COLLECTION, "ReleaseCollection", ABOUT_COLLECTION, true},
    {OP_LOAD_PARTITIONS, "LoadPartitions", ABOUT_COLLECTION, false},
    {OP_RELEASE_PARTITIONS, "ReleasePartitions", ABOUT_COLLECTION, true},
    {OP_FLUSH, "Flush", ABOUT_COLLECTION, false},
    {OP_CREATE_DATABASE, "CreateDatabase", ABOUT_DATABASE, false},
    {OP_DROP_DATABASE, "DropDatabase", ABOUT_DATABASE, true},
    {OP_ALTER_DATABASE, "AlterDatabase", ABOUT_DATABASE, true},
};

static const struct rule *find_rule(int type)
{
    for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++)
        if (rules[i].type == type)
            return &rules[i];
    return NULL;
}

static bool has_partitions(int type)
{
    return type == OP_LOAD_PARTITIONS || type == OP_RELEASE_PARTITIONS;
}

/* ---- rewriting -------------------------------------------------------------------------------- */

static bool is_replaced(const struct rule *r, uint32_t num, bool partitions)
{
    if (num == REQ_BASE || num == REQ_DB_NAME)
        return true;
    if (num == REQ_COLLECTION) /* db_id is an id of the source */
        return r->about == ABOUT_COLLECTION || r->type == OP_ALTER_DATABASE;
    return num == REQ_PARTITIONS && partitions;
}

static int base_timestamp(const struct pb_field *base, uint64_t *ret)
{
    struct pb_scan s = pb_scan_init(base->data, base->len);
    struct pb_field f;
    int n;

    if (base->wire != PB_LEN)
        return -1;
    while ((n = pb_scan_next(&s, &f)) > 0)
        if (f.num == BASE_TIMESTAMP && f.wire == PB_VARINT)
            *ret = f.varint;
    return n;
}

static void add_base(struct pb_out *out, uint64_t tt)
{
    struct pb_out info = {0}, base = {0};

    pb_out_u64(&info, INFO_IS_REPLICATE, 1);
    pb_out_u64(&info, INFO_MSG_TIMESTAMP, tt);
    pb_out_bytes(&base, BASE_REPLICATE_INFO, info.data, info.len);
    pb_out_bytes(out, REQ_BASE, base.data, base.len);
    pb_out_release(&info);
    pb_out_release(&base);
}

int target_op_rewrite(enum target_mode mode, int msg_type, const uint8_t *data, size_t len, const char *db,
                      const char *collection, char *const *partitions, size_t n_partitions, struct pb_out *out,
                      struct err *err)
{
    const struct rule *r = find_rule(msg_type);
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_out rest = {0};
    struct pb_field f;
    uint64_t tt = 0;
    int n;

    assert(r);
    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num == REQ_BASE && base_timestamp(&f, &tt) < 0)
            break;
        if (!is_replaced(r, f.num, partitions))
            pb_out_raw(&rest, f.start, f.total);
    }
    if (n != 0) {
        pb_out_release(&rest);
        return err_set(err, ERR_PROTO, ERRC_DATA, "%s: not a request (%zu bytes)", r->method, len);
    }
    if (mode == TARGET_STANDBY)
        add_base(out, tt);
    pb_out_str(out, REQ_DB_NAME, db);
    if (r->about == ABOUT_COLLECTION)
        pb_out_str(out, REQ_COLLECTION, collection);
    for (size_t i = 0; i < n_partitions; i++)
        pb_out_str(out, REQ_PARTITIONS, partitions[i]);
    pb_out_raw(out, rest.data, rest.len);
    pb_out_release(&rest);
    return 0;
}

/* ---- the call --------------------------------------------------------------------------------- */

struct op_call {
    struct sink_call call;
    sink_done_fn done;
    void *arg;
    const struct rule *rule;
    uint8_t *data; /* the source's request, for another try */
    size_t len;
    char *db, *collection;
    bool reduced;      /* only what exists on the target is asked for */
    char **partitions; /* these */
    size_t n_partitions;
    unsigned tries;
};

static struct op_call *op_of(struct sink_call *c)
{
    return container_of(c, struct op_call, call);
}

static void free_partitions(struct op_call *o)
{
    target_names_free(o->partitions, o->n_partitions);
    o->partitions = NULL;
    o->n_partitions = 0;
}

static void op_release(struct sink_call *c)
{
    struct op_call *o = op_of(c);

    free_partitions(o);
    free(o->data);
    free(o->db);
    free(o->collection);
    free(o);
}

static void op_done(struct sink_call *c, const struct err *err)
{
    struct op_call *o = op_of(c);

    call_end(c);
    o->done(o->arg, err);
}

static void op_send(struct sink_call *c);

/* ---- partitions that are not there ------------------------------------------------------------ */

static bool listed(const Pb__ShowPartitionsResponse *m, const struct pb_field *name)
{
    for (size_t i = 0; i < m->n_partition_names; i++)
        if (strlen(m->partition_names[i]) == name->len && memcmp(m->partition_names[i], name->data, name->len) == 0)
            return true;
    return false;
}

/* Of those in the request, the ones that the target has. Returns how many it has not. */
static size_t reduce_partitions(struct op_call *o, const Pb__ShowPartitionsResponse *m)
{
    struct pb_scan s = pb_scan_init(o->data, o->len);
    struct pb_field f;
    size_t missing = 0;

    free_partitions(o);
    o->partitions = xcalloc(m->n_partition_names + 1, sizeof(*o->partitions));
    o->reduced = true;
    while (pb_scan_next(&s, &f) > 0) {
        if (f.num != REQ_PARTITIONS || f.wire != PB_LEN)
            continue;
        if (listed(m, &f) && o->n_partitions < m->n_partition_names)
            o->partitions[o->n_partitions++] = xstrndup((const char *)f.data, f.len);
        else
            missing++;
    }
    return missing;
}

static void on_partitions(struct sink_call *c, const struct answer *a)
{
    struct op_call *o = op_of(c);
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    Pb__ShowPartitionsResponse *m = NULL;
    size_t missing;

    if (ans.ok)
        m = answer_unpack(&ans, &pb__show_partitions_response__descriptor,
                          call_context(c, context, sizeof(context)));
    if (!m) {
        op_done(c, &ans.err);
        return;
    }
    missing = reduce_partitions(o, m);
    pb__show_partitions_response__free_unpacked(m, NULL);
    log_warn("target", "partitions of an operation are not on the target and are left out",
             KS("target", c->target->address), KS("operation", o->rule->method), KS("collection", c->object),
             KU("missing", missing));
    if (o->n_partitions == 0)
        op_done(c, NULL);
    else
        op_send(c);
}

static void show_partitions(struct sink_call *c)
{
    struct op_call *o = op_of(c);
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;

    req.db_name = o->db;
    req.collection_name = o->collection;
    call_send(c, "ShowPartitions", ANSWER_FIELD_1, o->db, &req.base, on_partitions);
}

/* A partition to load may be made any moment, or it was dropped since. True: goes on. */
static bool without_partition(struct op_call *o)
{
    bool wait = o->rule->type == OP_LOAD_PARTITIONS && !o->call.target->ignore_partition;

    if (o->reduced)
        return false;
    if (wait && ++o->tries <= LOAD_TRIES)
        call_after(&o->call, LOAD_RETRY_MS, op_send);
    else
        show_partitions(&o->call);
    return true;
}

/* ---- answers ---------------------------------------------------------------------------------- */

static bool partition_missing(const struct answer *a)
{
    return a->milvus_code == MERR_PARTITION_NOT_FOUND ||
           (a->milvus_code && strstr(a->err.text, "partition not found"));
}

static bool is_done_already(const struct rule *r, const struct answer *a)
{
    if (!a->milvus_code || partition_missing(a))
        return false;
    if (r->type == OP_CREATE_DATABASE)
        return strstr(a->err.text, "already exist") != NULL;
    if (r->type == OP_CREATE_INDEX && a->milvus_code == MERR_LITE_INDEX_EXISTS)
        return true; /* it does not look whether it is the same one */
    return r->absent_is_done && a->err.code == ERR_NOT_FOUND;
}

/* Only the text of code 65535 tells these from passing trouble; again and again would not help. */
void target_sharpen_index(struct answer *a)
{
    static const char *const conflicts[] = {"at most one distinct index", "index already exists", "duplicate index"};

    if (a->err.cls != ERRC_RETRY || !a->milvus_code)
        return;
    for (size_t i = 0; i < sizeof(conflicts) / sizeof(*conflicts); i++)
        if (strstr(a->err.text, conflicts[i])) {
            struct err cause = a->err;

            err_set(&a->err, ERR_EXISTS, ERRC_USER, "%s. Drop the target's index of that field", cause.text);
            return;
        }
}

static void sharpen(const struct rule *r, struct answer *a)
{
    if (partition_missing(a))
        a->err.cls = ERRC_RETRY; /* dropped between our question and our request */
    if (r->type == OP_CREATE_INDEX)
        target_sharpen_index(a);
}

/* A flush makes data durable earlier, no more: whatever the target says, replication goes on. */
static bool flush_is_over(const struct op_call *o, const struct answer *a)
{
    if (o->rule->type != OP_FLUSH || (!a->milvus_code && !(a->raw->status == 4 && a->raw->maybe_sent)))
        return false;
    log_warn("target", "flush not confirmed, going on", KS("target", o->call.target->address),
             KS("collection", o->call.object), KS("error", a->err.text));
    return true;
}

/* Smaller Milvus do not offer each of these; none changes a row. */
static bool may_be_missing(const struct op_call *o, const struct answer *a)
{
    static const int types[] = {OP_LOAD_PARTITIONS, OP_RELEASE_PARTITIONS, OP_ALTER_INDEX, OP_ALTER_DATABASE, OP_FLUSH};

    if (o->call.target->mode != TARGET_PLAIN || a->err.code != ERR_UNSUPPORTED)
        return false;
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (types[i] == o->rule->type) {
            log_warn("target", "the target does not offer an operation, going on without",
                     KS("target", o->call.target->address), KS("operation", o->rule->method),
                     KS("collection", o->call.object), KS("error", a->err.text));
            return true;
        }
    return false;
}

static void on_op(struct sink_call *c, const struct answer *a)
{
    struct op_call *o = op_of(c);
    struct answer ans = *a;

    if (has_partitions(o->rule->type) && partition_missing(a) && without_partition(o))
        return;
    if (a->ok || is_done_already(o->rule, a) || flush_is_over(o, a) || may_be_missing(o, a)) {
        op_done(c, NULL);
        return;
    }
    sharpen(o->rule, &ans);
    op_done(c, &ans.err);
}

static void op_send(struct sink_call *c)
{
    struct op_call *o = op_of(c);
    bool about_db = o->rule->about == ABOUT_DATABASE, flush = o->rule->type == OP_FLUSH;
    struct evbuffer *body = evbuffer_new();
    struct pb_out out = {0};

    if (target_op_rewrite(c->target->mode, o->rule->type, o->data, o->len, o->db, o->collection, o->partitions,
                          o->n_partitions, &out, &c->late)) {
        err_wrap(&c->late, "operation of the replicate channel");
        call_fail_later(c);
    } else {
        if (!body || evbuffer_add(body, out.data, out.len))
            abort();
        call_rpc(c, o->rule->method, flush ? ANSWER_FIELD_1 : ANSWER_STATUS, about_db ? NULL : o->db, body,
                 flush ? target_flush_deadline_ms : DDL_DEADLINE_MS, on_op);
    }
    pb_out_release(&out);
    evbuffer_free(body);
}

struct sink_call *target_apply_operation(struct sink *s, int msg_type, const uint8_t *data, size_t len,
                                         const char *db, const char *collection, sink_done_fn done, void *arg)
{
    struct target *t = container_of(s, struct target, sink);
    struct op_call *o = xcalloc(1, sizeof(*o));
    bool named = collection && *collection;

    call_init(&o->call, t, xasprintf("%s%s%s", db, named ? "." : "", named ? collection : ""), op_release, op_done);
    o->done = done;
    o->arg = arg;
    o->rule = find_rule(msg_type);
    o->db = xstrdup(db);
    o->collection = xstrdup(collection ? collection : "");
    if (!o->rule) {
        err_set(&o->call.late, ERR_UNSUPPORTED, ERRC_USER, "operations of type %d are not replicated", msg_type);
        call_fail_later(&o->call);
        return &o->call;
    }
    o->data = xmalloc(len + 1);
    memcpy(o->data, data, len);
    o->len = len;
    op_send(&o->call);
    return &o->call;
}
