/*
 * mem.h - allocation that does not fail, for small control objects.
 *
 * x* functions abort with a message when memory is out: positions are in the registry, a restart
 * resumes.  Sizes chosen by a peer must be checked against a limit first or use plain malloc.
 */
#ifndef BASE_MEM_H
#define BASE_MEM_H
#include <stdarg.h>
#include <stddef.h>

void *xmalloc(size_t size) __attribute__((malloc, returns_nonnull));
void *xcalloc(size_t n, size_t size) __attribute__((malloc, returns_nonnull));
void *xrealloc(void *p, size_t size);
/* Copies text; NULL gives NULL. */
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2), returns_nonnull));

/* Replaces *slot, which is NULL or on the heap, by a copy of text; NULL clears it. */
void set_text(char **slot, const char *text);

/* Frees *p (any pointer to pointer) and sets it to NULL. */
#define xfree(pp) xfree_((void *)(pp))
void xfree_(void *pp);

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
#endif
