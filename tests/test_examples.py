"""What examples/ holds runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from blockyard import LMConfig, TransformerLM
from blockyard.conformance import check
from blockyard.conformance.subject import own_random, randomise
from blockyard.registry import register
from blockyard.registry.plugins import import_file
from tests.fixtures.documents import python_examples
from tests.fixtures.folders import ROOT

PAGE = {block.split()[1]: block for block in python_examples((ROOT / "docs" / "custom-blocks.md").read_text())}
SHOWN = {"my_mixers.py": "DecayingMean", "my_attention.py": "PlainAttention", "my_recurrence.py": "LeakySum"}


# What they show is trained elsewhere in the fast tests: by two ranks, and for a forecast.
LONG = ("two_ranks", "forecast_prices")
EXAMPLES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
    for path in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.parametrize("script", EXAMPLES)
def test_example_runs(script: Path):
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules that the page on blocks of one's own shows, imported; what they register goes again."""
    monkeypatch.setattr("sys.path", list(sys.path))
    found = {}
    for name, code in PAGE.items():
        (tmp_path / name).write_text(code)
        found[name] = import_file(str(tmp_path / name), "test")
    yield found
    # Only these: a built-in that was loaded meanwhile would not come back.
    for name in ("decay", "plain", "leaky"):
        del register._register.entries["attn", name]
    for name in PAGE:
        del sys.modules[Path(name).stem]


def test_the_page_of_own_blocks_shows_whole_modules() -> None:
    assert PAGE.keys() == SHOWN.keys()


@pytest.mark.parametrize("name", SHOWN)
def test_blocks_of_the_page_pass_the_conformance_suite(modules: dict[str, ModuleType], name: str) -> None:
    report = check(getattr(modules[name], SHOWN[name]))
    assert report.ok, str(report)
    passed = [row.name for row in report.rows if row.outcome == "passed"]
    assert any("cache" in row for row in passed) == (name != "my_mixers.py")


def test_caches_of_the_page_decode_rows_of_unequal_length(modules: dict[str, ModuleType]) -> None:
    with own_random(0):
        config = LMConfig(vocab_size=11, blocks="plain/leaky", d_model=16, n_layers=2, n_heads=2, context=16)
        model = TransformerLM(config).double().eval()
        randomise(model)
    whole, short = torch.arange(9) % 11, torch.arange(3, 9) % 11
    ids = torch.stack([whole, torch.cat([torch.zeros(3, dtype=torch.long), short])])
    keep = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    cache = model.new_cache(2)
    with torch.no_grad():
        for start, end in ((0, 5), (5, 6), (6, 9)):
            logits = model(ids[:, start:end], padding_mask=keep[:, :end], cache=cache).logits
        for row, alone in enumerate((whole, short)):
            torch.testing.assert_close(logits[row, -1], model(alone[None]).logits[0, -1])
