"""Runs on the machines of a Ray cluster, one of which is lost: two nodes of one machine, each of its own processes."""

# ruff: noqa: E402, F811
from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'blockyard[ray]'")
from ray.cluster_utils import Cluster

from blockyard.compare import measure
from blockyard.compare.compare import compare_lm
from blockyard.compare.results import read_metrics
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.mirror import is_url
from blockyard.report import html, write
from blockyard.report import text as report_text
from blockyard.transplant import Budget, HealSettings, TransplantConfig, account, run_transplant, work
from blockyard.tune import session
from blockyard.tune.run import tune
from blockyard.tune.settings import TuneConfig
from tests.compare.test_compare import without_timings
from tests.fixtures.folders import PLUGINS
from tests.transplant.conftest import sizes, texts, tiny  # noqa: F401
from tests.transplant.test_spread import same
from tests.tune.test_tune import GROUPS, OVER, found

STORE = 80 * 2**20


class Nodes:
    """Two nodes with a core each; the first one holds the cluster together."""

    def __init__(self) -> None:
        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second = self.cluster.add_node(num_cpus=1, object_store_memory=STORE)
        self.address = self.cluster.address

    def lose_one_when(self, due: Callable[[], bool]) -> threading.Thread:
        def watch() -> None:
            while not due():
                time.sleep(0.05)
            self.cluster.remove_node(self.second, allow_graceful=False)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Nodes]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, value in (("ROUND_SECONDS", 0.005), ("ROUNDS", 3), ("DECODE_ROUNDS", 1)):
        monkeypatch.setattr(measure, name, value)
    for module in (write, html, report_text):
        monkeypatch.setattr(module, "charts_of", lambda found, parts: [])
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    found = Nodes()
    yield found
    ray.shutdown()
    found.cluster.shutdown()
    torch.set_num_threads(threads)


class Heard:
    """A board that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def show(self, lines: Any, *, now: bool = False) -> None:
        return

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        return


def compared(tmp_path: Path, out: str | Path, heard: Heard, monkeypatch: pytest.MonkeyPatch, **terms: Any) -> Any:
    draw = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(draw.choice(["yard", "block", "vein", "of", "the", "a"]) for _ in range(1500)))
    groups = {
        "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "context": 16},
        "train": {"batch_size": 4, "threads": 1, "compile": "off", "precision": "fp32", "eval_batches": 2, "warmup": 2},
        "data": {"path": str(text)},
    }
    monkeypatch.setattr(import_module("blockyard.compare.compare"), "make_board", lambda show, unit: heard)
    quick = {"budget_value": 300 * 64, "seeds": 2, "slice_steps": 25, "rates": "one", "measure_memory": False}
    config = CompareConfig("standard;relu2", **{**quick, "sample_tokens": 8, **terms})
    return compare_lm(config, groups, out if is_url(out) else tmp_path / out, show=False)


@pytest.mark.parametrize("kept", ["folder", "url"])
def test_a_comparison_that_loses_a_machine_ends_in_the_report_of_one_machine(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    # What is at a URL is sent every few seconds: there a run has to last longer than that to be seen midway.
    last = 300 if kept == "folder" else 4000
    budget = {"budget_value": last * 64, "slice_steps": last // 12}
    here = compared(tmp_path, "here", Heard(), monkeypatch, **budget)
    heard, out = Heard(), tmp_path / "there"

    def midway() -> bool:
        # Both machines are at work by then.
        folders = [path.parent for path in out.glob("runs/*/seed-*/metrics.jsonl")]
        steps = [rows[-1]["step"] for folder in folders if (rows := read_metrics(folder))]
        return len(steps) >= 2 and any(50 <= step < last for step in steps)

    lost = nodes.lose_one_when(midway)
    # At a URL every worker has a folder of its own machine, and only what it sent is known elsewhere.
    place = str(out) if kept == "folder" else f"file://{out}"
    there = compared(tmp_path, place, heard, monkeypatch, engine="ray", ray_address=nodes.address, workers=2, **budget)
    lost.join(timeout=60)
    assert any("was lost with its machine; begun again" in line for line in heard.said), heard.said
    for report, workers, engine in ((here, 1, "local"), (there, 2, "ray")):
        terms = report["settings"]["compare"]
        assert (terms.pop("workers"), terms.pop("engine")) == (workers, engine)
        terms.pop("ray_address")
    assert without_timings(there) == without_timings(here)
    # Every run ends once.
    ends = [line for line in heard.said if "val_loss" in line]
    assert len(ends) == 4 and len({line.split(":")[0] for line in ends}) == 4


def test_what_the_cluster_cannot_do_is_one_line(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {"engine": "ray", "ray_address": nodes.address}
    with pytest.raises(InputError, match=r"no machine of the cluster has ray.cores=3, .*; there are: 1 cores"):
        compared(tmp_path, "out", Heard(), monkeypatch, ray_cores=3, **terms)


def test_a_search_that_loses_a_machine_ends_in_the_trials_of_one_machine(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
    monkeypatch.setattr(session, "write_report", lambda record, out: {"html": Path(out) / "report.html"})
    # Drawn by the trial's number alone, so that it does not matter which trial ends first.
    fixed = {"sampler": "random", "pruner": "none", "trials": 6, "budget_unit": "steps", "budget_value": 300}
    groups = {**GROUPS, "plugins": ["toy_task"]}

    def search(out: str, **terms: Any) -> Any:
        config = TuneConfig(**{**fixed, "evaluations": 4, "seeds": 0, **terms})
        return tune("majority", OVER, config, groups, tmp_path / out, show=False)

    here = search("here")
    out = tmp_path / "there"
    lost = nodes.lose_one_when(lambda: len(list(out.glob("trials/*/metrics.jsonl"))) >= 3)
    there = search("there", engine="ray", ray_address=nodes.address, workers=2)
    lost.join(timeout=60)
    assert found(there) == found(here)
    assert [trial["status"] for trial in there["trials"]] == ["finished"] * 6


def test_a_transplant_that_loses_a_machine_ends_in_the_weights_of_one_machine(
    nodes: Nodes, tiny: Path, texts: Any, sizes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(work, "_print", said.append)
    monkeypatch.setattr(account, "decode_costs", partial(account.decode_costs, rounds=2, round_seconds=1e-4))
    blocks = "mla;standard[window=4,sinks=1]@0,2;mla[kv_rank=12,rope_dim=4]@1;mla[kv_rank=8,rope_dim=4]@0"
    # Long enough to be lost in the middle of.
    heal = HealSettings(tokens=6_400, length=16, points=2, save_every=40)
    terms = {"data": texts, "text": sizes, "budget": Budget(cache=0.7, context=64), "heal": heal}
    alone = run_transplant(tiny, TransplantConfig(blocks, **terms), tmp_path / "alone", show=False)
    out = tmp_path / "out"
    lost = nodes.lose_one_when(lambda: len(list(out.glob("healing/*/checkpoints/*/state.json"))) >= 2)
    config = TransplantConfig(blocks, engine="ray", ray_address=nodes.address, workers=2, **terms)
    together = run_transplant(tiny, config, out, show=True)
    lost.join(timeout=60)
    assert any("was lost with its machine; begun again" in line for line in said), said
    same(alone, together, (tmp_path / "alone", out))
