/*
 * test_kafka_live.c - the Kafka port on a real broker, which this program starts and stops itself: KAFKA_COMMAND is a
 * shell command that runs it in the foreground, KAFKA=host:port where it listens, KAFKA_SASL and KAFKA_TLS the same
 * with login and with TLS, KAFKA_CA the authority's file, KAFKA_USER and KAFKA_PASSWORD (test/e2e/test_kafka.py).
 * KAFKA_TAKES_OLD_SCRAM=1: the broker accepts SCRAM of any librdkafka.
 * Without them nothing runs; MILVUS_CDC_REQUIRE_LIVE=1 makes that a failure.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/log.h"
#include "kafka_live.h"
#include "wal/kafka.h"
#include "wal/kafka_priv.h"

static pid_t broker;

/* ---- the broker ---------------------------------------------------------------------------------- */

static void broker_start(void)
{
    broker_run(&broker, getenv("KAFKA_COMMAND"));
}

/* ---- what is on it --------------------------------------------------------------------------------- */

enum admin { CREATE, DELETE, TRUNCATE };

/* Creates or deletes a topic, or deletes its records before an offset. */
static void admin(enum admin what, const char *topic, int64_t before)
{
    rd_kafka_queue_t *q = rd_kafka_queue_new(producer);
    rd_kafka_event_t *e;
    char why[200];

    if (what == CREATE) {
        rd_kafka_NewTopic_t *t = rd_kafka_NewTopic_new(topic, 1, 1, why, sizeof(why));
        rd_kafka_CreateTopics(producer, &t, 1, NULL, q);
        e = rd_kafka_queue_poll(q, LIMIT_MS);
        rd_kafka_NewTopic_destroy(t);
    } else if (what == DELETE) {
        rd_kafka_DeleteTopic_t *t = rd_kafka_DeleteTopic_new(topic);
        rd_kafka_DeleteTopics(producer, &t, 1, NULL, q);
        e = rd_kafka_queue_poll(q, LIMIT_MS);
        rd_kafka_DeleteTopic_destroy(t);
    } else {
        rd_kafka_topic_partition_list_t *l = rd_kafka_topic_partition_list_new(1);
        rd_kafka_topic_partition_list_add(l, topic, 0)->offset = before;
        rd_kafka_DeleteRecords_t *d = rd_kafka_DeleteRecords_new(l);
        rd_kafka_DeleteRecords(producer, &d, 1, NULL, q);
        e = rd_kafka_queue_poll(q, LIMIT_MS);
        rd_kafka_DeleteRecords_destroy(d);
        rd_kafka_topic_partition_list_destroy(l);
    }
    assert_non_null(e);
    if (rd_kafka_event_error(e))
        fail_msg("%s", rd_kafka_event_error_string(e));
    rd_kafka_event_destroy(e);
    rd_kafka_queue_destroy(q);
}

static bool topic_exists(const char *topic)
{
    const struct rd_kafka_metadata *md;
    bool found = false;

    assert_int_equal(rd_kafka_metadata(producer, 1, NULL, &md, 5000), RD_KAFKA_RESP_ERR_NO_ERROR);
    for (int i = 0; i < md->topic_cnt; i++)
        found |= strcmp(md->topics[i].topic, topic) == 0 && md->topics[i].partition_cnt > 0;
    rd_kafka_metadata_destroy(md);
    return found;
}

static void assert_lost(const struct seen *s, const char *text)
{
    assert_true(s->failed);
    if (s->err.cls != ERRC_LOST || s->err.code != ERR_GONE || !strstr(s->err.text, text))
        fail_msg("not LOST with \"%s\" but %s: %s", text, err_class_name(s->err.cls), s->err.text);
}

struct answer {
    bool done, failed, found;
    struct wal_pos last;
    struct err err;
};

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct answer *a = arg;

    assert_false(a->done);
    a->done = true;
    a->failed = err != NULL;
    if (err)
        a->err = *err;
    a->found = found;
    a->last = last;
}

static struct answer end_of(const char *topic)
{
    struct answer a = {0};

    port->ops->end(port, topic, on_end, &a);
    assert_false(a.done);
    WAIT_FOR(a.done);
    return a;
}

/* ---- tests -------------------------------------------------------------------------------------------- */

static void test_earliest_position_and_end(void **state)
{
    const char *topic = topic_name("basic");
    struct seen s = {0}, p = {0};
    struct answer a;
    uint8_t id[WAL_ID_MAX];
    struct wal_pos pos;

    (void)state;
    produce(topic, 0, 1000, 100);
    a = end_of(topic);
    assert_false(a.failed);
    assert_true(a.found);
    assert_int_equal(a.last.minor, 1000); /* offset 999 */
    read_from(&s, topic, -1);
    WAIT_FOR(s.n == 1000 && s.ends > 0);
    assert_true(s.dense && s.first == 1 && s.last == 1000);
    assert_int_equal(s.bytes, 100000);
    assert_int_equal(port->ops->id_encode((struct wal_pos){0, s.last}, id), 8);
    assert_int_equal(port->ops->id_decode(id, 8, &pos), 0);
    read_from(&p, topic, (int64_t)pos.minor - 1); /* the last one that exists */
    WAIT_FOR(p.n == 1);
    assert_int_equal(p.first_number, 999);
    produce(topic, 1000, 1, 100);
    WAIT_FOR(s.n == 1001 && p.n == 2);
    assert_true(s.dense && p.dense && !s.failed && !s.told);
    seen_close(&s);
    seen_close(&p);
}

/* A topic can be read from several places; so more clients than one are needed, and not one more. */
static void test_readers_of_one_topic(void **state)
{
    const char *topic = topic_name("shared");
    struct seen s[3] = {{0}, {0}, {0}};
    struct kafka *w = container_of(port, struct kafka, port);
    struct kclient *c;
    size_t clients = 0;

    (void)state;
    produce(topic, 0, 100, 50);
    read_from(&s[0], topic, -1);
    read_from(&s[1], topic, 40);
    read_from(&s[2], topic, 99);
    WAIT_FOR(s[0].n == 100 && s[1].n == 60 && s[2].n == 1);
    assert_true(s[0].dense && s[1].dense);
    assert_int_equal(s[1].first_number, 40);
    seen_close(&s[1]);
    s[1] = (struct seen){0};
    read_from(&s[1], topic, 10); /* the client that is free again */
    WAIT_FOR(s[1].n == 90);
    STAILQ_FOREACH (c, &w->clients, next)
        clients++;
    assert_int_equal(clients, 3);
    for (int i = 0; i < 3; i++)
        seen_close(&s[i]);
}

static void test_pause_and_close(void **state)
{
    const char *topic = topic_name("pause");
    struct seen s = {.pause_each = true}, c = {.close_after = 10};
    size_t batches, n;

    (void)state;
    produce(topic, 0, 3000, 1000);
    read_from(&s, topic, -1);
    for (batches = 1; s.n < 3000; batches++) {
        WAIT_FOR(s.batches == batches);
        n = s.n;
        for (int i = 0; i < 30; i++)
            turn();
        assert_int_equal(s.n, n);
        port->ops->pause(s.r);
        port->ops->resume(s.r);
        port->ops->resume(s.r);
    }
    assert_true(s.dense);
    assert_int_equal(s.last_number, 2999);
    read_from(&c, topic, -1);
    WAIT_FOR(!c.r); /* from its own callback */
    assert_true(c.n >= 10);
    seen_close(&s);
}

/* More topics with a backlog than may have data waiting; some are paused for long. */
static void test_many_topics(void **state)
{
    enum { TOPICS = 40, EACH = 400, SIZE = 5000 };
    struct seen s[TOPICS] = {{0}};
    char topics[TOPICS][100];
    struct kafka *w = container_of(port, struct kafka, port);
    unsigned most = 0, parked = 0;
    size_t sum = 0;

    (void)state;
    for (int i = 0; i < TOPICS; i++) {
        snprintf(topics[i], 80, "%s", topic_name("many"));
        snprintf(topics[i] + strlen(topics[i]), 16, "-%d", i);
        produce(topics[i], 0, EACH, SIZE);
    }
    for (int i = 0; i < TOPICS; i++) {
        read_from(&s[i], topics[i], -1);
        if (i % 2)
            port->ops->pause(s[i].r);
    }
    while (sum < (size_t)EACH * TOPICS / 2) {
        WAIT_FOR(true);
        turn();
        most = w->n_busy > most ? w->n_busy : most;
        parked |= !TAILQ_EMPTY(&w->parked);
        sum = 0;
        for (int i = 0; i < TOPICS; i++) {
            assert_true(!s[i].failed && (i % 2 == 0 || s[i].n == 0));
            sum += s[i].n;
        }
    }
    assert_true(most <= w->sizes.busy);
    assert_true(parked);
    for (int i = 1; i < TOPICS; i += 2)
        port->ops->resume(s[i].r);
    for (int i = 0; i < TOPICS; i++) {
        WAIT_FOR(s[i].n == EACH);
        assert_true(s[i].dense);
    }
    for (int i = 0; i < TOPICS; i++)
        seen_close(&s[i]);
    assert_int_equal(w->n_busy, 0);
    assert_true(TAILQ_EMPTY(&w->parked));
}

static void test_topic_made_later(void **state)
{
    const char *topic = topic_name("later");
    struct seen s = {0};
    struct answer a = end_of(topic);
    uint64_t until;

    (void)state;
    assert_false(a.failed);
    assert_false(a.found);
    read_from(&s, topic, -1);
    WAIT_FOR(s.ends == 1);
    for (until = clock_mono_ms() + 1500; clock_mono_ms() < until;)
        turn();
    assert_false(topic_exists(topic)); /* though the broker makes topics for whoever asks */
    admin(CREATE, topic, 0);
    produce(topic, 0, 5, 20);
    WAIT_FOR(s.n == 5);
    assert_true(s.dense && s.first == 1 && !s.failed && !s.told);
    seen_close(&s);
}

static void test_emptied_topic(void **state)
{
    const char *topic = topic_name("emptied");
    struct seen s = {0}, p = {0};
    struct answer a;

    (void)state;
    produce(topic, 0, 10, 20);
    admin(TRUNCATE, topic, 10);
    a = end_of(topic);
    assert_false(a.failed);
    assert_false(a.found);
    read_from(&s, topic, -1);
    WAIT_FOR(s.ends == 1);
    read_from(&p, topic, 9);
    WAIT_FOR(p.failed);
    assert_lost(&p, "offset 9 is gone: the topic is empty, its next offset is 10");
    produce(topic, 10, 2, 20);
    WAIT_FOR(s.n == 2);
    assert_int_equal(s.first, 11);
    seen_close(&s);
    seen_close(&p);
}

static void test_lost(void **state)
{
    const char *topic = topic_name("lost");
    struct seen gone = {0}, beyond = {0}, far = {0}, first = {0};
    uint64_t begin = clock_mono_ms();

    (void)state;
    produce(topic, 0, 100, 20);
    admin(TRUNCATE, topic, 60);
    read_from(&gone, topic, 59);
    read_from(&beyond, topic, 100);
    read_from(&far, topic, 5000);
    read_from(&first, topic, 60);
    WAIT_FOR(gone.failed && beyond.failed && far.failed && first.n == 40);
    assert_lost(&gone, "offset 59 is gone: 60 to 99 exist");
    assert_lost(&beyond, "offset 100 is gone: 60 to 99 exist");
    assert_lost(&far, "offset 5000 is gone: 60 to 99 exist");
    assert_true(clock_mono_ms() - begin < 20000);
    produce(topic, 100, 1, 20); /* nobody who has ended gets it */
    WAIT_FOR(first.n == 41);
    assert_int_equal(gone.n + beyond.n + far.n, 0);
    seen_close(&gone);
    seen_close(&beyond);
    seen_close(&far);
    seen_close(&first);
}

/* A reader that stands still while retention goes past it. */
static void test_overtaken(void **state)
{
    const char *topic = topic_name("overtaken");
    struct seen s = {.pause_each = true};

    (void)state;
    produce(topic, 0, 4, 1 << 20);
    read_from(&s, topic, -1);
    WAIT_FOR(s.batches == 1);
    produce(topic, 4, 30, 1 << 20); /* more than is prefetched */
    admin(TRUNCATE, topic, 30);
    s.pause_each = false;
    port->ops->resume(s.r);
    WAIT_FOR(s.failed);
    assert_true(s.dense && s.n < 30);
    assert_lost(&s, "30 to 33 exist");
    seen_close(&s);
}

static void test_made_anew(void **state)
{
    const char *topic = topic_name("anew");
    struct seen s = {0}, p = {0};

    (void)state;
    produce(topic, 0, 10, 20);
    read_from(&s, topic, -1);
    WAIT_FOR(s.n == 10);
    admin(DELETE, topic, 0);
    WAIT_FOR(s.told == 1);
    assert_non_null(strstr(s.err.text, topic));
    read_from(&p, topic, 3); /* what it has is gone, but a topic may be on its way */
    WAIT_FOR(p.told == 1);
    admin(CREATE, topic, 0);
    WAIT_FOR(s.failed && p.failed);
    assert_lost(&s, "offset 10 is gone: the topic is empty, its next offset is 0");
    assert_lost(&p, "offset 3 is gone: the topic is empty, its next offset is 0");
    seen_close(&s);
    seen_close(&p);
}

static void test_big_and_packed(void **state)
{
    const char *big = topic_name("big"), *packed = topic_name("packed");
    struct seen b = {.keep = true}, p = {0}, q = {0};
    rd_kafka_t *zstd = producer_new("zstd", false);
    char data[3000];

    (void)state;
    produce(big, 0, 3, 9 << 20);
    read_from(&b, big, -1);
    WAIT_FOR(b.n == 3);
    assert_true(b.dense);
    assert_int_equal(b.largest, 9 << 20);
    for (unsigned i = 0; i < 2000; i++) {
        memset(data, 'z', sizeof(data));
        snprintf(data, sizeof(data), "%010u", i);
        produce_one(zstd, packed, data, sizeof(data));
    }
    assert_int_equal(rd_kafka_flush(zstd, LIMIT_MS), 0);
    rd_kafka_destroy(zstd);
    read_from(&p, packed, -1);
    WAIT_FOR(p.n == 2000);
    assert_true(p.dense);
    read_from(&q, packed, 1500); /* in the middle of a packed batch */
    WAIT_FOR(q.n == 500);
    assert_true(q.dense && q.first_number == 1500);
    seen_close(&p);
    seen_close(&q);
    port->ops->close(b.r); /* a buffer outlives its reader */
    b.r = NULL;
    assert_int_equal(b.kept->data[(9 << 20) - 1], 'x');
    seen_close(&b);
}

/* ---- outages ------------------------------------------------------------------------------------------- */

static void outage(int sig, const char *topic)
{
    struct seen s = {0}, p = {.pause_each = true};
    struct answer a;
    unsigned over;

    produce(topic, 0, 50, 1000);
    read_from(&s, topic, -1);
    read_from(&p, topic, -1);
    WAIT_FOR(s.n == 50 && p.batches == 1);
    broker_end(&broker, sig);
    a = end_of(topic);
    assert_true(a.failed);
    assert_int_equal(a.err.cls, ERRC_RETRY);
    assert_non_null(strstr(a.err.text, "sourceConfig.kafka.address"));
    assert_non_null(strstr(a.err.text, brokers));
    WAIT_FOR(s.told == 1);
    assert_int_equal(s.err.cls, ERRC_RETRY);
    assert_non_null(strstr(s.err.text, "sourceConfig.kafka.address"));
    assert_int_equal(p.told, 0);
    p.pause_each = false;
    port->ops->resume(p.r);
    broker_start();
    broker_wait();
    WAIT_FOR(s.over >= 1 && s.over == s.told); /* also without a new record; a slow start may be trouble twice */
    produce(topic, 50, 50, 1000);
    WAIT_FOR(s.n == 100 && p.n == 100);
    assert_true(s.dense && p.dense);
    over = p.told;
    WAIT_FOR(p.over == over);
    seen_close(&s);
    seen_close(&p);
}

static void test_broker_restarts(void **state)
{
    (void)state;
    outage(SIGTERM, topic_name("term"));
}

static void test_broker_dies(void **state)
{
    (void)state;
    outage(SIGKILL, topic_name("kill"));
}

/* Stopped, so that connections stand and nothing answers: everything stays bounded. */
static void test_broker_hangs(void **state)
{
    const char *topic = topic_name("hang");
    struct seen s = {0};
    struct answer a;
    uint64_t begin;

    (void)state;
    produce(topic, 0, 5, 1000);
    read_from(&s, topic, -1);
    WAIT_FOR(s.n == 5);
    kill(broker, SIGSTOP);
    begin = clock_mono_ms();
    a = end_of(topic);
    assert_true(a.failed && a.err.cls == ERRC_RETRY);
    assert_true(clock_mono_ms() - begin < 6000);
    WAIT_FOR(s.told == 1);
    seen_close(&s);
    begin = clock_mono_ms();
    kafka_close(port);
    assert_true(clock_mono_ms() - begin < 2000);
    kill(broker, SIGCONT);
    port = kafka_open(loop, &(struct kafka_options){.brokers = brokers}, &a.err);
    assert_non_null(port);
}

/* ---- credentials and TLS ---------------------------------------------------------------------------------- */

static void with_options(const struct kafka_options *o, const char *topic, bool works, const char *text)
{
    struct wal_port *usual = port;
    struct seen s = {0};
    struct answer a;
    struct err err;

    port = kafka_open(loop, o, &err);
    if (!port)
        fail_msg("%s", err.text);
    read_from(&s, topic, -1);
    if (works) {
        WAIT_FOR(s.n == 10);
        assert_true(end_of(topic).found);
    } else {
        a = end_of(topic);
        assert_true(a.failed && a.err.cls == ERRC_RETRY);
        WAIT_FOR(s.told == 1);
        if (!strstr(s.err.text, text) || strstr(s.err.text, "wrong-password"))
            fail_msg("\"%s\" is not in: %s", text, s.err.text);
        assert_non_null(strstr(a.err.text, text));
    }
    seen_close(&s);
    kafka_close(port);
    port = usual;
}

static void test_login(void **state)
{
    static const char *const mechanisms[] = {"PLAIN", "SCRAM-SHA-256", "scram-sha-512"};
    const char *topic = topic_name("login");
    struct kafka_options o = {.brokers = getenv("KAFKA_SASL"),
                              .security_protocol = "sasl_plaintext",
                              .sasl_username = getenv("KAFKA_USER"),
                              .sasl_password = getenv("KAFKA_PASSWORD")};

    (void)state;
    produce(topic, 0, 10, 20);
    for (int i = 0; i < 3; i++) { /* SCRAM of an old librdkafka and a new broker do not fit together */
        o.sasl_mechanisms = mechanisms[i];
        with_options(&o, topic, i == 0 || rd_kafka_version() >= 0x02060100 || getenv("KAFKA_TAKES_OLD_SCRAM"),
                     "refuses SCRAM of librdkafka before 2.6.1");
    }
    o.sasl_password = "wrong-password";
    for (int i = 0; i < 3; i++) {
        o.sasl_mechanisms = mechanisms[i];
        with_options(&o, topic, false, "check sourceConfig.kafka.saslUsername");
    }
}

static void test_tls(void **state)
{
    const char *topic = topic_name("tls");
    struct kafka_options o = {
        .brokers = getenv("KAFKA_TLS"), .security_protocol = "SSL", .ca_path = getenv("KAFKA_CA")};

    (void)state;
    produce(topic, 0, 10, 20);
    with_options(&o, topic, true, "");
    o.ca_path = NULL; /* the system's authorities do not know it */
    with_options(&o, topic, false, "the TLS files");
}

/* ---- the turn of the loop ------------------------------------------------------------------------------- */

static void test_latency(void **state)
{
    enum { N = 200 };
    const char *topic = topic_name("latency");
    struct seen s = {0};
    uint64_t begin, us[N], sum = 0;

    (void)state;
    produce(topic, 0, 1, 100);
    read_from(&s, topic, -1);
    WAIT_FOR(s.n == 1);
    for (unsigned i = 0; i < N; i++) {
        begin = clock_mono_us();
        produce(topic, 1 + i, 1, 100); /* acknowledged by the broker */
        WAIT_FOR(s.n == 2 + i);
        us[i] = clock_mono_us() - begin;
        sum += us[i];
    }
    print_message("from produce to on_batch: %llu us on average\n", (unsigned long long)(sum / N));
    assert_true(sum / N < 50000);
    seen_close(&s);
}

/* ---- set-up ------------------------------------------------------------------------------------------------ */

static int set_up(void **state)
{
    struct err err;

    (void)state;
    print_message("librdkafka %s\n", rd_kafka_version_str());
    brokers = getenv("KAFKA");
    snprintf(run, sizeof(run), "%llx", (unsigned long long)clock_wall_ms());
    if (getenv("KAFKA_TEST_DEBUG"))
        log_set_level(LOG_DEBUG);
    loop = loop_new();
    producer = producer_new("none", false);
    broker_start();
    broker_wait();
    port = kafka_open(loop, &(struct kafka_options){.brokers = brokers}, &err);
    assert_non_null(port);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    kafka_close(port);
    loop_free(loop);
    rd_kafka_destroy(producer);
    broker_end(&broker, SIGKILL);
    print_message("longest turn of the loop: %llu ms\n", (unsigned long long)longest_turn_ms);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_earliest_position_and_end),
        cmocka_unit_test(test_readers_of_one_topic),
        cmocka_unit_test(test_pause_and_close),
        cmocka_unit_test(test_many_topics),
        cmocka_unit_test(test_topic_made_later),
        cmocka_unit_test(test_emptied_topic),
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_overtaken),
        cmocka_unit_test(test_made_anew),
        cmocka_unit_test(test_big_and_packed),
        cmocka_unit_test(test_latency),
        cmocka_unit_test(test_login),
        cmocka_unit_test(test_tls),
        cmocka_unit_test(test_broker_restarts),
        cmocka_unit_test(test_broker_dies),
        cmocka_unit_test(test_broker_hangs),
    };

    if (!getenv("KAFKA") || !getenv("KAFKA_COMMAND")) {
        print_message("KAFKA, KAFKA_COMMAND: no broker to test with: SKIPPED\n");
        return getenv("MILVUS_CDC_REQUIRE_LIVE") != NULL;
    }
    if (getenv("KAFKA_TEST"))
        cmocka_set_test_filter(getenv("KAFKA_TEST"));
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
