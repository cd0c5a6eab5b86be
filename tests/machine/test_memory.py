"""What would not fit into memory is refused by an estimate, before anything is read, built or left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blockyard.cli import main
from blockyard.errors import InputError
from blockyard.machine import memory
from blockyard.machine.memory import available_bytes, forcing, in_words, refuse_beyond_memory, worker_environment
from blockyard.models import estimate
from blockyard.models.estimate import count_model
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.tasks.run import load_run, make_task, train
from blockyard.tasks.settings import resolve
from blockyard.tasks.sizes import check_training
from tests.fixtures.cli import TEXT, error_of, words

GB = 10**9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how much memory there is; 4 GB at first."""

    def has(size: int) -> None:
        for module in (memory, estimate):
            monkeypatch.setattr(module, "available_bytes", lambda device=None: size)

    has(4 * GB)
    return has


@pytest.mark.parametrize(
    "line",
    [
        "train lm --model.n_layers 10000000",
        "train lm --model.d_model 1099511627776",
        "train lm --ffn.impl moe --moe.n_experts 100000000",
        "train lm --train.batch_size 100000000",
        "train recall --data.length 1000000000000",
        "train recall --data.vocab_size 1000000000000 --train.batch_size 1",
        "train signal --data.val_frames 10000000000",
        "train signal --model.n_layers 10000000",
        "train price --model.n_layers 10000000",
        "train classify --ffn.impl swiglu --model.pattern standard+swiglu[d_ff=100000000000]",
        "compare lm --blocks standard,tva --model.n_layers 10000000",
        "compare lm --blocks standard;standard+moe[n_experts=100000000]",
        "bench decode --contexts 1000000000000",
        "bench blocks --lengths 1000000000000",
        "bench decode --d_model 1099511627776",
        "check swiglu --with d_ff=100000000000",
        "symmetry complex_swiglu --with d_ff=100000000000",
    ],
)
@pytest.mark.usefixtures("machine")
def test_what_does_not_fit_is_one_line(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("error: ")
    assert "memory" in told or "this machine has 4.0 GB free" in told
    assert "--force" in told or "than any machine has" in told
    assert list(tmp_path.iterdir()) == []


def test_a_count_is_that_of_the_built_model() -> None:
    for config in (
        LMConfig(blocks="standard", d_model=32, n_heads=2, n_layers=5, vocab_size=50),
        LMConfig(blocks="spectral*2/standard+vft", d_model=32, n_heads=2, n_layers=7, vocab_size=50),
        LMConfig(blocks="tva+vft/standard+moe", d_model=32, n_heads=2, n_layers=4, vocab_size=50, tied=False),
        LMConfig(blocks="mla", d_model=32, n_heads=2, n_layers=1, vocab_size=50, norm_position="post"),
    ):
        model = TransformerLM(config)
        found = count_model(config, TransformerLM)
        assert found.parameters == sum(p.numel() for p in model.parameters())
        assert found.modules == sum(1 for _ in model.modules())


def test_a_deep_model_is_counted_without_building_it() -> None:
    config = LMConfig(blocks="standard", d_model=16, n_heads=2, vocab_size=50)
    begun = time.process_time()
    deep = count_model(LMConfig(**{**vars(config), "n_layers": 10**12}), TransformerLM)
    # Seconds, where the layers would take weeks.
    assert time.process_time() - begun < 30
    one, two = (count_model(LMConfig(**{**vars(config), "n_layers": n}), TransformerLM).parameters for n in (1, 2))
    assert deep.parameters == one + (10**12 - 1) * (two - one)


def test_the_estimate_of_a_training_is_a_lower_bound_that_counts(machine: Callable[[int], None]) -> None:
    run = resolve(
        {"model": {"d_model": 64, "n_layers": 4, "context": 128}, "train": {"batch_size": 8, "device": "cpu"}}
    )
    parameters = sum(p.numel() for p in TransformerLM(run.model).parameters())
    # Weights, gradients and a momentum in float32.
    machine(12 * parameters)
    with pytest.raises(InputError, match=rf"the model takes at least .* to train \({parameters:,} parameters"):
        check_training(run, fitted=True)
    machine(12 * parameters + 10_000_000)
    check_training(run, fitted=True)
    machine(1000)
    with pytest.raises(InputError, match=r"for the activations of a batch, and this machine has 1\.0 kB free"):
        check_training(run, fitted=False)


def test_force_overrides_on_the_command_line_and_in_python(
    machine: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    machine(10_000)
    line = words(tmp_path)
    told = error_of(capsys, *line, "--out", str(tmp_path / "run"))
    assert told.endswith("this machine has 10.0 kB free: ask for less, or take the risk with --force (force=True)")
    assert not (tmp_path / "run").exists()
    assert main([*line, "--out", str(tmp_path / "run"), "--force"]) == 0
    with pytest.raises(InputError, match=r"the model of .*run takes .*--force"):
        load_run(tmp_path / "run")
    with forcing():
        load_run(tmp_path / "run")
        assert worker_environment() == {"BLOCKYARD_FORCE": "1"}
    assert worker_environment() == {}
    groups = {
        "data": {"task": "copy", "length": 16, "sizes": (4,)},
        "model": {"d_model": 8, "n_heads": 1, "n_layers": 1},
        "train": {"steps": 1, "batch_size": 2, "compile": "off", "device": "cpu", "progress": False},
    }
    with pytest.raises(InputError, match="force=True"):
        train(groups, tmp_path / "recall", task="recall")
    assert train(groups, tmp_path / "recall", task="recall", force=True).is_dir()


def test_the_vocabulary_counts_once_the_data_are_known(machine: Callable[[int], None]) -> None:
    groups = {"data": {"vocab_size": 10_000_000}, "train": {"batch_size": 1, "device": "cpu"}}
    with pytest.raises(InputError, match=r"2,5\d\d,\d\d\d,\d\d\d parameters|takes more than"):
        make_task(resolve(groups, "recall"))


def test_the_memory_that_is_left_is_the_tightest_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = available_bytes()
    assert there is None or there > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    found = memory._left(*(tmp_path / f"memory.{name}" for name in ("max", "current", "stat")), "inactive_file")
    assert list(found) == [700_000]
    (tmp_path / "memory.max").write_text("max\n")
    assert not list(memory._left(tmp_path / "memory.max", tmp_path / "memory.current", tmp_path / "memory.stat", ""))
    monkeypatch.setattr(memory, "_of_machine", lambda: 5 * GB)
    monkeypatch.setattr(memory, "_of_control_groups", lambda: iter([3 * GB]))
    monkeypatch.setattr(memory, "_of_process", lambda: iter([9 * GB]))
    assert available_bytes(torch.device("cpu")) == 3 * GB
    with pytest.raises(InputError, match=r"it takes 4\.0 GB, and this machine has 3\.0 GB free"):
        refuse_beyond_memory(4 * GB, "it takes {}")
    refuse_beyond_memory(2 * GB, "it takes {}")


def test_sizes_are_told_in_words() -> None:
    assert [in_words(n) for n in (12, 4_000, 123_456_789, 2.5e18)] == ["12 bytes", "4.0 kB", "123 MB", "2,500 PB"]
