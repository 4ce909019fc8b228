#include "cli/token.h"

#define ERR_STATE openssl_ERR_STATE /* a type of OpenSSL, a code of base/err.h */
#include <openssl/sha.h>
#undef ERR_STATE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/hex.h"

enum { RANDOM_BYTES = 32 };

static const char usage[] =
    "usage: milvus-cdc token [NAME]\n"
    "Prints a new random token for the control endpoint, and the line with its hash for api.tokens in the configuration.\n"
    "The token itself is stored nowhere: keep it where the clients read it (mode 0600), for --token-file.\n";

/* It goes into YAML and logs as it is. */
static int name_ok(const char *name)
{
    return *name && strlen(name) <= 64 &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == strlen(name);
}

int cli_token(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "admin";
    uint8_t raw[RANDOM_BYTES], hash[SHA256_DIGEST_LENGTH];
    char token[2 * RANDOM_BYTES + 1], hex[2 * sizeof(hash) + 1];

    if (argc > 1 && (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)) {
        fputs(usage, stdout);
        return 0;
    }
    if (argc > 2 || !name_ok(name) || *name == '-') {
        fputs(usage, stderr);
        return 2;
    }
    if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw)) {
        perror("milvus-cdc token: no random numbers");
        return 1;
    }
    hex_encode(raw, sizeof(raw), token);
    SHA256((const unsigned char *)token, strlen(token), hash);
    hex_encode(hash, sizeof(hash), hex);
    printf("token: %s\n\nIn the configuration:\napi:\n  tokens:\n    - {name: %s, sha256: %s}\n", token, name, hex);
    explicit_bzero(raw, sizeof(raw));
    explicit_bzero(token, sizeof(token));
    return 0;
}
