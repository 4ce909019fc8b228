/*
 * repl_rows.h - for test_repl.c: the source's API as a model, and tests of copies (repl/copy.c).
 *
 * A query shows what was written up to some time between the one asked for and the last tick, and waits for a tick that
 * late: so a copy that asks for too early a time misses rows.
 */
static struct rows_faults {
    bool no_clock;            /* it cannot tell its time */
    unsigned queries, too_large, bounded; /* bounded: pages that may not go beyond a key */
    uint64_t most_rows;       /* of an answer */
} rows_model;
static struct repl_copy_room copy_room;
static size_t most_room;
enum { ROWS_TAG = 2 }; /* fields_data of QueryResults */

struct rows_call {
    LIST_ENTRY(rows_call) entry;
    const struct model_coll *coll;
    bool count;
    int64_t from, to; /* keys, both inclusive */
    uint64_t limit, since;
    size_t max_bytes;
    rows_fn done;
    rows_now_fn now_done;
    rows_pairs_fn pairs_done;
    void *arg;
    struct timer timer;
};
static LIST_HEAD(, rows_call) rows_calls;

static void rows_cancel(struct rows_call *c)
{
    if (!c)
        return;
    LIST_REMOVE(c, entry);
    timer_release(&c->timer);
    free(c);
}

/* The value of a key at a time; 0: no row. */
static int64_t value_at(const struct model_coll *c, int shard, int key, uint64_t tt)
{
    int64_t v = 0;
    uint64_t of = 0;

    for (size_t i = 0; i < c->n_inserts[shard][key]; i++)
        if (c->inserts[shard][key][i].insert_tt <= tt && c->inserts[shard][key][i].insert_tt >= of) {
            of = c->inserts[shard][key][i].insert_tt;
            v = c->inserts[shard][key][i].value;
        }
    for (size_t i = 0; i < c->n_deletes[shard][key]; i++)
        if (c->deletes[shard][key][i] <= tt && c->deletes[shard][key][i] > of)
            v = 0;
    return v;
}

static size_t find_rows(const struct rows_call *q, uint64_t tt, int64_t *keys, int64_t *values)
{
    size_t n = 0;

    for (int s = 0; s < (int)q->coll->sc.n_shards; s++)
        for (int k = 0; k < N_KEYS; k++) {
            int64_t key = shard_key(s, k), v = value_at(q->coll, s, k, tt);
            if (!v || key < q->from || key > q->to || (q->limit && n >= q->limit))
                continue;
            keys[n] = key;
            values[n++] = v;
        }
    return n;
}

static void rows_answer(struct rows_call *q, struct pb_out *o, size_t n)
{
    struct rows_call call = *q;
    struct rows_page page = {0};
    struct err err;

    rows_cancel(q);
    if (rnd(100) < fail_percent / 2) {
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "the source is away");
        call.done(call.arg, &err, NULL);
    } else if (call.max_bytes && o->len > call.max_bytes) {
        rows_model.too_large++;
        err_set(&err, ERR_LIMIT, ERRC_RETRY, "the answer is too large");
        call.done(call.arg, &err, NULL);
    } else {
        rows_model.most_rows = n > rows_model.most_rows ? n : rows_model.most_rows;
        page.buf = buf_new(o->len + 1);
        memcpy(page.buf->data, o->data ? o->data : (const uint8_t *)"", o->len);
        page.data = page.buf->data;
        page.len = o->len;
        call.done(call.arg, NULL, &page);
        buf_unref(page.buf);
    }
    pb_out_release(o);
    most_room = copy_room.used > most_room ? copy_room.used : most_room;
}

static void rows_timer(void *arg)
{
    struct rows_call *q = arg;
    int64_t keys[2 * N_KEYS], values[2 * N_KEYS], count;
    struct pb_out o = {0};
    size_t n;

    if (q->now_done) {
        struct rows_call call = *q;
        struct err err;

        rows_cancel(q);
        err_set(&err, ERR_UNSUPPORTED, ERRC_USER, "no such method");
        call.now_done(call.arg, rows_model.no_clock ? &err : NULL, next_tt());
        return;
    }
    if (q->pairs_done) {
        struct rows_call call = *q;
        struct err err;

        rows_cancel(q);
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "the source is away");
        if (!call.coll || rnd(100) < fail_percent / 2)
            call.pairs_done(call.arg, &err, NULL, 0);
        else
            call.pairs_done(call.arg, NULL, call.coll->sc.properties, call.coll->sc.n_properties);
        return;
    }
    if (last_tick < q->since) {
        timer_set(&q->timer, 1);
        return;
    }
    n = find_rows(q, q->since + rnd((unsigned)(last_tick - q->since) + 1), keys, values);
    count = (int64_t)n;
    if (q->count) {
        put_longs(&o, ROWS_TAG, 0, "count(*)", &count, 1);
    } else if (n) {
        put_longs(&o, ROWS_TAG, 101, "value", values, n);
        put_longs(&o, ROWS_TAG, 100, "id", keys, n);
    }
    rows_answer(q, &o, q->count ? 0 : n);
}

static struct rows_call *rows_call_new(void *arg)
{
    struct rows_call *c = xcalloc(1, sizeof(*c));

    c->arg = arg;
    LIST_INSERT_HEAD(&rows_calls, c, entry);
    timer_init(&c->timer, loop, LOOP_PRIO_NORMAL, rows_timer, c);
    timer_set(&c->timer, rnd(2));
    return c;
}

/* "id > 7", "id >= -9-1", either with " and id <= 8", or "". */
static void parse_range(const char *expr, int64_t *ret_from, int64_t *ret_to)
{
    const char *to = strstr(expr, " and id <= ");

    *ret_from = INT64_MIN;
    *ret_to = to ? strtoll(to + 11, NULL, 10) : INT64_MAX;
    if (strncmp(expr, "id > ", 5) == 0)
        *ret_from = strtoll(expr + 5, NULL, 10) + 1;
    else
        assert_true(!*expr || strncmp(expr, "id >= -9223372036854775807-1", 28) == 0);
}

static struct rows_call *rows_query(struct rows_port *p, const struct rows_query *q, rows_fn done, void *arg)
{
    struct rows_call *c = rows_call_new(arg);

    (void)p;
    for (size_t i = 0; i < n_colls; i++)
        if (strcmp(colls[i]->sc.name, q->collection) == 0)
            c->coll = colls[i];
    assert_non_null(c->coll);
    assert_true(!q->partition || strcmp(q->partition, "_default") == 0);
    parse_range(q->expr, &c->from, &c->to);
    c->count = strcmp(q->output, "count(*)") == 0;
    c->limit = q->limit;
    c->max_bytes = q->max_bytes;
    c->since = q->since ? q->since : now_tt;
    assert_int_equal(q->since == 0, rows_model.no_clock);
    c->done = done;
    rows_model.queries++;
    rows_model.bounded += !c->count && c->to != INT64_MAX;
    most_room = copy_room.used > most_room ? copy_room.used : most_room;
    return c;
}

static struct rows_call *rows_now(struct rows_port *p, rows_now_fn done, void *arg)
{
    struct rows_call *c = rows_call_new(arg);

    (void)p;
    c->now_done = done;
    return c;
}

static struct rows_call *rows_properties(struct rows_port *p, const char *db, const char *collection, rows_pairs_fn done,
                                         void *arg)
{
    struct rows_call *c = rows_call_new(arg);

    (void)p;
    (void)db;
    for (size_t i = 0; i < n_colls; i++)
        if (strcmp(colls[i]->sc.name, collection) == 0)
            c->coll = colls[i];
    c->pairs_done = done;
    return c;
}

static const struct rows_ops rows_model_ops = {
    .query = rows_query, .now = rows_now, .properties = rows_properties, .cancel = rows_cancel};
static struct rows_port rows_model_port = {&rows_model_ops};
