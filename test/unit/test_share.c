/*
 * Readers that share one reader, against a fake queue: each must see exactly the messages from its start on, whatever
 * the others do. Every delivery has buffers of its own, so what the port holds can be counted.
 */
#include "wal/share.h"

#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "repl/port.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include <cmocka.h>

enum { N_TOPICS = 2, LOG_MAX = 40000, MSG_BYTES = 100, TICK_BYTES = 17, WINDOW = 4096, MAX_CLIENTS = 12 };

static struct loop *loop;
static struct wal_port *share;
static unsigned rnd_state;

static unsigned rnd(unsigned n)
{
    rnd_state = rnd_state * 1103515245u + 12345u;
    return (rnd_state >> 8) % n;
}

/* ---- the queue ---------------------------------------------------------------------------------- */

struct log {
    char name[24];
    uint64_t ids[LOG_MAX];
    size_t sizes[LOG_MAX];
    size_t n, first; /* index of the first that exists */
    bool down;
};
static struct log logs[N_TOPICS];

struct wal_reader { /* of the queue */
    LIST_ENTRY(wal_reader) entry;
    struct log *log;
    struct wal_reader_cbs cbs;
    void *arg;
    struct wal_start start;
    size_t next;
    bool begun, paused, told, ended, at_end;
};
static LIST_HEAD(, wal_reader) readers;
static unsigned n_readers, n_opened;
static size_t live_bytes; /* in buffers that somebody still holds */
static const struct wal_msg *given; /* the array of the last delivery */

static void on_buf_free(void *arg)
{
    live_bytes -= *(size_t *)arg;
    free(arg);
}

static struct buf *live_buf(size_t size)
{
    size_t *p = xcalloc(1, sizeof(*p) + size);

    *p = size;
    live_bytes += size;
    return buf_wrap(p, size, on_buf_free, p);
}

static void produce(struct log *l, size_t n, size_t size)
{
    for (size_t i = 0; i < n; i++, l->n++) {
        assert_true(l->n < LOG_MAX);
        l->ids[l->n] = (l->n ? l->ids[l->n - 1] : 100) + 1 + rnd(3);
        l->sizes[l->n] = size;
    }
}

static struct log *log_named(const char *name)
{
    for (int i = 0; i < N_TOPICS; i++)
        if (strcmp(logs[i].name, name) == 0)
            return &logs[i];
    fail_msg("topic %s", name);
    return NULL;
}

static struct wal_reader *q_open(struct wal_port *w, const char *topic, const struct wal_start *start,
                                 const struct wal_reader_cbs *cbs, void *arg)
{
    struct wal_reader *r = xcalloc(1, sizeof(*r));

    (void)w;
    r->log = log_named(topic);
    r->cbs = *cbs;
    r->arg = arg;
    r->start = *start;
    LIST_INSERT_HEAD(&readers, r, entry);
    n_readers++;
    n_opened++;
    return r;
}

static void q_pause(struct wal_reader *r)
{
    r->paused = true;
}

static void q_resume(struct wal_reader *r)
{
    r->paused = false;
}

static void q_close(struct wal_reader *r)
{
    LIST_REMOVE(r, entry);
    n_readers--;
    free(r);
}

static const char *end_asked;
static void q_end(struct wal_port *w, const char *topic, wal_end_fn done, void *arg)
{
    (void)w;
    end_asked = topic;
    done(arg, NULL, true, (struct wal_pos){0, 7});
}

static void *cancelled;
static void q_end_cancel(struct wal_port *w, void *arg)
{
    (void)w;
    cancelled = arg;
}

static uint64_t retained;
static void q_retain(struct wal_port *w, const char *owner, const char *topic, struct wal_pos from)
{
    (void)w;
    (void)owner;
    (void)topic;
    retained = from.minor;
}

static void q_forget(struct wal_port *w, const char *owner, const char *topic, wal_forget_fn done, void *arg)
{
    (void)w;
    (void)owner;
    (void)topic;
    done(arg, NULL);
}

static size_t q_encode(struct wal_pos pos, uint8_t *ret_id)
{
    ret_id[0] = (uint8_t)pos.minor;
    return 1;
}

static int q_decode(const uint8_t *id, size_t len, struct wal_pos *ret_pos)
{
    (void)len;
    *ret_pos = (struct wal_pos){0, id[0]};
    return 0;
}

static const struct wal_port_ops q_ops = {.open = q_open, .pause = q_pause, .resume = q_resume, .close = q_close,
                                          .end = q_end, .end_cancel = q_end_cancel, .id_encode = q_encode,
                                          .id_decode = q_decode};
static struct wal_port queue = {.ops = &q_ops, .name = "fake"};

static void tell_lost(struct wal_reader *r)
{
    struct err err;

    err_set(&err, ERR_GONE, ERRC_LOST, "gone");
    r->ended = true;
    r->cbs.on_trouble(r->arg, &err);
}

static void tell_trouble(struct wal_reader *r)
{
    struct err err;

    r->told = !r->told;
    err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "down");
    r->cbs.on_trouble(r->arg, r->told ? &err : NULL);
}

static bool begin(struct wal_reader *r)
{
    size_t i = r->log->first;

    if (!r->start.earliest) {
        while (i < r->log->n && r->log->ids[i] < r->start.pos.minor)
            i++;
        if (i == r->log->n || r->log->ids[i] != r->start.pos.minor) {
            tell_lost(r);
            return false;
        }
    }
    r->next = i;
    r->begun = true;
    return true;
}

static void deliver(struct wal_reader *r, size_t n)
{
    struct log *l = r->log;
    struct wal_msg *m = xcalloc(n + 1, sizeof(*m));
    size_t bytes = 0, at = 0;
    struct buf *b;

    for (size_t i = 0; i < n; i++)
        bytes += l->sizes[r->next + i];
    b = live_buf(bytes);
    for (size_t i = 0; i < n; i++) {
        size_t size = l->sizes[r->next + i];
        m[i] = (struct wal_msg){.pos = {0, l->ids[r->next + i]}, .buf = b, .data = b->data + at, .len = size};
        at += size;
    }
    r->next += n;
    r->at_end = r->next == l->n;
    given = m;
    r->cbs.on_batch(r->arg, n ? m : NULL, n, r->at_end); /* r may be gone */
    buf_unref(b);
    free(m);
}

/* One callback of the queue's reader, if there is something to tell. */
static bool step(struct wal_reader *r, size_t most)
{
    struct log *l = r->log;
    size_t n;

    if (r->ended)
        return false;
    if (r->told != l->down) {
        tell_trouble(r);
        return true;
    }
    if (l->down || r->paused)
        return false;
    if (!r->begun && !begin(r))
        return true; /* told LOST: r may be gone */
    if (r->next < l->first) {
        tell_lost(r);
        return true;
    }
    n = l->n - r->next;
    if (n == 0 && r->at_end)
        return false;
    deliver(r, n < most ? n : most);
    return true;
}

static bool step_any(size_t most)
{
    unsigned skip = n_readers ? rnd(n_readers) : 0;
    struct wal_reader *r;

    LIST_FOREACH(r, &readers, entry)
        if (skip-- == 0)
            return step(r, most);
    return false;
}

static void turn(void)
{
    loop_once(loop, false);
}

/* Until nothing is left to tell. */
static void settle(size_t most)
{
    struct wal_reader *r;
    bool more = true;

    while (more) {
        more = false;
        LIST_FOREACH(r, &readers, entry)
            if (step(r, most)) {
                more = true;
                break; /* the list may have changed */
            }
        for (int i = 0; i < 8; i++)
            turn();
    }
}

/* ---- clients ------------------------------------------------------------------------------------ */

struct client {
    struct wal_reader *r; /* the port's; NULL: closed */
    struct log *log;
    bool earliest, begun, paused, told, lost, caught;
    size_t start, next;   /* index in the log */
    unsigned batches;
    const struct wal_msg *got;
    void (*hook)(struct client *c);
};
static struct client clients[MAX_CLIENTS];
static bool inside; /* a call into the port */

/* The first that exists, or one that did when another client of the feed asked. */
static void first_message(struct client *c, uint64_t id)
{
    c->next = c->earliest ? c->log->first : c->start;
    while (c->earliest && c->next > 0 && c->log->ids[c->next] > id)
        c->next--;
    c->begun = true;
}

static void c_on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct client *c = arg;

    assert_false(inside);
    assert_non_null(c->r);
    assert_false(c->paused);
    assert_false(c->lost);
    assert_true(n > 0 || (caught_up && !c->caught));
    if (!c->begun && n > 0)
        first_message(c, msgs[0].pos.minor);
    for (size_t i = 0; i < n; i++, c->next++) {
        if (msgs[i].pos.minor != c->log->ids[c->next] || msgs[i].len != c->log->sizes[c->next])
            fail_msg("message %zu of %s: id %llu instead of %llu", c->next, c->log->name,
                     (unsigned long long)msgs[i].pos.minor, (unsigned long long)c->log->ids[c->next]);
    }
    c->caught = caught_up;
    c->batches++;
    c->got = msgs;
    if (c->hook)
        c->hook(c);
}

static void c_on_trouble(void *arg, const struct err *err)
{
    struct client *c = arg;

    assert_false(inside);
    assert_non_null(c->r);
    assert_false(c->lost);
    if (err && err->cls == ERRC_LOST) {
        assert_false(c->paused);
        assert_true((c->begun ? c->next - 1 : c->start) < c->log->first);
        c->lost = true;
    } else {
        assert_true(c->told == !err);
        c->told = err != NULL;
    }
    if (c->hook)
        c->hook(c);
}

static struct client *c_open(int i, struct log *l, bool earliest, size_t start)
{
    struct client *c = &clients[i];
    struct wal_start s = {.earliest = earliest, .pos = {0, earliest ? 0 : l->ids[start]}};

    assert_null(c->r);
    *c = (struct client){.log = l, .earliest = earliest, .start = start};
    inside = true;
    c->r = share->ops->open(share, l->name, &s,
                            &(struct wal_reader_cbs){.on_batch = c_on_batch, .on_trouble = c_on_trouble}, c);
    inside = false;
    return c;
}

static void c_close(struct client *c)
{
    inside = true;
    if (c->r)
        share->ops->close(c->r);
    inside = false;
    c->r = NULL;
}

static void c_pause(struct client *c)
{
    inside = true;
    c->paused = true;
    share->ops->pause(c->r);
    inside = false;
}

static void c_resume(struct client *c)
{
    inside = true;
    c->paused = false;
    share->ops->resume(c->r);
    inside = false;
}

static void check_there(const struct client *c)
{
    assert_int_equal(c->next, c->log->n);
    assert_true(c->caught);
}

/* ---- fixtures ------------------------------------------------------------------------------------- */

static int setup(void **state)
{
    (void)state;
    memset(clients, 0, sizeof(clients));
    memset(logs, 0, sizeof(logs));
    for (int i = 0; i < N_TOPICS; i++)
        snprintf(logs[i].name, sizeof(logs[i].name), "topic_%d", i);
    n_readers = n_opened = 0;
    live_bytes = 0;
    rnd_state = 4711;
    loop = loop_new();
    share = share_open(loop, &queue, WINDOW);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < MAX_CLIENTS; i++)
        c_close(&clients[i]);
    assert_int_equal(n_readers, 0);
    assert_int_equal(live_bytes, 0);
    share_close(share);
    loop_free(loop);
    return 0;
}

/* ---- stories ---------------------------------------------------------------------------------------- */

static void test_same_place_one_reader(void **state)
{
    struct log *l = &logs[0];

    (void)state;
    produce(l, 50, MSG_BYTES);
    for (int i = 0; i < 10; i++)
        c_open(i, l, false, 20);
    assert_int_equal(n_opened, 1);
    settle(7);
    produce(l, 30, TICK_BYTES);
    settle(1);
    c_open(10, l, false, l->n - 1); /* at the last message */
    c_open(11, l, false, l->n - 3); /* some ticks before */
    settle(1);
    produce(l, 2, TICK_BYTES);
    settle(2);
    assert_int_equal(n_opened, 1);
    for (int i = 0; i < 12; i++)
        check_there(&clients[i]);
}

static void test_from_the_first_message(void **state)
{
    struct log *l = &logs[0];

    (void)state;
    c_open(0, l, true, 0); /* the topic does not exist yet */
    c_open(1, l, true, 0);
    settle(3);
    produce(l, 4, TICK_BYTES);
    settle(4);
    c_open(2, l, true, 0); /* all of it is still in the window */
    assert_int_equal(n_opened, 1);
    produce(l, 40, MSG_BYTES);
    settle(10);
    c_open(3, l, true, 0); /* no longer */
    assert_int_equal(n_opened, 2);
    settle(10);
    for (int i = 0; i < 4; i++)
        check_there(&clients[i]);
    assert_int_equal(n_readers, 1);
}

/* A single client gets the queue's own arrays, and nothing is kept of large batches. */
static void test_single_passes_through(void **state)
{
    struct log *l = &logs[0];
    struct client *c;

    (void)state;
    produce(l, 400, MSG_BYTES);
    c = c_open(0, l, false, 0);
    while (c->next < l->n) {
        assert_true(step(LIST_FIRST(&readers), 100));
        assert_ptr_equal(c->got, given);
        assert_int_equal(live_bytes, 0);
    }
    check_there(c);
    for (int i = 0; i < 100; i++) {
        produce(l, 1, TICK_BYTES);
        settle(1);
    }
    assert_int_equal(c->batches, 4 + 100);
    assert_in_range(live_bytes, 1, 1024);
}

/* One that rests costs at most the window; the others go on; it catches up with a reader of its own, and is merged. */
static void test_slow_one_leaves_and_comes_back(void **state)
{
    struct log *l = &logs[0];
    struct client *slow = &clients[0], *a = &clients[1], *b = &clients[2];

    (void)state;
    produce(l, 10, MSG_BYTES);
    for (int i = 0; i < 3; i++)
        c_open(i, l, false, 0);
    settle(10);
    c_pause(slow);
    produce(l, 10, MSG_BYTES); /* fits */
    settle(5);
    assert_int_equal(a->next, l->n);
    c_resume(slow);
    settle(5);
    check_there(slow);
    assert_int_equal(n_opened, 1);

    c_pause(slow);
    for (int i = 0; i < 200; i++) {
        produce(l, 5, MSG_BYTES);
        settle(5);
        assert_int_equal(a->next, l->n);
        assert_int_equal(b->next, l->n);
        assert_true(live_bytes <= WINDOW);
    }
    assert_int_equal(n_readers, 1); /* it has none while it rests */
    c_resume(slow);
    assert_int_equal(n_readers, 2);
    settle(50);
    check_there(slow);
    assert_int_equal(n_readers, 1);
    assert_int_equal(n_opened, 2);
    produce(l, 5, MSG_BYTES);
    settle(5);
    check_there(slow);
    check_there(b);
}

/* More than a turn may tell: the queue rests until all have it, nobody leaves, and the loop is not held up. */
static void test_large_batches_in_turns(void **state)
{
    struct log *l = &logs[0];

    (void)state;
    produce(l, 3000, MSG_BYTES);
    for (int i = 0; i < 3; i++)
        c_open(i, l, false, 0);
    while (clients[2].next < l->n) {
        size_t before = clients[0].next + clients[1].next + clients[2].next;

        assert_true(step(LIST_FIRST(&readers), 300));
        assert_int_equal(clients[0].next + clients[1].next + clients[2].next, before + 300);
        assert_true(LIST_FIRST(&readers)->paused);
        assert_in_range(live_bytes, 300 * MSG_BYTES, 300 * MSG_BYTES);
        while (LIST_FIRST(&readers)->paused)
            turn();
        assert_int_equal(clients[0].next, clients[2].next);
        assert_int_equal(live_bytes, 0);
    }
    assert_int_equal(n_opened, 1);
}

/* All rest: the queue is not read. */
static void test_all_paused(void **state)
{
    struct log *l = &logs[0];

    (void)state;
    produce(l, 10, MSG_BYTES);
    c_open(0, l, false, 0);
    c_open(1, l, false, 0);
    settle(10);
    c_pause(&clients[0]);
    assert_false(LIST_FIRST(&readers)->paused);
    c_pause(&clients[1]);
    assert_true(LIST_FIRST(&readers)->paused);
    produce(l, 100, MSG_BYTES);
    settle(10);
    c_resume(&clients[1]);
    settle(10);
    check_there(&clients[1]);
    c_close(&clients[1]);
    assert_true(n_readers == 0 || LIST_FIRST(&readers)->paused);
    c_resume(&clients[0]);
    settle(10);
    check_there(&clients[0]);
}

/* Readers that began apart are one when they are at the same place. */
static void test_apart_then_together(void **state)
{
    struct log *l = &logs[0];

    (void)state;
    produce(l, 300, MSG_BYTES);
    for (int i = 0; i < 6; i++)
        c_open(i, l, false, (size_t)i * 40);
    assert_int_equal(n_opened, 6);
    settle(16);
    assert_int_equal(n_readers, 1);
    for (int i = 0; i < 6; i++)
        check_there(&clients[i]);
}

static void test_trouble(void **state)
{
    struct log *l = &logs[0];

    (void)state;
    produce(l, 10, TICK_BYTES);
    for (int i = 0; i < 3; i++)
        c_open(i, l, false, 0);
    settle(10);
    l->down = true;
    settle(10);
    for (int i = 0; i < 3; i++)
        assert_true(clients[i].told);
    c_open(3, l, false, 9); /* joins, and is told too, once */
    settle(10);
    assert_int_equal(n_opened, 1);
    assert_true(clients[3].told);
    c_close(&clients[0]);
    l->down = false;
    settle(10);
    for (int i = 1; i < 4; i++) {
        assert_false(clients[i].told);
        check_there(&clients[i]);
    }
}

/* Only who stands there loses: the others have another reader. */
static void test_lost(void **state)
{
    struct log *l = &logs[0];

    (void)state;
    produce(l, 100, MSG_BYTES);
    c_open(0, l, false, 99);
    settle(10);
    l->first = 50;
    c_open(1, l, false, 10);
    c_open(2, l, false, 10);
    c_open(3, l, false, 60);
    settle(10);
    assert_true(clients[1].lost && clients[2].lost);
    assert_false(clients[0].lost || clients[3].lost);
    produce(l, 3, MSG_BYTES);
    settle(10);
    check_there(&clients[0]);
    check_there(&clients[3]);
    c_open(4, l, false, 10); /* a lost one is not joined */
    settle(10);
    assert_true(clients[4].lost);
}

static void close_all(struct client *c)
{
    (void)c;
    for (int i = 0; i < MAX_CLIENTS; i++)
        c_close(&clients[i]);
}

static void close_all_and_port(struct client *c)
{
    close_all(c);
    share_close(share);
    share = NULL;
}

static void test_close_everything_from_a_callback(void **state)
{
    struct log *l = &logs[0];

    (void)state;
    for (int how = 0; how < 4; how++) {
        produce(l, 5, how & 1 ? TICK_BYTES : 400);
        for (int i = 0; i < (how & 2 ? 4 : 1); i++)
            c_open(i, l, false, l->n - 5)->hook = i == 0 ? close_all_and_port : NULL;
        settle(5);
        assert_int_equal(n_readers, 0);
        assert_null(share);
        share = share_open(loop, &queue, WINDOW);
    }
}

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    assert_null(err);
    assert_true(found);
    *(uint64_t *)arg = last.minor;
}

static void on_forgotten(void *arg, const struct err *err)
{
    assert_null(err);
    *(bool *)arg = true;
}

static void test_the_rest_goes_through(void **state)
{
    struct wal_port_ops ops = q_ops;
    struct wal_port keeping = {.ops = &ops, .name = "fake"}, *w;
    uint64_t last = 0;
    uint8_t id[WAL_ID_MAX];
    struct wal_pos pos;
    bool forgotten = false;

    (void)state;
    share->ops->end(share, "topic_1", on_end, &last);
    assert_int_equal(last, 7);
    assert_string_equal(end_asked, "topic_1");
    share->ops->end_cancel(share, &last);
    assert_ptr_equal(cancelled, &last);
    assert_int_equal(share->ops->id_encode((struct wal_pos){0, 5}, id), 1);
    assert_int_equal(share->ops->id_decode(id, 1, &pos), 0);
    assert_int_equal(pos.minor, 5);
    assert_string_equal(share->name, "fake");
    assert_null(share->ops->retain);
    assert_null(share->ops->forget);
    ops.retain = q_retain;
    ops.forget = q_forget;
    w = share_open(loop, &keeping, WINDOW);
    w->ops->retain(w, "task", "topic_0", (struct wal_pos){0, 9});
    assert_int_equal(retained, 9);
    w->ops->forget(w, "task", "topic_0", on_forgotten, &forgotten);
    assert_true(forgotten);
    share_close(w);
}

/* ---- the model: random operations ---------------------------------------------------------------- */

static void random_open(int i)
{
    struct log *l = &logs[rnd(N_TOPICS)];
    size_t there = l->n - l->first, back;

    if (clients[i].r || there == 0)
        return;
    back = rnd(3) ? rnd(there < 10 ? (unsigned)there : 10) : rnd((unsigned)there);
    c_open(i, l, rnd(10) == 0, l->n - 1 - back);
}

static void act(int i)
{
    struct client *c = &clients[i];

    if (!c->r)
        random_open(i);
    else if (rnd(8) == 0)
        c_close(c);
    else if (c->paused)
        c_resume(c);
    else
        c_pause(c);
}

/* What happens inside callbacks: to itself and to others. */
static void act_inside(struct client *c)
{
    (void)c;
    if (rnd(6) == 0)
        act((int)rnd(MAX_CLIENTS));
    if (rnd(12) == 0 && c->r)
        act((int)(c - clients));
}

static void random_step(void)
{
    struct log *l = &logs[rnd(N_TOPICS)];
    unsigned what = rnd(100);

    if (what < 20)
        produce(l, 1 + rnd(8), rnd(2) ? TICK_BYTES : MSG_BYTES);
    else if (what < 70)
        (void)step_any(1 + rnd(20));
    else if (what < 80)
        turn();
    else if (what < 97)
        act((int)rnd(MAX_CLIENTS));
    else if (what < 99)
        l->down = !l->down;
    else if (rnd(4) == 0 && l->n > 200)
        l->first = l->n - 100 - rnd(100) > l->first ? l->n - 100 - rnd(100) : l->first;
    for (int i = 0; i < MAX_CLIENTS; i++)
        clients[i].hook = act_inside;
    assert_true(live_bytes <= 2 * (WINDOW + 8 * 1024)); /* a batch of 20 messages on top, and tails */
}

/* In the end everybody is at the end, knows that there is no trouble, and each topic has one reader. */
static void quiesce(void)
{
    unsigned used = 0;

    for (int i = 0; i < N_TOPICS; i++)
        logs[i].down = false;
    for (int i = 0; i < MAX_CLIENTS; i++) {
        clients[i].hook = NULL;
        if (clients[i].r && clients[i].paused)
            c_resume(&clients[i]);
    }
    settle(20);
    for (int i = 0; i < N_TOPICS; i++) /* who is apart because nothing came meets at the next message */
        produce(&logs[i], 1, TICK_BYTES);
    settle(20);
    for (int i = 0; i < MAX_CLIENTS; i++) {
        struct client *c = &clients[i];

        if (c->r && c->lost)
            c_close(c);
        if (!c->r)
            continue;
        check_there(c);
        assert_false(c->told);
        used |= 1u << (c->log - logs);
    }
    assert_int_equal(n_readers, (used & 1) + (used >> 1));
}

static void test_model(void **state)
{
    unsigned seed = 1, rounds = 60;

    (void)state;
    if (getenv("SEED"))
        seed = (unsigned)atoi(getenv("SEED")), rounds = 1;
    for (unsigned k = 0; k < rounds; k++) {
        teardown(NULL);
        setup(NULL);
        rnd_state = seed + k;
        print_message(k ? " %u" : "seeds %u", seed + k);
        for (int i = 0; i < 4000; i++) {
            random_step();
            if (i % 1000 == 999)
                quiesce();
        }
    }
    print_message("\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_same_place_one_reader, setup, teardown),
        cmocka_unit_test_setup_teardown(test_from_the_first_message, setup, teardown),
        cmocka_unit_test_setup_teardown(test_single_passes_through, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_one_leaves_and_comes_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_batches_in_turns, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_paused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_apart_then_together, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trouble, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(test_close_everything_from_a_callback, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_rest_goes_through, setup, teardown),
        cmocka_unit_test_setup_teardown(test_model, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
