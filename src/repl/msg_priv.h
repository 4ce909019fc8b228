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
