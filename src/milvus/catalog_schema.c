#include "catalog_priv.h"

#include "base/mem.h"
#include "base/pbwire.h"

#include "meta.pb-c.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Field numbers of milvus schema.proto. */
enum {
    SCHEMA_FIELDS = 4,
    SCHEMA_PROPERTIES = 6,
    SCHEMA_FUNCTIONS = 7,
    SCHEMA_DB_NAME = 8,
    FIELD_ID = 1,
    FIELD_NAME = 2,
    FIELD_PRIMARY_KEY = 3,
    FIELD_DATA_TYPE = 5,
    FIELD_TYPE_PARAMS = 6,
    FIELD_STATE = 9,
    FIELD_DEFAULT = 11,
    FIELD_DYNAMIC = 12,
    FIELD_PARTITION_KEY = 13,
    PAIR_KEY = 1,
    PAIR_VALUE = 2,
    FUNCTION_ID = 2,
    FUNCTION_INPUT_IDS = 6,
    FUNCTION_OUTPUT_IDS = 8,
};

/* Marks of a replica, for one cluster only: milvus pkg/common "replicate.id", ".endTS". */
bool cat_replicate_property(const char *key, size_t len)
{
    static const char prefix[] = "replicate.";

    return len >= sizeof(prefix) - 1 && memcmp(key, prefix, sizeof(prefix) - 1) == 0;
}

/* ---- CollectionInfo ------------------------------------------------------------------------- */

void cat_info_free(struct cat_info *info)
{
    if (!info)
        return;
    for (size_t i = 0; i < info->n_shards; i++) {
        free(info->shards[i].vchannel);
        free(info->shards[i].pchannel);
    }
    for (size_t i = 0; i < info->n_props; i++) {
        free(info->props[i].key);
        free(info->props[i].value);
    }
    free(info->shards);
    free(info->props);
    free(info->name);
    free(info->schema);
    free(info);
}

/* The number behind the last 'v' of "<pchannel>_<id>v<n>", or fallback. */
static size_t shard_number(const char *vchannel, size_t fallback)
{
    const char *v = strrchr(vchannel, 'v');
    char *end;
    unsigned long n;

    if (!v || v[1] < '0' || v[1] > '9')
        return fallback;
    n = strtoul(v + 1, &end, 10);
    return *end ? fallback : (size_t)n;
}

/* True when the names' numbers are 0 .. n-1, each once. */
static bool numbers_are_dense(const Pb__CollectionInfo *m)
{
    size_t n = m->n_virtual_channel_names;
    bool *seen = xcalloc(n + 1, sizeof(*seen)), dense = true;

    for (size_t i = 0; i < n && dense; i++) {
        size_t number = shard_number(m->virtual_channel_names[i], n);

        dense = number < n && !seen[number];
        if (dense)
            seen[number] = true;
    }
    free(seen);
    return dense;
}

static void shard_set_start(struct src_shard *s, const Pb__CollectionInfo *m)
{
    for (size_t i = 0; i < m->n_start_positions; i++) {
        const Pb__KeyDataPair *p = m->start_positions[i];

        if (strcmp(p->key, s->pchannel) != 0 || p->data.len == 0 || p->data.len > WAL_ID_MAX)
            continue;
        memcpy(s->start_id, p->data.data, p->data.len);
        s->start_id_len = p->data.len;
        return;
    }
}

static void info_set_shards(struct cat_info *info, const Pb__CollectionInfo *m)
{
    bool dense = numbers_are_dense(m);

    info->n_shards = m->n_virtual_channel_names;
    info->shards = info->n_shards ? xcalloc(info->n_shards, sizeof(*info->shards)) : NULL;
    for (size_t i = 0; i < info->n_shards; i++) {
        size_t at = dense ? shard_number(m->virtual_channel_names[i], i) : i;
        struct src_shard *s = &info->shards[at];

        s->vchannel = xstrdup(m->virtual_channel_names[i]);
        s->pchannel = xstrdup(m->physical_channel_names[i]);
        shard_set_start(s, m);
    }
}

static void info_set_properties(struct cat_info *info, const Pb__CollectionInfo *m)
{
    if (m->n_properties == 0)
        return;
    info->props = xcalloc(m->n_properties, sizeof(*info->props));
    for (size_t i = 0; i < m->n_properties; i++) {
        const Pb__KeyValuePair *p = m->properties[i];

        if (cat_replicate_property(p->key, strlen(p->key)))
            continue;
        info->props[info->n_props++] = (struct src_pair){xstrdup(p->key), xstrdup(p->value)};
    }
}

/* The whole schema must be protobuf, since it is taken apart again later. */
static bool schema_name(const ProtobufCBinaryData *schema, char **ret_name)
{
    Pb__CollectionSchema *m = pb__collection_schema__unpack(NULL, schema->len, schema->data);
    bool ok = m && m->name[0];

    if (ok)
        *ret_name = xstrdup(m->name);
    if (m)
        pb__collection_schema__free_unpacked(m, NULL);
    return ok;
}

static const char *info_check(const Pb__CollectionInfo *m, int64_t id)
{
    if (!m)
        return "not protobuf";
    if (m->id != id)
        return "the id is not that of the key";
    if (m->state < 0 || m->state > 3)
        return "unknown state";
    if (m->n_virtual_channel_names != m->n_physical_channel_names)
        return "virtual and physical channels differ in number";
    /* A collection with nothing to read would look complete for ever. */
    if (m->n_virtual_channel_names == 0 && m->state <= 1)
        return "no channels";
    return NULL;
}

static struct cat_info *info_from(const Pb__CollectionInfo *m, char *name)
{
    /* created 0, creating 1, dropping 2, dropped 3 */
    static const enum src_state states[] = {SRC_ALIVE, SRC_CREATING, SRC_DROPPING, SRC_DROPPING};
    struct cat_info *info = xcalloc(1, sizeof(*info));

    info->name = name;
    info->db_id = m->db_id;
    info->state = states[m->state];
    info->create_tt = m->create_time;
    info->consistency_level = m->consistency_level;
    info->schema_len = m->schema.len;
    info->schema = xmalloc(m->schema.len + 1);
    memcpy(info->schema, m->schema.data, m->schema.len);
    info_set_shards(info, m);
    info_set_properties(info, m);
    return info;
}

struct cat_info *cat_info_parse(const uint8_t *value, size_t len, int64_t id, const char **ret_why)
{
    Pb__CollectionInfo *m = pb__collection_info__unpack(NULL, len, value);
    struct cat_info *info = NULL;
    const char *why = info_check(m, id);
    char *name = NULL;

    if (!why && !schema_name(&m->schema, &name))
        why = "no schema with a name";
    if (why)
        *ret_why = why;
    else
        info = info_from(m, name);
    if (m)
        pb__collection_info__free_unpacked(m, NULL);
    return info;
}

/* ---- fields --------------------------------------------------------------------------------- */

static uint64_t number_of(const uint8_t *text, size_t len)
{
    uint64_t v = 0;

    for (size_t i = 0; i < len && i < 9 && text[i] >= '0' && text[i] <= '9'; i++)
        v = v * 10 + (uint64_t)(text[i] - '0');
    return v;
}

/* KeyValuePair: only what says how large a value is. */
static void take_type_param(struct cat_field *field, const struct pb_field *pair)
{
    struct pb_scan s = pb_scan_init(pair->data, pair->len);
    struct pb_field f, key = {0}, value = {0};

    while (pb_scan_next(&s, &f) > 0) {
        if (f.num == PAIR_KEY && f.wire == PB_LEN)
            key = f;
        else if (f.num == PAIR_VALUE && f.wire == PB_LEN)
            value = f;
    }
    if (key.len == 3 && memcmp(key.data, "dim", 3) == 0)
        field->dim = number_of(value.data, value.len);
    else if (key.len == 10 && memcmp(key.data, "max_length", 10) == 0)
        field->max_length = number_of(value.data, value.len);
}

size_t cat_field_bytes(const struct cat_field *f)
{
    /* milvus schema.proto DataType; what has no row here has no fixed size */
    enum { DOUBLE = 11, STRING = 20, VARCHAR = 21, BINARY_VECTOR = 100, FLOAT_VECTOR, FLOAT16_VECTOR, BFLOAT16_VECTOR,
           INT8_VECTOR = 105, GUESS = 256 };

    switch (f->data_type) {
    case STRING:
    case VARCHAR:
        return f->max_length && f->max_length < GUESS ? f->max_length : GUESS;
    case BINARY_VECTOR:
        return f->dim / 8;
    case FLOAT_VECTOR:
        return f->dim * 4;
    case FLOAT16_VECTOR:
    case BFLOAT16_VECTOR:
        return f->dim * 2;
    case INT8_VECTOR:
        return f->dim;
    }
    return f->data_type <= DOUBLE ? 8 : GUESS;
}

bool cat_field_parse(const uint8_t *data, size_t len, struct cat_field *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct cat_field field = {0};
    struct pb_field f;
    int rc;

    while ((rc = pb_scan_next(&s, &f)) > 0) {
        if (f.num == FIELD_NAME && f.wire == PB_LEN) {
            field.named = f.len > 0;
            field.name = f.data;
            field.name_len = f.len;
        }
        if (f.num == FIELD_DEFAULT)
            field.has_default = true;
        if (f.num == FIELD_TYPE_PARAMS && f.wire == PB_LEN)
            take_type_param(&field, &f);
        if (f.wire != PB_VARINT)
            continue;
        if (f.num == FIELD_ID)
            field.id = (int64_t)f.varint;
        else if (f.num == FIELD_PRIMARY_KEY)
            field.primary_key = f.varint != 0;
        else if (f.num == FIELD_DATA_TYPE)
            field.data_type = (int32_t)f.varint;
        else if (f.num == FIELD_DYNAMIC)
            field.dynamic = f.varint != 0;
        else if (f.num == FIELD_PARTITION_KEY)
            field.partition_key = f.varint != 0;
    }
    if (rc < 0)
        return false;
    *ret = field;
    return true;
}

/* The nth field inside the schema itself. */
static bool schema_field(const struct cat_info *info, size_t nth, const uint8_t **ret_data,
                         size_t *ret_len)
{
    struct pb_scan s = pb_scan_init(info->schema, info->schema_len);
    struct pb_field f;

    while (pb_scan_next(&s, &f) > 0) {
        if (f.num != SCHEMA_FIELDS || f.wire != PB_LEN || nth-- > 0)
            continue;
        *ret_data = f.data;
        *ret_len = f.len;
        return true;
    }
    return false;
}

bool cat_user_field(const struct cat_collection *c, size_t *i, const uint8_t **ret_data,
                    size_t *ret_len, struct cat_field *ret)
{
    for (;; ++*i) {
        const uint8_t *data;
        size_t len;

        if (c->fields.n > 0) {
            if (*i >= c->fields.n)
                return false;
            data = c->fields.v[*i].data;
            len = c->fields.v[*i].len;
        } else if (!c->info || !schema_field(c->info, *i, &data, &len)) {
            return false;
        }
        if (!data || !cat_field_parse(data, len, ret))
            continue;
        if (ret->id < FIRST_USER_FIELD || ret->dynamic)
            continue;
        *ret_data = data;
        *ret_len = len;
        ++*i;
        return true;
    }
}

/* ---- the schema for a create ---------------------------------------------------------------- */

/* Copies an encoded message without the fields in the bit mask drop (numbers below 64). */
static void copy_without(struct pb_out *out, const uint8_t *data, size_t len, uint64_t drop)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;

    while (pb_scan_next(&s, &f) > 0)
        if (f.num >= 64 || !(drop >> f.num & 1))
            pb_out_raw(out, f.start, f.total);
}

static void add_without(struct pb_out *out, uint32_t num, const uint8_t *data, size_t len,
                        uint64_t drop)
{
    struct pb_out o = {0};

    copy_without(&o, data, len, drop);
    pb_out_bytes(out, num, o.data, o.len);
    pb_out_release(&o);
}

static bool is_replicate_pair(const uint8_t *data, size_t len)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;

    while (pb_scan_next(&s, &f) > 0)
        if (f.num == 1 && f.wire == PB_LEN)
            return cat_replicate_property((const char *)f.data, f.len);
    return false;
}

static void add_schema_properties(struct pb_out *out, const struct cat_info *info)
{
    struct pb_scan s = pb_scan_init(info->schema, info->schema_len);
    struct pb_field f;

    while (pb_scan_next(&s, &f) > 0)
        if (f.num == SCHEMA_PROPERTIES && f.wire == PB_LEN && !is_replicate_pair(f.data, f.len))
            pb_out_raw(out, f.start, f.total);
}

void catalog_user_schema(const struct src_collection *pub, uint8_t **ret_data, size_t *ret_len)
{
    const uint64_t own = 1ull << SCHEMA_FIELDS | 1ull << SCHEMA_PROPERTIES |
                         1ull << SCHEMA_FUNCTIONS | 1ull << SCHEMA_DB_NAME;
    const struct cat_collection *c = pub->impl;
    struct pb_out out = {0};
    struct cat_field field;
    const uint8_t *data;
    size_t i = 0, len;

    assert(c->info);
    copy_without(&out, c->info->schema, c->info->schema_len, own);
    while (cat_user_field(c, &i, &data, &len, &field))
        add_without(&out, SCHEMA_FIELDS, data, len, 1ull << FIELD_ID | 1ull << FIELD_STATE);
    add_schema_properties(&out, c->info);
    for (i = 0; i < c->functions.n; i++)
        if (c->functions.v[i].data)
            add_without(&out, SCHEMA_FUNCTIONS, c->functions.v[i].data, c->functions.v[i].len,
                        1ull << FUNCTION_ID | 1ull << FUNCTION_INPUT_IDS |
                            1ull << FUNCTION_OUTPUT_IDS);
    *ret_data = out.data ? out.data : xmalloc(1);
    *ret_len = out.len;
}

const struct catalog_props *catalog_properties(const struct src_collection *pub)
{
    const struct cat_collection *c = pub->impl;

    return &c->props;
}
