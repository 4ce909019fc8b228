/*
 * pulsar.h - the WAL port on Apache Pulsar in its binary protocol on our own loop (tested with 4.0.7).
 *
 * A reader is a non-durable exclusive subscription of a name of its own, so any number of readers share a topic and
 * none holds data back. What must be kept on the broker is said with retain(): one durable subscription
 * "<prefix><owner>" per (owner, topic), acknowledged up to the message before what is needed. Nothing here creates a
 * topic.
 *
 * Topics     persistent://tenant/name_space/<topic>, or "<topic>-partition-0" of a topic with one partition. More
 *            partitions are refused (USER): Milvus writes to one.
 * Positions  major = ledger + 1, minor = entry << 20 | index in the batch; a chunked message is at its last chunk.
 *            The id on the wire is MessageIdData as Milvus writes it.
 * Start      inclusive, and the message must come: whatever comes first after it is LOST. The same rule holds after
 *            each reconnect, with the last delivered message, so that nothing is lost or doubled in silence. A topic
 *            that is gone for some seconds is LOST too.
 * end()      found false when nothing can be read: no topic, no message, or all were removed (retention). A last id
 *            of which only metadata is left is not told as found (the broker answers so), so joining there is not LOST.
 * caught_up  the last message that the broker named when the reader (re)connected was delivered, or nothing came for
 *            some ms after a message. n = 0 is possible; a topic that is not there yet is an end too.
 * Memory     what is on the way is bounded through permits, by receive_bytes in all: held messages of paused readers
 *            above it are dropped and read again after resume().
 * Broker     defaults do. Its namespace may remove what retain() keeps: a message TTL acknowledges for every
 *            subscription, a subscription expiration drops ours while milvus-cdc is down. A backlog quota counts what
 *            is kept and may stop Milvus. allowAutoSubscriptionCreation must be on.
 * Errors     LOST (ERR_GONE) as above. USER: partitions, a name that the broker refuses. DATA: an entry that is
 *            encrypted or damaged on the broker. RETRY for all else (a refused token too: it may be the broker's own
 *            trouble), told after it lasted one second, over when it reads again.
 * Facts      shared/reference/source.md 7.2, PulsarApi.proto, PIP 37 (chunks).   Thread  loop thread only.
 */
#ifndef WAL_PULSAR_H
#define WAL_PULSAR_H
#include <stdbool.h>
#include <stddef.h>

struct err;
struct loop;
struct wal_port;

struct pulsar_options {
    const char *address;             /* "host:port", "pulsar://h:p[,h:p]", "pulsar+ssl://h:p" */
    const char *tenant, *name_space; /* NULL: public, default */
    const char *auth_token;          /* NULL: none. Never logged */
    const char *ca_path, *cert_path, *key_path; /* TLS, NULL: the system's store, no certificate */
    bool tls_skip_hostname;          /* do not compare the certificate's name */
    size_t receive_bytes;            /* bound of what brokers may have on the way to us in all, 0: 8 MiB */
    const char *subscription_prefix; /* NULL: "milvus-cdc-" */
};

/* Connects on first use. All strings are copied. NULL with ERR_INVALID (USER) naming the setting
 * (sourceConfig.pulsar.<key>). */
struct wal_port *pulsar_open(struct loop *l, const struct pulsar_options *o, struct err *err);
/* All readers must be closed; callbacks of end() and forget() do not come any more. What retain() asked for last may
 * not have reached the broker, which then keeps more than needed. NULL is allowed. */
void pulsar_close(struct wal_port *w);
#endif
