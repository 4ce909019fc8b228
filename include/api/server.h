/*
 * server.h - the HTTP control endpoint: POST /cdc, GET /healthz, /readyz, /cdc/metrics (evhttp).
 */
#ifndef API_SERVER_H
#define API_SERVER_H
#include <stdint.h>

struct config;
struct err;
struct loop;
struct manager;
struct api_server;

/* Listens on config->address. NULL with a text that names address and reason. */
struct api_server *api_start(struct loop *l, const struct config *config, struct manager *m, struct err *err);
/* Stops listening; requests under way are dropped. */
void api_stop(struct api_server *s);
uint16_t api_port(const struct api_server *s); /* the port in use (for address ...:0) */
#endif
