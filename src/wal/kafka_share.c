/*
 * kafka_share.c - librdkafka bounds what it prefetches for a topic, not for all of them. So at most sizes.busy readers
 * may have data waiting; the others are parked: what is waiting for them is dropped and they are not fetched until
 * one of the busy ones has reached the end, or had its turn. Topics at their end, the usual state, take no place.
 */
#include "wal/kafka_priv.h"

enum { TURN = 16 }; /* times what a topic may have waiting, so that what is dropped in between is little */

static void fetch(struct wal_reader *r, bool on)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);

    rd_kafka_topic_partition_list_add(list, kreader_topic(r), KAFKA_PARTITION);
    /* Both only fail for a partition that the client does not have; then there is nothing to hold either. */
    (void)(on ? rd_kafka_resume_partitions(r->client->rk, list) : rd_kafka_pause_partitions(r->client->rk, list));
    rd_kafka_topic_partition_list_destroy(list);
}

static void become_busy(struct wal_reader *r)
{
    struct kafka *w = r->w;

    r->busy = true;
    r->turn = 0;
    w->n_busy++;
    TAILQ_INSERT_TAIL(&w->busy, r, next_place);
}

static void leave_busy(struct wal_reader *r)
{
    r->busy = false;
    r->w->n_busy--;
    TAILQ_REMOVE(&r->w->busy, r, next_place);
}

static void park(struct wal_reader *r)
{
    r->parked = true;
    TAILQ_INSERT_TAIL(&r->w->parked, r, next_place);
    fetch(r, false);
}

static void unpark(struct wal_reader *r)
{
    r->parked = false;
    TAILQ_REMOVE(&r->w->parked, r, next_place);
    fetch(r, true);
    become_busy(r);
}

/* Those who want data now go before those whose user has paused them. */
static void fill_places(struct kafka *w)
{
    struct wal_reader *r, *following;

    for (r = TAILQ_FIRST(&w->parked); r && w->n_busy < w->sizes.busy; r = following) {
        following = TAILQ_NEXT(r, next_place);
        if (!r->paused)
            unpark(r);
    }
}

/* Somebody whose user has paused it gives its place away first. */
static struct wal_reader *idle_holder(struct kafka *w)
{
    struct wal_reader *r;

    TAILQ_FOREACH (r, &w->busy, next_place)
        if (r->paused)
            return r;
    return NULL;
}

static void enter(struct wal_reader *r)
{
    struct kafka *w = r->w;
    struct wal_reader *idle;

    if (w->n_busy < w->sizes.busy) {
        become_busy(r);
        return;
    }
    idle = r->paused ? NULL : idle_holder(w);
    if (!idle) {
        park(r);
        return;
    }
    leave_busy(idle);
    park(idle);
    become_busy(r);
}

static bool somebody_waits(const struct kafka *w)
{
    const struct wal_reader *r;

    TAILQ_FOREACH (r, &w->parked, next_place)
        if (!r->paused)
            return true;
    return false;
}

void kshare_update(struct wal_reader *r, bool left, size_t bytes)
{
    struct kafka *w = r->w;

    if (r->parked)
        return;
    r->turn += bytes;
    if (!left) {
        if (r->busy)
            leave_busy(r);
    } else if (!r->busy) {
        enter(r);
    } else if ((r->paused || r->turn >= TURN * w->sizes.queue) && somebody_waits(w)) {
        leave_busy(r);
        park(r);
    }
    fill_places(w);
}

void kshare_want(struct wal_reader *r)
{
    struct wal_reader *idle;

    if (!r->parked || r->paused)
        return;
    if (r->w->n_busy >= r->w->sizes.busy) {
        idle = idle_holder(r->w);
        if (!idle)
            return;
        leave_busy(idle);
        park(idle);
    }
    unpark(r);
}

void kshare_leave(struct wal_reader *r)
{
    struct kafka *w = r->w;

    if (r->busy)
        leave_busy(r);
    if (r->parked) {
        r->parked = false;
        TAILQ_REMOVE(&w->parked, r, next_place);
        fetch(r, true); /* the partition keeps the mark for whoever reads it next */
    }
    fill_places(w);
}
