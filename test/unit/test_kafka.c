/*
 * test_kafka.c - the Kafka port without a server: settings, ids, brokers that are not there, and what only a mock of a
 * broker does on demand. Real brokers: test_kafka_live.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h> /* after it */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "repl/port.h"
#include "wal/kafka.h"
#include "wal/kafka_priv.h"
#include "wal/kafka_reader.c"

#define LIMIT_MS 20000
#define WAIT_FOR(cond)                                                                            \
    do {                                                                                          \
        uint64_t end_ = clock_mono_ms() + LIMIT_MS;                                               \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > end_)                                                           \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            loop_once(loop, false);                                                               \
            usleep(300);                                                                          \
        }                                                                                         \
    } while (0)

static struct loop *loop;
static rd_kafka_t *cluster_owner; /* of the mock, and its producer */
static rd_kafka_mock_cluster_t *cluster;

/* ---- settings ------------------------------------------------------------------------------------ */

static void refused(const struct kafka_options *o, const char *text)
{
    struct err err;

    assert_null(kafka_open(loop, o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_int_equal(err.cls, ERRC_USER);
    if (!strstr(err.text, text))
        fail_msg("\"%s\" is not in: %s", text, err.text);
    assert_null(strstr(err.text, "hush"));
}

static void accepted(const struct kafka_options *o)
{
    struct err err;
    struct wal_port *w = kafka_open(loop, o, &err);

    if (!w)
        fail_msg("%s", err.text);
    assert_string_equal(w->name, "kafka");
    kafka_close(w);
    loop_once(loop, false);
}

static void test_addresses(void **state)
{
    static const char *const bad[] = {"",        ",",             "a:1,", ":9092", "a:0",
                                      "a:65536", "a:99999999999", "a:x",  "a b:1", "a:-1"};
    static const char *const good[] = {"a", "a:1", "127.0.0.1:9092,b:65535", "[::1]:9092", "[::1]"};

    (void)state;
    refused(&(struct kafka_options){0}, "sourceConfig.kafka.address");
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        refused(&(struct kafka_options){.brokers = bad[i]}, "sourceConfig.kafka.address");
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
        accepted(&(struct kafka_options){.brokers = good[i]});
}

static void test_security(void **state)
{
    struct kafka_options o = {.brokers = "a:1", .security_protocol = "sasl_ssl"};

    (void)state;
    refused(&o, "sourceConfig.kafka.saslMechanisms: (nothing)");
    o.sasl_mechanisms = "GSSAPI";
    refused(&o, "sourceConfig.kafka.saslMechanisms: GSSAPI");
    o.sasl_mechanisms = "plain";
    refused(&o, "sourceConfig.kafka.saslUsername");
    o.sasl_username = "u";
    o.sasl_password = "hush";
    accepted(&o);
    o.sasl_mechanisms = "SCRAM-SHA-512";
    accepted(&o);
    o.security_protocol = "";
    refused(&o, "sourceConfig.kafka.securityProtocol");
    o.security_protocol = "TLS";
    refused(&o, "sourceConfig.kafka.securityProtocol: TLS");
}

static void test_tls_files(void **state)
{
    char path[] = "/tmp/test_kafka.XXXXXX";
    struct kafka_options o = {.brokers = "a:1", .security_protocol = "SSL", .ca_path = "/nowhere/ca.pem"};
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    refused(&o, "sourceConfig.kafka.ssl.tlsCaCert: the file /nowhere/ca.pem");
    o.ca_path = path; /* without a certificate in it */
    refused(&o, "sourceConfig.kafka.ssl");
    o.ca_path = NULL;
    accepted(&o);
    o.cert_path = path;
    o.key_password = "hush";
    refused(&o, "sourceConfig.kafka.ssl");
    unlink(path);
}

static void test_properties(void **state)
{
    static const char *const ok[] = {"client.id", "x", "fetch.wait.max.ms", "20", "socket.timeout.ms", "5000", NULL};
    static const char *const bad[][3] = {
        {"group.id", "g", NULL},
        {"auto.offset.reset", "latest", NULL},
        {"enable.auto.commit", "true", NULL},
        {"bootstrap.servers", "b", NULL},
        {"sasl.password", "hush", NULL},
        {"enable.partition.eof", "false", NULL},
        {"fetch.max.bytes", "1000", NULL},
        {"plugin.library.paths", "x", NULL},
        {"allow.auto.create.topics", "true", NULL},
        {"no.such.thing", "1", NULL},
        {"fetch.wait.max.ms", "many", NULL},
        {"ssl.keystore.password", NULL, NULL},
    };
    char text[100];

    (void)state;
    accepted(&(struct kafka_options){.brokers = "a:1", .properties = ok});
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        snprintf(text, sizeof(text), "sourceConfig.kafka.consumer.%s", bad[i][0]);
        refused(&(struct kafka_options){.brokers = "a:1", .properties = bad[i]}, text);
    }
}

/* Whatever is asked for, the sizes fit together. */
static void test_sizes(void **state)
{
    static const size_t asked[] = {0, 1, 1 << 20, 64 << 20, (size_t)4 << 30};
    struct kafka_sizes s;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof(asked) / sizeof(*asked); i++) {
        rd_kafka_conf_t *conf =
            kafka_conf_new(&(struct kafka_options){.brokers = "a:1", .fetch_bytes = asked[i]}, &s, NULL);
        assert_non_null(conf);
        if (kafka_conf_check(conf, "a:1", &err))
            fail_msg("%s", err.text);
        assert_true(s.busy >= 4 && s.queue >= 1024 && s.topic <= s.response);
        if (asked[i] == 0)
            assert_true(s.busy * (s.queue + s.topic) <= 16 << 20);
        rd_kafka_conf_destroy(conf);
    }
}

static void test_ids(void **state)
{
    struct wal_port *w = kafka_open(loop, &(struct kafka_options){.brokers = "a:1"}, NULL);
    const uint8_t id[9] = {0x0d, 0x0c, 0x0b, 0, 0, 0, 0, 0, 0}, negative[8] = {0, 0, 0, 0, 0, 0, 0, 0x80};
    const uint8_t greatest[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f};
    struct wal_pos pos = {7, 7};
    uint8_t out[WAL_ID_MAX];

    (void)state;
    assert_non_null(w);
    assert_int_equal(w->ops->id_decode(id, 8, &pos), 0);
    assert_true(pos.major == 0 && pos.minor == 0x0b0c0d + 1);
    assert_int_equal(w->ops->id_encode(pos, out), 8);
    assert_memory_equal(out, id, 8);
    assert_int_equal(w->ops->id_decode(greatest, 8, &pos), 0);
    assert_int_equal(w->ops->id_encode(pos, out), 8);
    assert_memory_equal(out, greatest, 8);
    pos = (struct wal_pos){7, 7};
    assert_int_equal(w->ops->id_decode(id, 7, &pos), ERR_PROTO);
    assert_int_equal(w->ops->id_decode(id, 9, &pos), ERR_PROTO);
    assert_int_equal(w->ops->id_decode(id, 0, &pos), ERR_PROTO);
    assert_int_equal(w->ops->id_decode(negative, 8, &pos), ERR_PROTO);
    assert_int_equal(pos.major, 7);
    kafka_close(w);
}

/* ---- what a reader and a question got --------------------------------------------------------------- */

struct seen {
    struct wal_reader *r;
    size_t n, ends, told, over;
    bool failed;
    struct err err;
    uint64_t last;
};

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct seen *s = arg;

    for (size_t i = 0; i < n; i++) {
        assert_true(msgs[i].len > 0 && msgs[i].pos.minor > s->last);
        s->last = msgs[i].pos.minor;
    }
    s->n += n;
    s->ends += caught_up;
}

static void on_trouble(void *arg, const struct err *err)
{
    struct seen *s = arg;

    if (!err) {
        s->over++;
        return;
    }
    s->err = *err;
    s->told += err->cls == ERRC_RETRY;
    s->failed |= err->cls != ERRC_RETRY;
}

static struct wal_reader *open_at(struct wal_port *w, struct seen *s, const char *topic, int64_t offset)
{
    static const struct wal_reader_cbs cbs = {on_batch, on_trouble};
    struct wal_start start = {.earliest = offset < 0, .pos = {0, (uint64_t)(offset + 1)}};

    s->r = w->ops->open(w, topic, &start, &cbs, s);
    return s->r;
}

struct answer {
    unsigned done;
    bool failed, found;
    uint64_t last;
    struct err err;
};

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct answer *a = arg;

    a->done++;
    a->failed = err != NULL;
    a->found = found;
    a->last = last.minor;
    if (err)
        a->err = *err;
}

/* ---- nobody there --------------------------------------------------------------------------------------- */

static void test_no_broker(void **state)
{
    /* Port 1 is refused at once; the other is in TEST-NET-1 (RFC 5737), from which nothing comes. */
    static const char *const nobody[] = {"127.0.0.1:1", "192.0.2.1:9092"};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct wal_port *w = kafka_open(loop, &(struct kafka_options){.brokers = nobody[i]}, NULL);
        struct seen s = {0}, paused = {0};
        struct answer a[3] = {{0}}, cancelled = {0};
        uint64_t begin = clock_mono_ms();

        assert_non_null(w);
        open_at(w, &s, "topic", 5);
        w->ops->pause(open_at(w, &paused, "topic", -1));
        for (int k = 0; k < 3; k++)
            w->ops->end(w, "topic", on_end, &a[k]);
        w->ops->end(w, "topic", on_end, &cancelled);
        w->ops->end_cancel(w, &cancelled);
        assert_int_equal(a[0].done, 0);
        WAIT_FOR(a[0].done && a[1].done && a[2].done && s.told);
        assert_true(clock_mono_ms() - begin < 8000);
        for (int k = 0; k < 3; k++) {
            assert_true(a[k].failed && a[k].err.cls == ERRC_RETRY);
            assert_non_null(strstr(a[k].err.text, "sourceConfig.kafka.address"));
            assert_non_null(strstr(a[k].err.text, nobody[i]));
        }
        assert_non_null(strstr(s.err.text, "sourceConfig.kafka.address"));
        assert_int_equal(s.told, 1);
        assert_int_equal(paused.told + cancelled.done + s.n, 0);
        w->ops->end(w, "topic", on_end, &cancelled); /* is not answered any more */
        loop_once(loop, false);
        w->ops->close(s.r);
        w->ops->close(s.r);
        w->ops->close(paused.r);
        begin = clock_mono_ms();
        kafka_close(w);
        assert_true(clock_mono_ms() - begin < 1500);
        loop_once(loop, false);
        assert_int_equal(cancelled.done, 0);
    }
}

static void test_close_nothing(void **state)
{
    (void)state;
    kafka_close(NULL);
    kafka_close(kafka_open(loop, &(struct kafka_options){.brokers = "a:1"}, NULL));
}

/* ---- with a mock of a broker --------------------------------------------------------------------------------- */

static void mock_produce(const char *topic, const void *data, size_t len)
{
    int e = rd_kafka_producev(cluster_owner, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(0),
                              RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_KEY("k", 1),
                              RD_KAFKA_V_VALUE((void *)(uintptr_t)data, len), RD_KAFKA_V_END);
    assert_int_equal(e, RD_KAFKA_RESP_ERR_NO_ERROR);
    assert_int_equal(rd_kafka_flush(cluster_owner, 10000), 0);
}

static struct wal_port *mock_port(void)
{
    struct wal_port *w =
        kafka_open(loop, &(struct kafka_options){.brokers = rd_kafka_mock_cluster_bootstraps(cluster)}, NULL);

    assert_non_null(w);
    return w;
}

static void test_tombstones(void **state)
{
    struct wal_port *w = mock_port();
    struct seen s = {0}, t = {0};
    struct answer a = {0};

    (void)state;
    rd_kafka_mock_topic_create(cluster, "tombs", 1, 1);
    mock_produce("tombs", "one", 3);
    mock_produce("tombs", NULL, 0);
    mock_produce("tombs", "", 0);
    mock_produce("tombs", "two", 3);
    open_at(w, &s, "tombs", -1);
    open_at(w, &t, "tombs", 1); /* one is a place too */
    WAIT_FOR(s.n == 2 && s.ends && t.n == 1);
    assert_int_equal(s.last, 4);
    w->ops->end(w, "tombs", on_end, &a);
    WAIT_FOR(a.done);
    assert_true(a.found && a.last == 4);
    w->ops->close(s.r);
    w->ops->close(t.r);
    kafka_close(w);
}

/* Errors of a partition heal by themselves; they are told only when they last. */
static void test_partition_errors(void **state)
{
    struct wal_port *w = mock_port();
    struct seen s = {0};

    (void)state;
    rd_kafka_mock_topic_create(cluster, "errors", 1, 1);
    mock_produce("errors", "one", 3);
    open_at(w, &s, "errors", -1);
    WAIT_FOR(s.n == 1);
    rd_kafka_mock_push_request_errors(cluster, 1 /* Fetch */, 2, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                                      RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR);
    mock_produce("errors", "two", 3);
    WAIT_FOR(s.n == 2);
    assert_int_equal(s.told, 0);
    rd_kafka_mock_topic_set_error(cluster, "errors", RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    rd_kafka_mock_broker_set_down(cluster, 1);
    WAIT_FOR(s.told == 1);
    assert_int_equal(s.err.cls, ERRC_RETRY);
    rd_kafka_mock_topic_set_error(cluster, "errors", RD_KAFKA_RESP_ERR_NO_ERROR);
    rd_kafka_mock_broker_set_up(cluster, 1);
    WAIT_FOR(s.over == 1);
    mock_produce("errors", "three", 5);
    WAIT_FOR(s.n == 3);
    assert_false(s.failed);
    w->ops->close(s.r);
    kafka_close(w);
}

/* No broker sends damaged data on demand, so the reader is given what librdkafka would make of it. */
static void test_damaged_data(void **state)
{
    struct wal_port *w = mock_port();
    struct seen s = {0};
    struct slice slice = {.n = 0};
    rd_kafka_message_t m = {.err = RD_KAFKA_RESP_ERR__BAD_COMPRESSION};

    (void)state;
    rd_kafka_mock_topic_create(cluster, "damaged", 1, 1);
    mock_produce("damaged", "one", 3);
    open_at(w, &s, "damaged", -1);
    WAIT_FOR(s.n == 1 && s.ends);
    assert_false(take_error(s.r, &slice, &m));
    assert_false(s.failed); /* from the loop, not from inside */
    WAIT_FOR(s.failed);
    assert_int_equal(s.err.cls, ERRC_DATA);
    assert_non_null(strstr(s.err.text, "damaged data at offset 1"));
    mock_produce("damaged", "two", 3);
    for (int i = 0; i < 300; i++) {
        loop_once(loop, false);
        usleep(1000);
    }
    assert_int_equal(s.n, 1);
    w->ops->resume(s.r);
    w->ops->close(s.r);
    kafka_close(w);
}

/* The last buffer of a closed port ends the client. */
static struct buf *kept;

static void keep_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    (void)arg;
    (void)caught_up;
    if (n > 0 && !kept)
        kept = buf_ref(msgs[0].buf);
}

static void test_buffer_outlives_port(void **state)
{
    static const struct wal_reader_cbs cbs = {keep_batch, on_trouble};
    struct wal_port *w = mock_port();
    char *big = xmalloc(50000);
    struct seen s = {0};

    (void)state;
    memset(big, 'b', 50000);
    rd_kafka_mock_topic_create(cluster, "kept", 1, 1);
    mock_produce("kept", big, 50000);
    s.r = w->ops->open(w, "kept", &(struct wal_start){.earliest = true}, &cbs, &s);
    WAIT_FOR(kept);
    w->ops->close(s.r);
    kafka_close(w);
    loop_once(loop, false);
    assert_memory_equal(kept->data, big, 50000);
    buf_unref(kept);
    free(big);
}

/* ---- set-up ------------------------------------------------------------------------------------------------------ */

static int set_up(void **state)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char why[200];

    (void)state;
    loop = loop_new();
    rd_kafka_conf_set(conf, "test.mock.num.brokers", "1", why, sizeof(why));
    cluster_owner = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
    assert_non_null(cluster_owner);
    cluster = rd_kafka_handle_mock_cluster(cluster_owner);
    assert_non_null(cluster);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    loop_free(loop);
    rd_kafka_destroy(cluster_owner);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses),        cmocka_unit_test(test_security),
        cmocka_unit_test(test_tls_files),        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_sizes),            cmocka_unit_test(test_ids),
        cmocka_unit_test(test_no_broker),        cmocka_unit_test(test_close_nothing),
        cmocka_unit_test(test_tombstones),       cmocka_unit_test(test_partition_errors),
        cmocka_unit_test(test_damaged_data),     cmocka_unit_test(test_buffer_outlives_port),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
