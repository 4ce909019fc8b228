"""The registry in PostgreSQL, and the registry from the command line: on a real server, without a Milvus."""
import json
import os
import selectors
import shutil
import stat
import subprocess
import urllib.error
import urllib.request

import pytest
import yaml

from servers import ROOT, Postgres, find_program, wait_for


def run_with_control(program, env, server, folder):
    """Runs a C test that may start, stop, kill, pause and continue the server by $PG_CTL. Returns (code, output)."""
    commands, replies, ctl = folder / "commands", folder / "replies", folder / "ctl"
    for fifo in (commands, replies):
        os.mkfifo(fifo)
    ctl.write_text(f'#!/bin/sh\necho "$1" > {commands}\nread answer < {replies}\n[ "$answer" = ok ]\n')
    ctl.chmod(0o755)
    cmd = os.open(commands, os.O_RDWR | os.O_NONBLOCK)
    rep = os.open(replies, os.O_RDWR)
    with open(folder / "output", "w+b") as out:
        p = subprocess.Popen([program], env=dict(env, PG_CTL=str(ctl)), stdout=out, stderr=out)
        try:
            with selectors.DefaultSelector() as sel:
                sel.register(cmd, selectors.EVENT_READ)
                while p.poll() is None:
                    if sel.select(0.1):
                        getattr(server, os.read(cmd, 100).decode().strip())()
                        os.write(rep, b"ok\n")
        finally:
            p.kill()
            p.wait()
            os.close(cmd)
            os.close(rep)
        out.seek(0)
        return p.returncode, out.read().decode(errors="replace")


def run_live(server, folder):
    env = dict(os.environ, MILVUS_CDC_REQUIRE_LIVE="1", PG_URI=server.database("live"))
    code, text = run_with_control(ROOT / "build" / "asan" / "test" / "test_postgresql_live", env, server, folder)
    print(text[-6000:])
    assert code == 0 and "SKIPPED" not in text


def test_live(postgres, tmp_path):
    run_live(postgres, tmp_path)


@pytest.mark.parametrize("old_postgres", ["13"], indirect=True)
def test_live_on_the_oldest_version(old_postgres, tmp_path):
    run_live(old_postgres, tmp_path)


class Registry:
    """One configuration, for milvus-cdc registry."""

    def __init__(self, folder, name, **registry):
        self.path = folder / f"{name}.yaml"
        self.path.write_text(yaml.safe_dump({"registry": registry, "sourceConfig": {"replicateChan": "c"}}))

    def run(self, *args, code=0):
        r = subprocess.run([find_program(), "registry", args[0], "--config", self.path, *args[1:]], capture_output=True,
                           text=True, timeout=60)
        assert r.returncode == code, r.stdout + r.stderr
        return r.stdout + r.stderr


EXPORT = {
    "milvus_cdc_registry": 2,
    "tasks": [
        {"id": "a", "spec": '{"request":{"milvus_connect_param":{"token":"sesame-open"}},"exclude":[]}',
         "target": "h:1", "state": 2, "keep": True, "reason": "because \"x\" ä", "created_ms": 1, "updated_ms": 2,
         "checkpoints": [{"source": "s", "target": "d", "target_position": "cG9z",
                          "numbers": [str(2**64 - 1), "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12",
                                      str(2**63), "14"]},
                         {"source": "s", "target": "e", "target_position": None, "numbers": ["0"] * 14}],
         "collections": [{"id": -5, "record": "{\"n\":1}"}]},
        {"id": "b", "spec": '{"request":{}}', "target": "h:2", "state": 1, "keep": False, "reason": "", "created_ms": 3,
         "updated_ms": 4, "checkpoints": [], "collections": []},
    ],
    "targets": [{"target": "gone:1", "channel": None, "number": "7"},
                {"target": "h:1", "channel": "d", "number": str(2**64 - 2)}],
}


def test_file_of_the_first_format(tmp_path):
    """It had no spans."""
    old = json.loads(json.dumps(EXPORT))
    old["milvus_cdc_registry"] = 1
    for c in old["tasks"][0]["checkpoints"]:
        c["numbers"].pop()
    file = tmp_path / "in.json"
    file.write_text(json.dumps(old))
    registry = Registry(tmp_path, "r", type="sqlite", path=str(tmp_path / "r.db"))
    assert "2 tasks read" in registry.run("import", file)
    out = tmp_path / "out.json"
    registry.run("export", out)
    assert [c["numbers"] for c in json.loads(out.read_text())["tasks"][0]["checkpoints"]] == [
        c["numbers"] + ["0"] for c in old["tasks"][0]["checkpoints"]]
    file.write_text(json.dumps(dict(old, milvus_cdc_registry=3)))
    assert "is not 1 or 2" in registry.run("import", file, code=1)


def comparable(root, unsealed=True):
    """Without what a move may change: times of change, and epochs that went on."""
    for t in root["tasks"]:
        del t["updated_ms"]
        if unsealed:
            t["spec"] = json.loads(t["spec"])
    root["epochs"] = {f["target"]: int(f["number"]) for f in root["targets"] if f["channel"] is None}
    root["targets"] = [f for f in root["targets"] if f["channel"] is not None]
    return root


def exported(registry, tmp_path, **kw):
    out = tmp_path / "out.json"
    registry.run("export", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    return comparable(json.loads(out.read_text()), **kw)


def test_move_from_sqlite(postgres, tmp_path):
    file = tmp_path / "in.json"
    file.write_text(json.dumps(EXPORT))
    key = tmp_path / "key"
    old = Registry(tmp_path, "old", type="sqlite", path=str(tmp_path / "r.db"))
    subprocess.run([find_program(), "registry", "genkey", key], check=True)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    new = Registry(tmp_path, "new", type="postgresql", uri=postgres.database("moved"), keyFile=str(key))
    assert "2 tasks read" in old.run("import", file)
    first = exported(old, tmp_path)
    want = comparable(json.loads(json.dumps(EXPORT)))
    assert first["epochs"] == {"gone:1": 7, "h:1": 1, "h:2": 1}
    assert dict(first, epochs=0) == dict(want, epochs=0)

    file = tmp_path / "moved.json"
    assert "in the clear" in old.run("export", file)
    assert "2 tasks read" in new.run("import", file)
    assert "sesame" not in postgres.sql("SELECT spec_json FROM milvus_cdc.task WHERE id = 'a'", "moved")
    assert postgres.sql("SELECT count(*) FROM milvus_cdc.lease WHERE owner <> ''", "moved") == "0"
    sealed = exported(new, tmp_path, unsealed=False)
    assert all(t["spec"].startswith("sealed:1:") for t in sealed["tasks"])
    assert sealed["epochs"] == {"gone:1": 7, "h:1": 2, "h:2": 2}

    back = Registry(tmp_path, "back", type="sqlite", path=str(tmp_path / "back.db"), keyFile=str(key))
    file = tmp_path / "back.json"
    new.run("export", file)
    assert "has 2 tasks already" in new.run("import", file, code=1)
    assert "0 tasks read, 2 were there" in new.run("import", "--merge", file)
    back.run("import", file)
    plain = Registry(tmp_path, "plain", type="sqlite", path=str(tmp_path / "plain.db"))
    assert "keyFile" in plain.run("import", file, code=1)
    no_key = Registry(tmp_path, "nokey", type="sqlite", path=str(tmp_path / "back.db"))
    assert "keyFile" in no_key.run("migrate", code=1)
    assert b"sesame" not in (tmp_path / "back.db").read_bytes()


def test_migrate_seals(postgres, tmp_path):
    file = tmp_path / "in.json"
    file.write_text(json.dumps(EXPORT))
    uri = postgres.database("sealed")
    open_ = Registry(tmp_path, "open", type="postgresql", uri=uri)
    open_.run("migrate")
    open_.run("import", file)
    assert "sesame" in postgres.sql("SELECT spec_json FROM milvus_cdc.task WHERE id = 'a'", "sealed")
    key = tmp_path / "key"
    subprocess.run([find_program(), "registry", "genkey", key], check=True)
    closed = Registry(tmp_path, "closed", type="postgresql", uri=uri, keyFile=str(key))
    assert "secrets sealed" in closed.run("migrate")
    assert "sesame" not in postgres.sql("SELECT spec_json FROM milvus_cdc.task WHERE id = 'a'", "sealed")
    assert "set registry.keyFile" in open_.run("migrate", code=1)
    key.chmod(0o644)
    assert "chmod 600" in closed.run("migrate", code=1)
    key.unlink()
    subprocess.run([find_program(), "registry", "genkey", key], check=True)
    assert "another key" in closed.run("migrate", code=1)
    r = subprocess.run([find_program(), "registry", "genkey", key], capture_output=True, text=True)
    assert r.returncode == 1 and "exists" in r.stderr


def test_wrong_settings_are_told(postgres, tmp_path):
    uri = postgres.database("wrong").replace("wrong@", "wrong:sesame@")
    text = Registry(tmp_path, "db", type="postgresql", uri=uri + "-none").run("migrate", code=1)
    assert "wrong-none" in text and "sesame" not in text
    text = Registry(tmp_path, "tls", type="postgresql", uri=uri + "?sslmode=require").run("migrate", code=1)
    assert "SSL" in text and "sesame" not in text
    postgres.sql("CREATE ROLE nobody LOGIN")
    text = Registry(tmp_path, "role", type="postgresql", uri=uri.replace("wrong:", "nobody:")).run("migrate", code=1)
    assert "permission denied" in text


def test_hosts_are_tried_in_turn(postgres, tmp_path):
    uri = postgres.database("hosts").replace("@", "@no-such-host.invalid:5,127.0.0.9:5,localhost:").replace(
        ":127.0.0.1:", ":")
    assert "up to date" in Registry(tmp_path, "hosts", type="postgresql", uri=uri).run("migrate")


@pytest.mark.parametrize("args", [[], ["what"], ["export"], ["migrate", "x"], ["genkey"], ["import", "a", "b"]])
def test_arguments(args):
    r = subprocess.run([find_program(), "registry", *args], capture_output=True, text=True)
    assert r.returncode == 2 and "usage" in r.stderr


def test_daemon_on_postgresql(lab, postgres, writing):
    """Checkpoints wait while PostgreSQL is away, the API says why, and all goes on by itself."""
    cdc = lab.cdc(registry={"type": "postgresql", "uri": postgres.database("daemon")})
    task = lab.create(cdc, ["*"])
    table = lab.table("a")
    with writing(table) as w:
        w.wait_batches(5)
        for away, back in ((postgres.kill, postgres.start), (postgres.pause, postgres.cont)):
            away()
            error = wait_for("the registry is away", lambda: trouble(cdc), 30)
            assert f"127.0.0.1:{postgres.port}" in error
            w.wait_batches(5)
            back()
            wait_for("the registry is back", lambda: trouble(cdc) is None, 30)
            w.wait_batches(5)
        cdc.kill()
        cdc.start()
        w.wait_batches(5)
    lab.equal(cdc, task, [table], timeout=240)
    assert cdc.task(task)["state"] == "Running"


def trouble(cdc):
    """What /readyz says while it is not ready, or None."""
    try:
        with urllib.request.urlopen(cdc.url + "/readyz", timeout=5):
            return None
    except urllib.error.HTTPError as e:
        return e.read().decode()


@pytest.fixture
def closed_server(tmp_path):
    """A server of its own that wants TLS and a password."""
    server = Postgres(tmp_path / "server")
    server.options = ["-c", "ssl=on", "-c", f"ssl_cert_file={server.data}/cert", "-c", f"ssl_key_file={server.data}/key",
                      "-c", f"hba_file={server.data}/hba"]
    for name in ("cert", "other"):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout",
                        tmp_path / "key", "-out", tmp_path / name], check=True, capture_output=True)
        if name == "cert":
            shutil.copy(tmp_path / "key", server.data / "key")
    shutil.copy(tmp_path / "cert", server.data / "cert")
    (server.data / "hba").write_text("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
    for name in ("cert", "key", "hba"):
        (server.data / name).chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(server.data / name, "postgres", "postgres")
    server.start().database("closed")
    server.sql("ALTER ROLE closed PASSWORD 'sesame'")
    yield server
    server.stop()


def test_tls_and_password(closed_server, tmp_path):
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"localhost:{closed_server.port}:closed:closed:sesame\n")
    passfile.chmod(0o600)
    parts = dict(type="postgresql", host="localhost", port=str(closed_server.port), user="closed", database="closed",
                 sslmode="verify-full", sslrootcert=str(tmp_path / "cert"), passfile=str(passfile))
    assert "up to date" in Registry(tmp_path, "good", **parts).run("migrate")
    text = Registry(tmp_path, "ca", **dict(parts, sslrootcert=str(tmp_path / "other"))).run("migrate", code=1)
    assert "certificate verify failed" in text
    text = Registry(tmp_path, "name", **dict(parts, host="127.0.0.1", password="sesame")).run("migrate", code=1)
    assert "does not match host name" in text and "sesame" not in text
    text = Registry(tmp_path, "password", **dict(parts, password="open-sesame")).run("migrate", code=1)
    assert "password authentication failed" in text and "open-sesame" not in text
    text = Registry(tmp_path, "plain", **dict(parts, sslmode="disable")).run("migrate", code=1)
    assert "no encryption" in text
