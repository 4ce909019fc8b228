"""A Debian host: network namespace, systemd as process 1, sshd; everything but the kernel and the files of this machine
is its own, and what it writes is gone when it ends (boot-machine)."""
import subprocess
import tempfile
from pathlib import Path

from netns import Host, HostProcess
from servers import remove_tree

BOOT = Path(__file__).with_name("boot-machine")


class SshKey:
    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "id"
        if not self.path.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.path], check=True)
        self.public = self.path.with_suffix(".pub").read_text().strip()
        self.options = ["-i", str(self.path), "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no",
                        "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=5"]


class Machine(HostProcess):
    """start() boots it and waits for sshd; run() is a command of root on it, by a shorter way than ssh."""

    def __init__(self, net, number, name, key, folder):
        super().__init__(Host(net, number), name, folder)
        self.key, self.address = key, self.host.address
        self.root = Path(tempfile.mkdtemp(prefix=f"{name}-"))

    def start(self):
        self._spawn(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup",
                     BOOT, self.root, self.name, self.key.public])
        self._wait_ready(lambda: subprocess.run(["ssh", *self.key.options, f"root@{self.address}", "true"],
                                                capture_output=True).returncode == 0, 40)
        return self

    def _init(self):
        """The pid of its systemd, the child of unshare."""
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0]

    def run(self, command, timeout=60):
        return subprocess.run(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "nsenter", "--all",
                               "--root", "--wd=/", "--target", self._init(), "sh", "-c", command],
                              capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)

    def out(self, command):
        """Its output; an AssertionError with what it said when it fails."""
        done = self.run(command)
        assert done.returncode == 0, f"{self.name}: {command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def kill(self):
        super().kill()
        remove_tree(self.root)
