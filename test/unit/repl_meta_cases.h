/* repl_meta_cases.h - test_repl: indexes, load states, aliases, properties and names of the source come to the target. */

static void tell(struct model_coll *c)
{
    if (cat_cbs.on_collection)
        cat_cbs.on_collection(cat_arg, &c->sc);
}

/* At most one for each field, as in Milvus: the one before goes. param NULL: none. */
static void src_index(struct model_coll *c, const char *field, const char *name, const char *param)
{
    static int64_t next_index = 70000;
    struct src_collection *sc = &c->sc;

    if (!sc->indexes)
        sc->indexes = xcalloc(8, sizeof(*sc->indexes));
    for (size_t i = 0; i < sc->n_indexes; i++)
        if (strcmp(sc->indexes[i].field, field) == 0) {
            free(sc->indexes[i].params[0].value);
            free(sc->indexes[i].params);
            free(sc->indexes[i].name);
            sc->indexes[i] = sc->indexes[--sc->n_indexes];
        }
    if (!param)
        return;
    assert_true(sc->n_indexes < 8);
    sc->indexes[sc->n_indexes] = (struct src_index){.id = next_index++, .field = (char *)(uintptr_t)field,
                                                    .name = xstrdup(name), .vector = strcmp(field, "vec") == 0,
                                                    .params = xcalloc(1, sizeof(struct src_pair)), .n_params = 1};
    sc->indexes[sc->n_indexes++].params[0] = (struct src_pair){(char *)"p", xstrdup(param)};
}

static void src_load(struct model_coll *c, enum src_load load)
{
    c->sc.load = load;
    c->sc.replicas = 1;
    for (size_t i = 0; i < c->sc.n_partitions; i++)
        c->sc.partitions[i].loaded = load == SRC_LOADED;
}

static void src_drop_alias(struct model_coll *c, const char *name)
{
    for (size_t i = 0; i < c->sc.n_aliases; i++)
        if (strcmp(c->sc.aliases[i], name) == 0)
            c->sc.aliases[i] = c->sc.aliases[--c->sc.n_aliases];
}

static void src_alias(struct model_coll *c, const char *name)
{
    if (!c->sc.aliases)
        c->sc.aliases = xcalloc(8, sizeof(char *));
    src_drop_alias(c, name);
    c->sc.aliases[c->sc.n_aliases++] = (char *)(uintptr_t)name;
}

static void src_ttl(struct model_coll *c, const char *ttl)
{
    struct src_pair *p = xcalloc(1, sizeof(*p));

    *p = (struct src_pair){(char *)"ttl", (char *)(uintptr_t)ttl};
    free((void *)(uintptr_t)c->sc.properties);
    c->sc.properties = p;
    c->sc.n_properties = 1;
}

static void src_free(struct model_coll *c)
{
    while (c->sc.n_indexes)
        src_index(c, c->sc.indexes[0].field, "", NULL);
    free(c->sc.indexes);
    free(c->sc.aliases);
    free((void *)(uintptr_t)c->sc.properties);
    c->sc.indexes = NULL;
    c->sc.aliases = NULL;
    c->sc.properties = NULL;
    c->sc.n_aliases = c->sc.n_properties = 0;
}

static void src_free_all(void)
{
    for (size_t i = 0; i < n_colls; i++)
        src_free(colls[i]);
}

static bool same_indexes(const struct src_collection *sc, struct t_meta *m)
{
    for (size_t i = 0; i < sc->n_indexes; i++) {
        const struct t_index *ix = t_index_find(m, sc->indexes[i].field, sc->indexes[i].name);
        if (!ix || strcmp(ix->param, sc->indexes[i].params[0].value) != 0)
            return false;
    }
    return m->n_indexes == sc->n_indexes;
}

static bool same_load(const struct src_collection *sc, const struct t_meta *m)
{
    for (size_t i = 0; i < sc->n_partitions; i++)
        if (sc->partitions[i].state == SRC_ALIVE &&
            sc->partitions[i].loaded != t_part_loaded(m, sc->partitions[i].name))
            return false;
    return m->loaded == (sc->load != SRC_RELEASED);
}

/* What aliases and properties the source has; of the others on the target nothing is said. */
static bool same_rest(const struct src_collection *sc, const struct t_coll *t)
{
    for (size_t i = 0; i < sc->n_aliases; i++)
        if (t_alias(sc->aliases[i]) != t)
            return false;
    return sc->n_properties == 0 || strcmp(sc->properties[0].value, t_meta(t)->ttl) == 0;
}

static bool set_up(const struct model_coll *c)
{
    const struct t_coll *t = t_by_name(c->sc.name);

    return t && same_indexes(&c->sc, t_meta(t)) && same_load(&c->sc, t_meta(t)) && same_rest(&c->sc, t);
}

static struct model_coll *with_everything(const char *name, int n_shards, int channel)
{
    struct model_coll *c = coll_create(name, n_shards, channel, true);

    part_create(c, "p1", true);
    part_create(c, "p2", true);
    src_index(c, "vec", "vi", "hnsw");
    src_index(c, "n", "ni", "sort");
    src_load(c, SRC_LOADED);
    src_ttl(c, "60");
    return c;
}

static void test_what_is_set_up_from_before(void **state)
{
    struct model_coll *a, *b, *c;
    struct t_coll *t;
    (void)state;
    rnd_state = 60;
    a = with_everything("a", 2, 0);
    b = with_everything("b", 1, 1);
    c = coll_create("c", 1, 0, true);
    src_alias(a, "all");
    src_load(b, SRC_LOADED_PARTITIONS);
    b->sc.partitions[1].loaded = true;
    /* c is on the target, with what users made there: none of it is the source's */
    t = t_create("c", 1);
    snprintf(t_meta(t)->indexes[0].field, 16, "vec");
    snprintf(t_meta(t)->indexes[0].name, 16, "own");
    t_meta(t)->n_indexes = 1;
    t_meta(t)->loaded = t_meta(t)->all = true;
    t_set_alias("mine", t);
    src_ttl(c, "7");
    write_tick();
    start_and_wait();
    WAIT(set_up(a) && set_up(b) && same_rest(&c->sc, t));
    assert_int_equal(t_meta(t)->n_indexes, 1);
    assert_true(t_meta(t)->loaded && t_alias("mine") == t);
    /* once: nothing is asked for again, not by a start either */
    stop_and_wait();
    task_crash();
    meta_calls = 0;
    task_make();
    upsert(a, 0, 1);
    WAIT(arrived(a, 0, 1));
    spin(50);
    assert_int_equal(meta_calls, 0);
    wait_equal();
    src_free_all();
}

static void test_what_is_set_up_while_it_runs(void **state)
{
    struct model_coll *a, *b;
    (void)state;
    rnd_state = 61;
    a = with_everything("a", 2, 0);
    b = with_everything("b", 1, 1);
    src_alias(a, "all");
    write_tick();
    start_and_wait();
    WAIT(set_up(a) && set_up(b));
    src_drop_alias(a, "all"); /* it moves: told of one, then of the other */
    tell(a);
    src_alias(b, "all");
    tell(b);
    src_alias(b, "some");
    src_ttl(a, "90");
    tell(a);
    tell(b);
    WAIT(set_up(a) && set_up(b));
    src_drop_alias(b, "some");
    tell(b);
    WAIT(!t_alias("some"));
    assert_true(t_alias("all") == t_by_name("b"));
    if (!portable) { /* the rest is in the log there */
        src_free_all();
        return;
    }
    src_load(a, SRC_LOADED_PARTITIONS);
    a->sc.partitions[0].loaded = a->sc.partitions[2].loaded = true; /* one was released */
    tell(a);
    WAIT(set_up(a));
    src_index(a, "vec", "vi", "flat"); /* released, dropped, made anew and loaded before anyone looked */
    tell(a);
    WAIT(set_up(a));
    src_load(a, SRC_RELEASED);
    src_index(a, "n", "", NULL);
    tell(a);
    WAIT(set_up(a));
    assert_true(set_up(b));
    assert_int_equal(violations, 0);
    src_free_all();
}

/* Milvus Lite has nothing loaded after its restart: one collection's rows show that there is a new connection. */
static void test_a_target_that_has_forgotten_what_is_loaded(void **state)
{
    struct model_coll *a, *b;
    (void)state;
    if (!portable)
        skip();
    rnd_state = 65;
    a = with_everything("a", 2, 0);
    b = with_everything("b", 1, 1);
    write_tick();
    start_and_wait();
    WAIT(set_up(a) && set_up(b));
    t_meta(t_by_name("a"))->loaded = t_meta(t_by_name("b"))->loaded = false;
    sink_gen++;
    upsert(a, 0, 1);
    WAIT(set_up(a) && set_up(b));
    wait_equal();
    src_free_all();
}

static void change_something(struct model_coll *a, struct model_coll *b)
{
    static const char *const values[] = {"one", "two", "three"};
    struct model_coll *c = rnd(2) ? a : b, *other = c == a ? b : a;
    size_t p = rnd((uint32_t)c->sc.n_partitions);

    switch (rnd(portable ? 6 : 2)) {
    case 0:
        src_ttl(c, values[rnd(3)]);
        break;
    case 1:
        src_drop_alias(other, "all");
        src_drop_alias(c, "all");
        tell(other);
        if (rnd(3))
            src_alias(c, "all");
        break;
    case 2:
        src_index(c, "n", "ni", rnd(3) ? values[rnd(3)] : NULL);
        break;
    case 3:
        src_index(c, "vec", "vi", values[rnd(3)]);
        break;
    case 4:
        src_load(c, rnd(2) ? SRC_LOADED : SRC_RELEASED);
        break;
    case 5:
        if (c->sc.load == SRC_RELEASED)
            break;
        c->sc.load = SRC_LOADED_PARTITIONS;
        c->sc.partitions[p].loaded = true;
        c->sc.partitions[(p + 1) % c->sc.n_partitions].loaded = false;
        break;
    }
    tell(c);
}

/* Changes at any moment, the daemon dies at any moment, also while it is down. */
static void test_set_up_over_crashes(void **state)
{
    struct model_coll *a, *b;
    (void)state;
    for (uint32_t round = 0; round < 30; round++) {
        rnd_state = 1000 + round;
        a = round == 0 ? with_everything("a", 2, 0) : colls[0];
        b = round == 0 ? with_everything("b", 1, 1) : colls[1];
        if (round == 0) {
            write_tick();
            start_and_wait();
        }
        for (unsigned i = rnd(12); i > 0; i--) {
            change_something(a, b);
            upsert(a, (int)rnd(2), (int)rnd(N_KEYS));
            write_tick();
            spin(rnd(12));
        }
        task_crash();
        for (unsigned i = rnd(3); i > 0; i--)
            change_something(a, b);
        task_make();
    }
    WAIT(set_up(a) && set_up(b));
    WAIT(t_alias("all") == NULL || a->sc.n_aliases + b->sc.n_aliases > 0);
    wait_equal();
    src_free_all();
}

static void test_a_refused_set_up_stops_nothing(void **state)
{
    struct model_coll *a;
    (void)state;
    rnd_state = 62;
    a = with_everything("a", 1, 0);
    src_alias(a, "all");
    meta_fails = 1000000;
    err_set(&made_up, ERR_INVALID, ERRC_USER, "no such index type");
    write_tick();
    start_and_wait();
    upsert(a, 0, 1);
    WAIT(arrived(a, 0, 1) && repl_task_trouble(task) && strstr(repl_task_trouble(task), "no such index type"));
    spin(100);
    assert_true(meta_calls < 10);
    meta_fails = 0;
    src_ttl(a, "61"); /* news; else it is a minute */
    tell(a);
    if (portable) {
        WAIT(!repl_task_trouble(task) && t_meta(t_by_name("a"))->loaded);
        assert_false(set_up(a)); /* the index that it can be without is asked for by a start only */
        stop_and_wait();
        task_crash();
        task_make();
        WAIT(set_up(a));
    }
    wait_equal();
    src_free_all();
}

static void src_rename(struct model_coll *c, const char *name)
{
    free(c->sc.name);
    c->sc.name = xstrdup(name);
    tell(c);
}

static void test_rename(void **state)
{
    struct model_coll *a, *b;
    (void)state;
    rnd_state = 63;
    a = coll_create("a", 2, 0, true);
    write_tick();
    start_and_wait();
    for (int i = 0; i < 5; i++) {
        upsert(a, i % 2, i);
        write_tick();
    }
    src_rename(a, "renamed");
    for (int i = 0; i < 5; i++) {
        upsert(a, i % 2, i);
        write_tick();
    }
    b = coll_create("a", 1, 1, false); /* its former name, at once */
    upsert(b, 0, 3);
    WAIT(t_by_name("renamed") && t_by_name("a"));
    wait_equal();
    (void)write_op(MSG_FLUSH, "default", "renamed", NULL);
    WAIT(n_applied == 1);
    assert_string_equal(applied[0].collection, "renamed");
    src_rename(a, "xhidden"); /* not selected: followed, under the name that it has on the target */
    upsert(a, 0, 1);
    WAIT(target_value(t_by_name("renamed"), 0, 1) == a->keys[0][1].value);
    src_rename(a, "shown");
    wait_equal();
    task_crash();
    src_rename(a, "again"); /* while nobody looks */
    task_make();
    wait_equal();
}

static void test_names_go_round(void **state)
{
    struct model_coll *a, *b;
    (void)state;
    rnd_state = 64;
    a = coll_create("a", 1, 0, true);
    b = coll_create("b", 1, 1, true);
    write_tick();
    start_and_wait();
    upsert(a, 0, 1);
    upsert(b, 0, 2);
    wait_equal();
    for (int i = 0; i < 3; i++) {
        if (i == 1)
            task_crash();
        src_rename(a, "t");
        src_rename(b, "a");
        src_rename(a, "b");
        if (i == 1)
            task_make();
        upsert(a, 0, 3);
        upsert(b, 0, 4);
        wait_equal();
        src_rename(a, "t");
        src_rename(b, "b");
        src_rename(a, "a");
        wait_equal();
    }
}

static void test_rename_over_crashes(void **state)
{
    static const char *const names[] = {"a", "b", "c", "d"};
    struct model_coll *a, *b;
    (void)state;
    for (uint32_t round = 0; round < 25; round++) {
        rnd_state = 2000 + round;
        a = round == 0 ? coll_create("a", 2, 0, true) : colls[0];
        b = round == 0 ? coll_create("b", 1, 1, true) : colls[1];
        if (round == 0) {
            write_tick();
            start_and_wait();
        }
        for (unsigned i = rnd(6); i > 0; i--) {
            struct model_coll *c = rnd(2) ? a : b, *other = c == a ? b : a;
            const char *name = names[rnd(4)];
            if (strcmp(other->sc.name, name) != 0)
                src_rename(c, name);
            upsert(a, (int)rnd(2), (int)rnd(N_KEYS));
            upsert(b, 0, (int)rnd(N_KEYS));
            write_tick();
            spin(rnd(12));
        }
        task_crash();
        task_make();
    }
    wait_equal();
}
