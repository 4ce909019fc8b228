/*
 * config_table.c - every key that the file may have.
 */
#include <string.h>

#include "daemon/config_priv.h"

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

#define AT(member) .offset = offsetof(struct config, member)

#define NOTE_STORE "tasks are kept in an SQLite file or in PostgreSQL: see registry.type"
#define NOTE_SIZES "queues are bounded in bytes: see limits.channelBytes and limits.taskBytes"
#define NOTE_PACKER "positions are stored with each confirmed batch: see limits.batchBytes"
#define NOTE_CHANNELS "channels are paired by the collections that use them, in any number"
#define NOTE_PARTITIONS "partitions are replicated by name, the default one too"
#define NOTE_WEB "only Pulsar's binary protocol is used: see sourceConfig.pulsar.address"
#define NOTE_READS "the source's queue is only read"
#define NOTE_REVERSE                                                                               \
    "deprecated in milvus-cdc too: replication goes one way, from this source to the tasks' "      \
    "targets"

/* "limits.x" and "registry.x" are ours, the rest is of milvus-cdc (control-api.md section 6). */
const struct key config_keys[] = {
    {"address", KEY_ADDRESS, AT(address), .default_text = "127.0.0.1:8444"},
    {"maxTaskNum", KEY_INT, AT(max_task_num), 1, 10000, "100", .live = true},
    {"maxNameLength", KEY_INT, AT(max_name_length), 1, 65535, "256", .live = true},
    {"logLevel", KEY_LOG_LEVEL, AT(log_level), .default_text = "info", .live = true},
    {"dryRun", KEY_REFUSED, .default_text = "false",
     .note = "dryRun is not implemented: remove it"},
    {"replicateID", KEY_REFUSED, .default_text = "",
     .note = "the data migration mode of Milvus 2.5 is not implemented: remove replicateID"},

    {"api.tls.cert", KEY_TEXT, AT(api.cert_path), .live = true},
    {"api.tls.key", KEY_TEXT, AT(api.key_path), .live = true},
    {"api.tls.clientCA", KEY_TEXT, AT(api.client_ca_path), .live = true},
    {"api.tokens", KEY_TOKENS, AT(api.tokens), .live = true},

    {"registry.type", KEY_REGISTRY_TYPE, AT(registry_type), .default_text = "sqlite"},
    {"registry.path", KEY_TEXT, AT(registry_path), .default_text = "./milvus-cdc.db"},
    {"registry.uri", KEY_SECRET, AT(postgresql.uri)},
    {"registry.host", KEY_TEXT, AT(postgresql.host)},
    {"registry.port", KEY_TEXT, AT(postgresql.port)},
    {"registry.user", KEY_TEXT, AT(postgresql.user)},
    {"registry.password", KEY_SECRET, AT(postgresql.password)},
    {"registry.passfile", KEY_TEXT, AT(postgresql.passfile)},
    {"registry.database", KEY_TEXT, AT(postgresql.database)},
    {"registry.sslmode", KEY_TEXT, AT(postgresql.sslmode)},
    {"registry.sslrootcert", KEY_TEXT, AT(postgresql.sslrootcert)},
    {"registry.sslcert", KEY_TEXT, AT(postgresql.sslcert)},
    {"registry.sslkey", KEY_TEXT, AT(postgresql.sslkey)},
    {"registry.schema", KEY_TEXT, AT(postgresql.schema), .default_text = "milvus_cdc"},
    {"registry.keyFile", KEY_TEXT, AT(registry_key_file)},
    {"registry.leaseSeconds", KEY_SECONDS, AT(lease_ms), 2, 300, "6"},

    {"sourceConfig.etcd.address", KEY_LIST, AT(source_etcd.endpoints),
     .default_text = "127.0.0.1:2379"},
    {"sourceConfig.etcd.rootPath", KEY_TEXT, AT(source_etcd.root_path), .default_text = "by-dev"},
    {"sourceConfig.etcd.metaSubPath", KEY_TEXT, AT(source_etcd.meta_sub_path),
     .default_text = "meta"},
    {"sourceConfig.etcd.enableAuth", KEY_BOOL, AT(source_etcd.enable_auth),
     .default_text = "false"},
    {"sourceConfig.etcd.username", KEY_TEXT, AT(source_etcd.username)},
    {"sourceConfig.etcd.password", KEY_SECRET, AT(source_etcd.password)},
    {"sourceConfig.etcd.enableTLS", KEY_BOOL, AT(source_etcd.enable_tls), .default_text = "false"},
    {"sourceConfig.etcd.tlsCertPath", KEY_TEXT, AT(source_etcd.tls_cert_path)},
    {"sourceConfig.etcd.tlsKeyPath", KEY_TEXT, AT(source_etcd.tls_key_path)},
    {"sourceConfig.etcd.tlsCACertPath", KEY_TEXT, AT(source_etcd.tls_ca_cert_path)},
    {"sourceConfig.etcd.tlsMinVersion", KEY_TLS_VERSION, AT(source_etcd.tls_min_version)},
    {"sourceConfig.etcdAddress", KEY_LIST, AT(source_etcd.endpoints),
     .newer = "sourceConfig.etcd.address"},
    {"sourceConfig.etcdRootPath", KEY_TEXT, AT(source_etcd.root_path),
     .newer = "sourceConfig.etcd.rootPath"},
    {"sourceConfig.etcdMetaSubPath", KEY_TEXT, AT(source_etcd.meta_sub_path),
     .newer = "sourceConfig.etcd.metaSubPath"},

    {"sourceConfig.milvus.uri", KEY_TEXT, AT(source_milvus.uri)},
    {"sourceConfig.milvus.token", KEY_SECRET, AT(source_milvus.token)},
    {"sourceConfig.milvus.tlsCACertPath", KEY_TEXT, AT(source_milvus.tls_ca_cert_path)},
    {"sourceConfig.milvus.tlsCertPath", KEY_TEXT, AT(source_milvus.tls_cert_path)},
    {"sourceConfig.milvus.tlsKeyPath", KEY_TEXT, AT(source_milvus.tls_key_path)},
    {"sourceConfig.rocksmq.path", KEY_TEXT, AT(rocksmq_path)},
    {"sourceConfig.replicateChan", KEY_TEXT, AT(replicate_chan)},
    {"sourceConfig.channelNum", KEY_UNUSED, .note = NOTE_CHANNELS},
    {"sourceConfig.timeTickInterval", KEY_MS, AT(time_tick_interval_ms), 10, 60000, "500"},
    {"sourceConfig.defaultPartitionName", KEY_UNUSED, .note = NOTE_PARTITIONS},

    {"retry.initBackOff", KEY_SECONDS, AT(retry_initial_ms), 0, 3600, "1"},
    {"retry.maxBackOff", KEY_SECONDS, AT(retry_max_ms), 0, 3600, "10"},

    {"limits.batchBytes", KEY_BYTES, AT(batch_bytes), 64 * KIB, 256 * MIB, "4MiB"},
    {"limits.channelBytes", KEY_BYTES, AT(channel_bytes), 64 * KIB, 1 * GIB, "8MiB"},
    {"limits.taskBytes", KEY_BYTES, AT(task_bytes), 64 * KIB, 16 * GIB, "192MiB"},
    {"limits.processBytes", KEY_BYTES, AT(process_bytes), 64 * KIB, 64 * GIB, "512MiB"},
    {"limits.flightBytes", KEY_BYTES, AT(flight_bytes), 64 * KIB, 1 * GIB, "128MiB"},
    {"limits.copyBytes", KEY_BYTES, AT(copy_bytes), 1 * MIB, 16 * GIB, "32MiB"},
    {"limits.fetchBytes", KEY_BYTES, AT(fetch_bytes), 1 * MIB, 1 * GIB, "4MiB"},

    {"sourceConfig.kafka.address", KEY_TEXT, AT(kafka.address)},
    {"sourceConfig.kafka.securityProtocol", KEY_TEXT, AT(kafka.security_protocol)},
    {"sourceConfig.kafka.saslMechanisms", KEY_TEXT, AT(kafka.sasl_mechanisms)},
    {"sourceConfig.kafka.saslUsername", KEY_TEXT, AT(kafka.sasl_username)},
    {"sourceConfig.kafka.saslPassword", KEY_SECRET, AT(kafka.sasl_password)},
    {"sourceConfig.kafka.tlsCACertPath", KEY_TEXT, AT(kafka.tls.ca_cert_path)},
    {"sourceConfig.kafka.tlsCertPath", KEY_TEXT, AT(kafka.tls.cert_path)},
    {"sourceConfig.kafka.tlsKeyPath", KEY_TEXT, AT(kafka.tls.key_path)},
    {"sourceConfig.kafka.tlsKeyPassword", KEY_SECRET, AT(kafka.tls.key_password)},
    {"sourceConfig.kafka.consumer", KEY_MAP, AT(kafka.consumer)},
    {"sourceConfig.kafka.producer", KEY_UNUSED, .note = NOTE_READS},

    {"sourceConfig.pulsar.address", KEY_TEXT, AT(pulsar.address)},
    {"sourceConfig.pulsar.tenant", KEY_TEXT, AT(pulsar.tenant), .default_text = "public"},
    {"sourceConfig.pulsar.namespace", KEY_TEXT, AT(pulsar.name_space), .default_text = "default"},
    {"sourceConfig.pulsar.authPlugin", KEY_TEXT, AT(pulsar.auth_plugin)},
    {"sourceConfig.pulsar.authParams", KEY_SECRET, AT(pulsar.auth_params)},
    {"sourceConfig.pulsar.tlsCACertPath", KEY_TEXT, AT(pulsar.tls.ca_cert_path)},
    {"sourceConfig.pulsar.tlsCertPath", KEY_TEXT, AT(pulsar.tls.cert_path)},
    {"sourceConfig.pulsar.tlsKeyPath", KEY_TEXT, AT(pulsar.tls.key_path)},
    {"sourceConfig.pulsar.webAddress", KEY_UNUSED, .note = NOTE_WEB},
    {"sourceConfig.pulsar.webPort", KEY_UNUSED, .note = NOTE_WEB},
    {"sourceConfig.pulsar.maxMessageSize", KEY_UNUSED, .note = "the broker tells it"},

    {"sourceConfig.natsmq.address", KEY_TEXT, AT(nats.address)},
    {"sourceConfig.natsmq.username", KEY_TEXT, AT(nats.username)},
    {"sourceConfig.natsmq.password", KEY_SECRET, AT(nats.password)},
    {"sourceConfig.natsmq.token", KEY_SECRET, AT(nats.token)},
    {"sourceConfig.natsmq.enableTLS", KEY_BOOL, AT(nats.enable_tls), .default_text = "false"},
    {"sourceConfig.natsmq.tlsCACertPath", KEY_TEXT, AT(nats.tls.ca_cert_path)},
    {"sourceConfig.natsmq.tlsCertPath", KEY_TEXT, AT(nats.tls.cert_path)},
    {"sourceConfig.natsmq.tlsKeyPath", KEY_TEXT, AT(nats.tls.key_path)},

    {"sourceConfig.readChanLen", KEY_UNUSED, .note = NOTE_SIZES},
    {"metaStoreConfig", KEY_UNUSED, .note = NOTE_STORE},
    {"retry.retryTimes", KEY_UNUSED,
     .note =
         "what may pass by itself is retried without an end, what needs a person pauses the task"},
    {"detectDeadLock", KEY_UNUSED,
     .note = "one event loop, no locks that could wait for each other"},
    {"packer", KEY_UNUSED, .note = NOTE_PACKER},
    {"batchMode", KEY_UNUSED, .note = "messages are always sent in batches: see limits.batchBytes"},
    {"enableReverse", KEY_UNUSED, .note = NOTE_REVERSE},
    {"reverseMilvus", KEY_UNUSED, .note = NOTE_REVERSE},
    {"currentMilvus", KEY_UNUSED, .note = NOTE_REVERSE},
};

const int config_n_keys = sizeof(config_keys) / sizeof(*config_keys);
_Static_assert(sizeof(config_keys) / sizeof(*config_keys) <= CONFIG_KEYS_MAX, "raise CONFIG_KEYS_MAX");

int config_find_key(const char *name)
{
    for (int i = 0; i < config_n_keys; i++) {
        if (strcasecmp(config_keys[i].name, name) == 0)
            return i;
    }
    return -1;
}
