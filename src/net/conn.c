#include "net/conn.h"

#include "base/err.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "net/dial_priv.h"
#include "net/tls_priv.h"

#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/event.h>
#define ERR_STATE openssl_ERR_STATE /* a type of OpenSSL, a code of base/err.h */
#include <openssl/err.h>
#include <openssl/ssl.h>
#undef ERR_STATE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TLS_WRITE_ONCE = 16384 };

struct conn_tls {
    SSL_CTX *ctx;
    bool skip_hostname;
};

enum conn_state {
    CONN_DIAL,      /* limit armed */
    CONN_HANDSHAKE, /* limit armed, one socket event */
    CONN_OPEN,      /* readable armed; writable while something is unsent */
    CONN_FAILED,    /* report armed: on_down() comes from there */
    CONN_CLOSED,
};

struct conn {
    struct loop *loop;
    struct conn_tls *tls;
    const struct conn_events *ev;
    void *arg;
    enum conn_state state;
    char *host;
    struct dial *dial;
    int fd;
    SSL *ssl;
    struct event *readable, *writable;
    bool read_wants_write; /* TLS renegotiates: reading goes on when the socket is writable */
    struct evbuffer *out;
    struct timer limit;
    struct timer step; /* CONN_FAILED: the report; CONN_OPEN: bytes that OpenSSL holds already */
    char why[300];
};

struct conn_tls *conn_tls_new(const struct conn_tls_options *o, struct err *err)
{
    struct tls_options t = {
        .ca_path = o->ca_path, .cert_path = o->cert_path, .key_path = o->key_path, .no_alpn = true};
    SSL_CTX *ctx = tls_client_ctx(&t, err);
    struct conn_tls *ret;

    if (!ctx)
        return NULL;
    if (o->insecure)
        SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    ret = xcalloc(1, sizeof(*ret));
    ret->ctx = ctx;
    ret->skip_hostname = o->skip_hostname || o->insecure;
    return ret;
}

void conn_tls_free(struct conn_tls *t)
{
    if (!t)
        return;
    tls_client_ctx_free(t->ctx);
    free(t);
}

static bool is_live(const struct conn *c)
{
    return c->state < CONN_FAILED;
}

static void drop_socket(struct conn *c)
{
    dial_cancel(c->dial);
    c->dial = NULL;
    if (c->readable)
        event_free(c->readable);
    if (c->writable)
        event_free(c->writable);
    c->readable = c->writable = NULL;
    SSL_free(c->ssl);
    c->ssl = NULL;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

static void fail(struct conn *c, const char *why)
{
    if (!is_live(c))
        return;
    snprintf(c->why, sizeof(c->why), "%s", why);
    c->state = CONN_FAILED;
    drop_socket(c);
    timer_cancel(&c->limit);
    timer_set(&c->step, 0);
}

/* What OpenSSL wants before rc can be more than 0. */
static void tls_wants(struct conn *c, int rc, bool reading)
{
    char text[200];

    switch (SSL_get_error(c->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        return; /* readable stays armed */
    case SSL_ERROR_WANT_WRITE:
        c->read_wants_write |= reading;
        event_add(c->writable, NULL);
        return;
    case SSL_ERROR_ZERO_RETURN:
        fail(c, "connection closed by the peer");
        return;
    default:
        tls_failure(c->ssl, ERR_peek_error(), text, sizeof(text));
        fail(c, text);
    }
}

static void flush(struct conn *c);

static void opened(struct conn *c)
{
    c->state = CONN_OPEN;
    timer_cancel(&c->limit);
    flush(c);
    if (c->state == CONN_OPEN)
        c->ev->on_open(c->arg);
}

static void shake(struct conn *c)
{
    int rc;

    ERR_clear_error();
    rc = SSL_do_handshake(c->ssl);
    if (rc == 1)
        opened(c);
    else
        tls_wants(c, rc, false);
}

static size_t read_plain(struct conn *c, void *data, size_t n)
{
    ssize_t got;

    do
        got = recv(c->fd, data, n, 0);
    while (got < 0 && errno == EINTR);
    if (got > 0)
        return (size_t)got;
    if (got == 0)
        fail(c, "connection closed by the peer");
    else if (errno != EAGAIN && errno != EWOULDBLOCK)
        fail(c, strerror(errno));
    return 0;
}

static size_t read_tls(struct conn *c, void *data, size_t n)
{
    int rc;

    ERR_clear_error();
    rc = SSL_read(c->ssl, data, n > INT32_MAX ? INT32_MAX : (int)n);
    if (rc > 0)
        return (size_t)rc;
    tls_wants(c, rc, true);
    return 0;
}

size_t conn_read(struct conn *c, void *data, size_t n)
{
    if (c->state != CONN_OPEN || n == 0)
        return 0;
    return c->ssl ? read_tls(c, data, n) : read_plain(c, data, n);
}

static bool write_tls(struct conn *c)
{
    size_t n = evbuffer_get_length(c->out);
    unsigned char *p;
    int rc;

    if (n > TLS_WRITE_ONCE)
        n = TLS_WRITE_ONCE;
    p = evbuffer_pullup(c->out, (ev_ssize_t)n);
    if (!p)
        abort(); /* no memory */
    ERR_clear_error();
    rc = SSL_write(c->ssl, p, (int)n);
    if (rc > 0) {
        evbuffer_drain(c->out, (size_t)rc);
        return true;
    }
    tls_wants(c, rc, false);
    return false;
}

static bool write_plain(struct conn *c)
{
    int rc = evbuffer_write(c->out, c->fd);

    if (rc > 0)
        return true;
    if (rc < 0 && errno != EAGAIN && errno != EINTR)
        fail(c, strerror(errno));
    return false;
}

static void flush(struct conn *c)
{
    while (c->state == CONN_OPEN && evbuffer_get_length(c->out) > 0) {
        if (c->ssl ? write_tls(c) : write_plain(c))
            continue;
        if (c->state == CONN_OPEN && !c->ssl)
            event_add(c->writable, NULL);
        return;
    }
}

void conn_write(struct conn *c, const void *data, size_t n)
{
    if (!is_live(c))
        return;
    if (evbuffer_add(c->out, data, n) < 0)
        abort(); /* no memory */
    if (c->state == CONN_OPEN)
        flush(c);
}

size_t conn_unsent(const struct conn *c)
{
    return evbuffer_get_length(c->out);
}

static void readable(struct conn *c)
{
    c->ev->on_readable(c->arg);
    /* The socket does not tell of bytes that OpenSSL has taken from it. */
    if (c->state == CONN_OPEN && c->ssl && SSL_has_pending(c->ssl) && !c->read_wants_write)
        timer_set(&c->step, 0);
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;

    (void)fd;
    (void)what;
    if (c->state == CONN_HANDSHAKE) {
        shake(c);
        return;
    }
    if (c->ssl) /* a write may have waited for it */
        flush(c);
    if (c->state == CONN_OPEN)
        readable(c);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;
    bool read = c->read_wants_write;

    (void)fd;
    (void)what;
    if (c->state == CONN_HANDSHAKE) {
        shake(c);
        return;
    }
    c->read_wants_write = false;
    flush(c);
    if (read && c->state == CONN_OPEN)
        readable(c);
}

static void on_step(void *arg)
{
    struct conn *c = arg;

    if (c->state == CONN_FAILED)
        c->ev->on_down(c->arg, c->why);
    else if (c->state == CONN_OPEN)
        readable(c);
}

static void on_limit(void *arg)
{
    struct conn *c = arg;

    fail(c, c->state == CONN_DIAL ? "no connection in time" : "TLS: handshake not finished in time");
}

static bool start_tls(struct conn *c)
{
    c->ssl = c->tls->skip_hostname ? tls_client_session_any(c->tls->ctx, c->host)
                                   : tls_client_session(c->tls->ctx, c->host);
    if (!c->ssl || SSL_set_fd(c->ssl, c->fd) != 1)
        return false;
    SSL_set_connect_state(c->ssl);
    return true;
}

static void on_dialed(void *arg, int fd, const char *trouble)
{
    struct conn *c = arg;

    c->dial = NULL;
    if (fd < 0) {
        fail(c, trouble);
        return;
    }
    c->fd = fd;
    c->readable = event_new(loop_base(c->loop), fd, EV_READ | EV_PERSIST, on_readable, c);
    c->writable = event_new(loop_base(c->loop), fd, EV_WRITE, on_writable, c);
    if (!c->readable || !c->writable || event_add(c->readable, NULL) < 0)
        abort(); /* no memory */
    if (!c->tls) {
        opened(c);
        return;
    }
    if (!start_tls(c)) {
        fail(c, "TLS: no memory for a session");
        return;
    }
    c->state = CONN_HANDSHAKE;
    shake(c);
}

struct conn *conn_open(struct loop *l, const char *host, uint16_t port, struct conn_tls *tls, unsigned timeout_ms,
                       const struct conn_events *ev, void *arg)
{
    struct conn *c = xcalloc(1, sizeof(*c));

    c->loop = l;
    c->tls = tls;
    c->ev = ev;
    c->arg = arg;
    c->fd = -1;
    c->host = xstrdup(host);
    c->out = evbuffer_new();
    if (!c->out)
        abort(); /* no memory */
    timer_init(&c->limit, l, LOOP_PRIO_NORMAL, on_limit, c);
    timer_init(&c->step, l, LOOP_PRIO_NORMAL, on_step, c);
    timer_set(&c->limit, timeout_ms);
    c->dial = dial_start(l, host, port, timeout_ms, on_dialed, c);
    return c;
}

static void conn_free(void *arg)
{
    struct conn *c = arg;

    evbuffer_free(c->out);
    free(c->host);
    free(c);
}

void conn_close(struct conn *c)
{
    if (!c || c->state == CONN_CLOSED)
        return;
    c->state = CONN_CLOSED;
    drop_socket(c);
    timer_release(&c->limit);
    timer_release(&c->step);
    loop_defer(c->loop, conn_free, c); /* a callback of it may be running */
}
