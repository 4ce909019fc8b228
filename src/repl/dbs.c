/*
 * dbs.c - the selected databases of the source exist on the target, empty ones too.
 *
 * The replicate channel tells new ones, but not those from before the task, and it may lose messages by design
 * (source.md 9). Dropping is left to the channel's operation: a name alone must never remove data.
 */
#include "repl/priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

struct db {
    LIST_ENTRY(db) entry;
    struct repl_task *task;
    char *name, *target;
    bool done;
    struct sink_call *call;
    struct timer retry;
    struct backoff backoff;
};

static void db_kick(void *arg);

static void on_ensured(void *arg, const struct err *err)
{
    struct db *d = arg;

    d->call = NULL;
    if (!err) {
        d->done = true;
        return;
    }
    log_warn("repl", "database has to wait", KS("task", d->task->o.id), KS("db", d->target), KS("error", err->text));
    timer_set(&d->retry, backoff_next_ms(&d->backoff));
}

static void db_kick(void *arg)
{
    struct db *d = arg;
    struct sink *s = d->task->o.sink;

    if (d->call || d->done || d->task->fatal || d->task->state != RUN_RUNNING)
        return;
    d->call = s->ops->ensure_database(s, d->target, tt_from_ms(clock_wall_ms()), on_ensured, d);
}

static void db_free(struct db *d)
{
    d->task->o.sink->ops->cancel(d->call);
    timer_release(&d->retry);
    LIST_REMOVE(d, entry);
    free(d->name);
    free(d->target);
    free(d);
}

static struct db *db_find(struct repl_task *t, const char *name)
{
    struct db *d;

    LIST_FOREACH(d, &t->dbs, entry)
        if (strcmp(d->name, name) == 0)
            return d;
    return NULL;
}

void dbs_on_database(struct repl_task *t, const char *name, bool dropped)
{
    struct db *d = db_find(t, name);
    const char *target;

    if (dropped && d)
        db_free(d);
    if (dropped || d || strcmp(name, "default") == 0 ||
        !t->o.selection.match_db(t->o.selection.ctx, name, &target))
        return;
    d = xcalloc(1, sizeof(*d));
    d->task = t;
    d->name = xstrdup(name);
    d->target = xstrdup(target);
    d->backoff = t->o.hub->retry;
    timer_init(&d->retry, t->loop, LOOP_PRIO_NORMAL, db_kick, d);
    LIST_INSERT_HEAD(&t->dbs, d, entry);
    db_kick(d);
}

void dbs_kick(struct repl_task *t)
{
    struct db *d;

    LIST_FOREACH(d, &t->dbs, entry)
        db_kick(d);
}

void dbs_free(struct repl_task *t)
{
    while (!LIST_EMPTY(&t->dbs))
        db_free(LIST_FIRST(&t->dbs));
}
