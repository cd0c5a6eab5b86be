"""Folders of runs at an fsspec URL (`s3://…`, `gs://…`, `file://…`): worked on in a local folder, kept at the URL.

Workers need paths, locks and renames, which object stores have none of. So a process works in a scratch folder of its
own: what is at the URL is fetched first, and every few seconds what is new is sent. An object appears whole or not at
all, and several are sent in an order in which any beginning makes sense: data, then metrics, then what says that data
are complete (a checkpoint's state.json, a run's config.yaml, the record of how it ended). What was removed is removed
there last, markers first. So whatever ends a process costs what it did since it last sent.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from blockyard.errors import InputError, InUse, require
from blockyard.files import REMOVING, WRITING, cache_home, make_folder, open_without_links, parse_json
from blockyard.machine.beats import every

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://.")
# Between two times that something is sent.
SEND_SECONDS = 10.0
# Between two signs of life of whoever works at a URL, and how many of them may be missing.
LEASE_SECONDS, LEASE_MISSING = 10.0, 3
LEASE = "in-use.json"
# Stores in which an object appears whole or not at all; in others it is written beside its place, and moved.
WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"}
# Local alone: locks, what a kill left, who works where.
_BESIDE = rf"({re.escape(WRITING)}|{re.escape(REMOVING)})[^/]*(/.*)?"
_LEFT_OUT = re.compile(rf"(.*/)?(lock|[^/]*\.lock|{LEASE}|offer\.json|{_BESIDE})|(.*/)?joined/.*")
# By name: what is sent later than the rest, each when all before it are there.
_LATER = {"metrics.jsonl": 1, "state.json": 2, "config.yaml": 3, "result.json": 4}
_CHECKPOINT = re.compile(r"(?P<folder>(.*/)?step-\d{8,})/.*")
_open: dict[Path, Mirror] = {}

Signature = tuple[Any, ...]


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether this names a place by URL, and not a path."""
    return _URL.match(os.fspath(path)) is not None


def mirror_of(path: Path) -> Mirror | None:
    """Return the mirror whose scratch folder this is, if it is one."""
    return _open.get(path.absolute())


def place_of(path: Path) -> str:
    """Return a path as a user named it: within a scratch folder by its URL."""
    for folder in (path.absolute(), *path.absolute().parents):
        if folder in _open:
            return f"{_open[folder].shown}/{relative(path.absolute(), folder)}".rstrip("/")
    return str(path)


def relative(path: Path, folder: Path) -> str:
    """Return a path as it is from a folder, with slashes; "" for the folder itself."""
    return "" if path == folder else path.relative_to(folder).as_posix()


class Mirror:
    """What a scratch folder has of a URL, and the URL of the folder.

    Args:
        url: the place.
        local: the folder, made if missing.

    Raises:
        InputError: for a kind of URL that nothing here reads.
    """

    def __init__(self, url: str, local: Path) -> None:
        self.url, self.local = url.rstrip("/"), local
        # Without the password of a user.
        self.shown = re.sub(r"://[^@/\s]*@", "://***@", self.url)
        fsspec = require("fsspec", extra="remote")
        try:
            self._store, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            # Of a protocol that is unknown, or whose package is not installed, which it names.
            raise InputError(f"{self.shown} cannot be reached: {_reason(error)}") from error
        self._root = str(root).rstrip("/")
        protocol = self._store.protocol
        self._whole = bool(WHOLE & set([protocol] if isinstance(protocol, str) else protocol))
        # By path: what it was there and here when the two were last the same.
        self._there: dict[str, Signature] = {}
        self._here: dict[str, Signature] = {}
        # A thread sends, and whoever works sends at the end, too.
        self._lock = threading.Lock()
        # Who has it by now, when this process was away for so long that it was taken for dead.
        self.taken = ""
        make_folder(local)

    def pull(self, under: Iterable[str] = ("",)) -> None:
        """Fetch what is new at the URL, in these folders; what has gone there goes here, unless it was changed here.

        Raises:
            InputError: when it cannot be read.
        """
        with self._lock, self._reaching("read"):
            listed = self._listed(under)
            complete = {
                found["folder"] for path in listed if path.endswith("/state.json") and (found := _in_step(path))
            }
            for path in sorted(listed, key=_order):
                step = _in_step(path)
                # Half of a checkpoint: whoever sent it was ended.
                if (step and step["folder"] not in complete) or self._there.get(path) == listed[path]:
                    continue
                target = self.local / path
                make_folder(target.parent)
                part = target.with_name(f"{WRITING}{secrets.token_hex(8)}")
                try:
                    self._store.get_file(f"{self._root}/{path}", str(part))
                except FileNotFoundError:
                    # Removed since it was listed.
                    continue
                os.replace(part, target)
                self._there[path], self._here[path] = listed[path], _signature(target)
            prefixes = tuple(under)
            for path in [path for path in self._there if path not in listed and _within(path, prefixes)]:
                target = self.local / path
                if self._here.get(path) == _signature(target):
                    target.unlink(missing_ok=True)
                    with suppress(OSError):
                        target.parent.rmdir()
                self._forget(path)

    def push(self) -> None:
        """Send what is new in the folder, in order; then remove there what was removed here.

        Raises:
            InputError: when it cannot be written.
            InUse: when another process has taken the place over.
        """
        if self.taken:
            raise InUse(f"{self.shown} was taken over by another process ({self.taken})")
        with self._lock, self._reaching("write"):
            now = {path: _signature(self.local / path) for path in self._files()}
            changed = sorted((path for path, found in now.items() if found != self._here.get(path)), key=_order)
            sent = [path for path in changed if self._send(path)]
            if sent:
                listed = self._listed({path.rpartition("/")[0] for path in sent})
                for path in sent:
                    self._there[path], self._here[path] = listed.get(path, ()), now[path]
            gone = [path for path in self._here if path not in now and not (self.local / path).exists()]
            for path in sorted(gone, key=_order, reverse=True):
                with suppress(FileNotFoundError):
                    self._store.rm_file(f"{self._root}/{path}")
                self._forget(path)

    def read(self, path: str) -> bytes | None:
        """Return what a file holds at the URL; None where it is not there."""
        with self._reaching("read"):
            try:
                self._store.invalidate_cache()
                found: bytes = self._store.cat_file(f"{self._root}/{path}")
                return found
            except FileNotFoundError:
                return None

    def write(self, path: str, content: bytes) -> None:
        """Write a file at the URL alone."""
        with self._reaching("write"):
            self._put(path, lambda target: self._store.pipe_file(target, content))

    def remove(self, path: str) -> None:
        """Remove a file at the URL alone."""
        with suppress(FileNotFoundError), self._reaching("write"):
            self._store.rm_file(f"{self._root}/{path}")

    def _forget(self, path: str) -> None:
        self._there.pop(path, None)
        self._here.pop(path, None)

    def _files(self) -> Iterator[str]:
        for folder, _, names in os.walk(self.local):
            for name in names:
                path = (Path(folder) / name).relative_to(self.local).as_posix()
                if not _LEFT_OUT.fullmatch(path):
                    yield path

    def _listed(self, under: Iterable[str]) -> dict[str, Signature]:
        """Return what is at the URL in some folders, each with what changes when it does."""
        self._store.invalidate_cache()
        found: dict[str, Signature] = {}
        for folder in under:
            root = f"{self._root}/{folder}".rstrip("/")
            try:
                inner = self._store.find(root, detail=True)
            except FileNotFoundError:
                continue
            for name, about in inner.items():
                path = str(name).removeprefix(self._root).lstrip("/")
                if ".." in path.split("/"):
                    raise InputError(f"{self.shown} holds {path!r}, which leads out of it")
                if not _LEFT_OUT.fullmatch(path):
                    told = (about.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"))
                    found[path] = (about.get("size"), *(str(each) for each in told))
        return found

    def _send(self, path: str) -> bool:
        """Send a file; returns whether it was still there."""
        try:
            # Opened by this alone: a file that takes its place while it is sent leaves this one whole.
            with (self.local / path).open("rb") as file:
                self._put(path, lambda target: self._copy(file, target))
            return True
        except FileNotFoundError:
            return False

    def _copy(self, file: IO[bytes], target: str) -> None:
        with self._store.open(target, "wb") as there:
            shutil.copyfileobj(file, there, 1 << 22)

    def _put(self, path: str, put: Callable[[str], None]) -> None:
        target = f"{self._root}/{path}"
        if self._whole:
            put(target)
            return
        self._store.makedirs(target.rpartition("/")[0], exist_ok=True)
        beside = f"{target.rpartition('/')[0]}/{WRITING}{secrets.token_hex(8)}"
        put(beside)
        self._store.mv(beside, target)

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        try:
            yield
        except (InputError, FileNotFoundError):
            raise
        except Exception as error:
            # Each store has errors of its own, of no common class.
            raise InputError(f"cannot {what} {self.shown}: {_reason(error)}") from OSError(str(error))


@contextmanager
def mirrored(url: str) -> Iterator[Path]:
    """Hold a URL, and yield the scratch folder in which one works for it; what is new there is sent as it comes.

    Raises:
        InUse: when another process works at the URL.
        InputError: when it cannot be read or written.
    """
    with scratch(url) as folder:
        mirror = Mirror(url, folder)
        with _lease(mirror), _sending(mirror):
            mirror.pull()
            _open[folder] = mirror
            try:
                yield folder
            finally:
                del _open[folder]


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """Yield a scratch folder with what is at a URL, to be read.

    Raises:
        InputError: when it cannot be read, or there is nothing.
    """
    with scratch(url) as folder:
        Mirror(url, folder).pull()
        if not any(folder.iterdir()):
            raise InputError(f"there is nothing at {url}")
        yield folder


@contextmanager
def scratch(url: str) -> Iterator[Path]:
    """Yield a new local folder for what is at a URL; it goes when the block ends. What killed processes left goes."""
    home = cache_home() / "scratch"
    try:
        make_folder(home)
        for lock in home.glob("*.lock"):
            with suppress(OSError), open_without_links(lock, "r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()
        folder = home / f"{sha256(url.encode()).hexdigest()[:12]}-{secrets.token_hex(4)}"
        lock = folder.with_suffix(".lock")
        file = open_without_links(lock, "x")
    except OSError as error:
        raise InputError(f"cannot write to {home}: {error.strerror or error}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            make_folder(folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


@contextmanager
def _lease(mirror: Mirror) -> Iterator[None]:
    """Hold a URL: say so there, and refuse one of which somebody else says so.

    No store that fsspec knows has locks. Of two that begin in the same second the later one has it; of one that was
    killed nothing is heard for some beats.
    """
    mine = secrets.token_hex(8)

    def said() -> str | None:
        found = mirror.read(LEASE)
        return None if found is None else found.decode(errors="replace")

    def say(beat: int) -> None:
        about = {"holder": mine, "machine": socket.gethostname(), "process": os.getpid(), "beat": beat}
        mirror.write(LEASE, json.dumps(about).encode())

    first = said()
    until = time.monotonic() + LEASE_MISSING * LEASE_SECONDS
    while first is not None and time.monotonic() < until:
        time.sleep(min(1.0, LEASE_SECONDS / 4))
        now = said()
        if now is not None and now != first:
            raise InUse(f"{mirror.shown} is in use by another process ({_holder(now)})")
        if now is None:
            break
    say(0)
    # Whoever wrote at the same time has written by then.
    time.sleep(min(1.0, LEASE_SECONDS / 4))
    if (now := said()) is not None and mine not in now:
        raise InUse(f"{mirror.shown} is in use by another process ({_holder(now)})")

    def beat(count: int) -> bool:
        # A store that is away for a moment: the work itself will say so.
        with suppress(InputError):
            if (now := said()) is not None and mine not in now:
                mirror.taken = _holder(now)
                return True
            say(count)
        return False

    try:
        with every(LEASE_SECONDS, beat):
            yield
    finally:
        if not mirror.taken:
            with suppress(InputError):
                mirror.remove(LEASE)


def _holder(said: str) -> str:
    try:
        found = parse_json(said)
        return f"process {found['process']} of {found['machine']}"
    except (ValueError, KeyError, TypeError):
        return "of another version"


@contextmanager
def _sending(mirror: Mirror) -> Iterator[None]:
    """Send what is new every few seconds within it, and all of it at its end, however it ends."""
    with keep_sending(mirror):
        try:
            yield
        except BaseException as error:
            # It is what ended the work that is to be told.
            with suppress(InputError):
                mirror.push()
            raise error
        mirror.push()


@contextmanager
def keep_sending(mirror: Mirror) -> Iterator[None]:
    """Send what is new every few seconds within it."""

    def send(count: int) -> None:
        # Tried again; what cannot be sent in the end is told in the end.
        with suppress(InputError):
            mirror.push()

    with every(SEND_SECONDS, send):
        yield


def _order(path: str) -> tuple[int, str]:
    return _LATER.get(path.rpartition("/")[2], 0), path


def _in_step(path: str) -> re.Match[str] | None:
    return _CHECKPOINT.fullmatch(path)


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(not folder or path == folder or path.startswith(f"{folder.rstrip('/')}/") for folder in folders)


def _signature(path: Path) -> Signature:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _reason(error: BaseException) -> str:
    # Some quote the credentials that they were given.
    return re.sub(r"://[^@/\s]*@", "://***@", " ".join(str(error).split()))[:200] or type(error).__name__
