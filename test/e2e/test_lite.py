"""The target is a Milvus Lite: what it does in a way of its own must not show in the rows."""
import os
import time

import pytest
from pymilvus import DataType as T, FieldSchema as F

from compare import Side, plain, wait_equal
from conftest import FOLDER, SEED
from servers import ApiError, MilvusLite, wait_for
from workload import SHAPES, Shape, Table, Workload, int_key, text, vec, vector

SECONDS = int(os.environ.get("WORKLOAD_SECONDS") or 25)

# Milvus Lite has no binary vectors.
LITE_SHAPES = {**SHAPES, "auto_key": Shape(lambda: [int_key(auto_id=True), F("t", T.VARCHAR, max_length=64), vector()],
                                           lambda rnd, key: {"t": text(rnd), "v": vec(rnd)}, auto=True, shards_num=2)}


class LiteSide(Side):
    """With a limit Milvus Lite gives any rows, and its own count(*) looks at no partition."""

    def comparable(self, described):
        """It tells no more of a field, and has partitions of its own for a partition key."""
        fields = [{k: f.get(k) for k in ("name", "type", "is_primary", "is_partition_key", "element_type")}
                  for f in described["fields"]]
        return {"enable_dynamic_field": described["enable_dynamic_field"], "fields": fields}

    def comparable_indexes(self, indexes):
        """Its indexes are called as their fields."""
        return [(field, dict(params).get("metric_type")) for field, _, params in indexes]

    def partitions(self, name, database="default"):
        found = super().partitions(name, database)
        return ["_default_%d" % i for i in range(3)] if "_pk_0" in found else found

    def _all(self, name, database, fields, partition):
        c = self.collection(name, database)
        pk = c.schema.primary_field
        everything = f'{pk.name} >= ""' if pk.dtype == T.VARCHAR else f"{pk.name} >= {-2**63 + 1}"
        return pk.name, c.query(everything, output_fields=list(fields), consistency_level="Strong", timeout=self.timeout,
                                partition_names=[partition] if partition else None)

    def count(self, name, database="default", partition=None):
        return self._all(name, database, ["count(*)"], partition)[1][0]["count(*)"]

    def rows(self, name, database="default", fields=("*",), partition=None, progress=None):
        pk, rows = self._all(name, database, fields, partition)
        return {r[pk]: plain(r) for r in rows}


class HomeTable(Table):
    """A key is in one partition only, as in a Milvus Lite: an upsert goes to where the row is."""

    def make(self):
        self.homes = {}
        super().make()

    def put(self, n, partition=None):
        keys = super().put(n, partition)
        self.homes.update(dict.fromkeys(keys, partition))
        return keys

    def upsert(self):
        if self.shape.auto or not self.keys:
            return self.insert()
        home = self.homes[self.rnd.choice(sorted(self.keys))]
        there = sorted(k for k in self.keys if self.homes[k] == home)
        self.change(self.rnd.sample(there, min(len(there), self.rnd.randrange(1, 20))), home)

    def drop_partition(self):
        before = set(self.partitions)
        try:
            super().drop_partition()
        finally:
            gone = before - set(self.partitions)
            self.keys = {k for k in self.keys if self.homes[k] not in gone}


@pytest.fixture(scope="module")
def lite(pair):
    m = MilvusLite(FOLDER / "lite").start()
    yield m
    m.kill()


@pytest.fixture
def to(lab, lite):
    return lab.into(lite, LiteSide)


def make_table(lab, suffix, shape):
    t = HomeTable(lab.name(suffix), LITE_SHAPES[shape], lab.source.alias(), lab.rnd)
    lab.made.append(("default", t.name))
    return t


def test_operations(to, cdc, lite):
    task = to.create(cdc, ["*"], target=lite)
    assert cdc.task(task)["mode"] == "portable"
    tables = [make_table(to, s, s) for s in LITE_SHAPES]
    for t in tables:
        t.create_partition()
        t.insert()
        t.delete()
        t.upsert()
    to.equal(cdc, task, tables)
    for t in tables:
        t.drop_partition()
        t.insert()
    tables[0].recreate()
    tables[1].reindex()
    to.equal(cdc, task, tables)
    assert cdc.task(task)["state"] == "Running"


@pytest.mark.every_queue
@pytest.mark.only_on("rocksmq", "kafka")
def test_random_workload_with_kill_9(to, cdc, lite):
    """Of us and of the target, in turn."""
    task = to.create(cdc, ["*"], target=lite)
    w = Workload(to.source.alias(), to.prefix, SEED, LITE_SHAPES, HomeTable).start()
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            time.sleep(to.rnd.uniform(0.3, 4))
            to.rnd.choice([cdc, cdc, lite]).restart(hard=True)
            assert cdc.task(task)["state"] == "Running", cdc.task(task)
    finally:
        w.stop()
    print(f"{w.done} operations, refused by the source: {len(w.errors)} {w.errors[:5]}")
    cdc.wait_caught_up(task, 180)
    wait_equal(to.source, to.target, w.names, timeout=120)
    assert cdc.task(task)["state"] == "Running"
    assert w.done > 50 and len(w.errors) * 10 < w.done, w.errors[:10]


def test_what_it_does_not_know(to, cdc, lite):
    """Is refused when the task is made; the only vector of a collection cannot be left out either."""
    t = to.table("a", "auto_key")
    for more in ({}, {"leave_out_unknown": True}):
        with pytest.raises(ApiError, match=f"400: .*default.{t.name}: field `b`: Milvus Lite has no BinaryVector"):
            to.create(cdc, [t.name], target=lite, **more)
    assert not cdc.api("list")["tasks"]
    task = to.create(cdc, [to.name("b")], target=lite)  # one that comes later
    assert cdc.task(task)["state"] == "Running"
    t = to.table("b", "auto_key")
    reason = wait_for("a reason", lambda: cdc.task(task).get("reason"), 30)
    assert f"default.{t.name}: field `b`: Milvus Lite has no BinaryVector" in reason
    assert cdc.task(task)["state"] == "Paused"


def test_rows_replace_those_of_a_former_task(to, cdc, lite):
    """An Upsert there would keep the keys of the dynamic field that the new row does not have."""
    t = make_table(to, "a", "text_key")
    t.collection.insert([{"id": "k", "v": vec(to.rnd), "new": 1}])
    there = Table(t.name, t.shape, to.target.alias(), to.rnd)
    there.collection.insert([{"id": "k", "v": vec(to.rnd), "old": 1}])
    task = to.create(cdc, [t.name], target=lite, start="snapshot")
    wait_for("the copy's end", lambda: "snapshot" not in cdc.task(task), 60)
    assert to.target.rows(t.name) == to.source.rows(t.name)
