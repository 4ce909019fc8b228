/*
 * metric.h - counters, gauges and histograms for GET /cdc/metrics (Prometheus text format 0.0.4).
 *
 * A series is found once and kept as a handle, so that counting on the hot path is an addition.
 * Thread  loop thread only.
 */
#ifndef BASE_METRIC_H
#define BASE_METRIC_H
#include <stddef.h>

struct evbuffer;

enum metric_type { METRIC_COUNTER, METRIC_GAUGE };

struct metric {
    double value;
};

struct metric_label {
    const char *name, *value;
};

/* The series of that name and labels, made when it is missing (the first call's help and type stand).
 * Labels end with a NULL name. Borrowed; valid until metric_remove_matching() or metric_clear(). */
struct metric *metric_get(enum metric_type type, const char *name, const char *help,
                          const struct metric_label *labels);
#define METRIC_LABELS(...) ((const struct metric_label[]){__VA_ARGS__ __VA_OPT__(, ){0}})

/* Records one observation (milliseconds) in a histogram with buckets 1 2 4 ... 128 and +Inf. */
void metric_observe_ms(const char *name, const char *help, const struct metric_label *labels,
                       double ms);

/* Removes every series that has label name=value (a deleted task's).  Handles to them are invalid. */
void metric_remove_matching(const char *name, const char *value);

/* Appends all families, sorted by name, escaped as the format demands. */
void metric_render(struct evbuffer *out);

/* Frees everything (shutdown, tests). */
void metric_clear(void);
#endif
