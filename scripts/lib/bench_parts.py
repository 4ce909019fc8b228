"""What the benchmark measures, part by part: each fills a collection on the source and lets milvus-cdc follow it."""
import json
import os
import statistics
import subprocess
import threading
import time

import numpy as np
from pymilvus import Collection, CollectionSchema, DataType, FieldSchema
from pymilvus.client.prepare import Prepare

import go_cdc
import ui
from servers import ROOT, Cdc, Milvus, Process, free_port, http_get, wait_for

LARGE_DIM, SMALL_DIM = 768, 8
LARGE_BATCH, SMALL_BATCH = 1000, 100
LARGE_KEYS = ["MB/s", "flow MB/s", "CPU s/GB", "peak MiB"]
GO_QUEUES = ("kafka", "pulsar")  # what the Go implementation can read
QUIET_PERCENT = 25  # a source that compacts and indexes takes a core from what is measured


class Sink(Process):
    """The stand-in target: it counts and acknowledges. plain: as an ordinary Milvus, else as a standby."""

    def __init__(self, folder, delay_ms=0, channels=16, listen="127.0.0.1", host="127.0.0.1", record=False, plain=False):
        super().__init__("sinkd", folder)
        self.plain = plain
        self.port, self.stats_port, self.delay_ms, self.channels = free_port(), free_port(), delay_ms, channels
        self.listen, self.requests = listen, self.dir / "requests.log" if record else None
        self.uri = f"http://{host}:{self.port}"
        self.stats_url = f"http://127.0.0.1:{self.stats_port}"

    def start(self):
        self._spawn([ROOT / "build" / "tools" / "sinkd", "--port", self.port, "--stats-port", self.stats_port,
                     "--delay-ms", self.delay_ms, "--channels", self.channels, "--listen", self.listen,
                     *(["--log", self.requests] if self.requests else []), *(["--plain"] if self.plain else [])])
        self._wait_ready(self.stats, 10)
        return self

    def stats(self, brief=False):
        return json.loads(http_get(self.stats_url + ("/brief" if brief else "/stats"), 30))

    def reset(self):
        http_get(self.stats_url + "/reset")


def cpu_seconds(pid):
    """User and system time of all threads."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_percent(pid, seconds):
    before, started = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_seconds(pid) - before) / (time.monotonic() - started)


def peak_mib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no VmHWM")


def wait_quiet(lab):
    """Until the servers have done with what was written; at most two minutes."""
    with ui.Bar("waiting until the source is idle") as bar:
        while bar.seconds < 120:
            servers = [s for s in (lab.source, lab.queue.broker) if s]
            if sum(cpu_percent(s.pid, 1) for s in servers) < QUIET_PERCENT:
                return
            bar.at()


# ---- filling ----------------------------------------------------------------------------------------------------


def schema(dim):
    return CollectionSchema([FieldSchema("id", DataType.INT64, is_primary=True),
                             FieldSchema("v", DataType.FLOAT_VECTOR, dim=dim)])


def fill(lab, name, rows, dim, batch, shards, deletes=False):
    """deletes: every insert is followed by a delete of a fifth of its rows."""
    rnd = np.random.default_rng(1)
    c = Collection(name, schema(dim), using=lab.side.alias(), shards_num=shards)
    with ui.Bar(f"source: insert into {name}", rows) as bar:
        for start in range(0, rows, batch):
            n = min(batch, rows - start)
            c.insert([list(range(start, start + n)), rnd.random((n, dim), dtype=np.float32)])
            if deletes:
                c.delete(f"id in {list(range(start, start + n // 5))}")
            bar.at(start + n, "rows")
        seconds = bar.seconds
    ui.note(f"{name}: {ui.number(rows)} rows of {dim} dimensions wait in the log ({seconds:.0f} s)")
    wait_quiet(lab)


SHAPES = {
    "large": lambda args: (int(args.gb * 1e9 / (LARGE_DIM * 4)), LARGE_DIM, LARGE_BATCH, False),
    "small": lambda args: (args.rows, SMALL_DIM, SMALL_BATCH, False),
    "mixed": lambda args: (args.rows // 4, 64, SMALL_BATCH, True),
}


# ---- catching up --------------------------------------------------------------------------------------------------


def ours(lab):
    return Cdc(lab.folder / "cdc", lab.source).start()


def theirs(lab, **settings):
    """The Go implementation, without any former task."""
    return go_cdc.GoCdc(lab.folder / "go", lab.source, lab.args.go, store=lab.name("go"), **settings).start()


def theirs_eager(lab):
    """By default it holds rows back until it has ten packs, and an idle channel has one with each tick (200 ms)."""
    return theirs(lab, packer={"maxCount": 1})


def end_task(cdc, task):
    """Our next daemon has the same registry. The Go one has not, and no deleted task: see go_cdc."""
    if not isinstance(cdc, go_cdc.GoCdc):
        cdc.api("delete", task_id=task)


def catch_up(lab, name, rows, delay_ms=0, daemon=ours, plain=False):
    """A fresh daemon follows a collection from its first row, from the create call until the target has the last one."""
    sink = Sink(lab.folder / "sink", delay_ms, plain=plain).start()
    cdc = daemon(lab)
    try:
        began_us, before = time.time() * 1e6, cpu_seconds(cdc.pid)
        task = cdc.create(sink, [{"name": name, "use_start_position": True}])
        with ui.Bar(f"catching up with {name}", rows) as bar:
            def there():
                n = sink.stats(brief=True)["rows"]
                bar.at(n, "rows")
                return n >= rows
            wait_for("all rows", there, 900, 0.02)
        cpu, peak = cpu_seconds(cdc.pid) - before, peak_mib(cdc.pid)
        s = sink.stats(brief=True)
        assert s["rows"] == rows, f"{s['rows']} rows arrived instead of {rows}"
        end_task(cdc, task)
    finally:
        cdc.stop()
        sink.stop()
    seconds = (s["last_us"] - began_us) / 1e6
    flow = (s["last_us"] - s["first_us"]) / 1e6  # without the calls that set the task up, each a round trip and more
    return {"MB/s": s["bytes"] / 1e6 / seconds, "flow MB/s": s["bytes"] / 1e6 / flow, "rows/s": rows / seconds,
            "CPU s/GB": cpu / (s["bytes"] / 1e9), "peak MiB": peak}


def report(lab, label, runs, keys):
    for key in keys:
        lab.put(f"{label} {key}", [r[key] for r in runs])
    ui.ok(f"{label}: " + ", ".join(f"{k} {statistics.median(r[k] for r in runs):.1f}" for k in keys))


def topic_of(lab, name):
    answer = lab.side.handler()._stub.DescribeCollection(Prepare.describe_collection_request(name))
    return answer.physical_channel_names[0]


def catch_up_part(lab, part, channels):
    rows, dim, batch, deletes = SHAPES[part](lab.args)
    name = lab.name(part)
    fill(lab, name, rows, dim, batch, channels, deletes)
    if part == "large" and channels == 1:
        lab.topic, lab.large = topic_of(lab, name), (name, rows)
    runs = [catch_up(lab, name, rows) for _ in range(lab.args.runs)]
    label = part if channels == 1 else f"{part}/{channels}"
    report(lab, label, runs, LARGE_KEYS if part == "large" else ["MB/s", "CPU s/GB", "peak MiB", "rows/s"])


def far_part(lab):
    """The target's answers come 50 and 200 ms later."""
    rows, dim, batch, _ = SHAPES["large"](lab.args)
    name = lab.name("far")
    fill(lab, name, rows, dim, batch, 1)
    for delay in (0, 50, 200):
        report(lab, f"far{delay}", [catch_up(lab, name, rows, delay) for _ in range(lab.args.runs)],
               ["flow MB/s", "MB/s", "CPU s/GB", "peak MiB"])


def portable_part(lab):
    """The target is an ordinary Milvus: Insert and Delete instead of ReplicateMessage."""
    for part in ("large", "small", "mixed"):
        rows, dim, batch, deletes = SHAPES[part](lab.args)
        name = lab.name(f"portable_{part}")
        fill(lab, name, rows, dim, batch, 1, deletes)
        report(lab, f"portable {part}", [catch_up(lab, name, rows, plain=True) for _ in range(lab.args.runs)],
               ["MB/s", "CPU s/GB", "peak MiB", "rows/s"])


def raw_command(lab):
    """A program of test/tools that reads the large rows' topic as plainly as can be; None: the queue is files."""
    tools, broker = ROOT / "build" / "tools", lab.queue.broker
    return {"kafka": lambda: [tools / "rawkafka", "--brokers", broker.address, "--topic", lab.topic],
            "pulsar": lambda: [tools / "rawpulsar", "--broker", broker.address, "--topic",
                               f"persistent://public/default/{lab.topic}"],
            "natsmq": lambda: [tools / "rawnats", "--server", lab.queue.address, "--stream", lab.topic],
            "rocksmq": lambda: None}[lab.queue.name]()


def raw_part(lab):
    """The queue's own consumer, for comparison: it takes the messages and throws them away."""
    command = raw_command(lab)
    if not command or not lab.topic:
        ui.note("raw: needs the part large with one channel, and a queue that is a server")
        return
    runs = []
    for _ in range(lab.args.runs):
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        r = json.loads(out.stdout)
        runs.append({"MB/s": r["bytes"] / 1e6 / r["seconds"], "CPU s/GB": r["cpu_seconds"] / (r["bytes"] / 1e9),
                     "peak MiB": r["peak_kib"] / 1024})
    report(lab, "raw", runs, ["MB/s", "CPU s/GB", "peak MiB"])


def standby_part(lab):
    """Into a real standby: its own work on the same cores is a part of the time."""
    rows, dim, batch, _ = SHAPES["large"](lab.args)
    rows //= 4
    name = lab.name("standby")
    target = Milvus("target", lab.folder / "target", etcd=lab.etcd.address, standby=True).start()
    try:
        fill(lab, name, rows, dim, batch, 1)
        cdc = Cdc(lab.folder / "cdc-standby", lab.source).start()
        try:
            began, before = time.time(), cpu_seconds(cdc.pid)
            task = cdc.create(target, [{"name": name, "use_start_position": True}])
            cdc.wait_caught_up(task, 900, since_ms=int(began * 1000))
            seconds, cpu = time.time() - began, cpu_seconds(cdc.pid) - before
            size = rows * dim * 4
            report(lab, "standby", [{"MB/s": size / 1e6 / seconds, "CPU s/GB": cpu / (size / 1e9),
                                     "peak MiB": peak_mib(cdc.pid)}], ["MB/s", "CPU s/GB", "peak MiB"])
        finally:
            cdc.stop()
    finally:
        target.stop()


# ---- lag and idle ---------------------------------------------------------------------------------------------------


class Inserter:
    """Single-row inserts at a fixed rate; calls overlap, as those of many clients do. sent: wall time of each call."""

    def __init__(self, lab, collection, rate, total):
        self.stub = lab.side.handler()._stub
        self.collection, self.rate, self.total = collection, rate, total
        self.sent, self.open, self.failed = [], threading.Semaphore(64), 0
        fields = [{"name": f.name, "type": f.dtype, "params": f.params, "is_primary": f.is_primary, "auto_id": False}
                  for f in collection.schema.fields]
        self.fields = fields

    def request(self, key):
        entities = [{"name": "id", "type": DataType.INT64, "values": [key]},
                    {"name": "v", "type": DataType.FLOAT_VECTOR, "values": [[0.0] * SMALL_DIM]}]
        return Prepare.batch_insert_param(self.collection.name, entities, "", self.fields)

    def run(self):
        requests = [self.request(i + 1) for i in range(self.total)]
        start = time.monotonic()
        for i, r in enumerate(requests):
            time.sleep(max(0, start + i / self.rate - time.monotonic()))
            self.open.acquire()
            self.sent.append(time.time() * 1e6)
            self.stub.Insert.future(r, timeout=30).add_done_callback(self._done)
        for _ in range(64):
            self.open.acquire()
        return time.monotonic() - start

    def _done(self, future):
        try:
            self.failed += future.result().status.error_code != 0
        except Exception:  # the figure is void then: see lag_run
            self.failed += 1
        self.open.release()


def lag_run(lab, rate, delay_ms=0, daemon=ours):
    """From the client's call to the arrival of the row at the target (the source's own work included)."""
    total = min(rate * lab.args.seconds, 10_000)
    name = lab.name(f"lag{rate}")
    c = Collection(name, schema(SMALL_DIM), using=lab.side.alias(), shards_num=1)
    sink = Sink(lab.folder / "sink", delay_ms).start()
    cdc = daemon(lab)
    try:
        # The Go daemon finds the end of the log only after its answer, and would pass over the first row.
        task = cdc.create(sink, [{"name": name, "use_start_position": True}])
        c.insert([[0], [[0.0] * SMALL_DIM]])
        wait_for("the first row", lambda: sink.stats(brief=True)["rows"] >= 1, 60)
        time.sleep(2)  # the figure is that of a stream that flows
        sink.reset()
        inserter = Inserter(lab, c, rate, total)
        before = cpu_seconds(cdc.pid)
        seconds = inserter.run()
        assert not inserter.failed, f"the source refused {inserter.failed} of {total} inserts"
        wait_for("all rows", lambda: sink.stats(brief=True)["rows"] >= total, 60)
        cpu = 100 * (cpu_seconds(cdc.pid) - before) / seconds
        arrived = sink.stats()["arrivals_us"]
        end_task(cdc, task)
    finally:
        cdc.stop()
        sink.stop()
    assert len(arrived) == total, f"{len(arrived)} messages for {total} rows"
    ms = sorted((a - s) / 1000 for a, s in zip(sorted(arrived), inserter.sent))
    return {"p50 ms": statistics.median(ms), "p99 ms": ms[int(len(ms) * 0.99) - 1], "CPU %": cpu,
            "rate": total / seconds}


def lag_part(lab):
    for rate in (10, 100, 1000):
        report(lab, f"lag{rate}", [lag_run(lab, rate)], ["p50 ms", "p99 ms", "CPU %", "rate"])
    for delay in (50, 200):
        report(lab, f"lag10/{delay}ms", [lag_run(lab, 10, delay)], ["p50 ms", "p99 ms"])


def go_part(lab):
    """The Go implementation on the rows of `large`, and ours beside it when the run has not measured it already."""
    if not lab.args.go or lab.queue.name not in GO_QUEUES:
        ui.note(f"go: needs --go PATH and a queue of {', '.join(GO_QUEUES)}")
        return
    ui.note(go_cdc.KNOWN_FAULT)
    if not lab.large:
        catch_up_part(lab, "large", 1)
    report(lab, "go", [catch_up(lab, *lab.large, daemon=theirs) for _ in range(lab.args.runs)], LARGE_KEYS)
    keys = ["p50 ms", "p99 ms", "CPU %", "rate"]
    if "lag" not in lab.args.parts:
        report(lab, "lag10", [lag_run(lab, 10)], keys)
    report(lab, "go lag10", [lag_run(lab, 10, daemon=theirs)], keys)
    report(lab, "go lag10/pack1", [lag_run(lab, 10, daemon=theirs_eager)], keys)


def idle_part(lab):
    """Nothing happens on the source but its own ticks."""
    sink = Sink(lab.folder / "sink").start()
    cdc = Cdc(lab.folder / "cdc", lab.source, maxTaskNum=200).start()
    try:
        made = 0
        for tasks in (0, 1, 100):
            for i in range(made, tasks):
                name = lab.name("idle")
                Collection(name, schema(SMALL_DIM), using=lab.side.alias(), shards_num=1)
                cdc.create(sink, [name])
            made = max(made, tasks)
            wait_quiet(lab)
            with ui.Bar(f"idle with {tasks} tasks"):
                percent = cpu_percent(cdc.pid, lab.args.seconds)
            report(lab, f"idle{tasks}", [{"CPU %": percent, "MiB": peak_mib(cdc.pid)}], ["CPU %", "MiB"])
    finally:
        cdc.stop()
        sink.stop()
