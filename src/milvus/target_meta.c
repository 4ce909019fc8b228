/*
 * target_meta.c - changes of indexes, load states, aliases and properties of a collection of the target.
 *
 * An alias: AlterAlias --absent--> CreateAlias.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <stdlib.h>
#include <string.h>

struct change {
    struct sink_call call;
    sink_done_fn done;
    void *arg;
    enum sink_change_kind kind;
    char *db, *collection, *field, *name;
    Pb__KeyValuePair *pairs, **pair_list;
    size_t n_pairs;
    char **names;
    size_t n_names;
    unsigned replicas;
};

static struct change *change_of(struct sink_call *c)
{
    return container_of(c, struct change, call);
}

static void change_release(struct sink_call *c)
{
    struct change *ch = change_of(c);

    for (size_t i = 0; i < ch->n_pairs; i++) {
        free(ch->pairs[i].key);
        free(ch->pairs[i].value);
    }
    free(ch->pairs);
    free(ch->pair_list);
    target_names_free(ch->names, ch->n_names);
    free(ch->db);
    free(ch->collection);
    free(ch->field);
    free(ch->name);
    free(ch);
}

static void change_done(struct sink_call *c, const struct err *err)
{
    struct change *ch = change_of(c);

    call_end(c);
    ch->done(ch->arg, err);
}

static void on_changed(struct sink_call *c, const struct answer *a);

static void left_out(const struct sink_call *c, const char *instead, const struct err *err)
{
    log_warn("target", "the target does not offer what the source has set up", KS("target", c->target->address),
             KS("operation", c->method), KS("collection", c->object), KS("instead", instead), KS("error", err->text));
}

static void send_index(struct change *ch, Pb__MsgBase *base)
{
    Pb__CreateIndexRequest create = PB__CREATE_INDEX_REQUEST__INIT;
    Pb__DropIndexRequest drop = PB__DROP_INDEX_REQUEST__INIT;

    create.msg_base = drop.msg_base = base;
    create.db_name = drop.db_name = ch->db;
    create.collection_name = drop.collection_name = ch->collection;
    create.field_name = drop.field_name = ch->field;
    create.index_name = drop.index_name = ch->name;
    create.extra_params = ch->pair_list;
    create.n_extra_params = ch->n_pairs;
    if (ch->kind == SINK_CREATE_INDEX)
        call_send(&ch->call, "CreateIndex", ANSWER_STATUS, ch->db, &create.base, on_changed);
    else
        call_send(&ch->call, "DropIndex", ANSWER_STATUS, ch->db, &drop.base, on_changed);
}

static void send_load(struct change *ch, Pb__MsgBase *base)
{
    Pb__LoadCollectionRequest req = PB__LOAD_COLLECTION_REQUEST__INIT;

    req.msg_base = base;
    req.db_name = ch->db;
    req.collection_name = ch->collection;
    if (ch->kind == SINK_LOAD)
        req.replica_number = (int32_t)ch->replicas;
    call_send(&ch->call, ch->kind == SINK_LOAD ? "LoadCollection" : "ReleaseCollection", ANSWER_STATUS, ch->db,
              &req.base, on_changed);
}

static void send_partitions(struct change *ch, Pb__MsgBase *base)
{
    Pb__PartitionsRequest req = PB__PARTITIONS_REQUEST__INIT;
    bool on = ch->kind == SINK_LOAD_PARTITIONS;

    req.msg_base = base;
    req.db_name = ch->db;
    req.collection_name = ch->collection;
    req.partition_names = ch->names;
    req.n_partition_names = ch->n_names;
    if (on)
        req.replica_number = (int32_t)ch->replicas;
    call_send(&ch->call, on ? "LoadPartitions" : "ReleasePartitions", ANSWER_STATUS, ch->db, &req.base, on_changed);
}

static void send_alias(struct change *ch, const char *method, Pb__MsgBase *base)
{
    Pb__AliasRequest req = PB__ALIAS_REQUEST__INIT;

    req.msg_base = base;
    req.db_name = ch->db;
    req.collection_name = ch->collection;
    req.alias = ch->name;
    call_send(&ch->call, method, ANSWER_STATUS, ch->db, &req.base, on_changed);
}

static void send_drop_alias(struct change *ch, Pb__MsgBase *base)
{
    Pb__DropAliasRequest req = PB__DROP_ALIAS_REQUEST__INIT;

    req.msg_base = base;
    req.db_name = ch->db;
    req.alias = ch->name;
    call_send(&ch->call, "DropAlias", ANSWER_STATUS, ch->db, &req.base, on_changed);
}

static void send_properties(struct change *ch, Pb__MsgBase *base)
{
    Pb__AlterCollectionRequest req = PB__ALTER_COLLECTION_REQUEST__INIT;

    req.msg_base = base;
    req.db_name = ch->db;
    req.collection_name = ch->collection;
    req.properties = ch->pair_list;
    req.n_properties = ch->n_pairs;
    req.delete_keys = ch->names;
    req.n_delete_keys = ch->n_names;
    call_send(&ch->call, "AlterCollection", ANSWER_STATUS, ch->db, &req.base, on_changed);
}

static void change_send(struct change *ch)
{
    struct replicate_base base;
    Pb__MsgBase *b = replicate_base_init(&base, ch->call.target, tt_from_ms(clock_wall_ms()));

    switch (ch->kind) {
    case SINK_CREATE_INDEX:
    case SINK_DROP_INDEX:
        send_index(ch, b);
        break;
    case SINK_LOAD:
    case SINK_RELEASE:
        send_load(ch, b);
        break;
    case SINK_LOAD_PARTITIONS:
    case SINK_RELEASE_PARTITIONS:
        send_partitions(ch, b);
        break;
    case SINK_ALIAS:
        send_alias(ch, "AlterAlias", b);
        break;
    case SINK_DROP_ALIAS:
        send_drop_alias(ch, b);
        break;
    case SINK_SET_PROPERTIES:
    case SINK_DROP_PROPERTIES:
        send_properties(ch, b);
        break;
    }
}

static bool is_load(const struct change *ch)
{
    return ch->kind == SINK_LOAD || ch->kind == SINK_LOAD_PARTITIONS;
}

/* Is it so already? */
static bool is_so(const struct change *ch, const struct answer *a)
{
    if (!a->milvus_code)
        return false;
    switch (ch->kind) {
    case SINK_CREATE_INDEX:
        return a->milvus_code == MERR_LITE_INDEX_EXISTS;
    case SINK_DROP_INDEX:
        return a->err.code == ERR_NOT_FOUND;
    case SINK_DROP_ALIAS:
        return a->milvus_code == MERR_ALIAS_NOT_FOUND || a->err.code == ERR_NOT_FOUND;
    case SINK_LOAD:
    case SINK_LOAD_PARTITIONS: /* by a user of the target */
        return strstr(a->err.text, "can't change the replica number") != NULL;
    default:
        return false;
    }
}

/* Another request in the place of one that was refused. False: there is none. */
static bool change_otherwise(struct change *ch, const struct answer *a)
{
    struct replicate_base base;

    if (ch->kind == SINK_ALIAS && strcmp(ch->call.method, "AlterAlias") == 0 && a->milvus_code &&
        (a->milvus_code == MERR_ALIAS_NOT_FOUND || a->err.code == ERR_NOT_FOUND || strstr(a->err.text, "not found"))) {
        send_alias(ch, "CreateAlias", replicate_base_init(&base, ch->call.target, tt_from_ms(clock_wall_ms())));
        return true;
    }
    if (ch->kind == SINK_LOAD_PARTITIONS && a->err.code == ERR_UNSUPPORTED) {
        left_out(&ch->call, "the whole collection is loaded", &a->err);
        ch->kind = SINK_LOAD;
    } else if (is_load(ch) && ch->replicas > 1 && a->milvus_code) {
        left_out(&ch->call, "one replica is loaded", &a->err);
        ch->replicas = 1;
    } else {
        return false;
    }
    change_send(ch);
    return true;
}

static void on_changed(struct sink_call *c, const struct answer *a)
{
    struct change *ch = change_of(c);
    struct answer ans = *a;

    if (a->ok || is_so(ch, a)) {
        change_done(c, NULL);
        return;
    }
    if (change_otherwise(ch, a))
        return;
    if (a->err.code == ERR_UNSUPPORTED) {
        left_out(c, "", &a->err);
        change_done(c, NULL);
        return;
    }
    if (ch->kind == SINK_CREATE_INDEX)
        target_sharpen_index(&ans);
    if (ans.err.code == ERR_NOT_FOUND || strstr(ans.err.text, "partition not found"))
        ans.err.cls = ERRC_RETRY; /* a partition that is being made; a collection is looked for again */
    change_done(c, &ans.err);
}

static void take_change(struct change *ch, const struct sink_change *from)
{
    ch->kind = from->kind;
    ch->db = xstrdup(from->db);
    ch->collection = xstrdup(from->collection);
    ch->field = xstrdup(from->field ? from->field : "");
    ch->name = xstrdup(from->name ? from->name : "");
    ch->names = target_names_dup(from->names, from->n_names);
    ch->n_names = from->n_names;
    ch->replicas = from->replicas ? from->replicas : 1;
    ch->n_pairs = from->n_pairs;
    ch->pairs = xcalloc(from->n_pairs + 1, sizeof(*ch->pairs));
    ch->pair_list = xcalloc(from->n_pairs + 1, sizeof(*ch->pair_list));
    for (size_t i = 0; i < from->n_pairs; i++) {
        pb__key_value_pair__init(&ch->pairs[i]);
        ch->pairs[i].key = xstrdup(from->pairs[i].key);
        ch->pairs[i].value = xstrdup(from->pairs[i].value);
        ch->pair_list[i] = &ch->pairs[i];
    }
}

struct sink_call *target_change_meta(struct sink *s, const struct sink_change *change, sink_done_fn done, void *arg)
{
    struct change *ch = xcalloc(1, sizeof(*ch));

    call_init(&ch->call, container_of(s, struct target, sink), xasprintf("%s.%s", change->db, change->collection),
              change_release, change_done);
    ch->done = done;
    ch->arg = arg;
    take_change(ch, change);
    change_send(ch);
    return &ch->call;
}
