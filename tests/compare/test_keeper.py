"""Workers on other machines, without Ray: its actors stood in for by objects whose methods answer at once."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockyard import mirror
from blockyard.compare import cluster, keeper
from blockyard.compare.engine import EngineConfig
from blockyard.compare.processes import Ending, Workers
from blockyard.errors import InputError
from blockyard.machine.memory import forcing, worker_environment
from tests.fixtures.folders import PLUGINS


class ActorLost(Exception):
    pass


class TaskError(Exception):
    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class Actor:
    """One keeper; `lost` is what the cluster says of it once its machine is gone."""

    def __init__(self, *arguments: Any) -> None:
        self.inner, self.lost = keeper.Keeper(*arguments), False
        self.hear, self.stop = SimpleNamespace(remote=self._hear), SimpleNamespace(remote=self.inner.stop)

    def _hear(self, seconds: float) -> Any:
        def answer() -> Any:
            if self.lost:
                raise ActorLost
            try:
                return self.inner.hear(seconds)
            except InputError as error:
                raise TaskError(error) from error

        return answer


class Cluster:
    """As much of the package as the engine asks of it."""

    exceptions = SimpleNamespace(RayActorError=ActorLost, RayTaskError=TaskError, RayError=(ActorLost, TaskError))

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.machines: list[dict[str, Any]] = [{"Alive": True, "Resources": {"CPU": 2.0, "memory": 2.0 * 2**30}}]

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return self.machines

    def get(self, reference: Any) -> Any:
        return reference()

    def kill(self, actor: Actor) -> None:
        actor.inner.stop()

    def remote(self, cls: type) -> Any:
        assert cls is keeper.Keeper
        return self

    def options(self, **taken: Any) -> Any:
        self.taken = taken

        def make(*arguments: Any) -> Actor:
            self.actors.append(Actor(*arguments))
            return self.actors[-1]

        return SimpleNamespace(remote=make)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    monkeypatch.setattr(cluster, "require", lambda name, extra: found)
    monkeypatch.setattr(cluster, "HEAR_SECONDS", 0.05)
    # The module that workers run here.
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    return found


def heard_from(requests: list[Any], out: Path, lost: Any = None, said: list[Any] | None = None) -> list[Any]:
    said = [] if said is None else said
    with cluster.cluster_launcher(EngineConfig(engine="ray"), "worker_that_says", out) as launch:
        Workers(launch, requests, lambda message: said.append(message) if message else None, lost).wait()
    return said


def test_workers_are_asked_and_heard(ray: Cluster, tmp_path: Path) -> None:
    said = heard_from([{"say": "one"}, {"say": "two"}], tmp_path)
    assert sorted(message["say"] for message in said) == ["one", "two"]
    assert ray.taken["num_cpus"] == 1 and ray.taken["memory"] is None
    # What showed that the storage is shared goes again.
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_cannot_do_is_told(ray: Cluster, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such thing"):
        heard_from([{"error": "no such thing"}], tmp_path)


def test_one_that_is_lost_with_its_machine_is_asked_for_again_and_not_blamed(ray: Cluster, tmp_path: Path) -> None:
    endings: list[Ending] = []

    def lost(request: Any, ending: Ending) -> list[Any]:
        endings.append(ending)
        return [{"say": "again"}]

    said: list[Any] = []

    class Hears(list[Any]):
        def append(self, message: Any) -> None:
            super().append(message)
            if message.get("say") == "waiting":
                ray.actors[0].lost = True

    heard_from([{"say": "waiting", "wait": 60}], tmp_path, lost, Hears(said))
    assert [(e.lost, e.blamed) for e in endings] == [("was lost with its machine", False)]
    # It lives on until its keeper goes; a test has to end it.
    ray.actors[0].inner.stop()
    assert len(ray.actors) == 2


def test_one_that_dies_of_a_signal_is_blamed(ray: Cluster, tmp_path: Path) -> None:
    endings: list[Ending] = []

    def lost(request: Any, ending: Ending) -> list[Any]:
        endings.append(ending)
        return []

    heard_from([{"signal": 9}], tmp_path, lost)
    assert [(e.lost, e.blamed) for e in endings] == [("died of SIGKILL", True)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"probe": "/nowhere/seen"}, "does not see"),
        ({"token": "of another folder"}, "does not see"),
        ({"cwd": "/no/such/folder"}, "has no folder /no/such/folder"),
        ({"versions": {"blockyard": "0", "torch": "0"}}, "and 0 is asked for"),
    ],
)
def test_a_machine_that_cannot_do_the_work_says_so(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    probe = tmp_path / "seen"
    probe.write_text("token")
    here: dict[str, Any] = {"cwd": str(tmp_path), "probe": str(probe), "token": "token", "forced": False}
    here["versions"] = keeper.versions_here()
    stood = keeper.Keeper("worker_that_says", {}, {**here, **change})
    with pytest.raises(InputError, match=told):
        stood.hear(0.01)


def test_a_refusal_of_a_machine_ends_the_whole_in_one_line(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "versions_here", lambda: {"blockyard": "0.0", "torch": "0.0"})
    with pytest.raises(InputError, match=r"has blockyard 0\.0, and .* is asked for"):
        heard_from([{"say": "one"}], tmp_path)


def test_workers_that_no_machine_can_hold_are_refused(ray: Cluster, tmp_path: Path) -> None:
    for config, told in (
        (EngineConfig(engine="ray", ray_cores=3), r"ray\.cores=3, ray\.gpus=0; there are: 2 cores, 0 GPUs, 2\.0 GiB"),
        (EngineConfig(engine="ray", ray_memory=4.0), r"ray\.memory=4"),
        (EngineConfig(engine="ray", ray_gpus=0.5), r"ray\.gpus=0\.5"),
    ):
        with (
            pytest.raises(InputError, match=told),
            cluster.cluster_launcher(config, "worker_that_says", tmp_path),
        ):
            pass


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ({"engine": "slurm"}, "engine='slurm' is not one of: local, ray"),
        ({"workers": 0}, "workers=0 should be at least 1"),
        ({"workers": 9999}, "workers=9999 should be at most 1024"),
        ({"ray_cores": 2}, r"ray\.cores is of the engine ray: give --engine ray, too"),
        ({"engine": "ray", "ray_gpus": float("nan")}, r"ray\.gpus=nan should be from 0"),
        ({"engine": "ray", "ray_memory": -1.0}, r"ray\.memory=-1\.0 should be above 0"),
    ],
)
def test_what_no_engine_has_is_refused(terms: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        EngineConfig(**terms).check_engine()


def test_lines_that_came_before_the_end_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    probe = tmp_path / "seen"
    probe.write_text("token")
    here: dict[str, Any] = {"cwd": str(tmp_path), "probe": str(probe), "token": "token", "forced": False}
    here["versions"] = keeper.versions_here()
    stood = keeper.Keeper("worker_that_says", {"say": "last words", "times": 500}, here)
    lines, ending, until = [], None, time.monotonic() + 60
    while ending is None and time.monotonic() < until:
        found, ending = stood.hear(0.05)
        lines += found
    assert len(lines) == 500 and ending == {"status": 0, "lost": "", "blamed": True}


def test_messages_are_lines_of_json_and_all_else_is_said() -> None:
    from blockyard.compare.processes import message_of

    assert message_of('{"say": "a"}\n') == {"say": "a"} and message_of("[1]\n") == {"say": "[1]"}
    assert message_of("a library prints\n") == {"say": "a library prints"}


@pytest.mark.parametrize("forced", [True, False])
def test_what_memory_is_forced_for_is_forced_on_other_machines_too(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    asked: list[Any] = []
    # Made elsewhere, later: nothing of this process is there.
    monkeypatch.setattr(ray, "options", lambda **taken: SimpleNamespace(remote=lambda *given: asked.append(given)))
    monkeypatch.setattr(cluster, "ClusterWorker", lambda *given: None)
    found: list[dict[str, str]] = []
    monkeypatch.setattr(keeper, "ProcessWorker", lambda *given, **more: found.append(worker_environment()))
    with cluster.cluster_launcher(EngineConfig(engine="ray"), "worker_that_says", tmp_path) as launch:
        with forcing(forced):
            launch({}, queue.Queue())
        keeper.Keeper(*asked[0])
    assert found == [{"BLOCKYARD_FORCE": "1"} if forced else {}]


def test_at_a_url_a_machine_fetches_what_its_worker_needs_and_sends_what_it_makes(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "LEASE_SECONDS", 0.1)
    with mirror.mirrored(f"file://{tmp_path}/store") as out:
        for name in ("mine", "other"):
            (out / name).mkdir()
            (out / name / "result.json").write_text(name)
        made = str(out / "mine" / "made.txt")
        # Paths within the folder are those of the machine's own; what is not asked for stays away.
        said = heard_from([{"say": "done", "write": made, "list": str(out / "mine")}], out)
        there = next(message["seen"] for message in said if "seen" in message)
        assert there["path"] != made and there["path"].endswith("/mine/made.txt")
        assert there["files"] == ["mine/result.json"]
        # What it made was here before its end was known, and its own folder has gone.
        assert Path(made).read_text() == "made" and (tmp_path / "store/mine/made.txt").read_text() == "made"
        assert not Path(there["path"]).exists()


def test_a_machine_with_another_place_of_the_same_url_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    here: dict[str, Any] = {"cwd": str(tmp_path), "probe": str(tmp_path / "seen-by-all"), "token": "token"}
    here |= {"forced": False, "versions": keeper.versions_here(), "local": str(tmp_path)}
    empty = (f"file://{tmp_path}/empty", "does not see what file://.*/empty holds")
    for url, told in (empty, ("no://b", "cannot be reached")):
        stood = keeper.Keeper("worker_that_says", {}, {**here, "url": url})
        with pytest.raises(InputError, match=told):
            stood.hear(0.01)


def test_paths_within_a_folder_are_moved_and_nothing_else() -> None:
    asked = {"out": "/a/b", "jobs": [{"folder": "/a/b/runs/x"}, "/a/bc", "a/b"], "n": 1, "none": None}
    moved = keeper.moved(asked, "/a/b", "/c")
    assert moved == {"out": "/c", "jobs": [{"folder": "/c/runs/x"}, "/a/bc", "a/b"], "n": 1, "none": None}
    assert keeper.inner_folders(moved, Path("/c")) == {"", "runs/x"}
