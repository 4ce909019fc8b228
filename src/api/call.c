#include "api/api_priv.h"

#include "api/http_priv.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metric.h"
#include "task/text.h"

#include <stdlib.h>
#include <string.h>

static const char total_help[] = "Requests to POST /cdc by type and outcome.";
static const char latency_help[] = "Time of successful requests in milliseconds.";

struct call *call_new(struct api_server *s, struct http_request *r)
{
    struct call *c = xcalloc(1, sizeof(*c));

    c->s = s;
    c->http = r;
    c->type = "unknown";
    c->start_us = clock_mono_us();
    LIST_INSERT_HEAD(&s->calls, c, entry);
    return c;
}

static void call_free(struct call *c)
{
    LIST_REMOVE(c, entry);
    free(c->task_id);
    free(c);
}

void api_call_drop(struct call *c)
{
    http_drop(c->http);
    call_free(c);
}

void call_count(const struct call *c, const char *status)
{
    metric_get(METRIC_COUNTER, "milvus_cdc_request_total", total_help,
               METRIC_LABELS({"request_type", c->type}, {"request_status", status}))
        ->value += 1;
}

static void call_log(const struct call *c, int code, const char *error, double ms)
{
    if (error)
        log_info("api", "request", KS("type", c->type), KI("code", code), KI("ms", ms),
                 KS("task_id", c->task_id), KS("error", error));
    else
        log_info("api", "request", KS("type", c->type), KI("code", code), KI("ms", ms),
                 KS("task_id", c->task_id));
}

/* Takes answer. */
static void call_send(struct call *c, int status, json_t *answer)
{
    char *text = json_dumps(answer, JSON_COMPACT);
    struct http_answer a = {.status = status, .content_type = "application/json"};
    size_t len;

    json_decref(answer);
    if (!text)
        abort(); /* only without memory: every string in it was checked */
    len = strlen(text);
    text = xrealloc(text, len + 2);
    text[len++] = '\n';
    a.body = text;
    a.len = len;
    http_reply(c->http, &a);
    free(text);
    call_free(c);
}

void call_ok(struct call *c, json_t *data)
{
    double ms = (double)(clock_mono_us() - c->start_us) / 1000.0;

    call_count(c, "success");
    metric_observe_ms("milvus_cdc_request_latency", latency_help,
                      METRIC_LABELS({"request_type", c->type}), ms);
    call_log(c, 200, NULL, ms);
    call_send(c, 200, json_pack("{s:i, s:o}", "code", 200, "data", data ? data : json_object()));
}

void call_refuse(struct call *c, int code, const char *text, const char *status)
{
    if (status)
        call_count(c, status);
    call_log(c, code, text, (double)(clock_mono_us() - c->start_us) / 1000.0);
    /* as the Go implementation: the status is in the body; but a load balancer must see that nothing can be told */
    call_send(c, code == 503 ? 503 : 200, json_pack("{s:i, s:o}", "code", code, "message", text_json(text)));
}

void call_fail(struct call *c, int code, const char *text)
{
    char *message = xasprintf("fail to handle the %s request, error: %s", c->type, text);

    call_refuse(c, code, message, NULL);
    free(message);
}
