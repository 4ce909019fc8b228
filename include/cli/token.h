/*
 * token.h - milvus-cdc token: a new random token for the control endpoint.
 */
#ifndef CLI_TOKEN_H
#define CLI_TOKEN_H

/* argv[0] is "token". Prints the token, and the line for api.tokens with its hash. Returns the exit code. */
int cli_token(int argc, char **argv);
#endif
