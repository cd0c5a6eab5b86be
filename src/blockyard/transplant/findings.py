"""What a transplant's record says in words: what each choice costs and saves, and where it is worse than the original.

The rules: a loss counts as shown where its interval leaves out zero; a speed is called by `report.stats.speed_word`;
recall is warned of where the second copy of a text costs `RISE` nats more than the original's, or where seeing a text
before gains `LOST` less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from blockyard.report import units
from blockyard.report.phrases import join
from blockyard.transplant.measure import Difference
from blockyard.transplant.record import ALL, Choice, Decode, Measures, Recall, Record

# Nats per token that the second copy of a text may cost beyond the original's, and the share of what a copy gains that
# may be lost, before a reader is warned.
RISE, LOST = 0.1, 0.1


@dataclass(frozen=True)
class Made:
    """A choice that was made, beside its original.

    Attributes:
        choice: as recorded.
        measures: of it.
        original: the original's.
        context: tokens at which caches are compared.
    """

    choice: Choice
    measures: Measures
    original: Measures
    context: int

    @property
    def name(self) -> str:
        return self.choice.name

    @property
    def cost(self) -> Difference:
        """Loss above the original's, over all kinds of text."""
        # mypy: only the original has none.
        assert self.measures.above is not None
        return self.measures.above[ALL]

    @property
    def share(self) -> float | None:
        """Bytes of its cache over the original's at the context; None where they were not counted."""
        mine, theirs = at(self.measures, self.context), at(self.original, self.context)
        return mine.cache_bytes / theirs.cache_bytes if mine and theirs and theirs.cache_bytes else None


def made(record: Record) -> list[Made]:
    """Return the choices that were made and measured, in order."""
    return [
        Made(choice, choice.measures, record.original, record.context)
        for choice in record.choices
        if choice.measures is not None and choice.measures.above is not None
    ]


def refused(record: Record) -> list[Choice]:
    """Return the choices that were refused."""
    return [choice for choice in record.choices if choice.refused is not None]


def at(measures: Measures, context: int) -> Decode | None:
    """Return the cost of a token behind so many; None where it was not timed."""
    return next((cost for cost in measures.decode if cost.context == context), None)


def difference_text(found: Difference) -> str:
    """Word "+0.231 ± 0.052"; without an interval where there is none."""
    return units.plus_minus(found.mean, None if math.isnan(found.half) else found.half, signed=True)


def cost_text(found: Difference) -> str:
    """Word what a choice costs in loss, and whether that is shown."""
    amount = f"{difference_text(found)} nats per token"
    if math.isnan(found.half):
        return f"{amount} (one piece of text: no interval)"
    if abs(found.mean) <= found.half:
        return f"{amount}, within its interval of nothing"
    return amount if found.mean > 0 else f"{amount}, which is better than the original"


def share_text(share: float, context: int) -> str:
    """Word "50 % of the cache at 8,192 tokens"."""
    if share > 1.005:
        return f"a cache {100 * (share - 1):.0f} % larger at {context:,} tokens"
    if share >= 0.995:
        return f"as large a cache at {context:,} tokens"
    return f"{100 * share:.0f} % of the cache at {context:,} tokens"


def speed_text(mine: Decode, theirs: Decode) -> str:
    """Word how fast a token is beside the original's, in the same turns."""
    times = f"({units.digits(mine.ms_per_token)} ms beside {units.digits(theirs.ms_per_token)})"
    slower, faster = units.ratio(1 / max(mine.speed, 1e-12)), units.ratio(mine.speed)
    return {
        "better": f"{faster} as fast {times}",
        "worse": f"slower: a token takes {slower} as long {times}",
        "equivalent": f"as fast {times}",
    }.get(mine.word, f"not shown to be faster or slower {times}")


@dataclass(frozen=True)
class RecallChange:
    """Copy tests of a choice beside the original's, averaged.

    Attributes:
        second: loss of the second copy, of the choice and of the original.
        gain: how much less a second copy costs than the first one, of both.
    """

    second: tuple[float, float]
    gain: tuple[float, float]

    @property
    def rise(self) -> float:
        """Nats per token that the second copy costs beyond the original's."""
        return self.second[0] - self.second[1]

    @property
    def kept(self) -> float | None:
        """Share of the original's gain from the copy that is left; None where the original gained next to nothing."""
        return self.gain[0] / self.gain[1] if self.gain[1] > RISE else None

    @property
    def suffers(self) -> bool:
        """Whether a reader is warned."""
        return self.rise > RISE or (self.kept is not None and self.kept < 1 - LOST)


def recall_change(mine: Sequence[Recall], original: Sequence[Recall]) -> RecallChange | None:
    """Return what became of recall; None without copy tests."""
    if not mine or len(mine) != len(original):
        return None
    second = (fmean(r.second for r in mine), fmean(r.second for r in original))
    first = (fmean(r.first for r in mine), fmean(r.first for r in original))
    return RecallChange(second, (first[0] - second[0], first[1] - second[1]))


def recall_warning(found: Made) -> str | None:
    """Return the warning of a choice's recall; None where there is nothing to warn of."""
    change = recall_change(found.measures.recall, found.original.recall)
    if change is None or not change.suffers:
        return None
    left = "" if change.kept is None else f"; {100 * max(0.0, change.kept):.0f} % of what a copy gains is left"
    return (
        f"recall suffers: a text that stands in the context already costs {change.second[0]:.2f} nats per token where "
        f"the original needs {change.second[1]:.2f}{left}"
    )


def worse_than_original(found: Made) -> list[str]:
    """Return, in sentences, everything in which a choice is worse than the original; nothing is left out for being
    small, but for losses and speeds that are not shown."""
    said = []
    above = found.measures.above or {}
    shown = {kind: d for kind, d in above.items() if kind != ALL and d.mean > 0 and not d.mean <= d.half}
    if shown:
        said.append(f"Higher loss on {join([f'{kind} ({difference_text(d)})' for kind, d in shown.items()])}.")
    slower = [cost for cost in found.measures.decode if cost.word == "worse"]
    if slower:
        each = [f"{units.ratio(1 / max(cost.speed, 1e-12))} as long behind {cost.context:,} tokens" for cost in slower]
        said.append(f"Slower: a token takes {join(each)}.")
    larger = []
    for mine, theirs in zip(found.measures.decode, found.original.decode):
        weights = (found.measures.parameter_bytes, found.original.parameter_bytes)
        if mine.cache_bytes + weights[0] > theirs.cache_bytes + weights[1]:
            larger.append(f"{mine.context:,}")
    more = found.measures.parameters - found.original.parameters
    if more > 0:
        beside = f", so weights and cache together take more memory at {join(larger)} tokens" if larger else ""
        said.append(f"Larger: {units.count(more)} more parameters ({_per_cent(found)}){beside}.")
    share = found.share
    if share is not None and share > 1.005:
        said.append(f"It has {share_text(share, found.context)}.")
    warning = recall_warning(found)
    if warning is not None:
        said.append(f"{warning[0].upper()}{warning[1:]}.")
    return said


def _per_cent(found: Made) -> str:
    part = found.measures.parameters / found.original.parameters - 1
    return f"{100 * part:+.1f} %"


def summary(found: Made) -> str:
    """Return a choice in one sentence: cost, saving, and what is worse."""
    parts = [cost_text(found.cost)]
    mine, theirs = at(found.measures, found.context), at(found.original, found.context)
    if found.share is not None:
        parts.append(share_text(found.share, found.context))
    if mine is not None and theirs is not None:
        parts.append(speed_text(mine, theirs))
    more = found.measures.parameters - found.original.parameters
    if more:
        parts.append(f"{units.count(abs(more))} {'more' if more > 0 else 'fewer'} parameters")
    if recall_warning(found) is not None:
        parts.append("recall suffers")
    return "; ".join(parts)


def headline(record: Record) -> str:
    """Return the answer in a sentence."""
    there = made(record)
    if not there:
        reasons = [choice.refused for choice in refused(record)]
        return f"Nothing was transplanted: {reasons[0]}" if len(reasons) == 1 else "Nothing was transplanted."
    if len(there) == 1:
        return f"{there[0].name}: {summary(there[0])}."
    if record.budget_loss is not None:
        fit = [m for m in there if m.cost.mean <= record.budget_loss]
        if not fit:
            return f"No choice stays within {record.budget_loss:g} nats per token on the reported text."
        best = min(fit, key=lambda m: (m.share if m.share is not None else 1.0, m.cost.mean))
        return f"Within {record.budget_loss:g} nats per token {best.name} saves most: {summary(best)}."
    if record.budget_cache is not None:
        fit = [m for m in there if m.share is not None and m.share <= record.budget_cache + 5e-4]
        if not fit:
            return f"No choice has at most {100 * record.budget_cache:g} % of the cache."
        best = min(fit, key=lambda m: m.cost.mean)
        return f"With at most {100 * record.budget_cache:g} % of the cache {best.name} costs least: {summary(best)}."
    least = min(there, key=lambda m: m.cost.mean)
    smallest = min(there, key=lambda m: (m.share if m.share is not None else 1.0, m.cost.mean))
    if least is smallest:
        return f"{least.name} costs least and keeps the smallest cache: {summary(least)}."
    return f"{least.name} costs least ({_brief(least)}), {smallest.name} keeps the smallest cache ({_brief(smallest)})."


def _brief(found: Made) -> str:
    saved = "" if found.share is None else f", {share_text(found.share, found.context)}"
    return f"{difference_text(found.cost)} nats per token{saved}"


def details(record: Record) -> list[str]:
    """Return what else to know at once: the other choices, budgets that are not kept, refusals, warnings."""
    there, answer, said = made(record), headline(record), list[str]()
    # The one of the headline has been told.
    said += [f"{found.name}: {summary(found)}." for found in there if summary(found) not in answer]
    for found in there:
        if record.budget_loss is not None and found.cost.mean > record.budget_loss:
            said.append(
                f"{found.name} is beyond the budget of {record.budget_loss:g} nats per token on the text reported here."
            )
        if record.budget_cache is not None and found.share is not None and found.share > record.budget_cache + 5e-4:
            said.append(f"{found.name} has {share_text(found.share, found.context)}, beyond the budget.")
        if len(there) == 1:
            warning = recall_warning(found)
            said += [] if warning is None else [f"Warning: {warning}."]
    if there and not record.original.recall:
        said.append("Recall was not tested: the texts to report on, or the model's context, are too short for copies.")
    gone = refused(record)
    if gone and there:
        said.append(f"Refused: {join([choice.name for choice in gone])}; the reasons are below.")
    return said + list(record.warnings)
