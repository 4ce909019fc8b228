#include "daemon/registry.h"

#include <string.h>

#include "base/err.h"
#include "daemon/config.h"
#include "registry/postgresql.h"
#include "registry/registry.h"
#include "registry/seal.h"

static struct registry *open_postgresql(struct daemon_registry *d, struct loop *l, const struct config *c,
                                        struct err *err)
{
    const struct config_postgresql *p = &c->postgresql;
    const struct pg_setting settings[] = {
        {"host", p->host},         {"port", p->port},       {"user", p->user},
        {"password", p->password}, {"passfile", p->passfile}, {"dbname", p->database},
        {"sslmode", p->sslmode},   {"sslrootcert", p->sslrootcert}, {"sslcert", p->sslcert},
        {"sslkey", p->sslkey},     {NULL, NULL},
    };

    _Static_assert(sizeof(settings) <= sizeof(d->settings), "room for all");
    memcpy(d->settings, settings, sizeof(settings));
    d->pg = (struct pg_options){.uri = p->uri, .settings = d->settings, .section = "registry"};
    return registry_postgresql_open(
        l, &(struct registry_postgresql_options){.pg = &d->pg, .schema = p->schema, .seal = d->seal}, err);
}

int daemon_registry_open(struct daemon_registry *d, struct loop *l, const struct config *c, struct err *err)
{
    if (c->registry_key_file && !(d->seal = seal_open(c->registry_key_file, err)))
        return err_wrap(err, "registry.keyFile");
    if (strcmp(c->registry_type, "postgresql") == 0)
        d->registry = open_postgresql(d, l, c, err);
    else
        d->registry = registry_sqlite_open_sealed(l, c->registry_path, d->seal, err);
    if (d->registry)
        return 0;
    daemon_registry_close(d);
    return err->code;
}

void daemon_registry_close(struct daemon_registry *d)
{
    if (d->registry)
        d->registry->ops->close(d->registry);
    seal_free(d->seal);
    *d = (struct daemon_registry){0};
}
