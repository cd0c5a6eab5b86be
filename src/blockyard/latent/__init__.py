"""Latent attention (MLA): keys and values of all heads come from one small vector per token, and only that is cached.

    c = RMSNorm(W_c x), kv_rank numbers;   head h: keys W_uk,h c, values W_uv,h c
    rope="decoupled"  q = [q_nope; R q_rope], k = [W_uk c; R k_r], one rotary key k_r for all heads. R leaves q_nope
                      and c alone, so W_uk can be absorbed into the query, q_nopeᵀ W_uk c = (W_ukᵀ q_nope)ᵀ c, and
                      W_uv into the output: a step then attends to the latents themselves, as one wide key head
    rope="full"       k = R W_uk c: R stands between q and W_uk, so keys cannot be absorbed (the price document's form)

From DeepSeek-V2 (arXiv 2405.04434, section 2.1) and the price document.

Files, in reading order:

    attention.py   LatentAttention ("mla"): both forms; what to cache (latent, mixed, expanded)
    absorbing.py   absorbing_pays, the rule by which decode="auto" expands a prompt and absorbs a token
    step.py        its decoding step: one token behind a cache of latents, in as few calls as they can be
    deepseek.py    the same weights to and from transformers' modules, every setting read or refused by its name

The definition in loops and float64, which both forms are compared with: tests/latent/twin.py.

Use it where the cache is the limit (long contexts, many sequences) and every head should keep keys of its own. It does
not make scores, training or one-shot forecasts cheaper; grouped key heads of standard attention are the simpler rival.

The arithmetic of absorbing, costs and figures: docs/latent.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.latent.absorbing import absorbing_pays as absorbing_pays
    from blockyard.latent.attention import LatentAttention as LatentAttention
else:
    __all__ = exports(
        __name__,
        {
            "absorbing": "absorbing_pays",
            "attention": "LatentAttention",
        },
    )
