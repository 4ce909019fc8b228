/* json_hash.c - a hash of what a JSON text means: the order of an object's names, white space and escapes do not matter. */
#include "repl/row_hash_parts_priv.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

enum { MAX_DEPTH = 200 };

static struct row_hash hash_value(const json_t *v, unsigned depth);

static struct row_hash hash_tagged(char tag, const void *data, size_t len)
{
    struct pb_out o = {0};
    struct row_hash h;

    pb_out_raw(&o, &tag, 1);
    pb_out_raw(&o, data, len);
    h = row_hash_bytes(o.data, o.len);
    pb_out_release(&o);
    return h;
}

/* 1 and 1.0 are one number. */
static struct row_hash hash_number(const json_t *v)
{
    double d = json_number_value(v);
    int64_t n;

    if (json_is_integer(v))
        n = json_integer_value(v);
    else if (d == floor(d) && fabs(d) < 9007199254740992.0) /* 2^53 */
        n = (int64_t)d;
    else
        return hash_tagged('d', &d, sizeof(d));
    return hash_tagged('i', &n, sizeof(n));
}

static struct row_hash hash_array(const json_t *v, unsigned depth)
{
    struct pb_out o = {0};
    struct row_hash h;
    const json_t *e;
    size_t i;

    json_array_foreach(v, i, e) {
        h = hash_value(e, depth);
        pb_out_raw(&o, &h, sizeof(h));
    }
    h = hash_tagged('a', o.data, o.len);
    pb_out_release(&o);
    return h;
}

/* A sum: in any order. */
static struct row_hash hash_object(const json_t *v, unsigned depth)
{
    struct row_hash sum = {0}, one[2];
    const char *name;
    json_t *e;

    json_object_foreach((json_t *)(uintptr_t)v, name, e) {
        one[0] = hash_tagged('s', name, strlen(name));
        one[1] = hash_value(e, depth);
        row_hash_add(&sum, hash_tagged('m', one, sizeof(one)));
    }
    return hash_tagged('o', &sum, sizeof(sum));
}

static struct row_hash hash_value(const json_t *v, unsigned depth)
{
    if (depth > MAX_DEPTH)
        return hash_tagged('x', NULL, 0);
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return hash_object(v, depth + 1);
    case JSON_ARRAY:
        return hash_array(v, depth + 1);
    case JSON_STRING:
        return hash_tagged('s', json_string_value(v), json_string_length(v));
    case JSON_INTEGER:
    case JSON_REAL:
        return hash_number(v);
    case JSON_TRUE:
        return hash_tagged('t', NULL, 0);
    case JSON_FALSE:
        return hash_tagged('f', NULL, 0);
    case JSON_NULL:
        break;
    }
    return hash_tagged('n', NULL, 0);
}

bool row_hash_json(const uint8_t *text, size_t len, struct row_hash *ret)
{
    json_t *v = json_loadb((const char *)text, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    bool empty = json_is_object(v) && json_object_size(v) == 0;

    /* what the parser does not take (numbers of more than 64 bits) is compared as it is written */
    *ret = v ? hash_value(v, 0) : hash_tagged('r', text, len);
    json_decref(v);
    return !empty;
}
