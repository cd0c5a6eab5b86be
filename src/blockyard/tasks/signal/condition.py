"""What a receiver knows beside the samples, told to a signal model: the SNR of each frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.linear import Linear
from blockyard.protocol.costs import Cost, linear_flops

# Beyond ± this many dB an SNR is read as this one: all is noise there, or none is.
MOST_DB = 40.0
# Waves of the SNR: periods of 80, 40, … dB, the shortest a few steps of the usual grid of 5 dB long.
WAVES = 6


def check_snr(snr: Tensor | None, condition: str, frames: int) -> None:
    """Raise InputError unless there is one SNR for each frame where the model is told it, and none where it is not."""
    if snr is None and condition == "snr":
        raise InputError("this model is told the SNR (condition=snr): give snr, in dB, one for each frame")
    if snr is not None and condition != "snr":
        raise InputError("snr is given, but this model takes none (condition=none)")
    if snr is not None and (snr.shape != (frames,) or snr.is_complex()):
        raise InputError(f"snr has shape {tuple(snr.shape)} ({snr.dtype}), expected [{frames}]: dB, one for each frame")


class SnrModulation(nn.Module):
    """x · (1 + γ(SNR)) + β(SNR), feature by feature: FiLM (arXiv 1709.07871), with γ and β linear in waves of the SNR
    in dB, and the identity at the start.

    A complex x is scaled alone. Gains are real, so that a turned x gives the same output turned; a shift would not be.

    Args:
        width: features of x.
        shift: whether to add β; not for complex x.

    Shapes: x [B, ..., width], snr [B] in dB -> the shape of x.
    """

    def __init__(self, width: int, *, shift: bool) -> None:
        super().__init__()
        self.shift = shift
        self.modulate = Linear(2 * WAVES, width * (2 if shift else 1), bias=True)
        nn.init.zeros_(self.modulate.weight)

    def forward(self, x: Tensor, snr: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            change = self.modulate(snr_waves(snr.to(self.modulate.weight.dtype)))
        change = change.reshape(x.shape[0], *(1 for _ in x.shape[2:]), -1)
        if not self.shift:
            if not x.is_complex():
                return x * (1 + change)
            return torch.view_as_complex(torch.view_as_real(x) * (1 + change.to(x.real.dtype)).unsqueeze(-1))
        gain, shift = change.chunk(2, dim=-1)
        return torch.addcmul(shift, x, 1 + gain)

    def cost(self) -> Cost:
        """Return parameters, and forward FLOPs of one frame."""
        d_out, d_in = self.modulate.weight.shape
        return Cost(sum(p.numel() for p in self.parameters()), linear_flops(1, (d_in, d_out)))


def snr_waves(snr: Tensor) -> Tensor:
    """Return sines and cosines of SNRs in dB: [B] -> [B, 2 · WAVES]."""
    wave = torch.arange(1, WAVES + 1, dtype=snr.dtype, device=snr.device) * (math.pi / MOST_DB)
    angle = snr.clamp(-MOST_DB, MOST_DB).unsqueeze(-1) * wave
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
