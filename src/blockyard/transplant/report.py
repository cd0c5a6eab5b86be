"""The report of a transplant: one self-contained page, Markdown and CSV, from transplant.json and nothing else."""

from __future__ import annotations

import csv
import io
from html import escape
from pathlib import Path

from blockyard.report.page import (
    grid,
    header,
    items,
    key_of,
    name_html,
    own_section,
    page,
    prose,
    provenance,
    section,
    swatch,
)
from blockyard.report.parts import Section
from blockyard.report.render import figure_svg
from blockyard.report.text import fenced, plain, section_text
from blockyard.report.write import write_files
from blockyard.transplant import tables
from blockyard.transplant.charts import (
    alone_chart,
    decode_charts,
    healing_chart,
    loss_chart,
    model_names,
    trade_off_chart,
)
from blockyard.transplant.findings import details, headline, made, worse_than_original
from blockyard.transplant.record import NAME, SCHEMA, Record, save_record

WORSE = "Where a choice is worse than the original"
HOW_TO_READ = (
    "Loss is in nats per token. Differences are paired: both models read the same pieces of text, and the interval is "
    "over pieces, since the tokens of one depend on one another. It says how sure the mean is on text like this, and "
    "nothing about other text.",
    "Nothing that is reported was used for anything else: moments, choosing and reporting have texts of their own.",
    "The copy test reads a text, other text, and the same text again. A model that recalls finds the second copy "
    "cheap. The mean loss hardly shows when that is lost, since little of most text repeats so exactly.",
    "Times are of one token at batch 1, with all models in turns in one process. A smaller cache saves memory and "
    "need not save time.",
)


def write_report(record: Record, out: str | Path) -> dict[str, Path]:
    """Write transplant.json and, made from it, report.html, report.md and report.csv.

    Args:
        record: what was measured.
        out: folder, made if missing.

    Returns: the files by kind: "json", "html", "md", "csv".

    Raises:
        InputError: when the folder cannot be written.
        MissingExtra: without matplotlib, for the pictures; the record is written then.
    """
    kept = save_record(record, out)
    contents = {
        "html": ("report.html", render_html(record).encode()),
        "md": ("report.md", render_markdown(record).encode()),
        "csv": ("report.csv", render_csv(record).encode()),
    }
    return {"json": kept, **write_files(contents, Path(out), "report")}


def title_of(record: Record) -> str:
    """Return the name of the page."""
    return f"Other blocks in {record.model}"


def render_html(record: Record) -> str:
    """Return the whole page: style and figures inside, no scripts, no network."""
    names = model_names(record)
    key = key_of(names) if len(names) > 1 else ""

    def drawn(part: Section) -> str:
        # The key stands above every group of figures: on a phone the last one is out of sight.
        return own_section(part, grid(part.charts, lambda chart: figure_svg(chart, names), key))

    before, after = sections(record)
    verdict: dict[str, object] = {"headline": headline(record), "details": details(record)}
    return page(
        title_of(record),
        [
            header(title_of(record), verdict, "", tables.facts(record)),
            _worse(record),
            *map(drawn, before),
            _samples(record),
            *map(drawn, after),
            section("How to read this", items(HOW_TO_READ, "reading")),
            provenance(tables.provenance_rows(record), record.command),
            f'<p class="lede">{escape(_told(record))}</p>',
        ],
    )


def _told(record: Record) -> str:
    made_at = f", made {record.created}" if record.created else ""
    return f"All figures are in {NAME} beside this file ({SCHEMA}){made_at}."


def sections(record: Record) -> tuple[list[Section], list[Section]]:
    """Return the sections with tables and figures, before and after the samples; empty ones are left out."""
    pareto, loss, healing, alone = (make(record) for make in (trade_off_chart, loss_chart, healing_chart, alone_chart))
    recall_note, warned = tables.recall_table(record)
    before = [
        Section(
            "What it costs and saves",
            tables.overview_lede(record),
            [tables.overview(record)],
            [] if pareto is None else [pareto],
        ),
        Section(
            "Loss by kind of text",
            "Nats per token of the original, and what each choice costs above them, with 95 % intervals.",
            [tables.losses(record)],
            [] if loss is None else [loss],
        ),
        Section("Recall", recall_note, [warned] if warned.rows else []),
        Section(
            "Time and cache of a token",
            "Milliseconds for one more token behind so many, and the bytes of the cache behind it.",
            tables.decoding(record),
            decode_charts(record),
        ),
        Section(
            "Memory",
            "Weights and one sequence's cache. A batch holds its cache as many times.",
            [tables.memory(record)],
        ),
    ]
    after = [
        Section("What stands in which layer", tables.LAYERS, tables.layers(record), [] if alone is None else [alone]),
        Section("How layers were chosen", tables.TRIALS, tables.trials(record)),
        Section("Healing", "", tables.healing(record), [] if healing is None else [healing]),
        Section("Refused", "Choices that were asked for and not made, with the reason.", tables.refusals(record)),
        Section("Texts", tables.texts_lede(record), [tables.texts(record)]),
        Section("Time it took", "CPU seconds by stage of the work.", tables.stages(record)),
    ]
    return _with_content(before), _with_content(after)


def _with_content(parts: list[Section]) -> list[Section]:
    return [part for part in parts if any(table.rows for table in part.tables) or part.charts]


def _worse(record: Record) -> str:
    """Return, choice by choice, everything in which it is worse: a reader must not have to look for it."""
    there = made(record)
    parts = []
    for i, found in enumerate(there):
        said = worse_than_original(found) or ["In nothing that was measured and is shown."]
        name = f'<h3 class="choice">{swatch(i + 1, marker_only=True)}{name_html(found.name)}</h3>'
        parts.append(f"{name}\n{items(said)}")
    return section(WORSE, *parts, kind="answers")


def _samples(record: Record) -> str:
    """Return what all models write after the same prompts, side by side."""
    names = model_names(record)
    every = [record.original, *(found.measures for found in made(record))]
    groups = []
    for place, first in enumerate(record.original.samples):
        cards = [
            f'<article class="sample"><header><span class="choice">{swatch(i, marker_only=True)}{name_html(name)}'
            f'</span></header><pre><span class="prompt">{escape(sample.prompt)}</span>{escape(sample.text)}</pre>'
            "</article>"
            for i, (name, measures) in enumerate(zip(names, every))
            for sample in measures.samples[place : place + 1]
        ]
        groups.append(f'<h3 class="apart">{prose(first.kind)}</h3>\n<div class="samples">{"".join(cards)}</div>')
    lede = (
        "The same prompt (grey) from the reported text for every model, always the likeliest token, nothing selected."
    )
    return section("What they write", *groups, lede=lede)


def render_markdown(record: Record) -> str:
    """Return the same answer, tables, samples and provenance; the figures are on the page."""
    parts = [
        f"# {plain(title_of(record))}",
        f"**{plain(headline(record))}**",
        "\n".join(f"- {plain(line)}" for line in details(record)),
        "\n".join(f"- {label}: {plain(value)}" for label, value in tables.facts(record)),
    ]
    there = made(record)
    if there:
        parts.append(f"## {WORSE}")
        for found in there:
            said = worse_than_original(found) or ["In nothing that was measured and is shown."]
            parts.append(f"{plain(found.name)}:\n\n" + "\n".join(f"- {plain(line)}" for line in said))
    before, after = sections(record)
    for part in before:
        parts += section_text(part)
    if record.original.samples:
        parts.append("## What they write")
        for place in range(len(record.original.samples)):
            for name, measures in zip(model_names(record), [record.original, *(f.measures for f in there)]):
                for sample in measures.samples[place : place + 1]:
                    parts.append(f"{plain(name)}, {plain(sample.kind)}:\n\n{fenced(sample.prompt + sample.text)}")
    for part in after:
        parts += section_text(part)
    parts += ["## How to read this", "\n".join(f"- {line}" for line in HOW_TO_READ), "## Provenance"]
    if record.command:
        parts.append(fenced(record.command))
    parts.append("\n".join(f"- {label}: {plain(value)}" for label, value in tables.provenance_rows(record)))
    return "\n\n".join(part for part in parts if part) + "\n"


CSV_COLUMNS = ("model", "blocks", "what", "of", "value", "half_width", "unit")


def render_csv(record: Record) -> str:
    """Return one line for each figure, plain numbers without units in them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    every = [("original", "", record.original)]
    every += [(found.name, found.choice.blocks, found.measures) for found in made(record)]
    for name, blocks, measures in every:
        rows: list[tuple[str, str, float, float | None, str]] = []
        rows += [("loss", kind, loss, None, "nats/token") for kind, loss in measures.loss.items()]
        for kind, found in (measures.above or {}).items():
            half = None if found.half != found.half else found.half
            rows.append(("above", kind, found.mean, half, "nats/token"))
        for test in measures.recall:
            of = f"{test.kind}, {test.apart} of {test.between} between"
            rows += [("first copy", of, test.first, None, "nats/token")]
            rows += [("second copy", of, test.second, None, "nats/token")]
        for cost in measures.decode:
            of = str(cost.context)
            rows += [("token", of, cost.ms_per_token, None, "ms"), ("cache", of, cost.cache_bytes, None, "bytes")]
        rows += [
            ("parameters", "", measures.parameters, None, ""),
            ("weights", "", measures.parameter_bytes, None, "bytes"),
        ]
        for row in rows:
            writer.writerow([name, blocks, *("" if value is None else value for value in row)])
    for choice in record.choices:
        if choice.refused is not None:
            writer.writerow([choice.name, choice.blocks, "refused", choice.refused, "", "", ""])
    return buffer.getvalue()
