/*
 * manager.h - all tasks of this daemon: life cycle over the registry, one runtime (repl/task) per running task.
 *
 * What the HTTP API calls.  Answers of asynchronous calls come once, never from inside the call.
 */
#ifndef TASK_MANAGER_H
#define TASK_MANAGER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>

#include "registry/registry.h"

struct catalog;
struct config;
struct err;
struct loop;
struct manager;
struct task_spec;

struct manager_deps {
    struct loop *loop;
    const struct config *config;
    struct registry *registry;
    struct catalog *catalog;
    struct wal_port *wal;
    struct rows_port *rows; /* NULL: the source's API is not known */
    const char *daemon_id; /* lease owner: unique to this process where the registry is shared */
    uint64_t lease_ms;     /* of a shared registry */
};

struct manager *manager_new(const struct manager_deps *d);
/* Loads the tasks and starts the running ones. ready() once loaded; err: the registry cannot be read. */
void manager_start(struct manager *m, reg_done_fn ready, void *arg);
/* Stops reading, lets writes in flight finish (bounded), stores checkpoints, then done. */
void manager_stop(struct manager *m, void (*done)(void *arg), void *arg);
void manager_free(struct manager *m);

/* err->code of a failed answer decides the API code: ERR_INVALID, ERR_NOT_FOUND, ERR_EXISTS, ERR_STATE,
 * ERR_UNSUPPORTED: 400; else 500. */
typedef void (*manager_fn)(void *arg, const struct err *err);

/* Takes spec (also on failure). Checks the known id (answers success at once without comparing), overlaps with tasks of
 * the same target, maxTaskNum, then probes the target, stores, starts. On success spec->task_id was stored as the id. */
void manager_create(struct manager *m, struct task_spec *spec, manager_fn done, void *arg);
void manager_pause(struct manager *m, const char *task_id, manager_fn done, void *arg);
void manager_resume(struct manager *m, const char *task_id, manager_fn done, void *arg);
/* The same; messages that the queue has no longer (LOST in the reason) are given up. */
void manager_resume_over_gap(struct manager *m, const char *task_id, manager_fn done, void *arg);
/* Begins to compare source and target, or cancels that. request: its request_data, JSON, as the API has checked it. The
 * result is in the task's object. ERR_STATE: the task is not running, or is being compared. */
void manager_verify(struct manager *m, const char *task_id, const char *request, manager_fn done, void *arg);
/* ERR_NOT_FOUND for an unknown id. */
void manager_delete(struct manager *m, const char *task_id, manager_fn done, void *arg);
/* Drops the callbacks of calls made with arg (the client went away; the work goes on). */
void manager_cancel(struct manager *m, void *arg);

/* Reads the record of a task (NULL: all) before it is shown, when other daemons may have changed it; ready at once with
 * an embedded registry. */
void manager_refresh(struct manager *m, const char *task_id, manager_fn done, void *arg);
/* A task object as get and list answer it (secrets masked), or NULL: unknown. New reference. */
json_t *manager_task_json(struct manager *m, const char *task_id);
/* The same as get answers it: refreshed, and with what only the stored records know of a task that does not run here. task
 * NULL without err: unknown. */
typedef void (*manager_get_fn)(void *arg, const struct err *err, json_t *task /* borrowed */);
void manager_get(struct manager *m, const char *task_id, manager_get_fn done, void *arg);
/* Adds to it what the task's selection takes of the source's collections just now: "matches" (the first max of them) and
 * "matches_total". Nothing while the source's metadata is not known. */
void manager_add_matches(struct manager *m, const char *task_id, size_t max, json_t *task);
/* Ids in order; *ret_n entries, borrowed until the next call into the manager. */
const char *const *manager_task_ids(struct manager *m, size_t *ret_n);

/* The answer of position: {"positions":..,"op_positions":..,"target_positions":..}; task_id NULL or "": of all tasks. */
typedef void (*manager_position_fn)(void *arg, const struct err *err, json_t *data /* borrowed */);
void manager_positions(struct manager *m, const char *task_id, manager_position_fn done, void *arg);

/* Why the registry cannot be reached, or NULL. */
const char *manager_registry_trouble(struct manager *m);
/* Updates the gauges (task counts and states) before a scrape. */
void manager_update_metrics(struct manager *m);
/* NULL: the registry is reachable and tasks are loaded; else why not ready. */
const char *manager_not_ready(struct manager *m);
#endif
