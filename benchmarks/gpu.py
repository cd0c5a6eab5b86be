"""What this library computes on a GPU, section by section, beside its peers and as a share of what the card can do.

    python benchmarks/gpu.py [--sections lm124m,spectral,mla,vein,moe,flex,decode] [--device cuda] [--out gpu.json]
    python benchmarks/gpu.py --tiny --device cpu

    lm124m    training steps of a language model of 124M parameters in bf16, eager and compiled, beside torch's own
              layers: tokens per second, and model FLOPs over the measured rate of products (MFU; causality earns none)
    spectral  causal spectral mixing against attention by flash SDPA, 8k to 128k tokens
    mla       decoding with absorbed and with expanded latents, against SDPA behind a cache of whole and grouped heads
    vein      the vein block, folded and factored, against the standard one
    moe       a mixture by grouped products, by segments and padded, against all experts and against one dense FFN
    flex      windows with sinks, and documents in a row: FlexAttention against blocks of queries and dense masks
    decode    a step of whole models behind a cache, one row and many

Contestants of a section take turns in one process, timed between events on the device; medians and quartiles are over
the rounds, shares of the measured rates of products and of reading (docs/benchmarks.md, "The roofline"). What fails,
for want of memory or of a compiler, is a line in the record, and the rest goes on. `--tiny` runs the same code at sizes
for a CPU: its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

import torch

from blockyard.bench.record import find_device
from blockyard.bench.roofline import Roof
from blockyard.errors import InputError
from blockyard.files import plain, write_atomically
from blockyard.training.environment import describe_environment
from gpu_contest import TINY, Bench, Sizes, one_line, say
from gpu_sections import SECTIONS

SCHEMA = "blockyard.gpu/1"


def run(bench: Bench, name: str) -> dict[str, Any]:
    """Measure a section; what ends it is a line of the record, and what was measured before stays."""
    say(f"{name}:")
    bench.rows, trouble, started = [], None, time.perf_counter()
    try:
        for heading in SECTIONS[name](bench):
            say(f"  {heading}")
    except Exception as error:
        trouble = one_line(error)
        say(f"  ended by {trouble}")
    bench.tidy()
    return {"seconds": time.perf_counter() - started, "trouble": trouble, "rows": bench.rows}


def card(device: torch.device) -> dict[str, Any]:
    """The card's name and what it is."""
    if device.type != "cuda":
        return {}
    found = torch.cuda.get_device_properties(device)
    capability = f"{found.major}.{found.minor}"
    return {
        "card": found.name, "capability": capability, "memory": found.total_memory,
        "multiprocessors": found.multi_processor_count, "cuda": torch.version.cuda,
    }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="bfloat16; float32 with --tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-seconds", type=float, default=0.2)
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, whose times mean nothing")
    parser.add_argument("--compile", choices=("on", "off"), help="compiled contestants, too; off with --tiny")
    parser.add_argument("--out", help="JSON, written after every section")
    given = parser.parse_args(words)
    names = given.sections.split(",")
    try:
        if unknown := [name for name in names if name not in SECTIONS]:
            raise InputError(f"--sections {unknown[0]!r} is not known; there are {', '.join(SECTIONS)}")
        device = find_device(given.device)
    except InputError as error:
        say(f"error: {error}")
        return 2
    dtype = getattr(torch, given.dtype or ("float32" if given.tiny else "bfloat16"))
    compiles = (given.compile or ("off" if given.tiny else "on")) == "on"
    bench = Bench(device, dtype, TINY if given.tiny else Sizes(), given.rounds, given.round_seconds, compiles)
    say(f"{describe_environment(device, 1)['device']}, {dtype}: rates of products and of reading")
    bench.roof = Roof(dtype, device)
    ceilings = bench.roof.ceilings.record()
    say(f"  {ceilings['flops_per_second'] / 1e12:.2f} TFLOP/s by products of {ceilings['side']}")
    record: dict[str, Any] = {
        "schema": SCHEMA, "created": datetime.now(UTC).isoformat(timespec="seconds"), "tiny": given.tiny,
        "environment": {**describe_environment(device, 1), **card(device)}, "dtype": str(dtype).removeprefix("torch."),
        "rounds": given.rounds, "ceilings": ceilings, "sections": {},
    }  # fmt: skip
    for name in names:
        record["sections"][name] = run(bench, name)
        if given.out:
            # After each: what comes later may end the process.
            write_atomically(given.out, json.dumps(plain(record), indent=1) + "\n")
    failed = [name for name, found in record["sections"].items() if found["trouble"]]
    if failed:
        say(f"ended early: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
