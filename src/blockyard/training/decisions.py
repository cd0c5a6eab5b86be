"""What a run decides by looking at the machine: once, before its first step, then kept for good.

A decision changes the numbers (bf16 rounds, compiled code sums in another order), so a run stores its decisions
in its folder and every checkpoint, and a resumed run reuses them. Timings are also remembered per machine and
model shape: a second run of the same thing decides the same without measuring.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.files import cache_home, parse_json, write_atomically
from blockyard.machine.processor import processor_name
from blockyard.training.compilation import Extent
from blockyard.training.config import TrainConfig
from blockyard.training.precision import bf16_pays, matmul_error

# An fp32 product whose error stays below this is still fp32 to any training run.
# Between the two kinds: products in fp32 err by about 1e-6, those that round their inputs to bf16 by 1e-2.
FP32_ERROR = 1e-5


@dataclass(frozen=True)
class Decisions:
    """The decisions of one run.

    Args:
        precision: `fp32` or `bf16`.
        matmul: torch's fp32 matmul precision.
        compile: what is compiled, `no`, `blocks` or the `model` whole; None until it is decided.
        why: the reason of each decision, for people.
        eager_ms: measured milliseconds of an eager step, if it was measured.
    """

    precision: str
    matmul: str
    compile: Extent | None = None
    why: tuple[str, ...] = ()
    eager_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"why": list(self.why)}

    @classmethod
    def from_dict(cls, data: Any) -> Decisions | None:
        """Return what `to_dict` gave; None for anything else, such as what someone edited."""
        names = {field.name for field in fields(cls)}
        # Edited or of another version: deciding again is safe, believing half of it is not.
        if not isinstance(data, dict) or set(data) != names or not isinstance(data["why"], list):
            return None
        known = data["precision"] in ("fp32", "bf16") and data["matmul"] in ("highest", "high", "medium")
        if not known or data["compile"] not in (None, "no", "blocks", "model"):
            return None
        return cls(**(data | {"why": tuple(data["why"])}))

    def because(self, reason: str, **changes: Any) -> Decisions:
        """Return a copy with changes and the reason for them."""
        return replace(self, why=(*self.why, reason), **changes)


def decide_precision(config: TrainConfig, device: torch.device) -> Decisions:
    """Return precision and fp32 matmul kernels, from the option and what the machine supports.

    Raises:
        InputError: when bf16 is asked for on a device that cannot run it.
    """
    # Refused where it was asked for by name; `auto` takes fp32 there.
    if config.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError(f"train.precision=bf16: {torch.cuda.get_device_name(device)} has no bf16; use fp32")
    if config.precision == "fp32":
        return Decisions("fp32", "highest", why=("precision: fp32, as asked",))
    if config.precision == "bf16" or bf16_pays(device):
        reason = "as asked" if config.precision == "bf16" else f"this {device.type} has bf16 matrix units"
        # What autocast leaves in fp32 may use them, too: the run has chosen bf16 rounding.
        return Decisions("bf16", "medium", why=(f"precision: bf16, {reason}",))
    # By trying: whether "medium" rounds depends on the library that torch was built with.
    error = matmul_error("medium", device)
    matmul = "medium" if error < FP32_ERROR else "highest"
    reason = f"precision: fp32, no bf16 matrix units; matmul {matmul} (error of medium {error:.1e})"
    return Decisions("fp32", matmul, why=(reason,))


class Remembered:
    """What this machine has seen of a model's shape, in a small file of the user's cache folder.

    `eager_ms`: milliseconds of an eager step; `compiled`: the extents whose kernels have been built before.
    """

    def __init__(self, model: nn.Module, decisions: Decisions, shape: tuple[int, ...]) -> None:
        # Shapes and classes decide the time of a step; the values of options do so only through them.
        parameters = sorted(f"{n}:{tuple(p.shape)}" for n, p in model.named_parameters())
        modules = [type(m).__qualname__ for m in model.modules()]
        parts = [_machine(), torch.__version__, torch.get_num_threads(), decisions.precision, decisions.matmul]
        text = json.dumps([parts, shape, parameters, modules])
        # A hash, so that the file says nothing of what anyone trains.
        self.key = hashlib.sha256(text.encode()).hexdigest()[:24]
        try:
            self.path: Path | None = cache_home() / "decisions.json"
        except InputError:
            # No home, no memory: only slower.
            self.path = None

    @property
    def eager_ms(self) -> float | None:
        value = self._entry().get("eager_ms")
        try:
            return float(value) if isinstance(value, int | float) else None
        except OverflowError:
            return None

    @property
    def compiled(self) -> list[str]:
        value = self._entry().get("compiled")
        return [str(extent) for extent in value] if isinstance(value, list) else []

    def put(self, **seen: Any) -> None:
        """Remember; a cache that cannot be written is only slower."""
        if self.path is None:
            return
        try:
            # Two runs that end together may lose one entry, which is measured again; neither finds half a file.
            write_atomically(self.path, json.dumps(self._read() | {self.key: self._entry() | seen}))
        except InputError:
            return

    def _entry(self) -> dict[str, Any]:
        entry = self._read().get(self.key)
        return entry if isinstance(entry, dict) else {}

    def _read(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            data = parse_json(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}


def _machine() -> str:
    """Return what the speed of a step depends on."""
    return f"{os.uname().machine} {processor_name()} x{os.cpu_count()}"
