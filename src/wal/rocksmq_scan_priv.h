/*
 * rocksmq_scan_priv.h - the messages of one topic in RocksDB's tables, by id: keys "<topic>/<decimal id>".
 */
#ifndef WAL_ROCKSMQ_SCAN_PRIV_H
#define WAL_ROCKSMQ_SCAN_PRIV_H
#include <rocksdb/c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

struct rmq_scan {
    const char *path; /* of the database, for texts */
    rocksdb_readoptions_t *ro;
    rocksdb_iterator_t *it;
    char *key;   /* "<topic>/" with room for digits */
    char *lower; /* "<topic>/0" */
    char *upper; /* "<topic>/:", the first key after those with digits */
    size_t prefix;
    const char *topic;
};

/* db: open. Strings are borrowed. */
void rmq_scan_init(struct rmq_scan *sc, rocksdb_t *db, const char *path, const char *topic);
void rmq_scan_release(struct rmq_scan *sc);
/* What went wrong in the walk: RETRY. */
int rmq_scan_error(const struct rmq_scan *sc, struct err *err);
/* The digits of the id under the iterator; 0: this key is no message of the topic. */
unsigned rmq_scan_get(const struct rmq_scan *sc, uint64_t *ret_id);
/* Moves to the first key not below id's. */
bool rmq_scan_seek(struct rmq_scan *sc, uint64_t id);
/* The others: false, there is none. */
bool rmq_scan_first(struct rmq_scan *sc, uint64_t *ret_id);
bool rmq_scan_last(struct rmq_scan *sc, uint64_t *ret_id);
bool rmq_scan_next(struct rmq_scan *sc, uint64_t id, uint64_t *ret_id);
bool rmq_scan_above(struct rmq_scan *sc, uint64_t id, uint64_t *ret_id);

/* Takes over RocksDB's error text: "rocksmq <path>: <what>: <text>", RETRY. */
int rmq_rocks_err(struct err *err, const char *path, const char *what, char *text);
#endif
