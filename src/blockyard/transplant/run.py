"""A whole transplant: read a model and its text, fit, choose within a budget, write ordinary runs, measure, report.

Everything that can be refused is refused before minutes are spent. What is measured is kept in the folder as it comes,
so that the same words go on after a kill and end with the same weights.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.compare.peak_memory import status_bytes
from blockyard.compare.plan import slug_of
from blockyard.errors import InputError
from blockyard.files import check_writable, nothing_left, plain, user_path
from blockyard.machine.memory import forcing
from blockyard.models.lm import TransformerLM
from blockyard.pretrained import Pretrained, load_pretrained, write_run
from blockyard.pretrained.folder import lacks_tokenizer, read_trained
from blockyard.report.units import command_line
from blockyard.tasks.run import load_run
from blockyard.text.library import TOKENIZER
from blockyard.text.progress import ReadingLines
from blockyard.text.saved import load_tokenizer
from blockyard.training.environment import describe_environment
from blockyard.training.folder import CONFIG
from blockyard.transplant import account
from blockyard.transplant.choices import Part, narrowest, read_choice, written
from blockyard.transplant.heal import HealSettings, heal
from blockyard.transplant.measure import Difference, token_losses
from blockyard.transplant.model import needs_moments, refusals, transplant
from blockyard.transplant.moments import Moments, gather_moments
from blockyard.transplant.outputs import fit_by_output
from blockyard.transplant.parts import PartSettings
from blockyard.transplant.record import Choice, Decode, Healed, Measures, Record, TextSet, Tried, made_from
from blockyard.transplant.report import write_report
from blockyard.transplant.search import Deciding, LayerChoice, Search
from blockyard.transplant.settings import MOST_CONTEXT, TransplantConfig, flat
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
        work = _Transplant(config, names, folder, _original(model, tokenizer, trust), show)
        # A folder that was made for a transplant that never began goes with it.
        with nothing_left(folder) as begun, closing(TransplantState(folder)) as state:
            state.begin(work.reading, work.asked)
            return work.run(state, begun, named="" if isinstance(model, nn.Module | Pretrained) else str(model))


def _original(model: str | Path | nn.Module | Pretrained, tokenizer: str | Path | None, trust: bool) -> Pretrained:
    """Return the model to start from, with its tokenizer."""
    if isinstance(model, Pretrained):
        return model
    if isinstance(model, TransformerLM):
        coder = None if tokenizer is None else load_tokenizer(tokenizer)
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        found = Pretrained(model, coder, "blockyard", {}, "a model in memory", dtype, None)
    elif isinstance(model, nn.Module):
        found = load_pretrained(model, tokenizer=tokenizer)
    elif (user_path(model) / CONFIG).is_file():
        if tokenizer is not None:
            raise InputError(f"tokenizer={str(tokenizer)!r} does not go with a run: {model} has its own")
        return read_trained(user_path(model), trust=trust)
    else:
        path = user_path(model)
        # Before minutes of reading.
        if path.is_dir() and tokenizer is None and not (path / TOKENIZER).is_file():
            raise lacks_tokenizer(path)
        found = load_pretrained(model, tokenizer=tokenizer)
    if found.tokenizer is None:
        raise lacks_tokenizer(found.where)
    return found


@dataclass(frozen=True)
class _Settled:
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


class _Transplant:
    """One transplant: what was asked for, the model, and the text.

    Args:
        config: the terms.
        names: of the choices.
        out: the folder.
        origin: the model to start from.
        show: whether to tell how far it is.
    """

    def __init__(self, config: TransplantConfig, names: list[str], out: Path, origin: Pretrained, show: bool) -> None:
        self.config, self.out, self.origin, self.show = config, out, origin, show
        self.model: TransformerLM = origin.model
        budget = config.budget
        layers = config.layers or ("auto" if budget.given else "all")
        self.choices = {name: read_choice(name, layers, len(self.model.layers)) for name in names}
        self._check_budget()
        for parts in self.choices.values():
            for part in parts:
                self._check_part(part)
        self.context = budget.context or min(self.model.config.context, MOST_CONTEXT)
        assert origin.tokenizer is not None
        self.trained = any(part.trained for parts in self.choices.values() for part in parts)
        training: list[PartSettings] = [config.outputs] if self.trained else []
        training += [config.heal] if config.heal is not None else []
        self.texts = read_texts(
            config.data,
            config.text,
            origin.tokenizer,
            self.model.config.context,
            training=training,
            show=show,
        )
        self.first = self.texts.first[0] if self.texts.first else None
        lines = ReadingLines(unit=("steps", 1))
        self.reading, self.asked = self._terms()
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
            "architecture sha256": sha256(self.model.config.choice.encode()).hexdigest(),
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
        for note in self.texts.notes:
            self.warn(note)
        begun()
        state.save()
        moments = self._moments(state)
        made, refused = dict[str, TransformerLM](), dict[str, str]()
        settled = dict[str, _Settled]()
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
        original, measures = self._measure(made, state)
        state.data["wall"] = state.data.get("wall", 0.0) + time.monotonic() - started
        peak = max(state.data.get("peak") or 0, status_bytes("VmHWM") or 0)
        state.data["peak"] = peak or None
        state.save()
        record = self._record(named, settled, refused, made, original, measures, state)
        write_report(record, self.out)
        return record

    def warn(self, line: str) -> None:
        """Say once what the report says, too."""
        if line not in self.warnings:
            self.warnings.append(line)
            self.say(f"warning: {line}")

    def _begins(self, what: str, line: str) -> None:
        self.say(f"{what}: {line}")

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
                self.texts.together("calibrate"),
                ffns=any(part.form.startswith("vft") for part in fitted),
                path=self.out / MOMENTS,
                progress=lambda done, total: self.progress("gathering moments", done, total),
            )

    def _settle(self, name: str, moments: Moments | None, state: TransplantState) -> _Settled:
        """Return a choice with its layers and widths, searched for where they are open."""
        parts = self.choices[name]
        closed = [(p.form, p.layers) for p in parts if p.layers != "auto" and not p.open]
        part = next((p for p in parts if not p.settled), None)
        if part is None:
            return _Settled(closed, None)
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
        return _Settled([*closed, (found.form, found.layers)], found)

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
        """Put in a mixer that is trained; what was trained is kept, so that it is done once."""
        found = fit_by_output(
            model,
            form,
            self._running(),
            layers=layers,
            settings=self.config.outputs,
            folder=self.out / "outputs" / slug_of(written([(form, layers)])),
            first=self.first,
            progress=lambda step, steps, error: self.progress(f"training {form}", step, steps),
        )
        self.errors[written([(form, layers)])] = {str(layer): error for layer, error in found.errors.items()}
        return found.model

    def _running(self) -> dict[str, Tensor]:
        """Return the text to train on by kind, [n], without what begins a piece."""
        return {kind.name: kind.train[:, len(self.texts.first) :].flatten() for kind in self.texts.kinds}

    def _folder(self, name: str) -> Path:
        return self.out if len(self.choices) == 1 else self.out / slug_of(name)

    def _make(self, name: str, settled: _Settled, moments: Moments | None, state: TransplantState) -> TransformerLM:
        """Return the model of a choice, from its run folder if it is there; written there if it is not."""
        folder = self._folder(name)
        state.settle(self.reading, self.asked)
        if (folder / CONFIG).exists():
            made: TransformerLM = load_run(folder, trust=True).model
        else:
            with state.timing(f"fit/{name}"):
                made = self.model
                for form, layers in settled.parts:
                    made = self._put(made, form, layers, moments)
                made.eval()
            if self.errors:
                state.keep({**(state.known("errors") or {}), **self.errors}, "errors")
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

    # Measuring.

    def _measure(
        self, made: Mapping[str, TransformerLM], state: TransplantState
    ) -> tuple[Measures, dict[str, Measures]]:
        """Measure the original and all choices on the text that nothing was chosen on."""
        tokenizer = self.origin.tokenizer
        assert tokenizer is not None
        reported = {kind.name: kind.report for kind in self.texts.kinds}
        probe = account.make_probe(reported, self.first)
        models = {"": self.model, **made}
        known = {name: state.known("measures", name) for name in models}
        if any(found is None for found in known.values()):
            costs = self._decode(models, reported, state)
            with state.timing("measure"):
                before = self._losses("", self.model, reported, state)
            for name, each in models.items():
                if known[name] is not None:
                    continue
                with state.timing(f"measure/{name}" if name else "measure"):
                    losses = self._losses(name, each, reported, state) if name else before
                    known[name] = asdict(
                        account.measure(
                            each,
                            probe,
                            tokenizer,
                            original=before if name else None,
                            losses=losses,
                            decode=costs[name],
                            say=partial(self._begins, name or "the original"),
                        )
                    )
                state.keep(known[name], "measures", name)
        found = {name: made_from(Measures, kept) for name, kept in known.items()}
        return found.pop(""), found

    def _decode(
        self, models: Mapping[str, TransformerLM], texts: Mapping[str, Tensor], state: TransplantState
    ) -> dict[str, tuple[Decode, ...]]:
        """Time decoding, all models in turns; once, since times of two occasions are not compared."""
        known = state.known("decode")
        if known is None or set(known) != set(models):
            contexts = sorted({*(c for c in account.CONTEXTS if c < self.context), self.context})
            with state.timing("decode"):
                fill = account.decode_text(texts)
                costs = account.decode_costs(models, fill, contexts, reference="", say=partial(self._begins, "timing"))
            known = state.keep({name: [asdict(each) for each in found] for name, found in costs.items()}, "decode")
        return {name: tuple(made_from(Decode, each) for each in found) for name, found in known.items()}

    def _losses(
        self, name: str, model: TransformerLM, texts: Mapping[str, Tensor], state: TransplantState
    ) -> dict[str, Tensor]:
        """Return the loss of every token by kind, piece by piece for whoever watches."""
        found, done, total = dict[str, Tensor](), 0, sum(len(ids) for ids in texts.values())
        for kind, ids in texts.items():
            rows = []
            for piece in ids:
                rows.append(token_losses(model, piece[None]))
                done += 1
                self.progress(f"reporting on {name or 'the original'}", done, total)
            found[kind] = torch.cat(rows)
        return found

    def _record(
        self,
        named: str,
        settled: Mapping[str, _Settled],
        refused: Mapping[str, str],
        made: Mapping[str, TransformerLM],
        original: Measures,
        measures: Mapping[str, Measures],
        state: TransplantState,
    ) -> Record:
        seconds = state.data["seconds"]
        choices = []
        for name in self.choices:
            if name in refused:
                choices.append(Choice(name, name, refused=refused[name]))
                continue
            done = settled[name]
            curve = state.known("healing", name)
            alone: Mapping[int, Difference] = done.found.alone if done.found else {}
            trials: tuple[Tried, ...] = done.found.trials if done.found else ()
            choices.append(
                Choice(
                    name=name,
                    blocks=written(done.parts),
                    run="." if len(self.choices) == 1 else slug_of(name),
                    layers=done.layers,
                    rows=account.layer_rows(made[name], self.model, alone),
                    trials=trials,
                    measures=measures[name],
                    notes=(*(done.found.notes if done.found else ()), *_errors_told(done, state.known("errors") or {})),
                    healing=None if curve is None else tuple(made_from(Healed, point) for point in curve),
                    cpu_seconds={k.partition("/")[0]: v for k, v in seconds.items() if k.partition("/")[2] == name},
                )
            )
        words = [(key, value) for key, value in flat(self.config).items() if value != _defaults().get(key)]
        command = command_line(f"blockyard transplant {named}", [*words, ("out", self.out)]) if named else ""
        return Record(
            model=named or self.origin.where,
            layers=len(self.model.layers),
            d_model=self.model.config.d_model,
            texts=tuple(
                TextSet(kind.name, (kind.source,), *(kind.tokens(role) for role in ("calibrate", "select", "report")))
                for kind in self.texts.kinds
            ),
            piece_length=self.texts.length,
            first_token=bool(self.texts.first),
            budget_loss=self.config.budget.loss,
            budget_cache=self.config.budget.cache,
            context=self.context,
            original=original,
            choices=tuple(choices),
            warnings=tuple(self.warnings),
            command=command,
            created=state.data["created"],
            seconds=state.data["wall"],
            cpu_seconds={name: value for name, value in seconds.items() if "/" not in name},
            peak_bytes=state.data["peak"],
            environment=describe_environment(torch.device("cpu"), 1),
            settings=plain(flat(self.config)),
        )


def _defaults() -> dict[str, Any]:
    return flat(TransplantConfig(""))


def _errors_told(done: _Settled, errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return what is to be known of mixers that were trained."""
    return [
        f"{form} in layer {layer}: relative squared error of the block's output {error:.2f}"
        for form, layers in done.parts
        for layer, error in errors.get(written([(form, layers)]), {}).items()
    ]
