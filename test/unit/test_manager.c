/*
 * test_manager.c - the life of tasks over the real SQLite registry: a source without collections, a log that is silent,
 * and as the target a peer that says whether it is a standby.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <unistd.h>

#include "base/base64.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metric.h"
#include "daemon/config.h"
#include "milvus/target_priv.h"
#include "task/priv.h"
#include "task/spec.h"

#include "h2peer.h"

#define CHAN "by-dev-replicate-msg"
#define DAEMON "d1"
#define LIMIT_MS 20000
#define TOKEN "root:sesame-open"

static struct loop *loop;
static struct peer peer;
static int32_t peer_code; /* ReplicateMessage's answer: 1100 a standby, 1900 not; 0: no answer */
static char dir[40], path[60];
static char database_auth[64]; /* the login of the last call about a database */
static struct registry *reg;
static struct manager *mgr;
static struct config config;
static unsigned n_answers;

/* Turns until cond, with a limit. */
#define UNTIL(cond)                                                                                                    \
    do {                                                                                                               \
        uint64_t end_ = clock_mono_ms() + LIMIT_MS;                                                                    \
        while (!(cond)) {                                                                                              \
            if (clock_mono_ms() > end_)                                                                                \
                fail_msg("line %d: never: %s", __LINE__, #cond);                                                       \
            loop_once(loop, false);                                                                                    \
        }                                                                                                              \
    } while (0)

static void assert_in(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, text);
}

/* ---- target ------------------------------------------------------------------------------------------- */

struct ssl_st *peer_tls_accept(struct ssl_ctx_st *ctx)
{
    (void)ctx;
    abort(); /* the peer here has no TLS */
}

static void peer_on_request(struct peer_stream *s, bool ended)
{
    Pb__StatusResponse outer = PB__STATUS_RESPONSE__INIT;
    Pb__Status st = PB__STATUS__INIT;
    uint8_t body[200];

    if (!ended || (strstr(s->path, "/ReplicateMessage") && !peer_code))
        return;
    if (strstr(s->path, "Database"))
        snprintf(database_auth, sizeof(database_auth), "%s", s->auth);
    if (strstr(s->path, "/ReplicateMessage")) {
        st.code = peer_code;
        st.error_code = 1;
        st.reason = pb_str("as scripted");
    }
    outer.status = &st;
    peer_headers(s, "200", "application/grpc", NULL, NULL, false);
    peer_message(s, body, pb__status_response__pack(&outer, body));
    peer_end(s, "0", NULL);
}

/* ---- source: a silent log -------------------------------------------------------------------------------- */

struct wal_reader {
    LIST_ENTRY(wal_reader) entry;
    struct wal_reader_cbs cbs;
    void *arg;
};
static LIST_HEAD(, wal_reader) readers;

struct end_call {
    LIST_ENTRY(end_call) entry;
    wal_end_fn done;
    void *arg;
    struct timer timer;
};
static LIST_HEAD(, end_call) end_calls;

static struct wal_reader *w_open(struct wal_port *w, const char *topic, const struct wal_start *start,
                                 const struct wal_reader_cbs *cbs, void *arg)
{
    struct wal_reader *r = xcalloc(1, sizeof(*r));

    (void)w;
    (void)start;
    assert_string_equal(topic, CHAN);
    r->cbs = *cbs;
    r->arg = arg;
    LIST_INSERT_HEAD(&readers, r, entry);
    return r;
}

static void w_nothing(struct wal_reader *r)
{
    (void)r;
}

static void w_close(struct wal_reader *r)
{
    LIST_REMOVE(r, entry);
    free(r);
}

static void end_forget(struct end_call *e)
{
    LIST_REMOVE(e, entry);
    timer_release(&e->timer);
    free(e);
}

static void end_timer(void *arg)
{
    struct end_call *e = arg;
    wal_end_fn done = e->done;
    void *a = e->arg;

    end_forget(e);
    done(a, NULL, true, (struct wal_pos){0, 5});
}

static void w_end(struct wal_port *w, const char *topic, wal_end_fn done, void *arg)
{
    struct end_call *e = xcalloc(1, sizeof(*e));

    (void)w;
    (void)topic;
    e->done = done;
    e->arg = arg;
    LIST_INSERT_HEAD(&end_calls, e, entry);
    timer_init(&e->timer, loop, LOOP_PRIO_NORMAL, end_timer, e);
    timer_set(&e->timer, 0);
}

static void w_end_cancel(struct wal_port *w, void *arg)
{
    struct end_call *e, *next;

    (void)w;
    for (e = LIST_FIRST(&end_calls); e; e = next) {
        next = LIST_NEXT(e, entry);
        if (e->arg == arg)
            end_forget(e);
    }
}

static size_t w_encode(struct wal_pos pos, uint8_t *ret)
{
    for (int i = 0; i < 8; i++)
        ret[i] = (uint8_t)(pos.minor >> 8 * i);
    return 8;
}

static int w_decode(const uint8_t *id, size_t len, struct wal_pos *ret)
{
    *ret = WAL_POS_NONE;
    for (size_t i = 0; i < len && len == 8; i++)
        ret->minor |= (uint64_t)id[i] << 8 * i;
    return len == 8 ? 0 : ERR_PROTO;
}

static const struct wal_port_ops w_ops = {.open = w_open,   .pause = w_nothing,         .resume = w_nothing,
                                          .close = w_close, .end = w_end,               .end_cancel = w_end_cancel,
                                          .id_encode = w_encode, .id_decode = w_decode};
/* A queue that keeps something for each task, as Pulsar does. */
static bool forget_fails;
static unsigned forgotten;
static LIST_HEAD(, forget_call) forget_calls;
struct forget_call {
    LIST_ENTRY(forget_call) entry;
    wal_forget_fn done;
    void *arg;
    struct timer timer;
};

static void forget_end(struct forget_call *f)
{
    LIST_REMOVE(f, entry);
    timer_release(&f->timer);
    free(f);
}

static void forget_timer(void *arg)
{
    struct forget_call *f = arg;
    wal_forget_fn done = f->done;
    void *a = f->arg;
    struct err err;

    forget_end(f);
    err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "the queue is away");
    forgotten += !forget_fails;
    done(a, forget_fails ? &err : NULL);
}

static void w_forget(struct wal_port *w, const char *owner, const char *topic, wal_forget_fn done, void *arg)
{
    struct forget_call *f;

    (void)w;
    (void)owner;
    if (!done)
        return;
    assert_string_equal(topic, CHAN);
    f = xcalloc(1, sizeof(*f));
    f->done = done;
    f->arg = arg;
    LIST_INSERT_HEAD(&forget_calls, f, entry);
    timer_init(&f->timer, loop, LOOP_PRIO_NORMAL, forget_timer, f);
    timer_set(&f->timer, 1);
}

static void w_retain(struct wal_port *w, const char *owner, const char *topic, struct wal_pos from)
{
    (void)w;
    (void)owner;
    (void)topic;
    (void)from;
}

static void w_cancel_all(struct wal_port *w, void *arg)
{
    struct forget_call *f, *next;

    w_end_cancel(w, arg);
    for (f = LIST_FIRST(&forget_calls); f; f = next) {
        next = LIST_NEXT(f, entry);
        if (f->arg == arg)
            forget_end(f);
    }
}

static const struct wal_port_ops keeping_ops = {.open = w_open,   .pause = w_nothing,         .resume = w_nothing,
                                                .close = w_close, .end = w_end,               .end_cancel = w_cancel_all,
                                                .retain = w_retain, .forget = w_forget,
                                                .id_encode = w_encode, .id_decode = w_decode};
static struct wal_port wal = {&w_ops, "fake", "sourceConfig.fake"};

/* ---- source: an empty catalog, for tasks ----------------------------------------------------------------------------- */

struct cat_call { /* a subscription or a sync */
    LIST_ENTRY(cat_call) entry;
    struct catalog_cbs cbs;
    catalog_sync_fn sync;
    void *arg;
    struct timer timer;
};
static LIST_HEAD(, cat_call) cat_calls;

static void cat_forget(struct cat_call *s)
{
    LIST_REMOVE(s, entry);
    timer_release(&s->timer);
    free(s);
}

static void cat_timer(void *arg)
{
    struct cat_call *s = arg;
    catalog_sync_fn sync = s->sync;
    void *a = s->arg;

    if (!sync) {
        s->cbs.on_ready(a);
        return;
    }
    cat_forget(s);
    sync(a, NULL);
}

static struct cat_call *cat_add(const struct catalog_cbs *cbs, catalog_sync_fn sync, void *arg)
{
    struct cat_call *s = xcalloc(1, sizeof(*s));

    if (cbs)
        s->cbs = *cbs;
    s->sync = sync;
    s->arg = arg;
    LIST_INSERT_HEAD(&cat_calls, s, entry);
    timer_init(&s->timer, loop, LOOP_PRIO_NORMAL, cat_timer, s);
    timer_set(&s->timer, 0);
    return s;
}

static void *c_subscribe(struct catalog *c, const struct catalog_cbs *cbs, void *arg)
{
    (void)c;
    return cat_add(cbs, NULL, arg);
}

static void c_unsubscribe(struct catalog *c, void *handle)
{
    (void)c;
    cat_forget(handle);
}

static struct src_collection *source; /* what is there when somebody asks */
static size_t n_source;
static bool catalog_is_ready = true;

static const struct src_collection *c_next(struct catalog *c, int64_t after)
{
    (void)c;
    for (size_t i = 0; i < n_source; i++)
        if (source[i].id > after)
            return &source[i];
    return NULL;
}

static const struct src_collection *c_get(struct catalog *c, int64_t id)
{
    const struct src_collection *sc = c_next(c, id - 1);

    return sc && sc->id == id ? sc : NULL;
}

static bool c_ready(const struct catalog *c)
{
    (void)c;
    return catalog_is_ready;
}

static void c_sync(struct catalog *c, catalog_sync_fn done, void *arg)
{
    (void)c;
    (void)cat_add(NULL, done, arg);
}

static void c_sync_cancel(struct catalog *c, void *arg)
{
    struct cat_call *s, *next;

    (void)c;
    for (s = LIST_FIRST(&cat_calls); s; s = next) {
        next = LIST_NEXT(s, entry);
        if (s->sync && s->arg == arg)
            cat_forget(s);
    }
}

static const struct catalog_ops c_ops = {c_subscribe, c_unsubscribe, c_get, c_next, c_sync, c_sync_cancel, c_ready};
static struct catalog catalog = {&c_ops};

/* ---- manager ------------------------------------------------------------------------------------------------ */

struct reply {
    unsigned calls, order;
    struct err err; /* code ERR_OK: success */
    json_t *data;
};

static void on_answer(void *arg, const struct err *err)
{
    struct reply *a = arg;

    a->calls++;
    a->order = ++n_answers;
    a->err = err ? *err : (struct err){.code = ERR_OK};
}

static void on_position(void *arg, const struct err *err, json_t *data)
{
    on_answer(arg, err);
    ((struct reply *)arg)->data = data ? json_deep_copy(data) : NULL;
}

static void on_stop(void *arg)
{
    on_answer(arg, NULL);
}

static void manager_make(void)
{
    mgr = manager_new(&(struct manager_deps){.loop = loop,
                                             .config = &config,
                                             .registry = reg,
                                             .catalog = &catalog,
                                             .wal = &wal,
                                             .daemon_id = DAEMON,
                                             .lease_ms = 3000});
}

static void manager_begin(void)
{
    struct reply a = {0};

    manager_make();
    manager_start(mgr, on_answer, &a);
    assert_int_equal(a.calls, 0);
    UNTIL(a.calls);
    assert_int_equal(a.err.code, ERR_OK);
}

static void reg_open(void)
{
    struct err err;

    reg = registry_sqlite_open(loop, path, &err);
    if (!reg)
        fail_msg("%s", err.text);
}

static void manager_end(void)
{
    manager_free(mgr);
    mgr = NULL;
    if (reg)
        reg->ops->close(reg);
    reg = NULL;
    loop_once(loop, false);
}

/* The daemon dies and comes back. */
static void restart(void)
{
    manager_end();
    assert_true(LIST_EMPTY(&readers));
    assert_true(LIST_EMPTY(&cat_calls));
    assert_true(LIST_EMPTY(&end_calls));
    reg_open();
    manager_begin();
}

static int setup(void **state)
{
    (void)state;
    log_set_level(LOG_ERROR);
    strcpy(dir, "/tmp/test_manager.XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/r.db", dir);
    config = (struct config){.max_task_num = 100,
                             .max_name_length = 256,
                             .replicate_chan = (char *)CHAN,
                             .time_tick_interval_ms = 500,
                             .batch_bytes = 1 << 20,
                             .channel_bytes = 1 << 20,
                             .task_bytes = 1 << 20,
                             .process_bytes = 1 << 20};
    peer_code = 1100;
    n_answers = 0;
    loop = loop_new();
    peer_init(&peer, loop);
    reg_open();
    manager_begin();
    return 0;
}

static int teardown(void **state)
{
    DIR *d = opendir(dir);
    struct dirent *e;

    (void)state;
    manager_end();
    peer_release(&peer);
    loop_free(loop);
    metric_clear();
    while (d && (e = readdir(d))) {
        char file[400];

        snprintf(file, sizeof(file), "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.')
            unlink(file);
    }
    if (d)
        closedir(d);
    rmdir(dir);
    return LIST_EMPTY(&readers) && LIST_EMPTY(&cat_calls) && LIST_EMPTY(&end_calls) ? 0 : -1;
}

/* ---- requests ------------------------------------------------------------------------------------------------ */

/* A request for collection coll; more: further fields, with single quotes. id NULL: none given. */
static struct task_spec *spec_make(const char *id, const char *coll, const char *more)
{
    static const struct spec_limits limits = {.max_name_length = 256, .replicate_chan = CHAN};
    struct task_spec *s;
    struct err err;
    char text[600];
    json_t *o;

    snprintf(text, sizeof(text),
             "{'milvus_connect_param':{'uri':'http://127.0.0.1:%u','token':'%s','connect_timeout':2},"
             "'collection_infos':[{'name':'%s'}]%s%s%s%s}",
             (unsigned)peer.port, TOKEN, coll, id ? ",'task_id':'" : "", id ? id : "", id ? "'" : "", more);
    for (char *p = text; *p; p++)
        if (*p == '\'')
            *p = '"';
    o = json_loads(text, 0, NULL);
    s = spec_from_request(o, &limits, &err);
    json_decref(o);
    if (!s)
        fail_msg("%s", err.text);
    return s;
}

typedef void (*request_fn)(struct manager *m, const char *task_id, manager_fn done, void *arg);

static struct reply ask(request_fn fn, const char *id)
{
    struct reply a = {0};

    fn(mgr, id, on_answer, &a);
    assert_int_equal(a.calls, 0); /* never from inside the call */
    UNTIL(a.calls);
    return a;
}

static struct reply create_with(const char *id, const char *coll, const char *more)
{
    struct reply a = {0};

    manager_create(mgr, spec_make(id, coll, more), on_answer, &a);
    assert_int_equal(a.calls, 0);
    UNTIL(a.calls);
    return a;
}

static void good(struct reply a)
{
    if (a.err.code)
        fail_msg("%s", a.err.text);
    assert_int_equal(a.calls, 1);
}

static void bad(struct reply a, enum err_code code, const char *text)
{
    assert_int_equal(a.calls, 1);
    if (a.err.code != code)
        fail_msg("not %s but %s: %s", err_code_name(code), err_code_name(a.err.code), a.err.text);
    assert_in(a.err.text, text);
}

static void create(const char *id, const char *coll)
{
    good(create_with(id, coll, ""));
}

static struct reply positions(const char *id)
{
    struct reply a = {0};

    manager_positions(mgr, id, on_position, &a);
    assert_int_equal(a.calls, 0);
    UNTIL(a.calls);
    good(a);
    assert_non_null(a.data);
    return a;
}

static bool shows(const char *id, const char *state, const char *reason)
{
    json_t *o = manager_task_json(mgr, id);
    const char *r = json_string_value(json_object_get(o, "reason"));
    bool ok = o && strcmp(json_string_value(json_object_get(o, "state")), state) == 0 &&
              (reason ? r && strstr(r, reason) : !r);

    json_decref(o);
    return ok;
}

#define assert_shows(id, state, reason) assert_true(shows(id, state, reason))

/* "id:state " of each record in the registry. */
static void on_records(void *arg, const struct err *err, const struct reg_task *tasks, size_t n)
{
    char *to = arg;

    assert_null(err);
    to[0] = 0;
    for (size_t i = 0; i < n; i++)
        snprintf(to + strlen(to), 400 - strlen(to), "%s:%d ", tasks[i].id, (int)tasks[i].state);
}

static void assert_records(const char *want)
{
    char got[400] = "?";

    reg->ops->list(reg, NULL, on_records, got);
    UNTIL(got[0] != '?');
    assert_string_equal(got, want);
}

static size_t n_ids(void)
{
    size_t n;

    (void)manager_task_ids(mgr, &n);
    return n;
}

static unsigned n_readers(void)
{
    struct wal_reader *r;
    unsigned n = 0;

    LIST_FOREACH(r, &readers, entry)
        n++;
    return n;
}

/* The log lost what a task wants to read. */
static void reader_fails(enum err_class cls, const char *text)
{
    struct wal_reader *r = LIST_FIRST(&readers);
    struct err err;

    err_set(&err, cls == ERRC_LOST ? ERR_GONE : ERR_PROTO, cls, "%s", text);
    r->cbs.on_trouble(r->arg, &err);
}

/* ---- create ----------------------------------------------------------------------------------------------------- */

static void test_create_makes_a_running_task(void **state)
{
    const char *const *ids;
    json_t *o;
    char *text;
    size_t n;

    (void)state;
    create("t2", "b");
    create("t1", "a");
    ids = manager_task_ids(mgr, &n);
    assert_int_equal(n, 2);
    assert_string_equal(ids[0], "t1");
    assert_string_equal(ids[1], "t2");
    assert_shows("t1", "Running", NULL);
    assert_records("t1:1 t2:1 ");
    UNTIL(n_readers() == 2);
    o = manager_task_json(mgr, "t1");
    assert_string_equal(json_string_value(json_object_get(o, "task_id")), "t1");
    text = json_dumps(o, 0);
    assert_in(text, "127.0.0.1");
    assert_null(strstr(text, "sesame"));
    free(text);
    json_decref(o);
    assert_null(manager_task_json(mgr, "t3"));
    assert_null(manager_task_json(mgr, NULL));
}

static struct reply create_from_backup(const char *coll, const char *channels)
{
    char more[300];

    snprintf(more, sizeof(more), ",'start':{'backup':{'infos':[{'collection_name':'%s','channel_checkpoints':{%s}}]}}", coll,
             channels);
    return create_with("t1", coll, more);
}

/* Before anything is asked of the queue. */
static void test_given_positions_must_fit(void **state)
{
    static const char both[] = "'p_7v0':'CgFwEgEB','q_7v1':'CgFxEgEB'";
    struct src_shard shards[] = {{.vchannel = (char *)"p_7v0", .pchannel = (char *)"p"},
                                 {.vchannel = (char *)"q_7v1", .pchannel = (char *)"q"}};
    struct src_collection list[] = {{.id = 7, .db_name = (char *)"default", .name = (char *)"a", .state = SRC_ALIVE,
                                     .shards = shards, .n_shards = 2},
                                    {.id = 8, .db_name = (char *)"default", .name = (char *)"gone", .state = SRC_DROPPING}};

    (void)state;
    source = list;
    n_source = 2;
    bad(create_from_backup("a", "'p_9v0':'CgFwEgEB'"), ERR_INVALID, "id 9, which the source does not have");
    bad(create_from_backup("gone", "'p_8v0':'CgFwEgEB'"), ERR_INVALID, "id 8, which the source does not have");
    bad(create_from_backup("b", both), ERR_INVALID, "default.b are of the collection with the id 7, which is default.a");
    bad(create_from_backup("a", "'p_7v0':'CgFwEgEB'"), ERR_INVALID, "the positions of default.a lack its channel q_7v1");
    bad(create_from_backup("a", "'p_7v0':'CgFwEgEB','p_7v1':'CgFwEgEB'"), ERR_INVALID,
        "have the channel p_7v1, which is none of its");
    assert_null(manager_task_json(mgr, "t1"));
    n_source = 0;
}

static void test_matches_are_shown(void **state)
{
    struct src_collection list[] = {
        {.id = 1, .db_name = (char *)"default", .name = (char *)"tmp_a", .state = SRC_ALIVE},
        {.id = 2, .db_name = (char *)"d", .name = (char *)"a", .state = SRC_ALIVE},
        {.id = 3, .db_name = (char *)"default", .name = (char *)"tmp_gone", .state = SRC_DROPPING},
        {.id = 4, .db_name = (char *)"default", .name = (char *)"tmp_x", .state = SRC_ALIVE},
        {.id = 5, .db_name = (char *)"default", .name = (char *)"tmp_b", .state = SRC_ALIVE},
        {.id = 6, .db_name = (char *)"default", .name = (char *)"other", .state = SRC_ALIVE},
    };
    json_t *o = json_object(), *want;

    (void)state;
    good(create_with("t1", "tmp_*", ",'exclude':['tmp_x'],'name_mapping':[{'source_db':'default','target_db':'e',"
                                    "'collection_mapping':{'tmp_*':'c_*'}}]"));
    source = list;
    n_source = sizeof(list) / sizeof(list[0]);
    catalog_is_ready = false;
    manager_add_matches(mgr, "t1", 5, o);
    assert_int_equal(json_object_size(o), 0); /* nobody knows */
    catalog_is_ready = true;
    manager_add_matches(mgr, "t1", 1, o);
    want = json_pack("{s:[{s:s, s:s, s:s, s:s, s:i}], s:i}", "matches", "database", "default", "collection", "tmp_a",
                     "target_database", "e", "target_collection", "c_a", "id", 1, "matches_total", 2);
    assert_true(json_equal(o, want));
    manager_add_matches(mgr, "t1", 5, o);
    assert_int_equal(json_array_size(json_object_get(o, "matches")), 2);
    json_decref(want);
    json_decref(o);
    n_source = 0;
}

static void test_a_task_without_an_id_gets_one(void **state)
{
    const char *const *ids;
    size_t n;

    (void)state;
    create(NULL, "a");
    ids = manager_task_ids(mgr, &n);
    assert_int_equal(n, 1);
    assert_true(strlen(ids[0]) >= 32);
    assert_shows(ids[0], "Running", NULL);
}

static void test_a_task_shows_only_once_it_is_stored(void **state)
{
    struct reply a = {0};

    (void)state;
    peer_code = 0;
    manager_create(mgr, spec_make("t1", "a", ""), on_answer, &a);
    UNTIL(peer.complete >= 2);
    assert_null(manager_task_json(mgr, "t1"));
    assert_int_equal(n_ids(), 0);
    assert_int_equal(a.calls, 0);
    UNTIL(a.calls); /* the probe's time is over */
    assert_int_not_equal(a.err.code, ERR_OK);
    assert_records("");
}

static void test_a_target_that_is_no_standby_is_refused(void **state)
{
    (void)state;
    peer_code = 1900;
    bad(create_with("t1", "a", ",'mode':'standby'"), ERR_STATE, "not a standby");
    assert_null(manager_task_json(mgr, "t1"));
    assert_int_equal(n_ids(), 0);
    assert_records("");
    peer_code = 1100; /* the id is free again */
    create("t1", "a");
}

static void test_a_target_that_is_away_is_refused(void **state)
{
    struct reply a;

    (void)state;
    peer_deafen(&peer);
    a = create_with("t1", "a", "");
    assert_int_not_equal(a.err.code, ERR_OK);
    assert_in(a.err.text, "127.0.0.1");
    assert_null(strstr(a.err.text, "sesame"));
    assert_null(manager_task_json(mgr, "t1"));
    assert_records("");
}

static void test_a_create_that_cannot_start_leaves_nothing(void **state)
{
    static const char msg[] = "\x0a\x14" CHAN "\x12\x03\x01\x02\x03"; /* MsgPosition with an id of 3 bytes */
    char *b64 = base64_encode(msg, sizeof(msg) - 1);
    char more[200];

    (void)state;
    snprintf(more, sizeof(more), ",'rpc_channel_info':{'name':'" CHAN "','position':'%s'}", b64);
    free(b64);
    bad(create_with("t1", "a", more), ERR_INVALID, "rpc_channel_info.position");
    assert_null(manager_task_json(mgr, "t1"));
    assert_int_equal(n_ids(), 0);
    assert_records("");
}

static void test_a_known_id_is_answered_at_once(void **state)
{
    unsigned accepted;

    (void)state;
    create("t1", "a");
    accepted = peer.accepted;
    peer_code = 1900;
    good(create_with("t1", "other", ""));
    assert_int_equal(peer.accepted, accepted);
    assert_int_equal(n_ids(), 1);
    assert_records("t1:1 ");
}

static void test_overlap_is_refused_and_names_the_task(void **state)
{
    (void)state;
    create("first", "a");
    bad(create_with("second", "a", ""), ERR_EXISTS, "first");
    assert_null(manager_task_json(mgr, "second"));
    assert_records("first:1 ");
    create("third", "*"); /* all but what the first one has */
    good(ask(manager_delete, "first"));
    good(ask(manager_delete, "third"));
    create("second", "a");
}

/* Both are asked for before the first is stored. */
static void test_overlap_with_a_create_under_way_is_refused(void **state)
{
    struct reply a = {0}, b = {0};

    (void)state;
    manager_create(mgr, spec_make("t1", "a", ""), on_answer, &a);
    manager_create(mgr, spec_make("t2", "a", ""), on_answer, &b);
    UNTIL(a.calls && b.calls);
    good(a);
    bad(b, ERR_EXISTS, "t1");
}

static void test_max_task_num_is_kept(void **state)
{
    (void)state;
    config.max_task_num = 1;
    create("t1", "a");
    bad(create_with("t2", "b", ""), ERR_LIMIT, "maxTaskNum");
    assert_records("t1:1 ");
    good(ask(manager_delete, "t1"));
    create("t2", "b");
}

static void test_nothing_is_made_before_the_registry_is_loaded(void **state)
{
    (void)state;
    assert_null(manager_not_ready(mgr));
    manager_free(mgr);
    manager_make();
    assert_non_null(manager_not_ready(mgr));
    bad(create_with("t1", "a", ""), ERR_UNAVAILABLE, "not loaded");
}

/* ---- pause, resume, delete ------------------------------------------------------------------------------------------ */

static void test_pause_stops_once(void **state)
{
    (void)state;
    create("t1", "a");
    good(ask(manager_pause, "t1"));
    assert_shows("t1", "Paused", "manually pause through http interface");
    assert_records("t1:2 ");
    assert_int_equal(n_readers(), 0);
    bad(ask(manager_pause, "t1"), ERR_STATE, "t1");
    assert_shows("t1", "Paused", "manually pause");
}

static void test_resume_starts_once(void **state)
{
    (void)state;
    create("t1", "a");
    good(ask(manager_pause, "t1"));
    good(ask(manager_resume, "t1"));
    assert_shows("t1", "Running", NULL);
    assert_records("t1:1 ");
    assert_int_equal(n_readers(), 1);
    bad(ask(manager_resume, "t1"), ERR_STATE, "t1");
    assert_shows("t1", "Running", NULL);
}

static void verify_all(struct manager *m, const char *id, manager_fn done, void *arg)
{
    manager_verify(m, id, "{\"level\":\"rows\"}", done, arg);
}

static void verify_cancel(struct manager *m, const char *id, manager_fn done, void *arg)
{
    manager_verify(m, id, "{\"cancel\":true}", done, arg);
}

static void verify_bytes(struct manager *m, const char *id, manager_fn done, void *arg)
{
    manager_verify(m, id, "{\"level\":\"bytes\"}", done, arg);
}

static void test_a_comparison_needs_a_running_task(void **state)
{
    (void)state;
    create("t1", "a");
    bad(ask(verify_bytes, "t1"), ERR_INVALID, "level \"bytes\": allowed are counts, keys and rows");
    bad(ask(verify_all, "t1"), ERR_STATE, "sourceConfig.milvus.uri");
    bad(ask(verify_cancel, "t1"), ERR_STATE, "no verification");
    bad(ask(verify_all, "nobody"), ERR_NOT_FOUND, "nobody");
    good(ask(manager_pause, "t1"));
    bad(ask(verify_all, "t1"), ERR_STATE, "not running (state Paused, manually pause");
}

static void on_verify_record(void *arg, const struct err *err, const struct reg_task *tasks, size_t n)
{
    assert_null(err);
    assert_int_equal(n, 1);
    snprintf(arg, 200, "%s", tasks[0].verify);
}

/* What was under way when the daemon died is over, in the record too: other daemons show that. */
static void test_a_comparison_ends_with_its_daemon(void **state)
{
    struct store *s;
    struct store_batch *b;
    char got[200] = "?";
    json_t *o;

    (void)state;
    create("t1", "a");
    s = manager_find(mgr, "t1")->store;
    b = s->ops->begin(s, "t1");
    s->ops->put_verify(b, "{\"state\":\"running\",\"level\":\"keys\"}");
    s->ops->commit(b, NULL, NULL);
    restart();
    o = manager_task_json(mgr, "t1");
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "verify"), "state")), "failed");
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "verify"), "level")), "keys");
    json_decref(o);
    UNTIL(n_readers() == 1);
    reg->ops->list(reg, "t1", on_verify_record, got);
    UNTIL(got[0] != '?');
    assert_in(got, "\"state\":\"failed\"");
    assert_in(got, "interrupted");
}

static void test_resume_needs_a_standby(void **state)
{
    (void)state;
    create("t1", "a");
    good(ask(manager_pause, "t1"));
    peer_code = 1900;
    bad(ask(manager_resume, "t1"), ERR_STATE, "not a standby");
    assert_shows("t1", "Paused", "manually pause");
    peer_code = 1100;
    good(ask(manager_resume, "t1"));
}

static void test_an_unknown_id_is_not_found(void **state)
{
    static const request_fn all[] = {manager_pause, manager_resume, manager_delete};

    (void)state;
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
        bad(ask(all[i], "nobody"), ERR_NOT_FOUND, "nobody");
        bad(ask(all[i], NULL), ERR_NOT_FOUND, "");
    }
}

static void test_delete_removes(void **state)
{
    (void)state;
    create("t1", "a");
    create("t2", "b");
    good(ask(manager_pause, "t2"));
    good(ask(manager_delete, "t1"));
    good(ask(manager_delete, "t2"));
    assert_null(manager_task_json(mgr, "t1"));
    assert_int_equal(n_ids(), 0);
    assert_records("");
    assert_int_equal(n_readers(), 0);
    bad(ask(manager_delete, "t1"), ERR_NOT_FOUND, "t1");
}

/* The queue keeps something for each task: it goes too, even if the queue or the daemon is away for a while. */
static void test_delete_cleans_the_queue(void **state)
{
    (void)state;
    wal.ops = &keeping_ops;
    forgotten = 0;
    forget_fails = true;
    create("t1", "a");
    good(ask(manager_delete, "t1"));
    assert_null(manager_task_json(mgr, "t1"));
    assert_int_equal(n_ids(), 0);
    assert_records("t1:0 ");
    bad(create_with("t1", "a", ""), ERR_STATE, "still being removed");
    restart();
    assert_records("t1:0 ");
    assert_int_equal(forgotten, 0);
    forget_fails = false;
    UNTIL(forgotten == 1);
    assert_records("");
    good(create_with("t1", "a", ""));
    forgotten = 0;
    peer_code = 1100;
    good(ask(manager_delete, "t1"));
    UNTIL(forgotten == 1);
    wal.ops = &w_ops;
}

static void test_requests_for_one_task_run_one_after_the_other(void **state)
{
    struct reply created = {0}, paused = {0}, resumed = {0}, deleted = {0}, late = {0};

    (void)state;
    manager_create(mgr, spec_make("t1", "a", ""), on_answer, &created);
    manager_pause(mgr, "t1", on_answer, &paused);
    manager_resume(mgr, "t1", on_answer, &resumed);
    manager_delete(mgr, "t1", on_answer, &deleted);
    manager_pause(mgr, "t1", on_answer, &late);
    UNTIL(late.calls);
    good(created);
    good(paused);
    good(resumed);
    good(deleted);
    bad(late, ERR_NOT_FOUND, "deleted");
    assert_int_equal(created.order, 2); /* the first answer was manager_start's */
    assert_int_equal(paused.order, 3);
    assert_int_equal(resumed.order, 4);
    assert_int_equal(deleted.order, 5);
    assert_records("");
}

static void test_pause_and_delete_together_are_both_done(void **state)
{
    struct reply paused = {0}, deleted = {0};

    (void)state;
    create("t1", "a");
    manager_pause(mgr, "t1", on_answer, &paused);
    manager_delete(mgr, "t1", on_answer, &deleted);
    UNTIL(deleted.calls);
    good(paused);
    good(deleted);
    assert_true(paused.order < deleted.order);
    assert_records("");
}

static void test_what_waits_behind_a_failed_create_is_not_found(void **state)
{
    struct reply created = {0}, paused = {0};

    (void)state;
    peer_code = 1900;
    manager_create(mgr, spec_make("t1", "a", ",'mode':'standby'"), on_answer, &created);
    manager_pause(mgr, "t1", on_answer, &paused);
    UNTIL(paused.calls);
    bad(created, ERR_STATE, "standby");
    bad(paused, ERR_NOT_FOUND, "");
}

static void test_keep_queryable_pauses_and_resumes(void **state)
{
    (void)state;
    good(create_with("t1", "a", ",'keep_queryable':true"));
    good(ask(manager_pause, "t1"));
    assert_shows("t1", "Paused", "manually pause");
    restart();
    assert_shows("t1", "Paused", "manually pause");
    good(ask(manager_resume, "t1"));
    assert_shows("t1", "Running", NULL);
    good(ask(manager_pause, "t1"));
    good(ask(manager_delete, "t1"));
}

/* ---- a task that fails by itself ------------------------------------------------------------------------------------- */

static void test_a_failed_task_is_paused_with_the_reason(void **state)
{
    (void)state;
    create("t1", "a");
    UNTIL(n_readers() == 1);
    reader_fails(ERRC_LOST, "4 is gone, 9 is the first");
    UNTIL(shows("t1", "Paused", "LOST: fail to read the message: "));
    assert_shows("t1", "Paused", "4 is gone, 9 is the first");
    UNTIL(n_readers() == 0);
    good(ask(manager_resume, "t1"));
    assert_shows("t1", "Running", NULL);
    assert_records("t1:1 ");
}

static void test_a_failure_outlives_the_daemon(void **state)
{
    (void)state;
    create("t1", "a");
    UNTIL(n_readers() == 1);
    reader_fails(ERRC_DATA, "junk");
    UNTIL(shows("t1", "Paused", "fail to handle replicate message: "));
    restart();
    assert_shows("t1", "Paused", "junk");
    UNTIL(n_readers() == 0);
}

static void test_a_failure_while_a_pause_waits_is_a_pause(void **state)
{
    struct reply a = {0};

    (void)state;
    create("t1", "a");
    UNTIL(n_readers() == 1);
    reader_fails(ERRC_LOST, "gone");
    manager_pause(mgr, "t1", on_answer, &a);
    UNTIL(a.calls);
    assert_shows("t1", "Paused", "");
    assert_records("t1:2 ");
}

/* The runtime fails when it has begun but the state Running is not stored yet. */
static void test_a_failure_while_a_create_is_being_stored_is_answered_once(void **state)
{
    struct reply a = {0};

    (void)state;
    manager_create(mgr, spec_make("t1", "a", ""), on_answer, &a);
    UNTIL(n_readers() == 1);
    assert_int_equal(a.calls, 0);
    reader_fails(ERRC_LOST, "gone");
    UNTIL(a.calls && n_readers() == 0);
    if (a.err.code) {
        assert_records("");
        assert_int_equal(n_ids(), 0);
    } else { /* it was stored before */
        UNTIL(shows("t1", "Paused", "gone"));
        assert_records("t1:2 ");
    }
    assert_int_equal(a.calls, 1);
}

static void test_a_failure_while_a_resume_is_being_stored_is_answered_once(void **state)
{
    struct reply a = {0};

    (void)state;
    create("t1", "a");
    good(ask(manager_pause, "t1"));
    manager_resume(mgr, "t1", on_answer, &a);
    UNTIL(n_readers() == 1);
    assert_int_equal(a.calls, 0);
    reader_fails(ERRC_LOST, "gone");
    UNTIL(a.calls && n_readers() == 0);
    UNTIL(shows("t1", "Paused", "gone"));
    assert_records("t1:2 ");
    assert_int_equal(a.calls, 1);
}

/* ---- restart ------------------------------------------------------------------------------------------------------------ */

static void test_states_outlive_the_daemon(void **state)
{
    (void)state;
    create("run", "a");
    create("stop", "b");
    good(create_with("manual", "c", ",'disable_auto_start':true"));
    assert_shows("manual", "Running", NULL);
    good(ask(manager_pause, "stop"));
    restart();
    assert_int_equal(n_ids(), 3);
    assert_shows("run", "Running", NULL);
    assert_shows("stop", "Paused", "manually pause");
    assert_shows("manual", "Paused", "disabled auto start");
    UNTIL(n_readers() == 1);
    assert_records("manual:2 run:1 stop:2 ");
    good(ask(manager_resume, "manual"));
    good(ask(manager_resume, "stop"));
    UNTIL(n_readers() == 3);
    bad(create_with("x", "a", ""), ERR_EXISTS, "run");
    assert_shows("run", "Running", NULL);
}

static void test_a_running_task_goes_on_while_its_target_is_away(void **state)
{
    (void)state;
    create("t1", "a");
    peer_release(&peer);
    restart();
    assert_shows("t1", "Running", NULL);
    UNTIL(n_readers() == 1);
    assert_records("t1:1 ");
}

static void on_lease(void *arg, const struct err *err, const struct reg_lease *lease)
{
    assert_null(err);
    *(uint64_t *)arg = lease->epoch;
}

static void put_record(const char *id, const char *spec, enum task_state st)
{
    struct reg_task r = {.id = (char *)id,
                         .spec_json = (char *)spec,
                         .target_key = (char *)"h:1",
                         .state = st,
                         .reason = (char *)""};
    struct reply a = {0};
    uint64_t epoch = 0;

    reg->ops->claim(reg, "h:1", DAEMON, 0, on_lease, &epoch);
    UNTIL(epoch);
    reg->ops->create(reg, &r, DAEMON, epoch, on_answer, &a);
    UNTIL(a.calls);
    assert_int_equal(a.err.code, ERR_OK);
}

/* The daemon died between the first record of a create and its answer. */
static void test_a_create_that_was_cut_off_is_removed(void **state)
{
    (void)state;
    put_record("half", "{}", TASK_INITIAL);
    restart();
    UNTIL(n_ids() == 0);
    assert_records("");
}

static void test_a_record_that_cannot_be_read_is_paused(void **state)
{
    (void)state;
    put_record("odd", "{", TASK_PAUSED);
    restart();
    assert_shows("odd", "Paused", "");
    assert_int_equal(ask(manager_resume, "odd").err.code, ERR_STATE);
    good(ask(manager_delete, "odd"));
    assert_records("");
}

/* A pause may come when the records of the task are just being read. */
static void test_a_pause_right_after_the_start_ends(void **state)
{
    (void)state;
    create("t1", "a");
    for (int i = 0; i < 30; i++) {
        restart();
        for (int k = 0; k < i; k++)
            loop_once(loop, false);
        good(ask(manager_pause, "t1"));
        assert_shows("t1", "Paused", "manually pause");
        good(ask(manager_resume, "t1"));
    }
}

/* ---- in a group ------------------------------------------------------------------------------------------------ */

/* The embedded registry as one of two daemons sees a shared one. It answers a beat just after the tasks of a target that was
 * claimed were read: the target has no stored task yet. */
static struct {
    const struct registry_ops *real;
    struct reg_watch watch;
    reg_lease_fn claimed;
    reg_beat_fn beat;
    reg_tasks_fn listed;
    bool list_waits;     /* for the beat */
    void *claim_arg, *beat_arg, *list_arg;
    struct reg_lease lease; /* epoch 0: not held */
    char key[40];
    unsigned releases;
} group;

static void group_answer_beat(void)
{
    struct reg_beat b = {.leases = &group.lease, .n_leases = group.lease.epoch != 0, .daemons = 2, .next_expiry_ms = -1};
    reg_beat_fn beat = group.beat;

    group.beat = NULL;
    if (beat)
        beat(group.beat_arg, NULL, &b);
}

static void on_group_claimed(void *arg, const struct err *err, const struct reg_lease *lease)
{
    (void)arg;
    assert_null(err);
    group.lease.epoch = lease->epoch;
    group.claimed(group.claim_arg, NULL, lease);
}

static void g_claim(struct registry *r, const char *key, const char *owner, uint64_t ms, reg_lease_fn done, void *arg)
{
    group.claimed = done;
    group.claim_arg = arg;
    snprintf(group.key, sizeof(group.key), "%s", key);
    group.lease.target_key = group.key;
    group.real->claim(r, key, owner, ms, on_group_claimed, &group);
}

static void g_release(struct registry *r, const char *key, const char *owner, uint64_t epoch, reg_done_fn done, void *arg)
{
    group.releases++;
    group.lease.epoch = 0;
    group.real->release(r, key, owner, epoch, done, arg);
}

static void on_group_listed(void *arg, const struct err *err, const struct reg_task *tasks, size_t n)
{
    (void)arg;
    group.listed(group.list_arg, err, tasks, n);
    group_answer_beat();
}

static void g_list(struct registry *r, const char *task_id, reg_tasks_fn done, void *arg)
{
    if (!group.lease.epoch || group.listed) {
        group.real->list(r, task_id, done, arg);
        return;
    }
    group.listed = done;
    group.list_arg = arg;
    group.list_waits = true;
    group.watch.on_lease(group.watch.arg);
}

static void g_beat(struct registry *r, const char *owner, uint64_t ms, bool want, reg_beat_fn done, void *arg)
{
    (void)owner;
    (void)ms;
    (void)want;
    group.beat = done;
    group.beat_arg = arg;
    if (group.list_waits)
        group.real->list(r, NULL, on_group_listed, &group);
    else
        group_answer_beat();
    group.list_waits = false;
}

static void g_watch(struct registry *r, const char *owner, const struct reg_watch *w)
{
    (void)r;
    (void)owner;
    group.watch = w ? *w : (struct reg_watch){0};
}

static void g_cancel(struct registry *r, void *arg)
{
    if (arg == group.beat_arg)
        group.beat = NULL;
    group.real->cancel(r, arg);
}

/* A create is in no record yet: its target is not given away as one that nobody wants. */
static void test_a_target_stays_while_its_first_task_is_made(void **state)
{
    static struct registry_ops ops;

    (void)state;
    manager_end();
    reg_open();
    memset(&group, 0, sizeof(group));
    group.real = reg->ops;
    ops = *reg->ops;
    ops.claim = g_claim;
    ops.release = g_release;
    ops.list = g_list;
    ops.beat = g_beat;
    ops.watch = g_watch;
    ops.cancel = g_cancel;
    reg->ops = &ops;
    reg->shared = true;
    manager_begin();
    create("t1", "a");
    assert_shows("t1", "Running", NULL);
    assert_int_equal(group.releases, 0);
    manager_free(mgr);
    mgr = NULL;
    reg->ops = group.real;
}

/* ---- positions -------------------------------------------------------------------------------------------------------------- */

static void assert_msg_id(const json_t *entry, const char *channel, uint64_t id)
{
    const char *b64 = json_string_value(json_object_get(entry, "msg_id"));
    uint8_t want[80] = {0x0a, (uint8_t)strlen(channel)}, *raw;
    size_t n = 2 + strlen(channel), len;

    memcpy(want + 2, channel, n - 2);
    want[n++] = 0x12;
    want[n++] = 8;
    n += w_encode((struct wal_pos){0, id}, want + n);
    assert_int_equal(base64_decode(b64, &raw, &len), 0);
    assert_true(len >= n);
    assert_memory_equal(raw, want, n);
    free(raw);
}

static void assert_only_ops(struct reply a, size_t n)
{
    json_t *list = json_object_get(a.data, "positions"), *e;
    size_t i;

    assert_int_equal(json_array_size(list), n);
    json_array_foreach(list, i, e) {
        assert_int_equal(json_integer_value(json_object_get(e, "collection_id")), -10);
        assert_string_equal(json_string_value(json_object_get(e, "channel_name")), CHAN);
        assert_msg_id(e, CHAN, 5);
    }
    list = json_object_get(a.data, "op_positions");
    assert_int_equal(json_array_size(list), n);
    json_array_foreach(list, i, e)
        assert_msg_id(e, CHAN, 5);
    assert_true(n > 0 || json_is_null(list));
    assert_true(json_is_null(json_object_get(a.data, "target_positions")));
}

static void test_positions_of_a_paused_task_are_the_stored_ones(void **state)
{
    struct reply running, paused, all;

    (void)state;
    create("t1", "a");
    create("t2", "b");
    running = positions("t1");
    assert_only_ops(running, 1);
    good(ask(manager_pause, "t1"));
    paused = positions("t1");
    assert_only_ops(paused, 1);
    assert_true(json_equal(running.data, paused.data));
    all = positions(NULL); /* one runs, one does not */
    assert_only_ops(all, 2);
    json_decref(all.data);
    all = positions("");
    assert_only_ops(all, 2);
    json_decref(all.data);
    restart();
    all = positions("t1");
    assert_true(json_equal(all.data, paused.data));
    json_decref(all.data);
    json_decref(running.data);
    json_decref(paused.data);
}

static void test_positions_of_an_unknown_task_are_null(void **state)
{
    struct reply a;

    (void)state;
    create("t1", "a");
    a = positions("nobody");
    assert_only_ops(a, 0);
    assert_true(json_is_null(json_object_get(a.data, "positions")));
    json_decref(a.data);
}

/* A link of collection 7 that the paused task had. */
static void test_stored_links_are_in_the_positions(void **state)
{
    struct repl_ckpt ck = {.src_channel = (char *)"s_1",
                           .dst_channel = (char *)"d_1",
                           .start = {0, 40},
                           .start_tt = 400,
                           .done = {0, 41},
                           .sent = {0, 41},
                           .done_tt = tt_from_ms(1234),
                           .op = {0, 39},
                           .op_tt = 390,
                           .target_pos = (char *)"AQIDBAUGBwg="};
    struct reply a = {0};
    struct store_batch *b;
    struct store *s;
    json_t *e;

    (void)state;
    create("t1", "a");
    good(ask(manager_pause, "t1"));
    s = reg->ops->store_open(reg, "t1", DAEMON, 1);
    b = s->ops->begin(s, "t1");
    s->ops->put_ckpt(b, &ck);
    s->ops->put_collection(b, 7, "{\"shards\":[{\"pchannel\":\"s_1\",\"dst_pchannel\":\"d_1\"}]}");
    s->ops->commit(b, on_answer, &a);
    UNTIL(a.calls);
    good(a);
    reg->ops->store_free(s);
    a = positions("t1");
    assert_int_equal(json_array_size(json_object_get(a.data, "positions")), 2);
    e = json_array_get(json_object_get(a.data, "positions"), 0);
    assert_int_equal(json_integer_value(json_object_get(e, "collection_id")), 7);
    assert_int_equal(json_integer_value(json_object_get(e, "time")), 1234);
    assert_int_equal(json_integer_value(json_object_get(e, "tt")), tt_from_ms(1234));
    assert_msg_id(e, "s_1", 40);
    e = json_array_get(json_object_get(a.data, "op_positions"), 0);
    assert_int_equal(json_integer_value(json_object_get(e, "tt")), 390);
    assert_msg_id(e, "s_1", 39);
    e = json_array_get(json_object_get(a.data, "target_positions"), 0);
    assert_string_equal(json_string_value(json_object_get(e, "channel_name")), "d_1");
    assert_msg_id(e, "d_1", 0x0807060504030201);
    json_decref(a.data);
}

static void test_free_ends_position_requests_without_an_answer(void **state)
{
    struct reply a = {0};

    (void)state;
    create("t1", "a");
    good(ask(manager_pause, "t1"));
    manager_positions(mgr, "t1", on_position, &a);
    loop_once(loop, false); /* the record is being loaded */
    manager_end();
    assert_int_equal(a.calls, 0);
}

/* ---- cancel ------------------------------------------------------------------------------------------------------------------- */

static void test_cancel_drops_the_answer_but_not_the_work(void **state)
{
    struct reply gone = {0};

    (void)state;
    manager_create(mgr, spec_make("t1", "a", ""), on_answer, &gone);
    manager_pause(mgr, "t1", on_answer, &gone);
    manager_cancel(mgr, &gone);
    good(ask(manager_resume, "t1")); /* comes after both */
    assert_shows("t1", "Running", NULL);
    manager_positions(mgr, "t1", on_position, &gone);
    manager_cancel(mgr, &gone);
    json_decref(positions("t1").data);
    assert_int_equal(gone.calls, 0);
}

/* Of requests that are answered without any work, too. */
static void test_cancel_drops_answers_at_once_too(void **state)
{
    struct reply gone = {0};

    (void)state;
    create("t1", "a");
    manager_create(mgr, spec_make("t1", "a", ""), on_answer, &gone);
    manager_pause(mgr, "nobody", on_answer, &gone);
    manager_create(mgr, spec_make("t2", "a", ""), on_answer, &gone);
    manager_cancel(mgr, &gone);
    (void)ask(manager_pause, "nobody");
    assert_int_equal(gone.calls, 0);
}

/* ---- stop ----------------------------------------------------------------------------------------------------------------------- */

static struct reply stop(void)
{
    static struct reply a; /* a second answer may come any time */

    a = (struct reply){0};
    manager_stop(mgr, on_stop, &a);
    assert_int_equal(a.calls, 0);
    UNTIL(a.calls);
    for (int i = 0; i < 3; i++) { /* some turns more: writes and reads of the registry go through */
        char got[400] = "?";

        reg->ops->list(reg, NULL, on_records, got);
        UNTIL(got[0] != '?');
    }
    return a;
}

static void test_stop_without_tasks_ends(void **state)
{
    (void)state;
    good(stop());
}

static void test_stop_with_tasks_ends_and_they_stay_running(void **state)
{
    (void)state;
    create("t1", "a");
    create("t2", "b");
    create("t3", "c");
    good(ask(manager_pause, "t3"));
    good(stop());
    assert_int_equal(n_readers(), 0);
    assert_records("t1:1 t2:1 t3:2 ");
    restart();
    UNTIL(n_readers() == 2);
}

static void test_stop_right_after_the_start_ends(void **state)
{
    (void)state;
    create("t1", "a");
    for (int i = 0; i < 30; i++) {
        restart();
        for (int k = 0; k < i; k++)
            loop_once(loop, false);
        good(stop());
    }
    assert_records("t1:1 ");
}

/* With no other task, and with one. */
static void test_stop_waits_for_a_request_under_way(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        static struct reply a, s, other; /* a second answer may come any time */

        a = s = other = (struct reply){0};
        if (i)
            create("t0", "z");
        manager_create(mgr, spec_make("t1", "a", ""), on_answer, &a);
        manager_stop(mgr, on_stop, &s);
        UNTIL(a.calls && s.calls);
        UNTIL(n_readers() == 0);
        manager_pause(mgr, "nobody", on_answer, &other); /* some turns more */
        UNTIL(other.calls);
        good(a);
        good(s);
        assert_true(a.order < s.order);
        restart();
        good(ask(manager_delete, "t1"));
    }
}

/* The target takes the connection and says nothing; the user gave it a minute. */
static void test_stop_waits_for_no_target(void **state)
{
    static struct reply a, s;
    struct task_spec *spec;
    uint64_t began;

    (void)state;
    a = s = (struct reply){0};
    peer_code = 0;
    spec = spec_make("t1", "a", "");
    spec->connect_timeout_s = 60;
    manager_create(mgr, spec, on_answer, &a);
    for (int i = 0; i < 50; i++)
        loop_once(loop, false);
    began = clock_mono_ms();
    manager_stop(mgr, on_stop, &s);
    UNTIL(s.calls);
    assert_in_range(clock_mono_ms() - began, 0, 4000);
    restart();
    assert_records("");
}

/* Target.md 10 no. 35: two tasks for one target share its time, not the login and the options of the first one. */
static void test_each_login_has_its_own_connection(void **state)
{
    struct task_spec *spec = spec_make("t2", "b", "");
    struct reply a = {0};
    struct cat_call *c;
    char *login = base64_encode("other:word", 10);

    (void)state;
    create("t1", "a");
    free(spec->token);
    spec->token = xstrdup("other:word");
    free(spec->collections[0].db);
    spec->collections[0].db = xstrdup("d2");
    manager_create(mgr, spec, on_answer, &a);
    UNTIL(a.calls);
    good(a);
    LIST_FOREACH(c, &cat_calls, entry)
        if (c->cbs.on_database)
            c->cbs.on_database(c->arg, 2, "d2", false);
    UNTIL(database_auth[0]);
    assert_string_equal(database_auth, login);
    free(login);
    database_auth[0] = '\0';
}

static void test_free_at_any_turn_is_clean(void **state)
{
    (void)state;
    for (int i = 0; i < 40; i++) {
        struct reply a = {0};
        char id[20];

        snprintf(id, sizeof(id), "t%d", i);
        manager_create(mgr, spec_make(id, id, ""), on_answer, &a);
        for (int k = 0; k < 3 * i && !a.calls; k++)
            loop_once(loop, false);
        restart();
    }
}

/* ---- metrics ---------------------------------------------------------------------------------------------------------------------- */

static void test_gauges_tell_the_states(void **state)
{
    (void)state;
    create("t1", "a");
    create("t2", "b");
    good(ask(manager_pause, "t2"));
    manager_update_metrics(mgr);
    assert_true(metric_get(METRIC_GAUGE, "milvus_cdc_task_num", "", METRIC_LABELS({"task_state", "Running"}))->value ==
                1);
    assert_true(metric_get(METRIC_GAUGE, "milvus_cdc_task_num", "", METRIC_LABELS({"task_state", "Paused"}))->value ==
                1);
    assert_true(metric_get(METRIC_GAUGE, "milvus_cdc_task_state", "", METRIC_LABELS({"task_id", "t2"}))->value == 2);
    good(ask(manager_delete, "t2"));
    manager_update_metrics(mgr);
    assert_true(metric_get(METRIC_GAUGE, "milvus_cdc_task_num", "", METRIC_LABELS({"task_state", "Paused"}))->value ==
                0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_create_makes_a_running_task),
        T(test_given_positions_must_fit),
        T(test_matches_are_shown),
        T(test_a_task_without_an_id_gets_one),
        T(test_a_task_shows_only_once_it_is_stored),
        T(test_a_target_that_is_no_standby_is_refused),
        T(test_a_target_that_is_away_is_refused),
        T(test_a_create_that_cannot_start_leaves_nothing),
        T(test_a_known_id_is_answered_at_once),
        T(test_overlap_is_refused_and_names_the_task),
        T(test_overlap_with_a_create_under_way_is_refused),
        T(test_max_task_num_is_kept),
        T(test_nothing_is_made_before_the_registry_is_loaded),
        T(test_pause_stops_once),
        T(test_resume_starts_once),
        T(test_a_comparison_needs_a_running_task),
        T(test_a_comparison_ends_with_its_daemon),
        T(test_resume_needs_a_standby),
        T(test_an_unknown_id_is_not_found),
        T(test_delete_removes),
        T(test_delete_cleans_the_queue),
        T(test_requests_for_one_task_run_one_after_the_other),
        T(test_pause_and_delete_together_are_both_done),
        T(test_what_waits_behind_a_failed_create_is_not_found),
        T(test_keep_queryable_pauses_and_resumes),
        T(test_a_failed_task_is_paused_with_the_reason),
        T(test_a_failure_outlives_the_daemon),
        T(test_a_failure_while_a_pause_waits_is_a_pause),
        T(test_states_outlive_the_daemon),
        T(test_a_running_task_goes_on_while_its_target_is_away),
        T(test_a_create_that_was_cut_off_is_removed),
        T(test_a_record_that_cannot_be_read_is_paused),
        T(test_a_pause_right_after_the_start_ends),
        T(test_a_target_stays_while_its_first_task_is_made),
        T(test_positions_of_a_paused_task_are_the_stored_ones),
        T(test_positions_of_an_unknown_task_are_null),
        T(test_stored_links_are_in_the_positions),
        T(test_free_ends_position_requests_without_an_answer),
        T(test_cancel_drops_the_answer_but_not_the_work),
        T(test_stop_without_tasks_ends),
        T(test_stop_with_tasks_ends_and_they_stay_running),
        T(test_free_at_any_turn_is_clean),
        T(test_gauges_tell_the_states),
        T(test_cancel_drops_answers_at_once_too),
        T(test_stop_right_after_the_start_ends),
        T(test_stop_waits_for_a_request_under_way),
        T(test_stop_waits_for_no_target),
        T(test_each_login_has_its_own_connection),
        T(test_a_failure_while_a_create_is_being_stored_is_answered_once),
        T(test_a_failure_while_a_resume_is_being_stored_is_answered_once),
    };

    if (getenv("TEST_FILTER"))
        cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
