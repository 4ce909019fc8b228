/*
 * registry.h - milvus-cdc registry migrate|export|import|genkey: the task registry from the command line. Blocks.
 */
#ifndef CLI_REGISTRY_H
#define CLI_REGISTRY_H

/* argv[0] is "registry". Returns the exit code: 0, 1 with a text on standard error, 2 for wrong arguments. */
int cli_registry(int argc, char **argv);
#endif
