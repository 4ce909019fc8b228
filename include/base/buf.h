/*
 * buf.h - immutable, counted bytes: what a WAL reader read and a target connection still sends.
 *
 * Ownership  the last buf_unref() frees.  Thread  the loop thread; a worker may make one and hand it
 * over before anybody else has seen it (the count is not atomic).
 */
#ifndef BASE_BUF_H
#define BASE_BUF_H
#include <stddef.h>
#include <stdint.h>

struct evbuffer;

typedef void (*buf_free_fn)(void *arg);

struct buf {
    unsigned refs;
    size_t size;
    uint8_t *data;
    buf_free_fn free_fn; /* NULL: data lies behind this header */
    void *free_arg;
};

/* A new buffer with one reference and size writable bytes, or NULL when there is no memory. */
struct buf *buf_new(size_t size);

/* Wraps foreign bytes; free_fn(free_arg) runs with the last reference.  Never NULL. */
struct buf *buf_wrap(void *data, size_t size, buf_free_fn free_fn, void *free_arg);

struct buf *buf_ref(struct buf *b);
void buf_unref(struct buf *b); /* NULL is allowed */

/* Appends data..data+len, which lies inside b, to out without copying; out holds a reference.
 * Pieces below 512 bytes are copied, which is cheaper. Returns 0 or -1 (no memory). */
int buf_add_to_evbuffer(struct buf *b, const uint8_t *data, size_t len, struct evbuffer *out);
#endif
