"""A training of some parts of a model, as a run of the usual loop: resumed bit for bit, and no file holds what stays.

What trains is registered in one module, and the whole model stands outside it: so checkpoints and the optimizer see
the parts alone. The rest of the model is in eval mode, without gradients of weights, and ends as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import parse_json
from blockyard.models.lm import TransformerLM, check_ids
from blockyard.training import Task, TrainConfig, Trainer
from blockyard.training.folder import CONFIG, METRICS
from blockyard.transplant.moments import add_weights, architecture_of

# Of every step: its number from 1 on, how many there are, and its loss.
StepProgress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class PartSettings:
    """How much text is read, in which pieces, and how fast is learnt.

    Args:
        tokens: of text to read; a multiple of `length · batch` is what is read of them.
        length: tokens of a piece, read from position 0: some hundred, and no more than the context of use.
        batch: pieces of a step.
        lr: learning rate of AdamW at its height: it rises over the first tenth of the steps and falls along a cosine.
        seed: of the order of the pieces, and of whatever starts at random.
        save_every: steps between checkpoints.
        precision: `fp32`, `bf16` (mixed), or `auto`: bf16 where the machine has units for it.

    Raises:
        InputError: for a number that is out of range, or fewer tokens than one step reads.
    """

    # What its options are called in errors.
    group: ClassVar[str] = ""
    least: ClassVar[Mapping[str, int]] = {"length": 2, "batch": 1, "seed": 0, "save_every": 1}

    tokens: int = 46_080
    length: int = 512
    batch: int = 1
    lr: float = 1e-4
    seed: int = 0
    save_every: int = 15
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            if getattr(self, name) < least:
                raise InputError(f"{self.group}.{name}={getattr(self, name)} should be at least {least}")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"{self.group}.lr={self.lr} should be a number above 0")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"{self.group}.precision={self.precision!r} should be auto, fp32 or bf16")
        if self.steps < 1:
            raise InputError(
                f"{self.group}.tokens={self.tokens} is less than one step reads, {self.batch} x {self.length} tokens"
            )

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.tokens // (self.length * self.batch)

    def train_config(self, **changes: Any) -> TrainConfig:
        """Return the loop's options."""
        options: dict[str, Any] = {
            "steps": self.steps,
            "batch_size": self.batch,
            # One piece a pass: activations of a whole model are what memory goes for.
            "accumulate": self.batch,
            "optimizer": "adamw",
            "lr": self.lr,
            "weight_decay": 0.0,
            "warmup": max(1, self.steps // 10),
            "final_lr": 0.0,
            # One piece is a small batch: a rare token must not move everything.
            "grad_clip": 1.0,
            "precision": self.precision,
            "compile": "off",
            "seed": self.seed,
            "eval_every": 0,
            "save_every": self.save_every,
            "save_best": False,
            "keep": 1,
            "log_every": 1,
            "progress": False,
        }
        return TrainConfig(**(options | changes))

    def resolved(self, config: TrainConfig) -> dict[str, Any]:
        """Return what a training that is gone on with must share; more tokens extend it."""
        own = {name: value for name, value in asdict(self).items() if name not in ("tokens", "points")}
        train = {name: own.pop(name) for name in ("lr", "seed", "save_every", "precision")}
        return {self.group: own, "train": {**train, "steps": config.steps, "warmup": config.warmup}}


def pieces_by_kind(
    texts: Mapping[str, Tensor], settings: PartSettings, first: int | None, vocab_size: int
) -> dict[str, Tensor]:
    """Cut each kind's tokens [n] into pieces [count, length], each begun with the token `first` if there is one.

    Raises:
        InputError: naming the kind that has too few tokens, or ids that are none of the model's.
    """
    if not texts:
        raise InputError("there is no text to train on: give token ids by kind of text")
    own = settings.length - (first is not None)
    needed, cut = settings.steps * settings.batch, {}
    for i, (kind, tokens) in enumerate(texts.items()):
        if tokens.ndim != 1:
            raise InputError(f"the {kind} text has shape {tuple(tokens.shape)}, expected token ids [n]")
        # Of every kind equally many; the first ones have one more where that does not come out even.
        share = (needed - i + len(texts) - 1) // len(texts)
        there = len(tokens) // own
        if there < share:
            raise InputError(
                f"the {kind} text has {len(tokens):,} tokens; {settings.group}.tokens={settings.tokens} of "
                f"{len(texts)} kinds takes {share * own:,} of it"
            )
        # Of a kind that gives no piece nothing is cut.
        if share == 0:
            continue
        pieces = tokens[: there * own].view(there, own)
        if first is not None:
            pieces = torch.cat([pieces.new_full((there, 1), first), pieces], 1)
        check_ids(pieces, vocab_size)
        cut[kind] = pieces
    return cut


def in_turns(pieces: Mapping[str, Tensor], seed: int) -> list[Tensor]:
    """Return the pieces as they are read: kinds in turns, those of a kind shuffled by the seed."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [ids[torch.randperm(len(ids), generator=generator)] for ids in pieces.values()]
    most = max(len(ids) for ids in shuffled)
    # The same whatever the number of steps: more tokens go on with what fewer began.
    return [ids[i] for i in range(most) for ids in shuffled if i < len(ids)]


def fingerprint(*models: TransformerLM, **texts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what tells these models and texts from others, as a run's fingerprint."""
    of_texts, of_models = hashlib.sha256(), hashlib.sha256()
    for role, kinds in texts.items():
        for kind, ids in kinds.items():
            of_texts.update(f"{role} {kind} {tuple(ids.shape)} ".encode())
            of_texts.update(ids.cpu().to(torch.int64).contiguous().numpy().tobytes())
    for model in models:
        of_models.update(architecture_of(model).encode())
        add_weights(of_models, model)
    named = ", ".join(dict.fromkeys(kind for kinds in texts.values() for kind in kinds))
    return {"source": named, "sha256": of_texts.hexdigest(), "models_sha256": of_models.hexdigest()}


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


def check_width(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse to train weights in half precision, which small steps would not move."""
    narrow = next((p.dtype for p in parameters if p.dtype.itemsize < 4), None)
    if narrow is not None:
        raise InputError(
            f"the weights are {str(narrow).removeprefix('torch.')}, which small steps do not move: call model.float() "
            "first"
        )


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
    check_width(trained)
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
    settings: PartSettings,
    folder: str | Path | None,
    progress: StepProgress | None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Train to the end, going on with what the folder holds; returns the lines of metrics, of all processes.

    Args:
        task: parts and loss.
        settings: how.
        folder: the run folder; None keeps nothing.
        progress: called after every step.
        changes: options of the loop that are others than usual.

    Raises:
        InputError: as `Trainer` does.
        Interrupted: after SIGTERM or SIGINT, when the run has been saved.
    """
    if folder is None:
        with TemporaryDirectory() as temporary:
            return train_parts(task, settings, Path(temporary) / "run", progress, **changes)
    # Where the model lies: it is more than what the loop moves.
    device = str(next(task.model.parameters()).device)
    folder, config = Path(folder), settings.train_config(device=device, **changes)
    shown = _Told(config.steps, progress)
    resume = (folder / CONFIG).exists()
    trainer = Trainer(task, config, folder, resolved=settings.resolved(config), resume=resume, shown=shown)
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
