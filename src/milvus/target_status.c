/* target_status.c - what a Milvus Status means. Source: milvus pkg/util/merr/errors.go, target.md 1.1. */
#include "milvus/target_priv.h"

#include <string.h>

struct rule {
    int32_t code;
    enum err_code err;
    enum err_class cls;
    const char *hint; /* what a human can do, or "" */
};

static const struct rule rules[] = {
    {MERR_NOT_READY, ERR_UNAVAILABLE, ERRC_RETRY, ""},
    {2, ERR_UNAVAILABLE, ERRC_RETRY, ""},
    {3, ERR_LIMIT, ERRC_RETRY, "memory limit of the target: give it more memory or release collections there"},
    {4, ERR_LIMIT, ERRC_RETRY, "the target has too many requests at once"},
    {7, ERR_LIMIT, ERRC_RETRY, "disk quota of the target: raise its quotaAndLimits...diskProtection or free space"},
    {8, ERR_LIMIT, ERRC_RETRY, "a rate limit of the target: look at its quotaAndLimits"},
    {9, ERR_LIMIT, ERRC_RETRY, "a quota of the target denies writes: look at its quotaAndLimits"},
    {MERR_UNIMPLEMENTED, ERR_UNSUPPORTED, ERRC_USER, "this version of the target does not offer it"},
    {11, ERR_UNAVAILABLE, ERRC_RETRY, ""},
    {12, ERR_LIMIT, ERRC_RETRY, "the target lacks resources (nodes, memory or disk) for it"},
    {MERR_COLLECTION_NOT_FOUND, ERR_NOT_FOUND, ERRC_USER, ""},
    {101, ERR_STATE, ERRC_USER, ""},
    {102, ERR_LIMIT, ERRC_USER, "the target may not have more collections: drop some or raise its limit"},
    {108, ERR_STATE, ERRC_USER, "the target's collection belongs to another replication (property replicate.id)"},
    {MERR_PARTITION_NOT_FOUND, ERR_NOT_FOUND, ERRC_USER, ""},
    {300, ERR_NOT_FOUND, ERRC_USER, "make the resource group on the target"},
    {MERR_CHANNEL_NOT_FOUND, ERR_UNAVAILABLE, ERRC_RETRY, ""},
    {MERR_INDEX_NOT_FOUND, ERR_NOT_FOUND, ERRC_USER, ""},
    {702, ERR_EXISTS, ERRC_USER, ""},
    {MERR_DATABASE_NOT_FOUND, ERR_NOT_FOUND, ERRC_USER, ""},
    {801, ERR_LIMIT, ERRC_USER, "the target may not have more databases: drop some or raise its limit"},
    {802, ERR_INVALID, ERRC_USER, ""},
    {MERR_PARAMETER_INVALID, ERR_INVALID, ERRC_USER, ""},
    {1101, ERR_INVALID, ERRC_USER, ""},
    {1102, ERR_TOO_LARGE, ERRC_USER, ""}, /* quotaAndLimits.limits.maxInsertSize, and the like */
    {1302, ERR_UNAVAILABLE, ERRC_RETRY, ""},
    {1303, ERR_STATE, ERRC_USER,
     "the target is a standby and refuses users' writes, or its role is mixed up: look at its common.ttMsgEnabled"},
    {MERR_UNAUTHENTICATED, ERR_AUTH, ERRC_USER, "check the token (user:password or API key) of the target"},
    {MERR_PRIVILEGE, ERR_AUTH, ERRC_USER, "the target's user lacks a privilege: grant it"},
    {MERR_DENY_REPLICATE, ERR_STATE, ERRC_USER,
     "the target is not a standby: set common.ttMsgEnabled: false in its milvus.yaml and restart it"},
    {1901, ERR_PROTO, ERRC_DATA, ""},
    {1902, ERR_LIMIT, ERRC_RETRY, ""},
    {1903, ERR_INVALID, ERRC_USER, ""},
    {10000, ERR_UNAVAILABLE, ERRC_RETRY, ""},
    {10001, ERR_TIMEOUT, ERRC_RETRY, ""},
};

/* Anything else, most of all 65535: only the text tells. The caller counts. */
static const struct rule unknown = {MERR_UNEXPECTED, ERR_INTERNAL, ERRC_RETRY, ""};

static const struct rule *find_rule(int32_t code)
{
    for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++)
        if (rules[i].code == code)
            return &rules[i];
    return &unknown;
}

/* Servers before 2.3 fill only error_code. */
static int32_t code_of_old(int32_t old_code)
{
    static const struct {
        int32_t old, code;
    } map[] = {{4, MERR_COLLECTION_NOT_FOUND},
               {5, MERR_PARAMETER_INVALID},
               {25, MERR_INDEX_NOT_FOUND},
               {48, 9},
               {49, 8},
               {53, 3},
               {54, 7},
               {55, 11},
               {56, MERR_NOT_READY}};

    for (size_t i = 0; i < sizeof(map) / sizeof(*map); i++)
        if (map[i].old == old_code)
            return map[i].code;
    return MERR_UNEXPECTED;
}

/* Milvus Lite has its own use of two numbers that mean something else in Milvus, where another old one comes along. */
static int32_t code_of_lite(int32_t code, int32_t old_code, const char *reason)
{
    enum { LITE_UNEXPECTED = 1, LITE_ILLEGAL_ARGUMENT = 6 };

    if (code == LITE_UNEXPECTED && old_code <= LITE_UNEXPECTED)
        return MERR_UNEXPECTED;
    if (code != LITE_ILLEGAL_ARGUMENT || old_code != LITE_ILLEGAL_ARGUMENT)
        return code;
    return reason && strncmp(reason, "database ", 9) == 0 && strstr(reason, "does not exist") ? MERR_DATABASE_NOT_FOUND
                                                                                             : MERR_PARAMETER_INVALID;
}

int32_t target_status_code(int32_t code, int32_t old_code, const char *reason)
{
    if (code == 0 && old_code == 0)
        return 0;
    code = code == 0 ? code_of_old(old_code) : code_of_lite(code, old_code, reason);
    if (code == MERR_UNEXPECTED && reason && strstr(reason, "can't find collection"))
        return MERR_COLLECTION_NOT_FOUND;
    return code;
}

int target_status_err(int32_t code, int32_t old_code, const char *reason, const char *context, struct err *err)
{
    int32_t c = target_status_code(code, old_code, reason);
    const struct rule *r;

    if (c == 0)
        return 0;
    r = find_rule(c);
    return err_set(err, r->err, r->cls, "%s: %s%s%s (Milvus code %d)", context,
                   reason && *reason ? reason : "no reason given", *r->hint ? ". " : "", r->hint, (int)c);
}
