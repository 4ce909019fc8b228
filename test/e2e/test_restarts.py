"""Source, target or etcd go away while rows are written: nobody has to do anything, both sides are equal in the end."""
import pytest

from servers import wait_for

CASES = [pytest.param("target", False, id="target-stop"), pytest.param("target", True, id="target-kill"),
         pytest.param("source", False, id="source-stop"),
         pytest.param("source", True, id="source-kill", marks=pytest.mark.every_queue),
         pytest.param("etcd", False, id="etcd-stop")]


@pytest.mark.parametrize("who, hard", CASES)
def test_restart(lab, cdc, writing, who, hard):
    task = lab.create(cdc, ["*"])
    a, b = lab.table("a"), lab.table("b", "text_key")
    with writing(a) as wa, writing(b) as wb:
        for w in (wa, wb):
            w.wait_batches(5)
        getattr(lab.pair, who).restart(hard=hard)
        lab.pair.revive()
        for w in (wa, wb):
            w.wait_batches(10, timeout=180)
    lab.equal(cdc, task, [a, b], timeout=240)
    assert cdc.task(task)["state"] == "Running"


def test_outage_shows_in_the_reason_without_pausing(lab, cdc):
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    t.put(5)
    lab.equal(cdc, task, [t])
    lab.pair.target.kill()
    t.put(5)
    reason = wait_for("a reason", lambda: cdc.task(task).get("reason"), 30)
    assert str(lab.pair.target.port) in reason
    assert cdc.task(task)["state"] == "Running"
    lab.pair.revive()
    lab.equal(cdc, task, [t], timeout=240)
    wait_for("no reason any more", lambda: not cdc.task(task).get("reason"), 60)


def test_daemon_starts_while_everything_else_is_down(lab, cdc):
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    t.put(5)
    lab.equal(cdc, task, [t])
    cdc.stop()
    lab.pair.target.kill()
    cdc.start()
    assert cdc.task(task)["state"] == "Running"
    lab.pair.revive()
    t.put(5)
    lab.equal(cdc, task, [t], timeout=240)
