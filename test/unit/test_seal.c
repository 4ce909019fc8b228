/* test_seal.c - keys from files, and what is sealed with them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"
#include "registry/seal.h"

static char dir[40], path[60];
static struct err err;

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/test_seal.XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof(path), "%s/key", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    rmdir(dir);
    return 0;
}

static void write_key(const void *data, size_t n)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
    assert_int_equal(chmod(path, 0600), 0);
}

static struct seal *open_ok(void)
{
    struct seal *s = seal_open(path, &err);

    if (!s)
        fail_msg("%s", err.text);
    return s;
}

static void refused(const char *part)
{
    assert_null(seal_open(path, &err));
    assert_int_equal(err.cls, ERRC_USER);
    if (!strstr(err.text, part) || !strstr(err.text, path))
        fail_msg("\"%s\" is not in \"%s\"", part, err.text);
}

static void texts_come_back(void **state)
{
    static const char *const texts[] = {"", "x", "{\"token\":\"root:Milvus\"}", "sealed:2:"};
    struct seal *s;

    (void)state;
    assert_int_equal(seal_genkey(path, &err), 0);
    s = open_ok();
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        char *a = seal_put(s, texts[i]), *b = seal_put(s, texts[i]), *open = seal_get(s, a, &err);

        assert_true(seal_is(a));
        assert_string_not_equal(a, b); /* a nonce of its own each time */
        assert_string_equal(open, texts[i]);
        assert_null(strstr(a, "Milvus"));
        free(a);
        free(b);
        free(open);
    }
    seal_free(s);
}

static void open_texts_pass(void **state)
{
    char *a = seal_put(NULL, "{}"), *b = seal_get(NULL, "{\"a\":1}", &err);

    (void)state;
    assert_string_equal(a, "{}");
    assert_string_equal(b, "{\"a\":1}");
    free(a);
    free(b);
}

/* Each change of each byte is noticed. */
static void changed_texts_are_refused(void **state)
{
    struct seal *s;
    char *sealed;

    (void)state;
    assert_int_equal(seal_genkey(path, &err), 0);
    s = open_ok();
    sealed = seal_put(s, "secret");
    for (char *p = sealed + strlen("sealed:1:"); *p; p++) {
        char was = *p;

        if (was == '=')
            continue;
        *p = was == 'A' ? 'Q' : 'A'; /* differs in bits that count, also of the last character */
        assert_null(seal_get(s, sealed, &err));
        assert_int_equal(err.code, ERR_AUTH);
        *p = was;
    }
    for (size_t n = strlen(sealed) - 1; n >= strlen("sealed:1:"); n--) {
        sealed[n] = '\0';
        assert_null(seal_get(s, sealed, &err));
    }
    free(sealed);
    seal_free(s);
}

static void keys_have_three_forms(void **state)
{
    uint8_t raw[32];
    struct seal *s;
    char *sealed, *open;

    (void)state;
    memset(raw, 0xab, sizeof(raw));
    write_key(raw, sizeof(raw));
    s = open_ok();
    sealed = seal_put(s, "text");
    seal_free(s);
    write_key("abababababababababababababababababababababababababababababababab\n", 65);
    s = open_ok();
    open = seal_get(s, sealed, &err);
    assert_string_equal(open, "text");
    free(open);
    seal_free(s);
    write_key("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=\r\n", 46);
    s = open_ok();
    open = seal_get(s, sealed, &err);
    assert_string_equal(open, "text");
    free(open);
    seal_free(s);
    free(sealed);
}

static void bad_keys_are_told(void **state)
{
    static const char *const bad[] = {"", "short", "zzababababababababababababababababababababababababababababababab",
                                      "q6urq6s="};
    char many[300];

    (void)state;
    refused("cannot open it");
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        write_key(bad[i], strlen(bad[i]));
        refused("is not a key");
        if (*bad[i])
            assert_null(strstr(err.text, bad[i]));
    }
    memset(many, 'a', sizeof(many));
    write_key(many, sizeof(many));
    refused("is not a key");
    assert_int_equal(chmod(path, 0640), 0);
    refused("chmod 600");
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    refused("must be a file");
}

static void a_key_is_not_overwritten(void **state)
{
    struct stat st;

    (void)state;
    assert_int_equal(seal_genkey(path, &err), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(seal_genkey(path, &err), ERR_IO);
    assert_non_null(strstr(err.text, "exists"));
}

static void proofs(void **state)
{
    struct seal *s, *other;
    char *proof, *again;

    (void)state;
    assert_int_equal(seal_check(NULL, NULL, &proof, &err), 0);
    assert_null(proof);
    assert_int_equal(seal_genkey(path, &err), 0);
    s = open_ok();
    unlink(path);
    assert_int_equal(seal_genkey(path, &err), 0);
    other = open_ok();
    assert_int_equal(seal_check(s, NULL, &proof, &err), 0);
    assert_non_null(proof);
    assert_int_equal(seal_check(s, proof, &again, &err), 0);
    assert_null(again);
    assert_int_equal(seal_check(other, proof, &again, &err), ERR_AUTH);
    assert_non_null(strstr(err.text, "another key"));
    assert_int_equal(seal_check(NULL, proof, &again, &err), ERR_AUTH);
    assert_non_null(strstr(err.text, "set registry.keyFile"));
    free(proof);
    seal_free(s);
    seal_free(other);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(texts_come_back),   TEST(open_texts_pass),          TEST(changed_texts_are_refused),
        TEST(keys_have_three_forms), TEST(bad_keys_are_told),    TEST(a_key_is_not_overwritten),
        TEST(proofs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
