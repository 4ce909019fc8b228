/*
 * raw.h - what the raw readers report: the time since they began, their CPU time, their memory.
 * Included by one file of a program.
 */
#ifndef TEST_RAW_H
#define TEST_RAW_H
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* Not rusage's: a program inherits that of whoever started it. */
static long peak_kib(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[200];
    long kib = -1;

    while (f && kib < 0 && fgets(line, sizeof(line), f))
        (void)sscanf(line, "VmHWM: %ld", &kib);
    if (f)
        fclose(f);
    return kib;
}

/* what: messages or entries. */
static void report(const char *what, unsigned long long n, unsigned long long bytes, double begin)
{
    printf("{\"bytes\": %llu, \"%s\": %llu, \"seconds\": %.3f, \"cpu_seconds\": %.3f, \"peak_kib\": %ld}\n", bytes,
           what, n, now() - begin, cpu_seconds(), peak_kib());
}
#endif
