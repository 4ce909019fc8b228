/* etcd_endpoint.c - the endpoints: parsed once, and taken in turn when one fails. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "milvus/etcd_priv.h"

enum { LAST_MS = 1000 /* patience with the last endpoint of a round: the first may be back */ };

static int bad_endpoint(const char *text, const char *why, struct err *err)
{
    return err_set(err, ERR_INVALID, ERRC_USER,
                   "etcd endpoint \"%s\": %s; expected host:port, http://host:port or "
                   "https://host:port",
                   text, why);
}

/* Splits "host:port" and "[v6]:port"; the rest of the text must be empty. */
static int parse_host_port(const char *text, const char *p, char **ret_host, uint16_t *ret_port,
                           struct err *err)
{
    const char *colon = strrchr(p, ':'), *end = colon;
    char *rest;
    unsigned long port;

    if (!colon || colon == p)
        return bad_endpoint(text, "host or port is missing", err);
    if (colon[1] < '0' || colon[1] > '9')
        return bad_endpoint(text, "the port is not a number", err);
    port = strtoul(colon + 1, &rest, 10);
    if (rest[0] == '/' && rest[1] == '\0')
        rest++;
    if (*rest || port == 0 || port > UINT16_MAX)
        return bad_endpoint(text, "the port is not a number from 1 to 65535", err);
    if (*p == '[' && end[-1] == ']' && end - p > 2) {
        p++;
        end--;
    } else if (memchr(p, ':', (size_t)(colon - p)) || memchr(p, '/', (size_t)(colon - p))) {
        return bad_endpoint(text, "the host name is not valid", err);
    }
    *ret_host = xstrndup(p, (size_t)(end - p));
    *ret_port = (uint16_t)port;
    return 0;
}

static int parse_endpoint(const char *text, bool *tls, char **ret_host, uint16_t *ret_port,
                          struct err *err)
{
    const char *p = text;

    if (strncmp(p, "https://", 8) == 0) {
        *tls = true;
        p += 8;
    } else if (strncmp(p, "http://", 7) == 0) {
        /* Silently sending a password in the clear would be worse than refusing to start. */
        if (*tls)
            return bad_endpoint(text, "http:// contradicts the setting that TLS is on", err);
        p += 7;
    } else if (strstr(p, "://")) {
        return bad_endpoint(text, "unknown scheme", err);
    }
    return parse_host_port(text, p, ret_host, ret_port, err);
}

static int endpoint_init(struct etcd_client *e, const struct etcd_options *o, const char *text,
                         struct err *err)
{
    struct grpc_options g = {.tls = o->tls,
                             .ca_path = o->ca_path,
                             .cert_path = o->cert_path,
                             .key_path = o->key_path,
                             .tls_min_version = o->tls_min_version,
                             .connect_timeout_ms = o->dial_timeout_ms,
                             .log_name = "etcd"};
    struct endpoint *ep = &e->endpoints[e->n_endpoints];
    char *host = NULL;
    int rc = parse_endpoint(text, &g.tls, &host, &g.port, err);

    if (rc)
        return rc;
    g.host = host;
    ep->grpc = grpc_client_new(e->loop, &g, err);
    if (!ep->grpc) {
        err_wrap(err, "etcd endpoint \"%s\"", text);
        free(host);
        return ERR_INVALID;
    }
    ep->name = xasprintf(strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, (unsigned)g.port);
    e->n_endpoints++;
    free(host);
    return 0;
}

int etcd_endpoints_init(struct etcd_client *e, const struct etcd_options *o, struct err *err)
{
    unsigned n = 0;
    int rc = 0;

    while (o->endpoints && o->endpoints[n])
        n++;
    if (n == 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "no etcd endpoint is given");
    e->endpoints = xcalloc(n, sizeof(*e->endpoints));
    for (unsigned i = 0; i < n && rc == 0; i++)
        rc = endpoint_init(e, o, o->endpoints[i], err);
    return rc;
}

struct endpoint *etcd_rot_endpoint(const struct etcd_client *e, const struct rotation *r)
{
    return &e->endpoints[r->at];
}

void etcd_rot_start(const struct etcd_client *e, struct rotation *r)
{
    r->at = e->current;
    r->tried = 0;
}

bool etcd_rot_give_up(const struct etcd_client *e, const struct rotation *r,
                        const char **ret_why)
{
    uint64_t patience_ms = e->n_endpoints == 1 ? e->dial_ms : LAST_MS;

    *ret_why = grpc_client_trouble(etcd_rot_endpoint(e, r)->grpc);
    return *ret_why &&
           (r->tried + 1 < e->n_endpoints || clock_mono_ms() - r->since_ms >= patience_ms);
}

static bool rot_has_more(const struct etcd_client *e, const struct rotation *r)
{
    return r->tried + 1 < e->n_endpoints;
}

bool etcd_rot_next(struct etcd_client *e, struct rotation *r)
{
    bool more = rot_has_more(e, r);

    if (e->current == r->at)
        e->current = (e->current + 1) % e->n_endpoints;
    /* The last of a round gets more time to connect than the others: let that be another one then. */
    if (!more && e->n_endpoints > 1)
        e->current = (e->current + 1) % e->n_endpoints;
    if (more) {
        r->at = (r->at + 1) % e->n_endpoints;
        r->tried++;
    }
    return more;
}
