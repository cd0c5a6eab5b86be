"""The roofline: its counts against sums by hand, its rates against each other, its shares against the times."""

from __future__ import annotations

import json

import pytest
import torch

from blockyard.bench import roofline
from blockyard.bench.blocks import BlocksBenchConfig, bench_blocks
from blockyard.bench.charts import charts_of
from blockyard.bench.decode import DecodeBenchConfig, bench_decode
from blockyard.bench.roofline import GAUGE, Ceilings, Roof, Work, measure_ceilings, step_work, whole_work
from blockyard.bench.subject import Subject
from blockyard.bench.timing import Times
from blockyard.bench.write import about, load_bench, table, write_bench

QUICK = {"d_model": 32, "n_heads": 2, "rounds": 2, "round_seconds": 1e-4, "threads": 1, "device": "cpu"}
CPU = torch.device("cpu")
# Four projections of 32 x 32, and the gains of two heads' norms.
WEIGHTS = 4 * 32 * 32 + 2 * 16


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roofline, "_ROUNDS", 1)
    monkeypatch.setattr(roofline, "_ROUND_SECONDS", 1e-3)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def subject(name: str, part: str = "mixer", dtype: torch.dtype = torch.float32) -> Subject:
    return Subject(name, part, d_model=32, n_heads=2, dtype=dtype, device=CPU)


@pytest.mark.parametrize("length", [1, 7, 64])
def test_masked_pairs_are_not_counted(length):
    # Scores and means of 32 numbers for every token before, and for itself.
    pairs = sum(t + 1 for t in range(length))
    by_hand = 2 * length * 4 * 32 * 32 + 2 * 2 * 32 * pairs
    work = whole_work(subject("standard"), 3, length, None, training=False)
    assert work.flops == 3 * by_hand
    assert work.bytes == 4 * (WEIGHTS + 2 * 3 * length * 32)
    assert whole_work(subject("standard"), 3, length, None, training=True).flops == 9 * by_hand


@pytest.mark.parametrize("name", ["mla", "complex", "tva", "standard[n_kv_heads=1]"])
def test_every_mixer_that_scores_pairs_says_so(name):
    one = subject(name)
    # What grows with the square of the length is the pairs, and nothing else is.
    flops, pairs = ([getattr(one.cost(n), of) for n in (64, 128, 256)] for of in ("flops", "pair_flops"))
    assert pairs[2] - 2 * pairs[1] == flops[2] - 2 * flops[1] > 0
    assert subject("standard[window=8]").cost(64).pair_flops == 0


def test_a_pattern_counts_per_layer_and_a_mixture_reads_the_experts_it_needs():
    work = whole_work(subject("standard/tva"), 1, 16, None, training=False)
    parts = [whole_work(subject(name), 1, 16, None, training=False) for name in ("standard", "tva")]
    assert work.flops == sum(part.flops for part in parts) / 2
    mixture = subject("standard+moe", "layer")
    one, many = (whole_work(mixture, 1, n, None, training=False) for n in (1, 4096))
    assert one.bytes / 4 < mixture.parameters <= many.bytes / 4


def test_a_step_reads_its_cache_and_half_precision_halves_the_bytes():
    work = step_work(subject("standard"), 2, flops=2 * 2 * WEIGHTS, cache_bytes=1000)
    assert work.bytes == 1000 + 4 * (WEIGHTS + 2 * 2 * 32)
    half = step_work(subject("standard", dtype=torch.bfloat16), 2, flops=2 * 2 * WEIGHTS, cache_bytes=1000)
    assert half.bytes - 1000 == (work.bytes - 1000) / 2


def test_the_slower_of_the_two_rates_sets_the_least_time():
    ceilings = Ceilings(100.0, 2, ((1 << 10, 40.0), (1 << 20, 10.0)))
    assert ceilings.least_seconds(Work(flops=1e6, bytes=10.0)) == (1e4, "products")
    assert ceilings.least_seconds(Work(flops=1.0, bytes=1 << 22)) == (pytest.approx((1 << 22) / 10), "memory")
    assert ceilings.bytes_per_second(1) == ceilings.bytes_per_second(1 << 10) == 40.0
    assert ceilings.bytes_per_second(1 << 15) == pytest.approx(20.0)


def test_a_slow_round_of_the_machine_is_taken_out_of_the_share():
    roof = object.__new__(Roof)
    roof.ceilings = Ceilings(16.0, 2, ((1 << 10, 1e9),))
    # The product of 2 x 2 has 16 FLOPs: a second at best. The choice needs two seconds at least and took four.
    times = {GAUGE: Times(1, wall=[1.0, 3.0, 1.0]), "mine": Times(1, wall=[4.0, 12.0, 4.0])}
    measured: dict = {"mine": {}}
    roof.judge(measured, times, {"mine": Work(flops=32.0, bytes=8.0)})
    assert measured["mine"]["share"] == {"median": 0.5, "low": 0.5, "high": 0.5, "n": 3}
    assert measured["mine"]["limit"] == "products"
    assert measured["mine"]["least_seconds"] == 2.0


def test_measured_rates_are_of_this_machine():
    ceilings = measure_ceilings(torch.float32, CPU)
    rates = [rate for _, rate in ceilings.reading]
    assert 1e8 < ceilings.flops_per_second < 1e15
    assert all(1e8 < rate < 1e14 for rate in rates)


def test_every_row_has_its_share_in_every_form(tmp_path):
    config = {"blocks": "standard;mla;standard+moe", "part": "layer", **QUICK}
    blocks = bench_blocks(BlocksBenchConfig(lengths=(6, 12), memory=False, **config))
    decode = bench_decode(DecodeBenchConfig(contexts=(8,), batches=(2,), **config))
    for bench in (blocks, decode):
        for row in bench["rows"]:
            for measured in row["times"].values():
                assert measured["flops"] > 0 < measured["bytes"]
                assert measured["share"]["median"] > 0
                assert measured["limit"] in ("products", "memory")
        names = {chart.name for chart in charts_of(bench)}
        assert {"decode-roofline"} <= names and any("share" in name for name in names)
        columns, rows = table(bench, brief=True)
        assert "decode of the roofline" in columns
        assert all(len(row) == len(columns) for row in rows)
        assert "FLOP/s in matrix products" in dict(about(bench))["roofline"]
    files = write_bench(blocks, tmp_path)
    assert files["png:forward-roofline"].stat().st_size > 5000


def test_without_a_roofline_and_from_older_files_there_is_no_share(tmp_path):
    bench = bench_decode(DecodeBenchConfig(blocks="standard", contexts=(8,), batches=(1,), roofline=False, **QUICK))
    assert bench["roofline"] is None
    assert "share" not in bench["rows"][0]["times"]["decode"]
    older = {name: value for name, value in bench.items() if name != "roofline"}
    (tmp_path / "bench.json").write_text(json.dumps(older))
    loaded = load_bench(tmp_path)
    write_bench(loaded, tmp_path / "again")
    assert not list((tmp_path / "again").glob("*roofline*"))
    assert "decode of the roofline" not in table(loaded)[0]
