#include "wal/rocksmq.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "loop/xthread.h"
#include "repl/port.h"
#include "wal/id64_priv.h"
#include "wal/rocksmq_priv.h"

#include <assert.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/queue.h>
#include <unistd.h>

enum {
    SETTLE_MS = 2,    /* from a change to the poll: the ticks of all channels come together */
    READERS_A_MS = 32, /* and they take longer, and a poll costs more, the more channels there are */
    BLIND_MIN_MS = 2, /* without inotify: the wait doubles from poll to poll */
    BLIND_MAX_MS = 50,
    SAFETY_MS = 1000,  /* with inotify */
    RETRY_MIN_MS = 20, /* after an error, doubling */
    RETRY_MAX_MS = 1000,
    TROUBLE_AFTER_MS = 1000, /* errors while the primary compacts are over sooner */
    CLOSE_AFTER_MS = 10000,  /* without work: open files hold the disk space of deleted ones */
    TURN_CALLS = 64,         /* callbacks in one turn of the loop */
    TURN_BYTES = 64 << 10,   /* of messages in one turn, or one slice */
};

enum reader_state {
    READER_IDLE,  /* between polls */
    READER_LENT,  /* its cursor is in a poll; slice points back at the reader */
    READER_ENDED, /* LOST, USER or DATA was told */
};

struct wal_reader {
    TAILQ_ENTRY(wal_reader) next;
    struct rocksmq *w;
    struct wal_reader_cbs cbs;
    void *arg;
    enum reader_state state;
    bool paused;
    bool told; /* that the port is in trouble */
    struct rmq_cursor *cursor;
    struct rmq_part *part; /* READER_LENT; its reader is NULL once this one is closed */
};

struct end_call {
    TAILQ_ENTRY(end_call) next;
    struct rmq_end q;
    wal_end_fn done; /* NULL: cancelled */
    void *arg;
};
TAILQ_HEAD(end_list, end_call);

/* One poll: the helper's from submit until done, then the loop's until all parts are delivered. */
struct poll {
    struct rmq_db *db;
    struct rmq_part *parts;
    size_t n, cap;
    size_t delivered;
    struct end_list ends;
    bool close;     /* nothing else: close the files */
    struct err err; /* the port's: code 0 is success */
};

enum port_state {
    PORT_IDLE,       /* timer armed while files are open. No event: nobody wants anything */
    PORT_WAITING,    /* timer armed: the next poll. Watch event: brings it forward */
    PORT_POLLING,    /* the helper has the poll */
    PORT_DELIVERING, /* timer armed: the next turn's part of it */
};

struct rocksmq {
    struct wal_port port;
    struct loop *loop;
    struct xthread *thread;
    char *path;
    enum port_state state;
    struct timer timer;
    TAILQ_HEAD(, wal_reader) readers; /* in the order of the next poll */
    struct end_list ends;             /* not yet in a poll */
    struct poll poll;
    unsigned n_told;   /* readers that know of trouble */
    bool closed;
    bool opened;       /* files are open, perhaps */
    bool more;         /* the last poll left data behind */
    unsigned blind_ms; /* wait without inotify */
    unsigned retry_ms;
    uint64_t failing_since_ms; /* 0: works */
    int watch_fd;              /* inotify, -1: does not work here */
    int watch;                 /* descriptor of the folder, -1: none yet */
    struct event *watch_ev;
};

static void kick(struct rocksmq *w);

static struct rocksmq *from_port(struct wal_port *p)
{
    return container_of(p, struct rocksmq, port);
}

static void set_state(struct rocksmq *w, enum port_state to)
{
    /* From row to column; deliver and poll end in PORT_IDLE, kick() goes on from there. */
    static const bool legal[4][4] = {
        [PORT_IDLE] = {[PORT_WAITING] = true, [PORT_POLLING] = true},
        [PORT_WAITING] = {[PORT_IDLE] = true, [PORT_WAITING] = true, [PORT_POLLING] = true},
        [PORT_POLLING] = {[PORT_DELIVERING] = true},
        [PORT_DELIVERING] = {[PORT_IDLE] = true},
    };

    assert(legal[w->state][to]);
    w->state = to;
}

/* ---- watching the folder ------------------------------------------------------------------- */

/* True: something was written to a log file, or a file came or went. */
static bool drain_watch(struct rocksmq *w)
{
    char data[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
    bool changed = false;
    ssize_t n;

    while ((n = read(w->watch_fd, data, sizeof(data))) > 0) {
        for (char *p = data; p < data + n;) {
            const struct inotify_event *e = (const void *)p;
            size_t len = e->len ? strlen(e->name) : 0;

            if (e->mask & IN_IGNORED) /* the folder is gone */
                w->watch = -1;
            if (!(e->mask & IN_MODIFY) || (len > 4 && strcmp(e->name + len - 4, ".log") == 0))
                changed = true;
            p += sizeof(*e) + e->len;
        }
    }
    return changed;
}

static void on_watch(evutil_socket_t fd, short what, void *arg)
{
    struct rocksmq *w = arg;

    (void)fd;
    (void)what;
    if (w->state != PORT_WAITING || !drain_watch(w))
        return;
    /* Silent until the poll, so that a busy Milvus wakes the loop once per poll and not per write.
     */
    event_del(w->watch_ev);
    timer_set(&w->timer, SETTLE_MS + w->poll.n / READERS_A_MS);
}

static void open_watch(struct rocksmq *w)
{
    w->watch = -1;
    w->watch_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (w->watch_fd < 0) {
        log_warn("wal", "inotify does not work, polling instead", KS("path", w->path));
        return;
    }
    w->watch_ev = event_new(loop_base(w->loop), w->watch_fd, EV_READ | EV_PERSIST, on_watch, w);
    if (!w->watch_ev)
        abort(); /* no memory */
    event_priority_set(w->watch_ev, LOOP_PRIO_NORMAL);
}

static void close_watch(struct rocksmq *w)
{
    if (w->watch_ev)
        event_free(w->watch_ev);
    if (w->watch_fd >= 0)
        close(w->watch_fd);
}

/* True: the folder was not watched before, so a change may have been missed. */
static bool renew_watch(struct rocksmq *w)
{
    if (w->watch_fd < 0 || w->watch >= 0)
        return false;
    w->watch = inotify_add_watch(w->watch_fd, w->path, IN_MODIFY | IN_CREATE | IN_MOVED_TO);
    return w->watch >= 0;
}

static void drop_watch(struct rocksmq *w)
{
    if (w->watch >= 0)
        (void)inotify_rm_watch(w->watch_fd, w->watch); /* fails when the folder is gone: as well */
    w->watch = -1;
}

/* ---- when to poll -------------------------------------------------------------------------- */

static bool wants_data(const struct wal_reader *r)
{
    return r->state != READER_ENDED && !r->paused;
}

static bool has_work(const struct rocksmq *w)
{
    const struct wal_reader *r;

    TAILQ_FOREACH (r, &w->readers, next) {
        if (wants_data(r))
            return true;
    }
    return !TAILQ_EMPTY(&w->ends);
}

static unsigned next_wait_ms(struct rocksmq *w)
{
    unsigned ms = w->blind_ms;

    if (w->failing_since_ms)
        return w->retry_ms;
    if (w->more)
        return 0;
    if (w->watch >= 0)
        return SAFETY_MS;
    w->blind_ms = ms * 2 > BLIND_MAX_MS ? BLIND_MAX_MS : ms * 2;
    return ms;
}

static void go_idle(struct rocksmq *w)
{
    if (w->state != PORT_IDLE)
        set_state(w, PORT_IDLE);
    w->failing_since_ms = 0; /* whoever comes next gives it its second again */
    timer_cancel(&w->timer);
    if (w->opened)
        timer_set(&w->timer, CLOSE_AFTER_MS);
    if (w->watch_ev)
        event_del(w->watch_ev);
}

static void wait_ms(struct rocksmq *w, unsigned ms)
{
    set_state(w, PORT_WAITING);
    timer_set(&w->timer, ms);
    if (w->watch_ev && !w->failing_since_ms)
        event_add(w->watch_ev, NULL);
}

/* Starts or ends polling as the readers want it. */
static void kick(struct rocksmq *w)
{
    if (w->state == PORT_POLLING || w->state == PORT_DELIVERING)
        return;
    if (!has_work(w))
        go_idle(w);
    else if (w->state == PORT_IDLE)
        wait_ms(w, next_wait_ms(w));
}

/* Somebody new wants something: he does not wait for the others' turn. */
static void kick_now(struct rocksmq *w)
{
    kick(w);
    if (w->state == PORT_POLLING || w->state == PORT_DELIVERING)
        w->more = true;
    else if (w->state == PORT_WAITING && !w->failing_since_ms)
        timer_set(&w->timer, 0);
}

/* ---- one poll ------------------------------------------------------------------------------ */

static void run_poll(void *job)
{
    struct poll *p = job;
    struct rmq_end **ends = NULL;
    struct end_call *e;
    size_t n = 0;

    p->err.code = ERR_OK;
    if (p->close) {
        rmq_db_close(p->db);
        return;
    }
    TAILQ_FOREACH (e, &p->ends, next) {
        ends = xrealloc(ends, (n + 1) * sizeof(*ends));
        ends[n++] = &e->q;
    }
    (void)rmq_db_poll(p->db, p->parts, p->n, ends, n, &p->err); /* the code is in err */
    free(ends);
}

static void add_part(struct poll *p, struct wal_reader *r)
{
    if (p->n == p->cap) {
        p->cap = p->cap ? p->cap * 2 : 8;
        p->parts = xrealloc(p->parts, p->cap * sizeof(*p->parts));
    }
    p->parts[p->n++] = (struct rmq_part){.reader = r, .cursor = r->cursor, .skipped = true};
    r->state = READER_LENT;
}

static void on_polled(void *job);

static void start_poll(struct rocksmq *w)
{
    struct poll *p = &w->poll;
    struct wal_reader *r;

    set_state(w, PORT_POLLING);
    p->close = false;
    if (w->watch_ev) {
        event_del(w->watch_ev);
        drain_watch(w); /* what was written up to here, this poll sees */
    }
    p->n = p->delivered = 0;
    TAILQ_FOREACH (r, &w->readers, next) {
        if (wants_data(r))
            add_part(p, r);
    }
    for (size_t i = 0; i < p->n; i++) /* the array stands still now */
        p->parts[i].reader->part = &p->parts[i];
    TAILQ_CONCAT(&p->ends, &w->ends, next);
    w->more = false;
    w->opened = true;
    xthread_submit(w->thread, run_poll, on_polled, p);
}

static void start_close(struct rocksmq *w)
{
    set_state(w, PORT_POLLING);
    w->poll.n = w->poll.delivered = 0;
    w->poll.close = true;
    w->opened = false;
    xthread_submit(w->thread, run_poll, on_polled, &w->poll);
}

static void note_failure(struct rocksmq *w)
{
    unsigned ms = w->retry_ms;

    if (!w->failing_since_ms) {
        w->failing_since_ms = clock_mono_ms();
        ms = RETRY_MIN_MS / 2;
    }
    w->retry_ms = ms * 2 > RETRY_MAX_MS ? RETRY_MAX_MS : ms * 2;
    drop_watch(w); /* perhaps the path leads to another folder now */
    log_debug("wal", "poll failed", KS("path", w->path), KS("err", w->poll.err.text));
}

static bool failing_long(const struct rocksmq *w)
{
    return w->failing_since_ms && clock_mono_ms() - w->failing_since_ms >= TROUBLE_AFTER_MS;
}

/* Calls nobody: deliver() does. */
static void on_polled(void *job)
{
    struct rocksmq *w = container_of((struct poll *)job, struct rocksmq, poll);

    set_state(w, PORT_DELIVERING);
    if (w->poll.err.code) {
        note_failure(w);
    } else if (!w->poll.close) {
        w->failing_since_ms = 0;
        w->more = renew_watch(w) || w->more;
    }
    timer_set(&w->timer, 0);
}

/* ---- delivery: each function makes one callback and then returns true, touching nothing ----- */

static void end_call_free(struct end_call *e)
{
    free(e->q.topic);
    free(e);
}

static bool deliver_end(struct rocksmq *w)
{
    struct poll *p = &w->poll;
    struct end_call *e;
    bool failed = p->err.code != ERR_OK;

    if (failed && !failing_long(w)) { /* asks again with the next poll, in the old order */
        TAILQ_CONCAT(&p->ends, &w->ends, next);
        TAILQ_CONCAT(&w->ends, &p->ends, next);
        return false;
    }
    while ((e = TAILQ_FIRST(&p->ends))) {
        wal_end_fn done = e->done;
        struct wal_pos last = {0, e->q.last};
        struct err err = p->err;
        bool found = e->q.found;
        void *arg = e->arg;

        TAILQ_REMOVE(&p->ends, e, next);
        end_call_free(e);
        if (!done)
            continue;
        done(arg, failed ? &err : NULL, !failed && found, !failed && found ? last : WAL_POS_NONE);
        return true;
    }
    return false;
}

/* Tells one reader that the port is in trouble, or no longer. */
static bool deliver_trouble(struct rocksmq *w)
{
    bool trouble = w->poll.err.code != ERR_OK;
    struct wal_reader *r;
    struct err err;

    if (trouble ? !failing_long(w) : w->n_told == 0)
        return false;
    err = w->poll.err;
    TAILQ_FOREACH (r, &w->readers, next) {
        if (r->state == READER_ENDED || r->told == trouble || (trouble && r->paused))
            continue;
        r->told = trouble;
        w->n_told += trouble ? 1 : -1u;
        r->cbs.on_trouble(r->arg, trouble ? &err : NULL);
        return true;
    }
    return false;
}

static void move_cursor(struct rmq_cursor *c, const struct rmq_slice *s)
{
    if (s->n > 0) {
        c->begun = true;
        c->id = s->msgs[s->n - 1].pos.minor;
    }
    c->log = s->log;
    if (s->n > 0 || s->caught_up) {
        c->at_end = s->caught_up;
        c->end_ms = s->caught_up ? s->end_ms : 0;
    }
}

/* The slice is r's and goes here. */
static bool deliver_slice(struct rocksmq *w, struct wal_reader *r, struct rmq_slice *s)
{
    bool news = s->n > 0 || (s->caught_up && !r->cursor->at_end);

    if (s->err) {
        r->state = READER_ENDED;
        r->cbs.on_trouble(r->arg, s->err);
        return true;
    }
    move_cursor(r->cursor, s);
    if (!s->caught_up)
        w->more = true;
    if (!news)
        return false;
    TAILQ_REMOVE(&w->readers, r, next); /* the others come first next time */
    TAILQ_INSERT_TAIL(&w->readers, r, next);
    w->blind_ms = BLIND_MIN_MS;
    r->cbs.on_batch(r->arg, s->msgs, s->n, s->caught_up);
    return true;
}

static void free_cursor(struct rmq_cursor *c)
{
    free(c->topic);
    free(c);
}

/* Gives the cursor back; what a paused reader must not get is read again after resume(). */
static bool deliver_part(struct rocksmq *w, struct rmq_part *part)
{
    struct wal_reader *r = part->reader;
    struct rmq_slice s = part->slice;
    bool called = false;

    part->slice = (struct rmq_slice){0};
    if (r) {
        r->state = READER_IDLE;
        r->part = NULL;
        if (part->skipped)
            w->more = true;
        else if (!w->poll.err.code && !r->paused)
            called = deliver_slice(w, r, &s);
    } else {
        free_cursor(part->cursor);
    }
    rmq_slice_release(&s);
    return called;
}

static bool deliver_parts(struct rocksmq *w, size_t *bytes)
{
    struct poll *p = &w->poll;

    while (p->delivered < p->n) {
        struct rmq_part *part = &p->parts[p->delivered++];

        *bytes += part->slice.bytes;
        if (deliver_part(w, part))
            return true;
    }
    return false;
}

/* As much as a turn of the loop allows; the ticks of many channels come together. */
static void deliver(struct rocksmq *w)
{
    size_t bytes = 0;

    timer_set(&w->timer, 0); /* before a callback, which may close all of this */
    for (int calls = 0; calls < TURN_CALLS && bytes < TURN_BYTES; calls++) {
        if (deliver_end(w) || deliver_trouble(w) || deliver_parts(w, &bytes)) {
            if (w->closed)
                return;
            continue;
        }
        timer_cancel(&w->timer);
        set_state(w, PORT_IDLE);
        kick(w);
        return;
    }
}

static void on_timer(void *arg)
{
    struct rocksmq *w = arg;

    if (w->state == PORT_DELIVERING)
        deliver(w);
    else if (w->state == PORT_WAITING)
        start_poll(w);
    else if (w->state == PORT_IDLE)
        start_close(w);
}

/* ---- the port ------------------------------------------------------------------------------ */

static struct wal_reader *op_open(struct wal_port *port, const char *topic,
                                  const struct wal_start *start, const struct wal_reader_cbs *cbs,
                                  void *arg)
{
    struct rocksmq *w = from_port(port);
    struct wal_reader *r = xcalloc(1, sizeof(*r));

    r->w = w;
    r->cbs = *cbs;
    r->arg = arg;
    r->cursor = xcalloc(1, sizeof(*r->cursor));
    r->cursor->topic = xstrdup(topic);
    r->cursor->topic_len = strlen(topic);
    r->cursor->hash = rmq_topic_hash(topic, r->cursor->topic_len);
    r->cursor->earliest = start->earliest;
    r->cursor->id = start->earliest ? 0 : start->pos.minor;
    TAILQ_INSERT_TAIL(&w->readers, r, next);
    kick_now(w);
    return r;
}

static void op_pause(struct wal_reader *r)
{
    r->paused = true;
    kick(r->w);
}

static void op_resume(struct wal_reader *r)
{
    if (!r->paused)
        return;
    r->paused = false;
    kick_now(r->w);
}

static void op_close(struct wal_reader *r)
{
    struct rocksmq *w = r->w;

    if (!w) /* closed already in this turn */
        return;
    r->w = NULL;
    w->n_told -= r->told;
    TAILQ_REMOVE(&w->readers, r, next);
    if (r->part)
        r->part->reader = NULL;
    else
        free_cursor(r->cursor);
    kick(w);
    loop_defer(w->loop, free, r);
}

static void op_end(struct wal_port *port, const char *topic, wal_end_fn done, void *arg)
{
    struct rocksmq *w = from_port(port);
    struct end_call *e = xcalloc(1, sizeof(*e));

    e->q.topic = xstrdup(topic);
    e->done = done;
    e->arg = arg;
    TAILQ_INSERT_TAIL(&w->ends, e, next);
    kick_now(w);
}

static void cancel_in(struct end_list *list, void *arg)
{
    struct end_call *e;

    TAILQ_FOREACH (e, list, next) {
        if (e->arg == arg)
            e->done = NULL;
    }
}

static void op_end_cancel(struct wal_port *port, void *arg)
{
    struct rocksmq *w = from_port(port);

    cancel_in(&w->ends, arg);
    cancel_in(&w->poll.ends, arg);
}

/* int64, little endian (source.md 7.4). */
static size_t op_id_encode(struct wal_pos pos, uint8_t *ret_id)
{
    return id64_encode(pos.minor, ret_id);
}

/* 0, or ERR_PROTO: not 8 bytes or negative. */
static int op_id_decode(const uint8_t *id, size_t len, struct wal_pos *ret_pos)
{
    uint64_t v;

    if (id64_decode(id, len, INT64_MAX, &v))
        return ERR_PROTO;
    *ret_pos = (struct wal_pos){0, v};
    return 0;
}

static const struct wal_port_ops rocksmq_ops = {
    .open = op_open,
    .pause = op_pause,
    .resume = op_resume,
    .close = op_close,
    .end = op_end,
    .end_cancel = op_end_cancel,
    .id_encode = op_id_encode,
    .id_decode = op_id_decode,
};

struct wal_port *rocksmq_open(struct loop *l, const char *path, const char *secondary_dir)
{
    struct rocksmq *w = xcalloc(1, sizeof(*w));

    w->port = (struct wal_port){.ops = &rocksmq_ops, .name = "rocksmq", .setting = "sourceConfig.rocksmq.path"};
    w->loop = l;
    w->path = xstrdup(path);
    w->blind_ms = BLIND_MIN_MS;
    TAILQ_INIT(&w->readers);
    TAILQ_INIT(&w->ends);
    TAILQ_INIT(&w->poll.ends);
    w->poll.db = rmq_db_new(path, secondary_dir);
    w->thread = xthread_new(l, "rocksmq");
    timer_init(&w->timer, l, LOOP_PRIO_LOW, on_timer, w);
    open_watch(w);
    return &w->port;
}

static void free_ends(struct end_list *list)
{
    struct end_call *e;

    while ((e = TAILQ_FIRST(list))) {
        TAILQ_REMOVE(list, e, next);
        end_call_free(e);
    }
}

static void free_poll(struct poll *p)
{
    for (; p->delivered < p->n; p->delivered++) {
        rmq_slice_release(&p->parts[p->delivered].slice);
        free_cursor(p->parts[p->delivered].cursor); /* its reader was closed */
    }
    free(p->parts);
    free_ends(&p->ends);
    rmq_db_free(p->db);
}

void rocksmq_close(struct wal_port *port)
{
    struct rocksmq *w;

    if (!port)
        return;
    w = from_port(port);
    assert(TAILQ_EMPTY(&w->readers));
    w->closed = true;
    xthread_free(w->thread); /* a running poll comes to its on_polled() */
    timer_release(&w->timer);
    close_watch(w);
    free_poll(&w->poll);
    free_ends(&w->ends);
    free(w->path);
    loop_defer(w->loop, free, w); /* deliver() may be on the stack */
}
