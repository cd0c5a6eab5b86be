"""Price forecasting as a task: windows of features in, distributions of returns out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically
from blockyard.models.trunk import seeded
from blockyard.tasks.kind import Quality, Run, TaskKind, register_task
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.windows import PriceAssets, PriceData, load_price_data
from blockyard.tasks.price.heads import pinball
from blockyard.tasks.price.model import LEVELS, PriceConfig, PriceForecaster
from blockyard.training.auxiliary import with_auxiliary
from blockyard.training.config import TrainConfig
from blockyard.training.task import Batch

if TYPE_CHECKING:
    from blockyard.tasks.price.report import PriceParts

ASSETS = "prices.json"
# Windows from which the head's starting distribution is taken, spread over training.
START_WINDOWS = 4096
EVAL_ROWS = 256
# Resamples for the intervals of reports; at a thousand ends of intervals move in the third digit.
FIGURE_REPEATS = 1000


class PriceTask:
    """A `PriceForecaster` and the prices that it learns.

    Args:
        model_config: the architecture, its features those of the data.
        data: windows.
        config: batch size, seed, evaluation.
    """

    def __init__(self, model_config: PriceConfig, data: PriceData, config: TrainConfig) -> None:
        with seeded(config.seed):
            model = PriceForecaster(model_config)
        start_from_data(model, data)
        self.model: nn.Module = model
        self.data, self.config = data, config
        self.tokens_per_step = config.batch_size
        self.flops_per_step = 3 * config.batch_size * model.cost(model_config.length).flops
        self.fingerprint: dict[str, Any] = data.fingerprint

    def batch(self, step: int, rows: slice) -> Batch:
        """Return rows of the global batch of a step."""
        return self.data.batch(self.config.seed, step, self.config.batch_size, rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the head's loss plus the blocks' own, weighted."""
        output = model(batch["x"], targets=batch["y"])
        return with_auxiliary(output.loss, output.aux, self.config, "price_loss")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return `val_loss`: mean pinball loss over the validation part (squared error for head=point), whichever the
        loss of training is, so that heads can be compared."""
        total, count = 0.0, 0
        rows, limit = evaluation_batches(self.config)
        device = next(model.parameters()).device
        for batch in self.data.batches("val", rows, limit):
            x, y = batch["x"].to(device), batch["y"].to(device)
            output = model(x)
            if output.quantiles is None:
                loss = (output.point - y).square().mean()
            else:
                config: Any = model.config
                loss = pinball(output.quantiles, y, config.quantiles)
            total += float(loss) * len(y)
            count += len(y)
        return {"val_loss": total / count}

    def save_assets(self, folder: Path) -> None:
        """Save names of features, and the dates that training has seen."""
        write_atomically(folder / ASSETS, json.dumps(asdict(self.data.assets), indent=1) + "\n")


def evaluation_batches(config: TrainConfig) -> tuple[int, int]:
    """Return windows of a batch of an evaluation, and how many batches it takes at most."""
    rows = max(EVAL_ROWS, config.batch_size)
    return rows, max(1, config.eval_batches * config.batch_size // rows)


def evaluation_windows(data: PriceData, config: TrainConfig) -> int:
    """Return windows that an evaluation takes."""
    rows, limit = evaluation_batches(config)
    return min(len(data.origins("val")[0]), rows * limit)


def start_from_data(model: PriceForecaster, data: PriceData) -> None:
    """Give an untrained model the scaling and the distribution of targets of the training part."""
    if model.mean.is_meta:
        # Built to be counted, not to be trained.
        return
    assets, rows = data.origins("train")
    some = np.linspace(0, len(rows) - 1, min(len(rows), START_WINDOWS)).astype(np.int64)
    x, y = data.windows(assets[some], rows[some]), data.labels(assets[some], rows[some])
    mean, std = torch.from_numpy(data.mean).float(), torch.from_numpy(data.std).float()
    model.start_at(mean, std, x, y)


@register_task
class PriceForecasting(TaskKind[PriceConfig, PriceDataConfig, PriceData]):
    """Forecast the distribution of returns over several horizons."""

    name = "price"
    title = "price forecaster"
    data_title = "the prices"
    model_config = PriceConfig
    data_config = PriceDataConfig
    from_data: Mapping[str, Any] = {"features": ("close",), "known": ()}
    unit = "window"
    # Windows overlap, so a few passes over a few thousand of them fit noise: a low rate, and the best checkpoint. With
    # Muon the validation loss was higher (0.1879 against 0.1870, S&P 500).
    train_defaults: Mapping[str, Any] = {
        "steps": 600,
        "batch_size": 64,
        "optimizer": "adamw",
        "lr": 3e-4,
        "eval_every": 50,
        "eval_batches": 100,
        "precision": "fp32",
    }
    # As many windows as `train price` sees; ten times as many would compare how choices overfit.
    compare_defaults: Mapping[str, Any] = {"budget_value": 40_000.0}
    ffn = "swiglu"

    def report(self) -> PriceParts:
        from blockyard.tasks.price.report import PriceParts

        return PriceParts()

    def load_data(self, data: PriceDataConfig, model: PriceConfig) -> PriceData:
        return load_price_data(data, context=model.context, horizons=model.horizons)

    def make_task(self, run: Run[PriceConfig, PriceDataConfig], data: PriceData) -> PriceTask:
        return PriceTask(run.model, data, run.train)

    def build_model(self, model: PriceConfig) -> PriceForecaster:
        return PriceForecaster(model)

    def fit(self, model: PriceConfig, assets: PriceAssets) -> PriceConfig:
        return replace(model, features=assets.features, known=assets.known)

    def older_data(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return runs of before knew no columns in advance."""
        return {"future": None, "static": None}

    def load_assets(self, folder: Path) -> PriceAssets:
        file = folder / ASSETS
        try:
            found = parse_json(file.read_text(encoding="utf-8"))
            # Runs of before name nothing that is known in advance, and took every return for a step's.
            found = {"known": (), "apart": False, **found}
            names = {name: tuple(found[name]) for name in ("features", "assets", "known")}
            if not isinstance(found["apart"], bool):
                raise ValueError("apart is neither true nor false")
            if not isinstance(found.get("step", ""), str):
                raise ValueError("step is no text")
            return PriceAssets(**{**found, **names})
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{file} is missing or damaged ({error}); the run cannot be used without it") from error

    def quality(self, data: PriceData) -> Quality:
        """Return the figure that ranks, by validation."""
        return Quality(metric="validation pinball loss", unit="σ20·√h", facts={"horizons": list(data.horizons)})

    def references(self, data: PriceData) -> dict[str, Any]:
        """Return the baselines' test figures, so that every report of a comparison has them."""
        return {"baselines": baseline_figures(data)}

    def figures(self, run: Run[PriceConfig, PriceDataConfig], data: PriceData, model: nn.Module) -> dict[str, Any]:
        """Return the test part: scores with intervals, calibration, skill over time, a fan."""
        from blockyard.tasks.price.baselines import REFERENCE, RIVALS, WALK, run_baselines
        from blockyard.tasks.price.forecaster import Forecaster
        from blockyard.tasks.price.summary import summarise

        assets, rows = data.origins("test")
        until, levels = data.borders.val_end, run.model.quantiles
        names = (REFERENCE, WALK, *RIVALS)
        beside, _ = run_baselines(data, levels, assets=assets, rows=rows, fit_until=until, names=names)
        # mypy: without a run folder: what needs one is not asked for.
        forecast = Forecaster(model, None).forecast(data, assets, rows)  # type: ignore[arg-type]
        everyone = {**beside, forecast.name: forecast}
        found = summarise(
            data, assets, rows, everyone, levels=levels, border=until, keep=[forecast.name], repeats=FIGURE_REPEATS
        )
        return {"test": found}


def baseline_figures(data: PriceData) -> dict[str, Any]:
    """Return the baselines' test figures; computed once for the data."""
    from blockyard.tasks.price.baselines import run_baselines
    from blockyard.tasks.price.summary import summarise

    if data.baselines is None:
        assets, rows = data.origins("test")
        until = data.borders.val_end
        found, notes = run_baselines(data, LEVELS, assets=assets, rows=rows, fit_until=until)
        figures = summarise(data, assets, rows, found, levels=LEVELS, border=until, repeats=FIGURE_REPEATS)
        data.baselines = {**figures, "notes": notes}
    return data.baselines
