/*
 * spec_priv.h - parts of the validation of a create request that lie in different files.
 *
 * Each check takes the decoded request, fills its part of the spec, returns 0 or the error's code.
 */
#ifndef TASK_SPEC_PRIV_H
#define TASK_SPEC_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>

#include "base/err.h"

struct spec_collection;
struct spec_exclusion;
struct spec_limits;
struct spec_mapping;
struct spec_position;
struct task_spec;

/* spec_target.c: address, login, certificates, time limit; and the refusal of Kafka. */
int spec_check_target(struct task_spec *s, const json_t *req, struct err *err);

/* spec_mode.c, spec_start.c */
int spec_check_mode(struct task_spec *s, const json_t *req, struct err *err);
int spec_check_start(struct task_spec *s, const json_t *req, const struct spec_limits *limits, struct err *err);
/* The reason why a standby takes no snapshot, and what to do. */
int spec_refuse_snapshot(enum err_code code, struct err *err);
/* Shows where the task starts; NULL: now. */
json_t *spec_start_json(const struct task_spec *s);

/* spec_backup.c: positions as milvus-backup exports them. Leaves in the request only what is needed. */
int spec_check_backup(struct task_spec *s, json_t *req, struct err *err);
/* rpc_channel_info of the request, else of the backup. */
const json_t *spec_rpc_info(const json_t *req);

/* spec_select.c: what is replicated. limits NULL: a stored request, checked when it came. */
int spec_check_selection(struct task_spec *s, const json_t *req, const struct spec_limits *limits,
                         struct err *err);
int spec_check_mapping(struct task_spec *s, const json_t *req, const struct spec_limits *limits,
                       struct err *err);

/* spec_pattern.c: one part of a name in a selection. */
bool spec_is_pattern(const char *text);
/* Is all that other selects (a name, or a pattern) selected by pattern? */
bool spec_covers(const char *pattern, const char *other);
/* What two have in common: the narrower one, or NULL. */
const char *spec_meet(const char *a, const char *b);
/* The name that a pair of patterns gives to name, which the first covers. Caller frees. */
char *spec_rename(const char *source, const char *target, const char *name);
/* "db.collection", or "collection" of the default database. Caller frees both. */
void spec_split_name(const char *full, char **ret_db, char **ret_name);
int spec_check_pattern(const char *what, const char *text, const struct spec_limits *limits, struct err *err);
/* The same without a `*`. */
int spec_check_name(const char *what, const char *text, const struct spec_limits *limits, struct err *err);

/* spec_exclude.c: the request's own exclusions; those of other tasks in the store. */
int spec_check_exclude(struct task_spec *s, const json_t *req, const struct spec_limits *limits, struct err *err);
bool spec_excluded(const struct task_spec *s, const char *db, const char *name); /* patterns: the whole of it */
json_t *spec_exclusions_json(const struct task_spec *s);
void spec_load_exclusions(struct task_spec *s, const json_t *list);
void spec_exclusion_release(struct spec_exclusion *e);

/* spec_position.c */
/* Fills p->vchannel, p->pchannel, *ret_collection_id; ERR_INVALID: key is no virtual channel. */
int spec_parse_vchannel(struct spec_position *p, const char *key, int64_t *ret_collection_id,
                        struct err *err);
/* A base64 MsgPosition: id (WAL_ID_MAX bytes) and time. ERR_PROTO: not one. *ret_channel (caller
 * frees) is its channel_name, NULL when there is none. */
int spec_parse_position(const char *text, uint8_t *ret_id, size_t *ret_len, uint64_t *ret_tt,
                        char **ret_channel, struct err *err);
void spec_position_release(struct spec_position *p);
/* Positions of one collection, with its id: an object of base64 texts by virtual channel. */
int spec_add_positions(struct spec_collection *c, const json_t *positions, struct err *err);
#endif
