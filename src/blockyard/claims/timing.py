"""Claims that a stopwatch decides: ratios of medians over turns, process CPU time, one thread, this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.bench.timing import Case, Clock, interleave
from blockyard.claims.claim import Finding, claim, judge_all, judge_number, judge_ratio
from blockyard.claims.keep import recall
from blockyard.complex.linear import ComplexLinear
from blockyard.nn.norms import RMSNorm
from blockyard.nn.rotary import RotaryPositionalEmbedding, rotate
from blockyard.registry.register import get_ffn
from blockyard.report.stats import quartiles

ROUNDS, ROUND_SECONDS = 7, 0.05


def seconds(work: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median CPU seconds of each piece of work, taken in turns on one thread."""
    torch.set_num_threads(1)  # put back by whoever collects the claims

    def repeated(call: Callable[[], object], times: int) -> None:
        for _ in range(times):
            call()

    def take_turns() -> dict[str, float]:
        cases = {name: Case(partial(repeated, call)) for name, call in work.items()}
        times = interleave(cases, Clock(torch.device("cpu")), rounds=ROUNDS, round_seconds=ROUND_SECONDS)
        return {name: quartiles(taken.cpu)["median"] for name, taken in times.items()}

    return recall(take_turns)


def forward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return module(x)

    module.eval()
    return call


def there_and_back(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    leaf, ones = x.clone().requires_grad_(), torch.ones_like(x)

    def call() -> object:
        function(leaf).backward(ones)
        leaf.grad = None
        return None

    return call


@claim("basics.rmsnorm_speed")
def rmsnorm_speed() -> Finding:
    x, gain, ours = torch.randn(4096, 384), torch.ones(384), RMSNorm(384)
    taken = seconds(
        {
            "layer_norm": there_and_back(lambda t: F.layer_norm(t, (384,), gain), x),
            "written": there_and_back(lambda t: t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-5) * gain, x),
            "torch": there_and_back(lambda t: F.rms_norm(t, (384,), gain), x),
            "ours": there_and_back(ours, x),
        }
    )
    ratio = {name: taken["layer_norm"] / t for name, t in taken.items() if name != "layer_norm"}
    return Finding(
        f"{ratio['written']:.2f}× LayerNorm's speed as written, {ratio['ours']:.2f}× fused",
        judge_all(ratio["written"] > 1.05, ratio["ours"] > 1.05),
        f"Fewer operations, but several passes over memory where LayerNorm's kernel makes one. torch's own rms_norm "
        f"reaches {ratio['torch']:.2f}×. What counts is the number of passes.",
        ratio,
    )


@claim("moe.time")
def moe_time() -> Finding:
    x = torch.randn(1, 2048, 256)
    experts = nn.ModuleList(get_ffn("swiglu", d_model=256) for _ in range(8)).eval()

    def everything() -> object:
        with torch.no_grad():
            return [expert(x) for expert in experts]

    taken = seconds(
        {"two": forward(get_ffn("moe", d_model=256, expert="swiglu", n_experts=8, k=2), x), "all": everything}
    )
    share = taken["two"] / taken["all"]
    return Finding(
        f"{share:.2f} of the time",
        judge_number(share, 0.25, tolerance=0.25),
        "0.25 of the products, and the sorting.",
        {"share": share},
    )


@claim("basics.rope_matrix")
def rope_matrix() -> Finding:
    x = torch.randn(12, 1024, 64)
    rope = RotaryPositionalEmbedding(10_000.0, 64)
    cos, sin = rope.tables(1024, x)
    positions = torch.arange(1024)
    matrix = torch.zeros(1024, 64, 64)
    even = torch.arange(0, 64, 2)
    matrix[:, even, even], matrix[:, even + 1, even + 1] = cos, cos
    matrix[:, even, even + 1], matrix[:, even + 1, even] = -sin, sin
    taken = seconds(
        {
            "pairs": lambda: rotate(x, cos, sin, rope.layout),
            "anew": lambda: rope(x, positions),
            "matrix": lambda: torch.einsum("tij,htj->hti", matrix, x),
        }
    )
    ratio = {name: taken[name] / taken["pairs"] for name in ("anew", "matrix")}
    return Finding(
        f"the matrix takes {ratio['matrix']:.1f}× as long, making the tables anew {ratio['anew']:.1f}×",
        judge_all(ratio["matrix"] > 1.5, ratio["anew"] > 1.05),
        "Six operations a pair instead of 64 a feature; and cos and sin, made once, serve every layer.",
        ratio,
    )


@claim("complex.native")
def native_complex() -> Finding:
    x = torch.randn(1024, 384, dtype=torch.complex64)
    w = torch.randn(384, 384, dtype=torch.complex64, requires_grad=True)
    ours = ComplexLinear(384, 384)
    wr, wi = (torch.randn(384, 384, requires_grad=True) for _ in range(2))

    def written(pair: Tensor) -> Tensor:
        re, im = pair[0], pair[1]
        return torch.stack([F.linear(re, wr) - F.linear(im, wi), F.linear(im, wr) + F.linear(re, wi)])

    taken = seconds(
        {
            "native": there_and_back(lambda t: F.linear(t, w), x),
            "written": there_and_back(written, torch.stack([x.real, x.imag])),
            "ours": there_and_back(ours, x),
        }
    )
    ratio = {name: taken["written"] / taken[name] for name in ("native", "ours")}
    return Finding(
        f"{ratio['native']:.2f}× the speed of four real products",
        judge_ratio(ratio["native"], 1.25),
        "It depends on the library's complex kernels. The layer used here, complex outside and one real product "
        f"inside, is at {ratio['ours']:.2f}×.",
        ratio,
    )
