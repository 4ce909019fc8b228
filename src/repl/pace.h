/*
 * pace.h - how many bytes may be under way to a target channel: rate x round trip, and one request when it is near.
 *
 * A request waits for the answer to the one before it, which costs nothing while answers take a millisecond and nearly
 * everything at 200 ms. So the shortest answer time of the connection tells whether requests may overlap, and the rate
 * of the answers how far: twice the way's content until bytes begin to wait in front of it, then a quarter more.
 * A pure data structure: the caller brings the time.
 */
#ifndef REPL_PACE_H
#define REPL_PACE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pace {
    uint64_t rtt_us;     /* shortest answer time on this connection, 0: none yet */
    uint64_t rate;       /* bytes per second that were confirmed lately */
    uint64_t span_bytes; /* confirmed since span_us */
    uint64_t span_us;    /* 0: no span begun */
    uint64_t span_least_us; /* shortest answer time in it, 0: none yet */
    bool waits;          /* even that one was longer than the way: the way is full */
};

/* The connection is a new one: nothing is known of the way. */
void pace_reset(struct pace *p);
/* A request of so many bytes was answered took_us after it was sent. */
void pace_answer(struct pace *p, uint64_t now_us, uint64_t took_us, size_t bytes);
/* Bytes that may be under way; 0: one request at a time. batch_bytes: size of a full request. */
size_t pace_window(const struct pace *p, uint64_t far_us, size_t batch_bytes, size_t most_bytes);
#endif
