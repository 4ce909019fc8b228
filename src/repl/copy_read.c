/*
 * copy_read.c - pages of a collection's rows, one query at a time.
 *
 * Each query must show all that was written before the task's first start, since the log is followed from there. So the
 * source is asked for its time once, which is later, and each query for what was written up to then: only the first has to
 * wait until the source's readers are that far.
 *
 * Each segment of the source gives as many rows as a page may have, and nearly all of them are thrown away again. So a page
 * of numbers has an upper bound, too, which the density of the keys before it tells.
 *
 * A page with fewer rows than asked for, and without a bound, is the last one; else rows written meanwhile with rising
 * keys would keep us here for ever. But rows of equal keys (which users can make by Insert) are one row of a page, and may
 * hide others of the same segment. So the rows in the page's range are counted, and a page that may lack some is read again,
 * carefully.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "repl/copy_priv.h"

#define MAX_ANSWER (64u << 20) /* and no larger row can have been inserted */

static void next_part(struct copy *p)
{
    p->span = 0;
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
        copy_fail(p, err, "loading it on the source");
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
    copy_fail(p, &err, "reading");
}

/* Fewer rows; or one that is larger than a page should be. */
static void ask_for_less(struct copy *p, const struct err *err)
{
    if (p->limit > 1) {
        p->limit /= 2;
    } else if (p->max_bytes < MAX_ANSWER) {
        p->max_bytes = p->max_bytes < MAX_ANSWER / 2 ? p->max_bytes * 2 : MAX_ANSWER;
    } else {
        copy_fail(p, err, "reading");
        return;
    }
    copy_step(p);
}

static void query_failed(struct copy *p, const struct err *err)
{
    const struct src_collection *sc = p->coll->task->o.catalog->ops->get(p->coll->task->o.catalog, p->coll->id);
    struct err e = *err;

    if (err->code == ERR_STATE) {
        not_loaded(p, err);
        return;
    }
    if (err->code == ERR_LIMIT && p->limit) {
        ask_for_less(p, err);
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
    if (err->code == ERR_TIMEOUT && p->limit > 1)
        p->limit /= 2; /* it may have been too much */
    copy_fail(p, &e, "reading");
}

static uint64_t between(uint64_t least, uint64_t v, uint64_t most)
{
    return v < least ? least : v > most ? most : v;
}

/* Of the first page. */
static void set_limit(struct copy *p)
{
    p->limit = coll_first_rows(p->coll, copy_page_bytes(p));
    p->max_bytes = 2 * copy_page_bytes(p);
}

/* So that the next page is as large as it should be. */
static void adapt(struct copy *p, size_t bytes, uint64_t rows)
{
    p->limit = between(1, (uint64_t)copy_page_bytes(p) * rows / (bytes ? bytes : 1), COPY_MAX_ROWS);
    p->max_bytes = 2 * copy_page_bytes(p);
}

/* ---- how far a page goes ---- */

static int64_t number_of(const char *key)
{
    return strtoll(key, NULL, 10); /* the least one is written as a difference, and the error of 1 is none here */
}

/* Where the next page ends; NULL: where its rows end. */
static char *bound(const struct copy *p)
{
    int64_t from;

    if (p->careful || !p->span || !p->read.after)
        return NULL;
    from = number_of(p->read.after);
    return p->span < (uint64_t)INT64_MAX - (uint64_t)(from > 0 ? from : 0)
               ? xasprintf("%" PRId64, (int64_t)((uint64_t)from + p->span))
               : NULL;
}

/* From a page of so many rows up to that key. When a bound has left few of them, the next page has none: it gets over a gap,
 * and finds the end. */
static void learn_span(struct copy *p, const char *to, uint64_t rows)
{
    uint64_t keys;
    double span;

    if (p->coll->pk_is_string || !p->read.after)
        return;
    keys = (uint64_t)number_of(to) - (uint64_t)number_of(p->read.after);
    span = (double)keys / (double)rows * (double)p->limit * 0.9;
    p->span = (p->until && rows < p->asked / 4) || span > (double)INT64_MAX ? 0 : (uint64_t)span;
}

/* The page that was seen is complete. */
static void take_page(struct copy *p, bool last)
{
    struct page *g = p->seen;

    p->seen = NULL;
    p->careful = p->as_it_is = false;
    TAILQ_INSERT_TAIL(&p->pages, g, next);
    p->n_pages++;
    cursor_set(&p->read, g->end.part, g->end.after);
    if (last)
        next_part(p);
}

static void read_carefully(struct copy *p)
{
    struct coll *c = p->coll;

    if (!c->equal_keys)
        log_warn("repl", "keys are not unique on the source: they are copied as one row each, and slowly",
                 KS("task", c->task->o.id), KS("db", c->db), KS("collection", c->name));
    c->equal_keys = p->careful = true;
    copy_drop_seen(p);
}

/* Of the seen page's range. */
static void on_counted(void *arg, const struct err *err, const struct rows_page *page)
{
    struct copy *p = arg;
    uint64_t rows, n;

    p->query = NULL;
    if (err || p->again) {
        copy_drop_seen(p);
        if (err)
            query_failed(p, err);
        else
            copy_step(p);
        return;
    }
    rows = msg_columns_rows(p->seen->columns);
    n = msg_page_count(page->data, page->len);
    if (n > rows && n >= p->asked && !p->as_it_is)
        read_carefully(p);
    else
        take_page(p, rows < p->asked && !p->until);
    copy_step(p);
}

/* What was asked for is not needed any more, or smaller than it might have been. */
static void settle_room(struct copy *p, size_t bytes)
{
    copy_room_give(p, p->asked_bytes - bytes);
    p->asked_bytes = 0;
}

static void no_rows(struct copy *p)
{
    copy_drop_seen(p);
    if (p->until) {
        cursor_set(&p->read, p->read.part, p->until);
        p->span = 0;
        return;
    }
    if (!p->careful)
        next_part(p);
    p->as_it_is = p->careful;
    p->careful = false;
}

/* The columns and the end of the page. */
static int see(struct copy *p, const struct rows_page *page, char **ret_last, struct err *err)
{
    struct page *g = xcalloc(1, sizeof(*g));

    g->copy = p;
    g->bytes = page->len;
    g->columns = coll_columns(p->coll);
    p->seen = g;
    return msg_columns_add_page(g->columns, page->buf, page->data, page->len, p->coll->pk_name, ret_last, err);
}

/* last: the greatest key of the page. */
static void see_end(struct copy *p, size_t bytes, const char *last)
{
    uint64_t rows = msg_columns_rows(p->seen->columns);
    const char *to = p->until && rows < p->asked ? p->until : last;

    adapt(p, bytes, rows);
    learn_span(p, to, rows);
    cursor_set(&p->seen->end, p->read.part, to);
}

static void on_page(void *arg, const struct err *err, const struct rows_page *page)
{
    struct copy *p = arg;
    char *last = NULL;
    struct err e;

    p->query = NULL;
    settle_room(p, err ? 0 : page->len);
    if (err) {
        query_failed(p, err);
        return;
    }
    copy_went_well(p);
    p->loading = false;
    if (see(p, page, &last, &e)) {
        copy_drop_seen(p);
        copy_fail(p, &e, "reading");
        return;
    }
    if (p->again) {
        copy_drop_seen(p);
    } else if (msg_columns_rows(p->seen->columns) == 0) {
        no_rows(p);
    } else {
        see_end(p, page->len, last);
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
                                                     .since = p->since,
                                                     .max_bytes = p->asked_bytes},
                                done, p);
}

static void count_seen(struct copy *p, const char *part)
{
    char *expr = coll_key_expr(p->coll, p->read.after, p->seen->end.after);

    ask(p, part, expr, "count(*)", on_counted);
    free(expr);
}

static void ask_page(struct copy *p, const char *part)
{
    char *expr;

    if (!p->limit)
        set_limit(p);
    if (!copy_room_take(p, p->max_bytes))
        return;
    p->asked_bytes = p->max_bytes;
    p->asked = p->limit;
    free(p->until);
    p->until = bound(p);
    expr = coll_key_expr(p->coll, p->read.after, p->until);
    ask(p, part, expr, "*", on_page);
    free(expr);
}

void copy_read(struct copy *p)
{
    const char *name;
    int64_t id;

    if (!coll_part_at(p->coll, p->read.part, &id, &name)) {
        copy_drop_seen(p);
        p->read_over = true;
        return;
    }
    if (id != p->read.part) {
        copy_drop_seen(p);
        p->careful = false;
        cursor_set(&p->read, id, NULL);
    }
    if (p->seen)
        count_seen(p, name);
    else if (p->n_pages < COPY_PAGES)
        ask_page(p, name);
}

static void on_now(void *arg, const struct err *err, uint64_t tt)
{
    struct copy *p = arg;

    p->query = NULL;
    if (err && err->code != ERR_UNSUPPORTED) {
        copy_fail(p, err, "asking for the source's time");
        return;
    }
    p->since = err ? 0 : tt;
    p->since_known = true;
    copy_step(p);
}

void copy_ask_now(struct copy *p)
{
    struct rows_port *rows = p->coll->task->o.rows;

    p->query = rows->ops->now(rows, on_now, p);
}

static void on_count(void *arg, const struct err *err, const struct rows_page *page)
{
    struct copy *p = arg;

    p->query = NULL;
    if (err) {
        query_failed(p, err);
        return;
    }
    copy_went_well(p);
    p->loading = false;
    p->estimate = msg_page_count(page->data, page->len);
    p->step = COPY_ROWS;
    log_info("repl", "copying a collection", KS("task", p->coll->task->o.id), KS("db", p->coll->db),
             KS("collection", p->coll->name), KU("rows", p->estimate));
    copy_step(p);
}

void copy_ask_count(struct copy *p)
{
    ask(p, NULL, "", "count(*)", on_count);
}
