"""Text classification as a task: labelled documents in, accuracy and macro-F1 out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.models.trunk import seeded
from blockyard.tasks.classify.config import LabelledConfig
from blockyard.tasks.classify.data import LabelledData, TextAssets, load_labelled, needed
from blockyard.tasks.classify.model import EncoderConfig, TextClassifier
from blockyard.tasks.kind import ClassifyOptions, Quality, Run, TaskKind, register_task
from blockyard.training.auxiliary import with_auxiliary
from blockyard.training.config import TrainConfig
from blockyard.training.task import Batch

if TYPE_CHECKING:
    from blockyard.tasks.classify.report import ClassifyParts


class ClassifyTask:
    """A `TextClassifier` and the labelled documents that it learns.

    Tokens and FLOPs of a step are those of the documents on average, padding not counted.

    Args:
        model_config: the architecture.
        data: the documents.
        config: batch size, seed, evaluation.
    """

    def __init__(self, model_config: EncoderConfig, data: LabelledData, config: TrainConfig) -> None:
        with seeded(config.seed):
            model = TextClassifier(model_config)
        self.model: nn.Module = model
        self.data, self.config = data, config
        lengths = data.chunk_lengths()
        extra = model_config.length - model_config.context
        flops = cache(lambda length: model.cost(length + extra).flops)
        tokens = sum(map(sum, lengths)) / len(lengths)
        self.tokens_per_step = max(1, round(config.batch_size * tokens))
        per_row = sum(flops(length) for chunks in lengths for length in chunks) / len(lengths)
        # The backward pass does every product twice: for the inputs and for the weights.
        self.flops_per_step = round(3 * config.batch_size * per_row)
        self.fingerprint: dict[str, Any] = data.fingerprint

    def batch(self, step: int, rows: slice) -> Batch:
        """Return rows of the global batch of a step."""
        return self.data.batch(self.config.seed, step, self.config.batch_size, rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean nats per document, plus the blocks' own losses."""
        output = model(batch["input_ids"], padding_mask=needed(batch["padding_mask"]), targets=batch["targets"])
        return with_auxiliary(output.loss, output.aux, self.config, "class_loss")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return `val_loss` (nats per document), `val_accuracy` and `val_macro_f1` over the validation documents."""
        loss, confusion = score(model, self.data, self.config.batch_size, self.config.eval_batches)
        accuracy = float(confusion.diagonal().sum() / confusion.sum())
        return {"val_loss": loss, "val_accuracy": accuracy, "val_macro_f1": macro_f1(confusion)}

    def save_assets(self, folder: Path) -> None:
        """Save the tokenizer and the labels."""
        self.data.assets.save(folder)


def score(model: nn.Module, data: LabelledData, batch_size: int, limit: int | None) -> tuple[float, Tensor]:
    """Return the mean loss over validation documents, and the confusion matrix [truth, found], int64."""
    classes = len(data.assets.labels)
    confusion = torch.zeros(classes * classes, dtype=torch.long)
    device = next(model.parameters()).device
    loss = 0.0
    for batch in data.val_batches(batch_size, limit):
        moved = {key: value.to(device) for key, value in batch.items()}
        logits = model(moved["input_ids"], padding_mask=needed(moved["padding_mask"])).logits.float()
        loss += float(F.cross_entropy(logits, moved["targets"], reduction="sum"))
        places = (moved["targets"] * classes + logits.argmax(-1)).cpu()
        confusion += torch.bincount(places, minlength=classes * classes)
    return loss / int(confusion.sum()), confusion.view(classes, classes)


def macro_f1(confusion: Tensor) -> float:
    """Return the mean of the classes' F1 = 2 TP / (2 TP + FP + FN), over the classes that occur or are found."""
    right = confusion.diagonal().double()
    total = (confusion.sum(0) + confusion.sum(1)).double()
    seen = total > 0
    return float((2 * right[seen] / total[seen]).mean())


@register_task
class TextClassification(TaskKind[EncoderConfig, LabelledConfig, LabelledData]):
    """Tell the class of a text."""

    name = "classify"
    title = "text classifier"
    data_title = "the labelled text"
    model_config = EncoderConfig
    data_config = LabelledConfig
    from_data = MappingProxyType({"vocab_size": 1, "n_classes": 1})
    own_data_options = ("path", "val_path", "format", "cache_dir")

    def report(self) -> ClassifyParts:
        from blockyard.tasks.classify.report import ClassifyParts

        return ClassifyParts()

    def classify(self, trained: Any, file: Path, options: ClassifyOptions) -> list[dict[str, Any]]:
        from blockyard.tasks.classify.predict import classify

        return classify(trained, file, options)

    def load_data(self, data: LabelledConfig, model: EncoderConfig) -> LabelledData:
        return load_labelled(data, model.context, model.chunks)

    def make_task(self, run: Run[EncoderConfig, LabelledConfig], data: LabelledData) -> ClassifyTask:
        return ClassifyTask(run.model, data, run.train)

    def build_model(self, model: EncoderConfig) -> TextClassifier:
        return TextClassifier(model)

    def fit(self, model: EncoderConfig, assets: TextAssets) -> EncoderConfig:
        return replace(model, vocab_size=assets.tokenizer.vocab_size, n_classes=len(assets.labels))

    def load_assets(self, folder: Path) -> TextAssets:
        return TextAssets.load(folder)

    def quality(self, data: LabelledData) -> Quality:
        return Quality("accuracy", "", "val_accuracy", "higher", loss_unit="nats/document", margin=0.01)

    def figures(self, run: Run[EncoderConfig, LabelledConfig], data: LabelledData, model: nn.Module) -> dict[str, Any]:
        """Return macro-F1 and the confusion matrix over all validation documents."""
        _, confusion = score(model, data, run.train.batch_size, None)
        accuracy = float(confusion.diagonal().sum() / confusion.sum())
        return {
            "labels": list(data.assets.labels),
            "accuracy": accuracy,
            "macro_f1": macro_f1(confusion),
            "confusion": confusion.tolist(),
        }
