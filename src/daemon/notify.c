#include "daemon/notify.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/loop.h"

struct notify {
    int fd; /* -1: nobody listens */
    struct sockaddr_un to;
    socklen_t to_len;
    uint64_t interval_ms; /* 0: no watchdog */
    struct timer watchdog;
    char *status;
};

/* A manager that does not read must not stop us: what does not fit now is lost. */
static void send_text(struct notify *n, const char *text)
{
    if (n->fd >= 0)
        (void)sendto(n->fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&n->to, n->to_len);
}

static void on_watchdog(void *arg)
{
    struct notify *n = arg;

    send_text(n, "WATCHDOG=1");
    timer_set(&n->watchdog, n->interval_ms);
}

static void open_socket(struct notify *n, const char *path)
{
    size_t len = strlen(path);

    if ((*path != '/' && *path != '@') || len < 2 || len >= sizeof(n->to.sun_path)) {
        log_warn("daemon", "NOTIFY_SOCKET is no path that can be used: the service manager will not be told", KS("path", path));
        return;
    }
    n->to.sun_family = AF_UNIX;
    memcpy(n->to.sun_path, path, len);
    if (*path == '@')
        n->to.sun_path[0] = '\0'; /* unix(7), abstract: the length counts, no NUL at the end */
    n->to_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (*path == '/'));
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (n->fd < 0)
        log_warn("daemon", "the service manager cannot be told", KS("error", strerror(errno)));
}

/* Half of the limit, as sd_watchdog_enabled(3) recommends; 0: none. */
static uint64_t watchdog_ms(void)
{
    const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    bool number = usec && usec[strspn(usec, "0123456789")] == '\0';
    unsigned long long v = number ? strtoull(usec, NULL, 10) : 0;

    if (v == 0 || (pid && strtoll(pid, NULL, 10) != (long long)getpid()))
        return 0;
    return v / 2000 > 0 ? v / 2000 : 1;
}

struct notify *notify_new(struct loop *l)
{
    struct notify *n = xcalloc(1, sizeof(*n));
    const char *path = getenv("NOTIFY_SOCKET");

    n->fd = -1;
    timer_init(&n->watchdog, l, LOOP_PRIO_NORMAL, on_watchdog, n);
    if (path)
        open_socket(n, path);
    n->interval_ms = watchdog_ms();
    if (n->fd >= 0 && n->interval_ms)
        on_watchdog(n);
    unsetenv("NOTIFY_SOCKET"); /* not for children */
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    return n;
}

void notify_free(struct notify *n)
{
    if (!n)
        return;
    timer_release(&n->watchdog);
    if (n->fd >= 0)
        close(n->fd);
    free(n->status);
    free(n);
}

void notify_ready(struct notify *n)
{
    send_text(n, "READY=1");
}

void notify_reloading(struct notify *n)
{
    char text[80];

    snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_mono_us());
    send_text(n, text);
}

void notify_stopping(struct notify *n)
{
    send_text(n, "STOPPING=1");
}

void notify_status(struct notify *n, const char *text)
{
    char *line;

    if (n->fd < 0 || (n->status && strcmp(n->status, text) == 0))
        return;
    set_text(&n->status, text);
    line = xasprintf("STATUS=%s", text);
    for (char *p = line; *p; p++)
        if (*p == '\n')
            *p = ' ';
    send_text(n, line);
    free(line);
}
