/*
 * test_pulsar.c - the Pulsar port against a scripted broker on the same loop, and its decoding on the fuzz corpus.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>

#include "../fuzz/fuzz_pulsar.c"
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "pulsar_producer.h"
#include "wal/pulsar.h"

#define CORPUS "test/fuzz/corpus/pulsar"
#define LIMIT_MS 15000
#define TOPIC "persistent://public/default/t"
#define WAIT_FOR(cond)                                                                            \
    do {                                                                                          \
        uint64_t end_ = clock_mono_ms() + LIMIT_MS;                                               \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > end_)                                                           \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            turn();                                                                               \
        }                                                                                         \
    } while (0)

/* ---- the broker ---- */

enum { MAX_PEERS = 300, MAX_ENTRIES = 300, MAX_SUBS = 16 };

struct peer_sub {
    uint64_t id;
    size_t next; /* of the entries */
    int64_t permits;
    bool durable;
};

struct peer {
    int fd;
    int broker;
    uint8_t in[1 << 16];
    size_t n_in;
    struct pb_out out;
    size_t sent;
    struct peer_sub subs[MAX_SUBS];
    size_t n_subs;
};

static struct fake {
    int listener[2];
    uint16_t port[2];
    struct peer *peers[MAX_PEERS];
    size_t n_peers, n_alive;
    struct {
        uint64_t ledger, entry;
        uint32_t n_msgs;
        struct pb_out bytes;
    } log[MAX_ENTRIES];
    size_t n_log;
    /* the script */
    bool old;             /* without the flag for metadata */
    int partitions;
    bool no_topic;
    int redirects;        /* look-ups that lead to the other broker first; -1: always */
    bool proxy;
    int lookup_errors, lookup_code;
    int subscribe_errors, subscribe_code;
    int unsubscribe_code;
    int connect_code;
    bool challenge, mute_lookup, mute_ping, bad_greeting, huge_frame;
    size_t cut_after;     /* bytes of the next connection, then it is closed; 0: never */
    size_t step;          /* bytes per turn; 0: all */
    int bad_checksums;    /* entries sent so */
    bool last_is_none;
    /* what was seen */
    size_t bytes_sent, n_metadata, n_topics, n_lookups, n_flows, n_close, n_unsubscribe, n_pings, n_pongs;
    uint64_t permits;
    bool authoritative, answered_challenge, asked_creation;
    char proxied[100], auth[100], subscription[100];
    int broker_of_subscribe;
    struct {
        uint64_t ledger, entry, at_ms;
    } acks[20];
    size_t n_acks;
} *fake;

static struct loop *loop;
static struct wal_port *port;
static char address[64];

static int listen_on(uint16_t *ret_port)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(sa);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&sa, len) == 0 && listen(fd, 50) == 0);
    getsockname(fd, (struct sockaddr *)&sa, &len);
    *ret_port = ntohs(sa.sin_port);
    return fd;
}

static void add_entry(uint64_t ledger, uint64_t entry, const struct pp_meta *m, const void *data, size_t len)
{
    assert_true(fake->n_log < MAX_ENTRIES);
    fake->log[fake->n_log].ledger = ledger;
    fake->log[fake->n_log].entry = entry;
    fake->log[fake->n_log].n_msgs = m->batch ? (uint32_t)m->batch : 1;
    pp_entry(&fake->log[fake->n_log].bytes, m, entry, data, len);
    fake->n_log++;
}

/* Entries first .. first + n - 1 of a ledger; each holds its number. */
static void add_plain(uint64_t ledger, uint32_t first, uint32_t n)
{
    struct pp_meta m = {0};

    for (uint32_t i = first; i < first + n; i++)
        add_entry(ledger, i, &m, &i, sizeof(i));
}

static void drop_first(size_t n)
{
    for (size_t i = 0; i < n; i++)
        pb_out_release(&fake->log[i].bytes);
    memmove(fake->log, fake->log + n, (fake->n_log - n) * sizeof(fake->log[0]));
    fake->n_log -= n;
    memset(fake->log + fake->n_log, 0, n * sizeof(fake->log[0]));
}

static void reply(struct peer *p, const Pulsar__BaseCommand *cmd)
{
    pulsar_frame_write(&p->out, cmd, NULL, 0);
}

#define NEW_CMD(TYPE)                                                                             \
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;                                         \
    cmd.type = PULSAR__BASE_COMMAND__TYPE__##TYPE

static void reply_success(struct peer *p, uint64_t id)
{
    Pulsar__CommandSuccess a = PULSAR__COMMAND_SUCCESS__INIT;
    NEW_CMD(SUCCESS);

    a.request_id = id;
    cmd.success = &a;
    reply(p, &cmd);
}

static void reply_error(struct peer *p, uint64_t id, int code)
{
    Pulsar__CommandError a = PULSAR__COMMAND_ERROR__INIT;
    NEW_CMD(ERROR);

    a.request_id = id;
    a.error = code;
    a.message = (char *)(uintptr_t)"as the script says";
    cmd.error = &a;
    reply(p, &cmd);
}

static void reply_connected(struct peer *p)
{
    Pulsar__FeatureFlags f = PULSAR__FEATURE_FLAGS__INIT;
    Pulsar__CommandConnected a = PULSAR__COMMAND_CONNECTED__INIT;
    NEW_CMD(CONNECTED);

    a.server_version = (char *)(uintptr_t)"fake";
    f.has_supports_get_partitioned_metadata_without_auto_creation = true;
    f.supports_get_partitioned_metadata_without_auto_creation = !fake->old;
    a.feature_flags = fake->old ? NULL : &f;
    cmd.connected = &a;
    reply(p, &cmd);
    if (fake->bad_greeting)
        reply(p, &cmd);
    if (fake->huge_frame)
        pb_out_raw(&p->out, "\x7f\xff\xff\xff", 4);
}

static void reply_ping(struct peer *p, Pulsar__BaseCommand__Type type)
{
    Pulsar__CommandPing ping = PULSAR__COMMAND_PING__INIT;
    Pulsar__CommandPong pong = PULSAR__COMMAND_PONG__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    cmd.type = type;
    cmd.ping = type == PULSAR__BASE_COMMAND__TYPE__PING ? &ping : NULL;
    cmd.pong = type == PULSAR__BASE_COMMAND__TYPE__PONG ? &pong : NULL;
    reply(p, &cmd);
}

static void on_connect(struct peer *p, const Pulsar__CommandConnect *c)
{
    Pulsar__CommandAuthChallenge a = PULSAR__COMMAND_AUTH_CHALLENGE__INIT;
    NEW_CMD(AUTH_CHALLENGE);

    if (c->proxy_to_broker_url)
        snprintf(fake->proxied, sizeof(fake->proxied), "%s", c->proxy_to_broker_url);
    snprintf(fake->auth, sizeof(fake->auth), "%s:%.*s", c->auth_method_name, (int)c->auth_data.len,
             c->auth_data.data ? (char *)c->auth_data.data : "");
    cmd.auth_challenge = &a;
    if (fake->connect_code)
        reply_error(p, UINT64_MAX, fake->connect_code);
    else if (fake->challenge)
        reply(p, &cmd);
    else
        reply_connected(p);
}

static void on_metadata(struct peer *p, const Pulsar__CommandPartitionedTopicMetadata *q)
{
    Pulsar__CommandPartitionedTopicMetadataResponse a = PULSAR__COMMAND_PARTITIONED_TOPIC_METADATA_RESPONSE__INIT;
    NEW_CMD(PARTITIONED_METADATA_RESPONSE);

    fake->n_metadata++;
    fake->asked_creation |= !q->has_metadata_auto_creation_enabled || q->metadata_auto_creation_enabled;
    a.request_id = q->request_id;
    a.has_response = true;
    a.response = fake->no_topic;
    a.has_error = fake->no_topic;
    a.error = 11;
    a.has_partitions = true;
    a.partitions = (uint32_t)fake->partitions;
    cmd.partition_metadata_response = &a;
    reply(p, &cmd);
}

static void on_topics(struct peer *p, uint64_t id)
{
    static char one[] = TOPIC, other[] = TOPIC "-2", part[] = TOPIC "-partition-0", part1[] = TOPIC "-partition-1";
    char *list[4] = {other};
    Pulsar__CommandGetTopicsOfNamespaceResponse a = PULSAR__COMMAND_GET_TOPICS_OF_NAMESPACE_RESPONSE__INIT;
    NEW_CMD(GET_TOPICS_OF_NAMESPACE_RESPONSE);

    fake->n_topics++;
    a.request_id = id;
    a.n_topics = 1;
    a.topics = list;
    if (!fake->no_topic && !fake->partitions)
        list[a.n_topics++] = one;
    if (fake->partitions > 0)
        list[a.n_topics++] = part;
    if (fake->partitions > 1)
        list[a.n_topics++] = part1;
    cmd.get_topics_response = &a;
    reply(p, &cmd);
}

static void on_lookup(struct peer *p, const Pulsar__CommandLookupTopic *q)
{
    Pulsar__CommandLookupTopicResponse a = PULSAR__COMMAND_LOOKUP_TOPIC_RESPONSE__INIT;
    char url[64];
    NEW_CMD(LOOKUP_RESPONSE);

    fake->n_lookups++;
    fake->authoritative = q->authoritative;
    if (fake->mute_lookup)
        return;
    a.request_id = q->request_id;
    a.has_response = true;
    a.response = 1;
    snprintf(url, sizeof(url), "pulsar://127.0.0.1:%u", fake->port[p->broker]);
    a.broker_service_url = url;
    if (fake->lookup_errors > 0) {
        fake->lookup_errors--;
        a.response = 2;
        a.has_error = true;
        a.error = fake->lookup_code;
    } else if (fake->redirects) {
        fake->redirects -= fake->redirects > 0;
        a.response = 0;
        a.has_authoritative = a.authoritative = true;
        snprintf(url, sizeof(url), "pulsar://127.0.0.1:%u", fake->port[!p->broker]);
    } else if (fake->proxy) {
        a.has_proxy_through_service_url = a.proxy_through_service_url = true;
        snprintf(url, sizeof(url), "pulsar://broker.inside:6650");
    }
    cmd.lookup_response = &a;
    reply(p, &cmd);
}

static void on_subscribe(struct peer *p, const Pulsar__CommandSubscribe *q)
{
    struct peer_sub *s = &p->subs[p->n_subs];

    assert_true(q->has_force_topic_creation && !q->force_topic_creation);
    assert_int_equal(q->sub_type, 0);
    snprintf(fake->subscription, sizeof(fake->subscription), "%s", q->subscription);
    fake->broker_of_subscribe = p->broker;
    if (fake->subscribe_errors > 0) {
        fake->subscribe_errors--;
        reply_error(p, q->request_id, fake->subscribe_code);
        return;
    }
    assert_true(p->n_subs++ < MAX_SUBS);
    *s = (struct peer_sub){.id = q->consumer_id, .durable = q->durable};
    assert_int_equal(!q->durable, q->start_message_id != NULL);
    if (q->start_message_id && q->start_message_id->ledger_id != UINT64_MAX) {
        const Pulsar__MessageIdData *id = q->start_message_id;

        assert_true(id->batch_index >= 0); /* else brokers begin behind it */
        while (s->next < fake->n_log &&
               (fake->log[s->next].ledger < id->ledger_id ||
                (fake->log[s->next].ledger == id->ledger_id && fake->log[s->next].entry < id->entry_id)))
            s->next++;
    }
    reply_success(p, q->request_id);
}

static void on_last(struct peer *p, uint64_t request)
{
    Pulsar__MessageIdData id = PULSAR__MESSAGE_ID_DATA__INIT;
    Pulsar__CommandGetLastMessageIdResponse a = PULSAR__COMMAND_GET_LAST_MESSAGE_ID_RESPONSE__INIT;
    NEW_CMD(GET_LAST_MESSAGE_ID_RESPONSE);

    id.ledger_id = id.entry_id = UINT64_MAX;
    if (fake->n_log && !fake->last_is_none) {
        id.ledger_id = fake->log[fake->n_log - 1].ledger;
        id.entry_id = fake->log[fake->n_log - 1].entry;
        id.has_batch_index = true;
        id.batch_index = fake->log[fake->n_log - 1].n_msgs > 1 ? (int32_t)fake->log[fake->n_log - 1].n_msgs - 1 : -1;
    }
    a.request_id = request;
    a.last_message_id = &id;
    cmd.get_last_message_id_response = &a;
    reply(p, &cmd);
}

static struct peer_sub *sub_of(struct peer *p, uint64_t id)
{
    for (size_t i = 0; i < p->n_subs; i++)
        if (p->subs[i].id == id)
            return &p->subs[i];
    return NULL;
}

static void on_ack(struct peer *p, const Pulsar__CommandAck *q)
{
    Pulsar__CommandAckResponse a = PULSAR__COMMAND_ACK_RESPONSE__INIT;
    NEW_CMD(ACK_RESPONSE);

    assert_int_equal(q->ack_type, 1);
    assert_true(q->n_message_id == 1 && fake->n_acks < 20);
    assert_true(sub_of(p, q->consumer_id)->durable);
    fake->acks[fake->n_acks].ledger = q->message_id[0]->ledger_id;
    fake->acks[fake->n_acks].at_ms = clock_mono_ms();
    fake->acks[fake->n_acks++].entry = q->message_id[0]->entry_id;
    a.consumer_id = q->consumer_id;
    a.has_request_id = true;
    a.request_id = q->request_id;
    cmd.ack_response = &a;
    reply(p, &cmd);
}

static void on_unsubscribe(struct peer *p, uint64_t id)
{
    fake->n_unsubscribe++;
    if (fake->unsubscribe_code)
        reply_error(p, id, fake->unsubscribe_code);
    else
        reply_success(p, id);
}

static void on_cmd(struct peer *p, const Pulsar__BaseCommand *c)
{
    struct peer_sub *s;

    switch ((int)c->type) {
    case PULSAR__BASE_COMMAND__TYPE__CONNECT:
        on_connect(p, c->connect);
        break;
    case PULSAR__BASE_COMMAND__TYPE__AUTH_RESPONSE:
        fake->answered_challenge = c->auth_response && c->auth_response->response &&
                                   c->auth_response->response->auth_data.len == 6;
        reply_connected(p);
        break;
    case PULSAR__BASE_COMMAND__TYPE__PARTITIONED_METADATA:
        on_metadata(p, c->partition_metadata);
        break;
    case PULSAR__BASE_COMMAND__TYPE__GET_TOPICS_OF_NAMESPACE:
        assert_string_equal(c->get_topics->namespace_, "public/default");
        on_topics(p, c->get_topics->request_id);
        break;
    case PULSAR__BASE_COMMAND__TYPE__LOOKUP:
        on_lookup(p, c->lookup);
        break;
    case PULSAR__BASE_COMMAND__TYPE__SUBSCRIBE:
        on_subscribe(p, c->subscribe);
        break;
    case PULSAR__BASE_COMMAND__TYPE__GET_LAST_MESSAGE_ID:
        on_last(p, c->get_last_message_id->request_id);
        break;
    case PULSAR__BASE_COMMAND__TYPE__FLOW:
        s = sub_of(p, c->flow->consumer_id);
        if (!s) /* closed by us meanwhile */
            break;
        assert_false(s->durable); /* a subscription that retains asks for nothing */
        s->permits += c->flow->message_permits;
        fake->permits += c->flow->message_permits;
        fake->n_flows++;
        break;
    case PULSAR__BASE_COMMAND__TYPE__ACK:
        on_ack(p, c->ack);
        break;
    case PULSAR__BASE_COMMAND__TYPE__UNSUBSCRIBE:
        on_unsubscribe(p, c->unsubscribe->request_id);
        break;
    case PULSAR__BASE_COMMAND__TYPE__CLOSE_CONSUMER:
        fake->n_close++;
        if ((s = sub_of(p, c->close_consumer->consumer_id)))
            *s = p->subs[--p->n_subs];
        reply_success(p, c->close_consumer->request_id);
        break;
    case PULSAR__BASE_COMMAND__TYPE__PONG:
        fake->n_pongs++;
        break;
    case PULSAR__BASE_COMMAND__TYPE__PING:
        fake->n_pings++;
        if (!fake->mute_ping)
            reply_ping(p, PULSAR__BASE_COMMAND__TYPE__PONG);
        break;
    default:
        fail_msg("command %d", (int)c->type);
    }
}

static void send_entries(struct peer *p, struct peer_sub *s)
{
    for (; s->permits > 0 && s->next < fake->n_log; s->next++) {
        Pulsar__MessageIdData id = PULSAR__MESSAGE_ID_DATA__INIT;
        Pulsar__CommandMessage a = PULSAR__COMMAND_MESSAGE__INIT;
        struct pb_out *e = &fake->log[s->next].bytes;
        NEW_CMD(MESSAGE);

        id.ledger_id = fake->log[s->next].ledger;
        id.entry_id = fake->log[s->next].entry;
        a.consumer_id = s->id;
        a.message_id = &id;
        cmd.message = &a;
        s->permits -= fake->log[s->next].n_msgs;
        if (fake->bad_checksums > 0)
            e->data[3] ^= 1;
        pulsar_frame_write(&p->out, &cmd, e->data, e->len);
        if (fake->bad_checksums > 0) {
            e->data[3] ^= 1;
            fake->bad_checksums--;
        }
    }
}

static void peer_close(struct peer *p)
{
    if (p->fd >= 0) {
        close(p->fd);
        fake->n_alive--;
    }
    p->fd = -1;
    p->n_subs = 0;
    pb_out_release(&p->out);
    p->sent = 0;
}

static void peer_flush(struct peer *p)
{
    size_t n = p->out.len - p->sent;
    ssize_t put;

    if (fake->step && n > fake->step)
        n = fake->step;
    if (fake->cut_after && n > fake->cut_after)
        n = fake->cut_after;
    put = n ? send(p->fd, p->out.data + p->sent, n, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    if (put < 0 && errno != EAGAIN) {
        peer_close(p);
        return;
    }
    if (put > 0) {
        p->sent += (size_t)put;
        fake->bytes_sent += (size_t)put;
        if (fake->cut_after && (fake->cut_after -= (size_t)put) == 0)
            peer_close(p);
    }
}

static void peer_turn(struct peer *p)
{
    ssize_t got = recv(p->fd, p->in + p->n_in, sizeof(p->in) - p->n_in, MSG_DONTWAIT);
    const uint8_t *rest;
    size_t len, rest_len;
    struct err err;

    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        peer_close(p);
        return;
    }
    p->n_in += got > 0 ? (size_t)got : 0;
    while (p->n_in >= 4 && (len = fuzz_be32(p->in)) <= p->n_in - 4) {
        Pulsar__BaseCommand *c = pulsar_frame_parse(p->in + 4, len, &rest, &rest_len, &err);

        assert_non_null(c);
        on_cmd(p, c);
        pulsar_command_free(c);
        p->n_in -= 4 + len;
        memmove(p->in, p->in + 4 + len, p->n_in);
    }
    for (size_t i = 0; i < p->n_subs; i++)
        send_entries(p, &p->subs[i]);
    peer_flush(p);
}

static void turn(void)
{
    for (int i = 0; i < 2; i++) {
        int fd = fake->listener[i] >= 0 ? accept(fake->listener[i], NULL, NULL) : -1;

        if (fd >= 0) {
            struct peer *p = xcalloc(1, sizeof(*p));

            assert_true(fake->n_peers < MAX_PEERS);
            p->fd = fd;
            p->broker = i;
            fake->peers[fake->n_peers++] = p;
            fake->n_alive++;
        }
    }
    for (size_t i = 0; i < fake->n_peers; i++)
        if (fake->peers[i]->fd >= 0)
            peer_turn(fake->peers[i]);
    loop_once(loop, false);
    usleep(100); /* others have the processor too */
}

static void cut_all(void)
{
    for (size_t i = 0; i < fake->n_peers; i++)
        if (fake->peers[i]->fd >= 0)
            peer_close(fake->peers[i]);
}

/* ---- a reader that keeps all ---- */

struct got {
    struct wal_reader *r;
    struct wal_pos pos[1000];
    uint32_t value[1000];
    size_t n;
    unsigned caught_up, troubles, recoveries;
    bool bad, failed, paused, close_in_batch, pause_in_batch;
    struct err err, trouble;
};

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct got *g = arg;

    g->bad |= g->paused || g->failed || !g->r;
    for (size_t i = 0; i < n; i++) {
        assert_true(g->n < 1000);
        g->bad |= g->n && wal_pos_cmp(g->pos[g->n - 1], msgs[i].pos) >= 0;
        g->pos[g->n] = msgs[i].pos;
        g->value[g->n] = 0;
        memcpy(&g->value[g->n++], msgs[i].data, msgs[i].len < 4 ? msgs[i].len : 4);
    }
    g->caught_up += caught_up;
    if (g->pause_in_batch) {
        port->ops->pause(g->r);
        g->paused = true;
    }
    if (g->close_in_batch) {
        port->ops->close(g->r);
        g->r = NULL;
    }
}

static void on_trouble(void *arg, const struct err *err)
{
    struct got *g = arg;

    g->bad |= g->failed || !g->r;
    if (!err) {
        g->recoveries++;
    } else if (err->cls == ERRC_RETRY) {
        g->troubles++;
        g->trouble = *err;
    } else {
        g->failed = true;
        g->err = *err;
    }
}

static const struct wal_reader_cbs cbs = {on_batch, on_trouble};

static void got_open(struct got *g, const struct wal_pos *start)
{
    struct wal_start s = {.earliest = !start, .pos = start ? *start : WAL_POS_NONE};

    memset(g, 0, sizeof(*g));
    g->r = port->ops->open(port, "t", &s, &cbs, g);
}

static void got_close(struct got *g)
{
    if (g->r)
        port->ops->close(g->r);
    g->r = NULL;
    assert_false(g->bad);
}

static void assert_values(const struct got *g, uint32_t first, size_t n)
{
    assert_false(g->failed);
    assert_int_equal(g->n, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(g->value[i], first + i);
}

static struct wal_pos at(uint64_t ledger, uint64_t entry, int index)
{
    struct wal_pos pos;

    assert_true(pulsar_pos(ledger, entry, index, &pos));
    return pos;
}

static void open_port(const char *token, size_t receive)
{
    struct pulsar_options o = {.address = address, .auth_token = token, .receive_bytes = receive};

    pulsar_close(port);
    port = pulsar_open(loop, &o, NULL);
    assert_non_null(port);
}

static int setup(void **state)
{
    (void)state;
    fake = xcalloc(1, sizeof(*fake));
    loop = loop_new();
    for (int i = 0; i < 2; i++)
        fake->listener[i] = listen_on(&fake->port[i]);
    snprintf(address, sizeof(address), "pulsar://127.0.0.1:%u", fake->port[0]);
    port = NULL;
    open_port(NULL, 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    while (port && !LIST_EMPTY(&pulsar_of(port)->readers)) /* of a test that failed */
        preader_close(LIST_FIRST(&pulsar_of(port)->readers));
    pulsar_close(port);
    loop_free(loop);
    for (size_t i = 0; i < fake->n_peers; i++) {
        peer_close(fake->peers[i]);
        free(fake->peers[i]);
    }
    for (int i = 0; i < 2; i++)
        if (fake->listener[i] >= 0)
            close(fake->listener[i]);
    drop_first(fake->n_log);
    free(fake);
    return 0;
}

/* ---- reading ---- */

static void reads_byte_by_byte(void **state)
{
    struct got g;

    (void)state;
    add_plain(5, 0, 20);
    add_plain(9, 20, 5);
    fake->step = 1;
    got_open(&g, NULL);
    WAIT_FOR(g.n == 25);
    assert_values(&g, 0, 25);
    assert_int_equal(g.pos[20].major, 10);
    assert_int_equal(g.pos[20].minor, (uint64_t)20 << 20);
    WAIT_FOR(g.caught_up == 1);
    assert_false(fake->asked_creation);
    assert_int_equal(fake->n_topics, 0);
    got_close(&g);
    WAIT_FOR(fake->n_close == 1);
}

/* Each connection in turn is cut after so many bytes: nothing is lost, nothing comes twice. */
static void cut_at_every_place(void **state)
{
    size_t whole;
    struct got g;

    (void)state;
    add_plain(5, 0, 8);
    got_open(&g, NULL);
    WAIT_FOR(g.n == 8);
    got_close(&g);
    whole = fake->bytes_sent;
    for (size_t n = 1; n < whole; n += 11) {
        open_port(NULL, 0);
        fake->cut_after = n;
        got_open(&g, NULL);
        WAIT_FOR(g.n == 8 && g.caught_up);
        assert_values(&g, 0, 8);
        got_close(&g);
    }
}

static void start_is_inclusive_or_lost(void **state)
{
    struct wal_pos pos = at(5, 3, 0);
    struct got g;

    (void)state;
    add_plain(5, 0, 8);
    got_open(&g, &pos);
    WAIT_FOR(g.n == 5);
    assert_values(&g, 3, 5);
    got_close(&g);
    drop_first(4); /* retention */
    got_open(&g, &pos);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.code, ERR_GONE);
    assert_int_equal(g.err.cls, ERRC_LOST);
    assert_non_null(strstr(g.err.text, "5:3:0"));
    assert_non_null(strstr(g.err.text, "5:4:0"));
    assert_int_equal(g.n, 0);
    got_close(&g);
    pos = at(7, 0, 0); /* behind the end */
    got_open(&g, &pos);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_LOST);
    got_close(&g);
    fake->last_is_none = true;
    got_open(&g, &pos);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_LOST);
    got_close(&g);
}

/* What was delivered last is removed while the connection is away: there may be a gap. */
static void reconnect_proves_that_nothing_is_missing(void **state)
{
    struct got g;

    (void)state;
    add_plain(5, 0, 4);
    got_open(&g, NULL);
    WAIT_FOR(g.n == 4);
    add_plain(5, 4, 4);
    drop_first(6);
    cut_all();
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_LOST);
    assert_non_null(strstr(g.err.text, "5:3:0"));
    assert_int_equal(g.n, 4);
    got_close(&g);
}

static void batches(void **state)
{
    struct wal_pos pos = at(5, 1, 2);
    struct got g;

    (void)state;
    add_plain(5, 0, 1);
    for (uint64_t e = 1; e < 6; e++) {
        struct pp_meta m = {.compression = (int)e - 1, .batch = 4};
        struct pb_out o = {0};
        uint8_t *z;
        size_t zn;

        for (uint32_t i = 0; i < 4; i++) {
            uint32_t v = (uint32_t)(e - 1) * 4 + i + 1;

            pp_single(&o, &v, sizeof(v), false);
        }
        m.uncompressed_size = (uint32_t)o.len;
        z = pp_compress(m.compression, o.data, o.len, &zn);
        add_entry(5, e, &m, z, zn);
        free(z);
        pb_out_release(&o);
    }
    got_open(&g, NULL);
    WAIT_FOR(g.n == 21 && g.caught_up);
    assert_values(&g, 0, 21);
    assert_int_equal(g.pos[20].minor, (uint64_t)5 << 20 | 3);
    got_close(&g);
    got_open(&g, &pos);
    WAIT_FOR(g.n == 18);
    assert_values(&g, 3, 18);
    cut_all(); /* and from the middle of what was delivered */
    add_plain(5, 6, 1);
    WAIT_FOR(g.n == 19);
    assert_int_equal(g.value[18], 6);
    got_close(&g);
}

/* What is left out of a batch (compaction), and markers, are not delivered, but a start there is none the less right.
 * */
static void holes(void **state)
{
    struct pp_meta batch = {.batch = 3}, marker = {.marker = true};
    struct wal_pos pos = at(5, 0, 1);
    struct pb_out o = {0};
    struct got g;

    (void)state;
    for (uint32_t i = 0; i < 3; i++)
        pp_single(&o, &i, sizeof(i), i == 1);
    add_entry(5, 0, &batch, o.data, o.len);
    pb_out_release(&o);
    add_entry(5, 1, &marker, "", 0);
    add_plain(5, 2, 1);
    got_open(&g, &pos);
    WAIT_FOR(g.n == 2);
    assert_int_equal(g.value[0], 2);
    assert_int_equal(g.value[1], 2);
    assert_int_equal(g.pos[0].minor, 2);
    assert_int_equal(g.pos[1].minor, 2u << 20);
    got_close(&g);
}

static void chunks_from_the_middle(void **state)
{
    struct pp_meta m = {.uuid = "u", .n_chunks = 3, .total_size = 12};
    uint32_t words[3] = {77, 78, 79};
    struct wal_pos pos = at(5, 302, 0);
    struct got g;

    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        m.chunk_id = (int)i;
        add_entry(5, 300 + i, &m, &words[i], 4);
    }
    add_plain(5, 303, 1);
    got_open(&g, &pos); /* the position of a chunked message is its last chunk */
    WAIT_FOR(g.n == 2);
    assert_int_equal(g.value[0], 77);
    assert_int_equal(wal_pos_cmp(g.pos[0], pos), 0);
    assert_int_equal(g.value[1], 303);
    got_close(&g);
    drop_first(1); /* its begin was removed */
    got_open(&g, &pos);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_LOST);
    got_close(&g);
    pos = at(5, 301, 0); /* in the middle, as an end() may say while it is written */
    got_open(&g, &pos);
    WAIT_FOR(g.n == 1);
    assert_values(&g, 303, 1);
    got_close(&g);
}

static void bad_entries_end_the_reader(void **state)
{
    struct pp_meta m = {.encrypted = true};
    struct got g;

    (void)state;
    add_plain(5, 0, 3);
    add_entry(5, 3, &m, "x", 1);
    add_plain(5, 4, 1);
    got_open(&g, NULL);
    WAIT_FOR(g.failed);
    assert_int_equal(g.n, 3); /* all before it */
    assert_int_equal(g.err.cls, ERRC_DATA);
    assert_non_null(strstr(g.err.text, "5:3"));
    assert_non_null(strstr(g.err.text, "encrypted"));
    got_close(&g);
}

static void checksums(void **state)
{
    struct got g;

    (void)state;
    add_plain(5, 0, 10);
    fake->bad_checksums = 1; /* on the way */
    got_open(&g, NULL);
    WAIT_FOR(g.n == 10);
    assert_values(&g, 0, 10);
    got_close(&g);
    fake->bad_checksums = 1000; /* on the disk */
    got_open(&g, NULL);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_DATA);
    assert_non_null(strstr(g.err.text, "checksum"));
    assert_int_equal(g.n, 0);
    got_close(&g);
}

static void pause_and_resume(void **state)
{
    struct got g;
    uint64_t permits;

    (void)state;
    add_plain(5, 0, 5);
    got_open(&g, NULL);
    g.pause_in_batch = true;
    WAIT_FOR(g.paused);
    g.pause_in_batch = false;
    permits = fake->permits;
    add_plain(5, 5, 250); /* more than there are permits */
    for (int i = 0; i < 300; i++)
        turn();
    assert_int_equal(fake->permits, permits);
    g.paused = false;
    port->ops->resume(g.r);
    WAIT_FOR(g.n == 255);
    assert_values(&g, 0, 255);
    got_close(&g);
}

/* A paused reader for which more comes than may be held is detached, and goes on where it was. */
static void too_much_for_a_paused_reader(void **state)
{
    static uint8_t big[60000];
    struct pp_meta m = {0};
    struct got g;

    (void)state;
    open_port(NULL, 100000);
    add_plain(5, 0, 150); /* small ones: the permits grow */
    got_open(&g, NULL);
    WAIT_FOR(g.n == 150 && g.caught_up);
    port->ops->pause(g.r);
    g.paused = true;
    for (uint32_t i = 150; i < 170; i++) {
        memcpy(big, &i, sizeof(i));
        add_entry(5, i, &m, big, sizeof(big));
    }
    WAIT_FOR(fake->n_close == 1);
    assert_int_equal(pulsar_of(port)->held, 0);
    g.paused = false;
    port->ops->resume(g.r);
    WAIT_FOR(g.n == 170);
    assert_values(&g, 0, 170);
    got_close(&g);
}

static void readers_share_the_bound(void **state)
{
    struct got *g = xcalloc(4, sizeof(*g));

    (void)state;
    add_plain(5, 0, 1);
    for (int i = 0; i < 4; i++)
        got_open(&g[i], NULL);
    WAIT_FOR(fake->n_flows >= 4);
    assert_true(fake->permits <= 4 * 2 + 4); /* 8 MiB / 4 readers, a message is taken for 1 MiB */
    for (int i = 0; i < 4; i++) {
        WAIT_FOR(g[i].n == 1);
        got_close(&g[i]);
    }
    assert_int_equal(fake->n_peers, 1); /* one connection for all */
    free(g);
}

static void close_in_callbacks(void **state)
{
    struct got g;

    (void)state;
    add_plain(5, 0, 3);
    got_open(&g, NULL);
    g.close_in_batch = true;
    WAIT_FOR(g.n == 3);
    assert_null(g.r);
    for (int i = 0; i < 50; i++)
        turn();
    assert_int_equal(g.n, 3);
    assert_false(g.bad);
}

/* ---- finding the broker ---- */

static void redirects(void **state)
{
    struct got g;

    (void)state;
    add_plain(5, 0, 1);
    fake->redirects = 1;
    got_open(&g, NULL);
    WAIT_FOR(g.n == 1);
    assert_int_equal(fake->broker_of_subscribe, 1);
    assert_true(fake->authoritative);
    got_close(&g);
    fake->redirects = -1;
    got_open(&g, NULL);
    WAIT_FOR(g.troubles == 1);
    assert_non_null(strstr(g.trouble.text, "circle"));
    fake->redirects = 0;
    WAIT_FOR(g.n == 1 && g.recoveries == 1);
    got_close(&g);
}

static void through_a_proxy(void **state)
{
    struct got g;

    (void)state;
    add_plain(5, 0, 1);
    fake->proxy = true;
    got_open(&g, NULL);
    WAIT_FOR(g.n == 1);
    assert_string_equal(fake->proxied, "broker.inside:6650");
    assert_int_equal(fake->n_peers, 2);
    got_close(&g);
}

static void not_ready_is_waited_for(void **state)
{
    struct got g;

    (void)state;
    add_plain(5, 0, 3);
    fake->lookup_errors = 2;
    fake->lookup_code = 6;
    got_open(&g, NULL);
    WAIT_FOR(g.n == 3);
    assert_int_equal(g.troubles, 0); /* over within a second */
    got_close(&g);
    fake->lookup_errors = 1000;
    got_open(&g, NULL);
    WAIT_FOR(g.troubles == 1);
    fake->lookup_errors = 0;
    fake->subscribe_errors = 1;
    fake->subscribe_code = 5;
    WAIT_FOR(g.n == 3 && g.recoveries == 1);
    assert_int_equal(g.troubles, 1);
    got_close(&g);
}

static void topic_that_comes_later(void **state)
{
    struct wal_pos pos = at(5, 1, 0);
    struct got g;

    (void)state;
    fake->no_topic = true;
    got_open(&g, NULL);
    WAIT_FOR(g.caught_up == 1);
    WAIT_FOR(fake->n_metadata >= 2);
    assert_int_equal(fake->n_lookups, 0);
    fake->no_topic = false;
    add_plain(5, 0, 3);
    WAIT_FOR(g.n == 3 && g.caught_up == 2);
    assert_int_equal(g.troubles, 0);
    got_close(&g);
    fake->no_topic = true;
    got_open(&g, &pos);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_LOST);
    assert_int_equal(g.n, 0);
    got_close(&g);
}

static void old_brokers_and_partitions(void **state)
{
    struct got g;

    (void)state;
    fake->old = true;
    fake->no_topic = true;
    add_plain(5, 0, 3);
    got_open(&g, NULL);
    WAIT_FOR(g.caught_up == 1);
    assert_int_equal(fake->n_metadata, 0); /* it would make the topic */
    fake->no_topic = false;
    WAIT_FOR(g.n == 3);
    got_close(&g);
    for (int old = 1; old >= 0; old--) {
        open_port(NULL, 0);
        fake->old = old;
        fake->partitions = 1;
        got_open(&g, NULL);
        WAIT_FOR(g.n == 3);
        got_close(&g);
        fake->partitions = 2;
        got_open(&g, NULL);
        WAIT_FOR(g.failed);
        assert_int_equal(g.err.cls, ERRC_USER);
        assert_non_null(strstr(g.err.text, "2 partitions"));
        got_close(&g);
    }
}

static void tokens(void **state)
{
    struct got g;

    (void)state;
    open_port("secret", 0);
    add_plain(5, 0, 1);
    fake->challenge = true;
    got_open(&g, NULL);
    WAIT_FOR(g.n == 1);
    assert_string_equal(fake->auth, "token:secret");
    assert_true(fake->answered_challenge);
    got_close(&g);
    open_port("secret", 0);
    fake->connect_code = 3;
    got_open(&g, NULL);
    WAIT_FOR(g.troubles == 1);
    assert_int_equal(g.trouble.code, ERR_AUTH);
    assert_non_null(strstr(g.trouble.text, "sourceConfig.pulsar.authParams"));
    assert_null(strstr(g.trouble.text, "secret"));
    fake->connect_code = 0;
    WAIT_FOR(g.n == 1 && g.recoveries == 1);
    got_close(&g);
}

static void nonsense_from_the_broker(void **state)
{
    struct got g;

    (void)state;
    add_plain(5, 0, 1);
    fake->huge_frame = true;
    got_open(&g, NULL);
    WAIT_FOR(g.troubles == 1);
    assert_non_null(strstr(g.trouble.text, "frame"));
    fake->huge_frame = false;
    WAIT_FOR(g.n == 1);
    got_close(&g);
    open_port(NULL, 0);
    fake->bad_greeting = true;
    got_open(&g, NULL);
    WAIT_FOR(g.troubles == 1);
    got_close(&g);
}

static void silent_brokers(void **state)
{
    struct pulsar *p = pulsar_of(port);
    struct got g;

    (void)state;
    add_plain(5, 0, 1);
    p->request_ms = 300;
    fake->mute_lookup = true;
    got_open(&g, NULL);
    WAIT_FOR(g.troubles == 1);
    assert_non_null(strstr(g.trouble.text, "no answer"));
    p->request_ms = 10000; /* a busy machine is not a silent broker */
    fake->mute_lookup = false;
    WAIT_FOR(g.n == 1 && g.recoveries == 1);
    p->ping_ms = 300;
    WAIT_FOR(fake->n_pings == 2); /* the answer to the first one counts */
    assert_int_equal(g.troubles, 1);
    assert_int_equal(fake->n_peers, 1);
    reply_ping(fake->peers[0], PULSAR__BASE_COMMAND__TYPE__PING);
    WAIT_FOR(fake->n_pongs == 1);
    fake->mute_ping = true;
    p->dead_ms = 2000;
    WAIT_FOR(fake->n_peers == 2);
    fake->mute_ping = false;
    add_plain(5, 1, 1);
    WAIT_FOR(g.n == 2);
    assert_values(&g, 0, 2);
    got_close(&g);
}

/* A topic that moves: the broker closes the consumer, the connection stays. */
static void topic_moves(void **state)
{
    Pulsar__CommandCloseConsumer a = PULSAR__COMMAND_CLOSE_CONSUMER__INIT;
    struct peer *p;
    struct got g;

    (void)state;
    add_plain(5, 0, 4);
    got_open(&g, NULL);
    WAIT_FOR(g.n == 4);
    p = fake->peers[0];
    for (int i = 0; i < 5; i++) {
        NEW_CMD(CLOSE_CONSUMER);

        WAIT_FOR(p->n_subs == 1);
        a.consumer_id = p->subs[0].id;
        p->n_subs = 0;
        cmd.close_consumer = &a;
        reply(p, &cmd);
        add_plain(5, 4 + (uint32_t)i, 1);
        WAIT_FOR(g.n == 5 + (size_t)i);
    }
    assert_values(&g, 0, 9);
    assert_int_equal(fake->n_peers, 1);
    assert_int_equal(g.troubles, 0);
    got_close(&g);
}

/* The first address is dead: the next one is tried. */
static void second_address(void **state)
{
    struct pulsar_options o = {0};
    char both[100];
    struct got g;

    (void)state;
    close(fake->listener[0]);
    fake->listener[0] = -1;
    snprintf(both, sizeof(both), "127.0.0.1:%u,127.0.0.1:%u", fake->port[0], fake->port[1]);
    o.address = both;
    pulsar_close(port);
    port = pulsar_open(loop, &o, NULL);
    add_plain(5, 0, 1);
    got_open(&g, NULL);
    WAIT_FOR(g.n == 1);
    got_close(&g);
}

/* ---- end ---- */

struct answer {
    unsigned n;
    bool failed, found;
    struct err err;
    struct wal_pos last;
};

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct answer *a = arg;

    a->n++;
    a->failed = err != NULL;
    if (err)
        a->err = *err;
    a->found = found;
    a->last = last;
}

static void on_forgotten(void *arg, const struct err *err)
{
    on_end(arg, err, false, WAL_POS_NONE);
}

static struct answer ask_end(void)
{
    struct answer a = {0};

    port->ops->end(port, "t", on_end, &a);
    assert_int_equal(a.n, 0);
    WAIT_FOR(a.n == 1);
    return a;
}

static void the_end_of_a_topic(void **state)
{
    struct pp_meta m = {.batch = 3};
    struct answer a, b = {0};
    struct pb_out o = {0};

    (void)state;
    assert_false(ask_end().found);
    add_plain(5, 0, 3);
    a = ask_end();
    assert_true(a.found);
    assert_int_equal(wal_pos_cmp(a.last, at(5, 2, 0)), 0);
    pp_single(&o, "abcd", 4, false);
    add_entry(5, 3, &m, o.data, o.len);
    pb_out_release(&o);
    assert_int_equal(wal_pos_cmp(ask_end().last, at(5, 3, 2)), 0);
    fake->no_topic = true;
    assert_false(ask_end().found);
    fake->no_topic = false;
    fake->lookup_errors = 1;
    fake->lookup_code = 6;
    a = ask_end();
    assert_true(a.failed);
    assert_int_equal(a.err.cls, ERRC_RETRY);
    port->ops->end(port, "t", on_end, &a);
    port->ops->end(port, "t", on_end, &b);
    a.n = 0;
    port->ops->end_cancel(port, &a);
    WAIT_FOR(b.n == 1);
    assert_int_equal(a.n, 0);
}

/* ---- retain, forget ---- */

static void retain_acknowledges_what_is_before(void **state)
{
    (void)state;
    add_plain(5, 0, 10);
    port->ops->retain(port, "task", "t", WAL_POS_NONE);
    WAIT_FOR(strcmp(fake->subscription, "milvus-cdc-task") == 0);
    for (int i = 0; i < 30; i++)
        turn();
    assert_int_equal(fake->n_acks, 0);
    port->ops->retain(port, "task", "t", at(5, 3, 7));
    for (uint64_t e = 4; e < 9; e++) /* together within a second */
        port->ops->retain(port, "task", "t", at(5, e, 0));
    port->ops->retain(port, "task", "t", at(5, 6, 0)); /* never back */
    WAIT_FOR(fake->n_acks == 2);
    assert_int_equal(fake->acks[0].entry, 2);
    assert_int_equal(fake->acks[1].entry, 7);
    assert_true(fake->acks[1].at_ms >= fake->acks[0].at_ms + 2990);
    cut_all();
    port->ops->retain(port, "task", "t", at(9, 0, 0)); /* the begin of a ledger */
    WAIT_FOR(fake->n_acks == 3);
    assert_int_equal(fake->acks[2].ledger, 9);
    assert_int_equal(fake->acks[2].entry, UINT64_MAX);
    assert_int_equal(fake->n_unsubscribe, 0);
}

static struct answer forget(const char *owner)
{
    struct answer a = {0};

    port->ops->forget(port, owner, "t", on_forgotten, &a);
    assert_int_equal(a.n, 0);
    WAIT_FOR(a.n == 1);
    return a;
}

static void forget_unsubscribes(void **state)
{
    struct answer a, b = {0};

    (void)state;
    port->ops->retain(port, "task", "t", WAL_POS_NONE);
    WAIT_FOR(fake->subscription[0]);
    port->ops->forget(port, "task", "t", on_forgotten, &b);
    a = forget("task"); /* twice at a time */
    assert_false(a.failed);
    assert_true(b.n == 1 && !b.failed);
    assert_int_equal(fake->n_unsubscribe, 1);
    assert_false(forget("task").failed); /* not retained by us: made and removed */
    assert_int_equal(fake->n_unsubscribe, 2);
    fake->unsubscribe_code = 5;
    a = forget("task");
    assert_true(a.failed);
    assert_int_equal(a.err.cls, ERRC_RETRY);
    fake->no_topic = true;
    assert_false(forget("task").failed);
    fake->no_topic = false;
    fake->lookup_errors = 1;
    assert_true(forget("task").failed);
    fake->unsubscribe_code = 0;
    /* wanted again while it is being forgotten */
    b.n = 0;
    port->ops->forget(port, "task", "t", on_forgotten, &b);
    port->ops->retain(port, "task", "t", at(5, 2, 0));
    WAIT_FOR(b.n == 1 && fake->n_acks == 1);
    assert_int_equal(fake->acks[0].entry, 1);
}

/* Nobody waits for the answer: it is tried until the broker has done it. A cancelled call is not answered. */
static void forget_without_an_answer(void **state)
{
    struct answer a = {0};

    (void)state;
    port->ops->retain(port, "task", "t", WAL_POS_NONE);
    WAIT_FOR(fake->subscription[0]);
    fake->subscribe_errors = 0;
    fake->unsubscribe_code = 5;
    port->ops->forget(port, "task", "t", NULL, NULL);
    WAIT_FOR(fake->n_unsubscribe >= 2);
    fake->unsubscribe_code = 0;
    unsigned n = fake->n_unsubscribe;
    WAIT_FOR(fake->n_unsubscribe > n);
    port->ops->forget(port, "task", "t", on_forgotten, &a);
    port->ops->end_cancel(port, &a);
    n = fake->n_unsubscribe;
    WAIT_FOR(fake->n_unsubscribe > n);
    assert_int_equal(a.n, 0);
}

static void retain_goes_on_after_refusals(void **state)
{
    (void)state;
    fake->subscribe_errors = 2;
    fake->subscribe_code = 5; /* another consumer is still connected */
    port->ops->retain(port, "task", "t", at(5, 4, 0));
    WAIT_FOR(fake->n_acks == 1);
    assert_int_equal(fake->acks[0].entry, 3);
}

static void close_with_everything_open(void **state)
{
    struct answer a = {0};

    (void)state;
    fake->mute_lookup = true;
    port->ops->end(port, "t", on_end, &a);
    port->ops->retain(port, "task", "t", at(5, 4, 0));
    port->ops->forget(port, "other", "t", on_forgotten, &a);
    WAIT_FOR(fake->n_lookups == 3);
    pulsar_close(port);
    port = NULL;
    for (int i = 0; i < 30; i++)
        turn();
    assert_int_equal(a.n, 0);
}

/* ---- ids and settings ---- */

static void ids(void **state)
{
    static const uint8_t seen[] = {0x08, 0x03, 0x10, 0x00, 0x18, 0x00, 0x20, 0x00};
    static const uint8_t java[] = {0x08, 0x83, 0x01, 0x10, 0x09, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                   0xff, 0xff, 0xff, 0x01, 0x20, 0x02, 0x30, 0x05, 0x3a, 0x01, 0x00};
    static const uint8_t earliest[] = {0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x10, 0x00};
    uint8_t id[WAL_ID_MAX];
    struct wal_pos pos;

    (void)state;
    assert_int_equal(port->ops->id_encode(at(3, 0, 0), id), sizeof(seen));
    assert_memory_equal(id, seen, sizeof(seen));
    assert_int_equal(port->ops->id_decode(seen, sizeof(seen), &pos), 0);
    assert_int_equal(wal_pos_cmp(pos, at(3, 0, 0)), 0);
    assert_int_equal(port->ops->id_decode(java, sizeof(java), &pos), 0);
    assert_int_equal(wal_pos_cmp(pos, at(131, 9, 2)), 0);
    assert_int_equal(port->ops->id_decode(java, 5, &pos), 0);
    assert_int_equal(wal_pos_cmp(pos, at(131, 9, 0)), 0);
    for (size_t n = 0; n < 5; n++)
        assert_int_equal(port->ops->id_decode(java, n, &pos), ERR_PROTO);
    assert_int_equal(port->ops->id_decode(earliest, sizeof(earliest), &pos), ERR_PROTO);
    for (int bits = 0; bits < 63; bits++) {
        struct wal_pos p = at(UINT64_C(1) << bits, UINT64_C(1) << (bits % 44), 1 << (bits % 20)), q;
        size_t n = port->ops->id_encode(p, id);

        assert_true(n <= WAL_ID_MAX);
        assert_int_equal(port->ops->id_decode(id, n, &q), 0);
        assert_int_equal(wal_pos_cmp(p, q), 0);
    }
    assert_false(pulsar_pos(0, UINT64_C(1) << 44, 0, &pos));
    assert_false(pulsar_pos(0, 0, 1 << 20, &pos));
}

static void bad_setting(struct pulsar_options o, const char *names)
{
    struct err err = {0};

    assert_null(pulsar_open(loop, &o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_int_equal(err.cls, ERRC_USER);
    if (!strstr(err.text, names))
        fail_msg("\"%s\" does not name %s", err.text, names);
}

static void settings(void **state)
{
    static const char *good[] = {"h", "h:1", "pulsar://h", "pulsar://h:65535/", "a:1,b,c:3", "[::1]:6650", "[::1]"};
    static const char *bad[] = {"", "http://h:8080", "h:", "h:0", "h:65536", "h:1x", ":1", "a,,b", "h:1,",
                                "[::1", "[]:1", "a b"};
    struct pulsar_options o = {0};
    struct wal_port *w;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        o.address = good[i];
        w = pulsar_open(loop, &o, NULL);
        assert_non_null(w);
        assert_string_equal(w->name, "pulsar");
        pulsar_close(w);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        bad_setting((struct pulsar_options){.address = bad[i]}, "sourceConfig.pulsar.address");
    bad_setting((struct pulsar_options){0}, "sourceConfig.pulsar.address");
    bad_setting((struct pulsar_options){.address = "h", .tenant = "a/b"}, "sourceConfig.pulsar.tenant");
    bad_setting((struct pulsar_options){.address = "h", .name_space = "a/b"}, "sourceConfig.pulsar.namespace");
    bad_setting((struct pulsar_options){.address = "h", .ca_path = "x"}, "pulsar+ssl");
    bad_setting((struct pulsar_options){.address = "pulsar+ssl://h", .ca_path = "/none"}, "/none");
}

/* ---- bytes of any kind ---- */

static size_t read_file(const char *name, uint8_t **ret)
{
    char path[300];
    FILE *f;
    size_t n;

    snprintf(path, sizeof(path), CORPUS "/%s", name);
    f = fopen(path, "rb");
    assert_non_null(f);
    *ret = xmalloc(1 << 20);
    n = fread(*ret, 1, 1 << 20, f);
    fclose(f);
    return n;
}

static uint32_t rnd(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static void mutate(const uint8_t *data, size_t len, uint32_t *seed)
{
    uint8_t *copy = xmalloc(len);

    for (int round = 0; round < 800; round++) {
        memcpy(copy, data, len);
        for (uint32_t k = rnd(seed) % 4 + 1; k > 0; k--)
            copy[rnd(seed) % len] = (uint8_t)rnd(seed);
        (void)fuzz_pulsar_one(copy, len - (round % 5 == 0 ? rnd(seed) % len : 0));
    }
    free(copy);
}

static void corpus_whole_cut_and_mutated(void **state)
{
    static const struct {
        const char *name;
        size_t msgs;
    } expect[] = {{"batch_none.bin", 4}, {"batch_lz4.bin", 4}, {"batch_zlib.bin", 4}, {"batch_zstd.bin", 4},
                  {"batch_snappy.bin", 4}, {"plain.bin", 3},   {"chunks.bin", 6},     {"commands.bin", 0},
                  {"milvus_2_3_5.bin", 6}};
    uint32_t seed = 4711;
    DIR *dir = opendir(CORPUS);
    struct dirent *e;
    size_t known = 0;

    (void)state;
    assert_non_null(dir);
    while ((e = readdir(dir))) {
        uint8_t *data;
        size_t len;

        if (e->d_name[0] == '.')
            continue;
        len = read_file(e->d_name, &data);
        for (size_t i = 0; i < sizeof(expect) / sizeof(*expect); i++) {
            if (strcmp(e->d_name, expect[i].name) == 0) {
                assert_int_equal(fuzz_pulsar_one(data, len), expect[i].msgs);
                known++;
            }
        }
        for (size_t n = 0; n < len && n < 3000; n++)
            (void)fuzz_pulsar_one(data, n);
        (void)LLVMFuzzerTestOneInput(data, len);
        mutate(data, len, &seed);
        free(data);
    }
    closedir(dir);
    assert_int_equal(known, sizeof(expect) / sizeof(*expect));
}

static void refused(const struct pp_meta *m, const void *data, size_t len, const char *why)
{
    struct pulsar_decoder *d = pulsar_decoder_new();
    struct pulsar_entry e = {.ledger = 1, .entry = 2};
    struct pulsar_msgs msgs = {0};
    struct pb_out o = {0};
    struct err err;

    pp_entry(&o, m, 1, data, len);
    e.frame = fuzz_copy(o.data, o.len);
    pb_out_release(&o);
    assert_int_equal(pulsar_entry_parse(e.frame->data, e.frame->size, &e, &err), 0);
    assert_int_not_equal(pulsar_decode(d, &e, &msgs, &err), 0);
    assert_int_equal(err.cls, ERRC_DATA);
    if (!strstr(err.text, why) || !strstr(err.text, "1:2"))
        fail_msg("\"%s\" does not say %s", err.text, why);
    assert_int_equal(msgs.n, 0);
    buf_unref(e.frame);
    pulsar_msgs_release(&msgs);
    pulsar_decoder_free(d);
}

static void entries_that_are_refused(void **state)
{
    struct pp_meta m = {.compression = 1, .uncompressed_size = 4000000000u};
    uint8_t text[100] = {0}, *z;
    size_t zn;

    (void)state;
    refused(&m, "x", 1, "limit");
    m.compression = 9;
    m.uncompressed_size = 1;
    refused(&m, "x", 1, "unknown compression 9");
    for (m.compression = 1; m.compression <= 4; m.compression++) { /* less or more than the metadata say, or cut */
        z = pp_compress(m.compression, text, sizeof(text), &zn);
        m.uncompressed_size = 99;
        refused(&m, z, zn, "do not give 99");
        m.uncompressed_size = 101;
        refused(&m, z, zn, "do not give 101");
        m.uncompressed_size = 100;
        refused(&m, z, zn - 1, "do not give 100");
        free(z);
    }
    m = (struct pp_meta){.batch = 2};
    refused(&m, "\0\0\0\1x", 5, "message 0 of the 2");
    m.batch = 1 << 21;
    refused(&m, "", 0, "beyond every measure");
    m = (struct pp_meta){.uuid = "u", .n_chunks = 2, .total_size = INT32_MAX};
    refused(&m, "", 0, "limit");
    m = (struct pp_meta){.uuid = "u", .n_chunks = 2, .chunk_id = 1, .total_size = 10};
    refused(&m, "", 0, "first chunks");
}

#define WITH_BROKER(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        WITH_BROKER(reads_byte_by_byte),
        WITH_BROKER(cut_at_every_place),
        WITH_BROKER(start_is_inclusive_or_lost),
        WITH_BROKER(reconnect_proves_that_nothing_is_missing),
        WITH_BROKER(batches),
        WITH_BROKER(holes),
        WITH_BROKER(chunks_from_the_middle),
        WITH_BROKER(bad_entries_end_the_reader),
        WITH_BROKER(checksums),
        WITH_BROKER(pause_and_resume),
        WITH_BROKER(too_much_for_a_paused_reader),
        WITH_BROKER(readers_share_the_bound),
        WITH_BROKER(close_in_callbacks),
        WITH_BROKER(redirects),
        WITH_BROKER(through_a_proxy),
        WITH_BROKER(not_ready_is_waited_for),
        WITH_BROKER(topic_that_comes_later),
        WITH_BROKER(old_brokers_and_partitions),
        WITH_BROKER(tokens),
        WITH_BROKER(nonsense_from_the_broker),
        WITH_BROKER(silent_brokers),
        WITH_BROKER(topic_moves),
        WITH_BROKER(second_address),
        WITH_BROKER(the_end_of_a_topic),
        WITH_BROKER(retain_acknowledges_what_is_before),
        WITH_BROKER(forget_unsubscribes),
        WITH_BROKER(forget_without_an_answer),
        WITH_BROKER(retain_goes_on_after_refusals),
        WITH_BROKER(close_with_everything_open),
        WITH_BROKER(ids),
        WITH_BROKER(settings),
        cmocka_unit_test(corpus_whole_cut_and_mutated),
        cmocka_unit_test(entries_that_are_refused),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    log_set_level(LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
