/*
 * ops.c - the replicate channel: operations that users made on the source (indexes, load, flush, databases). Indexes and
 * load states only for a standby; see meta.c.
 *
 * One after another, in the order of the log.  An operation waits until the data before it is on the target: every
 * channel of its collection must have been given a tick at or above the operation's time. It is skipped when its
 * collection is not the task's, or is dropped already. The position is stored when it is done and before the
 * next one begins, so a crash repeats at most the last one, which is harmless ("exists already" is done).
 */
#include "repl/priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"

/* A refusal may come from an order that we cannot see (an index of a collection that is just being loaded ...): try
 * some times before a human is asked. */
#define MAX_REFUSALS 20

struct ops {
    struct repl_task *task;
    struct wal_reader *reader;
    struct wal_pos start;
    bool dirty, paused, stepping;
    bool from_earliest;    /* the gap before the first message was accepted */
    bool storing;          /* the position behind the last operation is on the way to disk */
    bool applied;          /* the operation at the head did something on the target */
    struct wal_pos done;
    uint64_t done_tt;
    struct pending_list pending;
    size_t n_pending;
    struct sink_call *call;
    size_t index;          /* of the collection in the operation at the head (Flush has several) */
    unsigned refusals;
    bool asked;
    uint64_t asked_round;
    struct timer retry;
    struct backoff backoff;
    char *trouble;
};

static void on_retry(void *arg)
{
    ops_kick(arg);
}

struct ops *ops_new(struct repl_task *t)
{
    struct ops *o = xcalloc(1, sizeof(*o));

    o->task = t;
    STAILQ_INIT(&o->pending);
    o->backoff = t->o.hub->retry;
    timer_init(&o->retry, t->loop, LOOP_PRIO_NORMAL, on_retry, o);
    return o;
}

static void pop(struct ops *o)
{
    struct pending *p = STAILQ_FIRST(&o->pending);

    STAILQ_REMOVE_HEAD(&o->pending, entry);
    o->n_pending--;
    buf_unref(p->msg.buf);
    free(p);
}

void ops_close_reader(struct ops *o)
{
    if (o->reader)
        o->task->o.wal->ops->close(o->reader);
    o->reader = NULL;
}

void ops_free(struct ops *o)
{
    if (!o)
        return;
    o->task->o.sink->ops->cancel(o->call);
    o->call = NULL;
    o->task->o.store->ops->cancel(o->task->o.store, o);
    ops_close_reader(o);
    while (o->n_pending)
        pop(o);
    timer_release(&o->retry);
    free(o->trouble);
    free(o);
}

/* ---- the operation at the head ---------------------------------------------------------------------- */

static void on_stored(void *arg, const struct err *err)
{
    struct ops *o = arg;

    o->storing = false;
    if (err)
        task_fatal(o->task, err);
    else
        ops_kick(o);
}

/*
 * An operation may be repeated after a crash only as long as none after it was done: an index cannot be dropped again
 * once the collection is loaded again.  So the next one waits until the position is durable.
 */
static void store_position(struct ops *o)
{
    struct store *s = o->task->o.store;
    struct store_batch *b = s->ops->begin(s, o->task->o.id);
    struct repl_ckpt ck;

    ops_fill_ckpt(o, &ck);
    s->ops->put_ckpt(b, &ck);
    o->dirty = false;
    o->storing = true;
    s->ops->commit(b, on_stored, o);
}

static void finished(struct ops *o, const struct msg_head *h)
{
    struct pending *p = STAILQ_FIRST(&o->pending);

    o->done = p->msg.pos;
    if (h && h->base_tt > o->done_tt)
        o->done_tt = h->base_tt;
    o->dirty = true;
    o->index = 0;
    o->refusals = 0;
    o->asked = false;
    o->backoff.cur_ms = 0;
    set_text(&o->trouble, NULL);
    pop(o);
    if (o->applied)
        store_position(o);
    o->applied = false;
}

static void fatal(struct ops *o, const struct err *cause, const char *what)
{
    struct err err = *cause;

    err_wrap(&err, "operation %s of the replicate channel at %llu.%llu", what,
             (unsigned long long)STAILQ_FIRST(&o->pending)->msg.pos.major,
             (unsigned long long)STAILQ_FIRST(&o->pending)->msg.pos.minor);
    task_fatal(o->task, &err);
}

static void on_applied(void *arg, const struct err *err)
{
    struct ops *o = arg;
    struct msg_head h;

    o->call = NULL;
    (void)msg_scan(STAILQ_FIRST(&o->pending)->msg.data, STAILQ_FIRST(&o->pending)->msg.len, &h, NULL);
    if (!err) {
        task_count_call(o->task, msg_type_name(h.type));
        o->applied = true;
        o->index++;
        o->refusals = 0;
        set_text(&o->trouble, NULL);
        ops_kick(o);
        return;
    }
    set_text(&o->trouble, err->text);
    if ((err->cls != ERRC_RETRY || err->code == ERR_INTERNAL) && ++o->refusals >= MAX_REFUSALS) {
        fatal(o, err, msg_type_name(h.type));
        return;
    }
    log_warn("repl", "operation has to wait", KS("task", o->task->o.id), KS("operation", msg_type_name(h.type)),
             KS("error", err->text));
    timer_set(&o->retry, backoff_next_ms(&o->backoff));
}

static struct coll *coll_of_op(struct repl_task *t, const char *db, const char *name, uint64_t tt)
{
    struct coll *c, *best = NULL;

    for (c = t->colls; c; c = c->hh.next)
        if (coll_has_name(c, db, name) && c->create_tt <= tt &&
            (!best || c->create_tt > best->create_tt))
            best = c;
    return best;
}

static bool data_there(const struct coll *c, uint64_t tt)
{
    for (size_t i = 0; i < c->n_shards; i++)
        if (!c->shards[i].link || c->shards[i].link->start_tt < tt || c->shards[i].link->tchan->tick_sent < tt)
            return false;
    return true;
}

enum wait { GO, WAIT, SKIP };

/* On an ordinary target, indexes and load states are made equal to the source's etcd (meta.c). */
static bool is_set_up(int type)
{
    switch (type) {
    case MSG_CREATE_INDEX:
    case MSG_DROP_INDEX:
    case MSG_LOAD_COLLECTION:
    case MSG_RELEASE_COLLECTION:
    case MSG_LOAD_PARTITIONS:
    case MSG_RELEASE_PARTITIONS:
        return true;
    default:
        return false;
    }
}

/* May the operation on that collection run now? */
static enum wait coll_wait(struct ops *o, int type, const char *db, const char *name, uint64_t tt, struct coll **ret)
{
    struct repl_task *t = o->task;
    struct coll *c = coll_of_op(t, db, name, tt);

    *ret = c;
    if (c && (c->src_dropping || c->state == COLL_DROPPING))
        return SKIP;
    if (c && is_set_up(type) && c->task->o.hub->portable)
        return SKIP;
    if (c) /* and what is from before the task, and so before the operation, is set up */
        return c->state == COLL_ACTIVE && !meta_first_open(c) && data_there(c, tt) ? GO : WAIT;
    /* not in the task: either etcd's news has not come yet, or it is dropped */
    if (o->asked && t->sync_round > o->asked_round)
        return SKIP;
    if (!o->asked) {
        o->asked = true;
        o->asked_round = t->sync_round + (t->syncing ? 1 : 0);
    }
    task_sync(t);
    return WAIT;
}

static void apply(struct ops *o, const struct msg_head *h, const char *db, const char *coll)
{
    const struct wal_msg *m = &STAILQ_FIRST(&o->pending)->msg;

    log_info("repl", "operation", KS("task", o->task->o.id), KS("operation", msg_type_name(h->type)), KS("target_db", db),
             KS("target_collection", coll));
    o->call = o->task->o.sink->ops->apply_operation(o->task->o.sink, h->type, m->data, m->len, db, coll, on_applied, o);
}

/* One collection (or database) of the operation at the head. True: go on with the next one. */
static bool step_target(struct ops *o, const struct msg_head *h, const char *db, const char *name)
{
    struct repl_selection *sel = &o->task->o.selection;
    struct repl_match match;
    const char *target_db;
    struct coll *c;

    if (!*name) {
        if (sel->match_db(sel->ctx, db, &target_db))
            apply(o, h, target_db, "");
        else
            o->index++;
        return !o->call;
    }
    if (!sel->match(sel->ctx, db, name, &match) && !coll_of_op(o->task, db, name, h->base_tt)) {
        o->index++;
        return true;
    }
    switch (coll_wait(o, h->type, db, name, h->base_tt, &c)) {
    case GO:
        apply(o, h, c->dst_db, c->dst_name);
        return false;
    case WAIT:
        return false;
    case SKIP:
        break;
    }
    o->index++;
    return true;
}

/* True: the head is finished or moved on. False: it waits. */
static bool step(struct ops *o)
{
    const struct wal_msg *m = &STAILQ_FIRST(&o->pending)->msg;
    struct msg_head h;
    char *db = NULL, *name = NULL;
    struct err err;
    bool more;

    if (wal_pos_cmp(m->pos, o->done) <= 0) {
        pop(o);
        return true;
    }
    if (msg_scan(m->data, m->len, &h, &err)) {
        fatal(o, &err, "(unreadable)");
        return false;
    }
    if (h.type == MSG_TIME_TICK || h.base_tt <= o->task->o.rpc_tt) {
        finished(o, &h);
        return true;
    }
    if (!msg_operation_known(h.type)) {
        log_warn("repl", "an operation of the source is not replicated", KS("task", o->task->o.id),
                 KS("operation", msg_type_name(h.type)), KI("msg_type", h.type));
        finished(o, &h);
        return true;
    }
    switch (msg_operation_target(h.type, m->data, m->len, o->index, &db, &name, &err)) {
    case 0:
        more = step_target(o, &h, db, name);
        free(db);
        free(name);
        return more;
    case ERR_NOT_FOUND: /* past the last collection */
        finished(o, &h);
        return true;
    default:
        fatal(o, &err, msg_type_name(h.type));
        return false;
    }
}


void ops_kick(struct ops *o)
{
    if (o->task->fatal || o->task->state != RUN_RUNNING || o->stepping)
        return;
    o->stepping = true;
    while (!o->call && !o->storing && !timer_armed(&o->retry) && !STAILQ_EMPTY(&o->pending))
        if (!step(o))
            break;
    o->stepping = false;
    if (o->paused && o->n_pending < 16 && o->reader) {
        o->paused = false;
        o->task->o.wal->ops->resume(o->reader);
    }
}

/* ---- reading ---------------------------------------------------------------------------------------- */

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct ops *o = arg;

    (void)caught_up;
    for (size_t i = 0; i < n; i++) {
        struct pending *p = xmalloc(sizeof(*p));
        p->msg = msgs[i];
        buf_ref(p->msg.buf);
        STAILQ_INSERT_TAIL(&o->pending, p, entry);
        o->n_pending++;
    }
    if (o->n_pending > 64 && !o->paused) {
        o->paused = true;
        o->task->o.wal->ops->pause(o->reader);
    }
    ops_kick(o);
}

static void on_trouble(void *arg, const struct err *err)
{
    struct ops *o = arg;
    struct err e;

    if (!err || err->cls == ERRC_RETRY) {
        set_text(&o->trouble, err ? err->text : NULL);
        return;
    }
    if (err->cls == ERRC_LOST && o->task->o.accept_gap && !o->from_earliest) {
        log_warn("repl", "operations are missing, which was accepted", KS("task", o->task->o.id), KS("gap", err->text));
        o->from_earliest = true;
        ops_close_reader(o);
        ops_open(o);
        return;
    }
    e = *err;
    err_wrap(&e, "replicate channel %s", o->task->o.replicate_chan);
    task_fatal(o->task, &e);
}

void ops_set_start(struct ops *o, const struct repl_ckpt *ck)
{
    o->start = ck->start;
    o->done = ck->done;
    o->done_tt = ck->done_tt;
}

void ops_open(struct ops *o)
{
    /* the last one that is done still exists, so reading from it proves that nothing is missing */
    struct wal_pos from = wal_pos_cmp(o->done, o->start) > 0 ? o->done : o->start;
    struct wal_start start = {.earliest = o->from_earliest || wal_pos_is_none(from), .pos = from};

    if (o->reader)
        return;
    start.handled = wal_pos_cmp(o->done, from) >= 0;
    if (o->task->o.wal->ops->retain)
        o->task->o.wal->ops->retain(o->task->o.wal, o->task->o.id, o->task->o.replicate_chan,
                                    start.earliest ? WAL_POS_NONE : from);
    o->reader = o->task->o.wal->ops->open(
        o->task->o.wal, o->task->o.replicate_chan, &start,
        &(struct wal_reader_cbs){.on_batch = on_batch, .on_trouble = on_trouble}, o);
}

void ops_retain(struct ops *o)
{
    if (o->reader && !o->dirty && !o->storing && !wal_pos_is_none(o->done))
        o->task->o.wal->ops->retain(o->task->o.wal, o->task->o.id, o->task->o.replicate_chan, o->done);
}

bool ops_busy(const struct ops *o)
{
    return o->call != NULL;
}

void ops_fill_ckpt(struct ops *o, struct repl_ckpt *ret)
{
    *ret = (struct repl_ckpt){.src_channel = (char *)o->task->o.replicate_chan,
                              .dst_channel = (char *)"",
                              .start = o->start,
                              .done = o->done,
                              .sent = o->done,
                              .done_tt = o->done_tt,
                              .op = o->done,
                              .op_tt = o->done_tt};
}

bool ops_dirty(const struct ops *o)
{
    return o->dirty;
}

void ops_clear_dirty(struct ops *o)
{
    o->dirty = false;
}

const char *ops_trouble(const struct ops *o)
{
    return o->trouble;
}
