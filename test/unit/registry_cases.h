/*
 * registry_cases.h - what both registries promise, as test cases. The program that includes it opens and closes its
 * registry, and adds what is particular to it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "registry/registry.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ME "me"
#define TARGET "target"
#define LEASE_MS 6000

static struct loop *lp;
static struct registry *reg;
static struct err err;
static uint64_t epoch; /* of ME on TARGET, since the last open_reg() */

/* Opens reg, claims TARGET for ME. */
static void open_reg(void);
static void close_reg(void);

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
    int64_t since_ms;
    struct reg_task task;  /* the first, copied by value: only numbers are valid */
    char owner[40], spec[200], verify[100];
    char *text;            /* tasks: "id:state:reason " each; a load's records */
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

static void on_lease(void *arg, const struct err *e, const struct reg_lease *lease)
{
    struct answer *a = arg;

    take(a, e);
    if (e)
        return;
    a->number = lease->epoch;
    a->since_ms = lease->since_ms;
    append(a, lease->target_key);
}

static void on_tasks(void *arg, const struct err *e, const struct reg_task *tasks, size_t n)
{
    struct answer *a = arg;

    take(a, e);
    append(a, "");
    a->n_tasks = n;
    if (n) {
        a->task = tasks[0];
        snprintf(a->owner, sizeof(a->owner), "%s", tasks[0].owner);
        snprintf(a->spec, sizeof(a->spec), "%s", tasks[0].spec_json);
        snprintf(a->verify, sizeof(a->verify), "%s", tasks[0].verify);
    }
    for (size_t i = 0; i < n; i++) {
        char *s = xasprintf("%s:%d:%s ", tasks[i].id, (int)tasks[i].state, tasks[i].reason);

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

static uint64_t claim_now(struct registry *r, const char *key, const char *owner)
{
    struct answer a = {0};

    r->ops->claim(r, key, owner, LEASE_MS, on_lease, &a);
    assert_ok(&a);
    free(a.text);
    return a.number;
}

static void create(const char *id, struct answer *a)
{
    struct reg_task t = {.id = (char *)id,
                         .spec_json = (char *)"{\"token\":\"x\"}",
                         .target_key = (char *)TARGET,
                         .state = TASK_INITIAL};

    reg->ops->create(reg, &t, ME, epoch, on_done, a);
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

    reg->ops->list(reg, NULL, on_tasks, &a);
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

/* ---- tasks */

static void tasks_are_kept(void **state)
{
    struct answer a[6] = {0};
    struct answer list = {0};

    (void)state;
    open_reg();
    assert_null(reg->ops->trouble(reg));
    create("b", &a[0]);
    create("a", &a[1]);
    create("b", &a[2]);
    assert_int_equal(a[0].calls, 0);
    reg->ops->set_state(reg, "a", TASK_PAUSED, "because", ME, epoch, on_done, &a[3]);
    reg->ops->set_state(reg, "none", TASK_PAUSED, "", ME, epoch, on_done, &a[4]);
    reg->ops->remove(reg, "none", ME, epoch, on_done, &a[5]);
    assert_ok(&a[0]);
    assert_ok(&a[1]);
    assert_code(&a[2], ERR_EXISTS);
    assert_ok(&a[3]);
    assert_code(&a[4], ERR_NOT_FOUND);
    assert_code(&a[5], ERR_NOT_FOUND);
    assert_tasks("a:2:because b:0: ");
    close_reg();

    open_reg();
    reg->ops->list(reg, NULL, on_tasks, &list);
    assert_ok(&list);
    assert_int_equal(list.n_tasks, 2);
    assert_true(list.task.created_ms > 0 && list.task.updated_ms >= list.task.created_ms);
    free(list.text);
    assert_tasks("a:2:because b:0: ");
}

static void all_fields_come_back(void **state)
{
    struct reg_task t = {.id = (char *)"t",
                         .spec_json = (char *)"{\"a\":\"\\u00e4\"}",
                         .target_key = (char *)TARGET,
                         .state = TASK_RUNNING,
                         .keep = true,
                         .reason = (char *)"r",
                         .created_ms = 7,
                         .updated_ms = 8};
    struct answer a = {0}, list = {0}, none = {0};

    (void)state;
    open_reg();
    reg->ops->create(reg, &t, ME, epoch, on_done, &a);
    create_now("u");
    assert_ok(&a);
    reg->ops->list(reg, "t", on_tasks, &list);
    assert_ok(&list);
    assert_string_equal(list.text, "t:1:r ");
    assert_string_equal(list.spec, t.spec_json);
    assert_true(list.task.keep);
    assert_int_equal(list.task.created_ms, 7);
    assert_int_equal(list.task.updated_ms, 8);
    assert_string_equal(list.owner, ME);
    assert_int_equal(list.task.epoch, epoch);
    assert_true(list.task.since_ms > 0);
    reg->ops->list(reg, "none", on_tasks, &none);
    assert_ok(&none);
    assert_int_equal(none.n_tasks, 0);
    free(list.text);
    free(none.text);
}

/* What the lease does not allow is not done. */
static void leases_guard_tasks(void **state)
{
    struct reg_task other = {.id = (char *)"o", .spec_json = (char *)"{}", .target_key = (char *)"other"};
    struct answer a[9] = {0};

    (void)state;
    open_reg();
    create_now("t");
    reg->ops->set_state(reg, "t", TASK_PAUSED, "old", ME, epoch + 1, on_done, &a[0]);
    reg->ops->set_state(reg, "t", TASK_PAUSED, "other", "you", epoch, on_done, &a[1]);
    reg->ops->remove(reg, "t", ME, epoch - 1, on_done, &a[2]);
    reg->ops->create(reg, &other, ME, epoch, on_done, &a[3]); /* of a target that nobody holds */
    reg->ops->release(reg, TARGET, "you", epoch, on_done, &a[4]);
    for (int i = 0; i < 5; i++)
        assert_code(&a[i], ERR_STALE);
    assert_in(a[0].err.text, TARGET);
    reg->ops->claim(reg, TARGET, ME, LEASE_MS, on_lease, &a[5]);
    assert_ok(&a[5]);
    assert_int_equal(a[5].number, epoch + 1);
    assert_string_equal(a[5].text, TARGET);
    assert_true(a[5].since_ms > 0);
    reg->ops->release(reg, TARGET, ME, epoch + 1, on_done, &a[6]);
    reg->ops->set_state(reg, "t", TASK_PAUSED, "given back", ME, epoch + 1, on_done, &a[7]);
    assert_ok(&a[6]);
    assert_code(&a[7], ERR_STALE);
    assert_int_equal(claim_now(reg, TARGET, "you"), epoch + 2);
    assert_int_equal(claim_now(reg, "without tasks", ME), 1);
    reg->ops->list(reg, NULL, on_tasks, &a[8]);
    assert_ok(&a[8]);
    assert_string_equal(a[8].text, "t:0: ");
    assert_string_equal(a[8].owner, "you");
    assert_int_equal(a[8].task.epoch, epoch + 2);
    free(a[5].text);
    free(a[8].text);
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
        .span_tt = UINT64_MAX - 1,
    };
    struct repl_ckpt other = ckpt("s0", "d1", 5);
    struct answer a = {0}, got = {0};
    struct store *s;
    struct store_batch *b;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
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
    assert_true(got.ckpt.span_tt == UINT64_MAX - 1);
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
    s = reg->ops->store_open(reg, "t", ME, epoch);
    assert_loaded(s, "t", "s0>d1:5:- -1=minus one 9=nine ");
    assert_loaded(s, "other", "");
    reg->ops->store_free(s);
}

/* The result of a comparison: the last one, in the task's record; only the owner writes it. */
static void a_comparison_stays_with_its_task(void **state)
{
    struct answer before = {0}, a = {0}, after = {0}, stale = {0}, last = {0};
    struct store *s;
    struct store_batch *b;

    (void)state;
    open_reg();
    create_now("t");
    create_now("u");
    reg->ops->list(reg, "t", on_tasks, &before);
    assert_ok(&before);
    assert_string_equal(before.verify, "");
    s = reg->ops->store_open(reg, "t", ME, epoch);
    b = s->ops->begin(s, "t");
    s->ops->put_verify(b, "{}");
    s->ops->put_collection(b, 1, "one");
    s->ops->put_verify(b, "{\"state\":\"equal\",\"key\":\"\\u0000\\\"\"}");
    s->ops->commit(b, on_done, &a);
    reg->ops->list(reg, "t", on_tasks, &after);
    assert_ok(&a);
    assert_ok(&after);
    assert_string_equal(after.verify, "{\"state\":\"equal\",\"key\":\"\\u0000\\\"\"}");
    reg->ops->store_free(s);
    s = reg->ops->store_open(reg, "t", ME, epoch + 1);
    b = s->ops->begin(s, "t");
    s->ops->put_verify(b, "stale");
    s->ops->commit(b, on_done, &stale);
    assert_code(&stale, ERR_STALE);
    reg->ops->store_free(s);
    close_reg();

    open_reg();
    reg->ops->list(reg, NULL, on_tasks, &last);
    assert_ok(&last);
    assert_string_equal(last.verify, after.verify);
    free(before.text);
    free(after.text);
    free(last.text);
}

static void ticks_only_rise_unless_set_and_outlive_tasks(void **state)
{
    static const uint64_t values[] = {5, 3, UINT64_C(1) << 63, 7, UINT64_MAX, INT64_MAX};
    static const uint64_t expected[] = {5,          5,         UINT64_C(1) << 63, UINT64_C(1) << 63,
                                        UINT64_MAX, UINT64_MAX};
    struct answer gone = {0};
    struct store *s;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
    assert_int_equal(tick(s, "target", "d"), 0);
    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
        struct store_batch *b = s->ops->begin(s, "t");

        s->ops->put_tick(b, "target", "d", values[i]);
        s->ops->commit(b, NULL, NULL);
        assert_true(tick(s, "target", "d") == expected[i]);
    }
    assert_int_equal(tick(s, "target", "e"), 0);
    for (uint64_t tt = 9; tt >= 8; tt--) { /* a row that is new, and one that falls */
        struct store_batch *b = s->ops->begin(s, "t");

        s->ops->set_tick(b, "target", "e", tt);
        s->ops->commit(b, NULL, NULL);
        assert_int_equal(tick(s, "target", "e"), tt);
    }
    reg->ops->remove(reg, "t", ME, epoch, on_done, &gone);
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
    s = reg->ops->store_open(reg, "t", ME, epoch);
    other_epoch = reg->ops->store_open(reg, "t", ME, epoch + 1);
    other_owner = reg->ops->store_open(reg, "t", "you", epoch);
    commit_done(s, "t", "a", 1, &a[1]);
    commit_done(other_epoch, "t", "a", 2, &a[2]);
    commit_done(other_owner, "t", "a", 3, &a[3]);
    assert_code(&a[2], ERR_STALE);
    assert_code(&a[3], ERR_STALE);
    assert_in(a[3].err.text, "\"you\" epoch");
    assert_ok(&a[1]);
    assert_loaded(s, "t", "a>d:1:- ");
    a[0] = a[1] = a[2] = (struct answer){0};
    commit_done(s, "t", "a", 4, &a[0]);
    reg->ops->remove(reg, "t", ME, epoch, on_done, &a[1]);
    commit_done(s, "t", "a", 5, &a[2]);
    assert_ok(&a[0]);
    assert_ok(&a[1]);
    assert_code(&a[2], ERR_STALE);
    assert_loaded(s, "t", "");
    reg->ops->store_free(s);
    reg->ops->store_free(other_epoch);
    reg->ops->store_free(other_owner);
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
    c.s = reg->ops->store_open(reg, "t", ME, epoch);
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
    s = reg->ops->store_open(reg, "t", ME, epoch);
    s2 = reg->ops->store_open(reg, "t", ME, epoch);
    commit_done(s, "t", "a", 1, &a);
    commit_done(s, "t", "b", 2, &b);
    reg->ops->set_state(reg, "t", TASK_PAUSED, "", ME, epoch, on_done, &a);
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
    assert_tasks("t:2: u:0: ");
    reg->ops->store_free(s);
}

static void on_done_close(void *arg, const struct err *e)
{
    take(arg, e);
    reg->ops->close(reg);
    reg->ops->close(reg);
    reg = NULL;
}

/* A batch that the database refuses takes nothing of the others with it, and leaves nothing of itself. */
static void a_bad_batch_is_undone_alone(void **state)
{
    struct repl_ckpt bad = ckpt(NULL, "d", 1); /* against NOT NULL */
    struct answer a = {0}, b = {0}, c = {0};
    struct store *s;
    struct store_batch *batch;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
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

/* close() finishes what was accepted, and no answer comes after it, also when an answer closes. */
static void close_inside_an_answer(void **state)
{
    struct answer a = {0}, b = {0}, c = {0};
    struct store *s;
    struct store_batch *batch;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
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
    s = reg->ops->store_open(reg, "t", ME, epoch);
    assert_loaded(s, "t", "a>d:1:- b>d:2:- ");
    reg->ops->store_free(s);
}
