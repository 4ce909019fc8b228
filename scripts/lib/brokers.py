"""Kafka 4.3.1 for tests and benchmarks: nodes in KRaft mode, fetched once with Maven."""
import os
import shutil
import socket
import subprocess
from pathlib import Path

from servers import ROOT, Process, free_port

KAFKA_VERSION = "4.3.1"
KAFKA_DIR = ROOT / "build" / f"kafka-{KAFKA_VERSION}"
ARTIFACTS = (("org.apache.kafka", "kafka_2.13", KAFKA_VERSION), ("org.apache.kafka", "kafka-tools", KAFKA_VERSION),
             ("org.slf4j", "slf4j-simple", "1.7.36"))
CLUSTER_ID = "bWlsdnVzLWNkYy10ZXN0cw"  # 16 bytes in base64
POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>cdc</groupId><artifactId>{name}</artifactId><version>1</version><dependencies>
{dependencies}
</dependencies></project>
"""
DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def fetch_jars(folder, artifacts):
    """The artifacts and what they need, in folder/lib; the stamp "complete" says that nothing is missing."""
    folder = Path(folder)
    if (folder / "complete").exists():
        return folder / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / f"fetch.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    dependencies = "\n".join(DEPENDENCY.format(*a) for a in artifacts)
    (work / "pom.xml").write_text(POM.format(name=folder.name, dependencies=dependencies))
    subprocess.run(["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={work / 'lib'}"], cwd=work,
                   check=True, timeout=900)
    shutil.rmtree(folder / "lib", ignore_errors=True)
    (work / "lib").rename(folder / "lib")
    shutil.rmtree(work)
    (folder / "complete").touch()
    return folder / "lib"


def accepts(port):
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


class Kafka(Process):
    """
    address: plain text, without login. sasl: {user: password} opens a second listener, sasl_address, with PLAIN and
    SCRAM-SHA-256 and -512. tls: a folder to make a certificate authority in (ca.pem) opens tls_address.
    relay: opens relayed_port, whose clients are sent to relay_port: a test may have a relay there.
    settings: more of server.properties.
    """

    def __init__(self, name, folder, keep=False, sasl=None, tls=False, relay=False, heap_mb=512, settings=None):
        super().__init__(name, folder, keep)
        self.port, self.controller = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.sasl, self.heap_mb = sasl or {}, heap_mb
        self.sasl_port = free_port() if sasl else None
        self.sasl_address = f"127.0.0.1:{self.sasl_port}" if sasl else None
        self.tls_port = free_port() if tls else None
        self.tls_address = f"localhost:{self.tls_port}" if tls else None
        self.relayed_port, self.relay_port = (free_port(), free_port()) if relay else (None, None)
        self.ca = self.dir / "ca.pem"
        self.data, self.properties = self.dir / "data", self.dir / "server.properties"
        self.settings = settings or {}

    def _listeners(self):
        """Name, protocol, address."""
        out = [("PLAINTEXT", "PLAINTEXT", self.address), ("CONTROLLER", "PLAINTEXT", f"127.0.0.1:{self.controller}")]
        if self.sasl:
            out.append(("LOGIN", "SASL_PLAINTEXT", self.sasl_address))
        if self.tls_port:
            out.append(("TLS", "SSL", self.tls_address))
        if self.relayed_port:
            out.append(("RELAYED", "PLAINTEXT", f"127.0.0.1:{self.relayed_port}"))
        return out

    def _advertised(self):
        for name, _, address in self._listeners():
            if name != "CONTROLLER":
                yield f"{name}://{f'127.0.0.1:{self.relay_port}' if name == 'RELAYED' else address}"

    def _configure(self):
        listeners = self._listeners()
        conf = {
            "process.roles": "broker,controller", "node.id": "1", "log.dirs": self.data,
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller}", "controller.listener.names": "CONTROLLER",
            "listeners": ",".join(f"{n}://{a}" for n, _, a in listeners),
            "advertised.listeners": ",".join(self._advertised()),
            "listener.security.protocol.map": ",".join(f"{n}:{p}" for n, p, _ in listeners),
            "inter.broker.listener.name": "PLAINTEXT", "num.partitions": "1", "message.max.bytes": "10485760",
            "auto.create.topics.enable": "true", "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1", "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1", "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0", "log.retention.check.interval.ms": "1000",
            "log.initial.task.delay.ms": "500",
        }
        if self.sasl:
            users = " ".join(f'user_{u}="{p}"' for u, p in self.sasl.items())
            module = "org.apache.kafka.common.security"
            conf["sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
            conf["listener.name.login.plain.sasl.jaas.config"] = f"{module}.plain.PlainLoginModule required {users};"
            for m in ("256", "512"):
                conf[f"listener.name.login.scram-sha-{m}.sasl.jaas.config"] = \
                    f"{module}.scram.ScramLoginModule required;"
        if self.tls_port:
            conf.update({"ssl.keystore.type": "PEM", "ssl.keystore.location": self.dir / "server.pem"})
            self._make_certificate()
        conf.update(self.settings)
        self.properties.write_text("".join(f"{k}={v}\n" for k, v in conf.items()))

    def _make_certificate(self):
        def openssl(*args):
            subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, cwd=self.dir)
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 2, "-subj", "/CN=cdc-test-ca", "-keyout",
                "ca.key", "-out", self.ca)
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "server.key", "-out",
                "server.csr")
        (self.dir / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl("x509", "-req", "-in", "server.csr", "-CA", self.ca, "-CAkey", "ca.key", "-CAcreateserial", "-days", 2,
                "-extfile", "san", "-out", "server.crt")
        openssl("pkcs8", "-topk8", "-nocrypt", "-in", "server.key", "-out", "server.pk8")
        (self.dir / "server.pem").write_text("".join((self.dir / f).read_text() for f in ("server.pk8", "server.crt")))

    def _java(self, *args):
        return ["java", f"-Xmx{self.heap_mb}m", "-cp", f"{KAFKA_DIR / 'lib'}/*", *map(str, args)]

    def _format(self):
        args = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", self.properties]
        for user, password in self.sasl.items():
            for m in ("256", "512"):
                args += ["--add-scram", f"SCRAM-SHA-{m}=[name={user},password={password}]"]
        subprocess.run(self._java(*args), check=True, capture_output=True, cwd=self.dir, timeout=120)

    def prepare(self):
        """All that is needed before the first start; returns the command."""
        fetch_jars(KAFKA_DIR, ARTIFACTS)
        if not self.properties.exists():
            self._configure()
            self._format()
        return self._java("kafka.Kafka", self.properties)

    def start(self):
        self._spawn(self.prepare(), cwd=self.dir)
        for port in (self.port, self.sasl_port, self.tls_port):
            if port:
                self._wait_ready(lambda port=port: accepts(port), 120)
        return self


def cluster(folder):
    """Two brokers, not started; the first one is the controller. A topic has a copy on each, and a preferred leader
    that is back leads again at once."""
    common = {"default.replication.factor": 2, "broker.session.timeout.ms": 3000, "broker.heartbeat.interval.ms": 500,
              "leader.imbalance.check.interval.seconds": 1, "leader.imbalance.per.broker.percentage": 0}
    first, second = (Kafka(f"node{i}", Path(folder) / f"node{i}", heap_mb=256, settings=dict(common)) for i in (1, 2))
    second.settings.update({"process.roles": "broker", "node.id": 2, "listeners": f"PLAINTEXT://{second.address}",
                            "controller.quorum.voters": f"1@127.0.0.1:{first.controller}"})
    return first, second
