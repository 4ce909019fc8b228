/*
 * msg_columns.c - the columns of Inserts, joined for the public API.
 *
 *   message   FieldData{ what it is, valid_data, scalars | vectors { dim, array { values } } }
 *   joined    the same once, and in it the values of all messages one behind the other
 *
 * It is written with one tag for each level rather than as FieldData behind FieldData, which protobuf would merge too:
 * not every parser merges inside a oneof, and of bare bytes (binary and half precision vectors) the last would win.
 */
#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "repl/msg.h"
#include "repl/msg_priv.h"

#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

enum { REQUEST_F_FIELDS_DATA = 5 };                                /* InsertRequest, UpsertRequest */
enum { VECTOR_F_DIM = 1, VECTOR_F_SPARSE = 6, VECTOR_F_INT8 = 7 }; /* schema.proto VectorField */
enum { SPARSE_F_DIM = 2 };                                         /* SparseFloatArray */
/* Behind it are geometry, times and more: the API takes texts where the WAL has what was made of them. */
enum { SCALAR_F_JSON = 9 };
enum { FIRST_USER_FIELD = 100, COLUMNS_MAX = 1024, NAME_SHOWN_MAX = 64 };

/* The values of one column, message by message. */
struct part {
    struct buf *src;
    const uint8_t *data;
    size_t len;
};
struct parts {
    struct part *v;
    size_t n, cap, bytes;
};

struct column {
    struct msg_column like; /* what all pieces have in common; borrows from the first message */
    struct pb_out what;     /* that, encoded */
    struct parts values, valid;
    bool defaults; /* all rows are valid, and that must be said */
    uint64_t dim, sparse_dim;
    unsigned turn; /* of the last message that has it */
};

struct msg_columns {
    struct column *v;
    size_t n, cap;
    uint64_t rows;
    int64_t *defaults;
    size_t n_defaults;
    struct buf **srcs; /* all that values point into */
    size_t n_srcs, cap_srcs;
    unsigned turn;
    struct msg_column *pieces; /* of the message that is being added */
    size_t n_pieces, cap_pieces;
};

static void *grow(void *v, size_t n, size_t *cap, size_t size)
{
    if (n < *cap)
        return v;
    *cap = *cap ? *cap * 2 : 8;
    return xrealloc(v, *cap * size);
}

/* ---- one message ------------------------------------------------------------------------------ */

static const char broken[] = "is malformed";

static const char *scan_array(struct msg_column *p, const struct pb_field *f)
{
    p->array = f->num;
    p->data = f->data;
    p->len = f->len;
    if (f->num > (p->kind == FIELD_F_VECTORS ? VECTOR_F_INT8 : SCALAR_F_JSON))
        return "has values of a kind that is not known here";
    return NULL;
}

/* ScalarField or VectorField: a oneof of arrays. */
static const char *scan_arrays(struct msg_column *p, const struct pb_field *field)
{
    struct pb_scan s = pb_scan_init(field->data, field->len);
    const char *why = NULL;
    struct pb_field f;
    int n = 0;

    while (!why && (n = pb_scan_next(&s, &f)) > 0) {
        if (p->kind == FIELD_F_VECTORS && f.num == VECTOR_F_DIM && f.wire == PB_VARINT)
            p->dim = f.varint;
        else if (f.wire != PB_LEN || p->array)
            why = broken;
        else
            why = scan_array(p, &f);
    }
    if (n < 0)
        return broken;
    return why || p->array ? why : "has no values";
}

/* The rows, and behind them the greatest dim of the message. */
static const char *scan_sparse(struct msg_column *p)
{
    struct pb_scan s = pb_scan_init(p->data, p->len);
    struct pb_field f;
    bool ended = false;
    int n;

    p->len = 0;
    while ((n = pb_scan_next(&s, &f)) > 0) {
        if (f.num == ARRAY_F_DATA && f.wire == PB_LEN && !ended) {
            p->len += f.total;
        } else if (f.num == SPARSE_F_DIM && f.wire == PB_VARINT && !ended) {
            p->sparse_dim = f.varint;
            ended = true;
        } else {
            return broken;
        }
    }
    return n < 0 ? broken : NULL;
}

static const char *scan_values(struct msg_column *p, const struct pb_field *field)
{
    const char *why;

    if (p->kind)
        return broken;
    p->kind = field->num;
    why = scan_arrays(p, field);
    return why || !msg_column_is_sparse(p) ? why : scan_sparse(p);
}

/* NULL, or what is wrong with it. */
static const char *scan_field(struct msg_column *p, const struct pb_field *f)
{
    const unsigned bytes = 1u << FIELD_F_NAME | 1u << FIELD_F_SCALARS | 1u << FIELD_F_VECTORS | 1u << FIELD_F_VALID;

    if (f->num > FIELD_F_VALID)
        return "has a kind of values that is not known here";
    if (f->wire != (bytes >> f->num & 1 ? PB_LEN : PB_VARINT))
        return broken;
    switch (f->num) {
    case FIELD_F_TYPE:
        p->type = f->varint;
        break;
    case FIELD_F_NAME:
        p->name = f->data;
        p->name_len = f->len;
        break;
    case FIELD_F_ID:
        p->id = f->varint;
        break;
    case FIELD_F_DYNAMIC:
        p->dynamic = f->varint != 0;
        break;
    case FIELD_F_VALID:
        if (p->valid)
            return broken;
        p->valid = f->data;
        p->valid_len = f->len;
        break;
    default:
        return scan_values(p, f);
    }
    return NULL;
}

static bool named(const struct msg_column *p, const char *name)
{
    return p->name_len == strlen(name) && memcmp(p->name, name, p->name_len) == 0;
}

const char *msg_column_scan(struct msg_column *p, const uint8_t *data, size_t len)
{
    struct pb_scan s = pb_scan_init(data, len);
    const char *why = NULL;
    struct pb_field f;
    int n = 0;

    *p = (struct msg_column){0};
    while (!why && (n = pb_scan_next(&s, &f)) > 0)
        why = scan_field(p, &f);
    if (why || n < 0)
        return why ? why : broken;
    if (p->name_len == 0)
        return "has no name";
    p->dynamic = p->dynamic || named(p, "$meta");
    return p->kind ? NULL : "has no values";
}

bool msg_column_is_sparse(const struct msg_column *p)
{
    return p->kind == FIELD_F_VECTORS && p->array == VECTOR_F_SPARSE;
}

int msg_column_err(const struct msg_head *head, const struct msg_column *p, const char *why, struct err *err)
{
    return err_set(err, ERR_PROTO, ERRC_DATA, "Insert message %lld of collection %lld: column `%.*s` %s",
                   (long long)head->msg_id, (long long)head->collection_id,
                   (int)(p->name_len < NAME_SHOWN_MAX ? p->name_len : NAME_SHOWN_MAX),
                   p->name ? (const char *)p->name : "", why);
}

static int message_err(const struct msg_head *head, const char *why, struct err *err)
{
    return err_set(err, ERR_PROTO, ERRC_DATA, "%s message %lld of collection %lld %s", msg_type_name(head->type),
                   (long long)head->msg_id, (long long)head->collection_id, why);
}

/* The pieces of a message's columns; nulls are not looked at. */
static int scan_message(struct msg_columns *c, const struct msg_head *head, uint32_t tag, const uint8_t *data, size_t len,
                        struct err *err)
{
    struct pb_scan s = pb_scan_init(data, len);
    struct pb_field f;
    int n;

    c->n_pieces = 0;
    while ((n = pb_scan_next(&s, &f)) > 0) {
        struct msg_column *p;
        const char *why;

        if (f.num != tag)
            continue;
        if (f.wire != PB_LEN || c->n_pieces == COLUMNS_MAX)
            return message_err(head, f.wire != PB_LEN ? "has malformed columns" : "has too many columns", err);
        c->pieces = grow(c->pieces, c->n_pieces, &c->cap_pieces, sizeof(*c->pieces));
        p = &c->pieces[c->n_pieces];
        why = msg_column_scan(p, f.data, f.len);
        if (why)
            return msg_column_err(head, p, why, err);
        if (p->id >= FIRST_USER_FIELD || !(named(p, "RowID") || named(p, "Timestamp")))
            c->n_pieces++;
    }
    if (n < 0)
        return message_err(head, broken, err);
    return c->n_pieces ? 0 : message_err(head, "has no columns (rows of an old format cannot be written)", err);
}

static int mend(struct msg_columns *c, const struct msg_head *head, struct err *err)
{
    int rc = 0;

    for (size_t i = 0; i < c->n_pieces && !rc; i++) {
        rc = msg_column_remove_nulls(&c->pieces[i], head, err);
        if (!rc)
            msg_column_fill_arrays(&c->pieces[i]);
    }
    return rc;
}

static void release_pieces(struct msg_columns *c)
{
    for (size_t i = 0; i < c->n_pieces; i++)
        buf_unref(c->pieces[i].own);
    c->n_pieces = 0;
}

/* ---- joining ---------------------------------------------------------------------------------- */

static bool same_name(const struct msg_column *a, const struct msg_column *b)
{
    return a->name_len == b->name_len && memcmp(a->name, b->name, a->name_len) == 0;
}

/* A sparse vector's dim is the greatest of its message. */
static bool same_kind(const struct msg_column *a, const struct msg_column *b)
{
    return a->type == b->type && a->id == b->id && a->dynamic == b->dynamic && a->kind == b->kind &&
           a->array == b->array && !a->valid == !b->valid && (a->dim == b->dim || msg_column_is_sparse(a));
}

static bool has_default(const struct msg_columns *c, const struct msg_column *p)
{
    for (size_t i = 0; i < c->n_defaults; i++)
        if ((uint64_t)c->defaults[i] == p->id)
            return !p->valid; /* else it says so itself */
    return false;
}

static void make_columns(struct msg_columns *c)
{
    for (size_t i = 0; i < c->n_pieces; i++) {
        const struct msg_column *p = &c->pieces[i];
        struct column *col;

        c->v = grow(c->v, c->n, &c->cap, sizeof(*c->v));
        col = &c->v[c->n++];
        *col = (struct column){.like = *p, .defaults = has_default(c, p)};
        pb_out_u64(&col->what, FIELD_F_TYPE, p->type);
        pb_out_bytes(&col->what, FIELD_F_NAME, p->name, p->name_len);
        pb_out_u64(&col->what, FIELD_F_ID, p->id);
        pb_out_u64(&col->what, FIELD_F_DYNAMIC, p->dynamic);
    }
}

/* Looks from place on, around. NULL: none. */
static struct column *find_column(struct msg_columns *c, const struct msg_column *p, size_t place)
{
    for (size_t i = 0; i < c->n; i++) {
        struct column *col = &c->v[(place + i) % c->n];

        if (same_name(&col->like, p))
            return col;
    }
    return NULL;
}

/* Finds each piece's column, usually at the same place. A name that comes twice is malformed; in a first message the
 * columns were made of it, so that only a look from the beginning tells. */
static int place_pieces(struct msg_columns *c, bool first, const struct msg_head *head, struct err *err)
{
    bool fits = c->n_pieces == c->n;

    c->turn++;
    for (size_t i = 0; i < c->n_pieces; i++) {
        struct msg_column *p = &c->pieces[i];
        struct column *col = find_column(c, p, first ? 0 : i);

        if (col && col->turn == c->turn)
            return msg_column_err(head, p, "comes twice", err);
        if (!col || !same_kind(&col->like, p)) {
            fits = false;
            continue;
        }
        col->turn = c->turn;
        p->column = (size_t)(col - c->v);
    }
    if (fits)
        return 0;
    return err_set(err, ERR_INVALID, ERRC_DATA,
                   "Insert message %lld of collection %lld: its columns are not those of the messages before it",
                   (long long)head->msg_id, (long long)head->collection_id);
}

static void drop_columns(struct msg_columns *c)
{
    for (size_t i = 0; i < c->n; i++)
        pb_out_release(&c->v[i].what);
    c->n = 0;
}

static void add_part(struct parts *p, struct buf *src, const uint8_t *data, size_t len)
{
    if (len == 0)
        return;
    p->v = grow(p->v, p->n, &p->cap, sizeof(*p->v));
    p->v[p->n++] = (struct part){src, data, len};
    p->bytes += len;
}

/* src is taken. */
static void keep(struct msg_columns *c, struct buf *src)
{
    c->srcs = grow(c->srcs, c->n_srcs, &c->cap_srcs, sizeof(struct buf *));
    c->srcs[c->n_srcs++] = src;
}

static void take_pieces(struct msg_columns *c, struct buf *src)
{
    keep(c, buf_ref(src));
    for (size_t i = 0; i < c->n_pieces; i++) {
        struct msg_column *p = &c->pieces[i];
        struct column *col = &c->v[p->column];

        add_part(&col->values, p->own ? p->own : src, p->data, p->len);
        add_part(&col->valid, src, p->valid, p->valid_len);
        col->dim = p->dim > col->dim ? p->dim : col->dim;
        col->sparse_dim = p->sparse_dim > col->sparse_dim ? p->sparse_dim : col->sparse_dim;
        if (p->own)
            keep(c, p->own);
        p->own = NULL;
    }
}

static int columns_add(struct msg_columns *c, const struct msg_head *head, uint32_t tag, struct buf *src,
                       const uint8_t *data, size_t len, struct err *err)
{
    bool first = c->n == 0;
    int rc = scan_message(c, head, tag, data, len, err);

    if (!rc)
        rc = mend(c, head, err);
    if (!rc) {
        if (first)
            make_columns(c);
        rc = place_pieces(c, first, head, err);
    }
    if (!rc) {
        take_pieces(c, src);
        c->rows += head->num_rows;
    } else if (first) {
        drop_columns(c);
    }
    release_pieces(c);
    return rc;
}

int msg_columns_add(struct msg_columns *c, const struct msg_head *head, struct buf *src, const uint8_t *data,
                    size_t len, struct err *err)
{
    if (head->type != MSG_INSERT)
        return message_err(head, "is no Insert", err);
    return columns_add(c, head, INSERT_F_FIELDS_DATA, src, data, len, err);
}

int msg_columns_add_page(struct msg_columns *c, struct buf *src, const uint8_t *data, size_t len, const char *pk_name,
                         char **ret_last, struct err *err)
{
    struct msg_head head = {.type = MSG_INSERT};
    int rc = msg_page_keys(data, len, pk_name, &head.num_rows, ret_last, err);

    if (rc || head.num_rows == 0)
        return rc;
    rc = columns_add(c, &head, PAGE_F_FIELDS_DATA, src, data, len, err);
    if (rc) {
        free(*ret_last);
        *ret_last = NULL;
    }
    return rc;
}

/* ---- writing ---------------------------------------------------------------------------------- */

/* Lengths of the contents, from the inside to the outside. */
struct lengths {
    size_t array, kind, valid, body;
};

static size_t field_len(uint32_t num, size_t len)
{
    return pb_varint_len((uint64_t)num << 3) + pb_varint_len(len) + len;
}

static size_t number_len(uint32_t num, uint64_t v)
{
    return v ? pb_varint_len((uint64_t)num << 3) + pb_varint_len(v) : 0;
}

static struct lengths measure(const struct msg_columns *cs, const struct column *c)
{
    struct lengths l;

    l.array = c->values.bytes + number_len(SPARSE_F_DIM, c->sparse_dim);
    l.kind = number_len(VECTOR_F_DIM, c->dim) + field_len(c->like.array, l.array);
    l.valid = c->defaults ? cs->rows : c->valid.bytes; /* a byte per row */
    l.body = c->what.len + (l.valid ? field_len(FIELD_F_VALID, l.valid) : 0) + field_len(c->like.kind, l.kind);
    return l;
}

static void open_field(struct pb_out *o, uint32_t num, size_t len)
{
    pb_out_tag(o, num, PB_LEN);
    pb_out_varint(o, len);
}

/* Empties o. In a buffer of its own: behind a reference evbuffer_add() allocates as much again as that refers to. */
static bool write_out(struct pb_out *o, struct evbuffer *out)
{
    struct evbuffer *own = o->len ? evbuffer_new() : NULL;
    bool ok = !o->len || (own && evbuffer_add(own, o->data, o->len) == 0 && evbuffer_add_buffer(out, own) == 0);

    if (own)
        evbuffer_free(own);
    o->len = 0;
    return ok;
}

static bool write_parts(const struct parts *p, struct evbuffer *out)
{
    bool ok = true;

    for (size_t i = 0; i < p->n && ok; i++)
        ok = buf_add_to_evbuffer(p->v[i].src, p->v[i].data, p->v[i].len, out) == 0;
    return ok;
}

static bool write_valid(const struct column *c, size_t len, struct evbuffer *out)
{
    struct evbuffer_iovec v;

    if (!c->defaults)
        return write_parts(&c->valid, out);
    if (evbuffer_reserve_space(out, (ssize_t)len, &v, 1) != 1)
        return false;
    memset(v.iov_base, 1, len);
    v.iov_len = len;
    return evbuffer_commit_space(out, &v, 1) == 0;
}

static bool write_column(const struct msg_columns *cs, const struct column *c, struct pb_out *o, struct evbuffer *out)
{
    struct lengths l = measure(cs, c);
    bool ok = true;

    open_field(o, REQUEST_F_FIELDS_DATA, l.body);
    pb_out_raw(o, c->what.data, c->what.len);
    if (l.valid) {
        open_field(o, FIELD_F_VALID, l.valid);
        ok = write_out(o, out) && write_valid(c, l.valid, out);
    }
    open_field(o, c->like.kind, l.kind);
    pb_out_u64(o, VECTOR_F_DIM, c->dim);
    open_field(o, c->like.array, l.array);
    ok = ok && write_out(o, out) && write_parts(&c->values, out);
    pb_out_u64(o, SPARSE_F_DIM, c->sparse_dim);
    return ok && write_out(o, out);
}

bool msg_columns_write(const struct msg_columns *c, struct evbuffer *out)
{
    struct pb_out o = {0};
    bool ok = true;

    for (size_t i = 0; i < c->n && ok; i++)
        ok = write_column(c, &c->v[i], &o, out);
    pb_out_release(&o);
    return ok;
}

size_t msg_columns_bytes(const struct msg_columns *c)
{
    size_t n = 0;

    for (size_t i = 0; i < c->n; i++)
        n += field_len(REQUEST_F_FIELDS_DATA, measure(c, &c->v[i]).body);
    return n;
}

uint64_t msg_columns_rows(const struct msg_columns *c)
{
    return c->rows;
}

/* ---- life ------------------------------------------------------------------------------------- */

struct msg_columns *msg_columns_new(void)
{
    return xcalloc(1, sizeof(struct msg_columns));
}

void msg_columns_defaults(struct msg_columns *c, const int64_t *field_ids, size_t n)
{
    c->defaults = xrealloc(c->defaults, (n + 1) * sizeof(*field_ids));
    c->n_defaults = n;
    if (n > 0)
        memcpy(c->defaults, field_ids, n * sizeof(*field_ids));
}

void msg_columns_free(struct msg_columns *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n; i++) {
        free(c->v[i].values.v);
        free(c->v[i].valid.v);
    }
    drop_columns(c);
    for (size_t i = 0; i < c->n_srcs; i++)
        buf_unref(c->srcs[i]);
    free(c->v);
    free(c->srcs);
    free(c->defaults);
    free(c->pieces);
    free(c);
}
