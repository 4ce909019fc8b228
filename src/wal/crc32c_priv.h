/* crc32c_priv.h - CRC-32C (Castagnoli), with the processor's instruction where it has one. */
#ifndef WAL_CRC32C_PRIV_H
#define WAL_CRC32C_PRIV_H
#include <stddef.h>
#include <stdint.h>

/* The CRC of some bytes (crc: that of the bytes before them, 0 at the beginning) followed by data. */
uint32_t crc32c_extend(uint32_t crc, const void *data, size_t len);
#endif
