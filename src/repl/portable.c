/*
 * portable.c - requests to an ordinary Milvus: which messages make one call, and which calls may be under way together.
 *
 * The target gives rows times of its own, in the order of its answers, so the order of the source's time is kept by the
 * order of calls: each link holds a window until the source's tick covers it (link.c), sorted by collection and time. Two
 * calls for the same collection go one after the other unless they commute: Inserts do, and Deletes.
 *
 * A message that the target may have already is sent as an Upsert of its own: that leaves one row, however often it
 * is repeated (target.md 6.3). A repeated Delete does no harm.
 */
#include "repl/priv.h"

#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

/* The cost of the target's parser grows with the keys of an expression. */
#define MAX_KEYS 8192

/* Calls of one source channel at a time. */
#define MAX_CALLS 8

static enum sink_write_kind kind_of(const struct item *it)
{
    if (it->head.type == MSG_DELETE)
        return SINK_DELETE;
    return it->repair ? SINK_UPSERT : SINK_INSERT;
}

/* "" names none: of a collection with a partition key the target finds the partition itself. */
static const char *partition_of(const struct item *it)
{
    const struct part *p;

    if (it->coll->partition_key || it->head.partition_id == -1)
        return "";
    p = coll_part(it->coll, it->head.partition_id);
    return p ? p->name : NULL;
}

/* Rows of what is dropped meanwhile are nobody's. */
static bool row_wanted(const struct item *it)
{
    return item_wanted(it) && partition_of(it);
}

static bool row_joins(const struct request *r, const struct item *it)
{
    if (!r->coll)
        return true;
    if (it->coll != r->coll || kind_of(it) != r->kind || r->kind == SINK_UPSERT || r->bytes >= r->tchan->hub->batch_bytes)
        return false;
    if (r->keys && msg_keys_count(r->keys) + it->head.num_rows > MAX_KEYS)
        return false;
    return strcmp(partition_of(it), r->partition) == 0;
}

static int row_append(struct request *r, const struct item *it, struct err *err)
{
    if (it->head.type == MSG_DELETE) {
        if (!r->keys)
            r->keys = msg_keys_new(it->coll->pk_name);
        return msg_keys_add(r->keys, &it->head, it->data, it->len, err);
    }
    if (!r->columns)
        r->columns = coll_columns(it->coll);
    return msg_columns_add(r->columns, &it->head, it->buf, it->data, it->len, err);
}

/* 0: it is in the request; -1: it is not, and begins the next one. */
static int row_add(struct request *r, struct item *it)
{
    bool first = !r->coll, del = it->head.type == MSG_DELETE;
    struct err err;

    if (!row_joins(r, it))
        return -1;
    if (row_append(r, it, &err)) {
        if (!first)
            return -1;
        err_wrap(&err, "collection %s", it->coll->name);
        task_fatal(it->coll->task, &err);
        r->failed = true;
        return -1;
    }
    if (first) {
        r->coll = it->coll;
        r->kind = kind_of(it);
        r->partition = xstrdup(partition_of(it));
    }
    r->rows += it->head.num_rows;
    r->bytes = r->keys ? msg_keys_bytes(r->keys) : msg_columns_bytes(r->columns);
    coll_count(it->coll, true, del, it->head.num_rows);
    link_count(it->link, true, del, it->len);
    return 0;
}

void portable_take_items(struct tchan *tc, struct request *r)
{
    struct item *it;

    while ((it = TAILQ_FIRST(&tc->queue))) {
        if (!item_checked(tc, it))
            return;
        if (it->kind == ITEM_ROWS && row_wanted(it) && row_add(r, it))
            return;
        if (it->kind == ITEM_TICK)
            tc->last_tick_ms = clock_mono_ms();
        request_take(r, it, it->tt);
    }
}

static bool commute(const struct request *a, const struct request *b)
{
    if (!a->coll || !b->coll || a->coll != b->coll)
        return true;
    return a->kind == b->kind && a->kind != SINK_UPSERT;
}

bool portable_may_send(const struct tchan *tc, const struct request *next)
{
    const struct request *r;
    size_t calls = 0;

    TAILQ_FOREACH(r, &tc->flying, entry) {
        if (!commute(r, next))
            return false;
        calls += r->call != NULL;
    }
    return calls < MAX_CALLS && (calls == 0 || tc->flying_bytes + next->bytes <= tc->hub->flight_bytes);
}

struct sink_call *portable_send(struct request *r, sink_batch_fn done)
{
    struct sink *s = r->tchan->hub->sink;
    struct sink_write w = {.kind = r->kind,
                           .db = r->coll->dst_db,
                           .collection = r->coll->dst_name,
                           .partition = r->partition,
                           .rows = r->rows,
                           .body = r->msgs};

    if (r->keys)
        msg_keys_write(r->keys, r->msgs);
    else
        msg_columns_write(r->columns, r->msgs);
    return s->ops->write(s, &w, done, r);
}

void portable_free(struct request *r)
{
    msg_columns_free(r->columns);
    msg_keys_free(r->keys);
    free(r->partition);
}
