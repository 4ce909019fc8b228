"""Real servers for the demo, the tests and the benchmark: etcd, Milvus 2.3.5, and milvus-cdc itself.

Everything runs on free local ports below a folder of its own, and dies with this process: children are killed
by the kernel when the thread that started them ends (so start them from the main thread), and at exit.
"""
import atexit
import collections
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
MILVUS_BIN = ROOT / "build" / "milvus-2.3.5"
_running = []
_given_ports = set()
_claims = collections.deque(maxlen=200)


class ServerError(Exception):
    pass


def wait_for(what, condition, timeout, interval=0.1):
    """Polls until condition() is true, and returns its value. An exception counts as "not yet"."""
    deadline = time.monotonic() + timeout
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value
            last = None
        except AssertionError as e:
            last = e
        except (OSError, ServerError) as e:
            last = e
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {timeout} s: {what}" + (f" ({last})" if last else ""))
        time.sleep(interval)


def port_is_free(port):
    for host in ("0.0.0.0", "127.0.0.1"):
        with socket.socket() as s:
            try:  # as Milvus's package looks: a port in TIME_WAIT, of a server that just ended, is taken
                s.bind((host, port))
            except OSError:
                return False
    return True


def claim_port(port):
    """
    True: no other run of tests has taken it, of those that have not bound theirs yet: four start at once, with 25 ports
    each. A name without a file, which goes with the process; the oldest ones are let go, their servers are up.
    """
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0milvus-cdc-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def free_port():
    """Below the ephemeral range, so that no outgoing connection takes it while a server is down."""
    pick = random.SystemRandom()
    while True:
        port = pick.randrange(20000, 32000)
        if port not in _given_ports and claim_port(port) and port_is_free(port):
            _given_ports.add(port)
            return port


def http_get(url, timeout=2):
    with urllib.request.urlopen(url, timeout=timeout) as r:
        return r.read().decode()


class Process:
    """One program with a log file; start, stop, kill and restart keep its folder and ports."""

    def __init__(self, name, folder, keep=False):
        self.name, self.dir, self.keep = name, Path(folder), keep
        self.dir.mkdir(parents=True, exist_ok=True)
        self.log = self.dir / f"{name}.log"
        self.proc = None

    @property
    def pid(self):
        return self.proc.pid if self.proc else None

    def alive(self):
        return self.proc is not None and self.proc.poll() is None

    def _spawn(self, args, cwd=None, env=None):
        assert not self.alive(), f"{self.name} runs already"

        # setpriv and not a preexec_fn: Python code between fork and exec hangs now and then, gRPC has threads
        tied = [] if self.keep else ["setpriv", "--pdeathsig", "KILL", "--"]
        with open(self.log, "ab") as log:
            self.proc = subprocess.Popen(tied + [str(a) for a in args], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                                         stdout=log, stderr=log, start_new_session=True)
        if self not in _running:
            _running.append(self)

    def _wait_ready(self, check, timeout):
        def ready():
            if not self.alive():
                raise EOFError(f"{self.name} ended with {self.proc.returncode}:\n{self.tail()}")
            return check()
        try:
            wait_for(f"{self.name} is ready", ready, timeout)
        except TimeoutError as e:
            raise TimeoutError(f"{e}\n{self.tail()}") from None

    def tail(self, lines=25):
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def kill(self):
        """kill -9, of the whole process group."""
        if self.proc is not None:
            try:
                os.killpg(self.proc.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.proc.wait()

    def stop(self, timeout=30):
        """SIGTERM; returns the exit code. Kills what does not end in time."""
        if self.proc is None:
            return None
        if self.alive():
            self.proc.terminate()
            try:
                self.proc.wait(timeout)
            except subprocess.TimeoutExpired:
                pass
        self.kill()
        return self.proc.returncode

    def start(self):
        raise NotImplementedError

    def restart(self, hard=False):
        self.kill() if hard else self.stop()
        self.start()


def stop_all():
    for p in reversed(_running):
        p.kill()


def leave_running():
    """What was started with keep=True outlives this process."""
    _running[:] = [p for p in _running if not p.keep]


def _on_sigterm(signum, frame):
    sys.exit(128 + signum)


atexit.register(stop_all)
signal.signal(signal.SIGTERM, _on_sigterm)


class Etcd(Process):
    """Debian's etcd, one member."""

    def __init__(self, folder, keep=False):
        super().__init__("etcd", folder, keep)
        self.port, self.peer = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"

    def start(self):
        url, peer = f"http://{self.address}", f"http://127.0.0.1:{self.peer}"
        self._spawn(["etcd", "--data-dir", self.dir / "data", "--listen-client-urls", url,
                     "--advertise-client-urls", url, "--listen-peer-urls", peer,
                     "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
                     "--unsafe-no-fsync", "--log-level", "warn"])
        self._wait_ready(lambda: json.loads(http_get(f"{url}/health"))["health"] == "true", 30)
        return self


class Postgres(Process):
    """
    Debian's PostgreSQL. It refuses to run as root, and does not reach every folder as another user: its data lie below
    /tmp, and go with this process. uri(database) logs in as the database's owner, without a password.
    """

    BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))

    def __init__(self, folder, keep=False):
        super().__init__("postgres", folder, keep)
        self.port = free_port()
        self.data = Path(tempfile.mkdtemp(prefix="milvus-cdc-pg-"))
        atexit.register(shutil.rmtree, self.data, ignore_errors=True)
        self.options = []  # more of "postgres"
        self.programs = self.BIN  # initdb and postgres
        self.user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig", "KILL"]
        if os.geteuid():
            self.user = []
        else:
            shutil.chown(self.data, "postgres", "postgres")

    def _run(self, *args):
        r = subprocess.run([*self.user, *map(str, args)], cwd="/", capture_output=True, text=True, timeout=120)
        if r.returncode:
            raise ServerError(f"{args[0]}: {r.stdout}{r.stderr}")
        return r.stdout

    def start(self):
        if not (self.data / "data").exists():
            self._run(self.programs / "initdb", "-D", self.data / "data", "-U", "postgres", "-A", "trust", "--no-sync",
                      "-E", "UTF8", "--locale=C")
        self._spawn([*self.user, self.programs / "postgres", "-D", self.data / "data", "-p", self.port, "-k", self.data,
                     "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=32MB", *self.options],
                    cwd="/")
        self._wait_ready(lambda: self.sql("SELECT 1") == "1", 60)
        return self

    def sql(self, text, database="postgres"):
        return self._run(self.BIN / "psql", "-h", self.data, "-p", self.port, "-U", "postgres", "-d", database, "-X",
                         "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text).strip()

    def database(self, name):
        """A new one, and its owner of the same name; returns its URI."""
        self.sql(f'CREATE ROLE "{name}" LOGIN')
        self.sql(f'CREATE DATABASE "{name}" OWNER "{name}"')
        return f"postgresql://{name}@127.0.0.1:{self.port}/{name}"

    def _all(self):
        """Its processes: each has a group of its own."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [self.pid, *map(int, children.read_text().split())] if children.exists() else [self.pid]

    def _signal(self, what):
        for pid in self._all():
            try:
                os.kill(pid, what)
            except ProcessLookupError:
                pass

    def pause(self):
        """SIGSTOP, of all its processes."""
        self._signal(signal.SIGSTOP)

    def cont(self):
        self._signal(signal.SIGCONT)

    def kill(self):
        if not self.alive():
            return
        pids = self._all()
        self._signal(signal.SIGKILL)
        self.proc.wait()
        for pid in pids[1:]:
            wait_for(f"{pid} ends", lambda: not Path(f"/proc/{pid}").exists(), 10, 0.02)

    def stop(self, timeout=30):
        """A fast shutdown: sessions are ended."""
        if self.alive():
            self.cont()
            self.proc.send_signal(signal.SIGINT)
            try:
                self.proc.wait(timeout)
            except subprocess.TimeoutExpired:
                pass
        self.kill()
        return self.proc.returncode if self.proc else None


PORT_KEYS = ("etcd_port root_coord_port proxy_port proxy_internal_port query_coord_port query_node_port "
             "index_coord_port index_node_port data_coord_port data_node_port").split()


def unpack_milvus():
    """The package has its files compressed: unpacked once, linked by each instance."""
    if (MILVUS_BIN / "complete").exists():
        return
    from milvus import _initialize_data_files
    MILVUS_BIN.mkdir(parents=True, exist_ok=True)
    _initialize_data_files(str(MILVUS_BIN))
    (MILVUS_BIN / "complete").touch()


class Milvus(Process):
    """
    A standalone server. etcd: "host:port" of a shared one, or None for the embedded one on 127.0.0.1:2379. standby: it
    takes data from a replicator only. channels: physical channels (None: its default, 16). config: a function that may
    change the loaded milvus.yaml. queue: of queues.py, None: RocksMQ.
    """

    def __init__(self, name, folder, etcd=None, standby=False, channels=None, proxy_port=None, keep=False, config=None,
                 queue=None):
        super().__init__(name, folder, keep)
        self.queue = queue
        self.standby, self.embedded = standby, etcd is None
        self.etcd = etcd or "127.0.0.1:2379"
        self.root_path = self.cluster = "by-dev" if self.embedded else name
        self.ports = {k: free_port() for k in PORT_KEYS}
        self.ports["proxy_port"] = proxy_port or self.ports["proxy_port"]
        self.health_port = free_port()
        self.port = self.ports["proxy_port"]
        self.address = f"127.0.0.1:{self.port}"
        self.uri = f"http://{self.address}"
        self.data = self.dir / "data"
        self.rocksmq = self.data / "data" / "rocksmq"
        self.replicate_channel = f"{self.cluster}-replicate-msg"
        self._configure(channels, config)

    def _configure(self, channels, change):
        from milvus import MilvusServerConfig
        unpack_milvus()
        c = MilvusServerConfig(data_dir=str(self.data), **self.ports)
        c.resolve()
        if not (self.data / "bin").exists():
            (self.data / "bin").symlink_to(MILVUS_BIN / "bin")
        path = self.data / "configs" / "milvus.yaml"
        y = yaml.safe_load(path.read_text())
        common = y.setdefault("common", {})
        if not self.embedded:
            y["etcd"]["use"] = {"embed": False}
            y["etcd"]["endpoints"] = self.etcd
            y["etcd"]["rootPath"] = self.root_path
            common.setdefault("chanNamePrefix", {})["cluster"] = self.cluster
        if self.standby:
            common["ttMsgEnabled"] = False
        if channels:
            y.setdefault("rootCoord", {})["dmlChannelNum"] = channels
        y.setdefault("log", {})["level"] = "warn"
        if self.queue:
            self.queue.configure(y, self)
        if change:
            change(y)
        path.write_text(yaml.safe_dump(y))

    def become_standby(self):
        """An ordinary server that has data already, restarted as one that takes data from a replicator only."""
        self.stop()
        path = self.data / "configs" / "milvus.yaml"
        y = yaml.safe_load(path.read_text())
        y["common"]["ttMsgEnabled"] = False
        path.write_text(yaml.safe_dump(y))
        self.standby = True
        return self.start()

    def start(self, timeout=180):
        self.begin()
        self.wait_ready(timeout)
        return self

    def begin(self):
        """start() without waiting, so that two servers can come up at the same time."""
        env = dict(os.environ, DEPLOY_MODE="STANDALONE", METRICS_PORT=str(self.health_port),
                   MILVUS_RUN_DIR=str(self.data / "run"), LD_LIBRARY_PATH=str(self.data / "bin"), GOGC="60")
        self._spawn([self.data / "bin" / "milvus", "run", "standalone"], cwd=self.data, env=env)

    def wait_ready(self, timeout=180):
        url = f"http://127.0.0.1:{self.health_port}/healthz"
        self._wait_ready(lambda: http_get(url).strip() == "OK" and self._answers(), timeout)

    def _answers(self):
        """Healthy and serving: the proxy listens."""
        with socket.create_connection(("127.0.0.1", self.port), 1):
            return True


class MilvusLite(Process):
    """Milvus Lite as a server, from a virtual environment of its own (ensure_lite in common.sh)."""

    BIN = ROOT / "build" / "lite" / "bin" / "milvus-lite"

    def __init__(self, folder, port=None, keep=False):
        super().__init__("milvus-lite", folder, keep)
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.uri = f"http://{self.address}"

    def start(self):
        self.begin()
        self.wait_ready()
        return self

    def begin(self):
        self._spawn([self.BIN, "server", "--data-dir", self.dir / "data", "--port", self.port])

    def wait_ready(self, timeout=60):
        self._wait_ready(self._answers, timeout)

    def _answers(self):
        with socket.create_connection(("127.0.0.1", self.port), 1):
            return True


class ApiError(ServerError):
    def __init__(self, answer):
        super().__init__(f"{answer.get('code')}: {answer.get('message')}")
        self.code, self.message = answer.get("code"), answer.get("message", "")


class Cdc(Process):
    """milvus-cdc with its embedded registry, reading source. program: see find_program()."""

    def __init__(self, folder, source, program=None, port=None, keep=False, **settings):
        super().__init__("milvus-cdc", folder, keep)
        self.program = Path(program or find_program())
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config_path = self.dir / "cdc.yaml"
        self.config = {
            "address": f"127.0.0.1:{self.port}",
            "logLevel": os.environ.get("CDC_LOG", "info"),
            "registry": {"type": "sqlite", "path": str(self.dir / "cdc.db")},
            "sourceConfig": {
                **({"milvus": {"uri": source.uri}} if hasattr(source, "uri") else {}),
                "etcd": {"address": [source.etcd], "rootPath": source.root_path, "metaSubPath": "meta"},
                **(source.queue.cdc(source) if source.queue else {"rocksmq": {"path": str(source.rocksmq)}}),
                "replicateChan": source.replicate_channel,
            },
            **settings,
        }

    def start(self, timeout=30, ready="/readyz"):
        """ready: the path that must answer, or None: do not wait."""
        self.config_path.write_text(yaml.safe_dump(self.config))
        env = dict(os.environ)
        env.setdefault("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0:exitcode=99")
        env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
        self._spawn([self.program, "--config", self.config_path], cwd=self.dir, env=env)
        if ready:
            self._wait_ready(lambda: http_get(self.url + ready) is not None, timeout)
        return self

    def post(self, body, timeout=60):
        """One POST of anything; returns (HTTP status, text)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        req = urllib.request.Request(self.url + "/cdc", data=data, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(req, timeout=timeout) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def api(self, request_type, timeout=60, **data):
        """data of the answer; an ApiError when its code is not 200."""
        answer = json.loads(self.post({"request_type": request_type, "request_data": data}, timeout)[1])
        if answer.get("code") != 200:
            raise ApiError(answer)
        return answer.get("data", {})

    def create(self, target, collections=None, token="", **more):
        """A task for a Milvus. collections: names of `default`, or {db: [entry...]} as in db_collections."""
        data = {"milvus_connect_param": {"uri": target.uri, "token": token, "connect_timeout": 10}}
        if isinstance(collections, dict):
            data["db_collections"] = collections
        else:
            data["collection_infos"] = [c if isinstance(c, dict) else {"name": c} for c in collections]
        data.update(more)
        return self.api("create", **data)["task_id"]

    def task(self, task_id):
        return self.api("get", task_id=task_id)["task"]

    def metrics(self):
        """{name{labels}: value}"""
        out = {}
        for line in http_get(self.url + "/cdc/metrics", 5).splitlines():
            if line and not line.startswith("#"):
                key, value = line.rsplit(" ", 1)
                out[key] = float(value)
        return out

    def position_time(self, task_id):
        """ms of the source's clock up to which all channels are replicated, or None: no channel yet."""
        rows = self.api("position", task_id=task_id).get("positions") or []
        times = [r["time"] for r in rows if r["collection_id"] != -10]
        return min(times) if times else None

    def wait_caught_up(self, task_id, timeout=120, since_ms=None, progress=None):
        """Until everything that the source had at this moment is confirmed by the target."""
        until = since_ms or int(time.time() * 1000)
        behind = [None]

        def there():
            t = self.position_time(task_id)
            behind[0] = None if t is None else max(0, until - t)
            if progress:
                progress(behind[0])
            return t is not None and t >= until
        try:
            wait_for("caught up", there, timeout, 0.2)
        except TimeoutError:
            raise TimeoutError(f"not caught up after {timeout} s: {behind[0]} ms behind, task "
                               f"{self.task(task_id).get('state')} {self.task(task_id).get('reason', '')}\n"
                               f"{self.tail()}") from None


def find_program():
    """CDC_BIN, else the release build."""
    path = Path(os.environ.get("CDC_BIN") or ROOT / "build" / "milvus-cdc")
    if not path.exists():
        raise ServerError(f"{path} is not there: run make")
    return path.resolve()


def remove_tree(path):
    shutil.rmtree(path, ignore_errors=True)
