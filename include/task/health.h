/*
 * health.h - the state of all tasks in one verdict, for probes (GET /health).
 *
 * Thread  loop thread only.
 */
#ifndef TASK_HEALTH_H
#define TASK_HEALTH_H
#include <stdint.h>
#include <jansson.h>

struct manager;

/* Values are the exit codes of probes (Nagios). */
enum health { HEALTH_OK = 0, HEALTH_WARNING = 1, HEALTH_CRITICAL = 2, HEALTH_UNKNOWN = 3 };

const char *health_name(enum health h); /* "ok", "warning", ... */

/*
 * Facts and verdict: {"status", "code", "text" (one line for people), "max_lag_ms", "registry": {"reachable", "reason"},
 * "tasks": [{"task_id", "state", "status", "why", "reason", "owner", "lag_ms", "stalled", "stalled_ms", "silent_ms"}]};
 * keys without a value are left out. New reference.
 *
 *   critical  stalled (the source moves, the task does not), lag above max_lag_ms (of tasks that run here), paused by an
 *             error, LOST, not running, no owner; registry away; tasks not loaded
 *   warning   a running task has trouble that it works on; the source shows no ticks; with task_id: paused by a person
 *   unknown   task_id is not a task
 *
 * task_id NULL: all tasks.
 */
json_t *manager_health(struct manager *m, const char *task_id, uint64_t max_lag_ms, enum health *ret);
#endif
