/*
 * coll.c - a collection of a task: joined, made or checked on the target, dropped.
 *
 * Identity is the source's id, never the name: a name that was dropped and made again is two collections.
 *
 * Drop: each shard's drop message goes through its link in order; when all are on the target with a tick at or above
 * them, the call follows.  How far that is stands in the record. When a new collection wants the name before the log
 * shows the drop (2.3.5 writes the drop message late, and rows of the new one may come first), the drop messages are
 * made here: nothing of the old one is needed any more.
 */
#include "repl/priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"

/* Calls of one task at a time while it maps its collections: a thousand at once would only cost memory. */
#define MAX_ENSURING 32

/* Of a first page: what a row really has is not known yet. */
#define FIRST_ROWS 500

static void on_retry(void *arg)
{
    coll_kick(arg);
}

struct coll *coll_ref(struct coll *c)
{
    c->refs++;
    return c;
}

/* Where the partition is or belongs. */
static size_t part_place(const struct coll *c, int64_t id)
{
    size_t lo = 0, hi = c->n_parts;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (c->parts[mid]->id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void part_free(struct coll *c, struct part *p)
{
    size_t at = part_place(c, p->id);

    memmove(c->parts + at, c->parts + at + 1, (c->n_parts - at - 1) * sizeof(struct part *));
    c->n_parts--;
    free(p);
}

static void set_left_out(struct coll *c, char *const *names, size_t n)
{
    while (c->n_left_out > 0)
        free(c->left_out[--c->n_left_out]);
    free(c->left_out);
    c->left_out = n ? xcalloc(n, sizeof(char *)) : NULL;
    for (; c->n_left_out < n; c->n_left_out++)
        c->left_out[c->n_left_out] = xstrdup(names[c->n_left_out]);
}

void coll_unref(struct coll *c)
{
    struct part *p;

    if (--c->refs > 0)
        return;
    COLL_EACH_PART(c, k, p)
        part_free(c, p);
    free(c->parts);
    for (size_t i = 0; i < c->n_shards; i++) {
        free(c->shards[i].vchannel);
        free(c->shards[i].pchannel);
        free(c->shards[i].dst_vchannel);
        free(c->shards[i].dst_pchannel);
    }
    free(c->shards);
    coll_rename_free(c);
    set_left_out(c, NULL, 0);
    free(c->db);
    free(c->trouble);
    free(c);
}

struct coll *coll_alloc(struct repl_task *t, int64_t id, size_t n_shards)
{
    struct coll *c = xcalloc(1, sizeof(*c));

    c->refs = 1;
    c->task = t;
    c->id = id;
    c->n_shards = n_shards;
    c->shards = xcalloc(n_shards ? n_shards : 1, sizeof(*c->shards));
    c->backoff = t->o.hub->retry;
    timer_init(&c->retry, t->loop, LOOP_PRIO_NORMAL, on_retry, c);
    HASH_ADD(hh, t->colls, id, sizeof(c->id), c);
    return c;
}

/* Rows read carry the source's id, rows written the target's, as the Go implementation's do. */
static struct metric *rows_metric(const struct coll *c, bool written, bool delete)
{
    char id[24];

    snprintf(id, sizeof(id), "%lld", (long long)(written ? c->dst_id : c->id));
    return metric_get(METRIC_COUNTER, "milvus_cdc_replicate_data_cnt", "rows",
                      METRIC_LABELS({"task_id", c->task->o.id}, {"collection_id", id},
                                    {"collection_name", written ? c->dst_name : c->name},
                                    {"op_type", written ? "write" : "read"},
                                    {"api_type", delete ? "delete" : "insert"}));
}

void coll_count(struct coll *c, bool written, bool delete, uint64_t rows)
{
    struct metric **m = &c->m_rows[written][delete];

    if (!*m)
        *m = rows_metric(c, written, delete);
    (*m)->value += (double)rows;
}

void coll_set_names(struct coll *c, const char *db, const char *name, const char *dst_db, const char *dst_name,
                    const char *pk_name)
{
    const char *from[] = {db, name, dst_db, dst_name, pk_name ? pk_name : ""};
    char **to[] = {&c->db, &c->name, &c->dst_db, &c->dst_name, &c->pk_name};
    size_t bytes = 0;
    char *p;

    for (int i = 0; i < 5; i++)
        bytes += strlen(from[i]) + 1;
    p = xmalloc(bytes);
    for (int i = 0; i < 5; i++) {
        *to[i] = p;
        p = stpcpy(p, from[i]) + 1;
    }
}

struct coll *coll_new(struct repl_task *t, const struct src_collection *sc, const struct repl_match *m,
                      const struct coll_join *joins)
{
    struct coll *c = coll_alloc(t, sc->id, sc->n_shards);

    coll_set_names(c, sc->db_name, sc->name, m->target_db, m->target_name, sc->pk_name);
    c->create_tt = sc->create_tt;
    c->pk_field_id = sc->pk_field_id;
    c->pk_is_string = sc->pk_is_string;
    c->partition_key = sc->has_partition_key;
    c->state = COLL_NEW;
    for (size_t i = 0; i < c->n_shards; i++) {
        struct shard *sh = &c->shards[i];
        sh->vchannel = xstrdup(sc->shards[i].vchannel);
        sh->pchannel = xstrdup(sc->shards[i].pchannel);
        sh->from = joins[i].from;
        sh->join = joins[i].join;
        sh->skip_tt = joins[i].skip_tt;
        sh->stream = task_stream(t, sh->pchannel);
    }
    return c;
}

void coll_stored(struct coll *c)
{
    if (c->state == COLL_NEW)
        c->state = COLL_MAPPING;
    coll_follow_name(c);
    coll_kick(c);
}

/* ---- partitions ------------------------------------------------------------------------------ */

struct part *coll_part_new(struct coll *c, int64_t id, const char *name)
{
    size_t at = part_place(c, id), shards = c->n_shards * sizeof(enum shard_drop);
    struct part *p = xcalloc(1, sizeof(*p) + shards + strlen(name) + 1);

    p->id = id;
    p->shards = (enum shard_drop *)(p + 1);
    p->name = strcpy((char *)(p + 1) + shards, name);
    c->parts = xrealloc(c->parts, (c->n_parts + 1) * sizeof(struct part *));
    memmove(c->parts + at + 1, c->parts + at, (c->n_parts - at) * sizeof(struct part *));
    c->parts[at] = p;
    c->n_parts++;
    return p;
}

/* ---- leaving ------------------------------------------------------------------------------------ */

static void shard_unlink(struct coll *c, struct shard *sh, struct store_batch *b)
{
    struct link *l = sh->link;
    struct store *s = c->task->o.store;

    sh->link = NULL;
    if (!l || --l->n_shards > 0)
        return;
    if (b)
        s->ops->del_ckpt(b, l->stream->channel, l->tchan->name);
    link_free(l);
    stream_leave(sh->stream);
}

static void ensure_ended(struct coll *c)
{
    if (!c->ensuring)
        return;
    c->ensuring = false;
    if (c->task->ensuring-- == MAX_ENSURING / 2)
        task_kick_waiting(c->task);
}

void coll_detach(struct coll *c)
{
    struct store *s = c->task->o.store;

    copy_free(c);
    meta_free(c);
    c->task->o.sink->ops->cancel(c->call);
    c->call = NULL;
    ensure_ended(c);
    timer_release(&c->retry);
    c->state = COLL_GONE;
    if (c->storing) { /* its callback, which would drop the reference, comes no more */
        s->ops->cancel(s, c);
        c->storing = false;
        coll_unref(c);
    }
    for (size_t i = 0; i < c->n_shards; i++)
        shard_unlink(c, &c->shards[i], NULL);
    HASH_DEL(c->task->colls, c);
    coll_unref(c);
}

/* Dropped on both sides (or never made on the target): out of the task for good. */
static void coll_forget(struct coll *c)
{
    struct repl_task *t = c->task;
    struct store_batch *b = t->o.store->ops->begin(t->o.store, t->o.id);

    log_info("repl", "collection has left the task", KS("task", t->o.id), KS("db", c->db), KS("collection", c->name),
             KI("id", c->id));
    if (coll_drop_open(c) && t->drops_open)
        t->drops_open--;
    timer_cancel(&c->retry);
    copy_free(c);
    meta_free(c);
    coll_rename_end(c);
    for (size_t i = 0; i < c->n_shards; i++)
        shard_unlink(c, &c->shards[i], b);
    c->state = COLL_GONE;
    t->o.store->ops->del_collection(b, c->id);
    t->o.store->ops->commit(b, NULL, NULL);
    timer_release(&c->retry);
    HASH_DEL(t->colls, c);
    task_ignore(t, c->id);
    coll_unref(c);
    task_kick_waiting(t); /* somebody may have waited for the name */
}

/* ---- mapping ------------------------------------------------------------------------------------ */

static void coll_fail(struct coll *c, const struct err *cause)
{
    struct err err = *cause;

    err_wrap(&err, "collection %s.%s (target %s.%s)", c->db, c->name, c->dst_db, c->dst_name);
    set_text(&c->trouble, err.text);
    if (err.cls != ERRC_RETRY) {
        task_fatal(c->task, &err);
        return;
    }
    log_warn("repl", "collection has to wait", KS("task", c->task->o.id), KS("error", err.text));
    timer_set(&c->retry, backoff_next_ms(&c->backoff));
}

static int user_error(struct coll *c, const char *text)
{
    struct err err;

    err_set(&err, ERR_STATE, ERRC_USER, "%s", text);
    coll_fail(c, &err);
    return -1;
}

/* An ordinary target chooses shards itself: then there is one queue for each channel of the source. */
static void map_shard(struct coll *c, struct shard *sh, const struct sink_shard *d)
{
    char *own;

    if (!c->task->o.hub->portable) {
        set_text(&sh->dst_vchannel, d->vchannel);
        set_text(&sh->dst_pchannel, d->pchannel);
        return;
    }
    own = xasprintf("%s:%s", c->task->o.id, sh->pchannel); /* another task's time is another source's, or later */
    set_text(&sh->dst_vchannel, sh->vchannel);
    set_text(&sh->dst_pchannel, own);
    free(own);
}

static int map_shards(struct coll *c, const struct sink_collection *d)
{
    if (d->n_shards != c->n_shards && !c->task->o.hub->portable)
        return user_error(c, "the target has another number of shards");
    if (c->dst_id && c->dst_id != d->id)
        return user_error(c, "the target's collection is not the one that was replicated: somebody dropped and made "
                             "it again. Delete the task and create it anew");
    c->dst_id = d->id;
    for (size_t i = 0; i < c->n_shards; i++)
        map_shard(c, &c->shards[i], &d->shards[i]);
    return 0;
}

static struct part *part_by_name(struct coll *c, const char *name)
{
    struct part *p;

    COLL_EACH_PART(c, k, p)
        if (strcmp(p->name, name) == 0)
            return p;
    return NULL;
}

static int64_t dst_part_id(const struct sink_collection *d, const char *name)
{
    for (size_t i = 0; i < d->n_partitions; i++)
        if (strcmp(d->partitions[i].name, name) == 0)
            return d->partitions[i].id;
    return 0;
}

/* Partitions that exist on the source and were not known: theirs is the target's of the same name, unless that
 * is still an older one's. */
static void map_new_parts(struct coll *c, const struct src_collection *sc, const struct sink_collection *d)
{
    for (size_t i = 0; sc && i < sc->n_partitions; i++) {
        const struct src_partition *sp = &sc->partitions[i];
        struct part *p = coll_part(c, sp->id);
        if (sp->state != SRC_ALIVE || (p && p->dst_id))
            continue;
        if (!p && part_by_name(c, sp->name))
            continue;
        if (!p)
            p = coll_part_new(c, sp->id, sp->name);
        p->dst_id = dst_part_id(d, sp->name);
    }
}

static const struct src_partition *find_part(const struct src_collection *sc, int64_t id);

static void begin_part_drop(struct coll *c, struct part *p)
{
    if (p->dropping)
        return;
    p->dropping = true;
    c->task->drops_open++;
}

static void drop_orphan(struct coll *c, struct part *p, int64_t dst_id)
{
    p->dst_id = dst_id;
    p->forced = true;
    begin_part_drop(c, p);
    for (size_t k = 0; k < c->n_shards; k++)
        p->shards[k] = SHARD_DROP_SENT;
}

static bool dst_id_taken(const struct coll *c, int64_t dst_id)
{
    const struct part *p;

    COLL_EACH_PART(c, k, p)
        if (p->dst_id == dst_id)
            return true;
    return false;
}

/*
 * Dropped on the source while it was being made on the target: no row was ever sent for it, only the call is left. A
 * record that was written in between knows it as not made.
 */
static void drop_orphans(struct coll *c, const struct src_collection *sc, const struct sink_collection *d)
{
    struct part *p;

    for (size_t i = 0; sc && i < sc->n_partitions; i++) {
        const struct src_partition *sp = &sc->partitions[i];
        if (sp->state == SRC_DROPPING && dst_part_id(d, sp->name) && !part_by_name(c, sp->name))
            drop_orphan(c, coll_part_new(c, sp->id, sp->name), dst_part_id(d, sp->name));
    }
    if (!sc)
        return;
    COLL_EACH_PART(c, k, p) {
        const struct src_partition *sp = find_part(sc, p->id);
        int64_t dst_id = dst_part_id(d, p->name);
        if (!p->dst_id && dst_id && (!sp || sp->state == SRC_DROPPING) && !dst_id_taken(c, dst_id))
            drop_orphan(c, p, dst_id);
    }
}

/* Known ones: still the same on the target? One that is dropped there already has nothing left to do. */
static int check_parts(struct coll *c, const struct sink_collection *d)
{
    struct part *p;

    COLL_EACH_PART(c, k, p) {
        if (!p->dst_id || dst_part_id(d, p->name) == p->dst_id)
            continue;
        if (!p->dropping && !c->src_dropping)
            return user_error(c, "a partition on the target is not the one that was replicated: somebody dropped it "
                                 "there. Delete the task and create it anew");
        if (p->dropping)
            c->task->drops_open--;
        part_free(c, p);
    }
    return 0;
}

/* With what the copy leaves in doubt; its record goes in the same commit. */
static void link_shards(struct coll *c)
{
    struct store *s = c->task->o.store;
    struct store_batch *b = s->ops->begin(s, c->task->o.id);
    struct repl_ckpt ck;

    for (size_t i = 0; i < c->n_shards; i++) {
        struct shard *sh = &c->shards[i];
        if (sh->link)
            continue;
        sh->link = stream_link(sh->stream, sh->dst_pchannel);
        sh->link->n_shards++;
        if (sh->skip_tt && !sh->linked_before)
            link_after_restore(sh->link);
        link_doubt(sh->link, copy_doubt(c, i));
        link_fill_ckpt(sh->link, &ck);
        s->ops->put_ckpt(b, &ck);
    }
    copy_free(c);
    coll_put(c, b);
    s->ops->commit(b, NULL, NULL);
}

static bool shards_done(const struct coll *c)
{
    for (size_t i = 0; i < c->n_shards; i++)
        if (c->shards[i].drop != SHARD_DROP_SENT)
            return false;
    return true;
}

static bool any_shard_dropped(const struct coll *c)
{
    for (size_t i = 0; i < c->n_shards; i++)
        if (c->shards[i].drop != SHARD_ALIVE)
            return true;
    return false;
}

static void want_parts(struct coll *c, const struct src_collection *sc);

static bool reads_over_gap(const struct coll *c)
{
    for (size_t i = 0; i < c->n_shards; i++)
        if (c->shards[i].stream->from_earliest)
            return true;
    return false;
}

/* Its streams may go on. */
static void coll_flows(struct coll *c, bool first);

static void coll_mapped(struct coll *c)
{
    bool first = c->state == COLL_MAPPING;

    c->backoff.cur_ms = 0;
    set_text(&c->trouble, NULL);
    if (first && c->copy && !c->src_dropping && !c->forced) {
        if (!c->task->o.rows) { /* the configuration changed, or is another daemon's */
            user_error(c, "its rows from before are not all copied, and the source's API is not known here: set "
                          "sourceConfig.milvus.uri in the configuration of this daemon");
            return;
        }
        c->state = COLL_COPYING;
    }
    if (c->state == COLL_COPYING) {
        coll_save(c); /* with the target's names */
        copy_kick(c);
        return;
    }
    coll_flows(c, first);
}

void coll_copied(struct coll *c)
{
    c->state = COLL_MAPPING; /* until its links are there */
    coll_flows(c, true);
}

static void coll_flows(struct coll *c, bool first)
{
    if (first) {
        c->state = any_shard_dropped(c) ? COLL_DROPPING : COLL_ACTIVE;
        if (c->state == COLL_DROPPING)
            c->task->drops_open++;
        log_info("repl", "collection is mapped", KS("task", c->task->o.id), KS("db", c->db), KS("collection", c->name),
                 KI("id", c->id), KI("target_id", c->dst_id), KU("shards", c->n_shards));
    }
    link_shards(c);
    for (size_t i = 0; i < c->n_shards; i++) {
        stream_open(c->shards[i].stream);
        stream_kick(c->shards[i].stream);
        tchan_kick(c->shards[i].link->tchan);
    }
    ops_kick(c->task->ops);
    if (!c->task->o.ignore_partition) /* of those made while we asked, or while the task did not run, no event comes */
        want_parts(c, c->task->o.catalog->ops->get(c->task->o.catalog, c->id));
    if (first && reads_over_gap(c))
        coll_on_gap(c);
    meta_connection(c->task, c->verified_gen);
    meta_news(c);
    coll_kick(c);
}

static void on_ensured(void *arg, const struct err *err, const struct sink_collection *d)
{
    struct coll *c = arg;
    struct repl_task *t = c->task;

    c->call = NULL;
    ensure_ended(c);
    if (err && err->code == ERR_NOT_FOUND && (c->src_dropping || any_shard_dropped(c))) {
        coll_forget(c); /* dropped on the target already */
        return;
    }
    if (err && err->code == ERR_NOT_FOUND) {
        user_error(c, "it is gone from the target: somebody dropped it there. Delete the task and create it anew");
        return;
    }
    if (err) {
        coll_fail(c, err);
        return;
    }
    if (c->creating)
        task_count_call(t, "CreateCollection");
    c->creating = false;
    c->plain_keys = d->plain_keys;
    set_left_out(c, d->left_out, d->n_left_out);
    if (map_shards(c, d) || check_parts(c, d))
        return;
    map_new_parts(c, t->o.catalog->ops->get(t->o.catalog, c->id), d);
    if (!t->o.ignore_partition && !c->src_dropping)
        drop_orphans(c, t->o.catalog->ops->get(t->o.catalog, c->id), d);
    c->verified_gen = c->verifying_gen;
    coll_mapped(c);
}

/* A collection whose metadata is gone from etcd: enough to find it on the target and finish its drop. */
static struct src_collection describe_from_record(const struct coll *c, struct src_shard *shards)
{
    struct src_collection sc = {.id = c->id,
                                .db_name = c->db,
                                .name = c->name,
                                .state = SRC_DROPPING,
                                .create_tt = c->create_tt,
                                .shards = shards,
                                .n_shards = c->n_shards,
                                .pk_field_id = c->pk_field_id,
                                .pk_is_string = c->pk_is_string,
                                .pk_name = c->pk_name,
                                .has_partition_key = c->partition_key};

    for (size_t i = 0; i < c->n_shards; i++)
        shards[i] = (struct src_shard){.vchannel = c->shards[i].vchannel, .pchannel = c->shards[i].pchannel};
    return sc;
}

static const struct src_collection *ask_source(struct coll *c)
{
    const struct src_collection *sc = c->task->o.catalog->ops->get(c->task->o.catalog, c->id);

    if (!sc || sc->state == SRC_DROPPING)
        c->src_dropping = true;
    return sc;
}

static void coll_ensure(struct coll *c)
{
    struct repl_task *t = c->task;
    const struct src_collection *sc = ask_source(c);
    struct src_collection fake;
    struct src_shard *shards = NULL;
    bool create;

    if (!sc) {
        shards = xcalloc(c->n_shards, sizeof(*shards));
        fake = describe_from_record(c, shards);
        sc = &fake;
    }
    create = !c->src_dropping && (c->state == COLL_MAPPING ? !c->dst_id : c->reensure);
    c->reensure = false;
    c->may_exist |= create;
    c->creating = create && c->state == COLL_MAPPING;
    c->verifying_gen = t->o.hub->sink->ops->generation(t->o.hub->sink); /* of the connection that data takes */
    c->ensuring = true;
    t->ensuring++;
    c->call = t->o.sink->ops->ensure_collection(t->o.sink, sc, c->dst_db, c->dst_name, create, on_ensured, c);
    free(shards);
}

int coll_conflict(const struct coll *c, const struct coll *other, struct err *err)
{
    return err_set(err, ERR_STATE, ERRC_USER,
                   "the source's collections %s.%s and %s.%s would both be %s.%s on the target, and two are never merged "
                   "(are they mapped to one name, or was one renamed?)%s%s. Drop or rename one of them on the source and resume the "
                   "task, or create it anew with another name_mapping or an exclusion",
                   other->db, other->name, c->db, c->name, c->dst_db, c->dst_name,
                   other->task == c->task ? "" : "; the first is of task ", other->task == c->task ? "" : other->task->o.id);
}

static void map_kick(struct coll *c)
{
    struct coll *other = task_name_taken(c->task, c);
    bool conflict;
    struct err err;

    (void)ask_source(c);
    if (other)
        (void)ask_source(other);
    conflict = other && !other->src_dropping && other->state != COLL_DROPPING;
    if (!other && !c->dst_id && (other = hub_name_taken(c->task->o.hub, c)))
        conflict = true; /* another task drops its own: then this one may be resumed */
    if (c->src_dropping && !c->dst_id && (!c->may_exist || conflict)) {
        coll_forget(c); /* came and went before it was made on the target */
        return;
    }
    if (other && other->rename_name && !other->rename_refused) {
        set_text(&c->trouble, "waits for the rename of the collection that had this name before");
        return;
    }
    if (conflict) {
        coll_conflict(c, other, &err);
        coll_fail(c, &err);
        return;
    }
    if (other) {
        other->forced = true;
        set_text(&c->trouble, "waits for the drop of the former collection of this name");
        coll_kick(other);
        return;
    }
    coll_ensure(c);
}

/* ---- drops --------------------------------------------------------------------------------------- */

bool coll_drop_open(const struct coll *c)
{
    return c->state == COLL_DROPPING;
}

struct part *coll_part(struct coll *c, int64_t id)
{
    size_t at = part_place(c, id);

    return at < c->n_parts && c->parts[at]->id == id ? c->parts[at] : NULL;
}

static void begin_drop(struct coll *c)
{
    if (c->state == COLL_DROPPING)
        return;
    c->state = COLL_DROPPING;
    c->task->drops_open++;
    log_info("repl", "collection is being dropped", KS("task", c->task->o.id), KS("db", c->db),
             KS("collection", c->name), KI("id", c->id));
}

void coll_shard_drop(struct coll *c, size_t shard, uint64_t tt)
{
    c->shards[shard].drop = SHARD_DROP_QUEUED;
    c->shards[shard].drop_tt = tt;
    begin_drop(c);
}

bool coll_part_drop(struct coll *c, int64_t partition_id, size_t shard, uint64_t tt)
{
    struct part *p = coll_part(c, partition_id);

    if (!p || !p->dst_id || c->task->o.ignore_partition || p->shards[shard] != SHARD_ALIVE)
        return false;
    p->shards[shard] = SHARD_DROP_QUEUED;
    if (tt > p->drop_tt)
        p->drop_tt = tt;
    begin_part_drop(c, p);
    return true;
}

void coll_on_drop_confirmed(struct coll *c, const struct item *it)
{
    struct part *p;

    if (it->head.type == MSG_DROP_COLLECTION) {
        c->shards[it->shard].drop = SHARD_DROP_SENT;
        c->shards[it->shard].drop_tt = it->tt;
    } else if ((p = coll_part(c, it->head.partition_id))) {
        p->shards[it->shard] = SHARD_DROP_SENT;
        if (it->tt > p->drop_tt)
            p->drop_tt = it->tt;
    }
    coll_save(c);
}

/* A drop message that is made here goes straight to the channel: the link may be waiting for a tick. */
static void queue_made_drop(struct coll *c, size_t shard, const struct part *p)
{
    struct link *l = c->shards[shard].link;
    struct item *it = item_new(ITEM_DROP, l);

    it->coll = coll_ref(c);
    it->shard = shard;
    it->head = (struct msg_head){.type = p ? MSG_DROP_PARTITION : MSG_DROP_COLLECTION,
                                 .collection_id = c->id,
                                 .partition_id = p ? p->id : -1};
    it->dst_partition = p ? p->dst_id : -1;
    tchan_queue(l->tchan, it);
    tchan_kick(l->tchan);
}

/* Is the log's own drop message of the shard only held, waiting for a tick that may not come? */
static bool drop_is_held(const struct coll *c, size_t shard, const struct part *p)
{
    const struct item *it;

    TAILQ_FOREACH(it, &c->shards[shard].link->hold, entry)
        if (it->kind == ITEM_DROP && it->coll == c && it->shard == shard && it->head.partition_id == (p ? p->id : 0))
            return true;
    return false;
}

/* Of the collection, or of one partition. A stream that is being reset would lose it: then with the next kick. */
static void make_drop(struct coll *c, size_t shard, enum shard_drop *drop, const struct part *p)
{
    bool wanted = *drop == SHARD_ALIVE || (*drop == SHARD_DROP_QUEUED && drop_is_held(c, shard, p));

    if (!wanted || c->shards[shard].stream->state == STREAM_RESETTING)
        return;
    *drop = SHARD_DROP_MADE;
    queue_made_drop(c, shard, p);
}

static void force_drop(struct coll *c)
{
    begin_drop(c);
    for (size_t i = 0; i < c->n_shards; i++)
        make_drop(c, i, &c->shards[i].drop, NULL);
}

static void force_part_drop(struct coll *c, struct part *p)
{
    if (!p->dst_id)
        return;
    p->forced = true;
    begin_part_drop(c, p);
    for (size_t i = 0; i < c->n_shards; i++)
        make_drop(c, i, &p->shards[i], p);
}

static void force_drops(struct coll *c)
{
    struct part *p;

    if (c->forced)
        force_drop(c);
    else
        COLL_EACH_PART(c, k, p)
            if (p->forced)
                force_part_drop(c, p);
}

void coll_on_gap(struct coll *c)
{
    const struct src_collection *sc = c->task->o.catalog->ops->get(c->task->o.catalog, c->id);
    struct part *p;

    if (c->state != COLL_ACTIVE && c->state != COLL_DROPPING)
        return; /* comes again when it is mapped */
    if (!sc || sc->state == SRC_DROPPING) {
        c->forced = true;
        coll_kick(c);
        return;
    }
    COLL_EACH_PART(c, k, p) {
        const struct src_partition *sp = find_part(sc, p->id);
        if (p->dst_id && (!sp || sp->state == SRC_DROPPING) && !c->task->o.ignore_partition)
            force_part_drop(c, p);
    }
}

static void drop_again(enum shard_drop *drop)
{
    if (*drop == SHARD_DROP_QUEUED || *drop == SHARD_DROP_MADE)
        *drop = SHARD_ALIVE;
}

void coll_stream_reset(struct coll *c, const struct stream *s)
{
    struct part *p;

    for (size_t i = 0; i < c->n_shards; i++) {
        if (c->shards[i].stream != s)
            continue;
        drop_again(&c->shards[i].drop);
        COLL_EACH_PART(c, k, p)
            drop_again(&p->shards[i]);
    }
}

/* Is the tick of every shard's channel at or above the drop?  Not asked of drops made here: their stream may be
 * stalled by the very collection that waits for the name. */
static bool ticks_reached(const struct coll *c, uint64_t part_tt, bool forced)
{
    for (size_t i = 0; i < c->n_shards && !forced; i++) {
        uint64_t tt = part_tt ? part_tt : c->shards[i].drop_tt;
        if (!c->shards[i].link || c->shards[i].link->tchan->tick_sent < tt)
            return false;
    }
    for (size_t i = 0; i < c->n_shards; i++)
        if (c->shards[i].link && tchan_carries(c->shards[i].link->tchan, c))
            return false; /* rows of it are under way */
    return true;
}

static void on_dropped(void *arg, const struct err *err)
{
    struct coll *c = arg;

    c->call = NULL;
    if (err) {
        coll_fail(c, err);
        return;
    }
    task_count_call(c->task, "DropCollection");
    coll_forget(c);
}

static void on_part_dropped(void *arg, const struct err *err)
{
    struct coll *c = arg;

    c->call = NULL;
    if (err) {
        coll_fail(c, err);
        return;
    }
    task_count_call(c->task, "DropPartition");
    c->task->drops_open--;
    part_free(c, c->call_part);
    c->call_part = NULL;
    c->reensure = true; /* the name is free for a new partition */
    coll_save(c);
    coll_kick(c);
}

static bool part_ready(const struct coll *c, const struct part *p)
{
    for (size_t i = 0; i < c->n_shards; i++)
        if (p->shards[i] != SHARD_DROP_SENT)
            return false;
    return p->dropping && ticks_reached(c, p->drop_tt, p->forced);
}

static bool drop_kick(struct coll *c)
{
    struct sink *s = c->task->o.sink;
    struct part *p;

    if (c->state == COLL_DROPPING && shards_done(c) && ticks_reached(c, 0, c->forced)) {
        c->call = s->ops->drop_collection(s, c->dst_db, c->dst_name, c->shards[0].drop_tt, on_dropped, c);
        return true;
    }
    if (c->state != COLL_ACTIVE)
        return false;
    COLL_EACH_PART(c, k, p)
        if (part_ready(c, p)) {
            c->call_part = p;
            c->call = s->ops->drop_partition(s, c->dst_db, c->dst_name, p->name, p->drop_tt, on_part_dropped, c);
            return true;
        }
    return false;
}

/* ---- facts from the catalog ---------------------------------------------------------------------- */

/* A living partition that is not mapped: make it, once an older one of its name is out of the way. */
static void want_part(struct coll *c, const struct src_partition *sp)
{
    struct part *old = part_by_name(c, sp->name);

    if (old && old->id != sp->id && old->dst_id) {
        force_part_drop(c, old);
        return;
    }
    if (old && old->id != sp->id)
        part_free(c, old);
    c->reensure = true;
}

static const struct src_partition *find_part(const struct src_collection *sc, int64_t id)
{
    for (size_t i = 0; sc && i < sc->n_partitions; i++)
        if (sc->partitions[i].id == id)
            return &sc->partitions[i];
    return NULL;
}

int coll_partition(struct coll *c, int64_t id, size_t shard, int64_t *ret_dst_id)
{
    struct repl_task *t = c->task;
    struct part *p = coll_part(c, id);
    const struct src_partition *sp;

    if (p && p->shards[shard] != SHARD_ALIVE)
        return -1;
    if (p && p->dst_id) {
        *ret_dst_id = p->dst_id;
        return 1;
    }
    sp = find_part(t->o.catalog->ops->get(t->o.catalog, c->id), id);
    if (c->src_dropping || (sp && sp->state == SRC_DROPPING))
        return -1; /* never made on the target, and not needed any more */
    if (sp && sp->state == SRC_ALIVE && t->o.ignore_partition && c->verified_gen) {
        (void)user_error(c, "rows for a partition that the target does not have, and ignore_partition is set. Create "
                            "the partition on the target, then resume the task");
        return 0;
    }
    if (sp && sp->state == SRC_ALIVE) {
        want_part(c, sp);
        coll_kick(c);
        return 0;
    }
    if (c->asked_part == id && t->sync_round > c->asked_round)
        return -1; /* etcd did not have it after the message was written: dropped and cleaned up */
    if (c->asked_part != id) {
        c->asked_part = id;
        c->asked_round = t->sync_round + (t->syncing ? 1 : 0);
    }
    task_sync(t);
    return 0;
}

static void want_parts(struct coll *c, const struct src_collection *sc)
{
    for (size_t i = 0; sc && i < sc->n_partitions && c->state == COLL_ACTIVE && !c->src_dropping; i++) {
        struct part *p = coll_part(c, sc->partitions[i].id);
        if (sc->partitions[i].state == SRC_ALIVE && !(p && p->dst_id))
            want_part(c, &sc->partitions[i]);
    }
}

void coll_update(struct coll *c, const struct src_collection *sc)
{
    if (sc->state == SRC_DROPPING && !c->src_dropping) {
        c->src_dropping = true;
        task_kick_waiting(c->task);
    }
    coll_follow_name(c);
    want_parts(c, sc);
    meta_news(c);
    coll_kick(c);
}

struct msg_columns *coll_columns(const struct coll *c)
{
    const struct src_collection *sc = c->task->o.catalog->ops->get(c->task->o.catalog, c->id);
    struct msg_columns *columns = msg_columns_new();

    if (sc)
        msg_columns_defaults(columns, sc->default_ids, sc->n_default_ids);
    msg_columns_without(columns, c->left_out, c->n_left_out);
    return columns;
}

bool coll_verified(const struct coll *c)
{
    const struct sink *s = c->task->o.hub->sink;

    return c->verified_gen && c->verified_gen == s->ops->generation((struct sink *)(uintptr_t)s);
}

bool coll_part_alive(struct coll *c, int64_t id)
{
    const struct part *p = coll_part(c, id);
    const struct src_partition *sp = find_part(c->task->o.catalog->ops->get(c->task->o.catalog, c->id), id);

    return p && p->dst_id && !p->dropping && sp && sp->state == SRC_ALIVE;
}

bool coll_part_at(const struct coll *c, int64_t from, int64_t *ret_id, const char **ret_name)
{
    *ret_name = NULL;
    *ret_id = ALL_PARTS;
    if (c->partition_key)
        return true;
    for (size_t i = 0; i < c->n_parts; i++) /* by id */
        if (c->parts[i]->id >= from && c->parts[i]->dst_id && !c->parts[i]->dropping) {
            *ret_id = c->parts[i]->id;
            *ret_name = c->parts[i]->name;
            return true;
        }
    return false;
}

char *coll_key_expr(const struct coll *c, const char *after, const char *to)
{
    /* an empty expression is not allowed with a limit by every version: all keys; the least number as in msg_keys.c */
    char *from = after             ? xasprintf("%s > %s", c->pk_name, after)
                 : c->pk_is_string ? xasprintf("%s >= \"\"", c->pk_name)
                                   : xasprintf("%s >= %" PRId64 "-1", c->pk_name, INT64_MIN + 1);
    char *expr = to ? xasprintf("%s and %s <= %s", from, c->pk_name, to) : xstrdup(from);

    free(from);
    return expr;
}

uint64_t coll_first_rows(const struct coll *c, size_t bytes)
{
    const struct src_collection *sc = c->task->o.catalog->ops->get(c->task->o.catalog, c->id);
    uint64_t rows = bytes / (sc && sc->row_bytes ? sc->row_bytes : 1);

    return rows < 1 ? 1 : rows > FIRST_ROWS ? FIRST_ROWS : rows;
}

void coll_unverify(struct coll *c)
{
    c->verified_gen = 0;
}

void coll_kick(struct coll *c)
{
    if (c->task->fatal || c->task->state != RUN_RUNNING || c->call || timer_armed(&c->retry))
        return;
    if ((c->state == COLL_MAPPING || c->state == COLL_COPYING || c->state == COLL_ACTIVE) && coll_rename_kick(c))
        return;
    switch (c->state) {
    case COLL_MAPPING:
        if (c->task->ensuring < MAX_ENSURING) /* else it is kicked when there are fewer */
            map_kick(c);
        return;
    case COLL_COPYING:
        if (c->src_dropping || c->forced)
            coll_copied(c); /* nobody needs the rest */
        else if (!coll_verified(c))
            coll_ensure(c);
        else
            copy_kick(c);
        return;
    case COLL_ACTIVE:
    case COLL_DROPPING:
        if (!c->verified_gen || c->reensure)
            coll_ensure(c);
        else
            force_drops(c);
        if (!c->call)
            (void)drop_kick(c);
        meta_kick(c);
        return;
    case COLL_NEW:
    case COLL_GONE:
        return;
    }
}
