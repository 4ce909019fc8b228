/*
 * hex.h - hexadecimal digits.
 */
#ifndef BASE_HEX_H
#define BASE_HEX_H
#include <stddef.h>
#include <stdint.h>

/* 0 to 15, or -1: not a digit. */
static inline int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* 2 n digits and a NUL. */
static inline void hex_encode(const uint8_t *data, size_t n, char *ret)
{
    for (size_t i = 0; i < n; i++) {
        ret[2 * i] = "0123456789abcdef"[data[i] >> 4];
        ret[2 * i + 1] = "0123456789abcdef"[data[i] & 15];
    }
    ret[2 * n] = '\0';
}
#endif
