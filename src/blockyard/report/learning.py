"""Whether the budget was enough: what choices still gained at its end, beside what parts them."""

from __future__ import annotations

import statistics
from bisect import bisect_left

from blockyard.report.schema import Choice, Curve, Ranked, Report, higher_is_better, quality_word

# What a run gains over this last part of its budget is what the order is compared with.
LAST_PART = 0.2


def still_learning(report: Report, ranking: list[Ranked]) -> str | None:
    """Word what choices gained over the last fifth of the budget, where that is more than parts others from the lead.

    Args:
        report: the measured facts.
        ranking: its choices in order.

    Returns:
        None when the gaps are wider than that, or when there are too few evaluations to tell.
    """
    found = gains_at_the_end(report, ranking)
    if found is None:
        return None
    gains, gaps = found
    near = [name for name, gap in gaps.items() if gap < max(gains)]
    # A gain that would not matter between choices does not matter here.
    if max(gains) <= report.get("margin", 0.0) or not near:
        return None
    moved = "rose" if higher_is_better(report) else "fell"
    least, most = (f"{max(0.0, value):.2g}" for value in (min(gains), max(gains)))
    amount = most if least == most else f"{least} to {most}"
    parts = "all choices" if len(near) == len(gaps) and len(near) > 1 else ", ".join(near)
    return (
        f"Still learning: over the last fifth of the budget the {quality_word(report)} {moved} by {amount}, at least "
        f"as much as what parts {parts} from the lead. A larger --budget.value may change the order."
    )


def gains_at_the_end(report: Report, ranking: list[Ranked]) -> tuple[list[float], dict[str, float]] | None:
    """Return what every ranked choice gained over the last part of the budget, and how far all but the first are behind
    it.

    Returns:
        Gains and gaps, the larger the better and the farther; None where there are too few evaluations.
    """
    by_name = {choice["name"]: choice for choice in report["choices"]}
    ranked = [by_name[row["name"]] for row in ranking if row["rank"] is not None]
    ends = {choice["name"]: found for choice in ranked if (found := _end_and_gain(choice)) is not None}
    if len(ends) < 2 or len(ends) < len(ranked):
        return None
    sign = -1.0 if higher_is_better(report) else 1.0
    leader = ends[ranked[0]["name"]][0]
    gaps = {choice["name"]: sign * (ends[choice["name"]][0] - leader) for choice in ranked[1:]}
    return [sign * gain for _, gain in ends.values()], gaps


def _end_and_gain(choice: Choice) -> tuple[float, float] | None:
    """Return final quality and how much it fell over the last part of the budget, averaged over finished runs."""
    found = []
    for run in choice["runs"]:
        if run["status"] == "finished":
            ends = _before_and_after(run.get("quality", run["validation"]))
            if ends is None:
                return None
            found.append(ends)
    if not found:
        return None
    return statistics.fmean(end for _, end in found), statistics.fmean(start - end for start, end in found)


def _before_and_after(curve: Curve) -> tuple[float, float] | None:
    """Return the quality when the last part of the budget began (interpolated), and at the end."""
    points = [(tokens, value) for tokens, value in zip(curve["tokens"], curve["loss"]) if value is not None]
    if len(points) < 3:
        return None
    total, end = points[-1]
    place = (1 - LAST_PART) * total
    after = bisect_left([tokens for tokens, _ in points], place)
    if after == 0:
        return None
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    return y0 + (y1 - y0) * (place - x0) / (x1 - x0), end
