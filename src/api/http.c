#include "api/http_priv.h"

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/loop.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_HIGH = 65536,     /* bytes that wait unparsed in a connection */
    ACCEPTS_PER_EVENT = 16,
    ACCEPT_PAUSE_MS = 500, /* when the process has no file descriptor left */
    LINGER_BYTES = 4 << 20,
};

/*
 * IDLE     no byte of the next request yet        timer: idle_ms (request_ms for the first one)
 * READING  a part of a request                    timer: request_ms
 * HANDLING the handler has the request            no timer: handlers have their own limits
 * WRITING  the answer is on its way               timer: write_ms
 * LINGER   we closed, the rest of the input goes  timer: linger_ms
 * CLOSED   waits in the graveyard
 */
enum conn_state { CONN_IDLE, CONN_READING, CONN_HANDLING, CONN_WRITING, CONN_LINGER, CONN_CLOSED };

struct conn {
    TAILQ_ENTRY(conn) entry;
    struct http_server *s;
    enum conn_state state;
    struct bufferevent *bev;
    struct http_tls *tls;   /* NULL: plain */
    struct evbuffer *plain; /* with tls: what the client said */
    struct timer timer;
    struct http_parser parser; /* moved to the request when it is complete */
    struct http_request *request;
    bool served;    /* a request was answered on it */
    bool eof;       /* the client sends nothing more */
    bool close;     /* after the answer */
    bool linger;    /* the client may still be sending */
    bool running;   /* conn_run() is on the stack */
    size_t drained; /* bytes thrown away in LINGER */
    char peer[64];
};

struct http_request {
    struct conn *conn; /* NULL: the client is gone */
    char peer[64];
    struct http_parser parser;
};

struct http_server {
    struct http_options o;
    int fd;
    struct event *accept_ev;
    struct timer accept_pause;
    bool full; /* max_connections: not accepting */
    uint16_t port;
    unsigned n_conns;
    TAILQ_HEAD(, conn) conns;
};

static void conn_run(struct conn *c);

/* ---- connections */

static void conn_free(void *arg)
{
    struct conn *c = arg;

    timer_release(&c->timer);
    http_parser_release(&c->parser);
    http_tls_free(c->tls);
    if (c->plain)
        evbuffer_free(c->plain);
    free(c);
}

static void conn_close(struct conn *c)
{
    struct http_server *s = c->s;

    if (c->state == CONN_CLOSED)
        return;
    c->state = CONN_CLOSED;
    timer_cancel(&c->timer);
    if (c->request)
        c->request->conn = NULL;
    c->request = NULL;
    bufferevent_free(c->bev);
    c->bev = NULL;
    TAILQ_REMOVE(&s->conns, c, entry);
    s->n_conns--;
    if (s->full && s->accept_ev) {
        s->full = false;
        event_add(s->accept_ev, NULL);
    }
    loop_defer(s->o.loop, conn_free, c);
}

static void conn_set_state(struct conn *c, enum conn_state state, unsigned ms)
{
    c->state = state;
    if (ms)
        timer_set(&c->timer, ms);
    else
        timer_cancel(&c->timer);
}

/* Closes our side only: with unread input a close resets the connection and the answer is lost. */
static void conn_linger(struct conn *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);

    if (c->eof || !c->linger) {
        conn_close(c);
        return;
    }
    (void)shutdown(bufferevent_getfd(c->bev), SHUT_WR); /* fails when it is gone */
    evbuffer_drain(in, evbuffer_get_length(in));
    conn_set_state(c, CONN_LINGER, c->s->o.linger_ms);
}

/* The answer is out. */
static void conn_sent(struct conn *c)
{
    if (c->close) {
        conn_linger(c);
        return;
    }
    c->served = true;
    TAILQ_REMOVE(&c->s->conns, c, entry); /* in order of the last use */
    TAILQ_INSERT_TAIL(&c->s->conns, c, entry);
    http_parser_init(&c->parser, c->s->o.max_body);
    conn_set_state(c, CONN_IDLE, c->s->o.idle_ms);
}

static const char *status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } table[] = {
        {200, "OK"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {414, "URI Too Long"},
        {417, "Expectation Failed"},
        {431, "Request Header Fields Too Large"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {505, "HTTP Version Not Supported"},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].status == status)
            return table[i].text;
    return "Error";
}

static void put_date(struct evbuffer *out)
{
    time_t now = time(NULL);
    struct tm tm;
    char text[64];

    if (gmtime_r(&now, &tm) && strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &tm))
        evbuffer_add_printf(out, "Date: %s\r\n", text);
}

/* head_only: a HEAD request gets the length but not the body. */
static void conn_write(struct conn *c, const struct http_answer *a, bool http11, bool head_only)
{
    struct evbuffer *raw = bufferevent_get_output(c->bev), *out = c->tls ? evbuffer_new() : raw;

    if (!out)
        abort();
    conn_set_state(c, CONN_WRITING, c->s->o.write_ms);
    evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n",
                        a->status, status_text(a->status), a->content_type, a->len);
    put_date(out);
    if (a->allow)
        evbuffer_add_printf(out, "Allow: %s\r\n", a->allow);
    if (a->authenticate)
        evbuffer_add_printf(out, "WWW-Authenticate: %s\r\n", a->authenticate);
    if (c->close)
        evbuffer_add_printf(out, "Connection: close\r\n");
    else if (!http11)
        evbuffer_add_printf(out, "Connection: keep-alive\r\n");
    evbuffer_add(out, "\r\n", 2);
    if (!head_only)
        evbuffer_add(out, a->body, a->len);
    if (!c->tls)
        return;
    (void)http_tls_write(c->tls, out, raw, c->close); /* fails when the connection ends anyway */
    evbuffer_free(out);
}

/* What is not HTTP, or too slow, is answered here; the handler does not see it. */
static void conn_refuse(struct conn *c, int status, const char *why)
{
    char text[200];
    struct http_answer a = {
        .status = status, .content_type = "text/plain; charset=utf-8", .body = text};

    a.len = (size_t)snprintf(text, sizeof(text), "%d %s: %s\n", status, status_text(status), why);
    http_parser_release(&c->parser);
    c->close = true;
    c->linger = true;
    conn_write(c, &a, true, false);
}

static void conn_handle(struct conn *c)
{
    struct http_request *r = xcalloc(1, sizeof(*r));

    r->conn = c;
    r->parser = c->parser; /* with the body */
    c->parser.body = NULL;
    explicit_bzero(c->parser.authorization, sizeof(c->parser.authorization));
    snprintf(r->peer, sizeof(r->peer), "%s", c->peer);
    c->request = r;
    c->close = !r->parser.keep_alive || r->parser.too_large;
    c->linger = true;
    conn_set_state(c, CONN_HANDLING, 0);
    c->s->o.handler(c->s->o.arg, r);
}

static void conn_continue(struct conn *c)
{
    struct evbuffer *out = bufferevent_get_output(c->bev), *plain;
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";

    if (!c->tls) {
        evbuffer_add(out, text, sizeof(text) - 1);
        return;
    }
    plain = evbuffer_new();
    if (!plain || evbuffer_add(plain, text, sizeof(text) - 1) != 0)
        abort();
    (void)http_tls_write(c->tls, plain, out, false); /* fails when the connection ends anyway */
    evbuffer_free(plain);
}

/* TLS: opens what has come, not more than is taken. False: it failed, and the client is being told. */
static bool conn_open_tls(struct conn *c)
{
    const char *why;

    if (evbuffer_get_length(c->plain) >= READ_HIGH)
        return true;
    if (http_tls_read(c->tls, bufferevent_get_input(c->bev), c->plain, bufferevent_get_output(c->bev), &c->eof, &why) == 0)
        return true;
    log_debug("api", "TLS failed", KS("peer", c->peer), KS("error", why));
    http_parser_release(&c->parser);
    c->close = c->linger = true;
    conn_set_state(c, CONN_WRITING, c->s->o.write_ms); /* the alert, if there is one */
    return false;
}

/* One step with the bytes that are there. False: wait for the next event. */
static bool conn_read(struct conn *c)
{
    struct evbuffer *in = c->tls ? c->plain : bufferevent_get_input(c->bev);

    if (c->tls && !conn_open_tls(c))
        return true;
    switch (http_parse(&c->parser, in)) {
    case HTTP_DONE:
        conn_handle(c);
        return true;
    case HTTP_BAD:
        conn_refuse(c, c->parser.status, c->parser.why);
        return true;
    case HTTP_MORE:
        break;
    }
    if (c->parser.wants_continue) {
        c->parser.wants_continue = false;
        conn_continue(c);
    }
    if (c->tls && evbuffer_get_length(bufferevent_get_input(c->bev)) > 0)
        return true; /* was not opened yet */
    if (c->eof)
        conn_close(c); /* in the middle of a request, or after the last one */
    else if (c->state == CONN_IDLE && c->parser.begun)
        conn_set_state(c, CONN_READING, c->s->o.request_ms);
    return false;
}

/* Does what the state and the input allow. Not entered twice. */
static void conn_run(struct conn *c)
{
    bool again = !c->running;

    if (c->running)
        return;
    c->running = true;
    while (again) {
        again = false;
        if (c->state == CONN_IDLE || c->state == CONN_READING) {
            again = conn_read(c);
        } else if (c->state == CONN_WRITING &&
                   evbuffer_get_length(bufferevent_get_output(c->bev)) == 0) {
            conn_sent(c);
            again = c->state == CONN_IDLE;
        }
    }
    c->running = false;
}

static void on_read(struct bufferevent *bev, void *arg)
{
    struct conn *c = arg;
    struct evbuffer *in = bufferevent_get_input(bev);

    if (c->state != CONN_LINGER) {
        conn_run(c);
        return;
    }
    c->drained += evbuffer_get_length(in);
    evbuffer_drain(in, evbuffer_get_length(in));
    if (c->drained > LINGER_BYTES)
        conn_close(c);
}

static void on_write(struct bufferevent *bev, void *arg)
{
    (void)bev;
    conn_run(arg);
}

/* The end of the client's data is not the end of the client: it may wait for its answer. */
static void on_event(struct bufferevent *bev, short what, void *arg)
{
    struct conn *c = arg;

    (void)bev;
    if (!(what & BEV_EVENT_EOF) || c->state == CONN_LINGER) {
        conn_close(c);
        return;
    }
    c->eof = true;
    conn_run(c);
}

static void on_timer(void *arg)
{
    struct conn *c = arg;

    if (c->state == CONN_READING)
        conn_refuse(c, 408, "the request did not arrive in time");
    else
        conn_close(c);
}

/* ---- accepting */

/* The quiet connection that waits longest for its next request: it gives way to a new one. */
static struct conn *idle_conn(struct http_server *s)
{
    struct conn *c;

    TAILQ_FOREACH(c, &s->conns, entry)
        if (c->state == CONN_IDLE && c->served)
            return c;
    return NULL;
}

/* "host:port" */
static void name_peer(struct conn *c, const struct sockaddr *a)
{
    char host[INET6_ADDRSTRLEN] = "?";
    bool v6 = a->sa_family == AF_INET6;
    const struct sockaddr_in6 *a6 = (const struct sockaddr_in6 *)(const void *)a;
    const struct sockaddr_in *a4 = (const struct sockaddr_in *)(const void *)a;

    (void)inet_ntop(a->sa_family, v6 ? (const void *)&a6->sin6_addr : (const void *)&a4->sin_addr, host, sizeof(host));
    snprintf(c->peer, sizeof(c->peer), v6 ? "[%s]:%u" : "%s:%u", host, ntohs(v6 ? a6->sin6_port : a4->sin_port));
}

static void conn_new(struct http_server *s, int fd, const struct sockaddr *peer)
{
    struct conn *c = xcalloc(1, sizeof(*c));
    int on = 1;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* only slower without */
    c->s = s;
    c->bev = bufferevent_socket_new(loop_base(s->o.loop), fd, BEV_OPT_CLOSE_ON_FREE);
    if (!c->bev)
        abort();
    name_peer(c, peer);
    if (s->o.tls) {
        c->tls = http_tls_new(s->o.tls);
        c->plain = evbuffer_new();
        if (!c->plain)
            abort();
    }
    http_parser_init(&c->parser, s->o.max_body);
    timer_init(&c->timer, s->o.loop, LOOP_PRIO_HIGH, on_timer, c);
    TAILQ_INSERT_TAIL(&s->conns, c, entry);
    s->n_conns++;
    bufferevent_priority_set(c->bev, LOOP_PRIO_HIGH);
    bufferevent_setcb(c->bev, on_read, on_write, on_event, c);
    bufferevent_setwatermark(c->bev, EV_READ, 0, READ_HIGH);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
    conn_set_state(c, CONN_IDLE, s->o.request_ms);
}

static void resume_accept(void *arg)
{
    struct http_server *s = arg;

    if (!s->full)
        event_add(s->accept_ev, NULL);
}

static void accept_failed(struct http_server *s)
{
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
        return;
    log_warn("api", "cannot accept a connection", KS("error", strerror(errno)));
    event_del(s->accept_ev);
    timer_set(&s->accept_pause, ACCEPT_PAUSE_MS);
}

static void on_accept(int listen_fd, short what, void *arg)
{
    struct http_server *s = arg;

    (void)what;
    for (int i = 0; i < ACCEPTS_PER_EVENT; i++) {
        struct conn *victim = NULL;
        struct sockaddr_storage peer = {0};
        socklen_t len = sizeof(peer);
        int fd;

        if (s->n_conns >= s->o.max_connections) {
            victim = idle_conn(s);
            if (!victim) { /* until one closes, new ones wait in the kernel's queue */
                s->full = true;
                event_del(s->accept_ev);
                return;
            }
        }
        fd = accept4(listen_fd, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            accept_failed(s);
            return;
        }
        if (victim)
            conn_close(victim);
        conn_new(s, fd, (struct sockaddr *)&peer);
    }
}

/* Numeric only: a name would have to be looked up, which blocks. */
static int parse_address(const char *text, struct sockaddr_storage *ret, int *ret_len,
                         struct err *err)
{
    const char *colon = strrchr(text, ':');
    char full[128];

    if (!colon || !colon[1] || strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return err_set(err, ERR_INVALID, ERRC_USER, "address %s: must be host:port", text);
    if (colon == text)
        snprintf(full, sizeof(full), "0.0.0.0%s", colon);
    else if (strncmp(text, "localhost:", 10) == 0)
        snprintf(full, sizeof(full), "127.0.0.1%s", colon);
    else
        snprintf(full, sizeof(full), "%s", text);
    *ret_len = sizeof(*ret);
    if (evutil_parse_sockaddr_port(full, (struct sockaddr *)ret, ret_len) == 0)
        return 0;
    /* libevent refuses port 0, which means any free one. */
    if (strcmp(colon, ":0") == 0) {
        full[strlen(full) - 2] = '\0';
        *ret_len = sizeof(*ret);
        if (evutil_parse_sockaddr_port(full, (struct sockaddr *)ret, ret_len) == 0)
            return 0;
    }
    return err_set(err, ERR_INVALID, ERRC_USER,
                   "address %s: the host must be a numeric address or localhost, the port at most "
                   "65535",
                   text);
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);

    if (getsockname(fd, (struct sockaddr *)&a, &len) != 0)
        return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

static int open_listener(const char *address, struct err *err)
{
    struct sockaddr_storage a;
    int len, fd, on = 1, e;

    if (parse_address(address, &a, &len, err) != 0)
        return -1;
    fd = socket(a.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)); /* bind tells */
        if (bind(fd, (struct sockaddr *)&a, (socklen_t)len) == 0 && listen(fd, 128) == 0)
            return fd;
    }
    e = errno;
    if (fd >= 0)
        close(fd);
    err_set(err, ERR_IO, ERRC_USER, "cannot listen on %s: %s", address, strerror(e));
    return -1;
}

struct http_server *http_listen(const struct http_options *o, struct err *err)
{
    struct http_server *s;
    int fd = open_listener(o->address, err);

    if (fd < 0) {
        http_tls_ctx_free(o->tls);
        return NULL;
    }
    s = xcalloc(1, sizeof(*s));
    s->o = *o;
    s->o.address = NULL;
    s->fd = fd;
    s->port = bound_port(fd);
    TAILQ_INIT(&s->conns);
    timer_init(&s->accept_pause, o->loop, LOOP_PRIO_HIGH, resume_accept, s);
    s->accept_ev = event_new(loop_base(o->loop), fd, EV_READ | EV_PERSIST, on_accept, s);
    if (!s->accept_ev || event_priority_set(s->accept_ev, LOOP_PRIO_HIGH) != 0)
        abort();
    event_add(s->accept_ev, NULL);
    return s;
}

void http_close(struct http_server *s)
{
    if (!s || !s->accept_ev)
        return;
    event_free(s->accept_ev);
    s->accept_ev = NULL;
    close(s->fd);
    timer_release(&s->accept_pause);
    http_tls_ctx_free(s->o.tls);
    s->o.tls = NULL;
    while (!TAILQ_EMPTY(&s->conns))
        conn_close(TAILQ_FIRST(&s->conns));
    loop_defer(s->o.loop, free, s); /* after the connections, which are deferred before */
}

uint16_t http_port(const struct http_server *s)
{
    return s->port;
}

void http_set_tls(struct http_server *s, struct ssl_ctx_st *take)
{
    http_tls_ctx_free(s->o.tls);
    s->o.tls = take;
}

void http_set_request_limit(struct http_server *s, unsigned ms)
{
    s->o.request_ms = ms;
}

unsigned http_connections(const struct http_server *s)
{
    return s->n_conns;
}

/* ---- requests */

const char *http_method(const struct http_request *r)
{
    return r->parser.method;
}

const char *http_path(const struct http_request *r)
{
    return r->parser.path;
}

const char *http_query(const struct http_request *r)
{
    return r->parser.query;
}

const char *http_authorization(const struct http_request *r)
{
    return r->parser.authorization;
}

const char *http_peer(const struct http_request *r)
{
    return r->peer;
}

const char *http_body(const struct http_request *r, size_t *ret_len)
{
    const char *p;

    *ret_len = evbuffer_get_length(r->parser.body);
    if (r->parser.too_large)
        return NULL;
    if (*ret_len == 0)
        return "";
    p = (const char *)evbuffer_pullup(r->parser.body, -1);
    if (!p)
        abort(); /* only without memory */
    return p;
}

static struct conn *request_end(struct http_request *r)
{
    struct conn *c = r->conn;

    if (c)
        c->request = NULL;
    http_parser_release(&r->parser);
    free(r);
    return c;
}

void http_reply(struct http_request *r, const struct http_answer *a)
{
    bool http11 = r->parser.http11, head = strcmp(r->parser.method, "HEAD") == 0;
    struct conn *c = request_end(r);

    if (!c)
        return;
    conn_write(c, a, http11, head); /* goes on in on_write() */
}

void http_drop(struct http_request *r)
{
    struct conn *c = request_end(r);

    if (c)
        conn_close(c);
}
