/* matches.c - what a task's selection takes of the collections that the source has now, for get and list. */
#include "task/priv.h"

static json_t *match_json(const struct src_collection *sc, const char *target_db, const char *target_name)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:I}", "database", sc->db_name, "collection", sc->name, "target_database",
                     target_db, "target_collection", target_name, "id", (json_int_t)sc->id);
}

void manager_add_matches(struct manager *m, const char *task_id, size_t max, json_t *task)
{
    const struct mtask *t = manager_find(m, task_id);
    struct catalog *c = m->d.catalog;
    const struct src_collection *sc;
    const char *db, *name;
    int64_t id = INT64_MIN;
    size_t total = 0;
    json_t *list;

    if (!t || !t->spec || !c->ops->ready(c))
        return;
    list = json_array();
    while ((sc = c->ops->next(c, id))) {
        id = sc->id;
        if (sc->state != SRC_ALIVE || !spec_matches(t->spec, sc->db_name, sc->name, NULL, &db, &name))
            continue;
        if (total++ < max)
            json_array_append_new(list, match_json(sc, db, name));
    }
    json_object_set_new(task, "matches", list);
    json_object_set_new(task, "matches_total", json_integer((json_int_t)total));
}
