/*
 * rows.c - pages of a collection's rows, by Query; its properties.
 *
 * An answer is passed on as it is encoded: its columns (fields_data 2) are FieldData, as in an Insert.
 */
#include "milvus/rows.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "catalog_priv.h"
#include "milvus/target_priv.h"

/* QueryRequest (milvus.proto) */
enum {
    REQ_DB = 2,
    REQ_COLLECTION = 3,
    REQ_EXPR = 4,
    REQ_OUTPUT = 5,
    REQ_PARTITIONS = 6,
    REQ_SINCE = 8, /* guarantee_timestamp */
    REQ_PARAMS = 9,
    REQ_CONSISTENCY = 11, /* 0: Strong, which proto3 leaves out */
    CUSTOMIZED = 4,       /* guarantee_timestamp says what must be seen */
    PAIR_KEY = 1,
    PAIR_VALUE = 2,
};
enum { ALLOC_TIMESTAMP = 2 }; /* AllocTimestampResponse */
enum { NOT_LOADED = 101 }; /* Status code */
enum { TOO_LARGE = 8 };    /* gRPC status: of our limit, or of the source's */
enum { QUERY_DEADLINE_MS = 60000, LOAD_DEADLINE_MS = 600000, NOW_DEADLINE_MS = 10000 };

struct rows_port_impl {
    struct rows_port port; /* first */
    struct target target;  /* what calls need of one */
};

struct rows_call {
    struct sink_call call; /* first */
    rows_fn done;
    rows_now_fn now_done;     /* of now(); done is NULL then */
    rows_pairs_fn pairs_done; /* of properties(); the same */
    void *arg;
};

static void add_param(struct pb_out *o, const char *key, const char *value)
{
    struct pb_out pair = {0};

    pb_out_str(&pair, PAIR_KEY, key);
    pb_out_str(&pair, PAIR_VALUE, value);
    pb_out_bytes(o, REQ_PARAMS, pair.data, pair.len);
    pb_out_release(&pair);
}

static void add_query(struct pb_out *o, const struct rows_query *q)
{
    char limit[24];

    pb_out_str(o, REQ_DB, q->db);
    pb_out_str(o, REQ_COLLECTION, q->collection);
    pb_out_str(o, REQ_EXPR, q->expr);
    pb_out_str(o, REQ_OUTPUT, q->output);
    if (q->partition)
        pb_out_str(o, REQ_PARTITIONS, q->partition);
    if (q->since) {
        pb_out_u64(o, REQ_SINCE, q->since);
        pb_out_u64(o, REQ_CONSISTENCY, CUSTOMIZED);
    }
    if (!q->limit)
        return;
    snprintf(limit, sizeof(limit), "%llu", (unsigned long long)q->limit);
    add_param(o, "limit", limit);
    if (q->careful) /* a segment that has given its share ends the page, also when it has no more */
        add_param(o, "reduce_stop_for_best", "True");
}

static struct evbuffer *body_of(struct pb_out *take)
{
    struct evbuffer *body = evbuffer_new();

    if (!body || evbuffer_add(body, take->data, take->len))
        abort(); /* a small message */
    pb_out_release(take);
    return body;
}

static void release(struct sink_call *c)
{
    free((struct rows_call *)c);
}

static void fail(struct sink_call *c, const struct err *err)
{
    struct rows_call *r = (struct rows_call *)c;

    call_end(c);
    if (r->now_done)
        r->now_done(r->arg, err, 0);
    else if (r->pairs_done)
        r->pairs_done(r->arg, err, NULL, 0);
    else if (r->done)
        r->done(r->arg, err, NULL);
}

/* Of an answer that would be too large: as a gRPC status, or as the query node's words. */
static bool too_large(const struct answer *a)
{
    return a->raw->status == TOO_LARGE || strstr(a->err.text, "maxOutputSize");
}

/* What a person has to do on the source may be done any moment: so these wait. */
static void soften(struct err *err, const struct answer *a)
{
    if (a->milvus_code == NOT_LOADED) {
        err->code = ERR_STATE;
        err->cls = ERRC_RETRY;
    } else if (too_large(a)) {
        err->code = ERR_LIMIT;
        err->cls = ERRC_RETRY;
    } else if (err->code == ERR_LIMIT) { /* of the source's resources */
        err->code = ERR_UNAVAILABLE;
    }
}

static void on_answer(struct sink_call *c, const struct answer *a)
{
    struct rows_call *r = (struct rows_call *)c;
    struct rows_page page = {0};
    struct err err;

    if (!a->ok) {
        err = a->err;
        soften(&err, a);
        fail(c, &err);
        return;
    }
    page.buf = grpc_result_take(a->raw);
    page.data = page.buf->data;
    page.len = page.buf->size;
    call_end(c);
    if (r->done)
        r->done(r->arg, NULL, &page);
    buf_unref(page.buf);
}

static struct rows_call *call_new(struct rows_port *p, const char *db, const char *collection, rows_fn done, void *arg)
{
    struct rows_call *r = xcalloc(1, sizeof(*r));

    call_init(&r->call, &((struct rows_port_impl *)p)->target, xasprintf("%s.%s", db, collection), release, fail);
    r->done = done;
    r->arg = arg;
    return r;
}

static struct rows_call *query(struct rows_port *p, const struct rows_query *q, rows_fn done, void *arg)
{
    struct rows_call *r = call_new(p, q->db, q->collection, done, arg);
    struct pb_out out = {0};
    struct evbuffer *body;

    add_query(&out, q);
    body = body_of(&out);
    call_rpc(&r->call, "Query", ANSWER_FIELD_1, q->db, body, QUERY_DEADLINE_MS, on_answer);
    if (q->max_bytes)
        grpc_call_limit(r->call.rpc, q->max_bytes);
    evbuffer_free(body);
    return r;
}

static uint64_t timestamp_of(const struct grpc_result *r)
{
    struct pb_scan s = pb_scan_init(r->body, r->body_len);
    struct pb_field f;
    uint64_t tt = 0;

    while (pb_scan_next(&s, &f) > 0)
        if (f.num == ALLOC_TIMESTAMP && f.wire == PB_VARINT)
            tt = f.varint;
    return tt;
}

static void on_now(struct sink_call *c, const struct answer *a)
{
    struct rows_call *r = (struct rows_call *)c;
    uint64_t tt = a->ok ? timestamp_of(a->raw) : 0;
    struct err err = a->err;

    if (a->ok && !tt)
        err_set(&err, ERR_PROTO, ERRC_RETRY, "the source's answer to AllocTimestamp has no time");
    if (!tt) {
        fail(c, &err);
        return;
    }
    call_end(c);
    r->now_done(r->arg, NULL, tt);
}

static struct rows_call *now(struct rows_port *p, rows_now_fn done, void *arg)
{
    struct rows_call *r = call_new(p, "", "", NULL, arg);
    struct evbuffer *body = evbuffer_new();

    if (!body)
        abort();
    r->now_done = done;
    call_rpc(&r->call, "AllocTimestamp", ANSWER_FIELD_1, NULL, body, NOW_DEADLINE_MS, on_now);
    evbuffer_free(body);
    return r;
}

static void on_described(struct sink_call *c, const struct answer *a)
{
    struct rows_call *r = (struct rows_call *)c;
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    Pb__DescribeCollectionResponse *m = NULL;
    struct src_pair *pairs;
    size_t n = 0;

    if (ans.ok)
        m = answer_unpack(&ans, &pb__describe_collection_response__descriptor, call_context(c, context, sizeof(context)));
    if (!m) {
        fail(c, &ans.err);
        return;
    }
    pairs = xcalloc(m->n_properties + 1, sizeof(*pairs));
    for (size_t i = 0; i < m->n_properties; i++)
        if (!cat_replicate_property(m->properties[i]->key, strlen(m->properties[i]->key)))
            pairs[n++] = (struct src_pair){m->properties[i]->key, m->properties[i]->value};
    call_end(c);
    r->pairs_done(r->arg, NULL, pairs, n);
    free(pairs);
    pb__describe_collection_response__free_unpacked(m, NULL);
}

static struct rows_call *properties(struct rows_port *p, const char *db, const char *collection, rows_pairs_fn done,
                                    void *arg)
{
    struct rows_call *r = call_new(p, db, collection, NULL, arg);
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;

    r->pairs_done = done;
    req.db_name = pb_str(db);
    req.collection_name = pb_str(collection);
    call_send(&r->call, "DescribeCollection", ANSWER_FIELD_1, db, &req.base, on_described);
    return r;
}

static struct rows_call *load(struct rows_port *p, const char *db, const char *collection, bool on, rows_fn done, void *arg)
{
    struct rows_call *r = call_new(p, db, collection, done, arg);
    struct pb_out out = {0};
    struct evbuffer *body;

    pb_out_str(&out, REQ_DB, db);
    pb_out_str(&out, REQ_COLLECTION, collection);
    body = body_of(&out);
    call_rpc(&r->call, on ? "LoadCollection" : "ReleaseCollection", ANSWER_STATUS, db, body, LOAD_DEADLINE_MS, on_answer);
    evbuffer_free(body);
    return r;
}

static void cancel(struct rows_call *c)
{
    if (c)
        call_end(&c->call);
}

static const struct rows_ops ops = {query, load, now, properties, cancel};

struct rows_port *rows_open(struct loop *l, const struct target_options *o, struct err *err)
{
    struct rows_port_impl *p;
    char *address = NULL;
    struct grpc_client *grpc = target_connect(l, o, &address, err);

    if (!grpc)
        return NULL;
    p = xcalloc(1, sizeof(*p));
    p->port.ops = &ops;
    p->target.loop = l;
    p->target.grpc = grpc;
    p->target.address = address;
    p->target.is_source = true;
    LIST_INIT(&p->target.calls);
    return &p->port;
}

static void port_free(void *arg)
{
    struct rows_port_impl *p = arg;

    free(p->target.address);
    free(p);
}

void rows_close(struct rows_port *port)
{
    struct rows_port_impl *p = (struct rows_port_impl *)port;

    if (!p)
        return;
    while (!LIST_EMPTY(&p->target.calls))
        call_end(LIST_FIRST(&p->target.calls));
    grpc_client_close(p->target.grpc);
    loop_defer(p->target.loop, port_free, p); /* after its calls */
}
