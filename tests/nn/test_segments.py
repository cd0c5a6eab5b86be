"""Documents laid out in rows: against loops over them, whatever their lengths."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn import segments as module
from blockyard.nn.dropout import Dropout, set_dropout_keys
from blockyard.nn.segments import Segments, cheapest_cuts

WIDTH = 3


def running(x: Tensor) -> Tensor:
    """A causal function whose output tells which positions it has read, and where it stands."""
    places = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
    return (x.cumsum(1) * places).sin() + x**2


def alone(x: Tensor, numbers: Tensor) -> Tensor:
    """The same in loops, one document at a time."""
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        first = 0
        for end in range(1, x.shape[1] + 1):
            if end == x.shape[1] or numbers[b, end] != numbers[b, first]:
                out[b, first:end] = running(x[b : b + 1, first:end])[0]
                first = end
    return out


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Rows of random documents, some of them filling."""
    length = draw(st.integers(1, 40))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        ends = draw(st.sets(st.integers(1, length), max_size=12)) | {length}
        row, first = torch.empty(length, dtype=torch.long), 0
        for number, end in enumerate(sorted(ends)):
            row[first:end] = -1 - number if draw(st.booleans()) and end == length else number
            first = end
        found.append(row)
    return torch.stack(found)


@settings(max_examples=60, deadline=None)
@given(rows(), st.sampled_from([0, 48, 10**6]))
def test_every_document_gives_what_it_gives_alone_however_they_are_grouped(numbers: Tensor, call: int) -> None:
    before, module.CALL_TOKENS = module.CALL_TOKENS, call
    try:
        segments = Segments(numbers)
    finally:
        module.CALL_TOKENS = before
    x = torch.randn(*numbers.shape, WIDTH, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    out = segments.apart(running, x)
    torch.testing.assert_close(out, alone(x, numbers), rtol=0, atol=1e-12)
    (found,) = torch.autograd.grad((out * weights).sum(), x)
    (expected,) = torch.autograd.grad((alone(x, numbers) * weights).sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (segments.keep is None) == bool((numbers >= 0).all())
    assert segments.laid >= numbers.numel()


def test_places_are_counted_within_documents() -> None:
    segments = Segments(torch.tensor([[7, 7, 7, 2, 2, -1], [0, 1, 1, 1, 1, 1]]))
    assert segments.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    assert segments.count == 5
    assert segments.keep is not None and segments.keep.tolist() == [[True] * 5 + [False], [True] * 6]


def test_second_derivatives_are_those_of_the_documents() -> None:
    segments = Segments(torch.tensor([[0, 0, 0, 1, 1], [0, 1, 2, 2, 2]]))
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: segments.apart(running, x), x)
    _, tangent = torch.func.jvp(lambda x: segments.apart(running, x), (x.detach(),), (torch.ones_like(x),))
    assert torch.isfinite(tangent).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7, unique=True), st.data())
@settings(max_examples=40, deadline=None)
def test_groups_cost_as_little_as_any_cuts(lengths: list[int], data: st.DataObject) -> None:
    lengths.sort(reverse=True)
    counts = [data.draw(st.integers(1, 30)) for _ in lengths]

    def cost(cuts: list[tuple[int, int]]) -> float:
        return sum(
            sum(counts[a:b]) * lengths[a] * (1 + lengths[a] / module.EVEN_LENGTH) + module.CALL_TOKENS for a, b in cuts
        )

    every = []
    for size in range(len(lengths)):
        for inner in combinations(range(1, len(lengths)), size):
            edges = [0, *inner, len(lengths)]
            every.append(cost(list(pairwise(edges))))
    assert cost(cheapest_cuts(lengths, counts)) == pytest.approx(min(every))


def test_many_lengths_are_few_groups() -> None:
    ends = torch.arange(1, 141).cumsum(0)
    numbers = torch.searchsorted(ends, torch.arange(int(ends[-1])), right=True)[None]
    segments = Segments(numbers)
    assert segments.count == 140 and len(segments.groups) <= module.MOST_LENGTHS
    assert segments.laid < 1.2 * numbers.numel()
    x = torch.randn(1, numbers.shape[1], 1, dtype=torch.float64)
    torch.testing.assert_close(segments.apart(running, x), alone(x, numbers))


def test_dropout_is_a_document_s_own_whichever_rows_stand_beside_it() -> None:
    drop = Dropout(0.5)
    numbers = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 2, 2]])
    keys, x = torch.tensor([11, 12, 13]), torch.ones(3, 5, 4)

    def masks(rows: slice) -> Tensor:
        set_dropout_keys(drop, keys[rows])
        return Segments(numbers[rows]).apart(drop, x[rows], drop)

    whole = masks(slice(0, 3))
    assert torch.equal(whole, torch.cat([masks(slice(i, i + 1)) for i in range(3)]))
    # Two documents of one row, and those at the same place of two rows, are not dropped alike.
    assert not torch.equal(whole[0, 0:2], whole[0, 3:5]) and not torch.equal(whole[0, 3:5], whole[2, 3:5])


@pytest.mark.parametrize(
    "numbers",
    [
        torch.zeros(4, dtype=torch.long),
        torch.zeros(2, 3),
        torch.zeros(2, 3, dtype=torch.bool),
        torch.empty(0, 3).long(),
    ],
    ids=["one axis", "floats", "a mask", "empty"],
)
def test_other_numbers_are_refused(numbers: Tensor) -> None:
    with pytest.raises(InputError, match="expected integers"):
        Segments(numbers)


def test_another_shape_and_vmap_are_refused() -> None:
    with pytest.raises(InputError, match=r"segments has shape \(1, 3\), x has \(1, 4, 2\)"):
        Segments(torch.tensor([[0, 0, 1]])).apart(running, torch.randn(1, 4, 2))
    with pytest.raises(InputError, match="vmap hides"):
        torch.func.vmap(lambda n: Segments(n).positions)(torch.zeros(2, 1, 3, dtype=torch.long))
