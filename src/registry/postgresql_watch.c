/*
 * Beats, requests from daemon to daemon, and what others did. NOTIFY tells at once; what it may have missed is found by
 * looking: after each beat, after a reconnect, and each second while somebody waits.
 *
 * What is told: "t:<task id>" a task changed, "l" leases or daemons changed, "r" a request, "a:<nonce>" its answer.
 */
#include "registry/postgresql_priv.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "registry/seal.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWER_MS = 30000 /* an answer that cannot be stored for so long is of no use any more */ };

struct beat_call {
    LIST_ENTRY(beat_call) entry;
    struct pgreg *r;
    reg_beat_fn done; /* NULL: cancelled */
    void *arg;
    bool sent;
};

struct ask_call {
    LIST_ENTRY(ask_call) entry;
    struct pgreg *r;
    char nonce[33];
    char *key, *body; /* body sealed; NULL once it is stored */
    uint64_t end_ms;
    bool sending, ended; /* ended: the memory waits for the end of sending */
    reg_answer_fn done;
    void *arg;
};

struct answer_call {
    LIST_ENTRY(answer_call) entry;
    int64_t id;
    char *text;
    uint64_t end_ms;
    bool sending;
};

static void look_for_answers(struct pgreg *r);
static void poll_requests(struct pgreg *r);

/* Armed while somebody waits. */
static void arm(struct pgreg *r)
{
    uint64_t now = clock_mono_ms(), ms = PGREG_TICK_MS;
    const struct ask_call *a;

    if (r->q.closed || (LIST_EMPTY(&r->asks) && LIST_EMPTY(&r->answers)))
        return;
    LIST_FOREACH (a, &r->asks, entry)
        if (a->end_ms < now + ms)
            ms = a->end_ms > now ? a->end_ms - now : 0;
    timer_set(&r->tick, ms);
}

/* ---- beats */

static bool parse_beat(const char *text, struct reg_beat *b, json_t **ret_root)
{
    json_t *root = text ? json_loads(text, 0, NULL) : NULL;
    json_t *leases = json_object_get(root, "leases"), *row;
    struct reg_lease *list;
    size_t i;

    *ret_root = root;
    if (!json_is_array(leases))
        return false;
    list = xcalloc(json_array_size(leases) + 1, sizeof(*list));
    json_array_foreach (leases, i, row)
        list[i] = (struct reg_lease){.target_key = (char *)json_string_value(json_array_get(row, 0)),
                                     .epoch = (uint64_t)json_integer_value(json_array_get(row, 1)),
                                     .since_ms = json_integer_value(json_array_get(row, 2))};
    b->leases = list;
    b->n_leases = json_array_size(leases);
    b->daemons = (unsigned)json_integer_value(json_object_get(root, "daemons"));
    b->wanting = (size_t)json_integer_value(json_object_get(root, "wanting"));
    b->next_expiry_ms = json_integer_value(json_object_get(root, "next"));
    return true;
}

static void on_beat(void *arg, const struct err *err, const struct pg_result *res)
{
    struct beat_call *c = arg;
    struct pgreg *r = c->r;
    struct reg_beat b = {0};
    json_t *root = NULL;
    struct err e;

    LIST_REMOVE(c, entry);
    if (!err && !parse_beat(pg_value(res, 0, 0), &b, &root)) {
        err_set(&e, ERR_PROTO, ERRC_RETRY, "registry: PostgreSQL gave a result that cannot be read");
        err = &e;
    }
    if (!err)
        poll_requests(r);
    if (c->done)
        c->done(c->arg, err, err ? NULL : &b);
    free((void *)b.leases);
    json_decref(root);
    free(c);
}

void pgreg_beat(struct registry *base, const char *owner, uint64_t lease_ms, bool want, reg_beat_fn done, void *arg)
{
    struct pgreg *r = pgreg_of(base);
    struct beat_call *c = xcalloc(1, sizeof(*c));
    char ms[24];
    const char *params[3] = {owner, ms, want ? "true" : "false"};

    c->r = r;
    c->done = done;
    c->arg = arg;
    LIST_INSERT_HEAD(&r->beats, c, entry);
    snprintf(ms, sizeof(ms), "%" PRIu64, lease_ms);
    c->sent = r->watching;
    if (c->sent)
        pg_send(r->watch, PGREG_STMT_MS, "SELECT beat($1, $2, $3)", 3, params, on_beat, c);
    else
        timer_set(&r->refuse, 0);
}

static struct beat_call *first_refused(struct pgreg *r)
{
    struct beat_call *c;

    LIST_FOREACH (c, &r->beats, entry)
        if (!c->sent)
            return c;
    return NULL;
}

/* Beats that came while there is no connection. */
static void on_refuse(void *arg)
{
    struct pgreg *r = arg;
    struct beat_call *c;
    struct err err = r->fatal.code ? r->fatal : r->watch_trouble;
    while (!r->q.closed && (c = first_refused(r))) { /* a callback may change the list */
        LIST_REMOVE(c, entry);
        if (c->done)
            c->done(c->arg, &err, NULL);
        free(c);
    }
}

/* ---- asking */

static void ask_free(struct ask_call *a)
{
    if (a->sending && !a->r->q.closed) {
        a->ended = true;
        a->end_ms = UINT64_MAX;
        return;
    }
    LIST_REMOVE(a, entry);
    free(a->key);
    if (a->body)
        explicit_bzero(a->body, strlen(a->body));
    free(a->body);
    free(a);
}

static struct ask_call *find_ask(struct pgreg *r, const char *nonce)
{
    struct ask_call *a;

    LIST_FOREACH (a, &r->asks, entry)
        if (!a->ended && strcmp(a->nonce, nonce) == 0)
            return a;
    return NULL;
}

/* Answered, or nobody waits any more. */
static void withdraw(struct pgreg *r, const char *nonce)
{
    const char *params[1] = {nonce};

    if (r->watching) /* else it goes by its age */
        pg_send(r->watch, PGREG_STMT_MS, "DELETE FROM request WHERE nonce = $1", 1, params, NULL, NULL);
}

static void on_looked(void *arg, const struct err *err, const struct pg_result *res)
{
    struct pgreg *r = arg;
    size_t n = err ? 0 : pg_rows(res);

    for (size_t i = 0; i < n && !r->q.closed; i++) {
        struct ask_call *a = find_ask(r, pg_value(res, i, 0));
        reg_answer_fn done;
        void *done_arg;

        if (!a)
            continue;
        done = a->done;
        done_arg = a->arg;
        withdraw(r, a->nonce);
        ask_free(a);
        done(done_arg, NULL, pg_value(res, i, 1));
    }
}

static void look_for_answers(struct pgreg *r)
{
    char *list = xstrdup("{");
    const struct ask_call *a;
    const char *params[1];

    LIST_FOREACH (a, &r->asks, entry) {
        char *more = xasprintf("%s%s%s", list, list[1] ? "," : "", a->nonce);

        free(list);
        list = more;
    }
    params[0] = list = xrealloc(list, strlen(list) + 2);
    strcat(list, "}");
    if (!LIST_EMPTY(&r->asks) && r->watching)
        pg_send(r->watch, PGREG_STMT_MS,
                "SELECT nonce, answer FROM request WHERE nonce = ANY ($1::text[]) AND answer IS NOT NULL", 1, params,
                on_looked, r);
    free(list);
}

static void on_asked(void *arg, const struct err *err, const struct pg_result *res)
{
    struct ask_call *a = arg;

    (void)res;
    a->sending = false;
    if (a->ended) {
        ask_free(a);
        return;
    }
    if (err)
        return; /* again at the next tick */
    explicit_bzero(a->body, strlen(a->body));
    xfree(&a->body);
}

static void send_ask(struct pgreg *r, struct ask_call *a)
{
    uint64_t now = clock_mono_ms();
    char ms[24];
    const char *params[4] = {a->nonce, a->key, a->body, ms};

    if (!a->body || a->sending || a->ended || !r->watching || a->end_ms <= now)
        return;
    a->sending = true;
    snprintf(ms, sizeof(ms), "%" PRIu64, a->end_ms - now);
    pg_send(r->watch, PGREG_STMT_MS, "SELECT ask($1, $2, $3, $4)", 4, params, on_asked, a);
}

void pgreg_ask(struct registry *base, const char *target_key, const char *body, uint64_t limit_ms, reg_answer_fn done,
               void *arg)
{
    struct pgreg *r = pgreg_of(base);
    struct ask_call *a = xcalloc(1, sizeof(*a));

    a->r = r;
    regq_nonce(a->nonce);
    a->key = xstrdup(target_key);
    a->body = seal_put(r->seal, body);
    a->end_ms = clock_mono_ms() + limit_ms;
    a->done = done;
    a->arg = arg;
    LIST_INSERT_HEAD(&r->asks, a, entry);
    send_ask(r, a);
    arm(r);
}

/* ---- answering */

static void answer_free(struct answer_call *c)
{
    LIST_REMOVE(c, entry);
    free(c->text);
    free(c);
}

static void on_answered(void *arg, const struct err *err, const struct pg_result *res)
{
    struct answer_call *c = arg;

    (void)res;
    c->sending = false;
    if (!err || err->cls != ERRC_RETRY)
        answer_free(c);
}

static void send_answer(struct pgreg *r, struct answer_call *c)
{
    char id[24];
    const char *params[2] = {id, c->text};

    if (c->sending || !r->watching)
        return;
    c->sending = true;
    snprintf(id, sizeof(id), "%" PRId64, c->id);
    pg_send(r->watch, PGREG_STMT_MS, "SELECT give_answer($1, $2)", 2, params, on_answered, c);
}

void pgreg_answer(struct registry *base, int64_t request_id, const char *answer)
{
    struct pgreg *r = pgreg_of(base);
    struct answer_call *c = xcalloc(1, sizeof(*c));

    c->id = request_id;
    c->text = xstrdup(answer);
    c->end_ms = clock_mono_ms() + ANSWER_MS;
    LIST_INSERT_HEAD(&r->answers, c, entry);
    send_answer(r, c);
    arm(r);
}

static void end_ask(struct ask_call *a)
{
    struct pgreg *r = a->r;
    reg_answer_fn done = a->done;
    void *arg = a->arg;
    struct err err;

    err_set(&err, ERR_TIMEOUT, ERRC_RETRY, "no daemon that holds target %s answered in time", a->key);
    withdraw(r, a->nonce);
    ask_free(a);
    done(arg, &err, NULL);
}

/* Ends the first ask whose time is over; false: there is none. */
static bool end_one(struct pgreg *r, uint64_t now)
{
    struct ask_call *a;

    LIST_FOREACH (a, &r->asks, entry) {
        if (a->end_ms <= now) {
            end_ask(a);
            return true;
        }
    }
    return false;
}

static void on_tick(void *arg)
{
    struct pgreg *r = arg;
    uint64_t now = clock_mono_ms();
    struct answer_call *c, *next;
    struct ask_call *a;

    while (!r->q.closed && end_one(r, now))
        ;
    if (r->q.closed)
        return;
    for (c = LIST_FIRST(&r->answers); c; c = next) {
        next = LIST_NEXT(c, entry);
        if (c->end_ms <= now && !c->sending)
            answer_free(c);
        else
            send_answer(r, c);
    }
    LIST_FOREACH (a, &r->asks, entry)
        send_ask(r, a);
    look_for_answers(r);
    arm(r);
}

/* ---- being asked */

static bool was_seen(const struct pgreg *r, int64_t id)
{
    for (size_t i = 0; i < r->n_seen; i++)
        if (r->seen[i] == id)
            return true;
    return false;
}

static void deliver(struct pgreg *r, int64_t id, const char *key, const char *sealed)
{
    struct err err;
    char *body = seal_get(r->seal, sealed, &err);

    if (!body) {
        log_error("registry", "a request of another daemon cannot be read", KS("err", err.text));
        return;
    }
    if (r->cbs.on_request)
        r->cbs.on_request(r->cbs.arg, &(struct reg_request){.id = id, .target_key = key, .body = body});
    explicit_bzero(body, strlen(body));
    free(body);
}

static void on_polled(void *arg, const struct err *err, const struct pg_result *res)
{
    struct pgreg *r = arg;
    size_t n = err ? 0 : pg_rows(res), n_new = 0;
    bool *is_new = xcalloc(n + 1, sizeof(*is_new));
    int64_t *ids = xcalloc(n + 1, sizeof(*ids));

    r->polling = false;
    for (size_t i = 0; i < n; i++) {
        ids[i] = strtoll(pg_value(res, i, 0), NULL, 10);
        is_new[i] = !was_seen(r, ids[i]);
        n_new += is_new[i];
    }
    if (!err) { /* what is not among them is answered or withdrawn */
        free(r->seen);
        r->seen = xcalloc(n + 1, sizeof(*r->seen));
        memcpy(r->seen, ids, n * sizeof(*ids));
        r->n_seen = n;
    }
    for (size_t i = 0; i < n && n_new && !r->q.closed; i++)
        if (is_new[i])
            deliver(r, ids[i], pg_value(res, i, 1), pg_value(res, i, 2));
    free(is_new);
    free(ids);
    if (!r->q.closed && r->poll_again)
        poll_requests(r);
}

static void poll_requests(struct pgreg *r)
{
    const char *params[1] = {r->owner};

    if (!r->cbs.on_request || !r->watching)
        return;
    r->poll_again = r->polling;
    if (r->polling)
        return;
    r->polling = true;
    pg_send(r->watch, PGREG_STMT_MS,
            "SELECT id, target_key, body FROM request r JOIN lease l USING (target_key) WHERE l.owner = $1"
            " AND l.until >= clock_timestamp() AND answer IS NULL AND r.until > clock_timestamp() ORDER BY id",
            1, params, on_polled, r);
}

static void changed(struct pgreg *r)
{
    if (r->cbs.on_task)
        r->cbs.on_task(r->cbs.arg, NULL);
    if (r->cbs.on_lease && !r->q.closed)
        r->cbs.on_lease(r->cbs.arg);
    if (!r->q.closed)
        poll_requests(r);
}

static void on_changed(void *arg)
{
    struct pgreg *r = arg;

    if (r->watching)
        changed(r);
}

void pgreg_watch(struct registry *base, const char *owner, const struct reg_watch *w)
{
    struct pgreg *r = pgreg_of(base);

    set_text(&r->owner, owner);
    r->cbs = w ? *w : (struct reg_watch){0};
    r->n_seen = 0;
    if (w)
        timer_set(&r->look, 0); /* what there is already */
}

/* ---- the connection */

static void on_notify(void *arg, const char *channel, const char *what)
{
    struct pgreg *r = arg;

    (void)channel;
    if (what[0] == 't' && r->cbs.on_task)
        r->cbs.on_task(r->cbs.arg, what[1] == ':' ? what + 2 : NULL);
    else if (what[0] == 'l' && r->cbs.on_lease)
        r->cbs.on_lease(r->cbs.arg);
    else if (what[0] == 'r')
        poll_requests(r);
    else if (what[0] == 'a' && what[1] == ':' && find_ask(r, what + 2))
        look_for_answers(r);
}

static void on_listening(void *arg, const struct err *err, const struct pg_result *res)
{
    struct pgreg *r = arg;

    (void)res;
    if (err) {
        pg_drop(r->watch, err);
        return;
    }
    r->watching = true;
    r->watch_trouble = (struct err){0};
    on_tick(r);
    if (!r->q.closed)
        changed(r);
}

static void on_up(void *arg)
{
    struct pgreg *r = arg;

    pgreg_set_path(r, r->watch);
    pg_send(r->watch, PGREG_STMT_MS, "DO $do$ BEGIN EXECUTE format('LISTEN %I', channel()); END $do$", 0, NULL,
            on_listening, r);
}

static void on_down(void *arg, const struct err *err)
{
    struct pgreg *r = arg;

    r->watching = false;
    r->polling = false;
    r->watch_trouble = *err;
}

int pgreg_watch_open(struct pgreg *r, struct err *err)
{
    static const struct pg_cbs cbs = {.on_up = on_up, .on_down = on_down, .on_notify = on_notify};

    r->watch = pg_open(r->q.loop, &r->pg_options, &cbs, r, err);
    return r->watch ? 0 : err->code;
}

void pgreg_watch_init(struct pgreg *r)
{
    err_set(&r->watch_trouble, ERR_UNAVAILABLE, ERRC_RETRY, "PostgreSQL at %s (registry): not connected yet", r->where);
    LIST_INIT(&r->beats);
    LIST_INIT(&r->asks);
    LIST_INIT(&r->answers);
    timer_init(&r->tick, r->q.loop, LOOP_PRIO_HIGH, on_tick, r);
    timer_init(&r->refuse, r->q.loop, LOOP_PRIO_HIGH, on_refuse, r);
    timer_init(&r->look, r->q.loop, LOOP_PRIO_HIGH, on_changed, r);
}

void pgreg_watch_cancel(struct pgreg *r, void *arg)
{
    struct beat_call *c;
    struct ask_call *a, *next;

    LIST_FOREACH (c, &r->beats, entry)
        if (c->arg == arg)
            c->done = NULL;
    for (a = LIST_FIRST(&r->asks); a; a = next) {
        next = LIST_NEXT(a, entry);
        if (a->arg != arg || a->ended)
            continue;
        withdraw(r, a->nonce);
        ask_free(a);
    }
}

void pgreg_watch_close(struct pgreg *r)
{
    struct beat_call *c;

    pg_close(r->watch);
    r->watching = false;
    timer_release(&r->tick);
    timer_release(&r->refuse);
    timer_release(&r->look);
    while ((c = LIST_FIRST(&r->beats))) {
        LIST_REMOVE(c, entry);
        free(c);
    }
    while (!LIST_EMPTY(&r->asks))
        ask_free(LIST_FIRST(&r->asks));
    while (!LIST_EMPTY(&r->answers))
        answer_free(LIST_FIRST(&r->answers));
}
