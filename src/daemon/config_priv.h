/*
 * config_priv.h - the parts of config: the table of keys (config_table), values (config_value), checks of the whole
 * (config_check), the file itself (config).
 */
#ifndef DAEMON_CONFIG_PRIV_H
#define DAEMON_CONFIG_PRIV_H
#include <stddef.h>
#include <yaml.h>

#include "base/err.h"
#include "daemon/config.h"

enum { CONFIG_KEYS_MAX = 200, CONFIG_MAX_BYTES = 1 << 20 /* of the file */ };

enum key_type {
    KEY_TEXT,
    KEY_SECRET,  /* text, never printed */
    KEY_ADDRESS, /* host:port to listen on */
    KEY_LIST,    /* of texts; a single text with commas is a list too */
    KEY_INT,
    KEY_MS,      /* milliseconds */
    KEY_SECONDS, /* kept as milliseconds; 0: the default */
    KEY_BYTES,   /* with KiB, MiB, GiB or without */
    KEY_BOOL,
    KEY_LOG_LEVEL,
    KEY_TLS_VERSION,
    KEY_REGISTRY_TYPE,
    KEY_TOKENS,  /* list of {name, sha256} */
    KEY_MAP,     /* section of any texts, which may be secrets: name, value, ..., NULL */
    KEY_REFUSED, /* note says why; false and empty are let pass */
    KEY_UNUSED,  /* known, of any type, without meaning here; note says why or what instead */
};

struct key {
    const char *name;
    enum key_type type;
    size_t offset;
    int64_t min, max;         /* of numbers, in the unit of the file */
    const char *default_text; /* as in the file; NULL: none */
    const char *note;
    const char *newer; /* this is an old form of that key, which wins */
    bool live;         /* may change while running */
};

extern const struct key config_keys[];
extern const int config_n_keys;

/* One run over a file. */
struct loader {
    const char *file;
    struct config *config;
    struct err *err;
    yaml_document_t *doc;
    size_t lines[CONFIG_KEYS_MAX]; /* where a key stands, 0: not in the file */
    bool given[CONFIG_KEYS_MAX];   /* with a value */
};

/* -1: no such key. */
int config_find_key(const char *name);
void *config_member(struct loader *ld, const struct key *k);
size_t config_line_of(const yaml_node_t *n);
/* "file:line: key: what is wrong". Returns code. */
int config_wrong(struct loader *ld, enum err_code code, size_t line, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
void config_warn(const struct loader *ld, size_t line, const char *name, const char *why);

/* NULL for maps and lists. */
const char *config_scalar(const yaml_node_t *n);
bool config_is_empty(const yaml_node_t *n);
/* 0, or an error that says what is allowed. */
int config_set_value(struct loader *ld, const struct key *k, const yaml_node_t *n);
void config_free_texts(char **list);
void config_free_tokens(struct config_api *a);

int config_check_all(struct loader *ld);
#endif
