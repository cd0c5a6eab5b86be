"""A run as a folder with an exported model, its tokenizer beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import blockyard
from blockyard.errors import InputError
from blockyard.export.formats import load_onnx, load_pt2, require_onnx, save_onnx, save_pt2
from blockyard.export.graph import Scorer, blocks_of, trace
from blockyard.export.parity import Parity, Run, compare
from blockyard.files import check_writable, writing_folder
from blockyard.pretrained.folder import check_new
from blockyard.tasks.run import load_run
from blockyard.text.saved import copy_tokenizer

# Tasks whose models take token ids.
TASKS = ("lm", "recall", "classify")

Save = Callable[[torch.export.ExportedProgram, Scorer, Path, dict[str, Any]], None]
Load = Callable[[Path], Run | None]


def write_pt2(run: str | Path, out: str | Path, *, trust: bool = False) -> Parity:
    """Write a run as a folder with model.pt2, which torch alone reads, and its tokenizer.

    Args:
        run: a run of a language model or a text classifier.
        out: the folder to write; a new one.
        trust: as for `load_run`.

    Returns: the comparison of what was read again with the model.

    Raises:
        InputError: for another run, a model that is no graph of every length, a file that gives other numbers, or a
            folder that is there or cannot be written.
    """
    parity = _write(run, out, trust, save_pt2, load_pt2, "torch")
    assert parity is not None
    return parity


def write_onnx(run: str | Path, out: str | Path, *, trust: bool = False) -> Parity | None:
    """Write a run as a folder with model.onnx, which onnxruntime alone runs, and its tokenizer.

    Args:
        run: a run of a language model or a text classifier.
        out: the folder to write; a new one.
        trust: as for `load_run`.

    Returns: the comparison of what was read again with the model; None where onnxruntime is not installed.

    Raises:
        MissingExtra: when onnx or onnxscript is not installed.
        InputError: as for `write_pt2`, and for an operation that ONNX does not have.
    """
    require_onnx()
    return _write(run, out, trust, save_onnx, load_onnx, "onnxruntime")


def _write(run: str | Path, out: str | Path, trust: bool, save: Save, load: Load, reader: str) -> Parity | None:
    folder, target = Path(run), Path(out)
    check_new(target)
    check_writable(target, folder=True)
    model, assets, loaded = load_run(folder, tasks=TASKS, trust=trust)
    # Whatever it was trained in, readers have float32; and nothing learns any more.
    scorer = Scorer(model.float().requires_grad_(False)).eval()
    program = trace(scorer.model)
    try:
        with writing_folder(target) as temporary:
            save(program, scorer, temporary, _about(scorer, loaded.task, assets))
            copy_tokenizer(folder, temporary)
            run_again = load(temporary)
            # Within: what does not hold is not kept.
            return None if run_again is None else compare(scorer, run_again, reader)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error


def _about(scorer: Scorer, task: str, assets: Any) -> dict[str, Any]:
    """Return what a file says of itself."""
    config = scorer.model.config
    about: dict[str, Any] = {
        "made_by": f"blockyard {blockyard.__version__}",
        "task": task,
        "blocks": blocks_of(scorer.model),
        "inputs": ", ".join(f"{name} int64 [batch, length]" for name in scorer.inputs),
        "vocab_size": scorer.model.config.vocab_size,
        "trained_on": config.length,
    }
    if scorer.longest is not None:
        about["longest"] = scorer.longest
    # A language model's assets are its tokenizer, a classifier's have one; a recall task's tokens are numbers.
    tokenizer = getattr(assets, "tokenizer", assets)
    if hasattr(tokenizer, "name"):
        about["tokenizer"] = tokenizer.name
    if hasattr(assets, "labels"):
        # In the order of the logits.
        about["labels"] = json.dumps(list(assets.labels))
    return about
