/*
 * The registry as JSON, and back. Numbers that may have 64 bits are texts. A spec is as it is stored: sealed when there
 * is a key. Format 1 had no span_tt: its checkpoints have one number less.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/registry_priv.h"
#include "daemon/registry.h"
#include "loop/loop.h"
#include "registry/admin.h"
#include "registry/seal.h"

enum { FORMAT = 2, LEASE_MS = 300000, N_NUMBERS = 14 };

#define OWNER "milvus-cdc registry import"

static json_t *u64(uint64_t v)
{
    return json_sprintf("%" PRIu64, v);
}

static uint64_t get_u64(const json_t *j)
{
    const char *s = json_string_value(j);

    return s ? strtoull(s, NULL, 10) : 0;
}

static const char *get_text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

/* ---- export */

/* The order of the numbers, of both ways. */
static void numbers_of(struct repl_ckpt *c, uint64_t *ret[N_NUMBERS])
{
    uint64_t *const all[N_NUMBERS] = {
        &c->start.major, &c->start.minor, &c->start_tt,   &c->done.major, &c->done.minor, &c->done_tt, &c->sent.major,
        &c->sent.minor,  &c->sent_tt,     &c->retimed_tt, &c->op.major,   &c->op.minor,   &c->op_tt,
        &c->span_tt,
    };

    memcpy(ret, all, sizeof(all));
}

static void on_loaded(void *arg, const struct err *err, const struct repl_ckpt *ckpts, size_t n_ckpts,
                      const struct repl_collection_rec *colls, size_t n_colls)
{
    struct reg_cmd *c = arg;
    json_t *task = c->out, *list = json_array(), *records = json_array();

    for (size_t i = 0; i < n_ckpts; i++) {
        struct repl_ckpt k = ckpts[i];
        json_t *numbers = json_array();
        uint64_t *all[N_NUMBERS];

        numbers_of(&k, all);
        for (int n = 0; n < N_NUMBERS; n++)
            json_array_append_new(numbers, u64(*all[n]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:s?}", "source", k.src_channel, "target", k.dst_channel,
                                              "numbers", numbers, "target_position", k.target_pos));
    }
    for (size_t i = 0; i < n_colls; i++)
        json_array_append_new(records,
                              json_pack("{s:I, s:s}", "id", (json_int_t)colls[i].id, "record", colls[i].json));
    json_object_set_new(task, "checkpoints", list);
    json_object_set_new(task, "collections", records);
    reg_cmd_done(c, err);
}

static int export_task(struct reg_cmd *c, const struct reg_task *t, json_t *tasks)
{
    struct store *s = c->r->ops->store_open(c->r, t->id, "", 0);
    char *spec = seal_put(c->store->seal, t->spec_json);
    json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:b, s:s, s:I, s:I}", "id", t->id, "spec", spec, "target",
                          t->target_key, "state", (int)t->state, "keep", (int)t->keep, "reason", t->reason, "created_ms",
                          (json_int_t)t->created_ms, "updated_ms", (json_int_t)t->updated_ms);

    free(spec);
    json_array_append_new(tasks, o);
    c->out = o;
    s->ops->load(s, t->id, on_loaded, c);
    (void)reg_cmd_wait(c);
    c->r->ops->store_free(s);
    return c->err.code;
}

static void on_facts(void *arg, const struct err *err, const struct reg_fact *facts, size_t n)
{
    struct reg_cmd *c = arg;

    for (size_t i = 0; i < n; i++)
        json_array_append_new(c->out, json_pack("{s:s, s:s?, s:o}", "target", facts[i].target, "channel",
                                                facts[i].channel, "number", u64(facts[i].number)));
    reg_cmd_done(c, err);
}

static int sys_error(struct reg_cmd *c, const char *file, const char *what)
{
    return err_set(&c->err, ERR_IO, ERRC_USER, "%s: cannot %s: %s", file, what, strerror(errno));
}

static int write_file(struct reg_cmd *c, const char *file, const json_t *root)
{
    bool std = strcmp(file, "-") == 0;
    int fd = std ? STDOUT_FILENO : open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int rc = 0;

    if (fd < 0)
        return sys_error(c, file, "make it");
    if (!std && fchmod(fd, 0600) < 0) /* it may have been there before */
        rc = sys_error(c, file, "change its mode");
    else if (json_dumpfd(root, fd, JSON_INDENT(1)) || (!std && fsync(fd) < 0))
        rc = sys_error(c, file, "write it");
    if (!std)
        close(fd);
    return rc;
}

int reg_export(struct reg_cmd *c, const char *file)
{
    json_t *tasks = json_array(), *facts = json_array(), *root;
    struct reg_task *list = NULL;
    size_t n = 0;
    int rc = reg_cmd_list(c, &list, &n);

    for (size_t i = 0; i < n && rc == 0; i++)
        rc = export_task(c, &list[i], tasks);
    if (rc == 0) {
        c->out = facts;
        registry_facts(c->r, on_facts, c);
        rc = reg_cmd_wait(c);
    }
    root = json_pack("{s:i, s:o, s:o}", "milvus_cdc_registry", FORMAT, "tasks", tasks, "targets", facts);
    if (rc == 0)
        rc = write_file(c, file, root);
    if (rc == 0)
        fprintf(stderr, "%zu tasks written\n%s", n,
                c->store->seal ? "" : "warning: with the targets' tokens in the clear (no registry.keyFile)\n");
    json_decref(root);
    reg_cmd_free_tasks(list, n);
    return rc;
}

/* ---- import */

static void on_lease(void *arg, const struct err *err, const struct reg_lease *lease)
{
    struct reg_cmd *c = arg;

    if (!err)
        *(uint64_t *)c->out = lease->epoch;
    reg_cmd_done(c, err);
}

static int bad(struct reg_cmd *c, const char *file, const char *what)
{
    return err_set(&c->err, ERR_PROTO, ERRC_USER, "%s: is not the file of an export: %s", file, what);
}

static int put_facts(struct reg_cmd *c, const json_t *targets)
{
    size_t n = json_array_size(targets), i;
    struct reg_fact *facts = xcalloc(n + 1, sizeof(*facts));
    json_t *o;

    json_array_foreach (targets, i, o)
        facts[i] = (struct reg_fact){.target = (char *)get_text(o, "target"),
                                     .channel = (char *)json_string_value(json_object_get(o, "channel")),
                                     .number = get_u64(json_object_get(o, "number"))};
    registry_put_facts(c->r, facts, n, reg_cmd_done, c);
    free(facts);
    return reg_cmd_wait(c);
}

static void add_ckpt(struct store *s, struct store_batch *b, const json_t *o)
{
    struct repl_ckpt k = {.src_channel = (char *)get_text(o, "source"),
                          .dst_channel = (char *)get_text(o, "target"),
                          .target_pos = (char *)json_string_value(json_object_get(o, "target_position"))};
    const json_t *numbers = json_object_get(o, "numbers");
    uint64_t *all[N_NUMBERS];

    numbers_of(&k, all);
    for (size_t i = 0; i < N_NUMBERS; i++)
        *all[i] = get_u64(json_array_get(numbers, i));
    s->ops->put_ckpt(b, &k);
}

static int put_records(struct reg_cmd *c, const json_t *task, uint64_t epoch)
{
    const char *id = get_text(task, "id");
    struct store *s = c->r->ops->store_open(c->r, id, OWNER, epoch);
    struct store_batch *b = s->ops->begin(s, id);
    json_t *o;
    size_t i;

    json_array_foreach (json_object_get(task, "checkpoints"), i, o)
        add_ckpt(s, b, o);
    json_array_foreach (json_object_get(task, "collections"), i, o)
        s->ops->put_collection(b, json_integer_value(json_object_get(o, "id")), get_text(o, "record"));
    s->ops->commit(b, reg_cmd_done, c);
    (void)reg_cmd_wait(c);
    c->r->ops->store_free(s);
    return c->err.code;
}

/* Initial until its records are there too: what was cut off is no task. */
static int put_task(struct reg_cmd *c, const json_t *o, uint64_t epoch)
{
    enum task_state state = (enum task_state)json_integer_value(json_object_get(o, "state"));
    char *spec = seal_get(c->store->seal, get_text(o, "spec"), &c->err);
    struct reg_task t = {.id = (char *)get_text(o, "id"),
                         .spec_json = spec,
                         .target_key = (char *)get_text(o, "target"),
                         .state = TASK_INITIAL,
                         .keep = json_is_true(json_object_get(o, "keep")),
                         .reason = (char *)get_text(o, "reason"),
                         .created_ms = json_integer_value(json_object_get(o, "created_ms")),
                         .updated_ms = json_integer_value(json_object_get(o, "updated_ms"))};
    int rc;

    if (!spec)
        return c->err.code;
    c->r->ops->remove(c->r, t.id, OWNER, epoch, reg_cmd_done, c); /* of an import that was cut off */
    (void)reg_cmd_wait(c);
    c->r->ops->create(c->r, &t, OWNER, epoch, reg_cmd_done, c);
    rc = reg_cmd_wait(c);
    explicit_bzero(spec, strlen(spec));
    free(spec);
    if (rc == 0)
        rc = put_records(c, o, epoch);
    if (rc || state == TASK_INITIAL)
        return rc;
    c->r->ops->set_state(c->r, t.id, state, t.reason, OWNER, epoch, reg_cmd_done, c);
    return reg_cmd_wait(c);
}

static int import_task(struct reg_cmd *c, const json_t *o)
{
    const char *key = get_text(o, "target");
    uint64_t epoch = 0;
    struct err err;
    int rc;

    c->out = &epoch;
    c->r->ops->claim(c->r, key, OWNER, LEASE_MS, on_lease, c);
    if (reg_cmd_wait(c))
        return err_wrap(&c->err, "a daemon is running: stop all of them first");
    rc = put_task(c, o, epoch);
    err = c->err;
    c->r->ops->release(c->r, key, OWNER, epoch, reg_cmd_done, c);
    (void)reg_cmd_wait(c); /* it would run out by itself */
    c->err = err;
    return rc;
}

/* Initial: an import was cut off. */
static bool is_there(const struct reg_task *list, size_t n, const char *id)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].id, id) == 0)
            return list[i].state != TASK_INITIAL;
    return false;
}

static json_t *read_file(struct reg_cmd *c, const char *file)
{
    json_error_t e;
    json_t *root = strcmp(file, "-") == 0 ? json_loadf(stdin, 0, &e) : json_load_file(file, 0, &e);
    json_t *o;
    int64_t format;
    size_t i;

    if (!root) {
        err_set(&c->err, ERR_PROTO, ERRC_USER, "%s: line %d: cannot be read", file, e.line); /* e.text may quote it */
        return NULL;
    }
    format = json_integer_value(json_object_get(root, "milvus_cdc_registry"));
    if (format < 1 || format > FORMAT) {
        bad(c, file, "milvus_cdc_registry is not 1 or 2");
        json_decref(root);
        return NULL;
    }
    json_array_foreach (json_object_get(root, "tasks"), i, o) {
        int64_t state = json_integer_value(json_object_get(o, "state"));

        if (!*get_text(o, "id") || !*get_text(o, "target") || state < TASK_INITIAL || state > TASK_PAUSED) {
            bad(c, file, "a task without id or target, or with a wrong state");
            json_decref(root);
            return NULL;
        }
    }
    return root;
}

static int import_all(struct reg_cmd *c, const json_t *root, const struct reg_task *list, size_t n)
{
    size_t i, done = 0, left = 0;
    json_t *o;
    int rc = put_facts(c, json_object_get(root, "targets"));

    json_array_foreach (json_object_get(root, "tasks"), i, o) {
        if (rc)
            return rc;
        if (is_there(list, n, get_text(o, "id"))) {
            left++;
            continue;
        }
        rc = import_task(c, o);
        done += rc == 0;
    }
    if (rc == 0)
        fprintf(stderr, "%zu tasks read, %zu were there already\n", done, left);
    return rc;
}

int reg_import(struct reg_cmd *c, const char *file, bool merge)
{
    json_t *root = read_file(c, file);
    struct reg_task *list = NULL;
    size_t n = 0;
    int rc;

    if (!root)
        return c->err.code;
    rc = reg_cmd_list(c, &list, &n);
    if (rc == 0 && n && !merge)
        rc = err_set(&c->err, ERR_STATE, ERRC_USER,
                     "the registry has %zu tasks already: --merge adds those that it has not", n);
    if (rc == 0)
        rc = import_all(c, root, list, n);
    json_decref(root);
    reg_cmd_free_tasks(list, n);
    return rc;
}
