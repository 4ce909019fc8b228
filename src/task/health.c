#include "task/health.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "task/priv.h"
#include "task/text.h"

#define FREE_LIMIT_MS 15000 /* longer than it takes to hand a task over */

enum { MAX_NAMED = 3, WHY_CHARS = 400 }; /* problems that the line names */

struct verdict {
    enum health worst;
    char *problems; /* "a; b", NULL: none */
    unsigned n_problems, total, running, paused;
    uint64_t max_lag_ms;
    bool has_lag;
};

const char *health_name(enum health h)
{
    static const char *const names[] = {"ok", "warning", "critical", "unknown"};

    return names[h];
}

static void add_problem(struct verdict *v, enum health h, const char *text)
{
    char *more;

    if (h > v->worst)
        v->worst = h;
    if (++v->n_problems > MAX_NAMED)
        return;
    more = v->problems ? xasprintf("%s; %s", v->problems, text) : xstrdup(text);
    free(v->problems);
    v->problems = more;
}

/* NULL: nobody. */
static const char *owner(const struct mtask *t)
{
    if (holding_epoch(t->m, t->key))
        return t->m->d.daemon_id;
    return t->owner && *t->owner ? t->owner : NULL;
}

void health_trouble(const struct mtask *t, char ret[TROUBLE_CHARS])
{
    const char *trouble = repl_task_trouble(t->run);
    struct repl_health h;

    repl_task_health(t->run, clock_mono_ms(), &h);
    snprintf(ret, TROUBLE_CHARS, "%s%s%s%s", h.stalled_since_ms ? REASON_STALLED : "", h.stalled_since_ms ? h.stalled : "",
             h.stalled_since_ms && trouble ? ": " : "", trouble ? trouble : "");
}

/* Of a task that another daemon should run: what its record says. Its lag is judged there. */
static enum health judge_elsewhere(const struct mtask *t, char *why)
{
    uint64_t free_ms = t->free_since_ms ? clock_mono_ms() - t->free_since_ms : 0;

    if (owner(t)) {
        snprintf(why, WHY_CHARS, "%s", t->reason);
        if (strncmp(why, REASON_STALLED, strlen(REASON_STALLED)) == 0)
            return HEALTH_CRITICAL;
        return *why ? HEALTH_WARNING : HEALTH_OK;
    }
    snprintf(why, WHY_CHARS, "no owner: no daemon has run it for %" PRIu64 " s", free_ms / 1000);
    return free_ms > FREE_LIMIT_MS ? HEALTH_CRITICAL : HEALTH_WARNING;
}

static enum health judge_paused(const struct mtask *t, bool asked, char *why)
{
    bool by_hand = strcmp(t->reason, REASON_MANUAL) == 0 || strcmp(t->reason, REASON_NO_AUTO_START) == 0;

    snprintf(why, WHY_CHARS, "paused by %s%s", by_hand ? "hand" : "an error: ", by_hand ? "" : t->reason);
    if (!by_hand)
        return HEALTH_CRITICAL;
    return asked ? HEALTH_WARNING : HEALTH_OK;
}

static enum health judge_stalled(const struct mtask *t, const struct repl_health *h, uint64_t now_ms, char *why)
{
    const char *trouble = repl_task_trouble(t->run);

    snprintf(why, WHY_CHARS, "stalled for %" PRIu64 " s at %s%s%s", (now_ms - h->stalled_since_ms) / 1000, h->stalled,
             trouble ? ": " : "", trouble ? trouble : "");
    return HEALTH_CRITICAL;
}

/* Adds the numbers to o. */
static enum health judge_running(const struct mtask *t, uint64_t max_lag_ms, json_t *o, struct verdict *v, char *why)
{
    uint64_t now_ms = clock_mono_ms(), wall_ms = clock_wall_ms(), lag_ms = 0;
    struct repl_health h;
    const char *trouble;

    if (!t->run && !STAILQ_EMPTY(&t->ops))
        return HEALTH_OK; /* is starting */
    if (!t->run && t->m->d.registry->shared)
        return judge_elsewhere(t, why);
    if (!t->run) {
        snprintf(why, WHY_CHARS, "does not run: see the log");
        return HEALTH_CRITICAL;
    }
    repl_task_health(t->run, now_ms, &h);
    if (h.confirmed_ms) {
        lag_ms = wall_ms > h.confirmed_ms ? wall_ms - h.confirmed_ms : 0;
        json_object_set_new(o, "lag_ms", json_integer((json_int_t)lag_ms));
        v->has_lag = true;
        if (lag_ms > v->max_lag_ms)
            v->max_lag_ms = lag_ms;
    }
    json_object_set_new(o, "stalled", json_boolean(h.stalled_since_ms != 0));
    if (h.stalled_since_ms)
        json_object_set_new(o, "stalled_ms", json_integer((json_int_t)(now_ms - h.stalled_since_ms)));
    if (h.silent_since_ms)
        json_object_set_new(o, "silent_ms", json_integer((json_int_t)(now_ms - h.silent_since_ms)));
    trouble = repl_task_trouble(t->run);
    if (h.stalled_since_ms)
        return judge_stalled(t, &h, now_ms, why);
    if (lag_ms > max_lag_ms) {
        snprintf(why, WHY_CHARS, "lag %.1f s is above %.1f s%s%s", (double)lag_ms / 1000, (double)max_lag_ms / 1000,
                 trouble ? ": " : "", trouble ? trouble : "");
        return HEALTH_CRITICAL;
    }
    if (trouble)
        snprintf(why, WHY_CHARS, "%s", trouble);
    else if (h.silent_since_ms)
        snprintf(why, WHY_CHARS, "the source shows no ticks for %" PRIu64 " s: is it down?",
                 (now_ms - h.silent_since_ms) / 1000);
    return *why ? HEALTH_WARNING : HEALTH_OK;
}

static json_t *task_health(const struct mtask *t, bool asked, uint64_t max_lag_ms, struct verdict *v)
{
    json_t *o = json_pack("{s:s, s:s}", "task_id", t->id, "state", manager_state_name(t->state));
    enum health h = HEALTH_OK;
    char why[WHY_CHARS] = "";

    v->total++;
    v->running += t->state == TASK_RUNNING;
    v->paused += t->state == TASK_PAUSED;
    if (t->state == TASK_PAUSED)
        h = judge_paused(t, asked, why);
    else if (t->state == TASK_RUNNING)
        h = judge_running(t, max_lag_ms, o, v, why);
    json_object_set_new(o, "status", json_string(health_name(h)));
    if (*why)
        json_object_set_new(o, "why", text_json(why));
    if (*t->reason)
        json_object_set_new(o, "reason", text_json(t->reason));
    if (owner(t))
        json_object_set_new(o, "owner", text_json(owner(t)));
    if (h) {
        char *text = xasprintf("task %s %s", t->id, why);
        add_problem(v, h, text);
        free(text);
    }
    return o;
}

/* A line: no control characters, and no '|', which begins the numbers. */
static void one_line(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == '|' || *text == 0x7f)
            *text = ' ';
}

static char *summary(struct verdict *v, uint64_t limit_ms)
{
    static const char *const heads[] = {"OK", "WARNING", "CRITICAL", "UNKNOWN"};
    char more[40] = "", lag[60] = "", *text;

    if (v->n_problems > MAX_NAMED)
        snprintf(more, sizeof(more), " and %u more", v->n_problems - MAX_NAMED);
    if (v->has_lag)
        snprintf(lag, sizeof(lag), ", lag %.1f s", (double)v->max_lag_ms / 1000);
    if (v->problems)
        one_line(v->problems);
    text = xasprintf("%s: %s%s%s%u tasks, %u running, %u paused%s | lag=%.3fs;;%.3f;0 running=%u paused=%u",
                     heads[v->worst], v->problems ? v->problems : "", more, v->problems ? "; " : "", v->total, v->running,
                     v->paused, lag, (double)v->max_lag_ms / 1000, (double)limit_ms / 1000, v->running, v->paused);
    free(v->problems);
    return text;
}

static json_t *registry_health(struct manager *m, struct verdict *v)
{
    const char *why = manager_not_ready(m);
    const char *away = m->d.registry->ops->trouble(m->d.registry);
    char *text;

    if (!why)
        return json_pack("{s:b}", "reachable", 1);
    text = xasprintf("%s%s", away ? "registry: " : "", why);
    add_problem(v, HEALTH_CRITICAL, text);
    free(text);
    return json_pack("{s:b, s:o}", "reachable", away == NULL, "reason", text_json(why));
}

json_t *manager_health(struct manager *m, const char *task_id, uint64_t max_lag_ms, enum health *ret)
{
    struct verdict v = {0};
    json_t *registry = registry_health(m, &v), *tasks = json_array(), *o;
    char *text;

    for (struct mtask *t = m->tasks; t; t = t->hh.next)
        if (manager_task_shown(t) && (!task_id || strcmp(task_id, t->id) == 0))
            json_array_append_new(tasks, task_health(t, task_id != NULL, max_lag_ms, &v));
    if (task_id && v.total == 0 && m->loaded) {
        text = xasprintf("there is no task %.64s", task_id);
        add_problem(&v, HEALTH_UNKNOWN, text);
        free(text);
    }
    *ret = v.worst;
    text = summary(&v, max_lag_ms);
    o = json_pack("{s:s, s:i, s:o, s:I, s:o, s:o}", "status", health_name(v.worst), "code", (int)v.worst, "text",
                  text_json(text), "max_lag_ms", (json_int_t)max_lag_ms, "registry", registry, "tasks", tasks);
    free(text);
    return o;
}
