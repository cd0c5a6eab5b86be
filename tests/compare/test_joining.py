"""Comparisons that several processes make together in one folder: what is made by whom, and what a kill costs."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockyard.compare import joining, sharing, turns
from blockyard.compare.compare import compare_lm
from blockyard.compare.joining import join_comparison
from blockyard.compare.plan import LOCK, STATE
from blockyard.compare.settings import CompareConfig
from blockyard.compare.sharing import BEAT, JOINED, OFFER, Sharing
from blockyard.errors import InputError
from blockyard.training.folder import locked_folder
from tests.compare.test_compare import without_timings

STEPS, TOKENS = 40, 4 * 16


@pytest.fixture(autouse=True)
def _soon(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (sharing, "GIVE_SECONDS", 0.1),
        (sharing, "BEAT_SECONDS", 0.1),
        (sharing, "POLL_SECONDS", 0.02),
        (turns, "POLL_SECONDS", 0.02),
        (joining, "LOOK_SECONDS", 0.02),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(draw.choice(["yard", "block", "vein", "of", "the", "a"]) for _ in range(1500)))
    return path


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, str, int]]]:
    """Notes which process ended which run, in this process and in those that are forked from it."""
    log, record = tmp_path / "ended.jsonl", turns.record_run

    def noted(job: Any, *rest: Any, **more: Any) -> Any:
        with log.open("a") as file:
            file.write(json.dumps([os.getpid(), *job.key]) + "\n")
        return record(job, *rest, **more)

    monkeypatch.setattr(turns, "record_run", noted)
    return lambda: [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


def groups_for(text: Path) -> dict[str, Any]:
    model = {"d_model": 32, "n_layers": 2, "n_heads": 2, "context": 16}
    train = {"batch_size": 4, "threads": 1, "compile": "off", "precision": "fp32", "eval_batches": 2, "warmup": 2}
    return {"model": model, "train": train, "data": {"path": str(text)}}


def terms(**changes: Any) -> CompareConfig:
    quick = {"budget_value": STEPS * TOKENS, "seeds": 2, "slice_steps": 5, "evaluations": 4, "rates": "one"}
    return CompareConfig("standard;relu2", **{**quick, "sample_tokens": 8, "measure_memory": False, **changes})


def forked(work: Callable[[], Any]) -> int:
    """Do some work in a child process, whose status is 0 if it went well; returns its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except InputError as error:
            print(error, flush=True)
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Those that a test which fails would leave behind."""
    found: list[int] = []
    yield found
    for child in found:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except OSError:
            continue


def test_one_who_joins_takes_runs_and_the_report_is_that_of_one_process(tmp_path, text, ended, children):
    alone = compare_lm(terms(), groups_for(text), tmp_path / "alone", show=False)
    before, out = len(ended()), tmp_path / "out"
    # It may be there first: an array of jobs starts in any order.
    joiner = forked(lambda: join_comparison("lm", terms(join=True), groups_for(text), out, show=False))
    children.append(joiner)
    together = compare_lm(terms(), groups_for(text), out, show=False)
    assert status_of(joiner) == 0
    assert without_timings(together) == without_timings(alone)
    made = ended()[before:]
    # Everything once, and something by each.
    assert len({(name, seed) for _, name, seed in made}) == 4
    assert len(made) == 4 and Counter(pid for pid, *_ in made).keys() == {os.getpid(), joiner}
    # Nothing of their meeting stays.
    assert not (out / JOINED).exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_joiner_that_is_killed_costs_its_last_slice_alone(tmp_path, text, ended, children, workers):
    config = {"budget_value": 4 * STEPS * TOKENS, "rates": "0.5,1,2"}
    alone = compare_lm(terms(**config), groups_for(text), tmp_path / "alone", show=False)
    before, out = len(ended()), tmp_path / "out"
    joiners = [
        forked(lambda: join_comparison("lm", terms(**config, join=True), groups_for(text), out, show=False))
        for _ in range(2)
    ]
    children += joiners

    def kill_one_at_work() -> None:
        here = out / JOINED

        def busy() -> bool:
            found = [path for path in here.glob(f"*-{joiners[0]}-*.here") if not path.with_suffix(".waiting").exists()]
            return bool(found) and len(list(out.glob("r*/*/*/metrics.jsonl"))) >= 3

        until(busy)
        time.sleep(0.3)
        os.kill(joiners[0], signal.SIGKILL)

    killer = forked(kill_one_at_work)
    children.append(killer)
    together = compare_lm(terms(**config, workers=workers), groups_for(text), out, show=False)
    assert status_of(killer) == 0 and status_of(joiners[0]) == -signal.SIGKILL and status_of(joiners[1]) == 0
    together["settings"]["compare"].pop("workers"), alone["settings"]["compare"].pop("workers")
    assert without_timings(together) == without_timings(alone)
    if workers == 1:
        made = ended()[before:]
        # Six probes and four runs.
        assert len({(name, seed) for _, name, seed in made}) == len(made) == 10
        assert joiners[1] in {pid for pid, *_ in made}


@pytest.mark.slow
def test_a_leader_that_is_killed_is_gone_on_with(tmp_path, text, ended, children):
    alone = compare_lm(terms(), groups_for(text), tmp_path / "alone", show=False)
    before, out = len(ended()), tmp_path / "out"
    leader = forked(lambda: compare_lm(terms(), groups_for(text), out, show=False))
    joiner = forked(lambda: join_comparison("lm", terms(join=True), groups_for(text), out, show=False))
    children += [leader, joiner]
    until(lambda: len(list(out.glob("runs/*/*/metrics.jsonl"))) >= 2)
    os.kill(leader, signal.SIGKILL)
    status_of(leader)
    # What was offered is made by who joined, and then it ends: nobody offers more.
    assert status_of(joiner) == 0
    assert len(list(out.glob("runs/*/*/result.json"))) == 4
    again = compare_lm(terms(), groups_for(text), out, show=False)
    assert without_timings(again) == without_timings(alone)
    made = ended()[before:]
    assert len({(name, seed) for _, name, seed in made}) == len(made) == 4


def test_only_one_leads_and_who_cannot_join_is_told_in_a_line(tmp_path, text, monkeypatch):
    out, groups = tmp_path / "out", groups_for(text)

    def refused(match: str, config: CompareConfig | None = None) -> None:
        with pytest.raises(InputError, match=match):
            join_comparison("lm", config or terms(join=True), groups, out, show=False)

    monkeypatch.setattr(joining, "LEADER_SECONDS", 0.0)
    refused("nobody leads a comparison in .*; begin it without --join")
    assert not out.exists()
    with pytest.raises(InputError, match="a comparison is joined by `join_comparison`"):
        compare_lm(terms(join=True), groups, out, show=False)
    with pytest.raises(InputError, match="join: one process joins"):
        terms(join=True, workers=2)
    compare_lm(terms(seeds=1, budget_value=640), groups, out, show=False)
    refused("on other terms: budget.value was 640, now 2560")
    offer = json.loads((out / OFFER).read_text())
    assert offer.pop("done")
    # What has ended is no leader's.
    assert join_comparison("lm", terms(join=True, budget_value=640), groups, out, show=False) == 0
    (out / OFFER).write_text(json.dumps({**offer, "versions": {"blockyard": "0"}}))
    refused("the leader has blockyard 0, and .* is here")
    (out / OFFER).write_text("{")
    refused("cannot be read")
    (out / OFFER).write_text("[]")
    refused("is no offer of this version")
    (out / OFFER).unlink()
    (out / STATE).unlink()
    refused("nobody leads")
    lock = locked_folder(out, LOCK, "here", "comparison")
    with pytest.raises(InputError, match="in use by another comparison"):
        compare_lm(terms(seeds=1, budget_value=640), groups, out, show=False)
    lock.close()


def test_locks_that_do_not_hold_between_machines_are_told(tmp_path, monkeypatch):
    there = Sharing(tmp_path)
    (tmp_path / JOINED).mkdir()
    # Of a leader that was killed, whose last sign stays.
    (tmp_path / JOINED / BEAT).write_text("dead")
    there.check_locks()
    with Sharing(tmp_path).leading(), pytest.raises(InputError, match="locks of this storage do not hold"):
        there.check_locks()
    lock = locked_folder(tmp_path, LOCK, "here", "comparison")
    with Sharing(tmp_path).leading():
        there.check_locks()
    lock.close()


def test_runs_are_let_go_for_who_waits_and_never_all(tmp_path):
    there = Sharing(tmp_path)
    assert there.to_give(5) == 0
    with Sharing(tmp_path).joining() as waiting, Sharing(tmp_path).joining() as other:
        assert len(there.joined()) == 2 and there.to_give(5) == 0
        waiting.touch()
        assert there.to_give(1) == 0 and there.to_give(5) == 1
        # They need a moment to take it.
        assert there.to_give(5) == 0
        other.touch()
        time.sleep(0.15)
        assert there.to_give(2) == 1
    # What a killed one left waits for nothing.
    (tmp_path / JOINED / "gone.here").touch()
    (tmp_path / JOINED / "gone.waiting").touch()
    time.sleep(0.15)
    assert there.joined() == [] and there.to_give(5) == 0
