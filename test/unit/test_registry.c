/* test_registry.c - the SQLite registry on real files: order, groups, guards, crashes, sick disks.
 */
#include "registry_cases.h"

#include "loop/xthread.h"
#include "registry/sqlite_priv.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[40];
static char path[60];

static void remove_dir(const char *name)
{
    DIR *d = opendir(name);
    struct dirent *e;

    while (d && (e = readdir(d))) {
        char file[400];

        snprintf(file, sizeof(file), "%s/%s", name, e->d_name);
        if (e->d_name[0] != '.')
            unlink(file);
    }
    if (d)
        closedir(d);
    rmdir(name);
}

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_registry.XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/r.db", dir);
    err = (struct err){0};
    lp = loop_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (reg)
        reg->ops->close(reg);
    reg = NULL;
    loop_free(lp);
    lp = NULL;
    chmod(dir, 0700);
    remove_dir(dir);
    return 0;
}

static void open_reg(void)
{
    reg = registry_sqlite_open(lp, path, &err);
    if (!reg)
        fail_msg("%s", err.text);
    epoch = claim_now(reg, TARGET, ME);
}

static void close_reg(void)
{
    reg->ops->close(reg);
    reg = NULL;
    loop_once(lp, false);
}

static struct sqlreg *impl(void)
{
    return container_of(reg, struct sqlreg, q.base);
}

/* The handle belongs to the helper: statements of tests go there too. */
struct sql_job {
    const char *sql;
    bool done;
};

static void sql_run(void *arg)
{
    struct sql_job *j = arg;

    sqlite3_exec(impl()->db->h, j->sql, NULL, NULL, NULL);
}

static void sql_done(void *arg)
{
    ((struct sql_job *)arg)->done = true;
}

static void in_helper(const char *sql)
{
    struct sql_job j = {.sql = sql};

    xthread_submit(impl()->x, sql_run, sql_done, &j);
    while (!j.done)
        loop_once(lp, true);
}

/* ---- groups and order */

static void one_turn_is_one_transaction_in_order(void **state)
{
    enum { N = 200 };
    struct answer a[N] = {0}, list = {0}, load = {0};
    struct store *s, *stale;
    uint64_t groups;
    int bad = 0;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
    stale = reg->ops->store_open(reg, "t", "other", 1);
    groups = impl()->q.n_groups;
    n_answers = 0;
    for (int i = 0; i < N; i++) {
        if (i % 5 == 4)
            commit_done(stale, "t", "a", 1000000, &a[i]);
        else if (i % 5 == 3)
            create("t", &a[i]);
        else
            commit_done(s, "t", "a", (uint64_t)i, &a[i]);
    }
    s->ops->load(s, "t", on_load, &load);
    reg->ops->list(reg, NULL, on_tasks, &list);
    assert_int_equal(n_answers, 0);
    assert_ok(&list);
    assert_int_equal(impl()->q.n_groups, groups + 1);
    for (int i = 0; i < N; i++) {
        assert_int_equal(a[i].calls, 1);
        assert_int_equal(a[i].order, i + 1);
        assert_int_equal(a[i].err.code, i % 5 == 4 ? ERR_STALE : i % 5 == 3 ? ERR_EXISTS : ERR_OK);
        bad += a[i].err.code != ERR_OK;
    }
    assert_int_equal(bad, N / 5 * 2);
    assert_int_equal(load.order, N + 1);
    assert_int_equal(list.order, N + 2);
    assert_string_equal(load.text, "a>d:197:- ");
    free(load.text);
    free(list.text);
    reg->ops->store_free(s);
    reg->ops->store_free(stale);
}

static int pragma(const char *sql)
{
    sqlite3_stmt *stmt;
    int n;

    assert_int_equal(sqlite3_prepare_v2(impl()->db->h, sql, -1, &stmt, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
    n = sqlite3_column_int(stmt, 0);
    sqlite3_finalize(stmt);
    return n;
}

/* A kill does not show a missing fsync, so look at the settings. The helper is idle. */
static void settings_are_durable(void **state)
{
    char wal[80];
    struct stat st;

    (void)state;
    open_reg();
    create_now("t");
    assert_int_equal(pragma("PRAGMA synchronous"), 2);
    assert_int_equal(pragma("PRAGMA foreign_keys"), 1);
    assert_int_equal(pragma("PRAGMA user_version"), REGDB_SCHEMA);
    snprintf(wal, sizeof(wal), "%s-wal", path);
    assert_int_equal(access(wal, F_OK), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void close_writes_what_waits(void **state)
{
    struct store *s;
    struct answer a = {0};
    char wal[80];

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
    commit_done(s, "t", "a", 77, &a);
    reg->ops->store_free(s);
    close_reg();
    assert_int_equal(a.calls, 0);
    snprintf(wal, sizeof(wal), "%s-wal", path);
    assert_int_equal(access(wal, F_OK), -1);
    open_reg();
    s = reg->ops->store_open(reg, "t", ME, epoch);
    assert_loaded(s, "t", "a>d:77:- ");
    reg->ops->store_free(s);
}

/* ---- a killed daemon */

enum { LINKS = 4 };

struct writer {
    struct store *s;
    uint64_t n[LINKS];
    int fd;
};
struct writer_link {
    struct writer *w;
    int i;
};

static void write_next(struct writer_link *l);

/* Tells the parent what is acknowledged, then goes on. */
static void on_written(void *arg, const struct err *e)
{
    struct writer_link *l = arg;
    uint64_t ack[2] = {(uint64_t)l->i, l->w->n[l->i]};

    if (e || write(l->w->fd, ack, sizeof(ack)) != sizeof(ack))
        _exit(3);
    write_next(l);
}

static void write_next(struct writer_link *l)
{
    char src[20];
    struct repl_ckpt c;
    struct store_batch *b = l->w->s->ops->begin(l->w->s, "t");
    char *json = xasprintf("%" PRIu64, ++l->w->n[l->i]);

    snprintf(src, sizeof(src), "s%d", l->i);
    c = ckpt(src, "d", l->w->n[l->i]);
    l->w->s->ops->put_ckpt(b, &c);
    l->w->s->ops->put_collection(b, l->i, json); /* the same number: a batch is whole or absent */
    l->w->s->ops->commit(b, on_written, l);
    free(json);
}

static void writer_main(int fd)
{
    struct writer w = {.fd = fd};
    struct writer_link links[LINKS];

    lp = loop_new();
    reg = registry_sqlite_open(lp, path, &err);
    if (!reg)
        _exit(2);
    w.s = reg->ops->store_open(reg, "t", ME, epoch);
    for (int i = 0; i < LINKS; i++) {
        links[i] = (struct writer_link){&w, i};
        write_next(&links[i]);
    }
    loop_run(lp);
}

/* Kills a writing child after some acknowledgements; stores the last of each link. */
static void write_and_kill(int after, uint64_t *ret_acked)
{
    uint64_t ack[2];
    int fds[2], status;
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        close(fds[0]);
        writer_main(fds[1]);
        _exit(1);
    }
    close(fds[1]);
    for (int i = 0; i < after; i++) {
        assert_int_equal(read(fds[0], ack, sizeof(ack)), sizeof(ack));
        ret_acked[ack[0]] = ack[1];
    }
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    while (read(fds[0], ack, sizeof(ack)) == sizeof(ack))
        ret_acked[ack[0]] = ack[1];
    close(fds[0]);
}

static void nothing_acknowledged_is_lost_by_a_kill(void **state)
{
    (void)state;
    open_reg();
    create_now("t");
    for (int round = 0; round < 5; round++) {
        uint64_t acked[LINKS] = {0};
        struct answer a = {0};
        struct store *s;
        char *p;

        close_reg();
        write_and_kill(5 + round * 37, acked);
        open_reg(); /* the lock went with the child */
        s = reg->ops->store_open(reg, "t", ME, epoch);
        s->ops->load(s, "t", on_load, &a);
        assert_ok(&a);
        assert_int_equal(a.n_ckpts, LINKS);
        assert_int_equal(a.n_colls, LINKS);
        p = a.text;
        for (int i = 0; i < LINKS; i++) {
            char expect[60];
            uint64_t done = strtoull(strchr(p, ':') + 1, NULL, 10);

            assert_true(done >= acked[i]);
            assert_true(done <= acked[i] + 1); /* one more was under way at most */
            snprintf(expect, sizeof(expect), " %d=%" PRIu64 " ", i, done);
            assert_in(a.text, expect);
            p = strchr(p, ' ') + 1;
        }
        free(a.text);
        reg->ops->store_free(s);
    }
}

/* ---- a sick database */

static void wait_for_trouble(void)
{
    uint64_t end = clock_mono_ms() + 20000;

    while (!reg->ops->trouble(reg) && clock_mono_ms() < end)
        loop_once(lp, true);
    assert_non_null(reg->ops->trouble(reg));
}

static void full_database_blocks_commits_and_fails_requests(void **state)
{
    struct answer a[6] = {0}, small = {0};
    struct store *s;
    struct store_batch *b;
    char *big = xmalloc(200001);
    uint64_t begin;

    (void)state;
    memset(big, 'x', 200000);
    big[200000] = '\0';
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
    in_helper("PRAGMA max_page_count = 1");
    b = s->ops->begin(s, "t");
    s->ops->put_collection(b, 1, big);
    s->ops->commit(b, on_done, &a[0]);
    commit_done(s, "t", "a", 1, &small);
    wait_for_trouble();
    assert_in(reg->ops->trouble(reg), path);
    assert_in(reg->ops->trouble(reg), "database or disk is full");
    assert_in(reg->ops->trouble(reg), "free space");
    begin = clock_mono_ms();
    reg->ops->set_state(reg, "t", TASK_PAUSED, "", ME, epoch, on_done, &a[1]);
    reg->ops->claim(reg, TARGET, ME, LEASE_MS, on_lease, &a[2]);
    reg->ops->list(reg, NULL, on_tasks, &a[3]);
    create("u", &a[4]);
    reg->ops->remove(reg, "t", ME, epoch, on_done, &a[5]);
    for (int i = 1; i <= 5; i++) {
        assert_code(&a[i], ERR_IO);
        assert_int_equal(a[i].err.cls, ERRC_RETRY);
        assert_in(a[i].err.text, "free space");
    }
    assert_true(clock_mono_ms() - begin >= REGQ_API_MS);
    assert_true(clock_mono_ms() - begin < REGQ_API_MS + 2000);
    assert_int_equal(a[0].calls, 0);
    assert_int_equal(small.calls, 0);
    in_helper("PRAGMA max_page_count = 1000000");
    assert_ok(&a[0]);
    assert_ok(&small);
    assert_true(a[0].order < small.order);
    assert_null(reg->ops->trouble(reg));
    assert_tasks("t:0: "); /* what failed was not done later */
    free(a[3].text);
    free(big);
    reg->ops->store_free(s);
}

/* A limit on file sizes gives EFBIG: SQLITE_IOERR. Ends as soon as the limit is lifted. */
static int io_error_child(void)
{
    struct rlimit small = {.rlim_cur = 1, .rlim_max = RLIM_INFINITY};
    struct rlimit none = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    struct answer a = {0};
    struct store *s;
    int null = open("/dev/null", O_WRONLY);

    dup2(null, 2); /* the log may be a file, which the limit hits too */
    signal(SIGXFSZ, SIG_IGN);
    lp = loop_new();
    reg = registry_sqlite_open(lp, path, &err);
    if (!reg)
        return 2;
    s = reg->ops->store_open(reg, "t", ME, epoch);
    if (setrlimit(RLIMIT_FSIZE, &small) < 0)
        return 3;
    commit_done(s, "t", "a", 9, &a);
    while (!reg->ops->trouble(reg))
        loop_once(lp, true);
    if (!strstr(reg->ops->trouble(reg), "disk I/O error") || a.calls)
        return 4;
    if (setrlimit(RLIMIT_FSIZE, &none) < 0)
        return 5;
    while (!a.calls)
        loop_once(lp, true);
    if (a.err.code || reg->ops->trouble(reg))
        return 6;
    reg->ops->store_free(s);
    reg->ops->close(reg);
    loop_free(lp);
    return 0;
}

static void io_errors_are_retried(void **state)
{
    struct store *s;
    int status;
    pid_t pid;

    (void)state;
    open_reg();
    create_now("t");
    close_reg();
    pid = fork();
    if (pid == 0)
        _exit(io_error_child());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    open_reg();
    s = reg->ops->store_open(reg, "t", ME, epoch);
    assert_loaded(s, "t", "a>d:9:- ");
    reg->ops->store_free(s);
}

static sqlite3 *hold_write_lock(void)
{
    sqlite3 *h;

    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_exec(h, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    return h;
}

static void locks_of_others_are_waited_for(void **state)
{
    struct answer a = {0}, a2 = {0}, b = {0}, c = {0};
    struct store *s;
    sqlite3 *h;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
    h = hold_write_lock();
    commit_done(s, "t", "a", 1, &a);
    while (!impl()->q.group)
        loop_once(lp, true);
    commit_done(s, "t", "a", 2, &a2); /* comes while the first is in the helper: stays behind it */
    reg->ops->set_state(reg, "t", TASK_PAUSED, "", ME, epoch, on_done, &b);
    assert_code(&b, ERR_IO);
    assert_in(b.err.text, "another program");
    assert_in(reg->ops->trouble(reg), "locked");
    s->ops->load(s, "t", on_load, &c);
    assert_int_equal(a.calls, 0);
    sqlite3_close(h);
    assert_ok(&c);
    assert_ok(&a);
    assert_ok(&a2);
    assert_true(a.order < a2.order);
    assert_string_equal(c.text,
                        "a>d:2:- "); /* after the write, though it came while that was stuck */
    assert_null(reg->ops->trouble(reg));
    free(c.text);
    reg->ops->store_free(s);
}

/* A shutdown does not wait for ever, and is without answers. */
static void close_gives_up_in_the_end(void **state)
{
    struct answer a = {0};
    struct store *s;
    sqlite3 *h;
    uint64_t begin;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
    h = hold_write_lock();
    commit_done(s, "t", "a", 1, &a);
    wait_for_trouble();
    reg->ops->store_free(s);
    begin = clock_mono_ms();
    close_reg();
    assert_true(clock_mono_ms() - begin < REGQ_CLOSE_MS + 2000);
    assert_int_equal(a.calls, 0);
    sqlite3_close(h);
}

/* ---- opening */

static void open_fails(enum err_code code, const char *part)
{
    struct registry *r = registry_sqlite_open(lp, path, &err);

    if (r) {
        r->ops->close(r);
        fail_msg("opened, though: %s", part);
    }
    assert_int_equal(err.code, code);
    assert_int_equal(err.cls, ERRC_USER);
    assert_in(err.text, path);
    assert_in(err.text, part);
}

static void second_daemon_is_refused(void **state)
{
    char other[80];

    (void)state;
    open_reg();
    open_fails(ERR_STATE, "another milvus-cdc daemon");
    assert_in(err.text, ".lock");
    snprintf(other, sizeof(other), "%s/link.db", dir);
    assert_int_equal(symlink(path, other), 0);
    assert_null(registry_sqlite_open(lp, other, &err));
    assert_int_equal(err.code, ERR_STATE);
    create_now("t"); /* the first one is not disturbed */
    close_reg();
    open_reg();
    assert_tasks("t:0: ");
}

static void write_at(const char *file, long at, const char *bytes, size_t n)
{
    int fd = open(file, O_WRONLY | O_CREAT, 0644);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, n, at), (ssize_t)n);
    close(fd);
}

static void corrupt_files_are_refused(void **state)
{
    static const char garbage[9000] = "This is not a database.";
    struct stat st;

    (void)state;
    write_at(path, 0, garbage, sizeof(garbage));
    open_fails(ERR_IO, "not a database");
    assert_in(err.text, "restore a copy");
    unlink(path);

    open_reg();
    for (int i = 0; i < 100; i++) {
        char id[20];

        snprintf(id, sizeof(id), "task%d", i);
        create_now(id);
    }
    close_reg();
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size > 4 * 4096);
    write_at(path, 4096, garbage, 4096); /* a page in the middle: the header is good */
    open_fails(ERR_IO, "restore a copy");
}

/* The file goes bad while it is used: told, not retried for ever, and the daemon lives. */
static void damage_while_running_is_told(void **state)
{
    struct answer a = {0}, b = {0};
    struct store *s;

    (void)state;
    open_reg();
    create_now("t");
    s = reg->ops->store_open(reg, "t", ME, epoch);
    in_helper("PRAGMA wal_checkpoint(TRUNCATE)");
    in_helper("PRAGMA writable_schema = ON");
    in_helper("UPDATE sqlite_master SET rootpage = 99999 WHERE name = 'checkpoint'");
    in_helper("PRAGMA writable_schema = RESET");
    commit_done(s, "t", "a", 1, &a);
    create("u", &b);
    wait_for(&a);
    assert_int_equal(a.err.code, ERR_IO);
    assert_int_equal(a.err.cls, ERRC_USER);
    assert_in(a.err.text, path);
    wait_for(&b);
    assert_non_null(reg->ops->trouble(reg));
    reg->ops->store_free(s);
}

static void exec_file(const char *sql)
{
    sqlite3 *h;

    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_exec(h, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(h);
}

static void other_versions_and_programs_are_refused(void **state)
{
    (void)state;
    open_reg();
    create_now("t");
    close_reg();
    exec_file("PRAGMA user_version = 5");
    open_fails(ERR_INVALID, "newer milvus-cdc (schema version 5, this one knows up to 4)");
    exec_file("PRAGMA user_version = 4");
    open_reg();
    assert_tasks("t:0: ");
    close_reg();
    unlink(path);
    exec_file("CREATE TABLE x (y)");
    open_fails(ERR_INVALID, "another program");
    exec_file("DROP TABLE x; PRAGMA user_version = 1");
    open_fails(ERR_INVALID, "another program");
}

/* A file of the first release, with tasks that were owned one by one. */
static void files_of_version_1_are_migrated(void **state)
{
    struct answer list = {0};
    struct store *s;

    (void)state;
    exec_file("PRAGMA application_id = 1296254019; PRAGMA user_version = 1;"
              "CREATE TABLE task (id TEXT NOT NULL PRIMARY KEY, spec_json TEXT NOT NULL, target_key TEXT NOT NULL,"
              " state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 2), reason TEXT NOT NULL, owner TEXT NOT NULL,"
              " epoch INTEGER NOT NULL, lease_until_ms INTEGER NOT NULL, created_ms INTEGER NOT NULL,"
              " updated_ms INTEGER NOT NULL) WITHOUT ROWID;"
              "CREATE TABLE checkpoint (task_id TEXT NOT NULL REFERENCES task (id) ON DELETE CASCADE,"
              " src_channel TEXT NOT NULL, dst_channel TEXT NOT NULL,"
              " start_major INTEGER NOT NULL, start_minor INTEGER NOT NULL, start_tt INTEGER NOT NULL,"
              " done_major INTEGER NOT NULL, done_minor INTEGER NOT NULL, done_tt INTEGER NOT NULL,"
              " sent_major INTEGER NOT NULL, sent_minor INTEGER NOT NULL, sent_tt INTEGER NOT NULL,"
              " retimed_tt INTEGER NOT NULL, op_major INTEGER NOT NULL, op_minor INTEGER NOT NULL,"
              " op_tt INTEGER NOT NULL, target_pos TEXT, PRIMARY KEY (task_id, src_channel, dst_channel)) WITHOUT ROWID;"
              "CREATE TABLE collection (task_id TEXT NOT NULL REFERENCES task (id) ON DELETE CASCADE,"
              " collection_id INTEGER NOT NULL, json TEXT NOT NULL, PRIMARY KEY (task_id, collection_id)) WITHOUT ROWID;"
              "CREATE TABLE target_tick (target TEXT NOT NULL, dst_channel TEXT NOT NULL, tt INTEGER NOT NULL,"
              " PRIMARY KEY (target, dst_channel)) WITHOUT ROWID;"
              "INSERT INTO task VALUES ('a','{\"request\":{\"keep_queryable\":true}}','target',2,'r','d',7,0,1,2),"
              " ('t','{\"request\":{}}','target',1,'','d',9,0,3,4), ('z','no json','other',0,'','',0,0,5,6);"
              "INSERT INTO checkpoint VALUES ('t','s','d',0,0,0,0,5,0,0,5,0,0,0,0,0,NULL);"
              "INSERT INTO target_tick VALUES ('target','d',77);");
    open_reg();
    assert_int_equal(epoch, 10);
    assert_int_equal(claim_now(reg, "other", ME), 1);
    assert_tasks("a:2:r t:1: z:0: ");
    reg->ops->list(reg, "a", on_tasks, &list);
    assert_ok(&list);
    assert_true(list.task.keep && list.task.created_ms == 1 && list.task.updated_ms == 2);
    free(list.text);
    list = (struct answer){0};
    reg->ops->list(reg, "t", on_tasks, &list);
    assert_ok(&list);
    assert_false(list.task.keep);
    free(list.text);
    s = reg->ops->store_open(reg, "t", ME, epoch);
    assert_loaded(s, "t", "s>d:5:- ");
    assert_int_equal(tick(s, TARGET, "d"), 77);
    reg->ops->store_free(s);
}

static void bad_places_are_told(void **state)
{
    char good[60];
    struct stat st;

    (void)state;
    assert_null(registry_sqlite_open(lp, "/nonexistent/x", NULL)); /* err may be NULL */
    strcpy(good, path);
    snprintf(path, sizeof(path), "%s/none/r.db", dir);
    open_fails(ERR_IO, "make the directory first");
    strcpy(path, dir);
    open_fails(ERR_IO, "directory");
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    unlink(strcat(strcpy(path, dir), ".lock"));
    strcpy(path, good);
    write_at(path, 0, "", 0);
    assert_int_equal(chmod(path, 0644), 0);
    open_reg();
    close_reg();
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

/* As a user that may not write: root may everywhere, so a child becomes nobody. */
static void unwritable_directory_is_told(void **state)
{
    int status;
    pid_t pid;

    (void)state;
    assert_int_equal(chmod(dir, 0555), 0);
    pid = fork();
    if (pid == 0) {
        struct err e = {0};
        struct loop *l = loop_new();

        if (getuid() == 0 && (setgid(65534) < 0 || setuid(65534) < 0))
            _exit(2);
        if (registry_sqlite_open(l, path, &e) || e.code != ERR_IO ||
            !strstr(e.text, "must be writable"))
            _exit(3);
        loop_free(l);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(tasks_are_kept),
        TEST(all_fields_come_back),
        TEST(leases_guard_tasks),
        TEST(checkpoints_and_collections),
        TEST(a_comparison_stays_with_its_task),
        TEST(ticks_only_rise_unless_set_and_outlive_tasks),
        TEST(stale_commits_write_nothing),
        TEST(one_turn_is_one_transaction_in_order),
        TEST(a_bad_batch_is_undone_alone),
        TEST(settings_are_durable),
        TEST(answers_may_call_again),
        TEST(cancel_drops_answers_and_not_writes),
        TEST(close_inside_an_answer),
        TEST(close_writes_what_waits),
        TEST(nothing_acknowledged_is_lost_by_a_kill),
        TEST(full_database_blocks_commits_and_fails_requests),
        TEST(io_errors_are_retried),
        TEST(locks_of_others_are_waited_for),
        TEST(close_gives_up_in_the_end),
        TEST(second_daemon_is_refused),
        TEST(corrupt_files_are_refused),
        TEST(damage_while_running_is_told),
        TEST(other_versions_and_programs_are_refused),
        TEST(files_of_version_1_are_migrated),
        TEST(bad_places_are_told),
        TEST(unwritable_directory_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
