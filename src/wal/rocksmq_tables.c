/* rocksmq_tables.c - a reader in the tables: where it goes on, what is lost, its slices. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "wal/rocksmq_db_priv.h"
#include "wal/rocksmq_scan_priv.h"

enum { SEEN_END_MS = 10000 /* see nothing_missed() */ };

/* A message that is neither in the tables nor in the logs. */
static int lost(struct rmq_scan *sc, const struct rmq_cursor *c, const struct topic_seen *logs,
                struct err *err)
{
    const char *what = c->begun ? "the last message read" : "start position";
    uint64_t first = logs->first, last = logs->last, id;
    struct err failed;

    if (rmq_scan_first(sc, &id) && (!first || id < first))
        first = id;
    if (rmq_scan_last(sc, &id) && id > last)
        last = id;
    if (rmq_scan_error(sc, &failed))
        return err_copy(err, &failed);
    if (!first)
        return err_set(err, ERR_GONE, ERRC_LOST,
                       "rocksmq topic %s: %s %" PRIu64
                       " does not exist, and the topic has no messages",
                       c->topic, what, c->id);
    return err_set(err, ERR_GONE, ERRC_LOST,
                   "rocksmq topic %s: %s %" PRIu64 " does not exist; first existing %" PRIu64
                   ", last %" PRIu64,
                   c->topic, what, c->id, first, last);
}

/*
 * The last message read is gone. Retention removes from the oldest on, so nothing after it is
 * missing if an older one exists, or if it was the end of the log a moment ago (retention takes
 * minutes at least).
 */
static bool nothing_missed(struct rmq_scan *sc, const struct rmq_cursor *c)
{
    uint64_t first;

    if (c->end_ms && clock_mono_ms() - c->end_ms <= SEEN_END_MS)
        return true;
    return rmq_scan_first(sc, &first) && first < c->id;
}

/* The cursor's message is not in the tables: then it must be in the logs. */
static int look_in_logs(struct work *k, struct rmq_scan *sc, bool *ret_more, uint64_t *ret_id,
                        struct err *err)
{
    const struct rmq_cursor *c = k->part->cursor;
    int code;

    assert(k->looked);
    if (k->seen.at.file) {
        k->part->slice.log = k->seen.at;
        return 0;
    }
    if (!c->begun || !nothing_missed(sc, c)) {
        code = rmq_scan_error(sc, err);
        return code ? code : lost(sc, c, &k->seen, err);
    }
    *ret_more = rmq_scan_above(sc, c->id, ret_id);
    return rmq_scan_error(sc, err);
}

/* Moves to the next message to deliver.  *ret_more false: there is none (more) in the tables. */
static int begin_scan(struct work *k, struct rmq_scan *sc, bool *ret_more, uint64_t *ret_id,
                      struct err *err)
{
    const struct rmq_cursor *c = k->part->cursor;
    uint64_t id = 0;
    int code;

    if (!c->begun && c->earliest) {
        *ret_more = rmq_scan_first(sc, ret_id);
        return rmq_scan_error(sc, err);
    }
    if (rmq_scan_seek(sc, c->id) && rmq_scan_get(sc, &id) && id == c->id) {
        *ret_more = c->begun ? rmq_scan_next(sc, id, ret_id) : true;
        if (!c->begun)
            *ret_id = id;
        return rmq_scan_error(sc, err);
    }
    code = rmq_scan_error(sc, err); /* a failed read is not an absent message */
    return code ? code : look_in_logs(k, sc, ret_more, ret_id, err);
}

/* True: the message at which the cursor goes on is in the tables, or it begins with the first one. */
static bool starts_in_tables(struct rmq_scan *sc, const struct rmq_cursor *c)
{
    uint64_t id = 0;

    if (!c->begun && c->earliest)
        return true;
    return rmq_scan_seek(sc, c->id) && rmq_scan_get(sc, &id) && id == c->id;
}

int rmq_look_ahead(struct rmq_db *db, struct work *works, size_t n, struct err *err)
{
    struct topic_seen **all = NULL;
    size_t found = 0;
    int code = 0;

    for (size_t i = 0; !code && i < n; i++) {
        const struct rmq_cursor *c = works[i].part->cursor;
        struct rmq_scan sc;

        if (!rmq_in_tables(db, c))
            continue;
        rmq_scan_init(&sc, db->db, db->path, c->topic);
        if (!starts_in_tables(&sc, c)) {
            works[i].looked = true;
            works[i].seen = (struct topic_seen){.topic = c->topic, .topic_len = c->topic_len, .find = c->id};
            all = xrealloc(all, (found + 1) * sizeof(struct topic_seen *));
            all[found++] = &works[i].seen;
        }
        code = rmq_scan_error(&sc, err); /* a failed read is not an absent message */
        rmq_scan_release(&sc);
    }
    if (!code && found > 0)
        code = rmq_see_logs(db, all, found, err);
    free(all);
    return code;
}

static int fill_from_tables(struct rmq_db *db, struct work *k, struct rmq_scan *sc, struct err *err)
{
    struct rmq_slice *s = &k->part->slice;
    uint64_t id = 0;
    bool more = false;
    int code = begin_scan(k, sc, &more, &id, err);

    while (!code && more && !rmq_slice_full(s)) {
        size_t len;
        const char *value = rocksdb_iter_value(sc->it, &len);

        if (s->n > 0 && s->bytes + len > RMQ_SLICE_BYTES)
            return 0;
        code = rmq_take(k, id, value, len, err);
        if (!code) {
            more = rmq_scan_next(sc, id, &id);
            code = rmq_scan_error(sc, err);
        }
    }
    if (!code && !more && !s->log.file) {
        s->log = rmq_logs_begin(db->logs);
        s->caught_up = !s->log.file; /* no log at all: this was everything */
    }
    return code;
}

int rmq_read_tables(struct rmq_db *db, struct work *k, struct err *err)
{
    struct rmq_scan sc;
    int code;

    k->part->slice.log = (struct rmq_log_pos){0};
    rmq_scan_init(&sc, db->db, db->path, k->part->cursor->topic);
    code = fill_from_tables(db, k, &sc, err);
    rmq_scan_release(&sc);
    return rmq_finish(k, code, err);
}
