/*
 * pulsar_end.c - end(): a short-lived subscription that asks for the last id, one try.
 *
 * Brokers answer -1 when nothing can be read, also when the last ledger was removed, since they read the last entry
 * (for its batch) before they name it.
 */
#include "base/log.h"
#include "base/mem.h"
#include "wal/pulsar_priv.h"

#include <stdlib.h>

struct pend {
    LIST_ENTRY(pend) next;
    struct psub *sub;
    struct preq *req;
    wal_end_fn done;
    void *arg;
};

static void pend_free(struct pend *e)
{
    LIST_REMOVE(e, next);
    preq_cancel(e->req);
    psub_close(e->sub);
    free(e);
}

static void finish(struct pend *e, const struct err *err, bool found, struct wal_pos last)
{
    wal_end_fn done = e->done;
    void *arg = e->arg;
    struct err copy;

    if (err)
        copy = *err;
    pend_free(e);
    done(arg, err ? &copy : NULL, found, found ? last : WAL_POS_NONE);
}

static void on_last(void *arg, const Pulsar__BaseCommand *cmd, const struct err *err)
{
    struct pend *e = arg;
    const Pulsar__MessageIdData *id;
    struct wal_pos pos;
    struct err bad;

    e->req = NULL;
    if (err) {
        finish(e, err, false, WAL_POS_NONE);
        return;
    }
    if (cmd->type != PULSAR__BASE_COMMAND__TYPE__GET_LAST_MESSAGE_ID_RESPONSE) {
        err_set(&bad, ERR_PROTO, ERRC_RETRY, "Pulsar: not the answer to the question for the last id");
        finish(e, &bad, false, WAL_POS_NONE);
        return;
    }
    id = cmd->get_last_message_id_response->last_message_id;
    if (id->ledger_id == PULSAR_ID_NONE || id->entry_id == PULSAR_ID_NONE) {
        finish(e, NULL, false, WAL_POS_NONE);
    } else if (!pulsar_pos(id->ledger_id, id->entry_id, id->batch_index, &pos)) {
        err_set(&bad, ERR_PROTO, ERRC_RETRY, "Pulsar: the last id is beyond every measure");
        finish(e, &bad, false, WAL_POS_NONE);
    } else {
        finish(e, NULL, true, pos);
    }
}

static void on_ready(void *arg)
{
    struct pend *e = arg;

    e->req = psub_last(e->sub, on_last, e);
}

static void on_down(void *arg, const struct err *err)
{
    bool absent = err->code == ERR_NOT_FOUND;

    finish(arg, absent ? NULL : err, false, WAL_POS_NONE);
}

static const struct psub_cbs end_cbs = {.on_ready = on_ready, .on_down = on_down};

void pend_start(struct wal_port *w, const char *topic, wal_end_fn done, void *arg)
{
    struct pulsar *p = pulsar_of(w);
    struct psub_options o = {.topic = topic, .earliest = true};
    struct pend *e = xcalloc(1, sizeof(*e));

    e->done = done;
    e->arg = arg;
    LIST_INSERT_HEAD(&p->ends, e, next);
    e->sub = psub_open(p, &o, &end_cbs, e);
}

void pend_cancel(struct wal_port *w, void *arg)
{
    struct pulsar *p = pulsar_of(w);
    struct pend *e, *next;

    for (e = LIST_FIRST(&p->ends); e; e = next) {
        next = LIST_NEXT(e, next);
        if (e->arg == arg)
            pend_free(e);
    }
    pretain_cancel(p, arg);
}

void pends_close(struct pulsar *p)
{
    struct pend *e;

    while ((e = LIST_FIRST(&p->ends)))
        pend_free(e);
}
