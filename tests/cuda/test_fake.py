"""Every path of a CUDA device on one that computes nothing: no tensor is left on the CPU, none is mixed with it, and no
value is read where nobody expects it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.on_fake import CASES, SLOW
from tests.fixtures.fake_cuda import compile_card

ROOT = Path(__file__).parents[2]
# Where the device is waited for, or told something, and why that must be.
WAITS = {
    "generation/decode.py:_forward": "the tokens that were drawn, and which rows have gone: once a step",
    "generation/reading.py:keep_last": "where rows of different lengths begin: once a step",
    "generation/sampling.py:read": "the tokens: once a step for all rows",
    "moe/dispatch.py:plan": "how long each expert's rows are: for impl=segment and padded, and experts of other kinds",
    "moe/mixture.py:_loop": "impl=loop is the definition, expert by expert",
    "protocol/cache_sinks.py:_places_of_first": "which tokens of padded rows are first: until they have come",
    "spectral/basis.py:kernel_basis": "made once for each size",
    "spectral/causal.py:forward": "how many tokens came to each padded row: branches and slots follow from it",
    "spectral/encoder.py:forward": "how long each padded row's transform is",
    "tasks/price/heads.py:_made": "made once for each list of levels",
    "vein/compensator.py:forward": "correction=gather computes the tokens that need it alone",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, trouble = compile_card(tmp_path_factory.mktemp("card"))
    if made is None:
        pytest.skip(trouble)
    return made


def run(library: Path, which: str) -> dict[str, tuple[str | None, list[list[str]]]]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.on_fake", str(library), which],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-2000:]
    rows = map(json.loads, done.stdout.splitlines())
    return {row["name"]: (row["trouble"], row["noted"]) for row in rows}


def check(found: dict[str, tuple[str | None, list[list[str]]]]) -> set[str]:
    """Nothing broke, and nothing waits but what is named; returns the places that wait."""
    assert [f"{name}: {trouble}" for name, (trouble, _) in found.items() if trouble] == []
    noted = [(name, *each) for name, (_, places) in found.items() for each in places]
    assert [each for each in noted if each[2] not in WAITS] == []
    return {place for _, _, place, _ in noted}


def test_no_path_mixes_devices_or_waits_without_a_reason(library: Path) -> None:
    found = run(library, "fast")
    assert found.keys() == CASES.keys() - SLOW
    check(found)


@pytest.mark.slow
def test_nor_does_any_model_and_every_wait_that_is_named_is_one(library: Path) -> None:
    found = {**run(library, "fast"), **run(library, "slow")}
    assert found.keys() == CASES.keys()
    assert check(found) == WAITS.keys()
