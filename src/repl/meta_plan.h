/*
 * meta_plan.h - indexes, load state, aliases and properties of a collection: what differs, and the calls that end it.
 *
 * Pure: values in, a list of calls out. A state is JSON, since it goes into the collection's record:
 *   {"indexes": {ID: {"field", "name", "vector", "params": [[KEY, VALUE] ...]}}, "load": enum src_load, "replicas": N,
 *    "partitions": {NAME: true} (the loaded ones), "aliases": {NAME: true}, "properties": {KEY: VALUE}}
 */
#ifndef REPL_META_PLAN_H
#define REPL_META_PLAN_H
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "repl/port.h"

/* What the source has. */
json_t *meta_wanted(const struct src_collection *sc);
/* Its properties, where they are known better than from etcd. */
json_t *meta_properties(const struct src_pair *pairs, size_t n);
/* Nothing that a target has to be given. */
bool meta_is_plain(const json_t *state);
/* Everything in either; seen may be NULL. */
json_t *meta_union(const json_t *seen, const json_t *wanted);
/* For the record, and to compare. Caller frees. */
char *meta_text(const json_t *state);

/* One call: a sink_change whose strings are its own. */
struct meta_step {
    enum sink_change_kind kind;
    bool minor; /* only speed depends on it */
    char *field, *name;
    struct src_pair *pairs;
    size_t n_pairs;
    char **names;
    size_t n_names;
    unsigned replicas;
};
struct meta_plan {
    struct meta_step *steps;
    size_t n;
};

/*
 * The calls that make the target's collection, which has that, what is wanted. Nothing is taken away that is not in seen:
 * what the source had at some time, and may have come to the target from there.
 * set_up false: indexes and load states are somebody else's business.
 */
void meta_plan_make(const json_t *wanted, const json_t *seen, const struct sink_meta *has, bool set_up,
                    struct meta_plan *ret);
void meta_plan_release(struct meta_plan *p);
#endif
