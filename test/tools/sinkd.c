/*
 * sinkd - a stand-in for a target Milvus (a standby; with --plain an ordinary one) that only counts and acknowledges, so that a benchmark measures
 * milvus-cdc and not a target.  Plain HTTP/2 (gRPC) on one port, GET /stats, /brief and /reset on another.
 *
 *   sinkd --port N --stats-port M [--delay-ms D] [--channels C] [--listen ADDRESS] [--log FILE] [--plain]
 *
 * FILE gets a line for each ReplicateMessage: wall time in us of its first and its last byte, bytes of messages, channel,
 * user agent (which tells the sender and its epoch).
 *
 * Collections, partitions and databases that the client makes exist in memory with made-up ids and channels.
 */
#include <errno.h>
#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <nghttp2/nghttp2.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/time.h>

#include "milvus.pb-c.h"

enum {
    GRPC_PREFIX = 5, /* flag, length */
    STREAM_WINDOW = 4 << 20,
    CONN_WINDOW = 16 << 20,
    MSG_INSERT = 400,
    CODE_NO_COLLECTION = 100,
    CODE_INVALID = 1100,
    CODE_NO_STANDBY = 1900,
    OLD_UNEXPECTED = 1,
};
#define SERVICE "/milvus.proto.milvus.MilvusService/"

static struct options {
    int port, stats_port, delay_ms, channels;
    const char *listen, *log;
    bool plain;
} opt = {.channels = 4, .listen = "127.0.0.1"};

static FILE *request_log;

static struct event_base *base;

static void *must(void *p)
{
    if (!p) {
        fprintf(stderr, "sinkd: out of memory\n");
        exit(1);
    }
    return p;
}

/* ---- statistics ---- */

static struct stats {
    uint64_t requests, bytes, messages, inserts, rows;
    uint64_t first_us, last_us; /* wall time of the first and the last insert message */
    uint64_t *arrivals;         /* wall time of each insert message, in order of arrival */
    size_t arrivals_cap;
} stats;

static uint64_t now_us(void)
{
    struct timeval tv;

    gettimeofday(&tv, NULL);
    return (uint64_t)tv.tv_sec * 1000000 + (uint64_t)tv.tv_usec;
}

static void count_insert(uint64_t rows)
{
    uint64_t t = now_us();

    if (stats.inserts == stats.arrivals_cap) {
        stats.arrivals_cap = stats.arrivals_cap ? stats.arrivals_cap * 2 : 1024;
        stats.arrivals = must(realloc(stats.arrivals, stats.arrivals_cap * sizeof(*stats.arrivals)));
    }
    stats.arrivals[stats.inserts++] = t;
    stats.rows += rows;
    stats.last_us = t;
    if (!stats.first_us)
        stats.first_us = t;
}

/* arg is not NULL: without the arrivals, which are many. */
static void on_stats(struct evhttp_request *req, void *arg)
{
    json_t *arrivals = json_array();
    struct evbuffer *out = evbuffer_new();
    json_t *o;
    char *text;

    for (size_t i = 0; i < stats.inserts && !arg; i++)
        json_array_append_new(arrivals, json_integer((json_int_t)stats.arrivals[i]));
    o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "requests", (json_int_t)stats.requests, "bytes",
                  (json_int_t)stats.bytes, "messages", (json_int_t)stats.messages, "inserts",
                  (json_int_t)stats.inserts, "rows", (json_int_t)stats.rows, "first_us",
                  (json_int_t)stats.first_us, "last_us", (json_int_t)stats.last_us, "arrivals_us", arrivals);
    text = must(json_dumps(o, JSON_COMPACT));
    evbuffer_add(must(out), text, strlen(text));
    evhttp_send_reply(req, 200, "OK", out);
    evbuffer_free(out);
    free(text);
    json_decref(o);
}

static void on_reset(struct evhttp_request *req, void *arg)
{
    uint64_t *arrivals = stats.arrivals;
    size_t cap = stats.arrivals_cap;

    (void)arg;
    stats = (struct stats){.arrivals = arrivals, .arrivals_cap = cap};
    evhttp_send_reply(req, 200, "OK", NULL);
}

/* ---- scanning protobuf without unpacking ---- */

struct span {
    const uint8_t *p, *end;
};

static bool scan_varint(struct span *s, uint64_t *ret)
{
    uint64_t v = 0;

    for (unsigned shift = 0; s->p < s->end && shift < 64; shift += 7) {
        uint8_t b = *s->p++;

        v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) {
            *ret = v;
            return true;
        }
    }
    return false;
}

/* One field: *ret_value for a varint, *ret_sub for a length-delimited one. */
static bool scan_field(struct span *s, uint32_t *ret_no, uint64_t *ret_value, struct span *ret_sub)
{
    uint64_t tag, len;

    *ret_value = 0;
    *ret_sub = (struct span){0};
    if (s->p == s->end || !scan_varint(s, &tag))
        return false;
    *ret_no = (uint32_t)(tag >> 3);
    switch (tag & 7) {
    case 0:
        return scan_varint(s, ret_value);
    case 1:
        len = 8;
        break;
    case 5:
        len = 4;
        break;
    default:
        if (!scan_varint(s, &len))
            return false;
    }
    if (len > (uint64_t)(s->end - s->p))
        return false;
    *ret_sub = (struct span){s->p, s->p + len};
    s->p += len;
    return true;
}

/* InsertRequest: base 1 {msg_type 1}, num_rows 14. */
static void count_message(struct span msg)
{
    uint64_t value, type = 0, rows = 0, ignored;
    struct span sub, nothing;
    uint32_t no, inner;

    while (scan_field(&msg, &no, &value, &sub)) {
        if (no == 14)
            rows = value;
        if (no == 1 && sub.p && scan_field(&sub, &inner, &ignored, &nothing) && inner == 1)
            type = ignored;
        if (type && type != MSG_INSERT)
            break;
    }
    stats.messages++;
    if (type == MSG_INSERT)
        count_insert(rows);
}

/* ---- the catalog ---- */

struct partition {
    int64_t id;
    char *name;
};

struct collection {
    struct collection *next;
    char *db, *name;
    int64_t id;
    int32_t shards;
    int first_channel;
    Pb__CollectionSchema *schema;
    struct partition *partitions;
    size_t n_partitions;
};

static struct collection *collections;
static char **databases;
static size_t n_databases;
static int64_t next_id = 9000001;
static int next_channel; /* of the next collection's first shard */

static struct collection **find_collection(const char *db, const char *name)
{
    struct collection **c = &collections;

    while (*c && !(strcmp((*c)->db, db) == 0 && strcmp((*c)->name, name) == 0))
        c = &(*c)->next;
    return c;
}

static void add_partition(struct collection *c, const char *name)
{
    for (size_t i = 0; i < c->n_partitions; i++)
        if (strcmp(c->partitions[i].name, name) == 0)
            return;
    c->partitions = must(realloc(c->partitions, (c->n_partitions + 1) * sizeof(*c->partitions)));
    c->partitions[c->n_partitions++] = (struct partition){next_id++, must(strdup(name))};
}

static void add_database(const char *name)
{
    for (size_t i = 0; i < n_databases; i++)
        if (strcmp(databases[i], name) == 0)
            return;
    databases = must(realloc(databases, (n_databases + 1) * sizeof(*databases)));
    databases[n_databases++] = must(strdup(name));
}

static void free_collection(struct collection **at)
{
    struct collection *c = *at;

    if (!c)
        return;
    *at = c->next;
    for (size_t i = 0; i < c->n_partitions; i++)
        free(c->partitions[i].name);
    pb__collection_schema__free_unpacked(c->schema, NULL);
    free(c->partitions);
    free(c->db);
    free(c->name);
    free(c);
}

static void make_collection(const char *db, const Pb__CreateCollectionRequest *req)
{
    Pb__CollectionSchema *schema = pb__collection_schema__unpack(NULL, req->schema.len, req->schema.data);
    struct collection *c;
    bool keyed = false;
    char name[32];

    if (*find_collection(db, req->collection_name) || !schema) {
        if (schema)
            pb__collection_schema__free_unpacked(schema, NULL);
        return;
    }
    c = must(calloc(1, sizeof(*c)));
    c->db = must(strdup(db));
    c->name = must(strdup(req->collection_name));
    c->schema = schema;
    c->id = next_id++;
    c->shards = req->shards_num > 0 ? req->shards_num : 1;
    c->first_channel = next_channel++ % opt.channels;
    for (size_t i = 0; i < schema->n_fields; i++) {
        schema->fields[i]->field_id = 100 + (int64_t)i;
        keyed = keyed || schema->fields[i]->is_partition_key;
    }
    for (int64_t i = 0; keyed && i < req->num_partitions; i++) {
        snprintf(name, sizeof(name), "_default_%" PRId64, i);
        add_partition(c, name);
    }
    if (!keyed)
        add_partition(c, "_default");
    c->next = collections;
    collections = c;
}

/* ---- answers: packed into a heap block, *ret_len long ---- */

static uint8_t *pack(const ProtobufCMessage *m, size_t *ret_len)
{
    size_t len = protobuf_c_message_get_packed_size(m);
    uint8_t *out = must(malloc(len + 1));

    *ret_len = protobuf_c_message_pack(m, out);
    return out;
}

/* The text for a missing collection is that of real servers: some clients look for its words, not for the code. */
static uint8_t *answer_failed(int32_t code, size_t *ret_len)
{
    Pb__Status st = PB__STATUS__INIT;
    Pb__StatusResponse r = PB__STATUS_RESPONSE__INIT;

    st.error_code = OLD_UNEXPECTED;
    st.code = code;
    st.reason = (char *)(code == CODE_NO_COLLECTION ? "collection not found" : "sinkd: a bad request");
    r.status = &st;
    return pack(&r.base, ret_len);
}

/* Empty: a Status of success, as the answer itself or as its field 1. */
static uint8_t *answer_ok(size_t *ret_len)
{
    *ret_len = 0;
    return must(malloc(1));
}

static uint8_t *answer_describe(const struct collection *c, size_t *ret_len)
{
    Pb__DescribeCollectionResponse r = PB__DESCRIBE_COLLECTION_RESPONSE__INIT;
    char v[64][96], p[64][64];
    char *vs[64], *ps[64];

    for (int i = 0; i < c->shards && i < 64; i++) {
        snprintf(p[i], sizeof(p[i]), "sink-rootcoord-dml_%d", (c->first_channel + i) % opt.channels);
        snprintf(v[i], sizeof(v[i]), "%s_%" PRId64 "v%d", p[i], c->id, i);
        vs[i] = v[i];
        ps[i] = p[i];
    }
    r.schema = c->schema;
    r.collection_id = c->id;
    r.shards_num = c->shards;
    r.n_virtual_channel_names = r.n_physical_channel_names = (size_t)(c->shards < 64 ? c->shards : 64);
    r.virtual_channel_names = vs;
    r.physical_channel_names = ps;
    return pack(&r.base, ret_len);
}

static uint8_t *answer_partitions(const struct collection *c, size_t *ret_len)
{
    Pb__ShowPartitionsResponse r = PB__SHOW_PARTITIONS_RESPONSE__INIT;
    char **names = must(calloc(c->n_partitions + 1, sizeof(*names)));
    int64_t *ids = must(calloc(c->n_partitions + 1, sizeof(*ids)));
    uint8_t *out;

    for (size_t i = 0; i < c->n_partitions; i++) {
        names[i] = c->partitions[i].name;
        ids[i] = c->partitions[i].id;
    }
    r.n_partition_names = r.n_partition_ids = c->n_partitions;
    r.partition_names = names;
    r.partition_ids = ids;
    out = pack(&r.base, ret_len);
    free(names);
    free(ids);
    return out;
}

static uint8_t *answer_databases(size_t *ret_len)
{
    Pb__ListDatabasesResponse r = PB__LIST_DATABASES_RESPONSE__INIT;

    r.n_db_names = n_databases;
    r.db_names = databases;
    return pack(&r.base, ret_len);
}

/* ReplicateMessageRequest: channel_name 2, Msgs 5. */
static uint8_t *answer_replicate(struct span body, struct span *ret_channel, size_t *ret_len)
{
    Pb__ReplicateMessageResponse r = PB__REPLICATE_MESSAGE_RESPONSE__INIT;
    bool named = false;
    uint64_t value;
    struct span sub;
    uint32_t no;

    stats.bytes += (uint64_t)(body.end - body.p);
    while (scan_field(&body, &no, &value, &sub)) {
        if (no == 2 && sub.end > sub.p) {
            named = true;
            *ret_channel = sub;
        }
        if (no == 5)
            count_message(sub);
    }
    if (!named)
        return answer_failed(CODE_INVALID, ret_len);
    stats.requests++;
    r.position = (char *)"AAAAAAAAAAA=";
    return pack(&r.base, ret_len);
}

static size_t put_varint(uint8_t *p, uint64_t v)
{
    size_t n = 0;

    for (; v > 0x7f; v >>= 7)
        p[n++] = (uint8_t)(v | 0x80);
    p[n++] = (uint8_t)v;
    return n;
}

/* Insert and Upsert: num_rows 7. The answer counts them as insert_cnt 6 or upsert_cnt 8. */
static uint8_t *answer_rows(bool upsert, struct span body, size_t *ret_len)
{
    uint8_t *out = must(malloc(16));
    uint64_t value, rows = 0;
    struct span sub;
    uint32_t no;

    stats.requests++;
    stats.messages++;
    stats.bytes += (uint64_t)(body.end - body.p);
    while (scan_field(&body, &no, &value, &sub))
        if (no == 7)
            rows = value;
    count_insert(rows);
    out[0] = upsert ? 8 << 3 : 6 << 3;
    *ret_len = 1 + put_varint(out + 1, rows);
    return out;
}

static uint8_t *answer_delete(struct span body, size_t *ret_len)
{
    stats.requests++;
    stats.messages++;
    stats.bytes += (uint64_t)(body.end - body.p);
    return answer_ok(ret_len);
}

static const char *database_of(const char *in_body, const char *in_header)
{
    return in_body && *in_body ? in_body : in_header && *in_header ? in_header : "default";
}

static uint8_t *answer_create(struct span b, const char *header_db, size_t *ret_len)
{
    Pb__CreateCollectionRequest *req = pb__create_collection_request__unpack(NULL, (size_t)(b.end - b.p), b.p);

    if (!req)
        return answer_failed(CODE_INVALID, ret_len);
    make_collection(database_of(req->db_name, header_db), req);
    pb__create_collection_request__free_unpacked(req, NULL);
    return answer_ok(ret_len);
}

static uint8_t *answer_create_database(struct span b, size_t *ret_len)
{
    Pb__CreateDatabaseRequest *req = pb__create_database_request__unpack(NULL, (size_t)(b.end - b.p), b.p);

    if (!req)
        return answer_failed(CODE_INVALID, ret_len);
    add_database(req->db_name);
    pb__create_database_request__free_unpacked(req, NULL);
    return answer_ok(ret_len);
}

/* Requests that name a collection, and perhaps a partition: db_name 2, collection_name 3, partition_name 4. */
static uint8_t *answer_about(const char *method, struct span b, const char *header_db, size_t *ret_len)
{
    Pb__PartitionRequest *req = pb__partition_request__unpack(NULL, (size_t)(b.end - b.p), b.p);
    struct collection **c;
    uint8_t *out;

    if (!req)
        return answer_ok(ret_len);
    c = find_collection(database_of(req->db_name, header_db), req->collection_name);
    if (strcmp(method, "DropCollection") == 0) {
        free_collection(c);
        out = answer_ok(ret_len);
    } else if (!*c) {
        out = answer_failed(CODE_NO_COLLECTION, ret_len);
    } else if (strcmp(method, "DescribeCollection") == 0) {
        out = answer_describe(*c, ret_len);
    } else if (strcmp(method, "ShowPartitions") == 0) {
        out = answer_partitions(*c, ret_len);
    } else {
        if (strcmp(method, "CreatePartition") == 0)
            add_partition(*c, req->partition_name);
        out = answer_ok(ret_len);
    }
    pb__partition_request__free_unpacked(req, NULL);
    return out;
}

static uint8_t *answer(const char *method, const char *header_db, struct span body, struct span *ret_channel,
                       size_t *ret_len)
{
    static const char *const about[] = {"DescribeCollection", "ShowPartitions", "CreatePartition", "DropPartition",
                                        "DropCollection"};

    if (strcmp(method, "ReplicateMessage") == 0 && opt.plain)
        return answer_failed(CODE_NO_STANDBY, ret_len);
    if (strcmp(method, "Insert") == 0 || strcmp(method, "Upsert") == 0)
        return answer_rows(*method == 'U', body, ret_len);
    if (strcmp(method, "Delete") == 0)
        return answer_delete(body, ret_len);
    if (strcmp(method, "ReplicateMessage") == 0)
        return answer_replicate(body, ret_channel, ret_len);
    if (strcmp(method, "CreateCollection") == 0)
        return answer_create(body, header_db, ret_len);
    if (strcmp(method, "ListDatabases") == 0)
        return answer_databases(ret_len);
    if (strcmp(method, "CreateDatabase") == 0)
        return answer_create_database(body, ret_len);
    for (size_t i = 0; i < sizeof(about) / sizeof(*about); i++)
        if (strcmp(method, about[i]) == 0)
            return answer_about(method, body, header_db, ret_len);
    return answer_ok(ret_len); /* Connect, CreateIndex, LoadCollection, Flush ... */
}

/* ---- HTTP/2 ---- */

struct conn {
    nghttp2_session *session;
    struct bufferevent *bev;
    LIST_HEAD(, stream) streams;
};

struct stream {
    LIST_ENTRY(stream) entry; /* in conn */
    struct conn *conn;
    int32_t id;
    char *method, *db, *agent;
    uint64_t first_us;
    uint8_t *body; /* with the gRPC prefix */
    size_t len, cap;
    uint8_t *reply;
    size_t reply_len, reply_sent;
    struct event *timer;
};

static void stream_free(struct stream *s)
{
    LIST_REMOVE(s, entry);
    if (s->timer)
        event_free(s->timer);
    free(s->method);
    free(s->agent);
    free(s->db);
    free(s->body);
    free(s->reply);
    free(s);
}

static ssize_t on_read_reply(nghttp2_session *session, int32_t id, uint8_t *buf, size_t len, uint32_t *flags,
                             nghttp2_data_source *source, void *arg)
{
    struct stream *s = source->ptr;
    size_t n = s->reply_len - s->reply_sent;
    nghttp2_nv trailer = {(uint8_t *)"grpc-status", (uint8_t *)"0", 11, 1, NGHTTP2_NV_FLAG_NONE};

    (void)arg;
    n = n < len ? n : len;
    memcpy(buf, s->reply + s->reply_sent, n);
    s->reply_sent += n;
    if (s->reply_sent == s->reply_len) {
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        nghttp2_submit_trailer(session, id, &trailer, 1);
    }
    return (ssize_t)n;
}

static void send_reply(struct stream *s)
{
    nghttp2_data_provider data = {.source.ptr = s, .read_callback = on_read_reply};
    nghttp2_nv headers[] = {
        {(uint8_t *)":status", (uint8_t *)"200", 7, 3, NGHTTP2_NV_FLAG_NONE},
        {(uint8_t *)"content-type", (uint8_t *)"application/grpc", 12, 16, NGHTTP2_NV_FLAG_NONE},
    };

    nghttp2_submit_response(s->conn->session, s->id, headers, 2, &data);
}

static void on_delay_over(evutil_socket_t fd, short what, void *arg)
{
    struct stream *s = arg;

    (void)fd;
    (void)what;
    send_reply(s);
    nghttp2_session_send(s->conn->session);
}

static void log_request(const struct stream *s, struct span channel)
{
    if (!request_log || !channel.p)
        return;
    fprintf(request_log, "%" PRIu64 " %" PRIu64 " %zu %.*s %s\n", s->first_us, now_us(), s->len,
            (int)(channel.end - channel.p), (const char *)channel.p, s->agent ? s->agent : "");
    fflush(request_log);
}

static void on_request(struct stream *s)
{
    struct span body = {s->body + GRPC_PREFIX, s->body + s->len}, channel = {0};
    struct timeval delay = {opt.delay_ms / 1000, opt.delay_ms % 1000 * 1000};
    uint8_t *message;
    size_t len;

    if (!s->method || s->len < GRPC_PREFIX) {
        nghttp2_submit_rst_stream(s->conn->session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_PROTOCOL_ERROR);
        return;
    }
    message = answer(s->method, s->db, body, &channel, &len);
    log_request(s, channel);
    free(s->body);
    s->body = NULL;
    s->reply_len = GRPC_PREFIX + len;
    s->reply = must(malloc(s->reply_len));
    s->reply[0] = 0;
    for (int i = 0; i < 4; i++)
        s->reply[1 + i] = (uint8_t)(len >> (24 - 8 * i));
    memcpy(s->reply + GRPC_PREFIX, message, len);
    free(message);
    if (!opt.delay_ms) {
        send_reply(s);
        return;
    }
    s->timer = must(evtimer_new(base, on_delay_over, s));
    evtimer_add(s->timer, &delay);
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
    struct stream *s;

    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    s = must(calloc(1, sizeof(*s)));
    s->conn = arg;
    LIST_INSERT_HEAD(&s->conn->streams, s, entry);
    s->id = frame->hd.stream_id;
    s->first_us = now_us();
    nghttp2_session_set_stream_user_data(session, s->id, s);
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t namelen,
                     const uint8_t *value, size_t valuelen, uint8_t flags, void *arg)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    const size_t skip = strlen(SERVICE);

    (void)flags;
    (void)arg;
    if (!s)
        return 0;
    if (namelen == 5 && memcmp(name, ":path", 5) == 0 && valuelen > skip && memcmp(value, SERVICE, skip) == 0)
        s->method = must(strndup((const char *)value + skip, valuelen - skip));
    if (namelen == 10 && memcmp(name, "user-agent", 10) == 0 && !s->agent)
        s->agent = must(strndup((const char *)value, valuelen));
    if (namelen == 6 && memcmp(name, "dbname", 6) == 0 && !s->db)
        s->db = must(strndup((const char *)value, valuelen));
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t len, void *arg)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);

    (void)flags;
    (void)arg;
    if (!s)
        return 0;
    if (s->len + len > s->cap) {
        s->cap = (s->len + len) * 2;
        s->body = must(realloc(s->body, s->cap));
    }
    memcpy(s->body + s->len, data, len);
    s->len += len;
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

    (void)arg;
    if (s && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) &&
        (frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS))
        on_request(s);
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *arg)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);

    (void)code;
    (void)arg;
    if (s)
        stream_free(s);
    return 0;
}

static ssize_t on_send(nghttp2_session *session, const uint8_t *data, size_t len, int flags, void *arg)
{
    struct conn *c = arg;

    (void)session;
    (void)flags;
    return bufferevent_write(c->bev, data, len) ? NGHTTP2_ERR_CALLBACK_FAILURE : (ssize_t)len;
}

static void conn_free(struct conn *c)
{
    while (!LIST_EMPTY(&c->streams))
        stream_free(LIST_FIRST(&c->streams));
    nghttp2_session_del(c->session); /* tells of no stream */
    bufferevent_free(c->bev);
    free(c);
}

static void on_readable(struct bufferevent *bev, void *arg)
{
    struct conn *c = arg;
    struct evbuffer *in = bufferevent_get_input(bev);
    struct evbuffer_iovec v;

    while (evbuffer_peek(in, -1, NULL, &v, 1) > 0 && v.iov_len) {
        ssize_t n = nghttp2_session_mem_recv(c->session, v.iov_base, v.iov_len);

        if (n < 0) {
            fprintf(stderr, "sinkd: %s\n", nghttp2_strerror((int)n));
            conn_free(c);
            return;
        }
        evbuffer_drain(in, (size_t)n);
    }
    nghttp2_session_send(c->session);
}

static void on_conn_event(struct bufferevent *bev, short what, void *arg)
{
    (void)bev;
    if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR))
        conn_free(arg);
}

static nghttp2_session_callbacks *callbacks(void)
{
    static nghttp2_session_callbacks *cbs;

    if (cbs)
        return cbs;
    nghttp2_session_callbacks_new(&cbs);
    nghttp2_session_callbacks_set_on_begin_headers_callback(cbs, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(cbs, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cbs, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cbs, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cbs, on_stream_close);
    nghttp2_session_callbacks_set_send_callback(cbs, on_send);
    return cbs;
}

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *sa, int len, void *arg)
{
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW},
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1000},
    };
    struct conn *c = must(calloc(1, sizeof(*c)));
    int one = 1;

    (void)l;
    (void)sa;
    (void)len;
    (void)arg;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    c->bev = must(bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE));
    bufferevent_set_max_single_read(c->bev, 256 << 10);
    bufferevent_setcb(c->bev, on_readable, NULL, on_conn_event, c);
    nghttp2_session_server_new(&c->session, callbacks(), c);
    nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 2);
    nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, CONN_WINDOW);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
    nghttp2_session_send(c->session);
}

/* ---- start ---- */

static int usage(void)
{
    fprintf(stderr, "usage: sinkd --port N --stats-port M [--delay-ms D] [--channels C] [--listen ADDRESS] [--log FILE]\n");
    return 2;
}

static bool read_options(int argc, char **argv)
{
    static const struct option table[] = {
        {"port", required_argument, NULL, 'p'},     {"stats-port", required_argument, NULL, 's'},
        {"delay-ms", required_argument, NULL, 'd'}, {"channels", required_argument, NULL, 'c'},
        {"listen", required_argument, NULL, 'l'},   {"log", required_argument, NULL, 'o'},
        {"plain", no_argument, NULL, 'n'},
        {NULL, 0, NULL, 0},
    };
    int c;

    while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
        int *where = c == 'p' ? &opt.port : c == 's' ? &opt.stats_port : c == 'd' ? &opt.delay_ms
                   : c == 'c' ? &opt.channels : NULL;

        if (where)
            *where = atoi(optarg);
        else if (c == 'l')
            opt.listen = optarg;
        else if (c == 'o')
            opt.log = optarg;
        else if (c == 'n')
            opt.plain = true;
        else
            return false;
    }
    return opt.port > 0 && opt.stats_port > 0 && opt.channels > 0 && opt.delay_ms >= 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in sin = {.sin_family = AF_INET};
    struct evhttp *http;

    if (!read_options(argc, argv))
        return usage();
    base = must(event_base_new());
    add_database("default");
    if (inet_pton(AF_INET, opt.listen, &sin.sin_addr) != 1)
        return usage();
    if (opt.log)
        request_log = must(fopen(opt.log, "a"));
    sin.sin_port = htons((uint16_t)opt.port);
    http = must(evhttp_new(base));
    evhttp_set_cb(http, "/stats", on_stats, NULL);
    evhttp_set_cb(http, "/brief", on_stats, base);
    evhttp_set_cb(http, "/reset", on_reset, NULL);
    if (!evconnlistener_new_bind(base, on_accept, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, -1,
                                 (struct sockaddr *)&sin, sizeof(sin)) ||
        evhttp_bind_socket(http, "127.0.0.1", (uint16_t)opt.stats_port)) {
        fprintf(stderr, "sinkd: cannot listen on port %d or %d: %s\n", opt.port, opt.stats_port, strerror(errno));
        return 1;
    }
    event_base_dispatch(base);
    return 0;
}
