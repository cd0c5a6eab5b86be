"""A model of ours as one of the family, sharing its weights, and one of the family as a run folder of ours."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from blockyard.errors import InputError, require
from blockyard.files import writing_folder
from blockyard.generation.stream import end_of_text
from blockyard.hf.base import BlockyardPreTrainedModel
from blockyard.hf.causal import BlockyardForCausalLM
from blockyard.hf.config import BlockyardConfig
from blockyard.hf.sequence import BlockyardForSequenceClassification
from blockyard.models.lm import TransformerLM
from blockyard.tasks.classify.model import TextClassifier
from blockyard.tasks.run import load_run, read_run
from blockyard.training.checkpoint import save_checkpoint
from blockyard.training.folder import CHECKPOINTS, check_run_folder

# What stands in a run folder beside its settings and weights: how texts become tokens, and what classes are called.
_ASSETS = ("config.yaml", "tokenizer", "labels.json", "environment.json", "origin.json")


def wrap(model: TransformerLM | TextClassifier, *, labels: Sequence[str] = (), **settings: Any) -> Any:
    """Return the model as one of the family; both have the same weights from then on.

    Args:
        model: a language model or a text classifier.
        labels: names of the classes.
        settings: fields of the configuration: eos_token_id, aux_loss_weight, ….

    Raises:
        InputError: for another model, or one in a state that its configuration does not tell (guides, or a rank in use
            below the vein's).
    """
    if labels:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: number for number, label in enumerate(labels)}
    if isinstance(model, TransformerLM):
        kind: type[BlockyardPreTrainedModel] = BlockyardForCausalLM
    elif isinstance(model, TextClassifier):
        kind = BlockyardForSequenceClassification
    else:
        raise InputError(f"a {type(model).__name__} has no counterpart; language models and text classifiers have")
    config = BlockyardConfig.of(model.config, **settings)
    config.dtype = next(model.parameters()).dtype
    # Without memory: its weights are the given model's in a moment.
    with torch.device("meta"):
        made = kind(config)
    theirs, ours = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (made.model, model))
    for name in sorted(theirs.keys() ^ ours.keys() | {n for n in theirs.keys() & ours.keys() if theirs[n] != ours[n]}):
        raise InputError(
            f"{name} is {ours.get(name, 'missing')}, and {theirs.get(name, 'missing')} by the model's configuration; "
            "end the training of guides and ranks (trim_veins) before"
        )
    made.model = model
    made.tie_weights()
    return made.train(model.training)


def from_run(
    folder: Path | str,
    *,
    which: Literal["last", "best"] = "last",
    plugins: Sequence[str] = (),
    trust: bool = False,
) -> Any:
    """Return the model of a run of `train lm` or `train classify` as one of the family, in eval mode.

    Text ends where the run's documents do, at the tokenizer's separator, or at an end that an imported tokenizer names.

    Args:
        folder: a run folder.
        which: the last checkpoint, or the one with the lowest validation loss.
        plugins: modules to import first, that the run may want.
        trust: import whatever modules the run's configuration names.

    Raises:
        InputError: as `load_run` and `wrap`.
    """
    found = load_run(folder, which=which, tasks=("lm", "classify"), plugins=plugins, trust=trust)
    if found.run.task == "classify":
        return wrap(found.model, labels=found.assets.labels)
    # An imported tokenizer may have several: the document's end and a message's.
    ends = list(end_of_text(found.assets))
    return wrap(found.model, eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=found.assets.separator_id)


def to_run(model: Any, out: Path | str, *, like: Path | str, plugins: Sequence[str] = (), trust: bool = False) -> Path:
    """Write a model of the family as a run folder, which `generate`, `classify` and `load_run` read.

    Args:
        model: what was trained further: a model of the family, adapters merged.
        out: the folder; there is no run in it yet.
        like: the run that it came from, which has the tokenizer and the settings.
        plugins: as for `from_run`.
        trust: likewise.

    Raises:
        InputError: for a model of another architecture than the run's, or with other weights than such a model has.
    """
    if not isinstance(model, BlockyardPreTrainedModel):
        raise InputError(f"a {type(model).__name__} is no model of the family; merge adapters (merge_and_unload) first")
    out, like = Path(out), Path(like)
    run = read_run(like, plugins=plugins, trust=trust)
    source = from_run(like, plugins=plugins, trust=trust)
    # The settings come from the other run: weights of another shape under them would be read as something else.
    if source.config.architecture != model.config.architecture or source.config.task != model.config.task:
        raise InputError(f"the model has another architecture than {like}, whose settings it would be stored with")
    state = model.model.state_dict()
    if foreign := sorted(state.keys() ^ source.model.state_dict().keys()):
        raise InputError(f"{foreign[0]} is no weight of {run.task} models; merge adapters (merge_and_unload) first")
    check_run_folder(out, resume=False)
    with writing_folder(out) as temporary:
        for name in _ASSETS:
            if (like / name).is_dir():
                shutil.copytree(like / name, temporary / name)
            elif (like / name).is_file():
                shutil.copy2(like / name, temporary / name)
        # A checkpoint of step 0, as an import writes it: there is no optimizer to go on with.
        require("safetensors", extra="train")
        save_checkpoint(temporary / CHECKPOINTS, 0, model=state, optimizer={}, state={"step": 0})
    return out
