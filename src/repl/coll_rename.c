/*
 * coll_rename.c - a collection of the source has got another name.
 *
 * It is the same collection, since its id is: the task follows it, whatever the selection says of the new name. The
 * target's collection is renamed too where the new name is selected, to what the name mapping makes of it; else it keeps
 * its name.
 *
 * An ordinary target is written to by names. So no request is under way while the target's collection is renamed, and none
 * is built. What is going to be done stands in the record before, for a crash between.
 *
 * Names may have gone round (a to t, b to a, t to b) before we look: then one of them gets a name of ours in between.
 */
#include "repl/priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"

enum { MAX_TRIES = 10 }; /* after answers that tell no known reason */

void coll_rename_free(struct coll *c)
{
    xfree(&c->rename_via);
    xfree(&c->rename_db);
    xfree(&c->rename_name);
    xfree(&c->former);
}

void coll_rename_put(const struct coll *c, json_t *rec)
{
    if (c->rename_name) {
        json_object_set_new(rec, "rename_db", json_string(c->rename_db));
        json_object_set_new(rec, "rename_name", json_string(c->rename_name));
    }
    if (c->rename_via)
        json_object_set_new(rec, "rename_via", json_string(c->rename_via));
    if (c->former)
        json_object_set_new(rec, "former", json_string(c->former));
}

static void begin(struct coll *c, const char *db, const char *name)
{
    if (!c->rename_name)
        c->task->drops_open++; /* it is looked at when requests are answered, as drops are */
    set_text(&c->rename_db, db);
    set_text(&c->rename_name, name);
}

void coll_rename_end(struct coll *c)
{
    if (c->rename_name)
        c->task->drops_open--;
    xfree(&c->rename_via);
    xfree(&c->rename_db);
    xfree(&c->rename_name);
    c->rename_waits = c->rename_begun = false;
}

void coll_rename_from_record(struct coll *c, const json_t *rec)
{
    const char *db = json_string_value(json_object_get(rec, "rename_db"));
    const char *name = json_string_value(json_object_get(rec, "rename_name"));

    set_text(&c->former, json_string_value(json_object_get(rec, "former")));
    set_text(&c->rename_via, json_string_value(json_object_get(rec, "rename_via")));
    if (db && name)
        begin(c, db, name);
    c->rename_noted = true;
    c->rename_begun = c->rename_name != NULL;
}

static void set_names(struct coll *c, const char *db, const char *name, const char *dst_db, const char *dst_name)
{
    char *old = c->db; /* all of them */

    coll_set_names(c, db, name, dst_db, dst_name, c->pk_name);
    free(old);
}

bool coll_has_name(const struct coll *c, const char *db, const char *name)
{
    char *key;
    const char *at;
    bool found;

    if (strcmp(c->db, db) == 0 && strcmp(c->name, name) == 0)
        return true;
    if (!c->former)
        return false;
    key = xasprintf(" %s.%s", db, name);
    at = strstr(c->former, key);
    found = at && (at[strlen(key)] == ' ' || at[strlen(key)] == '\0');
    free(key);
    return found;
}

static void on_noted(void *arg, const struct err *err)
{
    struct coll *c = arg;

    c->storing = false;
    c->rename_noted = true;
    if (err && c->state != COLL_GONE)
        task_fatal(c->task, err);
    if (!err && c->state != COLL_GONE) {
        coll_follow_name(c);
        coll_kick(c);
    }
    coll_unref(c);
}

static void note(struct coll *c)
{
    struct store *s = c->task->o.store;
    struct store_batch *b = s->ops->begin(s, c->task->o.id);

    coll_put(c, b);
    coll_ref(c);
    c->storing = true;
    c->rename_noted = false;
    s->ops->commit(b, on_noted, c);
}

static void follow(struct coll *c)
{
    struct repl_task *t = c->task;
    const struct src_collection *sc = t->o.catalog->ops->get(t->o.catalog, c->id);
    struct repl_match m;
    char *former;
    bool selected;

    if (!sc || sc->state != SRC_ALIVE || (strcmp(c->db, sc->db_name) == 0 && strcmp(c->name, sc->name) == 0))
        return;
    if (c->storing || c->rename_begun) /* then again */
        return;
    former = xasprintf("%s %s.%s", c->former ? c->former : "", c->db, c->name);
    free(c->former);
    c->former = former;
    set_names(c, sc->db_name, sc->name, c->dst_db, c->dst_name);
    selected = t->o.selection.match(t->o.selection.ctx, c->db, c->name, &m);
    if (selected && (strcmp(m.target_db, c->dst_db) != 0 || strcmp(m.target_name, c->dst_name) != 0))
        begin(c, m.target_db, m.target_name);
    else
        coll_rename_end(c);
    log_info("repl", "a collection was renamed on the source", KS("task", t->o.id), KI("id", c->id), KS("former", former),
             KS("db", c->db), KS("collection", c->name), KS("target_db", c->rename_name ? c->rename_db : c->dst_db),
             KS("target_collection", c->rename_name ? c->rename_name : c->dst_name));
    note(c);
}

void coll_follow_name(struct coll *c)
{
    c->rename_refused = false; /* the target may have changed as well */
    follow(c);
}

static void refused(struct coll *c, const struct err *err)
{
    log_warn("repl", "the target's collection keeps its former name", KS("task", c->task->o.id),
             KS("collection", c->name), KS("target_collection", c->dst_name), KS("error", err->text));
    c->rename_refused = true;
    c->rename_waits = c->rename_begun = false;
    c->rename_tries = 0;
    set_text(&c->trouble, err->text);
}

static void on_renamed(void *arg, const struct err *err)
{
    struct coll *c = arg;

    c->call = NULL;
    if (err && err->cls == ERRC_RETRY && (err->code != ERR_INTERNAL || ++c->rename_tries < MAX_TRIES)) {
        set_text(&c->trouble, err->text);
        timer_set(&c->retry, backoff_next_ms(&c->backoff));
        return;
    }
    if (err && err->code != ERR_NOT_FOUND) {
        refused(c, err);
        follow(c);
        coll_kick(c);
        return;
    }
    /* not found: it has its new name already, or it is gone, which the check that follows tells */
    set_names(c, c->db, c->name, c->rename_db, c->rename_via ? c->rename_via : c->rename_name);
    if (c->rename_via)
        xfree(&c->rename_via);
    else
        coll_rename_end(c);
    c->rename_begun = false;
    c->rename_tries = 0;
    c->backoff.cur_ms = 0;
    set_text(&c->trouble, NULL);
    if (!err)
        task_count_call(c->task, "RenameCollection");
    coll_save(c);
    follow(c);
    coll_kick(c);
    task_kick_waiting(c->task);
}

/* Who has the name on the target now that c is to have? */
static struct coll *holder(const struct coll *c)
{
    struct coll *o;

    for (o = c->task->colls; o; o = o->hh.next)
        if (o != c && strcmp(o->dst_name, c->rename_name) == 0 && strcmp(o->dst_db, c->rename_db) == 0)
            return o;
    return NULL;
}

/* Each waits for the name of the next. Only for the first of them. */
static bool in_circle(const struct coll *c)
{
    const struct coll *o = c;

    do {
        o = holder(o);
        if (!o || !o->rename_name || o->id < c->id)
            return false;
    } while (o != c);
    return true;
}

static bool name_is_free(struct coll *c)
{
    struct coll *o = holder(c);
    struct err err;

    if (!o || c->rename_via)
        return true;
    if (in_circle(c)) {
        c->rename_via = xasprintf("%.200s_%lld", c->rename_name, (long long)c->id);
        note(c);
        return false;
    }
    if (o->src_dropping || o->state == COLL_DROPPING) {
        o->forced = true;
        coll_kick(o);
        return false;
    }
    if (o->rename_name && !o->rename_refused)
        return false;
    err_set(&err, ERR_EXISTS, ERRC_USER, "cannot be renamed to %s.%s on the target: another collection of the task has that "
                                         "name there", c->rename_db, c->rename_name);
    refused(c, &err);
    return false;
}

static bool carried(const struct coll *c)
{
    for (size_t i = 0; i < c->n_shards; i++)
        if (c->shards[i].link && tchan_carries(c->shards[i].link->tchan, c))
            return true;
    return false;
}

bool coll_rename_kick(struct coll *c)
{
    struct repl_task *t = c->task;

    if (!c->rename_name || c->rename_refused || !c->dst_id || c->src_dropping)
        return false;
    if (!c->rename_noted || meta_running(c) || !name_is_free(c))
        return !c->rename_refused;
    c->rename_waits = true; /* nothing more is built */
    if (carried(c))
        return c->verified_gen != 0; /* a request that was refused may need the check of its collection */
    c->verified_gen = 0;
    c->rename_begun = true;
    c->call = t->o.sink->ops->rename(t->o.sink, c->dst_db, c->dst_name, c->rename_db,
                                     c->rename_via ? c->rename_via : c->rename_name, c->dst_id, on_renamed, c);
    return true;
}
