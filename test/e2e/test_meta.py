"""What users set up beside the rows: indexes, load states, aliases, properties, names; from before the task and while it runs."""
import pytest
from pymilvus import Collection, CollectionSchema, DataType as T, FieldSchema as F, utility
from pymilvus.exceptions import MilvusException

from servers import wait_for

HNSW = {"index_type": "HNSW", "metric_type": "COSINE", "params": {"M": 8, "efConstruction": 64}}
IVF = {"index_type": "IVF_FLAT", "metric_type": "L2", "params": {"nlist": 16}}


def books(lab, suffix, vector=HNSW, loaded=("pa", "pb"), ttl=3600):
    """A collection with three indexes, three partitions, an alias and a property; loaded: partitions, or all of it."""
    schema = CollectionSchema([F("id", T.INT64, is_primary=True), F("v", T.FLOAT_VECTOR, dim=8),
                               F("s", T.VARCHAR, max_length=50), F("n", T.INT64)])
    c = Collection(lab.name(suffix), schema, using=lab.source.alias(), shards_num=2,
                   properties={"collection.ttl.seconds": ttl})
    for p in ("pa", "pb"):
        c.create_partition(p)
    c.create_index("v", vector)
    c.create_index("s", {"index_type": "Trie"}, index_name=lab.name(suffix) + "_s")
    c.create_index("n", {}, index_name=lab.name(suffix) + "_n")
    if loaded == "all":
        c.load()
    elif loaded:
        c.load(partition_names=list(loaded))
    utility.create_alias(c.name, c.name + "_alias", using=lab.source.alias())
    return c


def put(c, first, n=20, partition=None):
    c.insert([list(range(first, first + n)), [[0.25] * 8] * n, [f"s{i}" for i in range(n)], list(range(n))],
             partition_name=partition)


def state(side, name):
    d = side.describe(name)
    return {"indexes": side.indexes(name), "loaded": side.loaded(name), "partitions": side.loaded_partitions(name),
            "aliases": d["aliases"], "properties": d.get("properties")}


def wait_same(lab, *names, timeout=60):
    def same():
        for n in names:
            here, there = state(lab.source, n), state(lab.target, n)
            assert here == there, f"{n}: source {here}, target {there}"
        return True

    def check():
        try:
            return same()
        except MilvusException as e:
            raise AssertionError(str(e)) from None
    wait_for("set up as on the source", check, timeout, 0.3)


@pytest.mark.parametrize("start", ["now", "snapshot"])
def test_from_before(to, cdc, ordinary, start):
    whole, names = books(to, "whole", IVF, "all"), []
    if start == "now":  # a copy needs them loaded
        names = [books(to, "some").name, books(to, "none", loaded=()).name]
    names.append(whole.name)
    whole.set_properties({"collection.ttl.seconds": 5400})  # of which a 2.3.5 source tells etcd nothing
    put(whole, 0)
    put(whole, 100, partition="pb")
    task = to.create(cdc, names, target=ordinary, start=start)
    if start == "snapshot":
        wait_for("the copy's end", lambda: "snapshot" not in cdc.task(task), 120)
    wait_same(to, *names)
    put(whole, 200, partition="pa")
    cdc.wait_caught_up(task)
    if start == "snapshot":
        to.equal(cdc, task, [whole.name])
    to.wait_on_target("rows", lambda: to.target.count(whole.name) == (60 if start == "snapshot" else 20))
    assert "reason" not in cdc.task(task)


def changes(lab, a, b):
    """Each kind of change, in an order that a user of Milvus may make them."""
    using = lab.source.alias()
    utility.alter_alias(b.name, a.name + "_alias", using=using)
    yield
    utility.drop_alias(b.name + "_alias", using=using)
    a.set_properties({"collection.ttl.seconds": 7200})
    yield
    a.partition("pa").release()
    b.load()
    yield
    a.partition("pa").load()
    b.partition("pb").release()
    yield
    a.release()
    a.drop_index(index_name="v")
    a.create_index("v", IVF)
    a.load()
    b.release()
    b.drop_index(index_name=b.name + "_s")
    yield
    b.load()
    utility.create_alias(a.name, a.name + "_again", using=using)
    yield


def test_while_it_runs(to, cdc, ordinary):
    a, b = books(to, "a"), books(to, "b", IVF)
    task = to.create(cdc, ["*"], target=ordinary)
    wait_same(to, a.name, b.name)
    for i, _ in enumerate(changes(to, a, b)):
        put(a, 1000 * i)
        wait_same(to, a.name, b.name)
    assert not utility.has_collection(b.name + "_alias", using=to.target.alias())
    to.equal(cdc, task, [a.name, b.name])
    assert cdc.task(task)["state"] == "Running" and "reason" not in cdc.task(task)


@pytest.mark.parametrize("how", ["killed", "down"])
def test_while_the_daemon_dies(to, cdc, ordinary, how):
    a, b = books(to, "a"), books(to, "b", IVF)
    task = to.create(cdc, ["*"], target=ordinary)
    wait_same(to, a.name, b.name)
    if how == "down":
        cdc.ended_on_purpose = True
        cdc.kill()
    for i, _ in enumerate(changes(to, a, b)):
        put(a, 1000 * i)
        if how == "killed":
            cdc.restart(hard=True)
    if how == "down":
        cdc.start()
    wait_same(to, a.name, b.name)
    assert not utility.has_collection(b.name + "_alias", using=to.target.alias())
    to.equal(cdc, task, [a.name, b.name])


def test_what_users_of_the_target_made_stays(to, cdc, ordinary):
    a = books(to, "a", loaded=())
    a.drop_index(index_name=a.name + "_n")
    task = to.create(cdc, [a.name], target=ordinary)
    wait_same(to, a.name)
    there = to.target.collection(a.name)
    there.create_index("n", {}, index_name="own")
    there.load()
    utility.create_alias(a.name, a.name + "_own", using=to.target.alias())
    a.set_properties({"collection.ttl.seconds": 60})
    utility.drop_alias(a.name + "_alias", using=to.source.alias())
    want = [a.name + "_own"]
    to.wait_on_target("the change", lambda: to.target.describe(a.name)["aliases"] == want)
    cdc.restart(hard=True)
    put(a, 0)
    cdc.wait_caught_up(task)
    assert "own" in [i[1] for i in to.target.indexes(a.name)]
    assert to.target.loaded(a.name) == "Loaded"
    utility.drop_alias(a.name + "_own", using=to.target.alias())


def test_an_index_that_the_target_refuses(to, cdc, ordinary):
    """There is another one already: rows go on, and get says what is wrong."""
    a = books(to, "a", loaded="all")
    task = to.create(cdc, [a.name], target=ordinary)
    wait_same(to, a.name)
    there = to.target.collection(a.name)
    a.release()
    a.drop_index(index_name="v")
    to.wait_on_target("no index", lambda: "v" not in [i[1] for i in to.target.indexes(a.name)])
    there.create_index("v", IVF, index_name="v")
    a.create_index("v", HNSW)
    reason = wait_for("a reason", lambda: cdc.task(task).get("reason"), 30)
    assert a.name in reason and "Drop the target's index" in reason
    put(a, 0)
    cdc.wait_caught_up(task)
    assert cdc.task(task)["state"] == "Running"
    there.drop_index(index_name="v")
    a.load()
    wait_same(to, a.name)
    assert "reason" not in cdc.task(task)


@pytest.mark.parametrize("mode", ["portable", "standby"])
def test_rename(lab, cdc, ordinary, pair, mode):
    """Rows go on to the same collection; its former name is free at once."""
    target = pair.target
    if mode == "portable":
        target = ordinary
        lab.into(ordinary)
    t = lab.table("a")
    task = lab.create(cdc, ["*"], target=target)
    t.put(20)
    former = t.name
    utility.rename_collection(former, former + "_new", using=lab.source.alias())
    t.name += "_new"
    t.collection = lab.source.collection(t.name)
    t.put(20)
    again = lab.table("a", "text_key")
    again.put(5)
    lab.equal(cdc, task, [t, again])
    cdc.ended_on_purpose = True
    cdc.kill()
    utility.rename_collection(t.name, former + "_third", using=lab.source.alias())
    t.name = former + "_third"
    t.collection = lab.source.collection(t.name)
    t.put(20)
    cdc.start()
    lab.equal(cdc, task, [t, again])
    assert not lab.target.has(former + "_new")


def test_rename_of_a_collection_that_was_named(to, cdc, ordinary):
    """Followed, under the name that it has on the target."""
    t = to.table("a")
    task = to.create(cdc, [t.name], target=ordinary)
    t.put(10)
    to.equal(cdc, task, [t])
    utility.rename_collection(t.name, t.name + "_new", using=to.source.alias())
    t.collection = to.source.collection(t.name + "_new")
    t.put(10)
    cdc.wait_caught_up(task)
    to.wait_on_target("all rows", lambda: to.target.count(t.name) == 20)
    assert not to.target.has(t.name + "_new")
    t.collection.drop()
    to.wait_on_target("the drop", lambda: not to.target.has(t.name))


def test_standby(lab, cdc, pair):
    """From before: all of it. Then aliases and properties from etcd, indexes and loads from the log."""
    a, b = books(lab, "a"), books(lab, "b", IVF, "all")
    task = lab.create(cdc, ["*"])
    wait_same(lab, a.name, b.name)
    put(b, 0)
    using = lab.source.alias()
    utility.alter_alias(b.name, a.name + "_alias", using=using)
    utility.drop_alias(b.name + "_alias", using=using)
    a.set_properties({"collection.ttl.seconds": 7200})
    b.release()
    b.drop_index(index_name="v")
    b.create_index("v", HNSW)
    b.load()
    wait_same(lab, a.name, b.name)
    cdc.restart(hard=True)
    put(b, 1000)
    lab.equal(cdc, task, [b.name])
    assert "reason" not in cdc.task(task)
