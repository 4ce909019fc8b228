/* test_base.c - what the headers of base/ promise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/backoff.h"
#include "base/base64.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metric.h"
#include "base/pbwire.h"

#include <event2/buffer.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* err */

static void err_set_and_wrap(void **state)
{
    struct err err, copy;

    (void)state;
    assert_int_equal(err_set(&err, ERR_TIMEOUT, ERRC_RETRY, "after %d ms", 5), ERR_TIMEOUT);
    assert_int_equal(err_wrap(&err, "topic %s", "a"), ERR_TIMEOUT);
    assert_string_equal(err.text, "topic a: after 5 ms");
    assert_int_equal(err.cls, ERRC_RETRY);
    assert_int_equal(err_copy(&copy, &err), ERR_TIMEOUT);
    assert_string_equal(copy.text, err.text);
    assert_int_equal(err_set(NULL, ERR_IO, ERRC_USER, "x"), ERR_IO);
    assert_int_not_equal(err_wrap(NULL, "x"), ERR_OK);
    assert_int_equal(err_copy(NULL, &err), ERR_TIMEOUT);
}

static void err_text_may_be_its_own_argument(void **state)
{
    struct err err;

    (void)state;
    err_set(&err, ERR_IO, ERRC_RETRY, "disk");
    err_set(&err, ERR_AUTH, ERRC_USER, "no: %s", err.text);
    assert_string_equal(err.text, "no: disk");
}

static void err_text_is_cut_not_overrun(void **state)
{
    char big[3000];
    struct err err;

    (void)state;
    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    err_set(&err, ERR_IO, ERRC_RETRY, "%s", big);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    err_wrap(&err, "ctx");
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    assert_memory_equal(err.text, "ctx: xxx", 8);
    err_wrap(&err, "%s", big);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
}

static void err_names(void **state)
{
    (void)state;
    for (int c = ERR_OK; c <= ERR_INTERNAL; c++)
        assert_string_not_equal(err_code_name((enum err_code)c), "unknown");
    assert_string_equal(err_code_name(ERR_TIMEOUT), "timeout");
    assert_string_equal(err_class_name(ERRC_LOST), "lost");
}

/* log */

static int saved_stderr, log_pipe[2];

static void capture_start(void)
{
    assert_int_equal(pipe(log_pipe), 0);
    saved_stderr = dup(STDERR_FILENO);
    dup2(log_pipe[1], STDERR_FILENO);
}

static void capture_end(char *text, size_t size)
{
    size_t used = 0;
    ssize_t n;

    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    close(log_pipe[1]);
    while ((n = read(log_pipe[0], text + used, size - 1 - used)) > 0)
        used += (size_t)n;
    text[used] = '\0';
    close(log_pipe[0]);
}

/* The line without its time stamp, whose form is checked. */
static const char *after_ts(const char *line)
{
    static const char form[] = "ts=0000-00-00T00:00:00.000Z ";

    for (size_t i = 0; form[i]; i++) {
        if (form[i] == '0')
            assert_in_range(line[i], '0', '9');
        else
            assert_int_equal(line[i], form[i]);
    }
    return line + sizeof(form) - 1;
}

static void log_plain_and_quoted(void **state)
{
    char text[1000];

    (void)state;
    capture_start();
    log_info("wal", "reader opened", KS("topic", "by-dev"), KU("pos", 17), KI("n", -3));
    capture_end(text, sizeof(text));
    assert_string_equal(after_ts(text),
                        "level=info mod=wal msg=\"reader opened\" topic=by-dev pos=17 n=-3\n");
}

static void log_escapes(void **state)
{
    char text[1000];

    (void)state;
    capture_start();
    log_error("m", "x", KS("a", "1=2"), KS("b", "l1\nl2\r\t\x1b[0m\x7f"), KS("c", "q\"\\"),
              KS("d", ""), KS("e", NULL), KS("f", "back\\slash"), KS("g", "\xc3\xa9"));
    capture_end(text, sizeof(text));
    assert_string_equal(after_ts(text),
                        "level=error mod=m msg=x a=\"1=2\" b=\"l1\\nl2\\r\\t\\x1b[0m\\x7f\" "
                        "c=\"q\\\"\\\\\" d=\"\" e= f=back\\slash g=\xc3\xa9\n");
}

static void log_long_line_is_cut(void **state)
{
    char big[20000], text[20000];
    size_t len;

    (void)state;
    memset(big, '\n', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    capture_start();
    log_warn("m", "long", KS("v", big), KS("w", "later"));
    capture_end(text, sizeof(text));
    len = strlen(text);
    assert_in_range(len, 8000, 8192);
    assert_string_equal(text + len - 6, "\\n...\n");
    assert_ptr_equal(strchr(text, '\n'), text + len - 1);
}

static void log_levels(void **state)
{
    enum log_level level = LOG_DEBUG;
    char text[100];

    (void)state;
    capture_start();
    log_debug("m", "hidden");
    log_set_level(LOG_ERROR);
    log_warn("m", "hidden");
    log_set_level(LOG_INFO);
    capture_end(text, sizeof(text));
    assert_string_equal(text, "");
    assert_true(log_level_parse("WARNING", &level));
    assert_int_equal(level, LOG_WARN);
    assert_true(log_level_parse("Fatal", &level));
    assert_int_equal(level, LOG_ERROR);
    assert_false(log_level_parse("loud", &level));
    assert_false(log_level_parse("", &level));
    assert_int_equal(level, LOG_ERROR);
}

/* mem, clock */

static void mem_helpers(void **state)
{
    char *s = xasprintf("%d-%s", 7, "x");

    (void)state;
    assert_string_equal(s, "7-x");
    xfree(&s);
    assert_null(s);
    xfree(&s);
    assert_null(xstrdup(NULL));
    s = xstrndup("abcdef", 3);
    assert_string_equal(s, "abc");
    s = xrealloc(s, 100);
    assert_string_equal(s, "abc");
    xfree(&s);
    s = xcalloc(0, 0);
    assert_non_null(s);
    xfree(&s);
}

static void set_text_replaces(void **state)
{
    char *slot = NULL;

    (void)state;
    set_text(&slot, "one");
    assert_string_equal(slot, "one");
    set_text(&slot, slot);
    assert_string_equal(slot, "one");
    set_text(&slot, slot + 1); /* a part of itself */
    assert_string_equal(slot, "ne");
    set_text(&slot, NULL);
    assert_null(slot);
}

static void hex_digits(void **state)
{
    static const uint8_t bytes[] = {0x00, 0x09, 0xa0, 0xff};
    char text[9];

    (void)state;
    hex_encode(bytes, sizeof(bytes), text);
    assert_string_equal(text, "0009a0ff");
    hex_encode(NULL, 0, text);
    assert_string_equal(text, "");
    for (int i = 0; i < 16; i++) {
        assert_int_equal(hex_digit("0123456789abcdef"[i]), i);
        assert_int_equal(hex_digit("0123456789ABCDEF"[i]), i);
    }
    for (const char *p = "/:@G`g \x80"; *p; p++)
        assert_int_equal(hex_digit(*p), -1);
}

static void clock_texts(void **state)
{
    static const struct {
        const char *text;
        uint64_t ms; /* 0: not a time */
    } cases[] = {
        {"2026-11-30T20:00:00Z", 1796068800000},     {"2026-11-30t20:00:00.125z", 1796068800125},
        {"2026-11-30T20:00:00.1Z", 1796068800100},   {"2026-11-30T20:00:00.123456Z", 1796068800123},
        {"2026-11-30T21:30:00+01:30", 1796068800000}, {"2026-11-30T15:00:00-05:00", 1796068800000},
        {"2026-02-29T00:00:00Z", 0},                 {"2026-13-01T00:00:00Z", 0},
        {"2026-11-30T24:00:00Z", 0},                 {"2026-11-30T20:00:00", 0},
        {"2026-11-30T20:00:00.Z", 0},                {"2026-11-30 20:00:00Z", 0},
        {"2026-11-30T20:00:00Z ", 0},                {"2026-11-30T20:00:00+25:00", 0},
        {"2026-11-30T20:00:00+0100", 0},             {"1960-01-01T00:00:00Z", 0},
        {"", 0},                                     {"now", 0},
    };
    char text[CLOCK_CHARS];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint64_t ms = 0;

        if ((clock_parse(cases[i].text, &ms) == 0) != (cases[i].ms != 0) || ms != cases[i].ms)
            fail_msg("%s: %llu", cases[i].text, (unsigned long long)ms);
    }
    clock_format(1796068800125, text);
    assert_string_equal(text, "2026-11-30T20:00:00.125Z");
}

static void clock_units(void **state)
{
    uint64_t ms = clock_mono_ms();

    (void)state;
    assert_in_range(clock_mono_us() / 1000 - ms, 0, 10000);
    assert_true(clock_wall_ms() > UINT64_C(1600000000000));
    assert_int_equal(tt_to_ms(tt_from_ms(1234567) | 77), 1234567);
}

/* buf */

static int freed;

static void count_free(void *arg)
{
    (void)arg;
    freed++;
}

static void buf_last_unref_frees(void **state)
{
    static uint8_t bytes[3] = {1, 2, 3};
    struct buf *b = buf_wrap(bytes, sizeof(bytes), count_free, NULL);

    (void)state;
    freed = 0;
    assert_ptr_equal(buf_ref(b), b);
    buf_unref(b);
    assert_int_equal(freed, 0);
    buf_unref(b);
    assert_int_equal(freed, 1);
    buf_unref(NULL);
    assert_null(buf_new(SIZE_MAX));
    b = buf_new(0);
    assert_non_null(b);
    buf_unref(b);
}

static void buf_in_evbuffer(void **state)
{
    struct evbuffer *out = evbuffer_new();
    struct buf *b = buf_new(2000);

    (void)state;
    memset(b->data, 'z', b->size);
    assert_int_equal(buf_add_to_evbuffer(b, b->data, 0, out), 0);
    assert_int_equal(buf_add_to_evbuffer(b, b->data + 1, 100, out), 0);
    assert_int_equal(b->refs, 1); /* copied */
    assert_int_equal(buf_add_to_evbuffer(b, b->data, b->size, out), 0);
    assert_int_equal(b->refs, 2);
    assert_int_equal(evbuffer_get_length(out), 2100);
    buf_unref(b);
    assert_int_equal(evbuffer_pullup(out, -1)[2099], 'z');
    evbuffer_free(out);
}

/* backoff */

static void backoff_grows_within_limits(void **state)
{
    struct backoff b = BACKOFF_INIT(100, 1000);
    static const unsigned full[] = {100, 200, 400, 800, 1000, 1000};

    (void)state;
    for (int round = 0; round < 200; round++) {
        for (size_t i = 0; i < sizeof(full) / sizeof(full[0]); i++)
            assert_in_range(backoff_next_ms(&b), full[i] / 2, full[i]);
        backoff_reset(&b);
    }
}

static void backoff_has_jitter_and_no_overflow(void **state)
{
    struct backoff b = BACKOFF_INIT(UINT32_MAX - 1, UINT32_MAX);
    struct backoff zero = BACKOFF_INIT(0, 0);
    unsigned first = backoff_next_ms(&b), differs = 0;

    (void)state;
    for (int i = 0; i < 20; i++) {
        unsigned ms = backoff_next_ms(&b);

        assert_true(ms >= UINT32_MAX / 2);
        differs += ms != first;
    }
    assert_true(differs > 0);
    assert_int_equal(backoff_next_ms(&zero), 1); /* never a busy loop */
}

/* base64 */

static void base64_rfc4648_vectors(void **state)
{
    static const char *const v[][2] = {{"", ""},           {"f", "Zg=="},     {"fo", "Zm8="},
                                       {"foo", "Zm9v"},    {"foob", "Zm9vYg=="},
                                       {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}};

    (void)state;
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
        char *text = base64_encode(v[i][0], strlen(v[i][0]));
        uint8_t *data = NULL;
        size_t len = 99;

        assert_string_equal(text, v[i][1]);
        assert_int_equal(base64_decode(text, &data, &len), 0);
        assert_int_equal(len, strlen(v[i][0]));
        assert_memory_equal(data, v[i][0], len);
        free(data);
        free(text);
    }
}

static void base64_all_bytes(void **state)
{
    uint8_t in[256], *out;
    char *text;
    size_t len;

    (void)state;
    for (int i = 0; i < 256; i++)
        in[i] = (uint8_t)i;
    text = base64_encode(in, sizeof(in));
    assert_int_equal(base64_decode(text, &out, &len), 0);
    assert_int_equal(len, sizeof(in));
    assert_memory_equal(out, in, len);
    free(out);
    free(text);
}

static void base64_bad(void **state)
{
    static const char *const bad[] = {"Z",    "Zg",   "Zg=",  "====", "Z===", "Zg==Zg==",
                                      "Zg=x", "Zm9\n", "Zm-_", "Zh==", "Zm9=", "Zm9vYg"};
    uint8_t *data = NULL;
    size_t len = 7;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(base64_decode(bad[i], &data, &len), -1);
    assert_null(data);
    assert_int_equal(len, 7);
}

/* pbwire */

static struct pb_out sample(void)
{
    struct pb_out o = {0};

    pb_out_u64(&o, 1, 300);
    pb_out_u64(&o, 2, 0);
    pb_out_str(&o, 3, "name");
    pb_out_str(&o, 4, NULL);
    pb_out_bytes(&o, 5, NULL, 0);
    pb_out_u64(&o, 536870911, UINT64_MAX);
    pb_out_tag(&o, 6, PB_I64);
    pb_out_raw(&o, "\1\2\3\4\5\6\7\x88", 8);
    pb_out_tag(&o, 7, PB_I32);
    pb_out_raw(&o, "\1\0\0\x80", 4);
    return o;
}

static void pbwire_round_trip(void **state)
{
    struct pb_out o = sample();
    struct pb_scan s = pb_scan_init(o.data, o.len);
    struct pb_field f;

    (void)state;
    assert_int_equal(pb_scan_next(&s, &f), 1);
    assert_int_equal(f.num, 1);
    assert_int_equal(f.varint, 300);
    assert_int_equal(f.total, 3);
    assert_ptr_equal(f.start, o.data);
    assert_int_equal(pb_scan_next(&s, &f), 1);
    assert_int_equal(f.num, 3);
    assert_int_equal(f.len, 4);
    assert_memory_equal(f.data, "name", 4);
    assert_int_equal(f.total, 6);
    assert_int_equal(pb_scan_next(&s, &f), 1);
    assert_int_equal(f.num, 536870911);
    assert_true(f.varint == UINT64_MAX);
    assert_int_equal(pb_scan_next(&s, &f), 1);
    assert_true(f.wire == PB_I64 && f.varint == UINT64_C(0x8807060504030201));
    assert_int_equal(pb_scan_next(&s, &f), 1);
    assert_true(f.wire == PB_I32 && f.varint == UINT64_C(0x80000001));
    assert_int_equal(pb_scan_next(&s, &f), 0);
    assert_int_equal(pb_scan_next(&s, &f), 0);
    pb_out_release(&o);
    assert_null(o.data);
}

/* Result of scanning to the end; the input is on the heap in exact size, for ASan. */
static int scan_all(const uint8_t *data, size_t len, size_t *ret_whole)
{
    uint8_t *copy = xmalloc(len);
    struct pb_scan s = pb_scan_init(copy, len);
    struct pb_field f;
    int rc;

    memcpy(copy, data, len);
    *ret_whole = 0;
    while ((rc = pb_scan_next(&s, &f)) == 1)
        *ret_whole += f.total;
    free(copy);
    return rc;
}

static void pbwire_truncated_at_each_byte(void **state)
{
    struct pb_out o = sample();
    struct pb_scan s = pb_scan_init(o.data, o.len);
    struct pb_field f;
    size_t whole, edge = 0;

    (void)state;
    for (size_t cut = 0; cut <= o.len; cut++) {
        int rc = scan_all(o.data, cut, &whole);

        if (cut > edge && pb_scan_next(&s, &f) == 1)
            edge += f.total;
        assert_int_equal(rc, cut == edge || cut == 0 ? 0 : -1);
        assert_true(whole <= cut);
    }
    assert_int_equal(edge, o.len);
    pb_out_release(&o);
}

static void pbwire_bad_input(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
    } bad[] = {
        {"\x00\x01", 2},                                     /* field number 0 */
        {"\x0b", 1},                                         /* group start */
        {"\x0c", 1},                                         /* group end */
        {"\x0e\x01", 2},                                     /* wire type 6 */
        {"\x0a\x05xx", 4},                                   /* length past the end */
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11}, /* length 2^64 - 1 */
        {"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 11}, /* varint of 11 bytes */
        {"\x88\x80\x80\x80\x10\x01", 6},                     /* tag over 32 bits */
    };
    size_t whole;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(scan_all((const uint8_t *)bad[i].bytes, bad[i].len, &whole), -1);
}

static void pbwire_varint_len(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 64; bit++) {
        uint64_t v = UINT64_C(1) << bit, back = 0;
        struct pb_out o = {0};
        const uint8_t *p;

        pb_out_varint(&o, v);
        p = o.data;
        assert_int_equal(pb_varint_len(v), o.len);
        assert_true(pb_varint(&p, o.data + o.len, &back) && back == v && p == o.data + o.len);
        pb_out_release(&o);
    }
    assert_int_equal(pb_varint_len(0), 1);
}

/* metric */

static void assert_rendered(const char *want)
{
    struct evbuffer *out = evbuffer_new();

    metric_render(out);
    evbuffer_add(out, "", 1);
    assert_string_equal((char *)evbuffer_pullup(out, -1), want);
    evbuffer_free(out);
}

static void metric_text(void **state)
{
    struct metric *a = metric_get(METRIC_COUNTER, "z_total", "Bytes.", METRIC_LABELS({"t", "1"}));
    struct metric *g = metric_get(METRIC_GAUGE, "a_ms", "x\\y\n\"z\"", NULL);

    (void)state;
    a->value += 1e9;
    g->value = 0.5;
    metric_get(METRIC_COUNTER, "z_total", NULL, METRIC_LABELS({"t", "q\"\\\n"}, {"u", "v"}));
    assert_ptr_equal(metric_get(METRIC_COUNTER, "z_total", "no", METRIC_LABELS({"t", "1"})), a);
    assert_rendered("# HELP a_ms x\\\\y\\n\"z\"\n"
                    "# TYPE a_ms gauge\n"
                    "a_ms 0.5\n"
                    "# HELP z_total Bytes.\n"
                    "# TYPE z_total counter\n"
                    "z_total{t=\"1\"} 1000000000\n"
                    "z_total{t=\"q\\\"\\\\\\n\",u=\"v\"} 0\n");
    metric_clear();
    assert_rendered("");
}

static void metric_special_numbers(void **state)
{
    (void)state;
    metric_get(METRIC_GAUGE, "a", "h", NULL)->value = NAN;
    metric_get(METRIC_GAUGE, "b", "h", NULL)->value = INFINITY;
    metric_get(METRIC_GAUGE, "c", "h", NULL)->value = -INFINITY;
    metric_get(METRIC_GAUGE, "d", "h", NULL)->value = 1764000000000123;
    assert_rendered("# HELP a h\n# TYPE a gauge\na NaN\n"
                    "# HELP b h\n# TYPE b gauge\nb +Inf\n"
                    "# HELP c h\n# TYPE c gauge\nc -Inf\n"
                    "# HELP d h\n# TYPE d gauge\nd 1764000000000123\n");
    metric_clear();
}

static void metric_histogram(void **state)
{
    static const double ms[] = {0, 1, 1.5, 128, 129};

    (void)state;
    for (size_t i = 0; i < sizeof(ms) / sizeof(ms[0]); i++)
        metric_observe_ms("lat", "h", METRIC_LABELS({"op", "w"}), ms[i]);
    assert_rendered("# HELP lat h\n"
                    "# TYPE lat histogram\n"
                    "lat_bucket{op=\"w\",le=\"1\"} 2\n"
                    "lat_bucket{op=\"w\",le=\"2\"} 3\n"
                    "lat_bucket{op=\"w\",le=\"4\"} 3\n"
                    "lat_bucket{op=\"w\",le=\"8\"} 3\n"
                    "lat_bucket{op=\"w\",le=\"16\"} 3\n"
                    "lat_bucket{op=\"w\",le=\"32\"} 3\n"
                    "lat_bucket{op=\"w\",le=\"64\"} 3\n"
                    "lat_bucket{op=\"w\",le=\"128\"} 4\n"
                    "lat_bucket{op=\"w\",le=\"+Inf\"} 5\n"
                    "lat_sum{op=\"w\"} 259.5\n"
                    "lat_count{op=\"w\"} 5\n");
    metric_clear();
}

static void metric_remove(void **state)
{
    (void)state;
    metric_get(METRIC_GAUGE, "g", "h", METRIC_LABELS({"task", "1"}, {"c", "2"}));
    metric_get(METRIC_GAUGE, "g", "h", METRIC_LABELS({"task", "2"}, {"c", "1"}));
    metric_get(METRIC_GAUGE, "only", "h", METRIC_LABELS({"task", "1"}));
    metric_remove_matching("task", "1");
    assert_rendered("# HELP g h\n# TYPE g gauge\ng{task=\"2\",c=\"1\"} 0\n");
    metric_get(METRIC_GAUGE, "only", "h", METRIC_LABELS({"task", "1"}))->value = 3;
    metric_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(err_set_and_wrap),
        cmocka_unit_test(err_text_may_be_its_own_argument),
        cmocka_unit_test(err_text_is_cut_not_overrun),
        cmocka_unit_test(err_names),
        cmocka_unit_test(log_plain_and_quoted),
        cmocka_unit_test(log_escapes),
        cmocka_unit_test(log_long_line_is_cut),
        cmocka_unit_test(log_levels),
        cmocka_unit_test(mem_helpers),
        cmocka_unit_test(set_text_replaces),
        cmocka_unit_test(hex_digits),
        cmocka_unit_test(clock_texts),
        cmocka_unit_test(clock_units),
        cmocka_unit_test(buf_last_unref_frees),
        cmocka_unit_test(buf_in_evbuffer),
        cmocka_unit_test(backoff_grows_within_limits),
        cmocka_unit_test(backoff_has_jitter_and_no_overflow),
        cmocka_unit_test(base64_rfc4648_vectors),
        cmocka_unit_test(base64_all_bytes),
        cmocka_unit_test(base64_bad),
        cmocka_unit_test(pbwire_round_trip),
        cmocka_unit_test(pbwire_truncated_at_each_byte),
        cmocka_unit_test(pbwire_bad_input),
        cmocka_unit_test(pbwire_varint_len),
        cmocka_unit_test(metric_text),
        cmocka_unit_test(metric_special_numbers),
        cmocka_unit_test(metric_histogram),
        cmocka_unit_test(metric_remove),
    };

    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
