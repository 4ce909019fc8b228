/* The SQLite registry, loop side: each group is a job of the helper. */
#include "registry/sqlite_priv.h"

#include "base/mem.h"
#include "loop/xthread.h"

#include <stdlib.h>
#include <time.h>

static struct sqlreg *sqlreg_of(struct regq *q)
{
    return container_of(q, struct sqlreg, q);
}

static void run_group(void *arg)
{
    struct group *g = arg;

    if (g->delay_ms) {
        struct timespec ts = {.tv_nsec = (long)g->delay_ms * 1000000};

        nanosleep(&ts, NULL);
    }
    g->ok = regdb_run(sqlreg_of(g->q)->db, &g->reqs, &g->sick);
}

static void on_group_done(void *arg)
{
    regq_group_done(arg);
}

static void start(struct regq *q, struct group *g)
{
    xthread_submit(sqlreg_of(q)->x, run_group, on_group_done, g);
}

static void finish(struct regq *q)
{
    struct sqlreg *r = sqlreg_of(q);

    xthread_free(r->x); /* runs group after group until nothing waits */
    regdb_close(r->db);
}

static void sqlreg_free(void *arg)
{
    free(sqlreg_of(arg));
}

static const struct regq_backend backend = {.start = start, .finish = finish, .free = sqlreg_free};

static const struct registry_ops sqlreg_ops = {
    .list = regq_list,
    .create = regq_create,
    .set_state = regq_set_state,
    .remove = regq_remove,
    .claim = regq_claim,
    .release = regq_release,
    .store_open = regq_store_open,
    .store_free = regq_store_free,
    .trouble = regq_trouble,
    .cancel = regq_cancel,
    .close = regq_close,
};

struct registry *registry_sqlite_open(struct loop *l, const char *path, struct err *err)
{
    return registry_sqlite_open_sealed(l, path, NULL, err);
}

struct registry *registry_sqlite_open_sealed(struct loop *l, const char *path, const struct seal *seal, struct err *err)
{
    struct regdb *db = regdb_open(path, seal, err);
    struct sqlreg *r;

    if (!db)
        return NULL;
    r = xcalloc(1, sizeof(*r));
    r->db = db;
    regq_init(&r->q, l, &sqlreg_ops, &backend, db->path);
    r->x = xthread_new(l, "registry");
    return &r->q.base;
}
