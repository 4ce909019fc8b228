"""Several daemons on one PostgreSQL: one answer from all, one writer for each task, somebody goes on when one is gone."""
import json
import os
import secrets
import signal
import threading
import time
import urllib.error

import pytest
from bench_parts import Sink
from servers import ApiError, http_get, wait_for

LEASE = 2


class Group:
    """Daemons c[0], c[1], ... of one test, on a database of its own."""

    def __init__(self, lab, database, n, lease=LEASE):
        self.lab = lab
        self.registry = {"type": "postgresql", "uri": database, "leaseSeconds": lease}
        self.c = [lab.cdc(registry=self.registry) for _ in range(n)]
        for c in self.c:
            self.wait_ready(c)

    def wait_ready(self, cdc):
        wait_for("the daemon is ready", lambda: cdc.api("list") is not None, 20)

    def living(self):
        return [c for c in self.c if c.alive() and not stopped(c)]

    def owner(self, task, ask=None):
        return (ask or self.living()[0]).task(task).get("owner", "")

    def daemon_of(self, owner):
        return next((c for c in self.c if f":{c.port}" in owner), None)

    def wait_owner(self, task, not_this=None, timeout=20, ask=None):
        """Until a living daemon owns it; returns that."""
        def owned():
            c = self.daemon_of(self.owner(task, ask))
            return c if c in self.living() and c is not not_this else None
        return wait_for("the task has an owner", owned, timeout, 0.05)


def stopped(cdc):
    return open(f"/proc/{cdc.pid}/stat").read().rsplit(")", 1)[1].split()[0] == "T"


@pytest.fixture
def group(lab, postgres):
    made = []

    def make(n, lease=LEASE, server=postgres):
        made.append(Group(lab, server.database(f"t{secrets.token_hex(4)}"), n, lease))
        return made[-1]
    yield make
    for g in made:
        for c in g.c:
            if c.alive():
                os.kill(c.pid, signal.SIGCONT)


def test_any_daemon_answers(lab, group):
    g = group(2)
    a, b = g.c
    task = lab.create(a, [lab.name("a")])
    t = lab.table("a")
    for c in (b, a):  # at once, no waiting
        assert c.task(task)["state"] == "Running"
        assert [x["task_id"] for x in c.api("list")["tasks"]] == [task]
    assert a.task(task)["owner"] == b.task(task)["owner"]
    t.put(20)
    for c in (a, b):
        lab.equal(c, task, [t])
    with pytest.raises(ApiError, match="paused already|running already"):
        b.api("resume", task_id=task)
    b.api("pause", task_id=task)
    assert a.task(task)["state"] == "Paused" == b.task(task)["state"]
    t.put(5)
    a.api("resume", task_id=task)
    assert b.task(task)["state"] == "Running"
    lab.equal(b, task, [t])
    with pytest.raises(ApiError, match="(?i)exist|already|overlap"):
        lab.create(b, [lab.name("a")])
    b.api("delete", task_id=task)
    for c in (a, b):
        assert c.api("list")["tasks"] == []
        with pytest.raises(ApiError, match="not found"):
            c.task(task)


def test_two_creates_at_the_same_moment(lab, group):
    """For the same collections and target: one wins, whichever daemons they come to."""
    g = group(3)
    won, lost = [], []

    def create(c):
        try:
            won.append(lab.create(c, [lab.name("a")]))
        except ApiError as e:
            lost.append(e.message)
    threads = [threading.Thread(target=create, args=(c,)) for c in g.c * 2]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1 and len(lost) == 5, lost
    assert [x["task_id"] for x in g.c[2].api("list")["tasks"]] == won


def replicating(lab, g):
    """A task with ten rows on both sides: (its id, its table, its owner, another daemon)."""
    task = lab.create(g.c[0], [lab.name("a")])
    t = lab.table("a")
    t.put(10)
    lab.equal(g.c[0], task, [t])
    owner = g.wait_owner(task)
    return task, t, owner, next(c for c in g.c if c is not owner)


@pytest.mark.parametrize("lease, limit", [(6, 8), (2, 3)])
def test_takeover_after_kill_9(lab, group, lease, limit):
    take_over(lab, group(2, lease), lease, limit)


def test_takeover_on_an_older_postgresql(lab, group, old_postgres):
    take_over(lab, group(2, server=old_postgres), LEASE, 10)  # its limit is measured above


def take_over(lab, g, lease, limit):
    task, t, old, other = replicating(lab, g)
    epoch = other.task(task)["epoch"]
    t.put(10)
    old.kill()
    old.ended_on_purpose = True
    killed = time.monotonic()
    t.put(10)
    since = int(time.time() * 1000)
    other.wait_caught_up(task, 30, since_ms=since)
    took = time.monotonic() - killed
    print(f"lease {lease} s: rows flow again after {took:.2f} s")
    assert took < limit
    now = other.task(task)
    assert now["epoch"] > epoch and f":{other.port}" in now["owner"]
    lab.equal(other, task, [t])


def test_clean_stop_hands_over_at_once(lab, group):
    g = group(2, 6)
    task, t, old, other = replicating(lab, g)
    t.put(10)
    assert old.stop() == 0
    ended = time.monotonic()
    t.put(10)
    other.wait_caught_up(task, 30)
    took = time.monotonic() - ended
    print(f"rows flow again {took:.2f} s after the stop")
    assert took < 1
    old.start()
    g.wait_ready(old)
    lab.equal(old, task, [t])


def test_tasks_spread_and_move(lab, group):
    """Four targets over two daemons, then a third joins, then one leaves."""
    g = group(2)
    sinks = [Sink(lab.folder / f"sink{i}").start() for i in range(6)]
    try:
        tasks = [g.c[0].create(s, [lab.name("a")]) for s in sinks]

        def spread():
            return sorted(len([t for t in tasks if g.daemon_of(g.owner(t)) is c]) for c in g.living())
        wait_for("three each", lambda: spread() == [3, 3], 20)
        g.c.append(lab.cdc(registry=g.registry))
        g.wait_ready(g.c[2])
        wait_for("two each", lambda: spread() == [2, 2, 2], 20)
        assert g.c[0].stop() == 0
        g.c[0].ended_on_purpose = True
        wait_for("three each", lambda: spread() == [3, 3], 20)
        assert all(g.c[1].task(t)["state"] == "Running" for t in tasks)
    finally:
        for s in sinks:
            s.kill()


def reason_and_verdict(cdc, task):
    return cdc.task(task).get("reason", ""), http_json(cdc.url + "/health")["status"]


def http_json(url):
    """Also of an answer that is an error."""
    try:
        return json.loads(http_get(url, 5))
    except urllib.error.HTTPError as e:
        return json.load(e)


def test_all_know_of_a_stall(lab, group):
    """Every daemon says so, and none after a successor goes on."""
    g = group(2)
    sink = Sink(lab.folder / "sink").start()
    try:
        task = g.c[0].create(sink, [lab.table("a").name])
        owner = g.wait_owner(task)
        g.c[0].wait_caught_up(task, 30)
        other = next(c for c in g.c if c is not owner)
        os.kill(sink.pid, signal.SIGSTOP)
        for c in (owner, other):
            wait_for("it is critical", lambda c=c: reason_and_verdict(c, task)[1] == "critical", 40)
            assert reason_and_verdict(c, task)[0].startswith("stalled at ")
        owner.kill()
        os.kill(sink.pid, signal.SIGCONT)
        g.wait_owner(task, not_this=owner)
        owner.start()
        for c in (owner, other):
            wait_for("it is well", lambda c=c: reason_and_verdict(c, task) == ("", "ok"), 30)
        assert g.daemon_of(g.owner(task)) is other
    finally:
        sink.kill()


def requests_of(sink):
    """(first us, last us, owner, epoch) of each request that the stand-in got, in the order of their end."""
    out = []
    for line in sink.requests.read_text().splitlines():
        first, last, _, channel, agent = line.split(" ", 4)
        owner, epoch = agent.split("(", 1)[1].rstrip(")").split("; epoch ")
        out.append((int(first), int(last), owner, int(epoch)))
    return out


def check_one_writer(sink):
    """No request of an epoch ends after the first one of a later epoch begins. Returns the number of epochs."""
    epochs = {}
    for first, last, owner, epoch in requests_of(sink):
        e = epochs.setdefault(epoch, [owner, first, last])
        assert e[0] == owner, f"epoch {epoch} has two owners: {e[0]} and {owner}"
        e[1], e[2] = min(e[1], first), max(e[2], last)
    order = sorted(epochs)
    for a, b in zip(order, order[1:]):
        assert epochs[a][2] < epochs[b][1], (f"epoch {a} of {epochs[a][0]} sent until {epochs[a][2]}, "
                                            f"epoch {b} of {epochs[b][0]} from {epochs[b][1]}")
    return len(order)


def test_a_stopped_daemon_does_not_write_after_its_successor_began(lab, group, writing):
    """SIGSTOP in the middle of a load, longer than the lease, then SIGCONT; the stand-in logs every request."""
    g = group(2)
    sink = Sink(lab.folder / "sink", record=True).start()
    try:
        task = g.c[0].create(sink, [lab.name("a")])
        t = lab.table("a")
        with writing(t, rows=200, pause=0.01):
            for _ in range(3):
                old = g.wait_owner(task)
                other = next(c for c in g.c if c is not old)
                before = len(requests_of(sink))
                wait_for("requests", lambda: len(requests_of(sink)) > before + 5, 20)
                os.kill(old.pid, signal.SIGSTOP)
                new = g.wait_owner(task, not_this=old, ask=other)
                before = len(requests_of(sink))
                wait_for("requests of the successor", lambda: len(requests_of(sink)) > before + 5, 20)
                os.kill(old.pid, signal.SIGCONT)
                wait_for("the old one knows", lambda: f":{new.port}" in old.task(task)["owner"], 20)
        g.living()[0].wait_caught_up(task, 60)
        assert check_one_writer(sink) >= 4
    finally:
        sink.kill()


def wait_reserved(g, postgres):
    """Until what live rows may do without the registry is stored there, for each channel."""
    name = g.registry["uri"].rsplit("/", 1)[1]
    wait_for("reserved times", lambda: postgres.sql(
        "SELECT count(*) > 0 AND bool_and(span_tt > 0) FROM milvus_cdc.checkpoint WHERE dst_channel <> ''", name) == "t", 20)


def flows(lab, tables, rows, seconds):
    """
    Rows go to the source for so long, and each time are seen on the target before the next ones. Each table has so many
    before; returns how many it has then.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        rows += 5
        for t in tables:
            t.put(5)
            t.change(t.some_keys(2))
        for t in tables:
            lab.wait_on_target("the rows", lambda: lab.target.count(t.name) == rows, 10)
    return rows


@pytest.mark.parametrize("away, back", [("pause", "cont"), ("stop", "start")])
def test_registry_away(lab, group, postgres, away, back):
    """The API says 503; rows of all tasks go on while the lease holds. All heals by itself."""
    g = group(2, lease=12)
    task, t, owner, other = replicating(lab, g)
    task2, t2 = lab.create(g.c[0], [lab.name("b")]), lab.table("b")
    t2.put(10)
    lab.equal(g.c[0], task2, [t2])
    wait_reserved(g, postgres)
    getattr(postgres, away)()
    try:
        rows = flows(lab, [t, t2], 10, 2.5)
        status, text = owner.post({"request_type": "list"})
        assert status == 503 and json.loads(text)["code"] == 503 and "registry" in text.lower()
        rows = flows(lab, [t, t2], rows, 0.1)
    finally:
        getattr(postgres, back)()
    for c in g.c:
        wait_for("it answers again", lambda: c.api("list") is not None, 20)
    assert owner.task(task)["state"] == "Running"
    t.put(10)
    lab.equal(other, task, [t])
    lab.equal(other, task2, [t2])
    assert lab.target.count(t.name) == rows + 10


def test_kill_9_while_the_registry_is_away(lab, group, postgres):
    """What was sent without a note is there once after the takeover."""
    g = group(2, lease=9)
    task, t, old, other = replicating(lab, g)
    wait_reserved(g, postgres)
    postgres.pause()
    try:
        rows = flows(lab, [t], 10, 1)
        t.put(200)
        old.kill()
        old.ended_on_purpose = True
    finally:
        postgres.cont()
    t.put(10)
    new = g.wait_owner(task, not_this=old, ask=other)
    t.change(t.some_keys(20))
    lab.equal(new, task, [t])
    assert lab.target.count(t.name) == rows + 210


def test_registry_away_for_longer_than_the_lease(lab, group, postgres):
    """Then rows wait; nothing is lost and nothing twice."""
    g = group(2)
    task, t, owner, other = replicating(lab, g)
    wait_reserved(g, postgres)
    postgres.kill()
    wait_for("the lease has run out", lambda: "lease has run out" in owner.log.read_text(errors="replace"), 20)
    t.put(10)
    postgres.start()
    wait_for("it answers again", lambda: owner.api("list") is not None, 30)
    t.put(10)
    lab.equal(other, task, [t])
    assert lab.target.count(t.name) == 30
