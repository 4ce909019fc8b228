/*
 * join.c - the first start of a task: where each collection that exists already begins in its channels' logs.
 *
 * At the end of the log, at the collection's first message, at a time, or at a position that the user gave. What has to be
 * asked for that (the ends of topics here, what the queue still has in kept.c) is asked first; then all is decided at once.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "repl/priv.h"

#define AHEAD_MS 10000 /* so far, and much less, a row may stand in the log before the tick of its time */

int join_at_start(struct repl_task *t, const struct src_collection *sc, size_t shard, struct coll_join *ret)
{
    const struct src_shard *sh = &sc->shards[shard];
    struct err err;

    if (sh->start_id_len && t->o.wal->ops->id_decode(sh->start_id, sh->start_id_len, &ret->from) == 0) {
        ret->join = ret->from;
        return 0;
    }
    err_set(&err, ERR_PROTO, ERRC_USER, "collection %s.%s has no usable start position on channel %s in etcd", sc->db_name,
            sc->name, sh->pchannel);
    task_fatal(t, &err);
    return -1;
}

static bool joins_at_end(struct repl_task *t, const struct src_collection *sc, size_t shard, const struct repl_match *m)
{
    const uint8_t *id;
    size_t len;
    uint64_t tt;

    return !m->use_start_position && !t->o.start_tt &&
           !t->o.selection.position(t->o.selection.ctx, sc->shards[shard].vchannel, &id, &len, &tt);
}

static void wrong_queue(const struct join_topic *jt)
{
    const struct wal_port *w = jt->task->o.wal;
    struct err err;

    err_set(&err, ERR_INVALID, ERRC_USER,
            "the source has a collection on channel %s, but nothing of that name is in the message queue (%s): is %s "
            "the queue of this source?",
            jt->name, w->name, w->setting);
    task_fatal(jt->task, &err);
}

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct join_topic *jt = arg;

    if (err) {
        struct err e = *err;
        if (!strstr(e.text, jt->task->o.wal->setting))
            err_wrap(&e, "%s", jt->task->o.wal->setting);
        set_text(&jt->task->start_trouble, e.text);
        timer_set(&jt->task->start_timer, backoff_next_ms(&jt->task->start_backoff));
        jt->asking = false;
        return;
    }
    jt->asking = false;
    if (!found && jt->must_exist) {
        wrong_queue(jt);
        return;
    }
    jt->answered = true;
    if (found)
        jt->last = last; /* else the topic is empty: from its first message */
    task_start_step(jt->task);
}

static struct join_topic *topic_of(struct repl_task *t, const char *name)
{
    struct join_topic *jt;

    HASH_FIND_STR(t->topics, name, jt);
    if (jt)
        return jt;
    jt = xcalloc(1, sizeof(*jt));
    jt->task = t;
    jt->name = xstrdup(name);
    HASH_ADD_KEYPTR(hh, t->topics, jt->name, strlen(jt->name), jt);
    return jt;
}

void join_free(struct repl_task *t)
{
    struct join_topic *jt, *tmp;

    HASH_ITER(hh, t->topics, jt, tmp) {
        t->o.wal->ops->end_cancel(t->o.wal, jt);
        HASH_DEL(t->topics, jt);
        free(jt->name);
        free(jt);
    }
}

/* Asks for the end of every topic that is needed; true when all are known. */
static bool topics_known(struct repl_task *t)
{
    struct join_topic *jt;
    bool all = true;

    for (jt = t->topics; jt; jt = jt->hh.next) {
        all &= jt->answered;
        if (jt->answered || jt->asking)
            continue;
        jt->asking = true;
        t->o.wal->ops->end(t->o.wal, jt->name, on_end, jt);
    }
    return all;
}

typedef void (*selected_fn)(struct repl_task *t, const struct src_collection *sc, const struct repl_match *m);

static void for_each_selected(struct repl_task *t, selected_fn fn)
{
    const struct src_collection *sc;
    struct repl_match m;
    int64_t id = INT64_MIN;

    while ((sc = t->o.catalog->ops->next(t->o.catalog, id))) {
        id = sc->id;
        if (sc->state == SRC_ALIVE && t->o.selection.match(t->o.selection.ctx, sc->db_name, sc->name, &m))
            fn(t, sc, &m);
    }
}

/* Better a refusal now than a task that stops at its first row. */
static void check_target(struct repl_task *t, const struct src_collection *sc, const struct repl_match *m)
{
    struct err err;

    (void)m;
    if (t->o.target_version && t->o.sink->ops->check_collection &&
        t->o.sink->ops->check_collection(t->o.sink, sc, t->o.target_version, &err))
        task_fatal(t, &err);
}

static void want_topics(struct repl_task *t, const struct src_collection *sc, const struct repl_match *m)
{
    for (size_t i = 0; i < sc->n_shards; i++)
        if (joins_at_end(t, sc, i, m))
            topic_of(t, sc->shards[i].pchannel)->must_exist = true;
}

/* From its first message on, if the queue still has that. */
static bool begin_pos(struct repl_task *t, const struct src_shard *sh, struct wal_pos *ret)
{
    return sh->start_id_len && t->o.wal->ops->id_decode(sh->start_id, sh->start_id_len, ret) == 0;
}

static void want_shard_kept(struct repl_task *t, const struct src_collection *sc, size_t i, const struct repl_match *m)
{
    const struct src_shard *sh = &sc->shards[i];
    const uint8_t *id;
    size_t len;
    uint64_t tt;
    bool given = t->o.selection.position(t->o.selection.ctx, sh->vchannel, &id, &len, &tt);
    struct wal_pos pos;
    char *what;

    if (!given && !m->use_start_position) {
        if (t->o.start_tt)
            (void)kept_first(t, sh->pchannel);
        return;
    }
    if (given ? t->o.wal->ops->id_decode(id, len, &pos) != 0 : !begin_pos(t, sh, &pos))
        return; /* told when it joins */
    what = xasprintf("%s %s of %s.%s", given ? "the position given for" : "the beginning, on", sh->vchannel, sc->db_name,
                     sc->name);
    kept_place(t, sh->pchannel, pos, what);
    free(what);
}

static void want_kept(struct repl_task *t, const struct src_collection *sc, const struct repl_match *m)
{
    for (size_t i = 0; i < sc->n_shards; i++)
        want_shard_kept(t, sc, i, m);
}

static void want_rpc_kept(struct repl_task *t)
{
    struct wal_pos pos;

    if (t->o.rpc_id && t->o.wal->ops->id_decode(t->o.rpc_id, t->o.rpc_id_len, &pos) == 0)
        kept_place(t, t->o.replicate_chan, pos, "rpc_channel_info.position");
}

static int gone(struct repl_task *t, const struct src_collection *sc, const struct kept *k)
{
    char asked[CLOCK_CHARS], there[CLOCK_CHARS];
    struct err err;

    clock_format(tt_to_ms(t->o.start_tt), asked);
    clock_format(tt_to_ms(k->first_tt), there);
    err_set(&err, ERR_INVALID, ERRC_USER,
            "start is %s, but on channel %s (of collection %s.%s) the queue has nothing of before %s any more: what was written "
            "between would be missing (a start needs the log from %d s before it). Give a later start, or \"accept_gap\": true "
            "to go on without it",
            asked, k->topic, sc->db_name, sc->name, there, AHEAD_MS / 1000);
    task_fatal(t, &err);
    return -1;
}

/*
 * At a time: from the first message that the queue has, or the collection's own first one; what is of before the time is
 * skipped. Rows may stand in the log somewhat before the tick of their time.
 */
static int join_at_time(struct repl_task *t, const struct src_collection *sc, size_t i, struct coll_join *ret)
{
    const struct src_shard *sh = &sc->shards[i];
    const struct kept *k;
    struct wal_pos begin;

    ret->skip_tt = t->o.start_tt;
    if (!t->o.strict_start)
        return 0; /* the first one, whatever it is */
    k = kept_first(t, sh->pchannel);
    if (begin_pos(t, sh, &begin) && wal_pos_cmp(begin, k->first) >= 0) {
        ret->from = ret->join = begin;
        return 0;
    }
    if (k->first_tt + tt_from_ms(AHEAD_MS) > t->o.start_tt)
        return gone(t, sc, k);
    ret->from = ret->join = k->first;
    return 0;
}

/* One channel of any living collection tells whether this is the source's queue at all. */
static void want_proof(struct repl_task *t)
{
    const struct src_collection *sc;
    int64_t id = INT64_MIN;

    while ((sc = t->o.catalog->ops->next(t->o.catalog, id))) {
        id = sc->id;
        if (sc->state != SRC_ALIVE || sc->n_shards == 0)
            continue;
        topic_of(t, sc->shards[0].pchannel)->must_exist = true;
        return;
    }
}

static int join_place(struct repl_task *t, const struct src_collection *sc, size_t i, const struct repl_match *m,
                      struct coll_join *ret)
{
    const uint8_t *id;
    size_t len;
    struct err err;

    if (t->o.selection.position(t->o.selection.ctx, sc->shards[i].vchannel, &id, &len, &ret->skip_tt)) {
        if (t->o.wal->ops->id_decode(id, len, &ret->from) == 0) {
            ret->join = ret->from;
            return 0;
        }
        err_set(&err, ERR_INVALID, ERRC_USER, "the position given for %s is not a message id of %s",
                sc->shards[i].vchannel, t->o.wal->name);
        task_fatal(t, &err);
        return -1;
    }
    if (m->use_start_position)
        return join_at_start(t, sc, i, ret);
    if (t->o.start_tt)
        return join_at_time(t, sc, i, ret);
    ret->from = topic_of(t, sc->shards[i].pchannel)->last;
    ret->join = ret->from;
    ret->join.minor++; /* behind the last message that exists now */
    return 0;
}

static void join_existing(struct repl_task *t, const struct src_collection *sc, const struct repl_match *m)
{
    struct coll_join *joins = xcalloc(sc->n_shards ? sc->n_shards : 1, sizeof(*joins));
    bool ok = !t->fatal;
    struct coll *c, *other;
    struct err err;

    for (size_t i = 0; i < sc->n_shards && ok; i++)
        ok = join_place(t, sc, i, m, &joins[i]) == 0;
    c = ok ? coll_new(t, sc, m, joins) : NULL;
    other = c ? task_name_taken(t, c) : NULL;
    if (c && !other)
        other = hub_name_taken(t->o.hub, c);
    if (other) {
        coll_conflict(c, other, &err);
        task_fatal(t, &err);
    } else if (c) {
        if (m->snapshot)
            copy_new(c);
        meta_from_before(c);
    }
    free(joins);
}

static void join_ops(struct repl_task *t)
{
    struct repl_ckpt ck = {0};

    if (t->o.rpc_id) {
        if (t->o.wal->ops->id_decode(t->o.rpc_id, t->o.rpc_id_len, &ck.start)) {
            struct err err;
            err_set(&err, ERR_INVALID, ERRC_USER, "rpc_channel_info.position is not a message id of %s", t->o.wal->name);
            task_fatal(t, &err);
            return;
        }
        ck.done = wal_pos_before(ck.start);
    } else {
        ck.start = ck.done = topic_of(t, t->o.replicate_chan)->last;
    }
    ops_set_start(t->ops, &ck);
}

bool join_ready(struct repl_task *t)
{
    struct err err;

    if (t->o.selection.check && t->o.selection.check(t->o.selection.ctx, t->o.catalog, &err)) {
        task_fatal(t, &err);
        return false;
    }
    for_each_selected(t, check_target);
    if (t->fatal)
        return false;
    for_each_selected(t, want_topics);
    want_proof(t);
    if (!t->o.rpc_id)
        (void)topic_of(t, t->o.replicate_chan);
    if (t->o.strict_start) {
        for_each_selected(t, want_kept);
        want_rpc_kept(t);
    }
    return topics_known(t) && kept_known(t);
}

void join_all(struct repl_task *t)
{
    for_each_selected(t, join_existing);
    join_ops(t);
}
