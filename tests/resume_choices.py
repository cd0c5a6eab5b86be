"""Tiny runs of everything registered, for tests that interrupt them: each mixer, FFN and task, by both optimizers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from blockyard import list_attention, list_ffn
from blockyard.registry.builtin import TASKS
from blockyard.registry.register import Kind, implementation
from price_fixtures import ohlcv, write

OPTIMIZERS = ("muon", "adamw")
COMPLEX: dict[str, Any] = {"attn": {"impl": "complex"}, "ffn": {"impl": "complex_swiglu"}}
# What changes over a run, beside weights and moments: directions in use, guides that are dropped, a router's bias.
SCHEDULES: dict[str, dict[str, Any]] = {
    "vein-ranks": {"ffn": {"impl": "vft"}, "vft": {"rank": 4}, "train": {"vein_ranks": [2, 4]}},
    "vein-guides": {"ffn": {"impl": "vft"}, "vft": {"rank": 4}, "train": {"vein_guide_steps": 4}},
    "vein-taus": {"attn": {"impl": "tva"}, "ffn": {"impl": "vft"}, "train": {"vein_taus": [0.3, 0.1]}},
    "moe-bias": {"ffn": {"impl": "moe"}, "moe": {"balance": "bias"}},
    "dropout": {"model": {"dropout": 0.2}},
}
TRAIN: dict[str, Any] = {
    "batch_size": 4,
    "eval_batches": 1,
    "log_every": 1,
    "warmup": 2,
    "threads": 1,
    "progress": False,
    "device": "cpu",
}


def choices() -> dict[str, dict[str, Any]]:
    """Option groups by name: a model for each mixer and FFN of the package, the schedules, and each of its tasks."""
    found: dict[str, dict[str, Any]] = {}
    sides: tuple[tuple[Kind, list[str]], ...] = (("attn", list_attention()), ("ffn", list_ffn()))
    for side, names in sides:
        for name in names:
            entry = implementation(side, name)
            if not entry.source.startswith("blockyard."):
                # What other tests of this process have registered.
                continue
            is_complex = entry.traits.complex_valued
            # A complex block stands in a complex stream, which the signal models have.
            pair = COMPLEX if is_complex else {"attn": {"impl": "standard"}, "ffn": {"impl": "relu2"}}
            found[f"{side}-{name}"] = {"task": "signal" if is_complex else "lm", **pair, side: {"impl": name}}
    found |= {name: {"task": "lm", **groups} for name, groups in SCHEDULES.items()}
    return found | {f"task-{name}": {"task": name} for name in TASKS if name != "lm"}


def everything() -> list[tuple[str, str]]:
    """All (name of a choice, optimizer)."""
    return list(itertools.product(choices(), OPTIMIZERS))


def groups_of(name: str, optimizer: str, folder: Path, **train: Any) -> dict[str, Any]:
    """The option groups of a choice; its data are written into `folder`."""
    groups: dict[str, Any] = {"train": {**TRAIN, "optimizer": optimizer, **train}}
    for group, options in [*choices()[name].items(), *_data_and_shape(choices()[name]["task"], folder).items()]:
        groups[group] = {**options, **groups.get(group, {})} if isinstance(options, dict) else options
    return groups


def text_file(folder: Path) -> Path:
    path = folder / "text.txt"
    if not path.exists():
        path.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(4000)))
    return path


def _data_and_shape(task: str, folder: Path) -> dict[str, Any]:
    """Tiny data and a tiny model for a task."""
    shape: dict[str, Any] = {"d_model": 16, "n_layers": 1, "n_heads": 2}
    if task == "lm":
        data: dict[str, Any] = {"path": str(text_file(folder)), "cache_dir": str(folder / "cache")}
        return {"model": shape | {"context": 16}, "data": data}
    if task == "recall":
        data = {"task": "mqar", "length": 16, "vocab_size": 16, "sizes": [2, 4], "val_rows": 8}
        return {"model": shape, "data": data}
    if task == "classify":
        rows = [f"{'ab' * (i % 9 + 1)} {'cd' * (i % 5)},{'xyz'[i % 3]}" for i in range(60)]
        (folder / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
        return {"model": shape | {"context": 16}, "data": {"path": str(folder / "rows.csv")}}
    if task == "signal":
        return {"model": shape, "data": {"length": 32, "val_frames": 4}}
    if task == "price":
        path = write(ohlcv(400), folder / "prices.csv")
        return {"model": shape | {"context": 16, "horizons": [1, 2]}, "data": {"path": [path]}}
    raise NotImplementedError(f"tests/resume_choices.py has no data for the task {task!r}")
