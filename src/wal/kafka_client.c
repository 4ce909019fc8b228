/*
 * kafka_client.c - one rd_kafka_t: its errors, its logs, the records that are lent out.
 */
#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "wal/kafka_priv.h"

enum { EVENTS_A_TURN = 32 };

/* ---- queues and their event file descriptors --------------------------------------------------- */

/* Non-blocking: librdkafka writes with its locks held, and a full counter would stop it for ever. */
int kqueue_watch(rd_kafka_queue_t *q)
{
    static const uint64_t one = 1;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    if (fd < 0) {
        log_error("wal", "no file descriptor for a queue of Kafka", KS("err", strerror(errno)));
        abort();
    }
    rd_kafka_queue_io_event_enable(q, fd, &one, sizeof(one));
    return fd;
}

void kqueue_unwatch(rd_kafka_queue_t *q, int fd)
{
    rd_kafka_queue_io_event_enable(q, -1, NULL, 0);
    close(fd);
}

void kqueue_drain(int fd)
{
    uint64_t count;

    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
}

void kqueue_signal(int fd)
{
    static const uint64_t one = 1;

    while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

/* ---- errors and logs ---------------------------------------------------------------------------- */

/* syslog's levels. What matters comes as an error too and is told as trouble. */
static void pass_log(rd_kafka_event_t *e)
{
    const char *facility, *text;
    int level;

    if (rd_kafka_event_log(e, &facility, &text, &level) == 0)
        log_at(level <= 2 ? LOG_ERROR : LOG_DEBUG, "rdkafka", text, KS("facility", facility));
}

static void pass_event(struct kclient *c, rd_kafka_event_t *e)
{
    switch (rd_kafka_event_type(e)) {
    case RD_KAFKA_EVENT_LOG:
        pass_log(e);
        break;
    case RD_KAFKA_EVENT_ERROR:
        khealth_on_error(c->w, rd_kafka_event_error(e), rd_kafka_event_error_string(e));
        break;
    default:
        break;
    }
}

static void on_main(evutil_socket_t fd, short what, void *arg)
{
    struct kclient *c = arg;
    rd_kafka_event_t *e;

    (void)what;
    kqueue_drain(fd);
    for (int i = 0; i < EVENTS_A_TURN; i++) {
        e = rd_kafka_queue_poll(c->main_q, 0);
        if (!e)
            return;
        pass_event(c, e);
        rd_kafka_event_destroy(e);
    }
    kqueue_signal(fd); /* the rest in the next turn */
}

/* ---- life ------------------------------------------------------------------------------------------ */

struct kclient *kclient_new(struct kafka *w)
{
    struct kclient *c = xcalloc(1, sizeof(*c));
    rd_kafka_conf_t *conf = rd_kafka_conf_dup(w->conf);
    char why[400];

    if (rd_kafka_conf_set(conf, "bootstrap.servers", w->brokers, why, sizeof(why)) == RD_KAFKA_CONF_OK)
        c->rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why));
    if (!c->rk) { /* it could be made before: no memory or no thread */
        log_error("wal", "no Kafka client", KS("err", why));
        abort();
    }
    c->w = w;
    c->main_q = rd_kafka_queue_get_main(c->rk);
    rd_kafka_set_log_queue(c->rk, NULL); /* to the main queue */
    c->fd = kqueue_watch(c->main_q);
    c->ev = event_new(loop_base(w->loop), c->fd, EV_READ | EV_PERSIST, on_main, c);
    if (!c->ev || event_priority_set(c->ev, LOOP_PRIO_LOW) < 0 || event_add(c->ev, NULL) < 0)
        abort();          /* no memory */
    kqueue_signal(c->fd); /* what was logged before the watch */
    STAILQ_INSERT_TAIL(&w->clients, c, next);
    return c;
}

static void destroy(struct kclient *c)
{
    rd_kafka_destroy_flags(c->rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    free(c);
}

void kclient_close(struct kclient *c)
{
    c->w = NULL;
    event_free(c->ev);
    kqueue_unwatch(c->main_q, c->fd);
    rd_kafka_queue_destroy(c->main_q);
    if (c->kept == 0)
        destroy(c);
}

/* ---- records ----------------------------------------------------------------------------------------- */

struct kept {
    struct kclient *client;
    rd_kafka_message_t *msg;
};

static void give_back(void *arg)
{
    struct kept *k = arg;
    struct kclient *c = k->client;

    rd_kafka_message_destroy(k->msg);
    free(k);
    if (--c->kept == 0 && !c->w)
        destroy(c);
}

struct buf *kclient_wrap(struct kclient *c, rd_kafka_message_t *take)
{
    struct kept *k = xmalloc(sizeof(*k));

    *k = (struct kept){c, take};
    c->kept++;
    return buf_wrap(take->payload, take->len, give_back, k);
}

/*
 * librdkafka 2.0.2 decides whether to fetch a topic only when something happens to its broker; a queue that was full
 * and was emptied is nothing, and up to one second is lost (fetch.queue.backoff.ms came with 2.2). To give it the
 * credentials that it has is the one call that wakes the brokers' threads and does nothing else.
 */
static void wake(struct kclient *c)
{
    struct kafka *w = c->w;
    rd_kafka_error_t *e = rd_kafka_sasl_set_credentials(c->rk, w->username, w->password);

    c->consumed = 0;
    c->consumed_msgs = 0;
    if (e)
        rd_kafka_error_destroy(e); /* only missing strings are one */
}

void kclient_consumed(struct kclient *c, size_t bytes, unsigned msgs)
{
    const struct kafka_sizes *s = &c->w->sizes;

    c->consumed += bytes;
    c->consumed_msgs += msgs;
    if (c->consumed >= s->queue / 2 || c->consumed_msgs >= s->queue_msgs / 4)
        wake(c);
}
