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
    if (it->coll != r->coll || kind_of(it) != r->kind || r->kind == SINK_UPSERT)
        return false;
    if (r->bytes >= r->tchan->batch_bytes || r->bytes + it->len > r->tchan->most_bytes)
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
        r->coll = coll_ref(it->coll);
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

size_t portable_calls(const struct tchan *tc)
{
    const struct request *r;
    size_t calls = 0;

    TAILQ_FOREACH(r, &tc->flying, entry)
        calls += r->call != NULL;
    return calls;
}

bool portable_call_free(const struct tchan *tc)
{
    return portable_calls(tc) < MAX_CALLS;
}

bool portable_may_send(const struct tchan *tc, const struct request *next)
{
    const struct request *r;

    TAILQ_FOREACH(r, &tc->flying, entry)
        if (!commute(r, next))
            return false;
    return portable_call_free(tc) &&
           (portable_calls(tc) == 0 || tc->flying_bytes + next->bytes <= tc->hub->flight_bytes);
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

    evbuffer_drain(r->msgs, evbuffer_get_length(r->msgs)); /* of a call before */
    if (r->keys)
        msg_keys_write(r->keys, r->msgs);
    else
        msg_columns_write(r->columns, r->msgs);
    return s->ops->write(s, &w, done, r);
}

/* ---- dividing ------------------------------------------------------------------------------------- */

static void drop_rows(struct request *r)
{
    msg_columns_free(r->columns);
    msg_keys_free(r->keys);
    r->columns = NULL;
    r->keys = NULL;
    r->rows = r->bytes = 0;
}

static size_t rows_bytes(const struct request *r)
{
    return r->keys ? msg_keys_bytes(r->keys) : r->columns ? msg_columns_bytes(r->columns) : 0;
}

/* In the place of those that it has. */
static void set_rows(struct request *r, struct msg_columns *take_columns, struct msg_keys *take_keys, uint64_t rows)
{
    drop_rows(r);
    r->columns = take_columns;
    r->keys = take_keys;
    r->rows = rows;
    r->bytes = rows_bytes(r);
}

/* Its messages once more; those of what was dropped meanwhile are nobody's. */
static void fill_again(struct request *r)
{
    const struct item *it;

    drop_rows(r);
    TAILQ_FOREACH(it, &r->items, entry) {
        if (it->kind != ITEM_ROWS || !row_wanted(it))
            continue;
        if (row_append(r, it, NULL))
            abort(); /* they were joined before */
        r->rows += it->head.num_rows;
    }
    r->bytes = rows_bytes(r);
}

static size_t messages_of(const struct request *r)
{
    const struct item *it;
    size_t n = 0;

    TAILQ_FOREACH(it, &r->items, entry)
        n += it->kind == ITEM_ROWS && row_wanted(it);
    return n;
}

static void split_messages(struct request *part, struct request *r, size_t n)
{
    while (n > 0) {
        struct item *it = TAILQ_FIRST(&r->items);

        TAILQ_REMOVE(&r->items, it, entry);
        TAILQ_INSERT_TAIL(&part->items, it, entry);
        n -= it->kind == ITEM_ROWS && row_wanted(it);
    }
    request_divide(part, r);
    fill_again(part);
    fill_again(r);
}

/* False: its columns cannot be divided. */
static bool split_rows(struct request *part, struct request *r)
{
    uint64_t half = r->rows / 2;

    if (r->keys) {
        set_rows(part, NULL, msg_keys_cut(r->keys, 0, half), half);
        set_rows(r, NULL, msg_keys_cut(r->keys, half, r->rows), r->rows - half);
    } else {
        struct msg_columns *a = msg_columns_cut(r->columns, 0, half), *b = msg_columns_cut(r->columns, half, r->rows);
        if (!a || !b) {
            msg_columns_free(a);
            msg_columns_free(b);
            return false;
        }
        set_rows(part, a, NULL, half);
        set_rows(r, b, NULL, r->rows - half);
    }
    request_divide(part, r);
    return true;
}

struct request *portable_split(struct request *r)
{
    size_t messages = messages_of(r);
    struct request *part;

    if (r->rows < 2)
        return NULL;
    part = request_new(r->tchan);
    part->coll = coll_ref(r->coll);
    part->kind = r->kind;
    part->partition = xstrdup(r->partition);
    if (messages > 1) {
        split_messages(part, r, messages / 2);
    } else if (!split_rows(part, r)) {
        request_free(part);
        return NULL;
    }
    return part;
}

void portable_free(struct request *r)
{
    drop_rows(r);
    free(r->partition);
    if (r->coll)
        coll_unref(r->coll);
}
