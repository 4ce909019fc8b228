/*
 * health.c - GET /health?max_lag=30s&task=ID
 */
#include "api/api_priv.h"

#include "api/http_priv.h"
#include "base/hex.h"
#include "base/mem.h"
#include "task/health.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LAG_MS = 30000, MAX_TASK_ID = 256 };

struct query {
    uint64_t max_lag_ms;
    char task[MAX_TASK_ID]; /* "": all */
};

/* A number with ms, s, m, h or none of them (seconds). */
static bool parse_duration(const char *s, uint64_t *ret_ms)
{
    static const struct {
        const char *unit;
        double ms;
    } units[] = {{"", 1000}, {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
    size_t digits = strspn(s, "0123456789.");
    char *end;
    double v;

    if (digits == 0 || digits > 12)
        return false;
    v = strtod(s, &end);
    for (size_t i = 0; end == s + digits && i < sizeof(units) / sizeof(*units); i++) {
        if (strcmp(end, units[i].unit) != 0)
            continue;
        *ret_ms = (uint64_t)(v * units[i].ms);
        return v * units[i].ms <= 1e12;
    }
    return false;
}

/* Percent-decoding; false: not valid, or too long. */
static bool decode(const char *s, size_t len, char *ret, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        char c = s[i];

        if (c == '%') {
            int high = len - i > 2 ? hex_digit(s[i + 1]) : -1;
            int low = high >= 0 ? hex_digit(s[i + 2]) : -1;

            if (low < 0 || high * 16 + low == 0)
                return false;
            c = (char)(high * 16 + low);
            i += 2;
        }
        if (n + 1 >= size)
            return false;
        ret[n++] = c;
    }
    ret[n] = '\0';
    return true;
}

/* NULL, or what is wrong. Unknown parameters are let pass: balancers add their own. */
static const char *parse_query(const char *q, struct query *ret)
{
    char value[MAX_TASK_ID];

    while (*q) {
        size_t len = strcspn(q, "&"), name = strcspn(q, "=&");
        const char *text = q + name + (q[name] == '=');

        if (!decode(text, (size_t)(q + len - text), value, sizeof(value)))
            return "a parameter is not percent-encoded text, or too long";
        if (name == 7 && strncmp(q, "max_lag", name) == 0) {
            if (!parse_duration(value, &ret->max_lag_ms))
                return "max_lag is not a time such as 30s, 500ms, 2m";
        } else if (name == 4 && strncmp(q, "task", name) == 0) {
            memcpy(ret->task, value, sizeof(value));
        }
        q += len + (q[len] == '&');
    }
    return NULL;
}

void api_health(struct api_server *s, struct http_request *r)
{
    struct query q = {.max_lag_ms = MAX_LAG_MS};
    const char *wrong = parse_query(http_query(r), &q);
    enum health h;
    json_t *facts;

    if (wrong) {
        char *text = xasprintf("UNKNOWN: %s", wrong);

        api_reply_json(r, 400, json_pack("{s:s, s:i, s:s}", "status", "unknown", "code", (int)HEALTH_UNKNOWN, "text", text));
        free(text);
        return;
    }
    facts = manager_health(s->m, *q.task ? q.task : NULL, q.max_lag_ms, &h);
    json_object_set_new(facts, "version", json_string(MILVUS_CDC_VERSION));
    api_reply_json(r, h == HEALTH_CRITICAL ? 503 : h == HEALTH_UNKNOWN ? 404 : 200, facts);
}
