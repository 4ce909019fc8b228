/*
 * spec.h - a task as the user asked for it: the validated request_data of create.
 */
#ifndef TASK_SPEC_H
#define TASK_SPEC_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>

#include "repl/port.h"

struct err;

struct spec_position { /* a position given by the user */
    char *vchannel;
    char *pchannel;              /* cut from vchannel */
    uint8_t id[WAL_ID_MAX];
    size_t id_len;
    uint64_t tt;                 /* rows with time <= tt are skipped; 0: none */
};

/* In a selection, each part is a name, or the beginning of names with a `*` behind it (alone: all). */
struct spec_collection {
    char *db;
    char *name;
    bool use_start_position;
    struct spec_position *positions;
    size_t n_positions;
    int64_t id; /* of the collection whose positions they are */
};

struct spec_mapping {
    char *source_db, *target_db;
    size_t n; /* pairs; 0: every collection keeps its name */
    char **source, **target; /* names, or the beginnings of names with a `*` behind each */
};

/* What the task does not take although it is selected. */
struct spec_exclusion {
    char *db, *name; /* as in spec_collection */
    char **but;      /* "db.collection": of that it takes these all the same */
    size_t n_but;
    bool given;      /* by the user, in the request; else it is another task's */
};

/* How the target is written. AUTO: as it can be; only until it was probed (and in records of older versions: a standby). */
enum spec_mode { SPEC_AUTO, SPEC_STANDBY, SPEC_PORTABLE };

/* What of the collections that exist when the task starts. */
enum spec_start {
    SPEC_NOW,      /* what is written from then on */
    SPEC_EARLIEST, /* all that their log still has */
    SPEC_SNAPSHOT, /* their rows, read through the source's API, then what was written since */
    SPEC_TIME,     /* what was written after start_tt */
    SPEC_BACKUP,   /* what was written since a backup; all of the collections that it does not have */
};

struct task_spec {
    char *task_id;
    /* target */
    char *uri, *token;
    char *server_name, *ca_path, *cert_path, *key_path;
    unsigned connect_timeout_s;
    bool ignore_partition;
    enum spec_mode mode;
    char *mode_reason; /* why, for people; NULL: not probed */
    enum spec_start start;
    uint64_t start_tt;
    bool load_for_snapshot;
    bool accept_gap; /* of what the start needs, some may be gone from the queue */
    bool leave_out_unknown; /* fields that the target's version does not know (portable) */
    /* selection */
    struct spec_collection *collections;
    size_t n_collections;
    struct spec_collection *backup; /* selected ones that the backup has, by name */
    size_t n_backup;
    struct spec_mapping *mappings;
    size_t n_mappings;
    /* rpc_channel_info.position: where the replicate channel is read from */
    uint8_t rpc_id[WAL_ID_MAX];
    size_t rpc_id_len;
    uint64_t rpc_tt;
    bool disable_auto_start;
    bool keep_queryable;
    /* What the user excludes, and what other tasks for the same target had when this one was made. */
    struct spec_exclusion *exclude;
    size_t n_exclude;
    char *made_name; /* spec_matches(): a name that a pair of patterns made */
    /* The known fields of request_data as they came, under their documented names (without task_id), for the answers
     * and the registry; secrets inside. */
    json_t *request;
};

/* What validation needs from the configuration. */
struct spec_limits {
    size_t max_name_length;
    const char *replicate_chan;
    bool source_readable; /* the source's API is known: a snapshot can be taken */
};

/*
 * Only the types and names of the fields of request_data (NULL: empty): a new object with the known fields, or NULL with
 * ERR_PROTO. The API answers this failure with another prefix than a refused value.
 */
json_t *spec_decode(const json_t *request_data, struct err *err);
/*
 * Decodes and validates request_data of create. Types strict, names of fields without regard to case, unknown fields
 * ignored as the Go implementation does EXCEPT documented ones that we do not support: refused by name (ERR_UNSUPPORTED).
 * err.code ERR_INVALID / ERR_UNSUPPORTED: API code 400; ERR_PROTO: wrong JSON type or undecodable position: API code 500.
 * Without a task_id in the request a random one is made.
 */
struct task_spec *spec_from_request(const json_t *request_data, const struct spec_limits *limits, struct err *err);
/*
 * The target was probed: standby or not. Decides the mode, with its reason; ERR_STATE (USER) when the request wants the
 * other one.
 */
int spec_choose_mode(struct task_spec *s, bool standby, const char *version, struct err *err);
/* Does the user say at which message a collection, or the replicate channel, begins? */
bool spec_has_positions(const struct task_spec *s);
/* The position given for a virtual channel, or NULL. */
const struct spec_position *spec_find_position(const struct task_spec *s, const char *vchannel);
/* "auto", "standby", "portable". */
const char *spec_mode_name(enum spec_mode m);
/* From what spec_to_store_json() wrote. */
struct task_spec *spec_from_store(const char *task_id, const char *json, struct err *err);
char *spec_to_store_json(const struct task_spec *s); /* caller frees; has secrets */
void spec_free(struct task_spec *s);

/* The fields of a task object that come from the request (milvus_connect_param without secrets, kafka_connect_param,
 * collection_infos, db_collections), in the shapes of control-api.md 2.5. New reference. */
json_t *spec_public_json(const struct task_spec *s);

/* Does the task take this collection? If so, *ret (may be NULL) is the entry, and the target's names are stored
 * (borrowed from spec or from the arguments until the next call). */
bool spec_matches(struct task_spec *s, const char *db, const char *name, const struct spec_collection **ret,
                  const char **ret_target_db, const char **ret_target_name);
/* Does it take database operations of db? A selection of single collections in db does; so does "*". */
bool spec_matches_db(const struct task_spec *s, const char *db, const char **ret_target_db);

/*
 * For two tasks with the same target, a is new: the text that tells that a selects what b selects already, or NULL: a may
 * be made, after spec_add_exclusions(). Refused is what b covers whole, unless b itself excludes it. Caller frees.
 */
char *spec_overlap(const struct task_spec *a, const struct task_spec *b);
/* Excludes from a new task what it would share with an existing one (its pattern covers collections of that task). */
void spec_add_exclusions(struct task_spec *s, const struct task_spec *existing);
#endif
