/*
 * spec_priv.h - parts of the validation of a create request that lie in different files.
 *
 * Each check takes the decoded request, fills its part of the spec, returns 0 or the error's code.
 */
#ifndef TASK_SPEC_PRIV_H
#define TASK_SPEC_PRIV_H
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>

struct err;
struct spec_collection;
struct spec_limits;
struct spec_mapping;
struct spec_position;
struct task_spec;

/* spec_target.c: address, login, certificates, time limit; and the refusal of Kafka. */
int spec_check_target(struct task_spec *s, const json_t *req, struct err *err);

/* spec_mode.c */
int spec_check_mode(struct task_spec *s, const json_t *req, const struct spec_limits *limits, struct err *err);

/* spec_select.c: what is replicated. limits NULL: a stored request, checked when it came. */
int spec_check_selection(struct task_spec *s, const json_t *req, const struct spec_limits *limits,
                         struct err *err);
int spec_check_mapping(struct task_spec *s, const json_t *req, const struct spec_limits *limits,
                       struct err *err);

/* spec_position.c */
/* Fills p->vchannel, p->pchannel, *ret_collection_id; ERR_INVALID: key is no virtual channel. */
int spec_parse_vchannel(struct spec_position *p, const char *key, int64_t *ret_collection_id,
                        struct err *err);
/* A base64 MsgPosition: id (WAL_ID_MAX bytes) and time. ERR_PROTO: not one. *ret_channel (caller
 * frees) is its channel_name, NULL when there is none. */
int spec_parse_position(const char *text, uint8_t *ret_id, size_t *ret_len, uint64_t *ret_tt,
                        char **ret_channel, struct err *err);
void spec_position_release(struct spec_position *p);
#endif
