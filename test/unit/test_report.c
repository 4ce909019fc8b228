/* test_report.c - repl_task_health: confirmed time, stalls and silence, over streams and links made by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/clock.h"
#include "repl/priv.h"

#define NOW_MS 1000000
#define WALL_MS 1700000000000 /* of the source's ticks at NOW_MS */
enum { MAX = 4 };

static struct repl_hub hub;
static struct repl_task task;
static struct stream streams[MAX];
static struct link links[MAX];
static char names[MAX][4];
static size_t n_streams, n_links;
static struct repl_health health;

static int setup(void **state)
{
    (void)state;
    hub = (struct repl_hub){.tick_interval_ms = 500};
    task = (struct repl_task){.o = {.hub = &hub}, .state = RUN_RUNNING, .made_ms = NOW_MS - 60000};
    n_streams = n_links = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    HASH_CLEAR(hh, task.streams);
    return 0;
}

/* "s0", "s1", ...; its last tick was read age_ms ago. */
static struct stream *add_stream(uint64_t age_ms)
{
    struct stream *s = &streams[n_streams];
    char *name = names[n_streams++];

    memcpy(name, "s0", 3);
    name[1] = (char)('0' + n_streams - 1);
    *s = (struct stream){.task = &task,
                         .channel = name,
                         .state = STREAM_OPEN,
                         .tick_tt = tt_from_ms(WALL_MS - age_ms),
                         .tick_ms = NOW_MS - age_ms};
    LIST_INIT(&s->links);
    HASH_ADD_KEYPTR(hh, task.streams, s->channel, strlen(s->channel), s);
    return s;
}

/* Progress was confirmed age_ms ago, up to lag_ms before now. */
static struct link *add_link(struct stream *s, uint64_t age_ms, uint64_t lag_ms)
{
    struct link *l = &links[n_links++];

    *l = (struct link){.stream = s, .done_tt = tt_from_ms(WALL_MS - lag_ms), .moved_ms = NOW_MS - age_ms};
    LIST_INSERT_HEAD(&s->links, l, of_stream);
    return l;
}

static void look(void)
{
    repl_task_health(&task, NOW_MS, &health);
}

static void expect_no_stall(void)
{
    look();
    assert_int_equal(health.stalled_since_ms, 0);
    assert_null(health.stalled);
}

static void expect_stall(uint64_t age_ms, const char *name)
{
    look();
    assert_int_equal(health.stalled_since_ms, NOW_MS - age_ms);
    assert_string_equal(health.stalled, name);
}

static void the_slowest_channel_counts(void **state)
{
    struct stream *s;

    (void)state;
    s = add_stream(100);
    add_link(s, 50, 200);
    add_link(s, 50, 7000);
    add_link(add_stream(100), 50, 300);
    expect_no_stall();
    assert_int_equal(health.confirmed_ms, WALL_MS - 7000);
    assert_int_equal(health.silent_since_ms, 0);
}

static void what_never_confirmed_has_no_time(void **state)
{
    (void)state;
    expect_no_stall();
    assert_int_equal(health.confirmed_ms, 0);
    add_link(add_stream(100), 50, 0)->done_tt = 0;
    look();
    assert_int_equal(health.confirmed_ms, 0);
}

static void a_link_that_confirms_nothing_is_a_stall(void **state)
{
    struct stream *s;

    (void)state;
    s = add_stream(100);
    add_link(s, 9999, 10000);
    expect_no_stall();
    add_link(add_stream(100), 10000, 10000);
    expect_stall(10000, "s1");
    assert_int_equal(health.confirmed_ms, WALL_MS - 10000);
    add_link(s, 20000, 20000);
    expect_stall(20000, "s0"); /* that stands for longest */
}

static void after_a_silence_a_link_has_its_time_again(void **state)
{
    struct stream *s;

    (void)state;
    s = add_stream(100);
    add_link(s, 60000, 60000);
    s->resumed_ms = NOW_MS - 3000;
    expect_no_stall();
    s->resumed_ms = NOW_MS - 12000;
    expect_stall(12000, "s0");
}

static void a_source_without_ticks_is_silent(void **state)
{
    struct stream *s;

    (void)state;
    s = add_stream(15000);
    add_link(s, 15000, 15000);
    add_link(add_stream(100), 50, 100);
    expect_no_stall();
    assert_int_equal(health.silent_since_ms, NOW_MS - 15000);
    assert_int_equal(health.confirmed_ms, WALL_MS - 100); /* the silent one is confirmed to its end */
}

static void a_silent_source_may_have_left_work(void **state)
{
    (void)state;
    add_link(add_stream(15000), 15000, 20000);
    expect_stall(15000, "s0");
    assert_int_equal(health.silent_since_ms, NOW_MS - 15000);
    assert_int_equal(health.confirmed_ms, WALL_MS - 20000);
}

/* We are the ones who do not read. */
static void without_reading_it_is_a_stall(void **state)
{
    char text[] = "the broker is away";
    struct stream *s;

    (void)state;
    s = add_stream(15000);
    add_link(s, 100, 15000);
    s->reader_paused = true;
    expect_stall(15000, "s0");
    assert_int_equal(health.silent_since_ms, 0);
    s->reader_paused = false;
    s->trouble = text;
    expect_stall(15000, "s0");
    s->trouble = NULL;
    s->state = STREAM_CLOSED;
    expect_stall(15000, "s0");
}

static void a_stream_that_nobody_needs_is_not_judged(void **state)
{
    struct stream *s;

    (void)state;
    s = add_stream(60000);
    s->state = STREAM_CLOSED;
    expect_no_stall();
    assert_int_equal(health.confirmed_ms + health.silent_since_ms, 0);
    s->state = STREAM_IDLE;
    expect_no_stall();
    s->state = STREAM_OPEN; /* waits for collections: what it has read is done */
    s->tick_ms = NOW_MS - 200;
    expect_no_stall();
    assert_int_equal(health.confirmed_ms, WALL_MS - 60000);
}

static void slow_ticks_have_more_time(void **state)
{
    (void)state;
    hub.tick_interval_ms = 5000;
    add_link(add_stream(14000), 14000, 15000);
    expect_no_stall();
    assert_int_equal(health.silent_since_ms, 0);
    streams[0].tick_ms = links[0].moved_ms = NOW_MS - 15000;
    expect_stall(15000, "s0");
    assert_int_equal(health.silent_since_ms, NOW_MS - 15000);
}

static void a_start_may_stall(void **state)
{
    (void)state;
    task.state = RUN_RUNNING - 1;
    expect_stall(60000, "start");
    task.made_ms = NOW_MS - 9999;
    expect_no_stall();
}

/* Times that were taken after now_ms. */
static void the_future_is_no_age(void **state)
{
    struct stream *s;

    (void)state;
    s = add_stream(0);
    s->tick_ms = NOW_MS + 50;
    add_link(s, 0, 0)->moved_ms = NOW_MS + 50;
    task.made_ms = NOW_MS + 1;
    expect_no_stall();
    assert_int_equal(health.silent_since_ms, 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_slowest_channel_counts),
        TEST(what_never_confirmed_has_no_time),
        TEST(a_link_that_confirms_nothing_is_a_stall),
        TEST(after_a_silence_a_link_has_its_time_again),
        TEST(a_source_without_ticks_is_silent),
        TEST(a_silent_source_may_have_left_work),
        TEST(without_reading_it_is_a_stall),
        TEST(a_stream_that_nobody_needs_is_not_judged),
        TEST(slow_ticks_have_more_time),
        TEST(a_start_may_stall),
        TEST(the_future_is_no_age),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
