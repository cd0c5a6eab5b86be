"""What a backtest's folder is told by: settings.json, so that an interrupted backtest goes on with its own folds alone.

A second backtest of a run with other settings, or on other prices, gets a folder of its own beside the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from blockyard.files import parse_json, write_atomically
from blockyard.tasks.price.positions import BacktestConfig

SETTINGS, RESULTS = "settings.json", "backtest.json"
SCHEMA = "blockyard.backtest/1"


@dataclass(frozen=True)
class BacktestSpec:
    """What makes two backtests of a run the same.

    Args:
        config: how forecasts become positions.
        data: fingerprint of the prices.
        start: the date after which forecasts are judged, as given.
        folds: stretches.
        retrain: whether the model is trained anew before each.
    """

    config: BacktestConfig
    data: Mapping[str, Any]
    start: str | None
    folds: int
    retrain: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as settings.json holds them."""
        rest = {"data": dict(self.data), "start": self.start, "folds": self.folds, "retrain": self.retrain}
        return {"schema": SCHEMA, "config": asdict(self.config), **rest}

    def save(self, folder: Path) -> None:
        """Write settings.json.

        Raises:
            InputError: when it cannot be written.
        """
        write_atomically(folder / SETTINGS, json.dumps(self.to_dict(), indent=1) + "\n")

    def words(self, year: int) -> list[tuple[str, str]]:
        """Return the settings as label and value, for a page; `year`: the steps that a year was taken to have."""
        config = {**asdict(self.config), "steps_per_year": year}
        return [
            *((key.replace("_", " "), "none" if value is None else str(value)) for key, value in config.items()),
            ("from", self.start or "what training ended with"),
            ("folds", str(self.folds)),
            ("trained anew before each", "yes" if self.retrain else "no, baselines alone"),
            ("sha256 of the data", str(self.data.get("sha256", ""))),
        ]


def folder_for(run: Path, spec: BacktestSpec) -> Path:
    """Return RUN/backtest, or RUN/backtest-2, -3 …: the first that is free, unfinished, or holds this same backtest."""
    for number in count(1):
        folder = run / ("backtest" if number == 1 else f"backtest-{number}")
        if not (folder / RESULTS).exists() or _holds(folder, spec):
            return folder
    raise AssertionError("unreachable")


def _holds(folder: Path, spec: BacktestSpec) -> bool:
    try:
        found = parse_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Of an earlier version, or damaged: it is left as it is.
        return False
    return bool(found == json.loads(json.dumps(spec.to_dict())))
