/*
 * group.c - this daemon among others that share its registry: signs of life, leases taken, kept, lost and handed over.
 *
 * A beat every third of the lease says that we live, renews what we hold and takes what is free, up to our share; extra
 * ones when a foreign lease is about to run out or the registry says that something changed. A daemon that holds more than
 * its share stops the tasks of some targets in order and gives them back.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/metric.h"
#include "task/priv.h"

#define BEAT_RETRY_MS 250  /* after one that failed */
#define BEAT_SOON_MS 20    /* after a hint: several come together */
#define LOAD_RETRY_MS 250
#define TELL_MS 1000       /* how often the trouble of running tasks is told to the others */
#define REFRESH_MS 1000    /* after a hint that others changed tasks */
#define LEAVE_AT_ONCE 50   /* targets that are handed over side by side */

static void beat(struct group *g);

/* ---- tasks of targets that were taken --------------------------------------------------------------------------- */

static void on_loaded(void *arg, const struct err *err)
{
    struct group *g = arg;
    struct holding *h, *tmp;

    g->loading = false;
    if (err) {
        log_warn("task", "the tasks of claimed targets cannot be read yet", KS("error", err->text));
        timer_set(&g->load_timer, LOAD_RETRY_MS);
        return;
    }
    HASH_ITER(hh, g->m->holdings, h, tmp)
        if (h->state == HOLD_LOADING && h->asked_ms <= g->load_asked_ms) {
            h->state = HOLD_HELD;
            manager_on_held(g->m, h->key, NULL);
        }
    if (g->load_again)
        timer_set(&g->load_timer, 0);
    g->load_again = false;
}

static void on_load_timer(void *arg)
{
    struct group *g = arg;

    g->load_again = g->loading;
    if (g->loading)
        return;
    g->loading = true;
    g->load_asked_ms = clock_boot_ms();
    mirror_load(g->m, on_loaded, g);
}

void group_on_claimed(struct manager *m)
{
    timer_set(&m->group.load_timer, 0);
    timer_set(&m->group.lapse_timer, 0);
}

/* ---- leases that end ---------------------------------------------------------------------------------------------- */

/* Somebody else has the target, or may have it soon: all stops at once, in-flight requests are in doubt for the next. */
static void lose(struct holding *h)
{
    struct manager *m = h->m;
    char *key = xstrdup(h->key);

    log_warn("task", "lease lost", KS("target", key), KU("epoch", h->epoch));
    manager_drop_target(m, key);
    holding_free(h);
    manager_on_released(m, key);
    free(key);
}

/* The process was stopped, or the registry is away: what waits in buffers must not leave any more. */
static void on_lapse(void *arg)
{
    struct group *g = arg;
    struct holding *h, *tmp;
    uint64_t next = UINT64_MAX;

    HASH_ITER(hh, g->m->holdings, h, tmp) {
        uint64_t left = fence_left_ms(&h->fence);
        if (h->state == HOLD_CLAIMING)
            continue;
        if (!left && !h->lapsed) {
            log_warn("task", "lease has run out: nothing is sent to the target until it is renewed", KS("target", h->key));
            runtime_cut(g->m, h->key);
        }
        h->lapsed = !left;
        if (left && left < next)
            next = left;
    }
    if (next != UINT64_MAX)
        timer_set(&g->lapse_timer, next);
}

/* ---- handing over --------------------------------------------------------------------------------------------------- */

static void on_released(void *arg, const struct err *err)
{
    struct holding *h = arg;
    struct manager *m = h->m;
    char *key = xstrdup(h->key);

    if (err)
        log_warn("task", "lease not given back: it runs out", KS("target", key), KS("error", err->text));
    else
        log_info("task", "target handed over", KS("target", key), KU("epoch", h->epoch));
    holding_free(h);
    manager_on_released(m, key);
    free(key);
}

/* Called when a request of a task has ended: is the last one of a target that we leave over? */
void group_leave_step(struct manager *m, const char *target_key)
{
    struct holding *h = holding_find(m, target_key);

    if (!h || h->state != HOLD_LEAVING || h->releasing || manager_target_busy(m, target_key))
        return;
    h->releasing = true;
    m->d.registry->ops->release(m->d.registry, h->key, m->d.daemon_id, h->epoch, on_released, h);
}

static void leave(struct holding *h)
{
    struct manager *m = h->m;

    h->state = HOLD_LEAVING;
    manager_leave_target(m, h->key);
    group_leave_step(m, h->key);
}

/* Gives up targets without a task that wants us, and those above our share. */
static void balance(struct group *g, const struct reg_beat *b)
{
    size_t share = (b->wanting + b->daemons - 1) / (b->daemons ? b->daemons : 1), mine = 0, leaving = 0;
    struct holding *h, *tmp;

    manager_count_targets(g->m);
    HASH_ITER(hh, g->m->holdings, h, tmp) {
        mine += h->state == HOLD_HELD || h->state == HOLD_LOADING ? h->wanting : 0;
        leaving += h->state == HOLD_LEAVING;
    }
    HASH_ITER(hh, g->m->holdings, h, tmp) {
        if (h->state != HOLD_HELD || leaving >= LEAVE_AT_ONCE || h->asked_ms > g->asked_ms)
            continue;
        if (h->wanting && mine < share + h->wanting)
            continue;
        if (!h->wanting && h->busy)
            continue;
        mine -= h->wanting;
        leaving++;
        leave(h);
    }
}

/* ---- beats -------------------------------------------------------------------------------------------------------------- */

static void take_lease(struct group *g, const struct reg_lease *lease)
{
    struct holding *h = holding_find(g->m, lease->target_key);

    if (h && h->state == HOLD_CLAIMING) { /* its own answer comes, and has the greater epoch */
        h->beat_number = g->number;
        return;
    }
    if (h && (h->epoch != lease->epoch || h->stale) && h->asked_ms <= g->asked_ms) {
        lose(h);
        h = NULL;
    }
    if (!h) {
        h = holding_new(g->m, lease->target_key, HOLD_LOADING);
        h->epoch = lease->epoch;
        h->since_ms = lease->since_ms;
        h->asked_ms = g->asked_ms;
        log_info("task", "target taken", KS("target", h->key), KU("epoch", h->epoch));
        timer_set(&g->load_timer, 0);
    }
    h->beat_number = g->number;
    if (h->epoch == lease->epoch)
        holding_extend(h, g->asked_ms);
}

static void take_beat(struct group *g, const struct reg_beat *b)
{
    struct holding *h, *tmp;

    g->number++;
    for (size_t i = 0; i < b->n_leases; i++)
        take_lease(g, &b->leases[i]);
    HASH_ITER(hh, g->m->holdings, h, tmp)
        if (h->beat_number != g->number && h->state != HOLD_CLAIMING && h->asked_ms <= g->asked_ms && !h->releasing)
            lose(h);
    balance(g, b);
    metric_get(METRIC_GAUGE, "milvus_cdc_daemons", "living daemons that share the task registry", METRIC_LABELS({0}))
        ->value = b->daemons;
    timer_set(&g->lapse_timer, 0);
}

static void on_beat(void *arg, const struct err *err, const struct reg_beat *b)
{
    struct group *g = arg;
    uint64_t wait = g->m->d.lease_ms / 3;

    g->beating = false;
    if (err) {
        if (!g->silent)
            log_warn("task", "no sign of life reaches the task registry, trying again", KS("error", err->text));
        g->silent = true;
        timer_set(&g->beat_timer, BEAT_RETRY_MS);
        return;
    }
    g->silent = false;
    take_beat(g, b);
    if (b->next_expiry_ms >= 0 && (uint64_t)b->next_expiry_ms + BEAT_SOON_MS < wait)
        wait = (uint64_t)b->next_expiry_ms + BEAT_SOON_MS;
    timer_set(&g->beat_timer, g->again ? BEAT_SOON_MS : wait);
    g->again = false;
}

static void beat(struct group *g)
{
    struct manager *m = g->m;

    g->again = g->beating;
    if (g->beating || g->left)
        return;
    g->beating = true;
    g->asked_ms = clock_boot_ms();
    m->d.registry->ops->beat(m->d.registry, m->d.daemon_id, m->d.lease_ms, !m->stop, on_beat, g);
}

static void on_beat_timer(void *arg)
{
    beat(arg);
}

void group_beat_soon(struct manager *m)
{
    struct group *g = &m->group;

    if (g->m && !g->left)
        timer_set(&g->beat_timer, BEAT_SOON_MS);
}

/* ---- what the others see of our tasks --------------------------------------------------------------------------------- */

static void on_told(void *arg, const struct err *err)
{
    struct mtask *t = arg;

    if (err)
        xfree(&t->told); /* again, a second later */
}

static void tell(struct mtask *t)
{
    struct manager *m = t->m;
    char text[TROUBLE_CHARS];

    health_trouble(t, text);
    if (!STAILQ_EMPTY(&t->ops) || t->state != TASK_RUNNING || (t->told && strcmp(text, t->told) == 0))
        return;
    set_text(&t->told, text);
    m->d.registry->ops->set_state(m->d.registry, t->id, TASK_RUNNING, text, m->d.daemon_id, holding_epoch(m, t->key),
                                  on_told, t);
}

static void on_tell_timer(void *arg)
{
    struct group *g = arg;

    for (struct mtask *t = g->m->tasks; t; t = t->hh.next)
        if (t->run)
            tell(t);
    timer_set(&g->tell_timer, TELL_MS);
}

/* ---- life --------------------------------------------------------------------------------------------------------------- */

static void on_refresh_timer(void *arg)
{
    struct group *g = arg;

    mirror_refresh(g->m, NULL, NULL, NULL);
}

/* For metrics and health; requests read for themselves. */
static void on_task_hint(void *arg, const char *task_id)
{
    struct manager *m = arg;

    (void)task_id;
    if (!timer_armed(&m->group.refresh_timer))
        timer_set(&m->group.refresh_timer, REFRESH_MS);
}

static void on_lease_hint(void *arg)
{
    on_task_hint(arg, NULL); /* owners */
    group_beat_soon(arg);
}

static void on_request(void *arg, const struct reg_request *q)
{
    remote_execute(arg, q);
}

void group_start(struct manager *m)
{
    struct group *g = &m->group;
    struct registry *r = m->d.registry;

    g->m = m;
    timer_init(&g->beat_timer, m->d.loop, LOOP_PRIO_HIGH, on_beat_timer, g);
    timer_init(&g->load_timer, m->d.loop, LOOP_PRIO_HIGH, on_load_timer, g);
    timer_init(&g->lapse_timer, m->d.loop, LOOP_PRIO_HIGH, on_lapse, g);
    timer_init(&g->tell_timer, m->d.loop, LOOP_PRIO_NORMAL, on_tell_timer, g);
    r->ops->watch(r, m->d.daemon_id, &(struct reg_watch){.on_task = on_task_hint, .on_lease = on_lease_hint, .on_request = on_request, .arg = m});
    timer_init(&g->refresh_timer, m->d.loop, LOOP_PRIO_NORMAL, on_refresh_timer, g);
    timer_set(&g->tell_timer, TELL_MS);
    beat(g);
}

static void on_left(void *arg, const struct err *err)
{
    struct group *g = arg;
    void (*done)(struct manager *) = g->left_done;

    if (err)
        log_warn("task", "leases not given back: they run out", KS("error", err->text));
    g->left_done = NULL;
    if (done)
        done(g->m);
}

void group_leave(struct manager *m, void (*done)(struct manager *m))
{
    struct group *g = &m->group;

    g->left = true;
    g->left_done = done;
    timer_cancel(&g->beat_timer);
    m->d.registry->ops->cancel(m->d.registry, g);
    m->d.registry->ops->leave(m->d.registry, m->d.daemon_id, on_left, g);
}

void group_free(struct manager *m)
{
    struct group *g = &m->group;

    if (!g->m)
        return;
    m->d.registry->ops->watch(m->d.registry, m->d.daemon_id, NULL);
    m->d.registry->ops->cancel(m->d.registry, g);
    timer_release(&g->beat_timer);
    timer_release(&g->load_timer);
    timer_release(&g->lapse_timer);
    timer_release(&g->tell_timer);
    timer_release(&g->refresh_timer);
}
