/*
 * fence.h - until when this process may write to a peer: a lease, as this machine's clock sees it.
 *
 * The holder of the lease moves until_ms; whoever sends looks at it before each request, and before bytes that wait leave
 * the process. A NULL fence never closes.
 */
#ifndef BASE_FENCE_H
#define BASE_FENCE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"

#define FENCE_NEVER UINT64_MAX

struct fence {
    uint64_t until_ms; /* clock_boot_ms(); 0: closed, FENCE_NEVER: no limit */
};

/* 0: closed. */
static inline uint64_t fence_left_ms(const struct fence *f)
{
    uint64_t now;

    if (!f || f->until_ms == FENCE_NEVER)
        return UINT64_MAX;
    now = clock_boot_ms();
    return now < f->until_ms ? f->until_ms - now : 0;
}

static inline bool fence_open(const struct fence *f)
{
    return fence_left_ms(f) > 0;
}
#endif
