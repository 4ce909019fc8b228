/* target_schema.c - does the collection on the target fit the source's? No I/O. */
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- schema ----------------------------------------------------------------------------------- */

/* milvus schema.proto */
enum { FIRST_USER_FIELD = 100 };

const char *target_type_name(int32_t type, char *buf, size_t size)
{
    static const struct {
        int32_t type;
        const char *name;
    } names[] = {{1, "Bool"},         {2, "Int8"},           {3, "Int16"},          {4, "Int32"},
                 {5, "Int64"},        {10, "Float"},         {11, "Double"},        {20, "String"},
                 {21, "VarChar"},     {22, "Array"},         {23, "JSON"},          {100, "BinaryVector"},
                 {101, "FloatVector"}, {102, "Float16Vector"}, {103, "BFloat16Vector"}, {104, "SparseFloatVector"},
                 {105, "Int8Vector"}, {24, "Geometry"},      {25, "Text"},           {26, "Timestamptz"},
                 {106, "ArrayOfVector"}, {200, "ArrayOfStruct"}, {0, "none"}};

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (names[i].type == type)
            return names[i].name;
    snprintf(buf, size, "type %d", (int)type);
    return buf;
}

/* What the server adds itself: RowID, Timestamp, $meta. Sources' fields come without ids. */
static bool is_user_field(const Pb__FieldSchema *f)
{
    bool row = strcmp(f->name, "RowID") == 0 || strcmp(f->name, "Timestamp") == 0;

    return !f->is_dynamic && !(row && f->field_id < FIRST_USER_FIELD);
}

static const Pb__FieldSchema *next_field(const Pb__CollectionSchema *s, size_t *i)
{
    while (*i < s->n_fields) {
        const Pb__FieldSchema *f = s->fields[(*i)++];

        if (is_user_field(f))
            return f;
    }
    return NULL;
}

bool target_field_flag(const Pb__FieldSchema *f, uint32_t tag)
{
    for (size_t i = 0; i < f->base.n_unknown_fields; i++) {
        const ProtobufCMessageUnknownField *u = &f->base.unknown_fields[i];

        if (u->tag == tag && u->len == 1 && u->data[0])
            return true;
    }
    return false;
}

static const char *type_param(const Pb__FieldSchema *f, const char *key)
{
    for (size_t i = 0; i < f->n_type_params; i++)
        if (strcmp(f->type_params[i]->key, key) == 0)
            return f->type_params[i]->value;
    return NULL;
}

static int differs(struct err *err, const char *field, const char *what, const char *source, const char *target)
{
    return err_set(err, ERR_STATE, ERRC_USER,
                   "field `%s`: %s is %s on the source and %s on the target", field, what, source, target);
}

static int flag_differs(struct err *err, const char *field, const char *what, bool source, bool target)
{
    return source == target ? 0
                            : differs(err, field, what, source ? "true" : "false", target ? "true" : "false");
}

static int compare_types(const Pb__FieldSchema *s, const Pb__FieldSchema *t, struct err *err)
{
    char a[24], b[24];

    if (s->data_type != t->data_type)
        return differs(err, s->name, "the data type", target_type_name(s->data_type, a, sizeof(a)),
                       target_type_name(t->data_type, b, sizeof(b)));
    if (s->element_type != t->element_type)
        return differs(err, s->name, "the element type", target_type_name(s->element_type, a, sizeof(a)),
                       target_type_name(t->element_type, b, sizeof(b)));
    return 0;
}

/* Milvus Lite does not tell the limit of an array's texts. */
static bool may_be_untold(enum target_mode mode, const Pb__FieldSchema *f, const char *key)
{
    enum { ARRAY = 22 };

    return mode == TARGET_PLAIN && f->data_type == ARRAY && strcmp(key, "max_length") == 0;
}

static int compare_params(enum target_mode mode, const Pb__FieldSchema *s, const Pb__FieldSchema *t, struct err *err)
{
    static const char *const keys[] = {"dim", "max_length", "max_capacity"};

    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        const char *a = type_param(s, keys[i]), *b = type_param(t, keys[i]);

        if (!b && may_be_untold(mode, t, keys[i]))
            continue;
        if (a != b && (!a || !b || strcmp(a, b) != 0))
            return differs(err, s->name, keys[i], a ? a : "absent", b ? b : "absent");
    }
    return 0;
}

static int compare_field(enum target_mode mode, const Pb__FieldSchema *s, const Pb__FieldSchema *t, struct err *err)
{
    int rc = compare_types(s, t, err);

    if (!rc)
        rc = flag_differs(err, s->name, "primary key", s->is_primary_key, t->is_primary_key);
    if (!rc)
        rc = flag_differs(err, s->name, "autoID", s->auto_id, t->auto_id);
    if (!rc)
        rc = flag_differs(err, s->name, "partition key", s->is_partition_key, t->is_partition_key);
    if (!rc)
        rc = flag_differs(err, s->name, "nullable", target_field_flag(s, FIELD_NULLABLE), target_field_flag(t, FIELD_NULLABLE));
    if (!rc)
        rc = compare_params(mode, s, t, err);
    return rc;
}

int target_schema_compare(const Pb__CollectionSchema *source, const Pb__CollectionSchema *target, struct err *err)
{
    size_t i = 0, k = 0, n = 0;
    const Pb__FieldSchema *s, *t;
    int rc;

    for (;; n++) {
        s = next_field(source, &i);
        t = next_field(target, &k);
        if (!s && !t)
            break;
        /* by order: the target numbers the fields by it, and messages carry these numbers */
        if (!s || !t || strcmp(s->name, t->name) != 0)
            return err_set(err, ERR_STATE, ERRC_USER,
                           "field number %zu is %s%s%s on the source and %s%s%s on the target",
                           n + 1, s ? "`" : "", s ? s->name : "absent", s ? "`" : "", t ? "`" : "",
                           t ? t->name : "absent", t ? "`" : "");
        rc = compare_field(TARGET_STANDBY, s, t, err);
        if (rc)
            return rc;
    }
    return flag_differs(err, "$meta", "the dynamic field", source->enable_dynamic_field,
                        target->enable_dynamic_field);
}

/* ---- schema of a plain target ----------------------------------------------------------------- */

static const Pb__FieldSchema *find_field(const Pb__CollectionSchema *s, const char *name)
{
    const Pb__FieldSchema *f;
    size_t i = 0;

    while ((f = next_field(s, &i)))
        if (strcmp(f->name, name) == 0)
            return f;
    return NULL;
}

static int compare_field_plain(const Pb__FieldSchema *s, const Pb__FieldSchema *t, struct left_out *out, struct err *err)
{
    if (!t && out && !s->is_primary_key) {
        left_out_add(out, s->name);
        return 0;
    }
    if (!t)
        return differs(err, s->name, "the field", "there", "absent");
    if (t->is_primary_key && t->auto_id)
        return err_set(err, ERR_STATE, ERRC_USER,
                       "field `%s`: autoID is on at the target, which then refuses the source's keys; it must be off",
                       t->name);
    return compare_field(TARGET_PLAIN, s, t, err);
}

int target_schema_compare_plain(const Pb__CollectionSchema *source, const Pb__CollectionSchema *target,
                                struct left_out *out, struct err *err)
{
    const Pb__FieldSchema *f;
    size_t i = 0;
    int rc = 0;

    while (!rc && (f = next_field(source, &i))) {
        const Pb__FieldSchema *t = find_field(target, f->name);

        rc = compare_field_plain(f, t, out, err);
        if (!rc && t)
            rc = flag_differs(err, f->name, "the output of a function", target_field_flag(f, FIELD_FUNCTION_OUTPUT),
                              target_field_flag(t, FIELD_FUNCTION_OUTPUT));
    }
    i = 0;
    while (!rc && (f = next_field(target, &i)))
        if (!find_field(source, f->name))
            rc = differs(err, f->name, "the field", "absent", "there");
    return rc ? rc
              : flag_differs(err, "$meta", "the dynamic field", source->enable_dynamic_field,
                             target->enable_dynamic_field);
}

bool target_schema_has_partition_key(const Pb__CollectionSchema *s)
{
    for (size_t i = 0; i < s->n_fields; i++)
        if (s->fields[i]->is_partition_key)
            return true;
    return false;
}

/* ---- shards ----------------------------------------------------------------------------------- */

/* At least one digit and nothing else up to end. */
static bool parse_number(const char *text, const char *end, uint64_t max, uint64_t *ret)
{
    uint64_t n = 0;

    if (text == end)
        return false;
    for (; text < end; text++) {
        if (*text < '0' || *text > '9' || n > (max - (uint64_t)(*text - '0')) / 10)
            return false;
        n = n * 10 + (uint64_t)(*text - '0');
    }
    *ret = n;
    return true;
}

bool target_vchannel_parse(const char *vchannel, struct vchannel *ret)
{
    const char *v = strrchr(vchannel, 'v'), *line;
    uint64_t id, number;

    if (!v || !parse_number(v + 1, vchannel + strlen(vchannel), 1 << 20, &number))
        return false;
    for (line = v; line > vchannel && line[-1] >= '0' && line[-1] <= '9';)
        line--;
    if (line == v || line - vchannel < 2 || line[-1] != '_' || !parse_number(line, v, INT64_MAX, &id))
        return false;
    *ret = (struct vchannel){.pchannel_len = (size_t)(line - 1 - vchannel),
                             .collection_id = (int64_t)id,
                             .number = (size_t)number};
    return true;
}

void target_shards_free(struct sink_shard *shards, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(shards[i].vchannel);
        free(shards[i].pchannel);
    }
    free(shards);
}

static int bad_shard(struct err *err, const char *vchannel, const char *why)
{
    return err_set(err, ERR_PROTO, ERRC_USER, "the target's shard `%s` %s; nothing is sent to it", vchannel, why);
}

/* Puts one vchannel to its place. */
static int add_shard(const Pb__DescribeCollectionResponse *d, size_t i, struct sink_shard *shards, struct err *err)
{
    const char *vchannel = d->virtual_channel_names[i], *pchannel = d->physical_channel_names[i];
    struct vchannel v;

    if (!target_vchannel_parse(vchannel, &v))
        return bad_shard(err, vchannel, "has a name of unknown form");
    if (v.collection_id != d->collection_id)
        return bad_shard(err, vchannel, "belongs to another collection");
    if (strlen(pchannel) != v.pchannel_len || memcmp(pchannel, vchannel, v.pchannel_len) != 0)
        return bad_shard(err, vchannel, "is not on the physical channel that the target names");
    if (v.number >= d->n_virtual_channel_names || shards[v.number].vchannel)
        return bad_shard(err, vchannel, "has a number out of the row");
    shards[v.number] = (struct sink_shard){xstrdup(vchannel), xstrdup(pchannel)};
    return 0;
}

int target_shards(const Pb__DescribeCollectionResponse *d, size_t n_source, struct sink_shard **ret, struct err *err)
{
    size_t n = d->n_virtual_channel_names;
    struct sink_shard *shards;
    int rc = 0;

    if (n != n_source)
        return err_set(err, ERR_STATE, ERRC_USER,
                       "the number of shards is %zu on the source and %zu on the target. Drop the target's collection "
                       "or map to another name",
                       n_source, n);
    if (n == 0 || d->n_physical_channel_names != n)
        return err_set(err, ERR_PROTO, ERRC_USER, "the target names %zu virtual and %zu physical channels", n,
                       d->n_physical_channel_names);
    shards = xcalloc(n, sizeof(*shards));
    for (size_t i = 0; i < n && !rc; i++)
        rc = add_shard(d, i, shards, err);
    if (rc)
        target_shards_free(shards, n);
    else
        *ret = shards;
    return rc;
}
