"""C tests that need real servers: their addresses come by environment."""
import os
import subprocess
from pathlib import Path

import pytest

from servers import ROOT

HERE = Path(__file__).resolve().parent
# those with a test_<module>.py of their own here need other servers
PROGRAMS = sorted(p.stem for p in (ROOT / "test" / "unit").glob("test_*_live.c")
                  if not (HERE / f"{p.stem.removesuffix('_live')}.py").exists())


@pytest.mark.parametrize("name", PROGRAMS)
def test_live(pair, name):
    program = ROOT / "build" / "asan" / "test" / name
    env = dict(os.environ, MILVUS_CDC_REQUIRE_LIVE="1", MILVUS_STANDBY=pair.target.address,
               MILVUS_PLAIN=pair.source.address, ETCD=pair.etcd.address, MILVUS_ROCKSMQ=str(pair.source.rocksmq))
    r = subprocess.run([program], env=env, capture_output=True, text=True, timeout=300)
    print(r.stdout[-4000:], r.stderr[-4000:])
    assert r.returncode == 0
    assert "SKIPPED" not in r.stdout + r.stderr or "0 test(s) SKIPPED" in r.stdout + r.stderr
