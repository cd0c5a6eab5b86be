"""Skill beside EWMA and the GARCHs on the same dates, with intervals: `train price`'s defaults on series of any kind.

    python benchmarks/paired_skill.py --series nasdaq,wti,MSFT.csv --out paired.json

`nasdaq` (the composite, 1999–2018) and `wti` (crude oil, 1986–2018, days without a price left out) come with the `arch`
package; anything else is a file. Nothing is chosen: the default model, the default parts, three seeds, and baselines
fitted on all that precedes the test.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blockyard.machine.processor import processor_name
from blockyard.tasks.kind import Run
from blockyard.tasks.price.baselines import RIVALS, run_baselines
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.windows import PriceData, load_price_data
from blockyard.tasks.price.forecaster import Forecaster, load_forecaster
from blockyard.tasks.price.model import PriceConfig
from blockyard.tasks.price.summary import evaluation_table, summarise
from blockyard.tasks.price.task import PriceForecasting, PriceTask
from blockyard.tasks.settings import as_groups
from blockyard.training.config import TrainConfig
from blockyard.training.trainer import Trainer

SHOWN = (1, 5, 20, 30)


def source(name: str) -> tuple[PriceDataConfig, Any]:
    """How a series is read, and the frame it is read from (None: from the file)."""
    if name not in ("nasdaq", "wti"):
        return PriceDataConfig(path=(name,)), None
    frame = importlib.import_module(f"arch.data.{name}").load()
    if name == "wti":
        frame = frame.dropna().rename(columns={"DCOILWTICO": "Close"})
    # The fall of 1991-01-17 (a third in a day) is real; the reader would ask.
    return PriceDataConfig(splits="keep"), frame.rename_axis("Date").reset_index()


def train(data: PriceData, model: PriceConfig, seed: int, steps: int | None) -> Forecaster:
    """One run by the task's defaults: its best checkpoint, calibrated where that helps."""
    options = {**PriceForecasting.train_defaults, **({"steps": steps} if steps else {})}
    settings = TrainConfig(**options, seed=seed, progress=False, compile="off", save_every=0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(model, data.config, settings, (), "price")
        trainer = Trainer(PriceTask(model, data, settings), settings, Path(folder) / "run", resolved=as_groups(run))
        trainer.run()
        trainer.close()
        found, _, _ = load_forecaster(Path(folder) / "run")
    return replace(found.calibrated(data), name=f"seed {seed}")


def judge(name: str, seeds: int, steps: int | None) -> dict[str, Any]:
    """All seeds and the baselines on the test part of a series."""
    config, frame = source(name)
    base = PriceConfig(features=("close",))
    data = load_price_data(config, context=base.context, horizons=base.horizons, source=frame)
    model = replace(base, features=data.features)
    print(f"\n{name}: {data.describe()}", flush=True)
    assets, rows = data.origins("test")
    until = data.borders.val_end
    beside, _ = run_baselines(data, model.quantiles, assets=assets, rows=rows, fit_until=until)
    chosen = [train(data, model, seed, steps) for seed in range(seeds)]
    everyone = {one.name: one.forecast(data, assets, rows) for one in chosen} | beside
    found = summarise(data, assets, rows, everyone, levels=model.quantiles, border=until)
    print(evaluation_table(found), flush=True)
    print(rows_of(found, [one.name for one in chosen]), flush=True)
    return {key: found[key] for key in ("origins", "span", "horizons", "forecasts", "paired", "pit")}


def rows_of(found: dict[str, Any], names: list[str]) -> str:
    """A row of docs/prices.md for each rival and score: the first seed, and the words of the others."""
    lines = []
    for rival in RIVALS:
        for score in ("skill", "crps_skill"):
            cells = []
            for h in SHOWN:
                each = [found["paired"][name][rival][score][found["horizons"].index(h)] for name in names]
                first = f"{each[0]['value']:+.3f} [{each[0]['low']:+.3f}, {each[0]['high']:+.3f}]"
                cells.append(f"{first} {', '.join(one['word'] for one in each)}")
            lines.append(f"| {rival}, {score} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", default="nasdaq,wti", help="names and files, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer than the default, to try the script")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: judge(name, arguments.seeds, arguments.steps) for name in arguments.series.split(",")}
    result = {"processor": processor_name(), "torch": torch.__version__, "series": found}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
