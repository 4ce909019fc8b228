/* row_hash_parts_priv.h - what row_hash.c and json_hash.c share. */
#ifndef REPL_ROW_HASH_PARTS_PRIV_H
#define REPL_ROW_HASH_PARTS_PRIV_H
#include "base/pbwire.h"
#include "repl/row_hash_priv.h"

struct row_hash row_hash_bytes(const void *data, size_t len);
/* False: an empty object, which as a dynamic field means nothing. */
bool row_hash_json(const uint8_t *text, size_t len, struct row_hash *ret);

/* Sums of hashes do not depend on an order. */
static inline void row_hash_add(struct row_hash *sum, struct row_hash h)
{
    sum->a += h.a;
    sum->b += h.b;
}
#endif
