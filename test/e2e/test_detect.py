"""A configuration that names no message queue: the daemon finds the one on this machine, or says that it cannot.

In a network namespace of its own, since the usual ports are looked at.
"""
import os
import subprocess

import pytest
import yaml
from brokers_nats import find_nats_server
from conftest import FOLDER
from servers import find_program, wait_for


@pytest.fixture
def namespace():
    name = f"cdc-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    running = []

    def run(*args, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log", "ab") as log:
            p = subprocess.Popen(["ip", "netns", "exec", name, *map(str, args)], cwd=folder, stdout=log, stderr=log)
        running.append(p)
        return p
    yield run
    for p in running:
        p.kill()
        p.wait()
    subprocess.run(["ip", "netns", "del", name], check=True)


def start_cdc(namespace, name):
    folder = FOLDER / "detect" / name
    folder.mkdir(parents=True, exist_ok=True)
    config = {"address": "127.0.0.1:8444", "registry": {"type": "sqlite", "path": str(folder / "cdc.db")},
              "sourceConfig": {"etcd": {"address": ["127.0.0.1:2379"]}, "replicateChan": "by-dev-replicate-msg"}}
    (folder / "cdc.yaml").write_text(yaml.safe_dump(config))
    return namespace(find_program(), "--config", folder / "cdc.yaml", folder=folder), folder / "log"


def test_nothing_to_find_is_told_at_once(namespace):
    cdc, log = start_cdc(namespace, "nothing")
    assert cdc.wait(20) == 1
    text = log.read_text()
    assert "none was found" in text
    for key in ("rocksmq.path", "kafka.address", "pulsar.address", "natsmq.address"):
        assert f"sourceConfig.{key}" in text


def test_nats_is_found(namespace):
    folder = FOLDER / "detect" / "nats"
    namespace(find_nats_server(), "-js", "-sd", folder / "store", "-a", "127.0.0.1", "-p", "4222", folder=folder)
    wait_for("NATS", lambda: "Server is ready" in (folder / "log").read_text(), 20)
    cdc, log = start_cdc(namespace, "found")
    wait_for("the daemon has started", lambda: "msg=started" in log.read_text(), 20)
    assert "at=127.0.0.1:4222" in log.read_text()
    cdc.terminate()
    assert cdc.wait(10) == 0
