/*
 * test_kafka_cluster_live.c - the Kafka port while partitions change their leader, on a cluster that this program
 * starts and stops itself: KAFKA_NODE_1 and KAFKA_NODE_2 are shell commands that run a broker each in the foreground,
 * the first one is the controller too, KAFKA_NODES=host:port,host:port where they listen. A preferred leader that is
 * back gets its partitions again within a second (test/e2e/test_kafka_cluster.py).
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

enum {
    BACKLOG = 10000,
    SIZE = 4000,
    A_SECOND = 2000, /* records written; without a limit a node that is back would never have all */
};

static pid_t node[3]; /* 1 and 2 */

static void node_start(int n)
{
    broker_run(&node[n], getenv(n == 1 ? "KAFKA_NODE_1" : "KAFKA_NODE_2"));
}

/* ---- the topic ------------------------------------------------------------------------------------- */

/* Its copies are on both nodes, and node 2 is the preferred leader. */
static void make_topic(const char *topic)
{
    rd_kafka_queue_t *q = rd_kafka_queue_new(producer);
    char why[200];
    int32_t nodes[] = {2, 1};
    rd_kafka_NewTopic_t *t = rd_kafka_NewTopic_new(topic, 1, -1, why, sizeof(why));
    const rd_kafka_topic_result_t **made;
    rd_kafka_event_t *e;
    size_t n;
    rd_kafka_resp_err_t code;

    assert_int_equal(rd_kafka_NewTopic_set_replica_assignment(t, 0, nodes, 2, why, sizeof(why)), 0);
    rd_kafka_CreateTopics(producer, &t, 1, NULL, q);
    e = rd_kafka_queue_poll(q, LIMIT_MS);
    assert_non_null(e);
    assert_int_equal(rd_kafka_event_error(e), 0);
    made = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(e), &n);
    code = rd_kafka_topic_result_error(made[0]);
    if (code)
        fail_msg("%s", rd_kafka_err2str(code));
    rd_kafka_event_destroy(e);
    rd_kafka_NewTopic_destroy(t);
    rd_kafka_queue_destroy(q);
}

static bool is_in_sync(const struct rd_kafka_metadata_partition *p, int32_t n)
{
    for (int i = 0; i < p->isr_cnt; i++)
        if (p->isrs[i] == n)
            return true;
    return false;
}

/* The node that leads it, 0: none. synced: only if both have everything. */
static int32_t leader(const char *topic, bool synced)
{
    rd_kafka_topic_t *t = rd_kafka_topic_new(producer, topic, NULL);
    const struct rd_kafka_metadata *md;
    const struct rd_kafka_metadata_partition *p;
    int32_t found = 0;

    if (rd_kafka_metadata(producer, 0, t, &md, 2000) == RD_KAFKA_RESP_ERR_NO_ERROR) {
        p = md->topics[0].partition_cnt == 1 ? &md->topics[0].partitions[0] : NULL;
        if (p && p->leader > 0 && (!synced || (is_in_sync(p, 1) && is_in_sync(p, 2))))
            found = p->leader;
        rd_kafka_metadata_destroy(md);
    }
    rd_kafka_topic_destroy(t);
    return found;
}

/* ---- the flow ---------------------------------------------------------------------------------------- */

static unsigned made; /* records that the producer has got */

/* A turn of the loop in which new records are written. */
static void flow(const char *topic)
{
    static char data[SIZE];
    static uint64_t due_us;
    uint64_t now = clock_mono_us();

    for (due_us = due_us + 100000 < now ? now : due_us; due_us <= now; due_us += 1000000 / A_SECOND) {
        memset(data, 'x', sizeof(data));
        snprintf(data, sizeof(data), "%010u", made++);
        produce_one(producer, topic, data, sizeof(data));
    }
    rd_kafka_poll(producer, 0);
    turn();
}

#define FLOW_UNTIL(cond)                                                                          \
    do {                                                                                          \
        uint64_t until_ = clock_mono_ms() + LIMIT_MS;                                             \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > until_)                                                         \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            flow(topic);                                                                          \
        }                                                                                         \
    } while (0)

/* So many records that are not written yet are read. */
static void reads_on(const char *topic, const struct seen *s)
{
    unsigned goal = made + A_SECOND;

    FLOW_UNTIL(s->n >= goal);
}

static void reads_to_the_end(struct seen *s)
{
    assert_int_equal(rd_kafka_flush(producer, LIMIT_MS), 0);
    WAIT_FOR(s->n >= made);
    assert_int_equal(s->n, made);
    assert_true(s->dense && s->first_number == 0 && !s->failed);
    WAIT_FOR(s->told == s->over);
    seen_close(s);
}

/* Every record once and in order, whoever leads. One reader is at the end of the log, the other one far behind it. */
static void test_leaders_change(void **state)
{
    const char *topic = topic_name("leaders");
    struct seen s = {0}, behind = {0};
    uint64_t begin;

    (void)state;
    make_topic(topic);
    produce(topic, 0, BACKLOG, SIZE);
    made = BACKLOG;
    assert_int_equal(leader(topic, true), 2);
    read_from(&s, topic, -1);
    reads_on(topic, &s);

    read_from(&behind, topic, -1);
    FLOW_UNTIL(behind.n >= BACKLOG / 10);
    broker_end(&node[2], SIGKILL);
    begin = clock_mono_ms();
    assert_true(behind.n < BACKLOG);
    reads_on(topic, &s);
    print_message("the leader was killed: %llu ms until %d records more were written and read\n",
                  (unsigned long long)(clock_mono_ms() - begin), A_SECOND);
    assert_int_equal(leader(topic, false), 1);

    node_start(2); /* gets the records that it missed, then the partition */
    FLOW_UNTIL(leader(topic, true) == 2);
    reads_on(topic, &s);

    kill(node[2], SIGTERM); /* hands the partition over before it ends */
    FLOW_UNTIL(leader(topic, false) == 1);
    reads_on(topic, &s);
    broker_end(&node[2], SIGKILL);

    reads_to_the_end(&s);
    reads_to_the_end(&behind);
}

static int set_up(void **state)
{
    struct err err;

    (void)state;
    brokers = getenv("KAFKA_NODES");
    snprintf(run, sizeof(run), "%llx", (unsigned long long)clock_wall_ms());
    if (getenv("KAFKA_TEST_DEBUG"))
        log_set_level(LOG_DEBUG);
    loop = loop_new();
    producer = producer_new("none", true);
    node_start(1);
    node_start(2);
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
    broker_end(&node[2], SIGKILL);
    broker_end(&node[1], SIGKILL);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaders_change),
    };

    if (!getenv("KAFKA_NODES") || !getenv("KAFKA_NODE_1") || !getenv("KAFKA_NODE_2")) {
        print_message("KAFKA_NODES, KAFKA_NODE_1, KAFKA_NODE_2: no brokers to test with: SKIPPED\n");
        return getenv("MILVUS_CDC_REQUIRE_LIVE") != NULL;
    }
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
