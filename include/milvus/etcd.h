/*
 * etcd.h - etcd v3 client: range, watch, authentication, several endpoints, on net/grpc.
 *
 * Facts: etcd api/etcdserverpb/rpc.proto (KV.Range, Watch.Watch, Auth.Authenticate).
 */
#ifndef MILVUS_ETCD_H
#define MILVUS_ETCD_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct loop;
struct etcd_client;
struct etcd_call;

struct etcd_options {
    const char *const *endpoints; /* "host:port", "http://host:port", "https://..."; NULL-terminated */
    const char *username, *password; /* NULL: no authentication */
    bool tls;
    const char *ca_path, *cert_path, *key_path;
    int tls_min_version; /* 0, 10, 11, 12, 13 */
    unsigned dial_timeout_ms; /* 0: 5000 */
};
/* Copies the options. NULL with ERR_INVALID (USER): no endpoint, bad endpoint, unreadable file. Connects on first use. */
struct etcd_client *etcd_open(struct loop *l, const struct etcd_options *o, struct err *err);
void etcd_close(struct etcd_client *e); /* open calls and watches end without completion */

struct etcd_kv {
    const char *key; /* terminated; etcd keys of Milvus are text */
    size_t key_len;
    const uint8_t *value;
    size_t value_len;
    int64_t mod_revision;
};

typedef void (*etcd_range_fn)(void *arg, const struct err *err, const struct etcd_kv *kvs, size_t n, bool more,
                              int64_t revision);
/* Range over [key, end), linearizable; limit 0: all. revision 0: the newest, else at that one. Endpoint fail-over and
 * token renewal inside; RETRY errors come back only after every endpoint was tried. ERR_GONE (RETRY): compacted. */
struct etcd_call *etcd_range(struct etcd_client *e, const char *key, const char *end, int64_t limit, int64_t revision,
                             etcd_range_fn done, void *arg);
/* The same, but only keys that were changed at min_mod_revision or later (0: all). */
struct etcd_call *etcd_range_since(struct etcd_client *e, const char *key, const char *end, int64_t limit,
                                   int64_t revision, int64_t min_mod_revision, etcd_range_fn done, void *arg);
/* No completion after this. NULL is allowed. A call that completed is gone: forget the pointer inside done(). */
void etcd_cancel(struct etcd_call *c);

/* The end of the range of all keys with that prefix (last byte + 1). Caller frees. */
char *etcd_prefix_end(const char *prefix);

enum etcd_event_type { ETCD_PUT, ETCD_DELETE };
struct etcd_event {
    enum etcd_event_type type;
    struct etcd_kv kv;
};
struct etcd_watch;
struct etcd_watch_cbs {
    /* The events of one answer (whole revisions), in order. n 0: progress only. Everything up to revision was told,
     * nothing is told twice. */
    void (*on_events)(void *arg, const struct etcd_event *events, size_t n, int64_t revision);
    /* The start revision is compacted (or this is another cluster: compact_revision 0): take a new snapshot.
     * The watch is gone when this returns; forget the pointer. */
    void (*on_compacted)(void *arg, int64_t compact_revision);
    /* Lost the stream (goes on by itself from the last revision + 1); NULL: over. USER: a human must act
     * (credentials, permissions); it is tried again all the same, slowly. Told when the error changes. */
    void (*on_trouble)(void *arg, const struct err *err);
};
/* Watches [key, end) from start_revision on; fragments are joined; reconnects inside. */
struct etcd_watch *etcd_watch_start(struct etcd_client *e, const char *key, const char *end, int64_t start_revision,
                                    const struct etcd_watch_cbs *cbs, void *arg);
void etcd_watch_stop(struct etcd_watch *w); /* NULL is allowed */
#endif
