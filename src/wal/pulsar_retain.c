/*
 * pulsar_retain.c - what a task needs stays on the broker: a durable subscription per (owner, topic).
 *
 * It is made at the earliest message and acknowledged cumulatively up to the entry before what is needed, by a consumer
 * that never asks for a message. So its mark-delete position never passes from - 1, whatever happens in between: a
 * subscription that is too far back keeps too much, never too little.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "wal/pulsar_priv.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

enum {
    ACK_EVERY_MS = 3000, /* a hundred idle tasks have two hundred of these */
    WAIT_TOPIC_MS = 1000,
    RETRY_MIN_MS = 200,
    RETRY_MAX_MS = 10000,
};

struct waiter {
    STAILQ_ENTRY(waiter) next;
    wal_forget_fn done;
    void *arg;
};
STAILQ_HEAD(waiters, waiter);

struct pretain {
    UT_hash_handle hh; /* by key */
    struct pulsar *p;
    char *key, *owner, *topic;
    struct wal_pos from, acked; /* acked: the from that the broker has confirmed */
    struct wal_pos asked;       /* of the ack under way */
    struct psub *sub;           /* NULL: timer armed, then again */
    bool ready;
    struct preq *req; /* ack or unsubscribe */
    struct timer timer; /* the next try, or the next ack */
    struct backoff backoff;
    uint64_t last_ack_ms;
    struct waiters waiters; /* not empty: to be forgotten; one try while somebody waits for the answer */
    bool again;             /* retain() came while it is being forgotten */
};

static void work(struct pretain *t);
static void start(struct pretain *t);

static void leave(struct pretain *t)
{
    preq_cancel(t->req);
    t->req = NULL;
    psub_close(t->sub);
    t->sub = NULL;
    t->ready = false;
    timer_cancel(&t->timer);
}

static void pretain_free(struct pretain *t)
{
    struct waiter *w;

    leave(t);
    HASH_DEL(t->p->retains, t);
    timer_release(&t->timer);
    while ((w = STAILQ_FIRST(&t->waiters))) {
        STAILQ_REMOVE_HEAD(&t->waiters, next);
        free(w);
    }
    free(t->key);
    free(t->owner);
    free(t->topic);
    free(t);
}

/* Nobody will ask again. */
static bool unattended(const struct pretain *t)
{
    const struct waiter *w;

    STAILQ_FOREACH (w, &t->waiters, next) {
        if (w->done)
            return false;
    }
    return !t->again;
}

static void try_later(struct pretain *t, const struct err *err);

/* The one try to forget has ended. */
static void forgotten(struct pretain *t, const struct err *err)
{
    struct waiters waiters = STAILQ_HEAD_INITIALIZER(waiters);
    struct err copy;
    struct waiter *w;

    if (err && unattended(t)) {
        try_later(t, err);
        return;
    }
    if (err)
        copy = *err;
    STAILQ_CONCAT(&waiters, &t->waiters);
    if (t->again) {
        leave(t);
        t->again = false;
        t->acked = WAL_POS_NONE;
        start(t);
    } else {
        pretain_free(t);
    }
    while ((w = STAILQ_FIRST(&waiters))) {
        STAILQ_REMOVE_HEAD(&waiters, next);
        if (w->done)
            w->done(w->arg, err ? &copy : NULL);
        free(w);
    }
}

static void try_later(struct pretain *t, const struct err *err)
{
    if (err->code == ERR_NOT_FOUND) { /* the topic will come: nothing is wrong */
        leave(t);
        timer_set(&t->timer, WAIT_TOPIC_MS);
        return;
    }
    if (t->backoff.cur_ms == 0) /* once per trouble */
        log_warn("wal", "what a task needs cannot be kept on Pulsar now, trying again", KS("owner", t->owner),
                 KS("topic", t->topic), KS("why", err->text));
    leave(t);
    timer_set(&t->timer, backoff_next_ms(&t->backoff));
}

static void on_unsubscribed(void *arg, const Pulsar__BaseCommand *a, const struct err *err)
{
    struct pretain *t = arg;

    (void)a;
    t->req = NULL;
    forgotten(t, err);
}

static void on_acked(void *arg, const Pulsar__BaseCommand *a, const struct err *err)
{
    struct pretain *t = arg;

    (void)a;
    t->req = NULL;
    if (err) {
        try_later(t, err);
        return;
    }
    backoff_reset(&t->backoff);
    t->acked = t->asked;
    work(t);
}

/* The entry before from is acknowledged: all of from's batch stays. Entry -1: everything before its ledger. */
static void ack(struct pretain *t)
{
    uint64_t now = clock_mono_ms();
    uint64_t entry = t->from.minor >> PULSAR_INDEX_BITS;

    if (t->last_ack_ms && now - t->last_ack_ms < ACK_EVERY_MS) {
        timer_set(&t->timer, ACK_EVERY_MS - (now - t->last_ack_ms));
        return;
    }
    t->last_ack_ms = now;
    t->asked = t->from;
    t->req = psub_ack(t->sub, t->from.major - 1, entry - 1, on_acked, t);
}

static void work(struct pretain *t)
{
    if (!t->ready || (t->req && STAILQ_EMPTY(&t->waiters)))
        return;
    if (!STAILQ_EMPTY(&t->waiters)) {
        preq_cancel(t->req); /* an ack */
        timer_cancel(&t->timer);
        t->req = psub_unsubscribe(t->sub, on_unsubscribed, t);
    } else if (t->from.major > 0 && wal_pos_cmp(t->from, t->acked) > 0) {
        ack(t);
    }
}

static void on_ready(void *arg)
{
    struct pretain *t = arg;

    t->ready = true;
    if (wal_pos_is_none(t->from))
        backoff_reset(&t->backoff);
    work(t);
}

static void on_down(void *arg, const struct err *err)
{
    struct pretain *t = arg;
    struct err e = *err;

    if (!STAILQ_EMPTY(&t->waiters)) {
        e.cls = ERRC_RETRY;
        forgotten(t, err->code == ERR_NOT_FOUND ? NULL : &e);
        return;
    }
    try_later(t, &e);
}

static const struct psub_cbs retain_cbs = {.on_ready = on_ready, .on_down = on_down};

static void start(struct pretain *t)
{
    char *name = xasprintf("%s%s", t->p->prefix, t->owner);
    struct psub_options o = {.topic = t->topic, .subscription = name, .earliest = true};

    timer_cancel(&t->timer);
    t->sub = psub_open(t->p, &o, &retain_cbs, t);
    free(name);
}

static void on_timer(void *arg)
{
    struct pretain *t = arg;

    if (t->sub)
        work(t);
    else
        start(t);
}

static char *key_of(const char *owner, const char *topic)
{
    return xasprintf("%s\n%s", owner, topic);
}

static struct pretain *find(struct pulsar *p, const char *owner, const char *topic)
{
    char *key = key_of(owner, topic);
    struct pretain *t;

    HASH_FIND_STR(p->retains, key, t);
    free(key);
    return t;
}

static struct pretain *pretain_new(struct pulsar *p, const char *owner, const char *topic)
{
    struct pretain *t = xcalloc(1, sizeof(*t));

    t->p = p;
    t->key = key_of(owner, topic);
    t->owner = xstrdup(owner);
    t->topic = xstrdup(topic);
    t->backoff = (struct backoff)BACKOFF_INIT(RETRY_MIN_MS, RETRY_MAX_MS);
    STAILQ_INIT(&t->waiters);
    timer_init(&t->timer, p->loop, LOOP_PRIO_NORMAL, on_timer, t);
    HASH_ADD_KEYPTR(hh, p->retains, t->key, strlen(t->key), t);
    return t;
}

void pretain_set(struct wal_port *w, const char *owner, const char *topic, struct wal_pos from)
{
    struct pulsar *p = pulsar_of(w);
    struct pretain *t = find(p, owner, topic);

    if (!t) {
        t = pretain_new(p, owner, topic);
        t->from = from;
        start(t);
        return;
    }
    if (!STAILQ_EMPTY(&t->waiters)) {
        t->again = true;
        t->from = from;
        return;
    }
    if (wal_pos_cmp(from, t->from) <= 0)
        return;
    t->from = from;
    if (!timer_armed(&t->timer))
        work(t);
}

void pretain_forget(struct wal_port *w, const char *owner, const char *topic, wal_forget_fn done, void *arg)
{
    struct pulsar *p = pulsar_of(w);
    struct pretain *t = find(p, owner, topic);
    struct waiter *q = xcalloc(1, sizeof(*q));
    bool first;

    if (!t)
        t = pretain_new(p, owner, topic);
    q->done = done;
    q->arg = arg;
    first = STAILQ_EMPTY(&t->waiters);
    STAILQ_INSERT_TAIL(&t->waiters, q, next);
    t->again = false;
    if (!first)
        return;
    if (!t->sub)
        start(t);
    else
        work(t);
}

void pretain_cancel(struct pulsar *p, void *arg)
{
    struct pretain *t;
    struct waiter *w;

    for (t = p->retains; t; t = t->hh.next) {
        STAILQ_FOREACH (w, &t->waiters, next) {
            if (w->arg == arg)
                w->done = NULL;
        }
    }
}

void pretains_close(struct pulsar *p)
{
    while (p->retains)
        pretain_free(p->retains);
}
