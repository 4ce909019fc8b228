/*
 * pulsar_sub.c - one try to subscribe: does the topic exist (and is not made by asking), which broker has it,
 * subscribe.
 */
#include "base/log.h"
#include "base/mem.h"
#include "wal/pulsar_priv.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REDIRECTS = 20 };

enum psub_state {
    PSUB_RESOLVING, /* one request under way: greeting, metadata or topics, look-up, subscribe */
    PSUB_SUBSCRIBING, /* attached to conn */
    PSUB_READY,
    PSUB_DOWN, /* told or being told */
    PSUB_CLOSED,
};

struct psub {
    struct psub_link link;
    struct pulsar *p;
    const struct psub_cbs *cbs;
    void *arg;
    enum psub_state state;
    char *topic; /* full name; with its partition once that is known */
    char *subscription;
    bool durable, earliest;
    uint64_t ledger, entry;
    unsigned redirects;
    struct pconn *conn; /* PSUB_SUBSCRIBING, PSUB_READY; else the one that is asked */
    struct preq *req;
};

struct psub_link *psub_link(struct psub *s)
{
    return &s->link;
}

static void psub_free(void *arg)
{
    struct psub *s = arg;

    free(s->topic);
    free(s->subscription);
    free(s);
}

static bool attached(const struct psub *s)
{
    return s->state == PSUB_SUBSCRIBING || s->state == PSUB_READY;
}

static void down(struct psub *s, const struct err *err)
{
    struct err e = *err;

    preq_cancel(s->req);
    s->req = NULL;
    s->state = PSUB_DOWN;
    err_wrap(&e, "%s", s->topic);
    s->cbs->on_down(s->arg, &e);
}

void psub_lost(struct psub *s, const struct err *err)
{
    down(s, err); /* the connection has forgotten it already */
}

/* The broker drops the consumer, and with it what is not durable. Its answer goes nowhere. */
static void send_close(struct psub *s)
{
    Pulsar__CommandCloseConsumer a = PULSAR__COMMAND_CLOSE_CONSUMER__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    a.consumer_id = s->link.consumer_id;
    a.request_id = pulsar_next_id(s->p);
    cmd.type = PULSAR__BASE_COMMAND__TYPE__CLOSE_CONSUMER;
    cmd.close_consumer = &a;
    pconn_send(s->conn, &cmd);
}

/* A subscription whose answer is late may still be made: hence the close. */
static void fail(struct psub *s, const struct err *err)
{
    if (attached(s)) {
        send_close(s);
        pconn_detach(s->conn, s);
    }
    down(s, err);
}

void psub_damaged(struct psub *s, const struct err *err)
{
    fail(s, err);
}

void psub_got_entry(struct psub *s, struct pulsar_entry *e)
{
    if (s->state == PSUB_READY && s->cbs->on_entry)
        s->cbs->on_entry(s->arg, e);
    else
        pulsar_entry_free(e);
}

/* ---- subscribe ------------------------------------------------------------------------------- */

static void on_subscribed(void *arg, const Pulsar__BaseCommand *a, const struct err *err)
{
    struct psub *s = arg;

    (void)a;
    s->req = NULL;
    if (err) {
        fail(s, err);
        return;
    }
    s->state = PSUB_READY;
    s->cbs->on_ready(s->arg);
}

static void subscribe(struct psub *s)
{
    Pulsar__MessageIdData id = PULSAR__MESSAGE_ID_DATA__INIT;
    Pulsar__CommandSubscribe a = PULSAR__COMMAND_SUBSCRIBE__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    a.topic = s->topic;
    a.subscription = s->subscription;
    a.consumer_id = s->link.consumer_id;
    a.request_id = pulsar_next_id(s->p);
    a.has_durable = true;
    a.durable = s->durable;
    a.has_read_compacted = true;
    a.has_force_topic_creation = true; /* false */
    a.has_initial_position = true;
    a.initial_position = 1;
    if (!s->durable) {
        id.ledger_id = s->earliest ? PULSAR_ID_NONE : s->ledger;
        id.entry_id = s->earliest ? PULSAR_ID_NONE : s->entry;
        id.has_batch_index = true; /* with an index brokers begin with this entry, without behind it */
        id.batch_index = s->earliest ? -1 : 0;
        a.start_message_id = &id;
    }
    cmd.type = PULSAR__BASE_COMMAND__TYPE__SUBSCRIBE;
    cmd.subscribe = &a;
    s->state = PSUB_SUBSCRIBING;
    pconn_attach(s->conn, s);
    s->req = pconn_request(s->conn, &cmd, a.request_id, on_subscribed, s);
}

/* ---- look-up --------------------------------------------------------------------------------- */

static void on_lookup(void *arg, const Pulsar__BaseCommand *a, const struct err *err);

static void lookup(struct psub *s, bool authoritative)
{
    Pulsar__CommandLookupTopic a = PULSAR__COMMAND_LOOKUP_TOPIC__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    a.topic = s->topic;
    a.request_id = pulsar_next_id(s->p);
    a.has_authoritative = true;
    a.authoritative = authoritative;
    cmd.type = PULSAR__BASE_COMMAND__TYPE__LOOKUP;
    cmd.lookup = &a;
    s->req = pconn_request(s->conn, &cmd, a.request_id, on_lookup, s);
}

static void on_lookup(void *arg, const Pulsar__BaseCommand *cmd, const struct err *err)
{
    struct psub *s = arg;
    const Pulsar__CommandLookupTopicResponse *a;
    struct err e;

    s->req = NULL;
    if (err) {
        fail(s, err);
        return;
    }
    if (cmd->type != PULSAR__BASE_COMMAND__TYPE__LOOKUP_RESPONSE || ++s->redirects > MAX_REDIRECTS) {
        err_set(&e, ERR_PROTO, ERRC_RETRY, "%s",
                s->redirects > MAX_REDIRECTS ? "the brokers redirect in a circle" : "not the answer to a look-up");
        fail(s, &e);
        return;
    }
    a = cmd->lookup_response;
    s->conn = pconn_broker(s->p, s->p->use_tls ? a->broker_service_url_tls : a->broker_service_url,
                           a->proxy_through_service_url, &e);
    if (!s->conn)
        fail(s, &e);
    else if (a->response == 0)
        lookup(s, a->authoritative);
    else
        subscribe(s);
}

/* ---- does it exist --------------------------------------------------------------------------- */

static void with_partitions(struct psub *s, size_t n)
{
    char *name;
    struct err e;

    if (n > 1) {
        err_set(&e, ERR_UNSUPPORTED, ERRC_USER,
                "the topic has %zu partitions; only topics with one are read, as Milvus makes them", n);
        fail(s, &e);
        return;
    }
    if (n == 1) {
        name = xasprintf("%s-partition-0", s->topic);
        free(s->topic);
        s->topic = name;
    }
    lookup(s, false);
}

static void not_found(struct psub *s)
{
    struct err e;

    err_set(&e, ERR_NOT_FOUND, ERRC_RETRY, "there is no such topic");
    fail(s, &e);
}

static void on_metadata(void *arg, const Pulsar__BaseCommand *cmd, const struct err *err)
{
    struct psub *s = arg;

    s->req = NULL;
    if (err)
        fail(s, err);
    else if (cmd->type != PULSAR__BASE_COMMAND__TYPE__PARTITIONED_METADATA_RESPONSE)
        not_found(s);
    else
        with_partitions(s, cmd->partition_metadata_response->partitions);
}

/* Old brokers, which would make the topic when asked for its partitions: is it in the list? */
static void on_topics(void *arg, const Pulsar__BaseCommand *cmd, const struct err *err)
{
    struct psub *s = arg;
    const Pulsar__CommandGetTopicsOfNamespaceResponse *a = cmd ? cmd->get_topics_response : NULL;
    size_t len = strlen(s->topic), partitions = 0;
    bool found = false;

    s->req = NULL;
    if (err) {
        fail(s, err);
        return;
    }
    for (size_t i = 0; a && i < a->n_topics; i++) {
        const char *t = a->topics[i];

        if (strncmp(t, s->topic, len) != 0)
            continue;
        found |= t[len] == '\0';
        partitions += strncmp(t + len, "-partition-", 11) == 0;
    }
    if (found || partitions)
        with_partitions(s, partitions);
    else
        not_found(s);
}

static void ask_metadata(struct psub *s)
{
    Pulsar__CommandPartitionedTopicMetadata a = PULSAR__COMMAND_PARTITIONED_TOPIC_METADATA__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    a.topic = s->topic;
    a.request_id = pulsar_next_id(s->p);
    a.has_metadata_auto_creation_enabled = true; /* false */
    cmd.type = PULSAR__BASE_COMMAND__TYPE__PARTITIONED_METADATA;
    cmd.partition_metadata = &a;
    s->req = pconn_request(s->conn, &cmd, a.request_id, on_metadata, s);
}

static void ask_topics(struct psub *s)
{
    Pulsar__CommandGetTopicsOfNamespace a = PULSAR__COMMAND_GET_TOPICS_OF_NAMESPACE__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;
    char *ns = xasprintf("%s/%s", s->p->tenant, s->p->name_space);

    a.request_id = pulsar_next_id(s->p);
    a.namespace_ = ns;
    cmd.type = PULSAR__BASE_COMMAND__TYPE__GET_TOPICS_OF_NAMESPACE;
    cmd.get_topics = &a;
    s->req = pconn_request(s->conn, &cmd, a.request_id, on_topics, s);
    free(ns);
}

static void on_greeted(void *arg, const Pulsar__BaseCommand *cmd, const struct err *err)
{
    struct psub *s = arg;

    (void)cmd;
    s->req = NULL;
    if (err)
        fail(s, err);
    else if (pconn_safe_metadata(s->conn))
        ask_metadata(s);
    else
        ask_topics(s);
}

/* ---- interface ------------------------------------------------------------------------------- */

struct psub *psub_open(struct pulsar *p, const struct psub_options *o, const struct psub_cbs *cbs, void *arg)
{
    struct psub *s = xcalloc(1, sizeof(*s));

    s->p = p;
    s->cbs = cbs;
    s->arg = arg;
    s->link.sub = s;
    s->link.consumer_id = pulsar_next_id(p);
    s->topic = xasprintf("persistent://%s/%s/%s", p->tenant, p->name_space, o->topic);
    s->durable = o->subscription != NULL;
    s->subscription = s->durable ? xstrdup(o->subscription)
                                 : xasprintf("%sreader-%s-%llu", p->prefix, p->run,
                                             (unsigned long long)s->link.consumer_id);
    s->earliest = o->earliest;
    s->ledger = o->ledger;
    s->entry = o->entry;
    s->conn = pconn_service(p);
    s->req = pconn_ready(s->conn, on_greeted, s);
    return s;
}

void psub_close(struct psub *s)
{
    if (!s || s->state == PSUB_CLOSED)
        return;
    preq_cancel(s->req);
    s->req = NULL;
    if (attached(s)) {
        send_close(s);
        pconn_detach(s->conn, s);
    }
    s->state = PSUB_CLOSED;
    loop_defer(s->p->loop, psub_free, s);
}

void psub_flow(struct psub *s, uint32_t permits)
{
    Pulsar__CommandFlow a = PULSAR__COMMAND_FLOW__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    assert(s->state == PSUB_READY);
    a.consumer_id = s->link.consumer_id;
    a.message_permits = permits;
    cmd.type = PULSAR__BASE_COMMAND__TYPE__FLOW;
    cmd.flow = &a;
    pconn_send(s->conn, &cmd);
}

struct preq *psub_last(struct psub *s, preq_fn done, void *arg)
{
    Pulsar__CommandGetLastMessageId a = PULSAR__COMMAND_GET_LAST_MESSAGE_ID__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    assert(s->state == PSUB_READY);
    a.consumer_id = s->link.consumer_id;
    a.request_id = pulsar_next_id(s->p);
    cmd.type = PULSAR__BASE_COMMAND__TYPE__GET_LAST_MESSAGE_ID;
    cmd.get_last_message_id = &a;
    return pconn_request(s->conn, &cmd, a.request_id, done, arg);
}

struct preq *psub_ack(struct psub *s, uint64_t ledger, uint64_t entry, preq_fn done, void *arg)
{
    Pulsar__MessageIdData id = PULSAR__MESSAGE_ID_DATA__INIT, *ids = &id;
    Pulsar__CommandAck a = PULSAR__COMMAND_ACK__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    assert(s->state == PSUB_READY);
    id.ledger_id = ledger;
    id.entry_id = entry;
    a.consumer_id = s->link.consumer_id;
    a.ack_type = 1;
    a.n_message_id = 1;
    a.message_id = &ids;
    a.has_request_id = true;
    a.request_id = pulsar_next_id(s->p);
    cmd.type = PULSAR__BASE_COMMAND__TYPE__ACK;
    cmd.ack = &a;
    return pconn_request(s->conn, &cmd, a.request_id, done, arg);
}

struct preq *psub_unsubscribe(struct psub *s, preq_fn done, void *arg)
{
    Pulsar__CommandUnsubscribe a = PULSAR__COMMAND_UNSUBSCRIBE__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    assert(s->state == PSUB_READY);
    a.consumer_id = s->link.consumer_id;
    a.request_id = pulsar_next_id(s->p);
    cmd.type = PULSAR__BASE_COMMAND__TYPE__UNSUBSCRIBE;
    cmd.unsubscribe = &a;
    return pconn_request(s->conn, &cmd, a.request_id, done, arg);
}
