"""Split-conformal calibration: quantiles are shifted by what was missing on data that training did not see.

For each horizon and level τ the shift is the τ-quantile of y − q_τ over the calibration rows, taken with the finite-
sample correction of conformal prediction (Vovk et al. 2005; for quantiles Romano et al. 2019, arXiv 1905.03222). Under
exchangeable rows the corrected level is then exact; prices are not exchangeable, so it is a repair, no guarantee, and
`chosen` keeps it only where one half of the rows says that it helps the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically
from blockyard.tasks.price.scores import pinball_loss

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """Shifts of quantiles in units of σ20 √h.

    Args:
        levels: of the quantiles.
        shifts: [H, levels]; for a model of points the quantiles' distances from the point.
        rows: how many origins they come from.
        why: how it was decided to use them, in words.
    """

    levels: tuple[float, ...]
    shifts: np.ndarray
    rows: int
    why: str = ""

    def apply(self, point: np.ndarray, quantiles: np.ndarray | None) -> np.ndarray:
        """Return calibrated quantiles [N, H, levels], rising: shifted ones that would cross are sorted."""
        base = point[..., None] if quantiles is None else quantiles
        return np.sort(base + self.shifts, axis=-1)

    def fits(self, horizons: Sequence[int], levels: Sequence[float]) -> bool:
        """Return whether these are finite shifts of a model with such horizons and levels of quantiles."""
        right = self.levels == tuple(levels) and self.shifts.shape == (len(horizons), len(levels))
        return right and bool(np.isfinite(self.shifts).all())

    def save(self, folder: Path) -> None:
        """Write calibration.json into a run folder."""
        data = {"levels": list(self.levels), "shifts": self.shifts.tolist(), "rows": self.rows, "why": self.why}
        write_atomically(folder / FILE, json.dumps(data, indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> Calibration | None:
        """Return the calibration of a run folder, None where there is none.

        Raises:
            InputError: when it is damaged.
        """
        file = folder / FILE
        if not file.exists():
            return None
        try:
            found: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
            shifts = np.array(found["shifts"], np.float64)
            return Calibration(tuple(found["levels"]), shifts, int(found["rows"]), str(found["why"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{file} is damaged ({error}); remove it to forecast without calibration") from error


def fit_calibration(
    y: np.ndarray, point: np.ndarray, quantiles: np.ndarray | None, levels: Sequence[float]
) -> Calibration:
    """Return shifts from calibration rows.

    Args:
        y: what happened ÷ (σ20 √h), [N, H].
        point: forecasts in the same unit, [N, H].
        quantiles: [N, H, levels], or None for a model of points.
        levels: of the quantiles.
    """
    n = len(y)
    base = np.repeat(point[..., None], len(levels), axis=-1) if quantiles is None else quantiles
    missing = y[..., None] - base
    shifts = np.empty(missing.shape[1:])
    for k, level in enumerate(levels):
        # Towards the outside, so that the level is met at least: ceil for upper quantiles, floor for lower ones.
        rank = np.ceil((n + 1) * level) if level >= 0.5 else np.floor((n + 1) * level)
        place = int(np.clip(rank - 1, 0, n - 1))
        shifts[:, k] = np.partition(missing[..., k], place, axis=0)[place]
    return Calibration(tuple(levels), shifts, n)


def chosen(
    y: np.ndarray,
    point: np.ndarray,
    quantiles: np.ndarray,
    levels: Sequence[float],
    ds: np.ndarray,
    horizons: Sequence[int],
) -> Calibration | None:
    """Calibrate the horizons that have rows enough and whom it helps: each half is scored with shifts from the other.

    Forecasts over h steps share all but one of them with their neighbours, so that n dates hold n / h independent
    outcomes. A tail of level α needs 1 / α of those before it can be read off at all; at horizons with fewer, quantiles
    stay as they are.

    Args:
        y: as for `fit_calibration`.
        point: likewise.
        quantiles: likewise.
        levels: likewise.
        ds: date of each row.
        horizons: steps ahead, [H].

    Returns: the calibration from all rows, or None when no horizon is calibrated.
    """
    dates = np.unique(ds)
    tail, reach = min(levels[0], 1 - levels[-1]), max(horizons)
    enough = len(dates) / np.asarray(horizons) >= 1 / tail
    if not enough.any() or len(dates) < 2 * reach + 2:
        return None
    # Labels of both halves overlap at the seam: as many dates as the largest horizon are left out there.
    middle = len(dates) // 2
    early, late = ds < dates[middle - reach // 2], ds >= dates[middle + (reach + 1) // 2]
    plain, repaired = np.zeros(len(horizons)), np.zeros(len(horizons))
    for fit, score in ((early, late), (late, early)):
        moved = fit_calibration(y[fit], point[fit], quantiles[fit], levels).apply(point[score], quantiles[score])
        for h in range(len(horizons)):
            plain[h] += pinball_loss(y[score, h], quantiles[score, h], levels).sum()
            repaired[h] += pinball_loss(y[score, h], moved[:, h], levels).sum()
    kept = enough & (repaired < plain)
    if not kept.any():
        return None
    found = fit_calibration(y, point, quantiles, levels)
    gain = repaired[kept].sum() / plain[kept].sum() - 1
    at = ", ".join(str(h) for h, keep in zip(horizons, kept) if keep)
    why = f"h = {at}: pinball loss {gain:+.2%} on held-out halves"
    return Calibration(found.levels, np.where(kept[:, None], found.shifts, 0.0), found.rows, why)
