"""Files that a user keeps: written whole or not at all, with the same care everywhere; and what JSON and YAML can hold.

A file is written under a random name in its own folder, flushed to the disk, given its name by a rename, and the folder
is flushed as well: a reader, a kill or a power cut meets the old content or the new, never a part. Nothing is written
through a link: the temporary file is new (`O_EXCL`, `O_NOFOLLOW`) under a name that nobody can foresee, and where the
target is a link, the link itself gives way to the file. The *folders* of a path may be links, as a user arranges them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from blockyard.errors import InputError, InUse

# Temporary names begin so; the target's own name is left out, since with it the name could become too long.
WRITING, REMOVING = ".writing-", ".removing-"
# What files of settings and results are far from.
MOST_LEVELS, MOST_ITEMS = 100, 1_000_000
# Bytes that are gathered before the system is asked: token files come in small pieces.
BUFFER = 1 << 18


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace a file as a whole by text (UTF-8, ends of lines as they are) or bytes; see `writing`.

    Raises:
        InputError: when it cannot be written; what stood there is untouched.
    """
    try:
        data = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        bad = f"U+{ord(error.object[error.start]):04X}"
        raise InputError(f"cannot write {path}: lone surrogate {bad} in the text, which is not UTF-8") from error
    with writing(path) as file:
        file.write(data)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a new file that takes the place of `path` when the block ends, and vanishes when the block fails.

    It is open for reading and writing; libraries that want a path may write to its `name` instead. It has the
    permissions of the file that it replaces, or those that the umask leaves; its folder is made if missing.

    Raises:
        InputError: when it cannot be written (disk full, folder read-only, the target a folder or a device); what stood
            there is untouched.
    """
    target = Path(path)
    try:
        make_folder(target.parent)
        mode = _mode_to_be(target)
        file = _new_file(target.parent, mode)
        temporary = Path(file.name)
        try:
            with file:
                yield file
                if not file.closed:
                    file.flush()
                # By name, as a library may have closed the file or put another in its place.
                sync(temporary)
                # Still open and locked: nobody takes it for what a kill left behind (`sweep`).
                os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(target.parent)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error


def _mode_to_be(target: Path) -> int | None:
    """Return the permissions that the target has now, None where there is none; refuses what is no file."""
    try:
        found = target.lstat()
        if stat.S_ISLNK(found.st_mode):
            # A link to a device (/dev/stdout) is meant to be written through, which a rename does not do.
            found = target.stat()
            if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
                return None
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no file but a device or a pipe")
    return stat.S_IMODE(found.st_mode) & 0o777


def _new_file(folder: Path, mode: int | None) -> IO[bytes]:
    """Return a new file under a random name, locked for as long as it is open."""
    while True:
        file = open_without_links(folder / f"{WRITING}{secrets.token_hex(8)}", "x+b", BUFFER)
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # A sweep may have come between the two lines and removed it: then it is made again.
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()
    if mode is not None:
        with suppress(OSError):
            os.fchmod(file.fileno(), mode)
    return file


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `path` when the block ends, and vanishes when the block fails.

    Everything in it is flushed to the disk before it takes its name. A folder that stands there is replaced, a link to
    one as well (not what it points to).

    Raises:
        OSError: when it cannot be written: the caller knows what a failure means.
    """
    make_folder(path.parent)
    temporary = path.parent / f"{WRITING}{secrets.token_hex(8)}"
    # `mkdir` follows no link and takes no name that exists.
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder) / name)
            sync(Path(folder))
        remove_folder(path)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill half-way leaves none with files missing: it loses its name first.

    Raises:
        OSError: when it cannot be removed. One that is missing is none.
    """
    doomed = path.parent / f"{REMOVING}{secrets.token_hex(8)}"
    with suppress(FileNotFoundError):
        os.rename(path, doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing, and flush the entries of the new ones to the disk.

    Raises:
        OSError: when it cannot be made.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is no folder") from None
    sync(path.parent)


def check_writable(path: str | os.PathLike[str], *, folder: bool = False, name: str = "") -> None:
    """Refuse a file (or a folder of files) that could not be written, before the work for it is done; makes nothing.

    Args:
        path: the file, or the folder.
        folder: whether it is a folder.
        name: what the error calls it; the path when not given.

    Raises:
        InputError: as `writing` would say it.
    """
    target = Path(path)
    try:
        there = target if folder else target.parent
        if not folder:
            _mode_to_be(target)
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there if there != target else 'it'} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {name or target}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def nothing_left(folder: Path) -> Iterator[Callable[[], None]]:
    """Let an InputError within it take away what was made in a folder, and the folder and those above it if they are
    new. Where another process is in the folder (InUse) nothing is taken away: it is that one's.

    Yields: what to call when there is something worth keeping: then nothing is taken away any more.
    """
    before = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True

    try:
        yield keep
    except InUse:
        raise
    except InputError:
        if not kept and folder.is_dir():
            for path in folder.iterdir():
                if path.name not in before:
                    with suppress(OSError):
                        remove_folder(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not kept:
            for path in new:
                # From the innermost on; one that somebody else put something into stays.
                with suppress(OSError):
                    path.rmdir()
        raise


def open_without_links(path: Path, mode: str, buffering: int = -1, *, encoding: str | None = None) -> IO[Any]:
    """Open a file that is locked or appended to, as `open` does; a link in its place is refused, not followed.

    Raises:
        OSError: saying that it is a link, or what `open` says.
    """
    return open(path, mode, buffering, encoding, opener=_without_links)


def _without_links(path: str, flags: int) -> int:
    try:
        # 0o666: the umask takes away what the user does not want, as with any file.
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.EMLINK and Path(path).is_symlink()):
            raise OSError(errno.ELOOP, "it is a symbolic link, and nothing is written through links", path) from error
        raise


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in a folder.

    A file that is being written is locked by its writer and stays. Folders have no such lock: sweep a folder in which
    `writing_folder` is used while holding a lock of its own.
    """
    for path in (*folder.glob(f"{WRITING}*"), *folder.glob(f"{REMOVING}*")):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                continue
            with open_without_links(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        # A folder in which one may write but not list: its entries are flushed when the system pleases.
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network file systems that know no flushing of folders say EINVAL.
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def user_path(text: str | os.PathLike[str], option: str = "") -> Path:
    """Return a path as a user wrote it, `~` for the home folder.

    Args:
        text: the path.
        option: the option that it came by, for the error.

    Raises:
        InputError: for a home that is not there (`~nosuch`), or what no path can be.
    """
    said = f"{option}={os.fspath(text)!r}" if option else repr(os.fspath(text))
    if "\0" in os.fspath(text):
        raise InputError(f"{said} is no path: it holds a NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{said}: there is no such home folder; write the path out") from None


def is_same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Return whether two names stand for one file that is there, through links too."""
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False


def cache_home() -> Path:
    """Return the folder for what can be made again: BLOCKYARD_CACHE, else .cache/blockyard in the home folder.

    Raises:
        InputError: when there is no home folder.
    """
    if given := os.environ.get("BLOCKYARD_CACHE"):
        return user_path(given)
    try:
        return Path.home() / ".cache" / "blockyard"
    except RuntimeError:
        raise InputError("there is no home folder for the cache: set HOME, or BLOCKYARD_CACHE to a folder") from None


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text from a file holds.

    Raises:
        ValueError: for whatever is wrong with it, also where it is nested so deeply that nothing can go through it.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep") from None
    opening: tuple[Any, Any] = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(text.count(bracket) for bracket in opening) > MOST_LEVELS:
        check_nesting(value, math.inf)
    return value


def check_nesting(value: Any, most: float = MOST_ITEMS) -> None:
    """Refuse data that is nested too deeply to be worked on, contains itself, or unfolds without end (YAML's aliases).

    Args:
        value: dictionaries and lists.
        most: values in all of them together.

    Raises:
        ValueError: saying which.
    """
    waiting, seen = [(value, 1)], 0
    while waiting:
        item, level = waiting.pop()
        if not isinstance(item, dict | list):
            continue
        if level > MOST_LEVELS:
            raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
        seen += len(item)
        if seen > most:
            raise ValueError(f"more than {most:,} values")
        waiting += [(inner, level + 1) for inner in (item.values() if isinstance(item, dict) else item)]


def without_nan(value: Any) -> Any:
    """Return a copy in which every non-finite float is None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """Return a copy with tuples as lists and paths as text, so that YAML and JSON hold what every reader knows."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
