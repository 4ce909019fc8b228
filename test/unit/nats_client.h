/*
 * nats_client.h - a blocking NATS client for tests: makes streams and writes to them, as Milvus does.
 * Knows nothing of the code under test.  Included by one test file only.
 */
#ifndef TEST_NATS_CLIENT_H
#define TEST_NATS_CLIENT_H
#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct nats_client {
    int fd;
    FILE *in;
};

static void client_send(struct nats_client *c, const void *data, size_t len)
{
    const char *p = data;

    while (len > 0) {
        ssize_t n = write(c->fd, p, len);

        if (n < 0)
            fail_msg("write to NATS: %s", strerror(errno));
        p += n;
        len -= (size_t)n;
    }
}

/* The payload of the next message (freed by the caller), NULL after a PONG. Fails on -ERR. */
static char *client_read(struct nats_client *c)
{
    char line[70000];

    while (fgets(line, sizeof(line), c->in)) {
        char *last = strrchr(line, ' '), *data;
        size_t len;

        if (strncmp(line, "PING", 4) == 0)
            client_send(c, "PONG\r\n", 6);
        if (strncmp(line, "PONG", 4) == 0)
            return NULL;
        if (strncmp(line, "-ERR", 4) == 0)
            fail_msg("NATS: %s", line);
        if (strncmp(line, "MSG", 3) != 0 && strncmp(line, "HMSG", 4) != 0)
            continue;
        len = strtoul(last + 1, NULL, 10);
        data = calloc(1, len + 3);
        if (fread(data, 1, len + 2, c->in) != len + 2)
            fail_msg("NATS: connection lost in a message");
        data[len] = 0;
        return data;
    }
    fail_msg("NATS: connection lost");
    return NULL;
}

/* False: no connection. login: more fields of CONNECT, or "". */
static bool client_open(struct nats_client *c, const char *address, const char *login)
{
    struct sockaddr_in sa = {.sin_family = AF_INET};
    const char *colon = strchr(address, ':');
    char text[300];
    int one = 1;

    sa.sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(c->fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
        close(c->fd);
        return false;
    }
    c->in = fdopen(c->fd, "rb");
    snprintf(text, sizeof(text),
             "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true%s}\r\nSUB _INBOX.test.> 1\r\nPING\r\n",
             login);
    client_send(c, text, strlen(text));
    assert_null(client_read(c));
    return true;
}

static void client_close(struct nats_client *c)
{
    fclose(c->in);
}

static void client_publish(struct nats_client *c, const char *subject, const char *headers, const void *data,
                           size_t len)
{
    char line[400];
    size_t hdr = strlen(headers);

    if (hdr)
        snprintf(line, sizeof(line), "HPUB %s _INBOX.test.r %zu %zu\r\n", subject, hdr, hdr + len);
    else
        snprintf(line, sizeof(line), "PUB %s _INBOX.test.r %zu\r\n", subject, len);
    client_send(c, line, strlen(line));
    client_send(c, headers, hdr);
    client_send(c, data, len);
    client_send(c, "\r\n", 2);
}

static json_t *client_reply(struct nats_client *c)
{
    char *text = client_read(c);
    json_t *o = json_loads(text, 0, NULL), *e = json_object_get(o, "error");

    if (!o || e)
        fail_msg("NATS answers: %s", text);
    free(text);
    return o;
}

static json_t *client_request(struct nats_client *c, const char *api, const char *stream, const char *payload)
{
    char subject[300];

    snprintf(subject, sizeof(subject), "$JS.API.%s.%s", api, stream);
    client_publish(c, subject, "", payload, strlen(payload));
    return client_reply(c);
}

/* As natsmq makes them (source.md 7.3). more: further fields, beginning with a comma, or "". */
static void client_make_stream(struct nats_client *c, const char *name, const char *more)
{
    char payload[500];

    snprintf(payload, sizeof(payload),
             "{\"name\":\"%s\",\"subjects\":[\"%s\"],\"retention\":\"limits\",\"storage\":\"file\",\"discard\":\"old\","
             "\"max_age\":259200000000000,\"num_replicas\":1%s}",
             name, name, more);
    json_decref(client_request(c, "STREAM.CREATE", name, payload));
}

/* Messages from..to, each "<stream>#<n>#xxxx" of size bytes. */
static void client_fill(struct nats_client *c, const char *stream, unsigned from, unsigned to, size_t size,
                        const char *headers)
{
    enum { WINDOW = 200 };
    char *data = malloc(size + 300);
    unsigned acked = from;

    memset(data, 'x', size + 300);
    for (unsigned i = from; i <= to; i++) {
        int n = snprintf(data, 300, "%s#%u#", stream, i);

        data[n] = 'x';
        client_publish(c, stream, headers, data, size > (size_t)n ? size : (size_t)n);
        while (i + 1 - acked > (i == to ? 0 : WINDOW)) {
            json_decref(client_reply(c));
            acked++;
        }
    }
    free(data);
}
#endif
