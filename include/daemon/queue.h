/*
 * queue.h - the source's message queue as the configuration names it, or as it is found.
 *
 * Thread  loop thread only.
 */
#ifndef DAEMON_QUEUE_H
#define DAEMON_QUEUE_H

struct config;
struct err;
struct loop;
struct queue;
struct wal_port;

/* Opens config->queue (not QUEUE_DETECT); its readers of one channel are shared. NULL: ERR_INVALID naming the setting. */
struct queue *queue_open(struct loop *l, const struct config *config, struct err *err);
struct wal_port *queue_port(struct queue *q);
/* All readers closed. NULL is allowed. */
void queue_close(struct queue *q);

/*
 * Looks for the queue of a source on this machine: RocksMQ's files in their usual folders, else NATS, Kafka and Pulsar on
 * their usual ports. The one with the source's replicate channel is taken, or the only one that answers. done comes once,
 * from the loop, within some seconds; without err the choice is in config (queue and its address). ERR_NOT_FOUND (USER):
 * nothing or several were found; the text names the settings.
 */
struct queue_search;
typedef void (*queue_found_fn)(void *arg, const struct err *err);
struct queue_search *queue_search_start(struct loop *l, struct config *config, queue_found_fn done, void *arg);
/* No done any more. A search that ended is gone. NULL is allowed. */
void queue_search_cancel(struct queue_search *s);
#endif
