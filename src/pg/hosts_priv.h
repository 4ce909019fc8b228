/*
 * hosts_priv.h - the addresses of a server's host names, in the order of the names: libpq would block to look
 * them up.
 */
#ifndef PG_HOSTS_H
#define PG_HOSTS_H
#include <stddef.h>

struct err;
struct loop;
struct pg_hosts;

struct pg_host {
    char *name; /* as given: for TLS and for people; a path: a Unix socket's directory; "": libpq's default */
    char *addr; /* numeric, or NULL for a Unix socket */
    char *port; /* or "" */
};

/* n 0: none has an address, err says why. The list is the callee's to keep until pg_hosts_free(). */
typedef void (*pg_hosts_fn)(void *arg, struct pg_host *hosts, size_t n, const struct err *err);

/* names, addrs, ports: comma separated as in libpq's host, hostaddr, port; NULL allowed. done from the loop. */
struct pg_hosts *pg_hosts_start(struct loop *l, const char *names, const char *addrs, const char *ports,
                                pg_hosts_fn done, void *arg);
/* Before done. NULL is allowed. */
void pg_hosts_cancel(struct pg_hosts *h);
void pg_hosts_free(struct pg_host *hosts, size_t n);
#endif
