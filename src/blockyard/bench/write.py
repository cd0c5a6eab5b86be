"""A benchmark as files: bench.json, a self-contained bench.html, bench.md, and one PNG for each figure."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any, cast

from blockyard.bench.charts import charts_of
from blockyard.bench.schema import SCHEMA, Bench, Measured, Roofline
from blockyard.report import units
from blockyard.report.notebook import Record, in_a_cell, own_prefix
from blockyard.report.page import grid, key_of, page, provenance, section
from blockyard.report.render import figure_png, figure_svg
from blockyard.report.write import read_record, write_files


def write_bench(bench: Bench, out: str | Path) -> dict[str, Path]:
    """Write every form of a benchmark; returns the files by kind: "json", "html", "md", "png:NAME".

    Raises:
        InputError: when the folder cannot be written.
    """
    names = [choice["name"] for choice in bench["choices"]]
    contents = {
        "json": ("bench.json", (json.dumps(bench, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()),
        "html": ("bench.html", render_html(bench).encode()),
        "md": ("bench.md", render_markdown(bench).encode()),
    }
    for chart in charts_of(bench):
        contents[f"png:{chart.name}"] = (f"{chart.name}.png", figure_png(chart, names))
    return write_files(contents, Path(out), "benchmark")


def load_bench(path: str | Path) -> Bench:
    """Read bench.json, or that of a folder.

    Raises:
        InputError: when there is none, or it is of another kind.
    """
    return shown(read_record(path, "bench.json", SCHEMA, "benchmark"))


def shown(bench: Bench) -> Bench:
    """Return the same benchmark, which a notebook shows as the page."""
    return cast(Bench, Record(bench, render_cell))


# What a terminal has no room for.
_LONG_FACTS = ("cache_bytes_allocated", "cache_bytes_per_token_formula_fp32")


def table(bench: Bench, *, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the column heads and rows of text, one row for each choice and size; a brief one fits a terminal."""
    timed = list(dict.fromkeys(kind for row in bench["rows"] for kind in row["times"]))
    columns = ["choice", "tokens", "batch"]
    for name in timed:
        columns += [f"{name} (ms)", f"{name} per s", f"{name} vs {bench['reference']}"]
        columns += [f"{name} of the roofline"] if bench.get("roofline") else []
        columns += [] if brief else [f"{name} quartiles (ms)", f"{name} CPU (ms)"]
    facts = list(dict.fromkeys(name for row in bench["rows"] for name in row["facts"]))
    facts = [name for name in facts if not (brief and name in _LONG_FACTS)]
    columns += [name.replace("_", " ") for name in facts]
    rows = []
    for row in bench["rows"]:
        cells = [row["choice"], units.count(row["length"]), str(row["batch"])]
        for name in timed:
            cells += _times(row["times"].get(name), brief, bench.get("roofline") is not None)
        cells += [_fact(name, row["facts"].get(name)) for name in facts]
        rows.append(cells)
    return columns, rows


def _times(measured: Measured | None, brief: bool, roofed: bool) -> list[str]:
    if measured is None:
        return [units.NOTHING] * ((3 if brief else 5) + roofed)
    wall, cpu, speedup = measured["wall_seconds"], measured["cpu_seconds"], measured["speedup"]
    cells = [
        units.digits(1000 * wall["median"]),
        units.count(round(measured["per_second"]["median"])),
        _beside(speedup["median"], measured.get("word", "unknown")) if speedup else units.NOTHING,
    ]
    if roofed:
        cells += [f"{100 * measured['share']['median']:.0f} % ({measured['limit']})"]
    if not brief:
        cells += [f"{units.digits(1000 * wall['low'])} to {units.digits(1000 * wall['high'])}"]
        cells += [units.digits(1000 * cpu["median"])]
    return cells


def _beside(ratio: float, word: str) -> str:
    """Word "1.20× better"; the ratio alone where nothing may be said."""
    return units.ratio(ratio) if word == "unknown" else f"{units.ratio(ratio)} {word}"


def _fact(name: str, value: float | None) -> str:
    return units.size(value) if "bytes" in name else units.count(value)


def render_markdown(bench: Bench) -> str:
    """Return table, figures by the names of their PNG files, provenance."""
    columns, rows = table(bench)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    figures = [f"![{chart.title}]({chart.name}.png)\n\n{chart.caption}" for chart in charts_of(bench)]
    lines_about = [f"- {label}: {value}" for label, value in about(bench)]
    return "\n\n".join([f"# {bench['title']}", "\n".join(lines), *figures, "\n".join(lines_about)]) + "\n"


def about(bench: Bench) -> list[tuple[str, str]]:
    """Return what it ran on and how, as (label, text)."""
    where: Any = bench["environment"]
    settings = ", ".join(f"{key}={_plain(value)}" for key, value in bench["settings"].items())
    return [
        ("device", f"{where['device']}, {where['threads']} of {where['cpus']} CPUs' threads"),
        ("versions", f"blockyard {where['blockyard']}, torch {where['packages'].get('torch')}, {where['platform']}"),
        *[("roofline", _roofline(roofline)) for roofline in [bench.get("roofline")] if roofline],
        ("settings", settings),
        ("command", bench["command"] or units.NOTHING),
        ("made", f"{bench['created']}, in {units.duration(bench['seconds'])}"),
        *[("note", line) for line in bench["notes"]],
    ]


def _roofline(rates: Roofline) -> str:
    """Word the rates that shares are taken of."""
    small, large = rates["reading"][0], rates["reading"][-1]
    reading = " to ".join(f"{units.count(each['bytes_per_second'], 'B/s')}" for each in (small, large))
    sizes = " to ".join(units.size(each["bytes"]) for each in (small, large))
    return f"{units.count(rates['flops_per_second'], 'FLOP/s')} in matrix products, {reading} in reading {sizes}"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def render_html(bench: Bench) -> str:
    """Return the whole page: figures and table inside, no scripts, no network."""
    return page(bench["title"], _sections(bench))


def render_cell(bench: Bench) -> str:
    """Return the page for a notebook's cell: figures at once, the table to be opened."""
    sections = _sections(bench, own_prefix(bench))
    return in_a_cell(sections[:2], sections[2:], "All figures, provenance")


def _sections(bench: Bench, prefix: str = "") -> list[str]:
    """Return the sections of the page in order; `prefix` stands before the ids in its figures."""
    names = [choice["name"] for choice in bench["choices"]]
    columns, rows = table(bench)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    figures = grid(charts_of(bench), lambda chart: figure_svg(chart, names, prefix), key_of(names))
    return [
        f"<header><h1>{escape(bench['title'])}</h1></header>",
        f"<section>\n{figures}\n</section>",
        section(
            "All figures",
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
        ),
        provenance(about(bench)),
    ]
