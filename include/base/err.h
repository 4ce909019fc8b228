/*
 * err.h - one error: a code for the program, a class for the policy, a text for people.
 *
 * A function that can fail returns 0 or an err_code and, where it takes a struct err *, fills it;
 * err may be NULL.  The object's owner decides by the class and logs it once.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H
#include <stdarg.h>

enum err_code {
    ERR_OK = 0,
    ERR_CANCELLED,   /* somebody else ended the call */
    ERR_TIMEOUT,     /* a deadline passed */
    ERR_UNAVAILABLE, /* peer away, connection lost, not ready */
    ERR_PROTO,       /* the peer or a file sent what cannot be parsed */
    ERR_INVALID,     /* an argument, a setting or a request is wrong */
    ERR_NOT_FOUND,
    ERR_EXISTS,
    ERR_AUTH,      /* credentials missing or refused */
    ERR_LIMIT,     /* rate, quota, memory or size limit of a peer or of ours */
    ERR_TOO_LARGE, /* the peer never takes a request of this size */
    ERR_UNSUPPORTED,
    ERR_IO,        /* disk or system call */
    ERR_GONE,      /* a position or revision no longer exists */
    ERR_FULL,      /* a bounded queue is full */
    ERR_STALE,     /* an epoch or version is old */
    ERR_STATE,     /* not allowed in the present state */
    ERR_INTERNAL,
};

/* What the owner does about it. */
enum err_class {
    ERRC_RETRY, /* transient: back off and go on, no human */
    ERRC_USER,  /* a human must change something: pause, say what */
    ERRC_DATA,  /* this message cannot be applied: stop the channel, keep the position */
    ERRC_LOST,  /* the position is gone: stop loudly, never skip */
};

struct err {
    enum err_code code;
    enum err_class cls;
    char text[1000];
};

/* Fills err (NULL allowed) and returns code, so that "return err_set(...)" reads well. */
int err_set(struct err *err, enum err_code code, enum err_class cls, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "context: " in front of the text; code and class stay.  Returns err->code. */
int err_wrap(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Copies src to dst (dst may be NULL). Returns src->code. */
int err_copy(struct err *dst, const struct err *src);

/* "timeout", "unavailable", ... for logs. */
const char *err_code_name(enum err_code code);
const char *err_class_name(enum err_class cls);
#endif
