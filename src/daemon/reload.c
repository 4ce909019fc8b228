#include "daemon/reload.h"

#include "api/server.h"
#include "base/err.h"
#include "base/log.h"
#include "daemon/config.h"

static void needs_restart(const char *key)
{
    log_warn("config", "the key changed, which needs a restart: its old value stays", KS("key", key));
}

void reload(const char *path, struct config *running, struct api_server *api)
{
    struct err err;
    struct config *fresh = config_load(path, &err);
    struct ssl_ctx_st *tls = NULL;

    if (!fresh || api_tls_load(fresh, &tls, &err)) {
        log_error("config", "not reloaded, the old configuration stays", KS("error", err.text));
        config_free(fresh);
        return;
    }
    config_apply(running, fresh, needs_restart);
    config_free(fresh);
    log_set_level(running->log_level);
    if (api)
        api_reload(api, tls);
    else
        api_tls_free(tls); /* api_start() reads them */
    log_info("config", "reloaded", KS("file", path), KU("tokens", running->api.n_tokens));
}
