#include "base/backoff.h"

#include <stdint.h>
#include <sys/random.h>
#include <time.h>

/* xorshift64*: good enough for jitter, and no call into the kernel after the seed. */
static uint64_t next_random(void)
{
    static _Thread_local uint64_t state;

    if (state == 0 && getrandom(&state, sizeof(state), GRND_NONBLOCK) != sizeof(state)) {
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        state = (uint64_t)now.tv_nsec ^ (uint64_t)(uintptr_t)&state;
    }
    state |= state == 0; /* zero would stay zero */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * UINT64_C(0x2545F4914F6CDD1D)) >> 32;
}

unsigned backoff_next_ms(struct backoff *b)
{
    uint64_t next = b->cur_ms ? (uint64_t)b->cur_ms * 2 : b->min_ms;
    uint64_t half;

    if (next > b->max_ms)
        next = b->max_ms;
    if (next == 0)
        next = 1;
    b->cur_ms = (unsigned)next;
    half = next - next / 2;
    return (unsigned)(half + next_random() % (next / 2 + 1));
}

void backoff_reset(struct backoff *b)
{
    b->cur_ms = 0;
}
