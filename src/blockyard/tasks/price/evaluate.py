"""All scores of all forecasts on the same origins, with intervals: what the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blockyard.errors import InputError
from blockyard.tasks.price.baselines import REFERENCE, RIVALS, WALK, Forecast
from blockyard.tasks.price.data.table import show_ds
from blockyard.tasks.price.data.windows import PriceTables
from blockyard.tasks.price.scores import (
    INTERVALS,
    Estimate,
    block_length,
    correlation,
    covered,
    crps,
    enough_blocks,
    estimate,
    hits,
    moments,
    pinball_loss,
    ranks,
    resample,
    tenths,
    word_of,
)

# From so many assets on, information coefficients are taken across assets, date by date, as is the custom.
CROSS_SECTION = 5


@dataclass(frozen=True)
class Outcome:
    """What happened after a set of origins.

    Args:
        y: log returns over each horizon, [N, H].
        horizons: steps ahead.
        levels: of the quantiles that are scored.
        ds: date of each origin, [N].
        scale: mean size of a one-step move of the origin's asset before the border, [N].
    """

    y: np.ndarray
    horizons: tuple[int, ...]
    levels: tuple[float, ...]
    ds: np.ndarray
    scale: np.ndarray


def outcome_of(
    data: PriceTables, assets: np.ndarray, rows: np.ndarray, levels: Sequence[float], border: Any
) -> Outcome:
    """Gather what happened after the origins (asset numbers and rows, asset after asset)."""
    scale = np.empty(len(rows))
    for number, table in enumerate(data.tables):
        past = np.abs(np.diff(table.log_close[: np.searchsorted(table.ds, border, "right")]))
        scale[assets == number] = past.mean() if len(past) else np.nan
    return Outcome(data.returns(assets, rows), data.horizons, tuple(levels), data.dates(assets, rows), scale)


def evaluate(outcome: Outcome, forecasts: Mapping[str, Forecast], *, repeats: int = 1000) -> dict[str, Any]:
    """Return every score of every forecast, as plain data.

    Args:
        outcome: what happened; every label must lie within the data.
        forecasts: by name; `unconditional` and `random walk` among them, which the others are measured against.
        repeats: resamples of the bootstrap.

    Returns: {"horizons", "levels", "origins", "span", "forecasts": {name: {score: [one per horizon]}}, "paired",
        "pit"}. A score is {"value", "low", "high"} with the ends of its 95 % interval, or None where it does not exist.
        "paired" is {name: {rival: {"skill" and "crps_skill": [one per horizon]}}}, the difference of both skills on the
        same dates, with its "word" (`word_of`); "pit" is {name: [per horizon ten scores, the share in each tenth]}.
    """
    for name in (REFERENCE, WALK):
        if name not in forecasts:
            raise InputError(f"forecasts lack {name!r}, which the others are measured against")
    # Origins in the order of time: blocks of the bootstrap are stretches of it.
    order = np.argsort(outcome.ds, kind="stable")
    groups = outcome.ds[order] if len(np.unique(outcome.ds)) < len(outcome.ds) else None
    scored: dict[str, dict[str, list[Any]]] = {name: {} for name in forecasts}
    rivals = [name for name in RIVALS if name in forecasts]
    sharp = [name for name, forecast in forecasts.items() if forecast.quantiles is not None]
    paired: dict[str, Any] = {name: {r: {} for r in rivals if r != name} for name in sharp}
    pit: dict[str, list[Any]] = {name: [] for name in sharp}
    for h, horizon in enumerate(outcome.horizons):
        y = outcome.y[order, h]
        rows = _Rows(y, outcome, order, horizon, groups, repeats)
        reference, walk = (_at(forecasts[name], order, h) for name in (REFERENCE, WALK))
        for name, forecast in forecasts.items():
            for score, found in rows.scores(_at(forecast, order, h), reference, walk).items():
                scored[name].setdefault(score, []).append(None if found is None else found.to_dict())
            if name in pit:
                pit[name].append(rows.pit(_at(forecast, order, h)))
            for rival, differences in paired.get(name, {}).items():
                beside = _at(forecasts[rival], order, h)
                for score, one in rows.paired(_at(forecast, order, h), beside, reference).items():
                    differences.setdefault(score, []).append(one)
    dates = outcome.ds[order]
    return {
        "horizons": list(outcome.horizons),
        "levels": list(outcome.levels),
        "origins": len(order),
        "span": [show_ds(dates[0]), show_ds(dates[-1])],
        "forecasts": scored,
        "paired": paired,
        "pit": pit,
    }


def _at(forecast: Forecast, order: np.ndarray, h: int) -> tuple[np.ndarray, np.ndarray | None]:
    return forecast.point[order, h], None if forecast.quantiles is None else forecast.quantiles[order, h]


class _Rows:
    """One horizon's origins, and the scores of a forecast on them."""

    def __init__(
        self, y: np.ndarray, outcome: Outcome, order: np.ndarray, horizon: int, groups: np.ndarray | None, repeats: int
    ) -> None:
        self.y, self.levels, self.scale = y, outcome.levels, outcome.scale[order]
        self.groups, self.repeats = groups, repeats
        dates = len(y) if groups is None else len(np.unique(groups))
        self.block, self.enough = block_length(dates, horizon), enough_blocks(dates, horizon)

    def scores(
        self,
        forecast: tuple[np.ndarray, np.ndarray | None],
        reference: tuple[np.ndarray, np.ndarray | None],
        walk: tuple[np.ndarray, np.ndarray | None],
    ) -> dict[str, Estimate | None]:
        (point, quantiles), y = forecast, self.y
        found: dict[str, Estimate | None] = {
            "rmse_ratio": self._ratio((y - point) ** 2, (y - walk[0]) ** 2, root=True),
            "mase_ratio": self._ratio(np.abs(y - point) / self.scale, np.abs(y - walk[0]) / self.scale),
            "hit_minus_up": self._mean(hits(y, point) - (y > 0)),
            "ic": self._correlation(point, y),
            "rank_ic": self._correlation(ranks(point), ranks(y), of_ranks=True),
        }
        if quantiles is not None and reference[1] is not None:
            losses = [pinball_loss(y, q, self.levels) for q in (quantiles, reference[1])]
            found["skill"] = self._skill(*losses)
            ranked = [crps(y, q, self.levels) for q in (quantiles, reference[1])]
            found["crps"], found["crps_skill"] = self._mean(ranked[0]), self._skill(*ranked)
            for interval in INTERVALS:
                inside = covered(y, quantiles, self.levels, interval)
                found[f"coverage_{interval:.0%}"] = None if inside is None else self._mean(inside)
        return found

    def paired(
        self,
        forecast: tuple[np.ndarray, np.ndarray | None],
        rival: tuple[np.ndarray, np.ndarray | None],
        reference: tuple[np.ndarray, np.ndarray | None],
    ) -> dict[str, dict[str, Any]]:
        """Return the skill less the rival's skill, both on the same resampled dates."""
        assert forecast[1] is not None and rival[1] is not None and reference[1] is not None
        found: dict[str, dict[str, Any]] = {}
        for key, loss in (("skill", pinball_loss), ("crps_skill", crps)):
            columns = np.stack([loss(self.y, q, self.levels) for q in (forecast[1], rival[1], reference[1])], axis=1)
            one = self._estimate(columns, lambda m: (m[..., 1] - m[..., 0]) / m[..., 2]).to_dict()
            found[key] = {**one, "word": word_of(one, self.enough)}
        return found

    def pit(self, forecast: tuple[np.ndarray, np.ndarray | None]) -> list[dict[str, float]] | None:
        """Share of outcomes in each tenth of the forecast."""
        assert forecast[1] is not None
        inside = tenths(self.y, forecast[1], self.levels)
        if inside is None:
            return None
        drawn = resample(inside, block=self.block, groups=self.groups, repeats=self.repeats)
        return [one.to_dict() for one in drawn.each()]

    def _estimate(self, columns: np.ndarray, statistic: Any) -> Estimate:
        return estimate(columns, statistic, block=self.block, groups=self.groups, repeats=self.repeats)

    def _mean(self, values: np.ndarray) -> Estimate:
        return self._estimate(values[:, None], lambda m: m[..., 0])

    def _skill(self, loss: np.ndarray, reference: np.ndarray) -> Estimate:
        return self._estimate(np.stack([loss, reference], axis=1), lambda m: 1 - m[..., 0] / m[..., 1])

    def _ratio(self, loss: np.ndarray, reference: np.ndarray, *, root: bool = False) -> Estimate:
        power = 0.5 if root else 1.0
        return self._estimate(np.stack([loss, reference], axis=1), lambda m: (m[..., 0] / m[..., 1]) ** power)

    def _correlation(self, x: np.ndarray, y: np.ndarray, *, of_ranks: bool = False) -> Estimate | None:
        """Return over time, or with many assets the mean over dates of the correlation across assets."""
        if self.groups is not None:
            _, counts = np.unique(self.groups, return_counts=True)
            if counts.max() >= CROSS_SECTION:
                return self._cross_section(x, y, of_ranks)
        if np.ptp(x) == 0:
            # A forecast that never changes orders nothing.
            return None
        return self._estimate(moments(x, y), correlation)

    def _cross_section(self, x: np.ndarray, y: np.ndarray, of_ranks: bool) -> Estimate | None:
        assert self.groups is not None
        found = []
        borders = np.flatnonzero(np.append(True, self.groups[1:] != self.groups[:-1]))
        for a, b in zip(borders, np.append(borders[1:], len(x))):
            if b - a >= CROSS_SECTION and np.ptp(x[a:b]) > 0:
                pair = (ranks(x[a:b]), ranks(y[a:b])) if of_ranks else (x[a:b], y[a:b])
                found.append(float(correlation(moments(*pair).mean(axis=0))))
        if not found:
            return None
        return estimate(np.array(found)[:, None], lambda m: m[..., 0], block=self.block, repeats=self.repeats)
