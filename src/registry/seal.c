#include "registry/seal.h"

#include "base/base64.h"
#include "base/err.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREFIX "sealed:1:"
#define PROOF "milvus-cdc registry"

enum {
    KEY = crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
    NONCE = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
    TAG = crypto_aead_xchacha20poly1305_ietf_ABYTES,
    MAX_FILE = 200
};

struct seal {
    uint8_t key[KEY];
    char *path;
};

static int init(struct err *err)
{
    return sodium_init() < 0 ? err_set(err, ERR_INTERNAL, ERRC_USER, "libsodium does not work on this machine") : 0;
}

static int sys_error(const char *path, const char *what, struct err *err)
{
    return err_set(err, ERR_IO, ERRC_USER, "key file %s: cannot %s: %s", path, what, strerror(errno));
}

/* Raw, or a line of hex or base64. */
static bool parse_key(const char *text, size_t n, uint8_t *ret_key)
{
    char line[MAX_FILE + 1];
    uint8_t *raw;
    size_t len, bin;
    bool ok;

    if (n == KEY) {
        memcpy(ret_key, text, KEY);
        return true;
    }
    while (n && strchr("\r\n \t", text[n - 1]))
        n--;
    memcpy(line, text, n);
    line[n] = '\0';
    if (n == 2 * KEY)
        return sodium_hex2bin(ret_key, KEY, line, n, NULL, &bin, NULL) == 0 && bin == KEY;
    if (base64_decode(line, &raw, &len))
        return false;
    ok = len == KEY;
    if (ok)
        memcpy(ret_key, raw, KEY);
    explicit_bzero(raw, len);
    free(raw);
    explicit_bzero(line, sizeof(line));
    return ok;
}

static int read_key(struct seal *s, int fd, struct err *err)
{
    char text[MAX_FILE];
    struct stat st;
    ssize_t n;
    bool ok;

    if (fstat(fd, &st) < 0)
        return sys_error(s->path, "look at it", err);
    if (!S_ISREG(st.st_mode) || (st.st_mode & 077))
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "key file %s: must be a file that only its owner may read (chmod 600)", s->path);
    n = read(fd, text, sizeof(text));
    if (n < 0)
        return sys_error(s->path, "read it", err);
    ok = parse_key(text, (size_t)n, s->key);
    explicit_bzero(text, sizeof(text));
    return ok ? 0
              : err_set(err, ERR_INVALID, ERRC_USER,
                        "key file %s: is not a key: 32 bytes, raw, as hex or as base64 (milvus-cdc registry genkey "
                        "makes one)",
                        s->path);
}

struct seal *seal_open(const char *path, struct err *err)
{
    struct seal *s;
    int fd, rc;

    if (init(err))
        return NULL;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        sys_error(path, "open it", err);
        return NULL;
    }
    s = xcalloc(1, sizeof(*s));
    s->path = xstrdup(path);
    rc = read_key(s, fd, err);
    close(fd);
    if (rc == 0)
        return s;
    seal_free(s);
    return NULL;
}

void seal_free(struct seal *s)
{
    if (!s)
        return;
    explicit_bzero(s->key, sizeof(s->key));
    free(s->path);
    free(s);
}

int seal_genkey(const char *path, struct err *err)
{
    uint8_t key[KEY];
    char hex[2 * KEY + 2];
    int fd, rc = 0;

    if (init(err))
        return ERR_INTERNAL;
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return sys_error(path, "make it", err);
    randombytes_buf(key, sizeof(key));
    sodium_bin2hex(hex, sizeof(hex), key, sizeof(key));
    hex[2 * KEY] = '\n';
    if (write(fd, hex, 2 * KEY + 1) != 2 * KEY + 1 || fsync(fd) < 0)
        rc = sys_error(path, "write it", err);
    close(fd);
    explicit_bzero(key, sizeof(key));
    explicit_bzero(hex, sizeof(hex));
    return rc;
}

bool seal_is(const char *text)
{
    return strncmp(text, PREFIX, sizeof(PREFIX) - 1) == 0;
}

char *seal_put(const struct seal *s, const char *text)
{
    size_t len = strlen(text);
    unsigned long long sealed;
    uint8_t *raw;
    char *b64, *out;

    if (!s)
        return xstrdup(text);
    raw = xmalloc(NONCE + len + TAG);
    randombytes_buf(raw, NONCE);
    crypto_aead_xchacha20poly1305_ietf_encrypt(raw + NONCE, &sealed, (const uint8_t *)text, len,
                                               (const uint8_t *)PREFIX, sizeof(PREFIX) - 1, NULL, raw, s->key);
    b64 = base64_encode(raw, NONCE + (size_t)sealed);
    out = xasprintf(PREFIX "%s", b64);
    free(b64);
    free(raw);
    return out;
}

static char *decrypt(const struct seal *s, const uint8_t *raw, size_t len)
{
    unsigned long long n;
    char *text;

    if (len < NONCE + TAG)
        return NULL;
    text = xcalloc(1, len - NONCE - TAG + 1);
    if (crypto_aead_xchacha20poly1305_ietf_decrypt((uint8_t *)text, &n, NULL, raw + NONCE, len - NONCE,
                                                   (const uint8_t *)PREFIX, sizeof(PREFIX) - 1, raw, s->key) == 0)
        return text;
    free(text);
    return NULL;
}

char *seal_get(const struct seal *s, const char *text, struct err *err)
{
    uint8_t *raw = NULL;
    size_t len;
    char *out = NULL;

    if (!seal_is(text))
        return xstrdup(text);
    if (!s) {
        err_set(err, ERR_AUTH, ERRC_USER, "the registry is sealed: set registry.keyFile to the file with its key");
        return NULL;
    }
    if (base64_decode(text + sizeof(PREFIX) - 1, &raw, &len) == 0)
        out = decrypt(s, raw, len);
    free(raw);
    if (!out)
        err_set(err, ERR_AUTH, ERRC_USER,
                "the registry is sealed with another key than that of registry.keyFile (%s)", s->path);
    return out;
}

int seal_check(const struct seal *s, const char *proof, char **ret_new, struct err *err)
{
    char *text;

    *ret_new = NULL;
    if (!proof) {
        *ret_new = s ? seal_put(s, PROOF) : NULL;
        return 0;
    }
    text = seal_get(s, proof, err);
    if (!text)
        return ERR_AUTH;
    free(text);
    return 0;
}
