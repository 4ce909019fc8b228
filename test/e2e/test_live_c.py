"""C tests that need real servers: their addresses come by environment."""
import os
import subprocess

import pytest

from servers import ROOT

OTHERS = {"test_kafka_live"}  # have a test of their own, with the broker that they need
PROGRAMS = sorted(p.stem for p in (ROOT / "test" / "unit").glob("test_*_live.c") if p.stem not in OTHERS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_live(pair, name):
    program = ROOT / "build" / "asan" / "test" / name
    env = dict(os.environ, MILVUS_CDC_REQUIRE_LIVE="1", MILVUS_STANDBY=pair.target.address,
               MILVUS_PLAIN=pair.source.address, ETCD=pair.etcd.address, MILVUS_ROCKSMQ=str(pair.source.rocksmq))
    r = subprocess.run([program], env=env, capture_output=True, text=True, timeout=300)
    print(r.stdout[-4000:], r.stderr[-4000:])
    assert r.returncode == 0
    assert "SKIPPED" not in r.stdout + r.stderr or "0 test(s) SKIPPED" in r.stdout + r.stderr
