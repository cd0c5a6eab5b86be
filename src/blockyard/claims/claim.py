"""What a claim is, and the rules by which a measurement decides about it.

What the documents say stands in statements.toml, a table a claim; a function beside others of its subject measures it:

    @claim("vein.parameters")
    def parameters() -> Finding: ...

Verdicts follow from figures by the functions below, never from what is expected.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

Cost = Literal["instant", "seconds", "minutes"]
COSTS: tuple[Cost, ...] = ("instant", "seconds", "minutes")
Verdict = Literal["holds", "partly", "false"]
DOCUMENTS = {
    "vein-flow": "Low-rank vein blocks (vein-flow.md)",
    "price-transformer": "Latent attention and prices (price-transformer.md)",
    "spectre-nlp": "Spectral mixing (spectre-nlp.md)",
    "complex-block": "Complex-valued blocks (complex-block.md)",
    "basics": "Language-model basics (basics.md)",
}


@dataclass(frozen=True)
class Finding:
    """What a measurement found.

    Args:
        measured: the figure in short, as a table cell.
        verdict: holds, partly or false.
        why: one or two sentences that explain the difference, or what makes the claim hold.
        figures: the numbers behind it, by name.
    """

    measured: str
    verdict: Verdict
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One statement of a source document.

    Args:
        key: unique, as family.subject.
        document: a key of DOCUMENTS.
        line: line of the document.
        says: the statement in our words.
        claimed: its figure, or the shortest form of what is said.
        how: how it is measured here.
        cost: whether measuring is instant (counting), takes seconds (timing) or minutes (training).
        measure: does it.
        needs: "model" where it takes a trained model (`trained.measuring_on`); "" for nothing.
    """

    key: str
    document: str
    line: int
    says: str
    claimed: str
    how: str
    cost: Cost
    measure: Callable[[], Finding]
    needs: Literal["", "model"] = ""


_claims: dict[str, Claim] = {}


@cache
def statements() -> dict[str, dict[str, Any]]:
    """Return what the documents say: for each claim `document`, `line`, `says`, `claimed`, `how`, `cost`
    and, where it takes something, `needs`."""
    return tomllib.loads(resources.files(__package__).joinpath("statements.toml").read_text(encoding="utf-8"))


def claim(key: str) -> Callable[[Callable[[], Finding]], Callable[[], Finding]]:
    """Declare the function that measures a statement.

    Raises:
        ValueError: for a key that statements.toml does not have, or one that is measured twice.
    """
    if key not in statements():
        raise ValueError(f"no statement {key!r} in statements.toml")

    def add(measure: Callable[[], Finding]) -> Callable[[], Finding]:
        if key in _claims and _claims[key].measure.__module__ != measure.__module__:
            raise ValueError(f"claim {key!r} is declared twice")
        _claims[key] = Claim(key, measure=measure, **statements()[key])
        return measure

    return add


def declared() -> dict[str, Claim]:
    """Return claims by key, as far as their modules are imported."""
    return dict(_claims)


def judge_ratio(measured: float, claimed: float, *, holds: float = 1.25, partly: float = 2.0) -> Verdict:
    """Return how a measured factor stands to a claimed one that is better the larger it is.

    Args:
        measured: what was found.
        claimed: what was said.
        holds: the claim holds when the measured factor is at most this much smaller.
        partly: it holds in part when at most this much smaller.
    """
    if measured * holds >= claimed:
        return "holds"
    return "partly" if measured * partly >= claimed else "false"


def judge_number(measured: float, claimed: float, *, tolerance: float = 0.1) -> Verdict:
    """Return whether a number is the claimed one within a relative tolerance; within twice that it is so in part."""
    miss = abs(measured - claimed) / abs(claimed)
    return "holds" if miss <= tolerance else "partly" if miss <= 2 * tolerance else "false"


def judge_all(*held: bool) -> Verdict:
    """Judge a claim by its parts: it holds when every part of a claim does, in part when some do."""
    return "holds" if all(held) else "partly" if any(held) else "false"
