"""A foreign language model as one of ours: its configuration read, its weights in their places, its logits compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, suggest
from blockyard.machine.memory import refuse_beyond_memory
from blockyard.models.estimate import count_model, on_meta
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.multihead.fields import Fields
from blockyard.nn.rotary import RotaryPositionalEmbedding
from blockyard.pretrained.families import FAMILIES, REFUSED
from blockyard.pretrained.parity import Parity, compare_with
from blockyard.pretrained.parts import Family
from blockyard.pretrained.sources import Source, open_source
from blockyard.pretrained.weights import read_weights
from blockyard.text.library import GENERATION, TOKENIZER, LibraryTokenizer, read_files

if TYPE_CHECKING:
    from blockyard.tasks.kind import Run
    from blockyard.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pretrained:
    """A foreign model, read.

    Args:
        model: ours, in eval mode.
        tokenizer: the one that came with it; None where none did.
        family: what it was read as.
        config: its configuration as it came.
        where: where it came from.
        dtype: the type that its weights had, by its name in torch.
        parity: how far its logits are from the original's; None where that was not asked.
        run: the run that it was trained in, where it is none of others'.
    """

    model: TransformerLM
    tokenizer: Tokenizer | None
    family: str
    config: Mapping[str, Any]
    where: str
    dtype: str
    parity: Parity | None
    run: Run[Any, Any] | None = None

    def _repr_html_(self) -> str:
        """Return what a notebook shows: where the model came from, how near it is to the original, its own table."""
        near = "not compared with the original" if self.parity is None else str(self.parity)
        told = f"{self.family} from {self.where}, its weights {self.dtype}; {near}"
        return f"<p>{escape(told)}</p>{self.model._repr_html_()}"


def load_pretrained(
    model: str | Path | nn.Module,
    *,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = torch.float32,
    check: bool = True,
) -> Pretrained:
    """Read a foreign language model: Llama, Mistral, Qwen, Phi-3, OLMo 2, GPT-2, GPT-NeoX, Mixtral, DeepSeek, …

    Args:
        model: a folder with config.json and safetensors, a .gguf file (by transformers), or a model of transformers.
        tokenizer: a folder with a tokenizer.json, where the model's own has none.
        dtype: type of the weights; None keeps theirs.
        check: compare the logits of random ids with transformers', where that is installed.

    Raises:
        InputError: for a family, a field of the configuration or a key of the weights that is not understood, a damaged
            file, or other logits than transformers'.
    """
    source = open_source(model)
    family, config = read_config(source.config, source.where)
    # Before a byte of weights is read: sizes come from a file.
    count = count_model(config, TransformerLM, f"the model of {source.where}")
    refuse_beyond_memory(
        count.bytes, f"the model of {source.where} takes at least {{}} ({count.parameters:,} parameters)"
    )
    # A damaged one is told before minutes of reading.
    coder = _tokenizer(source, config, tokenizer)
    ours = filled(family, config, source, dtype)
    parity = compare_with(source, ours) if check else None
    # What export writes again, whatever we compute in.
    theirs = str(source.get(min(source.names)).dtype).removeprefix("torch.")
    return Pretrained(ours, coder, family.name, dict(source.config), source.where, theirs, parity)


def read_config(said: Mapping[str, Any], where: str) -> tuple[Family, LMConfig]:
    """Return the family of a configuration, and the configuration in our terms.

    Raises:
        InputError: for a family that is not read, or a field that is not understood.
    """
    # As text: a file may hold a list there, which no table can be asked for.
    kind = str(said.get("model_type"))
    if kind in REFUSED:
        raise InputError(f"{where}: model_type {kind!r} is not read: {REFUSED[kind]}")
    if kind not in FAMILIES:
        near = suggest(kind, FAMILIES) or f"; read are {', '.join(FAMILIES)}"
        raise InputError(f"{where}: model_type {kind!r} is not read{near}")
    family, fields = FAMILIES[kind], Fields(said, where)
    fields.left.discard("model_type")
    try:
        config = family.read(fields)
    except InputError as error:
        # What our own options refuse says nothing of the file.
        raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from None
    fields.finish()
    return family, config


def filled(family: Family, config: LMConfig, source: Source, dtype: torch.dtype | None) -> TransformerLM:
    """Return our model with the source's weights; no weight is drawn at random first."""
    # Without memory first: 135M random numbers would take longer to draw than the file takes to read.
    try:
        model = on_meta(lambda: TransformerLM(config))
    except InputError as error:
        raise InputError(f"{source.where}: {error}") from None

    def get(name: str) -> Tensor:
        # Copied at once: nothing of a model in memory is shared, and of a file no more is held than one tensor.
        weight = source.get(name)
        if not weight.is_floating_point():
            raise InputError(f"{source.where}: {name} has type {weight.dtype}; weights are floating numbers here")
        return weight.to(dtype or weight.dtype, copy=True)

    state = read_weights(family, source.names, get, model, source.where)
    for name, weight in state.items():
        if not weight.is_contiguous() or weight.untyped_storage().nbytes() != weight.nbytes:
            # Turned, or cut out of a larger one.
            state[name] = weight.clone(memory_format=torch.contiguous_format)
    if config.tied:
        state["lm_head.weight"] = state["token_embeddings.weight"]
    model.load_state_dict(state, assign=True)
    if config.tied:
        model.lm_head.weight = model.token_embeddings.weight
    for module in model.modules():
        # On the meta device there are no tables to make ready.
        if isinstance(module, RotaryPositionalEmbedding):
            module.prepare(min(config.context, READY))
    return model.eval()


# Rotary tables that are made at once; longer ones grow when a text needs them.
READY = 8192


def _tokenizer(source: Source, config: LMConfig, folder: str | Path | None) -> Tokenizer | None:
    if folder is not None:
        files = read_files(Path(folder))
    elif source.folder is not None and (source.folder / TOKENIZER).is_file():
        files = read_files(source.folder)
    else:
        files = dict(source.files)
    if not files:
        return None
    ends = source.config.get("eos_token_id")
    if GENERATION not in files and ends is not None:
        # Without one the model's own configuration says what ends a text, and a conversation may end otherwise than the
        # tokenizer's documents.
        files[GENERATION] = json.dumps({"eos_token_id": ends})
    return LibraryTokenizer(files, config.vocab_size)
