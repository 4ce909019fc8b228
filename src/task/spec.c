#include "task/spec.h"

#include "base/err.h"
#include "base/mem.h"
#include "task/spec_fields.h"
#include "task/spec_priv.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { MAX_TASK_ID = 256 };

/* ---- the fields of create, control-api.md 2.1 */

static const struct field dial_fields[] = {
    {"server_name", FIELD_STRING, NULL},     {"server_pem_path", FIELD_STRING, NULL},
    {"ca_pem_path", FIELD_STRING, NULL},     {"client_pem_path", FIELD_STRING, NULL},
    {"client_key_path", FIELD_STRING, NULL}, {0},
};
static const struct field milvus_fields[] = {
    {"host", FIELD_STRING, NULL},
    {"port", FIELD_INT, NULL},
    {"enable_tls", FIELD_BOOL, NULL},
    {"username", FIELD_STRING, NULL},
    {"password", FIELD_STRING, NULL},
    {"uri", FIELD_STRING, NULL},
    {"token", FIELD_STRING, NULL},
    {"dial_config", FIELD_OBJECT, dial_fields},
    {"channel_num", FIELD_INT, NULL},
    {"ignore_partition", FIELD_BOOL, NULL},
    {"connect_timeout", FIELD_INT, NULL},
    {0},
};
static const struct field sasl_fields[] = {
    {"username", FIELD_STRING, NULL},
    {"password", FIELD_STRING, NULL},
    {"mechanisms", FIELD_STRING, NULL},
    {"security_protocol", FIELD_STRING, NULL},
    {0},
};
static const struct field kafka_fields[] = {
    {"address", FIELD_STRING, NULL},
    {"topic", FIELD_STRING, NULL},
    {"enable_sasl", FIELD_BOOL, NULL},
    {"sasl", FIELD_OBJECT, sasl_fields},
    {0},
};
static const struct field collection_fields[] = {
    {"name", FIELD_STRING, NULL},
    {"positions", FIELD_STRING_MAP, NULL},
    {"use_start_position", FIELD_BOOL, NULL},
    {0},
};
static const struct field rpc_fields[] = {
    {"name", FIELD_STRING, NULL},
    {"position", FIELD_STRING, NULL},
    {0},
};
static const struct field extra_fields[] = {{"enable_user_role", FIELD_BOOL, NULL}, {0}};
static const struct field buffer_fields[] = {
    {"period", FIELD_INT, NULL},
    {"size", FIELD_INT, NULL},
    {0},
};
static const struct field mapping_fields[] = {
    {"source_db", FIELD_STRING, NULL},
    {"target_db", FIELD_STRING, NULL},
    {"collection_mapping", FIELD_STRING_MAP, NULL},
    {0},
};
static const struct field create_fields[] = {
    {"task_id", FIELD_STRING, NULL},
    {"milvus_connect_param", FIELD_OBJECT, milvus_fields},
    {"kafka_connect_param", FIELD_OBJECT, kafka_fields},
    {"collection_infos", FIELD_LIST, collection_fields},
    {"db_collections", FIELD_LIST_MAP, collection_fields},
    {"rpc_channel_info", FIELD_OBJECT, rpc_fields},
    {"extra_info", FIELD_OBJECT, extra_fields},
    {"buffer_config", FIELD_OBJECT, buffer_fields},
    {"name_mapping", FIELD_LIST, mapping_fields},
    {"disable_auto_start", FIELD_BOOL, NULL},
    {"positions", FIELD_OBJECT, NULL}, /* an old form, refused */
    {"keep_queryable", FIELD_BOOL, NULL}, /* ours */
    {"mode", FIELD_STRING, NULL},
    {"start", FIELD_ANY, NULL},
    {"accept_gap", FIELD_BOOL, NULL},
    {"load_for_snapshot", FIELD_BOOL, NULL},
    {"exclude", FIELD_STRINGS, NULL},
    {"leave_out_unknown", FIELD_BOOL, NULL},
    {0},
};

json_t *spec_decode(const json_t *request_data, struct err *err)
{
    return fields_decode(request_data, create_fields, err);
}

/* ---- life */

static void mapping_release(struct spec_mapping *m)
{
    for (size_t i = 0; i < m->n; i++) {
        free(m->source[i]);
        free(m->target[i]);
    }
    free(m->source);
    free(m->target);
    free(m->source_db);
    free(m->target_db);
}

static void collection_release(struct spec_collection *c)
{
    for (size_t i = 0; i < c->n_positions; i++)
        spec_position_release(&c->positions[i]);
    free(c->positions);
    free(c->db);
    free(c->name);
}

static void secret_free(char *s)
{
    if (s)
        explicit_bzero(s, strlen(s));
    free(s);
}

void spec_free(struct task_spec *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_collections; i++)
        collection_release(&s->collections[i]);
    for (size_t i = 0; i < s->n_backup; i++)
        collection_release(&s->backup[i]);
    for (size_t i = 0; i < s->n_mappings; i++)
        mapping_release(&s->mappings[i]);
    for (size_t i = 0; i < s->n_exclude; i++)
        spec_exclusion_release(&s->exclude[i]);
    free(s->collections);
    free(s->backup);
    free(s->mappings);
    free(s->exclude);
    free(s->made_name);
    free(s->task_id);
    free(s->uri);
    secret_free(s->token);
    free(s->mode_reason);
    free(s->server_name);
    free(s->ca_path);
    free(s->cert_path);
    free(s->key_path);
    json_decref(s->request);
    free(s);
}

/* ---- validation */

static int check_task_id(const char *id, struct err *err)
{
    if (strlen(id) > MAX_TASK_ID)
        return err_set(err, ERR_INVALID, ERRC_USER, "task_id has %zu bytes, allowed are %d",
                       strlen(id), MAX_TASK_ID);
    for (const char *p = id; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return err_set(err, ERR_INVALID, ERRC_USER, "task_id has a control character");
    return 0;
}

static int check_rpc(struct task_spec *s, const json_t *req, const struct spec_limits *limits,
                     struct err *err)
{
    const json_t *rpc = spec_rpc_info(req);
    const char *name = field_str(rpc, "name"), *position = field_str(rpc, "position");
    const char *want = limits ? limits->replicate_chan : NULL;
    char *channel = NULL;
    int rc;

    if (*name && want && strcmp(name, want) != 0)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "rpc_channel_info.name is %s, but the source's replicate channel is %s", name,
                       want);
    if (!*position)
        return 0;
    rc = spec_parse_position(position, s->rpc_id, &s->rpc_id_len, &s->rpc_tt, &channel, err);
    if (rc != 0)
        (void)err_wrap(err, "rpc_channel_info.position"); /* rc is its code */
    else if (channel && want && strcmp(channel, want) != 0)
        rc = err_set(err, ERR_INVALID, ERRC_USER,
                     "rpc_channel_info.position is of the channel %s, not of %s", channel, want);
    free(channel);
    return rc;
}

static int check_extra(const json_t *req, struct err *err)
{
    if (field_bool(json_object_get(req, "extra_info"), "enable_user_role"))
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER,
                       "extra_info.enable_user_role: replication of users and roles is not "
                       "supported by this version");
    if (json_object_size(json_object_get(req, "positions")))
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER,
                       "positions: this old field has no effect in milvus-cdc either; give them in "
                       "collection_infos[].positions or db_collections.<db>[].positions");
    return 0;
}

/* In the order of the table of errors in control-api.md 2.1. */
static int check_all(struct task_spec *s, json_t *req, const struct spec_limits *limits,
                     struct err *err)
{
    int rc = spec_check_target(s, req, err);

    if (rc == 0)
        rc = spec_check_mode(s, req, err);
    if (rc == 0)
        rc = spec_check_start(s, req, limits, err);
    if (rc == 0)
        rc = spec_check_selection(s, req, limits, err);
    if (rc == 0)
        rc = spec_check_exclude(s, req, limits, err);
    if (rc == 0)
        rc = check_rpc(s, req, limits, err);
    if (rc == 0)
        rc = spec_check_mapping(s, req, limits, err);
    if (rc == 0)
        rc = spec_check_backup(s, req, err);
    if (rc == 0)
        rc = check_extra(req, err);
    if (rc == 0)
        rc = check_task_id(field_str(req, "task_id"), err);
    s->disable_auto_start = field_bool(req, "disable_auto_start");
    s->keep_queryable = field_bool(req, "keep_queryable");
    return rc;
}

static char *random_id(void)
{
    static const char digits[] = "0123456789abcdef";
    unsigned char bytes[16];
    char id[33];

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        abort(); /* Linux promises up to 256 bytes */
    for (size_t i = 0; i < sizeof(bytes); i++) {
        id[2 * i] = digits[bytes[i] >> 4];
        id[2 * i + 1] = digits[bytes[i] & 15];
    }
    id[32] = '\0';
    return xstrdup(id);
}

/* limits NULL: from the store. */
static struct task_spec *spec_make(const json_t *request, const struct spec_limits *limits,
                                   struct err *err)
{
    struct task_spec *s;
    json_t *req = spec_decode(request, err);

    if (!req)
        return NULL;
    s = xcalloc(1, sizeof(*s));
    s->request = req;
    if (check_all(s, req, limits, err) != 0) {
        spec_free(s);
        return NULL;
    }
    s->task_id = *field_str(req, "task_id") ? xstrdup(field_str(req, "task_id")) : random_id();
    json_object_del(req, "task_id");
    return s;
}

struct task_spec *spec_from_request(const json_t *request_data, const struct spec_limits *limits,
                                    struct err *err)
{
    return spec_make(request_data, limits, err);
}

/* ---- the store: {"request": {...}, "exclude": [...], "mode_reason": "..."} */

char *spec_to_store_json(const struct task_spec *s)
{
    json_t *o = json_pack("{s:O, s:o, s:s*}", "request", s->request, "exclude", spec_exclusions_json(s), "mode_reason",
                          s->mode_reason);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

    json_decref(o);
    if (!text)
        abort(); /* only without memory */
    return text;
}

struct task_spec *spec_from_store(const char *task_id, const char *json, struct err *err)
{
    json_error_t why;
    json_t *o = json_loads(json, 0, &why);
    struct task_spec *s;

    if (!json_is_object(json_object_get(o, "request"))) {
        json_decref(o);
        err_set(err, ERR_PROTO, ERRC_USER, "the stored request of task %s cannot be read", task_id);
        return NULL;
    }
    s = spec_make(json_object_get(o, "request"), NULL, err);
    if (s) {
        set_text(&s->task_id, task_id);
        spec_load_exclusions(s, json_object_get(o, "exclude"));
        if (json_object_get(o, "mode_reason"))
            s->mode_reason = xstrdup(json_string_value(json_object_get(o, "mode_reason")));
    }
    json_decref(o);
    return s;
}

/* ---- the answer of get, control-api.md 2.5: no secret is copied */

static json_t *public_milvus(const json_t *p)
{
    const json_t *dial = json_object_get(p, "dial_config");

    return json_pack("{s:s, s:I, s:b, s:s, s:o, s:I, s:b, s:I}", "host", field_str(p, "host"),
                     "port", field_int(p, "port"), "enable_tls", field_bool(p, "enable_tls"), "uri",
                     field_str(p, "uri"), "dial_config", dial ? json_deep_copy(dial) : json_object(),
                     "channel_num", field_int(p, "channel_num"), "ignore_partition",
                     field_bool(p, "ignore_partition"), "connect_timeout",
                     field_int(p, "connect_timeout"));
}

static json_t *public_collections(const json_t *infos)
{
    json_t *out = json_array();
    const json_t *c;
    size_t i;

    json_array_foreach(infos, i, c) {
        json_t *positions = json_object_get(c, "positions");

        json_array_append_new(out, json_pack("{s:s, s:O?, s:b}", "name", field_str(c, "name"),
                                             "positions", positions, "use_start_position",
                                             field_bool(c, "use_start_position")));
    }
    return out;
}

static json_t *public_dbs(json_t *dbs)
{
    json_t *out = json_object(), *infos;
    const char *db;

    json_object_foreach(dbs, db, infos)
        json_object_set_new(out, db, public_collections(infos));
    return out;
}

/* Null, not an empty list, for what was not given. */
json_t *spec_public_json(const struct task_spec *s)
{
    const json_t *infos = json_object_get(s->request, "collection_infos");
    json_t *dbs = json_object_get(s->request, "db_collections");

    return json_pack("{s:o*, s:O*, s:s, s:s, s:o, s:{s:s, s:s, s:b, s:{}}, s:o, s:o}", "start", spec_start_json(s), "exclude",
                     json_object_get(s->request, "exclude"), "mode",
                     spec_mode_name(s->mode == SPEC_AUTO ? SPEC_STANDBY : s->mode), "mode_reason",
                     s->mode_reason ? s->mode_reason : "", "milvus_connect_param",
                     public_milvus(json_object_get(s->request, "milvus_connect_param")),
                     "kafka_connect_param", "address", "", "topic", "", "enable_sasl", 0, "sasl",
                     "collection_infos",
                     json_array_size(infos) ? public_collections(infos) : json_null(),
                     "db_collections", json_object_size(dbs) ? public_dbs(dbs) : json_null());
}
