"""What a comparison of price forecasters adds to its report: the test beside baselines, fans, calibration, skill.

Validation chooses, the test part judges: a run's figures are of the test part, which no run and no choice has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from blockyard.report.chart import Chart, seeds_in
from blockyard.report.palette import Palette
from blockyard.report.parts import Parts, Section, Table, Terms
from blockyard.report.schema import Choice, Report
from blockyard.tasks.price.baselines import RIVALS
from blockyard.tasks.price.charts import draw_calibration, draw_fan, draw_over_time, draw_tenths
from blockyard.tasks.price.scores import word_of
from blockyard.tasks.price.summary import PAIRS, paired_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (1, 5, 20, 30)
DRAWN = ("EWMA(0.94)", "GARCH-t")
SCORES = (
    ("pinball skill", "skill"),
    ("CRPS skill", "crps_skill"),
    ("90 % coverage", "coverage_90%"),
    ("RMSE ÷ walk", "rmse_ratio"),
    ("IC", "ic"),
    ("hit rate − always up", "hit_minus_up"),
)


class PriceParts(Parts):
    """The test part beside baselines."""

    def notes(self, terms: Terms, data: Any, units_read: Mapping[str, int]) -> list[str]:
        origins = len(data.origins("train")[0])
        return [
            f"{name} sees every training window {windows / origins:.1f} times."
            for name, windows in units_read.items()
            if windows > 10 * origins
        ]

    def facts(self, report: Report) -> list[tuple[str, str]]:
        test = report["quality"].get("baselines")
        return [("test", f"{test['span'][0]} … {test['span'][1]}")] if test else []

    def how_to_read(self, report: Report) -> list[str]:
        return [
            "Loss is the mean pinball loss of quantile forecasts on the validation dates, in units of σ20·√h, the "
            "volatility of the last 20 steps; lower is better. Choices are ranked by it, never by the test.",
            "Skill is 1 − pinball loss ÷ that of the unconditional distribution of past returns. It comes from "
            "forecasting volatility: expect it near EWMA and GARCH, and expect no skill in direction (IC and hit rate "
            "about 0; nothing here should be traded on).",
            "Skill beside EWMA(0.94), GARCH-t and GJR-GARCH-t is the difference of skills on the same dates. Better, "
            "worse: intervals without 0; a tie holds it; too short: a test of fewer than six times h dates, which "
            "gives no interval. Each interval is for itself: of twenty ties one looks like more by chance.",
            "Intervals behind skills are over time (a block bootstrap of the test dates); those behind losses are over "
            "seeds. Two choices can differ by more than the seeds do and still by less than the dates do.",
        ]

    def sections(self, report: Report) -> list[Section]:
        baselines = report["quality"].get("baselines")
        choices = [c for c in report["choices"] if _figures(c)]
        if not baselines or not choices:
            return []
        horizons = baselines["horizons"]
        shown = [h for h in SHOWN if h in horizons] or horizons[:4]
        tables = [_table(f"h = {h}", horizons.index(h), choices, baselines) for h in shown]
        tables += _paired_tables(choices, shown, horizons)
        lede = (
            f"{baselines['origins']:,} origins, {baselines['span'][0]} … {baselines['span'][1]}, that no choice saw. "
            "Choices: mean over seeds; baselines: fitted on everything before the test."
        )
        return [Section("The test, beside baselines", lede, tables, _charts(report, choices, baselines))]


def _figures(choice: Choice) -> list[dict[str, Any]]:
    """Return the figures of a choice's finished runs."""
    return [run["figures"]["test"] for run in choice["runs"] if run.get("figures", {}).get("test")]


def _table(caption: str, h: int, choices: list[Choice], baselines: dict[str, Any]) -> Table:
    rows = []
    for choice in choices:
        tests = [next(iter(test["forecasts"].values())) for test in _figures(choice)]
        rows.append([choice["name"], *(_mean_cell([_at(t, key, h) for t in tests], key) for _, key in SCORES)])
    for name, scores in baselines["forecasts"].items():
        rows.append([name, *(_mean_cell([_at(scores, key, h)], key) for _, key in SCORES)])
    return Table(caption, ("forecast", *(title for title, _ in SCORES)), rows)


def _paired_tables(choices: list[Choice], shown: list[int], horizons: list[int]) -> list[Table]:
    """Return each choice's skill less that of EWMA and the GARCHs; reports of earlier versions have none."""
    tables = []
    for title, key in PAIRS:
        rows = []
        for choice in choices:
            tests = [one for test in _figures(choice) for one in test.get("paired", {}).values()]
            for rival in RIVALS:
                found = [one[rival][key] for one in tests if rival in one]
                if found:
                    cells = [_mean_pair([one[horizons.index(h)] for one in found]) for h in shown]
                    rows.append([f"{choice['name']} beside {rival}", *cells])
        if rows:
            caption = f"{title[:1].upper() + title[1:]} skill less that of others, on the same dates"
            tables.append(Table(caption, ("choice", *(f"h = {h}" for h in shown)), rows))
    return tables


def _mean_pair(found: list[dict[str, Any]]) -> str:
    """Return the mean over seeds of a difference and of the ends of its interval, with what that says."""
    mean = {part: float(np.mean([one[part] for one in found])) for part in ("value", "low", "high")}
    return paired_cell({**mean, "word": word_of(mean, all(one["word"] != "too short" for one in found))})


def _at(scores: Mapping[str, Any], key: str, h: int) -> dict[str, float] | None:
    column = scores.get(key)
    return None if column is None else column[h]


def _mean_cell(found: list[dict[str, float] | None], key: str) -> str:
    known = [one for one in found if one is not None]
    if not known:
        return "–"
    value, low, high = (float(np.mean([one[part] for one in known])) for part in ("value", "low", "high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if key == "skill" else f"{value:.3f}"


def _charts(report: Report, choices: list[Choice], baselines: dict[str, Any]) -> list[Chart]:
    index = {choice["name"]: i for i, choice in enumerate(report["choices"])}
    charts = [_fan_chart(report, choices, index)]
    for h in next(iter(baselines["curves"].values())):
        seeds = f"n = {seeds_in(report)} seeds"
        charts.append(
            Chart(
                f"price-skill-{h}",
                f"Skill over time, h = {h}",
                "Pinball skill accumulated over the test dates: a line that rises steadily earned its skill all along, "
                f"a single step earned it in one episode. The end is the skill. Mean of {seeds}; grey: baselines.",
                _curve_drawer(choices, index, baselines, h, _draw_skill),
                group="price",
            )
        )
        charts.append(
            Chart(
                f"price-calibration-{h}",
                f"Calibration, h = {h}",
                "How often outcomes fell below each forecast quantile; the dotted diagonal is perfect. Mean of "
                f"{seeds}; grey: baselines.",
                _curve_drawer(choices, index, baselines, h, _draw_observed),
                group="price",
            )
        )
        pit = _pit_chart(report, choices, index, int(h), baselines["horizons"])
        charts += [pit] if pit is not None else []
    return charts


def _pit_chart(
    report: Report, choices: list[Choice], index: Mapping[str, int], h: int, horizons: list[int]
) -> Chart | None:
    leader = _leader(report, choices)
    shares = next(iter(_figures(leader)[0].get("pit", {}).values()), None)
    found = None if shares is None else shares[horizons.index(h)]
    if found is None:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        draw_tenths(axes, found, palette, palette.style(index[leader["name"]]).colour)

    caption = (
        f"Share of outcomes in each tenth of the forecasts of {leader['name']} (first seed): a tenth each when "
        "calibrated; high at both ends is too narrow, high in the middle too wide, a slope is a shift."
    )
    return Chart(f"price-pit-{h}", f"Tenths of the forecast, h = {h}", caption, draw, legend=False, group="price")


def _leader(report: Report, choices: list[Choice]) -> Choice:
    ranked = [row["name"] for row in report.get("ranking", []) if row["rank"] is not None]
    return next((c for name in ranked for c in choices if c["name"] == name), choices[0])


def _fan_chart(report: Report, choices: list[Choice], index: Mapping[str, int]) -> Chart:
    leader = _leader(report, choices)
    test = _figures(leader)[0]
    fan = next(iter(test["fans"].values()), None)

    def draw(axes: Axes, palette: Palette) -> None:
        if fan is not None:
            draw_fan(axes, fan, test["levels"], palette, palette.style(index[leader["name"]]).colour)

    caption = (
        f"The forecast of {leader['name']} (first seed) from the last test origin: median, and the central 50, 80, 90 "
        "and 95 % intervals. Solid: the past; dashed: what came."
    )
    return Chart("price-fan", f"A forecast of {leader['name']}", caption, draw, legend=False, group="price")


def _curve_drawer(
    choices: list[Choice],
    index: Mapping[str, int],
    baselines: dict[str, Any],
    h: str,
    draw_all: Callable[[Any, list[dict[str, Any]], list[dict[str, Any]], Palette], None],
) -> Callable[[Axes, Palette], None]:
    def draw(axes: Axes, palette: Palette) -> None:
        curves, lines = [], []
        for number, name in enumerate(n for n in DRAWN if n in baselines["curves"]):
            curves.append(baselines["curves"][name][h])
            dashes = ((3, 2), (1, 1))[number % 2]
            lines.append({"color": palette.soft, "dashes": dashes, "linewidth": 1.2, "label": name})
        for choice in choices:
            look = palette.style(index[choice["name"]])
            # A model of points has no curves.
            known = [curve[h] for test in _figures(choice) for curve in list(test["curves"].values())[:1]]
            if known:
                mean = {key: np.mean([c[key] for c in known], axis=0).tolist() for key in ("observed", "skill")}
                curves.append({**known[0], **mean})
                lines.append({"color": look.colour, "dashes": look.dashes or (None, None), "linewidth": 1.8})
        draw_all(axes, curves, lines, palette)
        axes.legend(frameon=False, fontsize=8, labelcolor=palette.ink, loc="best")

    return draw


def _draw_skill(axes: Axes, curves: list[dict[str, Any]], lines: list[dict[str, Any]], palette: Palette) -> None:
    draw_over_time(axes, curves, lines, palette)


def _draw_observed(axes: Axes, curves: list[dict[str, Any]], lines: list[dict[str, Any]], palette: Palette) -> None:
    draw_calibration(axes, palette)
    for curve, line in zip(curves, lines):
        axes.plot(curve["levels"], curve["observed"], **line)
