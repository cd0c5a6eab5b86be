"""`nn.MultiheadAttention`'s constructor and call over any registered mixer.

    layer = nn.TransformerEncoderLayer(512, 8, batch_first=True)
    layer.self_attn = blockyard.MultiheadAttention(512, 8, batch_first=True, mixer="mla")

A plain module rather than a subclass: torch's encoder layers bypass the `forward` of a subclass in eval mode and
compute with the packed weights that it is expected to hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.options import options_of
from blockyard.registry import MODEL_PARAMETERS, Entry, accepted_arguments, create, implementation


class MultiheadAttention(nn.Module):
    """A mixer behind the interface of `torch.nn.MultiheadAttention`.

    Self-attention is a call in which query, key and value are one tensor; with another key it is cross-attention,
    without rotary positions, since the two sequences share none. A query whose keys are all masked gives 0, not NaN.

    Args:
        embed_dim: width of queries, keys, values and outputs.
        num_heads: number of heads.
        dropout: probability of dropping an attention weight in training; refused by mixers without weights to drop.
        bias: biases in the projections; None leaves the mixer's own default, and mixers without the option take
            nothing else.
        add_bias_kv: not supported; present so that the constructor's positions are torch's.
        add_zero_attn: not supported.
        kdim: width of keys; only embed_dim.
        vdim: width of values; only embed_dim.
        batch_first: tensors are [B, T, embed_dim] rather than [T, B, embed_dim].
        device: where the parameters live.
        dtype: their floating type.
        mixer: name of a registered mixer.
        options: options of the mixer, as `blockyard info NAME` lists them.
        causal: build the mixer causal; needed where `is_causal` cannot be decided call by call.

    Raises: InputError for unknown names or options, and for what the mixer cannot do.
    """

    # What torch's encoder layers look at before they bypass `forward`: these values tell them not to.
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool | None = None,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mixer: str = "standard",
        options: Mapping[str, Any] | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        for name, given in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if given:
                raise InputError(f"{name}=True is not supported: no mixer here has the extra key")
        for name, width in (("kdim", kdim), ("vdim", vdim)):
            if width not in (None, embed_dim):
                raise InputError(f"{name}={width} should be embed_dim={embed_dim} or None")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim = self.vdim = embed_dim
        entry = implementation("attn", mixer)
        self.mixer_name, self.traits = mixer, entry.traits
        given_options = _options(entry, options or {}, dropout=dropout, bias=bias, causal=causal)
        model = {"d_model": embed_dim, "n_heads": num_heads, "causal": causal}
        known = options_of(entry.cls)
        model = {name: value for name, value in model.items() if name in known}
        self.mixer = create("attn", mixer, {**model, **given_options}).to(device=device, dtype=dtype)
        self._accepts = accepted_arguments(self.mixer.forward)

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> MultiheadAttention:
        """Standard attention with the weights of a torch module: the same outputs, ours to exchange or measure.

        Raises:
            InputError: for a module with its own key or value width, or with add_bias_kv or add_zero_attn.
        """
        if module.bias_k is not None or module.add_zero_attn:
            raise InputError("a module with add_bias_kv or add_zero_attn cannot be taken over")
        if module.in_proj_weight is None:
            raise InputError(f"kdim={module.kdim}, vdim={module.vdim} should both be embed_dim={module.embed_dim}")
        found = cls(
            module.embed_dim,
            module.num_heads,
            module.dropout,
            module.in_proj_bias is not None,
            batch_first=module.batch_first,
            device=module.in_proj_weight.device,
            dtype=module.in_proj_weight.dtype,
            options={"rope": "none", "qk_norm": False},
        )
        mixer = found.mixer
        with torch.no_grad():
            for projection, weight in zip(_projections(mixer), module.in_proj_weight.chunk(3)):
                projection.weight.copy_(weight)
            mixer.output_proj.weight.copy_(module.out_proj.weight)
            if module.in_proj_bias is not None:
                for projection, bias in zip(_projections(mixer), module.in_proj_bias.chunk(3)):
                    projection.bias.copy_(bias)
                mixer.output_proj.bias.copy_(module.out_proj.bias)
        return found.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool | None = None,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as `nn.MultiheadAttention` does.

        Args:
            query: [T, B, E], or [B, T, E] with batch_first, or [T, E].
            key: the same form, S long; the query itself for self-attention.
            value: the key itself: mixers read keys and values from one sequence.
            key_padding_mask: [B, S] (or [S]); bool with True = ignore, or float with 0 and -inf.
            need_weights: return attention weights; None returns them where the mixer has any, True insists.
            attn_mask: [T, S] or [B * num_heads, T, S]; bool with True = ignore, or added to the scores.
            average_attn_weights: weights [B, T, S], the mean over heads, rather than [B, num_heads, T, S].
            is_causal: attn_mask, if given, is the causal mask, and need not be read.

        Returns: (output in the query's form, weights or None).
        """
        if value is not key:
            raise InputError("value should be the same tensor as key: a mixer reads both from one sequence")
        itself, single = key is query, query.ndim == 2
        query, key = self._batched(query, "query"), self._batched(key, "key")
        arguments: dict[str, Any] = {} if itself else {"context": key}
        if is_causal:
            attn_mask = None
        # Only where it differs: a mixer that cannot be overridden call by call refuses the argument.
        if is_causal != bool(getattr(self.mixer, "causal", False)):
            arguments["causal"] = is_causal
        if key_padding_mask is not None:
            arguments["padding_mask"] = _kept(key_padding_mask, key)
        if attn_mask is not None:
            arguments["attn_mask"] = self._mask(attn_mask, query, key)
        weighted = self.traits.weights and need_weights is not False
        if need_weights and not self.traits.weights:
            raise InputError(f"need_weights=True: attention {self.mixer_name!r} has no attention weights")
        if weighted:
            arguments["return_weights"] = True
        for name in arguments.keys() - self._accepts:
            raise InputError(f"attention {self.mixer_name!r} does not take {name}")
        found = self.mixer(query, **arguments)
        out, weights = found if isinstance(found, tuple) else (found, None)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _batched(self, x: Tensor, name: str) -> Tensor:
        if x.ndim not in (2, 3) or x.shape[-1] != self.embed_dim:
            form = "batch, length" if self.batch_first else "length, batch"
            raise InputError(f"{name} has shape {tuple(x.shape)}, expected [{form}, {self.embed_dim}]")
        if x.ndim == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _mask(self, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The mask as mixers take it: bool with True = attend, or additive, [T, S] or [B, num_heads, T, S]."""
        if mask.dtype == torch.bool:
            mask = ~mask
        batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
        if mask.shape == (queries, keys):
            return mask
        if mask.shape == (batch * self.num_heads, queries, keys):
            return mask.unflatten(0, (batch, self.num_heads))
        raise InputError(
            f"attn_mask has shape {tuple(mask.shape)}, expected ({queries}, {keys}) or "
            f"({batch * self.num_heads}, {queries}, {keys})"
        )

    def extra_repr(self) -> str:
        return f"mixer={self.mixer_name!r}, batch_first={self.batch_first}"


def _options(
    entry: Entry, options: Mapping[str, Any], *, dropout: float, bias: bool | None, causal: bool
) -> dict[str, Any]:
    """The mixer's options with the constructor's own ones among them; refuses what the mixer does not have."""
    known, given = options_of(entry.cls), dict(options)
    for name in given:
        if name in MODEL_PARAMETERS:
            raise InputError(f"options[{name!r}]: give {name} to the constructor itself")
    if bias is not None:
        if "bias" not in known:
            raise InputError(f"bias={bias}: attention {entry.name!r} has no option for biases; leave it None")
        given["bias"] = bias
    if dropout:
        if "dropout" not in known:
            raise InputError(f"dropout={dropout}: attention {entry.name!r} has no weights to drop")
        given["dropout"] = dropout
    if causal and not entry.traits.causal:
        raise InputError(f"causal=True: attention {entry.name!r} cannot be causal")
    if not causal and not entry.traits.bidirectional:
        raise InputError(f"causal=False: attention {entry.name!r} is only causal")
    return given


def _kept(mask: Tensor, key: Tensor) -> Tensor:
    """[B, S] with True = keep, from torch's masks: bool with True = ignore, or float with 0 and -inf."""
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    if mask.shape != key.shape[:2]:
        raise InputError(f"key_padding_mask has shape {tuple(mask.shape)}, expected {tuple(key.shape[:2])}")
    if mask.dtype == torch.bool:
        return ~mask
    if not torch.compiler.is_compiling() and not bool(((mask == 0) | torch.isneginf(mask)).all()):
        raise InputError("key_padding_mask should hold 0 (keep) and -inf (ignore); use attn_mask for other biases")
    return mask == 0


def _projections(mixer: Any) -> tuple[Any, Any, Any]:
    return mixer.q_proj, mixer.k_proj, mixer.v_proj
