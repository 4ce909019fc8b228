/* spec_pattern.c - a part of a name in a selection: a name, or the beginning of names with a `*` behind it. */
#include "base/err.h"
#include "base/mem.h"
#include "task/spec.h"
#include "task/spec_priv.h"

#include <stdlib.h>
#include <string.h>

bool spec_is_pattern(const char *text)
{
    size_t len = strlen(text);

    return len > 0 && text[len - 1] == '*';
}

bool spec_covers(const char *pattern, const char *other)
{
    if (!spec_is_pattern(pattern))
        return strcmp(pattern, other) == 0;
    return strncmp(pattern, other, strlen(pattern) - 1) == 0;
}

/* Two beginnings have all in common or nothing. */
const char *spec_meet(const char *a, const char *b)
{
    if (spec_covers(a, b))
        return b;
    return spec_covers(b, a) ? a : NULL;
}

char *spec_rename(const char *source, const char *target, const char *name)
{
    return xasprintf("%.*s%s", (int)strlen(target) - 1, target, name + strlen(source) - 1);
}

void spec_split_name(const char *full, char **ret_db, char **ret_name)
{
    const char *dot = strchr(full, '.');

    *ret_db = dot ? xstrndup(full, (size_t)(dot - full)) : xstrdup("default");
    *ret_name = xstrdup(dot ? dot + 1 : full);
}

int spec_check_pattern(const char *what, const char *text, const struct spec_limits *limits, struct err *err)
{
    const char *star = strchr(text, '*');

    if (!*text)
        return err_set(err, ERR_INVALID, ERRC_USER, "%s is empty", what);
    if (limits && strlen(text) > limits->max_name_length)
        return err_set(err, ERR_INVALID, ERRC_USER, "%s has %zu bytes, allowed are %zu: %.64s...", what, strlen(text),
                       limits->max_name_length, text);
    if (strchr(text, '.')) /* separates database and collection */
        return err_set(err, ERR_INVALID, ERRC_USER, "%s has a dot in it: %s", what, text);
    if (star && star[1])
        return err_set(err, ERR_INVALID, ERRC_USER, "%s is %s: a `*` can only stand at its end", what, text);
    return 0;
}

int spec_check_name(const char *what, const char *text, const struct spec_limits *limits, struct err *err)
{
    if (strchr(text, '*'))
        return err_set(err, ERR_INVALID, ERRC_USER, "%s is %s: a `*` cannot be in it", what, text);
    return spec_check_pattern(what, text, limits, err);
}
