#include "wal/nats.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "net/tls_priv.h"
#include "wal/id64_priv.h"
#include "wal/nats_priv.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MIN_BASE_BYTES = 4 << 10,
    MAX_BASE_BYTES = 1 << 20,
    CONNECT_TIMEOUT_MS = 5000,
    PING_MS = 5000, /* of silence until a ping, and then for its answer */
    RETRY_MIN_MS = 50,
    RETRY_MAX_MS = 2000,
    STEADY_MS = 5000, /* a connection that lived so long begins a new series of waits */
    TICK_MS = 1000,
    WATCH_MS = 200, /* while something is in trouble */
    TROUBLE_AFTER_MS = 1000,
    DISCONNECT_AFTER_MS = 10000, /* without use */
};

struct nats_end {
    TAILQ_ENTRY(nats_end) next;
    struct nats_port *w;
    char *topic;
    wal_end_fn done; /* NULL: cancelled */
    void *arg;
    uint64_t since_ms;
    struct nats_req *req;
    bool finished; /* only to be told */
    struct err err;
    bool found;
    uint64_t last;
};

static struct nats_port *from_port(struct wal_port *p)
{
    return container_of(p, struct nats_port, port);
}

/* ---- what the readers share ----------------------------------------------------------------- */

void nats_port_ready(struct nats_port *w, struct wal_reader *r)
{
    if (!r->is_ready) {
        r->is_ready = true;
        TAILQ_INSERT_TAIL(&w->ready, r, ready);
    }
    if (!timer_armed(&w->deliver))
        timer_set(&w->deliver, 0);
}

void nats_port_watch(struct nats_port *w)
{
    timer_set(&w->tick, WATCH_MS);
}

size_t nats_base_bytes(const struct nats_port *w)
{
    size_t n = w->fetch_bytes / 2 / (w->n_readers ? w->n_readers : 1);

    return n < MIN_BASE_BYTES ? MIN_BASE_BYTES : n > MAX_BASE_BYTES ? MAX_BASE_BYTES : n;
}

/* In turn; a large wish is not overtaken by others of the queue. What a reader asked for and does not need at the end
 * of its stream is taken from it; NATS knows no other way than to end its consumer. */
void nats_port_feed(struct nats_port *w)
{
    struct wal_reader *r = NULL;

    while (w->state == NATS_PORT_UP && (r = TAILQ_FIRST(&w->hungry))) {
        nats_reader_fetch(r);
        if (r->is_hungry)
            break;
    }
    if (!r)
        return;
    TAILQ_FOREACH (r, &w->readers, next) {
        if (nats_reader_wastes(r)) {
            nats_reader_restart(r); /* comes here again */
            return;
        }
    }
}

/* ---- connecting ----------------------------------------------------------------------------- */

static bool wanted(const struct nats_port *w)
{
    const struct wal_reader *r;

    TAILQ_FOREACH (r, &w->readers, next) {
        if (r->state != NATS_READER_ENDED)
            return true;
    }
    return !TAILQ_EMPTY(&w->ends);
}

static void ask_ends(struct nats_port *w);

static void on_up(void *arg)
{
    struct nats_port *w = arg;
    struct wal_reader *r;

    w->state = NATS_PORT_UP;
    w->up_since_ms = clock_mono_ms();
    w->failing_since_ms = 0;
    nats_js_up(&w->js, w->conn);
    log_debug("wal", "connected to NATS", KS("host", w->servers[w->next_server].host));
    TAILQ_FOREACH (r, &w->readers, next)
        nats_reader_up(r);
    ask_ends(w);
}

static void on_down(void *arg, const struct err *err)
{
    struct nats_port *w = arg;
    struct wal_reader *r;
    uint64_t now = clock_mono_ms();

    if (w->state == NATS_PORT_UP && now - w->up_since_ms > STEADY_MS)
        backoff_reset(&w->backoff);
    w->state = NATS_PORT_WAITING;
    w->err = *err;
    if (!w->failing_since_ms)
        w->failing_since_ms = now;
    nats_conn_close(w->conn);
    w->conn = NULL;
    w->next_server = (w->next_server + 1) % w->n_servers;
    log_debug("wal", "no connection to NATS", KS("err", w->err.text));
    TAILQ_FOREACH (r, &w->readers, next)
        nats_reader_down(r, &w->err);
    nats_js_down(&w->js, &w->err);
    timer_set(&w->retry, backoff_next_ms(&w->backoff));
    nats_port_watch(w);
}

static void on_created(struct nats_port *w, struct nats_text stream)
{
    struct wal_reader *r;

    TAILQ_FOREACH (r, &w->readers, next) {
        if (r->topic && strlen(r->topic) == stream.len && memcmp(r->topic, stream.s, stream.len) == 0)
            nats_reader_on_created(r);
    }
}

/* rest: "<reader>.<fetch>". */
static void on_status(struct nats_port *w, struct nats_text rest, const struct nats_op *msg)
{
    unsigned long long id, fetch;
    struct nats_status st;
    struct wal_reader *r;
    char text[48];

    if (rest.len >= sizeof(text) || nats_status_parse(msg->buf->data, msg->hdr_len, &st))
        return;
    memcpy(text, rest.s, rest.len);
    text[rest.len] = 0;
    if (sscanf(text, "%llu.%llu", &id, &fetch) != 2)
        return;
    TAILQ_FOREACH (r, &w->readers, next) {
        if (r->id == id) {
            nats_reader_on_status(r, fetch, &st);
            return;
        }
    }
}

static bool begins(struct nats_text t, const char *with, struct nats_text *ret_rest)
{
    size_t len = strlen(with);

    if (t.len < len || memcmp(t.s, with, len) != 0)
        return false;
    *ret_rest = (struct nats_text){t.s + len, t.len - len};
    return true;
}

static void on_msg(void *arg, const struct nats_op *msg)
{
    struct nats_port *w = arg;
    struct nats_text rest, sub;
    struct wal_reader *r;
    struct nats_ack ack;

    if (msg->sid == NATS_SID_CREATED) {
        if (begins(msg->subject, "$JS.EVENT.ADVISORY.STREAM.CREATED.", &rest))
            on_created(w, rest);
    } else if (begins(msg->subject, w->js.inbox, &rest)) {
        if (begins(rest, "r.", &sub))
            nats_js_on_reply(&w->js, sub, msg);
        else if (begins(rest, "p.", &sub))
            on_status(w, sub, msg);
    } else if (nats_ack_parse(msg->reply, &ack) == 0) {
        HASH_FIND(hh, w->consumers, ack.key.s, ack.key.len, r);
        if (r)
            nats_reader_on_msg(r, &ack, msg);
    }
}

static void on_refused(void *arg, const char *text)
{
    struct nats_port *w = arg;

    if (!strstr(text, "$JS.EVENT.")) /* polling does as well */
        snprintf(w->js.refused, sizeof(w->js.refused), "%s", text);
}

static void connect_now(void *arg)
{
    static const struct nats_conn_events events = {on_up, on_msg, on_refused, on_down};
    struct nats_port *w = arg;
    struct nats_conn_options o = {
        .server = &w->servers[w->next_server],
        .login = &w->login,
        .ctx = w->ctx,
        .connect_timeout_ms = CONNECT_TIMEOUT_MS,
        .ping_ms = PING_MS,
    };

    w->state = NATS_PORT_DIALING;
    w->conn = nats_conn_open(w->loop, &o, &events, w);
}

static void disconnect(struct nats_port *w)
{
    nats_conn_close(w->conn);
    w->conn = NULL;
    w->js.conn = NULL;
    w->state = NATS_PORT_IDLE;
    timer_cancel(&w->retry);
    w->failing_since_ms = 0;
}

/* Somebody wants something. */
static void kick(struct nats_port *w)
{
    w->idle_since_ms = 0;
    if (!timer_armed(&w->tick))
        timer_set(&w->tick, TICK_MS);
    if (w->state != NATS_PORT_IDLE)
        return;
    backoff_reset(&w->backoff);
    w->state = NATS_PORT_WAITING;
    timer_set(&w->retry, 0);
}

/* ---- end() ---------------------------------------------------------------------------------- */

static void end_free(struct nats_end *e)
{
    TAILQ_REMOVE(&e->w->ends, e, next);
    nats_js_cancel(e->req);
    free(e->topic);
    free(e);
}

static void finish_end(struct nats_end *e, const struct err *err)
{
    e->finished = true;
    if (err)
        e->err = *err;
    if (!timer_armed(&e->w->deliver))
        timer_set(&e->w->deliver, 0);
}

static void on_end_info(void *arg, const struct err *err, json_t *reply)
{
    struct nats_end *e = arg;
    struct nats_stream_info info = {0};
    struct err bad;

    e->req = NULL;
    if (!err && nats_js_stream_info(reply, &info, &bad))
        err = &bad;
    if (err && err->code != ERR_NOT_FOUND) {
        e->err = *err;
        if (clock_mono_ms() - e->since_ms >= TROUBLE_AFTER_MS)
            finish_end(e, err);
        else
            nats_port_watch(e->w); /* asks again */
        return;
    }
    e->err.code = ERR_OK;
    e->found = info.messages > 0;
    e->last = info.last;
    finish_end(e, NULL);
}

static void ask_ends(struct nats_port *w)
{
    struct nats_end *e;

    TAILQ_FOREACH (e, &w->ends, next) {
        if (!e->finished && !e->req)
            e->req = nats_js_request(&w->js, "STREAM.INFO", e->topic, "", on_end_info, e);
    }
}

static void tick_ends(struct nats_port *w, uint64_t now)
{
    struct nats_end *e;

    TAILQ_FOREACH (e, &w->ends, next) {
        if (!e->finished && !e->req && now - e->since_ms >= TROUBLE_AFTER_MS && w->failing_since_ms)
            finish_end(e, &w->err);
    }
    if (w->state == NATS_PORT_UP)
        ask_ends(w);
}

/* ---- tick ----------------------------------------------------------------------------------- */

static bool tick_readers(struct nats_port *w, uint64_t now)
{
    struct wal_reader *r;
    bool trouble = false;

    TAILQ_FOREACH (r, &w->readers, next) {
        if (r->state == NATS_READER_ACTIVE)
            nats_reader_tick(r, now);
        if (!r->trouble.code || r->trouble_told || r->state == NATS_READER_ENDED)
            continue;
        trouble = true;
        if (now - r->trouble_ms >= TROUBLE_AFTER_MS)
            nats_port_ready(w, r);
    }
    return trouble;
}

static void on_tick(void *arg)
{
    struct nats_port *w = arg;
    uint64_t now = clock_mono_ms();
    bool trouble = tick_readers(w, now) || w->failing_since_ms;

    tick_ends(w, now);
    if (wanted(w))
        w->idle_since_ms = 0;
    else if (!w->idle_since_ms)
        w->idle_since_ms = now;
    else if (now - w->idle_since_ms >= DISCONNECT_AFTER_MS)
        disconnect(w);
    if (w->state != NATS_PORT_IDLE)
        timer_set(&w->tick, trouble ? WATCH_MS : TICK_MS);
}

/* ---- delivery: each function makes at most one callback, and touches nothing after it -------- */

static bool deliver_end(struct nats_port *w)
{
    struct nats_end *e, *tmp;

    for (e = TAILQ_FIRST(&w->ends); e; e = tmp) {
        wal_end_fn done = e->done;
        void *arg = e->arg;
        struct err err = e->err;
        bool found = e->found;
        uint64_t last = e->last;

        tmp = TAILQ_NEXT(e, next);
        if (!e->finished)
            continue;
        end_free(e);
        if (!done)
            continue;
        done(arg, err.code ? &err : NULL, !err.code && found,
             !err.code && found ? (struct wal_pos){0, last} : WAL_POS_NONE);
        return true;
    }
    return false;
}

/* The first messages of r, its queue goes on with the rest. */
static struct wal_msg *take_msgs(struct wal_reader *r, size_t *ret_n)
{
    size_t n = r->n_msgs < NATS_BATCH_MSGS ? r->n_msgs : NATS_BATCH_MSGS;
    struct wal_msg *msgs = r->msgs;

    if (n == r->n_msgs) {
        r->msgs = NULL;
        r->cap_msgs = 0;
    } else {
        msgs = xmalloc(n * sizeof(*msgs));
        memcpy(msgs, r->msgs, n * sizeof(*msgs));
        memmove(r->msgs, r->msgs + n, (r->n_msgs - n) * sizeof(*msgs));
    }
    r->n_msgs -= n;
    for (size_t i = 0; i < n; i++)
        r->w->held -= msgs[i].buf->size;
    *ret_n = n;
    return msgs;
}

static void deliver_batch(struct wal_reader *r)
{
    size_t n;
    struct wal_msg *msgs = take_msgs(r, &n);
    bool caught_up = r->at_end && r->n_msgs == 0;

    r->end_told |= caught_up;
    if (r->n_msgs > 0 || r->end_err.code)
        nats_port_ready(r->w, r);
    nats_reader_fetch(r);
    r->cbs.on_batch(r->arg, msgs, n, caught_up);
    for (size_t i = 0; i < n; i++)
        buf_unref(msgs[i].buf);
    free(msgs);
}

static bool tell_trouble(struct wal_reader *r)
{
    struct err err = r->trouble;
    bool trouble = err.code != ERR_OK;

    if (r->state == NATS_READER_ENDED || r->trouble_told == trouble)
        return false;
    if (trouble && (r->paused || clock_mono_ms() - r->trouble_ms < TROUBLE_AFTER_MS))
        return false;
    r->trouble_told = trouble;
    nats_port_ready(r->w, r);
    r->cbs.on_trouble(r->arg, trouble ? &err : NULL);
    return true;
}

static bool deliver_reader(struct wal_reader *r)
{
    struct err err;

    if (tell_trouble(r))
        return true;
    if (r->n_msgs > 0) {
        if (r->paused)
            return false;
        deliver_batch(r);
        return true;
    }
    if (r->at_end && !r->end_told && !r->paused) {
        r->end_told = true;
        nats_port_ready(r->w, r);
        r->cbs.on_batch(r->arg, NULL, 0, true);
        return true;
    }
    if (!r->end_err.code)
        return false;
    err = r->end_err;
    r->end_err.code = ERR_OK;
    r->cbs.on_trouble(r->arg, &err);
    return true;
}

static void on_deliver(void *arg)
{
    struct nats_port *w = arg;
    struct wal_reader *r;

    timer_set(&w->deliver, 0); /* before the callback, which may close all of this */
    if (deliver_end(w))
        return;
    while ((r = TAILQ_FIRST(&w->ready))) {
        TAILQ_REMOVE(&w->ready, r, ready);
        r->is_ready = false;
        if (deliver_reader(r))
            return;
    }
    timer_cancel(&w->deliver);
}

/* ---- the port ------------------------------------------------------------------------------- */

static struct wal_reader *op_open(struct wal_port *port, const char *topic, const struct wal_start *start,
                                  const struct wal_reader_cbs *cbs, void *arg)
{
    struct nats_port *w = from_port(port);
    struct wal_reader *r = xcalloc(1, sizeof(*r));

    r->cbs = *cbs;
    r->arg = arg;
    TAILQ_INSERT_TAIL(&w->readers, r, next);
    w->n_readers++;
    nats_reader_init(r, w, topic, start);
    kick(w);
    if (w->state == NATS_PORT_UP)
        nats_reader_up(r);
    return r;
}

static void op_pause(struct wal_reader *r)
{
    nats_reader_set_paused(r, true);
}

static void op_resume(struct wal_reader *r)
{
    nats_reader_set_paused(r, false);
}

static void op_close(struct wal_reader *r)
{
    struct nats_port *w = r->w;

    if (!w) /* closed already in this turn */
        return;
    nats_reader_release(r);
    if (r->is_ready)
        TAILQ_REMOVE(&w->ready, r, ready);
    TAILQ_REMOVE(&w->readers, r, next);
    w->n_readers--;
    r->w = NULL;
    nats_port_feed(w);
    loop_defer(w->loop, free, r);
}

static void op_end(struct wal_port *port, const char *topic, wal_end_fn done, void *arg)
{
    struct nats_port *w = from_port(port);
    struct nats_end *e = xcalloc(1, sizeof(*e));
    struct err err;

    e->w = w;
    e->topic = xstrdup(topic);
    e->done = done;
    e->arg = arg;
    e->since_ms = clock_mono_ms();
    TAILQ_INSERT_TAIL(&w->ends, e, next);
    if (!nats_name_ok(topic)) {
        err_set(&err, ERR_INVALID, ERRC_USER, "\"%.100s\" cannot be a stream of NATS", topic);
        finish_end(e, &err);
        return;
    }
    kick(w);
    if (w->state == NATS_PORT_UP)
        ask_ends(w);
}

static void op_end_cancel(struct wal_port *port, void *arg)
{
    struct nats_port *w = from_port(port);
    struct nats_end *e;

    TAILQ_FOREACH (e, &w->ends, next) {
        if (e->arg == arg)
            e->done = NULL;
    }
}

/* uint64, little endian (source.md 7.3). */
static size_t op_id_encode(struct wal_pos pos, uint8_t *ret_id)
{
    return id64_encode(pos.minor, ret_id);
}

/* 0, or ERR_PROTO: not 8 bytes. */
static int op_id_decode(const uint8_t *id, size_t len, struct wal_pos *ret_pos)
{
    uint64_t v;

    if (id64_decode(id, len, UINT64_MAX, &v))
        return ERR_PROTO;
    *ret_pos = (struct wal_pos){0, v};
    return 0;
}

static const struct wal_port_ops nats_ops = {
    .open = op_open,
    .pause = op_pause,
    .resume = op_resume,
    .close = op_close,
    .end = op_end,
    .end_cancel = op_end_cancel,
    .id_encode = op_id_encode,
    .id_decode = op_id_decode,
};

/* ---- opening and closing ---------------------------------------------------------------------- */

static void port_free(void *arg)
{
    struct nats_port *w = arg;

    for (size_t i = 0; i < w->n_servers; i++)
        free(w->servers[i].host);
    free(w->servers);
    free(w->login.username);
    free(w->login.password);
    free(w->login.token);
    tls_client_ctx_free(w->ctx);
    free(w);
}

struct wal_port *nats_open(struct loop *l, const struct nats_options *o, struct err *err)
{
    struct nats_port *w = xcalloc(1, sizeof(*w));

    if (nats_options_apply(w, o, err)) {
        port_free(w);
        return NULL;
    }
    w->port = (struct wal_port){.ops = &nats_ops, .name = "natsmq", .setting = "sourceConfig.natsmq.address"};
    w->loop = l;
    w->backoff = (struct backoff)BACKOFF_INIT(RETRY_MIN_MS, RETRY_MAX_MS);
    TAILQ_INIT(&w->readers);
    TAILQ_INIT(&w->ready);
    TAILQ_INIT(&w->hungry);
    TAILQ_INIT(&w->ends);
    nats_js_init(&w->js, l);
    timer_init(&w->retry, l, LOOP_PRIO_NORMAL, connect_now, w);
    timer_init(&w->tick, l, LOOP_PRIO_NORMAL, on_tick, w);
    timer_init(&w->deliver, l, LOOP_PRIO_LOW, on_deliver, w);
    return &w->port;
}

void nats_close(struct wal_port *port)
{
    struct nats_port *w;
    struct nats_end *e;

    if (!port)
        return;
    w = from_port(port);
    assert(TAILQ_EMPTY(&w->readers));
    nats_conn_close(w->conn);
    w->conn = NULL;
    timer_release(&w->retry);
    timer_release(&w->tick);
    timer_release(&w->deliver);
    while ((e = TAILQ_FIRST(&w->ends)))
        end_free(e);
    nats_js_release(&w->js);
    loop_defer(w->loop, port_free, w); /* on_deliver() may be on the stack */
}
