"""Where a task starts: at a time, and at the positions of a backup."""
import base64
import datetime
import time

import pytest
from pymilvus.grpc_gen import milvus_pb2, msg_pb2

from backup import Backup
from compare import Side, wait_equal
from conftest import FOLDER, moment
from servers import ApiError, Milvus, wait_for


def rfc3339(ms):
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.timezone.utc).isoformat(timespec="milliseconds")


@pytest.mark.parametrize("form", [lambda ms: rfc3339(ms).replace("+00:00", "Z"), lambda ms: ms, lambda ms: ms << 18],
                         ids=["text", "ms", "timestamp"])
def test_start_at_a_time(lab, target, cdc, form):
    a, b = lab.table("a", loaded=False), lab.table("b", "text_key", loaded=False)
    for t in (a, b):
        t.put(10)
    ms = moment()
    later = {t: t.put(7) for t in (a, b)}
    new = lab.table("new", loaded=False)
    later[new] = new.put(5)
    task = lab.create(cdc, [lab.name("*")], target=target, start=form(ms))
    assert cdc.task(task)["start"] == rfc3339(ms).replace("+00:00", "Z")
    for t in later:
        t.show()
        t.remove(later[t][:2])
        later[t] = later[t][2:] + t.put(3)
    cdc.wait_caught_up(task)
    for t, keys in later.items():
        lab.wait_on_target("loaded", lambda: lab.target.loaded(t.name) == "Loaded")
        want = {k: v for k, v in lab.source.rows(t.name).items() if k in keys}
        assert len(want) == len(keys)
        lab.wait_on_target(f"the rows of {t.name} since then", lambda: lab.target.rows(t.name) == want
                           and lab.target.count(t.name) == len(want))
    cdc.restart(hard=True)
    new.put(4)
    cdc.wait_caught_up(task)
    lab.wait_on_target("its rows", lambda: lab.target.rows(new.name) == lab.source.rows(new.name))


def test_what_is_no_start(lab, cdc):
    for start, text in (("yesterday", "start is yesterday, allowed are now, earliest, snapshot, a time"),
                        (int(time.time() * 1000) + 3600_000, "in the future"), (0, "start is 0"),
                        ({"backup": {}}, "the backup has none of the selected collections"), ([], "start must be")):
        with pytest.raises(ApiError, match=text):
            lab.create(cdc, [lab.name("a")], start=start)


def position(channel, msg_id, tt=0):
    p = msg_pb2.MsgPosition(channel_name=channel, msgID=msg_id, timestamp=tt)
    return base64.b64encode(p.SerializeToString()).decode()


def test_positions_are_checked(lab, cdc):
    """Against what the source and its queue have; all before the task is made."""
    t = lab.table("a", loaded=False)
    t.put(5)
    request = milvus_pb2.DescribeCollectionRequest(collection_name=t.name)
    channels = list(lab.source.handler()._stub.DescribeCollection(request).virtual_channel_names)
    first = (1).to_bytes(8, "little")
    good = {c: position(c, first) for c in channels}

    def refused(text, **entry):
        with pytest.raises(ApiError, match=text):
            lab.create(cdc, [{"name": t.name, **entry}])
        assert cdc.api("list")["tasks"] == []
    refused("the position given for .* of default.*is not in the queue any more.*first existing", positions=good)
    refused("lack its channel", positions=dict(list(good.items())[:1]))
    wrong = channels[0].replace("dml_", "dml_9")
    refused("which is none of its", positions={**good, wrong: position(wrong, first)})
    other = lab.table("b", loaded=False)
    with pytest.raises(ApiError, match=f"which is default.{t.name} on the source"):
        lab.create(cdc, [{"name": other.name, "positions": good}])
    t.drop()
    t.make()
    refused("which the source does not have", positions=good)
    with pytest.raises(ApiError, match="which the source does not have"):
        lab.create(cdc, [lab.name("*")], start={"backup": {"collection_backups": [
            {"db_name": "", "collection_name": t.name, "channel_checkpoints": good}]}})


@pytest.fixture
def restored(pair):
    """A server of its own: it is an ordinary one first, and then a standby."""
    m = Milvus("restored", FOLDER / "restored", etcd=pair.etcd.address, channels=3).start()
    yield m
    m.kill()


def test_recipe_for_a_standby(lab, cdc, restored, writing):
    """Backup, restore while the target is an ordinary Milvus, restart as a standby, and the positions: what comes, goes and
    changes on the source meanwhile is not lost, and nothing is there twice. (An import of 2.3.5 cuts at whole seconds only:
    nobody writes for the moment of the flush.)"""
    tables = [lab.table("a"), lab.table("b", "text_key")]
    backup = Backup(lab.pair.source, lab.source, lab.folder / "backup")
    for t in tables:
        t.put(300)
        t.remove(t.some_keys(40))
        t.collection.flush(timeout=60)
        t.put(200)
        t.change(t.some_keys(40))
        backup.take(t.name)
    lab.target = Side("target", restored.address, portable=True)
    with writing(tables[0]) as w, writing(tables[1]):
        for t in tables:
            t.remove(t.some_keys(30))  # these are in the backup, and their Deletes are not
            t.change(t.some_keys(30))
        w.wait_batches(3)
        for t in tables:
            t.shape.create(t.name, lab.target.alias())
            lab.target.collection(t.name).create_index(t.shape.vector_field, t.collection.indexes[0].params,
                                                       index_name=t.collection.indexes[0].index_name)
        backup.restore(restored, lab.target)
        for t in tables:
            lab.target.collection(t.name).load()
            lab.wait_on_target("restored rows", lambda: lab.target.count(t.name) > 200)
        w.wait_batches(3)
        restored.become_standby()
        lab.target = Side("target", restored.address)
        new = lab.table("new")  # made since the backup: all of it
        new.put(10)
        task = lab.create(cdc, [lab.name("*")], target=restored, start={"backup": backup.collection_meta()})
        w.wait_batches(5)
        cdc.restart(hard=True)
        w.wait_batches(5)
    assert cdc.task(task)["start"] == "backup" and cdc.task(task)["state"] == "Running"
    cdc.wait_caught_up(task)
    wait_equal(lab.source, lab.target, [t.name for t in tables])
    assert lab.target.has(new.name)

