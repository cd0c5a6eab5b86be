"""Claims of the spectre-nlp document that counting or a property decides."""

from __future__ import annotations

import math

import torch

from blockyard.compat.spectre_nlp import SpectreBlockNLP
from blockyard.layers.spectral import default_buckets
from blockyard.mixers.spectral import SpectralMixer
from blockyard.registry import get_attention
from blockyard.workbench.claims.claim import Finding, claim, judge_all, judge_number

DOCUMENT = "spectre-nlp"
D, HEADS = 768, 12


def _mixing_flops(tokens: int) -> int:
    """FLOPs of the layer without its projections of every token, W_v and W_o."""
    mixer = SpectralMixer(D, HEADS)
    return mixer.cost(tokens).flops - 2 * 2 * tokens * D * D


@claim(
    "spectral.complexity", document=DOCUMENT, line=27, claimed="O(N log N)", cost="instant",
    says="Mixing takes O(N log N) instead of O(N²).",
    how="Exponent of N in the FLOPs of the encoder form without projections, N from 1,024 to 65,536.",
)  # fmt: skip
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


@claim(
    "spectral.replacement", document=DOCUMENT, line=47, claimed="drop-in", cost="instant",
    says="The block can replace self-attention directly, in language models too.",
    how="Change of outputs before position 32 of 64 when later tokens change, random parameters: the document's form "
        "and the causal one.",
)  # fmt: skip
def replacement() -> Finding:
    torch.manual_seed(0)
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


@claim(
    "spectral.gate_size", document=DOCUMENT, line=55, claimed="O(G·B)", cost="instant",
    says="Groups and buckets keep the gate's parameters at O(groups × buckets).",
    how="Parameters of the gate at 768 features, 12 heads, for 4 and 8 groups, 32 and 64 buckets.",
)  # fmt: skip
def gate_size() -> Finding:
    def size(groups: int, buckets: int) -> int:
        mixer = SpectralMixer(D, HEADS, num_groups=groups, num_buckets=buckets)
        return sum(p.numel() for p in mixer.gate.parameters())

    base, by_group, by_bucket = size(4, 32), size(8, 32) / size(4, 32), size(4, 64) / size(4, 32)
    whole = sum(p.numel() for p in SpectralMixer(D, HEADS).parameters())
    return Finding(
        f"{by_group:.2f}× for twice the groups, {by_bucket:.2f}× for twice the buckets",
        judge_all(by_group < 2.2, by_bucket < 2.2),
        f"Proportional to both, times the hidden width of the gate's network ({base:,} at 4 × 32); the layer's "
        f"{whole:,} are mostly its projections.",
        {"groups": by_group, "buckets": by_bucket, "gate": base, "layer": whole},
    )


@claim(
    "spectral.global", document=DOCUMENT, line=31, claimed="global mixing", cost="instant",
    says="Every position interacts with all others through the spectrum, over long distances.",
    how="Lag that holds 95 % of the kernel's energy at initialisation, N = 1024, with linear buckets (the document's) "
        "and with logarithmic ones.",
)  # fmt: skip
def global_mixing() -> Finding:
    torch.manual_seed(0)
    x = torch.randn(2, 1024, 256)
    span = {}
    for spacing in ("linear", "log"):
        mixer = SpectralMixer(256, 4, n_fft=1024, bucket_spacing=spacing)
        with torch.no_grad():
            span[spacing] = float(mixer.kernel_span(x).float().mean())
    return Finding(
        f"95 % within ±{span['linear']:.0f} of 1,024",
        "holds" if span["linear"] > 256 else "partly" if span["linear"] > 64 else "false",
        f"A smooth gate is a short kernel: √F = {default_buckets(513)} anchors leave about as many lags. "
        f"Fine buckets near zero frequency reach ±{span['log']:.0f}; learning may lengthen either.",
        span,
    )


@claim(
    "spectral.default_buckets", document=DOCUMENT, line=85, claimed="√F", cost="instant",
    says="The number of buckets defaults to the square root of the number of frequencies.",
    how="Buckets chosen for n_fft = 512, 1024 and 4096.",
)  # fmt: skip
def buckets() -> Finding:
    found = {n: default_buckets(n // 2 + 1) for n in (512, 1024, 4096)}
    return Finding(
        ", ".join(map(str, found.values())),
        judge_all(*(judge_number(k, math.sqrt(n // 2 + 1), tolerance=0.1) == "holds" for n, k in found.items())),
        "As said, and at least 4.",
        {f"n{n}": k for n, k in found.items()},
    )


@claim(
    "spectral.size", document=DOCUMENT, line=135, claimed="in attention's place", cost="instant",
    says="SpectreBlockNLP(768, 12) stands where nn.MultiheadAttention(768, 12) stood.",
    how="Parameters of the mixer, of the whole block of that name (norms, residuals, FFN), and of the attention.",
)  # fmt: skip
def size() -> Finding:
    attention = sum(p.numel() for p in torch.nn.MultiheadAttention(D, HEADS).parameters())
    mixer, block = (sum(p.numel() for p in SpectreBlockNLP(D, HEADS, block=b).parameters()) for b in (False, True))
    return Finding(
        f"{mixer:,} for {attention:,}",
        "holds" if mixer <= attention else "false",
        "Smaller, since there are no keys. "
        f"With its norms, residuals and FFN it is a block of {block:,}, which does not belong in attention's place.",
        {"mixer": mixer, "block": block, "attention": attention},
    )


def _saved_bytes(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that the forward pass keeps for the backward one, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = module(x.requires_grad_())
    del kept
    return sum(seen.values())


@claim(
    "spectral.memory", document=DOCUMENT, line=28, claimed="linear in N", cost="instant",
    says="Memory grows about linearly with the sequence, while attention is dominated by its N² map.",
    how="Bytes kept for the backward pass by the layer and by standard attention (SDPA), d = 256, N = 1,024 and 4,096.",
)  # fmt: skip
def memory() -> Finding:
    torch.manual_seed(0)
    grows = {}
    for name, module in (
        ("spectral", SpectralMixer(256, 4)),
        ("attention", get_attention("standard", d_model=256, n_heads=4, kernel="sdpa")),
    ):
        short, long = (_saved_bytes(module, torch.randn(1, n, 256)) for n in (1024, 4096))
        grows[name] = math.log(long / short, 4)
    return Finding(
        f"N^{grows['spectral']:.2f}, attention N^{grows['attention']:.2f}",
        judge_all(grows["spectral"] < 1.15, grows["attention"] > 1.5),
        "Linear it is, but so is attention since fused kernels do not keep the map.",
        grows,
    )
