"""The target is an ordinary, writable Milvus: everything goes through its public API (mode portable)."""
import os
import time

import pytest

from compare import wait_equal
from conftest import SEED
from servers import ApiError, wait_for
from workload import Workload

SECONDS = int(os.environ.get("WORKLOAD_SECONDS") or 25)


def create(lab, cdc, names, ordinary, **more):
    return lab.create(cdc, names, target=ordinary, **more)


def test_mode_is_chosen_and_told(to, cdc, ordinary, pair):
    answer = cdc.api("create", milvus_connect_param={"uri": ordinary.uri}, collection_infos=[{"name": to.name("a")}])
    assert answer["mode"] == "portable" and "refuses ReplicateMessage" in answer["mode_reason"]
    task = cdc.task(answer["task_id"])
    assert (task["mode"], task["mode_reason"]) == (answer["mode"], answer["mode_reason"])
    assert cdc.api("list")["tasks"][0]["mode"] == "portable"
    cdc.restart()
    assert cdc.task(answer["task_id"])["mode"] == "portable"
    standby = to.create(cdc, [to.name("a")])
    assert cdc.task(standby)["mode"] == "standby"
    for target, mode, text in ((ordinary, "standby", "not a standby"), (pair.target, "portable", "is a standby"),
                               (ordinary, "fast", "allowed are auto, standby and portable")):
        with pytest.raises(ApiError, match=text):
            to.create(cdc, [to.name("b")], target=target, mode=mode)


def test_operations(to, cdc, ordinary):
    task = create(to, cdc, ["*"], ordinary)
    a, auto, keyed = to.table("a"), to.table("auto", "auto_key"), to.table("keyed", "part_key")
    tables = [a, auto, keyed, to.table("text", "text_key"), to.table("scalars", "scalars"), to.table("arrays", "arrays"),
              to.table("json", "json")]
    for t in tables:
        t.put(60)
        t.remove(t.some_keys(10))
        if not t.shape.auto:
            t.change(t.some_keys(10))
    a.create_partition()
    a.put(20)
    to.equal(cdc, task, tables)
    assert cdc.task(task)["plain_keys"] == [f"default.{auto.name}"]
    a.drop_partition()
    a.put(5)
    auto.put(5)
    to.equal(cdc, task, tables)
    a.drop()
    to.wait_on_target("the drop", lambda: not to.target.has(a.name))
    a.make()
    a.put(30)
    to.equal(cdc, task, tables)
    assert cdc.task(task)["state"] == "Running"


def finish(lab, cdc, task, w):
    w.stop()
    print(f"{w.done} operations, refused by the source: {len(w.errors)} {w.errors[:5]}")
    cdc.wait_caught_up(task, 180)
    wait_equal(lab.source, lab.target, w.names, timeout=120)
    assert cdc.task(task)["state"] == "Running"
    assert w.done > 50
    assert len(w.errors) * 10 < w.done, w.errors[:10]


@pytest.fixture
def workload(to):
    made = []

    def start():
        w = Workload(to.source.alias(), to.prefix, SEED)
        made.append(w)
        return w.start()
    yield start
    for w in made:
        w.stopping.set()


def test_random_workload(to, cdc, ordinary, workload):
    task = create(to, cdc, ["*"], ordinary)
    w = workload()
    time.sleep(SECONDS)
    finish(to, cdc, task, w)


@pytest.mark.every_queue
@pytest.mark.only_on("rocksmq", "kafka")
def test_random_workload_with_kill_9(to, cdc, ordinary, workload):
    """Exactly once in effect: count(*) equals the number of keys on both sides (compare_data checks it)."""
    task = create(to, cdc, ["*"], ordinary)
    w = workload()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        time.sleep(to.rnd.uniform(0.3, 4))
        cdc.restart(hard=True)
    finish(to, cdc, task, w)


@pytest.mark.parametrize("hard", [False, True], ids=["stop", "kill"])
def test_target_restarts(to, cdc, ordinary, writing, hard):
    task = create(to, cdc, ["*"], ordinary)
    a, b = to.table("a"), to.table("b", "text_key")
    with writing(a) as wa, writing(b) as wb:
        for w in (wa, wb):
            w.wait_batches(5)
        ordinary.restart(hard=hard)
        for w in (wa, wb):
            w.wait_batches(10, timeout=180)
    to.equal(cdc, task, [a, b], timeout=240)
    assert cdc.task(task)["state"] == "Running"


def test_a_collection_with_generated_keys_is_refused(to, cdc, ordinary):
    """Rows cannot keep their keys there."""
    source = to.table("a", "auto_key")
    source.shape.create(source.name, to.target.alias())
    task = create(to, cdc, [source.name], ordinary)
    source.put(5)
    reason = wait_for("a reason", lambda: cdc.task(task).get("reason"), 60)
    assert "auto" in reason.lower() and source.name in reason
    to.target.handler().drop_collection(source.name)
