#include "base/base64.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "task/spec.h"
#include "task/spec_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void spec_position_release(struct spec_position *p)
{
    free(p->vchannel);
    free(p->pchannel);
}

/* Digits only, at most INT64_MAX; moves *p behind them. */
static int parse_number(const char **p, int64_t *ret)
{
    char *end;

    if (**p < '0' || **p > '9')
        return -1;
    errno = 0;
    *ret = strtoll(*p, &end, 10);
    *p = end;
    return errno ? -1 : 0;
}

/* <pchannel>_<collectionID>v<shard>, milvus pkg/util/funcutil GetVirtualChannel. */
int spec_parse_vchannel(struct spec_position *p, const char *key, int64_t *ret_collection_id,
                        struct err *err)
{
    const char *cut = strrchr(key, '_');
    const char *at = cut ? cut + 1 : "";
    int64_t shard;

    if (cut && cut != key && parse_number(&at, ret_collection_id) == 0) {
        if (*at == '\0')
            return err_set(err, ERR_INVALID, ERRC_USER,
                           "the position key %s is a physical channel; a virtual channel is needed "
                           "(<channel>_<collection id>v<shard>)",
                           key);
        if (*at++ == 'v' && parse_number(&at, &shard) == 0 && *at == '\0') {
            p->vchannel = xstrdup(key);
            p->pchannel = xstrndup(key, (size_t)(cut - key));
            return 0;
        }
    }
    return err_set(err, ERR_INVALID, ERRC_USER,
                   "the position key %s is not a virtual channel "
                   "(<channel>_<collection id>v<shard>)",
                   key);
}

struct msg_position {
    const uint8_t *channel, *id;
    size_t channel_len, id_len;
    uint64_t tt;
};

/* msg.proto MsgPosition: channel_name 1, msgID 2, msgGroup 3, timestamp 4. */
static int scan_position(const uint8_t *data, size_t len, struct msg_position *ret)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    int r;

    while ((r = pb_scan_next(&s, &f)) == 1) {
        if (f.num > 4)
            continue;
        if (f.wire != (f.num == 4 ? PB_VARINT : PB_LEN))
            return -1;
        if (f.num == 1) {
            ret->channel = f.data;
            ret->channel_len = f.len;
        } else if (f.num == 2) {
            ret->id = f.data;
            ret->id_len = f.len;
        } else if (f.num == 4) {
            ret->tt = f.varint;
        }
    }
    return r;
}

int spec_parse_position(const char *text, uint8_t *ret_id, size_t *ret_len, uint64_t *ret_tt,
                        char **ret_channel, struct err *err)
{
    struct msg_position p = {0};
    uint8_t *data;
    size_t len;
    int rc = 0;

    if (base64_decode(text, &data, &len) != 0)
        return err_set(err, ERR_PROTO, ERRC_USER, "the position is not base64");
    if (scan_position(data, len, &p) != 0) {
        rc = err_set(err, ERR_PROTO, ERRC_USER, "the position is not a MsgPosition");
    } else if (p.id_len == 0 || p.id_len > WAL_ID_MAX) {
        rc = err_set(err, ERR_PROTO, ERRC_USER,
                     "the position has a message id of %zu bytes; 1 to %d are possible", p.id_len,
                     WAL_ID_MAX);
    } else {
        memcpy(ret_id, p.id, p.id_len);
        *ret_len = p.id_len;
        *ret_tt = p.tt;
        *ret_channel = p.channel_len ? xstrndup((const char *)p.channel, p.channel_len) : NULL;
    }
    free(data);
    return rc;
}

static int add_position(struct spec_collection *c, const char *key, const char *value,
                        struct err *err)
{
    struct spec_position *p = &c->positions[c->n_positions];
    char *channel = NULL;
    int64_t id;
    int rc = spec_parse_vchannel(p, key, &id, err);

    if (rc != 0)
        return rc;
    c->n_positions++;
    if (c->n_positions > 1 && id != c->id)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "the positions of %s belong to two collections, %" PRId64 " and %" PRId64,
                       c->name, c->id, id);
    c->id = id;
    rc = spec_parse_position(value, p->id, &p->id_len, &p->tt, &channel, err);
    if (rc != 0)
        (void)err_wrap(err, "%s", key); /* rc is its code */
    else if (channel && strcmp(channel, p->vchannel) != 0 && strcmp(channel, p->pchannel) != 0)
        rc = err_set(err, ERR_INVALID, ERRC_USER, "the position for %s is of another channel, %s",
                     key, channel);
    free(channel);
    return rc;
}

int spec_add_positions(struct spec_collection *c, const json_t *positions, struct err *err)
{
    const char *key;
    json_t *value;
    int rc = 0;

    c->positions = xcalloc(json_object_size(positions), sizeof(*c->positions));
    json_object_foreach((json_t *)(uintptr_t)positions, key, value) {
        rc = add_position(c, key, json_string_value(value), err);
        if (rc != 0)
            break;
    }
    return rc;
}

static const struct spec_position *find_in(const struct spec_collection *list, size_t n, const char *vchannel)
{
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < list[i].n_positions; k++)
            if (strcmp(list[i].positions[k].vchannel, vchannel) == 0)
                return &list[i].positions[k];
    return NULL;
}

const struct spec_position *spec_find_position(const struct task_spec *s, const char *vchannel)
{
    const struct spec_position *p = find_in(s->collections, s->n_collections, vchannel);

    return p ? p : find_in(s->backup, s->n_backup, vchannel);
}

bool spec_has_positions(const struct task_spec *s)
{
    for (size_t i = 0; i < s->n_collections; i++)
        if (s->collections[i].n_positions)
            return true;
    return s->n_backup > 0 || s->rpc_id_len > 0;
}
