"""Signal classification and equalisation as a task: frames of complex samples in, right decisions out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically
from blockyard.models.trunk import seeded
from blockyard.tasks.kind import ClassifyOptions, Quality, Run, TaskKind, register_task
from blockyard.tasks.signal.calibration import Calibration
from blockyard.tasks.signal.config import BLIND_ONLY, SignalDataConfig
from blockyard.tasks.signal.data import SignalAssets, SignalData
from blockyard.tasks.signal.familiar import Familiar
from blockyard.tasks.signal.model import SignalConfig, SignalTransformer
from blockyard.training.auxiliary import with_auxiliary
from blockyard.training.config import TrainConfig
from blockyard.training.task import Batch

if TYPE_CHECKING:
    from blockyard.tasks.signal.report import SignalParts

ASSETS = "signal.json"
# Options of the data that versions before had not.
NEWER = ("scenario", "train_frames", *BLIND_ONLY)


class SignalTask:
    """A `SignalTransformer` and the signals that it learns.

    Args:
        model_config: the architecture.
        data: the signals.
        config: batch size, seed, evaluation.
    """

    def __init__(self, model_config: SignalConfig, data: SignalData, config: TrainConfig) -> None:
        with seeded(config.seed):
            model = SignalTransformer(model_config)
        self.model: nn.Module = model
        self.data, self.config = data, config
        self.is_told = model_config.condition == "snr"
        self.tokens_per_step = config.batch_size * model_config.frame
        self.flops_per_step = 3 * config.batch_size * model.cost(model_config.length).flops
        self.fingerprint: dict[str, Any] = data.fingerprint

    def batch(self, step: int, rows: slice) -> Batch:
        """Return rows of the global batch of a step."""
        return self.data.source.batch(self.config.seed, step, self.config.batch_size, rows)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return mean cross-entropy in nats, plus the blocks' own losses, weighted."""
        output = self._scored(model, batch)
        return with_auxiliary(output.loss, output.aux, self.config, "class_loss")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return `val_loss` in nats and `val_accuracy` over the validation frames, up to eval_batches of them."""
        loss, right, count, frames = 0.0, 0, 0, 0
        device = next(model.parameters()).device
        for batch in self.data.validation_batches(self.config.batch_size, self.config.eval_batches):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            output = self._scored(model, batch)
            loss += float(output.loss) * len(batch["iq"])
            frames += len(batch["iq"])
            right += int((output.logits.argmax(-1) == batch["targets"]).sum())
            count += batch["targets"].numel()
        return {"val_loss": loss / frames, "val_accuracy": right / count}

    def _scored(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch["iq"], targets=batch["targets"], snr=batch["snr"] if self.is_told else None)

    def save_assets(self, folder: Path) -> None:
        """Write class names and the frame's length."""
        stored = {k: v for k, v in asdict(self.data.assets).items() if k not in ("calibration", "familiar")}
        write_atomically(folder / ASSETS, json.dumps(stored, indent=2) + "\n")


@register_task
class Signal(TaskKind[SignalConfig, SignalDataConfig, SignalData]):
    """Tell which modulation a frame of samples is, or which symbols are in it."""

    name = "signal"
    title = "signal model"
    data_title = "the signals"
    model_config = SignalConfig
    data_config = SignalDataConfig
    from_data = MappingProxyType({"frame": 0, "n_classes": 6, "symbols": 0, "ordered": True, "blind": False,
                                  "known_rate": 0})  # fmt: skip
    unit = "sample"
    # One layer and a high rate (docs/signals.md).
    train_defaults = MappingProxyType({"steps": 2400, "batch_size": 96, "lr": 1e-2, "eval_batches": 50})
    # Enough that the models are apart: 500 steps of blind frames.
    compare_defaults = MappingProxyType({"budget_value": 50_000_000.0})
    own_data_options = ("path",)

    def older_data(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        # Versions before knew the synchronised scenario alone.
        was = {
            name: value for name, value in asdict(SignalDataConfig(scenario="synchronised")).items() if name in NEWER
        }
        # They held every tenth frame of a recording back, and have seen the others.
        return was | ({"split": "frame"} if data.get("path") is not None else {})

    def report(self) -> SignalParts:
        from blockyard.tasks.signal.report import SignalParts

        return SignalParts()

    def classify(self, trained: Any, file: Path, options: ClassifyOptions) -> Iterable[dict[str, Any]]:
        from blockyard.tasks.signal.predict import classify

        return classify(trained, file, options)

    def load_data(self, data: SignalDataConfig, model: SignalConfig) -> SignalData:
        if model.condition == "snr" and data.path is not None:
            raise InputError(
                "model.condition=snr needs frames of known SNR; recordings (data.path) come without: leave it at none"
            )
        return SignalData(data)

    def make_task(self, run: Run[SignalConfig, SignalDataConfig], data: SignalData) -> SignalTask:
        return SignalTask(run.model, data, run.train)

    def data_bytes(self, data: SignalDataConfig, model: SignalConfig) -> int:
        if data.path is not None:
            return 0
        kinds = len(data.classes) if data.target == "modulation" else 1
        # The frames of every SNR, and all of them together, complex64.
        checked = 2 * 8 * data.val_frames * data.length * kinds * data.snr_levels
        return checked + 2 * 8 * data.length * (data.train_frames or 0)

    def build_model(self, model: SignalConfig) -> SignalTransformer:
        return SignalTransformer(model)

    def fit(self, model: SignalConfig, assets: SignalAssets) -> SignalConfig:
        return replace(
            model,
            frame=assets.length,
            n_classes=len(assets.classes),
            symbols=assets.symbols,
            ordered=assets.ordered,
            blind=assets.blind,
            known_rate=assets.known_rate,
        )

    def load_assets(self, folder: Path) -> SignalAssets:
        path = folder / ASSETS
        try:
            stored = parse_json(path.read_text(encoding="utf-8"))
            power, snr = stored["power"], stored.get("snr")
            classes = tuple(stored["classes"])
            return SignalAssets(
                classes,
                int(stored["length"]),
                int(stored["symbols"]),
                tuple(power) if power else None,
                bool(stored.get("ordered", True)),
                tuple(snr) if snr else None,
                Calibration.load(folder, classes),
                Familiar.load(folder),
                bool(stored.get("blind", False)),
                int(stored.get("known_rate", 0)),
            )
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{path} is missing or damaged: {error}") from error

    def quality(self, data: SignalData) -> Quality:
        what = "symbol accuracy" if data.config.target == "symbols" else "accuracy"
        return Quality(f"validation {what}", "", "val_accuracy", "higher", "nats", margin=0.01)

    def figures(self, run: Run[SignalConfig, SignalDataConfig], data: SignalData, model: Any) -> dict[str, Any]:
        """Return accuracy over SNR, confusion at each SNR, calibration, and the bound where there is one."""
        from blockyard.tasks.signal.figures import signal_figures

        return signal_figures(data, model)
