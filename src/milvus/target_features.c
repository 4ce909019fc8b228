/*
 * target_features.c - what a plain target cannot hold of a source's schema, as far as its version tells; and the schema
 * without that, where the user allows it. No I/O.
 */
#include "base/mem.h"
#include "milvus/catalog.h"
#include "milvus/target_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* milvus schema.proto */
enum { SCHEMA_FUNCTIONS = 7, SCHEMA_STRUCT_ARRAYS = 9 };
enum { FUNCTION_NAME = 1, FUNCTION_TYPE = 4, FUNCTION_OUTPUTS = 7, FUNCTION_BM25 = 1 };
enum { FIRST_VECTOR = 100, LAST_VECTOR = 105 };

/* ---- names ------------------------------------------------------------------------------------ */

void left_out_add(struct left_out *l, const char *name)
{
    if (left_out_has(l, name))
        return;
    l->names = xrealloc(l->names, (l->n + 1) * sizeof(char *));
    l->names[l->n++] = xstrdup(name);
}

bool left_out_has(const struct left_out *l, const char *name)
{
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->names[i], name) == 0)
            return true;
    return false;
}

void left_out_release(struct left_out *l)
{
    target_names_free(l->names, l->n);
    *l = (struct left_out){0};
}

/* ---- versions --------------------------------------------------------------------------------- */

bool target_version_is_lite(const char *version)
{
    return strncmp(version, "milvus_lite", 11) == 0;
}

/* A version that cannot be read ("v2.3.5-lite" can) has everything. */
static bool older_than(const char *version, unsigned major, unsigned minor)
{
    unsigned has_major, has_minor;

    if (sscanf(version, "%*[vV]%u.%u", &has_major, &has_minor) != 2 && sscanf(version, "%u.%u", &has_major, &has_minor) != 2)
        return false;
    return has_major < major || (has_major == major && has_minor < minor);
}

/* ---- one field -------------------------------------------------------------------------------- */

/* The WAL has the values of others in another form than the public API takes (geometry, times, structs). */
static bool same_on_both_ways(int32_t type)
{
    return (type >= 1 && type <= 5) || type == 10 || type == 11 || (type >= 20 && type <= 23) || type == 25 ||
           (type >= FIRST_VECTOR && type <= LAST_VECTOR);
}

/* Release notes of Milvus; seen on 2.3.5, which makes all of them and writes only Float16Vector. */
static const struct {
    int32_t type;
    unsigned major, minor;
} later_types[] = {{22, 2, 3}, {103, 2, 4}, {104, 2, 4}, {105, 2, 6}};

static bool in_lite(int32_t type)
{
    return type < FIRST_VECTOR || type == 101 || type == 104;
}

/* What is wrong with it, in text; false: nothing. */
static bool field_problem(const Pb__FieldSchema *f, const char *version, char *text, size_t size)
{
    char buf[24];
    const char *type = target_type_name(f->data_type, buf, sizeof(buf));

    if (!same_on_both_ways(f->data_type))
        return snprintf(text, size, "%s cannot be written through the public API as the source keeps it", type) > 0;
    if (target_version_is_lite(version))
        return !in_lite(f->data_type) && snprintf(text, size, "Milvus Lite has no %s", type) > 0;
    for (size_t i = 0; i < sizeof(later_types) / sizeof(*later_types); i++)
        if (later_types[i].type == f->data_type && older_than(version, later_types[i].major, later_types[i].minor))
            return snprintf(text, size, "%s needs Milvus %u.%u, and the target is %.40s", type, later_types[i].major,
                            later_types[i].minor, version) > 0;
    if (target_field_flag(f, FIELD_NULLABLE) && older_than(version, 2, 5)) /* 2.3.5 makes it without that, in silence */
        return snprintf(text, size, "nullable needs Milvus 2.5, and the target is %.40s", version) > 0;
    return false;
}

static int refuse(struct err *err, const char *kind, const char *name, const char *why)
{
    return err_set(err, ERR_UNSUPPORTED, ERRC_USER,
                   "%s `%s`: %s. Exclude the collection, create the task with \"leave_out_unknown\": true (not for keys and "
                   "an only vector), or use another target: a newer one, or a standby",
                   kind, name, why);
}

static void remove_field(Pb__CollectionSchema *s, size_t i, struct left_out *out)
{
    left_out_add(out, s->fields[i]->name);
    protobuf_c_message_free_unpacked(&s->fields[i]->base, NULL);
    memmove(s->fields + i, s->fields + i + 1, (--s->n_fields - i) * sizeof(*s->fields));
}

static bool is_key(const Pb__FieldSchema *f)
{
    return f->is_primary_key || f->is_partition_key;
}

static bool has_vector(const Pb__CollectionSchema *s)
{
    for (size_t i = 0; i < s->n_fields; i++)
        if (s->fields[i]->data_type >= FIRST_VECTOR && s->fields[i]->data_type <= LAST_VECTOR)
            return true;
    return false;
}

static int fit_fields(Pb__CollectionSchema *s, const char *version, struct left_out *out, struct err *err)
{
    char why[160], first[160] = "", name[256] = "";

    for (size_t i = s->n_fields; i-- > 0;) {
        const Pb__FieldSchema *f = s->fields[i];

        if (!field_problem(f, version, why, sizeof(why)))
            continue;
        if (!out || is_key(f))
            return refuse(err, "field", f->name, why);
        snprintf(first, sizeof(first), "%s", why);
        snprintf(name, sizeof(name), "%s", f->name);
        remove_field(s, i, out);
    }
    return *first && !has_vector(s) ? refuse(err, "field", name, first) : 0;
}

/* ---- functions -------------------------------------------------------------------------------- */

struct function {
    char name[256];
    uint64_t type;
    const uint8_t *data; /* encoded, without its length */
    size_t len;
};

/* Of our schema they are fields that are not known: their bytes begin with the length. */
static struct function function_of(const ProtobufCMessageUnknownField *u)
{
    const uint8_t *p = u->data, *end = u->data + u->len;
    struct function fn = {.name = ""};
    struct pb_scan s;
    struct pb_field f;
    uint64_t len;

    if (!pb_varint(&p, end, &len))
        return fn;
    fn.data = p;
    fn.len = (size_t)(end - p);
    s = pb_scan_init(fn.data, fn.len);
    while (pb_scan_next(&s, &f) > 0) {
        if (f.num == FUNCTION_NAME && f.wire == PB_LEN)
            snprintf(fn.name, sizeof(fn.name), "%.*s", (int)(f.len < 255 ? f.len : 255), (const char *)f.data);
        if (f.num == FUNCTION_TYPE && f.wire == PB_VARINT)
            fn.type = f.varint;
    }
    return fn;
}

/* BM25 is run after the row was written, on either side; the output of the others is in the row already. */
static bool function_problem(const struct function *fn, const char *version, char *text, size_t size)
{
    if (fn->type != FUNCTION_BM25)
        return snprintf(text, size, "it is no BM25: the source writes its output with each row, which the public API does not "
                                    "take") > 0;
    return older_than(version, 2, 5) &&
           snprintf(text, size, "BM25 needs Milvus 2.5, and the target is %.40s", version) > 0;
}

/* With what it makes. */
static void remove_function(Pb__CollectionSchema *s, size_t i, const struct function *fn, struct left_out *out)
{
    struct pb_scan scan = pb_scan_init(fn->data, fn->len);
    struct pb_field f;

    left_out_add(out, fn->name);
    while (pb_scan_next(&scan, &f) > 0)
        for (size_t k = s->n_fields; f.num == FUNCTION_OUTPUTS && f.wire == PB_LEN && k-- > 0;)
            if (strlen(s->fields[k]->name) == f.len && memcmp(s->fields[k]->name, f.data, f.len) == 0)
                remove_field(s, k, out);
    free(s->base.unknown_fields[i].data);
    memmove(s->base.unknown_fields + i, s->base.unknown_fields + i + 1,
            (--s->base.n_unknown_fields - i) * sizeof(*s->base.unknown_fields));
}

static int fit_functions(Pb__CollectionSchema *s, const char *version, struct left_out *out, struct err *err)
{
    char why[160];

    for (size_t i = s->base.n_unknown_fields; i-- > 0;) {
        struct function fn;

        if (s->base.unknown_fields[i].tag == SCHEMA_STRUCT_ARRAYS)
            return refuse(err, "field", "(array of structs)",
                          "an array of structs cannot be written through the public API as the source keeps it");
        if (s->base.unknown_fields[i].tag != SCHEMA_FUNCTIONS)
            continue;
        fn = function_of(&s->base.unknown_fields[i]);
        if (!function_problem(&fn, version, why, sizeof(why)))
            continue;
        if (!out)
            return refuse(err, "function", fn.name, why);
        remove_function(s, i, &fn, out);
    }
    return 0;
}

/* ---- all -------------------------------------------------------------------------------------- */

int target_features_fit(Pb__CollectionSchema *s, const char *version, struct left_out *out, struct err *err)
{
    int rc = fit_functions(s, version, out, err);

    return rc ? rc : fit_fields(s, version, out, err);
}

int target_check_collection(struct sink *sink, const struct src_collection *c, const char *version, struct err *err)
{
    struct target *t = container_of(sink, struct target, sink);
    struct left_out out = {0};
    Pb__CollectionSchema *s;
    uint8_t *data;
    size_t len;
    int rc = 0;

    catalog_user_schema(c, &data, &len);
    s = pb__collection_schema__unpack(NULL, len, data);
    free(data);
    if (s && target_features_fit(s, version, t->leave_out ? &out : NULL, err))
        rc = err_wrap(err, "collection %s.%s", c->db_name, c->name);
    if (s)
        pb__collection_schema__free_unpacked(s, NULL);
    left_out_release(&out);
    return rc;
}
