/*
 * nats_fake.h - a NATS server in the test's own loop that does what the test tells it.
 *
 * By itself it greets, answers PING, STREAM.INFO (from messages, first, last, created) and CONSUMER.CREATE ("C1", "C2",
 * ...), and notes fetches; messages and statuses are sent by the test.  Included by one test file only.
 */
#ifndef TEST_NATS_FAKE_H
#define TEST_NATS_FAKE_H
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loop/loop.h"

enum { FAKE_FETCHES = 256 };

struct fake_fetch {
    char consumer[200], reply[200];
    size_t batch, bytes;
};

struct fake {
    struct loop *loop;
    struct evconnlistener *listener;
    struct bufferevent *bev; /* of the last connection; NULL: none */
    char *line; /* of a request whose payload has not come yet */
    char address[40];
    /* what it does */
    const char *info;  /* more of INFO, beginning with a comma, or "" */
    const char *greet; /* instead of INFO, "" for silence */
    const char *error; /* text of an -ERR that answers CONNECT, NULL: none */
    const char *fail_api; /* of requests whose subject has this ... */
    const char *fail_with; /* ... the answer; NULL: 503 */
    bool mute; /* answers no PING */
    bool no_stream;
    uint64_t messages, first, last, created, pending;
    /* what it saw */
    unsigned accepted, consumers, deletes, pings, infos;
    char last_connect[600], last_create[600];
    struct fake_fetch fetches[FAKE_FETCHES];
    size_t n_fetches;
};

__attribute__((format(printf, 2, 3))) static void fake_say(struct fake *f, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (f->bev)
        evbuffer_add_vprintf(bufferevent_get_output(f->bev), fmt, ap);
    va_end(ap);
}

static void fake_msg(struct fake *f, const char *subject, const char *reply, const char *data)
{
    fake_say(f, "MSG %s 1 %s %zu\r\n%s\r\n", subject, reply, strlen(data), data);
}

/* Of stream t, message seq as the consumer's number n. */
static void fake_deliver(struct fake *f, unsigned consumer, uint64_t seq, uint64_t n, uint64_t pending)
{
    char reply[120], data[60];

    snprintf(reply, sizeof(reply), "$JS.ACK.t.C%u.1.%" PRIu64 ".%" PRIu64 ".1795602716321248365.%" PRIu64, consumer,
             seq, n, pending);
    snprintf(data, sizeof(data), "t#%" PRIu64, seq);
    fake_msg(f, "t", reply, data);
}

/* Answers fetch number i. */
static void fake_status(struct fake *f, size_t i, const char *first_line, const char *fields)
{
    size_t len = strlen(first_line) + strlen(fields) + strlen("NATS/1.0 \r\n\r\n");

    fake_say(f, "HMSG %s 1 %zu %zu\r\nNATS/1.0 %s\r\n%s\r\n\r\n", f->fetches[i].reply, len, len, first_line, fields);
}

static size_t fake_number(const char *json, const char *key)
{
    const char *p = strstr(json, key);

    return p ? strtoul(p + strlen(key) + 1, NULL, 10) : 0;
}

static void fake_note_fetch(struct fake *f, const char *consumer, const char *reply, const char *json)
{
    struct fake_fetch *x;

    assert_true(f->n_fetches < FAKE_FETCHES);
    x = &f->fetches[f->n_fetches++];
    snprintf(x->consumer, sizeof(x->consumer), "%s", consumer);
    snprintf(x->reply, sizeof(x->reply), "%s", reply);
    x->batch = fake_number(json, "\"batch\"");
    x->bytes = fake_number(json, "\"max_bytes\"");
}

static void fake_on_publish(struct fake *f, const char *subject, const char *reply, const char *payload)
{
    char data[600];

    if (f->fail_api && strstr(subject, f->fail_api)) {
        if (f->fail_with)
            fake_msg(f, reply, "", f->fail_with);
        else
            fake_say(f, "HMSG %s 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", reply);
    } else if (strstr(subject, "STREAM.INFO")) {
        f->infos++;
        snprintf(data, sizeof(data),
                 "{\"created\":\"%" PRIu64 "\",\"state\":{\"messages\":%" PRIu64 ",\"first_seq\":%" PRIu64
                 ",\"last_seq\":%" PRIu64 "}}",
                 f->created, f->messages, f->first, f->last);
        fake_msg(f, reply, "",
                 f->no_stream ? "{\"error\":{\"code\":404,\"err_code\":10059,\"description\":\"stream not found\"}}"
                              : data);
    } else if (strstr(subject, "CONSUMER.CREATE")) {
        snprintf(f->last_create, sizeof(f->last_create), "%s", payload);
        snprintf(data, sizeof(data), "{\"name\":\"C%u\",\"num_pending\":%" PRIu64 "}", ++f->consumers, f->pending);
        fake_msg(f, reply, "", data);
    } else if (strstr(subject, "MSG.NEXT.")) {
        fake_note_fetch(f, strstr(subject, "MSG.NEXT.") + 9, reply, payload);
    } else if (strstr(subject, "CONSUMER.DELETE")) {
        f->deletes++;
    }
}

/* False: its payload is not there yet. */
static bool fake_on_line(struct fake *f, char *line, struct evbuffer *in)
{
    char subject[200], reply[200] = "", *payload;
    size_t len;

    if (strncmp(line, "CONNECT ", 8) == 0) {
        snprintf(f->last_connect, sizeof(f->last_connect), "%s", line + 8);
        if (f->error)
            fake_say(f, "-ERR '%s'\r\n", f->error);
    } else if (strcmp(line, "PING") == 0) {
        f->pings++;
        if (!f->mute)
            fake_say(f, "PONG\r\n");
    } else if (sscanf(line, "PUB %199s %199s %zu", subject, reply, &len) == 3 ||
               (reply[0] = 0, sscanf(line, "PUB %199s %zu", subject, &len) == 2)) {
        if (evbuffer_get_length(in) < len + 2)
            return false;
        payload = calloc(1, len + 1);
        evbuffer_remove(in, payload, len);
        evbuffer_drain(in, 2);
        fake_on_publish(f, subject, reply, payload);
        free(payload);
    }
    return true;
}

static void fake_on_read(struct bufferevent *bev, void *arg)
{
    struct fake *f = arg;
    struct evbuffer *in = bufferevent_get_input(bev);

    while (f->line || (f->line = evbuffer_readln(in, NULL, EVBUFFER_EOL_CRLF_STRICT))) {
        if (!fake_on_line(f, f->line, in))
            return;
        free(f->line);
        f->line = NULL;
    }
}

static void fake_cut(struct fake *f)
{
    if (f->bev)
        bufferevent_free(f->bev);
    f->bev = NULL;
    free(f->line);
    f->line = NULL;
}

static void fake_on_event(struct bufferevent *bev, short what, void *arg)
{
    struct fake *f = arg;

    (void)what;
    if (f->bev == bev)
        fake_cut(f);
    else
        bufferevent_free(bev);
}

static void fake_on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *sa, int len, void *arg)
{
    struct fake *f = arg;

    (void)l;
    (void)sa;
    (void)len;
    fake_cut(f);
    f->accepted++;
    f->n_fetches = 0;
    f->bev = bufferevent_socket_new(loop_base(f->loop), fd, BEV_OPT_CLOSE_ON_FREE);
    bufferevent_setcb(f->bev, fake_on_read, NULL, fake_on_event, f);
    bufferevent_enable(f->bev, EV_READ | EV_WRITE);
    if (f->greet)
        fake_say(f, "%s", f->greet);
    else
        fake_say(f, "INFO {\"server_id\":\"x\",\"headers\":true,\"max_payload\":8388608%s}\r\n", f->info);
}

static void fake_listen(struct fake *f)
{
    struct sockaddr_in sa = {.sin_family = AF_INET};

    sscanf(f->address, "127.0.0.1:%hu", &sa.sin_port);
    sa.sin_port = htons(sa.sin_port);
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    f->listener = evconnlistener_new_bind(loop_base(f->loop), fake_on_accept, f,
                                          LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, 16, (struct sockaddr *)&sa,
                                          sizeof(sa));
    assert_non_null(f->listener);
}

static void fake_init(struct fake *f, struct loop *l)
{
    struct sockaddr_in sa;
    socklen_t len = sizeof(sa);

    memset(f, 0, sizeof(*f));
    f->loop = l;
    f->info = "";
    f->created = 1;
    fake_listen(f);
    getsockname(evconnlistener_get_fd(f->listener), (struct sockaddr *)&sa, &len);
    snprintf(f->address, sizeof(f->address), "127.0.0.1:%u", ntohs(sa.sin_port));
}

/* Nobody listens there any more. */
static void fake_stop(struct fake *f)
{
    fake_cut(f);
    if (f->listener)
        evconnlistener_free(f->listener);
    f->listener = NULL;
}
#endif
