"""etc/keepalived as it is shipped: two hosts, each with a real keepalived and a daemon, and a client at the virtual
address; the API is away for less than 3 s whatever happens to the host that has the address."""
import http.server
import os
import shutil
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from conftest import FOLDER
from netns import Host, HostCdc, Net, Watch, needs_hosts
from servers import ROOT, ServerError, wait_for

pytestmark = needs_hosts

LIMIT = 3.0
CHECK = ROOT / "etc" / "keepalived" / "check-milvus-cdc"
NO_SOURCE = SimpleNamespace(etcd="127.0.0.1:2379", root_path="by-dev", queue=None, rocksmq="/nonexistent",
                            replicate_channel="by-dev-replicate-msg")


class Vip:
    """The virtual address of two hosts: a keepalived on each, with the shipped file, changed where it says (*)."""

    def __init__(self, net, hosts, folder):
        self.hosts, self.address = hosts, net.at(10)
        self.url = f"http://{self.address}:{HostCdc.PORT}"
        self.folder = folder
        self.keepalived = [self._start(h, o, priority) for h, o, priority in ((*hosts, 100), (*hosts[::-1], 90))]

    def _start(self, host, other, priority):
        program = shutil.which("keepalived", path=os.environ["PATH"] + ":/usr/sbin")
        if not program:
            raise ServerError("keepalived is not installed: scripts/install-deps --tests")
        folder = self.folder / host.name
        folder.mkdir(parents=True, exist_ok=True)
        check = folder / "check-milvus-cdc"
        shutil.copy(CHECK, check)
        text = (ROOT / "etc" / "keepalived" / "keepalived.conf").read_text()
        for old, new in (("/usr/libexec/milvus-cdc/check-milvus-cdc", str(check)), ("192.0.2.11", host.address),
                         ("192.0.2.12", other.address), ("192.0.2.10/", f"{self.address}/"),
                         ("priority 100", f"priority {priority}"), ("script_user milvus-cdc", "script_user nobody")):
            assert old in text
            text = text.replace(old, new)
        (folder / "keepalived.conf").write_text(text)
        return host.spawn("keepalived", [program, "--dont-fork", "--log-console", "--no-syslog", "--vrrp",
                                         "--use-file", folder / "keepalived.conf", "--pid", folder / "pid",
                                         "--vrrp_pid", folder / "vrrp.pid"], folder)

    def holders(self):
        return [h for h in self.hosts if h.has(self.address)]

    def wait_holder(self, host=None, timeout=15):
        """Until exactly one host (this one) has the address; returns it."""
        def one():
            held = self.holders()
            return held[0] if len(held) == 1 and held[0] is (host or held[0]) else None
        try:
            return wait_for(f"{host.name if host else 'one host'} has {self.address}", one, timeout)
        except TimeoutError as e:
            raise TimeoutError(f"{e}: {[h.name for h in self.holders()]} have it\n" +
                               "\n".join(k.tail() for k in self.keepalived)) from None


@pytest.fixture(scope="module")
def vip():
    net = Net()
    try:
        hosts = [Host(net, 11), Host(net, 12)]
        for h in hosts:
            h.cdc = HostCdc(h, FOLDER / "vip" / h.name, NO_SOURCE).start()
        yield Vip(net, hosts, FOLDER / "vip")
        for h in hosts:
            assert h.cdc.stop() == 0
    finally:
        net.close()


def killed(host):
    host.cdc.kill()


def stopped(host):
    os.kill(host.cdc.pid, signal.SIGSTOP)


def cut(host):
    host.cut()


def unplugged(host):
    host.unplug()


def heal(host):
    if not host.cdc.alive():
        host.cdc.start()
    os.kill(host.cdc.pid, signal.SIGCONT)
    host.join()


@pytest.mark.parametrize("fault", [killed, stopped, cut, unplugged], ids=lambda f: f.__name__)
def test_the_api_stays_reachable(vip, fault):
    active = vip.wait_holder()
    other = next(h for h in vip.hosts if h is not active)
    with Watch(vip.url) as watch:
        wait_for("an answer at the virtual address", lambda: watch.good, 10)
        fault(active)
        wait_for(f"{other.name} has the address", lambda: other.has(vip.address), 10)
        there = time.monotonic()
        wait_for("an answer of the other one", lambda: watch.answered_since(there), 10)
        taken = watch.gap()
        heal(active)
        vip.wait_holder()
        wait_for("both hosts are well", lambda: well(active) and well(other), 15)
        back = time.monotonic()
        wait_for("an answer after that", lambda: watch.answered_since(back), 10)
    print(f"{fault.__name__}: away for {taken:.2f} s, all in all {watch.gap():.2f} s, {watch.failures} failed calls")
    assert watch.gap() < LIMIT, f"last error: {watch.last_error}"
    if fault in (killed, stopped):
        assert vip.wait_holder() is other  # nopreempt: who has it keeps it


def well(host):
    return run_check(f"http://{host.address}:{HostCdc.PORT}")[0] == 0


# ---- the check alone ------------------------------------------------------------------------------------

@pytest.fixture
def node():
    """Makes a server that answers /readyz with a status; 0: it accepts and is silent. Returns its URL."""
    servers = []

    def make(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if not status:
                    silent.wait(20)
                    return
                self.send_response(status if self.path == "/readyz" else 404)
                self.end_headers()

            def log_message(self, *args):
                pass
        silent = threading.Event()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append((server, silent))
        return f"http://127.0.0.1:{server.server_port}"
    yield make
    for server, silent in servers:
        silent.set()
        server.shutdown()
        server.server_close()


def run_check(*urls):
    started = time.monotonic()
    code = subprocess.run([CHECK, *urls], timeout=20).returncode
    return code, time.monotonic() - started


NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize("own, peer, code", [
    (200, None, 0), (200, 200, 0), (503, None, 1), (503, 200, 1), (503, 503, 0), (503, "nobody", 0), (503, 0, 0),
    ("nobody", 503, 1), ("nobody", "nobody", 1), (0, 503, 1), (404, 503, 1)])
def test_check(node, own, peer, code):
    urls = [NOBODY if status == "nobody" else node(status) for status in (own, peer) if status is not None]
    result, seconds = run_check(*urls)
    assert result == code
    assert seconds < 2, "keepalived's timeout"


def test_check_wants_an_address():
    assert subprocess.run([CHECK], capture_output=True).returncode == 2
