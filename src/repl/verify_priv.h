/*
 * verify_priv.h - the parts of a verification.
 *
 *   verify.c         the collections of a task, one after the other; the result
 *   verify_check.c   how one collection is compared: steps, queries, trouble
 *   verify_coll.c    one collection: counts, and pages of its rows by rising key, each against the target's same range
 *   verify_look.c    rows that seem to differ are looked at again by their keys, until it is sure
 *   verify_repair.c  what differs is written anew while the collection's stream is held
 */
#ifndef REPL_VERIFY_PRIV_H
#define REPL_VERIFY_PRIV_H
#include "repl/priv.h"
#include "repl/row_hash_priv.h"
#include "repl/verify.h"

struct check;

/* Rows of a page. */
enum { PAGE_BYTES = 2 << 20 /* a page is hashed in one turn of the loop */ };

/* What is asked of either side. */
enum side { SOURCE, TARGET, N_SIDES };

/* A row that is not the same on both sides, as the last look saw it. */
struct suspect {
    struct row_key key; /* its own */
    bool has[N_SIDES];
    struct row_hash hash[N_SIDES];
    unsigned looks;     /* at it */
    unsigned same;      /* looks in a row that saw just this */
    unsigned repairs;   /* so often it was written */
    bool equal;         /* at the last look: it goes */
};
struct suspects {
    struct suspect *v;
    size_t n, cap;
};

/* An end of a range of keys. */
struct bound {
    bool set;
    struct row_key key; /* its own */
};

/* Of one collection. */
struct tally {
    uint64_t rows;         /* of the source, compared */
    uint64_t counts[N_SIDES];
    uint64_t missing, extra, different;
    uint64_t unsettled;    /* changed at every look */
    uint64_t equal_keys;   /* rows of the source that share a key with another one */
    uint64_t repaired;
    json_t *ranges, *keys; /* the first ones */
};

typedef void (*check_fn)(struct check *k);

/* Which shard is asked about. */
struct check_end {
    struct check *check;
    size_t shard;
};

/* What one collection goes through. */
struct check {
    struct verify *verify;
    struct coll *coll;      /* counted */
    check_fn step;          /* what comes next; tried again when it failed */
    struct rows_call *query;
    enum side asked;        /* whom */
    void (*answer)(struct check *k, const struct rows_page *page);
    struct timer timer;
    struct backoff backoff;
    uint64_t trouble_ms;    /* monotonic, since when it does not go on; 0: it does */
    bool loading[N_SIDES], loaded_by_us[N_SIDES];
    bool over;              /* judged: what was loaded for it is being released */
    struct tally tally;
    uint64_t tt;            /* the source's time up to which the target had all when it began */
    uint64_t since[N_SIDES]; /* a time of each side: what was written until then is on the target. 0: it cannot tell */

    /* waiting until the target has all that the source has written by now */
    struct wal_pos *ends;   /* by shard */
    struct check_end *ends_args;
    size_t ends_open;
    bool wait;              /* until the target has them */
    check_fn settled;

    /* counts */
    uint64_t low, high;     /* of the source's, before and after the target's */
    unsigned count_rounds;
    bool counts_differ;

    /* pages */
    int64_t part;           /* of the partition, or ALL_PARTS */
    char *part_name;        /* NULL: none is named */
    struct bound after, to; /* the range: keys behind after, up to to; not set: no end */
    bool split;             /* to lies before the page's end */
    uint64_t limit, asked_rows;
    bool careful, as_it_is; /* as in copy.c */
    struct row_page page;   /* of the source */
    struct bound page_end;
    size_t at;              /* its rows before this are compared */
    bool page_last;
    uint64_t excess;        /* rows that were counted and not seen: of equal keys */
    size_t row_bytes;

    /* looks */
    struct suspects suspects; /* of the range; those before done are judged */
    size_t done, batch;     /* the ones looked at together: [done, done + batch) */
    struct row_page seen;   /* the source's */
    struct tally before;    /* what was counted before the range */

    /* repair */
    bool holding;           /* the collection's stream waits for us */
    unsigned drain_tries;
    struct row_page repair_rows;
    struct msg_columns *repair_columns;
    bool storing;
    struct sink_call *write;
    check_fn written;       /* what comes after it */
};

struct verify {
    struct repl_task *task;
    struct repl_verify_options o; /* names: counted */
    json_t *names;
    struct check *check;      /* NULL: none is open */
    int64_t last_id;
    json_t *done;             /* of collections that are finished */
    const char *state;        /* "running", ... */
    char *reason;
    uint64_t started_ms, finished_ms; /* wall time */
    uint64_t rows;            /* compared */
    uint64_t differences;     /* of the collections that are done */
    uint64_t told_ms;
    size_t unlisted;          /* equal ones that are not in done */
    bool different, repaired, failed, cancelled;
    struct timer next;
};

/* verify_check.c */
struct check *check_new(struct verify *v, struct coll *c);
void check_free(struct check *k);
/* Releases what was loaded for it, then verify_unloaded(). False: there is nothing to release. */
bool check_unload(struct check *k);
/* reason NULL: none. */
json_t *check_json(const struct check *k, const char *state, const char *reason);
/* Calls step from the loop, unless the verification is cancelled or the collection is gone. */
void check_then(struct check *k, check_fn step, unsigned ms);
/* A query to one side, of the partition that is compared; all: of the whole collection. answer() gets what comes; what fails is
 * tried again from the present step on, or gives the collection up. */
struct ask {
    enum side side;
    bool all, careful;
    bool since;     /* shows what check_now() found written at least; else all, and waits for the side's next tick */
    const char *expr, *output;
    uint64_t limit; /* 0: none */
    void (*answer)(struct check *k, const struct rows_page *page);
};
void check_ask(struct check *k, const struct ask *a);
/* Asks a side for its time, for queries that come later; then step. */
void check_now(struct check *k, enum side side, check_fn step);
/* Reads rows of an answer. False: the collection was given up. */
bool check_rows(struct check *k, const struct rows_page *page, struct row_page *ret);
/* Asks where the source's log ends now (k->ends), and then goes on with step; wait: when the target has all of it. */
void check_ends(struct check *k, bool wait, check_fn step);
/* The step that runs could not be done: again later, or the collection is given up. */
void check_trouble(struct check *k, const struct err *err, const char *what);
/* Something fails; for too long? */
bool check_is_tired(struct check *k);
void check_give_up(struct check *k, const char *reason);
/* The columns that rows are compared by. */
const char *check_output(const struct check *k);
/* key NULL: no end. */
void check_bound(struct bound *b, const struct row_key *key);
/* The partition is compared, or was dropped: check_part() comes next. */
void check_leave_part(struct check *k);

/* verify_coll.c: the first step; the one that begins with the next partition */
void check_first(struct check *k);
void check_part(struct check *k);
/* The looks at a range are over. */
void check_range_over(struct check *k);

/* verify_look.c */
void suspects_add(struct suspects *s, const struct row_key *key, const struct row *source, const struct row *target);
void suspects_free(struct suspects *s);
/* Looks until all of k->suspects are judged, then check_range_over(). */
void look_begin(struct check *k);
/* The batch was repaired: it is looked at anew. */
void look_again(struct check *k);
/* "key in [...]" of the suspects of the batch that pass the test. *ret_n of them; caller frees. */
char *look_expr(const struct check *k, bool (*wanted)(const struct check *k, const struct suspect *s), size_t *ret_n);

/* verify_repair.c */
bool repair_wanted(const struct check *k, const struct suspect *s);
/* Writes the batch's differences, then look_again(). */
void repair_begin(struct check *k);
void repair_release(struct check *k);

/* verify.c: the collection is over. reason: why it could not be compared, or NULL; compared: it was. */
void verify_next(struct verify *v, const char *reason, bool compared);
/* What was loaded for the check is released. */
void verify_unloaded(struct verify *v);
/* Tells and stores now and then. */
void verify_progress(struct verify *v);
#endif
