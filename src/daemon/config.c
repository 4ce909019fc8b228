#include "daemon/config.h"

#include "base/err.h"
#include "base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

enum { MAX_FILE_BYTES = 1 << 20, MAX_PATH_CHARS = 200 };

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

/* ---- the table */

enum key_type {
    KEY_TEXT,
    KEY_SECRET,  /* text, never printed */
    KEY_ADDRESS, /* host:port to listen on */
    KEY_LIST,    /* of texts; a single text with commas is a list too */
    KEY_INT,
    KEY_MS,      /* milliseconds */
    KEY_SECONDS, /* kept as milliseconds; 0: the default */
    KEY_BYTES,   /* with KiB, MiB, GiB or without */
    KEY_BOOL,
    KEY_LOG_LEVEL,
    KEY_TLS_VERSION,
    KEY_REGISTRY_TYPE,
    KEY_TOKENS,  /* list of {name, sha256} */
    KEY_MAP,     /* section of any texts, which may be secrets: name, value, ..., NULL */
    KEY_REFUSED, /* note says why; false and empty are let pass */
    KEY_UNUSED,  /* known, of any type, without meaning here; note says why or what instead */
};

struct key {
    const char *name;
    enum key_type type;
    size_t offset;
    int64_t min, max;         /* of numbers, in the unit of the file */
    const char *default_text; /* as in the file; NULL: none */
    const char *note;
    const char *newer; /* this is an old form of that key, which wins */
    bool live;         /* may change while running */
};

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
static const struct key keys[] = {
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

enum { N_KEYS = sizeof(keys) / sizeof(*keys) };

/* ---- one run */

struct loader {
    const char *file;
    struct config *config;
    struct err *err;
    yaml_document_t *doc;
    size_t lines[N_KEYS]; /* where a key stands, 0: not in the file */
    bool given[N_KEYS];   /* with a value */
};

static size_t line_of(const yaml_node_t *n)
{
    return n->start_mark.line + 1;
}

/* "file:line: key: what is wrong". Returns code. */
static int wrong(struct loader *ld, enum err_code code, size_t line, const char *name,
                 const char *fmt, ...) __attribute__((format(printf, 5, 6)));

static int wrong(struct loader *ld, enum err_code code, size_t line, const char *name,
                 const char *fmt, ...)
{
    char text[sizeof(ld->err->text)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(ld->err, code, ERRC_USER, "%s:%zu: %s: %s", ld->file, line, name, text);
}

static void warn(const struct loader *ld, size_t line, const char *name, const char *why)
{
    log_warn("config", why, KS("key", name), KS("file", ld->file), KU("line", line));
}

static int find_key(const char *name)
{
    for (int i = 0; i < N_KEYS; i++) {
        if (strcasecmp(keys[i].name, name) == 0)
            return i;
    }
    return -1;
}

static bool is_section(const char *name)
{
    size_t len = strlen(name);

    for (int i = 0; i < N_KEYS; i++) {
        if (strncasecmp(keys[i].name, name, len) == 0 && keys[i].name[len] == '.')
            return true;
    }
    return false;
}

static void *member(struct loader *ld, const struct key *k)
{
    return (char *)ld->config + k->offset;
}

/* ---- values: 0, or an error that says what is allowed */

/* NULL for maps and lists. */
static const char *scalar(const yaml_node_t *n)
{
    return n->type == YAML_SCALAR_NODE ? (const char *)n->data.scalar.value : NULL;
}

/* Null in YAML, or "" as the Go templates have it. */
static bool is_empty(const yaml_node_t *n)
{
    const char *s = scalar(n);

    if (!s)
        return (n->type == YAML_SEQUENCE_NODE &&
                n->data.sequence.items.start == n->data.sequence.items.top) ||
               (n->type == YAML_MAPPING_NODE &&
                n->data.mapping.pairs.start == n->data.mapping.pairs.top);
    if (n->data.scalar.length == 0)
        return true;
    return n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (strcmp(s, "~") == 0 || strcasecmp(s, "null") == 0);
}

static void set_text(char **at, const char *s)
{
    free(*at);
    *at = xstrdup(s);
}

static void free_texts(char **list)
{
    for (char **s = list; s && *s; s++)
        free(*s);
    free(list);
}

static bool parse_bool(const char *s, bool *ret)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on"};

    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
        if (strcasecmp(s, words[i]) == 0) {
            *ret = i % 2;
            return true;
        }
    }
    return false;
}

/* Digits with a sign; *ret_end is what follows. */
static bool parse_int(const char *s, int64_t *ret, const char **ret_end)
{
    char *end;
    long long v;

    if (!isdigit((unsigned char)s[*s == '-' || *s == '+']))
        return false;
    errno = 0;
    v = strtoll(s, &end, 10);
    if (errno)
        return false;
    *ret = v;
    *ret_end = end;
    return true;
}

static int set_int(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    const char *unit = k->type == KEY_MS ? " ms" : k->type == KEY_SECONDS ? " s" : "";
    const char *end;
    int64_t v;

    if (!parse_int(s, &v, &end) || *end || v < k->min || v > k->max)
        return wrong(ld, ERR_INVALID, line, k->name,
                     "\"%.100s\" is not a whole number from %" PRId64 " to %" PRId64 "%s", s,
                     k->min, k->max, unit);
    if (k->type != KEY_SECONDS)
        *(int64_t *)member(ld, k) = v;
    else if (v)
        *(uint64_t *)member(ld, k) = (uint64_t)v * 1000;
    return 0;
}

static bool parse_bytes(const char *s, int64_t *ret)
{
    static const struct {
        const char *suffix;
        int64_t factor;
    } units[] = {{"", 1}, {"B", 1}, {"KiB", KIB}, {"MiB", MIB}, {"GiB", GIB}};
    const char *end;
    int64_t v;

    if (!parse_int(s, &v, &end))
        return false;
    end += strspn(end, " ");
    for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++) {
        if (strcasecmp(end, units[i].suffix) == 0)
            return !__builtin_mul_overflow(v, units[i].factor, ret);
    }
    return false;
}

static int set_bytes(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    int64_t v;

    if (!parse_bytes(s, &v) || v < k->min || v > k->max)
        return wrong(ld, ERR_INVALID, line, k->name,
                     "\"%.100s\" is not a size from %" PRId64 "KiB to %" PRId64
                     "MiB (a whole number of bytes, or with KiB, MiB, GiB)",
                     s, k->min / KIB, k->max / MIB);
    *(uint64_t *)member(ld, k) = (uint64_t)v;
    return 0;
}

static int set_bool(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    if (!parse_bool(s, member(ld, k)))
        return wrong(ld, ERR_INVALID, line, k->name, "\"%.100s\" is not true or false", s);
    return 0;
}

static int set_log_level(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    if (!log_level_parse(s, member(ld, k)))
        return wrong(ld, ERR_INVALID, line, k->name,
                     "\"%.100s\" is not one of debug, info, warn, error", s);
    return 0;
}

static int set_tls_version(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    if (strlen(s) != 3 || strncmp(s, "1.", 2) != 0 || s[2] < '0' || s[2] > '3')
        return wrong(ld, ERR_INVALID, line, k->name, "\"%.100s\" is not one of 1.0, 1.1, 1.2, 1.3",
                     s);
    *(int *)member(ld, k) = 10 + (s[2] - '0');
    return 0;
}

static int set_registry_type(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    static const char *const types[] = {"sqlite", "postgresql"};

    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        if (strcasecmp(s, types[i]) != 0)
            continue;
        set_text(member(ld, k), types[i]);
        return 0;
    }
    return wrong(ld, ERR_INVALID, line, k->name, "\"%.100s\" is not one of sqlite, postgresql", s);
}

/* host:port, [v6]:port or :port */
static bool address_ok(const char *s)
{
    const char *colon = strrchr(s, ':');
    const char *end;
    int64_t port;

    if (!colon || !isdigit((unsigned char)colon[1]) || !parse_int(colon + 1, &port, &end) || *end ||
        port > 65535 || strpbrk(s, " /"))
        return false;
    if (*s == '[')
        return colon - s > 2 && colon[-1] == ']';
    return memchr(s, ':', (size_t)(colon - s)) == NULL;
}

static int set_address(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    char **at = member(ld, k);

    if (!address_ok(s))
        return wrong(
            ld, ERR_INVALID, line, k->name,
            "\"%.100s\" is not host:port, such as 0.0.0.0:8444 or [::1]:8444 (port 0 to 65535)", s);
    free(*at);
    *at = *s == ':' ? xasprintf("0.0.0.0%s", s) : xstrdup(s);
    return 0;
}

/* Appends the texts of s, separated by commas. */
static int add_items(struct loader *ld, const struct key *k, const char *s, size_t line,
                     char ***list, size_t *n)
{
    for (;;) {
        size_t len;

        s += strspn(s, " \t");
        len = strcspn(s, ",");
        while (len && isspace((unsigned char)s[len - 1]))
            len--;
        if (len == 0)
            return wrong(ld, ERR_INVALID, line, k->name,
                         "an address is empty: give host:port of each");
        if (memchr(s, '@', len)) /* not printed: has a password in it */
            return wrong(
                ld, ERR_INVALID, line, k->name,
                "user and password do not belong in an address: set username and password");
        *list = xrealloc(*list, (*n + 2) * sizeof(**list));
        (*list)[(*n)++] = xstrndup(s, len);
        (*list)[*n] = NULL;
        s += strcspn(s, ",");
        if (!*s++)
            return 0;
    }
}

static int set_list(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    char ***at = member(ld, k);
    char **list = NULL;
    size_t count = 0;
    int rc = 0;

    if (scalar(n))
        rc = add_items(ld, k, scalar(n), line_of(n), &list, &count);
    else if (n->type != YAML_SEQUENCE_NODE)
        rc = wrong(ld, ERR_INVALID, line_of(n), k->name, "must be a list of texts");
    else
        for (yaml_node_item_t *i = n->data.sequence.items.start;
             i < n->data.sequence.items.top && !rc; i++) {
            const yaml_node_t *item = yaml_document_get_node(ld->doc, *i);

            if (scalar(item))
                rc = add_items(ld, k, scalar(item), line_of(item), &list, &count);
            else
                rc = wrong(ld, ERR_INVALID, line_of(item), k->name, "must be a list of texts");
        }
    if (rc) {
        free_texts(list);
        return rc;
    }
    free_texts(*at);
    *at = list;
    return 0;
}

static int set_map(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    char **list = NULL;
    size_t count = 0;

    if (n->type != YAML_MAPPING_NODE)
        return wrong(ld, ERR_INVALID, line_of(n), k->name, "must be a section (keys below it), not a value");
    for (const yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = yaml_document_get_node(ld->doc, p->key);
        const yaml_node_t *value = yaml_document_get_node(ld->doc, p->value);

        if (!scalar(key) || !scalar(value)) {
            free_texts(list);
            return wrong(ld, ERR_INVALID, line_of(key), k->name, "must hold names with single values");
        }
        list = xrealloc(list, (count + 3) * sizeof(*list));
        list[count++] = xstrdup(scalar(key));
        list[count++] = xstrdup(scalar(value));
        list[count] = NULL;
    }
    free_texts(*(char ***)member(ld, k));
    *(char ***)member(ld, k) = list;
    return 0;
}

static void free_tokens(struct config_api *a)
{
    for (size_t i = 0; i < a->n_tokens; i++)
        free(a->tokens[i].name);
    free(a->tokens);
    a->tokens = NULL;
    a->n_tokens = 0;
}

static int hex_digit(char c)
{
    return isdigit((unsigned char)c)    ? c - '0'
           : c && strchr("abcdef", c) ? c - 'a' + 10
           : c && strchr("ABCDEF", c) ? c - 'A' + 10
                                        : -1;
}

/* Exactly n bytes. */
static bool parse_hex(const char *s, uint8_t *ret, size_t n)
{
    if (strlen(s) != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        int high = hex_digit(s[2 * i]), low = hex_digit(s[2 * i + 1]);

        if (high < 0 || low < 0)
            return false;
        ret[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* The values are not printed: somebody may have put the token itself there. */
static int add_token(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    struct config_api *a = &ld->config->api;
    const char *name = NULL, *hash = NULL;
    struct config_token t;

    if (n->type != YAML_MAPPING_NODE)
        return wrong(ld, ERR_INVALID, line_of(n), k->name, "each entry must be {name: NAME, sha256: HEX}");
    for (const yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
        const char *key = scalar(yaml_document_get_node(ld->doc, p->key));
        const char *value = scalar(yaml_document_get_node(ld->doc, p->value));

        if (key && value && strcasecmp(key, "name") == 0)
            name = value;
        else if (key && value && strcasecmp(key, "sha256") == 0)
            hash = value;
        else
            return wrong(ld, ERR_INVALID, line_of(n), k->name, "an entry has name and sha256, nothing else");
    }
    if (!name || !*name || !hash || !parse_hex(hash, t.sha256, sizeof(t.sha256)))
        return wrong(ld, ERR_INVALID, line_of(n), k->name,
                     "an entry needs a name, and in sha256 the 64 hexadecimal digits that \"milvus-cdc token\" prints");
    t.name = xstrdup(name);
    a->tokens = xrealloc(a->tokens, (a->n_tokens + 1) * sizeof(*a->tokens));
    a->tokens[a->n_tokens++] = t;
    return 0;
}

static int set_tokens(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    int rc = 0;

    if (n->type != YAML_SEQUENCE_NODE)
        return wrong(ld, ERR_INVALID, line_of(n), k->name, "must be a list of {name: NAME, sha256: HEX}");
    for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top && !rc; i++)
        rc = add_token(ld, k, yaml_document_get_node(ld->doc, *i));
    return rc;
}

static int refuse(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    bool on;

    if (parse_bool(s, &on) && !on)
        return 0;
    return wrong(ld, ERR_UNSUPPORTED, line, k->name, "%s", k->note);
}

static int set_scalar(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    switch (k->type) {
    case KEY_TEXT:
    case KEY_SECRET:
        set_text(member(ld, k), s);
        return 0;
    case KEY_ADDRESS:
        return set_address(ld, k, s, line);
    case KEY_INT:
    case KEY_MS:
    case KEY_SECONDS:
        return set_int(ld, k, s, line);
    case KEY_BYTES:
        return set_bytes(ld, k, s, line);
    case KEY_BOOL:
        return set_bool(ld, k, s, line);
    case KEY_LOG_LEVEL:
        return set_log_level(ld, k, s, line);
    case KEY_TLS_VERSION:
        return set_tls_version(ld, k, s, line);
    case KEY_REGISTRY_TYPE:
        return set_registry_type(ld, k, s, line);
    case KEY_REFUSED:
        return refuse(ld, k, s, line);
    case KEY_LIST:
    case KEY_TOKENS:
    case KEY_MAP:
    case KEY_UNUSED:
        break;
    }
    abort();
}

/* ---- keys */

/* Marks the key as read. ERR_INVALID: it was there before, in another spelling maybe. */
static int note_line(struct loader *ld, int i, size_t line)
{
    if (ld->lines[i])
        return wrong(ld, ERR_INVALID, line, keys[i].name, "is given twice, first in line %zu",
                     ld->lines[i]);
    ld->lines[i] = line;
    return 0;
}

static int set_value(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    if (k->type == KEY_LIST)
        return set_list(ld, k, n);
    if (k->type == KEY_MAP)
        return set_map(ld, k, n);
    if (k->type == KEY_TOKENS)
        return set_tokens(ld, k, n);
    if (!scalar(n))
        return wrong(ld, ERR_INVALID, line_of(n), k->name, "must be a single value, not a %s",
                     n->type == YAML_SEQUENCE_NODE ? "list" : "section");
    return set_scalar(ld, k, scalar(n), line_of(n));
}

static int take_key(struct loader *ld, int i, size_t line, const yaml_node_t *n)
{
    const struct key *k = &keys[i];

    if (note_line(ld, i, line))
        return ERR_INVALID;
    if (is_empty(n))
        return 0;
    ld->given[i] = true;
    if (k->type == KEY_UNUSED) {
        char *why = xasprintf("%s is not used: %s", k->name, k->note);

        warn(ld, line, k->name, why);
        free(why);
        return 0;
    }
    if (k->newer) {
        int newer = find_key(k->newer);

        if (ld->given[newer]) {
            warn(ld, line, k->name, "old form of a key that is given too: not used");
            return 0;
        }
    }
    return set_value(ld, k, n);
}

static int take_map(struct loader *ld, const char *prefix, const yaml_node_t *map, bool old_forms);

static int take_section(struct loader *ld, const char *name, size_t line, const yaml_node_t *n,
                        bool old_forms)
{
    if (n->type != YAML_MAPPING_NODE && !is_empty(n))
        return wrong(ld, ERR_INVALID, line, name, "must be a section (keys below it), not a value");
    return n->type == YAML_MAPPING_NODE ? take_map(ld, name, n, old_forms) : 0;
}

/* The same key of a map twice: YAML forbids it, but libyaml does not look. */
static int check_duplicate(struct loader *ld, const yaml_node_t *map, const yaml_node_pair_t *pair,
                           const char *name)
{
    const yaml_node_t *key = yaml_document_get_node(ld->doc, pair->key);

    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < pair; p++) {
        const yaml_node_t *other = yaml_document_get_node(ld->doc, p->key);

        if (scalar(other) && strcasecmp(scalar(other), scalar(key)) == 0)
            return wrong(ld, ERR_INVALID, line_of(key), name, "is given twice, first in line %zu",
                         line_of(other));
    }
    return 0;
}

static int take_pair(struct loader *ld, const char *prefix, const yaml_node_t *map,
                     const yaml_node_pair_t *pair, bool old_forms)
{
    const yaml_node_t *key = yaml_document_get_node(ld->doc, pair->key);
    const yaml_node_t *value = yaml_document_get_node(ld->doc, pair->value);
    char name[MAX_PATH_CHARS];
    int i;

    if (!scalar(key))
        return wrong(ld, ERR_INVALID, line_of(key), *prefix ? prefix : "top level",
                     "a key must be text");
    snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "." : "", scalar(key));
    if (strcmp(scalar(key), "<<") == 0)
        return wrong(ld, ERR_UNSUPPORTED, line_of(key), name,
                     "merging of sections is not supported");
    i = find_key(name);
    if (i < 0 && is_section(name))
        return check_duplicate(ld, map, pair, name)
                   ? ERR_INVALID
                   : take_section(ld, name, line_of(key), value, old_forms);
    if (i >= 0)
        return old_forms == (keys[i].newer != NULL) ? take_key(ld, i, line_of(key), value) : 0;
    if (!old_forms)
        warn(ld, line_of(key), name, "unknown key: not used");
    return 0;
}

static int take_map(struct loader *ld, const char *prefix, const yaml_node_t *map, bool old_forms)
{
    int rc = 0;

    for (yaml_node_pair_t *p = map->data.mapping.pairs.start;
         p < map->data.mapping.pairs.top && !rc; p++)
        rc = take_pair(ld, prefix, map, p, old_forms);
    return rc;
}

/* ---- checks of the whole */

static bool is_given(const struct loader *ld, const char *name)
{
    return ld->given[find_key(name)];
}

static size_t line_of_key(const struct loader *ld, const char *name)
{
    return ld->lines[find_key(name)];
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
        warn(ld, line_of_key(ld, order[i].key), order[i].key, why);
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
        return wrong(ld, ERR_UNSUPPORTED, line, "sourceConfig.pulsar.authPlugin", "\"%.100s\" is not known: only token is",
                     c->auth_plugin);
    c->auth_token = c->auth_params ? token_of(c->auth_params) : NULL;
    if (!c->auth_token)
        return wrong(ld, ERR_INVALID, line, "sourceConfig.pulsar.authPlugin", "is token, so authParams must be token:TEXT");
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
        return wrong(ld, ERR_INVALID, line_of_key(ld, section), section, "and tlsKeyPath must be given both or not at all");
    return 0;
}

static int check_etcd(struct loader *ld)
{
    const struct config_etcd *e = &ld->config->source_etcd;

    if (e->enable_auth && (!e->username || !e->password))
        return wrong(ld, ERR_INVALID, line_of_key(ld, "sourceConfig.etcd.enableAuth"),
                     "sourceConfig.etcd.enableAuth",
                     "is true, so username and password must be given");
    if (e->enable_tls && !e->tls_cert_path != !e->tls_key_path)
        return wrong(ld, ERR_INVALID, line_of_key(ld, "sourceConfig.etcd.enableTLS"),
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
        return wrong(ld, ERR_INVALID, line_of_key(ld, name), name,
                     "is postgresql, so registry.uri (postgresql://user@host:port/database) or registry.host, user and "
                     "database must be given");
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts) && p->uri; i++)
        if (is_given(ld, parts[i]))
            return wrong(ld, ERR_INVALID, line_of_key(ld, parts[i]), parts[i],
                         "belongs into registry.uri, which is given");
    return 0;
}

static int check_api(struct loader *ld)
{
    const struct config_api *a = &ld->config->api;

    if (!a->cert_path != !a->key_path)
        return wrong(ld, ERR_INVALID, line_of_key(ld, a->cert_path ? "api.tls.cert" : "api.tls.key"), "api.tls",
                     "cert and key must be given both or not at all");
    if (a->client_ca_path && !a->cert_path)
        return wrong(ld, ERR_INVALID, line_of_key(ld, "api.tls.clientCA"), "api.tls.clientCA",
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
    return wrong(ld, ERR_INVALID, line_of_key(ld, name), name,
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

static int check_all(struct loader *ld)
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

/* ---- the file */

static void set_defaults(struct loader *ld)
{
    static const yaml_node_t proto = {.type = YAML_SCALAR_NODE};

    for (int i = 0; i < N_KEYS; i++) {
        yaml_node_t n = proto;
        int rc;

        if (!keys[i].default_text || keys[i].type == KEY_REFUSED)
            continue;
        n.data.scalar.value = (yaml_char_t *)keys[i].default_text;
        n.data.scalar.length = strlen(keys[i].default_text);
        rc = set_value(ld, &keys[i], &n);
        if (rc) /* a bug of the table */
            abort();
    }
}

static int yaml_error(struct loader *ld, const yaml_parser_t *p)
{
    if (p->error == YAML_MEMORY_ERROR)
        return err_set(ld->err, ERR_LIMIT, ERRC_USER, "%s: not enough memory", ld->file);
    if (p->error == YAML_READER_ERROR)
        return err_set(ld->err, ERR_PROTO, ERRC_USER, "%s: not text: %s at byte %zu", ld->file,
                       p->problem, p->problem_offset);
    return err_set(ld->err, ERR_PROTO, ERRC_USER, "%s:%zu: not YAML: %s%s%s", ld->file,
                   p->problem_mark.line + 1, p->problem, p->context ? " " : "",
                   p->context ? p->context : "");
}

static int take_document(struct loader *ld)
{
    const yaml_node_t *root = yaml_document_get_root_node(ld->doc);
    int rc = 0;

    if (root && root->type != YAML_MAPPING_NODE && !is_empty(root))
        return wrong(ld, ERR_INVALID, line_of(root), "top level", "must be keys and values");
    /* Twice: an old form counts only where the new one is not given, whatever comes first. */
    if (root && root->type == YAML_MAPPING_NODE) {
        rc = take_map(ld, "", root, false);
        if (!rc)
            rc = take_map(ld, "", root, true);
    }
    return rc ? rc : check_all(ld);
}

/* A second document would be lost. */
static int check_single(struct loader *ld, yaml_parser_t *p)
{
    yaml_document_t next;
    const yaml_node_t *root;
    int rc = 0;

    if (!yaml_parser_load(p, &next))
        return yaml_error(ld, p);
    root = yaml_document_get_root_node(&next);
    if (root)
        rc = wrong(ld, ERR_INVALID, line_of(root), "top level", "a second document is not allowed");
    yaml_document_delete(&next);
    return rc;
}

static int parse(struct loader *ld, FILE *f)
{
    yaml_document_t doc;
    yaml_parser_t p;
    int rc;

    if (!yaml_parser_initialize(&p))
        return err_set(ld->err, ERR_LIMIT, ERRC_USER, "%s: not enough memory", ld->file);
    yaml_parser_set_input_file(&p, f);
    if (!yaml_parser_load(&p, &doc)) {
        rc = yaml_error(ld, &p);
    } else {
        bool empty = !yaml_document_get_root_node(&doc);

        ld->doc = &doc;
        rc = take_document(ld);
        if (!rc && !empty)
            rc = check_single(ld, &p);
        yaml_document_delete(&doc);
    }
    yaml_parser_delete(&p);
    return rc;
}

static int open_file(struct loader *ld, FILE **ret)
{
    FILE *f = fopen(ld->file, "re");
    struct stat st;
    int rc = 0;

    if (!f || fstat(fileno(f), &st) < 0)
        rc = err_set(ld->err, ERR_IO, ERRC_USER, "%s: cannot be read: %s", ld->file,
                     strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc =
            err_set(ld->err, ERR_IO, ERRC_USER, "%s: cannot be read: not a regular file", ld->file);
    else if (st.st_size > MAX_FILE_BYTES)
        rc = err_set(ld->err, ERR_IO, ERRC_USER, "%s: is larger than %d bytes", ld->file,
                     MAX_FILE_BYTES);
    if (rc == 0)
        *ret = f;
    else if (f)
        fclose(f);
    return rc;
}

struct config *config_load(const char *path, struct err *err)
{
    struct loader ld = {.file = path, .err = err};
    FILE *f = NULL;

    if (open_file(&ld, &f))
        return NULL;
    ld.config = xcalloc(1, sizeof(*ld.config));
    set_defaults(&ld);
    if (parse(&ld, f)) {
        config_free(ld.config);
        ld.config = NULL;
    }
    fclose(f);
    return ld.config;
}

/* Keys with an old form share a member: each is freed by its new one. */
void config_free(struct config *c)
{
    if (!c)
        return;
    for (const struct key *k = keys; k < keys + N_KEYS; k++) {
        void *at = (char *)c + k->offset;

        if (k->newer)
            continue;
        if (k->type == KEY_SECRET && *(char **)at)
            explicit_bzero(*(char **)at, strlen(*(char **)at));
        if (k->type == KEY_LIST || k->type == KEY_MAP)
            free_texts(*(char ***)at);
        else if (k->type == KEY_TEXT || k->type == KEY_SECRET || k->type == KEY_ADDRESS ||
                 k->type == KEY_REGISTRY_TYPE)
            free(*(char **)at);
    }
    free_tokens(&c->api);
    if (c->pulsar.auth_token)
        explicit_bzero(c->pulsar.auth_token, strlen(c->pulsar.auth_token));
    free(c->pulsar.auth_token);
    free(c);
}

/* ---- reload */

static bool same_texts(char **a, char **b)
{
    size_t i;

    for (i = 0; a && b && a[i] && b[i]; i++)
        if (strcmp(a[i], b[i]) != 0)
            return false;
    return !(a && a[i]) == !(b && b[i]);
}

static size_t value_size(enum key_type type)
{
    switch (type) {
    case KEY_INT:
    case KEY_MS:
    case KEY_SECONDS:
    case KEY_BYTES:
        return sizeof(int64_t);
    case KEY_BOOL:
        return sizeof(bool);
    case KEY_LOG_LEVEL:
        return sizeof(enum log_level);
    case KEY_TLS_VERSION:
        return sizeof(int);
    case KEY_REFUSED:
    case KEY_UNUSED:
        return 0;
    default:
        return sizeof(char *);
    }
}

static bool same_value(enum key_type type, void *a, void *b)
{
    switch (type) {
    case KEY_LIST:
    case KEY_MAP:
        return same_texts(*(char ***)a, *(char ***)b);
    case KEY_TEXT:
    case KEY_SECRET:
    case KEY_ADDRESS:
    case KEY_REGISTRY_TYPE:
        return !*(char **)a == !*(char **)b && (!*(char **)a || strcmp(*(char **)a, *(char **)b) == 0);
    default:
        return memcmp(a, b, value_size(type)) == 0;
    }
}

static void swap(void *a, void *b, size_t n)
{
    char keep[sizeof(int64_t)];

    memcpy(keep, a, n);
    memcpy(a, b, n);
    memcpy(b, keep, n);
}

void config_apply(struct config *running, struct config *fresh, void (*needs_restart)(const char *key))
{
    for (const struct key *k = keys; k < keys + N_KEYS; k++) {
        void *a = (char *)running + k->offset, *b = (char *)fresh + k->offset;

        if (k->newer)
            continue;
        if (k->live)
            swap(a, b, value_size(k->type));
        else if (!same_value(k->type, a, b))
            needs_restart(k->name);
    }
    swap(&running->api.n_tokens, &fresh->api.n_tokens, sizeof(size_t)); /* of api.tokens */
}
