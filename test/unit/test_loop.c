/* test_loop.c - order, fairness and end of loop, timer and xthread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "loop/xthread.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static struct loop *lp;
static char trace[1000];

static int setup(void **state)
{
    (void)state;
    trace[0] = '\0';
    lp = loop_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    loop_free(lp);
    lp = NULL;
    return 0;
}

static void note(void *text)
{
    strncat(trace, text, sizeof(trace) - strlen(trace) - 1);
}

static void stop(void *arg)
{
    (void)arg;
    loop_stop(lp);
}

/* loop_defer */

static void note_and_defer(void *text)
{
    note(text);
    loop_defer(lp, note, (char *)"later ");
}

static void defer_runs_in_order_and_later(void **state)
{
    (void)state;
    loop_defer(lp, note_and_defer, (char *)"a ");
    loop_defer(lp, note, (char *)"b ");
    loop_defer(lp, note, (char *)"c ");
    assert_string_equal(trace, "");
    loop_once(lp, true);
    assert_string_equal(trace, "a b c ");
    loop_once(lp, true);
    assert_string_equal(trace, "a b c later ");
    loop_once(lp, false);
    assert_string_equal(trace, "a b c later ");
}

static unsigned spins;
static bool spinning;

static void spin(void *arg)
{
    spins++;
    if (spinning)
        loop_defer(lp, spin, arg);
}

static void stop_spinning(void *arg)
{
    spinning = false;
    stop(arg);
}

/* A call that always defers itself must not keep its own and higher priorities from running. */
static void defer_does_not_starve(void **state)
{
    struct timer t;

    (void)state;
    spins = 0;
    spinning = true;
    timer_init(&t, lp, LOOP_PRIO_NORMAL, stop_spinning, NULL);
    loop_defer(lp, spin, NULL);
    for (unsigned i = 1; i <= 4; i++) {
        loop_once(lp, true);
        assert_int_equal(spins, i);
    }
    timer_set(&t, 20);
    loop_run(lp);
    assert_false(spinning);
    timer_release(&t);
}

static void chain(void *n)
{
    if (--*(int *)n > 0)
        loop_defer(lp, chain, n);
}

static void free_drains_what_drains_add(void **state)
{
    int n = 5;

    (void)state;
    loop_defer(lp, chain, &n);
    loop_defer(lp, free, xmalloc(10)); /* the graveyard; ASan reports a leak */
    loop_free(lp);
    lp = NULL;
    assert_int_equal(n, 0);
}

static void stop_before_run_is_kept(void **state)
{
    (void)state;
    loop_stop(lp);
    loop_run(lp);
    loop_defer(lp, stop, NULL);
    loop_run(lp);
}

static void dns_is_lazy_and_keeps_no_loop_alive(void **state)
{
    (void)state;
    assert_non_null(loop_dns(lp));
    assert_ptr_equal(loop_dns(lp), loop_dns(lp));
    loop_once(lp, false);
}

/* timer */

static void timer_fires_once_not_early(void **state)
{
    struct timer t;
    uint64_t start = clock_mono_us();

    (void)state;
    timer_init(&t, lp, LOOP_PRIO_HIGH, stop, NULL);
    assert_false(timer_armed(&t));
    timer_set(&t, 30);
    assert_true(timer_armed(&t));
    loop_run(lp);
    assert_true(clock_mono_us() - start >= 30000);
    assert_false(timer_armed(&t));
    timer_release(&t);
    timer_release(&t);
}

static void timer_rearm_and_cancel(void **state)
{
    struct timer a, b, end;

    (void)state;
    timer_init(&a, lp, LOOP_PRIO_NORMAL, note, (char *)"a ");
    timer_init(&b, lp, LOOP_PRIO_NORMAL, note, (char *)"b ");
    timer_init(&end, lp, LOOP_PRIO_NORMAL, stop, NULL);
    timer_set(&a, 60000);
    timer_set(&a, 1);
    timer_set(&b, 1);
    timer_cancel(&b);
    timer_cancel(&b);
    assert_false(timer_armed(&b));
    timer_set(&end, 20);
    loop_run(lp);
    assert_string_equal(trace, "a ");
    timer_release(&a);
    timer_release(&b);
    timer_release(&end);
}

static void priorities(void **state)
{
    struct timer low, high;

    (void)state;
    timer_init(&low, lp, LOOP_PRIO_LOW, note, (char *)"low ");
    timer_init(&high, lp, LOOP_PRIO_HIGH, note, (char *)"high ");
    timer_set(&low, 0);
    timer_set(&high, 0);
    loop_once(lp, true);
    loop_once(lp, false);
    assert_string_equal(trace, "high low ");
    timer_release(&low);
    timer_release(&high);
}

/* xthread */

enum { N_JOBS = 500 };

struct work {
    int n;
    pthread_t ran_on, done_on;
    bool signals_blocked;
};

static int n_run, n_done;
static struct xthread *xt;

static void work_run(void *arg)
{
    struct work *w = arg;
    sigset_t set;

    w->ran_on = pthread_self();
    w->n = n_run++;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    w->signals_blocked = sigismember(&set, SIGTERM) == 1;
}

static void work_done(void *arg)
{
    struct work *w = arg;

    w->done_on = pthread_self();
    assert_int_equal(w->n, n_done++);
    if (n_done == N_JOBS)
        loop_stop(lp);
}

static void xthread_order_and_threads(void **state)
{
    static struct work w[N_JOBS];
    sigset_t set;

    (void)state;
    n_run = n_done = 0;
    xt = xthread_new(lp, "a-name-longer-than-fifteen");
    for (int i = 0; i < N_JOBS; i++)
        xthread_submit(xt, work_run, work_done, &w[i]);
    assert_int_equal(n_done, 0);
    loop_run(lp);
    assert_int_equal(n_done, N_JOBS);
    for (int i = 0; i < N_JOBS; i++) {
        assert_int_equal(w[i].n, i);
        assert_true(w[i].signals_blocked);
        assert_true(pthread_equal(w[i].done_on, pthread_self()));
        assert_false(pthread_equal(w[i].ran_on, pthread_self()));
    }
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    assert_false(sigismember(&set, SIGTERM));
    xthread_free(xt);
}

static void count_run(void *arg)
{
    (void)arg;
    n_run++;
}

static void submit_next(void *arg)
{
    if (++n_done < 10)
        xthread_submit(xt, count_run, submit_next, arg);
}

/* Also for a job that a done() submits while the thread is being ended. */
static void xthread_free_completes_all(void **state)
{
    (void)state;
    n_run = n_done = 0;
    xt = xthread_new(lp, "x");
    xthread_submit(xt, count_run, NULL, NULL);
    xthread_submit(xt, count_run, submit_next, NULL);
    xthread_free(xt);
    assert_int_equal(n_run, 11);
    assert_int_equal(n_done, 10);
    xthread_free(NULL);
}

static void free_thread(void *arg)
{
    (void)arg;
    xthread_free(xt);
    loop_stop(lp);
}

static void count_done(void *arg)
{
    (void)arg;
    n_done++;
}

static void xthread_freed_by_its_own_done(void **state)
{
    (void)state;
    n_run = n_done = 0;
    xt = xthread_new(lp, "x");
    xthread_submit(xt, count_run, free_thread, NULL);
    for (int i = 0; i < 100; i++)
        xthread_submit(xt, count_run, count_done, NULL);
    loop_run(lp);
    assert_int_equal(n_run, 101);
    assert_int_equal(n_done, 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(defer_runs_in_order_and_later, setup, teardown),
        cmocka_unit_test_setup_teardown(defer_does_not_starve, setup, teardown),
        cmocka_unit_test_setup_teardown(free_drains_what_drains_add, setup, teardown),
        cmocka_unit_test_setup_teardown(stop_before_run_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(dns_is_lazy_and_keeps_no_loop_alive, setup, teardown),
        cmocka_unit_test_setup_teardown(timer_fires_once_not_early, setup, teardown),
        cmocka_unit_test_setup_teardown(timer_rearm_and_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(priorities, setup, teardown),
        cmocka_unit_test_setup_teardown(xthread_order_and_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(xthread_free_completes_all, setup, teardown),
        cmocka_unit_test_setup_teardown(xthread_freed_by_its_own_done, setup, teardown),
    };

    return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}
