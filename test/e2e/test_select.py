"""Which collections a task takes, under which names: patterns, exclusions, mappings; what joins later."""
import time

import pytest

from servers import ApiError, wait_for


def same_rows(lab, cdc, task, table, database, target_database, target_name):
    """The table, which is loaded on both sides, has the same rows under its name on the target."""
    cdc.wait_caught_up(task)
    lab.wait_on_target(f"{target_name} loaded", lambda: lab.target.loaded(target_name, target_database) == "Loaded")
    want = lab.source.rows(table.name, database)
    assert want
    lab.wait_on_target(f"the rows of {target_name}",
                       lambda: lab.target.rows(target_name, target_database) == want
                       and lab.target.count(target_name, target_database) == len(want))


def names(matches):
    return {(m["database"], m["collection"]): (m["target_database"], m["target_collection"]) for m in matches}


def test_patterns_mapping_and_exclusion(lab, target, cdc):
    before = lab.table("tmp_before", loaded=False)
    mapped = lab.database("db_mapped")
    moved = mapped + "_t"
    lab.made.append((moved, ""))
    task = lab.create(
        cdc, [lab.name("tmp_*"), lab.name("db_*.*")], target=target,
        exclude=[lab.name("tmp_skip*"), lab.name("db_*.") + lab.name("scratch")],
        name_mapping=[{"source_db": "default", "target_db": "default",
                       "collection_mapping": {lab.name("tmp_*"): lab.name("copy_*"),
                                              lab.name("tmp_one"): lab.name("single")}},
                      {"source_db": mapped, "target_db": moved}])
    assert names(cdc.task(task)["matches"]) == {("default", before.name): ("default", lab.name("copy_before"))}
    later = lab.database("db_later")
    taken = [(lab.table("tmp_new"), "default", "default", lab.name("copy_new")),
             (lab.table("tmp_one"), "default", "default", lab.name("single")),
             (lab.table("a", database=mapped), mapped, moved, lab.name("a")),
             (lab.table("a", database=later), later, later, lab.name("a"))]
    left = [(lab.table("tmp_skipped", loaded=False), "default"), (lab.table("other", loaded=False), "default"),
            (lab.table("scratch", database=later, loaded=False), later)]
    before.show()
    for t in [before] + [t for t, *_ in taken] + [t for t, _ in left]:
        t.put(20)
    same_rows(lab, cdc, task, before, "default", "default", lab.name("copy_before"))
    for t, database, target_database, name in taken:
        same_rows(lab, cdc, task, t, database, target_database, name)
    for t, database, target_database, name in taken[::2]:
        t.drop()
        lab.wait_on_target(f"the drop of {name}", lambda: not lab.target.has(name, target_database))
        t.make()
        t.put(7)
        same_rows(lab, cdc, task, t, database, target_database, name)
    for t, database in left:
        assert not lab.target.has(t.name, database)
    assert not any(lab.target.has(t.name) for t, *_ in taken)
    assert mapped not in lab.target.databases()

    got = cdc.task(task)
    assert got["state"] == "Running"
    want = {(database, t.name): (to_database, name) for t, database, to_database, name in taken}
    want["default", before.name] = ("default", lab.name("copy_before"))
    assert names(got["matches"]) == want and got["matches_total"] == 5
    assert {m["id"] for m in got["matches"]} == {
        lab.source.handler(d).describe_collection(c)["collection_id"] for d, c in want}
    shown = cdc.api("list")["tasks"][0]
    assert names(shown["matches"]) == want and shown["matches_total"] == 5
    cdc.restart()
    assert wait_for("the source's metadata", lambda: cdc.task(task).get("matches_total"), 20) == 5
    t, database, target_database, name = taken[3]
    t.put(5)
    same_rows(lab, cdc, task, t, database, target_database, name)


def test_two_with_one_name_are_not_merged(lab, target, cdc):
    """Two databases go to one: the second collection of a name stops the task, until it is gone."""
    one, two = lab.database("one"), lab.database("two")
    both = lab.name("both")
    lab.made.append((both, ""))
    mapping = [{"source_db": d, "target_db": both} for d in (one, two)]
    task = lab.create(cdc, [one + ".*", two + ".*"], target=target, name_mapping=mapping)
    first = lab.table("a", database=one)
    first.put(10)
    second = lab.table("a", database=two, loaded=False)
    second.put(5)
    reason = wait_for("a reason", lambda: cdc.task(task)["state"] == "Paused" and cdc.task(task)["reason"], 60)
    for text in (f"{one}.{first.name}", f"{two}.{second.name}", f"{both}.{first.name}", "never merged"):
        assert text in reason
    second.drop()
    wait_for("the task goes on", lambda: resumed(cdc, task), 90, 1)
    first.put(10)
    same_rows(lab, cdc, task, first, one, both, first.name)
    assert lab.target.count(first.name, both) == 20
    cdc.api("delete", task_id=task)
    second.make()
    with pytest.raises(ApiError, match="never merged"):
        lab.create(cdc, [one + ".*", two + ".*"], target=target, name_mapping=mapping)


def test_two_tasks_with_one_name_are_not_merged(lab, cdc):
    one, two = lab.database("one"), lab.database("two")
    both = lab.name("both")
    lab.made.append((both, ""))
    first, second = [lab.create(cdc, [d + ".*"], name_mapping=[{"source_db": d, "target_db": both}]) for d in (one, two)]
    a = lab.table("a", database=one)
    a.put(10)
    same_rows(lab, cdc, first, a, one, both, a.name)
    b = lab.table("a", database=two, loaded=False)
    reason = wait_for("a reason", lambda: cdc.task(second)["state"] == "Paused" and cdc.task(second)["reason"], 60)
    assert "never merged" in reason and f"the first is of task {first}" in reason
    cdc.api("delete", task_id=second)
    with pytest.raises(ApiError, match="never merged"):
        lab.create(cdc, [two + ".*"], name_mapping=[{"source_db": two, "target_db": both}])
    b.drop()
    a.put(10)
    same_rows(lab, cdc, first, a, one, both, a.name)
    assert cdc.task(first)["state"] == "Running" and lab.target.count(a.name, both) == 20


def resumed(cdc, task):
    """The source shows a drop in its metadata a little later than in its answer."""
    if cdc.task(task)["state"] == "Paused":
        cdc.api("resume", task_id=task)
    time.sleep(1)
    return cdc.task(task)["state"] == "Running"


def test_exclusions_of_two_tasks(lab, cdc, pair):
    """What the first leaves out may be another one's; a larger one takes what is free."""
    a, b, c = (lab.table(s, loaded=False) for s in ("x_a", "x_tmp_b", "y_c"))
    first = lab.create(cdc, [lab.name("x_*")], exclude=[lab.name("x_tmp_*")])
    with pytest.raises(ApiError, match="already replicated"):
        lab.create(cdc, [lab.name("x_a")])
    with pytest.raises(ApiError, match="of which the task selects nothing"):
        lab.create(cdc, [lab.name("y_*")], exclude=["nowhere.*"])
    second = lab.create(cdc, [lab.name("*")])
    matches = {t: {m["collection"] for m in cdc.task(t)["matches"]} for t in (first, second)}
    assert matches == {first: {a.name}, second: {b.name, c.name}}
    for t in (a, b, c):
        t.show()
        t.put(10)
    for task, tables in ((first, [a]), (second, [b, c])):
        lab.equal(cdc, task, tables)
