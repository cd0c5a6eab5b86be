"""Claims of the spectre-nlp document and its paper that a stopwatch decides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from blockyard.claims.claim import Finding, claim, judge_all, judge_ratio
from blockyard.claims.timing import forward, seconds
from blockyard.registry.register import get_attention
from blockyard.spectral.mixer import SpectralMixer

DOCUMENT = "spectre-nlp"


def _layers(tokens: int, width: int = 768, heads: int = 12) -> dict[str, Callable[[], object]]:
    x = torch.randn(1, tokens, width)
    attention = get_attention("standard", d_model=width, n_heads=heads, rope="none", qk_norm=False)
    return {"attention": forward(attention, x), "spectral": forward(SpectralMixer(width, heads), x)}


@claim(
    "spectral.short", document=DOCUMENT, line=99, claimed="no gain below 16", cost="seconds",
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
    "spectral.power_of_two", document=DOCUMENT, line=83, claimed="powers of two", cost="seconds",
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
    "spectral.wavelet_cost", document=DOCUMENT, line=39, claimed="low cost", cost="seconds",
    says="Wavelet refinement is a cheap addition.",
    how="Forward pass of the encoder layer with the branch always on and off, d = 768, N = 1024.",
)  # fmt: skip
def wavelet_cost() -> Finding:
    torch.manual_seed(0)
    x = torch.randn(1, 1024, 768)
    taken = seconds(
        {name: forward(SpectralMixer(768, 12, wavelet_on_rate=rate), x) for name, rate in (("off", 0.0), ("on", 1.0))}
    )
    extra = taken["on"] / taken["off"] - 1
    return Finding(
        f"{extra:+.0%} of the layer's time",
        "holds" if extra < 0.15 else "partly" if extra < 0.4 else "false",
        "In eval mode every sample passes the branch, scaled by its rate.",
        {"extra": extra},
    )


@claim(
    "spectral.precision", document=DOCUMENT, line=44, claimed="tolerates bf16", cost="seconds",
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
    "spectral.long_context", document=DOCUMENT, line=27, claimed="friendlier from 4,096 on", cost="seconds",
    says="Beyond 4,096 tokens spectral mixing is friendlier than attention.",
    how="Forward pass of whole layers against standard attention, d = 256, 4 heads, N = 64, 512 and 4,096.",
)  # fmt: skip
def long_context() -> Finding:
    torch.manual_seed(0)
    ratio = {}
    for tokens in (64, 512, 4096):
        taken = seconds(_layers(tokens, 256, 4))
        ratio[f"N{tokens}"] = taken["attention"] / taken["spectral"]
    return Finding(
        ", ".join(f"{ratio[f'N{n}']:.1f}× at {n:,}" for n in (64, 512, 4096)),
        judge_all(ratio["N4096"] > 1.2, ratio["N4096"] > ratio["N512"] > ratio["N64"]),
        "For encoders; it pays much earlier than claimed. Decoding gains nothing: a step reads a whole ring of values.",
        ratio,
    )


@claim(
    "spectral.paper_128k", document=DOCUMENT, line=10, claimed="7× at 128k", cost="seconds",
    says="The paper it presents (arXiv 2502.18394, abstract): up to 7 times faster than FlashAttention-2 at 128k.",
    how="131,072 tokens of 64 features, one head: the whole encoder layer against fused attention without projections, "
        "timed for 1,024 queries against all keys, times 128, since every block of queries does the same work.",
)  # fmt: skip
def paper_128k() -> Finding:
    torch.manual_seed(0)
    n, width, block = 131_072, 64, 1024
    mixer = SpectralMixer(width, 1).eval()
    x = torch.randn(1, n, width)
    q, k, v = (torch.randn(1, 1, n, width) for _ in range(3))

    def attend() -> object:
        with torch.no_grad():
            return F.scaled_dot_product_attention(q[:, :, :block], k, v)

    taken = seconds({"attention_block": attend, "spectral": forward(mixer, x)})
    ratio = taken["attention_block"] * (n // block) / taken["spectral"]
    return Finding(
        f"{ratio:,.0f}×",
        judge_ratio(ratio, 7),
        "One thread of a CPU, float32; the paper's figure is of a GPU, where attention is relatively faster. That "
        "N log N beats N² at this length is arithmetic. Causal attention takes half of this.",
        {"ratio": ratio, "spectral_seconds": taken["spectral"]},
    )


@claim(
    "spectral.toeplitz_cost", document=DOCUMENT, line=89, claimed="slight overhead", cost="seconds",
    says="The Toeplitz convolution costs a little.",
    how="Forward pass of the encoder layer with and without it, d = 768, N = 1024.",
)  # fmt: skip
def toeplitz_cost() -> Finding:
    torch.manual_seed(0)
    x = torch.randn(1, 1024, 768)
    layers = {"off": SpectralMixer(768, 12), "on": SpectralMixer(768, 12, use_toeplitz=True)}
    taken = seconds({name: forward(layer, x) for name, layer in layers.items()})
    extra = taken["on"] / taken["off"] - 1
    return Finding(
        f"{extra:+.1%} of the layer's time",
        "holds" if extra < 0.1 else "partly" if extra < 0.3 else "false",
        "Nine taps along a few anchors, once for the whole sequence.",
        {"extra": extra},
    )
