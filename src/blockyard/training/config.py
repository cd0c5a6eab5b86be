"""The options of a training run: one frozen dataclass, checked once, the same from Python, YAML and words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from blockyard.errors import InputError
from blockyard.registry.options import MOST_SEED, MOST_THREADS

# Options that change what is shown or kept but never a number of the run: free to differ on resume.
FREE_ON_RESUME = frozenset(
    {"log_every", "save_every", "keep", "save_best", "progress", "tensorboard", "parallel", "on_non_finite"}
)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

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
        gate_weight_decay: decay of the matrices that compute spectral gates, for spectra that oscillate; none means
            weight_decay.
        beta1: AdamW's averaging of gradients.
        beta2: AdamW's averaging of squared gradients.
        momentum: Muon's averaging of gradients (Nesterov).
        orthogonal_steps: Newton-Schulz iterations per Muon update.
        vein_lr_scale: factor on the learning rate of vein projectors.
        vein_freeze_steps: vein projectors stay at their initial values for this many steps.
        vein_guide_steps: for this many steps dense matrices lead the vein FFNs, fading out (self-guided training,
            arXiv 2406.16450); then they are dropped, and the model is as large as it says. One process only.
        vein_taus: thresholds of the vein blocks' corrections over training, each for an equal part of the steps (the
            vein-flow document: 0.25,0.18,0.10); none leaves the blocks' own.
        vein_ranks: directions of the FFNs' veins in use over training, growing or shrinking, each for an equal part of
            the steps; none = all of them.
        schedule: `cosine` decay, `wsd` (constant, then a linear decay at the end), or `constant`.
        warmup: steps of linear warm-up before the schedule.
        decay_fraction: part of the run in which `wsd` decays.
        final_lr: learning rate at the end, as a fraction of the peak.
        grad_clip: largest global gradient norm; 0 leaves gradients as they are.
        aux_loss_weight: factor on auxiliary losses that blocks return (a router's balance, say).
        z_loss_weight: factor on routers' z-losses, which keep their logits small.
        precision: `fp32`; `bf16` (mixed precision); or `auto`, the faster one that this machine supports.
        compile: `on` (block by block), `model` (the model whole: slower to compile, faster to run), `off`, or
            `auto`: what the predicted times say takes least over the run, compiling included.
        checkpoint_activations: recompute each block's activations in the backward pass, to save memory.
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
        tensorboard: also write TensorBoard event files into the run folder.
    """

    steps: int = 1000
    batch_size: int = 32
    accumulate: int = 1
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float | None = None
    matrix_lr: float = 2e-2
    weight_decay: float = 0.01
    gate_weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.9
    orthogonal_steps: int = 3
    vein_lr_scale: float = 0.2
    vein_freeze_steps: int = 0
    vein_guide_steps: int = 0
    vein_taus: tuple[float, ...] | None = None
    vein_ranks: tuple[int, ...] | None = None
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = 20
    decay_fraction: float = 0.3
    final_lr: float = 0.05
    grad_clip: float = 1.0
    aux_loss_weight: float = 0.01
    z_loss_weight: float = 0.001
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "model", "off"] = "auto"
    checkpoint_activations: bool = False
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
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_batches", "keep", "log_every"):
            _at_least(self, name, 1)
        for name in ("warmup", "eval_every", "save_every", "vein_freeze_steps", "vein_guide_steps", "threads", "seed"):
            _at_least(self, name, 0)
        for name, most in (("threads", MOST_THREADS), ("seed", MOST_SEED)):
            if getattr(self, name) > most:
                raise InputError(f"train.{name}={getattr(self, name)} must be at most {most}")
        for name in ("lr", "matrix_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"train.{name}={getattr(self, name)} must be a number above 0")
        weights = (
            "weight_decay",
            "gate_weight_decay",
            "grad_clip",
            "vein_lr_scale",
            "aux_loss_weight",
            "z_loss_weight",
        )
        for name in weights:
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"train.{name}={getattr(self, name)} must be a number of at least 0")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name}={getattr(self, name)} must be at least 0 and below 1")
        for name in ("final_lr", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"train.{name}={getattr(self, name)} must be between 0 and 1")
        for name, least in (("vein_taus", 0), ("vein_ranks", 1)):
            values = getattr(self, name)
            if values is not None and not (values and all(least <= value < float("inf") for value in values)):
                shown = ",".join(map(str, values)) or "nothing"
                raise InputError(f"train.{name}={shown} must be numbers of at least {least}, separated by commas")
        if not 1 <= self.orthogonal_steps <= 20:
            raise InputError(f"train.orthogonal_steps={self.orthogonal_steps} must be between 1 and 20")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"train.batch_size={self.batch_size} must be a multiple of train.accumulate={self.accumulate}"
            )
        if self.schedule != "constant" and self.warmup >= self.steps > 1:
            # A warm-up longer than the run would never reach the rate that was asked for.
            object.__setattr__(self, "warmup", self.steps // 10)

    @property
    def adamw_lr(self) -> float:
        """Peak learning rate of AdamW's parameters, the default filled in."""
        if self.lr is not None:
            return self.lr
        return 0.02 if self.optimizer == "muon" else 0.003

    def rows(self, ranks: int) -> int:
        """Rows of one forward pass on one rank.

        Raises:
            InputError: when the batch does not divide by ranks and accumulation steps.
        """
        parts = ranks * self.accumulate
        if self.batch_size % parts:
            raise InputError(
                f"train.batch_size={self.batch_size} must be a multiple of "
                f"ranks x train.accumulate = {ranks} x {self.accumulate} = {parts}"
            )
        return self.batch_size // parts


def _at_least(config: TrainConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if value < least:
        raise InputError(f"train.{name}={value} must be at least {least}")


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The options as plain data, in the order of the class."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
