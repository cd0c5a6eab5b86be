"""Sections of `benchmarks/gpu.py`: each yields what it is about to measure, and holds a contest of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.bench.roofline import Work
from blockyard.models.lm import LMConfig, build_lm
from blockyard.nn.attention import attend
from blockyard.nn.segments import Segments
from blockyard.registry.register import create
from blockyard.training.config import TrainConfig
from blockyard.training.optim import Optimizers
from gpu_contest import Bench, Sizes, Way, backward, layer_work, one_pass, parameters, without_gradients

# Tokens that a cache is filled with at a time, and the longest sequence whose mask of all pairs is made.
FILL, LONGEST_MASK = 4096, 16_384
# Forward, and forward with backward: three products for each one.
KINDS = ((1, "forward"), (3, "forward + backward"))


class TorchLayers(nn.Module):
    """The same model of torch's own layers: pre-norm, learned positions, SDPA by its fast path."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.d_model
        self.tokens, self.places = nn.Embedding(sizes.vocabulary, width), nn.Embedding(sizes.context, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, sizes.n_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(sizes.n_layers)
        )
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, sizes.vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        hidden = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=x.device)
        for layer in self.layers:
            x = layer(x, src_mask=hidden, is_causal=True)
        return F.cross_entropy(self.head(self.last(x)).float().flatten(0, 1), targets.flatten())


def lm124m(bench: Bench) -> Iterator[str]:
    sizes = bench.sizes
    ids, targets = torch.randint(sizes.vocabulary, (2, sizes.rows, sizes.context), device=bench.device).unbind(0)
    config = LMConfig(
        vocab_size=sizes.vocabulary, context=sizes.context, d_model=sizes.d_model, n_layers=sizes.n_layers,
        n_heads=sizes.n_heads, blocks="standard+standard", tied=True,
    )  # fmt: skip

    def ours() -> tuple[Any, Callable[[], Tensor], Callable[[int], object], Way]:
        model = build_lm(config, 0).to(bench.device)
        optimizers = Optimizers(model, TrainConfig(), "bf16")
        return model, lambda: model(ids, targets=targets).loss, optimizers.step, optimizers.zero_grad

    def theirs() -> tuple[Any, Callable[[], Tensor], Callable[[int], object], Way]:
        model = TorchLayers(sizes).to(bench.device)
        adam = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        return model, lambda: model(ids, targets), lambda step: adam.step(), adam.zero_grad

    def step(make: Callable[[], Any], compiled: bool) -> Way:
        model, loss, update, forget = make()
        for layer in model.train().layers if compiled else ():
            layer.compile(dynamic=False)

        def run() -> None:
            with torch.autocast(bench.device.type, torch.bfloat16):
                value = loss()
            value.backward()
            update(1)
            forget()

        return run

    contestants = {"blockyard, by Muon": ours, "torch's layers, by AdamW": theirs}
    ways = {name: step(make, False) for name, make in contestants.items()}
    if bench.compiles:
        ways |= {f"{name}, compiled": step(make, True) for name, make in contestants.items()}
    model, tokens = build_lm(config, 0), sizes.rows * sizes.context
    size, flops = parameters(model), 3 * sizes.rows * model.cost(sizes.context).flops
    # Weights, gradients and moments are read and written, and the layers' streams both ways.
    work = Work(flops, 4 * (8 * size + 4 * tokens * sizes.d_model * sizes.n_layers))
    yield f"{size / 1e6:.0f}M parameters, {sizes.rows} x {sizes.context} tokens; the share of products is the MFU"
    facts = {"parameters": size, "rows": sizes.rows, "context": sizes.context}
    bench.contest(ways, dict.fromkeys(ways, work), facts, per_unit=tokens)


def spectral(bench: Bench) -> Iterator[str]:
    mixers = {"flash SDPA": bench.mixer("standard"), "spectral": bench.mixer("spectral")}
    for length in bench.sizes.lengths:
        for passes, kind in KINDS:
            yield f"{length} tokens, {kind}"
            over_tokens(bench, mixers, 1, length, passes, {"length": length, "kind": kind})


def vein(bench: Bench) -> Iterator[str]:
    sizes = bench.sizes
    choices = ("standard+standard", "tva+vft", "tva[factored=true]+vft")
    blocks = {}
    for choice in choices:
        config = LMConfig(vocab_size=8, d_model=sizes.d_model, n_layers=1, n_heads=sizes.n_heads, blocks=choice)
        blocks[choice] = bench.put(config.build_block(config.layers[0]))
    for passes, kind in KINDS:
        yield f"{sizes.rows} x {sizes.context} tokens, {kind}"
        over_tokens(bench, blocks, sizes.rows, sizes.context, passes, {"context": sizes.context, "kind": kind})


def over_tokens(bench: Bench, modules: Mapping[str, Any], rows: int, length: int, passes: int, facts: Any) -> None:
    """A contest of mixers or blocks over whole sequences."""
    x = bench.normal(rows, length, bench.sizes.d_model).requires_grad_()

    def way(module: Any) -> Way:
        return one_pass(passes, lambda: module(x)[0], x, *(p for p in module.parameters() if p.requires_grad))

    ways = {name: way(module) for name, module in modules.items()}
    works = {name: layer_work(bench, module, length, rows, passes) for name, module in modules.items()}
    bench.contest(ways, works, {"rows": rows, **facts}, per_unit=rows * length)


def moe(bench: Bench) -> Iterator[str]:
    for experts in bench.sizes.experts:
        yield f"{experts} experts, 2 chosen, {bench.sizes.tokens} tokens, forward + backward"
        mixtures(bench, experts)


def mixtures(bench: Bench, experts: int) -> None:
    width, tokens = bench.sizes.d_model, bench.sizes.tokens
    x = bench.normal(1, tokens, width).requires_grad_()
    one = bench.put(create("ffn", "swiglu", {"d_model": width}))
    dense = layer_work(bench, one, tokens)
    called: dict[str, tuple[Any, Callable[[], Any], Work]] = {}
    for impl in ("grouped", "segment", "padded"):
        given = {"d_model": width, "n_experts": experts, "k": 2, "impl": impl}
        mixture = bench.put(create("ffn", "moe", given)).train()
        work = Work(3 * mixture.cost(tokens).flops, 3 * parameters(mixture) * bench.dtype.itemsize)
        called[impl] = mixture, lambda mixture=mixture: mixture(x), work
    called["one dense FFN"] = one, lambda: one(x), dense
    every = Work(experts * dense.flops, experts * dense.bytes)
    called["all experts"] = one, lambda: sum(one(x) for _ in range(experts)), every
    ways = {name: backward(call, x, *made.parameters()) for name, (made, call, _) in called.items()}
    works = {name: work for name, (_, _, work) in called.items()}
    bench.contest(ways, works, {"experts": experts, "tokens": tokens}, per_unit=tokens)


def flex(bench: Bench) -> Iterator[str]:
    for length in bench.sizes.lengths[:2]:
        for window in bench.sizes.windows:
            yield f"{length} tokens, window {window} with 4 sinks, forward + backward"
            windows(bench, length, window)
        yield f"{length} tokens in documents, forward + backward"
        documents(bench, length)


def windows(bench: Bench, length: int, window: int) -> None:
    q, k, v = heads_of(bench, length)
    given = {"causal": True, "window": window, "sinks": 4}
    functions: dict[str, Callable[[], Tensor]] = {
        "blocks of queries": lambda: attend(q, k, v, kernel="sdpa", **given)[0],
        "FlexAttention": lambda: attend(q, k, v, kernel="flex", **given)[0],
        "flash SDPA, no window": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    if length <= LONGEST_MASK:
        places = torch.arange(length, device=bench.device)
        distance = places[:, None] - places
        near = (distance >= 0) & ((distance < window) | (places < 4))
        functions["dense mask"] = lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=near)
    of_attention(bench, functions, (q, k, v), length * min(window, length), {"length": length, "window": window})


def documents(bench: Bench, length: int) -> None:
    q, k, v = heads_of(bench, length)
    heads, width, places = q.shape[1], q.shape[3], torch.arange(length, device=bench.device)
    size = max(2, length // 6)
    segments = Segments((places // size)[None])

    def apart() -> Tensor:
        # Rows of their own, by one gather there and one back, as a mixer of any kind is given them.
        side = torch.cat([t[0].transpose(0, 1).flatten(1) for t in (q, k, v)], 1)[None]

        def mix(part: Tensor) -> Tensor:
            parts = (t.unflatten(2, (heads, width)).transpose(1, 2) for t in part.chunk(3, 2))
            return F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)

        return segments.apart(mix, side)

    functions: dict[str, Callable[[], Tensor]] = {
        "documents as rows": apart,
        "FlexAttention": lambda: attend(q, k, v, causal=True, documents=(places % size)[None], kernel="flex")[0],
        "flash SDPA, one document": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    seen = sum(group.count * group.length**2 for group in segments.groups) / 2
    of_attention(bench, functions, (q, k, v), seen, {"length": length, "documents": segments.count})


def heads_of(bench: Bench, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [1, H, T, d]."""
    heads = bench.sizes.n_heads
    shape = (1, heads, length, bench.sizes.d_model // heads)
    q, k, v = (bench.normal(*shape, seed=n).requires_grad_() for n in range(3))
    return q, k, v


def of_attention(
    bench: Bench, functions: Mapping[str, Callable[[], Tensor]], leaves: tuple[Tensor, ...], pairs: float, facts: Any
) -> None:
    """Forward and backward where so many pairs see each other: two products there, five back."""
    heads, width = leaves[0].shape[1], leaves[0].shape[3]
    work = Work(7 * 2 * heads * width * pairs, 8 * leaves[0].numel() * bench.dtype.itemsize)
    ways = {name: backward(function, *leaves) for name, function in functions.items()}
    bench.contest(ways, dict.fromkeys(ways, work), facts)


def mla(bench: Bench) -> Iterator[str]:
    choices = {
        "SDPA, whole heads": "standard",
        "SDPA, grouped heads": f"standard[n_kv_heads={max(1, bench.sizes.n_heads // 4)}]",
        "latents absorbed": "mla[decode=absorbed]",
        "latents expanded": "mla[decode=naive]",
    }
    mixers = {name: bench.mixer(choice).eval() for name, choice in choices.items()}

    def begin(mixer: Any, batch: int, length: int) -> tuple[Any, Way]:
        cache, x = mixer.new_cache(batch), bench.normal(batch, 1, bench.sizes.d_model)
        with torch.no_grad():
            for start in range(0, length, FILL):
                mixer(bench.normal(batch, min(FILL, length - start), bench.sizes.d_model), cache=cache)
        return cache, lambda: mixer(x, cache=cache)

    for length in bench.sizes.behind:
        for batch in bench.sizes.batches:
            yield f"{batch} rows behind {length} tokens"
            behind_caches(bench, mixers, begin, batch, length)


def decode(bench: Bench) -> Iterator[str]:
    sizes, length = bench.sizes, bench.sizes.behind[0]
    models = {}
    for blocks in ("standard+standard", "mla+standard", "tva+vft", "spectral+standard"):
        config = LMConfig(
            vocab_size=sizes.vocabulary, context=2 * length, d_model=sizes.d_model, n_layers=sizes.n_layers,
            n_heads=sizes.n_heads, blocks=blocks, tied=True,
        )  # fmt: skip
        models[blocks] = bench.put(build_lm(config, 0)).eval()

    def begin(model: Any, batch: int, length: int) -> tuple[Any, Way]:
        cache = model.new_cache(batch)
        ids = torch.zeros(batch, length, dtype=torch.long, device=bench.device)
        with torch.no_grad():
            for start in range(0, length, FILL):
                model(ids[:, start : start + FILL], cache=cache, last=1)
        return cache, lambda: model(ids[:, :1], cache=cache, last=1)

    for batch in sizes.batches:
        yield f"{batch} rows behind {length} tokens, {sizes.n_layers} layers"
        behind_caches(bench, models, begin, batch, length)


def behind_caches(
    bench: Bench,
    modules: Mapping[str, Any],
    begin: Callable[[Any, int, int], tuple[Any, Way]],
    batch: int,
    length: int,
) -> None:
    """A contest of steps of one token; going back to where they began is part of each, and costs little."""
    ways, works, rewinds = {}, {}, {}
    for name, module in modules.items():
        cache, step = begin(module, batch, length)
        ways[name] = without_gradients(step)
        rewinds[name] = back_to(cache)
        size, held = parameters(module), cache.nbytes
        # A multiply-add for each weight and row, and for each number of the cache at least one.
        flops = 2 * (batch * size + held / bench.dtype.itemsize)
        works[name] = Work(flops, held + size * bench.dtype.itemsize)
    bench.contest(ways, works, {"length": length, "batch": batch}, rewinds=rewinds, per_unit=batch)


def back_to(cache: Any) -> Way:
    point = cache.snapshot()
    return lambda: cache.rollback(point)


SECTIONS: dict[str, Callable[[Bench], Iterator[str]]] = {
    "lm124m": lm124m, "spectral": spectral, "mla": mla, "vein": vein, "moe": moe, "flex": flex, "decode": decode,
}  # fmt: skip
