/* copy_write.c - pages of a copy become Upserts, several at a time; the cursor follows those that are written in order. */
#include <event2/buffer.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "repl/copy_priv.h"

#define SAVE_MS 1000
#define TELL_MS 10000

uint64_t copy_rows_per_s(const struct copy *p)
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
             KU("rows", p->rows), KU("of_about", p->estimate), KU("rows_per_s", copy_rows_per_s(p)));
}

static void save(struct copy *p)
{
    uint64_t now = clock_mono_ms();

    if (now - p->saved_ms < SAVE_MS)
        return;
    p->saved_ms = now;
    coll_save(p->coll);
}

static void remove_page(struct copy *p, struct page *g)
{
    TAILQ_REMOVE(&p->pages, g, next);
    p->n_pages--;
    page_free(g);
}

/* Pages that are written, and have none before them that is not. */
static void pass_written(struct copy *p)
{
    struct page *g;

    while ((g = TAILQ_FIRST(&p->pages)) && g->written) {
        uint64_t rows = msg_columns_rows(g->columns);

        p->rows += rows;
        p->run_rows += rows;
        cursor_set(&p->done, g->end.part, g->end.after);
        remove_page(p, g);
    }
    tell(p);
    save(p);
}

static uint64_t least_of(uint64_t rows, uint64_t limit)
{
    return limit && limit < rows ? limit : rows;
}

/* What the target does not take it may take in smaller pieces: at once when it was too large, else after a wait. */
static bool refused(struct copy *p, const struct page *g, const struct err *err)
{
    uint64_t half = g->piece / 2;

    if (err->code == ERR_TOO_LARGE && half) {
        p->most = half;
        copy_step(p);
        return true;
    }
    if (err->code != ERR_LIMIT)
        return false;
    p->piece = half ? half : 1;
    p->width = 1;
    (void)copy_wait(p, err, "writing");
    return true;
}

static void piece_grows(struct copy *p)
{
    if (p->piece)
        p->piece += p->piece / 16 + 1;
    if (p->piece > COPY_MAX_ROWS)
        p->piece = 0;
}

static void on_written(void *arg, const struct err *err, bool doubt, const char *target_pos)
{
    struct page *g = arg;
    struct copy *p = g->copy;
    struct coll *c = p->coll;

    (void)target_pos;
    g->write = NULL;
    if (err && !doubt && !p->again && refused(p, g, err))
        return;
    if (err) {
        p->width = 1;
        coll_unverify(c);
        copy_fail(p, err, "writing");
        return;
    }
    copy_went_well(p);
    task_count_call(c->task, "Upsert");
    coll_count(c, true, false, g->piece);
    if (p->width < COPY_PAGES)
        p->width++;
    piece_grows(p);
    g->sent += g->piece;
    g->written = g->sent == msg_columns_rows(g->columns);
    if (!p->again) /* else pages between are gone */
        pass_written(p);
    copy_step(p);
}

static const char *part_name(struct coll *c, int64_t id)
{
    const struct part *p = id == ALL_PARTS ? NULL : coll_part(c, id);

    return p ? p->name : "";
}

/* The page's next rows, encoded. NULL: it cannot be divided. */
static struct evbuffer *piece_body(const struct page *g)
{
    bool all = g->piece == msg_columns_rows(g->columns);
    struct msg_columns *cut = all ? NULL : msg_columns_cut(g->columns, g->sent, g->sent + g->piece);
    struct evbuffer *body = all || cut ? evbuffer_new() : NULL;

    if (body)
        msg_columns_write(cut ? cut : g->columns, body);
    msg_columns_free(cut);
    return body;
}

static void send_piece(struct copy *p, struct page *g)
{
    struct coll *c = p->coll;
    struct sink *sink = c->task->o.hub->sink;
    struct evbuffer *body;
    struct err err;

    g->piece = least_of(least_of(msg_columns_rows(g->columns) - g->sent, p->piece), p->most);
    body = piece_body(g);
    if (!body) {
        err_set(&err, ERR_PROTO, ERRC_DATA, "a page of rows cannot be divided: a column has another number of values");
        (void)copy_wait(p, &err, "writing");
        return;
    }
    g->write = sink->ops->write(sink,
                                &(struct sink_write){.kind = SINK_UPSERT,
                                                     .db = c->dst_db,
                                                     .collection = c->dst_name,
                                                     .partition = part_name(c, g->end.part),
                                                     .rows = g->piece,
                                                     .body = body},
                                on_written, g);
    evbuffer_free(body);
}

void copy_write(struct copy *p)
{
    struct page *g, *next;
    size_t open = 0;

    for (g = TAILQ_FIRST(&p->pages); g; g = next) {
        next = TAILQ_NEXT(g, next);
        if (g->written)
            continue;
        if (!g->write && g->end.part != ALL_PARTS && !coll_part_alive(p->coll, g->end.part)) {
            remove_page(p, g); /* its partition was dropped */
            continue;
        }
        if (!g->write && open < p->width)
            send_piece(p, g);
        open += g->write != NULL;
    }
    pass_written(p);
}
