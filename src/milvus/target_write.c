/*
 * target_write.c - rows of a plain target: Insert, Upsert, Delete (milvus.proto, target.md 6.2).
 *
 * The columns go from the caller's buffer to the socket; of the answer only its counts are read.
 */
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <event2/buffer.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The same numbers in InsertRequest, UpsertRequest and DeleteRequest, as far as they have them. */
enum { REQ_DB_NAME = 2, REQ_COLLECTION = 3, REQ_PARTITION = 4, REQ_EXPR = 5, REQ_NUM_ROWS = 7 };
enum { RESULT_ERR_INDEX = 4, RESULT_INSERT_CNT = 6, RESULT_UPSERT_CNT = 8 }; /* MutationResult */

static const char *const methods[] = {[SINK_INSERT] = "Insert", [SINK_UPSERT] = "Upsert", [SINK_DELETE] = "Delete"};

struct write_call {
    struct sink_call call;
    sink_batch_fn done;
    void *arg;
    enum sink_write_kind kind;
    uint64_t rows;
};

static struct write_call *write_of(struct sink_call *c)
{
    return container_of(c, struct write_call, call);
}

static void write_release(struct sink_call *c)
{
    free(write_of(c));
}

static void write_done(struct write_call *w, const struct err *err, bool doubt)
{
    call_end(&w->call);
    w->done(w->arg, err, doubt, "");
}

static void write_fail(struct sink_call *c, const struct err *err)
{
    write_done(write_of(c), err, false);
}

/* ---- answers ---------------------------------------------------------------------------------- */

struct counts {
    uint64_t inserted, upserted;
    bool row_errors;
};

/* False: not a MutationResult. */
static bool scan_counts(const struct grpc_result *r, struct counts *ret)
{
    struct pb_scan s = pb_scan_init(r->body, r->body_len);
    struct pb_field f;
    int n;

    *ret = (struct counts){0};
    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num == RESULT_INSERT_CNT && f.wire == PB_VARINT)
            ret->inserted = f.varint;
        else if (f.num == RESULT_UPSERT_CNT && f.wire == PB_VARINT)
            ret->upserted = f.varint;
        else if (f.num == RESULT_ERR_INDEX)
            ret->row_errors = true;
    }
    return n == 0;
}

/* A Delete's count says nothing: it is that of the keys asked for. */
static int check_counts(const struct write_call *w, const struct grpc_result *r, struct err *err)
{
    char context[CONTEXT_MAX];
    struct counts n;
    uint64_t count;

    call_context(&w->call, context, sizeof(context));
    if (!scan_counts(r, &n))
        return err_set(err, ERR_PROTO, ERRC_RETRY, "%s: the answer (%zu bytes) cannot be parsed", context, r->body_len);
    count = w->kind == SINK_INSERT ? n.inserted : n.upserted;
    if (!n.row_errors && (w->kind == SINK_DELETE || count == w->rows))
        return 0;
    return err_set(err, ERR_PROTO, ERRC_DATA, "%s: of %" PRIu64 " rows the target took %" PRIu64 "%s", context, w->rows,
                   count, n.row_errors ? " and reports rows with errors" : "");
}

/*
 * What is checked before the first row is written: the interceptors (login, limits, quotas), and the tasks' checks of
 * names and columns (milvus internal/proxy: rate_limit_interceptor.go, task_insert.go, task_delete.go, task_upsert.go).
 */
static bool write_refused(const struct answer *a)
{
    switch (a->milvus_code) {
    case 3:
    case 7:
    case 8:
    case 9:
    case MERR_COLLECTION_NOT_FOUND:
    case MERR_PARTITION_NOT_FOUND:
    case MERR_DATABASE_NOT_FOUND:
    case 1101:
    case 1102:
        return true;
    }
    return target_replicate_refused(a);
}

static void on_written(struct sink_call *c, const struct answer *a)
{
    struct write_call *w = write_of(c);
    struct answer ans = *a;

    if (ans.ok && check_counts(w, a->raw, &ans.err)) {
        write_done(w, &ans.err, true);
        return;
    }
    /* what it is about was made or dropped just now: the caller looks at the metadata again */
    if (!ans.ok && ans.err.code == ERR_NOT_FOUND)
        ans.err.cls = ERRC_RETRY;
    write_done(w, ans.ok ? NULL : &ans.err, !ans.ok && !write_refused(&ans));
}

/* ---- requests --------------------------------------------------------------------------------- */

static struct evbuffer *write_head(const struct sink_write *w)
{
    struct evbuffer *body = evbuffer_new();
    struct pb_out out = {0};

    pb_out_str(&out, REQ_DB_NAME, w->db);
    pb_out_str(&out, REQ_COLLECTION, w->collection);
    pb_out_str(&out, REQ_PARTITION, w->partition);
    if (w->kind == SINK_DELETE) {
        pb_out_tag(&out, REQ_EXPR, PB_LEN);
        pb_out_varint(&out, evbuffer_get_length(w->body));
    } else {
        pb_out_u64(&out, REQ_NUM_ROWS, w->rows);
    }
    if (!body || evbuffer_add(body, out.data, out.len))
        abort();
    pb_out_release(&out);
    return body;
}

/*
 * An Upsert of Milvus Lite keeps what the former row had and the new one does not name (keys of the dynamic field); its
 * Insert puts the new row in the place of the former.
 */
static enum sink_write_kind kind_for(const struct target *t, enum sink_write_kind kind)
{
    return t->lite && kind == SINK_UPSERT ? SINK_INSERT : kind;
}

static char *write_object(const struct sink_write *w)
{
    bool part = w->partition && *w->partition;

    return xasprintf("%s.%s%s%s", w->db, w->collection, part ? " partition " : "", part ? w->partition : "");
}

struct sink_call *target_write(struct sink *s, const struct sink_write *what, sink_batch_fn done, void *arg)
{
    struct target *t = container_of(s, struct target, sink);
    struct write_call *w = xcalloc(1, sizeof(*w));
    unsigned deadline_ms = target_data_deadline_ms(evbuffer_get_length(what->body));
    struct evbuffer *body = write_head(what);
    enum sink_write_kind kind = kind_for(t, what->kind);

    call_init(&w->call, t, write_object(what), write_release, write_fail);
    w->done = done;
    w->arg = arg;
    w->kind = kind;
    w->rows = what->rows;
    if (evbuffer_add_buffer(body, what->body)) {
        err_set(&w->call.late, ERR_INTERNAL, ERRC_RETRY, "target %s: the request's buffer is frozen", t->address);
        call_fail_later(&w->call);
    } else {
        call_rpc(&w->call, methods[kind], ANSWER_FIELD_1, what->db, body, deadline_ms, on_written);
    }
    evbuffer_free(body);
    return &w->call;
}
