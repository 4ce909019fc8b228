/*
 * test_pulsar_live.c - the Pulsar port on a real broker: PULSAR=host:port, PULSAR_WEB=http://host:port, both started by
 * test/e2e/test_pulsar.py with ledgers of 20 entries. It also restarts the broker when this program prints
 * "CONTROL restart". Without a broker nothing runs; MILVUS_CDC_REQUIRE_LIVE=1 makes that a failure.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/clock.h"
#include "pulsar_producer.h"
#include "wal/pulsar.h"

#define LIMIT_MS 60000
#define WAIT_FOR(cond)                                                                            \
    do {                                                                                          \
        uint64_t end_ = clock_mono_ms() + LIMIT_MS;                                               \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > end_)                                                           \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            loop_once(loop, false);                                                               \
            usleep(200);                                                                          \
        }                                                                                         \
    } while (0)

static struct loop *loop;
static struct wal_port *port;
static char address[100], web[100], run[20];
static unsigned topics;

static const char *new_topic(void)
{
    static char name[60];

    snprintf(name, sizeof(name), "live-%s-%u", run, ++topics);
    return name;
}

/* ---- a reader that keeps everything ---- */

struct got {
    struct wal_reader *r;
    struct wal_pos *pos;
    uint32_t *value, *size; /* the first 4 bytes */
    size_t n;
    unsigned caught_up, troubles, recoveries;
    bool paused, bad, failed;
    struct err err;
};

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct got *g = arg;

    g->bad |= g->paused || g->failed;
    for (size_t i = 0; i < n; i++) {
        g->pos = xrealloc(g->pos, (g->n + 1) * sizeof(*g->pos));
        g->value = xrealloc(g->value, (g->n + 1) * sizeof(*g->value));
        g->size = xrealloc(g->size, (g->n + 1) * sizeof(*g->size));
        g->pos[g->n] = msgs[i].pos;
        g->size[g->n] = (uint32_t)msgs[i].len;
        g->value[g->n] = 0;
        memcpy(&g->value[g->n], msgs[i].data, msgs[i].len < 4 ? msgs[i].len : 4);
        for (size_t k = 4; k < msgs[i].len; k++)
            g->bad |= msgs[i].data[k] != (uint8_t)(g->value[g->n] + k);
        g->bad |= msgs[i].data < msgs[i].buf->data ||
                  msgs[i].data + msgs[i].len > msgs[i].buf->data + msgs[i].buf->size;
        g->bad |= g->n && wal_pos_cmp(g->pos[g->n - 1], msgs[i].pos) >= 0;
        g->n++;
    }
    g->caught_up += caught_up;
}

static void on_trouble(void *arg, const struct err *err)
{
    struct got *g = arg;

    if (!err) {
        g->recoveries++;
    } else if (err->cls == ERRC_RETRY) {
        g->troubles++;
    } else {
        g->failed = true;
        g->err = *err;
    }
}

static const struct wal_reader_cbs cbs = {on_batch, on_trouble};

static void got_open(struct got *g, const char *topic, const struct wal_pos *start)
{
    struct wal_start s = {.earliest = !start, .pos = start ? *start : WAL_POS_NONE};

    *g = (struct got){0};
    g->r = port->ops->open(port, topic, &s, &cbs, g);
}

static void got_close(struct got *g)
{
    port->ops->close(g->r);
    assert_false(g->bad);
    free(g->pos);
    free(g->value);
    free(g->size);
    g->pos = NULL;
    g->value = g->size = NULL;
}

/* value first, value+1, ... */
static void assert_values(const struct got *g, uint32_t first, size_t n)
{
    assert_false(g->failed);
    assert_int_equal(g->n, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(g->value[i], first + i);
}

/* ---- writing ---- */

static uint8_t *body(uint32_t value, size_t len)
{
    uint8_t *p = xmalloc(len < 4 ? 4 : len);

    for (size_t k = 4; k < len; k++)
        p[k] = (uint8_t)(value + k);
    memcpy(p, &value, 4);
    return p;
}

static void writer(struct pp *p, const char *topic)
{
    assert_int_equal(pp_open(p, address, NULL, topic), 0);
}

static void put(struct pp *p, uint32_t value, size_t len)
{
    struct pp_meta m = {0};
    uint8_t *b = body(value, len);

    assert_int_equal(pp_send(p, &m, b, len), 0);
    free(b);
}

static void write_many(const char *topic, uint32_t first, uint32_t n, size_t len)
{
    struct pp p;

    writer(&p, topic);
    for (uint32_t i = 0; i < n; i++)
        put(&p, first + i, len);
    assert_int_equal(pp_flush(&p), 0);
    pp_close(&p);
}

static struct wal_pos write_one(const char *topic, uint32_t value)
{
    struct pp p;

    writer(&p, topic);
    put(&p, value, 100);
    assert_int_equal(pp_flush(&p), 0);
    pp_close(&p);
    return p.last;
}

static void put_batch(struct pp *p, int compression, uint32_t first, uint32_t n, size_t len)
{
    struct pp_meta m = {.compression = compression, .batch = (int)n};
    struct pb_out o = {0};
    uint8_t *z;
    size_t zn;

    for (uint32_t i = 0; i < n; i++) {
        uint8_t *b = body(first + i, len);

        pp_single(&o, b, len, false);
        free(b);
    }
    m.uncompressed_size = (uint32_t)o.len;
    z = pp_compress(compression, o.data, o.len, &zn);
    assert_int_equal(pp_send(p, &m, z, zn), 0);
    free(z);
    pb_out_release(&o);
}

/* ---- the admin interface ---- */

static char *admin(const char *method, const char *path)
{
    static char text[200000];
    char cmd[600];
    FILE *f;
    size_t n;

    snprintf(cmd, sizeof(cmd), "curl -s -m 20 -X %s -H 'Content-Type: application/json' '%s/admin/v2/%s'", method, web,
             path);
    f = popen(cmd, "r");
    assert_non_null(f);
    n = fread(text, 1, sizeof(text) - 1, f);
    text[n] = '\0';
    pclose(f);
    return text;
}

static char *topic_stats(const char *topic, const char *what)
{
    char path[200];

    snprintf(path, sizeof(path), "persistent/public/default/%s/%s", topic, what);
    return admin("GET", path);
}

static bool stats_have(const char *topic, const char *what, const char *needle)
{
    return strstr(topic_stats(topic, what), needle) != NULL;
}

/* A topic with a subscription that nobody reads: all stays. */
static const char *kept_topic(void)
{
    const char *topic = new_topic();
    char path[200];

    snprintf(path, sizeof(path), "persistent/public/default/%s", topic);
    admin("PUT", path);
    snprintf(path, sizeof(path), "persistent/public/default/%s/subscription/hold", topic);
    admin("PUT", path);
    WAIT_FOR(stats_have(topic, "stats", "\"hold\""));
    return topic;
}

/* ---- end() and forget() ---- */

struct answer {
    unsigned n;
    bool failed, found;
    struct err err;
    struct wal_pos last;
};

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct answer *a = arg;

    a->n++;
    a->failed = err != NULL;
    if (err)
        a->err = *err;
    a->found = found;
    a->last = last;
}

static void on_forgotten(void *arg, const struct err *err)
{
    on_end(arg, err, false, WAL_POS_NONE);
}

static struct answer ask_end(const char *topic)
{
    struct answer a = {0};

    port->ops->end(port, topic, on_end, &a);
    assert_int_equal(a.n, 0);
    WAIT_FOR(a.n == 1);
    if (a.failed)
        fail_msg("%s", a.err.text);
    return a;
}

static struct answer forget(const char *owner, const char *topic)
{
    struct answer a = {0};

    port->ops->forget(port, owner, topic, on_forgotten, &a);
    WAIT_FOR(a.n == 1);
    return a;
}

/* ---- tests ---- */

static void earliest_position_and_end(void **state)
{
    const char *topic = kept_topic();
    struct got all, some;
    struct answer a;

    (void)state;
    write_many(topic, 0, 50, 300);
    got_open(&all, topic, NULL);
    WAIT_FOR(all.n == 50 && all.caught_up);
    assert_values(&all, 0, 50);
    a = ask_end(topic);
    assert_true(a.found);
    assert_int_equal(wal_pos_cmp(a.last, all.pos[49]), 0);
    got_open(&some, topic, &all.pos[33]); /* two readers at once */
    write_one(topic, 50);
    WAIT_FOR(all.n == 51 && some.n == 18);
    assert_values(&some, 33, 18);
    assert_values(&all, 0, 51);
    got_close(&some);
    for (size_t i = 0; i <= 50; i += i % 20 == 19 ? 1 : 19) { /* also the first and the last of a ledger */
        got_open(&some, topic, &all.pos[i]);
        WAIT_FOR(some.n == 51 - i && some.caught_up);
        assert_values(&some, (uint32_t)i, 51 - i);
        got_close(&some);
    }
    got_open(&some, topic, &all.pos[50]);
    WAIT_FOR(some.n == 1 && some.caught_up);
    got_close(&some);
    got_close(&all);
}

static void topic_made_later(void **state)
{
    const char *topic = new_topic();
    struct got g;

    (void)state;
    got_open(&g, topic, NULL);
    WAIT_FOR(g.caught_up == 1);
    assert_false(ask_end(topic).found);
    assert_false(stats_have("", "", topic)); /* nobody made it */
    assert_null(strstr(admin("GET", "persistent/public/default"), topic));
    write_many(topic, 7, 3, 100);
    WAIT_FOR(g.n == 3 && g.caught_up == 2);
    assert_values(&g, 7, 3);
    assert_int_equal(g.troubles, 0);
    got_close(&g);
}

static void batches_and_compression(void **state)
{
    const char *topic = kept_topic();
    struct got g, mid;
    struct pp p;
    uint32_t n = 0;

    (void)state;
    writer(&p, topic);
    for (int c = 0; c <= 4; c++) {
        put_batch(&p, c, n, 1, 500); /* as Milvus 2.3 does */
        put_batch(&p, c, n + 1, 700, 1000);
        n += 701;
    }
    assert_int_equal(pp_flush(&p), 0);
    pp_close(&p);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == n && g.caught_up);
    assert_values(&g, 0, n);
    assert_int_equal(wal_pos_cmp(ask_end(topic).last, g.pos[n - 1]), 0);
    got_open(&mid, topic, &g.pos[1000]); /* in the middle of a batch */
    WAIT_FOR(mid.n == n - 1000 && mid.caught_up);
    assert_values(&mid, 1000, n - 1000);
    got_close(&mid);
    got_close(&g);
}

static void put_chunks(struct pp *p, uint32_t value, size_t len, int compression, int from, int to)
{
    static char uuid[40];
    struct pp_meta m = {.compression = compression, .uncompressed_size = (uint32_t)len};
    uint8_t *b = body(value, len), *z;
    size_t zn, part;

    z = pp_compress(compression, b, len, &zn);
    m.n_chunks = 4;
    part = zn / 4 + 1;
    m.total_size = (int)zn;
    snprintf(uuid, sizeof(uuid), "test-%u", value);
    m.uuid = uuid;
    for (m.chunk_id = from; m.chunk_id < to; m.chunk_id++) {
        size_t at = part * (size_t)m.chunk_id;

        assert_int_equal(pp_send(p, &m, z + at, zn - at < part ? zn - at : part), 0);
    }
    free(z);
    free(b);
}

static void chunked_messages(void **state)
{
    const char *topic = kept_topic();
    struct got g, again;
    struct pp p;

    (void)state;
    writer(&p, topic);
    put_chunks(&p, 0, 100000, 0, 0, 4);
    put_chunks(&p, 2, 9 << 20, 0, 0, 2); /* others come between its chunks */
    put(&p, 1, 100);
    put_chunks(&p, 2, 9 << 20, 0, 2, 4);
    put_chunks(&p, 3, 3 << 20, 3, 0, 4);
    put_chunks(&p, 99, 5000, 0, 0, 2); /* its producer died */
    put(&p, 4, 100);
    assert_int_equal(pp_flush(&p), 0);
    pp_close(&p);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 5 && g.caught_up);
    assert_values(&g, 0, 5);
    assert_int_equal(g.size[2], 9 << 20);
    for (size_t i = 0; i < 5; i++) { /* the begin of a chunked message is found from its end */
        got_open(&again, topic, &g.pos[i]);
        WAIT_FOR(again.n == 5 - i && again.caught_up);
        assert_values(&again, (uint32_t)i, 5 - i);
        got_close(&again);
    }
    got_close(&g);
}

static void large_entries(void **state)
{
    const char *topic = kept_topic();
    struct got g;

    (void)state;
    write_many(topic, 0, 12, 5000000);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 12);
    assert_values(&g, 0, 12);
    got_close(&g);
}

static void pause_bounds_what_is_held(void **state)
{
    const char *topic = kept_topic();
    struct pulsar *p = pulsar_of(port);
    struct got g;
    size_t max = 0;

    (void)state;
    write_many(topic, 0, 1, 100); /* small ones first: many permits */
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 1 && g.caught_up);
    port->ops->pause(g.r);
    port->ops->pause(g.r);
    g.paused = true;
    write_many(topic, 1, 40, 1000000);
    for (uint64_t end = clock_mono_ms() + 500; clock_mono_ms() < end;) { /* long enough to receive all that comes */
        loop_once(loop, false);
        max = p->held > max ? p->held : max;
    }
    assert_in_range(max, 0, p->receive_bytes + (6 << 20));
    g.paused = false;
    port->ops->resume(g.r);
    port->ops->resume(g.r);
    WAIT_FOR(g.n == 41);
    assert_values(&g, 0, 41);
    got_close(&g);
}

static void unload_loses_nothing(void **state)
{
    const char *topic = kept_topic();
    struct got g;
    struct pp p;
    char path[200];

    (void)state;
    snprintf(path, sizeof(path), "persistent/public/default/%s/unload", topic);
    writer(&p, topic);
    got_open(&g, topic, NULL);
    for (uint32_t i = 0; i < 300; i++) {
        if (i % 100 == 99) {
            WAIT_FOR(g.n > i - 50);
            assert_int_equal(pp_flush(&p), 0);
            pp_close(&p);
            admin("PUT", path);
            writer(&p, topic);
        }
        put(&p, i, 1000);
        loop_once(loop, false);
    }
    assert_int_equal(pp_flush(&p), 0);
    pp_close(&p);
    WAIT_FOR(g.n == 300);
    assert_values(&g, 0, 300);
    got_close(&g);
}

/* Like WAIT_FOR, but a broker may take its time to come back. */
#define WAIT_LONG(cond)                                                                           \
    do {                                                                                          \
        uint64_t end_ = clock_mono_ms() + 2 * LIMIT_MS;                                           \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > end_)                                                           \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            loop_once(loop, false);                                                               \
            usleep(1000);                                                                         \
        }                                                                                         \
    } while (0)

/* A broker that has just started may throw its producers out again. What was sent last is sent anew unless g, which is at
 * the end, has read it within a second. */
static void write_through_restart(const char *topic, const struct got *g, uint32_t from, uint32_t to)
{
    struct pp p = {.fd = -1};

    for (uint32_t i = from; i < to;) {
        struct pp_meta m = {0};
        uint8_t *b = body(i, 1000);
        bool taken;

        if (p.fd < 0)
            WAIT_LONG(pp_open(&p, address, NULL, topic) == 0);
        taken = pp_send(&p, &m, b, 1000) == 0 && pp_flush(&p) == 0;
        free(b);
        if (!taken) {
            pp_close(&p);
            for (uint64_t end = clock_mono_ms() + 1000; g->n <= i && clock_mono_ms() < end;)
                loop_once(loop, false);
            taken = g->n > i;
        }
        i += taken;
    }
    pp_close(&p);
}

/* kill -9 while one reader is at the end and another in the middle. */
static void broker_restart(void **state)
{
    const char *topic = kept_topic();
    struct got g, mid;

    (void)state;
    write_many(topic, 0, 400, 50000);
    got_open(&mid, topic, NULL);
    WAIT_FOR(mid.n >= 20);
    port->ops->pause(mid.r);
    mid.paused = true;
    assert_true(mid.n < 400);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 400);
    port->ops->retain(port, "task5", topic, g.pos[150]);
    WAIT_FOR(stats_have(topic, "stats", "milvus-cdc-task5"));
    printf("CONTROL restart\n");
    fflush(stdout);
    WAIT_LONG(g.troubles && mid.troubles);
    mid.paused = false;
    port->ops->resume(mid.r);
    write_through_restart(topic, &g, 400, 500);
    /* A broker that starts slowly may be told as trouble twice, and each time is over in the end. */
    WAIT_LONG(g.n == 500 && g.recoveries >= g.troubles && mid.n == 500 && mid.recoveries >= mid.troubles);
    assert_values(&g, 0, 500);
    assert_values(&mid, 0, 500);
    assert_int_equal(g.recoveries, g.troubles);
    port->ops->retain(port, "task5", topic, g.pos[300]); /* it has its subscription again */
    WAIT_LONG(!forget("task5", topic).failed);
    got_close(&mid);
    got_close(&g);
}

/* Ledgers have 20 entries; a trim takes what no subscription needs. */
static void trim(const char *topic)
{
    char path[200];

    snprintf(path, sizeof(path), "persistent/public/default/%s/trim", topic);
    admin("POST", path);
}

static void removed_position_is_lost(void **state)
{
    const char *topic = new_topic();
    struct wal_pos first;
    struct got g;
    char ledger[60];

    (void)state;
    write_many(topic, 0, 45, 100);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 45);
    first = g.pos[0];
    got_close(&g);
    snprintf(ledger, sizeof(ledger), "\"ledgerId\":%llu,", (unsigned long long)first.major - 1);
    WAIT_FOR((trim(topic), !stats_have(topic, "internalStats", ledger)));
    got_open(&g, topic, &first);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_LOST);
    assert_int_equal(g.err.code, ERR_GONE);
    assert_int_equal(g.n, 0);
    assert_non_null(strstr(g.err.text, "first that exists is"));
    got_close(&g);
    first.major += 1000; /* behind the end */
    got_open(&g, topic, &first);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_LOST);
    got_close(&g);
}

static void position_of_a_deleted_topic_is_lost(void **state)
{
    const char *topic = new_topic();
    struct wal_pos at;
    struct got g;
    char path[200];

    (void)state;
    at = write_one(topic, 1);
    snprintf(path, sizeof(path), "persistent/public/default/%s?force=true", topic);
    admin("DELETE", path);
    got_open(&g, topic, &at);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_LOST);
    got_close(&g);
}

/* A topic whose messages were all removed has no end, and a reader may begin there. */
static void all_removed(void **state)
{
    const char *topic = new_topic();
    struct got g;

    (void)state;
    write_many(topic, 0, 40, 100);
    WAIT_FOR((trim(topic), stats_have(topic, "internalStats", "\"numberOfEntries\":0")));
    assert_false(ask_end(topic).found);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.caught_up == 1);
    write_many(topic, 40, 1, 100);
    WAIT_FOR(g.n == 1);
    assert_values(&g, 40, 1);
    got_close(&g);
}

static void retain_keeps_what_is_needed(void **state)
{
    const char *topic = new_topic();
    struct wal_pos pos[100];
    struct got g;
    char needle[100];

    (void)state;
    write_many(topic, 0, 1, 100);
    port->ops->retain(port, "task1", topic, WAL_POS_NONE);
    WAIT_FOR(stats_have(topic, "stats", "milvus-cdc-task1"));
    write_many(topic, 1, 99, 100);
    trim(topic);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 100);
    assert_values(&g, 0, 100);
    memcpy(pos, g.pos, sizeof(pos));
    got_close(&g);
    port->ops->retain(port, "task1", topic, pos[20]); /* the first of its ledger or not */
    port->ops->retain(port, "task1", topic, pos[50]);
    port->ops->retain(port, "task1", topic, pos[47]); /* older: means nothing */
    snprintf(needle, sizeof(needle), "\"markDeletePosition\":\"%llu:%llu\"", (unsigned long long)pos[49].major - 1,
             (unsigned long long)pos[49].minor >> 20);
    WAIT_FOR(stats_have(topic, "internalStats", needle));
    /* ledgers before that of 50 may go, 50 and all behind it stay */
    snprintf(needle, sizeof(needle), "\"ledgerId\":%llu,", (unsigned long long)pos[0].major - 1);
    WAIT_FOR((trim(topic), !stats_have(topic, "internalStats", needle)));
    got_open(&g, topic, &pos[50]);
    WAIT_FOR(g.n == 50);
    assert_values(&g, 50, 50);
    got_close(&g);
    got_open(&g, topic, &pos[0]);
    WAIT_FOR(g.failed);
    got_close(&g);
    assert_false(forget("task1", topic).failed);
    assert_false(stats_have(topic, "stats", "milvus-cdc-task1"));
    assert_false(forget("task1", topic).failed);
    assert_false(forget("task2", "no-such-topic").failed);
    snprintf(needle, sizeof(needle), "\"ledgerId\":%llu,", (unsigned long long)pos[50].major - 1);
    WAIT_FOR((trim(topic), !stats_have(topic, "internalStats", needle)));
}

static void retain_at_the_begin_of_a_ledger(void **state)
{
    const char *topic = new_topic();
    struct got g;
    size_t i = 0;
    char needle[100];

    (void)state;
    write_many(topic, 0, 1, 100);
    port->ops->retain(port, "task4", topic, WAL_POS_NONE);
    WAIT_FOR(stats_have(topic, "stats", "milvus-cdc-task4"));
    write_many(topic, 1, 49, 100);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 50);
    for (i = 1; g.pos[i].minor >> 20 != 0; i++)
        ;
    port->ops->retain(port, "task4", topic, g.pos[i]);
    snprintf(needle, sizeof(needle), "\"ledgerId\":%llu,", (unsigned long long)g.pos[0].major - 1);
    WAIT_FOR((trim(topic), !stats_have(topic, "internalStats", needle)));
    snprintf(needle, sizeof(needle), "\"ledgerId\":%llu,", (unsigned long long)g.pos[i].major - 1);
    assert_true(stats_have(topic, "internalStats", needle));
    assert_false(forget("task4", topic).failed);
    got_close(&g);
}

static void retain_outlives_us(void **state)
{
    const char *topic = new_topic();
    struct pulsar_options o = {.address = address};
    struct got g;

    (void)state;
    port->ops->retain(port, "task3", topic, WAL_POS_NONE); /* before there is a topic */
    assert_null(strstr(admin("GET", "persistent/public/default"), topic));
    write_many(topic, 0, 1, 100);
    WAIT_FOR(stats_have(topic, "stats", "milvus-cdc-task3"));
    pulsar_close(port);
    port = pulsar_open(loop, &o, NULL);
    write_many(topic, 1, 60, 100);
    trim(topic);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 61 || (g.n == 60 && g.caught_up)); /* the first one came before the subscription */
    assert_int_equal(g.value[g.n - 1], 60);
    got_close(&g);
    assert_false(forget("task3", topic).failed);
    assert_false(stats_have(topic, "stats", "milvus-cdc-task3"));
}

static void partitioned_topics(void **state)
{
    const char *topic = new_topic();
    char path[200], part[100], cmd[400];
    struct got g;

    (void)state;
    snprintf(path, sizeof(path), "persistent/public/default/%s/partitions", topic);
    snprintf(cmd, sizeof(cmd), "curl -s -X PUT -H 'Content-Type: application/json' -d 1 '%s/admin/v2/%s'", web, path);
    assert_int_equal(system(cmd), 0);
    snprintf(part, sizeof(part), "%s-partition-0", topic);
    write_many(part, 0, 5, 100);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 5);
    assert_values(&g, 0, 5);
    assert_true(ask_end(topic).found);
    got_close(&g);
    topic = new_topic();
    snprintf(path, sizeof(path), "persistent/public/default/%s/partitions", topic);
    snprintf(cmd, sizeof(cmd), "curl -s -X PUT -H 'Content-Type: application/json' -d 3 '%s/admin/v2/%s'", web, path);
    assert_int_equal(system(cmd), 0);
    got_open(&g, topic, NULL);
    WAIT_FOR(g.failed);
    assert_int_equal(g.err.cls, ERRC_USER);
    assert_non_null(strstr(g.err.text, "3 partitions"));
    got_close(&g);
}

static void closing_leaves_nothing_behind(void **state)
{
    const char *topic = kept_topic();
    struct got g;

    (void)state;
    write_many(topic, 0, 30, 100);
    got_open(&g, topic, NULL);
    got_close(&g); /* at once */
    got_open(&g, topic, NULL);
    WAIT_FOR(g.n == 30);
    assert_true(stats_have(topic, "stats", "milvus-cdc-reader-"));
    got_close(&g);
    WAIT_FOR(!stats_have(topic, "stats", "milvus-cdc-reader-"));
}

/* PULSAR_TOKEN, PULSAR_TLS, PULSAR_CA: the same broker, which demands the token. */
static void token_and_tls(void **state)
{
    const char *token = getenv("PULSAR_TOKEN"), *tls = getenv("PULSAR_TLS"), *ca = getenv("PULSAR_CA");
    struct pulsar_options o = {.address = address, .auth_token = token};
    struct answer a = {0};
    struct pp p;
    struct got g;
    char cut[300];

    (void)state;
    assert_non_null(token);
    assert_int_equal(pp_open(&p, address, token, "secured"), 0);
    for (uint32_t i = 0; i < 10; i++)
        put(&p, i, 300000);
    assert_int_equal(pp_flush(&p), 0);
    pp_close(&p);
    for (int i = 0; i < 3; i++) { /* plain, TLS with the name compared, without */
        pulsar_close(port);
        o.address = i ? tls : address;
        o.ca_path = i ? ca : NULL;
        o.tls_skip_hostname = i == 2;
        port = pulsar_open(loop, &o, NULL);
        assert_non_null(port);
        got_open(&g, "secured", NULL);
        WAIT_FOR(g.n == 10 && g.caught_up);
        assert_values(&g, 0, 10);
        got_close(&g);
    }
    pulsar_close(port); /* a token that somebody else signed */
    snprintf(cut, sizeof(cut), "%.*sAAAA", (int)strlen(token) - 4, token);
    o.auth_token = cut;
    port = pulsar_open(loop, &o, NULL);
    port->ops->end(port, "secured", on_end, &a);
    WAIT_FOR(a.n == 1);
    assert_true(a.failed);
    assert_int_equal(a.err.code, ERR_AUTH);
    assert_non_null(strstr(a.err.text, "authParams"));
    assert_null(strstr(a.err.text, cut));
    pulsar_close(port); /* an authority that we do not know */
    o.auth_token = token;
    o.ca_path = NULL;
    port = pulsar_open(loop, &o, NULL);
    a.n = 0;
    port->ops->end(port, "secured", on_end, &a);
    WAIT_FOR(a.n == 1);
    assert_true(a.failed);
    assert_non_null(strstr(a.err.text, "certificate refused"));
}

static int setup(void **state)
{
    struct pulsar_options o = {.address = address};

    (void)state;
    loop = loop_new();
    port = pulsar_open(loop, &o, NULL);
    return port ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    pulsar_close(port);
    loop_free(loop);
    return 0;
}

#define LIVE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest secured[] = {LIVE(token_and_tls)};
    const struct CMUnitTest tests[] = {
        LIVE(earliest_position_and_end),
        LIVE(topic_made_later),
        LIVE(batches_and_compression),
        LIVE(chunked_messages),
        LIVE(large_entries),
        LIVE(pause_bounds_what_is_held),
        LIVE(unload_loses_nothing),
        LIVE(removed_position_is_lost),
        LIVE(position_of_a_deleted_topic_is_lost),
        LIVE(all_removed),
        LIVE(retain_keeps_what_is_needed),
        LIVE(retain_at_the_begin_of_a_ledger),
        LIVE(retain_outlives_us),
        LIVE(partitioned_topics),
        LIVE(closing_leaves_nothing_behind),
        LIVE(broker_restart),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (!getenv("PULSAR") || !getenv("PULSAR_WEB")) {
        fprintf(stderr, "PULSAR or PULSAR_WEB is not set: SKIPPED\n");
        return getenv("MILVUS_CDC_REQUIRE_LIVE") ? 1 : 0;
    }
    snprintf(address, sizeof(address), "%s", getenv("PULSAR"));
    snprintf(web, sizeof(web), "%s", getenv("PULSAR_WEB"));
    snprintf(run, sizeof(run), "%llx", (unsigned long long)clock_wall_ms());
    if (getenv("PULSAR_TOKEN"))
        return cmocka_run_group_tests(secured, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
