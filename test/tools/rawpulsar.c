/*
 * rawpulsar.c - the least that reads a topic of Pulsar: takes the entries from the first one to the end that the
 * topic had when this began, and throws them away. What our reader is measured against.
 *
 *   rawpulsar --broker IP:PORT --topic persistent://TENANT/NAMESPACE/NAME
 *   {"bytes": ..., "entries": ..., "seconds": ..., "cpu_seconds": ..., "peak_kib": ...}
 * One broker that has the topic (a standalone one), no TLS, no login. bytes: of the entries as they are stored.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "pulsar.pb-c.h"
#include "raw.h"

enum {
    FRAME_MAX = 64 << 20,
    ALL_PERMITS = 1 << 30,
    CONSUMER = 1,
};

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "rawpulsar: %s: %s\n", what, why);
    exit(1);
}

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void send_cmd(int fd, Pulsar__BaseCommand *cmd, Pulsar__BaseCommand__Type type)
{
    size_t n;
    uint8_t *b;
    uint32_t lens[2];

    cmd->type = type;
    n = pulsar__base_command__get_packed_size(cmd);
    b = malloc(8 + n);
    if (!b)
        die("memory", "none");
    lens[0] = htonl((uint32_t)n + 4);
    lens[1] = htonl((uint32_t)n);
    memcpy(b, lens, 8);
    pulsar__base_command__pack(cmd, b + 8);
    if (send(fd, b, 8 + n, 0) != (ssize_t)(8 + n))
        die("sending", "connection lost");
    free(b);
}

static void recv_all(int fd, uint8_t *p, size_t n)
{
    while (n > 0) {
        ssize_t got = recv(fd, p, n, 0);

        if (got <= 0)
            die("receiving", "connection lost");
        p += got;
        n -= (size_t)got;
    }
}

/* The next command; *ret_rest: bytes behind it. */
static Pulsar__BaseCommand *next(int fd, uint8_t *frame, size_t *ret_rest)
{
    Pulsar__BaseCommand *cmd;
    uint8_t head[4];
    size_t len, n;

    recv_all(fd, head, 4);
    len = be32(head);
    if (len < 4 || len > FRAME_MAX)
        die("receiving", "not a frame");
    recv_all(fd, frame, len);
    n = be32(frame);
    cmd = n <= len - 4 ? pulsar__base_command__unpack(NULL, n, frame + 4) : NULL;
    if (!cmd)
        die("receiving", "not a command");
    *ret_rest = len - 4 - n;
    return cmd;
}

/* Waits for that type. */
static Pulsar__BaseCommand *expect(int fd, uint8_t *frame, Pulsar__BaseCommand__Type type)
{
    Pulsar__BaseCommand *cmd;
    size_t rest;

    while ((cmd = next(fd, frame, &rest))->type != type) {
        if (cmd->type == PULSAR__BASE_COMMAND__TYPE__ERROR && cmd->error)
            die("broker", cmd->error->message);
        pulsar__base_command__free_unpacked(cmd, NULL);
    }
    return cmd;
}

static void done(Pulsar__BaseCommand *cmd)
{
    pulsar__base_command__free_unpacked(cmd, NULL);
}

static void greet(int fd, uint8_t *frame, char *topic)
{
    static char version[] = "rawpulsar";
    Pulsar__CommandConnect c = PULSAR__COMMAND_CONNECT__INIT;
    Pulsar__CommandLookupTopic l = PULSAR__COMMAND_LOOKUP_TOPIC__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT, look = PULSAR__BASE_COMMAND__INIT;

    c.client_version = version;
    c.has_protocol_version = 1;
    c.protocol_version = 19;
    cmd.connect = &c;
    send_cmd(fd, &cmd, PULSAR__BASE_COMMAND__TYPE__CONNECT);
    done(expect(fd, frame, PULSAR__BASE_COMMAND__TYPE__CONNECTED));
    l.topic = topic;
    look.lookup = &l;
    send_cmd(fd, &look, PULSAR__BASE_COMMAND__TYPE__LOOKUP); /* has the broker load the topic */
    done(expect(fd, frame, PULSAR__BASE_COMMAND__TYPE__LOOKUP_RESPONSE));
}

static void subscribe(int fd, uint8_t *frame, char *topic)
{
    static char name[] = "rawpulsar";
    Pulsar__MessageIdData id = PULSAR__MESSAGE_ID_DATA__INIT;
    Pulsar__CommandSubscribe s = PULSAR__COMMAND_SUBSCRIBE__INIT;
    Pulsar__BaseCommand cmd = PULSAR__BASE_COMMAND__INIT;

    id.ledger_id = id.entry_id = UINT64_MAX; /* the earliest */
    s.topic = topic;
    s.subscription = name;
    s.consumer_id = CONSUMER;
    s.has_durable = 1;
    s.has_force_topic_creation = 1;
    s.start_message_id = &id;
    cmd.subscribe = &s;
    send_cmd(fd, &cmd, PULSAR__BASE_COMMAND__TYPE__SUBSCRIBE);
    done(expect(fd, frame, PULSAR__BASE_COMMAND__TYPE__SUCCESS));
}

struct count {
    unsigned long long bytes, entries;
};

static void read_all(int fd, uint8_t *frame, struct count *c)
{
    Pulsar__CommandGetLastMessageId g = PULSAR__COMMAND_GET_LAST_MESSAGE_ID__INIT;
    Pulsar__CommandFlow f = PULSAR__COMMAND_FLOW__INIT;
    Pulsar__BaseCommand ask = PULSAR__BASE_COMMAND__INIT, flow = PULSAR__BASE_COMMAND__INIT, *a;
    uint64_t ledger, entry, at_ledger = 0, at_entry = 0;

    g.consumer_id = f.consumer_id = CONSUMER;
    f.message_permits = ALL_PERMITS;
    ask.get_last_message_id = &g;
    send_cmd(fd, &ask, PULSAR__BASE_COMMAND__TYPE__GET_LAST_MESSAGE_ID);
    a = expect(fd, frame, PULSAR__BASE_COMMAND__TYPE__GET_LAST_MESSAGE_ID_RESPONSE);
    ledger = a->get_last_message_id_response->last_message_id->ledger_id;
    entry = a->get_last_message_id_response->last_message_id->entry_id;
    done(a);
    if (entry == UINT64_MAX)
        return; /* empty */
    flow.flow = &f;
    send_cmd(fd, &flow, PULSAR__BASE_COMMAND__TYPE__FLOW);
    while (at_ledger != ledger || at_entry != entry) {
        size_t rest;

        a = next(fd, frame, &rest);
        if (a->type == PULSAR__BASE_COMMAND__TYPE__MESSAGE && a->message) {
            at_ledger = a->message->message_id->ledger_id;
            at_entry = a->message->message_id->entry_id;
            c->entries++;
            c->bytes += rest;
        }
        done(a);
    }
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
    char *broker = NULL, *topic = NULL;
    uint8_t *frame = malloc(FRAME_MAX);
    struct count c = {0};
    double begin = now();
    int fd;

    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            die(argv[i], "needs a value");
        if (strcmp(argv[i], "--broker") == 0)
            broker = argv[i + 1];
        else if (strcmp(argv[i], "--topic") == 0)
            topic = argv[i + 1];
        else
            die(argv[i], "not known");
    }
    if (!broker || !topic || !frame)
        die("arguments", "--broker or --topic is missing");
    fd = connect_to(broker);
    greet(fd, frame, topic);
    subscribe(fd, frame, topic);
    read_all(fd, frame, &c);
    report("entries", c.entries, c.bytes, begin);
    free(frame);
    return 0;
}
