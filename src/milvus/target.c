/* target.c - the sink: life, databases, drops; and the data of a standby. */
#include "milvus/target.h"

#include "base/log.h"
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DATA_BASE_MS = 30000, DATA_MS_PER_MB = 1000 };

/* ---- life ------------------------------------------------------------------------------------- */

static struct target *target_of(struct sink *s)
{
    return container_of(s, struct target, sink);
}

static void sink_cancel(struct sink_call *call)
{
    if (call)
        call_end(call);
}

static uint64_t sink_generation(struct sink *s)
{
    return grpc_client_generation(target_of(s)->grpc);
}

#define COMMON_OPS                                                                                                     \
    .ensure_collection = target_ensure_collection, .ensure_database = target_ensure_database,                          \
    .drop_collection = target_drop_collection, .drop_partition = target_drop_partition,                                \
    .apply_operation = target_apply_operation, .cancel = sink_cancel, .generation = sink_generation,                   \
    .describe_meta = target_describe_meta, .change_meta = target_change_meta, .rename = target_rename

static const struct sink_ops ops[] = {
    [TARGET_STANDBY] = {COMMON_OPS, .replicate = target_replicate},
    [TARGET_PLAIN] = {COMMON_OPS, .check_collection = target_check_collection, .write = target_write},
};

struct sink *target_open(struct loop *l, const struct target_options *o, struct err *err)
{
    struct target *t;
    struct grpc_client *grpc;
    char *address;

    grpc = target_connect(l, o, &address, err);
    if (!grpc)
        return NULL;
    t = xcalloc(1, sizeof(*t));
    t->sink.ops = &ops[o->mode];
    t->mode = o->mode;
    t->loop = l;
    t->grpc = grpc;
    t->address = address;
    t->ignore_partition = o->ignore_partition;
    t->leave_out = o->leave_out;
    LIST_INIT(&t->calls);
    target_turns_init(t);
    return &t->sink;
}

static void target_free(void *arg)
{
    struct target *t = arg;

    free(t->address);
    free(t->version);
    free(t);
}

void target_close(struct sink *s)
{
    struct target *t;

    if (!s)
        return;
    t = target_of(s);
    t->closing = true;
    while (!LIST_EMPTY(&t->calls))
        call_end(LIST_FIRST(&t->calls));
    timer_release(&t->turn_timer);
    grpc_client_close(t->grpc);
    t->grpc = NULL;
    loop_defer(t->loop, target_free, t); /* after its calls */
}

void target_cut(struct sink *s)
{
    grpc_client_cut(target_of(s)->grpc, "this daemon's lease on the target has run out");
}

const char *target_trouble(struct sink *s)
{
    return grpc_client_trouble(target_of(s)->grpc);
}

/* ---- databases -------------------------------------------------------------------------------- */

static void on_database_created(struct sink_call *c, const struct answer *a)
{
    struct answer ok = {.ok = true, .raw = a->raw};
    bool exists = a->milvus_code && strstr(a->err.text, "already exist");

    if (a->ok)
        log_info("target", "database created", KS("target", c->target->address), KS("db", c->db));
    c->db_done(c, exists ? &ok : a);
}

static void database_create(struct sink_call *c)
{
    Pb__CreateDatabaseRequest req = PB__CREATE_DATABASE_REQUEST__INIT;
    struct replicate_base base;

    req.msg_base = replicate_base_init(&base, c->target, c->db_tt);
    req.db_name = pb_str(c->db);
    call_send(c, "CreateDatabase", ANSWER_STATUS, NULL, &req.base, on_database_created);
}

static void on_databases(struct sink_call *c, const struct answer *a)
{
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    Pb__ListDatabasesResponse *m = NULL;
    bool found = false;

    if (ans.ok)
        m = answer_unpack(&ans, &pb__list_databases_response__descriptor,
                          call_context(c, context, sizeof(context)));
    if (!m) {
        c->db_done(c, &ans);
        return;
    }
    for (size_t i = 0; i < m->n_db_names && !found; i++)
        found = strcmp(m->db_names[i], c->db) == 0;
    pb__list_databases_response__free_unpacked(m, NULL);
    if (found)
        c->db_done(c, &ans);
    else
        database_create(c);
}

void database_ensure(struct sink_call *c, const char *db, uint64_t tt, answer_fn done)
{
    Pb__ListDatabasesRequest req = PB__LIST_DATABASES_REQUEST__INIT;

    c->db = db;
    c->db_tt = tt;
    c->db_done = done;
    call_send(c, "ListDatabases", ANSWER_FIELD_1, NULL, &req.base, on_databases);
}

static void on_done(struct sink_call *c, const struct answer *a)
{
    plain_call_done(c, a->ok ? NULL : &a->err);
}

static void on_nothing_to_do(struct sink_call *c)
{
    plain_call_done(c, NULL);
}

struct sink_call *target_ensure_database(struct sink *s, const char *db, uint64_t tt, sink_done_fn done, void *arg)
{
    struct plain_call *p = plain_call_new(target_of(s), xstrdup(db), done, arg);

    if (strcmp(db, "default") == 0) /* always there; servers before 2.2.9 know no databases */
        call_after(&p->call, 0, on_nothing_to_do);
    else
        database_ensure(&p->call, p->call.object, tt, on_done);
    return &p->call;
}

/* ---- drops ------------------------------------------------------------------------------------ */

static void on_dropped(struct sink_call *c, const struct answer *a)
{
    bool absent = a->milvus_code && a->err.code == ERR_NOT_FOUND;

    plain_call_done(c, a->ok || absent ? NULL : &a->err);
}

struct sink_call *target_drop_collection(struct sink *s, const char *db, const char *name, uint64_t tt,
                                         sink_done_fn done, void *arg)
{
    struct plain_call *p = plain_call_new(target_of(s), xasprintf("%s.%s", db, name), done, arg);
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;
    struct replicate_base base;

    req.msg_base = replicate_base_init(&base, p->call.target, tt);
    req.db_name = pb_str(db);
    req.collection_name = pb_str(name);
    call_send(&p->call, "DropCollection", ANSWER_STATUS, db, &req.base, on_dropped);
    return &p->call;
}

/*
 * A partition is dropped; when the target has it loaded, it is released first. The source refuses that drop too, so a user
 * released, dropped and loaded again; release and load come over another channel, and the load may be here already.
 * Milvus Lite cannot release one partition: there the collection is released, and loaded again.
 */
struct drop_part {
    struct sink_call call;
    sink_done_fn done;
    void *arg;
    char *db, *collection, *partition;
    uint64_t tt;
    bool released, reload; /* reload: the whole collection was released */
};

static struct drop_part *drop_part_of(struct sink_call *c)
{
    return container_of(c, struct drop_part, call);
}

static void drop_part_release(struct sink_call *c)
{
    struct drop_part *d = drop_part_of(c);

    free(d->db);
    free(d->collection);
    free(d->partition);
    free(d);
}

static void drop_part_done(struct sink_call *c, const struct err *err)
{
    struct drop_part *d = drop_part_of(c);
    sink_done_fn done = d->done;
    void *arg = d->arg;

    call_end(c);
    done(arg, err);
}

/* ReleasePartitions has a list where DropPartition has one name: with one entry both are the same bytes. */
static void drop_part_send(struct drop_part *d, const char *method, answer_fn fn)
{
    Pb__PartitionRequest req = PB__PARTITION_REQUEST__INIT;
    struct replicate_base base;

    req.msg_base = replicate_base_init(&base, d->call.target, d->tt);
    req.db_name = d->db;
    req.collection_name = d->collection;
    req.partition_name = d->partition;
    call_send(&d->call, method, ANSWER_STATUS, d->db, &req.base, fn);
}

/* Release or load of the whole collection. */
static void drop_part_send_collection(struct drop_part *d, const char *method, answer_fn fn)
{
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;

    req.db_name = d->db;
    req.collection_name = d->collection;
    call_send(&d->call, method, ANSWER_STATUS, d->db, &req.base, fn);
}

static void on_part_dropped(struct sink_call *c, const struct answer *a);

static void on_part_released(struct sink_call *c, const struct answer *a)
{
    struct drop_part *d = drop_part_of(c);

    if (a->ok) {
        drop_part_send(d, "DropPartition", on_part_dropped);
    } else if (a->err.code == ERR_UNSUPPORTED && c->target->mode == TARGET_PLAIN && !d->reload) {
        d->reload = true;
        drop_part_send_collection(d, "ReleaseCollection", on_part_released);
    } else {
        drop_part_done(c, &a->err);
    }
}

/* The partition is gone in any case. */
static void on_reloaded(struct sink_call *c, const struct answer *a)
{
    if (!a->ok)
        log_warn("target", "a collection was released to drop a partition and could not be loaded again",
                 KS("target", c->target->address), KS("partition", c->object), KS("error", a->err.text));
    drop_part_done(c, NULL);
}

static void on_part_dropped(struct sink_call *c, const struct answer *a)
{
    struct drop_part *d = drop_part_of(c);
    bool absent = a->milvus_code && a->err.code == ERR_NOT_FOUND;

    if (!a->ok && !d->released && a->milvus_code && strstr(a->err.text, "loaded")) {
        d->released = true;
        drop_part_send(d, "ReleasePartitions", on_part_released);
        return;
    }
    if (d->reload && (a->ok || absent))
        drop_part_send_collection(d, "LoadCollection", on_reloaded);
    else
        drop_part_done(c, a->ok || absent ? NULL : &a->err);
}

static void drop_part_skip(struct sink_call *c)
{
    drop_part_done(c, NULL);
}

struct sink_call *target_drop_partition(struct sink *s, const char *db, const char *collection,
                                        const char *partition, uint64_t tt, sink_done_fn done, void *arg)
{
    struct target *t = target_of(s);
    struct drop_part *d = xcalloc(1, sizeof(*d));

    d->done = done;
    d->arg = arg;
    d->db = xstrdup(db);
    d->collection = xstrdup(collection);
    d->partition = xstrdup(partition);
    d->tt = tt;
    call_init(&d->call, t, xasprintf("%s.%s partition %s", db, collection, partition), drop_part_release, drop_part_done);
    if (t->ignore_partition)
        call_after(&d->call, 0, drop_part_skip);
    else
        drop_part_send(d, "DropPartition", on_part_dropped);
    return &d->call;
}

/* ---- data ------------------------------------------------------------------------------------- */

struct replicate_call {
    struct sink_call call;
    sink_batch_fn done;
    void *arg;
};

static void replicate_release(struct sink_call *c)
{
    free(container_of(c, struct replicate_call, call));
}

static void replicate_fail(struct sink_call *c, const struct err *err)
{
    struct replicate_call *r = container_of(c, struct replicate_call, call);

    call_end(c);
    r->done(r->arg, err, false, "");
}

bool target_replicate_refused(const struct answer *a)
{
    /* What is checked before the first message is produced: milvus internal/proxy/impl.go ReplicateMessage,
     * and the interceptors before it. A request over the size limit does not reach them. */
    switch (a->milvus_code) {
    case MERR_NOT_READY:
    case MERR_UNIMPLEMENTED:
    case MERR_PARAMETER_INVALID:
    case MERR_UNAUTHENTICATED:
    case MERR_PRIVILEGE:
    case MERR_DENY_REPLICATE:
        return true;
    case 0:
        break;
    default:
        return false;
    }
    if (!a->raw->maybe_sent)
        return true;
    return a->raw->status == 16 || a->raw->status == 12 ||
           (a->raw->status == 8 && strstr(a->raw->message, "larger than max"));
}

static void on_replicated(struct sink_call *c, const struct answer *a)
{
    struct replicate_call *r = container_of(c, struct replicate_call, call);
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    Pb__ReplicateMessageResponse *m = NULL;

    if (ans.ok)
        m = answer_unpack(&ans, &pb__replicate_message_response__descriptor,
                          call_context(c, context, sizeof(context)));
    /* what it is about was made or dropped just now: the caller looks at the metadata again */
    if (!ans.ok && ans.err.code == ERR_NOT_FOUND)
        ans.err.cls = ERRC_RETRY;
    call_end(c);
    if (m)
        r->done(r->arg, NULL, false, m->position);
    else
        r->done(r->arg, &ans.err, !target_replicate_refused(&ans), "");
    if (m)
        pb__replicate_message_response__free_unpacked(m, NULL);
}

/* ReplicateMessageRequest up to its Msgs (milvus.proto). */
static struct evbuffer *replicate_head(const char *pchannel, uint64_t begin_tt, uint64_t end_tt)
{
    enum { BASE = 1, CHANNEL_NAME = 2, BEGIN_TS = 3, END_TS = 4 };
    static const uint8_t base[] = {0x3a, 2, 0x08, 1}; /* replicateInfo 7 {isReplicate 1: true} */
    struct evbuffer *body = evbuffer_new();
    struct pb_out out = {0};

    pb_out_bytes(&out, BASE, base, sizeof(base));
    pb_out_str(&out, CHANNEL_NAME, pchannel);
    pb_out_u64(&out, BEGIN_TS, begin_tt);
    pb_out_u64(&out, END_TS, end_tt);
    if (!body || evbuffer_add(body, out.data, out.len))
        abort();
    pb_out_release(&out);
    return body;
}

unsigned target_data_deadline_ms(size_t bytes)
{
    size_t mb = bytes >> 20;

    return DATA_BASE_MS + DATA_MS_PER_MB * (unsigned)(mb < 1024 ? mb : 1024);
}

struct sink_call *target_replicate(struct sink *s, const char *pchannel, uint64_t begin_tt, uint64_t end_tt,
                                   struct evbuffer *msgs, sink_batch_fn done, void *arg)
{
    struct replicate_call *r = xcalloc(1, sizeof(*r));
    unsigned deadline_ms = target_data_deadline_ms(evbuffer_get_length(msgs));
    struct evbuffer *body = replicate_head(pchannel, begin_tt, end_tt);

    call_init(&r->call, target_of(s), xstrdup(pchannel), replicate_release, replicate_fail);
    r->done = done;
    r->arg = arg;
    if (evbuffer_add_buffer(body, msgs)) {
        err_set(&r->call.late, ERR_INTERNAL, ERRC_RETRY, "target %s: the request's buffer is frozen",
                r->call.target->address);
        call_fail_later(&r->call);
    } else {
        call_rpc(&r->call, "ReplicateMessage", ANSWER_FIELD_1, NULL, body, deadline_ms, on_replicated);
    }
    evbuffer_free(body);
    return &r->call;
}
