/*
 * notify.h - tells the service manager how it goes: sd_notify(3), without libsystemd.
 *
 * Datagrams to $NOTIFY_SOCKET (a path, or "@name" in the abstract name space). Without the variable every call does
 * nothing. With $WATCHDOG_USEC (and $WATCHDOG_PID, if given, being this process) WATCHDOG=1 is sent twice in that time, by
 * a timer of the loop: when the loop is stuck, it stops.   Thread  loop thread only.
 */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

struct loop;
struct notify;

/* Takes the variables out of the environment. Never NULL; a socket that cannot be used is a warning. */
struct notify *notify_new(struct loop *l);
void notify_free(struct notify *n); /* NULL is allowed */

void notify_ready(struct notify *n); /* at the start, and after a reload */
void notify_reloading(struct notify *n);
void notify_stopping(struct notify *n);
/* One line for "systemctl status"; sent when it differs from the last one. */
void notify_status(struct notify *n, const char *text);
#endif
