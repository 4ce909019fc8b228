/*
 * row_hash_priv.h - the rows of a Query's answer as keys and hashes: what two servers have is compared without keeping it.
 *
 * A hash is of what a row means: not of the order of its columns, of how JSON is written, of how numbers are encoded, or of
 * placeholders behind null values. What is null, and a dynamic field without content, is as if it were not there.
 */
#ifndef REPL_ROW_HASH_PRIV_H
#define REPL_ROW_HASH_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;

struct row_hash {
    uint64_t a, b;
};

/* A key: a number, or bytes that lie in the page's buffer. */
struct row_key {
    int64_t number;
    const uint8_t *text; /* NULL: a number */
    size_t len;
};

struct row {
    struct row_key key;
    struct row_hash hash; /* zero: only keys were asked for */
};

/* Rows by rising key, each key once. {0} has none. */
struct row_page {
    struct row *rows;
    size_t n;
    struct buf *buf;
};

/* data: an encoded answer inside buf, of which a reference is kept. ERR_PROTO (DATA), or ERR_INVALID (DATA) for a column of
 * a kind that is not known here: the text names it. */
int row_page_read(struct row_page *ret, struct buf *buf, const uint8_t *data, size_t len, const char *pk_name,
                  struct err *err);
void row_page_release(struct row_page *p);
/* NULL: not there. */
const struct row *row_page_find(const struct row_page *p, const struct row_key *key);

int row_key_cmp(const struct row_key *a, const struct row_key *b);
/* A copy with bytes of its own; free it with row_key_release(). */
struct row_key row_key_dup(const struct row_key *k);
void row_key_release(struct row_key *k);
/* As an expression has it. Caller frees. */
char *row_key_text(const struct row_key *k);

static inline bool row_hash_equal(struct row_hash x, struct row_hash y)
{
    return x.a == y.a && x.b == y.b;
}
#endif
