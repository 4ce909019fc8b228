"""The control API and the life of tasks, against the real daemon."""
import json
import signal
import socket
import sqlite3
import subprocess
import time

import pytest
from pymilvus.grpc_gen import milvus_pb2

from compare import wait_equal
from servers import ApiError, find_program, free_port, http_get, wait_for


def refused(cdc, request_type, code, **data):
    with pytest.raises(ApiError) as e:
        cdc.api(request_type, **data)
    assert e.value.code == code, str(e.value)
    assert e.value.message.startswith(f"fail to handle the {request_type} request, error: "), e.value.message
    return e.value.message


def answer(cdc, body):
    status, text = cdc.post(body)
    assert text.endswith("}\n")
    return status, json.loads(text)


def test_life_of_a_task(lab, cdc):
    t = lab.table("a", loaded=False)
    task = lab.create(cdc, [t], task_id="my-task", token="root:SecretSecret")
    assert task == "my-task"
    got = cdc.api("get", task_id=task)
    assert got["task"]["state"] == "Running" and got["Task"] == got["task"]
    assert got["task"]["collection_infos"][0]["name"] == t.name
    assert got["task"]["milvus_connect_param"]["uri"] == lab.pair.target.uri
    assert [x["task_id"] for x in cdc.api("list")["tasks"]] == [task]
    assert cdc.api("pause", task_id=task) == {}
    assert cdc.task(task)["reason"] == "manually pause through http interface"
    refused(cdc, "pause", 400, task_id=task)
    assert cdc.api("resume", task_id=task) == {}
    assert cdc.task(task)["state"] == "Running" and not cdc.task(task).get("reason")
    refused(cdc, "resume", 400, task_id=task)
    assert cdc.api("delete", task_id=task) == {}
    assert cdc.api("list")["tasks"] == []
    refused(cdc, "get", 400, task_id=task)
    refused(cdc, "delete", 400, task_id=task)
    assert cdc.api("delete", task_id=task, ignore_not_found=True) == {}


def test_secrets_are_never_shown(lab, cdc):
    lab.create(cdc, ["*"], token="root:VerySecretWord")
    shown = [cdc.post({"request_type": "list"})[1], cdc.log.read_text(), http_get(cdc.url + "/cdc/metrics")]
    for text in shown:
        assert "VerySecretWord" not in text


def test_secrets_are_in_no_error(lab, cdc):
    """Whatever is wrong with a create: neither answer nor log nor metrics nor the list repeat a password or token."""
    cdc.api("maintenance", operation="set_log_level", params={"log_level": "debug"})
    login = {"username": "root", "password": "PassWordWord9"}
    good = {"uri": lab.pair.target.uri, "connect_timeout": 2, "token": "root:ToKenWord9"}
    infos = [{"name": "*"}]
    requests = [
        {"milvus_connect_param": {**good, **login}},
        {"milvus_connect_param": {**good, "uri": "root:ToKenWord9@h"}, "collection_infos": infos},
        {"milvus_connect_param": {**good, "uri": "http://root:ToKenWord9@h:1"}, "collection_infos": infos},
        {"milvus_connect_param": {**good, "token": {"a": "ToKenWord9"}}, "collection_infos": infos},
        {"milvus_connect_param": {**good, "token": ["ToKenWord9"]}, "collection_infos": infos},
        {"milvus_connect_param": "root:ToKenWord9", "collection_infos": infos},
        {"milvus_connect_param": {**good, "port": "PassWordWord9"}, "collection_infos": infos},
        {"milvus_connect_param": {**login, "host": "127.0.0.1", "port": free_port(), "connect_timeout": 1},
         "collection_infos": infos},
        {"milvus_connect_param": {**good, "uri": lab.pair.source.uri}, "collection_infos": infos},
        {"milvus_connect_param": {**good, "uri": good["uri"].replace("http", "https")}, "collection_infos": infos},
        {"milvus_connect_param": {**good, "token": "ToKenWord9\r\nx: y"}, "collection_infos": [{"name": lab.name("y")}]},
        {"kafka_connect_param": {"address": "k:1", "topic": "t", "enable_sasl": True, "sasl": login},
         "collection_infos": infos},
    ]
    shown = [cdc.post({"request_type": "create", "request_data": r})[1] for r in requests]
    for text, request in zip(shown, requests):
        if request is not requests[-2]:
            assert json.loads(text)["code"] != 200, (text, request)
    shown.append(cdc.post(b'{"request_type":"create","request_data":{"milvus_connect_param":{"token":"ToKenWord9}}}')[1])
    shown.append(cdc.post(b'{"request_type":"ToKenWord9')[1])
    task = lab.create(cdc, [lab.name("x")], token="root:ToKenWord9")
    for request in ("get", "list", "position", "pause", "resume"):
        shown.append(cdc.post({"request_type": request, "request_data": {"task_id": task}})[1])
    lab.create(cdc, [lab.name("x")], token="root:ToKenWord9", task_id=task)
    with pytest.raises(ApiError) as e:
        lab.create(cdc, [lab.name("x")], token="root:ToKenWord9")
    shown += [str(e.value), http_get(cdc.url + "/cdc/metrics"), cdc.log.read_text(errors="replace")]
    for text in shown:
        assert "ToKenWord9" not in text and "PassWordWord9" not in text, text


def test_create_errors(lab, cdc):
    target = {"uri": lab.pair.target.uri, "connect_timeout": 3}
    infos = [{"name": "*"}]
    refused(cdc, "create", 400)
    refused(cdc, "create", 400, milvus_connect_param=target)
    refused(cdc, "create", 400, milvus_connect_param={**target, "connect_timeout": -1}, collection_infos=infos)
    refused(cdc, "create", 400, milvus_connect_param={"host": "127.0.0.1"}, collection_infos=infos)
    refused(cdc, "create", 400, milvus_connect_param={**target, "username": "root"}, collection_infos=infos)
    refused(cdc, "create", 400, milvus_connect_param=target, collection_infos=[{"name": ""}])
    refused(cdc, "create", 400, milvus_connect_param=target, collection_infos=[{"name": "x" * 300}])
    refused(cdc, "create", 400, milvus_connect_param=target, collection_infos=infos,
            db_collections={"default": infos})
    refused(cdc, "create", 400, milvus_connect_param=target, collection_infos=infos,
            rpc_channel_info={"name": "another-replicate-msg"})
    assert cdc.api("list")["tasks"] == []


def test_create_names_what_it_does_not_do(lab, cdc):
    """A documented field is taken or refused by name, never ignored."""
    kafka = {"address": "127.0.0.1:9092", "topic": "t"}
    text = refused(cdc, "create", 400, kafka_connect_param=kafka, collection_infos=[{"name": "*"}])
    assert "kafka" in text
    target = {"uri": lab.pair.target.uri}
    for name, value in (("extra_info", {"enable_user_role": True}), ("positions", {"p": "CgFwEgEB"})):
        text = refused(cdc, "create", 400, milvus_connect_param=target, collection_infos=[{"name": "*"}], **{name: value})
        assert name in text


def test_create_with_unreachable_target(lab, cdc):
    port = free_port()
    started = time.monotonic()
    text = refused(cdc, "create", 500, collection_infos=[{"name": "*"}],
                   milvus_connect_param={"uri": f"http://127.0.0.1:{port}", "connect_timeout": 2})
    assert str(port) in text
    assert time.monotonic() - started < 5


def test_create_with_a_target_that_is_no_standby(lab, cdc):
    text = refused(cdc, "create", 400, collection_infos=[{"name": "*"}], mode="standby",
                   milvus_connect_param={"uri": lab.pair.source.uri, "connect_timeout": 5})
    assert "standby" in text.lower() or "ttMsgEnabled" in text


def test_create_with_the_source_as_the_target(lab):
    """It would replicate its own writes for ever: refused at once by its address, else at its first collection."""
    infos, target = [{"name": "*"}], {"uri": lab.pair.source.uri, "connect_timeout": 5}
    text = refused(lab.cdc(), "create", 400, collection_infos=infos, milvus_connect_param=target)
    assert "the target is the source itself" in text
    other = lab.cdc(start=False)
    del other.config["sourceConfig"]["milvus"]
    other.start()
    t = lab.table("a", loaded=False)
    task = other.api("create", collection_infos=[{"name": t.name}], milvus_connect_param=target)["task_id"]
    t.put(5)
    wait_for("the task's end", lambda: other.task(task)["state"] == "Paused", 30)
    assert "the target is the source itself" in other.task(task)["reason"]


def test_wrong_source_path_is_told(lab):
    cdc = lab.cdc(start=False)
    cdc.config["sourceConfig"]["rocksmq"]["path"] = "/nowhere/rocksmq"
    cdc.start(ready=None)
    cdc.ended_on_purpose = True

    def told():
        if not cdc.alive():
            return "/nowhere/rocksmq" in cdc.log.read_text()
        try:
            task = lab.create(cdc, ["*"])
        except ApiError as e:
            return "/nowhere/rocksmq" in str(e)
        except OSError:
            return False
        return wait_for("a reason", lambda: "/nowhere/rocksmq" in cdc.task(task).get("reason", ""), 20)
    assert wait_for("the path in an error", told, 30)


def test_target_by_host_and_port(lab, cdc):
    t = lab.table("a", loaded=False)
    task = cdc.api("create", collection_infos=[{"name": t.name}], milvus_connect_param={
        "host": "127.0.0.1", "port": lab.pair.target.port, "username": "root", "password": "Milvus",
        "enable_tls": False, "connect_timeout": 5})["task_id"]
    t.show()
    t.put(5)
    lab.equal(cdc, task, [t])


def test_several_names_in_one_task(lab, cdc):
    a, b, c = lab.table("a", loaded=False), lab.table("b", loaded=False), lab.table("c", loaded=False)
    task = lab.create(cdc, [a, b])
    for t in (a, b, c):
        t.show()
        t.put(5)
    lab.equal(cdc, task, [a, b])
    assert not lab.target.has(c.name)


def test_create_is_idempotent_by_id_and_refuses_overlap(lab, cdc):
    t = lab.table("a", loaded=False)
    assert lab.create(cdc, [t], task_id="one") == "one"
    assert lab.create(cdc, [t], task_id="one") == "one"
    for names in ([t],):
        with pytest.raises(ApiError) as e:
            lab.create(cdc, names, task_id="two")
        assert e.value.code == 400
    assert len(cdc.api("list")["tasks"]) == 1


def test_task_limit(lab):
    cdc = lab.cdc(maxTaskNum=1)
    lab.create(cdc, [lab.name("x")])
    with pytest.raises(ApiError) as e:
        lab.create(cdc, [lab.name("y")])
    assert e.value.code == 500


def test_bad_requests(lab, cdc):
    assert answer(cdc, b"{")[1]["code"] == 500
    assert answer(cdc, b"")[1]["code"] == 500
    assert answer(cdc, b"[]")[1]["code"] == 500
    assert answer(cdc, {"request_type": "create", "request_data": "x"})[1]["code"] == 500
    assert answer(cdc, {"request_type": "get", "request_data": {"task_id": 7}})[1]["code"] == 500
    assert answer(cdc, {"request_type": "get_position"})[1]["code"] == 400
    assert answer(cdc, {})[1]["code"] == 400

    assert cdc.api("list")["tasks"] == []


def raw(cdc, data, timeout=5):
    with socket.create_connection(("127.0.0.1", cdc.port), timeout) as s:
        s.sendall(data)
        got = b""
        try:
            while chunk := s.recv(65536):
                got += chunk
        except OSError:
            pass
        return got.decode()


def test_method_and_path(lab, cdc):
    close = "Host: x\r\nConnection: close\r\n\r\n"
    reply = raw(cdc, f"GET /cdc HTTP/1.1\r\n{close}".encode())
    assert " 200 " in reply and '"code":405' in reply.replace(" ", "") and "only support the POST method" in reply
    assert " 404 " in raw(cdc, f"GET /nothing HTTP/1.1\r\n{close}".encode())
    assert " 200 " in raw(cdc, f"GET /healthz HTTP/1.1\r\n{close}".encode())
    assert " 200 " in raw(cdc, f"GET /readyz HTTP/1.1\r\n{close}".encode())


def test_body_over_the_limit(lab, cdc):
    head = "POST /cdc HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
    reply = raw(cdc, head.encode() + b" " * 1_500_000)
    assert reply == "" or '"code"' in reply or " 413 " in reply
    assert cdc.api("list")["tasks"] == []


def test_slow_and_half_closed_clients_stop_nobody(lab, cdc):
    slow = [socket.create_connection(("127.0.0.1", cdc.port)) for _ in range(30)]
    for i, s in enumerate(slow):
        s.sendall(b"POST /cdc HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"[:10 + i])
        if i % 2:
            s.shutdown(socket.SHUT_WR)
    started = time.monotonic()
    for _ in range(20):
        assert cdc.api("list")["tasks"] == []
    assert time.monotonic() - started < 5
    for s in slow:
        s.close()


def test_maintenance(lab, cdc):
    assert "State" in cdc.api("maintenance", operation="set_log_level", params={"log_level": "debug"})
    assert "State" in cdc.api("maintenance", operation="nonsense", params={})


def test_positions(lab, cdc):
    t = lab.table("a", loaded=False)
    task = lab.create(cdc, [t])
    t.show()
    t.put(5)
    lab.equal(cdc, task, [t])
    d = cdc.api("position", task_id=task)
    assert set(d) == {"positions", "op_positions", "target_positions"}
    mine = [p for p in d["positions"] if p["collection_id"] != -10]
    assert mine
    for p in mine:
        assert p["channel_name"].startswith(f"{lab.pair.source.cluster}-rootcoord-dml_")
        assert abs(p["time"] - time.time() * 1000) < 60_000
        assert p["tt"] >> 18 in (p["time"], p["time"] + 1)
        assert p["msg_id"]
    assert cdc.api("position", task_id="unknown") == dict.fromkeys(d)
    assert cdc.api("position")["positions"]


def test_metrics(lab, cdc):
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    keys = t.put(40)
    t.remove(keys[:3])
    lab.equal(cdc, task, [t])
    m = cdc.metrics()
    assert m['milvus_cdc_task_num{task_state="Running"}'] == 1
    assert m['milvus_cdc_task_num{task_state="Paused"}'] == 0
    assert m[f'milvus_cdc_task_state{{task_id="{task}"}}'] == 1

    def total(name, *labels):
        return sum(v for k, v in m.items() if k.startswith(name + "{") and all(x in k for x in labels))
    assert total("milvus_cdc_request_total", 'request_type="create"', 'request_status="success"') == 1
    assert total("milvus_cdc_replicate_data_cnt", t.name, 'op_type="write"', 'api_type="insert"') >= 40
    assert total("milvus_cdc_replicate_data_cnt", t.name, 'op_type="write"', 'api_type="delete"') >= 3
    assert total("milvus_cdc_replicate_data_size", 'msg_type="Insert"') > 0
    assert total("milvus_cdc_api_execute_total", 'api_type="ReplicateMessage"') > 0
    assert total("milvus_cdc_api_execute_total", 'api_type="CreateCollection"') >= 1
    assert total("milvus_cdc_center_tt") > 0
    cdc.api("delete", task_id=task)
    assert cdc.metrics()['milvus_cdc_task_num{task_state="Running"}'] == 0


def test_pause_and_resume_under_load(lab, cdc, writing):
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    with writing(t) as w:
        for _ in range(3):
            w.wait_batches(5)
            cdc.api("pause", task_id=task)
            assert cdc.task(task)["state"] == "Paused"
            w.wait_batches(5)
            cdc.api("resume", task_id=task)
    lab.equal(cdc, task, [t])


def test_paused_task_stays_paused_over_a_restart(lab, cdc):
    a, b = lab.table("a", loaded=False), lab.table("b", loaded=False)
    paused, running = lab.create(cdc, [a]), lab.create(cdc, [b])
    cdc.api("pause", task_id=paused)
    cdc.restart()
    assert cdc.task(paused)["state"] == "Paused"
    assert cdc.task(running)["state"] == "Running"
    for t in (a, b):
        t.show()
        t.put(5)
    lab.equal(cdc, running, [b])
    assert cdc.task(paused)["state"] == "Paused"
    cdc.api("resume", task_id=paused)
    lab.equal(cdc, paused, [a, b])


def test_two_tasks_on_one_target(lab, cdc):
    """A pause or delete of one must not touch the other."""
    a, b = lab.table("a", loaded=False), lab.table("b", loaded=False)
    one, two = lab.create(cdc, [a]), lab.create(cdc, [b])
    for t in (a, b):
        t.show()
        t.put(10)
    lab.equal(cdc, one, [a])
    lab.equal(cdc, two, [b])
    cdc.api("pause", task_id=one)
    a.put(5)
    b.put(5)
    cdc.wait_caught_up(two)
    cdc.api("resume", task_id=one)
    lab.equal(cdc, one, [a, b])
    cdc.api("delete", task_id=one)
    b.put(5)
    cdc.wait_caught_up(two)
    lab.wait_on_target("rows of b", lambda: lab.target.has(b.name))


def test_keep_queryable(lab, cdc):
    """Without ticks a strong read of a standby waits for ever; with keep_queryable they go on in a pause."""
    task = lab.create(cdc, ["*"], keep_queryable=True)
    t = lab.table("a")
    t.put(10)
    lab.equal(cdc, task, [t])
    cdc.api("pause", task_id=task)
    t.put(10)
    for _ in range(3):
        assert lab.target.count(t.name) == 10
        time.sleep(1)
    cdc.api("resume", task_id=task)
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name) == 20


def test_start_at_given_positions(lab, cdc):
    """positions of a collection and of the replicate channel: what another task's position said, taken over."""
    t = lab.table("a", loaded=False)
    t.put(10)
    first = lab.create(cdc, [{"name": t.name, "use_start_position": True}], task_id="first")
    t.index()
    cdc.wait_caught_up(first)
    lab.wait_on_target("the index", lambda: lab.target.indexes(t.name))
    rows = cdc.api("position", task_id=first)["positions"]
    cdc.api("delete", task_id=first)
    later = t.put(7)
    t.collection.load()
    shards = {p["channel_name"]: p["msg_id"] for p in rows if p["collection_id"] != -10}
    rpc = [p["msg_id"] for p in rows if p["collection_id"] == -10]
    request = milvus_pb2.DescribeCollectionRequest(collection_name=t.name)
    info = lab.source.handler()._stub.DescribeCollection(request)
    positions = {v: shards[p] for v, p in zip(info.virtual_channel_names, info.physical_channel_names)}
    task = lab.create(cdc, [{"name": t.name, "positions": positions}], rpc_channel_info={"position": rpc[0]})
    cdc.wait_caught_up(task)
    lab.wait_on_target("loaded", lambda: lab.target.loaded(t.name) == "Loaded")
    wait_equal(lab.source, lab.target, [t.name])
    assert lab.target.count(t.name) == 10 + len(later)


def test_disable_auto_start(lab, cdc):
    task = lab.create(cdc, [lab.name("x")], disable_auto_start=True)
    assert cdc.task(task)["state"] == "Running"
    cdc.restart()
    assert cdc.task(task)["state"] == "Paused" and "auto start" in cdc.task(task)["reason"]
    cdc.api("resume", task_id=task)
    assert cdc.task(task)["state"] == "Running"


def test_ignore_partition(lab, cdc):
    """Partitions are then made and dropped by somebody else."""
    t = lab.table("a")
    task = cdc.api("create", collection_infos=[{"name": t.name}], milvus_connect_param={
        "uri": lab.pair.target.uri, "ignore_partition": True})["task_id"]
    t.collection.create_partition("p1")
    t.put(5)
    cdc.wait_caught_up(task)
    assert lab.target.partitions(t.name) == ["_default"]
    t.put(5, "p1")
    wait_for("a reason", lambda: "ignore_partition" in cdc.task(task).get("reason", ""), 30)


AWAY = {
    "nothing": (lambda lab: None, lambda lab: None),
    "target": (lambda lab: lab.pair.target.kill(), lambda lab: lab.pair.revive()),
    "target-hangs": (lambda lab: lab.pair.target.proc.send_signal(signal.SIGSTOP),
                     lambda lab: lab.pair.target.proc.send_signal(signal.SIGCONT)),
    "etcd": (lambda lab: lab.pair.etcd.proc.send_signal(signal.SIGSTOP),
             lambda lab: lab.pair.etcd.proc.send_signal(signal.SIGCONT)),
}


@pytest.mark.parametrize("who", AWAY)
def test_stop_while_away(lab, cdc, who):
    """SIGTERM is obeyed in time whatever state the others are in."""
    away, back = AWAY[who]
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    t.put(20)
    lab.equal(cdc, task, [t])
    lost = cdc.log.read_text(errors="replace").count("level=warn")
    away(lab)
    try:
        if who == "target":
            wait_for("trouble", lambda: cdc.log.read_text(errors="replace").count("level=warn") > lost, 30)
        if who != "etcd":
            t.put(20)
        started = time.monotonic()
        assert cdc.stop() == 0, cdc.tail()
        assert time.monotonic() - started < 5
        if who != "nothing":  # and at once after a start, with nobody there
            cdc.start(ready="/healthz")
            started = time.monotonic()
            assert cdc.stop() == 0, cdc.tail()
            assert time.monotonic() - started < 5
    finally:
        back(lab)
    cdc.start()
    lab.equal(cdc, task, [t], timeout=180)


def test_stop_while_the_registry_is_locked(lab, cdc):
    """Somebody else holds the file's lock: what cannot be stored is told, and the stop is in time all the same."""
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    t.put(20)
    lab.equal(cdc, task, [t])
    other = sqlite3.connect(cdc.config["registry"]["path"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    t.put(20)
    wait_for("readyz tells", lambda: " 503 " in raw(cdc, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
             30)
    started = time.monotonic()
    code = cdc.stop()
    assert time.monotonic() - started < 5
    assert code == 0, cdc.tail()
    other.execute("ROLLBACK")
    other.close()
    cdc.start()
    lab.equal(cdc, task, [t])
    assert lab.target.count(t.name) == 40


def test_stop_under_load(lab, cdc, writing):
    task = lab.create(cdc, ["*"])
    t = lab.table("a")
    with writing(t, rows=200, pause=0) as w:
        for _ in range(3):
            w.wait_batches(5)
            started = time.monotonic()
            assert cdc.stop() == 0, cdc.tail()
            assert time.monotonic() - started < 5
            cdc.start()
    lab.equal(cdc, task, [t])


def test_command_line(tmp_path):
    program = find_program()

    def run(*args):
        return subprocess.run([program, *args], capture_output=True, text=True, timeout=20)
    assert run("--version").returncode == 0 and "milvus-cdc" in run("--version").stdout
    assert "--config" in run("--help").stdout
    bad = tmp_path / "cdc.yaml"
    bad.write_text("address: 127.0.0.1:8444\nmaxTaskNum: many\n")
    r = run("--check-config", "--config", str(bad))
    assert r.returncode != 0 and "maxTaskNum" in r.stderr + r.stdout
    missing = run("--config", str(tmp_path / "nothing.yaml"))
    assert missing.returncode != 0 and "nothing.yaml" in missing.stderr
