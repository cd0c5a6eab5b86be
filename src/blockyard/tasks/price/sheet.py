"""The tear sheet of a backtest: one HTML file that says in a sentence what was earned, and shows how and how well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from blockyard.files import write_atomically
from blockyard.report.page import cards_table, figure, header, page, prose, swatch
from blockyard.report.render import figure_svg
from blockyard.tasks.price.backtest import HOLD
from blockyard.tasks.price.scores import INTERVALS
from blockyard.tasks.price.sheet_charts import earning_charts, ic_chart, pit_chart
from blockyard.tasks.price.summary import SHOWN

SHEET = "tearsheet.html"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# The return of a month at which its cell is coloured in full.
FULL = 0.08
Found = Mapping[str, Any]


def write_sheet(record: Found, folder: Path) -> Path:
    """Write the tear sheet of a backtest into its folder.

    Args:
        record: model (the forecast it is about), horizon (that decides), rule (in words), source, settings (labels and
            values), target (volatility asked for, or None), data (lines), notes, summary (from `summarise`), earned (by
            forecast, `buy and hold` among them), command.
        folder: where to.

    Raises:
        InputError: when it cannot be written.
        MissingExtra: when matplotlib is not installed.
    """
    write_atomically(folder / SHEET, render_sheet(record))
    return folder / SHEET


def render_sheet(record: Found) -> str:
    """Return the whole page: figures and tables inside, no scripts, no network."""
    found, heading = record["earned"][record["model"]], f"Backtest of {record['model']}"
    sections = [header(heading, {"headline": headline(record), "details": _details(record)}, "tie", _facts(record))]
    if found is not None:
        sections += [_earned(record, found), _months(found), _drawdowns(found)]
    sections += [_skill(record, found), _everyone(record), _settings(record), _reading()]
    return page(f"{heading}: {record['source']}", sections)


def headline(record: Found) -> str:
    """Return what may be said of the model's earnings, in a sentence: nothing that its interval does not bear out."""
    found, held = record["earned"][record["model"]], record["earned"][HOLD]
    ratio = _number(held["sharpe"]["value"])
    if found is None:
        return f"Nothing was traded: the rule needs widths, and {record['model']} forecasts points alone."
    if not found["gross"]:
        return f"Nothing was held by this rule; buy and hold has a Sharpe ratio of {ratio}."
    sharpe, beside = found["sharpe"], found["sharpe_minus_hold"]
    told = "above zero" if sharpe["low"] > 0 else "below zero" if sharpe["high"] < 0 else "not told from zero"
    # A ratio is above or below that of buying and holding only where the paired interval says so.
    than = "above" if beside["low"] > 0 else "below" if beside["high"] < 0 else "not told from"
    both = f"{told} nor from" if told.startswith("not") and than.startswith("not") else f"{told}, {than}"
    return f"Sharpe {interval(sharpe)}: {both} buy and hold ({ratio})."


def interval(found: Mapping[str, float], digits: int = 2, sign: str = "") -> str:
    """Word "0.96 [−0.26, 2.20]", with true minus signs, not to be torn apart at a line's end."""
    value, low, high = (f"{found[part]:{sign}z.{digits}f}" for part in ("value", "low", "high"))
    return f"{value}\u00a0[{low},\u00a0{high}]".replace("-", "−")


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:z.{digits}f}\u00a0%".replace("-", "−")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:z.{digits}f}".replace("-", "−")


# A hyphen at which no line ends.
NO_BREAK = "\u2011"
SAID = {"better": "better than", "worse": "worse than", "tie": "a tie with", "too short": "too short a time beside"}


def _details(record: Found) -> list[str]:
    """Return what belongs to the headline: buy and hold, direction, volatility, costs; and what flatters the
    figures."""
    found, summary, name = record["earned"][record["model"]], record["summary"], record["model"]
    place = summary["horizons"].index(record["horizon"])
    held = found is not None and bool(found["gross"])
    lines = []
    if held:
        beside = interval(found["sharpe_minus_hold"], sign="+")
        lines.append(f"Sharpe ratio less that of buy and hold, on the same dates: {beside}.")
    ic = summary["forecasts"][name]["ic"][place]
    if ic is not None:
        told = "not told from zero" if ic["low"] <= 0 <= ic["high"] else "told from zero"
        lines.append(f"Direction: IC {interval(ic, 3)} at h = {record['horizon']}, {told}.")
    words = [
        f"{SAID[pair['skill'][place]['word']]} {rival.replace('-', NO_BREAK)}, {interval(pair['skill'][place], 3, '+')}"
        for rival, pair in summary.get("paired", {}).get(name, {}).items()
    ]
    if words:
        lines.append(f"Distribution, by pinball skill: {'; '.join(words)}.")
    if held:
        most = found["break_even"]
        all_of_it = f"; at {_percent(most, 2)} per unit traded nothing would be left" if most and most > 0 else ""
        lines.append(
            f"Costs took {_percent(found['costs'], 2)} a year at a turnover of {found['turnover']:.1f}{all_of_it}."
        )
        if record["target"] is not None:
            had = f"{_percent(record['target'])} asked for, {_percent(found['annual_volatility'])} had"
            lines.append(f"Volatility a year: {had}, at a mean gross of {_number(found['gross'])}.")
    return lines + [f"Note: {note}." for note in record["notes"]]


def _facts(record: Found) -> list[tuple[str, str]]:
    summary, held = record["summary"], record["earned"][HOLD]
    return [
        ("Forecasts", f"{summary['origins']:,}, {summary['span'][0]} … {summary['span'][1]}"),
        ("Earned", f"{held['ds'][0][:10]} … {held['ds'][-1][:10]}"),
        ("Terms", record["rule"]),
        ("Data", record["source"]),
    ]


def _key(names: Sequence[str]) -> str:
    items = "".join(f"<li>{swatch(i)}<span>{escape(name)}</span></li>" for i, name in enumerate(names))
    return f'<ul class="key">{items}</ul>'


def _grid(figures: Sequence[str]) -> str:
    return '<div class="grid">\n' + "\n".join(figures) + "\n</div>"


Cell = Callable[[Found], str]
FIGURES: tuple[tuple[str, Cell], ...] = (
    ("return a year", lambda f: _percent(f["annual_return"])),
    ("volatility a year", lambda f: _percent(f["annual_volatility"])),
    ("Sharpe", lambda f: interval(f["sharpe"])),
    ("less hold", lambda f: interval(f["sharpe_minus_hold"], sign="+") if "sharpe_minus_hold" in f else "–"),
    ("Sortino", lambda f: _number(f["sortino"])),
    ("Calmar", lambda f: _number(f["calmar"])),
    ("deepest fall", lambda f: _percent(f["max_drawdown"])),
)
COSTS: tuple[tuple[str, Cell], ...] = (
    ("turnover a year", lambda f: _number(f["turnover"], 1)),
    ("costs a year", lambda f: _percent(f["costs"], 2)),
    (
        "cost per unit that leaves nothing",
        lambda f: _percent(f["break_even"] if (f["break_even"] or 0) > 0 else None, 2),
    ),
    ("mean gross", lambda f: _number(f["gross"])),
    ("mean net", lambda f: _number(f["net"])),
)


def _earned(record: Found, found: Found) -> str:
    shown = {record["model"]: found, HOLD: record["earned"][HOLD]}
    figures = [figure(chart, lambda one: figure_svg(one, list(shown))) for chart in earning_charts(shown)]
    tables = f"{_table_of(shown, FIGURES)}\n{_apart('Costs and turnover')}\n{_table_of(shown, COSTS)}"
    return f"<section>\n<h2>What it earned</h2>\n{_key(list(shown))}\n{_grid(figures)}\n{tables}\n</section>"


def _apart(heading: str) -> str:
    return f'<h3 class="apart">{escape(heading)}</h3>'


def _table_of(results: Mapping[str, Found | None], columns: Sequence[tuple[str, Cell]]) -> str:
    """Return a row for each forecast."""
    rows = [
        [name, *(["–"] * len(columns) if found is None else [cell(found) for _, cell in columns])]
        for name, found in results.items()
    ]
    return cards_table(["forecast", *(title for title, _ in columns)], rows, frozenset())


def _months(found: Found) -> str:
    """Return years times months, each cell tinted by its return; the year's own in the last column."""
    by_year: dict[int, dict[int, float]] = {}
    for month in found["months"]:
        by_year.setdefault(month["year"], {})[month["month"]] = month["return"]
    if not by_year:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("", *MONTHS, "year"))
    body = ""
    for year, values in by_year.items():
        total, cells = 1.0, ""
        for number in range(1, 13):
            value = values.get(number)
            total *= 1 + (value or 0.0)
            cells += "<td></td>" if value is None else _tinted(value)
        body += f"<tr><th>{year}</th>{cells}<td>{_number(100 * (total - 1), 1)}</td></tr>"
    lede = "Per cent after costs, booked where a step ended; the first and the last month may be parts of one."
    table = f'<table class="months"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return (
        f'<section>\n<h2>Month by month</h2>\n<p class="lede">{lede}</p>\n<div class="scroll">{table}</div>\n</section>'
    )


def _tinted(value: float) -> str:
    strength = round(45 * min(abs(value) / FULL, 1.0))
    side = "up" if value >= 0 else "down"
    return f'<td class="{side}" style="--part:{strength}%">{_number(100 * value, 1)}</td>'


def _drawdowns(found: Found) -> str:
    if not found["drawdowns"]:
        return ""
    rows = [
        [fall["start"], fall["trough"], fall["recovery"] or "not yet", _percent(fall["depth"]), f"{fall['length']:,}"]
        for fall in found["drawdowns"]
    ]
    columns = ["from the high of", "lowest", "recovered", "depth", "steps"]
    return f"<section>\n<h2>Deepest falls</h2>\n{cards_table(columns, rows, frozenset({1, 2}))}\n</section>"


def _skill(record: Found, found: Found | None) -> str:
    """Return IC, PIT, skill beside EWMA and the GARCHs, and coverage."""
    summary, name, horizon = record["summary"], record["model"], record["horizon"]
    known = summary["horizons"]
    places = {h: known.index(h) for h in sorted({horizon, *SHOWN}) if h in known}
    scores = summary["forecasts"][name]
    charts = [ic_chart(found["ic"], horizon)] if found is not None and found["ic"] is not None else []
    shares = summary.get("pit", {}).get(name, [None] * len(known))[known.index(horizon)]
    charts += [pit_chart(shares, horizon)] if shares is not None else []
    parts = [_grid([figure(chart, lambda one: figure_svg(one, [])) for chart in charts])] if charts else []
    if "skill" in scores:
        rivals = summary.get("paired", {}).get(name, {})
        rows = [
            [
                f"h = {h}",
                interval(scores["skill"][at], 3),
                *(f"{interval(pair['skill'][at], 3, '+')} {pair['skill'][at]['word']}" for pair in rivals.values()),
            ]
            for h, at in places.items()
        ]
        columns = ["horizon", "pinball skill", *(f"less that of {rival}" for rival in rivals)]
        parts.append(f"{_apart('Skill of the distribution')}\n{cards_table(columns, rows, frozenset())}")
    coverage = {part: scores.get(f"coverage_{part:.0%}") for part in INTERVALS}
    rows = [
        [f"{part:.0%} interval", *(interval(column[at]) for at in places.values())]
        for part, column in coverage.items()
        if column is not None and None not in column
    ]
    if rows:
        table = cards_table(["", *(f"h = {h}" for h in places)], rows, frozenset())
        parts.append(f"{_apart('Share of outcomes within central intervals')}\n{table}")
    lede = (
        "Skill is 1 − pinball loss ÷ that of the unconditional distribution. Less that of EWMA and the GARCHs on the "
        "same dates: better and worse are 95 % intervals without 0."
    )
    body = "\n".join(parts)
    return f'<section>\n<h2>How well it forecast</h2>\n<p class="lede">{prose(lede)}</p>\n{body}\n</section>'


def _everyone(record: Found) -> str:
    lede = (
        "Every forecast by the same rule, at the same lag and cost. Those that differ by less than their intervals are "
        "not told apart, and the best of so many looks better than it is."
    )
    table = _table_of(record["earned"], FIGURES)
    return f'<section>\n<h2>Beside baselines</h2>\n<p class="lede">{prose(lede)}</p>\n{table}\n</section>'


def _settings(record: Found) -> str:
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in record["settings"])
    lines = "\n".join(escape(line) for line in record["data"])
    return (
        "<section>\n<h2>Settings and data</h2>\n<p>To run it again:</p>\n"
        f'<div class="command"><pre>{prose(record["command"])}</pre></div>\n<dl>{rows}</dl>\n'
        f'<div class="command"><pre>{lines}</pre></div>\n'
        '<p class="lede">All figures are in backtest.json (earnings) and evaluation.json (forecasts) beside this file, '
        "the model’s weights with their dates in weights.csv.</p>\n</section>"
    )


READING = (
    "A weight is decided with the close of a date and taken at the close lag rows later; it earns from there to the "
    "next close. Costs are paid for every change of a weight. That weights drift between decisions is not counted, "
    "nor are interest, borrowing, taxes, and what one’s own orders do to prices.",
    "Intervals are 95 %, by a circular block bootstrap over dates; differences are paired, both on the same drawn "
    "dates. Sharpe, Sortino and Calmar are of a year, over a rate of 0.",
    "Buy and hold is equal parts of all assets from the same dates, at the same lag and cost. Dates between folds "
    "(the embargo) are left out of both.",
    "Where the file holds assets that were chosen because they did well, holding any of them did well, too.",
    "Nothing here is advice to trade.",
)


def _reading() -> str:
    items = "".join(f"<li>{prose(line)}</li>" for line in READING)
    return f'<section>\n<h2>How to read this</h2>\n<ul class="reading">{items}</ul>\n</section>'
