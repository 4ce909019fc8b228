/*
 * postgresql.h - the registry that several daemons share, in a PostgreSQL database (13 and later).
 *
 * Opening does not wait for the server: until it has answered, trouble() says so and calls wait or fail as while it is
 * away: calls of a store wait for ever, calls of the registry fail with RETRY after 2 seconds, a beat at once. What
 * only a person can change (a schema of a newer version, a missing or wrong key) fails each call with class USER at once.
 * The schema is made or migrated by the first daemon that connects.
 */
#ifndef REGISTRY_POSTGRESQL_H
#define REGISTRY_POSTGRESQL_H

struct err;
struct loop;
struct pg_options;
struct registry;
struct seal;

struct registry_postgresql_options {
    const struct pg_options *pg; /* its texts must outlive the registry, as the seal */
    const char *schema;          /* NULL: milvus_cdc */
    const struct seal *seal;     /* NULL: secrets are stored as they are */
};

/* NULL: a setting is wrong (USER). */
struct registry *registry_postgresql_open(struct loop *l, const struct registry_postgresql_options *o, struct err *err);
#endif
