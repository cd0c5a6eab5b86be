"""The claims of the source documents: declared as data, measured, judged by their figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from blockyard import get_attention
from blockyard.claims import timing, training
from blockyard.claims.claim import DOCUMENTS, judge_all, judge_number, judge_ratio
from blockyard.claims.collect import BEGIN, END, all_claims, choose, measure_claims, page, row_line
from blockyard.claims.keep import MeasurementStore, keeping_in
from blockyard.claims.memory import saved_bytes
from blockyard.cli import main
from blockyard.errors import InputError
from tests.fixtures.folders import ROOT

SEEDS = ROOT.parent / "shared" / "seeds"
INSTANT = choose(upto="instant")
PAGE = ROOT / "docs" / "claims.md"
# What the project's specification asks the command to cover.
EXPECTED = {
    "vein.attention", "vein.ffn", "vein.block", "vein.compression", "vein.parameters", "vein.loss", "mla.complexity",
    "mla.memory", "rope.extrapolation", "spectral.complexity", "spectral.memory", "spectral.wavelet_cost",
    "spectral.wavelet_gain", "spectral.paper_128k", "spectral.gate_size", "complex.compute", "complex.parameters",
    "moe.share", "moe.time", "basics.rmsnorm_speed", "basics.rmsnorm_quality", "basics.conjugated_key",
    "basics.swiglu", "basics.prenorm", "spectral.short", "spectral.precision", "vein.long_sequences",
    "vein.high_rank", "price.presets",
}  # fmt: skip
# Instant measurements of random numbers in floating point: their last digits are the machine's.
ROUNDED = {"basics.conjugated_key", "rope.relative", "rope.length", "complex.rotation", "vein.compatible"}


def test_every_claim_that_should_be_is_there():
    assert {claim.key for claim in all_claims()} >= EXPECTED


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the source documents are not here")
def test_every_claim_names_a_line_of_its_document():
    for claim in all_claims():
        lines = (SEEDS / f"{claim.document}.md").read_text(encoding="utf-8").splitlines()
        assert 1 <= claim.line <= len(lines), claim.key
        assert lines[claim.line - 1].strip(), f"{claim.key}: line {claim.line} is empty"


@pytest.fixture(scope="module")
def measured():
    return {row["key"]: row for row in measure_claims(INSTANT)}


def test_counted_claims_come_out_as_known(measured):
    assert measured["vein.parameters"]["figures"]["parameters"] == 2_964_373
    assert measured["vein.compression"]["figures"]["ratio"] == 96
    assert measured["vein.recommended_rank"]["measured"] == "6, 11, 16"
    assert round(measured["mla.memory"]["figures"]["own_expression"]) == 356
    assert 2.4 < measured["vein.block"]["figures"]["document_T128"] < 2.5
    assert measured["complex.rotation"]["figures"]["default"] < 1e-12
    assert measured["spectral.replacement"]["figures"]["causal"] == 0


def test_verdicts_of_counted_claims(measured):
    false = {"vein.attention", "vein.ffn", "vein.block", "vein.parameters", "mla.complexity", "mla.memory",
             "basics.conjugated_key", "complex.norm_phase"}  # fmt: skip
    holds = {"rope.relative", "rope.length", "moe.share", "mla.compression", "spectral.complexity"}
    assert {key for key in false if measured[key]["verdict"] != "false"} == set()
    assert {key for key in holds if measured[key]["verdict"] != "holds"} == set()


def test_a_verdict_follows_from_the_figures():
    assert [judge_ratio(m, 100) for m in (120, 90, 60, 10)] == ["holds", "holds", "partly", "false"]
    assert [judge_number(m, 100) for m in (105, 85, 50)] == ["holds", "partly", "false"]
    assert [judge_all(*held) for held in ((True, True), (True, False), (False, False))] == ["holds", "partly", "false"]


def test_a_difference_within_the_seeds_interval_counts_as_none():
    assert training.better((1.0, 1.01, 1.02), (1.5, 1.51, 1.52)) == "holds"
    assert training.better((1.5, 1.51, 1.52), (1.0, 1.01, 1.02)) == "false"
    assert training.better((1.0, 1.2, 1.4), (1.05, 1.25, 1.45)) == "partly"


def test_trained_claims_train(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path))
    monkeypatch.setattr(training, "TEXT_BYTES", 60_000)
    small = {"steps": 3, "batch_size": 2, "eval_batches": 1}
    monkeypatch.setattr(training, "_TRAIN", training.replace(training._TRAIN, **small))
    monkeypatch.setattr(training, "SEEDS", (0, 1))
    training._text.cache_clear()
    keys = ("rope.extrapolation", "vein.manifold", "vein.normals", "vein.slow_start", "basics.rmsnorm_quality")
    kept = MeasurementStore(tmp_path / "kept.json", "here")
    try:
        rows = measure_claims(choose(keys), kept=kept)
        monkeypatch.setattr(training, "_run", None)  # everything is in the file
        again = measure_claims(choose(keys), kept=MeasurementStore(tmp_path / "kept.json", "here"))
    finally:
        training._text.cache_clear()
    figures = {name: value for row in rows for name, value in row["figures"].items()}
    # Hardly trained: bytes are still all but equally likely.
    assert all(2 < figures[name] < 7 for name in ("inside", "outside", "rms", "slow", "frozen"))
    assert 1 > figures["left_4"] > figures["left_16"] > figures["left_32"] > 0
    assert again == rows


def test_other_tasks_train_for_claims(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path))
    monkeypatch.setattr(training, "SEEDS", (0, 1))
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"{'ab' * (i % 9 + 1)},{i % 2}\n" for i in range(40)))
    tiny = {"d_model": 16, "n_layers": 2, "n_heads": 2}
    train = {"steps": 2, "batch_size": 4, "eval_batches": 1}
    recall = {"task": "mqar", "length": 8, "vocab_size": 8, "sizes": (2,), "val_rows": 4}
    for task, blocks, groups in (
        ("recall", "spectral[window=8]/standard", {"model": tiny, "train": train, "data": recall}),
        ("classify", "spectral[wavelet_on_rate=0.5]",
         {"model": {**tiny, "context": 16}, "train": train, "data": {"path": str(data)}}),
    ):  # fmt: skip
        found = training.accuracies(task, blocks, groups)
        assert len(found) == 2 and all(0 <= accuracy <= 1 for accuracy in found)


def test_kept_measurements_are_not_made_again(tmp_path):
    made = []

    def measure(value: float) -> dict[str, float]:
        made.append(value)
        return {"value": value}

    first = MeasurementStore(tmp_path / "kept.json", "here")
    first.start("a.claim")
    assert [first.recall(lambda: measure(1.5)), first.recall(lambda: measure(float("inf")))] == [
        {"value": 1.5},
        {"value": float("inf")},
    ]
    second = MeasurementStore(tmp_path / "kept.json", "here")
    second.start("a.claim")
    assert [second.recall(lambda: measure(3.0))["value"], second.recall(lambda: measure(4.0))["value"]] == [
        1.5,
        float("inf"),
    ]
    second.start("another.claim")
    assert second.recall(lambda: measure(5.0)) == {"value": 5.0}
    assert made == [1.5, float("inf"), 5.0]


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "cannot be read"),
        ("[]", "holds no kept measurements"),
        ('{"schema": "blockyard.compare/1"}', "holds no kept measurements"),
        ('{"schema": "blockyard.claims-kept/1", "machine": "there", "values": {}}', "was measured on there"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    (tmp_path / "kept.json").write_text(content)
    with pytest.raises(InputError, match=message):
        MeasurementStore(tmp_path / "kept.json", "here")


def test_an_interrupted_command_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    file = str(tmp_path / "kept.json")
    words = ["claims", "spectral.toeplitz_cost", "spectral.wavelet_cost", "--resume", file]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.001)
    assert main([words[0], words[1], *words[3:]]) == 0  # what the first of two left behind
    real = timing.interleave
    monkeypatch.setattr(timing, "interleave", stop)
    assert main(words) != 0
    monkeypatch.setattr(timing, "interleave", real)
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["claims"]) == 2
    assert set(json.loads(Path(file).read_text())["values"]) == {"spectral.toeplitz_cost 1", "spectral.wavelet_cost 1"}


def test_the_command_prints_json_and_writes_a_page(tmp_path, capsys):
    assert main(["claims", "vein.compression", "basics.swiglu_width", "--json", "--page", str(tmp_path / "c.md")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in told["claims"]] == ["vein.compression", "basics.swiglu_width"]
    text = (tmp_path / "c.md").read_text()
    assert "**96×**" in text and DOCUMENTS["basics"] in text


def test_the_command_lists_without_measuring(capsys):
    assert main(["claims", "--list", "--document", "spectre-nlp"]) == 0
    told = capsys.readouterr().out
    assert "spectral.complexity" in told and "vein." not in told


@pytest.mark.parametrize(
    "words,message",
    [
        (["claims", "vein.blok"], "no claim named 'vein.blok' (did you mean 'vein.block'?)"),
        (["claims", "--document", "seed"], "document='seed' is not one of"),
        (["claims", "--upto", "hours"], "upto='hours' is not one of"),
    ],
)
def test_what_does_not_exist_is_one_line(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_unknown_keys_are_refused_in_python():
    with pytest.raises(InputError, match="no claim named"):
        choose(("nothing",))


def test_a_page_tells_every_claim():
    rows = measure_claims(choose(("basics.swiglu_width", "rope.relative")))
    text = page(rows, "a machine")
    assert "2 claims: 2 hold" in text and all(row["key"] in text for row in rows)


def test_a_page_names_what_was_too_long_to_measure(tmp_path, capsys):
    assert main(["claims", "rope", "--upto", "instant", "--page", str(tmp_path / "c.md")]) == 0
    text = (tmp_path / "c.md").read_text()
    assert "1 more were not measured" in text
    assert "**rope.extrapolation**" in text and "| not measured | – |" in text


def test_the_page_of_the_docs_lists_exactly_the_declared_claims():
    told = re.findall(r"^- \*\*([a-z0-9_.]+)\*\*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(claim.key for claim in all_claims())


def test_the_counts_on_the_page_of_the_docs_still_come_out_the_same(measured):
    text = PAGE.read_text(encoding="utf-8")
    lines = {key: row_line(row) for key, row in measured.items() if key not in ROUNDED}
    assert {key for key, line in lines.items() if line not in text} == set()


def test_saved_bytes_are_what_the_graph_keeps_and_no_table_that_others_use():
    x = torch.zeros(3, 5)
    # exp keeps its output and the product both factors, of which one is that output, the other the constant table.
    table = torch.ones(100, 5)
    module = torch.nn.Module()
    module.forward = lambda x: x.exp() * table[:3]
    assert saved_bytes(module, x) == 3 * 5 * 4
    attention = get_attention("standard", d_model=16, n_heads=2)
    before = saved_bytes(attention, torch.zeros(1, 8, 16))
    attention(torch.zeros(1, 3000, 16))  # makes the shared rotary tables longer
    assert saved_bytes(attention, torch.zeros(1, 8, 16)) == before


MIGRATION = [claim.key for claim in all_claims() if claim.needs]


def test_claims_about_migration_are_left_out_without_a_model_and_named(tmp_path, capsys):
    assert set(MIGRATION) == {
        f"migration.{name}" for name in ["loss", "high_rank", "ffn_width", "steps", "latent", "spectral"]
    }
    page_file = str(tmp_path / "c.md")
    assert main(["claims", "vein.compression", "migration", "--page", page_file]) == 0
    assert f"{len(MIGRATION)} claims need a trained model (--model) and are left out" in capsys.readouterr().err
    text = Path(page_file).read_text()
    assert "Not measured: `blockyard claims migration.loss --model MODEL`" in text and "1 claims: 0 hold" in text


@pytest.mark.parametrize(
    "words", [["migration.loss", "vein.compression"], ["migration"]], ids=["by name", "nothing left"]
)
def test_asking_for_one_without_a_model_is_one_line(words, capsys):
    assert main(["claims", *words]) == 2
    assert "is measured on a trained model: name its folder with --model" in capsys.readouterr().err


def test_a_page_that_is_made_again_keeps_what_was_written_by_hand(tmp_path, capsys):
    file, own = tmp_path / "c.md", f"{BEGIN}\n## Mine\n\nwords | of a person\n{END}"
    words = ["claims", "vein.compression", "--page", str(file)]
    assert main(words) == 0
    made = file.read_text()
    file.write_text(f"{made}\n{own}\n\n{BEGIN}\nand without an end\n")
    for _ in range(2):
        assert main(words) == 0
        assert file.read_text() == f"{made}\n{own}\n\n{BEGIN}\nand without an end\n{END}\n"
    file.write_bytes(b"\xff")
    assert main(words) == 2 and file.read_bytes() == b"\xff"
    capsys.readouterr()


class Letters:
    """A tokenizer of characters, for a tiny model."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 61 for letter in text]


def test_claims_about_migration_are_measured_on_a_tiny_model(monkeypatch):
    from blockyard.claims import migration, trained
    from tests.transplant.test_transplant import build

    model = build(n_layers=3)
    found = trained.Trained.__new__(trained.Trained)
    monkeypatch.setattr(trained, "LENGTH", 32)
    monkeypatch.setattr(migration, "LENGTH", 32)
    monkeypatch.setattr(migration, "SPECTRAL_TOKENS", 128)
    monkeypatch.setattr(trained, "CHARACTERS", 2_000)
    found.name, found.model = "tiny", model
    found.calibrate, found.report, found.running = trained._texts(Letters())
    assert found.calibrate.shape == (12, 32) and found.report.shape == (8, 32)
    # No piece has two roles.
    assert not {tuple(p) for p in found.calibrate.tolist()} & {tuple(p) for p in found.report.tolist()}
    monkeypatch.setattr(migration, "trained", lambda: found)
    wide = trained.Step("standard[head_dim=8,v_dim=8]")
    assert abs(found.excess(wide)) < 1e-5
    rows = {row["key"]: row for row in measure_claims(c for c in all_claims() if c.key in ("migration.spectral",))}
    figures = rows["migration.spectral"]["figures"]
    assert figures["replaced"] != figures["dropped"] and figures["error"] > 0
    store = MeasurementStore()
    with keeping_in(store):
        assert found.loss((migration._ffn(4),)) == found.loss((migration._ffn(4),)) > 0
    assert list(store.values) == [f"trained {found.stamp} vft[rank=4] in all"]
