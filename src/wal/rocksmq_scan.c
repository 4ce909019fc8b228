#include "wal/rocksmq_scan_priv.h"

#include "base/err.h"
#include "base/mem.h"
#include "wal/rocksmq_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ID_DIGITS_MAX = 19 }; /* int64 */

int rmq_rocks_err(struct err *err, const char *path, const char *what, char *text)
{
    int code = err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "rocksmq %s: %s: %s", path, what, text);

    rocksdb_free(text);
    return code;
}

void rmq_scan_init(struct rmq_scan *sc, rocksdb_t *db, const char *path, const char *topic)
{
    size_t len = strlen(topic) + 1;

    *sc = (struct rmq_scan){.path = path, .prefix = len, .topic = topic};
    sc->key = xmalloc(len + ID_DIGITS_MAX + 2);
    snprintf(sc->key, len + 1, "%s/", topic);
    sc->lower = xasprintf("%s/0", topic);
    sc->upper = xasprintf("%s/:", topic);
    sc->ro = rocksdb_readoptions_create();
    rocksdb_readoptions_set_iterate_lower_bound(sc->ro, sc->lower, len + 1);
    rocksdb_readoptions_set_iterate_upper_bound(sc->ro, sc->upper, len + 1);
    sc->it = rocksdb_create_iterator(db, sc->ro);
}

void rmq_scan_release(struct rmq_scan *sc)
{
    rocksdb_iter_destroy(sc->it);
    rocksdb_readoptions_destroy(sc->ro);
    free(sc->key);
    free(sc->lower);
    free(sc->upper);
}

int rmq_scan_error(const struct rmq_scan *sc, struct err *err)
{
    char *text = NULL;

    rocksdb_iter_get_error(sc->it, &text);
    return text ? rmq_rocks_err(err, sc->path, "read", text) : 0;
}

static uint64_t pow10_u64(unsigned n)
{
    uint64_t v = 1;

    while (n-- > 0)
        v *= 10;
    return v;
}

static unsigned count_digits(uint64_t id)
{
    unsigned n = 1;

    while (id >= 10) {
        id /= 10;
        n++;
    }
    return n;
}

/* The digits of the id under the iterator; 0: this key is no message of the topic. */
unsigned rmq_scan_get(const struct rmq_scan *sc, uint64_t *ret_id)
{
    size_t len;
    const char *key = rocksdb_iter_key(sc->it, &len); /* within the bounds, so of this topic */

    return rmq_key_parse(key, len, sc->prefix - 1, ret_id);
}

static size_t make_key(struct rmq_scan *sc, uint64_t id)
{
    return sc->prefix + (size_t)snprintf(sc->key + sc->prefix, ID_DIGITS_MAX + 2, "%" PRIu64, id);
}

/* Moves to the first key not below id's. */
bool rmq_scan_seek(struct rmq_scan *sc, uint64_t id)
{
    size_t len = make_key(sc, id);

    rocksdb_iter_seek(sc->it, sc->key, len);
    return rocksdb_iter_valid(sc->it);
}

static bool scan_seek_for_prev(struct rmq_scan *sc, uint64_t id)
{
    size_t len = make_key(sc, id);

    rocksdb_iter_seek_for_prev(sc->it, sc->key, len);
    return rocksdb_iter_valid(sc->it);
}

/*
 * Byte order is number order only among ids of equal length: 10 lies between 1 and 2. The functions
 * below look at one length at a time and jump over keys of others.
 */

/* Moves to the smallest id of that many digits that is not below from. */
static bool first_of_length(struct rmq_scan *sc, unsigned digits, uint64_t from, uint64_t *ret_id)
{
    bool valid = rmq_scan_seek(sc, from);

    while (valid) {
        uint64_t id = 0;
        unsigned n = rmq_scan_get(sc, &id);

        if (n == digits) {
            *ret_id = id;
            return true;
        }
        if (n == 0) {
            rocksdb_iter_next(sc->it);
            valid = rocksdb_iter_valid(sc->it);
        } else if (n > digits) {
            uint64_t next = id / pow10_u64(n - digits) + 1; /* its own prefix sorts before it */

            valid = next < pow10_u64(digits) && rmq_scan_seek(sc, next);
        } else {
            valid = rmq_scan_seek(sc, id * pow10_u64(digits - n));
        }
    }
    return false;
}

/* Moves to the greatest id of that many digits. */
static bool last_of_length(struct rmq_scan *sc, unsigned digits, uint64_t *ret_id)
{
    bool valid = scan_seek_for_prev(sc, pow10_u64(digits) - 1);

    while (valid) {
        uint64_t id = 0;
        unsigned n = rmq_scan_get(sc, &id);

        if (n == digits) {
            *ret_id = id;
            return true;
        }
        if (n == 0) {
            rocksdb_iter_prev(sc->it);
            valid = rocksdb_iter_valid(sc->it);
        } else if (n > digits) {
            valid = scan_seek_for_prev(sc, id / pow10_u64(n - digits));
        } else { /* those that start with id lie after it */
            valid = count_digits(id - 1) == n && id > 1 &&
                    scan_seek_for_prev(sc, id * pow10_u64(digits - n) - 1);
        }
    }
    return false;
}

static bool first_not_shorter(struct rmq_scan *sc, unsigned digits, uint64_t *ret_id)
{
    for (; digits <= ID_DIGITS_MAX; digits++) {
        if (first_of_length(sc, digits, pow10_u64(digits - 1), ret_id))
            return true;
    }
    return false;
}

/*
 * Could a topic with this id have longer ones? The search for them passes every shorter key, so it
 * is left out where they are impossible: ids of 18 digits are composed from the time
 * (source.md 7.4), and 2^57 of them are 17 years, longer than any topic is silent. Shorter ids are
 * always taken as possible.
 */
static bool may_get_longer(uint64_t id)
{
    unsigned digits = count_digits(id);

    return digits < ID_DIGITS_MAX && pow10_u64(digits) - id < (uint64_t)1 << 57;
}

/* First and last in byte order have one length, and no longer id can hide between them. */
static bool one_length(struct rmq_scan *sc, uint64_t *ret_first, uint64_t *ret_last, bool *ret_empty)
{
    unsigned first = 0, last = 0;
    bool valid;

    for (valid = scan_seek_for_prev(sc, pow10_u64(ID_DIGITS_MAX) - 1);
         valid && !(last = rmq_scan_get(sc, ret_last)); valid = rocksdb_iter_valid(sc->it))
        rocksdb_iter_prev(sc->it);
    for (valid = rmq_scan_seek(sc, 1); valid && !(first = rmq_scan_get(sc, ret_first));
         valid = rocksdb_iter_valid(sc->it))
        rocksdb_iter_next(sc->it);
    *ret_empty = first == 0;
    return first != 0 && first == last && !may_get_longer(*ret_last);
}

/* Moves to the first message of the topic. */
bool rmq_scan_first(struct rmq_scan *sc, uint64_t *ret_id)
{
    uint64_t first = 0, last = 0;
    bool empty;

    if (one_length(sc, &first, &last, &empty)) {
        *ret_id = first;
        return true;
    }
    return !empty && first_not_shorter(sc, 1, ret_id);
}

bool rmq_scan_last(struct rmq_scan *sc, uint64_t *ret_id)
{
    uint64_t first = 0, last = 0;
    bool empty;

    if (one_length(sc, &first, &last, &empty)) {
        *ret_id = last;
        return true;
    }
    for (unsigned digits = ID_DIGITS_MAX; !empty && digits > 0; digits--) {
        if (last_of_length(sc, digits, ret_id))
            return true;
    }
    return false;
}

/* The iterator stands on id: moves to the next message. */
bool rmq_scan_next(struct rmq_scan *sc, uint64_t id, uint64_t *ret_id)
{
    unsigned digits = count_digits(id);
    bool valid;

    rocksdb_iter_next(sc->it);
    valid = rocksdb_iter_valid(sc->it);
    if (valid && rmq_scan_get(sc, ret_id) == digits)
        return true;
    if (valid && count_digits(id + 1) == digits && first_of_length(sc, digits, id + 1, ret_id))
        return true;
    return (valid || may_get_longer(id)) && first_not_shorter(sc, digits + 1, ret_id);
}

/* The smallest id above one that is gone. */
bool rmq_scan_above(struct rmq_scan *sc, uint64_t id, uint64_t *ret_id)
{
    unsigned digits = count_digits(id);

    if (count_digits(id + 1) == digits && first_of_length(sc, digits, id + 1, ret_id))
        return true;
    return may_get_longer(id) && first_not_shorter(sc, digits + 1, ret_id);
}
