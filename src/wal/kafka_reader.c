/*
 * kafka_reader.c - one reader: a queue of librdkafka, taken in slices.
 */
#include <assert.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "wal/kafka_priv.h"

enum {
    SLICE_MSGS = 256, /* bytes are bounded by what librdkafka may prefetch */
    COPY_BELOW = 16 << 10, /* cheaper than a reference, and does not hold the whole answer of the broker */
    SLAB_BYTES = 256 << 10,
    CHECK_MS = 300,  /* between the steps of a check */
    DOUBT_MS = 3000, /* a place behind the end may still turn up: a new leader's end lags */
    ASK_MS = 2000,
};

static void on_checked(struct kafka *w, struct kask *a);

const char *kreader_topic(const struct wal_reader *r)
{
    return rd_kafka_topic_name(r->topic);
}

/* ---- librdkafka's side ----------------------------------------------------------------------------- */

static void start(struct wal_reader *r)
{
    int64_t from = r->earliest ? RD_KAFKA_OFFSET_BEGINNING : r->next;

    if (rd_kafka_consume_start_queue(r->topic, KAFKA_PARTITION, from, r->q) == 0)
        r->started = true;
    else /* only wrong arguments make it fail */
        log_error("wal", "a partition of Kafka cannot be read", KS("topic", kreader_topic(r)),
                  KS("err", rd_kafka_err2str(rd_kafka_last_error())));
    assert(r->started);
}

/* A matter of librdkafka's main thread, which waits for no network. */
static void stop(struct wal_reader *r)
{
    if (!r->started)
        return;
    r->started = false;
    kshare_leave(r);
    (void)rd_kafka_consume_stop(r->topic, KAFKA_PARTITION); /* fails when it is stopped */
}

/* ---- the end of a reader, and doubt about it --------------------------------------------------------- */

static void finish(struct wal_reader *r, const struct err *err)
{
    r->state = READER_ENDED;
    r->trouble = *err;
    stop(r);
    timer_set(&r->timer, 0);
}

static void finish_lost(struct wal_reader *r, const struct kask *a)
{
    struct err err;
    char exists[100];

    if (!a->err && a->low < a->high)
        snprintf(exists, sizeof(exists), "%lld to %lld exist", (long long)a->low, (long long)a->high - 1);
    else if (!a->err)
        snprintf(exists, sizeof(exists), "the topic is empty, its next offset is %lld", (long long)a->high);
    else
        snprintf(exists, sizeof(exists), "the first that exists is %lld", (long long)r->hole);
    err_set(&err, ERR_GONE, ERRC_LOST,
            "Kafka topic %s: offset %lld is gone: %s (retention, or the topic was made anew)", kreader_topic(r),
            (long long)r->next, exists);
    finish(r, &err);
}

static void finish_data(struct wal_reader *r, const rd_kafka_message_t *m)
{
    struct err err;

    err_set(&err, ERR_PROTO, ERRC_DATA, "Kafka topic %s: damaged data at offset %lld: %s", kreader_topic(r),
            (long long)r->next, rd_kafka_message_errstr(m));
    finish(r, &err);
}

static void ask(struct wal_reader *r)
{
    struct kask *a = kask_new(r->client->rk, kreader_topic(r), ASK_MS, on_checked);

    a->reader = r;
    r->asking = true;
    timer_cancel(&r->timer);
    kask_submit(r->w, a);
}

static void check(struct wal_reader *r)
{
    r->state = READER_CHECKING;
    if (!r->doubt_ms)
        r->doubt_ms = clock_mono_ms();
    ask(r);
}

static void check_again(struct wal_reader *r)
{
    timer_set(&r->timer, CHECK_MS);
}

static void go_on(struct wal_reader *r)
{
    r->state = READER_READING;
    if (r->restart) {
        r->restart = false;
        stop(r);
        start(r);
    }
    timer_set(&r->timer, 0);
}

static void on_checked(struct kafka *w, struct kask *a)
{
    struct wal_reader *r = a->reader;
    int64_t past;

    (void)w;
    if (!r)
        return;
    r->asking = false;
    if (r->state != READER_CHECKING)
        return;
    if (r->hole >= 0 && (!a->err || clock_mono_ms() - r->doubt_ms >= DOUBT_MS)) {
        finish_lost(r, a);
        return;
    }
    if (a->err) {
        khealth_failed(r, a->err, NULL);
        check_again(r);
        return;
    }
    past = r->begun ? a->high + 1 : a->high; /* the first offset that is not for us */
    if (r->earliest || (r->next >= a->low && r->next < past))
        go_on(r);
    else if (r->next < a->low || clock_mono_ms() - r->doubt_ms >= DOUBT_MS)
        finish_lost(r, a);
    else
        check_again(r);
}

/* ---- one slice ------------------------------------------------------------------------------------------ */

struct slice {
    rd_kafka_message_t *from[SLICE_MSGS];
    size_t n_from, i; /* from[i] is looked at; those before it are given away */
    struct wal_msg msgs[SLICE_MSGS];
    size_t n, bytes;
    struct buf *slab; /* the small ones; one reference is ours */
    size_t slab_used;
    bool eof; /* nothing came behind it */
};

static bool is_small(const rd_kafka_message_t *m)
{
    return !m->err && m->len < COPY_BELOW;
}

static size_t slab_size(const struct slice *s)
{
    size_t sum = s->from[s->i]->len;

    for (size_t i = s->i + 1; i < s->n_from; i++) {
        if (is_small(s->from[i]))
            sum += s->from[i]->len;
        if (sum >= SLAB_BYTES)
            break;
    }
    return sum;
}

static struct buf *copy_record(struct slice *s, rd_kafka_message_t *m, const uint8_t **ret_data)
{
    if (!s->slab || s->slab->size - s->slab_used < m->len) {
        buf_unref(s->slab);
        s->slab = buf_new(slab_size(s));
        s->slab_used = 0;
        if (!s->slab)
            abort(); /* no memory */
    }
    memcpy(s->slab->data + s->slab_used, m->payload, m->len);
    *ret_data = s->slab->data + s->slab_used;
    s->slab_used += m->len;
    return buf_ref(s->slab);
}

static void add_record(struct wal_reader *r, struct slice *s, rd_kafka_message_t *m)
{
    struct wal_msg *out = &s->msgs[s->n++];

    *out = (struct wal_msg){.pos = {0, (uint64_t)m->offset + 1}, .data = m->payload, .len = m->len};
    if (is_small(m)) {
        out->buf = copy_record(s, m, &out->data);
        rd_kafka_message_destroy(m);
    } else {
        out->buf = kclient_wrap(r->client, m);
    }
}

/* False: the reader's first record is missing. */
static bool take_record(struct wal_reader *r, struct slice *s, rd_kafka_message_t *m)
{
    int64_t offset = m->offset;

    if (!r->begun && !r->earliest && offset > r->next) {
        r->hole = offset;
        rd_kafka_message_destroy(m);
        check(r);
        return false;
    }
    s->bytes += m->len;
    if (offset < r->next || m->len == 0) /* of before a restart; a tombstone */
        rd_kafka_message_destroy(m);
    else
        add_record(r, s, m);
    if (offset >= r->next) {
        r->next = offset + 1;
        r->begun = true;
        r->earliest = false;
    }
    r->doubt_ms = 0;
    r->at_end = s->eof = false;
    return true;
}

/* False: the wished first record does not exist. */
static bool take_eof(struct wal_reader *r, struct slice *s, int64_t offset)
{
    if (r->begun || r->earliest) {
        r->doubt_ms = 0;
        s->eof = true;
        return true;
    }
    if (offset > r->next)
        r->hole = offset; /* only records that are not messages lie between */
    check(r);
    return false;
}

/* True: goes on. */
static bool take_error(struct wal_reader *r, struct slice *s, const rd_kafka_message_t *m)
{
    switch (m->err) {
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
        r->restart = true;
        check(r);
        return false;
    case RD_KAFKA_RESP_ERR__BAD_MSG:
    case RD_KAFKA_RESP_ERR__BAD_COMPRESSION:
    case RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED:
    case RD_KAFKA_RESP_ERR_INVALID_MSG:
    case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
        finish_data(r, m);
        return false;
    default:
        if (kask_absent(m->err) && !r->begun && r->earliest)
            s->eof = true; /* waited for */
        else
            khealth_failed(r, m->err, rd_kafka_message_errstr(m));
        return true;
    }
}

static bool take_one(struct wal_reader *r, struct slice *s, rd_kafka_message_t *m)
{
    bool go;

    if (!m->err)
        return take_record(r, s, m);
    go = m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF ? take_eof(r, s, m->offset) : take_error(r, s, m);
    rd_kafka_message_destroy(m);
    return go;
}

static void take_all(struct wal_reader *r, struct slice *s)
{
    bool go = true;

    for (s->i = 0; s->i < s->n_from; s->i++) {
        if (go)
            go = take_one(r, s, s->from[s->i]);
        else
            rd_kafka_message_destroy(s->from[s->i]);
    }
    buf_unref(s->slab);
    kclient_consumed(r->client, s->bytes, (unsigned)s->n_from);
    if (s->n > 0 || s->eof)
        khealth_heard(r);
}

/* The callback may close the reader, and the port: their memory stays until it has returned. */
static void deliver(struct wal_reader *r, const struct slice *s)
{
    bool end = s->eof && !r->at_end;

    if (s->eof)
        r->at_end = true;
    if (s->n > 0 || end)
        r->cbs.on_batch(r->arg, s->msgs, s->n, s->eof);
    for (size_t i = 0; i < s->n; i++)
        buf_unref(s->msgs[i].buf);
}

static void read_slice(struct wal_reader *r)
{
    struct slice s;
    ssize_t n;
    bool left;

    n = rd_kafka_consume_batch_queue(r->q, 0, s.from, SLICE_MSGS);
    s.n_from = n > 0 ? (size_t)n : 0;
    s.n = s.bytes = s.slab_used = 0;
    s.slab = NULL;
    s.eof = r->absent;
    r->absent = false;
    if (s.n_from > 0 || s.eof)
        take_all(r, &s);
    left = s.n_from > 0 && rd_kafka_queue_length(r->q) > 0;
    if (r->started)
        kshare_update(r, left, s.bytes);
    if (left && r->state == READER_READING)
        timer_set(&r->timer, 0);
    deliver(r, &s);
}

/* ---- events ------------------------------------------------------------------------------------------------ */

static void on_timer(void *arg)
{
    struct wal_reader *r = arg;
    struct err err = r->trouble;

    switch (r->state) {
    case READER_ENDED:
        r->trouble.code = ERR_OK;
        if (err.code)
            r->cbs.on_trouble(r->arg, &err);
        return;
    case READER_CHECKING:
        check_again(r); /* before the callback */
        if (!khealth_tell(r) && !r->asking)
            ask(r);
        return;
    case READER_READING:
        if (r->paused) {
            (void)khealth_tell(r);
            return;
        }
        timer_set(&r->timer, 0); /* before the callback */
        if (khealth_tell(r))
            return;
        timer_cancel(&r->timer);
        read_slice(r);
        return;
    }
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct wal_reader *r = arg;

    (void)what;
    kqueue_drain(fd);
    if (r->state == READER_READING && !r->paused)
        read_slice(r);
}

/* ---- life --------------------------------------------------------------------------------------------------- */

static bool reads(const struct kafka *w, const struct kclient *c, const char *topic)
{
    const struct wal_reader *r;

    TAILQ_FOREACH (r, &w->readers, next_reader)
        if (r->client == c && strcmp(kreader_topic(r), topic) == 0)
            return true;
    return false;
}

/* A client can read a partition once. */
static struct kclient *free_client(struct kafka *w, const char *topic)
{
    struct kclient *c;

    (void)kafka_client(w);
    STAILQ_FOREACH (c, &w->clients, next)
        if (!reads(w, c, topic))
            return c;
    return kclient_new(w);
}

struct wal_reader *kreader_new(struct kafka *w, const char *topic, const struct wal_start *where,
                               const struct wal_reader_cbs *cbs, void *arg)
{
    struct wal_reader *r = xcalloc(1, sizeof(*r));

    r->w = w;
    r->cbs = *cbs;
    r->arg = arg;
    r->earliest = where->earliest || wal_pos_is_none(where->pos);
    r->next = r->earliest ? 0 : (int64_t)(where->pos.minor - 1);
    if (where->handled && !r->earliest) { /* as if it had just been delivered */
        r->begun = true;
        r->next++;
    }
    r->hole = -1;
    r->heard_ms = clock_mono_ms();
    r->client = free_client(w, topic);
    r->topic = rd_kafka_topic_new(r->client->rk, topic, NULL);
    if (!r->topic)
        abort(); /* a name of more than 512 bytes: Kafka's limit is 249, etcd would not have it */
    r->q = rd_kafka_queue_new(r->client->rk);
    r->fd = kqueue_watch(r->q);
    r->ev = event_new(loop_base(w->loop), r->fd, EV_READ | EV_PERSIST, on_readable, r);
    if (!r->ev || event_priority_set(r->ev, LOOP_PRIO_LOW) < 0 || event_add(r->ev, NULL) < 0)
        abort(); /* no memory */
    timer_init(&r->timer, w->loop, LOOP_PRIO_LOW, on_timer, r);
    TAILQ_INSERT_TAIL(&w->readers, r, next_reader);
    start(r);
    khealth_start(w);
    return r;
}

void kreader_pause(struct wal_reader *r)
{
    if (r->paused)
        return;
    r->paused = true;
    if (r->started)
        kshare_update(r, true, 0); /* data will come to wait */
}

void kreader_resume(struct wal_reader *r)
{
    if (!r->paused)
        return;
    r->paused = false;
    r->heard_ms = clock_mono_ms();
    if (r->started)
        kshare_want(r);
    if (r->state == READER_READING)
        timer_set(&r->timer, 0);
}

void kreader_close(struct wal_reader *r)
{
    struct kafka *w = r->w;

    if (!w) /* closed already in this turn */
        return;
    stop(r);
    kask_forget_reader(w, r);
    r->w = NULL;
    r->state = READER_ENDED;
    r->trouble.code = ERR_OK;
    TAILQ_REMOVE(&w->readers, r, next_reader);
    timer_release(&r->timer);
    event_free(r->ev);
    kqueue_unwatch(r->q, r->fd);
    rd_kafka_queue_destroy(r->q);
    rd_kafka_topic_destroy(r->topic);
    loop_defer(w->loop, free, r);
}
