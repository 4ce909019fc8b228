/*
 * holding.c - the leases of targets that this daemon holds. Everything that it stores about a task carries the epoch of
 * the task's target, and nothing is sent to the target while the lease's fence is closed.
 *
 * CLAIMING -> LOADING (held; the registry's tasks of the target are being read) -> HELD -> LEAVING (its tasks are being
 * stopped, then the lease is given back). In an embedded registry a claimed lease is held for good.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "task/priv.h"

struct holding *holding_find(const struct manager *m, const char *target_key)
{
    struct holding *h;

    HASH_FIND_STR(m->holdings, target_key, h);
    return h;
}

uint64_t holding_epoch(const struct manager *m, const char *target_key)
{
    const struct holding *h = holding_find(m, target_key);

    return h ? h->epoch : 0;
}

bool holding_ready(const struct manager *m, const char *target_key)
{
    const struct holding *h = holding_find(m, target_key);

    return h && h->state == HOLD_HELD;
}

struct holding *holding_new(struct manager *m, const char *target_key, enum hold_state state)
{
    struct holding *h = xcalloc(1, sizeof(*h));

    h->m = m;
    h->key = xstrdup(target_key);
    h->state = state;
    HASH_ADD_KEYPTR(hh, m->holdings, h->key, strlen(h->key), h);
    return h;
}

/* Whoever sends to the target is gone: the fence goes too. */
void holding_free(struct holding *h)
{
    HASH_DEL(h->m->holdings, h);
    h->m->d.registry->ops->cancel(h->m->d.registry, h);
    free(h->key);
    free(h->agent);
    free(h);
}

/* Held since the call that was made at asked_ms. A daemon stops a little before the registry lets others in. */
void holding_extend(struct holding *h, uint64_t asked_ms)
{
    const struct manager *m = h->m;

    h->fence.until_ms = m->d.registry->shared ? asked_ms + m->d.lease_ms - m->d.lease_ms / 6 : FENCE_NEVER;
}

static void on_claimed(void *arg, const struct err *err, const struct reg_lease *lease)
{
    struct holding *h = arg;
    struct manager *m = h->m;

    if (err) {
        char *key = xstrdup(h->key);
        holding_free(h);
        manager_on_held(m, key, err);
        free(key);
        return;
    }
    h->epoch = lease->epoch;
    h->since_ms = lease->since_ms;
    holding_extend(h, h->asked_ms);
    log_info("task", "target claimed", KS("target", h->key), KU("epoch", h->epoch));
    if (m->d.registry->shared) {
        h->state = HOLD_LOADING;
        group_on_claimed(m);
    } else {
        h->state = HOLD_HELD;
        manager_on_held(m, h->key, NULL);
    }
}

void holding_claim(struct manager *m, const char *target_key)
{
    struct holding *h = holding_find(m, target_key);

    if (h)
        return;
    h = holding_new(m, target_key, HOLD_CLAIMING);
    h->asked_ms = clock_boot_ms();
    m->d.registry->ops->claim(m->d.registry, h->key, m->d.daemon_id, m->d.lease_ms, on_claimed, h);
}

void holdings_free(struct manager *m)
{
    struct holding *h, *tmp;

    HASH_ITER(hh, m->holdings, h, tmp)
        holding_free(h);
}
