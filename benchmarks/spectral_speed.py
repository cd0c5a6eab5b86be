"""Spectral mixing against softmax attention on a CPU, in one process and one run, interleaved.

    python benchmarks/spectral_speed.py [--part all|mixing|memory|layer] [--out OUT.json] [--plot OUT.png]

mixing: spectral mixing with the making of its kernels, and SDPA, both on given values, without the projections.
memory: peak resident bytes of a forward and backward pass above what stood before, each in a fresh process.
layer:  whole layers with their projections over N = 8 … 16384, and where the lines cross. `attention` is the standard
        mixer of the library, `torch` the same of torch's own operations (F.linear, SDPA). `floor` is what a causal
        spectral layer takes at least: its two projections at the product rate, and values and outputs read and
        written once at the memory's, both measured in the same run.

d_model 768, 12 heads, batch 1, one thread, float32. Kernels reach over the whole input; a chunk is 256 tokens,
or window / 8 when that is more. Times are the processor's, medians of interleaved rounds; spreads are from the lowest
to the highest round. Freed memory is kept, as in training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.machine.processor import processor_name
from blockyard.spectral.mixer import SpectralMixer
from blockyard.standard.attention import StandardAttention
from blockyard.training.allocator import keep_freed_memory
from roofline import rates

D_MODEL, HEADS = 768, 12
LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# Seconds that one comparison may take, beside its first round.
PATIENCE = 1.5
# Milliseconds that a sample takes at least, by repeating the call, so that the caches are its own.
SAMPLE = 60.0


def rounds(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds of each, in rounds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats: dict[str, int] = {}
    for name, run in runs.items():
        run()
        repeats[name] = max(1, round(SAMPLE / milliseconds(run, 1)))
    began = time.process_time()
    while len(times[name]) < 3 or (time.process_time() - began < PATIENCE and len(times[name]) < 11):
        for name, run in runs.items():
            times[name].append(milliseconds(run, repeats[name]))
    return times


def interleaved(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each, in rounds."""
    return {name: round(statistics.median(found), 3) for name, found in rounds(runs).items()}


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return 1000 * (time.process_time() - start) / repeats


def machine_rates() -> dict[str, float]:
    """GFLOP/s of float32 products, of the library and of torch, and GB/s that are read from memory."""
    found = rates()
    named = {"products": found.gflops, "torch": found.torch_gflops, "read": found.from_memory}
    return {name: round(rate, 1) for name, rate in named.items()}


def spectral(length: int, causal: bool) -> SpectralMixer:
    torch.manual_seed(0)
    options: dict[str, Any] = {"window": length, "chunk": min(length, max(256, length // 8))} if causal else {}
    return SpectralMixer(D_MODEL, HEADS, causal=causal, **options).eval()


def mixing_of(mixer: SpectralMixer, x: Tensor, v: Tensor) -> Callable[[], Tensor]:
    return lambda: mixer.form(x, v, mixer._query, mixer.gate, None)


def heads(length: int) -> list[Tensor]:
    return [torch.randn(1, HEADS, length, D_MODEL // HEADS) for _ in range(3)]


def mixing() -> list[dict[str, Any]]:
    rows = []
    for form, lengths, bars in (("causal", (1024, 4096), (3.0, 4.5)), ("encoder", (2048, 4096), (None, 30.0))):
        for length, bar in zip(lengths, bars):
            causal = form == "causal"
            mixer, x, v = spectral(length, causal), torch.randn(1, length, D_MODEL), torch.randn(1, D_MODEL, length)
            q, k, values = heads(length)
            with torch.no_grad():
                found = interleaved(
                    {
                        "spectral": mixing_of(mixer, x, v),
                        "sdpa": lambda q=q, k=k, v=values, c=causal: F.scaled_dot_product_attention(
                            q, k, v, is_causal=c
                        ),
                    }
                )
            ratio = round(found["sdpa"] / found["spectral"], 2)
            rows.append({"form": form, "N": length, **found, "ratio": ratio, "wanted": bar})
            print(f"mixing, {form:7} N={length:5}: spectral {found['spectral']:8.2f} ms, SDPA {found['sdpa']:8.2f} ms, "
                  f"{ratio:.1f} times" + (f" (wanted {bar})" if bar else ""))  # fmt: skip
    return rows


def stock(attention: StandardAttention, x: Tensor, causal: bool) -> Callable[[], Tensor]:
    """The attention layer of torch's own operations, on the same weights."""
    weight = torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)])

    def run() -> Tensor:
        q, k, v = F.linear(x, weight).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return F.linear(mixed.transpose(1, 2).flatten(2), attention.output_proj.weight)

    return run


def layer(lengths: list[int]) -> dict[str, Any]:
    rows, machine = [], machine_rates()
    print(f"machine: {machine}")
    for length in lengths:
        x, row = torch.randn(1, length, D_MODEL), {"N": length}
        for form in ("causal", "encoder"):
            causal = form == "causal"
            mixer = spectral(length, causal)
            attention = StandardAttention(D_MODEL, HEADS, causal=causal, rope="none", qk_norm=False, kernel="sdpa")
            with torch.no_grad():
                runs = {"spectral": partial(mixer, x), "attention": partial(attention, x)}
                found = rounds(runs | {"torch": stock(attention, x, causal)})
            row |= {f"{form} {name}": round(statistics.median(times), 3) for name, times in found.items()}
            row |= {f"{form} {name} spread": [round(min(t), 3), round(max(t), 3)] for name, t in found.items()}
        moved = 4 * x.nbytes / machine["read"] / 1e6
        row["floor"] = round(4 * x.numel() * D_MODEL / machine["products"] / 1e6 + moved, 3)
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items() if "spread" not in name), flush=True)
        print("   ", {name: value for name, value in row.items() if "spread" in name}, flush=True)
    return {
        "machine": machine,
        "rows": rows,
        "crossover": {form: crossover(rows, form) for form in ("causal", "encoder")},
    }


def crossover(rows: list[dict[str, Any]], form: str) -> float | None:
    """The N from which on spectral mixing is the faster, between two measured ones on a logarithmic scale."""
    ratios = [(row["N"], row[f"{form} attention"] / row[f"{form} spectral"]) for row in rows]
    slower = [i for i, (_, ratio) in enumerate(ratios) if ratio < 1]
    if not slower or slower[-1] + 1 == len(ratios):
        return None
    (n, low), (m, high) = ratios[slower[-1]], ratios[slower[-1] + 1]
    share = (0 - _log(low)) / (_log(high) - _log(low))
    return round(n * (m / n) ** share)


def _log(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log())


def memory(length: int = 4096) -> list[dict[str, Any]]:
    """Peak extra bytes of forward + backward; `stored` is the same mixing with its spectra kept by autograd."""
    rows = []
    for what in ("spectral encoder", "spectral causal", "sdpa", "sdpa causal", "spectral encoder stored"):
        command = [sys.executable, __file__, "--part", "peak", "--what", what, "--length", str(length)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({"what": what, "N": length, "peak_bytes": int(found)})
        print(f"memory, N={length}: {what:24} {int(found) / 2**20:7.1f} MiB")
    return rows


def peak(what: str, length: int) -> int:
    """Bytes that this process's peak rose by during a forward and backward pass."""
    if what.startswith("sdpa"):
        tensors = [t.requires_grad_() for t in heads(length)]
        run = lambda: F.scaled_dot_product_attention(*tensors, is_causal="causal" in what)  # noqa: E731
    else:
        mixer = spectral(length, "causal" in what)
        x, v = torch.randn(1, length, D_MODEL), torch.randn(1, D_MODEL, length, requires_grad=True)
        run = stored(mixer, x, v) if "stored" in what else mixing_of(mixer, x, v)
    small = torch.randn(1, 1, 32, 64, requires_grad=True)
    F.scaled_dot_product_attention(small, small, small).sum().backward()
    torch.fft.irfft(torch.fft.rfft(torch.randn(64)), 64)
    gradient = torch.ones_like(run().detach())
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    before = resident("VmRSS")
    run().backward(gradient)
    return resident("VmHWM") - before


def stored(mixer: SpectralMixer, x: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """The encoder's definition in plain torch operations, whose spectra autograd keeps."""

    def run() -> Tensor:
        anchors = mixer.gate(mixer.form.pooling(x, mixer._query, None, torch.float32))
        n = v.shape[2]
        from blockyard.spectral.basis import anchor_matrix

        matrix = anchor_matrix(n // 2 + 1, anchors.shape[-1] // 2, "linear", "linear").float()
        re, im = anchors.chunk(2, dim=-1)
        gate = torch.complex(re @ matrix, im @ matrix).repeat_interleave(D_MODEL // anchors.shape[1], dim=1)
        return torch.fft.irfft(torch.fft.rfft(v, n) * gate, n)

    return run


def resident(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))


def plot(result: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, form in zip(axes, ("causal", "encoder")):
        lengths = [row["N"] for row in result["rows"]]
        for name in ("attention", "spectral"):
            axis.loglog(lengths, [row[f"{form} {name}"] for row in result["rows"]], marker="o", label=name)
        at = result["crossover"][form]
        if at:
            axis.axvline(at, linestyle=":", color="gray")
            axis.annotate(f"N ≈ {at}", (at, axis.get_ylim()[0]), xytext=(4, 4), textcoords="offset points")
        axis.set(title=f"{form} layer, d = {D_MODEL}, batch 1, one thread", xlabel="tokens N")
        axis.legend()
    axes[0].set_ylabel("forward, ms")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="all", choices=("all", "mixing", "memory", "layer", "peak"))
    parser.add_argument("--out", help="write JSON here")
    parser.add_argument("--plot", help="draw the layers' times here (PNG)")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="inputs of the layers")
    parser.add_argument("--what", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=4096, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "peak":
        print(peak(given.what, given.length))
        return
    keep_freed_memory()
    found: dict[str, Any] = {"torch": torch.__version__, "threads": 1, "d_model": D_MODEL, "heads": HEADS, "batch": 1}
    found["processor"] = processor_name()
    for name, part in (
        ("mixing", mixing),
        ("memory", memory),
        ("layer", partial(layer, [int(n) for n in given.lengths.split(",")])),
    ):
        if given.part in ("all", name):
            found[name] = part()
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
    if given.plot and "layer" in found:
        plot(found["layer"], given.plot)


if __name__ == "__main__":
    main()
