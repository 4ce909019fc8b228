"""What is particular to the source's message queue: its broker goes away, it loses what a paused task needs."""
import datetime
import json
import subprocess

import pytest
from bench_parts import Sink
from compare import compare
from conftest import QUEUE, moment
from pymilvus import utility
from relay import Relay
from servers import ApiError, ServerError, free_port, wait_for

pytestmark = pytest.mark.every_queue


def remove_all(lab):
    """What retention does: every message of every channel of the source goes."""
    queue, channels = lab.pair.queue, [f"{lab.pair.source.cluster}-rootcoord-dml_{i}" for i in range(4)]
    if QUEUE == "natsmq":
        for c in channels:
            queue.purge(c)
        return
    from brokers import KAFKA_DIR
    plan = lab.folder / "remove.json"
    plan.write_text(json.dumps({"partitions": [{"topic": c, "partition": 0, "offset": -1} for c in channels],
                                "version": 1}))
    subprocess.run(["java", "-cp", f"{KAFKA_DIR / 'lib'}/*", "org.apache.kafka.tools.DeleteRecordsCommand",
                    "--bootstrap-server", queue.broker.address, "--offset-json-file", plan], check=True, timeout=60,
                   capture_output=True)


@pytest.mark.only_on("kafka", "pulsar")  # elsewhere the queue is a part of the source
@pytest.mark.parametrize("hard", [False, True], ids=["stop", "kill"])
def test_broker_restarts(lab, cdc, writing, hard):
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    with writing(t) as w:
        w.wait_batches(5)
        lab.pair.queue.broker.restart(hard=hard)
        lab.pair.revive()
        w.wait_batches(5, timeout=180)
    cdc.wait_caught_up(task, 240)
    wait_for("both sides equal", lambda: same_rows(lab, t), 120, 1)
    assert cdc.task(task)["state"] == "Running"


@pytest.mark.only_on("kafka", "pulsar", "natsmq")
def test_connection_cut_in_a_message(lab):
    """The broker's connection ends inside messages, again and again: a target that counts gets each row once."""
    relay = Relay("127.0.0.1", *lab.pair.queue.relayed())
    sink = Sink(lab.folder / "sink").start()
    cdc, rows = lab.cdc(start=False), 1000
    prefix = "pulsar://" if QUEUE == "pulsar" else ""
    cdc.config["sourceConfig"][QUEUE]["address"] = prefix + relay.address
    try:
        cdc.start()
        task, counted = lab.create(cdc, [lab.name("a")]), cdc.create(sink, [lab.name("a")])
        t = lab.table("a")
        t.put(rows)
        cdc.wait_caught_up(task)
        for cut in range(8):  # two times 50 KB follow, in four messages
            relay.cut_after(lab.rnd.randrange(10_000, 90_000))
            t.put(rows)
            t.put(rows)
            wait_for("the connection is cut", lambda: relay.cuts > cut, 60)
        lab.equal(cdc, task, [t])
        cdc.wait_caught_up(counted)
        assert sink.stats(brief=True)["rows"] == len(t.keys) == 17 * rows
        assert relay.cuts == 8
    finally:
        relay.close()
        sink.stop()


def same_rows(lab, t):
    """A broker that is killed makes the source's producer write a message twice, and the source counts its rows twice;
    the copy on the target must have each key once."""
    return all(": count(*): source" in line for line in compare(lab.source, lab.target, [t.name]))


@pytest.mark.only_on("kafka", "natsmq")
def test_start_at_a_time_that_is_gone(lab, cdc):
    """What the queue has removed since is told at create; a user may accept the gap."""
    t = lab.table("a", loaded=False)
    t.put(5)
    asked = moment()
    t.put(7)
    remove_all(lab)
    t.put(11)
    with pytest.raises(ApiError, match="the queue has nothing of before .* any more") as e:
        lab.create(cdc, [t], start=asked)
    assert datetime.datetime.fromtimestamp(asked // 1000, datetime.timezone.utc).strftime("%FT%T") in str(e.value)
    task = lab.create(cdc, [t], start=asked, accept_gap=True)
    cdc.wait_caught_up(task)
    rows = [v for k, v in cdc.metrics().items() if "replicate_data_cnt" in k and 'op_type="write"' in k]
    assert rows == [11]


@pytest.mark.only_on("kafka", "natsmq")  # Pulsar keeps what a task needs; RocksMQ cannot be made to drop it
def test_removed_position(lab, cdc):
    """Nothing is skipped in silence; a user may accept the gap."""
    task = lab.create(cdc, ["*"])
    t, gone = lab.table("a"), lab.table("gone")
    t.collection.create_partition("gone")
    t.put(5)
    gone.put(5)
    lab.equal(cdc, task, [t, gone])
    cdc.api("pause", task_id=task)
    t.put(7)
    t.collection.release()
    t.collection.drop_partition("gone")
    t.collection.load()
    utility.drop_collection(gone.name, using=lab.source.alias())
    remove_all(lab)
    cdc.api("resume", task_id=task)
    wait_for("the loss is told", lambda: cdc.task(task)["state"] == "Paused", 60)
    reason = cdc.task(task)["reason"]
    assert reason.startswith("LOST") and f"{lab.pair.source.cluster}-rootcoord-dml_" in reason
    assert "accept_gap" in reason
    cdc.api("resume", task_id=task)  # a plain one changes nothing
    wait_for("it is paused again", lambda: cdc.task(task)["state"] == "Paused", 60)
    cdc.api("resume", task_id=task, accept_gap=True)
    t.put(11)
    cdc.wait_caught_up(task, 120)
    assert cdc.task(task)["state"] == "Running"
    assert lab.wait_on_target("the rows behind the gap", lambda: lab.target.count(t.name) == 5 + 11)
    # their drop messages were in the gap
    assert lab.wait_on_target("the drop of the partition", lambda: lab.target.partitions(t.name) == ["_default"])
    assert lab.wait_on_target("the drop of the collection", lambda: not lab.target.has(gone.name))
    cdc.restart(hard=True)  # the gap is behind us for good
    t.put(3)
    cdc.wait_caught_up(task, 120)
    assert lab.wait_on_target("more rows", lambda: lab.target.count(t.name) == 5 + 11 + 3)


@pytest.mark.only_on("pulsar")  # whose retention follows subscriptions
def test_subscriptions_live_as_long_as_the_task(lab, cdc):
    broker = lab.pair.queue.broker
    channels = [f"{lab.pair.source.cluster}-rootcoord-dml_{i}" for i in range(4)] + [lab.pair.source.replicate_channel]

    def subscriptions(task):
        found = 0
        for c in channels:
            try:
                stats = json.loads(broker.admin("GET", f"persistent/public/default/{c}/stats"))
            except ServerError:  # a channel that no collection uses has no topic
                continue
            found += f"milvus-cdc-{task}" in stats["subscriptions"]
        return found
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    t.put(5)
    lab.equal(cdc, task, [t])
    n = wait_for("subscriptions", lambda: subscriptions(task) >= 3 and subscriptions(task), 30)
    cdc.restart(hard=True)
    cdc.api("pause", task_id=task)
    cdc.restart()  # whatever the pause has asked the broker for is done now
    assert subscriptions(task) == n  # what a paused task needs stays
    t.put(5)
    cdc.api("resume", task_id=task)
    lab.equal(cdc, task, [t])
    cdc.api("delete", task_id=task)
    wait_for("no subscription any more", lambda: subscriptions(task) == 0, 30)


def test_slow_target_slows_nobody(lab, cdc):
    """Two tasks read one collection through one reader; the target of one is slow, then gone."""
    slow = Sink(lab.folder / "slow", delay_ms=2000).start()
    try:
        slow_task, task = cdc.create(slow, [lab.name("a")]), lab.create(cdc, [lab.name("a")])
        t = lab.table("a")
        for _ in range(20):
            t.put(50)
        lab.equal(cdc, task, [t], timeout=60)
        slow.kill()
        t.put(50)
        lab.equal(cdc, task, [t], timeout=60)
        reason = wait_for("the other task's trouble", lambda: cdc.task(slow_task).get("reason"), 60)
        assert str(slow.port) in reason
        assert cdc.task(slow_task)["state"] == "Running"
    finally:
        slow.kill()


def test_queue_that_is_not_there_is_told(lab):
    """With the name of the setting, when the task is made."""
    other = {"rocksmq": ("rocksmq", {"path": "/nowhere/rocksmq"}, "/nowhere/rocksmq"),
             "kafka": ("kafka", {"address": f"127.0.0.1:{free_port()}"}, "sourceConfig.kafka.address"),
             "pulsar": ("pulsar", {"address": f"pulsar://127.0.0.1:{free_port()}"}, "sourceConfig.pulsar.address"),
             "natsmq": ("natsmq", {"address": f"127.0.0.1:{free_port()}"}, "sourceConfig.natsmq.address")}[QUEUE]
    cdc = lab.cdc(start=False)
    cdc.config["sourceConfig"][other[0]] = other[1]
    cdc.start()
    lab.table("a")
    with pytest.raises(ApiError) as e:
        lab.create(cdc, ["*"])
    assert other[2] in str(e.value)
