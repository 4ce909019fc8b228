#include "loop/loop.h"

#include "base/log.h"
#include "base/mem.h"

#include <assert.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <stdlib.h>
#include <sys/queue.h>

enum {
    N_PRIORITIES = 3,
    MAX_CALLBACKS = 32, /* of data, before control events are polled for again */
    MAX_INTERVAL_MS = 20, /* likewise */
};

struct deferred {
    STAILQ_ENTRY(deferred) next;
    loop_fn fn;
    void *arg;
};

STAILQ_HEAD(deferred_list, deferred);

struct loop {
    struct event_base *base;
    struct evdns_base *dns; /* NULL until first used */
    struct event *drain;    /* a zero timer: pending while deferred is not empty */
    struct deferred_list deferred;
    bool stopped;
};

/* libevent only fails here without memory or file descriptors, at start or in small allocations. */
static void *must(void *p, const char *what)
{
    if (!p) {
        log_error("loop", "libevent object could not be made", KS("what", what));
        abort();
    }
    return p;
}

static void arm_drain(struct loop *l)
{
    static const struct timeval now = {0, 0};

    /* Not event_active(): that would run again in the same turn and starve polling. */
    if (event_add(l->drain, &now) < 0)
        must(NULL, "drain timer");
}

/* What a callback adds waits for the next turn, so that two that defer each other starve nobody. */
static void drain_once(struct loop *l)
{
    struct deferred_list batch = STAILQ_HEAD_INITIALIZER(batch);
    struct deferred *d;

    STAILQ_CONCAT(&batch, &l->deferred);
    while ((d = STAILQ_FIRST(&batch))) {
        STAILQ_REMOVE_HEAD(&batch, next);
        d->fn(d->arg);
        free(d);
    }
}

static void on_drain(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    drain_once(arg);
}

static struct event_base *new_base(void)
{
    /* A process that was stopped for long must look at its timers (a lease) before the next callback sends something. */
    static const struct timeval max_interval = {.tv_usec = MAX_INTERVAL_MS * 1000};
    struct event_config *cfg = must(event_config_new(), "config");
    struct event_base *base;

    /* Precise and uncached, so that no timer fires before its time by clock_mono_ms(). */
    event_config_set_flag(cfg, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_PRECISE_TIMER |
                                   EVENT_BASE_FLAG_NO_CACHE_TIME);
    event_config_set_max_dispatch_interval(cfg, &max_interval, MAX_CALLBACKS, LOOP_PRIO_NORMAL);
    base = must(event_base_new_with_config(cfg), "base");
    event_config_free(cfg);
    event_base_priority_init(base, N_PRIORITIES);
    return base;
}

struct loop *loop_new(void)
{
    struct loop *l = xcalloc(1, sizeof(*l));

    l->base = new_base();
    STAILQ_INIT(&l->deferred);
    l->drain = must(evtimer_new(l->base, on_drain, l), "drain timer");
    event_priority_set(l->drain, LOOP_PRIO_NORMAL);
    return l;
}

static void drain_all(struct loop *l)
{
    while (!STAILQ_EMPTY(&l->deferred))
        drain_once(l);
}

void loop_free(struct loop *l)
{
    if (!l)
        return;
    drain_all(l);
    if (l->dns) {
        evdns_base_free(l->dns, 1);
        l->dns = NULL;
    }
    /* The ends of look-ups and of freed bufferevents are libevent's own deferred calls. */
    event_base_loop(l->base, EVLOOP_NONBLOCK);
    drain_all(l);
    event_free(l->drain);
    event_base_free(l->base);
    free(l);
}

struct event_base *loop_base(struct loop *l)
{
    return l->base;
}

struct evdns_base *loop_dns(struct loop *l)
{
    if (l->dns)
        return l->dns;
    l->dns = must(evdns_base_new(l->base, EVDNS_BASE_DISABLE_WHEN_INACTIVE), "dns");
    /* On failure libevent falls back to 127.0.0.1; numeric addresses and hosts work anyway. */
    if (evdns_base_resolv_conf_parse(l->dns, DNS_OPTIONS_ALL, "/etc/resolv.conf") != 0)
        log_warn("loop", "resolv.conf missing or without name server");
    return l->dns;
}

void loop_run(struct loop *l)
{
    while (!l->stopped && event_base_loop(l->base, EVLOOP_NO_EXIT_ON_EMPTY) == 0)
        ;
    l->stopped = false;
}

void loop_stop(struct loop *l)
{
    l->stopped = true; /* libevent forgets a break asked for before the loop runs */
    event_base_loopbreak(l->base);
}

void loop_once(struct loop *l, bool block)
{
    event_base_loop(l->base, EVLOOP_ONCE | (block ? 0 : EVLOOP_NONBLOCK));
}

void loop_defer(struct loop *l, loop_fn fn, void *arg)
{
    struct deferred *d = xmalloc(sizeof(*d));

    d->fn = fn;
    d->arg = arg;
    if (STAILQ_EMPTY(&l->deferred))
        arm_drain(l);
    STAILQ_INSERT_TAIL(&l->deferred, d, next);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct timer *t = arg;

    (void)fd;
    (void)what;
    t->fn(t->arg);
}

void timer_init(struct timer *t, struct loop *l, enum loop_prio prio, loop_fn fn, void *arg)
{
    *t = (struct timer){.loop = l, .fn = fn, .arg = arg, .prio = prio};
}

/* Many objects never use theirs, and an event is large. */
static void make_event(struct timer *t)
{
    t->ev = must(evtimer_new(t->loop->base, on_timer, t), "timer");
    event_priority_set(t->ev, (int)t->prio);
}

void timer_set(struct timer *t, uint64_t ms)
{
    struct timeval tv = {.tv_sec = (time_t)(ms / 1000),
                         .tv_usec = (suseconds_t)(ms % 1000 * 1000)};

    assert(t->loop);
    if (!t->ev)
        make_event(t);
    if (event_add(t->ev, &tv) < 0)
        must(NULL, "timer");
}

void timer_cancel(struct timer *t)
{
    if (t->ev)
        event_del(t->ev);
}

bool timer_armed(const struct timer *t)
{
    return t->ev && event_pending(t->ev, EV_TIMEOUT, NULL);
}

void timer_release(struct timer *t)
{
    if (t->ev)
        event_free(t->ev);
    *t = (struct timer){0};
}
