/*
 * pulsar_conn.c - one connection per broker, shared by all readers: frames in, requests and answers, keep-alive.
 *
 * Small frames are parsed where they were received, and copied if they hold an entry; a frame above the receive
 * buffer is received into memory of its own, which its messages then refer to.
 */
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "net/conn.h"
#include "wal/pulsar_priv.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    RECV_BYTES = 64 << 10,
    READ_ONCE = 1 << 20, /* in one callback */
    TICK_MS = 1000,
    IDLE_MS = 60000, /* without subscriptions and requests */
    MAX_UNSENT = 16 << 20,
    PROTOCOL_VERSION = 19,
};
#define CLIENT_VERSION "milvus-cdc " MILVUS_CDC_VERSION

enum pconn_state {
    PCONN_CONNECTING,
    PCONN_GREETING, /* CONNECT is sent */
    PCONN_READY,
    PCONN_DOWN, /* out of the list; its memory waits for the end of the turn */
};

struct preq {
    TAILQ_ENTRY(preq) next;
    struct pconn *conn;
    uint64_t id; /* 0: waits for the greeting only */
    uint64_t deadline_ms;
    preq_fn done;
    void *arg;
};
TAILQ_HEAD(preq_list, preq);

struct pconn {
    LIST_ENTRY(pconn) next;
    struct pulsar *p;
    enum pconn_state state;
    char *host;
    uint16_t port;
    char *logical; /* the broker behind a proxy, or NULL */
    bool service;  /* to an address of the settings: a failure has the next one tried */
    struct conn *conn;
    struct preq_list reqs;
    LIST_HEAD(, psub_link) subs;
    struct pb_out waiting; /* frames for after the greeting */
    struct timer tick;
    uint64_t last_recv_ms, last_used_ms;
    bool pinged;
    bool safe_metadata;
    size_t max_frame;
    size_t n_recv; /* bytes in recv */
    struct buf *frame; /* a large one that is being received */
    size_t got;
    uint8_t recv[RECV_BYTES];
};

/* ---- the end of a connection ---------------------------------------------------------------- */

static void pconn_free(void *arg)
{
    struct pconn *c = arg;

    pb_out_release(&c->waiting);
    buf_unref(c->frame);
    free(c->host);
    free(c->logical);
    free(c);
}

static void drop(struct pconn *c)
{
    assert(c->state != PCONN_DOWN);
    c->state = PCONN_DOWN;
    LIST_REMOVE(c, next);
    conn_close(c->conn);
    timer_release(&c->tick);
    loop_defer(c->p->loop, pconn_free, c);
}

static void answer(struct preq *r, const Pulsar__BaseCommand *cmd, const struct err *err)
{
    TAILQ_REMOVE(&r->conn->reqs, r, next);
    r->conn->last_used_ms = clock_mono_ms();
    r->done(r->arg, cmd, err);
    free(r);
}

/* Tells everybody who uses it; they may make new connections meanwhile, which are others. */
static void go_down(struct pconn *c, const struct err *err)
{
    struct psub_link *s;
    struct preq *r;

    if (c->state == PCONN_DOWN)
        return;
    if (c->service && c->state != PCONN_READY)
        c->p->addr = (c->p->addr + 1) % c->p->n_addrs;
    drop(c);
    while ((s = LIST_FIRST(&c->subs))) {
        LIST_REMOVE(s, next);
        psub_lost(s->sub, err);
    }
    while ((r = TAILQ_FIRST(&c->reqs)))
        answer(r, NULL, err);
}

static void broken(struct pconn *c, const char *why)
{
    struct err err;

    err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "Pulsar at %s:%u%s%s: %s", c->host, c->port, c->logical ? " for " : "",
            c->logical ? c->logical : "", why);
    go_down(c, &err);
}

/* ---- sending -------------------------------------------------------------------------------- */

static void send_now(struct pconn *c, const Pulsar__BaseCommand *cmd)
{
    struct pb_out o = {0};

    pulsar_frame_write(&o, cmd, NULL, 0);
    conn_write(c->conn, o.data, o.len);
    pb_out_release(&o);
}

void pconn_send(struct pconn *c, const Pulsar__BaseCommand *cmd)
{
    if (c->state == PCONN_READY)
        send_now(c, cmd);
    else if (c->state != PCONN_DOWN)
        pulsar_frame_write(&c->waiting, cmd, NULL, 0);
}

static struct preq *add_request(struct pconn *c, uint64_t id, preq_fn done, void *arg)
{
    struct preq *r = xcalloc(1, sizeof(*r));

    assert(c->state != PCONN_DOWN);
    r->conn = c;
    r->id = id;
    r->deadline_ms = clock_mono_ms() + c->p->request_ms;
    r->done = done;
    r->arg = arg;
    TAILQ_INSERT_TAIL(&c->reqs, r, next);
    return r;
}

static void on_ready_now(void *arg);

struct preq *pconn_ready(struct pconn *c, preq_fn done, void *arg)
{
    if (c->state == PCONN_READY)
        loop_defer(c->p->loop, on_ready_now, c);
    return add_request(c, 0, done, arg);
}

struct preq *pconn_request(struct pconn *c, const Pulsar__BaseCommand *cmd, uint64_t id, preq_fn done, void *arg)
{
    pconn_send(c, cmd);
    return add_request(c, id, done, arg);
}

void preq_cancel(struct preq *r)
{
    if (!r)
        return;
    TAILQ_REMOVE(&r->conn->reqs, r, next);
    r->conn->last_used_ms = clock_mono_ms();
    free(r);
}

void pconn_attach(struct pconn *c, struct psub *s)
{
    LIST_INSERT_HEAD(&c->subs, psub_link(s), next);
}

void pconn_detach(struct pconn *c, struct psub *s)
{
    c->last_used_ms = clock_mono_ms();
    LIST_REMOVE(psub_link(s), next);
}

bool pconn_safe_metadata(const struct pconn *c)
{
    return c->safe_metadata;
}

static void answer_ready(struct pconn *c)
{
    struct preq *r = TAILQ_FIRST(&c->reqs);

    while (r && c->state == PCONN_READY) {
        if (r->id == 0) {
            answer(r, NULL, NULL);
            r = TAILQ_FIRST(&c->reqs); /* done() may have changed the list */
        } else {
            r = TAILQ_NEXT(r, next);
        }
    }
}

/* Deferred: c is freed by a later deferred call, if at all. */
static void on_ready_now(void *arg)
{
    answer_ready(arg);
}

/* ---- commands from the broker ---------------------------------------------------------------- */

static void on_connected(struct pconn *c, const Pulsar__CommandConnected *a)
{
    size_t max = a->has_max_message_size && a->max_message_size > 0 ? (size_t)a->max_message_size + (64 << 10) : 0;

    if (c->state != PCONN_GREETING) {
        broken(c, "a second greeting");
        return;
    }
    c->max_frame = max > PULSAR_FRAME_MAX ? PULSAR_FRAME_MAX : max > PULSAR_FRAME_DEFAULT ? max : PULSAR_FRAME_DEFAULT;
    c->safe_metadata = a->feature_flags && a->feature_flags->supports_get_partitioned_metadata_without_auto_creation;
    c->state = PCONN_READY;
    log_info("wal", "connected to Pulsar", KS("host", c->host), KU("port", c->port), KS("broker", c->logical),
             KS("version", a->server_version));
    conn_write(c->conn, c->waiting.data, c->waiting.len);
    pb_out_release(&c->waiting);
    answer_ready(c);
}

static void on_challenge(struct pconn *c)
{
    Pulsar__AuthData data = PULSAR__AUTH_DATA__INIT;
    Pulsar__CommandAuthResponse a = PULSAR__COMMAND_AUTH_RESPONSE__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;
    const char *token = c->p->token ? c->p->token : "";

    data.auth_method_name = c->p->token ? (char *)(uintptr_t)"token" : (char *)(uintptr_t)"none";
    data.has_auth_data = true;
    data.auth_data = (ProtobufCBinaryData){strlen(token), (uint8_t *)(uintptr_t)token};
    a.client_version = (char *)(uintptr_t)CLIENT_VERSION;
    a.response = &data;
    a.has_protocol_version = true;
    a.protocol_version = PROTOCOL_VERSION;
    cmd.type = PULSAR__BASE_COMMAND__TYPE__AUTH_RESPONSE;
    cmd.auth_response = &a;
    send_now(c, &cmd);
}

static void on_answer(struct pconn *c, const Pulsar__BaseCommand *cmd, uint64_t id, const struct err *err)
{
    struct preq *r;

    TAILQ_FOREACH (r, &c->reqs, next) {
        if (r->id == id && id != 0) {
            answer(r, err->code ? NULL : cmd, err->code ? err : NULL);
            return;
        }
    }
}

static struct psub_link *find_sub(struct pconn *c, uint64_t id)
{
    struct psub_link *s;

    LIST_FOREACH (s, &c->subs, next) {
        if (s->consumer_id == id)
            return s;
    }
    return NULL; /* closed by us meanwhile */
}

static void on_close_consumer(struct pconn *c, uint64_t id)
{
    struct psub_link *s = find_sub(c, id);
    struct err err;

    if (!s)
        return;
    LIST_REMOVE(s, next);
    err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "Pulsar at %s:%u closed the consumer: the topic moves", c->host,
            c->port);
    psub_lost(s->sub, &err);
}

/* An entry with its own memory: owner if it is all of the frame, else a copy. */
static struct pulsar_entry *new_entry(const Pulsar__CommandMessage *m, const uint8_t *rest, size_t len,
                                      struct buf *owner, struct err *err)
{
    struct pulsar_entry *e = xcalloc(1, sizeof(*e));

    if (owner) {
        e->frame = buf_ref(owner);
    } else {
        e->frame = buf_new(len);
        if (!e->frame)
            abort(); /* less than the receive buffer */
        if (len)
            memcpy(e->frame->data, rest, len);
        rest = e->frame->data;
    }
    e->ledger = m->message_id->ledger_id;
    e->entry = m->message_id->entry_id;
    if (pulsar_entry_parse(rest, len, e, err) == 0)
        return e;
    err_wrap(err, "entry %llu:%llu", (unsigned long long)e->ledger, (unsigned long long)e->entry);
    pulsar_entry_free(e);
    return NULL;
}

static void on_message(struct pconn *c, const Pulsar__CommandMessage *m, const uint8_t *rest, size_t len,
                       struct buf *owner)
{
    struct psub_link *s = find_sub(c, m->consumer_id);
    struct pulsar_entry *e;
    struct err err;

    if (!s)
        return;
    e = new_entry(m, rest, len, owner, &err);
    if (e) {
        psub_got_entry(s->sub, e);
        return;
    }
    psub_damaged(s->sub, &err); /* read again: it may have happened on the way */
}

static void on_command(struct pconn *c, const Pulsar__BaseCommand *cmd, const uint8_t *rest, size_t len,
                       struct buf *owner)
{
    Pulsar__BaseCommand pong = PULSAR__BASE_COMMAND__INIT;
    Pulsar__CommandPong empty = PULSAR__COMMAND_PONG__INIT;
    struct err err;
    uint64_t id;

    if (cmd->type == PULSAR__BASE_COMMAND__TYPE__MESSAGE) {
        on_message(c, cmd->message, rest, len, owner);
    } else if (cmd->type == PULSAR__BASE_COMMAND__TYPE__PING) {
        pong.type = PULSAR__BASE_COMMAND__TYPE__PONG;
        pong.pong = &empty;
        send_now(c, &pong);
    } else if (cmd->type == PULSAR__BASE_COMMAND__TYPE__CONNECTED) {
        on_connected(c, cmd->connected);
    } else if (cmd->type == PULSAR__BASE_COMMAND__TYPE__AUTH_CHALLENGE) {
        on_challenge(c);
    } else if (cmd->type == PULSAR__BASE_COMMAND__TYPE__CLOSE_CONSUMER) {
        on_close_consumer(c, cmd->close_consumer->consumer_id);
    } else if (pulsar_answer(cmd, &id, &err)) {
        if (c->state == PCONN_GREETING && err.code)
            go_down(c, &err); /* the login was refused */
        else
            on_answer(c, cmd, id, &err);
    }
}

/* data: a frame without its length. owner: the buffer that it fills from begin to end, or NULL. */
static void on_frame(struct pconn *c, const uint8_t *data, size_t len, struct buf *owner)
{
    const uint8_t *rest;
    size_t rest_len;
    struct err err;
    Pulsar__BaseCommand *cmd = pulsar_frame_parse(data, len, &rest, &rest_len, &err);

    if (!cmd) {
        broken(c, err.text);
        return;
    }
    on_command(c, cmd, rest, rest_len, owner);
    pulsar_command_free(cmd);
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static bool begin_large(struct pconn *c, const uint8_t *data, size_t have, size_t len)
{
    c->frame = buf_new(len);
    if (!c->frame) {
        broken(c, "no memory for a frame");
        return false;
    }
    memcpy(c->frame->data, data, have);
    c->got = have;
    return true;
}

/* Every whole frame of the receive buffer; what is left moves to its begin, or becomes a large frame. */
static void parse_received(struct pconn *c)
{
    size_t at = 0;

    while (c->state != PCONN_DOWN && c->n_recv - at >= 4) {
        const uint8_t *p = c->recv + at;
        size_t len = (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
        size_t have = c->n_recv - at - 4;

        if (len > c->max_frame) {
            broken(c, "a frame above the limit, or not Pulsar's binary protocol (sourceConfig.pulsar.address)");
            return;
        }
        if (have < len) {
            if (len + 4 > RECV_BYTES && begin_large(c, p + 4, have, len))
                c->n_recv = at = 0;
            break;
        }
        at += 4 + len;
        on_frame(c, p + 4, len, NULL);
    }
    if (c->state == PCONN_DOWN)
        return;
    memmove(c->recv, c->recv + at, c->n_recv - at);
    c->n_recv -= at;
}

static void large_received(struct pconn *c)
{
    struct buf *frame = c->frame;

    c->frame = NULL;
    on_frame(c, frame->data, frame->size, frame);
    buf_unref(frame);
}

static size_t read_some(struct pconn *c)
{
    size_t n;

    if (c->frame) {
        n = conn_read(c->conn, c->frame->data + c->got, c->frame->size - c->got);
        c->got += n;
        if (c->got == c->frame->size)
            large_received(c);
        return n;
    }
    n = conn_read(c->conn, c->recv + c->n_recv, sizeof(c->recv) - c->n_recv);
    c->n_recv += n;
    if (n)
        parse_received(c);
    return n;
}

static void on_readable(void *arg)
{
    struct pconn *c = arg;
    size_t n, total = 0;

    while (c->state != PCONN_DOWN && total < READ_ONCE && (n = read_some(c)) > 0) {
        total += n;
        c->last_recv_ms = clock_mono_ms();
        c->pinged = false;
    }
}

static void on_open(void *arg)
{
    struct pconn *c = arg;
    Pulsar__FeatureFlags flags = PULSAR__FEATURE_FLAGS__INIT;
    Pulsar__CommandConnect a = PULSAR__COMMAND_CONNECT__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    flags.has_supports_auth_refresh = flags.supports_auth_refresh = true;
    flags.has_supports_get_partitioned_metadata_without_auto_creation = true;
    flags.supports_get_partitioned_metadata_without_auto_creation = true;
    a.client_version = (char *)(uintptr_t)CLIENT_VERSION;
    a.has_protocol_version = true;
    a.protocol_version = PROTOCOL_VERSION;
    a.feature_flags = &flags;
    a.proxy_to_broker_url = c->logical;
    a.auth_method_name = (char *)(uintptr_t)(c->p->token ? "token" : "none");
    if (c->p->token) {
        a.has_auth_data = true;
        a.auth_data = (ProtobufCBinaryData){strlen(c->p->token), (uint8_t *)c->p->token};
    }
    cmd.type = PULSAR__BASE_COMMAND__TYPE__CONNECT;
    cmd.connect = &a;
    c->state = PCONN_GREETING;
    c->last_recv_ms = clock_mono_ms();
    send_now(c, &cmd);
}

static void on_down(void *arg, const char *why)
{
    broken(arg, why);
}

/* ---- time ------------------------------------------------------------------------------------ */

static void end_late_requests(struct pconn *c, uint64_t now)
{
    struct preq *r;
    struct err err;

    /* In the order of their deadlines, since all have the same time. */
    while ((r = TAILQ_FIRST(&c->reqs)) && r->deadline_ms <= now) {
        err_set(&err, ERR_TIMEOUT, ERRC_RETRY, "no answer from Pulsar at %s:%u within %u ms", c->host, c->port,
                c->p->request_ms);
        answer(r, NULL, &err);
    }
}

static void send_ping(struct pconn *c)
{
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;
    Pulsar__CommandPing empty = PULSAR__COMMAND_PING__INIT;

    cmd.type = PULSAR__BASE_COMMAND__TYPE__PING;
    cmd.ping = &empty;
    c->pinged = true;
    send_now(c, &cmd);
}

static void on_tick(void *arg)
{
    struct pconn *c = arg;
    uint64_t now = clock_mono_ms();

    timer_set(&c->tick, TICK_MS);
    end_late_requests(c, now);
    if (c->state == PCONN_DOWN || c->state == PCONN_CONNECTING)
        return;
    if (now - c->last_recv_ms >= c->p->dead_ms)
        broken(c, "silent, no answer to a ping");
    else if (c->state == PCONN_GREETING && now - c->last_recv_ms >= PULSAR_CONNECT_MS)
        broken(c, "no greeting: not Pulsar's binary protocol (sourceConfig.pulsar.address)?");
    else if (conn_unsent(c->conn) > MAX_UNSENT)
        broken(c, "it takes no more commands");
    else if (LIST_EMPTY(&c->subs) && TAILQ_EMPTY(&c->reqs) && now - c->last_used_ms >= IDLE_MS)
        drop(c);
    else if (c->state == PCONN_READY && !c->pinged && now - c->last_recv_ms >= c->p->ping_ms)
        send_ping(c);
}

/* ---- the pool -------------------------------------------------------------------------------- */

static const struct conn_events pconn_events = {
    .on_open = on_open,
    .on_readable = on_readable,
    .on_down = on_down,
};

static struct pconn *pconn_new(struct pulsar *p, const struct pulsar_addr *a, const char *logical, bool service)
{
    struct pconn *c = xcalloc(1, sizeof(*c));

    c->p = p;
    c->host = xstrdup(a->host);
    c->port = a->port;
    c->logical = xstrdup(logical);
    c->service = service;
    c->max_frame = PULSAR_FRAME_DEFAULT;
    c->last_used_ms = clock_mono_ms();
    TAILQ_INIT(&c->reqs);
    LIST_INIT(&c->subs);
    timer_init(&c->tick, p->loop, LOOP_PRIO_NORMAL, on_tick, c);
    timer_set(&c->tick, TICK_MS);
    c->conn = conn_open(p->loop, a->host, a->port, p->tls, PULSAR_CONNECT_MS, &pconn_events, c);
    LIST_INSERT_HEAD(&p->conns, c, next);
    return c;
}

static struct pconn *pconn_get(struct pulsar *p, const struct pulsar_addr *a, const char *logical, bool service)
{
    struct pconn *c;

    LIST_FOREACH (c, &p->conns, next) {
        if (c->port == a->port && strcmp(c->host, a->host) == 0 && !c->logical == !logical &&
            (!logical || strcmp(c->logical, logical) == 0)) {
            c->last_used_ms = clock_mono_ms();
            return c;
        }
    }
    return pconn_new(p, a, logical, service);
}

struct pconn *pconn_service(struct pulsar *p)
{
    return pconn_get(p, &p->addrs[p->addr], NULL, true);
}

static bool same_addr(const struct pulsar_addr *a, const struct pulsar_addr *b)
{
    return a->port == b->port && strcmp(a->host, b->host) == 0;
}

struct pconn *pconn_broker(struct pulsar *p, const char *url, bool through_service, struct err *err)
{
    const char *scheme = p->use_tls ? "pulsar+ssl://" : "pulsar://";
    struct pulsar_addr a;
    struct pconn *c;

    if (!url || strncmp(url, scheme, strlen(scheme)) != 0 ||
        !pulsar_addr_parse(url + strlen(scheme), strlen(url + strlen(scheme)), 0, &a)) {
        err_set(err, ERR_PROTO, ERRC_RETRY, "Pulsar names no usable broker for %.10s: \"%.200s\"", scheme,
                url ? url : "");
        return NULL;
    }
    if (through_service && !same_addr(&a, &p->addrs[p->addr])) /* a standalone broker always says so */
        c = pconn_get(p, &p->addrs[p->addr], url + strlen(scheme), true);
    else
        c = pconn_get(p, &a, NULL, through_service);
    free(a.host);
    return c;
}

void pconns_close(struct pulsar *p)
{
    struct pconn *c;

    while ((c = LIST_FIRST(&p->conns))) {
        assert(TAILQ_EMPTY(&c->reqs) && LIST_EMPTY(&c->subs));
        drop(c);
    }
}
