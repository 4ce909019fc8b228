/*
 * kafka_ask.c - asks brokers where topics begin and end, in the helper thread, since librdkafka 2.0.2 only has a
 * blocking call for it. One job takes all questions that wait.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "loop/xthread.h"
#include "wal/kafka_priv.h"

enum { TRY_MS = 800 }; /* for both bounds; the longest that closing must wait for */

struct kask *kask_new(rd_kafka_t *rk, const char *topic, unsigned limit_ms, kask_fn on_answer)
{
    struct kask *a = xcalloc(1, sizeof(*a));

    a->rk = rk;
    a->topic = xstrdup(topic);
    a->limit_ms = limit_ms;
    a->on_answer = on_answer;
    return a;
}

static void kask_free(struct kask *a)
{
    free(a->topic);
    free(a);
}

bool kask_reached(rd_kafka_resp_err_t err)
{
    switch (err) {
    case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
    case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
        return true;
    default:
        return err >= RD_KAFKA_RESP_ERR_NO_ERROR; /* the broker's own codes; those of the library are negative */
    }
}

bool kask_absent(rd_kafka_resp_err_t err)
{
    return err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART || err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
           err == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION;
}

/* ---- in the helper -------------------------------------------------------------------------------- */

/*
 * One bound. rd_kafka_query_watermark_offsets() asks for both, but its time limit is socket.timeout.ms, a minute, when
 * the broker hangs. As a time, BEGINNING and END are what the protocol has for the bounds too (ListOffsets).
 */
static rd_kafka_resp_err_t ask_bound(const struct kask *a, int64_t which, int64_t *ret)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_resp_err_t err;

    rd_kafka_topic_partition_list_add(list, a->topic, KAFKA_PARTITION)->offset = which;
    err = rd_kafka_offsets_for_times(a->rk, list, TRY_MS / 2);
    if (!err)
        err = list->elems[0].err;
    if (!err && list->elems[0].offset < 0)
        err = RD_KAFKA_RESP_ERR__BAD_MSG;
    if (!err)
        *ret = list->elems[0].offset;
    rd_kafka_topic_partition_list_destroy(list);
    return err;
}

static void ask_one(struct kafka *w, struct kask *a)
{
    uint64_t end_ms = clock_mono_ms() + a->limit_ms;

    do {
        a->err = ask_bound(a, RD_KAFKA_OFFSET_BEGINNING, &a->low);
        if (!a->err)
            a->err = ask_bound(a, RD_KAFKA_OFFSET_END, &a->high);
    } while (!kask_reached(a->err) && clock_mono_ms() < end_ms && !atomic_load(&w->closing));
}

/* A client whose broker does not answer one question is not asked the others, which would take as long each. */
static void ask_run(void *job)
{
    struct kafka *w = job;
    struct kask *a;
    rd_kafka_t *dead = NULL;
    rd_kafka_resp_err_t why = RD_KAFKA_RESP_ERR_NO_ERROR;

    TAILQ_FOREACH (a, &w->asked, next) {
        a->err = RD_KAFKA_RESP_ERR__DESTROY;
        if (atomic_load(&w->closing))
            continue;
        if (a->rk == dead) {
            a->err = why;
            continue;
        }
        ask_one(w, a);
        if (kask_reached(a->err))
            continue;
        dead = a->rk;
        why = a->err;
    }
}

/* ---- on the loop ----------------------------------------------------------------------------------- */

static void kick(struct kafka *w);

static void ask_done(void *job)
{
    struct kafka *w = job;
    struct kask *a;

    while (!w->closed && (a = TAILQ_FIRST(&w->asked))) {
        TAILQ_REMOVE(&w->asked, a, next);
        a->on_answer(w, a);
        kask_free(a);
    }
    w->asking = false;
    if (!w->closed)
        kick(w);
}

static void kick(struct kafka *w)
{
    if (w->asking || TAILQ_EMPTY(&w->asks))
        return;
    w->asking = true;
    TAILQ_CONCAT(&w->asked, &w->asks, next);
    xthread_submit(w->thread, ask_run, ask_done, w);
}

void kask_submit(struct kafka *w, struct kask *a)
{
    TAILQ_INSERT_TAIL(&w->asks, a, next);
    kick(w);
}

void kask_forget_reader(struct kafka *w, const struct wal_reader *r)
{
    struct kask *a;

    TAILQ_FOREACH (a, &w->asks, next)
        if (a->reader == r)
            a->reader = NULL;
    TAILQ_FOREACH (a, &w->asked, next)
        if (a->reader == r)
            a->reader = NULL;
}

void kask_forget_end(struct kafka *w, void *arg)
{
    struct kask *a;

    TAILQ_FOREACH (a, &w->asks, next)
        if (a->arg == arg)
            a->done = NULL;
    TAILQ_FOREACH (a, &w->asked, next)
        if (a->arg == arg)
            a->done = NULL;
}

void kask_free_all(struct kafka *w)
{
    struct kask *a;

    TAILQ_CONCAT(&w->asked, &w->asks, next);
    while ((a = TAILQ_FIRST(&w->asked))) {
        TAILQ_REMOVE(&w->asked, a, next);
        kask_free(a);
    }
}
