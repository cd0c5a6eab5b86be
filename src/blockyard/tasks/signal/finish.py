"""What follows training: calibration, unknown, accuracy over SNR beside bound and baseline, and pictures of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import MissingExtra
from blockyard.files import without_nan, write_atomically
from blockyard.tasks.run import Trained, load_run, read_run
from blockyard.tasks.signal.calibration import FILE, PRIOR, UNKNOWN, calibration_curve, fit_calibration, scored
from blockyard.tasks.signal.cumulant_classifier import CumulantClassifier
from blockyard.tasks.signal.data import SignalData
from blockyard.tasks.signal.familiar import AT_A_TENTH, Familiar
from blockyard.tasks.signal.familiar import FILE as FAMILIAR
from blockyard.tasks.signal.figures import confusion, signal_figures
from blockyard.tasks.signal.generator import Frames, GeneratedSignals, strange_kinds
from blockyard.tasks.signal.model import LEAST_FRAME
from blockyard.tasks.signal.recordings.labelled import RecordedSignals
from blockyard.tasks.signal.task import Signal

EVALUATION = "evaluation.json"
# Frames of the classes, and of other kinds, that calibration and the ranges of statistics come from.
FRAMES, STRANGE = 6000, 3000


def finish_run(
    folder: Path | str, data: SignalData | None = None, *, plugins: Sequence[str] = (), trust: bool = False
) -> str:
    """Calibrate a trained run and measure it beside the bound and the baseline; keep all of it in its folder.

    Args:
        folder: the run folder.
        data: the run's data, made again when not given.
        plugins: modules to import first, that the run may want.
        trust: import whatever modules the run's configuration names.

    Returns: the figures in words and a table.

    Raises:
        InputError: when the run or its data cannot be read, or the folder cannot be written.
    """
    folder = Path(folder)
    # Agreed to before anything in the folder is touched. What stands there belongs to other weights, or is damaged.
    read_run(folder, plugins=plugins, trust=trust)
    for name in (FILE, FAMILIAR):
        (folder / name).unlink(missing_ok=True)
    trained = load_run(folder, tasks=("signal",), plugins=plugins, trust=trust)
    data = data or Signal().load_data(trained.run.data, trained.run.model)
    with torch.inference_mode():
        found = evaluate(trained, data, folder)
    write_atomically(folder / EVALUATION, json.dumps(without_nan(found), indent=1) + "\n")
    with contextlib.suppress(MissingExtra):
        from blockyard.tasks.signal.charts import save_pictures

        save_pictures(found, folder)
    return described(found, trained)


def evaluate(trained: Trained, data: SignalData, folder: Path) -> dict[str, Any]:
    """Return what a run's folder keeps of its measurement, as plain data; calibration.json and familiar.json are
    written."""
    model, source = trained.model, data.source
    found = signal_figures(data, model)
    told = model.config.condition == "snr"
    frames = _training_frames(source, model)
    c = data.config
    known: dict[str, Any] = {}
    if c.path is None:
        low, high = c.samples_per_symbol_range
        known = {"samples_per_symbol": (low, high)}
        if high > 1:
            narrow, wide = (1 + AT_A_TENTH * rolloff for rolloff in c.rolloff_range)
            known["bandwidth"] = (narrow / high, wide / low)
    Familiar.of(frames.iq, normalised=model.config.normalises, **known).save(folder)
    if c.target == "symbols":
        return found
    classes = data.assets.classes
    strange = None
    if isinstance(source, GeneratedSignals) and strange_kinds(c, "calibration"):
        others = source.strange("calibration", STRANGE)
        strange = scored(model, others.iq, others.snr if told else None)
    fitted = frames if isinstance(source, GeneratedSignals) else source.validation
    calibration = fit_calibration(
        classes, *scored(model, fitted.iq, fitted.snr if told else None), fitted.modulation, strange
    )
    checked = source.validation
    if isinstance(source, GeneratedSignals) and strange is not None:
        given = calibration.probabilities(*scored(model, checked.iq, checked.snr if told else None))
        others = source.strange("test", STRANGE)
        foreign = calibration.probabilities(*scored(model, others.iq, others.snr if told else None))
        found["unknown"] = _unknown(source, given, foreign, checked, others)
        # Of the frames one in ten is of no class, as the calibration takes it.
        both = torch.cat([given, foreign[: int(len(given) * PRIOR / (1 - PRIOR))]])
        truth = torch.cat([checked.modulation, torch.full((len(both) - len(given),), len(classes))])
        top, chosen = both.max(-1)
        found["calibration"]["answers"] = calibration_curve(top, chosen == truth)
    curves = found["calibration"]
    replace(calibration, ece=curves["calibrated"]["ece"]).save(folder)
    if isinstance(source, GeneratedSignals) and c.scenario != "synchronised" and c.length >= LEAST_FRAME:
        found["baseline"] = _baseline(source, checked)
    return found


def _training_frames(source: GeneratedSignals | RecordedSignals, model: Any) -> Frames:
    """Return frames as the training has them: of recordings its own, of generated ones such as no step of it has
    seen."""
    if isinstance(source, RecordedSignals):
        order = torch.randperm(len(source.iq), generator=torch.Generator().manual_seed(0))[:FRAMES]
        return Frames(source.iq[order], source.modulation[order], torch.zeros(len(order), 0), torch.zeros(len(order)))
    generator = torch.Generator().manual_seed(source.config.val_seed * 31 + 2)
    return source.many(FRAMES, generator)


def _unknown(
    source: GeneratedSignals, given: Tensor, foreign: Tensor, checked: Frames, others: Frames
) -> dict[str, Any]:
    """Return how often unknown is said of signals that are, and of those that are not, at each SNR of the grid.

    Args:
        source: of the signals.
        given: probabilities of the answers for validation frames.
        foreign: for frames of other kinds.
        checked: the validation frames.
        others: the frames of other kinds.
    """
    unknown = given.shape[1] - 1
    chosen, said, high = given.argmax(-1), foreign.argmax(-1) == unknown, others.snr >= 10
    kinds, grid = strange_kinds(source.config, "test"), source.config.snr_grid
    return {
        "calibrated_on": list(strange_kinds(source.config, "calibration")),
        "kinds": {name: _share(said[high & (others.modulation == k)]) for k, name in enumerate(kinds)},
        "of_classes": [_share((chosen == unknown)[checked.snr == s]) for s in grid],
        "right": [_share((chosen == checked.modulation)[checked.snr == s]) for s in grid],
    }


def _share(values: Tensor) -> float:
    return float(values.double().mean())


def _baseline(source: GeneratedSignals, checked: Frames) -> dict[str, Any]:
    chosen = CumulantClassifier(source).scores(checked.iq).argmax(-1)
    right = (chosen == checked.modulation).double()
    grid = source.config.snr_grid
    return {
        "name": "cumulant classifier",
        "accuracy": [float(right[checked.snr == s].mean()) for s in grid],
        "confusion": {f"{s:g}": confusion(chosen[checked.snr == s], checked.modulation[checked.snr == s],
                                          len(source.config.classes)) for s in grid},
    }  # fmt: skip


def described(found: dict[str, Any], trained: Trained) -> str:
    """Return the figures in words and a table for a terminal."""
    model = trained.model
    lines = [f"{sum(p.numel() for p in model.parameters()):,} parameters, frames of {model.config.frame} samples"]
    if "snr" in found:
        lines += ["", *_table(found)]
    else:
        shares = found["confusion"]["all"]
        right = sum(row[k] for k, row in enumerate(shares)) / len(shares)
        lines.append(f"right: {100 * right:.1f} % of the validation frames (mean of the classes)")
    if "calibration" in found:
        curves = found["calibration"]
        error = f"{curves['raw']['ece']:.3f}, calibrated {curves['calibrated']['ece']:.3f}"
        lines += ["", f"expected calibration error {error} (temperature {curves['temperature']:.2f})"]
        if "answers" in curves:
            lines.append(f"with one frame in ten that is none of the classes: {curves['answers']['ece']:.3f}")
    if "unknown" in found:
        kinds = ", ".join(f"{name} {100 * share:.0f}" for name, share in found["unknown"]["kinds"].items())
        lines.append(f"{UNKNOWN} is said of signals that training never saw, at 10 dB and more, per cent: {kinds}")
    return "\n".join(lines)


def _table(found: dict[str, Any]) -> list[str]:
    """Return rows over the SNR, with units."""
    least, most = found["per_sample"]
    rows = [("SNR, dB (Es/N0)", [f"{s:g}" for s in found["snr"]])]
    if most > 0:
        span = [f"{s - most:.0f}…{s - least:.0f}" if most > least else f"{s - most:.1f}" for s in found["snr"]]
        rows.append(("SNR of a sample, dB", span))

    def percent(values: list[float]) -> list[str]:
        return [f"{100 * v:.1f}" for v in values]

    rows.append((f"right, % ({found['frames_per_snr']} frames per SNR)", percent(found["accuracy"])))
    if "unknown" in found:
        rows.append(("right, with unknown among the answers, %", percent(found["unknown"]["right"])))
        rows.append((f"{UNKNOWN} said of a class, %", percent(found["unknown"]["of_classes"])))
    if "baseline" in found:
        rows.append((f"{found['baseline']['name']}, %", percent(found["baseline"]["accuracy"])))
    if "bound" in found:
        what = "coherent" if found["bound"]["coherent"] else "unknown phase and timing"
        rows.append((f"maximum likelihood ({what}), %", percent(found["bound"]["accuracy"])))
    first = max(len(name) for name, _ in rows)
    widths = [max(len(cells[k]) for _, cells in rows) for k in range(len(found["snr"]))]
    return [f"{name:<{first}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths)) for name, cells in rows]
