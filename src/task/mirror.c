/*
 * mirror.c - the tasks of a registry that other daemons use too, as this daemon knows them.
 *
 * What a target's holder has in memory is the truth of its tasks: only it changes them. Of all others the registry's
 * records are shown, and they are read again for each request, so that every daemon gives the same answer.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "task/priv.h"

struct refresh {
    LIST_ENTRY(refresh) entry;
    struct manager *m;
    char *task_id; /* NULL: all */
    bool loading; /* tasks of targets that were taken before it start */
    uint64_t asked_ms;
    manager_fn done;
    void *arg;
};

static void take_record(struct mtask *t, const struct reg_task *r)
{
    struct err err;

    set_text(&t->key, r->target_key);
    t->stored = true;
    t->state = r->state;
    set_text(&t->reason, r->reason);
    set_text(&t->owner, r->owner);
    set_text(&t->verify, r->verify);
    if (*t->owner)
        t->free_since_ms = 0;
    else if (!t->free_since_ms)
        t->free_since_ms = clock_mono_ms();
    t->epoch = r->epoch;
    t->since_ms = r->since_ms;
    t->seen = t->m->list_number;
    if (t->spec)
        return; /* never changes */
    t->spec = spec_from_store(r->id, r->spec_json, &err);
    if (!t->spec) {
        t->state = TASK_PAUSED;
        set_text(&t->reason, err.text);
    }
}

/* A target that was taken just now: the task goes on here. */
static void load(struct mtask *t, const struct reg_task *r)
{
    bool pause = t->spec && t->spec->disable_auto_start && t->state == TASK_RUNNING && !t->m->d.registry->shared;
    struct op *o;

    if (t->state == TASK_RUNNING) {
        set_text(&t->told, t->reason);
        set_text(&t->reason, ""); /* what kept the former owner from moving */
    }
    if (pause) {
        t->state = TASK_PAUSED;
        set_text(&t->reason, REASON_NO_AUTO_START);
    }
    o = manager_op_add(t, r->state == TASK_INITIAL ? OP_DELETE : OP_LOAD, NULL, NULL);
    o->changed = pause;
}

static void merge_one(struct manager *m, const struct reg_task *r, uint64_t asked_ms, bool loading)
{
    struct mtask *t = manager_find(m, r->id);
    const struct holding *h = holding_find(m, r->target_key);
    bool mine = h && (h->state == HOLD_HELD || h->state == HOLD_LEAVING);
    bool taken = loading && h && h->state == HOLD_LOADING && h->asked_ms <= asked_ms;

    if (t)
        t->seen = m->list_number;
    if (mine || (t && !t->stored && !taken))
        return;
    if (!t)
        t = manager_add_task(m, r->id);
    take_record(t, r);
    if (taken || (loading && !m->d.registry->shared))
        load(t, r);
}

static void remove_unseen(struct manager *m, const char *task_id)
{
    struct mtask *t, *tmp;

    HASH_ITER(hh, m->tasks, t, tmp)
        if (t->stored && t->seen != m->list_number && STAILQ_EMPTY(&t->ops) && !holding_find(m, t->key) &&
            (!task_id || strcmp(task_id, t->id) == 0))
            manager_remove_task(t);
}

static void merge(struct refresh *f, const struct reg_task *tasks, size_t n)
{
    struct manager *m = f->m;

    m->list_number++;
    for (size_t i = 0; i < n; i++)
        merge_one(m, &tasks[i], f->asked_ms, f->loading);
    manager_sort_tasks(m);
    remove_unseen(m, f->task_id);
}

static void refresh_free(struct refresh *f)
{
    f->m->d.registry->ops->cancel(f->m->d.registry, f);
    LIST_REMOVE(f, entry);
    free(f->task_id);
    free(f);
}

static void on_listed(void *arg, const struct err *err, const struct reg_task *tasks, size_t n)
{
    struct refresh *f = arg;
    manager_fn done = f->done;
    void *done_arg = f->arg;

    if (!err)
        merge(f, tasks, n);
    refresh_free(f);
    if (done)
        done(done_arg, err);
}

static void refresh(struct manager *m, const char *task_id, bool loading, manager_fn done, void *arg)
{
    struct refresh *f = xcalloc(1, sizeof(*f));

    f->m = m;
    f->task_id = xstrdup(task_id);
    f->loading = loading;
    f->asked_ms = clock_boot_ms();
    f->done = done;
    f->arg = arg;
    LIST_INSERT_HEAD(&m->refreshes, f, entry);
    m->d.registry->ops->list(m->d.registry, task_id, on_listed, f);
}

void mirror_refresh(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    refresh(m, task_id, false, done, arg);
}

void mirror_load(struct manager *m, manager_fn done, void *arg)
{
    refresh(m, NULL, true, done, arg);
}

void mirror_cancel(struct manager *m, void *arg)
{
    struct refresh *f;

    LIST_FOREACH(f, &m->refreshes, entry)
        if (f->arg == arg)
            f->done = NULL;
}

void mirror_free(struct manager *m)
{
    while (!LIST_EMPTY(&m->refreshes))
        refresh_free(LIST_FIRST(&m->refreshes));
}
