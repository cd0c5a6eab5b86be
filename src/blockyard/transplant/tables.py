"""The tables of a transplant's report, shared by the page and its Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from blockyard.report import units
from blockyard.report.parts import Table
from blockyard.report.phrases import join
from blockyard.transplant.charts import ORIGINAL, model_names
from blockyard.transplant.findings import (
    LOST,
    RISE,
    at,
    difference_text,
    made,
    recall_change,
    recall_warning,
    refused,
)
from blockyard.transplant.record import ALL, Choice, Measures, Recall, Record

LAYERS = (
    "Numbers are what a layer's cache stores per token, bytes what it holds for one sequence. “Alone” is the loss "
    "above the original's, on the choosing text, with that layer alone transplanted: of the size of its own noise, it "
    "says in which order layers were taken and no more."
)
TRIALS = (
    "Whole choices that were measured on the choosing text, in the order in which they were. What is chosen on a text "
    "looks better on it than it is: the figures above are of another one."
)
_WORDS = {"better": "faster", "worse": "slower", "equivalent": "as fast"}


def facts(record: Record) -> list[tuple[str, str]]:
    """Return the terms at a glance."""
    spent = sum(record.cpu_seconds.values()) + sum(sum(c.cpu_seconds.values()) for c in record.choices)
    found = [
        ("Original", record.model),
        (
            "Size",
            f"{record.layers} layers, width {record.d_model}, {units.count(record.original.parameters)} parameters",
        ),
        ("Reported on", f"{units.count(sum(t.report for t in record.texts))} tokens of {_kinds(record)}"),
        ("Pieces", f"{record.piece_length:,} tokens each"),
        ("Caches compared at", f"{record.context:,} tokens"),
    ]
    if record.budget_loss is not None:
        found.append(("Budget", f"{record.budget_loss:g} nats per token"))
    if record.budget_cache is not None:
        found.append(("Budget", f"{100 * record.budget_cache:g} % of the cache"))
    return found + ([("CPU time", units.duration(spent))] if spent else [])


def _kinds(record: Record) -> str:
    kinds = [text.kind for text in record.texts]
    return join(kinds) if len(kinds) <= 4 else f"{len(kinds)} kinds"


def overview_lede(record: Record) -> str:
    """Return the terms of the first table."""
    return (
        f"Loss above the original over all reported text, with a 95 % interval; caches and times behind "
        f"{record.context:,} tokens, one sequence."
    )


def overview(record: Record) -> Table:
    """Return every model in a row: loss, cache, time, parameters, recall, layers."""
    columns = ["choice", "loss above", "cache", "of the original's", "ms per token", "speed"]
    columns += ["parameters", "second copy", "layers changed"]
    rows = [_overview_row(ORIGINAL, record.original, record, None)]
    rows += [_overview_row(found.name, found.measures, record, found.choice) for found in made(record)]
    # What was not measured of any has no column.
    kept = [i for i in range(len(columns)) if any(row[i] != units.NOTHING for row in rows)]
    return Table("", [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _overview_row(name: str, measures: Measures, record: Record, choice: Choice | None) -> list[str]:
    cost, base = at(measures, record.context), at(record.original, record.context)
    second = recall_change(measures.recall, record.original.recall)
    share = units.NOTHING
    if choice is not None and cost is not None and base is not None and base.cache_bytes:
        share = f"{100 * cost.cache_bytes / base.cache_bytes:.0f} %"
    warn = " ⚠" if choice is not None and second is not None and second.suffers else ""
    return [
        name,
        units.NOTHING if measures.above is None else difference_text(measures.above[ALL]),
        units.NOTHING if cost is None else units.size(cost.cache_bytes),
        share,
        units.NOTHING if cost is None else units.digits(cost.ms_per_token),
        units.NOTHING if cost is None or choice is None else _speed(cost.speed, cost.word),
        units.count(measures.parameters),
        units.NOTHING if second is None else f"{second.second[0]:.2f}{warn}",
        units.NOTHING if choice is None else f"{len(choice.layers)} of {record.layers}",
    ]


def _speed(ratio: float, word: str) -> str:
    return f"{units.ratio(ratio)} {_WORDS.get(word, 'undecided')}"


def losses(record: Record) -> Table:
    """Return losses of the original and what each choice costs above them, by kind."""
    kinds = list(record.original.loss)
    together = [ALL] if len(kinds) > 1 else []
    rows = [[ORIGINAL, *(f"{record.original.loss[kind]:.3f}" for kind in kinds), *(units.NOTHING for _ in together)]]
    for found in made(record):
        above = found.measures.above or {}
        rows.append([found.name, *(difference_text(above[kind]) for kind in [*kinds, *together])])
    return Table("", ["choice", *kinds, *together], rows)


def recall_table(record: Record) -> tuple[str, Table]:
    """Return what the copy tests say in words, and in a table."""
    tests = record.original.recall
    columns = ["choice", "first copy", "second copy", "gain kept", *map(_test_name, tests)]
    rows = [_recall_row(ORIGINAL, record.original, record)]
    rows += [_recall_row(found.name, found.measures, record) for found in made(record)]
    if not tests:
        return "", Table("", columns, [])
    warned = [found.name for found in made(record) if recall_warning(found) is not None]
    sizes = f"{min(t.copied for t in tests)} to {max(t.copied for t in tests)}"
    copied = str(tests[0].copied) if len({t.copied for t in tests}) == 1 else sizes
    lede = (
        f"A text of {copied} tokens, other text, the same text again; nats per token, means of {len(tests)} tests, "
        f"then the second copy of each (text, tokens and kind between). A warning (⚠) is given where it costs "
        f"{RISE:g} nats more than the original's, or where less than {100 * (1 - LOST):.0f} % of the gain from a copy "
        f"is left. "
    )
    told = f"Warning of {join(warned)}." if warned else "No choice comes to that." if made(record) else ""
    return lede + told, Table("", columns, rows)


def _test_name(test: Recall) -> str:
    return f"{test.kind}, {test.apart} of {test.between}"


def _recall_row(name: str, measures: Measures, record: Record) -> list[str]:
    change = recall_change(measures.recall, record.original.recall)
    if change is None:
        return [name, *(units.NOTHING for _ in range(3 + len(record.original.recall)))]
    warn = " ⚠" if change.suffers else ""
    kept = (
        f"{100 * change.kept:.0f} %" if change.kept is not None and measures is not record.original else units.NOTHING
    )
    kept += warn
    first = change.gain[0] + change.second[0]
    return [name, f"{first:.2f}", f"{change.second[0]:.2f}", kept, *(f"{test.second:.2f}" for test in measures.recall)]


def decoding(record: Record) -> list[Table]:
    """Return milliseconds and bytes at each context."""
    contexts = [cost.context for cost in record.original.decode]
    every = list(zip(model_names(record), [record.original, *(found.measures for found in made(record))]))
    timed = [(name, measures) for name, measures in every if measures.decode]
    if not timed or not contexts:
        return []
    heads = [f"{context:,} tokens" for context in contexts]
    times, sizes = [], []
    for name, measures in timed:
        costs = [at(measures, context) for context in contexts]
        beside = [
            units.NOTHING
            if cost is None
            else units.digits(cost.ms_per_token) + ("" if name == ORIGINAL else f" · {_speed(cost.speed, cost.word)}")
            for cost in costs
        ]
        times.append([name, *beside])
        sizes.append([name, *(units.NOTHING if cost is None else units.size(cost.cache_bytes) for cost in costs)])
    return [
        Table(
            "Milliseconds per token, and speed relative to the original in the same turns", ["choice", *heads], times
        ),
        Table("Bytes of the cache", ["choice", *heads], sizes),
    ]


def memory(record: Record) -> Table:
    """Return weights, and weights with a cache at each context."""
    contexts = [cost.context for cost in record.original.decode]
    rows = []
    for name, measures in zip(model_names(record), [record.original, *(found.measures for found in made(record))]):
        totals = [at(measures, context) for context in contexts]
        rows.append(
            [
                name,
                units.count(measures.parameters),
                units.size(measures.parameter_bytes),
                *(units.NOTHING if c is None else units.size(measures.parameter_bytes + c.cache_bytes) for c in totals),
            ]
        )
    return Table("", ["choice", "parameters", "weights", *(f"and a cache of {c:,}" for c in contexts)], rows)


def layers(record: Record) -> list[Table]:
    """Return what stands in which layer, for each choice: its blocks and their layers, then layer by layer."""
    found = []
    for entry in made(record):
        rows, cost = entry.choice.rows, at(entry.measures, record.context)
        held = cost.layer_bytes if cost is not None and len(cost.layer_bytes) == len(rows) else None
        title = f"{entry.name}: " if len(made(record)) > 1 else ""
        blocks: dict[tuple[str, bool], list[int]] = {}
        for row in rows:
            blocks.setdefault((row.block, row.changed), []).append(row.layer)
        # What is new first.
        kinds = sorted(blocks.items(), key=lambda item: not item[0][1])
        shown = [[block, "new" if changed else "as it was", ranges(where)] for (block, changed), where in kinds]
        if not shown:
            continue
        found.append(Table(entry.name if title else "", ["block", "", "layers"], shown, (1, 2)))
        columns = ["layer", "", "numbers per token", *([f"bytes at {record.context:,}"] if held else []), "alone"]
        lines = [
            [
                str(row.layer),
                "new" if row.changed else "as it was",
                str(row.numbers),
                *([units.size(held[i])] if held else []),
                units.NOTHING if row.alone is None else difference_text(row.alone),
            ]
            for i, row in enumerate(rows)
        ]
        found.append(Table(f"{title}layer by layer", columns, lines, (1,), folded=True))
    return found


def trials(record: Record) -> list[Table]:
    """Return what was tried while choosing, a table for each choice."""
    found = []
    for choice in record.choices:
        if choice.trials:
            rows = [
                [
                    trial.blocks,
                    ranges(trial.layers),
                    str(len(trial.layers)),
                    difference_text(trial.cost),
                    units.size(trial.cache_bytes),
                ]
                for trial in choice.trials
            ]
            columns = ["blocks", "layers", "how many", "loss above", f"cache at {record.context:,}"]
            found.append(Table(choice.name if len(record.choices) > 1 else "", columns, rows, (1,)))
    return found


def ranges(numbers: Sequence[int]) -> str:
    """Word "0 to 4, 7, 9" """
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in spans)


def healing(record: Record) -> list[Table]:
    """Return the course of every healing, by kind of text."""
    found = []
    for choice in record.choices:
        if choice.healing:
            kinds = list(choice.healing[0].loss)
            rows = [[f"{p.tokens:,}", *(f"{p.loss[kind]:.3f}" for kind in kinds)] for p in choice.healing]
            found.append(Table(choice.name, ["tokens trained on", *kinds], rows))
    return found


def refusals(record: Record) -> list[Table]:
    """Return the choices that were refused, and why."""
    rows = [[choice.name, choice.blocks, choice.refused or ""] for choice in refused(record)]
    return [Table("", ["choice", "blocks", "why"], rows, (1, 2))] if rows else []


def texts_lede(record: Record) -> str:
    """Return how the texts were cut."""
    first = "begins with the model's first token" if record.first_token else "begins in the middle of the text"
    return (
        f"Tokens in each role; a token has one role alone. Pieces of {record.piece_length:,} tokens, each of which "
        f"{first}."
    )


def texts(record: Record) -> Table:
    """Return kinds of text and their roles."""
    rows = [
        [text.kind, ", ".join(text.sources), f"{text.calibrate:,}", f"{text.select:,}", f"{text.report:,}"]
        for text in record.texts
    ]
    return Table("", ["kind", "from", "to fit", "to choose", "to report"], rows, (1,))


def stages(record: Record) -> list[Table]:
    """Return CPU seconds by stage, of what all choices share and of each."""
    rows = [["all", stage, units.duration(spent)] for stage, spent in record.cpu_seconds.items()]
    rows += [[c.name, stage, units.duration(spent)] for c in record.choices for stage, spent in c.cpu_seconds.items()]
    return [Table("", ["choice", "stage", "CPU time"], rows, (1,))] if rows else []


def provenance_rows(record: Record) -> list[tuple[str, str]]:
    """Return how the figures came about, as label and text."""
    where, rows = record.environment, list[tuple[str, str]]()
    if where:
        packages = where.get("packages")
        versions = ", ".join(f"{k} {v}" for k, v in packages.items()) if isinstance(packages, dict) else ""
        rows.append(("machine", f"{where.get('device')}, {where.get('threads')} of {where.get('cpus')} CPUs' threads"))
        rows.append(("system", str(where.get("platform"))))
        rows.append(("versions", f"blockyard {where.get('blockyard')}, Python {where.get('python')}, {versions}"))
    if record.peak_bytes:
        rows.append(("peak memory", f"{units.size(record.peak_bytes)} of the whole process, with all models it held"))
    if record.seconds:
        rows.append(("took", units.duration(record.seconds)))
    if record.settings:
        rows.append(("settings", ", ".join(f"{k}={units.word(v)}" for k, v in record.settings.items())))
    rows += [("run", f"{choice.name}: {choice.run}") for choice in record.choices if choice.run is not None]
    return rows + [("note", f"{choice.name}: {note}") for choice in record.choices for note in choice.notes]
