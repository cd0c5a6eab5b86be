"""Comparisons end to end, on models and texts so small that a run takes a moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import blockyard
from blockyard.compare import live, measure, runs
from blockyard.compare.budget import expected_steps, steps_for, steps_left
from blockyard.compare.compare import compare_lm
from blockyard.compare.plan import LOCK, folder_of
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.report import html, write
from blockyard.report import text as report_text
from blockyard.training.compilation import compiler_missing
from blockyard.training.folder import LOCK as RUN_LOCK
from blockyard.training.folder import locked_folder
from blockyard.training.interrupt import Interrupted
from tests.fixtures.folders import ROOT

STEPS, TOKENS_PER_STEP = 24, 4 * 16


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    """One thread, and measuring loops that only prove that they run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 3)
    monkeypatch.setattr(measure, "DECODE_ROUNDS", 1)
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    words = ["yard", "block", "mixer", "vein", "of", "the", "a", "seed"]
    draw = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(draw.choice(words) for _ in range(2000)))
    return path


def groups_for(text: Path, **train) -> dict:
    model = {"d_model": 32, "n_layers": 2, "n_heads": 2, "context": 16}
    options = {"batch_size": 4, "threads": 1, "compile": "off", "precision": "fp32", "eval_batches": 2, "warmup": 2}
    return {"model": model, "train": {**options, **train}, "data": {"path": str(text)}}


def terms(blocks: str = "standard;relu2", **changes) -> CompareConfig:
    quick = {"budget_value": STEPS * TOKENS_PER_STEP, "seeds": 2, "slice_steps": 5, "evaluations": 4}
    return CompareConfig(blocks, **{**quick, "sample_tokens": 8, "measure_memory": False, **changes})


def compare(config: CompareConfig, groups: dict, out: Path) -> dict:
    """A comparison whose report has no figures: drawing takes longer than everything else here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (write, html, report_text):
            patch.setattr(module, "charts_of", lambda found, parts: [])
        return compare_lm(config, groups, out, show=False)


def without_timings(value):
    """The report with every field left out that is a timing, or words about one."""
    timings = {"created", "speed", "memory", "seconds", "cpu_seconds", "seconds_total", "cost", "command"}
    timings |= {"verdict", "answers"}
    if isinstance(value, dict):
        return {key: without_timings(item) for key, item in value.items() if key not in timings}
    return [without_timings(item) for item in value] if isinstance(value, list) else value


def test_two_choices_and_two_seeds_end_in_a_report(tmp_path, text):
    found = compare_lm(terms(), groups_for(text), tmp_path / "out", show=False)
    assert [choice["name"] for choice in found["choices"]] == ["standard", "relu2"]
    for choice in found["choices"]:
        assert [run["seed"] for run in choice["runs"]] == [0, 1]
        assert all(run["status"] == "finished" and run["tokens"] == STEPS * TOKENS_PER_STEP for run in choice["runs"])
        for run in choice["runs"]:
            assert run["final_loss"] == pytest.approx(run["validation"]["loss"][-1], abs=1e-4)
            assert run["best_loss"] <= run["final_loss"]
        assert abs(choice["match"]["miss"]) <= 0.02
        assert choice["sample"]["prompt"] == found["choices"][0]["sample"]["prompt"]
        assert choice["cache_bytes_per_token"] == 2 * 2 * 32 * 4  # layers, keys and values, width, float32
        assert choice["speed"]["train_wall"]["n"] == 3
    for name in ("report.html", "report.json", "report.csv", "report.md", "final-loss.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert found["provenance"]["data"]["sha256"]


def test_the_same_seed_gives_every_choice_the_same_batches(tmp_path, text, monkeypatch):
    from blockyard.tasks.lm.task import LMTask

    seen: dict[tuple[str, int], list] = {}
    original = LMTask.batch

    def spy(task, step, rows):
        batch = original(task, step, rows)
        key = (str(task.model.config.layers[0]), task.config.seed)
        seen.setdefault(key, []).append((step, batch["input_ids"].sum().item()))
        return batch

    monkeypatch.setattr(LMTask, "batch", spy)
    compare(terms(match="none"), groups_for(text), tmp_path / "out")
    for seed in (0, 1):
        ours = [batches[:STEPS] for (_, s), batches in seen.items() if s == seed]
        assert len(ours) == 2
        assert ours[0] == ours[1]


def test_runs_of_one_seed_advance_in_turns(tmp_path, text, monkeypatch):
    from blockyard.training.trainer import Trainer

    order = []
    original = Trainer.advance

    def spy(trainer, steps):
        order.append((trainer.out.parent.name.split("-")[0], trainer.step))
        return original(trainer, steps)

    monkeypatch.setattr(Trainer, "advance", spy)
    compare(terms(seeds=1), groups_for(text), tmp_path / "out")
    assert order[:4] == [("standard", 0), ("relu2", 0), ("relu2", 5), ("standard", 5)]


def killed(tmp_path: Path, text: Path, kills: int, seed: int, workers: int, rates: str = "one") -> None:
    """A comparison killed at random moments ends in the report of an uninterrupted one, timings apart."""
    source = str(Path(blockyard.__file__).parents[1])
    words = [str(tmp_path), str(text), str(kills), str(seed), str(workers), rates]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill.comparison", *words], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == kills, "the comparison ended before all kills had hit"
    whole, again = (write.load_report(tmp_path / name) for name in ("whole", "killed"))
    assert again["settings"]["compare"].pop("workers") == workers and whole["settings"]["compare"].pop("workers") == 1
    assert without_timings(again) == without_timings(whole)
    for choice in whole["choices"]:
        assert [run["status"] for run in choice["runs"]] == ["finished"] * 2


def test_killed_and_continued_equals_uninterrupted(tmp_path, text):
    killed(tmp_path, text, kills=2, seed=0, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_while_it_looks_for_rates_and_continued_equals_uninterrupted(tmp_path, text, workers, seed):
    """Probes are killed, too: most kills come among their steps, which are made before all others."""
    killed(tmp_path, text, kills=4, seed=seed, workers=workers, rates="0.5,1,2,4,8")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_five_times_at_random_and_continued_equals_uninterrupted(tmp_path, text, workers, seed):
    killed(tmp_path, text, kills=5, seed=seed, workers=workers)


def test_a_stop_that_comes_as_the_last_run_of_a_seed_ends_stops_the_next_seeds(tmp_path, text, monkeypatch):
    from blockyard.compare import turns

    record = turns.record_run

    def stop_then_record(job, *rest, **more):
        if job.planned.name == "standard" and job.seed == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return record(job, *rest, **more)

    monkeypatch.setattr(turns, "record_run", stop_then_record)
    with pytest.raises(Interrupted):
        compare(terms("standard"), groups_for(text), tmp_path / "out")
    assert (folder_of(tmp_path / "out", "standard", 0) / "result.json").exists()
    assert not folder_of(tmp_path / "out", "standard", 1).exists()


def test_workers_left_by_a_killed_comparison_are_waited_for(tmp_path, text, monkeypatch):
    groups, config = groups_for(text), terms("standard", seeds=1)
    folder = folder_of(tmp_path / "out", "standard", 0)
    lock = locked_folder(folder, RUN_LOCK, "the run", "process")  # as an orphan holds it that saves
    waited = []

    def then_let_go(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            lock.close()

    monkeypatch.setattr(runs.time, "sleep", then_let_go)
    found = compare(config, groups, tmp_path / "out")
    assert len(waited) == 2 and found["choices"][0]["runs"][0]["status"] == "finished"


def test_a_new_choice_and_a_new_seed_with_workers_only_run_what_is_missing(tmp_path, text):
    out, config = tmp_path / "out", terms(seeds=1)
    compare(config, groups_for(text), out)
    kept = {name: (folder_of(out, name, 0) / "result.json").stat().st_mtime_ns for name in ("standard", "relu2")}
    found = compare(terms("standard;relu2;glu", seeds=2, workers=2), groups_for(text), out)
    assert {name: (folder_of(out, name, 0) / "result.json").stat().st_mtime_ns for name in kept} == kept
    assert [[run["seed"] for run in choice["runs"]] for choice in found["choices"]] == [[0, 1]] * 3
    alone = compare(terms("standard;relu2;glu", seeds=2), groups_for(text), tmp_path / "alone")
    assert [c["runs"] for c in without_timings(found)["choices"]] == [
        c["runs"] for c in without_timings(alone)["choices"]
    ]


def test_a_new_choice_and_a_new_seed_only_run_what_is_missing(tmp_path, text):
    out = tmp_path / "out"
    compare(terms(seeds=1), groups_for(text), out)
    kept = folder_of(out, "standard", 0) / "result.json"
    before = kept.stat().st_mtime_ns
    found = compare(terms("standard;relu2;glu", seeds=2), groups_for(text), out)
    assert kept.stat().st_mtime_ns == before
    assert [[run["seed"] for run in choice["runs"]] for choice in found["choices"]] == [[0, 1]] * 3


def test_speed_is_measured_over_the_lengths_asked_for(tmp_path, text, monkeypatch):
    config = terms(seeds=1, lengths=(32, 8))
    found = compare_lm(config, groups_for(text), tmp_path / "out", show=False)
    for choice in found["choices"]:
        assert choice["scaling"]["lengths"] == [8, 32]
        assert min(choice["scaling"]["tokens_per_second"]) > 0
    assert (tmp_path / "out" / "speed-length.png").stat().st_size > 0
    # Measured once: the same command only draws again.
    monkeypatch.setattr(measure, "length_scaling", None)
    again = compare(config, groups_for(text), tmp_path / "out")
    assert again["choices"][0]["scaling"] == found["choices"][0]["scaling"]


def test_several_workers_give_the_same_report_as_one(tmp_path, text):
    groups, config = groups_for(text), terms()
    one = compare(config, groups, tmp_path / "one")
    two = compare(replace(config, workers=2), groups, tmp_path / "two")
    assert two["settings"]["compare"].pop("workers") == 2 and one["settings"]["compare"].pop("workers") == 1
    assert without_timings(two) == without_timings(one)
    # With one worker the same folder has nothing left to do.
    kept = folder_of(tmp_path / "two", "relu2", 1) / "result.json"
    before = kept.stat().st_mtime_ns
    compare(config, groups, tmp_path / "two")
    assert kept.stat().st_mtime_ns == before


def test_what_a_worker_cannot_do_is_one_line(tmp_path, text):
    groups, config = groups_for(text), terms(seeds=1, workers=2)
    folder = folder_of(tmp_path / "out", "relu2", 0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("task: lm\n")
    with pytest.raises(InputError, match="--resume with another configuration"):
        compare(config, groups, tmp_path / "out")


def test_other_terms_in_the_same_folder_are_refused(tmp_path, text):
    out = tmp_path / "out"
    compare(terms(seeds=1), groups_for(text), out)
    with pytest.raises(InputError, match=r"train\.lr was None, now 0\.001"):
        compare(terms(seeds=1), groups_for(text, lr=0.001), out)
    with pytest.raises(InputError, match=r"budget\.value"):
        compare(terms(seeds=1, budget_value=999), groups_for(text), out)


def test_a_folder_in_use_is_refused(tmp_path, text):
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="in use by another comparison"):
            compare(terms(), groups_for(text), out)


def test_a_choice_whose_runs_diverge_is_reported_and_not_ranked(tmp_path, text):
    groups = groups_for(text, lr=1e30, optimizer="adamw", grad_clip=0.0)
    found = compare(terms(seeds=1), groups, tmp_path / "out")
    assert found["verdict"]["kind"] == "none"
    assert {run["status"] for choice in found["choices"] for run in choice["runs"]} == {"diverged"}
    assert all(choice["sample"] is None for choice in found["choices"])


def test_a_budget_in_seconds_ends_runs_by_their_clock(tmp_path, text):
    config = terms(seeds=1, budget_unit="seconds", budget_value=0.4, slice_steps=4)
    found = compare(config, groups_for(text), tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "compare.json").read_text())["plan"]
    for choice in found["choices"]:
        run = choice["runs"][0]
        assert run["seconds"] >= 0.4 or run["steps"] == plan[choice["name"]]["steps"]
        assert run["final_loss"] is not None


def test_a_budget_in_flops_gives_the_cheaper_model_more_steps(tmp_path, text):
    config = terms("standard;standard+relu2[d_ff=8]", seeds=1, match="none", budget_unit="flops", budget_value=3e8)
    found = compare(config, groups_for(text), tmp_path / "out")
    flops = [choice["runs"][0]["flops"] for choice in found["choices"]]
    steps = [choice["runs"][0]["steps"] for choice in found["choices"]]
    assert flops == pytest.approx([3e8, 3e8], rel=0.05)
    assert steps[1] > steps[0]


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ("standart", "Did you mean 'standard'"),
        ("standard;standard", "twice"),
        ("standard;relu2[d_fff=3]", "did you mean 'd_ff'"),
        ("standard;;relu2", "empty choice"),
    ],
)
def test_a_bad_choice_is_refused_before_any_text_is_read(tmp_path, blocks, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        compare(terms(blocks), groups_for(tmp_path / "no-such-text"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget_value": 0}, "budget.value=0 must be a number above 0"),
        ({"budget_unit": "hours"}, "budget.unit='hours' is not one of"),
        ({"match": "size"}, "match='size' is not one of"),
        ({"seeds": 0}, "seeds=0 should be at least 1"),
    ],
)
def test_terms_out_of_range_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        terms(**changes)


def test_options_of_blocks_belong_into_brackets(tmp_path, text):
    with pytest.raises(InputError, match="in brackets behind their name"):
        compare(terms(), {**groups_for(text), "vft": {"rank": 4}}, tmp_path / "out")


def test_the_recorded_command_asks_for_the_same_comparison():
    config = terms("standard;standard[window=8]", match="none")
    groups = {"model": {"d_model": 32}, "data": {"path": "a b.txt"}, "vft": {"stabilizer": None}}
    command = config.command("lm", groups, "out")
    assert "--blocks 'standard;standard[window=8]'" in command
    assert "--match none" in command
    assert "--budget.value 1536" in command
    assert "--data.path 'a b.txt'" in command
    assert "--vft.stabilizer null" in command  # none is one of its choices
    assert "--budget.unit" not in command  # a default


def test_peak_memory_grows_with_the_model(text):
    from dataclasses import replace

    from blockyard.tasks.settings import resolve

    run = resolve({**groups_for(text), "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "context": 16}})
    small = replace(run, model=replace(run.model, vocab_size=256))
    large = replace(small, model=replace(small.model, d_model=512))
    found = measure.peak_memory({"small": small, "large": large})
    if found["small"]["peak_bytes"] is None:
        pytest.skip(found["small"]["how"])
    # 2 * 512 * 256 + 12 * 512**2 weights with gradients and at least one state: well above 40 MB.
    assert found["large"]["peak_bytes"] > found["small"]["peak_bytes"] + 30e6


def test_steps_follow_from_the_budget():
    assert steps_for("tokens", 1000, tokens_per_step=100, flops_per_step=1) == 10
    assert steps_for("flops", 1000, tokens_per_step=1, flops_per_step=300) == 3
    assert steps_for("seconds", 10, tokens_per_step=1, flops_per_step=1, seconds_per_step=1.0) == 30
    assert expected_steps("seconds", 30) == 10 and expected_steps("tokens", 30) == 30
    with pytest.raises(InputError, match="less than one step takes"):
        steps_for("tokens", 10, tokens_per_step=100, flops_per_step=1)
    assert steps_left(-0.5, 1.0, 25) == 0
    assert steps_left(5, 1.0, 25) == 5
    assert steps_left(10, 0.01, 25) == 25


def test_plain_lines_show_the_runs_in_training(capsys, monkeypatch):
    monkeypatch.setattr(live, "PLAIN_SECONDS", 0.0)
    board = live.make_board(True)
    board.show([live.Line("standard", 0, part=0.5, loss=1.25, status="training"), live.Line("relu2", 0)])
    board.close()
    assert capsys.readouterr().err == "standard seed 0  50%  loss 1.2500\n"


def test_the_live_table_shows_every_run():
    console = pytest.importorskip("rich.console")
    table = live.Table()
    try:
        lines = [live.Line("standard", 0, 0.5, 1.25, None, 1000.0, "training"), live.Line("relu2[d_ff=8]", 1)]
        drawn = console.Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        drawn.print(table._table(lines))
        text = drawn.export_text()
    finally:
        table.close()
    assert "relu2[d_ff=8]" in text
    assert "1.2500" in text
    assert "waiting" in text


class Ticking:
    """A clock that moves on by five milliseconds whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.005
        return self.now

    process_time = perf_counter


def test_a_run_ended_by_the_clock_ends_its_schedule_with_it(tmp_path, text, monkeypatch):
    monkeypatch.setattr("blockyard.training.clock.time", Ticking())
    # Measured as twice as fast as it then is: the schedule must follow the clock, not the plan.
    monkeypatch.setattr(measure, "seconds_per_step", lambda runs, data, budget: dict.fromkeys(runs, 0.0025))
    config = terms("standard", seeds=1, budget_unit="seconds", budget_value=0.4, slice_steps=2)
    run = compare(config, groups_for(text), tmp_path / "out")["choices"][0]["runs"][0]
    rows = [json.loads(line) for line in (folder_of(tmp_path / "out", "standard", 0) / "metrics.jsonl").open()]
    rates = [row["lr"] for row in rows if "lr" in row]
    assert run["seconds"] == pytest.approx(0.4, abs=0.02)
    assert rates[-1] < 0.1 * max(rates)


def test_a_pace_measured_on_a_busy_machine_still_lets_the_budget_be_spent(tmp_path, text, monkeypatch):
    monkeypatch.setattr("blockyard.training.clock.time", Ticking())
    # Measured as half as fast as it then is.
    monkeypatch.setattr(measure, "seconds_per_step", lambda runs, data, budget: dict.fromkeys(runs, 0.01))
    config = terms("standard", seeds=1, budget_unit="seconds", budget_value=0.4, slice_steps=2)
    run = compare(config, groups_for(text), tmp_path / "out")["choices"][0]["runs"][0]
    assert run["seconds"] == pytest.approx(0.4, abs=0.02)


@pytest.mark.skipif(compiler_missing() is not None, reason="needs a C++ compiler")
def test_a_compilation_that_was_asked_for_is_planned_in_even_where_it_does_not_pay() -> None:
    from blockyard.tasks.settings import resolve

    run = resolve({"model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 8}, "train": {"compile": "on"}})
    run = replace(run, model=replace(run.model, vocab_size=16))
    auto = replace(run, train=replace(run.train, compile="auto"))
    assert measure._with_compilation(auto, eager=0.01, budget=1.0) == pytest.approx(0.01)
    assert measure._with_compilation(run, eager=0.01, budget=1.0) > 0.1


def test_a_budget_shorter_than_a_step_is_no_division_by_zero() -> None:
    from blockyard.tasks.settings import resolve

    run = resolve({"model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 8}})
    run = replace(run, model=replace(run.model, vocab_size=16))
    seconds = measure._with_compilation(run, eager=1.0, budget=0.01)
    with pytest.raises(InputError, match="less than one step"):
        steps_for("seconds", 0.01, tokens_per_step=1, flops_per_step=1, seconds_per_step=seconds)
