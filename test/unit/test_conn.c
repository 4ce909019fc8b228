/*
 * test_conn.c - net/conn.h against an echo server in a child process, plain and with TLS.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#define ERR_STATE openssl_ERR_STATE /* a type of OpenSSL, a code of base/err.h */
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#undef ERR_STATE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "net/conn.h"

#define WAIT_FOR(cond)                                                                            \
    do {                                                                                          \
        uint64_t end_ = clock_mono_ms() + 15000;                                                  \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > end_)                                                           \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            loop_once(loop, false);                                                               \
            usleep(100);                                                                          \
        }                                                                                         \
    } while (0)

enum server { SERVER_ECHO, SERVER_TLS, SERVER_MUTE };
enum { BIG = 3 << 20, ROOM = BIG + 10 };

static struct loop *loop;
static char dir[32], cert_path[64], key_path[64], other_path[64];
static uint16_t port;
static pid_t child;

/* ---- certificates: self-signed, so each is its own authority ---- */

static void make_cert(const char *cert_file, const char *key_file)
{
    EVP_PKEY *key = EVP_RSA_gen(2048);
    X509 *c = X509_new();
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "IP:127.0.0.1");
    FILE *f;

    ASN1_INTEGER_set(X509_get_serialNumber(c), 1);
    X509_gmtime_adj(X509_getm_notBefore(c), -3600);
    X509_gmtime_adj(X509_getm_notAfter(c), 86400);
    X509_set_pubkey(c, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(c), "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(c, X509_get_subject_name(c));
    X509_add_ext(c, e, -1);
    assert_true(X509_sign(c, key, EVP_sha256()) > 0);
    f = fopen(cert_file, "w");
    assert_non_null(f);
    PEM_write_X509(f, c);
    fclose(f);
    f = fopen(key_file, "w");
    assert_non_null(f);
    PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
    X509_EXTENSION_free(e);
    X509_free(c);
    EVP_PKEY_free(key);
}

/* ---- the child: one connection ---- */

static void echo_plain(int fd)
{
    char b[10000];
    ssize_t n;

    while ((n = recv(fd, b, sizeof(b), 0)) > 0) {
        if (b[0] == 'q') /* the first byte of a message */
            return;
        for (ssize_t at = 0, put; at < n; at += put)
            if ((put = send(fd, b + at, (size_t)(n - at), MSG_NOSIGNAL)) <= 0)
                return;
    }
}

static void echo_tls(int fd)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    SSL *ssl;
    char b[10000];
    int n;

    if (SSL_CTX_use_certificate_file(ctx, cert_path, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(ctx, key_path, SSL_FILETYPE_PEM) != 1)
        _exit(3);
    ssl = SSL_new(ctx);
    SSL_set_fd(ssl, fd);
    if (SSL_accept(ssl) != 1)
        return;
    while ((n = SSL_read(ssl, b, sizeof(b))) > 0 && b[0] != 'q')
        if (SSL_write(ssl, b, n) != n)
            return;
    SSL_shutdown(ssl);
}

static void serve(enum server what)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(sa);
    int l = socket(AF_INET, SOCK_STREAM, 0), fd;

    assert_true(bind(l, (struct sockaddr *)&sa, len) == 0 && listen(l, 5) == 0);
    getsockname(l, (struct sockaddr *)&sa, &len);
    port = ntohs(sa.sin_port);
    child = fork();
    if (child == 0) {
        alarm(60);
        signal(SIGPIPE, SIG_IGN);
        fd = accept(l, NULL, NULL);
        if (what == SERVER_ECHO)
            echo_plain(fd);
        else if (what == SERVER_TLS)
            echo_tls(fd);
        else
            pause();
        _exit(0);
    }
    close(l);
}

static void end_server(void)
{
    if (child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    child = 0;
}

/* ---- the client ---- */

struct client {
    struct conn *c;
    uint8_t *data;
    size_t n;
    unsigned opened, down;
    bool close_on_open, inside;
    char why[300];
};

static void on_open(void *arg)
{
    struct client *k = arg;

    assert_false(k->inside);
    k->opened++;
    if (k->close_on_open)
        conn_close(k->c);
}

static void on_readable(void *arg)
{
    struct client *k = arg;
    size_t n;

    assert_false(k->inside);
    while ((n = conn_read(k->c, k->data + k->n, ROOM - k->n > 70000 ? 70000 : ROOM - k->n)) > 0)
        k->n += n;
}

static void on_down(void *arg, const char *why)
{
    struct client *k = arg;

    assert_false(k->inside);
    k->down++;
    snprintf(k->why, sizeof(k->why), "%s", why);
}

static const struct conn_events events = {on_open, on_readable, on_down};

static void client_open(struct client *k, const char *host, struct conn_tls *tls, unsigned ms)
{
    *k = (struct client){.data = xmalloc(ROOM), .inside = true};
    k->c = conn_open(loop, host, port, tls, ms, &events, k);
    k->inside = false;
}

static void client_write(struct client *k, const void *data, size_t n)
{
    k->inside = true;
    conn_write(k->c, data, n);
    k->inside = false;
}

static void client_close(struct client *k)
{
    conn_close(k->c);
    free(k->data);
}

/* 3 MB there and back, then the server ends. */
static void check_echo(const char *host, struct conn_tls *tls)
{
    uint8_t *big = xmalloc(BIG);
    struct client k;

    for (size_t i = 0; i < BIG; i++)
        big[i] = (uint8_t)(i * 7 / 5 % 100);
    client_open(&k, host, tls, 5000);
    WAIT_FOR(k.opened == 1);
    client_write(&k, big, BIG);
    WAIT_FOR(k.n == BIG && conn_unsent(k.c) == 0);
    assert_memory_equal(k.data, big, BIG);
    client_write(&k, "q", 1);
    WAIT_FOR(k.down == 1);
    assert_non_null(strstr(k.why, "closed by the peer"));
    client_write(&k, "q", 1); /* ignored */
    assert_int_equal(conn_read(k.c, big, 1), 0);
    client_close(&k);
    free(big);
}

static struct conn_tls *tls_with(const char *ca, bool skip)
{
    struct conn_tls_options o = {.ca_path = ca, .skip_hostname = skip};
    struct conn_tls *t = conn_tls_new(&o, NULL);

    assert_non_null(t);
    return t;
}

/* ---- tests ---- */

static void plain(void **state)
{
    (void)state;
    serve(SERVER_ECHO);
    check_echo("127.0.0.1", NULL);
}

static void with_tls(void **state)
{
    struct conn_tls *t = tls_with(cert_path, false), *any = tls_with(cert_path, true);

    (void)state;
    serve(SERVER_TLS);
    check_echo("127.0.0.1", t);
    end_server();
    serve(SERVER_TLS); /* the certificate is for the address only */
    check_echo("localhost", any);
    conn_tls_free(t);
    conn_tls_free(any);
}

static void refused_certificates(void **state)
{
    struct conn_tls *t = tls_with(cert_path, false), *other = tls_with(other_path, true);
    struct client k;

    (void)state;
    serve(SERVER_TLS);
    client_open(&k, "localhost", t, 5000);
    WAIT_FOR(k.down == 1);
    assert_non_null(strstr(k.why, "certificate refused"));
    assert_int_equal(k.opened, 0);
    client_close(&k);
    end_server();
    serve(SERVER_TLS);
    client_open(&k, "127.0.0.1", other, 5000);
    WAIT_FOR(k.down == 1);
    assert_non_null(strstr(k.why, "certificate refused"));
    client_close(&k);
    conn_tls_free(t);
    conn_tls_free(other);
}

static void bad_files(void **state)
{
    struct conn_tls_options o = {.ca_path = "/nowhere.pem"};
    struct err err;

    (void)state;
    assert_null(conn_tls_new(&o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_int_equal(err.cls, ERRC_USER);
    assert_non_null(strstr(err.text, "/nowhere.pem"));
}

static void nobody_there_or_silent(void **state)
{
    struct conn_tls *t = tls_with(cert_path, false);
    struct client k;

    (void)state;
    serve(SERVER_MUTE);
    client_open(&k, "127.0.0.1", t, 300);
    WAIT_FOR(k.down == 1);
    assert_non_null(strstr(k.why, "handshake not finished"));
    client_close(&k);
    end_server();
    client_open(&k, "127.0.0.1", NULL, 5000);
    WAIT_FOR(k.down == 1);
    assert_non_null(strstr(k.why, "refused"));
    client_close(&k);
    conn_tls_free(t);
}

static void close_at_any_time(void **state)
{
    struct client k;

    (void)state;
    serve(SERVER_ECHO);
    client_open(&k, "127.0.0.1", NULL, 5000);
    client_close(&k); /* while it dials */
    client_open(&k, "127.0.0.1", NULL, 5000);
    k.close_on_open = true;
    WAIT_FOR(k.opened == 1);
    client_close(&k); /* again */
    for (int i = 0; i < 20; i++)
        loop_once(loop, false);
    assert_int_equal(k.down, 0);
    conn_close(NULL);
}

static int setup(void **state)
{
    (void)state;
    loop = loop_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    end_server();
    loop_free(loop);
    return 0;
}

static int make_files(void **state)
{
    char unused[64];

    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/test_conn.XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(cert_path, sizeof(cert_path), "%s/cert.pem", dir);
    snprintf(key_path, sizeof(key_path), "%s/key.pem", dir);
    snprintf(other_path, sizeof(other_path), "%s/other.pem", dir);
    snprintf(unused, sizeof(unused), "%s/other.key", dir);
    make_cert(cert_path, key_path);
    make_cert(other_path, unused);
    unlink(unused);
    return 0;
}

static int remove_files(void **state)
{
    (void)state;
    unlink(cert_path);
    unlink(key_path);
    unlink(other_path);
    return rmdir(dir);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(plain),     TEST(with_tls),  TEST(refused_certificates), TEST(nobody_there_or_silent),
        TEST(bad_files), TEST(close_at_any_time),
    };

    signal(SIGPIPE, SIG_IGN); /* as in the daemon */
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
