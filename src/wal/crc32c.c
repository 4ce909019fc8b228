/*
 * crc32c.c - the checksum of RocksDB's files, for our log reader and for RocksDB itself.
 *
 * Debian builds librocksdb without SSE 4.2, so that verifying a table's checksum costs 4.7 CPU s/GB, three times all else
 * of catching up (measured with 309 MB). Its function is an exported symbol that the library calls through its PLT; the
 * definition below takes its place in this process. A librocksdb without that symbol works as before, only slower.
 */
#include "wal/crc32c_priv.h"

#include <pthread.h>
#include <string.h>

static uint32_t crc_table[256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void fill_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;

        for (int k = 0; k < 8; k++)
            c = c & 1 ? (c >> 1) ^ 0x82f63b78 : c >> 1;
        crc_table[i] = c;
    }
}

static uint32_t crc_soft(uint32_t crc, const uint8_t *p, size_t len)
{
    pthread_once(&crc_once, fill_crc_table);
    while (len-- > 0)
        crc = (crc >> 8) ^ crc_table[(crc ^ *p++) & 0xff];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_hard(uint32_t crc, const uint8_t *p,
                                                           size_t len)
{
    uint64_t c = crc, word;

    for (; len >= 8; p += 8, len -= 8) {
        memcpy(&word, p, 8);
        c = __builtin_ia32_crc32di(c, word);
    }
    while (len-- > 0)
        c = __builtin_ia32_crc32qi((uint32_t)c, *p++);
    return (uint32_t)c;
}
#endif

uint32_t crc32c_extend(uint32_t crc, const void *data, size_t len)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return ~crc_hard(~crc, data, len);
#endif
    return ~crc_soft(~crc, data, len);
}

#if defined(__x86_64__)
/* rocksdb::crc32c::Extend(uint32_t, const char *, size_t) */
uint32_t rocksdb_crc32c_extend(uint32_t crc, const char *data, size_t len) __asm__(
    "_ZN7rocksdb6crc32c6ExtendEjPKcm");

uint32_t rocksdb_crc32c_extend(uint32_t crc, const char *data, size_t len)
{
    return crc32c_extend(crc, data, len);
}
#endif
