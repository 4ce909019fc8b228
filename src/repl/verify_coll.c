/*
 * verify_coll.c - one collection: its rows read on both sides by rising key, then counted.
 *
 * A page of the source decides a range of keys, and the target's rows of that range are asked for. Nothing relies on an order
 * of the target's answer (Milvus Lite gives any rows when there is a limit): an answer that is cut off makes the range
 * smaller. What does not fit goes to verify_look.c; so it does no harm that the two sides are read at different moments.
 *
 * As copy.c does, rows of the range are counted on the source, since equal keys may hide others from a page.
 */
#include "repl/verify_priv.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#define PAGE_BYTES (2u << 20)   /* a page is hashed in one turn of the loop */
#define FIRST_ROWS 500
#define MIN_ROWS 16
#define MAX_ROWS 8000          /* the target is asked for twice as many: more than 16384 are refused */
#define PATIENCE_MS 60000      /* of something that fails all the time */
#define LOAD_PATIENCE_MS 600000
#define POLL_MS 20
#define BUSY_MS 200
#define COUNT_ROUNDS 6
#define MAX_SHOWN 10           /* ranges in a result */

static void step_page(struct check *k);
static void step_range(struct check *k);
static void step_part(struct check *k);

static void bound_set(struct bound *b, const struct row_key *key)
{
    struct row_key copy = key ? row_key_dup(key) : (struct row_key){0};

    row_key_release(&b->key);
    *b = (struct bound){key != NULL, copy};
}

/* ---- life ------------------------------------------------------------------------------------------- */

static bool is_over(const struct coll *c)
{
    return c->state == COLL_DROPPING || c->state == COLL_GONE || c->src_dropping;
}

/* Dropped: its rows are nobody's. */
static bool part_is_gone(const struct check *k)
{
    return k->part_name && !coll_part_alive(k->coll, k->part);
}

static void leave_part(struct check *k)
{
    repair_release(k);
    suspects_free(&k->suspects);
    xfree(&k->part_name);
    k->part++;
    k->step = step_part;
}

static void on_timer(void *arg)
{
    struct check *k = arg;
    struct verify *v = k->verify;

    if (v->cancelled && !k->holding) {
        verify_next(v, "cancelled", false);
        return;
    }
    if (is_over(k->coll)) {
        verify_next(v, NULL, false); /* dropped too */
        return;
    }
    if (part_is_gone(k))
        leave_part(k);
    k->step(k);
}

void check_then(struct check *k, check_fn step, unsigned ms)
{
    k->step = step;
    timer_set(&k->timer, ms);
}

static void step_first(struct check *k);

struct check *check_new(struct verify *v, struct coll *c)
{
    struct check *k = xcalloc(1, sizeof(*k));

    k->verify = v;
    k->coll = coll_ref(c);
    k->limit = FIRST_ROWS;
    k->backoff = (struct backoff)BACKOFF_INIT(200, 5000);
    k->ends = xcalloc(c->n_shards ? c->n_shards : 1, sizeof(*k->ends));
    k->ends_args = xcalloc(c->n_shards ? c->n_shards : 1, sizeof(*k->ends_args));
    k->tally.ranges = json_array();
    k->tally.keys = json_array();
    timer_init(&k->timer, v->task->loop, LOOP_PRIO_LOW, on_timer, k);
    check_then(k, step_first, 0);
    return k;
}

static struct rows_port *port_of(const struct check *k, enum side side)
{
    return side == SOURCE ? k->verify->task->o.rows : k->verify->o.rows;
}

static void name_of(const struct check *k, enum side side, const char **ret_db, const char **ret_name)
{
    const struct coll *c = k->coll;

    *ret_db = side == SOURCE ? c->db : c->dst_db;
    *ret_name = side == SOURCE ? c->name : c->dst_name;
}

static void on_released(void *arg, const struct err *err, const struct rows_page *page)
{
    struct check *k = arg;

    (void)page;
    k->query = NULL;
    if (err)
        log_warn("repl", "what was loaded for a comparison is still loaded", KS("task", k->verify->task->o.id),
                 KS("collection", k->coll->name), KS("error", err->text));
    if (!check_unload(k))
        verify_unloaded(k->verify);
}

bool check_unload(struct check *k)
{
    const char *db, *name;

    for (enum side s = SOURCE; s < N_SIDES; s++) {
        if (!k->loaded_by_us[s])
            continue;
        k->loaded_by_us[s] = false;
        k->asked = s;
        name_of(k, s, &db, &name);
        k->query = port_of(k, s)->ops->load(port_of(k, s), db, name, false, on_released, k);
        return true;
    }
    return false;
}

void check_free(struct check *k)
{
    struct wal_port *w;

    if (!k)
        return;
    w = k->verify->task->o.wal;
    if (k->query)
        port_of(k, k->asked)->ops->cancel(k->query);
    for (size_t i = 0; i < k->coll->n_shards; i++)
        w->ops->end_cancel(w, &k->ends_args[i]);
    repair_release(k);
    timer_release(&k->timer);
    row_page_release(&k->page);
    row_page_release(&k->seen);
    bound_set(&k->after, NULL);
    bound_set(&k->to, NULL);
    bound_set(&k->page_end, NULL);
    suspects_free(&k->suspects);
    free(k->part_name);
    json_decref(k->tally.ranges);
    json_decref(k->tally.keys);
    free(k->ends);
    free(k->ends_args);
    coll_unref(k->coll);
    free(k);
}

json_t *check_json(const struct check *k, const char *state, const char *reason)
{
    const struct tally *t = &k->tally;
    json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "db", k->coll->db, "name", k->coll->name,
                          "state", state, "rows", (json_int_t)t->rows, "rows_source", (json_int_t)t->counts[SOURCE],
                          "rows_target", (json_int_t)t->counts[TARGET], "missing", (json_int_t)t->missing, "extra",
                          (json_int_t)t->extra, "different", (json_int_t)t->different, "time_tick", (json_int_t)k->tt);

    if (reason)
        json_object_set_new(o, "reason", json_string(reason));
    if (t->repaired)
        json_object_set_new(o, "repaired", json_integer((json_int_t)t->repaired));
    if (t->unsettled)
        json_object_set_new(o, "unsettled", json_integer((json_int_t)t->unsettled));
    if (t->equal_keys)
        json_object_set_new(o, "equal_keys", json_integer((json_int_t)t->equal_keys));
    if (json_array_size(t->ranges))
        json_object_set(o, "ranges", t->ranges);
    if (json_array_size(t->keys))
        json_object_set(o, "keys", t->keys);
    return o;
}

/* ---- trouble ------------------------------------------------------------------------------------------ */

void check_give_up(struct check *k, const char *reason)
{
    verify_next(k->verify, reason, false);
}

bool check_is_tired(struct check *k)
{
    uint64_t now = clock_mono_ms();

    if (!k->trouble_ms)
        k->trouble_ms = now;
    return now - k->trouble_ms > (k->loading[SOURCE] || k->loading[TARGET] ? LOAD_PATIENCE_MS : PATIENCE_MS);
}

void check_trouble(struct check *k, const struct err *err, const char *what)
{
    char reason[sizeof(err->text) + 100];

    snprintf(reason, sizeof(reason), "%s: %s", what, err->text);
    if (err->cls != ERRC_RETRY || check_is_tired(k)) {
        check_give_up(k, reason);
        return;
    }
    log_warn("repl", "the verification has to wait", KS("task", k->verify->task->o.id), KS("collection", k->coll->name),
             KS("error", reason));
    check_then(k, k->step, backoff_next_ms(&k->backoff));
}

static void went_well(struct check *k)
{
    k->trouble_ms = 0;
    k->backoff.cur_ms = 0;
    k->loading[k->asked] = false;
}

static void on_loaded(void *arg, const struct err *err, const struct rows_page *page)
{
    struct check *k = arg;

    (void)page;
    k->query = NULL;
    if (err) {
        check_give_up(k, err->text);
        return;
    }
    k->loaded_by_us[k->asked] = true;
    check_then(k, k->step, backoff_next_ms(&k->backoff)); /* it takes a while */
}

static void not_loaded(struct check *k, const struct err *err)
{
    bool may = k->verify->o.load && (k->asked == SOURCE || k->verify->task->o.hub->portable);
    struct rows_port *port = port_of(k, k->asked);
    const char *db, *name;

    if (k->loading[k->asked]) {
        check_trouble(k, err, "loading it");
        return;
    }
    if (!may) {
        check_give_up(k, k->asked == SOURCE ? "not loaded on the source: load it there, or ask with \"load\": true"
                         : k->verify->task->o.hub->portable
                             ? "not loaded on the target: load it there, or ask with \"load\": true"
                             : "not loaded on the target, and a standby loads what its source loads: load it on the source");
        return;
    }
    k->loading[k->asked] = true;
    name_of(k, k->asked, &db, &name);
    k->query = port->ops->load(port, db, name, true, on_loaded, k);
}

/* ---- questions ------------------------------------------------------------------------------------------ */

static void on_answer(void *arg, const struct err *err, const struct rows_page *page)
{
    struct check *k = arg;
    struct err e;

    k->query = NULL;
    if (!err) {
        went_well(k);
        k->answer(k, page);
        return;
    }
    if (k->holding)
        repair_release(k);
    if (err->code == ERR_STATE) {
        not_loaded(k, err);
        return;
    }
    if (k->limit > MIN_ROWS)
        k->limit /= 2; /* it may have been too much */
    e = *err;
    if (e.code == ERR_NOT_FOUND)
        e.cls = ERRC_RETRY; /* etcd's news will tell */
    check_trouble(k, &e, k->asked == SOURCE ? "reading on the source" : "reading on the target");
}

void check_ask(struct check *k, const struct ask *a)
{
    struct rows_port *port = port_of(k, a->side);
    struct rows_query q = {.partition = a->all ? NULL : k->part_name,
                           .expr = a->expr,
                           .output = a->output,
                           .limit = a->limit,
                           .careful = a->careful,
                           .eventual = a->eventual};

    name_of(k, a->side, &q.db, &q.collection);
    k->asked = a->side;
    k->answer = a->answer;
    k->query = port->ops->query(port, &q, on_answer, k);
}

bool check_rows(struct check *k, const struct rows_page *page, struct row_page *ret)
{
    struct err err;

    if (row_page_read(ret, page->buf, page->data, page->len, k->coll->pk_name, &err) == 0)
        return true;
    check_give_up(k, err.text);
    return false;
}

const char *check_output(const struct check *k)
{
    return k->verify->o.level == VERIFY_ROWS ? "*" : k->coll->pk_name;
}

/* ---- waiting for the stream -------------------------------------------------------------------------------- */

/* Has the target all up to the ends? */
static void step_wait(struct check *k)
{
    for (size_t i = 0; i < k->coll->n_shards; i++) {
        const struct link *l = k->coll->shards[i].link;

        if (!l || wal_pos_cmp(l->done, k->ends[i]) < 0) {
            check_then(k, step_wait, POLL_MS);
            return;
        }
    }
    check_then(k, k->settled, 0);
}

static void on_end(void *arg, const struct err *err, bool found, struct wal_pos last)
{
    struct check_end *e = arg;
    struct check *k = e->check;
    struct wal_port *w = k->verify->task->o.wal;

    k->ends_open--;
    if (err) {
        for (size_t i = 0; i < k->coll->n_shards; i++)
            w->ops->end_cancel(w, &k->ends_args[i]);
        k->ends_open = 0;
        if (k->holding)
            repair_release(k);
        check_trouble(k, err, "asking for the end of the source's log");
        return;
    }
    k->ends[e->shard] = found ? last : WAL_POS_NONE;
    if (k->ends_open == 0)
        check_then(k, k->wait ? step_wait : k->settled, 0);
}

void check_ends(struct check *k, bool wait, check_fn step)
{
    struct wal_port *w = k->verify->task->o.wal;

    k->wait = wait;
    k->settled = step;
    k->ends_open = k->coll->n_shards;
    for (size_t i = 0; i < k->coll->n_shards; i++) {
        k->ends_args[i] = (struct check_end){k, i};
        w->ops->end(w, k->coll->shards[i].pchannel, on_end, &k->ends_args[i]);
    }
}

/* ---- counts ------------------------------------------------------------------------------------------------- */

static void step_count_target(struct check *k);
static void step_count_again(struct check *k);

static void count(struct check *k, enum side side, void (*answer)(struct check *k, const struct rows_page *page))
{
    check_ask(k, &(struct ask){.side = side, .all = true, .expr = "", .output = "count(*)", .answer = answer});
}

static void step_settle_count(struct check *k)
{
    check_ends(k, true, step_count_target);
}

static void on_count_source(struct check *k, const struct rows_page *page)
{
    k->low = k->high = k->tally.counts[SOURCE] = msg_page_count(page->data, page->len);
    check_then(k, step_settle_count, 0);
}

static void step_count_source(struct check *k)
{
    count(k, SOURCE, on_count_source);
}

/* The time up to which all is confirmed on its channels. */
static uint64_t confirmed_tt(const struct coll *c)
{
    uint64_t tt = UINT64_MAX;

    for (size_t i = 0; i < c->n_shards; i++)
        if (c->shards[i].link && c->shards[i].link->done_tt < tt)
            tt = c->shards[i].link->done_tt;
    return tt == UINT64_MAX ? 0 : tt;
}

static void on_count_target(struct check *k, const struct rows_page *page)
{
    k->tally.counts[TARGET] = msg_page_count(page->data, page->len);
    check_then(k, step_count_again, 0);
}

static void step_count_target(struct check *k)
{
    count(k, TARGET, on_count_target);
}

/* While rows come and go, the target's number lies between two of the source's, at least now and then. */
static void on_count_again(struct check *k, const struct rows_page *page)
{
    uint64_t n = msg_page_count(page->data, page->len), target = k->tally.counts[TARGET];

    k->low = n < k->low ? n : k->low;
    k->high = n > k->high ? n : k->high;
    k->tally.counts[SOURCE] = n;
    k->counts_differ = target < k->low || target > k->high;
    if (k->counts_differ && ++k->count_rounds < COUNT_ROUNDS) {
        k->low = k->high = n;
        check_then(k, step_settle_count, 0);
    } else {
        verify_next(k->verify, NULL, true);
    }
}

static void step_count_again(struct check *k)
{
    count(k, SOURCE, on_count_again);
}

static void step_begin(struct check *k)
{
    k->tt = confirmed_tt(k->coll);
    check_then(k, k->verify->o.level == VERIFY_COUNTS ? step_count_source : step_part, 0);
}

static void step_first(struct check *k)
{
    struct err err;

    if (k->coll->state == COLL_ACTIVE) {
        check_ends(k, true, step_begin);
    } else if (k->coll->copy) {
        check_give_up(k, "its rows from before the task are being copied: verify it when the snapshot is over");
    } else {
        err_set(&err, ERR_STATE, ERRC_RETRY, "%s", k->coll->trouble ? k->coll->trouble : "it is being made there");
        check_trouble(k, &err, "it is not on the target yet");
    }
}

/* ---- pages of the source --------------------------------------------------------------------------------------- */

static void step_part(struct check *k)
{
    const char *name;
    int64_t id;

    if (!coll_part_at(k->coll, k->part, &id, &name)) {
        check_then(k, step_count_source, 0);
        return;
    }
    k->part = id;
    set_text(&k->part_name, name);
    bound_set(&k->after, NULL);
    check_then(k, step_page, 0);
}

static char *range_expr(const struct check *k, const struct bound *to)
{
    char *after = k->after.set ? row_key_text(&k->after.key) : NULL, *last = to->set ? row_key_text(&to->key) : NULL;
    char *expr = coll_key_expr(k->coll, after, last);

    free(after);
    free(last);
    return expr;
}

static void adapt(struct check *k, size_t bytes)
{
    uint64_t want;

    k->row_bytes = bytes / k->page.n + 1;
    want = PAGE_BYTES / k->row_bytes;
    k->limit = want < MIN_ROWS ? MIN_ROWS : want > MAX_ROWS ? MAX_ROWS : want;
}

/* The page is complete: its range begins. last: it has no end. */
static void take_page(struct check *k, bool last)
{
    k->careful = k->as_it_is = false;
    k->page_last = last;
    k->at = 0;
    k->split = false;
    bound_set(&k->page_end, last ? NULL : &k->page.rows[k->page.n - 1].key);
    bound_set(&k->to, last ? NULL : &k->page.rows[k->page.n - 1].key);
    check_then(k, step_range, 0);
}

static void on_page_counted(struct check *k, const struct rows_page *page)
{
    uint64_t n = msg_page_count(page->data, page->len), rows = k->page.n;

    if (n > rows && n >= k->asked_rows && !k->as_it_is) {
        k->careful = true;
        row_page_release(&k->page);
        check_then(k, step_page, 0);
        return;
    }
    k->excess += n > rows ? n - rows : 0;
    take_page(k, rows < k->asked_rows);
}

static void step_page_count(struct check *k)
{
    struct bound last = {true, k->page.rows[k->page.n - 1].key};
    char *expr = range_expr(k, &last);

    check_ask(k, &(struct ask){
                     .side = SOURCE, .eventual = true, .expr = expr, .output = "count(*)", .answer = on_page_counted});
    free(expr);
}

static void on_page(struct check *k, const struct rows_page *page)
{
    row_page_release(&k->page);
    if (!check_rows(k, page, &k->page))
        return;
    if (k->page.n == 0 && k->careful) {
        k->careful = false;
        k->as_it_is = true; /* the careful way gave nothing */
        check_then(k, step_page, 0);
    } else if (k->page.n == 0) {
        take_page(k, true);
    } else {
        adapt(k, page->len);
        if (k->careful)
            take_page(k, false);
        else
            check_then(k, step_page_count, 0);
    }
}

/* Rows wait to be sent: they go first. */
static bool stream_is_busy(const struct check *k)
{
    for (size_t i = 0; i < k->coll->n_shards; i++) {
        const struct link *l = k->coll->shards[i].link;

        if (l && l->tchan->queue_bytes > l->tchan->hub->channel_bytes / 2)
            return true;
    }
    return false;
}

static void step_page(struct check *k)
{
    char *expr;

    if (stream_is_busy(k)) {
        check_then(k, step_page, BUSY_MS);
        return;
    }
    k->asked_rows = k->limit;
    expr = range_expr(k, &(struct bound){0});
    check_ask(k, &(struct ask){.side = SOURCE,
                               .careful = k->careful,
                               .expr = expr,
                               .output = check_output(k),
                               .limit = k->asked_rows,
                               .answer = on_page});
    free(expr);
}

/* ---- the target's rows of the range ------------------------------------------------------------------------------ */

static bool in_range(const struct check *k, const struct row *r)
{
    return !k->to.set || row_key_cmp(&r->key, &k->to.key) <= 0;
}

/* Both by rising key. */
static void merge(struct check *k, const struct row_page *target)
{
    const struct row *s = k->page.rows + k->at, *s_end = k->page.rows + k->page.n;
    const struct row *t = target->rows, *t_end = t + target->n;

    while (t < t_end || (s < s_end && in_range(k, s))) {
        bool has_s = s < s_end && in_range(k, s), has_t = t < t_end;
        int c = !has_s ? 1 : !has_t ? -1 : row_key_cmp(&s->key, &t->key);

        if (c != 0 || !row_hash_equal(s->hash, t->hash))
            suspects_add(&k->suspects, c <= 0 ? &s->key : &t->key, c <= 0 ? s : NULL, c >= 0 ? t : NULL);
        k->tally.rows += c <= 0;
        s += c <= 0;
        t += c >= 0;
    }
    k->at = (size_t)(s - k->page.rows);
}

static uint64_t range_limit(const struct check *k)
{
    return 2 * k->asked_rows;
}

static void on_range(struct check *k, const struct rows_page *page)
{
    struct row_page target;
    uint64_t rows = k->tally.rows;

    if (!check_rows(k, page, &target))
        return;
    if (target.n >= range_limit(k)) { /* it may have more: half of the range */
        bound_set(&k->to, &target.rows[target.n / 2].key);
        k->split = true;
        check_then(k, step_range, 0);
    } else {
        k->before = k->tally;
        merge(k, &target);
        k->verify->rows += k->tally.rows - rows;
        look_begin(k);
    }
    row_page_release(&target);
}

static void step_range(struct check *k)
{
    char *expr = range_expr(k, &k->to);

    check_ask(k, &(struct ask){.side = TARGET,
                               .expr = expr,
                               .output = check_output(k),
                               .limit = range_limit(k),
                               .answer = on_range});
    free(expr);
}

static void show_range(struct check *k)
{
    const struct tally *a = &k->before, *b = &k->tally;
    char *after = k->after.set ? row_key_text(&k->after.key) : NULL, *to = k->to.set ? row_key_text(&k->to.key) : NULL;

    if (json_array_size(b->ranges) < MAX_SHOWN &&
        (a->missing != b->missing || a->extra != b->extra || a->different != b->different))
        json_array_append_new(b->ranges,
                              json_pack("{s:s*, s:s*, s:s*, s:I, s:I, s:I}", "partition", k->part_name, "after", after, "to",
                                        to, "missing", (json_int_t)(b->missing - a->missing), "extra",
                                        (json_int_t)(b->extra - a->extra), "different",
                                        (json_int_t)(b->different - a->different)));
    free(after);
    free(to);
}

void check_range_over(struct check *k)
{
    show_range(k);
    verify_progress(k->verify);
    if (k->to.set)
        bound_set(&k->after, &k->to.key);
    if (k->split) {
        k->split = false;
        bound_set(&k->to, k->page_end.set ? &k->page_end.key : NULL);
        check_then(k, step_range, 0);
    } else if (!k->page_last) {
        check_then(k, step_page, 0);
    } else if (k->part == ALL_PARTS) {
        check_then(k, step_count_source, 0);
    } else {
        leave_part(k);
        check_then(k, step_part, 0);
    }
}
