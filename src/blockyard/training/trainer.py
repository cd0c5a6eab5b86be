"""The training loop: steps, metrics, evaluations and checkpoints, exact across interruptions.

Everything random is a function of (seed, step), so the state of a run is its weights, its optimizer and its step: a
run killed at any moment and resumed ends with the same numbers, bit for bit.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blockyard.errors import InputError
from blockyard.files import nothing_left, plain
from blockyard.training import checkpoint as checkpoints
from blockyard.training.allocator import keep_freed_memory
from blockyard.training.auxiliary import statistics_row
from blockyard.training.clock import Clock, Stopwatch
from blockyard.training.compiling import Compiling
from blockyard.training.config import TrainConfig
from blockyard.training.decisions import Decisions, decide_precision
from blockyard.training.distributed import join_ranks, whole_state
from blockyard.training.engine import Engine, StepResult
from blockyard.training.environment import describe_environment
from blockyard.training.folder import CHECKPOINTS, Meaning, RunFolder, resumption
from blockyard.training.interrupt import Interrupted, StopRequest
from blockyard.training.loggers import Loggers, find_loggers
from blockyard.training.optim import lr_factor
from blockyard.training.parts import own_state
from blockyard.training.progress import Progress, Silent, make_progress
from blockyard.training.task import Task, check_task


class Trainer:
    """Trains a task's model into a run folder.

    Args:
        task: model, data and loss.
        config: the options.
        out: the run folder.
        resolved: all options of the run, written to config.yaml.
        resume: continue the run in `out` from its last checkpoint.
        meaning: of the options in `resolved`, where a run that is resumed is compared with what it began with.
        shown: what is told of every step, in place of the progress that `config` asks for.

    Raises:
        InputError: for a task that lacks something, options that do not fit the machine, a folder that is in use,
            holds another run or cannot be written, another configuration on resume, or a damaged checkpoint.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        out: Path | str,
        *,
        resolved: Mapping[str, Any],
        resume: bool = False,
        meaning: Meaning | None = None,
        shown: Progress | None = None,
    ) -> None:
        # Everything that can be refused is, before the folder is made.
        check_task(task)
        self.task, self.config, self.out = task, config, Path(out)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.ranks = join_ranks(config.device)
        if self.ranks.device.type == "cpu":
            keep_freed_memory()
        config.rows(self.ranks.size)
        self._opens = find_loggers(config.loggers)
        self._loggers: Loggers | None = None
        # Without a task's knowledge an option left out is unknown, not equal.
        self._meaning = meaning or Meaning()
        self._shown = shown
        self._folder: RunFolder | None = None
        # A run that is resumed keeps whatever it has.
        with nothing_left(self.out) if self.ranks.first and not resume else contextlib.nullcontext():
            try:
                self._folder = self.ranks.together(lambda: RunFolder(self.out, resume=resume), None)
                self._set_up(resolved, resume)
            except BaseException:
                self.close()
                raise

    def _set_up(self, resolved: Mapping[str, Any], resume: bool) -> None:
        self._resolved = plain(resolved)
        self.step = 0
        self.clock = Clock()
        self.best: dict[str, float] | None = None
        self._last: dict[str, Any] = {}
        self._figures: dict[str, float] = {}
        self._timings: list[float] = []
        # No step is saved twice: an evaluation's best and the regular checkpoint often fall together.
        self._saved_step = -1
        self._stop = StopRequest()
        self.progress: Progress = Silent()
        self._extension = ""
        loaded = self.ranks.together(lambda: self._prepare_folder(resolved, resume), None)
        loaded = self.ranks.share(loaded)
        if loaded is not None and loaded.parts is not None and not all(self.ranks.gathered(loaded.parts.is_dir())):
            # Machines without a common disk: one reads for all.
            path = loaded.parts.parent
            loaded = self.ranks.share(self.ranks.together(lambda: checkpoints.load_checkpoint(path), None))
        decided = self.ranks.share(self._stored_decisions(loaded))
        self.decisions = decided or decide_precision(self.config, self.ranks.device)
        # With the decisions of the run and not of this machine: a run that moved computes as it began.
        self.engine = Engine(self.task, self.config, self.ranks, self.decisions)
        if loaded is not None:
            self._restore(loaded)
        self.compiling = Compiling(
            self.engine, self.config, self.decisions, self.clock, self._timings, self._note_decision
        )
        if not decided:
            self.compiling.decide_untimed()
        if self._folder is not None:
            # Metrics may be ahead of the checkpoint; these steps are about to be made again.
            self._folder.rewind_metrics(self.step)
        self._write_environment()
        if self._folder is not None:
            self._loggers = Loggers(self._opens, self.out, self._resolved, self.step, self._say)
        self.compiling.compile_if_due(self.step)

    # What a comparison reads.

    @property
    def tokens(self) -> int:
        return self.clock.tokens

    @property
    def flops(self) -> int:
        return self.clock.flops

    @property
    def seconds(self) -> float:
        return self.clock.seconds

    @property
    def cpu_seconds(self) -> float:
        return self.clock.cpu_seconds

    @property
    def done(self) -> bool:
        return self.step >= self.config.steps

    @property
    def last_metrics(self) -> dict[str, Any]:
        """The latest line of metrics."""
        return dict(self._last)

    def run(self) -> Path:
        """Train to the end, evaluate, save; returns the run folder.

        Raises:
            Interrupted: after SIGTERM or SIGINT, when the run has been saved.
        """
        shown = self.config.progress and self.ranks.first
        self.progress = self._shown or make_progress(self.config.steps, shown)
        try:
            with self._stop.listening():
                if self.step:
                    self.progress.say(f"resuming at step {self.step} of {self.config.steps}")
                if self._extension:
                    self.progress.say(self._extension)
                self.advance(self.config.steps)
                if not self.done:
                    self._interrupted()
                self.save()
            self._sum_up()
        finally:
            self.progress.close()
        return self.out

    def advance(self, steps: int) -> int:
        """Make up to `steps` more steps, no further than the run is long; returns how many were made."""
        made = 0
        while made < steps and not self.done and not self._stopped():
            self._one_step()
            made += 1
        return made

    def end_schedule_at(self, step: int) -> None:
        """Let the learning rate end its schedule at another step than the last: for a run that a clock will end."""
        self.engine.optimizers.config = replace(self.config, steps=max(step, self.step + 1))

    def _one_step(self) -> None:
        self.compiling.before_step(self.step)
        flops = self.task.flops_per_step + self.engine.extra_flops(self.step)
        watch = Stopwatch()
        # Batches are drawn inside, on the clock: a slow reader is a cost of the run.
        result = self.engine.step(self.step)
        wall, cpu = watch.read()
        self.clock.count_step(wall, cpu, self.task.tokens_per_step, flops)
        self.compiling.after_step(self.step, wall)
        self.step += 1
        self._after_step(result, wall)

    def _after_step(self, result: StepResult, wall: float) -> None:
        """Log, evaluate and save what is due."""
        config, step = self.config, self.step
        evaluates = self.done or bool(config.eval_every and step % config.eval_every == 0)
        saves = bool(config.save_every and step % config.save_every == 0)
        if evaluates or result.skipped or step == 1 or step % config.log_every == 0:
            self._log(result, self.evaluate() if evaluates else {}, wall)
        if self.best is not None and self.best["step"] == step and config.save_best and config.eval_every:
            saves = True
        if saves:
            self.save()

    def _log(self, result: StepResult, evaluated: dict[str, float], wall: float) -> None:
        row: dict[str, Any] = {
            "step": self.step,
            "loss": result.loss if _finite(result.loss) else None,
            "tokens": self.clock.tokens,
            "seconds": round(self.clock.seconds, 4),
            "cpu_seconds": round(self.clock.cpu_seconds, 4),
            "flops": self.clock.flops,
            "lr": result.lr,
            "grad_norm": result.grad_norm if _finite(result.grad_norm) else None,
            "tokens_per_second": round(self.task.tokens_per_step / wall, 1),
            **statistics_row(result.stats),
            **evaluated,
        }
        if result.skipped:
            row["skipped"] = True
            self.progress.say(f"step {self.step - 1}: not finite, batch skipped")
        self._last = row
        if self._folder is not None:
            self._folder.append_metrics(row)
        if self._loggers is not None:
            self._loggers.log(self.step, row)
        self.progress.update(self.step, row)

    def evaluate(self) -> dict[str, float]:
        """Return validation figures now; a new best is noted."""
        figures = self.engine.evaluate()
        loss = figures.get("val_loss")
        if loss is not None and (self.best is None or loss < self.best["val_loss"]):
            # By loss alone, whatever ranks the task: it is there in every one.
            self.best = {"step": self.step, "val_loss": loss}
        self._figures = figures
        return figures

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one. A collective call with several ranks."""
        if self._saved_step == self.step:
            return
        nothing: dict[str, Any] = {}
        state = self.ranks.together(self._state, nothing)
        if self.engine.kind != "fsdp2" or not self._save_parts(state):
            model = whole_state(self.engine.model, keep=self.ranks.first)
            optimizer = dict(self.engine.optimizers.state()) if self.ranks.first else _drain(self.engine.optimizers)
            self.ranks.together(lambda: self._save_whole(model, optimizer, state), None)
        self._saved_step = self.step

    def _save_parts(self, state: Mapping[str, Any]) -> bool:
        """Write a checkpoint to which every rank adds its parts; False where they do not see one folder."""
        model, optimizer = own_state(self.engine.model), dict(self.engine.optimizers.own_state())
        folder = self.out / CHECKPOINTS
        saved = checkpoints.save_in_parts(folder, self.step, self.ranks, model=model, optimizer=optimizer, state=state)
        if saved:
            self.ranks.together(lambda: self._prune(folder), None)
        return saved

    def _save_whole(self, model: dict[str, Any], optimizer: dict[str, Any], state: Mapping[str, Any]) -> None:
        folder = self.out / CHECKPOINTS
        checkpoints.save_checkpoint(folder, self.step, model=model, optimizer=optimizer, state=state)
        self._prune(folder)

    def _prune(self, folder: Path) -> None:
        best = int(self.best["step"]) if self.best else None
        checkpoints.prune_checkpoints(folder, keep=self.config.keep, best=best)

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside tensors, once the metrics up to it are on the disk."""
        assert self._folder is not None
        # The metrics first: no checkpoint may be newer than they are.
        self._folder.sync_metrics()
        return {
            "step": self.step,
            "clock": vars(self.clock),
            "best": self.best,
            "last": self._last,
            "decisions": self.decisions.to_dict(),
            "config": self._resolved,
            "data": plain(self.task.fingerprint),
            "timings": self._timings,
        }

    def close(self) -> None:
        """Let the run folder and the process group go."""
        if self._loggers is not None:
            self._loggers.close()
            self._loggers = None
        if self._folder is not None:
            self._folder.close()
            self._folder = None
        if hasattr(self, "engine"):
            self.engine.unwrap()
        self.ranks.close()

    # Setting up.

    def _prepare_folder(self, resolved: Mapping[str, Any], resume: bool) -> checkpoints.Checkpoint | None:
        """Check or write the configuration, on the first rank; returns the checkpoint to continue from."""
        folder = self._folder
        assert folder is not None
        if not resume:
            self.task.save_assets(folder.path)
            self._write_environment()
            # Last, as it makes the folder a run.
            folder.write_config(resolved)
            return None
        loaded, shorter = resumption(folder, resolved, self.task.fingerprint, self._meaning)
        if shorter is not None:
            self._note_extension(shorter, loaded)
            folder.write_config(resolved)
        # The same data makes the same tokenizer or labels: a folder that lost them has them again.
        self.task.save_assets(folder.path)
        return loaded

    def _note_extension(self, shorter: Mapping[str, Any], loaded: checkpoints.Checkpoint | None) -> None:
        """Word what more steps than the run was to make do to its schedule."""
        step = int(loaded.state.get("step", 0)) if loaded is not None else 0
        had = replace(self.config, steps=shorter["steps"], warmup=shorter["warmup"])
        # Said aloud: a stretched schedule is not the run that would have been made from the start.
        before, now = lr_factor(step, had), lr_factor(step, self.config)
        self._extension = f"extended from {shorter['steps']} to {self.config.steps} steps"
        if before != now:
            self._extension += (
                f": the {self.config.schedule} schedule is stretched over them, so the next step's learning rate is "
                f"{now:.3g} of the peak and not {before:.3g}; a run of {self.config.steps} steps from the start would "
                "have had other rates until here"
            )

    def _stored_decisions(self, loaded: checkpoints.Checkpoint | None) -> Decisions | None:
        """Return what this run decided before it was interrupted; the folder knows before the first checkpoint does."""
        if self._folder is None:
            return None
        stored = Decisions.from_dict(self._folder.read_environment().get("decisions"))
        return stored or (Decisions.from_dict(loaded.state.get("decisions")) if loaded else None)

    def _restore(self, loaded: checkpoints.Checkpoint) -> None:
        self.engine.load(loaded)
        state = loaded.state
        try:
            self.step = self._saved_step = int(state["step"])
            self.clock = Clock(**state["clock"])
            self.best, self._last = state["best"], state["last"]
            self._timings = list(state["timings"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the last checkpoint's state.json is not as it was written: {error!r}") from error

    # Small matters.

    def _note_decision(self, decisions: Decisions, reason: str) -> None:
        """Keep a decision with the run, and say it."""
        self.decisions = decisions
        self.progress.say(reason)
        self._write_environment()

    def _stopped(self) -> bool:
        """Return whether a signal asked any rank to end."""
        if self.ranks.size == 1:
            return self._stop.signal is not None
        flag = torch.tensor([self._stop.signal or 0], device=self.ranks.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        if int(flag):
            self._stop.signal = int(flag)
        return bool(flag)

    def _interrupted(self) -> None:
        self.save()
        assert self._stop.signal is not None
        message = f"stopped and saved at step {self.step} of {self.config.steps}; --resume continues"
        raise Interrupted(self._stop.signal, message)

    def _sum_up(self) -> None:
        row, clock = self._last, self.clock
        # All that the task's evaluation gives, the figure by which it is ranked among them.
        names = dict.fromkeys(["loss", "val_loss", *self._figures])
        parts = [f"{name} {row[name]:.4f}" for name in names if isinstance(row.get(name), int | float)]
        compiling = f", {clock.compile_seconds:.1f} s of it compiling" if clock.compile_seconds else ""
        self.progress.say(f"step {self.step}: {', '.join(parts)}; {clock.seconds:.1f} s training{compiling}")

    def _write_environment(self) -> None:
        if self._folder is None:
            return
        decisions = getattr(self, "decisions", None)
        self._folder.write_environment(
            describe_environment(self.ranks.device, self.ranks.size)
            | {"data": self.task.fingerprint, "decisions": decisions.to_dict() if decisions else None}
        )

    def _say(self, line: str) -> None:
        if self.config.progress:
            # Asked for at the time: what shows lines is made when the run begins.
            self.progress.say(line)
        else:
            print(line, file=sys.stderr, flush=True)


def _drain(optimizers: Any) -> dict[str, Any]:
    """Take part in gathering the optimizer's state without keeping it."""
    for _ in optimizers.state():
        pass
    return {}


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
