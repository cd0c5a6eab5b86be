"""Run in a fresh process: how much memory training a model takes beyond the process itself.

Reads {"groups", "fitted"} (the run, and what its model knows from its data) as JSON from standard input, builds the
model, makes three training steps on the task's sample data and prints {"peak_bytes", "how"}. On a CPU it is the peak
resident size minus the resident size before the model was built (libraries loaded and warm, data read); on CUDA torch's
own peak of allocated bytes.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

# The second step has the optimizer's state, which the first makes; the third shows that nothing grows on.
STEPS = 3


def main() -> int:
    """Measure what standard input asks for."""
    import torch

    from blockyard.registry.plugins import load_plugins
    from blockyard.tasks.kind import Run
    from blockyard.tasks.settings import resolve
    from blockyard.training.decisions import decide_precision
    from blockyard.training.distributed import join_ranks
    from blockyard.training.engine import Engine

    request = json.load(sys.stdin)
    load_plugins(request["groups"].get("plugins") or (), here=True)
    run = resolve(request["groups"])
    # A vocabulary's size is not among the options and would need the data to be known.
    run = replace(run, model=replace(run.model, **request["fitted"]))
    if run.train.threads:
        torch.set_num_threads(run.train.threads)

    ranks = join_ranks(run.train.device)
    device = ranks.device

    def train(run: Run[Any, Any], data: Any) -> Engine:
        engine = Engine(run.kind.make_task(run, data), run.train, ranks, decide_precision(run.train, device))
        for step in range(STEPS):
            engine.step(step)
        return engine

    # Libraries, kernels and thread pools are not the model's memory, nor are the data: a tiny language model wakes the
    # former first.
    tiny = resolve({"model": {"d_model": 16, "n_layers": 1, "n_heads": 1, "context": 8}})
    tiny = replace(tiny, model=replace(tiny.model, vocab_size=16), train=run.train)
    train(tiny, tiny.kind.sample_data(tiny))
    data = run.kind.sample_data(run)
    # What the warm-up left would be counted as room that the model did not need.
    gc.collect()
    forget_peak()
    # Resident, not virtual: an allocator reserves addresses by the gigabyte.
    before = status_bytes("VmRSS")
    train(run, data)
    if device.type == "cuda":
        peak: int | None = torch.cuda.max_memory_allocated(device)
        how = f"torch's peak of allocated CUDA memory over {STEPS} training steps, in a fresh process"
    elif before is None:
        peak, how = None, "not measured: this system does not tell the peak resident size of a process"
    else:
        highest = status_bytes("VmHWM")
        peak = None if highest is None else highest - before
        how = f"peak resident size over {STEPS} training steps in a fresh process, less its size without the model"
    print(json.dumps({"peak_bytes": peak, "how": how}))
    return 0


def forget_peak() -> None:
    """Let the peak resident size start anew from now (Linux; elsewhere the warm-up is far below the model)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def status_bytes(name: str) -> int | None:
    """Return bytes of an entry of /proc/self/status. (ru_maxrss would count the parent's memory from before exec.)"""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


if __name__ == "__main__":
    raise SystemExit(main())
