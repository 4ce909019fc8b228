/*
 * target_collection.c - makes a collection and its partitions on the target, compares, describes.
 *
 *   [GetVersion -->]   plain: once on each connection
 *   DescribeCollection --absent--> [ListDatabases, CreateDatabase] --> CreateCollection --> DescribeCollection ...
 *   DescribeCollection --there---> compare --> ShowPartitions --> [CreatePartition ...] --> ShowPartitions --> done
 *
 * What was just made may not be seen at once: then the question is repeated some times inside the call.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "milvus/catalog.h"
#include "milvus/target_priv.h"

#include <stdlib.h>
#include <string.h>

enum { NOT_SEEN_TRIES = 10, NOT_SEEN_MS = 200 };

struct ensure {
    struct sink_call call;
    sink_collection_fn done;
    void *arg;
    bool allow_create;
    char *db, *name;
    uint64_t tt;        /* create time on the source */
    size_t n_shards;    /* of the source */
    int64_t source_id;
    struct sink_shard *source_shards; /* plain: until they are the answer's */
    struct left_out left_out;     /* the target has no such fields, and need not */
    Pb__CollectionSchema *schema; /* the source's, without those; NULL: not known any more, only shards are compared */
    bool partition_key;
    Pb__CreateCollectionRequest req; /* borrows from here and below */
    struct replicate_base base;
    Pb__KeyValuePair *properties, **property_list;
    uint8_t *schema_bytes;
    char **partitions; /* alive ones of the source */
    size_t n_partitions;
    bool created;      /* the collection, just now, by this call (ours) or somebody else */
    bool ours;
    size_t next;       /* index in partitions: those before it exist or were created */
    bool made_some;
    unsigned tries;
    struct sink_collection result;
};

static struct ensure *ensure_of(struct sink_call *c)
{
    return container_of(c, struct ensure, call);
}

static void free_result(struct ensure *e)
{
    target_shards_free(e->result.shards, e->result.n_shards);
    for (size_t i = 0; i < e->result.n_partitions; i++)
        free(e->result.partitions[i].name);
    free(e->result.partitions);
    e->result = (struct sink_collection){.plain_keys = e->result.plain_keys};
}

static void ensure_release(struct sink_call *c)
{
    struct ensure *e = ensure_of(c);

    free_result(e);
    left_out_release(&e->left_out);
    target_shards_free(e->source_shards, e->source_shards ? e->n_shards : 0);
    target_names_free(e->partitions, e->n_partitions);
    for (size_t i = 0; i < e->req.n_properties; i++) {
        free(e->properties[i].key);
        free(e->properties[i].value);
    }
    if (e->schema)
        pb__collection_schema__free_unpacked(e->schema, NULL);
    free(e->properties);
    free(e->property_list);
    free(e->schema_bytes);
    free(e->db);
    free(e->name);
    free(e);
}

static void ensure_fail(struct sink_call *c, const struct err *err)
{
    struct ensure *e = ensure_of(c);

    call_end(c);
    e->done(e->arg, err, NULL);
}

/* The target's answer is of no use: why, with the collection's name in front. */
static void ensure_refuse(struct ensure *e, struct err *err)
{
    err_wrap(err, "target %s: collection %s", e->call.target->address, e->call.object);
    ensure_fail(&e->call, err);
}

/* Not yet seen: ask again in a while. False: too often. */
static bool ensure_again(struct ensure *e, void (*ask)(struct sink_call *))
{
    if (++e->tries > NOT_SEEN_TRIES)
        return false;
    call_after(&e->call, NOT_SEEN_MS, ask);
    return true;
}

static bool is_plain(const struct ensure *e)
{
    return e->call.target->mode == TARGET_PLAIN;
}

static void describe(struct sink_call *c);
static void show_partitions(struct sink_call *c);

/* ---- partitions ------------------------------------------------------------------------------- */

static int partition_cmp(const void *a, const void *b)
{
    const struct sink_partition *x = a, *y = b;

    return strcmp(x->name, y->name);
}

static bool partition_exists(const struct ensure *e, const char *name)
{
    const struct sink_partition key = {.name = pb_str(name)};

    return bsearch(&key, e->result.partitions, e->result.n_partitions, sizeof(key), partition_cmp);
}

/* Where the target tells none: of the name, so that it stays when other partitions come and go (FNV-1a, 63 bits, not 0). */
static int64_t made_up_id(const char *name)
{
    uint64_t h = UINT64_C(14695981039346656037);

    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * UINT64_C(1099511628211);
    return (int64_t)(h >> 1 | 1);
}

static int take_partitions(struct ensure *e, const Pb__ShowPartitionsResponse *m, struct err *err)
{
    struct sink_collection *r = &e->result;
    bool ids = m->n_partition_ids > 0 || !is_plain(e); /* Milvus Lite tells none, nor needs them */

    if (ids && m->n_partition_names != m->n_partition_ids)
        return err_set(err, ERR_PROTO, ERRC_RETRY, "the target lists %zu partition names and %zu ids",
                       m->n_partition_names, m->n_partition_ids);
    for (size_t i = 0; i < r->n_partitions; i++)
        free(r->partitions[i].name);
    free(r->partitions);
    r->partitions = xcalloc(m->n_partition_names + 1, sizeof(*r->partitions));
    r->n_partitions = m->n_partition_names;
    for (size_t i = 0; i < r->n_partitions; i++)
        r->partitions[i] = (struct sink_partition){ids ? m->partition_ids[i] : made_up_id(m->partition_names[i]),
                                                   xstrdup(m->partition_names[i])};
    qsort(r->partitions, r->n_partitions, sizeof(*r->partitions), partition_cmp);
    return 0;
}

/* With a partition key rows go to _default_<k>, so that both sides must have as many. */
static int compare_partition_count(const struct ensure *e, struct err *err)
{
    if (!e->partition_key || e->n_partitions == e->result.n_partitions)
        return 0;
    return err_set(err, ERR_STATE, ERRC_USER,
                   "the number of partitions of the partition key is %zu on the source and %zu on the target. Drop the "
                   "target's collection or map to another name",
                   e->n_partitions, e->result.n_partitions);
}

static bool may_create_partitions(const struct ensure *e)
{
    return e->allow_create && !e->partition_key && !e->call.target->ignore_partition;
}

static void on_partition_created(struct sink_call *c, const struct answer *a);

/* True: a request is under way. */
static bool create_next_partition(struct ensure *e)
{
    Pb__PartitionRequest req = PB__PARTITION_REQUEST__INIT;
    struct replicate_base base;

    while (e->next < e->n_partitions && partition_exists(e, e->partitions[e->next]))
        e->next++;
    if (e->next == e->n_partitions)
        return false;
    req.msg_base = replicate_base_init(&base, e->call.target, e->tt);
    req.db_name = e->db;
    req.collection_name = e->name;
    req.partition_name = e->partitions[e->next];
    call_send(&e->call, "CreatePartition", ANSWER_STATUS, e->db, &req.base, on_partition_created);
    return true;
}

static void retry_partition(struct sink_call *c)
{
    struct ensure *e = ensure_of(c);

    if (!create_next_partition(e))
        show_partitions(c);
}

/* The target looks the collection up at its own time: not found until its clock has passed the create time, which is
 * the source's. Seen on 2.3.5, whose TSO lags the wall clock by some ms. */
static void partition_refused(struct ensure *e, const struct answer *a)
{
    struct err err = a->err;

    if (!a->milvus_code || !strstr(err.text, "not found")) {
        ensure_fail(&e->call, &err);
        return;
    }
    if (ensure_again(e, retry_partition))
        return;
    err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "%s. Is the target's clock behind the source's?", a->err.text);
    ensure_fail(&e->call, &err);
}

static void on_partition_created(struct sink_call *c, const struct answer *a)
{
    struct ensure *e = ensure_of(c);

    if (!a->ok) {
        partition_refused(e, a);
        return;
    }
    e->tries = 0;
    log_info("target", "partition created", KS("target", c->target->address), KS("collection", c->object),
             KS("partition", e->partitions[e->next]));
    e->next++;
    e->made_some = true;
    if (!create_next_partition(e))
        show_partitions(c);
}

static void ensure_finish(struct ensure *e)
{
    e->result.left_out = e->left_out.names;
    e->result.n_left_out = e->left_out.n;
    call_end(&e->call);
    e->done(e->arg, NULL, &e->result);
}

/* With a partition key the plain target hashes rows itself: nobody asks for its partitions. */
static void take_source_partitions(struct ensure *e)
{
    struct sink_collection *r = &e->result;

    r->partitions = xcalloc(e->n_partitions + 1, sizeof(*r->partitions));
    for (; r->n_partitions < e->n_partitions; r->n_partitions++)
        r->partitions[r->n_partitions] = (struct sink_partition){made_up_id(e->partitions[r->n_partitions]),
                                                                 xstrdup(e->partitions[r->n_partitions])};
    ensure_finish(e);
}

static void partitions_known(struct ensure *e)
{
    struct err err;

    if (compare_partition_count(e, &err)) {
        ensure_refuse(e, &err);
        return;
    }
    if (!may_create_partitions(e)) {
        ensure_finish(e);
        return;
    }
    if (!e->made_some) {
        if (!create_next_partition(e))
            ensure_finish(e);
        return;
    }
    for (size_t i = 0; i < e->n_partitions; i++) {
        if (partition_exists(e, e->partitions[i]))
            continue;
        if (!ensure_again(e, show_partitions)) {
            err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "partition %s was made but cannot be seen", e->partitions[i]);
            ensure_refuse(e, &err);
        }
        return;
    }
    ensure_finish(e);
}

static void on_partitions(struct sink_call *c, const struct answer *a)
{
    struct ensure *e = ensure_of(c);
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    Pb__ShowPartitionsResponse *m = NULL;
    int rc;

    if (ans.ok)
        m = answer_unpack(&ans, &pb__show_partitions_response__descriptor,
                          call_context(c, context, sizeof(context)));
    if (!m) {
        ensure_fail(c, &ans.err);
        return;
    }
    rc = take_partitions(e, m, &ans.err);
    pb__show_partitions_response__free_unpacked(m, NULL);
    if (rc)
        ensure_refuse(e, &ans.err);
    else
        partitions_known(e);
}

static void show_partitions(struct sink_call *c)
{
    struct ensure *e = ensure_of(c);
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;

    req.db_name = e->db;
    req.collection_name = e->name;
    call_send(c, "ShowPartitions", ANSWER_FIELD_1, e->db, &req.base, on_partitions);
}

/* ---- collection ------------------------------------------------------------------------------- */

static bool made_already(const struct answer *a)
{
    return a->milvus_code && (strstr(a->err.text, "duplicate collection") || strstr(a->err.text, "already exist"));
}

static void on_created(struct sink_call *c, const struct answer *a)
{
    struct ensure *e = ensure_of(c);

    /* made by somebody else just now: what it is like, the comparison tells */
    if (!a->ok && !made_already(a)) {
        ensure_fail(c, &a->err);
        return;
    }
    if (a->ok)
        log_info("target", "collection created", KS("target", c->target->address), KS("collection", c->object));
    e->created = true;
    e->ours = a->ok;
    describe(c);
}

static void on_database(struct sink_call *c, const struct answer *a)
{
    struct ensure *e = ensure_of(c);

    if (!a->ok)
        ensure_fail(c, &a->err);
    else
        call_send(c, "CreateCollection", ANSWER_STATUS, e->db, &e->req.base, on_created);
}

static void collection_absent(struct ensure *e, const struct answer *a)
{
    struct err err = a->err;
    struct answer ok = {.ok = true, .raw = a->raw};

    if (e->created) {
        if (!ensure_again(e, describe)) {
            err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "it was made but cannot be seen");
            ensure_refuse(e, &err);
        }
    } else if (!e->allow_create) {
        err.code = ERR_NOT_FOUND;
        ensure_fail(&e->call, &err);
    } else if (strcmp(e->db, "default") == 0) {
        on_database(&e->call, &ok);
    } else {
        database_ensure(&e->call, e->db, e->tt, on_database);
    }
}

static struct left_out *may_leave_out(struct ensure *e)
{
    return e->call.target->leave_out ? &e->left_out : NULL;
}

/* What the target does not know it leaves out in silence. */
static int compare_schema(struct ensure *e, const Pb__CollectionSchema *target, struct err *err)
{
    struct err cause;
    int rc;

    if (!e->schema)
        return 0;
    rc = is_plain(e) ? target_schema_compare_plain(e->schema, target, may_leave_out(e), &cause)
                     : target_schema_compare(e->schema, target, &cause);
    if (!rc)
        return 0;
    if (e->ours && is_plain(e))
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER,
                       "%s. It was made just now with the source's schema: this version of the target does not offer "
                       "that. Exclude the collection or upgrade the target",
                       cause.text);
    return err_set(err, cause.code, cause.cls, "%s. Drop the target's collection or map to another name", cause.text);
}

static int take_shards(struct ensure *e, const Pb__DescribeCollectionResponse *m, struct err *err)
{
    if (!is_plain(e))
        return target_shards(m, e->n_shards, &e->result.shards, err);
    e->result.shards = e->source_shards;
    e->source_shards = NULL;
    return 0;
}

static int take_description(struct ensure *e, const Pb__DescribeCollectionResponse *m, struct err *err)
{
    int rc;

    if (!m->schema || (m->collection_id == 0 && !is_plain(e)))
        return err_set(err, ERR_PROTO, ERRC_RETRY, "the target describes it without schema or id");
    if (*m->schema->name && strcmp(m->schema->name, e->name) != 0)
        return err_set(err, ERR_STATE, ERRC_USER,
                       "the name is an alias of %s on the target. Drop the alias or map to another name",
                       m->schema->name);
    if (is_plain(e) && m->collection_id == e->source_id) /* ids are times of one server's clock: no other has it */
        return err_set(err, ERR_STATE, ERRC_USER,
                       "the target is the source itself, and what is written would be replicated for ever. Give another "
                       "milvus_connect_param.uri");
    rc = compare_schema(e, m->schema, err);
    free_result(e);
    if (!rc)
        rc = take_shards(e, m, err);
    if (!rc) {
        e->result.n_shards = e->n_shards;
        e->result.id = m->collection_id ? m->collection_id : 1; /* Milvus Lite tells none, nor needs one */
    }
    return rc;
}

static void on_described(struct sink_call *c, const struct answer *a)
{
    struct ensure *e = ensure_of(c);
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    Pb__DescribeCollectionResponse *m = NULL;
    int rc;

    if (ans.milvus_code && ans.err.code == ERR_NOT_FOUND) {
        collection_absent(e, a);
        return;
    }
    if (ans.ok)
        m = answer_unpack(&ans, &pb__describe_collection_response__descriptor,
                          call_context(c, context, sizeof(context)));
    if (!m) {
        ensure_fail(c, &ans.err);
        return;
    }
    rc = take_description(e, m, &ans.err);
    pb__describe_collection_response__free_unpacked(m, NULL);
    if (rc) {
        ensure_refuse(e, &ans.err);
        return;
    }
    e->tries = 0;
    if (is_plain(e) && e->partition_key)
        take_source_partitions(e);
    else
        show_partitions(c);
}

static void describe(struct sink_call *c)
{
    struct ensure *e = ensure_of(c);
    Pb__CollectionRequest req = PB__COLLECTION_REQUEST__INIT;

    req.db_name = e->db;
    req.collection_name = e->name;
    call_send(c, "DescribeCollection", ANSWER_FIELD_1, e->db, &req.base, on_described);
}

static void encode_schema(struct ensure *e)
{
    e->req.schema.len = pb__collection_schema__get_packed_size(e->schema);
    e->req.schema.data = e->schema_bytes = xmalloc(e->req.schema.len + 1);
    pb__collection_schema__pack(e->schema, e->schema_bytes);
}

/* What this version cannot hold is refused (or left out) before anything is made. */
static void check_version(struct sink_call *c)
{
    struct ensure *e = ensure_of(c);
    struct err err;

    if (e->schema && target_features_fit(e->schema, c->target->version, may_leave_out(e), &err)) {
        ensure_refuse(e, &err);
        return;
    }
    if (e->schema)
        encode_schema(e);
    describe(c);
}

static void on_version(struct sink_call *c, const struct answer *a)
{
    struct answer ans = *a;
    char context[CONTEXT_MAX];
    Pb__GetVersionResponse *m = NULL;

    if (ans.ok)
        m = answer_unpack(&ans, &pb__get_version_response__descriptor, call_context(c, context, sizeof(context)));
    if (!m && ans.err.code != ERR_UNSUPPORTED) {
        ensure_fail(c, &ans.err);
        return;
    }
    target_set_version(c->target, m ? m->version : "");
    if (m)
        pb__get_version_response__free_unpacked(m, NULL);
    check_version(c);
}

static void ask_version(struct sink_call *c)
{
    Pb__CollectionRequest empty = PB__COLLECTION_REQUEST__INIT;

    call_send(c, "GetVersion", ANSWER_FIELD_1, NULL, &empty.base, on_version);
}

/* ---- what the source has: copied, the catalog changes while we ask ---------------------------- */

/* The source's keys are kept: none is made there. True: the source makes them. */
static bool without_auto_id(Pb__CollectionSchema *s)
{
    bool made = s->auto_id;

    s->auto_id = false;
    for (size_t i = 0; i < s->n_fields; i++) {
        made |= s->fields[i]->auto_id;
        s->fields[i]->auto_id = false;
    }
    return made;
}

static int take_schema(struct ensure *e, const struct src_collection *c, struct err *err)
{
    uint8_t *data;
    size_t len;

    catalog_user_schema(c, &data, &len);
    e->schema = pb__collection_schema__unpack(NULL, len, data);
    free(data);
    if (!e->schema)
        return err_set(err, ERR_PROTO, ERRC_DATA, "collection %s.%s: its schema cannot be parsed", c->db_name,
                       c->name);
    e->partition_key = target_schema_has_partition_key(e->schema);
    if (e->schema->name != protobuf_c_empty_string)
        free(e->schema->name);
    e->schema->name = xstrdup(e->name); /* must equal collection_name */
    if (is_plain(e))
        e->result.plain_keys = without_auto_id(e->schema);
    else
        encode_schema(e);
    return 0;
}

static void take_properties(struct ensure *e, const struct src_collection *c)
{
    e->properties = xcalloc(c->n_properties + 1, sizeof(*e->properties));
    e->property_list = xcalloc(c->n_properties + 1, sizeof(*e->property_list));
    for (size_t i = 0; i < c->n_properties; i++) {
        pb__key_value_pair__init(&e->properties[i]);
        e->properties[i].key = xstrdup(c->properties[i].key);
        e->properties[i].value = xstrdup(c->properties[i].value);
        e->property_list[i] = &e->properties[i];
    }
    e->req.n_properties = c->n_properties;
    e->req.properties = e->property_list;
}

static void take_alive_partitions(struct ensure *e, const struct src_collection *c)
{
    e->partitions = xcalloc(c->n_partitions + 1, sizeof(*e->partitions));
    for (size_t i = 0; i < c->n_partitions; i++)
        if (c->partitions[i].state == SRC_ALIVE)
            e->partitions[e->n_partitions++] = xstrdup(c->partitions[i].name);
}

static void fill_request(struct ensure *e)
{
    e->req.msg_base = replicate_base_init(&e->base, e->call.target, e->tt);
    e->req.db_name = e->db;
    e->req.collection_name = e->name;
    e->req.shards_num = (int32_t)e->n_shards;
    e->req.num_partitions = e->partition_key ? (int64_t)e->n_partitions : 0;
}

static void take_source_shards(struct ensure *e, const struct src_collection *c)
{
    e->source_shards = xcalloc(c->n_shards + 1, sizeof(*e->source_shards));
    for (size_t i = 0; i < c->n_shards; i++)
        e->source_shards[i] = (struct sink_shard){xstrdup(c->shards[i].vchannel), xstrdup(c->shards[i].pchannel)};
}

/* c->impl NULL: the source's metadata is gone, the collection is only looked for. */
static int take_source(struct ensure *e, const struct src_collection *c, struct err *err)
{
    int rc;

    e->n_shards = c->n_shards;
    e->source_id = c->id;
    if (is_plain(e))
        take_source_shards(e, c);
    e->tt = c->create_tt ? c->create_tt : tt_from_ms(clock_wall_ms()); /* 0 is refused */
    pb__create_collection_request__init(&e->req);
    if (!c->impl) {
        e->allow_create = false;
        if (is_plain(e))
            take_alive_partitions(e, c);
        e->partition_key = is_plain(e) && c->has_partition_key;
        return 0;
    }
    rc = take_schema(e, c, err);
    if (rc)
        return rc;
    take_properties(e, c);
    e->req.consistency_level = catalog_properties(c)->consistency_level;
    take_alive_partitions(e, c);
    fill_request(e);
    return 0;
}

struct sink_call *target_ensure_collection(struct sink *s, const struct src_collection *c, const char *db,
                                           const char *name, bool allow_create, sink_collection_fn done, void *arg)
{
    struct target *t = container_of(s, struct target, sink);
    struct ensure *e = xcalloc(1, sizeof(*e));

    call_init(&e->call, t, xasprintf("%s.%s", db, name), ensure_release, ensure_fail);
    e->done = done;
    e->arg = arg;
    e->db = xstrdup(db);
    e->name = xstrdup(name);
    e->allow_create = allow_create;
    if (take_source(e, c, &e->call.late))
        call_fail_later(&e->call);
    else if (!is_plain(e))
        describe(&e->call);
    else if (!target_version_known(t))
        ask_version(&e->call);
    else
        call_after(&e->call, 0, check_version); /* which may complete the call */
    return &e->call;
}
