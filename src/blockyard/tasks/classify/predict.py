"""`blockyard classify` for runs of `train classify`: rows of a CSV or JSONL file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from blockyard.errors import InputError
from blockyard.tasks.classify.data import Documents, TextAssets, needed
from blockyard.tasks.classify.model import TextClassifier

if TYPE_CHECKING:
    from blockyard.tasks.kind import ClassifyOptions
    from blockyard.tasks.run import Trained


def classify(trained: Trained, file: Path, options: ClassifyOptions) -> list[dict[str, Any]]:
    """Return one entry per row: its number from 1, its label if the file has one, the likeliest classes.

    Raises:
        InputError: for a file that cannot be read or a row without text, naming file and row.
    """
    from blockyard.tasks.classify.reader import read_rows
    from blockyard.tasks.kind import likeliest

    if options.snr is not None:
        raise InputError(f"--snr={options.snr:g}: text has none; it is for runs of `train signal`")
    for name in ("detect", "waterfall", "annotations"):
        if getattr(options, name):
            flag = "--out x.sigmf-meta" if name == "annotations" else f"--{name}"
            raise InputError(f"{flag}: text has no samples; it is for runs of `train signal`")
    if options.by != "frame":
        raise InputError(f"--by={options.by} is for recordings, not for the text of this run")
    if options.data:
        raise InputError(f"--data.{next(iter(options.data))} is for recordings, not for the text of this run")
    model, assets, run = trained
    rows = read_rows(
        file,
        format="auto",
        text_field=options.text_field or run.data.text_field,
        label_field=options.label_field or run.data.label_field,
        labels="optional",
    )
    probabilities = probabilities_of(model, assets, [row.text for row in rows], options.batch_size)
    found = []
    for number, (row, values) in enumerate(zip(rows, probabilities), start=1):
        entry: dict[str, Any] = {"row": number}
        if row.label is not None:
            entry["label"] = row.label
        found.append(entry | {"is": likeliest(values, assets.labels, options.top)})
    return found


def probabilities_of(
    model: TextClassifier, assets: TextAssets, texts: Sequence[str], batch_size: int
) -> list[list[float]]:
    """Return the probability of every class for each text."""
    config = model.config
    documents = Documents(texts, assets.tokenizer, config.context * config.chunks)
    found: list[list[float]] = []
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            chosen = range(start, min(start + batch_size, len(texts)))
            batch = documents.padded(chosen, config.context, config.chunks)
            logits = model(batch["input_ids"], padding_mask=needed(batch["padding_mask"])).logits
            found += logits.float().softmax(-1).tolist()
    return found
