#include "wal/kafka.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "loop/loop.h"
#include "loop/xthread.h"
#include "wal/id64_priv.h"
#include "wal/kafka_priv.h"

enum {
    END_MS = 3000,
};

static struct kafka *from_port(struct wal_port *p)
{
    return container_of(p, struct kafka, port);
}

struct kclient *kafka_client(struct kafka *w)
{
    return STAILQ_EMPTY(&w->clients) ? kclient_new(w) : STAILQ_FIRST(&w->clients);
}

/* ---- end() ----------------------------------------------------------------------------------- */

static void on_end(struct kafka *w, struct kask *a)
{
    struct err err;

    if (!a->done)
        return;
    if (a->err && !kask_absent(a->err)) {
        khealth_error(w, a->topic, a->err, NULL, &err);
        a->done(a->arg, &err, false, WAL_POS_NONE);
    } else if (a->err || a->low >= a->high) {
        a->done(a->arg, NULL, false, WAL_POS_NONE);
    } else {
        a->done(a->arg, NULL, true, (struct wal_pos){0, (uint64_t)a->high}); /* the offset high - 1 */
    }
}

static void op_end(struct wal_port *port, const char *topic, wal_end_fn done, void *arg)
{
    struct kafka *w = from_port(port);
    struct kask *a = kask_new(kafka_client(w)->rk, topic, END_MS, on_end);

    a->done = done;
    a->arg = arg;
    kask_submit(w, a);
}

static void op_end_cancel(struct wal_port *port, void *arg)
{
    kask_forget_end(from_port(port), arg);
}

/* ---- readers and ids --------------------------------------------------------------------------- */

static struct wal_reader *op_open(struct wal_port *port, const char *topic, const struct wal_start *start,
                                  const struct wal_reader_cbs *cbs, void *arg)
{
    return kreader_new(from_port(port), topic, start, cbs, arg);
}

/* The offset as int64, little endian (source.md 7.1). */
static size_t op_id_encode(struct wal_pos pos, uint8_t *ret_id)
{
    return id64_encode(pos.minor - 1, ret_id);
}

/* 0, or ERR_PROTO: not 8 bytes or negative. */
static int op_id_decode(const uint8_t *id, size_t len, struct wal_pos *ret_pos)
{
    uint64_t v;

    if (id64_decode(id, len, INT64_MAX, &v))
        return ERR_PROTO;
    *ret_pos = (struct wal_pos){0, v + 1};
    return 0;
}

static const struct wal_port_ops kafka_ops = {
    .open = op_open,
    .pause = kreader_pause,
    .resume = kreader_resume,
    .close = kreader_close,
    .end = op_end,
    .end_cancel = op_end_cancel,
    .id_encode = op_id_encode,
    .id_decode = op_id_decode,
};

/* ---- life ---------------------------------------------------------------------------------------- */

struct wal_port *kafka_open(struct loop *l, const struct kafka_options *o, struct err *err)
{
    struct kafka_sizes sizes;
    rd_kafka_conf_t *conf = kafka_conf_new(o, &sizes, err);
    struct kafka *w;

    if (!conf)
        return NULL;
    if (kafka_conf_check(conf, o->brokers, err)) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }
    w = xcalloc(1, sizeof(*w));
    w->port = (struct wal_port){.ops = &kafka_ops, .name = "kafka", .setting = "sourceConfig.kafka.address"};
    w->loop = l;
    w->brokers = xstrdup(o->brokers);
    w->username = xstrdup(o->sasl_username ? o->sasl_username : "");
    w->password = xstrdup(o->sasl_password ? o->sasl_password : "");
    w->conf = conf;
    w->sizes = sizes;
    STAILQ_INIT(&w->clients);
    TAILQ_INIT(&w->readers);
    TAILQ_INIT(&w->busy);
    TAILQ_INIT(&w->parked);
    TAILQ_INIT(&w->asks);
    TAILQ_INIT(&w->asked);
    w->thread = xthread_new(l, "kafka");
    timer_init(&w->health, l, LOOP_PRIO_LOW, khealth_on_timer, w);
    return &w->port;
}

static void free_port(void *arg)
{
    struct kafka *w = arg;

    free(w->brokers);
    free(w->username);
    free(w->password);
    free(w);
}

void kafka_close(struct wal_port *port)
{
    struct kafka *w;
    struct kclient *c;

    if (!port)
        return;
    w = from_port(port);
    assert(TAILQ_EMPTY(&w->readers));
    w->closed = true;
    atomic_store(&w->closing, true);
    xthread_free(w->thread); /* a running question ends within a second */
    kask_free_all(w);
    timer_release(&w->health);
    while ((c = STAILQ_FIRST(&w->clients))) {
        STAILQ_REMOVE_HEAD(&w->clients, next);
        kclient_close(c);
    }
    rd_kafka_conf_destroy(w->conf);
    loop_defer(w->loop, free_port, w); /* a callback of ours may be on the stack */
}
