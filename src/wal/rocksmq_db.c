#include "wal/rocksmq_priv.h"

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
    ID_DIGITS_MAX = 19,          /* int64 */
    BIG_VALUE = 64 << 10,        /* gets a buffer of its own; smaller ones share one */
    CACHE_BYTES = 8 << 20,       /* in one shard, so that a block of some MiB fits */
    LOG_FILES_MAX = 32,          /* write-ahead logs; RocksDB has one to three */
    REFRESH_TRIES = 10,
    SEEN_END_MS = 10000,         /* see still_there() */
    INFO_LOG_ERROR = 3,          /* rocksdb::InfoLogLevel */
};

/* A message of the streaming service of Milvus 2.6 (source.md 7.4). */
static const uint8_t streaming_magic[] = {0xff, 0xfe, 0xfd, 0xfc, 'S', 'T', 'R', 'E', 'A', 'M'};

/* The write-ahead logs in the folder. */
struct log_files {
    uint64_t num[LOG_FILES_MAX];
    size_t n;
};

struct rmq_db {
    char *path, *secondary_dir;
    rocksdb_options_t *opts;
    rocksdb_t *db;         /* NULL: closed */
    struct log_files logs; /* as of the last refresh */
};

/* ---- open and refresh ---------------------------------------------------------------------- */

static rocksdb_options_t *new_options(void)
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
    /* Else each catch-up starts and joins 15 threads per column family: 8 ms instead of 0.3 ms. */
    rocksdb_options_set_max_file_opening_threads(o, 1);
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
    db->opts = new_options();
    return db;
}

static void close_db(struct rmq_db *db)
{
    if (db->db)
        rocksdb_close(db->db);
    db->db = NULL;
    db->logs.n = 0;
}

void rmq_db_free(struct rmq_db *db)
{
    if (!db)
        return;
    close_db(db);
    rocksdb_options_destroy(db->opts);
    free(db->path);
    free(db->secondary_dir);
    free(db);
}

/* Takes over RocksDB's error text. */
static int rocks_err(struct err *err, const struct rmq_db *db, const char *what, char *text)
{
    int code = err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "rocksmq %s: %s: %s", db->path, what, text);

    rocksdb_free(text);
    return code;
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
    rc = make_dirs(db->secondary_dir, err);
    if (rc)
        return rc;
    remove_old_info_logs(db->secondary_dir);
    db->db = rocksdb_open_as_secondary(db->opts, db->path, db->secondary_dir, &text);
    return text ? rocks_err(err, db, "open", text) : 0;
}

static int list_logs(const struct rmq_db *db, struct log_files *ret, struct err *err)
{
    DIR *d = opendir(db->path);
    struct dirent *e;

    if (!d)
        return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "rocksmq %s: %s", db->path,
                       strerror(errno));
    ret->n = 0;
    while ((e = readdir(d)) && ret->n < LOG_FILES_MAX) {
        char *end;
        uint64_t num = strtoull(e->d_name, &end, 10);

        if (end != e->d_name && strcmp(end, ".log") == 0)
            ret->num[ret->n++] = num;
    }
    closedir(d);
    return 0;
}

/* True: each file of before is still there. */
static bool still_listed(const struct log_files *before, const struct log_files *after)
{
    for (size_t i = 0; i < before->n; i++) {
        size_t k = 0;

        while (k < after->n && after->num[k] != before->num[i])
            k++;
        if (k == after->n)
            return false;
    }
    return true;
}

static int open_or_catch_up(struct rmq_db *db, struct err *err)
{
    char *text = NULL;

    if (!db->db)
        return open_db(db, err);
    rocksdb_try_catch_up_with_primary(db->db, &text);
    return text ? rocks_err(err, db, "catch up", text) : 0;
}

/*
 * When the primary has flushed a log file, it deletes it. Then this instance is opened anew, for two reasons:
 * - A catch-up reads the manifest first and the logs afterwards. What is flushed and deleted in between is in
 *   neither, while later messages are: a hole.
 * - The copy of the old log in memory goes on to show messages that retention has removed since. Is the
 *   reader's last message such a one, the loss of those after it would not be noticed.
 * It happens once per write buffer of the primary (64 MiB), and gives the memory of the copy back.
 */
static int try_refresh(struct rmq_db *db, bool *ret_complete, struct err *err)
{
    struct log_files before, after;
    int code = list_logs(db, &before, err);

    if (code)
        return code;
    if (!still_listed(&db->logs, &before))
        close_db(db);
    code = open_or_catch_up(db, err);
    if (!code)
        code = list_logs(db, &after, err);
    if (code)
        return code;
    *ret_complete = still_listed(&before, &after);
    db->logs = after;
    return 0;
}

int rmq_db_refresh(struct rmq_db *db, struct err *err)
{
    bool complete = false;
    int code = 0;

    for (int i = 0; i < REFRESH_TRIES && !complete; i++) {
        code = try_refresh(db, &complete, err);
        if (code || !complete)
            close_db(db);
        if (code)
            return code;
    }
    if (!complete)
        return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "rocksmq %s: log files keep changing",
                       db->path);
    return 0;
}

/* ---- keys ---------------------------------------------------------------------------------- */

/* Walks the messages of one topic: keys "<topic>/<decimal id>". */
struct scan {
    struct rmq_db *db;
    rocksdb_readoptions_t *ro;
    rocksdb_iterator_t *it;
    char *key;   /* "<topic>/" with room for digits */
    char *lower; /* "<topic>/0" */
    char *upper; /* "<topic>/:", the first key after those with digits */
    size_t prefix;
    const char *topic;
};

static void scan_init(struct scan *sc, struct rmq_db *db, const char *topic)
{
    size_t len = strlen(topic) + 1;

    *sc = (struct scan){.db = db, .prefix = len, .topic = topic};
    sc->key = xmalloc(len + ID_DIGITS_MAX + 2);
    snprintf(sc->key, len + 1, "%s/", topic);
    sc->lower = xasprintf("%s/0", topic);
    sc->upper = xasprintf("%s/:", topic);
    sc->ro = rocksdb_readoptions_create();
    rocksdb_readoptions_set_iterate_lower_bound(sc->ro, sc->lower, len + 1);
    rocksdb_readoptions_set_iterate_upper_bound(sc->ro, sc->upper, len + 1);
    sc->it = rocksdb_create_iterator(db->db, sc->ro);
}

static void scan_release(struct scan *sc)
{
    rocksdb_iter_destroy(sc->it);
    rocksdb_readoptions_destroy(sc->ro);
    free(sc->key);
    free(sc->lower);
    free(sc->upper);
}

static int scan_error(const struct scan *sc, struct err *err)
{
    char *text = NULL;

    rocksdb_iter_get_error(sc->it, &text);
    return text ? rocks_err(err, sc->db, "read", text) : 0;
}

static uint64_t pow10_u64(unsigned n)
{
    uint64_t v = 1;

    while (n-- > 0)
        v *= 10;
    return v;
}

static unsigned count_digits(uint64_t id)
{
    unsigned n = 1;

    while (id >= 10) {
        id /= 10;
        n++;
    }
    return n;
}

/* The digits of the id under the iterator; 0: this key is no message of the topic. */
static unsigned scan_get(const struct scan *sc, uint64_t *ret_id)
{
    size_t len;
    const char *key = rocksdb_iter_key(sc->it, &len);
    uint64_t id = 0;
    size_t n = len - sc->prefix;

    if (len <= sc->prefix || n > ID_DIGITS_MAX || memcmp(key, sc->key, sc->prefix) != 0 ||
        key[sc->prefix] == '0')
        return 0;
    for (size_t i = sc->prefix; i < len; i++) {
        if (key[i] < '0' || key[i] > '9')
            return 0;
        id = id * 10 + (uint64_t)(key[i] - '0'); /* 19 digits fit */
    }
    *ret_id = id;
    return (unsigned)n;
}

static size_t make_key(struct scan *sc, uint64_t id)
{
    return sc->prefix +
           (size_t)snprintf(sc->key + sc->prefix, ID_DIGITS_MAX + 2, "%" PRIu64, id);
}

/* Moves to the first key not below id's. */
static bool scan_seek(struct scan *sc, uint64_t id)
{
    size_t len = make_key(sc, id);

    rocksdb_iter_seek(sc->it, sc->key, len);
    return rocksdb_iter_valid(sc->it);
}

static bool scan_seek_for_prev(struct scan *sc, uint64_t id)
{
    size_t len = make_key(sc, id);

    rocksdb_iter_seek_for_prev(sc->it, sc->key, len);
    return rocksdb_iter_valid(sc->it);
}

/*
 * Byte order is number order only among ids of equal length: 10 lies between 1 and 2. The functions below
 * look at one length at a time and jump over keys of others.
 */

/* Moves to the smallest id of that many digits that is not below from. */
static bool first_of_length(struct scan *sc, unsigned digits, uint64_t from, uint64_t *ret_id)
{
    bool valid = scan_seek(sc, from);

    while (valid) {
        uint64_t id = 0;
        unsigned n = scan_get(sc, &id);

        if (n == digits) {
            *ret_id = id;
            return true;
        }
        if (n == 0) {
            rocksdb_iter_next(sc->it);
            valid = rocksdb_iter_valid(sc->it);
        } else if (n > digits) {
            uint64_t next = id / pow10_u64(n - digits) + 1; /* its own prefix sorts before it */

            valid = next < pow10_u64(digits) && scan_seek(sc, next);
        } else {
            valid = scan_seek(sc, id * pow10_u64(digits - n));
        }
    }
    return false;
}

/* Moves to the greatest id of that many digits. */
static bool last_of_length(struct scan *sc, unsigned digits, uint64_t *ret_id)
{
    bool valid = scan_seek_for_prev(sc, pow10_u64(digits) - 1);

    while (valid) {
        uint64_t id = 0;
        unsigned n = scan_get(sc, &id);

        if (n == digits) {
            *ret_id = id;
            return true;
        }
        if (n == 0) {
            rocksdb_iter_prev(sc->it);
            valid = rocksdb_iter_valid(sc->it);
        } else if (n > digits) {
            valid = scan_seek_for_prev(sc, id / pow10_u64(n - digits));
        } else { /* those that start with id lie after it */
            valid = count_digits(id - 1) == n && id > 1 &&
                    scan_seek_for_prev(sc, id * pow10_u64(digits - n) - 1);
        }
    }
    return false;
}

static bool first_not_shorter(struct scan *sc, unsigned digits, uint64_t *ret_id)
{
    for (; digits <= ID_DIGITS_MAX; digits++) {
        if (first_of_length(sc, digits, pow10_u64(digits - 1), ret_id))
            return true;
    }
    return false;
}

/*
 * Could a topic with this id have longer ones? The search for them passes every shorter key, so it is left
 * out where they are impossible: ids of 18 digits are composed from the time (source.md 7.4), and 2^57 of
 * them are 17 years, longer than any topic is silent. Shorter ids are always taken as possible.
 */
static bool may_get_longer(uint64_t id)
{
    unsigned digits = count_digits(id);

    return digits < ID_DIGITS_MAX && pow10_u64(digits) - id < (uint64_t)1 << 57;
}

/* First and last in byte order have one length, and no longer id can hide between them. */
static bool one_length(struct scan *sc, uint64_t *ret_first, uint64_t *ret_last, bool *ret_empty)
{
    unsigned first = 0, last = 0;
    bool valid;

    for (valid = scan_seek_for_prev(sc, pow10_u64(ID_DIGITS_MAX) - 1);
         valid && !(last = scan_get(sc, ret_last)); valid = rocksdb_iter_valid(sc->it))
        rocksdb_iter_prev(sc->it);
    for (valid = scan_seek(sc, 1); valid && !(first = scan_get(sc, ret_first));
         valid = rocksdb_iter_valid(sc->it))
        rocksdb_iter_next(sc->it);
    *ret_empty = first == 0;
    return first != 0 && first == last && !may_get_longer(*ret_last);
}

/* Moves to the first message of the topic. */
static bool scan_first(struct scan *sc, uint64_t *ret_id)
{
    uint64_t first = 0, last = 0;
    bool empty;

    if (one_length(sc, &first, &last, &empty)) {
        *ret_id = first;
        return true;
    }
    return !empty && first_not_shorter(sc, 1, ret_id);
}

static bool scan_last(struct scan *sc, uint64_t *ret_id)
{
    uint64_t first = 0, last = 0;
    bool empty;

    if (one_length(sc, &first, &last, &empty)) {
        *ret_id = last;
        return true;
    }
    for (unsigned digits = ID_DIGITS_MAX; !empty && digits > 0; digits--) {
        if (last_of_length(sc, digits, ret_id))
            return true;
    }
    return false;
}

/* The iterator stands on id: moves to the next message. */
static bool scan_next(struct scan *sc, uint64_t id, uint64_t *ret_id)
{
    unsigned digits = count_digits(id);
    bool valid;

    rocksdb_iter_next(sc->it);
    valid = rocksdb_iter_valid(sc->it);
    if (valid && scan_get(sc, ret_id) == digits)
        return true;
    if (valid && count_digits(id + 1) == digits && first_of_length(sc, digits, id + 1, ret_id))
        return true;
    return (valid || may_get_longer(id)) && first_not_shorter(sc, digits + 1, ret_id);
}

/* The smallest id above one that is gone. */
static bool scan_above(struct scan *sc, uint64_t id, uint64_t *ret_id)
{
    unsigned digits = count_digits(id);

    if (count_digits(id + 1) == digits && first_of_length(sc, digits, id + 1, ret_id))
        return true;
    return may_get_longer(id) && first_not_shorter(sc, digits + 1, ret_id);
}

/* ---- where to go on ------------------------------------------------------------------------ */

static int lost(struct scan *sc, const struct rmq_cursor *c, struct err *err)
{
    const char *what = c->begun ? "the last message read" : "start position";
    uint64_t first, last;

    if (!scan_first(sc, &first) || !scan_last(sc, &last))
        return err_set(err, ERR_GONE, ERRC_LOST,
                       "rocksmq topic %s: %s %" PRIu64
                       " does not exist any more, and the topic has no messages",
                       c->topic, what, c->id);
    return err_set(err, ERR_GONE, ERRC_LOST,
                   "rocksmq topic %s: %s %" PRIu64
                   " does not exist any more; first existing %" PRIu64 ", last %" PRIu64,
                   c->topic, what, c->id, first, last);
}

/*
 * The last message read is gone. Retention removes from the oldest on, so nothing after it is missing if an
 * older one exists, or if it was the end of the log a moment ago (retention takes minutes at least).
 */
static bool nothing_missed(struct scan *sc, const struct rmq_cursor *c)
{
    uint64_t first;

    if (c->end_ms && clock_mono_ms() - c->end_ms <= SEEN_END_MS)
        return true;
    return scan_first(sc, &first) && first < c->id;
}

/* Moves to the next message to deliver.  *ret_more false: there is none yet. */
static int begin_scan(struct scan *sc, const struct rmq_cursor *c, bool *ret_more, uint64_t *ret_id,
                      struct err *err)
{
    uint64_t id = 0;
    int code;

    if (!c->begun && c->earliest) {
        *ret_more = scan_first(sc, ret_id);
        return scan_error(sc, err);
    }
    if (scan_seek(sc, c->id) && scan_get(sc, &id) && id == c->id) {
        *ret_more = c->begun ? scan_next(sc, id, ret_id) : true;
        if (!c->begun)
            *ret_id = id;
        return scan_error(sc, err);
    }
    code = scan_error(sc, err); /* a failed read is not an absent message */
    if (code)
        return code;
    if (!c->begun || !nothing_missed(sc, c)) {
        struct err gone;

        lost(sc, c, &gone);
        code = scan_error(sc, err);
        return code ? code : err_copy(err, &gone);
    }
    *ret_more = scan_above(sc, c->id, ret_id);
    return scan_error(sc, err);
}

/* ---- slices -------------------------------------------------------------------------------- */

/* Small values of a slice, until they get their common buffer. */
struct gather {
    uint8_t *data;
    size_t len, cap;
};

static uint8_t *gather_add(struct gather *g, size_t len)
{
    if (g->cap - g->len < len) {
        g->cap = (g->cap + len) * 2;
        g->data = xrealloc(g->data, g->cap); /* bounded by RMQ_SLICE_BYTES and one small value */
    }
    g->len += len;
    return g->data + g->len - len;
}

static struct wal_msg *slice_add(struct rmq_slice *s, uint64_t id, size_t len)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 8;
        s->msgs = xrealloc(s->msgs, s->cap * sizeof(*s->msgs));
    }
    s->msgs[s->n] = (struct wal_msg){.pos = {0, id}, .len = len};
    s->bytes += len;
    return &s->msgs[s->n++];
}

static int take_message(struct scan *sc, uint64_t id, struct rmq_slice *s, struct gather *g,
                        struct err *err)
{
    size_t len;
    const char *value = rocksdb_iter_value(sc->it, &len);
    struct buf *b;

    if (len >= sizeof(streaming_magic) && memcmp(value, streaming_magic, sizeof(streaming_magic)) == 0)
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER,
                       "unsupported source: message %" PRIu64
                       " of topic %s was written by the streaming service of Milvus 2.6",
                       id, sc->topic);
    if (len < BIG_VALUE) {
        uint8_t *place = gather_add(g, len);

        if (len)
            memcpy(place, value, len);
        slice_add(s, id, len);
        return 0;
    }
    b = buf_new(len);
    if (!b)
        return err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for a message of %zu bytes", len);
    memcpy(b->data, value, len);
    *slice_add(s, id, len) = (struct wal_msg){.pos = {0, id}, .buf = b, .data = b->data, .len = len};
    return 0;
}

/* Copies what was gathered to one buffer of its exact size: a tick that waits must not hold a MiB. */
static int share_buffer(struct rmq_slice *s, const struct gather *g, struct err *err)
{
    struct buf *b = buf_new(g->len);
    size_t at = 0;

    if (!b)
        return err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for %zu bytes", g->len);
    if (g->len)
        memcpy(b->data, g->data, g->len);
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

static int fill_slice(struct scan *sc, const struct rmq_cursor *c, struct rmq_slice *s,
                      struct gather *g, struct err *err)
{
    uint64_t id = 0;
    bool more = false;
    int code = begin_scan(sc, c, &more, &id, err);

    while (!code && more) {
        size_t len;

        (void)rocksdb_iter_value(sc->it, &len);
        if (s->n == RMQ_SLICE_MSGS || (s->n > 0 && s->bytes + len > RMQ_SLICE_BYTES))
            break;
        code = take_message(sc, id, s, g, err);
        if (!code) {
            more = scan_next(sc, id, &id);
            code = scan_error(sc, err);
        }
    }
    s->caught_up = !code && !more;
    return code;
}

void rmq_db_read(struct rmq_db *db, const struct rmq_cursor *c, struct rmq_slice *s)
{
    struct gather g = {0};
    struct scan sc;
    int code;

    s->end_ms = clock_mono_ms();
    scan_init(&sc, db, c->topic);
    code = fill_slice(&sc, c, s, &g, &s->err);
    /* What came before a bad message is delivered; the next slice begins with it and tells. */
    if (code && s->n > 0 && s->err.cls != ERRC_RETRY)
        code = 0;
    if (!code && s->n > 0)
        code = share_buffer(s, &g, &s->err);
    if (code)
        rmq_slice_release(s);
    else
        s->err.code = ERR_OK;
    free(g.data);
    scan_release(&sc);
}

int rmq_db_last(struct rmq_db *db, const char *topic, bool *ret_found, uint64_t *ret_id,
                struct err *err)
{
    struct scan sc;
    uint64_t id = 0;
    bool found;
    int code;

    scan_init(&sc, db, topic);
    found = scan_last(&sc, &id);
    code = scan_error(&sc, err);
    scan_release(&sc);
    if (!code) {
        *ret_found = found;
        *ret_id = id;
    }
    return code;
}

/* Frees what was read; an error stays. */
void rmq_slice_release(struct rmq_slice *s)
{
    for (size_t i = 0; i < s->n; i++)
        buf_unref(s->msgs[i].buf);
    free(s->msgs);
    s->msgs = NULL;
    s->n = s->cap = 0;
    s->bytes = 0;
    s->caught_up = false;
}
