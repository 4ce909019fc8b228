#include "daemon/queue.h"

#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/config.h"
#include "loop/loop.h"
#include "repl/port.h"
#include "wal/kafka.h"
#include "wal/nats.h"
#include "wal/pulsar.h"

#define SEARCH_MS 4000

/* milvus.yaml: rocksmq.path as shipped, and as the Python package sets it. */
static const char *const folders[] = {"/var/lib/milvus/rdb_data", "/var/lib/milvus/data/rocksmq"};

static struct wal_port *try_nats(struct loop *l, const char *address)
{
    return nats_open(l, &(struct nats_options){.address = address}, NULL);
}
static struct wal_port *try_kafka(struct loop *l, const char *address)
{
    return kafka_open(l, &(struct kafka_options){.brokers = address}, NULL);
}
static struct wal_port *try_pulsar(struct loop *l, const char *address)
{
    return pulsar_open(l, &(struct pulsar_options){.address = address}, NULL);
}

/* The usual ports of the brokers that Milvus knows. */
static const struct place {
    enum config_queue queue;
    const char *name, *address;
    struct wal_port *(*open)(struct loop *l, const char *address);
    void (*close)(struct wal_port *w);
} places[] = {
    {QUEUE_NATS, "NATS", "127.0.0.1:4222", try_nats, nats_close},
    {QUEUE_KAFKA, "Kafka", "127.0.0.1:9092", try_kafka, kafka_close},
    {QUEUE_PULSAR, "Pulsar", "pulsar://127.0.0.1:6650", try_pulsar, pulsar_close},
};
enum { N_PLACES = sizeof(places) / sizeof(*places) };

struct trial {
    struct queue_search *search;
    const struct place *place;
    struct wal_port *port;
    bool asked, answered, has_channel;
};

struct queue_search {
    struct loop *loop;
    struct config *config;
    struct trial trials[N_PLACES];
    struct timer timer;
    queue_found_fn done;
    void *arg;
};

static void search_free(struct queue_search *s)
{
    for (struct trial *t = s->trials; t < s->trials + N_PLACES; t++) {
        if (!t->port)
            continue;
        t->port->ops->end_cancel(t->port, t);
        t->place->close(t->port);
    }
    timer_release(&s->timer);
    free(s);
}

static void choose(struct config *c, enum config_queue queue, const char *where)
{
    char **address = queue == QUEUE_ROCKSMQ  ? &c->rocksmq_path
                     : queue == QUEUE_KAFKA  ? &c->kafka.address
                     : queue == QUEUE_PULSAR ? &c->pulsar.address
                                             : &c->nats.address;

    set_text(address, where);
    c->queue = queue;
    log_info("daemon", "the configuration names no message queue; found one", KS("at", where));
}

static const char *rocksmq_folder(void)
{
    for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
        char *file = xasprintf("%s/CURRENT", folders[i]);
        bool there = access(file, F_OK) == 0;

        free(file);
        if (there)
            return folders[i];
    }
    return NULL;
}

/* The best trial; NULL: none, or several that are as good. */
static const struct trial *best(const struct queue_search *s, unsigned *ret_answered)
{
    const struct trial *only = NULL, *with_channel = NULL;
    unsigned answered = 0, with = 0;

    for (const struct trial *t = s->trials; t < s->trials + N_PLACES; t++) {
        if (t->answered) {
            only = t;
            answered++;
        }
        if (t->has_channel) {
            with_channel = t;
            with++;
        }
    }
    *ret_answered = answered;
    if (with == 1)
        return with_channel;
    return answered == 1 ? only : NULL;
}

static int judge(struct queue_search *s, struct err *err)
{
    const char *folder = rocksmq_folder();
    unsigned answered;
    const struct trial *t;

    if (folder) {
        choose(s->config, QUEUE_ROCKSMQ, folder);
        return 0;
    }
    t = best(s, &answered);
    if (t) {
        choose(s->config, t->place->queue, t->place->address);
        return 0;
    }
    return err_set(err, ERR_NOT_FOUND, ERRC_USER,
                   "the configuration names no message queue of the source, and %s found on this machine: set one of "
                   "sourceConfig.rocksmq.path, sourceConfig.kafka.address, sourceConfig.pulsar.address, "
                   "sourceConfig.natsmq.address",
                   answered ? "several were" : "none was");
}

static void on_time(void *arg)
{
    struct queue_search *s = arg;
    queue_found_fn done = s->done;
    void *done_arg = s->arg;
    struct err err;
    int rc = judge(s, &err);

    search_free(s);
    done(done_arg, rc ? &err : NULL);
}

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct trial *t = arg;
    struct queue_search *s = t->search;
    bool open = false;

    (void)last;
    t->asked = false;
    t->answered = !err;
    t->has_channel = !err && found;
    for (size_t i = 0; i < N_PLACES; i++)
        open |= s->trials[i].asked;
    if (!open)
        timer_set(&s->timer, 0);
}

struct queue_search *queue_search_start(struct loop *l, struct config *config, queue_found_fn done, void *arg)
{
    struct queue_search *s = xcalloc(1, sizeof(*s));

    s->loop = l;
    s->config = config;
    s->done = done;
    s->arg = arg;
    timer_init(&s->timer, l, LOOP_PRIO_NORMAL, on_time, s);
    timer_set(&s->timer, rocksmq_folder() ? 0 : SEARCH_MS);
    for (size_t i = 0; i < N_PLACES && !rocksmq_folder(); i++) {
        struct trial *t = &s->trials[i];

        t->search = s;
        t->place = &places[i];
        t->port = t->place->open(l, t->place->address);
        t->asked = t->port != NULL;
        if (t->port)
            t->port->ops->end(t->port, config->replicate_chan, on_end, t);
    }
    return s;
}

void queue_search_cancel(struct queue_search *s)
{
    if (s)
        search_free(s);
}
