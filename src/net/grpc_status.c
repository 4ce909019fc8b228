#include "net/grpc_priv.h"
#include "base/hex.h"

#include "base/err.h"
#include "net/grpc.h"

#include <inttypes.h>
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <string.h>

/* The numbers are fixed (grpc: doc/statuscodes.md). */
static const struct {
    const char *name;
    enum err_code code;
    enum err_class cls;
} statuses[] = {
    [0] = {"OK", ERR_OK, ERRC_RETRY},
    [1] = {"CANCELLED", ERR_CANCELLED, ERRC_RETRY},
    [2] = {"UNKNOWN", ERR_INTERNAL, ERRC_RETRY},
    [3] = {"INVALID_ARGUMENT", ERR_INVALID, ERRC_USER},
    [4] = {"DEADLINE_EXCEEDED", ERR_TIMEOUT, ERRC_RETRY},
    [5] = {"NOT_FOUND", ERR_NOT_FOUND, ERRC_USER},
    [6] = {"ALREADY_EXISTS", ERR_EXISTS, ERRC_USER},
    [7] = {"PERMISSION_DENIED", ERR_AUTH, ERRC_USER},
    [8] = {"RESOURCE_EXHAUSTED", ERR_LIMIT, ERRC_RETRY},
    [9] = {"FAILED_PRECONDITION", ERR_STATE, ERRC_USER},
    [10] = {"ABORTED", ERR_STALE, ERRC_RETRY},
    [11] = {"OUT_OF_RANGE", ERR_INVALID, ERRC_USER},
    [12] = {"UNIMPLEMENTED", ERR_UNSUPPORTED, ERRC_USER},
    [13] = {"INTERNAL", ERR_INTERNAL, ERRC_RETRY},
    [14] = {"UNAVAILABLE", ERR_UNAVAILABLE, ERRC_RETRY},
    [15] = {"DATA_LOSS", ERR_IO, ERRC_USER},
    [16] = {"UNAUTHENTICATED", ERR_AUTH, ERRC_USER},
};
enum { N_STATUSES = sizeof(statuses) / sizeof(*statuses) };

const char *grpc_status_name(int status)
{
    return status >= 0 && status < N_STATUSES ? statuses[status].name : "UNRECOGNIZED";
}

int grpc_result_err(const struct grpc_result *r, const char *context, struct err *err)
{
    enum err_code code = ERR_INTERNAL;
    enum err_class cls = ERRC_USER;

    if (r->status >= 0 && r->status < N_STATUSES) {
        code = statuses[r->status].code;
        cls = statuses[r->status].cls;
    }
    return err_set(err, code, cls, "%s: %s (%d): %s", context, grpc_status_name(r->status),
                   r->status, r->message);
}

int grpc_status_parse(const char *text)
{
    size_t len = strlen(text);
    int status = 0;

    if (len == 0 || len > 8 || strspn(text, "0123456789") != len)
        return GRPC_UNKNOWN;
    for (; *text; text++)
        status = status * 10 + (*text - '0');
    return status;
}

int grpc_status_of_http(int http_status)
{
    switch (http_status) {
    case 400:
        return GRPC_INTERNAL;
    case 401:
        return GRPC_UNAUTHENTICATED;
    case 403:
        return GRPC_PERMISSION_DENIED;
    case 404:
        return GRPC_UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
        return GRPC_UNAVAILABLE;
    }
    return GRPC_UNKNOWN;
}

int grpc_status_of_reset(uint32_t h2_code)
{
    switch (h2_code) {
    case NGHTTP2_REFUSED_STREAM:
        return GRPC_UNAVAILABLE;
    case NGHTTP2_CANCEL:
        return GRPC_CANCELLED;
    case NGHTTP2_ENHANCE_YOUR_CALM:
        return GRPC_RESOURCE_EXHAUSTED;
    case NGHTTP2_INADEQUATE_SECURITY:
        return GRPC_PERMISSION_DENIED;
    }
    return GRPC_INTERNAL;
}

void grpc_percent_decode(char *text)
{
    char *to = text;

    for (; *text; text++) {
        int hi = *text == '%' ? hex_digit(text[1]) : -1;
        int lo = hi >= 0 ? hex_digit(text[2]) : -1;

        if (lo >= 0 && hi + lo > 0) { /* %00 would end the text */
            *to++ = (char)(hi << 4 | lo);
            text += 2;
        } else {
            *to++ = *text;
        }
    }
    *to = '\0';
}

void grpc_timeout_format(uint64_t ms, char *buf, size_t size)
{
    if (ms <= 99999999)
        snprintf(buf, size, "%" PRIu64 "m", ms);
    else
        snprintf(buf, size, "%" PRIu64 "S", ms / 1000);
}
