/* rocksmq_db.c - a poll: questions for ends, then a slice for each reader, from tables and from logs. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "wal/rocksmq_db_priv.h"
#include "wal/rocksmq_scan_priv.h"

enum { UNUSED_MS = 10000 /* tables nobody reads are closed: they hold memory and deleted files */ };

static void init_work(struct work *k, struct rmq_part *part, uint64_t now_ms)
{
    const struct rmq_cursor *c = part->cursor;

    *k = (struct work){.part = part};
    k->min_id = c->begun ? c->id + 1 : c->earliest ? 0 : c->id;
    part->slice.end_ms = now_ms;
    part->slice.log = c->log;
    part->skipped = true;
}

static int read_parts(struct rmq_db *db, struct work *works, size_t n, struct err *err)
{
    int code = rmq_look_ahead(db, works, n, err);

    for (size_t i = 0; !code && i < n; i++) {
        if (!rmq_in_tables(db, works[i].part->cursor))
            continue;
        if (rmq_poll_full(works, n))
            return 0;
        code = rmq_read_tables(db, &works[i], err);
    }
    return code ? code : rmq_read_logs(db, works, n, err);
}

static int last_in_tables(struct rmq_db *db, struct rmq_end *e, struct err *err)
{
    struct rmq_scan sc;
    uint64_t id = 0;
    int code;

    rmq_scan_init(&sc, db->db, db->path, e->topic);
    if (rmq_scan_last(&sc, &id) && id > e->last)
        e->last = id;
    code = rmq_scan_error(&sc, err);
    rmq_scan_release(&sc);
    e->found = e->last != 0;
    return code;
}

static int answer_ends(struct rmq_db *db, struct rmq_end **ends, size_t n, struct err *err)
{
    struct topic_seen *t = n ? xcalloc(n, sizeof(*t)) : NULL;
    struct topic_seen **all = n ? xcalloc(n, sizeof(struct topic_seen *)) : NULL;
    int code = 0;

    for (size_t i = 0; i < n; i++) {
        t[i] = (struct topic_seen){.topic = ends[i]->topic, .topic_len = strlen(ends[i]->topic)};
        all[i] = &t[i];
    }
    if (n > 0)
        code = rmq_see_logs(db, all, n, err);
    for (size_t i = 0; !code && i < n; i++) {
        ends[i]->last = t[i].last;
        code = last_in_tables(db, ends[i], err);
    }
    free(all);
    free(t);
    return code;
}

int rmq_db_poll(struct rmq_db *db, struct rmq_part *parts, size_t n, struct rmq_end **ends,
                size_t n_ends, struct err *err)
{
    struct work *works;
    struct err failed; /* also of single parts on the way */
    uint64_t now_ms = clock_mono_ms(); /* before anything is looked at */
    int code;

    if (n > db->cap_works) {
        db->cap_works = 2 * n;
        db->works = xrealloc(db->works, db->cap_works * sizeof(*works));
    }
    works = db->works;
    for (size_t i = 0; i < n; i++)
        init_work(&works[i], &parts[i], now_ms);
    code = rmq_refresh(db, parts, n, n_ends, &failed);
    if (!code)
        code = answer_ends(db, ends, n_ends, &failed);
    if (!code)
        code = read_parts(db, works, n, &failed);
    for (size_t i = 0; i < n; i++)
        free(works[i].small);
    if (!code && db->db && clock_mono_ms() - db->used_ms > UNUSED_MS)
        rmq_close_tables(db);
    if (!code)
        return 0;
    rmq_db_close(db);
    return err_copy(err, &failed);
}
