"""The list of checks, how they are run, and the report."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from unittest import SkipTest

import torch

from blockyard.conformance.subject import Subject, subject_of
from blockyard.errors import InputError
from blockyard.registry.register import Traits
from blockyard.report.notebook import small_table

# What a check returns is said in the report: how far it went, what it found out.
Check = Callable[[Subject], str | None]
Outcome = Literal["passed", "failed", "skipped", "noted"]


@dataclass(frozen=True)
class Registered:
    """A check: a function on a subject that raises AssertionError, and the traits it needs."""

    name: str
    kind: str
    run: Check
    needs: tuple[str, ...]
    slow: bool
    fact: bool = False


CHECKS: list[Registered] = []
# Why most checks are skipped, before the trait's name.
UNCLAIMED = "its traits do not claim "


def check_of(kind: str, *needs: str, slow: bool = False, fact: bool = False) -> Callable[[Check], Check]:
    """Return decorator: add a check for "attn" or "ffn" to the suite; its name is the function's, read as a sentence.

    Args:
        needs: traits without which the check is skipped ("cache" = any cache).
        slow: left out unless asked for.
        fact: what it returns is neither right nor wrong, but the class's user should know it.
    """

    def add(run: Check) -> Check:
        CHECKS.append(Registered(run.__name__.replace("_", " "), kind, run, needs, slow, fact))
        return run

    return add


def missing_trait(subject: Subject, needs: tuple[str, ...]) -> str | None:
    """Return why a check does not apply, or None."""
    for need in needs:
        claimed = getattr(subject.traits, need)
        if claimed in (False, "none"):
            if need == "causal" and not subject.declared:
                return (
                    "no model can make it causal: its constructor names neither causal nor is_causal, its forward none "
                    "of causal, is_causal and attn_mask, and it declares no Traits(causal=True)"
                )
            return f"{UNCLAIMED}{need}"
    return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let one thread work: at these sizes threads only wait for each other, on a busy machine a hundred times longer
    than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """One check of one class; call it. Raises AssertionError when it fails, `unittest.SkipTest` when it is left out;
    returns what else there is to say."""

    check: Registered
    subject: Subject

    def __call__(self) -> str | None:
        reason = missing_trait(self.subject, self.check.needs)
        if reason:
            raise SkipTest(reason)
        with one_thread(), self.subject.on_device():
            return self.check.run(self.subject)

    @property
    def name(self) -> str:
        return self.check.name

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.subject.options.items())
        return f"{self.subject.cls.__name__}{f'[{options}]' if options else ''}: {self.name}"


@dataclass(frozen=True)
class Row:
    """One line of a report; `noted` is a fact that is no fault."""

    name: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """What the suite found; print it."""

    subject: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """Names of the failed checks."""
        return [row.name for row in self.rows if row.outcome == "failed"]

    @property
    def facts(self) -> list[str]:
        """What is no fault, but good to know."""
        return [row.reason for row in self.rows if row.outcome == "noted"]

    def counts(self) -> dict[str, int]:
        """Return how many checks passed, failed, were skipped, and found a fact to note."""
        counted = Counter(row.outcome for row in self.rows)
        return {outcome: counted[outcome] for outcome in get_args(Outcome)}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        return {"subject": self.subject, "ok": self.ok, **self.counts(), "rows": [asdict(r) for r in self.rows]}

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [f"{row.outcome:7}  {row.name:{width}}  {row.reason}".rstrip() for row in self.rows]
        summary = ", ".join(f"{count} {outcome}" for outcome, count in self.counts().items())
        return "\n".join([f"conformance of {self.subject}", *lines, summary])

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the checks that say something; those that passed are counted."""
        rows = [[row.name, row.outcome, row.reason] for row in self.rows if row.outcome != "passed"]
        summary = ", ".join(f"{count} {outcome}" for outcome, count in self.counts().items())
        return small_table(f"Conformance of {self.subject}: {summary}", ["check", "outcome", "why"], rows)


def cases(subject: Subject, slow: bool = False) -> list[Case]:
    """Return all checks for a subject, those that its traits rule out included (they skip themselves)."""
    return [Case(check, subject) for check in CHECKS if check.kind == subject.kind and (slow or not check.slow)]


def mixer_checks(
    cls: type,
    options: Mapping[str, Any] | None = None,
    *,
    traits: Traits | None = None,
    slow: bool = False,
    device: str = "cpu",
) -> list[Case]:
    """Return the checks of a mixer class, for `@pytest.mark.parametrize("case", mixer_checks(MyMixer), ids=str)`.

    Args:
        cls: the class; a registered one brings its traits.
        options: constructor options, also `d_model` (32) and `n_heads` (2).
        traits: what it claims, instead of what its registration says or its signatures suggest.
        slow: the slow checks too.
        device: where it is checked.
    """
    return cases(subject_of(cls, "attn", traits, options or {}, device), slow)


def ffn_checks(
    cls: type,
    options: Mapping[str, Any] | None = None,
    *,
    traits: Traits | None = None,
    slow: bool = False,
    device: str = "cpu",
) -> list[Case]:
    """Return the checks of an FFN class; arguments as for `mixer_checks`."""
    return cases(subject_of(cls, "ffn", traits, options or {}, device), slow)


def run_case(case: Case) -> Row:
    """Run one check; every outcome becomes a row."""
    start = time.perf_counter()
    try:
        said = case() or ""
    except SkipTest as reason:
        return Row(case.name, "skipped", str(reason))
    except AssertionError as error:
        return Row(case.name, "failed", str(error), time.perf_counter() - start)
    except Exception as error:
        # Not an assertion of ours: the class itself broke under the check, which is a failure and no crash.
        text = str(error).strip().split("\n")[0]
        return Row(case.name, "failed", f"{type(error).__name__}: {text}", time.perf_counter() - start)
    return Row(case.name, "noted" if case.check.fact and said else "passed", said, time.perf_counter() - start)


def check(
    cls: type,
    *,
    kind: Literal["attn", "ffn"] | None = None,
    traits: Traits | None = None,
    slow: bool = False,
    device: str = "cpu",
    on_row: Callable[[Row], None] | None = None,
    **options: Any,
) -> Report:
    """Run the conformance suite on a mixer or FFN class.

    Args:
        cls: the class.
        kind: "attn" or "ffn"; by default as registered, else a mixer when its constructor names `n_heads`.
        traits: what it claims, instead of what its registration says or its signatures suggest.
        slow: the slow checks too.
        device: where it is checked.
        on_row: called with each row as it comes.
        options: constructor options, also `d_model` (32) and `n_heads` (2).

    Raises:
        InputError: when `cls` is no module class, or its constructor refuses the options.
    """
    subject = subject_of(cls, kind, traits, options, device)
    # A class that cannot be built at all is one clear error, not forty failed checks.
    try:
        subject.build(causal=subject.modes[0] if subject.modes else False)
    except InputError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        first = str(error).strip().split("\n")[0]
        raise InputError(
            f"{cls.__qualname__} cannot be constructed: {type(error).__name__}: {first} "
            f"({Path(where.filename).name}, line {where.lineno})"
        ) from error
    rows = []
    for case in cases(subject, slow):
        rows.append(run_case(case))
        if on_row is not None:
            on_row(rows[-1])
    return Report(f"{cls.__module__}:{cls.__qualname__}", tuple(rows))
