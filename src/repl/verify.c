/*
 * verify.c - the comparison of a task's collections with the target's, one after the other, by id; its result.
 */
#include "repl/verify_priv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"

#define TELL_MS 10000
#define MAX_LISTED 1000 /* equal collections in a result */

static const char RUNNING[] = "running", EQUAL[] = "equal", DIFFERENT[] = "different", REPAIRED[] = "repaired",
                  FAILED[] = "failed";
static const char *const level_names[] = {[VERIFY_COUNTS] = "counts", [VERIFY_KEYS] = "keys", [VERIFY_ROWS] = "rows"};

bool repl_verify_level(const char *name, enum verify_level *ret)
{
    for (enum verify_level l = VERIFY_COUNTS; l <= VERIFY_ROWS; l++)
        if (strcmp(name, level_names[l]) == 0) {
            *ret = l;
            return true;
        }
    return false;
}

/* ---- the result ------------------------------------------------------------------------------------------- */

/* The least of the collections' own. */
static json_int_t time_tick(const json_t *collections)
{
    json_int_t least = 0, tt;
    const json_t *o;
    size_t i;

    json_array_foreach(collections, i, o) {
        tt = json_integer_value(json_object_get(o, "time_tick"));
        if (tt && (!least || tt < least))
            least = tt;
    }
    return least;
}

static json_t *verify_json(const struct verify *v)
{
    json_t *colls = json_copy(v->done), *o;

    if (v->check && !v->check->over)
        json_array_append_new(colls, check_json(v->check, RUNNING, NULL));
    o = json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:o}", "state", v->state, "level", level_names[v->o.level], "repair",
                  v->o.repair, "started_ms", (json_int_t)v->started_ms, "rows_compared", (json_int_t)v->rows, "time_tick",
                  time_tick(colls), "collections", colls);
    if (v->finished_ms)
        json_object_set_new(o, "finished_ms", json_integer((json_int_t)v->finished_ms));
    if (v->reason)
        json_object_set_new(o, "reason", json_string(v->reason));
    if (v->unlisted)
        json_object_set_new(o, "equal_collections_not_listed", json_integer((json_int_t)v->unlisted));
    return o;
}

json_t *repl_task_verify_json(const struct repl_task *t)
{
    return t->verify ? verify_json(t->verify) : NULL;
}

bool repl_verify_interrupted(json_t *result)
{
    const char *state = json_string_value(json_object_get(result, "state"));

    if (!state || strcmp(state, RUNNING) != 0)
        return false;
    json_object_set_new(result, "state", json_string(FAILED));
    json_object_set_new(result, "reason", json_string("interrupted: the daemon or the task was stopped. Ask again"));
    return true;
}

static void store_result(struct verify *v, store_done_fn done)
{
    struct store *s = v->task->o.store;
    struct store_batch *b = s->ops->begin(s, v->task->o.id);
    json_t *o = verify_json(v);
    char *text = json_dumps(o, JSON_COMPACT);

    s->ops->put_verify(b, text);
    s->ops->commit(b, done, v);
    free(text);
    json_decref(o);
}

static void set_gauges(const struct verify *v)
{
    metric_get(METRIC_GAUGE, "milvus_cdc_verify_rows", "rows of the source compared by the task's last verification",
               METRIC_LABELS({"task_id", v->task->o.id}))
        ->value = (double)v->rows;
    metric_get(METRIC_GAUGE, "milvus_cdc_verify_differences", "rows that it found missing, extra or different",
               METRIC_LABELS({"task_id", v->task->o.id}))
        ->value = (double)v->differences;
}

void verify_progress(struct verify *v)
{
    uint64_t now = clock_mono_ms();

    set_gauges(v);
    if (now - v->told_ms < TELL_MS)
        return;
    v->told_ms = now;
    log_info("repl", "comparing source and target", KS("task", v->task->o.id), KS("db", v->check->coll->db),
             KS("collection", v->check->coll->name), KU("rows", v->rows), KU("collections_done", json_array_size(v->done)));
    store_result(v, NULL);
}

/* ---- the collections ------------------------------------------------------------------------------------------ */

static bool is_named(const json_t *e, const struct coll *c)
{
    const char *name = json_string_value(e), *dot = strchr(name, '.');

    if (dot && strncmp(name, c->db, (size_t)(dot - name)) == 0 && c->db[dot - name] == '\0' && strcmp(dot + 1, c->name) == 0)
        return true;
    return strcmp(name, c->name) == 0;
}

static bool is_wanted(const json_t *names, const struct coll *c)
{
    const json_t *e;
    size_t i;

    if (!names)
        return true;
    json_array_foreach(names, i, e)
        if (is_named(e, c))
            return true;
    return false;
}

static struct coll *next_coll(const struct verify *v)
{
    struct coll *best = NULL;

    for (struct coll *c = v->task->colls; c; c = c->hh.next)
        if (c->id > v->last_id && !c->src_dropping && (!best || c->id < best->id) && is_wanted(v->names, c))
            best = c;
    return best;
}

/* Its port is given back at the next turn, when nothing of ours is on the way. */
static void on_done(void *arg)
{
    struct verify *v = arg;

    if (v->o.done)
        v->o.done(v->o.arg);
    v->o.done = NULL;
}

static void finish(struct verify *v, const char *state, const char *reason)
{
    v->state = state;
    v->finished_ms = clock_wall_ms();
    if (reason)
        set_text(&v->reason, reason);
    log_info("repl", "source and target are compared", KS("task", v->task->o.id), KS("result", state), KU("rows", v->rows),
             KU("ms", v->finished_ms - v->started_ms), KS("reason", v->reason ? v->reason : ""));
    store_result(v, NULL);
    timer_set(&v->next, 0);
}

/* What is known to differ counts more than what could not be compared. */
static void all_done(struct verify *v)
{
    finish(v, v->different ? DIFFERENT : v->failed ? FAILED : v->repaired ? REPAIRED : EQUAL, NULL);
}

static void on_next(void *arg)
{
    struct verify *v = arg;
    struct coll *c;

    if (v->state != RUNNING) {
        on_done(v);
        return;
    }
    if (v->cancelled) {
        finish(v, FAILED, "cancelled");
        return;
    }
    if (v->task->state < RUN_RUNNING)
        return; /* verify_started() goes on */
    c = next_coll(v);
    if (!c) {
        all_done(v);
        return;
    }
    v->last_id = c->id;
    v->check = check_new(v, c);
}

/* Counts that differ although all keys are on both sides: rows are there twice, unless they are so on the source. */
static const char *count_trouble(struct verify *v, const struct check *k)
{
    const struct tally *t = &k->tally;

    if (!k->counts_differ || t->missing || t->extra || t->equal_keys)
        return NULL;
    v->different = true;
    return v->o.level == VERIFY_COUNTS
               ? "the numbers of rows differ"
               : "the keys are the same, but the numbers of rows differ: some rows are on one side more than once";
}

static const char *judge(struct verify *v, const struct check *k, bool compared, const char **reason)
{
    const struct tally *t = &k->tally;
    bool different = compared && (t->missing || t->extra || t->different);

    if (compared && !*reason)
        *reason = count_trouble(v, k);
    if (different || (compared && *reason)) {
        v->different = true;
        return DIFFERENT;
    }
    if (!compared) {
        v->failed = true;
        return FAILED;
    }
    v->repaired |= t->repaired > 0;
    return t->repaired ? REPAIRED : EQUAL;
}

static void note_equal_keys(struct check *k)
{
    struct tally *t = &k->tally;
    uint64_t more = k->low > t->rows ? k->low - t->rows : 0;

    if (k->low == k->high)
        t->equal_keys = more < k->excess ? more : k->excess;
}

void verify_next(struct verify *v, const char *reason, bool compared)
{
    struct check *k = v->check;
    char *text = xstrdup(reason); /* it may lie in the check */
    const char *state;

    reason = text;
    k->over = true;
    if (compared || reason) {
        note_equal_keys(k);
        state = judge(v, k, compared, &reason);
        v->differences += k->tally.missing + k->tally.extra + k->tally.different;
        set_gauges(v);
        if (state == FAILED && !v->reason && !v->cancelled)
            v->reason = xasprintf("%s.%s: %s", k->coll->db, k->coll->name, reason);
        if (state != EQUAL)
            log_warn("repl", "a collection is not equal on both sides", KS("task", v->task->o.id), KS("db", k->coll->db),
                     KS("collection", k->coll->name), KS("result", state), KU("missing", k->tally.missing),
                     KU("extra", k->tally.extra), KU("different", k->tally.different), KU("repaired", k->tally.repaired),
                     KS("reason", reason ? reason : ""));
        if (state != EQUAL || json_array_size(v->done) < MAX_LISTED)
            json_array_append_new(v->done, check_json(k, state, reason));
        else
            v->unlisted++;
    }
    free(text);
    if (!check_unload(k))
        verify_unloaded(v);
}

void verify_unloaded(struct verify *v)
{
    check_free(v->check);
    v->check = NULL;
    timer_set(&v->next, 0);
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int check_names(const struct repl_task *t, const json_t *names, struct err *err)
{
    const struct coll *c;
    const json_t *e;
    size_t i;

    json_array_foreach(names, i, e) {
        for (c = t->colls; c && !is_named(e, c); c = c->hh.next)
            ;
        if (!c)
            return err_set(err, ERR_NOT_FOUND, ERRC_USER, "the task has no collection %s (names are the source's)",
                           json_string_value(e));
    }
    return 0;
}

static int check_options(const struct repl_task *t, const struct repl_verify_options *o, struct err *err)
{
    if (t->state > RUN_RUNNING || t->fatal)
        return err_set(err, ERR_STATE, ERRC_USER, "the task is stopping");
    if (repl_task_verifying(t))
        return err_set(err, ERR_STATE, ERRC_USER, "a verification of the task is running: wait, or ask with \"cancel\": "
                                                  "true");
    if (!t->o.rows)
        return err_set(err, ERR_STATE, ERRC_USER, "the source's API is not known: set sourceConfig.milvus.uri in the "
                                                  "configuration of the daemon that runs the task");
    if (o->repair && !t->o.hub->portable)
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER, "the target is a standby, which takes rows only as its source's log "
                                                        "has them: verify without repair, and restore what differs");
    if (o->repair && o->level == VERIFY_COUNTS)
        return err_set(err, ERR_INVALID, ERRC_USER, "a repair needs the level keys or rows");
    return t->state == RUN_RUNNING ? check_names(t, o->names, err) : 0; /* else verify_started() does */
}

static void on_begun(void *arg, const struct err *err)
{
    struct verify *v = arg;
    store_done_fn begun = v->o.begun;

    v->o.begun = NULL;
    if (begun)
        begun(v->o.arg, err);
}

/* Whoever waits for its beginning waits in vain. */
static void not_begun(struct verify *v)
{
    struct err err;

    v->task->o.store->ops->cancel(v->task->o.store, v);
    err_set(&err, ERR_STATE, ERRC_USER, "the verification ended before that it runs was stored");
    on_begun(v, &err);
}

int repl_task_verify(struct repl_task *t, const struct repl_verify_options *o, struct err *err)
{
    struct verify *v;

    if (check_options(t, o, err))
        return err->code;
    verify_free(t->verify);
    v = t->verify = xcalloc(1, sizeof(*v));
    v->task = t;
    v->o = *o;
    v->names = json_incref((json_t *)(uintptr_t)o->names);
    v->done = json_array();
    v->state = RUNNING;
    v->started_ms = clock_wall_ms();
    v->told_ms = clock_mono_ms();
    v->last_id = INT64_MIN;
    timer_init(&v->next, t->loop, LOOP_PRIO_LOW, on_next, v);
    timer_set(&v->next, 0);
    store_result(v, on_begun);
    return 0;
}

void verify_started(struct repl_task *t)
{
    struct err err;

    if (!repl_task_verifying(t))
        return;
    if (!t->verify->cancelled && check_names(t, t->verify->names, &err))
        finish(t->verify, FAILED, err.text);
    timer_set(&t->verify->next, 0);
}

bool repl_task_verifying(const struct repl_task *t)
{
    return t->verify && t->verify->state == RUNNING;
}

void repl_task_verify_cancel(struct repl_task *t)
{
    if (!repl_task_verifying(t))
        return;
    t->verify->cancelled = true;
    if (t->state < RUN_RUNNING)
        timer_set(&t->verify->next, 0);
}

void verify_interrupt(struct repl_task *t)
{
    struct verify *v = t->verify;

    if (!v)
        return;
    not_begun(v);
    check_free(v->check);
    v->check = NULL;
    timer_cancel(&v->next);
    if (v->state == RUNNING) {
        v->state = FAILED;
        v->finished_ms = clock_wall_ms();
        set_text(&v->reason, "interrupted: the task was stopped. Ask again");
        store_result(v, NULL);
    }
    on_done(v);
}

void verify_free(struct verify *v)
{
    if (!v)
        return;
    not_begun(v);
    check_free(v->check);
    on_done(v);
    timer_release(&v->next);
    json_decref(v->names);
    json_decref(v->done);
    free(v->reason);
    free(v);
}
