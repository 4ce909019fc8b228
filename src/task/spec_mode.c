/* spec_mode.c - how the target is written (as a standby, or as an ordinary Milvus), and where a task begins. */
#include "base/err.h"
#include "base/mem.h"
#include "task/spec.h"
#include "task/spec_fields.h"
#include "task/spec_priv.h"

#include <stdlib.h>
#include <string.h>

#define SNAPSHOT_STANDBY \
    "start snapshot needs an ordinary Milvus as the target: a standby takes rows only as its source's log has them. " \
    "Restore a backup of the source there (milvus-backup), and give its positions in collection_infos[].positions"

static const char *const names[] = {[SPEC_AUTO] = "auto", [SPEC_STANDBY] = "standby", [SPEC_PORTABLE] = "portable"};

const char *spec_mode_name(enum spec_mode m)
{
    return names[m];
}

static const char *const starts[] = {[SPEC_NOW] = "now", [SPEC_EARLIEST] = "earliest", [SPEC_SNAPSHOT] = "snapshot"};

static int refuse(const char *text, struct err *err)
{
    return err_set(err, ERR_STATE, ERRC_USER, "%s", text);
}

/* The place of word among n names; "" is the first. -1: not there. */
static int place(const char *word, const char *const *list, int n)
{
    for (int i = 0; *word && i < n; i++)
        if (strcmp(word, list[i]) == 0)
            return i;
    return *word ? -1 : 0;
}

static int check_snapshot(const struct task_spec *s, const struct spec_limits *limits, struct err *err)
{
    if (limits && !limits->source_readable)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "start snapshot reads the rows through the source's own API: set sourceConfig.milvus.uri (and "
                       "token) in the configuration of milvus-cdc");
    if (s->mode == SPEC_STANDBY)
        return err_set(err, ERR_INVALID, ERRC_USER, SNAPSHOT_STANDBY);
    return 0;
}

int spec_check_mode(struct task_spec *s, const json_t *req, const struct spec_limits *limits, struct err *err)
{
    const char *mode = field_str(req, "mode"), *start = field_str(req, "start");
    int m = place(mode, names, 3), b = place(start, starts, 3);

    if (m < 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "mode is %s, allowed are auto, standby and portable", mode);
    if (b < 0)
        return err_set(err, ERR_INVALID, ERRC_USER, "start is %s, allowed are now, earliest and snapshot", start);
    s->mode = (enum spec_mode)m;
    s->start = (enum spec_start)b;
    s->load_for_snapshot = field_bool(req, "load_for_snapshot");
    if (s->load_for_snapshot && s->start != SPEC_SNAPSHOT)
        return err_set(err, ERR_INVALID, ERRC_USER, "load_for_snapshot is given, but start is not snapshot");
    return s->start == SPEC_SNAPSHOT ? check_snapshot(s, limits, err) : 0;
}

int spec_choose_mode(struct task_spec *s, bool standby, const char *version, struct err *err)
{
    if (s->mode == SPEC_STANDBY && !standby)
        return refuse("the target is not a standby: it refuses ReplicateMessage. Set common.ttMsgEnabled: false in its "
                      "milvus.yaml and restart it, or create the task with mode portable", err);
    if (s->mode == SPEC_PORTABLE && standby)
        return refuse("the target is a standby: it refuses Insert and Delete. Create the task with mode standby, or set "
                      "common.ttMsgEnabled: true in its milvus.yaml and restart it", err);
    if (s->start == SPEC_SNAPSHOT && standby)
        return refuse(SNAPSHOT_STANDBY, err);
    if (s->mode_reason)
        return 0;
    s->mode_reason = xasprintf(standby ? "the target (%s) takes ReplicateMessage: it is a standby"
                                       : "the target (%s) refuses ReplicateMessage: it is an ordinary Milvus",
                               version && *version ? version : "version not told");
    s->mode = standby ? SPEC_STANDBY : SPEC_PORTABLE;
    json_object_set_new(s->request, "mode", json_string(names[s->mode]));
    return 0;
}
