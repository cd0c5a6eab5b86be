"""The embedding of features in groups and of steps in patches."""

import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.price.embedding import GroupedEmbedding, PatchEmbedding, grouping, shares
from blockyard.tasks.price.model import GROUPS
from tests.fixtures.price_models import FEATURES


def test_groups_take_any_width():
    assert shares(7, [5, 4, 4]) == [2, 3, 2] or sum(shares(7, [5, 4, 4])) == 7
    for width in (6, 7, 33, 512):
        found = shares(width, [5, 4, 4, 3, 2, 2])
        assert sum(found) == width and min(found) >= 1
    assert grouping("auto", FEATURES, GROUPS)[0] == [0, 1, 2, 3, 4]
    assert grouping("a=macd,rsi;b=gap", ("gap", "rsi", "macd", "more"), GROUPS) == [[2, 1], [0], [3]]
    with pytest.raises(InputError, match=r"names 'rsj', which is no feature \(did you mean 'rsi'\?\)"):
        grouping("rsj", ("rsi",), GROUPS)
    with pytest.raises(InputError, match="names 'rsi' twice"):
        grouping("a=rsi;b=rsi", ("rsi",), GROUPS)
    with pytest.raises(InputError, match="less than the 2 groups"):
        GroupedEmbedding([[0], [1]], 1)


def test_patches_end_at_the_last_step():
    embedding = PatchEmbedding(2, 8, patch=4, stride=3)
    x = torch.randn(1, 12, 2)
    expected = torch.stack([embedding.projection(x[:, s : s + 4].transpose(1, 2).flatten(1)) for s in (2, 5, 8)], dim=1)
    torch.testing.assert_close(embedding(x), expected)
