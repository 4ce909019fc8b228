/*
 * nats.h - the WAL port on NATS JetStream, as Milvus's natsmq uses it.
 *
 * One connection for the port, made by the first use and closed when nobody has used it for 10 s. Each reader has an
 * ephemeral pull consumer of its own; a lost one (server restarted, consumer deleted, a message missing) is made
 * again behind the last message. Nothing is ever written to a stream and no stream is made.
 *
 * on_batch   n = 0 with caught_up is possible: the end was reached, or the topic is empty or not there.
 * end()      found false also when all messages were removed although the stream's last sequence is not 0: to start
 *            from the earliest is then the same as to start behind that sequence, and needs no message to exist.
 * Memory     in flight and not yet received: fetch_bytes over all readers (one single message may be larger). Held for
 *            paused readers: as much again; what comes above that is dropped and read again after resume().
 * Errors     LOST (ERR_GONE): a start position, or a message behind the last one read, was removed, or the stream was
 *            removed or made anew after reading began. USER (ERR_INVALID): no legal stream name. RETRY for all else,
 *            told after it lasted one second; a refused login too (ERR_AUTH), as a restart of the source may cure it.
 * Facts      shared/reference/source.md 7.3, docs.nats.io "client protocol", nats-server 2.9.17.
 * Thread     loop thread only.
 */
#ifndef WAL_NATS_H
#define WAL_NATS_H
#include <stdbool.h>
#include <stddef.h>

struct err;
struct loop;
struct wal_port;

struct nats_options {
    const char *address; /* "host:port" or "nats://host:port" or "tls://host:port", several with commas */
    const char *username, *password, *token; /* NULL: none */
    bool tls;
    const char *ca_path, *cert_path, *key_path; /* NULL: none */
    size_t fetch_bytes; /* most bytes asked for and not yet received, in all; 0: 8 MiB */
};

/* NULL with ERR_INVALID (USER) naming the setting (sourceConfig.natsmq.<key>). Connects on first use. Strings are
 * copied. */
struct wal_port *nats_open(struct loop *l, const struct nats_options *o, struct err *err);
/* All readers must be closed; callbacks of end() do not come any more. NULL is allowed. */
void nats_close(struct wal_port *w);
#endif
