/*
 * pbwire.h - the protobuf wire format: bounded scanning, and writing into a growing byte array.
 *
 * For messages that are forwarded and not unpacked.  Source: protobuf.dev "Encoding".
 */
#ifndef BASE_PBWIRE_H
#define BASE_PBWIRE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pb_wire { PB_VARINT = 0, PB_I64 = 1, PB_LEN = 2, PB_I32 = 5 };

/* One field as it lies in the input; pointers borrow from it. */
struct pb_field {
    uint32_t num;
    enum pb_wire wire;
    uint64_t varint;      /* PB_VARINT, and the raw bits of PB_I64 and PB_I32 */
    const uint8_t *data;  /* PB_LEN: the content */
    size_t len;
    const uint8_t *start; /* the field with its tag ... */
    size_t total;         /* ... and its whole length */
};

struct pb_scan {
    const uint8_t *p, *end;
};

static inline struct pb_scan pb_scan_init(const uint8_t *data, size_t len)
{
    return (struct pb_scan){data, data + len};
}

/* 1: *ret is the next field; 0: the end; -1: not protobuf (truncated, bad tag, groups). */
int pb_scan_next(struct pb_scan *s, struct pb_field *ret);

/* Reads a varint of at most 10 bytes. False: truncated or too long. */
bool pb_varint(const uint8_t **p, const uint8_t *end, uint64_t *ret);

/* A growing byte array; aborts without memory (callers bound sizes). {0} is empty. */
struct pb_out {
    uint8_t *data;
    size_t len, cap;
};

void pb_out_release(struct pb_out *o);
void pb_out_raw(struct pb_out *o, const void *data, size_t len);
void pb_out_varint(struct pb_out *o, uint64_t v);
void pb_out_tag(struct pb_out *o, uint32_t num, enum pb_wire wire);
/* Fields; zero and empty values are left out, as proto3 does. */
void pb_out_u64(struct pb_out *o, uint32_t num, uint64_t v);
void pb_out_bytes(struct pb_out *o, uint32_t num, const void *data, size_t len);
void pb_out_str(struct pb_out *o, uint32_t num, const char *s);
size_t pb_varint_len(uint64_t v);
#endif
