"""The report as Markdown (for a pull request or a notebook) and as CSV (one line a run, for a spreadsheet)."""

from __future__ import annotations

import csv
import io

from blockyard.report.parts import Parts, Section
from blockyard.report.reading import (
    facts,
    how_to_read,
    match_rows,
    provenance_rows,
    ranking_rows,
    run_rows,
    title,
)
from blockyard.report.render import charts_of
from blockyard.report.schema import Report, best_of, final_of, quality_unit


def render_markdown(report: Report, own: Parts) -> str:
    """Return the same answer, tables and provenance as the page; figures by the names of their PNG files."""
    verdict = report["verdict"]
    columns, rows = ranking_rows(report)
    ranking = [
        [
            f"{row.place} {row.name}".strip(),
            *(f"{main} ({small})" if small else main for main, small in row.cells),
        ]
        for row in rows
    ]
    parts = [
        f"# {title(report)}",
        f"**{plain(verdict['headline'])}**",
        "\n".join(f"- {plain(line)}" for line in verdict["details"]),
        "\n".join(f"- {label}: {plain(value)}" for label, value in facts(report, own)),
        *(
            f"### {plain(answer['question'])}\n\n" + "\n".join(f"- {plain(line)}" for line in answer["sentences"])
            for answer in report["answers"]
        ),
        "## Ranking",
        table_of(columns, ranking),
        "## Figures",
        *(f"![{chart.title}]({chart.name}.png)\n\n{chart.caption}" for chart in charts_of(report, own)),
    ]
    for section in own.sections(report):
        parts += section_text(section)
    samples = [choice for choice in report["choices"] if choice["sample"]]
    if samples:
        parts.append("## What they write")
        for choice in samples:
            assert choice["sample"] is not None
            parts.append(f"{plain(choice['name'])}:\n\n{fenced(choice['sample']['prompt'] + choice['sample']['text'])}")
    parts += [
        "## Was it fair?",
        table_of(*match_rows(report)),
        table_of(*run_rows(report)),
        "## How to read this",
        "\n".join(f"- {line}" for line in how_to_read(report, own)),
        "## Provenance",
    ]
    if report["provenance"].get("command"):
        parts.append(fenced(str(report["provenance"]["command"])))
    parts.append("\n".join(f"- {label}: {plain(value)}" for label, value in provenance_rows(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def section_text(section: Section) -> list[str]:
    """Return a section without its charts: heading, sentence, tables."""
    parts = [f"## {section.heading}", plain(section.lede)]
    for table in section.tables:
        parts += [plain(table.caption), table_of(list(table.columns), [list(row) for row in table.rows])]
    return parts


def plain(text: str) -> str:
    """Return text that Markdown and the HTML within it leave alone."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def table_of(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; the first column holds names, the others figures."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(
        "| " + " | ".join(cell if i == 1 else plain(cell) for cell in line) + " |" for i, line in enumerate(lines)
    )


def fenced(text: str) -> str:
    """Return a code block whose fence is longer than any run of backticks inside it."""
    longest = max((len(run) for run in _runs_of_backticks(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _runs_of_backticks(text: str) -> list[str]:
    return [run for run in "".join(c if c == "`" else " " for c in text).split() if run]


CSV_COLUMNS = (
    "choice",
    "blocks",
    "seed",
    "status",
    "final_loss",
    "best_loss",
    "final_quality",
    "best_quality",
    "unit",
    "steps",
    "tokens",
    "seconds",
    "cpu_seconds",
    "flops",
    "parameters",
    "parameters_core",
    "flops_per_token",
    "train_tokens_per_second",
    "train_tokens_per_cpu_second",
    "decode_tokens_per_second",
    "peak_memory_bytes",
    "cache_bytes_per_token",
    "match_miss",
)


def render_csv(report: Report) -> str:
    """Return one line for each run, plain numbers without units in them; empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for choice in report["choices"]:
        speed, memory = choice["speed"], choice["memory"]
        decode = speed.get("decode_wall") if speed else None
        costs = (
            choice["parameters"],
            choice["parameters_core"],
            choice["flops_per_token"],
            speed["train_wall"]["median"] if speed else None,
            speed["train_cpu"]["median"] if speed else None,
            decode["median"] if decode else None,
            memory["peak_bytes"] if memory else None,
            choice["cache_bytes_per_token"],
            choice["match"]["miss"],
        )
        for run in choice["runs"]:
            writer.writerow(
                [
                    choice["name"],
                    choice["blocks"],
                    run["seed"],
                    run["status"],
                    run["final_loss"],
                    run["best_loss"],
                    final_of(run),
                    best_of(run),
                    quality_unit(report),
                    run["steps"],
                    run["tokens"],
                    run["seconds"],
                    run["cpu_seconds"],
                    run["flops"],
                    *costs,
                ]
            )
    return buffer.getvalue()
