/*
 * fuzz_nats.c - bytes of a NATS server: the same operations come out however the bytes are cut, and nothing is read
 * outside of what was given. The first byte chooses the cuts. How to run it: README.md here.
 *
 * test_nats.c includes this file and runs the corpus and mutations of it through fuzz_nats_one().
 */
#include "base/buf.h"
#include "base/err.h"
#include "wal/nats_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond);                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct fuzz_sum {
    uint64_t hash;
    unsigned ops;
    int end; /* 0 more bytes wanted, -1 refused */
};

static void fuzz_add(struct fuzz_sum *s, const void *data, size_t len)
{
    const uint8_t *p = data;

    for (size_t i = 0; i < len; i++)
        s->hash = (s->hash ^ p[i]) * 1099511628211u;
    s->hash = (s->hash ^ len) * 1099511628211u;
}

static void fuzz_msg(struct fuzz_sum *s, const struct nats_op *op)
{
    struct nats_status st;
    struct nats_ack ack;

    CHECK(op->buf && op->hdr_len <= op->len && op->len <= NATS_PAYLOAD_MAX && op->subject.len > 0);
    fuzz_add(s, op->subject.s, op->subject.len);
    fuzz_add(s, op->reply.s, op->reply.len);
    fuzz_add(s, op->buf->data, op->len);
    fuzz_add(s, &op->hdr_len, sizeof(op->hdr_len));
    if (nats_status_parse(op->buf->data, op->hdr_len, &st) == 0) {
        CHECK(st.code <= 999 && strlen(st.text) < sizeof(st.text));
        fuzz_add(s, &st.code, sizeof(st.code));
    }
    if (nats_ack_parse(op->reply, &ack) == 0) {
        CHECK(ack.stream_seq > 0 && ack.consumer_seq > 0 && memchr(ack.key.s, '.', ack.key.len));
        fuzz_add(s, ack.key.s, ack.key.len);
    }
}

static void fuzz_op(struct fuzz_sum *s, const struct nats_op *op)
{
    s->ops++;
    fuzz_add(s, &op->kind, sizeof(op->kind));
    if (op->kind == NATS_MSG)
        fuzz_msg(s, op);
    else
        fuzz_add(s, op->text.s, op->text.len);
}

/* step 0: as much as the parser takes. */
static struct fuzz_sum fuzz_feed(const uint8_t *data, size_t len, size_t step)
{
    struct fuzz_sum s = {.hash = 14695981039346656037u};
    struct nats_parser p;
    struct nats_op op;
    struct err err;

    nats_parser_init(&p);
    while (len > 0 && s.end == 0) {
        uint8_t *to;
        size_t room, n;

        nats_parser_space(&p, &to, &room);
        CHECK(room > 0);
        n = room < len ? room : len;
        n = step && step < n ? step : n;
        memcpy(to, data, n);
        nats_parser_filled(&p, n);
        data += n;
        len -= n;
        while ((s.end = nats_parser_next(&p, &op, &err)) == 1)
            fuzz_op(&s, &op);
        if (s.end < 0)
            CHECK(err.cls == ERRC_RETRY && *err.text);
    }
    nats_parser_release(&p);
    return s;
}

/* Returns the number of operations. */
static unsigned fuzz_nats_one(const uint8_t *data, size_t len)
{
    struct fuzz_sum whole, cut, bytes;
    uint8_t *exact;

    if (len < 2)
        return 0;
    exact = malloc(len - 1); /* at both ends of its block, so that ASan sees reads around it */
    CHECK(exact);
    memcpy(exact, data + 1, len - 1);
    whole = fuzz_feed(exact, len - 1, 0);
    cut = fuzz_feed(exact, len - 1, (size_t)data[0] + 1);
    bytes = fuzz_feed(exact, len - 1, 1);
    free(exact);
    CHECK(whole.ops == cut.ops && whole.hash == cut.hash && whole.end == cut.end);
    CHECK(whole.ops == bytes.ops && whole.hash == bytes.hash && whole.end == bytes.end);
    return whole.ops;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    (void)fuzz_nats_one(data, len);
    return 0;
}
