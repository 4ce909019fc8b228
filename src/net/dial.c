#include "net/dial_priv.h"

#include "base/mem.h"
#include "loop/loop.h"

#include <errno.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <event2/util.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct dial {
    struct loop *loop;
    char *host;
    unsigned timeout_ms;
    dial_fn done;
    void *arg;
    struct evdns_getaddrinfo_request *lookup;
    bool looking;   /* libevent still holds this object: on_lookup() comes, even after a cancel */
    bool cancelled;
    struct evutil_addrinfo *addrs, *next;
    unsigned n_addrs;
    int fd;
    struct event *writable; /* armed while fd connects */
    struct timer step;      /* zero: work; else: the time of one address is over */
    char addr[80];          /* of the current address, for people */
    char trouble[256];
};

static void dial_free(struct dial *d)
{
    free(d->host);
    free(d);
}

static void drop_socket(struct dial *d)
{
    if (d->writable)
        event_free(d->writable);
    d->writable = NULL;
    if (d->fd >= 0)
        close(d->fd);
    d->fd = -1;
}

/* Leaves nothing that could call back but the look-up, which then frees the memory. */
static void dial_release(struct dial *d)
{
    drop_socket(d);
    timer_release(&d->step);
    if (d->addrs)
        evutil_freeaddrinfo(d->addrs);
    d->addrs = NULL;
    d->cancelled = true;
    if (!d->looking)
        dial_free(d);
    else if (d->lookup)
        evdns_getaddrinfo_cancel(d->lookup);
}

static void finish(struct dial *d, int fd)
{
    d->done(d->arg, fd, d->trouble);
    dial_release(d);
}

static void name_address(struct dial *d, const struct evutil_addrinfo *ai)
{
    char host[NI_MAXHOST] = "?", serv[NI_MAXSERV] = "?";

    getnameinfo(ai->ai_addr, (socklen_t)ai->ai_addrlen, host, sizeof(host), serv, sizeof(serv),
                NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(d->addr, sizeof(d->addr), strchr(host, ':') ? "[%.60s]:%.8s" : "%.60s:%.8s", host,
             serv);
}

static void note_failure(struct dial *d, const char *why)
{
    snprintf(d->trouble, sizeof(d->trouble), "connect to %s: %s", d->addr, why);
    drop_socket(d);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    struct dial *d = arg;
    int e = 0;
    socklen_t len = sizeof(e);

    (void)what;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
        e = errno;
    if (e) {
        note_failure(d, strerror(e));
        timer_set(&d->step, 0);
        return;
    }
    d->fd = -1; /* the callee's now */
    finish(d, fd);
}

/* 0: under way. */
static int connect_to(struct dial *d, const struct evutil_addrinfo *ai)
{
    int one = 1;

    d->fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (d->fd < 0)
        return -1;
    (void)setsockopt(d->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* only latency */
    if (connect(d->fd, ai->ai_addr, (socklen_t)ai->ai_addrlen) < 0 && errno != EINPROGRESS)
        return -1;
    d->writable = event_new(loop_base(d->loop), d->fd, EV_WRITE, on_writable, d);
    return d->writable ? event_add(d->writable, NULL) : -1;
}

static void try_next(struct dial *d)
{
    while (d->next) {
        struct evutil_addrinfo *ai = d->next;

        d->next = ai->ai_next;
        name_address(d, ai);
        if (connect_to(d, ai) == 0) {
            if (d->n_addrs > 1)
                timer_set(&d->step, d->timeout_ms / d->n_addrs);
            return;
        }
        note_failure(d, strerror(errno));
    }
    finish(d, -1);
}

static void on_step(void *arg)
{
    struct dial *d = arg;

    if (d->fd >= 0)
        note_failure(d, "no answer");
    try_next(d);
}

static void on_lookup(int result, struct evutil_addrinfo *res, void *arg)
{
    struct dial *d = arg;

    d->looking = false;
    d->lookup = NULL;
    if (d->cancelled) {
        if (res)
            evutil_freeaddrinfo(res);
        dial_free(d);
        return;
    }
    if (result)
        snprintf(d->trouble, sizeof(d->trouble), "look-up of %s: %s", d->host,
                 evutil_gai_strerror(result));
    d->addrs = d->next = res;
    for (; res; res = res->ai_next)
        d->n_addrs++;
    timer_set(&d->step, 0); /* numeric addresses come here from inside dial_start() */
}

struct dial *dial_start(struct loop *l, const char *host, uint16_t port, unsigned timeout_ms,
                        dial_fn done, void *arg)
{
    struct dial *d = xcalloc(1, sizeof(*d));
    struct evutil_addrinfo hints = {.ai_family = AF_UNSPEC,
                                    .ai_socktype = SOCK_STREAM,
                                    .ai_protocol = IPPROTO_TCP};
    struct evdns_getaddrinfo_request *req;
    char serv[8];

    d->loop = l;
    d->host = xstrdup(host);
    d->timeout_ms = timeout_ms;
    d->done = done;
    d->arg = arg;
    d->fd = -1;
    d->looking = true;
    snprintf(d->trouble, sizeof(d->trouble), "no address for %s", host);
    timer_init(&d->step, l, LOOP_PRIO_NORMAL, on_step, d);
    snprintf(serv, sizeof(serv), "%u", port);
    req = evdns_getaddrinfo(loop_dns(l), host, serv, &hints, on_lookup, d);
    if (d->looking)
        d->lookup = req;
    return d;
}

void dial_cancel(struct dial *d)
{
    if (d)
        dial_release(d);
}
