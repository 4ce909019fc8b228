#include "pg/hosts_priv.h"

#include "base/err.h"
#include "base/mem.h"
#include "loop/loop.h"

#include <event2/dns.h>
#include <event2/util.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct pg_hosts {
    struct loop *loop;
    char *names, *addrs, *ports; /* what is left of each list; names NULL: all are done */
    char *name, *port;           /* being looked up */
    char *last_port;             /* one port in the list is that of all */
    pg_hosts_fn done;
    void *arg;
    struct evdns_getaddrinfo_request *lookup;
    bool looking, cancelled;
    struct pg_host *list;
    size_t n;
    struct err err;
    struct timer step;
};

void pg_hosts_free(struct pg_host *hosts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(hosts[i].name);
        free(hosts[i].addr);
        free(hosts[i].port);
    }
    free(hosts);
}

static void hosts_free(struct pg_hosts *h)
{
    timer_release(&h->step);
    free(h->names);
    free(h->addrs);
    free(h->ports);
    free(h->name);
    free(h->port);
    free(h->last_port);
    free(h);
}

/* Cuts the first element off; NULL when the list has ended. */
static char *cut(char **list)
{
    char *all = *list, *comma, *first;

    if (!all)
        return NULL;
    comma = strchr(all, ',');
    first = comma ? xstrndup(all, (size_t)(comma - all)) : xstrdup(all);
    *list = comma ? xstrdup(comma + 1) : NULL;
    free(all);
    return first;
}

static void add(struct pg_hosts *h, const char *addr)
{
    h->list = xrealloc(h->list, (h->n + 1) * sizeof(*h->list));
    h->list[h->n++] = (struct pg_host){xstrdup(h->name), xstrdup(addr), xstrdup(h->port)};
}

static void finish(struct pg_hosts *h)
{
    pg_hosts_fn done = h->done;
    struct pg_hosts copy = *h;

    hosts_free(h);
    done(copy.arg, copy.list, copy.n, copy.n ? NULL : &copy.err);
}

static void on_lookup(int result, struct evutil_addrinfo *res, void *arg)
{
    struct pg_hosts *h = arg;
    char text[NI_MAXHOST];

    h->looking = false;
    h->lookup = NULL;
    for (struct evutil_addrinfo *ai = res; ai && !h->cancelled; ai = ai->ai_next)
        if (getnameinfo(ai->ai_addr, (socklen_t)ai->ai_addrlen, text, sizeof(text), NULL, 0, NI_NUMERICHOST) == 0)
            add(h, text);
    if (res)
        evutil_freeaddrinfo(res);
    if (h->cancelled) {
        hosts_free(h);
        return;
    }
    if (result)
        err_set(&h->err, ERR_UNAVAILABLE, ERRC_RETRY, "look-up of %s: %s", h->name, evutil_gai_strerror(result));
    timer_set(&h->step, 0);
}

static void look_up(struct pg_hosts *h)
{
    struct evutil_addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_protocol = IPPROTO_TCP};
    struct evdns_getaddrinfo_request *req;

    h->looking = true;
    req = evdns_getaddrinfo(loop_dns(h->loop), h->name, NULL, &hints, on_lookup, h);
    if (h->looking) /* numeric ones are answered inside */
        h->lookup = req;
}

static void on_step(void *arg)
{
    struct pg_hosts *h = arg;
    char *addr, *port;

    free(h->name);
    free(h->port);
    h->port = NULL;
    h->name = cut(&h->names);
    addr = cut(&h->addrs);
    if (!h->name && !addr) {
        finish(h);
        return;
    }
    if ((port = cut(&h->ports))) {
        free(h->last_port);
        h->last_port = port;
    }
    h->port = xstrdup(h->last_port ? h->last_port : "");
    if (!h->name)
        h->name = xstrdup("");
    if ((addr && *addr) || !*h->name || *h->name == '/' || *h->name == '@') {
        add(h, addr && *addr ? addr : NULL);
        timer_set(&h->step, 0);
    } else {
        look_up(h);
    }
    free(addr);
}

struct pg_hosts *pg_hosts_start(struct loop *l, const char *names, const char *addrs, const char *ports,
                                pg_hosts_fn done, void *arg)
{
    struct pg_hosts *h = xcalloc(1, sizeof(*h));

    h->loop = l;
    h->names = xstrdup(names ? names : addrs ? NULL : "");
    h->addrs = xstrdup(addrs);
    h->ports = xstrdup(ports);
    h->done = done;
    h->arg = arg;
    timer_init(&h->step, l, LOOP_PRIO_HIGH, on_step, h);
    timer_set(&h->step, 0);
    return h;
}

void pg_hosts_cancel(struct pg_hosts *h)
{
    if (!h)
        return;
    pg_hosts_free(h->list, h->n);
    h->list = NULL;
    h->n = 0;
    h->cancelled = true;
    if (!h->looking)
        hosts_free(h);
    else if (h->lookup)
        evdns_getaddrinfo_cancel(h->lookup);
}
