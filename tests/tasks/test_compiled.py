"""Every task trains compiled, block by block and whole, as it trains eagerly."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from blockyard.registry.builtin import TASKS
from blockyard.tasks.run import train
from blockyard.training.compilation import compiler_missing
from tests.fixtures.prices import ohlcv, write

pytestmark = pytest.mark.skipif(compiler_missing() is not None, reason=str(compiler_missing()))
STEPS = 4
# Compiled kernels sum in another order, and the difference grows with every step of the optimizer: in float32 some
# 1e-7 of a sum at first. A wrong or missing gradient shows in the second loss by more than a thousandth.
CLOSE = 1e-4
SIZES: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 2}
MACHINE: dict[str, Any] = {"precision": "fp32", "threads": 1, "device": "cpu", "progress": False}
SMALL: dict[str, dict[str, Any]] = {
    "lm": {"model": {"context": 16}},
    "classify": {"model": {"context": 16}, "data": {"text_field": "text", "label_field": "label"}},
    "recall": {"data": {"length": 16, "vocab_size": 32, "sizes": (2, 3), "val_rows": 4}},
    "signal": {"data": {"length": 16, "val_frames": 2}},
    "price": {"model": {"context": 16, "patch": 4, "stride": 4, "horizons": (1, 2, 5)}},
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile graphs and their gradients, but make no C++ of them: a tenth of the time, the same formulas."""
    compiling = torch.nn.Module.compile

    def compile(module: torch.nn.Module, **options: Any) -> None:
        compiling(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)


def data_of(task: str, folder: Path) -> dict[str, Any]:
    """Data options that name a small file, for tasks that read one."""
    if task == "lm":
        path = folder / "text.txt"
        path.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(6000)))
        return {"path": str(path), "cache_dir": str(folder / "cache")}
    if task == "classify":
        path = folder / "texts.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(
                [("text", "label"), *((f"row {i:2} says {'ab' * (i % 9 + 3)}", "xyz"[i % 3]) for i in range(60))]
            )
        return {"path": str(path)}
    return {"path": [write(ohlcv(300), folder / "prices.csv")]} if task == "price" else {}


def losses(task: str, folder: Path, compiled: str, **changed: dict[str, Any]) -> list[float]:
    """The losses of a run with the task's own defaults but for the sizes."""
    groups: dict[str, Any] = {name: dict(options) for name, options in SMALL[task].items()}
    groups["model"] = {**SIZES, **groups.get("model", {})}
    groups["data"] = {**groups.get("data", {}), **data_of(task, folder)}
    groups["train"] = {"steps": STEPS, "batch_size": 8, "log_every": 1, "eval_every": 0, "eval_batches": 1, **MACHINE}
    groups["train"]["compile"] = compiled
    for name, options in changed.items():
        groups[name] = {**groups.get(name, {}), **options}
    out = train(groups, folder / f"run-{compiled}", task=task)
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def check(task: str, folder: Path, **changed: dict[str, Any]) -> None:
    eager = losses(task, folder, "off", **changed)
    assert len(eager) == STEPS and all(math.isfinite(loss) for loss in eager)
    assert len(set(eager)) == STEPS
    for extent in ("on", "model"):
        assert losses(task, folder, extent, **changed) == pytest.approx(eager, rel=CLOSE), extent


def test_every_built_in_task_is_trained_here() -> None:
    assert set(SMALL) == set(TASKS)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("task", TASKS)
def test_graphs_of_every_task_train_as_eager_code_does(task: str, tmp_path: Path) -> None:
    check(task, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_kernels_of_every_task_train_as_eager_code_does(task: str, tmp_path: Path) -> None:
    check(task, tmp_path)


@pytest.mark.slow
def test_kernels_of_the_price_documents_form_train_as_eager_code_does(tmp_path: Path) -> None:
    # Its smallest preset but for the widths: a token per step, a latent per token, a distribution at the end.
    form = {"layout": "day", "n_layers": 4, "n_heads": 4, "d_model": 32, "context": 32}
    check("price", tmp_path, model=form, attn={"impl": "mla"}, train={"batch_size": 4})
