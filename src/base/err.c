#include "base/err.h"

#include <stdio.h>
#include <string.h>

int err_set(struct err *err, enum err_code code, enum err_class cls, const char *fmt, ...)
{
    char text[sizeof(err->text)]; /* an argument may be err->text itself */
    va_list ap;

    if (!err)
        return code;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    err->code = code;
    err->cls = cls;
    memcpy(err->text, text, strlen(text) + 1);
    return code;
}

int err_wrap(struct err *err, const char *fmt, ...)
{
    char text[sizeof(err->text)];
    va_list ap;
    size_t used, room, len;

    if (!err)
        return ERR_INTERNAL; /* never to be mistaken for success */
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    used = strlen(text);
    if (used + 3 < sizeof(text)) {
        memcpy(text + used, ": ", 2);
        used += 2;
        room = sizeof(text) - 1 - used;
        len = strnlen(err->text, sizeof(err->text) - 1);
        memcpy(text + used, err->text, len < room ? len : room);
        used += len < room ? len : room;
    }
    memcpy(err->text, text, used);
    err->text[used] = '\0';
    return err->code;
}

int err_copy(struct err *dst, const struct err *src)
{
    if (dst && dst != src)
        *dst = *src;
    return src->code;
}

const char *err_code_name(enum err_code code)
{
    switch (code) {
    case ERR_OK:
        return "ok";
    case ERR_CANCELLED:
        return "cancelled";
    case ERR_TIMEOUT:
        return "timeout";
    case ERR_UNAVAILABLE:
        return "unavailable";
    case ERR_PROTO:
        return "protocol";
    case ERR_INVALID:
        return "invalid";
    case ERR_NOT_FOUND:
        return "not_found";
    case ERR_EXISTS:
        return "exists";
    case ERR_AUTH:
        return "auth";
    case ERR_LIMIT:
        return "limit";
    case ERR_TOO_LARGE:
        return "too_large";
    case ERR_UNSUPPORTED:
        return "unsupported";
    case ERR_IO:
        return "io";
    case ERR_GONE:
        return "gone";
    case ERR_FULL:
        return "full";
    case ERR_STALE:
        return "stale";
    case ERR_STATE:
        return "state";
    case ERR_INTERNAL:
        return "internal";
    }
    return "unknown";
}

const char *err_class_name(enum err_class cls)
{
    switch (cls) {
    case ERRC_RETRY:
        return "retry";
    case ERRC_USER:
        return "user";
    case ERRC_DATA:
        return "data";
    case ERRC_LOST:
        return "lost";
    }
    return "unknown";
}
