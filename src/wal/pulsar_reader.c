/*
 * pulsar_reader.c - struct wal_reader.
 *
 * A reader attaches (subscribes and asks for the last id), reads, and on each failure attaches again after a wait. Its
 * base is the last message that was delivered, else the start: the broker is asked to begin with it, and it must come.
 * What lies before it is dropped, what comes in its place is LOST.
 *
 * Permits: the broker may send that many messages more. They are given for as many bytes as one reader may have on the
 * way, by the size of the messages seen lately.
 */
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "wal/pulsar_priv.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    BATCH_MSGS = 256,
    BATCH_BYTES = 1 << 20,
    PERMITS_MAX = 1000, /* of messages */
    SIZE_FIRST = 1 << 20, /* of a message, as long as none was seen */
    SIZE_MIN = 8 << 10,
    IDLE_MS = 5, /* nothing comes: the end */
    RETRY_MIN_MS = 50,
    RETRY_MAX_MS = 2000,
    WAIT_TOPIC_MS = 500, /* for a topic that is not there yet */
    TROUBLE_AFTER_MS = 1000,
    GONE_AFTER_MS = 5000, /* a topic is not there: not just being moved */
    DAMAGED_MAX = 3,      /* times that an entry may come with a wrong checksum */
    BACK_STEPS = 3,       /* the last one: from the earliest */
};

enum preader_state {
    PREADER_WAITING,   /* retry armed */
    PREADER_ATTACHING, /* sub under way, or the question for the last id */
    PREADER_READING,
    PREADER_DROPPED, /* paused, too much was held: attaches after resume */
    PREADER_ENDED,   /* LOST, USER or DATA was told */
    PREADER_CLOSED,
};

struct wal_reader {
    LIST_ENTRY(wal_reader) next;
    struct pulsar *p;
    char *topic;
    struct wal_reader_cbs cbs;
    void *arg;
    enum preader_state state;
    bool paused;
    bool based; /* base is a position, else the earliest is fine */
    bool begun; /* base was delivered */
    struct wal_pos base;
    bool found; /* since attaching: base came */
    struct psub *sub;
    struct preq *last_req;
    bool has_end;
    struct wal_pos end; /* the last id when it attached */
    bool at_end;        /* told */
    int64_t permits;    /* messages that may come; below 0: a batch was more than that */
    size_t msg_size;    /* estimate, from above */
    unsigned back;      /* steps before base, to find the begin of a chunked message */
    struct pulsar_entries queue;
    size_t queue_bytes, queue_msgs;
    struct pulsar_decoder *decoder;
    struct err fail; /* code 0: none; told when what came before it is delivered */
    bool go_back;
    unsigned damaged;
    struct backoff backoff;
    struct timer retry, deliver, idle, trouble;
    uint64_t failing_since_ms, absent_since_ms; /* 0: not */
    bool told;
    struct err why; /* the last failure */
};

static void attach(struct wal_reader *r);

static bool is_live(const struct wal_reader *r)
{
    return r->state < PREADER_ENDED;
}

/* As permits count it. What is senseless is refused when it is decoded. */
static uint32_t msgs_of(const struct pulsar_entry *e)
{
    return e->meta.n_msgs == 0 || e->meta.n_msgs > 1u << PULSAR_INDEX_BITS ? 1 : e->meta.n_msgs;
}

/* ---- leaving the broker --------------------------------------------------------------------- */

static void forget_entry(struct wal_reader *r, struct pulsar_entry *e)
{
    STAILQ_REMOVE_HEAD(&r->queue, next);
    r->queue_bytes -= e->frame->size;
    r->queue_msgs -= msgs_of(e);
    r->p->held -= e->frame->size;
    pulsar_entry_free(e);
}

static void detach(struct wal_reader *r)
{
    struct pulsar_entry *e;

    preq_cancel(r->last_req);
    r->last_req = NULL;
    psub_close(r->sub);
    r->sub = NULL;
    while ((e = STAILQ_FIRST(&r->queue)))
        forget_entry(r, e);
    pulsar_decoder_reset(r->decoder);
    r->permits = 0;
    r->found = false;
    timer_cancel(&r->idle);
}

static void end_with(struct wal_reader *r, const struct err *err)
{
    struct err e = *err;

    detach(r);
    r->state = PREADER_ENDED;
    timer_cancel(&r->retry);
    timer_cancel(&r->deliver);
    timer_cancel(&r->trouble);
    r->cbs.on_trouble(r->arg, &e);
}

static void name_pos(char *buf, size_t size, struct wal_pos pos)
{
    snprintf(buf, size, "%llu:%llu:%llu", (unsigned long long)pos.major - 1,
             (unsigned long long)pos.minor >> PULSAR_INDEX_BITS,
             (unsigned long long)pos.minor & ((1u << PULSAR_INDEX_BITS) - 1));
}

/* first NULL: there is none. */
static int lost(const struct wal_reader *r, struct err *err, const struct wal_pos *first, const char *why)
{
    char asked[80], exists[80] = "none";

    name_pos(asked, sizeof(asked), r->base);
    if (first)
        name_pos(exists, sizeof(exists), *first);
    return err_set(err, ERR_GONE, ERRC_LOST,
                   "topic %s: position %s (ledger:entry:index) is gone%s; the first that exists is %s", r->topic, asked,
                   why, exists);
}

/* ---- trouble -------------------------------------------------------------------------------- */

static void on_trouble_timer(void *arg)
{
    struct wal_reader *r = arg;

    if (!r->failing_since_ms || r->told)
        return;
    r->told = true;
    r->cbs.on_trouble(r->arg, &r->why);
}

static void wait_and_attach(struct wal_reader *r, unsigned ms)
{
    detach(r);
    r->state = PREADER_WAITING;
    timer_cancel(&r->deliver);
    timer_set(&r->retry, ms);
}

static void failing(struct wal_reader *r, const struct err *err)
{
    r->why = *err;
    if (!r->failing_since_ms) {
        r->failing_since_ms = clock_mono_ms();
        timer_set(&r->trouble, TROUBLE_AFTER_MS);
    }
    wait_and_attach(r, backoff_next_ms(&r->backoff));
}

/* The last call of its caller: user code may close the reader. */
static void works(struct wal_reader *r)
{
    r->failing_since_ms = 0;
    timer_cancel(&r->trouble);
    backoff_reset(&r->backoff);
    if (!r->told)
        return;
    r->told = false;
    r->cbs.on_trouble(r->arg, NULL);
}

static void topic_absent(struct wal_reader *r, const struct err *err)
{
    uint64_t now = clock_mono_ms();
    struct err e;

    if (r->based) {
        if (!r->absent_since_ms)
            r->absent_since_ms = now;
        if (now - r->absent_since_ms < GONE_AFTER_MS) {
            failing(r, err);
            return;
        }
        lost(r, &e, NULL, " with the whole topic");
        end_with(r, &e);
        return;
    }
    wait_and_attach(r, WAIT_TOPIC_MS);
    if (!r->at_end && !r->paused) {
        r->at_end = true;
        r->cbs.on_batch(r->arg, NULL, 0, true);
    }
    if (is_live(r))
        works(r);
}

static void on_sub_down(void *arg, const struct err *err)
{
    struct wal_reader *r = arg;
    struct err e;

    if (err->code == ERR_NOT_FOUND) {
        topic_absent(r, err);
        return;
    }
    r->absent_since_ms = 0;
    if (err->code == ERR_PROTO && r->state == PREADER_READING && ++r->damaged >= DAMAGED_MAX) {
        e = *err;
        e.cls = ERRC_DATA;
        end_with(r, &e);
    } else if (err->cls != ERRC_RETRY) {
        end_with(r, err);
    } else {
        failing(r, err);
    }
}

/* ---- permits -------------------------------------------------------------------------------- */

static void learn_size(struct wal_reader *r, const struct pulsar_entry *e)
{
    size_t size = e->frame->size / msgs_of(e);

    r->msg_size -= r->msg_size / 16;
    if (r->msg_size < size)
        r->msg_size = size;
    if (r->msg_size < SIZE_MIN)
        r->msg_size = SIZE_MIN;
}

static void give_permits(struct wal_reader *r)
{
    size_t want = r->p->receive_bytes / r->p->n_readers / r->msg_size;
    int64_t have = r->permits + (int64_t)r->queue_msgs;

    if (r->state != PREADER_READING || r->paused)
        return;
    want = want < 1 ? 1 : want > PERMITS_MAX ? PERMITS_MAX : want;
    if (have > (int64_t)want / 2)
        return;
    psub_flow(r->sub, (uint32_t)((int64_t)want - have));
    r->permits += (int64_t)want - have;
}

/* ---- entries -------------------------------------------------------------------------------- */

static void kick(struct wal_reader *r)
{
    if (r->state == PREADER_READING && !r->paused && !timer_armed(&r->deliver) &&
        (!STAILQ_EMPTY(&r->queue) || r->fail.code || r->go_back))
        timer_set(&r->deliver, 0);
}

static void on_deliver(void *arg);

static void on_entry(void *arg, struct pulsar_entry *e)
{
    struct wal_reader *r = arg;

    if (r->state != PREADER_READING) {
        pulsar_entry_free(e);
        return;
    }
    r->permits -= msgs_of(e);
    learn_size(r, e);
    STAILQ_INSERT_TAIL(&r->queue, e, next);
    r->queue_bytes += e->frame->size;
    r->queue_msgs += msgs_of(e);
    r->p->held += e->frame->size;
    timer_cancel(&r->idle);
    if (r->paused && r->p->held > r->p->receive_bytes) {
        detach(r);
        r->state = PREADER_DROPPED;
        return;
    }
    if (!r->paused && r->queue_bytes >= BATCH_BYTES)
        on_deliver(r); /* now: the socket may stay readable for long, and this is as much as one call takes */
    else
        kick(r);
}

/* Is m for the user? The rule of the start, and no position twice. */
static bool take(struct wal_reader *r, const struct wal_msg *m)
{
    int c = r->based ? wal_pos_cmp(m->pos, r->base) : 1;
    bool wanted = m->buf && (c > 0 || !r->begun);

    if (r->fail.code || c < 0 || (c == 0 && r->begun && r->found))
        return false;
    if (!r->found && r->based && c > 0) {
        lost(r, &r->fail, &m->pos, "");
        return false;
    }
    r->found = true;
    r->based = true;
    r->base = m->pos;
    r->begun = true;
    return wanted;
}

/* Keeps those after the first n that are for the user. */
static void filter(struct wal_reader *r, struct pulsar_msgs *msgs, size_t n)
{
    size_t keep = n;

    for (size_t i = n; i < msgs->n; i++) {
        if (take(r, &msgs->v[i]))
            msgs->v[keep++] = msgs->v[i];
        else
            buf_unref(msgs->v[i].buf);
    }
    msgs->n = keep;
}

/* One entry to messages. A failure is noted. */
static void decode(struct wal_reader *r, struct pulsar_entry *e, struct pulsar_msgs *msgs)
{
    size_t n = msgs->n;
    struct err err;
    struct wal_pos pos;
    int rc = pulsar_decode(r->decoder, e, msgs, &err);

    if (rc == ERR_NOT_FOUND && pulsar_pos(e->ledger, e->entry, 0, &pos)) {
        struct wal_msg hole = {.pos = pos};

        if (r->based && wal_pos_cmp(pos, r->base) < 0)
            return; /* before what is wanted */
        if (r->based && r->back < BACK_STEPS) {
            r->go_back = true;
            return;
        }
        /* Nobody can read it: its begin was removed, or never written. */
        log_warn("wal", "a chunked message without its begin", KS("topic", r->topic), KS("entry", err.text));
        if (r->begun || !r->based)
            (void)take(r, &hole);
        else
            lost(r, &r->fail, NULL, " in part (it is chunked)");
        return;
    }
    if (rc) {
        r->fail = err;
        err_wrap(&r->fail, "topic %s", r->topic);
        return;
    }
    filter(r, msgs, n);
}

static void collect(struct wal_reader *r, struct pulsar_msgs *msgs)
{
    struct pulsar_entry *e;

    while (!r->fail.code && !r->go_back && (e = STAILQ_FIRST(&r->queue)) && msgs->n < BATCH_MSGS &&
           msgs->bytes < BATCH_BYTES) {
        decode(r, e, msgs);
        forget_entry(r, e);
    }
}

static bool reached_end(const struct wal_reader *r)
{
    return !r->has_end || (r->begun && wal_pos_cmp(r->base, r->end) >= 0);
}

static void hand_over(struct wal_reader *r, struct pulsar_msgs *msgs)
{
    bool end = STAILQ_EMPTY(&r->queue) && !r->fail.code && !r->go_back && !r->at_end && reached_end(r);

    if (msgs->n == 0 && !end)
        return;
    if (msgs->n)
        r->damaged = r->back = 0;
    if (end)
        r->at_end = true;
    r->cbs.on_batch(r->arg, msgs->v, msgs->n, end);
}

static void on_deliver(void *arg)
{
    struct wal_reader *r = arg;
    struct pulsar_msgs msgs = {0};

    if (r->state != PREADER_READING || r->paused)
        return;
    collect(r, &msgs);
    if (msgs.n == 0 && r->go_back) {
        r->go_back = false;
        r->back++;
        detach(r);
        attach(r);
    } else if (msgs.n == 0 && r->fail.code) {
        end_with(r, &r->fail);
    } else {
        if (msgs.n && r->at_end) {
            r->at_end = false;
            r->has_end = true; /* now the end is told when it is quiet */
            r->end = (struct wal_pos){UINT64_MAX, UINT64_MAX};
        }
        hand_over(r, &msgs);
    }
    pulsar_msgs_release(&msgs);
    if (r->state != PREADER_READING)
        return;
    give_permits(r);
    kick(r);
    if (!r->at_end && STAILQ_EMPTY(&r->queue))
        timer_set(&r->idle, IDLE_MS);
}

static void on_idle(void *arg)
{
    struct wal_reader *r = arg;

    if (r->state != PREADER_READING || r->paused || r->at_end || !STAILQ_EMPTY(&r->queue))
        return;
    if (r->has_end && r->end.major != UINT64_MAX && !reached_end(r))
        return; /* it will come */
    r->at_end = true;
    r->cbs.on_batch(r->arg, NULL, 0, true);
}

/* ---- attaching ------------------------------------------------------------------------------ */

/* What the broker has: can base be there? */
static int check_end(struct wal_reader *r, const Pulsar__MessageIdData *id, struct err *err)
{
    r->has_end = id->ledger_id != PULSAR_ID_NONE && id->entry_id != PULSAR_ID_NONE &&
                 pulsar_pos(id->ledger_id, id->entry_id, id->batch_index, &r->end);
    if (!r->based)
        return 0;
    if (!r->has_end)
        return lost(r, err, NULL, ", the topic is empty");
    if (wal_pos_cmp(r->end, r->base) < 0)
        return lost(r, err, NULL, ", the topic ends before it");
    return 0;
}

static void on_last(void *arg, const Pulsar__BaseCommand *cmd, const struct err *err)
{
    struct wal_reader *r = arg;
    struct err e;

    r->last_req = NULL;
    if (!err && cmd->type != PULSAR__BASE_COMMAND__TYPE__GET_LAST_MESSAGE_ID_RESPONSE) {
        err_set(&e, ERR_PROTO, ERRC_RETRY, "topic %s: not the answer to the question for the last id", r->topic);
        err = &e;
    }
    if (err) {
        on_sub_down(r, err);
        return;
    }
    if (check_end(r, cmd->get_last_message_id_response->last_message_id, &e)) {
        end_with(r, &e);
        return;
    }
    r->state = PREADER_READING;
    r->at_end = r->at_end && reached_end(r);
    give_permits(r);
    kick(r); /* a failure or a step back may be waiting since before the connection was lost */
    if (!r->at_end && reached_end(r))
        timer_set(&r->idle, 0);
    works(r);
}

static void on_sub_ready(void *arg)
{
    struct wal_reader *r = arg;

    r->absent_since_ms = 0;
    r->last_req = psub_last(r->sub, on_last, r);
}

static const struct psub_cbs reader_cbs = {
    .on_ready = on_sub_ready,
    .on_entry = on_entry,
    .on_down = on_sub_down,
};

static void attach(struct wal_reader *r)
{
    static const uint64_t back_entries[BACK_STEPS] = {0, 256, 4096};
    uint64_t entry = r->base.minor >> PULSAR_INDEX_BITS;
    struct psub_options o = {.topic = r->topic, .earliest = !r->based || r->back >= BACK_STEPS};

    r->state = PREADER_ATTACHING;
    if (!o.earliest) {
        o.ledger = r->base.major - 1;
        o.entry = entry;
        if (r->back && entry < back_entries[r->back]) {
            r->back = BACK_STEPS; /* it may begin in an earlier ledger */
            o.earliest = true;
        } else {
            o.entry -= back_entries[r->back];
        }
    }
    r->sub = psub_open(r->p, &o, &reader_cbs, r);
}

static void on_retry(void *arg)
{
    attach(arg);
}

/* ---- interface ------------------------------------------------------------------------------ */

struct wal_reader *preader_open(struct wal_port *w, const char *topic, const struct wal_start *start,
                                const struct wal_reader_cbs *cbs, void *arg)
{
    struct pulsar *p = pulsar_of(w);
    struct wal_reader *r = xcalloc(1, sizeof(*r));

    r->p = p;
    r->topic = xstrdup(topic);
    r->cbs = *cbs;
    r->arg = arg;
    r->based = !start->earliest && start->pos.major > 0;
    r->base = start->pos;
    r->msg_size = SIZE_FIRST;
    r->decoder = pulsar_decoder_new();
    r->backoff = (struct backoff)BACKOFF_INIT(RETRY_MIN_MS, RETRY_MAX_MS);
    STAILQ_INIT(&r->queue);
    timer_init(&r->retry, p->loop, LOOP_PRIO_NORMAL, on_retry, r);
    timer_init(&r->deliver, p->loop, LOOP_PRIO_LOW, on_deliver, r);
    timer_init(&r->idle, p->loop, LOOP_PRIO_LOW, on_idle, r);
    timer_init(&r->trouble, p->loop, LOOP_PRIO_NORMAL, on_trouble_timer, r);
    LIST_INSERT_HEAD(&p->readers, r, next);
    p->n_readers++;
    attach(r);
    return r;
}

void preader_pause(struct wal_reader *r)
{
    r->paused = true;
    timer_cancel(&r->deliver);
    timer_cancel(&r->idle);
}

void preader_resume(struct wal_reader *r)
{
    if (!r->paused || r->state == PREADER_CLOSED)
        return;
    r->paused = false;
    if (r->state == PREADER_DROPPED) {
        attach(r);
    } else if (r->state == PREADER_READING) {
        give_permits(r);
        kick(r);
        if (!r->at_end && STAILQ_EMPTY(&r->queue))
            timer_set(&r->idle, IDLE_MS);
    }
}

static void preader_free(void *arg)
{
    struct wal_reader *r = arg;

    free(r->topic);
    free(r);
}

void preader_close(struct wal_reader *r)
{
    if (r->state == PREADER_CLOSED) /* already in this turn */
        return;
    detach(r);
    r->state = PREADER_CLOSED;
    timer_release(&r->retry);
    timer_release(&r->deliver);
    timer_release(&r->idle);
    timer_release(&r->trouble);
    pulsar_decoder_free(r->decoder);
    r->decoder = NULL;
    LIST_REMOVE(r, next);
    r->p->n_readers--;
    loop_defer(r->p->loop, preader_free, r);
}
