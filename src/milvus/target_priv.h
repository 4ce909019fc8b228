/*
 * target_priv.h - the parts of the sink: one struct sink_call per operation, its RPCs one after another.
 *
 * Ownership  a sink_call belongs to its target's list until call_end(), sink->ops->cancel() or target_close();
 *            its memory goes when the loop turn ends.   Thread  loop thread only.
 */
#ifndef MILVUS_TARGET_PRIV_H
#define MILVUS_TARGET_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/err.h"
#include "base/pbwire.h"
#include "loop/loop.h"
#include "milvus/target.h"
#include "net/grpc.h"
#include "repl/port.h"

#include "milvus.pb-c.h"

/* MsgType (milvus common.proto) of the operations on the replicate channel. */
enum {
    OP_LOAD_COLLECTION = 106,
    OP_RELEASE_COLLECTION = 107,
    OP_LOAD_PARTITIONS = 205,
    OP_RELEASE_PARTITIONS = 206,
    OP_CREATE_INDEX = 300,
    OP_DROP_INDEX = 302,
    OP_ALTER_INDEX = 304,
    OP_FLUSH = 402,
    OP_CREATE_DATABASE = 1801,
    OP_DROP_DATABASE = 1802,
    OP_ALTER_DATABASE = 1804,
};

/* Status codes (milvus pkg/util/merr). */
enum {
    MERR_NOT_READY = 1,
    MERR_LITE_INDEX_EXISTS = 35, /* Milvus Lite only */
    MERR_UNIMPLEMENTED = 10,
    MERR_COLLECTION_NOT_FOUND = 100,
    MERR_PARTITION_NOT_FOUND = 200,
    MERR_CHANNEL_NOT_FOUND = 500,
    MERR_INDEX_NOT_FOUND = 700,
    MERR_DATABASE_NOT_FOUND = 800,
    MERR_ALIAS_NOT_FOUND = 1600,
    MERR_PARAMETER_INVALID = 1100,
    MERR_UNAUTHENTICATED = 1400,
    MERR_PRIVILEGE = 1401,
    MERR_DENY_REPLICATE = 1900,
    MERR_UNEXPECTED = 65535,
};

/* The code of a Status, also of an old server that fills only error_code; 0: success. */
int32_t target_status_code(int32_t code, int32_t old_code, const char *reason);

struct target {
    struct sink sink; /* first: a struct sink * is a struct target * */
    struct loop *loop;
    struct grpc_client *grpc;
    char *address; /* for texts */
    enum target_mode mode;
    bool ignore_partition;
    bool is_source; /* of rows.c */
    char *version;        /* plain: as the target calls itself, "" when it does not tell */
    uint64_t version_gen; /* the connection that told it; 0: not asked yet */
    bool leave_out;       /* plain: what the target's version does not know is left out */
    bool lite;            /* Milvus Lite: calls go one after another (target_conn.c) */
    bool closing;
    unsigned under_way;   /* RPCs */
    uint64_t quiet_ms;    /* monotonic, until when Milvus Lite may still be busy with a call that nobody waits for */
    TAILQ_HEAD(, sink_call) turns;
    struct timer turn_timer;
    LIST_HEAD(, sink_call) calls;
};

/* What the target calls itself, on the connection that is used now. False: it must be asked. */
bool target_version_known(const struct target *t);
/* Its answer to GetVersion; "" when it has none. */
void target_set_version(struct target *t, const char *version);

void target_turns_init(struct target *t);

/* Makes the connection, with login; host and port are in *ret_address (caller frees). NULL and err on failure. */
struct grpc_client *target_connect(struct loop *l, const struct target_options *o, char **ret_address,
                                   struct err *err);

/* What became of one RPC. */
struct answer {
    bool ok;
    struct err err;                /* !ok */
    int32_t milvus_code;           /* 0: no Status came (err is about the connection or the protocol) */
    const struct grpc_result *raw; /* borrowed */
};
typedef void (*answer_fn)(struct sink_call *c, const struct answer *a);

/* Where is the Status of an answer? */
enum answer_kind { ANSWER_STATUS, ANSWER_FIELD_1 };

void answer_init(struct answer *ret, const struct grpc_result *r, enum answer_kind kind, const char *context);
/* Unpacks the whole answer; NULL (then a->err is set and a->ok is false) when it cannot be parsed. */
void *answer_unpack(struct answer *a, const ProtobufCMessageDescriptor *d, const char *context);

struct sink_call {
    LIST_ENTRY(sink_call) next;
    struct target *target;
    char *object;       /* "db.collection", for texts */
    const char *method; /* of the RPC under way or the last one */
    enum answer_kind kind;
    answer_fn on_answer;
    struct grpc_call *rpc; /* NULL: none under way */
    TAILQ_ENTRY(sink_call) turn;
    struct evbuffer *body; /* waits for its turn; NULL: does not */
    char *body_db;         /* the dbname header for it */
    unsigned deadline_ms;
    struct timer timer;    /* armed: waits for on_timer */
    void (*on_timer)(struct sink_call *c);
    void (*release)(struct sink_call *c); /* frees what c holds and c; object and timer are call.c's */
    bool gone;
    struct err late;
    void (*fail)(struct sink_call *c, const struct err *err); /* completes; for call_fail_later() */
    /* target_database.c */
    const char *db;
    uint64_t db_tt;
    answer_fn db_done;
};

/* object is taken. fail must complete the call. */
void call_init(struct sink_call *c, struct target *t, char *object, void (*release)(struct sink_call *),
               void (*fail)(struct sink_call *, const struct err *));
/* The call is over: no callback of ours comes any more. Complete right after it. Twice is allowed. */
void call_end(struct sink_call *c);
/* One RPC. db (NULL: none) goes into the dbname header; body is moved. */
void call_rpc(struct sink_call *c, const char *method, enum answer_kind kind, const char *db,
              struct evbuffer *body, unsigned deadline_ms, answer_fn fn);
/* The same with a message, and DDL_DEADLINE_MS. */
void call_send(struct sink_call *c, const char *method, enum answer_kind kind, const char *db,
               const ProtobufCMessage *req, answer_fn fn);
void call_after(struct sink_call *c, unsigned ms, void (*fn)(struct sink_call *));
/* For errors found inside the starting call. */
void call_fail_later(struct sink_call *c);
/* "target host:port: Method object" */
const char *call_context(const struct sink_call *c, char *buf, size_t size);

enum { DDL_DEADLINE_MS = 30000, CONTEXT_MAX = 600 };

/* base{replicateInfo{isReplicate true, msgTimestamp tt}} for a standby; NULL, no base, for a plain target. */
struct replicate_base {
    Pb__ReplicateInfo info;
    Pb__MsgBase base;
};
Pb__MsgBase *replicate_base_init(struct replicate_base *b, const struct target *t, uint64_t tt);

/* An operation without a result. */
struct plain_call {
    struct sink_call call;
    sink_done_fn done;
    void *arg;
};
/* Takes object. */
struct plain_call *plain_call_new(struct target *t, char *object, sink_done_fn done, void *arg);
void plain_call_done(struct sink_call *c, const struct err *err);

/* Makes a database where it is missing; then done(), whose answer says ok or has the error. */
void database_ensure(struct sink_call *c, const char *db, uint64_t tt, answer_fn done);

/* protobuf-c's fields are not const, though packing does not write. */
static inline char *pb_str(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* ---- target_features.c: pure ---- */

/* Names of fields and functions that are on the source only. */
struct left_out {
    char **names;
    size_t n;
};
void left_out_add(struct left_out *l, const char *name); /* once */
bool left_out_has(const struct left_out *l, const char *name);
void left_out_release(struct left_out *l);

bool target_version_is_lite(const char *version);
/*
 * Can a target of that version ("": not known) hold what the schema describes, and can the public API write it?
 * ERR_UNSUPPORTED (USER) names the field and the version. With out (not NULL) such fields and functions are taken out of
 * the schema, and named there; keys and the only vector cannot be.
 */
int target_features_fit(Pb__CollectionSchema *s, const char *version, struct left_out *out, struct err *err);

/* ---- target_schema.c: pure ---- */

/*
 * Does the target's collection take the source's rows as they are?  Fields by order: name, data type, key, autoID,
 * partition key, element type, nullable, type params; dynamic field.  0, or ERR_STATE (USER) naming field and values.
 */
int target_schema_compare(const Pb__CollectionSchema *source, const Pb__CollectionSchema *target, struct err *err);
/*
 * The same for a plain target, where the source's schema has autoID off: fields by name in any order, since rows carry the
 * names, and the target's key must not be made there. out, when not NULL, gets the fields that the target does not have.
 */
int target_schema_compare_plain(const Pb__CollectionSchema *source, const Pb__CollectionSchema *target,
                                struct left_out *out, struct err *err);
/* "Int64", ... buf: for a number that is not known. */
const char *target_type_name(int32_t type, char *buf, size_t size);
/* A flag of newer versions, which our FieldSchema does not know. */
enum { FIELD_NULLABLE = 15, FIELD_FUNCTION_OUTPUT = 16 };
bool target_field_flag(const Pb__FieldSchema *f, uint32_t tag);
bool target_schema_has_partition_key(const Pb__CollectionSchema *s);

struct vchannel {
    size_t pchannel_len;
    int64_t collection_id;
    size_t number;
};
/* "<pchannel>_<id>v<n>". False: not of that form. */
bool target_vchannel_parse(const char *vchannel, struct vchannel *ret);
/*
 * The shards in order of their numbers, which must be 0 .. n-1, of that collection, on the physical channels named.
 * A wrong shard name kills a standby for good (target.md 3.1), so any doubt is an error.
 * Caller frees with target_shards_free().
 */
int target_shards(const Pb__DescribeCollectionResponse *d, size_t n_source, struct sink_shard **ret, struct err *err);
void target_shards_free(struct sink_shard *shards, size_t n);

/* ---- target_op.c: pure part ---- */

/*
 * A user's request with the target's names and, for a standby, base{replicateInfo} with its own time.  partitions (NULL:
 * as they are) replaces partition_names of Load/ReleasePartitions.  ERR_PROTO (DATA): not a request.
 */
int target_op_rewrite(enum target_mode mode, int msg_type, const uint8_t *data, size_t len, const char *db,
                      const char *collection, char *const *partitions, size_t n_partitions, struct pb_out *out,
                      struct err *err);

/* A flush that takes longer counts as done. Tests shorten it. */
extern unsigned target_flush_deadline_ms;

/* ---- operations, for the table of ops ---- */

struct sink_call *target_ensure_collection(struct sink *s, const struct src_collection *c, const char *db,
                                           const char *name, bool allow_create, sink_collection_fn done, void *arg);
int target_check_collection(struct sink *s, const struct src_collection *c, const char *version, struct err *err);
struct sink_call *target_ensure_database(struct sink *s, const char *db, uint64_t tt, sink_done_fn done, void *arg);
struct sink_call *target_drop_collection(struct sink *s, const char *db, const char *name, uint64_t tt,
                                         sink_done_fn done, void *arg);
struct sink_call *target_drop_partition(struct sink *s, const char *db, const char *collection,
                                        const char *partition, uint64_t tt, sink_done_fn done, void *arg);
struct sink_call *target_apply_operation(struct sink *s, int msg_type, const uint8_t *data, size_t len,
                                         const char *db, const char *collection, sink_done_fn done, void *arg);
struct sink_call *target_replicate(struct sink *s, const char *pchannel, uint64_t begin_tt, uint64_t end_tt,
                                   struct evbuffer *msgs, sink_batch_fn done, void *arg);
struct sink_call *target_describe_meta(struct sink *s, const char *db, const char *collection,
                                       const char *const *partitions, size_t n_partitions, sink_meta_fn done,
                                       void *arg);
struct sink_call *target_change_meta(struct sink *s, const struct sink_change *change, sink_done_fn done, void *arg);
struct sink_call *target_rename(struct sink *s, const char *db, const char *name, const char *new_db,
                                const char *new_name, int64_t id, sink_done_fn done, void *arg);
char **target_names_dup(const char *const *names, size_t n);
void target_names_free(char **names, size_t n);
/* An answer to CreateIndex: a user must change something, or it is passing trouble? Its text tells. */
void target_sharpen_index(struct answer *a);
struct sink_call *target_write(struct sink *s, const struct sink_write *w, sink_batch_fn done, void *arg);
/* True: the target certainly produced nothing of that request. */
bool target_replicate_refused(const struct answer *a);
/* For a request of that many bytes of rows. */
unsigned target_data_deadline_ms(size_t bytes);
#endif
