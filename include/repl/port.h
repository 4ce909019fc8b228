/*
 * port.h - what the replication heart (repl/) needs from the world, and nothing more.
 *
 *   wal_port      streams of one message queue (RocksMQ, Kafka, Pulsar, NATS)
 *   catalog_port  the source's collections and partitions, from etcd
 *   rows_port     rows that the source's collections have already
 *   sink_port     the target: objects, and batches of encoded messages for its physical channels
 *   store_port    durable records: checkpoints, intents, collection states
 *
 * The world implements these tables (wal/, milvus/, registry/); unit tests use fakes.
 * All callbacks run on the loop thread, never from inside the call that starts them, and none comes
 * after the object was closed.
 */
#ifndef REPL_PORT_H
#define REPL_PORT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct buf;
struct evbuffer;

/* ---- positions ---------------------------------------------------------------------------- */

/*
 * A message's place in one topic, in a form that every queue can be mapped to and that compares.
 * RocksMQ, NATS: major = 0, minor = id / stream sequence.  Kafka: major = 0, minor = offset + 1.
 * Pulsar: major = ledger + 1, minor = entry << 20 | batch index.
 */
struct wal_pos {
    uint64_t major, minor;
};
/* Before every message. RocksMQ ids and NATS sequences start at 1; hence the + 1 of the others. */
#define WAL_POS_NONE ((struct wal_pos){0, 0})

static inline int wal_pos_cmp(struct wal_pos a, struct wal_pos b)
{
    if (a.major != b.major)
        return a.major < b.major ? -1 : 1;
    return a.minor < b.minor ? -1 : a.minor > b.minor;
}
static inline bool wal_pos_is_none(struct wal_pos p)
{
    return p.major == 0 && p.minor == 0;
}
/* The greatest position below p; NONE stays. Such a message need not exist. */
static inline struct wal_pos wal_pos_before(struct wal_pos p)
{
    if (p.minor)
        return (struct wal_pos){p.major, p.minor - 1};
    return p.major ? (struct wal_pos){p.major - 1, UINT64_MAX} : p;
}

#define WAL_ID_MAX 32 /* bytes of an encoded message id (MsgPosition.msgID) */

/* ---- WAL: reading ------------------------------------------------------------------------- */

struct wal_msg {
    struct wal_pos pos;
    struct buf *buf; /* holds data; borrowed during on_batch: buf_ref() to keep */
    const uint8_t *data;
    size_t len;
};

struct wal_reader_cbs {
    /* Messages in log order, each greater than the last. caught_up: the end of the log was reached. */
    void (*on_batch)(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up);
    /*
     * cls RETRY: reading does not work now and goes on by itself (told once per trouble; err NULL when over).
     * cls LOST:  the start position is gone; the text has the position asked and the first that exists.
     * cls USER, DATA: cannot go on.  After LOST, USER and DATA the reader delivers nothing more.
     */
    void (*on_trouble)(void *arg, const struct err *err);
};

struct wal_start {
    bool earliest;      /* from the first message that exists; pos is not looked at */
    bool handled;       /* pos itself is not needed and may be left out: where ids are dense (Kafka, NATS) it need not
                           exist any more, as long as nothing behind it was removed */
    struct wal_pos pos; /* from this message, inclusive. It must still exist, else LOST: with an inclusive
                           start a reader can prove that nothing is missing, since ids need not be dense */
};

struct wal_port;
struct wal_reader;

typedef void (*wal_end_fn)(void *arg, const struct err *err, bool found, struct wal_pos last);
typedef void (*wal_forget_fn)(void *arg, const struct err *err);

struct wal_port_ops {
    /* Opens a reader; reading begins at once. A topic that does not exist yet is waited for (earliest). */
    struct wal_reader *(*open)(struct wal_port *w, const char *topic, const struct wal_start *start,
                               const struct wal_reader_cbs *cbs, void *arg);
    /* Backpressure: after pause() no batch comes until resume(). Both idempotent. */
    void (*pause)(struct wal_reader *r);
    void (*resume)(struct wal_reader *r);
    void (*close)(struct wal_reader *r);
    /* Asks for the last message of the topic now (found false: topic is empty or not there). */
    void (*end)(struct wal_port *w, const char *topic, wal_end_fn done, void *arg);
    /* Drops the callbacks of all end() and forget() calls made with arg. */
    void (*end_cancel)(struct wal_port *w, void *arg);
    /*
     * For queues whose retention follows its subscriptions (Pulsar), else NULL. retain: what owner (a task's id) still
     * needs of topic is from on, inclusive; NONE: everything that is there. May move forward often; retried inside,
     * durable on the broker, also while nothing reads. forget: owner needs nothing of topic any more; done comes once
     * the broker knows (a topic without such a subscription is success; RETRY: the broker does not answer now). done NULL:
     * tried until it succeeds.
     */
    void (*retain)(struct wal_port *w, const char *owner, const char *topic, struct wal_pos from);
    void (*forget)(struct wal_port *w, const char *owner, const char *topic, wal_forget_fn done, void *arg);
    /* The queue's own encoding, as in MsgPosition.msgID. encode: returns the length (<= WAL_ID_MAX). */
    size_t (*id_encode)(struct wal_pos pos, uint8_t *ret_id);
    int (*id_decode)(const uint8_t *id, size_t len, struct wal_pos *ret_pos);
};
struct wal_port {
    const struct wal_port_ops *ops;
    const char *name;    /* "rocksmq" */
    const char *setting; /* what tells where it is, for error texts: "sourceConfig.rocksmq.path" */
};

/* ---- catalog: what exists on the source ---------------------------------------------------- */

enum src_state { SRC_CREATING, SRC_ALIVE, SRC_DROPPING /* or dropped, tombstoned, absent */ };

struct src_partition {
    int64_t id;
    char *name;
    enum src_state state;
    uint64_t create_tt;
    bool loaded;
};

struct src_pair {
    char *key, *value;
};

struct src_index {
    int64_t id;
    char *field, *name;
    bool vector;             /* a load needs it */
    struct src_pair *params; /* as the user gave them */
    size_t n_params;
};

enum src_load { SRC_RELEASED, SRC_LOADED_PARTITIONS /* single ones */, SRC_LOADED };

struct src_shard {
    char *vchannel, *pchannel;
    uint8_t start_id[WAL_ID_MAX]; /* message id of the CreateCollection message on pchannel */
    size_t start_id_len;          /* 0: unknown */
};

/* One collection of the source. Owned by the catalog; borrowed pointers live until its next callback:
 * keep the id and look it up again. */
struct src_collection {
    int64_t id, db_id;
    int64_t revision; /* rises with each write of its own key in etcd: of its names, state and properties */
    char *db_name; /* "default" for the default database */
    char *name;
    enum src_state state;
    uint64_t create_tt;
    struct src_shard *shards; /* index = shard number, as in the vchannel's "v<n>" */
    size_t n_shards;
    struct src_partition *partitions; /* all states, by id */
    size_t n_partitions;
    /* For the delete half of a repair: the primary key's field id and whether it is text. */
    int64_t pk_field_id;
    bool pk_is_string;
    /* For the public API: the key's name (NULL: not known), and whether partitions are not named there. */
    char *pk_name;
    bool has_partition_key;
    int64_t *default_ids; /* fields with a default value: see msg_columns_defaults() */
    size_t n_default_ids;
    size_t row_bytes; /* of a row in an answer, about: vectors as they are, texts and the like by a guess */
    /* What users set up beside the rows. Properties without those of a replica (replicate.*). */
    struct src_index *indexes; /* by id */
    size_t n_indexes;
    enum src_load load; /* loaded, or being loaded */
    unsigned replicas;
    char **aliases;
    size_t n_aliases;
    const struct src_pair *properties;
    size_t n_properties;
    void *impl; /* catalog's own: decoded schema, for the sink's create and compare (milvus/catalog.h) */
};

struct catalog;
struct catalog_cbs {
    /* The first snapshot is complete; and again after each re-snapshot (compaction). */
    void (*on_ready)(void *arg);
    /* Something of this collection is new: it appeared, became alive, dropping, got partitions, was renamed, or what
     * users set up beside its rows.
     * A tombstone or a removed key comes as state SRC_DROPPING with the last known name and shards. */
    void (*on_collection)(void *arg, const struct src_collection *c);
    /* A database appeared (dropped false) or is gone. */
    void (*on_database)(void *arg, int64_t db_id, const char *name, bool dropped);
    /* etcd is away / wrong credentials ...; NULL when over. */
    void (*on_trouble)(void *arg, const struct err *err);
};

typedef void (*catalog_sync_fn)(void *arg, const struct err *err);

struct catalog_ops {
    /* Several listeners share one catalog (one watch). Returns a handle for unsubscribe; when the catalog is
     * ready already, on_ready comes at the next turn (iterate then with next()). */
    void *(*subscribe)(struct catalog *c, const struct catalog_cbs *cbs, void *arg);
    void (*unsubscribe)(struct catalog *c, void *handle);
    /* NULL: not known (never existed, or tombstoned before we started). */
    const struct src_collection *(*get)(struct catalog *c, int64_t collection_id);
    /* Iterates by id: first with after = INT64_MIN. NULL: the end. */
    const struct src_collection *(*next)(struct catalog *c, int64_t after_id);
    /* Completes when the catalog holds everything that etcd held at some moment after this call (a
     * linearizable read compared with what is known), so "unknown" is then a proof. */
    void (*sync)(struct catalog *c, catalog_sync_fn done, void *arg);
    void (*sync_cancel)(struct catalog *c, void *arg);
    /* Has it held everything that etcd had at some moment? */
    bool (*ready)(const struct catalog *c);
};
struct catalog {
    const struct catalog_ops *ops;
};

/* ---- rows: what a collection of the source has now ------------------------------------------ */

struct rows_query {
    const char *db, *collection;
    const char *partition; /* NULL: all */
    const char *expr;
    const char *output;    /* "*" (every column), the name of one, or "count(*)" */
    uint64_t limit;        /* most rows of the answer, those of the smallest keys; 0: no limit. When a part of the source
                              has that many with equal keys among them, which count as one, rows behind them may be
                              missing before the last one */
    bool careful;          /* with a limit: none is missing before the last one, but fewer may come than there are */
    uint64_t since;        /* what was written up to that time of the source is seen, of now(); 0: up to the call, which waits
                              for the source's next tick */
    size_t max_bytes;      /* of the answer */
};
/* An encoded answer: its columns are FieldData with tag 2. No columns: no row. */
struct rows_page {
    struct buf *buf; /* holds data; borrowed during the callback: buf_ref() to keep */
    const uint8_t *data;
    size_t len;
};
struct rows_port;
struct rows_call;
typedef void (*rows_fn)(void *arg, const struct err *err, const struct rows_page *page);
typedef void (*rows_now_fn)(void *arg, const struct err *err, uint64_t tt);
typedef void (*rows_pairs_fn)(void *arg, const struct err *err, const struct src_pair *pairs, size_t n);

struct rows_ops {
    /* ERR_STATE (RETRY): the collection is not loaded; ERR_NOT_FOUND: it, or the partition, is not there; ERR_LIMIT (RETRY):
     * the answer would be larger than max_bytes, or than the source sends: ask for fewer rows. No retry inside. */
    struct rows_call *(*query)(struct rows_port *p, const struct rows_query *q, rows_fn done, void *arg);
    /* Loads a collection (or releases it); done comes when that has begun. page has nothing. */
    struct rows_call *(*load)(struct rows_port *p, const char *db, const char *collection, bool on, rows_fn done,
                              void *arg);
    /* A time of the source: everything written before the call is older, what is written after the answer is not.
     * ERR_UNSUPPORTED: the source cannot tell. */
    struct rows_call *(*now)(struct rows_port *p, rows_now_fn done, void *arg);
    /* The properties of a collection, without those of a replica. A 2.3 source writes a changed one into etcd too late. */
    struct rows_call *(*properties)(struct rows_port *p, const char *db, const char *collection, rows_pairs_fn done,
                                    void *arg);
    void (*cancel)(struct rows_call *c); /* NULL is allowed */
};
struct rows_port {
    const struct rows_ops *ops;
};

/* ---- sink: the target ---------------------------------------------------------------------- */

struct sink_shard {
    char *vchannel, *pchannel;
};
struct sink_partition {
    int64_t id;
    char *name;
};
/* A collection as it is on the target. */
struct sink_collection {
    int64_t id;
    struct sink_shard *shards; /* by shard number: paired with the source's shard of the same number */
    size_t n_shards;
    struct sink_partition *partitions;
    size_t n_partitions;
};

enum sink_write_kind { SINK_INSERT, SINK_UPSERT, SINK_DELETE };

/* One Insert, Upsert or Delete of rows of one collection through the public API. */
struct sink_write {
    enum sink_write_kind kind;
    const char *db, *collection;  /* the target's */
    const char *partition;        /* NULL or "": none named */
    uint64_t rows;
    struct evbuffer *body;        /* INSERT, UPSERT: encoded fields_data (tag 5 each); DELETE: the text of expr.
                                     Content moved; references stay references */
};

/* What users set up beside the rows of a collection of the target. */
struct sink_index {
    char *field, *name;
    struct src_pair *params;
    size_t n_params;
};
struct sink_meta {
    struct sink_index *indexes;
    size_t n_indexes;
    bool loaded;            /* at least a part of it, or being loaded */
    bool partitions_loaded; /* all that were asked about */
    char **aliases;
    size_t n_aliases;
    struct src_pair *properties;
    size_t n_properties;
};

enum sink_change_kind {
    SINK_CREATE_INDEX,       /* field, name, pairs: its params */
    SINK_DROP_INDEX,         /* field, name */
    SINK_LOAD,               /* replicas */
    SINK_LOAD_PARTITIONS,    /* names, replicas */
    SINK_RELEASE,
    SINK_RELEASE_PARTITIONS, /* names */
    SINK_ALIAS,              /* name: made, or moved to this collection */
    SINK_DROP_ALIAS,         /* name */
    SINK_SET_PROPERTIES,     /* pairs */
    SINK_DROP_PROPERTIES,    /* names */
};
struct sink_change {
    enum sink_change_kind kind;
    const char *db, *collection; /* the target's */
    const char *field, *name;
    const struct src_pair *pairs;
    size_t n_pairs;
    const char *const *names;
    size_t n_names;
    unsigned replicas;
};

struct sink;
struct sink_call; /* an operation under way; a completed one is gone */

typedef void (*sink_done_fn)(void *arg, const struct err *err); /* err NULL: done */
typedef void (*sink_meta_fn)(void *arg, const struct err *err, const struct sink_meta *m);
typedef void (*sink_collection_fn)(void *arg, const struct err *err, const struct sink_collection *c);
/* doubt: the target may have taken (a part of) the request. target_pos: base64 of its last message id, or "". */
typedef void (*sink_batch_fn)(void *arg, const struct err *err, bool doubt, const char *target_pos);

struct sink_ops {
    /*
     * Makes db, collection and its alive partitions on the target where missing, compares where they exist
     * (a different schema, shard count, partition key count: ERRC_USER, text names the difference),
     * describes it. allow_create false: only describe and check; absent is ERR_NOT_FOUND.
     * db and name are the target's (after mapping). One try: transient errors come back as RETRY.
     */
    struct sink_call *(*ensure_collection)(struct sink *s, const struct src_collection *c, const char *db,
                                           const char *name, bool allow_create, sink_collection_fn done,
                                           void *arg);
    struct sink_call *(*ensure_database)(struct sink *s, const char *db, uint64_t tt, sink_done_fn done,
                                         void *arg);
    /* tt: the source's time of the operation. Absent objects are success. */
    struct sink_call *(*drop_collection)(struct sink *s, const char *db, const char *name, uint64_t tt,
                                         sink_done_fn done, void *arg);
    struct sink_call *(*drop_partition)(struct sink *s, const char *db, const char *collection,
                                        const char *partition, uint64_t tt, sink_done_fn done, void *arg);
    /* Replays a message of the replicate channel (whole encoded request; MsgType in base). map_* turn source
     * names into the target's; what is done already is success; Flush has a deadline of its own. */
    struct sink_call *(*apply_operation)(struct sink *s, int msg_type, const uint8_t *data, size_t len,
                                         const char *target_db, const char *target_collection,
                                         sink_done_fn done, void *arg);
    /*
     * One ReplicateMessage request for a physical channel of the target. msgs: the encoded repeated Msgs field
     * (each with tag 0x2a and length; content moved, references stay references).
     * One at a time per channel is the caller's duty. No retry inside.
     */
    struct sink_call *(*replicate)(struct sink *s, const char *pchannel, uint64_t begin_tt, uint64_t end_tt,
                                   struct evbuffer *msgs, sink_batch_fn done, void *arg);
    /* Portable mode only (NULL in a standby's sink). No retry inside. */
    struct sink_call *(*write)(struct sink *s, const struct sink_write *w, sink_batch_fn done, void *arg);
    void (*cancel)(struct sink_call *call); /* NULL is allowed */
    /* Rises with each reconnect: what was checked before must be checked again. */
    uint64_t (*generation)(struct sink *s);
    /* What a collection has; partitions: those whose load state matters. What the target does not tell is not there. */
    struct sink_call *(*describe_meta)(struct sink *s, const char *db, const char *collection,
                                       const char *const *partitions, size_t n_partitions, sink_meta_fn done, void *arg);
    /*
     * One change. What is so already is success; so is, with a line in the log, what the target does not offer (it then
     * loads the collection in the place of partitions, and one replica in the place of several). No retry inside.
     */
    struct sink_call *(*change_meta)(struct sink *s, const struct sink_change *change, sink_done_fn done, void *arg);
    /* The collection of that id (0: whichever) is db.name or, when this was done before, new_db.new_name: it is the latter
     * then. ERR_NOT_FOUND: it is neither; ERR_EXISTS (USER): new_name is taken. */
    struct sink_call *(*rename)(struct sink *s, const char *db, const char *name, const char *new_db,
                                const char *new_name, int64_t id, sink_done_fn done, void *arg);
};
struct sink {
    const struct sink_ops *ops;
};

/* ---- store: durable state ------------------------------------------------------------------ */

/*
 * Progress of one link: messages of one source channel that go to one target channel, for one task.
 * Everything at or before done is on the target. Of what lies behind it, those in (done, sent] may be there or not, and
 * those whose source time is at or below span_tt.
 */
struct repl_ckpt {
    char *src_channel, *dst_channel; /* pchannels */
    struct wal_pos start;  /* read again from here: the last source tick at or before done, or the first message
                              before that tick whose time is greater (NONE: see shards) */
    uint64_t start_tt;     /* that tick's time: messages up to it are on the target; 0: none yet */
    struct wal_pos done, sent;
    uint64_t done_tt;      /* source time up to which all is confirmed: the source's own last tick */
    uint64_t sent_tt;      /* greatest time given to a message in (done, sent]: new times begin above it */
    uint64_t retimed_tt;   /* greatest time ever made anew for this link: true times below it cannot be kept */
    uint64_t span_tt;      /* reserved ahead: with their own times such messages are sent without a note; 0: none */
    struct wal_pos op;     /* last confirmed message that was more than a tick, and its time */
    uint64_t op_tt;
    char *target_pos;      /* base64 message id on the target, or NULL */
};

/* A collection that belongs to a task (joined once; the record goes when it is dropped everywhere). */
struct repl_collection_rec {
    int64_t id;
    char *json; /* repl's own encoding: names, where each shard joins, state of a drop */
};

struct store;
/* One atomic set of changes of one task. Built by the caller, moved into commit. */
struct store_batch;

typedef void (*store_done_fn)(void *arg, const struct err *err);
typedef void (*store_load_fn)(void *arg, const struct err *err, const struct repl_ckpt *ckpts, size_t n_ckpts,
                              const struct repl_collection_rec *colls, size_t n_colls);
typedef void (*store_tick_fn)(void *arg, const struct err *err, uint64_t tt);

struct store_ops {
    /* Everything stored for the task. */
    void (*load)(struct store *s, const char *task_id, store_load_fn done, void *arg);
    struct store_batch *(*begin)(struct store *s, const char *task_id);
    void (*put_ckpt)(struct store_batch *b, const struct repl_ckpt *c); /* copied; key = both channels */
    void (*del_ckpt)(struct store_batch *b, const char *src_channel, const char *dst_channel);
    void (*put_collection)(struct store_batch *b, int64_t id, const char *json);
    void (*del_collection)(struct store_batch *b, int64_t id);
    /* A bound for the ticks that a channel of the target may have seen, from any task; outlives tasks. */
    void (*put_tick)(struct store_batch *b, const char *target, const char *dst_channel, uint64_t tt);
    /* The same where put_tick went ahead of what was sent: exactly this, also if it is lower than what is stored. */
    void (*set_tick)(struct store_batch *b, const char *target, const char *dst_channel, uint64_t tt);
    /* What a comparison of the task's rows found (repl/verify.h), in the place of the former; JSON. */
    void (*put_verify)(struct store_batch *b, const char *json);
    /*
     * Durable (synced) when done comes without error. Commits are carried out in the order of the calls,
     * grouped. ERR_STALE: the task has another owner or epoch now, nothing was written. RETRY errors are
     * retried inside; done may come late. done may be NULL. The memory of b is gone.
     */
    void (*commit)(struct store_batch *b, store_done_fn done, void *arg);
    void (*load_tick)(struct store *s, const char *target, const char *dst_channel, store_tick_fn done, void *arg);
    /* Drops the callbacks of all calls made with arg (the writes still happen). */
    void (*cancel)(struct store *s, void *arg);
};
struct store {
    const struct store_ops *ops;
};
#endif
