"""A comparison in stages: a first answer soon, then better ones, and one page that is written anew after each.

A run's schedule ends with its budget, so runs of a small budget cannot be gone on with at a larger one: the first
answer is a comparison of its own, in `first/`, of a few choices. What follows is one comparison, to which seeds are
added, so that its end is the same as if it had been asked for at once. The later reports say whether the first one was
right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from blockyard.compare.compare import compare
from blockyard.compare.output import load_report
from blockyard.compare.plan import STATE, base_run
from blockyard.compare.settings import CompareConfig, Groups
from blockyard.errors import InputError
from blockyard.files import write_atomically
from blockyard.report.schema import Report

FIRST = "first"
# Of the budget, for the first answer; as much as a probe of learning rates has.
SHARE = 0.2
EVALUATIONS = 4
# The fewest of which anything can be claimed.
LEAST_SEEDS = 2
NOTE = (
    "This is a first answer: {few} of {all} choices, {share:.0%} of the budget, one learning rate for all. The same "
    "command goes on to the whole, in runs of their own, and then writes this page anew."
)


def compare_in_stages(
    task: str,
    config: CompareConfig,
    groups: Groups,
    out: Path,
    few: Sequence[str],
    told: Callable[[Report, str], None],
    *,
    only_first: bool = False,
    show: bool = True,
) -> Report:
    """Compare a few choices at a part of the budget, then all of them at the whole with two seeds, then with all seeds.

    Called again it goes on where it was.

    Args:
        task: the kind of task, by name.
        config: the terms of the whole; `seeds` is a number.
        groups: shared options, as `compare` takes them.
        out: folder of the runs and of the report.
        few: the choices of the first answer, by name.
        told: given every report as soon as its page stands in `out`, and what comes next; "" after the last one.
        only_first: end with the first answer; where there is a better one already, with that.
        show: show progress on standard error.

    Returns: the last report.

    Raises:
        InputError: as `compare` says, or where `out` holds a report of something else.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    many = len(config.names)
    following = f"all {many} choices at the whole budget, each at a learning rate of its own"
    if not (out / STATE).exists():
        if not _is_first(out):
            _check_free(out)
            note = NOTE.format(few=len(few), all=many, share=SHARE)
            compare(task, *_smaller(task, config, groups, few), out / FIRST, show=show, notes=[note], tell=False)
            _copy_page(out / FIRST, out)
        told(load_report(out), following)
    if only_first:
        return load_report(out)
    if (out / FIRST / "report.json").is_file():
        config = replace(config, earlier=(str(out / FIRST),))
    assert isinstance(config.seeds, int)
    if config.seeds > LEAST_SEEDS and _seeds_in(out, config) < LEAST_SEEDS:
        second = compare(task, replace(config, seeds=LEAST_SEEDS), groups, out, show=show, tell=False)
        told(second, f"{config.seeds} seeds of each")
    # `told` tells the answers.
    last = compare(task, config, groups, out, show=show, tell=False)
    told(last, "")
    return last


def _smaller(task: str, config: CompareConfig, groups: Groups, few: Sequence[str]) -> tuple[CompareConfig, Groups]:
    """Return the terms of the first answer: the schedule's shape is the whole run's, a warm-up that was given as well
    (otherwise it follows the run's length by itself)."""
    terms = replace(
        config,
        blocks=";".join(few),
        budget_value=SHARE * config.budget_value,
        rates="one",
        evaluations=EVALUATIONS,
        # A fresh process for each choice takes longer than all that is trained here.
        measure_memory=False,
    )
    given = base_run(task, groups).train.warmup
    if given is None:
        return terms, groups
    return terms, {**groups, "train": {**groups.get("train", {}), "warmup": round(SHARE * given)}}


def _copy_page(source: Path, out: Path) -> None:
    """Copy a report in all its forms: the page has one place, whichever answer stands there."""
    for file in [*source.glob("report.*"), *source.glob("*.png")]:
        write_atomically(out / file.name, file.read_bytes())


def _check_free(out: Path) -> None:
    """Refuse a folder with the report of something else, which would be written over.

    Raises:
        InputError: naming the file.
    """
    found = [out / name for name in ("report.json", "report.html") if (out / name).exists()]
    if found:
        raise InputError(f"{found[0]} is there and is not this comparison's; use another --out")


def _is_first(out: Path) -> bool:
    """Return whether the report in a folder is the first answer, as `compare_in_stages` writes it there."""
    try:
        notes = load_report(out)["notes"]
    except InputError:
        return False
    return any(note.startswith(NOTE.partition("{")[0]) for note in notes)


def _seeds_in(out: Path, config: CompareConfig) -> int:
    """Return how many seeds the whole comparison's report in a folder has; 0 without one."""
    try:
        report = load_report(out)
    except InputError:
        return 0
    whole = report["budget"]["value"] == config.budget_value
    names = {choice["name"] for choice in report["choices"]}
    return len(report["seeds"]) if whole and names >= set(config.names) else 0
