/*
 * hub.h - one target as all tasks that write to it share it: its physical channels and their time.
 *
 * Time on a standby's channel moves only by the ticks that we send, so two tasks with the same target
 * must feed the same queue: the tick is the minimum over all streams that feed the channel. An ordinary Milvus has time
 * of its own; there each source channel of each task has its own queue.
 *
 * Ownership  counted: each running task holds a reference, and each keep_queryable task that is paused.
 * Thread     loop thread only.
 */
#ifndef REPL_HUB_H
#define REPL_HUB_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct loop;
struct sink;
struct store;
struct repl_hub;

/* Bytes of messages that are held in memory, of the whole process. */
struct repl_budget {
    size_t used, limit;
};

struct repl_hub_options {
    struct loop *loop;
    struct sink *sink;        /* borrowed */
    const char *key;          /* names the target in the store's tick records */
    bool portable;            /* sink->write() instead of replicate(): an ordinary Milvus, which makes its own ticks */
    unsigned tick_interval_ms; /* a tick on a channel without data */
    unsigned retry_min_ms, retry_max_ms; /* waits between tries of what the target refused */
    size_t batch_bytes;       /* one request */
    size_t channel_bytes;     /* queued for one channel */
    size_t flight_bytes;      /* sent on one channel and not yet answered, when the target is far */
    unsigned far_ms;          /* answers that take so long make it far; 0: it always is (tests) */
    struct repl_budget *budget; /* borrowed */
};

struct repl_hub *repl_hub_new(const struct repl_hub_options *o);
struct repl_hub *repl_hub_ref(struct repl_hub *h);
void repl_hub_unref(struct repl_hub *h); /* NULL is allowed */

/*
 * Keeps time moving by the wall clock on a channel that no task feeds now (keep_queryable), until
 * repl_hub_keep_stop(). store: where the tick bound is noted; borrowed.
 */
void repl_hub_keep(struct repl_hub *h, struct store *store, const char *task_id, const char *channel);
void repl_hub_keep_stop(struct repl_hub *h, const char *task_id);
#endif
