"""Claims of the price-transformer document about its model."""

from __future__ import annotations

import torch

from blockyard.claims.claim import Finding, claim
from blockyard.compat.price_transformer import PricePredictionConfigs, PriceTransformer


@claim(
    "price.outputs", document="price-transformer", line=422, claimed="[4, 10], [4, 512]", cost="instant",
    says="The base model turns [4, 180, 20] into ten predictions and 512 features.",
    how="The document's own call.",
)  # fmt: skip
def outputs() -> Finding:
    model = PriceTransformer(PricePredictionConfigs.base()).eval()
    with torch.no_grad():
        found = model(torch.randn(4, 180, 20), return_features=True, return_dict=True)
    shapes = [list(found[name].shape) for name in ("price_predictions", "strategy_features")]
    count = sum(p.numel() for p in model.parameters())
    return Finding(
        f"{shapes[0]}, {shapes[1]}",
        "holds" if shapes == [[4, 10], [4, 512]] else "false",
        f"The base preset has {count:,} parameters.",
        {"parameters": count},
    )


@claim(
    "price.presets", document="price-transformer", line=430, claimed="tiny to large", cost="instant",
    says="Presets from tiny to large; base is 512 wide, 8 layers, 8 heads, rank 256, hidden width 2048.",
    how="Parameters of the four presets.",
)  # fmt: skip
def presets() -> Finding:
    sizes = {}
    for name in ("tiny", "small", "base", "large"):
        with torch.device("meta"):
            model = PriceTransformer(getattr(PricePredictionConfigs, name)())
        sizes[name] = sum(p.numel() for p in model.parameters())
    base = PricePredictionConfigs.base()
    told = (base.d_model, base.n_layers, base.n_heads, base.kv_lora_rank, base.intermediate_size)
    return Finding(
        ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in sizes.items()),
        "holds" if told == (512, 8, 8, 256, 2048) else "false",
        "The document gives no sizes beside base's; the others are of its author's code. A gated FFN of 4 d is most of "
        "each.",
        sizes,
    )
