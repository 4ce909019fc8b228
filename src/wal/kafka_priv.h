/*
 * kafka_priv.h - parts of the Kafka port.
 *
 *   kafka_conf.c    options to librdkafka's configuration
 *   kafka_client.c  clients: one rd_kafka_t each, its errors and logs
 *   kafka_ask.c     questions to brokers in the helper thread: where a topic begins and ends
 *   kafka_reader.c  one reader: its queue, slices, LOST
 *   kafka_share.c   how many busy readers may have prefetched data at a time
 *   kafka_health.c  is somebody silent? probes, trouble
 *   kafka.c         the port
 *
 * Everything here is the loop thread's, but for ask_run().
 */
#ifndef WAL_KAFKA_PRIV_H
#define WAL_KAFKA_PRIV_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include <librdkafka/rdkafka.h>

#include "base/err.h"
#include "loop/loop.h"
#include "repl/port.h"

struct event;
struct kafka;
struct kafka_options;
struct xthread;

enum {
    KAFKA_PARTITION = 0,
    KAFKA_TEXT = 600, /* of an error */
};

/* ---- configuration ------------------------------------------------------------------------- */

/* Sizes that follow from fetch_bytes. */
struct kafka_sizes {
    size_t response; /* one answer to a fetch, of all topics together */
    size_t topic;    /* one topic's part of it */
    size_t queue;    /* a topic that has as much waiting is not fetched */
    unsigned queue_msgs;
    unsigned busy; /* topics that may have data waiting at a time */
};

/* Without bootstrap.servers. NULL: ERR_INVALID. The options must live until rd_kafka_new() or destroy. */
rd_kafka_conf_t *kafka_conf_new(const struct kafka_options *o, struct kafka_sizes *ret_sizes, struct err *err);
/* That a client can be made of conf (TLS files, mechanisms) and that the addresses can be parsed. */
int kafka_conf_check(const rd_kafka_conf_t *conf, const char *brokers, struct err *err);

/* ---- clients ------------------------------------------------------------------------------- */

struct kclient {
    STAILQ_ENTRY(kclient) next;
    struct kafka *w; /* NULL: the port is closed, buffers are still kept */
    rd_kafka_t *rk;
    rd_kafka_queue_t *main_q; /* errors and logs */
    int fd;
    struct event *ev;
    size_t kept;           /* records that somebody holds */
    size_t consumed;       /* bytes since the last kclient_wake() */
    unsigned consumed_msgs;
};

/* Never NULL: the configuration was checked. */
struct kclient *kclient_new(struct kafka *w);
/* Destroys it, now or with the last buffer. */
void kclient_close(struct kclient *c);
/* A buffer around a record, which it takes; the last reference gives it back. */
struct buf *kclient_wrap(struct kclient *c, rd_kafka_message_t *take);
/* Data left the queues: lets librdkafka fetch again, if that may be worth it. */
void kclient_consumed(struct kclient *c, size_t bytes, unsigned msgs);

/* A queue's event: a file descriptor that becomes readable when the queue gets its first entry. */
int kqueue_watch(rd_kafka_queue_t *q);
void kqueue_unwatch(rd_kafka_queue_t *q, int fd);
/* Takes the event, and makes one. */
void kqueue_drain(int fd);
void kqueue_signal(int fd);

/* ---- questions ----------------------------------------------------------------------------- */

struct kask;
typedef void (*kask_fn)(struct kafka *w, struct kask *a);

struct kask {
    TAILQ_ENTRY(kask) next;
    rd_kafka_t *rk;
    char *topic;
    unsigned limit_ms; /* at most; tries within are shorter, so that closing need not wait */
    kask_fn on_answer; /* may do one callback to the user, as its last act */
    struct wal_reader *reader; /* NULL: closed, or none */
    wal_end_fn done;           /* of end(); NULL: cancelled, or none */
    void *arg;
    /* the answer */
    rd_kafka_resp_err_t err;
    int64_t low, high; /* first offset, and behind the last */
};
TAILQ_HEAD(kask_list, kask);

/* Never NULL. rk must live until the port is closed. */
struct kask *kask_new(rd_kafka_t *rk, const char *topic, unsigned limit_ms, kask_fn on_answer);
void kask_submit(struct kafka *w, struct kask *a);
/* What was not answered yet loses its reader or callback. */
void kask_forget_reader(struct kafka *w, const struct wal_reader *r);
void kask_forget_end(struct kafka *w, void *arg);
void kask_free_all(struct kafka *w);
/* The broker did answer, only not what was hoped for. */
bool kask_reached(rd_kafka_resp_err_t err);
/* There is no such topic. */
bool kask_absent(rd_kafka_resp_err_t err);

/* ---- readers ------------------------------------------------------------------------------- */

enum reader_state {
    READER_READING,
    READER_CHECKING, /* is its place lost? A question is out, or the timer is armed for the next step */
    READER_ENDED,    /* LOST, USER or DATA is told or about to be: the timer is armed */
};

struct wal_reader {
    TAILQ_ENTRY(wal_reader) next_reader;
    TAILQ_ENTRY(wal_reader) next_place; /* while busy or parked */
    struct kafka *w;                    /* NULL: closed */
    struct kclient *client;
    rd_kafka_topic_t *topic;
    rd_kafka_queue_t *q;
    int fd;
    struct event *ev;
    struct timer timer; /* the next slice, step of a check, or something to tell */
    struct wal_reader_cbs cbs;
    void *arg;
    enum reader_state state;
    bool started;  /* librdkafka reads it */
    bool paused;   /* by its user */
    bool earliest; /* until a record came: from the first */
    bool begun;    /* a record came */
    int64_t next;  /* offset: behind the last record; before it came, the wished start */
    bool at_end;   /* the end was told after the last record */
    bool absent;   /* its topic is not there: to be told as the end */
    /* kafka_share.c */
    bool busy;   /* has data waiting, as far as we know */
    bool parked; /* must wait for others */
    size_t turn; /* bytes since it became busy */
    /* READER_CHECKING */
    bool asking;       /* a question is out */
    bool restart;      /* librdkafka stopped reading */
    int64_t hole;     /* the first record behind the wished start, which is not there; -1: none came */
    uint64_t doubt_ms; /* since; 0: no doubt. Kept until a record comes */
    /* kafka_health.c */
    uint64_t heard_ms, probed_ms; /* when something came, when its topic was asked for */
    uint64_t failing_ms;          /* its topic is in trouble since; 0: is not */
    bool told;                    /* that there is trouble */
    struct err trouble;           /* of its topic; READER_ENDED: what ended it, code 0: told */
};

const char *kreader_topic(const struct wal_reader *r);
struct wal_reader *kreader_new(struct kafka *w, const char *topic, const struct wal_start *start,
                               const struct wal_reader_cbs *cbs, void *arg);
void kreader_pause(struct wal_reader *r);
void kreader_resume(struct wal_reader *r);
void kreader_close(struct wal_reader *r);

/* ---- sharing of prefetched memory ---------------------------------------------------------- */

/* After a slice of r: left says that more is waiting. */
void kshare_update(struct wal_reader *r, bool left, size_t bytes);
/* r's user has resumed it. */
void kshare_want(struct wal_reader *r);
/* r is closed, ended or starts anew. */
void kshare_leave(struct wal_reader *r);

/* ---- health -------------------------------------------------------------------------------- */

/* An error of a client as a whole: connections, authentication. */
void khealth_on_error(struct kafka *w, rd_kafka_resp_err_t code, const char *text);
/* A record or the end came: the trouble of r, and that of the port, is over. */
void khealth_heard(struct wal_reader *r);
/* r's topic does not work at present. text may be NULL. */
void khealth_failed(struct wal_reader *r, rd_kafka_resp_err_t code, const char *text);
/* Tells r's user that there is trouble, or no more, if that is news. True: a callback was made. */
bool khealth_tell(struct wal_reader *r);
/* What to say of a topic that cannot be read or asked for. text may be NULL. */
void khealth_error(const struct kafka *w, const char *topic, rd_kafka_resp_err_t code, const char *text,
                   struct err *ret);
/* The timer. Runs while there are readers. */
void khealth_start(struct kafka *w);
void khealth_on_timer(void *arg);

/* ---- the port ------------------------------------------------------------------------------ */

struct kafka {
    struct wal_port port;
    struct loop *loop;
    char *brokers, *username, *password;
    rd_kafka_conf_t *conf;
    struct kafka_sizes sizes;
    struct xthread *thread;
    atomic_bool closing; /* read by the helper */
    bool closed;
    STAILQ_HEAD(, kclient) clients;
    TAILQ_HEAD(, wal_reader) readers;
    TAILQ_HEAD(, wal_reader) busy, parked; /* kafka_share.c */
    unsigned n_busy;
    struct kask_list asks, asked; /* waiting; in the helper or being answered */
    bool asking;
    /* kafka_health.c */
    struct timer health;
    bool probing;
    bool suspect;        /* a client reported an error; a probe will tell */
    uint64_t failing_ms; /* no broker answers since; 0: they do */
    rd_kafka_resp_err_t last_code;
    char last_text[KAFKA_TEXT];
};

/* The first client, for questions; made when needed. */
struct kclient *kafka_client(struct kafka *w);
#endif
