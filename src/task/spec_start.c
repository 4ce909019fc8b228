/* spec_start.c - where a task starts: now, at the beginning of the log, at a time, with a copy, or at a backup. */
#include "base/clock.h"
#include "base/err.h"
#include "task/spec.h"
#include "task/spec_fields.h"
#include "task/spec_priv.h"

#include <string.h>

#define LEAST_TT (INT64_C(1) << 50)   /* a number from here on is a hybrid timestamp (of 1970); below it, milliseconds */
#define FUTURE_MS 60000               /* clocks may differ so much */

int spec_refuse_snapshot(enum err_code code, struct err *err)
{
    return err_set(err, code, ERRC_USER,
                   "start snapshot needs an ordinary Milvus as the target: a standby takes rows only as its source's log has "
                   "them. Restore a backup of the source there (milvus-backup), and start with its positions: \"start\": "
                   "{\"backup\": ...}");
}

static int check_snapshot(const struct task_spec *s, const struct spec_limits *limits, struct err *err)
{
    if (limits && !limits->source_readable)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "start snapshot reads the rows through the source's own API: set sourceConfig.milvus.uri (and "
                       "token) in the configuration of milvus-cdc");
    return s->mode == SPEC_STANDBY ? spec_refuse_snapshot(ERR_INVALID, err) : 0;
}

static int set_time(struct task_spec *s, uint64_t tt, const struct spec_limits *limits, struct err *err)
{
    char text[CLOCK_CHARS];

    s->start = SPEC_TIME;
    s->start_tt = tt;
    clock_format(tt_to_ms(tt), text);
    if (limits && tt_to_ms(tt) > clock_wall_ms() + FUTURE_MS)
        return err_set(err, ERR_INVALID, ERRC_USER, "start is %s, which is in the future", text);
    return 0;
}

static int take_number(struct task_spec *s, int64_t n, const struct spec_limits *limits, struct err *err)
{
    if (n <= 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "start is %lld, a number must be milliseconds since 1970 or a "
                       "timestamp of Milvus", (long long)n);
    return set_time(s, n < LEAST_TT ? tt_from_ms((uint64_t)n) : (uint64_t)n, limits, err);
}

static int take_word(struct task_spec *s, const char *word, const struct spec_limits *limits, struct err *err)
{
    static const char *const words[] = {[SPEC_NOW] = "now", [SPEC_EARLIEST] = "earliest", [SPEC_SNAPSHOT] = "snapshot"};
    uint64_t ms;

    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
        if (strcmp(word, words[i]) == 0) {
            s->start = (enum spec_start)i;
            return s->start == SPEC_SNAPSHOT ? check_snapshot(s, limits, err) : 0;
        }
    if (clock_parse(word, &ms) == 0)
        return set_time(s, tt_from_ms(ms), limits, err);
    return err_set(err, ERR_INVALID, ERRC_USER,
                   "start is %.100s, allowed are now, earliest, snapshot, a time (2026-11-30T20:00:00Z, milliseconds since 1970 "
                   "or a timestamp of Milvus), and {\"backup\": ...}", word);
}

static int take_start(struct task_spec *s, const json_t *start, const struct spec_limits *limits, struct err *err)
{
    if (!start || json_is_null(start) || (json_is_string(start) && !*json_string_value(start)))
        return 0; /* now */
    if (json_is_string(start))
        return take_word(s, json_string_value(start), limits, err);
    if (json_is_integer(start))
        return take_number(s, json_integer_value(start), limits, err);
    if (!json_is_object(json_object_get(start, "backup")))
        return err_set(err, ERR_PROTO, ERRC_USER, "start must be a string, an integer, or an object with backup in it");
    s->start = SPEC_BACKUP;
    return 0;
}

int spec_check_start(struct task_spec *s, const json_t *req, const struct spec_limits *limits, struct err *err)
{
    int rc = take_start(s, json_object_get(req, "start"), limits, err);

    if (rc)
        return rc;
    s->accept_gap = field_bool(req, "accept_gap");
    s->load_for_snapshot = field_bool(req, "load_for_snapshot");
    if (s->load_for_snapshot && s->start != SPEC_SNAPSHOT)
        return err_set(err, ERR_INVALID, ERRC_USER, "load_for_snapshot is given, but start is not snapshot");
    return 0;
}

json_t *spec_start_json(const struct task_spec *s)
{
    static const char *const words[] = {NULL, "earliest", "snapshot", NULL, "backup"};
    char text[CLOCK_CHARS];

    if (s->start != SPEC_TIME)
        return words[s->start] ? json_string(words[s->start]) : NULL;
    clock_format(tt_to_ms(s->start_tt), text);
    return json_string(text);
}
