"""Daemons on hosts of their own, with a network between them and everything else: faults at random under a write load,
then both sides are compared row by row; a stand-in logs who sent what, when; and a pair behind a virtual address."""
import os
import re
import secrets
import signal
import textwrap
import time
from types import SimpleNamespace

import pytest
import yaml
from bench_parts import Sink
from conftest import FOLDER
from netns import Host, HostCdc, Net, Watch, needs_hosts
from relay import Relay
from servers import ROOT, wait_for
from test_group import check_one_writer
from test_vip import LIMIT, Vip, cut, heal, killed, stopped

pytestmark = needs_hosts

FAULTS, LEASE = int(os.environ.get("CHAOS_FAULTS") or 20), 2


class Site:
    """Hosts with a daemon each; etcd, PostgreSQL and the target are on the other side of the bridge."""

    def __init__(self, lab, postgres, n, config=None):
        self.lab, self.postgres, self.net = lab, postgres, Net()
        self.relays = [Relay(self.net.address, port) for port in (lab.pair.etcd.port, postgres.port)]
        etcd, pg = self.relays
        uri = postgres.database(f"t{secrets.token_hex(4)}").replace(f"127.0.0.1:{postgres.port}", pg.address)
        source = lab.pair.source
        seen = SimpleNamespace(etcd=etcd.address, root_path=source.root_path, queue=source.queue, rocksmq=source.rocksmq,
                               replicate_channel=source.replicate_channel)
        self.target = SimpleNamespace(uri=f"http://{self.net.address}:{lab.pair.target.port}")
        self.hosts = [Host(self.net, 11 + i) for i in range(n)]
        for h in self.hosts:
            settings = config(uri) if config else {"registry": {"type": "postgresql", "uri": uri, "leaseSeconds": LEASE}}
            h.cdc = HostCdc(h, lab.folder / h.name, seen, **settings)
            h.cdc.start()
            lab.cdcs.append(h.cdc)
        for h in self.hosts:
            wait_for("the daemon answers", lambda: h.cdc.api("list") is not None, 20)

    def close(self):
        for h in self.hosts:
            h.join()
            for p in self.hosts_programs(h):
                p.kill()
        for r in self.relays:
            r.close()
        self.net.close()

    @staticmethod
    def hosts_programs(host):
        return [p for p in host.running if p is not host.cdc]


@pytest.fixture
def site(lab, postgres):
    made = []

    def make(n, config=None):
        made.append(Site(lab, postgres, n, config))
        return made[-1]
    yield make
    for s in made:
        for h in s.hosts:
            h.join()
            if h.cdc.alive():
                os.kill(h.cdc.pid, signal.SIGCONT)
        lab.close()  # stops the daemons in order
        lab.cdcs.clear()
        s.close()


# ---- faults: each begins, lasts, and is over when it returns ----------------------------------------------------

def kill_9(site, host, rnd):
    host.cdc.kill()
    time.sleep(rnd.uniform(0, 4))  # how long a fault lasts is a part of it
    host.cdc.start(ready=None)


def stop_10_s(site, host, rnd):
    os.kill(host.cdc.pid, signal.SIGSTOP)
    time.sleep(10)
    os.kill(host.cdc.pid, signal.SIGCONT)


def network_cut(site, host, rnd):
    host.cut()
    time.sleep(rnd.uniform(1, 8))
    host.join()


def postgres_stopped(site, host, rnd):
    site.postgres.pause()
    time.sleep(rnd.uniform(0.5, 5))
    site.postgres.cont()


def postgres_killed(site, host, rnd):
    site.postgres.kill()
    time.sleep(rnd.uniform(0, 2))
    site.postgres.start()


def test_twenty_faults(lab, site, writing):
    s = site(3)
    sink = Sink(lab.folder / "sink", record=True, listen="0.0.0.0", host=s.net.address).start()
    faults = [kill_9, kill_9, stop_10_s, network_cut, network_cut, postgres_stopped, postgres_killed]
    try:
        first = s.hosts[0].cdc
        task, counted = lab.create(first, ["*"], target=s.target), first.create(sink, [lab.name("a"), lab.name("b")])
        a, b = lab.table("a"), lab.table("b", "text_key")
        with writing(a) as wa, writing(b) as wb:
            for w in (wa, wb):
                w.wait_batches(3)
            done = []
            for _ in range(FAULTS):
                fault, host = lab.rnd.choice(faults), lab.rnd.choice(s.hosts)
                done.append(f"{fault.__name__} {host.name[-2:]}")
                fault(s, host, lab.rnd)
                time.sleep(lab.rnd.uniform(0, 2))
            for w in (wa, wb):
                w.wait_batches(3)
        print(f"{', '.join(done)}; {wa.batches + wb.batches} requests written")
        for h in s.hosts:
            wait_for("the daemon answers", lambda: h.cdc.api("list") is not None, 30)
        for t in (task, counted):
            s.hosts[0].cdc.wait_caught_up(t, 120)
        lab.equal(s.hosts[1].cdc, task, [a, b], timeout=180)
        for h in s.hosts:
            assert {t["state"] for t in h.cdc.api("list")["tasks"]} == {"Running"}
        print(f"{check_one_writer(sink)} epochs, never two at a time")
    finally:
        sink.kill()


# ---- a pair behind a virtual address -------------------------------------------------------------------------------

def of_the_readme(uri):
    """The registry of the README's "Run it as a pair", with this database."""
    text = (ROOT / "README.md").read_text().split("## Run it as a pair")[1].split("\n## ")[0]
    config = yaml.safe_load(textwrap.dedent(re.search(r"^ *```yaml\n(.*?)^ *```", text, re.S | re.M)[1]))
    registry = config["registry"]
    for path in ("passfile", "keyFile"):
        assert registry.pop(path).startswith("/etc/milvus-cdc/")
    assert registry["uri"].startswith("postgresql://")
    return {"registry": {**registry, "uri": uri, "leaseSeconds": LEASE}}


@pytest.mark.parametrize("fault", [killed, stopped, cut], ids=lambda f: f.__name__)
def test_a_pair_behind_a_vip(lab, site, writing, fault):
    """As the README says: the API stays reachable at the address, and replication goes on."""
    s = site(2, of_the_readme)
    vip = Vip(s.net, s.hosts, lab.folder / "vip")
    active = vip.wait_holder()
    other = next(h for h in s.hosts if h is not active)
    task = lab.create(active.cdc, ["*"], target=s.target)
    a = lab.table("a")
    with writing(a) as w:
        w.wait_batches(3)
        with Watch(vip.url) as watch:
            wait_for("an answer at the virtual address", lambda: watch.good, 10)
            fault(active)
            wait_for(f"{other.name} has the address", lambda: other.has(vip.address), 10)
            began = int(time.time() * 1000)
            other.cdc.wait_caught_up(task, 30, since_ms=began)
            flows = time.time() - began / 1000
            gap = watch.gap()
        heal(active)
        w.wait_batches(3)
    print(f"{fault.__name__}: the API was away for {gap:.2f} s, rows flowed again {flows:.2f} s after the address had moved")
    assert gap < LIMIT, watch.last_error
    lab.equal(other.cdc, task, [a], timeout=120)
