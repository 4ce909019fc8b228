"""
The part `snapshot`: rows that exist before the task are copied into an ordinary Milvus while some are inserted and deleted
and milvus-cdc is killed twice; beside it, what that target needs when pymilvus writes the same rows straight into it.
"""
import random
import threading
import time

import numpy as np
from pymilvus import Collection
from pymilvus.client.prepare import Prepare

import bench_parts as parts
import ui
from compare import Side
from servers import Cdc, Milvus, wait_for

DIM, BATCH, PAGE = 128, 5000, 16384
INSERTS_PER_S, DELETES_PER_S = 100, 20
KILLED_AT = (0.3, 0.7)


def batches(rows):
    """The rows, the same at each call: (keys, vectors)."""
    for start in range(0, rows, BATCH):
        n = min(BATCH, rows - start)
        yield list(range(start, start + n)), np.random.default_rng(start).random((n, DIM), dtype=np.float32)


def write_straight(side, name, rows, text):
    """Seconds that pymilvus needs for them."""
    c = Collection(name, parts.schema(DIM), using=side.alias(), shards_num=1)
    with ui.Bar(f"{text}: insert into {name}", rows) as bar:
        for keys, vectors in batches(rows):
            c.insert([keys, vectors])
            bar.at(keys[-1] + 1, "rows")
        return bar.seconds


def load(side, name):
    """FLAT: the servers have nothing to build, and so the processor for what is measured."""
    c = side.collection(name)
    c.flush(timeout=300)
    c.create_index("v", {"index_type": "FLAT", "metric_type": "L2", "params": {}})
    c.load(timeout=600)


class Changes:
    """Inserts of new keys and deletes of old ones, one row each, from a thread until the end of the with block."""

    def __init__(self, side, name, rows):
        self.stub, self.name, self.rows = side.handler()._stub, name, rows
        self.collection = side.collection(name)
        self.fields = [{"name": f.name, "type": f.dtype, "params": f.params, "is_primary": f.is_primary, "auto_id": False}
                       for f in self.collection.schema.fields]
        self.inserted, self.deleted, self.failed = 0, 0, []
        self.stopping, self.thread = threading.Event(), threading.Thread(target=self._run, daemon=True)

    def _insert(self):
        entities = [{"name": "id", "type": self.fields[0]["type"], "values": [self.rows + self.inserted]},
                    {"name": "v", "type": self.fields[1]["type"], "values": [[self.inserted % 97 / 97] * DIM]}]
        self.inserted += 1
        return self.stub.Insert.future(Prepare.batch_insert_param(self.name, entities, "", self.fields), timeout=60)

    def _delete(self, rnd):
        self.deleted += 1
        key = rnd.randrange(self.rows + self.inserted)
        return self.stub.Delete.future(Prepare.delete_request(self.name, "", f"id in [{key}]", 0), timeout=60)

    def _done(self, future):
        try:
            status = future.result().status
            if status.error_code:
                self.failed.append(status.reason)
        except Exception as e:  # the run is void then: see __exit__
            self.failed.append(str(e))

    def _run(self):
        rnd, began = random.Random(1), time.monotonic()
        while not self.stopping.wait(0.005):
            seconds = time.monotonic() - began
            while self.inserted < seconds * INSERTS_PER_S:
                self._insert().add_done_callback(self._done)
            while self.deleted < seconds * DELETES_PER_S:
                self._delete(rnd).add_done_callback(self._done)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stopping.set()
        self.thread.join()
        assert not self.failed, f"the source refused {len(self.failed)} changes, e.g. {self.failed[0]}"


# ---- equal? -----------------------------------------------------------------------------------------------------


def pages(side, name):
    """(keys, vectors) by rising key; values are taken from the answers' bytes, or a million rows would take minutes."""
    stub, last = side.handler()._stub, -1
    while True:
        request = Prepare.query_request(name, f"id > {last}", ["id", "v"], None, limit=PAGE, consistency_level=0)
        answer = stub.Query(request, timeout=120)
        assert not answer.status.error_code, f"{side.name}: {answer.status.reason}"
        columns = {f.field_name: f for f in answer.fields_data}
        if not columns:
            return
        keys = np.array(columns["id"].scalars.long_data.data, dtype=np.int64)
        if not len(keys):
            return
        raw = columns["v"].vectors.float_vector.SerializeToString()  # a tag and a length, and then the values
        vectors = np.frombuffer(raw[-len(keys) * DIM * 4:], dtype="<f4").reshape(-1, DIM)
        order = np.argsort(keys)
        yield keys[order], vectors[order]
        last = keys.max()


def count(side, name):
    rows = side.collection(name).query("", output_fields=["count(*)"], consistency_level="Strong", timeout=120)
    return rows[0]["count(*)"]


def check_equal(source, target, name):
    """Every key, every vector, and count(*)."""
    seen, pairs = 0, [pages(source, name), pages(target, name)]
    with ui.Bar(f"comparing {name}") as bar:
        while True:
            (a, va), (b, vb) = (next(p, (np.empty(0), np.empty((0, DIM)))) for p in pairs)
            assert len(a) == len(b) and (a == b).all(), \
                f"keys differ behind {seen} rows: {sorted(set(a.tolist()) ^ set(b.tolist()))[:10]}"
            assert (va == vb).all(), f"vectors differ behind {seen} rows: {a[(va != vb).any(axis=1)][:10]}"
            if not len(a):
                break
            seen += len(a)
            bar.at(seen, "rows")
    counts = [count(side, name) for side in (source, target)]
    assert counts == [seen, seen], f"{seen} keys on both sides, but count(*) is {counts}"
    return seen


# ---- the part ---------------------------------------------------------------------------------------------------


class Used:
    """Processor time and peak memory of a daemon over its lives: look() before each end."""

    def __init__(self, cdc):
        self.cdc, self.cpu, self.peak = cdc, 0, 0

    def look(self):
        self.cpu += parts.cpu_seconds(self.cdc.pid)
        self.peak = max(self.peak, parts.peak_mib(self.cdc.pid))


def copy(lab, target, name, rows):
    """The figures of one copy; the daemon is killed on the way."""
    cdc = Cdc(lab.folder / "cdc-snapshot", lab.source).start()
    used, servers = Used(cdc), (lab.source, target)
    try:
        with Changes(lab.side, name, rows) as changes:
            before, began = [parts.cpu_seconds(s.pid) for s in servers], time.monotonic()
            task = cdc.create(target, [name], start="snapshot")
            with ui.Bar(f"copying {name}", rows) as bar:
                def copied():
                    """Rows, or None when it is over."""
                    s = cdc.task(task).get("snapshot")
                    bar.at(s["rows"] if s else rows, "rows")
                    return s["rows"] if s else None
                for at in KILLED_AT:
                    wait_for(f"{at:.0%} of the rows", lambda: (n := copied()) is None or n >= at * rows, 3600, 0.02)
                    assert copied() is not None, f"it was over before {at:.0%} of the rows were seen: use a greater --size"
                    used.look()
                    cdc.restart(hard=True)
                wait_for("the copy's end", lambda: copied() is None, 3600, 0.05)
            seconds = time.monotonic() - began
            cpu = [parts.cpu_seconds(s.pid) - b for s, b in zip(servers, before)]
        cdc.wait_caught_up(task, 600)
        used.look()
        ui.note(f"{changes.inserted} inserts and {changes.deleted} deletes meanwhile")
        return cdc, task, {"s": seconds, "rows/s": rows / seconds, "CPU s": used.cpu, "peak MiB": used.peak,
                           "source CPU s": cpu[0], "target CPU s": cpu[1]}
    except BaseException:
        cdc.stop()
        raise


def straight(lab, side, target, rows):
    before = parts.cpu_seconds(target.pid)
    seconds = write_straight(side, lab.name("straight"), rows, "target")
    return {"s": seconds, "rows/s": rows / seconds, "target CPU s": parts.cpu_seconds(target.pid) - before}


def snapshot_part(lab):
    rows, name = lab.args.size, lab.name("snapshot")
    target = Milvus("target", lab.folder / "target-snapshot", etcd=lab.etcd.address).start()
    side = Side("target", target.address, timeout=120)
    try:
        write_straight(lab.side, name, rows, "source")
        load(lab.side, name)
        parts.wait_quiet(lab)
        cdc, task, figures = copy(lab, target, name, rows)
        parts.report(lab, "snapshot", [figures], list(figures))
        load(side, name)
        ui.ok(f"snapshot: {ui.number(check_equal(lab.side, side, name))} rows are equal on both sides")
        cdc.api("delete", task_id=task)
        cdc.stop()
        parts.wait_quiet(lab)
        figures = straight(lab, side, target, rows)
        parts.report(lab, "straight", [figures], list(figures))
    finally:
        target.stop()
