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
#include "cli/http_get_priv.h"
#include "daemon/config.h"

enum { OK, WARNING, CRITICAL, UNKNOWN, MAX_TOKEN_BYTES = 200 };

#define DEFAULT_URL "http://127.0.0.1:8444"

static const char usage[] =
    "usage: milvus-cdc health [OPTION]...\n"
    "\n"
    "Asks a daemon whether replication keeps up. Prints one line.\n"
    "Exit code: 0 ok, 1 warning, 2 critical (also: no answer), 3 unknown (a wrong option, a refused token, not a daemon).\n"
    "\n"
    "  --url URL          the daemon, default " DEFAULT_URL ", or from --config\n"
    "  --config FILE      takes address, and whether it has TLS, from the daemon's configuration\n"
    "  --max-lag TIME     a greater lag is critical, default 30s (ms, s, m, h)\n"
    "  --task ID          this task only; then one that was paused by hand is a warning\n"
    "  --timeout TIME     for all together, default 5s\n"
    "  --token-file FILE  holds the token, if the daemon has api.tokens\n"
    "  --ca FILE          whose certificates are trusted, default the system's store\n"
    "  --cert FILE        a client certificate, and its\n"
    "  --key FILE         key\n"
    "  --insecure         any certificate will do\n";

struct options {
    const char *url, *config, *max_lag, *task, *timeout, *token_file, *ca, *cert, *key;
    bool insecure;
};

static int unknown(const char *text)
{
    printf("UNKNOWN: %s\n", text);
    return UNKNOWN;
}

/* "5s", "500ms"; false: not a time from 1 ms to 10 min. */
static bool parse_timeout(const char *s, unsigned *ret_ms)
{
    char *end;
    double v = isdigit((unsigned char)*s) ? strtod(s, &end) : -1;

    if (v < 0)
        return false;
    if (strcmp(end, "ms") == 0)
        v /= 1000;
    else if (strcmp(end, "m") == 0)
        v *= 60;
    else if (strcmp(end, "s") != 0 && *end)
        return false;
    *ret_ms = (unsigned)(v >= 0.001 && v <= 600 ? v * 1000 : 0);
    return *ret_ms > 0;
}

/* The first line of the file. Never a symbol that would end the header. */
static char *read_token(const char *path, struct err *err)
{
    char line[MAX_TOKEN_BYTES + 2];
    FILE *f = fopen(path, "re");
    char *token = NULL;

    if (!f || !fgets(line, sizeof(line), f)) {
        err_set(err, ERR_IO, ERRC_USER, "--token-file %s cannot be read, or is empty", path);
    } else {
        line[strcspn(line, "\r\n")] = '\0';
        for (char *p = line; *p; p++)
            if (!isgraph((unsigned char)*p))
                *line = '\0';
        if (*line && strlen(line) <= MAX_TOKEN_BYTES)
            token = xstrdup(line);
        else
            err_set(err, ERR_INVALID, ERRC_USER, "--token-file %s: the first line is not a token", path);
        explicit_bzero(line, sizeof(line));
    }
    if (f)
        fclose(f);
    return token;
}

/* Where a daemon with this configuration is reached from its own machine. Caller frees. */
static char *url_of_config(const char *path, struct err *err)
{
    struct config *c = config_load(path, err);
    char *colon, *url;
    const char *host;

    if (!c)
        return NULL;
    colon = strrchr(c->address, ':');
    *colon = '\0';
    host = strcmp(c->address, "0.0.0.0") == 0 ? "127.0.0.1" : strcmp(c->address, "[::]") == 0 ? "[::1]" : c->address;
    url = xasprintf("%s://%s:%s", c->api.cert_path ? "https" : "http", host, colon + 1);
    config_free(c);
    return url;
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

static int ask(const struct options *o, const char *url, struct http_get *g)
{
    struct err err = {0};
    char *body = NULL, *path, *token = NULL;
    int status, rc;

    if (url_parse(url, &g->url, &err) || (o->token_file && !(token = read_token(o->token_file, &err))))
        return unknown(err.text);
    path = target(o);
    g->target = path;
    g->token = token;
    rc = http_get(g, &status, &body, &err);
    if (rc == 0) {
        rc = print_answer(url, status, body);
    } else if (rc == ERR_INVALID || rc == ERR_PROTO) {
        printf("UNKNOWN: %s: %s\n", url, err.text);
        rc = UNKNOWN;
    } else {
        printf("CRITICAL: milvus-cdc at %s does not answer: %s\n", url, err.text);
        rc = CRITICAL;
    }
    if (token)
        explicit_bzero(token, strlen(token));
    free(token);
    free(path);
    free(body);
    return rc;
}

/* -1: go on, else the exit code. */
static int parse_options(int argc, char **argv, struct options *o)
{
    enum { URL = 256, CONFIG, LAG, TASK, TIMEOUT, TOKEN, CA, CERT, KEY, INSECURE };
    static const struct option longs[] = {{"url", required_argument, NULL, URL},
                                          {"config", required_argument, NULL, CONFIG},
                                          {"max-lag", required_argument, NULL, LAG},
                                          {"task", required_argument, NULL, TASK},
                                          {"timeout", required_argument, NULL, TIMEOUT},
                                          {"token-file", required_argument, NULL, TOKEN},
                                          {"ca", required_argument, NULL, CA},
                                          {"cert", required_argument, NULL, CERT},
                                          {"key", required_argument, NULL, KEY},
                                          {"insecure", no_argument, NULL, INSECURE},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    const char **const texts[] = {&o->url, &o->config, &o->max_lag, &o->task, &o->timeout,
                                  &o->token_file, &o->ca, &o->cert, &o->key};
    int c;

    while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
        if (c == 'h') {
            fputs(usage, stdout);
            return OK;
        }
        if (c == '?')
            return unknown("see milvus-cdc health --help");
        if (c == INSECURE)
            o->insecure = true;
        else
            *texts[c - URL] = optarg;
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
    struct options o = {0};
    struct http_get g = {0};
    struct err err;
    char *url;
    int rc = parse_options(argc, argv, &o);

    if (rc >= 0)
        return rc;
    if (!parse_timeout(o.timeout ? o.timeout : "5s", &g.timeout_ms))
        return unknown("--timeout is not a time such as 5s or 500ms, at most 10m");
    if (!o.cert != !o.key)
        return unknown("--cert and --key belong together");
    g.ca = o.ca;
    g.cert = o.cert;
    g.key = o.key;
    g.insecure = o.insecure;
    (void)signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR); /* one line is promised: a warning about a key is the daemon's to give */
    (void)signal(SIGALRM, on_alarm);
    (void)alarm(g.timeout_ms / 1000 + 5); /* whatever blocks (a file on a dead file system) ends too */
    url = o.url ? xstrdup(o.url) : o.config ? url_of_config(o.config, &err) : xstrdup(DEFAULT_URL);
    if (!url)
        return unknown(err.text);
    rc = ask(&o, url, &g);
    free(url);
    return rc;
}
