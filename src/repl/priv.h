/*
 * priv.h - the objects of repl/ and how they hang together.  Not for other layers.
 *
 *   task --< stream (one source pchannel)  --< link >-- tchan (one target pchannel) >-- hub
 *   task --< coll (one collection)  --< shard -> stream, link
 *
 * A stream reads its channel and hands each message to the link of the shard it belongs to. A link is the ordered
 * flow from one source channel to one target channel; it has its own durable progress. A tchan merges its links
 * into one queue; to a near target one request is in flight, to a far one several (tchan.c).
 */
#ifndef REPL_PRIV_H
#define REPL_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <jansson.h>
#include <uthash.h>

#include "base/backoff.h"
#include "base/buf.h"
#include "base/metric.h"
#include "loop/loop.h"
#include "repl/hub.h"
#include "repl/msg.h"
#include "repl/pace.h"
#include "repl/port.h"
#include "repl/task.h"

/* Most tables here are the partitions of a collection: one. They grow as they need. */
#undef HASH_INITIAL_NUM_BUCKETS
#undef HASH_INITIAL_NUM_BUCKETS_LOG2
#define HASH_INITIAL_NUM_BUCKETS 4U
#define HASH_INITIAL_NUM_BUCKETS_LOG2 2U

/* A TimeTick message of 2.3.5 (source.md 5), for the metrics. */
#define TICK_BYTES 17

/* Ticks come several times a second: without one, or without a confirmation, for so long, something is wrong. */
#define STALL_MS 10000

struct coll;
struct link;
struct stream;
struct tchan;
struct verify;

/* ---- item: one thing in the order of a link ------------------------------------------------ */

enum item_kind { ITEM_ROWS /* Insert, Delete */, ITEM_DROP /* DropCollection, DropPartition */, ITEM_TICK };

struct item {
    TAILQ_ENTRY(item) entry;
    enum item_kind kind;
    struct link *link;
    struct coll *coll;       /* counted; NULL for ITEM_TICK */
    size_t shard;            /* index in coll */
    struct msg_head head;    /* borrows from data */
    struct buf *buf;         /* NULL: made by us (a drop that the log no longer shows) */
    const uint8_t *data;
    size_t len;
    struct wal_pos pos;      /* in the source channel; NONE for what we made */
    struct wal_pos ack;      /* the link is done up to here when this is confirmed; NONE: no change */
    struct wal_pos start;    /* ITEM_TICK: where to read again from when it is confirmed */
    struct wal_pos doubt;    /* once this may have been sent, everything up to here is in doubt */
    uint64_t tt;             /* source time; ITEM_TICK: the tick */
    int64_t dst_partition;   /* partition id on the target, -1: none */
    struct repl_budget *budget; /* the process's: charged with len until the item is freed */
    bool retime;             /* gets a new time when it is sent */
    uint64_t above;          /* the new time must be greater: what is repaired may be there with times up to this */
    bool retime_more;        /* the next item of the link has the same source time and must get the same new one */
    bool repair;             /* the target may have it already: delete + insert */
    bool behind;             /* ITEM_TICK of a link that catches up */
    bool confirmed;          /* held only because time may put it after a message in doubt */
};
TAILQ_HEAD(item_list, item);

/* ---- link ---------------------------------------------------------------------------------- */

enum link_mode {
    LINK_LIVE,    /* messages pass as they arrive, with their own times; its ticks bound the channel's */
    LINK_CATCHUP, /* behind the channel's tick: held until the source's tick, sorted, sent with new times */
};

struct later {
    struct wal_pos pos;
    uint64_t tt;
};

struct link {
    LIST_ENTRY(link) of_stream;
    LIST_ENTRY(link) of_tchan;
    struct stream *stream;
    struct tchan *tchan;
    enum link_mode mode;
    bool counted;             /* takes part in the minimum of the channel's ticks (always when LIVE) */
    unsigned n_shards;        /* live shards that use it; 0: it leaves */

    /* progress, see struct repl_ckpt */
    struct wal_pos start, done, sent, op;
    uint64_t start_tt, done_tt, sent_tt, retimed_tt, op_tt;
    char *target_pos;
    uint64_t moved_ms;        /* monotonic, when progress was last confirmed */
    bool dirty;               /* more than ticks differs from what was stored */
    bool ticked;              /* anything does */
    size_t range;             /* its place in the request being built, if it has one there */
    struct wal_pos maybe;     /* what was really sent: the target may have everything up to here */
    uint64_t row_max;         /* greatest time of a row on the target channel by this link */
    uint64_t span_tt, span_ok; /* reserved source time (span.c): as it is stored from now on, and what is durable of it */

    /* repair after a crash or a request in doubt: (done, repair_to] may be on the target */
    struct wal_pos repair_to; /* NONE: nothing in doubt */
    uint64_t repair_tt;       /* and what is behind done, of times up to this: the span of the run before. 0: none */
    uint64_t above;           /* new times of the last repair are greater */

    struct item_list hold;    /* CATCHUP: what the source's ticks do not cover yet, in the log's order */
    struct later *later;      /* LIVE: the same, which was passed on: place and time */
    size_t n_later, cap_later;
    uint64_t retime_from;     /* least source time that got a new one since the catching up began; UINT64_MAX: none */
    struct item *tick;        /* the last item in the queue is this tick: it can be moved forward in place */
    size_t queued, queued_bytes; /* items in the tchan's queue and their bytes */
    size_t rows_queued;       /* of these: not ticks */
    size_t retime_queued;     /* items there that will get new times */

    uint64_t tick_read;       /* last source tick that was handed in */
    uint64_t tick_built;      /* last source tick whose predecessors are all in a request */
    uint64_t last_src_tt;     /* of the last re-timed item, with retimed_tt its new time */
    bool group_open;          /* the last built item has retime_more */
    struct metric *m_read_tt, *m_write_tt;
    struct metric *m_bytes[2][3]; /* read, write; insert, delete, tick. NULL until there is one */
};
LIST_HEAD(link_list, link);

struct link *link_new(struct stream *s, struct tchan *tc, const struct repl_ckpt *ckpt);
/* Removes its items from the queue; requests in flight forget it. */
void link_free(struct link *l);
void link_add(struct link *l, struct item *take);
void link_on_tick(struct link *l, struct wal_pos pos, uint64_t tt);
/* Drops what is queued and held; progress stays. */
void link_reset(struct link *l);
/* The stored form; strings borrowed from the link. */
void link_fill_ckpt(const struct link *l, struct repl_ckpt *ret);
/* Is the message, whose greatest time is tt, known to be on the target (or not ours)? */
bool link_has(const struct link *l, struct wal_pos pos, uint64_t tt);
/* After link_reset(), when nothing of it is in flight any more: what was sent and not confirmed is in doubt. */
void link_restart(struct link *l);
/* A standby was given rows by other means: their times are its own. What lies before now gets times above, or a Delete of
 * such a row would have no effect. */
void link_after_restore(struct link *l);
/* Messages up to pos may be on the target already. */
void link_doubt(struct link *l, struct wal_pos pos);
/* The same of what was read and not sent yet, of one collection. */
void link_doubt_read(struct link *l, const struct coll *c);
struct item *item_new(enum item_kind kind, struct link *l);
/* Counts the bytes against the task and the process until the item is freed. bytes = it->len. */
void item_charge(struct item *it, size_t bytes);
void item_free(struct item *it);

/* ---- tchan and request --------------------------------------------------------------------- */

/* What a request means for one link. */
struct req_range {
    struct link *link; /* NULL: the link went meanwhile */
    struct wal_pos ack, doubt, op, tick_pos, tick_start, maybe_before;
    uint64_t tick_tt, op_tt, max_tt;
    bool has_rows;
    bool bare;         /* has something that no span covers */
    bool note;         /* it is stored before the request is sent */
    bool voided; /* a request before it failed: its link's messages are in doubt even when this one is confirmed */
};

struct request {
    TAILQ_ENTRY(request) entry; /* in tchan.flying */
    struct tchan *tchan;
    struct sink_call *call;     /* NULL: not sent, answered, or nothing to send */
    struct evbuffer *msgs;
    struct item_list items;    /* what it carries, until the answer */
    uint64_t maybe_before;     /* the channel's tick_maybe before it was sent */
    struct req_range *ranges;
    size_t n_ranges, cap_ranges;
    uint64_t begin_tt, end_tt;
    uint64_t tick;             /* the tick at its end, 0: none */
    uint64_t promise;          /* a tick that may be sent once this and all before it are confirmed, 0: none */
    bool alone;                /* tick is its own promise: sent only when nothing is in flight */
    bool answered;             /* waits for the answers of those before it */
    bool waiting;              /* portable: to be sent, or sent again after a refusal (refused.c) */
    char *target_pos;          /* answered: as the target told it */
    uint64_t sent_us;
    size_t bytes;
    unsigned commits_open;     /* intents not durable yet */
    struct store **noted;      /* where they are being stored */
    size_t n_noted;
    bool failed;               /* an intent was refused: never send */
    /* portable (portable.c): the one call that it makes */
    struct coll *coll;         /* counted; NULL: nothing for the target */
    enum sink_write_kind kind;
    char *partition;
    uint64_t rows;
    struct msg_columns *columns; /* Insert, Upsert */
    struct msg_keys *keys;       /* Delete */
};
TAILQ_HEAD(request_list, request);

struct tchan {
    UT_hash_handle hh;
    struct repl_hub *hub;
    char *name;
    struct item_list queue;
    size_t queue_bytes, rows_queued;
    size_t ticks_behind;       /* items there */
    struct link_list links;
    struct request_list flying; /* sent, in this order; each is confirmed after those before it */
    size_t flying_bytes;
    size_t batch_bytes;        /* of one request: the hub's, less while the target refuses (refused.c) */
    size_t most_bytes;         /* more in one request it never takes */
    struct request *next;      /* built, and perhaps noted */
    struct pace pace;
    uint64_t pace_gen;         /* connection that pace speaks of */
    bool tick_loaded;
    uint64_t tick_built;       /* promised: no later message has a time at or below it */
    uint64_t tick_ready;       /* all messages up to it are confirmed: may be sent any time */
    uint64_t tick_out, tick_sent; /* last tick put into a request / confirmed */
    uint64_t tick_maybe;       /* greatest tick that the target may have seen */
    uint64_t bound_tt, bound_ok; /* reserved for ticks (span.c): as stored from now on, and what is durable of it */
    struct repl_task *bound_by;  /* whose commit it is in, NULL: none is under way */
    uint64_t quiet_ms;         /* monotonic, no tick is built before */
    uint64_t row_built;        /* greatest row time in a request since the last tick: it is not visible yet */
    uint64_t last_tick_ms;     /* monotonic, when a tick was last built */
    uint64_t low_tick;         /* so many links hold the channel's tick down to this; 0 links: not known */
    size_t low_links;
    bool resting;              /* the timer is armed for the end of the interval */
    struct timer tick_timer, retry_timer, skip_timer;
    struct store *load_store;  /* the tick is being asked for here */
    struct backoff backoff;
    unsigned refusals;         /* answers without a known reason (code 65535) in a row */
    char *trouble;             /* last error, NULL: none */
    struct metric *m_tick, *m_window;
    char *keep_task;           /* keep_queryable: the paused task, its store */
    struct store *keep_store;
    bool closing;
};

struct repl_hub {
    unsigned refs;
    struct loop *loop;
    struct sink *sink;
    char *key;
    unsigned tick_interval_ms;
    bool portable;             /* an ordinary Milvus: calls of its public API, no ticks (portable.c) */
    struct backoff retry;      /* the waits of all who try again on the target */
    size_t batch_bytes, channel_bytes, flight_bytes;
    unsigned far_ms;
    struct repl_budget *budget;
    struct tchan *tchans;
    LIST_HEAD(, repl_task) tasks; /* that run */
    int64_t msg_id_seq;        /* ids for messages that we make or repeat */
    uint64_t confirmed;        /* requests */
};

/* request.c */
struct request *request_new(struct tchan *tc);
void request_free(struct request *r);
/* Frees it; its notes go to disk all the same, but nobody waits for them. */
void request_retire(struct request *r);
/* Does it carry something of the link? Voided ranges too. r may be NULL. */
bool request_has(const struct request *r, const struct link *l);
bool request_noted_in(const struct request *r, const struct store *store);
/* The link goes. */
void request_forget(struct request *r, const struct link *l);
/* Moves messages from the channel's queue into it, up to a batch. */
void request_take_items(struct tchan *tc, struct request *r);
/* One item, whose time on the target is tt. */
void request_take(struct request *r, struct item *it, uint64_t tt);
/* Was the collection checked on this connection? If not, that begins. */
bool tchan_coll_checked(const struct tchan *tc, struct coll *c);
/* The same for the item's. */
bool item_checked(struct tchan *tc, struct item *it);
/* part gets the ranges of its items, and r those of what is left; without items part gets r's, and confirms nothing. */
void request_divide(struct request *part, struct request *r);
/* False: its collection or shard is gone, and nobody needs it. */
bool item_wanted(const struct item *it);
/* Notes its ranges and its tick; tchan_kick() follows when all is durable. */
void request_note(struct tchan *tc, struct request *r);

/* portable.c */

/* As request_take_items(): what one call can carry, and the ticks between. */
void portable_take_items(struct tchan *tc, struct request *r);
/* May it be under way together with what is? */
bool portable_may_send(const struct tchan *tc, const struct request *next);
/* r has rows. done gets r. May be called again after its answer. */
struct sink_call *portable_send(struct request *r, sink_batch_fn done);
/* Calls under way. */
size_t portable_calls(const struct tchan *tc);
/* May one more be sent? */
bool portable_call_free(const struct tchan *tc);
/* Some of its messages, or some rows of its only one, in a request of their own, to be sent before or beside it; NULL: it is
 * one row. */
struct request *portable_split(struct request *r);
void portable_free(struct request *r);

/* refused.c */

/* A request that the target did not take, and wrote nothing of: true when it waits to be sent again. */
bool refused_hold(struct request *r, const struct err *err);
/* Divides what waits as far as the target's limits, known so far, ask for. */
void refused_fit(struct tchan *tc);
/* Sends what waits, as far as calls are free; true: nothing waits any more. */
bool refused_send(struct tchan *tc, sink_batch_fn done);
/* After a request that was confirmed: batches grow again. */
void refused_recover(struct tchan *tc);

static inline uint64_t max_tt(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

struct tchan *hub_tchan(struct repl_hub *h, const char *name);
/* Takes an item out of the queue, with all that counts it. */
void tchan_unqueue_item(struct tchan *tc, struct item *it);
int64_t hub_new_msg_id(struct repl_hub *h);
/* Builds and sends if it can. */
bool tchan_rests(const struct tchan *tc);
void tchan_kick(struct tchan *tc);
struct tchan *tchan_new(struct repl_hub *h, const char *name);
void tchan_free(struct tchan *tc);
/* The link feeds the channel from now on; its task's store tells the tick that the channel has seen. */
void tchan_attach(struct tchan *tc, struct link *l);
void tchan_detach(struct tchan *tc, struct link *l);
/* Something sent before is in doubt: it may still be at work in the target. Sends nothing for a moment. */
void tchan_quarantine(struct tchan *tc);
/* The same where what is sent now is above all that is in doubt: only no tick must overtake that. */
void tchan_hold_ticks(struct tchan *tc);
void tchan_queue(struct tchan *tc, struct item *take);
/* The link's tick is about to move forward. */
void tchan_on_link_tick(struct tchan *tc, const struct link *l);
/* Drops the link's items that are in no request yet. */
void tchan_unqueue(struct tchan *tc, struct link *l);
/* Is a message of the collection in a request that is not answered yet? */
bool tchan_carries(const struct tchan *tc, const struct coll *c);
bool tchan_flying_with(const struct tchan *tc, const struct link *l);
/* Requests with messages of the link that only wait to be sent (refused.c) are dropped: these are read again. */
void tchan_drop_waiting(struct tchan *tc, const struct link *l);
/* Takes back a request that was built and not sent, if the link is in it; all its streams are reset. */
void tchan_discard_next_with(struct tchan *tc, const struct link *l);
void tchan_keep(struct tchan *tc, struct store *store, const char *task_id);
void tchan_keep_stop(struct tchan *tc, const char *task_id);

/* ---- span ---------------------------------------------------------------------------------- */

/* May the message be sent without a note of its own? */
bool span_covers(const struct item *it);
/* The link's checkpoint goes into b too: reserves, or at the task's end stores what was really sent. */
void span_store(struct link *l, struct store_batch *b);
/* The commit of the task's checkpoints is durable. */
void span_durable(struct repl_task *t);

/* ---- stream -------------------------------------------------------------------------------- */

enum stream_state { STREAM_IDLE, STREAM_OPEN, STREAM_STALLED, STREAM_RESETTING, STREAM_CLOSED };

struct pending {
    STAILQ_ENTRY(pending) entry;
    struct wal_msg msg; /* buf counted */
};
STAILQ_HEAD(pending_list, pending);

struct stream {
    UT_hash_handle hh;
    struct repl_task *task;
    char *channel;
    enum stream_state state;
    struct wal_reader *reader;
    struct link_list links;
    struct pending_list pending;
    struct wal_pos begin;      /* where the reader was opened */
    struct wal_pos read;       /* last message handled */
    struct wal_pos tick_pos;   /* last source tick and its place */
    uint64_t tick_tt;
    uint64_t tick_ms;          /* monotonic, when a source tick was last read; at first: when the stream was made */
    uint64_t resumed_ms;       /* monotonic, when ticks came again after none for STALL_MS */
    bool reader_paused;
    bool draining;             /* inside stream_drain: no second one */
    bool from_earliest;        /* the gap before the first message was accepted */
    bool opened;               /* once in this run, at first_begin */
    struct wal_pos first_begin;
    struct wal_pos keep;       /* a checkpoint under way: what the queue must keep from then on */
    int64_t asked_for;         /* collection id that etcd is asked about */
    uint64_t asked_round;      /* answered when the task's sync_round is greater */
    char *trouble;
    struct timer reset_timer, drain_timer;
    struct backoff backoff;
};

/* The task's stream of a channel, made where missing. */
struct stream *task_stream(struct repl_task *t, const char *channel);
void stream_free(struct stream *s);
/* Begins to read at the lowest place that a link or a shard needs. */
void stream_open(struct stream *s);
void stream_close_reader(struct stream *s);
/* Goes on after a stall was resolved, or after the queue got room. */
void stream_kick(struct stream *s);
/* Reads again from the links' progress: a request failed, or is in doubt. */
void stream_reset(struct stream *s);
/* The link of this stream to a target channel, made where missing. */
struct link *stream_link(struct stream *s, const char *dst_channel);
/* The lowest place that a link, a stored checkpoint or a shard needs. False: nothing does. */
bool stream_begin(const struct stream *s, struct wal_pos *ret);
/* Stops reading when no link is left. */
void stream_leave(struct stream *s);
/* A checkpoint is being stored, or is durable: then the queue may drop what is before it. */
void stream_note_keep(struct stream *s);
void stream_retain(struct stream *s);

/* ---- collection ---------------------------------------------------------------------------- */

enum coll_state {
    COLL_NEW,      /* record not durable yet */
    COLL_MAPPING,  /* being made or checked on the target; its rows stall the stream */
    COLL_COPYING,  /* its rows from before are being copied (copy.c); its messages stall the stream */
    COLL_ACTIVE,
    COLL_DROPPING, /* dropped on the source; each shard sends its drop message, then the call */
    COLL_GONE,     /* nothing left but references */
};

/* MADE: by us, without waiting for the log's own message, which may be queued too. */
enum shard_drop { SHARD_ALIVE, SHARD_DROP_QUEUED, SHARD_DROP_MADE, SHARD_DROP_SENT };

struct shard {
    char *vchannel, *pchannel;   /* the source's */
    char *dst_vchannel, *dst_pchannel; /* NULL until mapped */
    struct stream *stream;
    struct link *link;
    bool linked_before;          /* the stored checkpoint of its link says where to go on */
    struct wal_pos from;         /* an existing message to begin reading at (NONE: the first of the topic) */
    struct wal_pos join;         /* messages before it are not ours; from or just behind it */
    uint64_t skip_tt;            /* rows up to this time are not ours (positions given by the user) */
    enum shard_drop drop;
    uint64_t drop_tt;
};

struct part {
    int64_t id, dst_id;          /* dst_id 0: not mapped */
    char *name;                  /* in the same allocation, as shards */
    bool dropping, forced;
    uint64_t drop_tt;
    enum shard_drop *shards;     /* n_shards of the collection */
};

struct coll {
    UT_hash_handle hh;
    struct repl_task *task;
    unsigned refs;
    int64_t id, dst_id;
    char *db, *name, *dst_db, *dst_name, *pk_name; /* one allocation: see coll_set_names() */
    uint64_t create_tt;
    enum coll_state state;
    int64_t pk_field_id;
    bool pk_is_string, partition_key;
    struct shard *shards;
    size_t n_shards;
    struct part **parts;         /* by id; an array, since most have one partition */
    size_t n_parts;
    uint64_t verified_gen;       /* sink generation at the last check; 0: check before the next use */
    uint64_t verifying_gen;
    bool reensure;               /* partitions appeared: make and map them */
    bool creating;               /* the call under way may make it */
    bool storing;                /* the first record is being stored; holds a reference */
    bool src_dropping;           /* the catalog says so */
    bool forced;                 /* its name is wanted by a new one: dropped without waiting for the log */
    bool may_exist;              /* a create was sent: the target may have it */
    int64_t asked_part;          /* partition that etcd is asked about */
    uint64_t asked_round;
    struct part *call_part;      /* whose drop call is under way */
    bool held;                   /* its messages wait: verify_repair.c writes rows of it */
    bool plain_keys, equal_keys; /* the source makes its keys; they are not unique there (seen by its copy) */
    char **left_out;             /* fields that the target does not have */
    size_t n_left_out;
    struct copy *copy;           /* what it had before is not all on the target; NULL: nothing to do */
    struct meta *meta;           /* indexes and so on (meta.c); NULL: nothing known yet */
    char *former;                /* names that it had: " db.name" each; NULL: none (coll_rename.c) */
    char *rename_db, *rename_name; /* the target's collection gets this name; NULL: it has its name */
    char *rename_via;            /* but this one first, as names go round in a circle; NULL: no */
    bool rename_noted, rename_refused;
    bool rename_waits;           /* for the end of what is under way: nothing new is sent */
    bool rename_begun;           /* the call may have been made: it is finished before another name is looked at */
    unsigned rename_tries;
    struct sink_call *call;
    bool ensuring;               /* call makes or checks it */
    struct timer retry;
    struct backoff backoff;
    char *trouble;
    struct metric *m_rows[2][2]; /* read, written; insert, delete. NULL until there is one: most are idle */
};

/* Each partition in turn, from the last to the first: the body may free p. */
#define COLL_EACH_PART(c, k, p) for (size_t k = (c)->n_parts; k-- > 0 && ((p) = (c)->parts[k], true);)
/* Counts rows that were read (or written) in a message of so many bytes. */
void coll_count(struct coll *c, bool written, bool delete, uint64_t rows);
void link_count(struct link *l, bool written, unsigned type, size_t bytes);
struct coll *coll_ref(struct coll *c);
void coll_unref(struct coll *c);

/* Where a shard of a joining collection begins. */
struct coll_join {
    struct wal_pos from, join;
    uint64_t skip_tt;
};
/* A collection that joins now: state NEW, nothing stored yet. joins: one for each shard. */
struct coll *coll_new(struct repl_task *t, const struct src_collection *sc, const struct repl_match *m,
                      const struct coll_join *joins);
/* The empty object, and a new partition of it (coll.c), for those that read records. */
struct coll *coll_alloc(struct repl_task *t, int64_t id, size_t n_shards);
struct part *coll_part_new(struct coll *c, int64_t id, const char *name);
void coll_set_names(struct coll *c, const char *db, const char *name, const char *dst_db, const char *dst_name,
                    const char *pk_name);
struct coll *coll_from_record(struct repl_task *t, const struct repl_collection_rec *rec, struct err *err);
/* Adds its record to the batch / stores it in a commit of its own. */
void coll_put(struct coll *c, struct store_batch *b);
void coll_save(struct coll *c);
/* The record of a NEW one is durable: from now on it may be mapped. */
void coll_stored(struct coll *c);
/* Does what its state allows: map, check, force or finish a drop. */
void coll_kick(struct coll *c);
/* Two collections of the source would be one on the target: the text that says so. ERR_STATE. */
int coll_conflict(const struct coll *c, const struct coll *other, struct err *err);
/* Checks it on the target again before the next use. */
void coll_unverify(struct coll *c);
/* Called with fresh facts from the catalog. */
void coll_update(struct coll *c, const struct src_collection *sc);
/* Partition id on the target. 1 found; 0 wait (stalls the stream); -1 dropped: its rows are nobody's. */
int coll_partition(struct coll *c, int64_t src_partition_id, size_t shard, int64_t *ret_dst_id);
struct part *coll_part(struct coll *c, int64_t id); /* NULL: not known */
/* The WAL shows the drop on that shard. coll_part_drop: false when there is nothing to drop. */
void coll_shard_drop(struct coll *c, size_t shard, uint64_t tt);
bool coll_part_drop(struct coll *c, int64_t partition_id, size_t shard, uint64_t tt);
/* The drop message is on the target. */
void coll_on_drop_confirmed(struct coll *c, const struct item *it);
/* The stream reads again: drop messages that were queued only are to be queued again. */
void coll_stream_reset(struct coll *c, const struct stream *s);
bool coll_drop_open(const struct coll *c);
/* The log has a gap that was accepted: drop messages may have been in it. */
void coll_on_gap(struct coll *c);
/* Out of the task without touching the target or the store (task free). */
void coll_detach(struct coll *c);

/* For rows of it; never NULL. */
struct msg_columns *coll_columns(const struct coll *c);
/* Was it checked on the connection that is used now? */
bool coll_verified(const struct coll *c);
/* Has the target this partition, and the source not dropped it? */
bool coll_part_alive(struct coll *c, int64_t id);
/* With a partition key there are no partitions to name: one step over all. */
#define ALL_PARTS INT64_MAX
/* The first partition of that id or a greater one whose rows can be read. False: none is left. ALL_PARTS has no name. */
bool coll_part_at(const struct coll *c, int64_t from, int64_t *ret_id, const char **ret_name);
/* The expression for the keys behind after (text of an expression; NULL: from the first) up to to (NULL: to the last).
 * Caller frees. */
/* So many rows may be asked for at first when an answer should have about so many bytes (the schema tells). */
uint64_t coll_first_rows(const struct coll *c, size_t bytes);
char *coll_key_expr(const struct coll *c, const char *after, const char *to);
/* The copy is over, or not wanted any more: its stream goes on. */
void coll_copied(struct coll *c);

/* ---- names (coll_rename.c) ---------------------------------------------------------------------- */

/* The source's collection may have another name now: then it is followed. */
void coll_follow_name(struct coll *c);
void coll_rename_end(struct coll *c); /* it is done, or not wanted any more */
/* A rename of the target's collection is to be done: goes on with it. False: not now. */
bool coll_rename_kick(struct coll *c);
/* Is or was that its name on the source? */
bool coll_has_name(const struct coll *c, const char *db, const char *name);
void coll_rename_free(struct coll *c);
/* For its record. */
void coll_rename_put(const struct coll *c, json_t *rec);
void coll_rename_from_record(struct coll *c, const json_t *rec);

/* ---- what users set up beside the rows (meta.c) ------------------------------------------------ */

/* There may be something to make equal: it is mapped, or the catalog has news. */
void meta_news(struct coll *c);
void meta_kick(struct coll *c);
/* A collection was checked on this connection. On a new one the ordinary target may have been started again, and what was
 * loaded may not be so any more (Milvus Lite 3.2.2): all collections are compared anew. */
void meta_connection(struct repl_task *t, uint64_t generation);
/* A round of the task has ended: others may go on. */
void meta_kick_next(struct repl_task *t);
void meta_free(struct coll *c);
bool meta_running(const struct coll *c);
/* A standby's collection is not set up with what is from before the task: operations wait. */
bool meta_first_open(const struct coll *c);
/* It joins a task that starts: what a standby's collection lacks from before is set up once. */
void meta_from_before(struct coll *c);
/* For its record; NULL: nothing. */
const char *meta_record(const struct coll *c);
void meta_from_record(struct coll *c, const char *text);
/* What the target refuses, or why it has to wait; NULL: nothing. */
const char *meta_trouble(const struct coll *c);

/* ---- rows from before (copy.c) ---------------------------------------------------------------- */

struct copy;
/* c gets a copy that has not begun. */
void copy_new(struct coll *c);
/* Any state; nothing when there is none. */
void copy_free(struct coll *c);
/* Begins or goes on: the collection is mapped, or was checked again. */
void copy_kick(struct coll *c);
/* For its record. */
json_t *copy_json(const struct coll *c);
void copy_from_json(struct coll *c, const json_t *o);
/* Messages of that shard up to here may be among the rows that were copied; NONE: none. */
struct wal_pos copy_doubt(const struct coll *c, size_t shard);

/* ---- comparison with the target (verify.c) ------------------------------------------------------ */

/* The task runs: what was asked for while it started begins. */
void verify_started(struct repl_task *t);
/* The task stops: what is under way ends, and its result is stored. */
void verify_interrupt(struct repl_task *t);
void verify_free(struct verify *v);

/* ---- operations (replicate channel) -------------------------------------------------------- */

struct ops;
struct ops *ops_new(struct repl_task *t);
void ops_free(struct ops *o);
void ops_set_start(struct ops *o, const struct repl_ckpt *ckpt);
void ops_open(struct ops *o);
void ops_kick(struct ops *o);
void ops_close_reader(struct ops *o);
/* The checkpoint is durable: the queue may drop what is before it. */
void ops_retain(struct ops *o);
bool ops_busy(const struct ops *o);
void ops_fill_ckpt(struct ops *o, struct repl_ckpt *ret);
bool ops_dirty(const struct ops *o);
void ops_clear_dirty(struct ops *o);
const char *ops_trouble(const struct ops *o);

/* ---- databases ------------------------------------------------------------------------------ */

/* The catalog shows a database, or its drop. */
void dbs_on_database(struct repl_task *t, const char *name, bool dropped);
void dbs_kick(struct repl_task *t);
void dbs_free(struct repl_task *t);

/* ---- task ---------------------------------------------------------------------------------- */

enum run_state { RUN_NEW, RUN_LOADING, RUN_JOINING, RUN_RUNNING, RUN_STOPPING, RUN_STOPPED };

/* The first start asks for the end of each topic that somebody joins at. */
struct join_topic {
    UT_hash_handle hh;
    struct repl_task *task;
    char *name;
    bool asking, answered;
    bool must_exist;           /* a living collection has it: it is not in another source's queue */
    struct wal_pos last;
};

/* ---- is it still there? (kept.c) ----------------------------------------------------------- */

/* A question to the queue at the first start: does it still have a message, or what is the first that it has? */
struct kept {
    LIST_ENTRY(kept) entry;
    struct repl_task *task;
    char *topic, *what;        /* what: for the text, NULL for the first one */
    struct wal_pos pos;        /* NONE: the first one is asked for */
    struct wal_reader *reader;
    bool asked, known;
    struct wal_pos first;      /* the answer, and a time at or above which all that was written then is there */
    uint64_t first_tt;
};
/* Asks for each place once. Where it is gone, the task does not start: the text begins with what. */
void kept_place(struct repl_task *t, const char *topic, struct wal_pos pos, const char *what);
struct kept *kept_first(struct repl_task *t, const char *topic);
/* False: answers are to come, task_start_step() follows. */
bool kept_known(struct repl_task *t);
void kept_free(struct repl_task *t);

/* join.c. False: answers are to come, task_start_step() follows; or the task stops. */
bool join_ready(struct repl_task *t);
/* Decides where everything that is selected begins; fatal when something cannot. */
void join_all(struct repl_task *t);
/* From the collection's first message. */
int join_at_start(struct repl_task *t, const struct src_collection *sc, size_t shard, struct coll_join *ret);
void join_free(struct repl_task *t);
/* Goes on with the start as far as what is known allows. */
void task_start_step(struct repl_task *t);

struct repl_task {
    struct repl_task_options o; /* strings copied */
    LIST_ENTRY(repl_task) of_hub;
    struct loop *loop;
    enum run_state state;
    struct stream *streams;
    struct coll *colls;
    int64_t *ignored;           /* ids of collections that are not the task's, sorted: each of the source may be here */
    size_t n_ignored, cap_ignored;
    struct ops *ops;
    LIST_HEAD(, db) dbs;
    void *catalog_sub;
    bool loaded_ok, catalog_ready, first_start, joined, syncing, fatal;
    struct err fatal_err;
    unsigned drops_open;        /* collections and partitions whose drop is not finished */
    uint64_t sync_round;        /* completed syncs, so that a stall knows that its question was answered */
    uint64_t made_ms;           /* monotonic */
    size_t held;                /* bytes of messages in memory */
    uint64_t counted;           /* number of the last request that was counted */
    struct metric *m_requests;
    unsigned ensuring;          /* collections that are being made or checked on the target */
    unsigned copying;           /* collections whose rows are being copied just now */
    unsigned meta_rounds;       /* collections that meta.c is at work for */
    uint64_t meta_gen;          /* the sink's generation that it knows; 0: none, or a standby */
    bool aliasing;              /* one of them has a call about an alias under way */
    struct verify *verify;      /* the last comparison with the target, or the one under way; NULL: none in this run */
    struct timer ckpt_timer, start_timer, stop_timer, kick_timer, fatal_timer;
    struct backoff start_backoff;
    store_done_fn started;
    void *started_arg;
    void (*stopped)(void *arg);
    void *stopped_arg;
    bool stop_stored, ckpt_storing;
    char *catalog_trouble, *start_trouble;
    struct join_topic *topics;
    LIST_HEAD(, kept) kept;
    struct repl_ckpt *loaded;   /* checkpoints that no link has taken yet */
    size_t n_loaded;
    char trouble_text[1200];
};

void task_fatal(struct repl_task *t, const struct err *err);
/* A request was confirmed: drops, operations or a stop may have waited for it. */
void task_on_progress(struct repl_task *t);
/* Does the stream have to stop reading for memory? */
bool task_over_budget(const struct repl_task *t);
void task_hold(struct repl_task *t, size_t bytes);
void task_release(struct repl_task *t, size_t bytes);
/* The catalog knows it: joins the collection if it is the task's, else ignores its id (unless it is being created). */
void task_consider(struct repl_task *t, const struct src_collection *sc);
bool task_ignores(const struct repl_task *t, int64_t id);
void task_ignore(struct repl_task *t, int64_t id);
/* Asks etcd for proof of what exists; when answered every stalled stream is kicked. */
void task_sync(struct repl_task *t);
/* The older collection of the task that has, or will have, c's name on the target. */
struct coll *task_name_taken(struct repl_task *t, const struct coll *c);
/* The collection of another task that has it. */
struct coll *hub_name_taken(const struct repl_hub *h, const struct coll *c);
/* A name or a fact became free: collections that wait for it try again. */
void task_kick_waiting(struct repl_task *t);
/* The stored checkpoint of a link, once (the link takes it). False: none. */
bool task_take_ckpt(struct repl_task *t, const char *src, const char *dst, struct repl_ckpt *ret);
/* One more call to the target that succeeded, in milvus_cdc_api_execute_total. */
void task_count_call(struct repl_task *t, const char *api_type);
/* The same for a request with messages, once for each number. */
void task_count_request(struct repl_task *t, uint64_t number, const struct request *r);
void ckpt_release(struct repl_ckpt *c);
#endif
