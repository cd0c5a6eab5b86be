"""`bench blocks`: what it counts is what the formulas say, and every kind of measurement is there."""

from __future__ import annotations

import pytest
import torch

from blockyard.bench import blocks
from blockyard.bench.blocks import BlocksBenchConfig, bench_blocks
from blockyard.bench.memory import peak_bytes
from blockyard.bench.subject import causal_mixers
from blockyard.bench.write import load_bench
from blockyard.cli import main
from blockyard.errors import InputError
from tests.fixtures.cli import error_of

QUICK = {
    "d_model": 32,
    "n_heads": 2,
    "rounds": 2,
    "round_seconds": 1e-4,
    "threads": 1,
    "device": "cpu",
    "roofline": False,
}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_causal_mixer_is_timed_by_default_in_every_way():
    bench = bench_blocks(BlocksBenchConfig(lengths=(6,), memory=False, **QUICK))
    assert {row["choice"] for row in bench["rows"]} == set(causal_mixers()) >= {"standard", "tva", "mla", "complex"}
    for row in bench["rows"]:
        assert {"forward", "forward + backward"} <= set(row["times"])
        assert ("decode" in row["times"]) == (row["note"] == "")


def test_flops_are_counted_beside_the_formula_and_agree():
    config = BlocksBenchConfig(
        blocks="standard;standard[window=5]/tva;mla", lengths=(9, 50), batches=(1, 3), part="layer", memory=False,
        decode=False, **QUICK,
    )  # fmt: skip
    rows = bench_blocks(config)["rows"]
    assert len(rows) == 12
    for row in rows:
        assert row["facts"]["flops_counted"] == row["facts"]["flops_formula"] > 0
    three = {(row["choice"], row["length"], row["batch"]): row["facts"]["flops_counted"] for row in rows}
    assert three["mla", 9, 3] == 3 * three["mla", 9, 1]


def test_lengths_too_long_to_count_have_the_formula_alone(monkeypatch):
    monkeypatch.setattr(blocks, "MOST_COUNTED", 5)
    config = BlocksBenchConfig(blocks="standard", lengths=(6,), memory=False, decode=False, **QUICK)
    (row,) = bench_blocks(config)["rows"]
    assert row["facts"]["flops_counted"] is None
    assert row["facts"]["flops_formula"] > 0


def test_memory_is_measured_in_a_fresh_process_and_grows_with_the_size():
    request = {
        "name": "standard", "part": "mixer", "d_model": 64, "n_heads": 2, "dtype": "float32", "device": "cpu",
        "seed": 0, "plugins": [], "threads": 1, "sizes": [[64, 1], [4096, 8]],
    }  # fmt: skip
    peaks, trouble = peak_bytes(request)
    if trouble:
        pytest.skip(trouble)
    # Queries, keys, values and the output of 32768 tokens at least, in float32.
    assert peaks[1] > 4 * 32768 * 64 * 4
    assert peaks[1] > peaks[0]


def test_memory_that_cannot_be_measured_says_so_and_spoils_nothing():
    peaks, trouble = peak_bytes({"name": "no such mixer"})
    assert (peaks, trouble) == ([], "not measured: it could not be run in a fresh process")


def test_the_command_writes_every_form(tmp_path, capsys):
    out = tmp_path / "bench"
    words = ["--blocks", "tva", "--lengths", "6,12", "--memory", "false", "--out", str(out)]
    words += [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    assert main(["bench", "blocks", *words]) == 0
    assert capsys.readouterr().out.strip().endswith(str(out / "bench.html"))
    assert load_bench(out)["kind"] == "blocks"
    figures = {path.name for path in out.glob("*.png")}
    assert {"forward-time-batch1.png", "forward-backward-speedup-batch1.png", "decode-time-batch1.png"} <= figures


@pytest.mark.slow
def test_compiled_blocks_are_timed_beside_eager_ones():
    config = BlocksBenchConfig(blocks="tva", lengths=(8,), mode="both", memory=False, decode=False, **QUICK)
    for row in bench_blocks(config)["rows"]:
        kinds = {"forward", "forward + backward"}
        assert set(row["times"]) == kinds | {f"{kind}, compiled" for kind in kinds}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lengths", "0"], "lengths=0 should be whole numbers of at least 1"),
        (["--mode", "fast"], "--mode='fast' should be eager | compiled | both"),
        (["--threads", "0"], "threads=0 should be at least 1"),
        (["--blocks", "tva,tva"], "blocks names 'tva' twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_told(tmp_path, capsys, words, told):
    assert told in error_of(capsys, "bench", "blocks", "--out", str(tmp_path), *words)


def test_a_bad_size_is_refused_in_python_too():
    with pytest.raises(InputError, match="batches=-1 should be whole numbers"):
        BlocksBenchConfig(batches=(-1,))
