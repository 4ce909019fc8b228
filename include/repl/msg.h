/*
 * msg.h - WAL messages of Milvus (milvus.proto.msg): scanned, not unpacked; rewritten, not packed again.
 *
 * A message stays the bytes that the reader delivered.  The few header fields that replication needs are
 * found by one scan; msg_rewrite() writes these anew and passes every other byte (column data, fields of
 * newer versions) by reference.  Field numbers: shared/reference/source.md section 5.
 */
#ifndef REPL_MSG_H
#define REPL_MSG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;
struct evbuffer;

/* MsgType (milvus common.proto) */
enum msg_type {
    MSG_CREATE_COLLECTION = 100,
    MSG_DROP_COLLECTION = 101,
    MSG_LOAD_COLLECTION = 106,
    MSG_RELEASE_COLLECTION = 107,
    MSG_CREATE_PARTITION = 200,
    MSG_DROP_PARTITION = 201,
    MSG_LOAD_PARTITIONS = 205,
    MSG_RELEASE_PARTITIONS = 206,
    MSG_CREATE_INDEX = 300,
    MSG_DROP_INDEX = 302,
    MSG_ALTER_INDEX = 304,
    MSG_INSERT = 400,
    MSG_DELETE = 401,
    MSG_FLUSH = 402,
    MSG_IMPORT = 408,
    MSG_TIME_TICK = 1200,
    MSG_REPLICATE = 1212,
    MSG_CREATE_DATABASE = 1801,
    MSG_DROP_DATABASE = 1802,
    MSG_ALTER_DATABASE = 1804,
};

/* What one scan finds; all pointers borrow from the message. Texts are not terminated. */
struct msg_head {
    int type;
    int64_t msg_id;
    uint64_t base_tt;
    uint64_t min_tt, max_tt; /* of the row timestamps; equal to base_tt where a type has none */
    int64_t collection_id, partition_id; /* partition_id -1: no partition (Delete) */
    uint64_t num_rows;
    const uint8_t *shard_name, *db_name, *collection_name, *partition_name; /* NULL: absent */
    size_t shard_name_len, db_name_len, collection_name_len, partition_name_len;
};

/*
 * Scans an encoded message.  0, or ERR_PROTO with class DATA: not a message (truncated, no base, wrong wire
 * type, row timestamps missing where the type needs them). Unknown types succeed with what base says.
 */
int msg_scan(const uint8_t *data, size_t len, struct msg_head *ret, struct err *err);

/* What changes on the way to the target. */
struct msg_rewrite {
    int64_t collection_id;
    int64_t partition_id;       /* kept -1 when the message has -1 */
    const char *shard_name;     /* the target's vchannel; NULL for types without one (drops) */
    const char *db_name, *collection_name; /* the target's */
    uint64_t new_tt;            /* 0: times stay. Else base.timestamp and every row timestamp become this */
    int64_t new_msg_id;         /* 0: base.msgID stays */
};

/*
 * Appends one element of ReplicateMessageRequest.Msgs (tag 0x2a, length, message) to out: Insert, Delete,
 * DropCollection, DropPartition.  Row-sized fields are added as references to src. num_rows is head's.
 * Returns the bytes appended, or 0 when memory is out.
 */
size_t msg_append(const struct msg_head *head, struct buf *src, const uint8_t *data, size_t len,
                  const struct msg_rewrite *rw, struct evbuffer *out);

/* A TimeTick of that time (sourceID -1), as an element of Msgs. */
size_t msg_append_tick(uint64_t tt, struct evbuffer *out);

/* DropCollection / DropPartition made by us (when the source's own can no longer be read). */
size_t msg_append_drop_collection(const struct msg_rewrite *rw, uint64_t tt, struct evbuffer *out);
size_t msg_append_drop_partition(const struct msg_rewrite *rw, const char *partition_name, uint64_t tt,
                                 struct evbuffer *out);

/*
 * The delete half of a repair: a Delete at rw->new_tt of all primary keys of an Insert, naming the Insert's own
 * partition. pk_field_id tells the column; its encoded array is passed by reference (LongArray and StringArray
 * are the same bytes in FieldData.scalars and in IDs). ERR_PROTO (DATA) when the column is not there.
 */
int msg_append_delete_of_insert(const struct msg_head *head, struct buf *src, const uint8_t *data, size_t len,
                                int64_t pk_field_id, bool pk_is_string, const struct msg_rewrite *rw,
                                struct evbuffer *out, size_t *ret_bytes, struct err *err);

/*
 * The columns of Inserts as the public API takes them (repeated fields_data, tag 5): consecutive messages of one
 * collection and partition are joined column by column. Values are not decoded: the contents of two encoded arrays, one
 * behind the other, are the encoded array of both, and so are vectors that are bare bytes. What a column is (name,
 * type, dynamic field) comes once, with one tag and the summed length. RowID and Timestamp are left out.
 *
 * Rows of a nullable column: the WAL has a placeholder where a row is null, the API wants only the values that exist;
 * those columns are copied without the placeholders.  Values that the WAL has in another form than the API takes
 * (geometry, times, structs) are refused.
 */
struct msg_columns;
struct msg_columns *msg_columns_new(void); /* never NULL */
/*
 * For columns with a default value (src_collection.default_ids; copied) the API wants to be told of each row that it
 * has a value (valid_data), which the WAL leaves out. Before the first message is added.
 */
void msg_columns_defaults(struct msg_columns *c, const int64_t *field_ids, size_t n);
/* Columns of these names are not taken; copied. Before the first message is added. */
void msg_columns_without(struct msg_columns *c, char *const *names, size_t n);
/*
 * Adds an Insert; keeps references to src. Nothing was added when it fails:
 *   ERR_PROTO (DATA)    no Insert with columns, or a column of a kind that is not known here; the text names it
 *   ERR_INVALID (DATA)  its columns are not those of the messages before it: begin anew with this one
 */
int msg_columns_add(struct msg_columns *c, const struct msg_head *head, struct buf *src, const uint8_t *data,
                    size_t len, struct err *err);
/*
 * Adds the rows of a Query's answer (FieldData with tag 2); *ret_last is the greatest key as text of an expression (caller
 * frees; NULL when there are no rows, then nothing is added). Errors as msg_columns_add().
 */
int msg_columns_add_page(struct msg_columns *c, struct buf *src, const uint8_t *data, size_t len, const char *pk_name,
                         char **ret_last, struct err *err);
/* The number in the answer of a Query for count(*); 0: not one. */
uint64_t msg_page_count(const uint8_t *data, size_t len);
uint64_t msg_columns_rows(const struct msg_columns *c);
size_t msg_columns_bytes(const struct msg_columns *c); /* what msg_columns_write() appends now */
/* Appends the encoded fields_data elements to out; may be called again. False: no memory, out then holds a part. */
bool msg_columns_write(const struct msg_columns *c, struct evbuffer *out);
/* Rows from, inclusive, to to, exclusive, as columns of their own; values are copied. NULL: the values are not as many as the
 * rows, or of a kind that cannot be told apart. */
struct msg_columns *msg_columns_cut(const struct msg_columns *c, uint64_t from, uint64_t to);
void msg_columns_free(struct msg_columns *c); /* NULL is allowed */

/* The expr of the public API's Delete for the keys of Deletes of one collection: `id in [1,2]`, `id in ["a","b"]`. */
struct msg_keys;
struct msg_keys *msg_keys_new(const char *pk_name); /* never NULL; the name is copied */
/* ERR_PROTO (DATA): no Delete, or not one key per row; nothing was added. The bytes are copied. */
int msg_keys_add(struct msg_keys *k, const struct msg_head *head, const uint8_t *data, size_t len, struct err *err);
uint64_t msg_keys_count(const struct msg_keys *k);
size_t msg_keys_bytes(const struct msg_keys *k); /* of the text */
/* Appends the text; may be called again. False: no memory. */
bool msg_keys_write(const struct msg_keys *k, struct evbuffer *out);
/* Keys from, inclusive, to to, exclusive. Never NULL. */
struct msg_keys *msg_keys_cut(const struct msg_keys *k, uint64_t from, uint64_t to);
void msg_keys_free(struct msg_keys *k); /* NULL is allowed */

/* Target of an operation message of the replicate channel: db_name and collection name(s) of the encoded user
 * request. Flush has several collections: index counts from 0, ERR_NOT_FOUND past the last; the others have one.
 * Database operations: collection is "". Caller frees both. ERR_UNSUPPORTED (USER) for a type without rule here. */
int msg_operation_target(int msg_type, const uint8_t *data, size_t len, size_t index, char **ret_db,
                         char **ret_collection, struct err *err);
/* False for types that are no operations we replay (aliases, users and roles, ...); text for people then. */
bool msg_operation_known(int msg_type);
const char *msg_type_name(int msg_type); /* "Insert", "CreateIndex", ...; "type 1234" never: "Unknown" */
#endif
