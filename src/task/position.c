/*
 * position.c - the answer of the position request, from running tasks or from stored records.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/base64.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "daemon/config.h"
#include "task/priv.h"

/* One request; tasks that do not run are loaded one after another. */
struct position_req {
    LIST_ENTRY(position_req) entry;
    struct manager *m;
    char *task_id; /* NULL or "": all */
    manager_position_fn done;
    void *arg;
    char **ids;
    size_t n, next;
    json_t *positions, *op_positions, *target_positions;
    struct store *store; /* being loaded from */
};

/* base64 of MsgPosition{channel_name 1, msgID 2, timestamp 4}: with the time it can be given back in create. */
static json_t *msg_position(const char *channel, const uint8_t *id, size_t id_len, uint64_t tt)
{
    struct pb_out out = {0};
    char *text;
    json_t *s;

    pb_out_str(&out, 1, channel);
    pb_out_bytes(&out, 2, id, id_len);
    pb_out_u64(&out, 4, tt);
    text = base64_encode(out.data, out.len);
    s = json_string(text);
    free(text);
    pb_out_release(&out);
    return s;
}

static void add(json_t *list, int64_t coll, const char *channel, uint64_t tt, json_t *take_id)
{
    json_array_append_new(list, json_pack("{s:I, s:s, s:I, s:I, s:o}", "collection_id", (json_int_t)coll, "channel_name",
                                          channel, "time", (json_int_t)tt_to_ms(tt), "tt", (json_int_t)tt, "msg_id",
                                          take_id));
}

static void on_progress(void *arg, const struct repl_progress *p)
{
    struct position_req *r = arg;
    const struct wal_port_ops *ops = r->m->d.wal->ops;
    uint8_t id[WAL_ID_MAX], *raw;
    size_t len = ops->id_encode(p->pos, id);

    add(r->positions, p->collection_id, p->src_channel, p->tt, msg_position(p->src_channel, id, len, p->tt));
    if (!wal_pos_is_none(p->op_pos)) {
        len = ops->id_encode(p->op_pos, id);
        add(r->op_positions, p->collection_id, p->src_channel, p->op_tt,
            msg_position(p->src_channel, id, len, p->op_tt));
    }
    if (p->target_pos && base64_decode(p->target_pos, &raw, &len) == 0) {
        add(r->target_positions, p->collection_id, p->dst_channel, p->tt,
            msg_position(p->dst_channel, raw, len, 0));
        free(raw);
    }
}

static json_t *null_when_empty(json_t *a)
{
    return json_array_size(a) ? a : json_null();
}

static void req_free(struct position_req *r)
{
    manager_cancel(r->m, r); /* the refresh */
    if (r->store) {
        r->store->ops->cancel(r->store, r);
        r->m->d.registry->ops->store_free(r->store);
    }
    for (size_t i = 0; i < r->n; i++)
        free(r->ids[i]);
    free(r->ids);
    json_decref(r->positions);
    json_decref(r->op_positions);
    json_decref(r->target_positions);
    free(r->task_id);
    LIST_REMOVE(r, entry);
    free(r);
}

static void req_end(struct position_req *r, const struct err *err)
{
    json_t *data = json_pack("{s:O, s:O, s:O}", "positions", null_when_empty(r->positions), "op_positions",
                             null_when_empty(r->op_positions), "target_positions", null_when_empty(r->target_positions));

    if (r->done)
        r->done(r->arg, err, err ? NULL : data);
    json_decref(data);
    req_free(r);
}

static void req_step(struct position_req *r);

static void on_loaded(void *arg, const struct err *err, const struct repl_ckpt *ckpts, size_t n_ckpts,
                      const struct repl_collection_rec *colls, size_t n_colls)
{
    struct position_req *r = arg;
    struct store *s = r->store;

    r->store = NULL;
    if (!err)
        repl_stored_progress(ckpts, n_ckpts, colls, n_colls, r->m->d.config->replicate_chan, on_progress, r);
    loop_defer(r->m->d.loop, (loop_fn)r->m->d.registry->ops->store_free, s);
    if (err)
        req_end(r, err);
    else
        req_step(r);
}

static void req_step(struct position_req *r)
{
    struct registry *reg = r->m->d.registry;
    struct mtask *t;

    while (r->next < r->n) {
        const char *id = r->ids[r->next++];
        HASH_FIND_STR(r->m->tasks, id, t);
        if (!t)
            continue;
        if (t->run) {
            repl_task_progress(t->run, on_progress, r);
            continue;
        }
        r->store = reg->ops->store_open(reg, id, r->m->d.daemon_id, 0);
        r->store->ops->load(r->store, id, on_loaded, r);
        return;
    }
    req_end(r, NULL);
}

static void on_refreshed(void *arg, const struct err *err)
{
    struct position_req *r = arg;
    size_t n;
    const char *const *ids;

    if (err) {
        req_end(r, err);
        return;
    }
    ids = manager_task_ids(r->m, &n);
    r->ids = xcalloc(n ? n : 1, sizeof(*r->ids));
    for (size_t i = 0; i < n; i++)
        if (!r->task_id || !*r->task_id || strcmp(r->task_id, ids[i]) == 0)
            r->ids[r->n++] = xstrdup(ids[i]);
    req_step(r);
}

void manager_positions(struct manager *m, const char *task_id, manager_position_fn done, void *arg)
{
    struct position_req *r = xcalloc(1, sizeof(*r));

    r->m = m;
    r->task_id = xstrdup(task_id);
    r->done = done;
    r->arg = arg;
    r->positions = json_array();
    r->op_positions = json_array();
    r->target_positions = json_array();
    LIST_INSERT_HEAD(&m->position_reqs, r, entry);
    manager_refresh(m, task_id && *task_id ? task_id : NULL, on_refreshed, r);
}

void position_cancel(struct manager *m, void *arg)
{
    struct position_req *r;

    LIST_FOREACH(r, &m->position_reqs, entry)
        if (r->arg == arg)
            r->done = NULL;
}

void positions_free(struct manager *m)
{
    while (!LIST_EMPTY(&m->position_reqs))
        req_free(LIST_FIRST(&m->position_reqs));
}
