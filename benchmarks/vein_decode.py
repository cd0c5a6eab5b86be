"""One cached decoding step of the attention, standard against tri-vein, one thread, float32.

    python benchmarks/vein_decode.py [OUT.json]

Prints and writes milliseconds of process CPU time (median over rounds in which all take turns), bytes of cache per
token, and ratios to the standard attention of this library (SDPA) and to one that steps by plain matrix products.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from blockyard.protocol.mixer import Mixer
from blockyard.standard.attention import StandardAttention
from blockyard.vein.attention import TVAAttention

D_MODEL, CONTEXT = 768, 4096
ROUNDS, STEPS = 15, 10


def stepper(mixer: Mixer) -> Callable[[], object]:
    """One step behind CONTEXT cached tokens, again and again."""
    x, token = torch.randn(1, CONTEXT, D_MODEL), torch.randn(1, 1, D_MODEL)
    cache = mixer.new_cache(1, max_len=CONTEXT + 1)
    mixer(x, cache=cache)

    def step() -> None:
        cache.crop(CONTEXT)
        mixer(token, cache=cache)

    return step


def main() -> None:
    torch.set_num_threads(1)
    mixers: dict[str, Mixer] = {
        "standard 12 x 64": StandardAttention(D_MODEL, 12, causal=True, qk_norm=False),
        "standard 12 x 64, plain products": StandardAttention(D_MODEL, 12, causal=True, qk_norm=False, kernel="matmul"),
        "tva 12 x 4": TVAAttention(D_MODEL, 12, 4, causal=True, rope="none"),
        "tva 12 x 4, rotary": TVAAttention(D_MODEL, 12, 4, causal=True),
        "tva 3 x 16, rotary": TVAAttention(D_MODEL, 3, 16, causal=True),
        "tva 4 x 32, rotary": TVAAttention(D_MODEL, 4, 32, causal=True),
        "tva 12 x 16, rotary": TVAAttention(D_MODEL, 12, 16, causal=True),
        "tva 12 x 32, rotary": TVAAttention(D_MODEL, 12, 32, causal=True),
    }
    for mixer in mixers.values():
        mixer.eval()
    taken: dict[str, list[float]] = {name: [] for name in mixers}
    with torch.inference_mode():
        steppers = {name: stepper(mixer) for name, mixer in mixers.items()}
        for round_ in range(ROUNDS + 1):
            for name, step in steppers.items():
                start = time.process_time()
                for _ in range(STEPS):
                    step()
                if round_:  # the first round warms up
                    taken[name].append(1000 * (time.process_time() - start) / STEPS)
    rows = []
    base, plain, *_ = taken.values()
    for name, times in taken.items():
        row: dict[str, Any] = {"attention": name, "step_ms": statistics.median(times)}
        row["ratio"] = statistics.median(b / t for b, t in zip(base, times))
        row["ratio_to_plain"] = statistics.median(b / t for b, t in zip(plain, times))
        row["cache"] = mixers[name].cost(1).cache_bytes_per_token
        rows.append(row)
        print(
            f"{name:34} {row['step_ms']:7.3f} ms a step, x{row['ratio']:4.1f}, against plain products "
            f"x{row['ratio_to_plain']:4.1f}; {row['cache']:6} bytes a token"
        )
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "context": CONTEXT, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
