/*
 * copy.c - the rows that a collection had before its task: read from the source by key, written as Upserts.
 *
 * Where each shard joins its log was fixed before (task.c); its streams wait in front of the collection's messages until
 * the copy is over. What was written to the log meanwhile may be among the rows that were read, so all of it up to
 * the log's end at that moment counts as in doubt: Inserts there go as Upserts, and Deletes win (portable.c).
 *
 * Partition by partition, in the order of keys; a page is read while those before it are written. Pages may come twice,
 * after a crash or an error: that does no harm. A copy that waits for something else than room holds no pages.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "repl/copy_priv.h"

#define MAX_COPYING 4 /* collections of a task at a time */

struct end_of_shard {
    struct copy *copy;
    struct wal_pos pos;
};

void cursor_set(struct cursor *c, int64_t part, const char *after)
{
    char *copy = xstrdup(after);

    free(c->after);
    *c = (struct cursor){part, copy};
}

/* ---- life ----------------------------------------------------------------------------------------- */

static void on_timer(void *arg)
{
    copy_step(arg);
}

void copy_new(struct coll *c)
{
    struct copy *p = xcalloc(1, sizeof(*p));

    p->coll = c;
    p->width = COPY_PAGES;
    p->backoff = c->task->o.hub->retry;
    TAILQ_INIT(&p->pages);
    timer_init(&p->retry, c->task->loop, LOOP_PRIO_NORMAL, on_timer, p);
    timer_init(&p->wake, c->task->loop, LOOP_PRIO_NORMAL, on_timer, p);
    c->copy = p;
}

void page_free(struct page *g)
{
    if (!g)
        return;
    copy_room_give(g->copy, g->bytes);
    msg_columns_free(g->columns);
    free(g->end.after);
    free(g);
}

static void stop_running(struct copy *p)
{
    struct repl_task *t = p->coll->task;

    if (!p->running)
        return;
    p->running = false;
    t->copying--;
    task_kick_waiting(t);
}

/* idle: only those that are not under way. */
static void free_pages(struct copy *p, bool idle)
{
    struct sink *sink = p->coll->task->o.hub->sink;
    struct page *g, *next;

    for (g = TAILQ_FIRST(&p->pages); g; g = next) {
        next = TAILQ_NEXT(g, next);
        if (g->write && idle)
            continue;
        sink->ops->cancel(g->write);
        TAILQ_REMOVE(&p->pages, g, next);
        p->n_pages--;
        page_free(g);
    }
}

void copy_free(struct coll *c)
{
    struct copy *p = c->copy;
    struct repl_task *t = c->task;

    if (!p)
        return;
    c->copy = NULL;
    stop_running(p);
    if (p->query)
        t->o.rows->ops->cancel(p->query);
    for (size_t i = 0; p->ends && i < c->n_shards; i++)
        t->o.wal->ops->end_cancel(t->o.wal, &p->ends[i]);
    timer_release(&p->retry);
    timer_release(&p->wake);
    free_pages(p, false);
    page_free(p->seen);
    copy_room_leave(p);
    copy_room_give(p, p->asked_bytes);
    free(p->read.after);
    free(p->done.after);
    free(p->until);
    free(p->ends);
    free(p);
}

json_t *copy_json(const struct coll *c)
{
    const struct copy *p = c->copy;

    return json_pack("{s:I, s:s*, s:I, s:I, s:b}", "partition", (json_int_t)p->done.part, "after", p->done.after, "rows",
                     (json_int_t)p->rows, "estimate", (json_int_t)p->estimate, "loaded", p->loaded_by_us);
}

void copy_from_json(struct coll *c, const json_t *o)
{
    struct copy *p;
    int64_t part = json_integer_value(json_object_get(o, "partition"));
    const char *after = json_string_value(json_object_get(o, "after"));

    copy_new(c);
    p = c->copy;
    cursor_set(&p->done, part, after);
    cursor_set(&p->read, part, after);
    p->rows = (uint64_t)json_integer_value(json_object_get(o, "rows"));
    p->estimate = (uint64_t)json_integer_value(json_object_get(o, "estimate"));
    p->loaded_by_us = json_is_true(json_object_get(o, "loaded"));
    p->step = part ? COPY_ROWS : COPY_COUNT;
}

void copy_drop_seen(struct copy *p)
{
    page_free(p->seen);
    p->seen = NULL;
}

/* ---- trouble ---------------------------------------------------------------------------------------- */

void copy_again(struct copy *p)
{
    p->again = true;
    copy_room_leave(p);
    free_pages(p, true);
    if (!p->query)
        copy_drop_seen(p);
}

/* False: requests are under way; an old one must not come behind a new one of the same rows. */
static bool start_again(struct copy *p)
{
    free_pages(p, true);
    if (p->n_pages > 0 || p->query)
        return false;
    copy_drop_seen(p);
    p->again = p->read_over = p->careful = p->as_it_is = false;
    cursor_set(&p->read, p->done.part, p->done.after);
    return true;
}

bool copy_wait(struct copy *p, const struct err *cause, const char *what)
{
    struct coll *c = p->coll;
    struct err err = *cause;

    err_wrap(&err, "copying %s.%s, %s", c->db, c->name, what);
    if (err.cls != ERRC_RETRY) {
        task_fatal(c->task, &err);
        return false;
    }
    set_text(&c->trouble, err.text);
    log_warn("repl", "the copy has to wait", KS("task", c->task->o.id), KS("error", err.text));
    timer_set(&p->retry, backoff_next_ms(&p->backoff));
    return true;
}

void copy_fail(struct copy *p, const struct err *cause, const char *what)
{
    if (copy_wait(p, cause, what))
        copy_again(p);
}

void copy_went_well(struct copy *p)
{
    p->backoff.cur_ms = 0;
    set_text(&p->coll->trouble, NULL);
}

/* ---- the end -------------------------------------------------------------------------------------------- */

static void finish(struct copy *p)
{
    struct coll *c = p->coll;
    struct repl_task *t = c->task;

    log_info("repl", "a collection is copied", KS("task", t->o.id), KS("db", c->db), KS("collection", c->name),
             KU("rows", p->rows), KU("ms", clock_mono_ms() - p->run_ms));
    if (p->loaded_by_us) /* nobody waits for it */
        t->o.rows->ops->load(t->o.rows, c->db, c->name, false, NULL, NULL);
    coll_copied(c);
}

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct end_of_shard *e = arg;
    struct copy *p = e->copy;

    p->ends_open--;
    if (err) {
        for (size_t i = 0; i < p->coll->n_shards; i++)
            p->coll->task->o.wal->ops->end_cancel(p->coll->task->o.wal, &p->ends[i]);
        p->ends_open = 0;
        copy_fail(p, err, "at its end");
        return;
    }
    if (found)
        e->pos = last;
    if (p->ends_open == 0)
        finish(p);
}

static void ask_ends(struct copy *p)
{
    struct coll *c = p->coll;
    struct wal_port *w = c->task->o.wal;

    if (!p->ends)
        p->ends = xcalloc(c->n_shards, sizeof(*p->ends));
    p->ends_open = c->n_shards;
    for (size_t i = 0; i < c->n_shards; i++) {
        p->ends[i] = (struct end_of_shard){.copy = p};
        w->ops->end(w, c->shards[i].pchannel, on_end, &p->ends[i]);
    }
}

struct wal_pos copy_doubt(const struct coll *c, size_t shard)
{
    return c->copy && c->copy->ends ? c->copy->ends[shard].pos : WAL_POS_NONE;
}

/* ---- the machine ------------------------------------------------------------------------------------------ */

static void rows_step(struct copy *p)
{
    if (!coll_verified(p->coll)) {
        copy_again(p);
        coll_kick(p->coll); /* comes back with copy_kick() */
        return;
    }
    copy_write(p);
    if (!p->query && !p->read_over)
        copy_read(p);
    if (p->read_over && p->n_pages == 0) {
        p->step = COPY_ENDS;
        copy_step(p);
    }
}

void copy_step(struct copy *p)
{
    struct repl_task *t = p->coll->task;

    if (t->fatal || t->state != RUN_RUNNING || timer_armed(&p->retry) || (p->again && !start_again(p))) {
        copy_room_leave(p);
        return;
    }
    if (!p->since_known) {
        if (!p->query)
            copy_ask_now(p);
        return;
    }
    switch (p->step) {
    case COPY_COUNT:
        if (!p->query)
            copy_ask_count(p);
        return;
    case COPY_ROWS:
        rows_step(p);
        return;
    case COPY_ENDS:
        if (!p->ends_open)
            ask_ends(p);
        return;
    }
}

void copy_kick(struct coll *c)
{
    struct copy *p = c->copy;

    if (!p->running) {
        if (c->task->copying >= MAX_COPYING)
            return; /* kicked when there are fewer */
        c->task->copying++;
        p->running = true;
        p->run_ms = p->told_ms = p->saved_ms = clock_mono_ms();
    }
    copy_step(p);
}

bool repl_task_copying(const struct repl_task *t, struct repl_copying *ret)
{
    const struct coll *c;

    *ret = (struct repl_copying){0};
    for (c = t->colls; c; c = c->hh.next) {
        const struct copy *p = c->copy;
        if (!p)
            continue;
        ret->collections++;
        ret->rows += p->rows;
        ret->estimate += p->estimate;
        if (p->running)
            ret->rows_per_s += copy_rows_per_s(p);
    }
    return t->state != RUN_NEW && t->state != RUN_LOADING;
}
