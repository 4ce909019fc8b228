#include "cli/health.h"

#include <ctype.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/ask_priv.h"

enum { OK, WARNING, CRITICAL, UNKNOWN };

static const char usage[] =
    "usage: milvus-cdc health [OPTION]...\n"
    "\n"
    "Asks a daemon whether replication keeps up. Prints one line.\n"
    "Exit code: 0 ok, 1 warning, 2 critical (also: no answer), 3 unknown (a wrong option, a refused token, not a daemon).\n"
    "\n"
    ASK_USAGE_DAEMON
    "  --max-lag TIME     a greater lag is critical, default 30s (ms, s, m, h)\n"
    "  --task ID          this task only; then one that was paused by hand is a warning\n"
    "  --timeout TIME     for all together, default 5s\n" ASK_USAGE_LOGIN;

struct options {
    struct ask_options ask;
    const char *max_lag, *task;
};

static int unknown(const char *text)
{
    printf("UNKNOWN: %s\n", text);
    return UNKNOWN;
}

/* Percent-encodes all but what is safe anywhere. Caller frees. */
static char *encode(const char *s)
{
    char *out = xmalloc(3 * strlen(s) + 1), *p = out;

    for (; *s; s++) {
        if (isalnum((unsigned char)*s) || strchr("-_.~", *s))
            *p++ = *s;
        else
            p += sprintf(p, "%%%02X", (unsigned char)*s);
    }
    *p = '\0';
    return out;
}

static char *target(const struct options *o)
{
    char *lag = encode(o->max_lag ? o->max_lag : "30s"), *task = o->task ? encode(o->task) : NULL;
    char *text = xasprintf("/health?max_lag=%s%s%s", lag, task ? "&task=" : "", task ? task : "");

    free(lag);
    free(task);
    return text;
}

/* The daemon's own line and verdict. */
static int print_answer(const char *url, int status, const char *body)
{
    json_t *o = json_loads(body, 0, NULL);
    const char *text = json_string_value(json_object_get(o, "text"));
    const json_t *code = json_object_get(o, "code");
    json_int_t n = json_is_integer(code) ? json_integer_value(code) : -1;
    int rc = UNKNOWN;

    if (status == 401) {
        printf("UNKNOWN: milvus-cdc at %s wants a valid token: see --token-file\n", url);
    } else if (!text || n < OK || n > UNKNOWN || strpbrk(text, "\r\n")) {
        printf("UNKNOWN: what answers at %s (HTTP %d) is not milvus-cdc, or of another version\n", url, status);
    } else {
        printf("%s\n", text);
        rc = (int)n;
    }
    json_decref(o);
    return rc;
}

static int ask(const struct options *o, struct asker *a)
{
    struct err err = {0};
    char *body = NULL, *path = target(o);
    int status, rc;

    a->get.target = path;
    rc = http_get(&a->get, &status, &body, &err);
    if (rc == 0) {
        rc = print_answer(a->url, status, body);
    } else if (rc == ERR_INVALID || rc == ERR_PROTO) {
        printf("UNKNOWN: %s: %s\n", a->url, err.text);
        rc = UNKNOWN;
    } else {
        printf("CRITICAL: milvus-cdc at %s does not answer: %s\n", a->url, err.text);
        rc = CRITICAL;
    }
    free(path);
    free(body);
    return rc;
}

/* -1: go on, else the exit code. */
static int parse_options(int argc, char **argv, struct options *o)
{
    enum { LAG = ASK_OPTIONS_END, TASK };
    static const struct option longs[] = {ASK_OPTIONS,
                                          {"max-lag", required_argument, NULL, LAG},
                                          {"task", required_argument, NULL, TASK},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    int c;

    while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
        if (c == 'h') {
            fputs(usage, stdout);
            return OK;
        }
        if (c == '?')
            return unknown("see milvus-cdc health --help");
        if (c == LAG)
            o->max_lag = optarg;
        else if (c == TASK)
            o->task = optarg;
        else
            ask_take_option(&o->ask, c, optarg);
    }
    return optind < argc ? unknown("milvus-cdc health takes options only") : -1;
}

static void on_alarm(int sig)
{
    static const char text[] = "CRITICAL: the probe itself hung\n";

    (void)sig;
    _exit(write(STDOUT_FILENO, text, sizeof(text) - 1) < 0 ? UNKNOWN : CRITICAL);
}

int cli_health(int argc, char **argv)
{
    struct options o = {.ask.timeout = "5s"};
    struct asker a;
    struct err err;
    unsigned timeout_ms;
    int rc = parse_options(argc, argv, &o);

    if (rc >= 0)
        return rc;
    if (ask_timeout(&o.ask, &timeout_ms, &err))
        return unknown(err.text);
    log_set_level(LOG_ERROR); /* one line is promised: a warning about a key is the daemon's to give */
    (void)signal(SIGALRM, on_alarm);
    (void)alarm(timeout_ms / 1000 + 5); /* whatever blocks (a file on a dead file system) ends too */
    if (ask_open(&o.ask, &a, &err))
        return unknown(err.text);
    rc = ask(&o, &a);
    ask_close(&a);
    return rc;
}
