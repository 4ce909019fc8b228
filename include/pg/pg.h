/*
 * pg.h - one connection to a PostgreSQL server (13 and later) that is made anew for ever: libpq in pipeline mode on the
 * loop. Nothing blocks; names are looked up by the loop's resolver.
 *
 * Each statement is a transaction of its own. A statement that got no answer because the connection broke ends with a
 * RETRY error: it may have been carried out or not.
 *
 * Callbacks come from the loop, never from inside the call that starts them (but for pg_pump), and none after pg_close.
 */
#ifndef PG_PG_H
#define PG_PG_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct loop;
struct pg;
struct pg_result;

/* A connection parameter of libpq ("host", "sslmode", ...); value NULL: not given. */
struct pg_setting {
    const char *keyword, *value;
};

struct pg_options {
    const char *uri;                   /* libpq URI or "key=value ..." text, or NULL */
    const struct pg_setting *settings; /* above those of uri; the last has keyword NULL */
    const char *section;               /* of the configuration, for error texts: "registry" */
};

struct pg_cbs {
    /* A connection was made; the owner sends what prepares it. */
    void (*on_up)(void *arg);
    /* It broke or could not be made; after the errors of its statements. Tried again by itself, err says why. */
    void (*on_down)(void *arg, const struct err *err);
    void (*on_notify)(void *arg, const char *channel, const char *payload); /* NULL: not wanted */
};

/* err NULL: success. res is borrowed for the call; NULL on error. err's text is the server's, with its SQLSTATE. */
typedef void (*pg_done_fn)(void *arg, const struct err *err, const struct pg_result *res);

/* Begins to connect. NULL: uri or a setting is wrong (USER); its text never has the password. All is copied. */
struct pg *pg_open(struct loop *l, const struct pg_options *o, const struct pg_cbs *cbs, void *arg, struct err *err);
/* Ends it at once; done() of what is under way is not called. NULL is allowed. */
void pg_close(struct pg *p);

bool pg_up(const struct pg *p);
/* "host:port/database" of the present or last try. Borrowed. */
const char *pg_where(const struct pg *p);

/*
 * Sends one statement with text parameters ($1, ...; a NULL is NULL). Without an answer within limit_ms, the connection
 * is given up. Not connected: done() comes with a RETRY error. done NULL: the result is of no interest.
 */
void pg_send(struct pg *p, unsigned limit_ms, const char *sql, size_t n, const char *const *params, pg_done_fn done,
             void *arg);
/* Gives the connection up, so that it is made anew after a back-off: the owner cannot use it as it is. */
void pg_drop(struct pg *p, const struct err *why);
/* Blocks until all that was sent has its answer (done() is called from inside), for at most limit_ms. For shutdown. */
void pg_pump(struct pg *p, unsigned limit_ms);

size_t pg_rows(const struct pg_result *res);
/* A value as text, NULL for NULL. Borrowed from res. */
const char *pg_value(const struct pg_result *res, size_t row, unsigned column);
/* The SQLSTATE of the last failed statement of the server, "" if none. Valid inside its done(). */
const char *pg_sqlstate(const struct pg *p);
#endif
