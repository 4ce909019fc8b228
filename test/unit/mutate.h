/* mutate.h - bytes changed at random, the same in every run. */
#ifndef TEST_MUTATE_H
#define TEST_MUTATE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint64_t random_state = 88172645463325252u;

static size_t random_below(size_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state % n);
}

/* One change in place; data has room for one more byte. */
static void mutate(uint8_t *data, size_t *len)
{
    static const uint8_t nasty[] = {0, 1, 0x7f, 0x80, 0xff, 0x0a, 0x52, 0x6a};
    size_t at = random_below(*len);

    switch (random_below(5)) {
    case 0:
        data[at] ^= (uint8_t)(1u << random_below(8));
        break;
    case 1:
        data[at] = nasty[random_below(sizeof(nasty))];
        break;
    case 2:
        memmove(data + at, data + at + 1, --*len - at);
        break;
    case 3:
        memmove(data + at + 1, data + at, (*len)++ - at);
        break;
    case 4: /* swap two neighbouring pieces */
        for (size_t i = at; i > 0 && i + 1 < *len && i < at + 8; i++) {
            uint8_t b = data[i];
            data[i] = data[i - 1];
            data[i - 1] = b;
        }
        break;
    }
}
#endif
