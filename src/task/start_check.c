/* start_check.c - positions that the user gave, against what the source has: a stale one must not lose rows silently. */
#include <inttypes.h>
#include <string.h>

#include "task/priv.h"

static bool has_channel(const struct src_collection *sc, const char *vchannel)
{
    for (size_t i = 0; i < sc->n_shards; i++)
        if (strcmp(sc->shards[i].vchannel, vchannel) == 0)
            return true;
    return false;
}

/* Its positions are for exactly its channels. */
static int check_channels(const struct task_spec *s, const struct spec_collection *g, const struct src_collection *sc,
                          struct err *err)
{
    for (size_t i = 0; i < g->n_positions; i++)
        if (!has_channel(sc, g->positions[i].vchannel))
            return err_set(err, ERR_INVALID, ERRC_USER, "the positions of %s.%s have the channel %s, which is none of its",
                           g->db, g->name, g->positions[i].vchannel);
    for (size_t i = 0; i < sc->n_shards; i++)
        if (!spec_find_position(s, sc->shards[i].vchannel))
            return err_set(err, ERR_INVALID, ERRC_USER, "the positions of %s.%s lack its channel %s", g->db, g->name,
                           sc->shards[i].vchannel);
    return 0;
}

static int check_one(const struct task_spec *s, const struct spec_collection *g, struct catalog *c, struct err *err)
{
    const struct src_collection *sc = c->ops->get(c, g->id);

    if (!sc || sc->state != SRC_ALIVE)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "the positions of %s.%s are of a collection with the id %" PRId64 ", which the source does not have: it "
                       "was dropped (and perhaps made anew), or the positions are another source's. Take a new backup, or "
                       "leave it out",
                       g->db, g->name, g->id);
    if (strcmp(sc->db_name, g->db) != 0 || strcmp(sc->name, g->name) != 0)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "the positions of %s.%s are of the collection with the id %" PRId64 ", which is %s.%s on the source", g->db,
                       g->name, g->id, sc->db_name, sc->name);
    return check_channels(s, g, sc, err);
}

static int check_list(const struct task_spec *s, const struct spec_collection *list, size_t n, struct catalog *c,
                      struct err *err)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].n_positions && check_one(s, &list[i], c, err))
            return err->code;
    return 0;
}

int start_check(void *spec, struct catalog *c, struct err *err)
{
    const struct task_spec *s = spec;
    int rc = check_list(s, s->collections, s->n_collections, c, err);

    return rc ? rc : check_list(s, s->backup, s->n_backup, c, err);
}
