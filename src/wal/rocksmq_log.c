/*
 * The log format: https://github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format
 * Blocks of 32 KiB hold fragments: crc32c (masked) of what follows the length, length (both little
 * endian), type, payload. A block's last bytes stay unused when no header fits. The fragments of a
 * record make one write batch.
 */
#include "wal/crc32c_priv.h"
#include "wal/rocksmq_priv.h"

#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BLOCK = 32 << 10,
    HEADER = 7,
    CHUNK = 8 * BLOCK,
    KEEP_RECORD = 1 << 20,  /* a larger assembled record is freed again */
    MAX_RECORD = 256 << 20, /* RocksDB's own writes are far below */
    FILES_MAX = 64,         /* usually one to three */
    BATCH_HEADER = 12,      /* sequence and count */
    ID_DIGITS_MAX = 19,     /* int64 */
};

enum fragment { FRAG_ZERO, FRAG_FULL, FRAG_FIRST, FRAG_MIDDLE, FRAG_LAST };

struct log_file {
    uint64_t num, inode;
    int fd;
};

struct rmq_logs {
    char *path;
    struct log_file files[FILES_MAX]; /* rising numbers */
    size_t n;
    /* A window of one file. */
    uint64_t win_file, win_off;
    size_t win_len;
    uint8_t *win;
    /* A record of several fragments. */
    uint8_t *rec;
    size_t rec_len, rec_cap;
};

/* RocksDB stores checksums masked, since one of data that holds checksums is weak. */
static uint32_t masked_crc(const uint8_t *p, size_t len)
{
    uint32_t crc = crc32c_extend(0, p, len);

    return (crc >> 15 | crc << 17) + 0xa282ead8;
}

static uint32_t le32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* ---- files --------------------------------------------------------------------------------- */

struct rmq_logs *rmq_logs_new(const char *path)
{
    struct rmq_logs *l = xcalloc(1, sizeof(*l));

    l->path = xstrdup(path);
    l->win = xmalloc(CHUNK);
    return l;
}

void rmq_logs_free(struct rmq_logs *l)
{
    if (!l)
        return;
    for (size_t i = 0; i < l->n; i++)
        close(l->files[i].fd);
    free(l->path);
    free(l->win);
    free(l->rec);
    free(l);
}

/* The inode too: after a wipe of the folder numbers begin again. */
static const struct log_file *find(const struct rmq_logs *l, uint64_t num, uint64_t inode)
{
    for (size_t i = 0; i < l->n; i++) {
        if (l->files[i].num == num && l->files[i].inode == inode)
            return &l->files[i];
    }
    return NULL;
}

bool rmq_logs_has(const struct rmq_logs *l, struct rmq_log_pos pos)
{
    return find(l, pos.file, pos.inode) != NULL;
}

static struct rmq_log_pos begin_of(const struct log_file *f)
{
    return (struct rmq_log_pos){.file = f->num, .inode = f->inode};
}

struct rmq_log_pos rmq_logs_begin(const struct rmq_logs *l)
{
    return l->n ? begin_of(&l->files[0]) : (struct rmq_log_pos){0};
}

static void drop_file(struct rmq_logs *l, size_t i)
{
    close(l->files[i].fd);
    l->n--;
    memmove(&l->files[i], &l->files[i + 1], (l->n - i) * sizeof(l->files[0]));
}

static void insert_file(struct rmq_logs *l, struct log_file f)
{
    size_t i = l->n++;

    for (; i > 0 && l->files[i - 1].num > f.num; i--)
        l->files[i] = l->files[i - 1];
    l->files[i] = f;
}

static int open_file(struct rmq_logs *l, int dir, const char *name, uint64_t num,
                     bool *ret_vanished, struct err *err)
{
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0 && errno == ENOENT) {
        *ret_vanished = true;
        return 0;
    }
    if (fd < 0)
        return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "rocksmq %s/%s: %s", l->path, name,
                       strerror(errno));
    if (l->n == FILES_MAX || fstat(fd, &st) < 0) {
        close(fd);
        return err_set(err, ERR_LIMIT, ERRC_RETRY, "rocksmq %s: too many log files", l->path);
    }
    insert_file(l, (struct log_file){num, st.st_ino, fd});
    return 0;
}

/* Closes the files that are not among the n there. */
static void close_others(struct rmq_logs *l, const struct log_file *there, size_t n,
                         bool *ret_vanished)
{
    for (size_t i = l->n; i-- > 0;) {
        size_t k = 0;

        while (k < n && (there[k].num != l->files[i].num || there[k].inode != l->files[i].inode))
            k++;
        if (k < n)
            continue;
        drop_file(l, i);
        *ret_vanished = true;
    }
}

static uint64_t log_number(const char *name)
{
    char *end;
    uint64_t num = strtoull(name, &end, 10);

    return end != name && strcmp(end, ".log") == 0 ? num : 0;
}

int rmq_logs_list(struct rmq_logs *l, bool *ret_vanished, struct err *err)
{
    struct log_file there[FILES_MAX];
    size_t n = 0;
    DIR *d = opendir(l->path);
    struct dirent *e;
    int code = 0;

    if (!d)
        return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "rocksmq %s: %s", l->path,
                       strerror(errno));
    while ((e = readdir(d)) && n < FILES_MAX) {
        there[n] = (struct log_file){.num = log_number(e->d_name), .inode = e->d_ino};
        n += there[n].num != 0;
    }
    close_others(l, there, n, ret_vanished);
    for (size_t i = 0; !code && i < n; i++) {
        char name[32];

        snprintf(name, sizeof(name), "%06" PRIu64 ".log", there[i].num);
        if (!find(l, there[i].num, there[i].inode))
            code = open_file(l, dirfd(d), name, there[i].num, ret_vanished, err);
    }
    closedir(d);
    return code;
}

/* ---- records ------------------------------------------------------------------------------- */

/* Up to want bytes at off: how many are there; ret points to them. -1: errno. */
static ssize_t window(struct rmq_logs *l, const struct log_file *f, uint64_t off, size_t want,
                      const uint8_t **ret)
{
    bool inside =
        l->win_file == f->num && off >= l->win_off && off + want <= l->win_off + l->win_len;

    if (!inside) {
        ssize_t n = pread(f->fd, l->win, CHUNK, (off_t)off);

        l->win_file = 0;
        if (n < 0)
            return -1;
        l->win_file = f->num;
        l->win_off = off;
        l->win_len = (size_t)n;
    }
    *ret = l->win + (off - l->win_off);
    if (l->win_off + l->win_len - off < want)
        want = (size_t)(l->win_off + l->win_len - off);
    return (ssize_t)want;
}

static int damaged(const struct rmq_logs *l, uint64_t file, uint64_t off, const char *what,
                   struct err *err)
{
    return err_set(err, ERR_PROTO, ERRC_RETRY,
                   "rocksmq %s/%06" PRIu64 ".log offset %" PRIu64 ": %s", l->path, file, off, what);
}

/* One fragment. type FRAG_ZERO: not (wholly) written yet. */
struct frag {
    enum fragment type;
    const uint8_t *data;
    size_t len;
    uint64_t next; /* offset behind it */
    bool some;     /* FRAG_ZERO: a part of it is there */
};

static uint64_t skip_trailer(uint64_t off)
{
    uint64_t left = BLOCK - off % BLOCK;

    return left < HEADER ? off + left : off;
}

static int next_frag(struct rmq_logs *l, const struct log_file *f, uint64_t off, struct frag *ret,
                     struct err *err)
{
    const uint8_t *p;
    ssize_t got;
    size_t len;

    *ret = (struct frag){.type = FRAG_ZERO};
    off = skip_trailer(off);
    got = window(l, f, off, HEADER, &p);
    if (got < 0)
        return damaged(l, f->num, off, strerror(errno), err);
    ret->some = got > 0;
    if (got < HEADER)
        return 0;
    len = p[4] | (size_t)p[5] << 8;
    if (p[6] == FRAG_ZERO && len == 0) /* space that was reserved */
        return 0;
    if (p[6] < FRAG_FULL || p[6] > FRAG_LAST || off % BLOCK + HEADER + len > BLOCK)
        return damaged(l, f->num, off, "unknown record format", err);
    got = window(l, f, off, HEADER + len, &p);
    if (got < 0)
        return damaged(l, f->num, off, strerror(errno), err);
    if ((size_t)got < HEADER + len)
        return 0;
    if (masked_crc(p + 6, len + 1) != le32(p))
        return damaged(l, f->num, off, "checksum does not match", err);
    *ret = (struct frag){.type = p[6], .data = p + HEADER, .len = len, .next = off + HEADER + len};
    return 0;
}

static int append(struct rmq_logs *l, const struct frag *fr, struct err *err)
{
    if (fr->len == 0)
        return 0; /* the block ended just behind the header */
    if (l->rec_len + fr->len > l->rec_cap) {
        size_t cap = (l->rec_len + fr->len) * 2;
        uint8_t *rec = cap > MAX_RECORD ? NULL : realloc(l->rec, cap);

        if (!rec)
            return err_set(err, ERR_LIMIT, ERRC_RETRY, "no memory for a log record of %zu bytes",
                           cap / 2);
        l->rec = rec;
        l->rec_cap = cap;
    }
    memcpy(l->rec + l->rec_len, fr->data, fr->len);
    l->rec_len += fr->len;
    return 0;
}

/* One record of file f. *ret_data NULL: it is not there; then *ret_some tells if a part of it is. */
static int next_record(struct rmq_logs *l, const struct log_file *f, uint64_t *off,
                       const uint8_t **ret_data, size_t *ret_len, bool *ret_some, struct err *err)
{
    uint64_t at = *off;
    bool begun = false;
    struct frag fr;
    int code;

    *ret_data = NULL;
    *ret_some = false;
    l->rec_len = 0;
    do {
        code = next_frag(l, f, at, &fr, err);
        if (code)
            return code;
        *ret_some = begun || fr.some;
        if (fr.type == FRAG_ZERO)
            return 0;
        if (begun != (fr.type == FRAG_MIDDLE || fr.type == FRAG_LAST))
            return damaged(l, f->num, at, "fragments out of order", err);
        begun = true;
        at = fr.next;
        if (fr.type != FRAG_FULL && (code = append(l, &fr, err)))
            return code;
    } while (fr.type != FRAG_FULL && fr.type != FRAG_LAST);
    *ret_data = fr.type == FRAG_FULL ? fr.data : l->rec;
    *ret_len = fr.type == FRAG_FULL ? fr.len : l->rec_len;
    *off = at;
    return 0;
}

static const struct log_file *next_file(const struct rmq_logs *l, uint64_t num)
{
    for (size_t i = 0; i < l->n; i++) {
        if (l->files[i].num > num)
            return &l->files[i];
    }
    return NULL;
}

static void trim_record(struct rmq_logs *l)
{
    if (l->rec_cap <= KEEP_RECORD)
        return;
    free(l->rec);
    l->rec = NULL;
    l->rec_cap = 0;
}

/*
 * A file is complete when a newer one was listed before its end was read, since RocksDB writes to
 * one at a time. One that ends in a half record (a crash) is waited out: the restarted Milvus makes
 * tables from it.
 */
int rmq_logs_next(struct rmq_logs *l, struct rmq_log_pos *pos, const uint8_t **ret_data,
                  size_t *ret_len, struct err *err)
{
    const struct log_file *f = find(l, pos->file, pos->inode);

    trim_record(l);
    *ret_data = NULL;
    while (f) {
        bool some;
        int code = next_record(l, f, &pos->offset, ret_data, ret_len, &some, err);

        if (code || *ret_data)
            return code;
        f = next_file(l, pos->file);
        if (f && some)
            return damaged(l, pos->file, pos->offset, "half a record at the end", err);
        if (f)
            *pos = begin_of(f);
    }
    l->win_file = 0; /* more may be written to the same place */
    return 0;
}

/* ---- write batches: rocksdb/db/write_batch.cc, tags of db/dbformat.h ------------------------ */

enum tag {
    TAG_DELETION = 0,
    TAG_VALUE = 1,
    TAG_MERGE = 2,
    TAG_LOG_DATA = 3,
    TAG_CF_DELETION = 4,
    TAG_CF_VALUE = 5,
    TAG_CF_MERGE = 6,
    TAG_SINGLE_DELETION = 7,
    TAG_CF_SINGLE_DELETION = 8,
    TAG_NOOP = 13,
    TAG_CF_RANGE_DELETION = 14,
    TAG_RANGE_DELETION = 15,
    TAGS
};

/* What follows a tag; transactions (9 to 12) are not used by Milvus. */
static const struct {
    bool known, family;
    uint8_t strings;
} tags[TAGS] = {
    [TAG_DELETION] = {true, false, 1},
    [TAG_VALUE] = {true, false, 2},
    [TAG_MERGE] = {true, false, 2},
    [TAG_LOG_DATA] = {true, false, 1},
    [TAG_CF_DELETION] = {true, true, 1},
    [TAG_CF_VALUE] = {true, true, 2},
    [TAG_CF_MERGE] = {true, true, 2},
    [TAG_SINGLE_DELETION] = {true, false, 1},
    [TAG_CF_SINGLE_DELETION] = {true, true, 1},
    [TAG_NOOP] = {true, false, 0},
    [TAG_CF_RANGE_DELETION] = {true, true, 2},
    [TAG_RANGE_DELETION] = {true, false, 2},
};

static bool get_varint32(struct rmq_batch *b, uint32_t *ret)
{
    uint32_t v = 0;

    for (unsigned shift = 0; shift < 35 && b->p < b->end; shift += 7) {
        uint8_t c = *b->p++;

        v |= (uint32_t)(c & 0x7f) << shift;
        if (c < 0x80) {
            *ret = v;
            return true;
        }
    }
    return false;
}

static bool get_string(struct rmq_batch *b, const uint8_t **ret, size_t *ret_len)
{
    uint32_t len;

    if (!get_varint32(b, &len) || len > (size_t)(b->end - b->p))
        return false;
    *ret = b->p;
    *ret_len = len;
    b->p += len;
    return true;
}

int rmq_batch_init(struct rmq_batch *b, const uint8_t *data, size_t len, struct err *err)
{
    if (len < BATCH_HEADER)
        return err_set(err, ERR_PROTO, ERRC_RETRY, "rocksmq: a write batch of %zu bytes", len);
    *b = (struct rmq_batch){data + BATCH_HEADER, data + len};
    return 0;
}

int rmq_batch_next(struct rmq_batch *b, struct rmq_put *ret, struct err *err)
{
    while (b->p < b->end) {
        uint8_t tag = *b->p++;
        uint32_t family = 0;
        bool ok = tag < TAGS && tags[tag].known;

        *ret = (struct rmq_put){0};
        if (ok && tags[tag].family)
            ok = get_varint32(b, &family);
        if (ok && tags[tag].strings > 0)
            ok = get_string(b, &ret->key, &ret->key_len);
        if (ok && tags[tag].strings > 1)
            ok = get_string(b, &ret->value, &ret->value_len);
        if (!ok)
            return err_set(err, ERR_PROTO, ERRC_RETRY,
                           "rocksmq: write batch with unknown content (tag %u)", tag);
        if ((tag == TAG_VALUE || tag == TAG_CF_VALUE) && family == 0)
            return 0;
    }
    *ret = (struct rmq_put){0};
    return 0;
}

unsigned rmq_key_parse(const void *key, size_t len, size_t topic_len, uint64_t *ret_id)
{
    const char *k = key;
    size_t first = topic_len + 1;
    uint64_t id = 0;

    if (len <= first || len - first > ID_DIGITS_MAX || k[topic_len] != '/' || k[first] == '0')
        return 0;
    for (size_t i = first; i < len; i++) {
        if (k[i] < '0' || k[i] > '9')
            return 0;
        id = id * 10 + (uint64_t)(k[i] - '0'); /* 19 digits fit */
    }
    *ret_id = id;
    return (unsigned)(len - first);
}
