#include "base/buf.h"

#include "base/mem.h"

#include <assert.h>
#include <event2/buffer.h>
#include <stdlib.h>

enum { BUF_COPY_BELOW = 512 };

struct buf *buf_new(size_t size)
{
    struct buf *b;

    if (size > SIZE_MAX - sizeof(*b))
        return NULL;
    b = malloc(sizeof(*b) + size);
    if (!b)
        return NULL;
    *b = (struct buf){.refs = 1, .size = size, .data = (uint8_t *)(b + 1)};
    return b;
}

struct buf *buf_wrap(void *data, size_t size, buf_free_fn free_fn, void *free_arg)
{
    struct buf *b = xmalloc(sizeof(*b));

    *b = (struct buf){
        .refs = 1, .size = size, .data = data, .free_fn = free_fn, .free_arg = free_arg};
    return b;
}

struct buf *buf_ref(struct buf *b)
{
    assert(b->refs > 0);
    b->refs++;
    return b;
}

void buf_unref(struct buf *b)
{
    if (!b)
        return;
    assert(b->refs > 0);
    if (--b->refs > 0)
        return;
    if (b->free_fn)
        b->free_fn(b->free_arg);
    free(b);
}

static void on_sent(const void *data, size_t len, void *arg)
{
    (void)data;
    (void)len;
    buf_unref(arg);
}

int buf_add_to_evbuffer(struct buf *b, const uint8_t *data, size_t len, struct evbuffer *out)
{
    if (len == 0)
        return 0;
    assert(data >= b->data && len <= b->size && (size_t)(data - b->data) <= b->size - len);
    if (len < BUF_COPY_BELOW)
        return evbuffer_add(out, data, len);
    buf_ref(b);
    if (evbuffer_add_reference(out, data, len, on_sent, b) < 0) {
        buf_unref(b);
        return -1;
    }
    return 0;
}
