"""Pooling of a descriptor is what it says."""

import math

import torch

from blockyard.spectral.pooling import QueryPooling


def test_pooling_is_what_it_says():
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    counts = torch.tensor([10, 6])
    x[1, 6:] = 0
    matrix = torch.randn(8, 8, dtype=torch.float64)

    def project(rows):
        return rows @ matrix

    for row, n in ((0, 10), (1, 6)):
        q = x[row, :n] @ matrix
        mean = QueryPooling("mean", 2, 4)
        torch.testing.assert_close(mean(x, project, counts, torch.float64)[row], q.mean(0))
        attention = QueryPooling("attention", 2, 4).double()
        heads = q.view(n, 2, 4)
        weights = ((heads * attention.query).sum(-1) / 2).softmax(0)
        expected = (weights[..., None] * heads).sum(0).flatten()
        torch.testing.assert_close(attention(x, project, counts, torch.float64)[row], expected)
        dct = QueryPooling("dct", 2, 4).double()
        time = torch.arange(n).double() + 0.5
        expected = sum(
            (torch.cos(math.pi * m * time / n)[:, None, None] * heads).mean(0) * dct.orders[m, :, None]
            for m in range(4)
        )
        torch.testing.assert_close(dct(x, project, counts, torch.float64)[row], expected.flatten())
