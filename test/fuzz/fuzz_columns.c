/*
 * fuzz_columns.c - Inserts and Deletes of any bytes, as the public API takes them: columns that msg_columns_add() takes
 * are written in the form that it takes again unchanged, and join with themselves. How to run it: README.md here.
 *
 * test_msg_columns.c includes this file and runs the corpus of messages and mutations of it through fuzz_columns_one().
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

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond);                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A copy at both ends of its heap block, so that ASan sees reads before and after it. */
static struct buf *fuzz_exact_buf(const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len ? len : 1);

    CHECK(copy);
    if (len)
        memcpy(copy, data, len);
    return buf_wrap(copy, len, free, copy);
}

/* What msg_columns_write() says; caller frees. */
static uint8_t *fuzz_columns_text(const struct msg_columns *c, size_t *ret_len)
{
    struct evbuffer *ev = evbuffer_new();
    uint8_t *all;

    CHECK(msg_columns_write(c, ev));
    *ret_len = evbuffer_get_length(ev);
    CHECK(*ret_len == msg_columns_bytes(c) && *ret_len > 0);
    all = malloc(*ret_len);
    CHECK(all && evbuffer_remove(ev, all, *ret_len) == (int)*ret_len);
    evbuffer_free(ev);
    return all;
}

/* An Insert of as many rows with the written columns. */
static struct buf *fuzz_insert_of(const struct msg_head *head, const uint8_t *columns, size_t len)
{
    struct pb_scan s = pb_scan_init(columns, len);
    struct pb_out o = {0};
    struct pb_field f;
    struct buf *b;
    int n;

    pb_out_bytes(&o, 1, "\x08\x90\x03", 3); /* base{msg_type 400} */
    while ((n = pb_scan_next(&s, &f)) > 0) {
        CHECK(f.num == 5 && f.wire == PB_LEN); /* fields_data of the public API */
        pb_out_tag(&o, 13, PB_LEN);            /* and of the WAL */
        pb_out_varint(&o, f.len);
        pb_out_raw(&o, f.data, f.len);
    }
    CHECK(n == 0);
    pb_out_u64(&o, 14, head->num_rows);
    b = fuzz_exact_buf(o.data, o.len);
    pb_out_release(&o);
    return b;
}

static void fuzz_columns_again(const struct msg_head *head, const uint8_t *text, size_t len)
{
    struct buf *m = fuzz_insert_of(head, text, len);
    struct msg_columns *c = msg_columns_new();
    size_t len2;
    uint8_t *text2;

    CHECK(msg_columns_add(c, head, m, m->data, m->size, NULL) == 0);
    text2 = fuzz_columns_text(c, &len2);
    CHECK(len == len2 && memcmp(text, text2, len) == 0);
    msg_columns_free(c);
    buf_unref(m);
    free(text2);
}

static int fuzz_columns(const struct msg_head *head, struct buf *src)
{
    struct msg_columns *c = msg_columns_new();
    struct err err;
    size_t len, len2;
    uint8_t *text;
    int rc = msg_columns_add(c, head, src, src->data, src->size, &err);

    if (rc) {
        CHECK(rc == ERR_PROTO && err.cls == ERRC_DATA && *err.text);
        CHECK(msg_columns_rows(c) == 0 && msg_columns_bytes(c) == 0);
        msg_columns_free(c);
        return rc;
    }
    text = fuzz_columns_text(c, &len);
    fuzz_columns_again(head, text, len);
    free(text);
    CHECK(msg_columns_add(c, head, src, src->data, src->size, &err) == 0);
    CHECK(msg_columns_rows(c) == 2 * head->num_rows);
    free(fuzz_columns_text(c, &len2));
    CHECK(len2 >= len && len2 < 2 * len + 40000); /* longer lengths, at most */
    msg_columns_free(c);
    return 0;
}

static int fuzz_keys(const struct msg_head *head, struct buf *src)
{
    struct msg_keys *k = msg_keys_new("id");
    size_t empty = msg_keys_bytes(k), one;
    struct err err;
    int rc = msg_keys_add(k, head, src->data, src->size, &err);

    if (rc) {
        CHECK(rc == ERR_PROTO && err.cls == ERRC_DATA && *err.text);
        CHECK(msg_keys_count(k) == 0 && msg_keys_bytes(k) == empty);
    } else {
        one = msg_keys_bytes(k) - empty;
        CHECK(msg_keys_count(k) == head->num_rows && one > 0);
        CHECK(msg_keys_add(k, head, src->data, src->size, &err) == 0);
        CHECK(msg_keys_bytes(k) == empty + 2 * one + 1);
    }
    msg_keys_free(k);
    return rc;
}

/* Returns 0, or the code of the first function that does not take the bytes. */
static int fuzz_columns_one(const uint8_t *data, size_t len)
{
    struct buf *src = fuzz_exact_buf(data, len);
    struct msg_head head;
    int rc = msg_scan(src->data, src->size, &head, NULL);

    if (rc == 0 && head.type == MSG_DELETE)
        rc = fuzz_keys(&head, src);
    else if (rc == 0)
        rc = fuzz_columns(&head, src);
    CHECK(src->refs == 1);
    buf_unref(src);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    (void)fuzz_columns_one(data, len);
    return 0;
}
