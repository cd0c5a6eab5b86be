"""Whole runs: train a task from option groups, and load what a run folder holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from blockyard.errors import InputError, at_least
from blockyard.files import write_atomically
from blockyard.machine.launch import is_first
from blockyard.machine.memory import forcing
from blockyard.mirror import fetched, is_url
from blockyard.models.config import BlocksConfig
from blockyard.models.estimate import counted
from blockyard.registry.options import options_of
from blockyard.registry.plugins import load_file_plugins, load_plugins
from blockyard.report.notebook import small_table
from blockyard.tasks.kind import Run
from blockyard.tasks.meaning import RunMeaning, as_begun, missing_options, with_older
from blockyard.tasks.settings import as_groups, resolve
from blockyard.tasks.sizes import check_data, check_model, check_training
from blockyard.training.checkpoint import list_checkpoints, load_checkpoint, model_shapes
from blockyard.training.distributed import check_shapes, load_whole_state
from blockyard.training.folder import CHECKPOINTS, CONFIG, check_run_folder, read_config
from blockyard.training.task import Task, check_task
from blockyard.training.trainer import Trainer

# What says of a run that its weights came from a foreign model (`pretrained/folder.py`).
ORIGIN = "origin.json"
# Run folders whose gaps have been told.
_told: set[Path] = set()


class Trained(NamedTuple):
    """What a run folder holds.

    Attributes:
        model: the trained model, in eval mode.
        assets: what using it takes beside its weights: a tokenizer, labels, scales.
        run: its configuration.
    """

    model: Any
    assets: Any
    run: Run[Any, Any]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what was trained, how and on what, and the model's own table."""
        train, data = self.run.train, self.run.data
        source = getattr(data, "path", None)
        facts = [
            ["blocks", self.run.model.choice],
            ["training", f"{train.steps:,} steps of {train.batch_size} rows, {train.optimizer}, seed {train.seed}"],
            ["data", "the default of the task" if source is None else str(source)],
        ]
        if self.assets is not None:
            facts.append(["assets", type(self.assets).__name__])
        told = small_table(f"A run of train {self.run.task}", ["", "what it is"], facts)
        # A plug-in's model need not be a trunk.
        return told + (self.model._repr_html_() if hasattr(self.model, "_repr_html_") else "")


def train(
    groups: Mapping[str, Any],
    out: Path | str,
    resume: bool = False,
    *,
    task: str | None = None,
    force: bool = False,
    before: Callable[[Any], None] | None = None,
) -> Path:
    """Train a model into a run folder.

    The commands `train price` and `train signal` calibrate and test what was trained: in Python that is a call of its
    own, `finish_run(out)` of `blockyard.tasks.price` or `blockyard.tasks.signal`.

    Args:
        groups: option groups, as `blockyard.tasks.settings.resolve` reads them.
        out: the run folder.
        resume: continue the run in it.
        task: the kind of task; `task` of the groups, or a language model, when not given.
        force: train also what by its estimate does not fit into memory.
        before: told the task when it is made, before the first step of a new run.

    Returns: the run folder.

    Raises:
        InputError: for anything that the user can put right.
        Interrupted: after SIGTERM or SIGINT, when the run has been saved.
    """
    if resume and (Path(out) / CONFIG).is_file():  # without one it is refused later, for all ranks
        load_plugins(tuple(groups.get("plugins") or ()))
        groups = as_begun(groups, read_config(Path(out)), task)
    run = resolve(groups, task)
    if is_first():
        # Before the data are read; asked again with the folder in hand.
        check_run_folder(Path(out), resume=resume)
    # A run that goes on has its weights in its checkpoint; where it began need not be there any more.
    begins = not (resume and list_checkpoints(Path(out) / CHECKPOINTS))
    with forcing(force):
        made = make_task(run, begins=begins)
    trainer = open_trainer(run, made, out, resume=resume)
    try:
        if begins and run.train.init is not None and is_first():
            _keep_origin(Path(run.train.init), Path(out))
        if before is not None and not resume and is_first():
            before(made)
        return trainer.run()
    finally:
        trainer.close()


def open_trainer(run: Run[Any, Any], task: Task, out: Path | str, *, resume: bool) -> Trainer:
    """Make the trainer of a run, its task made already; one that is resumed is compared with what it began with."""
    return Trainer(task, run.train, out, resolved=as_groups(run), resume=resume, meaning=RunMeaning())


def train_lm(groups: Mapping[str, Any], out: Path | str, resume: bool = False) -> Path:
    """Train a language model into a run folder; see `train`."""
    return train(groups, out, resume, task="lm")


def make_task(run: Run[Any, Any], *, begins: bool = True) -> Task:
    """Load the data and build the model.

    Args:
        run: the run.
        begins: give the model the weights that `train.init` names, if it names a run.

    Raises:
        InputError: also for what does not fit into memory, before it is read or built.
    """
    if begins and run.train.init is not None:
        # Reading the data may take minutes.
        check_beginning(run)
    fitted, data = DataCache().fitted(run)
    if is_first():
        for note in getattr(data, "notes", ()):
            print(f"note: {note}", file=sys.stderr)
    task = run.kind.make_task(fitted, data)
    check_task(task)
    if begins and run.train.init is not None:
        begin_with(task, run, data.assets)
    return task


def begin_with(task: Any, run: Run[Any, Any], assets: Any) -> None:
    """Give a task's model the last weights of the run that `train.init` names.

    Args:
        task: the task, its model built.
        run: its run.
        assets: what goes with its data: a tokenizer must be the one that the weights were trained with.

    Raises:
        InputError: for no run or one of another task, another tokenizer, or weights that do not fit the model.
    """
    folder, checkpoint = _begun(run)
    _check_tokenizer(folder, run.kind.load_assets(folder), assets)
    saved = load_checkpoint(checkpoint, with_optimizer=False)
    run.train.match(task.model, saved.model)
    with _told_of(folder):
        load_whole_state(task.model, saved.model)


def _check_tokenizer(folder: Path, theirs: Any, ours: Any) -> None:
    if hasattr(theirs, "fingerprint") and theirs.fingerprint() != ours.fingerprint():
        own = folder / "tokenizer"
        raise InputError(f"train.init={str(folder)!r} was trained with another tokenizer: give --data.tokenizer {own}")


def check_beginning(run: Run[Any, Any]) -> None:
    """Refuse a model that the weights of the run that `train.init` names do not fit, before any data are read.

    Raises:
        InputError: also for no run, one of another task, another tokenizer than is named, or a model that does not fit
            into memory.
    """
    check_training(run, fitted=False)
    folder, checkpoint = _begun(run)
    theirs, named = run.kind.load_assets(folder), run.kind.named_assets(run.data)
    if named is not None:
        # One that the text decides is known when that is read.
        _check_tokenizer(folder, theirs, named)
    shapes = model_shapes(checkpoint)
    # With their vocabulary: whether the run's own data have it is known when they are read.
    model = _fitted(run, theirs, folder)

    def build() -> Any:
        made = run.kind.build_model(model)
        run.train.match(made, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        return made

    with _told_of(folder):
        check_shapes(counted(build, "the model"), shapes)


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    """Say with weights that do not fit whose they are, and what to do."""
    try:
        yield
    except InputError as error:
        advice = "leave the model as that run has it (`blockyard transplant` puts other blocks into a trained one)"
        raise InputError(f"train.init={str(folder)!r}: {error}; {advice}") from None


def _begun(run: Run[Any, Any]) -> tuple[Path, Path]:
    """Return the folder that `train.init` names and its last checkpoint."""
    folder = Path(str(run.train.init))
    groups = read_config(folder)
    if groups.get("task", run.task) != run.task:
        raise InputError(f"train.init={str(folder)!r} is a run of `train {groups['task']}`, not of `train {run.task}`")
    found = list_checkpoints(folder / CHECKPOINTS)
    if not found:
        raise InputError(f"train.init={str(folder)!r} holds no checkpoint yet; let its training reach one")
    return folder, found[-1][1]


def _keep_origin(begun: Path, out: Path) -> None:
    """Copy what says which foreign model the weights once were, so that they can go back to its architecture."""
    if (begun / ORIGIN).is_file():
        write_atomically(out / ORIGIN, (begun / ORIGIN).read_bytes())


class DataCache:
    """A task's data, read again only for a run that needs others: other data options, or another model whose own
    options (a context, a horizon) the data may follow. Blocks and widths are never among these."""

    def __init__(self) -> None:
        self._key: Any = None
        self._data: Any = None

    def load(self, run: Run[Any, Any]) -> Any:
        """Return the run's data."""
        shape = set(BlocksConfig.__dataclass_fields__)
        key = (run.data, {k: v for k, v in vars(run.model).items() if k not in shape})
        if self._key != key:
            self._data, self._key = run.kind.load_data(run.data, run.model), key
        return self._data

    def fitted(self, run: Run[Any, Any]) -> tuple[Run[Any, Any], Any]:
        """Return the run with a model that fits its data, and the data.

        Raises:
            InputError: also for what does not fit into memory, before it is read or built.
        """
        check_data(run)
        check_training(run, fitted=False)
        data = self.load(run)
        fitted = replace(run, model=run.kind.fit(run.model, data.assets))
        check_training(fitted, fitted=True)
        return fitted, data


def read_run(folder: Path | str, *, plugins: Sequence[str] = (), trust: bool = False) -> Run[Any, Any]:
    """Return the configuration of a run folder, which may come from anywhere.

    Args:
        folder: a run folder.
        plugins: modules to import first, that the run may want.
        trust: import whatever modules the run's configuration names.

    Raises:
        InputError: when the folder holds no run, its configuration is not one, or it wants a plug-in that the caller
            neither names nor has imported.
    """
    folder = Path(folder)
    groups = read_config(folder)
    wanted = load_file_plugins(groups.get("plugins"), str(folder / CONFIG), plugins=plugins, trust=trust)
    return resolve(with_older({**groups, "plugins": wanted}))


def _fitted(run: Run[Any, Any], assets: Any, folder: Path) -> Any:
    """Return the model's configuration with what its assets say, which come from a file: sizes are whole numbers."""
    known = options_of(run.kind.model_config)
    try:
        model = run.kind.fit(run.model, assets)
        for name in run.kind.from_data:
            value = known[name].check(getattr(model, name))
            if isinstance(value, int):
                at_least(0, **{name: value})
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{folder} cannot be used: what it says of its data does not fit a model ({error})") from error
    return model


def tell_gaps(folder: Path, run: Run[Any, Any]) -> None:
    """Say once on standard error which options the configuration of a run leaves to the defaults."""
    lacking = missing_options(read_config(folder), run)
    if lacking and folder.absolute() not in _told:
        _told.add(folder.absolute())
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        print(
            f"note: {folder / CONFIG} does not say {', '.join(lacking[:5])}{more} (an older version wrote it); "
            "the defaults are taken",
            file=sys.stderr,
        )


def load_run(
    folder: Path | str,
    *,
    which: Literal["last", "best"] = "last",
    tasks: tuple[str, ...] | None = None,
    plugins: Sequence[str] = (),
    trust: bool = False,
) -> Trained:
    """Return a trained model in eval mode, its assets (a language model's tokenizer, say) and its configuration.

    Nothing in the folder runs as code, unless the caller agrees to its plug-ins.

    Args:
        folder: a run folder, or its URL.
        which: the last checkpoint, or the one with the lowest validation loss.
        tasks: the tasks that the caller can use; any when not given.
        plugins: as for `read_run`.
        trust: likewise.

    Raises:
        InputError: when the folder holds no run, no checkpoint, a damaged one, a run of another task, or one that wants
            a plug-in that is not agreed to.
    """
    if is_url(folder):
        with fetched(str(folder)) as local:
            return load_run(local, which=which, tasks=tasks, plugins=plugins, trust=trust)
    folder = Path(folder)
    run = read_run(folder, plugins=plugins, trust=trust)
    if tasks is not None and run.task not in tasks:
        raise InputError(f"{folder} holds a run of `train {run.task}`; this takes one of `train {' or '.join(tasks)}`")
    found = list_checkpoints(folder / CHECKPOINTS)
    if not found:
        raise InputError(f"{folder} holds no checkpoint yet; let its training reach one")
    loaded = load_checkpoint(found[-1][1], with_optimizer=False)
    best = loaded.state.get("best")
    if which == "best" and best:
        path = dict(found).get(int(best["step"]))
        if path is not None:
            loaded = load_checkpoint(path, with_optimizer=False)
    assets, written = run.kind.load_assets(folder), run
    run = replace(run, model=_fitted(run, assets, folder))
    check_model(run, f"the model of {folder}")
    model = run.kind.build_model(run.model)
    run.train.match(model, loaded.model)
    load_whole_state(model, loaded.model)
    # Last, so that a run that cannot be loaded is one line.
    tell_gaps(folder, written)
    return Trained(model.eval(), assets, run)
