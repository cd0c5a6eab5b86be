"""Language modelling as a task: token batches in, nats per token (and per byte) out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.data import TextData
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.training.config import TrainConfig
from blockyard.training.task import Batch


def build_lm(config: LMConfig, seed: int) -> TransformerLM:
    """A model whose initial weights are a function of the seed; the process's random state is left as it was."""
    state, python_state = torch.get_rng_state(), random.getstate()
    torch.manual_seed(seed)
    try:
        return TransformerLM(config)
    finally:
        torch.set_rng_state(state)
        random.setstate(python_state)


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

    def batch(self, step: int, rows: slice) -> Batch:
        """Rows of the global batch of a step."""
        return self.data.batch(self.config.seed, step, self.config.batch_size, self.context, rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per token, plus the blocks' own losses, weighted; what the blocks report is logged."""
        output = model(batch["input_ids"], targets=batch["targets"])
        loss, stats = output.loss, {}
        if output.aux and output.aux.get("losses"):
            stats["lm_loss"] = loss.detach()
            for name, value in output.aux["losses"].items():
                stats[f"loss/{name}"] = value.detach()
                weight = self.config.z_loss_weight if name == "z" else self.config.aux_loss_weight
                loss = loss + weight * value
        if output.aux:
            for layer, found in output.aux.get("stats", {}).items():
                stats |= {f"{layer}/{name}": v.detach() for name, v in found.items() if isinstance(v, Tensor)}
        return loss, stats

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """`val_loss`: nats per token over the validation batches; `val_loss_per_byte` for tokens that are not bytes."""
        total, count = 0.0, 0
        device = next(model.parameters()).device
        for batch in self.data.val_batches(self.config.batch_size, self.context, self.config.eval_batches):
            moved = {k: v.to(device) for k, v in batch.items()}
            rows = moved["input_ids"].shape[0]
            total += float(model(moved["input_ids"], targets=moved["targets"]).loss) * rows
            count += rows
        figures = {"val_loss": total / count}
        if self.data.tokenizer.name != "byte":
            figures["val_loss_per_byte"] = figures["val_loss"] / self.data.bytes_per_token
        return figures

    def save_assets(self, folder: Path) -> None:
        """The tokenizer."""
        self.data.tokenizer.save(folder / "tokenizer")
