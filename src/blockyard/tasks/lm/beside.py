"""A trained language model on the validation rows of others: nats per byte, whatever its tokenizer.

Every row that the compared choices are evaluated on is read as text and cut into the model's own tokens, so that all
see the same stretches with nothing before them. A row's first token is given to every model and counts for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.generation.stream import prompt_tokens
from blockyard.models.lm import LMConfig
from blockyard.tasks.kind import Run
from blockyard.tasks.run import load_run
from blockyard.text import TextData, TextDataConfig

REPLACEMENT = "\ufffd"


def loss_beside(folder: Path, run: Run[LMConfig, TextDataConfig], data: TextData) -> dict[str, Any]:
    """Return the figures of a trained run: its name, size, nats per byte, and how many bytes that is the mean of.

    Args:
        folder: the run's.
        run: of the choices, which says how many rows are read.
        data: theirs.

    Raises:
        InputError: as `load_run`.
    """
    model, tokenizer, _ = load_run(folder, tasks=("lm",))
    nats, size = 0.0, 0
    with torch.no_grad():
        for text in rows_of(run, data):
            ids = prompt_tokens(tokenizer, text)[: model.config.context]
            given = len(getattr(tokenizer, "prefix_ids", ())) + 1
            if len(ids) <= given:
                continue
            logits = model(torch.tensor([ids])).logits[0, given - 1 : -1]
            nats += float(F.cross_entropy(logits.float(), torch.tensor(ids[given:]), reduction="sum"))
            size += sum(len(tokenizer.token_bytes(token)) for token in ids[given:])
    return {
        "name": folder.name or str(folder),
        "folder": str(folder),
        "parameters": sum(p.numel() for p in model.parameters()),
        "blocks": model.config.choice,
        "tokenizer": f"{tokenizer.name}, {tokenizer.vocab_size:,}",
        "nats_per_byte": nats / size if size else None,
        "bytes": size,
    }


def rows_of(run: Run[LMConfig, TextDataConfig], data: TextData) -> Iterator[str]:
    """Yield the validation rows as text, or, of rows that hold documents, each of these without what ends it;
    characters that their ends cut through are left out."""
    for batch in data.val_batches(run.train.batch_size, run.model.context, run.train.eval_batches):
        for row in _stretches(batch, data.tokenizer.separator_id):
            yield data.tokenizer.decode(row).strip(REPLACEMENT)


def _stretches(batch: Mapping[str, Tensor], separator: int) -> Iterator[list[int]]:
    """Yield the tokens of every row of a batch, or of every document in its rows."""
    if "segments" not in batch:
        yield from torch.cat([batch["input_ids"], batch["targets"][:, -1:]], dim=1).tolist()
        return
    for ids, targets, numbers in zip(batch["input_ids"], batch["targets"], batch["segments"]):
        for number in range(int(numbers.max()) + 1):
            part = numbers == number
            last = int(targets[part][-1])
            yield ids[part].tolist() + ([] if last == separator else [last])
