#include "base/base64.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/pbwire.h"
#include "task/spec.h"
#include "task/spec_priv.h"

#include <errno.h>
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
