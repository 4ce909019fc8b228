"""The servers' own helpers, where several runs of the tests share a machine."""
import subprocess
import sys
from pathlib import Path

import servers

CLAIM = "import sys; sys.path.insert(0, sys.argv[1]); import servers; print(servers.claim_port(int(sys.argv[2])))"


def claimed_by_another_run(port):
    folder = Path(servers.__file__).parent
    out = subprocess.run([sys.executable, "-c", CLAIM, str(folder), str(port)], capture_output=True, text=True, check=True)
    return out.stdout.strip() == "True"


def test_a_port_is_given_to_one_run():
    """Also before anybody listens there: two Milvus servers, started in the same second, had one port."""
    port = servers.free_port()
    assert servers.port_is_free(port)
    assert not claimed_by_another_run(port)
    servers._claims.clear()  # as at the end of the process
    assert claimed_by_another_run(port)
