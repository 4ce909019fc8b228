/*
 * copy_priv.h - the copy of one collection's rows, as its files share it.
 *
 *   copy.c       life, trouble, the end, the machine
 *   copy_read.c  pages from the source
 *   copy_write.c pages to the target
 *   copy_room.c  the bytes that all copies may hold
 *
 *   source --query--> seen --count--> pages (in the order of keys) --Upsert, several at a time--> target
 */
#ifndef REPL_COPY_PRIV_H
#define REPL_COPY_PRIV_H
#include "repl/priv.h"

enum {
    COPY_MAX_ROWS = 16384,    /* of a page: the source refuses more */
    COPY_PAGES = 4,           /* of one collection, the one that is read too */
    COPY_PAGE_BYTES = 4 << 20, /* of a page, about, when there is room for four of that size, or an eighth of it */
};

/* All partitions of smaller ids are done, and of this one all up to the key `after` (text of an expression; NULL: none). */
struct cursor {
    int64_t part; /* 0: before the first */
    char *after;
};

struct page {
    TAILQ_ENTRY(page) next;
    struct copy *copy;
    struct msg_columns *columns;
    struct cursor end; /* behind its last row */
    size_t bytes;      /* of room */
    struct sink_call *write; /* NULL: not sent, or written */
    uint64_t sent;     /* rows of it on the target already */
    uint64_t piece;    /* rows that are under way */
    bool written;
};

enum copy_step { COPY_COUNT, COPY_ROWS, COPY_ENDS };

struct copy {
    struct coll *coll;
    enum copy_step step;
    bool running;              /* counted in the task's copying */
    bool read_over;
    bool again;                /* from done, as soon as no request is under way */
    struct cursor read, done;  /* of the next page; of what is on the target */
    bool since_known;
    uint64_t since;            /* a time of the source at or after the task's first start: what pages must show. 0: it cannot
                                  tell */
    uint64_t rows, estimate;   /* written; in the collection when it began */
    uint64_t run_rows, run_ms; /* rows, and since when, of this process */
    uint64_t limit, asked;     /* rows of the next page, 0: not known yet; of the one that was seen */
    size_t max_bytes;          /* of the next page */
    uint64_t span;             /* of keys, so that as many rows are about in it; 0: not known, or none */
    char *until;               /* greatest key that the page asked for may have; NULL: any */
    size_t asked_bytes;        /* room taken for the query under way */
    struct page *seen;         /* read, and not counted yet */
    bool careful;              /* the next page may have equal keys that hide others */
    bool as_it_is;             /* the careful way gave nothing */
    TAILQ_HEAD(, page) pages;
    size_t n_pages, width;     /* width: of them may be under way to the target */
    uint64_t piece, most;      /* rows of one request; most that the target ever takes. 0: a whole page */
    struct rows_call *query;
    bool loading, loaded_by_us;
    struct end_of_shard *ends;
    size_t ends_open;
    uint64_t saved_ms, told_ms;
    TAILQ_ENTRY(copy) line;
    bool in_line;              /* for room */
    struct timer wake;         /* there may be room */
    struct timer retry;
    struct backoff backoff;
};

/* ---- copy.c */

/* Does what can be done now. */
void copy_step(struct copy *p);
/* RETRY: goes on later; false: the task stops. */
bool copy_wait(struct copy *p, const struct err *cause, const char *what);
/* RETRY: reads again from what is written, later. Else the task stops. what: "reading". */
void copy_fail(struct copy *p, const struct err *cause, const char *what);
void copy_went_well(struct copy *p);
/* Lets go what is not under way; the rest is read and written again. */
void copy_again(struct copy *p);
void cursor_set(struct cursor *c, int64_t part, const char *after);
/* Gives its room back. NULL is allowed. */
void page_free(struct page *g);
void copy_drop_seen(struct copy *p);

/* ---- copy_read.c: one query at a time */

/* A time, so that the queries behind it need not wait for ticks. */
void copy_ask_now(struct copy *p);
/* How many rows are there? */
void copy_ask_count(struct copy *p);
/* Asks for the next page, or whether the one that was seen is complete, or finds that nothing is left. */
void copy_read(struct copy *p);

/* ---- copy_write.c */

/* Sends what may be sent. The collection is verified. */
void copy_write(struct copy *p);
uint64_t copy_rows_per_s(const struct copy *p);

/* ---- copy_room.c */

size_t copy_page_bytes(const struct copy *p);
/* False: it waits in line, and is stepped when there may be room. */
bool copy_room_take(struct copy *p, size_t bytes);
void copy_room_give(struct copy *p, size_t bytes);
/* It does not want any just now. */
void copy_room_leave(struct copy *p);
#endif
