"""`bench decode`: what it times is what it says, and every form of the result agrees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from blockyard.bench import decode
from blockyard.bench.decode import DecodeBenchConfig, bench_decode
from blockyard.bench.subject import Subject, cached_mixers
from blockyard.bench.timing import Case, Times, interleave, summarise
from blockyard.bench.write import load_bench, write_bench
from blockyard.cli import main
from blockyard.errors import InputError
from blockyard.registry.register import entries
from tests.fixtures.cli import error_of

QUICK = {
    "d_model": 32,
    "n_heads": 2,
    "rounds": 3,
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


# Timing


def test_contestants_take_turns_there_and_back_and_are_rewound_after_each():
    log: list[str] = []

    def clock(work):
        work()
        return 1.0, 0.5

    cases = {name: Case(lambda units, name=name: log.append(name), lambda: log.append("<"), most=1) for name in "abc"}
    interleave(cases, clock, rounds=3, round_seconds=1.0)
    calls = [entry for entry in log if entry != "<"]
    assert calls[-9:] == list("abccbaabc")
    assert log[-18:] == [each for call in calls[-9:] for each in (call, "<")]


@pytest.mark.parametrize(("unit", "expected"), [(0.01, 10), (0.5, 1), (1e-9, 64)], ids=["many", "one", "limit"])
def test_a_round_lasts_as_long_as_asked_and_no_longer_than_a_contestant_allows(unit, expected):
    done: list[int] = []

    def clock(work):
        work()
        return unit * done[-1], unit * done[-1] / 2

    times = interleave({"a": Case(done.append, most=64)}, clock, rounds=2, round_seconds=0.1)["a"]
    assert times.units == expected
    assert times.wall == pytest.approx([unit] * 2)
    assert times.cpu == pytest.approx([unit / 2] * 2)


def test_speed_is_compared_with_the_reference_of_the_same_round():
    mine, reference = Times(1, [1.0, 2.0, 4.0], [1.0, 1.0, 1.0]), Times(1, [2.0, 4.0, 8.0], [3.0, 3.0, 3.0])
    found = summarise(mine, reference, per_unit=4)
    assert found["speedup"] == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 3}
    assert found["speedup_cpu"]["median"] == 3.0
    assert found["per_second"]["median"] == 2.0
    assert summarise(mine, None)["speedup"] is None


# Decoding


def test_every_registered_mixer_with_a_cache_is_timed_by_default():
    known = {e.name for e in entries("attn") if e.traits.causal and e.traits.cache != "none"}
    assert {"standard", "tva", "mla"} <= known == set(cached_mixers())
    bench = bench_decode(DecodeBenchConfig(contexts=(5,), batches=(1,), **QUICK))
    assert {row["choice"] for row in bench["rows"]} == known
    assert bench["rows"][0]["choice"] == "standard"


@pytest.mark.parametrize("cache", ["growing", "static"])
@pytest.mark.parametrize("part", ["mixer", "layer"])
def test_bytes_are_those_of_the_tokens_and_rows_that_are_said_to_be_cached(part, cache):
    config = DecodeBenchConfig(
        blocks="standard;standard[n_kv_heads=1];standard[window=8]/tva[rank=4]", contexts=(70, 200), batches=(1, 3),
        part=part, cache=cache, **QUICK,
    )  # fmt: skip
    bench = bench_decode(config)
    held = {(row["choice"], row["length"], row["batch"]): row["facts"]["cache_bytes"] for row in bench["rows"]}
    assert len(held) == 12
    for length in (70, 200):
        for batch in (1, 3):
            assert held["standard", length, batch] == batch * length * 2 * 32 * 4
            assert held["standard[n_kv_heads=1]", length, batch] == batch * length * 2 * 16 * 4
            window = batch * min(length, 8 - 1 + 64) * 2 * 32 * 4
            vein = batch * length * 2 * (2 * 4) * 4
            assert held["standard[window=8]/tva[rank=4]", length, batch] == (window + vein) / 2


def test_caches_are_as_long_after_a_round_as_before_also_where_they_cannot_be_cropped(monkeypatch):
    lengths = []

    class Watched(decode.Step):
        def run(self, steps):
            before = [cache.length for cache in self.caches]
            super().run(steps)
            lengths.append((before, [cache.length for cache in self.caches], steps))

    monkeypatch.setattr(decode, "Step", Watched)
    monkeypatch.setattr("blockyard.protocol.cache_window.SLACK", 0)
    config = DecodeBenchConfig(blocks="standard[window=4];tva", contexts=(9,), batches=(2,), **QUICK)
    bench_decode(config)
    assert len(lengths) > 10
    assert all(before == [9] and after == [9 + steps] for before, after, steps in lengths)


def test_a_pattern_of_layers_is_measured_per_layer():
    shape = {"d_model": 32, "n_heads": 2, "dtype": torch.float32, "device": torch.device("cpu")}
    assert Subject("standard*3/tva", "mixer", **shape).parameters == (3 * 4 * 32 * 32 + 3 * 2 * 16 + 4 * 32 * 16) // 4
    one, three = (
        bench_decode(DecodeBenchConfig(blocks=blocks, contexts=(40,), batches=(1,), **QUICK))["rows"][-1]
        for blocks in ("tva", "tva*3")
    )
    assert one["facts"] == three["facts"]


def test_files_hold_the_same_figures_and_the_page_needs_no_network(tmp_path):
    bench = bench_decode(DecodeBenchConfig(blocks="tva", contexts=(8, 16), batches=(1, 2), **QUICK), command="again")
    files = write_bench(bench, tmp_path)
    assert load_bench(tmp_path) == json.loads(json.dumps(bench))
    page = files["html"].read_text()
    assert not re.search(r"https?://|<script|<link", page)
    assert page.count("<svg role") == 5
    text = files["md"].read_text()
    for name, path in files.items():
        if name.startswith("png:"):
            assert path.read_bytes().startswith(b"\x89PNG")
            assert f"]({path.name})" in text
    assert sum(line.startswith("| tva |") for line in text.splitlines()) == 4


def test_the_command_prints_a_table_and_the_page(tmp_path, capsys):
    out = tmp_path / "bench"
    words = ["--blocks", "tva[rank=4]", "--contexts", "6,12", "--batches", "1", "--out", str(out)]
    words += [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    assert main(["bench", "decode", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.strip().endswith(str(out / "bench.html"))
    assert printed.count("tva[rank=4]") == 2
    again = load_bench(out)["command"]
    assert again.startswith("blockyard bench decode --blocks 'tva[rank=4]' --d_model 32")
    assert "--contexts 6,12" in again


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--contexts", "0"], "contexts=0 should be whole numbers of at least 1"),
        (["--batches", "none"], "--batches='none' should be list of int"),
        (["--rounds", "0"], "rounds=0 should be at least 1"),
        (["--blocks", "tva,tva"], "blocks names 'tva' twice"),
        (["--blocks", "tvb"], "tvb"),
        (["--device", "cuda:99"], "device='cuda:99'"),
        (["--n_heads", "7"], "n_heads=7 does not divide d_model=512"),
        (["--round_seconds", "0"], "round_seconds=0.0 should be above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_told(tmp_path: Path, capsys, words, told):
    assert told in error_of(capsys, "bench", "decode", "--out", str(tmp_path), *words)


def test_a_mixer_without_a_cache_is_told():
    from blockyard.registry import register as registry

    @registry.register_attn("uncached_toy")
    class Uncached(torch.nn.Module):
        def __init__(self, d_model: int, causal: bool = True):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(d_model))

        def forward(self, x):
            return x * self.weight, None

    try:
        with pytest.raises(InputError, match="'uncached_toy': Uncached has no cache, so it cannot decode"):
            bench_decode(DecodeBenchConfig(blocks="uncached_toy", **QUICK))
    finally:
        registry._register.entries.pop(("attn", "uncached_toy"), None)


def test_a_file_of_another_kind_is_no_benchmark(tmp_path):
    (tmp_path / "bench.json").write_text('{"schema": "other"}')
    with pytest.raises(InputError, match="is no benchmark of this version"):
        load_bench(tmp_path)
