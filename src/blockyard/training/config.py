"""The options of a training run: one frozen dataclass, checked once, the same from Python, YAML and words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from blockyard.errors import InputError, at_most
from blockyard.protocol.training import TrainingHook, TrainingOptions, check_least, check_weight
from blockyard.registry.options import MOST_SEED, MOST_THREADS
from blockyard.registry.register import training_options

if TYPE_CHECKING:
    from torch import Tensor, nn

# Options that change what is shown or kept but never a number of the run: free to differ on resume.
FREE_ON_RESUME = frozenset(
    {"log_every", "save_every", "keep", "save_best", "progress", "log", "tensorboard", "parallel", "on_non_finite"}
)

# One step of so many warms up where nothing is said, and of a long run no more than the other: docs/recipes.md. A
# smaller part serves runs of 20 to 40 steps better, but then short probes prefer rates that whole runs do not bear.
WARMUP_PART, LONGEST_WARMUP = 7, 20


@dataclass(frozen=True)
class LoopConfig:
    """The options of the training loop itself.

    Args:
        steps: optimizer steps of the whole run; the schedule is stretched over them.
        batch_size: sequences per optimizer step, over all ranks and accumulation steps together.
        accumulate: forward/backward passes per optimizer step; divides the memory for activations.
        optimizer: `muon` gives matrices orthogonalised momentum and the rest AdamW; `adamw` gives all AdamW.
        lr: peak learning rate of AdamW's parameters (all of them with `optimizer=adamw`); none means 0.02 for the
            embeddings, head and gains that Muon leaves to it, and 0.003 when it trains everything.
        matrix_lr: peak learning rate of Muon's matrices; an update has root mean square 0.2 x rate (as
            AdamW's have, arXiv 2502.16982), whatever the matrix's shape.
        weight_decay: decoupled decay of matrices and of the head; embeddings, gains and biases have none.
        beta1: AdamW's averaging of gradients.
        beta2: AdamW's averaging of squared gradients.
        momentum: Muon's averaging of gradients (Nesterov).
        orthogonal_steps: Newton-Schulz iterations per Muon update.
        schedule: `cosine` decay, `wsd` (constant, then a linear decay at the end), or `constant`.
        warmup: steps of linear warm-up before the schedule; none means a seventh of the run, but no more than 20. So
            does a warm-up as long as the run, unless the schedule is `constant`.
        decay_fraction: part of the run in which `wsd` decays.
        final_lr: learning rate at the end, as a fraction of the peak.
        grad_clip: largest global gradient norm; 0 leaves gradients as they are.
        aux_loss_weight: factor on auxiliary losses that blocks return (a router's balance, say).
        z_loss_weight: factor on routers' z-losses, which keep their logits small.
        precision: `fp32`; `bf16` (mixed precision); or `auto`, the faster one that this machine supports.
        compile: `on` (block by block), `model` (the model whole: slower to compile, faster to run), `off`, or
            `auto`: what the predicted times say takes least over the run, compiling included.
        checkpoint_activations: recompute each block's activations in the backward pass, to save memory.
        init: folder of a run whose last weights training begins with; none draws them.
        seed: seed of initial weights, batches and dropout.
        eval_every: steps between evaluations; 0 evaluates only at the end.
        eval_batches: validation batches per evaluation.
        save_every: steps between checkpoints; 0 saves only at the end.
        keep: how many of the latest checkpoints are kept, beside the best.
        save_best: also save whenever the validation loss improves.
        log_every: steps between lines of metrics.jsonl.
        on_non_finite: `stop` with an error when the loss or a gradient is not finite, or `skip` that batch.
        parallel: how several ranks share a model: `ddp` (each holds all of it) or `fsdp2` (each a part).
        device: `auto` (a CUDA device when there is one), `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of this process; 0 keeps torch's choice.
        progress: show a progress bar (plain lines when not on a terminal).
        log: where figures go beside metrics.jsonl: `tensorboard` (event files in the run folder), a logger that a
            plug-in registers, or several with commas between; none for nowhere else.
        tensorboard: the same as `log` with tensorboard in it, as older runs have it.
    """

    steps: int = 1000
    batch_size: int = 32
    accumulate: int = 1
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float | None = None
    matrix_lr: float = 2e-2
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.9
    orthogonal_steps: int = 3
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int | None = None
    decay_fraction: float = 0.3
    final_lr: float = 0.05
    grad_clip: float = 1.0
    aux_loss_weight: float = 0.01
    z_loss_weight: float = 0.001
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "model", "off"] = "auto"
    checkpoint_activations: bool = False
    init: str | None = None
    seed: int = 0
    eval_every: int = 250
    eval_batches: int = 20
    save_every: int = 250
    keep: int = 2
    save_best: bool = True
    log_every: int = 10
    on_non_finite: Literal["stop", "skip"] = "stop"
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    device: str = "auto"
    threads: int = 0
    progress: bool = True
    log: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_batches", "keep", "log_every"):
            check_least(self, name, 1)
        for name in ("eval_every", "save_every", "threads", "seed"):
            check_least(self, name, 0)
        if self.warmup is not None:
            check_least(self, "warmup", 0)
        # More than the machine has end the process without a word.
        at_most(MOST_THREADS, **{"train.threads": self.threads})
        at_most(MOST_SEED, **{"train.seed": self.seed})
        for name in ("lr", "matrix_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"train.{name}={getattr(self, name)} must be a number above 0")
        for name in ("weight_decay", "grad_clip", "aux_loss_weight", "z_loss_weight"):
            check_weight(self, name)
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name}={getattr(self, name)} must be at least 0 and below 1")
        for name in ("final_lr", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"train.{name}={getattr(self, name)} must be between 0 and 1")
        # Three or four are what training uses; twenty are a slip of the finger.
        if not 1 <= self.orthogonal_steps <= 20:
            raise InputError(f"train.orthogonal_steps={self.orthogonal_steps} must be between 1 and 20")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"train.batch_size={self.batch_size} must be a multiple of train.accumulate={self.accumulate}"
            )

    @property
    def adamw_lr(self) -> float:
        """Peak learning rate of AdamW's parameters, the default filled in."""
        if self.lr is not None:
            return self.lr
        # Measured, not derived: docs/recipes.md has the curves. What Muon leaves to AdamW are embeddings and gains,
        # which bear more.
        return 0.02 if self.optimizer == "muon" else 0.003

    @property
    def warm_steps(self) -> int:
        """Steps of linear warm-up, the default filled in."""
        # A warm-up as long as the run would never reach the rate that was asked for.
        beyond = self.warmup is not None and self.schedule != "constant" and self.warmup >= self.steps > 1
        if self.warmup is None or beyond:
            # Of the run's length and not of what was asked for: more steps of a run lengthen it.
            return min(LONGEST_WARMUP, self.steps // WARMUP_PART)
        return self.warmup

    @property
    def loggers(self) -> str:
        """Names of the loggers, with commas between."""
        return ",".join(filter(None, (self.log, "tensorboard" if self.tensorboard else None)))

    def rows(self, ranks: int) -> int:
        """Return rows of one forward pass on one rank.

        Raises:
            InputError: when the batch does not divide by ranks and accumulation steps.
        """
        # The batch is the run's, not the rank's: the same options on two processes train the same model.
        parts = ranks * self.accumulate
        if self.batch_size % parts:
            raise InputError(
                f"train.batch_size={self.batch_size} must be a multiple of "
                f"ranks x train.accumulate = {ranks} x {self.accumulate} = {parts}"
            )
        return self.batch_size // parts


# What the systems add, each its own; TrainConfig is asked and asks them all.
SYSTEMS: tuple[type[TrainingOptions], ...] = training_options()

if TYPE_CHECKING:
    # Which systems there are is data, which a type checker cannot follow.
    class _Everything(LoopConfig, TrainingOptions): ...
else:
    # Made from the table and not written out: a new wing's options are there with its line.
    _Everything = type("_Everything", (*SYSTEMS, LoopConfig), {})


@dataclass(frozen=True)
class TrainConfig(_Everything):
    """How a model is trained: the loop's own options, and those of the systems that a model may be made of."""

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        # Made once, and checked by themselves.
        # Frozen, like all options: what a run was asked for does not change while it runs.
        object.__setattr__(self, "_systems", tuple(self._part(cls) for cls in SYSTEMS))

    def _part(self, cls: type[TrainingOptions]) -> TrainingOptions:
        return cls(**{field.name: getattr(self, field.name) for field in fields(cls)})

    @property
    def systems(self) -> tuple[TrainingOptions, ...]:
        """The options of each system by themselves."""
        # mypy: set by __post_init__ on a frozen dataclass, beside its fields.
        return self._systems  # type: ignore[attr-defined]

    def scale(self, group: str) -> float:
        # A system answers 1 for a group that is not its own, so products mix nothing.
        return math.prod(part.scale(group) for part in self.systems)

    def rate(self, group: str, step: int) -> float:
        return math.prod(part.rate(group, step) for part in self.systems)

    def decay(self, group: str, usual: float) -> float:
        for part in self.systems:
            # In a chain: each is told what the one before it decided.
            usual = part.decay(group, usual)
        return usual

    def match(self, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
        for part in self.systems:
            part.match(model, saved)

    def hooks(self, model: nn.Module, steps: int) -> list[TrainingHook]:
        return [hook for part in self.systems for hook in part.hooks(model, steps)]


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the options as plain data, in the order of the class."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
