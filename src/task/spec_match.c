/* spec_match.c - which collections a task takes, under which names; what two tasks would share. */
#include "base/mem.h"
#include "task/spec.h"

#include <stdlib.h>
#include <string.h>

static bool is_all(const char *name)
{
    return strcmp(name, "*") == 0;
}

static bool covers(const char *pattern, const char *name)
{
    return is_all(pattern) || strcmp(pattern, name) == 0;
}

/* Is db.name (each may be "*") in one of the exclusions? Names have no dot. */
static bool excluded(const struct task_spec *s, const char *db, const char *name)
{
    for (size_t i = 0; i < s->n_exclude; i++) {
        const char *full = s->exclude[i], *dot = strchr(full, '.');
        size_t len = dot ? (size_t)(dot - full) : 0;

        if (!dot || !covers(dot + 1, name))
            continue;
        if ((len == 1 && *full == '*') || (len == strlen(db) && memcmp(full, db, len) == 0))
            return true;
    }
    return false;
}

static const struct spec_mapping *whole_db_mapping(const struct task_spec *s, const char *db)
{
    for (size_t i = 0; i < s->n_mappings; i++)
        if (s->mappings[i].n == 0 && strcmp(s->mappings[i].source_db, db) == 0)
            return &s->mappings[i];
    return NULL;
}

/* A collection's own mapping wins over that of its whole database. */
static void map_names(const struct task_spec *s, const char *db, const char *name,
                      const char **ret_db, const char **ret_name)
{
    const struct spec_mapping *m;

    for (size_t i = 0; i < s->n_mappings; i++) {
        m = &s->mappings[i];
        if (strcmp(m->source_db, db) != 0)
            continue;
        for (size_t k = 0; k < m->n; k++) {
            if (strcmp(m->source[k], name) == 0) {
                *ret_db = m->target_db;
                *ret_name = m->target[k];
                return;
            }
        }
    }
    m = whole_db_mapping(s, db);
    *ret_db = m ? m->target_db : db;
    *ret_name = name;
}

bool spec_matches(const struct task_spec *s, const char *db, const char *name,
                  const struct spec_collection **ret, const char **ret_target_db,
                  const char **ret_target_name)
{
    const char *target_db, *target_name;

    if (excluded(s, db, name))
        return false;
    for (size_t i = 0; i < s->n_collections; i++) {
        const struct spec_collection *c = &s->collections[i];

        if (!covers(c->db, db) || !covers(c->name, name))
            continue;
        map_names(s, db, name, &target_db, &target_name);
        if (ret)
            *ret = c;
        if (ret_target_db)
            *ret_target_db = target_db;
        if (ret_target_name)
            *ret_target_name = target_name;
        return true;
    }
    return false;
}

/* The one database that all collections selected from db go to, or db itself. */
static const char *common_target_db(const struct task_spec *s, const char *db)
{
    const struct spec_mapping *m = whole_db_mapping(s, db);
    const char *common = NULL, *target, *name;

    if (m)
        return m->target_db;
    for (size_t i = 0; i < s->n_collections; i++) {
        const struct spec_collection *c = &s->collections[i];

        if (!covers(c->db, db))
            continue;
        map_names(s, db, c->name, &target, &name); /* "*" has no mapping of its own: db */
        if (common && strcmp(common, target) != 0)
            return db;
        common = target;
    }
    return common ? common : db;
}

bool spec_matches_db(const struct task_spec *s, const char *db, const char **ret_target_db)
{
    if (excluded(s, db, "*"))
        return false;
    for (size_t i = 0; i < s->n_collections; i++) {
        if (!covers(s->collections[i].db, db))
            continue;
        if (ret_target_db)
            *ret_target_db = common_target_db(s, db);
        return true;
    }
    return false;
}

/* What two patterns have in common: the narrower name, or NULL. */
static const char *meet(const char *a, const char *b)
{
    if (covers(a, b))
        return b;
    return covers(b, a) ? a : NULL;
}

static bool shared(const struct spec_collection *a, const struct spec_collection *b,
                   const char **ret_db, const char **ret_name)
{
    *ret_db = meet(a->db, b->db);
    *ret_name = meet(a->name, b->name);
    return *ret_db && *ret_name;
}

static bool same(const struct spec_collection *c, const char *db, const char *name)
{
    return strcmp(c->db, db) == 0 && strcmp(c->name, name) == 0;
}

char *spec_overlap(const struct task_spec *a, const struct task_spec *b)
{
    for (size_t i = 0; i < a->n_collections; i++) {
        const struct spec_collection *c = &a->collections[i];

        for (size_t k = 0; k < b->n_collections; k++) {
            const struct spec_collection *o = &b->collections[k];
            const char *db, *name;

            if (shared(c, o, &db, &name) && same(c, db, name) && !excluded(b, db, name))
                return xasprintf("%s.%s is already replicated to this target by a task that "
                                 "selects %s.%s",
                                 c->db, c->name, o->db, o->name);
        }
    }
    return NULL;
}

void spec_add_exclusions(struct task_spec *s, const struct task_spec *existing)
{
    for (size_t i = 0; i < s->n_collections; i++) {
        for (size_t k = 0; k < existing->n_collections; k++) {
            const char *db, *name;

            if (!shared(&s->collections[i], &existing->collections[k], &db, &name) ||
                excluded(existing, db, name) || excluded(s, db, name))
                continue;
            s->exclude = xrealloc(s->exclude, (s->n_exclude + 1) * sizeof(*s->exclude));
            s->exclude[s->n_exclude++] = xasprintf("%s.%s", db, name);
        }
    }
}
