/* gRPC client against a scripted HTTP/2 server in the same loop, and against a real etcd. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/fence.h"
#include "base/err.h"
#include "base/log.h"
#include "h2peer.h"
#include "net/grpc.h"
#include "net/grpc_priv.h"
#include "net/outq_priv.h"

#include <event2/dns.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ERR_STATE openssl_ERR_STATE
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#undef ERR_STATE

enum { LIMIT_MS = 60000 };

struct fixture {
    struct loop *loop;
    struct peer peer;
    struct grpc_client *client;
    struct timer limit;
};

static void on_limit(void *arg)
{
    (void)arg;
    fprintf(stderr, "a condition did not come true in %d ms\n", LIMIT_MS);
    abort();
}

#define WAIT(f, cond)                                                                             \
    do {                                                                                          \
        while (!(cond))                                                                           \
            loop_once((f)->loop, true);                                                           \
    } while (0)

static struct grpc_client *new_client(struct fixture *f, struct grpc_options o)
{
    struct err err;
    struct grpc_client *c;

    o.port = o.port ? o.port : f->peer.port;
    o.host = o.host ? o.host : "127.0.0.1";
    o.log_name = "test";
    c = grpc_client_new(f->loop, &o, &err);
    if (!c)
        fail_msg("%s", err.text);
    return c;
}

static int setup(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));

    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    f->loop = loop_new();
    timer_init(&f->limit, f->loop, LOOP_PRIO_HIGH, on_limit, f);
    timer_set(&f->limit, LIMIT_MS);
    peer_init(&f->peer, f->loop);
    f->client = new_client(f, (struct grpc_options){0});
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    grpc_client_close(f->client);
    peer_release(&f->peer);
    timer_release(&f->limit);
    loop_free(f->loop);
    free(f);
    return 0;
}

/* ---- calls */

struct outcome {
    struct fixture *f;
    struct grpc_call *call;
    unsigned done, messages;
    int status;
    bool maybe_sent;
    char message[600];
    size_t len;
    uint32_t crc;
    uint8_t head[64];
    uint8_t last[64]; /* last message of a stream */
    size_t last_len;
};

static void on_done(void *arg, const struct grpc_result *r)
{
    struct outcome *o = arg;

    o->done++;
    o->call = NULL;
    o->status = r->status;
    o->maybe_sent = r->maybe_sent;
    snprintf(o->message, sizeof(o->message), "%s", r->message);
    o->len = r->body_len;
    assert_true((r->status == 0) || !r->body);
    if (r->body) {
        o->crc = crc_add(0, r->body, r->body_len);
        memcpy(o->head, r->body, r->body_len < sizeof(o->head) ? r->body_len : sizeof(o->head));
    }
}

static struct outcome unary_on(struct grpc_client *c, struct outcome *o, const char *path,
                               const char *text, unsigned ms)
{
    struct evbuffer *b = evbuffer_new();

    *o = (struct outcome){0};
    evbuffer_add(b, text, strlen(text));
    o->call = grpc_unary(c, path, NULL, b, ms, on_done, o);
    assert_int_equal(evbuffer_get_length(b), 0);
    evbuffer_free(b);
    assert_int_equal(o->done, 0);
    return *o;
}

static void unary(struct fixture *f, struct outcome *o, const char *path, const char *text)
{
    unary_on(f->client, o, path, text, 30000);
}

static void run(struct fixture *f, struct outcome *o, const char *path, const char *text)
{
    unary(f, o, path, text);
    WAIT(f, o->done);
    assert_int_equal(o->done, 1);
}

static void on_message(void *arg, const uint8_t *data, size_t len)
{
    struct outcome *o = arg;

    o->messages++;
    o->last_len = len;
    memcpy(o->last, data, len < sizeof(o->last) ? len : sizeof(o->last));
}

static void send_text(struct grpc_call *call, const char *text)
{
    struct evbuffer *b = evbuffer_new();

    evbuffer_add(b, text, strlen(text));
    grpc_stream_send(call, b);
    evbuffer_free(b);
}

/* ---- the peer's script */

static void page(struct peer_stream *s, const char *http)
{
    peer_headers(s, http, "text/html", NULL, NULL, false);
    peer_body(s, "<html>", 6);
    peer_end(s, NULL, NULL);
}

static void answer(struct peer_stream *s, const char *body, size_t len, const char *status)
{
    peer_headers(s, "200", "application/grpc", NULL, NULL, false);
    peer_body(s, body, len);
    peer_end(s, status, NULL);
}

static struct peer_stream last_seen; /* copy for header checks */

static void goaway(struct peer_stream *s, int32_t last)
{
    nghttp2_submit_goaway(s->conn->session, 0, last, NGHTTP2_NO_ERROR, (const uint8_t *)"bye", 3);
    timer_set(&s->conn->kick, 0);
}

static void peer_on_request(struct peer_stream *s, bool ended)
{
    struct peer_conn *c = s->conn;

    if (!ended) {
        last_seen = *s;
        if (peer_is(s, "/t/CutAtHeaders"))
            peer_cut(c);
        else if (peer_is(s, "/t/Refuse"))
            nghttp2_submit_rst_stream(c->session, 0, s->id, NGHTTP2_REFUSED_STREAM);
        else if (peer_is(s, "/t/Early"))
            peer_headers(s, "200", "application/grpc", "8", "too%20big", true);
        else if (peer_is(s, "/t/GoAwayAbove"))
            goaway(s, s->id - 2);
        else if (peer_is(s, "/t/GoAwayThis"))
            goaway(s, s->id);
        return;
    }
    if (peer_is(s, "/t/TrailersOnly"))
        peer_headers(s, "200", "application/grpc", "5", "no %22db%22 %e2%82%ac %zz", true);
    else if (peer_is(s, "/t/Trailers"))
        answer(s, "", 0, "16");
    else if (peer_is(s, "/t/BadStatus"))
        answer(s, "", 0, "abc");
    else if (peer_is(s, "/t/Http503"))
        page(s, "503");
    else if (peer_is(s, "/t/Http404"))
        page(s, "404");
    else if (peer_is(s, "/t/Page"))
        page(s, "200");
    else if (peer_is(s, "/t/NoTrailers"))
        answer(s, "\0\0\0\0\2hi", 7, NULL);
    else if (peer_is(s, "/t/Compressed"))
        answer(s, "\1\0\0\0\2hi", 7, "0");
    else if (peer_is(s, "/t/Two"))
        answer(s, "\0\0\0\0\1h\0\0\0\0\1i", 12, "0");
    else if (peer_is(s, "/t/None"))
        answer(s, "", 0, "0");
    else if (peer_is(s, "/t/Empty"))
        answer(s, "\0\0\0\0\0", 5, "0");
    else if (peer_is(s, "/t/Truncated"))
        answer(s, "\0\0\0\0\3hi", 7, "0");
    else if (peer_is(s, "/t/Huge"))
        answer(s, "\0\377\377\377\377", 5, "0");
    else if (peer_is(s, "/t/ResetCancel"))
        nghttp2_submit_rst_stream(c->session, 0, s->id, NGHTTP2_CANCEL);
    else if (peer_is(s, "/t/StatusOnly"))
        peer_headers(s, "200", "application/grpc", "7", "not%20yours", false);
    else if (peer_is(s, "/t/HeadersOnly"))
        peer_headers(s, "200", "application/grpc", NULL, NULL, false);
    else if (peer_is(s, "/t/GoAwayThis"))
        answer(s, "\0\0\0\0\2ok", 7, "0");
}

SSL *peer_tls_accept(SSL_CTX *ctx)
{
    return SSL_new(ctx);
}

/* ---- tests: answers */

static void test_echo_and_headers(void **state)
{
    struct fixture *f = *state;
    const struct grpc_header headers[] = {{"dbname", "mine"}, {NULL, NULL}};
    struct outcome o = {0};
    struct evbuffer *b = evbuffer_new();

    grpc_client_set_header(f->client, "authorization", "abc");
    grpc_client_set_header(f->client, "dbname", "default");
    evbuffer_add(b, "hello", 5);
    grpc_unary(f->client, "/p/Echo", headers, b, 5000, on_done, &o);
    evbuffer_free(b);
    assert_int_equal(grpc_client_generation(f->client), 0);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    assert_int_equal(o.len, 5);
    assert_memory_equal(o.head, "hello", 5);
    assert_true(o.maybe_sent);
    assert_string_equal(last_seen.content_type, "application/grpc");
    assert_string_equal(last_seen.te, "trailers");
    assert_string_equal(last_seen.agent, "milvus-cdc/" MILVUS_CDC_VERSION);
    assert_string_equal(last_seen.auth, "abc");
    assert_string_equal(last_seen.extra, "mine");
    assert_in_range(atoi(last_seen.timeout), 1, 5000);
    assert_int_equal(last_seen.timeout[strlen(last_seen.timeout) - 1], 'm');
    assert_int_equal(grpc_client_generation(f->client), 1);
    assert_null(grpc_client_trouble(f->client));

    grpc_client_set_header(f->client, "authorization", NULL);
    run(f, &o, "/p/Echo", "");
    assert_int_equal(o.status, 0);
    assert_int_equal(o.len, 0);
    assert_string_equal(last_seen.auth, "");
    assert_string_equal(last_seen.extra, "default");
    assert_int_equal(f->peer.accepted, 1);
    assert_int_equal(f->peer.resets, 0); /* a call that ended well is not reset */
}

static const struct {
    const char *path;
    int status;
    const char *part; /* of the message */
} answers[] = {
    {"/t/TrailersOnly", 5, "no \"db\" \xe2\x82\xac %zz"},
    {"/t/Trailers", 16, ""},
    {"/t/BadStatus", 2, ""},
    {"/t/Http503", 14, "503"},
    {"/t/Http404", 12, "404"},
    {"/t/Page", 2, "content-type"},
    {"/t/NoTrailers", 13, "without grpc-status"},
    {"/t/Compressed", 13, "compressed"},
    {"/t/Two", 13, "more than one"},
    {"/t/None", 13, "no message"},
    {"/t/Empty", 0, ""},
    {"/t/Truncated", 13, "inside a message"},
    {"/t/Huge", 8, "limit"},
    {"/t/ResetCancel", 1, "CANCEL"},
};

static void check_answers(struct fixture *f)
{
    struct outcome o;

    for (size_t i = 0; i < sizeof(answers) / sizeof(*answers); i++) {
        run(f, &o, answers[i].path, "x");
        if (o.status != answers[i].status || !strstr(o.message, answers[i].part))
            fail_msg("%s: %d %s", answers[i].path, o.status, o.message);
        assert_true(o.maybe_sent);
    }
    assert_int_equal(f->peer.accepted, 1);
}

static void test_answers(void **state)
{
    check_answers(*state);
}

static void test_answers_byte_by_byte(void **state)
{
    struct fixture *f = *state;
    struct outcome o;

    f->peer.drip_all = true;
    run(f, &o, "/p/Echo", "split at every byte");
    assert_int_equal(o.status, 0);
    assert_memory_equal(o.head, "split at every byte", 19);
    check_answers(f);
}

static void test_answer_limit(void **state)
{
    struct fixture *f = *state;
    struct grpc_client *c = new_client(f, (struct grpc_options){.max_recv_bytes = 10});
    struct outcome o;
    struct err err;
    struct grpc_result r;

    unary_on(c, &o, "/p/Echo", "0123456789", 30000);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    unary_on(c, &o, "/p/Echo", "0123456789a", 30000);
    WAIT(f, o.done);
    assert_int_equal(o.status, 8);
    r = (struct grpc_result){.status = o.status, .message = o.message};
    assert_int_equal(grpc_result_err(&r, "echo", &err), ERR_LIMIT);
    for (size_t limit = 11; limit >= 10; limit--) { /* of one call */
        unary_on(c, &o, "/p/Echo", "0123456789a", 30000);
        grpc_call_limit(o.call, limit);
        WAIT(f, o.done);
        assert_int_equal(o.status, limit == 11 ? 0 : 8);
    }
    grpc_client_close(c);
}

static void on_taken(void *arg, const struct grpc_result *r)
{
    *(struct buf **)arg = grpc_result_take(r);
}

/* Empty or not, it outlives the call. */
static void test_an_answer_that_is_kept(void **state)
{
    char *large = xmalloc(3000001);
    const char *const texts[] = {"0123456789", "", large};
    struct fixture *f = *state;

    for (int i = 0; i < 3000000; i++)
        large[i] = (char)('a' + i % 23);
    large[3000000] = '\0';
    for (int i = 0; i < 3; i++) {
        struct evbuffer *b = evbuffer_new();
        struct buf *taken = NULL;

        evbuffer_add(b, texts[i], strlen(texts[i]));
        grpc_unary(f->client, "/p/Echo", NULL, b, 30000, on_taken, &taken);
        evbuffer_free(b);
        WAIT(f, taken);
        assert_int_equal(taken->size, strlen(texts[i]));
        assert_true(!taken->size || memcmp(taken->data, texts[i], taken->size) == 0);
        buf_unref(taken);
    }
    free(large);
}

static void test_early_answer_to_a_big_body(void **state)
{
    struct fixture *f = *state;
    char *big = xmalloc(1000001);
    struct outcome o;

    memset(big, 'x', 1000000);
    big[1000000] = '\0';
    run(f, &o, "/t/Early", big);
    assert_int_equal(o.status, 8);
    assert_string_equal(o.message, "too big");
    run(f, &o, "/p/Echo", "next");
    assert_int_equal(o.status, 0);
    assert_int_equal(f->peer.accepted, 1);
    free(big);
}

/* ---- tests: size and flow control */

static void on_released(const void *data, size_t len, void *arg)
{
    (void)data;
    (void)len;
    ++*(unsigned *)arg;
}

static uint8_t *pattern(size_t len)
{
    uint8_t *p = xmalloc(len);

    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)(i * 2654435761u >> 13);
    return p;
}

static void test_outq_refers_and_does_not_copy(void **state)
{
    enum { SIZE = 100000, STEP = 16384 };
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct evbuffer *body = evbuffer_new(), *out = evbuffer_new();
    struct evbuffer_iovec v[16];
    struct outq q;
    int n, inside = 0;

    (void)state;
    outq_init(&q);
    evbuffer_add_reference(body, p, SIZE, on_released, &released);
    outq_add(&q, "head!", 5, body);
    assert_int_equal(q.bytes, SIZE + 5);
    assert_int_equal(outq_move(&q, out, STEP), 0);
    assert_int_equal(outq_move(&q, out, STEP), 0);
    outq_release(&q); /* pieces under way keep the memory */
    assert_int_equal(released, 0);
    n = evbuffer_peek(out, -1, NULL, v, 16);
    assert_in_range(n, 3, 16);
    for (int i = 0; i < n; i++)
        inside += (uint8_t *)v[i].iov_base >= p && (uint8_t *)v[i].iov_base < p + SIZE;
    assert_int_equal(inside, 2);
    assert_memory_equal(evbuffer_pullup(out, 5), "head!", 5);
    evbuffer_drain(out, 5);
    assert_memory_equal(evbuffer_pullup(out, -1), p, 2 * STEP - 5);
    evbuffer_drain(out, 2 * STEP);
    assert_int_equal(released, 1);
    evbuffer_free(body);
    evbuffer_free(out);
    free(p);
}

/* Pieces of all sizes, moved in steps of all sizes, come out as one. */
static void test_outq_of_many_pieces(void **state)
{
    enum { SIZE = 200000 };
    uint8_t *p = pattern(SIZE);

    (void)state;
    for (size_t step = 1; step < 40000; step = step * 3 + 1) {
        struct evbuffer *body = evbuffer_new(), *out = evbuffer_new();
        struct outq q;

        outq_init(&q);
        for (size_t at = 0, n = 1; at < SIZE; at += n, n = n * 7 % 5000 + 1) {
            if (n > SIZE - at)
                n = SIZE - at;
            evbuffer_add_reference(body, p + at, n, NULL, NULL);
            if (n % 5 == 0)
                outq_add(&q, "", 0, body);
        }
        outq_add(&q, "", 0, body);
        assert_int_equal(q.bytes, SIZE);
        while (q.bytes)
            assert_int_equal(outq_move(&q, out, step < q.bytes ? step : q.bytes), 0);
        assert_int_equal(evbuffer_get_length(out), SIZE);
        assert_memory_equal(evbuffer_pullup(out, -1), p, SIZE);
        outq_release(&q);
        evbuffer_free(body);
        evbuffer_free(out);
    }
    free(p);
}

static void send_big(struct fixture *f, struct outcome *o, const char *path, uint8_t *p, size_t len,
                     unsigned *released)
{
    struct evbuffer *b = evbuffer_new();

    *o = (struct outcome){0};
    evbuffer_add_reference(b, p, len / 2, on_released, released);
    evbuffer_add_reference(b, p + len / 2, len - len / 2, on_released, released);
    o->call = grpc_unary(f->client, path, NULL, b, 60000, on_done, o);
    evbuffer_free(b);
}

static void test_64_mib_request(void **state)
{
    enum { SIZE = 64 << 20 };
    struct fixture *f = *state;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome o;
    uint64_t size;
    uint32_t crc;

    send_big(f, &o, "/p/Size", p, SIZE, &released);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    memcpy(&size, o.head, 8);
    memcpy(&crc, o.head + 8, 4);
    assert_int_equal(size, SIZE);
    assert_int_equal(crc, crc_add(0, p, SIZE));
    assert_int_equal(released, 2);
    free(p);
}

/* Larger than our windows, several at once: they must be opened again in both directions. */
static void test_concurrent_echo_above_the_windows(void **state)
{
    enum { SIZE = 10 << 20, N = 3 };
    struct fixture *f = *state;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome o[N];

    for (int i = 0; i < N; i++)
        send_big(f, &o[i], "/p/Echo", p, SIZE - (size_t)i, &released);
    for (int i = 0; i < N; i++) {
        WAIT(f, o[i].done);
        assert_int_equal(o[i].status, 0);
        assert_int_equal(o[i].len, SIZE - i);
        assert_int_equal(o[i].crc, crc_add(0, p, SIZE - (size_t)i));
    }
    assert_int_equal(f->peer.most_open, N);
    free(p);
}

/* Each is there as early as can be, and a small one need not wait for them. */
static void test_large_requests_go_one_after_the_other(void **state)
{
    enum { SIZE = 8 << 20, N = 3 };
    struct fixture *f = *state;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome o[N], small;
    const struct peer_stream *s;
    size_t ahead = 0;

    f->peer.window = SIZE;
    for (int i = 0; i < N; i++)
        send_big(f, &o[i], "/p/Size", p, SIZE, &released);
    unary(f, &small, "/p/Echo", "x");
    WAIT(f, small.done);
    assert_int_equal(f->peer.complete, 1);
    for (int i = 0; i < N; i++) {
        WAIT(f, o[i].done);
        assert_int_equal(o[i].status, 0);
        assert_true(i == N - 1 || !o[i + 1].done);
        LIST_FOREACH (s, &LIST_FIRST(&f->peer.conns)->streams, next)
            ahead = s->in_bytes > ahead && !s->ended ? s->in_bytes : ahead;
        assert_true(ahead < SIZE / 2);
    }
    free(p);
}

static void test_small_windows_of_the_peer(void **state)
{
    enum { SIZE = 30000 };
    struct fixture *f = *state;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome o;

    f->peer.window = 7;
    send_big(f, &o, "/p/Echo", p, SIZE, &released);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    assert_int_equal(o.crc, crc_add(0, p, SIZE));
    free(p);
}

/* The output is full, a frame waits for room, its call is cancelled: the connection works on. */
static void test_cancel_while_the_peer_does_not_read(void **state)
{
    enum { SIZE = 64 << 20 };
    struct fixture *f = *state;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome big, o;

    f->peer.window = 1 << 30;
    run(f, &o, "/p/Echo", "warm");
    send_big(f, &big, "/p/Hang", p, SIZE, &released);
    WAIT(f, f->peer.requests == 2);
    bufferevent_disable(LIST_FIRST(&f->peer.conns)->bev, EV_READ);
    for (int i = 0; i < 1000; i++)
        loop_once(f->loop, false);
    grpc_call_cancel(big.call);
    unary(f, &o, "/p/Echo", "after");
    for (int i = 0; i < 100; i++)
        loop_once(f->loop, false);
    assert_int_equal(o.done, 0);
    bufferevent_enable(LIST_FIRST(&f->peer.conns)->bev, EV_READ);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    assert_int_equal(big.done, 0);
    assert_int_equal(released, 2);
    assert_true(f->peer.last_fed == 0 && f->peer.accepted == 1);
    free(p);
}

static void turns(struct fixture *f, int n)
{
    while (n--)
        loop_once(f->loop, false);
}

/* Uploads to a peer that stops reading, until nothing more leaves and the output is full. */
static void stall(struct fixture *f, struct outcome *big, struct outcome *filler, uint8_t *p,
                  size_t size, unsigned *released)
{
    struct outcome o;

    f->peer.window = 1 << 30;
    run(f, &o, "/p/Echo", "warm");
    send_big(f, big, "/p/Hang", p, size, released);
    WAIT(f, f->peer.requests == 2);
    bufferevent_disable(LIST_FIRST(&f->peer.conns)->bev, EV_READ);
    turns(f, 1000);
    unary(f, filler, "/p/Hang", "x"); /* fills what the kernel still took, up to the high mark */
    turns(f, 100);
}

/* A lease that has run out: what waits does not leave any more, and nothing new does until it is held again. */
static void test_a_closed_fence(void **state)
{
    enum { SIZE = 64 << 20 };
    struct fixture *f = *state;
    struct fence fence = {.until_ms = FENCE_NEVER};
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome big, filler, o;

    grpc_client_close(f->client);
    f->client = new_client(f, (struct grpc_options){.fence = &fence});
    stall(f, &big, &filler, p, SIZE, &released);
    fence.until_ms = clock_boot_ms();
    unary(f, &o, "/p/Echo", "late");
    grpc_client_cut(f->client, "the lease has run out");
    WAIT(f, big.done && filler.done && o.done);
    assert_int_equal(big.status, 14);
    assert_true(big.maybe_sent);
    assert_int_equal(o.status, 14);
    assert_false(o.maybe_sent);
    bufferevent_enable(LIST_FIRST(&f->peer.conns)->bev, EV_READ);
    WAIT(f, LIST_EMPTY(&f->peer.conns)); /* reset: a part of the request is all that came */
    run(f, &o, "/p/Echo", "still closed");
    assert_int_equal(o.status, 14);
    assert_non_null(strstr(o.message, "lease"));
    assert_int_equal(f->peer.requests, 2);
    assert_int_equal(f->peer.complete, 1);
    fence.until_ms = clock_boot_ms() + 60000;
    run(f, &o, "/p/Echo", "open again");
    assert_int_equal(o.status, 0);
    free(p);
    grpc_client_close(f->client); /* before the fence */
    f->client = NULL;
}

/* Nobody called cut(): the next write finds the fence closed. */
static void test_fence_closes_under_a_request(void **state)
{
    enum { SIZE = 64 << 20 };
    struct fixture *f = *state;
    struct fence fence = {.until_ms = FENCE_NEVER};
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome big;

    grpc_client_close(f->client);
    f->client = new_client(f, (struct grpc_options){.fence = &fence});
    send_big(f, &big, "/p/Echo", p, SIZE, &released);
    WAIT(f, f->peer.requests == 1);
    fence.until_ms = 0;
    WAIT(f, big.done);
    assert_int_equal(big.status, 14);
    assert_true(big.maybe_sent);
    WAIT(f, LIST_EMPTY(&f->peer.conns));
    assert_int_equal(f->peer.complete, 0);
    free(p);
    grpc_client_close(f->client);
    f->client = NULL;
}

/* Its HEADERS waited behind the full output: that is not "sent", the next connection gets it. */
static void test_unsent_call_survives_a_lost_connection(void **state)
{
    enum { SIZE = 64 << 20 };
    struct fixture *f = *state;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome big, filler, o[3];

    stall(f, &big, &filler, p, SIZE, &released);
    for (int i = 0; i < 3; i++)
        unary(f, &o[i], "/p/Echo", "unsent");
    turns(f, 100);
    peer_cut_all(&f->peer);
    WAIT(f, big.done);
    assert_int_equal(big.status, 14);
    assert_true(big.maybe_sent && filler.maybe_sent);
    for (int i = 0; i < 3; i++) {
        WAIT(f, o[i].done);
        assert_string_equal(o[i].message, "");
        assert_int_equal(o[i].status, 0);
    }
    assert_int_equal(f->peer.requests, 5); /* warm, big and these */
    free(p);
}

static void test_unsent_call_survives_goaway(void **state)
{
    enum { SIZE = 64 << 20 };
    struct fixture *f = *state;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome big, filler, o;
    struct peer_conn *old;

    stall(f, &big, &filler, p, SIZE, &released);
    unary(f, &o, "/p/Echo", "unsent");
    turns(f, 100);
    old = LIST_FIRST(&f->peer.conns);
    goaway(LIST_FIRST(&old->streams), LIST_FIRST(&old->streams)->id); /* big's; filler is above */
    turns(f, 100);
    bufferevent_enable(old->bev, EV_READ);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    assert_int_equal(f->peer.accepted, 2);
    assert_int_equal(f->peer.requests, 3);
    assert_int_equal(filler.status, 14);
    assert_false(filler.maybe_sent); /* although it was written */
    WAIT(f, released == 2); /* the old one still takes the rest */
    assert_int_equal(big.done, 0);
    grpc_client_close(f->client); /* with one that drains */
    f->client = NULL;
    free(p);
}

/*
 * Deadlines hit calls on both sides of the edge of what was sent, and the one whose HEADERS nghttp2
 * holds ready: the peer may later see exactly those that said maybe_sent.  The stream fills the
 * output in small steps, so that it is a call's HEADERS that finds it full.
 */
struct edge {
    unsigned open, maybe, unsent;
};

static void on_edge_done(void *arg, const struct grpc_result *r)
{
    struct edge *e = arg;

    assert_int_equal(r->status, 4);
    e->open--;
    e->maybe += r->maybe_sent;
    e->unsent += !r->maybe_sent;
}

static void test_maybe_sent_at_the_edge(void **state)
{
    enum { SIZE = 16000, EDGE = 30 };
    struct fixture *f = *state;
    struct edge e = {0};
    struct outcome fill = {0}, after;
    struct evbuffer *empty = evbuffer_new();
    char *text = xmalloc(SIZE + 1);

    memset(text, 'x', SIZE);
    text[SIZE] = '\0';
    f->peer.window = 1 << 30;
    run(f, &after, "/p/Echo", "warm");
    fill.call = grpc_stream(f->client, "/p/Hang", NULL, on_message, on_done, &fill);
    WAIT(f, f->peer.requests == 2);
    bufferevent_disable(LIST_FIRST(&f->peer.conns)->bev, EV_READ);
    while (e.unsent < EDGE) { /* how much the kernel takes differs */
        send_text(fill.call, text);
        turns(f, 4);
        grpc_unary(f->client, "/p/Hang", NULL, empty, 20, on_edge_done, &e);
        e.open++;
        turns(f, 4);
    }
    WAIT(f, e.open == 0);
    assert_true(e.maybe >= EDGE);
    bufferevent_enable(LIST_FIRST(&f->peer.conns)->bev, EV_READ);
    run(f, &after, "/p/Echo", "after");
    assert_int_equal(after.status, 0);
    assert_int_equal(f->peer.accepted, 1);
    assert_int_equal(f->peer.requests, e.maybe + 3);
    grpc_call_cancel(fill.call);
    evbuffer_free(empty);
    free(text);
}

static void test_peer_raises_its_limit(void **state)
{
    struct fixture *f = *state;
    const nghttp2_settings_entry more = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 10};
    struct outcome hang, o;
    struct peer_conn *pc;

    f->peer.max_streams = 1;
    unary(f, &hang, "/p/Hang", "x");
    WAIT(f, f->peer.requests == 1);
    unary(f, &o, "/p/Echo", "x");
    turns(f, 50);
    assert_int_equal(f->peer.requests, 1);
    pc = LIST_FIRST(&f->peer.conns);
    nghttp2_submit_settings(pc->session, 0, &more, 1);
    timer_set(&pc->kick, 0);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
}

static void test_streams_wait_for_the_peers_limit(void **state)
{
    enum { N = 20 };
    struct fixture *f = *state;
    struct outcome o[N];

    f->peer.max_streams = 1;
    for (int i = 0; i < N; i++)
        unary(f, &o[i], "/p/Echo", "one at a time");
    for (int i = 0; i < N; i++) {
        WAIT(f, o[i].done);
        assert_int_equal(o[i].status, 0);
        for (int k = i + 1; k < N; k++)
            assert_true(!o[k].done || o[i].done); /* in the order of the calls */
    }
    assert_int_equal(f->peer.most_open, 1);
    assert_int_equal(f->peer.requests, N);
}

static void test_deadline_while_waiting_for_a_stream(void **state)
{
    struct fixture *f = *state;
    struct outcome hang, o;

    f->peer.max_streams = 1;
    unary(f, &hang, "/p/Hang", "x");
    WAIT(f, f->peer.requests == 1);
    unary_on(f->client, &o, "/p/Echo", "x", 50);
    WAIT(f, o.done);
    assert_int_equal(o.status, 4);
    assert_false(o.maybe_sent);
    assert_non_null(strstr(o.message, "no free stream"));
    unary(f, &o, "/p/Echo", "x");
    grpc_call_cancel(hang.call); /* makes room */
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
}

/* ---- tests: deadlines and trouble */

static void test_deadline(void **state)
{
    struct fixture *f = *state;
    struct outcome o;
    uint64_t start = clock_mono_ms();

    unary_on(f->client, &o, "/p/Hang", "x", 100);
    WAIT(f, o.done);
    assert_int_equal(o.status, 4);
    assert_true(o.maybe_sent);
    assert_true(clock_mono_ms() - start >= 100);
    WAIT(f, f->peer.resets == 1);
    unary_on(f->client, &o, "/t/HeadersOnly", "x", 100);
    WAIT(f, o.done);
    assert_int_equal(o.status, 4);
    assert_int_equal(f->peer.accepted, 1);
}

static void test_nobody_listens(void **state)
{
    struct fixture *f = *state;
    struct outcome o;

    peer_deafen(&f->peer);
    unary_on(f->client, &o, "/p/Echo", "x", 400);
    WAIT(f, grpc_client_trouble(f->client));
    assert_non_null(strstr(grpc_client_trouble(f->client), "Connection refused"));
    assert_int_equal(o.done, 0);
    WAIT(f, o.done);
    assert_int_equal(o.status, 4);
    assert_false(o.maybe_sent);
    assert_non_null(strstr(o.message, "Connection refused"));

    unary(f, &o, "/p/Echo", "later"); /* waits for the server */
    for (int i = 0; i < 10; i++)
        loop_once(f->loop, true);
    assert_int_equal(o.done, 0);
    peer_listen(&f->peer);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    assert_null(grpc_client_trouble(f->client));
}

/* A target that is away is told at once, not after the deadline of a call that waits for it. */
static void test_nobody_listens_and_nobody_waits(void **state)
{
    struct fixture *f = *state;
    struct grpc_client *c = new_client(f, (struct grpc_options){.fail_fast = true});
    struct outcome o;

    peer_deafen(&f->peer);
    for (int i = 0; i < 2; i++) {
        unary_on(c, &o, "/p/Echo", "x", 10 * LIMIT_MS);
        WAIT(f, o.done);
        assert_int_equal(o.status, 14);
        assert_false(o.maybe_sent);
        assert_non_null(strstr(o.message, "Connection refused"));
    }
    peer_listen(&f->peer);
    do {
        unary_on(c, &o, "/p/Echo", "x", 60000);
        WAIT(f, o.done);
    } while (o.status == 14);
    assert_int_equal(o.status, 0);
    grpc_client_close(c);
}

static void test_mute_server(void **state)
{
    struct fixture *f = *state;
    struct grpc_client *c = new_client(f, (struct grpc_options){.connect_timeout_ms = 50});
    struct outcome o;

    f->peer.mute = true;
    unary_on(c, &o, "/p/Echo", "x", 300);
    WAIT(f, o.done);
    assert_int_equal(o.status, 4);
    assert_false(o.maybe_sent);
    assert_non_null(strstr(o.message, "SETTINGS"));
    assert_true(f->peer.accepted >= 2);
    f->peer.mute = false;
    unary_on(c, &o, "/p/Echo", "x", 30000);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    grpc_client_close(c);
}

/* localhost is ::1 and 127.0.0.1 on most systems, the peer only listens on the second. */
static void test_names(void **state)
{
    struct fixture *f = *state;
    struct grpc_client *c = new_client(f, (struct grpc_options){.host = "localhost"});
    struct grpc_client *no = new_client(f, (struct grpc_options){.host = "no-such-host.invalid"});
    struct outcome o, bad;

    unary_on(c, &o, "/p/Echo", "x", 10000);
    unary_on(no, &bad, "/p/Echo", "x", 500);
    WAIT(f, o.done && bad.done);
    assert_int_equal(o.status, 0);
    assert_int_equal(bad.status, 4);
    assert_false(bad.maybe_sent);
    grpc_client_close(c);
    grpc_client_close(no);
}

/* A port of 127.0.0.2 that lets connects hang: its backlog is full. */
static void hole(uint16_t port, int fds[4])
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons(port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1)};

    for (int i = 0; i < 4; i++)
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(fds[0], (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(fds[0], 0), 0);
    for (int i = 1; i < 4; i++)
        (void)connect(fds[i], (struct sockaddr *)&a, sizeof(a)); /* in progress, or not */
}

static void test_each_address_of_a_name_is_tried(void **state)
{
    struct fixture *f = *state;
    char hosts[] = "/tmp/test_grpc_hosts.XXXXXX";
    FILE *out = fdopen(mkstemp(hosts), "w");
    struct grpc_client *c;
    struct outcome o;
    int fds[4];

    assert_non_null(out);
    fputs("127.0.0.2 two.test\n127.0.0.1 two.test\n", out);
    fclose(out);
    assert_int_equal(evdns_base_load_hosts(loop_dns(f->loop), hosts), 0);
    unlink(hosts);
    for (int hang = 0; hang < 2; hang++) { /* first: nobody listens there */
        if (hang)
            hole(f->peer.port, fds);
        c = new_client(f,
                       (struct grpc_options){.host = "two.test", .connect_timeout_ms = 1000});
        unary_on(c, &o, "/p/Echo", "x", 900); /* in the first attempt */
        WAIT(f, o.done);
        assert_string_equal(o.message, "");
        assert_int_equal(o.status, 0);
        grpc_client_close(c);
    }
    for (int i = 0; i < 4; i++)
        close(fds[i]);
}

static void test_server_that_is_not_http2(void **state)
{
    struct fixture *f = *state;
    struct outcome o;

    f->peer.raw = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    unary_on(f->client, &o, "/p/Echo", "x", 300);
    WAIT(f, o.done);
    assert_int_equal(o.status, 4);
    assert_false(o.maybe_sent);
    if (!strstr(o.message, "HTTP/2"))
        fail_msg("%s", o.message);
    f->peer.raw = NULL;
    run(f, &o, "/p/Echo", "x");
    assert_int_equal(o.status, 0);
}

/* A server that hangs up at once is not hammered: waits of 50 to 100 ms, doubled each time. */
static void test_tries_are_backed_off(void **state)
{
    struct fixture *f = *state;
    struct outcome o;

    f->peer.raw = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    f->peer.accepted = 0;
    unary_on(f->client, &o, "/p/Echo", "x", 1500);
    WAIT(f, o.done);
    assert_int_equal(o.status, 4);
    assert_in_range(f->peer.accepted, 3, 6); /* at 0, 50, 150, 350, 750, (1550) ms at the earliest */
    f->peer.raw = NULL;
    run(f, &o, "/p/Echo", "x"); /* and it comes back by itself */
    assert_int_equal(o.status, 0);
}

static void test_close_during_look_up_and_connect(void **state)
{
    struct fixture *f = *state;

    for (int turns = 0; turns < 12; turns++) {
        struct grpc_client *c = new_client(
            f, (struct grpc_options){.host = turns & 1 ? "no-such-host.invalid" : "127.0.0.1"});
        struct outcome o;

        unary_on(c, &o, "/p/Echo", "x", 5000);
        for (int i = 0; i < turns / 2; i++)
            loop_once(f->loop, false);
        grpc_client_close(c);
        loop_once(f->loop, false);
        assert_int_equal(o.done, 0);
    }
}

static void test_bad_options(void **state)
{
    struct fixture *f = *state;
    struct err err;
    struct grpc_options o = {.host = "", .port = 1};

    assert_null(grpc_client_new(f->loop, &o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    o = (struct grpc_options){.host = "h", .port = 1, .tls = true, .ca_path = "/nowhere.pem"};
    assert_null(grpc_client_new(f->loop, &o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.text, "/nowhere.pem"));
    o = (struct grpc_options){.host = "h", .port = 1, .tls = true, .key_path = "/dev/null"};
    assert_null(grpc_client_new(f->loop, &o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    o = (struct grpc_options){.host = "h", .port = 1, .tls = true, .cert_path = "/dev/null"};
    assert_null(grpc_client_new(f->loop, &o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    o = (struct grpc_options){.host = "h", .port = 1, .tls = true, .tls_min_version = 9};
    assert_null(grpc_client_new(f->loop, &o, &err));
    assert_int_equal(err.code, ERR_INVALID);
}

/* ---- tests: lost connections */

/* The promise that exactly-once rests on: not maybe_sent, then the server saw nothing. */
static void check_cut(struct fixture *f, const struct outcome *o, const char *where, ssize_t at)
{
    if (o->status == 0 && f->peer.complete >= 1)
        return;
    if (o->status != 14 || !o->maybe_sent || f->peer.accepted != 1)
        fail_msg("%s %zd: status %d (%s), maybe_sent %d, server saw %u", where, at, o->status,
                 o->message, o->maybe_sent, f->peer.requests);
}

static void fresh(struct fixture *f)
{
    grpc_client_close(f->client);
    peer_release(&f->peer);
    loop_once(f->loop, false);
    peer_init(&f->peer, f->loop);
    f->client = new_client(f, (struct grpc_options){0});
}

static void test_cut_after_each_byte_the_server_reads(void **state)
{
    struct fixture *f = *state;
    unsigned ok = 0, lost_calls = 0;
    struct outcome o;
    ssize_t total;

    run(f, &o, "/p/Echo", "cut here");
    total = (ssize_t)LIST_FIRST(&f->peer.conns)->fed;
    assert_in_range(total, 100, 1000);
    for (ssize_t at = 0; at < total; at++) {
        fresh(f);
        f->peer.cut_in = at;
        run(f, &o, "/p/Echo", "cut here");
        check_cut(f, &o, "in", at);
        /* Served on the second connection: then the first never saw it. */
        if (o.status == 0 && f->peer.accepted == 2)
            assert_int_equal(f->peer.requests, 1);
        ok += o.status == 0;
        lost_calls += o.status != 0;
    }
    assert_true(ok > 0 && lost_calls > 50);
}

static void test_cut_after_each_byte_the_server_writes(void **state)
{
    struct fixture *f = *state;
    unsigned again = 0, lost_calls = 0;
    struct outcome o;
    ssize_t total;

    run(f, &o, "/p/Echo", "cut here");
    total = (ssize_t)LIST_FIRST(&f->peer.conns)->sent;
    assert_in_range(total, 50, 1000);
    for (ssize_t at = 0; at < total; at++) {
        fresh(f);
        f->peer.cut_out = at;
        run(f, &o, "/p/Echo", "cut here");
        check_cut(f, &o, "out", at);
        if (f->peer.accepted > 1) {
            assert_int_equal(o.status, 0);
            assert_int_equal(f->peer.requests, 1);
            again++;
        }
        lost_calls += o.status != 0;
    }
    assert_true(again >= 9); /* cut inside SETTINGS: not sent, so it was tried again */
    assert_true(lost_calls > 20);
}

static void test_cut_in_the_middle(void **state)
{
    enum { SIZE = 8 << 20 };
    struct fixture *f = *state;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct outcome o;

    run(f, &o, "/t/CutAtHeaders", "x");
    assert_int_equal(o.status, 14);
    assert_true(o.maybe_sent);
    assert_non_null(grpc_client_trouble(f->client));

    send_big(f, &o, "/p/Hang", p, SIZE, &released);
    WAIT(f, !LIST_EMPTY(&f->peer.conns) && LIST_FIRST(&f->peer.conns)->fed > SIZE / 2);
    peer_cut_all(&f->peer);
    WAIT(f, o.done);
    assert_int_equal(o.status, 14);
    assert_true(o.maybe_sent);
    WAIT(f, released == 2);

    unary(f, &o, "/t/HeadersOnly", "x");
    WAIT(f, f->peer.complete == 1);
    for (int i = 0; i < 10; i++)
        loop_once(f->loop, false);
    peer_cut_all(&f->peer);
    WAIT(f, o.done);
    assert_int_equal(o.status, 14);
    assert_true(o.maybe_sent);
    run(f, &o, "/p/Echo", "x");
    assert_int_equal(o.status, 0);
    assert_int_equal(grpc_client_generation(f->client), 4);
    free(p);
}

static void test_refused_stream(void **state)
{
    struct fixture *f = *state;
    struct outcome o;

    run(f, &o, "/t/Refuse", "x");
    assert_int_equal(o.status, 14);
    assert_false(o.maybe_sent);
}

static void test_status_before_a_reset(void **state)
{
    struct fixture *f = *state;
    struct outcome o;
    struct peer_conn *pc;

    unary(f, &o, "/t/StatusOnly", "x");
    WAIT(f, f->peer.complete == 1);
    turns(f, 50);
    pc = LIST_FIRST(&f->peer.conns);
    nghttp2_submit_rst_stream(pc->session, 0, LIST_FIRST(&pc->streams)->id,
                              NGHTTP2_INTERNAL_ERROR);
    timer_set(&pc->kick, 0);
    WAIT(f, o.done);
    assert_int_equal(o.status, 7);
    assert_string_equal(o.message, "not yours");
}

static void test_goaway(void **state)
{
    struct fixture *f = *state;
    struct outcome above, open, o;

    run(f, &o, "/p/Echo", "first");
    unary(f, &open, "/p/Hang", "open");
    WAIT(f, f->peer.requests == 2);
    unary(f, &above, "/t/GoAwayAbove", "x");
    WAIT(f, above.done);
    assert_int_equal(above.status, 14);
    assert_false(above.maybe_sent);
    assert_int_equal(open.done, 0); /* below the last stream: goes on */

    run(f, &o, "/p/Echo", "on a new connection");
    assert_int_equal(o.status, 0);
    assert_int_equal(f->peer.accepted, 2);
    assert_int_equal(grpc_client_generation(f->client), 2);
    assert_int_equal(open.done, 0);
    peer_cut(LIST_NEXT(LIST_FIRST(&f->peer.conns), next)); /* the old one */
    WAIT(f, open.done);
    assert_int_equal(open.status, 14);
    assert_true(open.maybe_sent);
    assert_null(grpc_client_trouble(f->client)); /* the new one is well */
}

static void test_goaway_lets_the_last_stream_finish(void **state)
{
    struct fixture *f = *state;
    struct outcome o;

    run(f, &o, "/t/GoAwayThis", "x");
    assert_int_equal(o.status, 0);
    assert_memory_equal(o.head, "ok", 2);
    WAIT(f, LIST_EMPTY(&f->peer.conns)); /* drained, then closed by us */
    run(f, &o, "/p/Echo", "x");
    assert_int_equal(o.status, 0);
    assert_int_equal(f->peer.accepted, 2);
}

static void test_dead_peer_is_found_by_ping(void **state)
{
    struct fixture *f = *state;
    struct grpc_client *c = new_client(
        f, (struct grpc_options){.keepalive_ms = 30, .keepalive_timeout_ms = 60});
    struct outcome o;

    unary_on(c, &o, "/p/Hang", "x", 30000);
    WAIT(f, f->peer.pings >= 3); /* answered: lives on */
    assert_int_equal(o.done, 0);
    bufferevent_disable(LIST_FIRST(&f->peer.conns)->bev, EV_READ);
    WAIT(f, o.done);
    assert_int_equal(o.status, 14);
    assert_true(o.maybe_sent);
    assert_non_null(strstr(o.message, "ping"));
    grpc_client_close(c);
}

static void test_no_pings_without_calls(void **state)
{
    struct fixture *f = *state;
    struct grpc_client *c = new_client(
        f, (struct grpc_options){.keepalive_ms = 5, .keepalive_timeout_ms = 5000});
    struct outcome o;
    unsigned pings;
    uint64_t until;

    unary_on(c, &o, "/p/Hang", "x", 60000);
    WAIT(f, f->peer.pings >= 2);
    grpc_call_cancel(o.call);
    WAIT(f, f->peer.resets == 1);
    pings = f->peer.pings;
    for (until = clock_mono_ms() + 100; clock_mono_ms() < until;)
        loop_once(f->loop, false);
    assert_int_equal(f->peer.pings, pings);
    unary_on(c, &o, "/p/Echo", "x", 30000); /* and the connection is still the same */
    WAIT(f, o.done);
    assert_int_equal(f->peer.accepted, 1);
    grpc_client_close(c);
}

/* ---- tests: streams, cancel, close */

static void test_bidi(void **state)
{
    struct fixture *f = *state;
    struct outcome o = {0};
    char text[32];

    o.call = grpc_stream(f->client, "/p/Bidi", NULL, on_message, on_done, &o);
    send_text(o.call, "queued before it is open");
    WAIT(f, o.messages == 1);
    assert_int_equal(o.last_len, 24);
    for (unsigned i = 2; i < 50; i++) {
        snprintf(text, sizeof(text), "message %u", i);
        send_text(o.call, text);
        WAIT(f, o.messages == i);
        assert_memory_equal(o.last, text, strlen(text));
    }
    send_text(o.call, "");
    WAIT(f, o.messages == 50);
    assert_int_equal(o.last_len, 0);
    assert_string_equal(last_seen.timeout, "");
    peer_end(LIST_FIRST(&LIST_FIRST(&f->peer.conns)->streams), "0", NULL);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
}

static void test_big_stream_messages(void **state)
{
    enum { SIZE = 3 << 20 };
    struct fixture *f = *state;
    struct outcome o = {0};
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;
    struct evbuffer *b = evbuffer_new();

    o.call = grpc_stream(f->client, "/p/Bidi", NULL, on_message, on_done, &o);
    for (unsigned i = 1; i <= 3; i++) {
        evbuffer_add_reference(b, p, SIZE - i, on_released, &released);
        grpc_stream_send(o.call, b);
        send_text(o.call, "small");
        WAIT(f, o.messages == 2 * i);
        assert_memory_equal(o.last, "small", 5);
    }
    grpc_call_cancel(o.call);
    evbuffer_free(b);
    free(p);
}

/* The stream ended, its owner does not know yet and sends. */
static void test_send_after_the_end(void **state)
{
    struct fixture *f = *state;
    struct outcome o = {0};

    o.call = grpc_stream(f->client, "/p/Bidi", NULL, on_message, on_done, &o);
    WAIT(f, f->peer.requests == 1);
    peer_end(LIST_FIRST(&LIST_FIRST(&f->peer.conns)->streams), "0", NULL);
    while (!o.done) {
        send_text(o.call, "x");
        loop_once(f->loop, false);
    }
    assert_int_equal(o.status, 0);
}

static void test_cancel_anywhere(void **state)
{
    struct fixture *f = *state;
    struct outcome o, other;

    for (int turns = 0; turns < 20; turns++) {
        unary(f, &o, "/p/Echo", "cancelled");
        unary(f, &other, "/p/Echo", "stays");
        for (int i = 0; i < turns && !o.done; i++)
            loop_once(f->loop, false);
        if (o.call)
            grpc_call_cancel(o.call);
        WAIT(f, other.done);
        assert_int_equal(other.status, 0);
        assert_true(o.done == 0 || o.call == NULL);
    }
    grpc_call_cancel(NULL);
    assert_int_equal(f->peer.accepted, 1);
}

/* Cancelled between submitting and sending: the server hears nothing, the slot is free again. */
static void test_cancel_frees_the_slot(void **state)
{
    struct fixture *f = *state;
    struct outcome o;

    f->peer.max_streams = 1;
    run(f, &o, "/p/Echo", "x");
    for (int i = 0; i < 5; i++) {
        unary(f, &o, "/p/Hang", "x");
        for (int k = 0; k < i; k++)
            loop_once(f->loop, false);
        grpc_call_cancel(o.call);
    }
    run(f, &o, "/p/Echo", "x");
    assert_int_equal(o.status, 0);
}

static void on_message_cancel(void *arg, const uint8_t *data, size_t len)
{
    struct outcome *o = arg;

    on_message(arg, data, len);
    grpc_call_cancel(o->call);
    assert_memory_equal(data, "one", 3); /* lives on in the callback */
}

static void on_message_close(void *arg, const uint8_t *data, size_t len)
{
    struct outcome *o = arg;

    on_message(arg, data, len);
    grpc_client_close(o->f->client);
    o->f->client = NULL;
}

static void test_cancel_in_own_callback(void **state)
{
    struct fixture *f = *state;
    struct outcome o = {0}, next;

    o.call = grpc_stream(f->client, "/p/Bidi", NULL, on_message_cancel, on_done, &o);
    send_text(o.call, "one");
    send_text(o.call, "two"); /* likely in the same read */
    WAIT(f, o.messages);
    run(f, &next, "/p/Echo", "x");
    assert_int_equal(next.status, 0);
    assert_int_equal(o.messages, 1);
    assert_int_equal(o.done, 0);
}

static void test_close_in_message(void **state)
{
    struct fixture *f = *state;
    struct outcome o = {.f = f}, other;

    unary(f, &other, "/p/Hang", "x");
    o.call = grpc_stream(f->client, "/p/Bidi", NULL, on_message_close, on_done, &o);
    send_text(o.call, "one");
    send_text(o.call, "two");
    WAIT(f, LIST_EMPTY(&f->peer.conns) && o.messages);
    assert_int_equal(o.messages, 1);
    assert_int_equal(o.done + other.done, 0);
}

static void on_done_close(void *arg, const struct grpc_result *r)
{
    struct outcome *o = arg;

    on_done(arg, r);
    grpc_client_close(o->f->client);
    o->f->client = NULL;
}

static void test_close_in_done(void **state)
{
    struct fixture *f = *state;
    struct outcome o = {.f = f}, other;
    struct evbuffer *b = evbuffer_new();

    grpc_unary(f->client, "/p/Echo", NULL, b, 30000, on_done_close, &o);
    evbuffer_free(b);
    unary(f, &other, "/p/Echo", "x");
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    WAIT(f, LIST_EMPTY(&f->peer.conns));
    assert_int_equal(other.done, 0);
}

struct chain {
    struct fixture *f;
    unsigned left;
};

static void on_done_again(void *arg, const struct grpc_result *r)
{
    struct chain *c = arg;
    struct evbuffer *b = evbuffer_new();

    assert_int_equal(r->status, 0);
    if (--c->left)
        grpc_unary(c->f->client, "/p/Echo", NULL, b, 30000, on_done_again, c);
    evbuffer_free(b);
}

static void test_calls_from_completions(void **state)
{
    struct fixture *f = *state;
    struct chain c = {f, 300};
    struct evbuffer *b = evbuffer_new();

    grpc_unary(f->client, "/p/Echo", NULL, b, 30000, on_done_again, &c);
    evbuffer_free(b);
    WAIT(f, c.left == 0);
}

/* ---- tests: TLS */

struct tls_files {
    char dir[32], ca[64], other_ca[64], cert[64], key[64];
    SSL_CTX *server;
};

static EVP_PKEY *new_key(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");

    assert_non_null(key);
    return key;
}

static void add_ext(X509 *cert, int nid, const char *value)
{
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    assert_non_null(e);
    X509_add_ext(cert, e, -1);
    X509_EXTENSION_free(e);
}

static X509 *new_cert(const char *name, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key)
{
    static long serial = 1;
    X509 *c = X509_new();
    X509_NAME *subject = X509_get_subject_name(c);

    X509_set_version(c, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(c), serial++);
    X509_gmtime_adj(X509_getm_notBefore(c), -60);
    X509_gmtime_adj(X509_getm_notAfter(c), 3600);
    X509_set_pubkey(c, key);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(c, issuer ? X509_get_subject_name(issuer) : subject);
    if (issuer)
        add_ext(c, NID_subject_alt_name, "DNS:localhost,DNS:milvus.test,IP:127.0.0.1");
    else
        add_ext(c, NID_basic_constraints, "critical,CA:TRUE");
    assert_true(X509_sign(c, issuer_key, EVP_sha256()) > 0);
    return c;
}

static void write_pem(const char *path, X509 *cert, EVP_PKEY *key)
{
    FILE *out = fopen(path, "w");

    assert_non_null(out);
    if (cert)
        PEM_write_X509(out, cert);
    if (key)
        PEM_write_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL);
    fclose(out);
}

static int choose_h2(SSL *ssl, const unsigned char **out, unsigned char *outlen,
                     const unsigned char *in, unsigned inlen, void *arg)
{
    static const unsigned char h2[] = {2, 'h', '2'};

    (void)ssl;
    (void)arg;
    return SSL_select_next_proto((unsigned char **)(uintptr_t)out, outlen, h2, sizeof(h2), in,
                                 inlen) == OPENSSL_NPN_NEGOTIATED
               ? SSL_TLSEXT_ERR_OK
               : SSL_TLSEXT_ERR_NOACK;
}

static void tls_make(struct tls_files *t)
{
    EVP_PKEY *ca_key = new_key(), *key = new_key(), *other_key = new_key();
    X509 *ca = new_cert("CA", ca_key, NULL, ca_key);
    X509 *other = new_cert("other CA", other_key, NULL, other_key);
    X509 *cert = new_cert("server", key, ca, ca_key);

    strcpy(t->dir, "/tmp/test_grpc.XXXXXX");
    assert_non_null(mkdtemp(t->dir));
    snprintf(t->ca, sizeof(t->ca), "%s/ca.pem", t->dir);
    snprintf(t->other_ca, sizeof(t->other_ca), "%s/other.pem", t->dir);
    snprintf(t->cert, sizeof(t->cert), "%s/cert.pem", t->dir);
    snprintf(t->key, sizeof(t->key), "%s/key.pem", t->dir);
    write_pem(t->ca, ca, NULL);
    write_pem(t->other_ca, other, NULL);
    write_pem(t->cert, cert, NULL);
    write_pem(t->key, NULL, key);
    t->server = SSL_CTX_new(TLS_server_method());
    SSL_CTX_use_certificate(t->server, cert);
    SSL_CTX_use_PrivateKey(t->server, key);
    SSL_CTX_set_alpn_select_cb(t->server, choose_h2, NULL);
    SSL_CTX_load_verify_locations(t->server, t->ca, NULL);
    X509_free(ca);
    X509_free(other);
    X509_free(cert);
    EVP_PKEY_free(ca_key);
    EVP_PKEY_free(key);
    EVP_PKEY_free(other_key);
}

static void tls_remove(struct tls_files *t)
{
    unlink(t->ca);
    unlink(t->other_ca);
    unlink(t->cert);
    unlink(t->key);
    rmdir(t->dir);
    SSL_CTX_free(t->server);
}

static void tls_run(struct fixture *f, struct grpc_options o, unsigned ms, struct outcome *out)
{
    struct grpc_client *c;

    o.tls = true;
    c = new_client(f, o);
    unary_on(c, out, "/p/Echo", "secret", ms);
    WAIT(f, out->done);
    grpc_client_close(c);
    loop_once(f->loop, false);
}

static void test_tls(void **state)
{
    enum { SIZE = 5 << 20 };
    struct fixture *f = *state;
    struct tls_files t;
    struct outcome o;
    uint8_t *p = pattern(SIZE);
    unsigned released = 0;

    tls_make(&t);
    f->peer.tls = t.server;
    grpc_client_close(f->client);
    f->client = new_client(f, (struct grpc_options){.tls = true, .ca_path = t.ca});
    run(f, &o, "/p/Echo", "by address");
    assert_int_equal(o.status, 0);
    assert_memory_equal(o.head, "by address", 10);
    send_big(f, &o, "/p/Echo", p, SIZE, &released);
    WAIT(f, o.done);
    assert_int_equal(o.status, 0);
    assert_int_equal(o.crc, crc_add(0, p, SIZE));

    tls_run(f, (struct grpc_options){.ca_path = t.ca, .host = "localhost"}, 30000, &o);
    assert_int_equal(o.status, 0);
    tls_run(f, (struct grpc_options){.ca_path = t.ca, .tls_server_name = "milvus.test"}, 30000,
            &o);
    assert_int_equal(o.status, 0);
    SSL_CTX_set_verify(t.server, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    tls_run(f,
            (struct grpc_options){.ca_path = t.ca, .cert_path = t.cert, .key_path = t.key,
                                  .tls_min_version = 13},
            30000, &o);
    assert_int_equal(o.status, 0);
    tls_run(f, (struct grpc_options){.ca_path = t.ca}, 300, &o); /* no client certificate */
    assert_int_equal(o.status, 4);
    assert_false(o.maybe_sent);
    peer_cut_all(&f->peer);
    tls_remove(&t);
    free(p);
}

static void refused(struct fixture *f, struct grpc_options o, const char *part)
{
    struct outcome out;

    tls_run(f, o, 300, &out);
    assert_int_equal(out.status, 4);
    assert_false(out.maybe_sent);
    if (!strstr(out.message, part))
        fail_msg("%s", out.message);
    assert_int_equal(f->peer.requests, 0);
}

static void test_tls_refused(void **state)
{
    struct fixture *f = *state;
    struct tls_files t;

    tls_make(&t);
    f->peer.tls = t.server;
    refused(f, (struct grpc_options){.ca_path = t.other_ca}, "certificate refused");
    refused(f, (struct grpc_options){0}, "certificate refused"); /* system's store */
    refused(f, (struct grpc_options){.ca_path = t.ca, .tls_server_name = "elsewhere.test"},
            "hostname mismatch");
    SSL_CTX_set_max_proto_version(t.server, TLS1_2_VERSION);
    refused(f, (struct grpc_options){.ca_path = t.ca, .tls_min_version = 13}, "TLS");
    SSL_CTX_set_alpn_select_cb(t.server, NULL, NULL);
    refused(f, (struct grpc_options){.ca_path = t.ca}, "ALPN");
    peer_cut_all(&f->peer);
    f->peer.tls = NULL;
    refused(f, (struct grpc_options){.ca_path = t.ca}, "TLS"); /* a server without TLS */
    tls_remove(&t);
}

/* ---- tests: texts */

static void test_result_err(void **state)
{
    struct err err;
    static const struct {
        int status;
        enum err_code code;
        enum err_class cls;
    } t[] = {
        {14, ERR_UNAVAILABLE, ERRC_RETRY}, {4, ERR_TIMEOUT, ERRC_RETRY},
        {8, ERR_LIMIT, ERRC_RETRY},        {10, ERR_STALE, ERRC_RETRY},
        {13, ERR_INTERNAL, ERRC_RETRY},    {2, ERR_INTERNAL, ERRC_RETRY},
        {1, ERR_CANCELLED, ERRC_RETRY},    {16, ERR_AUTH, ERRC_USER},
        {7, ERR_AUTH, ERRC_USER},          {12, ERR_UNSUPPORTED, ERRC_USER},
        {3, ERR_INVALID, ERRC_USER},       {99, ERR_INTERNAL, ERRC_USER},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
        struct grpc_result r = {.status = t[i].status, .message = "why"};

        assert_int_equal(grpc_result_err(&r, "insert", &err), t[i].code);
        assert_int_equal(err.cls, t[i].cls);
    }
    grpc_result_err(&(struct grpc_result){.status = 14, .message = "why"}, "insert", &err);
    assert_string_equal(err.text, "insert: UNAVAILABLE (14): why");
}

static void test_texts(void **state)
{
    char text[] = "%41%4a%4A%%25%2%", buf[24];

    (void)state;
    grpc_percent_decode(text);
    assert_string_equal(text, "AJJ%%%2%");
    assert_int_equal(grpc_status_parse("0"), 0);
    assert_int_equal(grpc_status_parse("16"), 16);
    assert_int_equal(grpc_status_parse(""), 2);
    assert_int_equal(grpc_status_parse("-1"), 2);
    assert_int_equal(grpc_status_parse("999999999"), 2);
    grpc_timeout_format(99999999, buf, sizeof(buf));
    assert_string_equal(buf, "99999999m");
    grpc_timeout_format(100000000, buf, sizeof(buf));
    assert_string_equal(buf, "100000S");
}

/* ---- tests: a real etcd */

static uint16_t free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    close(fd);
    return ntohs(a.sin_port);
}

static pid_t start_etcd(const char *dir, uint16_t port)
{
    char client[64], server[64], cluster[80];
    pid_t pid;

    snprintf(client, sizeof(client), "http://127.0.0.1:%u", port);
    snprintf(server, sizeof(server), "http://127.0.0.1:%u", free_port());
    snprintf(cluster, sizeof(cluster), "default=%s", server);
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/usr/bin/etcd", "etcd", "--data-dir", dir, "--listen-client-urls", client,
              "--advertise-client-urls", client, "--listen-peer-urls", server,
              "--initial-advertise-peer-urls", server, "--initial-cluster", cluster, "--log-level",
              "error", (char *)NULL);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

static void stop_etcd(pid_t pid, const char *dir)
{
    char *cmd = xasprintf("rm -rf '%s'", dir);

    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(system(cmd), 0);
    free(cmd);
}

static void test_real_etcd(void **state)
{
    struct fixture *f = *state;
    uint16_t port = free_port();
    char dir[] = "/tmp/test_grpc_etcd.XXXXXX";
    struct grpc_client *c;
    struct outcome o, watch = {0};
    pid_t pid;

    assert_non_null(mkdtemp(dir));
    pid = start_etcd(dir, port);
    c = new_client(f, (struct grpc_options){.port = port, .log_name = "etcd"});
    /* Waits until etcd listens.  RangeRequest{key 1: "k"} */
    unary_on(c, &o, "/etcdserverpb.KV/Range", "\x0a\x01k", 50000);
    WAIT(f, o.done);
    assert_string_equal(o.message, "");
    assert_int_equal(o.status, 0);
    assert_int_equal(o.head[0], 0x0a); /* RangeResponse.header */

    /* WatchRequest{create_request 1: {key 1: "k"}} */
    watch.call = grpc_stream(c, "/etcdserverpb.Watch/Watch", NULL, on_message, on_done, &watch);
    send_text(watch.call, "\x0a\x03\x0a\x01k");
    WAIT(f, watch.messages == 1); /* created */
    unary_on(c, &o, "/etcdserverpb.KV/Put", "\x0a\x01k\x12\x05value", 5000);
    WAIT(f, o.done && watch.messages == 2);
    assert_int_equal(o.status, 0);
    assert_non_null(memmem(watch.last, sizeof(watch.last), "value", 5));
    unary_on(c, &o, "/etcdserverpb.KV/Range", "\x0a\x01k", 5000);
    WAIT(f, o.done);
    assert_non_null(memmem(o.head, sizeof(o.head), "\x2a\x05value", 7)); /* KeyValue.value 5 */

    unary_on(c, &o, "/etcdserverpb.KV/Nonsense", "", 5000);
    WAIT(f, o.done);
    assert_int_equal(o.status, 12);

    unary_on(c, &o, "/etcdserverpb.KV/Range", "\xff", 5000); /* no protobuf */
    WAIT(f, o.done);
    assert_int_equal(o.status, 13);
    assert_int_equal(grpc_client_generation(c), 1);
    kill(pid, SIGKILL);
    WAIT(f, watch.done);
    assert_int_equal(watch.status, 14);
    grpc_client_close(c);
    stop_etcd(pid, dir);
}

#define T(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_echo_and_headers),
        T(test_answers),
        T(test_answers_byte_by_byte),
        T(test_answer_limit),
        T(test_an_answer_that_is_kept),
        T(test_early_answer_to_a_big_body),
        cmocka_unit_test(test_outq_refers_and_does_not_copy),
        cmocka_unit_test(test_outq_of_many_pieces),
        T(test_64_mib_request),
        T(test_concurrent_echo_above_the_windows),
        T(test_large_requests_go_one_after_the_other),
        T(test_small_windows_of_the_peer),
        T(test_cancel_while_the_peer_does_not_read),
        T(test_a_closed_fence),
        T(test_fence_closes_under_a_request),
        T(test_unsent_call_survives_a_lost_connection),
        T(test_unsent_call_survives_goaway),
        T(test_maybe_sent_at_the_edge),
        T(test_peer_raises_its_limit),
        T(test_streams_wait_for_the_peers_limit),
        T(test_deadline_while_waiting_for_a_stream),
        T(test_deadline),
        T(test_nobody_listens),
        T(test_nobody_listens_and_nobody_waits),
        T(test_mute_server),
        T(test_names),
        T(test_each_address_of_a_name_is_tried),
        T(test_server_that_is_not_http2),
        T(test_tries_are_backed_off),
        T(test_close_during_look_up_and_connect),
        T(test_bad_options),
        T(test_cut_after_each_byte_the_server_reads),
        T(test_cut_after_each_byte_the_server_writes),
        T(test_cut_in_the_middle),
        T(test_refused_stream),
        T(test_status_before_a_reset),
        T(test_goaway),
        T(test_goaway_lets_the_last_stream_finish),
        T(test_dead_peer_is_found_by_ping),
        T(test_no_pings_without_calls),
        T(test_bidi),
        T(test_big_stream_messages),
        T(test_send_after_the_end),
        T(test_cancel_anywhere),
        T(test_cancel_frees_the_slot),
        T(test_cancel_in_own_callback),
        T(test_close_in_message),
        T(test_close_in_done),
        T(test_calls_from_completions),
        T(test_tls),
        T(test_tls_refused),
        cmocka_unit_test(test_result_err),
        cmocka_unit_test(test_texts),
        T(test_real_etcd),
    };

    if (getenv("T")) cmocka_set_test_filter(getenv("T"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
