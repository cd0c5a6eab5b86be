"""Language modelling as a task: token batches in, nats per token (and per byte) out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.models.lm import LMConfig, TransformerLM, build_lm
from blockyard.nn.segments import Segments
from blockyard.tasks.kind import Quality, Run, TaskKind, register_task
from blockyard.text import TextData, TextDataConfig, Tokenizer, load_text, load_tokenizer
from blockyard.text.load import named_tokenizer
from blockyard.text.packed import PackedText
from blockyard.text.progress import ReadingLines
from blockyard.training.auxiliary import with_auxiliary
from blockyard.training.config import TrainConfig
from blockyard.training.task import Batch

if TYPE_CHECKING:
    from blockyard.tasks.lm.report import LMParts

# Of one batch when losses are told by position: 64 MiB of float32.
MOST_LOGITS = 1 << 24
VARIES = "with data.pack=documents mixers see other lengths in every batch, and only the rest of a block is compiled"


class LMTask:
    """A `TransformerLM` and the text that it learns.

    Args:
        model_config: the architecture.
        data: the text as tokens.
        config: batch size, seed, evaluation.
    """

    def __init__(self, model_config: LMConfig, data: TextData, config: TrainConfig) -> None:
        model = build_lm(model_config, config.seed)
        self.model: nn.Module = model
        self.data, self.config, self.context = data, config, model_config.context
        self.tokens_per_step = config.batch_size * self.context
        # The backward pass does every product twice: for the inputs and for the weights.
        self.flops_per_step = 3 * config.batch_size * model.cost(self.context).flops
        self.fingerprint: dict[str, Any] = data.fingerprint
        # Why the shapes that are computed with change from step to step.
        self.varies = VARIES if isinstance(data, PackedText) else None

    def batch(self, step: int, rows: slice) -> Batch:
        """Return rows of the global batch of a step."""
        return self.data.batch(self.config.seed, step, self.config.batch_size, self.context, rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean nats per token, plus the blocks' own losses, weighted; what the blocks report is logged."""
        segments = batch.get("segments")
        if segments is None:
            output = model(batch["input_ids"], targets=batch["targets"])
            return with_auxiliary(output.loss, output.aux, self.config, "lm_loss")
        output = model(batch["input_ids"], targets=batch["targets"], segments=segments)
        # Rows hold differently many targets: so weighted, the mean over passes and ranks is that over all of them.
        return with_auxiliary(output.loss * batch["share"], output.aux, self.config, "lm_loss")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return `val_loss`: nats per token over the validation batches; `val_loss_per_byte` for tokens that are not
        bytes."""
        total, count = 0.0, 0
        device = next(model.parameters()).device
        for batch in self.data.val_batches(self.config.batch_size, self.context, self.config.eval_batches):
            predicted = int((batch["targets"] >= 0).sum())
            moved = {k: v.to(device) for k, v in batch.items()}
            total += float(model(**moved).loss) * predicted
            count += predicted
        figures = {"val_loss": total / count}
        if self.data.tokenizer.name != "byte":
            figures["val_loss_per_byte"] = figures["val_loss"] / self.data.bytes_per_token
        return figures

    def save_assets(self, folder: Path) -> None:
        """Save the tokenizer."""
        self.data.tokenizer.save(folder / "tokenizer")


@register_task
class LanguageModelling(TaskKind[LMConfig, TextDataConfig, TextData]):
    """Predict the next token of a text."""

    name = "lm"
    title = "language model"
    data_title = "the text"
    model_config = LMConfig
    data_config = TextDataConfig
    from_data = MappingProxyType({"vocab_size": 1})
    decodes = True

    def report(self) -> LMParts:
        from blockyard.tasks.lm.report import LMParts

        return LMParts()

    def load_data(self, data: TextDataConfig, model: LMConfig) -> TextData:
        return load_text(data, model.context, ReadingLines())

    def older_data(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"pack": "stream"}

    def make_task(self, run: Run[LMConfig, TextDataConfig], data: TextData) -> LMTask:
        return LMTask(run.model, data, run.train)

    def build_model(self, model: LMConfig) -> TransformerLM:
        return TransformerLM(model)

    def fit(self, model: LMConfig, assets: Tokenizer) -> LMConfig:
        return replace(model, vocab_size=assets.vocab_size)

    def load_assets(self, folder: Path) -> Tokenizer:
        return load_tokenizer(folder / "tokenizer")

    def named_assets(self, data: TextDataConfig) -> Tokenizer | None:
        return named_tokenizer(data)

    def quality(self, data: TextData) -> Quality:
        is_byte = data.tokenizer.name == "byte"
        return Quality(
            unit="nats/byte" if is_byte else "nats/token",
            facts={"bytes_per_token": 1.0 if is_byte else data.bytes_per_token},
        )

    def beside(self, folder: Path, run: Run[LMConfig, TextDataConfig], data: TextData) -> dict[str, Any]:
        """Return nats per byte on the validation rows of others, in the run's own tokens."""
        from blockyard.tasks.lm.beside import loss_beside

        return loss_beside(folder, run, data)

    def sample_data(self, run: Run[LMConfig, TextDataConfig]) -> TextData:
        """Return random tokens: a text may take long to read, and memory does not depend on what it says."""
        import numpy as np

        from blockyard.text import ByteTokenizer

        context = run.model.context
        tokens = np.random.default_rng(0).integers(0, run.model.vocab_size, 64 * (context + 1)).astype(np.uint32)
        return TextData(tokens, ByteTokenizer(), val_fraction=0.1, context=context, fingerprint={})

    def at_length(self, model: LMConfig, length: int) -> LMConfig:
        return replace(model, context=length)

    def figures(self, run: Run[LMConfig, TextDataConfig], data: TextData, model: nn.Module) -> dict[str, Any]:
        """Return the loss by the number of tokens read of the row, on the validation rows, in groups that double."""
        context = run.model.context
        rows = max(1, min(run.train.batch_size, MOST_LOGITS // (context * run.model.vocab_size)))
        limit = math.ceil(run.train.eval_batches * run.train.batch_size / rows)
        device = next(model.parameters()).device
        total, count = torch.zeros(2, context, dtype=torch.float64)
        for batch in data.val_batches(rows, context, limit):
            targets, segments = batch["targets"], batch.get("segments")
            logits = model(batch["input_ids"].to(device), segments=segments).logits.float()
            losses = F.cross_entropy(logits.transpose(1, 2), targets.to(device), reduction="none").double().cpu()
            places = torch.arange(context).expand_as(targets) if segments is None else Segments(segments).positions
            counted = targets >= 0
            total.index_add_(0, places[counted], losses[counted])
            count.index_add_(0, places[counted], torch.ones_like(losses[counted]))
        ends = [1 << power for power in range(context.bit_length()) if 1 << power < context] + [context]
        # Documents may all be shorter than a row.
        groups = [(a, b) for a, b in zip([0, *ends[:-1]], ends) if count[a:b].any()]
        return {
            "positions": [b for _, b in groups],
            "position_loss": [round(float(total[a:b].sum() / count[a:b].sum()), 5) for a, b in groups],
        }

    def terms(self, run: Run[LMConfig, TextDataConfig], data: TextData) -> dict[str, Any]:
        spelt = data.fingerprint.get("special_tokens_sha256")
        return {
            **({} if run.data.pack == "stream" else {"pack": run.data.pack}),
            **({"special_tokens": run.data.special_tokens} if spelt else {}),
            "data sha256": data.fingerprint.get("sha256"),
            "tokenizer": data.fingerprint.get("tokenizer_sha256") or data.tokenizer.name,
            "val_fraction": run.data.val_fraction,
        }
