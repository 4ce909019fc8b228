/*
 * etcd_server.h - a real etcd for one test program, and a second hand to write into it.
 *
 * Writes go over a client connection of their own (struct etcd_hand), on the test's loop.
 */
#ifndef TEST_ETCD_SERVER_H
#define TEST_ETCD_SERVER_H
#include <arpa/inet.h>
#include <event2/buffer.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/pbwire.h"
#include "loop/loop.h"
#include "net/grpc.h"

#define ETCD_TEST_LIMIT_MS 30000

/* Turns the loop until cond holds; fails the test after a generous limit. */
#define WAIT_FOR(l, cond)                                                                         \
    do {                                                                                          \
        uint64_t end_ = clock_mono_ms() + ETCD_TEST_LIMIT_MS;                                     \
        while (!(cond)) {                                                                         \
            if (clock_mono_ms() > end_)                                                           \
                fail_msg("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #cond);             \
            loop_once((l), false);                                                                \
            usleep(500);                                                                          \
        }                                                                                         \
    } while (0)

struct etcd_server {
    pid_t pid;
    unsigned port, peer_port;
    char dir[64];
    char endpoint[64]; /* "127.0.0.1:port" */
    char scheme[8];
    const char *extra[12]; /* more arguments, NULL-terminated */
};

static inline unsigned free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&a, len) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) < 0)
        abort();
    close(fd);
    return ntohs(a.sin_port);
}

static inline bool port_open(unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bool ok = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;

    close(fd);
    return ok;
}

/* Runs a command (no shell metacharacters from outside), returns its exit status. */
static inline int run_cmd(const char *fmt, ...)
{
    char cmd[2000];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(cmd, sizeof(cmd), fmt, ap);
    va_end(ap);
    return system(cmd);
}

static inline void etcd_server_exec(const struct etcd_server *s)
{
    char data[80], client[80], peer[80], cluster[100];
    const char *argv[32] = {"/usr/bin/etcd", "--name", "t", "--data-dir", data,
                            "--listen-client-urls", client, "--advertise-client-urls", client,
                            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                            "--initial-cluster", cluster, "--logger", "zap"};
    size_t n = 17;
    int fd;

    snprintf(data, sizeof(data), "%s/data", s->dir);
    snprintf(client, sizeof(client), "%s://127.0.0.1:%u", s->scheme, s->port);
    snprintf(peer, sizeof(peer), "http://127.0.0.1:%u", s->peer_port);
    snprintf(cluster, sizeof(cluster), "t=%s", peer);
    for (size_t i = 0; s->extra[i]; i++)
        argv[n++] = s->extra[i];
    fd = open("/dev/null", O_RDWR);
    if (getenv("ETCD_TEST_LOG"))
        fd = open(getenv("ETCD_TEST_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(fd, 1);
    dup2(fd, 2);
    execv(argv[0], (char *const *)(uintptr_t)argv);
    _exit(127);
}

/* Starts (again) on the same data and ports. Readiness is for the client to wait for. */
static inline void etcd_server_run(struct etcd_server *s)
{
    s->pid = fork();
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails cleans nothing up */
        etcd_server_exec(s);
    }
    for (uint64_t end = clock_mono_ms() + ETCD_TEST_LIMIT_MS; !port_open(s->port); usleep(5000))
        if (clock_mono_ms() > end)
            abort();
}

static inline void etcd_server_start(struct etcd_server *s)
{
    if (!s->scheme[0])
        strcpy(s->scheme, "http");
    strcpy(s->dir, "/tmp/cdc-etcd-XXXXXX");
    if (!mkdtemp(s->dir))
        abort();
    s->port = free_port();
    do
        s->peer_port = free_port();
    while (s->peer_port == s->port);
    snprintf(s->endpoint, sizeof(s->endpoint), "127.0.0.1:%u", s->port);
    etcd_server_run(s);
}

static inline void etcd_server_kill(struct etcd_server *s)
{
    if (s->pid > 0) {
        kill(s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
    }
    s->pid = 0;
}

static inline void etcd_server_remove(struct etcd_server *s)
{
    etcd_server_kill(s);
    run_cmd("rm -rf %s", s->dir);
}

/* ---- writing ---- */

struct etcd_hand {
    struct loop *loop;
    struct grpc_client *grpc;
    bool done;
    int status;
    char message[200];
    int64_t revision;
};

static inline void hand_open(struct etcd_hand *h, struct loop *l, const struct etcd_server *s)
{
    struct grpc_options o = {.host = "127.0.0.1", .port = (uint16_t)s->port, .log_name = "hand"};

    *h = (struct etcd_hand){.loop = l, .grpc = grpc_client_new(l, &o, NULL)};
}

static inline void hand_close(struct etcd_hand *h)
{
    grpc_client_close(h->grpc);
    h->grpc = NULL;
}

/* Every answer begins with field 1, the header, whose field 3 is the revision. */
static inline int64_t header_revision(const uint8_t *data, size_t len)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f, g;

    while (pb_scan_next(&s, &f) > 0)
        if (f.num == 1 && f.wire == PB_LEN)
            for (struct pb_scan t = pb_scan_init(f.data, f.len); pb_scan_next(&t, &g) > 0;)
                if (g.num == 3)
                    return (int64_t)g.varint;
    return 0;
}

static inline void on_hand(void *arg, const struct grpc_result *r)
{
    struct etcd_hand *h = arg;

    h->done = true;
    h->status = r->status;
    snprintf(h->message, sizeof(h->message), "%s", r->message);
    if (r->status == 0)
        h->revision = header_revision(r->body, r->body_len);
}

/* Sends what out holds (and releases it); returns the revision of the answer. */
static inline int64_t hand_call(struct etcd_hand *h, const char *path, struct pb_out *out)
{
    for (int i = 0; i < 100; i++) {
        struct evbuffer *body = evbuffer_new();
        uint64_t end = clock_mono_ms() + ETCD_TEST_LIMIT_MS;

        evbuffer_add(body, out->data, out->len);
        h->done = false;
        grpc_unary(h->grpc, path, NULL, body, 10000, on_hand, h);
        evbuffer_free(body);
        while (!h->done && clock_mono_ms() < end) {
            loop_once(h->loop, false);
            usleep(200);
        }
        if (h->done && h->status == 0)
            break;
        usleep(50000); /* the server is only just starting */
    }
    pb_out_release(out);
    if (h->status != 0) {
        fprintf(stderr, "%s: status %d %s\n", path, h->status, h->message);
        abort();
    }
    return h->revision;
}

static inline int64_t hand_put(struct etcd_hand *h, const char *key, const void *value, size_t len)
{
    struct pb_out out = {0};

    pb_out_str(&out, 1, key);
    pb_out_bytes(&out, 2, value, len);
    return hand_call(h, "/etcdserverpb.KV/Put", &out);
}

static inline int64_t hand_delete(struct etcd_hand *h, const char *key)
{
    struct pb_out out = {0};

    pb_out_str(&out, 1, key);
    return hand_call(h, "/etcdserverpb.KV/DeleteRange", &out);
}

static inline int64_t hand_compact(struct etcd_hand *h, int64_t revision)
{
    struct pb_out out = {0};

    pb_out_u64(&out, 1, (uint64_t)revision);
    pb_out_u64(&out, 2, 1); /* physical: answers when it is done */
    return hand_call(h, "/etcdserverpb.KV/Compact", &out);
}

/* One transaction: puts of several keys at one revision (rpc.proto TxnRequest.success, RequestOp). */
struct hand_kv {
    const char *key;
    const void *value;
    size_t len;
};
static inline int64_t hand_txn(struct etcd_hand *h, const struct hand_kv *kvs, size_t n)
{
    struct pb_out txn = {0};

    for (size_t i = 0; i < n; i++) {
        struct pb_out put = {0}, op = {0};

        pb_out_str(&put, 1, kvs[i].key);
        pb_out_bytes(&put, 2, kvs[i].value, kvs[i].len);
        pb_out_bytes(&op, 2, put.data, put.len);
        pb_out_bytes(&txn, 2, op.data, op.len);
        pb_out_release(&put);
        pb_out_release(&op);
    }
    return hand_call(h, "/etcdserverpb.KV/Txn", &txn);
}
#endif
