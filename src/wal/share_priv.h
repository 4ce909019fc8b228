/*
 * share_priv.h - the objects of the sharing port: topics, feeds, their windows, clients.
 */
#ifndef WAL_SHARE_PRIV_H
#define WAL_SHARE_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <sys/queue.h>
#include <uthash.h>

#include "loop/loop.h"
#include "repl/port.h"

/* ---- window (share_window.c): the last batches of a feed ------------------------------------ */

/* One batch. Its messages are one array, so that a client gets its part of it without a copy. */
struct chunk {
    TAILQ_ENTRY(chunk) entry;
    unsigned refs;  /* clients whose next message is in it, and callbacks that look at it */
    bool dropped;   /* no longer in the window: goes with the last reference */
    size_t cost;    /* bytes that it keeps alive */
    size_t n;
    struct wal_msg msgs[];
};
TAILQ_HEAD(chunk_list, chunk);

struct window {
    struct chunk_list chunks;
    size_t bytes;   /* sum of the costs */
    size_t *topic_bytes, *all_bytes; /* sums of higher order, changed along */
};

/* Bytes that keeping the batch would hold: each buffer counts whole. Stops counting above limit. */
size_t window_cost(const struct wal_msg *msgs, size_t n, size_t limit);
/* Appends a batch (n > 0) without references of clients. */
struct chunk *window_append(struct window *w, const struct wal_msg *msgs, size_t n);
/* Drops from the front what no client needs, down to tail_bytes. */
void window_trim(struct window *w, size_t tail_bytes);
/* Drops everything. */
void window_clear(struct window *w);
/* Finds the message at pos: its chunk and index. False: not there. */
bool window_find(const struct window *w, struct wal_pos pos, struct chunk **ret, size_t *ret_index);
void chunk_unref(struct chunk *k); /* NULL is allowed */

/* ---- objects -------------------------------------------------------------------------------- */

struct share {
    struct wal_port port;
    struct wal_port_ops ops;
    struct wal_port *inner;
    struct loop *loop;
    size_t window_bytes;
    struct topic *topics;
    TAILQ_HEAD(client_queue, wal_reader) ready; /* clients that something has to be told to */
    struct timer timer; /* armed while ready is not empty, unless telling */
    size_t bytes;       /* in all windows */
    bool telling;       /* somebody is at the queue */
    bool closed;
};

struct topic {
    UT_hash_handle hh;
    struct share *s;
    char *name;
    TAILQ_HEAD(feed_list, feed) feeds;
    size_t bytes;     /* in the windows of its feeds */
    unsigned clients; /* those without a feed too; 0: it goes */
};

/* Does reading work? A new feed does not know, so its clients keep what they were told. */
enum health { HEALTH_UNKNOWN, HEALTH_GOOD, HEALTH_BAD };

struct feed {
    TAILQ_ENTRY(feed) entry;
    struct topic *topic;
    struct wal_reader *reader; /* NULL: closed */
    struct wal_start start;
    struct window window;
    TAILQ_HEAD(, wal_reader) clients;
    unsigned n_clients;
    bool begun;          /* last is a message */
    struct wal_pos last; /* the newest one read */
    bool whole;          /* opened at earliest, and the window still has the first message */
    bool caught_up;      /* the end of the log was reached behind last */
    bool paused;
    enum health health;
    struct err *err;     /* HEALTH_BAD or ended: why */
    bool ended;          /* LOST, USER or DATA: nothing more comes */
};

/* A client. */
struct wal_reader {
    TAILQ_ENTRY(wal_reader) of_feed, of_ready;
    struct topic *topic;
    struct feed *feed;      /* NULL: left it, makes one when it resumes */
    struct wal_reader_cbs cbs;
    void *arg;
    struct wal_start start;
    struct chunk *next;     /* holds its next message; NULL: it has all that was read */
    size_t next_index;
    bool begun;             /* last is a message */
    struct wal_pos last;    /* the last one delivered */
    bool paused, queued;
    bool caught_up;         /* was told so behind last */
    bool told;              /* that there is trouble */
    bool told_end;          /* that nothing more comes */
    bool closed;
};
#endif
