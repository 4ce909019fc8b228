/* etcd_login.c - the token: asked for when it is needed or was refused; all calls wait for one answer. */
#include <string.h>

#include "base/mem.h"
#include "milvus/etcd_priv.h"

enum { LOGINS_MAX = 2 /* fresh tokens that one call may ask for */ };

/* The texts are those of etcd's api/v3rpc/rpctypes/error.go; some come with InvalidArgument. */
bool etcd_token_refused(int status, const char *message)
{
    return status == GRPC_UNAUTHENTICATED || etcd_text_has(message, "invalid auth token") ||
           etcd_text_has(message, "user name is empty") ||
           etcd_text_has(message, "revision of auth store is old");
}

int etcd_credentials_err(const struct etcd_client *e, const char *message, struct err *err)
{
    if (!e->username)
        return err_set(err, ERR_AUTH, ERRC_USER,
                       "etcd demands authentication (%s): set its user name and password", message);
    return err_set(err, ERR_AUTH, ERRC_USER,
                   "etcd refuses user \"%s\" (%s): check the user name, password and permissions",
                   e->username, message);
}

bool etcd_login_renew(struct etcd_client *e, unsigned gen, unsigned *logins)
{
    if (!e->username || *logins >= LOGINS_MAX)
        return false;
    ++*logins;
    if (gen == e->token_gen && (e->login == LOGIN_DONE || e->login == LOGIN_NONE))
        e->login = LOGIN_NEEDED;
    return true;
}

static void login_start(struct etcd_client *e)
{
    Etcdpb__AuthenticateRequest m = ETCDPB__AUTHENTICATE_REQUEST__INIT;
    struct etcd_call *c = etcd_call_new(e);

    m.name = e->username;
    m.password = e->password;
    c->is_login = true;
    c->body_len = etcdpb__authenticate_request__get_packed_size(&m);
    c->body = xmalloc(c->body_len + 1);
    etcdpb__authenticate_request__pack(&m, c->body);
    e->login = LOGIN_RUNNING;
    etcd_call_try(c);
}

bool etcd_login_wait(struct etcd_client *e)
{
    if (e->login == LOGIN_NEEDED)
        login_start(e);
    return e->login == LOGIN_RUNNING;
}

static void set_token(struct etcd_client *e, const char *token)
{
    for (unsigned i = 0; i < e->n_endpoints; i++)
        grpc_client_set_header(e->endpoints[i].grpc, "token", token);
    e->token_gen++;
}

void etcd_login_finish(struct etcd_client *e, const struct err *err)
{
    struct etcd_call *c;
    struct etcd_watch *w;

    TAILQ_FOREACH (c, &e->calls, next) {
        if (c->state != CALL_LOGIN)
            continue;
        if (err) {
            c->state = CALL_FAILING;
            c->err = *err;
        }
        timer_set(&c->timer, 0);
    }
    TAILQ_FOREACH (w, &e->watches, next) {
        if (w->state != WATCH_LOGIN)
            continue;
        if (err) {
            w->state = WATCH_FAILING;
            w->err = *err;
        }
        timer_set(&w->timer, 0);
    }
}

void etcd_login_ok(struct etcd_client *e, const struct grpc_result *r)
{
    Etcdpb__AuthenticateResponse *m =
        etcdpb__authenticate_response__unpack(NULL, r->body_len, r->body);
    struct err err;

    if (!m || !m->token[0]) {
        e->login = LOGIN_NEEDED;
        err_set(&err, ERR_PROTO, ERRC_RETRY, "etcd: the answer to Authenticate has no token");
        etcd_login_finish(e, &err);
    } else {
        e->login = LOGIN_DONE;
        set_token(e, m->token);
        etcd_login_finish(e, NULL);
    }
    if (m) {
        explicit_bzero(m->token, strlen(m->token));
        etcdpb__authenticate_response__free_unpacked(m, NULL);
    }
}

/* etcd's own client goes on without a token when the server has authentication off. */
bool etcd_login_not_enabled(struct etcd_client *e, const struct grpc_result *r)
{
    if (r->status != GRPC_FAILED_PRECONDITION ||
        !etcd_text_has(r->message, "authentication is not enabled"))
        return false;
    e->login = LOGIN_NONE;
    set_token(e, NULL);
    etcd_login_finish(e, NULL);
    return true;
}
