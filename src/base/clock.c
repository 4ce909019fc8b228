#include "base/clock.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static uint64_t now_us(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

uint64_t clock_mono_us(void)
{
    return now_us(CLOCK_MONOTONIC);
}

uint64_t clock_mono_ms(void)
{
    return now_us(CLOCK_MONOTONIC) / 1000;
}

uint64_t clock_boot_ms(void)
{
    return now_us(CLOCK_BOOTTIME) / 1000;
}

uint64_t clock_wall_ms(void)
{
    return now_us(CLOCK_REALTIME) / 1000;
}

void clock_format(uint64_t wall_ms, char ret[CLOCK_CHARS])
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    size_t n;

    gmtime_r(&seconds, &tm);
    n = strftime(ret, CLOCK_CHARS - 5, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(ret + n, CLOCK_CHARS - n, ".%03uZ", (unsigned)(wall_ms % 1000));
}

/* Has text the form? A 9 is any digit. */
static bool looks_like(const char *text, const char *form)
{
    for (; *form; form++, text++)
        if (*form == '9' ? !isdigit((unsigned char)*text) : toupper((unsigned char)*text) != *form)
            return false;
    return true;
}

static int number(const char *digits, int n)
{
    int v = 0;

    while (n-- > 0)
        v = 10 * v + *digits++ - '0';
    return v;
}

/* The zone's distance from UTC in seconds. */
static int parse_zone(const char *text, int *ret)
{
    *ret = 0;
    if (toupper((unsigned char)*text) == 'Z' && !text[1])
        return 0;
    if ((*text != '+' && *text != '-') || !looks_like(text + 1, "99:99") || text[6])
        return -1;
    *ret = (number(text + 1, 2) * 60 + number(text + 4, 2)) * 60;
    if (*text == '-')
        *ret = -*ret;
    return number(text + 1, 2) < 24 && number(text + 4, 2) < 60 ? 0 : -1;
}

int clock_parse(const char *text, uint64_t *ret_wall_ms)
{
    struct tm tm = {0}, asked;
    int ms = 0, zone, scale = 100;
    time_t t;

    if (!looks_like(text, "9999-99-99T99:99:99"))
        return -1;
    tm.tm_year = number(text, 4) - 1900;
    tm.tm_mon = number(text + 5, 2) - 1;
    tm.tm_mday = number(text + 8, 2);
    tm.tm_hour = number(text + 11, 2);
    tm.tm_min = number(text + 14, 2);
    tm.tm_sec = number(text + 17, 2);
    text += 19;
    if (text[0] == '.' && isdigit((unsigned char)text[1]))
        for (text++; isdigit((unsigned char)*text); text++, scale /= 10)
            ms += (*text - '0') * scale;
    if (parse_zone(text, &zone))
        return -1;
    asked = tm;
    t = timegm(&tm); /* moves the 31st of February into March */
    if (tm.tm_mon != asked.tm_mon || tm.tm_mday != asked.tm_mday || tm.tm_hour != asked.tm_hour ||
        tm.tm_min != asked.tm_min || tm.tm_sec != asked.tm_sec || t - zone < 0)
        return -1;
    *ret_wall_ms = (uint64_t)(t - zone) * 1000 + (uint64_t)ms;
    return 0;
}
