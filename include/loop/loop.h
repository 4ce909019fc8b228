/*
 * loop.h - the one event loop: libevent base, priorities, deferred calls, name look-up.
 *
 * Priorities: control API and leases run before data, so that a busy channel never starves them.
 * They are strict: while NORMAL events keep coming in each turn, LOW ones wait.
 * Thread  the loop thread only.
 */
#ifndef LOOP_LOOP_H
#define LOOP_LOOP_H
#include <stdbool.h>
#include <stdint.h>

struct event_base;
struct evdns_base;
struct loop;

enum loop_prio { LOOP_PRIO_HIGH = 0, LOOP_PRIO_NORMAL = 1, LOOP_PRIO_LOW = 2 };

typedef void (*loop_fn)(void *arg);

/* Never NULL. */
struct loop *loop_new(void);
/* Runs pending deferred calls, then frees. All users must be closed before. NULL is allowed. */
void loop_free(struct loop *l);

struct event_base *loop_base(struct loop *l);
/* Non-blocking resolver (resolv.conf and hosts; numeric addresses always work). */
struct evdns_base *loop_dns(struct loop *l);

/* Runs until loop_stop(). */
void loop_run(struct loop *l);
void loop_stop(struct loop *l);
/* One turn; waits for events only if block. For tests. */
void loop_once(struct loop *l, bool block);

/* Calls fn(arg) from the loop, after the running callback has returned, in order of the calls. This is
 * also the graveyard: x_close() defers the free() so that memory outlives the callback that closed it. */
void loop_defer(struct loop *l, loop_fn fn, void *arg);

/* A one-shot timer embedded in its owner. */
struct timer {
    struct loop *loop;
    void *ev; /* NULL until it is first set */
    loop_fn fn;
    void *arg;
    enum loop_prio prio;
};

void timer_init(struct timer *t, struct loop *l, enum loop_prio prio, loop_fn fn, void *arg);
void timer_set(struct timer *t, uint64_t ms); /* (re)arms */
void timer_cancel(struct timer *t);
bool timer_armed(const struct timer *t);
void timer_release(struct timer *t); /* {0} is allowed */
#endif
