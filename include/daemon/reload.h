/*
 * reload.h - SIGHUP: reads the configuration again and applies what may change while running.
 */
#ifndef DAEMON_RELOAD_H
#define DAEMON_RELOAD_H

struct api_server;
struct config;

/* Logs what it did. A wrong file (also of api.tls) changes nothing. api NULL: it does not listen yet. Reads files, which
 * may take a moment: a person asked for it. */
void reload(const char *path, struct config *running, struct api_server *api);
#endif
