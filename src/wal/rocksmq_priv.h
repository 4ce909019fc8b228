/*
 * rocksmq_priv.h - the blocking half of the RocksMQ port: the secondary RocksDB instance.
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

enum {
    RMQ_SLICE_BYTES = 1 << 20, /* of one reader in one poll; a larger message comes alone */
    RMQ_SLICE_MSGS = 256,
};

struct rmq_db;

/* Where one reader is. Written by the loop, read by a poll that it was lent to. */
struct rmq_cursor {
    char *topic;
    bool begun;       /* id is the last message delivered; else the wished start */
    bool earliest;    /* not begun: from the first message, id is not looked at */
    bool at_end;      /* the end of the log was told with the last batch */
    uint64_t id;
    uint64_t end_ms;  /* when nothing came after id, by clock_mono_ms(); 0: never */
};

/* What one poll read for one cursor. The messages hold a reference each on their buffers. */
struct rmq_slice {
    struct wal_msg *msgs;
    size_t n, cap;
    size_t bytes;
    bool caught_up;
    uint64_t end_ms; /* with caught_up */
    struct err err;  /* code 0: none. LOST and USER end the reader, RETRY stands for the whole port */
};

/* Nothing is opened yet. Never NULL. */
struct rmq_db *rmq_db_new(const char *path, const char *secondary_dir);
/* NULL is allowed. */
void rmq_db_free(struct rmq_db *db);

/* Opens where needed and takes over what the primary has written. On an error (RETRY) the instance is
 * closed: the next call opens it again. */
int rmq_db_refresh(struct rmq_db *db, struct err *err);

/* Reads on from c. The result is in s, which the caller releases. After rmq_db_refresh() succeeded. */
void rmq_db_read(struct rmq_db *db, const struct rmq_cursor *c, struct rmq_slice *s);

/* The last id of a topic. *ret_found false: there is no message. Errors are RETRY. */
int rmq_db_last(struct rmq_db *db, const char *topic, bool *ret_found, uint64_t *ret_id,
                struct err *err);

void rmq_slice_release(struct rmq_slice *s);
#endif
