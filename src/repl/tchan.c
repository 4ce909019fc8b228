/*
 * tchan.c - one physical channel of the target: its queue, its time, its requests in flight.
 *
 * While a request is under way the next one is built and its range is noted durably, so that the note costs no
 * throughput.  A request that fails resets the streams that feed it: they read again from what is confirmed,
 * and what may have been written is repaired (link.c).
 *
 * To a near target one request is in flight, with its tick at its end. To a far one several are (pace.h): the target
 * restores the order of time at each tick, so only a tick must not overtake messages. Each request then promises a tick,
 * which is sent with a later one, when the request and all before it are confirmed. Answers are used in the order of the
 * requests; when one fails, what is behind it counts as in doubt for the links that it carried.
 */
#include "repl/priv.h"

#include <assert.h>
#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

/*
 * A request of a process that was killed, or of a connection that was lost, can be carried out by the target after the
 * next one that we send, when the target is short of CPU (seen with 2.3.5: it landed behind the repair of its own rows).
 */
#define QUARANTINE_MS 1500

/* Code 65535 has no meaning of its own (target.md 1.1): with the back-off this is about three minutes. */
#define MAX_REFUSALS 20

static void tchan_discard_next(struct tchan *tc);

/* ---- time ------------------------------------------------------------------------------------ */

static uint64_t link_tick(const struct link *l)
{
    return l->tick ? l->tick->tt : l->tick_built;
}

/* The greatest tick that may be sent, or 0. ahead: as if every tick in the queue were built already. */
static uint64_t tchan_safe_tick(const struct tchan *tc, bool ahead)
{
    const struct link *l;
    uint64_t min = UINT64_MAX, retimed = 0;

    LIST_FOREACH(l, &tc->links, of_tchan) {
        if (l->group_open)
            return 0; /* the rest of a group must get the same time: no tick may come between */
        if (l->retimed_tt > retimed && !l->retime_queued)
            retimed = l->retimed_tt;
        if (!l->counted)
            continue;
        uint64_t t = ahead ? link_tick(l) : l->tick_built;
        if (t < min)
            min = t;
    }
    if (min != UINT64_MAX)
        return min;
    if (tc->keep_task && LIST_EMPTY(&tc->links))
        return tt_from_ms(clock_wall_ms() - 200);
    /* only streams that catch up: their rows become visible with a tick at the last new time */
    return retimed;
}

/* After a failure: later messages must stay above what the target may see as a tick, and above what it will. */
static uint64_t tick_floor(const struct tchan *tc)
{
    uint64_t tt = max_tt(tc->tick_maybe, tc->tick_ready);
    const struct request *r;

    TAILQ_FOREACH(r, &tc->flying, entry)
        tt = max_tt(tt, r->promise);
    return tt;
}

void tchan_unqueue_item(struct tchan *tc, struct item *it)
{
    struct link *l = it->link;

    TAILQ_REMOVE(&tc->queue, it, entry);
    tc->queue_bytes -= it->len;
    l->queued--;
    l->queued_bytes -= it->len;
    tc->ticks_behind -= it->behind;
    if (it->retime)
        l->retime_queued--;
    if (it->kind != ITEM_TICK) {
        tc->rows_queued--;
        l->rows_queued--;
    }
    if (l->tick == it)
        l->tick = NULL;
}

void tchan_queue(struct tchan *tc, struct item *it)
{
    struct link *l = it->link;

    TAILQ_INSERT_TAIL(&tc->queue, it, entry);
    tc->queue_bytes += it->len;
    l->queued++;
    l->queued_bytes += it->len;
    tc->ticks_behind += it->behind;
    if (it->retime)
        l->retime_queued++;
    if (it->kind != ITEM_TICK) {
        tc->rows_queued++;
        l->rows_queued++;
    }
    l->tick = it->kind == ITEM_TICK ? it : NULL;
}

void tchan_unqueue(struct tchan *tc, struct link *l)
{
    struct item *it, *tmp;

    for (it = TAILQ_FIRST(&tc->queue); it; it = tmp) {
        tmp = TAILQ_NEXT(it, entry);
        if (it->link != l)
            continue;
        tchan_unqueue_item(tc, it);
        item_free(it);
    }
}

/* ---- several requests in flight ---------------------------------------------------------------- */

/* Bytes that may be under way; 0: one request at a time. */
static size_t tchan_window(struct tchan *tc)
{
    const struct repl_hub *h = tc->hub;
    uint64_t gen = h->sink->ops->generation(h->sink);
    size_t window;

    if (gen != tc->pace_gen) {
        pace_reset(&tc->pace);
        tc->pace_gen = gen;
    }
    window = pace_window(&tc->pace, h->far_ms * UINT64_C(1000), h->batch_bytes, h->flight_bytes);
    tc->m_window->value = (double)window;
    return window;
}

/* A tick whose messages are all confirmed and that may be sent now, or 0. Two ticks in flight could change places. */
static uint64_t tick_waiting(const struct tchan *tc)
{
    const struct request *r;

    TAILQ_FOREACH(r, &tc->flying, entry)
        if (r->tick)
            return 0;
    return tc->tick_ready > max_tt(tc->tick_out, tc->tick_maybe) ? tc->tick_ready : 0;
}

/* The last tick that a request still carries, or carried with success. */
static void tick_out_again(struct tchan *tc)
{
    const struct request *r;

    tc->tick_out = tc->tick_sent;
    TAILQ_FOREACH(r, &tc->flying, entry)
        tc->tick_out = max_tt(tc->tick_out, r->tick);
}

static void flight_remove(struct tchan *tc, struct request *r)
{
    TAILQ_REMOVE(&tc->flying, r, entry);
    tc->flying_bytes -= r->bytes;
}

/* ---- building a request -------------------------------------------------------------------------- */

/*
 * Idle ticks of all channels are due at the same moments, whole intervals of the clock: so they share one commit and
 * few packets.
 */
static bool tick_interval_over(struct tchan *tc)
{
    uint64_t now = clock_mono_ms(), interval = tc->hub->tick_interval_ms;

    if (now / interval != tc->last_tick_ms / interval)
        return true;
    if (!tc->resting)
        timer_set(&tc->tick_timer, interval - now % interval);
    tc->resting = true;
    return false;
}

/* The channel's tick cannot rise before all of these have: until then none of their ticks is a reason to look. */
static void count_low(struct tchan *tc, uint64_t tick)
{
    const struct link *l;

    tc->low_tick = tick;
    tc->low_links = 0;
    LIST_FOREACH(l, &tc->links, of_tchan)
        tc->low_links += l->counted && link_tick(l) == tick;
    if (!timer_armed(&tc->tick_timer)) /* it may rise for other reasons: links leave */
        timer_set(&tc->tick_timer, tc->hub->tick_interval_ms);
}

void tchan_on_link_tick(struct tchan *tc, const struct link *l)
{
    if (tc->low_links && l->counted && link_tick(l) == tc->low_tick)
        tc->low_links--;
}

/* Something in doubt may still land behind what is sent now. The timer looks again. */
static bool is_quiet(struct tchan *tc)
{
    uint64_t now = clock_mono_ms();

    if (now >= tc->quiet_ms)
        return false;
    if (!timer_armed(&tc->tick_timer))
        timer_set(&tc->tick_timer, tc->quiet_ms - now);
    return true;
}

static uint64_t tick_due(struct tchan *tc)
{
    uint64_t tick;

    if (is_quiet(tc))
        return 0;
    if ((!TAILQ_EMPTY(&tc->flying) && tchan_window(tc)) || tc->low_links)
        return tick_waiting(tc); /* promises are made with messages; the rest waits for the answers */
    tick = tchan_safe_tick(tc, true);
    if (tick > tc->tick_built)
        return tick;
    if (tick)
        count_low(tc, tick);
    return tick_waiting(tc);
}

/* Is there something worth a request?  Arms the timer when a tick is due only later. */
static bool tchan_due(struct tchan *tc)
{
    if (tc->rows_queued)
        return true;
    if (tc->hub->portable)
        return !TAILQ_EMPTY(&tc->queue) && tick_interval_over(tc);
    if (!tc->row_built && !tick_interval_over(tc))
        return false;
    if (tick_due(tc) || tc->ticks_behind)
        return true; /* who catches up does not wait for the channel's tick, which may be far ahead of the source */
    if (tc->keep_task)
        timer_set(&tc->tick_timer, tc->hub->tick_interval_ms);
    return false;
}

static void request_add_tick(struct tchan *tc, struct request *r)
{
    uint64_t promise = tchan_safe_tick(tc, false), tick;

    if (is_quiet(tc))
        return;
    if (promise > tc->tick_built)
        r->promise = tc->tick_built = promise;
    tick = r->alone && r->promise ? r->promise : tick_waiting(tc);
    if (!tick)
        return;
    r->tick = tc->tick_out = tick;
    r->bytes += msg_append_tick(tick, r->msgs);
    if (tick > r->end_tt)
        r->end_tt = tick;
    tc->last_tick_ms = clock_mono_ms();
    if (tc->row_built <= tick)
        tc->row_built = 0;
}

static void tchan_build(struct tchan *tc)
{
    struct request *r;

    if (tc->next || !tc->tick_loaded || !tchan_due(tc))
        return;
    r = request_new(tc);
    r->alone = TAILQ_EMPTY(&tc->flying) || !tchan_window(tc);
    if (tc->hub->portable) {
        portable_take_items(tc, r);
    } else {
        request_take_items(tc, r);
        request_add_tick(tc, r);
    }
    if (TAILQ_EMPTY(&r->items) && !r->tick) {
        request_free(r); /* the first item waits for its collection's check */
        return;
    }
    tc->next = r;
    request_note(tc, r);
}

/* ---- sending and answers ---------------------------------------------------------------------- */

static void tchan_notify(struct tchan *tc)
{
    struct link *l, *tmp;

    for (l = LIST_FIRST(&tc->links); l; l = tmp) {
        tmp = LIST_NEXT(l, of_tchan);
        stream_kick(l->stream);
    }
}

static void range_confirm(struct req_range *rg, const char *target_pos)
{
    struct link *l = rg->link;

    if (wal_pos_cmp(rg->ack, l->done) > 0)
        l->done = rg->ack;
    if (!wal_pos_is_none(rg->tick_pos)) {
        l->start = rg->tick_start;
        l->start_tt = l->done_tt = rg->tick_tt;
        l->m_write_tt->value = (double)tt_to_ms(rg->tick_tt);
        link_count(l, true, 2, TICK_BYTES);
        if (l->tchan->hub->portable)
            l->tchan->tick_sent = rg->tick_tt; /* all before it is there: what a drop or an operation waits for */
    }
    if (rg->has_rows && wal_pos_cmp(rg->op, l->op) > 0) {
        l->op = rg->op;
        l->op_tt = rg->op_tt;
    }
    if (target_pos && *target_pos && rg->has_rows)
        set_text(&l->target_pos, target_pos);
    l->moved_ms = clock_mono_ms();
    l->ticked = true;
    l->dirty |= rg->has_rows;
}

/* Is what it carries for the link confirmed with it? */
static bool request_confirms(const struct request *r, const struct link *l)
{
    for (size_t i = 0; i < r->n_ranges; i++)
        if (r->ranges[i].link == l)
            return !r->ranges[i].voided;
    return false;
}

static void request_confirmed(struct request *r)
{
    struct tchan *tc = r->tchan;
    struct item *it;

    tc->hub->confirmed++;
    tc->backoff.cur_ms = 0;
    refused_recover(tc);
    set_text(&tc->trouble, NULL);
    if (r->tick) {
        tc->tick_sent = max_tt(tc->tick_sent, r->tick);
        tc->m_tick->value = (double)tt_to_ms(tc->tick_sent);
    }
    tc->tick_ready = max_tt(tc->tick_ready, r->promise);
    for (size_t i = 0; i < r->n_ranges; i++) {
        if (!r->ranges[i].link)
            continue;
        if (!r->ranges[i].voided)
            range_confirm(&r->ranges[i], r->target_pos);
        task_count_request(r->ranges[i].link->stream->task, tc->hub->confirmed, r);
    }
    TAILQ_FOREACH(it, &r->items, entry)
        if (it->kind == ITEM_DROP && it->link && request_confirms(r, it->link))
            coll_on_drop_confirmed(it->coll, it);
}

/* After a confirmation: drops and operations may have waited for this tick, tasks for the end of the flight. */
static void tchan_progress(struct tchan *tc)
{
    struct link *l, *tmp;
    struct repl_task *last = NULL;

    for (l = LIST_FIRST(&tc->links); l; l = tmp) {
        tmp = LIST_NEXT(l, of_tchan);
        if (l->stream->task == last)
            continue;
        last = l->stream->task;
        task_on_progress(last);
    }
}

static void fail_streams(struct request *r)
{
    for (size_t i = 0; i < r->n_ranges; i++)
        if (r->ranges[i].link)
            stream_reset(r->ranges[i].link->stream);
}

static void tchan_discard_next(struct tchan *tc)
{
    struct request *r = tc->next;

    if (!r)
        return;
    tc->next = NULL;
    tc->tick_built = tick_floor(tc);
    tick_out_again(tc);
    fail_streams(r);
    request_retire(r);
}

void tchan_discard_next_with(struct tchan *tc, const struct link *l)
{
    if (request_has(tc->next, l))
        tchan_discard_next(tc);
}

static bool request_carries(const struct request *r, const struct coll *c)
{
    const struct item *it;

    if (r)
        TAILQ_FOREACH(it, &r->items, entry)
            if (it->coll == c)
                return true;
    return false;
}

bool tchan_carries(const struct tchan *tc, const struct coll *c)
{
    const struct request *r;

    TAILQ_FOREACH(r, &tc->flying, entry)
        if (request_carries(r, c))
            return true;
    return request_carries(tc->next, c);
}

bool tchan_flying_with(const struct tchan *tc, const struct link *l)
{
    const struct request *r;

    TAILQ_FOREACH(r, &tc->flying, entry)
        if (request_has(r, l))
            return true;
    return false;
}

/* What was sent behind a failed request does not confirm its links, nor the tick that it promised. */
static void void_followers(struct request *failed)
{
    for (struct request *r = TAILQ_NEXT(failed, entry); r; r = TAILQ_NEXT(r, entry)) {
        r->promise = 0;
        for (size_t i = 0; i < r->n_ranges; i++)
            if (r->ranges[i].link && request_has(failed, r->ranges[i].link))
                r->ranges[i].voided = true;
    }
}

static bool followers_have(const struct request *r, const struct link *l)
{
    while ((r = TAILQ_NEXT(r, entry)))
        if (request_has(r, l))
            return true;
    return false;
}

/* The target has certainly nothing of it. */
static void request_unsent(struct tchan *tc, struct request *r)
{
    for (size_t i = 0; i < r->n_ranges; i++) {
        struct link *l = r->ranges[i].link;
        if (l && !followers_have(r, l))
            l->maybe = r->ranges[i].maybe_before;
    }
    if (tc->tick_maybe == r->tick)
        tc->tick_maybe = r->maybe_before;
}

static struct request *last_waiting(const struct tchan *tc, const struct link *l)
{
    struct request *r;

    TAILQ_FOREACH_REVERSE(r, &tc->flying, request_list, entry)
        if (r->waiting && request_has(r, l))
            return r;
    return NULL;
}

void tchan_drop_waiting(struct tchan *tc, const struct link *l)
{
    struct request *r;

    while ((r = last_waiting(tc, l))) {
        request_unsent(tc, r);
        void_followers(r);
        flight_remove(tc, r);
        fail_streams(r); /* of other links in it */
        request_free(r);
    }
}

/* A failed request: what it carried is read again; with doubt it will be repaired. */
static void request_failed(struct tchan *tc, struct request *r, const struct err *err, bool doubt)
{
    struct item *it;

    set_text(&tc->trouble, err->text);
    log_warn("repl", "a request to the target failed", KS("channel", tc->name), KS("error", err->text),
             KI("in_doubt", doubt));
    TAILQ_FOREACH(it, &r->items, entry)
        if (it->coll)
            coll_unverify(it->coll);
    if (!doubt)
        request_unsent(tc, r);
    void_followers(r);
    flight_remove(tc, r);
    tc->tick_built = tick_floor(tc);
    tick_out_again(tc);
    tc->row_built = 0;
    fail_streams(r);
    tchan_discard_next(tc);
}

/* A human must look: the request was refused for good, or again and again without a reason that we know. */
static void request_give_up(struct request *r, const struct err *cause)
{
    struct err err = *cause;

    if (err.cls == ERRC_RETRY) {
        err.cls = ERRC_DATA;
        err_wrap(&err, "refused %d times, channel %s", MAX_REFUSALS, r->tchan->name);
    }
    for (size_t i = 0; i < r->n_ranges; i++)
        if (r->ranges[i].link)
            task_fatal(r->ranges[i].link->stream->task, &err);
}

/* Uses the answers as far as every request before has its own. */
static void confirm_answered(struct tchan *tc)
{
    struct request *r;

    while ((r = TAILQ_FIRST(&tc->flying)) && r->answered) {
        flight_remove(tc, r);
        request_confirmed(r);
        request_free(r);
    }
}

/* After an answer. */
static void go_on(struct tchan *tc)
{
    confirm_answered(tc);
    tchan_progress(tc);
    tchan_notify(tc);
    tchan_kick(tc);
}

static void fail_and_wait(struct tchan *tc, struct request *r, const struct err *err, bool doubt)
{
    uint64_t wait;

    request_failed(tc, r, err, doubt);
    if (err->cls != ERRC_RETRY || (err->code == ERR_INTERNAL && ++tc->refusals >= MAX_REFUSALS))
        request_give_up(r, err);
    request_free(r);
    wait = backoff_next_ms(&tc->backoff);
    timer_set(&tc->retry_timer, doubt && wait < QUARANTINE_MS ? QUARANTINE_MS : wait);
}

/* One whose stream stops, or reads again once nothing of it is in flight. */
static const struct link *leaving_link(const struct request *r)
{
    for (size_t i = 0; i < r->n_ranges; i++) {
        const struct link *l = r->ranges[i].link;
        if (l && (l->stream->state == STREAM_CLOSED || l->stream->state == STREAM_RESETTING))
            return l;
    }
    return NULL;
}

static void on_answer(void *arg, const struct err *err, bool doubt, const char *target_pos)
{
    struct request *r = arg;
    struct tchan *tc = r->tchan;
    const struct link *l;

    r->call = NULL;
    if (!err || err->code != ERR_INTERNAL)
        tc->refusals = 0;
    if (err && !doubt && refused_hold(r, err)) {
        l = leaving_link(r);
        if (l)
            tchan_drop_waiting(tc, l); /* r too: nobody would send it */
        go_on(tc);
        return;
    }
    if (err) {
        fail_and_wait(tc, r, err, doubt);
    } else {
        uint64_t now = clock_mono_us();
        r->answered = true;
        set_text(&r->target_pos, target_pos);
        if (tc->pace_gen == tc->hub->sink->ops->generation(tc->hub->sink))
            pace_answer(&tc->pace, now, now - r->sent_us, r->bytes);
    }
    go_on(tc);
}

static bool may_send(struct tchan *tc, const struct request *r)
{
    if (!r || r->commits_open || r->failed || timer_armed(&tc->retry_timer))
        return false;
    if (tc->hub->portable)
        return portable_may_send(tc, r);
    return TAILQ_EMPTY(&tc->flying) || (!r->alone && tc->flying_bytes + r->bytes <= tchan_window(tc));
}

/* From now on the target may have it. */
static void request_depart(struct tchan *tc, struct request *r)
{
    tc->next = NULL;
    TAILQ_INSERT_TAIL(&tc->flying, r, entry);
    tc->flying_bytes += r->bytes;
    r->sent_us = clock_mono_us();
    r->maybe_before = tc->tick_maybe;
    tc->tick_maybe = max_tt(tc->tick_maybe, r->tick);
    for (size_t i = 0; i < r->n_ranges; i++) {
        struct link *l = r->ranges[i].link;
        if (!l)
            continue;
        r->ranges[i].maybe_before = l->maybe;
        l->sent_tt = max_tt(l->sent_tt, r->ranges[i].max_tt);
        if (wal_pos_cmp(r->ranges[i].doubt, l->maybe) > 0)
            l->maybe = r->ranges[i].doubt;
    }
}

static void tchan_send(struct tchan *tc)
{
    struct request *r = tc->next;
    struct sink *s = tc->hub->sink;

    if (!refused_send(tc, on_answer) || !may_send(tc, r))
        return;
    request_depart(tc, r);
    if (r->bytes && tc->hub->portable) {
        r->waiting = true;
        refused_fit(tc);
        (void)refused_send(tc, on_answer); /* the rest follows the answers */
    } else if (r->bytes) {
        r->call = s->ops->replicate(s, tc->name, r->begin_tt ? r->begin_tt : r->end_tt, r->end_tt, r->msgs, on_answer, r);
    } else {
        r->answered = true; /* nothing for the target (rows of a dropped collection): done */
        timer_set(&tc->skip_timer, 0);
    }
}

static void tchan_load(struct tchan *tc);

static void on_skip(void *arg)
{
    go_on(arg);
}

static void on_timer(void *arg)
{
    struct tchan *tc = arg;

    tc->low_links = 0;
    tc->resting = false;
    tchan_kick(tc);
}

/* Nothing but ticks that are not due: the timer goes on. */
bool tchan_rests(const struct tchan *tc)
{
    return tc->resting && !tc->rows_queued && !tc->row_built;
}

void tchan_kick(struct tchan *tc)
{
    if (tc->closing)
        return;
    tchan_load(tc);
    tchan_build(tc);
    tchan_send(tc);
    tchan_build(tc);
}

/* ---- life ------------------------------------------------------------------------------------- */

struct tchan *tchan_new(struct repl_hub *h, const char *name)
{
    struct tchan *tc = xcalloc(1, sizeof(*tc));

    tc->hub = h;
    tc->name = xstrdup(name);
    TAILQ_INIT(&tc->queue);
    LIST_INIT(&tc->links);
    TAILQ_INIT(&tc->flying);
    tc->backoff = h->retry;
    tc->batch_bytes = h->batch_bytes;
    tc->most_bytes = SIZE_MAX;
    tc->tick_loaded = h->portable; /* no ticks of ours */
    tc->m_window = metric_get(METRIC_GAUGE, "milvus_cdc_target_window_bytes",
                              "bytes that may be under way to a far target, 0: one request at a time",
                              METRIC_LABELS({"channel_name", tc->name}));
    tc->m_tick = metric_get(METRIC_GAUGE, "milvus_cdc_center_tt", "last time tick sent, ms since 1970",
                            METRIC_LABELS({"channel_name", tc->name}));
    timer_init(&tc->tick_timer, h->loop, LOOP_PRIO_NORMAL, on_timer, tc);
    timer_init(&tc->retry_timer, h->loop, LOOP_PRIO_NORMAL, on_timer, tc);
    timer_init(&tc->skip_timer, h->loop, LOOP_PRIO_NORMAL, on_skip, tc);
    return tc;
}

void tchan_free(struct tchan *tc)
{
    struct request *r;

    assert(LIST_EMPTY(&tc->links));
    tc->closing = true;
    if (tc->load_store)
        tc->load_store->ops->cancel(tc->load_store, tc);
    while ((r = TAILQ_FIRST(&tc->flying))) {
        tc->hub->sink->ops->cancel(r->call);
        flight_remove(tc, r);
        request_retire(r);
    }
    if (tc->next)
        request_retire(tc->next);
    timer_release(&tc->tick_timer);
    timer_release(&tc->retry_timer);
    timer_release(&tc->skip_timer);
    free(tc->trouble);
    free(tc->keep_task);
    free(tc->name);
    free(tc);
}

static void on_tick_loaded(void *arg, const struct err *err, uint64_t tt)
{
    struct tchan *tc = arg;
    struct link *l, *tmp;

    tc->load_store = NULL;
    if (err) {
        set_text(&tc->trouble, err->text);
        timer_set(&tc->tick_timer, backoff_next_ms(&tc->backoff));
        return;
    }
    tc->tick_loaded = true;
    /* the bound may be ahead of what was really sent: nobody may take it for that (tick_sent) */
    tc->tick_built = tc->tick_maybe = tc->tick_ready = tc->tick_out = tt;
    tc->backoff.cur_ms = 0;
    for (l = LIST_FIRST(&tc->links); l; l = tmp) {
        tmp = LIST_NEXT(l, of_tchan);
        stream_kick(l->stream);
    }
    tchan_kick(tc);
}

/* Asks for the tick that the channel has seen, through the store of whoever uses the channel. */
static void tchan_load(struct tchan *tc)
{
    struct store *s = tc->keep_store;

    if (tc->tick_loaded || tc->load_store)
        return;
    if (!LIST_EMPTY(&tc->links))
        s = LIST_FIRST(&tc->links)->stream->task->o.store;
    if (!s)
        return;
    tc->load_store = s;
    s->ops->load_tick(s, tc->hub->key, tc->name, on_tick_loaded, tc);
}

void tchan_attach(struct tchan *tc, struct link *l)
{
    LIST_INSERT_HEAD(&tc->links, l, of_tchan);
    tchan_load(tc);
}

void tchan_quarantine(struct tchan *tc)
{
    timer_set(&tc->retry_timer, QUARANTINE_MS);
}

void tchan_hold_ticks(struct tchan *tc)
{
    tc->quiet_ms = clock_mono_ms() + QUARANTINE_MS;
}

/* A store may go away with its task: nothing may wait for its answers. What was asked is asked through another one. */
static void tchan_forget_store(struct tchan *tc, struct store *s)
{
    if (request_noted_in(tc->next, s) && tc->next->commits_open)
        tchan_discard_next(tc);
    if (tc->load_store != s)
        return;
    s->ops->cancel(s, tc);
    tc->load_store = NULL;
}

void tchan_detach(struct tchan *tc, struct link *l)
{
    struct request *r;

    tchan_discard_next_with(tc, l);
    tchan_drop_waiting(tc, l);
    tchan_forget_store(tc, l->stream->task->o.store);
    tchan_unqueue(tc, l);
    TAILQ_FOREACH(r, &tc->flying, entry)
        request_forget(r, l);
    if (tc->bound_by == l->stream->task)
        tc->bound_by = NULL;
    LIST_REMOVE(l, of_tchan);
    tchan_load(tc);
    timer_set(&tc->tick_timer, 0); /* the minimum may have risen */
}

void tchan_keep(struct tchan *tc, struct store *store, const char *task_id)
{
    set_text(&tc->keep_task, task_id);
    tc->keep_store = store;
    tchan_load(tc);
    tchan_kick(tc);
}

void tchan_keep_stop(struct tchan *tc, const char *task_id)
{
    if (!tc->keep_task || strcmp(tc->keep_task, task_id) != 0)
        return;
    set_text(&tc->keep_task, NULL);
    tchan_forget_store(tc, tc->keep_store);
    tc->keep_store = NULL;
}
