/*
 * grpc_priv.h - texts and numbers of gRPC that need no connection (status.c).
 */
#ifndef NET_GRPC_PRIV_H
#define NET_GRPC_PRIV_H
#include <stddef.h>
#include <stdint.h>

enum grpc_status {
    GRPC_OK = 0,
    GRPC_CANCELLED = 1,
    GRPC_UNKNOWN = 2,
    GRPC_DEADLINE_EXCEEDED = 4,
    GRPC_PERMISSION_DENIED = 7,
    GRPC_RESOURCE_EXHAUSTED = 8,
    GRPC_UNIMPLEMENTED = 12,
    GRPC_INTERNAL = 13,
    GRPC_UNAVAILABLE = 14,
    GRPC_UNAUTHENTICATED = 16,
};

/* "UNAVAILABLE"; "status 99" is "UNRECOGNIZED". */
const char *grpc_status_name(int status);
/* A header's value; what is no number is UNKNOWN (2). */
int grpc_status_parse(const char *text);
/* The status of an HTTP answer without grpc-status (grpc: doc/http-grpc-status-mapping.md). */
int grpc_status_of_http(int http_status);
/* The status of a stream that was reset (PROTOCOL-HTTP2.md, "Errors"). */
int grpc_status_of_reset(uint32_t h2_code);

/* Decodes %xx in place; what is no valid escape stays. */
void grpc_percent_decode(char *text);
/* The value of grpc-timeout: at most 8 digits and a unit. */
void grpc_timeout_format(uint64_t ms, char *buf, size_t size);
#endif
