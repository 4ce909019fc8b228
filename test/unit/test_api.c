/* test_api.c - the control endpoint over real sockets; behind it a manager made for the tests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "api/server.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/metric.h"
#include "daemon/config.h"
#include "loop/loop.h"
#include "task/health.h"
#include "task/manager.h"
#include "task/spec.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LIMIT_MS = 10000 };

/* ---- the manager: tasks "t1" and "t2"; answers from the loop, or when the test says so */

struct manager {
    struct loop *loop;
    bool hold;       /* answers wait for release() */
    struct err fail; /* code 0: success */
    char last[300];  /* the last call */
    const char *not_ready, *trouble;
    enum health health;
    unsigned cancels, updates;
    manager_fn fn; /* the open call */
    manager_position_fn position_fn;
    void *arg;
    bool no_data; /* position: data NULL */
};

static struct manager mgr;

static void answer(void *arg)
{
    struct manager *m = arg;
    manager_fn fn = m->fn;
    manager_position_fn position_fn = m->position_fn;
    const struct err *err = m->fail.code ? &m->fail : NULL;
    json_t *data;

    m->fn = NULL;
    m->position_fn = NULL;
    if (fn)
        fn(m->arg, err);
    if (!position_fn)
        return;
    data = err || m->no_data ? NULL
                             : json_pack("{s:[{s:I,s:s}], s:n, s:n}", "positions", "collection_id",
                                         (json_int_t)-10, "channel_name", "c", "op_positions",
                                         "target_positions");
    position_fn(m->arg, err, data);
    json_decref(data);
}

static void begin(struct manager *m, const char *what, const char *id, void *arg)
{
    snprintf(m->last, sizeof(m->last), "%s %s", what, id ? id : "(null)");
    m->arg = arg;
    if (!m->hold)
        loop_defer(m->loop, answer, m);
}

void manager_create(struct manager *m, struct task_spec *spec, manager_fn done, void *arg)
{
    m->fn = done;
    begin(m, "create", spec->task_id, arg);
    spec_free(spec);
}

void manager_pause(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    m->fn = done;
    begin(m, "pause", task_id, arg);
}

void manager_resume(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    m->fn = done;
    begin(m, "resume", task_id, arg);
}

void manager_resume_over_gap(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    m->fn = done;
    begin(m, "resume over gap", task_id, arg);
}

void manager_verify(struct manager *m, const char *task_id, const char *request, manager_fn done, void *arg)
{
    char what[300];

    m->fn = done;
    snprintf(what, sizeof(what), "verify %s", request);
    begin(m, what, task_id, arg);
}

void manager_delete(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    m->fn = done;
    begin(m, "delete", task_id, arg);
}

void manager_positions(struct manager *m, const char *task_id, manager_position_fn done, void *arg)
{
    m->position_fn = done;
    begin(m, "position", task_id, arg);
}

void manager_cancel(struct manager *m, void *arg)
{
    m->cancels++;
    if (m->arg == arg) {
        m->fn = NULL;
        m->position_fn = NULL;
    }
}

json_t *manager_task_json(struct manager *m, const char *task_id)
{
    (void)m;
    if (strcmp(task_id, "t1") != 0 && strcmp(task_id, "t2") != 0)
        return NULL;
    return json_pack("{s:s, s:s}", "task_id", task_id, "state", "Running");
}

void manager_add_matches(struct manager *m, const char *task_id, size_t max, json_t *task)
{
    (void)m;
    (void)task_id;
    json_object_set_new(task, "matches_shown", json_integer((json_int_t)max));
}

const char *const *manager_task_ids(struct manager *m, size_t *ret_n)
{
    static const char *const ids[] = {"t1", "t2"};

    *ret_n = m->no_data ? 0 : 2;
    return ids;
}

void manager_update_metrics(struct manager *m)
{
    m->updates++;
}

struct refresh {
    struct manager *m;
    manager_fn fn;
    void *arg;
};

static void answer_refresh(void *arg)
{
    struct refresh *f = arg;

    f->fn(f->arg, f->m->fail.code ? &f->m->fail : NULL);
    free(f);
}

void manager_refresh(struct manager *m, const char *task_id, manager_fn done, void *arg)
{
    struct refresh *f = xcalloc(1, sizeof(*f));

    (void)task_id;
    *f = (struct refresh){m, done, arg};
    loop_defer(m->loop, answer_refresh, f);
}

struct get {
    struct manager *m;
    const char *task_id;
    manager_get_fn done;
    void *arg;
};

static void answer_get(void *arg)
{
    struct get *g = arg;
    bool failed = g->m->fail.code != ERR_OK;
    json_t *task = failed ? NULL : manager_task_json(g->m, g->task_id);

    g->done(g->arg, failed ? &g->m->fail : NULL, task);
    json_decref(task);
    free(g);
}

void manager_get(struct manager *m, const char *task_id, manager_get_fn done, void *arg)
{
    struct get *g = xcalloc(1, sizeof(*g));

    *g = (struct get){m, task_id, done, arg};
    loop_defer(m->loop, answer_get, g);
}

json_t *manager_health(struct manager *m, const char *task_id, uint64_t max_lag_ms, enum health *ret)
{
    snprintf(m->last, sizeof(m->last), "health %s %u", task_id ? task_id : "(null)", (unsigned)max_lag_ms);
    *ret = m->health;
    return json_pack("{s:s}", "text", "as scripted");
}

const char *manager_registry_trouble(struct manager *m)
{
    return m->trouble;
}

const char *manager_not_ready(struct manager *m)
{
    return m->not_ready;
}

/* ---- the server and its clients */

static struct loop *lp;
static struct api_server *api;
static struct config config;
static char address[] = "127.0.0.1:0", channel[] = "by-dev-replicate-msg";

static int setup(void **state)
{
    struct err err = {0};

    (void)state;
    lp = loop_new();
    mgr = (struct manager){.loop = lp};
    config = (struct config){.address = address, .max_name_length = 256, .replicate_chan = channel};
    api = api_start(lp, &config, &mgr, &err);
    if (!api)
        fail_msg("%s", err.text);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    log_set_level(LOG_INFO);
    api_stop(api);
    api = NULL;
    loop_free(lp);
    metric_clear();
    return 0;
}

static int dial(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons(api_port(api)),
                            .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    assert_true(fd >= 0);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* pieces leave at once */
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    return fd;
}

/* Lets the server work until what is to come has had its chance. */
static void turn(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    loop_once(lp, false);
    (void)poll(&p, fd >= 0 ? 1 : 0, 1);
}

static void put_bytes(int fd, const char *data, size_t len)
{
    uint64_t end = clock_mono_ms() + LIMIT_MS;

    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

        if (n < 0 && errno != EAGAIN)
            return; /* the server closed: the answer tells */
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        }
        loop_once(lp, false);
        assert_true(clock_mono_ms() < end);
    }
}

static void put(int fd, const char *text)
{
    put_bytes(fd, text, strlen(text));
}

struct reply {
    int status;
    char head[2000];
    char body[200000];
    bool closed; /* the server closed before or after it */
};

static char in[300000];
static size_t in_len;

/* Reads what is there. False: the server closed. */
static bool fill(int fd)
{
    ssize_t n = recv(fd, in + in_len, sizeof(in) - 1 - in_len, 0);

    if (n == 0 || (n < 0 && errno != EAGAIN))
        return false;
    if (n > 0)
        in_len += (size_t)n;
    in[in_len] = '\0';
    return true;
}

/* Takes one whole answer out of in, if there is one. */
static bool take_reply(struct reply *r, bool head_only)
{
    char *end = in_len ? strstr(in, "\r\n\r\n") : NULL, *length;
    size_t head, body;

    if (!end)
        return false;
    head = (size_t)(end + 4 - in);
    assert_true(head < sizeof(r->head));
    memcpy(r->head, in, head);
    r->head[head] = '\0';
    length = strstr(r->head, "Content-Length: ");
    body = length && !head_only ? strtoul(length + 16, NULL, 10) : 0;
    if (in_len < head + body)
        return false;
    assert_true(body < sizeof(r->body));
    memcpy(r->body, in + head, body);
    r->body[body] = '\0';
    assert_int_equal(sscanf(r->head, "HTTP/1.1 %d", &r->status), 1);
    in_len -= head + body;
    memmove(in, in + head + body, in_len + 1);
    return true;
}

static void get_reply_of(int fd, struct reply *r, bool head_only)
{
    uint64_t end = clock_mono_ms() + LIMIT_MS;

    *r = (struct reply){0};
    while (!take_reply(r, head_only)) {
        bool open = fill(fd);

        if (take_reply(r, head_only))
            return;
        if (!open) {
            r->closed = true;
            return;
        }
        if (clock_mono_ms() > end)
            fail_msg("no answer in %d ms; so far: %s", LIMIT_MS, in);
        turn(fd);
    }
}

static struct reply reply;

static void get_reply(int fd)
{
    get_reply_of(fd, &reply, false);
}

static void expect_closed(int fd)
{
    uint64_t end = clock_mono_ms() + LIMIT_MS;

    while (fill(fd)) {
        assert_int_equal(in_len, 0);
        assert_true(clock_mono_ms() < end);
        turn(fd);
    }
}

static void hang_up(int fd)
{
    close(fd);
    in_len = 0;
    for (int i = 0; i < 5; i++)
        loop_once(lp, false);
}

/* Single quotes stand for double ones. */
static char *quoted(const char *text)
{
    char *copy = xstrdup(text);

    for (char *p = copy; *p; p++)
        if (*p == '\'')
            *p = '"';
    return copy;
}

static char *post_text(const char *body)
{
    return xasprintf("POST /cdc HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n%s", strlen(body),
                     body);
}

static void put_post(int fd, const char *body)
{
    char *json = quoted(body), *text = post_text(json);

    put(fd, text);
    free(text);
    free(json);
}

/* One request on a connection of its own; its answer is in reply. */
static void ask(const char *request)
{
    int fd = dial();

    put_post(fd, request);
    get_reply(fd);
    hang_up(fd);
}

/* The answer is want (with ' for ") and a newline; key order does not matter. */
static void expect_body(const char *want)
{
    char *json = quoted(want);
    json_t *expected = json_loads(json, 0, NULL), *got = json_loads(reply.body, 0, NULL);

    assert_non_null(expected);
    assert_int_equal(reply.status, 200);
    assert_non_null(strstr(reply.head, "Content-Type: application/json\r\n"));
    if (!got || !json_equal(got, expected))
        fail_msg("got %s, not %s", reply.body, json);
    assert_ptr_equal(strchr(reply.body, '\n'), reply.body + strlen(reply.body) - 1);
    json_decref(expected);
    json_decref(got);
    free(json);
}

static void expect_error(int code, const char *prefix)
{
    json_t *got = json_loads(reply.body, 0, NULL);
    const char *message = json_string_value(json_object_get(got, "message"));

    assert_int_equal(reply.status, 200);
    if (!message || json_integer_value(json_object_get(got, "code")) != code ||
        strncmp(message, prefix, strlen(prefix)) != 0)
        fail_msg("got %s, not %d %s", reply.body, code, prefix);
    assert_null(json_object_get(got, "data"));
    json_decref(got);
}

static void fail_next(enum err_code code, const char *text)
{
    err_set(&mgr.fail, code, ERRC_USER, "%s", text);
}

#define CREATE                                                                                \
    "{'request_type':'create','request_data':{'task_id':'c1','milvus_connect_param':{'uri':" \
    "'http://127.0.0.1:1','token':'root:s3cret'},'collection_infos':[{'name':'a'}]}}"
#define BY_ID(type) "{'request_type':'" type "','request_data':{'task_id':'t1'}}"

/* ---- each type's shape */

static void create_answers_the_id(void **state)
{
    json_t *o;

    (void)state;
    ask(CREATE);
    expect_body("{'code':200,'data':{'task_id':'c1'}}");
    assert_string_equal(mgr.last, "create c1");
    ask("{'request_type':'create','request_data':{'milvus_connect_param':{'uri':'http://h:1'},"
        "'collection_infos':[{'name':'a'}]}}");
    o = json_loads(reply.body, 0, NULL);
    assert_int_equal(
        strlen(json_string_value(json_object_get(json_object_get(o, "data"), "task_id"))), 32);
    json_decref(o);
}

static void create_errors_have_codes_and_prefixes(void **state)
{
    (void)state;
    ask("{'request_type':'create'}");
    expect_error(400, "fail to handle the create request, error: no target");
    ask("{'request_type':'create','request_data':{'task_id':7}}");
    expect_error(500, "fail to decode the create request, error: task_id must be a string");
    ask("{'request_type':'create','request_data':{'milvus_connect_param':{'uri':'http://h:1'},"
        "'collection_infos':[{'name':'a','positions':{'p_1v0':'!'}}]}}");
    expect_error(500, "fail to handle the create request, error: p_1v0: the position is not base64");
    assert_string_equal(mgr.last, "");
    fail_next(ERR_TIMEOUT, "cannot reach the target");
    ask(CREATE);
    expect_error(500, "fail to handle the create request, error: cannot reach the target");
    fail_next(ERR_EXISTS, "twice");
    ask(CREATE);
    expect_error(400, "fail to handle the create request, error: twice");
}

static void error_codes_tell_whose_fault_it_is(void **state)
{
    static const struct {
        enum err_code err;
        int code;
    } cases[] = {
        {ERR_INVALID, 400}, {ERR_NOT_FOUND, 400}, {ERR_EXISTS, 400},  {ERR_STATE, 400},
        {ERR_UNSUPPORTED, 400}, {ERR_TIMEOUT, 500}, {ERR_UNAVAILABLE, 500}, {ERR_LIMIT, 500},
        {ERR_PROTO, 500},   {ERR_AUTH, 500},      {ERR_IO, 500},      {ERR_INTERNAL, 500},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fail_next(cases[i].err, "why");
        ask(BY_ID("pause"));
        expect_error(cases[i].code, "fail to handle the pause request, error: why");
    }
}

static void pause_resume_delete_answer_empty_data(void **state)
{
    static const char *const types[] = {"pause", "resume", "delete"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        char *text = xasprintf("{'request_type':'%s','request_data':{'TASK_ID':'t1'}}", types[i]);
        char *call = xasprintf("%s t1", types[i]);

        ask(text);
        expect_body("{'code':200,'data':{}}");
        assert_string_equal(mgr.last, call);
        free(text);
        free(call);
        text = xasprintf("{'request_type':'%s'}", types[i]);
        call = xasprintf("fail to handle the %s request, error: the task_id is empty", types[i]);
        ask(text);
        expect_error(400, call);
        free(text);
        free(call);
    }
}

static void delete_may_ignore_a_missing_task(void **state)
{
    (void)state;
    fail_next(ERR_NOT_FOUND, "not found the task, task_id: t9");
    ask("{'request_type':'delete','request_data':{'task_id':'t9'}}");
    expect_error(400, "fail to handle the delete request, error: not found the task, task_id: t9");
    ask("{'request_type':'delete','request_data':{'task_id':'t9','ignore_not_found':true}}");
    expect_body("{'code':200,'data':{}}");
    ask("{'request_type':'delete','request_data':{'ignore_not_found':true}}");
    expect_body("{'code':200,'data':{}}");
    ask("{'request_type':'delete','request_data':{'task_id':'t9','ignore_not_found':'yes'}}");
    expect_error(500, "fail to decode the delete request, error: ignore_not_found must be a boolean");
    fail_next(ERR_IO, "disk full");
    ask("{'request_type':'delete','request_data':{'task_id':'t1','ignore_not_found':true}}");
    expect_error(500, "fail to handle the delete request, error: disk full");
}

static void get_answers_both_spellings(void **state)
{
    (void)state;
    ask(BY_ID("get"));
    expect_body("{'code':200,'data':{'task':{'task_id':'t1','state':'Running','matches_shown':100},"
                "'Task':{'task_id':'t1','state':'Running','matches_shown':100}}}");
    ask("{'request_type':'get'}");
    expect_error(400, "fail to handle the get request, error: the task_id is empty");
    ask("{'request_type':'get','request_data':{'task_id':'t9'}}");
    expect_error(400, "fail to handle the get request, error: not found: [t9]");
}

static void list_is_in_order_and_never_null(void **state)
{
    (void)state;
    ask("{'request_type':'list'}");
    expect_body("{'code':200,'data':{'tasks':[{'task_id':'t1','state':'Running','matches_shown':10},"
                "{'task_id':'t2','state':'Running','matches_shown':10}]}}");
    mgr.no_data = true;
    ask("{'request_type':'list','request_data':null}");
    expect_body("{'code':200,'data':{'tasks':[]}}");
}

static void position_never_fails_for_an_unknown_task(void **state)
{
    (void)state;
    ask(BY_ID("position"));
    expect_body("{'code':200,'data':{'positions':[{'collection_id':-10,'channel_name':'c'}],"
                "'op_positions':null,'target_positions':null}}");
    assert_string_equal(mgr.last, "position t1");
    ask("{'request_type':'position'}");
    assert_string_equal(mgr.last, "position ");
    mgr.no_data = true;
    ask(BY_ID("position"));
    expect_body("{'code':200,'data':{'positions':null,'op_positions':null,'target_positions':null}}");
    fail_next(ERR_NOT_FOUND, "no");
    ask(BY_ID("position"));
    expect_body("{'code':200,'data':{'positions':null,'op_positions':null,'target_positions':null}}");
    fail_next(ERR_IO, "disk");
    ask(BY_ID("position"));
    expect_error(500, "fail to handle the position request, error: disk");
}

static void verify_passes_its_options(void **state)
{
    (void)state;
    ask("{'request_type':'verify','request_data':{'task_id':'t1','level':'keys','Repair':true,'x':1,'collections':['a']}}");
    expect_body("{'code':200,'data':{'task_id':'t1','state':'running'}}");
    assert_string_equal(mgr.last, "verify {\"task_id\":\"t1\",\"level\":\"keys\",\"repair\":true,"
                                  "\"collections\":[\"a\"]} t1");
    ask("{'request_type':'verify','request_data':{'task_id':'t1','cancel':true}}");
    expect_body("{'code':200,'data':{'task_id':'t1','state':'cancelling'}}");
    ask("{'request_type':'verify','request_data':{'task_id':'t1','collections':[{'name':'a'}]}}");
    expect_error(500, "fail to decode the verify request, error: collections[0] must be a string, not an object");
    ask("{'request_type':'verify'}");
    expect_error(400, "fail to handle the verify request, error: the task_id is empty");
    fail_next(ERR_STATE, "it runs");
    ask(BY_ID("verify"));
    expect_error(400, "fail to handle the verify request, error: it runs");
}

static void maintenance_always_answers_200(void **state)
{
    (void)state;
    ask("{'request_type':'maintenance','request_data':{'operation':'set_log_level','params':"
        "{'log_level':'debug'}}}");
    expect_body("{'code':200,'data':{'State':'the log level is debug now'}}");
    assert_true(log_enabled(LOG_DEBUG));
    ask("{'request_type':'maintenance','request_data':{'operation':'set_log_level','params':"
        "{'log_level':'loud'}}}");
    assert_non_null(strstr(reply.body, "{\"code\":200,\"data\":{\"State\":\"the log level was not"));
    ask("{'request_type':'maintenance','request_data':{'operation':'set_log_level','params':"
        "{'log_level':1}}}");
    assert_non_null(strstr(reply.body, "was not changed"));
    assert_true(log_enabled(LOG_DEBUG));
    ask("{'request_type':'maintenance','request_data':{'operation':'set_force_log_msg','params':"
        "{'force':'true'}}}");
    assert_non_null(strstr(reply.body, "accepted but has no effect"));
    ask("{'request_type':'maintenance','request_data':{'operation':'reset_log_msg'}}");
    assert_non_null(strstr(reply.body, "accepted but has no effect"));
    ask("{'request_type':'maintenance','request_data':{'operation':'explode'}}");
    assert_non_null(strstr(reply.body, "{\"code\":200,\"data\":{\"State\":\"unknown operation: exp"));
}

/* ---- the envelope */

static void bad_envelopes(void **state)
{
    static const struct {
        const char *body;
        int code;
        const char *prefix;
    } cases[] = {
        {"", 500, "the body is empty"},
        {"hello", 500, "the body is not valid JSON: line 1"},
        {"{'request_type':'list'", 500, "the body is not valid JSON"},
        {"{'request_type':'list'} x", 500, "the body is not valid JSON"},
        {"{'request_type':'\xff'}", 500, "the body is not valid JSON"},
        {"{'request_type':'\\u0000'}", 500, "the body is not valid JSON"},
        {"{'a':123456789012345678901234567890}", 500, "the body is not valid JSON"},
        {"[]", 500, "the request cannot be decoded: the body must be a JSON object"},
        {"7", 500, "the body is not valid JSON"},
        {"{'request_type':1}", 500, "the request cannot be decoded: request_type must be a string"},
        {"{'request_type':'list','request_data':'x'}", 500,
         "the request cannot be decoded: request_data must be an object, not a string"},
        {"{'request_type':'list','request_data':[]}", 500, "the request cannot be decoded"},
        {"{}", 400, "the request_type is missing; known are create, delete, pause, resume, get, "},
        {"{'request_type':null}", 400, "the request_type is missing"},
        {"{'request_type':'get_position'}", 400, "unknown request_type: get_position; known are"},
        {"{'request_type':'List'}", 400, "unknown request_type: List"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ask(cases[i].body);
        expect_error(cases[i].code, cases[i].prefix);
    }
}

static void deep_nesting_is_an_error(void **state)
{
    size_t n = 200000;
    char *deep = xmalloc(n + 1);

    (void)state;
    memset(deep, '[', n);
    deep[n] = '\0';
    ask(deep);
    expect_error(500, "the body is not valid JSON");
    free(deep);
}

/* jansson quotes what it stumbles over. */
static void json_error_does_not_echo_the_body(void **state)
{
    (void)state;
    ask("{'token':'s3cret' 's3cret'}");
    expect_error(500, "the body is not valid JSON");
    assert_null(strstr(reply.body, "s3cret"));
}

/* A message that was cut inside a UTF-8 character must still make an answer. */
static void error_text_of_any_bytes_is_sent(void **state)
{
    (void)state;
    fail_next(ERR_IO, "bad \xc3");
    ask(BY_ID("pause"));
    expect_error(500, "fail to handle the pause request, error: bad ?");
    ask("{'request_type':'\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
        "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
        "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
        "\xc3\xa4xxx\xc3\xa4'}");
    expect_error(400, "unknown request_type: ");
}

/* ---- HTTP */

static void send_raw(const char *text)
{
    int fd = dial();

    put(fd, text);
    get_reply(fd);
    hang_up(fd);
}

static void methods_and_paths(void **state)
{
    static const char *const methods[] = {"GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"};
    int fd;

    (void)state;
    for (size_t i = 0; i < 6; i++) {
        char *text = xasprintf("%s /cdc HTTP/1.1\r\nHost: x\r\n\r\n", methods[i]);

        send_raw(text);
        expect_body("{'code':405,'message':'only support the POST method'}");
        free(text);
    }
    fd = dial();
    put(fd, "HEAD /cdc HTTP/1.1\r\nHost: x\r\n\r\n");
    get_reply_of(fd, &reply, true);
    assert_int_equal(reply.status, 200);
    assert_non_null(strstr(reply.head, "Content-Length: 54\r\n"));
    put_post(fd, "{'request_type':'list'}"); /* no body was in the way */
    get_reply(fd);
    assert_int_equal(reply.status, 200);
    hang_up(fd);

    send_raw("POST /cdc/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_int_equal(reply.status, 404);
    assert_string_equal(reply.body, "404 page not found\n");
    assert_non_null(strstr(reply.head, "Content-Type: text/plain; charset=utf-8\r\n"));
    send_raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(reply.status, 404);
    send_raw("POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_int_equal(reply.status, 405);
    assert_non_null(strstr(reply.head, "Allow: GET, HEAD\r\n"));
    send_raw("GET http://x/healthz?verbose=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(reply.status, 200);
}

static void what_is_not_http_is_refused(void **state)
{
    static const struct {
        const char *text;
        int status;
    } cases[] = {
        {"hello\r\n\r\n", 400},
        {"GET /healthz\r\n\r\n", 400},
        {"GET  /healthz HTTP/1.1\r\n\r\n", 400},
        {"G(T /healthz HTTP/1.1\r\n\r\n", 400},
        {"GET /healthz FTP/1.1\r\n\r\n", 400},
        {"GET /healthz HTTP/2.0\r\n\r\n", 505},
        {"GET /healthz HTTP/1.1\r\n\r\n", 400}, /* no Host */
        {"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
        {"GET /healthz HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400},
        {"GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n", 400},
        {"GET /healthz HTTP/1.1\r\nnothing\r\n\r\n", 400},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nContent-Length: 1x\r\n\r\n", 400},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
         400},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", 400},
        {"POST /cdc HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", 400},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int fd = dial();

        put(fd, cases[i].text);
        get_reply(fd);
        if (reply.status != cases[i].status)
            fail_msg("%s: %d", cases[i].text, reply.status);
        assert_non_null(strstr(reply.head, "Connection: close\r\n"));
        expect_closed(fd);
        hang_up(fd);
    }
}

static void header_has_a_limit(void **state)
{
    size_t n = 20000;
    char *line = xmalloc(n + 1), *many;
    int fd = dial();

    (void)state;
    memset(line, 'a', n);
    line[n] = '\0';
    many = xasprintf("GET /healthz HTTP/1.1\r\nHost: x\r\nA: %s", line); /* no end of line */
    put(fd, many);
    get_reply(fd);
    assert_int_equal(reply.status, 431);
    hang_up(fd);
    free(many);
    line[2000] = '\0';
    many = xasprintf("GET /%s HTTP/1.1\r\n", line);
    send_raw(many);
    assert_int_equal(reply.status, 414);
    free(many);
    free(line);
}

static void nul_in_the_header_is_refused(void **state)
{
    static const char text[] = "GET /healthz HTTP/1.1\r\nHost: x\0y\r\n\r\n";
    int fd = dial();

    (void)state;
    put_bytes(fd, text, sizeof(text) - 1);
    get_reply(fd);
    assert_int_equal(reply.status, 400);
    hang_up(fd);
}

static void requests_may_come_in_pieces(void **state)
{
    char *json = quoted(CREATE), *text = post_text(json);
    size_t len = strlen(text);
    int fd = dial();

    (void)state;
    for (size_t cut = 1; cut < len; cut++) { /* one connection for all */
        put_bytes(fd, text, cut);
        for (int i = 0; i < 3; i++)
            loop_once(lp, false);
        put_bytes(fd, text + cut, len - cut);
        get_reply(fd);
        expect_body("{'code':200,'data':{'task_id':'c1'}}");
    }
    for (size_t i = 0; i < len; i++)
        put_bytes(fd, text + i, 1);
    get_reply(fd);
    expect_body("{'code':200,'data':{'task_id':'c1'}}");
    hang_up(fd);
    free(text);
    free(json);
}

static void chunked_bodies_are_read(void **state)
{
    static const char text[] = "POST /cdc HTTP/1.1\r\nHost: x\r\ntransfer-encoding: Chunked\r\n\r\n"
                               "5\r\n{\"req\r\n"
                               "0A;ext=1\r\nuest_type\"\r\n"
                               "8\r\n:\"list\"}\r\n"
                               "0\r\nTrailer: x\r\n\r\n";
    int fd = dial();

    (void)state;
    put(fd, text);
    put(fd, text);
    for (int i = 0; i < 2; i++) {
        get_reply(fd);
        assert_non_null(strstr(reply.body, "tasks"));
    }
    for (size_t i = 0; i < sizeof(text) - 1; i++)
        put_bytes(fd, text + i, 1);
    get_reply(fd);
    assert_non_null(strstr(reply.body, "tasks"));
    hang_up(fd);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    int fd = dial();
    static const char *const wants[] = {"t1", "not found: [t9]", "tasks", "t1"};

    (void)state;
    put_post(fd, BY_ID("get"));
    put_post(fd, "{'request_type':'get','request_data':{'task_id':'t9'}}");
    put(fd, "\r\n"); /* stray empty line: RFC 9112 2.2 */
    put_post(fd, "{'request_type':'list'}");
    put_post(fd, BY_ID("get"));
    for (size_t i = 0; i < 4; i++) {
        get_reply(fd);
        assert_non_null(strstr(reply.body, wants[i]));
        assert_null(strstr(reply.head, "Connection:"));
    }
    hang_up(fd);
}

/* While one request waits for the manager the next one of its connection is not begun; others are. */
static void a_slow_answer_holds_only_its_connection(void **state)
{
    int fd = dial();

    (void)state;
    mgr.hold = true;
    put_post(fd, BY_ID("pause"));
    put_post(fd, BY_ID("resume"));
    for (int i = 0; i < 10; i++)
        turn(-1);
    assert_string_equal(mgr.last, "pause t1");
    assert_true(fill(fd));
    assert_int_equal(in_len, 0);
    ask("{'request_type':'list'}");
    assert_non_null(strstr(reply.body, "tasks"));
    mgr.hold = false;
    answer(&mgr);
    get_reply(fd);
    expect_body("{'code':200,'data':{}}");
    get_reply(fd);
    expect_body("{'code':200,'data':{}}");
    assert_string_equal(mgr.last, "resume t1");
    hang_up(fd);
}

static void connection_ends_when_asked(void **state)
{
    int fd = dial();

    (void)state;
    put(fd, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n");
    get_reply(fd);
    assert_int_equal(reply.status, 200);
    assert_non_null(strstr(reply.head, "Connection: close\r\n"));
    expect_closed(fd);
    hang_up(fd);

    fd = dial();
    put(fd, "GET /healthz HTTP/1.0\r\n\r\n");
    get_reply(fd);
    assert_int_equal(reply.status, 200);
    expect_closed(fd);
    hang_up(fd);

    fd = dial();
    put(fd, "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    get_reply(fd);
    assert_non_null(strstr(reply.head, "Connection: keep-alive\r\n"));
    put(fd, "GET /healthz HTTP/1.0\r\n\r\n");
    get_reply(fd);
    assert_int_equal(reply.status, 200);
    hang_up(fd);
}

static void client_that_closed_its_side_gets_its_answers(void **state)
{
    int fd = dial();

    (void)state;
    mgr.hold = true;
    put_post(fd, BY_ID("pause"));
    put_post(fd, "{'request_type':'list'}");
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
    for (int i = 0; i < 20; i++)
        turn(-1);
    answer(&mgr);
    get_reply(fd);
    expect_body("{'code':200,'data':{}}");
    get_reply(fd);
    assert_non_null(strstr(reply.body, "tasks"));
    expect_closed(fd);
    hang_up(fd);
}

static void half_a_request_and_the_end_gets_no_answer(void **state)
{
    int fd = dial();

    (void)state;
    put(fd, "POST /cdc HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
    expect_closed(fd);
    hang_up(fd);
}

/* The work goes on; its answer finds nobody. */
static void answer_to_a_client_that_went_away(void **state)
{
    struct linger reset = {1, 0};

    (void)state;
    mgr.hold = true;
    for (int i = 0; i < 2; i++) {
        int fd = dial();

        put_post(fd, BY_ID("pause"));
        for (int k = 0; k < 10; k++)
            turn(-1);
        assert_non_null(mgr.fn);
        if (i == 1)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
        hang_up(fd);
        for (int k = 0; k < 10; k++)
            turn(-1);
        answer(&mgr);
        for (int k = 0; k < 10; k++)
            turn(-1);
    }
    mgr.hold = false;
    ask("{'request_type':'list'}");
    assert_int_equal(reply.status, 200);
}

static void stop_drops_requests_under_way(void **state)
{
    int fd = dial();

    mgr.hold = true;
    put_post(fd, BY_ID("pause"));
    for (int i = 0; i < 10; i++)
        turn(-1);
    assert_non_null(mgr.fn);
    api_stop(api);
    assert_int_equal(mgr.cancels, 1);
    assert_null(mgr.fn);
    expect_closed(fd);
    hang_up(fd);
    loop_free(lp);
    (void)setup(state);
}

static void slow_request_is_given_up(void **state)
{
    int fd, quiet;

    (void)state;
    api_set_request_limit(api, 50);
    fd = dial();
    quiet = dial();
    put(fd, "POST /cdc HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
    for (int i = 0; i < 20; i++) { /* each byte in time, but not the whole */
        (void)send(fd, "{", 1, MSG_NOSIGNAL);
        usleep(5000);
        turn(-1);
    }
    get_reply(fd);
    assert_int_equal(reply.status, 408);
    expect_closed(fd);
    expect_closed(quiet); /* never sent a byte */
    close(quiet);
    hang_up(fd);
}

/* A client that waits for its answer is not slow, and keep-alive may be longer than a request. */
static void limit_is_for_the_request_only(void **state)
{
    int fd;

    (void)state;
    api_set_request_limit(api, 30);
    fd = dial();
    mgr.hold = true;
    put_post(fd, BY_ID("pause"));
    for (int i = 0; i < 60; i++)
        turn(-1);
    answer(&mgr);
    get_reply(fd);
    expect_body("{'code':200,'data':{}}");
    for (int i = 0; i < 60; i++)
        turn(-1);
    put_post(fd, "{'request_type':'list'}");
    get_reply(fd);
    assert_non_null(strstr(reply.body, "tasks"));
    hang_up(fd);
}

static void body_of_the_limit_is_read(void **state)
{
    size_t n = 1 << 20;
    char *body = xmalloc(n + 1), *text;
    int fd = dial();

    (void)state;
    memset(body, ' ', n);
    body[n] = '\0';
    memcpy(body, "{\"request_type\":\"list\"}", 23);
    text = post_text(body);
    put(fd, text);
    get_reply(fd);
    assert_non_null(strstr(reply.body, "tasks"));
    hang_up(fd);
    free(text);
    free(body);
}

static void larger_body_is_refused(void **state)
{
    size_t n = 3 << 20;
    char *body = xmalloc(n + 1), *text;
    int fd = dial();

    (void)state;
    memset(body, ' ', n);
    body[n] = '\0';
    text = post_text(body);
    put(fd, text); /* a client that sends all of it still reads the answer */
    get_reply(fd);
    expect_error(400, "the body is larger than 1 MiB");
    assert_non_null(strstr(reply.head, "Connection: close\r\n"));
    expect_closed(fd);
    hang_up(fd);
    free(text);
    free(body);

    send_raw("POST /cdc HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\nExpect: 100-continue\r\n\r\n");
    expect_error(400, "the body is larger than 1 MiB");
    send_raw("POST /cdc HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n100000\r\n");
    expect_error(400, "the body is larger than 1 MiB");
    send_raw("POST /cdc HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n");
    expect_error(400, "the body is larger than 1 MiB");
}

static void expectation_is_met_before_the_body(void **state)
{
    int fd = dial();

    (void)state;
    put(fd, "POST /cdc HTTP/1.1\r\nHost: x\r\nContent-Length: 23\r\nExpect: 100-continue\r\n\r\n");
    get_reply(fd);
    assert_int_equal(reply.status, 100);
    put(fd, "{\"request_type\":\"list\"}");
    get_reply(fd);
    assert_int_equal(reply.status, 200);
    assert_non_null(strstr(reply.body, "tasks"));
    hang_up(fd);
}

/* ---- many clients */

enum { MANY = 256 };

static void idle_connections_give_way(void **state)
{
    int fds[MANY], fd;

    (void)state;
    for (int i = 0; i < MANY; i++) {
        fds[i] = dial();
        put(fds[i], "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        get_reply(fds[i]);
        assert_int_equal(reply.status, 200);
    }
    fd = dial();
    put(fd, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    get_reply(fd);
    assert_int_equal(reply.status, 200);
    expect_closed(fds[0]); /* the longest idle one */
    put(fds[1], "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    get_reply(fds[1]);
    assert_int_equal(reply.status, 200);
    for (int i = 0; i < MANY; i++)
        close(fds[i]);
    hang_up(fd);
}

static void busy_connections_make_others_wait(void **state)
{
    int fds[MANY], fd;

    (void)state;
    for (int i = 0; i < MANY; i++) {
        fds[i] = dial();
        put(fds[i], "GET /healthz HTTP/1.1\r\n"); /* not the end */
    }
    for (int i = 0; i < 50; i++)
        turn(-1);
    fd = dial();
    put(fd, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    for (int i = 0; i < 20; i++)
        turn(fd);
    assert_true(fill(fd));
    assert_int_equal(in_len, 0);
    close(fds[7]);
    get_reply(fd);
    assert_int_equal(reply.status, 200);
    for (int i = 0; i < MANY; i++)
        if (i != 7)
            close(fds[i]);
    hang_up(fd);
}

/* ---- health, metrics, log */

static void health_has_a_status_for_balancers(void **state)
{
    static const struct {
        enum health health;
        int status;
    } cases[] = {{HEALTH_OK, 200}, {HEALTH_WARNING, 200}, {HEALTH_CRITICAL, 503}, {HEALTH_UNKNOWN, 404}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        mgr.health = cases[i].health;
        send_raw("GET /health?max_lag=1.5m&task=a%20b&x=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_int_equal(reply.status, cases[i].status);
        assert_non_null(strstr(reply.body, "as scripted"));
        assert_string_equal(mgr.last, "health a b 90000");
    }
    mgr.health = HEALTH_OK;
    send_raw("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_string_equal(mgr.last, "health (null) 30000");
    send_raw("GET /health?max_lag=soon HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(reply.status, 400);
}

/* ---- tokens */

/* SHA-256 of "alpha-token" and "beta-token" (sha256sum). */
static struct config_token tokens[] = {
    {.name = address, .sha256 = {0xa3, 0x36, 0xd9, 0xb1, 0xd8, 0xb8, 0x64, 0x78, 0x75, 0x23, 0x85, 0x37, 0xca, 0x50, 0x87, 0xb0,
                0xea, 0x33, 0x5a, 0xfd, 0x20, 0x32, 0x93, 0x6a, 0xec, 0xdf, 0xfc, 0x3e, 0x4b, 0x13, 0xf7, 0x20}},
    {.name = address, .sha256 = {0x86, 0x3d, 0x63, 0xc0, 0xbd, 0x3a, 0x94, 0xbf, 0xca, 0x84, 0xed, 0x20, 0x63, 0xa7, 0x35, 0x5a,
                0x22, 0x6f, 0xaf, 0xf8, 0x2c, 0xa5, 0x0b, 0x90, 0x15, 0x8b, 0xf1, 0x83, 0xaa, 0x1a, 0x9e, 0x61}},
};

/* The status of GET path with that header line; "": none. */
static int status_with(const char *path, const char *header)
{
    char *text = xasprintf("GET %s HTTP/1.1\r\nHost: x\r\n%s%s\r\n", path, header, *header ? "\r\n" : "");

    send_raw(text);
    free(text);
    return reply.status;
}

static void a_token_opens_the_api(void **state)
{
    static const struct {
        const char *header;
        int status;
    } cases[] = {
        {"Authorization: Bearer alpha-token", 200},
        {"Authorization: Bearer beta-token", 200},
        {"authorization:bEARER   alpha-token  ", 200},
        {"", 401},
        {"Authorization:", 401},
        {"Authorization: Bearer", 401},
        {"Authorization: Bearer ", 401},
        {"Authorization: alpha-token", 401},
        {"Authorization: Basic alpha-token", 401},
        {"Authorization: Beareralpha-token", 401},
        {"Authorization: Bearer alpha-toke", 401},
        {"Authorization: Bearer alpha-tokens", 401},
        {"Authorization: Bearer ALPHA-TOKEN", 401},
        {"Authorization: Bearer alpha-token beta-token", 401},
        {"Authorization: Bearer gamma", 401},
        {"X-Authorization: Bearer alpha-token", 401},
        {"Authorization: Bearer gamma\r\nAuthorization: Bearer alpha-token", 400},
    };

    (void)state;
    log_set_level(LOG_ERROR);
    assert_int_equal(status_with("/health", ""), 200); /* none is configured */
    config.api = (struct config_api){.tokens = tokens, .n_tokens = 2};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        if (status_with("/health", cases[i].header) != cases[i].status)
            fail_msg("%d for %s", reply.status, cases[i].header);
    config.api.n_tokens = 1; /* taken away by a reload */
    assert_int_equal(status_with("/health", "Authorization: Bearer beta-token"), 401);
}

static void without_a_token_only_the_open_pages_answer(void **state)
{
    static const char *const closed[] = {"/cdc", "/health", "/cdc/metrics", "/cdc/metrics_default", "/nothing", "/healthz/"};

    (void)state;
    log_set_level(LOG_ERROR);
    config.api = (struct config_api){.tokens = tokens, .n_tokens = 2};
    for (size_t i = 0; i < sizeof(closed) / sizeof(*closed); i++)
        assert_int_equal(status_with(closed[i], ""), 401);
    assert_non_null(strstr(reply.head, "WWW-Authenticate: Bearer\r\n"));
    assert_int_equal(status_with("/healthz", ""), 200);
    assert_int_equal(status_with("/readyz", ""), 200);
    ask(CREATE);
    assert_int_equal(reply.status, 401);
    assert_string_equal(mgr.last, ""); /* no request came through */
}

static void refusals_are_counted_and_not_repeated_in_the_log(void **state)
{
    char path[] = "/tmp/test_api.XXXXXX", text[4000];
    int file = mkstemp(path), saved = dup(2);
    ssize_t n;

    (void)state;
    assert_true(file >= 0 && saved >= 0);
    config.api = (struct config_api){.tokens = tokens, .n_tokens = 2};
    dup2(file, 2);
    for (int i = 0; i < 20; i++)
        (void)status_with("/health", i % 2 ? "" : "Authorization: Bearer s3cret");
    dup2(saved, 2);
    close(saved);
    n = pread(file, text, sizeof(text) - 1, 0);
    assert_true(n > 0);
    text[n] = '\0';
    close(file);
    unlink(path);
    assert_ptr_equal(strchr(text, '\n'), text + n - 1); /* one line in ten seconds */
    assert_non_null(strstr(text, "request with a wrong token refused"));
    assert_non_null(strstr(text, "peer=127.0.0.1:"));
    assert_null(strstr(text, "s3cret"));
}

static void registry_that_is_away_is_503(void **state)
{
    (void)state;
    mgr.trouble = "gone";
    fail_next(ERR_UNAVAILABLE, "the registry is gone");
    ask(BY_ID("get"));
    assert_int_equal(reply.status, 503);
    assert_non_null(strstr(reply.body, "\"code\":503"));
    assert_non_null(strstr(reply.body, "the registry is gone"));
}

static void health_and_readiness(void **state)
{
    (void)state;
    send_raw("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    expect_body("{'status':'ok','version':'" MILVUS_CDC_VERSION "'}");
    send_raw("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
    expect_body("{'status':'ok'}");
    mgr.not_ready = "tasks are being loaded";
    send_raw("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(reply.status, 503);
    assert_string_equal(reply.body,
                        "{\"status\":\"not ready\",\"reason\":\"tasks are being loaded\"}\n");
}

static void metrics_count_requests(void **state)
{
    static const char *const wants[] = {
        "milvus_cdc_request_total{request_type=\"list\",request_status=\"total\"} 2\n",
        "milvus_cdc_request_total{request_type=\"list\",request_status=\"success\"} 2\n",
        "milvus_cdc_request_total{request_type=\"get\",request_status=\"total\"} 1\n",
        "milvus_cdc_request_total{request_type=\"unknown\",request_status=\"total\"} 2\n",
        "milvus_cdc_request_total{request_type=\"unknown\",request_status=\"unmarshal_error\"} 1\n",
        "milvus_cdc_request_total{request_type=\"unknown\",request_status=\"invalid_method\"} 1\n",
        "milvus_cdc_request_total{request_type=\"unknown\",request_status=\"read_error\"} 1\n",
        "milvus_cdc_request_latency_count{request_type=\"list\"} 2\n",
        "milvus_cdc_request_latency_bucket{request_type=\"list\",le=\"128\"} ",
    };

    (void)state;
    ask("{'request_type':'list'}");
    ask("{'request_type':'list'}");
    ask("{'request_type':'get'}");
    ask("{'request_type':'any'}");
    ask("{'request_type':'thing'}");
    ask("{");
    send_raw("GET /cdc HTTP/1.1\r\nHost: x\r\n\r\n");
    send_raw("POST /cdc HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n");
    send_raw("GET /cdc/metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(reply.status, 200);
    assert_non_null(strstr(reply.head, "Content-Type: text/plain; version=0.0.4"));
    for (size_t i = 0; i < sizeof(wants) / sizeof(wants[0]); i++)
        if (!strstr(reply.body, wants[i]))
            fail_msg("no %s in\n%s", wants[i], reply.body);
    assert_null(strstr(reply.body, "thing"));
    assert_null(strstr(reply.body, "request_type=\"get\",request_status=\"success\""));
    assert_null(strstr(reply.body, "milvus_cdc_request_latency_count{request_type=\"get\"}"));
    assert_int_equal(mgr.updates, 1);
    send_raw("GET /cdc/metrics_default HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(reply.status, 200);
    assert_non_null(strstr(reply.body, "milvus_cdc_request_total"));
}

static void one_log_line_per_request_without_secrets(void **state)
{
    char path[] = "/tmp/test_api.XXXXXX", text[4000];
    int file = mkstemp(path), saved = dup(2);
    ssize_t n;

    (void)state;
    assert_true(file >= 0 && saved >= 0);
    dup2(file, 2);
    ask(CREATE);
    ask("{'request_type':'create','request_data':{'milvus_connect_param':{'uri':'http://h:1',"
        "'username':'s3cret','password':''},'collection_infos':[{'name':'a'}]}}");
    dup2(saved, 2);
    close(saved);
    n = pread(file, text, sizeof(text) - 1, 0);
    assert_true(n > 0);
    text[n] = '\0';
    close(file);
    unlink(path);
    assert_non_null(strstr(text, "type=create code=200 ms="));
    assert_non_null(strstr(text, "task_id=c1"));
    assert_non_null(strstr(text, "type=create code=400 ms="));
    assert_null(strstr(text, "s3cret"));
    assert_ptr_equal(strchr(strchr(text, '\n') + 1, '\n'), text + n - 1); /* two lines */
}

/* ---- listening */

static void bad_addresses_are_named(void **state)
{
    static const char *const bad[] = {"",          "8444",       "127.0.0.1",     "127.0.0.1:",
                                      "x.test:1",  "127.0.0.1:70000", "127.0.0.1:x", "1.2.3:80"};
    char used[40];
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct config c = config;
        char *copy = xstrdup(bad[i]);

        c.address = copy;
        err = (struct err){0};
        if (api_start(lp, &c, &mgr, &err))
            fail_msg("%s was taken", bad[i]);
        assert_int_equal(err.code, ERR_INVALID);
        assert_non_null(strstr(err.text, bad[i]));
        free(copy);
    }
    snprintf(used, sizeof(used), "127.0.0.1:%u", (unsigned)api_port(api));
    config.address = used;
    assert_null(api_start(lp, &config, &mgr, &err));
    assert_int_equal(err.code, ERR_IO);
    assert_non_null(strstr(err.text, used));
    assert_non_null(strstr(err.text, strerror(EADDRINUSE)));
}

static void good_addresses_are_taken(void **state)
{
    static const char *const good[] = {"localhost:0", ":0", "0.0.0.0:0"};
    struct err err = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct config c = config;
        char *copy = xstrdup(good[i]);
        struct api_server *s;

        c.address = copy;
        s = api_start(lp, &c, &mgr, &err);
        if (!s)
            fail_msg("%s", err.text);
        assert_true(api_port(s) != 0);
        api_stop(s);
        free(copy);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(create_answers_the_id),
        TEST(create_errors_have_codes_and_prefixes),
        TEST(error_codes_tell_whose_fault_it_is),
        TEST(pause_resume_delete_answer_empty_data),
        TEST(delete_may_ignore_a_missing_task),
        TEST(get_answers_both_spellings),
        TEST(list_is_in_order_and_never_null),
        TEST(position_never_fails_for_an_unknown_task),
        TEST(verify_passes_its_options),
        TEST(maintenance_always_answers_200),
        TEST(bad_envelopes),
        TEST(deep_nesting_is_an_error),
        TEST(json_error_does_not_echo_the_body),
        TEST(error_text_of_any_bytes_is_sent),
        TEST(methods_and_paths),
        TEST(health_has_a_status_for_balancers),
        TEST(a_token_opens_the_api),
        TEST(without_a_token_only_the_open_pages_answer),
        TEST(refusals_are_counted_and_not_repeated_in_the_log),
        TEST(registry_that_is_away_is_503),
        TEST(what_is_not_http_is_refused),
        TEST(header_has_a_limit),
        TEST(nul_in_the_header_is_refused),
        TEST(requests_may_come_in_pieces),
        TEST(chunked_bodies_are_read),
        TEST(pipelined_requests_are_answered_in_order),
        TEST(a_slow_answer_holds_only_its_connection),
        TEST(connection_ends_when_asked),
        TEST(client_that_closed_its_side_gets_its_answers),
        TEST(half_a_request_and_the_end_gets_no_answer),
        TEST(answer_to_a_client_that_went_away),
        TEST(stop_drops_requests_under_way),
        TEST(slow_request_is_given_up),
        TEST(limit_is_for_the_request_only),
        TEST(body_of_the_limit_is_read),
        TEST(larger_body_is_refused),
        TEST(expectation_is_met_before_the_body),
        TEST(idle_connections_give_way),
        TEST(busy_connections_make_others_wait),
        TEST(health_and_readiness),
        TEST(metrics_count_requests),
        TEST(one_log_line_per_request_without_secrets),
        TEST(bad_addresses_are_named),
        TEST(good_addresses_are_taken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
