/*
 * ask_priv.h - what all sub-commands that ask a daemon share: where it is, and how to log in.
 */
#ifndef CLI_ASK_PRIV_H
#define CLI_ASK_PRIV_H
#include <getopt.h>

#include "cli/http_get_priv.h"

struct ask_options {
    const char *url, *config, *timeout, *token_file, *ca, *cert, *key;
    bool insecure;
};

/* Rows of a table for getopt_long(); own options have numbers from ASK_OPTIONS_END on. */
enum { ASK_URL = 256, ASK_CONFIG, ASK_TIMEOUT, ASK_TOKEN, ASK_CA, ASK_CERT, ASK_KEY, ASK_INSECURE, ASK_OPTIONS_END };
#define ASK_OPTIONS                                                                                                  \
    {"url", required_argument, NULL, ASK_URL}, {"config", required_argument, NULL, ASK_CONFIG},                       \
        {"timeout", required_argument, NULL, ASK_TIMEOUT}, {"token-file", required_argument, NULL, ASK_TOKEN},        \
        {"ca", required_argument, NULL, ASK_CA}, {"cert", required_argument, NULL, ASK_CERT},                         \
        {"key", required_argument, NULL, ASK_KEY}, {"insecure", no_argument, NULL, ASK_INSECURE}
void ask_take_option(struct ask_options *o, int number, const char *value);

#define ASK_DEFAULT_URL "http://127.0.0.1:8444"
#define ASK_USAGE_DAEMON                                                                                             \
    "  --url URL          the daemon, default " ASK_DEFAULT_URL ", or from --config\n"                                \
    "  --config FILE      takes address, and whether it has TLS, from the daemon's configuration\n"
#define ASK_USAGE_LOGIN                                                                                              \
    "  --token-file FILE  holds the token, if the daemon has api.tokens\n"                                           \
    "  --ca FILE          whose certificates are trusted, default the system's store\n"                              \
    "  --cert FILE        a client certificate, and its\n"                                                           \
    "  --key FILE         key\n"                                                                                     \
    "  --insecure         any certificate will do\n"

/* A daemon that can be asked: target (and body) of get are the caller's. */
struct asker {
    struct http_get get;
    char *url, *token;
};

/* o->timeout, which is set. ERR_INVALID. */
int ask_timeout(const struct ask_options *o, unsigned *ret_ms, struct err *err);
/* Reads the files that the options name. ERR_INVALID, ERR_IO, or what the configuration has. */
int ask_open(const struct ask_options *o, struct asker *ret, struct err *err);
void ask_close(struct asker *a);
#endif
