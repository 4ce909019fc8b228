/* base64.h - standard alphabet with padding (RFC 4648 section 4). */
#ifndef BASE_BASE64_H
#define BASE_BASE64_H
#include <stddef.h>
#include <stdint.h>

/* Caller frees. */
char *base64_encode(const void *data, size_t len);
/* Decodes; *ret_data is freed by the caller.  0 or -1 when text is not base64. */
int base64_decode(const char *text, uint8_t **ret_data, size_t *ret_len);
#endif
