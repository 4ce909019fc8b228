/*
 * tls_priv.h - OpenSSL set-up for clients (HTTP/2 unless said otherwise): verification, ALPN, error texts.
 */
#ifndef NET_TLS_PRIV_H
#define NET_TLS_PRIV_H
#include <stdbool.h>
#include <stddef.h>

struct err;
struct ssl_ctx_st;
struct ssl_st;

struct tls_options {
    const char *ca_path;              /* NULL: the system's store */
    const char *cert_path, *key_path; /* NULL: no client certificate */
    int min_version;                  /* 0: 1.2; else 10, 11, 12, 13 */
    bool no_alpn;                     /* not HTTP/2 */
};

/* Reads the files. NULL and err (ERR_INVALID, USER) when one is unreadable. */
struct ssl_ctx_st *tls_client_ctx(const struct tls_options *o, struct err *err);
void tls_client_ctx_free(struct ssl_ctx_st *ctx); /* NULL is allowed */

/* A client's session: server name indication, the certificate must be for name (or that IP address).
 * NULL: no memory. */
struct ssl_st *tls_client_session(struct ssl_ctx_st *ctx, const char *name);

/* The same without comparing the certificate's name. */
struct ssl_st *tls_client_session_any(struct ssl_ctx_st *ctx, const char *name);

bool tls_chose_h2(const struct ssl_st *ssl);

/* Why a handshake or connection failed. openssl_error: the first code that belongs to it, or 0. */
void tls_failure(const struct ssl_st *ssl, unsigned long openssl_error, char *buf, size_t size);
#endif
