/*
 * remote.c - requests for tasks whose target another daemon holds: sent to it through the registry, and its for us.
 *
 * Body: {"kind", "task_id", "spec" (create: the stored form), "accept_gap", "verify" (its request)}. Answer: {} or {"code", "class", "text"}.
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "task/priv.h"
#include "task/text.h"

#define ANSWER_LIMIT_MS 28000 /* longer than a create may take there (START_LIMIT_MS), and than a lease */

static const char *const kind_names[] = {[OP_CREATE] = "create",
                                         [OP_PAUSE] = "pause",
                                         [OP_RESUME] = "resume",
                                         [OP_VERIFY] = "verify",
                                         [OP_DELETE] = "delete"};
enum { N_KINDS = sizeof(kind_names) / sizeof(*kind_names) };

/* ---- sending ------------------------------------------------------------------------------------------------------ */

static char *body_of(const struct mtask *t, const struct op *o)
{
    char *spec = o->kind == OP_CREATE ? spec_to_store_json(t->spec) : NULL;
    json_t *body = json_pack("{s:s, s:s, s:b, s:s?, s:s?}", "kind", kind_names[o->kind], "task_id", t->id, "accept_gap",
                             o->accept_gap, "spec", spec, "verify", o->verify);
    char *text = json_dumps(body, JSON_COMPACT);

    json_decref(body);
    if (spec)
        explicit_bzero(spec, strlen(spec));
    free(spec);
    return text;
}

/* err: what the other daemon answered. False: success. */
static bool parse_answer(const char *answer, struct err *err)
{
    json_t *o = json_loads(answer, 0, NULL);
    const char *text = json_string_value(json_object_get(o, "text"));

    err->code = ERR_OK;
    if (!o)
        err_set(err, ERR_PROTO, ERRC_USER, "the answer of the task's owner cannot be read");
    else if (text)
        err_set(err, (enum err_code)json_integer_value(json_object_get(o, "code")),
                (enum err_class)json_integer_value(json_object_get(o, "class")), "%s", text);
    json_decref(o);
    return err->code != ERR_OK;
}

static void on_answer(void *arg, const struct err *err, const char *answer)
{
    struct mtask *t = arg;
    struct err e;

    if (err)
        manager_on_forwarded(t, err);
    else
        manager_on_forwarded(t, parse_answer(answer, &e) ? &e : NULL);
}

void remote_forward(struct mtask *t)
{
    struct registry *r = t->m->d.registry;
    const struct op *o = STAILQ_FIRST(&t->ops);
    char *body = body_of(t, o);

    log_info("task", "request goes to the owner", KS("task", t->id), KS("request", kind_names[o->kind]),
             KS("target", t->key));
    r->ops->ask(r, t->key, body, ANSWER_LIMIT_MS, on_answer, t);
    explicit_bzero(body, strlen(body));
    free(body);
}

/* ---- receiving ------------------------------------------------------------------------------------------------------ */

struct remote_call {
    LIST_ENTRY(remote_call) entry;
    struct manager *m;
    int64_t id;
};

static void call_free(struct remote_call *c)
{
    LIST_REMOVE(c, entry);
    free(c);
}

static void on_done(void *arg, const struct err *err)
{
    struct remote_call *c = arg;
    struct registry *r = c->m->d.registry;
    json_t *answer = json_object();
    char *text;

    if (err) {
        json_object_set_new(answer, "code", json_integer(err->code));
        json_object_set_new(answer, "class", json_integer(err->cls));
        json_object_set_new(answer, "text", text_json(err->text));
    }
    text = json_dumps(answer, JSON_COMPACT);
    r->ops->answer(r, c->id, text);
    free(text);
    json_decref(answer);
    call_free(c);
}

static bool kind_of(const char *name, enum op_kind *ret)
{
    for (int i = 0; name && i < N_KINDS; i++)
        if (kind_names[i] && strcmp(kind_names[i], name) == 0) {
            *ret = (enum op_kind)i;
            return true;
        }
    return false;
}

static void execute(struct remote_call *c, const json_t *body)
{
    const char *id = json_string_value(json_object_get(body, "task_id"));
    const char *stored = json_string_value(json_object_get(body, "spec"));
    struct task_spec *spec = NULL;
    enum op_kind kind = OP_PAUSE;
    struct err err;

    err.code = ERR_OK;
    if (!id || !kind_of(json_string_value(json_object_get(body, "kind")), &kind))
        err_set(&err, ERR_PROTO, ERRC_USER, "a request of another daemon cannot be read: its version differs");
    else if (kind == OP_CREATE)
        spec = spec_from_store(id, stored ? stored : "", &err);
    if (err.code && !spec) {
        on_done(c, &err);
        return;
    }
    log_info("task", "request from another daemon", KS("task", id), KS("request", kind_names[kind]));
    if (spec)
        manager_create_here(c->m, spec, on_done, c);
    else
        manager_request_here(c->m, id, kind,
                             &(struct op_options){.accept_gap = json_is_true(json_object_get(body, "accept_gap")),
                                                  .verify = json_string_value(json_object_get(body, "verify"))},
                             on_done, c);
}

void remote_execute(struct manager *m, const struct reg_request *q)
{
    struct remote_call *c = xcalloc(1, sizeof(*c));
    json_t *body = json_loads(q->body, 0, NULL);

    c->m = m;
    c->id = q->id;
    LIST_INSERT_HEAD(&m->remote_calls, c, entry);
    execute(c, body);
    json_decref(body);
}

void remotes_free(struct manager *m)
{
    while (!LIST_EMPTY(&m->remote_calls))
        call_free(LIST_FIRST(&m->remote_calls));
}
