/* column_kinds.h - one column of each kind, as column_rows.h makes them. */
#ifndef TEST_COLUMN_KINDS_H
#define TEST_COLUMN_KINDS_H
#include "column_rows.h"

static const struct def defs[] = {
    {.name = "id", .type = INT64, .keys = true},
    {.name = "flag", .type = BOOL},
    {.name = "small", .type = INT8},
    {.name = "num", .type = INT32},
    {.name = "big", .type = INT64},
    {.name = "real", .type = FLOAT},
    {.name = "big_real", .type = DOUBLE},
    {.name = "txt", .type = VARCHAR},
    {.name = "longs", .type = ARRAY},
    {.name = "tags", .type = ARRAY, .texts = true},
    {.name = "js", .type = JSON},
    {.name = "$meta", .type = JSON},
    {.name = "bin", .type = BINARY_VECTOR},
    {.name = "vec", .type = FLOAT_VECTOR},
    {.name = "half", .type = FLOAT16_VECTOR},
    {.name = "brain", .type = BFLOAT16_VECTOR},
    {.name = "sparse", .type = SPARSE_VECTOR},
    {.name = "bytes", .type = INT8_VECTOR},
    {.name = "n_big", .type = INT64, .nullable = true},
    {.name = "n_flag", .type = BOOL, .nullable = true},
    {.name = "n_real", .type = FLOAT, .nullable = true},
    {.name = "n_txt", .type = VARCHAR, .nullable = true},
    {.name = "n_tags", .type = ARRAY, .nullable = true, .texts = true},
    {.name = "n_js", .type = JSON, .nullable = true},
};
enum { N_DEFS = sizeof(defs) / sizeof(*defs) };
#endif
