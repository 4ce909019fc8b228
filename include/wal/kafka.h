/*
 * kafka.h - the WAL port on Kafka, through librdkafka.
 *
 * A topic of Milvus has one partition, number 0. Each reader assigns it to itself at an explicit offset; there is no
 * consumer group, nothing is committed, no topic is created. A position's minor is offset + 1; its encoded id is the
 * offset as int64, little endian (source.md 7.1).
 *
 * Clients    librdkafka lets one client read a partition once. So a second reader of a topic gets a second client;
 *            there are as many as the greatest number of readers that one topic has at a time.
 * Start      a position must exist as a message, else LOST (ERR_GONE), with the offsets that exist. One that is
 *            behind the end is LOST too (the topic was made anew), after three seconds in which it may turn up: the
 *            end of a new leader may lag. A topic that is not there is waited for; a reader that has a position
 *            there tells RETRY meanwhile.
 * end()      found is true only if the last message was not yet removed: of a topic that retention has emptied it is
 *            false, and "earliest" then is the next message that comes. Answers within 4 s; RETRY if the brokers do
 *            not. A last record of a transaction (Milvus has none) is not a message: starting there is LOST.
 * on_batch   n = 0 with caught_up is possible: the end was reached, or the topic is empty or not there. Records
 *            without a value are skipped.
 * Memory     librdkafka prefetches fetch_bytes in all (or one batch of the producer for each of the 16 topics that may
 *            have data waiting at a time, if those are bigger). What was handed over counts for its holder. A record
 *            of 16 KiB or more is not copied: it holds what the broker sent or packed together with it (at most
 *            fetch_bytes / 4, or one batch).
 * Trouble    RETRY is told when reading does not work for a second: no broker, credentials refused (librdkafka goes
 *            on trying: also a broker that starts refuses), no leader. LOST and DATA (a damaged batch, with its
 *            offset) end a reader. A topic made anew while it is read and already longer than our place is not seen
 *            (Kafka before KIP-516 has no identity for that).
 * Threads    librdkafka's only write to event file descriptors. Questions to brokers that block run in one helper
 *            thread. Everything else, and every callback, on the loop thread.
 */
#ifndef WAL_KAFKA_H
#define WAL_KAFKA_H
#include <stddef.h>

struct err;
struct loop;
struct wal_port;

struct kafka_options {
    const char *brokers;           /* "host:port,host:port" */
    const char *security_protocol; /* NULL or "": PLAINTEXT; SASL_PLAINTEXT, SSL, SASL_SSL, any case */
    /* PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; NULL or "": none. SCRAM of librdkafka before 2.6.1 (Debian 12 has 2.0.2) is
     * refused by Kafka 4; the trouble's text says so. A newer library in its place needs no rebuild. */
    const char *sasl_mechanisms, *sasl_username, *sasl_password;
    const char *ca_path, *cert_path, *key_path, *key_password; /* PEM files; NULL or "": none */
    /* More consumer settings of librdkafka: name, value, name, value, NULL; may be NULL. Those that would break what
     * this reader relies on are refused. */
    const char *const *properties;
    size_t fetch_bytes; /* 0: 16 MiB; taken as 4 to 256 MiB */
};

/*
 * Options are copied. Files and settings are checked now, brokers are asked by the first use.
 * NULL: ERR_INVALID (USER), the text names the setting (sourceConfig.kafka.<key>) and never a secret.
 */
struct wal_port *kafka_open(struct loop *l, const struct kafka_options *o, struct err *err);
/*
 * All readers must be closed; callbacks of end() do not come any more. Ends threads and connections, within a second
 * also without brokers. Buffers that were kept may be released later, on the loop thread; the last one ends the
 * client that it came from. NULL is allowed.
 */
void kafka_close(struct wal_port *w);
#endif
