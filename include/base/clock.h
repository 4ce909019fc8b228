/*
 * clock.h - monotonic and wall time, and Milvus hybrid timestamps.
 */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H
#include <stdint.h>

uint64_t clock_mono_ms(void);
uint64_t clock_mono_us(void);
uint64_t clock_boot_ms(void); /* monotonic, goes on while the machine sleeps */
uint64_t clock_wall_ms(void); /* since 1970 */

/* "2026-11-30T20:00:00.125Z" (RFC 3339) of a wall time, and back: any zone, with or without a fraction. -1: not one. */
enum { CLOCK_CHARS = 40 };
void clock_format(uint64_t wall_ms, char ret[CLOCK_CHARS]);
int clock_parse(const char *text, uint64_t *ret_wall_ms);

/* Milvus hybrid time (tt): physical ms << 18 | logical (milvus pkg/util/tsoutil). */
#define TT_LOGICAL_BITS 18
static inline uint64_t tt_to_ms(uint64_t tt)
{
    return tt >> TT_LOGICAL_BITS;
}
static inline uint64_t tt_from_ms(uint64_t ms)
{
    return ms << TT_LOGICAL_BITS;
}
#endif
