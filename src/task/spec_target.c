#include "base/err.h"
#include "base/mem.h"
#include "milvus/target.h"
#include "task/spec.h"
#include "task/spec_fields.h"
#include "task/spec_priv.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { DEFAULT_CONNECT_TIMEOUT_S = 5, MAX_CONNECT_TIMEOUT_S = 86400 };

static int invalid(struct err *err, const char *text)
{
    return err_set(err, ERR_INVALID, ERRC_USER, "%s", text);
}

static bool has(const json_t *o, const char *name)
{
    return field_str(o, name)[0] != '\0';
}

static bool sasl_given(const json_t *kafka)
{
    const json_t *sasl = json_object_get(kafka, "sasl");

    return field_bool(kafka, "enable_sasl") || has(sasl, "username") || has(sasl, "password") ||
           has(sasl, "mechanisms") || has(sasl, "security_protocol");
}

static int check_kafka(const json_t *kafka, struct err *err)
{
    if (has(kafka, "address") && !has(kafka, "topic"))
        return invalid(err, "kafka_connect_param has an address but no topic");
    if (has(kafka, "address") || has(kafka, "topic") || sasl_given(kafka))
        return err_set(err, ERR_UNSUPPORTED, ERRC_USER,
                       "kafka_connect_param: Kafka as a target is not supported by this version");
    return 0;
}

static int check_address(const json_t *milvus, const json_t *kafka, struct err *err)
{
    bool host = has(milvus, "host"), port = field_int(milvus, "port") != 0;
    bool given = has(milvus, "uri") || host || port;

    if (!given && !has(kafka, "address"))
        return invalid(err, "no target: milvus_connect_param.uri is empty");
    if (given && has(kafka, "address"))
        return invalid(err, "two targets: give milvus_connect_param or kafka_connect_param");
    if (!given || has(milvus, "uri"))
        return 0;
    if (!host)
        return invalid(err, "milvus_connect_param has a port but no host");
    if (field_int(milvus, "port") <= 0)
        return invalid(err, "milvus_connect_param has a host but no port above 0");
    return 0;
}

static int check_login(const json_t *milvus, struct err *err)
{
    if (has(milvus, "username") != has(milvus, "password"))
        return invalid(err, "milvus_connect_param has only one of username and password");
    return 0;
}

static int check_numbers(const json_t *milvus, struct err *err)
{
    json_int_t timeout = field_int(milvus, "connect_timeout");

    if (timeout < 0 || timeout > MAX_CONNECT_TIMEOUT_S)
        return err_set(err, ERR_INVALID, ERRC_USER,
                       "milvus_connect_param.connect_timeout is %" JSON_INTEGER_FORMAT
                       ", allowed are 0 to %d seconds",
                       timeout, MAX_CONNECT_TIMEOUT_S);
    /* Accepted and not needed: there is one queue for each channel of the target anyway. */
    if (field_int(milvus, "channel_num") < 0)
        return invalid(err, "milvus_connect_param.channel_num is negative");
    return 0;
}

static int check_buffer(const json_t *buffer, struct err *err)
{
    if (field_int(buffer, "period") < 0 || field_int(buffer, "size") < 0)
        return invalid(err, "buffer_config has a negative period or size");
    return 0;
}

static int check_dial(const json_t *dial, struct err *err)
{
    if (has(dial, "client_pem_path") != has(dial, "client_key_path"))
        return invalid(err, "dial_config has only one of client_pem_path and client_key_path");
    return 0;
}

/* A host may carry a scheme of its own, and then also the port. */
static char *host_to_uri(const json_t *milvus)
{
    const char *host = field_str(milvus, "host");
    const char *scheme = field_bool(milvus, "enable_tls") ? "https://" : "http://";
    const char *name = strstr(host, "://");
    long long port = field_int(milvus, "port");

    if (name)
        scheme = "";
    name = name ? name + 3 : host;
    if (*scheme && strchr(host, ':') && host[0] != '[')
        return xasprintf("%s[%s]:%lld", scheme, host, port); /* a bare IPv6 address */
    if (!*scheme && strchr(*name == '[' && strchr(name, ']') ? strchr(name, ']') : name, ':'))
        return xstrdup(host);
    return xasprintf("%s%s:%lld", scheme, host, port);
}

/* Who gives certificates wants TLS: never send the password in clear because of a http://. */
static char *uri_with_tls(char *take)
{
    char *uri;

    if (strncasecmp(take, "http://", 7) != 0)
        return take;
    uri = xasprintf("https://%s", take + 7);
    free(take);
    return uri;
}

static char *copy_or_null(const json_t *o, const char *name)
{
    return has(o, name) ? xstrdup(field_str(o, name)) : NULL;
}

static void take_dial(struct task_spec *s, const json_t *dial)
{
    s->server_name = copy_or_null(dial, "server_name");
    s->ca_path = copy_or_null(dial, has(dial, "ca_pem_path") ? "ca_pem_path" : "server_pem_path");
    s->cert_path = copy_or_null(dial, "client_pem_path");
    s->key_path = copy_or_null(dial, "client_key_path");
    if (s->ca_path || s->cert_path)
        s->uri = uri_with_tls(s->uri);
}

static void take_token(struct task_spec *s, const json_t *milvus)
{
    if (has(milvus, "token"))
        s->token = xstrdup(field_str(milvus, "token"));
    else if (has(milvus, "username"))
        s->token = xasprintf("%s:%s", field_str(milvus, "username"), field_str(milvus, "password"));
    else
        s->token = xstrdup("");
}

/* get and the log show the uri, so it must not hold a password. */
static int check_uri(const char *uri, struct err *err)
{
    char *host = NULL;
    uint16_t port;
    bool tls;
    int rc;

    if (strchr(uri, '@'))
        return invalid(err, "the target's uri has a user in it; use token");
    rc = target_parse_uri(uri, &host, &port, &tls, err);
    free(host);
    return rc;
}

int spec_check_target(struct task_spec *s, const json_t *req, struct err *err)
{
    const json_t *milvus = json_object_get(req, "milvus_connect_param");
    const json_t *kafka = json_object_get(req, "kafka_connect_param");
    const json_t *dial = json_object_get(milvus, "dial_config");
    int rc = check_address(milvus, kafka, err);

    if (rc == 0)
        rc = check_login(milvus, err);
    if (rc == 0)
        rc = check_numbers(milvus, err);
    if (rc == 0)
        rc = check_kafka(kafka, err);
    if (rc == 0)
        rc = check_buffer(json_object_get(req, "buffer_config"), err);
    if (rc == 0)
        rc = check_dial(dial, err);
    if (rc != 0)
        return rc;
    s->uri = has(milvus, "uri") ? xstrdup(field_str(milvus, "uri")) : host_to_uri(milvus);
    take_token(s, milvus);
    take_dial(s, dial);
    s->connect_timeout_s = (unsigned)field_int(milvus, "connect_timeout");
    if (s->connect_timeout_s == 0)
        s->connect_timeout_s = DEFAULT_CONNECT_TIMEOUT_S;
    s->ignore_partition = field_bool(milvus, "ignore_partition");
    return check_uri(s->uri, err);
}
