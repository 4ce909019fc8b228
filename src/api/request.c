/* request.c - the request types of POST /cdc (control-api.md 2). */
#include "api/api_priv.h"

#include "api/http_priv.h"
#include "base/err.h"
#include "base/mem.h"
#include "daemon/config.h"
#include "task/manager.h"
#include "task/spec.h"
#include "task/spec_fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ECHO = 64 }; /* bytes of an unknown request type that are shown */
enum { MATCHES_OF_GET = 100, MATCHES_OF_LIST = 10 }; /* collections that are named; all are counted */

/* 400 is the client's fault, 503 the registry is away, 500 all else (manager.h). */
static int api_code(const struct err *err)
{
    switch (err->code) {
    case ERR_INVALID:
    case ERR_NOT_FOUND:
    case ERR_EXISTS:
    case ERR_STATE:
    case ERR_UNSUPPORTED:
        return 400;
    default:
        return 500;
    }
}

static void fail_with(struct call *c, const struct err *err)
{
    int code = api_code(err);

    call_fail(c, code == 500 && manager_registry_trouble(c->s->m) ? 503 : code, err->text);
}

static void decode_failed(struct call *c, const struct err *err)
{
    char *message = xasprintf("fail to decode the %s request, error: %s", c->type, err->text);

    call_refuse(c, 500, message, NULL);
    free(message);
}

static void on_done(void *arg, const struct err *err)
{
    struct call *c = arg;

    if (!err || (c->ignore_not_found && err->code == ERR_NOT_FOUND))
        call_ok(c, NULL);
    else
        fail_with(c, err);
}

/* ---- create */

static void on_created(void *arg, const struct err *err)
{
    struct call *c = arg;

    json_t *task;

    if (err) {
        fail_with(c, err);
        return;
    }
    task = manager_task_json(c->s->m, c->task_id); /* NULL: deleted in the same moment */
    call_ok(c, json_pack("{s:s, s:O*, s:O*}", "task_id", c->task_id, "mode", json_object_get(task, "mode"), "mode_reason",
                         json_object_get(task, "mode_reason")));
    json_decref(task);
}

static void do_create(struct call *c, const json_t *data)
{
    const struct config *config = c->s->config;
    struct spec_limits limits = {.max_name_length = (size_t)config->max_name_length,
                                 .replicate_chan = config->replicate_chan,
                                 .source_readable = config->source_milvus.uri != NULL};
    struct err err = {0};
    json_t *decoded = spec_decode(data, &err);
    struct task_spec *spec;

    if (!decoded) {
        decode_failed(c, &err);
        return;
    }
    spec = spec_from_request(decoded, &limits, &err);
    json_decref(decoded);
    if (!spec) {
        fail_with(c, &err);
        return;
    }
    c->task_id = xstrdup(spec->task_id);
    manager_create(c->s->m, spec, on_created, c);
}

/* ---- types with a task_id */

static const struct field id_fields[] = {
    {"task_id", FIELD_STRING, NULL},
    {"ignore_not_found", FIELD_BOOL, NULL}, /* delete */
    {0},
};
static const struct field resume_fields[] = {
    {"task_id", FIELD_STRING, NULL},
    {"accept_gap", FIELD_BOOL, NULL}, /* ours: what the queue has no longer is given up */
    {0},
};
static const struct field id_only_fields[] = {{"task_id", FIELD_STRING, NULL}, {0}};

/* Fills c->task_id, "" when there is none. False: answered. */
static bool take_id(struct call *c, const json_t *data, const struct field *fields)
{
    struct err err = {0};
    json_t *o = fields_decode(data, fields, &err);

    if (!o) {
        decode_failed(c, &err);
        return false;
    }
    c->task_id = xstrdup(field_str(o, "task_id"));
    c->ignore_not_found = field_bool(o, "ignore_not_found");
    c->accept_gap = field_bool(o, "accept_gap");
    json_decref(o);
    return true;
}

static bool need_id(struct call *c, const json_t *data, const struct field *fields)
{
    if (!take_id(c, data, fields))
        return false;
    if (!*c->task_id) {
        call_fail(c, 400, "the task_id is empty");
        return false;
    }
    return true;
}

static void do_delete(struct call *c, const json_t *data)
{
    if (!take_id(c, data, id_fields))
        return;
    if (!*c->task_id && !c->ignore_not_found)
        call_fail(c, 400, "the task_id is empty");
    else if (!*c->task_id)
        call_ok(c, NULL);
    else
        manager_delete(c->s->m, c->task_id, on_done, c);
}

static void do_pause(struct call *c, const json_t *data)
{
    if (need_id(c, data, id_only_fields))
        manager_pause(c->s->m, c->task_id, on_done, c);
}

static void do_resume(struct call *c, const json_t *data)
{
    if (!need_id(c, data, resume_fields))
        return;
    if (c->accept_gap)
        manager_resume_over_gap(c->s->m, c->task_id, on_done, c);
    else
        manager_resume(c->s->m, c->task_id, on_done, c);
}

static void on_verify_begun(void *arg, const struct err *err)
{
    struct call *c = arg;

    if (err)
        fail_with(c, err);
    else
        call_ok(c, json_pack("{s:s, s:s}", "task_id", c->task_id, "state", c->cancel ? "cancelling" : "running"));
}

static void do_verify(struct call *c, const json_t *data)
{
    static const struct field fields[] = {
        {"task_id", FIELD_STRING, NULL},       {"level", FIELD_STRING, NULL}, {"repair", FIELD_BOOL, NULL},
        {"load", FIELD_BOOL, NULL},            {"cancel", FIELD_BOOL, NULL},
        {"collections", FIELD_STRINGS, NULL}, {0},
    };
    struct err err = {0};
    json_t *o;
    char *text;

    if (!need_id(c, data, id_only_fields))
        return;
    o = fields_decode(data, fields, &err);
    if (!o) {
        decode_failed(c, &err);
        return;
    }
    c->cancel = field_bool(o, "cancel");
    text = json_dumps(o, JSON_COMPACT);
    manager_verify(c->s->m, c->task_id, text, on_verify_begun, c);
    free(text);
    json_decref(o);
}

static void on_get(void *arg, const struct err *err, json_t *task)
{
    struct call *c = arg;
    char *text;

    if (err) {
        fail_with(c, err);
        return;
    }
    if (task) {
        manager_add_matches(c->s->m, c->task_id, MATCHES_OF_GET, task);
        /* "Task" is what the documents of Milvus-CDC say, "task" what it sends. */
        call_ok(c, json_pack("{s:O, s:O}", "task", task, "Task", task));
        return;
    }
    text = xasprintf("not found: [%s]", c->task_id);
    call_fail(c, 400, text);
    free(text);
}

static void do_get(struct call *c, const json_t *data)
{
    if (need_id(c, data, id_only_fields))
        manager_get(c->s->m, c->task_id, on_get, c);
}

static json_t *no_positions(void)
{
    return json_pack("{s:n, s:n, s:n}", "positions", "op_positions", "target_positions");
}

static void on_positions(void *arg, const struct err *err, json_t *data)
{
    struct call *c = arg;

    if (err && err->code != ERR_NOT_FOUND)
        fail_with(c, err);
    else
        call_ok(c, !err && data ? json_incref(data) : no_positions());
}

static void do_position(struct call *c, const json_t *data)
{
    if (take_id(c, data, id_only_fields))
        manager_positions(c->s->m, c->task_id, on_positions, c);
}

/* ---- the others */

static void on_list_refreshed(void *arg, const struct err *err)
{
    struct call *c = arg;
    json_t *tasks;
    const char *const *ids;
    char **copy;
    size_t n;

    if (err) {
        fail_with(c, err);
        return;
    }
    tasks = json_array();
    ids = manager_task_ids(c->s->m, &n);
    copy = xcalloc(n + 1, sizeof(*copy));
    for (size_t i = 0; i < n; i++)
        copy[i] = xstrdup(ids[i]); /* the next call into the manager ends the loan */
    for (size_t i = 0; i < n; i++) {
        json_t *task = manager_task_json(c->s->m, copy[i]);

        if (task) {
            manager_add_matches(c->s->m, copy[i], MATCHES_OF_LIST, task);
            json_object_del(json_object_get(task, "verify"), "collections"); /* get has them */
            json_array_append_new(tasks, task);
        }
        free(copy[i]);
    }
    free(copy);
    call_ok(c, json_pack("{s:o}", "tasks", tasks));
}

static void do_list(struct call *c, const json_t *data)
{
    (void)data; /* list has no fields */
    manager_refresh(c->s->m, NULL, on_list_refreshed, c);
}

static void do_maintenance(struct call *c, const json_t *data)
{
    static const struct field fields[] = {
        {"operation", FIELD_STRING, NULL},
        {"params", FIELD_OBJECT, NULL},
        {0},
    };
    struct err err = {0};
    json_t *o = fields_decode(data, fields, &err);
    json_t *state;

    if (!o) {
        decode_failed(c, &err);
        return;
    }
    state = maintenance_run(field_str(o, "operation"), json_object_get(o, "params"));
    json_decref(o);
    call_ok(c, json_pack("{s:o}", "State", state));
}

static const struct {
    const char *type;
    void (*run)(struct call *c, const json_t *data);
} types[] = {
    {"create", do_create}, {"delete", do_delete},     {"pause", do_pause},
    {"resume", do_resume}, {"get", do_get},           {"position", do_position},
    {"list", do_list},     {"maintenance", do_maintenance}, {"verify", do_verify},
};
enum { N_TYPES = sizeof(types) / sizeof(types[0]) };

/* ---- the envelope */

static void unknown_type(struct call *c, const char *type)
{
    char names[200] = "";
    char *message;

    for (size_t i = 0; i < N_TYPES; i++) {
        strcat(names, i ? ", " : "");
        strcat(names, types[i].type);
    }
    if (*type)
        message = xasprintf("unknown request_type: %.*s; known are %s", MAX_ECHO, type, names);
    else
        message = xasprintf("the request_type is missing; known are %s", names);
    call_refuse(c, 400, message, "total");
    free(message);
}

static void dispatch(struct call *c, const json_t *envelope)
{
    const char *type = field_str(envelope, "request_type");

    for (size_t i = 0; i < N_TYPES; i++) {
        if (strcmp(types[i].type, type) != 0)
            continue;
        c->type = types[i].type;
        call_count(c, "total");
        types[i].run(c, json_object_get(envelope, "request_data"));
        return;
    }
    unknown_type(c, type);
}

/* The parser quotes what it stumbled over; that may be a password. */
static void not_json(struct call *c, size_t len, const json_error_t *why)
{
    char *near = strstr((char *)(uintptr_t)why->text, " near '");
    char *message;

    if (len == 0)
        message = xstrdup("the body is empty; a JSON object is needed");
    else
        message = xasprintf("the body is not valid JSON: line %d, column %d: %.*s", why->line,
                            why->column, near ? (int)(near - why->text) : 100, why->text);
    call_refuse(c, 500, message, "unmarshal_error");
    free(message);
}

static void not_envelope(struct call *c, const struct err *err)
{
    char *message = xasprintf("the request cannot be decoded: %s", err->text);

    call_refuse(c, 500, message, "unmarshal_error");
    free(message);
}

void api_request(struct api_server *s, struct http_request *r)
{
    static const struct field fields[] = {
        {"request_type", FIELD_STRING, NULL},
        {"request_data", FIELD_OBJECT, NULL},
        {0},
    };
    struct call *c = call_new(s, r);
    struct err err = {0};
    json_error_t why;
    json_t *root, *envelope;
    size_t len;
    const char *body = http_body(r, &len);

    if (!body) {
        call_refuse(c, 400, "the body is larger than 1 MiB", "read_error");
        return;
    }
    root = json_loadb(body, len, 0, &why);
    if (!root) {
        not_json(c, len, &why);
        return;
    }
    envelope = json_is_object(root) ? fields_decode(root, fields, &err) : NULL;
    if (!json_is_object(root))
        err_set(&err, ERR_PROTO, ERRC_USER, "the body must be a JSON object");
    json_decref(root);
    if (!envelope) {
        not_envelope(c, &err);
        return;
    }
    dispatch(c, envelope);
    json_decref(envelope);
}

void api_wrong_method(struct api_server *s, struct http_request *r)
{
    call_refuse(call_new(s, r), 405, "only support the POST method", "invalid_method");
}
