"""A small regression task for tests of the training loop: a few blocks, batches from (seed, step)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.nn.dropout import Dropout
from blockyard.training.config import TrainConfig, as_dict
from blockyard.training.trainer import Trainer

WIDTH = 8


class ToyBlock(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(torch.tanh(self.up(x))))


class ToyModel(nn.Module):
    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(ToyBlock(dropout) for _ in range(2))
            self.norm = nn.LayerNorm(WIDTH)
            self.out = nn.Linear(WIDTH, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


class ToyTask:
    """Learn sign patterns of a fixed random map."""

    tokens_per_step = 10
    flops_per_step = 1000

    def __init__(
        self,
        config: TrainConfig,
        *,
        dropout: float = 0.0,
        poison: dict[int, list[int]] | None = None,
        fingerprint: dict[str, Any] | None = None,
    ) -> None:
        self.model: nn.Module = ToyModel(config.seed, dropout)
        self.config = config
        # step -> global rows whose input is not a number
        self.poison = poison or {}
        self.fingerprint = fingerprint or {"source": "toy", "sha256": "0"}
        self.map = torch.randn(WIDTH, 4, generator=torch.Generator().manual_seed(1))

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.config.seed * 7919 + step)
        x = torch.randn(self.config.batch_size, WIDTH, generator=generator)
        y = (x @ self.map).argmax(-1)
        for row in self.poison.get(step, []):
            x[row, 0] = float("nan")
        return {"x": x[rows], "y": y[rows]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return nn.functional.cross_entropy(model(batch["x"]).float(), batch["y"]), {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        batch = self.batch(10**6, slice(None))
        return {"val_loss": float(self.loss(model, batch)[0])}

    def save_assets(self, folder: Path) -> None:
        (folder / "assets.txt").write_text("toy")


def toy_config(**options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "steps": 12,
        "batch_size": 8,
        "precision": "fp32",
        "compile": "off",
        "warmup": 2,
        "eval_every": 5,
        "save_every": 4,
        "log_every": 1,
        "progress": False,
        "threads": 1,
    }
    return TrainConfig(**(defaults | options))


def toy_trainer(out: Path, config: TrainConfig, *, resume: bool = False, **task: Any) -> Trainer:
    resolved = {"model": {"width": WIDTH}, "train": as_dict(config)}
    return Trainer(ToyTask(config, **task), config, out, resolved=resolved, resume=resume)
