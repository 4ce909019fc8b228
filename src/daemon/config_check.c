/*
 * config_check.c - what the keys must be together, when all of them are read.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "daemon/config_priv.h"

static bool is_given(const struct loader *ld, const char *name)
{
    return ld->given[config_find_key(name)];
}

static size_t line_of_key(const struct loader *ld, const char *name)
{
    return ld->lines[config_find_key(name)];
}

/* A key that is not in the file has no line. */
static int missing(struct loader *ld, const char *name, const char *text)
{
    return err_set(ld->err, ERR_INVALID, ERRC_USER, "%s: %s: %s", ld->file, name, text);
}

/* The one that is read; what else is given is told. rocksmq and natsmq are our own keys, so they are meant; of the others
 * pulsar wins, as in the Go implementation. */
static void choose_queue(struct loader *ld)
{
    static const struct {
        const char *key;
        enum config_queue queue;
    } order[] = {{"sourceConfig.rocksmq.path", QUEUE_ROCKSMQ},
                 {"sourceConfig.natsmq.address", QUEUE_NATS},
                 {"sourceConfig.pulsar.address", QUEUE_PULSAR},
                 {"sourceConfig.kafka.address", QUEUE_KAFKA}};
    const char *chosen = NULL;

    for (size_t i = 0; i < sizeof(order) / sizeof(*order); i++) {
        if (!is_given(ld, order[i].key))
            continue;
        if (!chosen) {
            chosen = order[i].key;
            ld->config->queue = order[i].queue;
            continue;
        }
        char *why = xasprintf("not used: a source has one message queue, and %s is given", chosen);
        config_warn(ld, line_of_key(ld, order[i].key), order[i].key, why);
        free(why);
    }
}

/* "token:TEXT" or {"token":"TEXT"}, as the clients of Pulsar take it. Caller frees; NULL: neither. */
static char *token_of(const char *params)
{
    const char *p = params + strspn(params, " \t{\""), *end;

    if (strncmp(p, "token", 5) != 0)
        return NULL;
    p += 5 + strspn(p + 5, " \t\"");
    if (*p != ':')
        return NULL;
    p += 1 + strspn(p + 1, " \t\"");
    end = p + strcspn(p, *params == '{' ? "\"}" : "");
    return end > p ? xstrndup(p, (size_t)(end - p)) : NULL;
}

static int check_pulsar(struct loader *ld)
{
    struct config_pulsar *c = &ld->config->pulsar;
    size_t line = line_of_key(ld, "sourceConfig.pulsar.authPlugin");

    if (!c->auth_plugin)
        return 0;
    if (strcasecmp(c->auth_plugin, "token") != 0 && !strstr(c->auth_plugin, "AuthenticationToken"))
        return config_wrong(ld, ERR_UNSUPPORTED, line, "sourceConfig.pulsar.authPlugin", "\"%.100s\" is not known: only token is",
                     c->auth_plugin);
    c->auth_token = c->auth_params ? token_of(c->auth_params) : NULL;
    if (!c->auth_token)
        return config_wrong(ld, ERR_INVALID, line, "sourceConfig.pulsar.authPlugin", "is token, so authParams must be token:TEXT");
    return 0;
}

static bool tls_files_ok(const struct config_tls *t)
{
    return !t->cert_path == !t->key_path;
}

static int check_queue(struct loader *ld)
{
    const struct config *c = ld->config;
    const char *section = NULL;

    choose_queue(ld);
    if (c->queue == QUEUE_PULSAR && check_pulsar(ld))
        return ld->err->code;
    if (!tls_files_ok(&c->kafka.tls))
        section = "sourceConfig.kafka.tlsCertPath";
    else if (!tls_files_ok(&c->pulsar.tls))
        section = "sourceConfig.pulsar.tlsCertPath";
    else if (!tls_files_ok(&c->nats.tls))
        section = "sourceConfig.natsmq.tlsCertPath";
    if (section)
        return config_wrong(ld, ERR_INVALID, line_of_key(ld, section), section, "and tlsKeyPath must be given both or not at all");
    return 0;
}

static int check_etcd(struct loader *ld)
{
    const struct config_etcd *e = &ld->config->source_etcd;

    if (e->enable_auth && (!e->username || !e->password))
        return config_wrong(ld, ERR_INVALID, line_of_key(ld, "sourceConfig.etcd.enableAuth"),
                     "sourceConfig.etcd.enableAuth",
                     "is true, so username and password must be given");
    if (e->enable_tls && !e->tls_cert_path != !e->tls_key_path)
        return config_wrong(ld, ERR_INVALID, line_of_key(ld, "sourceConfig.etcd.enableTLS"),
                     "sourceConfig.etcd.enableTLS",
                     "is true, so tlsCertPath and tlsKeyPath must be given both or not at all");
    return 0;
}

static int check_registry(struct loader *ld)
{
    static const char *const parts[] = {"registry.host", "registry.port", "registry.user", "registry.database"};
    const struct config_postgresql *p = &ld->config->postgresql;
    const char *name = "registry.type";

    if (strcmp(ld->config->registry_type, "postgresql") != 0)
        return 0;
    if (!p->uri && !p->host)
        return config_wrong(ld, ERR_INVALID, line_of_key(ld, name), name,
                     "is postgresql, so registry.uri (postgresql://user@host:port/database) or registry.host, user and "
                     "database must be given");
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts) && p->uri; i++)
        if (is_given(ld, parts[i]))
            return config_wrong(ld, ERR_INVALID, line_of_key(ld, parts[i]), parts[i],
                         "belongs into registry.uri, which is given");
    return 0;
}

static int check_api(struct loader *ld)
{
    const struct config_api *a = &ld->config->api;

    if (!a->cert_path != !a->key_path)
        return config_wrong(ld, ERR_INVALID, line_of_key(ld, a->cert_path ? "api.tls.cert" : "api.tls.key"), "api.tls",
                     "cert and key must be given both or not at all");
    if (a->client_ca_path && !a->cert_path)
        return config_wrong(ld, ERR_INVALID, line_of_key(ld, "api.tls.clientCA"), "api.tls.clientCA",
                     "needs api.tls.cert and api.tls.key");
    return 0;
}

/* Of two limits the smaller one comes first. */
static int check_order(struct loader *ld, const char *small, uint64_t a, const char *great,
                       uint64_t b)
{
    const char *name = is_given(ld, small) ? small : great;

    if (a <= b)
        return 0;
    return config_wrong(ld, ERR_INVALID, line_of_key(ld, name), name,
                 "%s (%" PRIu64 ") must not be greater than %s (%" PRIu64 ")", small, a, great, b);
}

static int check_limits(struct loader *ld)
{
    const struct config *c = ld->config;

    if (check_order(ld, "retry.initBackOff", c->retry_initial_ms / 1000, "retry.maxBackOff",
                    c->retry_max_ms / 1000) ||
        check_order(ld, "limits.batchBytes", c->batch_bytes, "limits.channelBytes",
                    c->channel_bytes) ||
        check_order(ld, "limits.channelBytes", c->channel_bytes, "limits.taskBytes",
                    c->task_bytes) ||
        check_order(ld, "limits.taskBytes", c->task_bytes, "limits.processBytes", c->process_bytes) ||
        check_order(ld, "limits.batchBytes", c->batch_bytes, "limits.flightBytes", c->flight_bytes))
        return ERR_INVALID;
    return 0;
}

int config_check_all(struct loader *ld)
{
    int rc = check_queue(ld);

    if (!rc)
        rc = check_etcd(ld);
    if (!rc)
        rc = check_limits(ld);
    if (!rc)
        rc = check_registry(ld);
    if (!rc)
        rc = check_api(ld);
    if (!rc && !ld->config->replicate_chan)
        rc = missing(ld, "sourceConfig.replicateChan",
                     "is required: the replicate channel of the source, <cluster "
                     "prefix>-replicate-msg, such as "
                     "by-dev-replicate-msg (msgChannel.chanNamePrefix.cluster of its milvus.yaml)");
    return rc;
}
