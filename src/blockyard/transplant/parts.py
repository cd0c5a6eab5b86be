"""A training of some parts of a model, as a run of the usual loop: resumed bit for bit, and no file holds what stays.

What trains is registered in one module, and the whole model stands outside it: so checkpoints and the optimizer see
the parts alone. The rest of the model is in eval mode, without gradients of weights, and as it was when the training ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import parse_json
from blockyard.training import Task, TrainConfig, Trainer
from blockyard.training.folder import CONFIG, METRICS

# Of every step: its number from 1 on, how many there are, and its loss.
StepProgress = Callable[[int, int, float], None]


class Parts(nn.Module):
    """Modules that train, and what is computed with them.

    Args:
        parts: by their names in the model; dots become dashes, as a module's name may have none.
        compute: the loss of a batch, called through this module so that a wrapper around it is part of the call.
    """

    def __init__(self, parts: Mapping[str, nn.Module], compute: Callable[..., Tensor]) -> None:
        super().__init__()
        for name, module in parts.items():
            self.add_module(name.replace(".", "-"), module)
        self._compute = compute

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._compute(*inputs)


@contextmanager
def training_only(model: nn.Module, parts: list[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """Let gradients go to some parts of a model alone within it, everything in eval mode but them; yields their
    parameters, a shared one once.

    Afterwards every parameter wants gradients as before, and has none.

    Raises:
        InputError: for parts without parameters, or in half precision, which small steps would not move.
    """
    wished = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = [(module, module.training) for module in model.modules()]
    trained = list({id(p): p for part in parts for p in part.parameters()}.values())
    if not trained:
        raise InputError("what was put in has no weights, so there is nothing to train")
    narrow = next((p.dtype for p in trained if p.dtype.itemsize < 4), None)
    if narrow is not None:
        raise InputError(
            f"the weights are {str(narrow).removeprefix('torch.')}, which small steps do not move: call model.float() "
            "first"
        )
    try:
        model.eval()
        for parameter in wished:
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        yield trained
    finally:
        for parameter, wish in wished.items():
            parameter.requires_grad_(wish)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode


def train_parts(
    task: Task,
    config: TrainConfig,
    resolved: Mapping[str, Any],
    folder: Path | None,
    progress: StepProgress | None,
) -> list[dict[str, Any]]:
    """Train to the end, going on with what the folder holds; returns the lines of metrics, of all processes.

    Args:
        task: parts and loss.
        config: the loop's options.
        resolved: all options, which a run that is gone on with must share.
        folder: the run folder; None keeps nothing.
        progress: called after every step.

    Raises:
        InputError: as `Trainer` does.
        Interrupted: after SIGTERM or SIGINT, when the run has been saved.
    """
    if folder is None:
        with TemporaryDirectory() as temporary:
            return train_parts(task, config, resolved, Path(temporary) / "run", progress)
    resume = (folder / CONFIG).exists()
    shown = _Told(config.steps, progress)
    trainer = Trainer(task, config, folder, resolved=resolved, resume=resume, shown=shown)
    try:
        trainer.run()
    finally:
        trainer.close()
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [parse_json(line) for line in lines]


class _Told:
    """What the loop tells of its steps, handed on to a function."""

    def __init__(self, steps: int, progress: StepProgress | None) -> None:
        self.steps, self.progress = steps, progress

    def update(self, step: int, row: dict[str, Any]) -> None:
        if self.progress is not None and row.get("loss") is not None:
            self.progress(step, self.steps, float(row["loss"]))

    def say(self, line: str) -> None:
        return

    def close(self) -> None:
        return
