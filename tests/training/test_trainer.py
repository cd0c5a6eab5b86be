"""The loop: accumulation, metrics, the clock, non-finite numbers, the run folder."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockyard.errors import InputError
from blockyard.training.guard import NonFiniteError
from tests.fixtures.toy_training import ToyTask, toy_config, toy_trainer


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final_weights(out: Path, **options) -> dict[str, torch.Tensor]:
    task = {k: options.pop(k) for k in ("dropout", "poison") if k in options}
    trainer = toy_trainer(out, toy_config(**options), **task)
    trainer.run()
    trainer.close()
    return trainer.engine.model.state_dict()


def test_a_run_learns_and_leaves_its_folder(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "run", toy_config(steps=60, lr=0.03, matrix_lr=0.1))
    trainer.run()
    trainer.close()
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert sum(r["loss"] for r in rows[-10:]) < 0.7 * sum(r["loss"] for r in rows[:10])
    assert {"step", "loss", "tokens", "seconds", "lr", "grad_norm", "flops"} <= rows[0].keys()
    assert [row["step"] for row in rows if "val_loss" in row] == list(range(5, 61, 5))
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "environment.json", "checkpoints", "assets.txt"} <= names
    assert rows[-1]["tokens"] == trainer.tokens == 600
    assert trainer.flops == 60_000


def test_accumulated_passes_equal_the_whole_batch(tmp_path: Path) -> None:
    one = final_weights(tmp_path / "a")
    four = final_weights(tmp_path / "b", accumulate=4)
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-4, atol=1e-4)
    losses = [[row["loss"] for row in metrics(tmp_path / run)[:3]] for run in "ab"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_dropout_falls_on_the_same_elements_however_the_batch_is_split(tmp_path: Path) -> None:
    final_weights(tmp_path / "a", dropout=0.3)
    final_weights(tmp_path / "b", dropout=0.3, accumulate=4)
    losses = [[row["loss"] for row in metrics(tmp_path / run)[:3]] for run in "ab"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_same_seed_gives_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    a, b = (final_weights(tmp_path / run, dropout=0.2) for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    a, b = (final_weights(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert not torch.equal(a["out.weight"], b["out.weight"])


def test_advancing_in_slices_equals_one_run(tmp_path: Path) -> None:
    whole = final_weights(tmp_path / "whole")
    trainer = toy_trainer(tmp_path / "slices", toy_config())
    assert [trainer.advance(5) for _ in range(4)] == [5, 5, 2, 0]
    assert trainer.done
    trainer.close()
    sliced = trainer.engine.model.state_dict()
    assert all(torch.equal(whole[name], sliced[name]) for name in whole)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_every_choice_of_optimizer_schedule_and_precision_trains(
    tmp_path: Path, optimizer: str, schedule: str, precision: str
) -> None:
    final_weights(tmp_path, steps=3, optimizer=optimizer, schedule=schedule, precision=precision)
    assert all(row["loss"] > 0 for row in metrics(tmp_path))


def test_a_number_that_is_not_finite_stops_the_run_and_is_located(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_config(), poison={6: [2, 5]})
    with pytest.raises(NonFiniteError, match=r"step 6: loss nan.*output of layers\.0\.up in batch rows 2, 5"):
        trainer.run()
    trainer.close()
    # What was trained until then is safe.
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()


def test_batch_rows_are_global_under_accumulation(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_config(accumulate=4), poison={1: [5]})
    with pytest.raises(NonFiniteError, match="batch rows 5;"):
        trainer.run()
    trainer.close()


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_config())
    trainer.advance(1)
    with torch.no_grad():
        trainer.engine.model.layers[1].up.weight[0, 0] = float("inf")  # type: ignore[union-attr,index]
    with pytest.raises(NonFiniteError, match=r"weight layers\.1\.up\.weight is itself not finite"):
        trainer.advance(1)
    trainer.close()


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_config())
    weight = trainer.engine.model.layers[0].down.weight  # type: ignore[union-attr]
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match=r"gradient of layers\.0\.down\.weight"):
        trainer.advance(1)
    trainer.close()


def test_skipping_leaves_out_a_bad_batch_and_says_so(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_config(on_non_finite="skip"), poison={6: [2]})
    trainer.run()
    trainer.close()
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows if row.get("skipped")] == [7]
    assert rows[6]["loss"] is None
    assert all(torch.isfinite(t).all() for t in trainer.engine.model.state_dict().values())


def test_skipping_for_ever_is_an_error(tmp_path: Path) -> None:
    poison = {step: [0] for step in range(100)}
    trainer = toy_trainer(tmp_path, toy_config(on_non_finite="skip", steps=60), poison=poison)
    with pytest.raises(NonFiniteError, match="20 batches in a row"):
        trainer.run()
    trainer.close()


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path: Path) -> None:
    final_weights(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        toy_trainer(tmp_path, toy_config())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_config())
    with pytest.raises(InputError, match="in use by another process"):
        toy_trainer(tmp_path, toy_config(), resume=True)
    trainer.close()
    toy_trainer(tmp_path, toy_config(), resume=True).close()


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        toy_trainer(tmp_path / "none", toy_config(), resume=True)
    assert not (tmp_path / "none").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to run folder"):
        toy_trainer(tmp_path / "file", toy_config())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot write"):
            toy_trainer(tmp_path / "run", toy_config())
    finally:
        tmp_path.chmod(0o700)


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device"):
        toy_trainer(tmp_path, toy_config(device="warp"))


def test_compiling_without_a_compiler_is_refused_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockyard.training.compilation.shutil.which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"train.compile=on: there is no C\+\+ compiler"):
        toy_trainer(tmp_path / "on", toy_config(compile="on"))
    trainer = toy_trainer(tmp_path / "auto", toy_config(compile="auto"))
    assert trainer.decisions.compile == "no"
    trainer.close()
    environment = json.loads((tmp_path / "auto" / "environment.json").read_text())
    assert "no C++ compiler" in " ".join(environment["decisions"]["why"])


def test_auto_decides_by_the_time_of_the_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    trainer = toy_trainer(tmp_path / "run", toy_config(compile="auto"))
    trainer.run()
    trainer.close()
    assert trainer.decisions.compile == "no"
    assert trainer.decisions.eager_ms is not None
    # Another run on this machine decides by the same figure.
    again = toy_trainer(tmp_path / "again", toy_config(compile="auto"))
    again.run()
    again.close()
    assert again.decisions.eager_ms == trainer.decisions.eager_ms


def test_importing_the_loop_does_not_import_the_compiler_or_distributed_tensors() -> None:
    code = "import sys, blockyard.training.trainer; print([m for m in ('torch._dynamo', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_toy_batches_are_functions_of_the_step() -> None:
    task = ToyTask(toy_config())
    whole = task.batch(3, slice(None))["x"]
    assert torch.equal(torch.cat([task.batch(3, slice(0, 4))["x"], task.batch(3, slice(4, 8))["x"]]), whole)


def test_nothing_starts_a_process_while_the_folder_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess.Popen, "__init__", started)
    # platform remembers what it has asked for.
    monkeypatch.setattr(platform, "_uname_cache", None)
    monkeypatch.setattr(platform, "_platform_cache", {})
    trainer = toy_trainer(tmp_path, toy_config())
    trainer.run()
    trainer.close()
    assert metrics(tmp_path)[-1]["step"] == 12
