"""The long-term forecasting protocol of the literature (LTSF-Linear, PatchTST) on the library's forecaster.

ETTh1 and the exchange rate, every channel z-scored by its training rows, windows at stride 1, the last batch kept, mean
squared error over all channels and steps. Settings are chosen on validation alone, by one seed, then run with three.

    python benchmarks/ltsf.py --data FOLDER --sets ETTh1:96:96,ETTh1:336:96,exchange:96:96 --out ltsf.json

FOLDER holds ETTh1.csv and exchange_rate.txt.gz. Beside the model, in the same run: Repeat (the last value), the same
hour of the day before (seasonal), and a ridge regression on windows less their last value.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blockyard.models.trunk import seeded
from blockyard.tasks.price.model import PriceConfig, PriceForecaster
from blockyard.training.config import TrainConfig
from blockyard.training.trainer import Trainer

# Rows of training, validation and test: 12, 4 and 4 months of hours; 70, 10 and 20 per cent.
ETT_BORDERS = (8640, 8640 + 2880, 8640 + 5760)
SEASON = {"ETTh1": 24, "exchange": 1}
# What validation chooses among.
GRID: tuple[dict[str, Any], ...] = tuple(
    {"d_model": 16, "n_layers": layers, "dropout": dropout, "lr": lr, "shortcut_ridge": ridge}
    for layers, dropout, lr in ((2, 0.3, 1e-3), (2, 0.3, 3e-4), (1, 0.5, 1e-4))
    for ridge in (None, "fitted")
)
# Penalties of the linear path's ridge start; validation of the untrained model chooses.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Series:
    """The channels of one data set, scaled, and where training, validation and test end.

    Args:
        name: ETTh1 or exchange.
        folder: where its file is.
    """

    def __init__(self, name: str, folder: Path) -> None:
        if name == "ETTh1":
            values = np.genfromtxt(folder / "ETTh1.csv", delimiter=",", skip_header=1)[:, 1:]
            self.borders = ETT_BORDERS
        else:
            with gzip.open(folder / "exchange_rate.txt.gz", "rt") as file:
                values = np.loadtxt(file, delimiter=",")
            n = len(values)
            train, test = int(n * 0.7), int(n * 0.2)
            self.borders = (train, n - test, n)
        seen = values[: self.borders[0]]
        self.name = name
        self.values = ((values - seen.mean(axis=0)) / seen.std(axis=0))[: self.borders[2]].astype(np.float32)

    def windows(self, part: str, look: int, ahead: int) -> np.ndarray:
        """Every window of a part, look + ahead rows each, [N, channels, look + ahead]; inputs may reach back over the
        border, labels may not."""
        start = {"train": 0, "val": self.borders[0] - look, "test": self.borders[1] - look}[part]
        end = dict(zip(("train", "val", "test"), self.borders))[part]
        return np.lib.stride_tricks.sliding_window_view(self.values[start:end], look + ahead, axis=0)


class SeriesTask:
    """One channel of one window is one row: the model is shared by the channels (PatchTST's way)."""

    def __init__(self, series: Series, config: PriceConfig, train: TrainConfig, ahead: int) -> None:
        with seeded(train.seed):
            model = PriceForecaster(config)
        self.model: nn.Module = model
        self.series, self.train, self.look, self.ahead = series, train, config.context, ahead
        self.rows = series.windows("train", self.look, ahead)
        if config.shortcut_ridge is not None:
            every = self._tensors(self.rows.reshape(-1, self.rows.shape[-1]))
            model.start_at(torch.zeros(1), torch.ones(1), every["x"], every["y"])
        self.tokens_per_step, self.flops_per_step = train.batch_size, 0
        self.fingerprint: dict[str, Any] = {"source": series.name}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        channels = self.rows.shape[1]
        bits = np.random.Philox(key=self.train.seed | step << 64).random_raw(self.train.batch_size)[rows]
        place = (bits % np.uint64(len(self.rows) * channels)).astype(np.int64)
        return self._tensors(self.rows[place // channels, place % channels])

    def _tensors(self, rows: np.ndarray) -> dict[str, Tensor]:
        found = torch.from_numpy(np.ascontiguousarray(rows))
        return {"x": found[:, : self.look, None], "y": found[:, self.look :]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return model(batch["x"], targets=batch["y"]).loss, {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"val_loss": self.error(model, "val")}

    def error(self, model: nn.Module, part: str) -> float:
        """Mean squared error over every window, channel and step of a part."""
        windows = self.series.windows(part, self.look, self.ahead)
        total = 0.0
        model.eval()
        with torch.no_grad():
            for start in range(0, len(windows), 64):
                rows = windows[start : start + 64]
                batch = self._tensors(rows.reshape(-1, rows.shape[-1]))
                total += float((model(batch["x"]).point - batch["y"]).square().sum())
        return total / (len(windows) * windows.shape[1] * self.ahead)

    def save_assets(self, folder: Path) -> None:
        pass


def make_config(look: int, ahead: int, options: dict[str, Any]) -> PriceConfig:
    return PriceConfig(
        features=("value",),
        context=look,
        horizons=tuple(range(1, ahead + 1)),
        layout="patch",
        patch=16,
        stride=8,
        instance="level",
        pool="flatten",
        shortcut="window",
        head="point",
        **options,
    )


def penalty(series: Series, look: int, ahead: int, setting: dict[str, Any]) -> float:
    """The penalty of the linear path's start whose untrained model is best on validation."""
    options = {name: value for name, value in setting.items() if name not in ("lr", "shortcut_ridge")}
    errors = {}
    for strength in PENALTIES:
        config = make_config(look, ahead, {**options, "shortcut_ridge": strength})
        task = SeriesTask(series, config, TrainConfig(steps=1, seed=0), ahead)
        errors[strength] = task.error(task.model, "val")
    return min(errors, key=lambda strength: errors[strength])


def train(series: Series, look: int, ahead: int, setting: dict[str, Any], seed: int, steps: int) -> dict[str, Any]:
    """One run: the weights that are best on validation, and their errors."""
    options = dict(setting)
    lr = options.pop("lr")
    if options.get("shortcut_ridge") == "fitted":
        options["shortcut_ridge"] = penalty(series, look, ahead, {**options, "lr": lr})
    config = make_config(look, ahead, options)
    settings = TrainConfig(
        steps=steps, batch_size=256, optimizer="adamw", lr=lr, seed=seed, eval_every=0, save_every=0, save_best=False,
        progress=False, compile="off", precision="fp32", weight_decay=0.01, warmup=50,
    )  # fmt: skip
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        task = SeriesTask(series, config, settings, ahead)
        trainer = Trainer(task, settings, Path(folder) / "run", resolved={})
        best: tuple[float, dict[str, Tensor], int] = (float("inf"), {}, 0)
        while True:
            loss = trainer.evaluate()["val_loss"]
            if loss < best[0]:
                best = (loss, {k: v.clone() for k, v in task.model.state_dict().items()}, trainer.step)
            if trainer.done:
                break
            trainer.advance(max(1, steps // 15))
        trainer.close()
    task.model.load_state_dict(best[1])
    return {
        "seed": seed,
        "val": best[0],
        "test": task.error(task.model, "test"),
        "step": best[2],
        "shortcut_ridge": config.shortcut_ridge,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "cpu_seconds": time.process_time() - started,
    }


def baselines(series: Series, look: int, ahead: int) -> dict[str, float]:
    """Repeat, seasonal and ridge on the test part."""
    test = series.windows("test", look, ahead)
    past, future = test[..., :look], test[..., look:]
    season = SEASON[series.name]
    again = np.concatenate([past[..., -season:]] * (ahead // season + 1), axis=-1)[..., :ahead]
    found = {"repeat": _mse(past[..., -1:] + 0 * future, future), "seasonal": _mse(again, future)}
    rows = series.windows("train", look, ahead).reshape(-1, look + ahead)
    rows = rows - rows[:, look - 1 : look]
    x, y = rows[:, :look].astype(np.float64), rows[:, look:].astype(np.float64)
    gram, cross = x.T @ x, x.T @ y
    errors = {}
    for strength in (1e1, 1e2, 1e3, 1e4, 1e5):
        weights = np.linalg.solve(gram + strength * np.eye(look), cross)
        errors[strength] = (_ridge(series.windows("val", look, ahead), weights, look), weights)
    _, weights = min(errors.values(), key=lambda pair: pair[0])
    return {**found, "ridge": _ridge(test, weights, look)}


def _ridge(windows: np.ndarray, weights: np.ndarray, look: int) -> float:
    last = windows[..., look - 1 : look]
    return _mse((windows[..., :look] - last) @ weights + last, windows[..., look:])


def _mse(forecast: np.ndarray, outcome: np.ndarray) -> float:
    return float(np.mean((forecast - outcome) ** 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ETTh1.csv and exchange_rate.txt.gz")
    parser.add_argument("--sets", default="ETTh1:96:96,ETTh1:336:96,exchange:96:96", help="name:look-back:ahead,…")
    parser.add_argument("--blocks", default="standard+swiglu", help="the layers, as a choice")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in arguments.sets.split(","):
        kind, look, ahead = name.split(":")[0], *(int(part) for part in name.split(":")[1:])
        series = Series(kind, arguments.data)
        beside = baselines(series, look, ahead)
        print(name, {key: round(value, 4) for key, value in beside.items()}, flush=True)
        tried = []
        for setting in GRID:
            run = train(series, look, ahead, {**setting, "blocks": arguments.blocks}, 0, arguments.steps)
            tried.append((run["val"], setting, run))
            print(f"  {setting}: val {run['val']:.4f}, {run['cpu_seconds']:.0f} s", flush=True)
        _, setting, first = min(tried, key=lambda one: one[0])
        runs = [first]
        for seed in range(1, arguments.seeds):
            runs.append(train(series, look, ahead, {**setting, "blocks": arguments.blocks}, seed, arguments.steps))
        test = [run["test"] for run in runs]
        print(f"  chosen {setting}: test {np.mean(test):.4f} ± {np.std(test):.4f} {[round(v, 4) for v in test]}, "
              f"{max(run['cpu_seconds'] for run in runs):.0f} s a run", flush=True)  # fmt: skip
        results[name] = {"baselines": beside, "setting": setting, "runs": runs,
                         "tried": [{**s, "val": v} for v, s, _ in tried]}  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
