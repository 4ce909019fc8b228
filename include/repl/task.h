/*
 * task.h - the runtime of one replication task: source streams -> target channels.
 *
 * Ownership  the manager makes one per running task and frees it after stop.  Thread  loop thread only.
 */
#ifndef REPL_TASK_H
#define REPL_TASK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "repl/port.h"

struct copy;
struct loop;
struct repl_hub;
struct repl_task;

/* How the task takes a collection (see repl_selection). */
struct repl_match {
    const char *target_db, *target_name;  /* borrowed until the next call */
    bool use_start_position;
    bool snapshot; /* copy what it has when the task starts */
};

/* What the task replicates: implemented over the user's request (task/spec). */
struct repl_selection {
    void *ctx;
    bool (*match)(void *ctx, const char *db, const char *name, struct repl_match *ret);
    bool (*match_db)(void *ctx, const char *db, const char **ret_target_db);
    /* A position that the user gave for this vchannel: id as in MsgPosition.msgID, rows up to tt are skipped. */
    bool (*position)(void *ctx, const char *vchannel, const uint8_t **ret_id, size_t *ret_id_len,
                     uint64_t *ret_tt);
    /* Do the given positions fit to what the source has? Before the first start; USER errors. NULL: none are given. */
    int (*check)(void *ctx, struct catalog *c, struct err *err);
};

/* Bytes of pages that the copies of existing rows hold or have asked for, of the whole process: room is taken before a page
 * is asked for. A copy that finds none waits in line. */
struct repl_copy_room {
    size_t used, limit;
    TAILQ_HEAD(repl_copy_line, copy) line;
};
void repl_copy_room_init(struct repl_copy_room *r, size_t limit);

struct repl_task_options {
    struct loop *loop;
    const char *id;
    struct repl_hub *hub;
    struct sink *sink;
    struct catalog *catalog;
    struct wal_port *wal;
    struct store *store;
    struct repl_selection selection;
    struct repl_budget *budget;
    size_t task_bytes;               /* limit of bytes held for this task */
    const char *replicate_chan;      /* the source's replicate channel */
    bool ignore_partition;
    const char *target_version;      /* at the first start, portable: what it cannot hold is refused. NULL: not asked */
    struct rows_port *rows;          /* of the source, for a snapshot; NULL: there is none */
    struct repl_copy_room *copy_room; /* borrowed */
    bool load_for_snapshot;          /* a collection that is not loaded may be, for the time of its copy */
    const uint8_t *rpc_id;           /* rpc_channel_info.position, NULL: the end of the channel */
    size_t rpc_id_len;
    uint64_t rpc_tt;                 /* operations up to this time are skipped */
    uint64_t start_tt;               /* of collections that exist already, what was written after this time; 0: see match */
    bool strict_start;               /* the task does not start when the queue has removed something of what it would read:
                                        behind start_tt, at a given position, at the beginning of a collection */
    unsigned span_ms;                /* so much source time is reserved ahead in the store, so that live rows go on for so
                                        long while it does not answer; 0: each request waits for its note */
    bool accept_gap;                 /* where a channel cannot be read on from its position, go on with the first
                                        message that exists: the user said so */
    /* Stopped by itself (USER, DATA, LOST): the owner stores the reason and frees the task. Once. */
    void (*on_fatal)(void *arg, const struct err *err);
    void *arg;
};

/* Copies the options. Never NULL. */
struct repl_task *repl_task_new(const struct repl_task_options *o);

/*
 * Starts: loads the records; at the first start fixes where each collection begins. started() comes when that is
 * durable, i.e. when no row written from now on can be missed. Transient errors are retried inside.
 */
void repl_task_start(struct repl_task *t, store_done_fn started, void *arg);

/* Stops reading, waits for the requests in flight (at most limit_ms), stores the checkpoints, then done. */
void repl_task_stop(struct repl_task *t, unsigned limit_ms, void (*done)(void *arg), void *arg);

/* Any time, from any callback; no callback follows. Without a stop before, in-flight requests are in doubt. */
void repl_task_free(struct repl_task *t);

/* Why it does not move just now (transient), or NULL. Borrowed until the next call. */
const char *repl_task_trouble(const struct repl_task *t);

/*
 * Does the task keep up with the source? Times are of the monotonic clock unless said otherwise; 0: does not apply.
 * A channel is silent when its reader has no trouble and waits for nothing of ours, but shows no tick: its source is
 * down. It is stalled when its source moves (or may: we are the ones who do not read) and nothing is confirmed. Both are
 * said after 10 s, or three tick intervals if that is longer.
 */
struct repl_health {
    uint64_t confirmed_ms;     /* wall time of the source up to which all channels are confirmed; silent ones that are
                                  confirmed to the end do not count */
    uint64_t stalled_since_ms; /* of the channel that stands for longest */
    const char *stalled;       /* its name, or "start"; borrowed until the next call */
    uint64_t silent_since_ms;
};
void repl_task_health(const struct repl_task *t, uint64_t now_ms, struct repl_health *ret);

/* Collections whose rows from before the task are being copied, or wait for that, together. */
struct repl_copying {
    size_t collections;  /* 0: the snapshot is over */
    uint64_t rows;       /* on the target */
    uint64_t estimate;   /* in those collections when their copies began */
    uint64_t rows_per_s; /* of those that are at work, since this process began with them */
};
/* False: not known yet, the records are not loaded. */
bool repl_task_copying(const struct repl_task *t, struct repl_copying *ret);
/* The same from stored records of a task that does not run here. */
void repl_stored_copying(const struct repl_collection_rec *colls, size_t n_colls, struct repl_copying *ret);

/* What is not the same on the target, of one collection (portable; names are the source's). */
struct repl_note {
    const char *db, *name;
    bool plain_keys;       /* the source makes its keys, and they are plain ones there */
    bool equal_keys;       /* keys that are not unique on the source, as its copy saw: one row each */
    char *const *left_out; /* fields and functions that are not there */
    size_t n_left_out;
};
/* For each that has something to tell. */
void repl_task_notes(const struct repl_task *t, void (*fn)(void *arg, const struct repl_note *n), void *arg);

/* Progress of one collection on one source channel, for the position request. */
struct repl_progress {
    int64_t collection_id; /* -10: the replicate channel */
    const char *src_channel, *dst_channel;
    struct wal_pos pos, op_pos;
    uint64_t tt, op_tt;
    const char *target_pos; /* base64 or NULL */
};
typedef void (*repl_progress_fn)(void *arg, const struct repl_progress *p);
void repl_task_progress(struct repl_task *t, repl_progress_fn fn, void *arg);

/* The names of the target's channels that the task feeds, for keep_queryable. fn is called for each. */
void repl_task_channels(struct repl_task *t, void (*fn)(void *arg, const char *channel), void *arg);

/* Every source channel that the stored records of a task name, perhaps more than once. */
void repl_stored_channels(const struct repl_ckpt *ckpts, size_t n_ckpts, const struct repl_collection_rec *colls,
                          size_t n_colls, void (*fn)(void *arg, const char *channel), void *arg);

/* The same progress from stored records of a task that does not run. */
void repl_stored_progress(const struct repl_ckpt *ckpts, size_t n_ckpts, const struct repl_collection_rec *colls,
                          size_t n_colls, const char *replicate_chan, repl_progress_fn fn, void *arg);
#endif
