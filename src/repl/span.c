/*
 * span.c - source time that is reserved ahead in a shared registry, so that live rows go on while it is away.
 *
 * With a note before each request nothing can be sent while the store does not answer. So with each checkpoint a live
 * link says of the next seconds of source time: what lies behind done and is not newer than span_tt may be on the target.
 * Rows with times of their own that lie in what is durable of it need no note, nor do ticks up to the channel's bound,
 * which is reserved with it. What gets new times, and drops, are noted as ever.
 *
 * To a portable target every window has the times that it has, so all of it can lie in a span; there are no ticks of ours.
 *
 * After a crash whatever is behind done up to span_tt is repaired (link.c). In the memory of a living daemon it is known
 * what was sent, so a failed request costs no more than without a span, and a task that ends in order stores exactly
 * that.
 */
#include "repl/priv.h"

#include "base/clock.h"

bool span_covers(const struct item *it)
{
    return it->kind == ITEM_ROWS && !it->retime && !it->repair && it->head.max_tt <= it->link->span_ok;
}

/* Other tasks that feed the channel find it reserved already. */
static void reserve_ticks(struct tchan *tc, struct repl_task *t, uint64_t tt, struct store_batch *b)
{
    if (tc->bound_by || tt <= tc->bound_tt)
        return;
    tc->bound_by = t;
    tc->bound_tt = tt;
    t->o.store->ops->put_tick(b, tc->hub->key, tc->name, tt);
}

/* No task sends on the channel: what it may have seen is known. */
static void settle_ticks(struct tchan *tc, struct store *store, struct store_batch *b)
{
    uint64_t tt = max_tt(tc->tick_maybe, tc->next ? tc->next->tick : 0);
    const struct link *l;

    if (tc->bound_tt <= tt)
        return;
    LIST_FOREACH(l, &tc->links, of_tchan)
        if (l->stream->task->state == RUN_RUNNING)
            return;
    tc->bound_by = NULL;
    tc->bound_tt = tc->bound_ok = tt; /* a tick above it has a note of its own again, which comes after this */
    store->ops->set_tick(b, tc->hub->key, tc->name, tt);
}

void span_store(struct link *l, struct store_batch *b)
{
    struct repl_task *t = l->stream->task;

    if (t->state == RUN_STOPPING) {
        settle_ticks(l->tchan, t->o.store, b);
    } else if (t->o.span_ms && (l->mode == LINK_LIVE || l->tchan->hub->portable)) {
        l->span_tt = max_tt(l->span_tt, l->tick_read + tt_from_ms(t->o.span_ms));
        if (!l->tchan->hub->portable)
            reserve_ticks(l->tchan, t, l->span_tt, b);
    }
}

/* One such commit of a task is under way at a time; a link that began anew since then has no span_tt. */
void span_durable(struct repl_task *t)
{
    struct link *l;

    for (struct stream *s = t->streams; s; s = s->hh.next)
        LIST_FOREACH(l, &s->links, of_stream) {
            l->span_ok = l->span_tt;
            if (l->tchan->bound_by != t)
                continue;
            l->tchan->bound_ok = l->tchan->bound_tt;
            l->tchan->bound_by = NULL;
        }
}
