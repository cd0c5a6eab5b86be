"""What the suite says of other people's mixers: bare outputs, leaks behind chunks, no traits, no positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from blockyard.conformance import check, mixer_checks
from blockyard.conformance.suite import Row, run_case
from blockyard.errors import InputError
from blockyard.registry.register import Traits
from blockyard.standard.attention import StandardAttention
from tests.fixtures.unordered_blocks import Bare, BuiltByTorchsWord, ByArgument, ByTorchsWord, Fading, Running, Table

FUTURE = "changing the future leaves the past as it was"
PAST = {FUTURE, "the jacobian of the past in the future is zero", "a longer input continues a shorter one"}
ORDER = "whether it knows the order of positions is found out"
HIDES = "whether it hides the future by itself is found out"
LENGTHS = "every length works down to a single position"
GROWTH = "a cache that grows keeps what it holds"


def row(cls: type, name: str, traits: Traits | None = None, **options: object) -> Row:
    """One check's row of the report."""
    (case,) = (case for case in mixer_checks(cls, options, traits=traits) if case.name == name)
    return run_case(case)


@pytest.mark.parametrize("cls", [Bare, Running], ids=lambda c: c.__name__)
def test_a_mixer_that_returns_its_output_alone_passes(cls: type) -> None:
    report = check(cls)
    assert report.ok, str(report)


@pytest.mark.parametrize("form", [lambda x: [x, None], lambda x: (x, None, 0), lambda x: {"out": x}])
def test_what_is_neither_an_output_nor_a_pair_fails(form) -> None:
    class Odd(Running):
        def forward(self, x: Tensor):
            return form(super().forward(x))

    found = row(Odd, "the output is bare or a pair with no weights unless asked")
    assert found.outcome == "failed" and "forward should return its output or (output, weights | None)" in found.reason


# Leaks


@pytest.mark.parametrize("length", [64, 128, 256, 512, 1000])
def test_a_leak_behind_a_chunk_is_found(length: int) -> None:
    class Leaking(Running):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return torch.cat([out[:, :length], out[:, length:] + 1e-3 * x[:, -1:]], 1) if x.shape[1] > length else out

    found = {name: row(Leaking, name).outcome for name in PAST}
    assert found["a longer input continues a shorter one"] == "failed" and found[FUTURE] == "failed"
    assert row(Running, FUTURE).outcome == "passed"


def test_a_leak_within_a_chunk_of_128_is_found() -> None:
    class Chunked(Running):
        """Every position sees its chunk to the end."""

        def forward(self, x: Tensor) -> Tensor:
            chunks = x.split(128, dim=1)
            seen = torch.cat([c.mean(1, keepdim=True).expand_as(c) if c.shape[1] == 128 else c for c in chunks], 1)
            return super().forward(x) + 1e-3 * seen

    assert {name for name in PAST if row(Chunked, name).outcome == "failed"} == PAST


def test_a_cache_that_goes_wrong_behind_a_chunk_is_found() -> None:
    class Cut(StandardAttention):
        def forward(self, x, *, cache=None, **arguments):
            out, weights = super().forward(x, cache=cache, **arguments)
            return (out * 1.01 if cache is not None and cache.length > 512 else out), weights

    found = row(Cut, GROWTH)
    assert found.outcome == "failed" and found.reason.startswith("in 1031 positions: ")
    assert row(StandardAttention, GROWTH).reason == "tried up to 1031 positions"


@pytest.mark.parametrize("cls", [Bare, ByArgument, ByTorchsWord, BuiltByTorchsWord], ids=lambda c: c.__name__)
def test_leaks_are_looked_for_in_whatever_a_model_can_make_causal(cls: type) -> None:
    found = row(cls, FUTURE)
    assert (found.outcome, found.reason) == ("passed", "tried up to 1031 positions")

    class Leaking(cls):  # type: ignore[misc]
        def attend(self, x: Tensor, **how: object) -> Tensor:
            return super().attend(x, **how) + 1e-3 * x.mean(1, keepdim=True)

    assert row(Leaking, FUTURE).outcome == "failed"


class Alone(nn.Module):
    """Attends to what came before, and says so nowhere."""

    def __init__(self, d_model: int, n_heads: int, until: int = 5000):
        super().__init__()
        self.map, self.until = nn.Linear(d_model, d_model), until

    def forward(self, x: Tensor) -> Tensor:
        out = self.map(x.cumsum(1))
        return out if x.shape[1] < self.until else out + x[:, -1:]


def test_a_mixer_that_says_nothing_of_causality_is_tried_all_the_same() -> None:
    assert row(Alone, FUTURE).outcome == "skipped" and "declares no Traits(causal=True)" in row(Alone, FUTURE).reason
    found = row(Alone, HIDES)
    assert found.outcome == "noted" and "registered with Traits(causal=True, bidirectional=False)" in found.reason
    assert row(Alone, HIDES, until=3).reason.startswith("it sees the future")
    behind = row(Alone, HIDES, until=200)
    assert behind.outcome == "failed" and behind.reason.startswith("in 257 positions: outputs before t=")


# How far was tried


def test_the_report_says_how_far_was_tried_and_takes_a_refusal_of_more_for_an_answer() -> None:
    class Short(Running):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] > 300:
                raise ValueError("at most 300 positions")
            return super().forward(x)

    assert row(Running, LENGTHS).reason == "tried up to 1031 positions"
    for name in (LENGTHS, *PAST):
        assert row(Short, name).outcome == "passed", row(Short, name)
    assert row(Short, LENGTHS).reason == "tried up to 257 positions; 1031 are refused: at most 300 positions"


def test_a_crash_at_a_length_is_a_fault_and_named_with_it() -> None:
    class Small(Table):
        def __init__(self, d_model: int, n_heads: int):
            super().__init__(d_model, n_heads)
            self.table = nn.Parameter(torch.zeros(100, d_model))

    found = row(Small, LENGTHS)
    assert found.outcome == "failed" and found.reason.startswith("in 257 positions: RuntimeError: ")


# Positions


@pytest.mark.parametrize("cls", [Bare, Running, ByTorchsWord], ids=lambda c: c.__name__)
def test_a_mixer_without_positions_is_told_so_and_does_not_fail_for_it(cls: type) -> None:
    found = row(cls, ORDER)
    assert found.outcome == "noted" and found.reason.startswith("no positions of its own: ")
    assert "--model.positions auto or learned" in found.reason


@pytest.mark.parametrize("cls", [Fading, Table, StandardAttention], ids=lambda c: c.__name__)
def test_nothing_is_noted_of_a_mixer_that_knows_the_order(cls: type) -> None:
    assert row(cls, ORDER).outcome == "passed" and row(cls, ORDER).reason == ""


def test_traits_that_claim_an_order_that_is_not_known_fail() -> None:
    wrong = Traits(causal=True, bidirectional=True, order=True)
    assert row(Running, ORDER, wrong).reason == "its traits say order=True; it is order=False"
    # They speak of the options' defaults.
    assert row(StandardAttention, ORDER, rope="none").outcome == "noted"


# Constructors


def test_a_constructor_of_other_names_is_told_those_that_a_model_gives() -> None:
    class Theirs(nn.Module):
        def __init__(self, dim, num_heads, depth):
            super().__init__()

        def forward(self, x):
            return x

    with pytest.raises(InputError) as told:
        check(Theirs)
    line = str(told.value)
    assert "needs dim, num_heads, depth (dim is d_model here, num_heads is n_heads here)" in line
    assert (
        "d_model, n_heads, causal, is_causal, rope_theta, rope_scaling, norm_eps, dropout" in line
        and "--with dim=…" in line
    )
    assert "\n" not in line


def test_a_constructor_that_raises_is_one_line_with_its_place() -> None:
    class Breaks(Running):
        def __init__(self, d_model: int, n_heads: int):
            raise RuntimeError("no such table\nand more")

    with pytest.raises(InputError, match=r"Breaks cannot be constructed: RuntimeError: no such table \(test_fo.*line"):
        check(Breaks)
