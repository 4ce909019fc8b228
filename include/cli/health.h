/*
 * health.h - milvus-cdc health: asks a daemon's GET /health, for cron and monitors (Nagios convention).
 */
#ifndef CLI_HEALTH_H
#define CLI_HEALTH_H

/* argv[0] is "health". Prints one line; the exit code: 0 ok, 1 warning, 2 critical (also: no answer in time), 3 unknown. */
int cli_health(int argc, char **argv);
#endif
