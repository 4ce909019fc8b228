#include "cli/registry.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "cli/registry_priv.h"
#include "daemon/config.h"
#include "daemon/registry.h"
#include "loop/loop.h"
#include "registry/admin.h"
#include "registry/registry.h"
#include "registry/seal.h"

static const char usage[] =
    "usage: milvus-cdc registry migrate [--config FILE]\n"
    "           makes or updates the registry's schema, and seals secrets when registry.keyFile is given\n"
    "       milvus-cdc registry export [--config FILE] FILE\n"
    "           writes tasks and checkpoints as JSON (mode 0600)\n"
    "       milvus-cdc registry import [--config FILE] [--merge] FILE\n"
    "           reads them into an empty registry; --merge: into any, tasks that are there already stay as they are\n"
    "       milvus-cdc registry genkey FILE\n"
    "           makes a key for registry.keyFile\n"
    "\n"
    "The registry is the one of the configuration (default ./configs/cdc.yaml, else /etc/milvus-cdc/cdc.yaml); FILE\n"
    "may be -. Stop the daemons before export and until import has ended. A move from SQLite to PostgreSQL: export\n"
    "with the old configuration, import with the new one.\n";

/* ---- calls, one at a time */

void reg_cmd_done(void *arg, const struct err *err)
{
    struct reg_cmd *c = arg;

    c->called = true;
    c->err = err ? *err : (struct err){0};
}

int reg_cmd_wait(struct reg_cmd *c)
{
    while (!c->called)
        loop_once(c->loop, true);
    c->called = false;
    return c->err.code;
}

struct task_list {
    struct reg_task *tasks;
    size_t n;
};

static void on_tasks(void *arg, const struct err *err, const struct reg_task *tasks, size_t n)
{
    struct reg_cmd *c = arg;
    struct task_list *l = c->out;

    l->tasks = xcalloc(n + 1, sizeof(*l->tasks));
    l->n = n;
    for (size_t i = 0; i < n; i++) {
        l->tasks[i] = tasks[i];
        l->tasks[i].id = xstrdup(tasks[i].id);
        l->tasks[i].spec_json = xstrdup(tasks[i].spec_json);
        l->tasks[i].target_key = xstrdup(tasks[i].target_key);
        l->tasks[i].reason = xstrdup(tasks[i].reason);
        l->tasks[i].owner = xstrdup(tasks[i].owner);
    }
    reg_cmd_done(c, err);
}

void reg_cmd_free_tasks(struct reg_task *tasks, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(tasks[i].id);
        explicit_bzero(tasks[i].spec_json, strlen(tasks[i].spec_json));
        free(tasks[i].spec_json);
        free(tasks[i].target_key);
        free(tasks[i].reason);
        free(tasks[i].owner);
    }
    free(tasks);
}

int reg_cmd_list(struct reg_cmd *c, struct reg_task **ret, size_t *ret_n)
{
    struct task_list l = {0};

    c->out = &l;
    c->r->ops->list(c->r, NULL, on_tasks, c);
    if (reg_cmd_wait(c)) {
        reg_cmd_free_tasks(l.tasks, l.n);
        return c->err.code;
    }
    *ret = l.tasks;
    *ret_n = l.n;
    return 0;
}

/* ---- the commands */

/* Opening has made the schema; a list proves it. */
static int migrate(struct reg_cmd *c)
{
    struct reg_task *tasks;
    size_t n;

    if (reg_cmd_list(c, &tasks, &n))
        return c->err.code;
    for (size_t i = 0; i < n && c->store->seal; i++) {
        registry_seal_spec(c->r, tasks[i].id, tasks[i].spec_json, reg_cmd_done, c);
        if (reg_cmd_wait(c))
            break;
    }
    if (!c->err.code)
        fprintf(stderr, "the registry is up to date: %zu tasks, secrets %s\n", n,
                c->store->seal ? "sealed" : "not sealed (no registry.keyFile)");
    reg_cmd_free_tasks(tasks, n);
    return c->err.code;
}

static int genkey(const char *file)
{
    struct err err;

    if (seal_genkey(file, &err) == 0) {
        fprintf(stderr, "%s: a new key. Keep a copy: what is sealed with it cannot be read without it\n", file);
        return 0;
    }
    fprintf(stderr, "milvus-cdc: %s\n", err.text);
    return 1;
}

static int with_registry(const struct config *config, const char *verb, const char *file, bool merge)
{
    struct daemon_registry store = {0};
    struct reg_cmd c = {.loop = loop_new(), .store = &store};
    int rc = daemon_registry_open(&store, c.loop, config, &c.err);

    c.r = store.registry;
    if (rc == 0)
        rc = strcmp(verb, "migrate") == 0  ? migrate(&c)
             : strcmp(verb, "export") == 0 ? reg_export(&c, file)
                                           : reg_import(&c, file, merge);
    if (rc)
        fprintf(stderr, "milvus-cdc: %s\n", c.err.text);
    daemon_registry_close(&store);
    loop_free(c.loop);
    return rc ? 1 : 0;
}

static int wrong_arguments(const char *what)
{
    fprintf(stderr, "milvus-cdc registry: %s\n%s", what, usage);
    return 2;
}

static int run(const char *verb, const char *path, const char *file, bool merge)
{
    struct config *config;
    struct err err;
    int rc;

    if (!path)
        path = access("configs/cdc.yaml", R_OK) == 0 ? "configs/cdc.yaml" : "/etc/milvus-cdc/cdc.yaml";
    log_set_level(LOG_ERROR);
    config = config_load(path, &err);
    if (!config) {
        fprintf(stderr, "milvus-cdc: %s\n", err.text);
        return 1;
    }
    rc = with_registry(config, verb, file, merge);
    config_free(config);
    return rc;
}

int cli_registry(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"merge", no_argument, NULL, 'm'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *path = NULL, *verb, *file;
    bool merge = false;
    int c;

    while ((c = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
        if (c == 'h')
            return fputs(usage, stdout) < 0;
        if (c == 'c')
            path = optarg;
        else if (c == 'm')
            merge = true;
        else
            return wrong_arguments("unknown option");
    }
    verb = optind < argc ? argv[optind] : "";
    file = optind + 1 < argc ? argv[optind + 1] : NULL;
    if (optind + 2 < argc)
        return wrong_arguments("too many arguments");
    if (strcmp(verb, "migrate") == 0)
        return file ? wrong_arguments("migrate takes no file") : run(verb, path, NULL, false);
    if (strcmp(verb, "export") != 0 && strcmp(verb, "import") != 0 && strcmp(verb, "genkey") != 0)
        return wrong_arguments("migrate, export, import or genkey");
    if (!file)
        return wrong_arguments("a file is missing");
    if (strcmp(verb, "genkey") == 0)
        return genkey(file);
    return run(verb, path, file, merge);
}
