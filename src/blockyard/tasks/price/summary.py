"""A forecast's test in a few hundred numbers: scores, calibration, skill over time, and one fan to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blockyard.tasks.price.baselines import BASELINES, REFERENCE, RIVALS, WALK, Forecast
from blockyard.tasks.price.data.table import show_ds
from blockyard.tasks.price.data.windows import PriceTables
from blockyard.tasks.price.evaluate import evaluate, outcome_of
from blockyard.tasks.price.scores import pinball_loss

# Horizons whose curves are kept, as far as they are forecast; points of a curve; steps of history before a fan.
CURVES = (1, 20)
POINTS, HISTORY = 120, 60


def summarise(
    tables: PriceTables,
    assets: np.ndarray,
    rows: np.ndarray,
    forecasts: Mapping[str, Forecast],
    *,
    levels: Sequence[float],
    border: Any,
    keep: Sequence[str] | None = None,
    repeats: int = 1000,
) -> dict[str, Any]:
    """Return what the report and the plots need of forecasts from the same origins, as plain data.

    Args:
        tables: the assets.
        assets: asset number of each origin.
        rows: row of each origin; every label must be known.
        forecasts: by name, `unconditional` and `random walk` among them, and those that others are paired with.
        levels: of the quantiles.
        border: last date that was fitted on.
        keep: which forecasts' figures to return; None = all.
        repeats: resamples of the bootstrap.

    Returns: `evaluate`'s data, with "curves": {name: {horizon: {"levels", "observed", "ds", "skill"}}} and
        "fans": {name: …} from the last origin of the first asset.
    """
    names = list(forecasts if keep is None else keep)
    beside = [name for name in RIVALS if name in forecasts]
    scored = {name: forecasts[name] for name in dict.fromkeys([REFERENCE, WALK, *beside, *names])}
    outcome = outcome_of(tables, assets, rows, levels, border)
    found = evaluate(outcome, scored, repeats=repeats)
    for part in ("forecasts", "paired", "pit"):
        found[part] = {name: found[part][name] for name in names if name in found[part]}
    curved = [h for h in CURVES if h in tables.horizons] or [tables.horizons[0]]
    order = np.argsort(outcome.ds, kind="stable")
    found["curves"] = {
        name: {
            str(h): _curve(outcome.ds, outcome.y, forecasts, name, tables.horizons.index(h), levels, order)
            for h in curved
        }
        for name in names
        if forecasts[name].quantiles is not None
    }
    found["fans"] = {n: _fan(tables, assets, rows, forecasts[n]) for n in names if forecasts[n].quantiles is not None}
    return found


def _curve(
    ds: np.ndarray,
    y: np.ndarray,
    forecasts: Mapping[str, Forecast],
    name: str,
    h: int,
    levels: Sequence[float],
    order: np.ndarray,
) -> dict[str, Any]:
    """Return observed frequencies of the levels, and skill accumulated over time (its last value is the skill)."""
    quantiles, reference = forecasts[name].quantiles, forecasts[REFERENCE].quantiles
    assert quantiles is not None and reference is not None
    loss = pinball_loss(y[order, h], quantiles[order, h], levels)
    base = pinball_loss(y[order, h], reference[order, h], levels)
    gained = np.cumsum(base - loss) / base.sum()
    some = np.unique(np.linspace(0, len(order) - 1, POINTS).astype(int))
    return {
        "levels": list(levels),
        "observed": [round(float((y[:, h] <= quantiles[:, h, k]).mean()), 4) for k in range(len(levels))],
        "ds": [show_ds(d) for d in ds[order][some]],
        "skill": [round(float(v), 5) for v in gained[some]],
    }


def _fan(tables: PriceTables, assets: np.ndarray, rows: np.ndarray, forecast: Forecast) -> dict[str, Any]:
    """Return prices before the last origin of the first asset, the forecast from it, and what came."""
    assert forecast.quantiles is not None
    place = int(np.flatnonzero(assets == assets[0])[-1])
    table, row = tables.tables[assets[place]], int(rows[place])
    last = float(table.price[row])
    until = min(row + tables.reach, len(table) - 1)
    past = table.price[max(row - HISTORY, 0) : row + 1]
    return {
        "unique_id": table.unique_id,
        "origin": show_ds(table.ds[row]),
        "history": [float(f"{v:.6g}") for v in past],
        "actual": [float(f"{v:.6g}") for v in table.price[row : until + 1]],
        "horizons": list(tables.horizons),
        "quantiles": [[float(f"{v:.6g}") for v in last * np.exp(q)] for q in forecast.quantiles[place]],
    }


# Heading, score, decimals, and what the score is multiplied with.
COLUMNS = (
    ("pinball skill", "skill", 3, 1),
    ("CRPS skill", "crps_skill", 3, 1),
    ("CRPS, %", "crps", 3, 100),
    ("90% coverage", "coverage_90%", 3, 1),
    ("RMSE/walk", "rmse_ratio", 3, 1),
    ("MASE/walk", "mase_ratio", 3, 1),
    ("IC", "ic", 3, 1),
    ("hit − up", "hit_minus_up", 3, 1),
)
SHOWN = (1, 5, 20, 30)


def evaluation_table(evaluation: dict[str, Any], horizons: Sequence[int] | None = None) -> str:
    """Return one block per horizon, a line per forecast, 95 % intervals behind the skill.

    Args:
        evaluation: from `evaluate`.
        horizons: which; None = 1, 5, 20 and 30 as far as they are forecast, else all.
    """
    known = evaluation["horizons"]
    wanted = [h for h in (horizons or SHOWN) if h in known] or known
    width = max(len(name) for name in evaluation["forecasts"])
    lines = [
        f"{evaluation['origins']:,} origins, {evaluation['span'][0]} … {evaluation['span'][1]}; skill = 1 − pinball "
        "loss ÷ that of the unconditional distribution; [95 % interval]; CRPS of log returns in per cent"
    ]
    for h in wanted:
        place = known.index(h)
        lines.append(
            f"\nh = {h}".ljust(width + 3) + f"{COLUMNS[0][0]:>26}" + "".join(f"{c:>14}" for c, *_ in COLUMNS[1:])
        )
        for name, scores in evaluation["forecasts"].items():
            cells = [
                _cell(scores.get(key, [None] * len(known))[place], digits, key == "skill", factor)
                for _, key, digits, factor in COLUMNS
            ]
            lines.append(f"  {name:<{width}}{cells[0]:>26}" + "".join(f"{cell:>14}" for cell in cells[1:]))
    own = [name for name in evaluation["forecasts"] if name not in BASELINES]
    parts = ["\n".join(lines), paired_table(evaluation, own, wanted), pit_table(evaluation, own, wanted)]
    return "\n\n".join(part for part in parts if part)


PAIRS = (("pinball", "skill"), ("CRPS", "crps_skill"))


def paired_table(evaluation: Mapping[str, Any], names: Sequence[str], horizons: Sequence[int]) -> str:
    """Return forecasts beside EWMA and the GARCHs: the difference of skills on the same dates; "" where there is none.

    Args:
        evaluation: from `evaluate`.
        names: of the forecasts.
        horizons: which.
    """
    blocks = []
    for name in names:
        rivals = evaluation.get("paired", {}).get(name)
        if not rivals:
            continue
        lines = [f"{name} beside others: skill less theirs on the same dates; a tie is an interval that holds 0"]
        lines.append(" " * 24 + "".join(f"{title:>34}" for title, _ in PAIRS))
        for h in horizons:
            place = evaluation["horizons"].index(h)
            for rival, scores in rivals.items():
                cells = [paired_cell(scores[key][place]) for _, key in PAIRS]
                lines.append(f"  {f'h = {h}':<8}{rival:<14}" + "".join(f"{cell:>34}" for cell in cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def paired_cell(found: Mapping[str, Any]) -> str:
    """Return a difference, its interval and what that says: "+0.012 [-0.001, +0.026] tie"."""
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}] {found['word']}"


def pit_table(evaluation: Mapping[str, Any], names: Sequence[str], horizons: Sequence[int]) -> str:
    """Share of outcomes in each tenth of the forecasts; "" where there is none."""
    lines = []
    for name in names:
        for h in horizons:
            shares = evaluation.get("pit", {}).get(name, [None] * len(evaluation["horizons"]))
            found = shares[evaluation["horizons"].index(h)]
            if found is not None:
                lines.append(f"  {name}, h = {h}".ljust(30) + "".join(f"{one['value']:8.3f}" for one in found))
    if not lines:
        return ""
    head = "share of outcomes in each tenth of the forecast (PIT histogram): 0.100 each when it is calibrated"
    return "\n".join([head, *lines])


def _cell(found: dict[str, float] | None, digits: int, interval: bool, factor: float) -> str:
    if found is None:
        return "–"
    text = f"{factor * found['value']:.{digits}f}"
    return f"{text} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]" if interval else text
