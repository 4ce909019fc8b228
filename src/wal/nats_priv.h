/*
 * nats_priv.h - the parts of the NATS port: parser, connection, JetStream requests, reader.
 *
 *   nats_parse.c   bytes to operations; no I/O
 *   nats_conn.c    one connection from look-up to failure: INFO, TLS, CONNECT, pings
 *   nats_js.c      JSON requests to JetStream and their answers
 *   nats_reader.c  one topic: where it is, its consumer, its fetches
 *   nats_options.c settings, checked
 *   nats.c         the port: reconnecting, who gets which message, delivery to the user, the shared budget
 *
 * Only nats.c calls the user, from a timer, one callback in each turn of the loop; so nothing below it has to expect
 * that it is closed from inside.  Thread  loop thread only.
 */
#ifndef WAL_NATS_PRIV_H
#define WAL_NATS_PRIV_H
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uthash.h>

#include "base/backoff.h"
#include "base/err.h"
#include "loop/loop.h"
#include "repl/port.h"

struct buf;
struct ssl_ctx_st;

/* ---- parser (nats_parse.c) ------------------------------------------------------------------ */

enum {
    NATS_CHUNK = 64 << 10,        /* read at once; an INFO line (it lists a cluster's servers) fits in */
    NATS_LINE_MAX = 4 << 10,      /* any other line */
    NATS_PAYLOAD_MAX = 64 << 20,  /* headers and body; NATS's own upper limit of max_payload */
    NATS_DIRECT_MIN = 8 << 10,    /* more than this missing of a message is read straight into it */
};

enum nats_op_kind { NATS_INFO, NATS_MSG, NATS_PING, NATS_PONG, NATS_OK, NATS_ERR };

/* A piece of a line. */
struct nats_text {
    const char *s;
    size_t len;
};

struct nats_op {
    enum nats_op_kind kind;
    struct nats_text text; /* INFO: the JSON; ERR: without the quotes */
    struct nats_text subject, reply; /* MSG; reply may be empty */
    uint64_t sid;
    struct buf *buf;     /* headers, then the body, then two bytes more; buf_ref() to keep */
    size_t hdr_len, len; /* bytes of headers; of headers and body */
};

struct nats_parser {
    uint8_t *chunk;
    size_t begin, end; /* not yet parsed part of chunk */
    bool in_payload, direct, given;
    size_t got;        /* of the payload and its CR LF */
    char line[NATS_LINE_MAX]; /* of op, while its payload comes */
    struct nats_op op;
};

void nats_parser_init(struct nats_parser *p);
void nats_parser_release(struct nats_parser *p); /* {0} is allowed */
/* Where the next bytes belong. All operations must have been taken before. */
void nats_parser_space(struct nats_parser *p, uint8_t **ret, size_t *ret_len);
/* n bytes were put there. */
void nats_parser_filled(struct nats_parser *p, size_t n);
/* 1: *ret is an operation, borrowed until the next call. 0: more bytes are needed. -1: ERR_PROTO or ERR_LIMIT (RETRY);
 * the connection cannot be used any more. */
int nats_parser_next(struct nats_parser *p, struct nats_op *ret, struct err *err);
/* No byte waits in it. */
bool nats_parser_empty(const struct nats_parser *p);

/* A header block's first line and the fields that JetStream uses. */
struct nats_status {
    unsigned code; /* 0: ordinary headers */
    char text[100];
    uint64_t pending_bytes; /* Nats-Pending-Bytes: what was not used of a fetch */
    uint64_t last_consumer, last_stream; /* Nats-Last-Consumer, -Stream: sequences sent last */
};
/* 0 or ERR_PROTO. */
int nats_status_parse(const uint8_t *hdr, size_t len, struct nats_status *ret);

/* "$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>" (or the form with domain and
 * account in front and a token more at the end). */
struct nats_ack {
    struct nats_text key; /* "<stream>.<consumer>" */
    uint64_t stream_seq, consumer_seq, pending;
};
/* Decimal digits only. */
bool nats_number(struct nats_text t, uint64_t *ret);

/* 0 or ERR_PROTO. */
int nats_ack_parse(struct nats_text reply, struct nats_ack *ret);

/* May it be a stream's name (and so a part of a subject)? */
bool nats_name_ok(const char *name);

/* ---- connection (nats_conn.c) ----------------------------------------------------------------- */

struct nats_server {
    char *host;
    uint16_t port;
    bool tls;
};

struct nats_login {
    char *username, *password, *token; /* NULL: none */
};

struct nats_conn_options {
    const struct nats_server *server; /* borrowed, as all here */
    const struct nats_login *login;
    struct ssl_ctx_st *ctx; /* server->tls: never NULL */
    unsigned connect_timeout_ms, ping_ms;
};

struct nats_conn;
/* None comes from inside a call; on_down is the last. Closing from inside one of them is allowed. */
struct nats_conn_events {
    void (*on_up)(void *arg);
    void (*on_msg)(void *arg, const struct nats_op *msg);
    /* The server refuses a subject; the connection goes on. */
    void (*on_refused)(void *arg, const char *text);
    void (*on_down)(void *arg, const struct err *err);
};

struct nats_conn *nats_conn_open(struct loop *l, const struct nats_conn_options *o, const struct nats_conn_events *ev,
                                 void *arg);
void nats_conn_close(struct nats_conn *c); /* NULL is allowed */
/* Both after on_up only; ignored once the connection failed. reply NULL: none. */
void nats_conn_subscribe(struct nats_conn *c, const char *subject, unsigned sid);
void nats_conn_publish(struct nats_conn *c, const char *subject, const char *reply, const char *payload);

/* ---- JetStream requests (nats_js.c) ------------------------------------------------------------ */

enum { NATS_SID_INBOX = 1, NATS_SID_CREATED = 2 };

struct nats_req;
TAILQ_HEAD(nats_req_list, nats_req);

struct nats_js {
    struct loop *loop;
    struct nats_conn *conn; /* NULL: down */
    char inbox[40];         /* "_INBOX.<random>." */
    uint64_t last_id;
    unsigned timeout_ms;
    struct nats_req_list reqs;
    char refused[200]; /* the server's last refusal of a subject, or "" */
};

/* reply: borrowed, an object. Never from inside a call of nats_js. */
typedef void (*nats_reply_fn)(void *arg, const struct err *err, json_t *reply);

void nats_js_init(struct nats_js *js, struct loop *l);
void nats_js_up(struct nats_js *js, struct nats_conn *conn);
/* Completes all requests with err. */
void nats_js_down(struct nats_js *js, const struct err *err);
void nats_js_release(struct nats_js *js); /* drops all requests */
/* Sends payload ("" for none) to $JS.API.<api>.<stream>. NULL when the connection is down. */
struct nats_req *nats_js_request(struct nats_js *js, const char *api, const char *stream, const char *payload,
                                 nats_reply_fn done, void *arg);
void nats_js_cancel(struct nats_req *q); /* NULL is allowed */
/* A message to the inbox; rest: its subject behind the inbox and "r." */
void nats_js_on_reply(struct nats_js *js, struct nats_text rest, const struct nats_op *msg);

struct nats_stream_info {
    uint64_t messages, first, last;
    char created[40];
};
/* 0 or ERR_PROTO. */
int nats_js_stream_info(json_t *reply, struct nats_stream_info *ret, struct err *err);

/* ---- reader (nats_reader.c) --------------------------------------------------------------------- */

enum nats_reader_state {
    NATS_READER_DOWN,   /* no connection, or paused and without a consumer. No event */
    NATS_READER_WAIT,   /* timer armed: looks at the stream again */
    NATS_READER_LOOK,   /* req is STREAM.INFO */
    NATS_READER_CREATE, /* req is CONSUMER.CREATE */
    NATS_READER_ACTIVE, /* the consumer is in the port's table; fetches are under way unless paused */
    NATS_READER_ENDED,  /* end_err is or will be told */
};

enum {
    NATS_FETCHES = 2,       /* of a reader at once */
    NATS_BATCH_MSGS = 4096, /* delivered at once; with more of them waiting a reader does not fetch */
};

struct nats_fetch {
    uint64_t id; /* 0: free */
    size_t asked;
    bool large; /* above nats_base_bytes() when it was sent */
    uint64_t deadline_ms;
};

struct nats_port;

struct wal_reader {
    TAILQ_ENTRY(wal_reader) next;  /* all of the port */
    TAILQ_ENTRY(wal_reader) ready; /* is_ready: something may have to be told */
    TAILQ_ENTRY(wal_reader) hungry; /* is_hungry: waits for its part of the budget */
    bool is_ready, is_hungry;
    struct nats_port *w; /* NULL: closed */
    uint64_t id;
    char *topic;
    struct wal_reader_cbs cbs;
    void *arg;
    enum nats_reader_state state;
    struct timer timer;
    struct backoff backoff;
    struct nats_req *req;
    bool paused;

    /* where it is */
    bool exact;      /* the next message must be seq; else any from seq on */
    bool begun;      /* a message was received, or the stream seen empty: seq need not exist yet */
    bool gap;        /* seq was passed over */
    bool known;      /* the stream was seen, and made at created */
    uint64_t seq;    /* next to receive */
    char created[40];
    struct nats_stream_info info; /* the last look */

    /* its consumer; key is "<stream>.<consumer>" */
    UT_hash_handle hh;
    char *key;
    uint64_t consumer_seq; /* received last */
    uint64_t heard_ms, fetched_ms;

    /* fetches */
    struct nats_fetch fetches[NATS_FETCHES];
    size_t credit;      /* asked for and not received, of all fetches */
    size_t need;        /* the next message is expected not to be larger */
    bool behind;        /* more messages are waiting on the server */
    uint64_t fetch_id;

    /* what the user does not have yet */
    struct wal_msg *msgs;
    size_t n_msgs, cap_msgs;
    bool at_end, end_told;
    struct err end_err; /* code 0: none */
    struct err trouble; /* code 0: none */
    uint64_t trouble_ms;
    bool trouble_told;
};

void nats_reader_init(struct wal_reader *r, struct nats_port *w, const char *topic, const struct wal_start *start);
void nats_reader_release(struct wal_reader *r);
/* The connection is there: looks at the stream. */
void nats_reader_up(struct wal_reader *r);
void nats_reader_down(struct wal_reader *r, const struct err *err);
void nats_reader_on_msg(struct wal_reader *r, const struct nats_ack *ack, const struct nats_op *msg);
/* Of fetch number id. */
void nats_reader_on_status(struct wal_reader *r, uint64_t id, const struct nats_status *st);
void nats_reader_on_created(struct wal_reader *r); /* a stream of its name was made */
void nats_reader_set_paused(struct wal_reader *r, bool paused);
void nats_reader_tick(struct wal_reader *r, uint64_t now_ms);
/* It is at the end and holds more of the budget than it needs there. */
bool nats_reader_wastes(const struct wal_reader *r);
/* Makes its consumer anew behind the last message received. */
void nats_reader_restart(struct wal_reader *r);
/* Asks for more if there is room for it. */
void nats_reader_fetch(struct wal_reader *r);

/* ---- port (nats.c), for the reader --------------------------------------------------------------- */

struct nats_end;

enum nats_port_state {
    NATS_PORT_IDLE,    /* not connected, nobody wants anything */
    NATS_PORT_WAITING, /* retry armed */
    NATS_PORT_DIALING, /* conn is set, not yet up */
    NATS_PORT_UP,
};

struct nats_port {
    struct wal_port port;
    struct loop *loop;
    struct nats_server *servers;
    size_t n_servers, next_server;
    struct nats_login login;
    struct ssl_ctx_st *ctx;
    size_t fetch_bytes;
    enum nats_port_state state;
    struct nats_conn *conn;
    struct nats_js js;
    struct timer retry, tick, deliver;
    struct backoff backoff;
    uint64_t failing_since_ms; /* 0: works */
    uint64_t idle_since_ms;    /* 0: in use */
    uint64_t up_since_ms;
    struct err err;            /* why the last connection failed */
    TAILQ_HEAD(, wal_reader) readers;
    TAILQ_HEAD(nats_ready_list, wal_reader) ready;
    TAILQ_HEAD(, wal_reader) hungry;
    TAILQ_HEAD(, nats_end) ends;
    size_t n_readers;
    uint64_t last_reader_id;
    struct wal_reader *consumers; /* by key */
    size_t outstanding; /* bytes: sum of the readers' credits */
    size_t held;        /* bytes received and not delivered */
    unsigned n_large;   /* fetches above nats_base_bytes() */
};

struct nats_options;
/* Sets servers, login, ctx and fetch_bytes. 0 or ERR_INVALID (USER); what is set then is the caller's to free. */
int nats_options_apply(struct nats_port *w, const struct nats_options *o, struct err *err);

/* Something of r has to be told. */
void nats_port_ready(struct nats_port *w, struct wal_reader *r);
/* Something is in trouble: looks soon whether that lasts. */
void nats_port_watch(struct nats_port *w);
/* What a reader may ask for at any time. */
size_t nats_base_bytes(const struct nats_port *w);
/* Serves those that wait for the budget. */
void nats_port_feed(struct nats_port *w);
#endif
