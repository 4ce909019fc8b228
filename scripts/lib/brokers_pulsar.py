"""Apache Pulsar 4.0.7 standalone for the tests: its jars come from Maven once, into build/pulsar-4.0.7."""
import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request

from servers import ROOT, Process, ServerError, free_port, http_get, remove_tree

VERSION = "4.0.7"
HOME = ROOT / "build" / f"pulsar-{VERSION}"
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>milvus-cdc</groupId><artifactId>pulsar-for-tests</artifactId><version>1</version>
<dependencies><dependency><groupId>org.apache.pulsar</groupId><artifactId>pulsar-broker</artifactId>
<version>{VERSION}</version></dependency></dependencies></project>
"""
OPENS = ("java.base/java.lang java.base/java.io java.base/java.nio java.base/java.util.zip java.base/sun.nio.ch "
         "java.base/jdk.internal.misc java.management/sun.management").split()


def fetch():
    """The jars (235 MB), once; a fetch that was cut short starts again."""
    if (HOME / "complete").exists():
        return
    if not shutil.which("mvn") or not shutil.which("java"):
        raise ServerError("Pulsar needs maven and Java 17: apt-get install maven openjdk-17-jre-headless")
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "pom.xml").write_text(POM)
    subprocess.run(["mvn", "-q", "-B", "-f", str(HOME / "pom.xml"), "dependency:copy-dependencies",
                    f"-DoutputDirectory={HOME / 'lib'}"], check=True, timeout=570)
    (HOME / "complete").touch()


def make_token(folder, role):
    """A file with a secret, and a token that it signs (JWT, HS256)."""
    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    secret = os.urandom(32)
    (folder / "secret.key").write_bytes(secret)
    text = part(b'{"alg":"HS256"}') + "." + part(json.dumps({"sub": role}).encode())
    return folder / "secret.key", text + "." + part(hmac.new(secret, text.encode(), hashlib.sha256).digest())


def make_tls(folder):
    """An authority, and a certificate of it for localhost and 127.0.0.1: (ca, cert, key)."""
    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "30",
            "-subj", "/CN=test authority")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key1.pem", "-out", "req.pem", "-subj", "/CN=localhost")
    openssl("pkcs8", "-topk8", "-nocrypt", "-in", "key1.pem", "-out", "key.pem")
    (folder / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "req.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
            "cert.pem", "-days", "30", "-extfile", "ext")
    return folder / "ca.pem", folder / "cert.pem", folder / "key.pem"


class Pulsar(Process):
    """
    One broker, bookie and metadata store in a process of 512 MB heap. Ready in some 10 s. settings: keys of
    standalone.conf; the default keeps nothing longer than its subscriptions need. token, secret: from make_token(), for
    a broker that demands one. tls: from make_tls(), for a second port. relay: opens relayed_port, whose clients are
    sent to relay_port: a test may have a relay there.
    """

    def __init__(self, folder, name="pulsar", keep=False, token=None, secret=None, tls=None, relay=False, **settings):
        super().__init__(name, folder, keep)
        if secret:
            provider = "org.apache.pulsar.broker.authentication.AuthenticationProviderToken"
            settings.update(authenticationEnabled="true", authorizationEnabled="true", authenticationProviders=provider,
                            tokenSecretKey=f"file://{secret}", superUserRoles="admin",
                            brokerClientAuthenticationPlugin="org.apache.pulsar.client.impl.auth.AuthenticationToken",
                            brokerClientAuthenticationParameters=f"token:{token}")
        if tls:
            self.tls_port = free_port()
            self.tls_address = f"pulsar+ssl://127.0.0.1:{self.tls_port}"
            settings.update(brokerServicePortTls=self.tls_port, tlsTrustCertsFilePath=tls[0],
                            tlsCertificateFilePath=tls[1], tlsKeyFilePath=tls[2])
        self.port, self.web_port, self.bookie_port = free_port(), free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.web = f"http://127.0.0.1:{self.web_port}"
        self.token = token
        if relay:
            self.relayed_port, self.relay_port = free_port(), free_port()
            settings.update(internalListenerName="direct",
                            bindAddresses=f"relayed:pulsar://127.0.0.1:{self.relayed_port}",
                            advertisedListeners=f"direct:pulsar://127.0.0.1:{self.port},"
                                                f"relayed:pulsar://127.0.0.1:{self.relay_port}")
        self.settings = {
            "brokerServicePort": self.port, "webServicePort": self.web_port, "bindAddress": "127.0.0.1",
            "advertisedAddress": "127.0.0.1", "clusterName": "standalone", "managedLedgerDefaultEnsembleSize": 1,
            "managedLedgerDefaultWriteQuorum": 1, "managedLedgerDefaultAckQuorum": 1,
            "allowAutoTopicCreationType": "non-partitioned", "functionsWorkerEnabled": "false",
            "brokerDeleteInactiveTopicsEnabled": "false", "loadBalancerEnabled": "false",
            # entries go at once when they are acknowledged and their ledger is closed
            "defaultRetentionTimeInMinutes": 0, "defaultRetentionSizeInMB": 0,
            "journalSyncData": "false", "dbStorage_writeCacheMaxSizeMb": 32, "dbStorage_readAheadCacheMaxSizeMb": 32,
            "numHttpServerThreads": 4, "managedLedgerCacheSizeMB": 64, "brokerShutdownTimeoutMs": 1000,
            **settings,
        }

    def start(self, timeout=150):
        fetch()
        conf = self.dir / "standalone.conf"
        conf.write_text("".join(f"{k}={v}\n" for k, v in self.settings.items()))
        args = ["java", *[a for o in OPENS for a in ("--add-opens", f"{o}=ALL-UNNAMED")],
                "-Dio.netty.tryReflectionSetAccessible=true", "-Xmx512m", "-XX:MaxDirectMemorySize=512m",
                "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError",
                "-Dpulsar.allocator.exit_on_oom=true", "-cp", f"{HOME / 'lib'}/*",
                "org.apache.pulsar.PulsarStandaloneStarter", "-c", conf, "-nfw", "-nss",
                "--metadata-dir", self.dir / "metadata", "--bookkeeper-dir", self.dir / "bookkeeper",
                "--bookkeeper-port", self.bookie_port]
        self._spawn(args, cwd=self.dir)
        self._wait_ready(self._answers, timeout)
        return self

    def _answers(self):
        try:
            if self.token:
                return "public/default" in self.admin("GET", "namespaces/public")
            return "public/default" in http_get(f"{self.web}/admin/v2/namespaces/public")
        except (OSError, ServerError):
            return False

    def admin(self, method, path, body=None, timeout=20):
        """The admin REST interface; path below /admin/v2/. Returns the text."""
        data = None if body is None else json.dumps(body).encode()
        req = urllib.request.Request(f"{self.web}/admin/v2/{path}", data=data, method=method,
                                     headers={"Content-Type": "application/json"})
        if self.token:
            req.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(req, timeout=timeout) as r:
                return r.read().decode()
        except urllib.error.HTTPError as e:
            raise ServerError(f"{method} {path}: {e.code} {e.read().decode()[:300]}") from None

    def remove(self):
        self.kill()
        remove_tree(self.dir)
