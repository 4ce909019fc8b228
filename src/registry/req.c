/* The life of a request. */
#include "registry/queue_priv.h"

#include "base/mem.h"

#include <stdlib.h>

struct req *req_new(enum req_kind kind)
{
    struct req *q = xcalloc(1, sizeof(*q));

    q->kind = kind;
    STAILQ_INIT(&q->changes);
    return q;
}

static void task_release(struct reg_task *t)
{
    free(t->id);
    free(t->spec_json);
    free(t->target_key);
    free(t->reason);
    free(t->verify);
    free(t->owner);
}

static void ckpt_release(struct repl_ckpt *c)
{
    free(c->src_channel);
    free(c->dst_channel);
    free(c->target_pos);
}

void req_drop_result(struct req *q)
{
    for (size_t i = 0; i < q->n_tasks; i++)
        task_release(&q->tasks[i]);
    for (size_t i = 0; i < q->n_ckpts; i++)
        ckpt_release(&q->ckpts[i]);
    for (size_t i = 0; i < q->n_colls; i++)
        free(q->colls[i].json);
    for (size_t i = 0; i < q->n_facts; i++) {
        free(q->facts[i].target);
        free(q->facts[i].channel);
    }
    xfree(&q->facts);
    xfree(&q->tasks);
    xfree(&q->ckpts);
    xfree(&q->colls);
    q->n_tasks = q->n_ckpts = q->n_colls = q->n_facts = 0;
    q->number = 0;
    q->since_ms = 0;
    q->err = (struct err){0};
}

void req_add_fact(struct req *q, const char *target, const char *channel, uint64_t number)
{
    q->facts = xrealloc(q->facts, (q->n_facts + 1) * sizeof(*q->facts));
    q->facts[q->n_facts++] = (struct reg_fact){xstrdup(target), xstrdup(channel), number};
}

void change_free(struct change *c)
{
    ckpt_release(&c->ckpt);
    free(c->coll.json);
    free(c->target);
    free(c);
}

void req_free(struct req *q)
{
    struct change *c;

    if (!q)
        return;
    while ((c = STAILQ_FIRST(&q->changes))) {
        STAILQ_REMOVE_HEAD(&q->changes, next);
        change_free(c);
    }
    req_drop_result(q);
    task_release(&q->task);
    free(q->target);
    free(q->channel);
    free(q->impl);
    free(q);
}

bool req_writes(const struct req *q)
{
    return q->kind != REQ_LIST && q->kind != REQ_FACTS && q->kind != REQ_LOAD && q->kind != REQ_LOAD_TICK;
}
