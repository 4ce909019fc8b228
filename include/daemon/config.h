/*
 * config.h - the configuration file (cdc.yaml): one table of keys, shared/reference/control-api.md
 * section 6.  etc/cdc.yaml describes them all.
 *
 * Ownership  the caller's until config_free(); nothing changes after loading but by config_apply().
 * Thread  loop thread only; others may read what config_apply() leaves alone.
 */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"

struct err;

struct config_etcd {
    char **endpoints; /* NULL-terminated */
    char *root_path, *meta_sub_path;
    bool enable_auth;
    char *username, *password; /* NULL: not given; both there when enable_auth */
    bool enable_tls;
    char *tls_cert_path, *tls_key_path, *tls_ca_cert_path; /* NULL: not given */
    int tls_min_version;                                   /* 0 (none given), 10, 11, 12, 13 */
};

struct config_milvus { /* the source's public API; NULL: not given */
    char *uri, *token;
    char *tls_ca_cert_path, *tls_cert_path, *tls_key_path;
};

struct config_tls { /* of a message queue; NULL: not given */
    char *ca_cert_path, *cert_path, *key_path, *key_password;
};

/* Which message queue the source writes its log to. */
enum config_queue {
    QUEUE_DETECT, /* the file says nothing: daemon/queue.h looks for it */
    QUEUE_ROCKSMQ,
    QUEUE_KAFKA,
    QUEUE_PULSAR,
    QUEUE_NATS,
};

struct config_kafka {
    char *address; /* "host:port,host:port" */
    char *security_protocol, *sasl_mechanisms, *sasl_username, *sasl_password;
    struct config_tls tls;
    char **consumer; /* librdkafka's settings: name, value, ..., NULL; NULL: none */
};

struct config_pulsar {
    char *address; /* "pulsar://host:port" or with pulsar+ssl */
    char *tenant, *name_space;
    char *auth_plugin, *auth_params; /* as in the file */
    char *auth_token;                /* of auth_params; NULL: no authentication */
    struct config_tls tls;
};

struct config_nats {
    char *address; /* "host:port", nats:// or tls:// */
    char *username, *password, *token;
    bool enable_tls;
    struct config_tls tls;
};

/* registry.type postgresql; NULL: not given. As libpq's parameters of the same meaning. */
struct config_postgresql {
    char *uri; /* may hold the password */
    char *host, *port, *user, *password, *passfile, *database;
    char *sslmode, *sslrootcert, *sslcert, *sslkey;
    char *schema;
};

struct config_token { /* of the control API */
    char *name;         /* for logs */
    uint8_t sha256[32]; /* of the token */
};

struct config_api {
    char *cert_path, *key_path, *client_ca_path; /* NULL: none; cert and key both or none */
    struct config_token *tokens;
    size_t n_tokens;
};

struct config {
    char *address;           /* "host:port", default 127.0.0.1:8444; ":8444" becomes 0.0.0.0:8444 */
    int64_t max_task_num;    /* default 100 */
    int64_t max_name_length; /* 256 */
    enum log_level log_level;
    char *registry_type; /* "sqlite" or "postgresql" */
    char *registry_path; /* registry.path, default ./milvus-cdc.db */
    struct config_postgresql postgresql;
    char *registry_key_file; /* registry.keyFile; NULL: secrets are not sealed */
    uint64_t lease_ms;       /* registry.leaseSeconds, 6 s */
    struct config_api api;
    struct config_etcd source_etcd;
    struct config_milvus source_milvus;
    enum config_queue queue;
    char *rocksmq_path; /* sourceConfig.rocksmq.path, NULL: none */
    struct config_kafka kafka;
    struct config_pulsar pulsar;
    struct config_nats nats;
    char *replicate_chan;                    /* sourceConfig.replicateChan, required */
    int64_t time_tick_interval_ms;           /* 500 */
    uint64_t retry_initial_ms, retry_max_ms; /* retry.initBackOff, maxBackOff; 1 s and 10 s */
    /* Byte budgets (own keys under limits:): batchBytes 4 MiB, channelBytes 8 MiB, taskBytes 192
     * MiB, processBytes 512 MiB; each is at most the next. flightBytes 128 MiB, fetchBytes 4 MiB, copyBytes 32 MiB. */
    uint64_t batch_bytes, channel_bytes, task_bytes, process_bytes, flight_bytes, fetch_bytes, copy_bytes;
    bool dry_run; /* always false: true is refused with a text (USER) until it is implemented */
};

/*
 * Reads and checks path. Unknown and meaningless keys are warnings (log_warn, naming key and line).
 * NULL on error, class USER, with file, line, key, and what is allowed; no secret is in a text:
 *   ERR_IO           the file cannot be read
 *   ERR_PROTO        it is not YAML
 *   ERR_INVALID      a key twice, a value of the wrong type or out of range, a required one missing
 *   ERR_UNSUPPORTED  a value that this build cannot do (dryRun, replicateID, an authPlugin)
 */
struct config *config_load(const char *path, struct err *err);
void config_free(struct config *c); /* NULL is allowed */

/*
 * Takes over from fresh what may change while running (logLevel, maxTaskNum, maxNameLength, api.*); fresh gets what was
 * there before. needs_restart() is called with the name of each other key that differs.
 */
void config_apply(struct config *running, struct config *fresh, void (*needs_restart)(const char *key));
#endif
