"""What a comparison of language models adds to its report: what each choice writes, and what a loss per token means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockyard.generation.sampling import SamplingConfig
from blockyard.generation.stream import generate_text
from blockyard.models.inside import attention_of
from blockyard.report.parts import Parts, Section, Table, Terms
from blockyard.report.ranking import rank
from blockyard.report.schema import Report, Sample, bytes_per_token
from blockyard.tasks.run import load_run
from blockyard.text import TextData

PROMPT_CHARACTERS = 48
ATTENTION_ROWS = 4


class LMParts(Parts):
    """Samples, and how losses of tokens and of bytes compare."""

    def sample(self, terms: Terms, folder: Path, data: TextData) -> Sample:
        model, tokenizer, _ = load_run(folder)
        prompt = terms.prompt if terms.prompt is not None else beginning(data)
        sampling = SamplingConfig(temperature=terms.temperature, seed=0)
        pieces = generate_text(model, tokenizer, prompt, max_new_tokens=terms.sample_tokens, sampling=sampling)
        return {"prompt": prompt, "text": "".join(pieces), "seed": 0}

    def attention(self, folder: Path, data: TextData) -> list[dict[str, Any]] | None:
        model: Any = load_run(folder).model
        rows = next(iter(data.val_batches(ATTENTION_ROWS, model.config.context, 1)))
        ids, segments = rows["input_ids"], rows.get("segments")
        # Of rows that hold documents the first one, and so much of it as every row has.
        length = ids.shape[1] if segments is None else int((segments == segments[:, :1]).sum(1).min())
        return attention_of(model, ids[:, :length]) if length > 1 else None

    def notes(self, terms: Terms, data: TextData, units_read: Mapping[str, int]) -> list[str]:
        read = [
            f"{name} reads the training text {tokens / len(data.train):.1f} times."
            for name, tokens in units_read.items()
            if tokens > len(data.train)
        ]
        return [f"Of the text: {note}." for note in data.notes] + read

    def sections(self, report: Report) -> list[Section]:
        beside = report["quality"].get("beside") or []
        if not beside:
            return []
        per_byte = bytes_per_token(report)
        rows = [
            (each["name"], f"{each['parameters']:,}", each["tokenizer"], _figure(each["nats_per_byte"]), "as it is")
            for each in beside
        ]
        for row in rank(report):
            choice = next(each for each in report["choices"] if each["name"] == row["name"])
            mean = row["final"]["mean"]
            shown = _figure(None if mean is None else mean / per_byte)
            rows.append((row["name"], f"{choice['parameters']:,}", "the comparison's", shown, "trained here"))
        lede = (
            "Models that were trained elsewhere, on the same validation rows in their own tokens, without training: "
            "nats per byte, since tokens differ. What they were trained on is not known here; this text may be in it."
        )
        columns = ("model", "parameters", "tokenizer", "nats per byte", "how")
        return [Section("Beside trained models", lede, (Table("", columns, rows),))]

    def how_to_read(self, report: Report) -> list[str]:
        per_byte = bytes_per_token(report)
        meaning = (
            "A token is a byte, so it compares with any other byte-level result."
            if per_byte == 1
            else f"A token is {per_byte:.2f} bytes on average; only the figure per byte compares with "
            "results of other tokenizers."
        )
        unit = report["quality"]["unit"]
        return [f"Loss is the mean cross-entropy on held-out text in {unit}; lower is better. {meaning}"]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def beginning(data: TextData) -> str:
    """Return the first words of the validation text, cut after a blank where there is one."""
    text = data.tokenizer.decode([int(t) for t in data.val[:PROMPT_CHARACTERS]]).replace("\ufffd", "")
    text = text[:PROMPT_CHARACTERS].lstrip()
    cut = max(text.rfind(" "), text.rfind("\n"))
    return text[: cut + 1] if cut > 0 else text
