#include "base/mem.h"
#include "base/pbwire.h"
#include "wal/pulsar_priv.h"

#include <stdlib.h>
#include <string.h>

enum { LEN_BYTES = 4 };

enum server_error {
    SE_AUTHENTICATION = 3,
    SE_AUTHORIZATION = 4,
    SE_NOT_READY = 6,
    SE_VERSION = 10,
    SE_TOPIC_NOT_FOUND = 11,
    SE_INVALID_TOPIC = 17,
};

static void put_u32(uint8_t *p, size_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

void pulsar_frame_write(struct pb_out *out, const Pulsar__BaseCommand *cmd, const void *payload, size_t len)
{
    size_t n = pulsar__base_command__get_packed_size(cmd);
    uint8_t *tmp = xmalloc(2 * LEN_BYTES + n);

    put_u32(tmp, LEN_BYTES + n + len);
    put_u32(tmp + LEN_BYTES, n);
    pulsar__base_command__pack(cmd, tmp + 2 * LEN_BYTES);
    pb_out_raw(out, tmp, 2 * LEN_BYTES + n);
    if (len)
        pb_out_raw(out, payload, len);
    free(tmp);
}

/* The part that the type promises is there. */
static bool is_whole(const Pulsar__BaseCommand *c)
{
    switch (c->type) {
    case PULSAR__BASE_COMMAND__TYPE__CONNECTED:
        return c->connected;
    case PULSAR__BASE_COMMAND__TYPE__MESSAGE:
        return c->message;
    case PULSAR__BASE_COMMAND__TYPE__SUCCESS:
        return c->success;
    case PULSAR__BASE_COMMAND__TYPE__PRODUCER_SUCCESS:
        return c->producer_success;
    case PULSAR__BASE_COMMAND__TYPE__ERROR:
        return c->error;
    case PULSAR__BASE_COMMAND__TYPE__CLOSE_CONSUMER:
        return c->close_consumer;
    case PULSAR__BASE_COMMAND__TYPE__PARTITIONED_METADATA_RESPONSE:
        return c->partition_metadata_response;
    case PULSAR__BASE_COMMAND__TYPE__LOOKUP_RESPONSE:
        return c->lookup_response;
    case PULSAR__BASE_COMMAND__TYPE__GET_LAST_MESSAGE_ID_RESPONSE:
        return c->get_last_message_id_response;
    case PULSAR__BASE_COMMAND__TYPE__GET_TOPICS_OF_NAMESPACE_RESPONSE:
        return c->get_topics_response;
    case PULSAR__BASE_COMMAND__TYPE__ACK_RESPONSE:
        return c->ack_response;
    default:
        return true; /* read without its part, or not at all */
    }
}

Pulsar__BaseCommand *pulsar_frame_parse(const uint8_t *data, size_t len, const uint8_t **ret_rest, size_t *ret_rest_len,
                                        struct err *err)
{
    Pulsar__BaseCommand *cmd;
    size_t n;

    if (len < LEN_BYTES) {
        err_set(err, ERR_PROTO, ERRC_RETRY, "a frame of %zu bytes", len);
        return NULL;
    }
    n = (size_t)data[0] << 24 | (size_t)data[1] << 16 | (size_t)data[2] << 8 | data[3];
    if (n > len - LEN_BYTES) {
        err_set(err, ERR_PROTO, ERRC_RETRY, "a command of %zu bytes in a frame of %zu", n, len);
        return NULL;
    }
    cmd = pulsar__base_command__unpack(NULL, n, data + LEN_BYTES);
    if (!cmd || !is_whole(cmd)) {
        err_set(err, ERR_PROTO, ERRC_RETRY, "a command of %zu bytes that cannot be parsed (type %d)", n,
                cmd ? (int)cmd->type : -1);
        pulsar_command_free(cmd);
        return NULL;
    }
    *ret_rest = data + LEN_BYTES + n;
    *ret_rest_len = len - LEN_BYTES - n;
    return cmd;
}

void pulsar_command_free(Pulsar__BaseCommand *cmd)
{
    if (cmd)
        pulsar__base_command__free_unpacked(cmd, NULL);
}

int pulsar_server_error(struct err *err, int code, const char *text)
{
    if (!text)
        text = "";
    switch (code) {
    case SE_AUTHENTICATION:
        return err_set(err, ERR_AUTH, ERRC_RETRY, "Pulsar refuses the login (sourceConfig.pulsar.authParams): %.500s",
                       text);
    case SE_AUTHORIZATION:
        return err_set(err, ERR_AUTH, ERRC_RETRY,
                       "Pulsar does not permit this to the role of sourceConfig.pulsar.authParams (consume is needed): "
                       "%.500s", text);
    case SE_TOPIC_NOT_FOUND:
        return err_set(err, ERR_NOT_FOUND, ERRC_RETRY, "topic not found: %.500s", text);
    case SE_INVALID_TOPIC:
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "Pulsar refuses the topic's name (sourceConfig.pulsar.tenant, .namespace): %.500s", text);
    case SE_VERSION:
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER, "this version of Pulsar is not supported: %.500s", text);
    default:
        return err_set(err, ERR_UNAVAILABLE, ERRC_RETRY, "Pulsar: error %d: %.500s", code, text);
    }
}

bool pulsar_answer(const Pulsar__BaseCommand *cmd, uint64_t *ret_id, struct err *ret_err)
{
    ret_err->code = ERR_OK;
    switch (cmd->type) {
    case PULSAR__BASE_COMMAND__TYPE__SUCCESS:
        *ret_id = cmd->success->request_id;
        return true;
    case PULSAR__BASE_COMMAND__TYPE__PRODUCER_SUCCESS:
        *ret_id = cmd->producer_success->request_id;
        return true;
    case PULSAR__BASE_COMMAND__TYPE__ERROR:
        *ret_id = cmd->error->request_id;
        pulsar_server_error(ret_err, cmd->error->error, cmd->error->message);
        return true;
    case PULSAR__BASE_COMMAND__TYPE__PARTITIONED_METADATA_RESPONSE: {
        const Pulsar__CommandPartitionedTopicMetadataResponse *a = cmd->partition_metadata_response;

        *ret_id = a->request_id;
        if (a->response == 1)
            pulsar_server_error(ret_err, a->error, a->message);
        return true;
    }
    case PULSAR__BASE_COMMAND__TYPE__LOOKUP_RESPONSE:
        *ret_id = cmd->lookup_response->request_id;
        if (cmd->lookup_response->response == 2)
            pulsar_server_error(ret_err, cmd->lookup_response->error, cmd->lookup_response->message);
        return true;
    case PULSAR__BASE_COMMAND__TYPE__GET_LAST_MESSAGE_ID_RESPONSE:
        *ret_id = cmd->get_last_message_id_response->request_id;
        return true;
    case PULSAR__BASE_COMMAND__TYPE__GET_TOPICS_OF_NAMESPACE_RESPONSE:
        *ret_id = cmd->get_topics_response->request_id;
        return true;
    case PULSAR__BASE_COMMAND__TYPE__ACK_RESPONSE:
        *ret_id = cmd->ack_response->request_id;
        if (cmd->ack_response->has_error)
            pulsar_server_error(ret_err, cmd->ack_response->error, cmd->ack_response->message);
        return cmd->ack_response->has_request_id;
    default:
        return false;
    }
}
