/*
 * kafka_conf.c - from options to librdkafka's configuration.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/mem.h"
#include "wal/kafka.h"
#include "wal/kafka_priv.h"

enum {
    FETCH_DEFAULT = 16 << 20,
    FETCH_MIN = 4 << 20, /* an answer has at least message.max.bytes, 1 MB */
    FETCH_MAX = 256 << 20, /* an answer stays below receive.message.max.bytes, 100 MB */
    MIN_BUSY = 4,
};

struct setting {
    const char *key, *name, *value; /* key: of our configuration file */
};

static bool given(const char *s)
{
    return s && *s;
}

/* Properties whose value may be a secret: librdkafka's error texts would show it. */
static bool is_secret(const char *name)
{
    return strstr(name, "password") || strstr(name, "pem") || strstr(name, "secret") || strstr(name, "jaas") ||
           strstr(name, "oauthbearer");
}

static int set(rd_kafka_conf_t *conf, struct setting s, struct err *err)
{
    char why[400];

    if (rd_kafka_conf_set(conf, s.name, s.value, why, sizeof(why)) == RD_KAFKA_CONF_OK)
        return 0;
    return err_set(err, ERR_INVALID, ERRC_USER, "sourceConfig.kafka.%s: %s", s.key,
                   is_secret(s.name) ? "not a valid value" : why);
}

static int set_all(rd_kafka_conf_t *conf, const struct setting *s, size_t n, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        int code = given(s[i].value) ? set(conf, s[i], err) : 0;

        if (code)
            return code;
    }
    return 0;
}

/* ---- what the reader relies on --------------------------------------------------------------- */

/* Each of ours, so that nobody else sets it. */
static const char *const fixed[][2] = {
    {"auto.offset.reset", "error"},       /* never jump in silence */
    {"enable.auto.commit", "false"},      {"auto.commit.enable", "false"},
    {"enable.auto.offset.store", "false"}, {"allow.auto.create.topics", "false"},
    {"enable.partition.eof", "true"},     {"log.queue", "true"},
};

/* Better values than librdkafka's, which properties may change. */
static const char *const defaults[][2] = {
    {"client.id", "milvus-cdc"},
    {"fetch.wait.max.ms", "100"}, /* a topic that is added waits for the running fetch of the others */
    {"fetch.min.bytes", "1"},
    {"fetch.error.backoff.ms", "100"},
    {"socket.nagle.disable", "true"},
    {"socket.keepalive.enable", "true"},
    {"reconnect.backoff.ms", "100"},
    {"reconnect.backoff.max.ms", "2000"},
    {"topic.metadata.propagation.max.ms", "1000"}, /* until a topic that is not there is told */
    {"topic.metadata.refresh.interval.ms", "60000"},
    {"check.crcs", "false"},
};

static void set_fixed(rd_kafka_conf_t *conf)
{
    char why[200];

    for (size_t i = 0; i < sizeof(fixed) / sizeof(*fixed); i++)
        if (rd_kafka_conf_set(conf, fixed[i][0], fixed[i][1], why, sizeof(why)) != RD_KAFKA_CONF_OK)
            abort(); /* a librdkafka without it cannot be used */
    rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_ERROR | RD_KAFKA_EVENT_LOG);
}

static void set_defaults(rd_kafka_conf_t *conf)
{
    char why[200];

    /* A librdkafka that does not know one works as well, only slower. */
    for (size_t i = 0; i < sizeof(defaults) / sizeof(*defaults); i++)
        (void)rd_kafka_conf_set(conf, defaults[i][0], defaults[i][1], why, sizeof(why));
}

/* ---- sizes ------------------------------------------------------------------------------------ */

static struct kafka_sizes sizes_of(size_t fetch_bytes)
{
    size_t all = fetch_bytes ? fetch_bytes : FETCH_DEFAULT;
    struct kafka_sizes s = {.queue_msgs = 10000}; /* librdkafka has some 300 bytes beside each */

    if (all < FETCH_MIN)
        all = FETCH_MIN;
    if (all > FETCH_MAX)
        all = FETCH_MAX;
    s.response = all / 4;
    s.topic = all / 32;
    s.queue = all / 32;
    s.busy = (unsigned)(all / (s.topic + s.queue));
    if (s.busy < MIN_BUSY)
        s.busy = MIN_BUSY;
    return s;
}

static int set_sizes(rd_kafka_conf_t *conf, const struct kafka_sizes *s, struct err *err)
{
    char response[24], topic[24], kbytes[24], msgs[24];

    snprintf(response, sizeof(response), "%zu", s->response);
    snprintf(topic, sizeof(topic), "%zu", s->topic);
    snprintf(kbytes, sizeof(kbytes), "%zu", s->queue >> 10);
    snprintf(msgs, sizeof(msgs), "%u", s->queue_msgs);
    return set_all(conf,
                   (const struct setting[]){{"fetchBytes", "fetch.message.max.bytes", topic},
                                            {"fetchBytes", "fetch.max.bytes", response},
                                            {"fetchBytes", "queued.max.messages.kbytes", kbytes},
                                            {"fetchBytes", "queued.min.messages", msgs}},
                   4, err);
}

/* ---- what the user sets ------------------------------------------------------------------------ */

static int set_security(rd_kafka_conf_t *conf, const struct kafka_options *o, struct err *err)
{
    static const char *const protocols[] = {"PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"};

    if (!given(o->security_protocol))
        return 0;
    for (size_t i = 0; i < sizeof(protocols) / sizeof(*protocols); i++)
        if (strcasecmp(o->security_protocol, protocols[i]) == 0)
            return set(conf, (struct setting){"securityProtocol", "security.protocol", protocols[i]}, err);
    return err_set(err, ERR_INVALID, ERRC_USER,
                   "sourceConfig.kafka.securityProtocol: %s is not one of PLAINTEXT, SASL_PLAINTEXT, SSL, SASL_SSL",
                   o->security_protocol);
}

static bool wants_sasl(const struct kafka_options *o)
{
    return given(o->security_protocol) && strncasecmp(o->security_protocol, "SASL", 4) == 0;
}

static int set_sasl(rd_kafka_conf_t *conf, const struct kafka_options *o, struct err *err)
{
    static const char *const known[] = {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"};
    const char *mechanism = NULL;

    if (!wants_sasl(o)) {
        if (given(o->sasl_mechanisms) || given(o->sasl_username))
            return err_set(err, ERR_INVALID, ERRC_USER,
                           "sourceConfig.kafka.securityProtocol: credentials are given (saslMechanisms, saslUsername), "
                           "so it must be SASL_PLAINTEXT or SASL_SSL");
        return 0;
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
        if (given(o->sasl_mechanisms) && strcasecmp(o->sasl_mechanisms, known[i]) == 0)
            mechanism = known[i];
    if (!mechanism)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "sourceConfig.kafka.saslMechanisms: %s is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
                       given(o->sasl_mechanisms) ? o->sasl_mechanisms : "(nothing)");
    if (!given(o->sasl_username))
        return err_set(err, ERR_INVALID, ERRC_USER, "sourceConfig.kafka.saslUsername: is not set");
    return set_all(conf,
                   (const struct setting[]){{"saslMechanisms", "sasl.mechanisms", mechanism},
                                            {"saslUsername", "sasl.username", o->sasl_username},
                                            {"saslPassword", "sasl.password", o->sasl_password}},
                   3, err);
}

static int set_tls(rd_kafka_conf_t *conf, const struct kafka_options *o, struct err *err)
{
    const struct setting files[] = {{"ssl.tlsCaCert", "ssl.ca.location", o->ca_path},
                                    {"ssl.tlsCert", "ssl.certificate.location", o->cert_path},
                                    {"ssl.tlsKey", "ssl.key.location", o->key_path}};

    for (size_t i = 0; i < 3; i++)
        if (given(files[i].value) && access(files[i].value, R_OK) != 0)
            return err_set(err, ERR_INVALID, ERRC_USER, "sourceConfig.kafka.%s: the file %s cannot be read",
                           files[i].key, files[i].value);
    if (set_all(conf, files, 3, err))
        return ERR_INVALID;
    return set_all(conf, (const struct setting[]){{"ssl.tlsKeyPassword", "ssl.key.password", o->key_password}}, 1, err);
}

/* Why a property is not the user's to set, or NULL. */
static const char *refusal(const char *name)
{
    static const char *const refused[][2] = {
        {"bootstrap.servers", "use address"},
        {"metadata.broker.list", "use address"},
        {"security.protocol", "use securityProtocol"},
        {"sasl.mechanism", "use saslMechanisms"},
        {"sasl.mechanisms", "use saslMechanisms"},
        {"sasl.username", "use saslUsername"},
        {"sasl.password", "use saslPassword"},
        {"group.id", "no consumer group is used"},
        {"group.instance.id", "no consumer group is used"},
        {"fetch.max.bytes", "follows from the memory for fetching"},
        {"fetch.message.max.bytes", "follows from the memory for fetching"},
        {"max.partition.fetch.bytes", "follows from the memory for fetching"},
        {"queued.max.messages.kbytes", "follows from the memory for fetching"},
        {"queued.min.messages", "follows from the memory for fetching"},
        {"enabled_events", "is internal"},
        {"background_event_cb", "is internal"},
        {"plugin.library.paths", "plug-ins are not loaded"},
    };

    for (size_t i = 0; i < sizeof(fixed) / sizeof(*fixed); i++)
        if (strcmp(name, fixed[i][0]) == 0)
            return "the reader relies on its own value";
    for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
        if (strcmp(name, refused[i][0]) == 0)
            return refused[i][1];
    return NULL;
}

static int set_properties(rd_kafka_conf_t *conf, const char *const *p, struct err *err)
{
    char key[120];

    for (; p && p[0]; p += 2) {
        const char *why = refusal(p[0]);

        snprintf(key, sizeof(key), "consumer.%s", p[0]);
        if (why || !p[1])
            return err_set(err, ERR_INVALID, ERRC_USER, "sourceConfig.kafka.%s: cannot be set: %s", key,
                           why ? why : "no value");
        if (set(conf, (struct setting){key, p[0], p[1]}, err))
            return ERR_INVALID;
    }
    return 0;
}

rd_kafka_conf_t *kafka_conf_new(const struct kafka_options *o, struct kafka_sizes *ret_sizes, struct err *err)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    struct kafka_sizes sizes = sizes_of(o->fetch_bytes);

    set_fixed(conf);
    set_defaults(conf);
    if (set_sizes(conf, &sizes, err) || set_security(conf, o, err) || set_sasl(conf, o, err) ||
        set_tls(conf, o, err) || set_properties(conf, o->properties, err)) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }
    *ret_sizes = sizes;
    return conf;
}

/* ---- checks -------------------------------------------------------------------------------------- */

/* "[scheme://]host[:port]", as librdkafka takes it; IPv6 addresses in brackets. */
static bool broker_ok(const char *s, size_t len)
{
    const char *colon = memrchr(s, ':', len);
    size_t digits = 0;
    long port = 0;

    if (len == 0 || s[0] == ':' || memchr(s, ' ', len))
        return false;
    if (!colon || memchr(colon, ']', len - (size_t)(colon - s)))
        return true;
    for (const char *p = colon + 1; p < s + len; p++, digits++) {
        if (*p < '0' || *p > '9' || digits >= 5)
            return false;
        port = port * 10 + (*p - '0');
    }
    return port >= 1 && port <= 65535;
}

static int check_brokers(const char *brokers, struct err *err)
{
    const char *s = brokers ? brokers : "";

    for (;;) {
        size_t len = strcspn(s, ",");

        if (!broker_ok(s, len))
            return err_set(err, ERR_INVALID, ERRC_USER,
                           "sourceConfig.kafka.address: \"%.*s\" is not host:port (several with commas between)",
                           len > 200 ? 200 : (int)len, s);
        if (!s[len])
            return 0;
        s += len + 1;
    }
}

int kafka_conf_check(const rd_kafka_conf_t *conf, const char *brokers, struct err *err)
{
    rd_kafka_conf_t *copy;
    rd_kafka_t *rk;
    char why[400];
    int code = check_brokers(brokers, err);

    if (code)
        return code;
    copy = rd_kafka_conf_dup(conf);
    rk = rd_kafka_new(RD_KAFKA_CONSUMER, copy, why, sizeof(why)); /* without brokers it connects nowhere */
    if (!rk) {
        rd_kafka_conf_destroy(copy);
        return err_set(err, ERR_INVALID, ERRC_USER, "sourceConfig.kafka.%s: %s",
                       strstr(why, "ssl.") || strstr(why, "certificate") ? "ssl" : "consumer", why);
    }
    rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    return 0;
}
