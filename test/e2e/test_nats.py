"""The NATS reader (wal/nats) on real servers: runs test_nats_live with everything it asks for."""
import json
import os
import shutil
import socket
import ssl
import subprocess

import pytest

from brokers_nats import Nats, find_nats_server, make_certificate
from conftest import FOLDER
from servers import ROOT, free_port

TLS_TOPIC = "by-dev-tls-dml_0"


def fill_over_tls(server, cert):
    """Messages 1 to 40, every fourth of 3 MiB; waits for each."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        assert raw.recv(4096).startswith(b"INFO ")
        with ssl.create_default_context(cafile=cert).wrap_socket(raw, server_hostname="127.0.0.1") as s:
            answers = s.makefile("rb")

            def ask(subject, payload):
                s.sendall(b"PUB %s _INBOX.t.r %d\r\n%s\r\n" % (subject.encode(), len(payload), payload))
                while not (line := answers.readline()).startswith(b"MSG "):
                    assert line and not line.startswith(b"-ERR"), line
                reply = json.loads(answers.read(int(line.split()[-1]) + 2))
                assert "error" not in reply, reply

            s.sendall(b'CONNECT {"verbose":false}\r\nSUB _INBOX.t.> 1\r\n')
            ask(f"$JS.API.STREAM.CREATE.{TLS_TOPIC}", json.dumps({"name": TLS_TOPIC, "subjects": [TLS_TOPIC]}).encode())
            for i in range(1, 41):
                ask(TLS_TOPIC, f"{TLS_TOPIC}#{i}#".encode() + b"x" * (3 << 20 if i % 4 == 0 else 100))


@pytest.fixture(scope="session")
def nats():
    """The environment of test_nats_live."""
    folder = FOLDER / "nats"
    shutil.rmtree(folder, ignore_errors=True)
    cert, key = make_certificate(folder / "tls")
    plain = Nats("js", folder / "js")
    user = Nats("user", folder / "user", user="cdc", password="s3 cret")
    token = Nats("token", folder / "token", token="t0ken")
    tls = Nats("tls", folder / "tls", tls=(cert, key))
    without = Nats("without", folder / "without", jetstream=False)
    servers = [plain, user, token, tls, without]
    try:
        for s in servers:
            s.start()
        fill_over_tls(tls, cert)
        yield {"NATS": plain.address, "NATS_USER": user.address, "NATS_TOKEN": token.address,
               "NATS_TLS": tls.address, "NATS_CA": str(cert), "NATS_TLS_TOPIC": TLS_TOPIC,
               "NATS_PLAIN": without.address, "NATS_SERVER": find_nats_server(), "NATS_SPARE": str(free_port()),
               "NATS_DIR": str(folder / "victim")}
    finally:
        for s in servers:
            s.stop()


def test_nats_live(nats):
    program = ROOT / "build" / "asan" / "test" / "test_nats_live"
    env = dict(os.environ, MILVUS_CDC_REQUIRE_LIVE="1", **nats)
    r = subprocess.run([program], env=env, capture_output=True, text=True, timeout=300)
    print(r.stdout[-4000:], r.stderr[-4000:])
    assert r.returncode == 0
