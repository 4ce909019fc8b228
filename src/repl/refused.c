/*
 * refused.c - requests that an ordinary Milvus did not take, and certainly wrote nothing of: they are sent again.
 *
 * A rate limit, a quota, memory that is short: after a wait, in smaller batches, which grow again slowly. Too large: at once,
 * divided, and no larger ones are made on this channel any more. The request keeps its place among those in flight, and its
 * parts stand there too, so that what is confirmed stays without gaps; later requests wait behind.
 *
 * (A standby's requests are read again from the log: they carry times that would be too old after a wait.)
 */
#include "repl/priv.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

/* Of a full batch: the smallest that a refusal leads to. */
#define LEAST_PART 64

/* Nothing is divided into less than that: requests have a head, too. */
#define LEAST_BYTES 1024

static bool rate_limited(const struct err *err)
{
    return err->code == ERR_LIMIT && err->cls == ERRC_RETRY;
}

static size_t at_least(size_t bytes, size_t least)
{
    return bytes > least ? bytes : least;
}

static void shrink_batch(struct tchan *tc, size_t bytes)
{
    size_t half = (bytes < tc->batch_bytes ? bytes : tc->batch_bytes) / 2;

    tc->batch_bytes = at_least(half, tc->hub->batch_bytes / LEAST_PART);
}

void refused_recover(struct tchan *tc)
{
    tc->batch_bytes += tc->batch_bytes / 16 + 1;
    if (tc->batch_bytes > tc->hub->batch_bytes)
        tc->batch_bytes = tc->hub->batch_bytes;
}

/* A message that is larger than a whole batch goes as it is, unless the target showed that it wants less. */
static size_t largest(const struct tchan *tc)
{
    size_t bytes = tc->batch_bytes < tc->hub->batch_bytes ? tc->batch_bytes : SIZE_MAX;

    return bytes < tc->most_bytes ? bytes : tc->most_bytes;
}

/* r's first part, in front of it. */
static struct request *divide(struct tchan *tc, struct request *r)
{
    size_t before = r->bytes;
    struct request *part = portable_split(r);

    if (!part)
        return NULL;
    part->waiting = true;
    TAILQ_INSERT_BEFORE(r, part, entry);
    tc->flying_bytes += part->bytes + r->bytes - before;
    return part;
}

void refused_fit(struct tchan *tc)
{
    struct request *r, *part;

    TAILQ_FOREACH(r, &tc->flying, entry)
        while (r->waiting && r->bytes > largest(tc) && (part = divide(tc, r)))
            r = part; /* and when it is small enough, what is left */
}

bool refused_hold(struct request *r, const struct err *err)
{
    struct tchan *tc = r->tchan;
    bool too_large = err->code == ERR_TOO_LARGE;

    if (!tc->hub->portable || (!rate_limited(err) && !(too_large && r->rows > 1)))
        return false;
    if (too_large)
        tc->most_bytes = at_least(r->bytes / 2, LEAST_BYTES);
    else
        shrink_batch(tc, r->bytes);
    log_warn("repl", "the target refuses a request for now", KS("channel", tc->name), KU("bytes", r->bytes),
             KU("next_bytes", largest(tc)), KS("error", err->text));
    if (too_large && !divide(tc, r))
        return false;
    r->waiting = true;
    refused_fit(tc);
    if (!too_large) {
        set_text(&tc->trouble, err->text);
        timer_set(&tc->retry_timer, backoff_next_ms(&tc->backoff));
    }
    return true;
}

/* The target has it when nobody needs it, or when all of it was dropped meanwhile. */
static bool nothing_to_send(const struct request *r)
{
    if (r->rows == 0 || r->coll->state == COLL_GONE)
        return true;
    for (size_t i = 0; i < r->n_ranges; i++)
        if (r->ranges[i].link)
            return false;
    return true;
}

/* After a refusal one request tries how it is. */
static bool may_try(const struct tchan *tc)
{
    return tc->backoff.cur_ms ? portable_calls(tc) == 0 : portable_call_free(tc);
}

bool refused_send(struct tchan *tc, sink_batch_fn done)
{
    struct request *r;

    TAILQ_FOREACH(r, &tc->flying, entry) {
        if (!r->waiting)
            continue;
        if (timer_armed(&tc->retry_timer) || !may_try(tc) || !tchan_coll_checked(tc, r->coll))
            return false;
        r->waiting = false;
        if (nothing_to_send(r)) {
            r->answered = true;
            timer_set(&tc->skip_timer, 0);
            continue;
        }
        r->sent_us = clock_mono_us();
        r->call = portable_send(r, done);
    }
    return true;
}
