#include "wal/nats_priv.h"

#include "base/buf.h"
#include "base/hex.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { REQUEST_TIMEOUT_MS = 5000 };

struct nats_req {
    TAILQ_ENTRY(nats_req) next;
    struct nats_js *js;
    uint64_t id;
    char *what; /* "STREAM.INFO of by-dev-..." */
    struct timer timer;
    nats_reply_fn done;
    void *arg;
};

void nats_js_init(struct nats_js *js, struct loop *l)
{
    unsigned char r[12];
    char *p = js->inbox;

    *js = (struct nats_js){.loop = l, .timeout_ms = REQUEST_TIMEOUT_MS};
    TAILQ_INIT(&js->reqs);
    if (getrandom(r, sizeof(r), 0) != sizeof(r))
        abort(); /* an inbox that others can guess is no inbox */
    p += sprintf(p, "_INBOX.");
    hex_encode(r, sizeof(r), p);
    strcat(p, ".");
}

static void req_free(struct nats_req *q)
{
    TAILQ_REMOVE(&q->js->reqs, q, next);
    timer_release(&q->timer);
    free(q->what);
    free(q);
}

static void complete(struct nats_req *q, const struct err *err, json_t *reply)
{
    nats_reply_fn done = q->done;
    void *arg = q->arg;

    req_free(q);
    done(arg, err, reply);
}

void nats_js_up(struct nats_js *js, struct nats_conn *conn)
{
    char subject[64];

    js->conn = conn;
    js->refused[0] = 0;
    snprintf(subject, sizeof(subject), "%s>", js->inbox);
    nats_conn_subscribe(conn, subject, NATS_SID_INBOX);
    /* So that a stream is read as soon as it is made; where it is not allowed, polling remains. */
    nats_conn_subscribe(conn, "$JS.EVENT.ADVISORY.STREAM.CREATED.>", NATS_SID_CREATED);
}

void nats_js_down(struct nats_js *js, const struct err *err)
{
    struct nats_req *q;

    js->conn = NULL;
    while ((q = TAILQ_FIRST(&js->reqs)))
        complete(q, err, NULL);
}

void nats_js_release(struct nats_js *js)
{
    struct nats_req *q;

    while ((q = TAILQ_FIRST(&js->reqs)))
        req_free(q);
}

void nats_js_cancel(struct nats_req *q)
{
    if (q)
        req_free(q);
}

static void on_timeout(void *arg)
{
    struct nats_req *q = arg;
    struct nats_js *js = q->js;
    struct err err;

    err_set(&err, ERR_TIMEOUT, ERRC_RETRY, "NATS: no answer to %s within %u ms%s%s%s", q->what, js->timeout_ms,
            js->refused[0] ? " (the server said: " : "", js->refused, js->refused[0] ? ")" : "");
    complete(q, &err, NULL);
}

struct nats_req *nats_js_request(struct nats_js *js, const char *api, const char *stream, const char *payload,
                                 nats_reply_fn done, void *arg)
{
    struct nats_req *q;
    char *subject, *reply;

    if (!js->conn)
        return NULL;
    q = xcalloc(1, sizeof(*q));
    q->js = js;
    q->id = ++js->last_id;
    q->what = xasprintf("%s of %s", api, stream);
    q->done = done;
    q->arg = arg;
    timer_init(&q->timer, js->loop, LOOP_PRIO_LOW, on_timeout, q);
    timer_set(&q->timer, js->timeout_ms);
    TAILQ_INSERT_TAIL(&js->reqs, q, next);
    subject = xasprintf("$JS.API.%s.%s", api, stream);
    reply = xasprintf("%sr.%llu", js->inbox, (unsigned long long)q->id);
    nats_conn_publish(js->conn, subject, reply, payload);
    free(subject);
    free(reply);
    return q;
}

/* ---- answers -------------------------------------------------------------------------------- */

static struct nats_req *find(struct nats_js *js, struct nats_text id)
{
    struct nats_req *q = NULL;
    uint64_t n;

    if (!nats_number(id, &n))
        return NULL;
    TAILQ_FOREACH (q, &js->reqs, next) { /* answers come in the order of the requests, nearly */
        if (q->id == n)
            break;
    }
    return q;
}

/* Codes: nats-server 2.9.17 server/errors.json. */
static int api_error(const struct nats_req *q, json_t *e, struct err *err)
{
    enum { NO_STREAM = 10059, NOT_ENABLED = 10076, NOT_FOR_ACCOUNT = 10039 };
    long long code = json_integer_value(json_object_get(e, "code"));
    long long err_code = json_integer_value(json_object_get(e, "err_code"));
    const char *text = json_string_value(json_object_get(e, "description"));

    text = text ? text : "";
    if (err_code == NO_STREAM)
        return err_set(err, ERR_NOT_FOUND, ERRC_RETRY, "NATS: %s: %.200s", q->what, text);
    if (err_code == NOT_ENABLED || err_code == NOT_FOR_ACCOUNT)
        return err_set(err, ERR_UNSUPPORTED, ERRC_RETRY,
                       "NATS: JetStream is not enabled on the server or for this account (%.200s): check "
                       "sourceConfig.natsmq.address and the login",
                       text);
    return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "NATS: %s: %.200s (%lld, %lld)", q->what, text, code, err_code);
}

static int status_error(const struct nats_req *q, const struct nats_op *msg, struct err *err)
{
    struct nats_status st;

    if (nats_status_parse(msg->buf->data, msg->hdr_len, &st) || st.code == 0)
        return err_set(err, ERR_PROTO, ERRC_RETRY, "NATS: the answer to %s has no body", q->what);
    if (st.code == 503)
        return err_set(err, ERR_UNSUPPORTED, ERRC_RETRY,
                       "NATS: nobody answers %s: JetStream does not run on this server; check "
                       "sourceConfig.natsmq.address",
                       q->what);
    return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "NATS: %s: %u %s", q->what, st.code, st.text);
}

void nats_js_on_reply(struct nats_js *js, struct nats_text rest, const struct nats_op *msg)
{
    struct nats_req *q = find(js, rest);
    struct err err = {0};
    json_t *reply = NULL, *e;

    if (!q) /* a late one */
        return;
    if (msg->len == msg->hdr_len) {
        status_error(q, msg, &err);
    } else {
        reply = json_loadb((const char *)msg->buf->data + msg->hdr_len, msg->len - msg->hdr_len, 0, NULL);
        if (!json_is_object(reply))
            err_set(&err, ERR_PROTO, ERRC_RETRY, "NATS: the answer to %s is not JSON", q->what);
        else if ((e = json_object_get(reply, "error")))
            api_error(q, e, &err);
    }
    complete(q, err.code ? &err : NULL, err.code ? NULL : reply);
    json_decref(reply);
}

static bool get_u64(json_t *o, const char *key, uint64_t *ret)
{
    json_t *v = json_object_get(o, key);

    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *ret = (uint64_t)json_integer_value(v);
    return true;
}

int nats_js_stream_info(json_t *reply, struct nats_stream_info *ret, struct err *err)
{
    json_t *state = json_object_get(reply, "state");
    const char *created = json_string_value(json_object_get(reply, "created"));

    if (!created || !get_u64(state, "messages", &ret->messages) || !get_u64(state, "first_seq", &ret->first) ||
        !get_u64(state, "last_seq", &ret->last))
        return err_set(err, ERR_PROTO, ERRC_RETRY, "NATS: STREAM.INFO without its state");
    snprintf(ret->created, sizeof(ret->created), "%s", created);
    return 0;
}
