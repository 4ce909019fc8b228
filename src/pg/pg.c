/*
 * pg.c - the life of one connection: look-up, addresses one after another, statements in a pipeline, back-off.
 *
 * libpq would try the addresses itself, but only its blocking functions limit the time of each; so each try has one.
 */
#include "pg/pg.h"

#include "base/backoff.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "loop/loop.h"
#include "pg/hosts_priv.h"

#include <assert.h>
#include <event2/event.h>
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

enum {
    CONNECT_MS = 2000, /* for one address */
    USER_TIMEOUT_MS = 2500,
    RETRY_MIN_MS = 50,
    RETRY_MAX_MS = 1000,
    MAX_SETTINGS = 64
};

struct stmt {
    TAILQ_ENTRY(stmt) next;
    pg_done_fn done;
    void *arg;
    uint64_t deadline_ms;
    PGresult *res; /* the first one that came */
};
TAILQ_HEAD(stmt_list, stmt);

enum state { IDLE /* until the back-off ends */, LOOKING, CONNECTING, UP };

struct pg {
    struct loop *loop;
    struct pg_cbs cbs;
    void *arg;
    char *section;
    char *keywords[MAX_SETTINGS + 1], *values[MAX_SETTINGS + 1]; /* all but host, hostaddr, port */
    char *host, *hostaddr, *port, *dbname;
    char where[300];

    enum state state;
    struct pg_hosts *lookup;
    struct pg_host *hosts;
    size_t n_hosts, next_host;
    PGconn *conn;
    struct event *readable, *writable;
    struct timer timer;  /* IDLE: back-off, CONNECTING: limit of the try, UP: limit of the first statement */
    struct timer defer;  /* statements that could not be sent are due for their done() */
    struct backoff backoff;
    struct err why;      /* of the last failure */
    struct stmt_list sent, failed;
    char sqlstate[6];
    bool closed;
};

static void connect_next(struct pg *p);
static void on_event(evutil_socket_t fd, short what, void *arg);

/* ---- settings */

static int add_setting(struct pg *p, size_t *n, const char *keyword, const char *value, struct err *err)
{
    char **special = strcmp(keyword, "host") == 0       ? &p->host
                     : strcmp(keyword, "hostaddr") == 0 ? &p->hostaddr
                     : strcmp(keyword, "port") == 0     ? &p->port
                                                        : NULL;

    if (special) {
        free(*special);
        *special = xstrdup(value);
        return 0;
    }
    for (size_t i = 0; i < *n; i++) {
        if (strcmp(p->keywords[i], keyword) != 0)
            continue;
        free(p->values[i]);
        p->values[i] = xstrdup(value);
        return 0;
    }
    if (*n == MAX_SETTINGS)
        return err_set(err, ERR_INVALID, ERRC_USER, "%s: too many connection parameters", p->section);
    p->keywords[*n] = xstrdup(keyword);
    p->values[(*n)++] = xstrdup(value);
    return 0;
}

/* libpq's own text may quote the whole URI, and a password with it. */
static int parse_uri(struct pg *p, size_t *n, const char *uri, struct err *err)
{
    char *text = NULL;
    PQconninfoOption *all = PQconninfoParse(uri, &text);
    int rc = 0;

    PQfreemem(text);
    if (!all)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "%s.uri is not a PostgreSQL URI (postgresql://user@host:port/database?sslmode=...) and no list "
                       "of key=value; special characters in a password must be written as %%XX",
                       p->section);
    for (PQconninfoOption *o = all; o->keyword && rc == 0; o++)
        if (o->val)
            rc = add_setting(p, n, o->keyword, o->val, err);
    PQconninfoFree(all);
    return rc;
}

static bool known(const char *keyword)
{
    PQconninfoOption *all = PQconndefaults();
    bool found = false;

    for (PQconninfoOption *o = all; o && o->keyword; o++)
        found |= strcmp(o->keyword, keyword) == 0;
    PQconninfoFree(all);
    return found;
}

static int take_settings(struct pg *p, const struct pg_options *o, struct err *err)
{
    static const struct pg_setting defaults[] = {
        {"client_encoding", "UTF8"},   {"fallback_application_name", "milvus-cdc"},
        {"keepalives_idle", "2"},      {"keepalives_interval", "1"},
        {"keepalives_count", "2"},     {"gssencmode", "disable"}, /* its hand-shake asks Kerberos in a blocking way */
        {"target_session_attrs", "read-write"},
    };
    char limit[16];
    size_t n = 0;
    int rc = 0;

    for (size_t i = 0; i < sizeof(defaults) / sizeof(*defaults) && rc == 0; i++)
        rc = add_setting(p, &n, defaults[i].keyword, defaults[i].value, err);
    snprintf(limit, sizeof(limit), "%d", USER_TIMEOUT_MS);
    if (rc == 0)
        rc = add_setting(p, &n, "tcp_user_timeout", limit, err);
    if (rc == 0 && o->uri)
        rc = parse_uri(p, &n, o->uri, err);
    for (const struct pg_setting *s = o->settings; s && s->keyword && rc == 0; s++) {
        if (!s->value)
            continue;
        if (!known(s->keyword))
            rc = err_set(err, ERR_UNSUPPORTED, ERRC_USER, "%s: this libpq has no parameter %s", p->section, s->keyword);
        else
            rc = add_setting(p, &n, s->keyword, s->value, err);
    }
    for (size_t i = 0; i < n; i++)
        if (strcmp(p->keywords[i], "dbname") == 0)
            p->dbname = p->values[i];
    if (!p->host && !p->hostaddr)
        p->host = xstrdup(getenv("PGHOST"));
    if (!p->port)
        p->port = xstrdup(getenv("PGPORT"));
    return rc;
}

static void set_where(struct pg *p, const struct pg_host *h)
{
    const char *host = h ? *h->name ? h->name : h->addr : p->host ? p->host : p->hostaddr;
    const char *port = h ? h->port : p->port;

    snprintf(p->where, sizeof(p->where), "%s:%s/%s", host && *host ? host : "local socket",
             port && *port ? port : "5432", p->dbname ? p->dbname : "");
}

/* ---- going down */

static void stmt_free(struct stmt *s)
{
    PQclear(s->res);
    free(s);
}

static void drop_conn(struct pg *p)
{
    if (p->readable)
        event_free(p->readable);
    if (p->writable)
        event_free(p->writable);
    p->readable = p->writable = NULL;
    if (p->conn)
        PQfinish(p->conn);
    p->conn = NULL;
}

static void complete(struct pg *p, struct stmt *s, const struct err *err)
{
    if (s->done && !p->closed)
        s->done(s->arg, err, err ? NULL : (const struct pg_result *)s->res);
    stmt_free(s);
}

static void fail_sent(struct pg *p)
{
    struct stmt_list list = TAILQ_HEAD_INITIALIZER(list);
    struct err err = p->why;
    struct stmt *s;

    p->sqlstate[0] = '\0';
    TAILQ_CONCAT(&list, &p->sent, next);
    while ((s = TAILQ_FIRST(&list))) {
        TAILQ_REMOVE(&list, s, next);
        complete(p, s, &err);
    }
}

static void go_idle(struct pg *p)
{
    drop_conn(p);
    p->state = IDLE;
    timer_set(&p->timer, backoff_next_ms(&p->backoff));
    fail_sent(p);
    if (!p->closed)
        p->cbs.on_down(p->arg, &p->why);
}

static int say(struct pg *p, const char *what)
{
    return err_set(&p->why, ERR_UNAVAILABLE, ERRC_RETRY, "PostgreSQL at %s (%s): %s", p->where, p->section, what);
}

/* The first line of libpq's text. */
static void say_libpq(struct pg *p, const char *text)
{
    char line[400];

    snprintf(line, sizeof(line), "%s", text && *text ? text : "the connection was closed");
    line[strcspn(line, "\n")] = '\0';
    say(p, line);
}

/* ---- connecting */

static void try_failed(struct pg *p)
{
    drop_conn(p);
    if (p->next_host < p->n_hosts)
        connect_next(p);
    else
        go_idle(p);
}

/* The socket may be another one after each step. */
static void wait_for(struct pg *p, short what)
{
    if (p->readable)
        event_free(p->readable);
    p->readable = event_new(loop_base(p->loop), PQsocket(p->conn), (short)(what | (p->state == UP ? EV_PERSIST : 0)),
                            on_event, p);
    if (!p->readable)
        abort(); /* only without memory */
    event_priority_set(p->readable, LOOP_PRIO_HIGH);
    event_add(p->readable, NULL);
}

static void go_up(struct pg *p)
{
    if (PQsetnonblocking(p->conn, 1) || !PQenterPipelineMode(p->conn)) {
        say_libpq(p, PQerrorMessage(p->conn));
        try_failed(p);
        return;
    }
    timer_cancel(&p->timer);
    p->state = UP;
    wait_for(p, EV_READ);
    p->writable = event_new(loop_base(p->loop), PQsocket(p->conn), EV_WRITE, on_event, p);
    if (!p->writable)
        abort();
    event_priority_set(p->writable, LOOP_PRIO_HIGH);
    p->cbs.on_up(p->arg);
}

static void connect_step(struct pg *p)
{
    switch (PQconnectPoll(p->conn)) {
    case PGRES_POLLING_READING:
        wait_for(p, EV_READ);
        return;
    case PGRES_POLLING_WRITING:
        wait_for(p, EV_WRITE);
        return;
    case PGRES_POLLING_OK:
        go_up(p);
        return;
    default:
        say_libpq(p, PQerrorMessage(p->conn));
        try_failed(p);
    }
}

static void connect_next(struct pg *p)
{
    const struct pg_host *h = &p->hosts[p->next_host++];
    const char *keywords[MAX_SETTINGS + 5], *values[MAX_SETTINGS + 5];
    size_t n = 0;

    for (; p->keywords[n]; n++) {
        keywords[n] = p->keywords[n];
        values[n] = p->values[n];
    }
    keywords[n] = "host", values[n++] = h->name; /* empty: as if not given */
    keywords[n] = "hostaddr", values[n++] = h->addr ? h->addr : "";
    keywords[n] = "port", values[n++] = h->port;
    keywords[n] = NULL, values[n] = NULL;
    set_where(p, h);
    p->state = CONNECTING;
    timer_set(&p->timer, CONNECT_MS);
    p->conn = PQconnectStartParams(keywords, values, 0);
    if (!p->conn || PQstatus(p->conn) == CONNECTION_BAD) {
        say_libpq(p, p->conn ? PQerrorMessage(p->conn) : "out of memory");
        try_failed(p);
        return;
    }
    wait_for(p, EV_WRITE);
}

static void on_hosts(void *arg, struct pg_host *hosts, size_t n, const struct err *err)
{
    struct pg *p = arg;

    p->lookup = NULL;
    pg_hosts_free(p->hosts, p->n_hosts);
    p->hosts = hosts;
    p->n_hosts = n;
    p->next_host = 0;
    if (n) {
        connect_next(p);
        return;
    }
    say(p, err->text);
    go_idle(p);
}

static void look_up(struct pg *p)
{
    p->state = LOOKING;
    p->lookup = pg_hosts_start(p->loop, p->host, p->hostaddr, p->port, on_hosts, p);
}

/* ---- statements */

static void watch_deadline(struct pg *p)
{
    struct stmt *s = TAILQ_FIRST(&p->sent);
    uint64_t now = clock_mono_ms();

    if (p->state != UP)
        return;
    if (s)
        timer_set(&p->timer, s->deadline_ms > now ? s->deadline_ms - now : 0);
    else
        timer_cancel(&p->timer);
}

static void on_timer(void *arg)
{
    struct pg *p = arg;

    switch (p->state) {
    case IDLE:
        look_up(p);
        return;
    case CONNECTING:
        say(p, "no answer while connecting");
        try_failed(p);
        return;
    case UP:
        say(p, "no answer in time");
        go_idle(p);
        return;
    case LOOKING:
        return;
    }
}

static void on_defer(void *arg)
{
    struct pg *p = arg;
    struct err err = p->why;
    struct stmt *s;

    if (!err.code)
        err_set(&err, ERR_UNAVAILABLE, ERRC_RETRY, "PostgreSQL at %s (%s): not connected yet", p->where, p->section);
    p->sqlstate[0] = '\0';
    while (!p->closed && (s = TAILQ_FIRST(&p->failed))) {
        TAILQ_REMOVE(&p->failed, s, next);
        complete(p, s, &err);
    }
}

/* Classes of SQLSTATE that pass by themselves: connection, resources, operator, system, roll-backs, locks; and a server
 * that is only a standby yet. */
static bool transient(const char *state)
{
    static const char *const all[] = {"08", "53", "57", "58", "40", "55", "XX", "25006"};

    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        if (strncmp(state, all[i], strlen(all[i])) == 0)
            return true;
    return false;
}

static void server_error(struct pg *p, const PGresult *res, struct err *err)
{
    const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
    const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

    snprintf(p->sqlstate, sizeof(p->sqlstate), "%s", state ? state : "");
    err_set(err, transient(p->sqlstate) ? ERR_UNAVAILABLE : ERR_IO, transient(p->sqlstate) ? ERRC_RETRY : ERRC_USER,
            "PostgreSQL at %s (%s): %s (SQLSTATE %s)", p->where, p->section, text ? text : "error", p->sqlstate);
}

static void finish_first(struct pg *p)
{
    struct stmt *s = TAILQ_FIRST(&p->sent);
    ExecStatusType st = s->res ? PQresultStatus(s->res) : PGRES_FATAL_ERROR;
    struct err err;

    TAILQ_REMOVE(&p->sent, s, next);
    p->sqlstate[0] = '\0';
    backoff_reset(&p->backoff);
    watch_deadline(p);
    if (st == PGRES_TUPLES_OK || st == PGRES_COMMAND_OK) {
        complete(p, s, NULL);
        return;
    }
    if (s->res)
        server_error(p, s->res, &err);
    else
        err_set(&err, ERR_PROTO, ERRC_RETRY, "PostgreSQL at %s (%s): no result", p->where, p->section);
    complete(p, s, &err);
}

/* Takes what has arrived. Ends early when a callback closed or dropped the connection. */
static void take_results(struct pg *p)
{
    PGconn *conn = p->conn;
    bool was_null = false;

    while (!p->closed && p->conn == conn && !TAILQ_EMPTY(&p->sent) && !PQisBusy(conn)) {
        PGresult *res = PQgetResult(conn);
        struct stmt *s = TAILQ_FIRST(&p->sent);

        if (!res && was_null)
            return;
        was_null = !res;
        if (!res)
            continue;
        if (PQresultStatus(res) == PGRES_PIPELINE_SYNC) {
            PQclear(res);
            finish_first(p);
        } else if (!s->res) {
            s->res = res;
        } else {
            PQclear(res);
        }
    }
}

static void take_notifies(struct pg *p)
{
    PGconn *conn = p->conn;
    PGnotify *n;

    while (!p->closed && p->conn == conn && (n = PQnotifies(conn))) {
        if (p->cbs.on_notify)
            p->cbs.on_notify(p->arg, n->relname, n->extra);
        PQfreemem(n);
    }
}

/* The server went away: its last words may be among the results. */
static void lost(struct pg *p)
{
    say_libpq(p, PQerrorMessage(p->conn));
    go_idle(p);
}

static void flush_out(struct pg *p)
{
    int rc = PQflush(p->conn);

    if (rc < 0)
        lost(p);
    else if (rc > 0)
        event_add(p->writable, NULL);
}

static void read_in(struct pg *p)
{
    PGconn *conn = p->conn;
    bool ok = PQconsumeInput(conn) == 1;

    take_results(p);
    if (p->closed || p->conn != conn)
        return;
    take_notifies(p);
    if (p->closed || p->conn != conn)
        return;
    if (!ok || PQstatus(conn) == CONNECTION_BAD)
        lost(p);
    else
        flush_out(p);
}

static void on_event(evutil_socket_t fd, short what, void *arg)
{
    struct pg *p = arg;

    (void)fd;
    if (p->state == CONNECTING)
        connect_step(p);
    else if (p->state == UP && (what & EV_READ))
        read_in(p);
    else if (p->state == UP)
        flush_out(p);
}

void pg_send(struct pg *p, unsigned limit_ms, const char *sql, size_t n, const char *const *params, pg_done_fn done,
             void *arg)
{
    struct stmt *s = xcalloc(1, sizeof(*s));

    s->done = done;
    s->arg = arg;
    s->deadline_ms = clock_mono_ms() + limit_ms;
    if (p->state != UP || !PQsendQueryParams(p->conn, sql, (int)n, NULL, params, NULL, NULL, 0) ||
        !PQpipelineSync(p->conn)) {
        if (p->state == UP) { /* half of it may be in the pipeline */
            say_libpq(p, PQerrorMessage(p->conn));
            timer_set(&p->timer, 0);
        }
        TAILQ_INSERT_TAIL(&p->failed, s, next);
        timer_set(&p->defer, 0);
        return;
    }
    TAILQ_INSERT_TAIL(&p->sent, s, next);
    if (TAILQ_FIRST(&p->sent) == s)
        watch_deadline(p);
    event_add(p->writable, NULL); /* flushed from the loop, so that no callback comes from here */
}

void pg_drop(struct pg *p, const struct err *why)
{
    if (p->state != UP)
        return;
    p->why = *why;
    go_idle(p);
}

void pg_pump(struct pg *p, unsigned limit_ms)
{
    uint64_t end = clock_mono_ms() + limit_ms, now;

    while (p->state == UP && !TAILQ_EMPTY(&p->sent) && (now = clock_mono_ms()) < end) {
        struct pollfd fd = {.fd = PQsocket(p->conn), .events = POLLIN};

        if (PQflush(p->conn) > 0)
            fd.events |= POLLOUT;
        if (poll(&fd, 1, (int)(end - now)) < 0)
            return;
        if (!PQconsumeInput(p->conn) && PQstatus(p->conn) == CONNECTION_BAD) {
            lost(p);
            return;
        }
        take_results(p);
    }
}

/* ---- life */

static void pg_free(void *arg)
{
    struct pg *p = arg;

    for (size_t i = 0; i < MAX_SETTINGS; i++) {
        free(p->keywords[i]);
        if (p->values[i])
            explicit_bzero(p->values[i], strlen(p->values[i]));
        free(p->values[i]);
    }
    free(p->section);
    free(p->host);
    free(p->hostaddr);
    free(p->port);
    free(p);
}

struct pg *pg_open(struct loop *l, const struct pg_options *o, const struct pg_cbs *cbs, void *arg, struct err *err)
{
    struct pg *p = xcalloc(1, sizeof(*p));

    p->loop = l;
    p->cbs = *cbs;
    p->arg = arg;
    p->section = xstrdup(o->section);
    p->backoff = (struct backoff)BACKOFF_INIT(RETRY_MIN_MS, RETRY_MAX_MS);
    TAILQ_INIT(&p->sent);
    TAILQ_INIT(&p->failed);
    if (take_settings(p, o, err)) {
        pg_free(p);
        return NULL;
    }
    set_where(p, NULL);
    timer_init(&p->timer, l, LOOP_PRIO_HIGH, on_timer, p);
    timer_init(&p->defer, l, LOOP_PRIO_HIGH, on_defer, p);
    look_up(p);
    return p;
}

static void drop_list(struct stmt_list *list)
{
    struct stmt *s;

    while ((s = TAILQ_FIRST(list))) {
        TAILQ_REMOVE(list, s, next);
        stmt_free(s);
    }
}

void pg_close(struct pg *p)
{
    if (!p || p->closed)
        return;
    p->closed = true;
    p->state = IDLE;
    pg_hosts_cancel(p->lookup);
    drop_conn(p);
    timer_release(&p->timer);
    timer_release(&p->defer);
    pg_hosts_free(p->hosts, p->n_hosts);
    drop_list(&p->sent);
    drop_list(&p->failed);
    loop_defer(p->loop, pg_free, p);
}

bool pg_up(const struct pg *p)
{
    return p->state == UP;
}

const char *pg_where(const struct pg *p)
{
    return p->where;
}

const char *pg_sqlstate(const struct pg *p)
{
    return p->sqlstate;
}

size_t pg_rows(const struct pg_result *res)
{
    return (size_t)PQntuples((const PGresult *)res);
}

const char *pg_value(const struct pg_result *res, size_t row, unsigned column)
{
    const PGresult *r = (const PGresult *)res;

    return PQgetisnull(r, (int)row, (int)column) ? NULL : PQgetvalue(r, (int)row, (int)column);
}
