"""Small models of every kind, over every registered mixer and FFN, with noise in all weights so that all act."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.compat.price_transformer import PricePredictionConfig, PriceTransformer
from blockyard.complex.dual import DualStreamBlock
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.multihead.attention import MultiheadAttention
from blockyard.tasks.classify.model import EncoderConfig, TextClassifier
from blockyard.tasks.price.model import GROUPS, PriceConfig, PriceForecaster
from blockyard.tasks.signal.model import SignalConfig, SignalTransformer
from blockyard.vein.block import VFTBlock

FEATURES = tuple(name for group in GROUPS.values() for name in group)
SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2}
BATCH, LENGTH, WORDS = 3, 9, 11


@dataclass(frozen=True)
class Case:
    """A model and what it is called with.

    Args:
        model: in eval mode.
        inputs: positional arguments, batch first.
        given: named ones, batch first.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    given: Mapping[str, Tensor]

    def outputs(self) -> dict[str, Tensor]:
        """Everything floating that the model returns, by name."""
        return outputs_of(self.model(*self.inputs, **self.given))


def outputs_of(found: Any, name: str = "out") -> dict[str, Tensor]:
    """Floating and complex tensors of a model's result, named by where they stand."""
    if isinstance(found, Tensor):
        return {name: found} if found.is_floating_point() or found.is_complex() else {}
    parts: dict[str, Any] = {}
    if is_dataclass(found):
        parts = {field.name: getattr(found, field.name) for field in fields(found)}
    elif isinstance(found, dict):
        parts = found
    elif isinstance(found, tuple | list):
        parts = {str(i): part for i, part in enumerate(found)}
    return {key: t for part, value in parts.items() for key, t in outputs_of(value, f"{name}.{part}").items()}


def figure(outputs: Mapping[str, Tensor]) -> Tensor:
    """One number that all outputs go into, each element with a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for tensor in outputs.values():
        flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten().double()
        # Curved, so that second derivatives see linear heads, too.
        total = total + (torch.cos(torch.arange(flat.numel()) + 1.0) * (flat + flat.square() / 2)).sum()
    return total


def noisy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with noise added to its weights, in eval mode."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def _text(dtype: torch.dtype, padded: bool, **options: Any) -> Case:
    torch.manual_seed(0)
    model = TransformerLM(LMConfig(**{**SMALL, "vocab_size": WORDS, "context": LENGTH, **options}))
    ids, targets = torch.randint(WORDS, (2, BATCH, LENGTH)).unbind(0)
    mask = {"padding_mask": torch.arange(LENGTH) >= torch.tensor([[0], [3], [1]])} if padded else {}
    return Case(noisy(model, dtype), (ids,), {"targets": targets, **mask})


def _classes(dtype: torch.dtype, padded: bool, **options: Any) -> Case:
    torch.manual_seed(0)
    model = TextClassifier(
        EncoderConfig(**{**SMALL, "vocab_size": WORDS, "n_classes": 3, "context": LENGTH, **options})
    )
    mask = {"padding_mask": torch.arange(LENGTH) < torch.tensor([[9], [4], [7]])} if padded else {}
    return Case(
        noisy(model, dtype), (torch.randint(WORDS, (BATCH, LENGTH)),), {"targets": torch.randint(3, (BATCH,)), **mask}
    )


def _prices(dtype: torch.dtype, padded: bool, **options: Any) -> Case:
    torch.manual_seed(0)
    shapes = {"context": 16, "patch": 4, "stride": 4, "horizons": (1, 2, 5), "features": FEATURES}
    model = PriceForecaster(PriceConfig(**{**SMALL, **shapes, **options}))
    return Case(
        noisy(model, dtype),
        (torch.randn(BATCH, 16, len(FEATURES)).to(dtype),),
        {"targets": torch.randn(BATCH, 3).to(dtype)},
    )


def _signals(dtype: torch.dtype, padded: bool, **options: Any) -> Case:
    torch.manual_seed(0)
    model = SignalTransformer(SignalConfig(**{**SMALL, "frame": 12, **options}))
    iq = torch.randn(BATCH, 12, dtype=torch.complex64)
    given = {"targets": torch.randint(6, (BATCH,))}
    if options.get("condition") == "snr":
        given["snr"] = torch.tensor([-3.0, 4.0, 11.0]).to(dtype)
    return Case(noisy(model, dtype), (iq.to(torch.complex128 if dtype == torch.float64 else torch.complex64),), given)


def _two_streams(dtype: torch.dtype, padded: bool, **options: Any) -> Case:
    torch.manual_seed(0)
    block = DualStreamBlock(16, 2, **options)
    kind = {torch.float64: torch.complex128, torch.float32: torch.complex64}[dtype] if block.complex_valued else dtype
    streams = (torch.randn(BATCH, LENGTH, 16, dtype=kind), torch.randn(BATCH, LENGTH, 16, dtype=kind))
    return Case(noisy(block, dtype), streams, {})


def _vein_block(dtype: torch.dtype, padded: bool, **options: Any) -> Case:
    torch.manual_seed(0)
    block = VFTBlock(16, 2, 4, **{"tau": 0.0, "causal": True, **options})
    return Case(noisy(block, dtype), (torch.randn(BATCH, LENGTH, 16, dtype=dtype),), {})


class _Itself(nn.Module):
    """Self-attention by a module that takes queries, keys and values."""

    def __init__(self, attention: MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, need_weights=False)[0]


def _drop_in(dtype: torch.dtype, padded: bool, **options: Any) -> Case:
    torch.manual_seed(0)
    module = _Itself(MultiheadAttention(16, 2, batch_first=True, **options))
    return Case(noisy(module, dtype), (torch.randn(BATCH, LENGTH, 16, dtype=dtype),), {})


def _document_prices(dtype: torch.dtype, padded: bool, **options: Any) -> Case:
    torch.manual_seed(0)
    config = PricePredictionConfig(d_model=16, n_layers=2, n_heads=2, kv_lora_rank=8)
    return Case(noisy(PriceTransformer(config), dtype), (torch.randn(BATCH, LENGTH, 20, dtype=dtype),), {})


# Of every registered mixer in its default form and by the options that take another path, with every registered FFN.
TEXT = (
    "standard+relu2", "standard+swiglu", "standard[window=3]+glu", "standard[n_kv_heads=1,kernel=sdpa]+standard",
    "standard[kernel=sdpa,window=3]+relu2", "standard[kernel=matmul,qk_norm=true,rope=interleaved]+standard",
    "mla+relu2", "mla[decode=absorbed,kernel=sdpa,cache=mixed,kv_rank=12]+swiglu", "tva+relu2",
    "tva[rank=2,factored=true,v_rank=3]+vft", "tva+vft", "standard+vft[tied=true,gated=true,stabilizer=lowrank]",
    "spectral[window=8,chunk=4]+relu2", "spectral[window=5,chunk=1]+relu2",
    "spectral[window=6,gate=token,interpolation=cubic,use_toeplitz=true]+glu",
)  # fmt: skip
MIXTURES = (
    "standard+moe[n_experts=4,k=2]", "standard+moe[n_experts=4,k=2,impl=segment]",
    "standard+moe[n_experts=4,k=2,impl=loop]", "standard+moe[n_experts=4,k=2,impl=padded,capacity=1.0]",
    "standard+moe[expert=vft,vein_rank=8,n_experts=4,scoring=sigmoid,balance=bias,n_shared=1]",
)  # fmt: skip
COMPLEX = (
    "complex", "complex[score=phase,gate=magnitude]+complex_swiglu[linear=gauss]",
    "complex[score=split,linear=gauss]+complex_swiglu[linear=block]", "complex[score=magnitude,gate=learned,rope=none]",
    "complex[qk_norm=false,kernel=sdpa]",
)  # fmt: skip
_ENCODER = "spectral[n_fft=20,pooling_type=attention,memory_size=3]+relu2"

Build = Callable[[torch.dtype, bool], Case]


def _named(build: Callable[..., Case], **options: Any) -> Build:
    return lambda dtype, padded: build(dtype, padded, **options)


MODELS: dict[str, Build] = {
    **{f"lm {blocks}": _named(_text, blocks=blocks) for blocks in (*TEXT, *MIXTURES)},
    "lm tied, soft cap, post": _named(_text, tied=True, logit_softcap=5.0, norm_position="post", norm="layer"),
    "classify standard": _named(_classes, blocks="standard+swiglu", pooling="cls"),
    "classify spectral": _named(_classes, blocks=_ENCODER),
    "classify spectral, wavelets": _named(_classes, blocks="spectral[pooling_type=mean,wavelet_on_rate=0.5]+relu2"),
    "classify tva+vft": _named(_classes, blocks="tva+vft", causal=True, pooling="last"),
    "price quantile": _named(_prices, head="quantile", instance="return", layout="patch"),
    "price student_t": _named(_prices, head="student_t", instance="return", layout="day"),
    "price level": _named(_prices, head="quantile", instance="level", blocks="tva+vft"),
    "price point": _named(_prices, head="point", direction_weight=0.5, smoothness_weight=0.5, instance="none"),
    "price spectral": _named(_prices, head="quantile", blocks="spectral+relu2", causal=True, pool="flatten"),
    **{f"signal {blocks}": _named(_signals, blocks=blocks) for blocks in COMPLEX},
    "signal standard": _named(_signals, blocks="standard[rope=none]+relu2", condition="snr", normalise=True),
    "signal complex, told": _named(_signals, blocks="complex", condition="snr", normalise=True, norm="layer"),
    "signal complex mixture": _named(_signals, blocks="complex+moe[expert=complex_swiglu,n_experts=4,k=2]"),
    "two complex streams": _named(_two_streams, cross_gate=True, norm="whiten"),
    "two real streams": _named(_two_streams, attn="standard", ffn="swiglu", order="interleaved", checkpoint=True),
    "vein block": _named(_vein_block, metrics=True),
    "vein block of the document": _named(_vein_block, preset="seed", norm_position="post"),
    "drop-in": _named(_drop_in),
    "prices of the document": _named(_document_prices),
    "vein block, gathered": _named(_vein_block, s=2, tau=0.8, correction="gather"),
}
MIXES = tuple(name for name in MODELS if "moe" in name or "mixture" in name)
