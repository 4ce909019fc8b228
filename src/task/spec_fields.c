#include "task/spec_fields.h"

#include "base/err.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Where we are in the request, for the error's text. */
struct path {
    size_t len;
    char text[300];
};

static json_t *decode_value(const json_t *v, const struct field *f, struct path *at, struct err *err);

static size_t path_push(struct path *at, const char *sep, const char *name)
{
    size_t old = at->len;
    int n = snprintf(at->text + old, sizeof(at->text) - old, "%s%s", old ? sep : "", name);

    at->len = n < 0 || (size_t)n >= sizeof(at->text) - old ? sizeof(at->text) - 1 : old + (size_t)n;
    return old;
}

static void path_pop(struct path *at, size_t old)
{
    at->len = old;
    at->text[old] = '\0';
}

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

static json_t *wrong_type(const struct path *at, const char *want, const json_t *v, struct err *err)
{
    err_set(err, ERR_PROTO, ERRC_USER, "%s must be %s, not %s", at->len ? at->text : "request_data",
            want, type_name(v));
    return NULL;
}

static bool present(const json_t *v)
{
    return v && !json_is_null(v);
}

/* The exact name wins over one in another case. */
static const json_t *find(const json_t *o, const char *name)
{
    const json_t *v = json_object_get(o, name);
    const char *key;
    json_t *value;

    if (v)
        return v;
    json_object_foreach((json_t *)(uintptr_t)o, key, value)
        if (strcasecmp(key, name) == 0)
            return value;
    return NULL;
}

static json_t *decode_object(const json_t *v, const struct field *table, struct path *at,
                             struct err *err)
{
    json_t *out;

    if (present(v) && !json_is_object(v))
        return wrong_type(at, "an object", v, err);
    out = json_object();
    for (const struct field *f = table; f->name && present(v); f++) {
        const json_t *value = find(v, f->name);
        json_t *decoded;
        size_t old;

        if (!present(value))
            continue;
        old = path_push(at, ".", f->name);
        decoded = decode_value(value, f, at, err);
        path_pop(at, old);
        if (!decoded) {
            json_decref(out);
            return NULL;
        }
        json_object_set_new(out, f->name, decoded);
    }
    return out;
}

/* Each element is of the kind of f. */
static json_t *decode_list(const json_t *v, const struct field *f, struct path *at, struct err *err)
{
    json_t *out;

    if (!json_is_array(v))
        return wrong_type(at, "an array", v, err);
    out = json_array();
    for (size_t i = 0; i < json_array_size(v); i++) {
        char index[32];
        json_t *element;
        size_t old;

        snprintf(index, sizeof(index), "[%zu]", i);
        old = path_push(at, "", index);
        element = decode_value(json_array_get(v, i), f, at, err);
        path_pop(at, old);
        if (!element) {
            json_decref(out);
            return NULL;
        }
        json_array_append_new(out, element);
    }
    return out;
}

static json_t *decode_map(const json_t *v, const struct field *f, struct path *at, struct err *err)
{
    const struct field element = {
        .kind = f->kind == FIELD_STRING_MAP ? FIELD_STRING : FIELD_LIST, .sub = f->sub};
    json_t *out, *value;
    const char *key;

    if (!json_is_object(v))
        return wrong_type(at, "an object", v, err);
    out = json_object();
    json_object_foreach((json_t *)(uintptr_t)v, key, value) {
        size_t old = path_push(at, ".", key);
        json_t *decoded;

        if (present(value))
            decoded = decode_value(value, &element, at, err);
        else
            decoded = f->kind == FIELD_STRING_MAP ? json_string("") : json_array();
        path_pop(at, old);
        if (!decoded) {
            json_decref(out);
            return NULL;
        }
        json_object_set_new(out, key, decoded);
    }
    return out;
}

static json_t *decode_int(const json_t *v, struct path *at, struct err *err)
{
    const double limit = 9007199254740992.0; /* 2^53: integers are exact below */
    double d;

    if (json_is_integer(v))
        return json_integer(json_integer_value(v));
    if (!json_is_real(v))
        return wrong_type(at, "an integer", v, err);
    d = json_real_value(v);
    if (d <= -limit || d >= limit || (double)(json_int_t)d != d) {
        err_set(err, ERR_PROTO, ERRC_USER, "%s must be an integer", at->text);
        return NULL;
    }
    return json_integer((json_int_t)d);
}

static json_t *decode_value(const json_t *v, const struct field *f, struct path *at, struct err *err)
{
    switch (f->kind) {
    case FIELD_STRING:
        return json_is_string(v) ? json_string(json_string_value(v))
                                 : wrong_type(at, "a string", v, err);
    case FIELD_INT:
        return decode_int(v, at, err);
    case FIELD_BOOL:
        return json_is_boolean(v) ? json_boolean(json_is_true(v))
                                  : wrong_type(at, "a boolean", v, err);
    case FIELD_OBJECT:
        if (f->sub || !json_is_object(v))
            return decode_object(v, f->sub, at, err);
        return json_copy((json_t *)(uintptr_t)v);
    case FIELD_LIST:
        return decode_list(v, &(struct field){.kind = FIELD_OBJECT, .sub = f->sub}, at, err);
    case FIELD_STRINGS:
        return decode_list(v, &(struct field){.kind = FIELD_STRING}, at, err);
    case FIELD_STRING_MAP:
    case FIELD_LIST_MAP:
        return decode_map(v, f, at, err);
    case FIELD_ANY:
        return json_incref((json_t *)(uintptr_t)v);
    }
    return NULL;
}

json_t *fields_decode(const json_t *value, const struct field *table, struct err *err)
{
    struct path at = {0};

    return decode_object(value, table, &at, err);
}

const char *field_str(const json_t *o, const char *name)
{
    const char *s = json_string_value(json_object_get(o, name));

    return s ? s : "";
}

json_int_t field_int(const json_t *o, const char *name)
{
    return json_integer_value(json_object_get(o, name));
}

bool field_bool(const json_t *o, const char *name)
{
    return json_is_true(json_object_get(o, name));
}
