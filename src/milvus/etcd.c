/* etcd.c - the etcd client: its life. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "milvus/etcd_priv.h"

enum {
    DEFAULT_DIAL_MS = 5000,
    ANSWER_MS = 10000, /* one try of a unary call, on top of the time to connect */
};

static void wipe_free(char *secret)
{
    if (secret)
        explicit_bzero(secret, strlen(secret));
    free(secret);
}

static void free_client(void *arg)
{
    struct etcd_client *e = arg;

    for (unsigned i = 0; i < e->n_endpoints; i++)
        free(e->endpoints[i].name);
    free(e->endpoints);
    free(e->username);
    wipe_free(e->password);
    free(e);
}

struct etcd_client *etcd_open(struct loop *l, const struct etcd_options *o, struct err *err)
{
    struct etcd_client *e = xcalloc(1, sizeof(*e));

    e->loop = l;
    TAILQ_INIT(&e->calls);
    TAILQ_INIT(&e->watches);
    e->dial_ms = o->dial_timeout_ms ? o->dial_timeout_ms : DEFAULT_DIAL_MS;
    e->try_ms = e->dial_ms + ANSWER_MS;
    if (etcd_endpoints_init(e, o, err)) {
        etcd_close(e);
        return NULL;
    }
    if (o->username && o->username[0]) {
        e->username = xstrdup(o->username);
        e->password = xstrdup(o->password ? o->password : "");
        e->login = LOGIN_NEEDED;
    }
    return e;
}

void etcd_close(struct etcd_client *e)
{
    if (!e)
        return;
    while (!TAILQ_EMPTY(&e->watches))
        etcd_watch_retire(TAILQ_FIRST(&e->watches));
    while (!TAILQ_EMPTY(&e->calls))
        etcd_call_retire(TAILQ_FIRST(&e->calls));
    for (unsigned i = 0; i < e->n_endpoints; i++)
        grpc_client_close(e->endpoints[i].grpc);
    loop_defer(e->loop, free_client, e);
}

char *etcd_prefix_end(const char *prefix)
{
    char *end = xstrdup(prefix);
    size_t len = strlen(end);

    while (len > 0 && (unsigned char)end[len - 1] == 0xff)
        len--;
    if (len == 0) { /* no such end: "\0" would mean all keys, which a C string cannot say */
        free(end);
        return xstrdup("\xff\xff\xff\xff");
    }
    end[len - 1]++;
    end[len] = '\0';
    return end;
}
