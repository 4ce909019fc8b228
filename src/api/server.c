#include "api/server.h"

#include "api/api_priv.h"
#include "api/http_priv.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metric.h"
#include "daemon/config.h"
#include "loop/loop.h"
#include "task/manager.h"
#include "task/text.h"

#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_BODY = 1 << 20,
    MAX_CONNECTIONS = 256,
    REQUEST_MS = 10000,
    IDLE_MS = 75000,
    WRITE_MS = 30000,
    LINGER_MS = 2000,
};

static const char plain[] = "text/plain; charset=utf-8";

static void reply_text(struct http_request *r, int status, const char *allow, const char *text)
{
    http_reply(r, &(struct http_answer){.status = status,
                                        .content_type = plain,
                                        .allow = allow,
                                        .body = text,
                                        .len = strlen(text)});
}

void api_reply_json(struct http_request *r, int status, json_t *take)
{
    char *dump = json_dumps(take, JSON_COMPACT);
    char *text = xasprintf("%s\n", dump ? dump : "{}");

    http_reply(r, &(struct http_answer){.status = status,
                                        .content_type = "application/json",
                                        .body = text,
                                        .len = strlen(text)});
    free(dump);
    free(text);
    json_decref(take);
}

static void get_alive(struct api_server *s, struct http_request *r)
{
    (void)s;
    api_reply_json(r, 200, json_pack("{s:s, s:s}", "status", "ok", "version", MILVUS_CDC_VERSION));
}

static void get_ready(struct api_server *s, struct http_request *r)
{
    const char *why = manager_not_ready(s->m);

    if (why)
        api_reply_json(r, 503, json_pack("{s:s, s:o}", "status", "not ready", "reason", text_json(why)));
    else
        api_reply_json(r, 200, json_pack("{s:s}", "status", "ok"));
}

static void get_metrics(struct api_server *s, struct http_request *r)
{
    struct evbuffer *out = evbuffer_new();
    size_t len;

    if (!out)
        abort();
    manager_update_metrics(s->m);
    metric_render(out);
    len = evbuffer_get_length(out);
    http_reply(r, &(struct http_answer){.status = 200,
                                        .content_type = "text/plain; version=0.0.4; charset=utf-8",
                                        .body = len ? evbuffer_pullup(out, -1) : NULL,
                                        .len = len});
    evbuffer_free(out);
}

static const struct page {
    const char *path;
    void (*get)(struct api_server *s, struct http_request *r);
    bool open; /* tells nothing secret: needs no token */
} pages[] = {
    {"/healthz", get_alive, true},
    {"/readyz", get_ready, true},
    {"/health", api_health, false},
    {"/cdc/metrics", get_metrics, false},
    {"/cdc/metrics_default", get_metrics, false},
};

static const struct page *page_of(const char *path)
{
    for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++)
        if (strcmp(path, pages[i].path) == 0)
            return &pages[i];
    return NULL;
}

static void reply_unauthorized(struct http_request *r)
{
    static const char text[] =
        "{\"code\":401,\"message\":\"a valid token is needed: send the header Authorization: Bearer TOKEN\"}\n";

    http_reply(r, &(struct http_answer){.status = 401,
                                        .content_type = "application/json",
                                        .authenticate = "Bearer",
                                        .body = text,
                                        .len = sizeof(text) - 1});
}

static void on_request(void *arg, struct http_request *r)
{
    struct api_server *s = arg;
    const char *method = http_method(r), *path = http_path(r);
    const struct page *page = page_of(path);

    if (!(page && page->open) && !api_authorized(s, r)) {
        reply_unauthorized(r);
        return;
    }
    if (strcmp(path, "/cdc") == 0) {
        if (strcmp(method, "POST") == 0)
            api_request(s, r);
        else
            api_wrong_method(s, r);
        return;
    }
    if (!page)
        reply_text(r, 404, NULL, "404 page not found\n");
    else if (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0)
        page->get(s, r);
    else
        reply_text(r, 405, "GET, HEAD", "405 method not allowed\n");
}

/* ---- who may listen in */

static bool is_loopback(const char *address)
{
    return strncmp(address, "127.", 4) == 0 || strncmp(address, "localhost:", 10) == 0 ||
           strncmp(address, "[::1]:", 6) == 0;
}

static void warn_if_open(const struct config *c)
{
    if (is_loopback(c->address))
        return;
    if (c->api.n_tokens == 0)
        log_warn("api", "everybody who reaches the address may make and delete tasks: set api.tokens, or listen on 127.0.0.1",
                 KS("address", c->address), KS("key", "api.tokens"));
    if (!c->api.cert_path)
        log_warn("api", "what is sent here (passwords of targets, tokens) can be read on the network: set api.tls",
                 KS("address", c->address), KS("key", "api.tls"));
}

int api_tls_load(const struct config *config, struct ssl_ctx_st **ret, struct err *err)
{
    const struct config_api *a = &config->api;

    *ret = a->cert_path ? http_tls_ctx(a->cert_path, a->key_path, a->client_ca_path, err) : NULL;
    return a->cert_path && !*ret ? err->code : 0;
}

void api_tls_free(struct ssl_ctx_st *tls)
{
    http_tls_ctx_free(tls);
}

void api_reload(struct api_server *s, struct ssl_ctx_st *take)
{
    http_set_tls(s->http, take);
    warn_if_open(s->config);
}

struct api_server *api_start(struct loop *l, const struct config *config, struct manager *m,
                             struct err *err)
{
    struct api_server *s = xcalloc(1, sizeof(*s));
    struct http_options o = {.loop = l,
                             .address = config->address,
                             .handler = on_request,
                             .arg = s,
                             .max_body = MAX_BODY,
                             .max_connections = MAX_CONNECTIONS,
                             .request_ms = REQUEST_MS,
                             .idle_ms = IDLE_MS,
                             .write_ms = WRITE_MS,
                             .linger_ms = LINGER_MS};

    if (api_tls_load(config, &o.tls, err)) {
        free(s);
        return NULL;
    }
    s->loop = l;
    s->config = config;
    s->m = m;
    LIST_INIT(&s->calls);
    s->http = http_listen(&o, err);
    if (!s->http) {
        free(s);
        return NULL;
    }
    log_info("api", "listening", KS("address", config->address), KI("port", http_port(s->http)),
             KS("tls", config->api.cert_path ? config->api.client_ca_path ? "with client certificates" : "on" : "off"),
             KU("tokens", config->api.n_tokens));
    warn_if_open(config);
    return s;
}

void api_stop(struct api_server *s)
{
    struct call *c, *next;

    if (!s)
        return;
    for (c = LIST_FIRST(&s->calls); c; c = next) {
        next = LIST_NEXT(c, entry);
        manager_cancel(s->m, c);
        api_call_drop(c);
    }
    http_close(s->http);
    loop_defer(s->loop, free, s);
}

uint16_t api_port(const struct api_server *s)
{
    return http_port(s->http);
}

void api_set_request_limit(struct api_server *s, unsigned ms)
{
    http_set_request_limit(s->http, ms);
}
