"""A mixer of your own: registered by decorator, checked, and trained for a few steps.

Run: python examples/custom_mixer.py
"""

import torch
from torch import nn

from blockyard import LMConfig, Traits, TransformerLM, register_attn
from blockyard.conformance import check
from blockyard.protocol import check_input


@register_attn("decay", traits=Traits(causal=True, bidirectional=False))
class DecayingMean(nn.Module):
    """Each position sees an exponentially decaying mean of the past.

    Args:
        d_model: width of the residual stream.
        n_heads: not used.
        decay: weight of the past, per position, in (0, 1).
    """

    def __init__(self, d_model: int, n_heads: int, decay: float = 0.9):
        super().__init__()
        self.d_model, self.decay = d_model, decay
        self.map = nn.Linear(d_model, d_model)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        check_input(x, self.d_model)  # a wrong shape becomes one clear line
        distance = torch.arange(x.shape[1], device=x.device)
        behind = distance[:, None] - distance
        weights = self.decay ** behind.clamp(min=0) * (behind >= 0)
        return self.map((weights / weights.sum(-1, keepdim=True)).to(x.dtype) @ x), None


def main() -> None:
    report = check(DecayingMean)
    print(report)
    assert report.ok, "the mixer breaks the protocol"

    torch.manual_seed(0)
    # One decaying layer after each standard one; options in brackets are checked against the constructor.
    config = LMConfig(vocab_size=256, blocks="standard/decay[decay=0.8]", d_model=64, n_layers=4, context=32)
    model = TransformerLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog. " * 30))
    for step in range(60):
        start = torch.randint(0, len(text) - 33, (8, 1))
        window = text[start + torch.arange(33)]
        loss = model(window[:, :-1], targets=window[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: {loss.item():.3f} nats")
    print(f"end: {loss.item():.3f} nats")


if __name__ == "__main__":
    main()
