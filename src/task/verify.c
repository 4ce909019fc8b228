/*
 * verify.c - a task's comparison of source and target: the request, the target's rows, the result that stays with the task.
 *
 * Request: {"level", "repair", "load", "collections", "cancel"}; the result is repl/verify.h's.
 */
#include "repl/verify.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "milvus/rows.h"
#include "task/priv.h"

/* ---- requests ------------------------------------------------------------------------------------------ */

static void on_done(void *arg)
{
    struct mtask *t = arg;

    rows_close(t->verify_rows);
    t->verify_rows = NULL;
}

static void on_begun(void *arg, const struct err *err)
{
    struct mtask *t = arg;
    manager_fn fn = t->verify_fn;

    t->verify_fn = NULL;
    if (fn)
        fn(t->verify_arg, err);
}

/* Other requests, a lease that is lost: they do not wait for the registry to store the beginning. */
static void answer_when_begun(struct mtask *t)
{
    struct op *o = STAILQ_FIRST(&t->ops);

    t->verify_fn = o->fn;
    t->verify_arg = o->arg;
    o->fn = NULL;
}

static int begin(struct mtask *t, const json_t *request, struct err *err)
{
    struct repl_verify_options o = {.level = VERIFY_ROWS,
                                    .repair = json_is_true(json_object_get(request, "repair")),
                                    .load = json_is_true(json_object_get(request, "load")),
                                    .names = json_object_get(request, "collections"),
                                    .begun = on_begun,
                                    .done = on_done,
                                    .arg = t};
    const char *level = json_string_value(json_object_get(request, "level"));
    struct target_options target;

    if (level && !repl_verify_level(level, &o.level))
        return err_set(err, ERR_INVALID, ERRC_USER, "level \"%.20s\": allowed are counts, keys and rows", level);
    if (repl_task_verifying(t->run)) /* its port is in use */
        return repl_task_verify(t->run, &o, err);
    on_done(t);
    runtime_target_options(t->spec, &target);
    t->verify_rows = o.rows = rows_open(t->m->d.loop, &target, err);
    if (!o.rows)
        return err->code;
    if (repl_task_verify(t->run, &o, err)) {
        on_done(t);
        return err->code;
    }
    answer_when_begun(t);
    return 0;
}

static int cancel(struct mtask *t, struct err *err)
{
    if (!repl_task_verifying(t->run))
        return err_set(err, ERR_STATE, ERRC_USER, "no verification of the task is running");
    repl_task_verify_cancel(t->run);
    return 0;
}

void verify_request(struct mtask *t)
{
    const struct op *o = STAILQ_FIRST(&t->ops);
    json_t *request = json_loads(o->verify ? o->verify : "{}", 0, NULL);
    struct err err;
    int rc;

    if (t->state != TASK_RUNNING || !t->run)
        rc = err_set(&err, ERR_STATE, ERRC_USER, "the task is not running (state %s%s%s): resume it first, task_id: %s",
                     manager_state_name(t->state), *t->reason ? ", " : "", t->reason, t->id);
    else if (json_is_true(json_object_get(request, "cancel")))
        rc = cancel(t, &err);
    else
        rc = begin(t, request, &err);
    json_decref(request);
    manager_op_finish(t, rc ? &err : NULL, false);
}

/* ---- the result ------------------------------------------------------------------------------------------- */

static void set_result(struct mtask *t, json_t *take)
{
    free(t->verify);
    t->verify = json_dumps(take, JSON_COMPACT);
    json_decref(take);
}

void verify_keep(struct mtask *t)
{
    json_t *result = t->run ? repl_task_verify_json(t->run) : NULL;

    if (result)
        set_result(t, result);
}

static json_t *stored(const struct mtask *t)
{
    return t->verify && *t->verify ? json_loads(t->verify, 0, NULL) : NULL;
}

void verify_settle(struct mtask *t)
{
    json_t *result = stored(t);
    struct store_batch *b;

    if (!result || !repl_verify_interrupted(result)) {
        json_decref(result);
        return;
    }
    set_result(t, result);
    b = t->store->ops->begin(t->store, t->id);
    t->store->ops->put_verify(b, t->verify);
    t->store->ops->commit(b, NULL, NULL);
}

void verify_show(json_t *o, const struct mtask *t)
{
    json_t *result = t->run ? repl_task_verify_json(t->run) : NULL;
    bool elsewhere = t->m->d.registry->shared && !holding_epoch(t->m, t->key) && t->owner && *t->owner;

    if (!result && (result = stored(t)) && !elsewhere)
        (void)repl_verify_interrupted(result);
    if (result)
        json_object_set_new(o, "verify", result);
}
