"""Each operation on the source is seen on the target."""
import pytest
from pymilvus import db

from compare import wait_equal
from workload import SHAPES


@pytest.mark.every_queue
@pytest.mark.parametrize("shape", SHAPES)
def test_rows(lab, cdc, shape):
    """A collection made after the task: from its first row, with deletes and upserts."""
    task = lab.create(cdc, ["*"])
    t = lab.table("a", shape)
    keys = t.put(300)
    t.put(1)
    t.remove(keys[:20])
    if not SHAPES[shape].auto:
        t.change(keys[10:40])
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name) == 301 - (20 if SHAPES[shape].auto else 10)


@pytest.mark.every_queue
def test_rows_of_one_request_larger_than_a_message(lab, cdc):
    """The source cuts a request into messages of about 5 MB; each has its own id, all have the same time."""
    task = lab.create(cdc, ["*"])
    t = lab.table("a", "text_key")
    rows = [{**t.shape.row(t.rnd, f"k{i}"), "pad": "x" * 60_000} for i in range(200)]
    t.collection.insert(rows)
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name) == 200


@pytest.mark.every_queue
def test_existing_collection_follows_from_the_task_start(lab, cdc):
    t = lab.table("a", loaded=False)
    t.put(50)
    task = lab.create(cdc, [t])
    t.show()
    later = t.put(7)
    cdc.wait_caught_up(task)
    lab.wait_on_target("loaded", lambda: lab.target.loaded(t.name) == "Loaded")
    assert sorted(lab.target.rows(t.name)) == later
    assert lab.target.count(t.name) == 7


@pytest.mark.every_queue
def test_use_start_position_brings_all_rows(lab, cdc):
    t = lab.table("a", loaded=False)
    keys = t.put(50)
    t.remove(keys[:5])
    t.change(keys[5:10])
    task = lab.create(cdc, [{"name": t.name, "use_start_position": True}])
    t.show()
    t.put(7)
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name) == 52


@pytest.mark.every_queue
def test_create_and_drop_partition(lab, cdc):
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    for name in ("p1", "p2"):
        t.collection.create_partition(name)
        t.put(20, name)
    lab.equal(cdc, task, [t])
    t.collection.release()
    t.collection.drop_partition("p1")
    t.collection.load()
    lab.equal(cdc, task, [t])
    assert lab.target.partitions(t.name) == ["_default", "p2"]


def test_empty_partitions(lab, cdc):
    """No row tells of them: made while the collection is new, while the task is paused, while the daemon is down."""
    task = lab.create(cdc, ["*"])
    t = lab.table("a", loaded=False)
    t.collection.create_partition("at_once")
    lab.wait_on_target("the first", lambda: "at_once" in lab.target.partitions(t.name), 20)
    t.show()
    t.put(5)
    lab.equal(cdc, task, [t])
    cdc.api("pause", task_id=task)
    t.collection.create_partition("late")
    cdc.api("resume", task_id=task)
    lab.equal(cdc, task, [t])
    cdc.stop()
    t.collection.create_partition("later")
    cdc.start()
    lab.equal(cdc, task, [t])


def test_rows_into_a_partition_made_just_before(lab, cdc):
    """The rows can be in the log before the partition's event has come from etcd."""
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    for i in range(8):
        t.collection.create_partition(f"p{i}")
        t.put(3, f"p{i}")
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name) == 24


def test_delete_and_upsert_in_a_partition(lab, cdc):
    """A key is unique in its partition only: operations that name one must not touch the other."""
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    t.collection.create_partition("p1")
    keys = t.put(10)
    t.change(keys, "p1")
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name) == 20
    t.remove(keys[:4], "p1")
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name, partition="p1") == 6
    assert lab.target.count(t.name, partition="_default") == 10


@pytest.mark.every_queue
def test_drop_collection(lab, cdc):
    task = lab.create(cdc, ["*"])
    t, other = lab.table("a"), lab.table("b")
    t.put(10)
    lab.equal(cdc, task, [t])
    t.drop()
    lab.wait_on_target("dropped", lambda: not lab.target.has(t.name))
    other.put(10)
    lab.equal(cdc, task, [other])


@pytest.mark.every_queue
def test_index_drop_and_load_release(lab, cdc):
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    t.put(10)
    lab.equal(cdc, task, [t])
    t.collection.release()
    lab.wait_on_target("released", lambda: lab.target.loaded(t.name) == "NotLoad")
    t.collection.drop_index(index_name="ix_v")
    lab.wait_on_target("index gone", lambda: not lab.target.indexes(t.name))
    t.collection.create_index("v", {"index_type": "HNSW", "metric_type": "IP",
                                    "params": {"M": 8, "efConstruction": 32}}, index_name="second")
    t.collection.load()
    lab.equal(cdc, task, [t])
    assert lab.target.indexes(t.name)[0][1] == "second"


def test_load_of_partitions_disturbs_nothing(lab, cdc):
    """Loads of single partitions are not in the log of a 2.3.5 source; what follows them must come over all the same."""
    task = lab.create(cdc, ["*"])
    t = lab.table("a", loaded=False)
    t.collection.create_partition("p1")
    t.put(5, "p1")
    t.index()
    t.collection.load(partition_names=["p1"])
    t.collection.partition("p1").release()
    t.put(5)
    t.collection.load()
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name) == 10


def test_drop_of_a_partition_between_release_and_load(lab, cdc):
    """
    The source drops no loaded partition, so people release, drop and load again. Release and load come over another
    channel than the drop: a target that is loaded again too early refuses the drop for ever.
    """
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    for i in range(4):
        t.collection.create_partition(f"p{i}")
        t.put(5, f"p{i}")
    lab.equal(cdc, task, [t])
    cdc.api("pause", task_id=task)
    for i in range(4):
        t.collection.release()
        t.collection.drop_partition(f"p{i}")
        t.collection.load()
    cdc.api("resume", task_id=task)
    lab.equal(cdc, task, [t], timeout=60)
    assert lab.target.partitions(t.name) == ["_default"]


def test_flush(lab, cdc):
    """A flush of an empty collection blocks a standby for minutes: what follows must not wait for it."""
    task = lab.create(cdc, ["*"])
    empty, t = lab.table("empty", loaded=False), lab.table("a")
    empty.flush()
    t.put(100)
    t.flush()
    other = lab.table("b")
    other.put(5)
    lab.equal(cdc, task, [t, other], timeout=60)


@pytest.mark.every_queue
def test_databases(lab, cdc):
    """A database from before the task is made on the target, and one that comes later; a drop follows."""
    old = lab.database("old")
    a = lab.table("a", database=old, loaded=False)
    task = lab.create(cdc, {"*": [{"name": "*"}]})
    a.show()
    a.put(10)
    new = lab.database("new")
    b = lab.table("b", "text_key", database=new)
    b.put(10)
    cdc.wait_caught_up(task)
    for database, t in ((old, a), (new, b)):
        lab.wait_on_target(f"database {database}", lambda: database in lab.target.databases())
        wait_equal(lab.source, lab.target, [t.name], database, 60)
    b.drop()
    lab.wait_on_target("dropped", lambda: not lab.target.has(b.name, new))
    db.drop_database(new, using=lab.source.alias())
    lab.databases.remove(new)
    lab.wait_on_target("database gone", lambda: new not in lab.target.databases())


def test_task_for_one_database(lab, cdc):
    """What lies in other databases stays away."""
    mine = lab.database("mine")
    task = lab.create(cdc, {mine: [{"name": "*"}]})
    a, other = lab.table("a", database=mine), lab.table("other")
    a.put(10)
    other.put(10)
    lab.equal(cdc, task, [a], mine)
    assert not lab.target.has(other.name)


def test_name_mapping(lab, cdc):
    t = lab.table("a", loaded=False)
    new = t.name + "_renamed"
    task = lab.create(cdc, [t], name_mapping=[
        {"source_db": "default", "target_db": "default", "collection_mapping": {t.name: new}}])
    t.show()
    keys = t.put(10)
    t.remove(keys[:2])
    cdc.wait_caught_up(task)
    lab.wait_on_target("loaded", lambda: lab.target.loaded(new) == "Loaded")
    assert lab.target.rows(new) == lab.source.rows(t.name)
    assert not lab.target.has(t.name)


def test_number_of_partitions_of_a_partition_key(lab, cdc):
    """The target's default is 64; 2.3.5's Go daemon left it at that."""
    lab.create(cdc, ["*"])
    t = lab.table("a", "part_key")
    lab.wait_on_target("created", lambda: lab.target.has(t.name))
    assert lab.target.partitions(t.name) == ["_default_0", "_default_1", "_default_2"]


def test_different_schema_on_the_target_is_refused_by_name(lab, cdc):
    """An existing collection is compared, not taken as it is."""
    t = lab.table("a", loaded=False)
    SHAPES["text_key"].create(t.name, lab.target.alias())
    with pytest.raises(Exception) as refused:
        task = lab.create(cdc, [t])
        lab.wait_on_target("a reason", lambda: t.name in cdc.task(task).get("reason", ""), 30)
        raise RuntimeError(cdc.task(task)["reason"])
    assert t.name in str(refused.value)
    assert lab.target.describe(t.name)["fields"][0]["type"] == "VARCHAR"
