#include "repl/pace.h"

/* Below this a span says little about the rate. */
#define SPAN_MIN_US 50000

enum { FIRST_REQUESTS = 8 }; /* the window that a rate is first measured with */

void pace_reset(struct pace *p)
{
    *p = (struct pace){0};
}

static void end_span(struct pace *p, uint64_t now_us)
{
    uint64_t rate = p->span_bytes * 1000000 / (now_us - p->span_us);

    /* Down slowly: one short pause of the source is no reason to begin small again. */
    p->rate = rate > p->rate ? rate : p->rate - (p->rate - rate) / 4;
    p->waits = p->span_least_us > p->rtt_us + p->rtt_us / 8;
    p->span_us = now_us;
    p->span_bytes = p->span_least_us = 0;
}

void pace_answer(struct pace *p, uint64_t now_us, uint64_t took_us, size_t bytes)
{
    uint64_t span = took_us > SPAN_MIN_US ? took_us : SPAN_MIN_US;

    if (!p->rtt_us || took_us < p->rtt_us)
        p->rtt_us = took_us ? took_us : 1;
    if (!p->span_us)
        p->span_us = now_us - took_us;
    p->span_bytes += bytes;
    if (!p->span_least_us || took_us < p->span_least_us)
        p->span_least_us = took_us;
    if (now_us - p->span_us >= span)
        end_span(p, now_us);
}

size_t pace_window(const struct pace *p, uint64_t far_us, size_t batch_bytes, size_t most_bytes)
{
    uint64_t bytes;

    if (!p->rtt_us || p->rtt_us < far_us)
        return 0;
    bytes = p->rate / 1000 * p->rtt_us / 1000;
    bytes = p->waits ? bytes + bytes / 4 : 2 * bytes; /* more only makes bytes wait, here; twice: the rate may rise */
    if (bytes < FIRST_REQUESTS * (uint64_t)batch_bytes)
        bytes = FIRST_REQUESTS * (uint64_t)batch_bytes;
    return bytes < most_bytes ? bytes : most_bytes;
}
