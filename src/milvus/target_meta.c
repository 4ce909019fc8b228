/*
 * target_meta.c - indexes, load states, aliases, properties and names of collections on the target.
 *
 *   describe: DescribeIndex --> GetLoadState --> [GetLoadState of partitions] --> DescribeCollection
 *   alias:    AlterAlias --absent--> CreateAlias
 *   rename:   DescribeCollection(new) --absent--> RenameCollection
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <stdlib.h>
#include <string.h>

static char **dup_names(const char *const *names, size_t n)
{
    char **copy = xcalloc(n + 1, sizeof(*copy));

    for (size_t i = 0; i < n; i++)
        copy[i] = xstrdup(names[i]);
    return copy;
}

static void free_names(char **names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

static struct src_pair *dup_pairs(Pb__KeyValuePair *const *pairs, size_t n)
{
    struct src_pair *copy = xcalloc(n + 1, sizeof(*copy));

    for (size_t i = 0; i < n; i++)
        copy[i] = (struct src_pair){xstrdup(pairs[i]->key), xstrdup(pairs[i]->value)};
    return copy;
}

static void free_pairs(struct src_pair *pairs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(pairs[i].key);
        free(pairs[i].value);
    }
    free(pairs);
}

/* ---- describe --------------------------------------------------------------------------------- */

struct describe {
    struct sink_call call;
    sink_meta_fn done;
    void *arg;
    char *db, *collection;
    char **partitions;
    size_t n_partitions;
    struct sink_meta meta;
};

static struct describe *describe_of(struct sink_call *c)
{
    return container_of(c, struct describe, call);
}

static void describe_release(struct sink_call *c)
{
    struct describe *d = describe_of(c);
    struct sink_meta *m = &d->meta;

    for (size_t i = 0; i < m->n_indexes; i++) {
        free(m->indexes[i].field);
        free(m->indexes[i].name);
        free_pairs(m->indexes[i].params, m->indexes[i].n_params);
    }
    free(m->indexes);
    free_names(m->aliases, m->n_aliases);
    free_pairs(m->properties, m->n_properties);
    free_names(d->partitions, d->n_partitions);
    free(d->db);
    free(d->collection);
    free(d);
}

static void describe_fail(struct sink_call *c, const struct err *err)
{
    struct describe *d = describe_of(c);

    call_end(c);
    d->done(d->arg, err, NULL);
}

/* NULL: of no use, the call has failed, unless the target just does not offer the question (then *ret_skip). */
static void *describe_unpack(struct sink_call *c, const struct answer *a, const ProtobufCMessageDescriptor *desc,
                             bool *ret_skip)
{
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    void *m = NULL;

    *ret_skip = !ans.ok && ans.err.code == ERR_UNSUPPORTED;
    if (ans.ok)
        m = answer_unpack(&ans, desc, call_context(c, context, sizeof(context)));
    if (!m && !*ret_skip)
        describe_fail(c, &ans.err);
    return m;
}

static void on_collection(struct sink_call *c, const struct answer *a)
{
    struct describe *d = describe_of(c);
    bool skip;
    Pb__DescribeCollectionResponse *m =
        describe_unpack(c, a, &pb__describe_collection_response__descriptor, &skip);

    if (!m && !skip)
        return;
    if (m) {
        d->meta.aliases = dup_names((const char *const *)m->aliases, m->n_aliases);
        d->meta.n_aliases = m->n_aliases;
        d->meta.properties = dup_pairs(m->properties, m->n_properties);
        d->meta.n_properties = m->n_properties;
        pb__describe_collection_response__free_unpacked(m, NULL);
    }
    call_end(c);
    d->done(d->arg, NULL, &d->meta);
}

static void ask_collection(struct describe *d)
{
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;

    req.db_name = d->db;
    req.collection_name = d->collection;
    call_send(&d->call, "DescribeCollection", ANSWER_FIELD_1, d->db, &req.base, on_collection);
}

static void ask_load(struct describe *d, char **partitions, size_t n, answer_fn fn)
{
    Pb__GetLoadStateRequest req = PB__GET_LOAD_STATE_REQUEST__INIT;

    req.db_name = d->db;
    req.collection_name = d->collection;
    req.partition_names = partitions;
    req.n_partition_names = n;
    call_send(&d->call, "GetLoadState", ANSWER_FIELD_1, d->db, &req.base, fn);
}

static bool is_loaded(const Pb__GetLoadStateResponse *m)
{
    enum { LOADING = 2, LOADED = 3 };

    return m && (m->state == LOADING || m->state == LOADED);
}

static void on_partitions_load(struct sink_call *c, const struct answer *a)
{
    struct describe *d = describe_of(c);
    Pb__GetLoadStateResponse *m = NULL;
    bool skip = a->milvus_code != 0; /* one of them is not there, or not yet */

    if (!skip)
        m = describe_unpack(c, a, &pb__get_load_state_response__descriptor, &skip);
    if (!m && !skip)
        return;
    d->meta.partitions_loaded = is_loaded(m);
    if (m)
        pb__get_load_state_response__free_unpacked(m, NULL);
    ask_collection(d);
}

static void on_load(struct sink_call *c, const struct answer *a)
{
    struct describe *d = describe_of(c);
    bool skip;
    Pb__GetLoadStateResponse *m = describe_unpack(c, a, &pb__get_load_state_response__descriptor, &skip);

    if (!m && !skip)
        return;
    d->meta.loaded = d->meta.partitions_loaded = is_loaded(m);
    if (m)
        pb__get_load_state_response__free_unpacked(m, NULL);
    if (d->meta.loaded && d->n_partitions)
        ask_load(d, d->partitions, d->n_partitions, on_partitions_load);
    else
        ask_collection(d);
}

static void take_indexes(struct sink_meta *meta, const Pb__DescribeIndexResponse *m)
{
    meta->indexes = xcalloc(m->n_index_descriptions + 1, sizeof(*meta->indexes));
    for (; meta->n_indexes < m->n_index_descriptions; meta->n_indexes++) {
        const Pb__IndexDescription *ix = m->index_descriptions[meta->n_indexes];

        meta->indexes[meta->n_indexes] = (struct sink_index){.field = xstrdup(ix->field_name),
                                                             .name = xstrdup(ix->index_name),
                                                             .params = dup_pairs(ix->params, ix->n_params),
                                                             .n_params = ix->n_params};
    }
}

static void on_indexes(struct sink_call *c, const struct answer *a)
{
    struct describe *d = describe_of(c);
    Pb__DescribeIndexResponse *m = NULL;
    bool skip = a->milvus_code == MERR_INDEX_NOT_FOUND;

    if (!skip)
        m = describe_unpack(c, a, &pb__describe_index_response__descriptor, &skip);
    if (!m && !skip)
        return;
    if (m) {
        take_indexes(&d->meta, m);
        pb__describe_index_response__free_unpacked(m, NULL);
    }
    ask_load(d, NULL, 0, on_load);
}

struct sink_call *target_describe_meta(struct sink *s, const char *db, const char *collection,
                                       const char *const *partitions, size_t n_partitions, sink_meta_fn done,
                                       void *arg)
{
    struct describe *d = xcalloc(1, sizeof(*d));
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT; /* DescribeIndexRequest begins so */

    call_init(&d->call, container_of(s, struct target, sink), xasprintf("%s.%s", db, collection), describe_release,
              describe_fail);
    d->done = done;
    d->arg = arg;
    d->db = xstrdup(db);
    d->collection = xstrdup(collection);
    d->partitions = dup_names(partitions, n_partitions);
    d->n_partitions = n_partitions;
    req.db_name = d->db;
    req.collection_name = d->collection;
    call_send(&d->call, "DescribeIndex", ANSWER_FIELD_1, d->db, &req.base, on_indexes);
    return &d->call;
}

/* ---- change ----------------------------------------------------------------------------------- */

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
    free_names(ch->names, ch->n_names);
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

/* One message for all requests that name a collection first: protobuf writes what is set. */
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
    ch->names = dup_names(from->names, from->n_names);
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

/* ---- rename ----------------------------------------------------------------------------------- */

struct rename_call {
    struct sink_call call;
    sink_done_fn done;
    void *arg;
    char *db, *name, *new_db, *new_name;
    int64_t id;
};

static struct rename_call *rename_of(struct sink_call *c)
{
    return container_of(c, struct rename_call, call);
}

static void rename_release(struct sink_call *c)
{
    struct rename_call *r = rename_of(c);

    free(r->db);
    free(r->name);
    free(r->new_db);
    free(r->new_name);
    free(r);
}

static void rename_done(struct sink_call *c, const struct err *err)
{
    struct rename_call *r = rename_of(c);

    call_end(c);
    r->done(r->arg, err);
}

/* Milvus Lite tells no ids: that the new name was there and the old one is not means that it is done. */
static void on_renamed(struct sink_call *c, const struct answer *a)
{
    struct answer ans = *a;

    if (!a->ok && a->milvus_code && (strstr(a->err.text, "duplicate") || strstr(a->err.text, "already exist"))) {
        ans.err.code = ERR_EXISTS;
        ans.err.cls = ERRC_USER;
    }
    rename_done(c, a->ok ? NULL : &ans.err);
}

static void rename_send(struct sink_call *c)
{
    struct rename_call *r = rename_of(c);
    Pb__RenameCollectionRequest req = PB__RENAME_COLLECTION_REQUEST__INIT;
    struct replicate_base base;

    req.msg_base = replicate_base_init(&base, c->target, tt_from_ms(clock_wall_ms()));
    req.db_name = r->db;
    req.old_name = r->name;
    req.new_name = r->new_name;
    if (strcmp(r->db, r->new_db) != 0)
        req.new_db_name = r->new_db;
    call_send(c, "RenameCollection", ANSWER_STATUS, r->db, &req.base, on_renamed);
}

static void on_new_name(struct sink_call *c, const struct answer *a)
{
    struct rename_call *r = rename_of(c);
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    Pb__DescribeCollectionResponse *m = NULL;
    bool same;

    if (ans.milvus_code && ans.err.code == ERR_NOT_FOUND) {
        rename_send(c);
        return;
    }
    if (ans.ok)
        m = answer_unpack(&ans, &pb__describe_collection_response__descriptor, call_context(c, context, sizeof(context)));
    if (!m) {
        rename_done(c, &ans.err);
        return;
    }
    same = m->collection_id && m->collection_id == r->id;
    pb__describe_collection_response__free_unpacked(m, NULL);
    if (same)
        rename_done(c, NULL);
    else
        rename_send(c); /* refused with its own words, if it is another one */
}

struct sink_call *target_rename(struct sink *s, const char *db, const char *name, const char *new_db,
                                const char *new_name, int64_t id, sink_done_fn done, void *arg)
{
    struct rename_call *r = xcalloc(1, sizeof(*r));
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;

    call_init(&r->call, container_of(s, struct target, sink), xasprintf("%s.%s to %s.%s", db, name, new_db, new_name),
              rename_release, rename_done);
    r->done = done;
    r->arg = arg;
    r->db = xstrdup(db);
    r->name = xstrdup(name);
    r->new_db = xstrdup(new_db);
    r->new_name = xstrdup(new_name);
    r->id = id;
    req.db_name = r->new_db;
    req.collection_name = r->new_name;
    call_send(&r->call, "DescribeCollection", ANSWER_FIELD_1, r->new_db, &req.base, on_new_name);
    return &r->call;
}
