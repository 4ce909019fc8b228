"""One etcd and two Milvus for the whole run; a fresh milvus-cdc and fresh collections for each test."""
import json
import os
import random
import re
import sys
import threading
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts" / "lib")]

from pymilvus import db, utility  # noqa: E402
from pymilvus.grpc_gen import common_pb2, milvus_pb2  # noqa: E402

import queues  # noqa: E402
import servers  # noqa: E402
from compare import CALL_ERRORS, Side, wait_equal  # noqa: E402
from postgres_versions import PostgresVersion  # noqa: E402
from servers import Cdc, Etcd, Milvus, Postgres, remove_tree, wait_for  # noqa: E402
from workload import SHAPES, Table  # noqa: E402

QUEUE = os.environ.get("E2E_QUEUE") or "rocksmq"  # of the source: rocksmq, kafka, pulsar, natsmq
FOLDER = Path(os.environ.get("E2E_DIR") or servers.ROOT / "build" / ("e2e" if QUEUE == "rocksmq" else f"e2e-{QUEUE}"))
SEED = os.environ.get("SEED") or str(random.SystemRandom().randrange(10**6))
SOURCE_CHANNELS, TARGET_CHANNELS = 4, 3  # unequal: a target channel is fed by several source channels


def pytest_report_header(config):
    return f"SEED={SEED}   source on {QUEUE}   program {servers.find_program()}   logs in {FOLDER}"


def pytest_collection_modifyitems(config, items):
    """A run on another queue than the default takes the tests that are meant for each."""
    def wanted(item):
        only = item.get_closest_marker("only_on")
        if only and QUEUE not in only.args:
            return False
        return QUEUE == "rocksmq" or item.get_closest_marker("every_queue")
    config.hook.pytest_deselected(items=[i for i in items if not wanted(i)])
    items[:] = [i for i in items if wanted(i)]


class Pair:
    """The servers of the run."""

    def __init__(self):
        remove_tree(FOLDER)
        self.etcd = Etcd(FOLDER / "etcd").start()
        self.queue = queues.make(QUEUE, FOLDER).start()
        self.source = Milvus("source", FOLDER / "source", etcd=self.etcd.address, channels=SOURCE_CHANNELS,
                             queue=self.queue)
        self.target = Milvus("target", FOLDER / "target", etcd=self.etcd.address, channels=TARGET_CHANNELS,
                             standby=True)
        self.source.begin()
        self.target.begin()
        self.wait_ready()

    def wait_ready(self):
        self.source.wait_ready()
        self.target.wait_ready()

    def revive(self):
        """What a service manager does: a Milvus that ended (it does when etcd is away for long) starts again."""
        self.queue.revive()
        for s in (self.etcd, self.source, self.target):
            if not s.alive():
                s.start()
        self.wait_ready()


@pytest.fixture(scope="session")
def postgres():
    """One server for the run; a database for each test."""
    server = Postgres(FOLDER.with_name(f"{FOLDER.name}-postgres")).start()  # pair empties FOLDER
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["13", "14"])
def old_postgres(request):
    """As postgres, of a version that is older than Debian's."""
    server = PostgresVersion(FOLDER.with_name(f"{FOLDER.name}-postgres{request.param}"), request.param).start()
    assert server.sql("SHOW server_version").startswith(request.param + ".")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def pair():
    p = Pair()
    yield p
    servers.stop_all()


class Lab:
    """What a test works with. Names of collections begin with a prefix of its own."""

    def __init__(self, pair, file, name):
        name = re.sub(r"\W+", "_", name).strip("_")
        self.pair, self.folder = pair, FOLDER / "tests" / file / name
        pair.revive()
        self.source = Side("source", pair.source.address)
        self.target = Side("target", pair.target.address)
        self.prefix = name[:40] + f"_{random.SystemRandom().randrange(16**4):04x}"
        self.rnd = random.Random(f"{SEED}/{name}")
        self.cdcs, self.databases, self.made = [], [], []

    def into(self, server, side=Side):
        """The target is this ordinary Milvus, started if it does not run; its collections are dropped as on the source."""
        if not server.alive():
            server.start()
        self.target = side("target", server.address, portable=True)
        return self

    def cdc(self, start=True, **settings):
        c = Cdc(self.folder / f"cdc{len(self.cdcs)}", self.pair.source, **settings)
        self.cdcs.append(c)
        return c.start() if start else c

    def name(self, suffix):
        return f"{self.prefix}_{suffix}"

    def table(self, suffix, shape="int_key", database="default", loaded=True):
        """A new collection on the source."""
        t = Table(self.name(suffix), SHAPES[shape], self.source.alias(database), self.rnd, loaded)
        self.made.append((database, t.name))
        return t

    def database(self, suffix):
        name = self.name(suffix)
        db.create_database(name, using=self.source.alias())
        self.databases.append(name)
        return name

    def create(self, cdc, tables, target=None, **more):
        names = tables if isinstance(tables, dict) else [t.name if isinstance(t, Table) else t for t in tables]
        return cdc.create(target or self.pair.target, names, **more)

    def equal(self, cdc, task, tables, database="default", timeout=120):
        cdc.wait_caught_up(task, timeout)
        wait_equal(self.source, self.target, [t.name if isinstance(t, Table) else t for t in tables], database, timeout)

    def wait_on_target(self, what, condition, timeout=60):
        """condition may throw what Milvus throws while an object is not there yet."""
        def check():
            try:
                return condition()
            except CALL_ERRORS:
                return False
        return wait_for(f"target: {what}", check, timeout, 0.2)

    def close(self):
        problems = [p for c in self.cdcs for p in close_cdc(c)]
        drop_all(self)
        assert not problems, "\n".join(problems)


def close_cdc(cdc):
    """Every test ends with a stop in time, exit code 0, and no report of a sanitizer."""
    problems = []
    if cdc.alive():
        started = time.monotonic()
        code = cdc.stop()
        if code != 0:
            problems.append(f"exit code {code} after SIGTERM:\n{cdc.tail()}")
        if time.monotonic() - started > 5:
            problems.append(f"the stop took {time.monotonic() - started:.1f} s")
    elif cdc.proc is not None and not getattr(cdc, "ended_on_purpose", False):
        problems.append(f"milvus-cdc is gone, exit code {cdc.proc.returncode}:\n{cdc.tail()}")
    log = cdc.log.read_text(errors="replace") if cdc.log.exists() else ""
    found = re.search(r"AddressSanitizer|LeakSanitizer|runtime error:|Assertion .* failed", log)
    if found:
        problems.append(f"{cdc.log}: {log[found.start():found.start() + 3000]}")
    return problems


def drop_all(lab):
    """Best effort: leftovers cost memory, nothing else."""
    drop_on_target = drop_on_source if lab.target.portable else drop_on_standby
    for side, drop in ((lab.source, drop_on_source), (lab.target, drop_on_target)):
        try:
            for database in {d for d, _ in lab.made} | set(lab.databases) | {"default"}:
                for name in side.collections(database) if database in side.databases() else []:
                    if name.startswith(lab.prefix):
                        drop(side, name, database)
            if side is lab.source:
                for database in lab.databases:
                    db.drop_database(database, using=side.alias(), timeout=20)
        except CALL_ERRORS as e:
            print(f"cleaning up the {side.name}: {e}")


def drop_on_source(side, name, database):
    utility.drop_collection(name, using=side.alias(database), timeout=20)


def drop_on_standby(side, name, database):
    """As a replicator does it: a plain drop would try for ever to write to the log, which a standby may not."""
    info = common_pb2.ReplicateInfo(isReplicate=True, msgTimestamp=int(time.time() * 1000) << 18)
    request = milvus_pb2.DropCollectionRequest(base=common_pb2.MsgBase(replicateInfo=info), db_name=database,
                                               collection_name=name)
    side.handler(database).release_collection(name, timeout=20)
    side.handler(database)._stub.DropCollection(request, timeout=20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What each daemon says of itself when a test fails: the folder with the logs is gone after a run of the CI."""
    report = yield
    lab = item.funcargs.get("lab") if hasattr(item, "funcargs") else None
    if report.when == "call" and report.failed and lab:
        for c in lab.cdcs:
            report.sections.append((f"milvus-cdc in {c.dir}", describe_cdc(c)))
    return report


def describe_cdc(cdc):
    out = []
    try:
        for t in cdc.api("list")["tasks"]:
            out.append(json.dumps(t))
            out.append(json.dumps(cdc.api("position", task_id=t["task_id"])))
        out += [f"{k} {v:g}" for k, v in cdc.metrics().items() if v and "_request_" not in k and "_bucket" not in k]
    except (OSError, servers.ServerError) as e:
        out.append(str(e))
    lines = cdc.log.read_text(errors="replace").splitlines() if cdc.log.exists() else []
    return "\n".join(out + lines[-60:])


@pytest.fixture
def lab(pair, request):
    lab = Lab(pair, request.node.path.stem, request.node.name)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def cdc(lab):
    return lab.cdc()


@pytest.fixture(scope="session")
def ordinary(pair):
    """A third server for the run: an ordinary Milvus, as a portable target."""
    m = Milvus("ordinary", FOLDER / "ordinary", etcd=pair.etcd.address, channels=2).start()
    yield m
    m.kill()


@pytest.fixture
def to(lab, ordinary):
    """The lab, with this target."""
    return lab.into(ordinary)


def moment():
    """A time of the source with nothing written near it: its clock is this machine's, but steps."""
    ms = int(time.time() * 1000) + 500
    wait_for("the clock", lambda: time.time() * 1000 > ms + 500, 5)
    return ms


@pytest.fixture(params=["standby", "portable"])
def target(request, pair):
    """The lab's target in each mode."""
    if request.param == "standby":
        return pair.target
    request.getfixturevalue("to")
    return request.getfixturevalue("ordinary")


class Writer:
    """Inserts into a table until stopped; what the source refuses while it is down is tried again with new keys."""

    def __init__(self, table, rows=20, pause=0.05):
        self.table, self.rows, self.pause = table, rows, pause
        self.stopping, self.batches, self.failures = threading.Event(), 0, 0
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self.stopping.wait(self.pause):
            try:
                self.table.put(self.rows)
                self.batches += 1
                if self.batches % 5 == 0:
                    self.table.change(self.table.some_keys(10))
                    self.table.remove(self.table.some_keys(5))
            except CALL_ERRORS:
                self.failures += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stopping.set()
        self.thread.join(120)
        assert not self.thread.is_alive(), "the writer hangs"

    def wait_batches(self, n, timeout=120):
        """n more requests that succeeded."""
        goal = self.batches + n
        wait_for(f"{n} more inserts on the source", lambda: self.batches >= goal, timeout)


@pytest.fixture
def writing():
    return Writer
