/*
 * kafka_health.c - does reading work? librdkafka tells when a connection breaks, but not when all is well again, and
 * nothing at all of a partition without a leader. So topics are asked for: while there is trouble, and when a reader
 * has not heard anything for long (Milvus writes a tick into each topic five times a second).
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "wal/kafka_priv.h"

enum {
    TICK_MS = 250,
    TOLD_AFTER_MS = 1000, /* what is over sooner is not worth a word */
    PROBE_MS = 900,
    PROBE_EVERY_MS = 500, /* in trouble */
    SILENT_MS = 5000,
    NEW_MS = 500, /* is the topic not there? librdkafka tells late, or not */
};

/* ---- texts ------------------------------------------------------------------------------------------ */

/*
 * Before 2.6.1 librdkafka repeats its nonce in SCRAM's last message (confluentinc/librdkafka#4895). Brokers to 3.9 let
 * that pass; since 4.0 they answer "invalid credentials".
 */
static bool scram_may_be_too_old(const struct kafka *w)
{
    char mechanism[40];
    size_t size = sizeof(mechanism);

    return rd_kafka_version() < 0x02060100 &&
           rd_kafka_conf_get(w->conf, "sasl.mechanisms", mechanism, &size) == RD_KAFKA_CONF_OK &&
           strncmp(mechanism, "SCRAM", 5) == 0;
}

static const char *hint(const struct kafka *w, rd_kafka_resp_err_t code)
{
    switch (code) {
    case RD_KAFKA_RESP_ERR__AUTHENTICATION:
    case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
    case RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM:
        if (scram_may_be_too_old(w))
            return " (check sourceConfig.kafka.saslUsername, saslPassword and saslMechanisms; Kafka 4 refuses SCRAM of "
                   "librdkafka before 2.6.1: install a newer librdkafka1, or use PLAIN with SASL_SSL)";
        return " (check sourceConfig.kafka.saslUsername, saslPassword and saslMechanisms)";
    case RD_KAFKA_RESP_ERR__SSL:
        return " (check sourceConfig.kafka.securityProtocol and the TLS files)";
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
        return " (the user of sourceConfig.kafka.saslUsername needs Read and Describe on the topic)";
    default:
        return "";
    }
}

static enum err_code code_of(rd_kafka_resp_err_t code)
{
    switch (code) {
    case RD_KAFKA_RESP_ERR__AUTHENTICATION:
    case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
        return ERR_AUTH;
    default:
        return ERR_UNAVAILABLE;
    }
}

void khealth_error(const struct kafka *w, const char *topic, rd_kafka_resp_err_t code, const char *text,
                   struct err *ret)
{
    if (kask_reached(code)) {
        err_set(ret, code_of(code), ERRC_RETRY, "Kafka topic %s on %s: %s%s", topic, w->brokers,
                text ? text : rd_kafka_err2str(code), hint(w, code));
        return;
    }
    if (w->last_text[0]) { /* says more than that there was no answer */
        code = w->last_code;
        text = w->last_text;
    }
    err_set(ret, code_of(code), ERRC_RETRY,
            "Kafka topic %s: no answer from the brokers %s (sourceConfig.kafka.address): %s%s", topic, w->brokers,
            text ? text : rd_kafka_err2str(code), hint(w, code));
}

/* ---- what is known ------------------------------------------------------------------------------------- */

void khealth_on_error(struct kafka *w, rd_kafka_resp_err_t code, const char *text)
{
    bool vague = code == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || code == RD_KAFKA_RESP_ERR__TRANSPORT;

    log_debug("wal", "an error of a Kafka client", KS("err", text));
    w->suspect = true;
    if (vague && w->last_text[0])
        return;
    w->last_code = code;
    snprintf(w->last_text, sizeof(w->last_text), "%s", text);
}

static void all_well(struct kafka *w)
{
    w->suspect = false;
    w->failing_ms = 0;
    w->last_text[0] = '\0';
}

void khealth_heard(struct wal_reader *r)
{
    r->heard_ms = clock_mono_ms();
    r->failing_ms = 0;
    all_well(r->w);
    if (r->told)
        timer_set(&r->timer, 0);
}

void khealth_failed(struct wal_reader *r, rd_kafka_resp_err_t code, const char *text)
{
    if (!r->failing_ms)
        r->failing_ms = clock_mono_ms();
    khealth_error(r->w, kreader_topic(r), code, text, &r->trouble);
    log_debug("wal", "a topic of Kafka has trouble", KS("topic", kreader_topic(r)), KS("err", r->trouble.text));
}

/* ---- telling ------------------------------------------------------------------------------------------------ */

static bool lasts(uint64_t since_ms)
{
    return since_ms && clock_mono_ms() - since_ms >= TOLD_AFTER_MS;
}

/* Who has paused does not want data, so that nothing is wrong for it. */
static bool is_news(const struct wal_reader *r)
{
    bool bad = lasts(r->failing_ms) || lasts(r->w->failing_ms);

    return r->state != READER_ENDED && bad != r->told && !(bad && r->paused);
}

bool khealth_tell(struct wal_reader *r)
{
    struct kafka *w = r->w;
    struct err err;

    if (!is_news(r))
        return false;
    r->told = !r->told;
    if (!r->told) {
        r->cbs.on_trouble(r->arg, NULL);
        return true;
    }
    if (lasts(r->failing_ms))
        err = r->trouble;
    else
        khealth_error(w, kreader_topic(r), w->last_code, NULL, &err);
    r->cbs.on_trouble(r->arg, &err);
    return true;
}

/* ---- probes --------------------------------------------------------------------------------------------------- */

static void probed_reader(struct wal_reader *r, rd_kafka_resp_err_t err)
{
    bool waits = r->earliest && kask_absent(err);

    if (err && !waits) {
        khealth_failed(r, err, NULL);
        return;
    }
    r->failing_ms = 0;
    r->heard_ms = clock_mono_ms();
    r->absent = waits && !r->at_end;
    if (r->absent && !r->paused)
        timer_set(&r->timer, 0);
}

static void on_probed(struct kafka *w, struct kask *a)
{
    w->probing = false;
    if (kask_reached(a->err))
        all_well(w);
    else if (w->suspect && !w->failing_ms)
        w->failing_ms = clock_mono_ms();
    if (a->reader && a->reader->state != READER_ENDED)
        probed_reader(a->reader, a->err);
}

static bool wants_probe(const struct wal_reader *r, uint64_t now)
{
    const struct kafka *w = r->w;

    if (r->state != READER_READING)
        return false; /* a check asks for itself */
    if (w->suspect || w->failing_ms || r->failing_ms)
        return now - r->probed_ms >= PROBE_EVERY_MS;
    if (r->earliest && !r->at_end && !r->probed_ms)
        return now - r->heard_ms >= NEW_MS;
    return !r->paused && !r->parked && now - r->heard_ms >= SILENT_MS && now - r->probed_ms >= SILENT_MS;
}

/* The one that was asked for longest ago. */
static struct wal_reader *next_to_probe(struct kafka *w)
{
    uint64_t now = clock_mono_ms();
    struct wal_reader *r, *best = NULL;

    TAILQ_FOREACH (r, &w->readers, next_reader)
        if (wants_probe(r, now) && (!best || r->probed_ms < best->probed_ms))
            best = r;
    return best;
}

static void probe(struct kafka *w)
{
    struct wal_reader *r = w->probing ? NULL : next_to_probe(w);
    struct kask *a;

    if (!r)
        return;
    a = kask_new(r->client->rk, kreader_topic(r), PROBE_MS, on_probed);
    a->reader = r;
    r->probed_ms = clock_mono_ms();
    w->probing = true;
    kask_submit(w, a);
}

void khealth_start(struct kafka *w)
{
    if (!timer_armed(&w->health))
        timer_set(&w->health, TICK_MS);
}

void khealth_on_timer(void *arg)
{
    struct kafka *w = arg;
    struct wal_reader *r;

    if (TAILQ_EMPTY(&w->readers))
        return;
    timer_set(&w->health, TICK_MS);
    TAILQ_FOREACH (r, &w->readers, next_reader)
        if (is_news(r))
            timer_set(&r->timer, 0);
    probe(w);
}
