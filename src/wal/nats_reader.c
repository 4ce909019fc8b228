#include "wal/nats_priv.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LOOK_MIN_MS = 50, /* waiting for a stream to be made, and after an error */
    LOOK_MAX_MS = 1000,
    /* A fetch that waits for new messages. The server tells that it is still there. */
    IDLE_EXPIRES_MS = 30000,
    IDLE_HEARTBEAT_MS = 5000,
    /* One that reads on in what is there: what it leaves at the end of the stream is soon others' again. */
    BUSY_EXPIRES_MS = 1000,
    GRACE_MS = 5000,
    CONSUMER_LIVES_MS = 60000, /* without a fetch */
    MSG_MIN_BYTES = 32,        /* less than any message counts for on the server, so that bytes run out first */
    NEED_MAX = NATS_PAYLOAD_MAX + NATS_LINE_MAX,
};

/* ---- trouble -------------------------------------------------------------------------------- */

static void set_trouble(struct wal_reader *r, const struct err *err)
{
    if (!r->trouble.code) {
        r->trouble_ms = clock_mono_ms();
        nats_port_watch(r->w);
    }
    r->trouble = *err;
}

static void works(struct wal_reader *r)
{
    if (!r->trouble.code)
        return;
    r->trouble.code = 0;
    if (r->trouble_told)
        nats_port_ready(r->w, r);
}

/* ---- fetches -------------------------------------------------------------------------------- */

static bool is_large(const struct wal_reader *r, size_t asked)
{
    return asked > nats_base_bytes(r->w);
}

static void take_credit(struct wal_reader *r, size_t n)
{
    n = n < r->credit ? n : r->credit;
    r->credit -= n;
    r->w->outstanding -= n;
}

static void end_fetch(struct wal_reader *r, struct nats_fetch *f, size_t unused)
{
    bool any = false;

    r->w->n_large -= f->large;
    *f = (struct nats_fetch){0};
    for (size_t i = 0; i < NATS_FETCHES; i++)
        any |= r->fetches[i].id != 0;
    take_credit(r, any ? unused : r->credit);
}

static void end_fetches(struct wal_reader *r)
{
    for (size_t i = 0; i < NATS_FETCHES; i++) {
        if (r->fetches[i].id)
            end_fetch(r, &r->fetches[i], 0);
    }
}

static size_t at_least(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t at_most(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* What is best to ask for next. */
static size_t wish(const struct wal_reader *r)
{
    size_t half = r->w->fetch_bytes / 2, base = nats_base_bytes(r->w);

    if (r->need > half)
        return at_least(r->need, r->w->fetch_bytes);
    return r->behind ? half : at_least(r->need, base);
}

/*
 * How much may be asked for now; 0: nothing. Each reader may always have a fetch of the base size, so that none starves
 * and ticks flow; what is above that is shared. A single message larger than the rest of the budget has to be possible:
 * one reader at a time gets that.
 */
static size_t grant(const struct wal_reader *r, bool first)
{
    const struct nats_port *w = r->w;
    size_t base = nats_base_bytes(w), all = w->fetch_bytes;
    size_t others = at_most(base * (w->n_readers - 1), all / 2);
    size_t room = all - at_most(all, w->outstanding + others);
    size_t size = at_most(wish(r), room);

    if (!first)
        return size >= at_least(base, r->need) ? size : 0;
    if (r->need <= base)
        return at_least(size, base);
    if (size >= r->need)
        return size;
    return w->n_large == 0 ? r->need : 0;
}

static void send_fetch(struct wal_reader *r, struct nats_fetch *f, size_t size)
{
    unsigned expires = r->behind ? BUSY_EXPIRES_MS : IDLE_EXPIRES_MS;
    char heartbeat[48] = "", payload[200], reply[100], *subject;

    *f = (struct nats_fetch){.id = ++r->fetch_id, .asked = size, .large = is_large(r, size)};
    r->fetched_ms = clock_mono_ms();
    f->deadline_ms = r->fetched_ms + expires + GRACE_MS;
    r->w->n_large += f->large;
    r->credit += size;
    r->w->outstanding += size;
    if (!r->behind)
        snprintf(heartbeat, sizeof(heartbeat), ",\"idle_heartbeat\":%d000000", IDLE_HEARTBEAT_MS);
    snprintf(payload, sizeof(payload), "{\"batch\":%zu,\"max_bytes\":%zu,\"expires\":%u000000%s}",
             size / MSG_MIN_BYTES + 1, size, expires, heartbeat);
    snprintf(reply, sizeof(reply), "%sp.%" PRIu64 ".%" PRIu64, r->w->js.inbox, r->id, f->id);
    subject = xasprintf("$JS.API.CONSUMER.MSG.NEXT.%s", r->key);
    nats_conn_publish(r->w->conn, subject, reply, payload);
    free(subject);
}

static void set_hungry(struct wal_reader *r, bool hungry)
{
    if (r->is_hungry == hungry)
        return;
    r->is_hungry = hungry;
    if (hungry)
        TAILQ_INSERT_TAIL(&r->w->hungry, r, hungry);
    else
        TAILQ_REMOVE(&r->w->hungry, r, hungry);
}

void nats_reader_fetch(struct wal_reader *r)
{
    struct nats_fetch *unused = NULL;
    bool first = true;
    size_t size;

    if (r->state != NATS_READER_ACTIVE || r->paused || r->w->state != NATS_PORT_UP) {
        set_hungry(r, false);
        return;
    }
    for (size_t i = 0; i < NATS_FETCHES; i++) {
        if (!r->fetches[i].id)
            unused = &r->fetches[i];
        else
            first = false;
    }
    if (!unused || r->n_msgs > NATS_BATCH_MSGS || (!first && r->credit >= wish(r) / 2))
        return;
    size = grant(r, first);
    set_hungry(r, first && size == 0);
    if (size)
        send_fetch(r, unused, size);
    if (size && first && r->behind) /* the second one */
        nats_reader_fetch(r);
}

/* ---- the consumer --------------------------------------------------------------------------- */

static void drop_consumer(struct wal_reader *r)
{
    if (!r->key)
        return;
    end_fetches(r);
    set_hungry(r, false);
    if (r->w->state == NATS_PORT_UP) {
        char *subject = xasprintf("$JS.API.CONSUMER.DELETE.%s", r->key);

        nats_conn_publish(r->w->conn, subject, NULL, "");
        free(subject);
    }
    HASH_DEL(r->w->consumers, r);
    xfree(&r->key);
    nats_port_feed(r->w);
}

/* Looks at the stream again after ms. */
static void wait_ms(struct wal_reader *r, unsigned ms)
{
    drop_consumer(r);
    nats_js_cancel(r->req);
    r->req = NULL;
    r->state = NATS_READER_WAIT;
    timer_set(&r->timer, ms);
}

static void fail(struct wal_reader *r, const struct err *err)
{
    log_debug("wal", "reader begins again", KS("topic", r->topic), KU("seq", r->seq), KS("err", err->text));
    set_trouble(r, err);
    wait_ms(r, backoff_next_ms(&r->backoff));
}

static void fail_text(struct wal_reader *r, enum err_code code, const char *text)
{
    struct err err;

    err_set(&err, code, ERRC_RETRY, "NATS stream %s: %s", r->topic, text);
    fail(r, &err);
}

/* The last that is told of this reader. */
static void end(struct wal_reader *r)
{
    drop_consumer(r);
    r->state = NATS_READER_ENDED;
    timer_cancel(&r->timer);
    nats_port_ready(r->w, r);
}

static void lost(struct wal_reader *r, const char *why)
{
    const struct nats_stream_info *i = &r->info;

    if (i->messages)
        err_set(&r->end_err, ERR_GONE, ERRC_LOST,
                "NATS stream %s: %s %" PRIu64 " is gone: %s; the stream has %" PRIu64 " to %" PRIu64, r->topic,
                r->begun ? "message" : "start position", r->seq, why, i->first, i->last);
    else
        err_set(&r->end_err, ERR_GONE, ERRC_LOST,
                "NATS stream %s: %s %" PRIu64 " is gone: %s; the stream has no message", r->topic,
                r->begun ? "message" : "start position", r->seq, why);
    end(r);
}

/* The end of the log was reached. */
static void at_end(struct wal_reader *r)
{
    r->behind = false;
    r->need = 0;
    if (r->at_end)
        return;
    r->at_end = true;
    nats_port_ready(r->w, r);
}

static void on_created(void *arg, const struct err *err, json_t *reply)
{
    struct wal_reader *r = arg, *twin;
    const char *name = json_string_value(json_object_get(reply, "name"));

    r->req = NULL;
    if (err) {
        fail(r, err);
        return;
    }
    if (!name || !nats_name_ok(name)) {
        fail_text(r, ERR_PROTO, "the answer to CONSUMER.CREATE has no name");
        return;
    }
    r->key = xasprintf("%s.%s", r->topic, name);
    HASH_FIND_STR(r->w->consumers, r->key, twin);
    if (twin) {
        xfree(&r->key);
        fail_text(r, ERR_PROTO, "the server gave one consumer twice");
        return;
    }
    HASH_ADD_KEYPTR(hh, r->w->consumers, r->key, strlen(r->key), r);
    r->state = NATS_READER_ACTIVE;
    r->consumer_seq = 0;
    r->need = 0;
    works(r);
    r->behind = json_integer_value(json_object_get(reply, "num_pending")) > 0;
    if (!r->behind)
        at_end(r);
    nats_reader_fetch(r);
}

static void create_consumer(struct wal_reader *r)
{
    char start[80], *payload;

    if (r->exact)
        snprintf(start, sizeof(start), "\"by_start_sequence\",\"opt_start_seq\":%" PRIu64, r->seq);
    else
        snprintf(start, sizeof(start), "\"all\"");
    payload = xasprintf("{\"stream_name\":\"%s\",\"config\":{\"deliver_policy\":%s,\"ack_policy\":\"none\","
                        "\"replay_policy\":\"instant\",\"max_waiting\":%d,\"inactive_threshold\":%d000000,"
                        "\"mem_storage\":true,\"num_replicas\":1}}",
                        r->topic, start, 4 * NATS_FETCHES, CONSUMER_LIVES_MS);
    r->state = NATS_READER_CREATE;
    r->req = nats_js_request(&r->w->js, "CONSUMER.CREATE", r->topic, payload, on_created, r);
    free(payload);
}

/* ---- looking at the stream ------------------------------------------------------------------ */

static void not_there(struct wal_reader *r)
{
    r->info = (struct nats_stream_info){0};
    if (r->exact) {
        lost(r, "the stream does not exist");
        return;
    }
    at_end(r);
    works(r);
    wait_ms(r, backoff_next_ms(&r->backoff));
}

/* What is missing, or NULL. */
static const char *find_loss(const struct wal_reader *r)
{
    const struct nats_stream_info *i = &r->info;

    if (!r->exact)
        return NULL;
    if (r->gap)
        return "it was removed";
    if (r->known && strcmp(r->created, i->created) != 0)
        return "the stream was removed and made anew";
    if (r->seq < i->first || (!r->begun && i->messages == 0))
        return "it was removed";
    if (r->seq > i->last + (r->begun ? 1 : 0))
        return "it is behind the end";
    return NULL;
}

static void on_look(void *arg, const struct err *err, json_t *reply)
{
    struct wal_reader *r = arg;
    const char *loss;
    struct err e;

    r->req = NULL;
    if (err && err->code == ERR_NOT_FOUND) {
        not_there(r);
        return;
    }
    if (err || nats_js_stream_info(reply, &r->info, &e)) {
        fail(r, err ? err : &e);
        return;
    }
    loss = find_loss(r);
    if (loss) {
        lost(r, loss);
        return;
    }
    r->known = true;
    memcpy(r->created, r->info.created, sizeof(r->created));
    if (!r->exact && r->info.messages == 0) { /* from here on nothing may be missing */
        r->exact = r->begun = true;
        r->seq = r->info.last + 1;
    }
    create_consumer(r);
}

static void begin(struct wal_reader *r)
{
    timer_cancel(&r->timer);
    if (!nats_name_ok(r->topic)) {
        err_set(&r->end_err, ERR_INVALID, ERRC_USER, "\"%.100s\" cannot be a stream of NATS", r->topic);
        end(r);
        return;
    }
    r->state = NATS_READER_LOOK;
    r->req = nats_js_request(&r->w->js, "STREAM.INFO", r->topic, "", on_look, r);
}

static void on_timer(void *arg)
{
    begin(arg); /* armed only while the connection is up */
}

void nats_reader_on_created(struct wal_reader *r)
{
    if (r->state == NATS_READER_WAIT && !r->exact)
        begin(r);
}

/* ---- what comes from the consumer ----------------------------------------------------------- */

static void keep(struct wal_reader *r, uint64_t seq, const struct nats_op *m)
{
    if (r->n_msgs == r->cap_msgs) {
        r->cap_msgs = r->cap_msgs ? r->cap_msgs * 2 : 16;
        r->msgs = xrealloc(r->msgs, r->cap_msgs * sizeof(*r->msgs));
    }
    r->msgs[r->n_msgs++] = (struct wal_msg){
        .pos = {0, seq}, .buf = buf_ref(m->buf), .data = m->buf->data + m->hdr_len, .len = m->len - m->hdr_len};
    r->w->held += m->buf->size;
}

static void count_msg(struct wal_reader *r, const struct nats_ack *ack, const struct nats_op *m)
{
    /* As the server counts (consumer.go loopAndGatherMsgs). */
    size_t n = m->subject.len + m->reply.len + m->len;

    take_credit(r, n);
    if (r->credit == 0) /* used up to the last byte: the server says nothing more about it */
        end_fetches(r);
    r->behind = ack->pending > 0;
    r->need = r->behind ? at_least(n, r->need - r->need / 8) : 0;
    r->at_end = !r->behind;
    r->end_told = false;
}

/* The consumer passed over seq, so it does not exist any more; what does is asked for the text. */
static void on_gap(struct wal_reader *r)
{
    r->gap = true;
    wait_ms(r, 0);
}

void nats_reader_on_msg(struct wal_reader *r, const struct nats_ack *ack, const struct nats_op *m)
{
    r->heard_ms = clock_mono_ms();
    if (ack->consumer_seq != r->consumer_seq + 1) {
        fail_text(r, ERR_PROTO, "a message was lost on the way");
        return;
    }
    if (r->exact && ack->stream_seq != r->seq) {
        if (ack->stream_seq > r->seq)
            on_gap(r);
        else
            fail_text(r, ERR_PROTO, "messages come in a wrong order");
        return;
    }
    r->consumer_seq++;
    count_msg(r, ack, m);
    if (r->paused && r->w->held + m->buf->size > r->w->fetch_bytes) {
        drop_consumer(r); /* read again after resume() */
        r->state = NATS_READER_DOWN;
        return;
    }
    keep(r, ack->stream_seq, m);
    r->exact = r->begun = true;
    r->seq = ack->stream_seq + 1;
    backoff_reset(&r->backoff);
    nats_port_ready(r->w, r);
    nats_reader_fetch(r);
    if (!TAILQ_EMPTY(&r->w->hungry))
        nats_port_feed(r->w);
}

/* The fetch was too small for the next message. */
static void on_too_large(struct wal_reader *r, const struct nats_fetch *f, uint64_t unused)
{
    size_t all = r->w->fetch_bytes, next = (size_t)at_most(unused, NEED_MAX) + 1;

    if (unused >= f->asked && f->asked < NEED_MAX)
        next = f->asked < all ? at_most(f->asked * 8, all) : at_most(f->asked * 2, NEED_MAX);
    r->need = at_least(r->need, next);
    r->behind = true;
}

static void on_heartbeat(struct wal_reader *r, const struct nats_status *st)
{
    if (st->last_consumer > r->consumer_seq)
        fail_text(r, ERR_PROTO, "a message was lost on the way");
    else if (r->exact && st->last_consumer == r->consumer_seq && st->last_stream >= r->seq)
        on_gap(r);
    else
        at_end(r);
}

static struct nats_fetch *find_fetch(struct wal_reader *r, uint64_t id)
{
    for (size_t i = 0; id && i < NATS_FETCHES; i++) {
        if (r->fetches[i].id == id)
            return &r->fetches[i];
    }
    return NULL;
}

static void on_fetch_over(struct wal_reader *r, struct nats_fetch *f, const struct nats_status *st)
{
    if (strstr(st->text, "Exceeds MaxBytes"))
        on_too_large(r, f, st->pending_bytes);
    else if (st->code == 404)
        at_end(r);
    end_fetch(r, f, (size_t)at_most(st->pending_bytes, f->asked));
    nats_reader_fetch(r);
    nats_port_feed(r->w);
}

void nats_reader_on_status(struct wal_reader *r, uint64_t id, const struct nats_status *st)
{
    struct nats_fetch *f = find_fetch(r, id);
    char text[160];

    if (!f || r->state != NATS_READER_ACTIVE)
        return;
    r->heard_ms = clock_mono_ms();
    if (st->code == 100) {
        backoff_reset(&r->backoff);
        on_heartbeat(r, st);
    } else if (st->code == 404 || st->code == 408 || strstr(st->text, "Exceeds MaxBytes") ||
               strstr(st->text, "Batch Completed")) {
        on_fetch_over(r, f, st);
    } else {
        snprintf(text, sizeof(text), "the server ends the consumer: %u %s", st->code, st->text);
        fail_text(r, ERR_UNAVAILABLE, text);
    }
}

/* ---- from the port -------------------------------------------------------------------------- */

void nats_reader_up(struct wal_reader *r)
{
    if (r->state != NATS_READER_DOWN)
        return;
    if (r->paused)
        works(r); /* as far as it can be known without reading */
    else
        begin(r);
}

void nats_reader_down(struct wal_reader *r, const struct err *err)
{
    if (r->state == NATS_READER_ENDED)
        return;
    drop_consumer(r);
    nats_js_cancel(r->req);
    r->req = NULL;
    timer_cancel(&r->timer);
    r->state = NATS_READER_DOWN;
    set_trouble(r, err);
}

void nats_reader_set_paused(struct wal_reader *r, bool paused)
{
    if (r->paused == paused)
        return;
    r->paused = paused;
    if (paused) {
        set_hungry(r, false);
        return;
    }
    nats_port_ready(r->w, r);
    if (r->state == NATS_READER_DOWN && r->w->state == NATS_PORT_UP)
        begin(r);
    else if (r->state == NATS_READER_ACTIVE && clock_mono_ms() - r->fetched_ms > CONSUMER_LIVES_MS / 2)
        wait_ms(r, 0); /* the server may have removed the consumer */
    else
        nats_reader_fetch(r);
}

bool nats_reader_wastes(const struct wal_reader *r)
{
    if (r->state != NATS_READER_ACTIVE || r->behind)
        return false;
    for (size_t i = 0; i < NATS_FETCHES; i++) {
        if (r->fetches[i].large)
            return true;
    }
    return false;
}

void nats_reader_restart(struct wal_reader *r)
{
    wait_ms(r, 0);
}

void nats_reader_tick(struct wal_reader *r, uint64_t now_ms)
{
    bool idle_fetch = false;

    for (size_t i = 0; i < NATS_FETCHES; i++) {
        const struct nats_fetch *f = &r->fetches[i];

        if (!f->id)
            continue;
        idle_fetch = true;
        if (now_ms > f->deadline_ms && now_ms - r->heard_ms > GRACE_MS) {
            fail_text(r, ERR_TIMEOUT, "the consumer does not answer");
            return;
        }
    }
    if (idle_fetch && !r->behind && now_ms - r->heard_ms > 3 * IDLE_HEARTBEAT_MS &&
        now_ms - r->fetched_ms > 3 * IDLE_HEARTBEAT_MS)
        fail_text(r, ERR_TIMEOUT, "no heartbeat of the consumer");
}

void nats_reader_init(struct wal_reader *r, struct nats_port *w, const char *topic, const struct wal_start *start)
{
    r->w = w;
    r->id = ++w->last_reader_id;
    r->topic = xstrdup(topic);
    r->exact = !start->earliest;
    r->seq = start->earliest ? 0 : start->pos.minor;
    if (start->handled && !start->earliest) { /* as if it had just been delivered */
        r->begun = true;
        r->seq++;
    }
    r->backoff = (struct backoff)BACKOFF_INIT(LOOK_MIN_MS, LOOK_MAX_MS);
    timer_init(&r->timer, w->loop, LOOP_PRIO_NORMAL, on_timer, r);
}

void nats_reader_release(struct wal_reader *r)
{
    drop_consumer(r);
    nats_js_cancel(r->req);
    r->req = NULL;
    set_hungry(r, false);
    timer_release(&r->timer);
    for (size_t i = 0; i < r->n_msgs; i++) {
        r->w->held -= r->msgs[i].buf->size;
        buf_unref(r->msgs[i].buf);
    }
    r->n_msgs = 0;
    xfree(&r->msgs);
    xfree(&r->topic);
}
