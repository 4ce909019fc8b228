/*
 * backoff.h - growing waits with jitter between tries.
 */
#ifndef BASE_BACKOFF_H
#define BASE_BACKOFF_H

struct backoff {
    unsigned min_ms, max_ms;
    unsigned cur_ms; /* 0: not yet failed */
};

#define BACKOFF_INIT(min, max) {.min_ms = (min), .max_ms = (max)}

/* The next wait in ms: doubles up to max_ms, each time multiplied by 0.5 to 1.0 at random. */
unsigned backoff_next_ms(struct backoff *b);
void backoff_reset(struct backoff *b);
#endif
