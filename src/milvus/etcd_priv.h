/*
 * etcd_priv.h - the parts of the etcd client: endpoints taken in turn, the login's token, unary calls, watches.
 *
 * Ownership  calls and watches are in the client's lists until they are retired; their memory goes when the loop turn
 *            ends.   Thread  loop thread only.
 */
#ifndef MILVUS_ETCD_PRIV_H
#define MILVUS_ETCD_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/queue.h>

#include "base/backoff.h"
#include "base/err.h"
#include "loop/loop.h"
#include "milvus/etcd.h"
#include "net/grpc.h"

#include "etcd.pb-c.h"

enum { ETCD_POLL_MS = 250 /* how soon a refused connection makes us try another endpoint */ };

/* gRPC status numbers (google.rpc.Code). */
enum {
    GRPC_INVALID_ARGUMENT = 3,
    GRPC_PERMISSION_DENIED = 7,
    GRPC_FAILED_PRECONDITION = 9,
    GRPC_OUT_OF_RANGE = 11,
    GRPC_UNAUTHENTICATED = 16,
};

struct endpoint {
    char *name; /* "host:port" */
    struct grpc_client *grpc;
};

enum login_state {
    LOGIN_NONE,   /* no credentials, or the server has authentication off: no token needed */
    LOGIN_NEEDED, /* no token, or a refused one */
    LOGIN_RUNNING,
    LOGIN_DONE,
};

struct etcd_client {
    struct loop *loop;
    struct endpoint *endpoints;
    unsigned n_endpoints;
    unsigned current; /* where the next call begins */
    unsigned dial_ms, try_ms;
    char *username, *password;
    enum login_state login;
    unsigned token_gen; /* rises with each token */
    uint64_t cluster_id; /* of the last range, 0: none yet */
    TAILQ_HEAD(, etcd_call) calls;
    TAILQ_HEAD(, etcd_watch) watches;
};

/* A walk over the endpoints for one request: each is tried once a round. */
struct rotation {
    unsigned at, tried;
    uint64_t since_ms; /* when the present one was asked */
};

enum call_state {
    CALL_LOGIN,   /* waits for a token */
    CALL_SENT,    /* timer: looks for a refused connection */
    CALL_FAILING, /* err is to be told from the loop; timer armed */
    CALL_OVER,
};

struct etcd_call {
    TAILQ_ENTRY(etcd_call) next;
    struct etcd_client *e;
    enum call_state state;
    bool is_login;
    uint8_t *body;
    size_t body_len;
    struct rotation rot;
    unsigned logins;    /* that this call has asked for */
    unsigned token_gen; /* of the token sent */
    struct grpc_call *grpc;
    struct timer timer;
    struct err err;
    etcd_range_fn done;
    void *arg;
};

enum watch_state {
    WATCH_LOGIN,   /* waits for a token */
    WATCH_OPENING, /* sent; timer: looks for refused connections, and the deadline */
    WATCH_LIVE,    /* the server has confirmed it; no timer, the connection has its own pings */
    WATCH_FAILING, /* err is to be handled from the loop; timer armed */
    WATCH_BACKOFF, /* timer armed */
    WATCH_OVER,
};

struct etcd_watch {
    TAILQ_ENTRY(etcd_watch) next;
    struct etcd_client *e;
    enum watch_state state;
    char *key, *end;
    int64_t next_revision;
    uint64_t cluster_id;
    struct rotation rot;
    unsigned logins, token_gen;
    struct grpc_call *stream;
    struct timer timer;
    struct backoff backoff;
    struct err err;
    bool troubled; /* the owner was told of told_code */
    enum err_code told_code;
    /* Fragments of an answer that is not complete yet. */
    Etcdpb__WatchResponse **parts;
    size_t n_parts, parts_bytes;
    const struct etcd_watch_cbs *cbs;
    void *arg;
};

static inline bool etcd_text_has(const char *message, const char *part)
{
    return message && strstr(message, part);
}
static inline ProtobufCBinaryData etcd_text_bytes(const char *text)
{
    return (ProtobufCBinaryData){text ? strlen(text) : 0, (uint8_t *)(uintptr_t)text};
}

/* ---- etcd_endpoint.c */
int etcd_endpoints_init(struct etcd_client *e, const struct etcd_options *o, struct err *err);
struct endpoint *etcd_rot_endpoint(const struct etcd_client *e, const struct rotation *r);
void etcd_rot_start(const struct etcd_client *e, struct rotation *r);
/* True: the endpoint cannot be reached, and it is better not to wait for it any longer. */
bool etcd_rot_give_up(const struct etcd_client *e, const struct rotation *r, const char **ret_why);
/* The endpoint failed.  True: another one is to be tried in this round. */
bool etcd_rot_next(struct etcd_client *e, struct rotation *r);

/* ---- etcd_login.c */
bool etcd_token_refused(int status, const char *message);
int etcd_credentials_err(const struct etcd_client *e, const char *message, struct err *err);
/* Asks for a new token, unless somebody got one since that of gen.  False: there is no point. */
bool etcd_login_renew(struct etcd_client *e, unsigned gen, unsigned *logins);
/* True: a token is on its way and whoever waits for it is told by etcd_login_finish(). */
bool etcd_login_wait(struct etcd_client *e);
/* Lets all who wait go on, or fail with err; from the loop, since owners may do anything then. */
void etcd_login_finish(struct etcd_client *e, const struct err *err);
/* The answers to Authenticate. not_enabled: false when it says something else. */
void etcd_login_ok(struct etcd_client *e, const struct grpc_result *r);
bool etcd_login_not_enabled(struct etcd_client *e, const struct grpc_result *r);

/* ---- etcd_call.c, etcd_watch.c */
struct etcd_call *etcd_call_new(struct etcd_client *e);
void etcd_call_try(struct etcd_call *c);
/* Out of the world; nothing of it fires any more. */
void etcd_call_retire(struct etcd_call *c);
/* The value stays where it lies in src; the key is copied to *keys, since it needs an end. */
struct etcd_kv etcd_kv_from(const Etcdpb__KeyValue *src, char **keys);
void etcd_watch_retire(struct etcd_watch *w);
#endif
