"""One answer of many frames."""

from __future__ import annotations

import pytest
import torch

from blockyard.tasks.signal.frontend import Votes
from blockyard.tasks.signal.frontend.votes import LEAST, Runs


def probabilities(frames: int, classes: int = 5, seed: int = 0, sharp: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(frames, classes, generator=generator)).softmax(-1)


def test_the_vote_is_the_geometric_mean_however_it_is_counted() -> None:
    shares = probabilities(97)
    votes = Votes(5)
    for part in shares.split(13):
        votes.add(part)
    product = shares.double().clamp(min=LEAST).prod(0) ** (1 / 97)
    assert votes.frames == 97
    assert torch.allclose(votes.probabilities(), product / product.sum(), atol=1e-12)


def test_many_frames_that_say_the_same_are_no_surer_than_one() -> None:
    """A hundred frames of one recording share what made the first one wrong."""
    one = torch.tensor([[0.7, 0.2, 0.1]])
    votes = Votes(3)
    votes.add(one.expand(100, 3))
    assert votes.probabilities().tolist() == pytest.approx(one[0].tolist())


def test_the_class_is_that_of_the_product() -> None:
    for seed in range(20):
        shares = probabilities(9, seed=seed)
        votes = Votes(5)
        votes.add(shares)
        assert int(votes.probabilities().argmax()) == int(shares.double().log().sum(0).argmax())


def test_one_frame_does_not_outvote_the_others() -> None:
    shares = torch.tensor([[0.9, 0.1]] * 9 + [[1e-30, 1.0]])
    votes = Votes(2)
    votes.add(shares)
    assert float(votes.probabilities()[0]) > 0.7


def test_the_snr_of_a_vote_is_the_mean_of_what_is_known() -> None:
    votes = Votes(2)
    votes.add(torch.full((3, 2), 0.5), torch.tensor([4.0, torch.nan, 6.0]))
    assert votes.snr == 5.0
    assert Votes(2).snr is None and bool(Votes(2).probabilities().isnan().all())


def test_frames_in_a_row_of_one_class_are_one_run() -> None:
    classes = ["a", "b"]
    shares = torch.tensor([[0.9, 0.1]] * 3 + [[0.2, 0.8]] * 2 + [[0.6, 0.4]] * 4)
    starts, stops = list(range(0, 90, 10)), list(range(10, 100, 10))
    levels = torch.arange(9.0)
    for sizes in ([9], [2, 2, 1, 4], [1] * 9):
        runs, found, place = Runs(classes), [], 0
        for size in sizes:
            part = slice(place, place + size)
            found += runs.add(starts[part], stops[part], shares[part], levels[part])
            place += size
        found += runs.finish()
        assert [(f.start, f.stop, f.label, f.frames) for f in found] == [
            (0, 30, "a", 3), (30, 50, "b", 2), (50, 90, "a", 4)
        ]  # fmt: skip
        assert [round(f.probability, 3) for f in found] == [0.9, 0.8, 0.6]
    # No run reaches over a gap between what is added.
    runs = Runs(classes)
    assert runs.add([0, 10], [10, 20], shares[:2], None) == []
    assert [(f.start, f.stop) for f in [*runs.add([40], [50], shares[:1], None), *runs.finish()]] == [(0, 20), (40, 50)]
    assert runs.finish() == []
    # Nor from one stretch into the next, though no sample lies between them.
    runs = Runs(classes, {0, 20})
    assert runs.add([0, 10], [10, 20], shares[:2], None) == []
    assert [(f.start, f.stop) for f in runs.add([20], [30], shares[:1], None) + runs.finish()] == [(0, 20), (20, 30)]
