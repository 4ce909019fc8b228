/*
 * stream.c - one physical channel of the source as one task reads it: each message to the link it belongs to.
 *
 * A message is never skipped because something is not known yet: the stream stalls in front of it until the
 * collection or partition is mapped, or until etcd has proved that it is nobody's (source.md section 11, 6 to 8).
 */
#include "repl/priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#define TURN_MSGS 256 /* handled in one go */

enum verdict { HANDLED, STALL };

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up);
static void on_trouble(void *arg, const struct err *err);
static void on_drain_timer(void *arg);

static void on_reset_timer(void *arg)
{
    struct stream *s = arg;
    struct link *l;

    LIST_FOREACH(l, &s->links, of_stream)
        if (tchan_flying_with(l->tchan, l))
            return; /* its answer kicks us */
    LIST_FOREACH(l, &s->links, of_stream)
        link_restart(l);
    s->state = STREAM_IDLE;
    stream_open(s);
    task_kick_waiting(s->task); /* drops that we make wait for the end of the reset */
}

static struct stream *stream_new(struct repl_task *t, const char *channel)
{
    struct stream *s = xcalloc(1, sizeof(*s));

    s->task = t;
    s->channel = xstrdup(channel);
    s->tick_ms = s->resumed_ms = clock_mono_ms();
    LIST_INIT(&s->links);
    STAILQ_INIT(&s->pending);
    s->backoff = (struct backoff)BACKOFF_INIT(50, 5000);
    timer_init(&s->reset_timer, t->loop, LOOP_PRIO_NORMAL, on_reset_timer, s);
    timer_init(&s->drain_timer, t->loop, LOOP_PRIO_LOW, on_drain_timer, s);
    HASH_ADD_KEYPTR(hh, t->streams, s->channel, strlen(s->channel), s);
    return s;
}

struct stream *task_stream(struct repl_task *t, const char *channel)
{
    struct stream *s;

    HASH_FIND_STR(t->streams, channel, s);
    return s ? s : stream_new(t, channel);
}

static void pending_clear(struct stream *s)
{
    struct pending *p;

    while ((p = STAILQ_FIRST(&s->pending))) {
        STAILQ_REMOVE_HEAD(&s->pending, entry);
        s->task->o.budget->used -= p->msg.len;
        task_release(s->task, p->msg.len);
        buf_unref(p->msg.buf);
        free(p);
    }
}

void stream_close_reader(struct stream *s)
{
    if (s->reader)
        s->task->o.wal->ops->close(s->reader);
    s->reader = NULL;
    pending_clear(s);
    timer_cancel(&s->drain_timer);
}

void stream_free(struct stream *s)
{
    struct link *l;

    stream_close_reader(s);
    while ((l = LIST_FIRST(&s->links)))
        link_free(l);
    timer_release(&s->reset_timer);
    timer_release(&s->drain_timer);
    HASH_DEL(s->task->streams, s);
    free(s->trouble);
    free(s->channel);
    free(s);
}

struct link *stream_link(struct stream *s, const char *dst_channel)
{
    struct link *l;
    struct repl_ckpt ck;
    bool stored;

    LIST_FOREACH(l, &s->links, of_stream)
        if (strcmp(l->tchan->name, dst_channel) == 0)
            return l;
    stored = task_take_ckpt(s->task, s->channel, dst_channel, &ck);
    l = link_new(s, hub_tchan(s->task->o.hub, dst_channel), stored ? &ck : NULL);
    if (stored)
        ckpt_release(&ck);
    return l;
}

/* ---- where to read from --------------------------------------------------------------------------- */

static void lower(struct wal_pos *min, bool *have, struct wal_pos pos)
{
    if (!*have || wal_pos_cmp(pos, *min) < 0)
        *min = pos;
    *have = true;
}

/* The lowest place that a link, a stored checkpoint or a shard without a link needs. */
bool stream_begin(const struct stream *s, struct wal_pos *ret)
{
    const struct repl_task *t = s->task;
    const struct link *l;
    const struct coll *c;
    bool have = false;

    LIST_FOREACH(l, &s->links, of_stream)
        lower(ret, &have, l->start);
    for (size_t i = 0; i < t->n_loaded; i++)
        if (strcmp(t->loaded[i].src_channel, s->channel) == 0)
            lower(ret, &have, t->loaded[i].start);
    for (c = t->colls; c; c = c->hh.next)
        for (size_t i = 0; i < c->n_shards; i++)
            if (c->shards[i].stream == s && !c->shards[i].link && !c->shards[i].linked_before)
                lower(ret, &have, c->shards[i].from);
    return have;
}

void stream_open(struct stream *s)
{
    struct repl_task *t = s->task;
    struct wal_start start = {0};
    const struct link *l;
    bool handled = true;

    if (s->state != STREAM_IDLE || t->state != RUN_RUNNING || t->fatal || !stream_begin(s, &start.pos))
        return;
    start.earliest = s->from_earliest || wal_pos_is_none(start.pos);
    s->begin = start.pos;
    if (!s->opened)
        s->first_begin = s->begin;
    s->opened = true;
    s->read = wal_pos_before(start.pos);
    s->tick_pos = WAL_POS_NONE;
    s->tick_tt = 0;
    LIST_FOREACH(l, &s->links, of_stream)
        if (wal_pos_cmp(l->start, start.pos) == 0 && l->start_tt) {
            s->tick_pos = l->start;
            s->tick_tt = l->start_tt;
            handled &= wal_pos_cmp(l->done, l->start) == 0; /* a tick, and nothing behind it */
        }
    handled &= s->tick_tt != 0;
    start.handled = handled;
    s->state = STREAM_OPEN;
    if (t->o.wal->ops->retain)
        t->o.wal->ops->retain(t->o.wal, t->o.id, s->channel, start.earliest ? WAL_POS_NONE : start.pos);
    s->reader_paused = false;
    log_debug("repl", "stream opens", KS("task", t->o.id), KS("channel", s->channel), KU("pos", start.pos.minor));
    s->reader = t->o.wal->ops->open(
        t->o.wal, s->channel, &start,
        &(struct wal_reader_cbs){.on_batch = on_batch, .on_trouble = on_trouble}, s);
}

void stream_leave(struct stream *s)
{
    if (!LIST_EMPTY(&s->links))
        return;
    stream_close_reader(s);
    timer_cancel(&s->reset_timer);
    s->state = STREAM_IDLE;
    s->opened = s->from_earliest = false;
    if (s->task->state == RUN_RUNNING && s->task->o.wal->ops->forget) /* a task that stops needs it again */
        s->task->o.wal->ops->forget(s->task->o.wal, s->task->o.id, s->channel, NULL, NULL);
}

void stream_note_keep(struct stream *s)
{
    if (!stream_begin(s, &s->keep))
        s->keep = WAL_POS_NONE;
}

void stream_retain(struct stream *s)
{
    if (s->reader && !wal_pos_is_none(s->keep))
        s->task->o.wal->ops->retain(s->task->o.wal, s->task->o.id, s->channel, s->keep);
}

void stream_reset(struct stream *s)
{
    struct link *l;
    struct coll *c;

    if (s->state == STREAM_RESETTING || s->state == STREAM_CLOSED)
        return;
    s->state = STREAM_RESETTING;
    stream_close_reader(s);
    LIST_FOREACH(l, &s->links, of_stream)
        link_reset(l);
    LIST_FOREACH(l, &s->links, of_stream) {
        tchan_discard_next_with(l->tchan, l);
        tchan_drop_waiting(l->tchan, l);
    }
    for (c = s->task->colls; c; c = c->hh.next)
        coll_stream_reset(c, s);
    timer_set(&s->reset_timer, backoff_next_ms(&s->backoff));
}

/* ---- messages ------------------------------------------------------------------------------------- */

static int data_error(struct stream *s, struct wal_pos pos, const struct err *cause)
{
    struct err err = *cause;

    err_wrap(&err, "channel %s, message at %llu.%llu", s->channel, (unsigned long long)pos.major,
             (unsigned long long)pos.minor);
    task_fatal(s->task, &err);
    return STALL;
}

static int data_error_text(struct stream *s, struct wal_pos pos, const char *text)
{
    struct err err;

    err_set(&err, ERR_UNSUPPORTED, ERRC_DATA, "%s", text);
    return data_error(s, pos, &err);
}

/* The shard number at the end of a vchannel's name ("..._445v1"), or -1. */
static long shard_of(const struct msg_head *h)
{
    char text[12];
    size_t n = h->shard_name_len, k = n;

    while (k > 0 && h->shard_name[k - 1] >= '0' && h->shard_name[k - 1] <= '9')
        k--;
    if (k == 0 || k == n || n - k > 9 || h->shard_name[k - 1] != 'v')
        return -1;
    memcpy(text, h->shard_name + k, n - k);
    text[n - k] = '\0';
    return atol(text);
}

static struct shard *find_shard(struct coll *c, const struct msg_head *h, size_t *ret_index)
{
    long i = shard_of(h);

    if (i < 0 || (size_t)i >= c->n_shards)
        return NULL;
    if (strlen(c->shards[i].vchannel) != h->shard_name_len ||
        memcmp(c->shards[i].vchannel, h->shard_name, h->shard_name_len) != 0)
        return NULL;
    *ret_index = (size_t)i;
    return &c->shards[i];
}

/*
 * The task's collection of a message. 1: *ret; 0: nobody's (not selected, or dropped before we could see it);
 * -1: not known yet, stall.
 */
static int find_coll(struct stream *s, int64_t id, struct coll **ret)
{
    struct repl_task *t = s->task;
    const struct src_collection *sc;

    HASH_FIND(hh, t->colls, &id, sizeof(id), *ret);
    if (*ret)
        return (*ret)->state == COLL_GONE ? 0 : 1;
    if (task_ignores(t, id))
        return 0;
    sc = t->o.catalog->ops->get(t->o.catalog, id);
    if (sc)
        task_consider(t, sc); /* joins it or adds it to the ignored ones */
    HASH_FIND(hh, t->colls, &id, sizeof(id), *ret);
    if (*ret)
        return 1;
    if (task_ignores(t, id))
        return 0;
    if (s->asked_for == id && t->sync_round > s->asked_round) {
        task_ignore(t, id); /* etcd did not have it after the message was written */
        return 0;
    }
    if (s->asked_for != id) {
        s->asked_for = id;
        s->asked_round = t->sync_round + (t->syncing ? 1 : 0); /* a sync under way may have begun too early */
    }
    task_sync(t);
    return -1;
}

static bool before_join(const struct shard *sh, const struct wal_msg *m, const struct msg_head *h)
{
    return wal_pos_cmp(m->pos, sh->join) < 0 || (sh->skip_tt && h->max_tt <= sh->skip_tt);
}

static struct item *item_of(const struct wal_msg *m, const struct msg_head *h, enum item_kind kind, struct coll *c,
                            size_t shard)
{
    struct item *it = item_new(kind, c->shards[shard].link);

    it->coll = coll_ref(c);
    it->shard = shard;
    it->head = *h;
    it->buf = buf_ref(m->buf);
    it->data = m->data;
    it->len = m->len;
    it->pos = m->pos;
    it->tt = h->min_tt;
    item_charge(it, m->len);
    return it;
}

/* Its messages have nowhere to go yet. */
static bool must_wait(const struct coll *c, const struct shard *sh)
{
    return !sh->link || !sh->link->tchan->tick_loaded || c->state == COLL_MAPPING || c->state == COLL_COPYING ||
           c->state == COLL_NEW;
}

static enum verdict on_rows(struct stream *s, const struct wal_msg *m, const struct msg_head *h)
{
    struct coll *c;
    struct shard *sh;
    size_t i;
    int found = find_coll(s, h->collection_id, &c), part = 1;
    int64_t dst_part = -1;

    if (found <= 0)
        return found < 0 ? STALL : HANDLED;
    sh = find_shard(c, h, &i);
    if (!sh || sh->stream != s)
        return data_error_text(s, m->pos, "the message's virtual channel is not one of its collection");
    if (before_join(sh, m, h) || sh->drop != SHARD_ALIVE)
        return HANDLED;
    if (sh->link && link_has(sh->link, m->pos, h->max_tt))
        return HANDLED;
    if (must_wait(c, sh))
        return STALL;
    if (h->partition_id != -1)
        part = coll_partition(c, h->partition_id, i, &dst_part);
    if (part <= 0)
        return part < 0 ? HANDLED : STALL;
    struct item *it = item_of(m, h, ITEM_ROWS, c, i);
    it->dst_partition = dst_part;
    link_add(sh->link, it);
    return HANDLED;
}

/* DropCollection, DropPartition: one message for the channel, valid for each of the collection's shards on it. */
static enum verdict on_drop(struct stream *s, const struct wal_msg *m, const struct msg_head *h)
{
    struct coll *c;
    int found = find_coll(s, h->collection_id, &c);

    if (found <= 0)
        return found < 0 ? STALL : HANDLED;
    for (size_t i = 0; i < c->n_shards; i++) {
        struct shard *sh = &c->shards[i];
        if (sh->stream != s || sh->drop != SHARD_ALIVE || before_join(sh, m, h))
            continue;
        if (sh->link && link_has(sh->link, m->pos, h->max_tt) && h->type == MSG_DROP_PARTITION)
            continue;
        if (must_wait(c, sh))
            return STALL;
        if (h->type == MSG_DROP_PARTITION && !coll_part_drop(c, h->partition_id, i, h->base_tt))
            continue;
        if (h->type == MSG_DROP_COLLECTION)
            coll_shard_drop(c, i, h->base_tt);
        struct item *it = item_of(m, h, ITEM_DROP, c, i);
        if (h->type == MSG_DROP_PARTITION)
            it->dst_partition = coll_part(c, h->partition_id)->dst_id;
        link_add(sh->link, it);
    }
    return HANDLED;
}

static enum verdict on_import(struct stream *s, const struct wal_msg *m, const struct msg_head *h)
{
    struct coll *c;
    int found = find_coll(s, h->collection_id, &c);

    if (found <= 0)
        return found < 0 ? STALL : HANDLED;
    return data_error_text(s, m->pos, "a bulk import cannot be replicated: its files are in the source's storage. "
                                      "Import them on the target too, then create the task anew");
}

static void on_tick(struct stream *s, const struct wal_msg *m, const struct msg_head *h)
{
    uint64_t now_ms = clock_mono_ms();
    struct link *l;

    if (now_ms - s->tick_ms > STALL_MS)
        s->resumed_ms = now_ms;
    s->tick_ms = now_ms;
    if (h->base_tt >= s->tick_tt) {
        s->tick_tt = h->base_tt;
        s->tick_pos = m->pos;
    }
    LIST_FOREACH(l, &s->links, of_stream)
        link_on_tick(l, m->pos, h->base_tt);
}

static enum verdict dispatch(struct stream *s, const struct wal_msg *m)
{
    struct msg_head h;
    struct err err;
    char text[80];

    if (msg_scan(m->data, m->len, &h, &err))
        return data_error(s, m->pos, &err);
    switch (h.type) {
    case MSG_TIME_TICK:
        on_tick(s, m, &h);
        return HANDLED;
    case MSG_INSERT:
    case MSG_DELETE:
        return on_rows(s, m, &h);
    case MSG_DROP_COLLECTION:
    case MSG_DROP_PARTITION:
        return on_drop(s, m, &h);
    case MSG_IMPORT:
        return on_import(s, m, &h);
    case MSG_CREATE_COLLECTION: /* etcd tells, with the whole schema */
    case MSG_CREATE_PARTITION:
    case MSG_REPLICATE:
        return HANDLED;
    default:
        snprintf(text, sizeof(text), "message type %d is not known to this version", h.type);
        return data_error_text(s, m->pos, text);
    }
}

/* ---- flow ------------------------------------------------------------------------------------------ */

/* Memory is bounded by not reading. Only what can drain may pause a stream: a held window needs its tick. */
static bool stream_full(const struct stream *s)
{
    const struct link *l;

    if (!s->task->held)
        return false; /* an idle task has nothing but ticks */
    LIST_FOREACH(l, &s->links, of_stream) {
        if (!l->queued_bytes)
            continue;
        if (l->tchan->queue_bytes >= l->tchan->hub->channel_bytes || task_over_budget(s->task))
            return true;
    }
    return false;
}

static void stream_set_paused(struct stream *s, bool pause)
{
    if (!s->reader || s->reader_paused == pause)
        return;
    s->reader_paused = pause;
    if (pause)
        s->task->o.wal->ops->pause(s->reader);
    else
        s->task->o.wal->ops->resume(s->reader);
}

/* Handles pending messages, a bounded number a turn so that the control API is never starved. */
static void stream_drain(struct stream *s)
{
    struct pending *p;
    unsigned budget = TURN_MSGS;

    if (s->draining)
        return;
    s->draining = true;
    while (s->state == STREAM_OPEN && !s->task->fatal && (p = STAILQ_FIRST(&s->pending))) {
        if (stream_full(s) || budget-- == 0)
            break;
        if (dispatch(s, &p->msg) == STALL) {
            if (s->state == STREAM_OPEN)
                s->state = STREAM_STALLED;
            break;
        }
        if (s->state != STREAM_OPEN || STAILQ_FIRST(&s->pending) != p)
            break; /* reset from inside */
        s->read = p->msg.pos;
        STAILQ_REMOVE_HEAD(&s->pending, entry);
        s->task->o.budget->used -= p->msg.len;
        task_release(s->task, p->msg.len);
        buf_unref(p->msg.buf);
        free(p);
    }
    s->draining = false;
    if (s->state == STREAM_OPEN && !STAILQ_EMPTY(&s->pending) && !stream_full(s))
        timer_set(&s->drain_timer, 0);
    stream_set_paused(s, s->state == STREAM_STALLED || !STAILQ_EMPTY(&s->pending) || stream_full(s));
}

/*
 * Handles messages as they come, as long as nothing waits before them: most are ticks. Returns the number of those that
 * are done with: all, when the stream does not read any more.
 */
static size_t stream_pass(struct stream *s, const struct wal_msg *msgs, size_t n)
{
    size_t i = 0;

    if (s->draining || !STAILQ_EMPTY(&s->pending))
        return 0;
    s->draining = true;
    while (i < n && i < TURN_MSGS && s->state == STREAM_OPEN && !s->task->fatal && !stream_full(s)) {
        enum verdict v = dispatch(s, &msgs[i]);

        if (v == STALL && s->state == STREAM_OPEN)
            s->state = STREAM_STALLED;
        if (v == STALL || s->state != STREAM_OPEN)
            break;
        s->read = msgs[i++].pos;
    }
    s->draining = false;
    return s->state == STREAM_OPEN || s->state == STREAM_STALLED ? i : n;
}

void stream_kick(struct stream *s)
{
    if (s->state == STREAM_RESETTING && !timer_armed(&s->reset_timer))
        timer_set(&s->reset_timer, 0);
    if (s->state == STREAM_STALLED)
        s->state = STREAM_OPEN;
    if (s->state == STREAM_OPEN && (s->reader_paused || !STAILQ_EMPTY(&s->pending)))
        timer_set(&s->drain_timer, 0);
}

static void on_drain_timer(void *arg)
{
    stream_drain(arg);
}

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct stream *s = arg;

    (void)caught_up;
    for (size_t i = stream_pass(s, msgs, n); i < n; i++) {
        struct pending *p = xmalloc(sizeof(*p));
        p->msg = msgs[i];
        buf_ref(p->msg.buf);
        s->task->o.budget->used += p->msg.len;
        task_hold(s->task, p->msg.len);
        STAILQ_INSERT_TAIL(&s->pending, p, entry);
    }
    s->backoff.cur_ms = 0;
    set_text(&s->trouble, NULL);
    stream_drain(s);
}

/* The user resumed the task with accept_gap: go on with the first message that exists. Later losses are told anew. */
static bool accept_gap(struct stream *s, const struct err *err)
{
    struct coll *c, *tmp;

    if (err->cls != ERRC_LOST || !s->task->o.accept_gap || s->from_earliest ||
        wal_pos_cmp(s->begin, s->first_begin) != 0)
        return false;
    log_warn("repl", "messages are missing, which was accepted", KS("task", s->task->o.id), KS("channel", s->channel),
             KS("gap", err->text));
    set_text(&s->trouble, NULL);
    stream_close_reader(s);
    s->state = STREAM_IDLE;
    s->from_earliest = true;
    stream_open(s);
    HASH_ITER(hh, s->task->colls, c, tmp)
        coll_on_gap(c);
    return true;
}

static void on_trouble(void *arg, const struct err *err)
{
    struct stream *s = arg;
    struct err e;

    if (err && accept_gap(s, err))
        return;
    set_text(&s->trouble, err ? err->text : NULL);
    if (!err)
        return;
    if (err->cls == ERRC_RETRY) {
        log_warn("repl", "reading has trouble", KS("task", s->task->o.id), KS("channel", s->channel),
                 KS("error", err->text));
        return;
    }
    e = *err;
    err_wrap(&e, "channel %s", s->channel);
    task_fatal(s->task, &e);
}
