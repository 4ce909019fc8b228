/*
 * holding.c - the leases of targets that this daemon holds. Everything that it stores about a task carries the epoch of
 * the task's target.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "daemon/config.h"
#include "task/priv.h"

uint64_t holding_epoch(const struct manager *m, const char *target_key)
{
    struct holding *h;

    HASH_FIND_STR(m->holdings, target_key, h);
    return h ? h->epoch : 0;
}

static void holding_free(struct holding *h)
{
    HASH_DEL(h->m->holdings, h);
    h->m->d.registry->ops->cancel(h->m->d.registry, h);
    free(h->key);
    free(h);
}

static void on_claimed(void *arg, const struct err *err, const struct reg_lease *lease)
{
    struct holding *h = arg;
    struct manager *m = h->m;
    char *key = xstrdup(h->key);

    if (err) {
        log_warn("task", "no lease of the target", KS("target", key), KS("error", err->text));
        holding_free(h);
    } else {
        h->epoch = lease->epoch;
    }
    manager_on_held(m, key, err);
    free(key);
}

void holding_claim(struct manager *m, const char *target_key)
{
    struct holding *h;

    HASH_FIND_STR(m->holdings, target_key, h);
    if (h)
        return;
    h = xcalloc(1, sizeof(*h));
    h->m = m;
    h->key = xstrdup(target_key);
    HASH_ADD_KEYPTR(hh, m->holdings, h->key, strlen(h->key), h);
    m->d.registry->ops->claim(m->d.registry, h->key, m->d.daemon_id, m->d.config->lease_ms, on_claimed, h);
}

void holdings_free(struct manager *m)
{
    struct holding *h, *tmp;

    HASH_ITER(hh, m->holdings, h, tmp)
        holding_free(h);
}
