/*
 * msg_priv.h - what the parts of msg share: field numbers of each type, output of one element.
 */
#ifndef REPL_MSG_PRIV_H
#define REPL_MSG_PRIV_H
#include "base/pbwire.h"
#include "repl/msg.h"

enum { MSG_F_BASE = 1 };
/* MsgBase */
enum { BASE_F_TYPE = 1, BASE_F_MSG_ID = 2, BASE_F_TIMESTAMP = 3, BASE_F_SOURCE_ID = 4 };

/* Field numbers of one type; 0: it has no such field. All are below 32. */
struct msg_layout {
    uint8_t shard_name, db_name, collection_name, partition_name;
    uint8_t collection_id, partition_id;
    uint8_t timestamps, num_rows; /* rows: both or none */
};

/* For types without a rule: the empty layout. Never NULL. */
const struct msg_layout *msg_layout_of(int type);

/* The sole MsgBase of an encoded message. 0; ERR_PROTO (DATA) when none, two or not protobuf. */
int msg_find_base(const uint8_t *data, size_t len, struct pb_field *ret_base, struct err *err);

/* Each integer of field num, packed or one by one. False: malformed. */
bool msg_each_number(const uint8_t *data, size_t len, uint32_t num, void (*fn)(void *arg, int64_t v), void *arg);
/* Each text of a StringArray. False: malformed. */
bool msg_each_text(const uint8_t *data, size_t len, void (*fn)(void *arg, const uint8_t *s, size_t len), void *arg);
/* A key as an expression has it. */
void msg_out_number(struct pb_out *o, int64_t v);
void msg_out_quoted(struct pb_out *o, const uint8_t *s, size_t len);

/* How many rows a Query's answer has, and the greatest key as text of an expression (caller frees; NULL: no rows). */
int msg_page_keys(const uint8_t *data, size_t len, const char *pk_name, uint64_t *ret_rows, char **ret_last,
                  struct err *err);

/* Each key of such an answer, in its order. False: malformed, or it has no column of that name. */
bool msg_page_each_key(const uint8_t *data, size_t len, const char *pk_name, void (*number)(void *arg, int64_t v),
                       void (*text)(void *arg, const uint8_t *s, size_t len), void *arg);

enum { PAGE_F_FIELDS_DATA = 2 }; /* of QueryResults */

/* Numbers in InsertRequest and DeleteRequest; schema.proto: FieldData, ScalarField, IDs, and the arrays in them. */
enum { INSERT_F_FIELDS_DATA = 13, DELETE_F_OLD_KEYS = 9, DELETE_F_PRIMARY_KEYS = 12 };
enum {
    FIELD_F_TYPE = 1,
    FIELD_F_NAME = 2,
    FIELD_F_SCALARS = 3,
    FIELD_F_VECTORS = 4,
    FIELD_F_ID = 5,
    FIELD_F_DYNAMIC = 6,
    FIELD_F_VALID = 7,
};
enum { SCALAR_F_LONG = 3, SCALAR_F_STRING = 6 };
enum { IDS_F_INT = 1, IDS_F_STR = 2, ARRAY_F_DATA = 1 };

/* Field num of a message. 1; 0: not there; -1: not protobuf, a wrong wire type, or there twice. */
int msg_find_only(const uint8_t *data, size_t len, uint32_t num, enum pb_wire wire, struct pb_field *ret);

/* A column in one Insert, as it lies there. */
struct msg_column {
    const uint8_t *name;
    size_t name_len;
    uint64_t type, id;
    bool dynamic;
    uint32_t kind, array;    /* field numbers: scalars or vectors, and which array in it */
    uint64_t dim, sparse_dim; /* of vectors */
    const uint8_t *data;     /* the array's content */
    size_t len;
    const uint8_t *valid;    /* a byte per row; NULL: the column is not nullable */
    size_t valid_len;
    struct buf *own;         /* holds data where that was copied */
    size_t column;           /* place in msg_columns */
};

/* FieldData. NULL, or what is wrong with it. */
const char *msg_column_scan(struct msg_column *ret, const uint8_t *data, size_t len);
bool msg_column_is_sparse(const struct msg_column *c);
/* Copies the values when some rows are null. Own is the caller's. ERR_PROTO (DATA): not possible. */
int msg_column_remove_nulls(struct msg_column *c, const struct msg_head *head, struct err *err);
/* Gives the empty arrays of a column of arrays a list of their kind; copies the values where there are some. */
void msg_column_fill_arrays(struct msg_column *c);
/* ERR_PROTO (DATA) that names message and column. */
int msg_column_err(const struct msg_head *head, const struct msg_column *c, const char *why, struct err *err);

/* n timestamps of value tt as one packed field. */
void msg_out_times(struct pb_out *o, uint32_t num, uint64_t tt, uint64_t n);

/*
 * One element of Msgs, made apart so that out never holds a part of one: msg_element_open() writes
 * tag, length and the front bytes, the caller adds rest_len bytes, msg_element_close() moves it.
 */
/* NULL: no memory. */
struct evbuffer *msg_element_open(const struct pb_out *front, size_t rest_len);
/* Frees e. ok false: adding failed. Returns the bytes moved, or 0. */
size_t msg_element_close(struct evbuffer *e, bool ok, struct evbuffer *out);
#endif
