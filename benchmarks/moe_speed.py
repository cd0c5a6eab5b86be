"""Time of a mixture of experts against computing all of them, and against dense FFNs.

    python benchmarks/moe_speed.py [--d 256,512,1024] [--tokens 512,2048] [--experts 8] [--k 2] [--dtypes fp32,bf16]
        [--impls auto] [--rounds 7] [--threads 1] [--plot FILE.png] [--out FILE.json]

Every row is one run in which the contestants take turns: the mixture (each implementation asked for), `all experts`
(as many experts, every one on every token, weighted and added), `equal active` (one SwiGLU with as many parameters as
a token passes) and `equal total` (one SwiGLU with as many as the mixture has). Experts are SwiGLU of the default
width. Forward under no_grad, and forward + backward from a dense gradient to the weights and the input; freed memory
is kept, as in training. Medians of the processor's milliseconds; ratios are to `all experts` of the same run. `load` is
the experts' share of the choices times n, which padding and uneven segments cost; `--plot` draws it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.registry.register import get_ffn
from blockyard.training.allocator import keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A turn in a round lasts about this long.
TURN_SECONDS = 0.04


class AllExperts(nn.Module):
    """Every expert on every token: what a mixture computes when nothing is left out."""

    def __init__(self, d_model: int, n_experts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(get_ffn("swiglu", d_model=d_model) for _ in range(n_experts))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x).float()
        best = logits.topk(self.k, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1)).to(x.dtype)
        total = gates[..., :1] * self.experts[0](x)
        for e in range(1, len(self.experts)):
            total = total + gates[..., e : e + 1] * self.experts[e](x)
        return total


def steps(module: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    def forward() -> None:
        with torch.no_grad():
            module(x)

    def both() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        module(x).backward(gradient)

    return forward, both


def seconds(run: Callable[[], object], times: int) -> float:
    """Of one call, the mean over some, after one that brings the contestant's weights back into the caches."""
    run()
    start = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - start) / times


def measure(d_model: int, tokens: int, given: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds and ratios of one shape."""
    torch.manual_seed(0)
    n_experts, k = given.experts, given.k
    x = torch.randn(1, tokens, d_model, dtype=dtype, requires_grad=True)
    gradient = torch.randn(1, tokens, d_model, dtype=dtype)
    d_ff = get_ffn("swiglu", d_model=d_model).d_ff
    contestants: dict[str, nn.Module] = {"all experts": AllExperts(d_model, n_experts, k)}
    for impl in given.impls.split(","):
        contestants[impl] = get_ffn("moe", d_model=d_model, n_experts=n_experts, k=k, impl=impl)
    contestants["equal active"] = get_ffn("swiglu", d_model=d_model, d_ff=k * d_ff)
    contestants["equal total"] = get_ffn("swiglu", d_model=d_model, d_ff=n_experts * d_ff)
    runs = {name: steps(module.to(dtype), x, gradient) for name, module in contestants.items()}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    repeats = {}
    for name, pair in runs.items():
        for run in pair:
            run()
        repeats[name] = [max(1, round(TURN_SECONDS / seconds(run, 2))) for run in pair]
    for _ in range(given.rounds):
        for name, pair in runs.items():
            for taken, run, count in zip(times[name], pair, repeats[name]):
                taken.append(1000 * seconds(run, count))
    medians = {name: [statistics.median(taken) for taken in pair] for name, pair in times.items()}
    base = medians["all experts"]
    mixture: Any = contestants[given.impls.split(",")[0]]
    load = mixture.with_aux(x.detach())[1]["stats"]["load"]
    return {
        "d_model": d_model,
        "d_ff": d_ff,
        "tokens": tokens,
        "experts": n_experts,
        "k": k,
        "dtype": str(dtype).removeprefix("torch."),
        "milliseconds": {name: [round(m, 3) for m in pair] for name, pair in medians.items()},
        "ratio": {name: [round(m / b, 3) for m, b in zip(pair, base)] for name, pair in medians.items()},
        "load": [round(share, 4) for share in (load / load.sum() * n_experts).tolist()],
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Every expert's share of the choices, in units of an equal share, one line of marks per shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        label = f"{row['dtype']}, d {row['d_model']}, {row['tokens']} tokens"
        axes.plot(range(1, row["experts"] + 1), row["load"], marker="o", linewidth=0.8, label=label)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="expert", ylabel="share of the choices / equal share", ylim=(0, None))
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", default="256,512,1024", help="widths")
    parser.add_argument("--tokens", default="512,2048", help="numbers of tokens")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--impls", default="auto", help="auto, loop, segment, grouped, padded")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="draw the experts' loads into this PNG")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    rows = []
    for name in given.dtypes.split(","):
        for d_model in map(int, given.d.split(",")):
            for tokens in map(int, given.tokens.split(",")):
                rows.append(measure(d_model, tokens, given, DTYPES[name]))
                row = rows[-1]
                ratios = "  ".join(
                    f"{who} {f:.2f}/{fb:.2f}" for who, (f, fb) in row["ratio"].items() if who != "all experts"
                )
                base = "/".join(f"{m:.1f}" for m in row["milliseconds"]["all experts"])
                shape = f"{name} d={d_model} T={tokens} E={given.experts} k={given.k}"
                print(f"{shape}: all experts {base} ms; {ratios}; max load {max(row['load']):.2f}", flush=True)
    if given.plot:
        plot(rows, given.plot)
    if given.out:
        given.out.write_text(json.dumps({"torch": torch.__version__, "threads": given.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
