"""One optimizer step: batch, forward and backward passes, clipping, update; without files or clocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.dropout import Dropout, set_dropout_keys
from blockyard.nn.finite import watched_elsewhere
from blockyard.training.checkpoint import Checkpoint, with_content
from blockyard.training.compilation import Extent, compile_model, eager
from blockyard.training.config import TrainConfig
from blockyard.training.decisions import Decisions
from blockyard.training.distributed import Ranks, last_pass_only, load_whole_state, replicate, shard
from blockyard.training.guard import NonFiniteError, locate
from blockyard.training.optim import Optimizers
from blockyard.training.precision import autocast, float32_matmul
from blockyard.training.task import Batch, Task

T = TypeVar("T")

# So many batches in a row that are not finite mean that the weights are lost, not that one batch was bad.
MOST_SKIPS = 20


@dataclass(frozen=True)
class StepResult:
    """What one step gave.

    Args:
        loss: mean over the global batch.
        grad_norm: global norm before clipping.
        lr: AdamW's learning rate.
        skipped: the batch was not finite, and nothing was changed.
        stats: what the task logs, still on the device; vectors are summed over the passes and ranks of the step.
    """

    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    stats: dict[str, Tensor]


class Engine:
    """A model, its optimizers and how they compute.

    Args:
        task: model, batches and loss.
        config: the options.
        ranks: this process among those of the run.
        decisions: precision and kernels.
    """

    def __init__(self, task: Task, config: TrainConfig, ranks: Ranks, decisions: Decisions) -> None:
        self.task, self.config, self.ranks, self.decisions = task, config, ranks, decisions
        # Moved before the optimizers are made: they hold the parameters themselves.
        self.model = task.model.to(ranks.device)
        self.blocks = list(getattr(self.model, "layers", []))
        if config.checkpoint_activations:
            if not hasattr(self.model, "checkpoint_activations"):
                raise InputError(f"train.checkpoint_activations: {type(self.model).__name__} does not support it")
            # mypy: nn.Module types its attributes as tensors and modules.
            self.model.checkpoint_activations = True  # type: ignore[assignment]
        # Before the model is sharded: a hook looks for modules by class, and FSDP2 gives them another.
        self._hooks = config.hooks(self.model, config.steps)
        for hook in self._hooks:
            hook.check_ranks(ranks.size)
        self.rows = config.rows(ranks.size)
        self.kind: Literal["none", "ddp", "fsdp2"] = config.parallel if ranks.size > 1 else "none"
        # What losses are computed with; `self.model` is what is saved and evaluated, without a wrapper's names.
        self.wrapped: nn.Module = self.model
        self.compiled = False
        self._autocast = autocast(decisions.precision, ranks.device)
        self._has_dropout = any(isinstance(m, Dropout) and m.p > 0 for m in self.model.modules())
        if self.kind == "fsdp2":
            shard(self.model, self.blocks, ranks)
        elif self.kind == "ddp":
            self.wrapped = replicate(self.model, ranks)
        # After sharding, since it replaces the parameters.
        self.optimizers = Optimizers(self.model, config, decisions.precision)
        self.model.train()
        # Modules that act once a step is made, on what it counted: a router's balancing bias.
        self._listeners: dict[str, Any] = {n: m for n, m in self.model.named_modules() if hasattr(m, "after_step")}
        self._skips_in_a_row = 0

    def unwrap(self) -> None:
        """Let DDP go, which holds the process group; the model is used alone from here on."""
        self.wrapped = self.model

    def step(self, step: int) -> StepResult:
        """Make update number `step`, counted from 0.

        Raises:
            NonFiniteError: when loss or gradients are not finite and the option says to stop.
        """
        # A run that a clock ends has its schedules end there, too.
        progress = min(1.0, step / self.optimizers.config.steps)
        scheduled: dict[str, float] = {}
        for hook in self._hooks:
            # Logged with the step: what a schedule was at is half of what a curve means.
            scheduled |= hook.before_step(step, progress)
        with float32_matmul(self.decisions.matmul):
            loss, stats = self.forward_backward(step)
            # One read of the device per step: the loss, which is shown anyway, and the norm, which tells of any
            # gradient that is not finite.
            read = torch.stack((self.ranks.mean(loss), self.optimizers.grad_norm().to(loss)))
            loss_value, norm = read.tolist()
            # A comparison with NaN is false, and infinity is not below itself.
            finite = abs(loss_value) < float("inf") and norm < float("inf")
            factor = 0.0
            if finite:
                self._skips_in_a_row = 0
                # With the norm that was read: clipping would compute it once more, and wait for the device again.
                self.optimizers.clip(norm)
                factor = self.optimizers.step(step)
                # Only of a step that counts: a skipped batch is to leave no trace in a router's bias either.
                self._tell(stats)
            else:
                self._not_finite(step, loss_value, norm)
            self.optimizers.zero_grad()
        # All of them, and then asked whether any took something: `any` over a generator would stop at the first.
        taken = [hook.after_step(step) for hook in self._hooks]
        if any(taken):
            self.optimizers.forget_all_but(self.model)
        stats |= {name: torch.tensor(float(value), dtype=torch.float64) for name, value in scheduled.items()}
        # Statistics stay on the device: most steps are not logged, and reading them would wait for it.
        return StepResult(loss_value, norm, factor * self.config.adamw_lr, not finite, stats)

    def extra_flops(self, step: int) -> int:
        """Return FLOPs of a step beside those of the task's formula, such as what leads a part of the model at
        first."""
        return sum(hook.extra_flops(step, self.task.tokens_per_step) for hook in self._hooks)

    def load(self, loaded: Checkpoint) -> None:
        """Take weights and optimizer state from a checkpoint."""
        # Veins that lost ranks in training have other shapes than the options say; the model follows the file.
        self.config.match(self.model, loaded.model)
        self.optimizers.forget_all_but(self.model)
        if loaded.parts is not None:
            # Laid out as the ranks now are, whatever wrote them.
            parameters = {name: parameter for parameter, name in self.optimizers.names.items()}
            loaded = with_content(loaded, self.model.state_dict(), parameters)
        load_whole_state(self.model, loaded.model)
        self.optimizers.load_state(loaded.optimizer)

    def forward_backward(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Accumulate the gradients of the global batch number `step`; returns this rank's mean loss and stats."""
        self.seed(step)
        # One pass after the other into the same gradients: the memory of one, the mean of all.
        passes = self.config.accumulate
        total: Tensor | None = None
        stats: dict[str, Tensor] = {}
        for micro in range(passes):
            batch = self.batch(step, micro)
            with last_pass_only(self.wrapped, micro == passes - 1, self.kind):
                # What is not finite shows in loss and gradients, and is handled there as the options say.
                with self._autocast(), watched_elsewhere():
                    loss, found = self.task.loss(self.wrapped, batch)
                # Vectors are counts and add up; a scalar is what the last pass saw.
                stats = {name: v + stats[name] if v.ndim and name in stats else v for name, v in found.items()}
                # Passes have equally many rows, so the mean of their means is the mean of the batch.
                scaled = loss / passes if passes > 1 else loss
                # Outside autocast: the backward pass takes the types that the forward one chose.
                scaled.backward()
            total = scaled.detach() if total is None else total + scaled.detach()
        assert total is not None
        return total.float(), self.ranks.sum_of(stats)

    def _tell(self, stats: dict[str, Tensor]) -> None:
        """Hand every module that listens what it counted in this step."""
        # By module: one that counts two things is told both at once.
        counted: dict[str, dict[str, Tensor]] = {}
        for name, value in stats.items():
            path, _, key = name.rpartition("/")
            if value.ndim and path in self._listeners:
                counted.setdefault(path, {})[key] = value
        for path, own in counted.items():
            self._listeners[path].after_step(own)

    def batch(self, step: int, micro: int) -> Batch:
        """Return this rank's rows of one forward pass, on the device; dropout is keyed by their numbers."""
        # Rows are numbered over the whole batch, so any number of ranks and passes reads the same ones.
        rows = self.ranks.rows(micro, self.rows)
        batch = self.task.batch(step, rows)
        if self.ranks.device.type != "cpu":
            # Pinned memory is copied while the device still computes the pass before.
            batch = {k: v.pin_memory().to(self.ranks.device, non_blocking=True) for k, v in batch.items()}
        if self._has_dropout:
            # By row and not by place: a mask is the same whichever rank computes the row.
            first = step * self.config.batch_size
            keys = torch.arange(first + rows.start, first + rows.stop, device=self.ranks.device)
            # A large odd factor sets seeds apart; keys of one run stay consecutive and so distinct.
            set_dropout_keys(self.model, keys + self.config.seed * 0x5851F42D)
        return batch

    def seed(self, step: int) -> None:
        """Make the random state a function of (seed, step, rank)."""
        # Two primes, so that neighbouring seeds, steps and ranks do not meet.
        value = ((self.config.seed * 1_000_003 + step) * 65_537 + self.ranks.rank) % (1 << 63)
        torch.default_generator.manual_seed(value)
        if self.ranks.device.type == "cuda":
            torch.cuda.manual_seed(value)

    def evaluate(self) -> dict[str, float]:
        """Return the task's validation figures. Blocks run as written: a few passes do not repay a compilation."""
        return self.with_model_at_rest(self.task.evaluate)

    def with_model_at_rest(self, look: Callable[[nn.Module], T]) -> T:
        """Return what `look` finds in the model while that is in eval mode, without gradients, in the run's
        precision."""
        self.model.eval()
        if self._has_dropout:
            # Keys of the last batch would fit no validation batch of another size.
            set_dropout_keys(self.model, None)
        try:
            matmul = float32_matmul(self.decisions.matmul)
            with torch.no_grad(), self._autocast(), matmul, eager(self.compiled), watched_elsewhere():
                return look(self.model)
        finally:
            self.model.train()

    def compile(self, step: int, extent: Extent) -> None:
        """Compile, and run one forward and backward pass that changes nothing, so that it is done."""
        compile_model(self.model, self.blocks, extent)
        self.compiled = True
        # The pass that compiles is one too many: whatever counts in buffers is put back.
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        try:
            with float32_matmul(self.decisions.matmul):
                self.forward_backward(step)
        finally:
            self.optimizers.zero_grad()
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])

    def uncompile(self) -> None:
        """Run everything as written again."""
        self.compiled = False
        for module in (self.model, *self.blocks):
            # What `Module.compile` sets; torch has no public way back.
            module._compiled_call_impl = None

    def _not_finite(self, step: int, loss: float, norm: float) -> None:
        # In a row: one bad batch in a thousand is data, a hundred in a row are weights.
        self._skips_in_a_row += 1
        if self.config.on_non_finite == "skip" and self._skips_in_a_row <= MOST_SKIPS:
            return
        what = f"loss {loss}" if not abs(loss) < float("inf") else f"gradient norm {norm}"
        place, rows = self._locate(step)
        where = f" in batch rows {_ranges(rows)}" if rows else f" in the batch of step {step}"
        # What can be done stands in the line: whoever reads it has lost a run and wants to know what next.
        advice = (
            f"{MOST_SKIPS} batches in a row were skipped"
            if self.config.on_non_finite == "skip"
            else "a lower train.lr may help; train.on_non_finite=skip leaves such batches out"
        )
        raise NonFiniteError(f"step {step}: {what}; first not finite: {place}{where}; {advice}")

    def _locate(self, step: int) -> tuple[str, list[int]]:
        """Repeat the step pass by pass and watch every layer."""
        if self.kind != "none":
            # A rank alone cannot repeat a pass whose collectives the others do not join.
            return "not searched for with several ranks (repeat on one)", []
        place = ""
        rows: list[int] = []
        for micro in range(self.config.accumulate):
            self.optimizers.zero_grad()
            self.seed(step)
            with eager(self.compiled):
                # The same seed and so the same masks: a fault that comes of dropout comes again.
                place, rows = locate(self.model, self._loss_of(step, micro), self.ranks.rows(micro, self.rows))
            if getattr(self.task, "varies", None) is not None:
                # Rows are regrouped: a first axis as long as the batch need not be its rows.
                rows = []
            # The first pass in which it shows is where it began; later ones may only have caught it.
            if not place.startswith("nothing"):
                break
        return place, rows

    def _loss_of(self, step: int, micro: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with self._autocast(), watched_elsewhere():
                return self.task.loss(self.model, self.batch(step, micro))[0]

        return run


def _ranges(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (f", … ({len(rows)} rows)" if len(rows) > 8 else "")
