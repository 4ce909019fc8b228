/*
 * spec_fields.h - JSON objects of a request, checked against a table of fields.
 *
 * The rules of the Go implementation (control-api.md 1): names match without regard to case,
 * unknown names are ignored, types are strict, null is the same as absent.
 */
#ifndef TASK_SPEC_FIELDS_H
#define TASK_SPEC_FIELDS_H
#include <stdbool.h>
#include <jansson.h>

struct err;

enum field_kind {
    FIELD_STRING,
    FIELD_INT,        /* also 5.0 */
    FIELD_BOOL,
    FIELD_OBJECT,     /* with the fields of sub; sub NULL: anything */
    FIELD_LIST,       /* array of objects with the fields of sub */
    FIELD_STRINGS,    /* array of strings */
    FIELD_STRING_MAP, /* object of strings */
    FIELD_LIST_MAP,   /* object of FIELD_LISTs */
    FIELD_ANY,        /* whatever it is */
};

struct field { /* a table ends with a NULL name */
    const char *name;
    enum field_kind kind;
    const struct field *sub;
};

/*
 * A new object with the fields of the table under the names of the table; absent ones are left out.
 * value NULL or null is an empty object. NULL: ERR_PROTO (USER); the text names the field, never
 * its value.
 */
json_t *fields_decode(const json_t *value, const struct field *table, struct err *err);

/* Values of a decoded object (NULL allowed): "", 0, false, NULL when absent. Borrowed. */
const char *field_str(const json_t *o, const char *name);
json_int_t field_int(const json_t *o, const char *name);
bool field_bool(const json_t *o, const char *name);
#endif
