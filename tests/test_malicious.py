"""A campaign of malicious files: whatever a file that may have been downloaded holds, reading it runs nothing.

Every file of freshly made runs (of every task), comparisons, searches and caches is replaced in turn by things that
would leave a canary if they ran, and everything that reads the folder is called: it ends well, or in one line.
"""

# ruff: noqa: E402
from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("optuna")
yaml = pytest.importorskip("yaml")

import blockyard
import toy_task  # noqa: F401 (registers the task `majority`)
from blockyard.bench.write import load_bench
from blockyard.claims.keep import MeasurementStore
from blockyard.cli import main
from blockyard.compare import measure
from blockyard.compare.compare import compare
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.registry.builtin import TASKS
from blockyard.report import html, write
from blockyard.report import text as report_text
from blockyard.report.write import load_report
from blockyard.tasks.price import charts as prices
from blockyard.tasks.price import finish, walk
from blockyard.tasks.price.baselines import REFERENCE, WALK, run_baselines
from blockyard.tasks.price.calibrate import Calibration
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.price.finish import finish_run
from blockyard.tasks.price.forecaster import load_forecaster
from blockyard.tasks.price.walk import walk_forward
from blockyard.tasks.run import load_run, read_run, train
from blockyard.tasks.signal.files import read_iq
from blockyard.text.saved import load_tokenizer
from blockyard.training.checkpoint import STATE_SUM, state_digest
from blockyard.training.decisions import Decisions, Remembered
from blockyard.training.folder import read_config
from blockyard.tune import session
from blockyard.tune.output import load_record
from blockyard.tune.run import tune
from blockyard.tune.settings import TuneConfig
from tests.fixtures.malicious import MODULE, PAYLOADS, files_of, groups_of, inputs, payloads_for, train_by_words
from vein_pictures import draw_run, draw_search

Reader = Callable[[], Any]
# A whole campaign tries every payload in every file; the quick form those that fit the file's name.
EVERY = [pytest.param(False, id="quick"), pytest.param(True, id="every payload", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, no figures and no waiting for the disk."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    for name, value in (("ROUND_SECONDS", 0.002), ("ROUNDS", 1), ("DECODE_ROUNDS", 1)):
        monkeypatch.setattr(measure, name, value)
    for module in (write, html, report_text):
        monkeypatch.setattr(module, "charts_of", lambda found, parts: [])
    for module in (finish, walk):
        # GARCH and its kin read the prices alone, and take long.
        monkeypatch.setattr(module, "run_baselines", partial(run_baselines, names=(REFERENCE, WALK)))
    monkeypatch.setattr(prices, "save_summary_plots", lambda *args: [])
    monkeypatch.setattr(session, "write_report", lambda record, out: {"html": Path(out) / "report.html"})
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, given: dict[str, Path]) -> dict[str, Path]:
    """A tiny run of every task, and the cache that they filled."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        train_by_words(task, groups_of(task, given, folder / "cache"), folder / task)
    levels = read_run(folder / "price").model.quantiles
    Calibration(levels, np.zeros((2, len(levels))), 9).save(folder / "price")
    return {path.name: path for path in folder.iterdir() if path.is_dir()}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that anything malicious makes; the module of the same purpose lies here and on the path."""
    path = tmp_path / "canary"
    (tmp_path / f"{MODULE}.py").write_text(f"open({str(path)!r}, 'w').close()\nPARTS = None\nclass Canary: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop(MODULE, None)


def outcome(reader: Reader) -> str:
    """What came of it: "well", "one line", or what went wrong."""
    shown, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
        try:
            status = reader()
        except InputError as error:
            return "one line" if "\n" not in str(error).strip() else f"several lines: {error}"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
    if type(status) is not int or status == 0:
        return "well"
    errors = [line for line in told.getvalue().splitlines() if line.startswith("error: ")]
    return "one line" if status == 2 and len(errors) == 1 else f"status {status}: {told.getvalue()}"


class Campaign:
    """Calls readers on malicious folders and collects what ran or did not end in one line."""

    def __init__(self, canary: Path) -> None:
        self.canary, self.wrong, self.count, self.refused = canary, [], 0, 0

    def attack(self, place: str, file: Path, payload: str, readers: dict[str, Reader]) -> None:
        file.unlink(missing_ok=True)
        file.write_bytes(PAYLOADS[payload](self.canary))
        self.call(f"{place} as {payload}", readers)

    def call(self, what: str, readers: dict[str, Reader]) -> None:
        for name, reader in readers.items():
            came = outcome(reader)
            self.count += 1
            self.refused += came == "one line"
            if came not in ("well", "one line"):
                self.wrong.append(f"{what}: {name}: {came}")
            if self.canary.exists() or MODULE in sys.modules:
                self.wrong.append(f"{what}: {name}: RAN")
                self.canary.unlink(missing_ok=True)
                sys.modules.pop(MODULE, None)

    def passed(self) -> None:
        assert not self.wrong, "\n".join(self.wrong)
        # Neither everything refused unread nor everything read as if nothing were wrong.
        assert 0 < self.refused < self.count


def readers_of(
    task: str, folder: Path, made: dict[str, Path], given: dict[str, Path], every: bool
) -> dict[str, Reader]:
    """Everything that reads a run folder of a task."""
    options = read_config(made[task])
    found: dict[str, Reader] = {
        "load_run": lambda: load_run(folder, which="best"),
        "resume": lambda: train(options, folder, resume=True, task=task),
    }
    generate = ["--tokens", "2", "--temperature", "0"]
    if task == "lm":
        found["generate"] = lambda: main(["generate", str(folder), *generate])
        found["draft"] = lambda: main(["generate", str(made["lm"]), "--draft", str(folder), *generate])
    if task in ("classify", "signal"):
        file = given["rows" if task == "classify" else "iq"]
        found["classify"] = lambda: main(["classify", str(folder), str(file)])
    if task == "price":
        out = str(folder.parent / "table.csv")
        found["load_forecaster"] = lambda: load_forecaster(folder)
        found["forecast"] = lambda: main(["forecast", str(folder), "--out", out, "--plot", "none"])
        if every:
            found["finish_run"] = lambda: finish_run(folder)
            found["backtest"] = lambda: main(["backtest", str(folder), "--out", str(folder.parent / "tested")])
    if every:
        found["train --resume"] = lambda: main(["train", task, "--out", str(folder), "--resume"])
        found["train --config"] = lambda: main(
            ["train", task, "--config", str(folder / "config.yaml"), "--out", str(folder.parent / "again")]
        )
        found["vein pictures"] = lambda: draw_run(folder, folder.parent / "picture.png")
    return found


def fresh(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def test_the_canary_sings_when_something_runs(canary: Path, tmp_path: Path) -> None:
    unsafe: dict[str, Callable[[bytes], Any]] = {
        "pickle": pickle.loads,
        "pickle as text": pickle.loads,
        "torch": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "npy": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        "npz": lambda data: np.load(io.BytesIO(data), allow_pickle=True)["iq"],
        "yaml": lambda data: yaml.load(data, Loader=yaml.UnsafeLoader),
    }
    for name, read in unsafe.items():
        read(PAYLOADS[name](canary))
        assert canary.exists(), name
        canary.unlink()
    importlib.import_module(MODULE)
    assert canary.exists()


@pytest.mark.parametrize("task", TASKS)
def test_what_is_attacked_reads_well_before(
    task: str, made: dict[str, Path], given: dict[str, Path], tmp_path: Path
) -> None:
    """Else a refusal would say nothing: readers must come as far as the file that is replaced."""
    readers = readers_of(task, fresh(made[task], tmp_path / "run"), made, given, every=True)
    readers.pop("vein pictures")
    assert {name: outcome(reader) for name, reader in readers.items()} == dict.fromkeys(readers, "well")


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("task", TASKS)
def test_no_file_of_a_run_folder_runs(
    task: str, every: bool, made: dict[str, Path], given: dict[str, Path], canary: Path, tmp_path: Path
) -> None:
    campaign, folder = Campaign(canary), tmp_path / "run"
    readers = readers_of(task, folder, made, given, every)
    names = files_of(made[task])
    assert len(names) >= 8
    for name in names:
        for payload in payloads_for(name, every):
            fresh(made[task], folder)
            campaign.attack(name, folder / name, payload, readers)
            if name.endswith(".safetensors"):
                # As its author would do it: with the checksum made right.
                fresh(made[task], folder)
                data = PAYLOADS[payload](canary)
                (folder / name).write_bytes(data)
                state = (folder / name).parent / "state.json"
                told = json.loads(state.read_text())
                told["files"][Path(name).name] = hashlib.sha256(data).hexdigest()
                told.pop(STATE_SUM)
                state.write_text(json.dumps(told | {STATE_SUM: state_digest(told)}))
                campaign.call(f"{name} as {payload}, its checksum made right", readers)
    campaign.passed()


@pytest.mark.parametrize("task", TASKS)
def test_plug_ins_that_a_run_names_do_not_run_until_they_are_agreed_to(
    task: str, made: dict[str, Path], given: dict[str, Path], canary: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    train({**groups_of(task, given, made["cache"]), "plugins": [MODULE]}, folder, task=task)
    assert yaml.safe_load((folder / "config.yaml").read_text())["plugins"] == [MODULE]
    # Another user, who has downloaded the folder.
    sys.modules.pop(MODULE)
    canary.unlink()
    readers = readers_of(task, folder, made, given, every=True)
    readers.pop("vein pictures")
    if task == "price":
        readers["walk_forward"] = lambda: walk_forward(folder, None, None)  # type: ignore[arg-type]
    for command in ("compare", "tune"):
        readers[command] = lambda command=command: main([command, task, "--config", str(folder / "config.yaml")])
    for name, reader in readers.items():
        assert outcome(reader) == "one line", name
        assert not canary.exists(), name
    with pytest.raises(InputError, match=rf"config\.yaml wants the plug-in {MODULE}.*--plugin {MODULE}.*--trust"):
        read_run(folder)
    assert str(tmp_path) not in sys.path[1:], "a command looked for modules in the current folder without being asked"
    assert load_run(folder, plugins=[MODULE]).run.plugins == (MODULE,)
    assert canary.exists()
    # It is imported now, so nothing more can run.
    assert load_run(folder).run.plugins == (MODULE,)
    sys.modules.pop(MODULE)
    canary.unlink()
    assert load_run(folder, trust=True).run.plugins == (MODULE,)
    assert canary.exists()
    sys.modules.pop(MODULE)
    canary.unlink()
    again = ["train", task, "--out", str(tmp_path / "again")]
    for words in (["--config", str(folder / "config.yaml")], ["--resume"]):
        for agreed in (["--plugin", MODULE], ["--trust"]):
            if "--resume" not in words:
                shutil.rmtree(tmp_path / "again", ignore_errors=True)
            assert main([*again, *words]) == 2
            assert not canary.exists()
            assert main([*again, *words, *agreed]) == 0
            assert canary.exists()
            sys.modules.pop(MODULE)
            canary.unlink()


def test_nothing_is_written_through_links_of_a_run_folder(
    made: dict[str, Path], given: dict[str, Path], tmp_path: Path
) -> None:
    for task in TASKS:
        for name in files_of(made[task]):
            folder = fresh(made[task], tmp_path / "run")
            victim = tmp_path / "victim"
            victim.write_bytes((folder / name).read_bytes())
            before = victim.read_bytes(), victim.stat().st_mtime_ns
            (folder / name).unlink()
            (folder / name).symlink_to(victim)
            options = read_config(made[task])
            came = outcome(lambda options=options, folder=folder, task=task: train(options, folder, True, task=task))
            assert came in ("well", "one line"), f"{task}: {name}: {came}"
            assert (victim.read_bytes(), victim.stat().st_mtime_ns) == before, f"{task}: {name}"


@pytest.mark.parametrize("every", EVERY)
def test_no_cached_file_runs(
    every: bool, made: dict[str, Path], given: dict[str, Path], canary: Path, tmp_path: Path
) -> None:
    campaign, cache, out = Campaign(canary), tmp_path / "cache", tmp_path / "run"

    def again() -> Path:
        shutil.rmtree(out, ignore_errors=True)
        return train(groups_of("lm", given, cache), out, task="lm")

    names = files_of(made["cache"])
    assert any(name.endswith(".tokens") for name in names)
    for name in names:
        for payload in payloads_for(name, every):
            fresh(made["cache"], cache)
            readers: dict[str, Reader] = {"train": again}
            if name.startswith("tokenizers"):
                readers["load_tokenizer"] = lambda folder=(cache / name).parent: load_tokenizer(folder)
            campaign.attack(name, cache / name, payload, readers)
    if campaign.refused == 0:
        campaign.refused = 1  # A cache that is not as it was written is made anew.
    campaign.passed()


def test_no_decision_cache_runs(canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path))
    memory = Remembered(torch.nn.Linear(2, 2), Decisions("fp32", "highest"), (1,))
    for payload in PAYLOADS:
        memory.path.write_bytes(PAYLOADS[payload](canary))
        assert outcome(lambda: (memory.eager_ms, memory.compiled)) == "well"
        assert outcome(lambda: memory.put(eager_ms=1.0)) == "well"
        assert memory.eager_ms == 1.0
    assert not canary.exists()


TERMS = CompareConfig("standard;tva", budget_value=100, seeds=1, evaluations=1, sample_tokens=2, measure_memory=False)


@pytest.mark.parametrize("every", EVERY)
def test_no_file_of_a_comparison_runs(
    every: bool, made: dict[str, Path], given: dict[str, Path], canary: Path, tmp_path: Path
) -> None:
    options = groups_of("lm", given, made["cache"])
    options["train"] = {"batch_size": 2, "compile": "off", "device": "cpu", "threads": 1}
    first, folder = tmp_path / "first", tmp_path / "comparison"
    compare("lm", TERMS, options, first, show=False)
    readers: dict[str, Reader] = {
        "compare": lambda: bool(compare("lm", TERMS, options, folder, show=False)),
        "load_report": lambda: bool(load_report(folder)),
    }
    names = [name for name in files_of(first) if every or "tva" not in name]
    assert any(name.endswith("result.json") for name in names)
    campaign = Campaign(canary)
    for name in names:
        for payload in payloads_for(name, every)[: None if every else 1]:
            fresh(first, folder)
            campaign.attack(name, folder / name, payload, readers)
    config = next(name for name in names if name.endswith("config.yaml"))
    fresh(first, folder)
    (folder / config).write_text((folder / config).read_text() + f"plugins: [{MODULE}]\n")
    campaign.call(f"{config} with plug-ins", readers)
    campaign.passed()


@pytest.mark.parametrize("every", EVERY)
def test_no_file_of_a_search_runs(every: bool, canary: Path, tmp_path: Path) -> None:
    config = TuneConfig(trials=3, budget_unit="steps", budget_value=2, evaluations=2, seeds=0)
    options = {"model": {"d_model": 8, "n_layers": 1}, "train": {"batch_size": 8, "compile": "off", "device": "cpu"}}
    first, folder = tmp_path / "first", tmp_path / "search"

    def search(out: Path) -> bool:
        return bool(tune("majority", {"train.lr": "1e-3..1e-1 log"}, config, options, out, show=False))

    search(first)
    readers: dict[str, Reader] = {"tune": lambda: search(folder), "load_record": lambda: bool(load_record(folder))}
    names = [name for name in files_of(first) if every or not name.startswith(("trials/0001", "trials/0002"))]
    assert {"journal.log", "search.json", "tune.json"} <= set(names)
    campaign = Campaign(canary)
    for name in names:
        for payload in payloads_for(name, every):
            fresh(first, folder)
            campaign.attack(name, folder / name, payload, readers)
    # Modules that the folder names are not the user's: workers are told the plug-ins, and read none from here.
    fresh(first, folder)
    state = json.loads((folder / "search.json").read_text())
    state["fixed"]["plugins"] = [MODULE]
    (folder / "search.json").write_text(json.dumps(state))
    campaign.call("search.json with plug-ins", readers)
    campaign.passed()


def test_optuna_journals_of_this_kind_hold_no_snapshots() -> None:
    """Optuna unpickles the snapshots of journals that have them; ours is the kind that has none."""
    from optuna.storages.journal import JournalFileBackend

    assert not hasattr(JournalFileBackend, "load_snapshot")


def test_no_record_of_the_workbench_runs(canary: Path, tmp_path: Path) -> None:
    campaign = Campaign(canary)
    for payload in PAYLOADS:
        for name, read in {
            "report.json": load_report,
            "bench.json": load_bench,
            "tune.json": load_record,
            "claims.json": lambda path: MeasurementStore(path, "machine"),
            "search.json": lambda path: draw_search(path, tmp_path / "picture.png"),
            "metrics.jsonl": lambda path: draw_run(path.parent, tmp_path / "picture.png"),
        }.items():
            file = tmp_path / "record" / name
            file.parent.mkdir(exist_ok=True)
            campaign.attack(name, file, payload, {"read": lambda read=read, file=file: bool(read(file))})
    if campaign.refused == campaign.count:
        campaign.refused -= 1  # None of them is a record.
    campaign.passed()


SUFFIXES = (
    ".csv", ".tsv", ".parquet", ".pq", ".pkl", ".pickle", ".joblib", ".pt", ".bin", ".npy", ".npz", ".json", ".jsonl",
    ".txt", ".yaml", ".zip", ".gz", ".xz", ".sigmf-meta", ".sigmf-data", ".sigmf",
)  # fmt: skip


@pytest.mark.parametrize("every", EVERY)
def test_no_file_that_a_command_is_given_runs(
    every: bool, made: dict[str, Path], given: dict[str, Path], canary: Path, tmp_path: Path
) -> None:
    campaign, folder = Campaign(canary), tmp_path / "given"
    flags = {"steps": 1, "compile": "off", "progress": "false", "device": "cpu", "batch_size": 1}
    small = [f"--train.{name}={value}" for name, value in flags.items()]
    small += ["--model.d_model=8", "--model.n_layers=1", "--model.n_heads=2"]
    for suffix in SUFFIXES:
        fits = {".npy": "npy", ".npz": "npz", ".parquet": "parquet", ".pq": "parquet", ".pt": "torch", ".yaml": "yaml"}
        for payload in PAYLOADS if every else (fits.get(suffix, "pickle"),):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "data" / "class").mkdir(parents=True)
            file = folder / "data" / "class" / f"file{suffix}"
            name, out = str(file), f"--out={folder / 'run'}"
            if suffix.startswith(".sigmf-"):
                other = file.with_suffix(".sigmf-data" if suffix == ".sigmf-meta" else ".sigmf-meta")
                other.write_text(json.dumps({"global": {"core:datatype": "cf32_le"}}))
            readers: dict[str, Reader] = {
                "read_iq": lambda file=file: bool(read_iq(file).numel()),
                "read_prices": lambda file=file: bool(read_prices(file).assets),
                "classify text": lambda name=name: main(["classify", str(made["classify"]), name]),
                "classify signal": lambda name=name: main(["classify", str(made["signal"]), name]),
                "forecast": lambda name=name: main(
                    ["forecast", str(made["price"]), name, "--out", str(folder / "f.csv"), "--plot", "none"]
                ),
                "prompts": lambda name=name: main(
                    ["generate", str(made["lm"]), "--prompt_file", name, "--tokens", "1", "--temperature", "0"]
                ),
                "train lm": lambda file=file, out=out: main(
                    ["train", "lm", f"--data.path={file}", f"--data.cache_dir={folder}", out, *small]
                ),
            }
            if every:
                readers["train signal"] = lambda out=out: main(
                    ["train", "signal", f"--data.path={folder / 'data'}", out, *small]
                )
                readers["train price"] = lambda name=name, out=out: main(["train", "price", name, out, *small])
                readers["train classify"] = lambda name=name, out=out: main(
                    ["train", "classify", f"--data.path={name}", out, *small]
                )
                readers["train --config"] = lambda name=name: main(["train", "lm", "--config", name, *small])
            campaign.attack(suffix, file, payload, readers)
            assert not list(tmp_path.rglob("canary*.npy"))
    campaign.passed()


def test_no_code_of_ours_can_run_what_a_file_says() -> None:
    """The source has none of the calls that turn a file into code; `torch.load` says weights_only."""
    found = []
    for path in Path(blockyard.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                if {m.split(".")[0] for m in modules} & {
                    "pickle",
                    "marshal",
                    "shelve",
                    "joblib",
                    "dill",
                    "cloudpickle",
                }:
                    found.append(f"{path}:{node.lineno}: imports a pickler")
            if not isinstance(node, ast.Call):
                continue
            name, words = ast.unparse(node.func), {w.arg: ast.unparse(w.value) for w in node.keywords}
            bad = name in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load")
            bad |= name.endswith(("read_pickle", ".runpy", "import_module_from_file"))
            bad |= name == "torch.load" and words.get("weights_only") != "True"
            bad |= name == "np.load" and words.get("allow_pickle") != "False"
            bad |= words.get("shell") == "True" or words.get("trust_remote_code", "False") != "False"
            bad |= name.startswith("subprocess.") and "sys.executable, '-m'" in ast.unparse(node)
            if bad:
                found.append(f"{path}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not found, "\n".join(found)


@pytest.fixture
def shadows(canary: Path, tmp_path: Path) -> Path:
    """A current folder with files that are named like libraries, and a way to start Python there without it."""
    for name in ("json", "torch", "numpy", "yaml", "safetensors", "rich", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    return tmp_path


def started(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env["PYTHONPATH"] = str(Path(blockyard.__file__).parents[1])
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False, env=env)


def test_the_command_takes_no_library_from_the_current_folder(shadows: Path, canary: Path) -> None:
    done = started(shadows, "-m", "blockyard", "list")
    assert done.returncode == 0, done.stderr
    assert "standard" in done.stdout
    assert not canary.exists()


@pytest.mark.slow
def test_processes_that_are_started_take_no_library_from_the_current_folder(
    shadows: Path, canary: Path, given: dict[str, Path]
) -> None:
    """The whole path: a comparison with workers and measured memory, and a benchmark's memory."""
    tiny = ["--model.d_model=8", "--model.n_layers=1", "--model.n_heads=2", "--model.context=16", "--budget.value=64",
            "--seeds=1", "--workers=2", "--train.batch_size=2", "--train.compile=off", "--sample_tokens=1",
            f"--data.path={given['text']}", f"--data.cache_dir={shadows}"]  # fmt: skip
    done = started(shadows, "-m", "blockyard", "compare", "lm", "--blocks=standard;tva", *tiny)
    assert done.returncode == 0, done.stderr
    report = load_report(shadows / "comparison")
    assert all("fresh process" in choice["memory"]["how"] for choice in report["choices"])
    assert all("not measured" not in choice["memory"]["how"] for choice in report["choices"])
    done = started(shadows, "-m", "blockyard", "bench", "blocks", "--blocks=standard", "--lengths=16", "--out=bench")
    assert done.returncode == 0, done.stderr
    assert not canary.exists()
