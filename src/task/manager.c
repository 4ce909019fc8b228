/*
 * manager.c - the tasks of this daemon. Requests for one task run one after another; each is a small chain of
 * asynchronous steps that ends in manager_op_finish().
 */
#include "task/manager.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metric.h"
#include "daemon/config.h"
#include "task/priv.h"
#include "task/text.h"

#define START_LIMIT_MS 20000 /* a create is given up when the source does not answer for so long */
#define STOP_LIMIT_MS 3000
#define LOAD_AGAIN_MS 500 /* a shared registry that is away when we start */
#define REASON_DELETED "deleted" /* of a record whose task is gone, but for what the source's queue keeps for it */
/* SIGTERM: exit in 5 s, with up to 2.5 s in which the registry tries to write its last. */
#define END_REQUESTS_MS 2000
#define END_LIMIT_MS 2400

static void op_begin(void *arg);
static void stop_step(struct manager *m);
static void on_end_timer(void *arg);
static void load_all(void *arg);

const char *manager_state_name(enum task_state s)
{
    return s == TASK_RUNNING ? "Running" : s == TASK_PAUSED ? "Paused" : "Initial";
}

struct mtask *manager_find(struct manager *m, const char *id)
{
    struct mtask *t = NULL;

    if (id)
        HASH_FIND_STR(m->tasks, id, t);
    return t;
}

static int by_id(struct mtask *a, struct mtask *b)
{
    return strcmp(a->id, b->id);
}

static void start_timeout(void *arg);

void manager_sort_tasks(struct manager *m)
{
    HASH_SORT(m->tasks, by_id);
}

struct mtask *manager_add_task(struct manager *m, const char *id)
{
    struct mtask *t = xcalloc(1, sizeof(*t));

    t->m = m;
    t->id = xstrdup(id);
    t->reason = xstrdup("");
    STAILQ_INIT(&t->ops);
    timer_init(&t->timer, m->d.loop, LOOP_PRIO_NORMAL, start_timeout, t);
    timer_init(&t->next, m->d.loop, LOOP_PRIO_HIGH, op_begin, t);
    HASH_ADD_KEYPTR(hh, m->tasks, t->id, strlen(t->id), t);
    return t;
}

void manager_remove_task(struct mtask *t)
{
    struct manager *m = t->m;

    t->verify_fn = NULL;
    runtime_release(t);
    target_probe_cancel(t->probe);
    m->d.registry->ops->cancel(m->d.registry, t);
    mirror_cancel(m, t);
    while (!STAILQ_EMPTY(&t->ops)) {
        struct op *o = STAILQ_FIRST(&t->ops);
        STAILQ_REMOVE_HEAD(&t->ops, entry);
        manager_op_free(o);
    }
    timer_release(&t->timer);
    timer_release(&t->next);
    metric_remove_matching("task_id", t->id);
    HASH_DEL(m->tasks, t);
    spec_free(t->spec);
    free(t->id);
    free(t->key);
    free(t->reason);
    free(t->owner);
    free(t->told);
    free(t->verify);
    free(t->target_version);
    free(t);
}

/* ---- queue of requests ------------------------------------------------------------------------------ */

struct op *manager_op_add(struct mtask *t, enum op_kind kind, manager_fn fn, void *arg)
{
    struct op *o = xcalloc(1, sizeof(*o));

    o->kind = kind;
    o->fn = fn;
    o->arg = arg;
    STAILQ_INSERT_TAIL(&t->ops, o, entry);
    if (STAILQ_FIRST(&t->ops) == o)
        timer_set(&t->next, 0);
    return o;
}

void manager_op_free(struct op *o)
{
    free(o->verify);
    free(o);
}

/* Ends the request at the head; gone: the task is removed. err NULL: success. */
void manager_op_finish(struct mtask *t, const struct err *err, bool gone)
{
    struct op *o = STAILQ_FIRST(&t->ops);
    struct manager *m = t->m;
    struct err not_found, copy; /* err may lie in the task, which may go */
    char *key = xstrdup(t->key);
    STAILQ_HEAD(, op) rest = STAILQ_HEAD_INITIALIZER(rest);

    if (err) {
        copy = *err;
        err = &copy;
    }
    t->forwarding = false;
    STAILQ_REMOVE_HEAD(&t->ops, entry);
    if (!gone && !STAILQ_EMPTY(&t->ops))
        timer_set(&t->next, 0);
    if (gone) {
        STAILQ_CONCAT(&rest, &t->ops);
        manager_remove_task(t);
    }
    if (o->fn)
        o->fn(o->arg, err);
    manager_op_free(o);
    err_set(&not_found, ERR_NOT_FOUND, ERRC_USER, "the task was deleted");
    while (!STAILQ_EMPTY(&rest)) {
        o = STAILQ_FIRST(&rest);
        STAILQ_REMOVE_HEAD(&rest, entry);
        if (o->fn)
            o->fn(o->arg, &not_found);
        manager_op_free(o);
    }
    group_leave_step(m, key);
    free(key);
    if (m->stop)
        stop_step(m);
}

static void set_state(struct mtask *t, enum task_state state, const char *reason)
{
    log_info("task", "state", KS("task", t->id), KS("from", manager_state_name(t->state)), KS("to", manager_state_name(state)),
             KS("reason", reason));
    t->state = state;
    set_text(&t->reason, reason);
}

/* Stores a state; the copy in memory changes with the answer's step. */
static void store_state(struct mtask *t, enum task_state state, const char *reason, reg_done_fn done)
{
    set_state(t, state, reason);
    set_text(&t->told, t->reason);
    t->m->d.registry->ops->set_state(t->m->d.registry, t->id, state, reason, t->m->d.daemon_id,
                                     holding_epoch(t->m, t->key), done, t);
}

static void remove_record(struct mtask *t, reg_done_fn done)
{
    struct registry *r = t->m->d.registry;

    r->ops->remove(r, t->id, t->m->d.daemon_id, holding_epoch(t->m, t->key), done, t);
}

/* ---- create --------------------------------------------------------------------------------------------- */

static void on_create_removed(void *arg, const struct err *err)
{
    struct mtask *t = arg;
    struct err failure = t->failure;

    (void)err; /* what could not be removed has state Initial and is removed at the next start */
    manager_op_finish(t, &failure, true);
}

/* Removes the record of a create that failed; with what the queue may keep for it already. */
static void create_undo(struct mtask *t)
{
    struct err failure = t->failure;

    if (!t->m->d.wal->ops->forget) {
        remove_record(t, on_create_removed);
        return;
    }
    cleanup_start(t->m, t->id, t->key); /* its record has state Initial */
    manager_op_finish(t, &failure, true);
}

void manager_create_fail(struct mtask *t, const struct err *err)
{
    t->failure = *err;
    timer_cancel(&t->timer);
    runtime_release(t);
    log_warn("task", "create failed", KS("task", t->id), KS("error", err->text));
    if (t->stored)
        create_undo(t);
    else
        manager_op_finish(t, &t->failure, true);
}

static void on_running_stored(void *arg, const struct err *err)
{
    struct mtask *t = arg;

    t->storing_run = false;
    if (err && STAILQ_FIRST(&t->ops)->kind == OP_CREATE) {
        manager_create_fail(t, err);
        return;
    }
    manager_op_finish(t, err, false);
}

/* The runtime has fixed where everything begins: no row from now on is missed. */
static void on_started(void *arg, const struct err *err)
{
    struct mtask *t = arg;
    struct op *o = STAILQ_FIRST(&t->ops);

    timer_cancel(&t->timer);
    if (!o)
        return; /* a start that nobody waits for */
    if (o->kind == OP_CREATE && err)
        manager_create_fail(t, err);
    else if (o->kind == OP_CREATE || o->kind == OP_RESUME) {
        t->storing_run = true;
        store_state(t, TASK_RUNNING, "", on_running_stored);
    }
}

static void start_timeout(void *arg)
{
    struct mtask *t = arg;
    struct op *o = STAILQ_FIRST(&t->ops);
    struct err err;
    const char *why = t->run ? repl_task_trouble(t->run) : NULL;

    if (!o || (o->kind != OP_CREATE && o->kind != OP_RESUME))
        return;
    err_set(&err, ERR_TIMEOUT, ERRC_USER, "fail to start task: the source did not answer within %d s (%s)",
            START_LIMIT_MS / 1000, why ? why : "waiting for its metadata");
    if (o->kind == OP_CREATE) {
        manager_create_fail(t, &err);
    } else {
        runtime_release(t);
        manager_op_finish(t, &err, false);
    }
}

static void on_created(void *arg, const struct err *err)
{
    struct mtask *t = arg;
    struct err e;

    if (err) {
        manager_create_fail(t, err);
        return;
    }
    t->stored = true;
    runtime_open(t);
    timer_set(&t->timer, START_LIMIT_MS);
    t->accept_gap = t->spec->accept_gap;
    if (runtime_start(t, on_started, &e))
        manager_create_fail(t, &e);
}

static void create_store(struct mtask *t)
{
    char *json = spec_to_store_json(t->spec);
    struct reg_task r = {.id = t->id,
                         .spec_json = json,
                         .target_key = t->key,
                         .state = TASK_INITIAL,
                         .reason = (char *)"",
                         .keep = t->spec->keep_queryable,
                         .created_ms = (int64_t)clock_wall_ms(),
                         .updated_ms = (int64_t)clock_wall_ms()};

    t->m->d.registry->ops->create(t->m->d.registry, &r, t->m->d.daemon_id, holding_epoch(t->m, t->key), on_created,
                                  t);
    free(json);
}

/* Each row would come back as a new one. A source under another name is seen when its first collection is looked at. */
static int check_source(const struct mtask *t, struct err *err)
{
    const char *uri = t->m->d.config->source_milvus.uri;
    char *key = uri && t->spec->mode == SPEC_PORTABLE ? runtime_key_of(uri) : NULL;
    bool same = key && strcmp(key, t->key) == 0;

    free(key);
    return same ? err_set(err, ERR_INVALID, ERRC_USER,
                          "the target is the source itself (sourceConfig.milvus.uri): give another milvus_connect_param.uri")
                : 0;
}

static void on_create_probed(void *arg, const struct err *err, enum target_mode mode, const char *version)
{
    struct mtask *t = arg;
    struct err e;

    t->probe = NULL;
    if (err || spec_choose_mode(t->spec, mode == TARGET_STANDBY, version, &e) || check_source(t, &e)) {
        manager_create_fail(t, err ? err : &e);
        return;
    }
    log_info("task", "target probed", KS("task", t->id), KS("target", t->key), KS("mode", spec_mode_name(t->spec->mode)),
             KS("version", version));
    t->target_version = xstrdup(version);
    create_store(t);
}

static void probe(struct mtask *t, target_probe_fn done)
{
    struct target_options o;

    runtime_target_options(t->spec, &o);
    t->probe = target_probe_start(t->m->d.loop, &o, done, t);
}

/* The target is held: its tasks here are all that there are. */
static int check_overlap(struct mtask *self, struct err *err)
{
    for (struct mtask *t = self->m->tasks; t; t = t->hh.next) {
        char *text;
        if (t == self || !t->spec || !(t->stored || t->admitted) || strcmp(t->key, self->key) != 0)
            continue;
        text = spec_overlap(self->spec, t->spec);
        if (text) {
            err_set(err, ERR_EXISTS, ERRC_USER, "%s (task %s)", text, t->id);
            free(text);
            return ERR_EXISTS;
        }
        spec_add_exclusions(self->spec, t->spec);
    }
    self->admitted = true;
    return 0;
}

void manager_create_here(struct manager *m, struct task_spec *spec, manager_fn done, void *arg)
{
    struct err err;
    struct mtask *t;
    char *key;

    err.code = ERR_OK;
    if (spec->task_id && manager_find(m, spec->task_id)) {
        manager_answer(m, done, arg, NULL);
        spec_free(spec);
        return;
    }
    key = runtime_key(spec);
    if (!key)
        err_set(&err, ERR_INVALID, ERRC_USER, "the target's uri is not http(s)://host:port");
    else if (!m->loaded)
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "the task registry is not loaded yet");
    else if (HASH_COUNT(m->tasks) >= (unsigned)m->d.config->max_task_num)
        err_set(&err, ERR_LIMIT, ERRC_USER, "there are %u tasks already, the limit is maxTaskNum in the configuration",
                HASH_COUNT(m->tasks));
    else if (spec->task_id && cleanup_has(m, spec->task_id))
        err_set(&err, ERR_STATE, ERRC_USER,
                "task %s was deleted just now, and what the source's queue keeps for it is still being removed: try again",
                spec->task_id);
    if (err.code) {
        manager_answer(m, done, arg, &err);
        free(key);
        spec_free(spec);
        return;
    }
    t = manager_add_task(m, spec->task_id);
    manager_sort_tasks(m);
    t->spec = spec;
    t->key = key;
    (void)manager_op_add(t, OP_CREATE, done, arg);
}

/* ---- pause, and the end of a task that failed -------------------------------------------------------------- */

static void keep(struct mtask *t)
{
    if (!t->spec || !t->spec->keep_queryable || t->spec->mode == SPEC_PORTABLE)
        return; /* an ordinary Milvus always is */
    runtime_open(t);
    runtime_keep(t);
}

static void after_pause(struct mtask *t, const struct err *err)
{
    runtime_release(t);
    if (!err)
        keep(t);
    manager_op_finish(t, err, false);
}

static void on_pause_stored(void *arg, const struct err *err)
{
    after_pause(arg, err);
}

static void on_pause_stopped(void *arg)
{
    struct mtask *t = arg;
    struct op *o = STAILQ_FIRST(&t->ops);
    char reason[1200];

    if (o->kind == OP_PAUSE) {
        store_state(t, TASK_PAUSED, REASON_MANUAL, on_pause_stored);
        return;
    }
    snprintf(reason, sizeof(reason), "%s%s%s",
             o->err.cls == ERRC_LOST   ? "LOST: fail to read the message: "
             : o->err.cls == ERRC_DATA ? "fail to handle replicate message: "
                                       : "fail to handle the replicate event: ",
             o->err.text,
             o->err.cls == ERRC_LOST ? ". To go on without what is missing: resume with \"accept_gap\": true" : "");
    store_state(t, TASK_PAUSED, reason, on_pause_stored);
}

void manager_on_fatal(void *arg, const struct err *err)
{
    struct mtask *t = arg;
    struct op *head = STAILQ_FIRST(&t->ops);
    struct err copy = *err; /* it lies in the runtime, which goes */

    err = &copy;
    if (err->code == ERR_STALE && t->m->d.registry->shared) {
        struct holding *h = holding_find(t->m, t->key);

        if (h)
            h->stale = true; /* the next beat makes sure, and ends all tasks of the target */
        group_beat_soon(t->m);
        return;
    }
    if (head && head->kind == OP_CREATE && !t->storing_run) {
        manager_create_fail(t, err);
        return;
    }
    if (head && head->kind == OP_RESUME && !t->storing_run) {
        timer_cancel(&t->timer);
        runtime_release(t);
        manager_op_finish(t, err, false);
        return;
    }
    manager_op_add(t, OP_FAIL, NULL, NULL)->err = *err;
}

/* ---- resume ---------------------------------------------------------------------------------------------------- */

static void resume_start(struct mtask *t)
{
    struct err e;

    runtime_release(t); /* what kept the target queryable */
    runtime_open(t);
    timer_set(&t->timer, START_LIMIT_MS);
    t->accept_gap = STAILQ_FIRST(&t->ops)->accept_gap;
    if (runtime_start(t, on_started, &e)) {
        timer_cancel(&t->timer);
        runtime_release(t);
        manager_op_finish(t, &e, false);
    }
}

static void on_resume_probed(void *arg, const struct err *err, enum target_mode mode, const char *version)
{
    struct mtask *t = arg;
    struct err e;

    t->probe = NULL;
    if (err || spec_choose_mode(t->spec, mode == TARGET_STANDBY, version, &e)) {
        manager_op_finish(t, err ? err : &e, false);
        return;
    }
    resume_start(t);
}

/* ---- start of the daemon: a running task goes on, also when its target is away ----------------------------------- */

static void load_task(struct mtask *t)
{
    struct err e;

    if (STAILQ_FIRST(&t->ops)->changed)
        store_state(t, t->state, t->reason, NULL);
    if (t->state == TASK_RUNNING) {
        runtime_open(t);
        if (runtime_start(t, on_started, &e))
            log_error("task", "fail to start task", KS("task", t->id), KS("error", e.text));
    } else {
        keep(t);
    }
    manager_op_finish(t, NULL, false);
}

/* ---- delete --------------------------------------------------------------------------------------------------------- */

static void on_removed(void *arg, const struct err *err)
{
    struct mtask *t = arg;

    manager_op_finish(t, err, err == NULL);
}

/* What the queue keeps for the task goes later: it may be away. */
static void on_delete_marked(void *arg, const struct err *err)
{
    struct mtask *t = arg;

    if (!err)
        cleanup_start(t->m, t->id, t->key);
    manager_op_finish(t, err, err == NULL);
}

static void on_delete_stopped(void *arg)
{
    struct mtask *t = arg;
    struct registry *r = t->m->d.registry;

    runtime_release(t);
    if (t->m->d.wal->ops->forget)
        r->ops->set_state(r, t->id, TASK_INITIAL, REASON_DELETED, t->m->d.daemon_id, holding_epoch(t->m, t->key),
                          on_delete_marked, t);
    else
        remove_record(t, on_removed);
}

/* ---- the requests' first steps ----------------------------------------------------------------------------------------- */

static void stop_run(struct mtask *t, void (*stopped)(void *arg))
{
    if (t->run)
        repl_task_stop(t->run, STOP_LIMIT_MS, stopped, t);
    else
        stopped(t);
}

static void refuse(struct mtask *t, const char *text)
{
    struct err err;

    err_set(&err, ERR_STATE, ERRC_USER, "%s, task_id: %s", text, t->id);
    manager_op_finish(t, &err, false);
}

static void begin_create(struct mtask *t)
{
    struct err err;

    if (check_overlap(t, &err))
        manager_create_fail(t, &err);
    else
        probe(t, on_create_probed);
}

static void on_leave_stopped(void *arg)
{
    struct mtask *t = arg;

    runtime_release(t);
    manager_op_finish(t, NULL, false);
}

/* False: the request waits for the target's lease. */
static bool lease_ready(struct mtask *t, const struct op *o)
{
    t->holding = !holding_ready(t->m, t->key) && o->kind != OP_LEAVE;
    if (t->holding) {
        holding_claim(t->m, t->key);
        group_leave_step(t->m, t->key); /* one that is being given away had waited for this request */
    }
    return !t->holding;
}

static void op_begin(void *arg)
{
    struct mtask *t = arg;
    struct op *o = STAILQ_FIRST(&t->ops);

    if (!o || !lease_ready(t, o))
        return;
    switch (o->kind) {
    case OP_CREATE:
        begin_create(t);
        return;
    case OP_PAUSE:
        if (t->state == TASK_PAUSED)
            refuse(t, "the task is paused already");
        else
            stop_run(t, on_pause_stopped);
        return;
    case OP_RESUME:
        if (t->state == TASK_RUNNING)
            refuse(t, "the task is running already");
        else if (!t->spec)
            refuse(t, t->reason);
        else
            probe(t, on_resume_probed);
        return;
    case OP_VERIFY:
        verify_request(t);
        return;
    case OP_DELETE:
        stop_run(t, on_delete_stopped);
        return;
    case OP_FAIL:
        if (t->run && t->state == TASK_RUNNING)
            repl_task_stop(t->run, STOP_LIMIT_MS, on_pause_stopped, t);
        else
            manager_op_finish(t, NULL, false);
        return;
    case OP_LOAD:
        load_task(t);
        return;
    case OP_LEAVE:
        stop_run(t, on_leave_stopped);
        return;
    }
}

/* ---- life ------------------------------------------------------------------------------------------------------------------ */

struct manager *manager_new(const struct manager_deps *d)
{
    struct manager *m = xcalloc(1, sizeof(*m));

    m->d = *d;
    m->budget.limit = d->config->process_bytes;
    repl_copy_room_init(&m->copy_room, d->config->copy_bytes);
    timer_init(&m->end_timer, d->loop, LOOP_PRIO_NORMAL, on_end_timer, m);
    timer_init(&m->load_timer, d->loop, LOOP_PRIO_NORMAL, load_all, m);
    return m;
}

static void on_loaded(void *arg, const struct err *err);

static void load_all(void *arg)
{
    mirror_load(arg, on_loaded, arg);
}

static void on_loaded(void *arg, const struct err *err)
{
    struct manager *m = arg;

    if (err && err->cls == ERRC_RETRY && m->d.registry->shared) {
        log_warn("task", "the tasks cannot be read yet, trying again", KS("error", err->text));
        timer_set(&m->load_timer, LOAD_AGAIN_MS);
        return;
    }
    if (!err) {
        m->loaded = true;
        log_info("task", "tasks loaded", KU("tasks", HASH_COUNT(m->tasks)));
        if (m->d.registry->shared)
            group_start(m);
    }
    if (m->ready)
        m->ready(m->ready_arg, err);
}

void manager_start(struct manager *m, reg_done_fn ready, void *arg)
{
    m->ready = ready;
    m->ready_arg = arg;
    load_all(m);
}

static void on_stop_one(void *arg)
{
    struct mtask *t = arg;

    runtime_release(t);
    stop_step(t->m);
}

static void stop_over(struct manager *m)
{
    timer_cancel(&m->end_timer);
    m->leaving = true;
    if (m->stopped)
        loop_defer(m->d.loop, m->stopped, m->stopped_arg);
    m->stopped = NULL;
}

/* Stops what runs and has no request under way; done when nothing is left. Each end of a request calls again. */
static void stop_step(struct manager *m)
{
    bool busy = false;

    for (struct mtask *t = m->tasks; t; t = t->hh.next) {
        busy |= t->run || !STAILQ_EMPTY(&t->ops);
        if (!t->run || !STAILQ_EMPTY(&t->ops) || t->stop_begun)
            continue;
        t->stop_begun = true;
        repl_task_stop(t->run, END_REQUESTS_MS, on_stop_one, t);
    }
    if (busy || m->leaving)
        return;
    m->leaving = true;
    if (m->group.m)
        group_leave(m, stop_over);
    else
        stop_over(m);
}

/* Somebody does not answer: a target that is being probed, a registry that is locked. Nothing that was promised is lost. */
static void on_end_timer(void *arg)
{
    struct manager *m = arg;

    log_warn("task", "not all could be ended in time", KU("limit_ms", END_LIMIT_MS));
    stop_over(m);
}

void manager_stop(struct manager *m, void (*done)(void *arg), void *arg)
{
    m->stopped = done;
    m->stopped_arg = arg;
    m->stop = true;
    timer_set(&m->end_timer, END_LIMIT_MS);
    stop_step(m);
}

void manager_free(struct manager *m)
{
    struct mtask *t, *tmp;

    if (!m)
        return;
    m->d.registry->ops->cancel(m->d.registry, m);
    group_free(m);
    positions_free(m);
    gets_free(m);
    cleanups_free(m);
    requests_free(m);
    timer_release(&m->end_timer);
    timer_release(&m->load_timer);
    m->stop = false;
    HASH_ITER(hh, m->tasks, t, tmp)
        manager_remove_task(t);
    remotes_free(m);
    mirror_free(m);
    holdings_free(m);
    free(m->ids);
    free(m);
}

/* ---- answers ------------------------------------------------------------------------------------------------------------------ */

bool manager_task_shown(const struct mtask *t)
{
    return t->stored ? t->state != TASK_INITIAL || strcmp(t->reason, REASON_DELETED) != 0 : t->state != TASK_INITIAL;
}

/* Who runs it, and since when; "" for nobody. */
static void set_owner(json_t *o, const struct mtask *t)
{
    const struct holding *h = holding_find(t->m, t->key);
    bool ours = h && h->epoch;
    const char *owner = ours ? t->m->d.daemon_id : t->owner ? t->owner : "";

    json_object_set_new(o, "owner", json_string(owner));
    if (!*owner)
        return;
    json_object_set_new(o, "epoch", json_integer((json_int_t)(ours ? h->epoch : t->epoch)));
    json_object_set_new(o, "owner_since_ms", json_integer(ours ? h->since_ms : t->since_ms));
}

json_t *manager_task_json(struct manager *m, const char *task_id)
{
    struct mtask *t = manager_find(m, task_id);
    char text[TROUBLE_CHARS] = "";
    struct repl_copying copying;
    json_t *o;

    if (!t || !manager_task_shown(t))
        return NULL;
    o = t->spec ? spec_public_json(t->spec) : json_object();
    if (t->run && !*t->reason)
        health_trouble(t, text);
    json_object_set_new(o, "task_id", json_string(t->id));
    json_object_set_new(o, "state", json_string(manager_state_name(t->state)));
    if (*t->reason || *text)
        json_object_set_new(o, "reason", text_json(*text ? text : t->reason));
    set_owner(o, t);
    if (t->run && repl_task_copying(t->run, &copying))
        snapshot_json(o, &copying);
    verify_show(o, t);
    if (t->run)
        notes_json(o, t->run);
    return o;
}

const char *const *manager_task_ids(struct manager *m, size_t *ret_n)
{
    size_t n = 0;

    m->ids = xrealloc(m->ids, (HASH_COUNT(m->tasks) + 1) * sizeof(*m->ids));
    for (struct mtask *t = m->tasks; t; t = t->hh.next)
        if (t->stored)
            m->ids[n++] = t->id;
    *ret_n = n;
    return m->ids;
}

/* Of a task that has a snapshot: 0 when that is over, or does not run here. */
static void update_snapshot_metrics(const struct mtask *t)
{
    struct repl_copying c = {0};

    if (t->run && !repl_task_copying(t->run, &c))
        return; /* not known yet: 0 would say that it is over */
    const struct {
        const char *name, *help;
        uint64_t value;
    } gauges[] = {
        {"milvus_cdc_snapshot_collections", "collections whose rows from before the task are not all copied", c.collections},
        {"milvus_cdc_snapshot_rows", "their rows that are on the target", c.rows},
        {"milvus_cdc_snapshot_estimated_rows", "their rows when their copies began", c.estimate},
        {"milvus_cdc_snapshot_rows_per_second", "rows that are copied now", c.rows_per_s},
    };

    for (size_t i = 0; i < sizeof(gauges) / sizeof(*gauges); i++)
        metric_get(METRIC_GAUGE, gauges[i].name, gauges[i].help, METRIC_LABELS({"task_id", t->id}))->value =
            (double)gauges[i].value;
}

void manager_update_metrics(struct manager *m)
{
    unsigned count[3] = {0};

    for (struct mtask *t = m->tasks; t; t = t->hh.next) {
        count[t->state]++;
        metric_get(METRIC_GAUGE, "milvus_cdc_task_state", "0 Initial, 1 Running, 2 Paused",
                   METRIC_LABELS({"task_id", t->id}))
            ->value = t->state;
        if (t->spec && t->spec->start == SPEC_SNAPSHOT)
            update_snapshot_metrics(t);
    }
    for (int i = 0; i < 3; i++)
        metric_get(METRIC_GAUGE, "milvus_cdc_task_num", "tasks by state",
                   METRIC_LABELS({"task_state", manager_state_name((enum task_state)i)}))
            ->value = count[i];
    metric_get(METRIC_GAUGE, "milvus_cdc_held_bytes", "bytes of messages in memory", METRIC_LABELS({0}))->value =
        (double)m->budget.used;
    metric_get(METRIC_GAUGE, "milvus_cdc_copy_bytes", "bytes of pages of snapshots in memory, asked for or read",
               METRIC_LABELS({0}))
        ->value = (double)m->copy_room.used;
}

const char *manager_registry_trouble(struct manager *m)
{
    return m->d.registry->ops->trouble(m->d.registry);
}

const char *manager_not_ready(struct manager *m)
{
    const char *why = manager_registry_trouble(m);

    if (why)
        return why;
    return m->loaded ? NULL : "the tasks are not loaded yet";
}
