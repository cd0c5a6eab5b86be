"""The model that a transplant starts from: of others, of a run, or in memory; always with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from blockyard.errors import InputError
from blockyard.files import user_path
from blockyard.models.lm import TransformerLM
from blockyard.pretrained import Pretrained, load_pretrained
from blockyard.pretrained.folder import lacks_tokenizer, read_trained
from blockyard.text.library import TOKENIZER
from blockyard.text.saved import load_tokenizer
from blockyard.text.tokenizer import Tokenizer
from blockyard.training.folder import CONFIG


def read_original(
    model: str | Path | nn.Module | Pretrained, tokenizer: str | Path | None, *, trust: bool
) -> tuple[Pretrained, Tokenizer]:
    """Return the model to start from, and its tokenizer.

    Args:
        model: a folder or .gguf file that `load_pretrained` reads, a run folder, or a module: ours or of transformers.
        tokenizer: a folder with a tokenizer, where the model brings none.
        trust: import whatever plug-ins a run folder names.

    Raises:
        InputError: for what is none of these, cannot be read, or has no tokenizer.
    """
    found = _read(model, tokenizer, trust)
    if found.tokenizer is None:
        raise lacks_tokenizer(found.where)
    return found, found.tokenizer


def _read(model: str | Path | nn.Module | Pretrained, tokenizer: str | Path | None, trust: bool) -> Pretrained:
    if isinstance(model, Pretrained):
        return model
    if isinstance(model, TransformerLM):
        coder = None if tokenizer is None else load_tokenizer(tokenizer)
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        return Pretrained(model, coder, "blockyard", {}, "a model in memory", dtype, None)
    if isinstance(model, nn.Module):
        return load_pretrained(model, tokenizer=tokenizer)
    path = user_path(model)
    if (path / CONFIG).is_file():
        if tokenizer is not None:
            raise InputError(f"tokenizer={str(tokenizer)!r} does not go with a run: {model} has its own")
        return read_trained(path, trust=trust)
    # Before minutes of reading.
    if path.is_dir() and tokenizer is None and not (path / TOKENIZER).is_file():
        raise lacks_tokenizer(path)
    return load_pretrained(model, tokenizer=tokenizer)
