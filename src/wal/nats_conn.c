#include "wal/nats_priv.h"

#include "base/clock.h"
#include "base/mem.h"
#include "net/dial_priv.h"
#include "net/tls_priv.h"

#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#define ERR_STATE openssl_ERR_STATE /* a type of OpenSSL, a code of base/err.h */
#include <openssl/ssl.h>
#undef ERR_STATE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    TURN_BYTES = 512 << 10, /* read in one turn of the loop */
    READ_HIGH = 256 << 10,  /* TLS: decrypted and not yet parsed */
    OUTPUT_MAX = 1 << 20,   /* requests that the server does not take */
};

enum conn_state {
    CONN_DIAL,  /* dial is set; limit armed */
    CONN_INFO,  /* fd and readable are set, the server speaks first; limit armed */
    CONN_TLS,   /* bev is set, handshake; limit armed */
    CONN_HELLO, /* bev is set, CONNECT and PING are sent; limit armed */
    CONN_UP,    /* alive armed */
    CONN_FAILED, /* kick armed: it reports */
    CONN_CLOSED, /* memory waits for the end of the loop turn */
};

struct nats_conn {
    struct loop *loop;
    struct nats_conn_options o;
    const struct nats_conn_events *ev;
    void *arg;
    enum conn_state state;
    struct dial *dial;
    int fd;                  /* without bev or with a plain one: to be closed here */
    struct event *readable;  /* plain: what comes goes straight into messages */
    struct bufferevent *bev; /* output; with TLS input too */
    struct nats_parser parser;
    struct timer limit, kick, alive;
    bool heard;  /* something came since alive was armed */
    bool pinged; /* and nothing came since */
    struct err err;
};

static void set_state(struct nats_conn *c, enum conn_state to)
{
    /* Bit n: a move to state n is legal. */
    static const unsigned end = 1 << CONN_FAILED | 1 << CONN_CLOSED;
    static const unsigned legal[] = {
        [CONN_DIAL] = 1 << CONN_INFO,
        [CONN_INFO] = 1 << CONN_TLS | 1 << CONN_HELLO,
        [CONN_TLS] = 1 << CONN_HELLO,
        [CONN_HELLO] = 1 << CONN_UP,
        [CONN_UP] = 0,
        [CONN_FAILED] = 0,
        [CONN_CLOSED] = 0,
    };

    assert(c->state != CONN_CLOSED && ((legal[c->state] | end) & 1u << to));
    c->state = to;
}

static bool is_live(const struct nats_conn *c)
{
    return c->state < CONN_FAILED;
}

static void fail_with(struct nats_conn *c, const struct err *err)
{
    if (!is_live(c))
        return;
    c->err = *err;
    err_wrap(&c->err, "NATS %s:%u", c->o.server->host, c->o.server->port);
    set_state(c, CONN_FAILED);
    timer_cancel(&c->limit);
    timer_cancel(&c->alive);
    if (c->readable)
        event_del(c->readable);
    if (c->bev)
        bufferevent_disable(c->bev, EV_READ | EV_WRITE);
    timer_set(&c->kick, 0);
}

__attribute__((format(printf, 3, 4))) static void fail(struct nats_conn *c, enum err_code code, const char *fmt, ...)
{
    struct err err = {.code = code, .cls = ERRC_RETRY};
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err.text, sizeof(err.text), fmt, ap);
    va_end(ap);
    fail_with(c, &err);
}

static void on_kick(void *arg)
{
    struct nats_conn *c = arg;

    c->ev->on_down(c->arg, &c->err);
}

/* ---- sending -------------------------------------------------------------------------------- */

static void send_bytes(struct nats_conn *c, const char *data, size_t len)
{
    if (!is_live(c))
        return;
    if (evbuffer_get_length(bufferevent_get_output(c->bev)) + len > OUTPUT_MAX)
        fail(c, ERR_UNAVAILABLE, "the server does not take what is sent to it");
    else if (bufferevent_write(c->bev, data, len) < 0)
        fail(c, ERR_LIMIT, "no memory for output");
}

static void send_line(struct nats_conn *c, char *take)
{
    send_bytes(c, take, strlen(take));
    free(take);
}

void nats_conn_subscribe(struct nats_conn *c, const char *subject, unsigned sid)
{
    send_line(c, xasprintf("SUB %s %u\r\n", subject, sid));
}

void nats_conn_publish(struct nats_conn *c, const char *subject, const char *reply, const char *payload)
{
    send_line(c, xasprintf("PUB %s%s%s %zu\r\n%s\r\n", subject, reply ? " " : "", reply ? reply : "", strlen(payload),
                           payload));
}

static void set_member(json_t *o, const char *key, const char *value)
{
    if (value)
        json_object_set_new(o, key, json_string(value));
}

/* CONNECT, then PING: its PONG tells that the login was accepted. */
static void say_hello(struct nats_conn *c)
{
    json_t *o = json_pack("{s:b,s:b,s:b,s:b,s:b,s:i,s:b,s:s,s:s,s:s}", "verbose", 0, "pedantic", 0, "headers", 1,
                          "no_responders", 1, "echo", 0, "protocol", 1, "tls_required", c->o.server->tls, "lang", "c",
                          "name", "milvus-cdc", "version", MILVUS_CDC_VERSION);
    char *text;

    set_member(o, "user", c->o.login->username);
    set_member(o, "pass", c->o.login->password);
    set_member(o, "auth_token", c->o.login->token);
    text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    set_state(c, CONN_HELLO);
    if (text)
        send_line(c, xasprintf("CONNECT %s\r\nPING\r\n", text));
    else /* names and passwords are text */
        fail(c, ERR_INVALID, "sourceConfig.natsmq.username, password or token is not UTF-8");
    free(text);
}

/* ---- operations ----------------------------------------------------------------------------- */

static void on_bev_event(struct bufferevent *bev, short what, void *arg);
static void on_bev_readable(struct bufferevent *bev, void *arg);

static struct bufferevent *new_bev(struct nats_conn *c)
{
    struct bufferevent *bev;
    SSL *ssl;

    if (!c->o.server->tls)
        return bufferevent_socket_new(loop_base(c->loop), c->fd, 0);
    ssl = tls_client_session(c->o.ctx, c->o.server->host);
    if (!ssl)
        return NULL;
    bev = bufferevent_openssl_socket_new(loop_base(c->loop), c->fd, ssl, BUFFEREVENT_SSL_CONNECTING,
                                         BEV_OPT_CLOSE_ON_FREE);
    if (bev)
        c->fd = -1; /* bev's now */
    else
        SSL_free(ssl);
    return bev;
}

static void start_tls(struct nats_conn *c)
{
    if (!nats_parser_empty(&c->parser)) {
        fail(c, ERR_PROTO, "the server sent plain text where TLS begins");
        return;
    }
    event_free(c->readable);
    c->readable = NULL;
    bufferevent_setwatermark(c->bev, EV_READ, 0, READ_HIGH);
    bufferevent_set_max_single_read(c->bev, READ_HIGH);
    set_state(c, CONN_TLS);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
}

static void on_info(struct nats_conn *c, struct nats_text text)
{
    json_t *info = json_loadb(text.s, text.len, 0, NULL);
    bool tls_must = json_is_true(json_object_get(info, "tls_required"));
    bool tls_may = tls_must || json_is_true(json_object_get(info, "tls_available"));
    bool headers = json_is_true(json_object_get(info, "headers")), ok = json_is_object(info);

    json_decref(info);
    if (c->state != CONN_INFO) /* news about the cluster */
        return;
    if (!ok) {
        fail(c, ERR_PROTO, "the server's INFO is not JSON");
    } else if (!headers) {
        fail(c, ERR_UNSUPPORTED, "the server knows no headers: it is older than 2.2 and has no JetStream");
    } else if (tls_must && !c->o.server->tls) {
        fail(c, ERR_STATE, "the server demands TLS: set sourceConfig.natsmq.enableTLS: true");
    } else if (!tls_may && c->o.server->tls) {
        fail(c, ERR_STATE, "the server does not offer TLS: check sourceConfig.natsmq.enableTLS and .address");
    } else if (!(c->bev = new_bev(c))) {
        fail(c, ERR_LIMIT, "no memory for a connection");
    } else {
        bufferevent_setcb(c->bev, on_bev_readable, NULL, on_bev_event, c);
        if (c->o.server->tls) {
            start_tls(c);
        } else {
            bufferevent_enable(c->bev, EV_WRITE);
            bufferevent_disable(c->bev, EV_READ);
            say_hello(c);
        }
    }
}

static bool begins(const char *text, const char *with)
{
    return strncasecmp(text, with, strlen(with)) == 0;
}

static void fail_login(struct nats_conn *c, const char *text)
{
    const struct nats_login *l = c->o.login;

    if (l->username)
        fail(c, ERR_AUTH,
             "the server refuses user \"%s\" (%s): check sourceConfig.natsmq.username and sourceConfig.natsmq.password",
             l->username, text);
    else if (l->token)
        fail(c, ERR_AUTH, "the server refuses the token (%s): check sourceConfig.natsmq.token", text);
    else
        fail(c, ERR_AUTH,
             "the server demands a login (%s): set sourceConfig.natsmq.username and .password, or .token", text);
}

static void on_error(struct nats_conn *c, struct nats_text t)
{
    char text[200];
    size_t n = 0;

    for (; n < t.len && n < sizeof(text) - 1; n++)
        text[n] = (unsigned char)t.s[n] < ' ' ? '?' : t.s[n];
    text[n] = 0;
    if (begins(text, "Permissions Violation") || begins(text, "Invalid Subject"))
        c->ev->on_refused(c->arg, text);
    else if (begins(text, "Authorization") || begins(text, "User Authentication") ||
             begins(text, "Account Authentication"))
        fail_login(c, text);
    else if (begins(text, "Secure Connection"))
        fail(c, ERR_STATE, "the server demands TLS: set sourceConfig.natsmq.enableTLS: true");
    else
        fail(c, ERR_UNAVAILABLE, "the server ends the connection: %s", text);
}

static void on_pong(struct nats_conn *c)
{
    if (c->state != CONN_HELLO)
        return;
    timer_cancel(&c->limit);
    set_state(c, CONN_UP);
    c->heard = true;
    timer_set(&c->alive, c->o.ping_ms);
    c->ev->on_up(c->arg);
}

static void on_op(struct nats_conn *c, const struct nats_op *op)
{
    if (c->state == CONN_INFO && op->kind != NATS_INFO && op->kind != NATS_ERR) {
        fail(c, ERR_PROTO, "the server does not begin with INFO");
        return;
    }
    switch (op->kind) {
    case NATS_INFO:
        on_info(c, op->text);
        break;
    case NATS_MSG:
        if (c->state == CONN_UP)
            c->ev->on_msg(c->arg, op);
        break;
    case NATS_PING:
        if (c->bev)
            send_bytes(c, "PONG\r\n", 6);
        break;
    case NATS_PONG:
        on_pong(c);
        break;
    case NATS_OK:
        break;
    case NATS_ERR:
        on_error(c, op->text);
        break;
    }
}

/* ---- receiving ------------------------------------------------------------------------------ */

/* Parses what was put into the parser. False: the connection is over. After on_info() began TLS nothing is left. */
static bool parse(struct nats_conn *c)
{
    struct nats_op op;
    struct err err;
    int rv = 0;

    while (is_live(c) && (rv = nats_parser_next(&c->parser, &op, &err)) == 1)
        on_op(c, &op);
    if (rv < 0)
        fail_with(c, &err);
    return is_live(c);
}

static void note_life(struct nats_conn *c)
{
    c->heard = true;
    if (c->pinged) {
        c->pinged = false;
        timer_set(&c->alive, c->o.ping_ms);
    }
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct nats_conn *c = arg;
    size_t budget = TURN_BYTES;

    (void)what;
    note_life(c);
    while (budget > 0) {
        uint8_t *to;
        size_t room;
        ssize_t n;

        nats_parser_space(&c->parser, &to, &room);
        room = room < budget ? room : budget;
        n = recv(fd, to, room, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            fail(c, ERR_UNAVAILABLE, "%s", n ? strerror(errno) : "connection closed by the server");
            return;
        }
        nats_parser_filled(&c->parser, (size_t)n);
        budget -= (size_t)n;
        if (!parse(c) || !c->readable || (size_t)n < room)
            return;
    }
}

static void on_bev_readable(struct bufferevent *bev, void *arg)
{
    struct nats_conn *c = arg;
    struct evbuffer *in = bufferevent_get_input(bev);

    note_life(c);
    while (evbuffer_get_length(in) > 0) {
        uint8_t *to;
        size_t room;
        int n;

        nats_parser_space(&c->parser, &to, &room);
        n = evbuffer_remove(in, to, room);
        if (n <= 0)
            return;
        nats_parser_filled(&c->parser, (size_t)n);
        if (!parse(c))
            return;
    }
}

static void on_bev_event(struct bufferevent *bev, short what, void *arg)
{
    struct nats_conn *c = arg;
    int e = errno;
    char text[200];

    if (what & BEV_EVENT_CONNECTED) {
        if (c->state == CONN_TLS)
            say_hello(c);
        return;
    }
    if (what & BEV_EVENT_EOF) {
        fail(c, ERR_UNAVAILABLE, "%s", c->state == CONN_TLS ? "TLS: connection closed in the handshake"
                                                            : "connection closed by the server");
    } else if (what & BEV_EVENT_ERROR && c->o.server->tls) {
        tls_failure(bufferevent_openssl_get_ssl(bev), bufferevent_get_openssl_error(bev), text, sizeof(text));
        fail(c, ERR_UNAVAILABLE, "%s%s", text,
             strstr(text, "certificate") ? " (see sourceConfig.natsmq.tlsCACertPath, .tlsCertPath)" : "");
    } else if (what & BEV_EVENT_ERROR) {
        fail(c, ERR_UNAVAILABLE, "%s", strerror(e));
    }
}

/* ---- timers, opening, closing --------------------------------------------------------------- */

static void on_alive(void *arg)
{
    struct nats_conn *c = arg;

    if (c->pinged) {
        fail(c, ERR_TIMEOUT, "no answer to a ping within %u ms", c->o.ping_ms);
        return;
    }
    if (!c->heard) {
        c->pinged = true;
        send_bytes(c, "PING\r\n", 6);
    }
    c->heard = false;
    timer_set(&c->alive, c->o.ping_ms);
}

static void on_limit(void *arg)
{
    struct nats_conn *c = arg;
    const char *what = c->state == CONN_DIAL   ? "look-up and TCP connect"
                       : c->state == CONN_INFO ? "waiting for the server's INFO"
                       : c->state == CONN_TLS  ? "TLS handshake"
                                               : "login";

    fail(c, ERR_TIMEOUT, "%s not finished %u ms after the start of connecting", what, c->o.connect_timeout_ms);
}

static void on_dialed(void *arg, int fd, const char *trouble)
{
    struct nats_conn *c = arg;

    c->dial = NULL;
    if (fd < 0) {
        fail(c, ERR_UNAVAILABLE, "%s", trouble);
        return;
    }
    c->fd = fd;
    c->readable = event_new(loop_base(c->loop), fd, EV_READ | EV_PERSIST, on_readable, c);
    if (!c->readable)
        abort(); /* no memory */
    event_priority_set(c->readable, LOOP_PRIO_LOW);
    set_state(c, CONN_INFO);
    event_add(c->readable, NULL);
}

struct nats_conn *nats_conn_open(struct loop *l, const struct nats_conn_options *o, const struct nats_conn_events *ev,
                                 void *arg)
{
    struct nats_conn *c = xcalloc(1, sizeof(*c));

    c->loop = l;
    c->o = *o;
    c->ev = ev;
    c->arg = arg;
    c->fd = -1;
    nats_parser_init(&c->parser);
    timer_init(&c->limit, l, LOOP_PRIO_NORMAL, on_limit, c);
    timer_init(&c->kick, l, LOOP_PRIO_NORMAL, on_kick, c);
    timer_init(&c->alive, l, LOOP_PRIO_LOW, on_alive, c); /* after what can be read now */
    timer_set(&c->limit, o->connect_timeout_ms);
    c->dial = dial_start(l, o->server->host, o->server->port, o->connect_timeout_ms, on_dialed, c);
    return c;
}

static void conn_free(void *arg)
{
    struct nats_conn *c = arg;

    nats_parser_release(&c->parser);
    free(c);
}

void nats_conn_close(struct nats_conn *c)
{
    if (!c || c->state == CONN_CLOSED)
        return;
    set_state(c, CONN_CLOSED);
    dial_cancel(c->dial);
    timer_release(&c->limit);
    timer_release(&c->kick);
    timer_release(&c->alive);
    if (c->readable)
        event_free(c->readable);
    c->readable = NULL;
    if (c->bev)
        bufferevent_free(c->bev);
    c->bev = NULL;
    if (c->fd >= 0)
        close(c->fd);
    loop_defer(c->loop, conn_free, c); /* parse() may be below us */
}
