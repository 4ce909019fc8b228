/*
 * test_nats_live.c - the NATS reader on real servers, which test/e2e/test_nats.py starts:
 *   NATS=host:port  NATS_USER=host:port (user cdc, password "s3 cret")  NATS_TOKEN=host:port (token t0ken)
 *   NATS_TLS=host:port and NATS_CA=file  NATS_PLAIN=host:port (without JetStream)
 *   NATS_SERVER=program: for a server of the test's own that is killed.
 * Without them nothing runs; MILVUS_CDC_REQUIRE_LIVE=1 makes that a failure.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "repl/port.h"
#include "wal/nats.h"

#include "nats_client.h"

enum { LIMIT_MS = 60000 };
#define WAIT_FOR(cond)                                                                                                 \
    do {                                                                                                               \
        uint64_t end_ = clock_mono_ms() + LIMIT_MS;                                                                    \
        while (!(cond)) {                                                                                              \
            if (clock_mono_ms() > end_)                                                                                \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);                                  \
            loop_once(loop, false);                                                                                    \
            usleep(200);                                                                                               \
        }                                                                                                              \
    } while (0)
/* Nothing of the kind comes while the reader has every chance to do it. */
#define RUN_FOR(ms)                                                                                                    \
    do {                                                                                                               \
        uint64_t end_ = clock_mono_ms() + (ms);                                                                        \
        while (clock_mono_ms() < end_) {                                                                               \
            loop_once(loop, false);                                                                                    \
            usleep(200);                                                                                               \
        }                                                                                                              \
    } while (0)

static struct loop *loop;
static struct wal_port *wal;
static struct nats_client cli;
static const char *address;

/* ---- a reader that checks what it gets ---- */

struct rec {
    struct wal_reader *r;
    char topic[64];
    uint64_t last;   /* sequence; 0: none yet */
    uint64_t first;
    unsigned count, ends, troubles, overs;
    size_t bytes, min_len;
    bool caught_up, bad;
    struct err err;
};

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct rec *rec = arg;
    char want[100];

    for (size_t i = 0; i < n; i++) {
        int len = snprintf(want, sizeof(want), "%s#%" PRIu64 "#", rec->topic, msgs[i].pos.minor);

        rec->bad |= msgs[i].pos.major != 0 || msgs[i].pos.minor <= rec->last;
        rec->bad |= rec->last && msgs[i].pos.minor != rec->last + 1;
        rec->bad |= msgs[i].len < (size_t)len || memcmp(msgs[i].data, want, (size_t)len) != 0;
        rec->bad |= msgs[i].data[msgs[i].len - 1] != (msgs[i].len > (size_t)len ? 'x' : '#');
        if (!rec->first)
            rec->first = msgs[i].pos.minor;
        rec->last = msgs[i].pos.minor;
        rec->bytes += msgs[i].len;
        rec->count++;
    }
    rec->caught_up = caught_up;
    rec->ends += caught_up;
}

static void on_trouble(void *arg, const struct err *err)
{
    struct rec *rec = arg;

    if (!err) {
        rec->overs++;
        return;
    }
    rec->troubles++;
    rec->err = *err;
}

static const struct wal_reader_cbs cbs = {on_batch, on_trouble};

/* from 0: earliest */
static void rec_open(struct rec *rec, const char *topic, uint64_t from)
{
    struct wal_start start = {.earliest = from == 0, .pos = {0, from}};

    memset(rec, 0, sizeof(*rec));
    snprintf(rec->topic, sizeof(rec->topic), "%s", topic);
    rec->r = wal->ops->open(wal, topic, &start, &cbs, rec);
}

static void rec_close(struct rec *rec)
{
    assert_false(rec->bad);
    wal->ops->close(rec->r);
}

struct answer {
    bool done, failed, found;
    struct wal_pos last;
    struct err err;
};

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct answer *a = arg;

    a->done = true;
    a->failed = err != NULL;
    if (err)
        a->err = *err;
    a->found = found;
    a->last = last;
}

static struct answer ask_end(const char *topic)
{
    struct answer a = {0};

    wal->ops->end(wal, topic, on_end, &a);
    assert_false(a.done);
    WAIT_FOR(a.done);
    return a;
}

static const char *new_topic(void)
{
    static char name[64];
    static unsigned n;

    snprintf(name, sizeof(name), "by-dev-%d-%u-dml_0", (int)getpid(), ++n);
    return name;
}

/* ---- set-up ---- */

static void open_wal(struct nats_options o)
{
    struct err err;

    wal = nats_open(loop, &o, &err);
    if (!wal)
        fail_msg("%s", err.text);
}

static int setup(void **state)
{
    (void)state;
    loop = loop_new();
    open_wal((struct nats_options){.address = address});
    assert_true(client_open(&cli, address, ""));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    nats_close(wal);
    client_close(&cli);
    loop_free(loop);
    return 0;
}

static void reopen_wal(struct nats_options o)
{
    nats_close(wal);
    open_wal(o);
}

static void purge(const char *topic, unsigned below)
{
    char payload[60] = "{}";

    if (below)
        snprintf(payload, sizeof(payload), "{\"seq\":%u}", below);
    json_decref(client_request(&cli, "STREAM.PURGE", topic, payload));
}

/* ---- tests ---- */

static void reads_from_the_earliest_and_goes_on(void **state)
{
    const char *topic = new_topic();
    struct rec rec;

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 1000, 300, "");
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.last == 1000 && rec.caught_up);
    assert_int_equal(rec.first, 1);
    client_fill(&cli, topic, 1001, 1001, 300, "");
    WAIT_FOR(rec.last == 1001 && rec.caught_up);
    assert_int_equal(rec.troubles, 0);
    rec_close(&rec);
}

static void reads_from_a_position_inclusive(void **state)
{
    const char *topic = new_topic();
    struct rec a, b;

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 50, 100, "NATS/1.0\r\ntraceparent: 00-11-22-01\r\n\r\n");
    rec_open(&a, topic, 17);
    rec_open(&b, topic, 50); /* the last one */
    WAIT_FOR(a.last == 50 && b.last == 50);
    assert_int_equal(a.first, 17);
    assert_int_equal(b.first, 50);
    assert_int_equal(a.bytes, 34 * 100); /* without the headers */
    rec_close(&a);
    rec_close(&b);
}

static void tells_the_end(void **state)
{
    const char *topic = new_topic();
    struct answer a;
    struct rec rec;

    (void)state;
    a = ask_end(topic);
    assert_true(!a.failed && !a.found && wal_pos_is_none(a.last));
    client_make_stream(&cli, topic, "");
    a = ask_end(topic);
    assert_true(!a.failed && !a.found);
    client_fill(&cli, topic, 1, 5, 10, "");
    a = ask_end(topic);
    assert_true(!a.failed && a.found && a.last.major == 0 && a.last.minor == 5);
    purge(topic, 0);
    a = ask_end(topic);
    assert_true(!a.failed && !a.found);
    rec_open(&rec, topic, 0); /* as who joins there does: the next message is number 6 */
    WAIT_FOR(rec.caught_up);
    client_fill(&cli, topic, 6, 6, 10, "");
    WAIT_FOR(rec.last == 6);
    assert_int_equal(rec.first, 6);
    rec_close(&rec);
    a = ask_end("a.b");
    assert_true(a.failed && a.err.cls == ERRC_USER);
}

static void a_removed_start_is_lost(void **state)
{
    const char *topic = new_topic();
    struct rec removed, beyond, never, kept;
    char text[100];

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 20, 10, "");
    purge(topic, 11); /* keeps 11 to 20 */
    rec_open(&removed, topic, 10);
    rec_open(&kept, topic, 11);
    rec_open(&beyond, topic, 21);
    rec_open(&never, "by-dev-never-made", 3);
    WAIT_FOR(removed.troubles && beyond.troubles && never.troubles && kept.last == 20);
    assert_int_equal(kept.first, 11);
    snprintf(text, sizeof(text), "start position 10 is gone: it was removed; the stream has 11 to 20");
    assert_true(removed.err.cls == ERRC_LOST && removed.err.code == ERR_GONE && strstr(removed.err.text, text));
    assert_true(beyond.err.cls == ERRC_LOST && strstr(beyond.err.text, "21"));
    assert_true(never.err.cls == ERRC_LOST && strstr(never.err.text, "does not exist"));
    client_fill(&cli, topic, 21, 21, 10, "");
    WAIT_FOR(kept.last == 21);
    assert_true(removed.count == 0 && beyond.count == 0 && never.count == 0);
    rec_close(&removed);
    rec_close(&beyond);
    rec_close(&never);
    rec_close(&kept);
}

static void messages_removed_before_they_were_read_are_lost(void **state)
{
    const char *topic = new_topic();
    struct rec rec;
    char text[100];

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 3, 10, "");
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.last == 3);
    wal->ops->pause(rec.r);
    client_fill(&cli, topic, 4, 400, 100000, ""); /* more than was asked for */
    RUN_FOR(200);
    purge(topic, 400);
    wal->ops->resume(rec.r);
    WAIT_FOR(rec.troubles);
    assert_int_equal(rec.err.cls, ERRC_LOST);
    assert_true(rec.last < 399); /* what was held before came without a gap */
    snprintf(text, sizeof(text), "message %" PRIu64 " is gone: it was removed; the stream has 400 to 400",
             rec.last + 1);
    if (!strstr(rec.err.text, text))
        fail_msg("%s", rec.err.text);
    rec_close(&rec);
}

static void a_stream_that_was_made_anew_is_lost(void **state)
{
    const char *topic = new_topic();
    struct rec rec;

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 3, 10, "");
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.last == 3);
    json_decref(client_request(&cli, "STREAM.DELETE", topic, ""));
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 9, 10, "");
    WAIT_FOR(rec.troubles && rec.err.cls == ERRC_LOST);
    assert_int_equal(rec.last, 3);
    rec_close(&rec);
}

static void two_readers_of_one_stream(void **state)
{
    const char *topic = new_topic();
    struct rec a, b;

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 2000, 5000, "");
    rec_open(&a, topic, 0);
    rec_open(&b, topic, 1000);
    WAIT_FOR(a.last == 2000 && b.last == 2000);
    assert_int_equal(a.count, 2000);
    assert_int_equal(b.count, 1001);
    rec_close(&a);
    client_fill(&cli, topic, 2001, 2010, 100, "");
    WAIT_FOR(b.last == 2010);
    rec_close(&b);
}

static void a_paused_reader_gets_nothing(void **state)
{
    const char *topic = new_topic();
    struct rec rec;
    unsigned seen;

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 3000, 10000, ""); /* 30 MB: more than may be held */
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.count > 100);
    for (int i = 0; i < 5 && rec.count < 3000; i++) {
        wal->ops->pause(rec.r);
        seen = rec.count;
        RUN_FOR(50);
        assert_int_equal(rec.count, seen);
        wal->ops->resume(rec.r);
        WAIT_FOR(rec.count > seen);
    }
    WAIT_FOR(rec.last == 3000 && rec.caught_up);
    assert_int_equal(rec.count, 3000);
    assert_int_equal(rec.troubles, 0);
    rec_close(&rec);
}

static void many_readers_share_the_budget(void **state)
{
    enum { N = 40, MSGS = 12 };
    static struct rec recs[N];
    char topics[N][64];
    bool all = false;

    (void)state;
    reopen_wal((struct nats_options){.address = address, .fetch_bytes = 1 << 20});
    for (int i = 0; i < N; i++) {
        snprintf(topics[i], sizeof(topics[i]), "%s", new_topic());
        client_make_stream(&cli, topics[i], "");
        client_fill(&cli, topics[i], 1, MSGS, i % 4 == 0 ? 700000 : i % 4 == 1 ? 60000 : 200, "");
    }
    for (int i = 0; i < N; i++)
        rec_open(&recs[i], topics[i], 0);
    WAIT_FOR(({
        all = true;
        for (int i = 0; i < N; i++)
            all &= recs[i].last == MSGS && recs[i].caught_up;
        all;
    }));
    for (int i = 0; i < N; i++) {
        assert_int_equal(recs[i].troubles, 0);
        rec_close(&recs[i]);
    }
}

static void a_stream_made_later_is_read(void **state)
{
    const char *topic = new_topic();
    struct rec rec;
    uint64_t began;

    (void)state;
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.caught_up);
    RUN_FOR(1500); /* the looks are rare now */
    began = clock_mono_ms();
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 10, 100, "");
    WAIT_FOR(rec.last == 10);
    printf("read %d ms after it was made\n", (int)(clock_mono_ms() - began));
    assert_true(rec.first == 1 && rec.troubles == 0);
    rec_close(&rec);
}

static void large_messages(void **state)
{
    const char *topic = new_topic();
    struct rec rec;

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 6, 7 << 20, "NATS/1.0\r\na: b\r\n\r\n");
    client_fill(&cli, topic, 7, 7, 200, "");
    client_fill(&cli, topic, 8, 8, (8 << 20) - 200, ""); /* with what is around it more than is asked for at once */
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.last == 8);
    assert_int_equal(rec.bytes, 6 * (7 << 20) + 200 + (8 << 20) - 200);
    client_fill(&cli, topic, 9, 9, 7 << 20, ""); /* and at the end */
    WAIT_FOR(rec.last == 9 && rec.caught_up);
    assert_int_equal(rec.troubles, 0);
    rec_close(&rec);
}

static void a_deleted_consumer_is_made_again(void **state)
{
    const char *topic = new_topic();
    json_t *names, *name;
    struct rec rec;
    size_t i;

    (void)state;
    client_make_stream(&cli, topic, "");
    client_fill(&cli, topic, 1, 5, 100, "");
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.last == 5);
    names = client_request(&cli, "CONSUMER.NAMES", topic, "");
    assert_int_equal(json_array_size(json_object_get(names, "consumers")), 1);
    json_array_foreach(json_object_get(names, "consumers"), i, name)
    {
        char key[200];

        snprintf(key, sizeof(key), "%s.%s", topic, json_string_value(name));
        json_decref(client_request(&cli, "CONSUMER.DELETE", key, ""));
    }
    json_decref(names);
    client_fill(&cli, topic, 6, 8, 100, "");
    WAIT_FOR(rec.last == 8);
    assert_int_equal(rec.first, 1);
    assert_int_equal(rec.troubles, 0);
    rec_close(&rec);
    RUN_FOR(100);
    names = client_request(&cli, "CONSUMER.NAMES", topic, "");
    assert_int_equal(json_array_size(json_object_get(names, "consumers")), 0); /* nothing is left behind */
    json_decref(names);
}

static void lag_is_small(void **state)
{
    enum { N = 200 };
    const char *topic = new_topic();
    uint64_t lag[N], sum = 0;
    struct rec rec;

    (void)state;
    client_make_stream(&cli, topic, "");
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.caught_up);
    for (unsigned i = 0; i < N; i++) {
        uint64_t began = clock_mono_us();

        client_fill(&cli, topic, i + 1, i + 1, 1000, "");
        while (rec.last != i + 1 && clock_mono_us() - began < 10000000)
            loop_once(loop, true);
        lag[i] = clock_mono_us() - began;
        sum += lag[i];
    }
    printf("lag: mean %d us\n", (int)(sum / N));
    assert_true(sum / N < 50000);
    rec_close(&rec);
}

/* ---- logins ---- */

static void check_reading(const char *what, struct nats_options o, const char *login)
{
    const char *topic = new_topic();
    struct nats_client c;
    struct rec rec;

    assert_true(client_open(&c, strstr(o.address, "127.0.0.1"), login));
    client_make_stream(&c, topic, "");
    client_fill(&c, topic, 1, 10, 100, "");
    client_close(&c);
    reopen_wal(o);
    rec_open(&rec, topic, 0);
    WAIT_FOR(rec.last == 10);
    printf("%s: read\n", what);
    rec_close(&rec);
}

static void check_refused(struct nats_options o, const char *text)
{
    struct answer a;
    struct rec rec;

    reopen_wal(o);
    rec_open(&rec, "by-dev-any", 0);
    WAIT_FOR(rec.troubles);
    assert_int_equal(rec.err.cls, ERRC_RETRY);
    if (!strstr(rec.err.text, text))
        fail_msg("%s", rec.err.text);
    assert_null(strstr(rec.err.text, "wr0ng"));
    a = ask_end("by-dev-any");
    assert_true(a.failed && strstr(a.err.text, text));
    rec_close(&rec);
}

static void user_and_password(void **state)
{
    const char *at = getenv("NATS_USER");

    (void)state;
    check_reading("user", (struct nats_options){.address = at, .username = "cdc", .password = "s3 cret"},
                  ",\"user\":\"cdc\",\"pass\":\"s3 cret\"");
    check_refused((struct nats_options){.address = at, .username = "cdc", .password = "wr0ng"},
                  "sourceConfig.natsmq.password");
    check_refused((struct nats_options){.address = at}, "set sourceConfig.natsmq.username");
}

static void token(void **state)
{
    const char *at = getenv("NATS_TOKEN");

    (void)state;
    check_reading("token", (struct nats_options){.address = at, .token = "t0ken"}, ",\"auth_token\":\"t0ken\"");
    check_refused((struct nats_options){.address = at, .token = "wr0ng"}, "sourceConfig.natsmq.token");
}

static void tls(void **state)
{
    const char *at = getenv("NATS_TLS"), *ca = getenv("NATS_CA");
    char *url = xasprintf("tls://%s", at);
    struct answer a;

    (void)state;
    check_refused((struct nats_options){.address = at}, "sourceConfig.natsmq.enableTLS");
    check_refused((struct nats_options){.address = url}, "certificate"); /* of an unknown authority */
    check_refused((struct nats_options){.address = address, .tls = true}, "does not offer TLS");
    reopen_wal((struct nats_options){.address = url, .ca_path = ca});
    a = ask_end("by-dev-any");
    if (a.failed)
        fail_msg("%s", a.err.text);
    free(url);
    assert_false(a.found);
    /* A stream with messages is there already: NATS_TLS_TOPIC, numbers 1 to 40, every fourth 3 MiB. */
    struct rec rec;

    rec_open(&rec, getenv("NATS_TLS_TOPIC"), 0);
    WAIT_FOR(rec.last == 40);
    assert_true(rec.bytes > 10 * (3 << 20));
    rec_close(&rec);
}

static void no_jetstream(void **state)
{
    (void)state;
    check_refused((struct nats_options){.address = getenv("NATS_PLAIN")}, "JetStream");
}

/* ---- a server that dies ---- */

struct server {
    pid_t pid;
    char dir[100], address[40], port[8];
};

static void server_start(struct server *s)
{
    struct nats_client c;
    uint64_t end = clock_mono_ms() + LIMIT_MS;

    s->pid = fork();
    if (s->pid == 0) {
        execl(getenv("NATS_SERVER"), "nats-server", "-a", "127.0.0.1", "-p", s->port, "-js", "-sd", s->dir, "-l",
              "/dev/null", NULL);
        _exit(127);
    }
    while (!client_open(&c, s->address, "")) {
        assert_true(clock_mono_ms() < end);
        usleep(10000);
    }
    client_close(&c);
}

static void server_kill(struct server *s)
{
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
}

/* The test's limits are told by the pytest: NATS_SPARE is a free port and NATS_DIR a folder. */
static void a_killed_server_loses_nothing(void **state)
{
    struct server s = {.pid = 0};
    const char *topic = new_topic();
    struct nats_client c;
    struct rec rec, idle;

    (void)state;
    snprintf(s.port, sizeof(s.port), "%s", getenv("NATS_SPARE"));
    snprintf(s.dir, sizeof(s.dir), "%s", getenv("NATS_DIR"));
    snprintf(s.address, sizeof(s.address), "127.0.0.1:%s", s.port);
    server_start(&s);
    assert_true(client_open(&c, s.address, ""));
    client_make_stream(&c, topic, "");
    client_make_stream(&c, "idle", "");
    client_fill(&c, topic, 1, 4000, 20000, "");
    client_close(&c);
    reopen_wal((struct nats_options){.address = s.address});
    rec_open(&rec, topic, 0);
    rec_open(&idle, "idle", 0);
    for (unsigned goal = 500; goal <= 2000; goal += 500) {
        WAIT_FOR(rec.count >= goal);
        wal->ops->pause(rec.r); /* so that the end is not reached before */
        server_kill(&s);
        server_start(&s);
        wal->ops->resume(rec.r);
    }
    WAIT_FOR(rec.last == 4000 && rec.caught_up);
    assert_int_equal(rec.count, 4000);
    server_kill(&s);
    WAIT_FOR(rec.troubles == 1 && idle.troubles >= 1); /* told after a second */
    assert_int_equal(rec.err.cls, ERRC_RETRY);
    assert_true(strstr(rec.err.text, s.address) != NULL);
    server_start(&s);
    WAIT_FOR(rec.overs == 1);
    assert_true(client_open(&c, s.address, ""));
    client_fill(&c, topic, 4001, 4010, 20000, "");
    client_fill(&c, "idle", 1, 10, 20, "");
    client_close(&c);
    WAIT_FOR(rec.last == 4010 && idle.last == 10);
    assert_true(rec.count == 4010 && rec.troubles == 1 && rec.overs == 1);
    rec_close(&rec);
    rec_close(&idle);
    server_kill(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(reads_from_the_earliest_and_goes_on),
        T(reads_from_a_position_inclusive),
        T(tells_the_end),
        T(a_removed_start_is_lost),
        T(messages_removed_before_they_were_read_are_lost),
        T(a_stream_that_was_made_anew_is_lost),
        T(two_readers_of_one_stream),
        T(a_paused_reader_gets_nothing),
        T(many_readers_share_the_budget),
        T(a_stream_made_later_is_read),
        T(large_messages),
        T(a_deleted_consumer_is_made_again),
        T(lag_is_small),
        T(user_and_password),
        T(token),
        T(tls),
        T(no_jetstream),
        T(a_killed_server_loses_nothing),
    };

    setvbuf(stdout, NULL, _IOLBF, 0);
    address = getenv("NATS");
    if (!address) {
        const char *must = getenv("MILVUS_CDC_REQUIRE_LIVE");

        printf("NATS is not set: nothing to test with\n");
        return must && *must == '1';
    }
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
