"""The report of a search: one self-contained HTML file and PNGs, made from tune.json and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from blockyard.report import units
from blockyard.report.chart import Chart
from blockyard.report.html import cards_table, figure, page_header, prose, whole_page
from blockyard.report.palette import MARKER_PATHS
from blockyard.report.render import figure_png, figure_svg
from blockyard.report.units import command_line, word
from blockyard.report.write import write_files
from blockyard.tune.charts import BEST, DEFAULT, FINISHED, MARKS, STOPPED, charts_of
from blockyard.tune.output import BEST as BEST_FILE
from blockyard.tune.output import RECORD, TABLE
from blockyard.tune.schema import Final, Trial, Tuning
from blockyard.tune.verdict import amount, counts, places, sign_of

REPORT = "report.html"
# Trials in the table of the page; all are in trials.csv.
TOP = 15


def write_report(record: Tuning, out: str | Path) -> dict[str, Path]:
    """Write report.html and a PNG for each figure; returns the files by kind: "html", "png:NAME".

    Raises:
        InputError: when the folder cannot be written.
    """
    charts = charts_of(record)
    contents = {"html": (REPORT, render_html(record, charts).encode())}
    for chart in charts:
        contents[f"png:{chart.name}"] = (f"{chart.name}.png", figure_png(chart, []))
    return write_files(contents, Path(out), "report")


def render_html(record: Tuning, charts: list[Chart] | None = None) -> str:
    """The whole page: figures and tables inside, no scripts, no network."""
    charts = charts_of(record) if charts is None else charts
    title = f"Search for the best options: {record['title']}"
    answer = [chart for chart in charts if chart.group == "answer"]
    course = [chart for chart in charts if chart.group == "curves"]
    options = [chart for chart in charts if chart.group == "options"]
    body = "\n".join(
        [
            _header(record, title),
            _best(record),
            _fresh(record, answer),
            _figures("The search", course),
            _figures("Every option", options),
            _trials(record),
            _reading(record),
            _provenance(record),
        ]
    )
    return whole_page(title, body)


def _header(record: Tuning, title: str) -> str:
    verdict = record["verdict"]
    kind = "winner" if verdict["kind"] == "better" else "tie"
    return page_header(title, kind, verdict["headline"], verdict["details"], _facts(record))


def _facts(record: Tuning) -> list[tuple[str, str]]:
    search = record["search"]
    found = [
        ("Trials", counts(record["trials"]) or units.NOTHING),
        ("Budget each", amount(record)),
        ("Searched", f"{len(record['space'])} options"),
        ("Sampler", search["sampler"]),
        ("Stopped early by", search["pruner"]),
        ("Fresh seeds", str(len(record["seeds"]))),
    ]
    source = record["provenance"].get("data", {}).get("source")
    return [*found, ("Data", str(source))] if source else found


def _best(record: Tuning) -> str:
    """The options searched: their range, the default, and the best."""
    best = record["best"]
    if best is None:
        return ""
    default = next((row["settings"] for row in record["finals"] if row["trial"] is None), None)
    columns = ["option", "searched", *(["default"] if default is not None else []), best["name"]]
    rows = []
    for dimension in record["space"]:
        name = dimension["name"]
        cells = [name, dimension["text"]]
        if default is not None:
            cells.append(_setting(default, name))
        rows.append([*cells, _setting(best["settings"], name)])
    command = command_line(f"blockyard train {record['task']}", [("config", BEST_FILE), ("out", "runs/best")])
    return (
        f"<section>\n<h2>The best configuration</h2>\n{cards_table(columns, rows, frozenset({1}))}\n"
        f'<p class="lede">{escape(BEST_FILE)} beside this file holds every option. To train it:</p>\n'
        f'<div class="command"><pre>{prose(command)}</pre></div>\n</section>'
    )


def _setting(settings: Mapping[str, Any], name: str) -> str:
    return word(settings[name]) if name in settings else units.NOTHING


def _fresh(record: Tuning, charts: list[Chart]) -> str:
    if not record["finals"] or not record["seeds"]:
        return ""
    metric = f"fresh {_metric(record)}"
    columns = ["configuration", metric, "against the default", "in the search", "parameters", "settings"]
    digits = places(record)
    rows = []
    for row in record["finals"]:
        seen = f"{row['search_value']:.{digits}f}" if row["search_value"] is not None else units.NOTHING
        settings = ", ".join(f"{name}={word(value)}" for name, value in row["settings"].items())
        diverged = f"; {row['diverged']} diverged" if row["diverged"] else ""
        rows.append(
            [
                row["name"],
                units.plus_minus(row["mean"], row["half_width"]) + diverged,
                _against(record, row),
                seen,
                units.count(row["parameters"]),
                settings,
            ]
        )
    n = len(record["seeds"])
    lede = (
        f"The best trials and the default configuration, each trained again with {n} seeds that the search never saw, "
        "at the same budget. Only these runs are compared."
    )
    figures = "\n".join(_figure(chart, wide=True) for chart in charts)
    return (
        f'<section>\n<h2>Run again with fresh seeds</h2>\n<p class="lede">{escape(lede)}</p>\n'
        f"{cards_table(columns, rows, frozenset({5}))}\n{figures}\n</section>"
    )


def _metric(record: Tuning) -> str:
    unit = record["quality"]["unit"]
    return record["quality"]["metric"] + (f" ({unit})" if unit else "")


def _against(record: Tuning, row: Final) -> str:
    words = {
        "better": "better",
        "worse": "worse",
        "equivalent": "equivalent",
        "undecided": "undecided",
        "unknown": "unknown",
        "": "the default",
    }
    if row["difference"] is None or not row["verdict"]:
        return words[row["verdict"]]
    gap = units.plus_minus(row["difference"], row["difference_half_width"], signed=True)
    return f"{gap}: {words[row['verdict']]}"


def _figure(chart: Chart, *, wide: bool = False) -> str:
    return figure(chart, figure_svg(chart, []), wide=wide)


def _figures(heading: str, charts: list[Chart]) -> str:
    if not charts:
        return ""
    figures = "\n".join(_figure(chart) for chart in charts)
    return f'<section>\n<h2>{escape(heading)}</h2>\n{_key()}\n<div class="grid">\n{figures}\n</div>\n</section>'


def _key() -> str:
    words = {FINISHED: "finished", STOPPED: "stopped early", BEST: "best", DEFAULT: "default configuration"}
    items = ""
    for which, text in words.items():
        if which == DEFAULT:
            shape = f'<path d="M0 6h46" stroke="var(--c{which})" stroke-width="2" stroke-dasharray="8 5"/>'
            picture = f'<svg class="swatch" viewBox="0 0 46 12" aria-hidden="true">{shape}</svg>'
        else:
            shape = f'<path d="{MARKER_PATHS[MARKS[which]]}" fill="var(--c{which})"/>'
            picture = f'<svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">{shape}</svg>'
        items += f"<li>{picture}{escape(text)}</li>"
    return f'<ul class="key">{items}</ul>'


def _trials(record: Tuning) -> str:
    """The best trials, and why others failed."""
    sign = sign_of(record["quality"]["better"])
    finished = [t for t in record["trials"] if t["status"] == "finished" and t["same_as"] is None]
    finished.sort(key=lambda t: (sign * (t["value"] or 0.0), t["number"]))
    columns = ["trial", _metric(record), "parameters", "training", "settings"]
    rows = [
        [
            f"trial {t['number']}",
            f"{t['value']:.4f}",
            units.count(t["parameters"]),
            units.duration(t["seconds"]),
            ", ".join(f"{name}={word(value)}" for name, value in t["settings"].items()),
        ]
        for t in finished[:TOP]
    ]
    shown = f"the best {TOP} of {len(finished)} finished" if len(finished) > TOP else f"all {len(finished)} finished"
    repeated = sum(t["same_as"] is not None for t in record["trials"])
    again = f" {repeated} drew settings that had been tried and took over their figures." if repeated else ""
    lede = f"With the search's own seed: {shown}. All trials are in {TABLE}.{again}"
    return (
        f'<section>\n<h2>Trials</h2>\n<p class="lede">{escape(lede)}</p>\n'
        f"{cards_table(columns, rows, frozenset({4}))}\n{_lost(record)}</section>"
    )


def _lost(record: Tuning) -> str:
    reasons: dict[str, list[Trial]] = {}
    for trial in record["trials"]:
        if trial["status"] in ("failed", "diverged"):
            reasons.setdefault(f"{trial['status']}: {trial['note']}", []).append(trial)
    if not reasons:
        return ""
    items = "".join(
        f"<li>{escape(', '.join(str(t['number']) for t in trials))}: {escape(reason)}</li>"
        for reason, trials in reasons.items()
    )
    return f'<h3>Trials that could not be judged</h3>\n<ul class="reading">{items}</ul>\n'


def _reading(record: Tuning) -> str:
    lines = [
        "The best of many trials is partly the luckiest. Its figure in the search is biased; the fresh runs are not.",
        "Beside the default a configuration is better or worse when the 95 % interval of the difference leaves out "
        f"zero, equivalent when it lies within ± {record['quality']['margin']:.2g}, and undecided otherwise: no "
        "difference is shown, which is not the same as none. These intervals hold for all configurations at once.",
        "All figures are of validation data. The search has chosen by them, so they flatter a little still; the last "
        "word belongs to data that nothing was chosen by.",
        "The best learning rate at a short budget is often higher than at a long one, and early stopping favours what "
        "learns fast: search at the budget you will train at, or check the best there.",
    ]
    items = "".join(f"<li>{prose(line)}</li>" for line in lines)
    return f'<section>\n<h2>How to read this</h2>\n<ul class="reading">{items}</ul>\n</section>'


def _provenance(record: Tuning) -> str:
    found = record["provenance"]
    machine, versions, data = found.get("machine", {}), found.get("versions", {}), found.get("data", {})
    rows = [
        ("machine", f"{machine.get('accelerator') or machine.get('cpu')}, {machine.get('threads')} threads"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("data", ", ".join(f"{key} {value}" for key, value in data.items() if isinstance(value, str | int | float))),
        ("search", ", ".join(f"{key}={word(value)}" for key, value in record["search"].items())),
    ]
    items = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows)
    return (
        "<section>\n<h2>Provenance</h2>\n<p>To run it again:</p>\n"
        f'<div class="command"><pre>{prose(str(found.get("command", "")))}</pre></div>\n<dl>{items}</dl>\n'
        f'<p class="lede">All figures are in {escape(RECORD)} beside this file ({escape(record["schema"])}), made '
        f"{escape(record['created'])}. Total time: {escape(units.duration(found.get('seconds_total')))}.</p>\n"
        "</section>"
    )
