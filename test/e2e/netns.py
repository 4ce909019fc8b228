"""Hosts in network namespaces on one bridge, which can be cut off, and a client that measures how long an API is away.

The bridge is in the namespace of the tests: servers of the tests that listen on Net.address are reachable from hosts.
"""
import itertools
import json
import os
import random
import subprocess
import threading
import time
import urllib.request

import pytest
from servers import Cdc, Process, ServerError

_numbers = itertools.count()


def ip(*args):
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if done.returncode:
        raise ServerError(f"ip {' '.join(args)}: {done.stderr.strip()} (these tests make network namespaces: they run "
                          "as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN)")
    return done.stdout


def forbidden():
    """Why this kernel lets us make no hosts (a container without CAP_SYS_ADMIN or CAP_NET_ADMIN), or None."""
    trial = ("d=/mnt && mount -t tmpfs tmpfs $d && mkdir $d/a $d/b $d/c && "
             "mount -t overlay -o lowerdir=/,upperdir=$d/a,workdir=$d/b overlay $d/c && mount -t proc proc $d/c/proc && "
             "mount -t sysfs sysfs $d/c/sys && mount -t cgroup2 cgroup2 $d/c/sys/fs/cgroup && "
             "ip link add x type veth peer name y && ip link add z type bridge")
    done = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "sh", "-ec", trial],
                          capture_output=True, text=True)
    text = done.stderr.strip().splitlines()[-1:] or ["unshare failed"]
    return f"no namespaces or mounts of our own here: {text[0]}" if done.returncode else None


_reason = forbidden()
needs_hosts = pytest.mark.skipif(_reason is not None, reason=str(_reason))


class Net:
    """A bridge with a /24 of its own; address(1) is the machine's."""

    def __init__(self):
        self.id = f"{os.getpid() % 100000:05d}{next(_numbers)}"
        self.bridge = f"cdc{self.id}"
        self.prefix = self._free_prefix()
        self.address = self.at(1)
        self.hosts = []
        ip("link", "add", self.bridge, "type", "bridge", "forward_delay", "0")
        ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")

    @staticmethod
    def _free_prefix():
        """10.x.y of which this machine knows nothing."""
        taken = ip("-4", "route", "show")
        while True:
            prefix = f"10.{random.SystemRandom().randrange(100, 255)}.{random.SystemRandom().randrange(1, 255)}"
            if f"{prefix}." not in taken:
                return prefix

    def at(self, number):
        return f"{self.prefix}.{number}"

    def close(self):
        for h in self.hosts:
            h.close()
        ip("link", "del", self.bridge)


class Host:
    """A network namespace with eth0 on the bridge."""

    def __init__(self, net, number):
        self.net, self.name, self.address = net, f"cdc{net.id}-{number}", net.at(number)
        self.port = f"c{net.id}-{number}"  # the bridge's end of eth0's cable
        self.running = []
        ip("netns", "add", self.name)
        net.hosts.append(self)
        ip("link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.port, "master", net.bridge, "up")
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")

    def spawn(self, name, args, folder):
        """A program in this namespace, as a servers.Process."""
        p = HostProcess(self, name, folder)
        p._spawn(args)
        return p

    def cut(self):
        """Nothing gets through any more, while the interface still looks well: a dead switch."""
        ip("link", "set", self.port, "nomaster")

    def unplug(self):
        """eth0 loses its carrier."""
        ip("link", "set", self.port, "down")

    def join(self):
        """Undoes cut() and unplug()."""
        ip("link", "set", self.port, "master", self.net.bridge, "up")

    def has(self, address):
        return f" {address}/" in ip("-n", self.name, "-4", "addr", "show", "dev", "eth0")

    def close(self):
        for p in reversed(self.running):
            p.kill()
        ip("netns", "del", self.name)
        # the kernel removes the namespace, and the cable with it, a little later


class InHost:
    """Before a subclass of Process: runs in a host. `ip netns exec` becomes the program, so the pid is its own."""

    def _spawn(self, args, **more):
        super()._spawn(["ip", "netns", "exec", self.host.name, *args], **more)
        self.host.running.append(self)


class HostProcess(InHost, Process):
    def __init__(self, host, name, folder):
        self.host = host
        super().__init__(name, folder)


class HostCdc(InHost, Cdc):
    """milvus-cdc that listens on all addresses of a host."""

    PORT = 8444

    def __init__(self, host, folder, source, **settings):
        self.host = host
        super().__init__(folder, source, port=self.PORT, address=f"0.0.0.0:{self.PORT}", **settings)
        self.url = f"http://{host.address}:{self.PORT}"


class Watch:
    """A client that lists the tasks every 100 ms, with a connection for each call; a context manager.

    gap() is the longest time between the ends of two calls that succeeded one after the other.
    """

    def __init__(self, url, interval=0.1, timeout=0.3, headers=None, context=None):
        self.url, self.interval, self.timeout = url, interval, timeout
        self.headers, self.context = headers or {}, context
        self.good, self.failures, self.last_error = [], 0, None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _call(self):
        request = urllib.request.Request(f"{self.url}/cdc", data=b'{"request_type":"list"}', headers=self.headers)
        with urllib.request.urlopen(request, timeout=self.timeout, context=self.context) as r:
            answer = json.load(r)
        if answer["code"] != 200:
            raise ServerError(f"{answer['code']}: {answer.get('message')}")

    def _run(self):
        while not self.stopping.wait(self.interval):
            try:
                self._call()
                self.good.append(time.monotonic())
            except (OSError, ServerError, ValueError) as e:
                self.failures += 1
                self.last_error = e

    def answered_since(self, moment):
        return bool(self.good) and self.good[-1] > moment

    def gap(self):
        times = self.good + [time.monotonic()]
        return max(b - a for a, b in zip(times, times[1:]))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stopping.set()
        self.thread.join(10)
