"""What stands beside a worker on another machine: starts it there, hands on what it says, asks it to stop.

Its process is the worker's starter. When that goes, by whatever way, the worker's standard input ends, and it saves and
stops by itself.
"""

from __future__ import annotations

import queue
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import blockyard
from blockyard.compare.processes import ProcessWorker
from blockyard.errors import InputError
from blockyard.machine.memory import forcing
from blockyard.mirror import Mirror, keep_sending, relative, scratch


def versions_here() -> dict[str, str]:
    """Return the versions that must be the same on all machines: runs of others would not be the same runs."""
    # A build for another accelerator is still the same version.
    return {"blockyard": blockyard.__version__, "torch": version("torch").partition("+")[0]}


def moved(value: Any, before: str, now: str) -> Any:
    """Return plain data in which paths within a folder are within another one."""
    if isinstance(value, str):
        return now + value[len(before) :] if value == before or value.startswith(f"{before}/") else value
    if isinstance(value, Mapping):
        return {key: moved(item, before, now) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [moved(item, before, now) for item in value]
    return value


def inner_folders(request: Any, folder: Path) -> set[str]:
    """Return what of a folder a request names, relative to it; "" is all of it."""
    if isinstance(request, str):
        path = Path(request)
        return {relative(path, folder)} if path.is_relative_to(folder) else set()
    if isinstance(request, Mapping):
        request = list(request.values())
    if isinstance(request, list | tuple):
        return {inner for item in request for inner in inner_folders(item, folder)}
    return set()


class Keeper:
    """A worker's starter on its machine.

    Args:
        module: what the worker runs, as `python -m`.
        request: what it is asked, as plain data.
        here: of the machine that asks: its current folder `cwd`, a file `probe` that holds `token` where the storage is
            shared, its `versions`, and whether memory is `forced`; where the storage is a URL, the `url` too, and the
            `local` folder that is kept there.

    What is wrong with this machine is told at the first `hear`: an actor whose constructor fails says it badly.
    """

    def __init__(self, module: str, request: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._worker: ProcessWorker | None = None
        self._mirror: Mirror | None = None
        # Closed when the worker has ended; what was sent by then is what is there.
        self._open = ExitStack()
        try:
            if "url" in here:
                self._mirror = Mirror(here["url"], self._open.enter_context(scratch(here["url"])))
            self._wrong = self._refusal(here, self._mirror)
            if self._wrong is not None:
                return
            if self._mirror is not None:
                request = moved(request, here["local"], str(self._mirror.local))
                self._mirror.pull(inner_folders(request, self._mirror.local))
                self._open.enter_context(keep_sending(self._mirror))
        except InputError as error:
            self._wrong = f"{socket.gethostname()}: {error}"
            return
        # Paths that the user gave are read from where they were given; plug-ins, too.
        with forcing(here["forced"]):
            self._worker = ProcessWorker(module, request, self._lines.put, folder=here["cwd"])

    def hear(self, seconds: float) -> tuple[list[str], dict[str, Any] | None]:
        """Return the lines that came since it was last asked, waiting so long for one, and how the worker ended.

        Raises:
            InputError: when this machine cannot do the work.
        """
        if self._wrong is not None:
            raise InputError(self._wrong)
        assert self._worker is not None
        # Before the lines: what was said before it ended is then among them.
        ending = self._worker.poll()
        lines: list[str] = []
        try:
            while True:
                lines.append(self._lines.get(timeout=0 if lines or ending is not None else seconds))
        except queue.Empty:
            if ending is not None and self._mirror is not None:
                # Before anybody hears of the end.
                self._mirror.push()
                self._mirror = None
                self._open.close()
            return lines, None if ending is None else asdict(ending)

    def stop(self) -> None:
        """Ask the worker to save and stop."""
        if self._worker is not None:
            self._worker.stop()

    @staticmethod
    def _refusal(here: Mapping[str, Any], mirror: Mirror | None = None) -> str | None:
        """Return why this machine cannot do the work; None when it can."""
        name, probe = socket.gethostname(), Path(here["probe"])
        try:
            found = probe.read_bytes() if mirror is None else mirror.read(probe.name)
        except OSError:
            found = None
        if found != here["token"].encode():
            if mirror is not None:
                return f"{name} does not see what {mirror.shown} holds: it is another place there"
            folder = Path(here["probe"]).parent
            return f"{name} does not see {folder}: put --out on storage that all machines of the cluster share"
        if not Path(here["cwd"]).is_dir():
            return f"{name} has no folder {here['cwd']}: start the command from a folder that all machines see"
        for package, mine in versions_here().items():
            if mine != here["versions"][package]:
                return f"{name} has {package} {mine}, and {here['versions'][package]} is asked for"
        return None
