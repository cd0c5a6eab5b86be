"""The run folder: one process at a time, readable files, metrics that never contradict themselves; and whether a run in
it can be continued: with the options and the data that it began with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from blockyard.errors import InputError, InUse
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
from blockyard.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from blockyard.training.config import FREE_ON_RESUME

CONFIG, METRICS, ENVIRONMENT, LOCK, CHECKPOINTS = (
    "config.yaml",
    "metrics.jsonl",
    "environment.json",
    "lock",
    "checkpoints",
)


# Times that a lock which is held is tried again, and how long after.
TRIES, TRY_SECONDS = 2, 0.05


def locked_folder(path: Path, lock: str, name: str, owner: str) -> IO[str]:
    """Make a folder if it is missing, hold its lock file until that is closed or the process ends, and sweep it.

    Args:
        path: the folder.
        lock: the lock file's name in it.
        name: the folder, as the errors name it.
        owner: what else may be using it.

    Raises:
        InputError: when it cannot be written.
        InUse: when it is in use.
    """
    try:
        # Never through a link: a folder that others can write to must not send a run elsewhere.
        make_folder(path)
        file = open_without_links(path / lock, "a+")
    except OSError as error:
        raise InputError(f"cannot write to {name}: {error.strerror or error}") from error
    for again in range(TRIES, -1, -1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if again == 0:
                file.close()
                raise InUse(f"{name} is in use by another {owner}") from error
            # Whoever asks whether it is held (`held`) has it for that moment.
            time.sleep(TRY_SECONDS)
    sweep(path)
    return file


def held(lock: Path) -> bool:
    """Return whether a process holds a lock file; one that is missing is free."""
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
    # config.yaml is written last, so a folder without it is no run, whatever else lies in it.
    there = (path / CONFIG).exists()
    if resume and not there:
        raise InputError(f"nothing to resume: {path} holds no run (no {CONFIG} in it)")
    if there and not resume:
        raise InputError(f"{path} already holds a run; give --resume to continue it, or another --out")
    # Tried and not asked: permissions do not tell of a full or read-only disk.
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
        # The system lets a lock go with its process: a kill leaves no folder that looks busy.
        self._lock = locked_folder(path, LOCK, f"run folder {path}", "process")
        # Asked with the lock in hand: another process may have begun and ended a run here in the meantime.
        try:
            check_run_folder(path, resume=resume)
        except InputError as error:
            self._lock.close()
            raise InUse(str(error)) from error
        for folder in path.iterdir():
            # Temporary files of a killed process; with the lock in hand nobody is writing them.
            if folder.is_dir():
                sweep(folder)
        self._metrics: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint."""
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
        # Line by line: a line that a kill cut in two must not cost the others.
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
                # Opened with the first line: a run that fails before it leaves no empty file.
                self._metrics = open_without_links(self.path / METRICS, "a", encoding="utf-8")
                sync(self.path)
            self._metrics.write(json.dumps(row) + "\n")
            # To the system, not to the disk: a kill of the process loses nothing, and a fsync per line would cost more
            # than a small step.
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
    """Return the resolved options of a run.

    Raises:
        InputError: when there is no run in the folder or its config.yaml cannot be read.
    """
    path = folder / CONFIG
    if not path.exists():
        theirs = (folder / "config.json").is_file()
        hint = f"; a model of transformers becomes one by `blockyard import {folder} --out DIR`" if theirs else ""
        raise InputError(f"{folder} holds no run: there is no {path}{hint}")
    return read_yaml(path)


def differing_keys(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    free: frozenset[str],
    default: Callable[[str, str], Any] = lambda group, key: None,
) -> list[str]:
    """Return dotted names of options that differ between two resolved configurations, with both values.

    Args:
        free: names within the `train` group that may differ.
        default: of an option, by group and name, which it has where one of the two does not mention it.
    """
    found = []
    # Sorted, so that the same difference is told in the same words every time.
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


class Resumption(NamedTuple):
    """Where a run goes on.

    Args:
        checkpoint: the newest one; None before the first, when the run begins again.
        shorter: the training options that the run had, when more steps are asked for than it was to make.
    """

    checkpoint: Checkpoint | None
    shorter: Mapping[str, Any] | None


# Handed in, since what an option left out comes to is the task's to know, and the loop knows no task.
class Meaning:
    """What option groups mean where two of them are compared. Here, what is written; tasks know more."""

    def completed(self, groups: Mapping[str, Any]) -> dict[str, Any]:
        """Return the groups with the options that an older version could not write, at the values that its models
        had."""
        return dict(groups)

    def come_to(self, groups: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the model's options that leave something to its blocks, with what they come to."""
        return {}

    def defaults(self, groups: Mapping[str, Any]) -> Callable[[str, str], Any]:
        """Return what an option is, by group and name, where nobody gave it; None where that is unknown."""
        return lambda group, key: None


def resumption(
    folder: RunFolder, resolved: Mapping[str, Any], fingerprint: Mapping[str, Any], meaning: Meaning
) -> Resumption:
    """Find the point from which a folder's run goes on, and refuse other options or other data than it began with.

    More steps are no other options: they extend the run.

    Args:
        folder: the run's.
        resolved: all options as asked for now.
        fingerprint: of the data as read now, by name; those ending in sha256 must agree.
        meaning: of the options.

    Raises:
        InputError: naming what differs, or a checkpoint that is damaged.
    """
    written = folder.read_config()
    # Completed on both sides: what neither wrote is then equal by having one default.
    asked, saved = meaning.completed(resolved), meaning.completed(written)
    unnamed = (saved.get("model") or {}).keys() - (written.get("model") or {}).keys()
    if unnamed & (resolved.get("model") or {}).keys():
        # An older version wrote it: what it could not name is the same if it comes to the same.
        come_to = meaning.come_to(resolved)
        asked["model"] = {**asked["model"], **{name: come_to[name] for name in unnamed}}
    # All at once: being told of one difference after the other is what drives people to edit files.
    different = _differing(saved, asked, meaning)
    if different:
        raise InputError(
            f"--resume with another configuration: {'; '.join(different)}; use the run's own or another --out"
        )
    latest = folder.latest()
    # Whole, with checksums: a damaged one is told before the run's folder is touched.
    loaded = load_checkpoint(latest, in_parts=True) if latest else None
    state = loaded.state if loaded is not None else {}
    if "imported" in state:
        raise InputError(
            f"{folder.path} is an imported model, which no training of ours began: train it into a folder of its own "
            f"with --init {folder.path}"
        )
    if isinstance(state.get("config"), dict):
        # A config.yaml that was edited agrees with itself, so the checkpoint has the last word. Not on the data's
        # options: files may have moved, and their content is compared.
        trained = meaning.completed(state["config"])
        before, now = ({k: v for k, v in c.items() if k != "data"} for c in (trained, asked))
        different = _differing(before, now, meaning)
        if different:
            raise InputError(
                f"--resume with an edited config.yaml: {'; '.join(different)}; put it back, or use another --out"
            )
        saved = trained
    # The first checkpoint is written long after the folder: until then its environment knows the data. Checkpoints
    # from before format 2 do not.
    _check_data(folder, state.get("data") or folder.read_environment().get("data"), fingerprint)
    return Resumption(loaded, saved.get("train") if _extends(saved, asked) else None)


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], meaning: Meaning) -> list[str]:
    """Return options that differ and must not, as words; all of them if there are any."""
    extended = {"steps", "warmup"} if _extends(before, now) else set()
    # A run that was begun in Python, or by an older version, does not mention every option.
    default = meaning.defaults(now)
    if not differing_keys(before, now, FREE_ON_RESUME | extended, default):
        return []
    return differing_keys(before, now, FREE_ON_RESUME, default)


def _extends(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether the options ask for the same run with more steps."""
    had, asked = before.get("train"), now.get("train")
    if not isinstance(had, dict) or not isinstance(asked, dict):
        return False
    try:
        # Older versions wrote a warm-up as long as the run cut to a tenth; the longer one has what was asked for.
        # Otherwise the same command with more steps would be refused.
        warmed = had.get("warmup") in (asked.get("warmup"), had["steps"] // 10)
        return bool(asked["steps"] > had["steps"]) and warmed
    except (KeyError, TypeError):
        return False


def _check_data(folder: RunFolder, before: Any, fingerprint: Mapping[str, Any]) -> None:
    """Refuse data whose checksums differ from those that the run knew."""
    for key, now in fingerprint.items():
        what = key.removesuffix("sha256").removesuffix("_") or "data"
        # Checksums and not names: the same text at another path is the same data.
        if key.endswith("sha256") and isinstance(before, dict) and before.get(key) != now:
            raise InputError(
                f"--resume with other data: the {what} of {folder.path} had sha256 {before.get(key)}, "
                f"{fingerprint.get('source')} now has {now}"
            )
