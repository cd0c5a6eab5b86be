"""Peak memory of training steps, in a fresh process for each choice: another's memory must not hide its own.

Run as a module it reads a request as JSON from standard input, makes steps at each size, smallest first, and prints
the peaks. On a CPU a peak is the highest resident size less the size before the first step; on CUDA torch's own peak.
"""

from __future__ import annotations

import json
import sys
from typing import Any

STEPS = 2


def peak_bytes(request: dict[str, Any]) -> tuple[list[int], str]:
    """Return the peak bytes at each of `request["sizes"]`, and why there are none, or "".

    Args:
        request: name, part, d_model, n_heads, dtype, device, seed, plugins, threads, and sizes [[length, batch], …].
    """
    from blockyard.compare.processes import measured_by

    answer = measured_by("blockyard.bench.memory", request)
    if answer is not None:
        return answer["peaks"], answer["trouble"]
    return [], "not measured: it could not be run in a fresh process"


def main() -> int:
    """Measure what standard input asks for."""
    import torch

    from blockyard.bench.subject import DTYPES, Subject
    from blockyard.compare.peak_memory import forget_peak, status_bytes
    from blockyard.registry.plugins import load_plugins

    request = json.load(sys.stdin)
    load_plugins(request["plugins"], here=True)
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])

    def make(d_model: int) -> Subject:
        return Subject(
            request["name"],
            request["part"],
            d_model=d_model,
            n_heads=request["n_heads"],
            dtype=DTYPES[request["dtype"]],
            device=device,
            seed=request["seed"],
        )

    def train(subject: Subject, length: int, batch: int) -> None:
        x = subject.random(batch, length, 0).requires_grad_()
        for _ in range(STEPS):
            subject(x).backward(torch.ones_like(x))

    # Libraries, kernels and thread pools are not the block's memory: a few tokens wake them first.
    subject = make(request["d_model"])
    train(subject, 2, 1)
    forget_peak()
    before, peaks = status_bytes("VmRSS"), []
    if device.type != "cuda" and before is None:
        print(json.dumps({"peaks": [], "trouble": "this system does not tell the peak resident size of a process"}))
        return 0
    for length, batch in request["sizes"]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        train(subject, length, batch)
        highest = status_bytes("VmHWM") if device.type != "cuda" else torch.cuda.max_memory_allocated(device)
        peaks.append(max(0, (highest or 0) - (0 if device.type == "cuda" else before or 0)))
    print(json.dumps({"peaks": peaks, "trouble": ""}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
