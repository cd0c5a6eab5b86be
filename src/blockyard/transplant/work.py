"""One transplant as its process knows it: its choices checked, its model and text, and what becomes of each choice.

A choice is settled (layers and widths searched for where they are open), made (fitted, trained, healed, written as a
run) and measured. Whoever does that, this process or a worker, does it here.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from blockyard.compare.peak_memory import status_bytes
from blockyard.compare.plan import slug_of
from blockyard.errors import InputError
from blockyard.files import plain
from blockyard.models.lm import TransformerLM
from blockyard.pretrained import Pretrained, write_run
from blockyard.tasks.run import load_run
from blockyard.text.progress import ReadingLines
from blockyard.text.tokenizer import Tokenizer
from blockyard.training.folder import CONFIG
from blockyard.transplant.caches import counted_context
from blockyard.transplant.choices import Part, narrowest, read_choice, written
from blockyard.transplant.decision import Deciding
from blockyard.transplant.heal import HealSettings, heal
from blockyard.transplant.measuring import Measuring
from blockyard.transplant.model import needs_moments, refusals, transplant
from blockyard.transplant.moments import Moments, architecture_of, gather_moments
from blockyard.transplant.outputs import fit_by_output
from blockyard.transplant.parts import PartSettings, check_width
from blockyard.transplant.record import Record
from blockyard.transplant.recording import Done, Settled, record_of, run_name
from blockyard.transplant.report import write_report
from blockyard.transplant.search import Search
from blockyard.transplant.settings import ENGINE, TransplantConfig, flat
from blockyard.transplant.state import MOMENTS, Kept, TransplantState, weights_digest
from blockyard.transplant.texts import read_texts
from blockyard.transplant.trials import share_weights

Terms = dict[str, Any]
# Where mixers are trained that share nothing with attention.
OUTPUTS = "outputs"


class Transplant:
    """One transplant: what was asked for, the model, and the text.

    Args:
        config: the terms.
        names: of the choices.
        out: the folder.
        origin: the model to start from.
        tokenizer: its.
        show: whether to tell how far it is, on standard error.
    """

    def __init__(
        self,
        config: TransplantConfig,
        names: list[str],
        out: Path,
        origin: Pretrained,
        tokenizer: Tokenizer,
        show: bool,
    ) -> None:
        self.config, self.out, self.origin, self.tokenizer, self.show = config, out, origin, tokenizer, show
        self.model: TransformerLM = origin.model
        budget = config.budget
        layers = config.layers or ("auto" if budget.given else "all")
        self.choices = {name: read_choice(name, layers, len(self.model.layers)) for name in names}
        self._check_budget()
        for parts in self.choices.values():
            for part in parts:
                self._check_part(part)
        self.context = counted_context(self.model, budget.context)
        self.trained = any(part.trained for parts in self.choices.values() for part in parts)
        training: list[PartSettings] = [config.outputs] if self.trained else []
        training += [config.heal] if config.heal is not None else []
        if training:
            check_width(self.model.parameters())
        self.texts = read_texts(
            config.data,
            config.text,
            tokenizer,
            self.model.config.context,
            training=training,
            show=show,
        )
        self.device = next(self.model.parameters()).device
        self.first = self.texts.first[0] if self.texts.first else None
        lines = ReadingLines(unit=("steps", 1))
        self.reading, self.asked = self._terms()
        # Kept with what was measured: a run that is gone on with does not fit again.
        self.warnings: list[str] = []
        # Of blocks whose mixers were trained, by part and layer.
        self.errors: dict[str, dict[str, float]] = {}
        self.tell: Callable[[str], None] = _print if show else lambda line: None
        self.progress: Callable[[str, int, int], None] = lines if show else lambda what, done, total: None

    def _check_budget(self) -> None:
        open_ones = [str(p) for parts in self.choices.values() for p in parts if not p.settled]
        if open_ones and not self.config.budget.given:
            raise InputError(
                f"{open_ones[0]} leaves layers or widths to a budget: give budget.loss (nats per token) or "
                "budget.cache (share of the original's cache)"
            )
        if self.config.budget.given and not open_ones:
            raise InputError(
                "a budget decides layers and widths, and every choice names its own: leave the budget out, or give "
                "--layers auto"
            )

    def _check_part(self, part: Part) -> None:
        """Refuse what the fits would refuse, before minutes of reading; layers of a kind are asked once."""
        if part.trained:
            return
        layers = range(len(self.model.layers)) if part.layers == "auto" else part.layers
        refused = refusals(self.model, narrowest(part.form), layers)
        # The search leaves out layers that it cannot take, as long as there are others.
        if refused and (part.layers != "auto" or len(refused) == len(layers)):
            raise InputError(next(iter(refused.values())))

    def _terms(self) -> tuple[Terms, Terms]:
        """Return what measurements hold for, and what was asked for beside it."""
        # Not where the work is done: more workers go on with what one began.
        without = {"data.cache_dir", *ENGINE}
        told = plain({name: value for name, value in flat(self.config).items() if name not in without})
        said = {name: value for name, value in told.items() if name.partition(".")[0] in ("data", "text")}
        reading = {
            "model sha256": weights_digest(self.model),
            "architecture sha256": sha256(architecture_of(self.model).encode()).hexdigest(),
            **said,
            "text sha256": self.texts.digest,
        }
        asked = {name: value for name, value in told.items() if name not in said}
        return reading, {**asked, "blocks": list(self.choices)}

    # The whole.

    def run(
        self, state: TransplantState, begun: Callable[[], None], named: str, spread: Callable[[], dict[str, str]]
    ) -> Record:
        """Fit, choose, write, measure.

        Args:
            state: of the folder.
            begun: called when there is something worth keeping.
            named: the model, as the user named it.
            spread: lets workers make what they can; returns why choices were refused.
        """
        started = time.monotonic()
        state.data.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
        self.warnings = state.data.setdefault("warnings", [])
        for note in self.texts.notes:
            self.warn(note)
        begun()
        state.save()
        moments = self.moments(state)
        made, settled = dict[str, TransformerLM](), dict[str, Settled]()
        refused = spread() if self.config.spreads else {}
        for name in self.choices:
            for line in state.known("warned", name) or ():
                self.warn(line)
            try:
                # What workers made is found, as after a kill.
                if name in refused:
                    raise InputError(refused[name])
                settled[name] = self.settle(name, moments, state)
                made[name] = self.make(name, settled[name], moments, state)
            except InputError as error:
                # Others may do; what is wrong with this one stands in the report.
                if len(self.choices) == 1:
                    raise
                refused[name] = str(error)
                self.say(f"refused: {name}: {error}")
        if not made:
            raise InputError(next(iter(refused.values())))
        original, measures = self.measuring(state).all(self.model, made)
        state.data["wall"] = state.data.get("wall", 0.0) + time.monotonic() - started
        state.data["peak"] = max(state.data.get("peak") or 0, status_bytes("VmHWM") or 0) or None
        state.save()
        done: dict[str, Done | str] = {
            name: refused[name] if name in refused else Done(settled[name], made[name], measures[name])
            for name in self.choices
        }
        record = record_of(
            named, self.out, self.config, self.model, original, done, self.texts, self.context, self.warnings, state
        )  # fmt: skip
        write_report(record, self.out)
        return record

    def warn(self, line: str) -> None:
        """Say once what the report says, too."""
        if line not in self.warnings:
            self.warnings.append(line)
            if self.show:
                self.say(f"warning: {line}")

    def say(self, line: str) -> None:
        """Tell in a line what was settled."""
        self.tell(line)

    def moments(self, state: Kept) -> Moments | None:
        fitted = [part for parts in self.choices.values() for part in parts if not part.trained]
        if not any(part.open or needs_moments(part.form) for part in fitted):
            return None
        with state.timing("moments"):
            return gather_moments(
                self.model,
                self.texts.together("calibrate").to(self.device),
                ffns=any(part.form.startswith("vft") for part in fitted),
                path=self.out / MOMENTS,
                progress=lambda done, total: self.progress("gathering moments", done, total),
            )

    def settle(self, name: str, moments: Moments | None, state: Kept) -> Settled:
        """Return a choice with its layers and widths, searched for where they are open."""
        closed = self._closed(name)
        if self.open_part(name) is None:
            return Settled(closed, None)
        with state.timing(f"choose/{name}"):
            found = self.search(name, moments, state).run()
        self.say(f"{name}: {written([(found.form, found.layers)])}")
        return Settled([*closed, (found.form, found.layers)], found)

    def open_part(self, name: str) -> Part | None:
        """Return the part of a choice whose layers or widths are open."""
        return next((part for part in self.choices[name] if not part.settled), None)

    def _closed(self, name: str) -> list[tuple[str, tuple[int, ...]]]:
        return [(p.form, p.layers) for p in self.choices[name] if p.layers != "auto" and not p.open]

    def search(self, name: str, moments: Moments | None, state: Kept) -> Search:
        """Return the search for the open part of a choice, the others in place."""
        part, closed, base = self.open_part(name), self._closed(name), self.model
        assert part is not None
        for form, layers in closed:
            base = self._put(base, form, layers, moments)
        return Search(
            self.model,
            base,
            closed,
            part,
            self.config.budget,
            self.context,
            moments,
            self.deciding,
            state.known,
            lambda name, value: state.keep(value, name),
            self.progress,
        )

    @cached_property
    def deciding(self) -> Deciding:
        """The text that decides."""
        return Deciding.of(self.texts.together("select"), self.texts.kinds_of("select"))

    def trains(self, name: str) -> bool:
        """Return whether a choice has a mixer that is trained in a folder that other choices may share."""
        return any(part.trained for part in self.choices[name])

    def measuring(self, state: Kept) -> Measuring:
        """Return what measures models of this transplant."""
        return Measuring(self.texts, self.tokenizer, self.context, state, self.progress, self.say)

    def _put(self, model: TransformerLM, form: str, layers: tuple[int, ...], moments: Moments | None) -> TransformerLM:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = (
                self._trained(model, form, layers)
                if Part(form, layers).trained
                else transplant(
                    model,
                    form,
                    layers=layers,
                    moments=moments,
                    progress=lambda done, total: self.progress(f"fitting {form}", done, total),
                )
            )
        # Into the report, too: whoever reads that has not seen the screen.
        for warning in caught:
            self.warn(str(warning.message))
        return made

    def _trained(self, model: TransformerLM, form: str, layers: tuple[int, ...]) -> TransformerLM:
        """Put in a mixer that is trained; what was trained is kept, so that it is done once for a form and what it is
        put into."""
        base = sha256(f"{architecture_of(model)} {weights_digest(model)}".encode()).hexdigest()[:8]
        found = fit_by_output(
            model,
            form,
            self._running(),
            layers=layers,
            settings=self.config.outputs,
            folder=self.out / OUTPUTS / slug_of(f"{written([(form, layers)])} {base}"),
            first=self.first,
            progress=lambda step, steps, error: self.progress(f"training {form}", step, steps),
        )
        self.errors[written([(form, layers)])] = {str(layer): error for layer, error in found.errors.items()}
        return found.model

    def _running(self) -> dict[str, Tensor]:
        """Return the text to train on by kind, [n], without what begins a piece."""
        return {kind.name: kind.train[:, len(self.texts.first) :].flatten() for kind in self.texts.kinds}

    def healing(self, name: str) -> Path:
        """Return where a choice is healed."""
        return self.out / "healing" / slug_of(name)

    def folder(self, name: str) -> Path:
        """Return where the run of a choice lies."""
        return self.out / run_name(name, list(self.choices))

    def make(self, name: str, settled: Settled, moments: Moments | None, state: Kept) -> TransformerLM:
        """Return the model of a choice, from its run folder if it is there; written there if it is not."""
        folder = self.folder(name)
        state.settle(self.reading, self.asked)
        if (folder / CONFIG).exists():
            # A run is read in float32 onto the CPU, whatever it was made in; measured is what was made.
            first = next(self.model.parameters())
            made: TransformerLM = load_run(folder, trust=True).model.to(first.device, first.dtype)
        else:
            # Of this choice alone: the same form learns something else beside other parts.
            self.errors = {}
            with state.timing(f"fit/{name}"):
                made = self.model
                for form, layers in settled.parts:
                    made = self._put(made, form, layers, moments)
                made.eval()
            if self.errors:
                state.keep(self.errors, "errors", name)
            if self.config.heal is not None:
                self._heal(name, made, self.config.heal, state)
            write_run(replace(self.origin, model=made, parity=None), folder)
        share_weights(made, self.model)
        return made

    def _heal(self, name: str, made: TransformerLM, settings: HealSettings, state: Kept) -> None:
        """Train what was put in; a healing that was ended goes on."""
        with state.timing(f"heal/{name}"):
            healing = heal(
                made,
                self.model,
                self._running(),
                settings=settings,
                folder=self.healing(name),
                select={kind.name: kind.select for kind in self.texts.kinds},
                first=self.first,
                progress=lambda step, steps, loss: self.progress(f"healing {name}", step, steps),
            )
        state.keep([asdict(point) for point in healing.curve], "healing", name)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
