"""Small inputs from public bug reports, on price files, texts and recordings, as given: each program ends with 0.

Their import lines name modules as they were when they were written; RENAMED says where those are now, and nothing else
of them is changed. They lie beside the checkout and are not part of it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blockyard

SHARED = [Path(os.environ["BLOCKYARD_SHARED"])] if "BLOCKYARD_SHARED" in os.environ else []
SHARED += [parent / "shared" for parent in Path(__file__).resolve().parents]
FOLDER = next((root / "cases" for root in SHARED if (root / "cases").is_dir()), None)
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs the cases, in shared/cases beside the checkout")

# Old module -> new; the longer names first, as one may begin with another.
RENAMED = {
    "blockyard.data.prices.windows": "blockyard.tasks.price.data.windows",
    "blockyard.data.prices.reader": "blockyard.tasks.price.data.reader",
    "blockyard.data.prices.config": "blockyard.tasks.price.data.config",
    "blockyard.data.signals.files": "blockyard.tasks.signal.files",
    "blockyard.data.readers": "blockyard.text.readers",
    "blockyard.data.tokenizer": "blockyard.text.tokenizer",
    "blockyard.data.bpe": "blockyard.text.bpe",
    "blockyard.forecasting.forecaster": "blockyard.tasks.price.forecaster",
}
PRICES = ("01", "02", "04", "05", "06", "08", "09", "10", "11", "12", "17", "18", "70", "74", "75", "76", "77", "87",
          "88")  # fmt: skip
TEXTS = ["30", "32", "33", "34", "35", "36", "37", "39"]
SIGNALS = ("20", "23", "24", "26", "29")
QUICK = (*PRICES, *TEXTS, *SIGNALS)
SLOW = ("28", "72", "78", "89")
# It asks for a refusal of what is read now: UTF-16 with a mark, and a compressed file.
READ_NOW = {"31": ["read: 'ein Text mit Umlauten äöü", "read: 'x"]}


def ran(number: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a case with its import lines renamed."""
    assert FOLDER is not None
    (source,) = FOLDER.glob(f"{number}_*/run.py")
    program = source.read_text(encoding="utf-8")
    for old, new in RENAMED.items():
        program = re.sub(rf"\b{re.escape(old)}\b", new, program)
    (tmp_path / "run.py").write_text(program, encoding="utf-8")
    paths = [str(Path(blockyard.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "BLOCKYARD_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("number", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_case_from_a_bug_report_ends_well(number: str, tmp_path: Path) -> None:
    done = ran(number, tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


@pytest.mark.parametrize("number", READ_NOW)
def test_what_a_case_wanted_refused_is_read(number: str, tmp_path: Path) -> None:
    done = ran(number, tmp_path)
    lines = done.stdout.splitlines()
    wanted = READ_NOW[number]
    assert len(lines) == len(wanted) and all(line.startswith(one) for line, one in zip(lines, wanted))
