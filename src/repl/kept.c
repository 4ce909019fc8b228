/*
 * kept.c - does the queue still have what a task would begin with?  Asked before the first start, with readers that are
 * closed again: a reader tells when its start position is gone, and which message is the first.
 */
#include "repl/priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define MAX_ASKING 16 /* readers at a time */

static struct kept *find(struct repl_task *t, const char *topic, struct wal_pos pos)
{
    struct kept *k;

    LIST_FOREACH(k, &t->kept, entry)
        if (wal_pos_cmp(k->pos, pos) == 0 && strcmp(k->topic, topic) == 0)
            return k;
    return NULL;
}

static struct kept *want(struct repl_task *t, const char *topic, struct wal_pos pos, const char *what)
{
    struct kept *k = find(t, topic, pos);

    if (k)
        return k;
    k = xcalloc(1, sizeof(*k));
    k->task = t;
    k->topic = xstrdup(topic);
    k->what = what ? xstrdup(what) : NULL;
    k->pos = pos;
    LIST_INSERT_HEAD(&t->kept, k, entry);
    return k;
}

void kept_place(struct repl_task *t, const char *topic, struct wal_pos pos, const char *what)
{
    (void)want(t, topic, pos, what);
}

struct kept *kept_first(struct repl_task *t, const char *topic)
{
    return want(t, topic, WAL_POS_NONE, NULL);
}

static void done(struct kept *k)
{
    k->known = true;
    timer_set(&k->task->start_timer, 0);
}

/* Of the first message its place, of the first tick its time: all that is written behind a tick has a greater one. */
static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    struct kept *k = arg;
    struct msg_head h;
    struct err err;

    (void)caught_up;
    if (k->known)
        return;
    if (wal_pos_is_none(k->first))
        k->first = msgs[0].pos;
    if (!wal_pos_is_none(k->pos)) {
        done(k);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (msg_scan(msgs[i].data, msgs[i].len, &h, &err)) {
            (void)err_wrap(&err, "channel %s", k->topic);
            task_fatal(k->task, &err);
            return;
        }
        if (h.type != MSG_TIME_TICK)
            continue;
        k->first_tt = h.base_tt;
        done(k);
        return;
    }
}

static void on_trouble(void *arg, const struct err *err)
{
    struct kept *k = arg;
    struct err e;

    if (k->known)
        return;
    set_text(&k->task->start_trouble, err ? err->text : NULL);
    if (!err || err->cls == ERRC_RETRY)
        return;
    e = *err;
    if (err->cls == ERRC_LOST)
        err_set(&e, ERR_INVALID, ERRC_USER,
                "%s is not in the queue any more, and what was written since would be missing: %s. Take a newer backup (or "
                "position), or create the task with \"accept_gap\": true",
                k->what ? k->what : k->topic, err->text);
    else
        (void)err_wrap(&e, "channel %s", k->topic);
    task_fatal(k->task, &e);
}

static void close_reader(struct kept *k)
{
    if (k->reader)
        k->task->o.wal->ops->close(k->reader);
    k->reader = NULL;
}

static void ask(struct kept *k)
{
    struct wal_port *w = k->task->o.wal;

    k->asked = true;
    k->reader = w->ops->open(w, k->topic, &(struct wal_start){.earliest = wal_pos_is_none(k->pos), .pos = k->pos},
                             &(struct wal_reader_cbs){.on_batch = on_batch, .on_trouble = on_trouble}, k);
}

bool kept_known(struct repl_task *t)
{
    struct kept *k;
    unsigned asking = 0;
    bool all = true;

    LIST_FOREACH(k, &t->kept, entry) {
        if (k->known)
            close_reader(k);
        asking += k->reader != NULL;
    }
    LIST_FOREACH(k, &t->kept, entry) {
        if (!k->asked && asking < MAX_ASKING) {
            ask(k);
            asking++;
        }
        all &= k->known;
    }
    return all;
}

void kept_free(struct repl_task *t)
{
    struct kept *k;

    while ((k = LIST_FIRST(&t->kept))) {
        LIST_REMOVE(k, entry);
        close_reader(k);
        free(k->topic);
        free(k->what);
        free(k);
    }
}
