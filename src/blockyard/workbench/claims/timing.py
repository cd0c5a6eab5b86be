"""Claims that a stopwatch decides: ratios of medians over turns, process CPU time, one thread, this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.compat import vein_flow
from blockyard.layers.norms import RMSNorm
from blockyard.mixers.spectral import SpectralMixer
from blockyard.registry import get_attention, get_ffn
from blockyard.workbench.bench.timing import Case, Clock, interleave
from blockyard.workbench.claims.claim import Finding, claim, judge_all, judge_number
from blockyard.workbench.claims.vein import HEADS, RANK, D, seed_block, standard_block
from blockyard.workbench.stats import spread

ROUNDS, ROUND_SECONDS = 7, 0.05


def seconds(work: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU seconds of each piece of work, taken in turns on one thread."""
    torch.set_num_threads(1)  # put back by whoever collects the claims

    def repeated(call: Callable[[], object], times: int) -> None:
        for _ in range(times):
            call()

    cases = {name: Case(partial(repeated, call)) for name, call in work.items()}
    times = interleave(cases, Clock(torch.device("cpu")), rounds=ROUNDS, round_seconds=ROUND_SECONDS)
    return {name: spread(taken.cpu)["median"] for name, taken in times.items()}


def _forward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return module(x)

    module.eval()
    return call


def _there_and_back(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    leaf, ones = x.clone().requires_grad_(), torch.ones_like(x)

    def call() -> object:
        function(leaf).backward(ones)
        leaf.grad = None
        return None

    return call


@claim(
    "basics.rmsnorm_speed", document="basics", line=129, claimed="faster than LayerNorm", cost="seconds",
    says="RMSNorm computes less than LayerNorm and is therefore faster in training and inference.",
    how="Forward and backward on 4096 × 384, eager: the formula as the price document writes it, torch's rms_norm and "
        "the fused one used here, against torch's layer_norm.",
)  # fmt: skip
def rmsnorm_speed() -> Finding:
    torch.manual_seed(0)
    x, gain, ours = torch.randn(4096, 384), torch.ones(384), RMSNorm(384)
    taken = seconds(
        {
            "layer_norm": _there_and_back(lambda t: F.layer_norm(t, (384,), gain), x),
            "written": _there_and_back(lambda t: t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-5) * gain, x),
            "torch": _there_and_back(lambda t: F.rms_norm(t, (384,), gain), x),
            "ours": _there_and_back(ours, x),
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


@claim(
    "vein.long_sequences", document="vein-flow", line=679, claimed="T > 512, not T < 32", cost="seconds",
    says="Vein blocks pay for sequences above 512 and hardly below 32.",
    how="Forward pass of the document's block, and of the folded default, against a standard block, d = 768, 12 heads, "
        "rank 4, T = 16, 512 and 2048.",
)  # fmt: skip
def long_sequences() -> Finding:
    torch.manual_seed(0)
    found: dict[str, float] = {}
    for tokens in (16, 512, 2048):
        x = torch.randn(1, tokens, D)
        taken = seconds(
            {
                "standard": _forward(standard_block(), x),
                "document": _forward(seed_block(), x),
                "folded": _forward(vein_flow.VFTBlock(D, HEADS, RANK, s_normals=0), x),
            }
        )
        found |= {f"{name}_T{tokens}": taken["standard"] / taken[name] for name in ("document", "folded")}
    return Finding(
        ", ".join(f"{found[f'document_T{t}']:.1f}× at {t}" for t in (16, 512, 2048)),
        judge_all(found["document_T2048"] > 1.2 and found["document_T512"] > 1.2, found["document_T16"] < 1.2),
        "Its advantage is smaller matrices, which short sequences have as well. Folded: "
        + ", ".join(f"{found[f'folded_T{t}']:.1f}× at {t}" for t in (16, 512, 2048)) + ".",
        found,
    )  # fmt: skip


def _layers(tokens: int, width: int = 768, heads: int = 12) -> dict[str, Callable[[], object]]:
    x = torch.randn(1, tokens, width)
    attention = get_attention("standard", d_model=width, n_heads=heads, rope="none", qk_norm=False)
    return {"attention": _forward(attention, x), "spectral": _forward(SpectralMixer(width, heads), x)}


@claim(
    "spectral.short", document="spectre-nlp", line=99, claimed="no gain below 16", cost="seconds",
    says="Sequences shorter than 16 gain nothing from spectral mixing.",
    how="Forward pass of the whole encoder layer against standard attention, d = 768, N = 8 and 2048.",
)  # fmt: skip
def short_sequences() -> Finding:
    torch.manual_seed(0)
    ratio = {}
    for tokens in (8, 2048):
        taken = seconds(_layers(tokens))
        ratio[f"N{tokens}"] = taken["attention"] / taken["spectral"]
    return Finding(
        f"{ratio['N8']:.2f}× attention's speed at 8, {ratio['N2048']:.1f}× at 2,048",
        "holds" if ratio["N8"] < 1.1 else "false",
        "Transforms and the gate cost a fixed amount that short sequences do not earn back.",
        ratio,
    )


@claim(
    "spectral.power_of_two", document="spectre-nlp", line=83, claimed="powers of two", cost="seconds",
    says="Transform lengths should be powers of two, such as 2048 for 1500 tokens.",
    how="rfft of 768 rows of length 1536 (2-3-smooth), 2048 and 1511 (prime).",
)  # fmt: skip
def power_of_two() -> Finding:
    rows = {n: torch.randn(768, n) for n in (1536, 2048, 1511)}
    taken = seconds({str(n): partial(torch.fft.rfft, x) for n, x in rows.items()})
    smooth, prime = taken["2048"] / taken["1536"], taken["1511"] / taken["1536"]
    return Finding(
        f"2048 takes {smooth:.2f}× the time of 1536",
        "holds" if smooth < 0.95 else "partly" if smooth < 1.1 else "false",
        f"Lengths without large prime factors are as good, and nearer; a prime length takes {prime:.1f}×. n_fft=None "
        "takes the next such length of each input.",
        {"power_over_smooth": smooth, "prime_over_smooth": prime},
    )


@claim(
    "spectral.wavelet_cost", document="spectre-nlp", line=39, claimed="low cost", cost="seconds",
    says="Wavelet refinement is a cheap addition.",
    how="Forward pass of the encoder layer with the branch always on and off, d = 768, N = 1024.",
)  # fmt: skip
def wavelet_cost() -> Finding:
    torch.manual_seed(0)
    x = torch.randn(1, 1024, 768)
    taken = seconds(
        {name: _forward(SpectralMixer(768, 12, wavelet_on_rate=rate), x) for name, rate in (("off", 0.0), ("on", 1.0))}
    )
    extra = taken["on"] / taken["off"] - 1
    return Finding(
        f"{extra:+.0%} of the layer's time",
        "holds" if extra < 0.15 else "partly" if extra < 0.4 else "false",
        "In eval mode every sample passes the branch, scaled by its rate.",
        {"extra": extra},
    )


@claim(
    "spectral.precision", document="spectre-nlp", line=44, claimed="tolerates bf16", cost="seconds",
    says="Spectral mixing tolerates half precision better than attention, having no large exponentials.",
    how="Relative error of the layer's output under bf16 autocast against float32, d = 256, N = 512, spectral and "
        "standard attention.",
)  # fmt: skip
def precision() -> Finding:
    torch.manual_seed(0)
    x, error = torch.randn(2, 512, 256), {}
    for name, module in (
        ("spectral", SpectralMixer(256, 4)),
        ("attention", get_attention("standard", d_model=256, n_heads=4)),
    ):
        module.eval()
        with torch.no_grad():
            exact = module(x)[0]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = module(x)[0].float()
        error[name] = float((rough - exact).norm() / exact.norm())
    return Finding(
        f"error {error['spectral']:.2%}, attention {error['attention']:.2%}",
        "holds" if error["spectral"] < 0.9 * error["attention"] else "partly" if error["spectral"] < 0.02 else "false",
        "Transforms do not exist in half precision: that part stays in float32, and the projections round alike.",
        error,
    )


@claim(
    "moe.time", document="complex-block", line=37, claimed="k / n", cost="seconds",
    says="Only the chosen experts are computed.",
    how="Forward pass of 8 experts with 2 chosen against all 8, SwiGLU, d = 256, 2048 tokens.",
)  # fmt: skip
def moe_time() -> Finding:
    torch.manual_seed(0)
    x = torch.randn(1, 2048, 256)
    experts = nn.ModuleList(get_ffn("swiglu", d_model=256) for _ in range(8)).eval()

    def everything() -> object:
        with torch.no_grad():
            return [expert(x) for expert in experts]

    taken = seconds(
        {"two": _forward(get_ffn("moe", d_model=256, expert="swiglu", n_experts=8, k=2), x), "all": everything}
    )
    share = taken["two"] / taken["all"]
    return Finding(f"{share:.2f} of the time", judge_number(share, 0.25, tolerance=0.25),
                   "0.25 of the products, and the sorting.", {"share": share})  # fmt: skip
