/*
 * verify_repair.c - writes the rows of a batch that differ as the source has them: Upserts, and Deletes of what it has not.
 *
 * The stream must not be overtaken: what it deletes later is deleted later here too, and what it inserts is not there twice.
 * So, as for rows from before a task (copy.c): no message of the collection is sent meanwhile (coll->held); the rows are
 * read; and everything in the log up to its end after that counts as in doubt, durably, before the first row is written.
 * Then the stream goes on, Inserts that were in doubt go as Upserts, and Deletes win.
 */
#include "repl/verify_priv.h"

#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"

#define POLL_MS 20
#define DRAIN_TRIES 1500 /* 30 s */
#define AGAIN_MS 2000    /* a write in doubt may land until then (tchan.c, QUARANTINE_MS) */

static void step_upsert(struct check *k);
static void step_delete(struct check *k);

static void set_held(struct check *k, bool on)
{
    struct coll *c = k->coll;

    k->holding = c->held = on;
    for (size_t i = 0; !on && i < c->n_shards && c->task->state == RUN_RUNNING; i++)
        if (c->shards[i].link)
            tchan_kick(c->shards[i].link->tchan);
}

void repair_release(struct check *k)
{
    struct store *s = k->verify->task->o.store;

    if (k->write)
        k->verify->task->o.hub->sink->ops->cancel(k->write);
    k->write = NULL;
    if (k->storing)
        s->ops->cancel(s, k);
    k->storing = false;
    row_page_release(&k->repair_rows);
    msg_columns_free(k->repair_columns);
    k->repair_columns = NULL;
    if (!k->holding)
        return;
    set_held(k, false);
    k->step = repair_begin; /* if it is tried again */
}

/* ---- writing -------------------------------------------------------------------------------------------- */

static void step_over(struct check *k)
{
    repair_release(k);
    look_again(k);
}

static void on_written(void *arg, const struct err *err, bool doubt, const char *target_pos)
{
    struct check *k = arg;

    (void)doubt; /* both can be repeated */
    (void)target_pos;
    k->write = NULL;
    if (!err) {
        k->trouble_ms = 0;
        check_then(k, k->written, 0);
        return;
    }
    coll_unverify(k->coll);
    if (err->cls == ERRC_RETRY && !check_is_tired(k)) { /* the stream goes on waiting: nothing may come between the tries */
        log_warn("repl", "a repair has to wait", KS("task", k->verify->task->o.id), KS("collection", k->coll->name),
                 KS("error", err->text));
        check_then(k, k->step, AGAIN_MS);
        return;
    }
    repair_release(k);
    check_trouble(k, err, "repairing");
}

/* Has it been checked on this connection? Else that is done, and the step runs again. */
static bool is_ready(struct check *k)
{
    if (coll_verified(k->coll))
        return true;
    coll_unverify(k->coll); /* it may have been on the connection before */
    coll_kick(k->coll);
    check_then(k, k->step, POLL_MS);
    return false;
}

static void write_rows(struct check *k, enum sink_write_kind kind, uint64_t rows, struct evbuffer *body, check_fn next)
{
    struct sink *s = k->verify->task->o.hub->sink;

    k->written = next;
    k->write = s->ops->write(s,
                             &(struct sink_write){.kind = kind,
                                                  .db = k->coll->dst_db,
                                                  .collection = k->coll->dst_name,
                                                  .partition = k->part_name ? k->part_name : "",
                                                  .rows = rows,
                                                  .body = body},
                             on_written, k);
    evbuffer_free(body);
}

/* Not on the source: it goes. */
static bool is_gone(const struct check *k, const struct suspect *s)
{
    return repair_wanted(k, s) && !row_page_find(&k->repair_rows, &s->key);
}

static void step_delete(struct check *k)
{
    struct evbuffer *body;
    char *expr;
    size_t n;

    if (!is_ready(k))
        return;
    expr = look_expr(k, is_gone, &n);
    body = evbuffer_new();
    if (!body || evbuffer_add(body, expr, strlen(expr)))
        abort(); /* a batch of keys */
    free(expr);
    if (n) {
        write_rows(k, SINK_DELETE, n, body, step_over);
        return;
    }
    evbuffer_free(body);
    check_then(k, step_over, 0);
}

static void step_upsert(struct check *k)
{
    struct evbuffer *body;

    if (k->repair_rows.n == 0) {
        check_then(k, step_delete, 0);
        return;
    }
    if (!is_ready(k))
        return;
    body = evbuffer_new();
    if (!body || !msg_columns_write(k->repair_columns, body))
        abort(); /* a batch of rows */
    write_rows(k, SINK_UPSERT, msg_columns_rows(k->repair_columns), body, step_delete);
}

/* ---- what is in doubt -------------------------------------------------------------------------------------- */

static void on_noted(void *arg, const struct err *err)
{
    struct check *k = arg;

    k->storing = false;
    if (!err) {
        check_then(k, step_upsert, 0);
        return;
    }
    repair_release(k);
    check_trouble(k, err, "storing what is repaired");
}

static void step_note(struct check *k)
{
    struct store *s = k->verify->task->o.store;
    struct store_batch *b = s->ops->begin(s, k->verify->task->o.id);
    struct repl_ckpt ck;

    for (size_t i = 0; i < k->coll->n_shards; i++) {
        struct link *l = k->coll->shards[i].link;

        if (!l)
            continue; /* dropped meanwhile */
        link_doubt(l, k->ends[i]);
        link_doubt_read(l, k->coll);
        link_fill_ckpt(l, &ck);
        s->ops->put_ckpt(b, &ck);
    }
    k->storing = true;
    s->ops->commit(b, on_noted, k);
}

static void step_ends(struct check *k)
{
    check_ends(k, false, step_note);
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

static void on_rows(struct check *k, const struct rows_page *page)
{
    char *last = NULL;
    struct err err;

    if (!check_rows(k, page, &k->repair_rows))
        return;
    k->repair_columns = coll_columns(k->coll);
    if (msg_columns_add_page(k->repair_columns, page->buf, page->data, page->len, k->coll->pk_name, &last, &err)) {
        repair_release(k);
        check_trouble(k, &err, "repairing");
        return;
    }
    free(last);
    check_then(k, step_ends, 0);
}

static bool is_drained(const struct check *k)
{
    for (size_t i = 0; i < k->coll->n_shards; i++)
        if (k->coll->shards[i].link && tchan_carries(k->coll->shards[i].link->tchan, k->coll))
            return false;
    return true;
}

void repair_begin(struct check *k)
{
    size_t n;
    char *expr;

    if (!k->holding) {
        set_held(k, true);
        k->drain_tries = 0;
    }
    if (!is_drained(k)) {
        if (++k->drain_tries > DRAIN_TRIES)
            repair_release(k); /* the target does not take it: others wait behind it */
        check_then(k, repair_begin, k->holding ? POLL_MS : AGAIN_MS);
        return;
    }
    expr = look_expr(k, repair_wanted, &n);
    check_ask(k, &(struct ask){.side = SOURCE, .expr = expr, .output = "*", .answer = on_rows});
    free(expr);
}
