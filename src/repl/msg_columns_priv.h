/*
 * msg_columns_priv.h - the columns of a request: for msg_columns.c, which joins them, and msg_cut.c, which takes rows out.
 */
#ifndef REPL_MSG_COLUMNS_PRIV_H
#define REPL_MSG_COLUMNS_PRIV_H
#include "repl/msg_priv.h"

/* schema.proto VectorField */
enum {
    VECTOR_F_DIM = 1,
    VECTOR_F_FLOAT = 2,
    VECTOR_F_BINARY = 3,
    VECTOR_F_FLOAT16 = 4,
    VECTOR_F_BFLOAT16 = 5,
    VECTOR_F_SPARSE = 6,
    VECTOR_F_INT8 = 7,
};

/* The values of one column, message by message. */
struct part {
    struct buf *src;
    const uint8_t *data;
    size_t len;
};
struct parts {
    struct part *v;
    size_t n, cap, bytes;
};

struct column {
    struct msg_column like; /* what all pieces have in common; borrows from the first message */
    struct pb_out what;     /* that, encoded */
    struct parts values, valid;
    bool defaults; /* all rows are valid, and that must be said */
    uint64_t dim, sparse_dim;
    unsigned turn; /* of the last message that has it */
};

struct msg_columns {
    struct column *v;
    size_t n, cap;
    uint64_t rows;
    int64_t *defaults;
    size_t n_defaults;
    char **without;
    size_t n_without;
    struct buf **srcs; /* all that values point into */
    size_t n_srcs, cap_srcs;
    unsigned turn;
    struct msg_column *pieces; /* of the message that is being added */
    size_t n_pieces, cap_pieces;
};

/* Nothing is added when len is 0. src is borrowed: see msg_columns_keep(). */
void msg_parts_add(struct parts *p, struct buf *src, const uint8_t *data, size_t len);
/* src is taken, until c is freed. */
void msg_columns_keep(struct msg_columns *c, struct buf *src);
#endif
