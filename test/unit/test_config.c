/* test_config.c - the configuration file: values, defaults, refusals and their texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/config_priv.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define MIN_YAML "sourceConfig: {replicateChan: by-dev-replicate-msg, rocksmq: {path: /rdb}}\n"

static char dir[] = "/tmp/test_config.XXXXXX";
static char path[100];
static struct err err;
static struct config *cfg;
static char logged[20000];

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/cdc.yaml", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static int each_teardown(void **state)
{
    (void)state;
    config_free(cfg);
    cfg = NULL;
    err = (struct err){0};
    return 0;
}

static void write_file(const char *text, size_t len)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    fclose(f);
}

/* Loads text; what is logged meanwhile goes to logged. */
static bool load(const char *text)
{
    FILE *f = tmpfile();
    int saved = dup(2);
    size_t n;

    config_free(cfg);
    err = (struct err){0};
    write_file(text, strlen(text));
    dup2(fileno(f), 2);
    cfg = config_load(path, &err);
    dup2(saved, 2);
    close(saved);
    rewind(f);
    n = fread(logged, 1, sizeof(logged) - 1, f);
    logged[n] = '\0';
    fclose(f);
    return cfg != NULL;
}

static void assert_in(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, text);
}

static void load_ok(const char *text)
{
    if (!load(text))
        fail_msg("not loaded: %s", err.text);
}

/* Fails with that code; the text has the file's name and both parts. */
static void load_fails(const char *text, enum err_code code, const char *where, const char *part)
{
    if (load(text))
        fail_msg("loaded: %s", text);
    assert_in(err.text, path);
    assert_in(err.text, where);
    assert_in(err.text, part);
    assert_int_equal(err.code, code);
    assert_int_equal(err.cls, ERRC_USER);
}

/* ---- values */

static void defaults(void **state)
{
    (void)state;
    load_ok(MIN_YAML);
    assert_string_equal(logged, "");
    assert_string_equal(cfg->address, "127.0.0.1:8444");
    assert_int_equal(cfg->max_task_num, 100);
    assert_int_equal(cfg->max_name_length, 256);
    assert_int_equal(cfg->log_level, LOG_INFO);
    assert_string_equal(cfg->registry_type, "sqlite");
    assert_string_equal(cfg->registry_path, "./milvus-cdc.db");
    assert_string_equal(cfg->source_etcd.endpoints[0], "127.0.0.1:2379");
    assert_null(cfg->source_etcd.endpoints[1]);
    assert_string_equal(cfg->source_etcd.root_path, "by-dev");
    assert_string_equal(cfg->source_etcd.meta_sub_path, "meta");
    assert_false(cfg->source_etcd.enable_auth);
    assert_null(cfg->source_etcd.username);
    assert_null(cfg->source_etcd.password);
    assert_false(cfg->source_etcd.enable_tls);
    assert_null(cfg->source_etcd.tls_cert_path);
    assert_int_equal(cfg->source_etcd.tls_min_version, 0);
    assert_string_equal(cfg->rocksmq_path, "/rdb");
    assert_string_equal(cfg->replicate_chan, "by-dev-replicate-msg");
    assert_int_equal(cfg->time_tick_interval_ms, 500);
    assert_int_equal(cfg->retry_initial_ms, 1000);
    assert_int_equal(cfg->retry_max_ms, 10000);
    assert_int_equal(cfg->batch_bytes, 4 << 20);
    assert_int_equal(cfg->channel_bytes, 8 << 20);
    assert_int_equal(cfg->task_bytes, 192 << 20);
    assert_int_equal(cfg->process_bytes, 512 << 20);
    assert_false(cfg->dry_run);
}

static void all_values_and_any_case(void **state)
{
    (void)state;
    load_ok("ADDRESS: ':9000'\n"
            "maxtasknum: 7\n"
            "maxNameLength: '64'\n"
            "loglevel: WARN\n"
            "dryRun: false\n"
            "replicateID: ''\n"
            "Registry: {Type: SQLite, Path: /var/lib/cdc.db}\n"
            "sourceconfig:\n"
            "  etcd:\n"
            "    address: [http://a:1, 'b:2 , c:3']\n"
            "    rootpath: r\n"
            "    metasubpath: m\n"
            "    enableauth: True\n"
            "    username: u\n"
            "    password: p\n"
            "    enabletls: on\n"
            "    tlscertpath: c.pem\n"
            "    tlskeypath: k.pem\n"
            "    tlscacertpath: ca.pem\n"
            "    tlsminversion: 1.3\n"
            "  rocksmq: {path: /rdb}\n"
            "  replicatechan: x-replicate-msg\n"
            "  timeTickInterval: 200\n"
            "retry: {initBackOff: 2, maxBackOff: 30}\n"
            "limits: {batchBytes: 65536, channelBytes: 128KiB, taskBytes: 1 mib, processBytes: "
            "2GiB}\n");
    assert_string_equal(logged, "");
    assert_string_equal(cfg->address, "0.0.0.0:9000");
    assert_int_equal(cfg->max_task_num, 7);
    assert_int_equal(cfg->max_name_length, 64);
    assert_int_equal(cfg->log_level, LOG_WARN);
    assert_string_equal(cfg->registry_path, "/var/lib/cdc.db");
    assert_string_equal(cfg->source_etcd.endpoints[0], "http://a:1");
    assert_string_equal(cfg->source_etcd.endpoints[1], "b:2");
    assert_string_equal(cfg->source_etcd.endpoints[2], "c:3");
    assert_null(cfg->source_etcd.endpoints[3]);
    assert_string_equal(cfg->source_etcd.root_path, "r");
    assert_string_equal(cfg->source_etcd.meta_sub_path, "m");
    assert_true(cfg->source_etcd.enable_auth);
    assert_string_equal(cfg->source_etcd.username, "u");
    assert_string_equal(cfg->source_etcd.password, "p");
    assert_true(cfg->source_etcd.enable_tls);
    assert_string_equal(cfg->source_etcd.tls_cert_path, "c.pem");
    assert_string_equal(cfg->source_etcd.tls_key_path, "k.pem");
    assert_string_equal(cfg->source_etcd.tls_ca_cert_path, "ca.pem");
    assert_int_equal(cfg->source_etcd.tls_min_version, 13);
    assert_string_equal(cfg->replicate_chan, "x-replicate-msg");
    assert_int_equal(cfg->time_tick_interval_ms, 200);
    assert_int_equal(cfg->retry_initial_ms, 2000);
    assert_int_equal(cfg->retry_max_ms, 30000);
    assert_int_equal(cfg->batch_bytes, 65536);
    assert_int_equal(cfg->channel_bytes, 128 << 10);
    assert_int_equal(cfg->task_bytes, 1 << 20);
    assert_true(cfg->process_bytes == UINT64_C(2) << 30);
}

static void empty_means_not_given(void **state)
{
    (void)state;
    load_ok("address: ''\nmaxTaskNum: ''\nlogLevel: ~\nregistry:\nreplicateID: ''\n"
            "retry: {initBackOff: 0, maxBackOff: 0}\n"
            "sourceConfig:\n  replicateChan: c\n  rocksmq: {path: /r}\n"
            "  etcd: {address: [], rootPath: '', username: '', tlsMinVersion: ''}\n"
            "  kafka: {address: '', producer: {}}\n  pulsar: {address: ''}\n");
    assert_string_equal(logged, "");
    assert_string_equal(cfg->address, "127.0.0.1:8444");
    assert_int_equal(cfg->max_task_num, 100);
    assert_string_equal(cfg->source_etcd.endpoints[0], "127.0.0.1:2379");
    assert_string_equal(cfg->source_etcd.root_path, "by-dev");
    assert_null(cfg->source_etcd.username);
    assert_int_equal(cfg->retry_initial_ms, 1000);
    assert_int_equal(cfg->retry_max_ms, 10000);
}

static void old_forms(void **state)
{
    (void)state;
    load_ok(
        "sourceConfig: {etcdAddress: [h:1], etcdRootPath: r, etcdMetaSubPath: m, replicateChan: c,"
        " rocksmq: {path: /r}}\n");
    assert_string_equal(cfg->source_etcd.endpoints[0], "h:1");
    assert_string_equal(cfg->source_etcd.root_path, "r");
    assert_string_equal(cfg->source_etcd.meta_sub_path, "m");
    load_ok("sourceConfig: {etcdRootPath: old, etcd: {rootPath: new}, replicateChan: c,"
            " rocksmq: {path: /r}}\n");
    assert_string_equal(cfg->source_etcd.root_path, "new");
    assert_in(logged, "key=sourceConfig.etcdRootPath");
}

/* ---- files of milvus-cdc */

/* As its template is laid out, Pulsar's address and all, with registry and rocksmq added and nothing removed. */
static void file_of_the_go_daemon(void **state)
{
    (void)state;
    load_ok("address: 0.0.0.0:8444\n"
            "maxTaskNum: 100\n"
            "metaStoreConfig:\n"
            "  storeType: mysql\n"
            "  mysqlSourceUrl: root:hidden-dsn@tcp(127.0.0.1:3306)/milvuscdc?charset=utf8\n"
            "  rootPath: cdc-by-dev\n"
            "sourceConfig:\n"
            "  etcd:\n"
            "    address:\n"
            "      - http://127.0.0.1:2379\n"
            "    rootPath: by-dev\n"
            "    metaSubPath: meta\n"
            "    enableAuth: false\n"
            "    username: root\n"
            "    password: hidden-password\n"
            "    enableTLS: false\n"
            "    tlsCertPath: deployment/cert/client.pem # path to your cert file\n"
            "    tlsMinVersion: 1.3\n"
            "  readChanLen: 10\n"
            "  defaultPartitionName: _default\n"
            "  replicateChan: by-dev-replicate-msg\n"
            "  rocksmq:\n"
            "    path: /rdb\n"
            "  pulsar:\n"
            "    address: pulsar://localhost:6650\n"
            "    webAddress: localhost:80\n"
            "    authParams: token:hidden-token\n"
            "  kafka:\n"
            "    producer: {x: 1}\n"
            "packer: {timerInterval: 1}\n"
            "batchMode: true\n"
            "enableReverse: false\n"
            "reverseMilvus: {}\n"
            "detectDeadLock: false\n"
            "wrongKey: 1\n"
            "registry: {type: sqlite, path: /var/lib/cdc.db}\n"
            "logLevel: info\n");
    assert_string_equal(cfg->address, "0.0.0.0:8444");
    assert_string_equal(cfg->source_etcd.endpoints[0], "http://127.0.0.1:2379");
    assert_string_equal(cfg->rocksmq_path, "/rdb");
    assert_in(logged, "key=sourceConfig.pulsar.address");
    assert_in(logged,
              "metaStoreConfig is not used: tasks are kept in an SQLite file or in PostgreSQL: see registry.type");
    assert_in(logged, "key=metaStoreConfig");
    assert_in(logged, "key=sourceConfig.readChanLen");
    assert_in(logged, "key=sourceConfig.defaultPartitionName");
    assert_in(logged, "key=sourceConfig.pulsar.webAddress");
    assert_in(logged, "key=sourceConfig.kafka.producer");
    assert_in(logged, "key=packer");
    assert_in(logged, "key=batchMode");
    assert_in(logged, "key=enableReverse");
    assert_in(logged, "key=detectDeadLock");
    assert_in(logged, "key=wrongKey");
    assert_in(logged, "line=34");
    assert_null(strstr(logged, "hidden"));
    assert_null(strstr(logged, "reverseMilvus")); /* empty */
}

static void one_queue_is_read(void **state)
{
    (void)state;
    load_ok("sourceConfig:\n  replicateChan: c\n  kafka:\n    address: h:9092,i:9092\n    saslPassword: hidden\n"
            "    securityProtocol: SASL_SSL\n    tlsCACertPath: ca.pem\n    consumer: {socket.timeout.ms: 5000, a: b}\n");
    assert_string_equal(logged, "");
    assert_int_equal(cfg->queue, QUEUE_KAFKA);
    assert_string_equal(cfg->kafka.address, "h:9092,i:9092");
    assert_string_equal(cfg->kafka.sasl_password, "hidden");
    assert_string_equal(cfg->kafka.tls.ca_cert_path, "ca.pem");
    assert_string_equal(cfg->kafka.consumer[0], "socket.timeout.ms");
    assert_string_equal(cfg->kafka.consumer[3], "b");
    assert_null(cfg->kafka.consumer[4]);
    load_ok("sourceConfig:\n  kafka: {address: h:9092}\n  pulsar: {address: 'pulsar://h:6650', authPlugin: token, authParams: "
            "'token:hidden'}\n  replicateChan: c\n");
    assert_int_equal(cfg->queue, QUEUE_PULSAR);
    assert_string_equal(cfg->pulsar.tenant, "public");
    assert_string_equal(cfg->pulsar.auth_token, "hidden");
    assert_in(logged, "not used: a source has one message queue, and sourceConfig.pulsar.address is given");
    assert_null(strstr(logged, "hidden"));
    load_ok("sourceConfig: {replicateChan: c, natsmq: {address: 'h:4222', token: hidden}, kafka: {address: h:1}}\n");
    assert_int_equal(cfg->queue, QUEUE_NATS);
    assert_string_equal(cfg->nats.token, "hidden");
    assert_in(logged, "key=sourceConfig.kafka.address");
    load_ok(MIN_YAML "sourceconfig.kafka.address: h:1\n");
    assert_int_equal(cfg->queue, QUEUE_ROCKSMQ);
    assert_in(logged, "and sourceConfig.rocksmq.path is given");
    load_fails("sourceConfig:\n  pulsar: {address: h, authPlugin: athenz}\n  replicateChan: c\n", ERR_UNSUPPORTED,
               ":2: sourceConfig.pulsar.authPlugin", "only token");
    load_fails("sourceConfig:\n  pulsar: {address: h, authPlugin: token, authParams: hidden}\n  replicateChan: c\n",
               ERR_INVALID, ":2: sourceConfig.pulsar.authPlugin", "token:TEXT");
    load_fails("sourceConfig:\n  kafka: {address: h, consumer: 7}\n  replicateChan: c\n", ERR_INVALID,
               ":2: sourceConfig.kafka.consumer", "section");
    load_fails("sourceConfig:\n  kafka: {address: h, tlsCertPath: c}\n  replicateChan: c\n", ERR_INVALID,
               ":2: sourceConfig.kafka.tlsCertPath", "tlsKeyPath");
    load_ok("sourceConfig: {replicateChan: c}\n");
    assert_null(cfg->rocksmq_path);
    assert_int_equal(cfg->queue, QUEUE_DETECT);
}

static void modes_are_refused(void **state)
{
    (void)state;
    load_fails(MIN_YAML "dryRun: true\n", ERR_UNSUPPORTED, ":2: dryRun", "not implemented");
    load_fails(MIN_YAML "replicateID: abc\n", ERR_UNSUPPORTED, ":2: replicateID",
               "remove replicateID");
    load_fails("address: h:1\n", ERR_INVALID, "sourceConfig.replicateChan",
               "<cluster prefix>-replicate-msg");
    load_fails(MIN_YAML "registry: {type: mysql}\n", ERR_INVALID, ":2: registry.type", "sqlite, postgresql");
}

static void registries(void **state)
{
    (void)state;
    load_ok(MIN_YAML);
    assert_int_equal(cfg->lease_ms, 6000);
    assert_string_equal(cfg->postgresql.schema, "milvus_cdc");
    assert_null(cfg->registry_key_file);
    load_ok(MIN_YAML "registry: {type: PostgreSQL, uri: 'postgresql://u:sesame@h/d', leaseSeconds: 2, keyFile: /k}\n");
    assert_string_equal(cfg->registry_type, "postgresql");
    assert_string_equal(cfg->postgresql.uri, "postgresql://u:sesame@h/d");
    assert_string_equal(cfg->registry_key_file, "/k");
    assert_int_equal(cfg->lease_ms, 2000);
    load_ok(MIN_YAML "registry: {type: postgresql, host: 'a,b', port: 5433, user: u, database: d, sslmode: verify-full}\n");
    assert_string_equal(cfg->postgresql.host, "a,b");
    assert_string_equal(cfg->postgresql.port, "5433");
    load_fails(MIN_YAML "registry: {type: postgresql}\n", ERR_INVALID, ":2: registry.type", "registry.uri");
    load_fails(MIN_YAML "registry: {type: postgresql, uri: 'postgresql://u:sesame@h/d', host: h}\n", ERR_INVALID,
               ":2: registry.host", "registry.uri");
    assert_null(strstr(err.text, "sesame"));
    load_fails(MIN_YAML "registry: {leaseSeconds: 1}\n", ERR_INVALID, ":2: registry.leaseSeconds", "from 2 to 300 s");
}

/* ---- wrong values */

static void wrong_values(void **state)
{
    static const struct {
        const char *yaml, *where, *allowed;
    } cases[] = {
        {"maxTaskNum: many\n", ":2: maxTaskNum", "from 1 to 10000"},
        {"maxTaskNum: 0\n", ":2: maxTaskNum", "from 1 to 10000"},
        {"maxTaskNum: 10001\n", ":2: maxTaskNum", "from 1 to 10000"},
        {"maxTaskNum: 5x\n", ":2: maxTaskNum", "whole number"},
        {"maxTaskNum: 99999999999999999999\n", ":2: maxTaskNum", "whole number"},
        {"maxTaskNum: [1]\n", ":2: maxTaskNum", "not a list"},
        {"maxTaskNum: {a: 1}\n", ":2: maxTaskNum", "not a section"},
        {"\n\nlogLevel: loud\n", ":4: logLevel", "debug, info, warn, error"},
        {"address: nohost\n", ":2: address", "host:port"},
        {"address: h:65536\n", ":2: address", "host:port"},
        {"address: ::1:80\n", ":2: address", "host:port"},
        {"address: h:+1\n", ":2: address", "host:port"},
        {"dryRun: [true]\n", ":2: dryRun", "single value"},
        {"retry: {initBackOff: 3601}\n", ":2: retry.initBackOff", "from 0 to 3600 s"},
        {"retry: {initBackOff: 20}\n", ":2: retry.initBackOff",
         "must not be greater than retry.maxBackOff"},
        {"retry: 5\n", ":2: retry", "section"},
        {"limits: {batchBytes: 1}\n", ":2: limits.batchBytes", "from 64KiB to 256MiB"},
        {"limits: {batchBytes: 1 TB}\n", ":2: limits.batchBytes", "KiB, MiB, GiB"},
        {"limits: {batchBytes: 9223372036854775807GiB}\n", ":2: limits.batchBytes",
         "KiB, MiB, GiB"},
        {"limits: {batchBytes: 16MiB}\n", ":2: limits.batchBytes",
         "greater than limits.channelBytes"},
        {"limits: {taskBytes: 4MiB}\n", ":2: limits.taskBytes", "limits.channelBytes (8388608)"},
        {"limits: {processBytes: 4MiB}\n", ":2: limits.processBytes", "limits.taskBytes"},
        {"sourceConfig.timeTickInterval: 9\n", ":2: sourceConfig.timeTickInterval",
         "from 10 to 60000 ms"},
        {"sourceConfig.etcd: {enableAuth: maybe}\n", ":2: sourceConfig.etcd.enableAuth",
         "true or false"},
        {"sourceConfig.etcd: {enableAuth: true}\n", ":2: sourceConfig.etcd.enableAuth", "username"},
        {"sourceConfig.etcd: {enableTLS: true, tlsKeyPath: k}\n", "sourceConfig.etcd.enableTLS",
         "tlsCertPath and tlsKeyPath"},
        {"sourceConfig.etcd: {tlsMinVersion: 1.4}\n", "sourceConfig.etcd.tlsMinVersion",
         "1.2, 1.3"},
        {"sourceConfig.etcd: {address: {a: b}}\n", "sourceConfig.etcd.address", "list of texts"},
        {"sourceConfig.etcd: {address: [[a]]}\n", "sourceConfig.etcd.address", "list of texts"},
        {"sourceConfig.etcd: {address: 'a:1,,b:2'}\n", "sourceConfig.etcd.address", "is empty"},
        {"sourceConfig.etcd: {password: [x]}\n", "sourceConfig.etcd.password", "single value"},
        {"{a: b}: 1\n", ":2: top level", "a key must be text"},
        {"maxTaskNum: 1\nmaxTaskNum: 2\n", ":3: maxTaskNum", "twice, first in line 2"},
        {"maxTaskNum: 1\nMAXTASKNUM: ''\n", ":3: maxTaskNum", "twice, first in line 2"},
        {"SourceConfig: {timeTickInterval: 100}\n", ":2: SourceConfig", "twice, first in line 1"},
        {"packer: {a: 1}\npacker: {a: 1}\n", ":3: packer", "twice"},
        {"---\naddress: h:1\n", ":3: top level", "second document"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char *text = xasprintf("%s%s", MIN_YAML, cases[i].yaml);

        load_fails(text, ERR_INVALID, cases[i].where, cases[i].allowed);
        free(text);
    }
    load_fails(MIN_YAML "<<: {address: h:1}\n", ERR_UNSUPPORTED, ":2: <<", "merging");
    load_fails("- a\n- b\n", ERR_INVALID, ":1: top level", "keys and values");
    load_fails("just text\n", ERR_INVALID, ":1: top level", "keys and values");
    load_fails("", ERR_INVALID, "sourceConfig.replicateChan", "required");
}

static void secrets_stay_secret(void **state)
{
    (void)state;
    load_fails(MIN_YAML "sourceConfig.etcd: {address: 'http://u:hidden@h:1'}\n", ERR_INVALID,
               "sourceConfig.etcd.address", "set username and password");
    assert_null(strstr(err.text, "hidden"));
    load_fails(MIN_YAML "sourceConfig.etcd: {password: {hidden: 1}}\n", ERR_INVALID,
               "sourceConfig.etcd.password", "single value");
    assert_null(strstr(err.text, "hidden"));
}

static void not_yaml(void **state)
{
    (void)state;
    load_fails("address: h:1\n  bad: [\n", ERR_PROTO, ":2:", "not YAML");
    load_fails("a: \xff\xfe\n", ERR_PROTO, "", "not text");
    load_fails("a: &x {b: *y}\n", ERR_PROTO, ":1:", "not YAML");
    /* A section that contains itself is not walked for ever. */
    load_fails("sourceConfig: &x {etcd: *x, sourceConfig: *x, replicateChan: a}\nsourceConfig: 1\n",
               ERR_INVALID, "sourceConfig", "");
    unlink(path);
    assert_null(config_load(path, &err));
    assert_int_equal(err.code, ERR_IO);
    assert_in(err.text, "cannot be read");
    assert_null(config_load(dir, &err));
    assert_in(err.text, "not a regular file");
    write_file("", 0);
    assert_int_equal(truncate(path, CONFIG_MAX_BYTES + 1), 0);
    assert_null(config_load(path, &err));
    assert_in(err.text, "larger than");
}

/* Every cut of a good file, and every byte of it replaced, loads or fails, but does no harm (ASan).
 */
static void damaged_files(void **state)
{
    static const char good[] = "sourceConfig: {etcd: {address: [a, 'b,c'], tlsMinVersion: 1.3},\n"
                               " replicateChan: c, rocksmq: {path: &p /r}}\nmaxTaskNum: 5\n";
    char text[sizeof(good)];

    (void)state;
    for (size_t i = 0; i < sizeof(good); i++) {
        memcpy(text, good, i);
        text[i] = '\0';
        if (!load(text))
            assert_in(err.text, path);
    }
    for (size_t i = 0; i < sizeof(good) - 1; i++) {
        for (const char *c = "{}[]:*&\n'\x01"; *c; c++) {
            memcpy(text, good, sizeof(good));
            text[i] = *c;
            if (!load(text))
                assert_in(err.text, path);
        }
    }
}

/* ---- etc/cdc.yaml */

static bool found[CONFIG_KEYS_MAX];

/* Every key of the file is in the table, with the table's default. */
static void compare_with_table(yaml_document_t *doc, const yaml_node_t *map, const char *prefix)
{
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top;
         p++) {
        const yaml_node_t *value = yaml_document_get_node(doc, p->value);
        char name[200];
        int i;

        snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "." : "",
                 config_scalar(yaml_document_get_node(doc, p->key)));
        i = config_find_key(name);
        if (i >= 0 && config_keys[i].type == KEY_MAP) {
            found[i] = true;
            continue;
        }
        if (value->type == YAML_MAPPING_NODE) {
            compare_with_table(doc, value, name);
            continue;
        }
        if (i < 0 || config_keys[i].type == KEY_UNUSED)
            fail_msg("%s is not a key of ours", name);
        assert_string_equal(config_keys[i].name, name);
        if (value->type == YAML_SEQUENCE_NODE)
            value = yaml_document_get_node(doc, *value->data.sequence.items.start);
        if (config_keys[i].default_text)
            assert_string_equal(config_scalar(value), config_keys[i].default_text);
        found[i] = true;
    }
}

/* Keys that are commented out begin right after the '#', prose has a space there. */
static void read_template(char *text, size_t size)
{
    FILE *f = fopen("etc/cdc.yaml", "r");
    char line[400];

    if (!f)
        fail_msg("etc/cdc.yaml: run the test from the top folder");
    *text = '\0';
    while (fgets(line, sizeof(line), f)) {
        char *hash = line + strspn(line, " ");

        if (hash[0] == '#' && isalpha((unsigned char)hash[1]))
            memmove(hash, hash + 1, strlen(hash));
        assert_true(strlen(text) + strlen(line) < size);
        strcat(text, line);
    }
    fclose(f);
}

static void template_matches_the_table(void **state)
{
    char text[20000];
    yaml_document_t doc;
    yaml_parser_t p;

    (void)state;
    read_template(text, sizeof(text));
    yaml_parser_initialize(&p);
    yaml_parser_set_input_string(&p, (const unsigned char *)text, strlen(text));
    assert_true(yaml_parser_load(&p, &doc));
    compare_with_table(&doc, yaml_document_get_root_node(&doc), "");
    for (int i = 0; i < config_n_keys; i++) {
        if (!found[i] && !config_keys[i].newer && config_keys[i].type < KEY_REFUSED)
            fail_msg("%s is missing in etc/cdc.yaml", config_keys[i].name);
    }
    yaml_document_delete(&doc);
    yaml_parser_delete(&p);
    load_ok(text);
    assert_null(strstr(logged, "unknown key")); /* of the four queues one is used, which is told */
    cfg = (config_free(cfg), config_load("etc/cdc.yaml", &err));
    assert_non_null(cfg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(defaults, each_teardown),
        cmocka_unit_test_teardown(all_values_and_any_case, each_teardown),
        cmocka_unit_test_teardown(empty_means_not_given, each_teardown),
        cmocka_unit_test_teardown(old_forms, each_teardown),
        cmocka_unit_test_teardown(file_of_the_go_daemon, each_teardown),
        cmocka_unit_test_teardown(one_queue_is_read, each_teardown),
        cmocka_unit_test_teardown(modes_are_refused, each_teardown),
        cmocka_unit_test_teardown(registries, each_teardown),
        cmocka_unit_test_teardown(wrong_values, each_teardown),
        cmocka_unit_test_teardown(secrets_stay_secret, each_teardown),
        cmocka_unit_test_teardown(not_yaml, each_teardown),
        cmocka_unit_test_teardown(damaged_files, each_teardown),
        cmocka_unit_test_teardown(template_matches_the_table, each_teardown),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
