/*
 * test_nats.c - the NATS reader against a server that misbehaves (nats_fake.h), and its parser alone.
 * What a real server does is in test_nats_live.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <unistd.h>

#include "../fuzz/fuzz_nats.c"
#include "base/clock.h"
#include "base/mem.h"
#include "wal/nats.h"

#include "nats_fake.h"

#define CORPUS "test/fuzz/corpus/nats"
enum { LIMIT_MS = 20000 };
#define WAIT_FOR(cond)                                                                                                 \
    do {                                                                                                               \
        uint64_t end_ = clock_mono_ms() + LIMIT_MS;                                                                    \
        while (!(cond)) {                                                                                              \
            if (clock_mono_ms() > end_)                                                                                \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);                                  \
            loop_once(loop, false);                                                                                    \
            usleep(100);                                                                                               \
        }                                                                                                              \
    } while (0)

static struct loop *loop;
static struct wal_port *wal;
static struct fake fake;

/* ---- parser --------------------------------------------------------------------------------- */

static int feed(const char *text, size_t len, struct nats_op *ret, unsigned *ret_n, struct err *err)
{
    struct nats_parser p;
    uint8_t *to;
    size_t room;
    int rv;

    nats_parser_init(&p);
    nats_parser_space(&p, &to, &room);
    assert_true(len <= room);
    memcpy(to, text, len);
    nats_parser_filled(&p, len);
    *ret_n = 0;
    while ((rv = nats_parser_next(&p, ret, err)) == 1)
        ++*ret_n;
    nats_parser_release(&p);
    return rv;
}

static void parser_takes_what_servers_send(void **state)
{
    static const char text[] = "INFO {\"a\":1} \r\nPING\r\nPONG\r\n+OK\r\n-ERR 'Some Text'\r\n"
                               "MSG a.b 7 c.d 5\r\n\r\n\r\n\n\r\n"
                               "HMSG a 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
    struct nats_parser p;
    struct nats_op op;
    struct err err;
    uint8_t *to;
    size_t room;

    (void)state;
    nats_parser_init(&p);
    nats_parser_space(&p, &to, &room);
    memcpy(to, text, sizeof(text) - 1);
    nats_parser_filled(&p, sizeof(text) - 1);
    assert_int_equal(nats_parser_next(&p, &op, &err), 1);
    assert_true(op.kind == NATS_INFO && op.text.len == 7 && memcmp(op.text.s, "{\"a\":1}", 7) == 0);
    assert_true(nats_parser_next(&p, &op, &err) == 1 && op.kind == NATS_PING);
    assert_true(nats_parser_next(&p, &op, &err) == 1 && op.kind == NATS_PONG);
    assert_true(nats_parser_next(&p, &op, &err) == 1 && op.kind == NATS_OK);
    assert_true(nats_parser_next(&p, &op, &err) == 1 && op.kind == NATS_ERR);
    assert_true(op.text.len == 9 && memcmp(op.text.s, "Some Text", 9) == 0);
    assert_true(nats_parser_next(&p, &op, &err) == 1 && op.kind == NATS_MSG);
    assert_true(op.sid == 7 && op.hdr_len == 0 && op.len == 5 && op.subject.len == 3 && op.reply.len == 3);
    assert_memory_equal(op.buf->data, "\r\n\r\n\n", 5);
    assert_true(nats_parser_next(&p, &op, &err) == 1 && op.kind == NATS_MSG);
    assert_true(op.hdr_len == 12 && op.len == 14 && op.reply.len == 0);
    assert_memory_equal(op.buf->data + 12, "hi", 2);
    assert_int_equal(nats_parser_next(&p, &op, &err), 0);
    assert_true(nats_parser_empty(&p));
    nats_parser_release(&p);
}

static void parser_refuses_what_is_wrong(void **state)
{
    static const char *const wrong[] = {
        "HTTP/1.1 400 Bad Request\r\n", "\r\n", "MSG\r\n", "MSG a 1\r\n", "MSG a x 5\r\n", "MSG a 1 -5\r\n",
        "MSG a 1 5x\r\n", "MSG a 1 b c 5\r\n", "MSG a 1 99999999999999999999999\r\n", "HMSG a 1 5\r\n",
        "HMSG a 1 6 5\r\n", "MSG a 1 2\r\nabc\r\n", "MSG a 1 67108865\r\n",
    };
    struct nats_op op;
    struct err err;
    unsigned n;

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        if (feed(wrong[i], strlen(wrong[i]), &op, &n, &err) != -1 || n != 0)
            fail_msg("taken: %s", wrong[i]);
        assert_true(err.cls == ERRC_RETRY && (err.code == ERR_PROTO || err.code == ERR_LIMIT));
    }
}

static void parser_bounds_lines(void **state)
{
    char *text = xmalloc(NATS_CHUNK);
    struct nats_op op;
    struct err err;
    unsigned n;

    (void)state;
    memset(text, 'a', NATS_CHUNK);
    assert_int_equal(feed(text, NATS_CHUNK, &op, &n, &err), -1); /* no end of line */
    memcpy(text, "MSG ", 4);
    memcpy(text + NATS_LINE_MAX + 10, " 1 0\r\n", 6);
    assert_int_equal(feed(text, NATS_LINE_MAX + 16, &op, &n, &err), -1);
    memcpy(text, "INFO", 4);
    text[4] = ' ';
    assert_int_equal(feed(text, NATS_LINE_MAX + 16, &op, &n, &err), 0);
    assert_int_equal(n, 1);
    free(text);
}

static unsigned n_runs, n_with_ops;

static void run_mutants(const uint8_t *data, size_t len)
{
    static const uint8_t likely[] = "0123456789 .\r\nMSGH'";
    uint8_t *copy = xmalloc(len);
    unsigned seed = 4711;

    assert_true(fuzz_nats_one(data, len) > 0); /* all of the corpus is what servers send */
    for (int i = 0; i < 400; i++) {
        memcpy(copy, data, len);
        for (int k = 0; k <= i % 3; k++) {
            seed = seed * 1103515245 + 12345;
            copy[(seed >> 8) % len] = (seed >> 4) % 3 ? likely[(seed >> 16) % sizeof(likely)] : (uint8_t)(seed >> 16);
        }
        n_runs++;
        n_with_ops += fuzz_nats_one(copy, i % 5 ? len : 1 + (seed >> 9) % len) > 0;
    }
    free(copy);
}

static void corpus_and_mutations(void **state)
{
    static uint8_t data[40000];
    struct dirent **list;
    int n = scandir(CORPUS, &list, NULL, alphasort);

    (void)state;
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char path[400];
        FILE *f;

        snprintf(path, sizeof(path), CORPUS "/%s", list[i]->d_name);
        if (strstr(list[i]->d_name, ".bin") && (f = fopen(path, "rb"))) {
            run_mutants(data, fread(data, 1, sizeof(data), f));
            fclose(f);
        }
        free(list[i]);
    }
    free(list);
    assert_true(n_runs >= 4000 && n_with_ops > n_runs / 10 && n_with_ops < n_runs);
}

static int parse_status(const char *text, struct nats_status *ret)
{
    return nats_status_parse((const uint8_t *)text, strlen(text), ret);
}

static void statuses(void **state)
{
    struct nats_status st;

    (void)state;
    assert_int_equal(parse_status("NATS/1.0\r\na: b\r\n\r\n", &st), 0);
    assert_int_equal(st.code, 0);
    assert_int_equal(parse_status("NATS/1.0 503\r\n\r\n", &st), 0);
    assert_int_equal(st.code, 503);
    assert_int_equal(parse_status("NATS/1.0 409 Consumer Deleted\r\nNats-Pending-Bytes: 50\r\nnats-last-consumer:2\r\n"
                                  "Nats-Last-Stream: 3\r\nX: 1\r\n\r\n",
                                  &st),
                     0);
    assert_string_equal(st.text, "Consumer Deleted");
    assert_true(st.code == 409 && st.pending_bytes == 50 && st.last_consumer == 2 && st.last_stream == 3);
    assert_int_equal(parse_status("NATS/2.0 409\r\n\r\n", &st), ERR_PROTO);
    assert_int_equal(parse_status("NATS/1.0 40\r\n\r\n", &st), ERR_PROTO);
    assert_int_equal(parse_status("NATS/1.0 409", &st), ERR_PROTO);
    assert_int_equal(parse_status("", &st), ERR_PROTO);
}

static int parse_ack(const char *text, struct nats_ack *ret)
{
    return nats_ack_parse((struct nats_text){text, strlen(text)}, ret);
}

static void ack_subjects(void **state)
{
    struct nats_ack a;

    (void)state;
    assert_int_equal(parse_ack("$JS.ACK.str.con.1.12.3.1795602716321248365.7", &a), 0);
    assert_true(a.stream_seq == 12 && a.consumer_seq == 3 && a.pending == 7);
    assert_true(a.key.len == 7 && memcmp(a.key.s, "str.con", 7) == 0);
    assert_int_equal(parse_ack("$JS.ACK.dom.hash.str.con.1.12.3.1795602716321248365.7.rnd", &a), 0);
    assert_true(a.key.len == 7 && memcmp(a.key.s, "str.con", 7) == 0 && a.stream_seq == 12);
    assert_int_equal(parse_ack("$JS.ACK.str.con.1.0.3.1.7", &a), ERR_PROTO);
    assert_int_equal(parse_ack("$JS.ACK.str.con.1.x.3.1.7", &a), ERR_PROTO);
    assert_int_equal(parse_ack("$JS.ACK.str.con.1.12.3.1", &a), ERR_PROTO);
    assert_int_equal(parse_ack("$JS.API.str.con.1.12.3.1.7", &a), ERR_PROTO);
    assert_int_equal(parse_ack("$JS.ACK.a.b.c.d.e.f.g.h.i.j.k.l.m.n", &a), ERR_PROTO);
    assert_int_equal(parse_ack("", &a), ERR_PROTO);
}

/* ---- options -------------------------------------------------------------------------------- */

static void check_bad(struct nats_options o, const char *key)
{
    struct err err;

    assert_null(nats_open(loop, &o, &err));
    assert_true(err.code == ERR_INVALID && err.cls == ERRC_USER);
    if (!strstr(err.text, key) || strstr(err.text, "s3cret"))
        fail_msg("%s", err.text);
}

static void wrong_settings_are_named(void **state)
{
    static const char *const good[] = {"h", "h:1", "nats://h:4222", "tls://h:4222", "a:1, nats://b:2,[::1]:3", "[::1]"};
    struct err err;

    (void)state;
    check_bad((struct nats_options){0}, "sourceConfig.natsmq.address");
    check_bad((struct nats_options){.address = ","}, "sourceConfig.natsmq.address");
    check_bad((struct nats_options){.address = "h:0"}, "sourceConfig.natsmq.address");
    check_bad((struct nats_options){.address = "h:65536"}, "sourceConfig.natsmq.address");
    check_bad((struct nats_options){.address = "h:x"}, "sourceConfig.natsmq.address");
    check_bad((struct nats_options){.address = "http://h:1"}, "sourceConfig.natsmq.address");
    check_bad((struct nats_options){.address = "nats://me:s3cret@h:1"}, "sourceConfig.natsmq.address");
    check_bad((struct nats_options){.address = "h:1", .password = "s3cret"}, "sourceConfig.natsmq.username");
    check_bad((struct nats_options){.address = "h:1", .username = "a", .token = "s3cret"}, "sourceConfig.natsmq.token");
    check_bad((struct nats_options){.address = "h:1", .ca_path = "/x"}, "sourceConfig.natsmq.enableTLS");
    check_bad((struct nats_options){.address = "h:1", .tls = true, .ca_path = "/not/there"},
              "sourceConfig.natsmq.tlsCACertPath");
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        struct wal_port *w = nats_open(loop, &(struct nats_options){.address = good[i]}, &err);

        assert_non_null(w);
        assert_string_equal(w->name, "natsmq");
        nats_close(w);
    }
}

static void message_ids(void **state)
{
    static const uint8_t want[8] = {0x21, 0x43, 0x65, 0x87, 0xa9, 0xcb, 0xed, 0xff};
    struct wal_pos pos = {0, 0xffedcba987654321u}, back = {1, 1};
    uint8_t id[WAL_ID_MAX];

    (void)state;
    assert_int_equal(wal->ops->id_encode(pos, id), 8);
    assert_memory_equal(id, want, 8);
    assert_int_equal(wal->ops->id_decode(id, 8, &back), 0);
    assert_int_equal(wal_pos_cmp(pos, back), 0);
    assert_int_equal(wal->ops->id_decode(id, 7, &back), ERR_PROTO);
    assert_int_equal(wal->ops->id_decode(id, 9, &back), ERR_PROTO);
}

/* ---- a reader and the server that misbehaves ------------------------------------------------ */

struct rec {
    struct wal_reader *r;
    uint64_t last;
    unsigned count, batches, ends, troubles, overs;
    bool bad, close_itself, close_port;
    struct err err;
} rec;

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct rec *c = arg;
    char want[40];

    for (size_t i = 0; i < n; i++) {
        size_t len = (size_t)snprintf(want, sizeof(want), "t#%" PRIu64, msgs[i].pos.minor);

        c->bad |= msgs[i].pos.minor <= c->last || msgs[i].len != len || memcmp(msgs[i].data, want, len) != 0;
        c->last = msgs[i].pos.minor;
        c->count++;
    }
    c->batches++;
    c->ends += caught_up;
    if ((c->close_itself || c->close_port) && c->r) {
        wal->ops->close(c->r);
        c->r = NULL;
    }
    if (c->close_port) {
        nats_close(wal);
        wal = NULL;
    }
}

static void on_trouble(void *arg, const struct err *err)
{
    struct rec *c = arg;

    c->troubles += err != NULL;
    c->overs += err == NULL;
    if (err)
        c->err = *err;
}

static void rec_open(struct rec *c, const char *topic, uint64_t from)
{
    static const struct wal_reader_cbs cbs = {on_batch, on_trouble};
    struct wal_start start = {.earliest = from == 0, .pos = {0, from}};

    memset(c, 0, sizeof(*c));
    c->r = wal->ops->open(wal, topic, &start, &cbs, c);
}

static void rec_close(struct rec *c)
{
    assert_false(c->bad);
    wal->ops->close(c->r);
}

static void hold(uint64_t first, uint64_t last)
{
    fake.first = first;
    fake.last = last;
    fake.messages = last - first + 1;
    fake.pending = fake.messages;
}

static int setup(void **state)
{
    struct err err;

    (void)state;
    loop = loop_new();
    fake_init(&fake, loop);
    wal = nats_open(loop, &(struct nats_options){.address = fake.address}, &err);
    assert_non_null(wal);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    nats_close(wal);
    fake_stop(&fake);
    loop_free(loop);
    return 0;
}

static void reopen(bool tls)
{
    struct err err;

    nats_close(wal);
    wal = nats_open(loop, &(struct nats_options){.address = fake.address, .tls = tls}, &err);
    assert_non_null(wal);
}

static void connects_as_it_should(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(fake.accepted, 0); /* not before the first use */
    nats_close(wal);
    wal = nats_open(loop, &(struct nats_options){fake.address, .username = "me \"x\"", .password = "p"}, &err);
    hold(1, 1);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    assert_true(strstr(fake.last_connect, "\"verbose\":false") && strstr(fake.last_connect, "\"headers\":true") &&
                strstr(fake.last_connect, "\"no_responders\":true") && strstr(fake.last_connect, "\"protocol\":1") &&
                strstr(fake.last_connect, "\"user\":\"me \\\"x\\\"\"") && strstr(fake.last_connect, "\"pass\":\"p\""));
    assert_true(strstr(fake.last_create, "\"deliver_policy\":\"all\"") &&
                strstr(fake.last_create, "\"ack_policy\":\"none\""));
    assert_true(fake.fetches[0].batch > 0 && fake.fetches[0].bytes > 0 && fake.fetches[0].bytes <= 8 << 20);
    assert_string_equal(fake.fetches[0].consumer, "t.C1");
    fake_deliver(&fake, 1, 1, 1, 0);
    WAIT_FOR(rec.last == 1 && rec.ends == 1);
    rec_close(&rec);
    WAIT_FOR(fake.deletes == 1); /* its consumer */
}

static void trouble_with(const char *text, enum err_code code)
{
    rec_open(&rec, "t", 0);
    WAIT_FOR(rec.troubles == 1);
    if (!strstr(rec.err.text, text) || rec.err.cls != ERRC_RETRY || rec.err.code != code)
        fail_msg("not \"%s\" but %s: %s", text, err_code_name(rec.err.code), rec.err.text);
}

static void errors_of_the_server(void **state)
{
    (void)state;
    fake.error = "Authorization Violation";
    trouble_with("set sourceConfig.natsmq.username", ERR_AUTH);
    fake.error = NULL; /* and it goes on by itself */
    hold(1, 1);
    WAIT_FOR(rec.overs == 1 && fake.n_fetches == 1);
    fake_say(&fake, "-ERR 'Permissions Violation for Subscription to \"$JS.EVENT.x\"'\r\n"); /* no end */
    fake_deliver(&fake, 1, 1, 1, 0);
    WAIT_FOR(rec.last == 1);
    assert_int_equal(rec.troubles, 1);
    rec_close(&rec);
}

static void other_errors_of_the_server(void **state)
{
    (void)state;
    fake.error = "maximum connections exceeded";
    trouble_with("maximum connections exceeded", ERR_UNAVAILABLE);
    rec_close(&rec);
}

static void tls_is_demanded(void **state)
{
    (void)state;
    fake.info = ",\"tls_required\":true";
    trouble_with("set sourceConfig.natsmq.enableTLS: true", ERR_STATE);
    rec_close(&rec);
}

static void tls_is_never_given_up(void **state)
{
    (void)state;
    reopen(true);
    trouble_with("does not offer TLS", ERR_STATE);
    assert_string_equal(fake.last_connect, ""); /* no login in plain text */
    rec_close(&rec);
    reopen(true);
    fake.greet = "INFO {\"headers\":true,\"tls_required\":true}\r\nPONG\r\n";
    trouble_with("plain text where TLS begins", ERR_PROTO);
    rec_close(&rec);
}

static void what_is_no_nats_server(void **state)
{
    (void)state;
    fake.greet = "HTTP/1.1 400 Bad Request\r\n";
    trouble_with("not the NATS protocol", ERR_PROTO);
    rec_close(&rec);
    reopen(false);
    fake.greet = "PING\r\n";
    trouble_with("does not begin with INFO", ERR_PROTO);
    rec_close(&rec);
}

static void no_jetstream(void **state)
{
    (void)state;
    fake.fail_api = "STREAM.INFO";
    trouble_with("JetStream does not run", ERR_UNSUPPORTED);
    rec_close(&rec);
    reopen(false);
    fake.fail_with = "{\"error\":{\"code\":503,\"err_code\":10039,\"description\":\"not enabled for account\"}}";
    trouble_with("JetStream is not enabled", ERR_UNSUPPORTED);
    rec_close(&rec);
    reopen(false);
    fake.fail_api = "CONSUMER.CREATE";
    fake.fail_with = "{\"error\":{\"code\":400,\"err_code\":10026,\"description\":\"maximum consumers reached\"}}";
    hold(1, 5);
    trouble_with("maximum consumers reached", ERR_UNAVAILABLE);
    fake.fail_api = NULL;
    WAIT_FOR(rec.overs == 1 && fake.n_fetches > 0);
    rec_close(&rec);
}

static void a_hole_in_the_stream_is_lost(void **state)
{
    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    fake_deliver(&fake, 1, 1, 1, 8);
    fake_deliver(&fake, 1, 2, 2, 7);
    hold(7, 9);
    fake_deliver(&fake, 1, 7, 3, 2);
    WAIT_FOR(rec.troubles == 1);
    assert_true(rec.err.cls == ERRC_LOST && rec.err.code == ERR_GONE);
    assert_non_null(strstr(rec.err.text, "message 3 is gone"));
    assert_non_null(strstr(rec.err.text, "7 to 9"));
    assert_int_equal(rec.last, 2);
    rec_close(&rec);
}

/* Also when the stream still has messages before the hole. */
static void a_start_inside_a_hole_is_lost(void **state)
{
    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 4);
    WAIT_FOR(fake.n_fetches == 1);
    assert_non_null(strstr(fake.last_create, "\"opt_start_seq\":4"));
    fake_deliver(&fake, 1, 6, 1, 3);
    WAIT_FOR(rec.troubles == 1);
    assert_true(rec.err.cls == ERRC_LOST && strstr(rec.err.text, "start position 4 is gone"));
    assert_int_equal(rec.count, 0);
    rec_close(&rec);
}

static void a_heartbeat_tells_of_a_purge(void **state)
{
    (void)state;
    hold(1, 2);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    fake_deliver(&fake, 1, 1, 1, 1);
    fake_deliver(&fake, 1, 2, 2, 0);
    WAIT_FOR(rec.last == 2);
    fake_status(&fake, 0, "100 Idle Heartbeat", "Nats-Last-Consumer: 2\r\nNats-Last-Stream: 2\r\n");
    loop_once(loop, false);
    fake.first = 6;
    fake.last = 5;
    fake.messages = 0;
    fake_status(&fake, 0, "100 Idle Heartbeat", "Nats-Last-Consumer: 2\r\nNats-Last-Stream: 5\r\n");
    WAIT_FOR(rec.troubles == 1);
    assert_true(rec.err.cls == ERRC_LOST && strstr(rec.err.text, "message 3 is gone"));
    rec_close(&rec);
}

static void a_message_lost_on_the_way_is_read_again(void **state)
{
    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    fake_deliver(&fake, 1, 1, 1, 8);
    fake_deliver(&fake, 1, 3, 3, 6);
    WAIT_FOR(fake.consumers == 2 && rec.last == 1);
    assert_non_null(strstr(fake.last_create, "\"opt_start_seq\":2"));
    fake_deliver(&fake, 1, 4, 4, 5); /* of the old one, late */
    fake_deliver(&fake, 2, 2, 1, 7);
    fake_deliver(&fake, 2, 3, 2, 6);
    WAIT_FOR(rec.last == 3);
    assert_true(rec.count == 3 && rec.troubles == 0);
    rec_close(&rec);
}

static void a_consumer_that_ends_is_made_again(void **state)
{
    static const char *const ends[] = {"409 Consumer Deleted", "409 Leadership Change", "503", "400 Bad Request - x"};

    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    for (unsigned i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        WAIT_FOR(fake.consumers == i + 1 && fake.n_fetches > 0 &&
                 fake.fetches[fake.n_fetches - 1].consumer[3] == (char)('1' + i));
        fake_deliver(&fake, i + 1, i + 1, 1, 9);
        fake_status(&fake, fake.n_fetches - 1, ends[i], "");
    }
    WAIT_FOR(fake.consumers == 5 && rec.last == 4);
    assert_int_equal(rec.troubles, 0);
    rec_close(&rec);
}

static void a_fetch_that_is_too_small_grows(void **state)
{
    size_t asked;
    char left[60];

    (void)state;
    hold(1, 9);
    fake.pending = 0; /* so that it begins small */
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    asked = fake.fetches[0].bytes;
    for (unsigned i = 1; i <= 4; i++) {
        snprintf(left, sizeof(left), "Nats-Pending-Messages: 9\r\nNats-Pending-Bytes: %zu\r\n", asked);
        fake_status(&fake, i - 1, "409 Message Size Exceeds MaxBytes", left);
        WAIT_FOR(fake.n_fetches == i + 1);
        assert_true(fake.fetches[i].bytes > asked);
        asked = fake.fetches[i].bytes;
    }
    assert_true(asked > 16 << 20); /* one message may be larger than fetch_bytes */
    fake_deliver(&fake, 1, 1, 1, 0);
    WAIT_FOR(rec.last == 1);
    assert_true(rec.troubles == 0 && fake.consumers == 1);
    rec_close(&rec);
}

static void fetches_overlap_and_expire(void **state)
{
    char left[60];

    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    assert_int_equal(fake.fetches[0].bytes, 4 << 20);
    /* Half of it is used: the next is sent. */
    size_t len = (2 << 20) + 100;
    char *data = xmalloc(len + 1);

    memset(data, 'x', len);
    data[len] = 0;
    rec.last = UINT64_MAX - 2; /* its content is not looked at */
    fake_msg(&fake, "t", "$JS.ACK.t.C1.1.1.1.17.8", data);
    free(data);
    WAIT_FOR(fake.n_fetches == 2);
    rec.last = 1;
    rec.bad = false;
    fake_status(&fake, 0, "408 Request Timeout", "Nats-Pending-Bytes: 2000000\r\n");
    snprintf(left, sizeof(left), "Nats-Pending-Bytes: %zu\r\n", fake.fetches[1].bytes);
    fake_status(&fake, 1, "408 Request Timeout", left);
    WAIT_FOR(fake.n_fetches >= 3);
    fake_deliver(&fake, 1, 2, 2, 0);
    WAIT_FOR(rec.last == 2 && rec.ends == 1);
    rec_close(&rec);
}

static void the_budget_is_kept(void **state)
{
    enum { N = 100 };
    static struct rec recs[N];
    size_t sum = 0;

    (void)state;
    hold(1, 9);
    for (int i = 0; i < N; i++)
        rec_open(&recs[i], "t", 0);
    WAIT_FOR(fake.consumers == N && fake.n_fetches >= N);
    for (size_t i = 0; i < fake.n_fetches; i++)
        sum += fake.fetches[i].bytes;
    assert_true(sum <= 8 << 20);
    for (int i = 0; i < N; i++)
        rec_close(&recs[i]);
}

static void a_paused_reader_asks_for_nothing(void **state)
{
    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    wal->ops->pause(rec.r);
    fake_deliver(&fake, 1, 1, 1, 8);
    fake_status(&fake, 0, "408 Request Timeout", "Nats-Pending-Bytes: 4000000\r\n");
    fake_say(&fake, "PING\r\n"); /* all before it has been handled when its answer is there */
    for (int i = 0; i < 100; i++)
        loop_once(loop, false);
    assert_true(rec.batches == 0 && fake.n_fetches == 1);
    wal->ops->resume(rec.r);
    WAIT_FOR(rec.last == 1 && fake.n_fetches == 2);
    rec_close(&rec);
}

static void a_consumer_that_may_have_expired_is_made_again(void **state)
{
    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    fake_deliver(&fake, 1, 1, 1, 8);
    WAIT_FOR(rec.last == 1);
    wal->ops->pause(rec.r);
    rec.r->fetched_ms -= 50000; /* so long ago */
    wal->ops->resume(rec.r);
    WAIT_FOR(fake.consumers == 2 && fake.deletes == 1);
    assert_non_null(strstr(fake.last_create, "\"opt_start_seq\":2"));
    fake_deliver(&fake, 2, 2, 1, 0);
    WAIT_FOR(rec.last == 2);
    assert_int_equal(rec.troubles, 0);
    rec_close(&rec);
}

/* Above its limit of memory a paused reader drops what comes, and reads it again later. */
static void paused_readers_hold_a_bounded_amount(void **state)
{
    char data[40001], reply[80];
    struct err err;

    (void)state;
    nats_close(wal);
    wal = nats_open(loop, &(struct nats_options){.address = fake.address, .fetch_bytes = 64 << 10}, &err);
    hold(1, 9);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    wal->ops->pause(rec.r);
    memset(data, 'x', sizeof(data) - 1);
    data[sizeof(data) - 1] = 0;
    for (int i = 1; i <= 3; i++) {
        snprintf(reply, sizeof(reply), "$JS.ACK.t.C1.1.%d.%d.17.%d", i, i, 9 - i);
        fake_msg(&fake, "t", reply, data);
    }
    WAIT_FOR(fake.deletes == 1);
    assert_int_equal(rec.batches, 0);
    wal->ops->resume(rec.r);
    WAIT_FOR(rec.count == 1 && fake.consumers == 2);
    assert_non_null(strstr(fake.last_create, "\"opt_start_seq\":2"));
    rec.bad = false; /* its content was not as on_batch() expects it */
    fake_deliver(&fake, 2, 2, 1, 7);
    WAIT_FOR(rec.last == 2);
    assert_int_equal(rec.troubles, 0);
    rec_close(&rec);
}

static void a_cut_in_the_middle_of_a_message(void **state)
{
    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    fake_deliver(&fake, 1, 1, 1, 8);
    fake_say(&fake, "MSG t 1 $JS.ACK.t.C1.1.2.2.17.7 50000\r\nt#2");
    WAIT_FOR(rec.last == 1);
    for (int i = 0; i < 20; i++)
        loop_once(loop, false);
    fake_cut(&fake);
    WAIT_FOR(fake.consumers == 2 && fake.n_fetches == 1);
    assert_non_null(strstr(fake.last_create, "\"opt_start_seq\":2"));
    fake_deliver(&fake, 2, 2, 1, 0);
    WAIT_FOR(rec.last == 2);
    assert_true(rec.count == 2 && rec.troubles == 0); /* over in less than a second */
    rec_close(&rec);
}

static void a_server_that_is_away(void **state)
{
    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    WAIT_FOR(fake.n_fetches == 1);
    fake_deliver(&fake, 1, 1, 1, 0);
    WAIT_FOR(rec.last == 1);
    fake_stop(&fake);
    WAIT_FOR(rec.troubles == 1);
    assert_true(rec.err.cls == ERRC_RETRY && strstr(rec.err.text, fake.address));
    fake_listen(&fake);
    WAIT_FOR(rec.overs == 1 && fake.n_fetches > 0);
    fake_deliver(&fake, 2, 2, 1, 0);
    WAIT_FOR(rec.last == 2);
    assert_int_equal(rec.troubles, 1);
    rec_close(&rec);
}

static void a_log_shorter_than_what_was_read_is_lost(void **state)
{
    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 9);
    WAIT_FOR(fake.n_fetches == 1);
    fake_deliver(&fake, 1, 9, 1, 0);
    WAIT_FOR(rec.last == 9);
    hold(1, 8);
    fake_cut(&fake);
    WAIT_FOR(rec.troubles == 1);
    assert_true(rec.err.cls == ERRC_LOST && strstr(rec.err.text, "1 to 8"));
    rec_close(&rec);
}

static void closing_inside_a_callback(void **state)
{
    struct rec other;

    (void)state;
    hold(1, 9);
    rec_open(&rec, "t", 0);
    rec.close_itself = true;
    WAIT_FOR(fake.n_fetches == 1);
    fake_deliver(&fake, 1, 1, 1, 8);
    fake_deliver(&fake, 1, 2, 2, 7);
    WAIT_FOR(rec.batches == 1 && fake.deletes == 1);
    fake_deliver(&fake, 1, 3, 3, 6); /* late */
    rec_open(&other, "t", 0);
    other.close_port = true;
    WAIT_FOR(fake.consumers == 2);
    fake_deliver(&fake, 2, 1, 1, 8);
    WAIT_FOR(!wal);
    assert_true(rec.batches == 1 && other.batches == 1 && !rec.bad && !other.bad);
}

struct answer {
    unsigned done;
    bool failed, found;
    struct err err;
    struct wal_pos last;
};

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct answer *a = arg;

    a->done++;
    a->failed = err != NULL;
    a->found = found;
    a->last = last;
    if (err)
        a->err = *err;
}

static void the_end(void **state)
{
    struct answer a = {0}, b = {0}, c = {0}, d = {0};

    (void)state;
    hold(3, 9);
    wal->ops->end(wal, "t", on_end, &a);
    wal->ops->end(wal, "t", on_end, &b);
    wal->ops->end_cancel(wal, &b);
    WAIT_FOR(a.done);
    assert_true(!a.failed && a.found && a.last.minor == 9 && b.done == 0);
    fake.messages = 0; /* all removed */
    fake.first = 10;
    wal->ops->end(wal, "t", on_end, &c);
    WAIT_FOR(c.done);
    assert_true(!c.failed && !c.found && wal_pos_is_none(c.last));
    fake_stop(&fake);
    wal->ops->end(wal, "t", on_end, &d);
    WAIT_FOR(d.done);
    assert_true(d.failed && d.err.cls == ERRC_RETRY);
    wal->ops->end(wal, "t", on_end, &b); /* dropped by close */
}

static void no_legal_name(void **state)
{
    (void)state;
    rec_open(&rec, "a b", 0);
    WAIT_FOR(rec.troubles == 1);
    assert_true(rec.err.cls == ERRC_USER && rec.err.code == ERR_INVALID);
    rec_close(&rec);
}

/* ---- the connection alone, with shorter times ----------------------------------------------- */

static struct err down;
static unsigned n_up, n_down;

static void count_up(void *arg)
{
    (void)arg;
    n_up++;
}
static void ignore_msg(void *arg, const struct nats_op *msg)
{
    (void)arg;
    (void)msg;
}
static void ignore_text(void *arg, const char *text)
{
    (void)arg;
    (void)text;
}
static void note_down(void *arg, const struct err *err)
{
    (void)arg;
    n_down++;
    down = *err;
}

static void silence_ends_a_connection(void **state)
{
    static const struct nats_conn_events ev = {count_up, ignore_msg, ignore_text, note_down};
    struct nats_server server = {.host = (char[]){"127.0.0.1"}};
    struct nats_login login = {0};
    struct nats_conn_options o = {&server, &login, NULL, 200, 60};
    struct nats_conn *c;

    (void)state;
    n_up = n_down = 0;
    sscanf(fake.address, "127.0.0.1:%hu", &server.port);
    c = nats_conn_open(loop, &o, &ev, NULL);
    WAIT_FOR(n_up == 1 && fake.pings >= 4); /* answered: it lives on */
    assert_int_equal(n_down, 0);
    fake.mute = true;
    WAIT_FOR(n_down == 1);
    assert_true(down.code == ERR_TIMEOUT && strstr(down.text, "ping"));
    nats_conn_close(c);
    fake.greet = "";
    c = nats_conn_open(loop, &o, &ev, NULL);
    WAIT_FOR(n_down == 2);
    assert_true(down.code == ERR_TIMEOUT && strstr(down.text, "INFO"));
    nats_conn_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parser_takes_what_servers_send),
        cmocka_unit_test(parser_refuses_what_is_wrong),
        cmocka_unit_test(parser_bounds_lines),
        cmocka_unit_test(corpus_and_mutations),
        cmocka_unit_test(statuses),
        cmocka_unit_test(ack_subjects),
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(wrong_settings_are_named),
        T(message_ids),
        T(connects_as_it_should),
        T(errors_of_the_server),
        T(other_errors_of_the_server),
        T(tls_is_demanded),
        T(tls_is_never_given_up),
        T(what_is_no_nats_server),
        T(no_jetstream),
        T(a_hole_in_the_stream_is_lost),
        T(a_start_inside_a_hole_is_lost),
        T(a_heartbeat_tells_of_a_purge),
        T(a_message_lost_on_the_way_is_read_again),
        T(a_consumer_that_ends_is_made_again),
        T(a_fetch_that_is_too_small_grows),
        T(fetches_overlap_and_expire),
        T(the_budget_is_kept),
        T(a_paused_reader_asks_for_nothing),
        T(a_consumer_that_may_have_expired_is_made_again),
        T(paused_readers_hold_a_bounded_amount),
        T(a_cut_in_the_middle_of_a_message),
        T(a_server_that_is_away),
        T(a_log_shorter_than_what_was_read_is_lost),
        T(closing_inside_a_callback),
        T(the_end),
        T(no_legal_name),
        T(silence_ends_a_connection),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
