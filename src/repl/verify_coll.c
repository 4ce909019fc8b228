/*
 * verify_coll.c - one collection: its rows read on both sides by rising key, then counted.
 *
 * A page of the source decides a range of keys, and the target's rows of that range are asked for. Nothing relies on an
 * order of the target's answer (Milvus Lite gives any rows when there is a limit): an answer that is cut off makes the range
 * smaller. What does not fit goes to verify_look.c; so it does no harm that the two sides are read at different moments.
 *
 * As copy.c does, rows of the range are counted on the source, since equal keys may hide others from a page.
 */
#include "repl/verify_priv.h"

#include <stdlib.h>

#include "base/mem.h"

#define MAX_ROWS 8000          /* the target is asked for twice as many: more than 16384 are refused */
#define BUSY_MS 200
#define COUNT_ROUNDS 6
#define MAX_SHOWN 10           /* ranges in a result */

static void step_page(struct check *k);
static void step_range(struct check *k);

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
    check_then(k, k->verify->o.level == VERIFY_COUNTS ? step_count_source : check_part, 0);
}

static void step_now_target(struct check *k)
{
    k->tt = confirmed_tt(k->coll);
    check_now(k, TARGET, step_begin);
}

static void step_settle(struct check *k)
{
    check_ends(k, true, step_now_target);
}

/* Pages show what the source had by now, and what the target had when it had all of that. */
static void step_now_source(struct check *k)
{
    check_now(k, SOURCE, step_settle);
}

void check_first(struct check *k)
{
    struct err err;

    if (k->coll->state == COLL_ACTIVE) {
        check_then(k, step_now_source, 0);
    } else if (k->coll->copy) {
        check_give_up(k, "its rows from before the task are being copied: verify it when the snapshot is over");
    } else {
        err_set(&err, ERR_STATE, ERRC_RETRY, "%s", k->coll->trouble ? k->coll->trouble : "it is being made there");
        check_trouble(k, &err, "it is not on the target yet");
    }
}

/* ---- pages of the source --------------------------------------------------------------------------------------- */

void check_part(struct check *k)
{
    const char *name;
    int64_t id;

    if (!coll_part_at(k->coll, k->part, &id, &name)) {
        check_then(k, step_count_source, 0);
        return;
    }
    k->part = id;
    set_text(&k->part_name, name);
    check_bound(&k->after, NULL);
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
    k->limit = want < 1 ? 1 : want > MAX_ROWS ? MAX_ROWS : want;
}

/* The page is complete: its range begins. last: it has no end. */
static void take_page(struct check *k, bool last)
{
    k->careful = k->as_it_is = false;
    k->page_last = last;
    k->at = 0;
    k->split = false;
    check_bound(&k->page_end, last ? NULL : &k->page.rows[k->page.n - 1].key);
    check_bound(&k->to, last ? NULL : &k->page.rows[k->page.n - 1].key);
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
                     .side = SOURCE, .since = true, .expr = expr, .output = "count(*)", .answer = on_page_counted});
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
                               .since = true,
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
        check_bound(&k->to, &target.rows[(target.n - 1) / 2].key);
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
                               .since = true,
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
        check_bound(&k->after, &k->to.key);
    if (k->split) {
        k->split = false;
        check_bound(&k->to, k->page_end.set ? &k->page_end.key : NULL);
        check_then(k, step_range, 0);
    } else if (!k->page_last) {
        check_then(k, step_page, 0);
    } else if (k->part == ALL_PARTS) {
        check_then(k, step_count_source, 0);
    } else {
        check_leave_part(k);
        check_then(k, check_part, 0);
    }
}
