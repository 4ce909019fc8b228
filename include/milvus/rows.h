/*
 * rows.h - the rows that a Milvus has now, read through its public API (Query): the rows_port of repl/port.h.
 *
 * Used on the source for what existed before a task. Facts: shared/reference/target.md 1.2, 2.3.5 itself.
 */
#ifndef MILVUS_ROWS_H
#define MILVUS_ROWS_H
struct err;
struct loop;
struct rows_port;
struct target_options;

/* o: where it is and how to log in; mode and fence are not used. NULL and err: as target_open(). */
struct rows_port *rows_open(struct loop *l, const struct target_options *o, struct err *err);
/* Open calls end without completion. NULL is allowed. */
void rows_close(struct rows_port *p);
#endif
