"""Where a run's figures go beside metrics.jsonl: TensorBoard, and whatever a plug-in registers.

A logger is opened with the run and told every line of metrics. It watches: one that fails is named and left out, and
the training goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from blockyard.errors import InputError, MissingExtra, suggest
from blockyard.registry.register import broken_plugin
from blockyard.registry.yamlfile import write_yaml

ENTRY_POINTS = "blockyard.loggers"


class Logger(Protocol):
    """Takes the figures of one run."""

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl: numbers, None where one is not finite, true for `skipped`."""
        ...

    def close(self) -> None:
        """Let everything go; called once, when the run ends or is interrupted."""
        ...


OpenLogger = Callable[[Path, Mapping[str, Any], int], Logger]
"""Opens a logger: the run folder, the resolved options by group, the step that the run stands at (0 for a new one)."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run: every figure as a scalar, the configuration as text.

    Args:
        folder: the run's.
        options: all of the run's, by group.
        step: where the run stands; what was logged of later steps is purged.

    Raises:
        MissingExtra: when TensorBoard is not installed.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            # torch's own module is there, the package behind it is not.
            raise MissingExtra(
                f"train.log=tensorboard: {error.name} is not installed; run: pip install 'blockyard[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        # Four blanks: Markdown shows it as it stands.
        text = "".join(f"    {line}\n" for line in write_yaml(options).splitlines())
        self._writer.add_text("config", text, step)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_registered: dict[str, OpenLogger] = {"tensorboard": TensorBoard}


def register_logger(name: str) -> Callable[[OpenLogger], OpenLogger]:
    """Register what opens a logger, a class or a function, as `--train.log NAME`.

    Raises:
        InputError: for a name that is taken, or that a list of names cannot hold.
    """
    if not name or "," in name or name != name.strip():
        raise InputError(f"{name!r} is no name for a logger: it is one word of a list with commas")

    def keep(opens: OpenLogger) -> OpenLogger:
        if _registered.setdefault(name, opens) is not opens:
            raise InputError(f"there is a logger {name!r} already; give this one another name")
        return opens

    return keep


def logger_names() -> list[str]:
    """Return all known loggers: built in, registered and installed."""
    return list(dict.fromkeys([*_registered, *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))]))


def find_loggers(listed: str | None) -> dict[str, OpenLogger]:
    """Return what opens the loggers of a list with commas, by name.

    Raises:
        InputError: for an unknown name, or an installed logger that cannot be imported.
    """
    names = [name.strip() for name in (listed or "").split(",")]
    return {name: _find(name) for name in names if name}


def _find(name: str) -> OpenLogger:
    if name not in _registered:
        for point in metadata.entry_points(group=ENTRY_POINTS):
            if point.name == name:
                # What opens it, or a module that registers it.
                try:
                    found = point.load()
                    if callable(found):
                        _registered.setdefault(name, found)
                except (Exception, SystemExit) as error:
                    raise InputError(broken_plugin(f"logger {name!r}", point, error)) from error
    if name not in _registered:
        near = suggest(name, logger_names()) or f"; there are: {', '.join(logger_names())}"
        raise InputError(f"train.log={name!r} is no logger{near}")
    return _registered[name]


class Loggers:
    """The loggers of a run.

    Args:
        opens: what opens each, by name.
        folder: the run's.
        options: all of the run's, by group.
        step: where the run stands.
        say: shows a line.

    Raises:
        InputError: when a logger refuses what it is given, or its package is not installed.
    """

    def __init__(
        self,
        opens: Mapping[str, OpenLogger],
        folder: Path,
        options: Mapping[str, Any],
        step: int,
        say: Callable[[str], None],
    ) -> None:
        self._open: dict[str, Logger] = {}
        self._say = say
        # Nothing is shown while a run is set up: what failed there is said with the first line.
        self._unsaid: list[str] = []
        for name, make in opens.items():
            try:
                self._open[name] = make(folder, options, step)
            except InputError:
                self.close()
                raise
            except Exception as error:
                self._unsaid.append(_failure(name, "on opening", error))

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Tell all a line of metrics."""
        while self._unsaid:
            self._say(self._unsaid.pop(0))
        for name, logger in list(self._open.items()):
            try:
                # A copy each: what one does to it is not told to the next, nor to the run.
                logger.log(step, dict(row))
            except Exception as error:
                del self._open[name]
                self._say(_failure(name, f"at step {step}", error))
                self._close(name, logger, told=True)

    def close(self) -> None:
        """Close all; may be called twice."""
        opened, self._open = self._open, {}
        for name, logger in opened.items():
            self._close(name, logger)

    def _close(self, name: str, logger: Logger, *, told: bool = False) -> None:
        try:
            logger.close()
        except Exception as error:
            # Of one that has failed already nothing new is learnt.
            if not told:
                self._say(_failure(name, "on closing", error))


def _failure(name: str, where: str, error: Exception) -> str:
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"the logger {name} failed {where} and is left out: {type(error).__name__}: {first}"
