"""`blockyard classify` for runs of `train signal`: frames of recorded samples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.errors import InputError

if TYPE_CHECKING:
    from blockyard.cli.commands.classify import ClassifyOptions
    from blockyard.training.run import Trained


def classify(trained: Trained, file: Path, options: ClassifyOptions) -> list[dict[str, Any]]:
    """One entry per frame (per symbol for an equaliser): its number, the likeliest classes and their probabilities."""
    import torch

    from blockyard.cli.commands.classify import likeliest
    from blockyard.data.signals.files import frames_of, read_iq
    from blockyard.training.signal import predict

    model, assets, _ = trained
    frames = scaled(frames_of(read_iq(file), assets.length, file), assets.power, options.scale)
    with torch.no_grad():
        probabilities = predict(model, frames).softmax(-1)
    per_frame = max(assets.symbols, 1)
    rows = []
    for number, values in enumerate(probabilities.reshape(-1, probabilities.shape[-1]).tolist()):
        row: dict[str, Any] = {"frame": number // per_frame}
        if assets.symbols:
            row["symbol"] = number % per_frame
        rows.append(row | {"is": likeliest(values, assets.classes, options.top)})
    return rows


def scaled(frames: Any, power: tuple[float, float] | None, scale: str) -> Any:
    """Frames on the scale of the training's, by the mean power of all of them."""
    if power is None or scale == "none":
        return frames
    low, high = power
    mean = float(frames.abs().square().mean())
    if scale == "auto" and 0.5 * low <= mean <= 2 * high:
        return frames
    if mean == 0:
        raise InputError("the samples are all zero")
    # Signal power 1 and the noise of the middle SNR, where half of the training's decibels lie on either side.
    wanted = 1 + ((low - 1) * (high - 1)) ** 0.5
    note = (
        f"note: mean power {mean:.3g}, trained on {low:.3g} to {high:.3g}; scaled to {wanted:.3g} (--scale none: as is)"
    )
    print(note, file=sys.stderr)
    return frames * (wanted / mean) ** 0.5
