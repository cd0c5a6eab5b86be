"""Evaluations as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = (
    ("pinball skill", "skill", 3),
    ("90% coverage", "coverage_90%", 3),
    ("RMSE/walk", "rmse_ratio", 3),
    ("MASE/walk", "mase_ratio", 3),
    ("IC", "ic", 3),
    ("hit − up", "hit_minus_up", 3),
)
SHOWN = (1, 5, 20, 30)


def evaluation_table(evaluation: dict[str, Any], horizons: Sequence[int] | None = None) -> str:
    """One block per horizon, a line per forecast, 95 % intervals behind the skill.

    Args:
        evaluation: from `evaluate`.
        horizons: which; None = 1, 5, 20 and 30 as far as they are forecast, else all.
    """
    known = evaluation["horizons"]
    wanted = [h for h in (horizons or SHOWN) if h in known] or known
    width = max(len(name) for name in evaluation["forecasts"])
    lines = [
        f"{evaluation['origins']:,} origins, {evaluation['span'][0]} … {evaluation['span'][1]}; skill = 1 − pinball "
        "loss ÷ that of the unconditional distribution; [95 % interval]"
    ]
    for h in wanted:
        place = known.index(h)
        lines.append(
            f"\nh = {h}".ljust(width + 3) + f"{COLUMNS[0][0]:>26}" + "".join(f"{c:>14}" for c, _, _ in COLUMNS[1:])
        )
        for name, scores in evaluation["forecasts"].items():
            cells = [
                _cell(scores.get(key, [None] * len(known))[place], digits, key == "skill") for _, key, digits in COLUMNS
            ]
            lines.append(f"  {name:<{width}}{cells[0]:>26}" + "".join(f"{cell:>14}" for cell in cells[1:]))
    return "\n".join(lines)


def _cell(found: dict[str, float] | None, digits: int, interval: bool) -> str:
    if found is None:
        return "–"
    text = f"{found['value']:.{digits}f}"
    return f"{text} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]" if interval else text
