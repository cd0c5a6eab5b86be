"""Transplants whose choices are made by workers: the same weights and measures, whoever made them, whoever was lost."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from blockyard.compare.processes import Ending
from blockyard.errors import InputError
from blockyard.registry.pattern import parse_choice
from blockyard.tasks.run import load_run
from blockyard.transplant import Budget, HealSettings, TransplantConfig, account, run_transplant, spread, worker
from blockyard.transplant.record import Record
from blockyard.transplant.settings import flat
from tests.transplant.test_transplant import build

# Orders by piece, a search, a closed part; the last is refused.
CHOICES = "mla;standard[window=4,sinks=1]@0,2;standard[window=60,sinks=2]"


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(account, "decode_costs", partial(account.decode_costs, rounds=2, round_seconds=1e-4))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Called:
    """A worker that works when it is started, in this process; after so many measurements it is lost."""

    def __init__(self, request: Mapping[str, Any], said: queue.Queue[dict[str, Any]], most: int) -> None:
        self.ending, kept = Ending(), 0

        def heard(message: Mapping[str, Any]) -> None:
            nonlocal kept
            if "keep" in message:
                kept += 1
                if kept > most:
                    raise KeyboardInterrupt
            # As it comes over a pipe.
            said.put(json.loads(json.dumps(message)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "report", heard)
            try:
                worker.work(json.loads(json.dumps(request)))
            except KeyboardInterrupt:
                self.ending = Ending(lost="was lost with its machine", blamed=False)

    def poll(self) -> Ending:
        return self.ending

    def stop(self) -> None:
        return

    def wait(self) -> None:
        return


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What workers were asked; the numbers in front say after how many measurements the next ones are lost."""
    asked: list[Any] = []
    lives: list[int] = []

    @contextmanager
    def launcher(config: Any, module: str, out: Path, held: Any = ()) -> Iterator[Callable[..., Any]]:
        def start(request: Mapping[str, Any], said: queue.Queue[dict[str, Any]]) -> Called:
            asked.append(request["items"])
            return Called(request, said, lives.pop(0) if lives else 10**6)

        yield start

    monkeypatch.setattr(spread, "launcher", launcher)
    asked_with_lives = type("Asked", (list,), {})(asked)
    asked_with_lives.lives, asked_with_lives.asked = lives, asked
    return asked_with_lives


def config_for(texts: Any, sizes: Any, blocks: str = CHOICES, **terms: Any) -> TransplantConfig:
    return TransplantConfig(blocks, data=texts, text=sizes, budget=Budget(cache=0.7, context=64), **terms)


def same(a: Record, b: Record, folders: tuple[Path, Path]) -> None:
    """Whether two transplants came to the same but for times, and to the same weights bit for bit."""
    for old, new in zip(a.choices, b.choices, strict=True):
        assert (new.name, new.refused, new.blocks, new.layers, new.trials) == (
            old.name, old.refused, old.blocks, old.layers, old.trials,
        )  # fmt: skip
        assert new.healing == old.healing and new.notes == old.notes
        for here, there in zip(new.rows, old.rows, strict=True):
            # Options are a mapping; a run whose layers are alike gives them back in another order.
            assert parse_choice(here.block) == parse_choice(there.block)
            assert replace(here, block="") == replace(there, block="")
        if old.measures is not None and new.measures is not None:
            assert replace(new.measures, decode=()) == replace(old.measures, decode=())
            assert [each.cache_bytes for each in new.measures.decode] == [e.cache_bytes for e in old.measures.decode]
            theirs, mine = (load_run(f / str(r.run)).model.state_dict() for f, r in zip(folders, (old, new)))
            assert theirs.keys() == mine.keys() and all(torch.equal(t, mine[name]) for name, t in theirs.items())
    assert b.warnings == a.warnings and b.texts == a.texts


def test_choices_by_workers_are_those_of_one_process_and_nothing_is_made_twice(tiny, texts, sizes, tmp_path, started):
    alone = run_transplant(tiny, config_for(texts, sizes), tmp_path / "alone", show=False)
    assert [bool(choice.refused) for choice in alone.choices] == [False, False, True]
    # The first is lost after two measurements, and what it told stays.
    started.lives[:] = [2]
    out = tmp_path / "out"
    together = run_transplant(tiny, config_for(texts, sizes, workers=2), out, show=False)
    same(alone, together, (tmp_path / "alone", out))
    names = [choice.name for choice in alone.choices]
    assert started.asked[:2] == [[[names[0], None], [names[2], None]], [[names[1], None]]]
    # Again from where it was lost: both that it had, since a machine is not to blame.
    assert started.asked[2:] == [[[names[0], None], [names[2], None]]]
    started.asked.clear()
    # The same words with other workers go on with it, and there is nothing left but what was refused.
    run_transplant(tiny, config_for(texts, sizes, workers=3), out, show=False)
    assert started.asked == [[[names[2], None]]]


@pytest.mark.slow
def test_rows_of_an_order_are_shared_where_choices_are_few(tiny, texts, sizes, tmp_path, started):
    alone = run_transplant(tiny, config_for(texts, sizes, "mla"), tmp_path / "alone", show=False)
    together = run_transplant(tiny, config_for(texts, sizes, "mla", workers=2), tmp_path / "out", show=False)
    same(alone, together, (tmp_path / "alone", tmp_path / "out"))
    # All that workers had to do; the rest is made where the model is.
    assert len(started.asked) == 2 and all(piece is not None for items in started.asked for _, piece in items)
    assert sorted(piece for items in started.asked for _, piece in items) == list(range(4))


def test_a_choice_that_ends_its_process_twice_is_refused_and_the_others_are_made(tiny, texts, sizes, tmp_path):
    asked: list[Any] = []

    class Dies:
        def __init__(self, request: Mapping[str, Any], said: queue.Queue[dict[str, Any]]) -> None:
            self.items = request["items"]
            asked.append([name for name, _ in self.items])
            self.dies = any("mla" in name for name, _ in self.items)
            self.inner = None if self.dies else Called(request, said, 10**6)

        def poll(self) -> Ending:
            return Ending(-9, "died of SIGKILL") if self.dies else Ending()

        def stop(self) -> None:
            return

        def wait(self) -> None:
            return

    @contextmanager
    def launcher(*given: Any, **more: Any) -> Iterator[Any]:
        yield Dies

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "launcher", launcher)
        config = config_for(texts, sizes, "mla;standard[window=4,sinks=1]@0;standard[window=4,sinks=1]@1", workers=2)
        found = run_transplant(tiny, config, tmp_path / "out", show=False)
    assert found.choices[0].refused == "its process died of SIGKILL twice, the second time by itself"
    assert not found.choices[1].refused and not found.choices[2].refused


def test_what_workers_cannot_do_is_told(texts, sizes, tmp_path):
    model = build(n_layers=3, vocab_size=256)
    with pytest.raises(InputError, match="workers read the model themselves: give the folder"):
        run_transplant(model, config_for(texts, sizes, workers=2), tmp_path / "out", show=False)
    with pytest.raises(InputError, match=r"ray\.cores is of the engine ray"):
        config_for(texts, sizes, ray_cores=2)


def test_where_the_work_is_done_is_no_term_of_it(texts, sizes):
    config = config_for(texts, sizes, workers=2, engine="ray", ray_address="head:6379")
    assert TransplantConfig.from_request(json.loads(json.dumps(config.as_request()))) == config
    assert flat(config)["ray.address"] == "head:6379"


@pytest.mark.slow
def test_a_worker_that_is_killed_is_begun_again_and_the_weights_are_the_same(tiny, texts, sizes, tmp_path):
    heal = HealSettings(tokens=640, length=16, points=1, save_every=2)
    alone = run_transplant(tiny, config_for(texts, sizes, heal=heal), tmp_path / "alone", show=False)
    out, config = tmp_path / "out", config_for(texts, sizes, heal=heal, workers=2)
    killed: list[int] = []

    def kill_one() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and not killed:
            for stat in Path("/proc").glob("[0-9]*/stat"):
                try:
                    parent = int(stat.read_text().rpartition(")")[2].split()[1])
                    words = (stat.parent / "cmdline").read_text()
                except (OSError, ValueError, IndexError):
                    continue
                if parent == os.getpid() and "blockyard.transplant.worker" in words:
                    killed.append(int(stat.parent.name))
                    # It has read the model by then, or is about to.
                    time.sleep(3)
                    os.kill(killed[0], signal.SIGKILL)
                    break
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    together = run_transplant(tiny, config, out, show=False)
    thread.join(timeout=60)
    assert killed
    same(alone, together, (tmp_path / "alone", out))
