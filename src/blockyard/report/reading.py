"""What a report says in tables and sentences, shared by the HTML and the Markdown form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from blockyard.report import units
from blockyard.report.answers import margin_in_words
from blockyard.report.chart import seeds_in
from blockyard.report.parts import Parts
from blockyard.report.phrases import budget_amount
from blockyard.report.schema import (
    LOST,
    Choice,
    Comparison,
    Ranked,
    Report,
    bytes_per_token,
    final_of,
    input_unit,
    position_word,
    quality_word,
    with_unit,
)
from blockyard.report.stats import has_intervals


def title(report: Report) -> str:
    """Return the name of the page."""
    return f"Transformer blocks compared: {report.get('title', 'language model')}"


_MATCH_WORDS = {"params": "equal parameters", "flops": "equal FLOPs per {}", "none": "not matched in size"}


@dataclass(frozen=True)
class Row:
    """One line of the ranking: cells are (figure, how it compares with the reference)."""

    place: str
    name: str
    leader: bool
    cells: list[tuple[str, str]]


def facts(report: Report, parts: Parts) -> list[tuple[str, str]]:
    """Return the terms of the comparison at a glance."""
    settings = report["settings"]
    model, train = settings.get("model", {}), settings.get("train", {})
    unit = {"tokens": f"{input_unit(report)}s", "seconds": "of training each", "flops": "each"}[
        report["budget"]["unit"]
    ]
    found = [
        ("Budget", f"{budget_amount(report)} {unit}"),
        ("Size", _MATCH_WORDS[report["match"]].format(position_word(report))),
        ("Seeds", seeds_in(report)),
    ]
    reference = next((c["shape"] for c in report["choices"] if c["name"] == report["reference"]), {})
    layers, width = (
        reference.get("n_layers", model.get("n_layers")),
        reference.get("d_model", model.get("d_model")),
    )
    if layers and width:
        context = f", context {model['context']}" if model.get("context") else ""
        found.append(("Reference model", f"{layers} layers, width {width}{context}"))
    if train.get("optimizer"):
        rate = "default learning rates" if train.get("lr") is None else f"learning rate {train['lr']}"
        if report.get("rates"):
            rate = "each choice at a learning rate of its own"
        found.append(("Training", f"{train['optimizer']}, {rate}, batch {train.get('batch_size')}"))
    source = report["provenance"].get("data", {}).get("source")
    if source:
        found.append(("Data", str(source)))
    return found + parts.facts(report)


def ranking_rows(report: Report) -> tuple[list[str], list[Row]]:
    """Return the column names and rows of the ranking."""
    choices = {choice["name"]: choice for choice in report["choices"]}
    reference = choices[report["reference"]]
    unit, per_byte, word = input_unit(report), bytes_per_token(report), quality_word(report)
    columns = [
        "choice",
        with_unit(report, f"final {word}"),
        "beside the best",
        "parameters",
        f"FLOPs / {unit}",
        f"training {unit}s / s",
        "peak memory",
        f"cache bytes / {unit}",
        f"generated {unit}s / s",
    ]
    beside = {row["name"]: _beside(row) for row in report["comparisons"]}
    rows = []
    for ranked in report["ranking"]:
        choice, final, best = choices[ranked["name"]], ranked["final"], ranked["best"]
        under = f"best {units.plus_minus(best['mean'], None)}" if best["mean"] is not None else ""
        if final["mean"] is not None and per_byte != 1:
            under = f"{final['mean'] / per_byte:.3f} nats/byte; {under}"
        for status in LOST:
            lost = sum(run["status"] == status for run in choice["runs"])
            under = f"{lost} {status}" + (f"; {under}" if under else "") if lost else under
        cells = [
            (units.plus_minus(final["mean"], final["half_width"]), under),
            beside.get(ranked["name"], ("", "")),
            (
                units.count(choice["parameters_core"]),
                _against(choice, reference, lambda c: c["parameters_core"]),
            ),
            (
                units.count(choice["flops_per_token"]),
                _against(choice, reference, lambda c: c["flops_per_token"]),
            ),
            (
                units.count(_median(choice, "train_wall")),
                _against(choice, reference, lambda c: _median(c, "train_wall")),
            ),
            (units.size(_peak(choice)), _against(choice, reference, _peak)),
            (
                units.size(choice["cache_bytes_per_token"]),
                _against(choice, reference, lambda c: c["cache_bytes_per_token"]),
            ),
            (
                units.count(_median(choice, "decode_wall")),
                _against(choice, reference, lambda c: _median(c, "decode_wall")),
            ),
        ]
        place = _place(report, ranked)
        rows.append(Row(place, ranked["name"], ranked["rank"] == 1 and report["verdict"]["kind"] == "winner", cells))
    if not any(word for word, _ in beside.values()):
        columns, rows = columns[:2] + columns[3:], [replace(row, cells=row.cells[:1] + row.cells[2:]) for row in rows]
    if not any(choice["cache_bytes_per_token"] or _median(choice, "decode_wall") for choice in choices.values()):
        # Models that write nothing have no cache.
        return columns[:-2], [replace(row, cells=row.cells[:-2]) for row in rows]
    return columns, rows


def _place(report: Report, ranked: Ranked) -> str:
    """Return the place in the ranking, "1=" for what is equivalent to the best, "?" for undecided; blank without an
    order."""
    if ranked["rank"] is None:
        return units.NOTHING
    words = {row["name"]: row["verdict"] for row in report["comparisons"]}
    if report["verdict"]["kind"] in ("one_seed", "no_verdict"):
        return ""
    if words.get(ranked["name"]) == "undecided":
        return "?"
    if ranked["rank"] == 1 or words.get(ranked["name"]) == "equivalent":
        return "1=" if "equivalent" in words.values() else "1"
    return str(ranked["rank"])


def _beside(row: Comparison) -> tuple[str, str]:
    """Return the word for a choice beside the best mean, and the difference that it is said of."""
    if row["verdict"] == "unknown" or row["difference"] is None:
        return "", ""
    gap = units.plus_minus(row["difference"], row["half_width"], signed=True)
    more = row.get("more_seeds")
    return row["verdict"], f"{gap}; about {more} more seeds" if more else gap


def _median(choice: Choice, key: str) -> float | None:
    speed: Any = choice["speed"]
    measured = speed.get(key) if speed else None
    return round(measured["median"]) if measured else None


def _peak(choice: Choice) -> float | None:
    return choice["memory"]["peak_bytes"] if choice["memory"] else None


def _against(choice: Choice, reference: Choice, figure: Any) -> str:
    """Return how the figure compares with the reference's: "1.20×", or "" for the reference itself."""
    mine, its = figure(choice), figure(reference)
    if choice["name"] == reference["name"] or not mine or not its:
        return ""
    share = mine / its
    if abs(share - 1) < 0.005:
        return "the same"
    return units.ratio(share) if share >= 0.35 else f"1/{its / mine:.2g}"


def match_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return how each choice was sized, and by how much that missed the reference."""
    matched = {"params": "parameters", "flops": f"FLOPs / {position_word(report)}", "none": "parameters"}[
        report["match"]
    ]
    rows = []
    for choice in report["choices"]:
        match, shape = choice["match"], choice["shape"]
        changed = ", ".join(f"{key} = {value}" for key, value in match["changed"].items()) or "nothing"
        if choice["name"] == report["reference"]:
            changed = "reference"
        rows.append(
            [
                choice["name"],
                ", ".join(f"{key} {value}" for key, value in shape.items()),
                units.count(choice["parameters"]),
                units.count(match["got"]),
                f"{match['miss']:+.2%}",
                changed + (f" ({match['note']})" if match["note"] else ""),
            ]
        )
    return [
        "choice",
        "shape",
        "all parameters",
        f"compared {matched}",
        "difference",
        "changed to match",
    ], rows


def run_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return every run with what it spent and where it ended."""
    rows = []
    for choice in report["choices"]:
        for run in choice["runs"]:
            rows.append(
                [
                    choice["name"],
                    str(run["seed"]),
                    units.count(run["steps"]),
                    units.count(run["tokens"]),
                    units.duration(run["seconds"]),
                    units.count(run["flops"]),
                    units.NOTHING if (final := final_of(run)) is None else f"{final:.4f}",
                    run["status"] + (f": {run['note']}" if run["note"] else ""),
                ]
            )
    columns = ["choice", "seed", "steps", f"{input_unit(report)}s", "training clock", "FLOPs"]
    return [*columns, f"final {quality_word(report)}", "status"], rows


def how_to_read(report: Report, parts: Parts) -> list[str]:
    """Return what the figures mean and what they do not."""
    n, word = seeds_in(report), quality_word(report)
    lines = parts.how_to_read(report)
    if len(report["seeds"]) > 1:
        lines.append(
            f"± is a 95 % t-interval over {n} seeds. Beside the best mean a choice is worse when the interval of the "
            f"difference leaves out zero, equivalent when the interval lies within ± {margin_in_words(report)}, and "
            "undecided otherwise: no difference is shown, which is not the same as none. These intervals hold for all "
            "choices at once (Welch's, no variance below what the others have, widened by simulation)."
            if has_intervals()
            else f"{n} seeds each; scipy is not installed, so there are no intervals and nothing is claimed."
        )
    else:
        lines.append(f"With one seed there is no interval, so the order by {word} is not a finding.")
    has_cache = any(choice["cache_bytes_per_token"] for choice in report["choices"])
    lines += [
        f"The same seed gives every choice the same batches in the same order. {_rates_in_words(report)}",
        "Runs advance in turns, a slice each, so that a slower hour of the machine falls on all. The training clock "
        "counts batches and steps, compilation included, and leaves out evaluation and checkpoints.",
        "Parameters leave out embeddings and the output layer. FLOPs count matrix multiplications of one forward pass, "
        "two per multiply-add, attention dense; training compute is three times that.",
        "Speed is measured apart from training, in a raw loop that alternates between the choices: medians."
        + (" Cache bytes are those of the cache itself after filling it." if has_cache else ""),
    ]
    if any(run.get("load") for choice in report["choices"] for run in choice["runs"]):
        lines.append(
            "A mixture of experts counts all its experts as parameters (they all have to be kept), and as FLOPs those "
            "that a token passes."
        )
    memory = next((c["memory"]["how"] for c in report["choices"] if c["memory"]), None)
    if memory:
        lines.append(f"Peak memory: {memory}.")
    return lines


def _rates_in_words(report: Report) -> str:
    """Return how learning rates were chosen, what that cost, and what it changed."""
    found = report.get("rates")
    if not found:
        return (
            "Optimizer and learning rate are the same for all and were not tuned for any: a choice that wants another "
            "rate may do better than shown."
        )
    cost = f", {found['cost']:.0%} of the training" if found["cost"] is not None else ""
    one, own = (found["orders"][key] for key in ("one", "own"))
    changed = "the same" if one == own else f"{', '.join(own)} instead of {', '.join(one)}"
    return (
        f"The optimizer is the same for all; the learning rate of each was found by probes of {found['share']:.0%} of "
        f"the budget with a seed of their own{cost}. By the probes, the order at everybody's own rate is {changed} at "
        "the recipe's rate for all."
    )


def provenance_rows(report: Report) -> list[tuple[str, str]]:
    """Return where the numbers come from, as label and value."""
    found, given = [], report["provenance"]
    versions = given.get("versions", {})
    if versions:
        found.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    data = given.get("data", {})
    for key in ("source", "sha256", "bytes", "tokens", "tokenizer"):
        if data.get(key) is not None:
            value = data[key]
            found.append((f"data {key}", f"{value:,}" if isinstance(value, int) else str(value)))
    machine = given.get("machine", {})
    if machine:
        parts = [
            str(machine.get("cpu", "")),
            f"{machine.get('threads')} of {machine.get('cores')} threads used",
        ]
        if machine.get("memory_bytes"):
            parts.append(f"{units.size(machine['memory_bytes'])} memory")
        if machine.get("accelerator"):
            parts.append(str(machine["accelerator"]))
        parts.append(str(machine.get("system", "")))
        found.append(("machine", ", ".join(part for part in parts if part)))
    for name, reasons in given.get("decisions", {}).items():
        if reasons:
            found.append((f"computed {name}", "; ".join(reasons)))
    for name, group in report["settings"].items():
        if group:
            found.append((f"{name} settings", ", ".join(f"{key} = {value}" for key, value in group.items())))
    return found
