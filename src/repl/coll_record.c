/*
 * coll_record.c - a collection as the store keeps it: JSON with its names, where each shard joined, what it is paired
 * with on the target, and how far a drop is.
 */
#include "repl/priv.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static json_t *u64_json(uint64_t v)
{
    return json_integer((json_int_t)v); /* the bit pattern; read back the same way */
}

static uint64_t json_u64(const json_t *o, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(o, key));
}

static json_t *pos_json(struct wal_pos p)
{
    return json_pack("[I,I]", (json_int_t)p.major, (json_int_t)p.minor);
}

static struct wal_pos json_pos(const json_t *o, const char *key)
{
    const json_t *a = json_object_get(o, key);

    return (struct wal_pos){(uint64_t)json_integer_value(json_array_get(a, 0)),
                            (uint64_t)json_integer_value(json_array_get(a, 1))};
}

static json_t *shard_json(const struct shard *sh)
{
    json_t *o = json_pack("{s:s, s:s, s:o, s:o, s:o, s:b, s:o}", "vchannel", sh->vchannel, "pchannel", sh->pchannel,
                          "from", pos_json(sh->from), "join", pos_json(sh->join), "skip_tt", u64_json(sh->skip_tt),
                          "dropped", sh->drop == SHARD_DROP_SENT, "drop_tt", u64_json(sh->drop_tt));

    if (sh->dst_vchannel) {
        json_object_set_new(o, "dst_vchannel", json_string(sh->dst_vchannel));
        json_object_set_new(o, "dst_pchannel", json_string(sh->dst_pchannel));
    }
    return o;
}

static json_t *part_json(const struct coll *c, const struct part *p)
{
    json_t *o = json_pack("{s:o, s:s, s:o, s:o}", "id", u64_json((uint64_t)p->id), "name", p->name, "dst_id",
                          u64_json((uint64_t)p->dst_id), "drop_tt", u64_json(p->drop_tt));
    json_t *dropped = json_array();

    for (size_t i = 0; p->dropping && i < c->n_shards; i++)
        json_array_append_new(dropped, json_boolean(p->shards[i] == SHARD_DROP_SENT));
    json_object_set_new(o, "dropped", dropped);
    return o;
}

void coll_put(struct coll *c, struct store_batch *b)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:b, s:s, s:b}", "db", c->db, "name", c->name, "dst_db",
                          c->dst_db, "dst_name", c->dst_name, "dst_id", u64_json((uint64_t)c->dst_id), "create_tt",
                          u64_json(c->create_tt), "pk_field", u64_json((uint64_t)c->pk_field_id), "pk_string",
                          c->pk_is_string, "pk_name", c->pk_name, "partition_key", c->partition_key);
    json_t *shards = json_array(), *parts = json_array();
    char *text;

    for (size_t i = 0; i < c->n_shards; i++)
        json_array_append_new(shards, shard_json(&c->shards[i]));
    for (size_t i = 0; i < c->n_parts; i++)
        json_array_append_new(parts, part_json(c, c->parts[i]));
    json_object_set_new(o, "shards", shards);
    json_object_set_new(o, "partitions", parts);
    if (c->copy)
        json_object_set_new(o, "copy", copy_json(c));
    if (meta_record(c))
        json_object_set_new(o, "meta", json_string(meta_record(c)));
    coll_rename_put(c, o);
    if (c->equal_keys)
        json_object_set_new(o, "equal_keys", json_true());
    text = json_dumps(o, JSON_COMPACT);
    c->task->o.store->ops->put_collection(b, c->id, text);
    free(text);
    json_decref(o);
}

void coll_save(struct coll *c)
{
    struct store *s = c->task->o.store;
    struct store_batch *b;

    if (c->state == COLL_GONE)
        return;
    b = s->ops->begin(s, c->task->o.id);
    coll_put(c, b);
    s->ops->commit(b, NULL, NULL);
}

static bool has_ckpt(const struct repl_task *t, const char *src, const char *dst)
{
    for (size_t i = 0; dst && i < t->n_loaded; i++)
        if (strcmp(t->loaded[i].src_channel, src) == 0 && strcmp(t->loaded[i].dst_channel, dst) == 0)
            return true;
    return false;
}

static void shard_from_json(struct coll *c, struct shard *sh, const json_t *o)
{
    sh->vchannel = xstrdup(json_string_value(json_object_get(o, "vchannel")));
    sh->pchannel = xstrdup(json_string_value(json_object_get(o, "pchannel")));
    sh->dst_vchannel = xstrdup(json_string_value(json_object_get(o, "dst_vchannel")));
    sh->dst_pchannel = xstrdup(json_string_value(json_object_get(o, "dst_pchannel")));
    sh->from = json_pos(o, "from");
    sh->join = json_pos(o, "join");
    sh->skip_tt = json_u64(o, "skip_tt");
    sh->drop = json_is_true(json_object_get(o, "dropped")) ? SHARD_DROP_SENT : SHARD_ALIVE;
    sh->drop_tt = json_u64(o, "drop_tt");
    sh->stream = task_stream(c->task, sh->pchannel);
    sh->linked_before = has_ckpt(c->task, sh->pchannel, sh->dst_pchannel);
}

static void part_from_json(struct coll *c, const json_t *o)
{
    struct part *p = coll_part_new(c, (int64_t)json_u64(o, "id"), json_string_value(json_object_get(o, "name")));
    const json_t *dropped = json_object_get(o, "dropped");

    p->dst_id = (int64_t)json_u64(o, "dst_id");
    p->drop_tt = json_u64(o, "drop_tt");
    p->dropping = json_array_size(dropped) > 0;
    for (size_t i = 0; i < json_array_size(dropped) && i < c->n_shards; i++)
        p->shards[i] = json_is_true(json_array_get(dropped, i)) ? SHARD_DROP_SENT : SHARD_ALIVE;
    if (p->dropping)
        c->task->drops_open++;
}

struct coll *coll_from_record(struct repl_task *t, const struct repl_collection_rec *rec, struct err *err)
{
    json_t *o = json_loads(rec->json, 0, NULL);
    const json_t *shards = json_object_get(o, "shards"), *parts = json_object_get(o, "partitions");
    static const char *const keys[] = {"db", "name", "dst_db", "dst_name"};
    const char *names[4];
    struct coll *c;
    size_t i;
    json_t *e;

    for (i = 0; i < 4; i++)
        names[i] = json_string_value(json_object_get(o, keys[i]));
    if (!json_is_array(shards) || !names[0] || !names[1] || !names[2] || !names[3]) {
        json_decref(o);
        err_set(err, ERR_PROTO, ERRC_USER, "the registry's record of collection %lld cannot be read",
                (long long)rec->id);
        return NULL;
    }
    c = coll_alloc(t, rec->id, json_array_size(shards));
    coll_set_names(c, names[0], names[1], names[2], names[3], json_string_value(json_object_get(o, "pk_name")));
    c->dst_id = (int64_t)json_u64(o, "dst_id");
    c->create_tt = json_u64(o, "create_tt");
    c->pk_field_id = (int64_t)json_u64(o, "pk_field");
    c->pk_is_string = json_is_true(json_object_get(o, "pk_string"));
    c->partition_key = json_is_true(json_object_get(o, "partition_key"));
    c->equal_keys = json_is_true(json_object_get(o, "equal_keys"));
    c->state = COLL_MAPPING;
    c->may_exist = true; /* it may have been made just before the record could say so */
    json_array_foreach(shards, i, e)
        shard_from_json(c, &c->shards[i], e);
    json_array_foreach(parts, i, e)
        part_from_json(c, e);
    if (json_object_get(o, "copy"))
        copy_from_json(c, json_object_get(o, "copy"));
    if (json_is_string(json_object_get(o, "meta")))
        meta_from_record(c, json_string_value(json_object_get(o, "meta")));
    coll_rename_from_record(c, o);
    json_decref(o);
    return c;
}
