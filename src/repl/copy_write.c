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

static void on_written(void *arg, const struct err *err, bool doubt, const char *target_pos)
{
    struct page *g = arg;
    struct copy *p = g->copy;
    struct coll *c = p->coll;

    (void)doubt; /* an Upsert can be repeated */
    (void)target_pos;
    g->write = NULL;
    if (err) {
        p->width = 1;
        coll_unverify(c);
        copy_fail(p, err, "writing");
        return;
    }
    copy_went_well(p);
    task_count_call(c->task, "Upsert");
    coll_count(c, true, false, msg_columns_rows(g->columns));
    if (p->width < COPY_PAGES)
        p->width++;
    g->written = true;
    if (!p->again) /* else pages between are gone */
        pass_written(p);
    copy_step(p);
}

static const char *part_name(struct coll *c, int64_t id)
{
    const struct part *p = id == ALL_PARTS ? NULL : coll_part(c, id);

    return p ? p->name : "";
}

static void send_page(struct copy *p, struct page *g)
{
    struct coll *c = p->coll;
    struct sink *sink = c->task->o.hub->sink;
    struct evbuffer *body = evbuffer_new();

    msg_columns_write(g->columns, body);
    g->write = sink->ops->write(sink,
                                &(struct sink_write){.kind = SINK_UPSERT,
                                                     .db = c->dst_db,
                                                     .collection = c->dst_name,
                                                     .partition = part_name(c, g->end.part),
                                                     .rows = msg_columns_rows(g->columns),
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
            send_page(p, g);
        open += g->write != NULL;
    }
    pass_written(p);
}
