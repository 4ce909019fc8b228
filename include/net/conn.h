/*
 * conn.h - one client connection (TCP, TLS if asked) whose bytes go straight into the caller's memory.
 *
 * For protocols with large frames: the owner reads into the frame that it is building, nothing is buffered here on
 * the way in. Output is queued without a limit: it is meant for small commands.
 * Contract: callbacks never come from inside a call of the owner, none after conn_close().  Thread  loop thread only.
 */
#ifndef NET_CONN_H
#define NET_CONN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct conn;
struct conn_tls;
struct err;
struct loop;

struct conn_tls_options {
    const char *ca_path;              /* NULL: the system's store */
    const char *cert_path, *key_path; /* NULL: no client certificate */
    bool skip_hostname;               /* the certificate may be for any name */
    bool insecure;                    /* any certificate will do */
};

/* Reads the files; shared by connections, lives longer than they. NULL and err (ERR_INVALID, USER) when one is
 * unreadable. */
struct conn_tls *conn_tls_new(const struct conn_tls_options *o, struct err *err);
void conn_tls_free(struct conn_tls *t); /* NULL is allowed */

struct conn_events {
    void (*on_open)(void *arg); /* connected, TLS handshake done */
    /* There may be bytes: call conn_read(). Comes again as long as some are left. */
    void (*on_readable)(void *arg);
    /* Not connected, or no more; once, the last callback. why: one line for people. Call conn_close(). */
    void (*on_down)(void *arg, const char *why);
};

/* tls NULL: plain TCP. timeout_ms: look-up, TCP and TLS together. Never NULL. ev is borrowed, host copied. */
struct conn *conn_open(struct loop *l, const char *host, uint16_t port, struct conn_tls *tls, unsigned timeout_ms,
                       const struct conn_events *ev, void *arg);
/* Bytes read, at most n; 0: none now, or the connection has ended (on_down tells). */
size_t conn_read(struct conn *c, void *data, size_t n);
/* Copies and queues; ignored when the connection has ended. */
void conn_write(struct conn *c, const void *data, size_t n);
/* Bytes that wait for the peer to take them. */
size_t conn_unsent(const struct conn *c);
/* From any callback. NULL is allowed. */
void conn_close(struct conn *c);
#endif
