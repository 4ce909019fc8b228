/*
 * get.c - one task as get answers it. How far its copy of rows from before is, is known to the daemon that runs it; of a
 * task that runs elsewhere, is paused, or begins just now, the stored records tell.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/mem.h"
#include "task/priv.h"

struct get_req {
    LIST_ENTRY(get_req) entry;
    struct manager *m;
    char *task_id;
    manager_get_fn done; /* NULL: cancelled */
    void *arg;
    struct store *store; /* being loaded from */
};

void snapshot_json(json_t *task, const struct repl_copying *c)
{
    if (c->collections)
        json_object_set_new(task, "snapshot",
                            json_pack("{s:I, s:I, s:I, s:I}", "collections", (json_int_t)c->collections, "rows",
                                      (json_int_t)c->rows, "estimated_rows", (json_int_t)c->estimate, "rows_per_second",
                                      (json_int_t)c->rows_per_s));
}

static void add_note(void *arg, const struct repl_note *n)
{
    json_t *o = arg, *names = json_array();
    char *name = xasprintf("%s.%s", n->db, n->name);

    for (size_t i = 0; i < n->n_left_out; i++)
        json_array_append_new(names, json_string(n->left_out[i]));
    if (n->plain_keys)
        json_array_append_new(json_object_get(o, "plain_keys"), json_string(name));
    if (n->equal_keys)
        json_array_append_new(json_object_get(o, "equal_keys"), json_string(name));
    if (n->n_left_out)
        json_object_set(json_object_get(o, "left_out"), name, names);
    json_decref(names);
    free(name);
}

void notes_json(json_t *task, const struct repl_task *run)
{
    json_t *notes = json_pack("{s:[], s:[], s:{}}", "plain_keys", "equal_keys", "left_out"), *list;
    const char *key;

    repl_task_notes(run, add_note, notes);
    json_object_foreach(notes, key, list)
        if (json_array_size(list) || json_object_size(list))
            json_object_set(task, key, list);
    json_decref(notes);
}

static void req_free(struct get_req *r)
{
    struct registry *reg = r->m->d.registry;

    mirror_cancel(r->m, r); /* the refresh */
    if (r->store) {
        r->store->ops->cancel(r->store, r);
        loop_defer(r->m->d.loop, (loop_fn)reg->ops->store_free, r->store); /* we may be in its callback */
    }
    free(r->task_id);
    LIST_REMOVE(r, entry);
    free(r);
}

static void req_end(struct get_req *r, const struct err *err, const struct repl_copying *stored)
{
    json_t *task = err ? NULL : manager_task_json(r->m, r->task_id);

    if (task && stored)
        snapshot_json(task, stored);
    if (r->done)
        r->done(r->arg, err, task);
    json_decref(task);
    req_free(r);
}

static void on_loaded(void *arg, const struct err *err, const struct repl_ckpt *ckpts, size_t n_ckpts,
                      const struct repl_collection_rec *colls, size_t n_colls)
{
    struct repl_copying c;

    (void)ckpts;
    (void)n_ckpts;
    repl_stored_copying(colls, err ? 0 : n_colls, &c);
    req_end(arg, err, &c);
}

static void on_refreshed(void *arg, const struct err *err)
{
    struct get_req *r = arg;
    struct registry *reg = r->m->d.registry;
    const struct mtask *t = manager_find(r->m, r->task_id);
    struct repl_copying c;

    if (err || !t || !t->spec || t->spec->start != SPEC_SNAPSHOT || (t->run && repl_task_copying(t->run, &c))) {
        req_end(r, err, NULL);
        return;
    }
    r->store = reg->ops->store_open(reg, r->task_id, r->m->d.daemon_id, 0);
    r->store->ops->load(r->store, r->task_id, on_loaded, r);
}

void manager_get(struct manager *m, const char *task_id, manager_get_fn done, void *arg)
{
    struct get_req *r = xcalloc(1, sizeof(*r));

    r->m = m;
    r->task_id = xstrdup(task_id);
    r->done = done;
    r->arg = arg;
    LIST_INSERT_HEAD(&m->get_reqs, r, entry);
    manager_refresh(m, task_id, on_refreshed, r);
}

void get_cancel(struct manager *m, void *arg)
{
    struct get_req *r;

    LIST_FOREACH(r, &m->get_reqs, entry)
        if (r->arg == arg)
            r->done = NULL;
}

void gets_free(struct manager *m)
{
    while (!LIST_EMPTY(&m->get_reqs))
        req_free(LIST_FIRST(&m->get_reqs));
}
