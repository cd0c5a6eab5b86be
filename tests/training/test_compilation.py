"""Compiled blocks compute what the blocks compute, and resumed runs compile as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blockyard.tasks.run import make_task, train_lm
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.compilation import block_kinds, compilation_plan, compiler_missing
from blockyard.training.trainer import Trainer

needs_compiler = pytest.mark.skipif(compiler_missing() is not None, reason=str(compiler_missing()))


def tiny(tmp_path: Path, **train: Any) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(6000)))
    options = {"steps": 12, "batch_size": 4, "eval_every": 6, "eval_batches": 1, "save_every": 5, "log_every": 1}
    return {
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16},
        "data": {"path": str(text), "cache_dir": str(tmp_path / "cache")},
        "train": options | {"precision": "fp32", "threads": 1, "progress": False} | train,
    }


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def extent(eager_seconds: float, steps: int, kinds: int = 1, layers: int = 4, **more: Any) -> str:
    return compilation_plan(eager_seconds, steps, kinds=kinds, layers=layers, **more)[0]


def test_longer_runs_compile_more() -> None:
    assert extent(0.03, 100) == "no"
    assert extent(0.03, 3000) == "blocks"
    assert extent(0.03, 100_000) == "model"


def test_a_gain_that_may_be_none_is_not_worth_a_sure_cost() -> None:
    # 20 s of compiling and 60 % of the run: less than it, by a seventh at 75 s and a fifth at 100 s.
    assert compilation_plan(0.03, 2500, kinds=1, layers=4)[1] == pytest.approx(75.0)
    assert extent(0.03, 2500) == "no"
    assert extent(0.03, 3400) == "blocks"
    # What was asked for is done.
    assert extent(0.03, 2500, asked="blocks") == "blocks"


def test_many_kinds_of_blocks_must_repay_each_compilation() -> None:
    assert extent(0.03, 3000, kinds=10, layers=10) == "no"


def test_kernels_that_were_built_before_repay_sooner() -> None:
    assert extent(0.03, 1000) == "no"
    assert extent(0.03, 1000, warm=["blocks"]) == "blocks"


def test_blocks_of_one_kind_count_once(tmp_path: Path) -> None:
    groups = tiny(tmp_path)
    assert block_kinds(list(make_task(resolve(groups)).model.layers)) == 1  # type: ignore[arg-type]
    del groups["model"]["n_layers"]
    groups["model"]["pattern"] = "standard[window=4]/standard"
    assert block_kinds(list(make_task(resolve(groups)).model.layers)) == 2  # type: ignore[arg-type]


@needs_compiler
def test_a_compilation_that_fails_leaves_auto_running_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr("blockyard.training.engine.compile_model", fail)
    monkeypatch.setattr(
        "blockyard.training.compiling.compilation_plan", lambda *a, **k: ("blocks", 1.0, "it would pay")
    )
    out = train_lm(tiny(tmp_path), tmp_path / "run")
    decisions = json.loads((out / "environment.json").read_text())["decisions"]
    assert decisions["compile"] == "no" and "no luck" in decisions["why"][-1]
    assert len(losses(out)) == 12


@needs_compiler
@pytest.mark.slow
def test_compiled_runs_equal_eager_ones_and_resume_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "blockyard.training.compiling.compilation_plan", lambda *a, **k: ("blocks", 1.0, "it would pay")
    )
    eager = losses(train_lm(tiny(tmp_path, compile="off"), tmp_path / "eager"))
    groups = tiny(tmp_path)
    auto = train_lm(groups, tmp_path / "auto")
    assert losses(auto) == pytest.approx(eager, rel=1e-4)
    run = resolve(groups)
    trainer = Trainer(make_task(run), run.train, tmp_path / "cut", resolved=as_groups(run))
    trainer.advance(11)
    trainer.close()
    assert trainer.clock.compile_seconds > 0
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000010")
    assert losses(train_lm(groups, tmp_path / "cut", resume=True)) == losses(auto)
