/*
 * test_verify.c - comparing source and target, and mending the target, on the model of test_repl.c.
 *
 * Both sides answer queries from their models: the source's of all that is written, the target's of what it has taken. Rows
 * from before the task are on both sides without a message; a test spoils the target behind the task's back.
 */
int test_repl_main(void);
#define main test_repl_main
#include "test_repl.c"
#undef main

#include "repl/verify_priv.h"

/* ---- rows from before -------------------------------------------------------------------------------- */

struct old_row {
    int64_t key, value;
};
static struct old_row *old_rows;
static size_t n_old;

static void old_add(int64_t key, int64_t value, bool on_target)
{
    old_rows = xrealloc(old_rows, (n_old + 1) * sizeof(*old_rows));
    old_rows[n_old++] = (struct old_row){key, value};
    if (on_target)
        t_add_row(t_by_name("a"), (struct t_row){.tt = ++t_clock, .key = key, .value = value});
}

/* ---- queries ------------------------------------------------------------------------------------------- */

struct v_call {
    LIST_ENTRY(v_call) entry;
    struct timer timer;
    bool target, count, load, on;
    char *collection, *expr;
    bool keys_only;
    uint64_t limit;
    rows_fn done;
    rows_now_fn now_done;
    rows_pairs_fn pairs_done; /* not of a verification: not counted */
    void *arg;
};
static LIST_HEAD(, v_call) v_calls;
static bool no_clock;  /* neither side can tell its time */
static unsigned most_answer; /* rows; more are too large. 0: no limit */
static bool unordered; /* the target gives any rows when there is a limit */
static bool not_there[2]; /* not loaded, by side */
static unsigned asked[2], running[2], most_running;
static uint64_t largest_answer; /* of an answer */
static unsigned query_fails; /* percent */
static int64_t hot_key;      /* 0: none */
static unsigned hot_looks;   /* at the target, while it is hot */

static int by_key(const void *a, const void *b)
{
    const struct old_row *x = a, *y = b;

    return x->key < y->key ? -1 : x->key > y->key;
}

static void list_add(struct old_row **list, size_t *n, int64_t key, int64_t value)
{
    *list = xrealloc(*list, (*n + 1) * sizeof(**list));
    (*list)[(*n)++] = (struct old_row){key, value};
}

static struct old_row *source_list(const char *name, size_t *ret_n)
{
    struct old_row *list = NULL;
    size_t n = 0;

    for (size_t i = 0; i < n_colls; i++)
        for (int s = 0; s < (int)colls[i]->sc.n_shards && strcmp(colls[i]->sc.name, name) == 0; s++)
            for (int k = 0; k < N_KEYS; k++)
                if (source_value(colls[i], s, k))
                    list_add(&list, &n, shard_key(s, k), source_value(colls[i], s, k));
    for (size_t i = 0; i < n_old && strcmp(name, "a") == 0; i++)
        list_add(&list, &n, old_rows[i].key, old_rows[i].value);
    *ret_n = n;
    return list;
}

static struct old_row *target_list(const char *name, size_t *ret_n)
{
    const struct t_coll *c = t_by_name(name);
    struct old_row *list = NULL;
    size_t n = 0;

    for (size_t i = 0; i < c->n_rows; i++) {
        bool gone = c->rows[i].del;

        for (size_t k = i + 1; k < c->n_rows && portable && !gone; k++) /* in the order of its clock */
            gone = c->rows[k].del && c->rows[k].key == c->rows[i].key && c->rows[k].tt > c->rows[i].tt;
        for (size_t k = 0; k < c->n_rows && !portable && !gone; k++)
            gone = c->rows[k].del && c->rows[k].key == c->rows[i].key && c->rows[k].tt > c->rows[i].tt;
        if (!gone)
            list_add(&list, &n, c->rows[i].key, c->rows[i].value);
    }
    *ret_n = n;
    return list;
}

static int64_t number_at(const char *p, char **end)
{
    int64_t v = strtoll(p, end, 10);

    if (strncmp(*end, "-1", 2) == 0) { /* the least number is a sum */
        v -= 1;
        *end += 2;
    }
    return v;
}

static bool fits(const char *expr, int64_t key)
{
    char *p = (char *)(uintptr_t)expr;

    if (strncmp(p, "id in [", 7) == 0) {
        for (p += 7; *p != ']'; p += *p == ',')
            if (number_at(p, &p) == key)
                return true;
        return false;
    }
    if (strncmp(p, "id > ", 5) == 0 && !(key > number_at(p + 5, &p)))
        return false;
    else if (strncmp(p, "id >= ", 6) == 0 && !(key >= number_at(p + 6, &p)))
        return false;
    if (!*p)
        return true;
    assert_int_equal(strncmp(p, " and id <= ", 11), 0);
    return key <= number_at(p + 11, &p);
}

static void v_call_free(struct v_call *c)
{
    LIST_REMOVE(c, entry);
    timer_release(&c->timer);
    if (!c->pairs_done)
        running[c->target]--;
    free(c->collection);
    free(c->expr);
    free(c);
}

static void give(struct v_call *c, struct old_row *list, size_t n)
{
    struct rows_page page = {0};
    struct pb_out o = {0};
    rows_fn done = c->done;
    void *arg = c->arg;
    int64_t count = (int64_t)n, *keys = xcalloc(n + 1, sizeof(*keys)), *values = xcalloc(n + 1, sizeof(*values));

    for (size_t i = 0; i < n && !c->count; i++) {
        keys[i] = list[i].key;
        values[i] = list[i].value;
    }
    if (c->count) {
        put_longs(&o, ROWS_TAG, 0, "count(*)", &count, 1);
    } else if (n) {
        if (n > largest_answer)
            largest_answer = n;
        if (!c->keys_only)
            put_longs(&o, ROWS_TAG, 101, "value", values, n);
        put_longs(&o, ROWS_TAG, 100, "id", keys, n);
    }
    free(keys);
    free(values);
    page.buf = buf_new(o.len ? o.len : 1);
    memcpy(page.buf->data, o.data ? o.data : (const uint8_t *)"", o.len);
    page.data = page.buf->data;
    page.len = o.len;
    pb_out_release(&o);
    v_call_free(c);
    done(arg, NULL, &page);
    buf_unref(page.buf);
}

static void too_large(struct v_call *c)
{
    rows_fn done = c->done;
    void *arg = c->arg;
    struct err err;

    v_call_free(c);
    err_set(&err, ERR_LIMIT, ERRC_RETRY, "the answer is too large");
    done(arg, &err, NULL);
}

static void spoil_at(uint64_t tt, int64_t key, bool there, int64_t value);

/* While it is hot, every look at the source finds another value, and every one at the target none. */
static void write_hot(bool target)
{
    static uint64_t tt;
    static int64_t value;
    bool hot = hot_looks > 0;

    if (!hot_key)
        return;
    hot_looks -= target && hot;
    value += !target && hot;
    for (size_t i = 0; i < n_old; i++)
        if (old_rows[i].key == hot_key)
            old_rows[i].value = value;
    tt = now_tt > tt ? now_tt : tt + 2;
    spoil_at(portable ? ++t_clock : tt, hot_key, !(target && hot), value);
}

static void answer(struct v_call *c)
{
    struct old_row *list;
    size_t n, kept = 0;

    write_hot(c->target);
    list = c->target ? target_list(c->collection, &n) : source_list(c->collection, &n);

    for (size_t i = 0; i < n; i++)
        if (fits(c->expr, list[i].key))
            list[kept++] = list[i];
    if (list)
        qsort(list, kept, sizeof(*list), by_key);
    n = kept;
    for (size_t i = kept = 0; i < n && !c->count; i++) /* equal keys are one row of an answer */
        if (!kept || list[kept - 1].key != list[i].key)
            list[kept++] = list[i];
    n = c->count ? n : kept;
    if (c->target && unordered)
        for (size_t i = 0; i < n && c->limit; i++) {
            size_t k = rnd((unsigned)n);
            struct old_row tmp = list[i];
            list[i] = list[k];
            list[k] = tmp;
        }
    n = c->limit && n > c->limit ? c->limit : n;
    if (most_answer && n > most_answer && !c->count)
        too_large(c);
    else
        give(c, list, n);
    free(list);
}

static void on_v_timer(void *arg)
{
    struct v_call *c = arg;
    rows_fn done = c->done;
    void *done_arg = c->arg;
    struct err err;

    if (c->pairs_done) {
        rows_pairs_fn pairs_done = c->pairs_done;

        v_call_free(c);
        pairs_done(done_arg, NULL, NULL, 0);
        return;
    }
    if (c->now_done) {
        rows_now_fn now_done = c->now_done;

        v_call_free(c);
        err_set(&err, ERR_UNSUPPORTED, ERRC_USER, "no such method");
        now_done(done_arg, no_clock ? &err : NULL, next_tt());
        return;
    }
    if (c->load) {
        not_there[c->target] = !c->on;
        v_call_free(c);
        if (done)
            done(done_arg, NULL, NULL);
        return;
    }
    if (not_there[c->target])
        err_set(&err, ERR_STATE, ERRC_RETRY, "not loaded");
    else if (rnd(100) < query_fails)
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "made up");
    else {
        answer(c);
        return;
    }
    v_call_free(c);
    done(done_arg, &err, NULL);
}

static struct rows_port ports[2];

static struct v_call *call_later(struct rows_port *p, const char *collection, rows_fn done, void *arg)
{
    struct v_call *c = xcalloc(1, sizeof(*c));

    c->target = p == &ports[1];
    c->collection = xstrdup(collection);
    c->done = done;
    c->arg = arg;
    LIST_INSERT_HEAD(&v_calls, c, entry);
    timer_init(&c->timer, loop, LOOP_PRIO_NORMAL, on_v_timer, c);
    timer_set(&c->timer, rnd(4));
    return c;
}

static struct v_call *call_new(struct rows_port *p, const char *collection, rows_fn done, void *arg)
{
    struct v_call *c = call_later(p, collection, done, arg);

    asked[c->target]++;
    if (++running[c->target] > most_running)
        most_running = running[c->target];
    return c;
}

static struct rows_call *r_query(struct rows_port *p, const struct rows_query *q, rows_fn done, void *arg)
{
    struct v_call *c = call_new(p, q->collection, done, arg);

    flush_rows(); /* what a query sees is in the log */
    c->expr = xstrdup(q->expr);
    c->count = strcmp(q->output, "count(*)") == 0;
    c->keys_only = strcmp(q->output, "id") == 0;
    c->limit = q->limit;
    return (struct rows_call *)c;
}

static struct rows_call *r_load(struct rows_port *p, const char *db, const char *name, bool on, rows_fn done, void *arg)
{
    struct v_call *c = call_new(p, name, done, arg);

    (void)db;
    c->load = true;
    c->on = on;
    return (struct rows_call *)c;
}

static struct rows_call *r_now(struct rows_port *p, rows_now_fn done, void *arg)
{
    struct v_call *c = call_new(p, "", NULL, arg);

    c->now_done = done;
    return (struct rows_call *)c;
}

static struct rows_call *r_properties(struct rows_port *p, const char *db, const char *collection, rows_pairs_fn done, void *arg)
{
    struct v_call *c = call_later(p, collection, NULL, arg);

    (void)db;
    c->pairs_done = done;
    return (struct rows_call *)c;
}

static void r_cancel(struct rows_call *c)
{
    if (c)
        v_call_free((struct v_call *)c);
}

static const struct rows_ops v_ops = {r_query, r_load, r_now, r_properties, r_cancel};
static struct rows_port ports[2] = {{&v_ops}, {&v_ops}};

/* ---- asking ---------------------------------------------------------------------------------------------- */

static bool port_back;
static json_t *result;

static void on_verified(void *arg)
{
    (void)arg;
    port_back = true;
}

static unsigned n_begun, n_not_begun;

/* All daemons can tell it by then. */
static void on_verify_begun(void *arg, const struct err *err)
{
    (void)arg;
    n_begun += !err;
    n_not_begun += err != NULL;
    assert_true(err || strstr(st_verify, "\"state\":\"running\""));
}

static int begin(enum verify_level level, bool repair, struct err *err)
{
    struct repl_verify_options o = {
        .level = level, .repair = repair, .rows = &ports[1], .begun = on_verify_begun, .done = on_verified};
    int rc;

    n_begun = n_not_begun = 0;
    rc = repl_task_verify(task, &o, err);

    port_back = rc != 0;
    return rc;
}

static bool looks_done(void)
{
    json_decref(result);
    result = repl_task_verify_json(task);
    return port_back;
}

static const char *text_of(const char *name)
{
    const char *s = json_string_value(json_object_get(result, name));

    return s ? s : "";
}

/* Steps of a workload (0: none) and ticks until it is over. */
static void wait_verified(unsigned steps)
{
    uint64_t limit = clock_mono_ms() + PATIENCE_MS;

    while (!looks_done() && clock_mono_ms() < limit) {
        for (unsigned i = 0; i < steps && rnd(fail_percent ? 60 : 2) == 0; i++) /* a doubt costs 1.5 s */
            workload_step();
        write_tick();
        spin(3);
    }
    if (!looks_done())
        fail_msg("it does not end: %s", json_dumps(result, 0));
}

static void verify(enum verify_level level, bool repair, unsigned steps)
{
    struct err err;

    if (begin(level, repair, &err))
        fail_msg("%s", err.text);
    wait_verified(steps);
    assert_int_equal(n_begun, 1);
    assert_int_equal(n_not_begun, 0);
}

static const json_t *coll_result(const char *name)
{
    json_t *list = json_object_get(result, "collections"), *o;
    size_t i;

    json_array_foreach(list, i, o)
        if (strcmp(json_string_value(json_object_get(o, "name")), name) == 0)
            return o;
    fail_msg("%s is not in the result", name);
    return NULL;
}

static void assert_found(const char *name, int missing, int extra, int different)
{
    const json_t *o = coll_result(name);
    char *text = json_dumps(result, 0);

    if (json_integer_value(json_object_get(o, "missing")) != missing ||
        json_integer_value(json_object_get(o, "extra")) != extra ||
        json_integer_value(json_object_get(o, "different")) != different)
        fail_msg("%d missing, %d extra, %d different were expected: %s", missing, extra, different, text);
    free(text);
}

static void assert_state(const char *state)
{
    char *text = json_dumps(result, 0);

    if (strcmp(text_of("state"), state) != 0)
        fail_msg("not %s: %s", state, text);
    free(text);
}

/* ---- a target that was spoiled ---------------------------------------------------------------------------- */

static void spoil_at(uint64_t tt, int64_t key, bool there, int64_t value)
{
    struct t_coll *c = t_by_name("a");

    t_add_row(c, (struct t_row){.tt = tt, .key = key, .del = true});
    if (there)
        t_add_row(c, (struct t_row){.tt = portable ? tt : tt + 1, .key = key, .value = value});
}

static void spoil(int64_t key, bool there, int64_t value)
{
    spoil_at(portable ? ++t_clock : now_tt, key, there, value);
}

static int setup_verify(void **state)
{
    int rc = setup(state);

    source_rows = &ports[0];
    old_rows = NULL;
    n_old = 0;
    most_answer = 0;
    no_clock = unordered = not_there[0] = not_there[1] = false;
    asked[0] = asked[1] = most_running = query_fails = hot_looks = 0;
    hot_key = 0;
    largest_answer = 0;
    return rc;
}

static int teardown_verify(void **state)
{
    int rc = teardown(state);

    assert_true(LIST_EMPTY(&v_calls));
    assert_true(port_back);
    json_decref(result);
    result = NULL;
    free(old_rows);
    source_rows = NULL;
    return rc;
}

static void start_a_and_b(void)
{
    coll_create("a", 2, 0, true);
    coll_create("b", 1, 1, true);
    write_tick();
    start_and_wait();
    WAIT(t_by_name("a") && t_by_name("b") && all_links(is_live, 0));
}

static void fill(struct model_coll *c)
{
    for (int s = 0; s < (int)c->sc.n_shards; s++)
        for (int k = 0; k < 6; k++)
            write_insert(c, s, k, next_tt());
}

/* ---- tests -------------------------------------------------------------------------------------------------- */

/* Rows in motion are no differences; one query at a time on each side. */
static void test_equal_while_rows_come_and_go(void **state)
{
    (void)state;
    for (rnd_state = 301; rnd_state < 304; rnd_state++) {
        unsigned seed = rnd_state;
        start_a_and_b();
        for (int i = 0; i < 40; i++)
            workload_step();
        verify(VERIFY_ROWS, false, 4);
        assert_state("equal");
        assert_found("a", 0, 0, 0);
        assert_int_equal(most_running, 1);
        verify(VERIFY_KEYS, false, 4);
        assert_state("equal");
        wait_equal();
        verify(VERIFY_COUNTS, false, 0);
        assert_state("equal");
        SPIN(strstr(st_verify, "\"state\":\"equal\""));
        assert_true(json_integer_value(json_object_get(result, "time_tick")) > 0);
        teardown_verify(state);
        setup_verify(state);
        rnd_state = seed;
    }
    port_back = true;
}

/* Each kind, by key; what is spoiled on the target only is not mended by looking. */
static void test_differences_are_found(void **state)
{
    (void)state;
    rnd_state = 310;
    start_a_and_b();
    fill(colls[0]);
    fill(colls[1]);
    wait_equal();
    spoil(1, false, 0);
    spoil(102, true, 77);
    spoil(50, true, 5);
    spoil(51, true, 6);
    verify(VERIFY_ROWS, false, 0);
    assert_state("different");
    assert_found("a", 1, 2, 1);
    assert_found("b", 0, 0, 0);
    const json_t *o = coll_result("a");
    char *keys = json_dumps(json_object_get(o, "keys"), JSON_COMPACT);
    assert_string_equal(keys, "[{\"key\":1,\"what\":\"missing\"},{\"key\":50,\"what\":\"extra\"},"
                              "{\"key\":51,\"what\":\"extra\"},{\"key\":102,\"what\":\"different\"}]");
    free(keys);
    assert_int_equal(json_array_size(json_object_get(o, "ranges")), 1);
    verify(VERIFY_KEYS, false, 0);
    assert_found("a", 1, 2, 0);
    verify(VERIFY_COUNTS, false, 0);
    assert_state("different");
    assert_string_equal(json_string_value(json_object_get(coll_result("a"), "reason")), "the numbers of rows differ");
}

static void test_differences_are_mended(void **state)
{
    struct err err;

    (void)state;
    rnd_state = 320;
    start_a_and_b();
    fill(colls[0]);
    wait_equal();
    if (!portable) {
        assert_int_equal(begin(VERIFY_ROWS, true, &err), ERR_UNSUPPORTED);
        assert_non_null(strstr(err.text, "standby"));
        return;
    }
    spoil(1, false, 0);
    spoil(102, true, 77);
    spoil(50, true, 5);
    verify(VERIFY_ROWS, true, 0);
    assert_state("repaired");
    assert_found("a", 0, 0, 0);
    assert_int_equal(json_integer_value(json_object_get(coll_result("a"), "repaired")), 3);
    wait_equal();
    verify(VERIFY_ROWS, false, 0);
    assert_state("equal");
}

/* The keys that are mended are written and deleted all the time: no row comes back, none is there twice. */
static void test_repair_under_a_workload(void **state)
{
    if (!portable)
        skip();
    for (unsigned seed = 330; seed < 338; seed++) {
        rnd_state = seed;
        start_a_and_b();
        for (int i = 0; i < 20; i++)
            workload_step();
        for (int round = 0; round < 3; round++) {
            for (int i = 0; i < 4; i++)
                spoil(shard_key((int)rnd(2), (int)rnd(N_KEYS)), rnd(2), 1000000 + i);
            fail_percent = round ? 2 : 0; /* each costs 1.5 s */
            query_fails = round ? 5 : 0;
            verify(VERIFY_ROWS, true, round == 2 ? 1 : 3);
            fail_percent = query_fails = 0;
        }
        verify(VERIFY_ROWS, true, 0); /* what changed at each look */
        wait_equal();
        verify(VERIFY_ROWS, false, 0);
        assert_state("equal");
        teardown_verify(state);
        setup_verify(state);
    }
    port_back = true;
}

/* A crash at any moment of a repair: what the log has behind it is in doubt. */
static void test_crashes_in_a_repair(void **state)
{
    struct err err;

    if (!portable)
        skip();
    for (unsigned seed = 340; seed < 346; seed++) {
        rnd_state = seed;
        start_a_and_b();
        for (int i = 0; i < 20; i++)
            workload_step();
        write_tick();
        for (int crash = 0; crash < 4; crash++) {
            for (int i = 0; i < 4; i++)
                spoil(shard_key((int)rnd(2), (int)rnd(N_KEYS)), rnd(2), 1000000 + i);
            assert_int_equal(begin(VERIFY_ROWS, true, &err), 0);
            for (unsigned end = 20 + rnd(150); end > 0; end--) {
                if (rnd(4) == 0)
                    workload_step();
                spin(1);
            }
            task_crash();
            assert_true(port_back);
            task_make();
            SPIN(is_started);
        }
        verify(VERIFY_ROWS, true, 0);
        wait_equal();
        teardown_verify(state);
        setup_verify(state);
    }
    port_back = true;
}

/* A difference is what persists: a row that was deleted and written again between two looks does not. */
static void test_a_hot_key(void **state)
{
    (void)state;
    for (enum verify_level level = VERIFY_KEYS; level <= VERIFY_ROWS; level++) {
        rnd_state = 345;
        start_a_and_b();
        old_add(hot_key = 2000, 1, true);
        hot_looks = 8;
        verify(level, false, 0);
        assert_int_equal(hot_looks, 0);
        assert_found("a", 0, 0, 0);
        assert_state("equal");
        teardown_verify(state);
        setup_verify(state);
    }
    port_back = true;
}

/* Many pages; the least number; a target that answers in any order and has far more rows than the source. */
static void test_pages(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        rnd_state = 350;
        start_a_and_b();
        old_add(INT64_MIN, 1, true);
        for (int k = 0; k < 300; k++)
            old_add(1000 + 2 * k, k, k != 70);
        for (int k = 0; k < 1100; k++) /* more than are asked for at once */
            spoil(1 + 2 * (k + 1000), true, k);
        old_add(INT64_MAX, 2, true);
        unordered = i == 1;
        no_clock = i == 1;
        most_answer = i == 2 ? 70 : 0;
        verify(VERIFY_ROWS, false, 0);
        assert_state("different");
        assert_found("a", 1, 1100, 0);
        assert_int_equal(json_array_size(json_object_get(coll_result("a"), "keys")), 10);
        assert_int_equal(json_integer_value(json_object_get(coll_result("a"), "rows")), 302);
        assert_true(largest_answer <= 2048 && asked[1] > 6);
        teardown_verify(state);
        setup_verify(state);
    }
    port_back = true;
}

static void test_equal_keys_on_the_source(void **state)
{
    (void)state;
    rnd_state = 360;
    start_a_and_b();
    old_add(1000, 1, true);
    old_add(1000, 1, false);
    old_add(1001, 2, true);
    verify(VERIFY_ROWS, false, 0);
    assert_state("equal");
    assert_int_equal(json_integer_value(json_object_get(coll_result("a"), "equal_keys")), 1);
}

/* The keys are the same: only the numbers tell. */
static void test_rows_that_are_twice_on_the_target(void **state)
{
    (void)state;
    rnd_state = 365;
    start_a_and_b();
    old_add(1000, 1, true);
    t_add_row(t_by_name("a"), (struct t_row){.tt = portable ? ++t_clock : now_tt, .key = 1000, .value = 1});
    verify(VERIFY_ROWS, false, 0);
    assert_state("different");
    assert_non_null(strstr(json_string_value(json_object_get(coll_result("a"), "reason")), "more than once"));
}

static void test_not_loaded(void **state)
{
    struct repl_verify_options o = {.level = VERIFY_ROWS, .load = true, .rows = &ports[1], .done = on_verified};
    struct err err;

    (void)state;
    rnd_state = 370;
    start_a_and_b();
    not_there[1] = true;
    verify(VERIFY_ROWS, false, 0);
    assert_state("failed");
    assert_non_null(strstr(text_of("reason"), "not loaded on the target"));
    assert_int_equal(json_array_size(json_object_get(result, "collections")), 2);
    not_there[1] = false;
    not_there[0] = true;
    verify(VERIFY_ROWS, false, 0);
    assert_non_null(strstr(text_of("reason"), "not loaded on the source"));
    port_back = false;
    assert_int_equal(repl_task_verify(task, &o, &err), 0);
    wait_verified(0);
    assert_state("equal");
    assert_true(not_there[0]); /* released again */
}

static void test_refusals(void **state)
{
    json_t *names = json_pack("[s]", "nobody");
    struct repl_verify_options o = {.level = VERIFY_ROWS, .names = names, .rows = &ports[1], .done = on_verified};
    struct err err;

    (void)state;
    rnd_state = 380;
    source_rows = NULL;
    start_a_and_b();
    assert_int_equal(begin(VERIFY_ROWS, false, &err), ERR_STATE);
    assert_non_null(strstr(err.text, "sourceConfig.milvus.uri"));
    task_crash();
    source_rows = &ports[0];
    task_make();
    SPIN(is_started);
    assert_int_equal(repl_task_verify(task, &o, &err), ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "nobody"));
    json_array_set_new(names, 0, json_string("default.b"));
    port_back = false;
    assert_int_equal(repl_task_verify(task, &o, &err), 0);
    json_decref(names);
    struct repl_verify_options second = {.level = VERIFY_ROWS, .rows = &ports[1]};
    assert_int_equal(repl_task_verify(task, &second, &err), ERR_STATE);
    assert_non_null(strstr(err.text, "cancel"));
    wait_verified(0);
    assert_state("equal");
    assert_int_equal(json_array_size(json_object_get(result, "collections")), 1);
    assert_int_equal(begin(VERIFY_ROWS, false, &err), 0);
    spin(1);
    repl_task_verify_cancel(task);
    wait_verified(0);
    assert_state("failed");
    assert_string_equal(text_of("reason"), "cancelled");
}

static void test_a_task_that_is_starting(void **state)
{
    json_t *names = json_pack("[s]", "nobody");
    struct repl_verify_options o = {.level = VERIFY_ROWS, .names = names, .rows = &ports[1], .done = on_verified};
    struct err err;

    (void)state;
    rnd_state = 385;
    start_a_and_b();
    task_crash();
    task_make();
    assert_int_equal(begin(VERIFY_ROWS, false, &err), 0);
    assert_int_equal(begin(VERIFY_ROWS, false, &err), ERR_STATE);
    port_back = false;
    repl_task_verify_cancel(task);
    wait_verified(0);
    assert_string_equal(text_of("reason"), "cancelled");
    task_crash();
    task_make();
    assert_int_equal(begin(VERIFY_ROWS, false, &err), 0);
    wait_verified(0);
    assert_state("equal");
    assert_int_equal(json_array_size(json_object_get(result, "collections")), 2);
    task_crash();
    task_make();
    port_back = false;
    assert_int_equal(repl_task_verify(task, &o, &err), 0);
    json_decref(names);
    wait_verified(0);
    assert_state("failed");
    assert_non_null(strstr(text_of("reason"), "nobody"));
    task_crash();
    task_make();
    assert_int_equal(begin(VERIFY_ROWS, false, &err), 0);
    stop_and_wait();
    assert_int_equal(n_not_begun, 1);
    assert_true(port_back);
    SPIN(strstr(st_verify, "interrupted"));
}

static void test_the_end_of_the_task(void **state)
{
    struct err err;

    (void)state;
    rnd_state = 390;
    start_a_and_b();
    assert_int_equal(begin(VERIFY_ROWS, false, &err), 0);
    spin(3);
    stop_and_wait();
    assert_true(port_back);
    SPIN(strstr(st_verify, "interrupted"));
    json_t *old = json_pack("{s:s}", "state", "running");
    repl_verify_interrupted(old);
    assert_string_equal(json_string_value(json_object_get(old, "state")), "failed");
    json_decref(old);
}

static void test_a_collection_that_is_dropped_meanwhile(void **state)
{
    struct err err;

    (void)state;
    rnd_state = 395;
    start_a_and_b();
    assert_int_equal(begin(VERIFY_ROWS, false, &err), 0);
    spin(2);
    coll_drop(colls[0], true);
    wait_verified(0);
    assert_state("equal");
    wait_equal();
}

int main(void)
{
#define V(f) cmocka_unit_test_setup_teardown(f, setup_verify, teardown_verify)
    const struct CMUnitTest tests[] = {
        V(test_equal_while_rows_come_and_go), V(test_differences_are_found),
        V(test_differences_are_mended),       V(test_repair_under_a_workload),
        V(test_crashes_in_a_repair),          V(test_a_hot_key),
        V(test_pages),                        V(test_equal_keys_on_the_source),
        V(test_not_loaded),                   V(test_rows_that_are_twice_on_the_target),
        V(test_refusals),                     V(test_a_task_that_is_starting),
        V(test_the_end_of_the_task),          V(test_a_collection_that_is_dropped_meanwhile),
    };
    int failed = 0;

    if (getenv("TEST_FILTER"))
        cmocka_set_test_filter(getenv("TEST_FILTER"));
    for (int i = 0; i < 2; i++) {
        portable = i == 0;
        failed += _cmocka_run_group_tests(portable ? "portable" : "standby", tests, sizeof(tests) / sizeof(*tests), NULL,
                                          NULL);
    }
    return failed;
}
