"""The probe, the control endpoint with TLS and tokens, the service manager's protocol, SIGHUP."""
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
import types

import pytest
from conftest import FOLDER, close_cdc
from servers import ROOT, Cdc, find_program, free_port, remove_tree, wait_for

OK, WARNING, CRITICAL, UNKNOWN = range(4)


def run(*args, timeout=30):
    """(exit code, standard output)"""
    p = subprocess.run([str(a) for a in (find_program(), *args)], capture_output=True, text=True, timeout=timeout)
    assert "Sanitizer" not in p.stderr and "runtime error" not in p.stderr, p.stderr
    return p.returncode, p.stdout


def probe(*args):
    """(exit code, the line)"""
    code, out = run("health", *args)
    assert out.count("\n") == 1 and out.endswith("\n"), f"not one line: {out!r}"
    assert out.split(":")[0] == ("OK", "WARNING", "CRITICAL", "UNKNOWN")[code], (code, out)
    return code, out


def curl(*args):
    """(HTTP status, or 0 without an answer; the body)"""
    p = subprocess.run(["curl", "-s", "--max-time", "10", "-w", "\n%{http_code}", *map(str, args)], capture_output=True,
                       text=True, timeout=30)
    body, status = p.stdout.rsplit("\n", 1)
    return int(status), body


@pytest.fixture
def bare(request):
    """Makes daemons that need no Milvus: the source is not there, and no task asks for it."""
    folder = FOLDER / "tests" / re.sub(r"\W+", "_", request.node.name)
    remove_tree(folder)  # of a former run
    folder.mkdir(parents=True)
    source = types.SimpleNamespace(etcd="127.0.0.1:1", root_path="by-dev", queue=None, rocksmq=folder / "none",
                                   replicate_channel="by-dev-replicate-msg")
    made = []

    def make(**settings):
        made.append(Cdc(folder / f"cdc{len(made)}", source, **settings))
        return made[-1]
    make.folder = folder
    yield make
    problems = [p for c in made for p in close_cdc(c)]
    assert not problems, "\n".join(problems)


def hup(cdc, **settings):
    """Changes the file, and waits until the daemon has read it."""
    cdc.config.update(settings)
    cdc.config_path.write_text(json.dumps(cdc.config))  # JSON is YAML
    seen = len(re.findall("msg=reloaded|not reloaded", cdc.log.read_text()))
    os.kill(cdc.pid, signal.SIGHUP)
    wait_for("the reload", lambda: len(re.findall("msg=reloaded|not reloaded", cdc.log.read_text())) > seen, 10)


def stop(cdc):
    cdc.ended_on_purpose = True
    assert cdc.stop() == 0


def certificate(folder, name, issuer=None, names="IP:127.0.0.1"):
    """Files of a certificate for the names and of its key, of its own or of the issuer's hand."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    args = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
            f"/CN={name}", "-keyout", key, "-out", cert, "-addext", f"subjectAltName={names}"]
    if issuer:
        args += ["-CA", issuer[0], "-CAkey", issuer[1], "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([str(a) for a in args], check=True, capture_output=True)
    return cert, key


def new_token(folder, name):
    """(file, entry for api.tokens)"""
    code, out = run("token", name)
    assert code == 0
    token, digest = re.search(r"^token: (\w{64})$", out, re.M)[1], re.search(r"sha256: (\w{64})\}", out)[1]
    path = folder / f"{name}.token"
    path.write_text(token + "\n")
    return path, {"name": name, "sha256": digest}


# ---- the probe


def test_probe_of_a_daemon_without_tasks(bare):
    cdc = bare().start()
    assert probe("--url", cdc.url)[0] == OK
    assert probe("--config", cdc.config_path, "--max-lag", "500ms")[0] == OK
    code, line = probe("--url", cdc.url, "--task", "no such & task")
    assert code == UNKNOWN and "no such & task" in line
    assert probe("--url", cdc.url, "--max-lag", "soon")[0] == UNKNOWN
    status, body = curl(cdc.url + "/health")
    assert status == 200 and json.loads(body)["status"] == "ok" and json.loads(body)["registry"] == {"reachable": True}
    assert curl(cdc.url + "/health?max_lag=x")[0] == 400
    assert curl(cdc.url + "/health?task=x")[0] == 404


def test_probe_when_nobody_or_somebody_else_answers(bare):
    code, line = probe("--url", f"http://127.0.0.1:{free_port()}")
    assert code == CRITICAL and "does not answer" in line and "refused" in line
    for args in (["--url", "127.0.0.1:1"], ["--timeout", "never"], ["--cert", "x"], ["--config", "/nowhere"], ["--what"], ["x"]):
        assert probe(*args)[0] == UNKNOWN, args
    with socket.create_server(("127.0.0.1", 0)) as s:
        answers = [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
                   b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"code\":0", b"HTTP/1.1 200 OK\r\n\r\n<html>",
                   b'HTTP/1.1 200 OK\r\n\r\n{"code":0,"text":"OK: two\\nlines"}', b'HTTP/1.1 200 OK\r\n\r\n{"code":7,"text":"OK"}']
        for answer in answers:
            p = subprocess.Popen([find_program(), "health", "--url", f"http://127.0.0.1:{s.getsockname()[1]}"],
                                 stdout=subprocess.PIPE, text=True)
            peer, _ = s.accept()
            peer.recv(4096)
            peer.sendall(answer)
            peer.close()
            out, _ = p.communicate(timeout=20)
            assert p.returncode == UNKNOWN and out.count("\n") == 1, (answer, out)


def test_probe_of_a_stopped_process_is_bounded_in_time(bare):
    cdc = bare().start()
    os.kill(cdc.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        code, line = probe("--url", cdc.url, "--timeout", "1s")
        assert code == CRITICAL and "no answer within 1000 ms" in line
        assert time.monotonic() - started < 4
    finally:
        os.kill(cdc.pid, signal.SIGCONT)
    wait_for("it answers again", lambda: probe("--url", cdc.url)[0] == OK, 10)


def task_health(cdc):
    return json.loads(curl(cdc.url + "/health")[1])["tasks"][0]


def probe_until(want, text, *args, timeout=60):
    def check():
        got = probe(*args)
        assert got[0] == want and text in got[1], got
        return got[1]
    return wait_for(f"the probe says {want} {text}", check, timeout, 0.5)


def test_probe_of_a_task(lab):
    cdc, table = lab.cdc(), lab.table("t")
    task = lab.create(cdc, [table])
    table.put(100)
    cdc.wait_caught_up(task)
    line = probe_until(OK, "1 tasks, 1 running", "--url", cdc.url)
    assert re.search(r"\| lag=\d+\.\d{3}s;;30\.000;0 running=1 paused=0$", line.strip())
    assert task_health(cdc)["owner"] and not task_health(cdc)["stalled"]

    os.killpg(lab.pair.target.pid, signal.SIGSTOP)
    try:
        probe_until(CRITICAL, "is above 2.0 s", "--url", cdc.url, "--max-lag", "2s")
        assert "stalled" in probe_until(CRITICAL, "stalled for", "--url", cdc.url)
        assert task_health(cdc)["stalled_ms"] >= 10000
        assert curl(cdc.url + "/health")[0] == 503
    finally:
        os.killpg(lab.pair.target.pid, signal.SIGCONT)
    probe_until(OK, "1 running", "--url", cdc.url)

    os.killpg(lab.pair.source.pid, signal.SIGSTOP)
    try:
        probe_until(WARNING, "the source shows no ticks", "--url", cdc.url, "--max-lag", "5s")
        assert curl(cdc.url + "/health?max_lag=5s")[0] == 200
    finally:
        os.killpg(lab.pair.source.pid, signal.SIGCONT)
    probe_until(OK, "1 running", "--url", cdc.url)

    cdc.api("pause", task_id=task)
    assert probe("--url", cdc.url)[0] == OK
    assert probe("--url", cdc.url, "--task", task)[0] == WARNING
    assert cdc.stop() == 0
    assert probe("--url", cdc.url)[0] == CRITICAL
    with sqlite3.connect(cdc.dir / "cdc.db") as db:  # what a loss leaves behind, without losing a queue
        db.execute("UPDATE task SET reason = 'LOST: fail to read the message: it is gone' WHERE id = ?", (task,))
    db.close()
    cdc.start()
    code, line = probe("--url", cdc.url)
    assert code == CRITICAL and f"task {task} paused by an error: LOST" in line


# ---- TLS and tokens


def test_tokens(bare):
    token, entry = new_token(bare.folder, "probe")
    cdc = bare(api={"tokens": [entry]}).start()
    secret = token.read_text().strip()
    for path in ("/cdc", "/cdc/metrics", "/cdc/metrics_default", "/health", "/nothing"):
        for extra in ([], ["-H", "Authorization: Bearer wrong"], ["-H", f"Authorization: Basic {secret}"],
                      ["-H", f"Authorization: Bearer {secret}x"]):
            status, body = curl("-i", *extra, cdc.url + path)
            assert status == 401 and "WWW-Authenticate: Bearer\n" in body
            assert json.loads(body.split("\n\n")[1])["code"] == 401
    for path in ("/healthz", "/readyz"):
        assert curl(cdc.url + path)[0] == 200
    good = ["-H", f"Authorization: bearer {secret}"]
    assert curl(*good, cdc.url + "/cdc/metrics")[0] == 200
    assert json.loads(curl(*good, "-d", '{"request_type":"list"}', cdc.url + "/cdc")[1])["code"] == 200
    code, line = probe("--url", cdc.url)
    assert code == UNKNOWN and "--token-file" in line
    assert probe("--url", cdc.url, "--token-file", token)[0] == OK
    assert probe("--url", cdc.url, "--token-file", "/nowhere")[0] == UNKNOWN
    log = cdc.log.read_text()
    assert len(re.findall('token refused" peer=127.0.0.1:', log)) == 1  # of 21 within ten seconds
    assert secret not in log and "wrong" not in log.replace("with a wrong token", "")


def test_tls_with_client_certificates(bare):
    ca = certificate(bare.folder, "ca")
    cert, key = certificate(bare.folder, "server", ca)
    client = certificate(bare.folder, "client", ca)
    other = certificate(bare.folder, "stranger")
    token, entry = new_token(bare.folder, "ops")
    tls = {"cert": str(cert), "key": str(key)}
    cdc = bare(api={"tls": tls, "tokens": [entry]}).start(ready=None)
    url = f"https://127.0.0.1:{cdc.port}"
    trust, auth = ["--cacert", ca[0]], ["-H", f"Authorization: Bearer {token.read_text().strip()}"]
    wait_for("the API answers", lambda: curl(*trust, url + "/readyz")[0] == 200, 30)
    assert curl(*trust, *auth, url + "/health")[0] == 200
    big = json.dumps({"request_type": "list", "request_data": {"x": "y" * 900000}})
    (bare.folder / "big.json").write_text(big)
    assert json.loads(curl(*trust, *auth, "-d", f"@{bare.folder / 'big.json'}", url + "/cdc")[1])["code"] == 200
    assert curl(*trust, "--tls-max", "1.2", url + "/healthz")[0] == 200
    assert curl(*trust, "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0", url + "/healthz")[0] == 0
    assert curl(f"http://127.0.0.1:{cdc.port}/healthz")[0] == 0
    ask = ["--config", cdc.config_path, "--token-file", token]
    assert probe(*ask, "--ca", ca[0])[0] == OK
    assert probe(*ask, "--insecure")[0] == OK
    code, line = probe(*ask)
    assert code == CRITICAL and "certificate refused" in line
    assert probe(*ask, "--ca", "/nowhere")[0] == UNKNOWN

    hup(cdc, api={"tls": {**tls, "clientCA": str(ca[0])}, "tokens": [entry]})
    assert curl(*trust, url + "/healthz")[0] == 0
    assert curl(*trust, "--cert", other[0], "--key", other[1], url + "/healthz")[0] == 0
    assert curl(*trust, "--cert", client[0], "--key", client[1], *auth, url + "/health")[0] == 200
    assert probe(*ask, "--ca", ca[0])[0] == CRITICAL
    assert probe(*ask, "--ca", ca[0], "--cert", client[0], "--key", client[1])[0] == OK


def test_broken_handshakes_disturb_nobody(bare):
    cert, key = certificate(bare.folder, "server")
    cdc = bare(api={"tls": {"cert": str(cert), "key": str(key)}}).start(ready=None)
    url = f"https://127.0.0.1:{cdc.port}/healthz"
    wait_for("the API answers", lambda: curl("--cacert", cert, url)[0] == 200, 30)
    hello = bytes.fromhex("1603010200010001fc0303") + bytes(505)
    socks = []
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n", hello, hello[:7], b"\x16\x03\x01\xff\xff" + bytes(70000), os.urandom(5000)):
        for end in (None, socket.SHUT_WR):
            s = socket.create_connection(("127.0.0.1", cdc.port))
            s.settimeout(10)
            try:
                s.sendall(data)
                if end is not None:
                    s.shutdown(end)
            except OSError:
                pass  # refused already
            socks.append(s)
        assert curl("--cacert", cert, url)[0] == 200
    for s in socks:
        s.close()
    assert curl("--cacert", cert, url)[0] == 200


@pytest.mark.parametrize("address, warned", [("127.0.0.1", False), ("0.0.0.0", True), ("[::]", True), ("[::1]", False)])
def test_an_open_endpoint_is_a_warning(bare, address, warned):
    cdc = bare(address=f"{address}:{free_port()}").start(ready=None)
    wait_for("it listens", lambda: "msg=started" in cdc.log.read_text(), 20)
    log = cdc.log.read_text()
    for key in ("api.tokens", "api.tls"):
        assert (f"key={key}" in log) == warned


def test_wrong_tls_files_are_named(bare):
    cert, key = certificate(bare.folder, "server")
    other = certificate(bare.folder, "other")
    for tls, text in (({"cert": "/nowhere.pem", "key": str(key)}, "api.tls.cert"), ({"cert": str(cert), "key": str(other[1])}, "api.tls.key"),
                      ({"cert": str(cert)}, "api.tls"), ({"cert": str(cert), "key": str(key), "clientCA": str(key)}, "api.tls.clientCA")):
        path = bare.folder / "wrong.yaml"
        path.write_text(json.dumps({**bare().config, "api": {"tls": tls}}))
        p = subprocess.run([find_program(), "--check-config", "--config", path], capture_output=True, text=True, timeout=20)
        assert p.returncode == 1 and text in p.stderr, p.stderr


def test_a_key_with_a_password_is_refused_without_asking_for_it(bare):
    cert, key = certificate(bare.folder, "server")
    locked = bare.folder / "locked.key"
    subprocess.run(["openssl", "pkey", "-aes256", "-passout", "pass:sesame", "-in", key, "-out", locked], check=True)
    path = bare.folder / "locked.yaml"
    path.write_text(json.dumps({**bare().config, "api": {"tls": {"cert": str(cert), "key": str(locked)}}}))
    command = f"{find_program()} --check-config --config {path}"  # on a terminal, where OpenSSL would ask
    p = subprocess.run(["script", "-qec", command, "/dev/null"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                       timeout=20)
    assert p.returncode == 1 and "api.tls.key" in p.stdout and "pass phrase" not in p.stdout, p.stdout


# ---- SIGHUP


def test_reload(bare):
    cert, key = certificate(bare.folder, "one")
    first, old = new_token(bare.folder, "first")
    second, new = new_token(bare.folder, "second")
    tls = {"cert": str(cert), "key": str(key)}
    cdc = bare(api={"tls": tls, "tokens": [old]}).start(ready=None)
    ask = ["--config", cdc.config_path, "--ca"]
    probe_until(OK, "", *ask, cert, "--token-file", first, timeout=30)

    hup(cdc, logLevel="debug", api={"tls": tls, "tokens": [new]}, retry={"maxBackOff": 20}, maxTaskNum=7)
    assert probe(*ask, cert, "--token-file", first)[0] == UNKNOWN
    assert probe(*ask, cert, "--token-file", second)[0] == OK
    log = cdc.log.read_text()
    assert re.findall("needs a restart.* key=(.*)", log) == ["retry.maxBackOff"]
    curl("-k", f"http://127.0.0.1:{cdc.port}/")
    wait_for("a debug line", lambda: "level=debug" in cdc.log.read_text(), 10)

    cert2, key2 = certificate(bare.folder, "two")
    cert.write_bytes(cert2.read_bytes())  # renewed in place
    key.write_bytes(key2.read_bytes())
    os.rename(cert2, bare.folder / "renewed.pem")
    hup(cdc)
    assert probe(*ask, bare.folder / "renewed.pem", "--token-file", second)[0] == OK

    key.write_text("no key")
    hup(cdc, api={"tls": tls, "tokens": [old]})
    assert "not reloaded" in cdc.log.read_text()
    assert probe(*ask, bare.folder / "renewed.pem", "--token-file", second)[0] == OK
    assert probe(*ask, bare.folder / "renewed.pem", "--token-file", first)[0] == UNKNOWN
    for path in (first, second):
        assert path.read_text().strip() not in cdc.log.read_text()


# ---- the service manager


@pytest.fixture(params=["path", "abstract"])
def supervisor(request, tmp_path, monkeypatch):
    """A socket as systemd has it; messages() is all that has come."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@cdc-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(name if name[0] == "/" else "\0" + name[1:])
        s.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        seen = []

        def messages():
            while True:
                try:
                    seen.append(s.recv(4096).decode())
                except BlockingIOError:
                    return seen
        yield messages


def test_notify(bare, supervisor):
    def wait_message(text, n=1):
        wait_for(f"{n} times {text}", lambda: sum(m.startswith(text) for m in supervisor()) >= n, 20, 0.02)
    cdc = bare().start()
    wait_message("READY=1")
    wait_message("STATUS=OK: 0 tasks")
    wait_message("WATCHDOG=1", 5)

    hup(cdc)
    wait_message("READY=1", 2)
    reloading = next(i for i, m in enumerate(supervisor()) if m.startswith("RELOADING=1\nMONOTONIC_USEC="))
    assert "READY=1" in supervisor()[reloading:]
    assert abs(int(supervisor()[reloading].split("=")[2]) / 1e6 - time.monotonic()) < 30

    os.kill(cdc.pid, signal.SIGSTOP)  # stands for a loop that is stuck
    wait_for("it has stopped", lambda: " T " in open(f"/proc/{cdc.pid}/stat").read().replace(")", " "), 5)
    before = len(supervisor())
    started = time.monotonic()
    while time.monotonic() - started < 1:
        assert len(supervisor()) == before
    os.kill(cdc.pid, signal.SIGCONT)
    wait_message("WATCHDOG=1", sum(m == "WATCHDOG=1" for m in supervisor()) + 3)
    stop(cdc)
    assert "STOPPING=1" in supervisor()


def test_watchdog_of_another_process_is_not_ours(bare, supervisor, monkeypatch):
    monkeypatch.setenv("WATCHDOG_PID", "1")
    cdc = bare().start()
    wait_for("READY", lambda: "READY=1" in supervisor(), 20)
    stop(cdc)
    assert "STOPPING=1" in supervisor() and "WATCHDOG=1" not in supervisor()


def test_unit_file(tmp_path):
    """As systemd reads it."""
    text = (ROOT / "etc" / "systemd" / "milvus-cdc.service").read_text()
    unit = tmp_path / "milvus-cdc.service"
    unit.write_text(re.sub("ExecStart=\\S+", f"ExecStart={find_program()}", text))
    p = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    assert p.returncode == 0 and not p.stderr.strip(), p.stderr
    p = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20", unit], capture_output=True, text=True,
                       timeout=60)
    assert p.returncode == 0, p.stdout[-500:]
