#include "net/tls_priv.h"

#include "base/err.h"

#include <arpa/inet.h>
#define ERR_STATE openssl_ERR_STATE /* a type of OpenSSL, a code of base/err.h */
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#undef ERR_STATE
#include <stdio.h>
#include <string.h>

/* Without one OpenSSL asks for it on the terminal, which would block. */
static char no_password[] = "";

static int bad_file(struct err *err, const char *what, const char *path)
{
    char why[160];

    ERR_error_string_n(ERR_get_error(), why, sizeof(why));
    ERR_clear_error();
    return err_set(err, ERR_INVALID, ERRC_USER, "TLS: cannot use %s %s: %s", what, path, why);
}

static int load_files(SSL_CTX *ctx, const struct tls_options *o, struct err *err)
{
    const char *key = o->key_path ? o->key_path : o->cert_path;

    ERR_clear_error();
    if (o->ca_path && SSL_CTX_load_verify_locations(ctx, o->ca_path, NULL) != 1)
        return bad_file(err, "CA file", o->ca_path);
    if (!o->ca_path && SSL_CTX_set_default_verify_paths(ctx) != 1)
        return bad_file(err, "the system's CA store", "");
    if (!o->cert_path && o->key_path)
        return err_set(err, ERR_INVALID, ERRC_USER, "TLS: key file %s without a certificate",
                       o->key_path);
    if (!o->cert_path)
        return 0;
    if (SSL_CTX_use_certificate_chain_file(ctx, o->cert_path) != 1)
        return bad_file(err, "certificate file", o->cert_path);
    if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1)
        return bad_file(err, "key file", key);
    return 0;
}

static int min_version(int v)
{
    switch (v) {
    case 10:
        return TLS1_VERSION;
    case 11:
        return TLS1_1_VERSION;
    case 0:
    case 12:
        return TLS1_2_VERSION;
    case 13:
        return TLS1_3_VERSION;
    }
    return -1;
}

SSL_CTX *tls_client_ctx(const struct tls_options *o, struct err *err)
{
    static const unsigned char alpn[] = {2, 'h', '2'};
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    int version = min_version(o->min_version);

    if (version < 0) {
        err_set(err, ERR_INVALID, ERRC_USER, "TLS: unknown minimum version %d", o->min_version);
        goto fail;
    }
    if (!ctx || SSL_CTX_set_min_proto_version(ctx, version) != 1 ||
        (!o->no_alpn && SSL_CTX_set_alpn_protos(ctx, alpn, sizeof(alpn)) != 0)) {
        err_set(err, ERR_INTERNAL, ERRC_RETRY, "TLS: OpenSSL has no memory");
        goto fail;
    }
    SSL_CTX_set_default_passwd_cb_userdata(ctx, no_password);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    if (load_files(ctx, o, err))
        goto fail;
    return ctx;
fail:
    SSL_CTX_free(ctx);
    return NULL;
}

void tls_client_ctx_free(SSL_CTX *ctx)
{
    SSL_CTX_free(ctx);
}

static bool is_address(const char *name)
{
    struct in6_addr any;

    return inet_pton(AF_INET, name, &any) == 1 || inet_pton(AF_INET6, name, &any) == 1;
}

SSL *tls_client_session(SSL_CTX *ctx, const char *name)
{
    SSL *ssl = SSL_new(ctx);
    bool ok;

    if (!ssl)
        return NULL;
    if (is_address(name))
        ok = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) == 1;
    else
        ok = SSL_set_tlsext_host_name(ssl, name) == 1 && SSL_set1_host(ssl, name) == 1;
    if (ok)
        return ssl;
    SSL_free(ssl);
    return NULL;
}

SSL *tls_client_session_any(SSL_CTX *ctx, const char *name)
{
    SSL *ssl = SSL_new(ctx);

    if (ssl && !is_address(name))
        (void)SSL_set_tlsext_host_name(ssl, name); /* a hint for the server */
    return ssl;
}

bool tls_chose_h2(const SSL *ssl)
{
    const unsigned char *proto = NULL;
    unsigned len = 0;

    SSL_get0_alpn_selected(ssl, &proto, &len);
    return len == 2 && memcmp(proto, "h2", 2) == 0;
}

void tls_failure(const SSL *ssl, unsigned long openssl_error, char *buf, size_t size)
{
    long verify = SSL_get_verify_result(ssl);
    const char *reason = openssl_error ? ERR_reason_error_string(openssl_error) : NULL;

    if (verify != X509_V_OK)
        snprintf(buf, size, "TLS: server certificate refused: %s",
                 X509_verify_cert_error_string(verify));
    else
        snprintf(buf, size, "TLS: %s", reason ? reason : "connection closed by the peer");
}
