/*
 * rawkafka.c - the least that reads a topic of Kafka with librdkafka: partition 0 from its first record to the end that
 * it had when this began. What our reader is measured against.
 *
 *   rawkafka --brokers HOST:PORT --topic NAME [--property NAME=VALUE]...
 *   {"bytes": ..., "messages": ..., "seconds": ..., "cpu_seconds": ..., "peak_kib": ...}
 */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raw.h"

enum { BATCH = 256 };

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "rawkafka: %s: %s\n", what, why);
    exit(1);
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
    char why[300];

    if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) != RD_KAFKA_CONF_OK)
        die(name, why);
}

static void set_pair(rd_kafka_conf_t *conf, char *pair)
{
    char *eq = strchr(pair, '=');

    if (!eq)
        die(pair, "not NAME=VALUE");
    *eq = '\0';
    set(conf, pair, eq + 1);
}

struct count {
    unsigned long long bytes, messages;
};

/* Until the record before high was seen. */
static void read_all(rd_kafka_queue_t *q, int64_t high, struct count *c)
{
    rd_kafka_message_t *m[BATCH];
    int64_t next = 0;

    while (next < high) {
        ssize_t n = rd_kafka_consume_batch_queue(q, 1000, m, BATCH);

        for (ssize_t i = 0; i < n; i++) {
            if (m[i]->err)
                die("reading", rd_kafka_message_errstr(m[i]));
            c->bytes += m[i]->len;
            c->messages++;
            next = m[i]->offset + 1;
            rd_kafka_message_destroy(m[i]);
        }
    }
}

static void run(rd_kafka_conf_t *conf, const char *name, struct count *c)
{
    char why[300];
    int64_t low, high;
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why));
    rd_kafka_topic_t *topic;
    rd_kafka_queue_t *q;
    rd_kafka_resp_err_t err;

    if (!rk)
        die("client", why);
    err = rd_kafka_query_watermark_offsets(rk, name, 0, &low, &high, 10000);
    if (err)
        die(name, rd_kafka_err2str(err));
    topic = rd_kafka_topic_new(rk, name, NULL);
    q = rd_kafka_queue_new(rk);
    if (rd_kafka_consume_start_queue(topic, 0, low, q))
        die(name, rd_kafka_err2str(rd_kafka_last_error()));
    read_all(q, low < high ? high : 0, c);
    rd_kafka_consume_stop(topic, 0);
    rd_kafka_queue_destroy(q);
    rd_kafka_topic_destroy(topic);
    rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
}

int main(int argc, char **argv)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    const char *topic = NULL;
    struct count c = {0};
    double begin = now();

    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            die(argv[i], "needs a value");
        if (strcmp(argv[i], "--brokers") == 0)
            set(conf, "bootstrap.servers", argv[i + 1]);
        else if (strcmp(argv[i], "--topic") == 0)
            topic = argv[i + 1];
        else if (strcmp(argv[i], "--property") == 0)
            set_pair(conf, argv[i + 1]);
        else
            die(argv[i], "not known");
    }
    if (!topic)
        die("--topic", "is missing");
    run(conf, topic, &c);
    report("messages", c.messages, c.bytes, begin);
    return 0;
}
