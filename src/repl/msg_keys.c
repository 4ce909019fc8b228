/* msg_keys.c - the keys of Deletes as an expression of the public API (milvus Plan.g4). */
#include "base/err.h"
#include "base/mem.h"
#include "repl/msg.h"
#include "repl/msg_priv.h"

#include <event2/buffer.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct msg_keys {
    struct pb_out text; /* "<name> in [1,2" */
    size_t head;        /* of it: up to the bracket */
    uint64_t n;
};

static void add_text(struct pb_out *o, const char *s, size_t len)
{
    pb_out_raw(o, s, len);
}

static void separate(struct msg_keys *k)
{
    if (k->n++)
        add_text(&k->text, ",", 1);
}

/* Milvus reads the sign apart from the digits, of which the least number has one too many; but it adds constants up.
 * (Milvus Lite does not; there this one number cannot be deleted.) */
void msg_out_number(struct pb_out *o, int64_t v)
{
    bool least = v == INT64_MIN;
    char digits[24];

    add_text(o, digits, (size_t)snprintf(digits, sizeof(digits), "%" PRId64, least ? v + 1 : v));
    if (least)
        add_text(o, "-1", 2);
}

static void add_number(void *arg, int64_t v)
{
    struct msg_keys *k = arg;

    separate(k);
    msg_out_number(&k->text, v);
}

/* What must not stand in a quoted text as it is; 0: it may. Milvus and Milvus Lite both take these and no other escapes. */
static char escape_of(uint8_t byte)
{
    switch (byte) {
    case '"':
    case '\\':
        return (char)byte;
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    }
    return 0;
}

void msg_out_quoted(struct pb_out *o, const uint8_t *s, size_t len)
{
    const uint8_t *end = s + len, *from = s;

    add_text(o, "\"", 1);
    for (; s < end; s++) {
        char escape = escape_of(*s);

        if (!escape)
            continue;
        pb_out_raw(o, from, (size_t)(s - from));
        add_text(o, (const char[]){'\\', escape}, 2);
        from = s + 1;
    }
    pb_out_raw(o, from, (size_t)(end - from));
    add_text(o, "\"", 1);
}

static void add_quoted(void *arg, const uint8_t *s, size_t len)
{
    struct msg_keys *k = arg;

    separate(k);
    msg_out_quoted(&k->text, s, len);
}

bool msg_each_number(const uint8_t *data, size_t len, uint32_t num, void (*fn)(void *arg, int64_t v), void *arg)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    uint64_t v;
    int n;

    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != num)
            continue;
        if (f.wire == PB_VARINT)
            fn(arg, (int64_t)f.varint);
        else if (f.wire != PB_LEN)
            return false;
        for (const uint8_t *p = f.data; f.wire == PB_LEN && p < f.data + f.len;) {
            if (!pb_varint(&p, f.data + f.len, &v))
                return false;
            fn(arg, (int64_t)v);
        }
    }
    return n == 0;
}

bool msg_each_text(const uint8_t *data, size_t len, void (*fn)(void *arg, const uint8_t *s, size_t len), void *arg)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    int n;

    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num != ARRAY_F_DATA || f.wire != PB_LEN)
            return false;
        fn(arg, f.data, f.len);
    }
    return n == 0;
}

/* IDs, or the integers of old servers. */
static bool add_keys(struct msg_keys *k, const uint8_t *data, size_t len)
{
    struct pb_field ids, array;
    int n = msg_find_only(data, len, DELETE_F_PRIMARY_KEYS, PB_LEN, &ids);

    if (n == 0)
        return msg_each_number(data, len, DELETE_F_OLD_KEYS, add_number, k);
    if (n < 0 || (n = msg_find_only(ids.data, ids.len, IDS_F_INT, PB_LEN, &array)) < 0)
        return false;
    if (n > 0)
        return msg_each_number(array.data, array.len, ARRAY_F_DATA, add_number, k);
    return msg_find_only(ids.data, ids.len, IDS_F_STR, PB_LEN, &array) > 0 && msg_each_text(array.data, array.len, add_quoted, k);
}

int msg_keys_add(struct msg_keys *k, const struct msg_head *head, const uint8_t *data, size_t len, struct err *err)
{
    size_t text_len = k->text.len;
    uint64_t n = k->n;

    if (head->type == MSG_DELETE && add_keys(k, data, len) && k->n - n == head->num_rows)
        return 0;
    k->text.len = text_len;
    k->n = n;
    return err_set(err, ERR_PROTO, ERRC_DATA,
                   "%s message %lld of collection %lld: no primary key for each of %llu rows",
                   msg_type_name(head->type), (long long)head->msg_id, (long long)head->collection_id,
                   (unsigned long long)head->num_rows);
}

uint64_t msg_keys_count(const struct msg_keys *k)
{
    return k->n;
}

size_t msg_keys_bytes(const struct msg_keys *k)
{
    return k->text.len + 1;
}

bool msg_keys_write(const struct msg_keys *k, struct evbuffer *out)
{
    return evbuffer_add(out, k->text.data, k->text.len) == 0 && evbuffer_add(out, "]", 1) == 0;
}

struct msg_keys *msg_keys_new(const char *pk_name)
{
    struct msg_keys *k = xcalloc(1, sizeof(*k));
    char *begin = xasprintf("%s in [", pk_name);

    pb_out_raw(&k->text, begin, strlen(begin));
    k->head = k->text.len;
    free(begin);
    return k;
}

/* Behind the key that begins at p. */
static const uint8_t *key_end(const uint8_t *p, const uint8_t *end)
{
    bool quoted = false;

    for (; p < end && (quoted || *p != ','); p++) {
        if (*p == '"')
            quoted = !quoted;
        else if (*p == '\\')
            p++;
    }
    return p;
}

struct msg_keys *msg_keys_cut(const struct msg_keys *k, uint64_t from, uint64_t to)
{
    const uint8_t *p = k->text.data + k->head, *end = k->text.data + k->text.len, *next;
    struct msg_keys *cut = xcalloc(1, sizeof(*cut));

    pb_out_raw(&cut->text, k->text.data, k->head);
    cut->head = k->head;
    for (uint64_t i = 0; i < to && p < end; i++, p = next + 1) {
        next = key_end(p, end);
        if (i < from)
            continue;
        separate(cut);
        pb_out_raw(&cut->text, p, (size_t)(next - p));
    }
    return cut;
}

void msg_keys_free(struct msg_keys *k)
{
    if (!k)
        return;
    pb_out_release(&k->text);
    free(k);
}
