#include "net/outq_priv.h"

#include "base/mem.h"

#include <assert.h>
#include <event2/buffer.h>
#include <stdlib.h>

enum {
    COPY_BELOW = 512, /* bytes; a reference costs more than copying these */
    MAX_PIECES = 16,  /* per look into a message */
};

struct outq_msg {
    STAILQ_ENTRY(outq_msg) next;
    unsigned refs;         /* the queue and each piece that is on its way */
    struct evbuffer *data; /* never changed after outq_add(), so that at and pieces stay valid */
    struct evbuffer_ptr at;
    size_t left; /* bytes from at to the end */
};

static void msg_unref(struct outq_msg *m)
{
    if (--m->refs > 0)
        return;
    evbuffer_free(m->data);
    free(m);
}

void outq_init(struct outq *q)
{
    STAILQ_INIT(&q->msgs);
    q->bytes = 0;
    q->end = false;
}

static void pop(struct outq *q)
{
    struct outq_msg *m = STAILQ_FIRST(&q->msgs);

    STAILQ_REMOVE_HEAD(&q->msgs, next);
    q->bytes -= m->left;
    msg_unref(m);
}

void outq_release(struct outq *q)
{
    while (!STAILQ_EMPTY(&q->msgs))
        pop(q);
}

void outq_add(struct outq *q, const void *head, size_t head_len, struct evbuffer *body)
{
    struct outq_msg *m = xcalloc(1, sizeof(*m));

    m->refs = 1;
    m->data = evbuffer_new();
    if (!m->data || evbuffer_add(m->data, head, head_len) < 0 ||
        evbuffer_add_buffer(m->data, body) < 0)
        abort(); /* small allocations only, as in xmalloc() */
    m->left = evbuffer_get_length(m->data);
    evbuffer_ptr_set(m->data, &m->at, 0, EVBUFFER_PTR_SET);
    q->bytes += m->left;
    STAILQ_INSERT_TAIL(&q->msgs, m, next);
}

static void on_piece_sent(const void *data, size_t len, void *arg)
{
    (void)data;
    (void)len;
    msg_unref(arg);
}

static int add_piece(struct outq_msg *m, const void *data, size_t len, struct evbuffer *out)
{
    if (len < COPY_BELOW)
        return evbuffer_add(out, data, len);
    m->refs++;
    if (evbuffer_add_reference(out, data, len, on_piece_sent, m) == 0)
        return 0;
    m->refs--;
    return -1;
}

/* Moves some of the next len bytes and says how many, or -1. */
static ssize_t move_some(struct outq_msg *m, struct evbuffer *out, size_t len)
{
    struct evbuffer_iovec vec[MAX_PIECES];
    int n = evbuffer_peek(m->data, (ssize_t)len, &m->at, vec, MAX_PIECES);
    size_t moved = 0;

    for (int i = 0; i < n && i < MAX_PIECES && moved < len; i++) {
        size_t piece = vec[i].iov_len < len - moved ? vec[i].iov_len : len - moved;

        if (piece && add_piece(m, vec[i].iov_base, piece, out) < 0)
            return -1;
        moved += piece;
    }
    m->left -= moved;
    if (m->left && evbuffer_ptr_set(m->data, &m->at, moved, EVBUFFER_PTR_ADD) < 0)
        return -1;
    return (ssize_t)moved;
}

int outq_move(struct outq *q, struct evbuffer *out, size_t len)
{
    assert(len <= q->bytes);
    while (len > 0) {
        struct outq_msg *m = STAILQ_FIRST(&q->msgs);
        ssize_t n = move_some(m, out, len < m->left ? len : m->left);

        if (n <= 0)
            return -1;
        q->bytes -= (size_t)n;
        len -= (size_t)n;
        if (m->left == 0)
            pop(q);
    }
    return 0;
}
