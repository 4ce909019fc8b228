#include "wal/share.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "wal/share_priv.h"

enum {
    TAIL_BYTES = 1024, /* kept for those who come: about six ticks */
    TURN_MSGS = 256,   /* told in one turn of the loop */
    ALL_TOPICS = 8,    /* what all topics may hold together, in window_bytes */
};

static void feed_close(struct feed *f);
static void feed_kick(struct feed *f);
static void feed_merge(struct feed *f);

static struct share *from_port(struct wal_port *p)
{
    return container_of(p, struct share, port);
}

/* ---- who has to be told something ----------------------------------------------------------- */

static bool owes_trouble(const struct wal_reader *c)
{
    enum health h = c->feed->health;

    return (h == HEALTH_BAD && !c->told) || (h == HEALTH_GOOD && c->told);
}

static bool owes(const struct wal_reader *c)
{
    const struct feed *f = c->feed;

    if (c->closed || !f || c->told_end)
        return false;
    if (owes_trouble(c))
        return true;
    return !c->paused && (c->next || (f->caught_up && !c->caught_up) || f->ended);
}

static void client_queue(struct wal_reader *c)
{
    struct share *s = c->topic->s;

    if (c->queued || !owes(c))
        return;
    c->queued = true;
    TAILQ_INSERT_TAIL(&s->ready, c, of_ready);
    if (!s->telling && !timer_armed(&s->timer))
        timer_set(&s->timer, 0);
}

static void client_unqueue(struct wal_reader *c)
{
    if (c->queued)
        TAILQ_REMOVE(&c->topic->s->ready, c, of_ready);
    c->queued = false;
}

/* ---- places in a window ----------------------------------------------------------------------- */

/* index may be behind the chunk's last message. */
static void client_place(struct wal_reader *c, struct chunk *k, size_t index)
{
    struct chunk *old = c->next;

    if (k && index == k->n) {
        k = TAILQ_NEXT(k, entry);
        index = 0;
    }
    if (k)
        k->refs++;
    c->next = k;
    c->next_index = index;
    chunk_unref(old);
}

static void feed_add(struct feed *f, struct wal_reader *c, struct chunk *k, size_t index)
{
    TAILQ_INSERT_TAIL(&f->clients, c, of_feed);
    f->n_clients++;
    c->feed = f;
    client_place(c, k, index);
    client_queue(c);
}

static void feed_remove(struct wal_reader *c)
{
    struct feed *f = c->feed;

    client_unqueue(c);
    client_place(c, NULL, 0);
    TAILQ_REMOVE(&f->clients, c, of_feed);
    f->n_clients--;
    c->feed = NULL;
}

/* ---- telling: each makes at most one callback --------------------------------------------------- */

static void tell_trouble(struct wal_reader *c)
{
    struct err err;

    c->told = !c->told;
    if (c->told)
        err_copy(&err, c->feed->err);
    client_queue(c);
    c->cbs.on_trouble(c->arg, c->told ? &err : NULL);
}

static void tell_end(struct wal_reader *c)
{
    struct err err;

    err_copy(&err, c->feed->err);
    c->told_end = true;
    c->cbs.on_trouble(c->arg, &err);
}

/* A client that left a feed reads on at its last message, which it must not get again. */
static size_t skip_known(const struct wal_reader *c, const struct wal_msg *msgs, size_t n)
{
    size_t i = 0;

    while (c->begun && i < n && wal_pos_cmp(msgs[i].pos, c->last) <= 0)
        i++;
    return i;
}

/* Messages that are not in the window, or no longer looked at there by the client. Returns their number. */
static size_t tell_batch(struct wal_reader *c, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    size_t skip = skip_known(c, msgs, n);
    bool news = n > skip || (caught_up && !c->caught_up);

    if (n > skip) {
        c->begun = true;
        c->last = msgs[n - 1].pos;
    }
    c->caught_up = caught_up || (n == skip && c->caught_up);
    if (news)
        c->cbs.on_batch(c->arg, msgs + skip, n - skip, caught_up);
    return n - skip;
}

static size_t tell_next(struct wal_reader *c)
{
    struct chunk *k = c->next;
    size_t from = c->next_index, n;

    k->refs++; /* during the callback, which may close everything */
    client_place(c, k, k->n);
    client_queue(c);
    n = tell_batch(c, k->msgs + from, k->n - from, !c->next && c->feed->caught_up);
    chunk_unref(k);
    return n;
}

/* Returns the number of messages told. */
static size_t tell(struct wal_reader *c)
{
    if (owes_trouble(c))
        tell_trouble(c);
    else if (c->next)
        return tell_next(c);
    else if (c->feed->caught_up && !c->caught_up)
        (void)tell_batch(c, NULL, 0, true);
    else
        tell_end(c);
    return 0;
}

/* Whom a callback closes is not in the queue any more; whom it opens waits at the end. */
static void run_ready(struct share *s)
{
    struct wal_reader *c;
    size_t told = 0;

    s->telling = true;
    while (told < TURN_MSGS && (c = TAILQ_FIRST(&s->ready))) {
        struct feed *f = c->feed;

        client_unqueue(c);
        if (!owes(c)) /* paused meanwhile */
            continue;
        told += tell(c) + 1;
        if (s->closed)
            return;
        if (!c->closed && c->feed == f)
            client_queue(c);
        feed_kick(f);
        if (f->reader && !c->next)
            feed_merge(f);
    }
    s->telling = false;
    if (!TAILQ_EMPTY(&s->ready))
        timer_set(&s->timer, 0);
}

/* News of f: to whom it concerns at once, as far as the turn allows. */
static void feed_tell(struct feed *f)
{
    struct share *s = f->topic->s;
    struct wal_reader *c;

    s->telling = true;
    TAILQ_FOREACH(c, &f->clients, of_feed)
        client_queue(c);
    run_ready(s);
}

static void on_timer(void *arg)
{
    run_ready(arg);
}

/* ---- a feed's window is full, a feed reads or rests ------------------------------------------------- */

/* Leaves the paused clients that are furthest behind: what they miss is read again. */
static void split_slow(struct feed *f)
{
    const struct chunk *front = TAILQ_FIRST(&f->window.chunks);
    struct wal_reader *c, *next;

    for (c = TAILQ_FIRST(&f->clients); c; c = next) {
        next = TAILQ_NEXT(c, of_feed);
        if (c->paused && c->next == front)
            feed_remove(c);
    }
}

static bool has_slow(const struct feed *f)
{
    const struct chunk *front = TAILQ_FIRST(&f->window.chunks);
    const struct wal_reader *c;

    if (front)
        TAILQ_FOREACH(c, &f->clients, of_feed)
            if (c->paused && c->next == front)
                return true;
    return false;
}

static void feed_trim(struct feed *f)
{
    const struct chunk *front = TAILQ_FIRST(&f->window.chunks);

    window_trim(&f->window, TAIL_BYTES);
    if (front != TAILQ_FIRST(&f->window.chunks))
        f->whole = false;
}

static bool topic_full(const struct topic *t)
{
    return t->bytes > t->s->window_bytes || t->s->bytes > t->s->window_bytes * ALL_TOPICS;
}

static void topic_trim(struct topic *t)
{
    struct feed *f, *next;

    for (f = TAILQ_FIRST(&t->feeds); f && topic_full(t); f = next) {
        next = TAILQ_NEXT(f, entry);
        while (topic_full(t) && has_slow(f)) {
            split_slow(f);
            feed_trim(f);
        }
        if (f->n_clients == 0)
            feed_close(f);
    }
}

/* An unpaused client drains by itself: only then more is read into a full window. */
static bool feed_wants(const struct feed *f)
{
    const struct wal_reader *c;

    if (f->window.bytes > f->topic->s->window_bytes)
        return false;
    TAILQ_FOREACH(c, &f->clients, of_feed)
        if (!c->paused)
            return true;
    return false;
}

static void feed_kick(struct feed *f)
{
    const struct wal_port_ops *ops = f->topic->s->inner->ops;
    bool pause;

    if (f->reader)
        feed_trim(f);
    if (topic_full(f->topic))
        topic_trim(f->topic);
    if (!f->reader)
        return;
    pause = !feed_wants(f);
    if (pause == f->paused)
        return;
    f->paused = pause;
    if (pause)
        ops->pause(f->reader);
    else
        ops->resume(f->reader);
}

/* ---- merging ------------------------------------------------------------------------------------------ */

/* Does f have what follows pos? Then *ret and *ret_index are the place of pos itself, *ret NULL: it is the newest. */
static bool feed_has(const struct feed *f, struct wal_pos pos, struct chunk **ret, size_t *ret_index)
{
    if (f->ended || !f->begun || wal_pos_cmp(pos, f->last) > 0)
        return false;
    *ret = NULL;
    *ret_index = 0;
    return window_find(&f->window, pos, ret, ret_index) || wal_pos_cmp(pos, f->last) == 0;
}

static struct feed *feed_behind(const struct topic *t, const struct feed *except, struct wal_pos pos,
                                struct chunk **ret, size_t *ret_index)
{
    struct feed *f;

    TAILQ_FOREACH(f, &t->feeds, entry)
        if (f != except && feed_has(f, pos, ret, ret_index))
            return f;
    return NULL;
}

static void client_move(struct wal_reader *c, struct feed *to, struct chunk *k, size_t index)
{
    feed_remove(c);
    feed_add(to, c, k, k ? index + 1 : 0);
}

/* What f would read next another feed has already: f's clients go there, but those who still have to be told more. */
static void feed_merge(struct feed *f)
{
    struct chunk *k;
    size_t index;
    struct feed *to = f->begun ? feed_behind(f->topic, f, f->last, &k, &index) : NULL;
    struct wal_reader *c, *next;

    if (!to)
        return;
    for (c = TAILQ_FIRST(&f->clients); c; c = next) {
        next = TAILQ_NEXT(c, of_feed);
        if (!c->next && !c->told_end)
            client_move(c, to, k, index);
    }
    feed_kick(to);
    if (f->n_clients == 0)
        feed_close(f);
}

/* ---- what the inner reader tells --------------------------------------------------------------------------- */

/* A single client that waits for nothing gets the batch as it is. */
static struct wal_reader *only_client(const struct feed *f)
{
    struct wal_reader *c = TAILQ_FIRST(&f->clients);

    return f->n_clients == 1 && !c->next && !c->paused && !owes_trouble(c) ? c : NULL;
}

static void feed_keep(struct feed *f, const struct wal_msg *msgs, size_t n)
{
    struct chunk *k = window_append(&f->window, msgs, n);
    struct wal_reader *c;

    TAILQ_FOREACH(c, &f->clients, of_feed)
        if (!c->next)
            client_place(c, k, 0);
}

/* f may be closed by the callback; its memory stays for this turn. */
static void feed_pass(struct feed *f, struct wal_reader *c, const struct wal_msg *msgs, size_t n)
{
    struct share *s = f->topic->s;

    if (n > 0) {
        window_clear(&f->window);
        f->whole = false;
    }
    (void)tell_batch(c, msgs, n, f->caught_up);
    if (s->closed)
        return;
    if (!c->closed && c->feed)
        client_queue(c);
    feed_kick(f);
}

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct feed *f = arg;
    struct share *s = f->topic->s;
    struct wal_reader *c;

    f->caught_up = caught_up;
    if (n > 0) {
        f->begun = true;
        f->last = msgs[n - 1].pos;
    }
    if (f->health == HEALTH_UNKNOWN)
        f->health = HEALTH_GOOD;
    c = only_client(f);
    if (c && (n == 0 || window_cost(msgs, n, TAIL_BYTES) > TAIL_BYTES)) {
        feed_pass(f, c, msgs, n);
    } else {
        if (n > 0)
            feed_keep(f, msgs, n);
        feed_tell(f);
    }
    if (!s->closed && f->reader)
        feed_merge(f);
    if (!s->closed && f->reader)
        feed_kick(f);
}

static void on_trouble(void *arg, const struct err *err)
{
    struct feed *f = arg;

    if (err) {
        if (!f->err)
            f->err = xmalloc(sizeof(*f->err));
        err_copy(f->err, err);
    }
    f->ended = err && err->cls != ERRC_RETRY;
    f->health = f->ended ? HEALTH_UNKNOWN : err ? HEALTH_BAD : HEALTH_GOOD;
    feed_tell(f);
}

static const struct wal_reader_cbs feed_cbs = {.on_batch = on_batch, .on_trouble = on_trouble};

/* ---- feeds and topics ------------------------------------------------------------------------------------- */

static struct topic *topic_get(struct share *s, const char *name)
{
    struct topic *t;

    HASH_FIND_STR(s->topics, name, t);
    if (t)
        return t;
    t = xcalloc(1, sizeof(*t));
    t->s = s;
    t->name = xstrdup(name);
    TAILQ_INIT(&t->feeds);
    HASH_ADD_KEYPTR(hh, s->topics, t->name, strlen(t->name), t);
    return t;
}

static void topic_put(struct topic *t)
{
    if (--t->clients > 0)
        return;
    assert(TAILQ_EMPTY(&t->feeds));
    HASH_DEL(t->s->topics, t);
    free(t->name);
    t->name = NULL;
    loop_defer(t->s->loop, free, t); /* on_batch() may be on the stack */
}

static struct feed *feed_new(struct topic *t, const struct wal_start *start)
{
    struct share *s = t->s;
    struct feed *f = xcalloc(1, sizeof(*f));

    f->topic = t;
    f->start = *start;
    f->whole = start->earliest;
    f->window.topic_bytes = &t->bytes;
    f->window.all_bytes = &s->bytes;
    TAILQ_INIT(&f->window.chunks);
    TAILQ_INIT(&f->clients);
    TAILQ_INSERT_TAIL(&t->feeds, f, entry);
    f->reader = s->inner->ops->open(s->inner, t->name, start, &feed_cbs, f);
    return f;
}

static void feed_free(void *arg)
{
    struct feed *f = arg;

    free(f->err);
    free(f);
}

static void feed_close(struct feed *f)
{
    struct share *s = f->topic->s;

    if (!f->reader)
        return;
    assert(f->n_clients == 0);
    s->inner->ops->close(f->reader);
    f->reader = NULL;
    window_clear(&f->window);
    TAILQ_REMOVE(&f->topic->feeds, f, entry);
    loop_defer(s->loop, feed_free, f);
}

/* ---- a client finds its feed ---------------------------------------------------------------------------------- */

static bool same_start(const struct wal_start *a, const struct wal_start *b)
{
    return a->earliest == b->earliest &&
           (a->earliest || (a->handled == b->handled && wal_pos_cmp(a->pos, b->pos) == 0));
}

/* A feed from which the client gets all from its start on. */
static struct feed *find_feed(const struct topic *t, const struct wal_start *start, struct chunk **ret,
                              size_t *ret_index)
{
    struct feed *f;

    *ret = NULL;
    *ret_index = 0;
    TAILQ_FOREACH(f, &t->feeds, entry) {
        if (f->ended)
            continue;
        if (!f->begun && same_start(&f->start, start))
            return f;
        if (start->earliest && f->whole) {
            *ret = TAILQ_FIRST(&f->window.chunks);
            return f;
        }
        if (!start->earliest && window_find(&f->window, start->pos, ret, ret_index))
            return f;
    }
    return NULL;
}

static void client_attach(struct wal_reader *c)
{
    struct wal_start start = c->begun ? (struct wal_start){.pos = c->last, .handled = true} : c->start;
    struct topic *t = c->topic;
    struct chunk *k = NULL;
    size_t index = 0;
    struct feed *f = NULL;

    if (c->begun && (f = feed_behind(t, NULL, c->last, &k, &index)))
        index = k ? index + 1 : 0;
    if (!f)
        f = find_feed(t, &start, &k, &index);
    if (!f)
        f = feed_new(t, &start);
    feed_add(f, c, k, index);
    feed_kick(f);
}

/* ---- the port ---------------------------------------------------------------------------------------------------- */

static struct wal_reader *op_open(struct wal_port *port, const char *topic, const struct wal_start *start,
                                  const struct wal_reader_cbs *cbs, void *arg)
{
    struct wal_reader *c = xcalloc(1, sizeof(*c));

    c->topic = topic_get(from_port(port), topic);
    c->topic->clients++;
    c->cbs = *cbs;
    c->arg = arg;
    c->start = *start;
    client_attach(c);
    return c;
}

static void op_pause(struct wal_reader *c)
{
    if (c->closed || c->paused)
        return;
    c->paused = true;
    if (c->feed)
        feed_kick(c->feed);
}

static void op_resume(struct wal_reader *c)
{
    if (c->closed || !c->paused)
        return;
    c->paused = false;
    if (!c->feed) {
        client_attach(c);
        return;
    }
    client_queue(c);
    feed_kick(c->feed);
}

static void op_close(struct wal_reader *c)
{
    struct feed *f = c->feed;

    if (c->closed)
        return;
    c->closed = true;
    if (f) {
        feed_remove(c);
        if (f->n_clients == 0)
            feed_close(f);
        else
            feed_kick(f);
    }
    loop_defer(c->topic->s->loop, free, c);
    topic_put(c->topic);
}

static void op_end(struct wal_port *port, const char *topic, wal_end_fn done, void *arg)
{
    struct wal_port *inner = from_port(port)->inner;

    inner->ops->end(inner, topic, done, arg);
}

static void op_end_cancel(struct wal_port *port, void *arg)
{
    struct wal_port *inner = from_port(port)->inner;

    inner->ops->end_cancel(inner, arg);
}

static void op_retain(struct wal_port *port, const char *owner, const char *topic, struct wal_pos from)
{
    struct wal_port *inner = from_port(port)->inner;

    inner->ops->retain(inner, owner, topic, from);
}

static void op_forget(struct wal_port *port, const char *owner, const char *topic, wal_forget_fn done, void *arg)
{
    struct wal_port *inner = from_port(port)->inner;

    inner->ops->forget(inner, owner, topic, done, arg);
}

struct wal_port *share_open(struct loop *l, struct wal_port *inner, size_t window_bytes)
{
    struct share *s = xcalloc(1, sizeof(*s));

    s->ops = (struct wal_port_ops){
        .open = op_open,
        .pause = op_pause,
        .resume = op_resume,
        .close = op_close,
        .end = op_end,
        .end_cancel = op_end_cancel,
        .retain = inner->ops->retain ? op_retain : NULL,
        .forget = inner->ops->forget ? op_forget : NULL,
        .id_encode = inner->ops->id_encode,
        .id_decode = inner->ops->id_decode,
    };
    s->port = (struct wal_port){.ops = &s->ops, .name = inner->name, .setting = inner->setting};
    s->inner = inner;
    s->loop = l;
    s->window_bytes = window_bytes;
    TAILQ_INIT(&s->ready);
    timer_init(&s->timer, l, LOOP_PRIO_LOW, on_timer, s);
    return &s->port;
}

void share_close(struct wal_port *port)
{
    struct share *s;

    if (!port)
        return;
    s = from_port(port);
    assert(!s->topics);
    s->closed = true;
    timer_release(&s->timer);
    loop_defer(s->loop, free, s); /* run_ready() may be on the stack */
}
