/*
 * report.c - what a task can say of itself: its trouble, its progress, its channels.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "repl/priv.h"

static const char *trouble(struct repl_task *t, const char *what, const char *name, const char *text)
{
    snprintf(t->trouble_text, sizeof(t->trouble_text), "%s%s%s: %s", what, name ? " " : "", name ? name : "", text);
    return t->trouble_text;
}

const char *repl_task_trouble(const struct repl_task *ct)
{
    struct repl_task *t = (struct repl_task *)ct; /* the text is a cache */
    struct link *l;

    if (t->catalog_trouble)
        return trouble(t, "source etcd", NULL, t->catalog_trouble);
    if (t->start_trouble)
        return trouble(t, "starting", NULL, t->start_trouble);
    for (struct stream *s = t->streams; s; s = s->hh.next) {
        if (s->trouble)
            return trouble(t, "source channel", s->channel, s->trouble);
        LIST_FOREACH(l, &s->links, of_stream)
            if (l->tchan->trouble)
                return trouble(t, "target channel", l->tchan->name, l->tchan->trouble);
    }
    for (struct coll *c = t->colls; c; c = c->hh.next)
        if (c->trouble)
            return trouble(t, "collection", c->name, c->trouble);
    for (struct coll *c = t->colls; c; c = c->hh.next)
        if (meta_trouble(c))
            return trouble(t, "collection", c->name, meta_trouble(c));
    if (ops_trouble(t->ops))
        return trouble(t, "operations", NULL, ops_trouble(t->ops));
    return NULL;
}

/* ---- health */

static uint64_t since(uint64_t t, uint64_t now)
{
    return now > t ? now - t : 0;
}

static void note_stalled(struct repl_health *h, uint64_t since_ms, const char *name)
{
    if (h->stalled_since_ms && h->stalled_since_ms <= since_ms)
        return;
    h->stalled_since_ms = since_ms ? since_ms : 1;
    h->stalled = name;
}

static void note_confirmed(struct repl_health *h, uint64_t tt)
{
    if (tt && (!h->confirmed_ms || tt_to_ms(tt) < h->confirmed_ms))
        h->confirmed_ms = tt_to_ms(tt);
}

static void stream_health(const struct stream *s, uint64_t now_ms, uint64_t limit_ms, struct repl_health *h)
{
    bool quiet = since(s->tick_ms, now_ms) >= limit_ms;
    bool silent = quiet && s->state == STREAM_OPEN && !s->reader_paused && !s->trouble;
    const struct link *l;
    uint64_t from_ms;

    if (LIST_EMPTY(&s->links) && (s->state == STREAM_IDLE || s->state == STREAM_CLOSED))
        return;
    if (silent && (!h->silent_since_ms || s->tick_ms < h->silent_since_ms))
        h->silent_since_ms = s->tick_ms;
    if (quiet && !silent)
        note_stalled(h, s->tick_ms, s->channel);
    if (LIST_EMPTY(&s->links) && !silent)
        note_confirmed(h, s->tick_tt);
    LIST_FOREACH(l, &s->links, of_stream) {
        if (silent && l->done_tt >= s->tick_tt)
            continue; /* has all that there is */
        note_confirmed(h, l->done_tt);
        from_ms = l->moved_ms > s->resumed_ms ? l->moved_ms : s->resumed_ms;
        if (since(from_ms, now_ms) >= limit_ms)
            note_stalled(h, from_ms, s->channel);
    }
}

void repl_task_health(const struct repl_task *t, uint64_t now_ms, struct repl_health *ret)
{
    uint64_t limit_ms = 3 * (uint64_t)t->o.hub->tick_interval_ms;

    *ret = (struct repl_health){0};
    if (limit_ms < STALL_MS)
        limit_ms = STALL_MS;
    if (t->state < RUN_RUNNING && since(t->made_ms, now_ms) >= limit_ms)
        note_stalled(ret, t->made_ms, "start");
    for (const struct stream *s = t->streams; s; s = s->hh.next)
        stream_health(s, now_ms, limit_ms, ret);
    if (t->copying) { /* streams wait for that, as they should */
        ret->stalled = NULL;
        ret->stalled_since_ms = 0;
    }
}

void repl_task_notes(const struct repl_task *t, void (*fn)(void *arg, const struct repl_note *n), void *arg)
{
    for (const struct coll *c = t->colls; c; c = c->hh.next)
        if (c->plain_keys || c->equal_keys || c->n_left_out)
            fn(arg, &(struct repl_note){.db = c->db,
                                        .name = c->name,
                                        .plain_keys = c->plain_keys,
                                        .equal_keys = c->equal_keys,
                                        .left_out = c->left_out,
                                        .n_left_out = c->n_left_out});
}

void repl_task_progress(struct repl_task *t, repl_progress_fn fn, void *arg)
{
    struct repl_ckpt ck;

    for (struct coll *c = t->colls; c; c = c->hh.next)
        for (size_t i = 0; i < c->n_shards; i++) {
            const struct link *l = c->shards[i].link;
            if (!l && c->copy)
                fn(arg, &(struct repl_progress){.collection_id = c->id,
                                                .src_channel = c->shards[i].pchannel,
                                                .dst_channel = "",
                                                .pos = c->shards[i].from});
            if (!l)
                continue;
            fn(arg, &(struct repl_progress){.collection_id = c->id,
                                            .src_channel = l->stream->channel,
                                            .dst_channel = l->tchan->name,
                                            .pos = l->start_tt ? l->start : l->done,
                                            .op_pos = l->op,
                                            .tt = l->done_tt,
                                            .op_tt = l->op_tt,
                                            .target_pos = l->target_pos});
        }
    ops_fill_ckpt(t->ops, &ck);
    fn(arg, &(struct repl_progress){.collection_id = -10,
                                    .src_channel = t->o.replicate_chan,
                                    .dst_channel = "",
                                    .pos = ck.done,
                                    .op_pos = ck.op,
                                    .tt = ck.done_tt,
                                    .op_tt = ck.op_tt});
}

void repl_task_channels(struct repl_task *t, void (*fn)(void *arg, const char *channel), void *arg)
{
    struct link *l;

    for (struct stream *s = t->streams; s; s = s->hh.next)
        LIST_FOREACH(l, &s->links, of_stream)
            fn(arg, l->tchan->name);
}

static void stored_link(const struct repl_ckpt *ck, int64_t id, repl_progress_fn fn, void *arg)
{
    fn(arg, &(struct repl_progress){.collection_id = id,
                                    .src_channel = ck->src_channel,
                                    .dst_channel = ck->dst_channel,
                                    .pos = ck->start_tt ? ck->start : ck->done,
                                    .op_pos = ck->op,
                                    .tt = ck->done_tt,
                                    .op_tt = ck->op_tt,
                                    .target_pos = ck->target_pos});
}

static bool record_uses(const json_t *rec, const struct repl_ckpt *ck)
{
    const json_t *shards = json_object_get(rec, "shards"), *e;
    size_t i;

    json_array_foreach(shards, i, e) {
        const char *src = json_string_value(json_object_get(e, "pchannel"));
        const char *dst = json_string_value(json_object_get(e, "dst_pchannel"));
        if (src && dst && strcmp(src, ck->src_channel) == 0 && strcmp(dst, ck->dst_channel) == 0)
            return true;
    }
    return false;
}

void repl_stored_progress(const struct repl_ckpt *ckpts, size_t n_ckpts, const struct repl_collection_rec *colls,
                          size_t n_colls, const char *replicate_chan, repl_progress_fn fn, void *arg)
{
    for (size_t i = 0; i < n_colls; i++) {
        json_t *rec = json_loads(colls[i].json, 0, NULL);
        for (size_t k = 0; k < n_ckpts; k++)
            if (record_uses(rec, &ckpts[k]))
                stored_link(&ckpts[k], colls[i].id, fn, arg);
        json_decref(rec);
    }
    for (size_t k = 0; k < n_ckpts; k++)
        if (!*ckpts[k].dst_channel && strcmp(ckpts[k].src_channel, replicate_chan) == 0)
            stored_link(&ckpts[k], -10, fn, arg);
}

void repl_stored_copying(const struct repl_collection_rec *colls, size_t n_colls, struct repl_copying *ret)
{
    *ret = (struct repl_copying){0};
    for (size_t i = 0; i < n_colls; i++) {
        json_t *rec = json_loads(colls[i].json, 0, NULL);
        const json_t *copy = json_object_get(rec, "copy");

        ret->collections += copy != NULL;
        ret->rows += (uint64_t)json_integer_value(json_object_get(copy, "rows"));
        ret->estimate += (uint64_t)json_integer_value(json_object_get(copy, "estimate"));
        json_decref(rec);
    }
}

void repl_stored_channels(const struct repl_ckpt *ckpts, size_t n_ckpts, const struct repl_collection_rec *colls,
                          size_t n_colls, void (*fn)(void *arg, const char *channel), void *arg)
{
    for (size_t i = 0; i < n_ckpts; i++)
        fn(arg, ckpts[i].src_channel);
    for (size_t i = 0; i < n_colls; i++) {
        json_t *rec = json_loads(colls[i].json, 0, NULL), *e;
        size_t k;

        json_array_foreach(json_object_get(rec, "shards"), k, e) {
            const char *channel = json_string_value(json_object_get(e, "pchannel"));
            if (channel)
                fn(arg, channel);
        }
        json_decref(rec);
    }
}
