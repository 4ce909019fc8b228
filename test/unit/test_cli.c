/* test_cli.c - the probe: its options, and what it makes of an answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include "../../src/cli/ask.c"
#include "../../src/cli/health.c"

static char dir[40], path[60], printed[2000];

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_cli.XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/file", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static void write_file(const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
}

/* ---- answers */

/* The exit code; the line is in printed. */
static int answer(int status, const char *body)
{
    FILE *f = tmpfile();
    int saved = dup(1), rc;
    size_t n;

    fflush(stdout);
    dup2(fileno(f), 1);
    rc = print_answer("http://h:1", status, body);
    fflush(stdout);
    dup2(saved, 1);
    close(saved);
    rewind(f);
    n = fread(printed, 1, sizeof(printed) - 1, f);
    printed[n] = '\0';
    fclose(f);
    assert_ptr_equal(strchr(printed, '\n'), printed + n - 1); /* one line */
    return rc;
}

static void the_daemons_verdict_is_printed(void **state)
{
    static const char *const texts[] = {"OK: 1 tasks", "WARNING: slow", "CRITICAL: LOST", "UNKNOWN: no such task"};
    static const int statuses[] = {200, 200, 503, 404};

    (void)state;
    for (int i = 0; i < 4; i++) {
        char *body = xasprintf("{\"status\":\"x\",\"code\":%d,\"text\":\"%s | lag=1.000s\",\"new\":[]}\n", i, texts[i]);

        assert_int_equal(answer(statuses[i], body), i);
        assert_memory_equal(printed, texts[i], strlen(texts[i]));
        assert_non_null(strstr(printed, " | lag=1.000s\n"));
        free(body);
    }
}

static void what_is_no_verdict_is_unknown(void **state)
{
    static const char *const bodies[] = {
        "", "{}", "[]", "null", "OK: fine", "<html>", "{\"code\":0}", "{\"text\":\"OK\"}", "{\"code\":\"0\",\"text\":\"OK\"}",
        "{\"code\":0.0,\"text\":\"OK\"}", "{\"code\":null,\"text\":\"OK\"}", "{\"code\":-1,\"text\":\"OK\"}",
        "{\"code\":4,\"text\":\"OK\"}", "{\"code\":4294967296,\"text\":\"OK\"}", "{\"code\":-4294967294,\"text\":\"OK\"}",
        "{\"code\":0,\"text\":\"OK: two\\nlines\"}", "{\"code\":0,\"text\":\"OK\\r\"}", "{\"code\":0,\"text\":[]}",
        "{\"code\":0,\"text\":\"OK\"", "{\"code\":0,\"text\":\"OK\\u0000\"}", "{\"code\":0,\"text\":\"OK\"} x",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bodies) / sizeof(*bodies); i++)
        if (answer(200, bodies[i]) != UNKNOWN || !strstr(printed, "what answers at http://h:1 (HTTP 200) is not milvus-cdc"))
            fail_msg("%s: %s", bodies[i], printed);
}

static void a_refused_token_is_told(void **state)
{
    (void)state;
    assert_int_equal(answer(401, "{\"code\":0,\"text\":\"OK\"}"), UNKNOWN);
    assert_non_null(strstr(printed, "http://h:1 wants a valid token: see --token-file"));
}

/* The parts of text, which ends where memory does. -1: no answer. */
static int split(const char *text, int *ret_status, char *ret_body)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), len = strlen(text), body_len;
    char *map = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at = map + page - len;
    const char *body;
    int rc;

    assert_true(map != MAP_FAILED && len <= page);
    assert_int_equal(mprotect(map + page, page, PROT_NONE), 0);
    memcpy(at, text, len);
    rc = http_answer_split(at, len, ret_status, &body, &body_len);
    if (rc == 0) {
        memcpy(ret_body, body, body_len);
        ret_body[body_len] = '\0';
    }
    munmap(map, 2 * page);
    return rc;
}

static void an_answer_has_a_status_and_a_whole_body(void **state)
{
    static const struct {
        const char *text;
        int status; /* 0: no answer */
        const char *body;
    } cases[] = {
        {"HTTP/1.0 200 OK\r\n\r\n{}", 200, "{}"},
        {"HTTP/1.1 503 Service Unavailable\r\nA: b\r\ncontent-length: 2\r\nC: d\r\n\r\n{}", 503, "{}"},
        {"HTTP/1.1 204\r\n\r\n", 204, ""},
        {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""},
        {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", 0, NULL}, /* cut off */
        {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}", 0, NULL},
        {"HTTP/1.1 200 OK\r\n", 0, NULL},
        {"HTTP/2 200\r\n\r\n{}", 0, NULL},
        {"HTTP/1.1 20\r\n\r\n", 0, NULL},
        {"HTTP/1.1 2x0 OK\r\n\r\n", 0, NULL},
        {"HTTP/1.1 -12 OK\r\n\r\n", 0, NULL},
        {"HTTP/1.1 099 OK\r\n\r\n", 0, NULL},
        {"SSH-2.0-OpenSSH_9.2\r\n\r\n", 0, NULL},
        {"\r\n\r\n", 0, NULL},
        {"", 0, NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char body[200];
        int status = 0, rc = split(cases[i].text, &status, body);

        if (rc != (cases[i].status ? 0 : -1))
            fail_msg("%d for %s", rc, cases[i].text);
        if (rc == 0) {
            assert_int_equal(status, cases[i].status);
            assert_string_equal(body, cases[i].body);
        }
    }
}

/* ---- options */

static void urls(void **state)
{
    static const struct {
        const char *text, *host; /* NULL: refused */
        bool tls;
        unsigned port;
    } cases[] = {
        {"http://127.0.0.1:8444", "127.0.0.1", false, 8444},
        {"HTTPS://db.example:1/", "db.example", true, 1},
        {"http://h", "h", false, 80},
        {"https://h/", "h", true, 443},
        {"http://[::1]:65535", "::1", false, 65535},
        {"https://[::1]", "::1", true, 443},
        {"h:1", NULL, false, 0},
        {"ftp://h:1", NULL, false, 0},
        {"http://", NULL, false, 0},
        {"http://:1", NULL, false, 0},
        {"http://h:", NULL, false, 0},
        {"http://h:0", NULL, false, 0},
        {"http://h:65536", NULL, false, 0},
        {"http://h:-1", NULL, false, 0},
        {"http://h:+1", NULL, false, 0},
        {"http://h: 1", NULL, false, 0},
        {"http://h:1x", NULL, false, 0},
        {"http://h:1/health", NULL, false, 0},
        {"http://h:1?x", NULL, false, 0},
        {"http://u@h:1", NULL, false, 0},
        {"http://[::1", NULL, false, 0},
        {"http://[]:1", NULL, false, 0},
        {"http://[::1]x:1", NULL, false, 0},
    };
    char longer[400] = "http://";

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct err err = {0};
        struct url u;
        int rc = url_parse(cases[i].text, &u, &err);

        if (rc != (cases[i].host ? 0 : ERR_INVALID))
            fail_msg("%d for %s", rc, cases[i].text);
        if (rc)
            continue;
        assert_string_equal(u.host, cases[i].host);
        assert_int_equal(u.tls, cases[i].tls);
        assert_int_equal(u.port, cases[i].port);
    }
    memset(longer + 7, 'h', 256);
    assert_int_equal(url_parse(longer, &(struct url){0}, &(struct err){0}), ERR_INVALID);
}

static void times(void **state)
{
    static const struct {
        const char *text;
        unsigned ms; /* 0: refused */
    } cases[] = {{"5s", 5000}, {"5", 5000}, {"500ms", 500}, {"1.5s", 1500}, {"10m", 600000}, {"1ms", 1},
                 {"", 0}, {"0", 0}, {"-1s", 0}, {"s", 0}, {"5h", 0}, {"5 s", 0}, {"601s", 0}, {"11m", 0},
                 {"0.5ms", 0}, {"nan", 0}, {"inf", 0}, {"1e300", 0}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        unsigned ms = 0;
        bool ok = parse_timeout(cases[i].text, &ms);

        if (ok != (cases[i].ms > 0) || (ok && ms != cases[i].ms))
            fail_msg("%s: %u", cases[i].text, ms);
    }
}

static void a_token_is_the_first_line_of_its_file(void **state)
{
    static const char *const good[] = {"secret", "secret\n", "secret\r\nmore\n"};
    static const char *const wrong[] = {"", "\n", "two words\n", "tab\t\n", "\x01", "s\xc3\xa4\n"};
    char longer[300];

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        struct err err = {0};
        char *token;

        write_file(good[i]);
        token = read_token(path, &err);
        assert_string_equal(token, "secret");
        free(token);
    }
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    for (size_t i = 0; i <= sizeof(wrong) / sizeof(*wrong); i++) {
        struct err err = {0};

        write_file(i < sizeof(wrong) / sizeof(*wrong) ? wrong[i] : longer);
        assert_null(read_token(path, &err));
        assert_non_null(strstr(err.text, "--token-file"));
    }
    unlink(path);
    assert_null(read_token(path, &(struct err){0}));
}

static void the_question_is_percent_encoded(void **state)
{
    struct options o = {.task = "a&b c%\xc3\xa4-_.~", .max_lag = "1 m"};
    char *text = target(&o);

    (void)state;
    assert_string_equal(text, "/health?max_lag=1%20m&task=a%26b%20c%25%C3%A4-_.~");
    free(text);
    o = (struct options){0};
    text = target(&o);
    assert_string_equal(text, "/health?max_lag=30s");
    free(text);
}

static void the_configuration_names_the_address(void **state)
{
    static const char *const cases[][2] = {{"127.0.0.1:8444", "http://127.0.0.1:8444"},
                                           {"0.0.0.0:1", "http://127.0.0.1:1"},
                                           {":2", "http://127.0.0.1:2"},
                                           {"'[::]:3'", "http://[::1]:3"},
                                           {"'[fd00::1]:4'", "http://[fd00::1]:4"},
                                           {"db.example:5", "http://db.example:5"}};
    struct err err = {0};
    char *url;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char *text = xasprintf("address: %s\nsourceConfig: {replicateChan: c}\n", cases[i][0]);

        write_file(text);
        url = url_of_config(path, &err);
        assert_string_equal(url ? url : err.text, cases[i][1]);
        free(url);
        free(text);
    }
    write_file("api: {tls: {cert: /c, key: /k}}\nsourceConfig: {replicateChan: c}\n");
    url = url_of_config(path, &err);
    assert_string_equal(url ? url : err.text, "https://127.0.0.1:8444");
    free(url);
    assert_null(url_of_config("/nowhere/cdc.yaml", &err));
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_daemons_verdict_is_printed),
        TEST(what_is_no_verdict_is_unknown),
        TEST(a_refused_token_is_told),
        TEST(an_answer_has_a_status_and_a_whole_body),
        TEST(urls),
        TEST(times),
        TEST(a_token_is_the_first_line_of_its_file),
        TEST(the_question_is_percent_encoded),
        TEST(the_configuration_names_the_address),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
