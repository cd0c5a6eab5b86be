"""The run folder: one process at a time, readable files, and metrics that never contradict themselves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from blockyard.errors import InputError
from blockyard.files import (
    check_writable,
    make_folder,
    open_without_links,
    parse_json,
    plain,
    sweep,
    sync,
    write_atomically,
)
from blockyard.registry.yamlfile import read_yaml, write_yaml
from blockyard.training.checkpoint import list_checkpoints

CONFIG, METRICS, ENVIRONMENT, LOCK, CHECKPOINTS = (
    "config.yaml",
    "metrics.jsonl",
    "environment.json",
    "lock",
    "checkpoints",
)


def locked_folder(path: Path, lock: str, name: str, owner: str) -> IO[str]:
    """Make a folder if it is missing, hold its lock file until that is closed or the process ends, and sweep it.

    Args:
        path: the folder.
        lock: the lock file's name in it.
        name: the folder, as the errors name it.
        owner: what else may be using it.

    Raises:
        InputError: when it cannot be written, or is in use.
    """
    try:
        make_folder(path)
        file = open_without_links(path / lock, "a+")
    except OSError as error:
        raise InputError(f"cannot write to {name}: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InputError(f"{name} is in use by another {owner}") from error
    sweep(path)
    return file


def held(lock: Path) -> bool:
    """Whether a process holds a lock file; one that is missing is free."""
    try:
        with open_without_links(lock, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_run_folder(path: Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run, or with `resume` none, or that cannot be written; makes nothing.

    Raises:
        InputError: saying which.
    """
    there = (path / CONFIG).exists()
    if resume and not there:
        raise InputError(f"nothing to resume: {path} holds no run (no {CONFIG} in it)")
    if there and not resume:
        raise InputError(f"{path} already holds a run; give --resume to continue it, or another --out")
    check_writable(path, folder=True, name=f"to run folder {path}")


class RunFolder:
    """A folder that holds one run; taken for as long as this object is open.

    Args:
        path: the folder; made if missing.
        resume: whether a run in it is continued; without it the folder must not hold one.

    Raises:
        InputError: when the folder is in use, holds a run already (or none, with `resume`), or cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        check_run_folder(path, resume=resume)
        self._lock = locked_folder(path, LOCK, f"run folder {path}", "process")
        # Asked with the lock in hand: another process may have begun and ended a run here in the meantime.
        try:
            check_run_folder(path, resume=resume)
        except InputError:
            self._lock.close()
            raise
        for folder in path.iterdir():
            if folder.is_dir():
                sweep(folder)
        self._metrics: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = list_checkpoints(self.checkpoints)
        return found[-1][1] if found else None

    def write_config(self, resolved: Mapping[str, Any]) -> None:
        """Write config.yaml, the fully resolved options: `blockyard train ... --config` runs it again."""
        write_atomically(self.path / CONFIG, write_yaml(plain(resolved)))

    def read_config(self) -> dict[str, Any]:
        return read_config(self.path)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        write_atomically(self.path / ENVIRONMENT, json.dumps(plain(environment), indent=1) + "\n")

    def read_environment(self) -> dict[str, Any]:
        try:
            data = parse_json((self.path / ENVIRONMENT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def rewind_metrics(self, step: int) -> None:
        """Drop metrics of steps after `step` (they will come again) and a line that a kill cut short."""
        path = self.path / METRICS
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if parse_json(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError, OverflowError):
                continue
        write_atomically(path, "".join(kept))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        try:
            if self._metrics is None:
                self._metrics = open_without_links(self.path / METRICS, "a", encoding="utf-8")
                sync(self.path)
            self._metrics.write(json.dumps(row) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.path / METRICS}: {error.strerror or error}") from error

    def sync_metrics(self) -> None:
        """Flush the metrics to the disk, so that no checkpoint is newer than they are."""
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Let the folder go."""
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            # On a full disk closing fails as the write before it did, which was told.
            with contextlib.suppress(OSError):
                metrics.close()
        self._lock.close()


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved options of a run.

    Raises:
        InputError: when there is no run in the folder or its config.yaml cannot be read.
    """
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"{folder} holds no run: there is no {path}")
    return read_yaml(path)


def differing_keys(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    free: frozenset[str],
    default: Callable[[str, str], Any] = lambda group, key: None,
) -> list[str]:
    """Dotted names of options that differ between two resolved configurations, with both values.

    Args:
        free: names within the `train` group that may differ.
        default: of an option, by group and name, which it has where one of the two does not mention it.
    """
    found = []
    for group in sorted({*before, *now}):
        a, b = plain(before.get(group)), plain(now.get(group))
        if isinstance(a, dict) or isinstance(b, dict):
            a, b = a or {}, b or {}
            for key in sorted({*a, *b}):
                was, now_is = (side[key] if key in side else plain(default(group, key)) for side in (a, b))
                if was != now_is and not (group == "train" and key in free):
                    found.append(f"{group}.{key} (was {was!r}, now {now_is!r})")
        elif a != b:
            found.append(f"{group} (was {a!r}, now {b!r})")
    return found
