"""The Kafka reader alone while partitions change their leader, on two brokers that the C test starts and kills."""
import os
import shlex
import subprocess

from brokers import cluster
from conftest import FOLDER
from servers import ROOT, remove_tree

PROGRAM = ROOT / "build" / "asan" / "test" / "test_kafka_cluster_live"


def test_leaders_change():
    folder = FOLDER.with_name(f"{FOLDER.name}-kafka-cluster")  # pair empties FOLDER
    remove_tree(folder)
    nodes = cluster(folder)
    env = dict(os.environ, MILVUS_CDC_REQUIRE_LIVE="1", KAFKA_NODES=",".join(n.address for n in nodes))
    for i, n in enumerate(nodes, 1):
        env[f"KAFKA_NODE_{i}"] = f"exec {shlex.join(n.prepare())} >> {shlex.quote(str(n.log))} 2>&1"
    r = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, timeout=300)
    print(r.stdout[-6000:], r.stderr[-6000:])
    assert r.returncode == 0
