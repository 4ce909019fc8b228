/* spec_match.c - which collections a task takes, under which names; what two tasks would share. */
#include "base/mem.h"
#include "task/spec.h"
#include "task/spec_priv.h"

#include <stdlib.h>
#include <string.h>

static const struct spec_mapping *whole_db_mapping(const struct task_spec *s, const char *db)
{
    for (size_t i = 0; i < s->n_mappings; i++)
        if (s->mappings[i].n == 0 && strcmp(s->mappings[i].source_db, db) == 0)
            return &s->mappings[i];
    return NULL;
}

/* The pair that is meant for name: the one with its own name, else the longest beginning of it. */
static const struct spec_mapping *find_pair(const struct task_spec *s, const char *db, const char *name, size_t *ret)
{
    const struct spec_mapping *best = NULL;
    size_t best_len = 0;

    for (size_t i = 0; i < s->n_mappings; i++) {
        const struct spec_mapping *m = &s->mappings[i];

        if (strcmp(m->source_db, db) != 0)
            continue;
        for (size_t k = 0; k < m->n; k++) {
            size_t len = strcmp(m->source[k], name) == 0 ? SIZE_MAX : strlen(m->source[k]);

            if (len <= best_len || !spec_covers(m->source[k], name))
                continue;
            best = m;
            best_len = len;
            *ret = k;
        }
    }
    return best;
}

/* A collection's own mapping wins over that of its whole database. */
static void map_names(struct task_spec *s, const char *db, const char *name, const char **ret_db, const char **ret_name)
{
    size_t k;
    const struct spec_mapping *m = find_pair(s, db, name, &k);

    if (m && spec_is_pattern(m->source[k])) {
        free(s->made_name);
        s->made_name = spec_rename(m->source[k], m->target[k], name);
        *ret_name = s->made_name;
    } else {
        *ret_name = m ? m->target[k] : name;
    }
    m = m ? m : whole_db_mapping(s, db);
    *ret_db = m ? m->target_db : db;
}

bool spec_matches(struct task_spec *s, const char *db, const char *name,
                  const struct spec_collection **ret, const char **ret_target_db,
                  const char **ret_target_name)
{
    const char *target_db, *target_name;

    if (spec_excluded(s, db, name))
        return false;
    for (size_t i = 0; i < s->n_collections; i++) {
        const struct spec_collection *c = &s->collections[i];

        if (!spec_covers(c->db, db) || !spec_covers(c->name, name))
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
    const char *common = NULL;

    if (m)
        return m->target_db;
    for (size_t i = 0; i < s->n_collections; i++) {
        const struct spec_collection *c = &s->collections[i];
        const char *target;
        size_t k;

        if (!spec_covers(c->db, db))
            continue;
        m = find_pair(s, db, c->name, &k); /* a pattern mostly has none of its own: db */
        target = m ? m->target_db : db;
        if (common && strcmp(common, target) != 0)
            return db;
        common = target;
    }
    return common ? common : db;
}

bool spec_matches_db(const struct task_spec *s, const char *db, const char **ret_target_db)
{
    if (spec_excluded(s, db, "*"))
        return false;
    for (size_t i = 0; i < s->n_collections; i++) {
        if (!spec_covers(s->collections[i].db, db))
            continue;
        if (ret_target_db)
            *ret_target_db = common_target_db(s, db);
        return true;
    }
    return false;
}

char *spec_overlap(const struct task_spec *a, const struct task_spec *b)
{
    for (size_t i = 0; i < a->n_collections; i++) {
        const struct spec_collection *c = &a->collections[i];

        for (size_t k = 0; k < b->n_collections; k++) {
            const struct spec_collection *o = &b->collections[k];

            if (spec_covers(o->db, c->db) && spec_covers(o->name, c->name) && !spec_excluded(b, c->db, c->name))
                return xasprintf("%s.%s is already replicated to this target by a task that "
                                 "selects %s.%s",
                                 c->db, c->name, o->db, o->name);
        }
    }
    return NULL;
}
