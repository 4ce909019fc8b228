#include "wal/pulsar.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "net/conn.h"
#include "wal/pulsar_priv.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum {
    DEFAULT_PORT = 6650,
    DEFAULT_TLS_PORT = 6651,
    DEFAULT_RECEIVE = 8 << 20,
    MIN_RECEIVE = 64 << 10,
};

/* ---- ids ------------------------------------------------------------------------------------- */

bool pulsar_pos(uint64_t ledger, uint64_t entry, int32_t index, struct wal_pos *ret)
{
    uint32_t i = index < 0 ? 0 : (uint32_t)index;

    if (ledger > INT64_MAX || entry >> (64 - PULSAR_INDEX_BITS) || i >> PULSAR_INDEX_BITS)
        return false;
    *ret = (struct wal_pos){ledger + 1, entry << PULSAR_INDEX_BITS | i};
    return true;
}

static size_t put_field(uint8_t *p, uint8_t tag, uint64_t v)
{
    size_t n = 0;

    p[n++] = tag;
    for (; v >= 0x80; v >>= 7)
        p[n++] = (uint8_t)(v | 0x80);
    p[n++] = (uint8_t)v;
    return n;
}

/* All four fields, zeros too, as Milvus's client writes them (source.md 7.2). */
static size_t id_encode(struct wal_pos pos, uint8_t *ret_id)
{
    size_t n = put_field(ret_id, 0x08, pos.major ? pos.major - 1 : 0);

    n += put_field(ret_id + n, 0x10, pos.minor >> PULSAR_INDEX_BITS);
    n += put_field(ret_id + n, 0x18, 0);
    n += put_field(ret_id + n, 0x20, pos.minor & ((1u << PULSAR_INDEX_BITS) - 1));
    return n;
}

/* 0, or ERR_PROTO: not a message's id ("earliest" and "latest" are none). Fields of other clients are passed over. */
static int id_decode(const uint8_t *id, size_t len, struct wal_pos *ret_pos)
{
    struct pb_scan s = pb_scan_init(id, len);
    uint64_t ledger = PULSAR_ID_NONE, entry = PULSAR_ID_NONE;
    int64_t index = -1;
    struct pb_field f;
    int rc;

    while ((rc = pb_scan_next(&s, &f)) > 0) {
        if (f.num <= 4 && f.wire != PB_VARINT)
            return ERR_PROTO;
        if (f.num == 1)
            ledger = f.varint;
        else if (f.num == 2)
            entry = f.varint;
        else if (f.num == 4)
            index = (int64_t)f.varint;
    }
    if (rc < 0 || index > INT32_MAX || !pulsar_pos(ledger, entry, index < 0 ? -1 : (int32_t)index, ret_pos))
        return ERR_PROTO;
    return 0;
}

static const struct wal_port_ops pulsar_ops = {
    .open = preader_open,
    .pause = preader_pause,
    .resume = preader_resume,
    .close = preader_close,
    .end = pend_start,
    .end_cancel = pend_cancel,
    .retain = pretain_set,
    .forget = pretain_forget,
    .id_encode = id_encode,
    .id_decode = id_decode,
};

/* ---- settings -------------------------------------------------------------------------------- */

static bool port_parse(const char *text, size_t len, uint16_t *ret)
{
    unsigned v = 0;

    if (len == 0 || len > 5)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        v = v * 10 + (unsigned)(text[i] - '0');
    }
    *ret = (uint16_t)v;
    return v > 0 && v <= UINT16_MAX;
}

bool pulsar_addr_parse(const char *text, size_t len, uint16_t default_port, struct pulsar_addr *ret)
{
    const char *host = text, *end = text + len, *host_end, *rest;

    while (len > 0 && end[-1] == '/') { /* "pulsar://h:p/" */
        end--;
        len--;
    }
    if (len > 0 && *text == '[') {
        host++;
        host_end = memchr(host, ']', (size_t)(end - host));
        rest = host_end ? host_end + 1 : NULL;
    } else {
        host_end = memchr(host, ':', (size_t)(end - host));
        host_end = host_end ? host_end : end;
        rest = host_end;
    }
    if (!host_end || host_end == host || host_end - host > 255)
        return false;
    for (const char *p = host; p < host_end; p++) {
        if (*p <= ' ' || *p >= 0x7f || strchr("/@?,[]", *p))
            return false;
    }
    ret->port = default_port;
    if (rest == end ? default_port == 0 : *rest != ':' || !port_parse(rest + 1, (size_t)(end - rest - 1), &ret->port))
        return false;
    ret->host = xstrndup(host, (size_t)(host_end - host));
    return true;
}

static int bad(struct err *err, const char *key, const char *why)
{
    return err_set(err, ERR_INVALID, ERRC_USER, "sourceConfig.pulsar.%s %s", key, why);
}

static int parse_addresses(struct pulsar *p, const char *text, struct err *err)
{
    const char *next;
    uint16_t port;

    if (!text || !*text)
        return bad(err, "address", "is empty");
    if (strncmp(text, "pulsar+ssl://", 13) == 0) {
        p->use_tls = true;
        text += 13;
    } else if (strncmp(text, "pulsar://", 9) == 0) {
        text += 9;
    } else if (strstr(text, "://")) {
        return bad(err, "address", "must begin with pulsar:// or pulsar+ssl:// (the web address is not needed)");
    }
    port = p->use_tls ? DEFAULT_TLS_PORT : DEFAULT_PORT;
    for (; text; text = next ? next + 1 : NULL) {
        next = strchr(text, ',');
        p->addrs = xrealloc(p->addrs, (p->n_addrs + 1) * sizeof(*p->addrs));
        if (!pulsar_addr_parse(text, next ? (size_t)(next - text) : strlen(text), port, &p->addrs[p->n_addrs]))
            return bad(err, "address", "must be host:port, or a list of them with commas");
        p->n_addrs++;
    }
    return 0;
}

static int check_name(const char *key, const char *name, struct err *err)
{
    if (!*name || strchr(name, '/') || strlen(name) > 255)
        return bad(err, key, "must be a name without slashes");
    return 0;
}

static int set_tls(struct pulsar *p, const struct pulsar_options *o, struct err *err)
{
    struct conn_tls_options t = {.ca_path = o->ca_path,
                                 .cert_path = o->cert_path,
                                 .key_path = o->key_path,
                                 .skip_hostname = o->tls_skip_hostname};

    if (!p->use_tls) {
        if (o->ca_path || o->cert_path || o->key_path)
            return bad(err, "address", "must begin with pulsar+ssl:// when TLS files are given");
        return 0;
    }
    p->tls = conn_tls_new(&t, err);
    return p->tls ? 0 : err_wrap(err, "sourceConfig.pulsar (TLS files)");
}

static void pulsar_free(void *arg)
{
    struct pulsar *p = arg;

    for (size_t i = 0; i < p->n_addrs; i++)
        free(p->addrs[i].host);
    free(p->addrs);
    conn_tls_free(p->tls);
    free(p->tenant);
    free(p->name_space);
    if (p->token)
        explicit_bzero(p->token, strlen(p->token));
    free(p->token);
    free(p->prefix);
    free(p);
}

static int configure(struct pulsar *p, const struct pulsar_options *o, struct err *err)
{
    int rc;

    p->tenant = xstrdup(o->tenant && *o->tenant ? o->tenant : "public");
    p->name_space = xstrdup(o->name_space && *o->name_space ? o->name_space : "default");
    p->token = o->auth_token && *o->auth_token ? xstrdup(o->auth_token) : NULL;
    p->prefix = xstrdup(o->subscription_prefix ? o->subscription_prefix : "milvus-cdc-");
    p->receive_bytes = o->receive_bytes ? o->receive_bytes : DEFAULT_RECEIVE;
    if (p->receive_bytes < MIN_RECEIVE)
        p->receive_bytes = MIN_RECEIVE;
    if ((rc = parse_addresses(p, o->address, err)) || (rc = check_name("tenant", p->tenant, err)) ||
        (rc = check_name("namespace", p->name_space, err)))
        return rc;
    return set_tls(p, o, err);
}

static void name_run(struct pulsar *p)
{
    uint64_t r = 0;

    if (getrandom(&r, sizeof(r), GRND_NONBLOCK) != sizeof(r))
        r = (uint64_t)time(NULL) << 20 ^ (uint64_t)getpid();
    snprintf(p->run, sizeof(p->run), "%016llx", (unsigned long long)r);
}

struct wal_port *pulsar_open(struct loop *l, const struct pulsar_options *o, struct err *err)
{
    struct pulsar *p = xcalloc(1, sizeof(*p));

    p->port = (struct wal_port){.ops = &pulsar_ops, .name = "pulsar", .setting = "sourceConfig.pulsar.address"};
    p->loop = l;
    p->request_ms = PULSAR_REQUEST_MS;
    p->ping_ms = PULSAR_PING_MS;
    p->dead_ms = PULSAR_DEAD_MS;
    LIST_INIT(&p->conns);
    LIST_INIT(&p->readers);
    LIST_INIT(&p->ends);
    name_run(p);
    if (configure(p, o, err) == 0)
        return &p->port;
    pulsar_free(p);
    return NULL;
}

uint64_t pulsar_next_id(struct pulsar *p)
{
    return ++p->last_id;
}

void pulsar_close(struct wal_port *w)
{
    struct pulsar *p;

    if (!w)
        return;
    p = pulsar_of(w);
    assert(LIST_EMPTY(&p->readers));
    pends_close(p);
    pretains_close(p);
    pconns_close(p);
    loop_defer(p->loop, pulsar_free, p); /* a callback may be on the stack */
}
