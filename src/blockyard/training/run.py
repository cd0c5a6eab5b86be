"""Whole runs: train a language model from option groups, and load what a run folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from blockyard.data import Tokenizer, load_text, load_tokenizer
from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM
from blockyard.training.checkpoint import list_checkpoints, load_checkpoint
from blockyard.training.distributed import load_whole_state
from blockyard.training.folder import CHECKPOINTS, read_config
from blockyard.training.lm import LMTask
from blockyard.training.resolve import LMRun, as_groups, resolve, with_vocabulary
from blockyard.training.trainer import Trainer
from blockyard.vein_training import match_guides


def train_lm(groups: Mapping[str, Any], out: Path | str, resume: bool = False) -> Path:
    """Train a language model into a run folder.

    Args:
        groups: option groups, as `blockyard.training.resolve.resolve` reads them.
        out: the run folder.
        resume: continue the run in it.

    Returns: the run folder.

    Raises:
        InputError: for anything that the user can put right.
        Interrupted: after SIGTERM or SIGINT, when the run has been saved.
    """
    run = resolve(groups)
    trainer = Trainer(make_task(run), run.train, out, resolved=as_groups(run), resume=resume)
    try:
        return trainer.run()
    finally:
        trainer.close()


def make_task(run: LMRun) -> LMTask:
    """Load the text and build the model."""
    data = load_text(run.data, run.model.context)
    return LMTask(with_vocabulary(run, data.tokenizer.vocab_size), data, run.train)


def load_run(folder: Path | str, *, which: Literal["last", "best"] = "last") -> tuple[TransformerLM, Tokenizer, LMRun]:
    """A trained model in eval mode, its tokenizer and its configuration.

    Args:
        folder: a run folder.
        which: the last checkpoint, or the one with the lowest validation loss.

    Raises:
        InputError: when the folder holds no run, no checkpoint, or a damaged one.
    """
    folder = Path(folder)
    run = resolve(read_config(folder))
    found = list_checkpoints(folder / CHECKPOINTS)
    if not found:
        raise InputError(f"{folder} holds no checkpoint yet; let its training reach one")
    loaded = load_checkpoint(found[-1][1], with_optimizer=False)
    best = loaded.state.get("best")
    if which == "best" and best:
        path = dict(found).get(int(best["step"]))
        if path is not None:
            loaded = load_checkpoint(path, with_optimizer=False)
    tokenizer = load_tokenizer(folder / "tokenizer")
    run = replace(run, model=with_vocabulary(run, tokenizer.vocab_size))
    model = TransformerLM(run.model)
    if run.train.vein_guide_steps:
        # A run that was interrupted while its vein FFNs were guided is the guided function.
        match_guides(model, loaded.model)
    load_whole_state(model, loaded.model)
    return model.eval(), tokenizer, run
