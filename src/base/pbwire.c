#include "base/pbwire.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { VARINT_MAX_BYTES = 10 };

bool pb_varint(const uint8_t **p, const uint8_t *end, uint64_t *ret)
{
    const uint8_t *q = *p;
    uint64_t v = 0;

    for (unsigned i = 0; i < VARINT_MAX_BYTES && q < end; i++) {
        uint8_t byte = *q++;

        v |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (!(byte & 0x80)) {
            *ret = v;
            *p = q;
            return true;
        }
    }
    return false;
}

/* Little endian of n bytes.  False: truncated. */
static bool scan_fixed(struct pb_scan *s, unsigned n, uint64_t *ret)
{
    if ((size_t)(s->end - s->p) < n)
        return false;
    *ret = 0;
    for (unsigned i = 0; i < n; i++)
        *ret |= (uint64_t)s->p[i] << (8 * i);
    s->p += n;
    return true;
}

static bool scan_len(struct pb_scan *s, struct pb_field *f)
{
    uint64_t len;

    if (!pb_varint(&s->p, s->end, &len) || len > (uint64_t)(s->end - s->p))
        return false;
    f->data = s->p;
    f->len = (size_t)len;
    s->p += len;
    return true;
}

static bool scan_value(struct pb_scan *s, struct pb_field *f)
{
    switch (f->wire) {
    case PB_VARINT:
        return pb_varint(&s->p, s->end, &f->varint);
    case PB_I64:
        return scan_fixed(s, 8, &f->varint);
    case PB_I32:
        return scan_fixed(s, 4, &f->varint);
    case PB_LEN:
        return scan_len(s, f);
    }
    return false;
}

int pb_scan_next(struct pb_scan *s, struct pb_field *ret)
{
    struct pb_field f = {.start = s->p};
    uint64_t tag, wire;

    if (s->p == s->end)
        return 0;
    if (!pb_varint(&s->p, s->end, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
        return -1;
    wire = tag & 7;
    if (wire != PB_VARINT && wire != PB_I64 && wire != PB_LEN && wire != PB_I32)
        return -1;
    f.num = (uint32_t)(tag >> 3);
    f.wire = (enum pb_wire)wire;
    if (!scan_value(s, &f))
        return -1;
    f.total = (size_t)(s->p - f.start);
    *ret = f;
    return 1;
}

void pb_out_release(struct pb_out *o)
{
    free(o->data);
    *o = (struct pb_out){0};
}

static void reserve(struct pb_out *o, size_t more)
{
    size_t need = o->len + more;
    size_t cap = o->cap ? o->cap : 64;

    if (need < more)
        abort(); /* more than the address space */
    if (need <= o->cap)
        return;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    o->data = xrealloc(o->data, cap);
    o->cap = cap;
}

void pb_out_raw(struct pb_out *o, const void *data, size_t len)
{
    if (len == 0)
        return;
    reserve(o, len);
    memcpy(o->data + o->len, data, len);
    o->len += len;
}

void pb_out_varint(struct pb_out *o, uint64_t v)
{
    reserve(o, VARINT_MAX_BYTES);
    for (; v >= 0x80; v >>= 7)
        o->data[o->len++] = (uint8_t)(v | 0x80);
    o->data[o->len++] = (uint8_t)v;
}

void pb_out_tag(struct pb_out *o, uint32_t num, enum pb_wire wire)
{
    pb_out_varint(o, (uint64_t)num << 3 | (uint64_t)wire);
}

void pb_out_u64(struct pb_out *o, uint32_t num, uint64_t v)
{
    if (v == 0)
        return;
    pb_out_tag(o, num, PB_VARINT);
    pb_out_varint(o, v);
}

void pb_out_bytes(struct pb_out *o, uint32_t num, const void *data, size_t len)
{
    if (len == 0)
        return;
    pb_out_tag(o, num, PB_LEN);
    pb_out_varint(o, len);
    pb_out_raw(o, data, len);
}

void pb_out_str(struct pb_out *o, uint32_t num, const char *s)
{
    if (s)
        pb_out_bytes(o, num, s, strlen(s));
}

size_t pb_varint_len(uint64_t v)
{
    size_t n = 1;

    for (; v >= 0x80; v >>= 7)
        n++;
    return n;
}
