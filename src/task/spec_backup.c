/*
 * spec_backup.c - "start": {"backup": ...}: the positions in a backup of milvus-backup.
 *
 * Taken are its full_meta.json, its collection_meta.json, and what its server answers to get_backup. Each has, for a
 * collection, its name and channel_checkpoints: a base64 MsgPosition for each virtual channel, up to which its rows are in
 * the backup.
 */
#include "base/err.h"
#include "base/mem.h"
#include "task/spec.h"
#include "task/spec_fields.h"
#include "task/spec_priv.h"

#include <stdlib.h>
#include <string.h>

static const json_t *backup_of(const json_t *req)
{
    const json_t *b = json_object_get(json_object_get(req, "start"), "backup");
    const json_t *data = json_object_get(b, "data");

    return json_is_object(data) ? data : b;
}

static const json_t *collections_of(const json_t *backup)
{
    const json_t *list = json_object_get(backup, "collection_backups");

    return list ? list : json_object_get(backup, "infos");
}

const json_t *spec_rpc_info(const json_t *req)
{
    const json_t *own = json_object_get(req, "rpc_channel_info");

    return json_object_size(own) ? own : json_object_get(backup_of(req), "rpc_channel_info");
}

static bool strings_only(const json_t *object)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)(uintptr_t)object, key, v)
        if (!json_is_string(v))
            return false;
    return true;
}

/* Keeps of one collection what is needed. */
static int take(struct task_spec *s, const char *db, const char *name, const json_t *positions, json_t *kept,
                struct err *err)
{
    struct spec_collection *c = &s->backup[s->n_backup++];

    c->db = xstrdup(db);
    c->name = xstrdup(name);
    if (json_object_size(positions) == 0 || !strings_only(positions))
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "start: the backup of %s.%s has no channel_checkpoints: was it made without a flush?", db, name);
    if (spec_add_positions(c, positions, err))
        return err_wrap(err, "start: the backup of %s.%s", db, name);
    json_array_append_new(kept, json_pack("{s:s, s:s, s:O}", "db_name", db, "collection_name", name,
                                          "channel_checkpoints", positions));
    return 0;
}

static int take_selected(struct task_spec *s, const json_t *list, json_t *kept, struct err *err)
{
    const json_t *v;
    size_t i;
    int rc;

    s->backup = xcalloc(json_array_size(list) + 1, sizeof(*s->backup));
    json_array_foreach(list, i, v) {
        const char *db = field_str(v, "db_name"), *name = field_str(v, "collection_name");
        const struct spec_collection *entry;

        db = *db ? db : "default";
        if (!spec_matches(s, db, name, &entry, NULL, NULL))
            continue;
        if (entry->n_positions)
            return err_set(err, ERR_INVALID, ERRC_USER, "%s.%s has positions, and start has a backup of it", db, name);
        rc = take(s, db, name, json_object_get(v, "channel_checkpoints"), kept, err);
        if (rc)
            return rc;
    }
    if (s->n_backup == 0)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "start: the backup has none of the selected collections (collection_backups of its full_meta.json, or "
                       "infos of its collection_meta.json)");
    return 0;
}

int spec_check_backup(struct task_spec *s, json_t *req, struct err *err)
{
    json_t *kept, *rpc;
    int rc;

    if (s->start != SPEC_BACKUP)
        return 0;
    kept = json_array();
    rc = take_selected(s, collections_of(backup_of(req)), kept, err);
    if (rc) {
        json_decref(kept);
        return rc;
    }
    rpc = json_object_get(backup_of(req), "rpc_channel_info");
    json_object_set_new(req, "start", json_pack("{s:{s:o, s:O*}}", "backup", "collection_backups", kept,
                                                "rpc_channel_info", json_is_object(rpc) ? rpc : NULL));
    return 0;
}
