"""Source and target are compared, and the target is mended: the request verify, and milvus-cdc verify."""
import secrets
import subprocess

import pytest

from servers import ApiError, find_program, wait_for
from test_group import Group


def replicated(to, cdc, ordinary, tables, **more):
    """A task whose target has all of it, loaded."""
    task = to.create(cdc, [t.name for t in tables], target=ordinary, start="snapshot", **more)
    wait_for("the copy's end", lambda: "snapshot" not in cdc.task(task), 120)
    wait_for("all is loaded there", lambda: all(to.target.loaded(x.name) == "Loaded" for x in tables), 60)
    return task


def verify(cdc, task, timeout=120, **more):
    answer = cdc.api("verify", task_id=task, **more)
    assert answer == {"task_id": task, "state": "running"}
    return result(cdc, task, timeout)


def result(cdc, task, timeout=120):
    wait_for("the result", lambda: cdc.task(task)["verify"]["state"] != "running", timeout)
    return cdc.task(task)["verify"]


def of(found, table):
    return next(c for c in found["collections"] if c["name"] == table.name)


def counts(found, table):
    c = of(found, table)
    return c["missing"], c["extra"], c["different"]


ALL = ("int_key", "text_key", "auto_key", "part_key", "scalars", "json", "arrays")


def test_equal_while_rows_are_written(to, cdc, ordinary, writing):
    """Seven schemas, partitions; rows come, change and go all the time."""
    tables = [to.table(s, s) for s in ALL]
    tables[0].create_partition()
    for t in tables:
        for _ in range(3):
            t.put(300, t.partition())
        t.remove(t.some_keys(30))
    with writing(tables[0]) as a, writing(tables[1]) as b:
        task = replicated(to, cdc, ordinary, tables)
        for w in (a, b):
            w.wait_batches(5)
        for level in ("rows", "keys", "counts"):
            found = verify(cdc, task, level=level)
            assert found["state"] == "equal", found
            assert len(found["collections"]) == len(tables)
    assert found["level"] == "counts" and not found["repair"]
    assert found["time_tick"] >> 18 <= found["finished_ms"] + 1000
    assert found["started_ms"] <= found["finished_ms"]
    to.equal(cdc, task, tables)


def spoil(to, t, gone, added, changed):
    c = to.target.collection(t.name)
    c.delete(f"id in [{', '.join(repr_key(t, k) for k in gone)}]")
    for write, keys in ((c.insert, added), (c.upsert, changed)):
        if keys:
            write([t.shape.row(to.rnd, k) for k in keys])


def repr_key(t, key):
    return '"' + key.replace('"', '\\"') + '"' if t.shape.text_key else str(key)


def test_what_differs_is_found_and_mended(to, cdc, ordinary, writing):
    tables = [to.table("int"), to.table("text", "text_key")]
    rest = to.table("rest", "scalars")
    for t in tables + [rest]:
        t.put(500)
    task = replicated(to, cdc, ordinary, tables + [rest])
    key = {t: [t.shape.key(i) for i in range(500)] for t in tables}
    for t in tables:
        spoil(to, t, key[t][:2], [t.shape.key(100000)], key[t][10:13])
    found = verify(cdc, task)
    assert found["state"] == "different"
    assert counts(found, rest) == (0, 0, 0)
    for t in tables:
        assert counts(found, t) == (2, 1, 3)
        assert {(k["key"], k["what"]) for k in of(found, t)["keys"]} == (
            {(k, "missing") for k in key[t][:2]} | {(t.shape.key(100000), "extra")}
            | {(k, "different") for k in key[t][10:13]})
        assert of(found, t)["ranges"][0]["missing"] == 2
    keys = verify(cdc, task, level="keys", collections=[tables[0].name])
    assert [c["name"] for c in keys["collections"]] == [tables[0].name]
    assert counts(keys, tables[0]) == (2, 1, 0)
    with writing(rest), writing(tables[0]):  # which may mend rows of the latter too
        mended = verify(cdc, task, repair=True)
    assert mended["state"] == "repaired", mended
    for t in tables:
        assert counts(mended, t) == (0, 0, 0)
        assert of(mended, t).get("repaired", 0) <= 6
    assert of(mended, tables[1])["repaired"] == 6
    assert verify(cdc, task)["state"] == "equal"
    to.equal(cdc, task, tables + [rest])


def test_result_outlives_the_daemon(to, cdc, ordinary):
    t = to.table("a")
    t.put(300)
    task = replicated(to, cdc, ordinary, [t])
    found = verify(cdc, task)
    cdc.restart()
    assert cdc.task(task)["verify"] == found
    assert "collections" not in cdc.api("list")["tasks"][0]["verify"]
    cdc.api("pause", task_id=task)
    assert cdc.task(task)["verify"] == found
    with pytest.raises(ApiError, match="not running"):
        cdc.api("verify", task_id=task)


def test_kill_while_it_compares(to, ordinary, writing):
    t = to.table("big")
    for _ in range(30):
        t.put(1000)
    cdc = to.cdc()
    task = replicated(to, cdc, ordinary, [t])
    with writing(t):
        spoil(to, t, range(500), range(10**6, 10**6 + 500), range(500, 900))
        cdc.api("verify", task_id=task, repair=True)
        wait_for("it has begun", lambda: cdc.task(task)["verify"]["rows_compared"] > 0, 60, 0.02)
        with pytest.raises(ApiError, match="running"):
            cdc.api("verify", task_id=task)
        cdc.restart(hard=True)
        found = cdc.task(task)["verify"]
        assert found["state"] == "failed" and "interrupted" in found["reason"]
        assert verify(cdc, task, repair=True)["state"] in ("repaired", "equal")
    assert verify(cdc, task)["state"] == "equal"
    to.equal(cdc, task, [t])


def test_any_daemon_is_asked(to, postgres, ordinary):
    """The owner compares; all show the result, also when it is gone."""
    group = Group(to, postgres.database(f"v{secrets.token_hex(4)}"), 2)
    t = to.table("a")
    for _ in range(20):
        t.put(1000)
    task = replicated(to, group.c[0], ordinary, [t])
    owner = group.wait_owner(task)
    other = next(c for c in group.c if c is not owner)
    found = verify(other, task)
    assert found["state"] == "equal", found
    assert owner.task(task)["verify"] == found
    other.api("verify", task_id=task)
    with pytest.raises(ApiError, match="a verification of the task is running"):
        other.api("verify", task_id=task)
    owner.kill()
    owner.ended_on_purpose = True
    group.wait_owner(task, owner)
    found = other.task(task)["verify"]
    assert found["state"] == "failed" and "interrupted" in found["reason"]
    assert verify(other, task, level="keys")["state"] == "equal"


def test_cancel(to, cdc, ordinary):
    t = to.table("a")
    for _ in range(10):
        t.put(1000)
    task = replicated(to, cdc, ordinary, [t])
    cdc.api("verify", task_id=task)
    assert cdc.api("verify", task_id=task, cancel=True)["state"] == "cancelling"
    found = result(cdc, task)
    assert (found["state"], found["reason"]) == ("failed", "cancelled")
    with pytest.raises(ApiError, match="no verification"):
        cdc.api("verify", task_id=task, cancel=True)


def test_not_loaded(to, cdc, ordinary):
    t = to.table("a")
    t.put(50)
    task = replicated(to, cdc, ordinary, [t])
    to.target.collection(t.name).release()
    found = verify(cdc, task)
    assert found["state"] == "failed" and "not loaded on the target" in found["reason"]
    found = verify(cdc, task, load=True)
    assert found["state"] == "equal", found
    wait_for("the release on the target", lambda: to.target.loaded(t.name) == "NotLoad", 30)


def test_refusals(to, cdc, ordinary, pair):
    t = to.table("a")
    task = to.create(cdc, [t.name], target=ordinary)
    for more, text in (({"level": "bytes"}, "allowed are counts, keys and rows"), ({"collections": ["nobody"]}, "nobody"),
                       ({"level": "counts", "repair": True}, "needs the level"), ({"task_id": "x"}, "not found")):
        with pytest.raises(ApiError, match=text):
            cdc.api("verify", **{"task_id": task, **more})
    other = to.cdc(start=False)
    del other.config["sourceConfig"]["milvus"]
    other.start()
    task = to.create(other, [t.name], target=ordinary)
    with pytest.raises(ApiError, match="sourceConfig.milvus.uri"):
        other.api("verify", task_id=task)


def test_standby(lab, cdc, writing):
    """It answers queries while ticks come, and takes no repairs."""
    task = lab.create(cdc, ["*"])
    u = lab.table("b")
    u.put(300)
    lab.wait_on_target("it is loaded", lambda: lab.target.loaded(u.name) == "Loaded")
    with writing(u) as w:
        w.wait_batches(3)
        found = verify(cdc, task, collections=[u.name])
    assert found["state"] == "equal", found
    with pytest.raises(ApiError, match="standby"):
        cdc.api("verify", task_id=task, repair=True)


def run(cdc, *args):
    p = subprocess.run([find_program(), "verify", "--url", f"http://127.0.0.1:{cdc.port}", *args], capture_output=True,
                       text=True, timeout=120)
    print(p.stdout, p.stderr)
    return p.returncode, p.stdout + p.stderr


def test_command_line(to, cdc, ordinary):
    t = to.table("a")
    t.put(100)
    task = replicated(to, cdc, ordinary, [t])
    code, out = run(cdc, "--task", task, "--wait")
    assert code == 0
    assert out.splitlines()[0].startswith(f"default.{t.name}: equal, rows 100 on the source, 100 on the target")
    spoil(to, t, [5], [], [])
    code, out = run(cdc, "--task", task, "--wait", "--level", "keys", "--collection", t.name)
    assert code == 1 and "1 missing; keys missing 5" in out
    code, out = run(cdc, "--task", task, "--repair", "--wait")
    assert code == 0 and "repaired" in out
    assert run(cdc, "--task", "x", "--wait")[0] == 2
    assert run(cdc, "--wait")[0] == 2
    assert run(cdc, "--help")[0] == 0
    assert run(cdc, "--task", task)[0] == 0
    result(cdc, task)
