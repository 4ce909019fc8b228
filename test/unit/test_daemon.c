/* test_daemon.c - what the service manager is told, and what a SIGHUP changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/config.h"
#include "daemon/notify.h"
#include "daemon/reload.h"
#include "loop/loop.h"

enum { LIMIT_MS = 10000 };

static char dir[40], path[80], socket_path[80];
static struct loop *lp;
static int manager = -1; /* the service manager's socket */

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_daemon.XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/cdc.yaml", dir);
    snprintf(socket_path, sizeof(socket_path), "%s/notify", dir);
    log_set_level(LOG_INFO);
    lp = loop_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (manager >= 0)
        close(manager);
    manager = -1;
    loop_free(lp);
    unlink(path);
    unlink(socket_path);
    unsetenv("NOTIFY_SOCKET");
    return rmdir(dir);
}

/* ---- what goes to standard error */

static char logged[20000];
static int saved_stderr;
static FILE *captured;

static void capture(void)
{
    captured = tmpfile();
    saved_stderr = dup(2);
    dup2(fileno(captured), 2);
}

static void captured_end(void)
{
    size_t n;

    dup2(saved_stderr, 2);
    close(saved_stderr);
    rewind(captured);
    n = fread(logged, 1, sizeof(logged) - 1, captured);
    logged[n] = '\0';
    fclose(captured);
}

static unsigned count(const char *part)
{
    unsigned n = 0;

    for (const char *p = logged; (p = strstr(p, part)); p++)
        n++;
    return n;
}

static void assert_logged(const char *part)
{
    if (!count(part))
        fail_msg("\"%s\" is not in:\n%s", part, logged);
}

/* ---- notify */

/* As systemd does it; name begins with @ in the abstract name space. */
static void listen_at(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    size_t len = strlen(name);

    assert_true(len < sizeof(a.sun_path));
    memcpy(a.sun_path, name, len);
    if (*name == '@')
        a.sun_path[0] = '\0';
    manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    assert_true(manager >= 0);
    assert_int_equal(bind(manager, (struct sockaddr *)&a,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (*name == '/'))), 0);
    setenv("NOTIFY_SOCKET", name, 1);
}

/* The next message that has come; NULL: none. */
static const char *message(void)
{
    static char text[600];
    ssize_t n = recv(manager, text, sizeof(text) - 1, 0);

    text[n < 0 ? 0 : n] = '\0';
    return n < 0 ? NULL : text;
}

static void expect_message(const char *want)
{
    const char *got = message();

    if (!got || strcmp(got, want) != 0)
        fail_msg("not \"%s\" but \"%s\"", want, got ? got : "nothing");
}

static void assert_no_message(void)
{
    const char *got = message();

    if (got)
        fail_msg("\"%s\" was sent", got);
}

static void all_messages(void)
{
    struct notify *n = notify_new(lp);
    uint64_t before_us, us;
    const char *got;
    int end = 0;

    assert_null(getenv("NOTIFY_SOCKET")); /* children do not get it */
    assert_no_message();
    notify_ready(n);
    expect_message("READY=1");
    before_us = clock_mono_us();
    notify_reloading(n);
    got = message();
    assert_non_null(got);
    assert_int_equal(sscanf(got, "RELOADING=1\nMONOTONIC_USEC=%" SCNu64 "%n", &us, &end), 1);
    assert_int_equal(got[end], '\0');
    assert_in_range(us, before_us, clock_mono_us());
    notify_stopping(n);
    expect_message("STOPPING=1");
    notify_free(n);
}

static void a_socket_with_a_path(void **state)
{
    (void)state;
    listen_at(socket_path);
    all_messages();
}

static void a_socket_in_the_abstract_name_space(void **state)
{
    char name[60];

    (void)state;
    snprintf(name, sizeof(name), "@test_daemon-%d", (int)getpid());
    listen_at(name);
    all_messages();
}

static void the_longest_path_is_taken(void **state)
{
    struct sockaddr_un a;
    char name[sizeof(a.sun_path)];

    (void)state;
    memset(name, 'x', sizeof(name));
    memcpy(name, dir, strlen(dir));
    name[strlen(dir)] = '/';
    name[sizeof(name) - 1] = '\0';
    listen_at(name);
    all_messages();
    unlink(name);
}

static void what_is_no_socket_is_a_warning(void **state)
{
    static const char *const names[] = {"notify", "@", "/", "", "vsock:2:1"};
    char *longer = xasprintf("/%0108d", 0);

    (void)state;
    for (size_t i = 0; i <= sizeof(names) / sizeof(*names); i++) {
        struct notify *n;

        setenv("NOTIFY_SOCKET", i < sizeof(names) / sizeof(*names) ? names[i] : longer, 1);
        capture();
        n = notify_new(lp);
        notify_ready(n);
        notify_status(n, "nobody reads it");
        captured_end();
        assert_logged("NOTIFY_SOCKET is no path that can be used");
        notify_free(n);
    }
    free(longer);
}

static void without_a_manager_nothing_is_told(void **state)
{
    struct notify *n;

    (void)state;
    capture();
    n = notify_new(lp);
    notify_ready(n);
    notify_stopping(n);
    notify_free(n);
    setenv("NOTIFY_SOCKET", socket_path, 1); /* nobody is there */
    n = notify_new(lp);
    notify_ready(n);
    notify_free(n);
    notify_free(NULL);
    captured_end();
    assert_string_equal(logged, "");
}

static void a_manager_that_does_not_read_stops_nobody(void **state)
{
    struct notify *n;
    char text[40];

    (void)state;
    listen_at(socket_path);
    n = notify_new(lp);
    for (int i = 0; i < 5000; i++) { /* much more than a socket holds */
        snprintf(text, sizeof(text), "line %d", i);
        notify_status(n, text);
    }
    expect_message("STATUS=line 0");
    notify_free(n);
}

static void a_status_is_one_line_and_sent_when_it_changes(void **state)
{
    struct notify *n;

    (void)state;
    listen_at(socket_path);
    n = notify_new(lp);
    notify_status(n, "OK: 1 tasks");
    expect_message("STATUS=OK: 1 tasks");
    notify_status(n, "OK: 1 tasks");
    assert_no_message();
    notify_status(n, "two\nREADY=1"); /* would be a statement of its own */
    expect_message("STATUS=two READY=1");
    notify_status(n, "OK: 1 tasks");
    expect_message("STATUS=OK: 1 tasks");
    notify_free(n);
}

static struct notify *with_watchdog(const char *usec, const char *pid)
{
    struct notify *n;

    setenv("WATCHDOG_USEC", usec, 1);
    if (pid)
        setenv("WATCHDOG_PID", pid, 1);
    n = notify_new(lp);
    assert_null(getenv("WATCHDOG_USEC"));
    assert_null(getenv("WATCHDOG_PID"));
    return n;
}

static void the_watchdog_is_fed_twice_in_its_time(void **state)
{
    struct notify *n;
    char pid[20];
    uint64_t start_ms = clock_mono_ms();

    (void)state;
    listen_at(socket_path);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    n = with_watchdog("100000", pid);
    expect_message("WATCHDOG=1"); /* the first one at once */
    for (int i = 0; i < 3; i++) {
        const char *got;

        while (!(got = message())) {
            assert_true(clock_mono_ms() - start_ms < LIMIT_MS);
            loop_once(lp, true);
        }
        assert_string_equal(got, "WATCHDOG=1");
    }
    assert_true(clock_mono_ms() - start_ms >= 3 * 50 - 10); /* and not without a pause */
    notify_free(n);
    assert_no_message();
}

static void a_watchdog_that_is_not_ours_is_not_fed(void **state)
{
    static const struct {
        const char *usec, *pid;
    } cases[] = {{"100000", "1"}, {"100000", "x"}, {"0", NULL}, {"", NULL}, {"100000x", NULL}, {"x", NULL}, {"-1", NULL}};

    (void)state;
    listen_at(socket_path);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct notify *n = with_watchdog(cases[i].usec, cases[i].pid);

        if (message())
            fail_msg("WATCHDOG_USEC=%s was fed", cases[i].usec);
        notify_free(n);
        setenv("NOTIFY_SOCKET", socket_path, 1);
    }
}

/* ---- reload */

#define HASH1 "1111111111111111111111111111111111111111111111111111111111111111"
#define HASH2 "2222222222222222222222222222222222222222222222222222222222222222"

static void write_config(const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fputs("sourceConfig: {replicateChan: c, rocksmq: {path: /r}}\n", f) >= 0);
    fclose(f);
}

static struct config *start_with(const char *text)
{
    struct err err;
    struct config *c;

    write_config(text);
    c = config_load(path, &err);
    if (!c)
        fail_msg("%s", err.text);
    return c;
}

static void reload_with(struct config *c, const char *text)
{
    write_config(text);
    capture();
    reload(path, c, NULL);
    captured_end();
}

static void what_may_change_does(void **state)
{
    struct config *c;

    (void)state;
    c = start_with("api: {tokens: [{name: a, sha256: " HASH1 "}]}\n");
    reload_with(c, "logLevel: warn\nmaxTaskNum: 7\nmaxNameLength: 9\n"
                   "api: {tokens: [{name: b, sha256: " HASH2 "}, {name: c, sha256: " HASH1 "}]}\n");
    assert_string_equal(logged, ""); /* the level holds already */
    assert_false(log_enabled(LOG_INFO));
    assert_int_equal(c->max_task_num, 7);
    assert_int_equal(c->max_name_length, 9);
    assert_int_equal(c->api.n_tokens, 2);
    assert_string_equal(c->api.tokens[0].name, "b");
    assert_int_equal(c->api.tokens[0].sha256[0], 0x22);
    reload_with(c, "logLevel: info\n");
    assert_logged("msg=reloaded");
    assert_int_equal(c->api.n_tokens, 0);
    assert_int_equal(c->max_task_num, 100);
    config_free(c);
}

static void what_needs_a_restart_stays_and_is_named(void **state)
{
    struct config *c;

    (void)state;
    c = start_with("address: 127.0.0.1:1\nregistry: {type: postgresql, uri: 'postgresql://u:sesame@h/d'}\n"
                   "retry: {maxBackOff: 10}\n");
    reload_with(c, "address: 127.0.0.1:2\nregistry: {type: postgresql, uri: 'postgresql://u:changed@h/d'}\n"
                   "retry: {maxBackOff: 20}\nlimits: {batchBytes: 1MiB}\nmaxTaskNum: 3\n");
    assert_string_equal(c->address, "127.0.0.1:1");
    assert_string_equal(c->postgresql.uri, "postgresql://u:sesame@h/d");
    assert_int_equal(c->retry_max_ms, 10000);
    assert_int_equal(c->batch_bytes, 4 << 20);
    assert_int_equal(c->max_task_num, 3);
    assert_int_equal(count("needs a restart"), 4);
    assert_logged("key=address");
    assert_logged("key=registry.uri");
    assert_logged("key=retry.maxBackOff");
    assert_logged("key=limits.batchBytes");
    assert_int_equal(count("sesame") + count("changed@"), 0);
    config_free(c);
}

static void a_file_that_is_wrong_changes_nothing(void **state)
{
    static const char *const wrong[] = {
        "maxTaskNum: 7\nlogLevel: loud\n",
        "maxTaskNum: 7\nnot: [yaml\n",
        "maxTaskNum: 7\napi: {tls: {cert: /nowhere/api.pem, key: /nowhere/api.key}}\n",
    };
    struct config *c;

    (void)state;
    c = start_with("api: {tokens: [{name: a, sha256: " HASH1 "}]}\n");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        reload_with(c, wrong[i]);
        assert_logged("not reloaded, the old configuration stays");
        assert_int_equal(c->max_task_num, 100);
        assert_int_equal(c->api.n_tokens, 1);
        assert_null(c->api.cert_path);
    }
    assert_logged("/nowhere/api.pem");
    unlink(path);
    capture();
    reload(path, c, NULL);
    captured_end();
    assert_logged("not reloaded");
    config_free(c);
}

static void the_same_file_changes_nothing(void **state)
{
    static const char text[] = "api: {tokens: [{name: a, sha256: " HASH1 "}]}\n"
                               "registry: {type: postgresql, host: h, user: u, database: d, password: sesame}\n";
    struct config *c;

    (void)state;
    c = start_with(text);
    reload_with(c, text);
    assert_int_equal(count("needs a restart"), 0);
    assert_logged("tokens=1");
    assert_string_equal(c->api.tokens[0].name, "a");
    config_free(c);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_socket_with_a_path),
        TEST(a_socket_in_the_abstract_name_space),
        TEST(the_longest_path_is_taken),
        TEST(what_is_no_socket_is_a_warning),
        TEST(without_a_manager_nothing_is_told),
        TEST(a_manager_that_does_not_read_stops_nobody),
        TEST(a_status_is_one_line_and_sent_when_it_changes),
        TEST(the_watchdog_is_fed_twice_in_its_time),
        TEST(a_watchdog_that_is_not_ours_is_not_fed),
        TEST(what_may_change_does),
        TEST(what_needs_a_restart_stays_and_is_named),
        TEST(a_file_that_is_wrong_changes_nothing),
        TEST(the_same_file_changes_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
