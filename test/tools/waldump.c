/*
 * waldump - the messages of one RocksMQ channel, a line each: place, type, id, times, rows, shard; and after them, on
 * standard error, what a log of Milvus must never have: a message that is not newer than a time tick before it, or a
 * tick that goes back. Exit code 1 if there is any.
 *
 *   waldump ROCKSMQ_FOLDER CHANNEL
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "loop/loop.h"
#include "repl/msg.h"
#include "repl/port.h"
#include "wal/rocksmq.h"

static struct loop *loop;
static uint64_t tick;
static int bad;

static void show(const struct wal_msg *m)
{
    struct msg_head h;
    struct err err;

    if (msg_scan(m->data, m->len, &h, &err)) {
        printf("%" PRIu64 " ? %s\n", m->pos.minor, err.text);
        return;
    }
    printf("%" PRIu64 " %s id=%" PRId64 " tt=%" PRIu64 " min=%" PRIu64 " max=%" PRIu64 " rows=%" PRIu64
           " coll=%" PRId64 " part=%" PRId64 " shard=%.*s\n",
           m->pos.minor, msg_type_name(h.type), h.msg_id, h.base_tt, h.min_tt, h.max_tt, h.num_rows, h.collection_id,
           h.partition_id, (int)h.shard_name_len, h.shard_name ? (const char *)h.shard_name : "");
    if (h.type == MSG_TIME_TICK ? h.base_tt < tick : h.min_tt <= tick) {
        fprintf(stderr, "%" PRIu64 " %s: time %" PRIu64 ", and a tick of %" PRIu64 " came before it (%" PRId64 " ms)\n",
                m->pos.minor, msg_type_name(h.type), h.min_tt, tick, (int64_t)((tick >> 18) - (h.min_tt >> 18)));
        bad++;
    }
    if (h.type == MSG_TIME_TICK && h.base_tt > tick)
        tick = h.base_tt;
}

static void on_batch(void *arg, const struct wal_msg *msgs, size_t n, bool caught_up)
{
    (void)arg;
    for (size_t i = 0; i < n; i++)
        show(&msgs[i]);
    if (caught_up)
        loop_stop(loop);
}

static void on_trouble(void *arg, const struct err *err)
{
    (void)arg;
    if (!err)
        return;
    fprintf(stderr, "waldump: %s\n", err->text);
    exit(2);
}

int main(int argc, char **argv)
{
    char dir[] = "/tmp/waldump-XXXXXX";
    struct wal_start start = {.earliest = true};
    struct wal_port *w;
    struct wal_reader *r;

    if (argc != 3 || !mkdtemp(dir)) {
        fprintf(stderr, "usage: waldump ROCKSMQ_FOLDER CHANNEL\n");
        return 2;
    }
    log_set_level(LOG_ERROR);
    loop = loop_new();
    w = rocksmq_open(loop, argv[1], dir);
    r = w->ops->open(w, argv[2], &start, &(struct wal_reader_cbs){.on_batch = on_batch, .on_trouble = on_trouble}, NULL);
    loop_run(loop);
    w->ops->close(r);
    rocksmq_close(w);
    loop_free(loop);
    return bad != 0;
}
