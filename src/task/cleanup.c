/*
 * cleanup.c - deleted tasks whose subscriptions at the source's queue still exist.
 *
 * A subscription that nobody acknowledges holds the queue's disk for ever. So the record of a deleted task first goes
 * back to state Initial, which the user sees as gone, then its subscriptions are removed, however long the queue is away, and its record goes last:
 * a crash in between is made good at the next start.
 */
#include <stdlib.h>
#include <string.h>

#include "base/backoff.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/config.h"
#include "task/priv.h"

struct cleanup {
    LIST_ENTRY(cleanup) entry;
    struct manager *m;
    char *id, *key;
    struct store *store; /* open while the channels are being loaded */
    char **channels;     /* whose subscription may still be there */
    size_t n, next;
    struct timer timer;
    struct backoff backoff;
};

static void cleanup_free(struct cleanup *c)
{
    struct manager *m = c->m;

    m->d.registry->ops->cancel(m->d.registry, c);
    m->d.wal->ops->end_cancel(m->d.wal, c);
    if (c->store) {
        c->store->ops->cancel(c->store, c);
        m->d.registry->ops->store_free(c->store);
    }
    for (size_t i = 0; i < c->n; i++)
        free(c->channels[i]);
    free(c->channels);
    timer_release(&c->timer);
    LIST_REMOVE(c, entry);
    free(c->id);
    free(c->key);
    free(c);
}

static void again_later(struct cleanup *c, const struct err *err)
{
    log_warn("task", "a deleted task cannot be cleaned up now, trying again", KS("task", c->id), KS("error", err->text));
    timer_set(&c->timer, backoff_next_ms(&c->backoff));
}

static void on_removed(void *arg, const struct err *err)
{
    struct cleanup *c = arg;

    if (err && err->code != ERR_NOT_FOUND) {
        again_later(c, err);
        return;
    }
    log_info("task", "a deleted task is cleaned up", KS("task", c->id), KU("channels", c->n));
    cleanup_free(c);
}

static void step(struct cleanup *c);

static void on_forgotten(void *arg, const struct err *err)
{
    struct cleanup *c = arg;

    if (err) {
        again_later(c, err);
        return;
    }
    c->backoff.cur_ms = 0;
    c->next++;
    step(c);
}

static void step(struct cleanup *c)
{
    struct manager *m = c->m;

    if (c->next < c->n)
        m->d.wal->ops->forget(m->d.wal, c->id, c->channels[c->next], on_forgotten, c);
    else
        m->d.registry->ops->remove(m->d.registry, c->id, m->d.daemon_id, holding_epoch(m, c->key), on_removed, c);
}

static void on_channel(void *arg, const char *channel)
{
    struct cleanup *c = arg;

    for (size_t i = 0; i < c->n; i++)
        if (strcmp(c->channels[i], channel) == 0)
            return;
    c->channels = xrealloc(c->channels, (c->n + 1) * sizeof(*c->channels));
    c->channels[c->n++] = xstrdup(channel);
}

static void on_loaded(void *arg, const struct err *err, const struct repl_ckpt *ckpts, size_t n_ckpts,
                      const struct repl_collection_rec *colls, size_t n_colls)
{
    struct cleanup *c = arg;
    struct store *s = c->store;

    c->store = NULL;
    loop_defer(c->m->d.loop, (loop_fn)c->m->d.registry->ops->store_free, s);
    if (err) {
        again_later(c, err);
        return;
    }
    repl_stored_channels(ckpts, n_ckpts, colls, n_colls, on_channel, c);
    step(c);
}

static void on_timer(void *arg)
{
    struct cleanup *c = arg;
    struct registry *r = c->m->d.registry;

    if (c->n) {
        step(c);
        return;
    }
    c->store = r->ops->store_open(r, c->id, c->m->d.daemon_id, 0);
    c->store->ops->load(c->store, c->id, on_loaded, c);
}

void cleanup_start(struct manager *m, const char *task_id, const char *target_key)
{
    struct cleanup *c = xcalloc(1, sizeof(*c));

    c->m = m;
    c->id = xstrdup(task_id);
    c->key = xstrdup(target_key);
    c->backoff = (struct backoff)BACKOFF_INIT(500, 30000);
    LIST_INSERT_HEAD(&m->cleanups, c, entry);
    timer_init(&c->timer, m->d.loop, LOOP_PRIO_NORMAL, on_timer, c);
    timer_set(&c->timer, 0);
}

bool cleanup_has(const struct manager *m, const char *task_id)
{
    const struct cleanup *c;

    LIST_FOREACH(c, &m->cleanups, entry)
        if (strcmp(c->id, task_id) == 0)
            return true;
    return false;
}

void cleanups_count(struct manager *m)
{
    const struct cleanup *c;
    struct holding *h;

    LIST_FOREACH(c, &m->cleanups, entry) {
        h = holding_find(m, c->key);
        if (h)
            h->wanting++;
    }
}

void cleanups_drop(struct manager *m, const char *target_key)
{
    struct cleanup *c, *tmp;

    for (c = LIST_FIRST(&m->cleanups); c; c = tmp) {
        tmp = LIST_NEXT(c, entry);
        if (strcmp(c->key, target_key) == 0)
            cleanup_free(c);
    }
}

void cleanups_free(struct manager *m)
{
    while (!LIST_EMPTY(&m->cleanups))
        cleanup_free(LIST_FIRST(&m->cleanups));
}
