"""A whole transplant: read a model and its text, fit, choose within a budget, write ordinary runs, measure, report.

Everything that can be refused is refused before minutes are spent. What is measured is kept in the folder as it comes,
so that the same words go on after a kill and end with the same weights.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from blockyard.compare.peak_memory import status_bytes
from blockyard.compare.plan import slug_of
from blockyard.errors import InputError
from blockyard.files import check_writable, nothing_left, plain
from blockyard.machine.memory import forcing
from blockyard.models.lm import TransformerLM
from blockyard.pretrained import Pretrained, write_run
from blockyard.tasks.run import load_run
from blockyard.text.progress import ReadingLines
from blockyard.text.tokenizer import Tokenizer
from blockyard.training.folder import CONFIG
from blockyard.transplant.caches import counted_context
from blockyard.transplant.choices import Part, narrowest, read_choice, written
from blockyard.transplant.heal import HealSettings, heal
from blockyard.transplant.measuring import Measuring
from blockyard.transplant.model import needs_moments, refusals, transplant
from blockyard.transplant.moments import Moments, architecture_of, gather_moments
from blockyard.transplant.original import read_original
from blockyard.transplant.outputs import fit_by_output
from blockyard.transplant.parts import PartSettings, check_width
from blockyard.transplant.record import Record
from blockyard.transplant.recording import Done, Settled, record_of, run_name
from blockyard.transplant.report import write_report
from blockyard.transplant.search import Deciding, Search
from blockyard.transplant.settings import TransplantConfig, flat
from blockyard.transplant.state import MOMENTS, STATE, TransplantState, weights_digest
from blockyard.transplant.texts import read_texts
from blockyard.transplant.trials import share_weights

Terms = dict[str, Any]


def run_transplant(
    model: str | Path | nn.Module | Pretrained,
    config: TransplantConfig,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    show: bool = True,
    trust: bool = False,
    force: bool = False,
) -> Record:
    """Put other blocks into a trained model, and say what it costs and saves.

    The folder can be given again after a kill, with the same terms: what was measured is kept.

    Args:
        model: a folder or .gguf file that `load_pretrained` reads, a run folder, or a module: ours or of transformers.
        config: the terms.
        out: with one choice the run folder of the new model; with several, each has its own within it. The record
            (transplant.json) and the page (report.html) are there, too.
        tokenizer: a folder with a tokenizer, where the model brings none.
        show: tell on standard error how far it is.
        trust: import whatever plug-ins a run folder names.
        force: go on also where by its estimate something does not fit into memory.

    Returns: the record.

    Raises:
        InputError: for anything that the user can put right.
    """
    folder = Path(out)
    names = config.names
    check_writable(folder, folder=True)
    if (folder / CONFIG).exists() and not (folder / STATE).exists():
        raise InputError(f"{folder} already holds a run; give another --out")
    with forcing(force):
        work = _Transplant(config, names, folder, *read_original(model, tokenizer, trust=trust), show)
        # A folder that was made for a transplant that never began goes with it.
        with nothing_left(folder) as begun, closing(TransplantState(folder)) as state:
            state.begin(work.reading, work.asked)
            return work.run(state, begun, named="" if isinstance(model, nn.Module | Pretrained) else str(model))


class _Transplant:
    """One transplant: what was asked for, the model, and the text.

    Args:
        config: the terms.
        names: of the choices.
        out: the folder.
        origin: the model to start from.
        tokenizer: its.
        show: whether to tell how far it is.
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
        told = plain({name: value for name, value in flat(self.config).items() if name != "data.cache_dir"})
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

    def run(self, state: TransplantState, begun: Callable[[], None], named: str) -> Record:
        """Fit, choose, write, measure; `begun` is called when there is something worth keeping."""
        started = time.monotonic()
        state.data.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
        self.warnings = state.data.setdefault("warnings", [])
        for note in self.texts.notes:
            self.warn(note)
        begun()
        state.save()
        moments = self._moments(state)
        made, settled, refused = dict[str, TransformerLM](), dict[str, Settled](), dict[str, str]()
        for name in self.choices:
            try:
                settled[name] = self._settle(name, moments, state)
                made[name] = self._make(name, settled[name], moments, state)
            except InputError as error:
                # Others may do; what is wrong with this one stands in the report.
                if len(self.choices) == 1:
                    raise
                refused[name] = str(error)
                self.say(f"refused: {name}: {error}")
        if not made:
            raise InputError(next(iter(refused.values())))
        measuring = Measuring(self.texts, self.tokenizer, self.context, state, self.progress, self.say)
        original, measures = measuring.all(self.model, made)
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
            self.say(f"warning: {line}")

    def say(self, line: str) -> None:
        if self.show:
            print(line, file=sys.stderr, flush=True)

    def _moments(self, state: TransplantState) -> Moments | None:
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

    def _settle(self, name: str, moments: Moments | None, state: TransplantState) -> Settled:
        """Return a choice with its layers and widths, searched for where they are open."""
        parts = self.choices[name]
        closed = [(p.form, p.layers) for p in parts if p.layers != "auto" and not p.open]
        part = next((p for p in parts if not p.settled), None)
        if part is None:
            return Settled(closed, None)
        with state.timing(f"choose/{name}"):
            base = self.model
            for form, layers in closed:
                base = self._put(base, form, layers, moments)
            search = Search(
                self.model,
                base,
                closed,
                part,
                self.config.budget,
                self.context,
                moments,
                Deciding.of(self.texts.together("select"), self.texts.kinds_of("select")),
                state.known,
                lambda name, value: state.keep(value, name),
                self.progress,
            )
            found = search.run()
        self.say(f"{name}: {written([(found.form, found.layers)])}")
        return Settled([*closed, (found.form, found.layers)], found)

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
            folder=self.out / "outputs" / slug_of(f"{written([(form, layers)])} {base}"),
            first=self.first,
            progress=lambda step, steps, error: self.progress(f"training {form}", step, steps),
        )
        self.errors[written([(form, layers)])] = {str(layer): error for layer, error in found.errors.items()}
        return found.model

    def _running(self) -> dict[str, Tensor]:
        """Return the text to train on by kind, [n], without what begins a piece."""
        return {kind.name: kind.train[:, len(self.texts.first) :].flatten() for kind in self.texts.kinds}

    def _folder(self, name: str) -> Path:
        return self.out / run_name(name, list(self.choices))

    def _make(self, name: str, settled: Settled, moments: Moments | None, state: TransplantState) -> TransformerLM:
        """Return the model of a choice, from its run folder if it is there; written there if it is not."""
        folder = self._folder(name)
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

    def _heal(self, name: str, made: TransformerLM, settings: HealSettings, state: TransplantState) -> None:
        """Train what was put in; a healing that was ended goes on."""
        with state.timing(f"heal/{name}"):
            healing = heal(
                made,
                self.model,
                self._running(),
                settings=settings,
                folder=self.out / "healing" / slug_of(name),
                select={kind.name: kind.select for kind in self.texts.kinds},
                first=self.first,
                progress=lambda step, steps, loss: self.progress(f"healing {name}", step, steps),
            )
        state.keep([asdict(point) for point in healing.curve], "healing", name)
