"""The report of a search: one self-contained HTML file and PNGs, made from tune.json and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, cast

from blockyard.report import units
from blockyard.report.chart import Chart
from blockyard.report.notebook import Record, in_a_cell, own_prefix
from blockyard.report.page import (
    cards_table,
    command_box,
    figure,
    grid,
    header,
    items,
    line,
    marker,
    page,
    provenance,
    section,
)
from blockyard.report.render import figure_png, figure_svg
from blockyard.report.schema import LOST
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
    """Make the whole page: figures and tables inside, no scripts, no network."""
    return page(_title(record), _sections(record, charts_of(record) if charts is None else charts))


def render_cell(record: Tuning) -> str:
    """Make the page for a notebook's cell: the answer at once, the rest to be opened."""
    sections = _sections(record, charts_of(record), own_prefix(record))
    return in_a_cell(sections[:SHOWN], sections[SHOWN:], "The search, every option, trials, provenance")


def shown(record: Tuning) -> Tuning:
    """Return the same record, which a notebook shows as the page."""
    return cast(Tuning, Record(record, render_cell))


# Header, the best options, fresh seeds: the sections that a cell shows unfolded.
SHOWN = 3


def _title(record: Tuning) -> str:
    return f"Search for the best options: {record['title']}"


def _sections(record: Tuning, charts: list[Chart], prefix: str = "") -> list[str]:
    """Return the sections of the page in order; `prefix` stands before the ids in its figures."""
    kind = "winner" if record["verdict"]["kind"] == "better" else "tie"

    def svg(chart: Chart) -> str:
        return figure_svg(chart, [], prefix)

    def of(group: str) -> list[Chart]:
        return [chart for chart in charts if chart.group == group]

    return [
        header(_title(record), record["verdict"], kind, _facts(record)),
        _best(record),
        _fresh(record, [figure(chart, svg, wide=True) for chart in of("answer")]),
        section("The search", grid(of("curves"), svg, _key())),
        section("Every option", grid(of("options"), svg, _key())),
        _trials(record),
        section("How to read this", items(_reading(record), "reading")),
        provenance(_provenance(record), str(record["provenance"].get("command", "")), RECORD, record),
    ]


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
    """Return the options searched: their range, the default, and the best."""
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
    told = f'<p class="lede">{escape(BEST_FILE)} beside this file holds every option. To train it:</p>'
    return section("The best configuration", cards_table(columns, rows, (1,)), told, command_box(command))


def _setting(settings: Mapping[str, Any], name: str) -> str:
    return word(settings[name]) if name in settings else units.NOTHING


def _fresh(record: Tuning, figures: list[str]) -> str:
    if not record["finals"] or not record["seeds"]:
        return ""
    metric = f"fresh {_metric(record)}"
    columns = ["configuration", metric, "against the default", "in the search", "parameters", "settings"]
    digits = places(record)
    rows = []
    for row in record["finals"]:
        seen = f"{row['search_value']:.{digits}f}" if row["search_value"] is not None else units.NOTHING
        settings = ", ".join(f"{name}={word(value)}" for name, value in row["settings"].items())
        lost = Counter(run["status"] for run in row["runs"] if run["status"] in LOST)
        rows.append(
            [
                row["name"],
                units.plus_minus(row["mean"], row["half_width"]) + "".join(f"; {n} {word}" for word, n in lost.items()),
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
    return section("Run again with fresh seeds", cards_table(columns, rows, (5,)), *figures, lede=lede)


def _metric(record: Tuning) -> str:
    unit = record["quality"]["unit"]
    return record["quality"]["metric"] + (f" ({unit})" if unit else "")


def _against(record: Tuning, row: Final) -> str:
    word = row["verdict"] or "the default"
    if row["difference"] is None or not row["verdict"]:
        return word
    gap = units.plus_minus(row["difference"], row["difference_half_width"], signed=True)
    return f"{gap}: {word}"


def _key() -> str:
    """Return which mark is which kind of trial."""
    words = {FINISHED: "finished", STOPPED: "stopped early", BEST: "best"}
    pictures = {text: marker(MARKS[which], f"var(--c{which})") for which, text in words.items()}
    pictures["default configuration"] = line(f"var(--c{DEFAULT})", ' stroke-dasharray="8 5"')
    listed = "".join(f"<li>{picture}{escape(text)}</li>" for text, picture in pictures.items())
    return f'<ul class="key">{listed}</ul>'


def _trials(record: Tuning) -> str:
    """Return the best trials, and why others failed."""
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
    return section("Trials", cards_table(columns, rows, (4,)), _lost(record), lede=lede)


def _lost(record: Tuning) -> str:
    reasons: dict[str, list[Trial]] = {}
    for trial in record["trials"]:
        if trial["status"] in ("failed", "diverged"):
            reasons.setdefault(f"{trial['status']}: {trial['note']}", []).append(trial)
    if not reasons:
        return ""
    listed = [f"{', '.join(str(t['number']) for t in trials)}: {reason}" for reason, trials in reasons.items()]
    return f"<h3>Trials that could not be judged</h3>\n{items(listed, 'reading')}"


def _reading(record: Tuning) -> list[str]:
    return [
        "The best of many trials is partly the luckiest. Its figure in the search is biased; the fresh runs are not.",
        "Beside the default a configuration is better or worse when the 95 % interval of the difference leaves out "
        f"zero, equivalent when it lies within ± {record['quality']['margin']:.2g}, and undecided otherwise: no "
        "difference is shown, which is not the same as none. These intervals hold for all configurations at once.",
        "All figures are of validation data. The search has chosen by them, so they flatter a little still; the last "
        "word belongs to data that nothing was chosen by.",
        "The best learning rate at a short budget is often higher than at a long one, and early stopping favours what "
        "learns fast: search at the budget you will train at, or check the best there.",
    ]


def _provenance(record: Tuning) -> list[tuple[str, str]]:
    found = record["provenance"]
    machine, versions, data = found.get("machine", {}), found.get("versions", {}), found.get("data", {})
    return [
        ("machine", f"{machine.get('accelerator') or machine.get('cpu')}, {machine.get('threads')} threads"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("data", ", ".join(f"{key} {value}" for key, value in data.items() if isinstance(value, str | int | float))),
        ("search", ", ".join(f"{key}={word(value)}" for key, value in record["search"].items())),
    ]
