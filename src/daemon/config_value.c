/*
 * config_value.c - from the text of a value to the member of struct config, or to an error that says what is allowed.
 */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hex.h"
#include "base/mem.h"
#include "daemon/config_priv.h"

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

size_t config_line_of(const yaml_node_t *n)
{
    return n->start_mark.line + 1;
}

int config_wrong(struct loader *ld, enum err_code code, size_t line, const char *name,
                 const char *fmt, ...)
{
    char text[sizeof(ld->err->text)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(ld->err, code, ERRC_USER, "%s:%zu: %s: %s", ld->file, line, name, text);
}

void config_warn(const struct loader *ld, size_t line, const char *name, const char *why)
{
    log_warn("config", why, KS("key", name), KS("file", ld->file), KU("line", line));
}

void *config_member(struct loader *ld, const struct key *k)
{
    return (char *)ld->config + k->offset;
}

/* ---- values */

/* NULL for maps and lists. */
const char *config_scalar(const yaml_node_t *n)
{
    return n->type == YAML_SCALAR_NODE ? (const char *)n->data.scalar.value : NULL;
}

/* Null in YAML, or "" as the Go templates have it. */
bool config_is_empty(const yaml_node_t *n)
{
    const char *s = config_scalar(n);

    if (!s)
        return (n->type == YAML_SEQUENCE_NODE &&
                n->data.sequence.items.start == n->data.sequence.items.top) ||
               (n->type == YAML_MAPPING_NODE &&
                n->data.mapping.pairs.start == n->data.mapping.pairs.top);
    if (n->data.scalar.length == 0)
        return true;
    return n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (strcmp(s, "~") == 0 || strcasecmp(s, "null") == 0);
}

void config_free_texts(char **list)
{
    for (char **s = list; s && *s; s++)
        free(*s);
    free(list);
}

static bool parse_bool(const char *s, bool *ret)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on"};

    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
        if (strcasecmp(s, words[i]) == 0) {
            *ret = i % 2;
            return true;
        }
    }
    return false;
}

/* Digits with a sign; *ret_end is what follows. */
static bool parse_int(const char *s, int64_t *ret, const char **ret_end)
{
    char *end;
    long long v;

    if (!isdigit((unsigned char)s[*s == '-' || *s == '+']))
        return false;
    errno = 0;
    v = strtoll(s, &end, 10);
    if (errno)
        return false;
    *ret = v;
    *ret_end = end;
    return true;
}

static int set_int(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    const char *unit = k->type == KEY_MS ? " ms" : k->type == KEY_SECONDS ? " s" : "";
    const char *end;
    int64_t v;

    if (!parse_int(s, &v, &end) || *end || v < k->min || v > k->max)
        return config_wrong(ld, ERR_INVALID, line, k->name,
                     "\"%.100s\" is not a whole number from %" PRId64 " to %" PRId64 "%s", s,
                     k->min, k->max, unit);
    if (k->type != KEY_SECONDS)
        *(int64_t *)config_member(ld, k) = v;
    else if (v)
        *(uint64_t *)config_member(ld, k) = (uint64_t)v * 1000;
    return 0;
}

static bool parse_bytes(const char *s, int64_t *ret)
{
    static const struct {
        const char *suffix;
        int64_t factor;
    } units[] = {{"", 1}, {"B", 1}, {"KiB", KIB}, {"MiB", MIB}, {"GiB", GIB}};
    const char *end;
    int64_t v;

    if (!parse_int(s, &v, &end))
        return false;
    end += strspn(end, " ");
    for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++) {
        if (strcasecmp(end, units[i].suffix) == 0)
            return !__builtin_mul_overflow(v, units[i].factor, ret);
    }
    return false;
}

static int set_bytes(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    int64_t v;

    if (!parse_bytes(s, &v) || v < k->min || v > k->max)
        return config_wrong(ld, ERR_INVALID, line, k->name,
                     "\"%.100s\" is not a size from %" PRId64 "KiB to %" PRId64
                     "MiB (a whole number of bytes, or with KiB, MiB, GiB)",
                     s, k->min / KIB, k->max / MIB);
    *(uint64_t *)config_member(ld, k) = (uint64_t)v;
    return 0;
}

static int set_bool(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    if (!parse_bool(s, config_member(ld, k)))
        return config_wrong(ld, ERR_INVALID, line, k->name, "\"%.100s\" is not true or false", s);
    return 0;
}

static int set_log_level(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    if (!log_level_parse(s, config_member(ld, k)))
        return config_wrong(ld, ERR_INVALID, line, k->name,
                     "\"%.100s\" is not one of debug, info, warn, error", s);
    return 0;
}

static int set_tls_version(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    if (strlen(s) != 3 || strncmp(s, "1.", 2) != 0 || s[2] < '0' || s[2] > '3')
        return config_wrong(ld, ERR_INVALID, line, k->name, "\"%.100s\" is not one of 1.0, 1.1, 1.2, 1.3",
                     s);
    *(int *)config_member(ld, k) = 10 + (s[2] - '0');
    return 0;
}

static int set_registry_type(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    static const char *const types[] = {"sqlite", "postgresql"};

    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        if (strcasecmp(s, types[i]) != 0)
            continue;
        set_text(config_member(ld, k), types[i]);
        return 0;
    }
    return config_wrong(ld, ERR_INVALID, line, k->name, "\"%.100s\" is not one of sqlite, postgresql", s);
}

/* host:port, [v6]:port or :port */
static bool address_ok(const char *s)
{
    const char *colon = strrchr(s, ':');
    const char *end;
    int64_t port;

    if (!colon || !isdigit((unsigned char)colon[1]) || !parse_int(colon + 1, &port, &end) || *end ||
        port > 65535 || strpbrk(s, " /"))
        return false;
    if (*s == '[')
        return colon - s > 2 && colon[-1] == ']';
    return memchr(s, ':', (size_t)(colon - s)) == NULL;
}

static int set_address(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    char **at = config_member(ld, k);

    if (!address_ok(s))
        return config_wrong(
            ld, ERR_INVALID, line, k->name,
            "\"%.100s\" is not host:port, such as 0.0.0.0:8444 or [::1]:8444 (port 0 to 65535)", s);
    free(*at);
    *at = *s == ':' ? xasprintf("0.0.0.0%s", s) : xstrdup(s);
    return 0;
}

/* Appends the texts of s, separated by commas. */
static int add_items(struct loader *ld, const struct key *k, const char *s, size_t line,
                     char ***list, size_t *n)
{
    for (;;) {
        size_t len;

        s += strspn(s, " \t");
        len = strcspn(s, ",");
        while (len && isspace((unsigned char)s[len - 1]))
            len--;
        if (len == 0)
            return config_wrong(ld, ERR_INVALID, line, k->name,
                         "an address is empty: give host:port of each");
        if (memchr(s, '@', len)) /* not printed: has a password in it */
            return config_wrong(
                ld, ERR_INVALID, line, k->name,
                "user and password do not belong in an address: set username and password");
        *list = xrealloc(*list, (*n + 2) * sizeof(**list));
        (*list)[(*n)++] = xstrndup(s, len);
        (*list)[*n] = NULL;
        s += strcspn(s, ",");
        if (!*s++)
            return 0;
    }
}

static int set_list(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    char ***at = config_member(ld, k);
    char **list = NULL;
    size_t count = 0;
    int rc = 0;

    if (config_scalar(n))
        rc = add_items(ld, k, config_scalar(n), config_line_of(n), &list, &count);
    else if (n->type != YAML_SEQUENCE_NODE)
        rc = config_wrong(ld, ERR_INVALID, config_line_of(n), k->name, "must be a list of texts");
    else
        for (yaml_node_item_t *i = n->data.sequence.items.start;
             i < n->data.sequence.items.top && !rc; i++) {
            const yaml_node_t *item = yaml_document_get_node(ld->doc, *i);

            if (config_scalar(item))
                rc = add_items(ld, k, config_scalar(item), config_line_of(item), &list, &count);
            else
                rc = config_wrong(ld, ERR_INVALID, config_line_of(item), k->name, "must be a list of texts");
        }
    if (rc) {
        config_free_texts(list);
        return rc;
    }
    config_free_texts(*at);
    *at = list;
    return 0;
}

static int set_map(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    char **list = NULL;
    size_t count = 0;

    if (n->type != YAML_MAPPING_NODE)
        return config_wrong(ld, ERR_INVALID, config_line_of(n), k->name, "must be a section (keys below it), not a value");
    for (const yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = yaml_document_get_node(ld->doc, p->key);
        const yaml_node_t *value = yaml_document_get_node(ld->doc, p->value);

        if (!config_scalar(key) || !config_scalar(value)) {
            config_free_texts(list);
            return config_wrong(ld, ERR_INVALID, config_line_of(key), k->name, "must hold names with single values");
        }
        list = xrealloc(list, (count + 3) * sizeof(*list));
        list[count++] = xstrdup(config_scalar(key));
        list[count++] = xstrdup(config_scalar(value));
        list[count] = NULL;
    }
    config_free_texts(*(char ***)config_member(ld, k));
    *(char ***)config_member(ld, k) = list;
    return 0;
}

void config_free_tokens(struct config_api *a)
{
    for (size_t i = 0; i < a->n_tokens; i++)
        free(a->tokens[i].name);
    free(a->tokens);
    a->tokens = NULL;
    a->n_tokens = 0;
}

/* Exactly n bytes. */
static bool parse_hex(const char *s, uint8_t *ret, size_t n)
{
    if (strlen(s) != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        int high = hex_digit(s[2 * i]), low = hex_digit(s[2 * i + 1]);

        if (high < 0 || low < 0)
            return false;
        ret[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* The values are not printed: somebody may have put the token itself there. */
static int add_token(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    struct config_api *a = &ld->config->api;
    const char *name = NULL, *hash = NULL;
    struct config_token t;

    if (n->type != YAML_MAPPING_NODE)
        return config_wrong(ld, ERR_INVALID, config_line_of(n), k->name, "each entry must be {name: NAME, sha256: HEX}");
    for (const yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
        const char *key = config_scalar(yaml_document_get_node(ld->doc, p->key));
        const char *value = config_scalar(yaml_document_get_node(ld->doc, p->value));

        if (key && value && strcasecmp(key, "name") == 0)
            name = value;
        else if (key && value && strcasecmp(key, "sha256") == 0)
            hash = value;
        else
            return config_wrong(ld, ERR_INVALID, config_line_of(n), k->name, "an entry has name and sha256, nothing else");
    }
    if (!name || !*name || !hash || !parse_hex(hash, t.sha256, sizeof(t.sha256)))
        return config_wrong(ld, ERR_INVALID, config_line_of(n), k->name,
                     "an entry needs a name, and in sha256 the 64 hexadecimal digits that \"milvus-cdc token\" prints");
    t.name = xstrdup(name);
    a->tokens = xrealloc(a->tokens, (a->n_tokens + 1) * sizeof(*a->tokens));
    a->tokens[a->n_tokens++] = t;
    return 0;
}

static int set_tokens(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    int rc = 0;

    if (n->type != YAML_SEQUENCE_NODE)
        return config_wrong(ld, ERR_INVALID, config_line_of(n), k->name, "must be a list of {name: NAME, sha256: HEX}");
    for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top && !rc; i++)
        rc = add_token(ld, k, yaml_document_get_node(ld->doc, *i));
    return rc;
}

static int refuse(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    bool on;

    if (parse_bool(s, &on) && !on)
        return 0;
    return config_wrong(ld, ERR_UNSUPPORTED, line, k->name, "%s", k->note);
}

static int set_scalar(struct loader *ld, const struct key *k, const char *s, size_t line)
{
    switch (k->type) {
    case KEY_TEXT:
    case KEY_SECRET:
        set_text(config_member(ld, k), s);
        return 0;
    case KEY_ADDRESS:
        return set_address(ld, k, s, line);
    case KEY_INT:
    case KEY_MS:
    case KEY_SECONDS:
        return set_int(ld, k, s, line);
    case KEY_BYTES:
        return set_bytes(ld, k, s, line);
    case KEY_BOOL:
        return set_bool(ld, k, s, line);
    case KEY_LOG_LEVEL:
        return set_log_level(ld, k, s, line);
    case KEY_TLS_VERSION:
        return set_tls_version(ld, k, s, line);
    case KEY_REGISTRY_TYPE:
        return set_registry_type(ld, k, s, line);
    case KEY_REFUSED:
        return refuse(ld, k, s, line);
    case KEY_LIST:
    case KEY_TOKENS:
    case KEY_MAP:
    case KEY_UNUSED:
        break;
    }
    abort();
}

int config_set_value(struct loader *ld, const struct key *k, const yaml_node_t *n)
{
    if (k->type == KEY_LIST)
        return set_list(ld, k, n);
    if (k->type == KEY_MAP)
        return set_map(ld, k, n);
    if (k->type == KEY_TOKENS)
        return set_tokens(ld, k, n);
    if (!config_scalar(n))
        return config_wrong(ld, ERR_INVALID, config_line_of(n), k->name, "must be a single value, not a %s",
                     n->type == YAML_SEQUENCE_NODE ? "list" : "section");
    return set_scalar(ld, k, config_scalar(n), config_line_of(n));
}
