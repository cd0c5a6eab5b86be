"""S&P 500, test span 2014-12 … 2018-11: library forecasters beside EWMA and GARCH-t, chosen on validation alone.

    python benchmarks/sp500.py --out sp500.json

Candidates (head and mixer) are trained with one seed; the one with the lowest validation pinball loss is trained with
two more. Everything else is `train price`'s default. Baselines are fitted on all that precedes the test; the reference
of skill is the unconditional distribution of the same rows. The data come with the `arch` package.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blockyard.tasks.kind import Run
from blockyard.tasks.price.baselines import run_baselines
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.windows import PriceData, load_price_data
from blockyard.tasks.price.forecaster import Forecaster, load_forecaster
from blockyard.tasks.price.model import LEVELS, PriceConfig
from blockyard.tasks.price.summary import evaluation_table, summarise
from blockyard.tasks.price.task import PriceForecasting, PriceTask
from blockyard.tasks.settings import as_groups
from blockyard.training.config import TrainConfig
from blockyard.training.trainer import Trainer

DATA = PriceDataConfig(train_end="2012-11-30", val_end="2014-11-21")


def train(data: PriceData, model: PriceConfig, seed: int, steps: int | None) -> tuple[Forecaster, float, float]:
    """One run: its best checkpoint, validation loss, and CPU seconds."""
    options = {**PriceForecasting.train_defaults, **({"steps": steps} if steps else {})}
    settings = TrainConfig(**options, seed=seed, progress=False, compile="off", save_every=0)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(model, DATA, settings, (), "price")
        trainer = Trainer(PriceTask(model, data, settings), settings, Path(folder) / "run", resolved=as_groups(run))
        trainer.run()
        best = float((trainer.best or {})["val_loss"])
        trainer.close()
        forecaster, _, _ = load_forecaster(Path(folder) / "run")
    return forecaster, best, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="student_t,quantile")
    parser.add_argument("--blocks", default="standard+swiglu,mla+swiglu,tva+swiglu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = PriceConfig(features=("close",))
    data = load_price_data(DATA, context=base.context, horizons=base.horizons)
    base = replace(base, features=data.features)
    print(data.describe(), flush=True)
    tried: list[tuple[float, PriceConfig, Forecaster]] = []
    for head in arguments.heads.split(","):
        for blocks in arguments.blocks.split(","):
            model = replace(base, head=head, blocks=blocks)  # type: ignore[arg-type]
            forecaster, best, cpu = train(data, model, 0, arguments.steps)
            tried.append((best, model, forecaster))
            print(f"{head} {blocks}: validation {best:.5f}, {cpu:.0f} s", flush=True)
    best, model, forecaster = min(tried, key=lambda one: one[0])
    print(f"chosen on validation: {model.head} {model.choice}", flush=True)
    chosen = {"seed 0": forecaster.calibrated(data)}
    for seed in range(1, arguments.seeds):
        chosen[f"seed {seed}"] = train(data, model, seed, arguments.steps)[0].calibrated(data)
    assets, rows = data.origins("test")
    until = data.borders.val_end
    beside, _ = run_baselines(data, LEVELS, assets=assets, rows=rows, fit_until=until)
    everyone = {name: replace(one, name=name).forecast(data, assets, rows) for name, one in chosen.items()} | beside
    found = summarise(data, assets, rows, everyone, levels=LEVELS, border=until)
    print(evaluation_table(found))
    for name, one in chosen.items():
        print(f"{name}: {'calibrated, ' + one.calibration.why if one.calibration else 'not calibrated'}")
    result: dict[str, Any] = {
        "chosen": {"head": model.head, "blocks": model.choice},
        "tried": [{"head": m.head, "blocks": m.choice, "validation": loss} for loss, m, _ in tried],
        "evaluation": found["forecasts"],
        "paired": found["paired"],
        "horizons": found["horizons"],
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
