"""etc/ansible on two real hosts (machine.py: Debian with its own systemd, reached by ssh) and a real PostgreSQL 15 with
passwords: from nothing to a pair with a virtual address, a second run, mistakes, a rolling upgrade."""
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml
from conftest import FOLDER
from machine import Machine, SshKey
from netns import HostCdc, Net, Watch, needs_hosts
from servers import ROOT, Process, ServerError, find_program, free_port, http_get, wait_for

pytestmark = needs_hosts

ANSIBLE = ROOT / "etc" / "ansible"
SECRETS = {"vault_db": "pw'of:the\\db \"7Tq2\"", "vault_admin": "Admin-s3cret-91x", "vault_token": "t0ken-5e55ion-77aa",
           "vault_key": "5ea1" * 16}
UPGRADE = "0.1.0+upgrade1"


class Postgres(Process):
    """PostgreSQL 15 that everyone in the net may reach, with passwords."""

    def __init__(self, folder, address, password):
        super().__init__("postgres", folder)
        self.address, self.port, self.password = address, free_port(), password
        self.data = Path(tempfile.mkdtemp(prefix="cdc-pg-"))
        shutil.chown(self.data, "postgres")

    def start(self):
        bin_ = Path("/usr/lib/postgresql/15/bin")
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        with tempfile.NamedTemporaryFile("w") as password:
            shutil.chown(password.name, "postgres")
            password.write(self.password)
            password.flush()
            done = subprocess.run([*user, bin_ / "initdb", "-D", self.data, "-U", "postgres", "--no-sync", "-A",
                                   "scram-sha-256", f"--pwfile={password.name}"],
                                  text=True, cwd="/", capture_output=True)
        assert done.returncode == 0, done.stderr
        with open(self.data / "pg_hba.conf", "a") as f:
            f.write("host all all samenet scram-sha-256\n")
        self._spawn([*user, bin_ / "postgres", "-D", self.data, "-p", self.port, "-h", self.address, "-k", "",
                     "-c", "fsync=off", "-c", "log_statement=all"], cwd="/")
        self._wait_ready(lambda: self.query("postgres", self.password, "postgres", "SELECT 1") == "1", 30)
        return self

    def query(self, user, password, database, sql):
        done = subprocess.run(["psql", "-XAtw", "-c", sql, f"host={self.address} port={self.port} user={user} "
                               f"dbname={database}"], env=dict(os.environ, PGPASSWORD=password),
                              capture_output=True, text=True)
        if done.returncode:
            raise ServerError(done.stderr)
        return done.stdout.strip()

    def kill(self):
        super().kill()
        shutil.rmtree(self.data, ignore_errors=True)


class Site:
    """The shipped playbook with an inventory of its own."""

    def __init__(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.net, self.runs = folder, Net(), 0
        self.cache = Path(tempfile.mkdtemp(prefix="cdc-ansible-"))  # short, for the sockets of ssh
        key = SshKey(folder)
        self.pg = Postgres(folder, self.net.address, SECRETS["vault_admin"])
        self.machines = [Machine(self.net, n, name, key, folder) for n, name in ((11, "one"), (12, "two"))]
        self.vip = self.net.at(10)
        self.url = f"http://{self.vip}:{HostCdc.PORT}"
        self.packages = {v: build_package(v) for v in ("0.1.0", UPGRADE)}
        self._write_inventory(key)

    def start(self):
        self.pg.start()
        for m in self.machines:
            m.start()
        return self

    def close(self):
        self.net.close()
        self.pg.kill()
        shutil.rmtree(self.cache, ignore_errors=True)

    def registry(self):
        return {"type": "postgresql", "host": self.pg.address, "port": self.pg.port, "database": "cdc",
                "user": "cdc_user", "password": "{{ vault_db }}", "sslmode": "disable",
                "keyFile": "/etc/milvus-cdc/registry.key"}

    def _write_inventory(self, key):
        hosts = {m.name: {"ansible_host": m.address} for m in self.machines}
        common = {
            "ansible_user": "root", "ansible_ssh_common_args": " ".join(key.options),
            "ansible_python_interpreter": "/usr/bin/python3",
            "milvus_cdc_package": str(self.packages["0.1.0"]), "milvus_cdc_apt_update": False,
            "milvus_cdc_config": {
                "registry": self.registry(),
                "sourceConfig": {"replicateChan": "by-dev-replicate-msg", "etcd": {"address": ["127.0.0.1:2379"]},
                                 "rocksmq": {"path": "/var/lib/milvus/rdb_data"}}},
            "milvus_cdc_files": {"registry.key": "{{ vault_key }}", "operator.token": "{{ vault_token }}"},
            "milvus_cdc_postgresql_create": True, "milvus_cdc_postgresql_admin_password": "{{ vault_admin }}",
            "milvus_cdc_vip": f"{self.vip}/24", "milvus_cdc_vip_interface": "eth0", "milvus_cdc_ready_seconds": 30}
        (self.folder / "group_vars" / "all").mkdir(parents=True)
        (self.folder / "inventory.yml").write_text(yaml.safe_dump({"milvus_cdc": {"hosts": hosts}}))
        (self.folder / "group_vars" / "all" / "common.yml").write_text(yaml.safe_dump(common))
        (self.folder / "vault-password").write_text("of the vault")
        vault = self.folder / "group_vars" / "all" / "vault.yml"
        vault.write_text(yaml.safe_dump(SECRETS))
        subprocess.run(["ansible-vault", "encrypt", vault], env=self.env(), check=True, capture_output=True)

    def env(self):
        return dict(os.environ, ANSIBLE_HOME=str(self.cache), ANSIBLE_SSH_CONTROL_PATH_DIR=str(self.cache),
                    ANSIBLE_PIPELINING="1", ANSIBLE_SSH_TRANSFER_METHOD="piped", ANSIBLE_NOCOLOR="1",
                    ANSIBLE_RETRY_FILES_ENABLED="0",
                    ANSIBLE_VAULT_PASSWORD_FILE=str(self.folder / "vault-password"), LC_ALL="C.UTF-8",
                    ANSIBLE_SSH_ARGS="-o ControlMaster=auto -o ControlPersist=60s")

    def play(self, *options, fails=False, **variables):
        """Runs the playbook; returns (what it printed, {host: number of changes})."""
        self.runs += 1
        done = subprocess.run(["ansible-playbook", "-i", self.folder / "inventory.yml", ANSIBLE / "site.yml", "-vvv",
                               "--diff", "-e", json.dumps(variables), *options], env=self.env(),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=300)
        (self.folder / f"play{self.runs}.log").write_text(done.stdout)
        assert (done.returncode != 0) == fails, f"exit code {done.returncode}\n{done.stdout[-6000:]}"
        for name, secret in SECRETS.items():
            for form in (secret, json.dumps(secret)[1:-1], secret.replace("'", "''")):
                assert form not in done.stdout, f"{name} was printed, see play{self.runs}.log"
        return done.stdout, {h: int(n) for h, n in re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", done.stdout, re.M)}

    def holders(self):
        return [m for m in self.machines if m.host.has(self.vip)]


def build_package(version):
    done = subprocess.run(["make", "-s", "-C", ROOT, "deb", f"DEB_VERSION={version}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ROOT / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def site():
    s = Site(FOLDER / "ansible")
    try:
        yield s.start()
    finally:
        s.close()


def test_check_on_fresh_hosts_changes_nothing(site):
    _, changes = site.play("--check", "--limit", "one")
    assert changes["one"] > 0
    for m in site.machines:
        files = "/usr/bin/milvus-cdc /etc/milvus-cdc /var/cache/milvus-cdc /etc/cron.d/milvus-cdc"
        assert m.run(f"ls -d {files}").stdout == ""
    assert site.pg.query("postgres", site.pg.password, "postgres",
                         "SELECT count(*) FROM pg_roles WHERE rolname = 'cdc_user'") == "0"


def test_from_nothing_to_a_pair(site):
    _, changes = site.play()
    assert changes["one"] > 0 and changes["two"] > 0
    for m in site.machines:
        assert m.out("systemctl is-active milvus-cdc keepalived") == "active\nactive"
        assert m.out("systemctl is-enabled milvus-cdc keepalived") == "enabled\nenabled"
        for path, rights in (("", "750 root:milvus-cdc"), ("cdc.yaml", "640 root:milvus-cdc"),
                             ("registry.key", "600 milvus-cdc:milvus-cdc"),
                             ("operator.token", "600 milvus-cdc:milvus-cdc")):
            assert m.out(f"stat -c '%a %U:%G' /etc/milvus-cdc/{path}") == rights
        assert m.out("ps -o user= -p $(systemctl show -P MainPID milvus-cdc)") == "milvus-cdc"
        assert m.run("ls -A /root/.milvus-cdc.pgpass").returncode != 0
        m.out("cd /; runuser -u milvus-cdc -- milvus-cdc --check-config")
    assert site.pg.query("cdc_user", SECRETS["vault_db"], "cdc", "SELECT current_user") == "cdc_user"
    assert site.pg.query("postgres", site.pg.password, "postgres",
                         "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'cdc'") == "cdc_user"
    assert SECRETS["vault_db"] not in site.pg.log.read_text().replace("''", "'")
    wait_for("one host has the virtual address", lambda: len(site.holders()) == 1, 15)
    wait_for("an answer there", lambda: json.loads(http_get(site.url + "/readyz")), 10)


def test_the_second_run_changes_nothing(site):
    assert site.play("--limit", "one")[1] == {"one": 0}
    assert site.play("--check", "--limit", "two")[1] == {"two": 0}


def test_the_probe_in_cron_runs(site):
    """The line as cron runs it, with a daemon that is well and with one that is away."""
    one = site.machines[0]
    line = one.out("grep ^'\\*' /etc/cron.d/milvus-cdc").split(" ", 6)[-1]
    (site.folder / "line").write_text(line)
    run = f"cd / && runuser -u milvus-cdc -- sh -c {shell_quote(line)}"
    one.out(run)
    assert one.run("journalctl -q -t milvus-cdc-health").stdout == ""
    one.out("systemctl stop milvus-cdc")
    one.out(run)
    wait_for("a line in the log", lambda: one.run("journalctl -q -p err -t milvus-cdc-health").stdout, 10)
    one.out("systemctl start milvus-cdc")


def shell_quote(text):
    return "'" + text.replace("'", "'\\''") + "'"


def test_a_mistake_stops_before_anything_changes(site):
    one = site.machines[0]
    before = one.out("sha256sum /etc/milvus-cdc/cdc.yaml; systemctl show -P MainPID milvus-cdc")
    (site.folder / "wrong.yml").write_text("milvus_cdc_config: {logLevel: loud, registry: {type: sqlite, path: x}, "
                                           "sourceConfig: {replicateChan: a, rocksmq: {path: /x}}}")
    text, changes = site.play("-e", f"@{site.folder / 'wrong.yml'}", "-e", "milvus_cdc_postgresql_create=false",
                              fails=True)
    assert "cdc.yaml was not written: milvus-cdc: " in text and "logLevel" in text
    assert "two" not in changes
    assert one.out("sha256sum /etc/milvus-cdc/cdc.yaml; systemctl show -P MainPID milvus-cdc") == before


def test_a_changed_file_restarts_the_daemon_even_in_a_later_run(site):
    """As after a run that failed between writing a file and the restart."""
    one = site.machines[0]
    pid = one.out("touch /etc/milvus-cdc/registry.key; systemctl show -P MainPID milvus-cdc")
    assert site.play("--limit", "one")[1] == {"one": 2}, "that the daemon is older, the restart"
    assert one.out("systemctl show -P MainPID milvus-cdc") != pid


def test_rolling_upgrade(site):
    pids = [m.out("systemctl show -P MainPID milvus-cdc") for m in site.machines]
    with Watch(site.url) as watch:
        text, changes = site.play(milvus_cdc_package=str(site.packages[UPGRADE]))
    assert changes == {"one": 4, "two": 4}, "the copy, the installation, that the daemon is older, the restart"
    for m, pid in zip(site.machines, pids):
        assert m.out("dpkg-query -W -f '${Version}' milvus-cdc") == UPGRADE
        assert m.out("systemctl show -P MainPID milvus-cdc") != pid
        program = m.out("readlink /proc/$(systemctl show -P MainPID milvus-cdc)/exe")
        assert program.endswith("/usr/bin/milvus-cdc")  # else "(deleted)"
        assert m.out("systemctl show -P NRestarts milvus-cdc") == "0"
    assert text.index("PLAY [A pair") < text.rindex("PLAY [A pair"), "one host at a time"
    print(f"upgrade: away for {watch.gap():.2f} s")
    assert watch.gap() < 5, watch.last_error  # test_vip.py has the limit for faults


def test_removal_and_purge(site):
    """Removal stops the daemon and keeps state and configuration; purge removes both, but not what others put there."""
    two = site.machines[1]
    two.out("systemctl stop keepalived")
    two.out("dpkg --remove milvus-cdc")
    assert two.run("pgrep -x milvus-cdc").returncode == 1
    two.out("test -e /etc/milvus-cdc/cdc.yaml")
    two.out("touch /var/lib/milvus-cdc/milvus-cdc.db /var/lib/milvus-cdc/a-copy")
    text = two.out("dpkg --purge milvus-cdc 2>&1")
    assert two.out("ls -A /var/lib/milvus-cdc") == "a-copy" and "/var/lib/milvus-cdc is not empty and stays" in text
    assert two.out("ls -A /etc/milvus-cdc").split() == ["operator.token", "registry.key"]


def test_lint(tmp_path):
    done = subprocess.run(["ansible-lint", "--offline", "--nocolor", "--strict", "--profile", "production", "site.yml",
                           "roles"], cwd=ANSIBLE, capture_output=True, text=True,
                          env=dict(os.environ, HOME=str(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
