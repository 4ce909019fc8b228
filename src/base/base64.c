#include "base/base64.h"

#include "base/mem.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *base64_encode(const void *data, size_t len)
{
    const uint8_t *in = data;
    char *text = xmalloc((len + 2) / 3 * 4 + 1);
    char *out = text;

    for (size_t i = 0; i < len; i += 3) {
        size_t n = len - i;
        uint32_t v = (uint32_t)in[i] << 16;

        if (n > 1)
            v |= (uint32_t)in[i + 1] << 8;
        if (n > 2)
            v |= in[i + 2];
        *out++ = alphabet[v >> 18];
        *out++ = alphabet[v >> 12 & 63];
        *out++ = n > 1 ? alphabet[v >> 6 & 63] : '=';
        *out++ = n > 2 ? alphabet[v & 63] : '=';
    }
    *out = '\0';
    return text;
}

static int digit(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    if (c == '+')
        return 62;
    return c == '/' ? 63 : -1;
}

/* One group of four, of which the last pad characters are '='.  False: not base64. */
static bool decode_group(const char *in, size_t pad, uint8_t *out)
{
    uint32_t v = 0;

    for (size_t i = 0; i < 4; i++) {
        int d = i < 4 - pad ? digit(in[i]) : 0;

        if (d < 0)
            return false;
        v = v << 6 | (uint32_t)d;
    }
    if (v & ((1u << (8 * pad)) - 1))
        return false; /* bits that no encoder writes: one value must have one text */
    for (size_t i = 0; i < 3 - pad; i++)
        out[i] = (uint8_t)(v >> (16 - 8 * i));
    return true;
}

int base64_decode(const char *text, uint8_t **ret_data, size_t *ret_len)
{
    size_t len = strlen(text);
    size_t pad = 0;
    uint8_t *data;

    if (len % 4 != 0)
        return -1;
    if (len > 0 && text[len - 1] == '=')
        pad = text[len - 2] == '=' ? 2 : 1;
    data = xmalloc(len / 4 * 3 + 1);
    for (size_t i = 0; i < len; i += 4) {
        if (!decode_group(text + i, i + 4 == len ? pad : 0, data + i / 4 * 3)) {
            free(data);
            return -1;
        }
    }
    *ret_data = data;
    *ret_len = len / 4 * 3 - pad;
    return 0;
}
