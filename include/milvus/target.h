/*
 * target.h - a target Milvus: connection, login, mode, and the sink of repl/port.h: for a standby (ReplicateMessage and
 * DDL with ReplicateInfo; target.md 1 to 3) and for any other Milvus (the public API; target.md 6).
 *
 * The sink of a plain target: ensure_collection() makes a collection with autoID off, since the source's keys are kept.
 * The public API hashes rows itself, so that the numbers of shards and of a partition key's partitions may differ: the
 * answer has the source's own shards, and with a partition key the source's own partitions, under ids of no meaning.
 */
#ifndef MILVUS_TARGET_H
#define MILVUS_TARGET_H
#include <stdbool.h>
#include <stdint.h>

struct err;
struct loop;
struct sink;

struct fence;

enum target_mode { TARGET_STANDBY, TARGET_PLAIN };

struct target_options {
    enum target_mode mode; /* TARGET_PLAIN: an ordinary Milvus, written through its public API */
    const char *uri;      /* http://host:port or https://host:port */
    const char *token;    /* "user:password" or an API key; NULL or "": no authorization header */
    unsigned connect_timeout_ms;
    /* dial_config; NULL: none. TLS is used for https, and whenever ca_path or cert_path is given. */
    const char *tls_server_name, *ca_path, *cert_path, *key_path;
    bool ignore_partition; /* partitions are not created or dropped */
    bool leave_out;        /* TARGET_PLAIN: fields that the target's version does not know are left out */
    const char *agent; /* who writes, for the logs of whoever stands between; NULL: the program only */
    const struct fence *fence; /* borrowed, outlives the sink: while it is closed nothing is sent. NULL: none */
};

/* Checks uri ("http://host:port", port optional: 19530): host, port, tls. ERR_INVALID (USER) with a text for the API. */
int target_parse_uri(const char *uri, char **ret_host, uint16_t *ret_port, bool *ret_tls, struct err *err);

typedef void (*target_probe_fn)(void *arg, const struct err *err, enum target_mode mode, const char *version);
struct target_probe;

/*
 * Connects, calls Connect, then asks ReplicateMessage with an empty channel: code 1100 a standby, 1900 or
 * UNIMPLEMENTED a plain server. Unreachable within connect_timeout_ms: RETRY error that names the address
 * and the reason; wrong password: USER. A probe has a connection of its own.
 */
struct target_probe *target_probe_start(struct loop *l, const struct target_options *o, target_probe_fn done, void *arg);
void target_probe_cancel(struct target_probe *p); /* a probe that completed is gone */

/* The sink for o->mode. Copies the options. Never fails for a uri that target_parse_uri took (but PEM files). */
struct sink *target_open(struct loop *l, const struct target_options *o, struct err *err);
/* Open calls end without completion. */
void target_close(struct sink *s);
/* The fence has closed: loses the connection at once, with all that the kernel has not sent yet. */
void target_cut(struct sink *s);
/* Why the target cannot be reached now, or NULL. Borrowed. */
const char *target_trouble(struct sink *s);

/*
 * Milvus Status (code, old error_code, reason) to err; 0 when it is a success. target.md 1.1.
 * ERR_INTERNAL (RETRY) is code 65535 and any code not known here: only the text tells, so the caller counts and
 * asks a human after some.
 */
int target_status_err(int32_t code, int32_t old_code, const char *reason, const char *context, struct err *err);
#endif
