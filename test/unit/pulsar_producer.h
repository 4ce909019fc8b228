/*
 * pulsar_producer.h - builds Pulsar's frames as a producer or broker does, and a small blocking producer for live
 * tests.
 */
#ifndef TEST_PULSAR_PRODUCER_H
#define TEST_PULSAR_PRODUCER_H
#include <arpa/inet.h>
#include <lz4.h>
#include <snappy-c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "base/mem.h"
#include "base/pbwire.h"
#include "wal/crc32c_priv.h"
#include "wal/pulsar_priv.h"

struct pp_meta {
    int compression;
    int batch; /* 0: not a batch; else its messages */
    uint32_t uncompressed_size;
    bool encrypted, marker;
    const char *uuid;
    int n_chunks, chunk_id, total_size;
};

static inline void pp_u32(struct pb_out *o, uint32_t v)
{
    uint8_t b[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};

    pb_out_raw(o, b, 4);
}

/* Checksum, metadata and payload of an entry. */
static inline void pp_entry(struct pb_out *out, const struct pp_meta *m, uint64_t seq, const void *payload, size_t len)
{
    Pulsar__MessageMetadata md = PULSAR__MESSAGE_METADATA__INIT;
    struct pb_out body = {0};
    uint8_t packed[512];

    md.producer_name = (char *)(uintptr_t)"test";
    md.sequence_id = seq;
    md.publish_time = 1;
    if (m->compression) {
        md.has_compression = md.has_uncompressed_size = true;
        md.compression = m->compression;
        md.uncompressed_size = m->uncompressed_size;
    }
    md.has_num_messages_in_batch = m->batch != 0;
    md.num_messages_in_batch = m->batch;
    md.encryption_algo = m->encrypted ? (char *)(uintptr_t)"AES" : NULL;
    md.has_marker_type = m->marker;
    if (m->uuid) {
        md.uuid = (char *)(uintptr_t)m->uuid;
        md.has_num_chunks_from_msg = md.has_total_chunk_msg_size = md.has_chunk_id = true;
        md.num_chunks_from_msg = m->n_chunks;
        md.total_chunk_msg_size = m->total_size;
        md.chunk_id = m->chunk_id;
    }
    if (pulsar__message_metadata__get_packed_size(&md) > sizeof(packed))
        abort();
    pp_u32(&body, (uint32_t)pulsar__message_metadata__get_packed_size(&md));
    pb_out_raw(&body, packed, pulsar__message_metadata__pack(&md, packed));
    if (len)
        pb_out_raw(&body, payload, len);
    pb_out_raw(out, "\x0e\x01", 2);
    pp_u32(out, crc32c_extend(0, body.data, body.len));
    pb_out_raw(out, body.data, body.len);
    pb_out_release(&body);
}

/* One message of a batch. */
static inline void pp_single(struct pb_out *out, const void *data, size_t len, bool compacted_out)
{
    Pulsar__KeyValue kv = PULSAR__KEY_VALUE__INIT, *kvs = &kv;
    Pulsar__SingleMessageMetadata md = PULSAR__SINGLE_MESSAGE_METADATA__INIT;
    uint8_t packed[128];
    size_t n;

    kv.key = kv.value = (char *)(uintptr_t)"trace";
    md.n_properties = 1;
    md.properties = &kvs;
    md.payload_size = (int32_t)len;
    md.has_compacted_out = md.compacted_out = compacted_out;
    n = pulsar__single_message_metadata__pack(&md, packed);
    pp_u32(out, (uint32_t)n);
    pb_out_raw(out, packed, n);
    if (len)
        pb_out_raw(out, data, len);
}

/* The payload compressed: freed by the caller. */
static inline uint8_t *pp_compress(int compression, const void *data, size_t len, size_t *ret_len)
{
    size_t cap = len * 2 + 1024;
    uint8_t *out = xmalloc(cap);
    uLongf zn = cap;

    *ret_len = cap;
    if (compression == 1) {
        *ret_len = (size_t)LZ4_compress_default(data, (char *)out, (int)len, (int)cap);
    } else if (compression == 2) {
        if (compress(out, &zn, data, len) != Z_OK)
            abort();
        *ret_len = zn;
    } else if (compression == 3) {
        *ret_len = ZSTD_compress(out, cap, data, len, 1);
    } else if (compression == 4) {
        if (snappy_compress(data, len, (char *)out, ret_len) != SNAPPY_OK)
            abort();
    } else {
        memcpy(out, data, len);
        *ret_len = len;
    }
    return out;
}

/* ---- a blocking producer: one topic --------------------------------------------------------- */

struct pp {
    int fd;
    uint64_t seq, acked;
    struct wal_pos last; /* of the last acknowledged entry */
};

static inline int pp_recv_all(int fd, void *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t got = recv(fd, (char *)p + at, n - at, 0);

        if (got <= 0)
            return -1;
        at += (size_t)got;
    }
    return 0;
}

static inline int pp_send_all(int fd, const void *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t put = send(fd, (const char *)p + at, n - at, MSG_NOSIGNAL);

        if (put <= 0)
            return -1;
        at += (size_t)put;
    }
    return 0;
}

static inline int pp_command(int fd, const Pulsar__BaseCommand *cmd, const void *payload, size_t len)
{
    struct pb_out o = {0};
    int rc;

    pulsar_frame_write(&o, cmd, payload, len);
    rc = pp_send_all(fd, o.data, o.len);
    pb_out_release(&o);
    return rc;
}

/* The next command; pings are answered. NULL: connection lost. */
static inline Pulsar__BaseCommand *pp_next(int fd)
{
    Pulsar__BaseCommand pong = PULSAR__BASE_COMMAND__INIT, *cmd;
    Pulsar__CommandPong empty = PULSAR__COMMAND_PONG__INIT;
    const uint8_t *rest;
    uint8_t head[4], *data;
    size_t len, rest_len;
    struct err err;

    for (;;) {
        if (pp_recv_all(fd, head, 4))
            return NULL;
        len = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
        data = xmalloc(len);
        cmd = pp_recv_all(fd, data, len) ? NULL : pulsar_frame_parse(data, len, &rest, &rest_len, &err);
        free(data);
        if (!cmd || cmd->type != PULSAR__BASE_COMMAND__TYPE__PING)
            return cmd;
        pulsar_command_free(cmd);
        pong.type = PULSAR__BASE_COMMAND__TYPE__PONG;
        pong.pong = &empty;
        if (pp_command(fd, &pong, NULL, 0))
            return NULL;
    }
}

/* Reads until that type; -1: an error or something else came. */
static inline int pp_expect(int fd, Pulsar__BaseCommand__Type type)
{
    Pulsar__BaseCommand *cmd = pp_next(fd);
    int ok = cmd && cmd->type == type;

    if (cmd && cmd->type == PULSAR__BASE_COMMAND__TYPE__ERROR)
        fprintf(stderr, "producer: %s\n", cmd->error->message);
    pulsar_command_free(cmd);
    return ok ? 0 : -1;
}

/* address "127.0.0.1:port". -1: not now. */
static inline int pp_open(struct pp *p, const char *address, const char *token, const char *topic)
{
    struct sockaddr_in sa = {.sin_family = AF_INET};
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;
    Pulsar__CommandConnect c = PULSAR__COMMAND_CONNECT__INIT;
    Pulsar__CommandLookupTopic l = PULSAR__COMMAND_LOOKUP_TOPIC__INIT;
    Pulsar__CommandProducer a = PULSAR__COMMAND_PRODUCER__INIT;
    char full[300];

    *p = (struct pp){.fd = socket(AF_INET, SOCK_STREAM, 0)};
    snprintf(full, sizeof(full), "persistent://public/default/%s", topic);
    sa.sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1));
    inet_pton(AF_INET, "127.0.0.1", &sa.sin_addr);
    c.client_version = (char *)(uintptr_t)"test";
    c.has_protocol_version = true;
    c.protocol_version = 19;
    c.auth_method_name = (char *)(uintptr_t)(token ? "token" : "none");
    if (token) {
        c.has_auth_data = true;
        c.auth_data = (ProtobufCBinaryData){strlen(token), (uint8_t *)(uintptr_t)token};
    }
    cmd.type = PULSAR__BASE_COMMAND__TYPE__CONNECT;
    cmd.connect = &c;
    if (connect(p->fd, (struct sockaddr *)&sa, sizeof(sa)) || pp_command(p->fd, &cmd, NULL, 0) ||
        pp_expect(p->fd, PULSAR__BASE_COMMAND__TYPE__CONNECTED))
        goto fail;
    l.topic = full;
    l.request_id = 1;
    cmd = (Pulsar__BaseCommand)PULSAR__BASE_COMMAND__INIT;
    cmd.type = PULSAR__BASE_COMMAND__TYPE__LOOKUP;
    cmd.lookup = &l;
    if (pp_command(p->fd, &cmd, NULL, 0) || pp_expect(p->fd, PULSAR__BASE_COMMAND__TYPE__LOOKUP_RESPONSE))
        goto fail;
    a.topic = full;
    a.producer_id = 1;
    a.request_id = 2;
    cmd = (Pulsar__BaseCommand)PULSAR__BASE_COMMAND__INIT;
    cmd.type = PULSAR__BASE_COMMAND__TYPE__PRODUCER;
    cmd.producer = &a;
    if (pp_command(p->fd, &cmd, NULL, 0) == 0 && pp_expect(p->fd, PULSAR__BASE_COMMAND__TYPE__PRODUCER_SUCCESS) == 0)
        return 0;
fail:
    close(p->fd);
    p->fd = -1;
    return -1;
}

/* Takes one receipt. */
static inline int pp_receipt(struct pp *p)
{
    Pulsar__BaseCommand *cmd = pp_next(p->fd);
    int rc = -1;

    if (cmd && cmd->type == PULSAR__BASE_COMMAND__TYPE__SEND_RECEIPT && cmd->send_receipt &&
        cmd->send_receipt->message_id) {
        p->acked++;
        (void)pulsar_pos(cmd->send_receipt->message_id->ledger_id, cmd->send_receipt->message_id->entry_id, 0,
                         &p->last);
        rc = 0;
    }
    pulsar_command_free(cmd);
    return rc;
}

static inline int pp_flush(struct pp *p)
{
    while (p->acked < p->seq)
        if (pp_receipt(p))
            return -1;
    return 0;
}

/* One entry; at most 50 are under way. */
static inline int pp_send(struct pp *p, const struct pp_meta *m, const void *payload, size_t len)
{
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;
    Pulsar__CommandSend a = PULSAR__COMMAND_SEND__INIT;
    struct pb_out entry = {0};
    int rc;

    a.producer_id = 1;
    a.sequence_id = p->seq++;
    a.has_num_messages = true;
    a.num_messages = m->batch ? m->batch : 1;
    a.has_is_chunk = a.is_chunk = m->uuid != NULL;
    cmd.type = PULSAR__BASE_COMMAND__TYPE__SEND;
    cmd.send = &a;
    pp_entry(&entry, m, a.sequence_id, payload, len);
    rc = pp_command(p->fd, &cmd, entry.data, entry.len);
    pb_out_release(&entry);
    while (rc == 0 && p->seq - p->acked > 50)
        rc = pp_receipt(p);
    return rc;
}

static inline void pp_close(struct pp *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
}
#endif
