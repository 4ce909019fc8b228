/* verify.h - milvus-cdc verify: has a daemon compare the source and the target of a task, and prints what it found. */
#ifndef CLI_VERIFY_H
#define CLI_VERIFY_H

/* argv[0] is "verify". The exit code: 0 equal (or begun), 1 different, 2 it could not be compared. */
int cli_verify(int argc, char **argv);
#endif
