"""Folders that are kept at a URL: what is sent in which order, what a kill leaves there, and who may work at it."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockyard import mirror
from blockyard.errors import InputError, InUse, MissingExtra
from blockyard.mirror import LEASE, Mirror, fetched, is_url, mirrored, place_of, scratch

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "SEND_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "LEASE_SECONDS", 0.1)


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place in a store that writes beside and moves, and in one whose objects appear whole."""
    if request.param == "file":
        yield f"file://{tmp_path}/store/run"
        return
    yield "memory://store/run"
    memory = fsspec.filesystem("memory")
    if memory.exists("/store"):
        memory.rm("/store", recursive=True)


def fill(folder: Path, files: dict[str, str]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


RUN = {
    "runs/a/config.yaml": "task: lm",
    "runs/a/metrics.jsonl": "{}\n",
    "runs/a/checkpoints/step-00000010/model.safetensors": "weights",
    "runs/a/checkpoints/step-00000010/state.json": "{}",
    "runs/a/result.json": "{}",
    "compare.json": "{}",
}


def test_what_is_here_comes_back_elsewhere_and_locks_stay(url: str, tmp_path: Path) -> None:
    here = Mirror(url, tmp_path / "here")
    own = {"compare.lock": "", "runs/a/lock": "", "joined/x.here": "", ".writing-12": "half", "offer.json": "{}"}
    fill(here.local, {**RUN, **own})
    here.push()
    there = Mirror(url, tmp_path / "there")
    there.pull()
    assert content(there.local) == RUN
    # Nothing is sent or fetched twice.
    for each in (here, there):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(each, "_send", lambda path: pytest.fail("sent again"))
            patch.setattr(type(each._store), "get_file", lambda *given, **more: pytest.fail("fetched again"))
            each.push()
            each.pull()


def test_what_changes_and_what_goes_is_the_same_there(url: str, tmp_path: Path) -> None:
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    fill(here.local, RUN)
    here.push(), there.pull()
    old = here.local / "runs/a/checkpoints/step-00000010"
    fill(here.local, {"runs/a/checkpoints/step-00000020/model.safetensors": "more", "runs/a/metrics.jsonl": "{}\n{}\n"})
    fill(here.local, {"runs/a/checkpoints/step-00000020/state.json": "{}"})
    for path in old.iterdir():
        path.unlink()
    old.rmdir()
    here.push(), there.pull()
    assert content(there.local) == content(here.local)
    assert not (there.local / "runs/a/checkpoints/step-00000010").exists()
    # Of the other's there is only what was asked for.
    part = Mirror(url, tmp_path / "part")
    part.pull(["runs/a/checkpoints"])
    assert all(path.startswith("runs/a/checkpoints/step-00000020/") for path in content(part.local))


@pytest.mark.parametrize("puts", range(10))
def test_whatever_part_of_it_was_sent_makes_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puts: int) -> None:
    url = f"file://{tmp_path}/store"
    here = Mirror(url, tmp_path / "here")
    fill(here.local, RUN)
    here.push()
    # A later checkpoint in the place of the first; then the process that sends is killed.
    later = "runs/a/checkpoints/step-00000020"
    fill(
        here.local,
        {f"{later}/model.safetensors": "new", f"{later}/optimizer.safetensors": "new", f"{later}/state.json": "{}"},
    )
    fill(here.local, {"runs/a/metrics.jsonl": "{}\n{}\n"})
    for path in (here.local / "runs/a/checkpoints/step-00000010").iterdir():
        path.unlink()
    left = puts

    def until_killed(given: Any) -> Any:
        def act(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return given(*arguments, **more)

        return act

    monkeypatch.setattr(here, "_put", until_killed(here._put))
    monkeypatch.setattr(here._store, "rm_file", until_killed(here._store.rm_file))
    try:
        here.push()
    except KeyboardInterrupt:
        assert left < 0
    there = Mirror(url, tmp_path / "there")
    there.pull()
    steps = {
        path.name: sorted(file.name for file in path.iterdir()) for path in there.local.glob("runs/a/checkpoints/*")
    }
    assert steps, "a run that had a checkpoint has one"
    whole = {"step-00000010": ["model.safetensors", "state.json"]}
    whole["step-00000020"] = ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert all(files == whole[name] for name, files in steps.items())
    if "step-00000020" in steps:
        # No checkpoint is newer than its metrics.
        assert content(there.local)["runs/a/metrics.jsonl"] == "{}\n{}\n"


def test_one_works_at_a_url_and_what_it_leaves_is_there(url: str, tmp_path: Path) -> None:
    with mirrored(url) as folder:
        fill(folder, {"a/result.json": "1"})
        assert place_of(folder) == url and place_of(folder / "a") == f"{url}/a"
        until = time.monotonic() + 20
        # Sent on the way, not only at the end.
        while Mirror(url, tmp_path / "look").read("a/result.json") is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(InUse, match=f"{url} is in use by another process"), mirrored(url):
            pass
        fill(folder, {"b/result.json": "2"})
    assert not folder.exists() and place_of(folder) == str(folder)
    with pytest.raises(ZeroDivisionError), mirrored(url) as folder:
        assert content(folder) == {"a/result.json": "1", "b/result.json": "2"}
        fill(folder, {"c": "3"})
        raise ZeroDivisionError
    with fetched(url) as folder:
        assert content(folder) == {"a/result.json": "1", "b/result.json": "2", "c": "3"}


def test_what_a_killed_process_held_is_free_after_some_beats(url: str, tmp_path: Path) -> None:
    Mirror(url, tmp_path / "here").write(LEASE, json.dumps({"holder": "gone", "process": 1, "machine": "m"}).encode())
    with mirrored(url) as folder:
        assert content(folder) == {}


def test_whoever_was_taken_for_dead_overwrites_nothing(url: str, tmp_path: Path) -> None:
    other = Mirror(url, tmp_path / "other")
    with pytest.raises(InUse, match=r"was taken over by another process \(process 7 of m\)"), mirrored(url) as folder:
        other.write(LEASE, json.dumps({"holder": "other", "process": 7, "machine": "m"}).encode())
        other.write("compare.json", b"theirs")
        time.sleep(0.5)
        fill(folder, {"compare.json": "mine"})
    assert other.read("compare.json") == b"theirs" and other.read(LEASE) is not None


def test_scratch_folders_of_killed_processes_go(tmp_path: Path) -> None:
    home = tmp_path / "cache" / "scratch"
    fill(home, {"dead-1/file": "left", "dead-1.lock": ""})
    with scratch("file:///a") as one, scratch("file:///a") as other:
        assert one != other and one.is_dir() and other.is_dir()
        assert not (home / "dead-1").exists()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [("s3://b/x", True), ("file:///a", True), ("memory://a", True), ("/a/b", False), ("C:/a", False), ("a://", False)],
)
def test_what_is_a_url(given: str, expected: bool) -> None:
    assert is_url(given) is expected
    assert not is_url(Path("s3://b/x"))


def test_what_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"nosuch://\*\*\*@place cannot be reached: .*nosuch"):
        Mirror("nosuch://me:secret@place", tmp_path / "a")
    (tmp_path / "file").write_text("")
    here = Mirror(f"file://{tmp_path}/file/inner", tmp_path / "b")
    fill(here.local, {"c": "3"})
    with pytest.raises(InputError, match="cannot write file://"):
        here.push()
    with pytest.raises(InputError, match="there is nothing at"), fetched(f"file://{tmp_path}/none"):
        pass
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r"fsspec is not installed; run: pip install 'blockyard\[remote\]'"):
        Mirror("s3://b", tmp_path / "c")


def test_names_that_lead_out_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Mirror(f"file://{tmp_path}/store", tmp_path / "there")
    # As object stores may have them: a key is any text.
    listed = {f"{there._root}/a/../../out": {"size": 1}}
    monkeypatch.setattr(type(there._store), "find", lambda self, root, detail: listed)
    with pytest.raises(InputError, match=r"holds 'a/\.\./\.\./out', which leads out of it"):
        there.pull()


def test_a_run_is_trained_and_read_at_a_url(tmp_path: Path, run: Any) -> None:
    text, url = random_text(tmp_path / "text.txt"), f"file://{tmp_path}/store/run"
    shape = ["--model.d_model", "16", "--model.n_layers", "1", "--model.n_heads", "2", "--model.context", "16"]
    words = [*shape, "--data.path", str(text), "--train.steps", "4", "--train.compile", "off", "--out", url]
    assert run("train", "lm", *words).status == 0
    made = run("generate", url, "--prompt", "a", "--tokens", "4")
    assert made.status == 0, made.err
    assert (tmp_path / "store/run/config.yaml").is_file() and not (tmp_path / "store/run" / LEASE).exists()
    again = run("train", "lm", *words)
    assert again.status == 2 and "already holds a run" in again.err
    gone_on = run("train", "lm", "--out", url, "--resume", "--train.steps", "6")
    assert gone_on.status == 0, gone_on.err
    assert run("train", "price", str(text), "--out", url).status == 2
    assert run("generate", f"file://{tmp_path}/nothing", "--prompt", "a").status == 2


def random_text(path: Path) -> Path:
    draw = random.Random(0)
    path.write_text(" ".join(draw.choice(["yard", "block", "vein", "of", "the", "a"]) for _ in range(1500)))
    return path


def compared(text: Path, out: str | Path, **terms: Any) -> Any:
    from blockyard.compare import CompareConfig, compare
    from tests.compare.test_joining import groups_for

    quick = {"budget_value": 60 * 64, "seeds": 2, "slice_steps": 5, "evaluations": 6, "rates": "one"}
    config = CompareConfig("standard;relu2", **{**quick, "sample_tokens": 8, "measure_memory": False, **terms})
    return compare("lm", config, groups_for(text), out, show=False)


@pytest.mark.slow
def test_a_comparison_at_a_url_that_is_killed_goes_on_from_what_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process and its scratch folder are lost, as with a machine; another one goes on."""
    from tests.compare.test_compare import without_timings

    text, store = random_text(tmp_path / "text.txt"), tmp_path / "store"
    url = f"file://{store}"
    alone = compared(text, tmp_path / "alone")
    child = os.fork()
    if child == 0:
        try:
            compared(text, url)
        finally:
            os._exit(1)
    until = time.monotonic() + 300
    while not (
        len(list(store.glob("runs/*/*/result.json"))) >= 1
        and list(store.glob("runs/*/seed-1/checkpoints/*/state.json"))
    ):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    ended = {path: path.read_text() for path in store.glob("runs/*/*/result.json")}
    found = compared(text, url)
    assert without_timings(found) == without_timings(alone)
    # What had ended was not made again.
    assert ended and all(path.read_text() == before for path, before in ended.items())
    assert found["provenance"]["command"].endswith(f"--out {url}") and (store / "report.html").stat().st_size > 0
    assert not list((tmp_path / "cache" / "scratch").iterdir())
