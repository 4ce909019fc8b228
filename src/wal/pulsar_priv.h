/*
 * pulsar_priv.h - the parts of the Pulsar port.
 *
 *   pulsar_frame.c   frames and commands                  pulsar_sub.c     topic -> broker -> subscription
 *   pulsar_entry.c   what an entry holds: checksum,       pulsar_reader.c  struct wal_reader
 *                    compression, batches, chunks         pulsar_end.c     end()
 *   pulsar_conn.c    one connection per broker            pulsar_retain.c  retain(), forget()
 *   pulsar.c         options, ids, the port
 *
 * A subscription (psub) is one try: it resolves, connects, subscribes, and ends with the first failure; its owner waits
 * and makes a new one. Callbacks never come from inside a call of the owner.
 */
#ifndef WAL_PULSAR_PRIV_H
#define WAL_PULSAR_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/backoff.h"
#include "base/err.h"
#include "loop/loop.h"
#include "repl/port.h"

#include "pulsar.pb-c.h"

struct conn_tls;
struct pb_out;
struct pconn;
struct pend;
struct preq;
struct pretain;
struct psub;
struct pulsar;

enum {
    PULSAR_MESSAGE_MAX = 64 << 20,             /* of a message or batch, before and after decompression */
    PULSAR_FRAME_MAX = (64 << 20) + (64 << 10), /* with command and metadata */
    PULSAR_FRAME_DEFAULT = (5 << 20) + (64 << 10),
    PULSAR_REQUEST_MS = 20000,
    PULSAR_PING_MS = 30000, /* of silence before a ping */
    PULSAR_DEAD_MS = 60000, /* of silence, that is, 30 s after the ping */
    PULSAR_CONNECT_MS = 10000,
    PULSAR_INDEX_BITS = 20, /* of wal_pos.minor */
};
#define PULSAR_ID_NONE UINT64_MAX /* -1 of the broker: ledger or entry that is none */

/* ---- frames (pulsar_frame.c) --------------------------------------------------------------- */

/* Appends a frame with both lengths; payload (may be NULL) comes behind the command, as it is. */
void pulsar_frame_write(struct pb_out *out, const Pulsar__BaseCommand *cmd, const void *payload, size_t len);

/* data: a frame without its first length. The rest is what follows the command (borrows from data). NULL and err
 * (PROTO, RETRY): not a frame, a broken command, or one without the part that its type says. */
Pulsar__BaseCommand *pulsar_frame_parse(const uint8_t *data, size_t len, const uint8_t **ret_rest, size_t *ret_rest_len,
                                        struct err *err);
void pulsar_command_free(Pulsar__BaseCommand *cmd); /* NULL is allowed */

/* The answer to a request: its id. False: not an answer. ret_err: code 0, or what the broker refused. */
bool pulsar_answer(const Pulsar__BaseCommand *cmd, uint64_t *ret_id, struct err *ret_err);
/* Fills err from a ServerError and its text. */
int pulsar_server_error(struct err *err, int code, const char *text);

/* ---- entries (pulsar_entry.c) -------------------------------------------------------------- */

struct pulsar_meta {
    int compression;
    uint32_t uncompressed_size;
    bool batch;      /* the payload is framed by SingleMessageMetadata */
    uint32_t n_msgs; /* at least 1 */
    bool encrypted, marker;
    const uint8_t *uuid; /* a chunk; else NULL */
    size_t uuid_len;
    uint32_t n_chunks, chunk_id, total_size;
};

/* One entry of a ledger as it came. */
struct pulsar_entry {
    STAILQ_ENTRY(pulsar_entry) next;
    struct buf *frame;
    uint64_t ledger, entry;
    struct pulsar_meta meta; /* borrows from frame */
    const uint8_t *payload;
    size_t len;
};
STAILQ_HEAD(pulsar_entries, pulsar_entry);

/* What follows a MESSAGE command: checksum, metadata, payload; all borrow from data. ERR_PROTO, RETRY: not so. */
int pulsar_entry_parse(const uint8_t *data, size_t len, struct pulsar_entry *ret, struct err *err);
void pulsar_entry_free(struct pulsar_entry *e);

/* Messages as they are delivered. buf NULL: an entry or message that is there but is not for the user (a chunk that is
 * not the last, what compaction left out, a marker). */
struct pulsar_msgs {
    struct wal_msg *v;
    size_t n, cap, bytes;
};
void pulsar_msgs_clear(struct pulsar_msgs *m);
void pulsar_msgs_release(struct pulsar_msgs *m);

/* Keeps what one reader needs from entry to entry: unfinished chunked messages, zstd's memory. */
struct pulsar_decoder;
struct pulsar_decoder *pulsar_decoder_new(void);
void pulsar_decoder_reset(struct pulsar_decoder *d); /* forgets chunks: reading starts elsewhere */
void pulsar_decoder_free(struct pulsar_decoder *d);  /* NULL is allowed */

/*
 * Appends the messages of an entry; on failure nothing is appended.
 *   ERR_NOT_FOUND  the last chunk of a message whose first ones were not read: start earlier
 *   others         DATA: this entry can never be read
 */
int pulsar_decode(struct pulsar_decoder *d, const struct pulsar_entry *e, struct pulsar_msgs *out, struct err *err);

/* ---- connections (pulsar_conn.c) ----------------------------------------------------------- */

/* err NULL: answer is the command (borrowed). Both NULL: what pconn_ready() waited for. The request is gone. */
typedef void (*preq_fn)(void *arg, const Pulsar__BaseCommand *answer, const struct err *err);

/* The connection to one of the addresses of the settings. Borrowed. */
struct pconn *pconn_service(struct pulsar *p);
/* To a broker; through_service: by way of a proxy at the service address. NULL: the URL cannot be used (err). */
struct pconn *pconn_broker(struct pulsar *p, const char *url, bool through_service, struct err *err);

uint64_t pulsar_next_id(struct pulsar *p);
/* Completes when the broker has greeted. */
struct preq *pconn_ready(struct pconn *c, preq_fn done, void *arg);
/* cmd has the request id. Waits for the greeting; has a deadline. */
struct preq *pconn_request(struct pconn *c, const Pulsar__BaseCommand *cmd, uint64_t id, preq_fn done, void *arg);
void preq_cancel(struct preq *r); /* no done after this. NULL is allowed */
void pconn_send(struct pconn *c, const Pulsar__BaseCommand *cmd); /* ignored when there is no connection */
/* The broker can be asked for a topic's partitions without making the topic. Known once ready. */
bool pconn_safe_metadata(const struct pconn *c);
/* Messages and the end of consumer id go to s. */
void pconn_attach(struct pconn *c, struct psub *s);
void pconn_detach(struct pconn *c, struct psub *s);
void pconns_close(struct pulsar *p);

/* ---- subscriptions (pulsar_sub.c) ---------------------------------------------------------- */

struct psub_cbs {
    void (*on_ready)(void *arg);
    /* The entry is the callee's. NULL: readers only. */
    void (*on_entry)(void *arg, struct pulsar_entry *e);
    /* Once, the last. NOT_FOUND: no such topic. Call psub_close(). */
    void (*on_down)(void *arg, const struct err *err);
};
struct psub_options {
    const char *topic;        /* short name */
    const char *subscription; /* NULL: a name of its own, not durable */
    bool earliest;            /* else from ledger:entry, inclusive; a durable one begins with the earliest */
    uint64_t ledger, entry;
};
struct psub *psub_open(struct pulsar *p, const struct psub_options *o, const struct psub_cbs *cbs, void *arg);
void psub_close(struct psub *s); /* from any callback. NULL is allowed */

/* Once ready: */
void psub_flow(struct psub *s, uint32_t permits);
struct preq *psub_last(struct psub *s, preq_fn done, void *arg); /* GetLastMessageId */
struct preq *psub_ack(struct psub *s, uint64_t ledger, uint64_t entry, preq_fn done, void *arg); /* cumulative */
struct preq *psub_unsubscribe(struct psub *s, preq_fn done, void *arg);

/* For pulsar_conn.c */
struct psub_link {
    LIST_ENTRY(psub_link) next;
    uint64_t consumer_id;
    struct psub *sub;
};
struct psub_link *psub_link(struct psub *s);
void psub_got_entry(struct psub *s, struct pulsar_entry *e);
/* The consumer is no more; the connection has forgotten it. */
void psub_lost(struct psub *s, const struct err *err);
/* What came cannot be used. */
void psub_damaged(struct psub *s, const struct err *err);

/* ---- the port ------------------------------------------------------------------------------ */

struct pulsar_addr {
    char *host;
    uint16_t port;
};
LIST_HEAD(pconn_list, pconn);
LIST_HEAD(preader_list, wal_reader);
LIST_HEAD(pend_list, pend);

struct pulsar {
    struct wal_port port;
    struct loop *loop;
    struct pulsar_addr *addrs;
    size_t n_addrs, addr; /* addr: the one in use */
    bool use_tls;
    struct conn_tls *tls; /* NULL: none */
    char *tenant, *name_space, *token, *prefix;
    size_t receive_bytes;
    size_t held; /* bytes of entries that are not delivered yet, of all readers */
    size_t n_readers;
    unsigned request_ms, ping_ms, dead_ms; /* as above; tests have less time */
    uint64_t last_id; /* of requests and consumers */
    char run[24];     /* makes the names of our readers unique */
    struct pconn_list conns;
    struct preader_list readers;
    struct pend_list ends;
    struct pretain *retains; /* hash */
};

static inline struct pulsar *pulsar_of(struct wal_port *w)
{
    return (struct pulsar *)(void *)w; /* its first member */
}

/* "host:port" with brackets around an IPv6 address; default_port 0: must be there. False: neither. */
bool pulsar_addr_parse(const char *text, size_t len, uint16_t default_port, struct pulsar_addr *ret);
/* Of a broker's id; index below 0 is 0. False: more than wal_pos can hold, or none. */
bool pulsar_pos(uint64_t ledger, uint64_t entry, int32_t index, struct wal_pos *ret);

struct wal_reader *preader_open(struct wal_port *w, const char *topic, const struct wal_start *start,
                                const struct wal_reader_cbs *cbs, void *arg);
void preader_pause(struct wal_reader *r);
void preader_resume(struct wal_reader *r);
void preader_close(struct wal_reader *r);

void pend_start(struct wal_port *w, const char *topic, wal_end_fn done, void *arg);
void pend_cancel(struct wal_port *w, void *arg);
void pends_close(struct pulsar *p);

void pretain_set(struct wal_port *w, const char *owner, const char *topic, struct wal_pos from);
void pretain_forget(struct wal_port *w, const char *owner, const char *topic, wal_forget_fn done, void *arg);
void pretain_cancel(struct pulsar *p, void *arg);
void pretains_close(struct pulsar *p);
#endif
