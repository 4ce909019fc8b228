/* ask.c - the daemon that a sub-command asks. */
#include "cli/ask_priv.h"

#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "daemon/config.h"

enum { MAX_TOKEN_BYTES = 200 };

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

void ask_take_option(struct ask_options *o, int number, const char *value)
{
    const char **const texts[] = {&o->url, &o->config, &o->timeout, &o->token_file, &o->ca, &o->cert, &o->key};

    if (number == ASK_INSECURE)
        o->insecure = true;
    else
        *texts[number - ASK_URL] = value;
}

int ask_timeout(const struct ask_options *o, unsigned *ret_ms, struct err *err)
{
    if (parse_timeout(o->timeout, ret_ms))
        return 0;
    return err_set(err, ERR_INVALID, ERRC_USER, "--timeout is not a time such as 5s or 500ms, at most 10m");
}

int ask_open(const struct ask_options *o, struct asker *ret, struct err *err)
{
    struct asker a = {.get = {.ca = o->ca, .cert = o->cert, .key = o->key, .insecure = o->insecure}};

    (void)signal(SIGPIPE, SIG_IGN);
    if (ask_timeout(o, &a.get.timeout_ms, err))
        return err->code;
    if (!o->cert != !o->key)
        return err_set(err, ERR_INVALID, ERRC_USER, "--cert and --key belong together");
    a.url = o->url ? xstrdup(o->url) : o->config ? url_of_config(o->config, err) : xstrdup(ASK_DEFAULT_URL);
    if (!a.url)
        return err->code;
    if (url_parse(a.url, &a.get.url, err) || (o->token_file && !(a.token = read_token(o->token_file, err)))) {
        ask_close(&a);
        return err->code;
    }
    a.get.token = a.token;
    *ret = a;
    return 0;
}

void ask_close(struct asker *a)
{
    if (a->token)
        explicit_bzero(a->token, strlen(a->token));
    free(a->token);
    free(a->url);
    *a = (struct asker){0};
}
