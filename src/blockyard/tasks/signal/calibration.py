"""Probabilities that mean what they say, and an answer for what is none of the classes.

    p(class | frame) = (1 − u) · softmax(logits / T),      p(unknown | frame) = u = σ(w · s + b)

T is the temperature that minimises the cross-entropy of validation frames (Guo et al. 2017, arXiv 1706.04599). The
scores s say how strange a frame is: the energy −ln Σ exp(logits) (Liu et al. 2020, arXiv 2010.03759) and the distance
of what the head reads from its nearest class mean in the spread of the classes (Lee et al. 2018, arXiv 1807.03888). w
and b are a logistic regression of frames of the classes against frames of other signals, all of which training has not
seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically

FILE = "calibration.json"
UNKNOWN = "unknown"
# Share of signals that are none of the classes, for the probability of unknown: what is not known before a recording
# is seen, and is taken as one in ten.
PRIOR = 0.1
# Frames that the spread of a class is taken from, at least.
LEAST_OF_CLASS = 20
# Bins of the expected calibration error.
BINS = 15
# Frames of one forward pass.
_ROWS = 256


@dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities of the classes and of unknown.

    Args:
        classes: of the model.
        temperature: by which logits are divided.
        means: [classes, features], of what the head reads; () without a distance.
        precision: [features, features], the inverse of their covariance within the classes.
        weights: of energy and distance in the logit of unknown, and its constant; () without unknown.
        scale: of the frames that are taken for each class, [classes, 4]: mean and deviation of energy and of distance.
            Some classes lie close together and others wide apart, which says nothing about what is strange.
        frames: validation frames that it comes from.
        ece: expected calibration error of the classes' probabilities on frames that fitted nothing.
    """

    classes: tuple[str, ...]
    temperature: float = 1.0
    means: tuple[tuple[float, ...], ...] = ()
    precision: tuple[tuple[float, ...], ...] = ()
    weights: tuple[float, float, float] | None = None
    scale: tuple[tuple[float, float, float, float], ...] = ()
    frames: int = 0
    ece: float | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes and, where strange frames can be told, unknown."""
        return self.classes if self.weights is None else (*self.classes, UNKNOWN)

    def probabilities(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return calibrated probabilities of the answers.

        Args:
            logits: [n, classes].
            features: [n, features], what the head reads (`SignalOutput.features`).

        Returns: [n, answers], rows of sum 1.
        """
        shares = (logits.double() / self.temperature).softmax(-1)
        if self.weights is None:
            return shares.float()
        strange = self.strangeness(logits, features)
        score = self.weights[0] * strange[:, 0] + self.weights[1] * strange[:, 1] + self.weights[2]
        unknown = score.sigmoid().unsqueeze(-1)
        return torch.cat([shares * (1 - unknown), unknown], dim=-1).float()

    def strangeness(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """Return energy and distance of frames, with mean 0 and deviation 1 within the likeliest class: float64 [n,
        2]."""
        energy = -(logits.double() / self.temperature).logsumexp(-1)
        if not self.means:
            distance = torch.zeros_like(energy)
        else:
            if features is None:
                raise ValueError("this calibration measures distances: give features, what the head reads")
            means, precision = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.precision))
            away = features.double().unsqueeze(1) - means
            distance = torch.einsum("ncd,de,nce->nc", away, precision, away).amin(-1).clamp(min=1e-12).log()
        both = torch.stack([energy, distance], dim=-1)
        if not self.scale:
            return both
        scale = torch.tensor(self.scale, dtype=torch.float64)[logits.argmax(-1)].unflatten(-1, (2, 2))
        return (both - scale[..., 0]) / scale[..., 1]

    def save(self, folder: Path) -> None:
        """Write calibration.json into a run folder."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_atomically(folder / FILE, json.dumps(data, indent=1) + "\n")

    @staticmethod
    def load(folder: Path, classes: Sequence[str], features: int | None = None) -> Calibration | None:
        """Return the calibration of a run folder; None where there is none.

        Args:
            folder: the run folder.
            classes: of its model, which must be those of the calibration.
            features: width of what the model's head reads, if known.

        Raises:
            InputError: when it is damaged or of another model.
        """
        file = folder / FILE
        if not file.exists():
            return None
        try:
            found: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
            made = Calibration(
                tuple(map(str, found["classes"])),
                float(found["temperature"]),
                tuple(tuple(map(float, row)) for row in found["means"]),
                tuple(tuple(map(float, row)) for row in found["precision"]),
                None if found["weights"] is None else tuple(map(float, found["weights"])),  # type: ignore[arg-type]
                tuple(tuple(map(float, row)) for row in found["scale"]),  # type: ignore[misc]
                int(found["frames"]),
                None if found["ece"] is None else float(found["ece"]),
            )
            made.check(tuple(classes), features)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{file} is damaged ({error}); remove it to classify without calibration") from error
        return made

    def check(self, classes: tuple[str, ...], features: int | None = None) -> None:
        """Raise ValueError unless these are finite numbers for a model of such classes."""
        if self.classes != classes:
            raise ValueError(f"its classes are {', '.join(self.classes)}, the model's {', '.join(classes)}")
        width = len(self.precision) if features is None else features
        square = len(self.precision) in (0, width) and all(len(row) == len(self.precision) for row in self.precision)
        right = len(self.means) in (0, len(classes)) and all(len(row) == len(self.precision) for row in self.means)
        if not square or not right or bool(self.means) != bool(self.precision):
            raise ValueError("means and precision have the wrong sizes")
        sized = len(self.scale) in (0, len(classes)) and all(len(row) == 4 for row in self.scale)
        if not sized or (self.weights is not None and len(self.weights) != 3):
            raise ValueError("weights and scale have the wrong sizes")
        numbers = [self.temperature, *(self.weights or ()), *(v for row in self.scale for v in row)]
        numbers += [v for rows in (self.means, self.precision) for row in rows for v in row]
        positive = [self.temperature, *(v for row in self.scale for v in row[1::2])]
        if not all(map(math.isfinite, numbers)) or min(positive) <= 0:
            raise ValueError("numbers that are not finite, or not above 0 where they should be")


def scored(model: nn.Module, iq: Tensor, snr: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return logits [n, classes] and what the head reads [n, features] of frames [n, length], on the CPU.

    Args:
        model: a `SignalTransformer` in eval mode, of whole frames.
        iq: complex64.
        snr: [n] in dB for a model that is told it.
    """
    device = next(model.parameters()).device
    logits: Tensor | None = None
    features: Tensor | None = None
    # Written into one tensor each, as in `predict`.
    for start in range(0, len(iq), _ROWS):
        rows = slice(start, start + _ROWS)
        output = model(iq[rows].to(device), snr=None if snr is None else snr[rows].to(device))
        if logits is None or features is None:
            logits = torch.empty(len(iq), *output.logits.shape[1:])
            features = torch.empty(len(iq), output.features.shape[-1])
        logits[rows], features[rows] = output.logits, output.features
    assert logits is not None and features is not None
    return logits, features


def answered(model: nn.Module, calibration: Calibration, iq: Tensor, snr: Tensor | None = None) -> Tensor:
    """Return calibrated probabilities of frames [n, length]: [n, answers]; see `scored`."""
    return calibration.probabilities(*scored(model, iq, snr))


def fit_calibration(
    classes: Sequence[str],
    logits: Tensor,
    features: Tensor,
    targets: Tensor,
    strange: tuple[Tensor, Tensor] | None = None,
) -> Calibration:
    """Return a calibration from validation frames.

    Args:
        classes: of the model.
        logits: [n, classes] of frames of the classes.
        features: [n, features] of the same.
        targets: [n].
        strange: logits and features of frames that are none of the classes; None leaves unknown out.
    """
    temperature = fit_temperature(logits, targets)
    if strange is None:
        return Calibration(tuple(classes), temperature, frames=len(logits))
    means = torch.stack([features[targets == c].double().mean(0) for c in range(len(classes))])
    within = features.double() - means[targets]
    covariance = within.T @ within / len(within)
    # A small part of the mean variance keeps directions without any from deciding alone.
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    rows = [tuple(row) for row in torch.linalg.inv(covariance + ridge).tolist()]
    bare = Calibration(tuple(classes), temperature, tuple(map(tuple, means.tolist())), tuple(rows))
    inside, taken = bare.strangeness(logits, features), logits.argmax(-1)
    scale = []
    for number in range(len(classes)):
        mine = inside[taken == number]
        # Of a class that hardly any frame is taken for, all frames stand in.
        mine = mine if len(mine) >= LEAST_OF_CLASS else inside
        middle, spread = mine.mean(0).tolist(), mine.std(0).clamp(min=1e-6).tolist()
        scale.append((middle[0], spread[0], middle[1], spread[1]))
    scaled = replace(bare, scale=tuple(scale), frames=len(logits))
    return replace(scaled, weights=logistic(scaled.strangeness(logits, features), scaled.strangeness(*strange)))


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature of least cross-entropy, by golden section over ln T from −3 to 3: convex in 1/T, one
    valley."""
    low, high, ratio = -3.0, 3.0, (5**0.5 - 1) / 2
    wide = logits.double()

    def cost(log_t: float) -> float:
        return float(nn.functional.cross_entropy(wide * math.exp(-log_t), targets))

    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = cost(a), cost(b)
    for _ in range(40):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = cost(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = cost(b)
    return math.exp((low + high) / 2)


def logistic(inside: Tensor, outside: Tensor) -> tuple[float, float, float]:
    """Return weights of two scores and a constant: the logistic regression of outside against inside frames, weighted
    so that `PRIOR` of all are outside, by Newton's method with a little ridge.

    Args:
        inside: float64 [n, 2].
        outside: float64 [m, 2].
    """
    x = torch.cat([inside, outside])
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    y = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).to(x.dtype)
    share = torch.where(y > 0, PRIOR / len(outside), (1 - PRIOR) / len(inside)).to(x.dtype)
    ridge = 1e-4 * torch.eye(3, dtype=x.dtype)
    w = torch.zeros(3, dtype=x.dtype)
    for _ in range(50):
        p = (x @ w).sigmoid()
        slope = x.T @ (share * (p - y)) + ridge @ w
        curve = (x * (share * p * (1 - p)).unsqueeze(1)).T @ x + ridge
        step = torch.linalg.solve(curve, slope)
        # Newton may overshoot where the classes are nearly apart: steps are kept short.
        w = w - step * min(1.0, 2.0 / float(step.norm().clamp(min=1e-12)))
    return float(w[0]), float(w[1]), float(w[2])


def calibration_curve(probabilities: Tensor, right: Tensor, bins: int = BINS) -> dict[str, Any]:
    """Return how often answers of each confidence are right.

    Args:
        probabilities: [n], of the answers given.
        right: [n], whether each was.
        bins: of equal width between 0 and 1.

    Returns: plain data: `confidence` (mean), `accuracy` and `share` of each bin that holds any, and `ece`, the mean
        distance of accuracy from confidence, weighted by the shares.
    """
    place = (probabilities.double() * bins).long().clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins).double()
    confidence = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, probabilities.double())
    correct = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right.double())
    held = count > 0
    confidence, correct, share = confidence[held] / count[held], correct[held] / count[held], count[held] / count.sum()
    return {
        "confidence": confidence.tolist(),
        "accuracy": correct.tolist(),
        "share": share.tolist(),
        "ece": float((share * (confidence - correct).abs()).sum()),
    }
