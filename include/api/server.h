/*
 * server.h - the HTTP control endpoint: POST /cdc, GET /health, /healthz, /readyz, /cdc/metrics, /cdc/metrics_default.
 *
 * Facts: shared/reference/control-api.md 1 to 3, 5.  Its own small HTTP/1.1 server (src/api/http_priv.h says why).
 * With config->api.tls it speaks TLS 1.2 and later only; with config->api.tokens all but /healthz and /readyz needs one
 * of them (Authorization: Bearer).  Bodies up to 1 MiB, 256 connections, 10 s for a request to arrive.  Thread  loop thread only.
 */
#ifndef API_SERVER_H
#define API_SERVER_H
#include <stdint.h>

struct config;
struct err;
struct loop;
struct manager;
struct api_server;
struct ssl_ctx_st;

/* Listens on config->address ("host:port", the host numeric or localhost; empty: every interface). NULL with a text
 * that names address and reason: ERR_INVALID, ERR_IO. The manager must live until api_stop(). */
struct api_server *api_start(struct loop *l, const struct config *config, struct manager *m, struct err *err);
/* Reads the TLS files of a configuration: *ret is NULL when it has none. ERR_INVALID, class USER, names key and file. */
int api_tls_load(const struct config *config, struct ssl_ctx_st **ret, struct err *err);
void api_tls_free(struct ssl_ctx_st *tls); /* NULL is allowed */
/* The configuration that api_start() got has other tokens or files now: take (of api_tls_load()) is for connections from
 * now on, and is taken; NULL: plain HTTP. */
void api_reload(struct api_server *s, struct ssl_ctx_st *take);
/* Stops listening; requests under way are dropped (their work in the manager goes on). NULL is allowed. */
void api_stop(struct api_server *s);
uint16_t api_port(const struct api_server *s); /* the port in use (for address ...:0) */

/* For tests, before the first request: how long a request may take to arrive. */
void api_set_request_limit(struct api_server *s, unsigned ms);
#endif
