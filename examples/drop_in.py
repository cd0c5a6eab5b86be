"""Another mixer in a stock torch model: `nn.MultiheadAttention` replaced with one import.

An encoder of torch's own learns to say which of its tokens came twice; only the attention is exchanged.

Run: python examples/drop_in.py
"""

import torch
from torch import nn

from blockyard import MultiheadAttention

WIDTH, HEADS, VOCABULARY, LENGTH = 32, 4, 16, 12


class Tagger(nn.Module):
    """Embedding, torch's encoder, and a yes or no for each token."""

    def __init__(self, mixer: str):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        for inner in self.encoder.layers:
            inner.self_attn = MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer=mixer)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(tokens))).squeeze(-1)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(VOCABULARY, (size, LENGTH))
    twice = (tokens[:, :, None] == tokens[:, None, :]).sum(-1) > 1
    return tokens, twice.float()


def main() -> None:
    for mixer in ("standard", "tva"):
        torch.manual_seed(0)
        model = Tagger(mixer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(150):
            tokens, twice = batch(64)
            loss = nn.functional.binary_cross_entropy_with_logits(model(tokens), twice)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            tokens, twice = batch(256)
            right = ((model(tokens) > 0).float() == twice).float().mean()
        print(f"{mixer}: {right:.1%} of the tokens told right")


if __name__ == "__main__":
    main()
