#include "wal/nats.h"

#include "base/mem.h"
#include "net/tls_priv.h"
#include "wal/nats_priv.h"

#include <string.h>
#include <strings.h>

enum {
    DEFAULT_FETCH_BYTES = 8 << 20,
    MIN_FETCH_BYTES = 64 << 10,
    DEFAULT_PORT = 4222,
};

static int bad_setting(struct err *err, const char *key, const char *why)
{
    return err_set(err, ERR_INVALID, ERRC_USER, "sourceConfig.natsmq.%s: %s", key, why);
}

static bool take_scheme(const char **s, const char *scheme)
{
    size_t len = strlen(scheme);

    if (strncasecmp(*s, scheme, len) != 0)
        return false;
    *s += len;
    return true;
}

/* "host", "host:port", "[v6]", "[v6]:port"; 0 or -1. */
static int parse_host(const char *s, size_t len, struct nats_server *ret)
{
    const char *end = s + len, *host = s, *colon;
    unsigned long port = DEFAULT_PORT;
    size_t host_len;

    if (len && *s == '[') {
        const char *close = memchr(s, ']', len);

        if (!close || (close + 1 < end && close[1] != ':'))
            return -1;
        host = s + 1;
        host_len = (size_t)(close - host);
        colon = close + 1 < end ? close + 1 : NULL;
    } else {
        colon = memchr(s, ':', len);
        host_len = colon ? (size_t)(colon - s) : len;
    }
    if (colon) {
        port = 0;
        for (const char *p = colon + 1; p < end && port <= UINT16_MAX; p++) {
            if (*p < '0' || *p > '9')
                return -1;
            port = port * 10 + (unsigned long)(*p - '0');
        }
    }
    if (host_len == 0 || port == 0 || port > UINT16_MAX)
        return -1;
    for (size_t i = 0; i < host_len; i++) {
        if ((unsigned char)host[i] <= ' ' || strchr("@/[]", host[i]))
            return -1;
    }
    ret->host = xstrndup(host, host_len);
    ret->port = (uint16_t)port;
    return 0;
}

static int parse_servers(struct nats_port *w, const char *address, bool tls, struct err *err)
{
    const char *s = address ? address : "";

    while (*s) {
        struct nats_server one = {.tls = tls};
        size_t len;

        s += strspn(s, " ,");
        if (!*s)
            break;
        if (take_scheme(&s, "tls://"))
            one.tls = true;
        else
            (void)take_scheme(&s, "nats://"); /* may be missing */
        len = strcspn(s, " ,");
        if (parse_host(s, len, &one)) /* its text may have a password in it */
            return bad_setting(err, "address",
                               "must be host:port, nats://host:port or tls://host:port, several with commas (a login "
                               "belongs into username and password)");
        w->servers = xrealloc(w->servers, (w->n_servers + 1) * sizeof(one));
        w->servers[w->n_servers++] = one;
        s += len;
    }
    return w->n_servers ? 0 : bad_setting(err, "address", "is missing");
}

static bool is_set(const char *s)
{
    return s && *s;
}

static char *dup_set(const char *s)
{
    return is_set(s) ? xstrdup(s) : NULL;
}

static int check_login(const struct nats_options *o, struct err *err)
{
    if (is_set(o->password) && !is_set(o->username))
        return bad_setting(err, "username", "is missing, but there is a password");
    if (is_set(o->token) && is_set(o->username))
        return bad_setting(err, "token", "cannot be used together with username");
    return 0;
}

static int check_tls(struct nats_port *w, const struct nats_options *o, struct err *err)
{
    struct tls_options to = {.ca_path = is_set(o->ca_path) ? o->ca_path : NULL,
                             .cert_path = is_set(o->cert_path) ? o->cert_path : NULL,
                             .key_path = is_set(o->key_path) ? o->key_path : NULL};
    bool any = false;

    for (size_t i = 0; i < w->n_servers; i++)
        any |= w->servers[i].tls;
    if (!any && (to.ca_path || to.cert_path || to.key_path))
        return bad_setting(err, "enableTLS", "must be true to use the TLS files");
    if (!any)
        return 0;
    w->ctx = tls_client_ctx(&to, err);
    return w->ctx ? 0 : err_wrap(err, "sourceConfig.natsmq.tlsCACertPath, tlsCertPath, tlsKeyPath");
}

int nats_options_apply(struct nats_port *w, const struct nats_options *o, struct err *err)
{
    int code = parse_servers(w, o->address, o->tls, err);

    if (!code)
        code = check_login(o, err);
    if (!code)
        code = check_tls(w, o, err);
    if (code)
        return code;
    w->login = (struct nats_login){dup_set(o->username), dup_set(o->password), dup_set(o->token)};
    w->fetch_bytes = o->fetch_bytes ? o->fetch_bytes : DEFAULT_FETCH_BYTES;
    if (w->fetch_bytes < MIN_FETCH_BYTES)
        w->fetch_bytes = MIN_FETCH_BYTES;
    return 0;
}
