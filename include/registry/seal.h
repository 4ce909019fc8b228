/*
 * seal.h - texts with secrets as they lie in a registry: encrypted and authenticated (libsodium's XChaCha20-Poly1305)
 * with a key from a file. A sealed text begins with "sealed:1:", which no JSON does; others are as they are.
 */
#ifndef REGISTRY_SEAL_H
#define REGISTRY_SEAL_H
#include <stdbool.h>

struct err;
struct seal;

/* Reads the key: 32 bytes raw, as hex or as base64; readable by its owner only. NULL: a USER error that names it. */
struct seal *seal_open(const char *path, struct err *err);
/* Forgets the key. NULL is allowed. */
void seal_free(struct seal *s);
/* Makes a file with a new key, mode 0600. It must not exist. */
int seal_genkey(const char *path, struct err *err);

/* s NULL: no key, a copy. Caller frees. */
char *seal_put(const struct seal *s, const char *text);
/* The text again; one that is not sealed is copied. NULL: no key, or not this key (USER). Caller frees. */
char *seal_get(const struct seal *s, const char *text, struct err *err);
bool seal_is(const char *text);

/*
 * A registry keeps one sealed word as proof of its key. proof: the one it has, or NULL. *ret_new: what it must store
 * now (caller frees), or NULL. Error: the key is missing or another one.
 */
int seal_check(const struct seal *s, const char *proof, char **ret_new, struct err *err);
#endif
