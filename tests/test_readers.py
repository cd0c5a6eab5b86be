"""Every reader on generated contents: it reads them, or says in one line what is wrong with them."""

# ruff: noqa: E402
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
pytest.importorskip("optuna")
yaml = pytest.importorskip("yaml")
h5py = pytest.importorskip("h5py")
openpyxl = pytest.importorskip("openpyxl")
wavfile = pytest.importorskip("scipy.io.wavfile")

from hypothesis import HealthCheck, Phase, given, settings

from blockyard.bench.write import load_bench
from blockyard.claims.keep import MeasurementStore
from blockyard.cli.prompts import read_prompt_file
from blockyard.compare.plan import State
from blockyard.compare.results import read_metrics
from blockyard.errors import InputError
from blockyard.files import parse_json
from blockyard.registry.builtin import TASKS
from blockyard.registry.yamlfile import read_yaml
from blockyard.report.write import load_report
from blockyard.tasks.classify.reader import read_rows
from blockyard.tasks.price.calibrate import Calibration
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.run import load_run, read_run, train
from blockyard.tasks.signal.files import annotated_snr, read_iq
from blockyard.tasks.signal.recordings.opening import open_recordings
from blockyard.tasks.signal.recordings.understanding import understanding
from blockyard.text.readers import read_path
from blockyard.text.saved import load_tokenizer
from blockyard.training.decisions import Decisions, Remembered
from blockyard.training.folder import RunFolder
from blockyard.tune.output import load_record
from tests.fixtures.contents import arrays, contents, npy, tensors
from tests.fixtures.malicious import MODEL, files_of, groups_of, inputs

# Contents over all readers: in every run, and in the slow form.
QUICK, FULL = 3_000, 100_000
Read = Callable[[Path], Any]


def table(columns: dict[str, Any]) -> bytes:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def archive(**arrays_in_it: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays_in_it)
    return buffer.getvalue()


IQ = np.exp(1j * np.arange(32)).astype(np.complex64)
SIGMF = {
    "global": {"core:datatype": "cf32_le", "core:version": "1.2.0", "core:offset": 0, "core:num_channels": 1},
    "captures": [{"core:sample_start": 0}],
    "annotations": [{"core:sample_start": 0, "core:sample_count": 32, "capture_details:SNRdB": 10.0}],
}
DAYS = [f"2024-01-{day:02}" for day in range(1, 29)]
PRICES = ("Date,Close,Volume\n" + "".join(f"{day},{100 + n % 7}.5,{n}\n" for n, day in enumerate(DAYS))).encode()
ROWS = b'text,label\n"a b",x\nc d,y\ne,x\n'
TEXT = "ein Text\nüber Größe\n".encode()
SETTINGS = b"task: lm\nmodel:\n  d_model: 8\n  n_layers: 1\ntrain: {steps: 2, lr: 1e-3}\ndata.path: a.txt\n"


def sigmf(path: Path) -> None:
    path.with_suffix(".sigmf-data").write_bytes(IQ.tobytes())
    read_iq(path)
    annotated_snr(path, 8, 4)


def rows_of(path: Path) -> None:
    read_rows(path, format="auto", text_field="text", label_field="label", labels="optional")


def record_of(load: Read) -> Read:
    return lambda path: load(path.parent)


def recordings(path: Path) -> None:
    for recording in open_recordings(path):
        understanding(recording)
        recording.read()


def wav(iq: np.ndarray) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, 48_000, iq.astype(np.complex64).view(np.float32).reshape(-1, 2))
    return file.getvalue()


def hdf5(iq: np.ndarray) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as made:
        made["iq"] = iq
    return file.getvalue()


def sigmf_archive(iq: np.ndarray) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("a/a.sigmf-meta", json.dumps(SIGMF).encode()), ("a/a.sigmf-data", iq.tobytes())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def workbook(rows: bytes) -> bytes:
    file, made = io.BytesIO(), openpyxl.Workbook()
    for row in rows.decode().splitlines():
        made.active.append([float(cell) if cell[:1].isdigit() and "-" not in cell else cell for cell in row.split(",")])
    made.save(file)
    return file.getvalue()


# Name of the file, a valid content, what reads it.
FILES: dict[str, tuple[str, bytes, Read]] = {
    "settings": ("a.yaml", SETTINGS, read_yaml),
    "JSON": ("a.json", json.dumps(SIGMF).encode(), lambda path: _json(path)),
    "text": ("a.txt", TEXT, lambda path: list(read_path(path))),
    "JSONL": ("a.jsonl", b'{"text": "a"}\n{"text": "b"}\n', lambda path: list(read_path(path))),
    "parquet of texts": ("a.parquet", table({"text": ["a", "b"]}), lambda path: list(read_path(path))),
    "labelled CSV": ("a.csv", ROWS, rows_of),
    "labelled TSV": ("a.tsv", ROWS.replace(b",", b"\t"), rows_of),
    "labelled JSONL": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', rows_of),
    "prices in CSV": ("p.csv", PRICES, lambda path: read_prices(path)),
    "prices in parquet": ("p.parquet", table({"Date": DAYS, "Close": [1.5] * 28}), lambda path: read_prices(path)),
    "npy": ("a.npy", npy(IQ), read_iq),
    "npz": ("a.npz", archive(iq=IQ), read_iq),
    "wav": ("a.wav", wav(IQ), recordings),
    "HDF5": ("a.h5", hdf5(IQ), recordings),
    "raw samples": ("a.cf32", IQ.tobytes(), recordings),
    "SigMF archive": ("a.sigmf", sigmf_archive(IQ), recordings),
    "prices in a workbook": ("p.xlsx", workbook(PRICES), lambda path: read_prices(path)),
    "SigMF": ("a.sigmf-meta", json.dumps(SIGMF).encode(), sigmf),
    "prompts": ("a.txt", b"one\ntwo\n", read_prompt_file),
    "prompts in JSONL": ("a.jsonl", b'"one"\n{"prompt": "two"}\n', read_prompt_file),
    "report": ("report.json", b'{"schema": "blockyard.report/1", "choices": []}', record_of(load_report)),
    "benchmark": ("bench.json", b'{"schema": "blockyard.bench/1", "rows": []}', load_bench),
    "search": ("tune.json", b'{"schema": "blockyard.tune/1", "trials": []}', record_of(load_record)),
    "claims": (
        "claims.json", b'{"schema": 1, "machine": "m", "rows": {}}', lambda path: MeasurementStore(path, "machine")
    ),
    "comparison": ("compare.json", b'{"schema": "blockyard.compare-state/1", "terms": {}}', lambda path: _state(path)),
    "metrics": ("metrics.jsonl", b'{"step": 1, "loss": 2.0}\n{"step": 2}\n', lambda path: _metrics(path)),
    "decisions": ("decisions.json", b'{"k": {"eager_ms": 1}}', lambda path: _decisions(path)),
    "calibration": (
        "calibration.json", b'{"levels": [0.5], "shifts": [[0.1]], "rows": 9, "why": ""}',
        lambda path: Calibration.load(path.parent),
    ),
}  # fmt: skip


def _json(path: Path) -> None:
    with contextlib.suppress(ValueError):
        parse_json(path.read_bytes())


def _state(path: Path) -> None:
    State(path.parent).close()


def _metrics(path: Path) -> None:
    (path.parent / "config.yaml").write_text("model: {}\n")
    folder = RunFolder(path.parent, resume=True)
    try:
        folder.rewind_metrics(3)
        folder.read_environment()
    finally:
        folder.close()
    read_metrics(path.parent)


def _decisions(path: Path) -> None:
    memory = Remembered(torch.nn.Linear(2, 2), Decisions("fp32", "highest"), (1,))
    memory.path, memory.key = path, "k"
    assert isinstance(memory.compiled, list)
    assert memory.eager_ms is None or isinstance(memory.eager_ms, float)
    memory.put(eager_ms=1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny run of every task."""
    folder = tmp_path_factory.mktemp("runs")
    harmless = inputs(tmp_path_factory.mktemp("inputs"))
    for task in TASKS:
        train(groups_of(task, harmless, folder / "cache"), folder / task, task=task)
    return {task: folder / task for task in TASKS}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Tally:
    """What came of the contents that a reader was given."""

    def __init__(self) -> None:
        self.read = self.refused = 0

    def call(self, read: Callable[[], Any]) -> None:
        # A library's warning would be a second line, and belongs into the first.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read()
                self.read += 1
            except InputError as error:
                assert str(error).strip()
                self.refused += 1


def generated(strategy: Any, body: Callable[[bytes], None], count: int) -> None:
    """Run a body on so many drawn contents, always the same ones."""

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False, phases=(Phase.generate,),
    )  # fmt: skip
    @given(strategy)
    def over(data: bytes) -> None:
        body(data)

    over()


FORMS = [pytest.param(QUICK, id="quick"), pytest.param(FULL, id="full", marks=pytest.mark.slow)]
# Most of the contents go to single files, the others to those of run folders, which take longer.
SHARE, RUNS_SHARE = 5 * len(FILES) // 4, 5 * len(TASKS)


@pytest.mark.parametrize("count", FORMS)
@pytest.mark.parametrize("kind", FILES)
def test_a_reader_reads_or_refuses(kind: str, count: int, tmp_path: Path) -> None:
    name, valid, read = FILES[kind]
    folder, tally = tmp_path / "files", Tally()
    folder.mkdir()

    def body(data: bytes) -> None:
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        (folder / name).write_bytes(data)
        tally.call(lambda: read(folder / name))

    strategy = contents(valid) | arrays() if name.endswith(".npy") else contents(valid)
    generated(strategy, body, count // SHARE)
    if kind not in ("report", "benchmark", "search", "claims", "comparison", "prices in parquet"):
        assert tally.read
    if kind not in ("JSON", "metrics", "decisions"):
        assert tally.refused


@pytest.mark.parametrize("count", FORMS)
@pytest.mark.parametrize("task", TASKS)
def test_a_run_folder_loads_or_is_refused(
    task: str, count: int, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made[task], folder)
    load_run(folder)
    # Of the files that loading reads; the others have their own readers above.
    names = [n for n in files_of(folder) if not n.endswith(("lock", "optimizer.safetensors", "metrics.jsonl"))]
    assert len(names) >= 4
    tally = Tally()
    for name in names:
        file, before = folder / name, (folder / name).read_bytes()
        state = file.parent / "state.json"
        told = state.read_bytes() if name.endswith(".safetensors") else b""

        def body(data: bytes, file: Path = file, state: Path = state, told: bytes = told) -> None:
            file.write_bytes(data)
            if told:
                # As a careful hand does it: the checksums made right.
                found = json.loads(told)
                found["files"][file.name] = hashlib.sha256(data).hexdigest()
                found["format"] = 1
                found.pop("sha256", None)
                state.write_text(json.dumps(found))
            tally.call(lambda: load_run(folder, which="best"))

        strategy = tensors(before) | contents(before) if told else contents(before)
        generated(strategy, body, max(count // RUNS_SHARE // len(names), 10))
        file.write_bytes(before)
        if told:
            state.write_bytes(told)
    assert tally.refused and tally.read
    capsys.readouterr()


@pytest.mark.parametrize("count", FORMS[1:])
def test_a_tokenizer_folder_loads_or_is_refused(count: int, made: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(made["lm"] / "tokenizer", folder)
    tally = Tally()
    for name in files_of(folder):
        before = (folder / name).read_bytes()

        def body(data: bytes, name: str = name) -> None:
            (folder / name).write_bytes(data)
            tally.call(lambda: load_tokenizer(folder).encode("some text"))

        generated(contents(before), body, count // 100)
        (folder / name).write_bytes(before)
    assert tally.refused and tally.read


def test_weights_of_another_kind_of_number_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder = Path(shutil.copytree(made["lm"], tmp_path / "run"))
    model = next(folder.glob("checkpoints/*/model.safetensors"))
    weights = {name: weight.to(torch.int32) for name, weight in safetensors.load_file(model).items()}
    safetensors.save_file(weights, model)
    state = json.loads((model.parent / "state.json").read_text())
    state["files"][model.name] = hashlib.sha256(model.read_bytes()).hexdigest()
    (model.parent / "state.json").write_text(json.dumps({**state, "format": 1, "sha256": None}))
    with pytest.raises(InputError, match=r"is int32, the model's float32|sha256|checksum"):
        load_run(folder)


def test_settings_that_contain_themselves_or_unfold_without_end_are_refused(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    for text, what in ((laughs, "more than 1,000,000 values"), ("a: &a [*a]\n", "nested more than 100 levels")):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(InputError, match=what):
            read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("value", [None, 5, "a", [], [1], True, {"d_model": []}, {"d_model": {}}], ids=repr)
@pytest.mark.parametrize("group", ["model", "train", "data", "attn", "ffn", "task", "plugins", "vft"])
def test_groups_of_the_wrong_shape_are_refused(group: str, value: Any, made: dict[str, Path], tmp_path: Path) -> None:
    config = yaml.safe_load((made["lm"] / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, group: value}))
    with contextlib.suppress(InputError):
        assert read_run(tmp_path).model.d_model in (MODEL["d_model"], 256)
