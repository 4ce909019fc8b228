/*
 * verify_check.c - what the comparison of one collection is made of: steps that the loop runs one after the other, queries
 * to either side, waiting for the stream, and what happens when something fails.
 */
#include "repl/verify_priv.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#define PATIENCE_MS 60000      /* of something that fails all the time */
#define LOAD_PATIENCE_MS 600000
#define POLL_MS 20

void check_bound(struct bound *b, const struct row_key *key)
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

void check_leave_part(struct check *k)
{
    repair_release(k);
    suspects_free(&k->suspects);
    xfree(&k->part_name);
    k->part++;
    k->step = check_part;
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
        check_leave_part(k);
    k->step(k);
}

void check_then(struct check *k, check_fn step, unsigned ms)
{
    k->step = step;
    timer_set(&k->timer, ms);
}

struct check *check_new(struct verify *v, struct coll *c)
{
    struct check *k = xcalloc(1, sizeof(*k));

    k->verify = v;
    k->coll = coll_ref(c);
    k->limit = coll_first_rows(c, PAGE_BYTES);
    k->backoff = (struct backoff)BACKOFF_INIT(200, 5000);
    k->ends = xcalloc(c->n_shards ? c->n_shards : 1, sizeof(*k->ends));
    k->ends_args = xcalloc(c->n_shards ? c->n_shards : 1, sizeof(*k->ends_args));
    k->tally.ranges = json_array();
    k->tally.keys = json_array();
    timer_init(&k->timer, v->task->loop, LOOP_PRIO_LOW, on_timer, k);
    check_then(k, check_first, 0);
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
    check_bound(&k->after, NULL);
    check_bound(&k->to, NULL);
    check_bound(&k->page_end, NULL);
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

/* The answer was too large: the next one has fewer rows. False: it has one already. */
static bool ask_for_less(struct check *k)
{
    bool can = k->limit > 1 || k->asked_rows > 1 || k->batch > 1;

    k->limit = (k->limit + 1) / 2;
    k->asked_rows = (k->asked_rows + 1) / 2;
    k->batch = (k->batch + 1) / 2;
    return can;
}

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
    if (err->code == ERR_LIMIT && ask_for_less(k)) {
        check_then(k, k->step, 0);
        return;
    }
    if (err->code == ERR_TIMEOUT)
        (void)ask_for_less(k); /* it may have been too much */
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
                           .since = a->since ? k->since[a->side] : 0};

    name_of(k, a->side, &q.db, &q.collection);
    k->asked = a->side;
    k->answer = a->answer;
    k->query = port->ops->query(port, &q, on_answer, k);
}

static void on_now(void *arg, const struct err *err, uint64_t tt)
{
    struct check *k = arg;

    k->query = NULL;
    if (err && err->code != ERR_UNSUPPORTED) {
        check_trouble(k, err, k->asked == SOURCE ? "asking for the source's time" : "asking for the target's time");
        return;
    }
    went_well(k);
    k->since[k->asked] = err ? 0 : tt;
    check_then(k, k->settled, 0);
}

void check_now(struct check *k, enum side side, check_fn step)
{
    k->asked = side;
    k->settled = step;
    k->query = port_of(k, side)->ops->now(port_of(k, side), on_now, k);
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
