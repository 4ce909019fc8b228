/* spec_exclude.c - what a task does not take although it is selected: the user's wish, and what other tasks had before. */
#include "base/err.h"
#include "base/mem.h"
#include "task/spec.h"
#include "task/spec_priv.h"

#include <stdlib.h>
#include <string.h>

void spec_exclusion_release(struct spec_exclusion *e)
{
    for (size_t i = 0; i < e->n_but; i++)
        free(e->but[i]);
    free(e->but);
    free(e->db);
    free(e->name);
}

static struct spec_exclusion *add(struct task_spec *s)
{
    struct spec_exclusion *e;

    s->exclude = xrealloc(s->exclude, (s->n_exclude + 1) * sizeof(*s->exclude));
    e = &s->exclude[s->n_exclude++];
    *e = (struct spec_exclusion){0};
    return e;
}

static void add_but(struct spec_exclusion *e, char *take)
{
    e->but = xrealloc(e->but, (e->n_but + 1) * sizeof(*e->but));
    e->but[e->n_but++] = take;
}

/* ---- does it hold? */

/* Of what is excluded: is some of it taken all the same? */
static bool but(const struct spec_exclusion *e, const char *db, const char *name)
{
    for (size_t i = 0; i < e->n_but; i++) {
        char *but_db, *but_name;
        bool met;

        spec_split_name(e->but[i], &but_db, &but_name);
        met = spec_meet(but_db, db) && spec_meet(but_name, name);
        free(but_db);
        free(but_name);
        if (met)
            return true;
    }
    return false;
}

bool spec_excluded(const struct task_spec *s, const char *db, const char *name)
{
    for (size_t i = 0; i < s->n_exclude; i++) {
        const struct spec_exclusion *e = &s->exclude[i];

        if (spec_covers(e->db, db) && spec_covers(e->name, name) && !but(e, db, name))
            return true;
    }
    return false;
}

/* ---- the user's */

/* An exclusion that nothing of the selection meets is a slip of the pen. */
static int check_met(const struct task_spec *s, const struct spec_exclusion *e, const char *text, struct err *err)
{
    for (size_t i = 0; i < s->n_collections; i++)
        if (spec_meet(s->collections[i].db, e->db) && spec_meet(s->collections[i].name, e->name))
            return 0;
    return err_set(err, ERR_INVALID, ERRC_USER, "exclude has %s, of which the task selects nothing", text);
}

static int add_given(struct task_spec *s, const char *text, const struct spec_limits *limits, struct err *err)
{
    struct spec_exclusion *e = add(s);
    char *what = xasprintf("exclude: %.600s: the collection's name", text);
    int rc;

    e->given = true;
    spec_split_name(text, &e->db, &e->name);
    rc = spec_check_pattern("exclude: the database's name", e->db, limits, err);
    if (rc == 0)
        rc = spec_check_pattern(what, e->name, limits, err);
    free(what);
    return rc == 0 ? check_met(s, e, text, err) : rc;
}

int spec_check_exclude(struct task_spec *s, const json_t *req, const struct spec_limits *limits, struct err *err)
{
    const json_t *list = json_object_get(req, "exclude");
    int rc = 0;

    for (size_t i = 0; i < json_array_size(list) && rc == 0; i++)
        rc = add_given(s, json_string_value(json_array_get(list, i)), limits, err);
    for (size_t i = 0; i < s->n_collections && rc == 0; i++) {
        const struct spec_collection *c = &s->collections[i];

        if (spec_excluded(s, c->db, c->name))
            rc = err_set(err, ERR_INVALID, ERRC_USER, "%s.%s is selected, and excluded as a whole", c->db, c->name);
    }
    return rc;
}

/* ---- other tasks' */

/* What the other task leaves out itself is free for us. */
static void leave_out(struct spec_exclusion *e, const struct task_spec *other)
{
    for (size_t i = 0; i < other->n_exclude; i++) {
        const struct spec_exclusion *o = &other->exclude[i];
        const char *db = spec_meet(o->db, e->db), *name = spec_meet(o->name, e->name);

        if (db && name && !o->n_but)
            add_but(e, xasprintf("%s.%s", db, name));
    }
}

void spec_add_exclusions(struct task_spec *s, const struct task_spec *existing)
{
    for (size_t i = 0; i < s->n_collections; i++) {
        for (size_t k = 0; k < existing->n_collections; k++) {
            const struct spec_collection *a = &s->collections[i], *b = &existing->collections[k];
            const char *db = spec_meet(a->db, b->db), *name = spec_meet(a->name, b->name);
            struct spec_exclusion *e;

            if (!db || !name || spec_excluded(existing, db, name) || spec_excluded(s, db, name))
                continue;
            e = add(s);
            e->db = xstrdup(db);
            e->name = xstrdup(name);
            leave_out(e, existing);
        }
    }
}

/* ---- the store: "db.collection", or {"name": "db.collection", "but": ["db.collection", ...]} */

json_t *spec_exclusions_json(const struct task_spec *s)
{
    json_t *list = json_array();

    for (size_t i = 0; i < s->n_exclude; i++) {
        const struct spec_exclusion *e = &s->exclude[i];
        char *name = xasprintf("%s.%s", e->db, e->name);
        json_t *buts = json_array();

        for (size_t k = 0; k < e->n_but; k++)
            json_array_append_new(buts, json_string(e->but[k]));
        if (!e->given)
            json_array_append_new(list, e->n_but ? json_pack("{s:s, s:O}", "name", name, "but", buts)
                                                 : json_string(name));
        json_decref(buts);
        free(name);
    }
    return list;
}

void spec_load_exclusions(struct task_spec *s, const json_t *list)
{
    const json_t *v, *b;
    size_t i, k;

    json_array_foreach(list, i, v) {
        const char *name = json_string_value(json_is_object(v) ? json_object_get(v, "name") : v);
        struct spec_exclusion *e;

        if (!name)
            continue;
        e = add(s);
        spec_split_name(name, &e->db, &e->name);
        json_array_foreach(json_object_get(v, "but"), k, b)
            if (json_is_string(b))
                add_but(e, xstrdup(json_string_value(b)));
    }
}
