"""The Debian package and `make install`; test_ansible.py installs, upgrades, removes and purges it on a host."""
import re
import subprocess

import pytest
from servers import ROOT

MANUAL = ROOT / "etc" / "man" / "milvus-cdc.8"


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package():
    return ROOT / run("make", "-s", "-C", ROOT, "deb").split()[-1]


def test_control_fields(package):
    depends = run("dpkg-deb", "--field", package, "Depends")
    for library in ("libc6 (", "libevent-2.1-7", "libssl3", "librocksdb", "librdkafka1", "adduser"):
        assert library in depends
    assert run("dpkg-deb", "--field", package, "Architecture").strip() == run("dpkg", "--print-architecture").strip()
    assert run("dpkg-deb", "--info", package, "conffiles") == "/etc/milvus-cdc/cdc.yaml\n"


def test_files(package):
    lines = [line.split(None, 5) for line in run("dpkg-deb", "--contents", package).splitlines()]
    files = {path: (mode, owner) for mode, owner, _, _, _, path in lines}
    assert files["./etc/milvus-cdc/cdc.yaml"] == ("-rw-r-----", "root/root")  # postinst gives it to the group
    assert files["./usr/libexec/milvus-cdc/check-milvus-cdc"][0] == "-rwxr-xr-x"
    for path in ("./lib/systemd/system/milvus-cdc.service", "./usr/share/man/man8/milvus-cdc.8.gz",
                 "./usr/share/doc/milvus-cdc/examples/keepalived.conf", "./usr/share/doc/milvus-cdc/copyright"):
        assert files[path] == ("-rw-r--r--", "root/root")
    assert {owner for _, owner in files.values()} == {"root/root"}


def test_install_keeps_a_configuration_and_knows_its_paths(tmp_path):
    def install():
        run("make", "-s", "-C", ROOT, "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/cdc", "SYSCONFDIR=/opt/etc")
    install()
    config = tmp_path / "opt/etc/milvus-cdc/cdc.yaml"
    assert "path: /var/lib/milvus-cdc/milvus-cdc.db" in config.read_text()
    unit = (tmp_path / "opt/cdc/lib/systemd/system/milvus-cdc.service").read_text()
    assert "ExecStart=/opt/cdc/bin/milvus-cdc --config /opt/etc/milvus-cdc/cdc.yaml" in unit
    run(tmp_path / "opt/cdc/bin/milvus-cdc", "--check-config", "--config", config)
    config.write_text("mine")
    install()
    assert config.read_text() == "mine"


def test_manual_page():
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "style", MANUAL], capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if "mandoc.db" not in line]  # references are looked up there
    assert not said, said
    text = run("mandoc", "-T", "utf8", MANUAL)
    text = re.sub(r".\x08", "", text)  # bold is a letter, backspace, the letter again
    program = ROOT / "build" / "milvus-cdc"
    usage = run(program, "--help")
    for command in set(re.findall(r"^ +milvus-cdc ([a-z]+)", usage, re.M)):
        usage += run(program, command, "--help")
    assert {o for o in re.findall(r"--[a-z][a-z-]+", usage) if o not in text} == set()
