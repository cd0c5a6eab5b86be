"""The benchmark for a card, in its smallest form on a CPU: every section runs, and what fails loses nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu
import gpu_contest
from blockyard.bench import roofline
from blockyard.bench.roofline import Work

SMALL = ["--tiny", "--device", "cpu", "--rounds", "1", "--round-seconds", "0.0001"]


@pytest.fixture(autouse=True)
def small_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_SIDES", (64,))
    monkeypatch.setattr(roofline, "_SIZES", (1 << 16, 1 << 18))
    monkeypatch.setattr(roofline, "_ROUND_SECONDS", 1e-4)


def test_every_section_runs_and_says_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main([*SMALL, "--out", str(out)]) == 0
    record: dict[str, Any] = json.loads(out.read_text())
    assert record["schema"] == "blockyard.gpu/1" and record["tiny"] and record["environment"]["device"]
    assert record["sections"].keys() == gpu.SECTIONS.keys()
    for name, found in record["sections"].items():
        assert found["trouble"] is None and len(found["rows"]) > 1, name
        for row in found["rows"]:
            assert "trouble" not in row, row
            assert row["wall_seconds"]["median"] > 0 and row["share"]["median"] > 0 and row["limit"]
    peers = {row["what"] for found in record["sections"].values() for row in found["rows"]}
    assert {"torch's layers, by AdamW", "flash SDPA", "SDPA, whole heads", "all experts", "dense mask"} <= peers
    assert "MFU" in capsys.readouterr().out


def test_a_section_that_ends_is_a_line_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(bench: gpu_contest.Bench) -> Iterator[str]:
        yield "begins"
        bench.rows.append({"what": "measured before"})
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate all of it")

    monkeypatch.setitem(gpu.SECTIONS, "vein", ends)
    out = tmp_path / "gpu.json"
    assert gpu.main([*SMALL, "--sections", "vein,moe", "--out", str(out)]) == 1
    found = json.loads(out.read_text())["sections"]
    assert found["vein"]["trouble"] == "OutOfMemoryError: CUDA out of memory."
    assert found["vein"]["rows"] == [{"what": "measured before"}] and len(found["moe"]["rows"]) == 5
    assert "ended early: vein" in capsys.readouterr().out


def test_a_contestant_that_fails_leaves_the_others_to_their_contest() -> None:
    bench = gpu_contest.Bench(torch.device("cpu"), torch.float32, gpu_contest.TINY, 1, 1e-4, False)

    def fails() -> None:
        raise RuntimeError("no kernel\nfor this")

    bench.contest({"a": fails, "b": lambda: None}, {"b": Work(1.0, 1.0)}, {"length": 3})
    assert bench.rows[0] == {"length": 3, "what": "a", "trouble": "RuntimeError: no kernel"}
    assert bench.rows[1]["what"] == bench.rows[1]["reference"] == "b"


@pytest.mark.parametrize(
    ("words", "said"), [("--sections flux", "'flux' is not known"), ("--device cuda:99", "device='cuda:99'")]
)
def test_what_is_not_there_is_refused_in_a_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(words.split()) == 2
    assert said in capsys.readouterr().out
