"""The benchmark itself; scripts/bench prepares what it needs."""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench_parts as parts
import bench_snapshot
import go_cdc
import queues
import ui
from compare import Side
from servers import ROOT, Etcd, Milvus, remove_tree

FOLDER = ROOT / "build" / "bench"
RESULT = ROOT / "build" / "bench.json"
QUEUES = ("rocksmq", "kafka", "pulsar", "natsmq")
PARTS = ("large", "small", "mixed", "portable", "far", "lag", "idle", "raw", "standby", "snapshot", "go")
# What the issue asks for, for one channel and rows of 768 dimensions.
GOALS = {"large MB/s": ">= 300, or 70 % of raw", "large CPU s/GB": "<= 2.5", "large peak MiB": "<= 64",
         "lag10 p50 ms": "<= 15", "lag10 p99 ms": "<= 60", "idle100 CPU %": "< 1",
         "far200 flow MB/s": ">= 80 % of far0", "portable large MB/s": ">= 150", "portable large CPU s/GB": "<= 4",
         "portable small rows/s": ">= 300000", "snapshot peak MiB": "<= 96", "snapshot s": "beside straight s"}


class Lab:
    """One source on one queue, and what is measured on it."""

    def __init__(self, queue, args):
        self.args, self.folder, self.figures = args, FOLDER / queue, {}
        self.etcd = Etcd(self.folder / "etcd").start()
        self.queue = queues.make(queue, self.folder).start()
        self.source = Milvus("source", self.folder / "source", etcd=self.etcd.address, queue=self.queue).start()
        self.side = Side("source", self.source.address)
        self.serial = 0
        self.topic, self.large = None, None  # of the large rows of one channel: topic, (collection, rows)

    def name(self, text):
        self.serial += 1
        return f"bench_{text}_{self.serial}"

    def put(self, key, values):
        """Values of the runs of one figure."""
        self.figures.setdefault(key, []).extend(values if isinstance(values, list) else [values])

    def close(self):
        for server in (self.source, self.queue.broker, self.etcd):
            if server:
                server.stop()


def measure(lab, args):
    for channels in args.channels:
        for part in [p for p in args.parts if p in ("large", "small", "mixed")]:
            parts.catch_up_part(lab, part, channels)
    for part, fn in (("portable", parts.portable_part), ("far", parts.far_part), ("raw", parts.raw_part), ("standby", parts.standby_part),
                     ("snapshot", bench_snapshot.snapshot_part),
                     ("lag", parts.lag_part), ("go", parts.go_part), ("idle", parts.idle_part)):
        if part in args.parts:
            fn(lab)


def table(results):
    """One line for each figure: the median of each queue, and the range of the runs."""
    keys = list(dict.fromkeys(k for r in results.values() for k in r))
    print(f"\n{'':26}" + "".join(f"{q:>24}" for q in results))
    for key in keys:
        cells = []
        for r in results.values():
            v = r.get(key)
            cells.append("" if not v else f"{statistics.median(v):.1f} ({min(v):.1f}-{max(v):.1f})" if len(v) > 1
                         else f"{v[0]:.1f}")
        print(f"{key:26}" + "".join(f"{c:>24}" for c in cells) + f"   {GOALS.get(key, '')}")


def machine():
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {"processor": model[0] if model else platform.machine(), "cores": len(model),
            "commit": commit.stdout.strip()}


def program(text):
    path = Path(text).resolve()  # the daemon gets a working directory of its own
    if not os.access(path, os.X_OK) or not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a program")
    return str(path)


def main():
    def words(allowed):
        def take(text):
            chosen = text.split(",")
            bad = [w for w in chosen if w not in allowed]
            if bad:
                raise argparse.ArgumentTypeError(f"{bad[0]} is not one of {', '.join(allowed)}")
            return chosen
        return take
    p = argparse.ArgumentParser()
    p.add_argument("--queues", type=words(QUEUES), default=list(QUEUES))
    p.add_argument("--parts", type=words(PARTS), help="all of " + ", ".join(PARTS) + "; go only with --go")
    p.add_argument("--channels", type=lambda t: [int(c) for c in t.split(",")], default=[1, 4, 16])
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--gb", type=float, default=1.0)
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--size", type=int, default=1_000_000)
    p.add_argument("--seconds", type=int, default=30)
    p.add_argument("--go", metavar="PATH", type=program,
                   help="the Go implementation's binary, measured beside ours (part go; on " +
                   " and ".join(parts.GO_QUEUES) + "). Note: " + go_cdc.KNOWN_FAULT)
    args = p.parse_args()
    args.parts = args.parts or [part for part in PARTS if part != "go" or args.go]
    if ("go" in args.parts) != bool(args.go):
        p.error("--go PATH and the part go need each other")
    remove_tree(FOLDER)
    results = {}
    for queue in args.queues:
        ui.title(f"Source on {queue}")
        lab = Lab(queue, args)
        try:
            measure(lab, args)
        finally:
            results[queue] = lab.figures
            lab.close()
            RESULT.write_text(json.dumps({"machine": machine(), "args": vars(args), "goals": GOALS,
                                          "results": results}, indent=1))
    table(results)
    print(f"\nall figures: {RESULT}")


if __name__ == "__main__":
    sys.exit(main())
