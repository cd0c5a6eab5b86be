"""What a search allows one to say, and in which words.

Only runs with fresh seeds count: the search's own figures belong to the luckiest of many. Beside the default a
configuration is better, worse, equivalent or undecided by the rule of all reports (`blockyard.report.stats`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blockyard.report import units
from blockyard.report.answers import seeds_in_words
from blockyard.report.stats import has_intervals
from blockyard.report.units import word
from blockyard.tune.schema import Final, Trial, Tuning, Verdict

# A best value nearer than this to an end of its range (as a part of the range) says to search further.
NEAR_END = 0.05
# From this ratio of parameters on a reader is told that sizes differ.
OTHER_SIZE = 1.05


def sign_of(better: str) -> int:
    """Return the sign with which a figure is the better the lower it is."""
    return -1 if better == "higher" else 1


def judge(record: Tuning) -> Verdict:
    """Return the answer in one or two plain sentences, then what else a reader should know before believing it."""
    finished = [t for t in record["trials"] if t["status"] == "finished"]
    if not finished:
        return {"kind": "unfinished", "headline": "No trial has finished yet.", "details": _about_trials(record)}
    best_trial = min(finished, key=lambda t: (sign_of(record["quality"]["better"]) * (t["value"] or 0.0), t["number"]))
    details = [*_about_ends(record), *_about_trials(record), *record.get("notes", [])]
    by_search = f"trial {best_trial['number']} is the best of {len(record['trials'])}: {_figure(record, best_trial)}"
    if record["status"] != "complete":
        return {"kind": "unfinished", "headline": f"So far {by_search}.", "details": details}
    if not record["seeds"]:
        luck = "That is one run, and the luckiest of them: nothing is claimed from it. --seeds 3 runs the best again."
        return {"kind": "search_only", "headline": f"In the search {by_search}. {luck}", "details": details}
    found = [row for row in record["finals"] if row["trial"] is not None]
    default = next((row for row in record["finals"] if row["trial"] is None), None)
    if not found:
        headline = "The best trials are the default configuration: nothing better was found among the values searched."
        return {"kind": "none", "headline": headline, "details": details}
    ranked = [row for row in found if row["mean"] is not None and not row["diverged"]]
    if not ranked:
        headline = "None of the best trials could be repeated: each diverged or failed with a fresh seed."
        return {"kind": "worse", "headline": headline, "details": details}
    best = min(ranked, key=lambda row: sign_of(record["quality"]["better"]) * (row["mean"] or 0.0))
    details = [*_about_luck(record, best), *_about_size(best, default), *details]
    n, where = len(record["seeds"]), _spent(record)
    if default is None or default["mean"] is None:
        headline = f"{_capital(best['name'])} reaches {_mean(record, best)} {where} over {n} fresh seeds."
        why = "There is no default configuration to compare it with."
        return {"kind": "no_default", "headline": headline, "details": [why, *details]}
    pair = f"{_mean(record, best)} against {_mean(record, default)}"
    words = {"pair": pair, "where": where, "n": n, "name": best["name"], "Name": _capital(best["name"])}
    kind = best["verdict"] if n > 1 and has_intervals() else "one_seed" if n < 2 else "no_intervals"
    if kind == "undecided":
        details.insert(
            0, f"{_capital(seeds_in_words(best))}: the same command with a larger --seeds keeps what is there."
        )
    headline = _HEADLINES[kind].format(**words, margin=f"{record['quality']['margin']:.2g}")
    return {"kind": _KINDS.get(kind, kind), "headline": headline, "details": details}


# What is said of the best of the trials that were run again, by its verdict beside the default configuration.
_HEADLINES = {
    "one_seed": "One fresh seed, so no claim: {name} {pair} of the default configuration, {where}.",
    "no_intervals": (
        "No verdict is drawn, as scipy is not installed (pip install 'blockyard[report]'): {pair}, {where}."
    ),
    "better": "{Name} beats the default configuration: {pair}, {where}, {n} fresh seeds each.",
    "worse": "The default configuration is better than the best trials found: {pair}, {where}.",
    "equivalent": "{Name} is equivalent to the default configuration within {margin}: {pair}, {where}.",
    "undecided": "Undecided between the best trial found and the default configuration: {pair}, {where}.",
    "unknown": "{Name} reaches {pair} of the default configuration, of which a run diverged or failed.",
}
_KINDS = {"no_intervals": "no_default", "unknown": "no_default"}


def _about_luck(record: Tuning, best: Final) -> list[str]:
    """Return how far the search's own figure was luck."""
    seen, mean = best["search_value"], best["mean"]
    if seen is None or mean is None:
        return []
    gap = sign_of(record["quality"]["better"]) * (mean - seen)
    if gap <= 0:
        return []
    return [
        f"In the search {best['name']} had {_number(record, seen)}: {_number(record, gap)} better than its fresh runs. "
        "The best of many is partly lucky, which is why it was run again."
    ]


def _about_size(best: Final, default: Final | None) -> list[str]:
    """Return where the best is a larger or smaller model than the default, which may be all that is better about it."""
    if default is None or not best["parameters"] or not default["parameters"]:
        return []
    ratio = best["parameters"] / default["parameters"]
    if max(ratio, 1 / ratio) < OTHER_SIZE:
        return []
    sizes = f"{units.count(best['parameters'])} against {units.count(default['parameters'])}"
    return [
        f"{_capital(best['name'])} has {ratio:.2g} times the parameters of the default configuration ({sizes}): the "
        "difference is that of two sizes, too."
    ]


def _about_ends(record: Tuning) -> list[str]:
    """Return options whose best value lies at an end of their range, or of the numbers to choose from."""
    best = record["best"]
    found = []
    for dimension in record["space"]:
        name, values = dimension["name"], dimension["values"]
        if best is None or best["trial"] is None or name not in best["settings"]:
            continue
        value = best["settings"][name]
        if values:
            if len(values) > 2 and all(_is_number(v) for v in values) and value in (min(values), max(values)):
                end, beyond = ("smallest", "smaller") if value == min(values) else ("largest", "larger")
                found.append(f"{name}={word(value)} is the {end} of the values searched: a {beyond} one may do better.")
            continue
        place = _place(value, dimension)
        if not NEAR_END < place < 1 - NEAR_END:
            end = "lower" if place <= NEAR_END else "upper"
            found.append(f"{name}={word(value)} is at the {end} end of its range: search further.")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(value: float, dimension: dict[str, Any]) -> float:
    """Return where a number lies in its range, 0 to 1, on the scale on which it is drawn."""
    from math import log

    low, high = dimension["low"], dimension["high"]
    if dimension["log"]:
        value, low, high = log(value), log(low), log(high)
    return (value - low) / (high - low)


def _about_trials(record: Tuning) -> list[str]:
    """Return how many trials did not finish, and the commonest reason."""
    found = []
    for status, words in (("failed", "could not be run"), ("diverged", "diverged")):
        lost = [t for t in record["trials"] if t["status"] == status]
        if lost:
            found.append(
                f"{len(lost)} of {len(record['trials'])} trials {words}; the first: {lost[0]['note'].rstrip('.')}."
            )
    return found


def _spent(record: Tuning) -> str:
    unit, value = record["budget"]["unit"], record["budget"]["value"]
    if unit == "seconds":
        return f"after {units.duration(value)} of training"
    return f"after {amount(record)}"


def amount(record: Tuning) -> str:
    """Return the budget as people read it."""
    unit, value = record["budget"]["unit"], record["budget"]["value"]
    if unit == "seconds":
        return units.duration(value)
    if unit == "flops":
        return units.count(value, "FLOP")
    return f"{units.count(value)} {record['input_unit'] + 's' if unit == 'tokens' else 'steps'}"


def unit_of(record: Tuning) -> str:
    """Return what stands behind a figure: its unit, or the figure's name where it has none."""
    return str(record["quality"]["unit"] or record["quality"]["metric"])


def _figure(record: Tuning, trial: Trial) -> str:
    return f"{_number(record, trial['value'] or 0.0)} {unit_of(record)}"


def _number(record: Tuning, value: float) -> str:
    return f"{value:.{places(record)}f}"


def places(record: Tuning) -> int:
    """Return decimals of the record's figures: those that its narrowest interval asks for."""
    widths = [row["half_width"] for row in record["finals"] if row["half_width"]]
    return units.decimals_for(min(widths)) if widths else 4


def _mean(record: Tuning, row: Final) -> str:
    return f"{units.plus_minus(row['mean'], row['half_width'])} {unit_of(record)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def counts(trials: Sequence[Trial]) -> str:
    """Word "22 finished, 8 stopped early" """
    words = {"finished": "finished", "pruned": "stopped early", "diverged": "diverged", "failed": "failed"}
    found = [(sum(t["status"] == status for t in trials), text) for status, text in words.items()]
    return ", ".join(f"{n} {text}" for n, text in found if n)
