/*
 * target_rename.c - a collection of the target gets another name.
 *
 *   DescribeCollection(new) --absent--> RenameCollection
 */
#include "base/clock.h"
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <stdlib.h>
#include <string.h>

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
    same = m->collection_id && m->collection_id == r->id; /* 0: Milvus Lite tells none */
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
