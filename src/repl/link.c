/*
 * link.c - the ordered flow from one source channel to one target channel.
 *
 * LIVE: messages pass as they arrive, in log order, with the source's times; the target itself restores the order
 * of time at the tick. That is sound as long as the channel's tick is below the link's, so a live link is counted
 * in the channel's minimum.
 *
 * CATCHUP: the channel's tick is ahead (or not known to be behind). A window, i.e. what a source tick covers and the one
 * before it does not, is held, sorted by time, and sent with new times above the channel's tick; messages of equal time
 * keep equal times.  The link becomes live when its tick is above every new time.
 *
 * A message may lie before a tick in the log and have a greater time (source.md 6): it belongs to the next window, so that
 * an upsert's Insert and Delete, which have equal times, are never torn apart by a tick between them. Reading begins
 * again at the first such message, and what the tick covers is passed over.
 *
 * Repair: messages that the target may have already (after a crash, or a request without an answer) are sent again as
 * delete + insert at new times (target.md 3.7). They are windows too: those that a note names are one, those in the span of
 * a run that crashed (span.c) are repaired window by window, until the source's tick is past it.
 *
 * To an ordinary Milvus (hub->portable) a link never is live: windows go as they are, sorted by collection and time, since
 * the target gives times of its own in the order of its calls (portable.c).
 *
 * The log's order and the order of time may differ. Whenever messages get new times, the confirmed ones that are not older
 * are repeated with them.
 */
#include "repl/priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

/* A link this close to the channel's tick holds the tick back until it has caught up. */
#define NEAR_MS 3000

struct item *item_new(enum item_kind kind, struct link *l)
{
    struct item *it = xcalloc(1, sizeof(*it));

    it->kind = kind;
    it->link = l;
    it->dst_partition = -1;
    return it;
}

void item_charge(struct item *it, size_t bytes)
{
    it->budget = it->link->stream->task->o.budget;
    it->budget->used += bytes;
    task_hold(it->link->stream->task, bytes);
}

void item_free(struct item *it)
{
    if (it->budget)
        it->budget->used -= it->len;
    if (it->budget && it->link)
        task_release(it->link->stream->task, it->len);
    if (it->coll)
        coll_unref(it->coll);
    buf_unref(it->buf);
    free(it);
}

/* ---- the window ------------------------------------------------------------------------------- */

static bool in_repair(const struct link *l)
{
    return !wal_pos_is_none(l->repair_to);
}

static int rank(const struct item *it)
{
    if (it->kind == ITEM_DROP)
        return 2;
    return it->head.type == MSG_DELETE ? 0 : 1;
}

/* Order of time; at an equal time Delete before Insert (source.md 5.4), drops last; else the log's order. */
static int cmp_time(const void *pa, const void *pb)
{
    const struct item *a = *(struct item *const *)pa, *b = *(struct item *const *)pb;

    if (a->tt != b->tt)
        return a->tt < b->tt ? -1 : 1;
    if (rank(a) != rank(b))
        return rank(a) < rank(b) ? -1 : 1;
    return wal_pos_cmp(a->pos, b->pos);
}

/* Collections do not depend on each other: more of one goes into a call. */
static int cmp_portable(const void *pa, const void *pb)
{
    const struct item *a = *(struct item *const *)pa, *b = *(struct item *const *)pb;

    if (a->coll->id != b->coll->id)
        return a->coll->id < b->coll->id ? -1 : 1;
    return cmp_time(pa, pb);
}

/* The producer's retry may put a message into the log twice; the target would see that by the id, but not after a
 * repair, which gives new ids. */
static bool same_message(const struct item *a, const struct item *b)
{
    return a->kind == ITEM_ROWS && b->kind == ITEM_ROWS && a->head.msg_id && a->head.msg_id == b->head.msg_id &&
           a->head.type == b->head.type && a->coll == b->coll && a->shard == b->shard && a->tt == b->tt;
}

static bool seen_before(struct item **items, size_t i)
{
    for (size_t k = i; k-- > 0 && items[k] && items[k]->tt == items[i]->tt;)
        if (same_message(items[k], items[i]))
            return true;
    return false;
}

/* Least time that gets, or got, a new one: of the messages that the tick covers and that are not confirmed. */
static uint64_t oldest_retimed(const struct link *l, uint64_t tick)
{
    const struct item *it;
    uint64_t min = l->retime_from;

    TAILQ_FOREACH(it, &l->hold, entry)
        if (!it->confirmed && it->tt <= tick && it->tt < min)
            min = it->tt;
    return min;
}

/* Takes what the tick covers out of hold as a sorted array, without what need not be sent. */
static struct item **window_take(struct link *l, uint64_t tick, bool retime, size_t *ret_n)
{
    struct item **items = NULL, *it, *next;
    size_t n = 0, cap = 0, kept = 0;

    if (retime)
        l->retime_from = oldest_retimed(l, tick);
    for (it = TAILQ_FIRST(&l->hold); it; it = next) {
        next = TAILQ_NEXT(it, entry);
        if (it->tt > tick)
            continue;
        TAILQ_REMOVE(&l->hold, it, entry);
        if (it->confirmed && (!retime || it->tt < l->retime_from)) {
            item_free(it);
            continue;
        }
        it->repair |= it->confirmed;
        if (n == cap)
            items = xrealloc(items, (cap = cap ? cap * 2 : 64) * sizeof(struct item *));
        items[n++] = it;
    }
    if (n)
        qsort(items, n, sizeof(struct item *), l->tchan->hub->portable ? cmp_portable : cmp_time);
    for (size_t i = 0; i < n; i++) {
        it = items[i];
        items[i] = NULL;
        items[kept] = it;
        if (seen_before(items, kept)) {
            items[kept] = NULL;
            item_free(it);
        } else {
            kept++;
        }
    }
    *ret_n = kept;
    return items;
}

/* The channel's tick and every new time of this link, queued ones included, stay at or below this. */
static uint64_t time_floor(const struct link *l)
{
    uint64_t t = max_tt(l->tchan->tick_built, l->retimed_tt);

    return max_tt(max_tt(t, l->above), l->repair_tt) + l->retime_queued;
}

/* Is something that the tick covers in doubt? */
static bool window_in_doubt(const struct link *l, uint64_t tick)
{
    const struct item *it;

    TAILQ_FOREACH(it, &l->hold, entry)
        if (it->repair && it->tt <= tick)
            return true;
    return in_repair(l);
}

static void window_send(struct link *l, uint64_t tick)
{
    size_t n;
    bool retime = !l->tchan->hub->portable && (window_in_doubt(l, tick) || l->tick_read < time_floor(l));
    struct item **items = window_take(l, tick, retime, &n);
    struct wal_pos last = WAL_POS_NONE;
    bool repair = false;

    for (size_t i = 0; i < n; i++) {
        repair |= items[i]->repair;
        if (wal_pos_cmp(items[i]->pos, last) > 0)
            last = items[i]->pos;
    }
    if (repair)
        l->above = l->sent_tt;
    for (size_t i = 0; i < n; i++) {
        items[i]->retime = retime;
        items[i]->above = repair ? l->above : 0;
        items[i]->retime_more = retime && i + 1 < n && items[i + 1]->tt == items[i]->tt;
        items[i]->ack = WAL_POS_NONE; /* sorted: only the end of the window is a position */
        items[i]->doubt = last;
        tchan_queue(l->tchan, items[i]);
    }
    free(items);
}

/* ---- what a tick does not cover ------------------------------------------------------------------ */

static void later_add(struct link *l, struct wal_pos pos, uint64_t tt)
{
    if (l->n_later == l->cap_later)
        l->later = xrealloc(l->later, (l->cap_later = l->cap_later ? l->cap_later * 2 : 16) * sizeof(*l->later));
    l->later[l->n_later++] = (struct later){pos, tt};
}

/* LIVE: the first message before the tick with a greater time, or the tick's own place. */
static struct wal_pos later_start(struct link *l, struct wal_pos pos, uint64_t tick)
{
    size_t kept = 0;

    for (size_t i = 0; i < l->n_later; i++)
        if (l->later[i].tt > tick)
            l->later[kept++] = l->later[i];
    l->n_later = kept;
    return kept ? l->later[0].pos : pos;
}

/*
 * CATCHUP ends: what the tick does not cover has times of its own above every new one, and goes as it arrived. done
 * must not pass a message that is still queued.
 */
static void hold_pass_on(struct link *l, struct wal_pos tick_pos)
{
    struct item *it, *next;

    while ((it = TAILQ_FIRST(&l->hold))) {
        TAILQ_REMOVE(&l->hold, it, entry);
        later_add(l, it->pos, it->tt);
        next = TAILQ_FIRST(&l->hold);
        if (it->confirmed) {
            item_free(it);
            continue;
        }
        it->doubt = it->pos;
        it->ack = next ? wal_pos_before(next->pos) : tick_pos;
        tchan_queue(l->tchan, it);
    }
}

static bool hold_in_doubt(const struct link *l)
{
    const struct item *it;

    TAILQ_FOREACH(it, &l->hold, entry)
        if (it->repair)
            return true;
    return false;
}

/* ---- in ---------------------------------------------------------------------------------------- */

bool link_has(const struct link *l, struct wal_pos pos, uint64_t tt)
{
    if (l->mode == LINK_LIVE)
        return wal_pos_cmp(pos, l->done) <= 0;
    /* what was confirmed behind the tick is read again: new times must respect it */
    return wal_pos_cmp(pos, l->start) < 0 || tt <= l->start_tt;
}

static void count_read(struct link *l, const struct item *it)
{
    bool del = it->head.type == MSG_DELETE;

    if (it->kind != ITEM_ROWS)
        return;
    link_count(l, false, del, it->len);
    coll_count(it->coll, false, del, it->head.num_rows);
}

void link_add(struct link *l, struct item *it)
{
    count_read(l, it);
    it->doubt = it->ack = it->pos;
    if (l->mode == LINK_LIVE) {
        later_add(l, it->pos, it->tt);
        tchan_queue(l->tchan, it);
        tchan_kick(l->tchan);
        return;
    }
    it->confirmed = wal_pos_cmp(it->pos, l->done) <= 0 && !wal_pos_is_none(it->pos);
    it->repair = (in_repair(l) && wal_pos_cmp(it->pos, l->repair_to) <= 0) || (!it->confirmed && it->tt <= l->repair_tt);
    TAILQ_INSERT_TAIL(&l->hold, it, entry);
}

/* The source's tick as an item; one that is last in the queue already is moved forward in place. */
static struct item *queue_tick(struct link *l, struct wal_pos pos, uint64_t tt)
{
    struct item *it = l->tick;

    tchan_on_link_tick(l->tchan, l);
    if (!it) {
        it = item_new(ITEM_TICK, l);
        it->behind = l->mode == LINK_CATCHUP;
        tchan_queue(l->tchan, it);
    }
    it->tt = tt;
    it->pos = it->ack = it->start = pos;
    return it;
}

static void catch_up(struct link *l, struct wal_pos pos, uint64_t tt)
{
    uint64_t ahead = l->tchan->tick_built;
    struct item *it;

    if (!l->tchan->tick_loaded || (wal_pos_cmp(pos, l->repair_to) < 0 && !l->tchan->hub->portable))
        return; /* the window goes on */
    if (tt + tt_from_ms(NEAR_MS) >= ahead && !l->counted) {
        l->counted = true;
        l->tick_built = l->tick_read; /* what it may promise until its next tick is built */
    }
    window_send(l, tt);
    if (wal_pos_cmp(pos, l->repair_to) >= 0)
        l->repair_to = WAL_POS_NONE;
    it = queue_tick(l, pos, tt);
    if (!TAILQ_EMPTY(&l->hold)) {
        it->start = TAILQ_FIRST(&l->hold)->pos;
        it->ack = wal_pos_before(it->start);
    }
    l->tick_read = tt;
    if (l->tchan->hub->portable)
        return;
    if (l->counted && tt >= time_floor(l) && !hold_in_doubt(l)) {
        l->mode = LINK_LIVE;
        hold_pass_on(l, pos);
        log_debug("repl", "link is live", KS("task", l->stream->task->o.id), KS("from", l->stream->channel),
                  KS("to", l->tchan->name));
    }
}

void link_on_tick(struct link *l, struct wal_pos pos, uint64_t tt)
{
    if (tt < l->tick_read || (l->mode == LINK_LIVE && link_has(l, pos, tt)))
        return; /* ticks may repeat; after a restart older ones are read again */
    l->m_read_tt->value = (double)tt_to_ms(tt);
    link_count(l, false, 2, TICK_BYTES);
    if (l->mode == LINK_CATCHUP) {
        catch_up(l, pos, tt);
    } else {
        queue_tick(l, pos, tt)->start = later_start(l, pos, tt);
        l->tick_read = tt;
    }
    if (!tchan_rests(l->tchan))
        tchan_kick(l->tchan);
}

/* ---- life --------------------------------------------------------------------------------------- */

static struct metric *tt_metric(const struct link *l, const char *op)
{
    return metric_get(METRIC_GAUGE, "milvus_cdc_replicate_tt", "time of the last message, ms since 1970",
                      METRIC_LABELS({"task_id", l->stream->task->o.id}, {"vchannel_name", l->stream->channel},
                                    {"op_type", op}));
}

void link_count(struct link *l, bool written, unsigned type, size_t bytes)
{
    static const char *const types[] = {"Insert", "Delete", "TimeTick"};
    struct metric **m = &l->m_bytes[written][type];

    if (!*m)
        *m = metric_get(METRIC_COUNTER, "milvus_cdc_replicate_data_size", "bytes of WAL messages",
                        METRIC_LABELS({"task_id", l->stream->task->o.id}, {"vchannel_name", l->stream->channel},
                                      {"op_type", written ? "write" : "read"}, {"msg_type", types[type]}));
    (*m)->value += (double)bytes;
}

/* Positions for a link that never ran: it begins where its stream is, or where the stream will begin. */
static void start_at_stream(struct link *l)
{
    const struct stream *s = l->stream;

    if (s->state == STREAM_IDLE) {
        (void)stream_begin(s, &l->start); /* nothing to begin with: NONE, the first message */
        l->done = wal_pos_before(l->start); /* the first message itself may be ours */
    } else {
        l->done = s->read;
        l->start = wal_pos_is_none(s->tick_pos) ? s->begin : s->tick_pos;
        l->start_tt = l->done_tt = s->tick_tt;
    }
    l->sent = l->maybe = l->done;
}

static void begin_catchup(struct link *l)
{
    l->mode = LINK_CATCHUP;
    l->counted = false;
    l->group_open = false;
    l->n_later = 0;
    /* what the last tick covers may have times above those of confirmed messages that it does not cover */
    l->retime_from = l->retimed_tt > l->start_tt ? l->start_tt : UINT64_MAX;
    l->tick_read = l->tick_built = l->start_tt;
    l->repair_to = wal_pos_cmp(l->sent, l->done) > 0 ? l->sent : WAL_POS_NONE;
}

struct link *link_new(struct stream *s, struct tchan *tc, const struct repl_ckpt *ck)
{
    struct link *l = xcalloc(1, sizeof(*l));

    l->stream = s;
    l->tchan = tc;
    l->moved_ms = clock_mono_ms();
    TAILQ_INIT(&l->hold);
    if (ck) {
        l->start = ck->start;
        l->start_tt = ck->start_tt;
        l->done = ck->done;
        l->done_tt = ck->done_tt;
        l->sent = l->maybe = ck->sent;
        l->sent_tt = ck->sent_tt;
        l->retimed_tt = ck->retimed_tt;
        if (ck->span_tt > ck->start_tt) {
            l->repair_tt = ck->span_tt;
            l->sent_tt = max_tt(l->sent_tt, ck->span_tt);
        }
        l->op = ck->op;
        l->op_tt = ck->op_tt;
        l->target_pos = xstrdup(ck->target_pos);
    } else {
        start_at_stream(l);
    }
    begin_catchup(l);
    l->m_read_tt = tt_metric(l, "read");
    l->m_write_tt = tt_metric(l, "write");
    LIST_INSERT_HEAD(&s->links, l, of_stream);
    tchan_attach(tc, l);
    if (in_repair(l)) {
        tchan_quarantine(tc);
        log_info("repl", "requests in doubt will be repaired", KS("task", s->task->o.id), KS("from", s->channel),
                 KS("to", tc->name), KU("done", l->done.minor), KU("in_doubt_to", l->sent.minor));
    }
    if (l->repair_tt) {
        tchan_hold_ticks(tc);
        log_info("repl", "what was sent ahead of the registry will be repaired", KS("task", s->task->o.id),
                 KS("from", s->channel), KS("to", tc->name), KU("done", l->done.minor),
                 KU("until_ms", tt_to_ms(l->repair_tt)));
    }
    return l;
}

void link_after_restore(struct link *l)
{
    if (!l->tchan->hub->portable && l->mode == LINK_CATCHUP)
        l->retimed_tt = max_tt(l->retimed_tt, tt_from_ms(clock_wall_ms()));
}

static void hold_drop(struct link *l)
{
    struct item *it;

    while ((it = TAILQ_FIRST(&l->hold))) {
        TAILQ_REMOVE(&l->hold, it, entry);
        item_free(it);
    }
}

void link_reset(struct link *l)
{
    tchan_unqueue(l->tchan, l);
    hold_drop(l);
    l->counted = false;
}

/* When nothing of the link is in flight any more: what must be read again, and what of it is in doubt. */
void link_restart(struct link *l)
{
    l->sent = wal_pos_cmp(l->maybe, l->done) > 0 ? l->maybe : l->done;
    l->span_tt = l->span_ok = 0; /* sent is exact */
    l->dirty = l->ticked = true;
    begin_catchup(l);
}

void link_doubt(struct link *l, struct wal_pos pos)
{
    if (wal_pos_cmp(pos, l->sent) <= 0)
        return;
    l->sent = l->maybe = l->repair_to = pos;
    l->dirty = l->ticked = true;
}

static void doubt_list(struct item_list *list, const struct link *l, const struct coll *c)
{
    struct item *it;

    TAILQ_FOREACH(it, list, entry)
        if (it->link == l && it->coll == c && it->kind == ITEM_ROWS)
            it->repair = true;
}

void link_doubt_read(struct link *l, const struct coll *c)
{
    doubt_list(&l->hold, l, c);
    doubt_list(&l->tchan->queue, l, c);
}

void link_free(struct link *l)
{
    hold_drop(l);
    tchan_detach(l->tchan, l);
    LIST_REMOVE(l, of_stream);
    free(l->later);
    free(l->target_pos);
    free(l);
}

void link_fill_ckpt(const struct link *l, struct repl_ckpt *ret)
{
    uint64_t span_tt = max_tt(l->span_tt, l->repair_tt);

    *ret = (struct repl_ckpt){
        .src_channel = l->stream->channel,
        .dst_channel = l->tchan->name,
        .start = l->start,
        .start_tt = l->start_tt,
        .done = l->done,
        .done_tt = l->done_tt,
        .sent = wal_pos_cmp(l->sent, l->done) > 0 ? l->sent : l->done,
        .sent_tt = l->sent_tt,
        .retimed_tt = l->retimed_tt,
        .span_tt = span_tt > l->start_tt ? span_tt : 0,
        .op = l->op,
        .op_tt = l->op_tt,
        .target_pos = l->target_pos,
    };
}
