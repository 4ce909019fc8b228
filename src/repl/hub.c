#include "repl/priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

struct repl_hub *repl_hub_new(const struct repl_hub_options *o)
{
    struct repl_hub *h = xcalloc(1, sizeof(*h));

    h->refs = 1;
    h->loop = o->loop;
    h->sink = o->sink;
    h->key = xstrdup(o->key);
    h->tick_interval_ms = o->tick_interval_ms;
    h->portable = o->portable;
    h->retry = (struct backoff){.min_ms = o->retry_min_ms, .max_ms = o->retry_max_ms};
    h->batch_bytes = o->batch_bytes;
    h->channel_bytes = o->channel_bytes;
    h->flight_bytes = o->flight_bytes;
    h->far_ms = o->far_ms;
    h->budget = o->budget;
    return h;
}

struct repl_hub *repl_hub_ref(struct repl_hub *h)
{
    h->refs++;
    return h;
}

void repl_hub_unref(struct repl_hub *h)
{
    struct tchan *tc, *tmp;

    if (!h || --h->refs > 0)
        return;
    HASH_ITER(hh, h->tchans, tc, tmp) {
        HASH_DEL(h->tchans, tc);
        tchan_free(tc);
    }
    free(h->key);
    free(h);
}

struct tchan *hub_tchan(struct repl_hub *h, const char *name)
{
    struct tchan *tc;

    HASH_FIND_STR(h->tchans, name, tc);
    if (!tc) {
        tc = tchan_new(h, name);
        HASH_ADD_KEYPTR(hh, h->tchans, tc->name, strlen(tc->name), tc);
    }
    return tc;
}

/*
 * Ids for messages that the source did not make. The target's readers drop a message whose id they saw in the
 * same tick window, so a repeated one needs an id of its own. Ids of Milvus come from a clock of nanoseconds or
 * hybrid time and stay far below 2^62.
 */
int64_t hub_new_msg_id(struct repl_hub *h)
{
    if (!h->msg_id_seq)
        h->msg_id_seq = (INT64_C(1) << 62) | (int64_t)(clock_wall_ms() << 16);
    return h->msg_id_seq++;
}

void repl_hub_keep(struct repl_hub *h, struct store *store, const char *task_id, const char *channel)
{
    tchan_keep(hub_tchan(h, channel), store, task_id);
}

void repl_hub_keep_stop(struct repl_hub *h, const char *task_id)
{
    struct tchan *tc, *tmp;

    HASH_ITER(hh, h->tchans, tc, tmp)
        tchan_keep_stop(tc, task_id);
}
