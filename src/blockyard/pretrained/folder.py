"""An imported model as an ordinary run folder, and a run written as the model that it was imported from.

What came with the model and is no option of ours, its configuration above all, is kept in origin.json: with it a run
whose blocks still fit goes back to the original architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from blockyard.errors import InputError, require
from blockyard.files import parse_json, plain, write_atomically, writing_folder
from blockyard.models.lm import LMConfig
from blockyard.multihead.fields import short
from blockyard.pretrained.load import Pretrained, read_config
from blockyard.pretrained.weights import write_weights
from blockyard.registry.builtin import Kind
from blockyard.registry.pattern import LayerSpec, layer_options
from blockyard.tasks.kind import Run
from blockyard.tasks.run import ORIGIN, load_run, read_run
from blockyard.tasks.settings import as_groups
from blockyard.text.config import TextDataConfig
from blockyard.text.library import BESIDE, TOKENIZER, LibraryTokenizer
from blockyard.training.checkpoint import save_checkpoint
from blockyard.training.config import TrainConfig
from blockyard.training.folder import RunFolder

# Characters of a choice of blocks that a reason is told with.
MOST_SAID = 160
# Options of a model's configuration that say how it is trained, not what it computes.
TRAINED = {"dropout": 0.0, "zero_init_outputs": False, "context": 0}


@dataclass(frozen=True)
class Origin:
    """What a run was imported from.

    Args:
        family: the family that it was read as.
        config: its configuration as it came.
        dtype: the type that its weights had, by its name in torch.
        where: the folder, file or class.
    """

    family: str
    config: Mapping[str, Any]
    dtype: str
    where: str


def write_run(found: Pretrained, out: str | Path) -> Path:
    """Write an imported model as a run: config.yaml, a checkpoint of step 0, its tokenizer, and origin.json.

    Args:
        found: the model with its tokenizer.
        out: the run folder.

    Raises:
        InputError: when there is no tokenizer, or the folder holds a run or cannot be written.
    """
    if found.tokenizer is None:
        raise lacks_tokenizer(found.where)
    path = Path(out)
    # Locked and checked as a training's folder is.
    folder = RunFolder(path, resume=False)
    try:
        begun = found.run or Run(found.model.config, TextDataConfig(), TrainConfig())
        data = replace(begun.data, tokenizer=str((path / "tokenizer").absolute()))
        # Its own training options, which say how its weights are read; whatever it was begun with is in them.
        groups = as_groups(replace(begun, model=found.model.config, data=data, train=replace(begun.train, init=None)))
        found.tokenizer.save(path / "tokenizer")
        if found.config:
            write_origin(path, Origin(found.family, found.config, found.dtype, found.where))
        parity = None if found.parity is None else {"largest": found.parity.largest, "size": found.parity.size}
        state = {"step": 0, "best": None, "config": groups, "imported": {"from": found.where, "parity": parity}}
        save_checkpoint(folder.checkpoints, 0, model=found.model.state_dict(), optimizer={}, state=plain(state))
        # Last, as it makes the folder a run.
        folder.write_config(groups)
    finally:
        folder.close()
    return path


def lacks_tokenizer(where: str | Path) -> InputError:
    """Return the error for a model without a tokenizer that is read."""
    return InputError(f"{where} brings no {TOKENIZER}; name a folder that has one with --tokenizer FOLDER")


def read_trained(folder: str | Path, *, trust: bool = False) -> Pretrained:
    """Read the language model of a run as `load_pretrained` reads that of others, to be written again by `write_run`.

    Args:
        folder: a run folder, of an imported or a trained model.
        trust: as for `load_run`.

    Raises:
        InputError: as `load_run`.
    """
    model, tokenizer, run = load_run(folder, tasks=("lm",), trust=trust)
    origin = read_origin(Path(folder)) or Origin("blockyard", {}, "float32", str(folder))
    return Pretrained(model, tokenizer, origin.family, origin.config, origin.where, origin.dtype, None, run)


def check_new(target: Path) -> None:
    """Raise InputError for a folder that holds something, or a file."""
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise InputError(f"{target} is there already; name a new folder with --out")


def write_origin(folder: Path, origin: Origin) -> None:
    """Write origin.json into a run folder."""
    write_atomically(folder / ORIGIN, json.dumps(plain(vars(origin)), indent=1) + "\n")


def read_origin(folder: Path) -> Origin | None:
    """Return what a run was imported from; None for one that was not.

    Raises:
        InputError: when its origin.json is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        said = parse_json(path.read_text(encoding="utf-8"))
        origin = Origin(*(said[name] for name in ("family", "config", "dtype", "where")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(origin.config, dict):
        raise InputError(f"{path} is damaged: its config is no object")
    return origin


def bare(spec: LayerSpec) -> LayerSpec:
    """Return a layer without the options that are what they are anyhow: runs write all that was given."""
    parts = []
    sides: tuple[tuple[Kind, str, Mapping[str, Any]], ...] = (
        ("attn", spec.attn, spec.attn_options),
        ("ffn", spec.ffn, spec.ffn_options),
    )
    for kind, name, options in sides:
        known = layer_options(kind, name, options)
        parts.append({key: value for key, value in options.items() if value != known[key].default})
    return LayerSpec(spec.attn, spec.ffn, *parts)


def why_not(origin: Origin | None, config: LMConfig) -> str | None:
    """Return why a model cannot be written in the architecture that it was imported from; None when it can."""
    if origin is None:
        return "it was not imported"
    # Read again, as it was at import: what differs now was changed here.
    family, original = read_config(origin.config, f"its {ORIGIN}")
    # Every field, also those that no family sets: an option that appears later is then compared, too.
    for name, value in vars(config).items():
        before = getattr(original, name)
        if name == "blocks":
            value, before = ([bare(spec) for spec in each.layers] for each in (config, original))
        if name not in TRAINED and value != before:
            # Every layer may have its own frequencies, number by number.
            said = short(config.choice if name == "blocks" else str(value), MOST_SAID)
            return f"its {name} {'are' if name == 'blocks' else 'is'} no longer what the {family.name} had: {said}"
    return None


def why_not_original(folder: str | Path) -> str | None:
    """Return why a run cannot be written in the architecture that it was imported from; None when it can.

    Raises:
        InputError: when the folder holds no run, or its origin.json is damaged.
    """
    run = read_run(folder)
    if run.task != "lm":
        return f"it is a run of `train {run.task}`"
    origin = read_origin(Path(folder))
    # A vocabulary's size follows from the tokenizer, and its own says what it was.
    return why_not(origin, run.kind.fit(run.model, run.kind.load_assets(Path(folder))))


def export_original(
    folder: str | Path, out: str | Path, *, dtype: torch.dtype | None = None, trust: bool = False
) -> Path:
    """Write an imported run as its original architecture: config.json, model.safetensors, the tokenizer's files.

    Args:
        folder: the run.
        out: the folder to write; a new one.
        dtype: type of the weights; None for that of the original.
        trust: as for `load_run`.

    Raises:
        InputError: when its blocks are no longer those of its origin, or the folder is there or cannot be written.
    """
    run, target = Path(folder), Path(out)
    # Before a model is loaded that cannot be written.
    check_new(target)
    model, tokenizer, _ = load_run(run, tasks=("lm",), trust=trust)
    origin = read_origin(run)
    if reason := why_not(origin, model.config):
        raise InputError(f"{run} cannot be written in its original architecture: {reason}")
    assert origin is not None
    family, _ = read_config(origin.config, f"its {ORIGIN}")
    # Back in the type they came in: float32 holds bfloat16 exactly, so nothing is lost on the way there and back.
    kept = dtype or getattr(torch, origin.dtype)
    safetensors = require("safetensors.torch", extra="train")
    weights = {name: weight.to(kept) for name, weight in write_weights(family, model).items()}
    config = {**origin.config, "architectures": [family.architecture], "dtype": str(kept).removeprefix("torch.")}
    config.pop("torch_dtype", None)
    try:
        with writing_folder(target) as temporary:
            safetensors.save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
            write_atomically(temporary / "config.json", json.dumps(plain(config), indent=2) + "\n")
            if isinstance(tokenizer, LibraryTokenizer):
                for name in (TOKENIZER, *BESIDE):
                    if name in tokenizer.files:
                        write_atomically(temporary / name, tokenizer.files[name])
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    return target
