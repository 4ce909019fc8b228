/* test_etcd.c - the etcd client against real etcd servers, started and killed here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "milvus/etcd.h"

#include "etcd_server.h"

static struct loop *loop;
static struct etcd_server server = {.extra = {"--experimental-watch-progress-notify-interval",
                                              "200ms"}};
static struct etcd_hand hand;

/* ---- what calls and watches told ---- */

struct range_log {
    unsigned calls;
    int code;
    enum err_class cls;
    char text[1000];
    char keys[32][64];
    char values[32][64];
    int64_t revs[32];
    size_t n;
    bool more;
    int64_t revision;
};

static void on_range(void *arg, const struct err *err, const struct etcd_kv *kvs, size_t n,
                     bool more, int64_t revision)
{
    struct range_log *log = arg;

    log->calls++;
    log->code = err ? (int)err->code : 0;
    log->cls = err ? err->cls : 0;
    snprintf(log->text, sizeof(log->text), "%s", err ? err->text : "");
    log->n = n;
    log->more = more;
    log->revision = revision;
    for (size_t i = 0; i < n && i < 32; i++) {
        snprintf(log->keys[i], 64, "%s", kvs[i].key);
        snprintf(log->values[i], 64, "%.*s", (int)kvs[i].value_len, (const char *)kvs[i].value);
        log->revs[i] = kvs[i].mod_revision;
    }
}

static struct range_log range_since(struct etcd_client *e, const char *key, const char *end,
                                    int64_t limit, int64_t rev, int64_t since)
{
    struct range_log log = {0};

    etcd_range_since(e, key, end, limit, rev, since, on_range, &log);
    assert_int_equal(log.calls, 0); /* never from inside the starting call */
    WAIT_FOR(loop, log.calls > 0);
    assert_int_equal(log.calls, 1);
    return log;
}

static struct range_log range(struct etcd_client *e, const char *key, const char *end,
                              int64_t limit, int64_t rev)
{
    return range_since(e, key, end, limit, rev, 0);
}

struct watch_log {
    struct etcd_watch *watch;
    struct etcd_client *close_in_event; /* the watch's callback closes this */
    unsigned answers, progress, troubles, over, compacted;
    char text[8192]; /* "+key=value;" and "-key;" */
    size_t n_events, value_bytes;
    int64_t revision, compact_revision;
    bool bad_order;
    int code;
    enum err_class cls;
    char trouble[1000];
};

static void on_events(void *arg, const struct etcd_event *ev, size_t n, int64_t revision)
{
    struct watch_log *log = arg;
    size_t at = strlen(log->text);

    log->bad_order = log->bad_order || revision < log->revision;
    if (n > 0)
        log->answers++;
    else
        log->progress++;
    for (size_t i = 0; i < n; i++) {
        log->bad_order = log->bad_order || ev[i].kv.mod_revision <= log->revision ||
                         ev[i].kv.mod_revision > revision;
        log->n_events++;
        log->value_bytes += ev[i].kv.value_len;
        at += (size_t)snprintf(log->text + at, sizeof(log->text) - at, "%c%s%s%.*s;",
                               ev[i].type == ETCD_PUT ? '+' : '-', ev[i].kv.key,
                               ev[i].kv.value_len ? "=" : "",
                               ev[i].kv.value_len > 40 ? 0 : (int)ev[i].kv.value_len,
                               (const char *)ev[i].kv.value);
    }
    log->revision = revision;
    if (log->close_in_event) {
        etcd_close(log->close_in_event);
        log->close_in_event = NULL;
    }
}

static void on_compacted(void *arg, int64_t revision)
{
    struct watch_log *log = arg;

    log->compacted++;
    log->compact_revision = revision;
    log->watch = NULL;
}

static void on_trouble(void *arg, const struct err *err)
{
    struct watch_log *log = arg;

    if (!err) {
        log->over++;
        return;
    }
    log->troubles++;
    log->code = (int)err->code;
    log->cls = err->cls;
    snprintf(log->trouble, sizeof(log->trouble), "%s", err->text);
}

static const struct etcd_watch_cbs watch_cbs = {on_events, on_compacted, on_trouble};

static void watch(struct etcd_client *e, struct watch_log *log, const char *prefix, int64_t rev)
{
    char *end = etcd_prefix_end(prefix);

    log->watch = etcd_watch_start(e, prefix, end, rev, &watch_cbs, log);
    free(end);
}

static struct etcd_client *client(const char *const *endpoints)
{
    struct etcd_options o = {.endpoints = endpoints, .dial_timeout_ms = 2000};
    struct etcd_client *e = etcd_open(loop, &o, NULL);

    assert_non_null(e);
    return e;
}

static struct etcd_client *plain_client(void)
{
    return client((const char *const[]){server.endpoint, NULL});
}

static int64_t put(const char *key, const char *value)
{
    return hand_put(&hand, key, value, strlen(value));
}

/* ---- range ---- */

static void ranges_come_in_pages_of_one_revision(void **state)
{
    struct etcd_client *e = plain_client();
    struct range_log log;
    int64_t rev, before;

    (void)state;
    put("p/a", "1");
    before = put("p/b", "2");
    rev = put("p/c", "3");
    put("q/x", "outside");
    log = range(e, "p/", "p0", 2, 0);
    assert_int_equal(log.n, 2);
    assert_true(log.more);
    assert_true(log.revision > rev);
    assert_string_equal(log.keys[0], "p/a");
    assert_string_equal(log.values[1], "2");
    put("p/c", "newer");
    put("p/d", "4");
    log = range(e, "p/b\x01", "p0", 2, rev);
    assert_int_equal(log.n, 1);
    assert_false(log.more);
    assert_string_equal(log.values[0], "3");
    log = range(e, "p/", "p0", 0, before);
    assert_int_equal(log.n, 2);
    log = range_since(e, "p/", "p0", 10, 0, rev + 1);
    assert_int_equal(log.n, 2);
    assert_string_equal(log.values[0], "newer");
    assert_true(log.revs[0] > rev);
    log = range(e, "p/b", NULL, 0, 0);
    assert_int_equal(log.n, 1);
    log = range(e, "none/", "none0", 0, 0);
    assert_int_equal(log.n, 0);
    assert_int_equal(log.code, 0);
    etcd_close(e);
}

static void a_compacted_revision_is_gone(void **state)
{
    struct etcd_client *e = plain_client();
    struct range_log log;
    int64_t old = put("c/a", "1");

    (void)state;
    hand_compact(&hand, put("c/a", "2"));
    log = range(e, "c/", "c0", 0, old);
    assert_int_equal(log.code, ERR_GONE);
    assert_int_equal(log.cls, ERRC_RETRY);
    etcd_close(e);
}

static void a_cancelled_range_never_completes(void **state)
{
    struct etcd_client *e = plain_client();
    struct range_log cancelled = {0}, closed = {0}, log;

    (void)state;
    etcd_cancel(etcd_range(e, "p/", "p0", 0, 0, on_range, &cancelled));
    log = range(e, "p/", "p0", 0, 0);
    assert_int_equal(log.code, 0);
    etcd_range(e, "p/", "p0", 0, 0, on_range, &closed);
    etcd_close(e);
    for (int i = 0; i < 100; i++) {
        loop_once(loop, false);
        usleep(1000);
    }
    assert_int_equal(cancelled.calls, 0);
    assert_int_equal(closed.calls, 0);
}

/* ---- watch ---- */

static void a_watch_tells_all_in_order(void **state)
{
    struct etcd_client *e = plain_client();
    struct watch_log log = {0};
    struct hand_kv both[] = {{"w/c", "3", 1}, {"w/d", "4", 1}};
    int64_t rev = put("w/a", "1");

    (void)state;
    put("w/b", "2");
    put("other", "x");
    watch(e, &log, "w/", rev);
    WAIT_FOR(loop, log.n_events >= 2);
    rev = hand_txn(&hand, both, 2);
    WAIT_FOR(loop, log.n_events >= 4);
    assert_int_equal(log.revision, rev); /* both keys of the transaction came in one answer */
    assert_int_equal(log.answers, 2);
    hand_delete(&hand, "w/a");
    WAIT_FOR(loop, log.n_events >= 5);
    assert_string_equal(log.text, "+w/a=1;+w/b=2;+w/c=3;+w/d=4;-w/a;");
    assert_int_equal(log.troubles, 0);
    etcd_watch_stop(log.watch);
    rev = put("w/e", "5");
    range(e, "w/", "w0", 0, 0);
    assert_int_equal(log.n_events, 5);
    etcd_close(e);
}

static void progress_tells_revisions_of_other_keys(void **state)
{
    struct etcd_client *e = plain_client();
    struct watch_log log = {0};
    int64_t rev = put("elsewhere", "1");

    (void)state;
    watch(e, &log, "quiet/", rev + 1);
    rev = put("elsewhere", "2");
    WAIT_FOR(loop, log.progress > 0 && log.revision >= rev);
    assert_int_equal(log.n_events, 0);
    etcd_close(e);
}

static void large_answers_come_in_fragments_and_are_joined(void **state)
{
    struct etcd_client *e = plain_client();
    struct watch_log log = {0};
    size_t size = 300000;
    char *value = calloc(1, size);
    int64_t first = 0;

    (void)state;
    memset(value, 'v', size);
    for (int i = 0; i < 20; i++) {
        char key[32];
        int64_t rev;

        snprintf(key, sizeof(key), "big/%02d", i);
        rev = hand_put(&hand, key, value, size);
        first = first ? first : rev;
    }
    watch(e, &log, "big/", first);
    WAIT_FOR(loop, log.n_events >= 20);
    /* 6 MB are more than one answer may hold (1.5 MiB and 512 KiB), so this was joined. */
    assert_int_equal(log.answers, 1);
    assert_int_equal(log.n_events, 20);
    assert_int_equal(log.value_bytes, 20 * size);
    free(value);
    etcd_close(e);
}

static void a_watch_survives_a_restart_of_the_server(void **state)
{
    struct etcd_client *e = plain_client();
    struct watch_log log = {0};
    struct range_log r = {0};
    int64_t rev = put("r/a", "1");

    (void)state;
    watch(e, &log, "r/", rev);
    WAIT_FOR(loop, log.n_events == 1);
    etcd_server_kill(&server);
    WAIT_FOR(loop, log.troubles > 0);
    assert_int_equal(log.cls, ERRC_RETRY);
    etcd_range(e, "r/", "r0", 0, 0, on_range, &r);
    etcd_server_run(&server);
    put("r/b", "2");
    put("r/c", "3");
    WAIT_FOR(loop, log.over > 0 && log.n_events >= 3);
    assert_string_equal(log.text, "+r/a=1;+r/b=2;+r/c=3;");
    assert_false(log.bad_order);
    WAIT_FOR(loop, r.calls == 1); /* it waited for the connection */
    put("r/d", "4");
    WAIT_FOR(loop, log.n_events >= 4);
    etcd_close(e);
}

static void what_was_compacted_cannot_be_watched(void **state)
{
    struct etcd_client *e = plain_client();
    struct watch_log log = {0}, ok = {0};
    int64_t old = put("k/a", "1"), rev = put("k/a", "2");

    (void)state;
    hand_compact(&hand, rev);
    watch(e, &log, "k/", old);
    WAIT_FOR(loop, log.compacted == 1);
    assert_int_equal(log.compact_revision, rev);
    assert_int_equal(log.n_events, 0);
    watch(e, &ok, "k/", rev + 1);
    put("k/b", "3");
    WAIT_FOR(loop, ok.n_events == 1);
    etcd_close(e);
}

static void a_watch_that_lost_its_history_says_so_after_a_reconnect(void **state)
{
    struct etcd_client *e = plain_client();
    struct watch_log log = {0};
    int64_t rev = put("l/a", "1");

    (void)state;
    watch(e, &log, "l/", rev);
    WAIT_FOR(loop, log.n_events == 1);
    etcd_server_kill(&server);
    WAIT_FOR(loop, log.troubles > 0);
    etcd_server_run(&server);
    /* The client may only come back when the history is gone: its loop does not turn here. */
    {
        struct loop *l = loop_new();
        struct etcd_hand h;

        hand_open(&h, l, &server);
        hand_put(&h, "l/a", "2", 1);
        hand_compact(&h, hand_put(&h, "l/a", "3", 1));
        hand_close(&h);
        loop_free(l);
    }
    WAIT_FOR(loop, log.compacted == 1);
    etcd_close(e);
}

static void closing_inside_a_callback_is_safe(void **state)
{
    struct etcd_client *e = plain_client();
    struct watch_log log = {.close_in_event = e}, other = {0};
    int64_t rev = put("x/a", "1");

    (void)state;
    put("x/b", "2");
    watch(e, &log, "x/", rev);
    watch(e, &other, "nothing/", rev);
    WAIT_FOR(loop, log.n_events > 0);
    put("x/c", "3");
    assert_int_equal(log.answers, 1);
}

/* ---- endpoints ---- */

static void a_dead_endpoint_is_passed_over(void **state)
{
    char dead[64];
    struct etcd_client *e;
    struct watch_log log = {0};
    struct range_log r;
    uint64_t start = clock_mono_ms();
    int64_t rev;

    (void)state;
    snprintf(dead, sizeof(dead), "http://127.0.0.1:%u", free_port());
    e = client((const char *const[]){dead, server.endpoint, NULL});
    watch(e, &log, "e/", put("e/a", "1"));
    r = range(e, "e/", "e0", 0, 0);
    assert_int_equal(r.code, 0);
    assert_int_equal(r.n, 1);
    WAIT_FOR(loop, log.n_events == 1);
    assert_true(clock_mono_ms() - start < 2000); /* no deadline had to pass */
    etcd_close(e);
    log = (struct watch_log){0};
    e = client((const char *const[]){server.endpoint, dead, NULL});
    rev = put("e/b", "1");
    watch(e, &log, "e/", rev);
    WAIT_FOR(loop, log.n_events == 1);
    etcd_server_kill(&server);
    WAIT_FOR(loop, log.troubles > 0); /* both were tried */
    etcd_server_run(&server);
    put("e/c", "1");
    WAIT_FOR(loop, log.n_events == 2 && log.over > 0);
    etcd_close(e);
}

static void without_any_live_endpoint_a_range_fails_in_the_end(void **state)
{
    char dead1[64], dead2[64];
    struct etcd_options o = {.endpoints = (const char *const[]){dead1, dead2, NULL},
                             .dial_timeout_ms = 1};
    struct etcd_client *e;
    struct range_log r;

    (void)state;
    snprintf(dead1, sizeof(dead1), "127.0.0.1:%u", free_port());
    snprintf(dead2, sizeof(dead2), "127.0.0.1:%u", free_port());
    e = etcd_open(loop, &o, NULL);
    r = range(e, "e/", "e0", 0, 0);
    assert_true(r.code == ERR_TIMEOUT || r.code == ERR_UNAVAILABLE);
    assert_int_equal(r.cls, ERRC_RETRY);
    etcd_close(e);
}

static void bad_endpoints_are_refused(void **state)
{
    static const char *const bad[] = {"", "host", "host:", ":2379", "host:0", "host:65536",
                                      "host:12x", "ftp://host:1", "http://host/path:1",
                                      "a:b:1", "host:-1", "http://"};
    struct etcd_options o = {0};
    struct err err;

    (void)state;
    assert_null(etcd_open(loop, &o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        o.endpoints = (const char *const[]){"127.0.0.1:2379", bad[i], NULL};
        err.code = 0;
        assert_null(etcd_open(loop, &o, &err));
        assert_int_equal(err.code, ERR_INVALID);
        assert_int_equal(err.cls, ERRC_USER);
    }
    o.endpoints = (const char *const[]){"[::1]:2379", "https://name.example:2379/", NULL};
    etcd_close(etcd_open(loop, &o, &err));
    o.tls = true;
    o.endpoints = (const char *const[]){"http://127.0.0.1:2379", NULL};
    assert_null(etcd_open(loop, &o, &err));
    o.endpoints = (const char *const[]){"127.0.0.1:2379", NULL};
    o.ca_path = "/nonexistent/ca.pem";
    assert_null(etcd_open(loop, &o, &err));
    assert_int_equal(err.cls, ERRC_USER);
}

static void prefix_ends(void **state)
{
    char *a = etcd_prefix_end("by-dev/meta/"), *b = etcd_prefix_end("a\xff");

    (void)state;
    assert_string_equal(a, "by-dev/meta0");
    assert_string_equal(b, "b");
    free(a);
    free(b);
}

/* ---- authentication ---- */

static struct etcd_client *login_client(const struct etcd_server *s, const char *user,
                                        const char *password)
{
    struct etcd_options o = {.endpoints = (const char *const[]){s->endpoint, NULL},
                             .username = user,
                             .password = password};

    return etcd_open(loop, &o, NULL);
}

static void auth_on(const struct etcd_server *s)
{
    const char *ctl = "etcdctl --endpoints";

    assert_int_equal(run_cmd("%s %s user add root:secret >/dev/null && "
                             "%s %s user add reader:pw >/dev/null && "
                             "%s %s role add r >/dev/null && "
                             "%s %s role grant-permission r --prefix=true read a/ >/dev/null && "
                             "%s %s user grant-role reader r >/dev/null && "
                             "%s %s auth enable >/dev/null",
                             ctl, s->endpoint, ctl, s->endpoint, ctl, s->endpoint, ctl,
                             s->endpoint, ctl, s->endpoint, ctl, s->endpoint),
                     0);
}

static int root_put(const struct etcd_server *s, const char *key, const char *value)
{
    return run_cmd("etcdctl --endpoints %s --user root:secret put %s %s >/dev/null", s->endpoint,
                   key, value);
}

/* A token is lost when the server restarts: the next call and the watch must get another one. */
static void logins_are_renewed(void **state)
{
    struct etcd_server s = {0};
    struct etcd_client *e, *wrong, *none;
    struct watch_log log = {0}, denied = {0};
    struct range_log r;

    (void)state;
    etcd_server_start(&s);
    e = login_client(&s, "reader", "pw");
    r = range(e, "a/", "a0", 0, 0); /* authentication is not on yet: goes on without */
    assert_int_equal(r.code, 0);
    auth_on(&s);
    assert_int_equal(root_put(&s, "a/1", "x"), 0);
    r = range(e, "a/", "a0", 0, 0);
    assert_int_equal(r.code, 0);
    assert_int_equal(r.n, 1);
    watch(e, &log, "a/", r.revs[0]);
    WAIT_FOR(loop, log.n_events == 1);

    r = range(e, "b/", "b0", 0, 0); /* not permitted */
    assert_int_equal(r.code, ERR_AUTH);
    assert_int_equal(r.cls, ERRC_USER);
    watch(e, &denied, "b/", 1);
    WAIT_FOR(loop, denied.troubles == 1);
    assert_int_equal(denied.cls, ERRC_USER);
    etcd_watch_stop(denied.watch);

    wrong = login_client(&s, "reader", "not the password");
    r = range(wrong, "a/", "a0", 0, 0);
    assert_int_equal(r.code, ERR_AUTH);
    assert_int_equal(r.cls, ERRC_USER);
    assert_null(strstr(r.text, "not the password"));
    memset(&denied, 0, sizeof(denied));
    watch(wrong, &denied, "a/", 1);
    WAIT_FOR(loop, denied.troubles == 1);
    assert_int_equal(denied.cls, ERRC_USER);
    none = login_client(&s, NULL, NULL);
    r = range(none, "a/", "a0", 0, 0);
    assert_int_equal(r.code, ERR_AUTH);
    assert_non_null(strstr(r.text, "set its user name"));

    etcd_server_kill(&s);
    WAIT_FOR(loop, log.troubles > 0);
    etcd_server_run(&s);
    for (int i = 0; i < 50 && root_put(&s, "a/2", "y") != 0; i++)
        usleep(100000);
    WAIT_FOR(loop, log.n_events == 2 && log.over == 1);
    r = range(e, "a/", "a0", 0, 0);
    assert_int_equal(r.code, 0);
    assert_int_equal(r.n, 2);
    assert_int_equal(log.cls, ERRC_RETRY);
    etcd_close(e);
    etcd_close(wrong);
    etcd_close(none);
    etcd_server_remove(&s);
}

/* Many calls at once with a dead token: each gets its answer. */
static void calls_share_one_login(void **state)
{
    struct etcd_server s = {0};
    struct etcd_client *e;
    struct range_log r[20] = {0};
    size_t done = 0;

    (void)state;
    etcd_server_start(&s);
    auth_on(&s);
    assert_int_equal(root_put(&s, "a/1", "x"), 0);
    e = login_client(&s, "reader", "pw");
    for (int round = 0; round < 2; round++) {
        memset(r, 0, sizeof(r));
        for (size_t i = 0; i < 20; i++)
            etcd_range(e, "a/", "a0", 0, 0, on_range, &r[i]);
        WAIT_FOR(loop, ({
                     done = 0;
                     for (size_t i = 0; i < 20; i++)
                         done += r[i].calls;
                     done == 20;
                 }));
        for (size_t i = 0; i < 20; i++) {
            assert_int_equal(r[i].code, 0);
            assert_int_equal(r[i].n, 1);
        }
        if (round == 0) {
            etcd_server_kill(&s);
            etcd_server_run(&s);
            assert_int_equal(range(e, "a/", "a0", 0, 0).calls, 1); /* reconnects, or tells */
        }
    }
    etcd_close(e);
    etcd_server_remove(&s);
}

/* ---- TLS ---- */

static void make_certs(const char *dir)
{
    assert_int_equal(
        run_cmd("cd %s && (openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem "
                "-subj /CN=ca -days 2 && "
                "openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.pem "
                "-subj /CN=other -days 2 && "
                "printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\\n"
                "extendedKeyUsage=serverAuth,clientAuth\\n' > ext && "
                "for n in server client; do "
                "openssl req -newkey rsa:2048 -nodes -keyout $n.key -out $n.csr -subj /CN=$n && "
                "openssl x509 -req -in $n.csr -CA ca.pem -CAkey ca.key -CAcreateserial "
                "-extfile ext -out $n.pem -days 2; done) >/dev/null 2>&1",
                dir),
        0);
}

static struct etcd_client *tls_client(const char *endpoint, bool tls, const char *ca,
                                      const char *cert, const char *key)
{
    struct etcd_options o = {.endpoints = (const char *const[]){endpoint, NULL},
                             .tls = tls,
                             .ca_path = ca,
                             .cert_path = cert,
                             .key_path = key,
                             .dial_timeout_ms = 5000};
    struct err err = {0};
    struct etcd_client *e = etcd_open(loop, &o, &err);

    if (!e)
        fail_msg("%s", err.text);
    return e;
}

static void tls_with_client_certificates(void **state)
{
    char dir[] = "/tmp/cdc-certs-XXXXXX", p[6][100], url[100];
    static const char *const names[] = {"ca.pem", "server.pem", "server.key",
                                        "client.pem", "client.key", "other.pem"};
    struct etcd_server s = {.scheme = "https"};
    struct etcd_client *good, *by_url, *wrong_ca;
    struct watch_log ok = {0}, bad = {0};
    struct range_log r;

    (void)state;
    assert_non_null(mkdtemp(dir));
    make_certs(dir);
    for (int i = 0; i < 6; i++)
        snprintf(p[i], sizeof(p[i]), "%s/%s", dir, names[i]);
    s.extra[0] = "--cert-file";
    s.extra[1] = p[1];
    s.extra[2] = "--key-file";
    s.extra[3] = p[2];
    s.extra[4] = "--client-cert-auth";
    s.extra[5] = "--trusted-ca-file";
    s.extra[6] = p[0];
    etcd_server_start(&s);
    snprintf(url, sizeof(url), "https://%s", s.endpoint);
    good = tls_client(s.endpoint, true, p[0], p[3], p[4]);
    r = range(good, "t/", "t0", 0, 0);
    assert_int_equal(r.code, 0);
    watch(good, &ok, "t/", r.revision + 1);
    assert_int_equal(run_cmd("etcdctl --endpoints %s --cacert %s --cert %s --key %s put t/a 1 "
                             ">/dev/null",
                             url, p[0], p[3], p[4]),
                     0);
    WAIT_FOR(loop, ok.n_events == 1);
    by_url = tls_client(url, false, p[0], p[3], p[4]);
    assert_int_equal(range(by_url, "t/", "t0", 0, 0).n, 1);
    wrong_ca = tls_client(s.endpoint, true, p[5], p[3], p[4]);
    watch(wrong_ca, &bad, "t/", 1);
    WAIT_FOR(loop, bad.troubles > 0);
    assert_int_equal(bad.n_events, 0);
    print_message("wrong CA: %s\n", bad.trouble);
    etcd_close(good);
    etcd_close(by_url);
    etcd_close(wrong_ca);
    etcd_server_remove(&s);
    run_cmd("rm -rf %s", dir);
}

/* ---- main ---- */

static int group_setup(void **state)
{
    (void)state;
    loop = loop_new();
    etcd_server_start(&server);
    hand_open(&hand, loop, &server);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    hand_close(&hand);
    etcd_server_remove(&server);
    loop_free(loop);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_come_in_pages_of_one_revision),
        cmocka_unit_test(a_compacted_revision_is_gone),
        cmocka_unit_test(a_cancelled_range_never_completes),
        cmocka_unit_test(a_watch_tells_all_in_order),
        cmocka_unit_test(progress_tells_revisions_of_other_keys),
        cmocka_unit_test(large_answers_come_in_fragments_and_are_joined),
        cmocka_unit_test(a_watch_survives_a_restart_of_the_server),
        cmocka_unit_test(what_was_compacted_cannot_be_watched),
        cmocka_unit_test(a_watch_that_lost_its_history_says_so_after_a_reconnect),
        cmocka_unit_test(closing_inside_a_callback_is_safe),
        cmocka_unit_test(a_dead_endpoint_is_passed_over),
        cmocka_unit_test(without_any_live_endpoint_a_range_fails_in_the_end),
        cmocka_unit_test(bad_endpoints_are_refused),
        cmocka_unit_test(prefix_ends),
        cmocka_unit_test(logins_are_renewed),
        cmocka_unit_test(calls_share_one_login),
        cmocka_unit_test(tls_with_client_certificates),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
