"""Seven schemas under a random workload, then everything compared; and again with kill -9 all the time."""
import os
import time

import pytest

from compare import wait_equal
from conftest import SEED
from workload import Workload

pytestmark = pytest.mark.every_queue
SECONDS = int(os.environ.get("WORKLOAD_SECONDS") or 40)


def finish(lab, cdc, task, w):
    w.stop()
    print(f"{w.done} operations, refused by the source: {len(w.errors)} {w.errors[:5]}")
    cdc.wait_caught_up(task, 180)
    wait_equal(lab.source, lab.target, w.names, timeout=120)
    assert cdc.task(task)["state"] == "Running"
    assert w.done > 100
    for name in w.names:
        n = lab.target.count(name)
        assert n == lab.source.count(name)
    # Refusals of the source are its own business, but most operations must have worked.
    assert len(w.errors) * 10 < w.done, w.errors[:10]


@pytest.fixture
def workload(lab):
    made = []

    def start(cdc):
        task = lab.create(cdc, ["*"])
        w = Workload(lab.source.alias(), lab.prefix, SEED)
        made.append(w)
        return task, w.start()
    yield start
    for w in made:
        w.stopping.set()


def test_random_workload(lab, cdc, workload):
    task, w = workload(cdc)
    time.sleep(SECONDS)
    finish(lab, cdc, task, w)


def test_random_workload_with_kill_9(lab, cdc, workload):
    """Exactly once in effect: count(*) equals the number of keys on both sides (compare_data checks it)."""
    task, w = workload(cdc)
    until = time.monotonic() + SECONDS
    kills = 0
    while time.monotonic() < until:
        time.sleep(lab.rnd.uniform(0.3, 4))
        cdc.restart(hard=True)
        kills += 1
    print(f"{kills} kills")
    finish(lab, cdc, task, w)


def test_random_workload_with_pauses(lab, cdc, workload):
    task, w = workload(cdc)
    until = time.monotonic() + SECONDS / 2
    while time.monotonic() < until:
        time.sleep(lab.rnd.uniform(0.2, 3))
        cdc.api("pause", task_id=task)
        time.sleep(lab.rnd.uniform(0, 1))
        cdc.api("resume", task_id=task)
    finish(lab, cdc, task, w)
