/*
 * target_probe.c - is it a Milvus, which version, and does it take replicated messages?
 *
 * Connect (tells the version, checks the login), then ReplicateMessage without a channel, which changes nothing:
 * a standby checks the channel's name, any other server refuses before that (target.md 2).
 */
#include "base/log.h"
#include "base/mem.h"
#include "milvus/target_priv.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <stdlib.h>

enum { PROBE_DEFAULT_MS = 5000 };

struct target_probe {
    struct loop *loop;
    struct grpc_client *grpc; /* NULL: bad options, err says which */
    char *address, *version;
    unsigned timeout_ms;
    struct grpc_call *rpc;
    struct timer late;
    struct err err;
    target_probe_fn done;
    void *arg;
    bool gone;
};

static void probe_free(void *arg)
{
    struct target_probe *p = arg;

    free(p->address);
    free(p->version);
    free(p);
}

static void probe_end(struct target_probe *p)
{
    if (p->gone)
        return;
    p->gone = true;
    grpc_call_cancel(p->rpc);
    p->rpc = NULL;
    grpc_client_close(p->grpc);
    timer_release(&p->late);
    loop_defer(p->loop, probe_free, p);
}

static void probe_done(struct target_probe *p, const struct err *err, enum target_mode mode)
{
    probe_end(p);
    p->done(p->arg, err, mode, p->version ? p->version : "");
}

static void probe_call(struct target_probe *p, const char *path, const ProtobufCMessage *req, grpc_done_fn done)
{
    struct evbuffer *body = evbuffer_new();
    uint8_t data[1000];
    size_t len = protobuf_c_message_get_packed_size(req);

    if (!body || len > sizeof(data))
        abort(); /* constant requests */
    protobuf_c_message_pack(req, data);
    if (evbuffer_add(body, data, len))
        abort();
    p->rpc = grpc_unary(p->grpc, path, NULL, body, p->timeout_ms, done, p);
    evbuffer_free(body);
}

static const char *probe_context(const struct target_probe *p, const char *method, char *buf, size_t size)
{
    snprintf(buf, size, "target %s: %s", p->address, method);
    return buf;
}

static void on_replicate(void *arg, const struct grpc_result *r)
{
    struct target_probe *p = arg;
    char context[CONTEXT_MAX];
    struct answer a;

    p->rpc = NULL;
    answer_init(&a, r, ANSWER_FIELD_1, probe_context(p, "ReplicateMessage", context, sizeof(context)));
    if (a.milvus_code == MERR_PARAMETER_INVALID) {
        probe_done(p, NULL, TARGET_STANDBY);
    } else if (a.milvus_code == MERR_DENY_REPLICATE || a.milvus_code == MERR_UNIMPLEMENTED || r->status == 12) {
        probe_done(p, NULL, TARGET_PLAIN);
    } else {
        if (a.ok)
            err_set(&a.err, ERR_PROTO, ERRC_USER, "%s: a request without a channel was taken; not a Milvus known here",
                    context);
        probe_done(p, &a.err, TARGET_PLAIN);
    }
}

static void take_version(struct target_probe *p, const struct grpc_result *r)
{
    Pb__ConnectResponse *m = pb__connect_response__unpack(NULL, r->body_len, r->body);

    if (m && m->server_info)
        p->version = xstrdup(m->server_info->build_tags);
    if (m)
        pb__connect_response__free_unpacked(m, NULL);
}

static void on_connect(void *arg, const struct grpc_result *r)
{
    struct target_probe *p = arg;
    Pb__CollectionRequest empty = PB__COLLECTION_REQUEST__INIT;
    char context[CONTEXT_MAX];
    struct answer a;

    p->rpc = NULL;
    answer_init(&a, r, ANSWER_FIELD_1, probe_context(p, "Connect", context, sizeof(context)));
    if (a.ok)
        take_version(p, r);
    else if (r->status != 12) { /* servers before 2.2.9 have no Connect */
        probe_done(p, &a.err, TARGET_PLAIN);
        return;
    }
    probe_call(p, "/milvus.proto.milvus.MilvusService/ReplicateMessage", &empty.base, on_replicate);
}

static void on_bad_options(void *arg)
{
    struct target_probe *p = arg;

    probe_done(p, &p->err, TARGET_PLAIN);
}

struct target_probe *target_probe_start(struct loop *l, const struct target_options *o, target_probe_fn done, void *arg)
{
    struct target_probe *p = xcalloc(1, sizeof(*p));
    Pb__ConnectRequest req = PB__CONNECT_REQUEST__INIT;
    Pb__ClientInfo info = PB__CLIENT_INFO__INIT;

    p->loop = l;
    p->done = done;
    p->arg = arg;
    p->timeout_ms = o->connect_timeout_ms ? o->connect_timeout_ms : PROBE_DEFAULT_MS;
    timer_init(&p->late, l, LOOP_PRIO_NORMAL, on_bad_options, p);
    p->grpc = target_connect(l, o, &p->address, &p->err);
    if (!p->grpc) {
        timer_set(&p->late, 0);
        return p;
    }
    info.sdk_type = pb_str("milvus-cdc");
    info.sdk_version = pb_str(MILVUS_CDC_VERSION);
    req.client_info = &info;
    probe_call(p, "/milvus.proto.milvus.MilvusService/Connect", &req.base, on_connect);
    return p;
}

void target_probe_cancel(struct target_probe *p)
{
    if (p)
        probe_end(p);
}
