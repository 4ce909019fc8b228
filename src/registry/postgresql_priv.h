/*
 * postgresql_priv.h - shared by the parts of the PostgreSQL registry.
 *
 *   postgresql.c        opening, preparing a connection, groups of requests
 *   postgresql_req.c    requests as JSON, results of statements
 *   postgresql_sql.c    schema, functions, statements
 *   postgresql_watch.c  beats, requests between daemons, what others did: a connection of its own, so that no large
 *                       group of writes delays a sign of life
 */
#ifndef REGISTRY_POSTGRESQL_PRIV_H
#define REGISTRY_POSTGRESQL_PRIV_H
#include "base/mem.h"
#include "pg/pg.h"
#include "registry/queue_priv.h"

struct seal;

#define PGREG_NEWER "MCNEW" /* SQLSTATE of our own: the schema is newer than this program */

enum {
    PGREG_SCHEMA = 3,          /* version that this build makes */
    PGREG_LOCK = 0x4d434443,   /* key of the advisory lock around migrations */
    PGREG_STMT_MS = 2500,      /* a server that does not answer for so long is away */
    PGREG_MIGRATE_MS = 5000,   /* the server goes on with it when we give up; the next try waits for its lock */
    PGREG_PACE_MS = 28,        /* some 35 groups of commits in a second at most */
    PGREG_GROUP_MAX = 1000,
    PGREG_TICK_MS = 1000       /* answers and requests are looked for so often while somebody waits */
};

struct pgreg {
    struct regq q;
    char *where;     /* for logs */
    char *schema;    /* quoted */
    struct pg_options pg_options;
    struct pg *work; /* groups of requests */
    bool ready;      /* work is prepared */
    struct err fatal; /* code ERR_OK: none. Nothing can be done until a person changed something */
    struct timer defer;
    char session[33];
    uint64_t seq;
    const struct seal *seal; /* borrowed; NULL: texts are stored as they are */
    size_t pending;   /* statements of the group without an answer */
    size_t n_writes;
    bool group_failed;

    struct pg *watch; /* opened once work is ready for the first time */
    bool watching;    /* watch is prepared */
    struct err watch_trouble;
    char *owner;
    struct reg_watch cbs; /* of the watcher; no callbacks: nobody */
    LIST_HEAD(, beat_call) beats;
    LIST_HEAD(, ask_call) asks;
    LIST_HEAD(, answer_call) answers;
    int64_t *seen; /* requests that were delivered and are not answered yet */
    size_t n_seen;
    bool polling, poll_again;
    struct timer tick, refuse, look;
};

/* postgresql_sql.c. Caller frees. */
char *pgreg_migrate_sql(void);
extern const char pgreg_list_sql[], pgreg_load_sql[], pgreg_tick_sql[], pgreg_facts_sql[];

/* postgresql_req.c */
/* All writes of a group as a JSON array for apply(). Caller frees. */
char *pgreg_encode(struct pgreg *r, const struct req_list *reqs, size_t *ret_n);
/* apply()'s result for them. ERR_PROTO when it is not one. */
int pgreg_decode(struct pgreg *r, struct req_list *reqs, const char *json, struct err *err);
int pgreg_take_tasks(struct pgreg *r, struct req *q, const struct pg_result *res);
void pgreg_take_facts(struct req *q, const struct pg_result *res);
int pgreg_take_records(struct req *q, const struct pg_result *res);
/* Sends what must come first on each new connection: the schema. */
void pgreg_set_path(struct pgreg *r, struct pg *p);

/* postgresql_watch.c */
void pgreg_watch_init(struct pgreg *r);
int pgreg_watch_open(struct pgreg *r, struct err *err);
void pgreg_watch_close(struct pgreg *r);
void pgreg_beat(struct registry *base, const char *owner, uint64_t lease_ms, bool want, reg_beat_fn done, void *arg);
void pgreg_ask(struct registry *base, const char *target_key, const char *body, uint64_t limit_ms, reg_answer_fn done,
               void *arg);
void pgreg_answer(struct registry *base, int64_t request_id, const char *answer);
void pgreg_watch(struct registry *base, const char *owner, const struct reg_watch *w);
void pgreg_watch_cancel(struct pgreg *r, void *arg);

static inline struct pgreg *pgreg_of(struct registry *base)
{
    return container_of(base, struct pgreg, q.base);
}
#endif
