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

/* A way that takes requests one after the other at a rate, and answers each one a round trip later. */
struct way {
    uint64_t rate, rtt, now, is_free, sent[1000], answered[1000];
    unsigned first, next; /* under way */
    size_t under_way;
};

static void send_one(struct way *w)
{
    w->is_free = (w->is_free > w->now ? w->is_free : w->now) + (uint64_t)BATCH * 1000000 / w->rate;
    w->sent[w->next % 1000] = w->now;
    w->answered[w->next++ % 1000] = w->is_free + w->rtt;
    w->under_way += BATCH;
}

static void take_answer(struct way *w, struct pace *p)
{
    unsigned i = w->first++ % 1000;

    w->now = w->answered[i];
    w->under_way -= BATCH;
    pace_answer(p, w->now, w->now - w->sent[i], BATCH);
}

/* Always with something to send, for so long. Returns the bytes that were answered. */
static uint64_t run(struct way *w, struct pace *p, uint64_t us)
{
    uint64_t end = w->now + us;
    unsigned before = w->first;

    while (w->now < end) {
        while (w->under_way == 0 || w->under_way + BATCH <= pace_window(p, FAR_US, BATCH, MOST))
            send_one(w);
        take_answer(w, p);
    }
    return (uint64_t)(w->first - before) * BATCH;
}

/* The way is filled soon, and not much more than that is under way. */
static void fills_the_way(uint64_t rate, uint64_t rtt)
{
    struct way w = {.rate = rate, .rtt = rtt, .now = 1000000};
    struct pace p = {0};

    run(&w, &p, 8 * rtt);
    for (int i = 0; i < 10; i++) {
        uint64_t content = rate * rtt / 1000000, most = content + content / 2 + 8 * BATCH;

        assert_true(run(&w, &p, 1000000) > rate / 10 * 9);
        assert_true(w.under_way <= most);
    }
}

static void takes_the_rate_of_the_way(void **state)
{
    static const uint64_t rates[] = {20 << 20, 100 << 20, 300 << 20, 450 << 20}, rtts[] = {20000, 50000, 200000};

    (void)state;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 3; k++)
            fills_the_way(rates[i], rtts[k]);
}

/* The way becomes wider, then narrower. */
static void follows_the_rate(void **state)
{
    struct way w = {.rate = 100 << 20, .rtt = 200000, .now = 1000000};
    struct pace p = {0};

    (void)state;
    run(&w, &p, 3000000);
    w.rate = 400 << 20;
    run(&w, &p, 3000000);
    assert_true(run(&w, &p, 1000000) > 360 << 20);
    w.rate = 50 << 20;
    run(&w, &p, 15000000);
    assert_true(w.under_way < 15 << 20 || w.under_way <= 8 * BATCH);
}

static void a_new_connection_knows_nothing(void **state)
{
    struct way w = {.rate = 100 << 20, .rtt = 200000, .now = 1000000};
    struct pace p = {0};

    (void)state;
    run(&w, &p, 1000000);
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
        cmocka_unit_test(shortest_answer_counts),       cmocka_unit_test(takes_the_rate_of_the_way),
        cmocka_unit_test(follows_the_rate),             cmocka_unit_test(a_new_connection_knows_nothing),
        cmocka_unit_test(a_pause_shrinks_it_slowly),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
