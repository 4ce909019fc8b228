/* test_registry.c - the SQLite registry on real files: order, groups, guards, crashes, sick disks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "registry/sqlite_priv.h"

#include "base/clock.h"
#include "base/mem.h"
#include "loop/xthread.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[40];
static char path[60];
static struct loop *lp;
static struct registry *reg;
static struct err err;

static void remove_dir(const char *name)
{
    DIR *d = opendir(name);
    struct dirent *e;

    while (d && (e = readdir(d))) {
        char file[400];

        snprintf(file, sizeof(file), "%s/%s", name, e->d_name);
        if (e->d_name[0] != '.')
            unlink(file);
    }
    if (d)
        closedir(d);
    rmdir(name);
}

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_registry.XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/r.db", dir);
    err = (struct err){0};
    lp = loop_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (reg)
        reg->ops->close(reg);
    reg = NULL;
    loop_free(lp);
    lp = NULL;
    chmod(dir, 0700);
    remove_dir(dir);
    return 0;
}

static void open_reg(void)
{
    reg = registry_sqlite_open(lp, path, &err);
    if (!reg)
        fail_msg("%s", err.text);
}

static void close_reg(void)
{
    reg->ops->close(reg);
    reg = NULL;
    loop_once(lp, false);
}

static void assert_in(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, text);
}

/* ---- answers */

struct answer {
    int calls;
    struct err err;
    uint64_t number;
    int order; /* which answer of the test it was, from 1 */
    size_t n_tasks;
    struct reg_task task;  /* the first, copied by value: only numbers are valid */
    char *text;            /* tasks: "id:state:reason:owner:epoch " each; a load's records */
    struct repl_ckpt ckpt; /* the first */
    size_t n_ckpts, n_colls;
};

static int n_answers;

static void take(struct answer *a, const struct err *e)
{
    a->calls++;
    a->order = ++n_answers;
    a->err = e ? *e : (struct err){0};
}

static void on_done(void *arg, const struct err *e)
{
    take(arg, e);
}

static void on_number(void *arg, const struct err *e, uint64_t n)
{
    struct answer *a = arg;

    take(a, e);
    a->number = n;
}

static void append(struct answer *a, const char *more)
{
    char *text = xasprintf("%s%s", a->text ? a->text : "", more);

    free(a->text);
    a->text = text;
}

static void on_tasks(void *arg, const struct err *e, const struct reg_task *tasks, size_t n)
{
    struct answer *a = arg;

    take(a, e);
    append(a, "");
    a->n_tasks = n;
    if (n)
        a->task = tasks[0];
    for (size_t i = 0; i < n; i++) {
        char *s = xasprintf("%s:%d:%s:%s:%" PRIu64 " ", tasks[i].id, (int)tasks[i].state,
                            tasks[i].reason, tasks[i].owner, tasks[i].epoch);

        append(a, s);
        free(s);
    }
}

static void on_load(void *arg, const struct err *e, const struct repl_ckpt *ckpts, size_t n_ckpts,
                    const struct repl_collection_rec *colls, size_t n_colls)
{
    struct answer *a = arg;

    take(a, e);
    append(a, "");
    a->n_ckpts = n_ckpts;
    a->n_colls = n_colls;
    if (n_ckpts)
        a->ckpt = ckpts[0];
    for (size_t i = 0; i < n_ckpts; i++) {
        char *s = xasprintf("%s>%s:%" PRIu64 ":%s ", ckpts[i].src_channel, ckpts[i].dst_channel,
                            ckpts[i].done.minor, ckpts[i].target_pos ? ckpts[i].target_pos : "-");

        append(a, s);
        free(s);
    }
    for (size_t i = 0; i < n_colls; i++) {
        char *s = xasprintf("%" PRId64 "=%s ", colls[i].id, colls[i].json);

        append(a, s);
        free(s);
    }
}

static void wait_for(const struct answer *a)
{
    uint64_t end = clock_mono_ms() + 20000;

    while (!a->calls && clock_mono_ms() < end)
        loop_once(lp, true);
    assert_int_equal(a->calls, 1);
}

static void assert_ok(const struct answer *a)
{
    wait_for(a);
    if (a->err.code)
        fail_msg("%s", a->err.text);
}

static void assert_code(const struct answer *a, enum err_code code)
{
    wait_for(a);
    assert_int_equal(a->err.code, code);
}

/* ---- calls */

static void create(const char *id, struct answer *a)
{
    struct reg_task t = {.id = (char *)id,
                         .spec_json = (char *)"{\"token\":\"x\"}",
                         .target_key = (char *)"target",
                         .state = TASK_INITIAL};

    reg->ops->create(reg, &t, on_done, a);
}

static void create_now(const char *id)
{
    struct answer a = {0};

    create(id, &a);
    assert_ok(&a);
}

static void assert_tasks(const char *expected)
{
    struct answer a = {0};

    reg->ops->list(reg, on_tasks, &a);
    assert_ok(&a);
    assert_string_equal(a.text, expected);
    free(a.text);
}

static struct repl_ckpt ckpt(const char *src, const char *dst, uint64_t done)
{
    return (struct repl_ckpt){.src_channel = (char *)src,
                              .dst_channel = (char *)dst,
                              .done = {0, done},
                              .sent = {0, done}};
}

static void commit_ckpt(struct store *s, const char *id, const struct repl_ckpt *c,
                        struct answer *a)
{
    struct store_batch *b = s->ops->begin(s, id);

    s->ops->put_ckpt(b, c);
    s->ops->commit(b, a ? on_done : NULL, a);
}

static void commit_done(struct store *s, const char *id, const char *src, uint64_t done,
                        struct answer *a)
{
    struct repl_ckpt c = ckpt(src, "d", done);

    commit_ckpt(s, id, &c, a);
}

static void assert_loaded(struct store *s, const char *id, const char *expected)
{
    struct answer a = {0};

    s->ops->load(s, id, on_load, &a);
    assert_ok(&a);
    assert_string_equal(a.text, expected);
    free(a.text);
}

static uint64_t tick(struct store *s, const char *target, const char *channel)
{
    struct answer a = {0};

    s->ops->load_tick(s, target, channel, on_number, &a);
    assert_ok(&a);
    return a.number;
}

static struct sqlreg *impl(void)
{
    return container_of(reg, struct sqlreg, base);
}

/* The handle belongs to the helper: statements of tests go there too. */
struct sql_job {
    const char *sql;
    bool done;
};

static void sql_run(void *arg)
{
    struct sql_job *j = arg;

    sqlite3_exec(impl()->db->h, j->sql, NULL, NULL, NULL);
}

static void sql_done(void *arg)
{
    ((struct sql_job *)arg)->done = true;
}

static void in_helper(const char *sql)
{
    struct sql_job j = {.sql = sql};

    xthread_submit(impl()->x, sql_run, sql_done, &j);
    while (!j.done)
        loop_once(lp, true);
}

/* ---- tasks */

static void tasks_are_kept(void **state)
{
    struct answer a[6] = {0};
    struct answer list = {0};
    struct stat st;

    (void)state;
    open_reg();
    assert_null(reg->ops->trouble(reg));
    create("b", &a[0]);
    create("a", &a[1]);
    create("b", &a[2]);
    assert_int_equal(a[0].calls, 0);
    reg->ops->set_state(reg, "a", TASK_PAUSED, "because", 0, on_done, &a[3]);
    reg->ops->set_state(reg, "none", TASK_PAUSED, "", 0, on_done, &a[4]);
    reg->ops->remove(reg, "none", on_done, &a[5]);
    assert_ok(&a[0]);
    assert_ok(&a[1]);
    assert_code(&a[2], ERR_EXISTS);
    assert_ok(&a[3]);
    assert_code(&a[4], ERR_NOT_FOUND);
    assert_code(&a[5], ERR_NOT_FOUND);
    assert_tasks("a:2:because::0 b:0:::0 ");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    close_reg();

    open_reg();
    reg->ops->list(reg, on_tasks, &list);
    assert_ok(&list);
    assert_int_equal(list.n_tasks, 2);
    assert_true(list.task.created_ms > 0 && list.task.updated_ms >= list.task.created_ms);
    free(list.text);
    assert_tasks("a:2:because::0 b:0:::0 ");
}

static void all_fields_come_back(void **state)
{
    struct reg_task t = {.id = (char *)"t",
                         .spec_json = (char *)"{\"a\":\"\\u00e4\"}",
                         .target_key = (char *)"k",
                         .state = TASK_RUNNING,
                         .reason = (char *)"r",
                         .owner = (char *)"o",
                         .epoch = UINT64_MAX - 1,
                         .lease_until_ms = -5,
                         .created_ms = 7,
                         .updated_ms = 8};
    struct answer a = {0}, list = {0}, claim = {0};

    (void)state;
    open_reg();
    reg->ops->create(reg, &t, on_done, &a);
    assert_ok(&a);
    reg->ops->list(reg, on_tasks, &list);
    assert_ok(&list);
    assert_string_equal(list.text, "t:1:r:o:18446744073709551614 ");
    assert_int_equal(list.task.lease_until_ms, -5);
    assert_int_equal(list.task.created_ms, 7);
    assert_int_equal(list.task.updated_ms, 8);
    free(list.text);
    reg->ops->claim(reg, "t", "p", on_number, &claim);
    assert_ok(&claim);
    assert_true(claim.number == UINT64_MAX);
}

static void claim_and_epochs(void **state)
{
    struct answer a[6] = {0};

    (void)state;
    open_reg();
    create_now("t");
    reg->ops->claim(reg, "t", "me", on_number, &a[0]);
    reg->ops->claim(reg, "t", "you", on_number, &a[1]);
    reg->ops->claim(reg, "none", "you", on_number, &a[2]);
    reg->ops->set_state(reg, "t", TASK_PAUSED, "old", 1, on_done, &a[3]);
    reg->ops->set_state(reg, "t", TASK_RUNNING, "", 2, on_done, &a[4]);
    assert_ok(&a[0]);
    assert_int_equal(a[0].number, 1);
    assert_ok(&a[1]);
    assert_int_equal(a[1].number, 2);
    assert_code(&a[2], ERR_NOT_FOUND);
    assert_code(&a[3], ERR_STALE);
    assert_ok(&a[4]);
    assert_tasks("t:1::you:2 ");
}

/* ---- store */

static void checkpoints_and_collections(void **state)
{
    struct repl_ckpt full = {
        .src_channel = (char *)"s1",
        .dst_channel = (char *)"d1",
        .start = {1, 2},
        .start_tt = 3,
        .done = {4, UINT64_MAX},
        .sent = {UINT64_MAX, 7},
        .done_tt = 8,
        .sent_tt = 9,
        .retimed_tt = UINT64_C(1) << 63,
        .op = {10, 11},
        .op_tt = 12,
        .target_pos = (char *)"cG9z",
    };
    struct repl_ckpt other = ckpt("s0", "d1", 5);
    struct answer a = {0}, got = {0};
    struct store *s;
    struct store_batch *b;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    commit_ckpt(s, "t", &full, &a);
    s->ops->load(s, "t", on_load, &got);
    assert_ok(&a);
    assert_ok(&got);
    assert_string_equal(got.text, "s1>d1:18446744073709551615:cG9z ");
    assert_true(got.ckpt.start.major == 1 && got.ckpt.start.minor == 2 && got.ckpt.start_tt == 3);
    assert_true(got.ckpt.done.major == 4 && got.ckpt.done.minor == UINT64_MAX);
    assert_true(got.ckpt.sent.major == UINT64_MAX && got.ckpt.sent.minor == 7);
    assert_true(got.ckpt.done_tt == 8 && got.ckpt.sent_tt == 9);
    assert_true(got.ckpt.retimed_tt == UINT64_C(1) << 63);
    assert_true(got.ckpt.op.major == 10 && got.ckpt.op.minor == 11 && got.ckpt.op_tt == 12);
    free(got.text);

    b = s->ops->begin(s, "t");
    s->ops->put_ckpt(b, &other);
    s->ops->put_collection(b, 9, "nine");
    s->ops->put_collection(b, -1, "x");
    s->ops->put_collection(b, -1, "minus one");
    s->ops->put_collection(b, 8, "eight");
    s->ops->del_collection(b, 8);
    s->ops->del_collection(b, 1234);
    s->ops->del_ckpt(b, "s1", "d1");
    s->ops->del_ckpt(b, "never", "there");
    s->ops->commit(b, NULL, NULL);
    assert_loaded(s, "t", "s0>d1:5:- -1=minus one 9=nine ");
    reg->ops->store_free(s);
    close_reg();

    open_reg();
    s = reg->ops->store_open(reg, "t", "", 0);
    assert_loaded(s, "t", "s0>d1:5:- -1=minus one 9=nine ");
    assert_loaded(s, "other", "");
    reg->ops->store_free(s);
}

static void ticks_only_rise_and_outlive_tasks(void **state)
{
    static const uint64_t values[] = {5, 3, UINT64_C(1) << 63, 7, UINT64_MAX, INT64_MAX};
    static const uint64_t expected[] = {5,          5,         UINT64_C(1) << 63, UINT64_C(1) << 63,
                                        UINT64_MAX, UINT64_MAX};
    struct answer gone = {0};
    struct store *s;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    assert_int_equal(tick(s, "target", "d"), 0);
    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
        struct store_batch *b = s->ops->begin(s, "t");

        s->ops->put_tick(b, "target", "d", values[i]);
        s->ops->commit(b, NULL, NULL);
        assert_true(tick(s, "target", "d") == expected[i]);
    }
    assert_int_equal(tick(s, "target", "e"), 0);
    reg->ops->remove(reg, "t", on_done, &gone);
    assert_ok(&gone);
    assert_true(tick(s, "target", "d") == UINT64_MAX);
    reg->ops->store_free(s);
}

static void stale_commits_write_nothing(void **state)
{
    struct answer a[5] = {0};
    struct store *s, *other_epoch, *other_owner;

    (void)state;
    open_reg();
    create_now("t");
    reg->ops->claim(reg, "t", "me", on_number, &a[0]);
    s = reg->ops->store_open(reg, "t", "me", 1);
    other_epoch = reg->ops->store_open(reg, "t", "me", 2);
    other_owner = reg->ops->store_open(reg, "t", "you", 1);
    commit_done(s, "t", "a", 1, &a[1]);
    commit_done(other_epoch, "t", "a", 2, &a[2]);
    commit_done(other_owner, "t", "a", 3, &a[3]);
    assert_code(&a[2], ERR_STALE);
    assert_code(&a[3], ERR_STALE);
    assert_in(a[3].err.text, "\"me\" epoch 1");
    assert_ok(&a[1]);
    assert_loaded(s, "t", "a>d:1:- ");
    a[0] = a[1] = a[2] = (struct answer){0};
    commit_done(s, "t", "a", 4, &a[0]);
    reg->ops->remove(reg, "t", on_done, &a[1]);
    commit_done(s, "t", "a", 5, &a[2]);
    assert_ok(&a[0]);
    assert_ok(&a[1]);
    assert_code(&a[2], ERR_STALE);
    assert_loaded(s, "t", "");
    reg->ops->store_free(s);
    reg->ops->store_free(other_epoch);
    reg->ops->store_free(other_owner);
}

/* ---- groups and order */

static void one_turn_is_one_transaction_in_order(void **state)
{
    enum { N = 200 };
    struct answer a[N] = {0}, list = {0}, load = {0};
    struct store *s, *stale;
    uint64_t groups;
    int bad = 0;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    stale = reg->ops->store_open(reg, "t", "other", 1);
    groups = impl()->n_groups;
    n_answers = 0;
    for (int i = 0; i < N; i++) {
        if (i % 5 == 4)
            commit_done(stale, "t", "a", 1000000, &a[i]);
        else if (i % 5 == 3)
            create("t", &a[i]);
        else
            commit_done(s, "t", "a", (uint64_t)i, &a[i]);
    }
    s->ops->load(s, "t", on_load, &load);
    reg->ops->list(reg, on_tasks, &list);
    assert_int_equal(n_answers, 0);
    assert_ok(&list);
    assert_int_equal(impl()->n_groups, groups + 1);
    for (int i = 0; i < N; i++) {
        assert_int_equal(a[i].calls, 1);
        assert_int_equal(a[i].order, i + 1);
        assert_int_equal(a[i].err.code, i % 5 == 4 ? ERR_STALE : i % 5 == 3 ? ERR_EXISTS : ERR_OK);
        bad += a[i].err.code != ERR_OK;
    }
    assert_int_equal(bad, N / 5 * 2);
    assert_int_equal(load.order, N + 1);
    assert_int_equal(list.order, N + 2);
    assert_string_equal(load.text, "a>d:197:- ");
    free(load.text);
    free(list.text);
    reg->ops->store_free(s);
    reg->ops->store_free(stale);
}

/* A batch that fails half-way takes nothing of the others with it, and leaves nothing of itself. */
static void a_bad_batch_is_undone_alone(void **state)
{
    struct repl_ckpt bad = ckpt(NULL, "d", 1); /* against NOT NULL */
    struct answer a = {0}, b = {0}, c = {0};
    struct store *s;
    struct store_batch *batch;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    commit_done(s, "t", "a", 1, &a);
    batch = s->ops->begin(s, "t");
    s->ops->put_collection(batch, 1, "x");
    s->ops->put_ckpt(batch, &bad);
    s->ops->commit(batch, on_done, &b);
    commit_done(s, "t", "b", 2, &c);
    assert_ok(&a);
    assert_code(&b, ERR_IO);
    assert_int_equal(b.err.cls, ERRC_USER);
    assert_ok(&c);
    assert_loaded(s, "t", "a>d:1:- b>d:2:- ");
    assert_null(reg->ops->trouble(reg));
    reg->ops->store_free(s);
}

static int pragma(const char *sql)
{
    sqlite3_stmt *stmt;
    int n;

    assert_int_equal(sqlite3_prepare_v2(impl()->db->h, sql, -1, &stmt, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
    n = sqlite3_column_int(stmt, 0);
    sqlite3_finalize(stmt);
    return n;
}

/* A kill does not show a missing fsync, so look at the settings. The helper is idle. */
static void settings_are_durable(void **state)
{
    char wal[80];

    (void)state;
    open_reg();
    create_now("t");
    assert_int_equal(pragma("PRAGMA synchronous"), 2);
    assert_int_equal(pragma("PRAGMA foreign_keys"), 1);
    assert_int_equal(pragma("PRAGMA user_version"), REGDB_SCHEMA);
    snprintf(wal, sizeof(wal), "%s-wal", path);
    assert_int_equal(access(wal, F_OK), 0);
}

/* What is asked for while the helper works makes the next group, also from inside an answer. */
struct chain {
    struct store *s;
    uint64_t next, end;
    int deep; /* answers on the stack: none may come from inside the call */
    bool done;
};

static void on_chain(void *arg, const struct err *e)
{
    struct chain *c = arg;

    assert_null(e);
    assert_int_equal(c->deep, 0);
    c->deep++;
    if (c->next < c->end) {
        struct repl_ckpt k = ckpt("a", "d", ++c->next);
        struct store_batch *b = c->s->ops->begin(c->s, "t");

        c->s->ops->put_ckpt(b, &k);
        c->s->ops->commit(b, on_chain, c);
    } else {
        c->done = true;
    }
    c->deep--;
}

static void answers_may_call_again(void **state)
{
    struct chain c = {.end = 20};

    (void)state;
    open_reg();
    create_now("t");
    c.s = reg->ops->store_open(reg, "t", "", 0);
    on_chain(&c, NULL);
    while (!c.done)
        loop_once(lp, true);
    assert_loaded(c.s, "t", "a>d:20:- ");
    reg->ops->store_free(c.s);
}

static void cancel_drops_answers_and_not_writes(void **state)
{
    struct answer a = {0}, b = {0}, c = {0}, d = {0};
    struct store *s, *s2;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    s2 = reg->ops->store_open(reg, "t", "", 0);
    commit_done(s, "t", "a", 1, &a);
    commit_done(s, "t", "b", 2, &b);
    reg->ops->set_state(reg, "t", TASK_PAUSED, "", 0, on_done, &a);
    s->ops->cancel(s, &a); /* of this store: the registry's call with the same arg stays */
    commit_done(s2, "t", "c", 3, &c);
    reg->ops->store_free(s2);
    create("u", &d);
    loop_once(lp, false); /* now in the helper, or done */
    reg->ops->cancel(reg, &d);
    assert_loaded(s, "t", "a>d:1:- b>d:2:- c>d:3:- ");
    assert_ok(&b);
    assert_ok(&a);
    assert_int_equal(c.calls, 0);
    assert_int_equal(d.calls, 0);
    assert_tasks("t:2:::0 u:0:::0 ");
    reg->ops->store_free(s);
}

static void on_done_close(void *arg, const struct err *e)
{
    take(arg, e);
    reg->ops->close(reg);
    reg->ops->close(reg);
    reg = NULL;
}

/* close() finishes what was accepted, and no answer comes after it, also when an answer closes. */
static void close_inside_an_answer(void **state)
{
    struct answer a = {0}, b = {0}, c = {0};
    struct store *s;
    struct store_batch *batch;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    batch = s->ops->begin(s, "t");
    s->ops->commit(batch, on_done_close, &a);
    commit_done(s, "t", "a", 1, &b);
    loop_once(lp, true); /* the first two are in the helper */
    commit_done(s, "t", "b", 2, &c);
    wait_for(&a);
    for (int i = 0; i < 10; i++)
        loop_once(lp, false);
    assert_int_equal(b.calls, 0);
    assert_int_equal(c.calls, 0);
    open_reg();
    reg->ops->store_free(s); /* its registry is gone: allowed */
    s = reg->ops->store_open(reg, "t", "", 0);
    assert_loaded(s, "t", "a>d:1:- b>d:2:- ");
    reg->ops->store_free(s);
}

static void close_writes_what_waits(void **state)
{
    struct store *s;
    struct answer a = {0};
    char wal[80];

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    commit_done(s, "t", "a", 77, &a);
    reg->ops->store_free(s);
    close_reg();
    assert_int_equal(a.calls, 0);
    snprintf(wal, sizeof(wal), "%s-wal", path);
    assert_int_equal(access(wal, F_OK), -1);
    open_reg();
    s = reg->ops->store_open(reg, "t", "", 0);
    assert_loaded(s, "t", "a>d:77:- ");
    reg->ops->store_free(s);
}

/* ---- a killed daemon */

enum { LINKS = 4 };

struct writer {
    struct store *s;
    uint64_t n[LINKS];
    int fd;
};
struct writer_link {
    struct writer *w;
    int i;
};

static void write_next(struct writer_link *l);

/* Tells the parent what is acknowledged, then goes on. */
static void on_written(void *arg, const struct err *e)
{
    struct writer_link *l = arg;
    uint64_t ack[2] = {(uint64_t)l->i, l->w->n[l->i]};

    if (e || write(l->w->fd, ack, sizeof(ack)) != sizeof(ack))
        _exit(3);
    write_next(l);
}

static void write_next(struct writer_link *l)
{
    char src[20];
    struct repl_ckpt c;
    struct store_batch *b = l->w->s->ops->begin(l->w->s, "t");
    char *json = xasprintf("%" PRIu64, ++l->w->n[l->i]);

    snprintf(src, sizeof(src), "s%d", l->i);
    c = ckpt(src, "d", l->w->n[l->i]);
    l->w->s->ops->put_ckpt(b, &c);
    l->w->s->ops->put_collection(b, l->i, json); /* the same number: a batch is whole or absent */
    l->w->s->ops->commit(b, on_written, l);
    free(json);
}

static void writer_main(int fd)
{
    struct writer w = {.fd = fd};
    struct writer_link links[LINKS];

    lp = loop_new();
    reg = registry_sqlite_open(lp, path, &err);
    if (!reg)
        _exit(2);
    w.s = reg->ops->store_open(reg, "t", "", 0);
    for (int i = 0; i < LINKS; i++) {
        links[i] = (struct writer_link){&w, i};
        write_next(&links[i]);
    }
    loop_run(lp);
}

/* Kills a writing child after some acknowledgements; stores the last of each link. */
static void write_and_kill(int after, uint64_t *ret_acked)
{
    uint64_t ack[2];
    int fds[2], status;
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        close(fds[0]);
        writer_main(fds[1]);
        _exit(1);
    }
    close(fds[1]);
    for (int i = 0; i < after; i++) {
        assert_int_equal(read(fds[0], ack, sizeof(ack)), sizeof(ack));
        ret_acked[ack[0]] = ack[1];
    }
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    while (read(fds[0], ack, sizeof(ack)) == sizeof(ack))
        ret_acked[ack[0]] = ack[1];
    close(fds[0]);
}

static void nothing_acknowledged_is_lost_by_a_kill(void **state)
{
    (void)state;
    open_reg();
    create_now("t");
    for (int round = 0; round < 5; round++) {
        uint64_t acked[LINKS] = {0};
        struct answer a = {0};
        struct store *s;
        char *p;

        close_reg();
        write_and_kill(5 + round * 37, acked);
        open_reg(); /* the lock went with the child */
        s = reg->ops->store_open(reg, "t", "", 0);
        s->ops->load(s, "t", on_load, &a);
        assert_ok(&a);
        assert_int_equal(a.n_ckpts, LINKS);
        assert_int_equal(a.n_colls, LINKS);
        p = a.text;
        for (int i = 0; i < LINKS; i++) {
            char expect[60];
            uint64_t done = strtoull(strchr(p, ':') + 1, NULL, 10);

            assert_true(done >= acked[i]);
            assert_true(done <= acked[i] + 1); /* one more was under way at most */
            snprintf(expect, sizeof(expect), " %d=%" PRIu64 " ", i, done);
            assert_in(a.text, expect);
            p = strchr(p, ' ') + 1;
        }
        free(a.text);
        reg->ops->store_free(s);
    }
}

/* ---- a sick database */

static void wait_for_trouble(void)
{
    uint64_t end = clock_mono_ms() + 20000;

    while (!reg->ops->trouble(reg) && clock_mono_ms() < end)
        loop_once(lp, true);
    assert_non_null(reg->ops->trouble(reg));
}

static void full_database_blocks_commits_and_fails_requests(void **state)
{
    struct answer a[6] = {0}, small = {0};
    struct store *s;
    struct store_batch *b;
    char *big = xmalloc(200001);
    uint64_t begin;

    (void)state;
    memset(big, 'x', 200000);
    big[200000] = '\0';
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    in_helper("PRAGMA max_page_count = 1");
    b = s->ops->begin(s, "t");
    s->ops->put_collection(b, 1, big);
    s->ops->commit(b, on_done, &a[0]);
    commit_done(s, "t", "a", 1, &small);
    wait_for_trouble();
    assert_in(reg->ops->trouble(reg), path);
    assert_in(reg->ops->trouble(reg), "database or disk is full");
    assert_in(reg->ops->trouble(reg), "free space");
    begin = clock_mono_ms();
    reg->ops->set_state(reg, "t", TASK_PAUSED, "", 0, on_done, &a[1]);
    reg->ops->claim(reg, "t", "me", on_number, &a[2]);
    reg->ops->list(reg, on_tasks, &a[3]);
    create("u", &a[4]);
    reg->ops->remove(reg, "t", on_done, &a[5]);
    for (int i = 1; i <= 5; i++) {
        assert_code(&a[i], ERR_IO);
        assert_int_equal(a[i].err.cls, ERRC_RETRY);
        assert_in(a[i].err.text, "free space");
    }
    assert_true(clock_mono_ms() - begin >= SQLREG_API_MS);
    assert_true(clock_mono_ms() - begin < SQLREG_API_MS + 2000);
    assert_int_equal(a[0].calls, 0);
    assert_int_equal(small.calls, 0);
    in_helper("PRAGMA max_page_count = 1000000");
    assert_ok(&a[0]);
    assert_ok(&small);
    assert_true(a[0].order < small.order);
    assert_null(reg->ops->trouble(reg));
    assert_tasks("t:0:::0 "); /* what failed was not done later */
    free(a[3].text);
    free(big);
    reg->ops->store_free(s);
}

/* A limit on file sizes gives EFBIG: SQLITE_IOERR. Ends as soon as the limit is lifted. */
static int io_error_child(void)
{
    struct rlimit small = {.rlim_cur = 1, .rlim_max = RLIM_INFINITY};
    struct rlimit none = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    struct answer a = {0};
    struct store *s;
    int null = open("/dev/null", O_WRONLY);

    dup2(null, 2); /* the log may be a file, which the limit hits too */
    signal(SIGXFSZ, SIG_IGN);
    lp = loop_new();
    reg = registry_sqlite_open(lp, path, &err);
    if (!reg)
        return 2;
    s = reg->ops->store_open(reg, "t", "", 0);
    if (setrlimit(RLIMIT_FSIZE, &small) < 0)
        return 3;
    commit_done(s, "t", "a", 9, &a);
    while (!reg->ops->trouble(reg))
        loop_once(lp, true);
    if (!strstr(reg->ops->trouble(reg), "disk I/O error") || a.calls)
        return 4;
    if (setrlimit(RLIMIT_FSIZE, &none) < 0)
        return 5;
    while (!a.calls)
        loop_once(lp, true);
    if (a.err.code || reg->ops->trouble(reg))
        return 6;
    reg->ops->store_free(s);
    reg->ops->close(reg);
    loop_free(lp);
    return 0;
}

static void io_errors_are_retried(void **state)
{
    struct store *s;
    int status;
    pid_t pid;

    (void)state;
    open_reg();
    create_now("t");
    close_reg();
    pid = fork();
    if (pid == 0)
        _exit(io_error_child());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    open_reg();
    s = reg->ops->store_open(reg, "t", "", 0);
    assert_loaded(s, "t", "a>d:9:- ");
    reg->ops->store_free(s);
}

static sqlite3 *hold_write_lock(void)
{
    sqlite3 *h;

    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_exec(h, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    return h;
}

static void locks_of_others_are_waited_for(void **state)
{
    struct answer a = {0}, a2 = {0}, b = {0}, c = {0};
    struct store *s;
    sqlite3 *h;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    h = hold_write_lock();
    commit_done(s, "t", "a", 1, &a);
    while (!impl()->group)
        loop_once(lp, true);
    commit_done(s, "t", "a", 2, &a2); /* comes while the first is in the helper: stays behind it */
    reg->ops->set_state(reg, "t", TASK_PAUSED, "", 0, on_done, &b);
    assert_code(&b, ERR_IO);
    assert_in(b.err.text, "another program");
    assert_in(reg->ops->trouble(reg), "locked");
    s->ops->load(s, "t", on_load, &c);
    assert_int_equal(a.calls, 0);
    sqlite3_close(h);
    assert_ok(&c);
    assert_ok(&a);
    assert_ok(&a2);
    assert_true(a.order < a2.order);
    assert_string_equal(c.text,
                        "a>d:2:- "); /* after the write, though it came while that was stuck */
    assert_null(reg->ops->trouble(reg));
    free(c.text);
    reg->ops->store_free(s);
}

/* A shutdown does not wait for ever, and is without answers. */
static void close_gives_up_in_the_end(void **state)
{
    struct answer a = {0};
    struct store *s;
    sqlite3 *h;
    uint64_t begin;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    h = hold_write_lock();
    commit_done(s, "t", "a", 1, &a);
    wait_for_trouble();
    reg->ops->store_free(s);
    begin = clock_mono_ms();
    close_reg();
    assert_true(clock_mono_ms() - begin < SQLREG_CLOSE_MS + 2000);
    assert_int_equal(a.calls, 0);
    sqlite3_close(h);
}

/* ---- opening */

static void open_fails(enum err_code code, const char *part)
{
    struct registry *r = registry_sqlite_open(lp, path, &err);

    if (r) {
        r->ops->close(r);
        fail_msg("opened, though: %s", part);
    }
    assert_int_equal(err.code, code);
    assert_int_equal(err.cls, ERRC_USER);
    assert_in(err.text, path);
    assert_in(err.text, part);
}

static void second_daemon_is_refused(void **state)
{
    char other[80];

    (void)state;
    open_reg();
    open_fails(ERR_STATE, "another milvus-cdc daemon");
    assert_in(err.text, ".lock");
    snprintf(other, sizeof(other), "%s/link.db", dir);
    assert_int_equal(symlink(path, other), 0);
    assert_null(registry_sqlite_open(lp, other, &err));
    assert_int_equal(err.code, ERR_STATE);
    create_now("t"); /* the first one is not disturbed */
    close_reg();
    open_reg();
    assert_tasks("t:0:::0 ");
}

static void write_at(const char *file, long at, const char *bytes, size_t n)
{
    int fd = open(file, O_WRONLY | O_CREAT, 0644);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, n, at), (ssize_t)n);
    close(fd);
}

static void corrupt_files_are_refused(void **state)
{
    static const char garbage[9000] = "This is not a database.";
    struct stat st;

    (void)state;
    write_at(path, 0, garbage, sizeof(garbage));
    open_fails(ERR_IO, "not a database");
    assert_in(err.text, "restore a copy");
    unlink(path);

    open_reg();
    for (int i = 0; i < 100; i++) {
        char id[20];

        snprintf(id, sizeof(id), "task%d", i);
        create_now(id);
    }
    close_reg();
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size > 4 * 4096);
    write_at(path, 4096, garbage, 4096); /* a page in the middle: the header is good */
    open_fails(ERR_IO, "restore a copy");
}

/* The file goes bad while it is used: told, not retried for ever, and the daemon lives. */
static void damage_while_running_is_told(void **state)
{
    struct answer a = {0}, b = {0};
    struct store *s;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", "", 0);
    in_helper("PRAGMA wal_checkpoint(TRUNCATE)");
    in_helper("PRAGMA writable_schema = ON");
    in_helper("UPDATE sqlite_master SET rootpage = 99999 WHERE name = 'checkpoint'");
    in_helper("PRAGMA writable_schema = RESET");
    commit_done(s, "t", "a", 1, &a);
    create("u", &b);
    wait_for(&a);
    assert_int_equal(a.err.code, ERR_IO);
    assert_int_equal(a.err.cls, ERRC_USER);
    assert_in(a.err.text, path);
    wait_for(&b);
    assert_non_null(reg->ops->trouble(reg));
    reg->ops->store_free(s);
}

static void exec_file(const char *sql)
{
    sqlite3 *h;

    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_exec(h, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(h);
}

static void other_versions_and_programs_are_refused(void **state)
{
    (void)state;
    open_reg();
    create_now("t");
    close_reg();
    exec_file("PRAGMA user_version = 2");
    open_fails(ERR_INVALID, "newer milvus-cdc (schema version 2, this one knows up to 1)");
    exec_file("PRAGMA user_version = 1");
    open_reg();
    assert_tasks("t:0:::0 ");
    close_reg();
    unlink(path);
    exec_file("CREATE TABLE x (y)");
    open_fails(ERR_INVALID, "another program");
    exec_file("DROP TABLE x; PRAGMA user_version = 1");
    open_fails(ERR_INVALID, "another program");
}

static void bad_places_are_told(void **state)
{
    char good[60];
    struct stat st;

    (void)state;
    assert_null(registry_sqlite_open(lp, "/nonexistent/x", NULL)); /* err may be NULL */
    strcpy(good, path);
    snprintf(path, sizeof(path), "%s/none/r.db", dir);
    open_fails(ERR_IO, "make the directory first");
    strcpy(path, dir);
    open_fails(ERR_IO, "directory");
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    unlink(strcat(strcpy(path, dir), ".lock"));
    strcpy(path, good);
    write_at(path, 0, "", 0);
    assert_int_equal(chmod(path, 0644), 0);
    open_reg();
    close_reg();
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

/* As a user that may not write: root may everywhere, so a child becomes nobody. */
static void unwritable_directory_is_told(void **state)
{
    int status;
    pid_t pid;

    (void)state;
    assert_int_equal(chmod(dir, 0555), 0);
    pid = fork();
    if (pid == 0) {
        struct err e = {0};
        struct loop *l = loop_new();

        if (getuid() == 0 && (setgid(65534) < 0 || setuid(65534) < 0))
            _exit(2);
        if (registry_sqlite_open(l, path, &e) || e.code != ERR_IO ||
            !strstr(e.text, "must be writable"))
            _exit(3);
        loop_free(l);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(tasks_are_kept),
        TEST(all_fields_come_back),
        TEST(claim_and_epochs),
        TEST(checkpoints_and_collections),
        TEST(ticks_only_rise_and_outlive_tasks),
        TEST(stale_commits_write_nothing),
        TEST(one_turn_is_one_transaction_in_order),
        TEST(a_bad_batch_is_undone_alone),
        TEST(settings_are_durable),
        TEST(answers_may_call_again),
        TEST(cancel_drops_answers_and_not_writes),
        TEST(close_inside_an_answer),
        TEST(close_writes_what_waits),
        TEST(nothing_acknowledged_is_lost_by_a_kill),
        TEST(full_database_blocks_commits_and_fails_requests),
        TEST(io_errors_are_retried),
        TEST(locks_of_others_are_waited_for),
        TEST(close_gives_up_in_the_end),
        TEST(second_daemon_is_refused),
        TEST(corrupt_files_are_refused),
        TEST(damage_while_running_is_told),
        TEST(other_versions_and_programs_are_refused),
        TEST(bad_places_are_told),
        TEST(unwritable_directory_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
