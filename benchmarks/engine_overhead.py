"""What an engine costs per worker: from asking for one that does nothing to its end, local processes beside Ray.

    python benchmarks/engine_overhead.py [OUT.json] [--rounds 7]

A cluster of one machine is started here (extra `ray`); its own start is told apart. Engines take turns. Wall seconds,
since a worker on a cluster spends its time in processes of others; medians, and Ray's beside the local one of the same
round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

from blockyard.compare.engine import EngineConfig
from blockyard.compare.launch import launcher
from blockyard.compare.processes import Workers
from blockyard.machine.processor import processor_name


def seconds(config: EngineConfig, out: Path) -> float:
    start = time.perf_counter()
    # The comparison's own worker, with no run to train: it imports torch, as every worker does.
    request = {"budget": {"unit": "tokens", "value": 1.0}, "threads": 1, "out": None, "jobs": []}
    with launcher(config, "blockyard.compare.worker", out) as launch:
        Workers(launch, [request], lambda message: None).wait()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    local, ray = EngineConfig(), EngineConfig(engine="ray", ray_address="local")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        start = seconds(ray, Path(folder))
        print(f"first worker of Ray, with the start of the cluster: {start:.2f} s")
        for _ in range(given.rounds):
            rows.append({"local": seconds(local, Path(folder)), "ray": seconds(ray, Path(folder))})
            print(f"local {rows[-1]['local']:.2f} s, ray {rows[-1]['ray']:.2f} s")
    found = {
        "processor": processor_name(),
        "python": platform.python_version(),
        "start_seconds": start,
        "rows": rows,
        "local": statistics.median(row["local"] for row in rows),
        "ray": statistics.median(row["ray"] for row in rows),
        "difference": statistics.median(row["ray"] - row["local"] for row in rows),
    }
    print(f"median: local {found['local']:.2f} s, ray {found['ray']:.2f} s, difference {found['difference']:.2f} s")
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
