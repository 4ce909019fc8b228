#include "wal/share_priv.h"

#include <stdlib.h>

#include "base/buf.h"
#include "base/mem.h"

/* Messages of one read often lie in one buffer, one after the other. */
size_t window_cost(const struct wal_msg *msgs, size_t n, size_t limit)
{
    size_t bytes = sizeof(struct chunk) + n * sizeof(*msgs);

    for (size_t i = 0; i < n && bytes <= limit; i++)
        if (msgs[i].buf && (i == 0 || msgs[i].buf != msgs[i - 1].buf))
            bytes += msgs[i].buf->size + sizeof(struct buf);
    return bytes;
}

static void window_count(struct window *w, size_t add, size_t sub)
{
    w->bytes = w->bytes + add - sub;
    *w->topic_bytes = *w->topic_bytes + add - sub;
    *w->all_bytes = *w->all_bytes + add - sub;
}

struct chunk *window_append(struct window *w, const struct wal_msg *msgs, size_t n)
{
    struct chunk *k = xmalloc(sizeof(*k) + n * sizeof(*msgs));

    *k = (struct chunk){.n = n, .cost = window_cost(msgs, n, SIZE_MAX)};
    for (size_t i = 0; i < n; i++) {
        k->msgs[i] = msgs[i];
        if (msgs[i].buf)
            buf_ref(msgs[i].buf);
    }
    TAILQ_INSERT_TAIL(&w->chunks, k, entry);
    window_count(w, k->cost, 0);
    return k;
}

static void chunk_free(struct chunk *k)
{
    for (size_t i = 0; i < k->n; i++)
        buf_unref(k->msgs[i].buf);
    free(k);
}

void chunk_unref(struct chunk *k)
{
    if (k && --k->refs == 0 && k->dropped)
        chunk_free(k);
}

static void drop_front(struct window *w)
{
    struct chunk *k = TAILQ_FIRST(&w->chunks);

    TAILQ_REMOVE(&w->chunks, k, entry);
    window_count(w, 0, k->cost);
    k->dropped = true;
    if (k->refs == 0)
        chunk_free(k);
}

void window_trim(struct window *w, size_t tail_bytes)
{
    const struct chunk *k;

    while (w->bytes > tail_bytes && (k = TAILQ_FIRST(&w->chunks)) && k->refs == 0)
        drop_front(w);
}

void window_clear(struct window *w)
{
    while (!TAILQ_EMPTY(&w->chunks))
        drop_front(w);
}

/* Index of the first message not before pos. */
static size_t lower_bound(const struct chunk *k, struct wal_pos pos)
{
    size_t lo = 0, hi = k->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (wal_pos_cmp(k->msgs[mid].pos, pos) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* From the newest on: who looks for a message mostly is close behind. */
bool window_find(const struct window *w, struct wal_pos pos, struct chunk **ret, size_t *ret_index)
{
    struct chunk *k;

    TAILQ_FOREACH_REVERSE(k, &w->chunks, chunk_list, entry) {
        size_t i;

        if (wal_pos_cmp(k->msgs[0].pos, pos) > 0)
            continue;
        i = lower_bound(k, pos);
        if (i == k->n || wal_pos_cmp(k->msgs[i].pos, pos) != 0)
            return false;
        *ret = k;
        *ret_index = i;
        return true;
    }
    return false;
}
