"""Samples per second of `blockyard classify` with a signal model: reading, scaling, the model, calibration, rows.

    python benchmarks/classify_throughput.py [--run DIR] [--samples 20000000] [--threads 2] [--out FILE.json]

Every sample lies inside a classified frame, at the input's own rate, with detection off. Without --run the default
model is built untrained, with a calibration of random numbers, which costs what a trained one does. CPU time is of all
threads together; wall time says what two cores made of it, on a machine that nobody else uses.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import blockyard
from blockyard.cli.commands.classify import written
from blockyard.tasks.kind import ClassifyOptions
from blockyard.tasks.run import Trained
from blockyard.tasks.signal.calibration import Calibration
from blockyard.tasks.signal.frames import frame_rows
from blockyard.tasks.signal.model import SignalConfig, SignalTransformer
from blockyard.tasks.signal.recordings.opening import RecordingOptions, open_recordings
from blockyard.tasks.signal.recordings.raw import raw_type
from blockyard.tasks.signal.session import Session
from blockyard.tasks.signal.task import Signal, SignalAssets


def untrained() -> Trained:
    """The default model with random weights, and a calibration as wide as a trained one's."""
    kind = Signal()
    data = kind.data_config()
    assets = SignalAssets(data.classes, data.length, 0, blind=True)
    config = kind.fit(SignalConfig(), assets)
    torch.manual_seed(0)
    model = SignalTransformer(config).eval()
    with torch.inference_mode():
        output = model(torch.randn(2, data.length, dtype=torch.complex64))
    width, count = output.features.shape[-1], len(data.classes)
    means = tuple(map(tuple, torch.randn(count, width).tolist()))
    precision = tuple(map(tuple, torch.eye(width).tolist()))
    assets = SignalAssets(
        data.classes, data.length, 0, blind=True,
        calibration=Calibration(data.classes, 1.0, means, precision, (1.0, 1.0, -2.0)),
    )  # fmt: skip

    class Run:
        pass

    run: Any = Run()
    run.data, run.model, run.kind = data, config, kind
    return Trained(model, assets, run)


def samples_of(count: int, kind: str) -> bytes:
    """Noise in a raw format; what it is makes no difference to the time."""
    drawn = np.random.default_rng(0)
    if kind == "cf32":
        return drawn.normal(size=2 * count).astype("<f4").tobytes()
    if kind == "cu8":
        return np.clip(drawn.normal(128, 30, 2 * count), 0, 255).astype("u1").tobytes()
    return np.clip(drawn.normal(0, 3000, 2 * count), -32768, 32767).astype("<i2").tobytes()


def measure(trained: Trained, path: Path, kind: str, format: str, *, detect: bool = False) -> dict[str, Any]:
    """Classify a file and write the rows into memory that is thrown away."""
    asked = RecordingOptions(kind, sample_rate=2e6)
    options = ClassifyOptions(format=format, detect=detect)  # type: ignore[arg-type]
    (recording,) = open_recordings(path, asked)
    cpu, wall, size = time.process_time(), time.perf_counter(), 0
    with Session(trained, recording, asked, options, lambda *_: None, []) as session:
        if detect:
            from blockyard.tasks.signal.bursts import burst_rows

            rows = burst_rows(session)
        else:
            rows = frame_rows(session)
        for text in written(rows, format):
            size += len(text.encode())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    count = recording.count or 0
    return {
        "input": kind, "rows as": "bursts" if detect else format, "samples": count, "bytes of rows": size,
        "samples per CPU-second": round(count / cpu), "samples per second": round(count / wall),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="folder of a trained run; the default model, untrained, when not given")
    parser.add_argument("--samples", type=int, default=20_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="write the figures there, too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.run is None:
        trained = untrained()
    else:
        from blockyard.tasks.run import load_run

        trained = load_run(Path(given.run))
    found = []
    with tempfile.TemporaryDirectory() as folder, io.StringIO() as silence:
        stderr, sys.stderr = sys.stderr, silence
        try:
            for kind in ("cu8", "cs16", "cf32"):
                raw_type(kind)
                path = Path(folder) / f"x.{kind}"
                path.write_bytes(samples_of(given.samples, kind))
                for format in ("table", "csv", "json") if kind == "cu8" else ("csv",):
                    found.append(measure(trained, path, kind, format))
                if kind == "cu8":
                    found.append(measure(trained, path, kind, "csv", detect=True))
                path.unlink()
        finally:
            sys.stderr = stderr
    record = {
        "what": "classify: samples per second", "blockyard": blockyard.__version__, "torch": torch.__version__,
        "threads": given.threads, "frame": trained.assets.length,
        "parameters": sum(p.numel() for p in trained.model.parameters()), "figures": found,
    }  # fmt: skip
    text = json.dumps(record, indent=2)
    print(text)
    if given.out is not None:
        Path(given.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
