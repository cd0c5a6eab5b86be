"""`tune` end to end, on a task so small that a trial takes a moment."""

# ruff: noqa: E402
from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("optuna")
yaml = pytest.importorskip("yaml")

import toy_task  # registers the task `majority`
from blockyard.cli import main
from blockyard.compare import measure
from blockyard.compare.processes import Ending
from blockyard.compare.results import read_result
from blockyard.errors import InputError
from blockyard.tasks.run import train
from blockyard.training import trainer as trainer_module
from blockyard.training.interrupt import StopRequest
from blockyard.tune import session
from blockyard.tune.output import load_record
from blockyard.tune.run import tune
from blockyard.tune.settings import TuneConfig
from blockyard.tune.trials import Search
from tests.fixtures.cli import error_of
from tests.fixtures.folders import PLUGINS

STEPS = 12
TRAIN = {"batch_size": 8, "compile": "off", "device": "cpu", "threads": 1, "precision": "fp32"}
GROUPS: dict[str, Any] = {"model": {"d_model": 8, "n_layers": 1}, "train": TRAIN}
OVER = {"train.lr": "1e-3..1 log", "model.n_heads": "1,2,4", "attn.impl": "standard,tva", "vft.rank": "1,2"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, no figures and no waiting for the disk, which take longer than everything else here."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "fsync", lambda file: None)
    torch.set_num_threads(1)
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    monkeypatch.setattr(session, "write_report", lambda record, out: {"html": Path(out) / "report.html"})
    yield
    torch.set_num_threads(threads)


def terms(**changes: Any) -> TuneConfig:
    quick = {"trials": 6, "budget_unit": "steps", "budget_value": STEPS, "evaluations": 4, "seeds": 0}
    return TuneConfig(**{**quick, **changes})


def search(out: Path, over: Any = None, groups: Any = None, **changes: Any) -> Any:
    return tune("majority", over or OVER, terms(**changes), groups or GROUPS, out, show=False)


def found(record: Any) -> list[Any]:
    """What must be the same however often a search is interrupted."""
    keys = ("number", "status", "settings", "value", "part", "same_as", "steps", "tokens", "curve", "note")
    return [{key: trial[key] for key in keys} for trial in record["trials"]]


def test_search_keeps_its_best_and_what_it_saw(tmp_path: Path) -> None:
    record = search(tmp_path, trials=8)
    assert json.loads((tmp_path / "tune.json").read_text()) == record == load_record(tmp_path)
    assert [trial["number"] for trial in record["trials"]] == list(range(8))
    finished = [trial for trial in record["trials"] if trial["status"] == "finished"]
    assert all(trial["steps"] == STEPS and trial["curve"]["part"][-1] == 1.0 for trial in finished)
    # Accuracy: higher is better.
    assert record["quality"]["better"] == "higher"
    assert record["best"]["value"] == max(trial["value"] for trial in finished)
    assert record["verdict"]["kind"] == "search_only"
    assert "nothing is claimed" in record["verdict"]["headline"]
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert len(lines) == 9
    assert lines[0].endswith("train.lr,model.n_heads,attn.impl,vft.rank")
    # Weights of all trials would fill the disk.
    assert not list(tmp_path.glob("trials/*/checkpoints"))


def test_best_configuration_trains_again_to_the_same_figure(tmp_path: Path) -> None:
    record = search(tmp_path / "search", trials=5)
    words = ["train", "majority", "--plugin", "toy_task", "--config", str(tmp_path / "search" / "best.yaml")]
    assert main([*words, "--out", str(tmp_path / "again"), "--train.progress", "false"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val_accuracy"] == record["best"]["value"]
    told = (tmp_path / "search" / "best.yaml").read_text()
    assert told.startswith(f"# The best configuration of a search ({record['best']['name']}): accuracy")


class Killed(BaseException):
    """What a kill is to the code that it hits: nothing is cleaned up that a process does not clean up by dying."""


def killing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool = False) -> None:
    """Die in the n-th call of a method, before or after it does its work."""
    real, calls = getattr(owner, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise Killed
        result = real(*args, **kwargs)
        if calls[0] == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_search_killed_anywhere_and_resumed_equals_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruner: str
) -> None:
    from optuna.trial import Trial

    # Enough that the sampler has begun to learn, and the pruner to stop.
    config = {"trials": 13, "pruner": pruner}
    whole = search(tmp_path / "whole", **config)
    assert {"pruned", "finished"} <= {trial["status"] for trial in whole["trials"]}
    moments: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: killing(patch, Trial, "suggest_float", 3),
        lambda patch: killing(patch, Trial, "suggest_int", 2, after=True),
        lambda patch: killing(patch, Search, "_draw", 5, after=True),
        lambda patch: killing(patch, trainer_module.Trainer, "_one_step", 17),
        lambda patch: killing(patch, trainer_module.Trainer, "_save_whole", 2),
        lambda patch: killing(patch, trainer_module.Trainer, "_save_whole", 3, after=True),
        lambda patch: killing(patch, Trial, "report", 2),
        lambda patch: killing(patch, Trial, "report", 5, after=True),
        lambda patch: killing(patch, Trial, "should_prune", 3, after=True),
        lambda patch: killing(patch, Search, "_tell", 1),
        lambda patch: killing(patch, Search, "_tell", 2, after=True),
    ]
    killed = 0
    for moment in moments:
        with monkeypatch.context() as patch:
            moment(patch)
            try:
                search(tmp_path / "cut", **config)
            except Killed:
                killed += 1
    assert killed == len(moments)
    cut = search(tmp_path / "cut", **config)
    assert found(cut) == found(whole)
    assert cut["best"] == whole["best"]


def test_half_written_line_of_the_journal_is_dropped(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole")
    search(tmp_path / "cut", trials=3)
    with (tmp_path / "cut" / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    assert found(search(tmp_path / "cut")) == found(whole)


def test_trial_whose_checkpoint_is_damaged_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(tmp_path / "whole", trials=2)
    with monkeypatch.context() as patch:
        killing(patch, trainer_module.Trainer, "_one_step", 8)
        with pytest.raises(Killed):
            search(tmp_path / "cut", trials=2)
    (weights,) = (tmp_path / "cut" / "trials" / "0000" / "checkpoints").glob("step-*/model.safetensors")
    weights.write_bytes(b"nothing")
    assert found(search(tmp_path / "cut", trials=2)) == found(whole)


def test_more_trials_go_on_where_the_search_ended(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", trials=6)
    search(tmp_path / "grown", trials=2)
    assert found(search(tmp_path / "grown", trials=6)) == found(whole)


def test_other_terms_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    search(tmp_path, trials=1)
    with pytest.raises(InputError, match=r"holds a search on other terms: over was .*; use its own terms") as error:
        search(tmp_path, {**OVER, "train.lr": "1e-3..2 log"}, trials=1)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"pruner was 'median', now 'none'"):
        search(tmp_path, trials=1, pruner="none")
    with pytest.raises(InputError, match=r"model.n_layers was 1, now 2"):
        search(tmp_path, groups={**GROUPS, "model": {"d_model": 8, "n_layers": 2}}, trials=1)


def test_failed_trials_say_why_and_do_not_stop_the_search(tmp_path: Path) -> None:
    record = search(tmp_path, {"model.n_heads": "2,3,4", "train.lr": "1e-3..1e-1 log"}, trials=8, pruner="none")
    failed = [trial for trial in record["trials"] if trial["status"] == "failed"]
    assert failed
    assert len(failed) < 8
    for trial in failed:
        assert trial["settings"]["model.n_heads"] == 3
        assert trial["note"].startswith("n_heads=3 does not divide d_model=8")
    assert any(f"{len(failed)} of 8 trials could not be run" in line for line in record["verdict"]["details"])


def test_search_in_which_nothing_finishes_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"model.d_model": 8, "budget.unit": "steps", "budget.value": 4, "trials": 3, "train.compile": "off"}
    words = [f"--{name}={value}" for name, value in settings.items()]
    over = ["--over", "model.n_heads=3,5,7", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        # The figures of the first trial would be those of a model that cannot be built.
        patch.setattr("blockyard.tune.start.DefaultRun._built", built_of_a_model_that_can_be)
        assert main(["tune", "majority", "--plugin", "toy_task", *over, *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: none of 3 trials finished; the first failed: n_heads=")


def built_of_a_model_that_can_be(self: Any, groups: Any) -> Any:
    from blockyard.tasks.settings import resolve

    return self.cache.fitted(resolve({**groups, "model": {"d_model": 8, "n_heads": 2}}, self.task))


def test_space_of_which_nothing_can_be_built_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = ["--over", "model.n_heads=3,5,7", "--model.d_model", "11", "--out", str(tmp_path / "out")]
    told = error_of(capsys, "tune", "majority", "--plugin", "toy_task", *over)
    assert told.startswith("n_heads=3 does not divide d_model=11")
    assert not (tmp_path / "out").exists()


def test_diverged_trial_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = toy_task.MajorityTask.loss

    def loss(self: Any, model: Any, batch: Any) -> Any:
        found, figures = real(self, model, batch)
        return found * (math.nan if self.config.lr > 0.05 else 1.0), figures

    monkeypatch.setattr(toy_task.MajorityTask, "loss", loss)
    record = search(tmp_path, {"train.lr": "0.01,0.1,0.02"}, trials=5)
    statuses = {trial["settings"]["train.lr"]: trial["status"] for trial in record["trials"]}
    assert statuses[0.1] == "diverged"
    assert "finished" in statuses.values()
    (note,) = {trial["note"] for trial in record["trials"] if trial["status"] == "diverged"}
    assert "step" in note


def test_error_in_a_users_block_is_kept_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = toy_task.MajorityTask.loss

    def loss(self: Any, model: Any, batch: Any) -> Any:
        if self.config.lr == 0.02:
            raise RuntimeError("shapes 3 and 4\ndo not go together")
        return real(self, model, batch)

    monkeypatch.setattr(toy_task.MajorityTask, "loss", loss)
    record = search(tmp_path, {"train.lr": "0.01,0.02,0.03"}, trials=6)
    failed = [trial for trial in record["trials"] if trial["settings"]["train.lr"] == 0.02]
    assert {trial["note"] for trial in failed} == {"RuntimeError: shapes 3 and 4"}
    assert "do not go together" in (tmp_path / failed[0]["folder"] / "error.txt").read_text()


def test_full_disk_stops_the_search_rather_than_failing_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise InputError("cannot write the checkpoint: no space left") from OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_save_whole", full)
        with pytest.raises(InputError, match="no space left"):
            search(tmp_path)
    assert found(search(tmp_path, trials=2)) == found(search(tmp_path.parent / "whole", trials=2))


def test_settings_drawn_again_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = search(tmp_path, {"model.n_heads": "1,2"}, trials=6)
    first = {}
    for trial in record["trials"]:
        heads = trial["settings"]["model.n_heads"]
        if heads in first:
            assert trial["same_as"] == first[heads]["number"]
            assert trial["value"] == first[heads]["value"]
            assert not (tmp_path / trial["folder"]).exists()
        else:
            first[heads] = trial
    assert len(first) == 2


def test_poor_trials_are_stopped_early_and_none_are_without_a_pruner(tmp_path: Path) -> None:
    stopped = search(tmp_path / "median", trials=12)
    pruned = [trial for trial in stopped["trials"] if trial["status"] == "pruned"]
    assert pruned
    assert all(trial["steps"] < STEPS and trial["part"] < 1 for trial in pruned)
    whole = search(tmp_path / "none", trials=12, pruner="none")
    assert "pruned" not in {trial["status"] for trial in whole["trials"]}


def task_options(task: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Data and shape of a tiny run of a built-in task."""
    if task == "recall":
        return {"data": {"task": "lag", "length": 8, "vocab_size": 8, "sizes": (3,), "val_rows": 8}}
    if task == "signal":
        return {"data": {"length": 16, "val_frames": 2, "snr_min": 10.0, "snr_max": 20.0, "snr_step": 10.0}}
    if task == "price":
        pytest.importorskip("pandas")
        from tests.fixtures.prices import ohlcv, write

        path = write(ohlcv(260), folder / "prices.csv")
        return {"data": {"path": (path,)}, "model": {"context": 16, "horizons": (1, 5), "patch": 4, "stride": 4}}
    if task == "classify":
        rows = [f"{'woof' if i % 2 else 'meow'} {i},{'dog' if i % 2 else 'cat'}" for i in range(60)]
        (folder / "sounds.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
        return {"data": {"path": str(folder / "sounds.csv")}, "model": {"context": 16}}
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return {"data": {"path": str(folder / "text.txt"), "cache_dir": str(folder)}, "model": {"context": 16}}


@pytest.mark.parametrize("task", ["lm", "classify", "recall", "price", "signal"])
def test_every_built_in_task_is_searched_by_its_own_figure(task: str, tmp_path: Path) -> None:
    own = task_options(task, tmp_path)
    groups = {
        **own,
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 2, **own.get("model", {})},
        "train": {**TRAIN, "eval_batches": 1},
    }
    over = {"train.lr": "1e-3..1e-1 log", "ffn.impl": "swiglu,relu2"}
    config = terms(trials=2, budget_value=2, evaluations=2, seeds=1, finalists=1)
    with pytest.MonkeyPatch.context() as patch:
        # Baselines are scored on the test part of prices.
        patch.setattr(
            "blockyard.tasks.price.task.baseline_figures", lambda data: pytest.fail("looked at the test part")
        )
        record = tune(task, over, config, groups, tmp_path / "out", show=False)
    assert [trial["status"] for trial in record["trials"]] == ["finished"] * 2, record["trials"]
    rows = (tmp_path / "out" / "trials" / "0000" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])[record["quality"]["key"]] == record["trials"][0]["value"]
    assert "test" not in record["quality"]["key"]
    assert all(row["mean"] is not None for row in record["finals"])


def test_best_are_run_again_with_fresh_seeds_beside_the_default(tmp_path: Path) -> None:
    record = search(tmp_path, trials=6, seeds=2, finalists=2)
    assert record["seeds"] == [1, 2]
    assert record["finals"][0]["name"] == "default"
    assert record["finals"][0]["settings"] == {"train.lr": None, "model.n_heads": 4, "attn.impl": "standard"}
    assert len(record["finals"]) == 3
    for row in record["finals"]:
        assert [run["seed"] for run in row["runs"]] == [1, 2]
        for run in row["runs"]:
            config = yaml.safe_load((tmp_path / run["folder"] / "config.yaml").read_text())
            assert (config["train"]["seed"], config["train"]["steps"]) == (run["seed"], STEPS)
            assert list((tmp_path / run["folder"] / "checkpoints").glob("step-*"))
    means = {row["name"]: row["mean"] for row in record["finals"]}
    assert record["best"]["value"] == max(means.values())
    # More seeds run what is missing alone.
    before = (tmp_path / record["finals"][1]["runs"][0]["folder"] / "result.json").stat().st_mtime_ns
    more = search(tmp_path, trials=6, seeds=3, finalists=2)
    assert more["seeds"] == [1, 2, 3]
    assert (tmp_path / more["finals"][1]["runs"][0]["folder"] / "result.json").stat().st_mtime_ns == before


def test_finals_that_were_cut_off_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"trials": 3, "seeds": 2, "finalists": 1}
    whole = search(tmp_path / "whole", **config)
    search(tmp_path / "cut", trials=3)
    for step in (7, 20):
        with monkeypatch.context() as patch:
            killing(patch, trainer_module.Trainer, "_one_step", step)
            with pytest.raises(Killed):
                search(tmp_path / "cut", **config)
    again = search(tmp_path / "cut", **config)
    assert [row["runs"][1]["value"] for row in again["finals"]] == [row["runs"][1]["value"] for row in whole["finals"]]
    assert again["verdict"] == whole["verdict"]


def test_default_that_was_found_again_is_not_a_finalist(tmp_path: Path) -> None:
    record = search(tmp_path, {"model.n_heads": "2,4"}, trials=4, seeds=1)
    assert [row["settings"]["model.n_heads"] for row in record["finals"]] == [4, 2]


def test_options_without_a_default_have_none_to_be_compared_with(tmp_path: Path) -> None:
    groups = {"model": {"d_model": 10, "n_layers": 1}, "train": TRAIN}
    record = search(tmp_path, {"model.n_heads": "1,5"}, groups, trials=2, seeds=1)
    assert all(row["trial"] is not None for row in record["finals"])
    assert record["verdict"]["kind"] == "no_default"
    assert any("n_heads=4 does not divide d_model=10" in line for line in record["verdict"]["details"])


def test_budget_in_tokens_gives_larger_batches_fewer_steps(tmp_path: Path) -> None:
    groups = {**GROUPS, "train": {k: v for k, v in TRAIN.items() if k != "batch_size"}}
    over = {"train.batch_size": "4,8,16"}
    record = search(tmp_path, over, groups, budget_unit="tokens", budget_value=8 * 8 * 16, pruner="none")
    for trial in record["trials"]:
        assert trial["tokens"] == 1024
        assert trial["steps"] == 128 // trial["settings"]["train.batch_size"]
        assert trial["part"] == 1.0


def test_budget_in_seconds_is_spent_by_the_clock(tmp_path: Path) -> None:
    record = search(tmp_path, {"train.lr": "0.01,0.1"}, trials=2, budget_unit="seconds", budget_value=1.0)
    for trial in record["trials"]:
        if trial["same_as"] is None:
            # Steps are planned from the pace measured before: on a machine that was busy then they end sooner.
            planned = yaml.safe_load((tmp_path / trial["folder"] / "config.yaml").read_text())["train"]["steps"]
            assert trial["seconds"] >= 1.0 or trial["steps"] == planned
            assert trial["value"] is not None
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["train"]["steps"] > 1


def test_two_workers_share_the_trials_and_the_finals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    groups = {**GROUPS, "plugins": ["toy_task"]}
    over = {"train.lr": "1e-3..1e-1 log"}
    record = search(tmp_path, over, groups, trials=4, seeds=1, finalists=1, workers=2, pruner="none")
    assert [trial["status"] for trial in record["trials"]] == ["finished"] * 4
    assert all(run["status"] == "finished" for row in record["finals"] for run in row["runs"])
    # What a trial reached does not depend on who made it.
    trial = record["trials"][-1]
    options = yaml.safe_load((tmp_path / trial["folder"] / "config.yaml").read_text())
    out = train(options, tmp_path / "again", task="majority")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val_accuracy"] == trial["value"]


@pytest.mark.slow  # a comparison's workers stand for it: a search gives its trials to them
def test_a_trial_that_kills_its_worker_twice_is_failed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    monkeypatch.setenv("UNRULY_FOLDER", str(tmp_path))
    groups = {**GROUPS, "plugins": ["toy_task", "unruly_blocks"]}
    over = {"attn.impl": "kills_at_once,standard", "train.lr": "1e-3..1e-1 log"}
    record = search(tmp_path / "out", over, groups, trials=6, seeds=0, workers=2, pruner="none", sampler="random")
    statuses = {t["number"]: (t["settings"]["attn.impl"], t["status"]) for t in record["trials"]}
    assert len(statuses) == 6 and set(statuses.values()) == {("standard", "finished"), ("kills_at_once", "failed")}
    failed = [trial for trial in record["trials"] if trial["status"] == "failed"]
    assert all(trial["note"] == "its process was killed twice" for trial in failed)


@pytest.mark.parametrize(("blamed", "status", "most"), [(False, "finished", 6), (True, "failed", 2)])
def test_a_trial_is_not_to_blame_for_the_machines_that_it_was_lost_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blamed: bool, status: str, most: int
) -> None:
    rounds: list[list[int]] = []

    def lost_at_first(self: session.Session, shares: Any) -> None:
        rounds.append([number for share in shares for number in share])
        if len(rounds) == 1:
            self.study.ask()
        if len(rounds) < most:
            self._lost({}, Ending(lost="was lost with its machine", blamed=blamed))
            return
        if blamed:
            self._lost({}, Ending(lost="died of SIGKILL", blamed=True))
            return
        with StopRequest().listening() as stop:
            Search(self.spec, self.study, self.start.cache, stop, self.watch, self.owner).run(rounds[-1])

    monkeypatch.setattr(session.Session, "_spread", lost_at_first)
    monkeypatch.setattr(session.Session, "_refuse_nothing", lambda self: None)
    record = search(tmp_path, trials=1, workers=2)
    assert [trial["status"] for trial in record["trials"]] == [status] and len(rounds) == most


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    import fcntl

    search(tmp_path, trials=1)
    with (tmp_path / "search.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is in use by another search"):
            search(tmp_path, trials=1)


def test_missing_optuna_names_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] == "optuna":
            raise ModuleNotFoundError(f"No module named {name!r}", name="optuna")
        return real(name, *args)

    monkeypatch.setattr("blockyard.errors.importlib.import_module", without)
    with pytest.raises(InputError, match=r"optuna is not installed; run: pip install 'blockyard\[tune\]'"):
        search(tmp_path)


def test_damaged_record_of_a_run_is_made_again(tmp_path: Path) -> None:
    record = search(tmp_path, trials=2, seeds=1, finalists=1)
    folder = tmp_path / record["finals"][0]["runs"][0]["folder"]
    (folder / "result.json").write_text("{")
    assert read_result(folder) is None
    again = search(tmp_path, trials=2, seeds=1, finalists=1)
    assert again["finals"][0]["runs"][0]["value"] == record["finals"][0]["runs"][0]["value"]


def test_folder_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    record = search(tmp_path, trials=2, seeds=1, finalists=1)
    curves = {tmp_path / trial["folder"]: trial["curve"] for trial in record["trials"]}
    for folder in [*curves, *(tmp_path / run["folder"] for row in record["finals"] for run in row["runs"])]:
        # As it was kept before the runs of searches were those of comparisons.
        kept = {"status": "finished", "value": 0.5, "part": 4, "steps": STEPS, "curve": curves.get(folder, {})}
        (folder / "result.json").write_text(json.dumps(kept))
    again = search(tmp_path, trials=2, seeds=1, finalists=1)
    assert found(again) == found(record)
    assert [row["mean"] for row in again["finals"]] == [row["mean"] for row in record["finals"]]


def test_fresh_run_that_fails_stands_beside_the_others_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = toy_task.MajorityTask.loss

    def loss(self: Any, model: Any, batch: Any) -> Any:
        if self.config.seed == 2 and self.config.lr != 0.01:
            raise RuntimeError("not today")
        return real(self, model, batch)

    config = {"trials": 3, "seeds": 2, "finalists": 1}
    with monkeypatch.context() as patch:
        patch.setattr(toy_task.MajorityTask, "loss", loss)
        record = search(tmp_path, {"train.lr": "0.01,0.02,0.03"}, **config)
    lost = [run for row in record["finals"] for run in row["runs"] if run["status"] == "failed"]
    assert {run["note"] for run in lost} == {"RuntimeError: not today"}
    assert all(row["verdict"] in ("", "unknown") for row in record["finals"] if row["diverged"])
    mended = search(tmp_path, {"train.lr": "0.01,0.02,0.03"}, **config)
    assert all(run["status"] == "finished" for row in mended["finals"] for run in row["runs"])


@pytest.mark.slow
def test_search_killed_at_random_moments_equals_one_that_was_not(tmp_path: Path) -> None:
    """Real kills of a real process, ten of them."""
    import signal
    import subprocess
    import sys
    import time

    def command(out: Path) -> list[str]:
        settings = {"model.d_model": 8, "model.n_layers": 1, "train.batch_size": 8, "train.compile": "off",
                    "train.device": "cpu", "train.threads": 1, "budget.unit": "steps", "budget.value": 60,
                    "evaluations": 10, "trials": 14, "seeds": 2, "finalists": 1, "out": out}  # fmt: skip
        over = "; ".join(f"{name}={values}" for name, values in OVER.items())
        words = [f"--{name}={value}" for name, value in settings.items()]
        return [sys.executable, "-m", "blockyard", "tune", "majority", "--plugin", "toy_task", "--over", over, *words]

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(PLUGINS)])}
    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True)
    moments, kills = random.Random(0), 0
    while kills < 10:
        process = subprocess.Popen(command(tmp_path / "cut"), env=environment, stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        journal = tmp_path / "cut" / "journal.log"
        before = journal.stat().st_size if journal.exists() else 0
        # Counted in what the search has written: a loaded machine is slow.
        target = before + moments.randint(100, 6000)
        while process.poll() is None and not (journal.exists() and journal.stat().st_size >= target):
            time.sleep(0.005)
        if process.poll() is not None:
            break
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 5
    subprocess.run(command(tmp_path / "cut"), env=environment, check=True, capture_output=True)
    whole, cut = load_record(tmp_path / "whole"), load_record(tmp_path / "cut")
    assert found(cut) == found(whole)
    assert [row["mean"] for row in cut["finals"]] == [row["mean"] for row in whole["finals"]]
    assert cut["verdict"] == whole["verdict"]
    shutil.rmtree(tmp_path)
