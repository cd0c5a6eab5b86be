"""Claims of the price-transformer document about its model."""

from __future__ import annotations

import torch

from blockyard.claims.claim import Finding, claim
from blockyard.claims.memory import parameter_count
from blockyard.compat.price_transformer import PricePredictionConfigs, PriceTransformer


@claim("price.outputs")
def outputs() -> Finding:
    model = PriceTransformer(PricePredictionConfigs.base()).eval()
    with torch.no_grad():
        found = model(torch.randn(4, 180, 20), return_features=True, return_dict=True)
    shapes = [list(found[name].shape) for name in ("price_predictions", "strategy_features")]
    count = parameter_count(model)
    return Finding(
        f"{shapes[0]}, {shapes[1]}",
        "holds" if shapes == [[4, 10], [4, 512]] else "false",
        f"The base preset has {count:,} parameters.",
        {"parameters": count},
    )


@claim("price.presets")
def presets() -> Finding:
    sizes = {}
    for name in ("tiny", "small", "base", "large"):
        with torch.device("meta"):
            model = PriceTransformer(getattr(PricePredictionConfigs, name)())
        sizes[name] = parameter_count(model)
    base = PricePredictionConfigs.base()
    told = (base.d_model, base.n_layers, base.n_heads, base.kv_lora_rank, base.intermediate_size)
    return Finding(
        ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in sizes.items()),
        "holds" if told == (512, 8, 8, 256, 2048) else "false",
        "The document gives no sizes beside base's; the others are of its author's code. A gated FFN of 4 d is most of "
        "each.",
        sizes,
    )
