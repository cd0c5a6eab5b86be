"""Claims of the spectre-nlp document and its paper: first what counting or a property decides, then a stopwatch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from blockyard.claims.claim import Finding, claim, judge_all, judge_number, judge_ratio
from blockyard.claims.memory import parameter_count, saved_bytes
from blockyard.claims.timing import forward, seconds
from blockyard.compat.spectre_nlp import SpectreBlockNLP
from blockyard.registry.register import get_attention
from blockyard.spectral.basis import default_buckets
from blockyard.spectral.mixer import SpectralMixer

D, HEADS = 768, 12


def _mixing_flops(tokens: int) -> int:
    """Return FLOPs of the layer without its projections of every token, W_v and W_o."""
    mixer = SpectralMixer(D, HEADS)
    return mixer.cost(tokens).flops - 2 * 2 * tokens * D * D


@claim("spectral.complexity")
def complexity() -> Finding:
    short, long = (math.log2(_mixing_flops(2 * n) / _mixing_flops(n)) for n in (1024, 32_768))
    causal = SpectralMixer(D, HEADS, causal=True, window=1024)
    grows = math.log2(causal.cost(65_536).flops / causal.cost(32_768).flops)
    return Finding(
        f"N^{short:.2f} at 1,024, N^{long:.2f} at 32,768",
        "holds" if long < 1.15 else "partly" if long < 1.6 else "false",
        "Transforms are N log N; with √N anchors interpolated to N bins the gate itself takes N^1.5, a small part at "
        f"these lengths. The causal form with a fixed window grows as N^{grows:.2f}.",
        {"exponent_1024": short, "exponent_32768": long, "causal": grows},
    )


@claim("spectral.replacement")
def replacement() -> Finding:
    leak = {}
    for name, mixer in (
        ("document", SpectreBlockNLP(32, 4).eval()),
        ("causal", SpectralMixer(32, 4, causal=True, window=32).eval()),
    ):
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.normal_(std=0.3)
            x = torch.randn(1, 64, 32)
            later = torch.cat([x[:, :32], torch.randn(1, 32, 32)], dim=1)
            before, after = (out if isinstance(out, torch.Tensor) else out[0] for out in (mixer(x), mixer(later)))
            leak[name] = float((before - after)[:, :32].abs().max() / before.abs().max())
    return Finding(
        f"earlier outputs change by {leak['document']:.0%}",
        "holds" if leak["document"] < 1e-5 else "partly",
        "Input and output shapes fit, so encoders can use it; a language model that does would read what it should "
        "predict, through negative lags and through the pooled gate. "
        f"The causal form here changes by {leak['causal']:.0g}.",
        leak,
    )


@claim("spectral.gate_size")
def gate_size() -> Finding:
    def size(groups: int, buckets: int) -> int:
        mixer = SpectralMixer(D, HEADS, num_groups=groups, num_buckets=buckets)
        return parameter_count(mixer.gate)

    base, by_group, by_bucket = size(4, 32), size(8, 32) / size(4, 32), size(4, 64) / size(4, 32)
    whole = parameter_count(SpectralMixer(D, HEADS))
    return Finding(
        f"{by_group:.2f}× for twice the groups, {by_bucket:.2f}× for twice the buckets",
        judge_all(by_group < 2.2, by_bucket < 2.2),
        f"Proportional to both, times the hidden width of the gate's network ({base:,} at 4 × 32); the layer's "
        f"{whole:,} are mostly its projections.",
        {"groups": by_group, "buckets": by_bucket, "gate": base, "layer": whole},
    )


@claim("spectral.global")
def global_mixing() -> Finding:
    x = torch.randn(2, 1024, 256)
    span = {}
    for spacing in ("linear", "log"):
        mixer = SpectralMixer(256, 4, n_fft=1024, bucket_spacing=spacing)
        with torch.no_grad():
            span[spacing] = float(mixer.kernel_span(x).float().mean())
            changed = x.clone()
            changed[:, 512] += 1
            moved = (mixer(changed)[0] - mixer(x)[0]).abs().amax(-1) > 0
            span[f"{spacing}_reached"] = float(moved.float().mean())
    return Finding(
        f"{span['linear_reached']:.0%} reached; 95 % of it within ±{span['linear']:.0f}",
        judge_all(span["linear_reached"] > 0.99, span["linear"] > 256),
        "Every position feels every other, if only through the pooled gate. But a smooth gate is a short kernel: "
        f"√F = {default_buckets(513)} anchors leave about as many lags. Fine buckets near zero frequency reach "
        f"±{span['log']:.0f}; learning may lengthen either.",
        span,
    )


@claim("spectral.default_buckets")
def buckets() -> Finding:
    found = {n: default_buckets(n // 2 + 1) for n in (512, 1024, 4096)}
    return Finding(
        ", ".join(map(str, found.values())),
        judge_all(*(judge_number(k, math.sqrt(n // 2 + 1), tolerance=0.1) == "holds" for n, k in found.items())),
        "As said, and at least 4.",
        {f"n{n}": k for n, k in found.items()},
    )


@claim("spectral.size")
def size() -> Finding:
    attention = parameter_count(torch.nn.MultiheadAttention(D, HEADS))
    mixer, block = (parameter_count(SpectreBlockNLP(D, HEADS, block=b)) for b in (False, True))
    return Finding(
        f"{mixer:,} for {attention:,}",
        "holds" if mixer <= attention else "false",
        "Smaller, since there are no keys. "
        f"With its norms, residuals and FFN it is a block of {block:,}, which does not belong in attention's place.",
        {"mixer": mixer, "block": block, "attention": attention},
    )


@claim("spectral.memory")
def memory() -> Finding:
    grows = {}
    for name, module in (
        ("spectral", SpectralMixer(256, 4)),
        ("attention", get_attention("standard", d_model=256, n_heads=4, kernel="sdpa")),
    ):
        short, long = (saved_bytes(module, torch.randn(1, n, 256)) for n in (1024, 4096))
        grows[name] = math.log(long / short, 4)
    return Finding(
        f"N^{grows['spectral']:.2f}, attention N^{grows['attention']:.2f}",
        judge_all(grows["spectral"] < 1.15, grows["attention"] > 1.5),
        "Linear it is, but so is attention since fused kernels do not keep the map.",
        grows,
    )


@claim("spectral.n_fft")
def short_transform() -> Finding:
    n, short = 1024, 512
    tone = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n // 2)
    late = torch.cat([torch.zeros(short), torch.ones(short)]).double()

    def kept(x: torch.Tensor) -> float:
        return float(
            torch.fft.irfft(torch.fft.rfft(x, n=short), n=short).square().sum() / x[:short].square().sum().clamp(min=1)
        )

    high, end = kept(tone), kept(late)
    return Finding(
        f"{high:.0%} of the highest tone kept where it is read, {end:.0%} of the second half",
        "holds" if high < 0.5 else "false",
        "A shorter transform reads fewer tokens: the end of the text is lost, silently, not the high frequencies. Here "
        "an input longer than n_fft is refused.",
        {"high_frequency": high, "second_half": end},
    )


@claim("spectral.wavelet_random")
def wavelet_random() -> Finding:
    mixer, x = SpectralMixer(32, 4, wavelet_on_rate=0.5), torch.randn(64, 32, 32)
    differ = {}
    with torch.no_grad():
        for parameter in mixer.parameters():  # the branch starts at 0
            parameter.normal_(std=0.3)
        for mode in ("eval", "train"):
            mixer.train(mode == "train")
            differ[mode] = float((mixer(x)[0] - mixer(x)[0]).abs().max())
    return Finding(
        f"{differ['eval']:.0f} in eval, {differ['train']:.2f} in training",
        "holds" if differ["eval"] > 0 else "partly" if differ["train"] > 0 else "false",
        "True of the public code. Here eval passes every sample through the branch, scaled by its rate.",
        differ,
    )


def _layers(tokens: int, width: int = 768, heads: int = 12) -> dict[str, Callable[[], object]]:
    x = torch.randn(1, tokens, width)
    attention = get_attention("standard", d_model=width, n_heads=heads, rope="none", qk_norm=False)
    return {"attention": forward(attention, x), "spectral": forward(SpectralMixer(width, heads), x)}


@claim("spectral.short")
def short_sequences() -> Finding:
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


@claim("spectral.power_of_two")
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


@claim("spectral.wavelet_cost")
def wavelet_cost() -> Finding:
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


@claim("spectral.precision")
def precision() -> Finding:
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


@claim("spectral.long_context")
def long_context() -> Finding:
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


@claim("spectral.paper_128k")
def paper_128k() -> Finding:
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


@claim("spectral.toeplitz_cost")
def toeplitz_cost() -> Finding:
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
