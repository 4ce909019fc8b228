"""Rows that the source had before the task: start snapshot, into an ordinary Milvus."""
import random
import secrets

import pytest
from pymilvus import Collection, CollectionSchema, DataType, FieldSchema, utility

from servers import ROOT, ApiError, Cdc, wait_for
from test_group import Group


def copied(cdc, task):
    return wait_for("the copy's end", lambda: "snapshot" not in cdc.task(task), 180)


def test_rows_from_before(to, cdc, ordinary, writing):
    """Seven schemas, partitions; while they are copied, rows are written, changed and deleted."""
    tables = [to.table(s, s) for s in ("int_key", "text_key", "auto_key", "part_key", "scalars", "json", "arrays")]
    tables[0].create_partition()
    for t in tables:
        for _ in range(5):
            t.put(400, t.partition())
        t.remove(t.some_keys(30))
    with writing(tables[0]) as a, writing(tables[1]) as b:
        task = to.create(cdc, [t.name for t in tables], target=ordinary, start="snapshot")
        for w in (a, b):
            w.wait_batches(10)
        copied(cdc, task)
        for w in (a, b):
            w.wait_batches(5)
    cdc.wait_caught_up(task)
    to.equal(cdc, task, tables)
    assert cdc.task(task)["state"] == "Running"
    assert "reason" not in cdc.task(task)


def test_kill_while_rows_are_copied(to, ordinary, writing):
    """The copy goes on where it was; what was written twice is there once."""
    t = to.table("big")
    t.create_partition()
    for i in range(60):
        t.put(1000, t.partitions[i % 2])
    cdc = to.cdc(limits={"copyBytes": "1MiB"})  # small pages, or it is over before it is seen
    with writing(t) as w:
        task = to.create(cdc, [t.name], target=ordinary, start="snapshot")
        for part in (0.3, 0.7):
            wait_for(f"{part:.0%} of the rows", lambda: "snapshot" not in (s := cdc.task(task)) or
                     s["snapshot"]["rows"] >= part * 60000, 120, 0.01)
            assert "snapshot" in cdc.task(task), "it was over too soon"
            shown = cdc.metrics()
            assert shown[f'milvus_cdc_snapshot_rows{{task_id="{task}"}}'] >= part * 60000
            assert shown[f'milvus_cdc_snapshot_collections{{task_id="{task}"}}'] == 1
            cdc.restart(hard=True)
        copied(cdc, task)
        w.wait_batches(3)
    cdc.wait_caught_up(task)
    to.equal(cdc, task, [t])
    log = cdc.log.read_text()
    assert "a collection is copied" in log
    assert cdc.metrics()[f'milvus_cdc_snapshot_collections{{task_id="{task}"}}'] == 0
    cdc.api("delete", task_id=task)
    assert not [k for k in cdc.metrics() if "milvus_cdc_snapshot_" in k]


def kill(cdc):
    cdc.kill()
    cdc.ended_on_purpose = True


def test_another_daemon_goes_on(to, postgres, ordinary, writing):
    """The owner is killed while it copies, the next one while it streams: nothing is copied from the start again, nothing
    lost or doubled."""
    group = Group(to, postgres.database(f"s{secrets.token_hex(4)}"), 3)
    t = to.table("big")
    for _ in range(160):
        t.put(1000)
    task = to.create(group.c[0], [t.name], target=ordinary, start="snapshot")
    first = group.wait_owner(task)
    other = next(c for c in group.c if c is not first)  # any daemon tells how far it is
    with writing(t) as w:
        wait_for("a part of the rows", lambda: other.task(task)["snapshot"]["rows"] >= 8000, 120, 0.01)
        kill(first)
        second = group.wait_owner(task, first, ask=other)
        assert second.task(task)["snapshot"]["rows"] >= 8000
        copied(second, task)
        w.wait_batches(5)
        kill(second)
        third = group.wait_owner(task, second)
        w.wait_batches(5)
    third.wait_caught_up(task)
    to.equal(third, task, [t])


def test_a_collection_that_is_not_loaded(to, cdc, ordinary):
    t = to.table("a")
    t.put(50)
    t.collection.flush()
    t.collection.release()
    task = to.create(cdc, [t.name], target=ordinary, start="snapshot")
    reason = wait_for("a reason", lambda: cdc.task(task).get("reason"), 30)
    assert "not loaded on the source" in reason and "load_for_snapshot" in reason
    cdc.api("delete", task_id=task)
    task = to.create(cdc, [t.name], target=ordinary, start="snapshot", load_for_snapshot=True)
    copied(cdc, task)
    wait_for("the release on the source", lambda: to.source.loaded(t.name) == "NotLoad", 30)
    t.collection.load()
    cdc.wait_caught_up(task)
    to.equal(cdc, task, [t])


def test_the_least_key(to, cdc, ordinary):
    t = to.table("a")
    t.put(5)
    t.collection.insert([t.shape.row(t.rnd, -2**63)])
    task = to.create(cdc, [t.name], target=ordinary, start="snapshot")
    copied(cdc, task)
    wait_for("it is loaded on the target", lambda: to.target.loaded(t.name) == "Loaded", 30)
    wait_for("six rows on the target", lambda: to.target.count(t.name) == 6, 20)


def large_rows(lab, suffix, rows, dim, text=0):
    """A loaded collection on the source, in inserts of about 16 MB."""
    fields = [FieldSchema("id", DataType.INT64, is_primary=True), FieldSchema("v", DataType.FLOAT_VECTOR, dim=dim)]
    if text:
        fields.append(FieldSchema("t", DataType.VARCHAR, max_length=65535))
    c = Collection(lab.name(suffix), CollectionSchema(fields), using=lab.source.alias(), shards_num=1)
    c.create_index("v", {"index_type": "FLAT", "metric_type": "L2", "params": {}})
    c.load()
    for start in range(0, rows, 250):
        keys = list(range(start, min(start + 250, rows)))
        columns = [keys, [[k / 7] * dim for k in keys]]
        c.insert(columns + [[f"{k:05d}" * (text // 5) for k in keys]] if text else columns)
    return c


def peak_mib(pid):
    status = open(f"/proc/{pid}/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def test_large_rows_stay_in_the_room(to, ordinary):
    """
    64 KiB each: vectors, whose size the schema tells, and texts, whose size it does not (the first page is too large
    then). The release build, since a sanitizer keeps what was freed.
    """
    made = [large_rows(to, "v0", 1000, 16384), large_rows(to, "v1", 1000, 16384), large_rows(to, "t", 1000, 8, 60000)]
    cdc = Cdc(to.folder / "release", to.pair.source, program=ROOT / "build" / "milvus-cdc")
    to.cdcs.append(cdc.start())
    names = [c.name for c in made]
    task = to.create(cdc, names, target=ordinary, start="snapshot")
    copied(cdc, task)
    assert peak_mib(cdc.pid) < 96
    for c in made:
        there = to.target.collection(c.name)
        there.create_index("v", {"index_type": "FLAT", "metric_type": "L2", "params": {}}, index_name="v")
        there.load()
    for c in made:
        keys = set(random.sample(range(1000), 20))
        rows = [{r["id"]: r for r in side.collection(c.name).query(f"id in {sorted(keys)}", output_fields=["*"])}
                for side in (to.source, to.target)]
        assert set(rows[0]) == keys and rows[0] == rows[1]
        assert to.target.count(c.name) == to.source.count(c.name) == 1000


def test_collections_that_go_away(to, cdc, ordinary):
    """Dropped, or dropped and made again, while they are copied or wait for it."""
    tables = [to.table(f"t{i}") for i in range(6)]
    for t in tables:
        t.put(300)
    task = to.create(cdc, ["*"], target=ordinary, start="snapshot")
    tables[5].drop()
    tables[4].recreate()
    copied(cdc, task)
    cdc.wait_caught_up(task)
    to.equal(cdc, task, tables[:5])
    to.wait_on_target("the drop", lambda: not to.target.has(tables[5].name))


def test_refusals(to, pair, ordinary):
    cdc = to.cdc(start=False)
    t = to.table("a", loaded=False)
    del cdc.config["sourceConfig"]["milvus"]
    cdc.start()
    with pytest.raises(ApiError, match="sourceConfig.milvus.uri"):
        to.create(cdc, [t.name], target=ordinary, start="snapshot")
    other = to.cdc()
    with pytest.raises(ApiError, match="needs an ordinary Milvus as the target.*milvus-backup"):
        to.create(other, [t.name], start="snapshot")
    with pytest.raises(ApiError, match="allowed are now, earliest, snapshot, a time"):
        to.create(other, [t.name], target=ordinary, start="yesterday")
