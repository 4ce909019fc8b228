/*
 * A real secondary instance reads what a real primary writes, in the layout of Milvus
 * (source.md 7.4). "test_rocksmq --writer DIR N" is the primary as a process of its own.
 */
#include "wal/crc32c_priv.h"
#include "wal/rocksmq.h"
#include "wal/rocksmq_priv.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "repl/port.h"

#include <inttypes.h>
#include <rocksdb/c.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { DEADLINE_MS = 30000, IDS_MAX = 8192 };

/* ---- the primary --------------------------------------------------------------------------- */

struct primary {
    rocksdb_t *db;
    rocksdb_column_family_handle_t *cf[2];
    rocksdb_options_t *opts;
    rocksdb_writeoptions_t *wo;
};

static void must_rocks(char *err)
{
    if (err)
        fail_msg("rocksdb: %s", err);
}

static void primary_open(struct primary *p, const char *dir, size_t write_buffer)
{
    static const char *const names[] = {"default", "properties"};
    static const int levels[] = {0, 0, 7, 7, 7};
    const rocksdb_options_t *opts[2];
    char *err = NULL;

    p->opts = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(p->opts, 1);
    rocksdb_options_set_create_missing_column_families(p->opts, 1);
    rocksdb_options_set_write_buffer_size(p->opts, write_buffer);
    rocksdb_options_set_num_levels(p->opts, 5);
    rocksdb_options_set_compression_per_level(p->opts, levels, 5);
    opts[0] = opts[1] = p->opts;
    p->db = rocksdb_open_column_families(p->opts, dir, 2, names, opts, p->cf, &err);
    must_rocks(err);
    p->wo = rocksdb_writeoptions_create();
}

static void primary_close(struct primary *p)
{
    rocksdb_column_family_handle_destroy(p->cf[0]);
    rocksdb_column_family_handle_destroy(p->cf[1]);
    rocksdb_close(p->db);
    rocksdb_writeoptions_destroy(p->wo);
    rocksdb_options_destroy(p->opts);
}

static void put_bytes(struct primary *p, const char *topic, uint64_t id, const void *data,
                      size_t len)
{
    char *key = xasprintf("%s/%" PRIu64, topic, id);
    char *err = NULL;

    rocksdb_put_cf(p->db, p->wo, p->cf[1], key, strlen(key), "{}", 2, &err);
    must_rocks(err);
    rocksdb_put_cf(p->db, p->wo, p->cf[0], key, strlen(key), data, len, &err);
    must_rocks(err);
    free(key);
}

/* The value tells topic and id, and is filled up to size. */
static void put_size(struct primary *p, const char *topic, uint64_t id, size_t size)
{
    char *data = xcalloc(1, size + 300);
    int n = snprintf(data, 300, "%s#%" PRIu64, topic, id);

    memset(data + n, 'x', size);
    put_bytes(p, topic, id, data, (size_t)n + size);
    free(data);
}

static void put(struct primary *p, const char *topic, uint64_t id)
{
    put_size(p, topic, id, 0);
}

/* Retention, as Milvus does it: from..to exclusive. */
static void delete_range(struct primary *p, const char *topic, uint64_t from, uint64_t to)
{
    char *a = xasprintf("%s/%" PRIu64, topic, from), *b = xasprintf("%s/%" PRIu64, topic, to);
    char *err = NULL;

    rocksdb_delete_range_cf(p->db, p->wo, p->cf[0], a, strlen(a), b, strlen(b), &err);
    must_rocks(err);
    free(a);
    free(b);
}

static void flush_and_compact(struct primary *p)
{
    rocksdb_flushoptions_t *fo = rocksdb_flushoptions_create();
    char *err = NULL;

    rocksdb_flush_cf(p->db, fo, p->cf[0], &err);
    must_rocks(err);
    rocksdb_flush_cf(p->db, fo, p->cf[1], &err);
    must_rocks(err);
    rocksdb_compact_range_cf(p->db, p->cf[0], NULL, 0, NULL, 0);
    rocksdb_flushoptions_destroy(fo);
}

/* ---- the reading side ---------------------------------------------------------------------- */

struct world {
    char root[64];
    char *path, *secondary;
    struct loop *loop;
    struct timer guard;
    struct wal_port *port;
    struct primary prim;
    bool has_primary;
};

struct reader {
    struct world *w;
    struct wal_reader *r;
    const char *topic;
    uint64_t ids[IDS_MAX];
    size_t n, batches, caught_up;
    bool at_end;
    size_t max_msgs, max_bytes;
    size_t troubles, overs;
    struct err err;     /* the last trouble */
    size_t pause_after; /* pause in the batch in which this many were reached */
    size_t close_after;
    bool close_port;
};

static void on_guard(void *arg)
{
    (void)arg;
    fail_msg("condition did not come");
}

#define WAIT(w, cond)                                                                              \
    do {                                                                                           \
        timer_set(&(w)->guard, DEADLINE_MS);                                                       \
        while (!(cond))                                                                            \
            loop_once((w)->loop, true);                                                            \
        timer_cancel(&(w)->guard);                                                                 \
    } while (0)

static int setup(void **state)
{
    struct world *w = xcalloc(1, sizeof(*w));

    strcpy(w->root, "/tmp/test_rocksmq.XXXXXX");
    assert_non_null(mkdtemp(w->root));
    w->path = xasprintf("%s/rocksmq", w->root);
    w->secondary = xasprintf("%s/secondary/a", w->root);
    w->loop = loop_new();
    timer_init(&w->guard, w->loop, LOOP_PRIO_HIGH, on_guard, w);
    w->port = rocksmq_open(w->loop, w->path, w->secondary);
    *state = w;
    return 0;
}

static void start_primary(struct world *w)
{
    primary_open(&w->prim, w->path, 64 << 20);
    w->has_primary = true;
}

static int teardown(void **state)
{
    struct world *w = *state;
    char *rm = xasprintf("rm -rf %s", w->root);

    if (w->has_primary)
        primary_close(&w->prim);
    rocksmq_close(w->port);
    timer_release(&w->guard);
    loop_free(w->loop);
    assert_int_equal(system(rm), 0);
    free(rm);
    free(w->path);
    free(w->secondary);
    free(w);
    return 0;
}

static void check_message(const struct reader *t, const struct wal_msg *m)
{
    char want[300];
    int n = snprintf(want, sizeof(want), "%s#%" PRIu64, t->topic, m->pos.minor);

    assert_int_equal(m->pos.major, 0);
    assert_true(m->len >= (size_t)n);
    assert_memory_equal(m->data, want, (size_t)n);
    for (size_t i = (size_t)n; i < m->len; i++)
        assert_int_equal(m->data[i], 'x');
    assert_true(m->data >= m->buf->data && m->data + m->len <= m->buf->data + m->buf->size);
}

static void close_reader(struct reader *t)
{
    if (t->r)
        t->w->port->ops->close(t->r);
    t->r = NULL;
}

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct reader *t = arg;
    size_t bytes = 0;

    assert_non_null(t->r);
    assert_true(n > 0 || caught_up);
    for (size_t i = 0; i < n; i++) {
        check_message(t, &msgs[i]);
        assert_true(t->n < IDS_MAX);
        t->ids[t->n++] = msgs[i].pos.minor;
        bytes += msgs[i].len;
    }
    t->batches++;
    t->at_end = caught_up;
    t->caught_up += caught_up;
    t->max_msgs = n > t->max_msgs ? n : t->max_msgs;
    if (n > 1)
        t->max_bytes = bytes > t->max_bytes ? bytes : t->max_bytes;
    if (t->pause_after && t->n >= t->pause_after)
        t->w->port->ops->pause(t->r);
    if (t->close_after && t->n >= t->close_after)
        close_reader(t);
    if (t->close_port && !t->r) {
        rocksmq_close(t->w->port);
        t->w->port = NULL;
    }
}

static void on_trouble(void *arg, const struct err *err)
{
    struct reader *t = arg;

    if (!err) {
        t->overs++;
        return;
    }
    t->troubles++;
    t->err = *err;
}

static struct reader *open_reader(struct world *w, const char *topic, const struct wal_start *start)
{
    static const struct wal_reader_cbs cbs = {.on_batch = on_batch, .on_trouble = on_trouble};
    struct reader *t = xcalloc(1, sizeof(*t));

    t->w = w;
    t->topic = topic;
    t->r = w->port->ops->open(w->port, topic, start, &cbs, t);
    assert_int_equal(t->batches, 0);
    return t;
}

static struct reader *open_earliest(struct world *w, const char *topic)
{
    return open_reader(w, topic, &(struct wal_start){.earliest = true});
}

static struct reader *open_at(struct world *w, const char *topic, uint64_t id)
{
    return open_reader(w, topic, &(struct wal_start){.pos = {0, id}});
}

static void free_reader(struct reader *t)
{
    close_reader(t);
    free(t);
}

static void assert_ids(const struct reader *t, const uint64_t *want, size_t n)
{
    assert_int_equal(t->n, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(t->ids[i], want[i]);
}
#define ASSERT_IDS(t, ...)                                                                         \
    assert_ids(t, (const uint64_t[]){__VA_ARGS__},                                                 \
               sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))

struct end_result {
    unsigned calls;
    bool found;
    uint64_t last;
    struct err err;
};

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct end_result *e = arg;

    e->calls++;
    e->found = found;
    e->last = last.minor;
    if (err)
        e->err = *err;
}

static struct end_result ask_end(struct world *w, const char *topic)
{
    struct end_result e = {0};

    w->port->ops->end(w->port, topic, on_end, &e);
    assert_int_equal(e.calls, 0);
    WAIT(w, e.calls);
    assert_int_equal(e.calls, 1);
    return e;
}

/* ---- tests --------------------------------------------------------------------------------- */

static void ids_are_int64_little_endian(void **state)
{
    struct world *w = *state;
    const struct wal_port_ops *ops = w->port->ops;
    static const uint8_t want[] = {0x41, 0x02, 0x00, 0x01, 0xd4, 0x29, 0x88, 0x06};
    struct wal_pos pos = {0, 0x068829d401000241};
    uint8_t id[WAL_ID_MAX];

    assert_int_equal(ops->id_encode(pos, id), 8);
    assert_memory_equal(id, want, 8);
    pos = WAL_POS_NONE;
    assert_int_equal(ops->id_decode(id, 8, &pos), 0);
    assert_true(pos.major == 0 && pos.minor == 0x068829d401000241);
    assert_int_equal(ops->id_decode(id, 7, &pos), ERR_PROTO);
    assert_int_equal(ops->id_decode(id, 9, &pos), ERR_PROTO);
    id[7] = 0x80;
    assert_int_equal(ops->id_decode(id, 8, &pos), ERR_PROTO);
}

static void reads_one_topic_in_order_and_live(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    for (uint64_t id = 100; id < 110; id++) {
        put(&w->prim, "dml_1", id);
        put(&w->prim, "dml_10", id);
        put(&w->prim, "dml_1/1", id);
        put(&w->prim, "dml_", id);
        if (id == 105) /* the first from tables, the others from the log */
            flush_and_compact(&w->prim);
    }
    t = open_earliest(w, "dml_1");
    WAIT(w, t->n == 10);
    ASSERT_IDS(t, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109);
    assert_true(t->at_end);
    put(&w->prim, "dml_10", 110);
    put(&w->prim, "dml_1", 111);
    WAIT(w, t->n == 11);
    assert_int_equal(t->ids[10], 111);
    put(&w->prim, "dml_1", 115);
    WAIT(w, t->n == 12);
    assert_int_equal(t->ids[11], 115);
    assert_int_equal(t->troubles, 0);
    free_reader(t);
}

static void order_is_numeric_across_digit_counts(void **state)
{
    static const uint64_t ids[] = {5, 8, 9, 10, 11, 55, 99, 100, 555, 1000, 5000};
    enum { N = sizeof(ids) / sizeof(ids[0]) };
    struct world *w = *state;
    struct reader *t, *at;

    start_primary(w);
    for (size_t i = 0; i < N; i++)
        put(&w->prim, "t", ids[i]);
    flush_and_compact(&w->prim);
    t = open_earliest(w, "t");
    WAIT(w, t->n >= N);
    assert_ids(t, ids, N);
    at = open_at(w, "t", 9);
    WAIT(w, at->n >= N - 2);
    assert_ids(at, ids + 2, N - 2);
    assert_int_equal(ask_end(w, "t").last, 5000);
    put(&w->prim, "t", 9999);
    put(&w->prim, "t", 10000);
    WAIT(w, t->n == N + 2);
    put(&w->prim, "t", 55000); /* lies between the keys 5000 and 555 */
    WAIT(w, t->n == N + 3 && at->n == N + 1);
    assert_int_equal(t->ids[N + 1], 10000);
    assert_int_equal(t->ids[N + 2], 55000);
    assert_int_equal(ask_end(w, "t").last, 55000);
    flush_and_compact(&w->prim);
    assert_int_equal(ask_end(w, "t").last, 55000);
    free_reader(t);
    t = open_at(w, "t", 9999);
    WAIT(w, t->n == 3);
    ASSERT_IDS(t, 9999, 10000, 55000);
    free_reader(t);
    free_reader(at);
}

static void order_is_numeric_at_the_next_power_of_real_ids(void **state)
{
    const uint64_t p18 = UINT64_C(1000000000000000000);
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    put(&w->prim, "t", p18 - 300);
    put(&w->prim, "t", p18 - 1);
    t = open_earliest(w, "t");
    WAIT(w, t->n == 2);
    put(&w->prim, "t", p18);
    put(&w->prim, "t", p18 + 70);
    WAIT(w, t->n == 4);
    ASSERT_IDS(t, p18 - 300, p18 - 1, p18, p18 + 70);
    assert_int_equal(ask_end(w, "t").last, p18 + 70);
    flush_and_compact(&w->prim);
    assert_int_equal(ask_end(w, "t").last, p18 + 70);
    free_reader(t);
    t = open_earliest(w, "t");
    WAIT(w, t->n == 4);
    ASSERT_IDS(t, p18 - 300, p18 - 1, p18, p18 + 70);
    free_reader(t);
}

static void end_tells_the_last_message(void **state)
{
    struct world *w = *state;
    struct end_result e, cancelled = {0};

    start_primary(w);
    e = ask_end(w, "none");
    assert_false(e.found);
    assert_int_equal(e.err.code, ERR_OK);
    put(&w->prim, "t", 470676019420069889);
    put(&w->prim, "t", 470676019420069999);
    put(&w->prim, "t1", 470676019420070000);
    e = ask_end(w, "t");
    assert_true(e.found);
    assert_int_equal(e.last, 470676019420069999);
    flush_and_compact(&w->prim);
    assert_false(ask_end(w, "s").found);
    assert_false(ask_end(w, "u").found);
    assert_int_equal(ask_end(w, "t").last, 470676019420069999);
    put(&w->prim, "t", 470676019420070001);
    w->port->ops->end(w->port, "t", on_end, &cancelled);
    w->port->ops->end_cancel(w->port, &cancelled);
    assert_int_equal(ask_end(w, "t").last, 470676019420070001);
    assert_int_equal(cancelled.calls, 0);
}

static void pause_stops_batches_until_resume(void **state)
{
    struct world *w = *state;
    struct reader *t, *other;

    start_primary(w);
    for (uint64_t id = 1001; id <= 1010; id++)
        put(&w->prim, "t", id);
    t = open_earliest(w, "t");
    t->pause_after = 10;
    WAIT(w, t->n == 10);
    put(&w->prim, "t", 1011);
    put(&w->prim, "o", 1012);
    /* Whole polls pass, and the other reader gets its message. */
    other = open_earliest(w, "o");
    WAIT(w, other->n == 1);
    assert_int_equal(ask_end(w, "t").last, 1011);
    assert_int_equal(t->n, 10);
    t->pause_after = 0;
    w->port->ops->resume(t->r);
    w->port->ops->pause(t->r); /* a poll may have its slice on the way */
    w->port->ops->resume(t->r);
    WAIT(w, t->n == 11);
    assert_int_equal(t->ids[10], 1011);
    free_reader(t);
    free_reader(other);
}

/* The slice that a poll brings for a reader paused meanwhile comes after resume(), once. */
static void pause_during_a_poll_loses_nothing(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    for (uint64_t id = 1000; id < 1500; id++)
        put(&w->prim, "t", id);
    t = open_earliest(w, "t");
    for (int i = 0; i < 30; i++) {
        size_t before;

        w->port->ops->resume(t->r);
        for (int k = 0; k < i % 4; k++)
            loop_once(w->loop, true);
        w->port->ops->pause(t->r);
        before = t->n;
        (void)ask_end(w, "t");
        assert_int_equal(t->n, before);
    }
    w->port->ops->resume(t->r);
    WAIT(w, t->n == 500);
    for (uint64_t i = 0; i < 500; i++)
        assert_int_equal(t->ids[i], 1000 + i);
    free_reader(t);
}

static void slices_are_bounded_and_all_topics_get_turns(void **state)
{
    struct world *w = *state;
    struct reader *t[6], *tiny;

    start_primary(w);
    for (uint64_t id = 1000; id < 1024; id++)
        put_size(&w->prim, "big", id, 100 << 10);
    put_size(&w->prim, "big", 1024, 5300000);
    put_size(&w->prim, "big", 1025, 70000);
    put(&w->prim, "big", 1026);
    for (uint64_t id = 1; id <= 1000; id++)
        put(&w->prim, "tiny", 9000 + id);
    for (size_t i = 0; i < 6; i++)
        t[i] = open_earliest(w, "big");
    tiny = open_earliest(w, "tiny");
    for (size_t i = 0; i < 6; i++) {
        WAIT(w, t[i]->n == 27 && t[i]->at_end);
        for (uint64_t k = 0; k < 27; k++)
            assert_int_equal(t[i]->ids[k], 1000 + k);
        assert_true(t[i]->max_bytes <= 1 << 20);
        assert_true(t[i]->batches >= 4);
        assert_int_equal(t[i]->caught_up, 1);
        free_reader(t[i]);
    }
    WAIT(w, tiny->n == 1000);
    assert_int_equal(tiny->max_msgs, 256);
    free_reader(tiny);
}

static void start_position_must_exist(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    for (uint64_t id = 101; id <= 110; id++)
        put(&w->prim, "t", id);
    delete_range(&w->prim, "t", 101, 106);
    flush_and_compact(&w->prim);
    t = open_at(w, "t", 103);
    WAIT(w, t->troubles);
    assert_int_equal(t->err.cls, ERRC_LOST);
    assert_int_equal(t->err.code, ERR_GONE);
    assert_non_null(strstr(t->err.text, "103"));
    assert_non_null(strstr(t->err.text, "first existing 106"));
    assert_non_null(strstr(t->err.text, "last 110"));
    put(&w->prim, "t", 111);
    assert_int_equal(ask_end(w, "t").last, 111);
    assert_int_equal(t->n, 0);
    assert_int_equal(t->troubles, 1);
    free_reader(t);

    t = open_at(w, "nothing", 5);
    WAIT(w, t->troubles);
    assert_int_equal(t->err.cls, ERRC_LOST);
    free_reader(t);

    t = open_at(w, "t", 106);
    WAIT(w, t->n == 6);
    ASSERT_IDS(t, 106, 107, 108, 109, 110, 111);
    free_reader(t);
}

static void retention_that_overtakes_a_reader_is_loss(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    for (uint64_t id = 101; id <= 1000; id++)
        put(&w->prim, "t", id);
    t = open_at(w, "t", 101);
    t->pause_after = 256;
    WAIT(w, t->n == 256);
    delete_range(&w->prim, "t", 101, 990);
    flush_and_compact(&w->prim);
    w->port->ops->resume(t->r);
    WAIT(w, t->troubles);
    assert_int_equal(t->err.cls, ERRC_LOST);
    assert_non_null(strstr(t->err.text, "356"));
    assert_non_null(strstr(t->err.text, "first existing 990"));
    assert_int_equal(t->n, 256);
    free_reader(t);
}

/* The message itself is still in the copy of a log that the primary has deleted, those after it are
 * not. */
static void loss_in_a_deleted_log_is_noticed(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    for (uint64_t id = 101; id <= 400; id++)
        put(&w->prim, "t", id);
    t = open_at(w, "t", 101);
    t->pause_after = 256;
    WAIT(w, t->n == 256);
    for (uint64_t id = 401; id <= 500; id++)
        put(&w->prim, "t", id);
    delete_range(&w->prim, "t", 101, 450);
    flush_and_compact(&w->prim);
    put(&w->prim, "t", 501);
    w->port->ops->resume(t->r);
    WAIT(w, t->troubles);
    assert_int_equal(t->err.cls, ERRC_LOST);
    assert_non_null(strstr(t->err.text, "first existing 450"));
    assert_int_equal(t->n, 256);
    free_reader(t);
}

/* Nothing is lost when a quiet topic is emptied behind a reader at its end. */
static void retention_of_what_was_read_is_no_loss(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    put(&w->prim, "t", 101);
    put(&w->prim, "t", 102);
    t = open_earliest(w, "t");
    WAIT(w, t->n == 2);
    delete_range(&w->prim, "t", 101, 103);
    flush_and_compact(&w->prim);
    assert_false(ask_end(w, "t").found);
    put(&w->prim, "t", 103);
    WAIT(w, t->n == 3);
    put(&w->prim, "t", 2104);
    WAIT(w, t->n == 4);
    ASSERT_IDS(t, 101, 102, 103, 2104);
    assert_int_equal(t->troubles, 0);
    free_reader(t);
}

static void deleting_older_messages_is_no_loss(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    for (uint64_t id = 101; id <= 110; id++)
        put(&w->prim, "t", id);
    t = open_at(w, "t", 108);
    t->pause_after = 3;
    WAIT(w, t->n == 3);
    delete_range(&w->prim, "t", 101, 110);
    flush_and_compact(&w->prim);
    put(&w->prim, "t", 111);
    w->port->ops->resume(t->r);
    WAIT(w, t->n == 4);
    assert_int_equal(t->troubles, 0);
    free_reader(t);
}

static void a_path_that_comes_later_is_waited_for(void **state)
{
    struct world *w = *state;
    struct reader *t = open_earliest(w, "t");
    struct end_result e;

    WAIT(w, t->troubles);
    assert_int_equal(t->err.cls, ERRC_RETRY);
    assert_non_null(strstr(t->err.text, w->path));
    e = ask_end(w, "t");
    assert_int_equal(e.err.cls, ERRC_RETRY);
    assert_int_equal(e.err.code, ERR_UNAVAILABLE);
    start_primary(w);
    WAIT(w, t->overs == 1);
    WAIT(w, t->caught_up == 1); /* an empty topic is told once */
    assert_int_equal(t->n, 0);
    put(&w->prim, "t", 7);
    WAIT(w, t->n == 1);
    assert_int_equal(t->troubles, 1);
    assert_int_equal(t->overs, 1);
    free_reader(t);
}

static void another_folder_at_the_same_path(void **state)
{
    struct world *w = *state;
    char *old = xasprintf("%s.old", w->path);
    struct reader *t;

    start_primary(w);
    put(&w->prim, "t", 101);
    t = open_earliest(w, "t");
    WAIT(w, t->n == 1);
    primary_close(&w->prim);
    assert_int_equal(rename(w->path, old), 0);
    WAIT(w, t->troubles == 1);
    assert_int_equal(t->err.cls, ERRC_RETRY);
    start_primary(w);
    put(&w->prim, "t", 101);
    put(&w->prim, "t", 102);
    WAIT(w, t->n == 2);
    ASSERT_IDS(t, 101, 102);
    assert_int_equal(t->overs, 1);
    free_reader(t);
    free(old);
}

static void flush_compaction_and_restart_of_the_primary(void **state)
{
    struct world *w = *state;
    struct reader *t;
    uint64_t id = 1000;

    start_primary(w);
    t = open_earliest(w, "t");
    for (int round = 0; round < 6; round++) {
        for (int i = 0; i < 50; i++)
            put_size(&w->prim, "t", id++, 3000);
        if (round % 2 == 0)
            flush_and_compact(&w->prim);
        for (int i = 0; i < 5; i++)
            put_size(&w->prim, "t", id++, 3000);
        if (round % 3 == 1) {
            primary_close(&w->prim);
            start_primary(w);
        }
        put(&w->prim, "t", id++);
        if (round % 2 == 1)
            WAIT(w, t->n == id - 1000);
    }
    WAIT(w, t->n == id - 1000);
    for (size_t i = 0; i < t->n; i++)
        assert_int_equal(t->ids[i], 1000 + i);
    assert_int_equal(t->troubles, 0);
    free_reader(t);
}

/* Writers of several topics may be merged into one record, with whatever else they do. */
static void one_record_holds_many_things(void **state)
{
    struct world *w = *state;
    rocksdb_writebatch_t *b = rocksdb_writebatch_create();
    rocksdb_column_family_handle_t **cf;
    struct reader *t, *u;
    char *err = NULL;

    start_primary(w);
    cf = w->prim.cf;
    t = open_earliest(w, "t");
    u = open_earliest(w, "u");
    WAIT(w, t->at_end && u->at_end);
    rocksdb_writebatch_put_cf(b, cf[1], "t/1001", 6, "{}", 2);
    rocksdb_writebatch_put_cf(b, cf[0], "t/1001", 6, "t#1001", 6);
    rocksdb_writebatch_put_log_data(b, "note", 4);
    rocksdb_writebatch_put(b, "u/1002", 6, "u#1002", 6);
    rocksdb_writebatch_delete(b, "t/5", 3);
    rocksdb_writebatch_delete_cf(b, cf[1], "t/5", 3);
    rocksdb_writebatch_delete_range(b, "t/1", 3, "t/9", 3);
    rocksdb_writebatch_delete_range_cf(b, cf[1], "t/1", 3, "t/9", 3);
    rocksdb_writebatch_put(b, "t1/1003", 7, "-", 1);
    rocksdb_writebatch_put(b, "t/x1003", 7, "-", 1);
    rocksdb_writebatch_put(b, "t", 1, "-", 1);
    rocksdb_writebatch_put(b, "t/1004", 6, "t#1004", 6);
    rocksdb_writebatch_put(b, "u/1005", 6, "u#1005", 6);
    rocksdb_write(w->prim.db, w->prim.wo, b, &err);
    must_rocks(err);
    rocksdb_writebatch_destroy(b);
    WAIT(w, t->n == 2 && u->n == 2);
    ASSERT_IDS(t, 1001, 1004);
    ASSERT_IDS(u, 1002, 1005);
    free_reader(t);
    free_reader(u);
}

/* Sizes around the blocks of 32 KiB with their headers of 7 bytes. */
static void records_of_all_sizes_and_places(void **state)
{
    struct world *w = *state;
    struct reader *t;
    uint64_t id = 1000;

    start_primary(w);
    t = open_earliest(w, "t");
    for (size_t i = 0; i < 400; i++)
        put_size(&w->prim, "t", id++, (i * 331 + i % 7) % 33000);
    for (size_t i = 0; i < 40; i++)
        put_size(&w->prim, "t", id++, 32768 * (i % 3 + 1) - 60 - i);
    WAIT(w, t->n == 440);
    for (size_t i = 0; i < t->n; i++)
        assert_int_equal(t->ids[i], 1000 + i);
    assert_int_equal(t->troubles, 0);
    free_reader(t);
}

static void a_paused_reader_goes_on_from_the_tables(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    for (uint64_t id = 101; id <= 400; id++)
        put(&w->prim, "t", id);
    t = open_at(w, "t", 120);
    t->pause_after = 1;
    WAIT(w, t->n == 256);
    for (uint64_t id = 401; id <= 500; id++)
        put(&w->prim, "t", id);
    delete_range(&w->prim, "t", 101, 375);
    flush_and_compact(&w->prim);
    for (uint64_t id = 501; id <= 510; id++)
        put(&w->prim, "t", id);
    t->pause_after = 0;
    w->port->ops->resume(t->r);
    WAIT(w, t->n == 391);
    for (size_t i = 0; i < t->n; i++)
        assert_int_equal(t->ids[i], 120 + i);
    assert_int_equal(t->troubles, 0);
    free_reader(t);
}

static void append_to_newest_log(const char *dir, const void *data, size_t len)
{
    char *cmd = xasprintf("ls %s/*.log | tail -1", dir);
    FILE *ls = popen(cmd, "r"), *f;
    char name[300] = "";

    assert_non_null(fgets(name, sizeof(name), ls));
    name[strcspn(name, "\n")] = '\0';
    pclose(ls);
    f = fopen(name, "a");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
    free(cmd);
}

/* A crash of the source leaves half a record; its next start makes tables of the log and removes
 * it. */
static void a_torn_log_is_waited_out(void **state)
{
    static const uint8_t bad[] = {1, 2, 3, 4, 3, 0, 1, 'x', 'y', 'z'};
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    put(&w->prim, "t", 101);
    t = open_earliest(w, "t");
    WAIT(w, t->n == 1);
    put(&w->prim, "t", 102);
    primary_close(&w->prim);
    w->has_primary = false;
    append_to_newest_log(w->path, bad, sizeof(bad));
    WAIT(w, t->troubles);
    assert_int_equal(t->err.cls, ERRC_RETRY);
    assert_non_null(strstr(t->err.text, "checksum"));
    assert_int_equal(t->n, 2);
    start_primary(w);
    put(&w->prim, "t", 103);
    WAIT(w, t->n == 3);
    ASSERT_IDS(t, 101, 102, 103);
    assert_int_equal(t->troubles, 1);
    assert_int_equal(t->overs, 1);
    free_reader(t);
}

static void half_a_record_is_not_passed_over(void **state)
{
    struct world *w = *state;
    char *newer = xasprintf("%s/900000.log", w->path);
    struct reader *t;
    FILE *f;

    start_primary(w);
    put(&w->prim, "t", 101);
    t = open_earliest(w, "t");
    WAIT(w, t->n == 1);
    primary_close(&w->prim);
    w->has_primary = false;
    append_to_newest_log(w->path, "abc", 3);
    f = fopen(newer, "w");
    assert_non_null(f);
    fclose(f);
    WAIT(w, t->troubles);
    assert_non_null(strstr(t->err.text, "half a record"));
    assert_int_equal(unlink(newer), 0);
    start_primary(w);
    put(&w->prim, "t", 102);
    WAIT(w, t->n == 2 && t->overs == 1);
    free_reader(t);
    free(newer);
}

static void streaming_service_is_refused(void **state)
{
    static const uint8_t magic[] = {0xff, 0xfe, 0xfd, 0xfc, 'S', 'T', 'R', 'E', 'A', 'M', 1, 2};
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    put(&w->prim, "t", 101);
    put(&w->prim, "t", 102);
    put_bytes(&w->prim, "t", 103, magic, sizeof(magic));
    put(&w->prim, "t", 104);
    t = open_earliest(w, "t");
    WAIT(w, t->troubles);
    ASSERT_IDS(t, 101, 102);
    assert_int_equal(t->err.cls, ERRC_USER);
    assert_int_equal(t->err.code, ERR_UNSUPPORTED);
    assert_non_null(strstr(t->err.text, "unsupported source"));
    assert_false(t->at_end);
    (void)ask_end(w, "t");
    assert_int_equal(t->troubles, 1);
    assert_int_equal(t->n, 2);
    free_reader(t);
}

static void an_empty_topic_name_works(void **state)
{
    struct world *w = *state;
    struct reader *t;

    start_primary(w);
    put_bytes(&w->prim, "", 5, "#5", 2);
    t = open_earliest(w, "");
    WAIT(w, t->n == 1);
    free_reader(t);
}

static struct buf *kept;
static uint8_t kept_first;

static void keep_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    (void)arg;
    (void)caught_up;
    if (n > 0 && !kept) {
        kept = buf_ref(msgs[0].buf);
        kept_first = msgs[0].data[0];
    }
}

static void buffers_can_be_kept(void **state)
{
    static const struct wal_reader_cbs cbs = {.on_batch = keep_batch, .on_trouble = on_trouble};
    struct world *w = *state;
    struct wal_reader *r;

    start_primary(w);
    put(&w->prim, "t", 1);
    r = w->port->ops->open(w->port, "t", &(struct wal_start){.earliest = true}, &cbs, NULL);
    WAIT(w, kept);
    w->port->ops->close(r);
    w->port->ops->close(r); /* twice in a turn is allowed */
    (void)ask_end(w, "t");
    assert_int_equal(kept->refs, 1);
    assert_int_equal(kept->data[0], kept_first);
    assert_int_equal(kept->size, 3); /* not a whole slice */
    buf_unref(kept);
    kept = NULL;
}

static void close_inside_callbacks(void **state)
{
    struct world *w = *state;
    struct reader *t, *other;

    start_primary(w);
    for (uint64_t id = 1001; id <= 2000; id++)
        put(&w->prim, "t", id);
    t = open_earliest(w, "t");
    other = open_earliest(w, "t");
    t->close_after = 1;
    WAIT(w, !t->r && other->n == 1000);
    assert_int_equal(t->batches, 1);
    free_reader(other);
    free(t);

    t = open_earliest(w, "t");
    t->close_after = 500;
    t->close_port = true;
    WAIT(w, !w->port);
    assert_int_equal(t->n, 512);
    free(t);
}

static void close_at_any_moment(void **state)
{
    struct world *w = *state;

    start_primary(w);
    for (uint64_t id = 1001; id <= 1300; id++)
        put_size(&w->prim, "t", id, 1000);
    for (int turns = 0; turns < 12; turns++) {
        struct reader *a = open_earliest(w, "t"), *b = open_at(w, "t", 1100);
        struct end_result e = {0};

        w->port->ops->end(w->port, "t", on_end, &e);
        for (int i = 0; i < turns; i++)
            loop_once(w->loop, true);
        free_reader(a);
        free_reader(b);
        w->port->ops->end_cancel(w->port, &e);
        if (turns % 3 == 0) {
            rocksmq_close(w->port);
            w->port = rocksmq_open(w->loop, w->path, w->secondary);
        }
    }
    assert_int_equal(ask_end(w, "t").last, 1300);
}

/* ---- against a writer that never stands still ---------------------------------------------- */

enum { WRITER_FIRST = 1000000 };

static size_t writer_size(int i)
{
    return (size_t)(i * 7919 % 20000);
}

/* Small write buffers: log files and tables come and go all the time. */
static int writer_main(const char *dir, int n)
{
    struct primary p;

    primary_open(&p, dir, 256 << 10);
    for (int i = 0; i < n; i++) {
        put_size(&p, "t", (uint64_t)(WRITER_FIRST + i), writer_size(i));
        put(&p, "t2", (uint64_t)(WRITER_FIRST + i));
        if (i % 1000 == 999) {
            primary_close(&p);
            primary_open(&p, dir, 256 << 10);
        }
        if (i % 50 == 0)
            usleep(2000);
    }
    primary_close(&p);
    return 0;
}

static void nothing_is_missed_while_logs_come_and_go(void **state)
{
    enum { N = 4000 };
    struct world *w = *state;
    struct reader *t = open_earliest(w, "t"), *t2 = open_earliest(w, "t2");
    char count[16];
    int status;
    pid_t pid;

    snprintf(count, sizeof(count), "%d", N);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test_rocksmq", "--writer", w->path, count, (char *)NULL);
        _exit(127);
    }
    WAIT(w, t->n == N && t2->n == N);
    for (uint64_t i = 0; i < N; i++) {
        assert_int_equal(t->ids[i], WRITER_FIRST + i);
        assert_int_equal(t2->ids[i], WRITER_FIRST + i);
    }
    assert_int_equal(t->troubles, t->overs);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    free_reader(t);
    free_reader(t2);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

/* ---- RocksDB's log, written here byte by byte ---- */

/* One fragment of a record: crc (masked), length, type, payload. */
static void put_fragment(FILE *f, uint8_t type, const uint8_t *data, size_t len)
{
    uint8_t head[7] = {0, 0, 0, 0, (uint8_t)len, (uint8_t)(len >> 8), type};
    uint32_t crc = crc32c_extend(crc32c_extend(0, &type, 1), data, len);

    crc = (crc >> 15 | crc << 17) + 0xa282ead8;
    for (int i = 0; i < 4; i++)
        head[i] = (uint8_t)(crc >> (8 * i));
    assert_int_equal(fwrite(head, 1, sizeof(head), f), sizeof(head));
    assert_int_equal(fwrite(data, 1, len, f), len);
}

/* A block that ends just behind a header: the first fragment of the next record has no bytes. */
static void log_record_begins_with_an_empty_fragment(void **state)
{
    enum { BLOCK = 32 << 10, HEAD = 7, FULL = 1, FIRST = 2, LAST = 4 };
    char dir[] = "/tmp/rmqlog.XXXXXX", path[64];
    uint8_t *filler = xcalloc(1, BLOCK);
    struct rmq_logs *l;
    struct rmq_log_pos pos;
    const uint8_t *data;
    size_t len;
    bool vanished;
    struct err err;
    FILE *f;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/000007.log", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    put_fragment(f, FULL, filler, BLOCK - 2 * HEAD);
    put_fragment(f, FIRST, filler, 0);
    put_fragment(f, LAST, (const uint8_t *)"a record that is long enough", 28);
    fclose(f);
    l = rmq_logs_new(dir);
    assert_int_equal(rmq_logs_list(l, &vanished, &err), 0);
    pos = rmq_logs_begin(l);
    assert_int_equal(rmq_logs_next(l, &pos, &data, &len, &err), 0);
    assert_int_equal(len, BLOCK - 2 * HEAD);
    assert_int_equal(rmq_logs_next(l, &pos, &data, &len, &err), 0);
    assert_int_equal(len, 28);
    assert_memory_equal(data, "a record that is long enough", 28);
    rmq_logs_free(l);
    free(filler);
    remove(path);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(ids_are_int64_little_endian),
        TEST(log_record_begins_with_an_empty_fragment),
        TEST(reads_one_topic_in_order_and_live),
        TEST(order_is_numeric_across_digit_counts),
        TEST(order_is_numeric_at_the_next_power_of_real_ids),
        TEST(end_tells_the_last_message),
        TEST(pause_stops_batches_until_resume),
        TEST(pause_during_a_poll_loses_nothing),
        TEST(slices_are_bounded_and_all_topics_get_turns),
        TEST(start_position_must_exist),
        TEST(retention_that_overtakes_a_reader_is_loss),
        TEST(loss_in_a_deleted_log_is_noticed),
        TEST(retention_of_what_was_read_is_no_loss),
        TEST(deleting_older_messages_is_no_loss),
        TEST(a_path_that_comes_later_is_waited_for),
        TEST(another_folder_at_the_same_path),
        TEST(flush_compaction_and_restart_of_the_primary),
        TEST(one_record_holds_many_things),
        TEST(records_of_all_sizes_and_places),
        TEST(a_paused_reader_goes_on_from_the_tables),
        TEST(a_torn_log_is_waited_out),
        TEST(half_a_record_is_not_passed_over),
        TEST(streaming_service_is_refused),
        TEST(an_empty_topic_name_works),
        TEST(buffers_can_be_kept),
        TEST(close_inside_callbacks),
        TEST(close_at_any_moment),
        TEST(nothing_is_missed_while_logs_come_and_go),
    };

    if (argc == 4 && strcmp(argv[1], "--writer") == 0)
        return writer_main(argv[2], atoi(argv[3]));
    cmocka_set_test_filter(getenv("TEST")); /* a pattern, to run some of them */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
