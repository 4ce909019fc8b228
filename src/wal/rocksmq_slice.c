/* rocksmq_slice.c - messages of a slice: each big one has a buffer, the small ones share one. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "wal/rocksmq_db_priv.h"

enum { BIG_VALUE = 64 << 10 /* gets a buffer of its own */ };

/* A message of the streaming service of Milvus 2.6 (source.md 7.4). */
static const uint8_t streaming_magic[] = {0xff, 0xfe, 0xfd, 0xfc, 'S', 'T', 'R', 'E', 'A', 'M'};

static uint8_t *add_small(struct work *k, size_t len)
{
    if (k->small_cap - k->small_len < len) {
        k->small_cap = (k->small_cap + len) * 2;
        k->small = xrealloc(k->small, k->small_cap); /* bounded by a slice and a record */
    }
    k->small_len += len;
    return k->small + k->small_len - len;
}

static struct wal_msg *add_msg(struct rmq_slice *s, uint64_t id, size_t len)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 8;
        s->msgs = xrealloc(s->msgs, s->cap * sizeof(*s->msgs));
    }
    s->msgs[s->n] = (struct wal_msg){.pos = {0, id}, .len = len};
    s->bytes += len;
    return &s->msgs[s->n++];
}

int rmq_take(struct work *k, uint64_t id, const void *value, size_t len, struct err *err)
{
    struct rmq_slice *s = &k->part->slice;
    struct wal_msg *m;
    struct buf *b;

    if (len >= sizeof(streaming_magic) &&
        memcmp(value, streaming_magic, sizeof(streaming_magic)) == 0)
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER,
                       "unsupported source: message %" PRIu64
                       " of topic %s was written by the streaming service of Milvus 2.6",
                       id, k->part->cursor->topic);
    k->min_id = id + 1;
    if (len < BIG_VALUE) {
        uint8_t *place = add_small(k, len);

        if (len)
            memcpy(place, value, len);
        add_msg(s, id, len);
        return 0;
    }
    b = buf_new(len);
    if (!b)
        return err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for a message of %zu bytes", len);
    memcpy(b->data, value, len);
    m = add_msg(s, id, len);
    m->buf = b;
    m->data = b->data;
    return 0;
}

bool rmq_slice_full(const struct rmq_slice *s)
{
    return s->n >= RMQ_SLICE_MSGS || s->bytes >= RMQ_SLICE_BYTES;
}

/* Copies the small values to one buffer of their exact size: a tick that waits must not hold a MiB. */
static int share_buffer(struct work *k, struct err *err)
{
    struct rmq_slice *s = &k->part->slice;
    struct buf *b = buf_new(k->small_len);
    size_t at = 0;

    if (!b)
        return err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for %zu bytes", k->small_len);
    if (k->small_len)
        memcpy(b->data, k->small, k->small_len);
    for (size_t i = 0; i < s->n; i++) {
        struct wal_msg *m = &s->msgs[i];

        if (m->buf)
            continue;
        m->buf = buf_ref(b);
        m->data = b->data + at;
        at += m->len;
    }
    buf_unref(b);
    return 0;
}

int rmq_finish(struct work *k, int code, struct err *err)
{
    struct rmq_slice *s = &k->part->slice;

    k->done = true;
    k->part->skipped = false;
    if (!code || (err->cls != ERRC_RETRY && s->n > 0))
        return s->n > 0 ? share_buffer(k, err) : 0;
    if (err->cls == ERRC_RETRY)
        return code;
    s->err = xmalloc(sizeof(*s->err));
    err_copy(s->err, err);
    return 0;
}

void rmq_slice_release(struct rmq_slice *s)
{
    for (size_t i = 0; i < s->n; i++)
        buf_unref(s->msgs[i].buf);
    free(s->msgs);
    xfree(&s->err);
    s->msgs = NULL;
    s->n = s->cap = 0;
    s->bytes = 0;
}

bool rmq_poll_full(const struct work *works, size_t n)
{
    size_t bytes = 0;

    for (size_t i = 0; i < n; i++)
        bytes += works[i].part->slice.bytes;
    return bytes >= RMQ_POLL_BYTES; /* the rest has its turn next time */
}
