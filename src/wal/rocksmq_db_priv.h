/*
 * rocksmq_db_priv.h - the parts of a poll: files (rocksmq_files.c), slices (rocksmq_slice.c), tables (rocksmq_tables.c),
 * logs (rocksmq_tail.c).
 */
#ifndef WAL_ROCKSMQ_DB_PRIV_H
#define WAL_ROCKSMQ_DB_PRIV_H
#include <rocksdb/c.h>

#include "wal/rocksmq_priv.h"

struct rmq_db {
    char *path, *secondary_dir;
    char *no_logs; /* an empty folder that RocksDB takes for that of the logs */
    rocksdb_options_t *opts;
    rocksdb_t *db;         /* NULL: closed */
    struct rmq_logs *logs; /* NULL: closed */
    bool fresh;            /* what was in logs deleted up to now is in db's tables */
    uint64_t used_ms;      /* last need of db */
    struct work *works;    /* room for the parts of a poll */
    size_t cap_works;
};

struct topic_seen {
    const char *topic;
    size_t topic_len;
    uint64_t first, last;  /* 0: none */
    uint64_t find;         /* this message is looked for */
    struct rmq_log_pos at; /* its record; file 0: not found */
};

/* A part under work. */
struct work {
    struct rmq_part *part;
    bool done;
    bool member;     /* of the group that is being read */
    uint64_t min_id; /* smaller ones were delivered or are not wished */
    size_t next;     /* of the same slot in struct by_topic, NO_WORK: none */
    size_t rank;     /* among those in the logs, by place */
    bool looked;     /* the logs were searched for the cursor's message: seen is the answer */
    struct topic_seen seen;
    /* Small values, until they get their common buffer. */
    uint8_t *small;
    size_t small_len, small_cap;
};

/* ---- rocksmq_files.c */
void rmq_close_tables(struct rmq_db *db);
bool rmq_in_tables(const struct rmq_db *db, const struct rmq_cursor *c);
/* Lists the logs and, when somebody needs them, opens the tables or brings them up to date. */
int rmq_refresh(struct rmq_db *db, const struct rmq_part *parts, size_t n, size_t n_ends, struct err *err);
/* Looks for n topics in one walk through all logs. */
int rmq_see_logs(struct rmq_db *db, struct topic_seen **topics, size_t n, struct err *err);

/* ---- rocksmq_slice.c */
/* Adds a message to the part's slice. */
int rmq_take(struct work *k, uint64_t id, const void *value, size_t len, struct err *err);
bool rmq_slice_full(const struct rmq_slice *s);
/* The rest has its turn next time. */
bool rmq_poll_full(const struct work *works, size_t n);
/* Ends the work on a part. What came before a bad message is delivered; the next slice tells of it. */
int rmq_finish(struct work *k, int code, struct err *err);

/* ---- rocksmq_tables.c, rocksmq_tail.c */
/* Many readers begin at places in the logs: one walk finds them all. */
int rmq_look_ahead(struct rmq_db *db, struct work *works, size_t n, struct err *err);
/* A slice for a reader that is in the tables; at their end it is at the begin of the logs. */
int rmq_read_tables(struct rmq_db *db, struct work *k, struct err *err);
/* Slices for those that are in the logs. */
int rmq_read_logs(struct rmq_db *db, struct work *works, size_t n, struct err *err);
#endif
