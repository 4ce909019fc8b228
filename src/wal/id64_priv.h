/* id64_priv.h - message ids that are one number of 8 bytes, little endian (RocksMQ, Kafka, NATS; source.md 7). */
#ifndef WAL_ID64_PRIV_H
#define WAL_ID64_PRIV_H
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define ID64_BYTES 8

static inline size_t id64_encode(uint64_t v, uint8_t *ret_id)
{
    for (int i = 0; i < ID64_BYTES; i++)
        ret_id[i] = (uint8_t)(v >> (8 * i));
    return ID64_BYTES;
}

/* 0, or ERR_PROTO: not 8 bytes, or greater than max. */
static inline int id64_decode(const uint8_t *id, size_t len, uint64_t max, uint64_t *ret)
{
    uint64_t v = 0;

    if (len != ID64_BYTES)
        return ERR_PROTO;
    for (int i = 0; i < ID64_BYTES; i++)
        v |= (uint64_t)id[i] << (8 * i);
    if (v > max)
        return ERR_PROTO;
    *ret = v;
    return 0;
}
#endif
