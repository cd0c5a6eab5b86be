"""One cached decoding step of the attention, standard against tri-vein, one thread, float32.

    python benchmarks/vein_decode.py [OUT.json]

Prints and writes milliseconds of process CPU time (best of many) and bytes of cache per token.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from blockyard.mixers.base import Mixer
from blockyard.mixers.standard import StandardAttention
from blockyard.mixers.vein import TVAAttention

D_MODEL, CONTEXT = 768, 4096


def step_ms(mixer: Mixer, repeats: int = 60) -> float:
    """Best time of one step behind CONTEXT cached tokens."""
    x, token = torch.randn(1, CONTEXT, D_MODEL), torch.randn(1, 1, D_MODEL)
    best = float("inf")
    with torch.inference_mode():
        cache = mixer.new_cache(1, max_len=CONTEXT + 1)
        mixer(x, cache=cache)
        for _ in range(repeats):
            cache.crop(CONTEXT)
            start = time.process_time()
            mixer(token, cache=cache)
            best = min(best, time.process_time() - start)
    return 1000 * best


def main() -> None:
    torch.set_num_threads(1)
    mixers: dict[str, Mixer] = {
        "standard 12 x 64": StandardAttention(D_MODEL, 12, causal=True, qk_norm=False),
        "tva 12 x 4": TVAAttention(D_MODEL, 12, 4, causal=True),
        "tva 3 x 16": TVAAttention(D_MODEL, 3, 16, causal=True),
        "tva 12 x 16": TVAAttention(D_MODEL, 12, 16, causal=True),
    }
    rows = []
    for name, mixer in mixers.items():
        rows.append({"attention": name, "step_ms": step_ms(mixer), "cache": mixer.cost(1).cache_bytes_per_token})
        ratio = rows[0]["step_ms"] / rows[-1]["step_ms"]
        print(f"{name:18} {rows[-1]['step_ms']:7.3f} ms a step, x{ratio:4.1f}; {rows[-1]['cache']:6} bytes a token")
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "context": CONTEXT, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
