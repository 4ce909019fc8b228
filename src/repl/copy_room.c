#include "repl/copy_priv.h"

void repl_copy_room_init(struct repl_copy_room *r, size_t limit)
{
    *r = (struct repl_copy_room){.limit = limit};
    TAILQ_INIT(&r->line);
}

static struct repl_copy_room *room_of(const struct copy *p)
{
    return p->coll->task->o.copy_room;
}

/* From the loop: the one that gives is in the middle of something. */
static void wake_first(struct repl_copy_room *r)
{
    struct copy *first = TAILQ_FIRST(&r->line);

    if (first)
        timer_set(&first->wake, 0);
}

/* What is asked for may be twice as large, and four collections at a time should find room. */
size_t copy_page_bytes(const struct copy *p)
{
    size_t part = room_of(p)->limit / 8;

    return part < COPY_PAGE_BYTES ? part : COPY_PAGE_BYTES;
}

bool copy_room_take(struct copy *p, size_t bytes)
{
    struct repl_copy_room *r = room_of(p);
    const struct copy *first = TAILQ_FIRST(&r->line);
    bool fits = r->used == 0 || r->used + bytes <= r->limit; /* a single row may be larger than all that */

    if (!fits || (first && first != p)) {
        if (!p->in_line)
            TAILQ_INSERT_TAIL(&r->line, p, line);
        p->in_line = true;
        return false;
    }
    r->used += bytes;
    copy_room_leave(p);
    return true;
}

void copy_room_give(struct copy *p, size_t bytes)
{
    struct repl_copy_room *r = room_of(p);

    r->used -= bytes;
    if (bytes)
        wake_first(r);
}

void copy_room_leave(struct copy *p)
{
    if (!p->in_line)
        return;
    p->in_line = false;
    TAILQ_REMOVE(&room_of(p)->line, p, line);
    wake_first(room_of(p));
}
