/*
 * fuzz_pulsar.c - what a Pulsar broker may send: frames one after the other (each with its length), their commands,
 * entries with checksum, metadata, batches, chunks and all compressions. Checksums are made right first, else no
 * mutation would get past them. Every message must lie in its buffer. How to run it: README.md here.
 *
 * test_pulsar.c includes this file and runs the corpus and mutations of it through fuzz_pulsar_one().
 */
#include "base/buf.h"
#include "wal/crc32c_priv.h"
#include "wal/pulsar_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define FUZZ_CHECK(cond)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond);                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint32_t fuzz_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* data: what follows the command of a MESSAGE. */
static void fuzz_fix_checksum(uint8_t *data, size_t len)
{
    size_t at = 0;
    uint32_t crc;

    if (len >= 6 && data[0] == 0x0e && data[1] == 0x02 && fuzz_be32(data + 2) <= len - 6)
        at = 6 + fuzz_be32(data + 2);
    if (len - at < 6 || data[at] != 0x0e || data[at + 1] != 0x01)
        return;
    crc = crc32c_extend(0, data + at + 6, len - at - 6);
    for (int i = 0; i < 4; i++)
        data[at + 2 + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
}

static size_t fuzz_check_msgs(const struct pulsar_msgs *m)
{
    volatile unsigned sum = 0;
    size_t bytes = 0;

    for (size_t i = 0; i < m->n; i++) {
        const struct wal_msg *w = &m->v[i];

        if (!w->buf)
            continue;
        FUZZ_CHECK(w->len == 0 || (w->data >= w->buf->data && w->len <= w->buf->size &&
                                   (size_t)(w->data - w->buf->data) <= w->buf->size - w->len));
        if (w->len)
            sum += w->data[0] + w->data[w->len - 1];
        bytes += w->len;
    }
    return bytes;
}

/* Memory of its own, so that ASan sees what is read outside. */
static struct buf *fuzz_copy(const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len ? len : 1);

    FUZZ_CHECK(copy);
    if (len)
        memcpy(copy, data, len);
    return buf_wrap(copy, len, free, copy);
}

/* Returns the messages that an entry gave. */
static size_t fuzz_entry(struct pulsar_decoder *d, const Pulsar__CommandMessage *m, const uint8_t *rest, size_t len)
{
    struct pulsar_entry e = {.ledger = m->message_id->ledger_id, .entry = m->message_id->entry_id};
    struct pulsar_msgs msgs = {0};
    struct err err;
    size_t n = 0;

    e.frame = fuzz_copy(rest, len);
    fuzz_fix_checksum(e.frame->data, len);
    if (pulsar_entry_parse(e.frame->data, len, &e, &err) == 0) {
        if (pulsar_decode(d, &e, &msgs, &err))
            FUZZ_CHECK(msgs.n == 0 && err.text[0] && (err.cls == ERRC_DATA || err.cls == ERRC_LOST));
        n = msgs.n;
        (void)fuzz_check_msgs(&msgs);
    } else {
        FUZZ_CHECK(err.code == ERR_PROTO && err.cls == ERRC_RETRY);
    }
    pulsar_msgs_release(&msgs);
    buf_unref(e.frame);
    return n;
}

static size_t fuzz_frame(struct pulsar_decoder *d, const uint8_t *data, size_t len)
{
    struct buf *copy = fuzz_copy(data, len);
    Pulsar__BaseCommand *cmd;
    const uint8_t *rest;
    size_t rest_len, n = 0;
    struct err err;
    uint64_t id;

    cmd = pulsar_frame_parse(copy->data, len, &rest, &rest_len, &err);
    if (cmd) {
        FUZZ_CHECK(rest >= copy->data && rest_len <= len);
        (void)pulsar_answer(cmd, &id, &err);
        if (cmd->type == PULSAR__BASE_COMMAND__TYPE__MESSAGE)
            n = fuzz_entry(d, cmd->message, rest, rest_len);
    }
    pulsar_command_free(cmd);
    buf_unref(copy);
    return n;
}

/* How many messages (with those that are not for the user) the frames gave. */
static size_t fuzz_pulsar_one(const uint8_t *data, size_t len)
{
    struct pulsar_decoder *d = pulsar_decoder_new();
    size_t n = 0;

    while (len >= 4) {
        size_t frame = fuzz_be32(data);

        if (frame > len - 4)
            frame = len - 4;
        n += fuzz_frame(d, data + 4, frame);
        data += 4 + frame;
        len -= 4 + frame;
    }
    pulsar_decoder_free(d);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    (void)fuzz_pulsar_one(data, len);
    return 0;
}
