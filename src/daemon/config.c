/*
 * config.c - the file: read, freed, and applied while running.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "daemon/config_priv.h"

enum { MAX_PATH_CHARS = 200 };

static bool is_section(const char *name)
{
    size_t len = strlen(name);

    for (int i = 0; i < config_n_keys; i++) {
        if (strncasecmp(config_keys[i].name, name, len) == 0 && config_keys[i].name[len] == '.')
            return true;
    }
    return false;
}

/* ---- keys */

/* Marks the key as read. ERR_INVALID: it was there before, in another spelling maybe. */
static int note_line(struct loader *ld, int i, size_t line)
{
    if (ld->lines[i])
        return config_wrong(ld, ERR_INVALID, line, config_keys[i].name, "is given twice, first in line %zu",
                     ld->lines[i]);
    ld->lines[i] = line;
    return 0;
}

static int take_key(struct loader *ld, int i, size_t line, const yaml_node_t *n)
{
    const struct key *k = &config_keys[i];

    if (note_line(ld, i, line))
        return ERR_INVALID;
    if (config_is_empty(n))
        return 0;
    ld->given[i] = true;
    if (k->type == KEY_UNUSED) {
        char *why = xasprintf("%s is not used: %s", k->name, k->note);

        config_warn(ld, line, k->name, why);
        free(why);
        return 0;
    }
    if (k->newer) {
        int newer = config_find_key(k->newer);

        if (ld->given[newer]) {
            config_warn(ld, line, k->name, "old form of a key that is given too: not used");
            return 0;
        }
    }
    return config_set_value(ld, k, n);
}

static int take_map(struct loader *ld, const char *prefix, const yaml_node_t *map, bool old_forms);

static int take_section(struct loader *ld, const char *name, size_t line, const yaml_node_t *n,
                        bool old_forms)
{
    if (n->type != YAML_MAPPING_NODE && !config_is_empty(n))
        return config_wrong(ld, ERR_INVALID, line, name, "must be a section (keys below it), not a value");
    return n->type == YAML_MAPPING_NODE ? take_map(ld, name, n, old_forms) : 0;
}

/* The same key of a map twice: YAML forbids it, but libyaml does not look. */
static int check_duplicate(struct loader *ld, const yaml_node_t *map, const yaml_node_pair_t *pair,
                           const char *name)
{
    const yaml_node_t *key = yaml_document_get_node(ld->doc, pair->key);

    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < pair; p++) {
        const yaml_node_t *other = yaml_document_get_node(ld->doc, p->key);

        if (config_scalar(other) && strcasecmp(config_scalar(other), config_scalar(key)) == 0)
            return config_wrong(ld, ERR_INVALID, config_line_of(key), name, "is given twice, first in line %zu",
                         config_line_of(other));
    }
    return 0;
}

static int take_pair(struct loader *ld, const char *prefix, const yaml_node_t *map,
                     const yaml_node_pair_t *pair, bool old_forms)
{
    const yaml_node_t *key = yaml_document_get_node(ld->doc, pair->key);
    const yaml_node_t *value = yaml_document_get_node(ld->doc, pair->value);
    char name[MAX_PATH_CHARS];
    int i;

    if (!config_scalar(key))
        return config_wrong(ld, ERR_INVALID, config_line_of(key), *prefix ? prefix : "top level",
                     "a key must be text");
    snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "." : "", config_scalar(key));
    if (strcmp(config_scalar(key), "<<") == 0)
        return config_wrong(ld, ERR_UNSUPPORTED, config_line_of(key), name,
                     "merging of sections is not supported");
    i = config_find_key(name);
    if (i < 0 && is_section(name))
        return check_duplicate(ld, map, pair, name)
                   ? ERR_INVALID
                   : take_section(ld, name, config_line_of(key), value, old_forms);
    if (i >= 0)
        return old_forms == (config_keys[i].newer != NULL) ? take_key(ld, i, config_line_of(key), value) : 0;
    if (!old_forms)
        config_warn(ld, config_line_of(key), name, "unknown key: not used");
    return 0;
}

static int take_map(struct loader *ld, const char *prefix, const yaml_node_t *map, bool old_forms)
{
    int rc = 0;

    for (yaml_node_pair_t *p = map->data.mapping.pairs.start;
         p < map->data.mapping.pairs.top && !rc; p++)
        rc = take_pair(ld, prefix, map, p, old_forms);
    return rc;
}

/* ---- the file */

static void set_defaults(struct loader *ld)
{
    static const yaml_node_t proto = {.type = YAML_SCALAR_NODE};

    for (int i = 0; i < config_n_keys; i++) {
        yaml_node_t n = proto;
        int rc;

        if (!config_keys[i].default_text || config_keys[i].type == KEY_REFUSED)
            continue;
        n.data.scalar.value = (yaml_char_t *)config_keys[i].default_text;
        n.data.scalar.length = strlen(config_keys[i].default_text);
        rc = config_set_value(ld, &config_keys[i], &n);
        if (rc) /* a bug of the table */
            abort();
    }
}

static int yaml_error(struct loader *ld, const yaml_parser_t *p)
{
    if (p->error == YAML_MEMORY_ERROR)
        return err_set(ld->err, ERR_LIMIT, ERRC_USER, "%s: not enough memory", ld->file);
    if (p->error == YAML_READER_ERROR)
        return err_set(ld->err, ERR_PROTO, ERRC_USER, "%s: not text: %s at byte %zu", ld->file,
                       p->problem, p->problem_offset);
    return err_set(ld->err, ERR_PROTO, ERRC_USER, "%s:%zu: not YAML: %s%s%s", ld->file,
                   p->problem_mark.line + 1, p->problem, p->context ? " " : "",
                   p->context ? p->context : "");
}

static int take_document(struct loader *ld)
{
    const yaml_node_t *root = yaml_document_get_root_node(ld->doc);
    int rc = 0;

    if (root && root->type != YAML_MAPPING_NODE && !config_is_empty(root))
        return config_wrong(ld, ERR_INVALID, config_line_of(root), "top level", "must be keys and values");
    /* Twice: an old form counts only where the new one is not given, whatever comes first. */
    if (root && root->type == YAML_MAPPING_NODE) {
        rc = take_map(ld, "", root, false);
        if (!rc)
            rc = take_map(ld, "", root, true);
    }
    return rc ? rc : config_check_all(ld);
}

/* A second document would be lost. */
static int check_single(struct loader *ld, yaml_parser_t *p)
{
    yaml_document_t next;
    const yaml_node_t *root;
    int rc = 0;

    if (!yaml_parser_load(p, &next))
        return yaml_error(ld, p);
    root = yaml_document_get_root_node(&next);
    if (root)
        rc = config_wrong(ld, ERR_INVALID, config_line_of(root), "top level", "a second document is not allowed");
    yaml_document_delete(&next);
    return rc;
}

static int parse(struct loader *ld, FILE *f)
{
    yaml_document_t doc;
    yaml_parser_t p;
    int rc;

    if (!yaml_parser_initialize(&p))
        return err_set(ld->err, ERR_LIMIT, ERRC_USER, "%s: not enough memory", ld->file);
    yaml_parser_set_input_file(&p, f);
    if (!yaml_parser_load(&p, &doc)) {
        rc = yaml_error(ld, &p);
    } else {
        bool empty = !yaml_document_get_root_node(&doc);

        ld->doc = &doc;
        rc = take_document(ld);
        if (!rc && !empty)
            rc = check_single(ld, &p);
        yaml_document_delete(&doc);
    }
    yaml_parser_delete(&p);
    return rc;
}

static int open_file(struct loader *ld, FILE **ret)
{
    FILE *f = fopen(ld->file, "re");
    struct stat st;
    int rc = 0;

    if (!f || fstat(fileno(f), &st) < 0)
        rc = err_set(ld->err, ERR_IO, ERRC_USER, "%s: cannot be read: %s", ld->file,
                     strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc =
            err_set(ld->err, ERR_IO, ERRC_USER, "%s: cannot be read: not a regular file", ld->file);
    else if (st.st_size > CONFIG_MAX_BYTES)
        rc = err_set(ld->err, ERR_IO, ERRC_USER, "%s: is larger than %d bytes", ld->file,
                     CONFIG_MAX_BYTES);
    if (rc == 0)
        *ret = f;
    else if (f)
        fclose(f);
    return rc;
}

struct config *config_load(const char *path, struct err *err)
{
    struct loader ld = {.file = path, .err = err};
    FILE *f = NULL;

    if (open_file(&ld, &f))
        return NULL;
    ld.config = xcalloc(1, sizeof(*ld.config));
    set_defaults(&ld);
    if (parse(&ld, f)) {
        config_free(ld.config);
        ld.config = NULL;
    }
    fclose(f);
    return ld.config;
}

/* Keys with an old form share a member: each is freed by its new one. */
void config_free(struct config *c)
{
    if (!c)
        return;
    for (const struct key *k = config_keys; k < config_keys + config_n_keys; k++) {
        void *at = (char *)c + k->offset;

        if (k->newer)
            continue;
        if (k->type == KEY_SECRET && *(char **)at)
            explicit_bzero(*(char **)at, strlen(*(char **)at));
        if (k->type == KEY_LIST || k->type == KEY_MAP)
            config_free_texts(*(char ***)at);
        else if (k->type == KEY_TEXT || k->type == KEY_SECRET || k->type == KEY_ADDRESS ||
                 k->type == KEY_REGISTRY_TYPE)
            free(*(char **)at);
    }
    config_free_tokens(&c->api);
    if (c->pulsar.auth_token)
        explicit_bzero(c->pulsar.auth_token, strlen(c->pulsar.auth_token));
    free(c->pulsar.auth_token);
    free(c);
}

/* ---- reload */

static bool same_texts(char **a, char **b)
{
    size_t i;

    for (i = 0; a && b && a[i] && b[i]; i++)
        if (strcmp(a[i], b[i]) != 0)
            return false;
    return !(a && a[i]) == !(b && b[i]);
}

static size_t value_size(enum key_type type)
{
    switch (type) {
    case KEY_INT:
    case KEY_MS:
    case KEY_SECONDS:
    case KEY_BYTES:
        return sizeof(int64_t);
    case KEY_BOOL:
        return sizeof(bool);
    case KEY_LOG_LEVEL:
        return sizeof(enum log_level);
    case KEY_TLS_VERSION:
        return sizeof(int);
    case KEY_REFUSED:
    case KEY_UNUSED:
        return 0;
    default:
        return sizeof(char *);
    }
}

static bool same_value(enum key_type type, void *a, void *b)
{
    switch (type) {
    case KEY_LIST:
    case KEY_MAP:
        return same_texts(*(char ***)a, *(char ***)b);
    case KEY_TEXT:
    case KEY_SECRET:
    case KEY_ADDRESS:
    case KEY_REGISTRY_TYPE:
        return !*(char **)a == !*(char **)b && (!*(char **)a || strcmp(*(char **)a, *(char **)b) == 0);
    default:
        return memcmp(a, b, value_size(type)) == 0;
    }
}

static void swap(void *a, void *b, size_t n)
{
    char keep[sizeof(int64_t)];

    memcpy(keep, a, n);
    memcpy(a, b, n);
    memcpy(b, keep, n);
}

void config_apply(struct config *running, struct config *fresh, void (*needs_restart)(const char *key))
{
    for (const struct key *k = config_keys; k < config_keys + config_n_keys; k++) {
        void *a = (char *)running + k->offset, *b = (char *)fresh + k->offset;

        if (k->newer)
            continue;
        if (k->live)
            swap(a, b, value_size(k->type));
        else if (!same_value(k->type, a, b))
            needs_restart(k->name);
    }
    swap(&running->api.n_tokens, &fresh->api.n_tokens, sizeof(size_t)); /* of api.tokens */
}
