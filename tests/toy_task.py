"""A plug-in that brings a task of its own: tell whether a row of numbers has more ones than zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.models import BlocksConfig, Trunk, seeded
from blockyard.tasks import Quality, TaskKind, register_task


@dataclass(frozen=True)
class MajorityConfig(BlocksConfig):
    """Which digit is in the majority.

    Args:
        digits: numbers in a row.
    """

    digits: int = 8

    @property
    def length(self) -> int:
        return self.digits

    @property
    def is_causal(self) -> bool:
        return False


@dataclass(frozen=True)
class MajorityDataConfig:
    """Rows drawn by a seed.

    Args:
        rows: rows of the validation set.
    """

    rows: int = 32


class MajorityModel(Trunk):
    def __init__(self, config: MajorityConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(2, config.d_model)
        self.build_blocks()
        self.out = nn.Linear(config.d_model, 2)
        self.start_as_identity()

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.through_blocks(self.embedding(x))
        return self.out(x.mean(1))

    def cost(self, length: int) -> Any:
        return self.blocks_cost(length)


class MajorityData:
    assets = None

    def __init__(self, digits: int, rows: int) -> None:
        self.digits, self.rows = digits, rows
        self.fingerprint: dict[str, Any] = {"source": "a coin", "sha256": "0" * 64}

    def draw(self, seed: int, rows: int) -> dict[str, Tensor]:
        x = torch.randint(2, (rows, self.digits), generator=torch.Generator().manual_seed(seed))
        return {"x": x, "y": (2 * x.sum(-1) > self.digits).long()}


class MajorityTask:
    def __init__(self, run: Any, data: MajorityData) -> None:
        with seeded(run.train.seed):
            model = MajorityModel(run.model)
        self.model: nn.Module = model
        self.data, self.config = data, run.train
        self.tokens_per_step = run.train.batch_size * data.digits
        self.flops_per_step = 3 * run.train.batch_size * model.cost(data.digits).flops
        self.fingerprint = data.fingerprint

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        drawn = self.data.draw(1 + self.config.seed * 10_000 + step, self.config.batch_size)
        return {key: value[rows] for key, value in drawn.items()}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(model(batch["x"]).float(), batch["y"]), {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        batch = self.data.draw(0, self.data.rows)
        logits = model(batch["x"]).float()
        right = (logits.argmax(-1) == batch["y"]).float().mean()
        return {"val_loss": float(F.cross_entropy(logits, batch["y"])), "val_accuracy": float(right)}

    def save_assets(self, folder: Any) -> None:
        return


@register_task
class Majority(TaskKind[MajorityConfig, MajorityDataConfig, MajorityData]):
    """Which digit is in the majority."""

    name = "majority"
    title = "majority voter"
    data_title = "the coins"
    unit = "digit"
    model_config = MajorityConfig
    data_config = MajorityDataConfig

    def load_data(self, data: MajorityDataConfig, model: MajorityConfig) -> MajorityData:
        return MajorityData(model.digits, data.rows)

    def make_task(self, run: Any, data: MajorityData) -> MajorityTask:
        return MajorityTask(run, data)

    def build_model(self, model: MajorityConfig) -> MajorityModel:
        return MajorityModel(model)

    def quality(self, data: MajorityData) -> Quality:
        return Quality("accuracy", "", "val_accuracy", "higher", loss_unit="nats")

    def figures(self, run: Any, data: MajorityData, model: nn.Module) -> dict[str, Any]:
        return {"ones": int(data.draw(0, data.rows)["y"].sum())}
