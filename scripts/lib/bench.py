"""The benchmark itself; scripts/bench prepares what it needs."""
import argparse
import json
import os
import statistics
import sys
import time

import numpy as np
from pymilvus import Collection, CollectionSchema, DataType, FieldSchema

import ui
from compare import Side
from servers import ROOT, Cdc, Etcd, Milvus, Process, free_port, http_get, remove_tree, wait_for

FOLDER = ROOT / "build" / "bench"
RESULT = ROOT / "build" / "bench.json"
BATCH = 1000
LAG_SECONDS, LAG_RATE, IDLE_SECONDS = 60, 10, 30
GOALS = {"MB/s": "200", "CPU s/GB": "3", "peak MiB": "64", "lag p50 ms": "60", "lag p99 ms": "", "idle CPU %": "1"}


class Sink(Process):
    """The stand-in target."""

    def __init__(self, folder, delay_ms=0, channels=4):
        super().__init__("sinkd", folder)
        self.port, self.stats_port, self.delay_ms, self.channels = free_port(), free_port(), delay_ms, channels
        self.uri = f"http://127.0.0.1:{self.port}"
        self.stats_url = f"http://127.0.0.1:{self.stats_port}"

    def start(self):
        self._spawn([ROOT / "build" / "tools" / "sinkd", "--port", self.port, "--stats-port", self.stats_port,
                     "--delay-ms", self.delay_ms, "--channels", self.channels])
        self._wait_ready(self.stats, 10)
        return self

    def stats(self):
        return json.loads(http_get(self.stats_url + "/stats", 10))

    def reset(self):
        http_get(self.stats_url + "/reset")


def cpu_seconds(pid):
    """User and system time of all threads."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no VmHWM")


def schema(dim):
    return CollectionSchema([FieldSchema("id", DataType.INT64, is_primary=True),
                             FieldSchema("v", DataType.FLOAT_VECTOR, dim=dim)])


def fill(side, name, args):
    rnd = np.random.default_rng(1)
    c = Collection(name, schema(args.dim), using=side.alias(), shards_num=args.shards)
    with ui.Bar("source: insert", args.rows) as bar:
        for start in range(0, args.rows, BATCH):
            n = min(BATCH, args.rows - start)
            c.insert([list(range(start, start + n)), rnd.random((n, args.dim), dtype=np.float32)])
            bar.at(start + n, "rows")
    ui.ok(f"source: {ui.number(args.rows)} rows of {args.dim} dimensions wait in the log ({bar.seconds:.0f} s)")


def catch_up(cdc, sink, name, args):
    """From the create call until the stand-in has the last row."""
    sink.reset()
    before, started = cpu_seconds(cdc.pid), time.monotonic()
    began_us = time.time() * 1e6
    task = cdc.create(sink, [{"name": name, "use_start_position": True}])
    with ui.Bar("catching up", args.rows) as bar:
        def there():
            rows = sink.stats()["rows"]
            bar.at(rows, "rows")
            return rows >= args.rows
        wait_for("all rows", there, 600, 0.05)
    s = sink.stats()
    cpu = cpu_seconds(cdc.pid) - before
    assert s["rows"] == args.rows, f"{s['rows']} rows arrived instead of {args.rows}"
    seconds = (s["last_us"] - began_us) / 1e6
    cdc.api("delete", task_id=task)
    return {"seconds": seconds, "wall_seconds": time.monotonic() - started, "bytes": s["bytes"],
            "requests": s["requests"], "messages": s["messages"], "MB/s": s["bytes"] / 1e6 / seconds,
            "CPU s": cpu, "CPU s/GB": cpu / (s["bytes"] / 1e9), "peak MiB": peak_mib(cdc.pid)}


def lag(cdc, sink, side, name):
    """Single-row inserts on one shard: the n-th sent is the n-th to arrive."""
    c = Collection(name, schema(8), using=side.alias(), shards_num=1)
    task = cdc.create(sink, [name])
    c.insert([[0], [[0.0] * 8]])
    wait_for("the first row", lambda: sink.stats()["rows"] >= 1 and sink.stats()["arrivals_us"], 60)
    time.sleep(2)
    sink.reset()
    sent, start = [], time.monotonic()
    before = cpu_seconds(cdc.pid)
    total = LAG_SECONDS * LAG_RATE
    with ui.Bar("lag", total) as bar:
        for i in range(total):
            time.sleep(max(0, start + i / LAG_RATE - time.monotonic()))
            sent.append(time.time() * 1e6)
            c.insert([[i + 1], [[0.0] * 8]])
            bar.at(i + 1, "rows")
        wait_for("all rows", lambda: sink.stats()["rows"] >= total, 60)
    cpu = (cpu_seconds(cdc.pid) - before) / (time.monotonic() - start)
    arrived = sink.stats()["arrivals_us"]
    assert len(arrived) == total, f"{len(arrived)} messages for {total} rows"
    ms = sorted((a - s) / 1000 for a, s in zip(arrived, sent))
    return task, {"lag p50 ms": statistics.median(ms), "lag p99 ms": ms[int(len(ms) * 0.99) - 1],
                  "lag max ms": ms[-1], "lag CPU %": cpu * 100}


def idle(cdc):
    """With one task, and a source on which nothing happens but its own ticks."""
    before, started = cpu_seconds(cdc.pid), time.monotonic()
    with ui.Bar("idle", IDLE_SECONDS) as bar:
        while bar.seconds < IDLE_SECONDS:
            bar.at(int(bar.seconds), "s")
            time.sleep(0.2)
    return {"idle CPU %": 100 * (cpu_seconds(cdc.pid) - before) / (time.monotonic() - started)}


def one_run(number, source, side, name, args):
    """A fresh daemon for each figure, so that the peak is that of the catch-up."""
    result = {}
    for part in ("catch_up", "lag"):
        sink = Sink(FOLDER / f"sink{number}{part}", args.delay_ms).start()
        cdc = Cdc(FOLDER / f"cdc{number}{part}", source).start()
        try:
            if part == "catch_up":
                result.update(catch_up(cdc, sink, name, args))
            else:
                task, figures = lag(cdc, sink, side, f"bench_lag{number}")
                result.update(figures)
                result.update(idle(cdc))
                cdc.api("delete", task_id=task)
        finally:
            cdc.stop()
            sink.stop()
    return result


def table(runs):
    print(f"\n{'':12}" + "".join(f"{f'run {i + 1}':>10}" for i in range(len(runs))) + f"{'median':>10}{'goal':>8}")
    for key, goal in GOALS.items():
        values = [r[key] for r in runs]
        print(f"{key:12}" + "".join(f"{v:10.2f}" for v in values) + f"{statistics.median(values):10.2f}{goal:>8}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--dim", type=int, default=768)
    p.add_argument("--shards", type=int, default=1)
    p.add_argument("--delay-ms", type=int, default=0)
    args = p.parse_args()
    remove_tree(FOLDER)
    etcd = Etcd(FOLDER / "etcd").start()
    source = Milvus("source", FOLDER / "source", etcd=etcd.address).start()
    side = Side("source", source.address)
    ui.ok(f"source: Milvus 2.3.5 on RocksMQ, {source.address}")
    name = "bench_rows"
    fill(side, name, args)
    runs = []
    for i in range(args.runs):
        runs.append(one_run(i, source, side, name, args))
        ui.ok(f"run {i + 1}: " + ", ".join(f"{k} {runs[-1][k]:.1f}" for k in GOALS))
    RESULT.write_text(json.dumps({"args": vars(args), "goals": GOALS, "runs": runs}, indent=1))
    table(runs)
    print(f"\nall figures: {RESULT}")


if __name__ == "__main__":
    sys.exit(main())
