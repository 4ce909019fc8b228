/*
 * api_priv.h - a POST /cdc request on its way through the manager.
 */
#ifndef API_API_PRIV_H
#define API_API_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>
#include <sys/queue.h>

struct config;
struct http_request;
struct http_server;
struct loop;
struct manager;

struct call {
    LIST_ENTRY(call) entry; /* api_server.calls */
    struct api_server *s;
    struct http_request *http;
    const char *type; /* one of the known types, or "unknown": also the metric's label */
    char *task_id;    /* for the log; NULL: none */
    bool ignore_not_found, accept_gap, cancel;
    uint64_t start_us;
};

struct api_server {
    struct loop *loop;
    const struct config *config;
    struct manager *m;
    struct http_server *http;
    LIST_HEAD(, call) calls;
    uint64_t refusals, refusal_logged_ms; /* requests without a valid token since the last line */
};

/* request.c: answers POST /cdc, now or later. */
void api_request(struct api_server *s, struct http_request *r);
/* Any other method on /cdc. */
void api_wrong_method(struct api_server *s, struct http_request *r);
/* Forgets a call without an answer. */
void api_call_drop(struct call *c);

/* auth.c: may it go on? Logs a refusal. */
bool api_authorized(struct api_server *s, const struct http_request *r);

/* server.c: answers an object and a newline. */
void api_reply_json(struct http_request *r, int status, json_t *take);

/* health.c */
void api_health(struct api_server *s, struct http_request *r);

/* call.c */
struct call *call_new(struct api_server *s, struct http_request *r);
/* The end of a call: data (NULL: {}) is taken. */
void call_ok(struct call *c, json_t *data);
/* "fail to handle the <type> request, error: text"; code 400 or 500. */
void call_fail(struct call *c, int code, const char *text);
/* The whole message is text. status: the label of milvus_cdc_request_total, or NULL. */
void call_refuse(struct call *c, int code, const char *text, const char *status);
/* Counts request_total. */
void call_count(const struct call *c, const char *status);

/* maintenance.c: the outcome as text for data.State. */
json_t *maintenance_run(const char *operation, const json_t *params);
#endif
