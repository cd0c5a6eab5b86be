"""`blockyard classify` for runs of `train signal`: frames of recorded samples."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.errors import InputError

if TYPE_CHECKING:
    from blockyard.tasks.kind import ClassifyOptions
    from blockyard.tasks.run import Trained


def classify(trained: Trained, file: Path, options: ClassifyOptions) -> list[dict[str, Any]]:
    """One entry per frame (per symbol for an equaliser): its number, the likeliest classes and their probabilities."""
    import torch

    from blockyard.tasks.kind import likeliest
    from blockyard.tasks.signal.files import frames_of, read_iq
    from blockyard.tasks.signal.model import predict

    model, assets, run = trained
    frames = frames_of(read_iq(file), assets.length, file)
    oversampling = run.data.samples_per_symbol
    snr, power = None, assets.power
    if model.config.condition == "snr":
        snr = known_snr(file, len(frames), assets, oversampling, options.snr)
        # Signal power 1, and a symbol's share of the noise in every sample.
        power = tuple(1 + oversampling * 10 ** (-level / 10) for level in (float(snr.max()), float(snr.min())))
    elif options.snr is not None:
        raise InputError(f"--snr={options.snr:g}: this run's model takes no SNR (it has model.condition=none)")
    frames = scaled(frames, power, options.scale)
    with torch.no_grad():
        probabilities = predict(model, frames, snr).softmax(-1)
    per_frame = max(assets.symbols, 1)
    rows = []
    for number, values in enumerate(probabilities.reshape(-1, probabilities.shape[-1]).tolist()):
        row: dict[str, Any] = {"frame": number // per_frame}
        if assets.symbols:
            row["symbol"] = number % per_frame
        rows.append(row | {"is": likeliest(values, assets.classes, options.top)})
    return rows


def known_snr(file: Path, frames: int, assets: Any, samples_per_symbol: int, given: float | None) -> Any:
    """[frames] in dB for a model that is told the SNR: `given`, or what the file's annotations say.

    Raises:
        InputError: when neither does, or it is no number.
    """
    import torch

    from blockyard.tasks.signal.files import annotated_snr

    if given is None:
        found = annotated_snr(file, assets.length, frames)
        if found is None:
            raise InputError(f"this run's model is told the SNR, and {file} says none: give --snr DB")
        # Annotations speak of samples, Es/N0 of symbols.
        found = found + 10 * math.log10(samples_per_symbol)
    elif math.isfinite(given):
        found = torch.full((frames,), given)
    else:
        raise InputError(f"--snr={given} should be a number of dB")
    low, high = assets.snr
    if float(found.min()) < low or float(found.max()) > high:
        print(f"note: trained at {low:g} to {high:g} dB; what lies beyond is read as the nearest", file=sys.stderr)
    return found.clamp(low, high)


def scaled(frames: Any, power: tuple[float, float] | None, scale: str) -> Any:
    """Frames on the scale of the training's, by the mean power of all of them.

    Args:
        frames: [frames, length].
        power: lowest and highest mean power expected of them; None = any.
        scale: auto, power or none, as the options say.
    """
    if power is None or scale == "none":
        return frames
    low, high = power
    mean = float(frames.abs().square().mean())
    if scale == "auto" and 0.5 * low <= mean <= 2 * high:
        return frames
    if mean == 0:
        raise InputError("the samples are all zero")
    # Signal power 1 and the noise of the middle SNR, where half of the decibels lie on either side.
    wanted = 1 + ((low - 1) * (high - 1)) ** 0.5
    note = (
        f"note: mean power {mean:.3g}, expected {low:.3g} to {high:.3g}; scaled to {wanted:.3g} (--scale none: as is)"
    )
    print(note, file=sys.stderr)
    return frames * (wanted / mean) ** 0.5
