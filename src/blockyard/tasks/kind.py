"""What a task is to the rest of the package: its data, its model, and how good is told.

A kind of task is a subclass of `TaskKind` that says how to load data, build a model and make both into a `Task` for
the training loop. `train NAME`, `compare NAME`, resume and `load_run` follow from it. Kinds are looked up by name like
blocks: built in (imported on first use), installed (entry points in the group `blockyard.tasks`) or decorated in a
plug-in.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from blockyard.errors import InputError, suggest
from blockyard.registry.builtin import TASKS
from blockyard.registry.register import broken_plugin

if TYPE_CHECKING:
    from torch import nn

    from blockyard.models.config import BlocksConfig
    from blockyard.report.parts import Parts
    from blockyard.training.config import TrainConfig
    from blockyard.training.task import Task

ENTRY_POINTS = "blockyard.tasks"
DEFAULT = "lm"


class TaskData(Protocol):
    """What loading a task's data gives.

    Attributes:
        fingerprint: what identifies the data: "source" and "sha256", sizes; a name ending in "sha256" is compared on
            resume.
        assets: what using a trained model takes beside its weights (a tokenizer, labels, scales), or None.
    """

    @property
    def fingerprint(self) -> dict[str, Any]: ...

    @property
    def assets(self) -> Any: ...


M = TypeVar("M", bound="BlocksConfig")
D = TypeVar("D")
X = TypeVar("X", bound=TaskData)


@dataclass(frozen=True)
class Run(Generic[M, D]):
    """Everything that defines a run of a task.

    Args:
        model: the architecture; what follows from the data (a vocabulary's size, say) is set once that is loaded.
        data: the data.
        train: the training.
        plugins: modules whose import registers further implementations or tasks.
        task: the kind of task, by name.
    """

    model: M
    data: D
    train: TrainConfig
    plugins: tuple[str, ...] = ()
    task: str = DEFAULT

    @property
    def kind(self) -> TaskKind[M, D, Any]:
        return task_kind(self.task)


@dataclass(frozen=True)
class Quality:
    """The figure by which choices are ranked.

    Args:
        metric: in words.
        unit: its unit, "" for a plain number.
        key: its name among the figures of the task's `evaluate`.
        better: whether lower or higher is better.
        loss_unit: unit of the training and validation loss, where the quality is another figure.
        margin: differences that do not matter; None for a part of the best figure (`report.stats.MARGIN`).
        facts: what else readers of a report should know about it.
    """

    metric: str = "validation loss"
    unit: str = "nats"
    key: str = "val_loss"
    better: Literal["lower", "higher"] = "lower"
    loss_unit: str = ""
    margin: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassifyOptions:
    """How to classify.

    Args:
        format: table (for people), csv or json (one object per row or frame).
        top: classes shown for each, the likeliest first.
        checkpoint: last, or best by validation loss.
        text_field: column or field of the text, for runs of `train classify`; the run's own when not given.
        label_field: column or field of the true label, if the file has one; the run's own when not given.
        batch_size: rows of text that are classified at once.
        scale: for runs of `train signal`: power divides the file's samples by their root mean square and multiplies by
            that of the training's middle SNR; none takes them as they are; auto is power for files whose power no
            training frame had.
        snr: for runs of `train signal --model.condition snr`: SNR of the file in dB (Es/N0); without it, that of the
            file's SigMF annotations.
        detect: for runs of `train signal`: find bursts in time and frequency first, bring each to 0 Hz and to the
            training's samples a symbol, and classify those; a row is a burst then, and there is none where nothing is.
        by: for runs of `train signal`: a row for each frame, or one vote for each annotation of the file, or for each
            file.
        waterfall: for runs of `train signal`: draw power over time and frequency there, with what was found.
        annotations: for runs of `train signal`: write what was found there as SigMF annotations.
        out: where the rows are written, which is none of the files that are read; None means standard output.
        data: what the task's own options say of how files are read, by name; empty means the task's defaults.
    """

    format: Literal["table", "csv", "json"] = "table"
    top: int = 1
    checkpoint: Literal["last", "best"] = "last"
    text_field: str | None = None
    label_field: str | None = None
    batch_size: int = 32
    scale: Literal["auto", "power", "none"] = "auto"
    snr: float | None = None
    detect: bool = False
    by: Literal["frame", "annotation", "file"] = "frame"
    waterfall: str | None = None
    annotations: Path | None = None
    out: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def likeliest(probabilities: Sequence[float], classes: Sequence[str], top: int) -> list[dict[str, Any]]:
    """Return the `top` classes with their probabilities, the likeliest first."""
    order = sorted(range(len(classes)), key=lambda c: -probabilities[c])[:top]
    return [{"class": classes[c], "probability": round(probabilities[c], 4)} for c in order]


class TaskKind(ABC, Generic[M, D, X]):
    """One kind of task.

    Attributes:
        name: as in `blockyard train NAME`.
        title: what the model is: "language model".
        data_title: what the data are: "the text".
        model_config: the model's dataclass; its fields are the options of the group `model`.
        data_config: the data's dataclass; its fields are the options of the group `data`.
        from_data: fields of the model's configuration that follow from the data, with the values they have until then;
            no options.
        unit: what is counted as input: tokens, samples or windows, in the singular.
        attn: the default mixer of `train NAME`.
        ffn: the default FFN of `train NAME`.
        choice_ffn: the FFN of a choice of `compare NAME` that names none.
        train_defaults: options of the training whose defaults this task has otherwise.
        compare_defaults: likewise of the terms of `compare NAME`, such as its budget.
        own_data_options: data options that may differ between runs that are compared: paths and caches, whose
            content is compared instead.
        decodes: whether the model writes its own input, token by token, with a cache.
    """

    name: str
    title: str
    data_title: str = "the data"
    model_config: type[M]
    data_config: type[D]
    from_data: Mapping[str, Any] = MappingProxyType({})
    unit: str = "token"
    attn: str = "standard"
    # Squared ReLU reaches a lower loss than SwiGLU per CPU-second: 1.951 and 1.960 nats per byte after ten at 0.8M
    # parameters, the other defaults being the same (`lm`, one seed).
    ffn: str = "relu2"
    choice_ffn: str = "swiglu"
    train_defaults: Mapping[str, Any] = {}
    compare_defaults: Mapping[str, Any] = {}
    own_data_options: tuple[str, ...] = ("path", "cache_dir")
    decodes: bool = False

    @abstractmethod
    def load_data(self, data: D, model: M) -> X:
        """Read the data.

        Raises:
            InputError: for data that cannot be used, naming file and row where there are any.
        """

    @abstractmethod
    def make_task(self, run: Run[M, D], data: X) -> Task:
        """Return the task of a run whose model fits the data; its weights are a function of train.seed (see
        `seeded`)."""

    @abstractmethod
    def build_model(self, model: M) -> nn.Module:
        """Return an untrained model."""

    def fit(self, model: M, assets: Any) -> M:
        """Return the model's configuration with the fields of `from_data` set from the assets."""
        return model

    def load_assets(self, folder: Path) -> Any:
        """Return what the task's `save_assets` wrote into a run folder.

        Raises:
            InputError: when it is missing or damaged.
        """
        return None

    def named_assets(self, data: D) -> Any:
        """Return the assets that the options of the data name, such as a tokenizer; None where the data themselves
        decide."""
        return None

    def report(self) -> Parts:
        """Return what the task adds to a comparison and its report."""
        from blockyard.report.parts import Parts

        return Parts()

    def classify(self, trained: Any, file: Path, options: ClassifyOptions) -> Iterable[dict[str, Any]]:
        """Return classes for the rows or frames of a file, for `blockyard classify RUN FILE`.

        Args:
            trained: what `load_run` gives: a model, its assets and its run.
            file: the user's.
            options: what is asked for.

        Returns: one entry per row or frame, as they come (a file may be larger than the memory): where it is, its true
            `label` if the file has one, and what it `is` (see `likeliest`).

        Raises:
            InputError: when the task does not classify, or for a file that cannot be used.
        """
        raise InputError(f"a run of `train {self.name}` does not classify")

    def quality(self, data: X) -> Quality:
        """Return the figure by which choices are ranked."""
        return Quality()

    def references(self, data: X) -> dict[str, Any]:
        """Return what stands beside the quality in a comparison's report, such as baselines; asked once, and not by
        searches: it may look at a test part."""
        return {}

    def beside(self, folder: Path, run: Run[M, D], data: X) -> dict[str, Any]:
        """Return the figures of a trained run on the validation data of others, as plain data, for `compare --beside`.

        Args:
            folder: a run folder of this task.
            run: what all choices share.
            data: theirs.

        Raises:
            InputError: when the task cannot, or the run cannot be loaded.
        """
        raise InputError(f"runs of the task {self.name!r} cannot be shown beside others")

    def sample_data(self, run: Run[M, D]) -> X:
        """Return data of the same shape for measuring memory: made up where the true ones take long to read."""
        return self.load_data(run.data, run.model)

    def data_bytes(self, data: D, model: M) -> int:
        """Return the least memory that `load_data` takes, by the options alone: for data that are made up."""
        return 0

    def older_data(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return options of the data that an older version could not write, at the values that its runs had.

        Args:
            data: the options that a run folder holds.
        """
        return {}

    def at_length(self, model: M, length: int) -> M | None:
        """Return the same model for rows of another length, to measure how its speed scales; None if it has but one.

        A kind that gives one makes up `sample_data` of any length.
        """
        return None

    def figures(self, run: Run[M, D], data: X, model: nn.Module) -> dict[str, Any]:
        """Return further figures of a trained model for the report, as plain data: {"accuracy over SNR": [...]}, say.

        Computed once, when a run of a comparison has ended; the model is in eval mode and gradients are off.
        """
        return {}

    def terms(self, run: Run[M, D], data: X) -> dict[str, Any]:
        """Return what of the data must be the same for runs to be comparable, as flat plain data."""
        options: Any = run.data
        kept = {f"data.{key}": value for key, value in asdict(options).items() if key not in self.own_data_options}
        return {"data sha256": data.fingerprint.get("sha256"), **kept}


_registered: dict[str, TaskKind[Any, Any, Any]] = {}
K = TypeVar("K", bound="type[TaskKind[Any, Any, Any]]")


def register_task(cls: K) -> K:
    """Return a class decorator that registers a kind of task under its `name`.

    Raises:
        InputError: when another class has the name, or it cannot be a word of a command.
    """
    name = cls.name
    if not callable(cls.report):
        raise InputError(f"task {name!r}: report={cls.report!r} should be a method that returns the task's Parts")
    if not name.isidentifier():
        raise InputError(f"task name {name!r} should be one word of letters, digits and _")
    known = _registered.get(name)
    # The same class registered again is a module reload, not a clash.
    again = known is not None and _place(type(known)) == _place(cls)
    if (known is not None and not again) or TASKS.get(name, cls.__module__) != cls.__module__:
        raise InputError(f"task name {name!r} is already registered; choose another name")
    _registered[name] = cls()
    return cls


def _place(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def task_names() -> list[str]:
    """Return all known tasks: built in, installed and decorated."""
    installed = [point.name for point in metadata.entry_points(group=ENTRY_POINTS)]
    return list(dict.fromkeys([*TASKS, *installed, *_registered]))


def has_more_tasks() -> bool:
    """Return whether a task is registered or installed beside those that are built in."""
    return any(name not in TASKS for name in task_names())


def task_kind(name: str) -> TaskKind[Any, Any, Any]:
    """Return the kind of a name.

    Raises:
        InputError: for an unknown name, with the nearest known one, or an installed one that cannot be imported.
    """
    if name not in _registered and name in TASKS:
        importlib.import_module(TASKS[name])
    if name not in _registered:
        for point in metadata.entry_points(group=ENTRY_POINTS):
            if point.name == name:
                # The class or its module: the decorator has registered it by the time it is imported.
                try:
                    point.load()
                except (Exception, SystemExit) as error:
                    raise InputError(broken_plugin(f"task {name!r}", point, error)) from error
    if name not in _registered:
        near = suggest(str(name), task_names()) or f"; there are: {', '.join(task_names())}"
        raise InputError(f"no task named {name!r}{near}")
    return _registered[name]
