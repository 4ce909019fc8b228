"""The Kafka reader alone, on a real broker that the C test starts, stops and kills itself."""
import os
import shlex
import subprocess
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


def test_reader(kafka):
    command = f"exec {shlex.join(kafka.prepare())} >> {shlex.quote(str(kafka.log))} 2>&1"
    env = dict(os.environ, MILVUS_CDC_REQUIRE_LIVE="1", KAFKA=kafka.address, KAFKA_SASL=kafka.sasl_address,
               KAFKA_TLS=kafka.tls_address, KAFKA_CA=str(kafka.ca), KAFKA_USER=USER, KAFKA_PASSWORD=PASSWORD,
               KAFKA_COMMAND=command)
    r = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, timeout=600)
    print(r.stdout[-6000:], r.stderr[-6000:])
    assert r.returncode == 0
    assert "SKIPPED" not in r.stdout + r.stderr or "0 test(s) SKIPPED" in r.stdout + r.stderr
