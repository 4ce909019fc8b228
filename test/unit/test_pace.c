/* How many bytes may be under way: near targets one request, far ones rate x round trip. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "repl/pace.h"

#define FAR_US 5000
#define BATCH (4u << 20)
#define MOST (128u << 20)

static void nothing_known_is_one_request(void **state)
{
    struct pace p = {0};

    (void)state;
    assert_int_equal(pace_window(&p, FAR_US, BATCH, MOST), 0);
}

static void near_is_one_request(void **state)
{
    struct pace p = {0};
    uint64_t now = 1000000;

    (void)state;
    for (int i = 0; i < 100; i++)
        pace_answer(&p, now += 2000, 2000, BATCH);
    assert_int_equal(pace_window(&p, FAR_US, BATCH, MOST), 0);
}

/* One slow answer of a busy target does not make it far: the shortest one counts. */
static void shortest_answer_counts(void **state)
{
    struct pace p = {0};

    (void)state;
    pace_answer(&p, 1000000, 300000, BATCH);
    assert_true(pace_window(&p, FAR_US, BATCH, MOST) > 0);
    pace_answer(&p, 1010000, 1000, 100);
    assert_int_equal(pace_window(&p, FAR_US, BATCH, MOST), 0);
}

/* With the window always used up, each round trip doubles it until the target's rate or the limit is reached. */
static void grows_to_the_rate(void **state)
{
    const uint64_t rtt = 200000, rate = 100 << 20; /* what the way takes, bytes per second */
    struct pace p = {0};
    uint64_t now = 1000000;
    size_t window = BATCH;

    (void)state;
    for (int round = 0; round < 20; round++) {
        uint64_t took = rtt + (uint64_t)window * 1000000 / rate;

        if (took < rtt)
            took = rtt;
        now += took;
        pace_answer(&p, now, rtt, window);
        window = pace_window(&p, FAR_US, BATCH, MOST);
        assert_true(window >= BATCH && window <= MOST);
    }
    assert_true(window >= rate / 5); /* rate x round trip is 20 MiB */
    pace_reset(&p);
    assert_int_equal(pace_window(&p, FAR_US, BATCH, MOST), 0);
}

static void a_pause_shrinks_it_slowly(void **state)
{
    struct pace p = {0};
    uint64_t now = 1000000;
    size_t before, after;

    (void)state;
    for (int i = 0; i < 50; i++)
        pace_answer(&p, now += 50000, 200000, 8 * BATCH);
    before = pace_window(&p, FAR_US, BATCH, MOST);
    now += 10000000;
    pace_answer(&p, now, 200000, 100);
    after = pace_window(&p, FAR_US, BATCH, MOST);
    assert_true(after <= before && after >= before / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_known_is_one_request), cmocka_unit_test(near_is_one_request),
        cmocka_unit_test(shortest_answer_counts),       cmocka_unit_test(grows_to_the_rate),
        cmocka_unit_test(a_pause_shrinks_it_slowly),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
