/*
 * meta.c - what users set up beside the rows of a collection: indexes, load state, aliases, properties.
 *
 * None of it has an order relative to rows, and all of it stands in the source's etcd. So it is not replayed but made
 * equal: at the start, on a new connection to the target, and whenever the catalog has news of the collection, a round
 * compares what the source has with what the target has, and makes the calls that are missing (meta_plan.c). A round may be
 * repeated any time.
 *
 * A user of the target may have indexes, loads and aliases of his own there. Only what the source had is taken away: so
 * the collection's record says what it ever had, and says it before the target is touched.
 *
 * On a standby, indexes and load states come over the replicate channel (ops.c), in the order of the log. What is from
 * before the task is set up here, before the first operation of the collection.
 */
#include "repl/priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "meta_plan.h"

#define FIRST "\"first\":true" /* in the record on a standby: what is from before the task is not set up yet */

enum {
    MAX_ROUNDS = 4,     /* of a task at a time */
    REFUSED_MS = 60000, /* what the target refused is asked for again after so long */
};

struct meta {
    struct coll *coll;
    bool due;           /* there is, or may be, something to do */
    bool running;       /* a round is under way */
    bool aliasing;      /* the call under way is about an alias */
    bool waiting;       /* for another one's */
    bool storing;
    bool others;        /* indexes and load states are the replicate channel's */
    bool equal;         /* the target has been made equal to seen, */
    uint64_t gen;       /* on this connection (repl_task.meta_gen) */
    char *seen;         /* state, see meta_plan.h: all that the source ever had, of what is not yet off the target */
    json_t *wanted;     /* of the round */
    json_t *left_out;   /* indexes that the target refused, and can be without: {"field name": true} */
    struct rows_call *question;
    json_t *properties; /* as the source itself says; NULL: not known, etcd's count */
    int64_t asked;      /* revision of the collection that the source was asked about */
    bool ask_again;     /* in vain */
    struct meta_plan plan;
    size_t next;        /* step of the plan */
    struct sink_call *call;
    bool refused;       /* some step of the round was */
    char *trouble;
    struct timer retry;
    struct backoff backoff;
};

static void step(struct meta *m);

static void on_retry(void *arg)
{
    struct meta *m = arg;

    m->due = true;
    meta_kick(m->coll);
}

static struct meta *meta_of(struct coll *c)
{
    struct meta *m = c->meta;

    if (m)
        return m;
    m = c->meta = xcalloc(1, sizeof(*m));
    m->coll = c;
    m->others = !c->task->o.hub->portable;
    m->backoff = c->task->o.hub->retry;
    timer_init(&m->retry, c->task->loop, LOOP_PRIO_NORMAL, on_retry, m);
    return m;
}

/* One call about an alias at a time: it may be moving from one collection to another. */
static void alias_leave(struct meta *m)
{
    struct repl_task *t = m->coll->task;
    struct coll *c;

    if (!m->aliasing)
        return;
    m->aliasing = t->aliasing = false;
    for (c = t->colls; c && !t->aliasing; c = c->hh.next)
        if (c->meta && c->meta->waiting) {
            c->meta->waiting = false;
            step(c->meta);
        }
}

static void round_leave(struct meta *m)
{
    struct repl_task *t = m->coll->task;

    json_decref(m->wanted);
    m->wanted = NULL;
    m->waiting = false;
    meta_plan_release(&m->plan);
    alias_leave(m);
    if (!m->running)
        return;
    m->running = false;
    t->meta_rounds--;
    meta_kick_next(t);
    if (m->coll->rename_name)
        coll_kick(m->coll); /* waited for the end of the round */
}

void meta_free(struct coll *c)
{
    struct meta *m = c->meta;
    struct store *s = c->task->o.store;

    if (!m)
        return;
    c->meta = NULL;
    c->task->o.sink->ops->cancel(m->call);
    if (m->storing)
        s->ops->cancel(s, m);
    if (m->question)
        c->task->o.rows->ops->cancel(m->question);
    timer_release(&m->retry);
    round_leave(m);
    json_decref(m->left_out);
    json_decref(m->properties);
    free(m->seen);
    free(m->trouble);
    free(m);
}

const char *meta_record(const struct coll *c)
{
    return c->meta ? c->meta->seen : NULL;
}

void meta_from_record(struct coll *c, const char *text)
{
    struct meta *m = meta_of(c);

    set_text(&m->seen, text);
    m->others = !c->task->o.hub->portable && !strstr(text, FIRST);
}

void meta_from_before(struct coll *c)
{
    if (!c->task->o.hub->portable)
        meta_from_record(c, "{" FIRST "}");
}

bool meta_running(const struct coll *c)
{
    return c->meta && c->meta->running;
}

bool meta_first_open(const struct coll *c)
{
    return c->meta && !c->meta->others && !c->task->o.hub->portable;
}

const char *meta_trouble(const struct coll *c)
{
    return c->meta ? c->meta->trouble : NULL;
}

/* ---- the round -------------------------------------------------------------------------------------- */

/* It does not work now. */
static void round_fail(struct meta *m, const struct err *err)
{
    set_text(&m->trouble, err->text);
    log_warn("repl", "indexes, load state, aliases or properties have to wait", KS("task", m->coll->task->o.id),
             KS("collection", m->coll->name), KS("error", err->text));
    m->due = true;
    timer_set(&m->retry, backoff_next_ms(&m->backoff));
    round_leave(m);
}

static void store_seen(struct meta *m, char *take, store_done_fn done)
{
    struct store *s = m->coll->task->o.store;
    struct store_batch *b = s->ops->begin(s, m->coll->task->o.id);

    free(m->seen);
    m->seen = take;
    coll_put(m->coll, b);
    m->storing = done != NULL;
    s->ops->commit(b, done, m);
}

/* What was refused stays known as possibly there, and is asked for again. */
static void round_finish(struct meta *m)
{
    char *text = meta_text(m->wanted);

    m->backoff.cur_ms = 0;
    m->others = !m->coll->task->o.hub->portable; /* operations go on */
    m->equal = !m->refused;
    if (m->refused) {
        m->due = true;
        timer_set(&m->retry, REFUSED_MS);
    } else {
        set_text(&m->trouble, NULL);
    }
    if (m->equal && (!m->seen || strcmp(m->seen, text) != 0))
        store_seen(m, text, NULL);
    else
        free(text);
    ops_kick(m->coll->task->ops);
    round_leave(m);
}

static bool is_left_out(const struct meta *m, const struct meta_step *s)
{
    char *key = xasprintf("%s %s", s->field, s->name);
    bool found = s->minor && json_object_get(m->left_out, key);

    free(key);
    return found;
}

/* Only a start asks for it again: else each piece of news would. */
static void leave_out(struct meta *m, const struct meta_step *s)
{
    char *key = xasprintf("%s %s", s->field, s->name);

    if (!m->left_out)
        m->left_out = json_object();
    json_object_set_new(m->left_out, key, json_true());
    free(key);
}

static void on_changed(void *arg, const struct err *err)
{
    struct meta *m = arg;
    const struct meta_step *s = &m->plan.steps[m->next];

    m->call = NULL;
    alias_leave(m);
    if (err && err->cls == ERRC_RETRY && err->code != ERR_INTERNAL) {
        round_fail(m, err);
        return;
    }
    if (err)
        log_warn("repl", "the target refuses what the source has set up", KS("task", m->coll->task->o.id),
                 KS("collection", m->coll->name), KS("field", s->field), KS("name", s->name), KS("error", err->text));
    if (err && s->minor)
        leave_out(m, s);
    if (err && !s->minor) {
        m->refused = true;
        set_text(&m->trouble, err->text);
    }
    m->next++;
    step(m);
}

/* Does the alias stand for another collection of the task now? Then that one moves it. */
static bool alias_moved(const struct meta *m, const char *alias)
{
    struct repl_task *t = m->coll->task;
    const struct src_collection *sc;

    for (struct coll *c = t->colls; c; c = c->hh.next) {
        sc = c != m->coll ? t->o.catalog->ops->get(t->o.catalog, c->id) : NULL;
        for (size_t i = 0; sc && i < sc->n_aliases; i++)
            if (strcmp(sc->aliases[i], alias) == 0 && strcmp(c->dst_db, m->coll->dst_db) == 0)
                return true;
    }
    return false;
}

static const char *kind_name(enum sink_change_kind kind)
{
    static const char *const names[] = {[SINK_CREATE_INDEX] = "CreateIndex",
                                        [SINK_DROP_INDEX] = "DropIndex",
                                        [SINK_LOAD] = "LoadCollection",
                                        [SINK_LOAD_PARTITIONS] = "LoadPartitions",
                                        [SINK_RELEASE] = "ReleaseCollection",
                                        [SINK_RELEASE_PARTITIONS] = "ReleasePartitions",
                                        [SINK_ALIAS] = "AlterAlias",
                                        [SINK_DROP_ALIAS] = "DropAlias",
                                        [SINK_SET_PROPERTIES] = "AlterCollection",
                                        [SINK_DROP_PROPERTIES] = "AlterCollection"};

    return names[kind];
}

static void call(struct meta *m, const struct meta_step *s)
{
    struct coll *c = m->coll;
    struct sink *sink = c->task->o.sink;
    struct sink_change change = {.kind = s->kind,
                                 .db = c->dst_db,
                                 .collection = c->dst_name,
                                 .field = s->field,
                                 .name = s->name,
                                 .pairs = s->pairs,
                                 .n_pairs = s->n_pairs,
                                 .names = (const char *const *)s->names,
                                 .n_names = s->n_names,
                                 .replicas = s->replicas};

    log_info("repl", "as on the source", KS("task", c->task->o.id), KS("operation", kind_name(s->kind)),
             KS("target_db", c->dst_db), KS("target_collection", c->dst_name), KS("field", s->field), KS("name", s->name));
    task_count_call(c->task, kind_name(s->kind));
    m->call = sink->ops->change_meta(sink, &change, on_changed, m);
}

static void step(struct meta *m)
{
    struct repl_task *t = m->coll->task;

    if (m->coll->src_dropping) {
        round_leave(m);
        return;
    }
    for (; m->next < m->plan.n; m->next++) {
        const struct meta_step *s = &m->plan.steps[m->next];
        bool alias = s->kind == SINK_ALIAS || s->kind == SINK_DROP_ALIAS;

        if ((s->kind == SINK_DROP_ALIAS && alias_moved(m, s->name)) || is_left_out(m, s))
            continue;
        m->waiting = alias && t->aliasing;
        if (m->waiting)
            return;
        m->aliasing = alias;
        t->aliasing |= alias;
        call(m, s);
        return;
    }
    round_finish(m);
}

static void on_described(void *arg, const struct err *err, const struct sink_meta *has)
{
    struct meta *m = arg;
    json_t *seen;

    m->call = NULL;
    if (err) {
        round_fail(m, err);
        return;
    }
    seen = json_loads(m->seen, 0, NULL);
    meta_plan_make(m->wanted, seen, has, !m->others, &m->plan);
    json_decref(seen);
    m->next = 0;
    m->refused = false;
    step(m);
}

static void ask(struct meta *m)
{
    struct coll *c = m->coll;
    struct sink *s = c->task->o.sink;
    json_t *partitions = json_object_get(m->wanted, "partitions"), *v;
    const char **names = xcalloc(json_object_size(partitions) + 1, sizeof(*names)), *name;
    size_t n = 0;

    json_object_foreach(partitions, name, v)
        names[n++] = name;
    m->call = s->ops->describe_meta(s, c->dst_db, c->dst_name, names, n, on_described, m);
    free(names);
}

static void on_stored(void *arg, const struct err *err)
{
    struct meta *m = arg;

    m->storing = false;
    if (err)
        task_fatal(m->coll->task, err);
    else
        ask(m);
}

/* What the source has is known as seen before the target gets it. */
static void note_and_ask(struct meta *m)
{
    json_t *seen = m->seen ? json_loads(m->seen, 0, NULL) : NULL, *u = meta_union(seen, m->wanted);
    bool nothing = meta_is_plain(u);
    char *text;

    if (!m->coll->task->o.hub->portable && !m->others)
        json_object_set_new(u, "first", json_true());
    text = meta_text(u);
    json_decref(u);
    json_decref(seen);
    if (!nothing && (!m->seen || strcmp(m->seen, text) != 0)) {
        store_seen(m, text, on_stored);
        return;
    }
    free(text);
    if (nothing) {
        m->refused = false;
        round_finish(m);
    } else {
        ask(m);
    }
}

static bool may_run(const struct coll *c)
{
    const struct repl_task *t = c->task;

    return c->state == COLL_ACTIVE && !c->src_dropping && !c->forced && c->verified_gen && !c->reensure && !c->call &&
           !t->fatal && t->state == RUN_RUNNING && t->meta_rounds < MAX_ROUNDS;
}

/* ---- what the source itself says ---------------------------------------------------------------------- */

static void on_properties(void *arg, const struct err *err, const struct src_pair *pairs, size_t n)
{
    struct meta *m = arg;

    m->question = NULL;
    json_decref(m->properties);
    m->properties = err ? NULL : meta_properties(pairs, n);
    m->ask_again = err != NULL;
    if (err)
        log_warn("repl", "the source does not tell the properties of a collection, those in its etcd count",
                 KS("task", m->coll->task->o.id), KS("collection", m->coll->name), KS("error", err->text));
    m->due = true;
    round_leave(m);
}

/* True: there is something to wait for. */
static bool ask_source(struct meta *m, const struct src_collection *sc)
{
    struct rows_port *rows = m->coll->task->o.rows;

    if (!rows || m->asked == sc->revision)
        return false;
    m->asked = sc->revision;
    m->running = true;
    m->coll->task->meta_rounds++;
    m->question = rows->ops->properties(rows, sc->db_name, sc->name, on_properties, m);
    return true;
}

static json_t *wanted_of(const struct meta *m, const struct src_collection *sc)
{
    json_t *wanted = meta_wanted(sc);

    if (m->properties && m->asked == sc->revision)
        json_object_set(wanted, "properties", m->properties);
    return wanted;
}

void meta_kick(struct coll *c)
{
    struct meta *m = c->meta;
    const struct src_collection *sc;
    char *text;

    if (!m || !m->due || m->running || timer_armed(&m->retry) || !may_run(c))
        return;
    m->due = false;
    sc = c->task->o.catalog->ops->get(c->task->o.catalog, c->id);
    if (!sc || sc->state != SRC_ALIVE || ask_source(m, sc))
        return;
    m->wanted = wanted_of(m, sc);
    text = meta_text(m->wanted);
    if ((m->equal && m->gen == c->task->meta_gen && m->seen && strcmp(m->seen, text) == 0) ||
        (!m->seen && meta_is_plain(m->wanted))) {
        json_decref(m->wanted);
        m->wanted = NULL;
    } else {
        m->running = true;
        m->gen = c->task->meta_gen;
        c->task->meta_rounds++;
        note_and_ask(m);
    }
    free(text);
}

void meta_news(struct coll *c)
{
    struct meta *m = meta_of(c);

    m->due = true;
    if (m->ask_again)
        m->asked = 0;
    m->ask_again = false;
    if (m->refused && !m->running)
        timer_cancel(&m->retry); /* it may be taken now */
    meta_kick(c);
}

void meta_connection(struct repl_task *t, uint64_t generation)
{
    if (!t->o.hub->portable || t->meta_gen == generation)
        return;
    t->meta_gen = generation;
    for (struct coll *c = t->colls; c; c = c->hh.next)
        if (c->meta)
            c->meta->due = true;
    meta_kick_next(t);
}

void meta_kick_next(struct repl_task *t)
{
    struct coll *c;

    for (c = t->colls; c && t->meta_rounds < MAX_ROUNDS; c = c->hh.next)
        if (c->meta && c->meta->due)
            meta_kick(c);
}
