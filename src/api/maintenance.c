#include "api/api_priv.h"

#include "base/log.h"
#include "base/mem.h"
#include "task/spec_fields.h"
#include "task/text.h"

#include <stdlib.h>
#include <string.h>

static char *set_log_level(const json_t *params)
{
    static const struct field fields[] = {{"log_level", FIELD_STRING, NULL}, {0}};
    json_t *o = fields_decode(params, fields, NULL);
    const char *name = field_str(o, "log_level");
    enum log_level level;
    char *state;

    if (log_level_parse(name, &level)) {
        log_set_level(level);
        state = xasprintf("the log level is %s now", name);
    } else {
        state = xasprintf("the log level was not changed: params.log_level must be debug, info, "
                          "warn or error");
    }
    json_decref(o);
    return state;
}

json_t *maintenance_run(const char *operation, const json_t *params)
{
    char *state;
    json_t *text;

    if (strcmp(operation, "set_log_level") == 0)
        state = set_log_level(params);
    else if (strcmp(operation, "set_force_log_msg") == 0 || strcmp(operation, "reset_log_msg") == 0)
        state = xasprintf("%s is accepted but has no effect: single messages are not logged by "
                          "this version",
                          operation);
    else
        state = xasprintf("unknown operation: %.64s; known are set_log_level, set_force_log_msg "
                          "and reset_log_msg",
                          operation);
    text = text_json(state);
    free(state);
    return text;
}
