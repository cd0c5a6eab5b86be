"""Files are written whole or not at all, and never through a link."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockyard import files
from blockyard.errors import InputError
from blockyard.files import open_without_links, plain, sweep, without_nan, write_atomically, writing, writing_folder


@contextlib.contextmanager
def full_disk(limit: int = 1024) -> Iterator[None]:
    """Files cannot grow beyond `limit` bytes: a write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("content", "stored"), [("a\r\né\n", "a\r\né\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_text_and_bytes_are_written_as_they_are(tmp_path: Path, content: str | bytes, stored: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, content)
    assert path.read_bytes() == stored
    assert names(path.parent) == ["file"]


def test_a_link_at_the_target_is_replaced_and_what_it_points_to_is_untouched(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("out", "dangling"):
        write_atomically(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert victim.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_link_planted_under_the_temporary_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / ".writing-guessed").symlink_to(victim)
    with pytest.raises(InputError, match=r"^cannot write .*out: File exists$"):
        write_atomically(tmp_path / "out", "new")
    assert victim.read_text() == "mine"
    (tmp_path / ".writing-guessed").unlink()
    (tmp_path / ".writing-guessed").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError), writing(tmp_path / "out"):
        pass
    with pytest.raises(FileExistsError), writing_folder(tmp_path / "folder"):
        pass
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("mode", ["a", "a+", "r+"])
def test_nothing_is_appended_through_a_link(tmp_path: Path, mode: str) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="it is a symbolic link"):
        open_without_links(tmp_path / "log", mode)


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    seen = set()
    for _ in range(50):
        with writing(tmp_path / "file") as file:
            seen.add(file.name)
    assert len(seen) == 50


@pytest.mark.parametrize("before", ["old", None])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_text(before)
    with full_disk(), pytest.raises(InputError, match=r"^cannot write .*file: File too large$") as caught:
        write_atomically(path, b"x" * 5000)
    assert isinstance(caught.value.__cause__, OSError)
    assert "\n" not in str(caught.value)
    assert (path.read_text() if path.exists() else None) == before
    assert names(tmp_path) == (["file"] if before else [])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("library"), MemoryError()], ids=repr)
def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(type(error)), writing(tmp_path / "file") as file:
        file.write(b"half")
        raise error
    with pytest.raises(type(error)), writing_folder(tmp_path / "folder") as folder:
        (folder / "half").write_text("half")
        raise error
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_killed_write_leaves_the_old_content_and_is_swept_up(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    script = (
        "import os, sys; from blockyard.files import writing\n"
        "with writing(sys.argv[1]) as file:\n    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False).returncode == -9
    assert (tmp_path / "file").read_text() == "old"
    assert len(names(tmp_path)) == 2
    with writing(tmp_path / "file") as alive:
        sweep(tmp_path)
        assert names(tmp_path) == sorted(["file", Path(alive.name).name])
        alive.write(b"new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_sweeping_follows_no_link(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "swept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    folder.mkdir()
    (folder / ".writing-folder").symlink_to(kept)
    (folder / ".removing-file").symlink_to(kept / "file")
    sweep(folder)
    assert (kept / "file").read_text() == "mine"


def test_a_writer_whose_file_a_sweep_took_before_it_was_locked_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = files.fcntl.flock, []

    def late(file: object, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.glob(".writing-*"))
            taken[0].unlink()
        lock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    write_atomically(tmp_path / "file", "content")
    assert taken
    assert (tmp_path / "file").read_text() == "content"
    assert names(tmp_path) == ["file"]


def test_concurrent_writers_leave_one_whole_content(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([65 + n]) * 100_000 for n in range(4)]
    write_atomically(path, contents[0])
    stop, torn = threading.Event(), []

    def write(content: bytes) -> None:
        for _ in range(10):
            write_atomically(path, content)

    def read() -> None:
        while not stop.is_set():
            if path.read_bytes() not in contents:
                torn.append(path.read_bytes()[:10])

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not torn
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
def test_new_files_have_what_the_umask_leaves_and_old_ones_keep_theirs(
    tmp_path: Path, mask: int, expected: int
) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "new", "")
        write_atomically(tmp_path / "old", "")
        (tmp_path / "old").chmod(0o640)
        write_atomically(tmp_path / "old", "again")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == expected
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640


def _read_only(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir(mode=0o500)
    return tmp_path / "folder" / "file"


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def _below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "below"


def _pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def _device(tmp_path: Path) -> Path:
    (tmp_path / "null").symlink_to("/dev/null")
    return tmp_path / "null"


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(_read_only, marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")),
        _folder,
        _below_a_file,
        _pipe,
        _device,
        lambda tmp_path: tmp_path / ("x" * 300),
    ],
    ids=["read-only folder", "a folder", "below a file", "pipe", "link to a device", "long name"],
)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, target: Callable[[Path], Path]) -> None:
    path = target(tmp_path)
    with pytest.raises(InputError, match=r"^cannot write ") as caught:
        write_atomically(path, "text")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(".writing-*"))


def test_text_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lone surrogate U\+DC80"):
        write_atomically(tmp_path / "file", "a\udc80")
    assert names(tmp_path) == []


def test_libraries_that_want_a_path_may_close_or_replace_the_file(tmp_path: Path) -> None:
    with writing(tmp_path / "closed") as file:
        file.write(b"content")
        file.close()
    assert (tmp_path / "closed").read_bytes() == b"content"
    with writing(tmp_path / "replaced") as file:
        (tmp_path / "own").write_text("content")
        (tmp_path / "own").rename(file.name)
    assert (tmp_path / "replaced").read_text() == "content"
    with writing(tmp_path / "by-path") as file:
        Path(file.name).write_text("content")
    assert (tmp_path / "by-path").read_text() == "content"


def test_a_folder_is_replaced_as_a_whole_and_a_link_in_its_place_gives_way(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("")
    for name in ("link", "folder"):
        with writing_folder(tmp_path / name) as folder:
            (folder / "new").write_text("")
        assert names(tmp_path / name) == ["new"]
    assert (other / "file").read_text() == "mine"
    assert names(tmp_path) == ["folder", "link", "other"]


def test_the_file_and_its_folder_are_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []
    sync, replace = files.sync, files.os.replace
    monkeypatch.setattr(files, "sync", lambda path: (happened.append(path.name), sync(path))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (happened.append("rename"), replace(a, b))[1])
    write_atomically(tmp_path / "new" / "file", "text")
    made, written, renamed, entered = happened
    assert written.startswith(".writing-")
    assert [made, renamed, entered] == [tmp_path.name, "rename", "new"]
    happened.clear()
    with writing_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
    assert happened[-1] == tmp_path.name
    assert {"file", "inner"} <= set(happened)


def test_plain_and_without_nan_hold_what_every_reader_knows() -> None:
    assert plain({1: (Path("a"), [2.5, None])}) == {"1": ["a", [2.5, None]]}
    assert without_nan({"a": (1.0, float("nan")), "b": [float("-inf")]}) == {"a": [1.0, None], "b": [None]}


def test_files_need_no_torch() -> None:
    script = "import sys, blockyard.files; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_package_writes_files_in_one_place() -> None:
    """No module but files.py opens a file for writing; the lists are those that write no file that is kept."""
    root = Path(files.__file__).parent
    allowed = {
        "files.py",
        # /proc, the state of the memory's counters.
        "compare/peak_memory.py",
        # Copies of files of a store, each whole before it has its name; and the store itself.
        "mirror.py",
        # Into the new folder that `writing_folder` gives and flushes.
        "training/checkpoint.py",
        # Into memory.
        "conformance/training.py",
        "report/render.py",
    }
    words = (
        ".write_text(",
        ".write_bytes(",
        "os.replace(",
        "os.rename(",
        "NamedTemporaryFile",
        "mkstemp",
        "torch.save(",
    )
    words += ('.open("w', '.open("x', '.open("a', '"wb")', '"xb")', ".savefig(path", ".savefig(picture", "to_csv(out")
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in words)
    }
    assert found <= allowed
