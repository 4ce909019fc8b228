/* spec_mode.c - how the target is written: as a standby, or as an ordinary Milvus. */
#include "base/err.h"
#include "base/mem.h"
#include "task/spec.h"
#include "task/spec_fields.h"
#include "task/spec_priv.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[] = {[SPEC_AUTO] = "auto", [SPEC_STANDBY] = "standby", [SPEC_PORTABLE] = "portable"};

const char *spec_mode_name(enum spec_mode m)
{
    return names[m];
}

static int refuse(const char *text, struct err *err)
{
    return err_set(err, ERR_STATE, ERRC_USER, "%s", text);
}

static int check_left_out(const struct task_spec *s, struct err *err)
{
    bool wrong = s->leave_out_unknown && s->mode == SPEC_STANDBY;

    return wrong ? err_set(err, ERR_INVALID, ERRC_USER, "leave_out_unknown is given, but a standby must have every field") : 0;
}

int spec_check_mode(struct task_spec *s, const json_t *req, struct err *err)
{
    const char *mode = field_str(req, "mode");

    s->leave_out_unknown = field_bool(req, "leave_out_unknown");
    for (size_t i = 0; *mode && i < sizeof(names) / sizeof(*names); i++)
        if (strcmp(mode, names[i]) == 0) {
            s->mode = (enum spec_mode)i;
            return check_left_out(s, err);
        }
    return *mode ? err_set(err, ERR_INVALID, ERRC_USER, "mode is %s, allowed are auto, standby and portable", mode) : 0;
}

int spec_choose_mode(struct task_spec *s, bool standby, const char *version, struct err *err)
{
    if (s->mode == SPEC_STANDBY && !standby)
        return refuse("the target is not a standby: it refuses ReplicateMessage. Set common.ttMsgEnabled: false in its "
                      "milvus.yaml and restart it, or create the task with mode portable", err);
    if (s->mode == SPEC_PORTABLE && standby)
        return refuse("the target is a standby: it refuses Insert and Delete. Create the task with mode standby, or set "
                      "common.ttMsgEnabled: true in its milvus.yaml and restart it", err);
    if (s->leave_out_unknown && standby)
        return refuse("leave_out_unknown is given, and the target is a standby, which must have every field", err);
    if (s->start == SPEC_SNAPSHOT && standby)
        return spec_refuse_snapshot(ERR_STATE, err);
    if (s->mode_reason)
        return 0;
    s->mode_reason = xasprintf(standby ? "the target (%s) takes ReplicateMessage: it is a standby"
                                       : "the target (%s) refuses ReplicateMessage: it is an ordinary Milvus",
                               version && *version ? version : "version not told");
    s->mode = standby ? SPEC_STANDBY : SPEC_PORTABLE;
    json_object_set_new(s->request, "mode", json_string(names[s->mode]));
    return 0;
}
