/*
 * main.c - start, signals, stop.
 */
#include <event2/event.h>
#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "api/server.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metric.h"
#include "cli/registry.h"
#include "cli/health.h"
#include "cli/token.h"
#include "cli/verify.h"
#include "daemon/config.h"
#include "daemon/notify.h"
#include "daemon/queue.h"
#include "daemon/registry.h"
#include "daemon/reload.h"
#include "loop/loop.h"
#include "milvus/catalog.h"
#include "milvus/etcd.h"
#include "milvus/rows.h"
#include "milvus/target.h"
#include "registry/registry.h"
#include "task/health.h"
#include "task/manager.h"

#ifndef MILVUS_CDC_VERSION
#define MILVUS_CDC_VERSION "unknown"
#endif

/* A start needs more memory than what follows (records, metadata), and malloc keeps it. */
#define TRIM_FIRST_MS 5000
#define TRIM_MS 60000
#define STATUS_MS 10000
#define STATUS_LAG_MS 30000 /* as the probe's default */

struct daemon {
    struct loop *loop;
    struct config *config;
    struct daemon_registry store;
    struct registry *registry; /* of store */
    struct etcd_client *etcd;
    struct catalog *catalog;
    struct queue_search *search;
    struct queue *queue;
    struct rows_port *rows; /* NULL: the source's API is not told */
    struct manager *manager;
    struct api_server *api;
    struct event *sigterm, *sigint, *sighup;
    struct timer trim, status;
    struct notify *notify;
    const char *config_path;
    char id[128];
    int exit_code;
    bool stopping, ready;
};

static const char usage[] =
    "usage: milvus-cdc [--config FILE] [--check-config] [--version] [--help]\n"
    "       milvus-cdc registry ...         the registry of tasks: migrate, export, import, genkey; registry --help says more\n"
    "       milvus-cdc health [OPTION]...   asks a running daemon, for cron and monitors; health --help says more\n"
    "       milvus-cdc verify [OPTION]...   has a daemon compare source and target of a task; verify --help says more\n"
    "       milvus-cdc token [NAME]         a new token for the control endpoint\n"
    "\n"
    "Captures the changes of one Milvus and applies them to other Milvus servers in real time.\n"
    "Tasks are made and controlled with POST /cdc (default address 127.0.0.1:8444).\n"
    "\n"
    "  --config FILE    configuration, default ./configs/cdc.yaml, else /etc/milvus-cdc/cdc.yaml\n"
    "  --check-config   reads the configuration, says what is wrong with it, and exits\n"
    "  --version        prints the version\n"
    "  --help           prints this text\n"
    "\n"
    "Source:  Milvus 2.3 to 2.5 on Kafka, Pulsar, NATS (natsmq), or RocksMQ (a default standalone server,\n"
    "         on this machine's file system); metadata from its etcd.\n"
    "Target:  a standby Milvus (common.ttMsgEnabled: false), or any that takes writes (mode portable).\n"
    "Signals: SIGTERM and SIGINT stop reading, let the writes in flight finish, store checkpoints; exit code 0.\n"
    "         SIGHUP reads the configuration again: logLevel, api.*, maxTaskNum, maxNameLength take effect at once.\n"
    "Logs:    standard error, logfmt.\n"
    "HTTP:    POST /cdc, GET /health, GET /healthz, GET /readyz, GET /cdc/metrics\n";

/* ---- stop ---------------------------------------------------------------------------------------- */

static void on_stopped(void *arg)
{
    struct daemon *d = arg;

    loop_stop(d->loop);
}

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
    struct daemon *d = arg;

    (void)what;
    if (d->stopping)
        return;
    d->stopping = true;
    notify_stopping(d->notify);
    log_info("daemon", "stopping", KS("signal", strsignal((int)sig)));
    api_stop(d->api);
    d->api = NULL;
    if (d->manager)
        manager_stop(d->manager, on_stopped, d);
    else
        loop_stop(d->loop);
}

static void on_sighup(evutil_socket_t sig, short what, void *arg)
{
    struct daemon *d = arg;

    (void)sig;
    (void)what;
    if (d->stopping)
        return;
    notify_reloading(d->notify);
    reload(d->config_path, d->config, d->api);
    if (d->ready)
        notify_ready(d->notify);
}

static void release(struct daemon *d)
{
    timer_release(&d->trim);
    timer_release(&d->status);
    notify_free(d->notify);
    api_stop(d->api);
    manager_free(d->manager);
    rows_close(d->rows);
    queue_search_cancel(d->search);
    queue_close(d->queue);
    if (d->catalog)
        catalog_close(d->catalog);
    if (d->etcd)
        etcd_close(d->etcd);
    daemon_registry_close(&d->store);
    if (d->sigterm)
        event_free(d->sigterm);
    if (d->sigint)
        event_free(d->sigint);
    if (d->sighup)
        event_free(d->sighup);
    loop_free(d->loop);
    config_free(d->config);
    metric_clear();
}

/* ---- start --------------------------------------------------------------------------------------- */

static int open_etcd(struct daemon *d, struct err *err)
{
    const struct config_etcd *e = &d->config->source_etcd;
    struct etcd_options o = {.endpoints = (const char *const *)e->endpoints,
                             .username = e->enable_auth ? e->username : NULL,
                             .password = e->enable_auth ? e->password : NULL,
                             .tls = e->enable_tls,
                             .ca_path = e->tls_ca_cert_path,
                             .cert_path = e->tls_cert_path,
                             .key_path = e->tls_key_path,
                             .tls_min_version = e->tls_min_version};

    d->etcd = etcd_open(d->loop, &o, err);
    if (!d->etcd)
        return err_wrap(err, "sourceConfig.etcd");
    d->catalog = catalog_open(d->loop, d->etcd, e->root_path, e->meta_sub_path);
    return 0;
}

/* The probe's line without its numbers. */
static void on_status(void *arg)
{
    struct daemon *d = arg;
    enum health h;
    json_t *facts = manager_health(d->manager, NULL, STATUS_LAG_MS, &h);
    char *text = xstrdup(json_string_value(json_object_get(facts, "text"))), *end = strstr(text, " | ");

    if (end)
        *end = '\0';
    notify_status(d->notify, text);
    free(text);
    json_decref(facts);
    timer_set(&d->status, STATUS_MS);
}

static void on_ready(void *arg, const struct err *err)
{
    struct daemon *d = arg;

    if (!err) {
        d->ready = true;
        notify_ready(d->notify);
        on_status(d);
        return;
    }
    log_error("daemon", "the tasks cannot be read", KS("error", err->text));
    d->exit_code = 1;
    loop_stop(d->loop);
}

/* The source's public API, where it is told. */
static int open_rows(struct daemon *d, struct err *err)
{
    const struct config_milvus *c = &d->config->source_milvus;
    struct target_options o = {.uri = c->uri,
                               .token = c->token,
                               .ca_path = c->tls_ca_cert_path,
                               .cert_path = c->tls_cert_path,
                               .key_path = c->tls_key_path};

    if (!c->uri)
        return 0;
    d->rows = rows_open(d->loop, &o, err);
    return d->rows ? 0 : err_wrap(err, "sourceConfig.milvus");
}

/* Everything that needs the queue. */
static int start_tasks(struct daemon *d, struct err *err)
{
    d->queue = queue_open(d->loop, d->config, err);
    if (!d->queue)
        return err->code;
    if (open_rows(d, err))
        return err->code;
    d->manager = manager_new(&(struct manager_deps){.loop = d->loop,
                                                    .config = d->config,
                                                    .registry = d->registry,
                                                    .catalog = d->catalog,
                                                    .wal = queue_port(d->queue),
                                                    .rows = d->rows,
                                                    .daemon_id = d->id,
                                                    .lease_ms = d->config->lease_ms});
    d->api = api_start(d->loop, d->config, d->manager, err);
    if (!d->api)
        return err->code;
    manager_start(d->manager, on_ready, d);
    log_info("daemon", "started", KS("version", MILVUS_CDC_VERSION), KS("address", d->config->address),
             KI("port", api_port(d->api)), KI("pid", getpid()));
    return 0;
}

static void fail(struct daemon *d, const struct err *err)
{
    log_error("daemon", "cannot start", KS("error", err->text));
    d->exit_code = 1;
    loop_stop(d->loop);
}

static void on_queue_found(void *arg, const struct err *err)
{
    struct daemon *d = arg;
    struct err e;

    d->search = NULL;
    if (err)
        fail(d, err);
    else if (start_tasks(d, &e))
        fail(d, &e);
}

/* A name for people, and unlike that of any other process: one that took over a lease must never be taken for us. */
static void make_id(struct daemon *d)
{
    char host[64] = "";
    uint32_t random = 0;

    (void)gethostname(host, sizeof(host) - 1); /* empty is fine */
    if (getrandom(&random, sizeof(random), 0) != (ssize_t)sizeof(random))
        abort();
    snprintf(d->id, sizeof(d->id), "%s/%s#%08" PRIx32, host, d->config->address, random);
}

static int start(struct daemon *d, struct err *err)
{

    make_id(d);
    if (daemon_registry_open(&d->store, d->loop, d->config, err))
        return err->code;
    d->registry = d->store.registry;
    if (!d->store.seal)
        log_warn("daemon", "secrets of tasks are not sealed: set registry.keyFile (milvus-cdc registry genkey FILE)");
    if (open_etcd(d, err))
        return err->code;
    if (d->config->queue != QUEUE_DETECT)
        return start_tasks(d, err);
    d->search = queue_search_start(d->loop, d->config, on_queue_found, d);
    return 0;
}

static void on_trim(void *arg)
{
    struct daemon *d = arg;

    (void)malloc_trim(0); /* whether there was anything to give back is of no interest */
    timer_set(&d->trim, TRIM_MS);
}

static void catch_signals(struct daemon *d)
{
    (void)signal(SIGPIPE, SIG_IGN);
    d->sigterm = evsignal_new(loop_base(d->loop), SIGTERM, on_signal, d);
    d->sigint = evsignal_new(loop_base(d->loop), SIGINT, on_signal, d);
    d->sighup = evsignal_new(loop_base(d->loop), SIGHUP, on_sighup, d);
    event_add(d->sighup, NULL);
    event_add(d->sigterm, NULL);
    event_add(d->sigint, NULL);
}

static int run(struct config *config, const char *path)
{
    struct daemon d = {.config = config, .config_path = path};
    struct err err;

    log_set_level(config->log_level);
    d.loop = loop_new();
    d.notify = notify_new(d.loop);
    timer_init(&d.status, d.loop, LOOP_PRIO_LOW, on_status, &d);
    catch_signals(&d);
    if (start(&d, &err)) {
        fail(&d, &err);
    } else {
        timer_init(&d.trim, d.loop, LOOP_PRIO_LOW, on_trim, &d);
        timer_set(&d.trim, TRIM_FIRST_MS);
        loop_run(d.loop);
        log_info("daemon", "stopped");
    }
    release(&d);
    return d.exit_code;
}

static const char *default_config(void)
{
    return access("configs/cdc.yaml", R_OK) == 0 ? "configs/cdc.yaml" : "/etc/milvus-cdc/cdc.yaml";
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {{"health", cli_health}, {"token", cli_token}, {"registry", cli_registry}, {"verify", cli_verify}};

int main(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"check-config", no_argument, NULL, 'k'},
                                            {"version", no_argument, NULL, 'v'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *path = NULL;
    bool check = false;
    struct config *config;
    struct err err;
    int c;

    for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(*commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    while ((c = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
        switch (c) {
        case 'c':
            path = optarg;
            break;
        case 'k':
            check = true;
            break;
        case 'v':
            puts("milvus-cdc " MILVUS_CDC_VERSION);
            return 0;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "milvus-cdc: unexpected argument '%s'\n%s", argv[optind], usage);
        return 2;
    }
    path = path ? path : default_config();
    config = config_load(path, &err);
    if (!config) {
        fprintf(stderr, "milvus-cdc: %s\n", err.text);
        return 1;
    }
    if (check) {
        struct ssl_ctx_st *tls;

        if (api_tls_load(config, &tls, &err)) {
            fprintf(stderr, "milvus-cdc: %s: %s\n", path, err.text);
            config_free(config);
            return 1;
        }
        api_tls_free(tls);
        config_free(config);
        printf("the configuration is valid: %s\n", path);
        return 0;
    }
    return run(config, path);
}
