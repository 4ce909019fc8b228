/*
 * request.c - one request to the target: the messages in it as they go out, what it covers of each link, and the durable
 * note of that, which is there before it is sent.
 */
#include "repl/priv.h"

#include <event2/buffer.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"

/* ---- request -------------------------------------------------------------------------------- */

struct request *request_new(struct tchan *tc)
{
    struct request *r = xcalloc(1, sizeof(*r));

    r->tchan = tc;
    r->msgs = evbuffer_new();
    TAILQ_INIT(&r->items);
    r->begin_tt = tc->tick_built;
    return r;
}

void request_free(struct request *r)
{
    struct item *it;

    if (!r)
        return;
    while ((it = TAILQ_FIRST(&r->items))) {
        TAILQ_REMOVE(&r->items, it, entry);
        item_free(it);
    }
    portable_free(r);
    evbuffer_free(r->msgs);
    free(r->target_pos);
    free(r->noted);
    free(r->ranges);
    free(r);
}

static struct req_range *request_range(struct request *r, struct link *l)
{
    if (l->range < r->n_ranges && r->ranges[l->range].link == l)
        return &r->ranges[l->range];
    if (r->n_ranges == r->cap_ranges) {
        r->cap_ranges = r->cap_ranges ? r->cap_ranges * 2 : 4;
        r->ranges = xrealloc(r->ranges, r->cap_ranges * sizeof(*r->ranges));
    }
    r->ranges[r->n_ranges] = (struct req_range){.link = l};
    l->range = r->n_ranges;
    return &r->ranges[r->n_ranges++];
}

/* Voided ones too. */
bool request_has(const struct request *r, const struct link *l)
{
    for (size_t i = 0; r && i < r->n_ranges; i++)
        if (r->ranges[i].link == l)
            return true;
    return false;
}

/* Is the range in the note that is made for an earlier one? */
static bool task_noted(const struct request *r, size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (r->ranges[k].note && r->ranges[k].link->stream->task == r->ranges[i].link->stream->task)
            return true;
    return false;
}

/* Frees it; its notes go to disk all the same, but nobody waits for them. */
void request_retire(struct request *r)
{
    for (size_t i = 0; i < r->n_noted && r->commits_open; i++)
        r->noted[i]->ops->cancel(r->noted[i], r);
    request_free(r);
}

bool request_noted_in(const struct request *r, const struct store *store)
{
    for (size_t i = 0; r && i < r->n_noted; i++)
        if (r->noted[i] == store)
            return true;
    return false;
}

void request_forget(struct request *r, const struct link *l)
{
    struct item *it;

    for (size_t i = 0; i < r->n_ranges; i++)
        if (r->ranges[i].link == l)
            r->ranges[i].link = NULL;
    TAILQ_FOREACH(it, &r->items, entry)
        if (it->link == l) {
            task_release(l->stream->task, it->len);
            it->link = NULL;
        }
}

/* ---- messages ------------------------------------------------------------------------------- */

/*
 * The time that a message gets on the target; 0: its own. A new time never lies before the message's own: a standby
 * skips rows that are not newer than the creation of their collection, which has the source's time.
 */
static uint64_t item_new_time(struct tchan *tc, struct item *it)
{
    struct link *l = it->link;

    if (!it->retime)
        return 0;
    if (!(l->group_open && it->tt == l->last_src_tt)) {
        uint64_t floor = max_tt(max_tt(tc->tick_built, l->retimed_tt), it->above);
        l->retimed_tt = max_tt(floor + 1, it->tt);
        l->last_src_tt = it->tt;
    }
    l->group_open = it->retime_more;
    return l->retimed_tt;
}

/* It must have been checked on this connection (target.md 3.1: a wrong channel name takes the target down for good). */
bool tchan_coll_checked(const struct tchan *tc, struct coll *c)
{
    if (c->state == COLL_GONE)
        return true;
    if (c->verified_gen && c->verified_gen == tc->hub->sink->ops->generation(tc->hub->sink))
        return true;
    coll_unverify(c);
    coll_kick(c);
    return false;
}

/* May the item go into a request now? Not while somebody else writes rows of its collection, or it gets another name. */
bool item_checked(struct tchan *tc, struct item *it)
{
    struct coll *c = it->coll;

    if (it->kind == ITEM_TICK)
        return true;
    if (c->rename_waits)
        coll_kick(c);
    return (c->state == COLL_GONE || !(c->held || c->rename_waits)) && tchan_coll_checked(tc, c);
}

/* A message made by us or repeated needs an id of its own (hub_new_msg_id). An Insert that may be there already is
 * preceded by a Delete of its keys at the same new time: that removes every older copy and leaves one row. */
static int append_rows(struct tchan *tc, struct item *it, struct msg_rewrite *rw, struct request *r)
{
    struct coll *c = it->coll;
    size_t n = 0;
    struct err err;

    if (it->repair)
        rw->new_msg_id = hub_new_msg_id(tc->hub);
    if (it->repair && it->head.type == MSG_INSERT) {
        if (msg_append_delete_of_insert(&it->head, it->buf, it->data, it->len, c->pk_field_id, c->pk_is_string, rw,
                                        r->msgs, &n, &err)) {
            err_wrap(&err, "collection %s", c->name);
            task_fatal(c->task, &err);
            return -1;
        }
        r->bytes += n;
        rw->new_msg_id = hub_new_msg_id(tc->hub);
    }
    n = msg_append(&it->head, it->buf, it->data, it->len, rw, r->msgs);
    r->bytes += n;
    return n ? 0 : -1;
}

static int append_drop(struct item *it, struct msg_rewrite *rw, uint64_t tt, struct request *r)
{
    struct part *p = NULL;
    size_t n;

    if (it->buf) {
        n = msg_append(&it->head, it->buf, it->data, it->len, rw, r->msgs);
    } else if (it->head.type == MSG_DROP_COLLECTION) {
        n = msg_append_drop_collection(rw, tt, r->msgs);
    } else {
        p = coll_part(it->coll, it->head.partition_id);
        n = p ? msg_append_drop_partition(rw, p->name, tt, r->msgs) : 1;
    }
    r->bytes += n;
    return n ? 0 : -1;
}

/* Encodes one item; returns its time on the target. */
static uint64_t item_append(struct tchan *tc, struct item *it, struct request *r)
{
    struct coll *c = it->coll;
    struct shard *sh = &c->shards[it->shard];
    struct msg_rewrite rw = {.collection_id = c->dst_id,
                             .partition_id = it->dst_partition,
                             .shard_name = it->kind == ITEM_ROWS ? sh->dst_vchannel : NULL,
                             .db_name = c->dst_db,
                             .collection_name = c->dst_name,
                             .new_tt = item_new_time(tc, it)};
    uint64_t tt = rw.new_tt ? rw.new_tt : it->tt;

    if (it->kind == ITEM_DROP && !it->buf) {
        if (tt <= tc->tick_built)
            tt = tc->tick_built + 1;
        tt = max_tt(tt, max_tt(it->link->row_max, it->link->tick_read + 1));
    }
    if (tt > it->link->row_max)
        it->link->row_max = tt;
    if (it->kind == ITEM_ROWS) {
        bool del = it->head.type == MSG_DELETE;
        r->failed |= append_rows(tc, it, &rw, r) != 0;
        coll_count(c, true, del, it->head.num_rows);
        link_count(it->link, true, del, it->len);
    } else {
        r->failed |= append_drop(it, &rw, tt, r) != 0;
        it->tt = tt;
    }
    return tt;
}

/* The request has its own references: from here on each piece goes as soon as it is sent. */
static void item_let_go(struct item *it)
{
    if (it->kind != ITEM_ROWS)
        return;
    buf_unref(it->buf);
    it->buf = NULL;
    it->data = NULL;
}

static void range_add(struct req_range *rg, const struct item *it, uint64_t tt)
{
    if (!wal_pos_is_none(it->ack))
        rg->ack = it->ack;
    if (wal_pos_cmp(it->doubt, rg->doubt) > 0)
        rg->doubt = it->doubt;
    if (it->kind == ITEM_TICK) {
        rg->tick_pos = it->pos;
        rg->tick_start = it->start;
        rg->tick_tt = it->tt;
        return;
    }
    rg->has_rows = true;
    rg->bare |= !span_covers(it);
    if (wal_pos_cmp(it->pos, rg->op) > 0) {
        rg->op = it->pos;
        rg->op_tt = it->tt;
    }
    if (tt > rg->max_tt)
        rg->max_tt = tt;
}

/* Rows behind their drop message would go to a channel that is gone. */
bool item_wanted(const struct item *it)
{
    return it->coll->state != COLL_GONE &&
           !(it->kind == ITEM_ROWS && it->coll->shards[it->shard].drop == SHARD_DROP_SENT);
}

/* Out of the queue, into the request. */
void request_take(struct request *r, struct item *it, uint64_t tt)
{
    range_add(request_range(r, it->link), it, tt);
    tchan_unqueue_item(r->tchan, it);
    TAILQ_INSERT_TAIL(&r->items, it, entry);
}

static struct req_range *range_of(struct req_range *ranges, size_t n, const struct link *l)
{
    for (size_t i = 0; i < n; i++)
        if (ranges[i].link == l)
            return &ranges[i];
    return NULL;
}

static void ranges_again(struct request *r, struct req_range *old, size_t n_old)
{
    const struct item *it;

    TAILQ_FOREACH(it, &r->items, entry)
        if (it->link)
            range_add(request_range(r, it->link), it, it->tt);
    for (size_t i = 0; i < r->n_ranges; i++) {
        const struct req_range *was = range_of(old, n_old, r->ranges[i].link);
        r->ranges[i].maybe_before = was->maybe_before;
        r->ranges[i].note = was->note;
        r->ranges[i].voided = was->voided;
    }
}

/* When it fails, its links must read again. */
static void ranges_of_rows(struct request *part, const struct request *r)
{
    for (size_t i = 0; i < r->n_ranges; i++) {
        const struct req_range *was = &r->ranges[i];
        if (!was->link || !was->has_rows)
            continue;
        *request_range(part, was->link) = (struct req_range){.link = was->link,
                                                             .doubt = was->doubt,
                                                             .maybe_before = was->maybe_before,
                                                             .max_tt = was->max_tt,
                                                             .has_rows = true,
                                                             .bare = was->bare,
                                                             .note = was->note,
                                                             .voided = was->voided};
    }
}

void request_divide(struct request *part, struct request *r)
{
    struct req_range *old = r->ranges;
    size_t n_old = r->n_ranges;

    if (TAILQ_EMPTY(&part->items)) {
        ranges_of_rows(part, r);
        return;
    }
    r->ranges = NULL;
    r->n_ranges = r->cap_ranges = 0;
    ranges_again(part, old, n_old);
    ranges_again(r, old, n_old);
    free(old);
}

void request_take_items(struct tchan *tc, struct request *r)
{
    struct item *it;

    while ((it = TAILQ_FIRST(&tc->queue)) && r->bytes < tc->hub->batch_bytes) {
        uint64_t tt = it->tt;
        if (!item_checked(tc, it))
            return;
        if (it->kind == ITEM_TICK)
            it->link->tick_built = it->tt;
        else if (item_wanted(it))
            tt = item_append(tc, it, r);
        if (it->kind != ITEM_TICK && tt > tc->row_built)
            tc->row_built = tt;
        if (it->kind != ITEM_TICK && tt > r->end_tt)
            r->end_tt = tt;
        request_take(r, it, tt);
        item_let_go(it);
    }
}

/* ---- the durable note of a request (intent) --------------------------------------------------- */

static void on_intent(void *arg, const struct err *err)
{
    struct request *r = arg;

    r->commits_open--;
    if (err) {
        /* not ours any more (another owner): never send it */
        r->failed = true;
        log_error("repl", "the note of a request was refused", KS("channel", r->tchan->name), KS("error", err->text));
        for (size_t i = 0; i < r->n_ranges; i++)
            if (r->ranges[i].link)
                task_fatal(r->ranges[i].link->stream->task, err);
        return;
    }
    tchan_kick(r->tchan);
}

/* Any task that feeds the channel can note its tick. */
static struct repl_task *note_task(const struct tchan *tc, const struct request *r)
{
    for (size_t i = 0; i < r->n_ranges; i++)
        if (r->ranges[i].link)
            return r->ranges[i].link->stream->task;
    return LIST_EMPTY(&tc->links) ? NULL : LIST_FIRST(&tc->links)->stream->task;
}

static void note_link(struct store *store, struct store_batch *b, struct req_range *rg)
{
    struct link *l = rg->link;
    struct repl_ckpt ck;

    if (wal_pos_cmp(rg->doubt, l->sent) > 0)
        l->sent = rg->doubt;
    if (rg->max_tt > l->sent_tt)
        l->sent_tt = rg->max_tt;
    link_fill_ckpt(l, &ck);
    store->ops->put_ckpt(b, &ck);
    l->dirty = l->ticked = false;
}

static void request_commit(struct request *r, struct store *store, struct store_batch *b)
{
    r->commits_open++;
    r->noted = xrealloc(r->noted, (r->n_noted + 1) * sizeof(struct store *));
    r->noted[r->n_noted++] = store;
    store->ops->commit(b, on_intent, r);
}

/*
 * Of ticks nothing can be in doubt; but what was confirmed must not stay in doubt, if no checkpoint sees to it. On a portable
 * target one note covers the whole window.
 */
static bool needs_note(const struct req_range *rg)
{
    const struct link *l = rg->link;

    if (l && l->tchan->hub->portable && rg->has_rows)
        return rg->bare && wal_pos_cmp(rg->doubt, l->sent) > 0;
    return l && (rg->bare || (l->dirty && !l->span_ok));
}

/*
 * The tick is noted first, by one task: commits are carried out in order, so it is there when the last one is. What a span
 * covers is noted already (span.c).
 */
void request_note(struct tchan *tc, struct request *r)
{
    struct repl_task *t = note_task(tc, r);
    struct store *store = t ? t->o.store : tc->keep_store;

    for (size_t i = 0; i < r->n_ranges; i++)
        r->ranges[i].note = needs_note(&r->ranges[i]);
    if (r->tick > tc->bound_ok && store) {
        struct store_batch *b = store->ops->begin(store, t ? t->o.id : tc->keep_task);
        store->ops->put_tick(b, tc->hub->key, tc->name, r->tick);
        request_commit(r, store, b);
    }
    for (size_t i = 0; i < r->n_ranges; i++) {
        if (!r->ranges[i].note || task_noted(r, i))
            continue;
        t = r->ranges[i].link->stream->task;
        struct store_batch *b = t->o.store->ops->begin(t->o.store, t->o.id);
        for (size_t k = i; k < r->n_ranges; k++)
            if (r->ranges[k].note && r->ranges[k].link->stream->task == t)
                note_link(t->o.store, b, &r->ranges[k]);
        request_commit(r, t->o.store, b);
    }
}
