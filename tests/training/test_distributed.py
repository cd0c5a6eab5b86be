"""Two gloo ranks, DDP and FSDP2, compute what one process computes, and exchange checkpoints with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blockyard.tasks.run import load_run
from blockyard.training.checkpoint import list_checkpoints, load_checkpoint
from tests.fixtures.folders import ROOT

# One run folder each: parts run one after the other, as ranks:parallel:up-to-step[:accumulate].
SCENARIOS = {
    "one": "1:ddp:8",
    "ddp": "2:ddp:8",
    "fsdp2": "2:fsdp2:8",
    "ddp_accumulated": "2:ddp:8:2",
    "fsdp2_accumulated": "2:fsdp2:8:2",
    "ddp_then_one": "2:ddp:4,1:ddp:8",
    "fsdp2_then_one": "2:fsdp2:4,1:ddp:8",
    "one_then_fsdp2": "1:ddp:4,2:fsdp2:8",
    "fsdp2_then_ddp": "2:fsdp2:4,2:ddp:8",
    "two_then_four_then_one": "2:fsdp2:3,4:fsdp2:6,1:ddp:8",
    "moe": "1:ddp:8",
    "moe_accumulated": "1:ddp:8:4",
    "moe_ddp": "2:ddp:8",
    "moe_fsdp2_accumulated_then_ddp": "2:fsdp2:4:2,2:ddp:8:2",
}
DENSE = [name for name in SCENARIOS if not name.startswith("moe")]
MIXTURES = [name for name in SCENARIOS if name.startswith("moe_")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    text = folder / "text.txt"
    text.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(4000)))
    words = [f"{name}={parts}" for name, parts in SCENARIOS.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill.ranks", str(folder), str(text), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [name for name in DENSE if name != "one"])
def test_ranks_compute_what_one_process_computes(runs: Path, name: str) -> None:
    one, several = metrics(runs / "one"), metrics(runs / name)
    assert [row["step"] for row in several] == [row["step"] for row in one]
    for column in ("loss", "grad_norm"):
        assert [row[column] for row in several] == pytest.approx([row[column] for row in one], rel=1e-6, abs=1e-6)
    assert several[-1]["val_loss"] == pytest.approx(one[-1]["val_loss"], rel=1e-6)
    assert several[-1]["tokens"] == one[-1]["tokens"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads that Linux lists in /proc")
def test_no_thread_of_the_group_is_left_to_race_with_the_end_of_python(runs: Path, tmp_path: Path) -> None:
    """A thread of gloo's that lets go of its last tensor while Python ends aborts the process."""
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tests.kill.threads_left", "train", "lm"]
    options = {
        "data.path": runs / "text.txt", "data.cache_dir": tmp_path / "cache", "out": tmp_path / "run",
        "model.d_model": 16, "model.n_layers": 1, "model.n_heads": 2, "model.context": 16,
        "train.steps": 2, "train.batch_size": 4, "train.device": "cpu", "train.threads": 1,
    }  # fmt: skip
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    launch = [sys.executable, "-m", "torch.distributed.run", *words]
    done = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Two processes write at once, so that their words may stand between one another.
    assert done.stdout.count("left:") == 2 and "gloo" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_the_checkpoint_format_does_not_depend_on_the_ranks(runs: Path, name: str) -> None:
    one, several = (load_checkpoint(list_checkpoints(runs / r / "checkpoints")[-1][1]) for r in ("one", name))
    for a, b in ((one.model, several.model), (one.optimizer, several.optimizer)):
        assert {k: t.shape for k, t in a.items()} == {k: t.shape for k, t in b.items()}


def test_a_sharded_run_loads_as_any_other(runs: Path) -> None:
    model, tokenizer, _ = load_run(runs / "fsdp2")
    assert model.config.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_counts_and_balances_over_ranks_and_passes(runs: Path, name: str) -> None:
    one, several = metrics(runs / "moe"), metrics(runs / name)
    assert [row["loss"] for row in several] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    for layer in ("layers.0/load", "layers.1/load"):
        for a, b in zip(one, several):
            assert b[layer] == pytest.approx(a[layer]), f"step {a['step']}"
    first, second = (load_checkpoint(list_checkpoints(runs / r / "checkpoints")[-1][1]).model for r in ("moe", name))
    biases = [key for key in first if key.endswith("router.bias")]
    assert len(biases) == 2 and all(first[key].abs().max() > 0.005 for key in biases)
    for key in biases:
        assert second[key].tolist() == pytest.approx(first[key].tolist(), abs=1e-6)


SHARDED = """
import os
import torch
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
torch.distributed.init_process_group("gloo")
from blockyard import LMConfig, TransformerLM
from blockyard.errors import InputError
from blockyard.training.distributed import Ranks, load_whole_state, shard, whole_state
from blockyard.training.parts import own_state
model = TransformerLM(LMConfig(16, d_model=8, n_layers=1, n_heads=2, tied=True))
shard(model, list(model.layers), Ranks(0, 1, torch.device("cpu")))
state = {name: tensor for name, tensor in whole_state(model, True).items() if name in own_state(model)}
assert len(state) < len(model.state_dict()), "a tied weight is there once"
load_whole_state(model, state)
lost = next(name for name in state if "layers" in name)
del state[lost]
try:
    load_whole_state(model, state)
except InputError as error:
    print(lost in str(error))
torch.distributed.destroy_process_group()
"""


def test_a_sharded_model_misses_what_a_checkpoint_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", SHARDED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]
