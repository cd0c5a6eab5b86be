"""The benchmark over the size of the training set, in its smallest form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import blind_signals

    yield blind_signals
    sys.modules.pop("blind_signals", None)


def test_the_benchmark_writes_runs_of_equal_parameters_and_goes_on_where_it_was(benchmark, tmp_path, capsys):
    words = (
        "--choices standard,complex --frames 40,none --seconds 0.05 --seeds 1 --rates 1 --width 16 --length 256 "
        f"--batch 8 --val_frames 1 --folder {tmp_path / 'runs'} --out {tmp_path / 'out.json'}"
    ).split()
    benchmark.main(words)
    found = json.loads((tmp_path / "out.json").read_text())
    sizes = [choice["parameters"] for choice in found["choices"].values()]
    assert max(sizes) / min(sizes) < 1.35 and len(found["runs"]) == 4
    assert {(run["choice"], run["train_frames"]) for run in found["runs"]} == {
        ("standard", 40), ("standard", None), ("complex", 40), ("complex", None)
    }  # fmt: skip
    assert all(len(run["accuracy"]) == len(run["snr"]) == 8 and run["cpu_seconds"] > 0 for run in found["runs"])
    benchmark.main(words)
    again = json.loads((tmp_path / "out.json").read_text())
    assert again["runs"] == found["runs"]
