"""The same comparison on a second text, for `--confirm`: is the order one of blocks, or of the text?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockyard.compare.jobs import jobs_of
from blockyard.compare.live import Board
from blockyard.compare.plan import Planned, State
from blockyard.compare.runs import train_jobs
from blockyard.compare.settings import CompareConfig
from blockyard.compare.sharing import Sharing
from blockyard.errors import InputError
from blockyard.files import plain
from blockyard.registry.options import options_of
from blockyard.report import schema
from blockyard.tasks.kind import Run
from blockyard.tasks.sizes import check_data

# Beside `runs`: the same choices and seeds on other data would otherwise be the same folders.
FOLDER = "confirm"


@dataclass(frozen=True)
class SecondText:
    """The data of a confirmation, read before anything is trained.

    Args:
        base: the shared options, with the second text's path.
        data: the task's data.
    """

    base: Run[Any, Any]
    data: Any


def can_confirm(base: Run[Any, Any]) -> bool:
    """Return whether the task reads its data from a path, so that there may be a second one."""
    # A task that draws its data has no second text: another seed is another text already.
    return hasattr(base.data, "path")


def second_text(config: CompareConfig, base: Run[Any, Any]) -> SecondText | None:
    """Read the text that `confirm` names, if it names one.

    Raises:
        InputError: for a task without such data, what cannot be read, or the first text once more.
    """
    if config.confirm is None:
        return None
    if not can_confirm(base):
        raise InputError(f"confirm={config.confirm!r}: the task {base.task!r} makes its own data, without a data.path")
    path = options_of(type(base.data))["path"].parse(config.confirm)
    if path == base.data.path:
        raise InputError(f"confirm={config.confirm!r} is data.path itself, which confirms nothing; give another text")
    # The first text's held-out file would be read by models of the second.
    held_out = {"val_path": None} if hasattr(base.data, "val_path") else {}
    other = replace(base, data=replace(base.data, path=path, **held_out))
    # Before the first run: a confirmation that cannot be had is to be known before hours are spent.
    check_data(other)
    return SecondText(other, base.kind.load_data(other.data, other.model))


def confirm(
    text: SecondText,
    plan: Sequence[Planned],
    results: Mapping[tuple[str, int], schema.Run],
    config: CompareConfig,
    state: State,
    board: Board,
    out: Path,
) -> schema.Confirmation:
    """Train every choice on the second text: as large, for as many steps, at the same rate and with as many seeds.

    Args:
        text: the second text.
        plan: the choices as they were trained on the first.
        results: those runs, by (choice, seed).
        config: the terms.
        state: remembers of which text the runs in `confirm` are.
        board: shows them.
        out: the comparison's folder; the runs live in `confirm` within it.

    Raises:
        InputError: when the folder holds a confirmation on another text.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    base, data = text.base, text.data
    # As compare.json gives them back: a tuple is a list there.
    terms = plain(base.kind.terms(base, data))
    if state.data.get(FOLDER, terms) != terms:
        raise InputError(f"{out / FOLDER} holds a confirmation on another text; remove it, or use another --out")
    state.data[FOLDER] = terms
    state.save()
    source = str(data.fingerprint.get("source", config.confirm))
    board.say(f"the same on {source}")
    # Sizes were matched on the first text; only what follows from data (a vocabulary) is this one's.
    fitted = [replace(p, model=base.kind.fit(p.model, data.assets)) for p in plan]
    # As many seeds as the most that a choice had: the second text is to be no weaker a test than the first.
    many = max(sum(name == p.name for name, _ in results) for p in plan)
    found = train_jobs(jobs_of(fitted, base, many, config, out / FOLDER, data), config.budget, board, Sharing(out))
    # What a verdict is made of; curves of a second text would double the report.
    kept = ("seed", "status", "final_loss", "best_loss", "final_quality", "best_quality")
    return {
        "source": source,
        "choices": [
            {
                "name": p.name,
                "runs": [
                    # mypy: keys of the schema, though not written out.
                    {key: run[key] for key in kept if key in run}  # type: ignore[literal-required]
                    for (name, _), run in sorted(found.items())
                    if name == p.name
                ],
            }
            for p in plan
        ],
    }
