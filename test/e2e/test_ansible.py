"""etc/ansible on two real hosts (machine.py: Debian with its own systemd, reached by ssh) and a real PostgreSQL 15 with
passwords: from nothing to a pair with a virtual address, a second run, mistakes, a rolling upgrade, TLS and tokens."""
import functools
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import yaml
from conftest import FOLDER
from machine import Machine, SshKey
from netns import HostCdc, Net, Watch, needs_hosts
from servers import ROOT, Process, ServerError, free_port, http_get, wait_for
from test_health import certificate

pytestmark = needs_hosts

ANSIBLE = ROOT / "etc" / "ansible"
EXAMPLE = yaml.safe_load((ANSIBLE / "group_vars" / "milvus_cdc.example.yml").read_text())
DB_PASSWORD, ADMIN_PASSWORD, TOKEN = "pw'of:the\\db \"7Tq2\"", "Admin-s3cret-91x", "t0ken-5e55ion-77aa"
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
        self.secrets = make_secrets(folder)
        self.pg = Postgres(folder, self.net.address, ADMIN_PASSWORD)
        self.machines = [Machine(self.net, n, name, key, folder) for n, name in ((11, "one"), (12, "two"))]
        self.vip = self.net.at(10)
        self.url = f"http://{self.vip}:{HostCdc.PORT}"
        self.packages = {v: build_package(v) for v in ("0.1.0", UPGRADE)}
        self.web = serve(self.net.address, self.packages[UPGRADE].parent)
        self._write_inventory(key)

    def start(self):
        self.pg.start()
        for m in self.machines:
            m.start()
        return self

    def close(self):
        self.web.shutdown()
        self.net.close()
        self.pg.kill()
        shutil.rmtree(self.cache, ignore_errors=True)

    def registry(self):
        return {"type": "postgresql", "host": self.pg.address, "port": self.pg.port, "database": "cdc",
                "user": "cdc_user", "password": "{{ vault_milvus_cdc_db_password }}", "sslmode": "disable",
                "keyFile": "/etc/milvus-cdc/registry.key"}

    def config(self):
        return {"registry": self.registry(),
                "sourceConfig": {"replicateChan": "by-dev-replicate-msg", "etcd": {"address": ["127.0.0.1:2379"]},
                                 "rocksmq": {"path": "/var/lib/milvus/rdb_data"}}}

    def package_url(self, version):
        return f"http://{self.net.address}:{self.web.server_port}/{self.packages[version].name}"

    def _write_inventory(self, key):
        hosts = {m.name: {"ansible_host": m.address} for m in self.machines}
        common = {
            "ansible_user": "root", "ansible_ssh_common_args": " ".join(key.options),
            "ansible_python_interpreter": "/usr/bin/python3",
            "milvus_cdc_package": str(self.packages["0.1.0"]), "milvus_cdc_apt_update": False,
            "milvus_cdc_config": self.config(),
            "milvus_cdc_files": {k: EXAMPLE["milvus_cdc_files"][k] for k in ("registry.key", "operator.token")},
            "milvus_cdc_postgresql_create": True,
            "milvus_cdc_postgresql_admin_password": EXAMPLE["milvus_cdc_postgresql_admin_password"],
            "milvus_cdc_vip": f"{self.vip}/24", "milvus_cdc_vip_interface": "eth0", "milvus_cdc_ready_seconds": 30}
        (self.folder / "group_vars" / "all").mkdir(parents=True)
        (self.folder / "inventory.yml").write_text(yaml.safe_dump({"milvus_cdc": {"hosts": hosts}}))
        (self.folder / "group_vars" / "all" / "common.yml").write_text(yaml.safe_dump(common))
        (self.folder / "vault-password").write_text("of the vault")
        vault = self.folder / "group_vars" / "all" / "vault.yml"
        vault.write_text(yaml.safe_dump(self.secrets))
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
        for name, secret in self.secrets.items():
            for form in (secret, json.dumps(secret)[1:-1], secret.replace("'", "''"), *secret.splitlines()[1:2]):
                assert form not in done.stdout, f"{name} was printed, see play{self.runs}.log"
        return done.stdout, {h: int(n) for h, n in re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", done.stdout, re.M)}

    def holders(self):
        return [m for m in self.machines if m.host.has(self.vip)]


def make_secrets(folder):
    """The vault_ variables of the example, with one certificate for both hosts."""
    ca = certificate(folder, "ca")
    cert, key = certificate(folder, "api", ca, "DNS:one,DNS:two")
    values = {"db_password": DB_PASSWORD, "postgres_password": ADMIN_PASSWORD, "operator_token": TOKEN,
              "registry_key": "5ea1" * 16, "api_key": key.read_text(), "api_cert": cert.read_text(),
              "ca": ca[0].read_text()}
    return {f"vault_milvus_cdc_{k}": v for k, v in values.items()}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve(address, folder):
    web = http.server.ThreadingHTTPServer((address, 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    return web


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
    assert site.pg.query("cdc_user", DB_PASSWORD, "cdc", "SELECT current_user") == "cdc_user"
    assert site.pg.query("postgres", site.pg.password, "postgres",
                         "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'cdc'") == "cdc_user"
    assert DB_PASSWORD not in site.pg.log.read_text().replace("''", "'")
    wait_for("one host has the virtual address", lambda: len(site.holders()) == 1, 15)
    wait_for("an answer there", lambda: json.loads(http_get(site.url + "/readyz")), 10)


def test_the_second_run_changes_nothing(site):
    assert site.play("--limit", "one")[1] == {"one": 0}
    assert site.play("--check", "--limit", "two")[1] == {"two": 0}


def test_the_probe_in_cron_runs(site):
    """The line as cron runs it, with a daemon that is well and with one that is away."""
    one = site.machines[0]
    one.out(as_cron(one))
    assert probe_log(one, "err") == ""
    one.out("systemctl stop milvus-cdc")
    one.out(as_cron(one))
    wait_for("a line in the log", lambda: probe_log(one, "err"), 10)
    one.out("systemctl start milvus-cdc")


def as_cron(machine):
    """The role's line, as a command of the user that it names."""
    line = machine.out("grep ^'\\*' /etc/cron.d/milvus-cdc").split(" ", 6)[-1]
    return f"cd / && runuser -u milvus-cdc -- sh -c {shlex.quote(line)}"


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
        text, changes = site.play(milvus_cdc_package=site.package_url(UPGRADE))
    assert changes == {"one": 3, "two": 3}, "the installation, that the daemon is older, the restart"
    for m, pid in zip(site.machines, pids):
        assert m.out("dpkg-query -W -f '${Version}' milvus-cdc") == UPGRADE
        assert m.out("systemctl show -P MainPID milvus-cdc") != pid
        program = m.out("readlink /proc/$(systemctl show -P MainPID milvus-cdc)/exe")
        assert program.endswith("/usr/bin/milvus-cdc")  # else "(deleted)"
        assert m.out("systemctl show -P NRestarts milvus-cdc") == "0"
    assert text.index("PLAY [A pair") < text.rindex("PLAY [A pair"), "one host at a time"
    print(f"upgrade: away for {watch.gap():.2f} s")
    assert watch.gap() < 5, watch.last_error  # test_vip.py has the limit for faults


CERT, KEY, CA = (f"/etc/milvus-cdc/{f}" for f in ("api.pem", "api.key", "ca.pem"))


def test_tls_tokens_and_client_certificates(site):
    """What the example of group_vars has of them, and clients with certificates, on hosts that had none of it."""
    api = EXAMPLE["milvus_cdc_config"]["api"]
    files = {**EXAMPLE["milvus_cdc_files"], "check.curl": f'cert = "{CERT}"\nkey = "{KEY}"\n'}
    probe_options = f"{EXAMPLE['milvus_cdc_health_options']} --cert {CERT} --key {KEY}"
    (site.folder / "tls.yml").write_text(yaml.safe_dump({
        "milvus_cdc_config": {**site.config(), "api": {**api, "tls": {**api["tls"], "clientCA": CA}}},
        "milvus_cdc_files": files, "milvus_cdc_url": EXAMPLE["milvus_cdc_url"],
        "milvus_cdc_health_options": probe_options, "milvus_cdc_package": site.package_url(UPGRADE)}))
    options = ["-e", f"@{site.folder / 'tls.yml'}"]
    cron_runs_the_example(site.machines[1])
    _, changes = site.play(*options)
    assert changes["one"] == changes["two"] > 0
    for m, peer in zip(site.machines, reversed(site.machines)):
        ask = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {CA} --cert {CERT} --key {KEY} https://{m.name}:8444"
        assert m.run(f"curl -s --cacert {CA} https://{m.name}:8444/readyz").returncode != 0, "without a certificate"
        assert m.out(f"{ask}/readyz") == "200" and m.out(f"{ask}/health") == "401"
        m.out("sed 's/^/Authorization: Bearer /' /etc/milvus-cdc/operator.token >/run/header")
        assert m.out(f"{ask}/health -H @/run/header") == "200"
        check = re.search(r'script "(.*)"', m.out("cat /etc/keepalived/keepalived.conf"))[1]
        assert check.endswith(f" https://127.0.0.1:8444 https://{peer.address}:8444")
        probe = re.search(r"text=\$\((.*) 2>&1\)", m.out("cat /etc/cron.d/milvus-cdc"))[1]
        for command in (check, probe):
            m.out(f"cd /; runuser -u milvus-cdc -- {command}")
    wait_for("one host has the virtual address", lambda: len(site.holders()) == 1, 15)
    assert site.play(*options, "--limit", "one")[1] == {"one": 0}
    wait_for("cron has run the example", lambda: "OK: 0 tasks" in probe_log(site.machines[1], "info"), 70)


def cron_runs_the_example(machine):
    """The crontab that the package has, with what it says about TLS and tokens."""
    more = f"--url https://$(hostname):8444 --token-file /etc/milvus-cdc/operator.token --ca {CA} --cert {CERT} --key {KEY}"
    machine.out("sed 's|health --config [^ ]*|health " + more + "|' /usr/share/doc/milvus-cdc/examples/cron.d "
                ">/etc/cron.d/example")
    assert more in machine.out("cat /etc/cron.d/example")


def probe_log(machine, priority):
    return machine.run(f"journalctl -q -p {priority}..{priority} -t milvus-cdc-health").stdout


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
    assert set(two.out("ls -A /etc/milvus-cdc").split()) == {*EXAMPLE["milvus_cdc_files"], "check.curl"}


def test_lint(tmp_path):
    done = subprocess.run(["ansible-lint", "--offline", "--nocolor", "--strict", "--profile", "production", "site.yml",
                           "roles"], cwd=ANSIBLE, capture_output=True, text=True,
                          env=dict(os.environ, HOME=str(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
