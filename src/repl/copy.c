/*
 * copy.c - the rows that a collection had before its task: read from the source by key, written as Upserts.
 *
 * Where each shard joins its log was fixed before (task.c); its streams wait in front of the collection's messages until
 * the copy is over. What was written to the log meanwhile may be among the rows that were read, so all of it up to
 * the log's end at that moment counts as in doubt: Inserts there go as Upserts, and Deletes win (portable.c).
 *
 * Partition by partition, in the order of keys. A page is read while the one before it is written, so two are in memory.
 * Pages may come twice, after a crash or an error: that does no harm.
 *
 * A page with fewer rows than asked for is the last one; else rows written meanwhile with rising keys would keep us here for
 * ever. But rows of equal keys (which users can make by Insert) are one row of a page, and may hide others of the same
 * segment. So the rows in the page's range are counted, and a page that may lack some is read again, carefully.
 */
#include "repl/priv.h"

#include <event2/buffer.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#define MAX_COPYING 4 /* collections of a task at a time */
#define PAGE_BYTES (4u << 20) /* a query waits for the source's tick, so a page must be worth that */
#define FIRST_ROWS 500
#define MIN_ROWS 16
#define MAX_ROWS 16384 /* the source refuses more */
#define SAVE_MS 1000
#define TELL_MS 10000

/* With a partition key there are no partitions to name: one step over all. */
#define ALL_PARTS INT64_MAX

/* All partitions of smaller ids are done, and of this one all up to the key `after` (text of an expression; NULL: none). */
struct cursor {
    int64_t part; /* 0: before the first */
    char *after;
};

struct page {
    struct msg_columns *columns; /* NULL: none */
    struct cursor end;           /* behind its last row */
};

enum copy_step { COPY_COUNT, COPY_ROWS, COPY_ENDS };

struct copy {
    struct coll *coll;
    enum copy_step step;
    bool running;              /* counted in the task's copying */
    bool read_over;
    struct cursor read, done;  /* of the next page; of what is on the target */
    uint64_t rows, estimate;   /* written; in the collection when it began */
    uint64_t run_rows, run_ms; /* rows, and since when, of this process */
    uint64_t limit, asked;     /* rows of the next page; of the one that was seen */
    struct page seen;          /* read, and not counted yet */
    bool careful, told_equal;  /* the next page may have equal keys that hide others; that was told */
    bool as_it_is;             /* the careful way gave nothing */
    struct page page, writing;
    struct rows_call *query;
    struct sink_call *write;
    bool loading, loaded_by_us;
    struct end_of_shard *ends;
    size_t ends_open;
    uint64_t saved_ms, told_ms;
    struct timer retry;
    struct backoff backoff;
};

struct end_of_shard {
    struct copy *copy;
    struct wal_pos pos;
};

static void copy_step(struct copy *p);

static void cursor_set(struct cursor *c, int64_t part, const char *after)
{
    char *copy = xstrdup(after);

    free(c->after);
    *c = (struct cursor){part, copy};
}

/* ---- life ----------------------------------------------------------------------------------------- */

static void on_retry(void *arg)
{
    copy_step(arg);
}

void copy_new(struct coll *c)
{
    struct copy *p = xcalloc(1, sizeof(*p));

    p->coll = c;
    p->limit = FIRST_ROWS;
    p->backoff = c->task->o.hub->retry;
    timer_init(&p->retry, c->task->loop, LOOP_PRIO_NORMAL, on_retry, p);
    c->copy = p;
}

static void page_release(struct page *g)
{
    msg_columns_free(g->columns);
    free(g->end.after);
    *g = (struct page){0};
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
    t->o.hub->sink->ops->cancel(p->write);
    for (size_t i = 0; p->ends && i < c->n_shards; i++)
        t->o.wal->ops->end_cancel(t->o.wal, &p->ends[i]);
    timer_release(&p->retry);
    page_release(&p->seen);
    page_release(&p->page);
    page_release(&p->writing);
    free(p->read.after);
    free(p->done.after);
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

/* ---- trouble ---------------------------------------------------------------------------------------- */

static void fail(struct copy *p, const struct err *cause, const char *what)
{
    struct coll *c = p->coll;
    struct err err = *cause;

    err_wrap(&err, "copying %s.%s, %s", c->db, c->name, what);
    if (err.cls != ERRC_RETRY) {
        task_fatal(c->task, &err);
        return;
    }
    set_text(&c->trouble, err.text);
    log_warn("repl", "the copy has to wait", KS("task", c->task->o.id), KS("error", err.text));
    timer_set(&p->retry, backoff_next_ms(&p->backoff));
}

static void went_well(struct copy *p)
{
    p->backoff.cur_ms = 0;
    set_text(&p->coll->trouble, NULL);
}

/* ---- reading ------------------------------------------------------------------------------------------ */

/* The partition to read at or behind the cursor; NULL: none is left. ALL_PARTS has no part. */
static bool part_at(const struct copy *p, int64_t *ret_id, const char **ret_name)
{
    const struct coll *c = p->coll;

    *ret_name = NULL;
    *ret_id = ALL_PARTS;
    if (c->partition_key)
        return true;
    for (size_t i = 0; i < c->n_parts; i++) /* by id */
        if (c->parts[i]->id >= p->read.part && c->parts[i]->dst_id && !c->parts[i]->dropping) {
            *ret_id = c->parts[i]->id;
            *ret_name = c->parts[i]->name;
            return true;
        }
    return false;
}

static void next_part(struct copy *p)
{
    if (p->read.part == ALL_PARTS)
        p->read_over = true;
    else
        cursor_set(&p->read, p->read.part + 1, NULL);
}

static void on_loaded(void *arg, const struct err *err, const struct rows_page *page)
{
    struct copy *p = arg;

    (void)page;
    p->query = NULL;
    if (err) {
        p->loading = false;
        fail(p, err, "loading it on the source");
        return;
    }
    p->loaded_by_us = true;
    timer_set(&p->retry, backoff_next_ms(&p->backoff)); /* it takes a while */
}

/* Not loaded: may we? */
static void not_loaded(struct copy *p, const struct err *cause)
{
    struct coll *c = p->coll;
    struct repl_task *t = c->task;
    struct err err = *cause;

    if (t->o.load_for_snapshot && !p->loading) {
        p->loading = true;
        log_info("repl", "the source loads a collection for its copy", KS("task", t->o.id), KS("db", c->db),
                 KS("collection", c->name));
        p->query = t->o.rows->ops->load(t->o.rows, c->db, c->name, true, on_loaded, p);
        return;
    }
    if (!p->loading)
        err_set(&err, ERR_STATE, ERRC_RETRY,
                "it is not loaded on the source, so its rows cannot be read: load it there, or create the task with "
                "load_for_snapshot true");
    fail(p, &err, "reading");
}

static void query_failed(struct copy *p, const struct err *err)
{
    const struct src_collection *sc = p->coll->task->o.catalog->ops->get(p->coll->task->o.catalog, p->coll->id);
    struct err e = *err;

    if (err->code == ERR_STATE) {
        not_loaded(p, err);
        return;
    }
    if (err->code == ERR_NOT_FOUND && sc && sc->state == SRC_ALIVE && !p->coll->partition_key &&
        !coll_part_alive(p->coll, p->read.part)) {
        next_part(p); /* the partition was dropped */
        copy_step(p);
        return;
    }
    if (err->code == ERR_NOT_FOUND)
        e.cls = ERRC_RETRY; /* etcd's news will tell */
    if (p->limit > MIN_ROWS)
        p->limit /= 2; /* it may have been too much */
    fail(p, &e, "reading");
}

/* So that a page has about PAGE_BYTES. */
static void adapt(struct copy *p, size_t bytes, uint64_t rows)
{
    uint64_t want = (uint64_t)PAGE_BYTES * rows / (bytes ? bytes : 1);

    p->limit = want < MIN_ROWS ? MIN_ROWS : want > MAX_ROWS ? MAX_ROWS : want;
}

static char *key_expr(const struct copy *p)
{
    const struct coll *c = p->coll;

    if (p->read.after)
        return xasprintf("%s > %s", c->pk_name, p->read.after);
    /* an empty expression is not allowed with a limit by every version: all keys; the least number as in msg_keys.c */
    return c->pk_is_string ? xasprintf("%s >= \"\"", c->pk_name)
                           : xasprintf("%s >= %" PRId64 "-1", c->pk_name, INT64_MIN + 1);
}

/* The page that was seen is complete. */
static void take_page(struct copy *p, bool last)
{
    p->page = p->seen;
    p->seen = (struct page){0};
    p->careful = p->as_it_is = false;
    cursor_set(&p->read, p->page.end.part, p->page.end.after);
    if (last)
        next_part(p);
}

static void read_carefully(struct copy *p)
{
    const struct coll *c = p->coll;

    if (!p->told_equal)
        log_warn("repl", "keys are not unique on the source: they are copied as one row each, and slowly",
                 KS("task", c->task->o.id), KS("db", c->db), KS("collection", c->name));
    p->told_equal = p->careful = true;
    page_release(&p->seen);
}

/* Of the seen page's range. */
static void on_counted(void *arg, const struct err *err, const struct rows_page *page)
{
    struct copy *p = arg;
    uint64_t rows = msg_columns_rows(p->seen.columns), n;

    p->query = NULL;
    if (err) {
        page_release(&p->seen);
        query_failed(p, err);
        return;
    }
    n = msg_page_count(page->data, page->len);
    if (n > rows && n >= p->asked && !p->as_it_is)
        read_carefully(p);
    else
        take_page(p, rows < p->asked);
    copy_step(p);
}

static void on_page(void *arg, const struct err *err, const struct rows_page *page)
{
    struct copy *p = arg;
    char *last = NULL;
    struct err e;

    p->query = NULL;
    if (err) {
        query_failed(p, err);
        return;
    }
    went_well(p);
    p->loading = false;
    p->seen.columns = coll_columns(p->coll);
    if (msg_columns_add_page(p->seen.columns, page->buf, page->data, page->len, p->coll->pk_name, &last, &e)) {
        page_release(&p->seen);
        fail(p, &e, "reading");
        return;
    }
    if (msg_columns_rows(p->seen.columns) == 0) {
        page_release(&p->seen);
        if (!p->careful)
            next_part(p);
        p->as_it_is = p->careful;
        p->careful = false;
    } else {
        adapt(p, page->len, msg_columns_rows(p->seen.columns));
        cursor_set(&p->seen.end, p->read.part, last);
        if (p->careful)
            take_page(p, false);
    }
    free(last);
    copy_step(p);
}

static void ask(struct copy *p, const char *part, const char *expr, const char *output, rows_fn done)
{
    const struct coll *c = p->coll;
    struct rows_port *rows = c->task->o.rows;

    p->query = rows->ops->query(rows,
                                &(struct rows_query){.db = c->db,
                                                     .collection = c->name,
                                                     .partition = part,
                                                     .expr = expr,
                                                     .output = output,
                                                     .limit = *output == '*' ? p->limit : 0,
                                                     .careful = p->careful,
                                                     .eventual = *output != '*'},
                                done, p);
}

static void count_seen(struct copy *p, const char *part)
{
    char *from = key_expr(p), *expr = xasprintf("%s and %s <= %s", from, p->coll->pk_name, p->seen.end.after);

    ask(p, part, expr, "count(*)", on_counted);
    free(expr);
    free(from);
}

static void read_page(struct copy *p)
{
    const char *name;
    int64_t id;
    char *expr;

    if (!part_at(p, &id, &name)) {
        p->read_over = true;
        return;
    }
    if (id != p->read.part) {
        page_release(&p->seen);
        p->careful = false;
        cursor_set(&p->read, id, NULL);
    }
    if (p->seen.columns) {
        count_seen(p, name);
        return;
    }
    p->asked = p->limit;
    expr = key_expr(p);
    ask(p, name, expr, "*", on_page);
    free(expr);
}

static void on_count(void *arg, const struct err *err, const struct rows_page *page)
{
    struct copy *p = arg;

    p->query = NULL;
    if (err) {
        query_failed(p, err);
        return;
    }
    went_well(p);
    p->loading = false;
    p->estimate = msg_page_count(page->data, page->len);
    p->step = COPY_ROWS;
    log_info("repl", "copying a collection", KS("task", p->coll->task->o.id), KS("db", p->coll->db),
             KS("collection", p->coll->name), KU("rows", p->estimate));
    copy_step(p);
}

/* ---- writing ------------------------------------------------------------------------------------------- */

static uint64_t rows_per_s(const struct copy *p)
{
    return p->run_rows * 1000 / (clock_mono_ms() - p->run_ms + 1);
}

static void tell(struct copy *p)
{
    const struct coll *c = p->coll;
    uint64_t now = clock_mono_ms();

    if (now - p->told_ms < TELL_MS)
        return;
    p->told_ms = now;
    log_info("repl", "copying", KS("task", c->task->o.id), KS("db", c->db), KS("collection", c->name),
             KU("rows", p->rows), KU("of_about", p->estimate), KU("rows_per_s", rows_per_s(p)));
}

static void on_written(void *arg, const struct err *err, bool doubt, const char *target_pos)
{
    struct copy *p = arg;
    struct coll *c = p->coll;
    uint64_t rows = msg_columns_rows(p->writing.columns), now = clock_mono_ms();

    (void)doubt; /* an Upsert can be repeated */
    (void)target_pos;
    p->write = NULL;
    if (err) {
        coll_unverify(c);
        fail(p, err, "writing");
        return;
    }
    went_well(p);
    task_count_call(c->task, "Upsert");
    coll_count(c, true, false, rows);
    p->rows += rows;
    p->run_rows += rows;
    cursor_set(&p->done, p->writing.end.part, p->writing.end.after);
    page_release(&p->writing);
    tell(p);
    if (now - p->saved_ms >= SAVE_MS) {
        p->saved_ms = now;
        coll_save(c);
    }
    copy_step(p);
}

static const char *part_name(const struct coll *c, int64_t id)
{
    const struct part *p = id == ALL_PARTS ? NULL : coll_part((struct coll *)(uintptr_t)c, id);

    return p ? p->name : "";
}

static void write_page(struct copy *p)
{
    struct coll *c = p->coll;
    struct repl_task *t = c->task;
    struct evbuffer *body;

    if (!coll_verified(c)) {
        coll_kick(c); /* comes back with copy_kick() */
        return;
    }
    if (p->writing.end.part != ALL_PARTS && !coll_part_alive(c, p->writing.end.part)) {
        page_release(&p->writing); /* its partition was dropped */
        copy_step(p);
        return;
    }
    body = evbuffer_new();
    msg_columns_write(p->writing.columns, body);
    p->write = t->o.hub->sink->ops->write(t->o.hub->sink,
                                     &(struct sink_write){.kind = SINK_UPSERT,
                                                          .db = c->dst_db,
                                                          .collection = c->dst_name,
                                                          .partition = part_name(c, p->writing.end.part),
                                                          .rows = msg_columns_rows(p->writing.columns),
                                                          .body = body},
                                     on_written, p);
    evbuffer_free(body);
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
        fail(p, err, "at its end");
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
    if (!p->writing.columns && p->page.columns) {
        p->writing = p->page;
        p->page = (struct page){0};
    }
    if (!p->query && !p->page.columns && !p->read_over)
        read_page(p);
    if (!p->write && p->writing.columns)
        write_page(p);
    else if (p->read_over && !p->query && !p->writing.columns && !p->page.columns) {
        p->step = COPY_ENDS;
        copy_step(p);
    }
}

static void copy_step(struct copy *p)
{
    struct repl_task *t = p->coll->task;

    if (t->fatal || t->state != RUN_RUNNING || timer_armed(&p->retry))
        return;
    switch (p->step) {
    case COPY_COUNT:
        if (!p->query)
            ask(p, NULL, "", "count(*)", on_count);
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
            ret->rows_per_s += rows_per_s(p);
    }
    return t->state != RUN_NEW && t->state != RUN_LOADING;
}
