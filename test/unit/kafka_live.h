/*
 * kafka_live.h - for tests on real brokers that the test starts itself: their processes, records on them, and a reader
 * that notes what it got.  Included by one test file of a program.
 */
#ifndef TEST_KAFKA_LIVE_H
#define TEST_KAFKA_LIVE_H
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "repl/port.h"

#define LIMIT_MS 40000
#define WAIT_FOR(cond)                                                                            \
    do {                                                                                          \
        uint64_t end_ = clock_mono_ms() + LIMIT_MS;                                               \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > end_)                                                           \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            turn();                                                                               \
        }                                                                                         \
    } while (0)

static struct loop *loop;
static struct wal_port *port;
static rd_kafka_t *producer;
static const char *brokers;
static char run[20]; /* a part of the topics' names */
static uint64_t longest_turn_ms;

static void turn(void)
{
    uint64_t begin = clock_mono_ms();

    loop_once(loop, false);
    begin = clock_mono_ms() - begin;
    if (begin > longest_turn_ms)
        longest_turn_ms = begin;
    usleep(300);
}

/* ---- brokers: a shell command that runs one in the foreground ---------------------------------------- */

static void broker_run(pid_t *broker, const char *command)
{
    assert_int_equal(*broker, 0);
    *broker = fork();
    assert_true(*broker >= 0);
    if (*broker == 0) {
        setsid();
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
}

static void broker_end(pid_t *broker, int sig)
{
    int status;

    if (!*broker)
        return;
    kill(*broker, sig);
    while (waitpid(*broker, &status, 0) != *broker)
        ;
    *broker = 0;
}

static void broker_wait(void)
{
    const struct rd_kafka_metadata *md;
    uint64_t end = clock_mono_ms() + LIMIT_MS;

    while (rd_kafka_metadata(producer, 1, NULL, &md, 1000) != RD_KAFKA_RESP_ERR_NO_ERROR)
        if (clock_mono_ms() > end)
            fail_msg("the broker does not answer");
    rd_kafka_metadata_destroy(md);
}

/* ---- records ------------------------------------------------------------------------------------------- */

static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
    (void)rk;
    (void)opaque;
    if (m->err)
        fail_msg("not produced: %s", rd_kafka_err2str(m->err));
}

/* idempotent: what it repeats is there once and in order. */
static rd_kafka_t *producer_new(const char *codec, bool idempotent)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char why[200];
    rd_kafka_t *rk;

    rd_kafka_conf_set(conf, "bootstrap.servers", brokers, why, sizeof(why));
    rd_kafka_conf_set(conf, "message.max.bytes", "10485760", why, sizeof(why));
    rd_kafka_conf_set(conf, "compression.codec", codec, why, sizeof(why));
    rd_kafka_conf_set(conf, "linger.ms", "1", why, sizeof(why));
    rd_kafka_conf_set(conf, "enable.idempotence", idempotent ? "true" : "false", why, sizeof(why));
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
    assert_non_null(rk);
    return rk;
}

static void produce_one(rd_kafka_t *rk, const char *topic, const void *data, size_t len)
{
    rd_kafka_resp_err_t e;

    do {
        e = rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(0),
                              RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_VALUE((void *)(uintptr_t)data, len),
                              RD_KAFKA_V_END);
        rd_kafka_poll(rk, e == RD_KAFKA_RESP_ERR__QUEUE_FULL ? 50 : 0);
    } while (e == RD_KAFKA_RESP_ERR__QUEUE_FULL);
    assert_int_equal(e, RD_KAFKA_RESP_ERR_NO_ERROR);
}

/* Records "<number>" padded to size; the first has the number first. */
static void produce(const char *topic, unsigned first, unsigned n, size_t size)
{
    char *data = xcalloc(1, size < 16 ? 16 : size);

    for (unsigned i = 0; i < n; i++) {
        memset(data, 'x', size);
        snprintf(data, 16, "%010u", first + i);
        produce_one(producer, topic, data, size < 16 ? 11 : size);
    }
    assert_int_equal(rd_kafka_flush(producer, LIMIT_MS), 0);
    free(data);
}

static const char *topic_name(const char *what)
{
    static char names[4][80];
    static unsigned next;
    char *name = names[next++ % 4];

    snprintf(name, 80, "t-%s-%s", run, what);
    return name;
}

/* ---- a reader and what it got ---------------------------------------------------------------------- */

struct seen {
    struct wal_reader *r;
    bool keep; /* the last buffer */
    struct buf *kept;
    size_t n, bytes, batches, largest;
    uint64_t first, last; /* positions */
    unsigned first_number, last_number;
    unsigned ends, told, over;
    bool dense; /* numbers and positions rise by one */
    bool failed;
    struct err err;
    unsigned close_after; /* records */
    bool pause_each;
};

static void seen_close(struct seen *s)
{
    if (s->r)
        port->ops->close(s->r);
    s->r = NULL;
    buf_unref(s->kept);
    s->kept = NULL;
}

static void note(struct seen *s, const struct wal_msg *m)
{
    unsigned number = m->len >= 10 ? (unsigned)strtoul((const char *)m->data, NULL, 10) : 0;

    assert_true(m->data >= m->buf->data && m->data + m->len <= m->buf->data + m->buf->size);
    assert_int_equal(m->pos.major, 0);
    if (s->n == 0) {
        s->first = m->pos.minor;
        s->first_number = number;
        s->dense = true;
    } else {
        assert_true(m->pos.minor > s->last);
        s->dense &= m->pos.minor == s->last + 1 && number == s->last_number + 1;
    }
    s->last = m->pos.minor;
    s->last_number = number;
    s->bytes += m->len;
    s->largest = m->len > s->largest ? m->len : s->largest;
    s->n++;
    if (s->keep) {
        buf_unref(s->kept);
        s->kept = buf_ref(m->buf);
    }
}

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct seen *s = arg;

    assert_non_null(s->r);
    for (size_t i = 0; i < n; i++)
        note(s, &msgs[i]);
    s->batches++;
    s->ends += caught_up;
    if (s->pause_each)
        port->ops->pause(s->r);
    if (s->close_after && s->n >= s->close_after)
        seen_close(s);
}

static void on_trouble(void *arg, const struct err *err)
{
    struct seen *s = arg;

    assert_non_null(s->r);
    if (!err) {
        s->over++;
        return;
    }
    s->err = *err;
    if (err->cls == ERRC_RETRY)
        s->told++;
    else
        s->failed = true;
}

static const struct wal_reader_cbs cbs = {on_batch, on_trouble};

/* from: an offset, or -1: the first. */
static void read_from(struct seen *s, const char *topic, int64_t from)
{
    struct wal_start start = {.earliest = from < 0, .pos = {0, (uint64_t)(from + 1)}};

    s->r = port->ops->open(port, topic, &start, &cbs, s);
}
#endif
