#include "wal/rocksmq_priv.h"
#include "wal/rocksmq_scan_priv.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <rocksdb/c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BIG_VALUE = 64 << 10,  /* gets a buffer of its own; smaller ones share one */
    CACHE_BYTES = 4 << 20, /* in one shard, so that a block of some MiB fits */
    REFRESH_TRIES = 10,
    UNUSED_MS = 10000,   /* tables nobody reads are closed: they hold memory and deleted files */
    SEEN_END_MS = 10000, /* see nothing_missed() */
    INFO_LOG_ERROR = 3,  /* rocksdb::InfoLogLevel */
};

/* A message of the streaming service of Milvus 2.6 (source.md 7.4). */
static const uint8_t streaming_magic[] = {0xff, 0xfe, 0xfd, 0xfc, 'S', 'T', 'R', 'E', 'A', 'M'};

struct rmq_db {
    char *path, *secondary_dir;
    char *no_logs; /* an empty folder that RocksDB takes for that of the logs */
    rocksdb_options_t *opts;
    rocksdb_t *db;         /* NULL: closed */
    struct rmq_logs *logs; /* NULL: closed */
    bool fresh;            /* what was in logs deleted up to now is in db's tables */
    uint64_t used_ms;      /* last need of db */
    struct work *works;    /* room for the parts of a poll */
    size_t cap_works;
};

/* ---- open and refresh ---------------------------------------------------------------------- */

static rocksdb_options_t *new_options(const char *no_logs)
{
    rocksdb_options_t *o = rocksdb_options_create();
    rocksdb_block_based_table_options_t *t = rocksdb_block_based_options_create();
    rocksdb_lru_cache_options_t *lru = rocksdb_lru_cache_options_create();
    rocksdb_cache_t *cache;

    rocksdb_lru_cache_options_set_capacity(lru, CACHE_BYTES);
    rocksdb_lru_cache_options_set_num_shard_bits(lru, 0);
    cache = rocksdb_cache_create_lru_opts(lru);
    rocksdb_block_based_options_set_block_cache(t, cache);
    rocksdb_options_set_block_based_table_factory(o, t);
    rocksdb_cache_destroy(cache); /* the table factory holds it */
    rocksdb_lru_cache_options_destroy(lru);
    rocksdb_block_based_options_destroy(t);

    /* A secondary must hold its files open: the primary deletes them. */
    rocksdb_options_set_max_open_files(o, -1);
    /* Else each catch-up starts and joins 15 threads: 8 ms instead of 0.3 ms. */
    rocksdb_options_set_max_file_opening_threads(o, 1);
    rocksdb_options_set_wal_dir(o, no_logs);
    rocksdb_options_set_skip_stats_update_on_db_open(o, 1);
    rocksdb_options_set_stats_dump_period_sec(o, 0);
    rocksdb_options_set_stats_persist_period_sec(o, 0);
    rocksdb_options_set_info_log_level(o, INFO_LOG_ERROR);
    rocksdb_options_set_keep_log_file_num(o, 1);
    return o;
}

struct rmq_db *rmq_db_new(const char *path, const char *secondary_dir)
{
    struct rmq_db *db = xcalloc(1, sizeof(*db));

    db->path = xstrdup(path);
    db->secondary_dir = xstrdup(secondary_dir);
    db->no_logs = xasprintf("%s/no-logs", secondary_dir);
    db->opts = new_options(db->no_logs);
    return db;
}

static void close_tables(struct rmq_db *db)
{
    if (db->db)
        rocksdb_close(db->db);
    db->db = NULL;
    db->fresh = false;
}

void rmq_db_close(struct rmq_db *db)
{
    close_tables(db);
    rmq_logs_free(db->logs);
    db->logs = NULL;
}

void rmq_db_free(struct rmq_db *db)
{
    if (!db)
        return;
    rmq_db_close(db);
    rocksdb_options_destroy(db->opts);
    free(db->path);
    free(db->secondary_dir);
    free(db->no_logs);
    free(db->works);
    free(db);
}

static int make_dirs(const char *path, struct err *err)
{
    char *copy = xstrdup(path);
    int code = 0;

    for (char *p = copy + 1; !code; p++) {
        char c = *p;

        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(copy, 0750) < 0 && errno != EEXIST)
            code = err_set(err, ERR_IO, ERRC_RETRY, "cannot make folder %s: %s", copy,
                           strerror(errno));
        *p = c;
        if (c == '\0')
            break;
    }
    free(copy);
    return code;
}

/* Each open renames the last info log, and a secondary never removes any. */
static void remove_old_info_logs(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;

    if (!d)
        return;
    while ((e = readdir(d))) {
        if (strncmp(e->d_name, "LOG.old.", 8) == 0)
            (void)unlinkat(dirfd(d), e->d_name, 0); /* the next open tries again */
    }
    closedir(d);
}

/* Only the default family: that of the properties (2.4, 2.5) repeats what is in the payloads. */
static int open_db(struct rmq_db *db, struct err *err)
{
    char *current = xasprintf("%s/CURRENT", db->path);
    char *text = NULL;
    int rc = access(current, R_OK);
    int saved = errno;

    free(current);
    if (rc < 0)
        return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY,
                       "rocksmq %s: no readable RocksDB there (CURRENT: %s)", db->path,
                       strerror(saved));
    rc = make_dirs(db->no_logs, err);
    if (rc)
        return rc;
    remove_old_info_logs(db->secondary_dir);
    db->db = rocksdb_open_as_secondary(db->opts, db->path, db->secondary_dir, &text);
    return text ? rmq_rocks_err(err, db->path, "open", text) : 0;
}

static int open_or_catch_up(struct rmq_db *db, struct err *err)
{
    char *text = NULL;

    if (!db->db)
        return open_db(db, err);
    rocksdb_try_catch_up_with_primary(db->db, &text);
    return text ? rmq_rocks_err(err, db->path, "catch up", text) : 0;
}

static int list_logs(struct rmq_db *db, struct err *err)
{
    bool vanished = false;
    int code;

    if (!db->logs)
        db->logs = rmq_logs_new(db->path);
    code = rmq_logs_list(db->logs, &vanished, err);
    if (vanished)
        db->fresh = false;
    return code;
}

static bool in_tables(const struct rmq_db *db, const struct rmq_cursor *c)
{
    return !rmq_logs_has(db->logs, c->log);
}

static bool needs_tables(const struct rmq_db *db, const struct rmq_part *parts, size_t n,
                         size_t n_ends)
{
    for (size_t i = 0; i < n; i++) {
        if (in_tables(db, parts[i].cursor))
            return true;
    }
    return n_ends > 0;
}

/*
 * A log file is deleted after the tables made from it are in the manifest. So tables that were read
 * after the last deletion seen, together with the logs that are open, hold everything. What is
 * deleted while the manifest is being read would be in neither: hence the listing afterwards, and
 * once more if need be.
 */
static int refresh(struct rmq_db *db, const struct rmq_part *parts, size_t n, size_t n_ends,
                   struct err *err)
{
    for (int i = 0; i < REFRESH_TRIES; i++) {
        int code = list_logs(db, err);

        if (code)
            return code;
        if (!needs_tables(db, parts, n, n_ends))
            return 0;
        db->used_ms = clock_mono_ms();
        if (db->db && db->fresh)
            return 0;
        code = open_or_catch_up(db, err);
        if (code)
            return code;
        db->fresh = true;
    }
    return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "rocksmq %s: log files keep changing",
                   db->path);
}

/* ---- logs: one topic ----------------------------------------------------------------------- */

struct topic_seen {
    const char *topic;
    size_t topic_len;
    uint64_t first, last;  /* 0: none */
    uint64_t find;         /* this message is looked for */
    struct rmq_log_pos at; /* its record; file 0: not found */
};

static void see_put(struct topic_seen *t, const struct rmq_put *put, struct rmq_log_pos at)
{
    uint64_t id = 0;

    if (put->key_len <= t->topic_len || memcmp(put->key, t->topic, t->topic_len) != 0 ||
        !rmq_key_parse(put->key, put->key_len, t->topic_len, &id))
        return;
    if (!t->first || id < t->first)
        t->first = id;
    if (id > t->last)
        t->last = id;
    if (id == t->find && !t->at.file)
        t->at = at;
}

/* Looks for n topics in one walk through all logs. */
static int see_logs(struct rmq_db *db, struct topic_seen **topics, size_t n, struct err *err)
{
    struct rmq_log_pos pos = rmq_logs_begin(db->logs);

    for (;;) {
        struct rmq_log_pos at = pos;
        struct rmq_batch batch;
        struct rmq_put put;
        const uint8_t *data;
        size_t len;
        int code = rmq_logs_next(db->logs, &pos, &data, &len, err);

        if (code || !data)
            return code;
        if (pos.file != at.file) /* at was the end of the file before */
            at = (struct rmq_log_pos){pos.file, pos.inode, 0};
        code = rmq_batch_init(&batch, data, len, err);
        while (!code && !(code = rmq_batch_next(&batch, &put, err)) && put.key) {
            for (size_t i = 0; i < n; i++)
                see_put(topics[i], &put, at);
        }
        if (code)
            return code;
    }
}

/* ---- messages ------------------------------------------------------------------------------ */

/* A part under work. */
struct work {
    struct rmq_part *part;
    bool done;
    bool member;     /* of the group that is being read */
    uint64_t min_id; /* smaller ones were delivered or are not wished */
    size_t next;     /* of the same slot in struct by_topic, NO_WORK: none */
    size_t rank;     /* among those in the logs, by place */
    bool looked;     /* the logs were searched for the cursor's message: seen is the answer */
    struct topic_seen seen;
    /* Small values, until they get their common buffer. */
    uint8_t *small;
    size_t small_len, small_cap;
};

static uint8_t *add_small(struct work *k, size_t len)
{
    if (k->small_cap - k->small_len < len) {
        k->small_cap = (k->small_cap + len) * 2;
        k->small = xrealloc(k->small, k->small_cap); /* bounded by a slice and a record */
    }
    k->small_len += len;
    return k->small + k->small_len - len;
}

static struct wal_msg *add_msg(struct rmq_slice *s, uint64_t id, size_t len)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 8;
        s->msgs = xrealloc(s->msgs, s->cap * sizeof(*s->msgs));
    }
    s->msgs[s->n] = (struct wal_msg){.pos = {0, id}, .len = len};
    s->bytes += len;
    return &s->msgs[s->n++];
}

static int take_message(struct work *k, uint64_t id, const void *value, size_t len, struct err *err)
{
    struct rmq_slice *s = &k->part->slice;
    struct wal_msg *m;
    struct buf *b;

    if (len >= sizeof(streaming_magic) &&
        memcmp(value, streaming_magic, sizeof(streaming_magic)) == 0)
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER,
                       "unsupported source: message %" PRIu64
                       " of topic %s was written by the streaming service of Milvus 2.6",
                       id, k->part->cursor->topic);
    k->min_id = id + 1;
    if (len < BIG_VALUE) {
        uint8_t *place = add_small(k, len);

        if (len)
            memcpy(place, value, len);
        add_msg(s, id, len);
        return 0;
    }
    b = buf_new(len);
    if (!b)
        return err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for a message of %zu bytes", len);
    memcpy(b->data, value, len);
    m = add_msg(s, id, len);
    m->buf = b;
    m->data = b->data;
    return 0;
}

static bool slice_full(const struct rmq_slice *s)
{
    return s->n >= RMQ_SLICE_MSGS || s->bytes >= RMQ_SLICE_BYTES;
}

/* Copies the small values to one buffer of their exact size: a tick that waits must not hold a MiB.
 */
static int share_buffer(struct work *k, struct err *err)
{
    struct rmq_slice *s = &k->part->slice;
    struct buf *b = buf_new(k->small_len);
    size_t at = 0;

    if (!b)
        return err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for %zu bytes", k->small_len);
    if (k->small_len)
        memcpy(b->data, k->small, k->small_len);
    for (size_t i = 0; i < s->n; i++) {
        struct wal_msg *m = &s->msgs[i];

        if (m->buf)
            continue;
        m->buf = buf_ref(b);
        m->data = b->data + at;
        at += m->len;
    }
    buf_unref(b);
    return 0;
}

/* Ends the work on a part. What came before a bad message is delivered; the next slice tells of it.
 */
static int finish(struct work *k, int code, struct err *err)
{
    struct rmq_slice *s = &k->part->slice;

    k->done = true;
    k->part->skipped = false;
    if (!code || (err->cls != ERRC_RETRY && s->n > 0))
        return s->n > 0 ? share_buffer(k, err) : 0;
    if (err->cls == ERRC_RETRY)
        return code;
    s->err = xmalloc(sizeof(*s->err));
    err_copy(s->err, err);
    return 0;
}

/* ---- reading tables ------------------------------------------------------------------------ */

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

/* Many readers begin at places in the logs: one walk finds them all. */
static int look_ahead(struct rmq_db *db, struct work *works, size_t n, struct err *err)
{
    struct topic_seen **all = NULL;
    size_t found = 0;
    int code = 0;

    for (size_t i = 0; !code && i < n; i++) {
        const struct rmq_cursor *c = works[i].part->cursor;
        struct rmq_scan sc;

        if (!in_tables(db, c))
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
        code = see_logs(db, all, found, err);
    free(all);
    return code;
}

static int fill_from_tables(struct rmq_db *db, struct work *k, struct rmq_scan *sc, struct err *err)
{
    struct rmq_slice *s = &k->part->slice;
    uint64_t id = 0;
    bool more = false;
    int code = begin_scan(k, sc, &more, &id, err);

    while (!code && more && !slice_full(s)) {
        size_t len;
        const char *value = rocksdb_iter_value(sc->it, &len);

        if (s->n > 0 && s->bytes + len > RMQ_SLICE_BYTES)
            return 0;
        code = take_message(k, id, value, len, err);
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

static int read_tables(struct rmq_db *db, struct work *k, struct err *err)
{
    struct rmq_scan sc;
    int code;

    k->part->slice.log = (struct rmq_log_pos){0};
    rmq_scan_init(&sc, db->db, db->path, k->part->cursor->topic);
    code = fill_from_tables(db, k, &sc, err);
    rmq_scan_release(&sc);
    return finish(k, code, err);
}

/* ---- reading logs -------------------------------------------------------------------------- */

static bool same_pos(struct rmq_log_pos a, struct rmq_log_pos b)
{
    return a.file == b.file && a.inode == b.inode && a.offset == b.offset;
}

enum { NO_WORK = -1 };

/* The works of each topic: what is put into a log is of one of many. */
struct by_topic {
    size_t mask;
    size_t *slots; /* the first work with that hash, NO_WORK: none */
};

static void by_topic_init(struct by_topic *t, struct work *works, size_t n)
{
    size_t cap = 16;

    while (cap < 2 * n)
        cap *= 2;
    t->mask = cap - 1;
    t->slots = xmalloc(cap * sizeof(*t->slots));
    for (size_t i = 0; i < cap; i++)
        t->slots[i] = (size_t)NO_WORK;
    for (size_t i = n; i-- > 0;) {
        size_t *slot = &t->slots[works[i].part->cursor->hash & t->mask];

        works[i].next = *slot;
        *slot = i;
    }
}

/*
 * Readers read the logs together: who stands further ahead than the first one joins when the group comes to its
 * place.
 */
struct group {
    struct rmq_db *db;
    struct work *works;
    size_t n;
    const struct by_topic *topics;
    struct work **ahead;    /* by place, those behind the group's first */
    size_t n_ahead;
    struct rmq_log_pos pos; /* the next record */
    size_t most;            /* bytes of the largest slice */
    bool full;
    bool end;
};

static bool passed(struct rmq_log_pos place, struct rmq_log_pos by)
{
    return place.file < by.file || (place.file == by.file && place.offset < by.offset);
}

static void group_join(struct group *g)
{
    for (; g->n_ahead > 0; g->ahead++, g->n_ahead--) {
        struct work *k = *g->ahead;

        if (same_pos(k->part->cursor->log, g->pos))
            k->member = !k->done;
        else if (!passed(k->part->cursor->log, g->pos)) /* else in the middle of a record: it reads by itself */
            return;
    }
}

/* Hands a message to the readers of its topic. One with a bad message leaves the group before this
 * record. */
static int give_put(struct group *g, const struct rmq_put *put, struct rmq_log_pos record,
                    struct err *err)
{
    const uint8_t *slash = memrchr(put->key, '/', put->key_len);
    size_t topic_len = slash ? (size_t)(slash - put->key) : 0;
    uint64_t id = 0;

    if (!slash || !rmq_key_parse(put->key, put->key_len, topic_len, &id))
        return 0;
    for (size_t i = g->topics->slots[rmq_topic_hash(put->key, topic_len) & g->topics->mask], next; i != (size_t)NO_WORK;
         i = next) {
        struct work *k = &g->works[i];
        const struct rmq_cursor *c = k->part->cursor;
        int code;

        next = k->next;

        if (!k->member || c->topic_len != topic_len || memcmp(c->topic, put->key, topic_len) != 0 ||
            id < k->min_id)
            continue;
        code = take_message(k, id, put->value, put->value_len, err);
        if (code) {
            k->member = false;
            k->part->slice.log = record;
            code = finish(k, code, err);
            if (code)
                return code;
        }
        g->full = g->full || slice_full(&k->part->slice);
        if (k->part->slice.bytes > g->most)
            g->most = k->part->slice.bytes;
    }
    return 0;
}

static int give_record(struct group *g, const uint8_t *data, size_t len, struct rmq_log_pos record,
                       struct err *err)
{
    struct rmq_batch batch;
    struct rmq_put put;
    int code = rmq_batch_init(&batch, data, len, err);

    while (!code) {
        code = rmq_batch_next(&batch, &put, err);
        if (code || !put.key)
            break;
        code = give_put(g, &put, record, err);
    }
    return code;
}

static int read_records(struct group *g, struct err *err)
{
    bool some = false;

    while (!g->full) {
        struct rmq_log_pos record = g->pos;
        const uint8_t *data;
        size_t len;
        int code;

        group_join(g);
        code = rmq_logs_next(g->db->logs, &g->pos, &data, &len, err);
        if (code) {
            g->pos = record;
            return some ? 0 : code; /* what came before a damaged record is good */
        }
        g->end = !data;
        if (g->end)
            return 0;
        if (g->most > 0 && g->most + len > RMQ_SLICE_BYTES) { /* a record stays whole */
            g->pos = record;
            return 0;
        }
        code = give_record(g, data, len, record, err);
        if (code)
            return code;
        some = true;
    }
    return 0;
}

/* ahead[0] is the first. */
static int read_group(struct rmq_db *db, struct work *works, size_t n, const struct by_topic *topics,
                      struct work **ahead, size_t n_ahead, struct err *err)
{
    struct group g = {.db = db, .works = works, .n = n, .topics = topics, .ahead = ahead, .n_ahead = n_ahead};
    uint64_t now = clock_mono_ms();
    int code;

    g.pos = ahead[0]->part->cursor->log;
    for (size_t i = 0; i < n; i++)
        works[i].member = false;
    group_join(&g);
    code = read_records(&g, err);
    for (size_t i = 0; i < n; i++) {
        struct rmq_slice *s = &works[i].part->slice;

        if (code || !works[i].member)
            continue;
        s->log = g.pos;
        s->caught_up = g.end;
        s->end_ms = now;
        code = finish(&works[i], 0, err);
    }
    return code;
}

static int cmp_place(const void *pa, const void *pb)
{
    struct rmq_log_pos a = (*(struct work *const *)pa)->part->cursor->log;
    struct rmq_log_pos b = (*(struct work *const *)pb)->part->cursor->log;

    if (a.file != b.file)
        return a.file < b.file ? -1 : 1;
    return a.offset < b.offset ? -1 : a.offset > b.offset;
}

/* Those in the logs, by place: mostly all are at the same one. */
static size_t by_place(struct rmq_db *db, struct work *works, size_t n, struct work **ret)
{
    bool sorted = true;
    size_t k = 0;

    for (size_t i = 0; i < n; i++) {
        if (in_tables(db, works[i].part->cursor))
            continue;
        ret[k++] = &works[i];
        sorted = sorted && (k == 1 || cmp_place(&ret[k - 2], &ret[k - 1]) <= 0);
    }
    if (!sorted)
        qsort(ret, k, sizeof(struct work *), cmp_place);
    for (size_t i = 0; i < k; i++)
        ret[i]->rank = i;
    return k;
}

static bool poll_full(const struct work *works, size_t n)
{
    size_t bytes = 0;

    for (size_t i = 0; i < n; i++)
        bytes += works[i].part->slice.bytes;
    return bytes >= RMQ_POLL_BYTES; /* the rest has its turn next time */
}

static int read_logs(struct rmq_db *db, struct work *works, size_t n, struct err *err)
{
    struct work **ahead = xmalloc((n + 1) * sizeof(struct work *));
    size_t k = by_place(db, works, n, ahead);
    struct by_topic topics = {0};
    int code = 0;

    if (k > 0)
        by_topic_init(&topics, works, n);
    for (size_t i = 0; !code && i < n && k > 0; i++) { /* in their own order: the last served come last */
        if (works[i].done || in_tables(db, works[i].part->cursor))
            continue;
        if (poll_full(works, n))
            break;
        code = read_group(db, works, n, &topics, ahead + works[i].rank, k - works[i].rank, err);
    }
    free(topics.slots);
    free(ahead);
    return code;
}

/* ---- polls --------------------------------------------------------------------------------- */

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
    int code = look_ahead(db, works, n, err);

    for (size_t i = 0; !code && i < n; i++) {
        if (!in_tables(db, works[i].part->cursor))
            continue;
        if (poll_full(works, n))
            return 0;
        code = read_tables(db, &works[i], err);
    }
    return code ? code : read_logs(db, works, n, err);
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
        code = see_logs(db, all, n, err);
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
    code = refresh(db, parts, n, n_ends, &failed);
    if (!code)
        code = answer_ends(db, ends, n_ends, &failed);
    if (!code)
        code = read_parts(db, works, n, &failed);
    for (size_t i = 0; i < n; i++)
        free(works[i].small);
    if (!code && db->db && clock_mono_ms() - db->used_ms > UNUSED_MS)
        close_tables(db);
    if (!code)
        return 0;
    rmq_db_close(db);
    return err_copy(err, &failed);
}

void rmq_slice_release(struct rmq_slice *s)
{
    for (size_t i = 0; i < s->n; i++)
        buf_unref(s->msgs[i].buf);
    free(s->msgs);
    xfree(&s->err);
    s->msgs = NULL;
    s->n = s->cap = 0;
    s->bytes = 0;
}
