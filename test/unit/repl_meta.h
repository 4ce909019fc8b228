/* repl_meta.h - test_repl's target: indexes, load states, aliases, properties, names. */

struct t_index {
    char field[16], name[16], param[16];
};
struct t_meta {
    struct t_index indexes[8];
    size_t n_indexes;
    bool loaded;
    char parts[200];   /* " name" of each partition that is loaded; with all: loaded as a whole */
    bool all;
    char ttl[16];      /* the property "ttl"; "": not set */
};
static struct t_meta t_metas[32]; /* by the place in t_colls */
static struct {
    char name[16];
    struct t_coll *coll; /* NULL: free */
} t_aliases[8];
static unsigned meta_fails, meta_calls;

static struct t_meta *t_meta(const struct t_coll *c)
{
    return &t_metas[c - t_colls];
}

static void meta_reset(void)
{
    memset(t_metas, 0, sizeof(t_metas));
    memset(t_aliases, 0, sizeof(t_aliases));
    meta_fails = meta_calls = 0;
}

static struct t_index *t_index_find(struct t_meta *m, const char *field, const char *name)
{
    for (size_t i = 0; i < m->n_indexes; i++)
        if (strcmp(m->indexes[i].field, field) == 0 && strcmp(m->indexes[i].name, name) == 0)
            return &m->indexes[i];
    return NULL;
}

static bool t_part_loaded(const struct t_meta *m, const char *name)
{
    char key[40];

    snprintf(key, sizeof(key), " %s ", name);
    return m->loaded && (m->all || strstr(m->parts, key));
}

static void t_set_alias(const char *name, struct t_coll *c)
{
    size_t at = 8;

    for (size_t i = 8; i-- > 0;)
        if (!t_aliases[i].coll)
            at = i;
    for (size_t i = 0; i < 8; i++)
        if (t_aliases[i].coll && strcmp(t_aliases[i].name, name) == 0)
            at = i;
    assert_true(at < 8);
    snprintf(t_aliases[at].name, sizeof(t_aliases[at].name), "%s", name);
    t_aliases[at].coll = c;
}

static struct t_coll *t_alias(const char *name)
{
    for (size_t i = 0; i < 8; i++)
        if (t_aliases[i].coll && strcmp(t_aliases[i].name, name) == 0)
            return t_aliases[i].coll;
    return NULL;
}

/* ---- the calls ---- */

static void describe_timer(void *arg)
{
    struct sink_call *call = arg, copy = *call;
    struct t_meta *m = copy.coll ? t_meta(copy.coll) : NULL;
    struct sink_index indexes[8];
    struct src_pair params[8], property;
    char *aliases[8];
    struct sink_meta meta = {.indexes = indexes, .aliases = aliases, .properties = &property};
    struct err err;

    call_free(call);
    if (!m || !copy.coll->exists) {
        err_set(&err, ERR_NOT_FOUND, ERRC_USER, "collection not found");
        copy.meta_done(copy.arg, &err, NULL);
        return;
    }
    for (; meta.n_indexes < m->n_indexes; meta.n_indexes++) {
        params[meta.n_indexes] = (struct src_pair){(char *)"p", m->indexes[meta.n_indexes].param};
        indexes[meta.n_indexes] = (struct sink_index){m->indexes[meta.n_indexes].field, m->indexes[meta.n_indexes].name,
                                                      &params[meta.n_indexes], 1};
    }
    for (size_t i = 0; i < 8; i++)
        if (t_aliases[i].coll == copy.coll)
            aliases[meta.n_aliases++] = t_aliases[i].name;
    property = (struct src_pair){(char *)"ttl", m->ttl};
    meta.n_properties = *m->ttl != 0;
    meta.loaded = m->loaded;
    meta.partitions_loaded = m->loaded && (m->all || copy.parts_loaded);
    copy.meta_done(copy.arg, NULL, &meta);
}

static struct sink_call *s_describe_meta(struct sink *s, const char *db, const char *name,
                                         const char *const *partitions, size_t n_partitions, sink_meta_fn done,
                                         void *arg)
{
    struct sink_call *call = xcalloc(1, sizeof(*call));

    (void)s;
    (void)db;
    call->coll = t_by_name(name);
    call->parts_loaded = true;
    for (size_t i = 0; i < n_partitions && call->coll; i++)
        call->parts_loaded &= t_part_loaded(t_meta(call->coll), partitions[i]);
    call->meta_done = done;
    call->arg = arg;
    LIST_INSERT_HEAD(&sink_calls, call, entry);
    timer_init(&call->timer, loop, LOOP_PRIO_NORMAL, describe_timer, call);
    timer_set(&call->timer, rnd(4));
    return call;
}

static void t_parts(struct t_meta *m, const struct sink_change *ch, bool on)
{
    char key[40], *at;

    if (!*m->parts)
        strcpy(m->parts, " ");
    for (size_t i = 0; i < ch->n_names; i++) {
        snprintf(key, sizeof(key), " %s ", ch->names[i]);
        at = strstr(m->parts, key);
        if (on && !at)
            strcat(strcat(m->parts, ch->names[i]), " ");
        if (!on && at)
            memmove(at + 1, at + strlen(key), strlen(at + strlen(key)) + 1);
    }
}

static void t_release(struct t_meta *m)
{
    m->loaded = m->all = false;
    m->parts[0] = 0;
}

static int t_change(struct t_coll *c, struct t_meta *m, const struct sink_change *ch, struct err *err)
{
    struct t_index *ix = t_index_find(m, ch->field ? ch->field : "", ch->name ? ch->name : "");

    switch (ch->kind) {
    case SINK_CREATE_INDEX:
        if (!ix) {
            assert_true(m->n_indexes < 8);
            ix = &m->indexes[m->n_indexes++];
        }
        snprintf(ix->field, sizeof(ix->field), "%s", ch->field);
        snprintf(ix->name, sizeof(ix->name), "%s", ch->name);
        snprintf(ix->param, sizeof(ix->param), "%s", ch->pairs[0].value);
        break;
    case SINK_DROP_INDEX:
        if (m->loaded)
            violation("an index was dropped while loaded", (uint64_t)c->id, 0);
        if (ix)
            *ix = m->indexes[--m->n_indexes];
        break;
    case SINK_LOAD:
    case SINK_LOAD_PARTITIONS:
        if (m->n_indexes == 0)
            return err_set(err, ERR_INTERNAL, ERRC_RETRY, "there is no vector index");
        m->loaded = true;
        m->all |= ch->kind == SINK_LOAD;
        t_parts(m, ch, true);
        break;
    case SINK_RELEASE:
        t_release(m);
        break;
    case SINK_RELEASE_PARTITIONS:
        for (size_t i = 0; i < c->n_parts && m->all; i++) {
            const char *name = c->parts[i].name;
            t_parts(m, &(struct sink_change){.names = &name, .n_names = 1}, true);
        }
        m->all = false;
        t_parts(m, ch, false);
        break;
    case SINK_ALIAS:
        t_set_alias(ch->name, c);
        break;
    case SINK_DROP_ALIAS:
        for (size_t i = 0; i < 8; i++)
            if (t_aliases[i].coll && strcmp(t_aliases[i].name, ch->name) == 0)
                t_aliases[i].coll = NULL;
        break;
    case SINK_SET_PROPERTIES:
        snprintf(m->ttl, sizeof(m->ttl), "%s", ch->pairs[0].value);
        break;
    case SINK_DROP_PROPERTIES:
        m->ttl[0] = 0;
        break;
    }
    return 0;
}

/* The target does it at once and answers later: a crash between is a change that nobody knows of. */
static struct sink_call *s_change_meta(struct sink *s, const struct sink_change *ch, sink_done_fn done, void *arg)
{
    struct sink_call *call = failing_call(&meta_fails, done, arg);
    struct t_coll *c = t_by_name(ch->collection);

    (void)s;
    meta_calls++;
    if (call->fails)
        return call;
    call->fails = !c || t_change(c, t_meta(c), ch, &call->err) != 0;
    if (!c)
        err_set(&call->err, ERR_NOT_FOUND, ERRC_RETRY, "collection not found");
    return call;
}

static struct sink_call *s_rename(struct sink *s, const char *db, const char *name, const char *new_db,
                                  const char *new_name, int64_t id, sink_done_fn done, void *arg)
{
    struct sink_call *call = simple_call(done, arg), *other;
    struct t_coll *c = t_by_name(name), *taken = t_by_name(new_name);

    (void)s;
    (void)db;
    (void)new_db;
    if (taken && taken->id == id)
        return call;
    LIST_FOREACH(other, &sink_calls, entry)
        if (portable && other->batch_done && other->coll == c)
            violation("renamed while rows are under way", (uint64_t)id, 0);
    call->fails = !c || taken;
    if (taken)
        err_set(&call->err, ERR_EXISTS, ERRC_USER, "duplicated new collection name");
    else if (!c)
        err_set(&call->err, ERR_NOT_FOUND, ERRC_USER, "collection not found");
    else
        snprintf(c->name, sizeof(c->name), "%s", new_name);
    return call;
}
