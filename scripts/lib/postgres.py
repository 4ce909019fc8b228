"""A real PostgreSQL server, throw-away: its files in a folder, a free port, run as another user (it refuses root)."""
import os
import secrets
import shutil
import subprocess
from pathlib import Path

from servers import Process, ServerError, free_port, wait_for

BIN = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"


def as_user(args, keep=True):
    """A change of user forgets the death signal of Process."""
    tied = [] if keep else ["--pdeathsig", "KILL"]
    return ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", *tied, *args] if os.getuid() == 0 else args


class Postgres(Process):
    """Trusts local connections. fsync is off: it may be killed, the machine not."""

    def __init__(self, folder, keep=False, listen="127.0.0.1", **settings):
        super().__init__("postgres", folder, keep)
        if not (BIN / "postgres").exists():
            raise ServerError(f"{BIN} is not there: scripts/install-deps --tests")
        self.port, self.listen = free_port(), listen
        self.data = self.dir / "data"
        self.settings = {"fsync": "off", "unix_socket_directories": "", "max_connections": 100, **settings}

    def start(self, timeout=60):
        if not self.data.exists():
            self._init()
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed; its folder is nobody else's
        args = [BIN / "postgres", "-D", self.data, "-h", self.listen, "-p", str(self.port)]
        for k, v in self.settings.items():
            args += ["-c", f"{k}={v}"]
        self._spawn(as_user(args, self.keep), cwd="/")
        self._wait_ready(lambda: self.sql("SELECT 1") == "1", timeout)
        return self

    def _init(self):
        self.data.mkdir(parents=True)
        for parent in self.data.parents:  # the other user must get through
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001 and str(parent) != "/":
                parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(self.data, USER, USER) if os.getuid() == 0 else None
        done = subprocess.run(as_user([BIN / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8",
                                       "--locale=C"]), cwd="/", capture_output=True, text=True)
        if done.returncode:
            raise ServerError(f"initdb: {done.stderr}")
        with open(self.data / "pg_hba.conf", "a") as f:
            f.write("host all all 0.0.0.0/0 trust\n")

    def uri(self, database="postgres", host="127.0.0.1", user="postgres"):
        return f"postgresql://{user}@{host}:{self.port}/{database}"

    def sql(self, text, database="postgres", timeout=20):
        done = subprocess.run(["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", text, self.uri(database)],
                              capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise ServerError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()

    def database(self, host="127.0.0.1"):
        """A new one; returns its URI."""
        name = "t" + secrets.token_hex(4)
        self.sql(f"CREATE DATABASE {name}")
        return self.uri(name, host)

    def signal_all(self, sig):
        """To the server and all of its backends."""
        pids = [self.pid] + [int(p) for p in subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.pid)],
                                                           capture_output=True, text=True).stdout.split()]
        for pid in pids:
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                pass

    def kill(self):
        """As a crash: the backends end by themselves when their parent is gone; waits for that."""
        super().kill()
        wait_for("the backends of PostgreSQL are gone", lambda: not subprocess.run(
            ["pgrep", "-f", f"^{BIN}/postgres -D {self.data}( |$)|^postgres: .*{self.port}"],
            capture_output=True).stdout, 20)
