/*
 * fuzz_msg.c - WAL messages of any bytes: what msg_scan() takes can be rewritten, and scans again
 * to what the rewrite said, with every other field as it was. How to run it: README.md here.
 *
 * test_msg.c includes this file and runs the corpus and mutations of it through fuzz_msg_one().
 */
#include "base/buf.h"
#include "base/err.h"
#include "base/pbwire.h"
#include "repl/msg.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond);                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

enum { FUZZ_TT = 7777777, FUZZ_MSG_ID = 4242 };

/* A copy at both ends of its heap block, so that ASan sees reads before and after it. */
static struct buf *fuzz_exact_buf(const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len ? len : 1);

    CHECK(copy);
    if (len)
        memcpy(copy, data, len);
    return buf_wrap(copy, len, free, copy);
}

/* Takes the one element out of ev; caller frees. */
static uint8_t *fuzz_take_element(struct evbuffer *ev, size_t appended, size_t *ret_len)
{
    size_t total = evbuffer_get_length(ev);
    uint8_t *all = malloc(total), *msg;
    struct pb_scan s = pb_scan_init(all, total);
    struct pb_field f;

    CHECK(all && total == appended && total > 0);
    CHECK(evbuffer_remove(ev, all, total) == (int)total);
    CHECK(all[0] == 0x2a); /* ReplicateMessageRequest.Msgs */
    CHECK(pb_scan_next(&s, &f) == 1 && f.total == total);
    msg = malloc(f.len ? f.len : 1);
    CHECK(msg);
    memcpy(msg, f.data, f.len);
    *ret_len = f.len;
    free(all);
    return msg;
}

/* Is that field written anew?  Numbers as in source.md 5, on purpose not those of msg.c. */
static bool fuzz_replaced(int type, uint32_t num, bool times)
{
    switch (type) {
    case MSG_INSERT:
    case MSG_DELETE:
        return num <= 4 || num == 7 || num == 8 || (times && num == 10);
    case MSG_DROP_COLLECTION:
        return num <= 3 || num == 5;
    default: /* DropPartition */
        return num <= 3 || num == 6 || num == 7;
    }
}

static bool fuzz_next_kept(struct pb_scan *s, int type, bool times, struct pb_field *f)
{
    while (pb_scan_next(s, f) == 1)
        if (!fuzz_replaced(type, f->num, times))
            return true;
    return false;
}

/* The fields that stay are the same bytes in the same order. */
static void fuzz_same_rest(int type, bool times, struct buf *in, const uint8_t *out, size_t out_len)
{
    struct pb_scan a = pb_scan_init(in->data, in->size), b = pb_scan_init(out, out_len);
    struct pb_field fa, fb;
    bool more;

    while ((more = fuzz_next_kept(&a, type, times, &fa))) {
        CHECK(fuzz_next_kept(&b, type, times, &fb));
        CHECK(fa.total == fb.total && memcmp(fa.start, fb.start, fa.total) == 0);
    }
    CHECK(!fuzz_next_kept(&b, type, times, &fb));
}

static bool fuzz_text_is(const uint8_t *text, size_t len, const char *want)
{
    return len == strlen(want) && memcmp(text, want, len) == 0;
}

static bool fuzz_same_text(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    return a_len == b_len && (a_len == 0 || memcmp(a, b, a_len) == 0);
}

static void fuzz_check_target(const struct msg_head *h, const struct msg_rewrite *rw)
{
    if (h->type == MSG_INSERT || h->type == MSG_DELETE)
        CHECK(fuzz_text_is(h->shard_name, h->shard_name_len, rw->shard_name));
    CHECK(fuzz_text_is(h->db_name, h->db_name_len, rw->db_name));
    CHECK(fuzz_text_is(h->collection_name, h->collection_name_len, rw->collection_name));
    CHECK(h->collection_id == rw->collection_id);
}

/* The head of a rewritten message against the original one. */
static void fuzz_check_head(const struct msg_head *in, const struct msg_head *out,
                            const struct msg_rewrite *rw)
{
    bool rows = in->type == MSG_INSERT || in->type == MSG_DELETE;

    fuzz_check_target(out, rw);
    CHECK(out->type == in->type && out->num_rows == in->num_rows);
    CHECK(out->msg_id == (rw->new_msg_id ? rw->new_msg_id : in->msg_id));
    CHECK(out->base_tt == (rw->new_tt ? rw->new_tt : in->base_tt));
    CHECK(out->min_tt == (rw->new_tt ? rw->new_tt : in->min_tt));
    CHECK(out->max_tt == (rw->new_tt ? rw->new_tt : in->max_tt));
    CHECK(fuzz_same_text(in->partition_name, in->partition_name_len, out->partition_name,
                         out->partition_name_len));
    if (rows || in->type == MSG_DROP_PARTITION)
        CHECK(out->partition_id == (in->partition_id == -1 ? -1 : rw->partition_id));
}

static void fuzz_rewrite(const struct msg_head *head, struct buf *src, const struct msg_rewrite *rw)
{
    struct evbuffer *ev = evbuffer_new();
    struct msg_head again;
    struct buf *once;
    uint8_t *out, *twice;
    size_t len, len2;

    out = fuzz_take_element(ev, msg_append(head, src, src->data, src->size, rw, ev), &len);
    CHECK(msg_scan(out, len, &again, NULL) == 0);
    fuzz_check_head(head, &again, rw);
    fuzz_same_rest(head->type, rw->new_tt != 0, src, out, len);
    /* a rewrite of its own output changes nothing */
    once = fuzz_exact_buf(out, len);
    CHECK(msg_scan(once->data, once->size, &again, NULL) == 0);
    twice = fuzz_take_element(ev, msg_append(&again, once, once->data, once->size, rw, ev), &len2);
    CHECK(len == len2 && memcmp(out, twice, len) == 0);
    buf_unref(once);
    free(out);
    free(twice);
    evbuffer_free(ev);
}

/* True when the Insert has a column of that id and kind. */
static bool fuzz_delete(const struct msg_head *head, struct buf *src, const struct msg_rewrite *rw,
                        int64_t pk, bool is_string)
{
    struct evbuffer *ev = evbuffer_new();
    struct msg_head del;
    struct err err;
    size_t n = 0, len;
    uint8_t *out;
    int rc = msg_append_delete_of_insert(head, src, src->data, src->size, pk, is_string, rw, ev, &n,
                                         &err);

    if (rc) {
        CHECK(rc == ERR_PROTO && err.cls == ERRC_DATA && n == 0 && evbuffer_get_length(ev) == 0);
        evbuffer_free(ev);
        return false;
    }
    out = fuzz_take_element(ev, n, &len);
    CHECK(msg_scan(out, len, &del, NULL) == 0);
    fuzz_check_target(&del, rw);
    CHECK(del.type == MSG_DELETE && del.num_rows == head->num_rows);
    CHECK(del.msg_id == rw->new_msg_id && del.partition_id == rw->partition_id);
    CHECK(del.base_tt == rw->new_tt && del.min_tt == rw->new_tt && del.max_tt == rw->new_tt);
    CHECK(fuzz_same_text(del.partition_name, del.partition_name_len, head->partition_name,
                         head->partition_name_len));
    free(out);
    evbuffer_free(ev);
    return true;
}

static void fuzz_operations(struct buf *src)
{
    static const int types[] = {MSG_CREATE_INDEX, MSG_FLUSH, MSG_ALTER_DATABASE};
    char *db, *collection;

    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        for (size_t index = 0; index < 3; index++) {
            int rc = msg_operation_target(types[i], src->data, src->size, index, &db, &collection,
                                          NULL);
            CHECK(rc == 0 || rc == ERR_PROTO || rc == ERR_NOT_FOUND);
            if (rc)
                continue;
            CHECK(*db && (*collection || types[i] == MSG_ALTER_DATABASE));
            free(db);
            free(collection);
        }
    }
}

/* Returns 0, or the code of msg_scan() when it does not take the bytes. */
static int fuzz_msg_one(const uint8_t *data, size_t len)
{
    struct buf *src = fuzz_exact_buf(data, len);
    struct msg_rewrite rw = {.collection_id = 99, .partition_id = 98, .shard_name = "dml_1_99v0",
                             .db_name = "target_db", .collection_name = "target_coll"};
    struct msg_head head;
    struct err err;
    int rc;

    fuzz_operations(src);
    rc = msg_scan(src->data, src->size, &head, &err);
    if (rc) {
        CHECK(rc == ERR_PROTO && err.cls == ERRC_DATA && *err.text);
    } else if (head.type == MSG_INSERT || head.type == MSG_DELETE ||
               head.type == MSG_DROP_COLLECTION || head.type == MSG_DROP_PARTITION) {
        fuzz_rewrite(&head, src, &rw);
        rw.new_msg_id = FUZZ_MSG_ID;
        fuzz_rewrite(&head, src, &rw);
        rw.new_tt = FUZZ_TT;
        fuzz_rewrite(&head, src, &rw);
        if (head.type == MSG_INSERT) {
            (void)fuzz_delete(&head, src, &rw, 100, false); /* most bytes have no such column */
            (void)fuzz_delete(&head, src, &rw, 100, true);
        }
    }
    CHECK(src->refs == 1);
    buf_unref(src);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    (void)fuzz_msg_one(data, len);
    return 0;
}
