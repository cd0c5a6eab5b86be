"""One step of training and of decoding with every kind of block: what bench_check.py and between_commits.py time.

Training is one optimizer step of a language model in fp32 (4 layers, width 128, 4 rows of 128), decoding one step of
single-token generation behind 512 cached tokens (up to 48 more), batch 1. `plain` is a yardstick outside the package:
the same sizes in torch's own operations and nothing else, so that a loss that all blocks share is seen, too.

Workers of between_commits.py call this with other versions of the package: it keeps to names that were always there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIXERS = ("standard", "tva", "mla", "spectral")
FFNS = ("swiglu", "vft", "moe")
CONTESTANTS = [(mixer, "relu2") for mixer in MIXERS] + [("standard", ffn) for ffn in FFNS]
SHAPE = {"d_model": 128, "n_heads": 4, "n_layers": 4}
CONTEXT, BATCH, CACHED, LONGER, VOCABULARY = 128, 4, 512, 48, 256


def model_of(mixer: str, ffn: str) -> Any:
    """Return a language model of one kind of block, from a fixed seed."""
    from blockyard import LMConfig, TransformerLM

    torch.manual_seed(0)
    return TransformerLM(LMConfig(vocab_size=VOCABULARY, blocks=f"{mixer}+{ffn}", context=2 * CACHED, **SHAPE))


def training(mixer: str, ffn: str) -> Callable[[], None]:
    """Return a function that makes one step of training, optimizer included."""
    from blockyard.training.config import TrainConfig
    from blockyard.training.optim import Optimizers

    model = model_of(mixer, ffn)
    optimizers = Optimizers(model, TrainConfig(steps=1_000_000, warmup=0, schedule="constant"))
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(1))

    def step() -> None:
        output = model(tokens[:, :-1])
        torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizers.clip(float(optimizers.grad_norm()))
        optimizers.step(0)
        optimizers.zero_grad()

    return step


def decoding(mixer: str, ffn: str) -> Callable[[], None]:
    """Return a function that makes one decoding step; what it adds is taken back every so many steps."""
    model = model_of(mixer, ffn).eval()
    prompt = torch.randint(VOCABULARY, (1, CACHED), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(1, 2 * CACHED)
    with torch.no_grad():
        model(prompt, cache=cache)
    begin = cache.snapshot()

    def step() -> None:
        nonlocal begin
        if cache.length >= CACHED + LONGER:
            # Not cropped: some caches keep a running state.
            cache.rollback(begin)
            begin = cache.snapshot()
        with torch.no_grad():
            model(prompt[:, :1], cache=cache)

    return step


class PlainBlock(nn.Module):
    """Pre-norm attention and FFN in torch's own operations; keys and values cached by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        width = SHAPE["d_model"]
        self.norm_a, self.norm_f = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows, length, width = x.shape
        parts = self.qkv(self.norm_a(x)).view(rows, length, 3, SHAPE["n_heads"], -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind()
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.norm_f(x)))), (k, v)


class PlainModel(nn.Module):
    """A language model of such blocks with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        width = SHAPE["d_model"]
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(2 * CACHED, width)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(SHAPE["n_layers"]))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        begin = caches[0][0].shape[2] if caches else 0
        x = self.tokens(tokens) + self.positions.weight[begin : begin + tokens.shape[1]]
        kept = []
        for number, block in enumerate(self.blocks):
            x, cache = block(x, caches[number] if caches else None)
            kept.append(cache)
        return self.head(self.norm(x)), kept


def plain_training() -> Callable[[], None]:
    """Return a function that makes one step of training with torch's AdamW and clipping."""
    torch.manual_seed(0)
    model = PlainModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(1))

    def step() -> None:
        logits, _ = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_decoding() -> Callable[[], None]:
    """Return a function that makes one decoding step, behind as many tokens."""
    torch.manual_seed(0)
    model = PlainModel().eval()
    prompt = torch.randint(VOCABULARY, (1, CACHED), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        begin = model(prompt)[1]
    caches = begin

    def step() -> None:
        nonlocal caches
        if caches[0][0].shape[2] >= CACHED + LONGER:
            caches = begin
        with torch.no_grad():
            caches = model(prompt[:, :1], caches)[1]

    return step


# What is timed, by name: (mixer, FFN) -> a function that makes one step. `plain` is asked for by itself.
STEPS: dict[str, Callable[[str, str], Callable[[], None]]] = {"train": training, "decode": decoding}
PLAIN: dict[str, Callable[[], Callable[[], None]]] = {"train": plain_training, "decode": plain_decoding}
