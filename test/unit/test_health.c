/* test_health.c - the verdict on tasks, over a runtime and a registry that say what the test wants. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "task/health.h"
#include "task/priv.h"

#define LIMIT_MS 30000
#define MAX_TASKS 6

static struct repl_health facts; /* of every task that runs */
static const char *trouble;
static const char *not_ready, *away;
static bool held; /* the lease is ours */

void repl_task_health(const struct repl_task *t, uint64_t now_ms, struct repl_health *ret)
{
    (void)t;
    (void)now_ms;
    *ret = facts;
}

const char *repl_task_trouble(const struct repl_task *t)
{
    (void)t;
    return trouble;
}

uint64_t holding_epoch(const struct manager *m, const char *target_key)
{
    (void)m;
    (void)target_key;
    return held ? 7 : 0;
}

const char *manager_not_ready(struct manager *m)
{
    (void)m;
    return not_ready;
}

const char *manager_state_name(enum task_state s)
{
    return s == TASK_RUNNING ? "Running" : s == TASK_PAUSED ? "Paused" : "Initial";
}

bool manager_task_shown(const struct mtask *t)
{
    return t->state != TASK_INITIAL;
}

static const char *reg_trouble(struct registry *r)
{
    (void)r;
    return away;
}

static const struct registry_ops ops = {.trouble = reg_trouble};
static struct registry reg;
static struct manager m;
static struct mtask tasks[MAX_TASKS];
static char ids[MAX_TASKS][8], key[] = "h:1", none[] = "";
static int runtime; /* stands for a repl_task */
static size_t n_tasks;
static json_t *answer;
static enum health verdict;

static int setup(void **state)
{
    (void)state;
    facts = (struct repl_health){.confirmed_ms = clock_wall_ms()};
    trouble = not_ready = away = NULL;
    held = true;
    reg = (struct registry){&ops, false};
    m = (struct manager){.d = {.registry = &reg, .daemon_id = "me:8444"}, .loaded = true};
    n_tasks = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    HASH_CLEAR(hh, m.tasks);
    json_decref(answer);
    answer = NULL;
    return 0;
}

/* "t0", "t1", ...: runs here, without trouble. */
static struct mtask *add_task(void)
{
    struct mtask *t = &tasks[n_tasks];

    snprintf(ids[n_tasks], sizeof(ids[n_tasks]), "t%zu", n_tasks);
    *t = (struct mtask){.m = &m,
                        .id = ids[n_tasks],
                        .key = key,
                        .state = TASK_RUNNING,
                        .reason = none,
                        .stored = true,
                        .run = (struct repl_task *)(void *)&runtime};
    STAILQ_INIT(&t->ops);
    n_tasks++;
    HASH_ADD_KEYPTR(hh, m.tasks, t->id, strlen(t->id), t);
    return t;
}

/* One that a daemon of a shared registry does not run. */
static struct mtask *add_elsewhere(const char *owner)
{
    struct mtask *t = add_task();

    held = false;
    reg.shared = true;
    t->run = NULL;
    t->owner = (char *)(uintptr_t)owner;
    return t;
}

static const char *line(void)
{
    return json_string_value(json_object_get(answer, "text"));
}

static const json_t *task_at(size_t i)
{
    return json_array_get(json_object_get(answer, "tasks"), i);
}

static const char *why(size_t i)
{
    return json_string_value(json_object_get(task_at(i), "why"));
}

static void expect_of(const char *task_id, enum health want, const char *part)
{
    json_decref(answer);
    answer = manager_health(&m, task_id, LIMIT_MS, &verdict);
    if (verdict != want || !strstr(line(), part))
        fail_msg("not %s with \"%s\": %s %s", health_name(want), part, health_name(verdict), line());
    assert_string_equal(json_string_value(json_object_get(answer, "status")), health_name(want));
    assert_int_equal(json_integer_value(json_object_get(answer, "code")), want);
}

static void expect(enum health want, const char *part)
{
    expect_of(NULL, want, part);
}

/* ---- tasks that run here */

static void without_tasks_all_is_well(void **state)
{
    (void)state;
    expect(HEALTH_OK, "OK: 0 tasks, 0 running, 0 paused | lag=0.000s;;30.000;0 running=0 paused=0");
    assert_int_equal(json_array_size(json_object_get(answer, "tasks")), 0);
}

static void a_task_that_keeps_up_is_ok(void **state)
{
    (void)state;
    add_task();
    facts.confirmed_ms -= 2000;
    expect(HEALTH_OK, "OK: 1 tasks, 1 running, 0 paused, lag 2.");
    assert_string_equal(json_string_value(json_object_get(task_at(0), "owner")), "me:8444");
    assert_true(json_is_false(json_object_get(task_at(0), "stalled")));
    assert_in_range(json_integer_value(json_object_get(task_at(0), "lag_ms")), 2000, 20000);
    assert_null(why(0));
}

static void lag_is_judged_by_the_limit(void **state)
{
    (void)state;
    add_task();
    facts.confirmed_ms -= LIMIT_MS - 10000;
    expect(HEALTH_OK, "lag 20.");
    facts.confirmed_ms -= 20000;
    expect(HEALTH_CRITICAL, "task t0 lag 40.");
    assert_non_null(strstr(line(), "is above 30.0 s"));
    trouble = "target channel c: it is away";
    expect(HEALTH_CRITICAL, "is above 30.0 s: target channel c: it is away");
}

static void nothing_confirmed_is_no_lag(void **state)
{
    (void)state;
    add_task();
    facts.confirmed_ms = 0;
    expect(HEALTH_OK, "1 running, 0 paused | lag=0.000s");
    assert_null(json_object_get(task_at(0), "lag_ms"));
    facts.confirmed_ms = clock_wall_ms() + 60000; /* the source's clock is ahead */
    expect(HEALTH_OK, "lag 0.0 s");
}

static void a_stall_is_critical_and_goes_before_the_lag(void **state)
{
    (void)state;
    add_task();
    facts.stalled_since_ms = clock_mono_ms() - 12000;
    facts.stalled = "by-dev-dml_0";
    facts.confirmed_ms -= 2 * LIMIT_MS;
    expect(HEALTH_CRITICAL, "task t0 stalled for 12 s at by-dev-dml_0;");
    assert_true(json_is_true(json_object_get(task_at(0), "stalled")));
    assert_in_range(json_integer_value(json_object_get(task_at(0), "stalled_ms")), 12000, 30000);
    trouble = "target channel c: it is away";
    expect(HEALTH_CRITICAL, "at by-dev-dml_0: target channel c: it is away");
}

static void a_silent_source_is_a_warning(void **state)
{
    (void)state;
    add_task();
    facts.silent_since_ms = clock_mono_ms() - 15000;
    expect(HEALTH_WARNING, "WARNING: task t0 the source shows no ticks for 15 s");
    assert_in_range(json_integer_value(json_object_get(task_at(0), "silent_ms")), 15000, 30000);
    facts.confirmed_ms -= 2 * LIMIT_MS; /* what was written before it fell silent is missing on the target */
    expect(HEALTH_CRITICAL, "lag");
}

static void trouble_that_is_worked_on_is_a_warning(void **state)
{
    (void)state;
    add_task();
    trouble = "source etcd: no answer";
    expect(HEALTH_WARNING, "task t0 source etcd: no answer");
}

static void a_task_that_does_not_run_is_critical(void **state)
{
    struct mtask *t;
    struct op op = {.kind = OP_LOAD};

    (void)state;
    t = add_task();
    t->run = NULL;
    expect(HEALTH_CRITICAL, "task t0 does not run");
    STAILQ_INSERT_TAIL(&t->ops, &op, entry);
    expect(HEALTH_OK, "1 running"); /* it is starting */
}

/* ---- paused ones */

static void a_pause_by_hand_is_a_warning_only_to_who_asks_for_the_task(void **state)
{
    static const char *const reasons[] = {REASON_MANUAL, REASON_NO_AUTO_START};
    struct mtask *t;

    (void)state;
    t = add_task();
    t->state = TASK_PAUSED;
    t->run = NULL;
    for (size_t i = 0; i < 2; i++) {
        t->reason = (char *)(uintptr_t)reasons[i];
        expect(HEALTH_OK, "1 tasks, 0 running, 1 paused");
        assert_string_equal(why(0), "paused by hand");
        expect_of("t0", HEALTH_WARNING, "task t0 paused by hand");
    }
}

static void an_error_or_a_loss_is_critical(void **state)
{
    char lost[] = "LOST: channel c has no longer 5:7", refused[] = "the target refused the schema";
    struct mtask *t;

    (void)state;
    t = add_task();
    t->state = TASK_PAUSED;
    t->run = NULL;
    t->reason = lost;
    expect(HEALTH_CRITICAL, "task t0 paused by an error: LOST: channel c has no longer 5:7");
    t->reason = refused;
    expect(HEALTH_CRITICAL, "paused by an error: the target refused the schema");
    assert_string_equal(json_string_value(json_object_get(task_at(0), "reason")), refused);
}

/* ---- tasks of others */

static void of_a_task_elsewhere_its_record_speaks(void **state)
{
    char reason[] = "target channel c: it is away", stalled[] = "stalled at by-dev-dml_0: it is away";
    struct mtask *t;

    (void)state;
    t = add_elsewhere("other:8444");
    expect(HEALTH_OK, "1 running");
    assert_string_equal(json_string_value(json_object_get(task_at(0), "owner")), "other:8444");
    t->reason = reason;
    expect(HEALTH_WARNING, "task t0 target channel c: it is away");
    t->reason = stalled;
    expect(HEALTH_CRITICAL, "task t0 stalled at by-dev-dml_0: it is away");
}

static void what_the_others_are_told(void **state)
{
    char text[TROUBLE_CHARS] = "?";
    struct mtask *t;

    (void)state;
    t = add_task();
    health_trouble(t, text);
    assert_string_equal(text, "");
    trouble = "target channel c: it is away";
    health_trouble(t, text);
    assert_string_equal(text, trouble);
    facts.stalled_since_ms = clock_mono_ms() - 12000;
    facts.stalled = "by-dev-dml_0";
    health_trouble(t, text);
    assert_string_equal(text, "stalled at by-dev-dml_0: target channel c: it is away");
    trouble = NULL;
    health_trouble(t, text);
    assert_string_equal(text, "stalled at by-dev-dml_0");
}

static void a_task_without_an_owner_is_critical_when_nobody_takes_it(void **state)
{
    struct mtask *t;

    (void)state;
    t = add_elsewhere("");
    expect(HEALTH_WARNING, "task t0 no owner: no daemon has run it for 0 s");
    assert_null(json_object_get(task_at(0), "owner"));
    t->free_since_ms = clock_mono_ms() - 10000;
    expect(HEALTH_WARNING, "for 10 s");
    t->free_since_ms = clock_mono_ms() - 16000;
    expect(HEALTH_CRITICAL, "no owner: no daemon has run it for 16 s");
}

/* ---- registry, whole */

static void the_registry_away_is_critical(void **state)
{
    const json_t *r;

    (void)state;
    add_task();
    not_ready = away = "127.0.0.1:5432: connection refused";
    expect(HEALTH_CRITICAL, "CRITICAL: registry: 127.0.0.1:5432: connection refused; 1 tasks");
    r = json_object_get(answer, "registry");
    assert_true(json_is_false(json_object_get(r, "reachable")));
    assert_string_equal(json_string_value(json_object_get(r, "reason")), away);
    away = NULL;
    not_ready = "tasks are being loaded";
    expect(HEALTH_CRITICAL, "CRITICAL: tasks are being loaded; ");
    assert_true(json_is_true(json_object_get(json_object_get(answer, "registry"), "reachable")));
}

static void an_unknown_task_is_unknown_once_all_are_known(void **state)
{
    (void)state;
    add_task()->state = TASK_INITIAL; /* being made: not shown */
    expect_of("t0", HEALTH_UNKNOWN, "UNKNOWN: there is no task t0");
    expect_of("nothing", HEALTH_UNKNOWN, "UNKNOWN: there is no task nothing");
    m.loaded = false;
    not_ready = "tasks are being loaded";
    expect_of("nothing", HEALTH_CRITICAL, "tasks are being loaded");
    assert_null(strstr(line(), "there is no task"));
}

static void one_task_is_judged_alone(void **state)
{
    char reason[] = "LOST: x";
    struct mtask *t;

    (void)state;
    t = add_task();
    t->state = TASK_PAUSED;
    t->reason = reason;
    add_task();
    expect_of("t1", HEALTH_OK, "1 tasks, 1 running");
    expect(HEALTH_CRITICAL, "2 tasks, 1 running, 1 paused");
}

static void the_worst_decides_and_three_are_named(void **state)
{
    char reason[] = "LOST: x";

    (void)state;
    trouble = "slow";
    for (size_t i = 0; i < MAX_TASKS; i++)
        add_task();
    tasks[4].state = TASK_PAUSED;
    tasks[4].reason = reason;
    expect(HEALTH_CRITICAL, "CRITICAL: task t0 slow; task t1 slow; task t2 slow and 3 more; 6 tasks");
    assert_null(strstr(line(), "LOST"));
    tasks[4].state = TASK_RUNNING;
    expect(HEALTH_WARNING, "and 3 more");
}

static void the_line_is_one_line_of_any_text(void **state)
{
    char reason[] = "bad\n\"\xff\" | lag=0s\x7f", text[600];
    struct mtask *t;

    (void)state;
    t = add_task();
    t->state = TASK_PAUSED;
    t->reason = reason;
    expect(HEALTH_CRITICAL, "paused by an error: bad ");
    assert_null(strpbrk(line(), "\n\x7f"));
    assert_string_equal(strchr(line(), '|'), "| lag=0.000s;;30.000;0 running=0 paused=1");
    memset(text, 'x', sizeof(text)); /* longer than what is kept of it */
    text[sizeof(text) - 1] = '\0';
    t->reason = text;
    expect(HEALTH_CRITICAL, "xxx; 1 tasks");
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(without_tasks_all_is_well),
        TEST(a_task_that_keeps_up_is_ok),
        TEST(lag_is_judged_by_the_limit),
        TEST(nothing_confirmed_is_no_lag),
        TEST(a_stall_is_critical_and_goes_before_the_lag),
        TEST(a_silent_source_is_a_warning),
        TEST(trouble_that_is_worked_on_is_a_warning),
        TEST(a_task_that_does_not_run_is_critical),
        TEST(a_pause_by_hand_is_a_warning_only_to_who_asks_for_the_task),
        TEST(an_error_or_a_loss_is_critical),
        TEST(of_a_task_elsewhere_its_record_speaks),
        TEST(what_the_others_are_told),
        TEST(a_task_without_an_owner_is_critical_when_nobody_takes_it),
        TEST(the_registry_away_is_critical),
        TEST(an_unknown_task_is_unknown_once_all_are_known),
        TEST(one_task_is_judged_alone),
        TEST(the_worst_decides_and_three_are_named),
        TEST(the_line_is_one_line_of_any_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
