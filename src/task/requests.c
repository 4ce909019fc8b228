/*
 * requests.c - what the API asks for. In a registry that others use too, what they did is read first.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/hex.h"
#include "base/mem.h"
#include "task/priv.h"

/* ---- answers that need nothing but the loop */

/* Answers a create that never became a task, from the loop. */
struct late_answer {
    LIST_ENTRY(late_answer) entry;
    struct manager *m; /* NULL: it is gone */
    manager_fn fn;
    void *arg;
    struct err err;
    bool ok;
};

static void answer_late(void *arg)
{
    struct late_answer *a = arg;

    if (a->m)
        LIST_REMOVE(a, entry);
    if (a->fn)
        a->fn(a->arg, a->ok ? NULL : &a->err);
    free(a);
}

void manager_answer(struct manager *m, manager_fn fn, void *arg, const struct err *err)
{
    struct late_answer *a = xcalloc(1, sizeof(*a));

    a->m = m;
    LIST_INSERT_HEAD(&m->late, a, entry);
    a->fn = fn;
    a->arg = arg;
    a->ok = err == NULL;
    if (err)
        a->err = *err;
    loop_defer(m->d.loop, answer_late, a);
}

/* ---- requests */

static void new_task_id(char ret[33])
{
    uint8_t raw[16] = {0};

    if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
        abort();
    raw[6] = (uint8_t)((raw[6] & 0x0f) | 0x40); /* a version 4 UUID without dashes, as the Go implementation's */
    raw[8] = (uint8_t)((raw[8] & 0x3f) | 0x80);
    hex_encode(raw, sizeof(raw), ret);
}

void manager_request_here(struct manager *m, const char *task_id, enum op_kind kind, const struct op_options *o,
                          manager_fn done, void *arg)
{
    struct op *op;
    struct mtask *t = manager_find(m, task_id);
    struct err err;

    if (t) {
        op = manager_op_add(t, kind, done, arg);
        op->accept_gap = o->accept_gap;
        op->verify = xstrdup(o->verify);
        return;
    }
    err_set(&err, ERR_NOT_FOUND, ERRC_USER, "not found the task, task_id: %s", task_id ? task_id : "");
    manager_answer(m, done, arg, &err);
}

struct pending {
    LIST_ENTRY(pending) entry;
    struct manager *m;
    enum op_kind kind;
    char *task_id;          /* NULL: create */
    struct task_spec *spec; /* create */
    struct op_options options; /* texts: ours */
    manager_fn done;
    void *arg;
};

static void pending_free(struct pending *p)
{
    mirror_cancel(p->m, p);
    LIST_REMOVE(p, entry);
    spec_free(p->spec);
    free((char *)(uintptr_t)p->options.verify);
    free(p->task_id);
    free(p);
}

static void on_pending_refreshed(void *arg, const struct err *err)
{
    struct pending *p = arg;
    struct manager *m = p->m;
    manager_fn done = p->done;
    void *done_arg = p->arg;

    if (err && done)
        done(done_arg, err);
    else if (p->kind == OP_CREATE && !err)
        manager_create_here(m, p->spec, done, done_arg);
    else if (!err)
        manager_request_here(m, p->task_id, p->kind, &p->options, done, done_arg);
    if (!err)
        p->spec = NULL;
    pending_free(p);
}

static struct pending *pending_new(struct manager *m, enum op_kind kind, const char *task_id, manager_fn done, void *arg)
{
    struct pending *p = xcalloc(1, sizeof(*p));

    p->m = m;
    p->kind = kind;
    p->task_id = xstrdup(task_id);
    p->done = done;
    p->arg = arg;
    LIST_INSERT_HEAD(&m->pendings, p, entry);
    return p;
}

static void request_with(struct manager *m, const char *task_id, enum op_kind kind, const struct op_options *o,
                         manager_fn done, void *arg)
{
    struct pending *p;

    if (!m->d.registry->shared) {
        manager_request_here(m, task_id, kind, o, done, arg);
        return;
    }
    p = pending_new(m, kind, task_id, done, arg);
    p->options = (struct op_options){.accept_gap = o->accept_gap, .verify = xstrdup(o->verify)};
    mirror_refresh(m, task_id, on_pending_refreshed, p);
}

void manager_create(struct manager *m, struct task_spec *spec, manager_fn done, void *arg)
{
    char id[33];

    if (!spec->task_id) { /* the caller reads it before the answer */
        new_task_id(id);
        spec->task_id = xstrdup(id);
    }
    if (!m->d.registry->shared) {
        manager_create_here(m, spec, done, arg);
        return;
    }
    pending_new(m, OP_CREATE, NULL, done, arg)->spec = spec;
    mirror_refresh(m, NULL, on_pending_refreshed, LIST_FIRST(&m->pendings));
}

void manager_pause(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    request_with(m, task_id, OP_PAUSE, &(struct op_options){0}, done, arg);
}

void manager_resume(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    request_with(m, task_id, OP_RESUME, &(struct op_options){0}, done, arg);
}

void manager_resume_over_gap(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    request_with(m, task_id, OP_RESUME, &(struct op_options){.accept_gap = true}, done, arg);
}

void manager_delete(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    request_with(m, task_id, OP_DELETE, &(struct op_options){0}, done, arg);
}

void manager_verify(struct manager *m, const char *task_id, const char *request, manager_fn done, void *arg)
{
    request_with(m, task_id, OP_VERIFY, &(struct op_options){.verify = request}, done, arg);
}

void manager_refresh(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    if (m->d.registry->shared)
        mirror_refresh(m, task_id, done, arg);
    else
        manager_answer(m, done, arg, NULL);
}

void manager_cancel(struct manager *m, void *arg)
{
    struct op *o;
    struct late_answer *a;
    struct pending *p;

    mirror_cancel(m, arg);
    LIST_FOREACH(p, &m->pendings, entry)
        if (p->arg == arg)
            p->done = NULL;
    LIST_FOREACH(a, &m->late, entry)
        if (a->arg == arg)
            a->fn = NULL;
    for (struct mtask *t = m->tasks; t; t = t->hh.next) {
        STAILQ_FOREACH(o, &t->ops, entry)
            if (o->arg == arg)
                o->fn = NULL;
        if (t->verify_arg == arg)
            t->verify_fn = NULL;
    }
    position_cancel(m, arg);
    get_cancel(m, arg);
}

void requests_free(struct manager *m)
{
    struct late_answer *a;

    while (!LIST_EMPTY(&m->pendings))
        pending_free(LIST_FIRST(&m->pendings));
    while ((a = LIST_FIRST(&m->late))) { /* the loop frees them */
        LIST_REMOVE(a, entry);
        a->m = NULL;
        a->fn = NULL;
    }
}
