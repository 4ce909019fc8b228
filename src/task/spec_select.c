#include "base/err.h"
#include "base/mem.h"
#include "task/spec.h"
#include "task/spec_fields.h"
#include "task/spec_priv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The same collection twice, by name or through `*`, in one request. */
static int check_duplicate(const struct task_spec *s, const struct spec_collection *c,
                           struct err *err)
{
    for (size_t i = 0; i < s->n_collections; i++) {
        const struct spec_collection *o = &s->collections[i];

        if (o == c)
            continue;
        if ((spec_covers(o->db, c->db) && spec_covers(o->name, c->name)) ||
            (spec_covers(c->db, o->db) && spec_covers(c->name, o->name)))
            return err_set(err, ERR_INVALID, ERRC_USER,
                           "%s.%s and %s.%s select the same collection", o->db, o->name, c->db,
                           c->name);
    }
    return 0;
}

/* db NULL: the name may have it, "db.collection". */
static int add_collection(struct task_spec *s, const char *db, const json_t *info,
                          const struct spec_limits *limits, struct err *err)
{
    const char *name = field_str(info, "name");
    struct spec_collection *c;
    int rc;

    s->collections = xrealloc(s->collections, (s->n_collections + 1) * sizeof(*s->collections));
    c = &s->collections[s->n_collections++];
    *c = (struct spec_collection){.use_start_position = field_bool(info, "use_start_position")};
    if (db) {
        c->db = xstrdup(db);
        c->name = xstrdup(name);
    } else {
        spec_split_name(name, &c->db, &c->name);
    }
    rc = spec_check_pattern("the database's name", c->db, limits, err);
    if (rc == 0)
        rc = spec_check_pattern("the collection's name", c->name, limits, err);
    if (rc != 0)
        return strchr(name, '.') ? err_wrap(err, "%.200s", name) : rc;
    rc = check_duplicate(s, c, err);
    if (rc || json_object_size(json_object_get(info, "positions")) == 0)
        return rc;
    if (spec_is_pattern(c->name) || spec_is_pattern(c->db))
        return err_set(err, ERR_INVALID, ERRC_USER, "%s.%s: a pattern with a `*` cannot have positions", c->db, c->name);
    return spec_add_positions(c, json_object_get(info, "positions"), err);
}

static int add_list(struct task_spec *s, const char *db, const json_t *infos,
                    const struct spec_limits *limits, struct err *err)
{
    int rc = db ? spec_check_pattern("the database's name", db, limits, err) : 0;

    if (rc == 0 && json_array_size(infos) == 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "db_collections has no collection for %s", db);
    for (size_t i = 0; i < json_array_size(infos) && rc == 0; i++)
        rc = add_collection(s, db, json_array_get(infos, i), limits, err);
    return rc;
}

int spec_check_selection(struct task_spec *s, const json_t *req, const struct spec_limits *limits,
                         struct err *err)
{
    const json_t *infos = json_object_get(req, "collection_infos");
    json_t *dbs = json_object_get(req, "db_collections");
    const char *db;
    json_t *list;
    int rc = 0;

    if (json_array_size(infos) == 0 && json_object_size(dbs) == 0)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "no collection is selected: collection_infos and db_collections are empty");
    if (json_array_size(infos) > 0 && json_object_size(dbs) > 0)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "collection_infos and db_collections cannot be given together");
    if (json_array_size(infos) > 0)
        return add_list(s, NULL, infos, limits, err);
    json_object_foreach(dbs, db, list) {
        rc = add_list(s, db, list, limits, err);
        if (rc != 0)
            break;
    }
    return rc;
}

/* ---- name_mapping */

/* Does the task take something of it? name NULL: of the database. */
static bool selects(const struct task_spec *s, const char *db, const char *name)
{
    for (size_t i = 0; i < s->n_collections; i++) {
        const struct spec_collection *c = &s->collections[i];

        if (spec_covers(c->db, db) && (!name || spec_meet(c->name, name)))
            return !spec_excluded(s, db, name ? name : "*");
    }
    return false;
}

static int add_pair(struct task_spec *s, struct spec_mapping *m, const char *source,
                    const char *target, const struct spec_limits *limits, struct err *err)
{
    int rc = spec_check_pattern("name_mapping: the source collection", source, limits, err);

    if (rc == 0)
        rc = spec_check_pattern("name_mapping: the target collection", target, limits, err);
    if (rc != 0)
        return rc;
    if (spec_is_pattern(source) != spec_is_pattern(target))
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "name_mapping has %s.%s -> %s: either both end with a `*`, or none", m->source_db, source, target);
    if (!selects(s, m->source_db, source))
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "name_mapping has %s.%s, which the task does not select", m->source_db,
                       source);
    m->source[m->n] = xstrdup(source);
    m->target[m->n++] = xstrdup(target);
    return 0;
}

static int add_mapping(struct task_spec *s, const json_t *entry, const struct spec_limits *limits,
                       struct err *err)
{
    json_t *pairs = json_object_get(entry, "collection_mapping"), *target;
    const char *db = field_str(entry, "source_db"), *to = field_str(entry, "target_db"), *source;
    struct spec_mapping *m = &s->mappings[s->n_mappings];
    int rc = spec_check_name("name_mapping: source_db", db, limits, err);

    if (rc == 0)
        rc = spec_check_name("name_mapping: target_db", to, limits, err);
    if (rc == 0 && !selects(s, db, NULL))
        rc = err_set(err, ERR_INVALID, ERRC_USER,
                     "name_mapping has the database %s, of which the task selects nothing", db);
    if (rc != 0)
        return rc;
    s->n_mappings++;
    *m = (struct spec_mapping){.source_db = xstrdup(db),
                               .target_db = xstrdup(to),
                               .source = xcalloc(json_object_size(pairs) + 1, sizeof(char *)),
                               .target = xcalloc(json_object_size(pairs) + 1, sizeof(char *))};
    json_object_foreach(pairs, source, target) {
        rc = add_pair(s, m, source, json_string_value(target), limits, err);
        if (rc != 0)
            break;
    }
    return rc;
}

/* One source has one target, and two sources never become one; what patterns make is seen when it is there. */
static int check_pair_conflict(const struct spec_mapping *a, size_t i, const struct spec_mapping *b,
                               size_t k, struct err *err)
{
    if (strcmp(a->source_db, b->source_db) == 0 && strcmp(a->source[i], b->source[k]) == 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "name_mapping has %s.%s twice", a->source_db,
                       a->source[i]);
    if (strcmp(a->target_db, b->target_db) == 0 && strcmp(a->target[i], b->target[k]) == 0 &&
        !spec_is_pattern(a->target[i]))
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "name_mapping gives %s.%s and %s.%s the same target %s.%s", a->source_db,
                       a->source[i], b->source_db, b->source[k], a->target_db, a->target[i]);
    return 0;
}

static int check_conflict(const struct spec_mapping *a, const struct spec_mapping *b,
                          struct err *err)
{
    if (a != b && a->n == 0 && b->n == 0 && strcmp(a->source_db, b->source_db) == 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "name_mapping has the database %s twice",
                       a->source_db);
    for (size_t i = 0; i < a->n; i++)
        for (size_t k = a == b ? i + 1 : 0; k < b->n; k++)
            if (check_pair_conflict(a, i, b, k, err) != 0)
                return ERR_INVALID;
    return 0;
}

/* The entry's name on the target, "db.collection"; NULL: it is a pattern. Caller frees. */
static char *target_of(struct task_spec *s, const struct spec_collection *c)
{
    const char *db, *name;

    if (spec_is_pattern(c->db) || spec_is_pattern(c->name) || !spec_matches(s, c->db, c->name, NULL, &db, &name))
        return NULL;
    return xasprintf("%s.%s", db, name);
}

/* A collection selected by name must not come out under the name of another one. */
static int check_targets(struct task_spec *s, struct err *err)
{
    int rc = 0;

    for (size_t i = 0; i < s->n_collections && rc == 0; i++) {
        const struct spec_collection *a = &s->collections[i];
        char *target = target_of(s, a);

        for (size_t k = i + 1; target && k < s->n_collections && rc == 0; k++) {
            const struct spec_collection *b = &s->collections[k];
            char *other = target_of(s, b);

            if (other && strcmp(target, other) == 0)
                rc = err_set(err, ERR_INVALID, ERRC_USER, "name_mapping gives %s.%s and %s.%s the same target %s", a->db,
                             a->name, b->db, b->name, target);
            free(other);
        }
        free(target);
    }
    return rc;
}

int spec_check_mapping(struct task_spec *s, const json_t *req, const struct spec_limits *limits,
                       struct err *err)
{
    const json_t *list = json_object_get(req, "name_mapping");
    size_t n = json_array_size(list);
    int rc = 0;

    if (n == 0)
        return 0;
    s->mappings = xcalloc(n, sizeof(*s->mappings));
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = add_mapping(s, json_array_get(list, i), limits, err);
        for (size_t k = 0; k <= i && rc == 0; k++)
            rc = check_conflict(&s->mappings[k], &s->mappings[i], err);
    }
    return rc == 0 ? check_targets(s, err) : rc;
}
