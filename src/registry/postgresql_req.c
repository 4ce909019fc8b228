/* Requests as JSON for apply() and the results of statements. */
#include "registry/postgresql_priv.h"

#include "base/err.h"
#include "registry/seal.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- requests */

/* Error texts of peers may have bytes that are no UTF-8, which the server would refuse. NULL is null. */
static json_t *text(const char *s)
{
    json_t *j = s ? json_string(s) : json_null();
    char *copy;

    if (j)
        return j;
    copy = xstrdup(s);
    for (char *p = copy; *p; p++)
        if (*p & 0x80)
            *p = '?';
    j = json_string(copy);
    free(copy);
    return j;
}

static json_t *u64(uint64_t v)
{
    return json_integer((json_int_t)v);
}

static json_t *array(const char *kind)
{
    json_t *a = json_array();

    json_array_append_new(a, json_string(kind));
    return a;
}

static void put(json_t *a, json_t *take)
{
    json_array_append_new(a, take);
}

static json_t *ckpt_json(const struct repl_ckpt *c)
{
    const uint64_t numbers[] = {
        c->start.major, c->start.minor, c->start_tt,   c->done.major, c->done.minor, c->done_tt,  c->sent.major,
        c->sent.minor,  c->sent_tt,     c->retimed_tt, c->op.major,   c->op.minor,   c->op_tt,
    };
    json_t *a = array("ckpt");

    put(a, text(c->src_channel));
    put(a, text(c->dst_channel));
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        put(a, u64(numbers[i]));
    put(a, text(c->target_pos));
    put(a, u64(c->span_tt));
    return a;
}

static json_t *change_json(const struct change *c)
{
    json_t *a;

    switch (c->kind) {
    case CHANGE_PUT_CKPT:
        return ckpt_json(&c->ckpt);
    case CHANGE_DEL_CKPT:
        a = array("del_ckpt");
        put(a, text(c->ckpt.src_channel));
        put(a, text(c->ckpt.dst_channel));
        return a;
    case CHANGE_PUT_COLL:
        a = array("coll");
        put(a, json_integer(c->coll.id));
        put(a, text(c->coll.json));
        return a;
    case CHANGE_DEL_COLL:
        a = array("del_coll");
        put(a, json_integer(c->coll.id));
        return a;
    case CHANGE_TICK:
    case CHANGE_SET_TICK:
        a = array(c->kind == CHANGE_TICK ? "tick" : "set_tick");
        put(a, text(c->target));
        put(a, text(c->ckpt.dst_channel));
        put(a, u64(c->tt));
        return a;
    case CHANGE_VERIFY:
        a = array("verify");
        put(a, text(c->target));
        return a;
    }
    abort();
}

static json_t *guarded(const char *kind, const char *what, const struct req *q)
{
    json_t *a = array(kind);

    put(a, text(what));
    put(a, text(q->task.owner));
    put(a, u64(q->task.epoch));
    return a;
}

static json_t *create_json(const struct pgreg *r, const struct req *q)
{
    const struct reg_task *t = &q->task;
    char *spec = seal_put(r->seal, t->spec_json);
    json_t *a = array("create");

    put(a, text(t->id));
    put(a, text(spec));
    put(a, text(t->target_key));
    put(a, json_integer(t->state));
    put(a, json_boolean(t->keep));
    put(a, text(t->reason));
    put(a, json_integer(t->created_ms));
    put(a, json_integer(t->updated_ms));
    put(a, text(q->nonce));
    put(a, text(t->owner));
    put(a, u64(t->epoch));
    free(spec);
    return a;
}

static json_t *commit_json(const struct req *q)
{
    json_t *a = guarded("commit", q->task.id, q), *changes = json_array();
    const struct change *c;

    STAILQ_FOREACH (c, &q->changes, next)
        put(changes, change_json(c));
    put(a, changes);
    return a;
}

static json_t *spec_json(const struct pgreg *r, const struct req *q)
{
    char *spec = seal_put(r->seal, q->task.spec_json);
    json_t *a = array("spec");

    put(a, text(q->task.id));
    put(a, text(q->task.spec_json));
    put(a, text(spec));
    free(spec);
    return a;
}

static json_t *facts_json(const struct req *q)
{
    json_t *a = array("facts"), *list = json_array();
    const struct change *c;

    STAILQ_FOREACH (c, &q->changes, next) {
        json_t *one = json_array();

        put(one, text(c->target));
        put(one, text(c->ckpt.dst_channel));
        put(one, u64(c->tt));
        put(list, one);
    }
    put(a, list);
    return a;
}

static json_t *req_json(const struct pgreg *r, const struct req *q)
{
    json_t *a;

    switch (q->kind) {
    case REQ_CREATE:
        return create_json(r, q);
    case REQ_SET_STATE:
        a = guarded("state", q->task.id, q);
        put(a, json_integer(q->task.state));
        put(a, text(q->task.reason));
        return a;
    case REQ_REMOVE:
        return guarded("remove", q->task.id, q);
    case REQ_CLAIM:
        a = array("claim");
        put(a, text(q->task.target_key));
        put(a, text(q->task.owner));
        put(a, u64(q->lease_ms));
        return a;
    case REQ_RELEASE:
        return guarded("release", q->task.target_key, q);
    case REQ_LEAVE:
        a = array("leave");
        put(a, text(q->task.owner));
        return a;
    case REQ_UNDO_CREATE:
        a = array("undo");
        put(a, text(q->task.id));
        put(a, text(q->nonce));
        return a;
    case REQ_PUT_SPEC:
        return spec_json(r, q);
    case REQ_PUT_FACTS:
        return facts_json(q);
    case REQ_COMMIT:
        return commit_json(q);
    case REQ_FACTS:
    case REQ_LIST:
    case REQ_LOAD:
    case REQ_LOAD_TICK:
        break;
    }
    abort();
}

char *pgreg_encode(struct pgreg *r, const struct req_list *reqs, size_t *ret_n)
{
    json_t *a = json_array();
    const struct req *q;
    char *out;

    TAILQ_FOREACH (q, reqs, next)
        if (req_writes(q))
            put(a, req_json(r, q));
    *ret_n = json_array_size(a);
    out = json_dumps(a, JSON_COMPACT);
    json_decref(a);
    if (!out)
        abort(); /* only without memory */
    return out;
}

/* ---- results */

static void refused(struct req *q, const json_t *o, const char *e)
{
    const char *owner = json_string_value(json_object_get(o, "owner"));
    const char *key = json_string_value(json_object_get(o, "key"));

    if (strcmp(e, "stale") == 0 && q->kind == REQ_RELEASE && q->tries > 1)
        return; /* it was given back by the try whose answer was lost */
    if (strcmp(e, "absent") == 0 && q->kind == REQ_REMOVE && q->tries > 1)
        return;
    if (strcmp(e, "stale") == 0)
        err_set(&q->err, ERR_STALE, ERRC_USER,
                "target %s belongs to \"%s\" epoch %" PRIu64 " and not to \"%s\" epoch %" PRIu64 ": nothing was stored",
                key ? key : "", owner ? owner : "", (uint64_t)json_integer_value(json_object_get(o, "epoch")),
                q->task.owner, q->task.epoch);
    else if (strcmp(e, "removed") == 0)
        err_set(&q->err, ERR_STALE, ERRC_USER, "task %s was removed from the registry", q->task.id);
    else if (strcmp(e, "absent") == 0)
        err_set(&q->err, ERR_NOT_FOUND, ERRC_USER, "task %s is not in the registry", q->task.id);
    else if (strcmp(e, "exists") == 0)
        err_set(&q->err, ERR_EXISTS, ERRC_USER, "task %s exists already", q->task.id);
    else
        err_set(&q->err, ERR_STATE, ERRC_RETRY, "target %s is held by \"%s\"", q->task.target_key, owner ? owner : "");
}

static void decode_one(struct req *q, const json_t *o)
{
    const char *e = json_string_value(json_object_get(o, "e"));

    if (e) {
        refused(q, o, e);
    } else if (q->kind == REQ_CLAIM) {
        q->number = (uint64_t)json_integer_value(json_object_get(o, "epoch"));
        q->since_ms = json_integer_value(json_object_get(o, "since"));
    }
}

static int bad_result(struct err *err)
{
    return err_set(err, ERR_PROTO, ERRC_RETRY, "registry: PostgreSQL gave a result that cannot be read");
}

int pgreg_decode(struct pgreg *r, struct req_list *reqs, const char *json, struct err *err)
{
    json_t *a = json ? json_loads(json, 0, NULL) : NULL;
    struct req *q;
    size_t i = 0;

    if (json_array_size(a) != r->n_writes) {
        json_decref(a);
        return bad_result(err);
    }
    TAILQ_FOREACH (q, reqs, next)
        if (req_writes(q))
            decode_one(q, json_array_get(a, i++));
    json_decref(a);
    return 0;
}

static int64_t number(const struct pg_result *res, size_t row, unsigned column)
{
    const char *v = pg_value(res, row, column);

    return v ? strtoll(v, NULL, 10) : 0;
}

static char *dup(const struct pg_result *res, size_t row, unsigned column)
{
    const char *v = pg_value(res, row, column);

    return xstrdup(v ? v : "");
}

int pgreg_take_tasks(struct pgreg *r, struct req *q, const struct pg_result *res)
{
    size_t n = pg_rows(res);

    q->tasks = xcalloc(n ? n : 1, sizeof(*q->tasks));
    for (size_t i = 0; i < n; i++) {
        const char *spec = pg_value(res, i, 1);
        char *open = seal_get(r->seal, spec ? spec : "", &q->err);

        q->tasks[q->n_tasks++] = (struct reg_task){
            .id = dup(res, i, 0),
            .spec_json = open,
            .target_key = dup(res, i, 2),
            .state = (enum task_state)number(res, i, 3),
            .reason = dup(res, i, 4),
            .created_ms = number(res, i, 5),
            .updated_ms = number(res, i, 6),
            .keep = number(res, i, 7) != 0,
            .owner = dup(res, i, 8),
            .epoch = (uint64_t)number(res, i, 9),
            .since_ms = number(res, i, 10),
            .verify = dup(res, i, 11),
        };
        if (!open)
            return q->err.code;
    }
    return 0;
}

void pgreg_take_facts(struct req *q, const struct pg_result *res)
{
    for (size_t i = 0; i < pg_rows(res); i++)
        req_add_fact(q, pg_value(res, i, 0), pg_value(res, i, 1), (uint64_t)number(res, i, 2));
}

static uint64_t at(const json_t *a, size_t i)
{
    return (uint64_t)json_integer_value(json_array_get(a, i));
}

static void take_ckpt(struct req *q, const json_t *a)
{
    const char *src = json_string_value(json_array_get(a, 0)), *dst = json_string_value(json_array_get(a, 1));

    q->ckpts[q->n_ckpts++] = (struct repl_ckpt){
        .src_channel = xstrdup(src ? src : ""),
        .dst_channel = xstrdup(dst ? dst : ""),
        .start = {at(a, 2), at(a, 3)},
        .start_tt = at(a, 4),
        .done = {at(a, 5), at(a, 6)},
        .done_tt = at(a, 7),
        .sent = {at(a, 8), at(a, 9)},
        .sent_tt = at(a, 10),
        .retimed_tt = at(a, 11),
        .op = {at(a, 12), at(a, 13)},
        .op_tt = at(a, 14),
        .target_pos = xstrdup(json_string_value(json_array_get(a, 15))),
        .span_tt = at(a, 16),
    };
}

int pgreg_take_records(struct req *q, const struct pg_result *res)
{
    const char *ckpts = pg_value(res, 0, 0), *colls = pg_value(res, 0, 1);
    json_t *c = ckpts ? json_loads(ckpts, 0, NULL) : json_array();
    json_t *k = colls ? json_loads(colls, 0, NULL) : json_array();
    json_t *row;
    size_t i;

    if (!c || !k) {
        json_decref(c);
        json_decref(k);
        return bad_result(&q->err);
    }
    q->ckpts = xcalloc(json_array_size(c) + 1, sizeof(*q->ckpts));
    q->colls = xcalloc(json_array_size(k) + 1, sizeof(*q->colls));
    json_array_foreach (c, i, row)
        take_ckpt(q, row);
    json_array_foreach (k, i, row)
        q->colls[q->n_colls++] = (struct repl_collection_rec){
            .id = (int64_t)at(row, 0), .json = xstrdup(json_string_value(json_array_get(row, 1)))};
    json_decref(c);
    json_decref(k);
    return 0;
}
