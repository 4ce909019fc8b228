/* registry_priv.h - the parts of milvus-cdc registry. */
#ifndef CLI_REGISTRY_PRIV_H
#define CLI_REGISTRY_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct daemon_registry;
struct loop;
struct reg_task;
struct registry;

/* One call of the registry at a time, waited for. */
struct reg_cmd {
    struct loop *loop;
    struct registry *r;
    const struct daemon_registry *store;
    struct err err;
    bool called;
    void *out; /* where the callback puts what it got */
};

/* reg_done_fn */
void reg_cmd_done(void *arg, const struct err *err);
/* Turns until the callback came. Returns c->err.code. */
int reg_cmd_wait(struct reg_cmd *c);

/* file: "-" is standard output or input. 0, or c->err is set. */
int reg_export(struct reg_cmd *c, const char *file);
int reg_import(struct reg_cmd *c, const char *file, bool merge);

/* All tasks, copied; free with reg_cmd_free_tasks. */
int reg_cmd_list(struct reg_cmd *c, struct reg_task **ret, size_t *ret_n);
void reg_cmd_free_tasks(struct reg_task *tasks, size_t n);
#endif
