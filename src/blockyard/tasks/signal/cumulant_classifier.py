"""The baseline: a classifier of hand-made features, cumulants of the symbols that a blind receiver reads.

For every class and SNR of a grid the cumulants are taken as normally distributed (Swami and Sadler 2000 take them so);
the likelihood of a class is the mean over the grid, since the SNR is not known either.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blockyard.tasks.signal.features import CUMULANTS, cumulants
from blockyard.tasks.signal.generator import GeneratedSignals
from blockyard.tasks.signal.receiver import power, receive

# Frames of each class and SNR that means and covariances come from.
FRAMES = 60
_ROWS = 512


class CumulantClassifier:
    """Gaussians over cumulants, one for every class and SNR.

    Args:
        source: of the frames that they are fitted to, of no seed that a training has.
        seed: of these frames.
    """

    def __init__(self, source: GeneratedSignals, seed: int = 77) -> None:
        config = source.config
        self._rate = config.samples_per_symbol if config.scenario == "unlocked" else 0
        classes, levels = len(config.classes), config.snr_grid
        generator = torch.Generator().manual_seed(seed)
        each = torch.arange(classes).repeat_interleave(FRAMES)
        means, factors = [], []
        for level in levels:
            frames = source.generator.generate(
                len(each), generator, modulation=each, snr=torch.full((len(each),), float(level))
            )
            values = features(frames.iq, self._rate).view(classes, FRAMES, CUMULANTS)
            mean = values.mean(1)
            away = values - mean.unsqueeze(1)
            covariance = away.transpose(1, 2) @ away / FRAMES
            ridge = 1e-4 + 0.02 * covariance.diagonal(dim1=1, dim2=2)
            factors.append(torch.linalg.cholesky(covariance + torch.diag_embed(ridge)))
            means.append(mean)
        self._means, self._factors = torch.stack(means, 1), torch.stack(factors, 1)

    def scores(self, iq: Tensor) -> Tensor:
        """Return ln of the likelihood of every class, but for a constant: [n, classes]."""
        values = features(iq, self._rate)
        away = values[:, None, None] - self._means
        white = torch.linalg.solve_triangular(self._factors, away.unsqueeze(-1), upper=False).squeeze(-1)
        log_volume = self._factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = -0.5 * white.square().sum(-1) - log_volume
        return each.logsumexp(-1) - math.log(each.shape[-1])


def features(iq: Tensor, samples_per_symbol: int) -> Tensor:
    """Return cumulants of frames [n, length], float64 [n, CUMULANTS]; samples per symbol as for `receive`."""
    found = []
    for rows in iq.split(_ROWS):
        level = power(rows).mean(1, keepdim=True).clamp(min=1e-30).sqrt()
        found.append(cumulants(receive(rows / level, samples_per_symbol)).double())
    return torch.cat(found)
