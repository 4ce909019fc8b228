/*
 * rocksmq_priv.h - the blocking half of the RocksMQ port.
 *
 * What Milvus wrote is in two places, and a message is always in one of them at least:
 *   tables  read through a secondary RocksDB instance that does not replay the logs (rocksmq_tables.c)
 *   logs    RocksDB's write-ahead log files, read directly (rocksmq_log.c): no copy of up to 128 MiB in
 *           memory, and a tick costs no search through blocks of several hundred KiB
 * A reader reads the tables to their end, then the logs from the oldest on, and then lives in the newest log.
 * When the log it stands in is deleted (flushed to tables), it goes back to the tables.
 *
 * Everything here runs in the port's helper thread and touches only what it is given.
 */
#ifndef WAL_ROCKSMQ_PRIV_H
#define WAL_ROCKSMQ_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "repl/port.h"

/* ---- write-ahead log files (rocksmq_log.c) ------------------------------------------------- */

/* The start of the next record. file 0: none. */
struct rmq_log_pos {
    uint64_t file, inode, offset;
};

struct rmq_logs;

/* Nothing is opened yet. Never NULL. */
struct rmq_logs *rmq_logs_new(const char *path);
/* NULL is allowed. */
void rmq_logs_free(struct rmq_logs *l);

/* Looks which files exist, opens the new ones and closes those that are gone; then *ret_vanished is set
 * true (else untouched). */
int rmq_logs_list(struct rmq_logs *l, bool *ret_vanished, struct err *err);
bool rmq_logs_has(const struct rmq_logs *l, struct rmq_log_pos pos);
/* The begin of the oldest file; file 0 when there is none. */
struct rmq_log_pos rmq_logs_begin(const struct rmq_logs *l);

/*
 * The next record (a write batch) at or after *pos, and moves *pos behind it. *ret_data NULL: the end of
 * what is written. Data lives until the next call. RETRY: a record is damaged or half written.
 */
int rmq_logs_next(struct rmq_logs *l, struct rmq_log_pos *pos, const uint8_t **ret_data, size_t *ret_len,
                  struct err *err);

/* One put into the default column family. */
struct rmq_put {
    const uint8_t *key, *value;
    size_t key_len, value_len;
};
struct rmq_batch {
    const uint8_t *p, *end;
};
int rmq_batch_init(struct rmq_batch *b, const uint8_t *data, size_t len, struct err *err);
/* ret->key NULL: no more. Errors are RETRY. */
int rmq_batch_next(struct rmq_batch *b, struct rmq_put *ret, struct err *err);

/* Splits "<topic>/<decimal id>": the digits of the id; 0: not a message's key. */
unsigned rmq_key_parse(const void *key, size_t len, size_t topic_len, uint64_t *ret_id);

/* ---- polls (rocksmq_db.c) ------------------------------------------------------------------ */

enum {
    RMQ_SLICE_BYTES = 1 << 20, /* of one reader in one poll; but a log record (or a message) stays whole */
    RMQ_SLICE_MSGS = 256,
    RMQ_POLL_BYTES = 4 << 20, /* of all readers in one poll */
};

/* Where one reader is. Written by the loop, read by a poll that it was lent to. */
struct rmq_cursor {
    char *topic;
    size_t topic_len;
    uint32_t hash;   /* rmq_topic_hash() */
    bool begun;      /* id is the last message delivered; else the wished start */
    bool earliest;   /* not begun: from the first message, id is not looked at */
    bool at_end;     /* the end was told after the last message */
    uint64_t id;
    uint64_t end_ms; /* when nothing came after id, by clock_mono_ms(); 0: unknown */
    struct rmq_log_pos log; /* file 0: in the tables */
};

/* FNV-1a. */
static inline uint32_t rmq_topic_hash(const void *topic, size_t len)
{
    const uint8_t *p = topic;
    uint32_t h = 2166136261u;

    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 16777619u;
    return h;
}

/* What one poll read for one cursor. The messages hold a reference each on their buffers. */
struct rmq_slice {
    struct wal_msg *msgs;
    size_t n, cap;
    size_t bytes;
    struct rmq_log_pos log; /* where to go on */
    bool caught_up;
    uint64_t end_ms; /* with caught_up */
    struct err *err; /* NULL: none. LOST, USER: the reader ends; RETRY: of the whole port. Apart, being large */
};

/* A poll's work for one reader. */
struct rmq_part {
    struct wal_reader *reader; /* the loop's own */
    struct rmq_cursor *cursor;
    struct rmq_slice slice;
    bool skipped; /* the poll had its fill before */
};

/* A question for the last message of a topic. */
struct rmq_end {
    char *topic;
    bool found;
    uint64_t last;
};

struct rmq_db;

/* Nothing is opened yet. Never NULL. */
struct rmq_db *rmq_db_new(const char *path, const char *secondary_dir);
/* NULL is allowed. */
void rmq_db_free(struct rmq_db *db);
/* Closes all files (deleted ones hold disk space); the next poll opens them again. */
void rmq_db_close(struct rmq_db *db);

/*
 * Answers the ends and reads a slice for each part. An error is RETRY and stands for all; the files are
 * closed then. The caller releases the slices in either case.
 */
int rmq_db_poll(struct rmq_db *db, struct rmq_part *parts, size_t n, struct rmq_end **ends, size_t n_ends,
                struct err *err);

/* Frees what was read, and the error. */
void rmq_slice_release(struct rmq_slice *s);
#endif
