/*
 * rawnats.c - the least that reads a stream of NATS JetStream: fetches the messages from the first one to the end that
 * the stream had when this began, and throws them away. What our reader is measured against.
 *
 *   rawnats --server IP:PORT --stream NAME
 *   {"bytes": ..., "messages": ..., "seconds": ..., "cpu_seconds": ..., "peak_kib": ...}
 * No TLS, no login.
 */
#include <arpa/inet.h>
#include <jansson.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "raw.h"

enum {
    BUFFER = 1 << 20,
    FETCHES = 2, /* at a time, so that the server never waits for one */
};
/* Below what a server lets wait for a client (max_pending, 64 MiB). */
#define FETCH "{\"batch\":1000000,\"max_bytes\":16777216,\"expires\":60000000000}"

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "rawnats: %s: %s\n", what, why);
    exit(1);
}

/* ---- the connection ------------------------------------------------------------------------------ */

struct input {
    int fd;
    size_t begin, end;
    char data[BUFFER];
};

static void more(struct input *in)
{
    ssize_t n;

    if (in->begin == in->end)
        in->begin = in->end = 0;
    if (in->end == BUFFER) {
        if (in->begin == 0)
            die("receiving", "the line is too long");
        memmove(in->data, in->data + in->begin, in->end - in->begin);
        in->end -= in->begin;
        in->begin = 0;
    }
    n = recv(in->fd, in->data + in->end, BUFFER - in->end, 0);
    if (n <= 0)
        die("receiving", "connection lost");
    in->end += (size_t)n;
}

/* Without CR LF; valid until the next call. */
static char *line(struct input *in)
{
    char *lf, *text;

    while (!(lf = memchr(in->data + in->begin, '\n', in->end - in->begin)))
        more(in);
    text = in->data + in->begin;
    in->begin = (size_t)(lf - in->data) + 1;
    *lf = '\0';
    if (lf > text && lf[-1] == '\r')
        lf[-1] = '\0';
    return text;
}

static void skip(struct input *in, size_t n)
{
    while (n > 0) {
        size_t here = in->end - in->begin < n ? in->end - in->begin : n;

        in->begin += here;
        n -= here;
        if (n > 0)
            more(in);
    }
}

static void put(int fd, const char *text)
{
    size_t n = strlen(text);

    if (send(fd, text, n, 0) != (ssize_t)n)
        die("sending", "connection lost");
}

static void publish(int fd, const char *api, const char *of, const char *payload)
{
    char text[1000];

    snprintf(text, sizeof(text), "PUB $JS.API.%s.%s inbox %zu\r\n%s\r\n", api, of, strlen(payload), payload);
    put(fd, text);
}

struct message {
    size_t len, hdr_len; /* of headers and body; of headers */
};

/* The next message; its payload and CR LF follow in the input. */
static struct message next(struct input *in)
{
    for (;;) {
        char *text = line(in), *last = strrchr(text, ' '), *before;
        bool with_headers = strncmp(text, "HMSG ", 5) == 0;
        struct message m = {0};

        if (strncmp(text, "-ERR", 4) == 0)
            die("server", text);
        if (strncmp(text, "PING", 4) == 0)
            put(in->fd, "PONG\r\n");
        if (!last || (!with_headers && strncmp(text, "MSG ", 4) != 0))
            continue;
        m.len = strtoul(last + 1, NULL, 10);
        *last = '\0';
        before = strrchr(text, ' ');
        if (with_headers && before)
            m.hdr_len = strtoul(before + 1, NULL, 10);
        return m;
    }
}

/* ---- the stream -------------------------------------------------------------------------------------- */

/* An ephemeral consumer from the first message. ret_of: what its fetches are asked of. Returns the messages it has. */
static uint64_t make_consumer(struct input *in, const char *stream, char *ret_of, size_t size)
{
    char config[400];
    struct message m;
    json_t *answer, *pending;
    const char *name;
    uint64_t n;

    snprintf(config, sizeof(config),
             "{\"stream_name\":\"%s\",\"config\":{\"deliver_policy\":\"all\",\"ack_policy\":\"none\","
             "\"replay_policy\":\"instant\",\"mem_storage\":true,\"num_replicas\":1,"
             "\"inactive_threshold\":60000000000}}",
             stream);
    publish(in->fd, "CONSUMER.CREATE", stream, config);
    m = next(in);
    while (in->end - in->begin < m.len + 2)
        more(in);
    answer = json_loadb(in->data + in->begin + m.hdr_len, m.len - m.hdr_len, 0, NULL);
    name = json_string_value(json_object_get(answer, "name"));
    pending = json_object_get(answer, "num_pending");
    if (!name || !json_is_integer(pending))
        die(stream, "the consumer could not be made");
    snprintf(ret_of, size, "%s.%s", stream, name);
    n = (uint64_t)json_integer_value(pending);
    skip(in, m.len + 2);
    json_decref(answer);
    return n;
}

struct count {
    unsigned long long bytes, messages;
};

static void read_all(struct input *in, const char *stream, struct count *c)
{
    char of[300];
    uint64_t wanted = make_consumer(in, stream, of, sizeof(of));

    for (int i = 0; i < FETCHES; i++)
        publish(in->fd, "CONSUMER.MSG.NEXT", of, FETCH);
    while (c->messages < wanted) {
        struct message m = next(in);

        if (m.len == m.hdr_len) { /* a status: that fetch has had its bytes */
            publish(in->fd, "CONSUMER.MSG.NEXT", of, FETCH);
        } else {
            c->messages++;
            c->bytes += m.len - m.hdr_len;
        }
        skip(in, m.len + 2);
    }
    publish(in->fd, "CONSUMER.DELETE", of, "");
}

static int connect_to(char *address)
{
    struct sockaddr_in sa = {.sin_family = AF_INET};
    char *colon = strchr(address, ':');
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (!colon)
        die(address, "not IP:PORT");
    *colon = '\0';
    sa.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, address, &sa.sin_addr) != 1)
        die(address, "not an IPv4 address");
    if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
        die(address, "no connection");
    return fd;
}

int main(int argc, char **argv)
{
    static struct input in;
    char *server = NULL, *stream = NULL;
    struct count c = {0};
    double begin = now();

    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            die(argv[i], "needs a value");
        if (strcmp(argv[i], "--server") == 0)
            server = argv[i + 1];
        else if (strcmp(argv[i], "--stream") == 0)
            stream = argv[i + 1];
        else
            die(argv[i], "not known");
    }
    if (!server || !stream || strlen(stream) > 100)
        die("arguments", "--server or --stream is missing, or too long");
    in.fd = connect_to(server);
    put(in.fd, "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB inbox 1\r\n");
    read_all(&in, stream, &c);
    report("messages", c.messages, c.bytes, begin);
    return 0;
}
