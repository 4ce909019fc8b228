#include "daemon/queue.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/mem.h"
#include "daemon/config.h"
#include "repl/port.h"
#include "wal/kafka.h"
#include "wal/nats.h"
#include "wal/pulsar.h"
#include "wal/rocksmq.h"
#include "wal/share.h"

/* What tasks that read one channel may be apart and still share its reader. */
#define SHARE_BYTES (2 << 20)

struct queue {
    struct wal_port *inner, *shared;
    void (*close)(struct wal_port *w);
};

static struct wal_port *open_rocksmq(struct loop *l, const struct config *c)
{
    char *dir = xasprintf("%s.rocksmq", c->registry_path);
    struct wal_port *w;

    (void)mkdir(dir, 0700); /* what is wrong with it shows when it is used */
    w = rocksmq_open(l, c->rocksmq_path, dir);
    free(dir);
    return w;
}

static struct wal_port *open_kafka(struct loop *l, const struct config *c, struct err *err)
{
    const struct config_kafka *k = &c->kafka;

    return kafka_open(l,
                      &(struct kafka_options){.brokers = k->address,
                                              .security_protocol = k->security_protocol,
                                              .sasl_mechanisms = k->sasl_mechanisms,
                                              .sasl_username = k->sasl_username,
                                              .sasl_password = k->sasl_password,
                                              .ca_path = k->tls.ca_cert_path,
                                              .cert_path = k->tls.cert_path,
                                              .key_path = k->tls.key_path,
                                              .key_password = k->tls.key_password,
                                              .properties = (const char *const *)k->consumer,
                                              .fetch_bytes = c->fetch_bytes},
                      err);
}

static struct wal_port *open_pulsar(struct loop *l, const struct config *c, struct err *err)
{
    const struct config_pulsar *p = &c->pulsar;

    return pulsar_open(l,
                       &(struct pulsar_options){.address = p->address,
                                                .tenant = p->tenant,
                                                .name_space = p->name_space,
                                                .auth_token = p->auth_token,
                                                .ca_path = p->tls.ca_cert_path,
                                                .cert_path = p->tls.cert_path,
                                                .key_path = p->tls.key_path,
                                                .receive_bytes = c->fetch_bytes},
                       err);
}

static struct wal_port *open_nats(struct loop *l, const struct config *c, struct err *err)
{
    const struct config_nats *n = &c->nats;

    return nats_open(l,
                     &(struct nats_options){.address = n->address,
                                            .username = n->username,
                                            .password = n->password,
                                            .token = n->token,
                                            .tls = n->enable_tls,
                                            .ca_path = n->tls.ca_cert_path,
                                            .cert_path = n->tls.cert_path,
                                            .key_path = n->tls.key_path,
                                            .fetch_bytes = c->fetch_bytes},
                     err);
}

struct queue *queue_open(struct loop *l, const struct config *c, struct err *err)
{
    struct queue *q = xcalloc(1, sizeof(*q));

    switch (c->queue) {
    case QUEUE_DETECT: /* the caller's search comes first */
        abort();
    case QUEUE_ROCKSMQ:
        q->inner = open_rocksmq(l, c);
        q->close = rocksmq_close;
        break;
    case QUEUE_KAFKA:
        q->inner = open_kafka(l, c, err);
        q->close = kafka_close;
        break;
    case QUEUE_PULSAR:
        q->inner = open_pulsar(l, c, err);
        q->close = pulsar_close;
        break;
    case QUEUE_NATS:
        q->inner = open_nats(l, c, err);
        q->close = nats_close;
        break;
    }
    if (!q->inner) {
        free(q);
        return NULL;
    }
    q->shared = share_open(l, q->inner, SHARE_BYTES);
    return q;
}

struct wal_port *queue_port(struct queue *q)
{
    return q->shared;
}

void queue_close(struct queue *q)
{
    if (!q)
        return;
    share_close(q->shared);
    q->close(q->inner);
    free(q);
}
