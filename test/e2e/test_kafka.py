"""The Kafka reader alone, on a real broker that the C test starts, stops and kills itself."""
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from brokers import Kafka
from servers import ROOT, remove_tree

PROGRAM = ROOT / "build" / "asan" / "test" / "test_kafka_live"
USER, PASSWORD = "cdc", "secret-of-the-test"


@pytest.fixture(scope="session")
def kafka():
    """Configured and formatted, not started."""
    folder = Path(os.environ.get("E2E_DIR", ROOT / "build" / "e2e")) / "kafka"
    remove_tree(folder)
    k = Kafka("kafka", folder, sasl={USER: PASSWORD}, tls=True)
    k.prepare()
    yield k
    k.kill()


def newer_library():
    """A folder with librdkafka 2.6.1, the first one whose SCRAM Kafka 4 takes; the client for Python carries it."""
    folder = ROOT / "build" / "librdkafka-2.6.1"
    library = folder / "librdkafka.so.1"
    if not library.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder,
                        "confluent-kafka==2.6.1"], check=True, timeout=120)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as z:
            name = next(n for n in z.namelist() if Path(n).name.startswith("librdkafka"))
            library.with_suffix(".part").write_bytes(z.read(name))
        library.with_suffix(".part").rename(library)
    return folder


def run(kafka, **more):
    """The C test; what it wrote."""
    command = f"exec {shlex.join(kafka.prepare())} >> {shlex.quote(str(kafka.log))} 2>&1"
    env = dict(os.environ, MILVUS_CDC_REQUIRE_LIVE="1", KAFKA=kafka.address, KAFKA_SASL=kafka.sasl_address,
               KAFKA_TLS=kafka.tls_address, KAFKA_CA=str(kafka.ca), KAFKA_USER=USER, KAFKA_PASSWORD=PASSWORD,
               KAFKA_COMMAND=command, **more)
    r = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, timeout=600)
    print(r.stdout[-6000:], r.stderr[-6000:])
    assert r.returncode == 0
    return r.stdout + r.stderr


def test_reader(kafka):
    out = run(kafka)
    assert "SKIPPED" not in out or "0 test(s) SKIPPED" in out


def test_scram_to_a_new_broker(kafka):
    """SCRAM of Debian's library is refused, as test_reader sees; that of a newer one, which takes its place, works."""
    assert "librdkafka 2.6.1" in run(kafka, LD_LIBRARY_PATH=str(newer_library()), KAFKA_TEST="test_login")
