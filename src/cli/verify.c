#include "cli/verify.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/ask_priv.h"

enum { SAME, DIFFERS, FAILED };
enum { POLL_MS = 500, AWAY_MS = 60000 };

static const char usage[] =
    "usage: milvus-cdc verify --task ID [OPTION]...\n"
    "\n"
    "Has the daemon compare the source and the target of a task, row by row, while both are written.\n"
    "With --wait it prints one line for each collection, and the exit code is 0 equal (or repaired), 1 different,\n"
    "2 not compared. Without, it only begins; the request `get` shows the result.\n"
    "\n"
    "  --task ID          the task\n"
    "  --level LEVEL      counts (of rows), keys, or rows (the default)\n"
    "  --repair           writes what differs as it is on the source (portable tasks)\n"
    "  --collection NAME  this one only, by its name on the source or db.name; may be given several times\n"
    "  --load             loads collections that are not loaded, for the time of their comparison\n"
    "  --wait             waits for the result, however long it takes\n"
    "  --cancel           ends the one that is running\n" ASK_USAGE_DAEMON
    "  --timeout TIME     for each question, default 10s\n" ASK_USAGE_LOGIN;

struct options {
    struct ask_options ask;
    const char *task, *level;
    bool repair, load, wait, cancel;
    json_t *collections;
};

static int failed(const char *text)
{
    fprintf(stderr, "milvus-cdc verify: %s\n", text);
    return FAILED;
}

/* ---- asking ------------------------------------------------------------------------------------------------- */

/* The data of a successful answer, or NULL and why. take is the request_data. */
static json_t *call(struct asker *a, const char *type, json_t *take, struct err *err)
{
    json_t *request = json_pack("{s:s, s:o}", "request_type", type, "request_data", take), *answer = NULL, *data = NULL;
    char *text = json_dumps(request, JSON_COMPACT), *body = NULL;
    const char *message;
    int status = 0;

    a->get.target = "/cdc";
    a->get.body = text;
    if (http_get(&a->get, &status, &body, err) == 0) {
        answer = json_loads(body, 0, NULL);
        message = json_string_value(json_object_get(answer, "message"));
        if (status == 401)
            err_set(err, ERR_AUTH, ERRC_USER, "milvus-cdc at %s wants a valid token: see --token-file", a->url);
        else if (json_integer_value(json_object_get(answer, "code")) == 200)
            data = json_incref(json_object_get(answer, "data"));
        else
            err_set(err, status >= 500 ? ERR_UNAVAILABLE : ERR_INVALID, ERRC_USER, "%s",
                    message ? message : "what answers is not milvus-cdc, or of another version");
    }
    json_decref(answer);
    json_decref(request);
    free(text);
    free(body);
    return data;
}

static json_t *request_of(const struct options *o)
{
    json_t *data = json_pack("{s:s, s:s*, s:b, s:b, s:b}", "task_id", o->task, "level", o->level, "repair", o->repair,
                             "load", o->load, "cancel", o->cancel);

    if (o->collections)
        json_object_set(data, "collections", o->collections);
    return data;
}

static bool is_transient(const struct err *err)
{
    return err->code == ERR_UNAVAILABLE || err->code == ERR_TIMEOUT;
}

static void pause_ms(unsigned ms)
{
    (void)nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* The result when it is there; a daemon that restarts, or hands the task over, is waited for. */
static json_t *wait_result(struct asker *a, const struct options *o, struct err *err)
{
    uint64_t seen_ms = clock_mono_ms();

    for (;;) {
        json_t *data = call(a, "get", json_pack("{s:s}", "task_id", o->task), err);
        json_t *result = json_incref(json_object_get(json_object_get(data, "task"), "verify"));
        const char *state = json_string_value(json_object_get(result, "state"));

        if (data)
            seen_ms = clock_mono_ms();
        json_decref(data);
        if (state && strcmp(state, "running") != 0)
            return result;
        json_decref(result);
        if (!data && (!is_transient(err) || clock_mono_ms() - seen_ms > AWAY_MS))
            return NULL;
        pause_ms(POLL_MS);
    }
}

/* ---- printing ------------------------------------------------------------------------------------------------ */

static json_int_t number(const json_t *o, const char *name)
{
    return json_integer_value(json_object_get(o, name));
}

static const char *text(const json_t *o, const char *name)
{
    const char *s = json_string_value(json_object_get(o, name));

    return s ? s : "";
}

static void print_keys(const json_t *o)
{
    const json_t *keys = json_object_get(o, "keys"), *e;
    size_t i;

    json_array_foreach(keys, i, e) {
        char *key = json_dumps(json_object_get(e, "key"), JSON_ENCODE_ANY);

        printf("%s %s %s", i ? "," : "; keys", text(e, "what"), key ? key : "");
        free(key);
    }
}

static void print_collection(const json_t *o)
{
    static const char *const counts[] = {"missing", "extra", "different", "repaired", "unsettled", "equal_keys"};

    printf("%s.%s: %s", text(o, "db"), text(o, "name"), text(o, "state"));
    printf(", rows %lld on the source, %lld on the target", (long long)number(o, "rows_source"),
           (long long)number(o, "rows_target"));
    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
        if (number(o, counts[i]))
            printf(", %lld %s", (long long)number(o, counts[i]), counts[i]);
    print_keys(o);
    if (*text(o, "reason"))
        printf(": %s", text(o, "reason"));
    printf("\n");
}

static int print_result(const json_t *result)
{
    const json_t *collections = json_object_get(result, "collections"), *o;
    const char *state = text(result, "state"), *reason = text(result, "reason");
    size_t i;

    json_array_foreach(collections, i, o)
        print_collection(o);
    printf("%s: %zu collections, %lld rows compared%s%s\n", state, json_array_size(collections),
           (long long)number(result, "rows_compared"), *reason ? "; " : "", reason);
    if (strcmp(state, "equal") == 0 || strcmp(state, "repaired") == 0)
        return SAME;
    return strcmp(state, "different") == 0 ? DIFFERS : FAILED;
}

/* ---- the command ---------------------------------------------------------------------------------------------- */

static int run(const struct options *o, struct asker *a)
{
    struct err err = {0};
    json_t *data = call(a, "verify", request_of(o), &err), *result;
    int rc;

    if (!data)
        return failed(err.text);
    json_decref(data);
    if (!o->wait) {
        printf("%s\n", o->cancel ? "it is being cancelled" : "it has begun: the request get shows the result");
        return SAME;
    }
    result = wait_result(a, o, &err);
    rc = result ? print_result(result) : failed(err.text);
    json_decref(result);
    return rc;
}

/* -1: go on, else the exit code. */
static int parse_options(int argc, char **argv, struct options *o)
{
    enum { TASK = ASK_OPTIONS_END, LEVEL, REPAIR, COLLECTION, LOAD, WAIT, CANCEL };
    static const struct option longs[] = {ASK_OPTIONS,
                                          {"task", required_argument, NULL, TASK},
                                          {"level", required_argument, NULL, LEVEL},
                                          {"repair", no_argument, NULL, REPAIR},
                                          {"collection", required_argument, NULL, COLLECTION},
                                          {"load", no_argument, NULL, LOAD},
                                          {"wait", no_argument, NULL, WAIT},
                                          {"cancel", no_argument, NULL, CANCEL},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    int c;

    while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
        switch (c) {
        case 'h':
            fputs(usage, stdout);
            return SAME;
        case '?':
            return failed("see milvus-cdc verify --help");
        case TASK:
            o->task = optarg;
            break;
        case LEVEL:
            o->level = optarg;
            break;
        case COLLECTION:
            if (!o->collections)
                o->collections = json_array();
            json_array_append_new(o->collections, json_string(optarg));
            break;
        case REPAIR:
        case LOAD:
        case WAIT:
        case CANCEL:
            *(c == REPAIR ? &o->repair : c == LOAD ? &o->load : c == WAIT ? &o->wait : &o->cancel) = true;
            break;
        default:
            ask_take_option(&o->ask, c, optarg);
        }
    }
    if (optind < argc)
        return failed("it takes options only");
    return o->task ? -1 : failed("--task is missing: the request list shows the tasks");
}

int cli_verify(int argc, char **argv)
{
    struct options o = {.ask.timeout = "10s"};
    struct asker a;
    struct err err;
    int rc = parse_options(argc, argv, &o);

    if (rc < 0) {
        log_set_level(LOG_ERROR);
        if (ask_open(&o.ask, &a, &err)) {
            rc = failed(err.text);
        } else {
            rc = run(&o, &a);
            ask_close(&a);
        }
    }
    json_decref(o.collections);
    return rc;
}
