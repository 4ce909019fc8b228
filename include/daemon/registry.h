/* registry.h - opens the registry that the configuration names. */
#ifndef DAEMON_REGISTRY_H
#define DAEMON_REGISTRY_H
#include "pg/pg.h"

struct config;
struct err;
struct loop;
struct registry;
struct seal;

/* Embedded, zeroed at first. */
struct daemon_registry {
    struct registry *registry;
    struct seal *seal; /* NULL: no registry.keyFile */
    struct pg_setting settings[12];
    struct pg_options pg;
};

/* config must outlive it. Errors as of the registries and of seal_open, naming the setting; nothing is held then. */
int daemon_registry_open(struct daemon_registry *d, struct loop *l, const struct config *c, struct err *err);
/* {0} is allowed. */
void daemon_registry_close(struct daemon_registry *d);
#endif
