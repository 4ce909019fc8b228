/* rocksmq_tail.c - readers in the logs: all that are at one place read together. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "wal/rocksmq_db_priv.h"

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
        code = rmq_take(k, id, put->value, put->value_len, err);
        if (code) {
            k->member = false;
            k->part->slice.log = record;
            code = rmq_finish(k, code, err);
            if (code)
                return code;
        }
        g->full = g->full || rmq_slice_full(&k->part->slice);
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
        code = rmq_finish(&works[i], 0, err);
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
        if (rmq_in_tables(db, works[i].part->cursor))
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

int rmq_read_logs(struct rmq_db *db, struct work *works, size_t n, struct err *err)
{
    struct work **ahead = xmalloc((n + 1) * sizeof(struct work *));
    size_t k = by_place(db, works, n, ahead);
    struct by_topic topics = {0};
    int code = 0;

    if (k > 0)
        by_topic_init(&topics, works, n);
    for (size_t i = 0; !code && i < n && k > 0; i++) { /* in their own order: the last served come last */
        if (works[i].done || rmq_in_tables(db, works[i].part->cursor))
            continue;
        if (rmq_poll_full(works, n))
            break;
        code = read_group(db, works, n, &topics, ahead + works[i].rank, k - works[i].rank, err);
    }
    free(topics.slots);
    free(ahead);
    return code;
}
