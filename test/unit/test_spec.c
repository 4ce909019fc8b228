/* test_spec.c - validation of create requests, names on the target, overlaps of two tasks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base64.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "task/spec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define URI "'milvus_connect_param':{'uri':'http://127.0.0.1:19530'}"
#define ONE "'collection_infos':[{'name':'a'}]"
#define OK_REQ "{" URI "," ONE "}"
#define WITH(more) "{" URI "," ONE "," more "}"
#define CONNECT(fields) "{'milvus_connect_param':{" fields "}," ONE "}"
#define SELECT(fields) "{" URI "," fields "}"
#define A257 \
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" \
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" \
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static const struct spec_limits limits = {.max_name_length = 256, .replicate_chan = "by-dev-replicate-msg"};

/* Single quotes stand for double ones. */
static json_t *parse(const char *text)
{
    char *copy = xstrdup(text);
    json_error_t why;
    json_t *o;

    for (char *p = copy; *p; p++)
        if (*p == '\'')
            *p = '"';
    o = json_loads(copy, 0, &why);
    if (!o)
        fail_msg("%s: %s", why.text, copy);
    free(copy);
    return o;
}

static struct task_spec *make(const char *text, struct err *err)
{
    json_t *o = parse(text);
    struct task_spec *s = spec_from_request(o, &limits, err);

    json_decref(o);
    return s;
}

static struct task_spec *good(const char *text)
{
    struct err err = {0};
    struct task_spec *s = make(text, &err);

    if (!s)
        fail_msg("%s: %s", text, err.text);
    return s;
}

static void refused(const char *text, enum err_code code, const char *part)
{
    struct err err = {0};
    struct task_spec *s = make(text, &err);

    if (s)
        fail_msg("accepted: %s", text);
    if (err.code != code || !strstr(err.text, part))
        fail_msg("%s: got %s: %s", text, err_code_name(err.code), err.text);
    assert_int_equal(err.cls, ERRC_USER);
}

/* A base64 MsgPosition. */
static char *position(const char *channel, const void *id, size_t id_len, uint64_t tt)
{
    struct pb_out o = {0};
    char *text;

    pb_out_str(&o, 1, channel);
    pb_out_bytes(&o, 2, id, id_len);
    pb_out_str(&o, 3, "group");
    pb_out_u64(&o, 4, tt);
    text = base64_encode(o.data, o.len);
    pb_out_release(&o);
    return text;
}

/* ---- the table of errors of control-api.md 2.1 */

static const struct {
    const char *request;
    enum err_code code;
    const char *part;
} bad_requests[] = {
    /* target */
    {"{}", ERR_INVALID, "no target"},
    {"{'milvus_connect_param':{}," ONE "}", ERR_INVALID, "no target"},
    {"{'milvus_connect_param':null," ONE "}", ERR_INVALID, "no target"},
    {"{" URI ",'kafka_connect_param':{'address':'k:9092','topic':'t'}," ONE "}", ERR_INVALID,
     "two targets"},
    {CONNECT("'host':'h'"), ERR_INVALID, "no port"},
    {CONNECT("'host':'h','port':-1"), ERR_INVALID, "no port"},
    {CONNECT("'port':19530"), ERR_INVALID, "no host"},
    {CONNECT("'uri':'http://h:1','username':'u'"), ERR_INVALID, "only one of username"},
    {CONNECT("'uri':'http://h:1','password':'secret1'"), ERR_INVALID, "only one of username"},
    {CONNECT("'uri':'http://h:1','connect_timeout':-1"), ERR_INVALID, "connect_timeout"},
    {CONNECT("'uri':'http://h:1','connect_timeout':86401"), ERR_INVALID, "connect_timeout"},
    {CONNECT("'uri':'http://h:1','channel_num':-1"), ERR_INVALID, "channel_num"},
    {"{'kafka_connect_param':{'address':'k:9092'}," ONE "}", ERR_INVALID, "no topic"},
    {"{'kafka_connect_param':{'address':'k:9092','topic':'t'}," ONE "}", ERR_UNSUPPORTED,
     "Kafka as a target is not supported by this version"},
    {WITH("'kafka_connect_param':{'topic':'t'}"), ERR_UNSUPPORTED, "Kafka"},
    {WITH("'kafka_connect_param':{'sasl':{'username':'t'}}"), ERR_UNSUPPORTED, "Kafka"},
    {WITH("'buffer_config':{'period':-1}"), ERR_INVALID, "buffer_config"},
    {WITH("'buffer_config':{'size':-1}"), ERR_INVALID, "buffer_config"},
    {CONNECT("'uri':'h:1'"), ERR_INVALID, ""},
    {CONNECT("'uri':'ftp://h:1'"), ERR_INVALID, ""},
    {CONNECT("'uri':'http://'"), ERR_INVALID, ""},
    {CONNECT("'uri':'http://h:70000'"), ERR_INVALID, ""},
    {CONNECT("'host':'h','port':70000"), ERR_INVALID, ""},
    {CONNECT("'uri':'http://root:Milvus@h:1'"), ERR_INVALID, "use token"},
    {CONNECT("'uri':'https://h:1','dial_config':{'client_pem_path':'/c'}"), ERR_INVALID,
     "client_key_path"},
    /* selection */
    {SELECT("'task_id':'t'"), ERR_INVALID, "no collection is selected"},
    {SELECT("'collection_infos':[],'db_collections':{}"), ERR_INVALID, "no collection"},
    {SELECT("'collection_infos':null"), ERR_INVALID, "no collection"},
    {WITH("'db_collections':{'d':[{'name':'a'}]}"), ERR_INVALID, "together"},
    {SELECT("'db_collections':{'d':[]}"), ERR_INVALID, "no collection for d"},
    {SELECT("'db_collections':{'d':null}"), ERR_INVALID, "no collection for d"},
    {SELECT("'db_collections':{'':[{'name':'a'}]}"), ERR_INVALID, "database's name is empty"},
    {SELECT("'db_collections':{'d.e':[{'name':'a'}]}"), ERR_INVALID, "dot"},
    {SELECT("'collection_infos':[{}]"), ERR_INVALID, "collection's name is empty"},
    {SELECT("'collection_infos':[null]"), ERR_INVALID, "collection's name is empty"},
    {SELECT("'collection_infos':[{'name':'" A257 "'}]"), ERR_INVALID, "257 bytes, allowed are 256"},
    {SELECT("'collection_infos':[{'name':'a.b.c'}]"), ERR_INVALID, "a.b.c: the collection's name has a dot in it: b.c"},
    {SELECT("'collection_infos':[{'name':'a.'}]"), ERR_INVALID, "a.: the collection's name is empty"},
    {SELECT("'collection_infos':[{'name':'.a'}]"), ERR_INVALID, ".a: the database's name is empty"},
    {SELECT("'collection_infos':[{'name':'d.a*b'}]"), ERR_INVALID,
     "d.a*b: the collection's name is a*b: a `*` can only stand at its end"},
    {SELECT("'collection_infos':[{'name':'**'}]"), ERR_INVALID, "is **: a `*` can only stand at its end"},
    {SELECT("'db_collections':{'d':[{'name':'d.a'}]}"), ERR_INVALID, "the collection's name has a dot in it: d.a"},
    {SELECT("'db_collections':{'d*e':[{'name':'a'}]}"), ERR_INVALID, "the database's name is d*e"},
    {SELECT("'collection_infos':[{'name':'ab*'},{'name':'abc*'}]"), ERR_INVALID, "default.ab* and default.abc*"},
    {SELECT("'collection_infos':[{'name':'d*.*'},{'name':'dd.x'}]"), ERR_INVALID, "d*.* and dd.x"},
    {SELECT("'collection_infos':[{'name':'tmp_*','positions':{'p_1v0':''}}]"), ERR_INVALID, "default.tmp_*: a pattern"},
    /* exclusions */
    {SELECT("'collection_infos':[{'name':'d.*'}],'exclude':['d.a*b']"), ERR_INVALID,
     "exclude: d.a*b: the collection's name is a*b"},
    {SELECT("'collection_infos':[{'name':'d.*'}],'exclude':['e.a']"), ERR_INVALID,
     "exclude has e.a, of which the task selects nothing"},
    {SELECT("'collection_infos':[{'name':'d.*'}],'exclude':['a']"), ERR_INVALID, "exclude has a,"},
    {SELECT("'collection_infos':[{'name':'d.*'},{'name':'e.x'}],'exclude':['e.*']"), ERR_INVALID,
     "e.x is selected, and excluded as a whole"},
    {SELECT("'collection_infos':[{'name':'d.*'}],'exclude':[7]"), ERR_PROTO, "exclude[0] must be a string"},
    {SELECT("'collection_infos':[{'name':'d.*'}],'exclude':'d.a'"), ERR_PROTO, "exclude must be an array"},
    {SELECT("'collection_infos':[{'name':'*','positions':{'p_1v0':''}}]"), ERR_INVALID,
     "default.*: a pattern with a `*` cannot have positions"},
    {SELECT("'collection_infos':[{'name':'a'},{'name':'a'}]"), ERR_INVALID, "same collection"},
    {SELECT("'collection_infos':[{'name':'*'},{'name':'a'}]"), ERR_INVALID, "same collection"},
    {SELECT("'db_collections':{'d':[{'name':'a'}],'*':[{'name':'*'}]}"), ERR_INVALID,
     "same collection"},
    {SELECT("'db_collections':{'d':[{'name':'a'}],'*':[{'name':'a'}]}"), ERR_INVALID,
     "same collection"},
    /* positions */
    {SELECT("'collection_infos':[{'name':'a','positions':{'by-dev-rootcoord-dml_3':''}}]"),
     ERR_INVALID, "physical channel"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'by-dev':''}}]"), ERR_INVALID,
     "not a virtual channel"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'_1v0':''}}]"), ERR_INVALID,
     "not a virtual channel"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'p_1v':''}}]"), ERR_INVALID,
     "not a virtual channel"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'p_1v0x':''}}]"), ERR_INVALID,
     "not a virtual channel"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'p_99999999999999999999v0':''}}]"),
     ERR_INVALID, "not a virtual channel"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'p_1v0':'!'}}]"), ERR_PROTO,
     "p_1v0: the position is not base64"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'p_1v0':'/////w=='}}]"), ERR_PROTO,
     "not a MsgPosition"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'p_1v0':''}}]"), ERR_PROTO,
     "message id of 0 bytes"},
    /* CgFwEgEB: channel p, id 01 */
    {SELECT("'collection_infos':[{'name':'a','positions':{'q_1v0':'CgFwEgEB'}}]"), ERR_INVALID,
     "of another channel, p"},
    {SELECT("'collection_infos':[{'name':'a','positions':{'p_1v0':'CgFwEgEB','p_2v1':'CgFwEgEB'}}]"),
     ERR_INVALID, "two collections"},
    /* the replicate channel */
    {WITH("'rpc_channel_info':{'name':'other'}"), ERR_INVALID, "by-dev-replicate-msg"},
    {WITH("'rpc_channel_info':{'position':'!'}"), ERR_PROTO, "rpc_channel_info.position"},
    {WITH("'rpc_channel_info':{'position':'CgFwEgEB'}"), ERR_INVALID, "channel p"},
    /* names */
    {WITH("'name_mapping':[{'target_db':'x'}]"), ERR_INVALID, "source_db is empty"},
    {WITH("'name_mapping':[{'source_db':'default'}]"), ERR_INVALID, "target_db is empty"},
    {WITH("'name_mapping':[{'source_db':'d','target_db':'x'}]"), ERR_INVALID, "selects nothing"},
    {WITH("'name_mapping':[{'source_db':'default','target_db':'x','collection_mapping':{'b':'c'}}]"),
     ERR_INVALID, "default.b, which the task does not select"},
    {WITH("'name_mapping':[{'source_db':'default','target_db':'*'}]"), ERR_INVALID, "`*`"},
    {WITH("'name_mapping':[{'source_db':'default','target_db':'x.y'}]"), ERR_INVALID, "dot"},
    {WITH("'name_mapping':[{'source_db':'default','target_db':'x','collection_mapping':{'a':''}}]"),
     ERR_INVALID, "target collection is empty"},
    {SELECT("'collection_infos':[{'name':'*'}],'name_mapping':[{'source_db':'default','target_db':'x',"
            "'collection_mapping':{'a*':'b'}}]"),
     ERR_INVALID, "default.a* -> b: either both end with a `*`, or none"},
    {SELECT("'collection_infos':[{'name':'tmp_*'}],'name_mapping':[{'source_db':'default','target_db':'x',"
            "'collection_mapping':{'a':'b'}}]"),
     ERR_INVALID, "default.a, which the task does not select"},
    {SELECT("'collection_infos':[{'name':'*'}],'exclude':['a'],'name_mapping':[{'source_db':'default',"
            "'target_db':'x','collection_mapping':{'a':'b'}}]"),
     ERR_INVALID, "default.a, which the task does not select"},
    {SELECT("'collection_infos':[{'name':'d*.*'}],'name_mapping':[{'source_db':'d*','target_db':'x'}]"), ERR_INVALID,
     "source_db is d*: a `*` cannot be in it"},
    {WITH("'name_mapping':[{'source_db':'default','target_db':'x'},"
          "{'source_db':'default','target_db':'y'}]"),
     ERR_INVALID, "default twice"},
    {WITH("'name_mapping':[{'source_db':'default','target_db':'x','collection_mapping':{'a':'b'}},"
          "{'source_db':'default','target_db':'y','collection_mapping':{'a':'b'}}]"),
     ERR_INVALID, "default.a twice"},
    {SELECT("'collection_infos':[{'name':'*'}],'name_mapping':[{'source_db':'default',"
            "'target_db':'x','collection_mapping':{'a':'c','b':'c'}}]"),
     ERR_INVALID, "same target x.c"},
    {SELECT("'collection_infos':[{'name':'a'},{'name':'b'}],'name_mapping':[{'source_db':'default',"
            "'target_db':'default','collection_mapping':{'a':'b'}}]"),
     ERR_INVALID, "same target default.b"},
    /* others */
    {WITH("'extra_info':{'enable_user_role':true}"), ERR_UNSUPPORTED, "enable_user_role"},
    {WITH("'positions':{'p':'CgFwEgEB'}"), ERR_UNSUPPORTED, "collection_infos[].positions"},
    {WITH("'task_id':'a\\nb'"), ERR_INVALID, "control character"},
    {WITH("'task_id':'" A257 "'"), ERR_INVALID, "task_id has 257 bytes"},
    /* types */
    {"[]", ERR_PROTO, "request_data must be an object, not an array"},
    {WITH("'task_id':1"), ERR_PROTO, "task_id must be a string, not a number"},
    {CONNECT("'uri':'http://h:1','port':'19530'"), ERR_PROTO,
     "milvus_connect_param.port must be an integer, not a string"},
    {CONNECT("'uri':'http://h:1','port':1.5"), ERR_PROTO, "port must be an integer"},
    {CONNECT("'uri':'http://h:1','port':1e300"), ERR_PROTO, "port must be an integer"},
    {CONNECT("'uri':'http://h:1','enable_tls':1"), ERR_PROTO, "enable_tls must be a boolean"},
    {CONNECT("'uri':'http://h:1','dial_config':'x'"), ERR_PROTO, "dial_config must be an object"},
    {SELECT("'collection_infos':{}"), ERR_PROTO, "collection_infos must be an array"},
    {SELECT("'collection_infos':['a']"), ERR_PROTO, "collection_infos[0] must be an object"},
    {SELECT("'collection_infos':[{'name':'a'},{'positions':{'p_1v0':7}}]"), ERR_PROTO,
     "collection_infos[1].positions.p_1v0 must be a string"},
    {SELECT("'db_collections':[]"), ERR_PROTO, "db_collections must be an object"},
    {SELECT("'db_collections':{'d':{}}"), ERR_PROTO, "db_collections.d must be an array"},
    {WITH("'disable_auto_start':'true'"), ERR_PROTO, "disable_auto_start must be a boolean"},
};

static void each_error_has_its_code(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(bad_requests) / sizeof(bad_requests[0]); i++)
        refused(bad_requests[i].request, bad_requests[i].code, bad_requests[i].part);
}

/* control-api.md 2.1: the first error in the order of its table is the answer. */
static void errors_come_in_the_documented_order(void **state)
{
    static const char *const steps[][2] = {
        {"{'milvus_connect_param':{'port':1,'username':'u','connect_timeout':-1}}", "no host"},
        {"{'milvus_connect_param':{'uri':'http://h','username':'u','connect_timeout':-1}}",
         "only one"},
        {"{'milvus_connect_param':{'uri':'http://h','connect_timeout':-1},"
         "'buffer_config':{'size':-1}}",
         "connect_timeout"},
        {"{" URI ",'buffer_config':{'size':-1}}", "buffer_config"},
        {"{" URI ",'rpc_channel_info':{'name':'x'}}", "no collection is selected"},
        {WITH("'rpc_channel_info':{'name':'x'},'name_mapping':[{}]"), "rpc_channel_info"},
        {WITH("'name_mapping':[{}],'extra_info':{'enable_user_role':true}"), "name_mapping"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
        refused(steps[i][0], ERR_INVALID, steps[i][1]);
}

static void errors_never_show_a_secret(void **state)
{
    struct err err = {0};

    (void)state;
    assert_null(make(CONNECT("'uri':'http://u:pa55word@h:1','token':'pa55word'"), &err));
    assert_null(strstr(err.text, "pa55word"));
    assert_null(make("{'milvus_connect_param':'pa55word'}", &err));
    assert_null(strstr(err.text, "pa55word"));
}

/* ---- the target */

static void address_is_built_as_documented(void **state)
{
    static const char *const cases[][2] = {
        {CONNECT("'uri':'https://h:1','host':'other','port':5"), "https://h:1"},
        {CONNECT("'host':'h','port':19530"), "http://h:19530"},
        {CONNECT("'host':'h','port':19530.0"), "http://h:19530"},
        {CONNECT("'host':'h','port':19530,'enable_tls':true"), "https://h:19530"},
        {CONNECT("'host':'https://h:7','port':19530"), "https://h:7"},
        {CONNECT("'host':'https://h','port':19530"), "https://h:19530"},
        {CONNECT("'host':'::1','port':19530"), "http://[::1]:19530"},
        {CONNECT("'host':'[::1]','port':19530"), "http://[::1]:19530"},
        {CONNECT("'host':'http://[::1]','port':19530"), "http://[::1]:19530"},
        {CONNECT("'uri':'http://h:1','dial_config':{'server_name':'n'}"), "http://h:1"},
        {CONNECT("'uri':'http://h:1','dial_config':{'server_pem_path':'/s'}"), "https://h:1"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct task_spec *s = good(cases[i][0]);

        assert_string_equal(s->uri, cases[i][1]);
        spec_free(s);
    }
}

static void token_wins_over_username(void **state)
{
    static const char *const cases[][2] = {
        {CONNECT("'uri':'http://h:1','token':'t','username':'u','password':'p'"), "t"},
        {CONNECT("'uri':'http://h:1','username':'u','password':'p'"), "u:p"},
        {CONNECT("'uri':'http://h:1'"), ""},
    };

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct task_spec *s = good(cases[i][0]);

        assert_string_equal(s->token, cases[i][1]);
        spec_free(s);
    }
}

static void certificates_and_switches_are_taken(void **state)
{
    struct task_spec *s = good(
        "{'milvus_connect_param':{'uri':'https://h:1','ignore_partition':true,'connect_timeout':7,"
        "'channel_num':16,'dial_config':{'server_name':'n','server_pem_path':'/s','ca_pem_path':'/a',"
        "'client_pem_path':'/c','client_key_path':'/k'}}," ONE ",'disable_auto_start':true,"
        "'keep_queryable':true,'buffer_config':{'period':1,'size':2},'positions':{},"
        "'extra_info':{'enable_user_role':false},'kafka_connect_param':{'address':'','sasl':{}},"
        "'rpc_channel_info':{'name':'by-dev-replicate-msg'},'unknown':[1]}");

    (void)state;
    assert_string_equal(s->server_name, "n");
    assert_string_equal(s->ca_path, "/a");
    assert_string_equal(s->cert_path, "/c");
    assert_string_equal(s->key_path, "/k");
    assert_int_equal(s->connect_timeout_s, 7);
    assert_true(s->ignore_partition && s->disable_auto_start && s->keep_queryable);
    assert_null(json_object_get(s->request, "unknown"));
    spec_free(s);

    s = good(CONNECT("'uri':'https://h:1','dial_config':{'server_pem_path':'/s'}"));
    assert_string_equal(s->ca_path, "/s");
    assert_null(s->cert_path);
    assert_int_equal(s->connect_timeout_s, 5);
    assert_false(s->ignore_partition || s->disable_auto_start || s->keep_queryable);
    spec_free(s);
}

static void field_names_match_in_any_case(void **state)
{
    struct task_spec *s = good("{'TASK_ID':'t9','Milvus_Connect_Param':{'URI':'http://h:1'},"
                               "'Collection_Infos':[{'NAME':'a','Use_Start_Position':true}]}");

    (void)state;
    assert_string_equal(s->task_id, "t9");
    assert_string_equal(s->collections[0].name, "a");
    assert_true(s->collections[0].use_start_position);
    assert_null(json_object_get(s->request, "task_id"));
    spec_free(s);
}

static void missing_task_id_is_random(void **state)
{
    struct task_spec *a = good(OK_REQ), *b = good(WITH("'task_id':''"));

    (void)state;
    assert_int_equal(strlen(a->task_id), 32);
    assert_int_equal(strspn(a->task_id, "0123456789abcdef"), 32);
    assert_string_not_equal(a->task_id, b->task_id);
    spec_free(a);
    spec_free(b);
}

/* ---- positions */

static void positions_are_decoded(void **state)
{
    uint8_t id[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    char *p = position("by-dev-rootcoord-dml_3", id, 8, 470673188777099264u);
    char *rpc = position("by-dev-replicate-msg", id, 4, 9);
    char *text = xasprintf("{" URI ",'collection_infos':[{'name':'a','positions':{"
                           "'by-dev-rootcoord-dml_3_47v1':'%s'}}],'rpc_channel_info':{'position':'%s'}}",
                           p, rpc);
    struct task_spec *s = good(text);
    struct spec_position *got = s->collections[0].positions;

    (void)state;
    assert_int_equal(s->collections[0].n_positions, 1);
    assert_string_equal(got->vchannel, "by-dev-rootcoord-dml_3_47v1");
    assert_string_equal(got->pchannel, "by-dev-rootcoord-dml_3");
    assert_int_equal(got->id_len, 8);
    assert_memory_equal(got->id, id, 8);
    assert_true(got->tt == 470673188777099264u);
    assert_int_equal(s->rpc_id_len, 4);
    assert_memory_equal(s->rpc_id, id, 4);
    assert_int_equal(s->rpc_tt, 9);
    spec_free(s);
    free(text);
    free(rpc);
    free(p);
}

static void id_larger_than_any_queues_is_refused(void **state)
{
    uint8_t id[WAL_ID_MAX + 1] = {1};
    char *p = position("p", id, sizeof(id), 1);
    char *text = xasprintf("{" URI ",'collection_infos':[{'name':'a','positions':{'p_1v0':'%s'}}]}", p);

    (void)state;
    refused(text, ERR_PROTO, "message id of 33 bytes");
    free(text);
    free(p);
}

/* ---- selection and names on the target */

static void check_match(struct task_spec *s, const char *db, const char *name, const char *want)
{
    const struct spec_collection *c = NULL;
    const char *to_db = "", *to_name = "";
    char got[100] = "-";

    if (spec_matches(s, db, name, &c, &to_db, &to_name)) {
        assert_non_null(c);
        snprintf(got, sizeof(got), "%s.%s", to_db, to_name);
    }
    assert_string_equal(got, want);
    assert_int_equal(spec_matches(s, db, name, NULL, NULL, NULL), want[0] != '-');
}

static void check_db(const struct task_spec *s, const char *db, const char *want)
{
    const char *to = "";

    if (!spec_matches_db(s, db, &to))
        to = "-";
    assert_string_equal(to, want);
    assert_int_equal(spec_matches_db(s, db, NULL), want[0] != '-');
}

static void selections_match(void **state)
{
    struct task_spec *s = good(SELECT("'collection_infos':[{'name':'a'},{'name':'b'}]"));

    (void)state;
    check_match(s, "default", "a", "default.a");
    check_match(s, "default", "b", "default.b");
    check_match(s, "default", "c", "-");
    check_match(s, "d", "a", "-");
    check_db(s, "default", "default");
    check_db(s, "d", "-");
    spec_free(s);

    s = good(SELECT("'db_collections':{'d':[{'name':'*'}],'e':[{'name':'x'},{'name':'y'}]}"));
    check_match(s, "d", "any", "d.any");
    check_match(s, "e", "y", "e.y");
    check_match(s, "e", "z", "-");
    check_match(s, "default", "any", "-");
    check_db(s, "d", "d");
    check_db(s, "e", "e");
    spec_free(s);

    s = good(SELECT("'db_collections':{'*':[{'name':'*'}]}"));
    check_match(s, "any", "thing", "any.thing");
    check_db(s, "any", "any");
    spec_free(s);

    s = good(SELECT("'collection_infos':[{'name':'*'}]"));
    check_match(s, "default", "any", "default.any");
    check_match(s, "d", "any", "-");
    spec_free(s);
}

static void patterns_match(void **state)
{
    struct task_spec *s = good(SELECT("'collection_infos':[{'name':'tmp_*'},{'name':'d.*'},{'name':'shop_*.order*'},"
                                      "{'name':'e.x'}],'exclude':['tmp_a','d.x*','shop_2.*']"));

    (void)state;
    check_match(s, "default", "tmp_", "default.tmp_");
    check_match(s, "default", "tmp_b", "default.tmp_b");
    check_match(s, "default", "tmp_a", "-");
    check_match(s, "default", "tmp", "-");
    check_match(s, "d", "any", "d.any");
    check_match(s, "d", "x", "-");
    check_match(s, "d", "xy", "-");
    check_match(s, "shop_1", "orders", "shop_1.orders");
    check_match(s, "shop_1", "order", "shop_1.order");
    check_match(s, "shop_1", "items", "-");
    check_match(s, "shop_2", "orders", "-");
    check_match(s, "shop", "orders", "-");
    check_match(s, "e", "x", "e.x");
    check_match(s, "e", "y", "-");
    check_db(s, "shop_1", "shop_1");
    check_db(s, "shop_2", "-");
    check_db(s, "d", "d");
    check_db(s, "f", "-");
    spec_free(s);

    s = good(SELECT("'collection_infos':[{'name':'*.*'}],'exclude':['*.scratch','secret*.*']"));
    check_match(s, "any", "thing", "any.thing");
    check_match(s, "any", "scratch", "-");
    check_match(s, "secret_1", "a", "-");
    check_db(s, "any", "any");
    check_db(s, "secret", "-");
    spec_free(s);

    s = good(SELECT("'db_collections':{'shop_*':[{'name':'a*'},{'name':'b'}]}"));
    check_match(s, "shop_1", "ab", "shop_1.ab");
    check_match(s, "shop_1", "b", "shop_1.b");
    check_match(s, "shop_1", "bb", "-");
    check_match(s, "shop", "b", "-");
    spec_free(s);
}

static void pairs_of_patterns_make_names(void **state)
{
    struct task_spec *s = good(SELECT(
        "'collection_infos':[{'name':'*.*'}],'name_mapping':["
        "{'source_db':'d','target_db':'dd'},"
        "{'source_db':'d','target_db':'x','collection_mapping':{'tmp_*':'copy_*','tmp_long*':'l*','tmp_a':'one'}},"
        "{'source_db':'e','target_db':'e','collection_mapping':{'*':'bak_*'}}]"));

    (void)state;
    check_match(s, "d", "tmp_1", "x.copy_1");
    check_match(s, "d", "tmp_", "x.copy_");
    check_match(s, "d", "tmp_longer", "x.ler"); /* the longest beginning wins, the name itself over all */
    check_match(s, "d", "tmp_a", "x.one");
    check_match(s, "d", "tmp_ab", "x.copy_ab");
    check_match(s, "d", "other", "dd.other");
    check_match(s, "e", "a", "e.bak_a");
    check_match(s, "f", "tmp_1", "f.tmp_1");
    check_db(s, "d", "dd");
    spec_free(s);
}

static void names_are_mapped(void **state)
{
    struct task_spec *s = good(SELECT(
        "'db_collections':{'*':[{'name':'*'}]},'name_mapping':["
        "{'source_db':'d','target_db':'dd'},"
        "{'source_db':'d','target_db':'x','collection_mapping':{'a':'aa'}},"
        "{'source_db':'e','target_db':'ee','collection_mapping':{'a':'a2','b':'b'}}]"));

    (void)state;
    check_match(s, "d", "a", "x.aa"); /* its own mapping wins over its database's */
    check_match(s, "d", "b", "dd.b");
    check_match(s, "e", "a", "ee.a2");
    check_match(s, "e", "b", "ee.b");
    check_match(s, "e", "c", "e.c");
    check_match(s, "f", "a", "f.a");
    check_db(s, "d", "dd");
    check_db(s, "e", "e"); /* its collections go to two databases */
    check_db(s, "f", "f");
    spec_free(s);

    s = good(WITH("'name_mapping':[{'source_db':'default','target_db':'x',"
                  "'collection_mapping':{'a':'b'}}]"));
    check_match(s, "default", "a", "x.b");
    check_db(s, "default", "x");
    spec_free(s);
}

/* Names may be swapped: no two collections have the same target. */
static void swapped_names_are_no_conflict(void **state)
{
    struct task_spec *s = good(SELECT(
        "'collection_infos':[{'name':'a'},{'name':'b'}],'name_mapping':[{'source_db':'default',"
        "'target_db':'default','collection_mapping':{'a':'b','b':'a'}}]"));

    (void)state;
    check_match(s, "default", "a", "default.b");
    check_match(s, "default", "b", "default.a");
    spec_free(s);
}

/* ---- two tasks */

static struct task_spec *db_task(const char *db, const char *name)
{
    char *text = xasprintf("{'task_id':'%s.%s'," URI ",'db_collections':{'%s':[{'name':'%s'}]}}", db,
                           name, db, name);
    struct task_spec *s = good(text);

    free(text);
    return s;
}

static void overlaps(const char *new_db, const char *new_name, const char *db, const char *name,
                     bool want, const char *excluded)
{
    struct task_spec *a = db_task(new_db, new_name), *b = db_task(db, name);
    char *text = spec_overlap(a, b);

    if ((text != NULL) != want)
        fail_msg("%s.%s over %s.%s: %s", new_db, new_name, db, name, text ? text : "allowed");
    if (text)
        assert_non_null(strstr(text, b->task_id));
    else
        spec_add_exclusions(a, b);
    assert_int_equal(a->n_exclude, excluded ? 1 : 0);
    if (excluded) {
        char *got = xasprintf("%s.%s", a->exclude[0].db, a->exclude[0].name);

        assert_string_equal(got, excluded);
        free(got);
    }
    free(text);
    spec_free(a);
    spec_free(b);
}

static void overlap_of_two_tasks(void **state)
{
    (void)state;
    overlaps("d", "a", "d", "a", true, NULL);
    overlaps("d", "a", "d", "b", false, NULL);
    overlaps("d", "a", "e", "a", false, NULL);
    overlaps("d", "a", "d", "*", true, NULL);
    overlaps("d", "a", "*", "*", true, NULL);
    overlaps("d", "a", "*", "a", true, NULL);
    overlaps("d", "*", "d", "*", true, NULL);
    overlaps("d", "*", "*", "*", true, NULL);
    overlaps("*", "*", "*", "*", true, NULL);
    overlaps("d", "*", "d", "a", false, "d.a");
    overlaps("d", "*", "e", "a", false, NULL);
    overlaps("*", "*", "d", "a", false, "d.a");
    overlaps("*", "*", "d", "*", false, "d.*");
    overlaps("*", "a", "d", "*", false, "d.a"); /* neither covers the other */
    overlaps("d", "*", "*", "a", false, "d.a");
    overlaps("d", "tmp_1", "d", "tmp_*", true, NULL);
    overlaps("d", "tmp_*", "d", "tmp_*", true, NULL);
    overlaps("d", "tmp_x*", "d", "tmp_*", true, NULL);
    overlaps("d", "tmp_*", "*", "*", true, NULL);
    overlaps("d", "tmp_*", "d", "tmp_x*", false, "d.tmp_x*");
    overlaps("d", "tmp_*", "d", "tmp_1", false, "d.tmp_1");
    overlaps("d", "tmp_*", "d", "tm", false, NULL);
    overlaps("d*", "a", "dd", "*", false, "dd.a");
    overlaps("d*", "*", "d", "a*", false, "d.a*");
    overlaps("d*", "a*", "*", "*", true, NULL);
    overlaps("d*", "a*", "e*", "a*", false, NULL);
}

/* What a task excludes by its user's wish is free: for a smaller task, and for a larger one that is made later. */
static void what_another_task_excludes_is_free(void **state)
{
    struct task_spec *b = good(SELECT("'collection_infos':[{'name':'d.*'}],'exclude':['d.tmp_*','d.x']"));
    struct task_spec *tmp = db_task("d", "tmp_1*"), *part = db_task("d", "t*"), *all = db_task("*", "*"), *loaded;
    struct err err = {0};
    char *text = spec_overlap(part, b), *json;

    (void)state;
    assert_null(spec_overlap(tmp, b));
    assert_non_null(text); /* the task has the rest of it */
    assert_null(spec_overlap(all, b));
    spec_add_exclusions(all, tmp);
    spec_add_exclusions(all, b);
    json = spec_to_store_json(all);
    loaded = spec_from_store("all", json, &err);
    assert_non_null(loaded);
    check_match(loaded, "d", "a", "-");
    check_match(loaded, "d", "x", "d.x");
    check_match(loaded, "d", "tmp_2", "d.tmp_2");
    check_match(loaded, "d", "tmp_12", "-"); /* the other task's */
    check_match(loaded, "e", "a", "e.a");
    check_db(loaded, "d", "d");
    spec_free(loaded);
    free(json);
    json = spec_to_store_json(b); /* the user's own exclusions come from the request, once */
    loaded = spec_from_store("b", json, &err);
    assert_int_equal(loaded->n_exclude, 2);
    check_match(loaded, "d", "tmp_1", "-");
    check_match(loaded, "d", "a", "d.a");
    spec_free(loaded);
    free(json);
    free(text);
    spec_free(all);
    spec_free(part);
    spec_free(tmp);
    spec_free(b);
}

static void exclusions_are_honoured_and_stored(void **state)
{
    struct task_spec *one = db_task("d", "a"), *whole = db_task("e", "*"), *all = db_task("*", "*");
    struct task_spec *again = db_task("d", "a"), *loaded, *other;
    struct err err = {0};
    char *json, *text;

    (void)state;
    spec_add_exclusions(all, one);
    spec_add_exclusions(all, whole);
    spec_add_exclusions(all, one); /* once is enough */
    assert_int_equal(all->n_exclude, 2);
    json = spec_to_store_json(all);
    loaded = spec_from_store("all", json, &err);
    assert_non_null(loaded);
    assert_string_equal(loaded->task_id, "all");
    check_match(loaded, "d", "a", "-");
    check_match(loaded, "d", "b", "d.b");
    check_match(loaded, "e", "a", "-");
    check_match(loaded, "f", "a", "f.a");
    check_db(loaded, "d", "d");
    check_db(loaded, "e", "-");

    /* The excluded collection may be given to a task again; another one of the `*` may not. */
    assert_null(spec_overlap(again, loaded));
    spec_add_exclusions(again, loaded);
    assert_int_equal(again->n_exclude, 0);
    other = db_task("d", "b");
    text = spec_overlap(other, loaded);
    assert_non_null(text);

    free(text);
    free(json);
    spec_free(other);
    spec_free(loaded);
    spec_free(again);
    spec_free(all);
    spec_free(whole);
    spec_free(one);
}

/* ---- the store and the answer of get */

#define FULL                                                                                      \
    "{'task_id':'t1','milvus_connect_param':{'host':'h','port':1,'username':'us3r',"              \
    "'password':'pa55word','token':'t0ken','connect_timeout':3,'dial_config':{'server_name':'n'}},"\
    "'kafka_connect_param':{'sasl':{}},'db_collections':{'d':[{'name':'a','positions':{'p_1v0':"  \
    "'CgFwEgEB'},'use_start_position':true}]},'name_mapping':[{'source_db':'d','target_db':'x'}]," \
    "'keep_queryable':true,'disable_auto_start':true}"

static void store_keeps_everything(void **state)
{
    struct err err = {0};
    struct task_spec *s = good(FULL), *l;
    char *json = spec_to_store_json(s), *json2;

    (void)state;
    l = spec_from_store("t1", json, &err);
    assert_non_null(l);
    json2 = spec_to_store_json(l);
    assert_string_equal(json, json2);
    assert_string_equal(l->task_id, "t1");
    assert_string_equal(l->uri, "http://h:1");
    assert_string_equal(l->token, "t0ken");
    assert_int_equal(l->connect_timeout_s, 3);
    assert_int_equal(l->collections[0].n_positions, 1);
    assert_true(l->collections[0].use_start_position);
    assert_true(l->keep_queryable && l->disable_auto_start);
    check_match(l, "d", "a", "x.a");
    free(json);
    free(json2);
    spec_free(s);
    spec_free(l);
}

/* The limits of the configuration are for new requests: a smaller one must not lose a stored task. */
static void stored_task_is_not_checked_against_limits(void **state)
{
    struct spec_limits small = {.max_name_length = 1, .replicate_chan = "other-replicate-msg"};
    struct err err = {0};
    struct task_spec *s = good(SELECT(
        "'collection_infos':[{'name':'long_name'}],'rpc_channel_info':{'name':'by-dev-replicate-msg'}"));
    char *json = spec_to_store_json(s);
    struct task_spec *l = spec_from_store("t", json, &err);

    (void)state;
    assert_null(spec_from_request(s->request, &small, &err));
    assert_non_null(l);
    free(json);
    spec_free(s);
    spec_free(l);
}

static void broken_record_is_an_error(void **state)
{
    struct err err = {0};

    (void)state;
    assert_null(spec_from_store("t7", "{", &err));
    assert_int_equal(err.code, ERR_PROTO);
    assert_non_null(strstr(err.text, "t7"));
    assert_null(spec_from_store("t7", "{}", &err));
    assert_null(spec_from_store("t7", "{\"request\":{}}", &err));
}

static void check_public(const char *request, const char *want)
{
    struct task_spec *s = good(request);
    json_t *got = spec_public_json(s), *expected = parse(want);
    char *text = json_dumps(got, JSON_SORT_KEYS);

    if (!json_equal(got, expected))
        fail_msg("got %s", text);
    free(text);
    json_decref(got);
    json_decref(expected);
    spec_free(s);
}

static void public_json_has_the_documented_shape(void **state)
{
    (void)state;
    check_public(FULL,
                 "{'mode':'standby','mode_reason':'','milvus_connect_param':{'host':'h','port':1,'enable_tls':false,'uri':'',"
                 "'dial_config':{'server_name':'n'},'channel_num':0,'ignore_partition':false,"
                 "'connect_timeout':3},'kafka_connect_param':{'address':'','topic':'',"
                 "'enable_sasl':false,'sasl':{}},'collection_infos':null,'db_collections':{'d':[{"
                 "'name':'a','positions':{'p_1v0':'CgFwEgEB'},'use_start_position':true}]}}");
    check_public("{'milvus_connect_param':{'uri':'http://h:2','token':'root:Milvus','channel_num':4},"
                 "'collection_infos':[{'name':'*'}]}",
                 "{'mode':'standby','mode_reason':'','milvus_connect_param':{'host':'','port':0,'enable_tls':false,'uri':'http://h:2',"
                 "'dial_config':{},'channel_num':4,'ignore_partition':false,'connect_timeout':0},"
                 "'kafka_connect_param':{'address':'','topic':'','enable_sasl':false,'sasl':{}},"
                 "'collection_infos':[{'name':'*','positions':null,'use_start_position':false}],"
                 "'db_collections':null}");
}

#define TO_H "{'milvus_connect_param':{'uri':'http://h:2'},'collection_infos':[{'name':'*'}]"

static void mode_is_chosen_once_and_kept(void **state)
{
    struct task_spec *s = good(TO_H "}"), *l;
    struct err err;
    char *json;

    (void)state;
    assert_int_equal(s->mode, SPEC_AUTO);
    assert_int_equal(spec_choose_mode(s, false, "v2.3.5", &err), 0);
    assert_int_equal(s->mode, SPEC_PORTABLE);
    assert_non_null(strstr(s->mode_reason, "v2.3.5"));
    json = spec_to_store_json(s);
    l = spec_from_store("t", json, &err);
    assert_int_equal(l->mode, SPEC_PORTABLE);
    assert_string_equal(l->mode_reason, s->mode_reason);
    assert_int_equal(spec_choose_mode(l, true, "v2.3.5", &err), ERR_STATE); /* it became a standby meanwhile */
    assert_non_null(strstr(err.text, "is a standby"));
    assert_string_equal(l->mode_reason, s->mode_reason);
    free(json);
    spec_free(s);
    spec_free(l);
    s = good(TO_H ",'mode':'standby'}");
    assert_int_equal(spec_choose_mode(s, false, "", &err), ERR_STATE);
    assert_non_null(strstr(err.text, "common.ttMsgEnabled"));
    assert_int_equal(spec_choose_mode(s, true, "", &err), 0);
    spec_free(s);
}

static void refused_start(const char *request, bool readable, const char *text)
{
    struct spec_limits l = limits;
    json_t *o = parse(request);
    struct err err = {0};

    l.source_readable = readable;
    assert_null(spec_from_request(o, &l, &err));
    if (!strstr(err.text, text))
        fail_msg("%s", err.text);
    json_decref(o);
}

static void start_is_checked(void **state)
{
    struct spec_limits l = limits;
    json_t *o = parse(TO_H ",'start':'snapshot','load_for_snapshot':true}");
    struct task_spec *s;
    struct err err = {0};

    (void)state;
    refused_start(TO_H ",'start':'snapshot'}", false, "sourceConfig.milvus.uri");
    refused_start(TO_H ",'start':'snapshot','mode':'standby'}", true, "milvus-backup");
    refused_start(TO_H ",'start':'tomorrow'}", true, "start is tomorrow, allowed are now, earliest, snapshot, a time (");
    refused_start(TO_H ",'load_for_snapshot':true}", true, "start is not snapshot");
    refused_start(TO_H ",'mode':'fast'}", true, "allowed are auto, standby and portable");
    l.source_readable = true;
    s = spec_from_request(o, &l, &err);
    assert_non_null(s);
    assert_int_equal(s->start, SPEC_SNAPSHOT);
    assert_true(s->load_for_snapshot);
    assert_int_equal(spec_choose_mode(s, true, "", &err), ERR_STATE);
    assert_non_null(strstr(err.text, "milvus-backup"));
    spec_free(s);
    json_decref(o);
}

static void start_is_a_time(void **state)
{
    static const struct {
        const char *start;
        uint64_t tt;
    } cases[] = {
        {"'2023-11-14T22:13:20Z'", UINT64_C(1700000000000) << TT_LOGICAL_BITS},
        {"'2023-11-14T23:13:20.25+01:00'", UINT64_C(1700000000250) << TT_LOGICAL_BITS},
        {"1700000000000", UINT64_C(1700000000000) << TT_LOGICAL_BITS},
        {"445644800000000007", UINT64_C(445644800000000007)},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char *text = xasprintf(TO_H ",'accept_gap':true,'start':%s}", cases[i].start), *json;
        struct task_spec *s = good(text), *l;
        struct err err = {0};
        json_t *o = spec_public_json(s);

        assert_int_equal(s->start, SPEC_TIME);
        assert_true(s->accept_gap && s->start_tt == cases[i].tt && !spec_has_positions(s));
        assert_int_equal(strncmp(json_string_value(json_object_get(o, "start")), "2023-11-14T22:13:20.", 20), 0);
        json = spec_to_store_json(s);
        l = spec_from_store("t", json, &err);
        assert_non_null(l);
        assert_true(l->start == SPEC_TIME && l->start_tt == cases[i].tt);
        json_decref(o);
        spec_free(l);
        free(json);
        spec_free(s);
        free(text);
    }
    refused_start(TO_H ",'start':'2100-01-01T00:00:00Z'}", true, "start is 2100-01-01T00:00:00.000Z, which is in the future");
    refused_start(TO_H ",'start':-5}", true, "start is -5");
    refused_start(TO_H ",'start':0}", true, "start is 0");
    refused_start(TO_H ",'start':1.5}", true, "start must be a string, an integer, or an object with backup");
    refused_start(TO_H ",'start':{}}", true, "start must be a string");
    refused_start(TO_H ",'start':{'backup':'x'}}", true, "start must be a string");
}

/* CgFwEgEB: channel p, id 01; CgFwEgECIAk=: id 02, time 9. */
#define CHECKPOINTS "'channel_checkpoints':{'p_7v0':'CgFwEgEB','p_7v1':'CgFwEgECIAk='}"

static void a_backup_has_positions(void **state)
{
    static const char *const forms[] = {
        "{'collection_backups':[{'collection_name':'x','db_name':'d'},{'collection_name':'a'," CHECKPOINTS ",'partition_backups':[{}]}]}",
        "{'infos':[{'collection_name':'a','db_name':'default'," CHECKPOINTS "}]}",
        "{'code':0,'data':{'collection_backups':[{'collection_name':'a','db_name':''," CHECKPOINTS "}]}}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
        char *text = xasprintf("{" URI "," ONE ",'start':{'backup':%s}}", forms[i]), *json;
        struct task_spec *s = good(text), *l;
        struct err err = {0};

        json = spec_to_store_json(s);
        assert_null(strstr(json, "partition_backups"));
        l = spec_from_store("t", json, &err);
        assert_non_null(l);
        assert_int_equal(l->start, SPEC_BACKUP);
        assert_int_equal(l->n_backup, 1);
        assert_int_equal(l->backup[0].id, 7);
        assert_string_equal(l->backup[0].db, "default");
        assert_true(spec_has_positions(l));
        assert_true(spec_find_position(l, "p_7v1")->tt == 9 && spec_find_position(l, "p_7v1")->id[0] == 2);
        assert_null(spec_find_position(l, "p_7v2"));
        spec_free(l);
        spec_free(s);
        free(json);
        free(text);
    }
    refused(WITH("'start':{'backup':{'infos':[{'collection_name':'b'," CHECKPOINTS "}]}}"), ERR_INVALID,
            "the backup has none of the selected collections");
    refused(WITH("'start':{'backup':{'infos':[{'collection_name':'a'}]}}"), ERR_INVALID,
            "the backup of default.a has no channel_checkpoints");
    refused(WITH("'start':{'backup':{'infos':[{'collection_name':'a','channel_checkpoints':{'p_7v0':7}}]}}"), ERR_INVALID,
            "the backup of default.a has no channel_checkpoints");
    refused(WITH("'start':{'backup':{'infos':[{'collection_name':'a','channel_checkpoints':{'p':''}}]}}"), ERR_INVALID,
            "the backup of default.a: the position key p is not a virtual channel");
    refused(SELECT("'collection_infos':[{'name':'a','positions':{'p_1v0':'CgFwEgEB'}}],'start':{'backup':{'infos':["
                   "{'collection_name':'a'," CHECKPOINTS "}]}}"),
            ERR_INVALID, "default.a has positions, and start has a backup of it");
    refused(WITH("'start':{'backup':{'infos':[{'collection_name':'a'," CHECKPOINTS "}],'rpc_channel_info':{'name':'other'}}}"),
            ERR_INVALID, "rpc_channel_info.name is other");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_error_has_its_code),
        cmocka_unit_test(mode_is_chosen_once_and_kept),
        cmocka_unit_test(start_is_checked),
        cmocka_unit_test(start_is_a_time),
        cmocka_unit_test(a_backup_has_positions),
        cmocka_unit_test(errors_come_in_the_documented_order),
        cmocka_unit_test(errors_never_show_a_secret),
        cmocka_unit_test(address_is_built_as_documented),
        cmocka_unit_test(token_wins_over_username),
        cmocka_unit_test(certificates_and_switches_are_taken),
        cmocka_unit_test(field_names_match_in_any_case),
        cmocka_unit_test(missing_task_id_is_random),
        cmocka_unit_test(positions_are_decoded),
        cmocka_unit_test(id_larger_than_any_queues_is_refused),
        cmocka_unit_test(selections_match),
        cmocka_unit_test(patterns_match),
        cmocka_unit_test(pairs_of_patterns_make_names),
        cmocka_unit_test(names_are_mapped),
        cmocka_unit_test(what_another_task_excludes_is_free),
        cmocka_unit_test(swapped_names_are_no_conflict),
        cmocka_unit_test(overlap_of_two_tasks),
        cmocka_unit_test(exclusions_are_honoured_and_stored),
        cmocka_unit_test(store_keeps_everything),
        cmocka_unit_test(stored_task_is_not_checked_against_limits),
        cmocka_unit_test(broken_record_is_an_error),
        cmocka_unit_test(public_json_has_the_documented_shape),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
