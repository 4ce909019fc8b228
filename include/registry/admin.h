/*
 * admin.h - what only "milvus-cdc registry" does: a registry is written out, read into another one, and sealed. For
 * both kinds of registries; calls as those of struct registry_ops.
 */
#ifndef REGISTRY_ADMIN_H
#define REGISTRY_ADMIN_H
#include "registry/registry.h"

/* What outlives tasks: a tick of a target's channel, or (channel NULL) the epoch of a target's lease. */
struct reg_fact {
    char *target, *channel;
    uint64_t number;
};

typedef void (*reg_facts_fn)(void *arg, const struct err *err, const struct reg_fact *facts, size_t n);

/* All of them. */
void registry_facts(struct registry *r, reg_facts_fn done, void *arg);
/* Each number is raised to the given one, or stays. */
void registry_put_facts(struct registry *r, const struct reg_fact *facts, size_t n, reg_done_fn done, void *arg);
/* Seals the spec of a task if it is not; spec_json as list gives it. */
void registry_seal_spec(struct registry *r, const char *task_id, const char *spec_json, reg_done_fn done, void *arg);
#endif
