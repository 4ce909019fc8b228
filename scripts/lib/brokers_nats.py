"""A real NATS server with JetStream for tests."""
import os
import shutil
import socket
import subprocess

from servers import ROOT, Process, free_port

VERSION = "v2.9.17"  # the one that Milvus 2.3 embeds as natsmq
BIN = ROOT / "build" / "nats"


def find_nats_server():
    """$NATS_SERVER, else the Debian package's, else built from its Go module."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    given = os.environ.get("NATS_SERVER") or shutil.which("nats-server", path=path)
    if given:
        return given
    built = BIN / "nats-server"
    if not built.exists():
        go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
        if not go:
            raise FileNotFoundError("nats-server: install the Debian package nats-server, or Go")
        subprocess.run([go, "install", f"github.com/nats-io/nats-server/v2@{VERSION}"],
                       env=dict(os.environ, GOBIN=str(BIN)), check=True, timeout=600)
    return str(built)


class Nats(Process):
    """user/password, token, tls=(certificate, key): what a client must show or use. max_payload as natsmq's."""

    def __init__(self, name, folder, user=None, password=None, token=None, tls=None, jetstream=True, port=None):
        super().__init__(name, folder)
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        lines = ["host: 127.0.0.1", f"port: {self.port}", "max_payload: 8388608"]
        if jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.dir / "store"}" }}')
        if user:
            lines.append(f'authorization {{ user: "{user}", password: "{password}" }}')
        if token:
            lines.append(f'authorization {{ token: "{token}" }}')
        if tls:
            lines.append(f'tls {{ cert_file: "{tls[0]}", key_file: "{tls[1]}" }}')
        self.config = self.dir / f"{name}.conf"
        self.config.write_text("\n".join(lines) + "\n")

    def start(self, timeout=30):
        self._spawn([find_nats_server(), "-c", self.config], cwd=self.dir)
        self._wait_ready(self._greets, timeout)
        return self

    def _greets(self):
        with socket.create_connection(("127.0.0.1", self.port), 1) as s:
            s.settimeout(1)
            return s.recv(5) == b"INFO "


def make_certificate(folder):
    """A self-signed one for 127.0.0.1 and localhost: (certificate, key)."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", cert],
                   check=True, capture_output=True, timeout=60)
    return cert, key
