"""Complex blocks against real ones with as many real parameters, and against torchcvnn and complextorch.

    pip install --target PEERS --no-deps torchcvnn complextorch
    PYTHONPATH=PEERS python benchmarks/complex_speed.py [--threads N] [--rounds N] [--out FILE]

Milliseconds of process CPU time of forward + backward from a dense gradient, one sequence of 1024 positions, float32,
medians over rounds in which everything takes one turn; ratios are taken within each round. Beside each block stands its
share of the limit: the time that its matrix products alone would take at the rate that this run measures. The complex
block has d = 256 complex features and 1.31 million real parameters; the real blocks have as many, one as wide in
complex numbers (d = 256, with a larger FFN), one with √2 as many features and the complex block's proportions. A peer
that is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.complex.linear import ComplexLinear
from blockyard.complex.scores import complex_attend
from blockyard.nn.attention import attend
from blockyard.nn.linear import Linear
from blockyard.protocol.block import build_block
from blockyard.registry.pattern import parse_choice
from blockyard.training.allocator import keep_freed_memory
from roofline import rates

T, D, HEADS = 1024, 256, 8
# Per head: 32 complex features; 46 real ones make as many parameters.
REAL_D, REAL_FFN, SAME_D_FFN = 368, 696, 1365
BARE = "rope=none,qk_norm=false"


def block(choice: str, d_model: int) -> nn.Module:
    spec = parse_choice(choice)[0]
    return build_block(spec, d_model=d_model, n_heads=HEADS, causal=False, complex_valued=choice.startswith("complex"))


def step(call: Callable[[Tensor], Any], x: Tensor, module: nn.Module | None = None) -> Callable[[], None]:
    """One forward and backward pass, to the input and the parameters."""
    x = x.clone().requires_grad_()
    leaves = [x, *(module.parameters() if module is not None else [])]
    out = call(x)
    out = out[0] if isinstance(out, tuple) else out
    gradient = torch.randn_like(out)

    def run() -> None:
        result = call(x)
        result = result[0] if isinstance(result, tuple) else result
        torch.autograd.grad(result, leaves, gradient, allow_unused=True)

    return run


def peers() -> dict[str, Callable[[], nn.Module]]:
    """Encoder layers of the peers at d = 256 and about as many real parameters, without dropout."""
    found: dict[str, Callable[[], nn.Module]] = {}
    try:
        from torchcvnn.nn import TransformerEncoderLayer as Torchcvnn

        found["torchcvnn"] = lambda: Torchcvnn(D, HEADS, 768, dropout=0.0, batch_first=True)
    except ImportError as error:
        print(f"torchcvnn is left out: {error}")
    try:
        from complextorch.nn import TransformerEncoderLayer as Complextorch

        found["complextorch"] = lambda: Complextorch(D, HEADS, 768, dropout=0.0)
        found["complextorch, real softmax"] = lambda: Complextorch(D, HEADS, 768, dropout=0.0, softmax_on="real")
    except ImportError as error:
        print(f"complextorch is left out: {error}")
    return found


def real_parameters(module: nn.Module) -> int:
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in module.parameters())


def flops(module: nn.Module) -> float:
    """Matrix products of forward and backward as they would be computed: thrice forward, scores once more, and three
    products for a complex one."""
    if not hasattr(module, "attn"):
        return 0.0
    attn = module.attn
    linear = 2 * T * sum(p.numel() for p in module.parameters() if p.ndim > 1)
    is_complex = bool(getattr(attn, "complex_valued", False))
    # A pair of a complex matrix is two of the numbers counted, and takes three real products.
    linear *= 1.5 if is_complex else 1.0
    width = 2 * attn.head_dim if is_complex else attn.head_dim
    products = {"real": 2, "magnitude": 3, "phase": 4, "split": 3}[getattr(attn, "score", "real")]
    again = {"real": 1, "magnitude": 2, "phase": 2, "split": 2}[getattr(attn, "score", "real")]
    scores = 2.0 * attn.n_heads * width * T * T
    return 3 * linear + (3 * products + again) * scores


def blocks() -> tuple[dict[str, Callable[[], None]], dict[str, int], dict[str, float]]:
    z, wide, narrow = torch.randn(1, T, D, dtype=torch.complex64), torch.randn(1, T, REAL_D), torch.randn(1, T, D)
    made: dict[str, tuple[nn.Module, Tensor]] = {
        "real": (block(f"standard+swiglu[d_ff={REAL_FFN}]", REAL_D), wide),
        "real, d=256": (block(f"standard+swiglu[d_ff={SAME_D_FFN}]", D), narrow),
        "complex": (block("complex+complex_swiglu[d_ff=512]", D), z),
        # The peers know no positions and do not normalise queries and keys: the like of them here.
        "real, bare": (block(f"standard[{BARE}]+swiglu[d_ff={REAL_FFN}]", REAL_D), wide),
        "real, bare, d=256": (block(f"standard[{BARE}]+swiglu[d_ff={SAME_D_FFN}]", D), narrow),
        "complex, bare": (block(f"complex[{BARE}]+complex_swiglu[d_ff=512]", D), z),
        "complex, gauss": (block("complex[linear=gauss]+complex_swiglu[d_ff=512,linear=gauss]", D), z),
        **{
            f"complex, score={score}": (block(f"complex[score={score}]+complex_swiglu[d_ff=512]", D), z)
            for score in ("magnitude", "phase", "split")
        },
        **{name: (make(), z) for name, make in peers().items()},
    }
    parameters = {n: real_parameters(m) for n, (m, _) in made.items()}
    floors = {n: found for n, (m, _) in made.items() if (found := flops(m))}
    return {n: step(m, x, m) for n, (m, x) in made.items()}, parameters, floors


def attentions() -> dict[str, Callable[[], None]]:
    """The attention alone, on queries, keys and values in heads."""

    def joined(width: int) -> Tensor:
        return torch.randn(3, 1, HEADS, T, width)

    cases = {"real": step(lambda x: attend(*x.unbind())[0], joined(REAL_D // HEADS))}
    for score in ("real", "magnitude", "phase", "split"):
        share = torch.full((HEADS,), 0.5)
        call = partial(complex_attend, score=score, share=share)
        cases[f"complex, score={score}"] = step(lambda x, call=call: call(*x.unbind())[0], joined(2 * D // HEADS))  # type: ignore[misc]
    return cases


def linears() -> dict[str, Callable[[], None]]:
    """A projection d -> 2d with as many real parameters."""
    z, x = torch.randn(T, D, dtype=torch.complex64), torch.randn(T, REAL_D)
    cases = {}
    real = Linear(REAL_D, 2 * D * D * 2 // REAL_D)
    cases["real"] = step(real, x, real)
    for mode in ("native", "block", "gauss"):
        layer = ComplexLinear(D, 2 * D, mode=mode)  # type: ignore[arg-type]
        cases[f"complex, {mode}"] = step(layer, z, layer)
    half = ComplexLinear(D, 2 * D)

    def mixed(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return half(x)

    cases["complex, bf16"] = step(mixed, z, half)
    return cases


def measure(cases: dict[str, Callable[[], None]], rounds: int, reference: str) -> dict[str, dict[str, Any]]:
    """Median milliseconds of process CPU time, and median and quartiles of each round's ratio to the reference."""
    for run in cases.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            start = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - start))
    found: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles([v / r for v, r in zip(values, times[reference])], n=4)
        found[name] = {
            "ms": round(statistics.median(values), 2),
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="blocks whose names contain this, beside the real one; no other part")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    whole, parameters, floors = blocks()
    limits = rates()
    results: dict[str, Any] = {
        "torch": torch.__version__, "threads": arguments.threads, "length": T, "parameters": parameters,
        "rates": asdict(limits),
    }  # fmt: skip
    if arguments.only:
        whole = {name: run for name, run in whole.items() if name == "real" or arguments.only in name}
    results["block"] = measure(whole, arguments.rounds, "real")
    if not arguments.only:
        results["attention"] = measure(attentions(), arguments.rounds, "real")
        results["linear"] = measure(linears(), arguments.rounds, "real")
        results["bf16_linear_to_fp32"] = round(
            results["linear"]["complex, bf16"]["ms"] / results["linear"]["complex, native"]["ms"], 3
        )
    for name, found in results["block"].items():
        if name in floors:
            found["share_of_limit"] = round(limits.floor_ms(floors[name]) / found["ms"], 3)
    print(f"{limits.processor}: products {limits.gflops:.0f} GFLOP/s (torch's own {limits.torch_gflops:.0f}), "
          f"memory {limits.gbytes:.0f} GB/s")  # fmt: skip
    for part in ("block", "attention", "linear"):
        print(f"\n{part}: forward + backward, {arguments.threads} thread(s)")
        for name, found in results.get(part, {}).items():
            low, high = found["quartiles"]
            size = f"{parameters[name]:>10,} parameters" if part == "block" else ""
            share = f", {found['share_of_limit']:.0%} of the limit" if "share_of_limit" in found else ""
            ratio = f"{found['ratio']:6.2f} x real ({low:.2f} to {high:.2f})"
            print(f"  {name:28} {found['ms']:9.2f} ms  {ratio}  {size}{share}")
    if "bf16_linear_to_fp32" in results:
        print(f"\nbf16 linear to fp32: {results['bf16_linear_to_fp32']}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
