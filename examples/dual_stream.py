"""Two streams of unequal length: received symbols, and the pilot that tells how the channel turned them.

A frame of QPSK symbols arrives turned by an unknown angle, so that nobody can read it; a short pilot of known symbols
came the same way. The dual-stream block lets every received symbol attend to the pilot. Inputs and features turn with
the channel, and the decision compares the two streams, so it does not depend on the angle.

    python examples/dual_stream.py
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.complex import ComplexLinear, DualStreamBlock, to_pairs
from blockyard.tasks.signal import constellation

SYMBOLS, PILOT, SNR_DB = 24, 8, 12.0


class PilotReceiver(nn.Module):
    """Scores the four points for every received symbol."""

    def __init__(self, d_model: int = 16) -> None:
        super().__init__()
        self.embed_received, self.embed_pilot = ComplexLinear(1, d_model), ComplexLinear(1, d_model)
        self.block = DualStreamBlock(d_model, 2, order="interleaved", cross_gate=True)
        self.head = nn.Linear(2 * d_model, 4)

    def forward(self, received: Tensor, pilot: Tensor) -> Tensor:
        """received [B, SYMBOLS], pilot [B, PILOT] (as received, times the conjugate of what was sent)."""
        x, reference = self.embed_received(received.unsqueeze(-1)), self.embed_pilot(pilot.unsqueeze(-1))
        x, reference, _ = self.block(x, reference)
        # A product with a conjugate takes the channel's angle out.
        return self.head(to_pairs(x * reference.mean(1, keepdim=True).conj()))


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(received, pilot, symbols): one angle per frame, white noise."""
    points = constellation("qpsk").to(torch.complex64)
    symbols = torch.randint(4, (n, SYMBOLS), generator=generator)
    turn = torch.polar(torch.ones(n, 1), 2 * math.pi * torch.rand(n, 1, generator=generator))
    noise = 10 ** (-SNR_DB / 20)
    received = turn * points[symbols] + noise * torch.randn(n, SYMBOLS, generator=generator, dtype=torch.complex64)
    # Noise is as white after the product with the conjugate of a sent symbol of magnitude 1.
    pilot = turn + noise * torch.randn(n, PILOT, generator=generator, dtype=torch.complex64)
    return received, pilot, symbols


def main(steps: int = 150) -> float:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = PilotReceiver()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        received, pilot, symbols = batch(64, generator)
        loss = F.cross_entropy(model(received, pilot).flatten(0, 1), symbols.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        received, pilot, symbols = batch(500, torch.Generator().manual_seed(1))
        right = (model(received, pilot).argmax(-1) == symbols).float().mean().item()
        blind = (model(received, pilot.roll(1, dims=0)).argmax(-1) == symbols).float().mean().item()
    print(f"symbols read with the frame's own pilot: {right:.1%}; with another frame's: {blind:.1%}")
    return right


if __name__ == "__main__":
    main()
