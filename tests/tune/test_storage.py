"""A search that several processes make together, kept in a database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

import blockyard
import toy_task  # registers the task `majority`
from blockyard.errors import InputError
from blockyard.training.folder import locked_folder
from blockyard.tune import search as tune_search
from blockyard.tune import session, storage, trials
from blockyard.tune.output import load_record
from blockyard.tune.run import tune
from blockyard.tune.search import open_study
from blockyard.tune.settings import TuneConfig, hidden
from tests.fixtures.folders import PLUGINS, ROOT
from tests.tune.test_tune import GROUPS, OVER, found

assert toy_task


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(session, "write_report", lambda record, out: {"html": Path(out) / "report.html"})
    monkeypatch.setattr(session, "LOOK_SECONDS", 0.05)
    return


def terms(**changes: Any) -> TuneConfig:
    # What is drawn is then a function of the trial's number alone, whoever draws it and when.
    fixed = {"sampler": "random", "pruner": "none", "trials": 6, "budget_unit": "steps", "budget_value": 12}
    return TuneConfig(**{**fixed, "evaluations": 4, "seeds": 0, **changes})


def search(out: Path, **changes: Any) -> Any:
    groups = {**GROUPS, "plugins": ["toy_task"]}
    return tune("majority", OVER, terms(**changes), groups, out, show=False)


JOIN = """
import sys
from pathlib import Path
from tests.tune.test_storage import search
search(Path(sys.argv[1]), storage=sys.argv[2], join=True)
"""


def joined(out: Path, url: str) -> subprocess.Popen[str]:
    source = str(Path(blockyard.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((source, str(PLUGINS), str(ROOT)))}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, str(out), url], env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_a_search_in_a_database_finds_what_one_in_a_folder_finds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    here = search(tmp_path / "here")
    there = search(tmp_path / "there", storage=url)
    assert found(there) == found(here) and there["best"] == here["best"]
    # Again with more trials: only what is missing is made.
    more = search(tmp_path / "there", storage=url, trials=8)
    assert found(more)[:6] == found(here) and len(more["trials"]) == 8


def test_one_that_joins_makes_trials_of_the_same_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, other = f"sqlite:///{tmp_path}/search.db", tmp_path / "other"
    here = search(tmp_path / "here", trials=10)
    # The leader begins no trial before the other one has made one, and then takes its time.
    claimed, real = [], storage.claim

    def slowly(study: Any, owner: str) -> Any:
        until = time.monotonic() + 120
        while not claimed and not list(other.glob("trials/*/result.json")) and time.monotonic() < until:
            time.sleep(0.05)
        claimed.append(owner)
        return real(study, owner)

    monkeypatch.setattr("blockyard.tune.trials.claim", slowly)
    process: list[subprocess.Popen[str]] = []
    offered = storage.offer

    def then_join(study: Any, trials: int) -> None:
        offered(study, trials)
        process.append(joined(other, url))

    monkeypatch.setattr(session, "offer", then_join)
    there = search(tmp_path / "there", storage=url, trials=10)
    _, said = process[0].communicate(timeout=60)
    assert process[0].returncode == 0, said
    # The curve of a trial stands in the folder of whoever made it.
    settings = [{**trial, "curve": None} for trial in found(there)]
    assert settings == [{**trial, "curve": None} for trial in found(here)]
    owners = {t.user_attrs["owner"] for t in _study(tmp_path / "there", url).get_trials()}
    assert len(owners) == 2 and "no trial is offered any more" in said
    assert not (other / "tune.json").exists() and load_record(tmp_path / "there")["best"] == here["best"]


def test_a_trial_of_one_that_was_lost_is_made_by_the_leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    monkeypatch.setattr(session, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 0.2)
    offered = storage.offer

    def then_lose_one(study: Any, trials: int) -> None:
        offered(study, trials)
        # Taken by a machine that says nothing any more.
        assert storage.claim(study, "elsewhere") is not None

    monkeypatch.setattr(session, "offer", then_lose_one)
    there = search(tmp_path / "there", storage=url)
    assert found(there) == found(search(tmp_path / "here"))


def test_a_trial_whose_folder_is_in_use_is_not_made_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that the database cannot hear, with one folder for both."""
    url, out = f"sqlite:///{tmp_path}/search.db", tmp_path / "there"
    monkeypatch.setattr(session, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 0.2)
    offered, real, open_runs, said = storage.offer, session.take_over, [], []

    def then_lose_one(study: Any, trials: int) -> None:
        offered(study, trials)
        assert storage.claim(study, "elsewhere") is not None
        open_runs.append(locked_folder(out / "trials" / "0000", "lock", "the run", "process"))

    def say(self: Any, line: str) -> None:
        said.append(line)
        if "its folder is in use" in line:
            open_runs.pop().close()

    def take_over(*arguments: Any) -> None:
        assert not open_runs
        real(*arguments)

    monkeypatch.setattr(session, "offer", then_lose_one)
    monkeypatch.setattr(session, "take_over", take_over)
    monkeypatch.setattr("blockyard.compare.live.Silent.say", say)
    assert found(search(out, storage=url, trials=2)) == found(search(tmp_path / "here", trials=2))
    assert sum("its folder is in use" in line for line in said) == 1


def test_a_trial_is_taken_once_whoever_asks_at_the_same_time(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    search(tmp_path / "there", storage=url, trials=1)
    storage.offer(_study(tmp_path / "there", url), 13)
    taken: list[int] = []

    def take(name: str) -> None:
        study = _study(tmp_path / "there", url)
        while (trial := storage.claim(study, name)) is not None:
            taken.append(trial.number)

    threads = [threading.Thread(target=take, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 13))


def test_one_that_joins_and_is_killed_goes_on_with_its_trial(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    search(tmp_path / "there", storage=url, trials=1)
    storage.offer(_study(tmp_path / "there", url), 4)
    process = joined(tmp_path / "other", url)
    until = time.monotonic() + 120
    while not list((tmp_path / "other").glob("trials/*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = joined(tmp_path / "other", url)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    states = [trial.state.name for trial in _study(tmp_path / "there", url).get_trials()]
    assert set(states) <= {"COMPLETE", "PRUNED"} and len(states) == 4


def test_what_cannot_be_joined_is_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    with pytest.raises(InputError, match="holds no search on these terms; it holds none"):
        search(tmp_path / "a", storage=url, join=True)
    search(tmp_path / "b", storage=url, trials=1)
    with pytest.raises(InputError, match=r"the nearest one differs: budget\.value is 12"):
        search(tmp_path / "a", storage=url, join=True, budget_value=13)
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="storage='nonsense' cannot be opened"):
        search(tmp_path / "a", storage="nonsense")
    with pytest.raises(InputError, match="join: name the database"):
        terms(join=True)
    with pytest.raises(InputError, match="one process joins"):
        terms(join=True, storage=url, workers=2)


def test_no_password_is_told(tmp_path: Path) -> None:
    assert hidden("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert hidden("'postgresql://me:sec@ret/@host/db?x=1'") == "'postgresql://me:***@host/db?x=1'"
    assert hidden("mysql://host/db?user=me&Password=secret&a=b") == "mysql://host/db?user=me&Password=***&a=b"
    assert "secret" not in terms(storage="postgresql://me:secret@host/db").command("majority", "", {}, "out")
    with pytest.raises(InputError) as refused:
        search(tmp_path / "a", storage="postgresql://me:secret@host.invalid/db")
    assert "secret" not in str(refused.value)


def _study(out: Path, url: str) -> Any:
    from blockyard.tune.space import read_space
    from blockyard.tune.start import DefaultRun, terms_of

    groups: Any = {**GROUPS, "plugins": ["toy_task"]}
    start = DefaultRun("majority", read_space("majority", OVER), groups, terms(storage=url))
    return open_study(out, start.config, start.quality.better, terms=terms_of(start))


def test_a_trial_that_another_one_has_ended_in_the_meantime_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    search(tmp_path / "there", storage=url, trials=1)
    study = _study(tmp_path / "there", url)
    storage.offer(study, 3)
    offered = study.get_trials(states=(TrialState.WAITING,))
    fast = storage.claim(study, "fast")
    assert fast is not None
    study.tell(fast, state=TrialState.PRUNED)
    # What was asked before that.
    monkeypatch.setattr(study, "get_trials", lambda **options: offered)
    slow = storage.claim(study, "slow")
    assert slow is not None and slow.number == 2


def test_fewer_trials_than_were_offered_are_made_when_fewer_are_asked_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    search(tmp_path / "there", storage=url, trials=1)
    storage.offer(_study(tmp_path / "there", url), 6)
    assert len(search(tmp_path / "there", storage=url, trials=2)["trials"]) == 2
    assert len(search(tmp_path / "there", storage=url, trials=4)["trials"]) == 4


def test_a_machine_that_comes_back_does_not_fail_a_trial_that_is_another_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/search.db"

    def taken_over_and_broken(self: Any, trial: Any, groups: Any, folder: Path) -> Any:
        storage.take_over(self.study, trial.number, "the leader")
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(trials.Search, "_train", taken_over_and_broken)
        # Nobody is at them: what would be waited for is not the matter here.
        patch.setattr(storage.Others, "running", lambda self: [])
        with pytest.raises(InputError, match="finished"):
            search(tmp_path / "there", storage=url, trials=1)
    states = [trial.state for trial in _study(tmp_path / "there", url).get_trials()]
    assert states == [TrialState.RUNNING]


def test_a_database_that_does_not_answer_is_no_fault_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/search.db"

    def gone(self: Any, value: float, step: int) -> None:
        raise StorageInternalError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "report", gone)
        with pytest.raises(InputError, match=r"the database sqlite:.* does not answer: gone; the same command"):
            search(tmp_path / "there", storage=url)
    assert found(search(tmp_path / "there", storage=url)) == found(search(tmp_path / "here"))


def test_another_version_does_not_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    search(tmp_path / "there", storage=url, trials=1)
    mine = tune_search.versions_here()
    monkeypatch.setattr(tune_search, "versions_here", lambda: {**mine, "torch": "1.0"})
    with pytest.raises(InputError, match=r"torch is \S+ there and 1\.0 here"):
        search(tmp_path / "a", storage=url, join=True)
    # The leader goes on with another one, as in a folder.
    search(tmp_path / "there", storage=url, trials=1)
    search(tmp_path / "a", storage=url, join=True)
