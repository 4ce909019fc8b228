/*
 * targets.c - what the tasks of a target do when its lease is taken, refused, lost or handed over.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "task/priv.h"

/* Somebody else has the target: he does it. */
static void forward(struct mtask *t)
{
    const struct op *o = STAILQ_FIRST(&t->ops);

    if (o->fn && o->kind <= OP_DELETE) {
        t->forwarding = true;
        remote_forward(t);
    } else {
        manager_op_finish(t, NULL, false);
    }
}

static void on_forward_refreshed(void *arg, const struct err *err)
{
    (void)err; /* it was done: what is shown is read again for the next request */
    manager_op_finish(arg, NULL, false);
}

void manager_on_forwarded(struct mtask *t, const struct err *err)
{
    enum op_kind kind = STAILQ_FIRST(&t->ops)->kind;

    if (err) {
        manager_op_finish(t, err, kind == OP_CREATE);
    } else if (kind == OP_DELETE) {
        manager_op_finish(t, NULL, true);
    } else {
        t->stored = true;
        mirror_refresh(t->m, t->id, on_forward_refreshed, t);
    }
}

/* The requests that wait for the lease go on, or fail. */
void manager_on_held(struct manager *m, const char *target_key, const struct err *err)
{
    struct mtask *t, *tmp;

    HASH_ITER(hh, m->tasks, t, tmp) {
        if (strcmp(t->key, target_key) != 0 || !(t->holding || (t->forwarding && !err)))
            continue;
        if (t->forwarding) { /* the owner is gone, and we are the next one */
            m->d.registry->ops->cancel(m->d.registry, t);
            mirror_cancel(m, t);
            t->forwarding = false;
        }
        t->holding = false;
        if (!err)
            timer_set(&t->next, 0);
        else if (m->d.registry->shared && err->code == ERR_STATE)
            forward(t);
        else if (STAILQ_FIRST(&t->ops)->kind == OP_CREATE)
            manager_create_fail(t, err);
        else
            manager_op_finish(t, err, false);
    }
}

void manager_on_released(struct manager *m, const char *target_key)
{
    for (struct mtask *t = m->tasks; t; t = t->hh.next)
        if (t->holding && strcmp(t->key, target_key) == 0)
            timer_set(&t->next, 0);
}

/* Requests of users that have not begun stay, and go to the new owner. */
static void drop_ops(struct mtask *t)
{
    struct op *o, *next, *head = t->holding ? NULL : STAILQ_FIRST(&t->ops);
    struct err err;

    for (o = STAILQ_FIRST(&t->ops); o; o = next) {
        next = STAILQ_NEXT(o, entry);
        if (o->fn)
            continue;
        STAILQ_REMOVE(&t->ops, o, op, entry);
        head = o == head ? NULL : head;
        manager_op_free(o);
    }
    if (head) {
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "another daemon took the task over meanwhile: try again");
        manager_op_finish(t, &err, head->kind == OP_CREATE);
    } else if (!STAILQ_EMPTY(&t->ops)) {
        t->holding = true;
    }
}

void manager_drop_target(struct manager *m, const char *target_key)
{
    struct mtask *t, *tmp;

    cleanups_drop(m, target_key);
    HASH_ITER(hh, m->tasks, t, tmp) {
        if (strcmp(t->key, target_key) != 0)
            continue;
        target_probe_cancel(t->probe);
        t->probe = NULL;
        m->d.registry->ops->cancel(m->d.registry, t);
        timer_cancel(&t->timer);
        runtime_release(t);
        t->storing_run = t->stop_begun = false;
        xfree(&t->told);
        drop_ops(t);
    }
}

void manager_leave_target(struct manager *m, const char *target_key)
{
    cleanups_drop(m, target_key);
    for (struct mtask *t = m->tasks; t; t = t->hh.next)
        if ((t->run || t->keeping) && strcmp(t->key, target_key) == 0) {
            xfree(&t->told);
            manager_op_add(t, OP_LEAVE, NULL, NULL);
        }
}

static bool is_busy(const struct mtask *t)
{
    return t->run || t->keeping || (!STAILQ_EMPTY(&t->ops) && !t->holding);
}

bool manager_target_busy(const struct manager *m, const char *target_key)
{
    for (const struct mtask *t = m->tasks; t; t = t->hh.next)
        if (is_busy(t) && strcmp(t->key, target_key) == 0)
            return true;
    return false;
}

void manager_count_targets(struct manager *m)
{
    struct holding *h, *tmp;

    HASH_ITER(hh, m->holdings, h, tmp)
        h->wanting = h->busy = 0;
    for (const struct mtask *t = m->tasks; t; t = t->hh.next) {
        h = holding_find(m, t->key);
        if (!h)
            continue;
        h->busy += is_busy(t);
        h->wanting += t->stored && (t->state != TASK_PAUSED || (t->spec && t->spec->keep_queryable)); /* as beats count */
    }
    cleanups_count(m);
}

