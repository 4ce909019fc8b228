/*
 * auth.c - bearer tokens (RFC 6750): who may use the control endpoint.
 */
#include "api/api_priv.h"

#include "api/http_priv.h"
#include "base/clock.h"
#include "base/log.h"
#include "daemon/config.h"

#define ERR_STATE openssl_ERR_STATE /* a type of OpenSSL, a code of base/err.h */
#include <openssl/crypto.h>
#include <openssl/sha.h>
#undef ERR_STATE
#include <string.h>
#include <strings.h>

#define LOG_EVERY_MS 10000

/* "Bearer TOKEN"; NULL: something else. */
static const char *bearer(const char *authorization)
{
    if (strncasecmp(authorization, "Bearer ", 7) != 0)
        return NULL;
    authorization += 7;
    authorization += strspn(authorization, " ");
    return *authorization ? authorization : NULL;
}

/* Looks at every token, and at every byte: the time says nothing about which one was nearly right. */
static bool known(const struct config_api *a, const char *token)
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    unsigned found = 0;

    SHA256((const unsigned char *)token, strlen(token), hash);
    for (size_t i = 0; i < a->n_tokens; i++)
        found |= CRYPTO_memcmp(hash, a->tokens[i].sha256, sizeof(hash)) == 0;
    return found != 0;
}

static void log_refusal(struct api_server *s, const char *peer, bool missing)
{
    uint64_t now_ms = clock_mono_ms();

    s->refusals++;
    if (s->refusal_logged_ms && now_ms - s->refusal_logged_ms < LOG_EVERY_MS)
        return;
    log_warn("api", missing ? "request without a token refused" : "request with a wrong token refused",
             KS("peer", peer), KU("refused_since_last_line", s->refusals));
    s->refusal_logged_ms = now_ms;
    s->refusals = 0;
}

bool api_authorized(struct api_server *s, const struct http_request *r)
{
    const char *token = bearer(http_authorization(r));

    if (s->config->api.n_tokens == 0 || (token && known(&s->config->api, token)))
        return true;
    log_refusal(s, http_peer(r), !token);
    return false;
}
