/*
 * log.h - one line per event on standard error, in logfmt.
 *
 *   log_info("wal", "reader opened", KS("topic", topic), KU("pos", pos));
 *   ts=2026-11-24T02:03:04.123Z level=info mod=wal msg="reader opened" topic=by-dev-... pos=17
 *
 * Values are quoted and escaped where needed.  Never log a token, password or user data.
 * Thread: loop thread only, but for log_* calls of xthread jobs (one write(2) per line).
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

enum log_kind { LOG_KV_STR, LOG_KV_INT, LOG_KV_UINT };

struct log_kv {
    const char *key;
    enum log_kind kind;
    const char *str;
    int64_t i;
    uint64_t u;
};

#define KS(k, v) {.key = (k), .kind = LOG_KV_STR, .str = (v)}
#define KI(k, v) {.key = (k), .kind = LOG_KV_INT, .i = (int64_t)(v)}
#define KU(k, v) {.key = (k), .kind = LOG_KV_UINT, .u = (uint64_t)(v)}

#define log_at(level, mod, msg, ...)                                                              \
    log_write((level), (mod), (msg), (const struct log_kv[]){__VA_ARGS__ __VA_OPT__(, ){0}})
#define log_debug(mod, ...) log_at(LOG_DEBUG, mod, __VA_ARGS__)
#define log_info(mod, ...) log_at(LOG_INFO, mod, __VA_ARGS__)
#define log_warn(mod, ...) log_at(LOG_WARN, mod, __VA_ARGS__)
#define log_error(mod, ...) log_at(LOG_ERROR, mod, __VA_ARGS__)

/* kv ends with an entry whose key is NULL.  A NULL str prints as an empty value. */
void log_write(enum log_level level, const char *mod, const char *msg, const struct log_kv *kv);

void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);

/* "debug", "info", "warn"/"warning", "error" (any case, also Go's "panic", "fatal" as error). False: unknown. */
bool log_level_parse(const char *text, enum log_level *ret_level);
#endif
