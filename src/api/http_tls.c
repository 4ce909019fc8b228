/*
 * http_tls.c - OpenSSL between two memory buffers. The socket stays a plain bufferevent, so TLS connections have the
 * deadlines, the priority and the half-close of all others (libevent's own TLS bufferevent stops writing when the client
 * has said its last).
 */
#include "api/http_priv.h"

#include "base/err.h"
#include "base/mem.h"

#include <event2/buffer.h>
#define ERR_STATE openssl_ERR_STATE /* a type of OpenSSL, a code of base/err.h */
#include <openssl/err.h>
#include <openssl/ssl.h>
#undef ERR_STATE
#include <stdlib.h>
#include <string.h>

enum { PIECE = 16384 };

struct http_tls {
    SSL *ssl;
    BIO *in, *out; /* memory, the SSL's */
};

struct http_tls *http_tls_new(struct ssl_ctx_st *ctx)
{
    struct http_tls *t = xcalloc(1, sizeof(*t));

    t->ssl = SSL_new(ctx);
    t->in = BIO_new(BIO_s_mem());
    t->out = BIO_new(BIO_s_mem());
    if (!t->ssl || !t->in || !t->out)
        abort(); /* only without memory */
    BIO_set_mem_eof_return(t->in, -1); /* empty means wait */
    SSL_set_bio(t->ssl, t->in, t->out);
    SSL_set_accept_state(t->ssl);
    return t;
}

void http_tls_free(struct http_tls *t)
{
    if (!t)
        return;
    SSL_free(t->ssl);
    free(t);
}

/* Both only without memory. */
static void add(struct evbuffer *to, const void *data, int n)
{
    if (evbuffer_add(to, data, (size_t)n) != 0)
        abort();
}

static void feed(struct http_tls *t, struct evbuffer *raw)
{
    char piece[PIECE];
    int n;

    while ((n = evbuffer_remove(raw, piece, sizeof(piece))) > 0)
        if (BIO_write(t->in, piece, n) != n)
            abort();
}

static void flush(struct http_tls *t, struct evbuffer *raw_out)
{
    char piece[PIECE];
    int n;

    while ((n = BIO_read(t->out, piece, sizeof(piece))) > 0)
        add(raw_out, piece, n);
}

static const char *failure(void)
{
    const char *why = ERR_reason_error_string(ERR_peek_error());

    return why ? why : "the connection broke";
}

int http_tls_read(struct http_tls *t, struct evbuffer *raw, struct evbuffer *plain, struct evbuffer *raw_out, bool *eof,
                  const char **ret_why)
{
    char piece[PIECE];
    int n, rc = 0;

    feed(t, raw);
    ERR_clear_error(); /* SSL_get_error() looks at the whole queue */
    while ((n = SSL_read(t->ssl, piece, sizeof(piece))) > 0)
        add(plain, piece, n);
    switch (SSL_get_error(t->ssl, n)) {
    case SSL_ERROR_WANT_READ:
        break;
    case SSL_ERROR_ZERO_RETURN:
        *eof = true;
        break;
    default:
        *ret_why = failure();
        rc = -1;
    }
    flush(t, raw_out);
    ERR_clear_error();
    explicit_bzero(piece, sizeof(piece)); /* tokens came through it */
    return rc;
}

int http_tls_write(struct http_tls *t, struct evbuffer *plain, struct evbuffer *raw_out, bool last)
{
    char piece[PIECE];
    int n, rc = 0;

    ERR_clear_error();
    while (rc == 0 && (n = evbuffer_remove(plain, piece, sizeof(piece))) > 0)
        if (SSL_write(t->ssl, piece, n) != n) /* memory takes all of it */
            rc = -1;
    if (last && rc == 0)
        (void)SSL_shutdown(t->ssl); /* says that we end; the client need not answer */
    flush(t, raw_out);
    ERR_clear_error();
    return rc;
}

/* ---- set-up */

/* Without one OpenSSL asks for it on the terminal, which would block. */
static char no_password[] = "";

static int bad_file(struct err *err, const char *key, const char *path)
{
    const char *why = ERR_reason_error_string(ERR_peek_error());

    err_set(err, ERR_INVALID, ERRC_USER, "%s: cannot use %s: %s", key, path, why ? why : "not a PEM file");
    ERR_clear_error();
    return -1;
}

static int load_client_ca(SSL_CTX *ctx, const char *path, struct err *err)
{
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(path);

    if (!names || SSL_CTX_load_verify_locations(ctx, path, NULL) != 1) {
        sk_X509_NAME_pop_free(names, X509_NAME_free);
        return bad_file(err, "api.tls.clientCA", path);
    }
    SSL_CTX_set_client_CA_list(ctx, names);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return 0;
}

static int load_files(SSL_CTX *ctx, const char *cert, const char *key, const char *client_ca, struct err *err)
{
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(ctx, cert) != 1)
        return bad_file(err, "api.tls.cert", cert);
    if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1)
        return bad_file(err, "api.tls.key", key);
    return client_ca ? load_client_ca(ctx, client_ca, err) : 0;
}

SSL_CTX *http_tls_ctx(const char *cert, const char *key, const char *client_ca, struct err *err)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

    if (!ctx || SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1)
        abort(); /* only without memory */
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, no_password);
    if (load_files(ctx, cert, key, client_ca, err) == 0)
        return ctx;
    SSL_CTX_free(ctx);
    return NULL;
}

void http_tls_ctx_free(SSL_CTX *ctx)
{
    SSL_CTX_free(ctx);
}
