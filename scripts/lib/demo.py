"""The demo itself; scripts/demo prepares what it needs."""
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import servers
import ui
from compare import Side, compare_collection, diff_rows, plain
from servers import ROOT, Cdc, Etcd, Milvus, MilvusLite, free_port, port_is_free, remove_tree, wait_for

import numpy as np
from pymilvus import Collection, CollectionSchema, DataType, FieldSchema

FOLDER = ROOT / "build" / "demo"
STATE = FOLDER / "running.json"
ROWS, DIM, BATCH = 20_000, 128, 2_000
DELETED, UPSERTED = 200, 500
NAME = "demo_docs"
INDEX = {"index_type": "IVF_FLAT", "metric_type": "L2", "params": {"nlist": 64}}
SEARCH = {"metric_type": "L2", "params": {"nprobe": 64}}  # every list: an exact search, so hits must be equal


class Lab:
    """The two servers and the daemon."""

    def __init__(self, keep):
        self.keep = keep
        self.all = []
        self.more = {}  # of the create request

    def preferred(self, port):
        return port if port_is_free(port) else free_port()

    def start_milvus(self, portable=False):
        etcd = None
        if not (port_is_free(2379) and port_is_free(2380)):
            ui.note("port 2379 or 2380 is taken: both Milvus use a separate etcd, not the source's embedded one")
            server = Etcd(FOLDER / "etcd", keep=self.keep)
            self.all.append(server)
            etcd = server.start().address
        with ui.Bar("unpacking Milvus"):
            self.source = Milvus("source", FOLDER / "source", etcd=etcd, keep=self.keep,
                                 proxy_port=self.preferred(19530))
            if portable:
                self.target = MilvusLite(FOLDER / "target", port=self.preferred(19531), keep=self.keep)
            else:
                self.target = Milvus("target", FOLDER / "target", etcd=etcd or "127.0.0.1:2379", standby=True,
                                     keep=self.keep, proxy_port=self.preferred(19531))
        self.all += [self.source, self.target]
        self.start_one(self.source, "source: Milvus 2.3.5 on its defaults (RocksMQ)")
        self.start_one(self.target, "target: Milvus Lite, an ordinary one" if portable
                       else "target: Milvus 2.3.5 as a standby")

    def start_one(self, server, text):
        with ui.Bar(text) as bar:
            server.begin()
            while True:
                try:
                    server.wait_ready(timeout=0.3)
                    break
                except TimeoutError:
                    bar.at()
                    if bar.seconds > 180:
                        raise
        ui.ok(f"{text}, {server.address} ({bar.seconds:.0f} s)")

    def start_cdc(self):
        self.cdc = Cdc(FOLDER / "cdc", self.source, keep=self.keep,
                       port=self.preferred(8444))
        self.all.append(self.cdc)
        self.cdc.start()
        version = subprocess.run([self.cdc.program, "--version"], capture_output=True, text=True).stdout.strip()
        ui.ok(f"{version}, embedded registry, {self.cdc.url}/cdc")

    def create_call(self):
        body = {"request_type": "create", "request_data": {
            "milvus_connect_param": {"uri": self.target.uri, "token": "root:Milvus", "connect_timeout": 10},
            "collection_infos": [{"name": "*"}], **self.more}}
        return ["curl", "-sS", "-X", "POST", "-H", "Content-Type: application/json", "-d", json.dumps(body),
                f"{self.cdc.url}/cdc"]

    def create_task(self):
        call = self.create_call()
        ui.note(shlex.join(call))
        answer = subprocess.run(call, capture_output=True, text=True, timeout=60)
        ui.note((answer.stdout + answer.stderr).strip())
        reply = json.loads(answer.stdout)
        if reply.get("code") != 200:
            raise servers.ApiError(reply)
        self.task = reply["data"]["task_id"]
        ui.ok(f"task {self.task}, mode {reply['data']['mode']}: {reply['data']['mode_reason']}")


class Writer:
    """What an application does on the source."""

    def __init__(self, side):
        self.using = side.alias()
        self.rnd = np.random.default_rng(1)

    def columns(self, keys):
        titles = [f"document {k} v{self.rnd.integers(1000)}" for k in keys]
        return [list(keys), titles, self.rnd.random((len(keys), DIM), dtype=np.float32)]

    def create(self):
        schema = CollectionSchema([
            FieldSchema("id", DataType.INT64, is_primary=True),
            FieldSchema("title", DataType.VARCHAR, max_length=100),
            FieldSchema("vector", DataType.FLOAT_VECTOR, dim=DIM)])
        self.collection = Collection(NAME, schema, using=self.using, shards_num=2)
        ui.ok(f"source: collection {NAME} created")

    def insert(self):
        with ui.Bar("source: insert", ROWS) as bar:
            for start in range(0, ROWS, BATCH):
                self.collection.insert(self.columns(range(start, start + BATCH)))
                bar.at(start + BATCH, "rows")
        ui.ok(f"source: {ui.number(ROWS)} rows of {DIM} dimensions in {ROWS // BATCH} inserts ({bar.seconds:.1f} s)")

    def index_and_load(self):
        with ui.Bar("source: index and load") as bar:
            self.collection.create_index("vector", INDEX, index_name="by_vector")
            self.collection.load()
        ui.ok(f"source: index {INDEX['index_type']} made and collection loaded ({bar.seconds:.1f} s)")

    def change(self):
        keys = random.Random(2).sample(range(ROWS), DELETED + UPSERTED)
        self.collection.delete(f"id in {keys[:DELETED]}")
        self.collection.upsert(self.columns(keys[DELETED:]))
        ui.ok(f"source: {DELETED} rows deleted, {UPSERTED} changed by upsert")

    def one_more(self):
        self.collection.insert(self.columns([ROWS]))
        return ROWS


def wait_caught_up(lab):
    first = [0]
    with ui.Bar("target: catching up") as bar:
        def progress(behind):
            if behind:
                first[0] = max(first[0], behind)
                bar.total = first[0]
            bar.at(first[0] - (behind or 0), "ms")
        lab.cdc.wait_caught_up(lab.task, 300, progress=progress)
    ui.ok(f"target: has confirmed everything up to this moment ({bar.seconds:.1f} s)")


def wait_loaded(target):
    """The load comes over another channel than the rows."""
    with ui.Bar("target: loading"):
        wait_for("the target has the collection loaded",
                 lambda: target.has(NAME) and target.loaded(NAME) == "Loaded" and target.indexes(NAME), 120, 0.3)
    ui.ok("target: index and load have come over")


def search(side, queries):
    hits = side.collection(NAME).search(queries, "vector", SEARCH, limit=10, consistency_level="Strong", timeout=30)
    return [[(h.id, round(h.distance, 3)) for h in one] for one in hits]


def wait_copied(lab):
    with ui.Bar("target: the rows from before are copied") as bar:
        while "snapshot" in (t := lab.cdc.task(lab.task)):
            if "reason" in t:
                raise servers.ServerError(t["reason"])
            bar.total = t["snapshot"]["estimated_rows"] or None
            bar.at(t["snapshot"]["rows"], "rows")
    ui.ok(f"target: the rows from before are copied ({bar.seconds:.1f} s)")


def read_rows(side, total):
    """By ranges of keys: with a limit Milvus Lite gives any rows, not those of the smallest keys."""
    out = {}
    with ui.Bar(f"{side.name}: reading all rows", total) as bar:
        for start in range(0, ROWS, BATCH):
            for row in side.collection(NAME).query(f"id >= {start} and id < {start + BATCH}", output_fields=["*"],
                                                   limit=BATCH, consistency_level="Strong", timeout=30):
                out[row["id"]] = plain(row)
            bar.at(len(out), "rows")
    return out


def check_equal(source, target):
    """Prints what agrees; returns what does not."""
    diffs = [] if target.portable else compare_collection(source, target, NAME, data=False)
    if not diffs and not target.portable:
        ui.ok("source and target agree: schema, partitions, index, load state")
    counts = source.count(NAME), target.count(NAME)
    if counts[0] != counts[1] or counts[0] != ROWS - DELETED:
        diffs.append(f"count(*): source {counts[0]}, target {counts[1]}, expected {ROWS - DELETED}")
    rows = [read_rows(side, counts[0]) for side in (source, target)]
    if rows[0] != rows[1]:
        diff_rows(NAME, rows[0], rows[1], diffs)
    elif not diffs:
        ui.ok(f"source and target agree: {ui.number(len(rows[0]))} rows, the same ids, the same values")
    queries = np.random.default_rng(3).random((5, DIM), dtype=np.float32).tolist()
    a, b = search(source, queries), search(target, queries)
    if a != b:
        diffs.append(f"search: source {a[0][:3]}..., target {b[0][:3]}...")
    else:
        ids = ", ".join(str(i) for i, _ in a[0][:5])
        ui.ok(f"source and target agree: 5 searches, the same 10 hits each (the first: {ids}, ...)")
    return diffs


def show_lag(lab, writer, target):
    behind = []
    for _ in range(10):
        behind.append(time.time() * 1000 - lab.cdc.position_time(lab.task))
        time.sleep(0.1)
    key = writer.one_more()
    started = time.monotonic()
    wait_for("the row is on the target", lambda: target.collection(NAME).query(
        f"id == {key}", output_fields=["id"], consistency_level="Eventually", timeout=10), 60, 0.01)
    visible = (time.monotonic() - started) * 1000
    ui.ok(f"how far behind: the stored position by {sorted(behind)[5]:.0f} ms; "
          f"a row written on the source was found on the target after {visible:.0f} ms")


def run(lab):
    ui.title("Starting")
    lab.start_milvus()
    lab.start_cdc()
    ui.title("Creating a task")
    lab.create_task()
    ui.title("Writing on the source")
    source, target = Side("source", lab.source.address), Side("target", lab.target.address)
    writer = Writer(source)
    writer.create()
    writer.insert()
    writer.index_and_load()
    writer.change()
    ui.title("Comparing")
    wait_caught_up(lab)
    wait_loaded(target)
    diffs = check_equal(source, target)
    show_lag(lab, writer, target)
    for d in diffs:
        ui.failed(d)
    return not diffs


def run_portable(lab):
    """A collection that exists already, into a target without any special setting."""
    ui.title("Starting")
    lab.start_milvus(portable=True)
    lab.start_cdc()
    source, target = Side("source", lab.source.address), Side("target", lab.target.address, portable=True)
    ui.title("Writing on the source, before there is a task")
    writer = Writer(source)
    writer.create()
    writer.insert()
    writer.index_and_load()
    ui.title("Creating a task")
    lab.more = {"start": "snapshot"}
    lab.create_task()
    wait_copied(lab)
    ui.title("Writing on the source")
    writer.change()
    ui.title("Comparing")
    wait_caught_up(lab)
    wait_loaded(target)
    diffs = check_equal(source, target)
    show_lag(lab, writer, target)
    for d in diffs:
        ui.failed(d)
    return not diffs


def print_keep(lab):
    STATE.write_text(json.dumps([p.pid for p in reversed(lab.all)]))
    post = f"curl -sS {lab.cdc.url}/cdc -d"
    ui.title("Everything is still running")
    for line in (f"source   {lab.source.address}   target   {lab.target.address}   (pymilvus; logs in {FOLDER})",
                 f"{post} '{{\"request_type\":\"list\"}}'",
                 f"{post} '{{\"request_type\":\"position\",\"request_data\":{{\"task_id\":\"{lab.task}\"}}}}'",
                 f"{post} '{{\"request_type\":\"pause\",\"request_data\":{{\"task_id\":\"{lab.task}\"}}}}'",
                 f"curl -sS {lab.cdc.url}/cdc/metrics",
                 "./scripts/demo --stop   ends and removes it"):
        ui.note(line)


def group_is_ours(pid):
    try:
        return str(FOLDER).encode() in open(f"/proc/{pid}/cmdline", "rb").read() or \
            os.readlink(f"/proc/{pid}/cwd").startswith(str(FOLDER))
    except OSError:
        return False


def stop_kept():
    """Only processes that still are what --keep left."""
    if STATE.exists():
        for pid in json.loads(STATE.read_text()):
            if group_is_ours(pid):
                os.killpg(pid, signal.SIGKILL)
        ui.ok("stopped what an earlier --keep left")
    remove_tree(FOLDER)


def main():
    stop_kept()
    if "--stop" in sys.argv[1:]:
        return 0
    lab = Lab(keep="--keep" in sys.argv[1:])
    equal = False
    try:
        equal = run_portable(lab) if "--portable" in sys.argv[1:] else run(lab)
    except KeyboardInterrupt:
        ui.failed("interrupted")
    except Exception as e:  # whatever it was, a person reads one line and knows where the logs are
        ui.failed(f"{type(e).__name__}: {e}")
    if equal and lab.keep:
        print_keep(lab)
        servers.leave_running()
        return 0
    for p in reversed(lab.all):
        p.stop(10)
    if equal:
        remove_tree(FOLDER)
        ui.title("Both sides are equal; everything that was started is removed again.")
    else:
        ui.title(f"Not equal. The logs are in {FOLDER}.")
    return 0 if equal else 1


sys.exit(main())
