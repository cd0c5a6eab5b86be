"""Decoding steps of attention with thin heads: one token behind a cache, in as few calls as they can be.

With a few numbers per head a step reads little memory; what it costs is calls from Python, so all that does not change
from token to token is made once per cache: one matrix of the three projections, the gains, the scale inside them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.nn.attention_kernels import Kernel
from blockyard.nn.dropout import Dropout
from blockyard.nn.fused import Stamp
from blockyard.nn.linear import Linear, hooked, plain
from blockyard.nn.norms import RMSNorm
from blockyard.nn.rotary import RotaryPositionalEmbedding, token_tables, turn_token
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.mixer import Call
from blockyard.protocol.steps import one_token


class ThinHeads(Protocol):
    """What a step needs to know of an attention: numbers, and the modules whose weights it reads."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    causal: bool
    training: bool
    kernel: Kernel
    # Whether the three projections are all that stands between x and the heads.
    short_steps: bool
    # Whether queries and keys are normalised over all heads at once.
    norms_whole: bool
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    rope: RotaryPositionalEmbedding | None
    attn_dropout: Dropout
    # Any: as torch declares it; a step looks modules up in it, since attributes of modules are slow to find.
    _modules: dict[str, Any]


def step_for(attention: ThinHeads, x: Tensor, call: Call) -> Step | None:
    """Return what takes x to the cache's tokens a short way: one token behind plain projections; None for anything
    else."""
    cache = call.cache
    if not one_token(x, cache, attention.d_model) or not call.is_bare:
        return None
    if attention.training and attention.attn_dropout.p > 0:
        return None
    step = cache.prepared.get("attention")
    if not isinstance(step, Step) or not step.fits(attention):
        # One token behind a cache sees all of it: exactly then causality needs no mask.
        if not attention.causal or attention.kernel != "auto" or not attention.short_steps or attention.norms_whole:
            return None
        # A table of turns by position serves where the length of the row does not matter.
        if attention.rope is not None and not attention.rope.steps:
            return None
        if not plain(attention.q_proj, attention.k_proj, attention.v_proj):
            return None
        if any(norm is not None and hooked(norm) for norm in (attention.q_norm, attention.k_norm)):
            return None
        step = cache.prepared["attention"] = Step(attention)
    return step


class Step:
    """What the steps behind one cache need of an attention; the cache keeps it while it grows token by token.

    Args:
        attention: its projections plain.
    """

    def __init__(self, attention: ThinHeads) -> None:
        self.heads, self.key_heads = attention.n_heads, attention.n_kv_heads
        self.width, self.v_width = attention.head_dim, attention.v_dim
        self.rope = attention.rope
        self.turns: tuple[Tensor, ...] = (torch.empty(0),)
        names = ["q_proj", "k_proj", "v_proj"]
        if isinstance(attention.q_norm, RMSNorm):
            names += ["q_norm", "k_norm"]
        modules = [getattr(attention, name) for name in names]
        read: list[Tensor] = [module.weight for module in modules]
        self.modules, self.stamp = list(zip(names, modules)), Stamp(read)
        # A step never learns.
        q, k, v = self.weights = [weight.detach() for weight in read[:3]]
        # The scale of the scores goes into the first thing that queries are multiplied with.
        self.scale = self.width**-0.5
        self.gains: Tensor | None = None
        if isinstance(attention.q_norm, RMSNorm):
            q_gain, k_gain = (weight.detach() for weight in read[3:])
            gains = [q_gain.expand(self.heads, -1), k_gain.expand(self.key_heads, -1)]
            self.gains, self.eps = torch.cat([gains[0] * self.scale, gains[1]]).unsqueeze(1), attention.q_norm.eps
            self.scale = 1.0
        # One product instead of three, where the copy [d_model, all heads] is small.
        self.stacked: Tensor | None = None
        if sum(len(weight) for weight in self.weights) <= attention.d_model:
            self.stacked = torch.cat([q * self.scale, k, v]).mT.contiguous()
            self.scale = 1.0

    def fits(self, attention: ThinHeads) -> bool:
        """Return whether it is still made of what the attention has, unchanged."""
        # By name, since attributes of modules are slow to find, and this is asked for every token.
        now, weights = attention._modules, []
        for name, module in self.modules:
            if now[name] is not module or hooked(module):
                return False
            # None once it is parametrised.
            weights.append(module._parameters.get("weight"))
        return self.stamp.holds(weights)

    def __call__(self, x: Tensor, cache: LayerCache) -> Tensor:
        """Return attention of one token [B, 1, d_model] to the cache and itself: mixed values [B, 1, H · v_dim]."""
        batch, heads, key_heads, width = x.shape[0], self.heads, self.key_heads, self.width
        x = x.reshape(batch, -1)
        if self.stacked is not None:
            qkv = torch.mm(x, self.stacked)
        else:
            qkv = torch.cat([F.linear(x, weight) for weight in self.weights], -1)
        both = heads + key_heads
        # `split` in Python takes two microseconds more than this.
        qk, v = qkv.split_with_sizes((both * width, key_heads * self.v_width), 1)
        qk, v = qk.view(batch, both, 1, width), v.view(batch, key_heads, 1, self.v_width)
        if self.gains is not None:
            qk = F.rms_norm(qk, (width,), None, self.eps) * self.gains
        if self.rope is not None:
            if cache.length >= len(self.turns[0]):
                self.turns = token_tables(self.rope, cache.length, x)
            cos, sin = self.turns
            qk = turn_token(qk, cos[cache.length], sin[cache.length], self.rope.layout)
        q, k = qk.split_with_sizes((heads, key_heads), 1)
        keys, values = cache.append(k=k, v=v)
        # The heads that share a key head are further queries of it, so that no key is copied.
        q = q.reshape(batch * key_heads, -1, width)
        # [B · H_kv, queries, length]: keys lie lengthwise, so this product reads whole rows.
        scores = torch.bmm(q if self.scale == 1.0 else q * self.scale, keys.flatten(0, 1).mT)
        # A cache takes no gradients, so nothing but this reads the scores.
        weights = torch.softmax(scores, -1, out=scores)
        return torch.bmm(weights, values.flatten(0, 1)).view(batch, 1, -1)
