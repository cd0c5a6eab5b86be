"""From what a transplant settled and measured to its record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockyard.compare.plan import slug_of
from blockyard.files import plain
from blockyard.mirror import place_of
from blockyard.models.lm import TransformerLM
from blockyard.report.units import command_line
from blockyard.training.environment import describe_environment
from blockyard.transplant import account
from blockyard.transplant.choices import written
from blockyard.transplant.decision import LayerChoice
from blockyard.transplant.record import Choice, Healed, Measures, Record, TextSet, made_from
from blockyard.transplant.settings import TransplantConfig, flat
from blockyard.transplant.state import TransplantState
from blockyard.transplant.texts import TextSets


@dataclass(frozen=True)
class Settled:
    """A choice with nothing left open.

    Attributes:
        parts: forms with their layers.
        found: what the search came to; None where there was nothing to search.
    """

    parts: list[tuple[str, tuple[int, ...]]]
    found: LayerChoice | None

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(layer for _, layers in self.parts for layer in layers))


@dataclass(frozen=True)
class Done:
    """A choice that was made.

    Attributes:
        settled: what it is.
        model: the new one.
        measures: of it.
    """

    settled: Settled
    model: TransformerLM
    measures: Measures


def run_name(name: str, choices: Sequence[str]) -> str:
    """Return where the run of a choice lies within the transplant's folder: it is that folder where there is one."""
    return "." if len(choices) == 1 else slug_of(name)


def record_of(
    named: str,
    out: Path,
    config: TransplantConfig,
    original: TransformerLM,
    measures: Measures,
    choices: Mapping[str, Done | str],
    texts: TextSets,
    context: int,
    warnings: Sequence[str],
    state: TransplantState,
) -> Record:
    """Return the record of a transplant.

    Args:
        named: the model as the user named it, "" for one in memory.
        out: the folder.
        config: the terms.
        original: the model.
        measures: of it.
        choices: by name, in the order asked for: what was made, or why it was refused.
        texts: that were read.
        context: tokens at which caches are compared.
        warnings: what was said on the way.
        state: the seconds, and what trainings found.
    """
    seconds: dict[str, float] = state.data["seconds"]
    usual = flat(TransplantConfig(""))
    words = [(key, value) for key, value in flat(config).items() if value != usual.get(key)]
    command = (
        command_line(f"blockyard transplant {shlex.quote(named)}", [*words, ("out", place_of(out))]) if named else ""
    )
    names = list(choices)
    return Record(
        model=named or "a model in memory",
        layers=len(original.layers),
        d_model=original.config.d_model,
        texts=tuple(
            TextSet(kind.name, (kind.source,), *(kind.tokens(role) for role in ("calibrate", "select", "report")))
            for kind in texts.kinds
        ),
        piece_length=texts.length,
        first_token=bool(texts.first),
        budget_loss=config.budget.loss,
        budget_cache=config.budget.cache,
        context=context,
        original=measures,
        choices=tuple(
            Choice(name, name, refused=done)
            if isinstance(done, str)
            else _choice(name, run_name(name, names), done, original, state)
            for name, done in choices.items()
        ),
        warnings=tuple(warnings),
        command=command,
        created=state.data["created"],
        seconds=state.data["wall"],
        cpu_seconds={name: value for name, value in seconds.items() if "/" not in name},
        peak_bytes=state.data["peak"],
        environment=describe_environment(next(original.parameters()).device, 1),
        settings=plain(flat(config)),
    )


def _choice(name: str, run: str, done: Done, original: TransformerLM, state: TransplantState) -> Choice:
    settled, found = done.settled, done.settled.found
    curve, seconds = state.known("healing", name), state.data["seconds"]
    return Choice(
        name=name,
        blocks=written(settled.parts),
        run=run,
        layers=settled.layers,
        rows=account.layer_rows(done.model, original, found.alone if found else {}),
        trials=found.trials if found else (),
        measures=done.measures,
        notes=(*(found.notes if found else ()), *_errors_told(settled, state.known("errors", name) or {})),
        healing=None if curve is None else tuple(made_from(Healed, point) for point in curve),
        cpu_seconds={k.partition("/")[0]: value for k, value in seconds.items() if k.partition("/")[2] == name},
    )


def _errors_told(settled: Settled, errors: Mapping[str, Any]) -> list[str]:
    """Return what is to be known of mixers that were trained."""
    return [
        f"{form} in layer {layer}: relative squared error of the block's output {error:.2f}"
        for form, layers in settled.parts
        for layer, error in errors.get(written([(form, layers)]), {}).items()
    ]
