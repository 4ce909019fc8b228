/*
 * pulsar_entry.c - from the bytes of an entry to messages.
 *
 * Behind the command: [0x0e02 u32 size, broker's metadata] 0x0e01 u32 CRC-32C of all that follows | u32 size,
 * metadata | payload. Numbers are big endian. What is not compressed stays where it was received; messages refer to it.
 */
#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "wal/crc32c_priv.h"
#include "wal/pulsar_priv.h"

#include <lz4.h>
#include <snappy-c.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

enum {
    MAGIC_CHECKSUM = 0x0e01,
    MAGIC_BROKER = 0x0e02,
    CHUNKED_MAX = 64,              /* unfinished messages of one topic */
    CHUNKED_BYTES_MAX = 128 << 20, /* and their size */
    CHUNKS_MAX = 1 << 20,
    KEEP_MSGS = 4096,
};

enum compression { COMP_NONE, COMP_LZ4, COMP_ZLIB, COMP_ZSTD, COMP_SNAPPY };

struct chunked {
    TAILQ_ENTRY(chunked) next;
    struct buf *buf; /* of the whole size */
    size_t got;
    uint32_t n, next_id;
    size_t uuid_len;
    uint8_t uuid[];
};

struct pulsar_decoder {
    TAILQ_HEAD(, chunked) chunked; /* oldest first */
    size_t n, bytes;
    ZSTD_DCtx *zstd;
};

/* ---- the frame of an entry ------------------------------------------------------------------ */

struct cursor {
    const uint8_t *p;
    size_t left;
};

static bool take_be(struct cursor *c, unsigned bytes, uint32_t *ret)
{
    uint32_t v = 0;

    if (c->left < bytes)
        return false;
    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | c->p[i];
    c->p += bytes;
    c->left -= bytes;
    *ret = v;
    return true;
}

static bool take_block(struct cursor *c, const uint8_t **ret, uint32_t *ret_len)
{
    if (!take_be(c, 4, ret_len) || c->left < *ret_len)
        return false;
    *ret = c->p;
    c->p += *ret_len;
    c->left -= *ret_len;
    return true;
}

static void meta_field(struct pulsar_meta *m, const struct pb_field *f)
{
    switch (f->num) {
    case 8:
        m->compression = f->wire == PB_VARINT && f->varint <= INT32_MAX ? (int)f->varint : -1;
        break;
    case 9:
        m->uncompressed_size = f->varint > UINT32_MAX ? UINT32_MAX : (uint32_t)f->varint;
        break;
    case 11:
        m->batch = true;
        m->n_msgs = f->varint > UINT32_MAX ? UINT32_MAX : (uint32_t)f->varint;
        break;
    case 13: /* keys */
    case 14: /* algorithm */
        m->encrypted = true;
        break;
    case 20:
        m->marker = true;
        break;
    case 26:
        m->uuid = f->data;
        m->uuid_len = f->len;
        break;
    case 27:
        m->n_chunks = f->varint > CHUNKS_MAX ? 0 : (uint32_t)f->varint;
        break;
    case 28:
        m->total_size = f->varint > UINT32_MAX ? UINT32_MAX : (uint32_t)f->varint;
        break;
    case 29:
        m->chunk_id = f->varint > CHUNKS_MAX ? UINT32_MAX : (uint32_t)f->varint;
        break;
    default:
        break;
    }
}

static bool meta_wire_ok(const struct pb_field *f)
{
    bool bytes = f->num == 13 || f->num == 14 || f->num == 26;
    bool number = f->num == 8 || f->num == 9 || f->num == 11 || f->num == 20 || (f->num >= 27 && f->num <= 29);

    return bytes ? f->wire == PB_LEN : !number || f->wire == PB_VARINT;
}

static bool meta_parse(const uint8_t *data, size_t len, struct pulsar_meta *m)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    int rc;

    *m = (struct pulsar_meta){.n_msgs = 1};
    while ((rc = pb_scan_next(&s, &f)) > 0) {
        if (!meta_wire_ok(&f))
            return false;
        meta_field(m, &f);
    }
    if (m->n_chunks <= 1) /* a message of one chunk is whole */
        m->uuid = NULL;
    return rc == 0;
}

int pulsar_entry_parse(const uint8_t *data, size_t len, struct pulsar_entry *ret, struct err *err)
{
    struct cursor c = {data, len}, at = c;
    const uint8_t *block;
    uint32_t magic, crc, n;

    if (take_be(&c, 2, &magic) && magic == MAGIC_BROKER) {
        if (!take_block(&c, &block, &n))
            return err_set(err, ERR_PROTO, ERRC_RETRY, "the broker's own metadata of an entry is cut");
        at = c;
    } else {
        c = at;
    }
    if (take_be(&c, 2, &magic) && magic == MAGIC_CHECKSUM) {
        if (!take_be(&c, 4, &crc))
            return err_set(err, ERR_PROTO, ERRC_RETRY, "the checksum of an entry is cut");
        if (crc != crc32c_extend(0, c.p, c.left))
            return err_set(err, ERR_PROTO, ERRC_RETRY, "the checksum of an entry is wrong");
    } else {
        c = at; /* old producers send none */
    }
    if (!take_block(&c, &block, &n) || !meta_parse(block, n, &ret->meta))
        return err_set(err, ERR_PROTO, ERRC_RETRY, "the metadata of an entry cannot be parsed");
    ret->payload = c.p;
    ret->len = c.left;
    return 0;
}

void pulsar_entry_free(struct pulsar_entry *e)
{
    buf_unref(e->frame);
    free(e);
}

/* ---- messages ------------------------------------------------------------------------------- */

static void push(struct pulsar_msgs *m, struct wal_pos pos, struct buf *buf, const uint8_t *data, size_t len)
{
    if (m->n == m->cap) {
        m->cap = m->cap ? m->cap * 2 : 64;
        m->v = xrealloc(m->v, m->cap * sizeof(*m->v));
    }
    m->v[m->n++] = (struct wal_msg){.pos = pos, .buf = buf ? buf_ref(buf) : NULL, .data = data, .len = len};
    m->bytes += len;
}

static void shrink(struct pulsar_msgs *m, size_t n, size_t bytes)
{
    while (m->n > n)
        buf_unref(m->v[--m->n].buf);
    m->bytes = bytes;
}

void pulsar_msgs_clear(struct pulsar_msgs *m)
{
    shrink(m, 0, 0);
    if (m->cap > KEEP_MSGS)
        pulsar_msgs_release(m);
}

void pulsar_msgs_release(struct pulsar_msgs *m)
{
    shrink(m, 0, 0);
    free(m->v);
    *m = (struct pulsar_msgs){0};
}

/* ---- compression ---------------------------------------------------------------------------- */

static bool un_lz4(const uint8_t *in, size_t n, uint8_t *out, size_t size)
{
    return n <= INT32_MAX && LZ4_decompress_safe((const char *)in, (char *)out, (int)n, (int)size) == (int)size;
}

static bool un_zlib(const uint8_t *in, size_t n, uint8_t *out, size_t size)
{
    uLongf got = size;

    return uncompress(out, &got, in, n) == Z_OK && got == size;
}

static bool un_snappy(const uint8_t *in, size_t n, uint8_t *out, size_t size)
{
    size_t got = 0;

    /* The length first: snappy trusts that out has it. */
    return snappy_uncompressed_length((const char *)in, n, &got) == SNAPPY_OK && got == size &&
           snappy_uncompress((const char *)in, n, (char *)out, &got) == SNAPPY_OK && got == size;
}

static bool un_zstd(struct pulsar_decoder *d, const uint8_t *in, size_t n, uint8_t *out, size_t size)
{
    if (!d->zstd)
        d->zstd = ZSTD_createDCtx();
    return d->zstd && ZSTD_decompressDCtx(d->zstd, out, size, in, n) == size;
}

/* The payload as the producer had it, one reference. */
static int inflate_to(struct pulsar_decoder *d, const struct pulsar_meta *m, struct buf *frame, const uint8_t **data,
                      size_t *len, struct buf **ret, struct err *err)
{
    size_t size = m->uncompressed_size;
    struct buf *b;
    bool ok = false;

    if (m->compression == COMP_NONE) {
        *ret = buf_ref(frame);
        return 0;
    }
    if (m->compression < COMP_LZ4 || m->compression > COMP_SNAPPY)
        return err_set(err, ERR_UNSUPPORTED, ERRC_DATA, "unknown compression %d", m->compression);
    if (size > PULSAR_MESSAGE_MAX)
        return err_set(err, ERR_LIMIT, ERRC_DATA, "%zu bytes before compression, the limit is %d", size,
                       PULSAR_MESSAGE_MAX);
    b = buf_new(size ? size : 1);
    if (!b)
        return err_set(err, ERR_LIMIT, ERRC_DATA, "no memory for %zu bytes", size);
    if (m->compression == COMP_LZ4)
        ok = un_lz4(*data, *len, b->data, size);
    else if (m->compression == COMP_ZLIB)
        ok = un_zlib(*data, *len, b->data, size);
    else if (m->compression == COMP_ZSTD)
        ok = un_zstd(d, *data, *len, b->data, size);
    else
        ok = un_snappy(*data, *len, b->data, size);
    if (!ok) {
        buf_unref(b);
        return err_set(err, ERR_PROTO, ERRC_DATA, "%zu bytes of compression %d do not give %zu", *len, m->compression,
                       size);
    }
    *data = b->data;
    *len = size;
    *ret = b;
    return 0;
}

/* ---- batches -------------------------------------------------------------------------------- */

struct single {
    uint32_t size;
    bool compacted_out;
};

static bool single_parse(const uint8_t *data, size_t len, struct single *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    bool sized = false;
    int rc;

    *ret = (struct single){0};
    while ((rc = pb_scan_next(&s, &f)) > 0) {
        if (f.num == 3 && (f.wire != PB_VARINT || f.varint > PULSAR_MESSAGE_MAX))
            return false;
        if (f.num == 3) {
            ret->size = (uint32_t)f.varint;
            sized = true;
        } else if (f.num == 4) {
            ret->compacted_out = f.wire == PB_VARINT && f.varint;
        }
    }
    return rc == 0 && sized;
}

static int split(struct wal_pos first, uint32_t n, struct buf *buf, const uint8_t *data, size_t len,
                 struct pulsar_msgs *out, struct err *err)
{
    struct cursor c = {data, len};

    for (uint32_t i = 0; i < n; i++) {
        struct wal_pos pos = {first.major, first.minor + i};
        const uint8_t *meta;
        struct single s;
        uint32_t meta_len;

        if (!take_block(&c, &meta, &meta_len) || !single_parse(meta, meta_len, &s) || c.left < s.size)
            return err_set(err, ERR_PROTO, ERRC_DATA, "message %u of the %u of a batch cannot be parsed", i, n);
        push(out, pos, s.compacted_out ? NULL : buf, c.p, s.size);
        c.p += s.size;
        c.left -= s.size;
    }
    return 0;
}

/* ---- chunks --------------------------------------------------------------------------------- */

static void chunked_drop(struct pulsar_decoder *d, struct chunked *c)
{
    TAILQ_REMOVE(&d->chunked, c, next);
    d->n--;
    d->bytes -= c->buf->size;
    buf_unref(c->buf);
    free(c);
}

static struct chunked *chunked_find(struct pulsar_decoder *d, const struct pulsar_meta *m)
{
    struct chunked *c;

    TAILQ_FOREACH (c, &d->chunked, next) {
        if (c->uuid_len == m->uuid_len && memcmp(c->uuid, m->uuid, c->uuid_len) == 0)
            return c;
    }
    return NULL;
}

/* When there are too many, the oldest go: most likely their producer died. If not, the last chunk has them read
 * again. */
static struct chunked *chunked_new(struct pulsar_decoder *d, const struct pulsar_meta *m)
{
    struct chunked *c;

    while (d->n > 0 && (d->n >= CHUNKED_MAX || d->bytes + m->total_size > CHUNKED_BYTES_MAX))
        chunked_drop(d, TAILQ_FIRST(&d->chunked));
    c = xcalloc(1, sizeof(*c) + m->uuid_len);
    c->buf = buf_new(m->total_size);
    if (!c->buf) {
        free(c);
        return NULL;
    }
    c->n = m->n_chunks;
    c->uuid_len = m->uuid_len;
    memcpy(c->uuid, m->uuid, m->uuid_len);
    TAILQ_INSERT_TAIL(&d->chunked, c, next);
    d->n++;
    d->bytes += c->buf->size;
    return c;
}

/* *ret: the whole payload (one reference) with the last chunk, else NULL. */
static int join_chunk(struct pulsar_decoder *d, const struct pulsar_entry *e, struct buf **ret, struct err *err)
{
    const struct pulsar_meta *m = &e->meta;
    struct chunked *c = chunked_find(d, m);

    *ret = NULL;
    if (m->total_size > PULSAR_MESSAGE_MAX || m->chunk_id >= m->n_chunks)
        return err_set(err, ERR_LIMIT, ERRC_DATA, "chunk %u of %u of a message of %u bytes, the limit is %d",
                       m->chunk_id, m->n_chunks, m->total_size, PULSAR_MESSAGE_MAX);
    if (c && m->chunk_id < c->next_id && m->chunk_id > 0)
        return 0; /* sent twice by its producer */
    if (c && m->chunk_id == 0 && c->next_id > 0) {
        chunked_drop(d, c); /* the producer began anew */
        c = NULL;
    }
    if (!c && m->chunk_id == 0 && !(c = chunked_new(d, m)))
        return err_set(err, ERR_LIMIT, ERRC_DATA, "no memory for a chunked message of %u bytes", m->total_size);
    if (!c || m->chunk_id != c->next_id || m->n_chunks != c->n || e->len > c->buf->size - c->got) {
        if (c)
            chunked_drop(d, c);
        if (m->chunk_id + 1 < m->n_chunks)
            return 0; /* the last one tells */
        return err_set(err, ERR_NOT_FOUND, ERRC_DATA, "the first chunks of a message of %u are not there", m->n_chunks);
    }
    memcpy(c->buf->data + c->got, e->payload, e->len);
    c->got += e->len;
    if (++c->next_id < c->n)
        return 0;
    if (c->got != c->buf->size) {
        chunked_drop(d, c);
        return err_set(err, ERR_PROTO, ERRC_DATA, "the chunks of a message do not give its %u bytes", m->total_size);
    }
    *ret = buf_ref(c->buf);
    chunked_drop(d, c);
    return 0;
}

struct pulsar_decoder *pulsar_decoder_new(void)
{
    struct pulsar_decoder *d = xcalloc(1, sizeof(*d));

    TAILQ_INIT(&d->chunked);
    return d;
}

void pulsar_decoder_reset(struct pulsar_decoder *d)
{
    struct chunked *c;

    while ((c = TAILQ_FIRST(&d->chunked)))
        chunked_drop(d, c);
}

void pulsar_decoder_free(struct pulsar_decoder *d)
{
    if (!d)
        return;
    pulsar_decoder_reset(d);
    ZSTD_freeDCtx(d->zstd);
    free(d);
}

/* ---- all together --------------------------------------------------------------------------- */

static int decode_payload(struct pulsar_decoder *d, const struct pulsar_entry *e, struct buf *whole, struct wal_pos pos,
                          struct pulsar_msgs *out, struct err *err)
{
    const uint8_t *data = whole == e->frame ? e->payload : whole->data;
    size_t len = whole == e->frame ? e->len : whole->size;
    struct buf *b = NULL;
    int rc = inflate_to(d, &e->meta, whole, &data, &len, &b, err);

    if (rc)
        return rc;
    if (e->meta.batch && !e->meta.uuid)
        rc = split(pos, e->meta.n_msgs, b, data, len, out, err);
    else
        push(out, pos, b, data, len);
    buf_unref(b);
    return rc;
}

/* Nothing is appended on failure, but for a batch that is broken in the middle. */
static int decode_entry(struct pulsar_decoder *d, const struct pulsar_entry *e, struct pulsar_msgs *out,
                        struct err *err)
{
    struct buf *whole;
    struct wal_pos pos;
    int rc;

    if (!pulsar_pos(e->ledger, e->entry, 0, &pos) || e->meta.n_msgs > 1u << PULSAR_INDEX_BITS || e->meta.n_msgs == 0)
        return err_set(err, ERR_LIMIT, ERRC_DATA, "an id or a batch of %u messages beyond every measure",
                       e->meta.n_msgs);
    if (e->meta.encrypted)
        return err_set(err, ERR_UNSUPPORTED, ERRC_DATA,
                       "it is encrypted; encryption by the producer is not supported");
    if (e->meta.marker) {
        push(out, pos, NULL, NULL, 0);
        return 0;
    }
    if (!e->meta.uuid)
        return decode_payload(d, e, e->frame, pos, out, err);
    rc = join_chunk(d, e, &whole, err);
    if (rc)
        return rc;
    if (!whole) {
        push(out, pos, NULL, NULL, 0);
        return 0;
    }
    rc = decode_payload(d, e, whole, pos, out, err);
    buf_unref(whole);
    return rc;
}

int pulsar_decode(struct pulsar_decoder *d, const struct pulsar_entry *e, struct pulsar_msgs *out, struct err *err)
{
    size_t n = out->n, bytes = out->bytes;
    int rc = decode_entry(d, e, out, err);

    if (rc) {
        shrink(out, n, bytes);
        err_wrap(err, "entry %llu:%llu", (unsigned long long)e->ledger, (unsigned long long)e->entry);
    }
    return rc;
}
