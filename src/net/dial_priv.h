/*
 * dial_priv.h - host and port to a connected TCP socket: look-up, then each address in turn.
 *
 * Every address is tried, because "localhost" often resolves to ::1 first while the server listens
 * on 127.0.0.1 only.  Thread  loop thread only.
 */
#ifndef NET_DIAL_PRIV_H
#define NET_DIAL_PRIV_H
#include <stdint.h>

struct dial;
struct loop;

/* fd >= 0: connected, non-blocking, now the callee's. fd < 0: trouble says why (borrowed). */
typedef void (*dial_fn)(void *arg, int fd, const char *trouble);

/*
 * done comes once, never from inside; the dial is gone then.  timeout_ms is divided among the
 * addresses, so that a dead one leaves time for the others; the sum and the look-up are the
 * caller's to limit.
 */
struct dial *dial_start(struct loop *l, const char *host, uint16_t port, unsigned timeout_ms,
                        dial_fn done, void *arg);

/* No done after this. NULL is allowed. */
void dial_cancel(struct dial *d);
#endif
