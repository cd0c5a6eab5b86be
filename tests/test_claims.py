"""The claims of the source documents: declared as data, measured, judged by their figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockyard.cli import main
from blockyard.errors import InputError
from blockyard.workbench.claims import training
from blockyard.workbench.claims.claim import DOCUMENTS, judge_all, judge_number, judge_ratio
from blockyard.workbench.claims.collect import all_claims, choose, measure_claims, page

SEEDS = Path(__file__).parents[2] / "shared" / "seeds"
INSTANT = choose(upto="instant")
# What the project's specification asks the command to cover.
EXPECTED = {
    "vein.attention", "vein.ffn", "vein.block", "vein.compression", "vein.parameters", "vein.loss", "mla.complexity",
    "mla.memory", "rope.extrapolation", "spectral.complexity", "spectral.memory", "spectral.wavelet_cost",
    "complex.compute", "complex.parameters", "moe.share", "moe.time", "basics.rmsnorm_speed", "basics.conjugated_key",
    "basics.swiglu", "basics.prenorm", "spectral.short", "spectral.precision", "vein.long_sequences", "vein.high_rank",
}  # fmt: skip


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
    for cached in (training._text, training.final_losses):
        cached.cache_clear()
    try:
        rows = measure_claims(choose(("rope.extrapolation", "vein.normals", "basics.rmsnorm_quality")))
    finally:
        for cached in (training._text, training.final_losses):
            cached.cache_clear()
    # Hardly trained: bytes are still all but equally likely.
    assert all(2 < row["figures"][name] < 7 for row in rows for name in row["figures"] if name in ("inside", "rms"))


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
