"""Many channels, collections and tasks: a source with 256 physical channels that tick every 200 ms, collections written
straight into its etcd, targets that only count. The release build is measured; limits are generous for a machine that
does other things too, and the exact figures are printed (pytest -s)."""
import subprocess
import time

import pytest
from pymilvus import Collection, CollectionSchema, DataType, FieldSchema

import servers
from bench_parts import Sink, cpu_seconds
from compare import Side
from conftest import FOLDER
from many import Many
from servers import ROOT, Cdc, Etcd, Milvus, wait_for

CHANNELS, TASKS, EACH = 256, 100, 10
START_SECONDS, IDLE_CPU_PERCENT, BYTES_PER_COLLECTION = 5, 5, 2560
PROGRAM = ROOT / "build" / "milvus-cdc"


class Wide:
    """A source that ticks on all its channels: 16 real collections of 16 shards see to that."""

    def __init__(self):
        subprocess.run(["make", "-s", "-C", ROOT, "all", "tools"], check=True)
        folder = FOLDER / "scale"
        servers.remove_tree(folder)
        self.etcd = Etcd(folder / "etcd").start()
        self.source = Milvus("wide", folder / "source", etcd=self.etcd.address, channels=CHANNELS).start()
        schema = CollectionSchema([FieldSchema("id", DataType.INT64, is_primary=True),
                                   FieldSchema("v", DataType.FLOAT_VECTOR, dim=8)])
        side = Side("wide", self.source.address)
        self.tickers = [Collection(f"ticker_{i}", schema, using=side.alias(), shards_num=16) for i in range(16)]
        self.many = Many(self.source, CHANNELS)
        self.folder, self.runs = folder, 0

    def pair(self, **settings):
        """A fresh target and a fresh milvus-cdc."""
        self.runs += 1
        folder = self.folder / f"run{self.runs}"
        sink = Sink(folder / "sink", channels=16).start()
        return sink, Cdc(folder / "cdc", self.source, program=PROGRAM, **settings).start()

    def stop(self):
        self.source.stop()
        self.etcd.stop()


@pytest.fixture(scope="module")
def wide():
    w = Wide()
    yield w
    w.stop()


def times(cdc, op):
    """Of the last tick that each (task, channel) has read or written, ms."""
    return [v for k, v in cdc.metrics().items()
            if k.startswith("milvus_cdc_replicate_tt{") and f'op_type="{op}"' in k]


def wait_times(cdc, op, n, since, timeout=60):
    def there():
        t = times(cdc, op)
        return len(t) >= n and min(t) >= since * 1000
    wait_for(f"{n} channels of tasks, {op} since the start", there, timeout, 0.02)


def cpu_percent(cdc, seconds=20):
    before, started = cpu_seconds(cdc.pid), time.monotonic()
    time.sleep(seconds)  # what is measured is time in which nothing happens
    return 100 * (cpu_seconds(cdc.pid) - before) / (time.monotonic() - started)


def rss(cdc):
    """The least of some seconds: buffers come and go, and what the start needed is given back after five."""
    least = None
    for _ in range(40):
        with open(f"/proc/{cdc.pid}/status") as f:
            kib = next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))
        least = min(least or kib, kib)
        time.sleep(0.25)
    return least * 1024


def test_a_hundred_tasks(wide):
    """A thousand collections in a hundred tasks: the start, and what it costs when nothing happens."""
    wide.many.grow(TASKS * EACH)
    sink, cdc = wide.pair(maxTaskNum=2 * TASKS)
    try:
        began = time.time()
        for t in range(TASKS):
            cdc.create(sink, [wide.many.name(i) for i in range(t * EACH, (t + 1) * EACH)])
        wait_times(cdc, "write", TASKS * EACH, began)
        created = time.time() - began
        assert cdc.stop() == 0
        began = time.time()
        cdc.start()
        ready = time.time() - began
        wait_times(cdc, "read", TASKS * EACH, began)
        reading = time.time() - began
        wait_times(cdc, "write", TASKS * EACH, began)
        states = [t["state"] for t in cdc.api("list")["tasks"]]
        print(f"\n{TASKS} tasks created in {created:.2f} s; start: ready {ready:.2f} s, all reading {reading:.2f} s")
        assert states == ["Running"] * TASKS
        assert reading < START_SECONDS
        requests, started = sink.stats()["requests"], time.monotonic()
        cpu, mib = cpu_percent(cdc), rss(cdc) / 2**20
        rate = (sink.stats()["requests"] - requests) / (time.monotonic() - started)
        print(f"idle: {cpu:.2f} % of a core, {rate:.1f} requests/s, {mib:.1f} MiB")
        assert cpu < IDLE_CPU_PERCENT
        assert rate < 2.2 * 16  # one for each interval and channel of the target
        assert not any(t.get("reason") for t in cdc.api("list")["tasks"])
        assert cdc.stop() == 0
    finally:
        servers.Process.kill(cdc)
        sink.stop()


def one_task(wide, n):
    """Bytes and idle CPU (of three windows the calmest: the machine has other work) of a daemon with one task of all."""
    wide.many.grow(n)
    sink, cdc = wide.pair()
    try:
        task = cdc.create(sink, ["*"])
        made = f'milvus_cdc_api_execute_total{{task_id="{task}",api_type="CreateCollection"}}'
        wait_for("all are made", lambda: cdc.metrics().get(made, 0) >= n + len(wide.tickers), 120)
        assert cdc.stop() == 0
        began = time.time()
        cdc.start()
        wait_times(cdc, "write", CHANNELS, began)
        cdc.wait_caught_up(task)
        result = rss(cdc), min(cpu_percent(cdc, 5) for _ in range(3))
        assert cdc.stop() == 0
        return result
    finally:
        servers.Process.kill(cdc)
        sink.stop()


def test_an_idle_collection(wide):
    """More collections on the same channels: memory for each, and no more work."""
    few = max(wide.many.n, CHANNELS)
    many = few + 8 * CHANNELS
    (few_bytes, few_cpu), (many_bytes, many_cpu) = one_task(wide, few), one_task(wide, many)
    each = (many_bytes - few_bytes) / (many - few)
    print(f"\n{few} collections: {few_bytes / 2**20:.1f} MiB, {few_cpu:.2f} %; {many}: {many_bytes / 2**20:.1f} MiB, "
          f"{many_cpu:.2f} %; {each:.0f} bytes each")
    assert each < BYTES_PER_COLLECTION
    assert many_cpu < few_cpu + 1.5


def statements(postgres, database):
    """Each of the daemons' statements is a transaction."""
    return int(postgres.sql("SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database "
                            f"WHERE datname = '{database}'"))


def test_a_thousand_tasks_over_three_daemons(wide, postgres):
    """Fifty targets with twenty tasks each: how soon the claims settle, and what the registry has to do then."""
    targets, each, daemons = 50, 20, 3
    wide.many.grow(targets * each)
    database = f"t{time.time_ns() % 10**9}"
    registry = {"type": "postgresql", "uri": postgres.database(database), "leaseSeconds": 6}
    folder = wide.folder / "group"
    sink = Sink(folder / "sink", channels=16, listen="0.0.0.0").start()
    cdcs = [Cdc(folder / f"cdc{i}", wide.source, program=PROGRAM, registry=registry, maxTaskNum=2000)
            for i in range(daemons)]
    try:
        cdcs[0].start()
        wait_for("it answers", lambda: cdcs[0].api("list") is not None, 20)
        for n in range(targets * each):
            sink.uri = f"http://127.0.1.{n % targets + 1}:{sink.port}"
            cdcs[0].create(sink, [wide.many.name(n)])
        assert cdcs[0].stop() == 0
        began = time.monotonic()
        for c in cdcs:
            c.start(ready=None)

        def spread():
            tasks = cdcs[0].api("list")["tasks"]
            owned = [sum(f":{c.port}" in t.get("owner", "") for t in tasks) for c in cdcs]
            return owned if sum(owned) == len(tasks) == targets * each and max(owned) - min(owned) <= each else None
        owned = wait_for("all tasks have an owner, evenly", spread, 60, 0.05)
        settled = time.monotonic() - began
        for c in cdcs:
            wait_times(c, "write", each, time.time())
        quiet = statements(postgres, database), time.monotonic()
        time.sleep(10)  # what is measured is time in which nothing happens
        rate = (statements(postgres, database) - quiet[0]) / (time.monotonic() - quiet[1]) / daemons
        print(f"\n{targets * each} tasks over {daemons} daemons: {owned}, settled {settled:.2f} s after the start; "
              f"{rate:.1f} statements/s for each daemon")
        assert settled < 5
        assert rate < 50
        for c in cdcs:
            assert c.stop() == 0
    finally:
        for c in cdcs:
            servers.Process.kill(c)
        sink.stop()
