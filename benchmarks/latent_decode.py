"""One cached decoding step of latent attention against standard attention and transformers' own module, on a CPU.

    python benchmarks/latent_decode.py [--out FILE.json] [--threads 1] [--dtype float32] [--contexts 512,2048,8192]

All of one context are timed in turns in one process, by the processor's time. Prints and writes the median milliseconds
of a step with the lowest and the highest quarter, its ratio to a step of standard attention with a static cache, the
bytes cached per token, and its floor: the longer of reading weights and cache once at the rate at which this machine
reads memory, and of multiplying the cache at the rate of its products (both measured in the same run). Rows named
DeepseekV3Attention need transformers and are left out without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from blockyard.latent.attention import LatentAttention
from blockyard.machine.processor import processor_name
from blockyard.protocol.mixer import Mixer
from blockyard.standard.attention import StandardAttention
from blockyard.training.allocator import keep_freed_memory
from roofline import rates

D_MODEL, HEADS = 512, 8
Step = Callable[[], object]


def ours(mixer: Mixer, batch: int, context: int) -> tuple[Step, int]:
    """A step behind `context` cached tokens of a static cache, and the bytes of a token."""
    cache = mixer.new_cache(batch, max_len=context + 1)
    dtype = next(mixer.parameters()).dtype
    for start in range(0, context, 512):
        mixer(torch.randn(batch, min(512, context - start), D_MODEL, dtype=dtype), cache=cache)
    token = torch.randn(batch, 1, D_MODEL, dtype=dtype)

    def step() -> None:
        mixer(token, cache=cache)
        cache.crop(context)

    return step, cache.bytes_per_token


def theirs(attention: LatentAttention, batch: int, context: int) -> tuple[Step, int] | None:
    """A step of transformers' module with the same weights and its own growing cache."""
    try:
        from transformers.cache_utils import DynamicCache
        from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
    except ImportError:
        return None
    module: Any = attention.to_hf().eval()
    rotary = deepseek.DeepseekV3RotaryEmbedding(module.config)
    cache = DynamicCache()
    dtype = attention.k_up.dtype
    latents = torch.randn(batch, 1, context, attention.kv_rank, dtype=dtype)
    cache.update(latents, torch.randn(batch, 1, context, attention.rope_dim, dtype=dtype), 0)
    filled = (cache.layers[0].keys, cache.layers[0].values)
    token = torch.randn(batch, 1, D_MODEL, dtype=dtype)
    tables = rotary(token, torch.tensor([[context]]))

    def step() -> None:
        module(token, tables, None, past_key_values=cache)
        cache.layers[0].keys, cache.layers[0].values = filled

    return step, sum(t.nbytes for t in filled) // (batch * context)


def candidates(dtype: torch.dtype, batch: int, context: int) -> tuple[dict[str, tuple[Step, int]], dict[str, Mixer]]:
    """What is compared: name -> (step, bytes per token); and the mixers whose floor is known."""
    mixers: dict[str, Mixer] = {
        "standard, 8 key heads": StandardAttention(D_MODEL, HEADS, causal=True, qk_norm=False),
        "standard, 2 key heads": StandardAttention(D_MODEL, HEADS, causal=True, qk_norm=False, n_kv_heads=2),
    }
    for rank in (64, 128, 256):
        mixers[f"mla r={rank} absorbed"] = LatentAttention(D_MODEL, HEADS, kv_rank=rank, causal=True)
    for rank in (128, 256):
        mixers[f"mla r={rank} naive"] = LatentAttention(D_MODEL, HEADS, kv_rank=rank, causal=True, decode="naive")
        mixers[f"mla r={rank} full, mixed"] = LatentAttention(D_MODEL, HEADS, kv_rank=rank, causal=True, rope="full")
    mixers["mla r=256 expanded"] = LatentAttention(D_MODEL, HEADS, kv_rank=256, causal=True, cache="expanded")
    found = {name: ours(mixer.to(dtype).eval(), batch, context) for name, mixer in mixers.items()}
    for rank in (128, 256):
        peer = theirs(mixers[f"mla r={rank} absorbed"], batch, context)  # type: ignore[arg-type]
        if peer is not None:
            found[f"DeepseekV3Attention r={rank}"] = peer
    return found, {name: mixer for name, mixer in mixers.items() if "absorbed" in name or "standard" in name}


def quartiles(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Quartiles of the milliseconds of each, timed in turns for so many seconds altogether."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    end = time.process_time() + seconds
    while time.process_time() < end or len(times[next(iter(times))]) < 5:
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.quantiles(values, n=4) for name, values in times.items()}


def floor(mixer: Mixer, context: int, machine: tuple[float, float]) -> float:
    """Milliseconds that a step takes at least."""
    weights = sum(p.nbytes for p in mixer.parameters())
    per_token = mixer.new_cache(1).bytes_per_token
    # Every head meets what is kept of a token: a standard head its own key and value, an absorbed one all of it twice.
    met = per_token // next(mixer.parameters()).element_size()
    if isinstance(mixer, LatentAttention):
        met = HEADS * (met + mixer.kv_rank)
    return max((weights + per_token * context) / machine[1], met * context / machine[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write JSON here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--contexts", default="512,2048,8192")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring per context")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # Else the long steps of some give back memory that the others then wait for.
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        best = rates(getattr(torch, options.dtype))
        # Numbers that this machine multiplies and adds, and bytes that it reads from memory, in a millisecond.
        machine = best.gflops * 1e6 / 2, best.from_memory * 1e6
        print(f"{processor_name()}: {2 * machine[0] / 1e6:.0f} GFLOP/s, reads {machine[1] / 1e6:.1f} GB/s")
        for context in map(int, options.contexts.split(",")):
            found, known = candidates(getattr(torch, options.dtype), options.batch, context)
            took = quartiles({name: step for name, (step, _) in found.items()}, options.seconds)
            for name, (low, ms, high) in took.items():
                ratio = took["standard, 8 key heads"][1] / ms
                row: dict[str, Any] = {"context": context, "attention": name, "step_ms": ms, "quartiles": [low, high]}
                row |= {"ratio": ratio, "bytes": found[name][1]}
                least = ""
                if name in known and options.batch == 1:
                    row["floor_ms"] = floor(known[name], context, machine)
                    least = f", {100 * row['floor_ms'] / ms:3.0f} % of the limit ({row['floor_ms']:.3f} ms)"
                rows.append(row)
                print(
                    f"S {context:5} {name:28} {ms:8.3f} ms ({low:.3f} to {high:.3f}), {ratio:5.2f} x standard, "
                    f"{found[name][1]:5} bytes{least}"
                )
            for rank in (128, 256):
                if f"DeepseekV3Attention r={rank}" in took:
                    ratio = took[f"DeepseekV3Attention r={rank}"][1] / took[f"mla r={rank} absorbed"][1]
                    print(f"S {context:5} r={rank}: absorbed is {ratio:.1f} x DeepseekV3Attention")
    if options.out:
        facts: dict[str, Any] = {"torch": torch.__version__, "processor": processor_name()}
        facts |= {"products_gflops": 2 * machine[0] / 1e6, "reads_gbytes": machine[1] / 1e6}
        facts |= {"threads": options.threads, "dtype": options.dtype, "batch": options.batch}
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({**facts, "d_model": D_MODEL, "heads": HEADS, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
