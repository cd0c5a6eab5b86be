"""Recall as a task: synthetic sequences in, the share of right answers out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically
from blockyard.models.lm import LMConfig, TransformerLM, build_lm
from blockyard.tasks.kind import Quality, Run, TaskKind, register_task
from blockyard.tasks.recall.config import EARLY, RecallConfig
from blockyard.tasks.recall.data import IGNORED, RecallData
from blockyard.training.auxiliary import with_auxiliary
from blockyard.training.config import TrainConfig
from blockyard.training.task import Batch

if TYPE_CHECKING:
    from blockyard.tasks.recall.report import RecallParts

ASSETS = "recall.json"


class RecallTask:
    """A `TransformerLM` and a recall task.

    Args:
        model_config: the architecture.
        data: the task's rows.
        config: batch size, seed, evaluation.
    """

    def __init__(self, model_config: LMConfig, data: RecallData, config: TrainConfig) -> None:
        model = build_lm(model_config, config.seed)
        self.model: nn.Module = model
        self.data, self.config = data, config
        self.tokens_per_step = config.batch_size * model_config.context
        self.flops_per_step = 3 * config.batch_size * model.cost(model_config.context).flops
        self.fingerprint: dict[str, Any] = data.fingerprint

    def batch(self, step: int, rows: slice) -> Batch:
        """Return rows of the global batch of a step."""
        return self.data.batch(self.config.seed, step, self.config.batch_size, rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean nats per answer, plus the blocks' own losses."""
        output = model(batch["input_ids"], targets=batch["targets"])
        return with_auxiliary(output.loss, output.aux, self.config, "recall_loss")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return `val_loss`, nats per answer, and `val_accuracy`, the share of right answers: means over the sizes."""
        limit = self.config.eval_batches * self.config.batch_size
        found = [score(model, self.data, size, self.config.batch_size, limit) for size in self.data.config.all_sizes]
        losses, right = zip(*found)
        return {"val_loss": sum(losses) / len(found), "val_accuracy": sum(right) / len(found)}

    def save_assets(self, folder: Path) -> None:
        """Save the vocabulary's size and the sequence's length."""
        write_atomically(folder / ASSETS, json.dumps(self.data.assets) + "\n")


def score(
    model: nn.Module, data: RecallData, size: int, batch_size: int, limit: int | None = None
) -> tuple[float, float]:
    """Return nats per answer and share of right answers on the validation rows of a size."""
    rows = data.val_rows(size, limit)
    device = next(model.parameters()).device
    loss, right, count = 0.0, 0, 0
    for start in range(0, len(rows["input_ids"]), batch_size):
        ids, targets = (rows[key][start : start + batch_size].to(device) for key in ("input_ids", "targets"))
        logits = model(ids).logits
        asked = targets != IGNORED
        answers, wanted = logits[asked].float(), targets[asked]
        loss += float(F.cross_entropy(answers, wanted, reduction="sum"))
        right += int((answers.argmax(-1) == wanted).sum())
        count += len(wanted)
    return loss / count, right / count


@register_task
class Recall(TaskKind[LMConfig, RecallConfig, RecallData]):
    """Give what stood earlier in the sequence."""

    name = "recall"
    title = "recall"
    data_title = "the recall task"
    model_config = LMConfig
    data_config = RecallConfig
    from_data = MappingProxyType({"vocab_size": 1, "context": 1})

    def report(self) -> RecallParts:
        from blockyard.tasks.recall.report import RecallParts

        return RecallParts()

    def load_data(self, data: RecallConfig, model: LMConfig) -> RecallData:
        return RecallData(data)

    def make_task(self, run: Run[LMConfig, RecallConfig], data: RecallData) -> RecallTask:
        return RecallTask(run.model, data, run.train)

    def data_bytes(self, data: RecallConfig, model: LMConfig) -> int:
        # Rows of one size at a time: tokens and targets, int64.
        return 2 * 8 * data.val_rows * data.row_length

    def older_data(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if data.get("task", "mqar") == "mqar":
            return EARLY
        return {f.name: f.default for f in fields(RecallConfig) if f.name in EARLY}

    def terms(self, run: Run[LMConfig, RecallConfig], data: RecallData) -> dict[str, Any]:
        found = super().terms(run, data)
        if run.data.task == "mqar" and run.data.definition == "zoology":
            return found
        # Folders from before these options do not name them.
        return {key: value for key, value in found.items() if key.removeprefix("data.") not in EARLY}

    def build_model(self, model: LMConfig) -> TransformerLM:
        return TransformerLM(model)

    def fit(self, model: LMConfig, assets: dict[str, int]) -> LMConfig:
        return replace(model, vocab_size=assets["vocab_size"], context=assets["context"])

    def load_assets(self, folder: Path) -> dict[str, int]:
        try:
            found = parse_json((folder / ASSETS).read_text(encoding="utf-8"))
            return {"vocab_size": int(found["vocab_size"]), "context": int(found["context"])}
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{folder / ASSETS} cannot be read: {error}; train the run again") from error

    def quality(self, data: RecallData) -> Quality:
        """Return accuracy; where nothing can be recalled, the loss, which cannot be below ln V."""
        if data.config.task == "random":
            return Quality(unit="nats/token", facts={"floor": math.log(data.config.n_tokens)})
        return Quality("accuracy", "", "val_accuracy", "higher", loss_unit="nats/answer", margin=0.01)

    def figures(self, run: Run[LMConfig, RecallConfig], data: RecallData, model: nn.Module) -> dict[str, Any]:
        """Return the accuracy and loss for each size."""
        sizes = data.config.all_sizes
        found = [score(model, data, size, run.train.batch_size) for size in sizes]
        return {
            "size": data.config.size_word,
            "sizes": list(sizes),
            "accuracy": [right for _, right in found],
            "loss": [loss for loss, _ in found],
        }
