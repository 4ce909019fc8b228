/*
 * verify_look.c - rows that seem to differ, looked at again by their keys.
 *
 * A look reads the rows on the source, waits until the target has everything that the source had written by then, and reads
 * them there. What is equal is no suspect any more. What looked the same SAME times is a difference: an Upsert may be half
 * done on an ordinary target (a Delete, then an Insert), so two looks are not enough. A row that changes all the time is
 * neither; it is counted as unsettled. So rows are read whole, also when only keys count: their values tell a key that was
 * deleted and written again.
 */
#include "repl/verify_priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/pbwire.h"

#define BATCH_KEYS 2048
#define BATCH_ROWS 256
#define BATCH_BYTES (4u << 20)
#define SAME 3
#define MAX_LOOKS 12
#define MAX_REPAIRS 3
#define MAX_SHOWN 10      /* keys in a result */
#define SHOWN_BYTES 200   /* of a key */

/* ---- the list ------------------------------------------------------------------------------------------- */

void suspects_add(struct suspects *l, const struct row_key *key, const struct row *source, const struct row *target)
{
    struct suspect *s;

    if (l->n == l->cap)
        l->v = xrealloc(l->v, (l->cap = l->cap ? 2 * l->cap : 64) * sizeof(*l->v));
    s = &l->v[l->n++];
    *s = (struct suspect){.key = row_key_dup(key), .has = {source != NULL, target != NULL}, .looks = 1, .same = 1};
    if (source)
        s->hash[SOURCE] = source->hash;
    if (target)
        s->hash[TARGET] = target->hash;
}

void suspects_free(struct suspects *l)
{
    for (size_t i = 0; i < l->n; i++)
        row_key_release(&l->v[i].key);
    free(l->v);
    *l = (struct suspects){0};
}

static struct suspect *batch_at(const struct check *k, size_t i)
{
    return &k->suspects.v[k->done + i];
}

/* Those that are equal leave. */
static void acquit(struct check *k)
{
    struct suspects *l = &k->suspects;
    size_t kept = k->done, end = k->done + k->batch;

    for (size_t i = k->done; i < end; i++) {
        if (l->v[i].equal) {
            k->tally.repaired += l->v[i].repairs > 0;
            row_key_release(&l->v[i].key);
        } else {
            l->v[kept++] = l->v[i];
        }
    }
    memmove(l->v + kept, l->v + end, (l->n - end) * sizeof(*l->v));
    l->n -= end - kept;
    k->batch = kept - k->done;
}

/* ---- asking ----------------------------------------------------------------------------------------------- */

char *look_expr(const struct check *k, bool (*wanted)(const struct check *k, const struct suspect *s), size_t *ret_n)
{
    struct pb_out o = {0};
    char *expr;

    *ret_n = 0;
    pb_out_raw(&o, k->coll->pk_name, strlen(k->coll->pk_name));
    for (size_t i = 0; i < k->batch; i++) {
        const struct suspect *s = batch_at(k, i);
        char *key;

        if (wanted && !wanted(k, s))
            continue;
        key = row_key_text(&s->key);
        pb_out_raw(&o, *ret_n ? "," : " in [", *ret_n ? 1 : 5);
        ++*ret_n;
        pb_out_raw(&o, key, strlen(key));
        free(key);
    }
    pb_out_raw(&o, "]", 1);
    expr = xstrndup((const char *)o.data, o.len);
    pb_out_release(&o);
    return expr;
}

static void ask(struct check *k, enum side side, void (*answer)(struct check *k, const struct rows_page *page))
{
    size_t n;
    char *expr = look_expr(k, NULL, &n);

    check_ask(k, &(struct ask){.side = side, .expr = expr, .output = "*", .answer = answer});
    free(expr);
}

static void step_target(struct check *k);

static void step_settle(struct check *k)
{
    check_ends(k, true, step_target);
}

static void on_source(struct check *k, const struct rows_page *page)
{
    row_page_release(&k->seen);
    if (check_rows(k, page, &k->seen))
        check_then(k, step_settle, 0);
}

static void step_source(struct check *k)
{
    ask(k, SOURCE, on_source);
}

/* ---- judging ------------------------------------------------------------------------------------------------ */

static void look_at(struct suspect *s, enum verify_level level, const struct row *source, const struct row *target)
{
    const struct row *rows[N_SIDES] = {source, target};
    bool same = true;

    for (enum side i = SOURCE; i < N_SIDES; i++) {
        struct row_hash h = rows[i] ? rows[i]->hash : (struct row_hash){0};

        same = same && s->has[i] == (rows[i] != NULL) && row_hash_equal(s->hash[i], h);
        s->has[i] = rows[i] != NULL;
        s->hash[i] = h;
    }
    s->looks++;
    s->same = same ? s->same + 1 : 1;
    s->equal = s->has[SOURCE] == s->has[TARGET] &&
               (level == VERIFY_KEYS || row_hash_equal(s->hash[SOURCE], s->hash[TARGET]));
}

static bool is_judged(const struct suspect *s)
{
    return s->same >= SAME || s->looks >= MAX_LOOKS;
}

static const char *verdict(struct check *k, const struct suspect *s)
{
    struct tally *t = &k->tally;

    if (s->same < SAME) {
        t->unsettled++;
        return NULL;
    }
    if (s->has[SOURCE] && s->has[TARGET]) {
        t->different++;
        return "different";
    }
    if (s->has[SOURCE]) {
        t->missing++;
        return "missing";
    }
    t->extra++;
    return "extra";
}

static void show(struct check *k, const struct suspect *s, const char *what)
{
    size_t len = s->key.len < SHOWN_BYTES ? s->key.len : SHOWN_BYTES;
    json_t *key;

    if (!what || json_array_size(k->tally.keys) >= MAX_SHOWN)
        return;
    while (s->key.text && len < s->key.len && len > 0 && (s->key.text[len] & 0xc0) == 0x80)
        len--; /* not inside a character */
    key = s->key.text ? json_stringn((const char *)s->key.text, len) : json_integer(s->key.number);
    json_array_append_new(k->tally.keys, json_pack("{s:o, s:s}", "key", key ? key : json_null(), "what", what));
}

static void step_batch(struct check *k);

static void batch_judged(struct check *k)
{
    bool repair = false;

    for (size_t i = 0; i < k->batch; i++)
        repair |= repair_wanted(k, batch_at(k, i));
    if (repair) {
        check_then(k, repair_begin, 0);
        return;
    }
    for (size_t i = 0; i < k->batch; i++)
        show(k, batch_at(k, i), verdict(k, batch_at(k, i)));
    k->done += k->batch;
    check_then(k, step_batch, 0);
}

static void on_target(struct check *k, const struct rows_page *page)
{
    struct row_page target;
    bool judged = true;

    if (!check_rows(k, page, &target))
        return;
    for (size_t i = 0; i < k->batch; i++) {
        struct suspect *s = batch_at(k, i);

        look_at(s, k->verify->o.level, row_page_find(&k->seen, &s->key), row_page_find(&target, &s->key));
        judged &= s->equal || is_judged(s);
    }
    acquit(k);
    row_page_release(&target);
    if (judged)
        batch_judged(k);
    else
        check_then(k, step_source, 0);
}

static void step_target(struct check *k)
{
    ask(k, TARGET, on_target);
}

/* ---- batches -------------------------------------------------------------------------------------------------- */

static void step_batch(struct check *k)
{
    size_t most = BATCH_BYTES / (k->row_bytes ? k->row_bytes : 1), left = k->suspects.n - k->done;

    if (left == 0) {
        suspects_free(&k->suspects);
        check_range_over(k);
        return;
    }
    if (k->verify->o.level == VERIFY_KEYS)
        most = BATCH_ROWS; /* of a size that is not known */
    most = most < 1 ? 1 : most > BATCH_KEYS ? BATCH_KEYS : most;
    k->batch = left < most ? left : most;
    check_then(k, step_source, 0);
}

void look_begin(struct check *k)
{
    k->done = k->batch = 0;
    check_then(k, step_batch, 0);
}

void look_again(struct check *k)
{
    for (size_t i = 0; i < k->batch; i++) {
        struct suspect *s = batch_at(k, i);

        if (!repair_wanted(k, s))
            continue;
        s->repairs++;
        s->looks = s->same = 0;
    }
    check_then(k, step_source, 0);
}

bool repair_wanted(const struct check *k, const struct suspect *s)
{
    return k->verify->o.repair && s->same >= SAME && s->repairs < MAX_REPAIRS;
}
