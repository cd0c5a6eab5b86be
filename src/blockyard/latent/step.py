"""Decoding steps of latent attention: one token behind a cache of latents, in as few calls as they can be.

A step reads little memory, and some fifty calls from Python cost as much as its attention. What does not change from
token to token is made once per cache: which modules are read and that their weights alone tell what they give, the
tables of turns. (One matrix of all maps, with W_uk inside, would save three calls of thirty more and 5 per cent.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.nn.fused import Stamp
from blockyard.nn.linear import hooked, untouched
from blockyard.nn.norms import RMSNorm
from blockyard.nn.rotary import token_tables, turn_token
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.mixer import Call
from blockyard.protocol.steps import one_token

# What a step reads beside k_up and v_up, where the attention has it.
_MAPS, _NORMS = ("q_proj", "kv_down_proj", "q_down_proj"), ("kv_norm", "q_norm")


# Any: the attention's own file names this one, and no circle stands between them.
def step_for(attention: Any, x: Tensor, call: Call) -> Step | None:
    """Return what takes x to the cache's tokens a short way, of a call that was checked; None for anything else.

    Args:
        attention: a `LatentAttention`.
        x: what it is called with.
        call: the other arguments.
    """
    cache = call.cache
    if not one_token(x, cache, attention.d_model) or call.padding_mask is not None or call.attn_mask is not None:
        return None
    if call.positions is not None or call.return_weights or not call.causal:
        return None
    if attention.training and attention.attn_dropout.p > 0:
        return None
    # Behind few tokens it may be cheaper to expand them.
    if attention._form(1, cache.length + 1, True) != "both":
        return None
    step = cache.prepared.get("latent")
    if not isinstance(step, Step) or not step.fits(attention):
        if not _short(attention):
            return None
        step = cache.prepared["latent"] = Step(attention)
    return step


def _short(attention: Any) -> bool:
    """Return whether latents are all that is kept, and the weights alone tell what its modules give."""
    if attention.cache_kind != "latent" or attention.kernel != "auto":
        return False
    # A table of turns by position serves where the length of the row does not matter.
    if not attention.decoupled or not attention.rope.steps:
        return False
    if any(not untouched(each) or each.bias is not None for each in _those(attention, _MAPS).values()):
        return False
    if any(type(norm) is not RMSNorm or hooked(norm) for norm in _those(attention, _NORMS).values()):
        return False
    own = attention._parameters
    # Neither parametrised nor quantised.
    return type(own.get("k_up")) is type(own.get("v_up")) is nn.Parameter


def _those(attention: Any, names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: getattr(attention, name) for name in names}
    return {name: module for name, module in found.items() if module is not None}


class Step:
    """What the steps behind one cache need of an attention; the cache keeps it while it grows token by token.

    Args:
        attention: absorbed steps, its maps untouched and without biases.
    """

    def __init__(self, attention: Any) -> None:
        self.heads, self.rank, self.scale = attention.n_heads, attention.kv_rank, attention.scale
        self.nope, self.rotary = attention.nope_dim, attention.rope_dim
        self.rope = attention.rope
        self.turns: tuple[Tensor, ...] = (torch.empty(0),)
        modules = _those(attention, (*_MAPS, *_NORMS))
        weights: dict[str, Tensor] = {name: module.weight for name, module in modules.items()}
        self.modules, self.stamp = list(modules.items()), Stamp([*weights.values(), attention.k_up, attention.v_up])
        # A step never learns.
        weights = {name: weight.detach() for name, weight in weights.items()}
        self.q, self.down, self.q_down = weights["q_proj"], weights["kv_down_proj"], weights.get("q_down_proj")
        self.gain, self.q_gain = weights.get("kv_norm"), weights.get("q_norm")
        self.eps, self.q_eps = (getattr(modules.get(name), "eps", 0.0) for name in _NORMS)
        self.k_up, self.v_up = attention.k_up.detach(), attention.v_up.detach().mT

    def fits(self, attention: Any) -> bool:
        """Return whether it is still made of what the attention has, unchanged."""
        # By name, since attributes of modules are slow to find, and this is asked for every token.
        now, own = attention._modules, attention._parameters
        weights: list[Tensor] = []
        for name, module in self.modules:
            if now[name] is not module or hooked(module):
                return False
            # None once it is parametrised.
            weights.append(module._parameters.get("weight"))
        weights += [own.get("k_up"), own.get("v_up")]
        return self.stamp.holds(weights)

    def __call__(self, x: Tensor, cache: LayerCache) -> Tensor:
        """Return attention of one token [B, 1, d_model] to the cache and itself: mixed values [B, 1, H · v_dim]."""
        batch, heads, rank = x.shape[0], self.heads, self.rank
        query, turned, latent = self._project(x.reshape(batch, -1))
        if self.gain is not None:
            latent = F.rms_norm(latent, (rank,), self.gain, self.eps)
        if cache.length >= len(self.turns[0]):
            self.turns = token_tables(self.rope, cache.length, x)
        cos, sin = self.turns
        q_rope, k_rope = turn_token(turned, cos[cache.length], sin[cache.length], self.rope.layout).split_with_sizes(
            (heads, 1), 1
        )
        (held,) = cache.append(latent=torch.cat([latent.unsqueeze(1), k_rope], -1))
        query = torch.cat([query, q_rope], -1).unsqueeze(1)
        # The heads are queries of one wide key head. Latents are their own values: what stands beside is cut off.
        keys = held.unsqueeze(1)
        mixed = F.scaled_dot_product_attention(query, keys, keys, scale=self.scale)
        mixed = mixed.view(batch, heads, -1)[..., :rank].transpose(0, 1)
        return torch.bmm(mixed, self.v_up).transpose(0, 1).reshape(batch, 1, -1)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of latents [B, H, rank], what is turned of queries and key [B, H + 1, rope], and the latent
        [B, rank] of tokens x [B, d_model]."""
        heads, rank, rotary = self.heads, self.rank, self.rotary
        down = F.linear(x, self.down)
        if self.q_down is not None:
            x = F.linear(x, self.q_down)
            x = F.rms_norm(x, x.shape[1:], self.q_gain, self.q_eps)
        nope, q_rope = F.linear(x, self.q).view(-1, heads, self.nope + rotary).split_with_sizes((self.nope, rotary), 2)
        latent, key = down.split_with_sizes((rank, rotary), 1)
        # q · (W_uk c) = (W_ukᵀ q) · c: the queries meet latents instead of keys, the same ones for all heads.
        query = torch.bmm(nope.transpose(0, 1), self.k_up).transpose(0, 1)
        return query, torch.cat([q_rope, key.unsqueeze(1)], 1), latent
