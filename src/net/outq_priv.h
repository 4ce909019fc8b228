/*
 * outq_priv.h - messages of one stream on their way out, handed on in pieces without copying.
 *
 * A piece that goes out is a reference to the message's memory; the message is freed when the last
 * piece has left (evbuffer_remove_buffer() would copy each part of a chain).  So the pieces in a
 * connection's output outlive the queue.
 */
#ifndef NET_OUTQ_PRIV_H
#define NET_OUTQ_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

struct evbuffer;
struct outq_msg;

struct outq {
    STAILQ_HEAD(, outq_msg) msgs;
    size_t bytes; /* in all messages, not yet moved */
    bool end;     /* nothing will be added: end of stream after the last byte */
};

void outq_init(struct outq *q);
void outq_release(struct outq *q);

/* Appends one message: head is copied, body's content is moved (references stay references). */
void outq_add(struct outq *q, const void *head, size_t head_len, struct evbuffer *body);

/* Appends the next len (<= q->bytes) bytes to out. 0 or -1: no memory. */
int outq_move(struct outq *q, struct evbuffer *out, size_t len);
#endif
